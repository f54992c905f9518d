//! `/api/sessions` and `/api/sessions/{sessionId}`: create, read, change, delete.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::access::{Caller, outside};
use super::error::{ApiError, Code, problems};
use super::extract::{JsonBody, MaybeIdempotencyKey, PathSession};
use super::json::Fields;
use super::preconditions::{IfMatch, IfNoneMatch};
use crate::session::{IdempotencyKey, Identifier, IfActive, NewSession, PatchStatus, Session, SessionPatch, Status};
use crate::store::{Delete, GetOrCreate, MemoryPermit, Update};

/// The most bytes of a large body that the connection takes at once.
const BODY_PART_BYTES: usize = 64 << 10;

/// The routes of this file.
pub(super) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(get_or_create)).routes(routes!(get, update, delete))
}

/// Which conversation a user of a business is to be in.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase", example = json!({
    "businessId": "B0100001", "userId": "user_123", "locationId": "L001", "sessionType": "general"
}))]
#[expect(dead_code, reason = "documents what `new_session` reads")]
struct GetOrCreateSession {
    /// The business that the user talks to.
    business_id: String,
    /// The user, unique in the business.
    user_id: String,
    /// The business's location. Taken if a session is created; the service's default if absent.
    #[schema(nullable = false)]
    location_id: Option<String>,
    /// What kind of conversation it is. Taken if a session is created; the service's default if absent.
    #[schema(nullable = false)]
    session_type: Option<String>,
    /// The title. Taken if a session is created.
    #[schema(max_length = 200)]
    title: Option<String>,
    /// What the client keeps with the session. Taken if a session is created. At most 16 KiB as JSON.
    #[schema(value_type = HashMap<String, Value>, required = false)]
    metadata: Value,
    /// `return` (the default) gives back an active session; `replace` ends it and creates a new one, in one step.
    #[schema(nullable = false, default = "return")]
    if_active: Option<IfActive>,
}

/// Reads the body of a get-or-create.
pub(super) fn new_session(
    body: Value,
    idempotency_key: Option<IdempotencyKey>,
    default_location_id: &Identifier,
    default_session_type: &Identifier,
    metadata_bytes_max: usize,
) -> Result<NewSession, ApiError> {
    let mut fields = Fields::of_body(body)?;
    let business_id = fields.required("businessId", Fields::identifier);
    let user_id = fields.required("userId", Fields::identifier);
    let location_id = fields.identifier("locationId");
    let session_type = fields.identifier("sessionType");
    let title = fields.title("title");
    let metadata = fields.object_text("metadata", metadata_bytes_max);
    let if_active = fields.word("ifActive", IfActive::WORDS, IfActive::from_word);
    fields.finish()?;
    // Both are there, or `finish` would have said that they are not.
    let (Some(business_id), Some(user_id)) = (business_id, user_id) else {
        return Err(ApiError::internal("a required field is missing without a problem"));
    };
    Ok(NewSession {
        business_id,
        user_id,
        location_id: location_id.unwrap_or_else(|| default_location_id.clone()),
        session_type: session_type.unwrap_or_else(|| default_session_type.clone()),
        title: title.flatten(),
        metadata: metadata.unwrap_or_else(|| "{}".to_owned()),
        if_active: if_active.unwrap_or(IfActive::Return),
        idempotency_key,
    })
}

/// The changes to a session. Absent members stay as they are.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase", example = json!({"title": "Opening hours", "metadata": {"topic": "hours"}}))]
#[expect(dead_code, reason = "documents what `session_patch` reads")]
struct UpdateSession {
    /// The business's location.
    #[schema(nullable = false)]
    location_id: Option<String>,
    /// What kind of conversation it is.
    #[schema(nullable = false)]
    session_type: Option<String>,
    /// The title, or null to remove it.
    #[schema(max_length = 200)]
    title: Option<String>,
    /// Merged into the metadata (RFC 7396): null removes a key, at any depth; null itself empties it.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    metadata: Option<Value>,
    /// `ended` ends the session; `active` resumes it as the user's active one.
    #[schema(nullable = false)]
    status: Option<PatchStatus>,
    /// What a resume does if another session is active: `return` (the default) refuses, `replace` ends that one.
    #[schema(nullable = false, default = "return")]
    if_active: Option<IfActive>,
}

/// Reads the body of a change.
pub(super) fn session_patch(body: Value) -> Result<SessionPatch, ApiError> {
    let mut fields = Fields::of_body(body)?;
    let patch = SessionPatch {
        location_id: fields.identifier("locationId"),
        session_type: fields.identifier("sessionType"),
        title: fields.title("title"),
        metadata: match fields.take("metadata") {
            Some(patch @ (Value::Object(_) | Value::Null)) => Some(patch),
            Some(_) => fields.problem("metadata", "must be an object or null"),
            None => None,
        },
        status: fields.word("status", PatchStatus::WORDS, PatchStatus::from_word),
        if_active: fields.word("ifActive", IfActive::WORDS, IfActive::from_word).unwrap_or(IfActive::Return),
    };
    fields.finish()?;
    Ok(patch)
}

