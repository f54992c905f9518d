//! Turns: begun, written, ended, cancelled, taken over and lost, with a clock that only the test moves.

mod concurrency;
mod fencing;
mod interplay;

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use sessiond::session::Timestamp;

use crate::support::audit::expect_clean;
use crate::support::service::{Answer, Service};

/// The default lease of a writer, and the second after which others may close its turn.
const LEASE: Duration = Duration::from_secs(30);
const LOST: Duration = Duration::from_secs(31);

/// The service's time in `duration` from now, as responses have it.
fn in_time(service: &Service, duration: Duration) -> String {
    let ms = i64::try_from(duration.as_millis()).expect("a short duration");
    Timestamp(service.now().0 + ms).to_string()
}

/// A session and its turns.
struct Turns<'a> {
    service: &'a Service,
    session: String,
}

impl<'a> Turns<'a> {
    /// A new session of this user.
    async fn of(service: &'a Service, user: &str) -> Turns<'a> {
        let created = service.post("/api/sessions", json!({"businessId": "b", "userId": user})).await.expect(201);
        Turns { service, session: format!("/api/sessions/{}", created.string("sessionId")) }
    }

    fn path(&self, rest: &str) -> String {
        format!("{}/{rest}", self.session)
    }

    async fn begin(&self, turn_id: &str, writer: &str, more: Value) -> Answer {
        let mut body = json!({"turnId": turn_id, "writer": writer});
        let members = more.as_object().expect("an object").clone();
        body.as_object_mut().expect("an object").extend(members);
        self.service.post(&self.path("turns"), body).await
    }

    async fn chunks(&self, turn_id: &str, number: u64, from: u64, chunks: &[&str]) -> Answer {
        let body = json!({"number": number, "from": from, "chunks": chunks});
        self.service.post(&self.path(&format!("turns/{turn_id}/chunks")), body).await
    }

    async fn end(&self, turn_id: &str, number: u64, more: Value) -> Answer {
        let mut body = json!({"number": number, "status": "completed"});
        let members = more.as_object().expect("an object").clone();
        body.as_object_mut().expect("an object").extend(members);
        self.service.post(&self.path(&format!("turns/{turn_id}/end")), body).await
    }

    async fn cancel(&self, turn_id: &str) -> Answer {
        self.service.post(&self.path(&format!("turns/{turn_id}/cancel")), Value::Null).await
    }

    async fn get(&self, turn_id: &str) -> Answer {
        self.service.get(&self.path(&format!("turns/{turn_id}"))).await
    }

    async fn append(&self, message_id: &str) -> Answer {
        let message = json!({"messageId": message_id, "role": "user", "content": "Hi"});
        self.service.post(&self.path("messages"), message).await
    }

    /// `messageId`, `content` and `finishReason` of all messages.
    async fn messages(&self) -> Vec<[Value; 3]> {
        let messages = self.service.get(&self.path("messages")).await.expect(200).json();
        let messages = messages.as_array().expect("an array").clone();
        let members = |message: &Value| ["messageId", "content", "finishReason"].map(|name| message[name].clone());
        messages.iter().map(members).collect()
    }
}

#[tokio::test]
async fn a_turn_is_written_chunk_by_chunk_and_becomes_a_message() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    turns.append("m-1").await.expect(201);
    let began = turns.begin("re:m-1", "w", json!({"metadata": {"model": "a", "n": 1.0}})).await.expect(201);
    assert_eq!(began.header("location"), Some(turns.path("turns/re%3Am-1").as_str()));
    let now = service.now();
    assert_eq!(
        began.json(),
        json!({
            "turnId": "re:m-1", "sessionId": turns.session.trim_start_matches("/api/sessions/"), "number": 1,
            "writer": "w", "role": "assistant", "metadata": {"model": "a", "n": 1.0}, "status": "open", "nextChunk": 0,
            "afterSeq": 1, "cancelRequested": false, "leaseUntil": in_time(&service, LEASE),
            "startedAt": now.to_string(), "endedAt": null, "error": null, "messageSeq": null,
        })
    );
    service.advance(LEASE / 2);
    let written = turns.chunks("re:m-1", 1, 0, &["Hel", "lo \"", "é💬\n\\"]).await.expect(200);
    let lease_until = in_time(&service, LEASE);
    assert_eq!(written.json(), json!({"nextChunk": 3, "leaseUntil": lease_until, "cancelRequested": false}));
    let read = turns.get("latest").await.expect(200);
    assert_eq!(read.member("chunks"), json!(["Hel", "lo \"", "é💬\n\\"]));
    assert_eq!(turns.get("re%3Am-1?from=2").await.member("chunks"), json!(["é💬\n\\"]));
    assert_eq!(turns.get("latest?from=3").await.member("chunks"), json!([]));
    let listed = service.get(&turns.path("messages")).await.json();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "an open turn is no message");

    let ended = turns.end("re:m-1", 1, json!({"metadata": {"n": null, "tokens": 7}})).await.expect(200);
    assert_eq!((ended.member("status"), ended.member("messageSeq")), (json!("completed"), json!(2)));
    assert_eq!(ended.member("endedAt"), service.now().to_string());
    let message = service.get(&turns.path("messages/re:m-1")).await.expect(200).json();
    assert_eq!(message["content"], "Hello \"é💬\n\\");
    assert_eq!(message["metadata"], json!({"model": "a", "tokens": 7}));
    assert_eq!((&message["role"], &message["finishReason"]), (&json!("assistant"), &json!("completed")));
    assert_eq!(turns.get("re:m-1").await.member("chunks"), json!(["Hel", "lo \"", "é💬\n\\"]), "readable for a while");
    let session = service.get(&turns.session).await;
    assert_eq!((session.member("version"), session.member("messageCount")), (json!(1), json!(2)));
    expect_clean(&service).await;
}

