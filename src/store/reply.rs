//! Reads replies of Redis, value by value, in the order that the scripts and [`SESSION_FIELDS`] promise.

use std::ops::Deref;

use fred::bytes_utils::Str;
use fred::types::Value;

use super::StoreError;
use super::keys::{SESSION_FIELDS, field};
use crate::session::{EndReason, Message, Role, Session, SessionId, Status, Timestamp};

/// The texts of a reply, one after another, and what they stand for.
pub(super) trait Texts {
    type Text: Deref<Target = str>;

    /// What was asked for.
    fn verb(&self) -> &'static str;

    /// How many values are left to read.
    fn len(&self) -> usize;

    /// A text, or `None` for nil.
    fn optional_text(&mut self) -> Result<Option<Self::Text>, StoreError>;

    /// The error for a reply that the code does not understand. A fixed text: what is in the reply may be a user's.
    fn unexpected(&self, problem: &'static str) -> StoreError {
        StoreError::Reply { verb: self.verb(), problem }
    }

    fn text(&mut self) -> Result<Self::Text, StoreError> {
        self.optional_text()?.ok_or_else(|| self.unexpected("a value is missing"))
    }

    fn optional(&mut self) -> Result<Option<String>, StoreError> {
        Ok(self.optional_text()?.map(|text| text.to_string()))
    }

    fn string(&mut self) -> Result<String, StoreError> {
        self.text().map(|text| text.to_string())
    }

    fn parse<T: std::str::FromStr>(&mut self) -> Result<T, StoreError> {
        let text = self.text()?;
        text.parse().map_err(|_| self.unexpected("a value is not of its type"))
    }

    fn word<T>(&mut self, from_word: fn(&str) -> Option<T>) -> Result<T, StoreError> {
        let word = self.text()?;
        from_word(&word).ok_or_else(|| self.unexpected("a value is not one of its words"))
    }

    fn time(&mut self) -> Result<Timestamp, StoreError> {
        self.parse().map(Timestamp)
    }

    /// A session's fields, or `None` if there is no such session. It must be the one that was asked for: a connection
    /// that mixes up replies must not show one user another's session.
    fn session(&mut self, id: SessionId) -> Result<Option<Session>, StoreError> {
        let session = self.any_session()?;
        match &session {
            Some(session) if session.session_id != id => Err(self.unexpected("it is another session's")),
            _ => Ok(session),
        }
    }

    /// A session's fields, whichever it is.
    fn any_session(&mut self) -> Result<Option<Session>, StoreError> {
        if self.len() < SESSION_FIELDS.len() {
            return Err(self.unexpected("it is too short for a session"));
        }
        let Some(session_id) = self.optional_text()? else {
            return Ok(None);
        };
        Ok(Some(Session {
            session_id: session_id.parse().map_err(|_| self.unexpected("a session id is not a UUID"))?,
            business_id: self.string()?,
            user_id: self.string()?,
            location_id: self.string()?,
            session_type: self.string()?,
            status: self.word(Status::from_word)?,
            title: self.optional()?,
            metadata: self.string()?,
            message_count: self.parse()?,
            version: self.parse()?,
            created_at: self.time()?,
            updated_at: self.time()?,
            last_activity_at: self.time()?,
            expires_at: self.time()?,
            active_until: self.time()?,
            ended_at: self.optional_time()?,
            end_reason: match self.optional_text()? {
                Some(word) => {
                    Some(EndReason::from_word(&word).ok_or_else(|| self.unexpected("an unknown end reason"))?)
                }
                None => None,
            },
            largest_message_bytes: match self.optional_text()? {
                Some(text) => text.parse().map_err(|_| self.unexpected("a size is not a number"))?,
                None => 0,
            },
        }))
    }

    fn optional_time(&mut self) -> Result<Option<Timestamp>, StoreError> {
        match self.optional_text()? {
            Some(text) => match text.parse() {
                Ok(ms) => Ok(Some(Timestamp(ms))),
                Err(_) => Err(self.unexpected("a time is not a number")),
            },
            None => Ok(None),
        }
    }

