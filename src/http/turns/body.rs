//! The bodies of the calls of a writer.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use utoipa::openapi::schema::{Array, ArrayBuilder, ObjectBuilder, Type};

use crate::http::error::ApiError;
use crate::http::extract::JsonBody;
use crate::http::json::{Fields, SAFE_INTEGER_MAX, unreported};
use crate::session::{EndStatus, Identifier, IfOpen, Role, compact_json, content_schema, escaped_text};
use crate::store::{EndRequest, NewChunks, NewTurn};

/// The turn id, in a path, that stands for the turn that began last.
pub(super) const LATEST: &str = "latest";
/// Maximum number of chunks in one call.
const CHUNKS_MAX: usize = 1000;
/// Maximum bytes of the error of a turn, as JSON.
const ERROR_BYTES_MAX: usize = 16 * 1024;

/// A turn to begin.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase", example = json!({"turnId": "re:m-1", "writer": "worker-7f3a"}))]
#[expect(dead_code, reason = "documents what `new_turn` reads")]
pub(super) struct BeginTurnBody {
    /// Unique in the session; becomes the message's `messageId`. `re:` and the id of the message that it answers is a
    /// good choice.
    turn_id: String,
    /// One run of a worker. Make it random.
    writer: String,
    /// The role of the message that the turn becomes; default `assistant`.
    #[schema(nullable = false)]
    role: Option<Role>,
    /// The metadata of that message. At most 16 KiB as JSON by default.
    #[schema(value_type = HashMap<String, Value>, required = false)]
    metadata: Value,
    /// What to do if a turn is open; default `reject`.
    #[schema(nullable = false)]
    if_open: Option<IfOpen>,
}

/// Chunks to append.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase", example = json!({"number": 1, "from": 0, "chunks": ["Hel", "lo"]}))]
#[expect(dead_code, reason = "documents what `new_chunks` reads")]
pub(super) struct AppendChunksBody {
    /// The number of the turn, as its begin returned it.
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_u64)]
    number: u64,
    /// The number of the first of these chunks, from 0. Stored chunks are compared and skipped.
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    from: u64,
    /// The chunks, none of them empty. An empty array only renews the lease.
    #[schema(schema_with = chunks_schema)]
    chunks: Vec<String>,
}

fn chunks_schema() -> Array {
    let chunk = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
    ArrayBuilder::new().items(chunk).max_items(Some(CHUNKS_MAX)).build()
}

/// The end of a turn.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase", example = json!({"number": 1, "status": "completed"}))]
#[expect(dead_code, reason = "documents what `end_request` reads")]
pub(super) struct EndTurnBody {
    /// The number of the turn, as its begin returned it.
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_u64)]
    number: u64,
    /// Whether the reply is complete.
    status: EndStatus,
    /// The content of the message: any JSON value except null. If absent, all chunks joined.
    #[schema(schema_with = content_schema, required = false)]
    content: Value,
    /// A merge patch for the turn's metadata (RFC 7396).
    #[schema(value_type = HashMap<String, Value>, required = false)]
    metadata: Value,
    /// Why it failed: any JSON value, at most 16 KiB. Kept only if the status is `failed`.
    #[schema(required = false)]
    error: Value,
}

/// The JSON texts of a body, as the writer sent them.
#[derive(Default, Deserialize)]
struct Texts<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

