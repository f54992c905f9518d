//! `/api/sessions/{sessionId}/turns`: begin, write, end, cancel and read turns.

mod body;

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use utoipa::openapi::schema::{AllOfBuilder, ArrayBuilder, Object, ObjectBuilder, Schema, Type};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::body::{AppendChunksBody, BeginTurnBody, EndTurnBody, LATEST, end_request, new_chunks, new_turn};
use super::AppState;
use super::auth::{Principal, forbidden_writer};
use super::error::{ApiError, Code, ProblemMembers, problems};
use super::extract::{JsonBody, PathSession, PathTurn, Query};
use super::json::SAFE_INTEGER_MAX;
use super::messages::session_not_active;
use super::response::{json_response, large_response};
use crate::session::{Identifier, SessionId, TURN_CHUNKS_MAX, Timestamp, Turn};
use crate::store::{AppendChunks, BeginTurn, CancelTurn, EndTurn, GetTurn, NotOpen, TurnName};

/// Characters that a path segment must percent-encode: all except the unreserved ones (RFC 3986, section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The routes of this file.
pub(super) fn router() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new()
        .routes(routes!(begin_turn))
        .routes(routes!(get_turn))
        .routes(routes!(append_chunks))
        .routes(routes!(end_turn))
        .routes(routes!(cancel_turn))
}

/// The state of a turn after an append.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase", example = json!({
    "nextChunk": 2, "leaseUntil": "2026-11-22T10:00:31.000Z", "cancelRequested": false
}))]
#[expect(dead_code, reason = "documents what `append_chunks` returns")]
struct AppendedChunks {
    /// How many chunks the turn has.
    #[schema(minimum = 0)]
    next_chunk: u64,
    /// When the lease of the writer ends.
    #[schema(value_type = String, format = DateTime)]
    lease_until: Timestamp,
    /// Whether a reader has asked the writer to stop.
    cancel_requested: bool,
}

/// A turn with its chunks.
struct TurnWithChunks;

impl PartialSchema for TurnWithChunks {
    fn schema() -> RefOr<Schema> {
        let description =
            "From number `from` on. They stay readable for the lease time after the end, unless another turn begins.";
        let chunks = ArrayBuilder::new().items(Object::with_type(Type::String)).description(Some(description));
        let chunks = ObjectBuilder::new().property("chunks", chunks).required("chunks");
        AllOfBuilder::new().item(Ref::from_schema_name("Turn")).item(chunks).into()
    }
}

impl ToSchema for TurnWithChunks {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push(("Turn".to_owned(), Turn::schema()));
        Turn::schemas(schemas);
    }
}

/// Rejects the token of one user: a user must not be able to speak as the assistant.
fn check_writer(caller: &Principal) -> Result<(), ApiError> {
    if caller.is_one_user() { Err(forbidden_writer()) } else { Ok(()) }
}

fn not_open(not_open: NotOpen, id: SessionId, turn_id: &Identifier) -> ApiError {
    let (detail, status) = match not_open {
        NotOpen::SessionMissing => return session_not_found(id),
        NotOpen::TurnMissing => return ApiError::turn_not_found(turn_id.as_str()),
        NotOpen::Taken => ("Another writer has the turn; stop writing it".to_owned(), "taken"),
        NotOpen::Closed(turn) => (format!("The turn is {}", turn.status.as_str()), turn.status.as_str()),
    };
    let members = ProblemMembers { turn_status: Some(status), ..ProblemMembers::default() };
    ApiError::new(Code::TurnClosed, detail).with_members(members)
}

fn session_not_found(id: SessionId) -> ApiError {
    ApiError::session_not_found(&id.to_string())
}

problems! {
    /// The errors of beginning a turn.
    BeginProblems {
        InvalidRequest, SessionNotFound, RequestTimeout, SessionNotActive, TurnOpen, PayloadTooLarge,
        UnsupportedMediaType, StoreFull, ClockSkew
    }
}

