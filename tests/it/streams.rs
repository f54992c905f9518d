//! Event streams: what they start with, what they send, and when they send `reset`. The services of these tests read
//! changes only after a notification.

mod business;
mod faults;
mod limits;
mod resume;

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::events::{Event, EventStream, Followed, names};
use crate::support::service::{Answer, Service};

/// Longer than the idle timeout.
const EXPIRED: Duration = Duration::from_secs(31 * 60);
/// Longer than the lease of a writer plus one second.
const LOST: Duration = Duration::from_secs(32);

/// A session and calls about it.
struct Conversation<'a> {
    service: &'a Service,
    id: String,
}

impl<'a> Conversation<'a> {
    async fn of(service: &'a Service, user: &str) -> Conversation<'a> {
        Conversation { service, id: service.session_of(user).await }
    }

    fn path(&self, rest: &str) -> String {
        format!("/api/sessions/{}{rest}", self.id)
    }

    async fn append(&self, content: &str) -> Answer {
        let message = json!({"role": "user", "content": content, "messageId": format!("m-{content:.32}")});
        self.service.post(&self.path("/messages"), message).await.expect(201)
    }

    async fn begin(&self, turn_id: &str, more: Value) -> Answer {
        let mut body = json!({"turnId": turn_id, "writer": "w"});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        self.service.post(&self.path("/turns"), body).await
    }

    async fn write(&self, turn_id: &str, number: u64, from: u64, chunks: &[&str]) -> Answer {
        let body = json!({"number": number, "from": from, "chunks": chunks});
        self.service.post(&self.path(&format!("/turns/{turn_id}/chunks")), body).await.expect(200)
    }

    async fn end(&self, turn_id: &str, number: u64) -> Answer {
        let body = json!({"number": number, "status": "completed"});
        self.service.post(&self.path(&format!("/turns/{turn_id}/end")), body).await.expect(200)
    }

    async fn messages(&self) -> Vec<Value> {
        let listed = self.service.get(&self.path("/messages?limit=500")).await.expect(200);
        listed.json().as_array().expect("messages").clone()
    }
}

#[tokio::test]
async fn a_stream_starts_with_the_state_and_continues_live() {
    let service = Service::start(&[]).await;
    let conversation = Conversation::of(&service, "u").await;
    for content in ["1", "2", "3"] {
        conversation.append(content).await;
    }
    conversation.begin("t", json!({})).await.expect(201);
    conversation.write("t", 1, 0, &["a", "b\n\"", "c"]).await;

    let mut stream = service.events(&conversation.path("/events?last=2")).await;
    let events = stream.until("ready").await;
    assert_eq!(names(&events), ["session", "message", "message", "turn", "chunk", "ready"]);
    assert_eq!(events[0].data, service.get(&conversation.path("")).await.json());
    let listed = conversation.messages().await;
    assert_eq!((&events[1].data, &events[2].data), (&listed[1], &listed[2]));
    assert_eq!(events[3].data, service.get(&conversation.path("/turns/latest?from=3")).await.without("chunks"));
    let chunks = json!({"turnId": "t", "number": 1, "from": 0, "chunks": ["a", "b\n\"", "c"]});
    assert_eq!((&events[4].data, &events[5].data), (&chunks, &json!({})));
    let ids: Vec<_> = events.iter().map(|event| event.id.is_some()).collect();
    assert_eq!(ids, [false, true, true, true, true, true]);
    assert!(stream.others[0].starts_with("retry: "), "{:?}", stream.others);

    conversation.write("t", 1, 3, &["d"]).await;
    assert_eq!(stream.expect("chunk").await.data, json!({"turnId": "t", "number": 1, "from": 3, "chunks": ["d"]}));
    let fourth = conversation.append("4").await.json();
    assert_eq!(stream.expect("message").await.data, fourth);
    let cancelled = service.post(&conversation.path("/turns/t/cancel"), json!({})).await.expect(202);
    assert_eq!(stream.expect("turn").await.data, cancelled.json());
    let ended = conversation.end("t", 1).await;
    let message = stream.expect("message").await;
    assert_eq!(message.member("content"), "ab\n\"cd");
    assert_eq!(message.member("finishReason"), "cancelled");
    assert_eq!(stream.expect("turn").await.data, ended.json());
    let changed = service.patch(&conversation.path(""), json!({"title": "x"})).await.expect(200);
    assert_eq!(stream.expect("session").await.data, changed.json());
    let message = service.patch(&conversation.path("/messages/m-2"), json!({"metadata": {"a": 1}})).await.expect(200);
    assert_eq!(stream.expect("session").await.member("version"), 3);
    assert_eq!(stream.expect("changed").await.data, message.json());
    service.delete(&conversation.path("/messages/m-1")).await.expect(204);
    stream.expect("session").await;
    assert_eq!(stream.expect("changed").await.member("content"), &Value::Null);
    service.patch(&conversation.path(""), json!({"status": "ended"})).await.expect(200);
    assert_eq!(stream.expect("session").await.member("status"), "ended");
    service.delete(&conversation.path("")).await.expect(204);
    assert_eq!(stream.expect("deleted").await.data, json!({"sessionId": conversation.id}));
    assert!(stream.next().await.is_none(), "the stream ends after the session");
}

#[tokio::test]
async fn activity_sends_no_event_and_reading_a_stream_is_no_activity() {
    let service = Service::start(&[]).await;
    let conversation = Conversation::of(&service, "u").await;
    let mut stream = service.events(&conversation.path("/events")).await;
    stream.until("ready").await;
    service.advance(Duration::from_secs(120));
    let before = service.get(&conversation.path("")).await.json();
    service.patch(&conversation.path(""), json!({})).await.expect(200);
    let after = service.get(&conversation.path("")).await.json();
    assert_ne!(before["lastActivityAt"], after["lastActivityAt"]);
    // The next event is that of the message.
    conversation.append("1").await;
    stream.expect("message").await;
    let other = service.events(&conversation.path("/events?last=1")).await.until("ready").await;
    assert_eq!(other[0].member("lastActivityAt"), &service.get(&conversation.path("")).await.json()["lastActivityAt"]);
}

#[tokio::test]
async fn an_expiry_is_sent_without_a_write() {
    let service = Service::start(&[]).await;
    let conversation = Conversation::of(&service, "u").await;
    let polling = service.polling_sibling().await;
    let mut stream = polling.events(&conversation.path("/events")).await;
    let mut business = polling.events("/api/sessions/business/b/events").await;
    business.expect("reset").await;
    stream.until("ready").await;
    stream.comment().await;
    service.advance(EXPIRED);
    let expired = stream.expect("session").await;
    assert_eq!((expired.member("status"), expired.member("endReason")), (&json!("expired"), &json!("idle")));
    assert_eq!(business.expect("session").await.data, expired.data);
    // Redis still has the stored status: the session is only returned as expired.
    assert_eq!(service.get(&conversation.path("")).await.string("status"), "expired");
}

#[tokio::test]
async fn a_stream_closes_a_turn_whose_writer_is_silent() {
    let service = Service::start(&[]).await;
    let conversation = Conversation::of(&service, "u").await;
    let polling = service.polling_sibling().await;
    let mut stream = polling.events(&conversation.path("/events")).await;
    stream.until("ready").await;
    conversation.begin("t", json!({})).await.expect(201);
    conversation.write("t", 1, 0, &["half"]).await;
    stream.until("chunk").await;
    service.advance(LOST);
    let message = stream.expect("message").await;
    assert_eq!((message.member("content"), message.member("finishReason")), (&json!("half"), &json!("lost")));
    assert_eq!(stream.expect("turn").await.member("status"), "lost");
}

#[tokio::test]
async fn texts_of_two_writers_are_never_mixed() {
    let service = Service::start(&[]).await;
    let conversation = Conversation::of(&service, "u").await;
    let mut stream = service.events(&conversation.path("/events")).await;
    let mut followed = Followed::default();
    for event in stream.until("ready").await {
        followed.take(&event);
    }
    conversation.begin("t", json!({})).await.expect(201);
    conversation.write("t", 1, 0, &["a", "b"]).await;
    conversation.begin("t", json!({"writer": "w2", "ifOpen": "takeover"})).await.expect(200);
    conversation.write("t", 2, 2, &["c"]).await;
    conversation.begin("t", json!({"writer": "w3", "ifOpen": "discard"})).await.expect(200);
    conversation.write("t", 3, 0, &["x"]).await;
    conversation.begin("t2", json!({"ifOpen": "discard"})).await.expect(201);
    conversation.write("t2", 4, 0, &["y"]).await;
    conversation.begin("t3", json!({"ifOpen": "interrupt"})).await.expect(201);
    conversation.end("t3", 5).await;
    let mut kinds = Vec::new();
    while followed.messages.len() < 2 {
        let event = stream.next().await.expect("an event");
        followed.take(&event);
        kinds.push(event.name);
    }
    assert_eq!(followed.messages.into_values().collect::<Vec<_>>(), [json!("y"), json!("")], "{kinds:?}");
    assert_eq!(followed.resets, [""; 0]);
}

#[tokio::test]
async fn streams_of_one_session_share_a_feed() {
    let service = Service::start(&[]).await;
    let conversation = Conversation::of(&service, "u").await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = service.events(&conversation.path("/events")).await;
        stream.until("ready").await;
        streams.push(stream);
    }
    for number in 0..50 {
        conversation.append(&number.to_string()).await;
    }
    for stream in &mut streams {
        for number in 0..50 {
            assert_eq!(stream.expect("message").await.member("content"), &json!(number.to_string()));
        }
    }
}

