//! Parses replies of Redis: replies of scripts value by value, in the order of the script's header; sessions by field
//! names.

use std::collections::HashMap;
use std::ops::Deref;
use std::str::FromStr;

use bytes::Bytes;
use fred::bytes_utils::Str;
use fred::types::Value;

use super::StoreError;
use super::keys::{SESSION_FIELDS, SessionField};
use crate::session::{EndReason, MessageJson, OpenTurn, Session, SessionId, Status, Timestamp};

/// The array that Redis sent as the reply to one operation, read from its start.
pub(super) struct Reply {
    operation: &'static str,
    values: std::vec::IntoIter<Value>,
}

impl Reply {
    pub(super) fn new(operation: &'static str, value: Value) -> Result<Self, StoreError> {
        match value {
            Value::Array(values) => Ok(Self { operation, values: values.into_iter() }),
            _ => Err(StoreError::Reply { operation, problem: "it is not an array" }),
        }
    }

    pub(super) fn of_texts(operation: &'static str, texts: Vec<Bytes>) -> Self {
        let values: Vec<_> = texts.into_iter().map(Value::Bytes).collect();
        Self { operation, values: values.into_iter() }
    }

    /// The error for a reply that this code does not understand. A fixed text, because the reply may contain a user's
    /// data.
    pub(super) fn unexpected(&self, problem: &'static str) -> StoreError {
        StoreError::Reply { operation: self.operation, problem }
    }

    /// The error for a reply that starts with none of the script's tags.
    pub(super) fn unknown_tag(&self) -> StoreError {
        self.unexpected("its tag is unknown")
    }

    pub(super) fn is_empty(&self) -> bool {
        self.values.len() == 0
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn remaining(&self) -> usize {
        self.values.len()
    }

    /// The next value. Fails if there is none.
    fn value(&mut self) -> Result<Value, StoreError> {
        self.values.next().ok_or_else(|| self.unexpected("it is too short"))
    }

    /// The next value as text, or `None` for nil. It is a slice of the connection's buffer: copy what is kept.
    fn optional_text(&mut self) -> Result<Option<Str>, StoreError> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
            Value::Bytes(bytes) => Str::try_from(bytes).map(Some).map_err(|_| self.unexpected("a value is not text")),
            // fred would convert an array of one value to that value.
            Value::Array(_) => Err(self.unexpected("a value is not text")),
            value => {
                value.into_string().map(|text| Some(text.into())).ok_or_else(|| self.unexpected("a value is not text"))
            }
        }
    }

    fn text(&mut self) -> Result<Str, StoreError> {
        self.optional_text()?.ok_or_else(|| self.unexpected("a value is missing"))
    }

    pub(super) fn string(&mut self) -> Result<String, StoreError> {
        // Not `to_string`, which would format the text.
        self.text().map(|text| (*text).to_owned())
    }

    /// The next value as a message of this session.
    pub(super) fn message(&mut self, session_id: SessionId) -> Result<MessageJson, StoreError> {
        let json = self.text()?.into_inner();
        MessageJson::of(session_id, json).ok_or_else(|| self.unexpected("a value is not a message of the session"))
    }

    pub(super) fn parse<T: FromStr>(&mut self) -> Result<T, StoreError> {
        let text = self.text()?;
        text.parse().map_err(|_| self.unexpected("a value is not of its type"))
    }

    pub(super) fn time(&mut self) -> Result<Timestamp, StoreError> {
        self.parse().map(Timestamp)
    }

    /// The rest of the reply, as alternating names and values.
    pub(super) fn named_values(&mut self) -> Result<HashMap<String, String>, StoreError> {
        let mut values = HashMap::new();
        while !self.is_empty() {
            values.insert(self.string()?, self.string()?);
        }
        Ok(values)
    }

    /// Parses the rest of the reply: the names and values of a session's fields, in any order.
    pub(super) fn fields(&mut self) -> Result<SessionFields<Str>, StoreError> {
        let mut fields = SessionFields::default();
        while !self.is_empty() {
            let (name, value) = (self.text()?, self.optional_text()?);
            if let Some(index) = SESSION_FIELDS.iter().position(|known| **known == *name) {
                fields.0[index] = value;
            }
        }
        Ok(fields)
    }

    /// Parses the rest of the reply, alternating names and values, as a session. `None` if the session does not exist.
    pub(super) fn session(&mut self, id: SessionId) -> Result<Option<Box<Session>>, StoreError> {
        self.fields()?.session(self.operation, id)
    }
}

/// The fields of a session's hash, in the order of [`SESSION_FIELDS`]; `None` for an absent field.
pub(super) struct SessionFields<T>(pub(super) [Option<T>; SESSION_FIELDS.len()]);

impl<T> Default for SessionFields<T> {
    fn default() -> Self {
        Self([const { None }; SESSION_FIELDS.len()])
    }
}

/// A field with a missing or invalid value.
pub(super) struct MalformedField {
    pub(super) field: SessionField,
    pub(super) problem: &'static str,
}

