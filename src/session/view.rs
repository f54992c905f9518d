//! A session with the members that a caller asked to include.

use utoipa::ToSchema;

use super::json::member;
use super::{MessageJson, Session, Turn, words};

words! {
    /// A member that `include` adds to a session.
    Included {
        /// The newest message.
        LastMessage = "lastMessage",
        /// The open turn.
        Turn = "turn",
    }
}

/// What to add to a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Include {
    /// Whether to add its newest message.
    pub last_message: bool,
    /// Whether to add its open turn.
    pub turn: bool,
}

/// The newest message of a session in a [`SessionView`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LastMessage {
    /// It was not requested, or would make the response too large.
    Omitted,
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

/// The open turn of a session in a [`SessionView`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewedTurn {
    /// It was not requested.
    Omitted,
    /// No turn is open.
    Null,
    /// The turn.
    Turn(Box<Turn>),
}

/// A session in the form of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// The session.
    pub session: Box<Session>,
    /// Its newest message.
    pub last_message: LastMessage,
    /// Its open turn.
    pub turn: ViewedTurn,
}

impl SessionView {
    /// The session without added members.
    #[must_use]
    pub fn of(session: Box<Session>) -> Self {
        Self { session, last_message: LastMessage::Omitted, turn: ViewedTurn::Omitted }
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
        let turn = if let ViewedTurn::Turn(turn) = &self.turn { turn.json_bytes() } else { 0 };
        self.session.json_bytes() + self.last_message.json_bytes() + turn
    }

    /// Appends the session as JSON, with what it includes after its own members.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        self.session.write_json(out);
        match &self.last_message {
            LastMessage::Omitted => {}
            LastMessage::Null => add_member(member!("lastMessage"), b"null", out),
            LastMessage::Message(message) => add_member(member!("lastMessage"), message.as_bytes(), out),
        }
        match &self.turn {
            ViewedTurn::Omitted => {}
            ViewedTurn::Null => add_member(member!("turn"), b"null", out),
            ViewedTurn::Turn(turn) => add_member(member!("turn"), &turn.to_json(), out),
        }
    }
}

/// Adds a member to the object that `out` ends with.
fn add_member(name: &str, json: &[u8], out: &mut Vec<u8>) {
    out.pop();
    for part in [name.as_bytes(), json, b"}"] {
        out.extend_from_slice(part);
    }
}
