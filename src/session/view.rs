//! A session with the members that a caller asked to include.

use utoipa::ToSchema;

use super::json::member;
use super::{MessageJson, Session, words};

words! {
    /// A member that `include` adds to a session.
    Included {
        /// The newest message.
        LastMessage = "lastMessage",
    }
}

/// What to add to a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Include {
    /// Whether to add its newest message.
    pub last_message: bool,
}

/// The newest message of a session in a [`SessionView`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LastMessage {
    /// It was not asked for, or would make the response too large.
    LeftOut,
    /// The session has no messages.
    Null,
    /// The message.
    Message(MessageJson),
}

impl LastMessage {
    /// Number of bytes of the message's JSON.
    #[must_use]
    pub fn json_bytes(&self) -> usize {
        if let Self::Message(message) = self { message.json_bytes() } else { 0 }
    }
}

/// A session as a response shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// The session.
    pub session: Session,
    /// Its newest message.
    pub last_message: LastMessage,
}

impl SessionView {
    /// The session without anything else.
    #[must_use]
    pub fn of(session: Session) -> Self {
        Self { session, last_message: LastMessage::LeftOut }
    }

    /// Adds the session's newest message, unless the response would have more than `bytes_max` bytes. Returns whether
    /// it fits.
    pub fn include_last_message(&mut self, last_message: LastMessage, bytes_max: usize) -> bool {
        let fits = self.session.json_bytes() + last_message.json_bytes() <= bytes_max;
        if fits {
            self.last_message = last_message;
        }
        fits
    }

    /// Approximate number of bytes that [`Self::write_json`] appends.
    #[must_use]
    pub fn json_bytes(&self) -> usize {
        self.session.json_bytes() + self.last_message.json_bytes()
    }

    /// Appends the session as JSON, with what it includes after its own members.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        self.session.write_json(out);
        let json = match &self.last_message {
            LastMessage::LeftOut => return,
            LastMessage::Null => b"null",
            LastMessage::Message(message) => message.as_bytes(),
        };
        // Replaces the brace that closes the session.
        out.pop();
        for part in [member!("lastMessage").as_bytes(), json, b"}"] {
            out.extend_from_slice(part);
        }
    }
}
