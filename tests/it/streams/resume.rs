//! Streams that resume after an event: nothing is lost or repeated, or the stream sends `reset` with the reason.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Conversation, begun};
use crate::support::events::{Event, EventStream, Followed, names};
use crate::support::service::Service;

/// The ids of events that have one, each with the event's name and subject.
fn ids(events: &[Event]) -> Vec<(String, String)> {
    events.iter().filter_map(|event| Some((event.name.clone(), event.id.clone()?))).collect()
}

#[tokio::test]
async fn a_stream_resumes_after_each_of_its_events() {
    let service = Service::start(&[]).await;
    let conversation = Conversation::of(&service, "u").await;
    let path = conversation.path("/events");
    let mut stream = service.events(&path).await;
    let mut events = begun(&mut stream).await;
    conversation.append("1").await;
    conversation.begin("t", json!({})).await.expect(201);
    conversation.write("t", 1, 0, &["a", "b"]).await;
    events.extend(stream.until("chunk").await);
    conversation.write("t", 1, 2, &["c"]).await;
    events.extend(stream.until("chunk").await);

    // While the turn is open, and after its end.
    for is_closed in [false, true] {
        if is_closed {
            conversation.end("t", 1).await;
            conversation.append("2").await;
        }
        for (index, event) in events.iter().enumerate() {
            let Some(id) = &event.id else { continue };
            let mut followed = Followed::default();
            events[..=index].iter().for_each(|event| followed.take(event));
            let rest = service.events_after(&path, id).await.until("ready").await;
            assert_eq!(rest[0].name, "session");
            rest.iter().filter(|event| !is_closed || event.name != "chunk").for_each(|event| followed.take(event));
            let contents: Vec<_> = followed.messages.values().cloned().collect();
            if is_closed {
                assert_eq!(contents, ["1", "abc", "2"], "behind {event:?}");
            } else {
                assert_eq!((contents, followed.chunks), (vec![json!("1")], 3), "behind {event:?}");
            }
            assert_eq!(followed.resets, [""; 0], "behind {event:?}");
        }
    }
    // The remaining chunks of a closed turn come after it, as long as they are stored.
    let (_, first_chunk) = ids(&events).into_iter().find(|(name, _)| name == "chunk").expect("a chunk");
    let rest = service.events_after(&path, &first_chunk).await.until("ready").await;
    assert_eq!(names(&rest), ["session", "message", "message", "turn", "chunk", "ready"]);
    assert_eq!(rest[4].data, json!({"turnId": "t", "number": 1, "from": 2, "chunks": ["c"]}));
}

#[tokio::test]
async fn a_stream_starts_after_a_seq_or_with_the_newest_messages() {
    let service = Service::start(&[]).await;
    let conversation = Conversation::of(&service, "u").await;
    for number in 1..=120 {
        conversation.append(&number.to_string()).await;
    }
    let due = async |query: &str| {
        let events = service.events(&conversation.path(&format!("/events{query}"))).await.until("ready").await;
        let seqs: Vec<_> =
            events.iter().filter(|event| event.name == "message").map(|event| event.member("seq").clone()).collect();
        (seqs.len(), seqs.first().cloned(), events[0].name.clone())
    };
    let session = || "session".to_owned();
    assert_eq!(due("").await, (0, None, session()));
    assert_eq!(due("?last=0").await, (0, None, session()));
    assert_eq!(due("?last=100").await, (100, Some(json!(21)), session()));
    assert_eq!(due("?after=0").await, (120, Some(json!(1)), session()));
    assert_eq!(due("?after=118").await, (2, Some(json!(119)), session()));
    assert_eq!(due("?after=120").await, (0, None, session()));
    assert_eq!(due("?after=121").await, (0, None, "reset".to_owned()));
    assert_eq!(due("?after=121&last=2").await, (2, Some(json!(119)), "reset".to_owned()));
    assert_eq!(due("?after=119&last=5").await, (1, Some(json!(120)), session()));
}

/// A `seq` that is larger than that of any message.
const NO_SUCH_SEQ: &str = "1.0.18446744073709551615.0.0.0.0.0.0";

async fn reset_reason(stream: &mut EventStream) -> Value {
    stream.expect("reset").await.member("reason").clone()
}

