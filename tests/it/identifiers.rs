//! Identifiers that look like separators, escapes, patterns or routes: each identifies its own sessions only, and is
//! returned byte for byte.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use sessiond::session::Partition;

use crate::support::raw::{RawRequest, encode};
use crate::support::service::{Answer, Service};

const SHORT: [&str; 48] = [
    "a",
    "b",
    "a:b",
    "b:c",
    ":",
    "::",
    "{}",
    "{a}",
    "{",
    "}",
    "%",
    "%%",
    "%2f",
    "%2F",
    "%3a",
    "a%3ab",
    "a%3Ab",
    "a%253Ab",
    "/",
    "//",
    "a/b",
    "?",
    "a?limit=1",
    "#",
    "&",
    "+",
    " ",
    "  ",
    "\"",
    "\\",
    "\\u0000",
    "'; DROP TABLE sessions; --",
    "*",
    "[a-z]*",
    "jane@example.com",
    "auth0|123",
    "urn:x:y",
    "...",
    ".a",
    "..a",
    "%2e",
    "%2e%2e",
    "active",
    "user",
    "history",
    "business",
    "messages",
    "null",
];

/// Characters that look alike but differ: composed and decomposed, with combining marks, zero-width, right-to-left.
const UNICODE: [&str; 12] = [
    "\u{e9}",
    "e\u{301}",
    "e",
    "E",
    "\u{c5}",
    "\u{212b}",
    "\u{200b}a",
    "\u{202e}a",
    "\u{feff}",
    "\u{2028}",
    "👩\u{200d}👩\u{200d}👧",
    "\u{10ffff}",
];

/// Pairs that hash to the same partition, so only the encoding of their keys distinguishes them. They differ in the
/// position of the separator, in an escape, in the composition of a letter, and in case.
const SAME_PARTITION: [[(&str, &str); 2]; 4] = [
    [("a:55834", "c"), ("a", "55834:c")],
    [("a:8916", "c"), ("a%3a8916", "c")],
    [("e\u{301}6991", "e\u{301}6991"), ("\u{e9}6991", "\u{e9}6991")],
    [("a10526", "a10526"), ("A10526", "A10526")],
];

fn identifiers() -> Vec<String> {
    let longest = ["💬".repeat(128), "%".repeat(128), ":".repeat(128), "\u{301}".repeat(128)];
    SHORT.iter().chain(&UNICODE).copied().map(str::to_owned).chain(longest).collect()
}

/// Pairs of business and user: each identifier with itself, with its neighbour in the list, and with the identifier
/// `a`. Every business has several users, and every user several businesses.
fn pairs() -> BTreeSet<(String, String)> {
    let identifiers = identifiers();
    let mut pairs = BTreeSet::new();
    for (index, identifier) in identifiers.iter().enumerate() {
        let neighbour = &identifiers[(index + 1) % identifiers.len()];
        for (business, user) in
            [(identifier.as_str(), identifier.as_str()), (identifier, neighbour), ("a", identifier), (identifier, "a")]
        {
            pairs.insert((business.to_owned(), user.to_owned()));
        }
    }
    // Pairs that would give the same path or the same key if they were joined without encoding.
    let joined = [("a/user/b", "c"), ("a", "b/user/c"), ("a:b", "c"), ("a", "b:c"), ("a%3Ab", "c"), ("a%3ab", "c")];
    for [(business, user), (other_business, other_user)] in SAME_PARTITION {
        assert_eq!(Partition::of_user(business, user), Partition::of_user(other_business, other_user));
    }
    for (business, user) in joined.into_iter().chain(SAME_PARTITION.into_iter().flatten()) {
        pairs.insert((business.to_owned(), user.to_owned()));
    }
    pairs
}

fn path_of(business: &str, user: &str) -> String {
    format!("/api/sessions/business/{}/user/{}", encode(business), encode(user))
}

/// Sends a request without an HTTP client, which could resolve `..` in the path.
async fn raw(service: &Service, method: &str, path: &str) -> Answer {
    RawRequest::new(method, path).send(&service.base).await
}

