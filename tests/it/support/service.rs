//! A service in this process: the real router on a real socket, with a clock that only the test moves.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use sessiond::config::{Cli, Config};
use sessiond::http::AppState;
use sessiond::session::{Partition, SessionId, TenantScope, Timestamp};
use sessiond::store::{RedisAddress, StoreError};
use sessiond::streams::{StreamConfig, StreamLimits, Streams};
use sessiond::{bootstrap, http, server};
use tokio::net::TcpListener;

use super::acl;
use super::events::EventStream;
use super::monitor::Monitor;
use super::process::TEST_TIMEOUT;
use super::redis::{self, RedisProbe};

/// The injected clock is this far ahead of the real one. Redis uses its own clock, so no key expires during a test.
const AHEAD_MS: i64 = 24 * 60 * 60 * 1000;

/// A service's streams read changes only after a notification, so a test fails if a notification is missing.
const ONLY_NOTIFIED: StreamConfig = StreamConfig { poll: HOUR, turn_poll: HOUR, comment_interval: HOUR };
const HOUR: Duration = Duration::from_secs(60 * 60);

fn stream_limits(config: &Config) -> Arc<StreamLimits> {
    Arc::new(StreamLimits::new(config.requests.streams_max, config.requests.streams_per_user_max))
}

/// A running service. It ends with the test's runtime.
pub struct Service {
    pub base: String,
    pub config: Box<Config>,
    pub probe: RedisProbe,
    pub app: Arc<AppState>,
    socket: PathBuf,
    clock_ms: Arc<AtomicI64>,
    client: reqwest::Client,
}

/// A complete HTTP response.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    /// The body as JSON, or null if it is empty.
    pub fn json(&self) -> Value {
        if self.text.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A member of the body.
    pub fn member(&self, name: &str) -> Value {
        self.json()[name].clone()
    }

    /// The body without a member.
    pub fn without(&self, name: &str) -> Value {
        let mut body = self.json();
        body.as_object_mut().expect("an object").remove(name);
        body
    }

    /// A member of the body that is a string.
    pub fn string(&self, name: &str) -> String {
        self.member(name).as_str().unwrap_or_else(|| panic!("{name} is not a string: {self:?}")).to_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a header of visible characters"))
    }

    /// The path and query of the `Link` with this relation.
    pub fn link(&self, relation: &str) -> Option<String> {
        let wanted = format!("; rel=\"{relation}\"");
        let links = self.header("link")?.split(", ").map(str::to_owned);
        let link = links.into_iter().find(|link| link.ends_with(&wanted))?;
        Some(link.trim_end_matches(&wanted).trim_matches(['<', '>']).to_owned())
    }

    /// Panics unless this is an error response in the shape of docs/api.md with this status and code.
    pub fn expect_problem(&self, status: u16, code: &str) -> &Self {
        assert_eq!((self.status.as_u16(), self.string("code").as_str()), (status, code), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let title = self.status.canonical_reason().expect("a known status");
        assert_eq!(self.member("type"), "about:blank", "{self:?}");
        assert_eq!((self.string("title").as_str(), self.string("error").as_str()), (title, title), "{self:?}");
        assert_eq!((self.member("status"), self.member("statusCode")), (status.into(), status.into()), "{self:?}");
        assert_eq!(self.string("detail"), self.string("message"), "{self:?}");
        assert_eq!(Some(self.string("requestId").as_str()), self.header("x-request-id"), "{self:?}");
        if status == 429 || status == 503 {
            assert!(self.header("retry-after").is_some(), "{self:?}");
        }
        self
    }

    /// Panics unless the response has this status.
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }
}

impl Service {
    /// Starts a service on the shared Redis with these flags and its own key prefix.
    pub async fn start(flags: &[&str]) -> Self {
        Self::start_on(&redis::shared(), flags).await
    }

    /// Starts a service on the Redis at `socket` with these flags and its own key prefix.
    pub async fn start_on(socket: &Path, flags: &[&str]) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("sd:t{}-{}", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let clock_ms = Arc::new(AtomicI64::new(bootstrap::system_now().0 + AHEAD_MS));
        Self::start_sharing(socket, &prefix, clock_ms, flags).await
    }

    /// Starts another service on the same Redis, with the same keys and clock, whose streams poll often.
    pub async fn polling_sibling(&self) -> Self {
        let often = Duration::from_millis(20);
        let settings = StreamConfig { poll: often, turn_poll: often, comment_interval: often };
        let (prefix, clock_ms) = (&self.config.redis.key_prefix, self.clock_ms.clone());
        Self::start_streaming(&self.socket, prefix, clock_ms, &[], settings).await
    }

    /// Starts another service on the shared Redis, with the same keys, the same clock and other flags.
    pub async fn sibling(&self, flags: &[&str]) -> Self {
        Self::start_sharing(&redis::shared(), &self.config.redis.key_prefix, self.clock_ms.clone(), flags).await
    }

    /// Starts another service on the shared Redis, with the same keys and a clock that is ahead of this one's.
    pub async fn sibling_ahead(&self, ahead: Duration) -> Self {
        let ahead_ms = i64::try_from(ahead.as_millis()).expect("a short duration");
        let clock_ms = Arc::new(AtomicI64::new(self.now().0 + ahead_ms));
        Self::start_sharing(&redis::shared(), &self.config.redis.key_prefix, clock_ms, &[]).await
    }

