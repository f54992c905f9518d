//! One message: read, changed and redacted by its id.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{append_text, seqs, session_with};
use crate::support::audit::expect_clean;
use crate::support::raw::encode;
use crate::support::service::{Answer, Service};

const HOUR: Duration = Duration::from_secs(60 * 60);

/// A session with the messages `a`, `b` and `c`. Returns the paths of the session and of message `b`.
async fn fixture(service: &Service) -> (String, String) {
    let path = session_with(service, "u", 0).await;
    let message = |id: &str| json!({"messageId": id, "role": "user", "content": {"n": 1}, "metadata": {"a": 1}});
    service.post(&path, json!([message("a"), message("b"), message("c")])).await.expect(201);
    (path.trim_end_matches("/messages").to_owned(), format!("{path}/b"))
}

fn patch(metadata: &Value) -> Value {
    json!({"metadata": metadata})
}

/// The members of a session that activity changes.
fn activity(session: &Answer) -> [Value; 3] {
    ["lastActivityAt", "expiresAt", "messageCount"].map(|name| session.member(name))
}

#[tokio::test]
async fn one_message_is_read_by_its_id() {
    let service = Service::start(&[]).await;
    let path = session_with(&service, "u", 0).await;
    let ids = ["m", "a/b", "{}:%", "\"\\", "é💬", "messages", "...", "%2e"];
    for (index, id) in ids.iter().enumerate() {
        service.post(&path, json!({"messageId": id, "role": "tool", "content": index})).await.expect(201);
    }
    let listed = service.get(&path).await.json();
    for (index, id) in ids.iter().enumerate() {
        let read = service.get(&format!("{path}/{}", encode(id))).await.expect(200);
        assert_eq!(read.json(), listed[index]);
        assert_eq!((read.header("etag"), read.header("content-type")), (None, Some("application/json")));
    }
    service.get(&format!("{path}/M")).await.expect_problem(404, "message_not_found");
    service
        .get(&path.replace("messages", "messages/m").replace('-', ""))
        .await
        .expect_problem(404, "session_not_found");
}

#[tokio::test]
async fn a_large_message_is_read_completely() {
    let service = Service::start(&[]).await;
    let path = session_with(&service, "u", 2).await;
    let content = "x".repeat(200 << 10);
    service.post(&path, json!({"messageId": "m", "role": "user", "content": content})).await.expect(201);
    let read = service.get(&format!("{path}/m")).await.expect(200);
    assert_eq!(read.member("content"), content);
    assert_eq!(read.header("content-length"), Some(read.text.len().to_string().as_str()));
    let patched = service.patch(&format!("{path}/m"), patch(&json!({"a": 1}))).await.expect(200);
    assert_eq!((patched.member("content"), patched.member("metadata")), (json!(content), json!({"a": 1})));
}

#[tokio::test]
async fn a_patch_merges_metadata_and_nothing_else() {
    let service = Service::start(&[]).await;
    let (session, message) = fixture(&service).await;
    let before = service.get(&message).await.json();
    let at_first = service.get(&session).await;
    service.advance(HOUR / 6);
    let changed = service.patch(&message, patch(&json!({"b": {"c": [null]}, "a": null}))).await.expect(200);
    let mut expected = before.clone();
    expected["metadata"] = json!({"b": {"c": [null]}});
    assert_eq!((changed.json(), changed.header("etag")), (expected.clone(), None));
    assert_eq!(service.get(&message).await.text, changed.text);
    let now = service.get(&session).await;
    assert_eq!((now.member("version"), activity(&now)), (json!(2), activity(&at_first)));
    assert_eq!(now.member("updatedAt"), service.now().to_string());

    // A patch that changes nothing writes nothing.
    let digest = service.probe.digest().await;
    for same in [json!({}), json!({"b": {}}), json!({"z": null})] {
        assert_eq!(service.patch(&message, patch(&same)).await.expect(200).text, changed.text);
    }
    for (body, status) in [
        (json!({}), 400),
        (json!({"metadata": 1}), 400),
        (json!({"metadata": {}, "content": 1}), 400),
        (patch(&json!({"a": "x".repeat(16 << 10)})), 400),
    ] {
        service.patch(&message, body).await.expect_problem(status, "invalid_request");
    }
    service.patch(&message.replace("/b", "/z"), patch(&json!({"a": 1}))).await.expect_problem(404, "message_not_found");
    assert_eq!(service.probe.digest().await, digest);

    // The same in a session that is not active.
    service.patch(&session, json!({"status": "ended"})).await.expect(200);
    let cleared = service.patch(&message, patch(&Value::Null)).await.expect(200);
    expected["metadata"] = json!({});
    assert_eq!(cleared.json(), expected);
    service.advance(HOUR);
    service.patch(&message, patch(&json!({"late": true}))).await.expect(200);
    let listed = service.get(&format!("{session}/messages")).await;
    assert_eq!((seqs(&listed), &listed.json()[1]["metadata"]), (vec![1, 2, 3], &json!({"late": true})));
    expect_clean(&service).await;
}