#[tokio::test]
async fn every_call_of_a_writer_can_be_repeated() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    let began = turns.begin("t", "w", json!({})).await.expect(201).json();
    assert_eq!(turns.begin("t", "w", json!({})).await.expect(200).json(), began);
    turns.chunks("t", 1, 0, &["a", "b"]).await.expect(200);
    for (from, chunks, next) in
        [(0, ["a", "b"].as_slice(), 2), (1, &["b", "c"], 3), (0, &["a", "b", "c"], 3), (3, &[], 3)]
    {
        assert_eq!(turns.chunks("t", 1, from, chunks).await.expect(200).member("nextChunk"), next);
    }
    turns.chunks("t", 1, 1, &["x"]).await.expect_problem(409, "chunk_conflict");
    turns.chunks("t", 1, 2, &["c", "d", "e"]).await.expect(200);
    let gap = turns.chunks("t", 1, 6, &["g"]).await;
    assert_eq!(gap.expect_problem(409, "chunk_gap").member("nextChunk"), 5);
    let ended = turns.end("t", 1, json!({})).await.expect(200).json();
    assert_eq!(turns.end("t", 1, json!({"content": "is not compared"})).await.expect(200).json(), ended);
    let failed = turns.end("t", 1, json!({"status": "failed"})).await;
    assert_eq!(failed.expect_problem(409, "turn_closed").member("turnStatus"), "completed");
    let late = turns.chunks("t", 1, 5, &["f"]).await;
    assert_eq!(late.expect_problem(409, "turn_closed").member("turnStatus"), "completed");
    assert_eq!(turns.begin("t", "another", json!({})).await.expect(200).json(), ended);
    assert_eq!(turns.messages().await, [[json!("t"), json!("abcde"), json!("completed")]]);
    // The same after other turns.
    for n in 0..10 {
        turns.begin(&format!("t{n}"), "w", json!({})).await.expect(201);
        turns.end(&format!("t{n}"), n + 2, json!({"status": "failed"})).await.expect(200);
    }
    for turn_id in ["t3", "t9"] {
        let known = turns.begin(turn_id, "w", json!({})).await.expect(200);
        assert_eq!((known.member("turnId"), known.member("status")), (json!(turn_id), json!("failed")));
        turns
            .end(turn_id, known.member("number").as_u64().expect("a number"), json!({"status": "failed"}))
            .await
            .expect(200);
    }
    let by_message = turns.begin("t", "w", json!({})).await.expect(200);
    assert_eq!((by_message.member("status"), by_message.member("messageSeq")), (json!("completed"), json!(1)));
    assert_eq!(by_message.member("number"), Value::Null, "no longer known");
    expect_clean(&service).await;
}

