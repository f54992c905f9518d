//! Settings for requests: concurrency, sizes, CORS and the deadline.

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;
use hyper::Uri;
use hyper::http::HeaderName;
use hyper::http::uri::PathAndQuery;

use super::not_empty;
use super::setting_errors::SettingErrors;

/// Upper bound of the request limits: the maximum number of connections.
const REQUESTS_MAX: usize = 1_000_000;
/// Lower bound of the memory for large responses: the share of one user, an eighth, must hold one page of 4 MiB.
const RESPONSE_MEMORY_MIN: usize = 32 << 20;
/// Upper bound of the event loops: more than any machine has cores.
const EVENT_LOOPS_MAX: usize = 1024;

/// The settings as text.
#[derive(Args, Clone)]
pub(super) struct RequestArgs {
    /// Number of event loops that serve requests. Each is a worker: a thread with its own Redis connections
    /// [default: one per core]
    #[arg(long, global = true, env = "SESSIOND_EVENT_LOOPS", value_name = "COUNT")]
    event_loops: Option<String>,
    /// Maximum number of requests that are served concurrently; further requests wait in a queue
    #[arg(long, global = true, env = "SESSIOND_MAX_CONCURRENT_REQUESTS", value_name = "COUNT", default_value = "512")]
    max_concurrent_requests: String,
    /// Maximum number of requests that wait in the queue; further requests are rejected with 503 at once
    #[arg(long, global = true, env = "SESSIOND_MAX_WAITING_REQUESTS", value_name = "COUNT", default_value = "16384")]
    max_waiting_requests: String,
    /// Maximum time that a request waits in the queue; then it is rejected with 503. The wait counts towards
    /// --request-deadline
    #[arg(long, global = true, env = "SESSIOND_MAX_QUEUE_WAIT", value_name = "DURATION", default_value = "500ms")]
    max_queue_wait: String,
    /// Maximum size in bytes of a request's body
    #[arg(long, global = true, env = "SESSIOND_MAX_BODY_BYTES", value_name = "BYTES", default_value = "262144")]
    max_body_bytes: String,
    /// Maximum memory in bytes for all responses over 64 KiB, held from before they are read until they are sent. One
    /// API key, or all tokens of one business, may use a quarter of it, one user with a token an eighth. Further large
    /// responses wait for up to --max-queue-wait and are then rejected with 503
    #[arg(long, global = true, env = "SESSIOND_MAX_RESPONSE_MEMORY", value_name = "BYTES", default_value = "67108864")]
    max_response_memory: String,
    /// Maximum number of open event streams; further ones are rejected with 503
    #[arg(long, global = true, env = "SESSIOND_MAX_STREAMS", value_name = "COUNT", default_value = "12000")]
    max_streams: String,
    /// Maximum number of open event streams that one user opened with a token
    #[arg(long, global = true, env = "SESSIOND_MAX_STREAMS_PER_USER", value_name = "COUNT", default_value = "16")]
    max_streams_per_user: String,
    /// Maximum size in bytes of a request's path and query; at most 65534
    #[arg(long, global = true, env = "SESSIOND_MAX_URI_BYTES", value_name = "BYTES", default_value = "8192")]
    max_uri_bytes: String,
    /// Comma-separated origins whose pages may call the service from a browser, such as `https://chat.example.com`
    /// [default: none]
    #[arg(long, global = true, env = "SESSIOND_CORS_ORIGINS", value_name = "ORIGINS")]
    cors_origins: Option<String>,
    /// Comma-separated request headers that those pages may send in addition to the service's own, such as
    /// `X-Tenant,X-Correlation-Id` [default: none]
    #[arg(long, global = true, env = "SESSIOND_CORS_HEADERS", value_name = "HEADERS")]
    cors_headers: Option<String>,
    /// Maximum time from a received request to its response; if Redis does not reply in time, the response is 503
    #[arg(long, global = true, env = "SESSIOND_REQUEST_DEADLINE", value_name = "DURATION", default_value = "1s")]
    request_deadline: String,
}