#[tokio::test]
async fn a_change_of_an_expired_session_that_is_stored_as_active_is_no_activity() {
    let service = Service::start(&[]).await;
    let (session, message) = fixture(&service).await;
    service.advance(HOUR);
    let expired = service.get(&session).await;
    assert_eq!(expired.member("status"), "expired");
    service.patch(&message, patch(&json!({"b": 1}))).await.expect(200);
    service.delete(&message).await.expect(204);
    let now = service.get(&session).await;
    assert_eq!((now.member("version"), activity(&now)), (json!(3), activity(&expired)));
    assert_eq!((now.member("status"), now.member("endedAt")), (json!("expired"), expired.member("endedAt")));
    expect_clean(&service).await;
}

/// Stores this `seq` for message `b` of the only session.
async fn set_seq_of_b(service: &Service, seq: &str) {
    let [ids] = &service.probe.keys_of('d').await[..] else { panic!("one hash of ids") };
    service.probe.command(&["HSET", ids, "b", seq]).await;
}

#[tokio::test]
async fn another_message_at_the_same_seq_is_neither_returned_nor_changed() {
    let service = Service::start(&[]).await;
    let (session, message) = fixture(&service).await;
    set_seq_of_b(&service, "1").await;
    let digest = service.probe.digest().await;
    service.get(&message).await.expect_problem(500, "internal");
    service.patch(&message, patch(&json!({"b": 1}))).await.expect_problem(500, "internal");
    let append = json!([{"role": "user", "content": 2}, {"messageId": "b", "role": "user", "content": {"n": 1}}]);
    service.post(&format!("{session}/messages"), append).await.expect_problem(500, "internal");
    assert_eq!(service.probe.digest().await, digest);
    set_seq_of_b(&service, "2").await;
    assert_eq!(service.get(&message).await.expect(200).member("messageId"), "b");
}

#[tokio::test]
async fn a_message_that_the_list_lacks_is_reported_as_an_error() {
    let service = Service::start(&[]).await;
    let (_, message) = fixture(&service).await;
    for seq in ["4", "99"] {
        set_seq_of_b(&service, seq).await;
        service.get(&message).await.expect_problem(500, "internal");
        service.patch(&message, patch(&json!({"b": 1}))).await.expect_problem(500, "internal");
    }
}

