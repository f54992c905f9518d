//! What Redis holds, key by key, for the audit (`src/audit.rs`): the only reads that walk the keyspace, and the one
//! write that repairs it.
//!
//! These methods report what is stored, not what should be stored. A key of the wrong type reads as a missing key,
//! because the audit reports the wrong type for that key alone.

mod reads;
mod repair;
mod walk;

use std::fmt;

use bytes::Bytes;
use fred::error::Error;
use fred::types::Value;

pub use self::reads::INDEX_PAGE;
pub use self::walk::{WALK_STEP, Walk};
use super::keys::LAYOUT_VERSION;
pub use super::keys::{KeyKind, User};
use super::{SessionStore, StoreError, health};
use crate::session::{Partition, Session, Status, Timestamp};

const OPERATION: &str = "audit";

/// A key that a walk found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalkedKey {
    /// A key of the layout.
    Known(FoundKey),
    /// A key that no code of this version writes.
    Unknown(String),
}

/// A key of the layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundKey {
    /// The full key.
    pub name: String,
    /// The partition in its hash tag.
    pub partition: Partition,
    /// What the key holds.
    pub kind: KeyKind,
}

impl FoundKey {
    /// The Redis type that a key of this kind must have.
    #[must_use]
    pub fn expected_type(&self) -> &'static str {
        match self.kind {
            KeyKind::Session(_) | KeyKind::MessageIds(_) | KeyKind::Turn(_) => "hash",
            KeyKind::Messages(_) | KeyKind::Chunks(_) => "list",
            KeyKind::Pointer(_) => "string",
            KeyKind::History(_) | KeyKind::Business(_) => "zset",
        }
    }
}

/// When Redis removes a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// The key does not exist.
    NoKey,
    /// Never.
    Never,
    /// At this time.
    At(Timestamp),
}

impl fmt::Display for Expiry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey => formatter.write_str("no key"),
            Self::Never => formatter.write_str("never"),
            Self::At(time) => time.fmt(formatter),
        }
    }
}

/// Type and expiry of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// The type's name in Redis; `none` if the key does not exist.
    pub type_name: String,
    /// When Redis removes it.
    pub expiry: Expiry,
}

/// Content of a session's hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// A complete session.
    Session(Box<Session>),
    /// What is wrong with the hash.
    Malformed(String),
}

/// Owner and state of a session according to its hash, even if its other fields are invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRef {
    /// Its business, if the field exists.
    pub business_id: Option<String>,
    /// Its user, if the field exists.
    pub user_id: Option<String>,
    /// Its status, if the field is valid.
    pub status: Option<Status>,
    /// When Redis removes it.
    pub expiry: Expiry,
}

impl SessionRef {
    /// Whether the session exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.expiry != Expiry::NoKey
    }

    /// Whether the hash names another business, or another user if `user_id` is given.
    #[must_use]
    pub fn is_of_another(&self, business_id: &str, user_id: Option<&str>) -> bool {
        let other_business = self.business_id.as_deref().is_some_and(|named| named != business_id);
        let other_user = self.user_id.as_deref().zip(user_id).is_some_and(|(named, user_id)| named != user_id);
        other_business || other_user
    }
}

/// The keys related to a session: its own and its user's.
#[derive(Clone, Debug, PartialEq)]
pub struct RelatedKeys {
    /// Its messages, its message ids, and its user's pointer, each with its expiry.
    pub keys_with_expiry: [(String, Expiry); 3],
    /// The session id in its user's pointer.
    pub pointed_id: Option<String>,
    /// Its score in its user's history.
    pub history_score: Option<f64>,
    /// Its score among the active sessions of its business.
    pub business_score: Option<f64>,
    /// Number of stored messages.
    pub messages: u64,
    /// `seq` of the oldest and the newest message, if they are messages of the session.
    pub oldest_and_newest: Option<(u64, u64)>,
}

/// An element of a session's list of messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    /// Its `seq` according to its distance from the oldest message.
    pub seq: u64,
    /// Its JSON.
    pub json: Bytes,
}

/// What a repair may change: the entries of one session id, as an index names it, and the owner of that index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairTarget {
    /// The partition of the index.
    pub partition: Partition,
    /// The session id in the index.
    pub session_id: String,
    /// The business that owns the index.
    pub business_id: String,
    /// The user who owns the index; `None` for the index of a business.
    pub user_id: Option<String>,
}

impl SessionStore {
    /// Reads the layout version and fails if this code cannot read that layout. Unlike [`SessionStore::ensure_layout`],
    /// it writes nothing.
    ///
    /// # Errors
    /// [`StoreError::Layout`] if it cannot, or the error of the command that failed.
    pub async fn read_layout(&self) -> Result<(), StoreError> {
        match health::stored_layout(&self.topology, self.keys.layout()).await? {
            Some(version) if version != LAYOUT_VERSION => Err(StoreError::Layout(version)),
            _ => Ok(()),
        }
    }

    /// Compares the clock of this machine with that of every server.
    ///
    /// # Errors
    /// [`StoreError::ClockSkew`] if they differ by more than the limit, or the error of the command that failed.
    pub async fn check_clocks(&self) -> Result<(), StoreError> {
        for server in self.topology.all() {
            self.health.compare_clocks(server.unchecked_client(), server.name()).await?;
        }
        Ok(())
    }

    /// How long a session stays readable after its end, in milliseconds.
    #[must_use]
    pub fn retention_ms(&self) -> i64 {
        self.config.lifecycle.retention_ms()
    }
}

fn unexpected(problem: &'static str) -> StoreError {
    StoreError::Reply { operation: OPERATION, problem }
}

/// The value as text. Invalid UTF-8 is replaced: other programs may have written it.
fn lossy(value: Value) -> String {
    let bytes = value.into_owned_bytes().unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn is_wrong_type(error: &Error) -> bool {
    error.details().contains("WRONGTYPE")
}

/// The reply, or `None` if the key has another type.
fn right_type<T>(reply: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match reply {
        Err(StoreError::Rejected(error)) if is_wrong_type(&error) => Ok(None),
        reply => reply.map(Some),
    }
}

/// The elements of an array; none if the key does not exist or has another type.
fn elements(reply: Result<Value, StoreError>) -> Result<Vec<Value>, StoreError> {
    match right_type(reply)? {
        Some(Value::Array(values)) => Ok(values),
        _ => Ok(Vec::new()),
    }
}
