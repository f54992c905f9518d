//! A connection that mixes up replies, or ends when a command was carried out and nobody has been told.

use std::time::Instant;

use serde_json::json;

use crate::support::process::{PATIENCE, Process};
use crate::support::redis::shared;
use crate::support::reply_proxy::{Fault, ReplyProxy};

/// A process whose connections to Redis lead through a proxy. One event loop, so that there is one of each kind.
struct Behind {
    proxy: ReplyProxy,
    _process: Process,
    base: String,
    client: reqwest::Client,
}

impl Behind {
    async fn start(prefix: &str) -> Self {
        let proxy = ReplyProxy::start(shared()).await;
        let prefix = format!("sd:{prefix}-{}", std::process::id());
        let url = proxy.url.clone();
        let start = move || Process::serve(&["--event-loops", "1", "--key-prefix", &prefix], &[("REDIS_URL", &url)]);
        // The proxy runs on this test's thread.
        let (process, base) = tokio::task::spawn_blocking(start).await.expect("no panic");
        Self { proxy, _process: process, base, client: reqwest::Client::new() }
    }

    async fn post(&self, path: &str, body: serde_json::Value) -> (u16, serde_json::Value) {
        answer(self.client.post(format!("{}{path}", self.base)).json(&body)).await
    }

    async fn get(&self, path: &str) -> (u16, serde_json::Value) {
        answer(self.client.get(format!("{}{path}", self.base))).await
    }

    /// Asks again while there is no connection: the service makes a new one by itself.
    async fn get_again(&self, path: &str) -> (u16, serde_json::Value) {
        let started = Instant::now();
        loop {
            match self.get(path).await {
                (503, answer) => assert!(started.elapsed() < PATIENCE, "no connection again: {answer}"),
                answer => return answer,
            }
        }
    }

    async fn session_of(&self, user: &str) -> String {
        let (_, session) = self.post("/api/sessions", json!({"businessId": "b", "userId": user})).await;
        format!("/api/sessions/{}", session["sessionId"].as_str().expect("an id"))
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, serde_json::Value) {
    let response = request.send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

#[tokio::test]
async fn a_reply_that_belongs_to_another_question_is_no_answer() {
    let behind = Behind::start("swapped").await;
    let (first, second) = (behind.session_of("first").await, behind.session_of("second").await);
    // Once there is a connection for reads, both go by it.
    let (reads, started) = (Fault::Nothing("HGETALL"), Instant::now());
    behind.proxy.arm(reads.clone());
    while behind.proxy.armed() == reads {
        assert!(started.elapsed() < PATIENCE, "no connection for reads");
        behind.get(&first).await;
    }
    behind.proxy.arm(Fault::SwapSessions);
    let answers = futures_util::future::join(behind.get(&first), behind.get(&second)).await;
    assert_eq!(behind.proxy.armed(), Fault::None, "two replies changed places");
    for (status, answer) in [answers.0, answers.1] {
        assert_eq!((status, &answer["code"]), (500, &json!("internal")), "{answer}");
    }
    assert_eq!(behind.get(&first).await.1["userId"], "first");
    assert_eq!(behind.get(&second).await.1["userId"], "second");
}

#[tokio::test]
async fn what_a_cut_connection_carried_out_is_carried_out_once() {
    let behind = Behind::start("cut").await;
    let session = behind.session_of("u").await;
    let messages = format!("{session}/messages");
    // Redis knows the script from now on, so the next command with `EVALSHA` is the one that appends.
    behind.post(&messages, json!({"role": "user", "content": "first"})).await;
    behind.proxy.arm(Fault::CutAfter("EVALSHA"));
    let cut = behind.post(&messages, json!({"role": "user", "content": "cut"})).await;
    assert_eq!(behind.proxy.armed(), Fault::None, "the connection was cut");
    assert_eq!((cut.0, &cut.1["code"]), (503, &json!("store_unavailable")), "{cut:?}");
    let (_, stored) = behind.get_again(&messages).await;
    let contents: Vec<_> = stored.as_array().expect("a list").iter().map(|message| &message["content"]).collect();
    assert_eq!(contents, [&json!("first"), &json!("cut")]);

    // A client that brings an id may ask again, and is told what it would have been told.
    let message = json!({"messageId": "m", "role": "user", "content": "again"});
    behind.proxy.arm(Fault::CutAfter("EVALSHA"));
    assert_eq!(behind.post(&messages, message.clone()).await.0, 503);
    behind.get_again(&session).await;
    let (status, replayed) = behind.post(&messages, message).await;
    assert_eq!((status, &replayed["seq"]), (200, &json!(3)), "{replayed}");
    assert_eq!(behind.get(&session).await.1["messageCount"], 3);
}