impl<T: Deref<Target = str>> SessionFields<T> {
    /// The session with this id; `None` if it does not exist. Any other id is an error: a connection that mixes up
    /// replies must not show a user another user's session.
    pub(super) fn session(self, operation: &'static str, id: SessionId) -> Result<Option<Box<Session>>, StoreError> {
        match self.any_session(operation)? {
            Some(session) if session.session_id != id => {
                Err(StoreError::Reply { operation, problem: "it belongs to another session" })
            }
            session => Ok(session),
        }
    }

    /// The session with any id; `None` if it does not exist.
    pub(super) fn any_session(self, operation: &'static str) -> Result<Option<Box<Session>>, StoreError> {
        self.into_session().map_err(|MalformedField { problem, .. }| StoreError::Reply { operation, problem })
    }

    /// The session; `None` if it does not exist.
    pub(super) fn into_session(self) -> Result<Option<Box<Session>>, MalformedField> {
        if self.0[SessionField::SessionId as usize].is_none() {
            return Ok(None);
        }
        let created_at = self.parse(SessionField::CreatedAt).map(Timestamp)?;
        Ok(Some(Box::new(Session {
            session_id: self.parse(SessionField::SessionId)?,
            business_id: self.string(SessionField::BusinessId)?,
            user_id: self.string(SessionField::UserId)?,
            location_id: self.string(SessionField::LocationId)?,
            session_type: self.string(SessionField::SessionType)?,
            status: self.word(SessionField::Status, Status::from_word)?,
            title: self.text(SessionField::Title).map(str::to_owned),
            metadata: self.string(SessionField::Metadata)?,
            message_count: self.parse(SessionField::MessageCount)?,
            version: self.parse(SessionField::Version)?,
            created_at,
            updated_at: self.parse(SessionField::UpdatedAt).map(Timestamp)?,
            last_activity_at: self.parse(SessionField::LastActivityAt).map(Timestamp)?,
            expires_at: self.parse(SessionField::ExpiresAt).map(Timestamp)?,
            active_until: self.parse(SessionField::ActiveUntil).map(Timestamp)?,
            ended_at: self.if_present(SessionField::EndedAt, Self::parse)?.map(Timestamp),
            end_reason: self
                .if_present(SessionField::EndReason, |fields, field| fields.word(field, EndReason::from_word))?,
            largest_message_bytes: self.if_present(SessionField::LargestMessage, Self::parse)?.unwrap_or_default(),
            message_bytes: self.if_present(SessionField::MessageBytes, Self::parse)?.unwrap_or_default(),
            oldest_seq: self.if_present(SessionField::OldestSeq, Self::parse)?.unwrap_or(1),
            history_at: self.if_present(SessionField::HistoryAt, Self::parse)?.map_or(created_at, Timestamp),
            turn_number: self.if_present(SessionField::TurnNumber, Self::parse)?,
            open_turn: self.open_turn()?,
            changed_messages: self.if_present(SessionField::ChangedMessages, Self::parse)?.unwrap_or_default(),
        })))
    }

    fn open_turn(&self) -> Result<Option<OpenTurn>, MalformedField> {
        let Some(escaped_id) = self.text(SessionField::TurnId) else { return Ok(None) };
        let lease_until = self.parse(SessionField::TurnUntil).map(Timestamp)?;
        Ok(Some(OpenTurn { escaped_id: escaped_id.to_owned(), lease_until }))
    }

    fn text(&self, field: SessionField) -> Option<&str> {
        self.0[field as usize].as_deref()
    }

    fn required(&self, field: SessionField) -> Result<&str, MalformedField> {
        self.text(field).ok_or(MalformedField { field, problem: "a value is missing" })
    }

    fn string(&self, field: SessionField) -> Result<String, MalformedField> {
        self.required(field).map(str::to_owned)
    }

    fn parse<V: FromStr>(&self, field: SessionField) -> Result<V, MalformedField> {
        let malformed = |_| MalformedField { field, problem: "a value is not of its type" };
        self.required(field)?.parse().map_err(malformed)
    }

    fn word<V>(&self, field: SessionField, from_word: fn(&str) -> Option<V>) -> Result<V, MalformedField> {
        let malformed = MalformedField { field, problem: "a value is not one of the allowed words" };
        from_word(self.required(field)?).ok_or(malformed)
    }

    fn if_present<V>(
        &self,
        field: SessionField,
        read: impl FnOnce(&Self, SessionField) -> Result<V, MalformedField>,
    ) -> Result<Option<V>, MalformedField> {
        self.text(field).map(|_| read(self, field)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(texts: &[&str]) -> Reply {
        let values = texts.iter().map(|text| Value::String((*text).into())).collect();
        Reply::new("test", Value::Array(values)).expect("an array")
    }

    #[test]
    fn fields_are_found_by_name_in_any_order() {
        let id = "f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e";
        let mut fields = reply(&["status", "ended", "mutations", "x", "sessionId", id]).fields().unwrap_or_default();
        assert_eq!(fields.text(SessionField::SessionId), Some(id));
        assert_eq!(fields.text(SessionField::Status), Some("ended"));
        assert!(fields.any_session("test").is_err(), "a session without its other fields");
        fields = reply(&[]).fields().unwrap_or_default();
        assert!(matches!(fields.any_session("test"), Ok(None)));
        assert!(reply(&["sessionId"]).fields().is_err(), "a name without a value");
    }
}
