//! Streams of a business.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use sessiond::session::Partition;

use super::Conversation;
use crate::support::acl;
use crate::support::redis_server::{IN_MEMORY, RedisServer};
use crate::support::service::Service;

const EVENTS: &str = "/api/sessions/business/b/events";

#[tokio::test]
async fn a_business_stream_has_the_events_of_all_its_sessions() {
    let service = Service::start(&[]).await;
    let mut stream = service.events(EVENTS).await;
    assert_eq!(stream.expect("reset").await.data, json!({"reason": "start"}));
    for user in ["u1", "u2"] {
        let created = service.get_or_create(user).await.expect(201);
        assert_eq!(stream.expect("session").await.data, created.json());
        let conversation = Conversation::of(&service, user).await;
        let mut message = conversation.append("1").await.json();
        for member in ["content", "metadata"] {
            message.as_object_mut().expect("an object").remove(member);
        }
        assert_eq!(stream.expect("message").await.data, message);
        let turn = conversation.begin("t", json!({})).await.expect(201);
        assert_eq!(stream.expect("turn").await.data, turn.json());
        conversation.write("t", 1, 0, &["a"]).await;
        let ended = conversation.end("t", 1).await;
        let message = stream.expect("message").await;
        assert_eq!(message.member("finishReason"), "completed", "no chunk comes before it");
        assert!(message.member("content").is_null() && message.member("metadata").is_null(), "{message:?}");
        assert_eq!(stream.expect("turn").await.data, ended.json());
        service.delete(&conversation.path("/messages/m-1")).await.expect(204);
        let changed = stream.expect("changed").await;
        assert_eq!(changed.member("seq"), 1);
        assert!(
            changed.member("redactedAt").is_string()
                && !changed.data.as_object().expect("an object").contains_key("content")
        );
        assert_eq!(stream.expect("session").await.member("version"), 2);
    }
    let old = service.session_of("u1").await;
    let replacing =
        service.post("/api/sessions", json!({"businessId": "b", "userId": "u1", "ifActive": "replace"})).await;
    let (first, second) = (stream.expect("session").await, stream.expect("session").await);
    let ids = [first.member("sessionId"), second.member("sessionId")];
    assert_eq!(ids, [&json!(old), &replacing.member("sessionId")]);
    assert_eq!(first.member("endReason"), "replaced");
    // Events of other businesses are not sent here: the next event is that of the erasure.
    service.post("/api/sessions", json!({"businessId": "b2", "userId": "u1"})).await.expect(201);
    service.delete("/api/sessions/business/b/user/u1").await.expect(200);
    let deleted = [stream.expect("deleted").await, stream.expect("deleted").await];
    let mut ids: Vec<_> = deleted.iter().map(|event| event.member("sessionId").clone()).collect();
    ids.sort_by_key(Value::to_string);
    let mut expected = vec![json!(old), replacing.member("sessionId")];
    expected.sort_by_key(Value::to_string);
    assert_eq!(ids, expected);
}

#[tokio::test]
async fn the_end_of_an_interrupted_turn_is_sent() {
    let service = Service::start(&[]).await;
    let conversation = Conversation::of(&service, "u").await;
    let (mut session, mut business) =
        (service.events(&conversation.path("/events")).await, service.events(EVENTS).await);
    session.until("ready").await;
    business.expect("reset").await;
    for (number, (if_open, is_kept)) in (1..).step_by(2).zip([("interrupt", true), ("discard", false)]) {
        let (first, second) = (format!("a{number}"), format!("b{number}"));
        conversation.begin(&first, json!({"metadata": {"model": "x"}})).await.expect(201);
        conversation.write(&first, number, 0, &["text"]).await;
        for stream in [&mut session, &mut business] {
            assert_eq!(stream.expect("turn").await.member("turnId"), &json!(first));
        }
        session.expect("chunk").await;
        conversation.begin(&second, json!({"ifOpen": if_open})).await.expect(201);
        for stream in [&mut session, &mut business] {
            let message = if is_kept { stream.expect("message").await.member("seq").clone() } else { Value::Null };
            let closed = stream.expect("turn").await;
            assert_eq!((closed.member("turnId"), closed.member("status")), (&json!(first), &json!("interrupted")));
            assert_eq!(closed.member("messageSeq"), &message);
            let metadata = if is_kept { json!({"model": "x"}) } else { json!({}) };
            assert_eq!(closed.member("metadata"), &metadata);
            assert_eq!(stream.expect("turn").await.member("turnId"), &json!(second));
        }
        conversation.end(&second, number + 1).await;
        for stream in [&mut session, &mut business] {
            stream.expect("message").await;
            assert_eq!(stream.expect("turn").await.member("status"), "completed");
        }
    }
}

#[tokio::test]
async fn identifiers_of_any_characters_have_a_stream() {
    let service = Service::start(&[]).await;
    let mut stream = service.events("/api/sessions/business/%7Bb%7D:%25%20%F0%9F%92%AC/events").await;
    stream.expect("reset").await;
    let created = service.post("/api/sessions", json!({"businessId": "{b}:% 💬", "userId": "a}:{u"})).await.expect(201);
    assert_eq!(stream.expect("session").await.data, created.json());
}

/// A stream that starts while Redis rejects its subscriptions lacks the events until they are confirmed.
#[tokio::test]
async fn events_before_the_first_subscription_are_reported_as_lost() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &[]).await;
    let probe = redis.probe().await;
    probe.command(&["ACL", "SETUSER", acl::SERVICE, "resetchannels"]).await;
    let mut stream = service.events(EVENTS).await;
    assert_eq!(stream.expect("reset").await.data, json!({"reason": "start"}));
    service.get_or_create("lost").await.expect(201);
    probe.command(&["ACL", "SETUSER", acl::SERVICE, "&*"]).await;
    assert_eq!(stream.expect("reset").await.data, json!({"reason": "lost"}));
    let created = service.get_or_create("sent").await.expect(201);
    assert_eq!(stream.expect("session").await.data, created.json());
}

/// Creates remove the entries of expired sessions from the index. The stream must have found them before.
#[tokio::test]
async fn expired_sessions_are_sent_even_if_others_are_created_meanwhile() {
    let service = Service::start(&[]).await;
    let mut stream = service.events(EVENTS).await;
    stream.expect("reset").await;
    let partition = Partition::of_user("b", "u");
    let mut users = (0..).map(|n| format!("u{n}")).filter(|user| Partition::of_user("b", user) == partition);
    let mut created = BTreeSet::new();
    for user in users.by_ref().take(3) {
        created.insert(service.session_of(&user).await);
        stream.expect("session").await;
    }
    // A damaged session has no event, and does not hide the others.
    let damaged = service.session_of(&users.next().expect("a user")).await;
    stream.expect("session").await;
    let key = format!("{}:{{{partition}}}:s:{damaged}", service.config.redis.key_prefix);
    service.probe.command(&["HDEL", &key, "metadata"]).await;
    service.advance(Duration::from_secs(30 * 60 + 10));
    service.session_of(&users.next().expect("a user")).await;
    let mut expired = BTreeSet::new();
    for _ in 0..4 {
        let session = stream.expect("session").await;
        if session.member("status") == "expired" {
            expired.insert(session.member("sessionId").as_str().expect("an id").to_owned());
        }
    }
    assert_eq!(expired, created);
}
