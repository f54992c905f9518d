//! The HTTP interface: one service around one router, and a file a resource.
//!
//! A request passes these, from the outside in; the answer passes them back. They are functions around the router and not
//! layers of it, because each of those costs every request a copy of all that is inside it:
//!
//! 1. `answer` finds the request's route, takes or makes its id, and gives every error answer its body with that id; it
//!    counts and logs;
//! 2. `host::check` refuses a request without one valid `Host`, whatever it asks for;
//! 3. `cross_origin` answers the preflights of browsers, and tells them which pages may read an answer;
//! 4. a panic of anything inside becomes a `500`;
//! 5. `admit` checks the credential, how often it calls, its scope, and the business and user of the path: for every
//!    route that `access.rs` does not name as public, also one that is added later, and for paths that there are not;
//! 6. `serve` refuses a URI that is too long, receives the body, waits for room, and gives the rest the deadline. What
//!    has no route here (`routes.rs`) never gets to the router;
//! 7. the handler, whose arguments are extracted (`extract.rs`) before it runs.

mod access;
mod businesses;
mod cors;
mod docs;
mod error;
mod extract;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod health;
mod host;
mod json;
mod media_type;
mod messages;
mod openapi;
mod overload;
mod page;
mod preconditions;
mod routes;
mod sessions;
mod whoami;

use std::any::Any;
use std::cell::Cell;
use std::convert::Infallible;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::HttpBody;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, poll_immediate};
use tower::Service;
use tower_http::cors::CorsLayer;
use tracing::Level;

use self::error::{ApiError, Code};
pub use self::openapi::document;
pub use self::overload::Capacity;
use self::routes::Routes;
use crate::auth::{Credentials, RateLimits};

use crate::session::{Clock, Identifier, Role, Timestamp};
use crate::spans::Span;
use crate::store::{SessionStore, StoreError};
use crate::{log, metrics};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES_MAX: usize = 128;

/// What the handlers work with.
#[derive(Clone)]
pub struct App {
    /// The sessions.
    pub store: Arc<SessionStore>,
    /// Who may call, and do what.
    pub credentials: Arc<Credentials>,
    /// How often.
    pub rate_limits: Arc<RateLimits>,
    /// How many calls at once.
    pub capacity: Arc<Capacity>,
    /// Tells the time.
    pub clock: Clock,
    /// The roles of the messages that a token of one user may append.
    pub user_roles: Vec<Role>,
    /// `locationId` of a session that is created without one.
    pub default_location_id: Identifier,
    /// `sessionType` of a session that is created without one.
    pub default_session_type: Identifier,
    /// The most bytes of a request's body.
    pub body_bytes_max: usize,
    /// The most bytes of metadata.
    pub metadata_bytes_max: usize,
    /// The most bytes of a message's content.
    pub content_bytes_max: usize,
    /// The most bytes of a request's path and query.
    pub uri_bytes_max: usize,
    /// The origins whose pages may call the service.
    pub cors_origins: Vec<String>,
    /// Headers that those pages may send, beside the service's own.
    pub cors_headers: Vec<HeaderName>,
    /// The most that receiving a request's body may take.
    pub body_timeout: Duration,
    /// The most that answering may take, from when the request is received.
    pub answer_timeout: Duration,
}

impl App {
    /// The same for another event loop: with connections of its own to the store, and all else shared.
    ///
    /// # Errors
    /// If the store cannot be connected to.
    pub fn sibling(&self) -> Result<Arc<Self>, StoreError> {
        Ok(Arc::new(Self { store: Arc::new(self.store.sibling()?), ..self.clone() }))
    }

    fn now(&self) -> Timestamp {
        (self.clock)()
    }
}

impl fmt::Debug for App {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("App").finish_non_exhaustive()
    }
}

/// The whole interface: every route of the contract, and an answer in its shape for every other request.
#[derive(Clone)]
pub struct Api(Arc<Parts>);

struct Parts {
    app: Arc<App>,
    cors: Option<CorsLayer>,
    routes: Routes,
    router: Router,
}

