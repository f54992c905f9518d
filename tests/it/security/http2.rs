//! HTTP/2 on the TLS listener: it is served to clients that offer it, with the same responses and limits as HTTP/1.1.

mod attacks;

use axum::http::{Request, header};
use futures_util::future::join_all;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use hyper::body::Bytes;
use rustix::process::Signal;
use serde_json::json;
use sessiond::auth::Scope;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;

use crate::support::credentials::api_key;
use crate::support::process::{Process, with_timeout};
use crate::support::raw;
use crate::support::redis_server::{IN_MEMORY, RedisServer};
use crate::support::scrape::Scrape;
use crate::support::service::Answer;

use super::Target;
use super::tls::{Files, HOST, Pair, connect, connector, exchange};

const WINDOW: u32 = 65_535;
const CONNECTION_WINDOW: u32 = 1 << 26;
/// Longer than any test waits, so no connection ends because of a timeout.
const LONG: [&str; 4] = ["--receive-timeout", "1h", "--keep-alive-timeout", "1h"];
const TABS: usize = 8;

/// A service with HTTPS.
struct Https {
    target: Target,
    pair: Pair,
    _folder: TempDir,
}

impl Https {
    async fn start(name: &str, flags: &[&str]) -> Self {
        let (folder, pair) = (TempDir::new().expect("a folder"), Pair::make(name));
        let files = Files::of(folder.path(), &pair);
        let target = Target::start(name, &[flags, &files.flags()].concat()).await;
        Self { target, pair, _folder: folder }
    }

    async fn client(&self) -> Client {
        Client::connect(&self.target, &self.pair, WINDOW).await
    }
}

/// An HTTP/2 connection.
struct Client {
    sender: SendRequest<Bytes>,
    /// Ends with the connection.
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    /// Connects a client whose streams start with this window.
    async fn connect(target: &Target, pair: &Pair, window: u32) -> Self {
        let io = connect(target, &connector(&[pair], &[b"h2"])).await.expect("a handshake");
        let mut builder = Builder::new();
        builder.initial_window_size(window).initial_connection_window_size(CONNECTION_WINDOW);
        let (sender, connection) = builder.handshake(io).await.expect("a connection");
        Self { sender, connection: tokio::spawn(connection) }
    }

    /// Starts a call.
    async fn start(&mut self, request: axum::http::request::Builder, body: &str) -> ResponseFuture {
        let request = request.body(()).expect("a request");
        let mut sender = self.sender.clone().ready().await.expect("an open connection");
        let (response, mut sending) = sender.send_request(request, body.is_empty()).expect("an open connection");
        if !body.is_empty() {
            sending.send_data(Bytes::copy_from_slice(body.as_bytes()), true).expect("an open stream");
        }
        response
    }

    async fn call(&mut self, request: axum::http::request::Builder, body: &str) -> Answer {
        let response = self.start(request, body).await;
        with_timeout(answer(response)).await.expect("a response")
    }

    async fn get(&mut self, path: &str) -> Answer {
        self.call(request("GET", path), "").await
    }

    async fn post(&mut self, path: &str, body: &serde_json::Value) -> Answer {
        let request = request("POST", path).header("content-type", "application/json");
        self.call(request, &body.to_string()).await
    }
}

fn request(method: &str, path: &str) -> axum::http::request::Builder {
    Request::builder().method(method).uri(format!("https://{HOST}{path}"))
}

async fn answer(response: ResponseFuture) -> Result<Answer, h2::Error> {
    let (head, mut body) = response.await?.into_parts();
    let mut text = Vec::new();
    while let Some(data) = next(&mut body).await? {
        text.extend_from_slice(&data);
    }
    Ok(Answer { status: head.status, headers: head.headers, text: String::from_utf8(text).expect("text") })
}

/// The next part of a body, or `None` at its end.
async fn next(body: &mut RecvStream) -> Result<Option<Bytes>, h2::Error> {
    let Some(data) = body.data().await.transpose()? else { return Ok(None) };
    body.flow_control().release_capacity(data.len())?;
    Ok(Some(data))
}

