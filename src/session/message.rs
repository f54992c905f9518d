//! Messages.

use std::borrow::Cow;
use std::fmt::Write;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::json::push_escaped;
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

/// How the turn that wrote a message ended.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "documents a member of the JSON of a `MessageJson`")]
enum FinishReason {
    /// Its writer completed it.
    Completed,
    /// Its writer failed.
    Failed,
    /// A reader asked its writer to stop.
    Cancelled,
    /// The session was ended, or another turn began in its place.
    Interrupted,
    /// Its writer was silent for longer than its lease.
    Lost,
}

/// One message of a session.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase", example = message_example)]
#[expect(dead_code, clippy::struct_field_names, reason = "documents the JSON of a `MessageJson`")]
pub struct Message {
    /// Position of the message in its session: 1, 2, 3 ... without gaps.
    #[schema(minimum = 1)]
    seq: u64,
    /// When the message was appended.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// The session that the message belongs to.
    #[schema(value_type = String, format = Uuid)]
    session_id: SessionId,
    /// Unique within its session.
    message_id: String,
    /// The sender.
    role: Role,
    /// Any JSON value; null only if the message is redacted.
    content: Value,
    /// A JSON object that the client keeps with the message.
    #[schema(value_type = HashMap<String, Value>)]
    metadata: Value,
    /// How the turn that wrote the message ended. Absent if no turn did.
    #[schema(required = false, nullable = false)]
    finish_reason: Option<FinishReason>,
    /// When the message was redacted. Absent otherwise.
    #[schema(value_type = String, format = DateTime, required = false, nullable = false)]
    redacted_at: Option<Timestamp>,
}

/// The name of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageRef {
    /// The session that the message belongs to.
    pub session_id: SessionId,
    /// The message's id, unique within its session.
    pub message_id: Identifier,
}

/// A message as the JSON that Redis stores and clients receive. Its members are in the order of [`Message`], without
/// spaces between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageJson {
    /// Position of the message in its session.
    pub seq: u64,
    json: Bytes,
}

impl MessageJson {
    /// The message that the store made of `json_after_seq`: with this `seq`, and this `createdAt` in place of its own.
    #[must_use]
    pub fn stored(seq: u64, created_at: Timestamp, json_after_seq: &str) -> Self {
        let mut json = String::with_capacity(SEQ_PREFIX.len() + SEQ_DIGITS_MAX + json_after_seq.len());
        // Writing to a String cannot fail.
        let _ = write!(json, "{{\"seq\":{seq}");
        push_created_at(created_at, &mut json);
        json.push_str(json_after_seq.get(CREATED_AT_BYTES..).unwrap_or_default());
        Self { seq, json: json.into() }
    }

    /// The message of this session in `json`, or `None` if the JSON does not start as a message of this session does. A
    /// connection that mixes up replies must not show a user another user's messages.
    #[must_use]
    pub fn of(session_id: SessionId, json: Bytes) -> Option<Self> {
        Self::of_text(session_id.write(&mut [0; SessionId::TEXT_BYTES]), json)
    }

    /// The messages of this session in `texts`, or `None` if one of them is not.
    #[must_use]
    pub fn all_of(session_id: SessionId, texts: Vec<Bytes>) -> Option<Vec<Self>> {
        let mut buffer = [0; SessionId::TEXT_BYTES];
        let session_id = session_id.write(&mut buffer);
        texts.into_iter().map(|json| Self::of_text(session_id, json)).collect()
    }

    fn of_text(session_id: &str, json: Bytes) -> Option<Self> {
        let digits = json.strip_prefix(SEQ_PREFIX)?;
        let length = digits.iter().position(|byte| !byte.is_ascii_digit())?;
        let seq = std::str::from_utf8(&digits[..length]).ok()?.parse().ok()?;
        let time_and_rest = digits[length..].strip_prefix(CREATED_AT_PREFIX)?;
        let rest = time_and_rest.get(Timestamp::TEXT_BYTES..)?.strip_prefix(SESSION_ID_PREFIX)?;
        let is_of_session = rest.starts_with(session_id.as_bytes());
        (is_of_session && json.last() == Some(&b'}')).then_some(Self { seq, json })
    }

