//! Messages: `seq`, replays, pages, trimming.

mod last;
mod one;

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::service::{Answer, Service};

fn text(number: u64) -> Value {
    json!({"role": "user", "content": format!("message {number}")})
}

fn seqs(response: &Answer) -> Vec<u64> {
    let messages = response.json();
    let messages = messages.as_array().expect("an array");
    messages.iter().map(|message| message["seq"].as_u64().expect("a seq")).collect()
}

/// A session with `count` messages, appended in arrays of up to 100. Returns the path of its messages.
async fn session_with(service: &Service, user: &str, count: u64) -> String {
    let path = format!("/api/sessions/{}/messages", service.session_of(user).await);
    let numbers: Vec<_> = (1..=count).collect();
    for batch in numbers.chunks(100) {
        let batch: Vec<_> = batch.iter().map(|number| text(*number)).collect();
        service.post(&path, json!(batch)).await.expect(201);
    }
    path
}

#[tokio::test]
async fn concurrent_appends_get_seq_without_gaps() {
    let service = Service::start(&[]).await;
    let path = session_with(&service, "u", 0).await;
    let append = |number| service.post(&path, json!([text(number), text(number)]));
    let responses = join_all((0..50).map(append)).await;
    let mut given = BTreeSet::new();
    for response in &responses {
        let both = seqs(response);
        assert_eq!(both[0] + 1, both[1], "the messages of one array have consecutive seqs");
        given.extend(both);
    }
    assert!(given.into_iter().eq(1..=100));
    let id = path.split('/').nth(3).expect("an id");
    assert_eq!(service.get(&format!("/api/sessions/{id}")).await.member("messageCount"), 100);
}

#[tokio::test]
async fn retry_returns_the_stored_message_and_appends_nothing() {
    let service = Service::start(&[]).await;
    let path = session_with(&service, "u", 0).await;
    let message = json!({"messageId": "m", "role": "user", "content": {"a": 1, "b": [true]}, "metadata": {"x": 1}});
    let first = service.post(&path, message.clone()).await.expect(201);
    service.advance(std::time::Duration::from_secs(5));
    assert_eq!(service.post(&path, message).await.expect(200).json(), first.json());
    // The same content with its members in another order is the same message. The response has the stored text.
    let reordered = r#"{"content": {"b": [ true ], "a": 1}, "role": "user", "messageId": "m"}"#;
    let json_type = [("content-type", "application/json")];
    let again = service.send(reqwest::Method::POST, &path, &json_type, reordered.into()).await.expect(200);
    assert_eq!(again.text, first.text);
    for other in [
        json!({"messageId": "m", "role": "assistant", "content": {"a": 1, "b": [true]}}),
        json!({"messageId": "m", "role": "user", "content": {"a": 2, "b": [true]}}),
    ] {
        let before = service.probe.digest().await;
        service.post(&path, json!([text(1), other])).await.expect_problem(409, "message_id_conflict");
        assert_eq!(service.probe.digest().await, before, "an array is appended whole or not at all");
    }
    let mixed = json!([{"messageId": "m", "role": "user", "content": {"a": 1, "b": [true]}}, text(2), text(3)]);
    let mixed = service.post(&path, mixed).await.expect(201);
    assert_eq!(seqs(&mixed), [1, 2, 3]);
    assert_eq!(mixed.json()[0], first.json());
}

/// Appends a message whose content is exactly this JSON text.
async fn append_text(service: &Service, path: &str, id: &str, content: &str) -> Answer {
    let body = format!("{{\"messageId\":\"{id}\",\"role\":\"user\",\"content\":{content}}}");
    service.send(reqwest::Method::POST, path, &[("content-type", "application/json")], body.into()).await
}

#[tokio::test]
async fn retry_may_differ_in_number_format_and_member_order() {
    let service = Service::start(&[]).await;
    let path = session_with(&service, "u", 0).await;
    let same = [
        ["1", "1.0", "10e-1", "1e0"],
        ["0", "-0", "0.0", "-0e5"],
        [
            "[9007199254740993,{\"a\":1,\"b\":-2.5}]",
            "[9007199254740993,{\"b\":-25e-1,\"a\":1.0}]",
            "[9007199254740993, {\"a\": 1e0, \"b\": -2.50}]",
            "[9007199254740993,{\"b\":-2.5,\"a\":1}]",
        ],
        ["9007199254740992", "9007199254740992.0", "9.007199254740992e15", "90071992547409920e-1"],
    ];
    for (number, texts) in same.iter().enumerate() {
        let id = format!("same-{number}");
        let first = append_text(&service, &path, &id, texts[0]).await.expect(201);
        for text in texts {
            let again = append_text(&service, &path, &id, text).await.expect(200);
            assert_eq!(again.text, first.text, "{text}: the response differs from the stored message");
        }
        // Within one array they are one message as well.
        let item = |text: &&str| format!("{{\"messageId\":\"array-{number}\",\"role\":\"user\",\"content\":{text}}}");
        let array = format!("[{}]", texts.iter().map(item).collect::<Vec<_>>().join(","));
        let headers = [("content-type", "application/json")];
        let stored = service.send(reqwest::Method::POST, &path, &headers, array.into()).await.expect(201).json();
        assert!(stored.as_array().expect("an array").iter().all(|message| *message == stored[0]), "{stored}");
    }
    let different = [
        ("1", "1.5"),
        ("1", "\"1\""),
        ("[1,2]", "[2,1]"),
        ("{\"a\":1}", "{\"a\":1,\"b\":null}"),
        ("9007199254740993", "9007199254740992.0"),
        ("{\"a\":[9007199254740993]}", "{\"a\":[9007199254740992]}"),
        ("18446744073709551615", "18446744073709551616"),
    ];
    for (number, (left, right)) in different.into_iter().enumerate() {
        let id = format!("different-{number}");
        append_text(&service, &path, &id, left).await.expect(201);
        let before = service.probe.digest().await;
        append_text(&service, &path, &id, right).await.expect_problem(409, "message_id_conflict");
        let item = |text| format!("{{\"messageId\":\"both-{number}\",\"role\":\"user\",\"content\":{text}}}");
        let array = format!("[{},{}]", item(left), item(right));
        let headers = [("content-type", "application/json")];
        let rejected = service.send(reqwest::Method::POST, &path, &headers, array.into()).await;
        rejected.expect_problem(409, "message_id_conflict");
        assert_eq!(service.probe.digest().await, before, "{left} and {right}");
    }
    // A retry is recognised without its metadata. The stored metadata stays as first sent.
    let with = |metadata: Value| json!({"messageId": "m", "role": "user", "content": 1, "metadata": metadata});
    let first = service.post(&path, with(json!({"list": [1, 2]}))).await.expect(201).json();
    assert_eq!(service.post(&path, with(json!({"list": [2, 1]}))).await.expect(200).json(), first);
}