impl Api {
    /// The interface to this.
    #[must_use]
    pub fn new(app: Arc<App>) -> Self {
        let (router, document) = openapi::routes().split_for_parts();
        let templates = Routes::of(&document);
        let router = router.with_state(app.clone()).merge(openapi::router(document));
        let cors = cors::layer(&app.cors_origins, &app.cors_headers);
        Self(Arc::new(Parts { cors, app, routes: templates, router }))
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
        let parts = self.0.clone();
        // Boxed, for an idle connection would keep the room for it. What is inside borrows the request: each async function
        // that owned it would have room for it twice.
        Box::pin(async move { Ok(answer(&parts, &mut request).await) })
    }
}

/// Gives the request its id, and every error answer its body. Every request is counted, and failures of ours are logged,
/// here and nowhere else.
async fn answer(parts: &Parts, request: &mut Request) -> Response {
    let started = Instant::now();
    let _in_flight = metrics::InFlight::begin();
    let request_id = request_id(request);
    let template = parts.routes.template_of(request.uri().path());
    let method = method_label(request.method());
    let route = template.unwrap_or("unmatched");
    let span = Span::of_request(method, route, request_id.to_str().unwrap_or_default(), |name| {
        request.headers().get(name)?.to_str().ok()
    });
    let mut response = match host::check(request) {
        Ok(()) => span.around(answer_page(parts, template, request)).await,
        Err(refused) => access::refuse(&parts.app, request, refused).await,
    };
    let problem = error::finish(&mut response, request_id.to_str().unwrap_or_default());
    let (status, took) = (response.status().as_u16(), started.elapsed());
    metrics::request_answered(method, route, status, took);
    span.answered(status);
    Answered { request_id: &request_id, method, route, status, took }.log(problem);
    protect(response.headers_mut());
    response.headers_mut().insert(X_REQUEST_ID, request_id);
    response
}

/// Answers a request from whatever page.
async fn answer_page(parts: &Parts, route: Option<&str>, request: &mut Request) -> Response {
    match &parts.cors {
        None => guarded(parts, route, request).await,
        Some(cors) => {
            let answer = |mut request| async move { guarded(parts, route, &mut request).await };
            // Boxed, for most services are called by no page.
            Box::pin(cors::cross_origin(cors, std::mem::take(request), answer)).await
        }
    }
}

/// Answers, even if that panics.
async fn guarded(parts: &Parts, route: Option<&str>, request: &mut Request) -> Response {
    match AssertUnwindSafe(access::authorised(parts, route, request)).catch_unwind().await {
        Ok(response) => response,
        Err(payload) => panicked(&*payload),
    }
}

/// What the log is told of an answer. Nothing of a path: that names businesses and users.
struct Answered<'a> {
    request_id: &'a HeaderValue,
    method: &'static str,
    route: &'a str,
    status: u16,
    took: Duration,
}

impl Answered<'_> {
    /// A line for every answer, if those are wanted, and one for a failure of ours, unless there are very many.
    fn log(&self, problem: Option<(Code, Option<String>)>) {
        let Self { method, route, status, .. } = *self;
        let request_id = self.request_id.to_str().unwrap_or_default();
        let duration_us = u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX);
        tracing::debug!(target: "sessiond::access", request_id, method, route, status, duration_us, "answered");
        let Some((code, cause)) = problem.filter(|(code, _)| code.status().is_server_error()) else { return };
        let is_bug = code.status() == StatusCode::INTERNAL_SERVER_ERROR;
        // What nobody wants to see is not left out.
        let is_wanted = if is_bug { tracing::enabled!(Level::ERROR) } else { tracing::enabled!(Level::WARN) };
        let (code, cause) = (code.as_str(), cause.unwrap_or_default());
        if !is_wanted || !log::admits(code) {
            return;
        }
        if is_bug {
            tracing::error!(request_id, method, route, status, duration_us, code, cause, "internal error");
        } else {
            tracing::warn!(request_id, method, route, status, duration_us, code, cause, "could not serve");
        }
    }
}

