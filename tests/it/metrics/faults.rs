//! A fault of Redis shows in the metrics, and its end does, too.

use reqwest::Client;
use rustix::process::Signal;
use serde_json::json;

use crate::support::process::{Process, patiently};
use crate::support::scrape::Scrape;
use crate::support::server::{IN_MEMORY, RedisServer};

/// A service on a Redis of its own, which is up.
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
    request.send().await.expect("an answer").status().as_u16()
}

#[tokio::test]
async fn a_redis_that_hangs_is_down_and_its_errors_are_timeouts() {
    let redis = RedisServer::start(IN_MEMORY);
    let (service, base) = serve(&redis).await;
    patiently(async { while create(&base, "u").await == 503 {} }).await;
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
    let shown = "sessiond_http_requests_total{method=\"POST\",route=\"/api/sessions\",status=\"503\"}";
    assert_eq!(down.value(shown), down.value(failed), "{}", down.text);
    redis.signal(Signal::CONT);
    patiently(async { while create(&base, "u").await == 503 {} }).await;
    Scrape::until(&service, is_up).await;
}

#[tokio::test]
async fn a_redis_that_ends_is_down_until_it_is_reconnected_to() {
    let mut redis = RedisServer::start(IN_MEMORY);
    let (service, base) = serve(&redis).await;
    let reconnects = "sessiond_store_reconnects_total";
    assert_eq!(Scrape::of(&service).await.value(reconnects), 0);
    redis.kill();
    assert_eq!(create(&base, "u").await, 503);
    let down = Scrape::until(&service, |scrape| !is_up(scrape)).await;
    assert!(down.sum("sessiond_store_errors_total", &["op=\"get_or_create\""]) >= 1, "{}", down.text);
    redis.start_again();
    patiently(async { while create(&base, "u").await == 503 {} }).await;
    // That of the event loop, and that of the thread that accepts.
    let up = Scrape::until(&service, |scrape| is_up(scrape) && scrape.value(reconnects) >= 2).await;
    assert_eq!(up.value(reconnects), 2, "{}", up.text);
}

#[tokio::test]
async fn an_operation_that_nobody_waits_for_is_counted_as_abandoned() {
    let redis = RedisServer::start(IN_MEMORY);
    // One request at a time. The second waits until the first has failed, and has less time left than a command may
    // take.
    let flags = ["--request-deadline", "2s", "--max-concurrent-requests", "1", "--max-wait", "2s"];
    let (service, base) = Process::serve(&flags, &[("REDIS_URL", &redis.url())]);
    patiently(async { while create(&base, "u").await == 503 {} }).await;
    redis.signal(Signal::STOP);
    let list = async || {
        let answer = Client::new().get(format!("{base}/api/sessions/business/b/active")).send().await;
        answer.expect("an answer").status().as_u16()
    };
    assert_eq!(tokio::join!(list(), list()), (503, 503));
    let [timeout, abandoned] = ["timeout", "abandoned"]
        .map(|kind| format!("sessiond_store_errors_total{{op=\"list_active\",kind=\"{kind}\"}}"));
    let scrape = Scrape::of(&service).await;
    assert_eq!((scrape.value(&timeout), scrape.value(&abandoned)), (1, 1), "{}", scrape.text);
    assert_eq!(scrape.value("sessiond_store_operations_total{op=\"list_active\",outcome=\"error\"}"), 2);
    assert_eq!(scrape.value("sessiond_http_requests_in_flight"), 0);
    redis.signal(Signal::CONT);
}

#[tokio::test]
async fn scripts_that_redis_forgot_are_counted_as_sent_again() {
    let redis = RedisServer::start(IN_MEMORY);
    let (service, base) = serve(&redis).await;
    assert_eq!(create(&base, "u0").await, 201);
    let retries = "sessiond_store_retries_total{reason=\"noscript\"}";
    let before = Scrape::of(&service).await.value(retries);
    assert_eq!(create(&base, "u1").await, 201);
    assert_eq!(Scrape::of(&service).await.value(retries), before);
    redis.look().await.command(&["SCRIPT", "FLUSH"]).await;
    assert_eq!(create(&base, "u2").await, 201);
    let scrape = Scrape::of(&service).await;
    assert_eq!(scrape.value(retries), before + 1, "{}", scrape.text);
    assert_eq!(scrape.counted("sessiond_store_errors_total").len(), 0, "{}", scrape.text);
}
