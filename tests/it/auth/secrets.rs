//! Canary test for secrets: secrets are passed in every input, and no output may contain them.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;
use sessiond::auth::{JwtAlgorithm, Scope};
use sessiond::bootstrap::system_now;
use sessiond::embedded_redis::EmbeddedRedis;
use sessiond::store::RedisAddress;
use sessiond::{bootstrap, http, server};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::support::credentials::{Signer, api_key, claims, jwt_flags, replace, with};
use crate::support::process::Process;
use crate::support::redis::{RedisProbe, server_program, shared};
use crate::support::service::Service;

const PASSWORD: &str = "canary-redis-password";
const USER: &str = "canary-user";

#[tokio::test]
async fn no_output_contains_a_secret() {
    let folder = TempDir::new().expect("a folder");
    let redis = EmbeddedRedis::start(&server_program(), &folder.path().join("redis")).expect("an embedded Redis");
    RedisProbe::at(&redis.socket(), "sd").await.command(&["CONFIG", "SET", "requirepass", PASSWORD]).await;
    let url = format!("redis+unix://default:{PASSWORD}@localhost{}", redis.socket().display());
    let (good, good_entry) = api_key("canary-key", &["b"], &Scope::ALL, None);
    let (expired, expired_entry) = api_key("old", &["b"], &Scope::ALL, Some("2020-01-01T00:00:00Z"));
    let keys = folder.path().join("keys.toml");
    replace(&keys, format!("{good_entry}\n{expired_entry}"));
    let signer = Signer::new(JwtAlgorithm::Hs256);
    let secret_file = folder.path().join("secret");
    replace(&secret_file, signer.key_file());
    let own = claims("b", USER, system_now());
    let tokens = [
        signer.token(&own),
        signer.token(&with(&own, "exp", 1)),
        signer.token(&with(&own, "businessId", json!(["canary-claim"]))),
        Signer::new(JwtAlgorithm::Hs256).token(&own),
        signer.token_with(&json!({"alg": "none", "kid": "canary-kid"}), &own),
        signer.token_of("{\"alg\": \"canary-alg\"}", "canary-claims"),
    ];
    let mut flags = jwt_flags(JwtAlgorithm::Hs256, &secret_file);
    flags.extend(["--api-keys-file", keys.to_str().expect("a path")].map(str::to_owned));
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let (mut service, base) = Process::serve(&flags, &[("REDIS_URL", &url), ("SESSIOND_LOG", "trace")]);

    let unknown = "unknown.canary-secret-of-nobody".to_owned();
    let credentials: Vec<_> = [good.clone(), expired.clone(), unknown].into_iter().chain(tokens.clone()).collect();
    let mut out = call_with_each(&base, &credentials).await;
    // The invalid file contains the valid one and a secret in addition.
    replace(&keys, format!("{good_entry}\n{good}\nsecret = \"{good}\""));
    service.wait_for_line("stays in force");
    replace(&secret_file, format!("{{\"keys\": [{:?}]}}", String::from_utf8(signer.key_file()).expect("text")));
    service.wait_for_line("stays in force");
    let metrics = service.lines.iter().find(|line| line.contains("/metrics\"")).expect("the metrics' address").clone();
    let start = metrics.find("http://").expect("an address");
    let metrics = metrics[start..].split('"').next().expect("an address");
    let metrics = reqwest::get(metrics).await.expect("a response").text().await.expect("text");
    assert!(metrics.contains("sessiond_credentials_rejected_total{reason=\"invalid\"}"), "{metrics}");
    out.push(metrics);
    service.signal(Signal::TERM);
    service.wait();

    let secret_of = |credential: &str| credential.split_once('.').expect("a secret").1.to_owned();
    let mut planted = vec![PASSWORD.to_owned(), USER.to_owned(), "canary-".to_owned(), secret_of(&good)];
    planted.extend([secret_of(&expired), String::from_utf8(signer.key_file()).expect("text")]);
    for token in &tokens {
        let parts = token.split('.').filter(|part| part.len() > 20 && !part.starts_with("eyJhbGciOiJIUzI1NiI"));
        planted.extend(parts.map(str::to_owned));
    }
    for secret in &planted {
        for text in &out {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        for line in &service.lines {
            assert!(!line.contains(secret), "{secret} in {line}");
        }
    }
    assert!(service.lines.iter().any(|line| line.contains("\"TRACE\"")), "nothing was logged at trace");
    assert!(service.lines.iter().any(|line| line.contains("authenticated")), "accepted calls were not logged");
}

/// Sends each credential in every header that can carry one, with several kinds of calls. Returns the responses.
async fn call_with_each(base: &str, credentials: &[String]) -> Vec<String> {
    let client = reqwest::Client::new();
    let mut responses = Vec::new();
    for credential in credentials {
        for (name, value) in [
            ("authorization", format!("Bearer {credential}")),
            ("authorization", format!("Basic {credential}")),
            ("authorization", credential.clone()),
            ("x-api-key", credential.clone()),
        ] {
            for (method, path) in [
                (Method::GET, "/api/sessions/business/b/active"),
                (Method::GET, "/api/sessions/1"),
                (Method::PUT, "/nowhere"),
                (Method::POST, "/api/sessions"),
                (Method::GET, "/readyz"),
            ] {
                let request = client.request(method.clone(), format!("{base}{path}")).header(name, &value);
                let request = if method == Method::POST { request.body("{\"broken\"") } else { request };
                let response = request.send().await.expect("a response");
                responses.push(format!("{:?} {}", response.headers().clone(), response.text().await.expect("text")));
            }
        }
    }
    responses
}

#[tokio::test]
async fn debug_output_contains_no_secret() {
    let folder = TempDir::new().expect("a folder");
    let (credential, entry) = api_key("canary-key", &["canary-business"], &Scope::ALL, None);
    let keys = folder.path().join("keys.toml");
    replace(&keys, entry);
    let signer = Signer::new(JwtAlgorithm::Hs256);
    let secret_file = folder.path().join("secret");
    replace(&secret_file, signer.key_file());
    let mut flags = jwt_flags(JwtAlgorithm::Hs256, &secret_file);
    let url = format!("redis://default:{PASSWORD}@localhost:6379");
    flags.extend(["--api-keys-file", keys.to_str().expect("a path"), "--redis-url", &url].map(str::to_owned));
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let service = Service::start(&flags).await;
    let credentials = &service.app.credentials;
    let token = signer.token(&claims("canary-business", USER, service.now()));
    let prints = [
        format!("{:?} {:?}", service.config, service.app),
        format!("{credentials:?} {credentials}"),
        format!("{:?}", credentials.of_api_key(&credential, service.now()).expect("a valid key")),
        format!("{:?}", credentials.of_bearer(&token, service.now()).expect("a valid token")),
        format!("{:?}", credentials.of_bearer(&format!("{token}x"), service.now()).expect_err("an invalid token")),
    ];
    let secret = String::from_utf8(signer.key_file()).expect("text");
    for text in &prints {
        assert!(!text.contains("canary") && !text.contains(&secret), "{text}");
    }
}

#[tokio::test]
async fn a_panic_during_a_credential_check_discloses_nothing() {
    let folder = TempDir::new().expect("a folder");
    let (credential, entry) = api_key("canary-key", &[], &Scope::ALL, None);
    let keys = folder.path().join("keys.toml");
    replace(&keys, entry);
    let service = Service::start(&["--api-keys-file", keys.to_str().expect("a path")]).await;
    // The credential check reads the clock that the test injects. This clock panics.
    let broken = Arc::new(|| panic!("the clock is broken"));
    let (redis, credentials) = (RedisAddress::Socket(shared()), service.app.credentials.clone());
    let app = bootstrap::app_state(&service.config, redis, credentials, broken).expect("an app");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    let (connections, grace) = (bootstrap::connection_settings(&service.config), Duration::ZERO);
    tokio::spawn(server::serve(listener, http::Api::new(app), connections, grace, std::future::pending()));
    let request = reqwest::Client::new().get(format!("{base}/api/sessions/1")).bearer_auth(&credential);
    let response = request.send().await.expect("a response");
    assert_eq!(response.status().as_u16(), 500);
    let text = response.text().await.expect("text");
    let (id, secret) = credential.split_once('.').expect("a secret");
    assert!(!text.contains(id) && !text.contains(secret) && !text.contains("clock"), "{text}");
    assert_eq!(reqwest::get(format!("{base}/livez")).await.expect("a response").status().as_u16(), 200);
}
