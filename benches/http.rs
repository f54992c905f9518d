//! Measures what an HTTP request costs: every operation through the real server and router. The baselines are `/livez`,
//! which does not use the store, and a bare axum server that responds with the bytes of a session.
//!
//! One keep-alive connection sends one request at a time; client, servers and everything but Redis share one thread. So
//! the figures are latency without queueing. The client sends prebuilt bytes, and parses no more of a response than its
//! status and length.

#![expect(clippy::expect_used, reason = "a benchmark stops at the first error")]
#![expect(clippy::disallowed_methods, reason = "benchmarks find the Redis server through PATH")]

mod support;

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use clap::Parser;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use hyper_util::rt::TokioIo;
use sessiond::config::Cli;
use sessiond::store::RedisAddress;
use sessiond::{bootstrap, http, server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tower::ServiceExt;

const BUSINESS: &str = "B0100001";
/// Sessions of the user whose history is read.
const HISTORY: usize = 100;
/// Messages of the session whose messages are read.
const MESSAGES: usize = 50;

/// A keep-alive connection that sends one request at a time.
struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        Self { stream, received: Vec::new() }
    }

    /// Sends a request and reads the response, which must have this status. Returns the body.
    async fn exchange(&mut self, request: &[u8], status: &str) -> &[u8] {
        self.stream.write_all(request).await.expect("the request is sent");
        self.received.clear();
        loop {
            self.stream.read_buf(&mut self.received).await.expect("a response");
            let Some(head) = self.received.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
            let (whole, length) = (self.received.len(), head + 4 + content_length(&self.received[..head]));
            if whole >= length {
                let text = String::from_utf8_lossy;
                assert_eq!(&self.received[9..12], status.as_bytes(), "{}", text(&self.received));
                return &self.received[head + 4..];
            }
        }
    }

    /// Sends a request and returns the id of the session in the response.
    async fn session(&mut self, request: &[u8], status: &str) -> String {
        let body = self.exchange(request, status).await;
        let session: serde_json::Value = serde_json::from_slice(body).expect("a session");
        session["sessionId"].as_str().expect("an id").to_owned()
    }
}

fn content_length(head: &[u8]) -> usize {
    let name = b"\r\ncontent-length: ";
    let Some(start) = head.windows(name.len()).position(|bytes| bytes == name) else { return 0 };
    let digits = head[start + name.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'))
}

/// The bytes of a request.
fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let (length, json) = (body.len(), "content-type: application/json\r\n");
    let json = if body.is_empty() { "" } else { json };
    format!("{method} {path} HTTP/1.1\r\nhost: bench\r\n{json}content-length: {length}\r\n\r\n{body}").into_bytes()
}

/// `POST /api/sessions` for a user.
fn get_or_create(user: &str, if_active: &str) -> Vec<u8> {
    let body = format!(r#"{{"businessId":"{BUSINESS}","userId":"{user}","ifActive":"{if_active}"}}"#);
    request("POST", "/api/sessions", &body)
}

/// A running service, and a connection to it.
struct Bench {
    runtime: Runtime,
    connection: Mutex<Connection>,
    bare: Mutex<Connection>,
    users: Cell<u32>,
    _redis: support::BenchRedis,
}

impl Bench {
    fn start() -> Self {
        let redis = support::BenchRedis::start();
        let runtime = support::runtime();
        let (service, bare) = runtime.block_on(async {
            let service = serve_sessions(RedisAddress::Socket(redis.socket())).await;
            (Connection::open(service).await, Connection::open(serve_constant().await).await)
        });
        Self { runtime, connection: Mutex::new(service), bare: Mutex::new(bare), users: Cell::new(0), _redis: redis }
    }

    /// A user id that was not used before.
    fn new_user(&self) -> String {
        self.users.set(self.users.get() + 1);
        format!("user_{}", self.users.get())
    }

    /// The id of a session of a new user.
    async fn new_session(&self, connection: &mut Connection) -> String {
        connection.session(&get_or_create(&self.new_user(), "return"), "201").await
    }

    /// Measures one request, repeated.
    fn same(&self, group: &mut BenchmarkGroup<WallTime>, name: &str, status: &str, request: &[u8]) {
        self.each(group, name, status, &async |_, _| vec![request.to_vec()]);
    }

    /// Measures requests that `prepare` builds outside of the measured time: one per iteration, or one for all.
    fn each(
        &self,
        group: &mut BenchmarkGroup<WallTime>,
        name: &str,
        status: &str,
        prepare: &impl AsyncFn(&mut Connection, u64) -> Vec<Vec<u8>>,
    ) {
        self.on(&self.connection, group, name, status, prepare);
    }

    /// The same as `each`, on this connection.
    fn on(
        &self,
        connection: &Mutex<Connection>,
        group: &mut BenchmarkGroup<WallTime>,
        name: &str,
        status: &str,
        prepare: &impl AsyncFn(&mut Connection, u64) -> Vec<Vec<u8>>,
    ) {
        group.bench_function(name, |timer| {
            timer.to_async(&self.runtime).iter_custom(|times| async move {
                let mut connection = connection.lock().await;
                let requests = prepare(&mut connection, times).await;
                let started = Instant::now();
                for request in requests.iter().cycle().zip(0..times).map(|(request, _)| request) {
                    connection.exchange(request, status).await;
                }
                started.elapsed()
            });
        });
    }
}

/// Starts the service with its default settings, except for the rate limit, because one caller sends all requests.
/// Returns its address.
async fn serve_sessions(redis: RedisAddress) -> SocketAddr {
    let cli = Cli::try_parse_from(["sessiond", "--rate-limit", "0"]).expect("good flags");
    let config = cli.settings.check().expect("good settings");
    let credentials = bootstrap::credentials(&config).expect("no credentials");
    let app = bootstrap::app_state(&config, redis, credentials, Arc::new(bootstrap::system_now)).expect("app state");
    // Commands wait until the first connection to Redis is open.
    while app.store.ready().await.is_err() {}
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let connections = bootstrap::connection_settings(&config);
    tokio::spawn(server::serve(
        listener,
        http::Api::new(app),
        connections,
        config.connections.shutdown_grace,
        std::future::pending(),
    ));
    address
}

/// Starts a bare axum server that responds with a constant session. Returns its address.
async fn serve_constant() -> SocketAddr {
    const SESSION: &str = r#"{"sessionId":"f4bcc94a-5785-88ab-887f-b7afa6c6030f","businessId":"B0100001","userId":"user_1","locationId":"L0100001","sessionType":"general","status":"active","title":null,"metadata":{},"messageCount":0,"version":1,"createdAt":"2026-11-22T20:11:35.749Z","updatedAt":"2026-11-22T20:11:35.749Z","lastActivityAt":"2026-11-22T20:11:35.749Z","expiresAt":"2026-11-22T20:41:35.749Z","endedAt":null,"endReason":null}"#;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let router = Router::new().route("/", get(async || ([(CONTENT_TYPE, "application/json")], SESSION)));
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("the one connection");
        stream.set_nodelay(true).expect("a socket");
        let service = hyper::service::service_fn(move |request| router.clone().oneshot(request));
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
    });
    address
}

