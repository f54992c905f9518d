//! The HTTP interface: the steps that process a request, and one file for each resource.
//!
//! A request passes through these steps in this order. They are calls in `respond` and `handle`, not tower layers,
//! because each layer copies everything inside it for every request:
//!
//! 1. `RouteMatcher` finds the route, and `request_id::of` the request id.
//! 2. `host::check` requires one valid `Host` header.
//! 3. `cors` responds to preflights.
//! 4. `auth::authorise` checks the credential, its rate limit, its scope, and the business and user of the path.
//! 5. `receive_body` reads the body, within its size limit and timeout.
//! 6. `serve` rejects queries of reads that take none.
//! 7. `ConcurrencyLimiter::acquire` gives the request a permit, or rejects it.
//! 8. `dispatch` runs the handler, within the request's deadline.
//!
//! After that, `handle` adds the rate limit headers, and `respond` adds the CORS headers, writes the body of an
//! error, records metrics and logs the response.

mod auth;
mod businesses;
mod concurrency_limit;
mod console;
mod cors;
mod docs;
mod error;
mod events;
mod export;
mod extract;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod health;
mod host;
mod include;
mod json;
mod matched_route;
mod media_type;
mod message;
mod messages;
mod openapi;
mod pagination;
mod preconditions;
mod request_id;
mod response;
mod sessions;
mod static_files;
mod turns;
mod whoami;

use std::any::Any;
use std::convert::Infallible;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::HttpBody;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, poll_immediate};
use tower::Service;
use tower_http::cors::CorsLayer;
use tracing::Level;

use self::auth::Authorised;
pub use self::concurrency_limit::ConcurrencyLimiter;
use self::error::{ApiError, Code};
pub use self::events::IsEventStream;
pub use self::extract::DISCARD_BYTES_MAX;
use self::matched_route::RouteMatcher;
pub use self::openapi::document;
use self::request_id::X_REQUEST_ID;
use crate::auth::{Credentials, RateLimits};
use crate::config::{ConsoleConfig, RequestConfig, SessionConfig};
use crate::session::{Clock, Role, Timestamp};
use crate::store::{SessionStore, StoreError};
use crate::streams::Streams;
use crate::trace::Span;
use crate::{log, metrics};

/// The route label, in metrics and logs, of a path that matches no route.
const UNMATCHED: &str = "unmatched";

/// The state that all handlers share.
#[derive(Clone)]
pub struct AppState {
    /// The session store.
    pub store: Arc<SessionStore>,
    /// The accepted credentials and what each of them grants.
    pub credentials: Arc<Credentials>,
    /// The rate limits of credentials and users.
    pub rate_limits: Arc<RateLimits>,
    /// Limits the number of concurrent requests.
    pub concurrency: Arc<ConcurrencyLimiter>,
    /// The event streams of this worker.
    pub streams: Arc<Streams>,
    /// Returns the current time.
    pub clock: Clock,
    /// The roles of the messages that the token of one user may append and redact.
    pub user_roles: Vec<Role>,
    /// Settings of sessions and messages.
    pub sessions: SessionConfig,
    /// Settings of requests.
    pub requests: RequestConfig,
    /// Settings of the console.
    pub console: ConsoleConfig,
    /// Timeout for receiving the body of a request.
    pub body_timeout: Duration,
    /// Timeout for producing the response, from when the request has been received. Includes the wait for a permit.
    pub response_timeout: Duration,
}

impl AppState {
    /// A copy for another worker, with its own connections to the store. Everything else is shared.
    ///
    /// # Errors
    /// If the URL of the store cannot be used.
    pub fn with_own_connections(&self) -> Result<Arc<Self>, StoreError> {
        let store = Arc::new(self.store.with_own_connections()?);
        let streams = Arc::new(self.streams.for_worker(store.clone()));
        Ok(Arc::new(Self { store, streams, ..self.clone() }))
    }

    fn now(&self) -> Timestamp {
        (self.clock)()
    }
}

impl fmt::Debug for AppState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AppState").finish_non_exhaustive()
    }
}

/// The HTTP service: every route in `docs/api.md`, and an error response for any other request.
#[derive(Clone)]
pub struct Api(Arc<ApiInner>);

struct ApiInner {
    app: Arc<AppState>,
    cors: Option<CorsLayer>,
    routes: RouteMatcher,
    router: Router,
}

