//! Sends HTTP requests made from fuzz input to the complete router, on an embedded Redis.

#![expect(clippy::disallowed_methods, reason = "finds the Redis server through PATH")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use clap::Parser;
use http_body_util::BodyExt;
use serde_json::Value;
use sessiond::audit::{AuditOptions, audit};
use sessiond::bootstrap;
use sessiond::config::Cli;
use sessiond::embedded_redis::{EmbeddedRedis, find_server};
use sessiond::http::{Api, AppState};
use sessiond::session::Timestamp;
use sessiond::store::RedisAddress;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

/// Separates the requests of one input.
const SEPARATOR: &[u8] = b"\n===\n";
/// Placeholder in a request for the session id of the last response that had one.
const SESSION: &[u8] = b"$id";
/// Placeholder in a request for the target of the last `Link` header.
const LINK: &[u8] = b"$link";
const REQUESTS_MAX: usize = 12;
/// How far the injected clock starts ahead of Redis's clock, so Redis expires no key while an input runs.
const AHEAD_MS: i64 = 24 * 60 * 60 * 1000;

/// The router on an embedded Redis, which is flushed before each input.
pub struct Requests {
    runtime: Runtime,
    app: Arc<AppState>,
    router: Api,
    clock_ms: Arc<AtomicI64>,
    start_ms: i64,
    redis: BufReader<UnixStream>,
    /// The Redis command that stores the layout version.
    set_layout: String,
    _server: EmbeddedRedis,
}

impl Requests {
    /// Starts an embedded Redis in `folder`, and a router that uses it.
    pub fn start(folder: &Path) -> Self {
        let search_path = std::env::var("PATH").expect("PATH");
        let program = find_server(None, &search_path).expect("a redis-server; deploy/ensure-redis installs one");
        let server = EmbeddedRedis::start(&program, folder).expect("an embedded Redis");
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        // The skew check is off, because the injected clock is ahead of Redis's.
        let flags = ["sessiond", "--request-deadline", "10s", "--data-dir", "unused", "--max-clock-skew", "0"];
        let config = Cli::try_parse_from(flags).expect("good flags").settings.check().expect("good settings");
        let start_ms = bootstrap::system_now().0 + AHEAD_MS;
        let clock_ms = Arc::new(AtomicI64::new(start_ms));
        let clock = {
            let clock_ms = clock_ms.clone();
            Arc::new(move || Timestamp(clock_ms.load(Ordering::Relaxed)))
        };
        let redis = BufReader::new(UnixStream::connect(server.socket()).expect("a connection"));
        let app = runtime.block_on(async {
            let credentials = bootstrap::credentials(&config).expect("no credentials");
            let app = bootstrap::app_state(&config, RedisAddress::Socket(server.socket()), credentials, clock)
                .expect("the app state");
            while app.store.ready().await.is_err() {}
            app
        });
        let router = Api::new(app.clone());
        let mut requests =
            Self { runtime, app, router, clock_ms, start_ms, redis, set_layout: String::new(), _server: server };
        // No data has to survive a restart.
        requests.redis("CONFIG SET appendonly no");
        requests.set_layout = format!("SET sd:layout {}", requests.redis("GET sd:layout").trim_end());
        requests
    }

    /// Sends an inline command whose reply is one line or a bulk string, and returns that. Panics on an error reply.
    fn redis(&mut self, command: &str) -> String {
        self.redis.get_mut().write_all(format!("{command}\r\n").as_bytes()).expect("the command is sent");
        let mut line = String::new();
        self.redis.read_line(&mut line).expect("a reply");
        assert!(!line.is_empty() && !line.starts_with('-'), "{command}: {line}");
        match line.trim_end().strip_prefix('$') {
            Some(length) => {
                let mut text = vec![0; length.parse::<usize>().expect("a length") + 2];
                self.redis.read_exact(&mut text).expect("the string of the reply");
                String::from_utf8_lossy(&text).into_owned()
            }
            None => line,
        }
    }

    /// How many changes Redis has counted since its last save.
    fn changes(&mut self) -> u64 {
        let reply = self.redis("INFO persistence");
        let count = reply.lines().find_map(|line| line.strip_prefix("rdb_changes_since_last_save:"));
        count.and_then(|count| count.parse().ok()).expect("a count")
    }

