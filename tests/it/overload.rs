//! More concurrent requests than the limit: some wait in the queue, the others are rejected at once and change nothing.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustix::process::Signal;
use serde_json::json;

use crate::support::redis_server::{IN_MEMORY, RedisServer};
use crate::support::service::{Answer, Service};

/// Calls get-or-create for a user.
async fn create(service: &Service, user: usize) -> Answer {
    service.post("/api/sessions", json!({"businessId": "b", "userId": format!("u{user}")})).await
}

#[tokio::test]
async fn requests_over_the_limit_are_rejected_immediately() {
    let redis = RedisServer::start(IN_MEMORY);
    let flags = ["--max-concurrent-requests", "1", "--max-waiting-requests", "0"];
    let service = Service::start_on(&redis.socket(), &flags).await;
    redis.signal(Signal::STOP);
    let mut responses: FuturesUnordered<_> = (0..4).map(|user| create(&service, user)).collect();
    // One request has the permit and waits for Redis; the queue has no slot for the other three.
    for _ in 0..3 {
        let rejected = responses.next().await.expect("a response").expect(503);
        assert_eq!(rejected.json()["code"], "overloaded");
        assert_eq!(rejected.headers["retry-after"], "1");
    }
    service.get("/livez").await.expect(200);
    redis.signal(Signal::CONT);
    responses.next().await.expect("a response").expect(201);
    service.get("/readyz").await.expect(200);
    assert_eq!(redis.probe().await.texts(&["KEYS", "*}:s:*"]).await.len(), 1);
}

#[tokio::test]
async fn queued_requests_are_served_when_a_permit_is_free() {
    let redis = RedisServer::start(IN_MEMORY);
    let flags = ["--max-concurrent-requests", "1", "--max-waiting-requests", "7", "--max-queue-wait", "60s"];
    let service = Service::start_on(&redis.socket(), &flags).await;
    let responses: Vec<_> = (0..8).map(|user| create(&service, user)).collect();
    for response in futures_util::future::join_all(responses).await {
        response.expect(201);
    }
}