impl Api {
    /// Creates the service with this state.
    #[must_use]
    pub fn new(app: Arc<AppState>) -> Self {
        let (handlers, document) = openapi::routes().split_for_parts();
        let matcher = RouteMatcher::of(&document);
        let pages = docs::router().merge(console::router(&app.console));
        let router = handlers.with_state(app.clone()).merge(openapi::router(document)).merge(pages);
        let cors = cors::layer(&app.requests.cors);
        Self(Arc::new(ApiInner { app, cors, routes: matcher, router }))
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Api").finish_non_exhaustive()
    }
}

/// Always ready.
impl Service<Request> for Api {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let api = self.0.clone();
        // Boxed to keep idle connections small. The steps borrow the request: an async function that owned it would
        // store it twice.
        Box::pin(async move { Ok(respond(&api, &mut request).await) })
    }
}

/// Responds to a request, and records the response in metrics and log.
async fn respond(api: &ApiInner, request: &mut Request) -> Response {
    let started = Instant::now();
    let _in_flight = metrics::InFlight::begin();
    let request_id = request_id::of(request);
    let request_id_text = request_id.to_str().unwrap_or_default();
    let method = method_label(request.method());
    let route = api.routes.matched(request.uri().path());
    let route_label = route.unwrap_or(UNMATCHED);
    let span =
        Span::of_request(method, route_label, request_id_text, |name| request.headers().get(name)?.to_str().ok());
    let origin = api.cors.as_ref().and_then(|_| cors::Origin::of(request));

    let handled = span.around(AssertUnwindSafe(handle(api, route, request)).catch_unwind()).await;
    let mut response = handled.unwrap_or_else(|payload| panicked(&*payload));

    if let (Some(cors), Some(origin)) = (&api.cors, origin) {
        // Boxed to keep this future small: few deployments allow cross-origin requests.
        Box::pin(cors::add_headers(cors, origin, &mut response)).await;
    }
    let problem = error::finish(&mut response, request_id_text);
    let (status, took) = (response.status().as_u16(), started.elapsed());
    metrics::request_finished(method, route_label, status, took);
    span.finish_request(status);
    AccessLog { request_id: request_id_text, method, route: route_label, status, took }.log(problem);
    add_security_headers(response.headers_mut());
    response.headers_mut().insert(X_REQUEST_ID, request_id);
    response
}

/// Runs the steps that may reject a request, then its handler.
async fn handle(api: &ApiInner, route: Option<&str>, request: &mut Request) -> Response {
    if let Err(error) = host::check(request) {
        return reject(&api.app, request, error).await;
    }
    if let Some(cors) = &api.cors
        && cors::is_preflight(request)
    {
        return Box::pin(cors::preflight(cors, std::mem::take(request))).await;
    }
    let Authorised { grant, rates } = match auth::authorise(api, route, request) {
        Ok(authorised) => authorised,
        Err(error) => return reject(&api.app, request, error).await,
    };
    if let Some(grant) = grant {
        request.extensions_mut().insert(grant);
    }
    let mut response = serve(api, route, request).await.unwrap_or_else(IntoResponse::into_response);
    // Errors get no rate limit headers: the response for another tenant's session must have the same bytes as the
    // response for a missing one.
    if response.status().is_success() || response.status() == StatusCode::NOT_MODIFIED {
        auth::add_rate_headers(&rates, response.headers_mut());
    }
    response
}

/// Receives the body of an authorised request, waits for a permit, and runs the handler.
async fn serve(api: &ApiInner, route: Option<&str>, request: &mut Request) -> Result<Response, ApiError> {
    let uri_bytes = request.uri().path_and_query().map_or(0, |uri| uri.as_str().len());
    if uri_bytes > api.app.requests.uri_bytes_max {
        let detail = format!("The path and query are longer than {} bytes", api.app.requests.uri_bytes_max);
        return Err(ApiError::new(Code::UriTooLong, detail));
    }
    receive_body(&api.app, request).await?;
    let Some(route) = route else {
        return Ok(StatusCode::NOT_FOUND.into_response());
    };
    // Handlers with query parameters check their names.
    if let Some(query) = request.uri().query()
        && api.routes.takes_no_query(route, request.method())
    {
        extract::Query::of(Some(query)).finish()?;
    }
    // Health checks need no permit: they must succeed on a loaded service.
    let permit = if health::ROUTES.contains(&route) { None } else { Some(api.app.concurrency.acquire().await?) };
    let waited = permit.as_ref().map_or(Duration::ZERO, |permit| permit.waited);
    dispatch(api, request, api.app.response_timeout.saturating_sub(waited)).await
}