/// Creates a session for every pair. Returns the sessions as the responses had them.
async fn create_all(service: &Service) -> BTreeMap<(String, String), Value> {
    let mut sessions = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for (business, user) in pairs() {
        let body = json!({
            "businessId": business, "userId": user, "locationId": user, "sessionType": business, "title": user,
            "metadata": {(business.as_str()): {(user.as_str()): [user, business]}, "": ""},
        });
        let created = service.post("/api/sessions", body.clone()).await.expect(201);
        let session = created.json();
        for (name, value) in body.as_object().expect("an object") {
            assert_eq!(&session[name], value, "{name} of {created:?}");
        }
        assert!(ids.insert(created.string("sessionId")), "two pairs share the session {created:?}");
        sessions.insert((business, user), session);
    }
    sessions
}

#[tokio::test]
async fn every_pair_of_identifiers_has_its_own_sessions() {
    let service = Service::start(&[]).await;
    let sessions = create_all(&service).await;
    for ((business, user), session) in &sessions {
        let path = path_of(business, user);
        let id = session["sessionId"].as_str().expect("an id");
        let again = service.post("/api/sessions", json!({"businessId": business, "userId": user})).await;
        assert_eq!(&again.expect(200).json(), session);
        assert_eq!(&service.get(&format!("/api/sessions/{id}")).await.expect(200).json(), session);
        assert_eq!(&raw(&service, "GET", &format!("{path}/active")).await.expect(200).json(), session);
        assert_eq!(raw(&service, "GET", &format!("{path}/history")).await.expect(200).json(), json!([session]));
    }
    let businesses: BTreeSet<_> = sessions.keys().map(|(business, _)| business).collect();
    for business in businesses {
        let wanted: BTreeMap<_, _> = sessions
            .iter()
            .filter(|((other, _), _)| other == business)
            .map(|(_, session)| (session["sessionId"].to_string(), session.clone()))
            .collect();
        let listed =
            raw(&service, "GET", &format!("/api/sessions/business/{}/active?limit=100", encode(business))).await;
        assert_eq!(listed.header("x-total-count"), Some(wanted.len().to_string().as_str()), "{listed:?}");
        let listed = listed.json().as_array().cloned().expect("an array");
        let listed: BTreeMap<_, _> =
            listed.into_iter().map(|session| (session["sessionId"].to_string(), session)).collect();
        assert_eq!(listed, wanted, "{business:?}");
    }
}

#[tokio::test]
async fn erasing_a_user_erases_no_other_user() {
    let service = Service::start(&[]).await;
    let mut sessions = create_all(&service).await;
    for session in sessions.values() {
        let path = format!("/api/sessions/{}/messages", session["sessionId"].as_str().expect("an id"));
        let message = json!({"messageId": session["userId"], "role": "user", "content": session["businessId"]});
        service.post(&path, message).await.expect(201);
    }
    // Erases every second pair, then the rest.
    for step in [2, 1] {
        let erased: Vec<_> = sessions.keys().step_by(step).cloned().collect();
        for (business, user) in &erased {
            let path = path_of(business, user);
            let session = sessions.remove(&(business.clone(), user.clone())).expect("a session");
            assert_eq!(raw(&service, "DELETE", &path).await.expect(200).json(), json!({"deletedSessions": 1}));
            assert_eq!(raw(&service, "DELETE", &path).await.expect(200).json(), json!({"deletedSessions": 0}));
            raw(&service, "GET", &format!("{path}/active")).await.expect_problem(404, "no_active_session");
            assert_eq!(raw(&service, "GET", &format!("{path}/history")).await.expect(200).json(), json!([]));
            let id = session["sessionId"].as_str().expect("an id");
            service.get(&format!("/api/sessions/{id}/messages")).await.expect_problem(404, "session_not_found");
        }
        for ((business, user), session) in &sessions {
            let id = session["sessionId"].as_str().expect("an id");
            let active = raw(&service, "GET", &format!("{}/active", path_of(business, user))).await.expect(200);
            assert_eq!(active.string("sessionId"), id);
            let messages = service.get(&format!("/api/sessions/{id}/messages")).await.expect(200).json();
            assert_eq!(messages[0]["content"], *business.as_str());
            assert_eq!(messages.as_array().map(Vec::len), Some(1));
        }
    }
    assert_eq!(service.probe.keys().await, Vec::<String>::new(), "keys remain");
}

