//! `/api/sessions/{sessionId}/messages`: append and list messages.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::openapi::schema::{ArrayBuilder, OneOfBuilder, Schema};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::AppState;
use super::auth::{Principal, forbidden_role};
use super::error::{ApiError, Code, FieldProblem, problems};
use super::extract::{JsonBody, PathSession, Query};
use super::json::{Fields, SAFE_INTEGER_MAX};
use super::pagination::link_header;
use super::response::{json_array, json_response, page_response};
use crate::session::{APPEND_MESSAGES_MAX, Message, MessageJson, NewMessage, Role, compact_json, content_schema};
use crate::store::{Append, MessageRange};

const LIMIT_MAX: u64 = 1000;
const LIMIT_DEFAULT: u64 = 50;

/// The routes of this file.
pub(super) fn router() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new().routes(routes!(list_messages, append_messages))
}

/// A message to append.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase", example = json!({"messageId": "m-1", "role": "user", "content": "Hello!"}))]
#[expect(dead_code, reason = "documents what `new_message` reads")]
struct AppendMessage {
    /// Unique in the session; makes a retry safe. If absent, the service generates one.
    #[schema(nullable = false)]
    message_id: Option<String>,
    /// The role of the author.
    role: Role,
    /// Any JSON value except null.
    #[schema(schema_with = content_schema)]
    content: Value,
    /// Data of the client about the message. At most 16 KiB as JSON by default.
    #[schema(value_type = HashMap<String, Value>, required = false)]
    metadata: Value,
}

/// One message, or an array of messages of which either all or none are appended.
struct AppendMessages;

/// The stored message, or an array of the stored messages in the order of the request.
struct AppendedMessages;

/// Documents a body that is one item or an array of items.
macro_rules! one_or_several {
    ($name:ident, $item:ident) => {
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let item = Ref::from_schema_name(stringify!($item));
                let several = ArrayBuilder::new().items(item.clone());
                let several = several.min_items(Some(1)).max_items(Some(APPEND_MESSAGES_MAX));
                OneOfBuilder::new().item(item).item(several).into()
            }
        }

        impl ToSchema for $name {
            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                schemas.push((stringify!($item).to_owned(), $item::schema()));
                $item::schemas(schemas);
            }
        }
    };
}
one_or_several!(AppendMessages, AppendMessage);
one_or_several!(AppendedMessages, Message);

/// The texts of a message's content and metadata, as the client wrote them: a parsed number may have fewer digits.
#[derive(Default, Deserialize)]
struct MessageTexts<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

/// Reads one message, or an array of messages, from a body and its text. Reports the problems of all messages together.
pub(super) fn new_messages(
    body: Value,
    text: &[u8],
    metadata_bytes_max: usize,
    content_bytes_max: usize,
) -> Result<Vec<NewMessage>, ApiError> {
    let mut texts = message_texts(text, body.is_array()).into_iter();
    let (items, path): (Vec<Value>, fn(usize) -> String) = match body {
        Value::Object(_) => (vec![body], |_| String::new()),
        Value::Array(items) => (items, |index| format!("[{index}].")),
        _ => return Err(ApiError::new(Code::InvalidRequest, "The body must be a JSON object, or an array of objects")),
    };
    if items.is_empty() || items.len() > APPEND_MESSAGES_MAX {
        let detail = format!("The array must have 1 to {APPEND_MESSAGES_MAX} messages; it has {}", items.len());
        return Err(ApiError::new(Code::InvalidRequest, detail));
    }
    let mut messages = Vec::with_capacity(items.len());
    let mut problems = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let texts = texts.next().unwrap_or_default();
        match item {
            Value::Object(members) => {
                let mut fields = Fields::new(path(index), members);
                messages.extend(new_message(&mut fields, &texts, metadata_bytes_max, content_bytes_max));
                problems.extend(fields.into_problems());
            }
            _ => problems.push(FieldProblem {
                field: path(index).trim_end_matches('.').to_owned(),
                message: "must be an object".to_owned(),
            }),
        }
    }
    if problems.is_empty() { Ok(messages) } else { Err(ApiError::fields(problems)) }
}

/// The texts of all messages. None if an item is not an object, which is a problem of its own.
fn message_texts(body: &[u8], is_array: bool) -> Vec<MessageTexts<'_>> {
    let texts = if is_array { serde_json::from_slice(body) } else { serde_json::from_slice(body).map(|one| vec![one]) };
    texts.unwrap_or_default()
}

fn new_message(
    fields: &mut Fields,
    texts: &MessageTexts,
    metadata_bytes_max: usize,
    content_bytes_max: usize,
) -> Option<NewMessage> {
    let json = |text: Option<&RawValue>| text.map(|text| compact_json(text.get()));
    let content_json = json(texts.content).unwrap_or_default();
    let message_id = fields.identifier("messageId");
    let role = fields.required("role", |fields, name| fields.word(name, Role::WORDS, Role::from_word));
    let content = fields.required("content", |fields, name| match fields.take(name) {
        Some(Value::Null) => fields.problem(name, "must not be null"),
        Some(_) if content_json.len() > content_bytes_max => {
            fields.problem(name, format!("must have at most {content_bytes_max} bytes as JSON"))
        }
        content => content,
    });
    let metadata_text = |_: &Value| json(texts.metadata).unwrap_or_default();
    let metadata_json = fields.object_text("metadata", metadata_text, metadata_bytes_max);
    let metadata_json = metadata_json.unwrap_or_else(|| "{}".to_owned());
    Some(NewMessage { message_id, role: role?, content: content?, content_json, metadata_json })
}

