//! Connections to Redis that swap replies, or that close after a command was run and before its reply arrives.

use std::ops::RangeInclusive;
use std::time::Instant;

use serde_json::json;

use crate::support::process::{Process, TEST_TIMEOUT};
use crate::support::redis::{shared, shared_url};
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
        Self::start_with(prefix, &[]).await
    }

    async fn start_with(prefix: &str, flags: &[&str]) -> Self {
        let proxy = ReplyProxy::start(shared()).await;
        let prefix = format!("sd:{prefix}-{}", std::process::id());
        let url = proxy.url.clone();
        let mut args = vec!["--event-loops", "1"];
        args.extend(flags);
        let mut args: Vec<_> = args.into_iter().map(str::to_owned).collect();
        args.extend(["--key-prefix".to_owned(), prefix]);
        let start = move || {
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            Process::serve(&args, &[("REDIS_URL", &url)])
        };
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

    /// Waits until the proxy holds back the command that it was armed for.
    async fn command_held(&self) {
        let started = Instant::now();
        while self.proxy.armed() != Fault::Held {
            assert!(started.elapsed() < TEST_TIMEOUT, "no such command: {:?}", self.proxy.armed());
            tokio::task::yield_now().await;
        }
    }

    async fn session_of(&self, user: &str) -> String {
        let (_, session) = self.post("/api/sessions", json!({"businessId": "b", "userId": user})).await;
        format!("/api/sessions/{}", session["sessionId"].as_str().expect("an id"))
    }
}

/// A service with the data of a proxied one, and without a proxy: that of the other delays every reply.
struct DirectService {
    _process: Process,
    base: String,
    client: reqwest::Client,
}

impl DirectService {
    fn start(prefix: &str) -> Self {
        let prefix = format!("sd:{prefix}-{}", std::process::id());
        let (process, base) = Process::serve(&["--key-prefix", &prefix], &[("REDIS_URL", &shared_url())]);
        Self { _process: process, base, client: reqwest::Client::new() }
    }

    /// Creates the session of an Idempotency-Key, always with the same id. Returns its path.
    async fn create(&self) -> String {
        let body = json!({"businessId": "b", "userId": "u"});
        let request = self.client.post(format!("{}/api/sessions", self.base)).json(&body);
        let (status, session) = send(request.header("idempotency-key", "0123456789abcdef")).await;
        assert_eq!(status, 201, "{session}");
        format!("/api/sessions/{}", session["sessionId"].as_str().expect("an id"))
    }

    async fn append(&self, messages: &str, message: serde_json::Value) {
        let (status, body) = send(self.client.post(format!("{}{messages}", self.base)).json(&message)).await;
        assert_eq!(status, 201, "{body}");
    }

    async fn delete(&self, path: &str) {
        let deleted = self.client.delete(format!("{}{path}", self.base)).send().await;
        assert_eq!(deleted.expect("a response").status(), 204);
    }
}

fn message_of(id: &str) -> serde_json::Value {
    json!({"messageId": id, "role": "user", "content": id})
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

/// Between the reads of a message's seq and of the message, the session is deleted and created again by its
/// Idempotency-Key, with another message at the same seq.
#[tokio::test]
async fn a_message_of_a_recreated_session_is_not_returned() {
    let service = ProxiedService::start("anew").await;
    let direct = DirectService::start("anew");
    let session = direct.create().await;
    let messages = format!("{session}/messages");
    direct.append(&messages, message_of("first")).await;
    service.proxy.arm(Fault::Hold("LRANGE"));
    let replace = async {
        service.command_held().await;
        direct.delete(&session).await;
        assert_eq!(direct.create().await, session);
        direct.append(&messages, message_of("second")).await;
        service.proxy.release();
    };
    let path = format!("{messages}/first");
    let ((status, body), ()) = tokio::join!(service.get(&path), replace);
    assert_eq!((status, &body["code"]), (404, &json!("message_not_found")), "{body}");
}

/// An array with a known message takes two runs of the script. Between them, another service changes the message, or
/// deletes the session and creates it again by its Idempotency-Key.
#[tokio::test]
async fn a_known_message_is_returned_as_it_is_when_the_others_are_appended() {
    let service = ProxiedService::start("known").await;
    let direct = DirectService::start("known");
    let session = direct.create().await;
    let messages = format!("{session}/messages");
    direct.append(&messages, message_of("known")).await;
    for (id, is_recreated, content) in [("new", false, json!(null)), ("newer", true, json!("known"))] {
        // Only the second run has the stored message.
        service.proxy.arm(Fault::Hold("{\"seq\":1,"));
        let change = async {
            service.command_held().await;
            if is_recreated {
                direct.delete(&session).await;
                assert_eq!(direct.create().await, session);
            } else {
                direct.delete(&format!("{messages}/known")).await;
            }
            service.proxy.release();
        };
        let body = json!([message_of("known"), message_of(id)]);
        let ((status, body), ()) = tokio::join!(service.post(&messages, body), change);
        assert_eq!((status, &body[0]["content"], &body[0]["seq"]), (201, &content, &json!(1)), "{body}");
        assert_eq!((&body[1]["content"], &body[1]["seq"]), (&json!(id), &json!(2)), "{body}");
        assert_eq!(service.get(&messages).await.1, body);
    }
}

/// A session with 100 messages, of which a service keeps 100. 30 more are appended between the two reads of each page:
/// of the session, and of its messages. So every index changes, and the messages from 1 to 30 are gone.
#[tokio::test]
async fn pages_are_right_if_messages_are_appended_and_trimmed_between_their_reads() {
    let service = ProxiedService::start_with("shifted", &["--messages-kept", "100"]).await;
    let messages =
        |from: u32, to: u32| json!((from..=to).map(|n| json!({"role": "user", "content": n})).collect::<Vec<_>>());
    let pages = [
        ("limit=10", 91..=100),
        ("limit=10&before=50", 40..=49),
        ("limit=10&before=101", 91..=100),
        ("limit=10&after=60", 61..=70),
        // The messages to read are gone. The page starts at the oldest message that is kept.
        ("limit=10&after=0", 31..=40),
        ("limit=10&before=11", RangeInclusive::new(1, 0)),
    ];
    for (index, (query, expected)) in pages.into_iter().enumerate() {
        let path = format!("{}/messages", service.session_of(&format!("u{index}")).await);
        assert_eq!(service.post(&path, messages(1, 100)).await.0, 201);
        service.proxy.arm(Fault::Hold("LRANGE"));
        let url = format!("{path}?{query}");
        let append = async {
            service.command_held().await;
            assert_eq!(service.post(&path, messages(101, 130)).await.0, 201);
            service.proxy.release();
        };
        let ((status, page), ()) = tokio::join!(service.get(&url), append);
        assert_eq!(status, 200, "{query}: {page}");
        let read = page.as_array().expect("an array").iter().map(|message| {
            assert_eq!(message["seq"], message["content"], "{query}");
            message["seq"].as_u64().expect("a number")
        });
        assert_eq!(read.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{query}");
    }
}
