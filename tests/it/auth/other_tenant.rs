//! Sessions of other tenants: every call treats them like missing sessions.

use reqwest::Method;
use serde_json::{Value, json};
use sessiond::auth::Scope;
use sessiond::embedded_redis::EmbeddedRedis;
use tempfile::TempDir;

use crate::support::credentials::api_key;
use crate::support::monitor::Monitor;
use crate::support::redis::embedded;
use crate::support::service::Service;

const UNKNOWN_ID: &str = "f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e";

/// A service on its own Redis, with an API key for business `b` and one for business `c`.
struct Fixture {
    service: Service,
    ours: String,
    theirs: String,
    redis: EmbeddedRedis,
    _folder: TempDir,
}

impl Fixture {
    async fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        let (ours, our_entry) = api_key("ours", &["b"], &Scope::ALL, None);
        let (theirs, their_entry) = api_key("theirs", &["c"], &Scope::ALL, None);
        let keys = folder.path().join("keys.toml");
        std::fs::write(&keys, format!("{our_entry}\n{their_entry}")).expect("a file");
        let redis = embedded(&folder.path().join("redis"));
        let flags = ["--api-keys-file", keys.to_str().expect("a path")];
        Self { service: Service::start_on(&redis.socket(), &flags).await, ours, theirs, redis, _folder: folder }
    }

    async fn create(&self, user_id: &str, business_id: &str) -> String {
        let body = json!({"businessId": business_id, "userId": user_id, "ifActive": "replace"});
        let credential = if business_id == "b" { &self.ours } else { &self.theirs };
        self.service.bearer(credential, Method::POST, "/api/sessions", body).await.expect(201).string("sessionId")
    }
}

#[tokio::test]
async fn a_foreign_session_is_indistinguishable_from_a_missing_one() {
    let fixture = Fixture::start().await;
    let ended = fixture.create("u", "c").await;
    let active = fixture.create("u", "c").await;
    let message = json!({"messageId": "m", "role": "user", "content": "theirs"});
    let path = format!("/api/sessions/{active}/messages");
    fixture.service.bearer(&fixture.theirs, Method::POST, &path, message).await.expect(201);
    // Each call would get another status (412, 409, 200 or 400) if the service checked the session before its owner.
    let calls = [
        (Method::GET, "", Value::Null, &active),
        (Method::GET, "/messages", Value::Null, &active),
        (Method::GET, "/messages?after=0&limit=1", Value::Null, &active),
        (Method::PATCH, "", json!({}), &active),
        (Method::PATCH, "", json!({"status": "active"}), &ended),
        (Method::PATCH, "", json!({"status": "active", "ifActive": "replace"}), &ended),
        (Method::POST, "/messages", json!({"role": "user", "content": 1}), &ended),
        (Method::POST, "/messages", json!({"messageId": "m", "role": "user", "content": "ours"}), &active),
        (Method::POST, "/messages", json!({"messageId": "m", "role": "user", "content": "theirs"}), &active),
        (Method::GET, "/messages/m", Value::Null, &active),
        (Method::GET, "/messages/unknown", Value::Null, &active),
        (Method::PATCH, "/messages/m", json!({"metadata": {"feedback": 1}}), &active),
        (Method::PATCH, "/messages/m", json!({"metadata": {}}), &active),
        (Method::PATCH, "/messages/unknown", json!({"metadata": null}), &active),
        (Method::DELETE, "/messages/m", Value::Null, &active),
        (Method::DELETE, "/messages/unknown", Value::Null, &active),
        (Method::DELETE, "", Value::Null, &active),
    ];
    fixture.service.wait_for_read_connection().await;
    let before = fixture.service.probe.digest().await;
    for (method, rest, body, session) in calls {
        for condition in [None, Some("\"0\""), Some("\"1\""), Some("*")] {
            let mut seen = Vec::new();
            for id in [session.as_str(), UNKNOWN_ID] {
                let monitor = Monitor::start(&fixture.redis.socket());
                let bearer = format!("Bearer {}", fixture.ours);
                let mut headers = vec![("authorization", bearer.as_str()), ("x-request-id", "the-same")];
                headers.extend(condition.map(|condition| ("if-match", condition)));
                let path = format!("/api/sessions/{id}{rest}");
                let body = Some(&body).filter(|body| !body.is_null());
                let response = fixture.service.call_as(&headers, method.clone(), &path, body).await;
                response.expect_problem(404, "session_not_found");
                let commands = monitor.finish(&fixture.service.probe).await;
                let of_session =
                    commands.into_iter().filter(|command| command.words.iter().any(|word| word.contains(id)));
                let verbs: Vec<_> = of_session.map(|command| command.words[0].to_uppercase()).collect();
                // The script of an append compares the scope itself.
                let verb = if method == Method::POST { "EVALSHA" } else { "HGETALL" };
                assert_eq!(verbs, [verb], "{method} {path}");
                let mut headers = response.headers.clone();
                headers.remove("date");
                seen.push((response.status, headers, response.text.replace(id, "<session>")));
            }
            assert_eq!(seen[0], seen[1], "{method} {rest} {condition:?}");
        }
    }
    assert!(fixture.service.probe.digest().await == before, "a foreign session was changed");
}