#[tokio::test]
async fn page_links_work_with_hostile_identifiers() {
    let service = Service::start(&[]).await;
    for identifier in identifiers() {
        let mut ids = Vec::new();
        for _ in 0..3 {
            let body = json!({"businessId": identifier, "userId": identifier, "ifActive": "replace"});
            ids.push(service.post("/api/sessions", body).await.expect(201).string("sessionId"));
        }
        ids.reverse();
        let mut read = Vec::new();
        let mut next = Some(format!("{}/history?limit=1", path_of(&identifier, &identifier)));
        while let Some(path) = next {
            let page = raw(&service, "GET", &path).await.expect(200);
            read.extend(page.json().as_array().cloned().expect("an array"));
            next = page.link("next");
        }
        let read: Vec<_> = read.iter().map(|session| session["sessionId"].as_str().expect("an id")).collect();
        assert_eq!(read, ids, "{identifier:?}");
    }
}

#[tokio::test]
async fn message_ids_are_compared_byte_for_byte() {
    let service = Service::start(&[]).await;
    let path = format!("/api/sessions/{}/messages", service.session_of("u").await);
    let message = |id: &String| {
        json!({
            "messageId": id, "role": "tool", "content": {(id.as_str()): id}, "metadata": {(id.as_str()): id},
        })
    };
    let messages: Vec<_> = identifiers().iter().map(message).collect();
    for (index, message) in messages.iter().enumerate() {
        let stored = service.post(&path, message.clone()).await.expect(201).json();
        assert_eq!(stored["seq"], index + 1, "{message} was treated as a repeated message");
    }
    let replayed = service.post(&path, json!(messages)).await.expect(200).json();
    let listed = service.get(&format!("{path}?limit=1000")).await.expect(200).json();
    assert_eq!(replayed, listed);
    for (stored, sent) in listed.as_array().expect("an array").iter().zip(&messages) {
        for name in ["messageId", "content", "metadata"] {
            assert_eq!(stored[name], sent[name]);
        }
    }
    assert_eq!(listed.as_array().map(Vec::len), Some(messages.len()));
}

#[tokio::test]
async fn titles_metadata_and_contents_are_returned_byte_for_byte() {
    let service = Service::start(&[]).await;
    let id = service.session_of("u").await;
    let (session, messages) = (format!("/api/sessions/{id}"), format!("/api/sessions/{id}/messages"));
    let controls: String = (0_u8..0x20).chain([0x7f]).map(char::from).collect();
    let longest = "💬".repeat(200);
    let texts = ["", "\0", &controls, "\u{85}\u{9f}", "<script>alert(1)</script>", "\u{fffd}\u{ffff}", &longest];
    for text in texts.into_iter().chain(SHORT).chain(UNICODE) {
        let metadata = json!({(text): text, "nested": {(text): [text]}});
        let patched = service.patch(&session, json!({"title": text, "metadata": metadata})).await.expect(200);
        let read = service.get(&session).await.expect(200);
        assert_eq!(read.text, patched.text);
        assert_eq!(read.string("title"), text);
        assert_eq!(read.member("metadata")[text], *text);
        assert_eq!(read.member("metadata")["nested"][text], json!([text]));
        service.patch(&session, json!({"metadata": null})).await.expect(200);
        let sent = json!({"role": "user", "content": text, "metadata": metadata});
        let stored = service.post(&messages, sent.clone()).await.expect(201).json();
        assert_eq!((&stored["content"], &stored["metadata"]), (&sent["content"], &sent["metadata"]));
        assert_eq!(service.get(&format!("{messages}?limit=1")).await.json(), json!([stored]));
    }
}