    async fn start_sharing(socket: &Path, prefix: &str, clock_ms: Arc<AtomicI64>, flags: &[&str]) -> Self {
        Self::start_streaming(socket, prefix, clock_ms, flags, ONLY_NOTIFIED).await
    }

    async fn start_streaming(
        socket: &Path,
        prefix: &str,
        clock_ms: Arc<AtomicI64>,
        flags: &[&str],
        streams: StreamConfig,
    ) -> Self {
        let own_flags = ["sessiond", "--key-prefix", prefix];
        // Long, because the machine may be busy with other tests. Tests of the deadline pass their own flag.
        let deadline: &[&str] =
            if flags.contains(&"--request-deadline") { &[] } else { &["--request-deadline", "10s"] };
        // The injected clock differs from the clock of Redis. Tests of the clock skew pass their own flag.
        let skew: &[&str] = if flags.contains(&"--max-clock-skew") { &[] } else { &["--max-clock-skew", "0"] };
        let cli = Cli::try_parse_from(own_flags.iter().chain(deadline).chain(skew).chain(flags)).expect("good flags");
        let config = Box::new(cli.settings.check().expect("good settings"));
        let clock = {
            let clock_ms = clock_ms.clone();
            Arc::new(move || Timestamp(clock_ms.load(Ordering::SeqCst)))
        };
        let credentials = bootstrap::credentials(&config).expect("good credentials");
        let redis = RedisAddress::from_url(&acl::url(socket)).expect("a good URL");
        let app = bootstrap::app_state(&config, redis, credentials.clone(), clock.clone()).expect("an app");
        let streams = Streams::new(app.store.clone(), clock, streams, credentials, stream_limits(&config));
        let app = Arc::new(AppState { streams: Arc::new(streams), ..(*app).clone() });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let (connections, grace) = (bootstrap::connection_settings(&config), config.connections.shutdown_grace);
        tokio::spawn(server::serve(listener, http::Api::new(app.clone()), connections, grace, std::future::pending()));
        // Commands wait for the first connection, so `ready` returns as soon as the service can serve, or an error.
        while !matches!(app.store.ready().await, Ok(()) | Err(StoreError::ClockSkew { .. })) {}
        let probe = RedisProbe::at(socket, prefix).await;
        let socket = socket.to_owned();
        Self { base, config, probe, app, socket, clock_ms, client: reqwest::Client::new() }
    }

    /// Waits until the service reads sessions over its read connection, which opens soon after the connection of fred.
    pub async fn wait_for_read_connection(&self) {
        let started = Instant::now();
        let id = SessionId::random(Partition(0)).expect("random bytes");
        loop {
            let monitor = Monitor::start(&self.socket);
            self.app.store.get(id, &TenantScope::Everything, self.now()).await.expect("a reply");
            let commands = monitor.finish(&self.probe).await;
            let read = commands.iter().find(|command| command.words.iter().any(|word| word.contains(&id.to_string())));
            if read.is_some_and(|read| read.words[0].eq_ignore_ascii_case("HGETALL")) {
                return;
            }
            assert!(started.elapsed() < TEST_TIMEOUT, "no read connection");
        }
    }

    /// An app state whose store connects to the same Redis as the user of audits.
    pub fn audit_store(&self) -> Arc<AppState> {
        let redis = RedisAddress::from_url(&acl::audit_url(&acl::url(&self.socket))).expect("a good URL");
        let now = self.now();
        bootstrap::app_state(&self.config, redis, self.app.credentials.clone(), Arc::new(move || now)).expect("an app")
    }

    /// Moves the service's clock forward.
    pub fn advance(&self, duration: Duration) {
        let ms = i64::try_from(duration.as_millis()).expect("a short duration");
        self.clock_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// The time of the service's clock.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.clock_ms.load(Ordering::SeqCst))
    }

    /// Sets the service's clock.
    pub fn set_now(&self, now: Timestamp) {
        self.clock_ms.store(now.0, Ordering::SeqCst);
    }

    /// Opens an event stream.
    pub async fn events(&self, path: &str) -> EventStream {
        EventStream::open(&format!("{}{path}", self.base), &[]).await
    }

    /// Opens an event stream that resumes after this id.
    pub async fn events_after(&self, path: &str, last_id: &str) -> EventStream {
        EventStream::open(&format!("{}{path}", self.base), &[("last-event-id", last_id)]).await
    }

    /// Sends any request.
    pub async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.expect("a response");
        let (status, headers) = (response.status(), response.headers().clone());
        // An event stream has no end of its own.
        let is_stream = headers.get("content-type").is_some_and(|value| value == "text/event-stream");
        let text = if is_stream { String::new() } else { response.text().await.expect("a body") };
        Answer { status, headers, text }
    }

    async fn send_json(&self, method: Method, path: &str, body: &Value) -> Answer {
        self.send(method, path, &[("content-type", "application/json")], body.to_string().into_bytes()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Vec::new()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], Vec::new()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send_json(Method::POST, path, &body).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        self.send_json(Method::PATCH, path, &body).await
    }

    /// `POST /api/sessions` for a user of business `b`.
    pub async fn get_or_create(&self, user_id: &str) -> Answer {
        self.post("/api/sessions", serde_json::json!({"businessId": "b", "userId": user_id})).await
    }

    /// The id of a user's active session in business `b`, created if there is none.
    pub async fn session_of(&self, user_id: &str) -> String {
        self.get_or_create(user_id).await.string("sessionId")
    }
}
