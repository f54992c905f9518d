//! Requests to the whole router, made from bytes, with a Redis of their own.

#![expect(clippy::disallowed_methods, reason = "the server program is found in the environment")]

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
use sessiond::config::Cli;
use sessiond::http::{Api, App};
use sessiond::server;
use sessiond::session::Timestamp;
use sessiond::store::RedisAddress;
use sessiond::store::embedded::{EmbeddedRedis, find_server};
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

/// What stands between two requests of one input.
const SEPARATOR: &[u8] = b"\n===\n";
/// What a request may name of an earlier answer: the last session's id, and where the last `Link` led.
const SESSION: &[u8] = b"$id";
const LINK: &[u8] = b"$link";
const REQUESTS_MAX: usize = 12;
/// The clock starts ahead of Redis's own, so that Redis expires nothing meanwhile.
const AHEAD_MS: i64 = 24 * 60 * 60 * 1000;

/// A router on a private Redis, which is emptied for each input.
pub struct Requests {
    runtime: Runtime,
    app: Arc<App>,
    router: Api,
    clock_ms: Arc<AtomicI64>,
    start_ms: i64,
    redis: BufReader<UnixStream>,
    /// The command that writes the version of the layout.
    set_layout: String,
    _server: EmbeddedRedis,
}

impl Requests {
    /// Starts a Redis in this folder, and a router on it.
    pub fn start(folder: &Path) -> Self {
        let search_path = std::env::var("PATH").expect("PATH");
        let program = find_server(None, &search_path).expect("a redis-server; deploy/ensure-redis installs one");
        let server = EmbeddedRedis::start(&program, folder).expect("a private Redis");
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        // The clock is ahead.
        let flags = ["sessiond", "--request-deadline", "10s", "--data-dir", "unused", "--max-clock-skew", "0"];
        let config = Cli::try_parse_from(flags).expect("good flags").settings.check().expect("good settings");
        let start_ms = server::system_now().0 + AHEAD_MS;
        let clock_ms = Arc::new(AtomicI64::new(start_ms));
        let clock = {
            let clock_ms = clock_ms.clone();
            Arc::new(move || Timestamp(clock_ms.load(Ordering::Relaxed)))
        };
        let redis = BufReader::new(UnixStream::connect(server.socket()).expect("a connection"));
        let app = runtime.block_on(async {
            let credentials = server::credentials(&config).expect("none");
            let app = server::app(&config, RedisAddress::Socket(server.socket()), credentials, clock).expect("an app");
            while app.store.ready().await.is_err() {}
            app
        });
        let router = Api::new(app.clone());
        let mut requests = Self { runtime, app, router, clock_ms, start_ms, redis, set_layout: String::new(), _server: server };
        // Nothing has to outlive an input.
        requests.redis("CONFIG SET appendonly no");
        requests.set_layout = format!("SET sd:layout {}", requests.redis("GET sd:layout").trim_end());
        requests
    }

    /// The reply to an inline command, which must be a line or a string.
    fn redis(&mut self, command: &str) -> String {
        self.redis.get_mut().write_all(format!("{command}\r\n").as_bytes()).expect("a write");
        let mut line = String::new();
        self.redis.read_line(&mut line).expect("a reply");
        assert!(!line.is_empty() && !line.starts_with('-'), "{command}: {line}");
        match line.trim_end().strip_prefix('$') {
            Some(length) => {
                let mut text = vec![0; length.parse::<usize>().expect("a length") + 2];
                self.redis.read_exact(&mut text).expect("its text");
                String::from_utf8_lossy(&text).into_owned()
            }
            None => line,
        }
    }

    /// How many changes Redis has seen.
    fn changes(&mut self) -> u64 {
        let reply = self.redis("INFO persistence");
        let count = reply.lines().find_map(|line| line.strip_prefix("rdb_changes_since_last_save:"));
        count.and_then(|count| count.parse().ok()).expect("a count")
    }

    /// Sends the requests of an input one after another, and panics if an answer is none of the contract's, or if what is
    /// stored then is not whole.
    pub fn run(&mut self, input: &[u8]) {
        self.redis("FLUSHALL");
        // Otherwise the store would write it again, during any request.
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
            let Some(request) = request(&replaced(&replaced(text, SESSION, &session), LINK, &link)) else {
                continue;
            };
            let answer = self.answer(request);
            if let Some(id) = answer.body["sessionId"].as_str() {
                session = id.as_bytes().to_vec();
            }
            if let Some(next) = answer.headers.get("link") {
                let next = next.as_bytes().split(|byte| *byte == b'>').next().unwrap_or_default();
                link = next.strip_prefix(b"<").expect("a link").to_vec();
            }
        }
        let clock = Timestamp(self.clock_ms.load(Ordering::Relaxed));
        let options = AuditOptions { keys_per_second_max: u32::MAX, repair: false };
        let report = self.runtime.block_on(audit(&self.app.store, options, &|| clock, &|_| ())).expect("a report");
        assert!(report.findings.is_empty(), "{report}");
    }

    fn answer(&mut self, request: Request<Body>) -> Answer {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let changes = self.changes();
        let (status, headers, body) = self.runtime.block_on(async {
            let answer = self.router.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
            let (parts, body) = answer.into_parts();
            (parts.status, parts.headers, body.collect().await.expect("a body").to_bytes())
        });
        let answer = Answer::new(status, headers, &body);
        answer.check(&format!("{method} {uri}"), method == Method::HEAD);
        let refused = !status.is_success();
        assert!(!refused || self.changes() == changes, "{method} {uri}: {status}, and Redis has changed");
        answer
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    /// Panics if the body is not of its type.
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

    /// Panics if it is none of the contract's answers.
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

/// A request from its text: method and target, a line for each header, an empty line, the body. `None` for what an HTTP
/// library would not let through.
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
    // Without one it would be refused for that alone, and an input would have to find out.
    if request.headers_ref().is_some_and(|headers| !headers.contains_key("host")) {
        request = request.header("host", "fuzz");
    }
    request.body(Body::from(body)).ok()
}

fn split_once<'a>(text: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let place = text.windows(separator.len()).position(|window| window == separator)?;
    Some((&text[..place], &text[place + separator.len()..]))
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

fn replaced(text: &[u8], name: &[u8], value: &[u8]) -> Vec<u8> {
    split(text, name).collect::<Vec<_>>().join(value)
}
