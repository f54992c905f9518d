//! Connections to Redis that swap replies, or that close after a command was run and before its reply arrives.

use std::time::Instant;

use serde_json::json;

use crate::support::process::{Process, TEST_TIMEOUT};
use crate::support::redis::shared;
use crate::support::reply_proxy::{Fault, ReplyProxy};

/// A service whose connections to Redis pass through a proxy. It has one worker, so there is one connection of each
/// kind.
struct ProxiedService {
    proxy: ReplyProxy,
    _process: Process,
    base: String,
    client: reqwest::Client,
}

impl ProxiedService {
    async fn start(prefix: &str) -> Self {
        let proxy = ReplyProxy::start(shared()).await;
        let prefix = format!("sd:{prefix}-{}", std::process::id());
        let url = proxy.url.clone();
        let start = move || Process::serve(&["--event-loops", "1", "--key-prefix", &prefix], &[("REDIS_URL", &url)]);
        // The proxy runs on this test's thread, so the blocking start needs another one.
        let (process, base) = tokio::task::spawn_blocking(start).await.expect("no panic");
        Self { proxy, _process: process, base, client: reqwest::Client::new() }
    }

    async fn post(&self, path: &str, body: serde_json::Value) -> (u16, serde_json::Value) {
        send(self.client.post(format!("{}{path}", self.base)).json(&body)).await
    }

    async fn get(&self, path: &str) -> (u16, serde_json::Value) {
        send(self.client.get(format!("{}{path}", self.base))).await
    }

    /// Repeats a `GET` until the service has reconnected to Redis.
    async fn get_after_reconnect(&self, path: &str) -> (u16, serde_json::Value) {
        let started = Instant::now();
        loop {
            match self.get(path).await {
                (503, body) => assert!(started.elapsed() < TEST_TIMEOUT, "no new connection: {body}"),
                response => return response,
            }
        }
    }

    async fn session_of(&self, user: &str) -> String {
        let (_, session) = self.post("/api/sessions", json!({"businessId": "b", "userId": user})).await;
        format!("/api/sessions/{}", session["sessionId"].as_str().expect("an id"))
    }
}

async fn send(request: reqwest::RequestBuilder) -> (u16, serde_json::Value) {
    let response = request.send().await.expect("a response");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

#[tokio::test]
async fn swapped_replies_are_detected() {
    let service = ProxiedService::start("swapped").await;
    let (first, second) = (service.session_of("first").await, service.session_of("second").await);
    // Wait for the read connection, because both reads must use it.
    let (read, started) = (Fault::Observe("HGETALL"), Instant::now());
    service.proxy.arm(read.clone());
    while service.proxy.armed() == read {
        assert!(started.elapsed() < TEST_TIMEOUT, "no read connection");
        service.get(&first).await;
    }
    service.proxy.arm(Fault::SwapSessions);
    let responses = futures_util::future::join(service.get(&first), service.get(&second)).await;
    assert_eq!(service.proxy.armed(), Fault::None, "no replies were swapped");
    for (status, body) in [responses.0, responses.1] {
        assert_eq!((status, &body["code"]), (500, &json!("internal")), "{body}");
    }
    assert_eq!(service.get(&first).await.1["userId"], "first");
    assert_eq!(service.get(&second).await.1["userId"], "second");
}

#[tokio::test]
async fn a_command_whose_reply_is_lost_is_applied_once() {
    let service = ProxiedService::start("cut").await;
    let session = service.session_of("u").await;
    let messages = format!("{session}/messages");
    // Redis knows the script from now on, so the next command with `EVALSHA` is the one that appends.
    service.post(&messages, json!({"role": "user", "content": "first"})).await;
    service.proxy.arm(Fault::CutAfter("EVALSHA"));
    let cut = service.post(&messages, json!({"role": "user", "content": "cut"})).await;
    assert_eq!(service.proxy.armed(), Fault::None, "the connection was not closed");
    assert_eq!((cut.0, &cut.1["code"]), (503, &json!("store_unavailable")), "{cut:?}");
    let (_, stored) = service.get_after_reconnect(&messages).await;
    let contents: Vec<_> = stored.as_array().expect("a list").iter().map(|message| &message["content"]).collect();
    assert_eq!(contents, [&json!("first"), &json!("cut")]);

    // A client that sends a messageId may repeat the call, and gets the response to the first one.
    let message = json!({"messageId": "m", "role": "user", "content": "again"});
    service.proxy.arm(Fault::CutAfter("EVALSHA"));
    assert_eq!(service.post(&messages, message.clone()).await.0, 503);
    service.get_after_reconnect(&session).await;
    let (status, replayed) = service.post(&messages, message).await;
    assert_eq!((status, &replayed["seq"]), (200, &json!(3)), "{replayed}");
    assert_eq!(service.get(&session).await.1["messageCount"], 3);
}