fn operations(criterion: &mut Criterion) {
    let bench = Bench::start();
    let mut group = criterion.benchmark_group("http");
    bench.on(&bench.bare, &mut group, "bare_axum", "200", &async |_, _| vec![request("GET", "/", "")]);
    bench.same(&mut group, "livez", "200", &request("GET", "/livez", ""));

    let (user, others) = (bench.new_user(), format!("/api/sessions/business/{BUSINESS}"));
    let known = get_or_create(&user, "return");
    let id = bench.runtime.block_on(async { bench.connection.lock().await.session(&known, "201").await });
    let path = format!("/api/sessions/{id}");
    bench.same(&mut group, "get_or_create/resume", "200", &known);
    bench.each(&mut group, "get_or_create/create", "201", &async |_, times| {
        (0..times).map(|_| get_or_create(&bench.new_user(), "return")).collect()
    });
    bench.same(&mut group, "get", "200", &request("GET", &path, ""));
    bench.same(&mut group, "get_active", "200", &request("GET", &format!("{others}/user/{user}/active"), ""));
    bench.same(&mut group, "list_active/50", "200", &request("GET", &format!("{others}/active"), ""));
    bench.same(&mut group, "update/heartbeat", "200", &request("PATCH", &path, "{}"));
    bench.each(&mut group, "update/title", "200", &async |_, times| {
        (0..times).map(|time| request("PATCH", &path, &format!(r#"{{"title":"Title {time}"}}"#))).collect()
    });
    bench.each(&mut group, "delete", "204", &async |connection, times| {
        let mut requests = Vec::new();
        for _ in 0..times {
            let id = bench.new_session(connection).await;
            requests.push(request("DELETE", &format!("/api/sessions/{id}"), ""));
        }
        requests
    });
    bench.each(&mut group, "erase_user/1", "200", &async |connection, times| {
        let mut requests = Vec::new();
        for _ in 0..times {
            let user = bench.new_user();
            connection.exchange(&get_or_create(&user, "return"), "201").await;
            requests.push(request("DELETE", &format!("{others}/user/{user}"), ""));
        }
        requests
    });
    group.finish();
}

/// Measures operations that need more than one session or message.
fn lists(criterion: &mut Criterion) {
    let bench = Bench::start();
    let mut group = criterion.benchmark_group("http");
    let user = bench.new_user();
    let path = bench.runtime.block_on(async {
        let mut connection = bench.connection.lock().await;
        for _ in 1..HISTORY {
            connection.exchange(&get_or_create(&user, "replace"), "201").await;
        }
        let id = connection.session(&get_or_create(&user, "replace"), "201").await;
        format!("/api/sessions/{id}/messages")
    });
    let history = format!("/api/sessions/business/{BUSINESS}/user/{user}/history");
    bench.same(&mut group, "list_history/20", "200", &request("GET", &history, ""));
    let append = request("POST", &path, r#"{"role":"user","content":"When do you open?"}"#);
    bench.runtime.block_on(async {
        for _ in 0..MESSAGES {
            bench.connection.lock().await.exchange(&append, "201").await;
        }
    });
    bench.same(&mut group, "list_messages/50", "200", &request("GET", &path, ""));
    bench.same(&mut group, "append_messages/1", "201", &append);
    group.finish();
}

criterion_group!(benches, operations, lists);
criterion_main!(benches);
