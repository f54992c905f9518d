//! More requests at once than can be served: some wait, the others are told so at once, and nothing of theirs is done.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustix::process::Signal;
use serde_json::json;

use crate::support::server::{IN_MEMORY, RedisServer};
use crate::support::service::{Answer, Service};

/// A get-or-create of a user.
async fn create(service: &Service, user: usize) -> Answer {
    service.post("/api/sessions", json!({"businessId": "b", "userId": format!("u{user}")})).await
}

#[tokio::test]
async fn what_cannot_be_served_in_time_is_refused_at_once() {
    let redis = RedisServer::start(IN_MEMORY);
    let flags = ["--max-concurrent-requests", "1", "--max-waiting-requests", "0"];
    let service = Service::start_on(&redis.socket(), &flags).await;
    redis.signal(Signal::STOP);
    let mut answers: FuturesUnordered<_> = (0..4).map(|user| create(&service, user)).collect();
    // One is served, and waits for Redis; three find no place to wait.
    for _ in 0..3 {
        let refused = answers.next().await.expect("an answer").expect(503);
        assert_eq!(refused.json()["code"], "overloaded");
        assert_eq!(refused.headers["retry-after"], "1");
    }
    service.get("/livez").await.expect(200);
    redis.signal(Signal::CONT);
    answers.next().await.expect("an answer").expect(201);
    service.get("/readyz").await.expect(200);
    assert_eq!(redis.look().await.texts(&["KEYS", "*}:s:*"]).await.len(), 1);
}

#[tokio::test]
async fn who_waits_is_served_when_there_is_room() {
    let redis = RedisServer::start(IN_MEMORY);
    let flags = ["--max-concurrent-requests", "1", "--max-waiting-requests", "7", "--max-wait", "60s"];
    let service = Service::start_on(&redis.socket(), &flags).await;
    let answers: Vec<_> = (0..8).map(|user| create(&service, user)).collect();
    for answer in futures_util::future::join_all(answers).await {
        answer.expect(201);
    }
}
