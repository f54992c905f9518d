//! `Idempotency-Key`: a user's key creates at most one session, however often the call is repeated.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sessiond::session::{IdempotencyKey, SessionId};

use crate::support::audit::expect_clean;
use crate::support::service::{Answer, Service};

const KEY: &str = "0b8e0a52-2a3f-4d3c-8f0a-6a4f6f1f7a11";
const LONG_AFTER: Duration = Duration::from_secs(40 * 24 * 60 * 60);

async fn create(service: &Service, key: &str, body: Value) -> Answer {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    service.send(Method::POST, "/api/sessions", &headers, body.to_string().into_bytes()).await
}

fn replacing(user: &str) -> Value {
    json!({"businessId": "b", "userId": user, "ifActive": "replace"})
}

#[tokio::test]
async fn repeated_replace_returns_the_same_session_and_replaces_no_other() {
    let service = Service::start(&[]).await;
    let old = service.session_of("u").await;
    let first = create(&service, KEY, replacing("u")).await.expect(201);
    let id = first.string("sessionId");
    assert_eq!(service.get(&format!("/api/sessions/{old}")).await.member("endReason"), "replaced");
    for _ in 0..2 {
        let again = create(&service, KEY, replacing("u")).await.expect(200);
        assert_eq!(again.json(), first.json());
    }
    // The service does not compare the body. Another key creates another session.
    let other_body = json!({"businessId": "b", "userId": "u", "title": "other"});
    assert_eq!(create(&service, KEY, other_body).await.expect(200).member("title"), Value::Null);
    let other = create(&service, "another-key-of-16", replacing("u")).await.expect(201);
    assert_ne!(other.string("sessionId"), id);
    // That replaced the first session. Its key still returns it, and replaces nothing.
    let ended = create(&service, KEY, replacing("u")).await.expect(200);
    assert_eq!((ended.string("sessionId"), ended.string("endReason")), (id, "replaced".to_owned()));
    assert_eq!(service.session_of("u").await, other.string("sessionId"));
    expect_clean(&service).await;
}

#[tokio::test]
async fn keys_are_per_business_and_user() {
    let service = Service::start(&[]).await;
    let bodies =
        [("b", "u"), ("b", "v"), ("c", "u"), ("bu", ""), ("b", "uu")].into_iter().filter(|(_, u)| !u.is_empty());
    let mut ids = BTreeSet::new();
    let mut count = 0;
    for (business, user) in bodies {
        let body = json!({"businessId": business, "userId": user});
        ids.insert(create(&service, KEY, body).await.expect(201).string("sessionId"));
        count += 1;
    }
    assert_eq!(ids.len(), count);
}

#[tokio::test]
async fn repeated_call_returns_the_active_session_and_counts_as_activity() {
    let service = Service::start(&[]).await;
    let first = create(&service, KEY, replacing("u")).await.expect(201);
    service.advance(Duration::from_secs(120));
    let again = create(&service, KEY, replacing("u")).await.expect(200);
    assert_eq!(again.string("sessionId"), first.string("sessionId"));
    assert_ne!(again.string("lastActivityAt"), first.string("lastActivityAt"));
    // Without `replace` the response is the active session, even with another key, and that key stays unused.
    let other = create(&service, "another-key-of-16", json!({"businessId": "b", "userId": "u"})).await.expect(200);
    assert_eq!(other.string("sessionId"), first.string("sessionId"));
    let other = create(&service, "another-key-of-16", replacing("u")).await.expect(201);
    assert_ne!(other.string("sessionId"), first.string("sessionId"));
}

