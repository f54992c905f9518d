//! `/api/sessions` and `/api/sessions/{sessionId}`: create, read, change and delete a session.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::AppState;
use super::auth::{Principal, forbidden_tenant};
use super::error::{ApiError, Code, problems};
use super::extract::{JsonBody, MaybeIdempotencyKey, PathSession, Query};
use super::include;
use super::json::{Fields, unreported};
use super::preconditions::{IfMatch, IfNoneMatch};
use super::response::{included_response, session_response, set_entity_tag};
use crate::session::{
    IdempotencyKey, Identifier, IfActive, Include, Included, NewSession, PatchStatus, Session, SessionPatch, Status,
};
use crate::store::{Delete, GetOrCreate, Update};

/// The routes of this file.
pub(super) fn router() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new().routes(routes!(get_or_create)).routes(routes!(get, update, delete))
}

/// The user whose session to find or create, and the members of a new session.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase", example = json!({
    "businessId": "B0100001", "userId": "user_123", "locationId": "L001", "sessionType": "general"
}))]
#[expect(dead_code, reason = "documents what `new_session` reads")]
struct GetOrCreateSession {
    /// The business that the user talks to.
    business_id: String,
    /// The user. User ids are unique in the business.
    user_id: String,
    /// The business's location. Used only if a session is created. If absent, the service's default.
    #[schema(nullable = false)]
    location_id: Option<String>,
    /// The kind of conversation. Used only if a session is created. If absent, the service's default.
    #[schema(nullable = false)]
    session_type: Option<String>,
    /// The title. Used only if a session is created.
    #[schema(max_length = 200)]
    title: Option<String>,
    /// Data of the client about the session. Used only if a session is created. At most 16 KiB as JSON by default.
    #[schema(value_type = HashMap<String, Value>, required = false)]
    metadata: Value,
    /// `return` (the default) returns an active session; `replace` ends it and creates a new one, in one atomic step.
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
    let metadata = fields.object_text("metadata", Value::to_string, metadata_bytes_max);
    let if_active = fields.word("ifActive", IfActive::WORDS, IfActive::from_word);
    fields.finish()?;
    Ok(NewSession {
        business_id: business_id.ok_or_else(unreported)?,
        user_id: user_id.ok_or_else(unreported)?,
        location_id: location_id.unwrap_or_else(|| default_location_id.clone()),
        session_type: session_type.unwrap_or_else(|| default_session_type.clone()),
        title: title.flatten(),
        metadata: metadata.unwrap_or_else(|| "{}".to_owned()),
        if_active: if_active.unwrap_or(IfActive::Return),
        idempotency_key,
    })
}

/// The changes to a session. Absent members stay unchanged.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase", example = json!({"title": "Opening hours", "metadata": {"topic": "hours"}}))]
#[expect(dead_code, reason = "documents what `session_patch` reads")]
struct UpdateSession {
    /// The business's location.
    #[schema(nullable = false)]
    location_id: Option<String>,
    /// The kind of conversation.
    #[schema(nullable = false)]
    session_type: Option<String>,
    /// The title, or null to remove it.
    #[schema(max_length = 200)]
    title: Option<String>,
    /// A merge patch for the metadata (RFC 7396): a null value removes its key, at any depth. Null as the patch removes
    /// all metadata.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    metadata: Option<Value>,
    /// `ended` ends the session; `active` resumes it as the user's active session.
    #[schema(nullable = false)]
    status: Option<PatchStatus>,
    /// If another session is active, `return` (the default) rejects a resume, and `replace` ends the other session.
    #[schema(nullable = false, default = "return")]
    if_active: Option<IfActive>,
}

/// Reads the body of an update.
pub(super) fn session_patch(body: Value) -> Result<SessionPatch, ApiError> {
    let mut fields = Fields::of_body(body)?;
    let patch = SessionPatch {
        location_id: fields.identifier("locationId"),
        session_type: fields.identifier("sessionType"),
        title: fields.title("title"),
        metadata: fields.metadata_patch("metadata"),
        status: fields.word("status", PatchStatus::WORDS, PatchStatus::from_word),
        if_active: fields.word("ifActive", IfActive::WORDS, IfActive::from_word).unwrap_or(IfActive::Return),
    };
    fields.finish()?;
    Ok(patch)
}

problems! {
    /// The errors of a get-or-create.
    GetOrCreateProblems {
        InvalidRequest, RequestTimeout, PayloadTooLarge, UnsupportedMediaType, StoreFull, ClockSkew
    }
}