#[tokio::test]
async fn a_turn_without_text_becomes_a_message_only_if_it_is_completed() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    for (number, status, content) in
        [(1, "failed", None), (2, "completed", None), (3, "failed", Some(json!({"x": 1.0})))]
    {
        let turn_id = format!("t{number}");
        turns.begin(&turn_id, "w", json!({})).await.expect(201);
        let mut more = json!({"status": status});
        if let Some(content) = &content {
            more["content"] = content.clone();
            more["error"] = json!({"code": "boom"});
        }
        let ended = turns.end(&turn_id, number, more).await.expect(200);
        assert_eq!(ended.member("messageSeq").is_null(), number == 1, "{ended:?}");
        assert_eq!(ended.member("error").is_null(), content.is_none());
    }
    let expected = [[json!("t2"), json!(""), json!("completed")], [json!("t3"), json!({"x": 1.0}), json!("failed")]];
    assert_eq!(turns.messages().await, expected);
}

#[tokio::test]
async fn ten_thousand_callers_begin_one_turn() {
    let service = Service::start(&[]).await;
    let sibling = service.sibling(&[]).await;
    let turns = Turns::of(&service, "u").await;
    let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
    for batch in 0..100 {
        let calls = (0..100).map(|n| {
            let (node, path) = (if n % 2 == 0 { &service } else { &sibling }, turns.path("turns"));
            let body = json!({"turnId": format!("t{batch}-{n}"), "writer": "w"});
            async move { node.post(&path, body).await.status.as_u16() }
        });
        for status in join_all(calls).await {
            *statuses.entry(status).or_default() += 1;
        }
    }
    assert_eq!(statuses.into_iter().collect::<Vec<_>>(), [(201, 1), (409, 9999)]);
}

