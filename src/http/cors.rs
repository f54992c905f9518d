//! Cross-origin requests: which web pages may call the service and read its responses (Fetch standard, "CORS
//! protocol"). CORS protects users of browsers. It does not authenticate callers.

use std::convert::Infallible;
use std::future::ready;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::response::Response;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::cors::CorsLayer;

use super::auth::{RATELIMIT, RATELIMIT_POLICY, X_API_KEY};
use super::extract::IDEMPOTENCY_KEY;
use super::request_id::X_REQUEST_ID;
use crate::config::CorsConfig;

/// How long a browser may cache the response to a preflight. No browser caches it for more than two hours.
const MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);
const METHODS: [Method; 5] = [Method::GET, Method::HEAD, Method::POST, Method::PATCH, Method::DELETE];
/// Request headers that pages may send in addition to those that CORS always allows: the headers of the service, and
/// those that tracing libraries add to every request (W3C Trace Context and Baggage, Sentry).
const ALLOWED: [HeaderName; 12] = [
    header::AUTHORIZATION,
    HeaderName::from_static(X_API_KEY),
    header::CONTENT_TYPE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    X_REQUEST_ID,
    IDEMPOTENCY_KEY,
    HeaderName::from_static("last-event-id"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("baggage"),
    HeaderName::from_static("sentry-trace"),
];
/// Response headers that pages may read.
const EXPOSED: [HeaderName; 9] = [
    header::LOCATION,
    header::ETAG,
    header::LINK,
    HeaderName::from_static("x-total-count"),
    X_REQUEST_ID,
    header::RETRY_AFTER,
    header::WWW_AUTHENTICATE,
    RATELIMIT,
    RATELIMIT_POLICY,
];

/// The CORS layer for the configured origins; `None` if there are none.
pub(super) fn layer(config: &CorsConfig) -> Option<CorsLayer> {
    let origins: Vec<_> = config.origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok()).collect();
    (!origins.is_empty()).then(|| {
        let mut allowed = ALLOWED.to_vec();
        allowed.extend(config.headers.iter().filter(|header| !ALLOWED.contains(header)).cloned());
        // No `Access-Control-Allow-Credentials`: pages set the credential header themselves, and the service uses no
        // cookies.
        let layer = CorsLayer::new().allow_origin(origins).allow_methods(METHODS).allow_headers(allowed);
        layer.expose_headers(EXPOSED).max_age(MAX_AGE)
    })
}

/// Whether this is a preflight. Any other `OPTIONS` is an ordinary request.
pub(super) fn is_preflight(request: &Request) -> bool {
    let headers = request.headers();
    request.method() == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The response to a preflight.
pub(super) async fn preflight(cors: &CorsLayer, request: Request) -> Response {
    run(cors, request, Response::default()).await
}

/// The part of a request that the CORS headers of its response depend on.
pub(super) struct Origin(Request);

impl Origin {
    /// `None` for `OPTIONS`: only the response to a preflight gets CORS headers.
    pub(super) fn of(request: &Request) -> Option<Self> {
        if request.method() == Method::OPTIONS {
            return None;
        }
        let mut part = Request::default();
        if let Some(origin) = request.headers().get(header::ORIGIN) {
            part.headers_mut().insert(header::ORIGIN, origin.clone());
        }
        Some(Self(part))
    }
}

/// Adds the headers that let a page read the response.
pub(super) async fn add_headers(cors: &CorsLayer, Origin(request): Origin, response: &mut Response) {
    *response = run(cors, request, std::mem::take(response)).await;
}

async fn run(cors: &CorsLayer, request: Request, response: Response) -> Response {
    let mut response = Some(response);
    let inner = service_fn(move |_request: Request| ready(Ok::<_, Infallible>(response.take().unwrap_or_default())));
    cors.layer(inner).oneshot(request).await.unwrap_or_else(|never| match never {})
}