#[tokio::test]
async fn cursors_and_links_do_not_extend_the_tenant_scope() {
    let fixture = Fixture::start().await;
    let service = &fixture.service;
    for user in ["u", "v"] {
        for business in ["b", "c", "b", "c"] {
            fixture.create(user, business).await;
        }
    }
    for list in ["active?limit=1", "user/u/history?limit=1"] {
        let path = |business: &str| format!("/api/sessions/business/{business}/{list}");
        let page = service.get_as(&fixture.theirs, &path("c")).await.expect(200);
        let link = page.link("next").expect("a next page");
        service.get_as(&fixture.theirs, &link).await.expect(200);
        // The link requires their credential, and their cursor belongs to another list.
        service.get_as(&fixture.ours, &link).await.expect_problem(403, "forbidden");
        let (_, cursor) = link.split_once("&cursor=").expect("a cursor");
        let ours = format!("{}&cursor={cursor}", path("b"));
        service.get_as(&fixture.ours, &ours).await.expect_problem(400, "invalid_request");
    }
}

#[tokio::test]
async fn forbidden_responses_do_not_depend_on_stored_data() {
    let fixture = Fixture::start().await;
    fixture.create("u", "c").await;
    let bearer = format!("Bearer {}", fixture.ours);
    let headers = [("authorization", bearer.as_str()), ("x-request-id", "the-same")];
    let mut seen = Vec::new();
    for (business, user) in [("c", "u"), ("c", "nobody"), ("nowhere", "u"), ("%ff", "u"), ("c", "%00"), ("%62%2f", "u")]
    {
        for rest in ["active", "user/{}/active", "user/{}/history?limit=0", "user/{}/history?cursor=x"] {
            let path = format!("/api/sessions/business/{business}/{}", rest.replace("{}", user));
            seen.push(fixture.service.call_as(&headers, Method::GET, &path, None).await);
        }
        if !business.contains('%') {
            let body = json!({"businessId": business, "userId": user.replace('%', "")});
            seen.push(fixture.service.call_as(&headers, Method::POST, "/api/sessions", Some(&body)).await);
        }
    }
    for response in &seen {
        response.expect_problem(403, "forbidden");
        assert_eq!(response.text, seen[0].text);
    }
    // A percent-encoded name of our own business is accepted.
    fixture.service.get_as(&fixture.ours, "/api/sessions/business/%62/active").await.expect(200);
}

#[tokio::test]
async fn the_credential_is_checked_before_the_scope_and_the_scope_before_the_body() {
    let folder = TempDir::new().expect("a folder");
    let (reader, entry) = api_key("reader", &["b"], &[Scope::Read], None);
    let keys = folder.path().join("keys.toml");
    std::fs::write(&keys, entry).expect("a file");
    let service = Service::start(&["--api-keys-file", keys.to_str().expect("a path")]).await;
    let large = "x".repeat(300 * 1024);
    for body in ["{", "{}", large.as_str()] {
        for (credential, status, code) in
            [("Bearer x.y", 401, "unauthorized"), (&format!("Bearer {reader}"), 403, "forbidden")]
        {
            let headers = [("authorization", credential), ("content-type", "text/plain")];
            let response = service.send(Method::POST, "/api/sessions", &headers, body.as_bytes().to_vec()).await;
            response.expect_problem(status, code);
        }
    }
    assert_eq!(service.probe.keys().await, Vec::<String>::new());
}