#[tokio::test]
async fn bodies_are_checked_before_anything_is_written() {
    let service = Service::start(&["--max-turn-bytes", "40"]).await;
    let turns = Turns::of(&service, "u").await;
    for (body, field) in [
        (json!({"writer": "w"}), "turnId"),
        (json!({"turnId": "", "writer": "w"}), "turnId"),
        (json!({"turnId": "t"}), "writer"),
        (json!({"turnId": "t", "writer": "w", "role": "robot"}), "role"),
        (json!({"turnId": "t", "writer": "w", "ifOpen": "wait"}), "ifOpen"),
        (json!({"turnId": "t", "writer": "w", "metadata": []}), "metadata"),
        (json!({"turnId": "t", "writer": "w", "lease": 3}), "lease"),
    ] {
        let rejected = service.post(&turns.path("turns"), body).await;
        assert_eq!(rejected.expect_problem(400, "invalid_request").member("errors")[0]["field"], field);
    }
    turns.get("latest").await.expect_problem(404, "turn_not_found");
    turns.begin("t", "w", json!({})).await.expect(201);
    let path = turns.path("turns/t/chunks");
    for (body, field) in [
        (json!({"from": 0, "chunks": []}), "number"),
        (json!({"number": 1, "chunks": []}), "from"),
        (json!({"number": 1, "from": -1, "chunks": []}), "from"),
        (json!({"number": 1.5, "from": 0, "chunks": []}), "number"),
        (json!({"number": 1e300, "from": 0, "chunks": []}), "number"),
        (json!({"number": 1, "from": 0, "chunks": "x"}), "chunks"),
        (json!({"number": 1, "from": 0, "chunks": ["x", ""]}), "chunks[1]"),
        (json!({"number": 1, "from": 0, "chunks": [1]}), "chunks[0]"),
        (json!({"number": 1, "from": 0, "chunks": vec!["x"; 1001]}), "chunks"),
    ] {
        let rejected = service.post(&path, body).await;
        assert_eq!(rejected.expect_problem(400, "invalid_request").member("errors")[0]["field"], field);
    }
    service.post(&path, json!({"number": 1.0, "from": 0.0, "chunks": []})).await.expect(200);
    turns.end("t", 1, json!({"status": "lost"})).await.expect_problem(400, "invalid_request");
    turns.end("t", 1, json!({"content": null})).await.expect_problem(400, "invalid_request");
    turns.chunks("t", 1, 0, &["x".repeat(40).as_str()]).await.expect(200);
    turns.chunks("t", 1, 1, &["y"]).await.expect_problem(413, "payload_too_large");
    turns.end("t", 1, json!({})).await.expect(200);
    for call in ["chunks", "end"] {
        let body = json!({"number": 1, "from": 0, "chunks": [], "status": "completed"});
        let body = match call {
            "chunks" => json!({"number": 1, "from": 0, "chunks": body["chunks"]}),
            _ => json!({"number": 1, "status": body["status"]}),
        };
        let missing = service.post(&turns.path(&format!("turns/none/{call}")), body).await;
        missing.expect_problem(404, "turn_not_found");
    }
    turns.cancel("none").await.expect_problem(404, "turn_not_found");
    let other = turns.session.replace(|digit: char| digit.is_ascii_digit(), "0");
    service.get(&format!("{other}/turns/latest")).await.expect_problem(404, "session_not_found");
    service.get(&turns.path("turns/latest?from=x")).await.expect_problem(400, "invalid_request");
}

#[tokio::test]
async fn sessions_and_lists_include_the_open_turn() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    let paths = ["/api/sessions/business/b/active", "/api/sessions/business/b/user/u/history"];
    let included = async || {
        let session = service.get(&format!("{}?include=lastMessage,turn", turns.session)).await.expect(200).json();
        for path in paths {
            let listed = service.get(&format!("{path}?include=turn")).await.expect(200).json();
            assert_eq!(listed[0]["turn"], session["turn"]);
            assert!(listed[0].get("lastMessage").is_none());
        }
        assert!(session.as_object().is_some_and(|members| members.contains_key("lastMessage")));
        session["turn"].clone()
    };
    assert_eq!(included().await, Value::Null);
    let began = turns.begin("t", "w", json!({})).await.expect(201).json();
    assert_eq!(included().await, began);
    service.advance(LOST);
    assert_eq!(included().await, Value::Null, "it has no writer any longer");
    service.get(&format!("{}?include=turns", turns.session)).await.expect_problem(400, "invalid_request");
}

#[tokio::test]
async fn what_a_lost_turn_wrote_becomes_a_message_before_it_is_included() {
    let service = Service::start(&[]).await;
    for (user, path) in [
        ("u1", "/api/sessions/business/b/active?include=turn"),
        ("u2", "/api/sessions/business/b/active?include=lastMessage"),
        ("u3", "/api/sessions/business/b/user/u3/history?include=turn"),
        ("u4", "/api/sessions/business/b/user/u4/active?include=turn"),
    ] {
        let turns = Turns::of(&service, user).await;
        turns.begin("t", "w", json!({})).await.expect(201);
        turns.chunks("t", 1, 0, &["text"]).await.expect(200);
        service.advance(LOST);
        let read = service.get(path).await.expect(200).json();
        let newest = read.get(0).unwrap_or(&read);
        assert_eq!(newest["messageCount"], 1, "{path}: {read}");
        let last_message = newest.get("lastMessage").map(|message| &message["content"]);
        assert!(last_message.is_none_or(|content| content == "text"), "{read}");
        assert!(newest.get("turn").is_none_or(Value::is_null), "{read}");
    }
}