/// Find or create a session
///
/// Returns the user's active session, or a new one, in one atomic step: concurrent calls return the same session.
///
/// With an `Idempotency-Key`, a call with `replace` can be repeated too: the same key of the same user stands for the
/// same new session. The response to a repeated call is `200` with the current state of that session. It may have ended
/// or expired, so check its `status`. The body is not compared. If the session no longer exists (deleted, erased, past
/// its retention, or removed as one of the oldest), the key creates a new one with the same id.
///
/// A create removes the user's oldest sessions beyond `--max-sessions-per-user`.
#[utoipa::path(
    post, path = "/api/sessions", tag = "sessions", operation_id = "getOrCreateSession",
    params(("Idempotency-Key" = Option<String>, Header, nullable = false, min_length = 16, max_length = 128,
        pattern = "^[!-~]+$", description = "Names the new session: 16 to 128 visible ASCII characters, e.g. a UUID.",
        example = "0b8e0a52-2a3f-4d3c-8f0a-6a4f6f1f7a11")),
    request_body = GetOrCreateSession,
    responses(
        (status = 200, description = "The user's active session, or the session of this key.", body = Session,
            headers(("ETag" = String, description = "The session's version, in quotes."))),
        (status = 201, description = "A new session.", body = Session, headers(
            ("ETag" = String, description = "The session's version, in quotes."),
            ("Location" = String, description = "The session's path."),
        )),
        GetOrCreateProblems,
    ),
)]
async fn get_or_create(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    MaybeIdempotencyKey(idempotency_key): MaybeIdempotencyKey,
    JsonBody { value: body, .. }: JsonBody,
) -> Result<Response, ApiError> {
    let new = new_session(
        body,
        idempotency_key,
        &app.sessions.default_location_id,
        &app.sessions.default_session_type,
        app.sessions.metadata_bytes_max,
    )?;
    if !caller.tenant_scope().contains_user(new.business_id.as_str(), new.user_id.as_str()) {
        return Err(forbidden_tenant());
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
    /// The errors of reading a session.
    GetProblems { InvalidRequest, SessionNotFound }
}

/// Read a session
#[utoipa::path(
    get, path = "/api/sessions/{sessionId}", tag = "sessions", operation_id = "getSession",
    params(
        ("sessionId" = String, Path, description = "The session.", format = Uuid),
        ("If-None-Match" = Option<String>, Header, nullable = false, example = "\"1\"", description =
            "Respond with 304 if this is still the session's `ETag`. Activity and messages do not change the `ETag`. \
            An expired session is always returned, and so is one with `include`."),
        ("include" = Option<Included>, Query, description = "Members to add to the session.", nullable = false),
    ),
    responses(
        (status = 200, description = "The session.", body = Session,
            headers(("ETag" = String, description = "The session's version, in quotes."))),
        (status = 304, description = "The session's version is one that `If-None-Match` names.",
            headers(("ETag" = String, description = "The session's version, in quotes."))),
        GetProblems,
    ),
)]
async fn get(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    PathSession(id): PathSession,
    if_none_match: IfNoneMatch,
    mut query: Query,
) -> Result<Response, ApiError> {
    let include = include::read(&mut query);
    query.finish()?;
    let session = app.store.get(id, caller.tenant_scope(), app.now()).await?;
    let session = session.ok_or_else(|| ApiError::session_not_found(&id.to_string()))?;
    if include != Include::default() {
        // Never `304`: a new message does not change the version.
        // Boxed to keep the future of the usual call small.
        return Box::pin(included_response(&app, &caller, session, include)).await;
    }
    Ok(read_response(&session, &if_none_match))
}

problems! {
    /// The errors of changing a session.
    UpdateProblems {
        InvalidRequest, SessionNotFound, RequestTimeout, AnotherSessionActive, ConcurrentUpdate, VersionMismatch,
        PayloadTooLarge, UnsupportedMediaType, StoreFull, ClockSkew
    }
}

/// Change, end or resume a session
///
/// Changes all of the members in the body, or none. An empty object is a heartbeat, which keeps an active session
/// active. Ended sessions can be changed too. Without `If-Match`, concurrent changes of different members are all kept.
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
        (status = 200, description = "The session after the change.", body = Session,
            headers(("ETag" = String, description = "The session's version, in quotes."))),
        UpdateProblems,
    ),
)]
async fn update(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    PathSession(id): PathSession,
    IfMatch(condition): IfMatch,
    JsonBody { value: body, .. }: JsonBody,
) -> Result<Response, ApiError> {
    let patch = session_patch(body)?;
    match app.store.update(id, &patch, &condition, caller.tenant_scope(), app.now()).await? {
        Update::Updated(session) => Ok(session_response(StatusCode::OK, &session)),
        Update::Missing => Err(ApiError::session_not_found(&id.to_string())),
        Update::VersionMismatch(version) => Err(version_mismatch(version)),
        Update::AnotherActive(active) => Err(ApiError::another_session_active(active)),
        Update::ConcurrentUpdate => {
            Err(ApiError::new(Code::ConcurrentUpdate, "Concurrent changes came first; nothing was changed, try again"))
        }
        Update::MetadataTooLarge => Err(ApiError::metadata_too_large(app.sessions.metadata_bytes_max)),
    }
}

problems! {
    /// The errors of deleting a session.
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
    responses((status = 204, description = "The session is deleted."), DeleteProblems),
)]
async fn delete(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    PathSession(id): PathSession,
    IfMatch(condition): IfMatch,
) -> Result<StatusCode, ApiError> {
    match app.store.delete(id, &condition, caller.tenant_scope(), app.now()).await? {
        Delete::Deleted => Ok(StatusCode::NO_CONTENT),
        Delete::Missing => Err(ApiError::session_not_found(&id.to_string())),
        Delete::VersionMismatch(version) => Err(version_mismatch(version)),
    }
}

fn version_mismatch(version: u64) -> ApiError {
    ApiError::new(Code::VersionMismatch, format!("If-Match does not name the current version, \"{version}\""))
}

/// The response to a read: `304` if the client already has this version.
///
/// The response for an expired session is never `304`, because expiry does not change the version, and the client must
/// learn of the expiry. For a similar reason, reading a user's active session has no `304`: the next active session may
/// have the same version as the previous one.
fn read_response(session: &Session, if_none_match: &IfNoneMatch) -> Response {
    if session.status == Status::Expired || !if_none_match.names(session.version) {
        return session_response(StatusCode::OK, session);
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    set_entity_tag(&mut response, session);
    response
}