/// Begin a turn
///
/// A turn is one message that one writer writes chunk by chunk while others read along. A session has at most one open
/// turn. A repeated call with the same `turnId` and `writer`, or with the `turnId` of a closed turn, returns that turn.
/// The token of a user cannot begin turns.
#[utoipa::path(
    post, path = "/api/sessions/{sessionId}/turns", tag = "turns", operation_id = "beginTurn",
    params(("sessionId" = String, Path, description = "The session.", format = Uuid)),
    request_body = BeginTurnBody,
    responses(
        (status = 200, description = "The turn, which this writer has or which is closed.", body = Turn),
        (status = 201, description = "The turn is new.", body = Turn, headers(
            ("Location" = String, description = "The path of the turn."),
        )),
        BeginProblems,
    ),
)]
async fn begin_turn(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    PathSession(id): PathSession,
    body: JsonBody,
) -> Result<Response, ApiError> {
    check_writer(&caller)?;
    let new = new_turn(body, app.sessions.metadata_bytes_max)?;
    match app.store.begin_turn(id, &new, caller.tenant_scope(), app.now()).await? {
        BeginTurn::Began(turn) => {
            let mut response = json_response(StatusCode::CREATED, turn.to_json());
            let turn_id = utf8_percent_encode(new.turn_id.as_str(), RESERVED);
            let location = HeaderValue::from_str(&format!("/api/sessions/{id}/turns/{turn_id}"));
            let location = location.map_err(|error| ApiError::internal(error.to_string()))?;
            response.headers_mut().insert(header::LOCATION, location);
            Ok(response)
        }
        BeginTurn::Known(turn) => Ok(json_response(StatusCode::OK, turn.to_json())),
        BeginTurn::TurnOpen { turn_id, lease_until } => {
            let members = ProblemMembers {
                open_turn_id: Some(turn_id),
                lease_until: Some(lease_until.to_string()),
                ..ProblemMembers::default()
            };
            let detail = "The session has an open turn; wait for its end, or send ifOpen to say what happens to it";
            Err(ApiError::new(Code::TurnOpen, detail).with_members(members))
        }
        BeginTurn::NotActive => Err(session_not_active()),
        BeginTurn::Missing => Err(session_not_found(id)),
    }
}

problems! {
    /// The errors of reading a turn.
    GetProblems { InvalidRequest, SessionNotFound, TurnNotFound }
}

/// Read a turn
///
/// Returns the turn with its chunks from number `from` on. `latest` is the turn that began last.
#[utoipa::path(
    get, path = "/api/sessions/{sessionId}/turns/{turnId}", tag = "turns", operation_id = "getTurn",
    params(
        ("sessionId" = String, Path, description = "The session.", format = Uuid),
        ("turnId" = String, Path, description = "The turn, or `latest`."),
        ("from" = Option<u64>, Query, description = "The number of the first chunk to return; default 0.",
            minimum = 0, maximum = 9_007_199_254_740_991_u64, nullable = false),
    ),
    responses((status = 200, description = "The turn.", body = TurnWithChunks), GetProblems),
)]
async fn get_turn(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    PathTurn { session_id: id, turn_id }: PathTurn,
    mut query: Query,
) -> Result<Response, ApiError> {
    let from = query.number("from", 0, SAFE_INTEGER_MAX).unwrap_or_default();
    query.finish()?;
    let name = if turn_id.as_str() == LATEST { TurnName::Latest } else { TurnName::Id(turn_id.clone()) };
    let found = app.store.get_turn(id, &name, from, caller.tenant_scope(), caller.response_owner(), app.now());
    match Box::pin(found).await? {
        GetTurn::Found(found) => {
            let mut json = Vec::new();
            found.turn.write_json(Some(&found.chunks), &mut json);
            Ok(match found.memory {
                Some(memory) => large_response([json.into()].into(), memory),
                None => json_response(StatusCode::OK, json),
            })
        }
        GetTurn::TurnMissing => Err(ApiError::turn_not_found(turn_id.as_str())),
        GetTurn::SessionMissing => Err(session_not_found(id)),
    }
}

problems! {
    /// The errors of a writer's calls.
    WriterProblems {
        InvalidRequest, SessionNotFound, TurnNotFound, RequestTimeout, TurnClosed, ChunkGap, ChunkConflict,
        PayloadTooLarge, UnsupportedMediaType, StoreFull, ClockSkew
    }
}