#[tokio::test]
async fn a_message_of_a_turn_is_patched_and_redacted_like_any_other() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    turns.begin("t", "w", json!({"metadata": {"a": 1}})).await.expect(201);
    turns.chunks("t", 1, 0, &["secret"]).await.expect(200);
    turns.end("t", 1, json!({})).await.expect(200);
    let path = turns.path("messages/t");
    let patched = service.patch(&path, json!({"metadata": {"b": 2}})).await.expect(200).json();
    assert_eq!((&patched["metadata"], &patched["finishReason"]), (&json!({"a": 1, "b": 2}), &json!("completed")));
    service.delete(&path).await.expect(204);
    let redacted = service.get(&path).await.expect(200).json();
    assert_eq!((&redacted["content"], &redacted["metadata"]), (&Value::Null, &json!({})));
    assert_eq!((&redacted["finishReason"], redacted["redactedAt"].is_string()), (&json!("completed"), true));
    expect_clean(&service).await;
}

#[tokio::test]
async fn a_redaction_removes_the_copies_in_the_turn() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    turns.begin("t", "w", json!({"metadata": {"a": "secret"}})).await.expect(201);
    turns.chunks("t", 1, 0, &["secret"]).await.expect(200);
    turns.end("t", 1, json!({"status": "failed", "error": "secret"})).await.expect(200);
    service.delete(&turns.path("messages/t")).await.expect(204);
    let turn = turns.get("t").await.expect(200);
    assert!(!turn.text.contains("secret"), "{turn:?}");
    assert_eq!(
        (turn.member("metadata"), turn.member("error"), turn.member("chunks")),
        (json!({}), Value::Null, json!([]))
    );
    turns.begin("next", "w", json!({})).await.expect(201);
    assert!(!turns.get("t").await.expect(200).text.contains("secret"));
}

#[tokio::test]
async fn a_turn_and_its_chunks_are_read_together() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    turns.begin("t", "w", json!({})).await.expect(201);
    let index = |number: u64| usize::try_from(number).expect("few");
    let write = async {
        for from in 0..200 {
            turns.chunks("t", 1, from, &["x"]).await.expect(200);
        }
    };
    let read = async {
        let mut seen = 0_u64;
        while seen < 200 {
            let turn = turns.get(&format!("t?from={seen}")).await.expect(200).json();
            let count = turn["chunks"].as_array().expect("an array").len() as u64;
            assert_eq!(Some(seen + count), turn["nextChunk"].as_u64(), "{turn}");
            seen += count;
        }
    };
    tokio::join!(write, read, async {
        for _ in 0..300 {
            let turn = turns.get("latest").await.expect(200).json();
            assert_eq!(turn["chunks"].as_array().map(Vec::len), turn["nextChunk"].as_u64().map(index));
        }
    });
}

#[tokio::test]
async fn a_session_stays_usable_after_redis_lost_its_turn() {
    let service = Service::start(&[]).await;
    let turns = Turns::of(&service, "u").await;
    for (round, call) in ["append", "begin", "chunks", "end", "cancel", "end-session"].into_iter().enumerate() {
        let turn_id = format!("t{round}");
        turns.begin(&turn_id, "w", json!({"ifOpen": "interrupt"})).await.expect(201);
        let number = turns.get(&turn_id).await.member("number").as_u64().expect("a number");
        turns.chunks(&turn_id, number, 0, &["x"]).await.expect(200);
        service.probe.command(&["DEL", &service.probe.keys_of('t').await[0]]).await;
        service.advance(LOST);
        match call {
            "append" => drop(turns.append("m").await.expect(201)),
            "begin" => drop(turns.begin("b", "w", json!({})).await.expect(201)),
            "chunks" => drop(turns.chunks(&turn_id, number, 1, &["y"]).await.expect(404)),
            "end" => drop(turns.end(&turn_id, number, json!({})).await.expect(404)),
            "cancel" => drop(turns.cancel(&turn_id).await.expect(404)),
            _ => drop(service.patch(&turns.session, json!({"status": "ended"})).await.expect(200)),
        }
    }
}