#[tokio::test]
async fn an_invalid_cursor_resets_the_stream() {
    let service = Service::start(&[]).await;
    let conversation = Conversation::of(&service, "u").await;
    conversation.append("1").await;
    let path = conversation.path("/events?last=5");
    for cursor in ["x", "1.2.3", "1.0.0.0.0.0.0.0.0.0", "-1", "1.zz.0.0.0.0.0.0.0", "%00", NO_SUCH_SEQ] {
        let mut stream = service.events_after(&path, cursor).await;
        assert_eq!(reset_reason(&mut stream).await, "unknown_cursor", "{cursor}");
        assert_eq!(names(&begun(&mut stream).await), ["session", "message", "ready"]);
    }
    let mut stream = service.events(&conversation.path("/events?after=7")).await;
    assert_eq!(reset_reason(&mut stream).await, "unknown_cursor");
    assert_eq!(names(&begun(&mut stream).await), ["session", "ready"]);
    // A cursor of another session is rejected.
    let other = Conversation::of(&service, "other").await;
    let events = begun(&mut service.events(&other.path("/events")).await).await;
    let cursor = events.last().and_then(|event| event.id.clone()).expect("an id");
    assert_eq!(reset_reason(&mut service.events_after(&path, &cursor).await).await, "diverged");
}

#[tokio::test]
async fn a_cursor_too_far_back_resets_the_stream() {
    let service = Service::start(&["--messages-kept", "1100", "--rate-limit", "0"]).await;
    let conversation = Conversation::of(&service, "u").await;
    let events = begun(&mut service.events(&conversation.path("/events")).await).await;
    let start = events.last().and_then(|event| event.id.clone()).expect("an id");
    let append = async |count: usize, content: &str| {
        for _ in 0..count / 100 {
            let messages: Vec<_> = (0..100).map(|_| json!({"role": "user", "content": content})).collect();
            service.post(&conversation.path("/messages"), json!(messages)).await.expect(201);
        }
    };
    append(1000, "x").await;
    let all = begun(&mut service.events_after(&conversation.path("/events"), &start).await).await;
    assert_eq!(all.iter().filter(|event| event.name == "message").count(), 1000);
    append(100, "x").await;
    let mut stream = service.events_after(&conversation.path("/events?last=2"), &start).await;
    assert_eq!(reset_reason(&mut stream).await, "too_far", "more than 1,000 messages");
    assert_eq!(names(&begun(&mut stream).await), ["session", "message", "message", "ready"]);
    append(100, "x").await;
    let mut stream = service.events(&conversation.path("/events?after=50")).await;
    assert_eq!(reset_reason(&mut stream).await, "too_far", "the next message is not kept");
    // Five MiB in 50 messages.
    let large = "x".repeat(100 * 1024);
    let mut stream = service.events(&conversation.path("/events")).await;
    let before = begun(&mut stream).await.last().and_then(|event| event.id.clone()).expect("an id");
    drop(stream);
    for _ in 0..50 {
        service.post(&conversation.path("/messages"), json!({"role": "user", "content": large})).await.expect(201);
    }
    let mut stream = service.events_after(&conversation.path("/events"), &before).await;
    assert_eq!(reset_reason(&mut stream).await, "too_far", "more than 4 MiB");
    let rest = begun(&mut service.events(&conversation.path("/events?last=30")).await).await;
    assert_eq!(rest.iter().filter(|event| event.name == "message").count(), 30, "less than 4 MiB");
}

