//! The canary: what users say is planted wherever it goes in, and looked for in the log, in errors and in the metrics.

use reqwest::{Client, Method};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::process::{Process, patiently};
use crate::support::scrape::Scrape;
use crate::support::server::{IN_MEMORY, RedisServer};

const USER_PATH: &str = "/api/sessions/business/canary-business/user/canary-user";

/// A client that keeps what it is told in errors.
struct Caller {
    client: Client,
    base: String,
    errors: Vec<String>,
}

impl Caller {
    async fn call(&mut self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let request = self.client.request(method, format!("{}{path}", self.base));
        let request = request.header("if-none-match", "canary-etag").header("cookie", "canary-cookie");
        let request = match body {
            Value::Null => request,
            Value::String(text) => request.header("content-type", "application/json").body(text),
            body => request.json(&body),
        };
        let answer = request.send().await.expect("an answer");
        let (status, head) = (answer.status().as_u16(), format!("{:?}", answer.headers()));
        let text = answer.text().await.expect("text");
        if status >= 400 {
            self.errors.push(format!("{status} {head} {text}"));
        }
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    /// Every verb once, well and badly. Returns the session's path.
    async fn work(&mut self) -> String {
        let create = json!({
            "businessId": "canary-business", "userId": "canary-user", "locationId": "canary-location",
            "sessionType": "canary-type", "title": "canary-title", "metadata": {"canary-key": {"a": "canary-value"}},
        });
        let (_, session) = self.call(Method::POST, "/api/sessions", create.clone()).await;
        self.call(Method::POST, "/api/sessions", create).await;
        let id = session["sessionId"].as_str().unwrap_or("00000000-0000-8000-8000-000000000000");
        let path = format!("/api/sessions/{id}");
        let messages = format!("{path}/messages");
        // Which of the messages it is that conflicts, whoever sent them is told.
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
async fn nothing_that_users_say_comes_out() {
    let redis = RedisServer::start(IN_MEMORY);
    let flags = ["--request-deadline", "500ms", "--log", "trace"];
    let (mut service, base) = Process::serve(&flags, &[("REDIS_URL", &redis.url())]);
    let mut caller = Caller { client: Client::new(), base, errors: Vec::new() };
    patiently(async { while caller.call(Method::GET, "/readyz", Value::Null).await.0 != 200 {} }).await;
    let path = caller.work().await;
    let of_bugs = |errors: &[String]| errors.iter().filter(|error| error.starts_with("500")).count();
    assert_eq!(of_bugs(&caller.errors), 0, "{:#?}", caller.errors);

    // What others wrote into Redis, or what a connection mixes up, is not repeated either.
    let look = redis.look().await;
    let of_kind = |keys: &[String], kind: &str| keys.iter().find(|key| key.contains(kind)).expect("a key").clone();
    let keys = look.keys().await;
    let (session, pointer) = (of_kind(&keys, "}:s:"), of_kind(&keys, "}:a:"));
    look.command(&["HSET", &session, "metadata", "\"canary-stored\""]).await;
    caller.call(Method::PATCH, &path, json!({"metadata": {"a": 1}})).await;
    for field in ["messageCount", "status", "createdAt", "endReason", "sessionId"] {
        look.command(&["HSET", &session, field, "canary-field"]).await;
        caller.call(Method::GET, &path, Value::Null).await;
    }
    look.command(&["SET", &pointer, "canary-pointer"]).await;
    caller.call(Method::GET, &format!("{USER_PATH}/active"), Value::Null).await;
    look.command(&["DEL", &pointer]).await;
    look.command(&["HSET", &pointer, "canary-a", "canary-b"]).await;
    caller.call(Method::GET, &format!("{USER_PATH}/active"), Value::Null).await;
    caller.work().await;
    assert!(of_bugs(&caller.errors) > 6, "{:#?}", caller.errors);

    redis.signal(Signal::STOP);
    caller.call(Method::GET, &format!("{USER_PATH}/active"), Value::Null).await;
    caller.call(Method::POST, "/api/sessions", json!({"businessId": "canary-business", "userId": "canary-user"})).await;
    redis.signal(Signal::CONT);
    caller.errors.push(Scrape::of(&service).await.text);
    service.signal(Signal::TERM);
    service.wait();
    let found = service.lines.iter().chain(&caller.errors).filter(|text| text.contains("canary"));
    let found: Vec<_> = found.collect();
    assert!(found.is_empty(), "{found:#?}");
    for logged in ["internal error", "could not serve", "\"answered\"", "\"TRACE\""] {
        assert!(service.lines.iter().any(|line| line.contains(logged)), "{logged} was not logged");
    }
}