#[tokio::test]
async fn clients_get_the_protocol_that_they_offer() {
    let Https { target, pair, .. } = Https::start("alpn", &LONG).await;
    for (offered, chosen) in [
        (vec![b"h2".as_slice(), b"http/1.1"], Some(b"h2".as_slice())),
        (vec![b"http/1.1", b"h2"], Some(b"h2")),
        (vec![b"h2"], Some(b"h2")),
        (vec![b"http/1.1"], Some(b"http/1.1")),
        (vec![], None),
    ] {
        let mut stream = connect(&target, &connector(&[&pair], &offered)).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), chosen, "{offered:?}");
        if chosen == Some(b"h2") {
            let (sender, connection) = h2::client::handshake(stream).await.expect("a connection");
            let mut client = Client { sender, connection: tokio::spawn(connection) };
            client.get("/livez").await.expect(200);
        } else {
            assert_eq!(with_timeout(exchange(&mut stream)).await, 200, "{offered:?}");
        }
    }
    assert!(connect(&target, &connector(&[&pair], &[b"h3"])).await.is_err());
}

#[tokio::test]
async fn calls_and_errors_are_those_of_http1() {
    let folder = TempDir::new().expect("a folder");
    let (credential, entry) = api_key("key", &["b"], &Scope::ALL, None);
    let keys = folder.path().join("keys.toml");
    std::fs::write(&keys, entry).expect("a file");
    let flags = [&LONG[..], &["--log", "trace", "--api-keys-file", keys.to_str().expect("a path")]].concat();
    let mut https = Https::start("h2", &flags).await;
    let mut client = https.client().await;
    let with_key = |method, path: &str| request(method, path).header("x-api-key", &credential);
    let body = json!({"businessId": "b", "userId": "u", "title": "canary-title"}).to_string();
    let create = || with_key("POST", "/api/sessions").header("content-type", "application/json");
    let session = client.call(create().header("x-request-id", "mine"), &body).await.expect(201);
    assert_eq!(session.header("x-request-id"), Some("mine"));
    let path = format!("/api/sessions/{}", session.string("sessionId"));
    assert_eq!(client.call(create(), &body).await.expect(200).string("sessionId"), session.string("sessionId"));
    let messages = format!("{path}/messages");
    let message = json!({"role": "user", "content": "canary-content"}).to_string();
    let append = with_key("POST", &messages).header("content-type", "application/json");
    client.call(append, &message).await.expect(201);
    let page = client.call(with_key("GET", &messages), "").await.expect(200);
    assert_eq!(page.json()[0]["content"], "canary-content");

    client.get(&path).await.expect_problem(401, "unauthorized");
    client.call(with_key("GET", "/api/sessions/business/c/active"), "").await.expect_problem(403, "forbidden");
    client.call(with_key("GET", "/nowhere"), "").await.expect_problem(404, "route_not_found");
    client.call(create(), "{").await.expect_problem(400, "invalid_request");
    client.call(create(), &" ".repeat(300_000)).await.expect_problem(413, "payload_too_large");
    let long = format!("/livez?{}", "a".repeat(9000));
    client.get(&long).await.expect_problem(414, "uri_too_long");
    client
        .call(request("GET", "/livez").header("a", "b".repeat(70_000)), "")
        .await
        .expect_problem(431, "headers_too_large");
    // The response to a `HEAD` has the headers of a `GET`, and no body.
    for (path, status) in [(path.as_str(), 200), ("/nowhere", 404)] {
        let [get, head] = ["GET", "HEAD"].map(|method| with_key(method, path).header("x-request-id", "mine"));
        let [get, head] = [client.call(get, "").await.expect(status), client.call(head, "").await.expect(status)];
        assert_eq!((head.text.as_str(), head.header("content-length")), ("", get.header("content-length")), "{path}");
    }

    // Texts of users and secrets are not logged.
    https.target.service.signal(Signal::TERM);
    https.target.service.wait();
    let secret = credential.split_once('.').expect("a secret").1;
    let leaked = |line: &&String| line.contains("canary") || line.contains(secret);
    assert_eq!(https.target.service.lines.iter().find(leaked), None);
}

