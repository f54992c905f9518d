//! Messages.

use utoipa::ToSchema;

use super::json::{JSON_OVERHEAD_BYTES, JsonObject, member};
use super::{Identifier, SessionId, Timestamp, words};

/// Maximum messages that one call may append.
pub const APPEND_MESSAGES_MAX: usize = 100;

words! {
    /// The sender of a message.
    Role {
        /// The user.
        User = "user",
        /// The assistant.
        Assistant = "assistant",
        /// Instructions.
        System = "system",
        /// The result of a tool.
        Tool = "tool",
    }
}

/// One message of a session.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "camelCase", example = message_example)]
pub struct Message {
    /// Unique within its session.
    pub message_id: String,
    /// The session that the message belongs to.
    #[schema(value_type = String, format = Uuid)]
    pub session_id: SessionId,
    /// Position of the message in its session: 1, 2, 3 ... without gaps.
    #[schema(minimum = 1)]
    pub seq: u64,
    /// The sender.
    pub role: Role,
    /// The text of any JSON value but null.
    #[schema(schema_with = content_schema)]
    pub content: String,
    /// A JSON object that the client keeps with the message.
    // Stored as text, so that reads can splice it into the response.
    #[schema(value_type = HashMap<String, Value>)]
    pub metadata: String,
    /// When the message was appended.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

impl Message {
    /// Approximate number of bytes that [`Self::write_json`] appends.
    #[must_use]
    pub fn json_bytes(&self) -> usize {
        JSON_OVERHEAD_BYTES + self.message_id.len() + self.content.len() + self.metadata.len()
    }

    /// Appends the message as JSON (docs/api.md, "Messages"). Splices in `content` and `metadata` as stored.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let mut object = JsonObject::open(out);
        object.string(member!("messageId"), &self.message_id);
        object.id(member!("sessionId"), self.session_id);
        object.number(member!("seq"), self.seq);
        object.word(member!("role"), Some(self.role.as_str()));
        object.json(member!("content"), &self.content);
        object.json(member!("metadata"), &self.metadata);
        object.time(member!("createdAt"), self.created_at);
        object.close();
    }
}

fn message_example() -> serde_json::Value {
    serde_json::json!({
        "messageId": "m-1", "sessionId": "f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e", "seq": 1, "role": "user",
        "content": "Hello!", "metadata": {}, "createdAt": "2026-11-22T10:00:01.000Z",
    })
}

/// The schema of the content of a message: any JSON value but null.
#[must_use]
pub fn content_schema() -> utoipa::openapi::schema::Object {
    use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
    let any_but_null = [Type::String, Type::Number, Type::Boolean, Type::Object, Type::Array];
    ObjectBuilder::new()
        .schema_type(SchemaType::Array(any_but_null.to_vec()))
        .description(Some("Any JSON value but null."))
        .build()
}

/// A message to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMessage {
    /// The client's id; `None` to generate one.
    pub message_id: Option<Identifier>,
    /// The sender.
    pub role: Role,
    /// Any JSON value but null.
    pub content: serde_json::Value,
    /// The text of a JSON object.
    pub metadata: String,
}
