//! The metrics of event streams: the delivery time, and the limit that rejected a stream.

use std::time::Duration;

use reqwest::Client;
use serde_json::json;
use sessiond::auth::JwtAlgorithm;
use sessiond::bootstrap::system_now;
use tempfile::TempDir;

use super::serve;
use crate::support::acl;
use crate::support::credentials::{Signer, api_key, claims, jwt_flags};
use crate::support::events::EventStream;
use crate::support::process::Process;
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis_server::{IN_MEMORY, RedisServer};
use crate::support::scrape::Scrape;

/// Longer than the longest bucket.
const DELAY: Duration = Duration::from_millis(1500);

#[tokio::test]
async fn the_delivery_time_includes_the_read_of_the_event() {
    let redis = RedisServer::start(IN_MEMORY);
    let proxy = Proxy::start(&redis.socket());
    let flags = ["--event-loops", "1", "--request-deadline", "10s"];
    let (service, base) = Process::serve(&flags, &[("REDIS_URL", &acl::url(&proxy.socket()))]);
    let create = Client::new().post(format!("{base}/api/sessions")).json(&json!({"businessId": "b", "userId": "u"}));
    let created: serde_json::Value = create.send().await.expect("a response").json().await.expect("JSON");
    let path = format!("{base}/api/sessions/{}", created["sessionId"].as_str().expect("an id"));
    let mut of_session = EventStream::open(&format!("{path}/events"), &[]).await;
    let mut of_business = EventStream::open(&format!("{base}/api/sessions/business/b/events"), &[]).await;
    of_session.until("ready").await;
    of_business.expect("reset").await;

    // The notifications arrive immediately, and the reads after them are delayed.
    proxy.once(Fault::Delay(DELAY), "HGETALL");
    let append = Client::new().post(format!("{path}/messages")).json(&json!({"role": "user", "content": "a"}));
    assert_eq!(append.send().await.expect("a response").status().as_u16(), 201);
    of_session.expect("message").await;
    of_business.until("message").await;
    let metric = "sessiond_stream_delivery_seconds";
    let is_recorded = |scrape: &Scrape| scrape.value(&format!("{metric}_count")) == 2;
    let scrape = Scrape::until(&service, is_recorded).await;
    assert_eq!(scrape.value(&format!("{metric}_bucket{{le=\"1\"}}")), 0, "{}", scrape.text);
}

#[tokio::test]
async fn a_rejected_stream_is_counted_by_its_limit() {
    let folder = TempDir::new().expect("a folder");
    let signer = Signer::new(JwtAlgorithm::Hs256);
    let (secret, keys) = (folder.path().join("secret"), folder.path().join("keys"));
    let (key, entry) = api_key("k", &[], &sessiond::auth::Scope::ALL, None);
    std::fs::write(&secret, signer.key_file()).expect("a file");
    std::fs::write(&keys, entry).expect("a file");
    let jwt = jwt_flags(JwtAlgorithm::Hs256, &secret);
    let limits =
        ["--max-streams", "2", "--max-streams-per-user", "1", "--api-keys-file", keys.to_str().expect("a path")];
    let flags: Vec<_> = limits.into_iter().chain(jwt.iter().map(String::as_str)).collect();
    let (service, base) = serve("stream-limits", &flags);
    let create = Client::new().post(format!("{base}/api/sessions")).bearer_auth(&key);
    let created = create.json(&json!({"businessId": "b", "userId": "u"})).send().await.expect("a response");
    let created: serde_json::Value = created.json().await.expect("JSON");
    let url = format!("{base}/api/sessions/{}/events", created["sessionId"].as_str().expect("an id"));
    let user = format!("Bearer {}", signer.token(&claims("b", "u", system_now())));
    let server = format!("Bearer {key}");
    let status = async |bearer: &str| {
        EventStream::request(&url, &[("authorization", bearer)]).await.expect("a response").status().as_u16()
    };
    let _first = EventStream::open(&url, &[("authorization", &user)]).await;
    assert_eq!(status(&user).await, 503);
    let _second = EventStream::open(&url, &[("authorization", &server)]).await;
    assert_eq!(status(&server).await, 503);
    let shed = Scrape::of(&service).await.nonzero("sessiond_http_requests_shed_total");
    let expected = [("{reason=\"streams\"}", 1), ("{reason=\"user_streams\"}", 1)];
    assert_eq!(shed.into_iter().collect::<Vec<_>>(), expected.map(|(labels, count)| (labels.to_owned(), count)));
}