#[tokio::test]
async fn eight_responses_are_sent_concurrently_on_one_connection() {
    let https = Https::start("tabs", &LONG).await;
    let mut client = https.client().await;
    let session = client.post("/api/sessions", &json!({"businessId": "b", "userId": "u"})).await.expect(201);
    let messages = format!("/api/sessions/{}/messages", session.string("sessionId"));
    for number in 0..10 {
        let message = json!({"role": "user", "content": format!("{number}").repeat(100_000)});
        client.post(&messages, &message).await.expect(201);
    }
    let export = "/api/sessions/business/b/user/u/export";
    let whole = client.get(export).await.expect(200);
    let mut tabs = Vec::new();
    for _ in 0..TABS {
        let response = client.start(request("GET", export), "").await;
        let mut body = with_timeout(response).await.expect("a response").into_body();
        let start = with_timeout(body.data()).await.expect("no end").expect("a part");
        tabs.push((start, body));
    }
    // All of them wait for a larger window. In the meantime, the connection serves other calls.
    client.get(&messages).await.expect(200);
    let read = tabs.into_iter().map(async |(start, mut body)| {
        body.flow_control().release_capacity(start.len()).expect("a window");
        let mut text = start.to_vec();
        while let Some(data) = next(&mut body).await.expect("a part") {
            text.extend_from_slice(&data);
        }
        assert!(text == whole.text.as_bytes());
    });
    with_timeout(join_all(read)).await;
}

#[tokio::test]
async fn requests_name_one_valid_host() {
    let https = Https::start("h2-host", &LONG).await;
    let mut client = https.client().await;
    let host_only = |host: &str| Request::builder().uri("/livez").header(header::HOST, host);
    let both = |authority: &str, host: &str| {
        Request::builder().uri(format!("https://{authority}/livez")).header(header::HOST, host)
    };
    for (request, status) in [
        (Request::builder().uri("https://a/livez"), 200),
        (host_only("a"), 200),
        (both("a:443", "A"), 200),
        (both("[::1]:3000", "[::1]:3000"), 200),
        (Request::builder().uri("/livez"), 400),
        (host_only("a b"), 400),
        (host_only("a").header(header::HOST, "a"), 400),
        (both("a", "b"), 400),
        (both("a", "a:3000"), 400),
        (both("a", "a").header(header::HOST, "a"), 400),
        (Request::builder().uri("https://user@a/livez"), 400),
    ] {
        let text = format!("{request:?}");
        let response = client.call(request, "").await;
        assert_eq!(response.status.as_u16(), status, "{text}: {response:?}");
        if status == 400 {
            response.expect_problem(400, "invalid_request");
        }
    }
}

#[tokio::test]
async fn incomplete_requests_change_nothing() {
    let https = Https::start("h2-cut", &LONG).await;
    let mut client = https.client().await;
    let create = |user: &str| json!({"businessId": "b", "userId": user}).to_string();
    let head = || request("POST", "/api/sessions").header("content-type", "application/json").body(()).expect("a head");
    // The body is complete except for its end. Then the stream is reset, or the connection is closed.
    let (_, mut stream) = client.sender.send_request(head(), false).expect("a stream");
    stream.send_data(create("reset").into(), false).expect("an open stream");
    client.get("/livez").await.expect(200);
    stream.send_reset(Reason::CANCEL);
    let mut closing = https.client().await;
    let (_, mut stream) = closing.sender.send_request(head(), false).expect("a stream");
    stream.send_data(create("closed").into(), false).expect("an open stream");
    closing.get("/livez").await.expect(200);
    closing.connection.abort();
    // With a length, the request is malformed.
    for length in [10, 1000] {
        let response = client.start(request_with_length(length), &create("length")).await;
        let error = with_timeout(response).await.expect_err("no response");
        assert_eq!(error.reason(), Some(Reason::PROTOCOL_ERROR), "{length}");
    }
    client.connection.abort();
    Scrape::until(&https.target.service, |scrape| {
        scrape.value("sessiond_http_connections") == 1 && scrape.value("sessiond_http_requests_in_flight") == 0
    })
    .await;
    assert!(https.target.probe.keys().await.is_empty());
}