    /// The JSON.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.json
    }

    /// The JSON after `createdAt`.
    #[must_use]
    pub fn after_created_at(&self) -> &[u8] {
        let seq = self.json.iter().position(|&byte| byte == b',').unwrap_or(self.json.len());
        self.json.get(seq + CREATED_AT_BYTES..).unwrap_or_default()
    }

    /// Number of bytes of the JSON.
    #[must_use]
    pub fn json_bytes(&self) -> usize {
        self.json.len()
    }

    /// Appends the JSON.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.json);
    }

    /// The JSON as text.
    #[must_use]
    pub fn to_text(&self) -> String {
        String::from_utf8_lossy(&self.json).into_owned()
    }

    /// The JSON, without a copy.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.json
    }

    /// Whether the message has this id, which is written as [`escaped_text`] does.
    #[must_use]
    pub fn has_id(&self, escaped_id: &str) -> bool {
        let prefix = b",\"messageId\":\"";
        let Some(start) = self.json.windows(prefix.len()).position(|bytes| bytes == prefix) else { return false };
        let id_and_rest = &self.json[start + prefix.len()..];
        id_and_rest.strip_prefix(escaped_id.as_bytes()).is_some_and(|rest| rest.starts_with(b"\",\"role\":\""))
    }

    /// The same message with other metadata, which is JSON. `None` if `stored` is not the message's metadata, or if the
    /// message is redacted.
    #[must_use]
    pub fn with_metadata(&self, stored: &str, metadata: &str) -> Option<Self> {
        let members = self.members()?;
        let after = match members.finish_reason {
            Some(reason) => format!(",\"finishReason\":\"{reason}\"}}"),
            None => "}".to_owned(),
        };
        let before = self.json.strip_suffix(after.as_bytes())?.strip_suffix(stored.as_bytes())?;
        Some(Self { seq: self.seq, json: [before, metadata.as_bytes(), after.as_bytes()].concat().into() })
    }

    /// The JSON without the members `content` and `metadata`.
    #[must_use]
    pub fn without_content(&self) -> Vec<u8> {
        let content = b"\",\"content\":";
        let end = self.json.windows(content.len()).position(|bytes| bytes == content).unwrap_or(0);
        let mut json = self.json[..end].to_vec();
        json.push(b'"');
        if let Some(members) = self.members() {
            for (name, value) in [("finishReason", members.finish_reason), ("redactedAt", members.redacted_at)] {
                if let Some(value) = value {
                    json.extend_from_slice(format!(",\"{name}\":\"{value}\"").as_bytes());
                }
            }
        }
        json.push(b'}');
        json
    }

    /// The members, or `None` if the JSON is not that of a message.
    #[must_use]
    pub fn members(&self) -> Option<MessageMembers<'_>> {
        serde_json::from_slice(&self.json).ok()
    }
}

const SEQ_PREFIX: &[u8] = b"{\"seq\":";
const SEQ_DIGITS_MAX: usize = 20;
const CREATED_AT_PREFIX: &[u8] = b",\"createdAt\":\"";
const SESSION_ID_PREFIX: &[u8] = b"\",\"sessionId\":\"";

/// The members of a message that the service reads.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageMembers<'a> {
    /// Unique within its session.
    #[serde(borrow)]
    pub message_id: Cow<'a, str>,
    /// The sender.
    #[serde(borrow)]
    pub role: Cow<'a, str>,
    /// The JSON of the content.
    #[serde(borrow)]
    pub content: &'a RawValue,
    /// The JSON of the metadata.
    #[serde(borrow)]
    pub metadata: &'a RawValue,
    /// How the turn that wrote it ended.
    #[serde(borrow, default)]
    pub finish_reason: Option<Cow<'a, str>>,
    /// When the message was redacted.
    #[serde(borrow, default)]
    pub redacted_at: Option<Cow<'a, str>>,
}

fn message_example() -> serde_json::Value {
    serde_json::json!({
        "messageId": "m-1", "sessionId": "f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e", "seq": 1, "role": "user",
        "content": "Hello!", "metadata": {}, "createdAt": "2026-11-22T10:00:01.000Z",
    })
}

