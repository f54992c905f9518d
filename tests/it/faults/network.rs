//! A network between the service and its Redis that cuts, swallows, delays and crawls.

use std::time::Duration;

use serde_json::json;

use super::{expect_whole, one_message, ready};
use crate::support::audit::expect_clean;
use crate::support::ledger::Ledger;
use crate::support::process::patiently;
use crate::support::proxy::{Fault, Proxy};
use crate::support::server::{IN_MEMORY, RedisServer};
use crate::support::service::{Answer, Service};

/// Repeats a call until it succeeds, as a client would that is told to try again.
async fn until_success(call: impl AsyncFn() -> Answer) -> Answer {
    patiently(async {
        loop {
            let answer = call().await;
            if answer.status != 503 {
                break answer;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_create_whose_reply_is_lost_is_applied_once() {
    let server = RedisServer::start(IN_MEMORY);
    let proxy = Proxy::start(&server.socket());
    let service = Service::start_on(&proxy.socket(), &[]).await;
    service.session_of("somebody").await;
    for (user, if_active) in [("returns", "return"), ("replaces", "replace")] {
        proxy.once(Fault::CutAfter, &format!(":{user}"));
        let struck = proxy.struck();
        let body = json!({"businessId": "b", "userId": user, "ifActive": if_active});
        let unknown = service.post("/api/sessions", body).await;
        unknown.expect_problem(503, "store_unavailable");
        assert_eq!(proxy.struck(), struck + 1);
        let stored = server.look().await.texts(&["KEYS", &format!("*:a:b:{user}")]).await;
        assert_eq!(stored.len(), 1, "it was delivered and applied");
        let answer = until_success(async || service.get_or_create(user).await).await.expect(200);
        let history = service.get(&format!("/api/sessions/business/b/user/{user}/history")).await.json();
        assert_eq!(history.as_array().map(Vec::len), Some(1), "{history}");
        assert_eq!(history[0]["sessionId"], answer.string("sessionId"));
    }
    expect_clean(&service).await;
}

#[tokio::test]
async fn a_message_whose_reply_is_lost_is_stored_once() {
    let server = RedisServer::start(IN_MEMORY);
    let proxy = Proxy::start(&server.socket());
    let service = Service::start_on(&proxy.socket(), &[]).await;
    let id = service.session_of("u").await;
    let path = format!("/api/sessions/{id}/messages");
    service.post(&path, one_message("before")).await.expect(201);

    // Delivered, and then not: the retry finds the first one, and makes the second one.
    for (message_id, fault, status) in [("delivered", Fault::CutAfter, 200), ("lost", Fault::CutBefore, 201)] {
        proxy.once(fault, message_id);
        let struck = proxy.struck();
        service.post(&path, one_message(message_id)).await.expect_problem(503, "store_unavailable");
        assert_eq!(proxy.struck(), struck + 1);
        until_success(async || service.post(&path, one_message(message_id)).await).await.expect(status);
    }
    let messages = service.get(&path).await.expect(200).json();
    let stored: Vec<_> = messages.as_array().expect("a list").iter().map(|one| &one["messageId"]).collect();
    assert_eq!(stored, ["before", "delivered", "lost"], "{messages}");
    expect_clean(&service).await;
}

/// A load before, during and after a fault. Returns the ledger, complete.
async fn load_through(fault: Fault, flags: &[&str]) -> Ledger {
    let server = RedisServer::start(IN_MEMORY);
    let proxy = Proxy::start(&server.socket());
    let service = Service::start_on(&proxy.socket(), flags).await;
    let mut ledger = Ledger::new(&service.base);
    ledger.load(5).await;
    proxy.set(fault);
    ledger.load(10).await;
    assert!(proxy.struck() > 0, "no request met the fault: this shows nothing");
    proxy.set(Fault::Pass);
    ready(&service).await;
    ledger.load(5).await;
    expect_whole(&service, &mut ledger).await;
    ledger
}

/// Short, so that commands time out soon; a fault lasts longer.
const SHORT: [&str; 2] = ["--request-deadline", "400ms"];

fn expect_some_refused(ledger: &Ledger) {
    assert!(ledger.answered("503 store_unavailable") > 0, "{:?}", ledger.answers());
}

#[tokio::test]
async fn requests_that_are_cut_off_before_they_arrive_are_refused() {
    expect_some_refused(&load_through(Fault::CutBefore, &SHORT).await);
}

#[tokio::test]
async fn requests_that_are_cut_off_after_they_arrive_are_refused() {
    expect_some_refused(&load_through(Fault::CutAfter, &SHORT).await);
}

#[tokio::test]
async fn a_black_hole_is_noticed() {
    expect_some_refused(&load_through(Fault::BlackHole, &SHORT).await);
}

#[tokio::test]
async fn replies_that_come_too_late_are_nobodys() {
    // Longer than a command may take, and not so long that the connection is given up.
    expect_some_refused(&load_through(Fault::Delay(Duration::from_millis(350)), &SHORT).await);
}

#[tokio::test]
async fn a_slow_line_is_bounded() {
    expect_some_refused(&load_through(Fault::Throttle(2_000), &SHORT).await);
}

#[tokio::test]
async fn one_byte_at_a_time_is_no_fault() {
    let ledger = load_through(Fault::ByteByByte, &[]).await;
    assert_eq!(ledger.answered("503 store_unavailable"), 0, "{:?}", ledger.answers());
}
