//! Rate limits: a credential that sends too many calls affects no other credential.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use sessiond::auth::{JwtAlgorithm, Scope};
use tempfile::TempDir;

use crate::support::credentials::{Signer, api_key, claims, jwt_flags, replace};
use crate::support::process::with_timeout;
use crate::support::service::Service;

const ACTIVE: &str = "/api/sessions/business/b/user/u/active";

/// Starts a service with these limits. Returns it with two API keys and a signer of tokens.
async fn start(rate_limit: &str, user_rate_limit: &str) -> (Service, [String; 2], Signer, TempDir) {
    let folder = TempDir::new().expect("a folder");
    let keys = ["first", "second"].map(|id| api_key(id, &["b"], &Scope::ALL, None));
    let (keys_file, jwt_file) = (folder.path().join("keys.toml"), folder.path().join("key"));
    replace(&keys_file, keys.each_ref().map(|(_, entry)| entry.clone()).join("\n"));
    let signer = Signer::new(JwtAlgorithm::EdDsa);
    replace(&jwt_file, signer.key_file());
    let mut flags = jwt_flags(JwtAlgorithm::EdDsa, &jwt_file);
    let limits = ["--rate-limit", rate_limit, "--user-rate-limit", user_rate_limit];
    flags.extend(limits.into_iter().chain(["--api-keys-file", keys_file.to_str().expect("a path")]).map(str::to_owned));
    let service = Service::start(&flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    (service, keys.map(|(credential, _)| credential), signer, folder)
}

#[tokio::test]
async fn rate_limited_calls_get_429_and_change_nothing() {
    let (service, [first, second], signer, _folder) = start("10", "1").await;
    let body = json!({"businessId": "b", "userId": "u"});
    let session = service.bearer(&first, Method::POST, "/api/sessions", body.clone()).await.expect(201);
    assert_eq!(session.header("ratelimit-policy"), Some("\"credential\";q=50;w=5"));
    assert_eq!(session.header("ratelimit"), Some("\"credential\";r=49;t=1"));
    let before = service.probe.digest().await;
    let replace = json!({"businessId": "b", "userId": "u", "ifActive": "replace"});
    let mut limited = service.get_as(&first, ACTIVE).await;
    with_timeout(async {
        while limited.status != 429 {
            limited = service.get_as(&first, ACTIVE).await;
        }
    })
    .await;
    limited.expect_problem(429, "rate_limited");
    assert_eq!(limited.header("retry-after"), Some("1"));
    assert_eq!(limited.header("ratelimit"), Some("\"credential\";r=0;t=5"));
    // The service reads neither the body nor Redis.
    let rejected = service.bearer(&first, Method::POST, "/api/sessions", replace).await;
    assert!(rejected.status == 429 || rejected.status == 201, "{rejected:?}");
    if rejected.status == 429 {
        assert!(service.probe.digest().await == before, "a rejected call changed Redis");
    }
    // Another key has its own limit, and public endpoints have none.
    service.get_as(&second, ACTIVE).await.expect(200);
    service.get_as(&first, "/readyz").await.expect(200);
    assert_eq!(service.get("/livez").await.expect(200).header("ratelimit"), None);

    // Users have their own limit within the limit of their business.
    let token = |user: &str| signer.token(&claims("b", user, service.now()));
    let response = service.get_as(&token("u"), ACTIVE).await.expect(200);
    assert_eq!(response.header("ratelimit-policy"), Some("\"user\";q=5;w=5, \"credential\";q=50;w=5"));
    assert_eq!(response.header("ratelimit"), Some("\"user\";r=4;t=1, \"credential\";r=49;t=1"));
    with_timeout(async { while service.get_as(&token("u"), ACTIVE).await.status != 429 {} }).await;
    service
        .get_as(&token("v"), "/api/sessions/business/b/user/v/active")
        .await
        .expect_problem(404, "no_active_session");
    // Calls with an invalid credential count against no limit.
    for _ in 0..20 {
        service.get_as(&format!("{second}x"), ACTIVE).await.expect_problem(401, "unauthorized");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flooding_credential_is_limited_and_others_are_not() {
    const CALLS: u32 = 200;
    let (service, [flooder, other], _signer, _folder) = start("100", "100").await;
    let service = Arc::new(service);
    // As many calls as the limit allows, at a constant rate. Without other load, each is accepted.
    let paced = || async {
        let mut pace = tokio::time::interval(Duration::from_millis(12));
        let mut good = 0;
        for _ in 0..CALLS {
            pace.tick().await;
            let response = service.get_as(&other, ACTIVE).await;
            good += u32::from(response.status == 404);
        }
        good
    };
    assert_eq!(paced().await, CALLS);
    let (stop, accepted, rejected) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let counts = Arc::new((stop, accepted, rejected));
    let flood: Vec<_> = (0..8)
        .map(|_| {
            let (service, flooder, counts) = (service.clone(), flooder.clone(), counts.clone());
            tokio::spawn(async move {
                while !counts.0.load(Ordering::Relaxed) {
                    let response = service.get_as(&flooder, ACTIVE).await;
                    let count = if response.status == 429 { &counts.2 } else { &counts.1 };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let good = paced().await;
    counts.0.store(true, Ordering::Relaxed);
    for task in flood {
        task.await.expect("no panic");
    }
    let rejected = counts.2.load(Ordering::Relaxed);
    assert!(rejected > 100, "{rejected} calls of the flood were rejected");
    assert!(good >= CALLS * 95 / 100, "{good} of {CALLS} calls were accepted during the flood");
}