/// The checked settings for requests.
#[derive(Clone, Debug)]
pub struct RequestConfig {
    /// Number of event loops, each that of a worker.
    pub event_loops: usize,
    /// Maximum number of requests that are served concurrently.
    pub concurrent_max: usize,
    /// Maximum number of requests that wait in the queue.
    pub waiting_max: usize,
    /// Maximum time that a request waits in the queue.
    pub queue_wait_max: Duration,
    /// Maximum bytes of all large responses that are being read or sent.
    pub response_memory_bytes: usize,
    /// Maximum bytes of a request's body.
    pub body_bytes_max: usize,
    /// Maximum number of open event streams.
    pub streams_max: usize,
    /// Maximum number of open event streams of one user with a token.
    pub streams_per_user_max: usize,
    /// Maximum bytes of a request's path and query.
    pub uri_bytes_max: usize,
    /// Which pages may call the service from a browser.
    pub cors: CorsConfig,
    /// Maximum time from a received request to its response.
    pub request_deadline: Duration,
}

/// Which pages may call the service from a browser.
#[derive(Clone, Debug)]
pub struct CorsConfig {
    /// The origins of these pages.
    pub origins: Vec<String>,
    /// Request headers that they may send in addition to the service's own.
    pub headers: Vec<HeaderName>,
}

impl RequestArgs {
    pub(super) fn check(&self, errors: &mut SettingErrors) -> RequestConfig {
        RequestConfig {
            event_loops: self.event_loops(errors),
            concurrent_max: errors.number("--max-concurrent-requests", &self.max_concurrent_requests, 1, REQUESTS_MAX),
            waiting_max: errors.number("--max-waiting-requests", &self.max_waiting_requests, 0, REQUESTS_MAX),
            queue_wait_max: errors.duration("--max-queue-wait", &self.max_queue_wait),
            response_memory_bytes: errors.number(
                "--max-response-memory",
                &self.max_response_memory,
                RESPONSE_MEMORY_MIN,
                1 << 40,
            ),
            body_bytes_max: errors.number("--max-body-bytes", &self.max_body_bytes, 1024, 1 << 30),
            streams_max: errors.number("--max-streams", &self.max_streams, 1, 1_000_000),
            streams_per_user_max: errors.number("--max-streams-per-user", &self.max_streams_per_user, 1, 1_000_000),
            uri_bytes_max: errors.number("--max-uri-bytes", &self.max_uri_bytes, 1024, 65_534),
            cors: self.cors(errors),
            request_deadline: errors.duration("--request-deadline", &self.request_deadline),
        }
    }

    fn event_loops(&self, errors: &mut SettingErrors) -> usize {
        match not_empty(self.event_loops.as_deref()) {
            Some(text) => errors.number("--event-loops", text, 1, EVENT_LOOPS_MAX),
            None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(EVENT_LOOPS_MAX),
        }
    }

    fn cors(&self, errors: &mut SettingErrors) -> CorsConfig {
        CorsConfig {
            origins: errors.list("--cors-origins", self.cors_origins.as_deref().unwrap_or_default(), origin),
            headers: errors.list("--cors-headers", self.cors_headers.as_deref().unwrap_or_default(), header_name),
        }
    }
}

/// Parses an origin as browsers send it (RFC 6454, section 6.2), because origins are compared byte for byte.
fn origin(text: &str) -> Result<String, String> {
    let uri = text.parse::<Uri>().unwrap_or_default();
    let origin = match (uri.scheme_str(), uri.authority(), uri.path_and_query().map(PathAndQuery::as_str)) {
        (Some("https"), Some(authority), _) if authority.port_u16() == Some(443) => None,
        (Some("http"), Some(authority), _) if authority.port_u16() == Some(80) => None,
        (Some(scheme), Some(authority), Some("/") | None) if !authority.as_str().contains('@') => {
            Some(format!("{scheme}://{authority}").to_lowercase())
        }
        _ => None,
    };
    origin.filter(|origin| origin == text).ok_or_else(|| {
        let wanted =
            "must list origins as browsers send them: scheme and host in lower case, a port only if not the default";
        format!("{wanted}, such as https://chat.example.com; it has {text:?}")
    })
}

/// Parses a header name. Rejects `*`, which browsers interpret as every header.
fn header_name(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok().filter(|name| name.as_str() != "*");
    name.ok_or_else(|| format!("must list header names, such as X-Tenant,X-Correlation-Id; it has {text:?}"))
}
