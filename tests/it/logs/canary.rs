//! Sends the text `canary` in every place that accepts user data, and searches for it in the log, in error responses
//! and in the metrics.

use reqwest::{Client, Method};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::process::{Process, with_timeout};
use crate::support::redis_server::{IN_MEMORY, RedisServer};
use crate::support::scrape::Scrape;

const USER_PATH: &str = "/api/sessions/business/canary-business/user/canary-user";

/// A client that keeps the error responses.
struct CanaryClient {
    client: Client,
    base: String,
    errors: Vec<String>,
}

impl CanaryClient {
    async fn call(&mut self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let request = self.client.request(method, format!("{}{path}", self.base));
        let request = request.header("if-none-match", "canary-etag").header("cookie", "canary-cookie");
        let request = match body {
            Value::Null => request,
            Value::String(text) => request.header("content-type", "application/json").body(text),
            body => request.json(&body),
        };
        let response = request.send().await.expect("a response");
        let (status, head) = (response.status().as_u16(), format!("{:?}", response.headers()));
        let text = response.text().await.expect("text");
        if status >= 400 {
            self.errors.push(format!("{status} {head} {text}"));
        }
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    /// Makes valid and invalid calls of every endpoint. Returns the session's path.
    async fn call_all(&mut self) -> String {
        let create = json!({
            "businessId": "canary-business", "userId": "canary-user", "locationId": "canary-location",
            "sessionType": "canary-type", "title": "canary-title", "metadata": {"canary-key": {"a": "canary-value"}},
        });
        let (_, session) = self.call(Method::POST, "/api/sessions", create.clone()).await;
        self.call(Method::POST, "/api/sessions", create).await;
        let id = session["sessionId"].as_str().unwrap_or("00000000-0000-8000-8000-000000000000");
        let path = format!("/api/sessions/{id}");
        let messages = format!("{path}/messages");
        // This id is not a canary: the error response names the id of the conflicting message.
        let message = json!({"messageId": "message-1", "role": "user", "content": {"canary-a": "canary-content"}});
        self.call(Method::POST, &messages, message).await;
        let other = json!({"messageId": "message-1", "role": "user", "content": "canary-other"});
        self.call(Method::POST, &messages, other).await;
        self.call(Method::PATCH, &path, json!({"metadata": {"canary-b": "canary-patch"}, "title": "canary-new"})).await;
        for read in ["", "/messages", "/messages?limit=canary-limit", "/messages?before=canary-seq"] {
            self.call(Method::GET, &format!("{path}{read}"), Value::Null).await;
        }
        for read in ["/active", "/history", "/history?cursor=canary-cursor"] {
            self.call(Method::GET, &format!("{USER_PATH}{read}"), Value::Null).await;
        }
        self.call(Method::GET, "/api/sessions/business/canary-business/active", Value::Null).await;
        self.call(Method::GET, "/api/sessions/business/canary-business/user/canary-nobody/active", Value::Null).await;
        self.call(Method::PUT, USER_PATH, json!({"canary-c": "canary-put"})).await;
        self.call(Method::GET, "/nowhere/canary-path?canary-query", Value::Null).await;
        for bad in [
            json!("{\"businessId\": \"canary-open"),
            json!("canary-bare"),
            json!(["canary-item"]),
            json!({"businessId": ["canary-list"], "userId": {"a": "canary-object"}, "metadata": "canary-text"}),
            json!({"businessId": "canary-\u{7}", "userId": "canary-".repeat(100), "title": "canary-".repeat(100)}),
            json!({"businessId": "b", "userId": "u", "metadata": {"a": "canary-".repeat(10_000)}}),
        ] {
            self.call(Method::POST, "/api/sessions", bad.clone()).await;
            self.call(Method::PATCH, &path, bad.clone()).await;
            self.call(Method::POST, &messages, bad).await;
        }
        self.call(Method::POST, &messages, json!({"role": "canary-role", "content": "canary-d"})).await;
        path
    }
}

#[tokio::test]
async fn user_data_is_not_in_logs_errors_or_metrics() {
    let redis = RedisServer::start(IN_MEMORY);
    let flags = ["--request-deadline", "500ms", "--log", "trace"];
    let (mut service, base) = Process::serve(&flags, &[("REDIS_URL", &redis.url())]);
    let mut client = CanaryClient { client: Client::new(), base, errors: Vec::new() };
    with_timeout(async { while client.call(Method::GET, "/readyz", Value::Null).await.0 != 200 {} }).await;
    let path = client.call_all().await;
    let count_500 = |errors: &[String]| errors.iter().filter(|error| error.starts_with("500")).count();
    assert_eq!(count_500(&client.errors), 0, "{:#?}", client.errors);

    // Corrupt values in Redis are not repeated either.
    let probe = redis.probe().await;
    let of_kind = |keys: &[String], kind: &str| keys.iter().find(|key| key.contains(kind)).expect("a key").clone();
    let keys = probe.keys().await;
    let (session, pointer) = (of_kind(&keys, "}:s:"), of_kind(&keys, "}:a:"));
    probe.command(&["HSET", &session, "metadata", "\"canary-stored\""]).await;
    client.call(Method::PATCH, &path, json!({"metadata": {"a": 1}})).await;
    for field in ["messageCount", "status", "createdAt", "endReason", "sessionId"] {
        probe.command(&["HSET", &session, field, "canary-field"]).await;
        client.call(Method::GET, &path, Value::Null).await;
    }
    probe.command(&["SET", &pointer, "canary-pointer"]).await;
    client.call(Method::GET, &format!("{USER_PATH}/active"), Value::Null).await;
    probe.command(&["DEL", &pointer]).await;
    probe.command(&["HSET", &pointer, "canary-a", "canary-b"]).await;
    client.call(Method::GET, &format!("{USER_PATH}/active"), Value::Null).await;
    client.call_all().await;
    assert!(count_500(&client.errors) > 6, "{:#?}", client.errors);

    redis.signal(Signal::STOP);
    client.call(Method::GET, &format!("{USER_PATH}/active"), Value::Null).await;
    client.call(Method::POST, "/api/sessions", json!({"businessId": "canary-business", "userId": "canary-user"})).await;
    redis.signal(Signal::CONT);
    client.errors.push(Scrape::of(&service).await.text);
    service.signal(Signal::TERM);
    service.wait();
    let found = service.lines.iter().chain(&client.errors).filter(|text| text.contains("canary"));
    let found: Vec<_> = found.collect();
    assert!(found.is_empty(), "{found:#?}");
    for logged in ["internal error", "could not serve", "\"request finished\"", "\"TRACE\""] {
        assert!(service.lines.iter().any(|line| line.contains(logged)), "{logged} was not logged");
    }
}
