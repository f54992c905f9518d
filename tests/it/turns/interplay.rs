//! Turns and the life of their session.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::{LEASE, Turns};
use crate::support::audit::expect_clean;
use crate::support::service::Service;

#[tokio::test]
async fn appends_work_while_a_turn_is_open_but_not_under_its_id() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    turns.begin("t", "w", json!({})).await.expect(201);
    turns.append("m").await.expect(201);
    turns.append("t").await.expect_problem(409, "message_id_conflict");
    let messages = json!([{"role": "user", "content": "x"}, {"messageId": "t", "role": "user", "content": "y"}]);
    service.post(&turns.path("messages"), messages).await.expect_problem(409, "message_id_conflict");
    let ended = turns.end("t", 1, json!({"content": "z"})).await.expect(200);
    assert_eq!((ended.member("afterSeq"), ended.member("messageSeq")), (json!(0), json!(2)));
}

#[tokio::test]
async fn the_end_of_a_session_closes_its_turn_in_the_same_step() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    turns.begin("t", "w", json!({})).await.expect(201);
    turns.chunks("t", 1, 0, &["half"]).await.expect(200);
    let ended = service.patch(&turns.session, json!({"status": "ended"})).await.expect(200);
    assert_eq!((ended.member("messageCount"), ended.member("version")), (json!(1), json!(2)));
    assert_eq!(turns.messages().await, [[json!("t"), json!("half"), json!("interrupted")]]);
    turns.begin("next", "w", json!({})).await.expect_problem(409, "session_not_active");
    assert_eq!(turns.begin("t", "w", json!({})).await.expect(200).member("status"), "interrupted");
    service.patch(&turns.session, json!({"status": "active"})).await.expect(200);
    assert_eq!(turns.begin("next", "w", json!({})).await.expect(201).member("number"), 2);
    expect_clean(&service).await;
}

#[tokio::test]
async fn a_rejected_end_of_a_session_closes_no_turn() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    turns.begin("t", "w", json!({})).await.expect(201);
    let ended = service
        .send(
            Method::PATCH,
            &turns.session,
            &[("if-match", "\"9\""), ("content-type", "application/json")],
            b"{\"status\":\"ended\"}".to_vec(),
        )
        .await;
    ended.expect_problem(412, "version_mismatch");
    assert_eq!(turns.get("t").await.member("status"), "open");
}

#[tokio::test]
async fn a_replaced_or_expired_session_leaves_its_turn_to_the_writer() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    turns.begin("t", "w", json!({})).await.expect(201);
    turns.chunks("t", 1, 0, &["on "]).await.expect(200);
    let body = json!({"businessId": "b", "userId": "u", "ifActive": "replace"});
    service.post("/api/sessions", body).await.expect(201);
    let before = service.get(&turns.session).await;
    service.advance(LEASE / 2);
    turns.chunks("t", 1, 1, &["and on"]).await.expect(200);
    turns.begin("t", "w", json!({})).await.expect(200);
    turns.end("t", 1, json!({})).await.expect(200);
    assert_eq!(turns.messages().await, [[json!("t"), json!("on and on"), json!("completed")]]);
    let after = service.get(&turns.session).await;
    for member in ["status", "lastActivityAt", "expiresAt", "version"] {
        assert_eq!(after.member(member), before.member(member), "such calls are no activity");
    }
    expect_clean(&service).await;
}

#[tokio::test]
async fn writing_a_turn_keeps_an_active_session_active() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    turns.begin("t", "w", json!({})).await.expect(201);
    for from in 0..10 {
        service.advance(Duration::from_secs(10 * 60));
        turns.chunks("t", 1, from, &["x"]).await.expect(200);
    }
    let session = service.get(&turns.session).await;
    assert_eq!(
        (session.string("status"), session.string("lastActivityAt")),
        ("active".to_owned(), service.now().to_string())
    );
    expect_clean(&service).await;
}

#[tokio::test]
async fn deletion_and_erasure_remove_turns() {
    let service = Service::start(&[]).await;
    for by in ["delete", "erase"] {
        let turns = Turns::of(&service, "u").await;
        turns.begin("t", "w", json!({})).await.expect(201);
        turns.chunks("t", 1, 0, &["x"]).await.expect(200);
        match by {
            "delete" => drop(service.delete(&turns.session).await.expect(204)),
            _ => drop(service.delete("/api/sessions/business/b/user/u").await.expect(200)),
        }
        for kind in ['s', 'm', 'd', 't', 'r'] {
            assert_eq!(service.probe.keys_of(kind).await, Vec::<String>::new(), "{by}");
        }
        turns.chunks("t", 1, 1, &["y"]).await.expect_problem(404, "session_not_found");
    }
}

#[tokio::test]
async fn messages_of_turns_are_trimmed_like_others() {
    let service = Service::start(&["--messages-kept", "100"]).await;
    let turns = Turns::of(&service, "u").await;
    for number in 1..=105 {
        let turn_id = format!("t{number}");
        turns.begin(&turn_id, "w", json!({})).await.expect(201);
        turns.end(&turn_id, number, json!({"content": number})).await.expect(200);
    }
    let listed = service.get(&turns.path("messages?limit=1000")).await.expect(200).json();
    let seqs: Vec<_> = listed.as_array().expect("an array").iter().map(|message| message["seq"].clone()).collect();
    assert_eq!(seqs, (6..=105).map(Value::from).collect::<Vec<_>>());
    expect_clean(&service).await;
}

#[tokio::test]
async fn a_resume_keeps_the_chunks_of_an_open_turn() {
    let flags = ["--idle-timeout", "10m", "--max-lifetime", "1h", "--retention", "1h", "--turn-lease", "10days"];
    let service = Service::start(&flags).await;
    let turns = Turns::of(&service, "u").await;
    turns.begin("t", "w", json!({})).await.expect(201);
    turns.chunks("t", 1, 0, &["first"]).await.expect(200);
    service.advance(Duration::from_secs(60 * 60));
    service.patch(&turns.session, json!({"status": "active"})).await.expect(200);
    let session_expiry = service.probe.texts(&["PEXPIRETIME", &service.probe.keys_of('s').await[0]]).await;
    for kind in ['t', 'r'] {
        let expiry = service.probe.texts(&["PEXPIRETIME", &service.probe.keys_of(kind).await[0]]).await;
        assert!(expiry >= session_expiry, "{kind}: {expiry:?}, and the session {session_expiry:?}");
    }
    turns.chunks("t", 1, 1, &[" second"]).await.expect(200);
    turns.end("t", 1, json!({})).await.expect(200);
    assert_eq!(turns.messages().await, [[json!("t"), json!("first second"), json!("completed")]]);
}

#[tokio::test]
async fn a_discarded_turn_stays_cancelled() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    turns.begin("t", "w1", json!({})).await.expect(201);
    turns.cancel("t").await.expect(202);
    let discarded = turns.begin("t", "w2", json!({"ifOpen": "discard"})).await.expect(200);
    assert_eq!(discarded.member("cancelRequested"), true);
    turns.end("t", 2, json!({"content": "x"})).await.expect(200);
    assert_eq!(turns.messages().await, [[json!("t"), json!("x"), json!("cancelled")]]);
}