impl<'a> Texts<'a> {
    fn of(body: &'a [u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }
}

fn text_of(text: Option<&RawValue>) -> String {
    text.map(|text| compact_json(text.get())).unwrap_or_default()
}

pub(super) fn new_turn(body: JsonBody, metadata_bytes_max: usize) -> Result<NewTurn, ApiError> {
    let texts = Texts::of(&body.text);
    let mut fields = Fields::of_body(body.value)?;
    let turn_id = fields.required("turnId", |fields, name| match fields.identifier(name)? {
        turn_id if turn_id.as_str() == LATEST => fields.problem(name, "must not be latest"),
        turn_id => Some(turn_id),
    });
    let writer = fields.required("writer", Fields::identifier);
    let role = fields.word("role", Role::WORDS, Role::from_word);
    let metadata_json = fields.object_text("metadata", |_| text_of(texts.metadata), metadata_bytes_max);
    let if_open = fields.word("ifOpen", IfOpen::WORDS, IfOpen::from_word);
    fields.finish()?;
    Ok(NewTurn {
        turn_id: turn_id.ok_or_else(unreported)?,
        writer: writer.ok_or_else(unreported)?,
        role: role.unwrap_or(Role::Assistant),
        metadata_json: metadata_json.unwrap_or_else(|| "{}".to_owned()),
        if_open: if_open.unwrap_or(IfOpen::Reject),
    })
}

pub(super) fn new_chunks(turn_id: Identifier, body: Value) -> Result<NewChunks, ApiError> {
    let mut fields = Fields::of_body(body)?;
    let number = fields.required("number", |fields, name| fields.number(name, 1, SAFE_INTEGER_MAX));
    let from = fields.required("from", |fields, name| fields.number(name, 0, SAFE_INTEGER_MAX));
    let chunks = fields.required("chunks", |fields, name| match fields.take(name) {
        Some(Value::Array(items)) if items.len() > CHUNKS_MAX => {
            fields.problem(name, format!("must have at most {CHUNKS_MAX} items"))
        }
        Some(Value::Array(items)) => {
            let mut chunks = Vec::with_capacity(items.len());
            for (index, item) in items.iter().enumerate() {
                match item.as_str() {
                    Some(text) if !text.is_empty() => chunks.push(escaped_text(text)),
                    _ => {
                        fields.problem::<()>(&format!("{name}[{index}]"), "must be a string that is not empty");
                    }
                }
            }
            Some(chunks)
        }
        _ => fields.problem(name, "must be an array of strings"),
    });
    fields.finish()?;
    Ok(NewChunks {
        turn_id,
        number: number.ok_or_else(unreported)?,
        from: from.ok_or_else(unreported)?,
        chunks: chunks.ok_or_else(unreported)?,
    })
}

pub(super) fn end_request(
    turn_id: Identifier,
    body: JsonBody,
    content_bytes_max: usize,
) -> Result<EndRequest, ApiError> {
    let texts = Texts::of(&body.text);
    let (content, error) = (text_of(texts.content), text_of(texts.error));
    let mut fields = Fields::of_body(body.value)?;
    let number = fields.required("number", |fields, name| fields.number(name, 1, SAFE_INTEGER_MAX));
    let status = fields.required("status", |fields, name| fields.word(name, EndStatus::WORDS, EndStatus::from_word));
    let content_json = match fields.take("content") {
        None => None,
        Some(Value::Null) => fields.problem("content", "must not be null; leave it out for all chunks joined"),
        Some(_) if content.len() > content_bytes_max => {
            fields.problem("content", format!("must have at most {content_bytes_max} bytes as JSON"))
        }
        Some(_) => Some(content),
    };
    let metadata = match fields.take("metadata") {
        None => None,
        Some(patch @ Value::Object(_)) => Some(patch),
        Some(_) => fields.problem("metadata", "must be an object"),
    };
    let error_json = match fields.take("error") {
        _ if status != Some(EndStatus::Failed) => None,
        None | Some(Value::Null) => None,
        Some(_) if error.len() > ERROR_BYTES_MAX => {
            fields.problem("error", format!("must have at most {ERROR_BYTES_MAX} bytes as JSON"))
        }
        Some(_) => Some(error),
    };
    fields.finish()?;
    Ok(EndRequest {
        turn_id,
        number: number.ok_or_else(unreported)?,
        status: status.ok_or_else(unreported)?,
        content_json,
        metadata,
        error_json,
    })
}