/// Rejects messages with a role that the token of one user may not append, because a user must not be able to speak as
/// the assistant. Runs before the store is called, so a stored message with such a role is not returned either.
fn check_roles(new: &[NewMessage], is_array: bool, own_roles: Option<&[Role]>) -> Result<(), ApiError> {
    let Some(own_roles) = own_roles else {
        return Ok(());
    };
    match new.iter().enumerate().find(|(_, message)| !own_roles.contains(&message.role)) {
        None => Ok(()),
        Some((index, message)) => {
            let field = if is_array { format!("[{index}].role") } else { "role".to_owned() };
            Err(forbidden_role(&field, message.role, "append only", own_roles))
        }
    }
}

/// The `409` for a session that accepts no messages and turns.
pub(super) fn session_not_active() -> ApiError {
    let detail = "The session is not active; resume it with PATCH {\"status\":\"active\"}, or create a new one";
    ApiError::new(Code::SessionNotActive, detail)
}

problems! {
    /// The errors of appending messages.
    AppendProblems {
        InvalidRequest, SessionNotFound, RequestTimeout, SessionNotActive, MessageIdConflict, PayloadTooLarge,
        UnsupportedMediaType, StoreFull, ClockSkew
    }
}

/// Append messages
///
/// Appends one message, or all or none of an array of messages. If the session already has a message with the same id,
/// role and content, that message is returned as stored and not appended again, so an append with ids can be repeated.
/// The token of a user can append only messages with the role `user`, unless the service is configured to allow others.
#[utoipa::path(
    post, path = "/api/sessions/{sessionId}/messages", tag = "messages", operation_id = "appendMessages",
    params(("sessionId" = String, Path, description = "The session.", format = Uuid)),
    request_body = AppendMessages,
    responses(
        (status = 200, description = "All messages already existed. Returned as stored.", body = AppendedMessages),
        (status = 201, description = "At least one message is new.", body = AppendedMessages),
        AppendProblems,
    ),
)]
async fn append_messages(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    PathSession(id): PathSession,
    JsonBody { value: body, text }: JsonBody,
) -> Result<Response, ApiError> {
    let is_array = body.is_array();
    let new = new_messages(body, &text, app.sessions.metadata_bytes_max, app.sessions.content_bytes_max)?;
    check_roles(&new, is_array, caller.own_roles(&app.user_roles))?;
    let (status, messages) = match app.store.append_messages(id, &new, caller.tenant_scope(), app.now()).await? {
        Append::Appended(messages) => (StatusCode::CREATED, messages),
        Append::Replayed(messages) => (StatusCode::OK, messages),
        Append::Missing => return Err(ApiError::session_not_found(&id.to_string())),
        Append::NotActive => return Err(session_not_active()),
        Append::Conflict(message_id) => {
            let detail = format!("The session has another message with the messageId {message_id}");
            return Err(ApiError::new(Code::MessageIdConflict, detail));
        }
    };
    let body = match messages.as_slice() {
        [message] if !is_array => message.as_bytes().to_vec(),
        messages => json_array(messages, MessageJson::json_bytes, MessageJson::write_json),
    };
    Ok(json_response(status, body))
}

problems! {
    /// The errors of listing messages.
    ListProblems { InvalidRequest, SessionNotFound }
}

/// List messages
///
/// Returns the newest `limit` messages, or those before or after a `seq`, always in ascending `seq`. A page ends at 4
/// MiB, with at least one message. `Link` has the URLs of the adjacent pages.
#[utoipa::path(
    get, path = "/api/sessions/{sessionId}/messages", tag = "messages", operation_id = "listMessages",
    params(
        ("sessionId" = String, Path, description = "The session.", format = Uuid),
        ("limit" = Option<u64>, Query, description = "Maximum number of messages on the page; default 50.",
            minimum = 1, maximum = 1000, nullable = false),
        ("before" = Option<u64>, Query, description = "List the newest messages before this `seq`. Not with `after`.",
            minimum = 0, maximum = 9_007_199_254_740_991_u64, nullable = false),
        ("after" = Option<u64>, Query, description = "List the oldest messages after this `seq`. Not with `before`.",
            minimum = 0, maximum = 9_007_199_254_740_991_u64, nullable = false),
    ),
    responses(
        (status = 200, description = "The messages, in ascending `seq`.", body = [Message], headers(
            ("Link" = String, description = "`rel=\"prev\"`: older messages; `rel=\"next\"`: newer messages."),
        )),
        ListProblems,
    ),
)]
async fn list_messages(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    PathSession(id): PathSession,
    uri: Uri,
    mut query: Query,
) -> Result<Response, ApiError> {
    let limit = query.number("limit", 1, LIMIT_MAX).unwrap_or(LIMIT_DEFAULT);
    let before = query.number("before", 0, SAFE_INTEGER_MAX);
    let after = query.number("after", 0, SAFE_INTEGER_MAX);
    if before.is_some() && after.is_some() {
        query.problem("after", "must not be given together with before");
    }
    query.finish()?;
    let range = match (before, after) {
        (Some(seq), _) => MessageRange::Before(seq),
        (None, Some(seq)) => MessageRange::After(seq),
        (None, None) => MessageRange::Newest,
    };
    let max = usize::try_from(limit).unwrap_or(usize::MAX);
    let listing = app.store.list_messages(id, range, max, caller.tenant_scope(), caller.response_owner(), app.now());
    let page = Box::pin(listing).await?;
    let page = page.ok_or_else(|| ApiError::session_not_found(&id.to_string()))?;
    let prev = page.before.map(|seq| ("prev", format!("limit={limit}&before={seq}")));
    let next = page.after.map(|seq| ("next", format!("limit={limit}&after={seq}")));
    let mut response =
        page_response(page.messages, MessageJson::json_bytes, MessageJson::write_json, page.memory).await;
    if let Some(link) = link_header(prev.into_iter().chain(next), &uri) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}