#[tokio::test]
async fn responses_have_the_headers_of_event_streams() {
    let service = Service::start(&["--cors-origins", "https://chat.example.com"]).await;
    let conversation = Conversation::of(&service, "u").await;
    for path in [conversation.path("/events"), "/api/sessions/business/b/events".to_owned()] {
        let head = service.send(Method::HEAD, &path, &[], Vec::new()).await.expect(200);
        assert_eq!(head.header("content-type"), Some("text/event-stream"));
        assert_eq!(head.header("cache-control"), Some("no-store, no-transform"));
        assert_eq!(head.header("x-accel-buffering"), Some("no"));
    }
    let unknown = "/api/sessions/00000000-0000-8000-8000-000000000000/events";
    service.get(unknown).await.expect_problem(404, "session_not_found");
    for query in ["?after=x", "?after=-1", "?last=101", "?last=x", "?first=1", "?last=1&last=2"] {
        service.get(&conversation.path(&format!("/events{query}"))).await.expect_problem(400, "invalid_request");
    }
    let headers = [
        ("origin", "https://chat.example.com"),
        ("access-control-request-method", "GET"),
        ("access-control-request-headers", "last-event-id,authorization"),
    ];
    let preflight = service.send(Method::OPTIONS, &conversation.path("/events"), &headers, Vec::new()).await;
    let allowed = preflight.header("access-control-allow-headers").expect("allowed headers");
    assert!(allowed.contains("last-event-id"), "{allowed}");
}

/// Opens a stream, reads it up to `ready`, and returns its events.
async fn begun(stream: &mut EventStream) -> Vec<Event> {
    stream.until("ready").await
}
