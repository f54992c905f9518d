//! `?include=lastMessage`: a session, and the sessions of a list, with their newest message.

use reqwest::Method;
use serde_json::{Value, json};
use sessiond::auth::Scope;
use tempfile::TempDir;

use super::text;
use crate::support::credentials::api_key;
use crate::support::monitor::Monitor;
use crate::support::redis;
use crate::support::service::Service;

/// Maximum bytes of a page.
const PAGE_BYTES_MAX: usize = 4 << 20;
const HISTORY: &str = "/api/sessions/business/b/user/u/history";
const ACTIVE: &str = "/api/sessions/business/b/active";

/// Creates a session of user `u` in place of the active one. Returns its path.
async fn new_session(service: &Service) -> String {
    let body = json!({"businessId": "b", "userId": "u", "ifActive": "replace"});
    format!("/api/sessions/{}", service.post("/api/sessions", body).await.expect(201).string("sessionId"))
}

/// The newest message of the session at `path`, as the list of its messages shows it.
async fn newest(service: &Service, path: &str) -> Value {
    service.get(&format!("{path}/messages?limit=1")).await.json()[0].clone()
}

/// Panics unless the session has this `lastMessage` wherever it is included, and none elsewhere.
async fn expect_last(service: &Service, path: &str, last: &Value) {
    let of_user = "/api/sessions/business/b/user/u/active";
    let plain = service.get(path).await.expect(200);
    let mut expected = plain.json();
    assert_eq!(expected.get("lastMessage"), None);
    expected["lastMessage"] = last.clone();
    for one in [path, of_user] {
        let session = service.get(&format!("{one}?include=lastMessage")).await.expect(200);
        assert_eq!((session.json(), session.header("etag")), (expected.clone(), plain.header("etag")));
        assert!(session.text.starts_with(plain.text.trim_end_matches('}')), "lastMessage is the last member");
        let twice = service.get(&format!("{one}?include=lastMessage,lastMessage")).await.expect(200);
        assert_eq!(twice.text, session.text);
    }
    for list in [HISTORY, ACTIVE] {
        assert_eq!(service.get(&format!("{list}?include=lastMessage")).await.expect(200).json()[0], expected, "{list}");
        assert_eq!(service.get(list).await.expect(200).json()[0].get("lastMessage"), None, "{list}");
    }
}

#[tokio::test]
async fn the_last_message_is_the_newest_one_or_null() {
    let service = Service::start(&["--messages-kept", "100"]).await;
    let path = new_session(&service).await;
    expect_last(&service, &path, &Value::Null).await;
    let message = |id: &str, content: Value| json!({"messageId": id, "role": "user", "content": content});
    let messages = format!("{path}/messages");
    let first = service.post(&messages, message("a", json!({"z": [null], "a": "}"}))).await.expect(201).json();
    expect_last(&service, &path, &first).await;
    let both = service.post(&messages, json!([text(2), message("b", json!("x"))])).await.expect(201).json();
    expect_last(&service, &path, &both[1]).await;
    service.patch(&format!("{messages}/b"), json!({"metadata": {"feedback": 1}})).await.expect(200);
    let patched = newest(&service, &path).await;
    assert_eq!(patched["metadata"], json!({"feedback": 1}));
    expect_last(&service, &path, &patched).await;
    service.delete(&format!("{messages}/b")).await.expect(204);
    let redacted = newest(&service, &path).await;
    assert_eq!((&redacted["content"], redacted["redactedAt"].is_string()), (&Value::Null, true));
    expect_last(&service, &path, &redacted).await;
    // The same after older messages were trimmed.
    let hundred: Vec<_> = (0..100).map(text).collect();
    service.post(&messages, json!(hundred)).await.expect(201);
    let last = newest(&service, &path).await;
    assert_eq!(last["seq"], 103);
    expect_last(&service, &path, &last).await;
}

