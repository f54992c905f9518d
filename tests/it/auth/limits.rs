//! One caller's flood is that caller's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use sessiond::auth::{JwtAlgorithm, Scope};
use tempfile::TempDir;

use crate::support::credentials::{Signer, api_key, claims, jwt_flags, replace};
use crate::support::process::patiently;
use crate::support::service::Service;

const ACTIVE: &str = "/api/sessions/business/b/user/u/active";

/// A service with these limits, credentials of two API keys, and a signer of tokens.
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
async fn a_credential_that_calls_too_often_is_told_to_wait_and_changes_nothing() {
    let (service, [first, second], signer, _folder) = start("10", "1").await;
    let body = json!({"businessId": "b", "userId": "u"});
    let session = service.bearer(&first, Method::POST, "/api/sessions", body.clone()).await.expect(201);
    assert_eq!(session.header("ratelimit-policy"), Some("\"credential\";q=50;w=5"));
    assert_eq!(session.header("ratelimit"), Some("\"credential\";r=49;t=1"));
    let before = service.look.digest().await;
    let replace = json!({"businessId": "b", "userId": "u", "ifActive": "replace"});
    let mut limited = service.get_as(&first, ACTIVE).await;
    patiently(async {
        while limited.status != 429 {
            limited = service.get_as(&first, ACTIVE).await;
        }
    })
    .await;
    limited.expect_problem(429, "rate_limited");
    assert_eq!(limited.header("retry-after"), Some("1"));
    assert_eq!(limited.header("ratelimit"), Some("\"credential\";r=0;t=5"));
    // The body is not looked at, nor is Redis.
    let refused = service.bearer(&first, Method::POST, "/api/sessions", replace).await;
    assert!(refused.status == 429 || refused.status == 201, "{refused:?}");
    if refused.status == 429 {
        assert!(service.look.digest().await == before, "a call that was refused changed Redis");
    }
    // Another key has calls of its own, and what is public needs none.
    service.get_as(&second, ACTIVE).await.expect(200);
    service.get_as(&first, "/readyz").await.expect(200);
    assert_eq!(service.get("/livez").await.expect(200).header("ratelimit"), None);

    // Users have their own, within that of their business.
    let token = |user: &str| signer.token(&claims("b", user, service.now()));
    let answer = service.get_as(&token("u"), ACTIVE).await.expect(200);
    assert_eq!(answer.header("ratelimit-policy"), Some("\"user\";q=5;w=5, \"credential\";q=50;w=5"));
    assert_eq!(answer.header("ratelimit"), Some("\"user\";r=4;t=1, \"credential\";r=49;t=1"));
    patiently(async { while service.get_as(&token("u"), ACTIVE).await.status != 429 {} }).await;
    service
        .get_as(&token("v"), "/api/sessions/business/b/user/v/active")
        .await
        .expect_problem(404, "no_active_session");
    // Who is refused for the credential itself is not counted under anybody's.
    for _ in 0..20 {
        service.get_as(&format!("{second}x"), ACTIVE).await.expect_problem(401, "unauthorized");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flooding_credential_gets_429_and_another_ones_goodput_stays() {
    const CALLS: u32 = 200;
    let (service, [flooder, other], _signer, _folder) = start("100", "100").await;
    let service = Arc::new(service);
    // As many as its limit allows, at an even pace; alone, each is answered.
    let paced = || async {
        let mut pace = tokio::time::interval(Duration::from_millis(12));
        let mut good = 0;
        for _ in 0..CALLS {
            pace.tick().await;
            let answer = service.get_as(&other, ACTIVE).await;
            good += u32::from(answer.status == 404);
        }
        good
    };
    assert_eq!(paced().await, CALLS);
    let (stop, admitted, refused) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let counts = Arc::new((stop, admitted, refused));
    let flood: Vec<_> = (0..8)
        .map(|_| {
            let (service, flooder, counts) = (service.clone(), flooder.clone(), counts.clone());
            tokio::spawn(async move {
                while !counts.0.load(Ordering::Relaxed) {
                    let answer = service.get_as(&flooder, ACTIVE).await;
                    let count = if answer.status == 429 { &counts.2 } else { &counts.1 };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let good = paced().await;
    counts.0.store(true, Ordering::Relaxed);
    for task in flood {
        task.await.expect("a flood");
    }
    let refused = counts.2.load(Ordering::Relaxed);
    assert!(refused > 100, "{refused} calls of a flood were refused");
    assert!(good >= CALLS * 95 / 100, "{good} of {CALLS} calls were answered beside a flood");
}