/// An append keeps the client's spelling of numbers. A patch serialises them again, which may take more bytes.
#[tokio::test]
async fn a_patch_may_shrink_metadata_that_exceeds_the_limit_when_serialised_again() {
    let service = Service::start(&[]).await;
    let path = session_with(&service, "u", 0).await;
    let numbers = vec!["1e9"; 4000].join(",");
    let content = format!(r#"1,"metadata":{{"a":1,"b":[1],"n":[{numbers}]}}"#);
    append_text(&service, &path, "m", &content).await.expect(201);
    let message = format!("{path}/m");
    service.patch(&message, patch(&json!({"c": 1}))).await.expect_problem(400, "invalid_request");
    let smaller = service.patch(&message, patch(&json!({"a": null}))).await.expect(200);
    assert_eq!(smaller.member("metadata")["b"], json!([1]));
    service.patch(&message, patch(&json!({"b": [2]}))).await.expect(200);
    service.patch(&message, patch(&json!({"n": null}))).await.expect(200);
    service.patch(&message, patch(&json!({"c": 1}))).await.expect(200);
    expect_clean(&service).await;
}

#[tokio::test]
async fn concurrent_patches_are_all_kept() {
    let service = Service::start(&[]).await;
    let (session, message) = fixture(&service).await;
    let patches = (0..24).map(|number| service.patch(&message, patch(&json!({format!("k{number}"): number}))));
    let appends = (0..8).map(|number| service.post(message.trim_end_matches("/b"), super::text(number)));
    let (changed, appended) = futures_util::join!(join_all(patches), join_all(appends));
    assert!(changed.iter().all(|response| response.status == 200), "{changed:#?}");
    assert!(appended.iter().all(|response| response.status == 201), "{appended:#?}");
    let metadata = service.get(&message).await.member("metadata");
    assert_eq!(metadata.as_object().map(serde_json::Map::len), Some(25), "{metadata}");
    assert_eq!(service.get(&session).await.member("version"), 25);
    expect_clean(&service).await;
}

#[tokio::test]
async fn a_message_is_found_while_it_and_others_are_appended() {
    let service = Service::start(&[]).await;
    let path = session_with(&service, "u", 3).await;
    for number in 0..400 {
        let message = format!("{path}/m{number}");
        let body = json!({"messageId": format!("m{number}"), "role": "user", "content": number});
        let reads = join_all((0..6).map(|_| service.get(&message)));
        let (appended, read) = futures_util::join!(service.post(&path, body), reads);
        let appended = appended.expect(201);
        for response in read {
            // The read happened before or after the append.
            if response.status != 404 {
                assert_eq!(response.expect(200).text, appended.text);
            }
        }
    }
}

#[tokio::test]
async fn a_redacted_message_keeps_its_place_and_nothing_else() {
    let service = Service::start(&[]).await;
    let (session, message) = fixture(&service).await;
    let before = service.get(&message).await.json();
    let at_first = service.get(&session).await;
    service.advance(HOUR / 6);
    assert_eq!(service.delete(&message).await.expect(204).text, "");
    let mut expected = before.clone();
    expected["content"] = Value::Null;
    expected["metadata"] = json!({});
    expected["redactedAt"] = service.now().to_string().into();
    let redacted = service.get(&message).await.expect(200);
    assert_eq!(redacted.json(), expected);
    let last = format!("\"content\":null,\"metadata\":{{}},\"redactedAt\":\"{}\"}}", service.now());
    assert!(redacted.text.ends_with(&last), "{}", redacted.text);
    let listed = service.get(&format!("{session}/messages")).await;
    assert_eq!((seqs(&listed), &listed.json()[1]), (vec![1, 2, 3], &expected));
    let now = service.get(&session).await;
    assert_eq!((now.member("version"), activity(&now)), (json!(2), activity(&at_first)));
    // A redaction also runs under clock skew, so it writes no time to the session.
    assert_eq!(now.member("updatedAt"), at_first.member("updatedAt"));

    // A repeated redaction and a patch change nothing.
    let digest = service.probe.digest().await;
    service.advance(HOUR / 6);
    service.delete(&message).await.expect(204);
    assert_eq!(service.patch(&message, patch(&json!({"a": 1}))).await.expect(200).text, redacted.text);
    service.delete(&message.replace("/b", "/z")).await.expect_problem(404, "message_not_found");
    assert_eq!(service.probe.digest().await, digest);
    expect_clean(&service).await;
}

#[tokio::test]
async fn the_text_of_a_redacted_message_is_removed_from_redis() {
    let service = Service::start(&[]).await;
    let path = session_with(&service, "u", 0).await;
    let tricky = r#"{"\",\"role\":\"tool\",\"content\":null,":"secret","role":"user","content":"secret"}"#;
    append_text(&service, &path, r#"\",\"role\":\"x\",\"content\":null,"#, tricky).await.expect(201);
    let id = service.get(&path).await.json()[0]["messageId"].as_str().expect("an id").to_owned();
    let encoded = encode(&id);
    service.patch(&format!("{path}/{encoded}"), patch(&json!({"k": "secret"}))).await.expect(200);
    service.delete(&format!("{path}/{encoded}")).await.expect(204);
    for (key, (content, _)) in service.probe.digest().await {
        assert!(!String::from_utf8_lossy(&content).contains("secret"), "{key}");
    }
    let [list] = &service.probe.keys_of('m').await[..] else { panic!("one list") };
    let stored = service.probe.texts(&["LRANGE", list, "0", "-1"]).await.concat();
    assert!(stored.contains("redactedAt") && !stored.contains("secret"), "{stored}");
    expect_clean(&service).await;
}

#[tokio::test]
async fn a_replay_does_not_restore_a_redacted_message() {
    let service = Service::start(&[]).await;
    let (session, message) = fixture(&service).await;
    let messages = format!("{session}/messages");
    service.delete(&message).await.expect(204);
    let redacted = service.get(&message).await.text;
    let replay = |role: &str, content: Value| json!({"messageId": "b", "role": role, "content": content});
    // The content can no longer be compared.
    for content in [json!({"n": 1}), json!("other"), json!("null"), json!({"content": null})] {
        let again = service.post(&messages, replay("user", content)).await.expect(200);
        assert_eq!(again.text, redacted);
    }
    let digest = service.probe.digest().await;
    service.post(&messages, replay("tool", json!({"n": 1}))).await.expect_problem(409, "message_id_conflict");
    service.post(&messages, replay("user", Value::Null)).await.expect_problem(400, "invalid_request");
    assert_eq!(service.probe.digest().await, digest);
    let mixed = service.post(&messages, json!([replay("user", json!(1)), super::text(4)])).await.expect(201);
    assert_eq!((seqs(&mixed), &mixed.json()[0]["content"]), (vec![2, 4], &Value::Null));
    service.patch(&session, json!({"status": "ended"})).await.expect(200);
    assert_eq!(service.post(&messages, replay("user", json!(2))).await.expect(200).text, redacted);
    expect_clean(&service).await;
}

#[tokio::test]
async fn trimmed_messages_are_missing_and_redacted_ones_are_trimmed() {
    let service = Service::start(&["--messages-kept", "100"]).await;
    let path = session_with(&service, "u", 0).await;
    service.post(&path, json!({"messageId": "m", "role": "user", "content": 1})).await.expect(201);
    service.delete(&format!("{path}/m")).await.expect(204);
    let batch: Vec<_> = (1..=100).map(super::text).collect();
    service.post(&path, json!(batch)).await.expect(201);
    service.get(&format!("{path}/m")).await.expect_problem(404, "message_not_found");
    service.delete(&format!("{path}/m")).await.expect_problem(404, "message_not_found");
    service.patch(&format!("{path}/m"), patch(&json!({}))).await.expect_problem(404, "message_not_found");
    expect_clean(&service).await;
    let again = service.post(&path, json!({"messageId": "m", "role": "user", "content": 1})).await.expect(201);
    assert_eq!((again.member("seq"), again.member("content")), (json!(102), json!(1)));
}