/// Append chunks to a turn
///
/// Renews the lease of the writer. A repeated call compares the chunks that are stored and appends the others. The
/// token of a user cannot append chunks.
#[utoipa::path(
    post, path = "/api/sessions/{sessionId}/turns/{turnId}/chunks", tag = "turns", operation_id = "appendChunks",
    params(
        ("sessionId" = String, Path, description = "The session.", format = Uuid),
        ("turnId" = String, Path, description = "The turn."),
    ),
    request_body = AppendChunksBody,
    responses((status = 200, description = "All chunks are stored.", body = AppendedChunks), WriterProblems),
)]
async fn append_chunks(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    PathTurn { session_id: id, turn_id }: PathTurn,
    JsonBody { value, .. }: JsonBody,
) -> Result<Response, ApiError> {
    check_writer(&caller)?;
    let new = new_chunks(turn_id, value)?;
    match app.store.append_chunks(id, &new, caller.tenant_scope(), app.now()).await? {
        AppendChunks::Appended(turn) => {
            let body = format!(
                "{{\"nextChunk\":{},\"leaseUntil\":\"{}\",\"cancelRequested\":{}}}",
                turn.next_chunk, turn.lease_until, turn.cancel_requested
            );
            Ok(json_response(StatusCode::OK, body.into_bytes()))
        }
        AppendChunks::Gap(next_chunk) => {
            let detail = format!("The turn has {next_chunk} chunks; send those from {next_chunk} on first");
            let members = ProblemMembers { next_chunk: Some(next_chunk), ..ProblemMembers::default() };
            Err(ApiError::new(Code::ChunkGap, detail).with_members(members))
        }
        AppendChunks::Conflict => {
            Err(ApiError::new(Code::ChunkConflict, "The turn has another chunk with one of these numbers"))
        }
        AppendChunks::TooLarge => {
            let bytes_max = app.sessions.turn_bytes_max;
            let detail = format!(
                "The turn would have more than {TURN_CHUNKS_MAX} chunks, or more than {bytes_max} bytes as JSON"
            );
            Err(ApiError::new(Code::PayloadTooLarge, detail))
        }
        AppendChunks::NotOpen(reason) => Err(not_open(reason, id, &new.turn_id)),
        AppendChunks::Missing => Err(session_not_found(id)),
    }
}

problems! {
    /// The errors of ending a turn.
    EndProblems {
        InvalidRequest, SessionNotFound, TurnNotFound, RequestTimeout, TurnClosed, PayloadTooLarge,
        UnsupportedMediaType, StoreFull, ClockSkew
    }
}

/// End a turn
///
/// Stores the message that the turn becomes: its content is `content`, or else all chunks joined. Without either, only
/// a completed turn becomes a message. If a reader has asked the writer to stop, the turn's status is `cancelled`. The
/// token of a user cannot end turns.
#[utoipa::path(
    post, path = "/api/sessions/{sessionId}/turns/{turnId}/end", tag = "turns", operation_id = "endTurn",
    params(
        ("sessionId" = String, Path, description = "The session.", format = Uuid),
        ("turnId" = String, Path, description = "The turn."),
    ),
    request_body = EndTurnBody,
    responses((status = 200, description = "The closed turn.", body = Turn), EndProblems),
)]
async fn end_turn(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    PathTurn { session_id: id, turn_id }: PathTurn,
    body: JsonBody,
) -> Result<Response, ApiError> {
    check_writer(&caller)?;
    let end = end_request(turn_id, body, app.sessions.content_bytes_max)?;
    match app.store.end_turn(id, &end, caller.tenant_scope(), app.now()).await? {
        EndTurn::Ended(turn) => Ok(json_response(StatusCode::OK, turn.to_json())),
        EndTurn::NotOpen(reason) => Err(not_open(reason, id, &end.turn_id)),
        EndTurn::MetadataTooLarge => Err(ApiError::metadata_too_large(app.sessions.metadata_bytes_max)),
        EndTurn::Missing => Err(session_not_found(id)),
    }
}

problems! {
    /// The errors of cancelling a turn.
    CancelProblems { InvalidRequest, SessionNotFound, TurnNotFound, TurnClosed, StoreFull, ClockSkew }
}

/// Cancel a turn
///
/// Asks the writer to stop. The writer gets this in the response to its next call, and has 10 seconds. Then the status
/// of the turn is `cancelled`.
#[utoipa::path(
    post, path = "/api/sessions/{sessionId}/turns/{turnId}/cancel", tag = "turns", operation_id = "cancelTurn",
    params(
        ("sessionId" = String, Path, description = "The session.", format = Uuid),
        ("turnId" = String, Path, description = "The turn."),
    ),
    responses((status = 202, description = "The turn, whose writer is asked to stop.", body = Turn), CancelProblems),
)]
async fn cancel_turn(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    PathTurn { session_id: id, turn_id }: PathTurn,
) -> Result<Response, ApiError> {
    match app.store.cancel_turn(id, &turn_id, caller.tenant_scope(), app.now()).await? {
        CancelTurn::Cancelled(turn) => Ok(json_response(StatusCode::ACCEPTED, turn.to_json())),
        CancelTurn::NotOpen(reason) => Err(not_open(reason, id, &turn_id)),
        CancelTurn::Missing => Err(session_not_found(id)),
    }
}
