//! A network between the service and its Redis that cuts connections, drops, delays and throttles traffic.

use std::time::Duration;

use serde_json::json;

use super::{expect_intact, one_message, wait_until_ready};
use crate::support::audit::expect_clean;
use crate::support::ledger::Ledger;
use crate::support::process::with_timeout;
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis_server::{IN_MEMORY, RedisServer};
use crate::support::service::{Answer, Service};

/// Repeats a call until the response is not a 503, like a client that honours `Retry-After`.
async fn retry_until_served(call: impl AsyncFn() -> Answer) -> Answer {
    with_timeout(async {
        loop {
            let response = call().await;
            if response.status != 503 {
                break response;
            }
        }
    })
    .await
}

#[tokio::test]
async fn create_with_lost_redis_reply_is_applied_once() {
    let server = RedisServer::start(IN_MEMORY);
    let proxy = Proxy::start(&server.socket());
    let service = Service::start_on(&proxy.socket(), &[]).await;
    service.session_of("somebody").await;
    for (user, if_active) in [("returns", "return"), ("replaces", "replace")] {
        proxy.once(Fault::CutAfter, &format!(":{user}"));
        let fault_count = proxy.fault_count();
        let body = json!({"businessId": "b", "userId": user, "ifActive": if_active});
        let unknown = service.post("/api/sessions", body).await;
        unknown.expect_problem(503, "store_unavailable");
        assert_eq!(proxy.fault_count(), fault_count + 1);
        let stored = server.probe().await.texts(&["KEYS", &format!("*:a:b:{user}")]).await;
        assert_eq!(stored.len(), 1, "the create was not applied");
        let response = retry_until_served(async || service.get_or_create(user).await).await.expect(200);
        let history = service.get(&format!("/api/sessions/business/b/user/{user}/history")).await.json();
        assert_eq!(history.as_array().map(Vec::len), Some(1), "{history}");
        assert_eq!(history[0]["sessionId"], response.string("sessionId"));
    }
    expect_clean(&service).await;
}

#[tokio::test]
async fn append_with_lost_redis_reply_is_stored_once() {
    let server = RedisServer::start(IN_MEMORY);
    let proxy = Proxy::start(&server.socket());
    let service = Service::start_on(&proxy.socket(), &[]).await;
    let id = service.session_of("u").await;
    let path = format!("/api/sessions/{id}/messages");
    service.post(&path, one_message("before")).await.expect(201);

    // The first append reaches Redis, so its retry finds the message. The second does not, so its retry stores it.
    for (message_id, fault, status) in [("delivered", Fault::CutAfter, 200), ("lost", Fault::CutBefore, 201)] {
        proxy.once(fault, message_id);
        let fault_count = proxy.fault_count();
        service.post(&path, one_message(message_id)).await.expect_problem(503, "store_unavailable");
        assert_eq!(proxy.fault_count(), fault_count + 1);
        retry_until_served(async || service.post(&path, one_message(message_id)).await).await.expect(status);
    }
    let messages = service.get(&path).await.expect(200).json();
    let stored: Vec<_> = messages.as_array().expect("a list").iter().map(|one| &one["messageId"]).collect();
    assert_eq!(stored, ["before", "delivered", "lost"], "{messages}");
    expect_clean(&service).await;
}

/// Runs a load before, during and after a fault, and checks the result. Returns the ledger.
async fn load_through(fault: Fault, flags: &[&str]) -> Ledger {
    let server = RedisServer::start(IN_MEMORY);
    let proxy = Proxy::start(&server.socket());
    let service = Service::start_on(&proxy.socket(), flags).await;
    let mut ledger = Ledger::new(&service.base);
    ledger.load(5).await;
    proxy.set(fault);
    ledger.load(10).await;
    assert!(proxy.fault_count() > 0, "no request met the fault, so the test shows nothing");
    proxy.set(Fault::Pass);
    wait_until_ready(&service).await;
    ledger.load(5).await;
    expect_intact(&service, &mut ledger).await;
    ledger
}

/// Shorter than the faults, so that commands time out.
const SHORT_DEADLINE: [&str; 2] = ["--request-deadline", "400ms"];

fn expect_some_unavailable(ledger: &Ledger) {
    assert!(ledger.answered("503 store_unavailable") > 0, "{:?}", ledger.answers());
}

#[tokio::test]
async fn connections_cut_before_delivery_give_503() {
    expect_some_unavailable(&load_through(Fault::CutBefore, &SHORT_DEADLINE).await);
}

#[tokio::test]
async fn connections_cut_after_delivery_give_503() {
    expect_some_unavailable(&load_through(Fault::CutAfter, &SHORT_DEADLINE).await);
}

#[tokio::test]
async fn unresponsive_redis_is_detected() {
    expect_some_unavailable(&load_through(Fault::BlackHole, &SHORT_DEADLINE).await);
}

#[tokio::test]
async fn late_redis_replies_are_discarded() {
    // Longer than the command timeout, and too short for the connection to count as unresponsive.
    expect_some_unavailable(&load_through(Fault::Delay(Duration::from_millis(350)), &SHORT_DEADLINE).await);
}

#[tokio::test]
async fn requests_over_a_throttled_network_time_out() {
    expect_some_unavailable(&load_through(Fault::Throttle(2_000), &SHORT_DEADLINE).await);
}

#[tokio::test]
async fn fragmented_redis_replies_are_parsed() {
    let ledger = load_through(Fault::ByteByByte, &[]).await;
    assert_eq!(ledger.answered("503 store_unavailable"), 0, "{:?}", ledger.answers());
}
