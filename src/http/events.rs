//! `/api/sessions/{sessionId}/events` and `/api/sessions/business/{businessId}/events`: event streams.

use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::AppState;
use super::auth::Principal;
use super::error::{ApiError, Code, problems};
use super::extract::{PathBusiness, PathSession, Query};
use super::json::SAFE_INTEGER_MAX;
use crate::metrics;
use crate::store::StoreError;
use crate::streams::{StreamError, StreamLimit, StreamStart};

/// The content type of event streams.
const EVENT_STREAM: &str = "text/event-stream";
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// Maximum number of messages that a stream begins with.
const LAST_MAX: u64 = 100;

/// The routes of this file.
pub(super) fn router() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new().routes(routes!(session_events)).routes(routes!(business_events))
}

/// One of the events of a stream (docs/api.md, "Event streams").
#[derive(ToSchema)]
#[schema(example = json!({"event": "ready", "id": "1.a1d304f8.1.629dd362.0.0.0.0.0", "data": "{}"}))]
#[expect(dead_code, reason = "documents what streams send")]
struct ServerSentEvent {
    /// What the event is about: `reset`, `session`, `message`, `turn`, `chunk`, `ready`, `changed`, `deleted` or `bye`.
    event: String,
    /// The position of the stream after the event, for `Last-Event-ID`. Absent if the event does not move it.
    #[schema(required = false, nullable = false)]
    id: Option<String>,
    /// JSON.
    data: String,
}

problems! {
    /// The errors of opening a stream of a session.
    SessionEventsProblems { InvalidRequest, SessionNotFound }
}

/// Stream the events of a session
///
/// Server-sent events: the session, its messages and turns, and the chunks of turns, as they are written. Each message
/// is sent once and in order, over a stream and all its continuations with `Last-Event-ID`; otherwise the event `reset`
/// is sent. Reading a stream is not activity.
#[utoipa::path(
    get, path = "/api/sessions/{sessionId}/events", tag = "events", operation_id = "sessionEvents",
    params(
        ("sessionId" = String, Path, description = "The session.", format = Uuid),
        ("last" = Option<u64>, Query, description = "How many of the newest messages to begin with; default 0.",
            minimum = 0, maximum = 100, nullable = false),
        ("after" = Option<u64>, Query, description = "Begin with the messages after this `seq`. Then `last` \
            counts only if that is not possible.",
            minimum = 0, maximum = 9_007_199_254_740_991_u64, nullable = false),
        ("Last-Event-ID" = Option<String>, Header, description = "Continue after the event with this id. \
            `after` and `last` apply only if that is not possible."),
    ),
    responses(
        (status = 200, description = "The events, until the client or the service ends the stream.",
            body = ServerSentEvent, content_type = "text/event-stream"),
        SessionEventsProblems,
    ),
)]
async fn session_events(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    PathSession(id): PathSession,
    headers: HeaderMap,
    mut query: Query,
) -> Result<Response, ApiError> {
    let last = query.number("last", 0, LAST_MAX);
    let after = query.number("after", 0, SAFE_INTEGER_MAX);
    query.finish()?;
    let session = app.store.get(id, caller.tenant_scope(), app.now()).await?;
    let session = session.ok_or_else(|| ApiError::session_not_found(&id.to_string()))?;
    let cursor = headers.get(LAST_EVENT_ID).filter(|cursor| !cursor.is_empty());
    let start = match (cursor, after) {
        (Some(cursor), _) => StreamStart::Cursor(String::from_utf8_lossy(cursor.as_bytes()).into_owned()),
        (None, Some(seq)) => StreamStart::After(seq),
        (None, None) => StreamStart::Last,
    };
    let opened =
        app.streams.open_session_stream(&session, start, last.unwrap_or_default(), caller.stream_caller(&headers));
    Ok(stream_response(Box::pin(opened).await?))
}

problems! {
    /// The errors of opening a stream of a business.
    BusinessEventsProblems { InvalidRequest }
}

/// Stream the events of a business
///
/// Server-sent events about all sessions of the business, without chunks; messages without `content` and `metadata`.
/// The event `reset` is sent first, and whenever events may have been lost: read the active sessions after it.
#[utoipa::path(
    get, path = "/api/sessions/business/{businessId}/events", tag = "events", operation_id = "businessEvents",
    params(("businessId" = String, Path, description = "The business.")),
    responses(
        (status = 200, description = "The events, until the client or the service ends the stream.",
            body = ServerSentEvent, content_type = "text/event-stream"),
        BusinessEventsProblems,
    ),
)]
async fn business_events(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    PathBusiness(business_id): PathBusiness,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.store.ensure_layout().await?;
    Ok(stream_response(app.streams.open_business_stream(business_id.as_str(), caller.stream_caller(&headers)).await?))
}

/// Marks a response whose body has no end of its own: it ends when the client or the service ends it.
#[derive(Clone, Copy, Debug)]
pub struct IsEventStream;

/// A response that clients and proxies must pass on without buffering.
fn stream_response(body: impl HttpBody<Data = Bytes, Error = std::convert::Infallible> + Send + 'static) -> Response {
    let mut response = Response::new(Body::new(body));
    response.extensions_mut().insert(IsEventStream);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

impl From<StreamError> for ApiError {
    fn from(error: StreamError) -> Self {
        let (problem, reason) = match error {
            StreamError::Store(error) => return StoreError::into(error),
            StreamError::Stopping => ("The service is stopping; try again", "streams"),
            StreamError::Limit(StreamLimit::Total) => ("There are too many event streams; try again later", "streams"),
            StreamError::Limit(StreamLimit::User) => {
                ("This user has too many event streams; close one, or try again later", "user_streams")
            }
        };
        metrics::stream_shed(reason);
        Self::new(Code::Overloaded, problem)
    }
}