    /// A role.
    fn role(&mut self) -> Result<Role, StoreError> {
        self.word(Role::from_word)
    }
}

/// One reply of one verb, read from its start.
pub(super) struct Reply {
    verb: &'static str,
    values: std::vec::IntoIter<Value>,
}

impl Reply {
    pub(super) fn new(verb: &'static str, value: Value) -> Result<Self, StoreError> {
        match value {
            Value::Array(values) => Ok(Self { verb, values: values.into_iter() }),
            _ => Err(StoreError::Reply { verb, problem: "it is not an array" }),
        }
    }

    /// The error for a reply that starts with none of the script's tags.
    pub(super) fn unknown_tag(&self) -> StoreError {
        self.unexpected("its tag is not one of the script's")
    }

    pub(super) fn is_empty(&self) -> bool {
        self.values.len() == 0
    }

    /// The next value, which must be there.
    fn value(&mut self) -> Result<Value, StoreError> {
        self.values.next().ok_or_else(|| self.unexpected("it is too short"))
    }

    /// An entry of the message stream: its id and its fields.
    pub(super) fn message(&mut self, session_id: SessionId) -> Result<Message, StoreError> {
        let mut entry = Self::new(self.verb, self.value()?)?;
        let entry_id = entry.text()?;
        let seq = entry_id.split('-').next().and_then(|seq| seq.parse().ok());
        let seq = seq.ok_or_else(|| entry.unexpected("an entry id is not <seq>-0"))?;
        let mut fields = Self::new(self.verb, entry.value()?)?;
        let (mut message_id, mut role, mut content, mut metadata, mut created_at) = (None, None, None, None, None);
        while !fields.is_empty() {
            match &*fields.text()? {
                field::MESSAGE_ID => message_id = Some(fields.string()?),
                field::ROLE => role = Some(fields.role()?),
                field::CONTENT => content = Some(fields.string()?),
                field::METADATA => metadata = Some(fields.string()?),
                field::CREATED_AT => created_at = Some(fields.time()?),
                _ => drop(fields.value()?),
            }
        }
        match (message_id, role, content, metadata, created_at) {
            (Some(message_id), Some(role), Some(content), Some(metadata), Some(created_at)) => {
                Ok(Message { message_id, session_id, seq, role, content, metadata, created_at })
            }
            _ => Err(fields.unexpected("a message lacks a field")),
        }
    }
}

impl Texts for Reply {
    type Text = Str;

    /// It is a part of what was read from the connection: copy what is kept.
    fn optional_text(&mut self) -> Result<Option<Str>, StoreError> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
            // The client would take an array of one value for that value.
            Value::Array(_) => Err(self.unexpected("a value is not text")),
            value => {
                value.into_string().map(|text| Some(text.into())).ok_or_else(|| self.unexpected("a value is not text"))
            }
        }
    }

    fn verb(&self) -> &'static str {
        self.verb
    }

    fn len(&self) -> usize {
        self.values.len()
    }
}

/// One session's fields, in the order of [`SESSION_FIELDS`].
pub(super) struct Fields<'a> {
    verb: &'static str,
    texts: std::slice::Iter<'a, Option<&'a str>>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(verb: &'static str, texts: &'a [Option<&'a str>; SESSION_FIELDS.len()]) -> Self {
        Self { verb, texts: texts.iter() }
    }
}

impl<'a> Texts for Fields<'a> {
    type Text = &'a str;

    fn optional_text(&mut self) -> Result<Option<&'a str>, StoreError> {
        self.texts.next().copied().ok_or_else(|| self.unexpected("it is too short"))
    }

    fn verb(&self) -> &'static str {
        self.verb
    }

    fn len(&self) -> usize {
        self.texts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_without_all_of_a_session_s_fields_is_no_missing_session() {
        let read = |values| Reply::new("test", Value::Array(values)).and_then(|mut reply| reply.any_session());
        assert!(matches!(read(vec![Value::Null; SESSION_FIELDS.len()]), Ok(None)));
        assert!(read(vec![Value::Null; SESSION_FIELDS.len() - 1]).is_err());
    }
}