#[tokio::test]
async fn each_session_of_a_list_has_its_own_last_message_on_every_page() {
    let service = Service::start(&[]).await;
    let mut expected = Vec::new();
    for number in 0..5 {
        let path = new_session(&service).await;
        let messages: Vec<_> = (0..number).map(text).collect();
        if number > 0 {
            service.post(&format!("{path}/messages"), json!(messages)).await.expect(201);
        }
        let last = if number > 0 { newest(&service, &path).await } else { Value::Null };
        expected.insert(0, (path.rsplit('/').next().unwrap_or_default().to_owned(), last));
    }
    let (mut seen, mut next) = (Vec::new(), Some(format!("{HISTORY}?include=lastMessage&limit=2")));
    while let Some(path) = next {
        let page = service.get(&path).await.expect(200);
        for session in page.json().as_array().expect("an array") {
            seen.push((session["sessionId"].as_str().expect("an id").to_owned(), session["lastMessage"].clone()));
        }
        next = page.link("next");
    }
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn one_read_a_session_with_messages_and_none_without() {
    let folder = TempDir::new().expect("a folder");
    let redis = redis::embedded(folder.path());
    let service = Service::start_on(&redis.socket(), &[]).await;
    for number in 0..6 {
        let path = new_session(&service).await;
        if number % 2 == 0 {
            service.post(&format!("{path}/messages"), json!([text(1), text(2)])).await.expect(201);
        }
    }
    service.wait_for_read_connection().await;
    for (path, reads) in [
        (format!("{HISTORY}?include=lastMessage"), 3),
        (format!("{HISTORY}?include=lastMessage&limit=2"), 1),
        (format!("{HISTORY}?include=lastMessage&limit=1"), 0),
        (HISTORY.to_owned(), 0),
    ] {
        let monitor = Monitor::start(&redis.socket());
        service.get(&path).await.expect(200);
        let commands = monitor.finish(&service.probe).await;
        let of_messages = commands.iter().filter(|command| command.words[0].eq_ignore_ascii_case("LRANGE"));
        let of_messages: Vec<_> = of_messages.map(|command| command.words[2..].join(" ")).collect();
        assert_eq!(of_messages, vec!["-1 -1"; reads], "{path}");
    }
}

#[tokio::test]
async fn a_new_message_is_never_hidden_by_a_304() {
    let service = Service::start(&[]).await;
    let path = new_session(&service).await;
    let get = async |query: &str| {
        service.send(Method::GET, &format!("{path}{query}"), &[("if-none-match", "\"1\"")], Vec::new()).await
    };
    get("").await.expect(304);
    get("?include=lastMessage").await.expect(200);
    let message = service.post(&format!("{path}/messages"), text(1)).await.expect(201).json();
    get("").await.expect(304);
    assert_eq!(get("?include=lastMessage").await.expect(200).member("lastMessage"), message);
}

#[tokio::test]
async fn a_page_with_last_messages_ends_at_4_mib() {
    let service = Service::start(&[]).await;
    let content = "x".repeat(250 << 10);
    let sessions = 20;
    for _ in 0..sessions {
        let path = new_session(&service).await;
        service.post(&format!("{path}/messages"), json!({"role": "user", "content": content})).await.expect(201);
    }
    let page = service.get(&format!("{HISTORY}?include=lastMessage&limit=100")).await.expect(200);
    assert!(page.text.len() <= PAGE_BYTES_MAX, "{}", page.text.len());
    let listed = page.json();
    let listed = listed.as_array().expect("an array");
    let has_message: Vec<_> = listed.iter().map(|session| session.get("lastMessage").is_some()).collect();
    // The sessions are small, so all of them fit. The messages of the last sessions are omitted.
    let with_message = PAGE_BYTES_MAX / (251 << 10);
    assert_eq!(has_message, [vec![true; with_message], vec![false; sessions - with_message]].concat());
    assert_eq!(page.link("next"), None);
    // Read alone, the last session has its message.
    let oldest = listed[sessions - 1]["sessionId"].as_str().expect("an id");
    let alone = service.get(&format!("/api/sessions/{oldest}?include=lastMessage")).await.expect(200);
    assert_eq!(alone.member("lastMessage")["content"], content);
}

#[tokio::test]
async fn no_more_last_messages_are_read_after_one_that_did_not_fit() {
    let folder = TempDir::new().expect("a folder");
    let redis = redis::embedded(folder.path());
    let flags = ["--max-body-bytes", "8388608", "--max-content-bytes", "8388608", "--max-metadata-bytes", "200000"];
    let service = Service::start_on(&redis.socket(), &flags).await;
    let content = "x".repeat(3 << 20);
    // More sessions than one read returns.
    for _ in 0..12 {
        let path = new_session(&service).await;
        service.post(&format!("{path}/messages"), json!({"role": "user", "content": content})).await.expect(201);
    }
    service.wait_for_read_connection().await;
    let monitor = Monitor::start(&redis.socket());
    let page = service.get(&format!("{HISTORY}?include=lastMessage&limit=100")).await.expect(200).json();
    let commands = monitor.finish(&service.probe).await;
    let reads = commands.iter().filter(|command| command.words[0].eq_ignore_ascii_case("LRANGE")).count();
    let page = page.as_array().expect("an array");
    let with_message = page.iter().filter(|session| session.get("lastMessage").is_some()).count();
    assert_eq!((page.len(), with_message, reads), (12, 1, 2));
}

#[tokio::test]
async fn a_message_beyond_4_mib_is_omitted() {
    let flags = ["--max-body-bytes", "8388608", "--max-content-bytes", "8388608"];
    let service = Service::start(&flags).await;
    let path = new_session(&service).await;
    let large = json!({"messageId": "m", "role": "user", "content": "x".repeat(PAGE_BYTES_MAX)});
    service.post(&format!("{path}/messages"), large).await.expect(201);
    for one in [path.as_str(), "/api/sessions/business/b/user/u/active"] {
        let session = service.get(&format!("{one}?include=lastMessage")).await.expect(200).json();
        assert_eq!((session.get("lastMessage"), &session["messageCount"]), (None, &json!(1)));
    }
    let listed = service.get(&format!("{HISTORY}?include=lastMessage")).await.expect(200).json();
    assert_eq!((listed[0].get("lastMessage"), &listed[0]["messageCount"]), (None, &json!(1)));
}

#[tokio::test]
async fn unknown_members_and_parameters_are_rejected() {
    let service = Service::start(&[]).await;
    let path = new_session(&service).await;
    for path in [path.as_str(), "/api/sessions/business/b/user/u/active", HISTORY, ACTIVE] {
        for bad in ["", "turns", "lastmessage", "lastMessage,", "lastMessage,turns", "lastMessage,%20lastMessage", "*"]
        {
            let response = service.get(&format!("{path}?include={bad}")).await;
            let errors = response.expect_problem(400, "invalid_request").member("errors");
            let message = "must be a comma-separated list of: lastMessage, turn";
            assert_eq!(errors, json!([{"field": "include", "message": message}]), "{path} {bad}");
        }
        for bad in ["include=lastMessage&include=lastMessage", "includes=lastMessage"] {
            service.get(&format!("{path}?{bad}")).await.expect_problem(400, "invalid_request");
        }
    }
}

#[tokio::test]
async fn the_last_message_of_a_foreign_session_is_not_read() {
    let folder = TempDir::new().expect("a folder");
    let (ours, our_entry) = api_key("ours", &["b"], &Scope::ALL, None);
    let (theirs, their_entry) = api_key("theirs", &["c"], &Scope::ALL, None);
    let keys = folder.path().join("keys.toml");
    std::fs::write(&keys, format!("{our_entry}\n{their_entry}")).expect("a file");
    let redis = redis::embedded(&folder.path().join("redis"));
    let flags = ["--api-keys-file", keys.to_str().expect("a path")];
    let service = Service::start_on(&redis.socket(), &flags).await;
    let body = json!({"businessId": "b", "userId": "u"});
    let id = service.bearer(&ours, Method::POST, "/api/sessions", body).await.string("sessionId");
    service.bearer(&ours, Method::POST, &format!("/api/sessions/{id}/messages"), text(1)).await.expect(201);
    let path = format!("/api/sessions/{id}?include=lastMessage");
    service.get_as(&ours, &path).await.expect(200);
    service.wait_for_read_connection().await;
    let monitor = Monitor::start(&redis.socket());
    service.get_as(&theirs, &path).await.expect_problem(404, "session_not_found");
    for of_business in [ACTIVE, HISTORY, "/api/sessions/business/b/user/u/active"] {
        let response = service.get_as(&theirs, &format!("{of_business}?include=lastMessage")).await;
        response.expect_problem(403, "forbidden");
    }
    let commands = monitor.finish(&service.probe).await;
    let of_messages = commands.iter().filter(|command| command.words.iter().any(|word| word.contains("}:m:")));
    assert_eq!(of_messages.count(), 0, "messages of a foreign session were read");
}