/// The schema of the content of a message: any JSON value except null.
#[must_use]
pub fn content_schema() -> utoipa::openapi::schema::Object {
    use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
    let any_but_null = [Type::String, Type::Number, Type::Boolean, Type::Object, Type::Array];
    ObjectBuilder::new()
        .schema_type(SchemaType::Array(any_but_null.to_vec()))
        .description(Some("Any JSON value except null."))
        .build()
}

/// A message to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMessage {
    /// The client's id; `None` to generate one.
    pub message_id: Option<Identifier>,
    /// The sender.
    pub role: Role,
    /// Any JSON value except null.
    pub content: Value,
    /// The JSON of `content` as the client wrote it, without spaces between its tokens.
    pub content_json: String,
    /// The JSON of the metadata, an object, without spaces between its tokens.
    pub metadata_json: String,
}

/// The JSON of a new message of this session after its `seq`, which the store assigns. `content` and `metadata` are
/// JSON.
#[must_use]
pub fn json_after_seq(
    created_at: Timestamp,
    session_id: SessionId,
    message_id: &str,
    role: Role,
    content: &str,
    metadata: &str,
) -> String {
    let mut json = String::with_capacity(FIXED_BYTES + message_id.len() + content.len() + metadata.len());
    push_created_at(created_at, &mut json);
    json.push_str(",\"sessionId\":\"");
    json.push_str(session_id.write(&mut [0; SessionId::TEXT_BYTES]));
    json.push_str("\",\"messageId\":\"");
    push_escaped(message_id, &mut json);
    for part in ["\",\"role\":\"", role.as_str(), "\",\"content\":", content, ",\"metadata\":", metadata, "}"] {
        json.push_str(part);
    }
    json
}

/// Appends the member `createdAt`.
fn push_created_at(created_at: Timestamp, out: &mut String) {
    // Writing to a String cannot fail.
    let _ = write!(out, ",\"createdAt\":\"{created_at}\"");
}

/// Number of bytes of the member `createdAt`.
const CREATED_AT_BYTES: usize = CREATED_AT_PREFIX.len() + Timestamp::TEXT_BYTES + 1;

/// An upper bound of the bytes of [`json_after_seq`] that do not depend on the client.
const FIXED_BYTES: usize = 168;

/// Escapes a text as JSON does, without quotes. Message ids are stored in this form.
#[must_use]
pub fn escaped_text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    push_escaped(text, &mut escaped);
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Partition;

    #[test]
    fn stored_json_is_a_message_of_its_session() {
        let id = SessionId::random(Partition(7)).expect("random bytes");
        let json = json_after_seq(Timestamp(1), id, "a\"\\,\"role\":\"é", Role::Tool, "{\"a\":1.0}", "{\"b\":[]}");
        let json = MessageJson::stored(12, Timestamp(0), &json).to_text();
        assert!(json.starts_with("{\"seq\":12,\"createdAt\":\"1970-01-01T00:00:00.000Z\",\"sessionId\":"), "{json}");
        let message = MessageJson::of(id, json.clone().into()).expect("a message");
        let members = message.members().expect("members");
        assert_eq!((message.seq, &*members.message_id, &*members.role), (12, "a\"\\,\"role\":\"é", "tool"));
        assert_eq!((members.content.get(), members.metadata.get()), ("{\"a\":1.0}", "{\"b\":[]}"));
        assert!(message.has_id(&escaped_text("a\"\\,\"role\":\"é")));
        for other in ["", "a", "a\"\\,\"role\":\"", "a\"\\,\"role\":\"é2", "b"] {
            assert!(!message.has_id(&escaped_text(other)), "{other}");
        }
        let other = SessionId::random(Partition(7)).expect("random bytes");
        assert_eq!(MessageJson::of(other, json.clone().into()), None);
        for end in 0..json.len() {
            let cut = MessageJson::of(id, json.as_bytes()[..end].to_vec().into());
            assert!(cut.is_none_or(|cut| cut.members().is_none()), "{end} bytes");
        }
    }
}
