//! Who may write a turn: one writer at a time, until its lease expires or another caller closes the turn.

use std::time::Duration;

use serde_json::{Value, json};

use super::{LEASE, LOST, Turns, in_time};
use crate::support::audit::expect_clean;
use crate::support::service::Service;

#[tokio::test]
async fn a_second_turn_is_rejected_until_the_first_has_ended() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    turns.begin("a\"", "w", json!({})).await.expect(201);
    let lease_until = in_time(&service, LEASE);
    for (turn_id, writer, if_open) in
        [("b", "w", "reject"), ("b", "w", "takeover"), ("a\"", "x", "reject"), ("a\"", "x", "interrupt")]
    {
        let rejected = turns.begin(turn_id, writer, json!({"ifOpen": if_open})).await;
        rejected.expect_problem(409, "turn_open");
        assert_eq!((rejected.member("openTurnId"), rejected.string("leaseUntil")), (json!("a\""), lease_until.clone()));
    }
    turns.end("a%22", 1, json!({"status": "failed"})).await.expect(200);
    assert_eq!(turns.begin("b", "w", json!({})).await.expect(201).member("number"), 2);
}

#[tokio::test]
async fn another_turn_interrupts_or_discards_the_open_one() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    turns.begin("a", "w", json!({})).await.expect(201);
    turns.chunks("a", 1, 0, &["kept"]).await.expect(200);
    let second = turns.begin("b", "w", json!({"ifOpen": "interrupt"})).await.expect(201);
    assert_eq!((second.member("number"), second.member("afterSeq")), (json!(2), json!(1)));
    turns.chunks("b", 2, 0, &["dropped"]).await.expect(200);
    turns.begin("c", "w", json!({"ifOpen": "discard"})).await.expect(201);
    assert_eq!(turns.messages().await, [[json!("a"), json!("kept"), json!("interrupted")]]);
    let dropped = turns.get("b").await.expect(200);
    assert_eq!((dropped.member("status"), dropped.member("messageSeq")), (json!("interrupted"), Value::Null));
    assert_eq!(dropped.member("chunks"), json!([]));
    for (turn_id, number) in [("a", 1), ("b", 2)] {
        let late = turns.chunks(turn_id, number, 1, &["late"]).await;
        assert_eq!(late.expect_problem(409, "turn_closed").member("turnStatus"), "interrupted");
    }
    expect_clean(&service).await;
}

#[tokio::test]
async fn another_writer_takes_over_or_discards_the_chunks() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    turns.begin("t", "w1", json!({"metadata": {"a": 1}})).await.expect(201);
    turns.chunks("t", 1, 0, &["one"]).await.expect(200);
    let taken = turns.begin("t", "w2", json!({"ifOpen": "takeover"})).await.expect(200);
    assert_eq!((taken.member("number"), taken.member("nextChunk")), (json!(2), json!(1)));
    assert_eq!((taken.member("writer"), taken.member("metadata")), (json!("w2"), json!({"a": 1})));
    let fenced = turns.chunks("t", 1, 1, &["stale"]).await;
    assert_eq!(fenced.expect_problem(409, "turn_closed").member("turnStatus"), "taken");
    turns.end("t", 1, json!({})).await.expect_problem(409, "turn_closed");
    turns.chunks("t", 2, 1, &["two"]).await.expect(200);
    let discarded = turns.begin("t", "w3", json!({"ifOpen": "discard", "metadata": {"b": 2}})).await.expect(200);
    assert_eq!((discarded.member("number"), discarded.member("nextChunk")), (json!(3), json!(0)));
    assert_eq!((discarded.member("status"), discarded.member("metadata")), (json!("open"), json!({"b": 2})));
    assert_eq!(turns.get("t").await.member("chunks"), json!([]));
    turns.chunks("t", 3, 0, &["three"]).await.expect(200);
    turns.end("t", 3, json!({})).await.expect(200);
    assert_eq!(turns.messages().await, [[json!("t"), json!("three"), json!("completed")]]);
    expect_clean(&service).await;
}

