//! Cross-origin requests: which pages a browser lets call the service and read its answers (the Fetch standard, "CORS
//! protocol"). It protects users of browsers, and is no credential.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::response::Response;
use futures_util::FutureExt;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::cors::CorsLayer;

use super::X_REQUEST_ID;
use super::access::{RATELIMIT, RATELIMIT_POLICY, X_API_KEY};
use super::extract::IDEMPOTENCY_KEY;

/// How long a browser may remember a preflight's answer; two hours is the most that any does.
const MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);
const METHODS: [Method; 5] = [Method::GET, Method::HEAD, Method::POST, Method::PATCH, Method::DELETE];
/// The headers that pages may send, beside those that they always may: the service's own, and those that libraries for
/// tracing add to every request (W3C Trace Context and Baggage, Sentry).
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
/// The headers that pages may read.
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

/// What pages of these origins may do; `None` if there are none. `more_headers` are further ones that they may send.
pub(super) fn layer(origins: &[String], more_headers: &[HeaderName]) -> Option<CorsLayer> {
    let origins: Vec<_> = origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok()).collect();
    (!origins.is_empty()).then(|| {
        let mut allowed = ALLOWED.to_vec();
        allowed.extend(more_headers.iter().filter(|header| !ALLOWED.contains(header)).cloned());
        // Credentials are headers that pages set themselves, never cookies: browsers need not send theirs.
        let layer = CorsLayer::new().allow_origin(origins).allow_methods(METHODS).allow_headers(allowed);
        layer.expose_headers(EXPOSED).max_age(MAX_AGE)
    })
}

/// Answers preflights, and says of other answers whether the page may read them. An `OPTIONS` that is no preflight is a
/// request like any other.
pub(super) async fn cross_origin<F>(
    cors: &CorsLayer,
    request: Request,
    answer: impl FnOnce(Request) -> F + Clone,
) -> Response
where
    F: Future<Output = Response>,
{
    let headers = request.headers();
    let is_preflight = request.method() == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if request.method() == Method::OPTIONS && !is_preflight {
        return answer(request).await;
    }
    let answer = service_fn(move |request| answer.clone()(request).map(Ok::<_, Infallible>));
    cors.layer(answer).oneshot(request).await.unwrap_or_else(|never| match never {})
}