problems! {
    /// What a get-or-create can be refused for.
    GetOrCreateProblems {
        InvalidRequest, RequestTimeout, PayloadTooLarge, UnsupportedMediaType, StoreFull, ClockSkew
    }
}

/// Find or create a session
///
/// The user's active session, or a new one, decided in one atomic step: however many ask at once, they get one session.
///
/// With an `Idempotency-Key` the call can be repeated although it replaces: the same key of the same user stands for the
/// same new session. A repeated call is answered `200` with that session as it is now; look at its `status`, because it may
/// be over. The body is not compared. When the session is gone (deleted, erased, or past its retention), the key creates a
/// new one with the same id.
#[utoipa::path(
    post, path = "/api/sessions", tag = "sessions", operation_id = "getOrCreateSession",
    params(("Idempotency-Key" = Option<String>, Header, nullable = false, min_length = 16, max_length = 128,
        pattern = "^[!-~]+$", description = "Names the new session. 16 to 128 visible ASCII characters, such as a UUID.",
        example = "0b8e0a52-2a3f-4d3c-8f0a-6a4f6f1f7a11")),
    request_body = GetOrCreateSession,
    responses(
        (status = 200, description = "The user's active session, or the one that this key created before.", body = Session,
            headers(("ETag" = String, description = "The session's version, in quotes."))),
        (status = 201, description = "A new session.", body = Session, headers(
            ("ETag" = String, description = "The session's version, in quotes."),
            ("Location" = String, description = "The session's path."),
        )),
        GetOrCreateProblems,
    ),
)]
async fn get_or_create(
    State(app): State<Arc<App>>,
    caller: Caller,
    MaybeIdempotencyKey(idempotency_key): MaybeIdempotencyKey,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let new = new_session(
        body,
        idempotency_key,
        &app.default_location_id,
        &app.default_session_type,
        app.metadata_bytes_max,
    )?;
    if !caller.reach().admits_user(new.business_id.as_str(), new.user_id.as_str()) {
        return Err(outside());
    }
    Ok(match app.store.get_or_create(&new, app.now()).await? {
        GetOrCreate::Resumed(session) | GetOrCreate::Replayed(session) => session_response(StatusCode::OK, &session),
        GetOrCreate::Created(session) => {
            let location = format!("/api/sessions/{}", session.session_id);
            ([(header::LOCATION, location)], session_response(StatusCode::CREATED, &session)).into_response()
        }
    })
}

problems! {
    /// What a read can be refused for.
    GetProblems { SessionNotFound }
}

/// Read a session
#[utoipa::path(
    get, path = "/api/sessions/{sessionId}", tag = "sessions", operation_id = "getSession",
    params(
        ("sessionId" = String, Path, description = "The session.", format = Uuid),
        ("If-None-Match" = Option<String>, Header, nullable = false, example = "\"1\"", description =
            "Answer 304 if this is still the session's `ETag`. Activity and messages do not change that; an expired \
            session is always answered."),
    ),
    responses(
        (status = 200, description = "The session.", body = Session,
            headers(("ETag" = String, description = "The session's version, in quotes."))),
        (status = 304, description = "The session still has a version that `If-None-Match` names.",
            headers(("ETag" = String, description = "The session's version, in quotes."))),
        GetProblems,
    ),
)]
async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    PathSession(id): PathSession,
    if_none_match: IfNoneMatch,
) -> Result<Response, ApiError> {
    let session = app.store.get(id, caller.reach(), app.now()).await?;
    let session = session.ok_or_else(|| ApiError::session_not_found(&id.to_string()))?;
    Ok(read_response(&session, &if_none_match))
}

problems! {
    /// What a change can be refused for.
    UpdateProblems {
        InvalidRequest, SessionNotFound, RequestTimeout, AnotherSessionActive, ConcurrentUpdate, VersionMismatch,
        PayloadTooLarge, UnsupportedMediaType, StoreFull, ClockSkew
    }
}

/// Change, end or resume a session
///
/// Changes the members that are named, all of them or none. An empty object is the heartbeat: it keeps an active session
/// active. Ended sessions can still be changed. Without `If-Match`, concurrent changes of different members are all kept.
#[utoipa::path(
    patch, path = "/api/sessions/{sessionId}", tag = "sessions", operation_id = "updateSession",
    params(
        ("sessionId" = String, Path, description = "The session.", format = Uuid),
        ("If-Match" = Option<String>, Header, description = "Change only if this is the session's `ETag`.",
            nullable = false, example = "\"1\""),
    ),
    request_body(content(
        (UpdateSession = "application/json"), (UpdateSession = "application/merge-patch+json"),
    )),
    responses(
        (status = 200, description = "The session as it is now.", body = Session,
            headers(("ETag" = String, description = "The session's version, in quotes."))),
        UpdateProblems,
    ),
)]
async fn update(
    State(app): State<Arc<App>>,
    caller: Caller,
    PathSession(id): PathSession,
    IfMatch(condition): IfMatch,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let patch = session_patch(body)?;
    match app.store.update(id, &patch, &condition, caller.reach(), app.now()).await? {
        Update::Updated(session) => Ok(session_response(StatusCode::OK, &session)),
        Update::Missing => Err(ApiError::session_not_found(&id.to_string())),
        Update::VersionMismatch(version) => Err(version_mismatch(version)),
        Update::AnotherActive(active) => Err(ApiError::another_session_active(active)),
        Update::ConcurrentUpdate => {
            Err(ApiError::new(Code::ConcurrentUpdate, "Other changes came in between; nothing was changed, try again"))
        }
        Update::MetadataTooLarge => {
            let message = format!("must have at most {} bytes as JSON after the merge", app.metadata_bytes_max);
            Err(ApiError::field("metadata", message))
        }
    }
}