#[tokio::test]
async fn a_lost_turn_is_closed_by_the_next_call() {
    let service = Service::start(&[]).await;
    for (index, by) in ["begin", "begin-same", "append", "end-session", "get", "messages"].into_iter().enumerate() {
        let turns = Turns::of(&service, &format!("u{index}")).await;
        turns.begin("t", "w", json!({})).await.expect(201);
        turns.chunks("t", 1, 0, &["half"]).await.expect(200);
        let lease_until = in_time(&service, LEASE);
        service.advance(LEASE);
        assert_eq!(turns.get("t").await.member("status"), "open", "a second is left for clocks that differ");
        service.advance(Duration::from_secs(1));
        match by {
            "begin" => drop(turns.begin("next", "w", json!({})).await.expect(201)),
            "begin-same" => {
                let closed = turns.begin("t", "w2", json!({"ifOpen": "takeover"})).await.expect(200);
                assert_eq!(closed.member("status"), "lost");
            }
            "append" => drop(turns.append("m").await.expect(201)),
            "end-session" => drop(service.patch(&turns.session, json!({"status": "ended"})).await.expect(200)),
            "get" => assert_eq!(turns.get("t").await.member("status"), "lost"),
            _ => assert_eq!(turns.messages().await.len(), 1),
        }
        let message = service.get(&turns.path("messages/t")).await.expect(200).json();
        assert_eq!((&message["seq"], &message["content"]), (&json!(1), &json!("half")), "{by}");
        assert_eq!((&message["finishReason"], &message["createdAt"]), (&json!("lost"), &json!(lease_until)), "{by}");
        let turn = turns.get("t").await.expect(200);
        assert_eq!((turn.member("status"), turn.string("endedAt")), (json!("lost"), lease_until), "{by}");
        let late = turns.chunks("t", 1, 1, &["late"]).await;
        assert_eq!(late.expect_problem(409, "turn_closed").member("turnStatus"), "lost", "{by}");
    }
    expect_clean(&service).await;
}

#[tokio::test]
async fn a_writer_continues_until_its_turn_is_closed() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    turns.begin("t", "w", json!({})).await.expect(201);
    service.advance(LOST * 3);
    turns.begin("t", "w", json!({})).await.expect(200);
    service.advance(LOST * 3);
    turns.chunks("t", 1, 0, &["on"]).await.expect(200);
    service.advance(LOST * 3);
    // Rejected calls do not close it.
    turns.begin("other", "w", json!({"turnId": ""})).await.expect_problem(400, "invalid_request");
    turns.get("other").await.expect_problem(404, "turn_not_found");
    service.get(&turns.path("messages/other")).await.expect_problem(404, "message_not_found");
    assert_eq!(turns.end("t", 1, json!({})).await.expect(200).member("status"), "completed");
    assert_eq!(turns.messages().await, [[json!("t"), json!("on"), json!("completed")]]);
}

#[tokio::test]
async fn a_cancel_limits_the_lease_and_decides_the_status() {
    let service = Service::start(&[]).await;
    for (index, how) in ["end", "lost", "interrupt", "session"].into_iter().enumerate() {
        let turns = Turns::of(&service, &format!("u{index}")).await;
        turns.begin("t", "w", json!({})).await.expect(201);
        turns.chunks("t", 1, 0, &["some"]).await.expect(200);
        let asked = turns.cancel("t").await.expect(202);
        let stop_by = in_time(&service, LEASE / 3);
        assert_eq!((asked.member("cancelRequested"), asked.string("leaseUntil")), (json!(true), stop_by.clone()));
        service.advance(LEASE / 10);
        assert_eq!(turns.cancel("t").await.expect(202).json(), asked.json());
        let appended = turns.chunks("t", 1, 1, &["!"]).await.expect(200);
        assert_eq!(
            (appended.member("cancelRequested"), appended.string("leaseUntil")),
            (json!(true), stop_by),
            "{how}"
        );
        match how {
            "end" => {
                turns.end("t", 1, json!({})).await.expect(200);
                turns.end("t", 1, json!({})).await.expect(200);
            }
            "lost" => service.advance(LEASE),
            "interrupt" => drop(turns.begin("next", "w", json!({"ifOpen": "interrupt"})).await.expect(201)),
            _ => drop(service.patch(&turns.session, json!({"status": "ended"})).await.expect(200)),
        }
        assert_eq!(turns.get("t").await.member("status"), "cancelled", "{how}");
        assert_eq!(turns.messages().await, [[json!("t"), json!("some!"), json!("cancelled")]], "{how}");
        assert_eq!(turns.cancel("t").await.expect_problem(409, "turn_closed").member("turnStatus"), "cancelled");
    }
}