#[tokio::test]
async fn retry_succeeds_after_the_session_ended() {
    let service = Service::start(&[]).await;
    let path = session_with(&service, "u", 0).await;
    let message = json!({"messageId": "m", "role": "user", "content": "hello"});
    let first = service.post(&path, message.clone()).await.expect(201);
    service.patch(path.trim_end_matches("/messages"), json!({"status": "ended"})).await.expect(200);
    assert_eq!(service.post(&path, message).await.expect(200).json(), first.json());
    service.post(&path, text(2)).await.expect_problem(409, "session_not_active");
}

#[tokio::test]
async fn pages_in_both_directions_contain_every_message_once() {
    let service = Service::start(&[]).await;
    let path = session_with(&service, "u", 23).await;

    let newest = service.get(&format!("{path}?limit=5")).await.expect(200);
    assert_eq!(seqs(&newest), [19, 20, 21, 22, 23]);
    assert_eq!(newest.link("next"), None);
    let mut seen = seqs(&newest);
    let mut older = newest.link("prev");
    while let Some(link) = older {
        let page = service.get(&link).await.expect(200);
        assert!(page.link("next").is_some(), "no link to newer messages");
        seen.splice(0..0, seqs(&page));
        older = page.link("prev");
    }
    assert!(seen.into_iter().eq(1..=23));

    let first = service.get(&format!("{path}?limit=10&after=0")).await.expect(200);
    assert_eq!(first.link("prev"), None);
    let mut seen = seqs(&first);
    let mut newer = first.link("next");
    while let Some(link) = newer {
        let page = service.get(&link).await.expect(200);
        assert!(page.link("prev").is_some(), "no link to older messages");
        seen.extend(seqs(&page));
        newer = page.link("next");
    }
    assert!(seen.into_iter().eq(1..=23));

    for (query, expected) in
        [("before=1", vec![]), ("after=23", vec![]), ("after=99", vec![]), ("before=3", vec![1, 2])]
    {
        assert_eq!(seqs(&service.get(&format!("{path}?{query}")).await.expect(200)), expected, "{query}");
    }
    assert_eq!(seqs(&service.get(&path).await.expect(200)).len(), 23, "the default limit is 50");
}

#[tokio::test]
async fn trimming_keeps_the_newest_messages_and_removes_the_ids_of_others() {
    let service = Service::start(&["--messages-kept", "100"]).await;
    let path = session_with(&service, "u", 0).await;
    let message = |number: u64| json!({"messageId": format!("m{number}"), "role": "user", "content": number});
    for batch in 0..3 {
        let batch: Vec<_> = (batch * 60 + 1..=batch * 60 + 60).map(message).collect();
        service.post(&path, json!(batch)).await.expect(201);
    }
    let all = service.get(&format!("{path}?limit=1000&after=0")).await.expect(200);
    assert!(seqs(&all).into_iter().eq(81..=180));
    assert_eq!((all.link("prev"), all.link("next")), (None, None));
    let [ids] = &service.probe.keys_of('d').await[..] else { panic!("one index of ids") };
    assert_eq!(service.probe.hash(ids).await.len(), 100);
    assert_eq!(service.post(&path, message(81)).await.expect(200).member("seq"), 81);
    assert_eq!(
        service.post(&path, message(80)).await.expect(201).member("seq"),
        181,
        "the id of a removed message is new again"
    );
}

#[tokio::test]
async fn content_of_any_json_type_but_null_is_returned_unchanged() {
    let service = Service::start(&[]).await;
    let path = session_with(&service, "u", 0).await;
    for content in
        ["\"\"", "0", "false", "[]", "{}", "-1.5e-7", "18446744073709551615", "{\"z\":{\"a\":null}}", "\"é💬\\u0000\""]
    {
        let body = format!("{{\"role\":\"tool\",\"content\":{content}}}");
        let json_type = [("content-type", "application/json")];
        let response = service.send(reqwest::Method::POST, &path, &json_type, body.into()).await.expect(201);
        let expected = format!("\"content\":{content},\"metadata\"");
        assert!(response.text.contains(&expected), "{content}: {}", response.text);
    }
}
