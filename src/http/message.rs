//! `/api/sessions/{sessionId}/messages/{messageId}`: read, change and redact one message.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::AppState;
use super::auth::{Principal, forbidden_role};
use super::error::{ApiError, Code, problems};
use super::extract::{JsonBody, PathMessage};
use super::json::{Fields, unreported};
use super::response::{json_response, large_response};
use crate::session::{Message, MessageJson, MessageRef};
use crate::store::{self, GetMessage, MemoryPermit, RedactMessage};

/// The routes of this file.
pub(super) fn router() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new().routes(routes!(get_message, update_message, redact_message))
}

/// The change of a message.
#[derive(ToSchema)]
#[schema(example = json!({"metadata": {"feedback": "good"}}))]
#[expect(dead_code, reason = "documents what `metadata_patch` reads")]
struct UpdateMessage {
    /// A merge patch for the metadata (RFC 7396): a null value removes its key, at any depth. Null as the patch removes
    /// all metadata.
    #[schema(value_type = Option<HashMap<String, Value>>, required)]
    metadata: Value,
}

/// Reads the body of an update: a merge patch of the metadata.
fn metadata_patch(body: Value) -> Result<Value, ApiError> {
    let mut fields = Fields::of_body(body)?;
    let patch = fields.required("metadata", Fields::metadata_patch);
    fields.finish()?;
    patch.ok_or_else(unreported)
}

problems! {
    /// The errors of reading a message.
    GetProblems { InvalidRequest, SessionNotFound, MessageNotFound }
}

/// Read a message
#[utoipa::path(
    get, path = "/api/sessions/{sessionId}/messages/{messageId}", tag = "messages", operation_id = "getMessage",
    params(
        ("sessionId" = String, Path, description = "The session.", format = Uuid),
        ("messageId" = String, Path, description = "The message."),
    ),
    responses((status = 200, description = "The message.", body = Message), GetProblems),
)]
async fn get_message(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    PathMessage(message): PathMessage,
) -> Result<Response, ApiError> {
    match app.store.get_message(&message, caller.tenant_scope(), caller.response_owner(), app.now()).await? {
        GetMessage::Found(found, memory) => Ok(message_response(found, memory)),
        GetMessage::SessionMissing => Err(session_not_found(&message)),
        GetMessage::MessageMissing => Err(message_not_found(&message)),
    }
}

problems! {
    /// The errors of changing a message.
    UpdateProblems {
        InvalidRequest, SessionNotFound, MessageNotFound, RequestTimeout, ConcurrentUpdate, PayloadTooLarge,
        UnsupportedMediaType, StoreFull, ClockSkew
    }
}

/// Change the metadata of a message
///
/// This also works in sessions that are not active, and does not count as activity. Concurrent changes of different
/// members are all kept. A redacted message does not change. With the token of a user, only the member `feedback` of
/// messages of other roles can be changed.
#[utoipa::path(
    patch, path = "/api/sessions/{sessionId}/messages/{messageId}", tag = "messages", operation_id = "updateMessage",
    params(
        ("sessionId" = String, Path, description = "The session.", format = Uuid),
        ("messageId" = String, Path, description = "The message."),
    ),
    request_body(content(
        (UpdateMessage = "application/json"), (UpdateMessage = "application/merge-patch+json"),
    )),
    responses((status = 200, description = "The message after the change.", body = Message), UpdateProblems),
)]
async fn update_message(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    PathMessage(message): PathMessage,
    JsonBody { value: body, .. }: JsonBody,
) -> Result<Response, ApiError> {
    let patch = metadata_patch(body)?;
    let (scope, owner) = (caller.tenant_scope(), caller.response_owner());
    let own_roles = caller.own_roles(&app.user_roles);
    match app.store.update_message(&message, &patch, own_roles, scope, owner, app.now()).await? {
        store::UpdateMessage::Updated(updated, memory) => Ok(message_response(updated, memory)),
        store::UpdateMessage::SessionMissing => Err(session_not_found(&message)),
        store::UpdateMessage::MessageMissing => Err(message_not_found(&message)),
        store::UpdateMessage::Forbidden(role) => {
            let limited_to = "change metadata other than `feedback` only in messages of";
            Err(forbidden_role("The message's role", role, limited_to, &app.user_roles))
        }
        store::UpdateMessage::ConcurrentUpdate => {
            Err(ApiError::new(Code::ConcurrentUpdate, "Concurrent changes came first; nothing was changed, try again"))
        }
        store::UpdateMessage::MetadataTooLarge => Err(ApiError::metadata_too_large(app.sessions.metadata_bytes_max)),
        store::UpdateMessage::SessionTooLarge => {
            let bytes_max = app.sessions.session_bytes_max;
            let problem = format!("would make the session's messages larger than {bytes_max} bytes as JSON");
            Err(ApiError::field("metadata", problem))
        }
    }
}

problems! {
    /// The errors of redacting a message.
    RedactProblems { InvalidRequest, SessionNotFound, MessageNotFound }
}

/// Redact a message
///
/// The message stays at its `seq`, with `content` null, empty `metadata`, and `redactedAt`. This also works in sessions
/// that are not active, and does not count as activity. The token of a user can redact only messages with the roles
/// that it can append.
#[utoipa::path(
    delete, path = "/api/sessions/{sessionId}/messages/{messageId}", tag = "messages", operation_id = "redactMessage",
    params(
        ("sessionId" = String, Path, description = "The session.", format = Uuid),
        ("messageId" = String, Path, description = "The message."),
    ),
    responses((status = 204, description = "The message is redacted."), RedactProblems),
)]
async fn redact_message(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    PathMessage(message): PathMessage,
) -> Result<StatusCode, ApiError> {
    let own_roles = caller.own_roles(&app.user_roles);
    match app.store.redact_message(&message, own_roles, caller.tenant_scope(), app.now()).await? {
        RedactMessage::Redacted => Ok(StatusCode::NO_CONTENT),
        RedactMessage::SessionMissing => Err(session_not_found(&message)),
        RedactMessage::MessageMissing => Err(message_not_found(&message)),
        RedactMessage::Forbidden(role) => {
            Err(forbidden_role("The message's role", role, "redact only messages of", &app.user_roles))
        }
    }
}

fn message_response(message: MessageJson, memory: Option<MemoryPermit>) -> Response {
    match memory {
        Some(memory) => large_response([message.into_bytes()].into(), memory),
        None => json_response(StatusCode::OK, message.as_bytes().to_vec()),
    }
}

fn session_not_found(message: &MessageRef) -> ApiError {
    ApiError::session_not_found(&message.session_id.to_string())
}

fn message_not_found(message: &MessageRef) -> ApiError {
    ApiError::message_not_found(message.message_id.as_str())
}