fn request_with_length(length: usize) -> axum::http::request::Builder {
    request("POST", "/api/sessions").header("content-type", "application/json").header("content-length", length)
}

#[tokio::test]
async fn connections_count_and_unused_ones_are_closed() {
    let https = Https::start("h2-count", &["--max-connections", "4", "--receive-timeout", "1h"]).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = https.client().await;
        client.get("/livez").await.expect(200);
        clients.push(client);
    }
    assert!(connect(&https.target, &connector(&[&https.pair], &[b"h2"])).await.is_err());
    clients.pop().expect("a client").connection.abort();
    Scrape::until(&https.target.service, |scrape| scrape.value("sessiond_http_connections") == 4).await;
    https.client().await.get("/livez").await.expect(200);

    let https = Https::start("h2-idle", &["--keep-alive-timeout", "500ms"]).await;
    let mut client = https.client().await;
    client.get("/livez").await.expect(200);
    // The service announces that it closes the connection, so this is not an error.
    assert!(with_timeout(client.connection).await.expect("no panic").is_ok());
    // A client that sends no request is closed as well.
    let mut silent = connect(&https.target, &connector(&[&https.pair], &[b"h2"])).await.expect("a handshake");
    let mut received = Vec::new();
    let _ = with_timeout(silent.read_to_end(&mut received)).await;
}

#[tokio::test]
async fn a_service_that_stops_finishes_requests() {
    let redis = RedisServer::start(IN_MEMORY);
    let (folder, pair) = (TempDir::new().expect("a folder"), Pair::make("stop"));
    let files = Files::of(folder.path(), &pair);
    let own = ["--request-deadline", "60s", "--shutdown-grace", "60s"];
    let (service, base) = Process::serve(&[&own[..], &LONG, &files.flags()].concat(), &[("REDIS_URL", &redis.url())]);
    let probe = redis.probe().await;
    let mut target = Target { service, base, probe };
    let mut client = Client::connect(&target, &pair, WINDOW).await;
    client.post("/api/sessions", &json!({"businessId": "b", "userId": "first"})).await.expect(201);
    redis.signal(Signal::STOP);
    let create = request("POST", "/api/sessions").header("content-type", "application/json");
    let response = client.start(create, &json!({"businessId": "b", "userId": "u"}).to_string()).await;
    Scrape::until(&target.service, |scrape| scrape.value("sessiond_http_requests_in_flight") == 1).await;
    target.service.signal(Signal::TERM);
    // The service opens no more streams, but keeps the connection.
    let closing = async {
        while client.sender.clone().ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    with_timeout(closing).await;
    assert!(!client.connection.is_finished());
    redis.signal(Signal::CONT);
    with_timeout(answer(response)).await.expect("a response").expect(201);
    let ended = with_timeout(client.connection).await.expect("no panic");
    assert!(ended.is_ok(), "{ended:?}");
    assert_eq!(target.service.wait().code(), Some(0), "{:#?}", target.service.lines);
}

#[tokio::test]
async fn plain_http_stays_http1() {
    let target = Target::start("h2c", &[]).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    assert_eq!(target.send(preface, false).await, b"");
    // An upgrade (RFC 7540, 3.2) is ignored.
    let upgrade = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings, close\r\nupgrade: h2c\r\n\
        http2-settings: AAMAAABkAAQAAP__\r\n\r\n";
    let responses = raw::answers(&target.send(upgrade, false).await);
    assert_eq!(responses.iter().map(|response| response.status.as_u16()).collect::<Vec<_>>(), [200]);
}