/// What every answer says to browsers and caches: it is what it is declared to be, and it is for this client and this
/// moment. That goes for the documentation, too: an exception would have to be kept right.
fn protect(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

/// The headers and the body of an error answer to a request that never gets to the router: it cannot be read, or there is
/// no place for its connection.
#[must_use]
pub fn refusal(status: StatusCode) -> (HeaderMap, Vec<u8>) {
    let request_id = new_request_id();
    let (mut headers, body) = error::refusal(status, request_id.to_str().unwrap_or_default());
    protect(&mut headers);
    headers.insert(X_REQUEST_ID, request_id);
    (headers, body)
}

/// A client can invent methods; there are no metrics of those.
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

/// The client's `X-Request-Id` if it is 1 to 128 visible ASCII characters, or a new one.
fn request_id(request: &Request) -> HeaderValue {
    let mut given = request.headers().get_all(X_REQUEST_ID).iter();
    if let (Some(only), None) = (given.next(), given.next()) {
        let bytes = only.as_bytes();
        if (1..=REQUEST_ID_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic) {
            return only.clone();
        }
    }
    new_request_id()
}

/// A UUID (version 4 by its form) that no other request has: steps from a random start, so large that any two differ at a glance.
/// Nobody has to be unable to guess it, and random bytes would be a system call for every request.
fn new_request_id() -> HeaderValue {
    /// Odd, so that all values come before one comes again: 2^128 divided by the golden ratio.
    const STEP: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
    thread_local! {
        static LAST: Cell<u128> = {
            let keyed = RandomState::new();
            Cell::new((u128::from(keyed.hash_one(0)) << 64) | u128::from(keyed.hash_one(1)))
        };
    }
    let next = LAST.get().wrapping_add(STEP);
    LAST.set(next);
    let id = uuid::Builder::from_random_bytes(next.to_be_bytes()).into_uuid();
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let text = id.as_hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("unidentified"))
}

fn panicked(payload: &(dyn Any + Send)) -> Response {
    metrics::panicked();
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("of an unknown kind");
    ApiError::internal(format!("panic: {text}")).into_response()
}

/// Receives the body, as fast as the client sends it and no slower than allowed; then bounds the answer.
async fn serve(parts: &Parts, route: Option<&str>, request: &mut Request) -> Result<Response, ApiError> {
    let app = &parts.app;
    let uri_bytes = request.uri().path_and_query().map_or(0, |uri| uri.as_str().len());
    if uri_bytes > app.uri_bytes_max {
        let detail = format!("The path and query are longer than {} bytes", app.uri_bytes_max);
        return Err(ApiError::new(Code::UriTooLong, detail));
    }
    receive(app, request).await?;
    let Some(route) = route else {
        return Ok(StatusCode::NOT_FOUND.into_response());
    };
    // Health is asked for even when there is no room for anything else.
    let room = if health::ROUTES.contains(&route) { None } else { Some(app.capacity.admit().await?) };
    let left = room.as_ref().map_or(app.answer_timeout, |room| app.answer_timeout.saturating_sub(room.waited));
    // A router is always ready.
    let answering = parts.router.clone().call(std::mem::take(request));
    let answered = tokio::time::timeout(left, answering).await.map_err(|_| {
        ApiError::new(Code::StoreUnavailable, "The store did not answer within the request's deadline; try again")
            .caused_by("all of its commands together took longer than the request's deadline")
    })?;
    let mut answered = answered.unwrap_or_else(|never| match never {});
    if answered.status() == StatusCode::NOT_MODIFIED {
        // The router says 0. It would have to be the length of what is not sent (RFC 9110, 8.6).
        answered.headers_mut().remove(header::CONTENT_LENGTH);
    }
    Ok(answered)
}

/// Receives all of the request's body.
async fn receive(app: &App, request: &mut Request) -> Result<(), ApiError> {
    if request.body().is_end_stream() {
        return Ok(());
    }
    let body = std::mem::take(request.body_mut());
    let received = {
        let mut receiving = pin!(extract::receive(request.headers(), body, app.body_bytes_max));
        // Most bodies come with the head, and need no timer.
        match poll_immediate(receiving.as_mut()).await {
            Some(received) => received,
            None => tokio::time::timeout(app.body_timeout, receiving).await.map_err(|_| {
                ApiError::new(Code::RequestTimeout, format!("The body did not arrive within {:?}", app.body_timeout))
            })?,
        }
    };
    *request.body_mut() = received?;
    Ok(())
}