#[tokio::test]
async fn messages_and_chunks_of_any_size_arrive_completely() {
    let service = Service::start(&[]).await;
    let conversation = Conversation::of(&service, "u").await;
    let mut live = service.events(&conversation.path("/events")).await;
    begun(&mut live).await;
    let text =
        |index: usize| char::from(b'a' + u8::try_from(index).expect("a small number")).to_string().repeat(100 * 1024);
    for index in 0..4 {
        conversation.append(&text(index)).await;
    }
    conversation.begin("t", json!({})).await.expect(201);
    for index in 0..8 {
        conversation.write("t", 1, index as u64, &[&text(index)]).await;
    }
    let late = service.events(&conversation.path("/events?last=4")).await;
    for mut stream in [live, late] {
        let (mut messages, mut chunks) = (0, 0);
        while messages < 4 || chunks < 8 {
            let event = stream.next().await.expect("an event");
            match event.name.as_str() {
                "message" => {
                    assert_eq!(event.member("content"), &json!(text(messages)));
                    messages += 1;
                }
                "chunk" => {
                    assert_eq!(event.member("from"), &json!(chunks));
                    for chunk in event.member("chunks").as_array().expect("chunks") {
                        assert_eq!(chunk, &json!(text(chunks)));
                        chunks += 1;
                    }
                }
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn changed_messages_reset_the_stream() {
    let service = Service::start(&[]).await;
    let conversation = Conversation::of(&service, "u").await;
    conversation.append("1").await;
    let events = begun(&mut service.events(&conversation.path("/events?last=1")).await).await;
    let cursor = events.last().and_then(|event| event.id.clone()).expect("an id");
    service.delete(&conversation.path("/messages/m-1")).await.expect(204);
    let mut stream = service.events_after(&conversation.path("/events?last=1"), &cursor).await;
    assert_eq!(reset_reason(&mut stream).await, "changed");
    let events = begun(&mut stream).await;
    assert_eq!(names(&events), ["session", "message", "ready"]);
    assert_eq!(events[1].member("content"), &Value::Null);
}

#[tokio::test]
async fn a_recreated_session_resets_the_stream() {
    let service = Service::start(&[]).await;
    let create = async || {
        let headers = [("content-type", "application/json"), ("idempotency-key", "the-same-key-again")];
        let body = json!({"businessId": "b", "userId": "u", "ifActive": "replace"}).to_string().into_bytes();
        service.send(reqwest::Method::POST, "/api/sessions", &headers, body).await.expect(201).string("sessionId")
    };
    let id = create().await;
    let path = format!("/api/sessions/{id}/events");
    let events = begun(&mut service.events(&path).await).await;
    let cursor = events.last().and_then(|event| event.id.clone()).expect("an id");
    service.delete(&format!("/api/sessions/{id}")).await.expect(204);
    service.advance(Duration::from_secs(1));
    assert_eq!(create().await, id);
    assert_eq!(reset_reason(&mut service.events_after(&path, &cursor).await).await, "diverged");
}

/// The session remembers a few closed turns. A reader that has text of an older one is told to drop it.
#[tokio::test]
async fn the_text_of_a_turn_that_is_forgotten_is_dropped() {
    let service = Service::start(&[]).await;
    for (user, is_closed) in [("u", false), ("v", true)] {
        let conversation = Conversation::of(&service, user).await;
        let path = conversation.path("/events");
        conversation.begin("t1", json!({})).await.expect(201);
        conversation.write("t1", 1, 0, &["discarded"]).await;
        let events = begun(&mut service.events(&path).await).await;
        let (_, seen) = ids(&events).pop().expect("an id");
        for number in 2..=12 {
            let turn_id = format!("t{number}");
            conversation.begin(&turn_id, json!({"ifOpen": "discard"})).await.expect(201);
            conversation.write(&turn_id, number, 0, &["a"]).await;
            if is_closed {
                conversation.end(&turn_id, number).await;
            }
            let rest = service.events_after(&path, &seen).await.until("ready").await;
            let turns: Vec<_> = rest.iter().filter(|event| event.name == "turn").collect();
            match turns[..] {
                [closed, newest] if number <= 8 => {
                    assert_eq!((closed.member("turnId"), closed.member("messageSeq")), (&json!("t1"), &Value::Null));
                    assert_eq!(newest.member("turnId"), &json!(turn_id));
                }
                [newest] if number > 8 => {
                    assert_eq!((newest.member("turnId"), newest.member("nextChunk")), (&json!(turn_id), &json!(0)));
                }
                _ => panic!("{rest:?}"),
            }
            assert_eq!(rest.iter().filter(|event| event.name == "chunk").count(), 1);
        }
    }
}

#[tokio::test]
async fn a_stream_that_starts_with_large_messages_has_no_reset() {
    let service = Service::start(&[]).await;
    let conversation = Conversation::of(&service, "u").await;
    for number in 0..20 {
        conversation.append(&format!("{number:032}{}", "x".repeat(250_000))).await;
    }
    let events = service.events(&conversation.path("/events?last=100")).await.until("ready").await;
    assert_eq!(events.iter().filter(|event| event.name == "message").count(), 20);
    assert_eq!(events[0].name, "session");
    let mut stream = service.events(&conversation.path("/events?after=0&last=1")).await;
    assert_eq!(reset_reason(&mut stream).await, "too_far");
}