#[tokio::test]
async fn key_of_a_removed_session_creates_an_empty_one_with_the_same_id() {
    let service = Service::start(&[]).await;
    let first = create(&service, KEY, replacing("u")).await.expect(201);
    let path = format!("/api/sessions/{}", first.string("sessionId"));
    let erase = "/api/sessions/business/b/user/u";
    for removal in ["deleted", "erased", "expired long ago", "ended long ago", "deleted again"] {
        let message = json!({"messageId": "m", "role": "user", "content": removal});
        service.post(&format!("{path}/messages"), message).await.expect(201);
        service.patch(&path, json!({"title": removal})).await.expect(200);
        match removal {
            "erased" => drop(service.delete(erase).await.expect(200)),
            "expired long ago" => service.advance(LONG_AFTER),
            "ended long ago" => {
                service.patch(&path, json!({"status": "ended"})).await.expect(200);
                service.advance(LONG_AFTER);
            }
            _ => drop(service.delete(&path).await.expect(204)),
        }
        service.get(&path).await.expect_problem(404, "session_not_found");
        let new = create(&service, KEY, replacing("u")).await.expect(201);
        assert_eq!(new.string("sessionId"), first.string("sessionId"), "{removal}");
        let expected = [json!("active"), json!(1), json!(0), Value::Null, Value::Null, Value::Null];
        let members = ["status", "version", "messageCount", "title", "endedAt", "endReason"];
        assert_eq!(members.map(|name| new.member(name)), expected, "{removal}");
        assert_eq!(service.get(&format!("{path}/messages")).await.expect(200).json(), json!([]), "{removal}");
        let history = service.get(&format!("{erase}/history")).await.expect(200).json();
        assert_eq!(history.as_array().map(Vec::len), Some(1), "{removal}");
        expect_clean(&service).await;
    }
}

#[tokio::test]
async fn hundred_concurrent_calls_with_one_key_create_one_session() {
    let service = Service::start(&[]).await;
    let old = service.session_of("u").await;
    let responses = join_all((0..100).map(|_| create(&service, KEY, replacing("u")))).await;
    let created = responses.iter().filter(|response| response.status == 201).count();
    let ids: BTreeSet<_> = responses.iter().map(|response| response.string("sessionId")).collect();
    assert_eq!((created, ids.len()), (1, 1));
    assert_eq!(service.get(&format!("/api/sessions/{old}")).await.member("endReason"), "replaced");
    assert_eq!(service.get("/api/sessions/business/b/active").await.json().as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn another_users_session_under_the_derived_id_is_not_returned_or_changed() {
    let service = Service::start(&[]).await;
    let key = IdempotencyKey::new(KEY).expect("a key");
    let id = SessionId::of_idempotency_key("b", "u", &key);
    let planted = service.session_of("v").await;
    let [from] = &service.probe.keys_of('s').await[..] else { panic!("one session") };
    let to = from.replace(&planted, &id.to_string()).replace(&planted[..4], &id.to_string()[..4]);
    service.probe.command(&["COPY", from, &to]).await;
    service.probe.command(&["HSET", &to, "sessionId", &id.to_string()]).await;
    let before = service.probe.digest().await;
    create(&service, KEY, replacing("u")).await.expect_problem(500, "internal");
    assert_eq!(service.probe.digest().await, before);
}

#[tokio::test]
async fn invalid_keys_are_rejected_and_change_nothing() {
    let service = Service::start(&[]).await;
    service.session_of("u").await;
    let before = service.probe.digest().await;
    let body = replacing("u").to_string().into_bytes();
    for key in
        ["", "fifteen-letters", &"x".repeat(129), "sixteen letters and spaces", "caf\u{e9}-caf\u{e9}-caf\u{e9}-x"]
    {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        let rejected = service.send(Method::POST, "/api/sessions", &headers, body.clone()).await;
        rejected.expect_problem(400, "invalid_request");
        assert_eq!(rejected.member("errors")[0]["field"], "Idempotency-Key");
    }
    let twice = [("content-type", "application/json"), ("idempotency-key", KEY), ("idempotency-key", KEY)];
    service.send(Method::POST, "/api/sessions", &twice, body).await.expect_problem(400, "invalid_request");
    assert_eq!(service.probe.digest().await, before);
    for key in ["x".repeat(16), "x".repeat(128)] {
        create(&service, &key, replacing("u")).await.expect(201);
    }
}
