//! The metrics show a fault of Redis, and its end.

use reqwest::Client;
use rustix::process::Signal;
use serde_json::json;

use crate::support::process::{Process, with_timeout};
use crate::support::redis_server::{IN_MEMORY, RedisServer};
use crate::support::scrape::Scrape;

/// Starts a service on this Redis, and waits until `sessiond_store_up` is 1.
async fn serve(redis: &RedisServer) -> (Process, String) {
    let flags = ["--event-loops", "1", "--request-deadline", "400ms", "--log", "info,sessiond::http=error"];
    let (service, base) = Process::serve(&flags, &[("REDIS_URL", &redis.url())]);
    Scrape::until(&service, is_up).await;
    (service, base)
}

fn is_up(scrape: &Scrape) -> bool {
    scrape.value("sessiond_store_up") == 1
}

async fn create(base: &str, user_id: &str) -> u16 {
    let body = json!({"businessId": "b", "userId": user_id});
    let request = Client::new().post(format!("{base}/api/sessions")).json(&body);
    request.send().await.expect("a response").status().as_u16()
}

#[tokio::test]
async fn hanging_redis_is_reported_down_with_timeout_errors() {
    let redis = RedisServer::start(IN_MEMORY);
    let (service, base) = serve(&redis).await;
    with_timeout(async { while create(&base, "u").await == 503 {} }).await;
    let before = Scrape::of(&service).await;
    let [failed, errors] = [
        "sessiond_store_operations_total{op=\"get_or_create\",outcome=\"error\"}",
        "sessiond_store_errors_total{op=\"get_or_create\",kind=\"timeout\"}",
    ];
    redis.signal(Signal::STOP);
    assert_eq!(create(&base, "u").await, 503);
    let down = Scrape::until(&service, |scrape| !is_up(scrape)).await;
    assert_eq!(down.value(failed), before.value(failed) + 1, "{}", down.text);
    assert!(down.value(errors) >= 1, "{}", down.text);
    let responses = "sessiond_http_requests_total{method=\"POST\",route=\"/api/sessions\",status=\"503\"}";
    assert_eq!(down.value(responses), down.value(failed), "{}", down.text);
    redis.signal(Signal::CONT);
    with_timeout(async { while create(&base, "u").await == 503 {} }).await;
    Scrape::until(&service, is_up).await;
}

#[tokio::test]
async fn killed_redis_is_reported_down_until_reconnected() {
    let mut redis = RedisServer::start(IN_MEMORY);
    let (service, base) = serve(&redis).await;
    let reconnects = "sessiond_store_reconnects_total";
    assert_eq!(Scrape::of(&service).await.value(reconnects), 0);
    redis.kill();
    assert_eq!(create(&base, "u").await, 503);
    let down = Scrape::until(&service, |scrape| !is_up(scrape)).await;
    assert!(down.sum("sessiond_store_errors_total", &["op=\"get_or_create\""]) >= 1, "{}", down.text);
    redis.start_again();
    with_timeout(async { while create(&base, "u").await == 503 {} }).await;
    // One connection of the worker, and one of the thread that accepts connections.
    let up = Scrape::until(&service, |scrape| is_up(scrape) && scrape.value(reconnects) >= 2).await;
    assert_eq!(up.value(reconnects), 2, "{}", up.text);
}

#[tokio::test]
async fn operation_cut_off_by_the_request_deadline_is_counted_as_abandoned() {
    let redis = RedisServer::start(IN_MEMORY);
    // The service handles one request at a time. The second request waits until the first fails, and then has less time
    // left than the command timeout.
    let flags = ["--request-deadline", "2s", "--max-concurrent-requests", "1", "--max-queue-wait", "2s"];
    let (service, base) = Process::serve(&flags, &[("REDIS_URL", &redis.url())]);
    with_timeout(async { while create(&base, "u").await == 503 {} }).await;
    redis.signal(Signal::STOP);
    let list = async || {
        let response = Client::new().get(format!("{base}/api/sessions/business/b/active")).send().await;
        response.expect("a response").status().as_u16()
    };
    assert_eq!(tokio::join!(list(), list()), (503, 503));
    let [timeout, abandoned] = ["timeout", "abandoned"]
        .map(|kind| format!("sessiond_store_errors_total{{op=\"list_active\",kind=\"{kind}\"}}"));
    // The counters and the gauge change one after another, so all are awaited before any is compared.
    let failed = "sessiond_store_operations_total{op=\"list_active\",outcome=\"error\"}";
    let is_settled =
        |scrape: &Scrape| scrape.value(failed) == 2 && scrape.value("sessiond_http_requests_in_flight") == 0;
    let scrape = Scrape::until(&service, is_settled).await;
    assert_eq!((scrape.value(&timeout), scrape.value(&abandoned)), (1, 1), "{}", scrape.text);
    redis.signal(Signal::CONT);
}

#[tokio::test]
async fn scripts_unknown_to_redis_are_counted_as_retries() {
    let redis = RedisServer::start(IN_MEMORY);
    let (service, base) = serve(&redis).await;
    assert_eq!(create(&base, "u0").await, 201);
    let retries = "sessiond_store_retries_total{reason=\"noscript\"}";
    let before = Scrape::of(&service).await.value(retries);
    assert_eq!(create(&base, "u1").await, 201);
    assert_eq!(Scrape::of(&service).await.value(retries), before);
    redis.probe().await.command(&["SCRIPT", "FLUSH"]).await;
    assert_eq!(create(&base, "u2").await, 201);
    let scrape = Scrape::of(&service).await;
    assert_eq!(scrape.value(retries), before + 1, "{}", scrape.text);
    assert_eq!(scrape.nonzero("sessiond_store_errors_total").len(), 0, "{}", scrape.text);
}