problems! {
    /// What a deletion can be refused for.
    DeleteProblems { SessionNotFound, VersionMismatch }
}

/// Delete a session with its messages
#[utoipa::path(
    delete, path = "/api/sessions/{sessionId}", tag = "sessions", operation_id = "deleteSession",
    params(
        ("sessionId" = String, Path, description = "The session.", format = Uuid),
        ("If-Match" = Option<String>, Header, description = "Delete only if this is the session's `ETag`.",
            nullable = false, example = "\"1\""),
    ),
    responses((status = 204, description = "It is gone."), DeleteProblems),
)]
async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    PathSession(id): PathSession,
    IfMatch(condition): IfMatch,
) -> Result<StatusCode, ApiError> {
    match app.store.delete(id, &condition, caller.reach(), app.now()).await? {
        Delete::Deleted => Ok(StatusCode::NO_CONTENT),
        Delete::Missing => Err(ApiError::session_not_found(&id.to_string())),
        Delete::VersionMismatch(version) => Err(version_mismatch(version)),
    }
}

fn version_mismatch(version: u64) -> ApiError {
    ApiError::new(Code::VersionMismatch, format!("If-Match does not name the current version, \"{version}\""))
}

/// A session as the answer to a read: a `304` if the client has this version already.
///
/// Not of an expired session: it has the version that it had while it was active, and its client has to learn of the
/// expiry. For the same reason the read of a user's active session has no `304`: the next session may have the version
/// of the last.
fn read_response(session: &Session, if_none_match: &IfNoneMatch) -> Response {
    if session.status == Status::Expired || !if_none_match.names(session.version) {
        return session_response(StatusCode::OK, session);
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    tag(&mut response, session);
    response
}

/// A session as an answer, with its version as the entity tag.
pub(super) fn session_response(status: StatusCode, session: &Session) -> Response {
    let mut body = Vec::with_capacity(640 + session.metadata.len());
    session.write_json(&mut body);
    let mut response = json_response(status, body);
    tag(&mut response, session);
    response
}

/// Sets the entity tag: the version in quotes.
fn tag(response: &mut Response, session: &Session) {
    // As many digits as the largest has, between two quotes.
    let mut tag = [b'"'; 22];
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(session.version).as_bytes();
    tag[1..=digits.len()].copy_from_slice(digits);
    if let Ok(tag) = HeaderValue::from_bytes(&tag[..digits.len() + 2]) {
        response.headers_mut().insert(header::ETAG, tag);
    }
}

/// JSON that is written already, as an answer.
pub(super) fn json_response(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A page as a response. Other requests are served while a large one is written, and its memory is kept until its last part
/// is taken.
pub(super) async fn page_response<T>(
    items: &[T],
    write: fn(&T, &mut Vec<u8>),
    memory: Option<MemoryPermit>,
) -> Response {
    let Some(memory) = memory else {
        return json_response(StatusCode::OK, json_array(items, write));
    };
    let (mut body, mut written) = (Vec::new(), 0);
    for item in items {
        body.push(if body.is_empty() { b'[' } else { b',' });
        write(item, &mut body);
        if body.len() - written > BODY_PART_BYTES {
            written = body.len();
            tokio::task::yield_now().await;
        }
    }
    body.extend_from_slice(if body.is_empty() { b"[]" } else { b"]" });
    let mut response = json_response(StatusCode::OK, Vec::new());
    *response.body_mut() = Body::new(LargeBody { left: body.into(), has_yielded: false, _memory: memory });
    response
}

/// A body that is given out in parts, so that the connection buffers only a little of it.
struct LargeBody {
    left: Bytes,
    /// Other requests had their turn since the last part.
    has_yielded: bool,
    _memory: MemoryPermit,
}

impl HttpBody for LargeBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.has_yielded = !self.has_yielded;
        if self.has_yielded && !self.left.is_empty() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let length = self.left.len().min(BODY_PART_BYTES);
        Poll::Ready((length > 0).then(|| Ok(Frame::data(self.left.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.left.len()).unwrap_or(u64::MAX))
    }
}

/// Several items as a JSON array.
pub(super) fn json_array<T>(items: &[T], write: fn(&T, &mut Vec<u8>)) -> Vec<u8> {
    let mut body = vec![b'['];
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        write(item, &mut body);
    }
    body.push(b']');
    body
}