/// Runs the handler, for at most `timeout`.
async fn dispatch(api: &ApiInner, request: &mut Request, timeout: Duration) -> Result<Response, ApiError> {
    // A router is always ready.
    let handled = api.router.clone().call(std::mem::take(request));
    let response = tokio::time::timeout(timeout, handled).await.map_err(|_| {
        ApiError::new(Code::StoreUnavailable, "The store did not respond within the request deadline; try again")
            .caused_by("the store commands of this request together took longer than the request deadline")
    })?;
    let mut response = response.unwrap_or_else(|never| match never {});
    if response.status() == StatusCode::NOT_MODIFIED {
        // The router sets `Content-Length` to 0. In a 304 it would have to be the length of the unsent body (RFC 9110,
        // section 8.6).
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    Ok(response)
}

/// Receives the whole body, within its size limit and timeout.
async fn receive_body(app: &AppState, request: &mut Request) -> Result<(), ApiError> {
    if request.body().is_end_stream() {
        return Ok(());
    }
    let (body, bytes_max) = (std::mem::take(request.body_mut()), app.requests.body_bytes_max);
    let is_too_large = extract::is_declared_too_large(&body, bytes_max);
    let received = {
        let mut receiving = pin!(extract::receive(request.headers(), body, bytes_max));
        // Most bodies arrive with the head and need no timer.
        match poll_immediate(receiving.as_mut()).await {
            Some(received) => received,
            None => tokio::time::timeout(app.body_timeout, receiving).await.map_err(|_| {
                if is_too_large {
                    return extract::too_large(bytes_max);
                }
                ApiError::new(Code::RequestTimeout, format!("The body did not arrive within {:?}", app.body_timeout))
            })?,
        }
    };
    *request.body_mut() = received?;
    Ok(())
}

/// Responds with an error to a request whose body has not been read. Reads and drops the body first, so that the client
/// reads the response.
async fn reject(app: &AppState, request: &mut Request, error: ApiError) -> Response {
    let body = std::mem::take(request.body_mut());
    let discarded = extract::discard(request.headers(), body, app.requests.body_bytes_max);
    // The response is the same if the timeout expires first.
    let _ = tokio::time::timeout(app.body_timeout, discarded).await;
    error.into_response()
}

fn panicked(payload: &(dyn Any + Send)) -> Response {
    metrics::panicked();
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("payload of an unknown type");
    ApiError::internal(format!("panic: {text}")).into_response()
}

/// The method as a label. Other methods share one label, because a client can send any method name.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// The log record of a response. It does not contain the path, because paths contain business and user ids.
struct AccessLog<'a> {
    request_id: &'a str,
    method: &'static str,
    route: &'a str,
    status: u16,
    took: Duration,
}

impl AccessLog<'_> {
    /// Logs every response at debug level, and each server error as an error or a warning. The number of server errors
    /// that are logged per second is limited.
    fn log(&self, problem: Option<(Code, Option<String>)>) {
        let Self { request_id, method, route, status, .. } = *self;
        let duration_us = u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX);
        tracing::debug!(target: "sessiond::access", request_id, method, route, status, duration_us, "request finished");
        let Some((code, cause)) = problem.filter(|(code, _)| code.status().is_server_error()) else { return };
        let is_bug = code.status() == StatusCode::INTERNAL_SERVER_ERROR;
        // A line that the log level disables must not be counted as suppressed.
        let is_enabled = if is_bug { tracing::enabled!(Level::ERROR) } else { tracing::enabled!(Level::WARN) };
        let (code, cause) = (code.as_str(), cause.unwrap_or_default());
        if !is_enabled || !log::should_log(code) {
            return;
        }
        if is_bug {
            tracing::error!(request_id, method, route, status, duration_us, code, cause, "internal error");
        } else {
            tracing::warn!(request_id, method, route, status, duration_us, code, cause, "could not serve");
        }
    }
}

/// Adds the headers of every response: browsers must not guess its content type, and caches must not store it, unless
/// the response says otherwise, as web pages do.
fn add_security_headers(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// The headers and body of the error response to a request that never reaches the router, because it cannot be parsed
/// or because there are too many connections.
#[must_use]
pub fn error_response(status: StatusCode) -> (HeaderMap, Vec<u8>) {
    let request_id = request_id::random();
    let (mut headers, body) = error::of_status(status, request_id.to_str().unwrap_or_default());
    add_security_headers(&mut headers);
    headers.insert(X_REQUEST_ID, request_id);
    (headers, body)
}