    /// Sends the requests of an input one after another. Panics if a response violates the contract (`docs/api.md`), or
    /// if the audit finds a defect in the stored data afterwards.
    pub fn run(&mut self, input: &[u8]) {
        self.redis("FLUSHALL");
        // FLUSHALL removed the layout version. Without it, the store would write it again during some request.
        let set_layout = self.set_layout.clone();
        self.redis(&set_layout);
        self.clock_ms.store(self.start_ms, Ordering::Relaxed);
        let mut session = b"f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e".to_vec();
        let mut link = b"/".to_vec();
        for text in split(input, SEPARATOR).take(REQUESTS_MAX) {
            if let Some(advance) = text.strip_prefix(b"@") {
                let ms = std::str::from_utf8(advance).ok().and_then(|ms| ms.trim().parse::<u32>().ok());
                self.clock_ms.fetch_add(ms.unwrap_or(0).into(), Ordering::Relaxed);
                continue;
            }
            let Some(request) = request(&replace_all(&replace_all(text, SESSION, &session), LINK, &link)) else {
                continue;
            };
            let response = self.send(request);
            if let Some(id) = response.body["sessionId"].as_str() {
                session = id.as_bytes().to_vec();
            }
            if let Some(next) = response.headers.get("link") {
                let next = next.as_bytes().split(|byte| *byte == b'>').next().unwrap_or_default();
                link = next.strip_prefix(b"<").expect("a link").to_vec();
            }
        }
        let clock = Timestamp(self.clock_ms.load(Ordering::Relaxed));
        let options = AuditOptions { keys_per_second_max: u32::MAX, repair: false };
        let report = self.runtime.block_on(audit(&self.app.store, options, &|| clock, &|_| ())).expect("a report");
        assert!(report.findings.is_empty(), "{report}");
    }

    /// Sends a request and checks the response. Panics if a rejected request changed Redis.
    fn send(&mut self, request: Request<Body>) -> Response {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let changes = self.changes();
        let (status, headers, body) = self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
            let (parts, body) = response.into_parts();
            // An event stream has no end of its own.
            let is_stream = parts.headers.get("content-type").is_some_and(|kind| kind == "text/event-stream");
            let bytes = if is_stream { Bytes::new() } else { body.collect().await.expect("a body").to_bytes() };
            (parts.status, parts.headers, bytes)
        });
        let response = Response::new(status, headers, &body);
        response.check(&format!("{method} {uri}"), method == Method::HEAD);
        let rejected = !status.is_success();
        assert!(!rejected || self.changes() == changes, "{method} {uri}: {status}, but Redis has changed");
        response
    }
}

struct Response {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Response {
    /// Parses the body if it is JSON. Panics if it is not what its `Content-Type` says.
    fn new(status: StatusCode, headers: HeaderMap, body: &Bytes) -> Self {
        let content_type = headers.get("content-type").map_or("", |value| value.to_str().expect("text"));
        let body = match content_type {
            "application/json" | "application/problem+json" if !body.is_empty() => {
                serde_json::from_slice(body).unwrap_or_else(|error| panic!("{error}: {body:?}"))
            }
            _ => Value::Null,
        };
        Self { status, headers, body }
    }

    /// Panics if the response violates the contract: `docs/api.md`, Conventions and Errors.
    fn check(&self, what: &str, is_head: bool) {
        let Self { status, headers, body } = self;
        let what = format!("{what}: {status} {headers:?} {body}");
        let request_id = headers.get("x-request-id").and_then(|id| id.to_str().ok()).expect(&what);
        let visible = request_id.bytes().all(|byte| byte.is_ascii_graphic());
        assert!(visible && (1..=128).contains(&request_id.len()), "{what}");
        assert!(!status.is_server_error(), "{what}");
        if status.is_client_error() {
            assert_eq!(headers["content-type"], "application/problem+json", "{what}");
        }
        if status.is_client_error() && !is_head {
            let code = Value::from(status.as_u16());
            let title = Value::from(status.canonical_reason().expect(&what));
            assert!(body["type"] == "about:blank" && body["requestId"] == request_id, "{what}");
            assert!(body["status"] == code && body["statusCode"] == code, "{what}");
            assert!(body["title"] == title && body["error"] == title, "{what}");
            assert!(body["detail"].is_string() && body["detail"] == body["message"], "{what}");
            assert!(body["code"].is_string(), "{what}");
        }
    }
}

/// Parses a request: method and target, one line per header, an empty line, the body. `None` for a request that an HTTP
/// library would not pass on.
fn request(text: &[u8]) -> Option<Request<Body>> {
    let (head, body) = match split_once(text, b"\n\n") {
        Some((head, body)) => (head, body.to_vec()),
        None => (text, Vec::new()),
    };
    let mut lines = split(head, b"\n");
    let (method, target) = split_once(lines.next()?, b" ")?;
    let mut request = Request::builder().method(Method::from_bytes(method).ok()?).uri(target);
    for line in lines {
        let (name, value) = split_once(line, b":")?;
        request = request.header(name, value.trim_ascii());
    }
    // Requests without `Host` are rejected first, so inputs that lack one get it here.
    if request.headers_ref().is_some_and(|headers| !headers.contains_key("host")) {
        request = request.header("host", "fuzz");
    }
    request.body(Body::from(body)).ok()
}

fn split_once<'a>(text: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let position = text.windows(separator.len()).position(|window| window == separator)?;
    Some((&text[..position], &text[position + separator.len()..]))
}

fn split<'a>(text: &'a [u8], separator: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let (first, later) = split_once(text, separator).map_or((text, None), |(first, later)| (first, Some(later)));
        rest = later;
        Some(first)
    })
}

fn replace_all(text: &[u8], name: &[u8], value: &[u8]) -> Vec<u8> {
    split(text, name).collect::<Vec<_>>().join(value)
}
