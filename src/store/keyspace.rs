//! What lies in Redis, key by key, for the audit: the only reads that walk the keyspace, and the one write that repairs.
//!
//! Says what is there, not what should be. A key of the wrong type reads as one that is not there, because only the key
//! itself is to be blamed for it.

use std::fmt;
use std::sync::Arc;

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{HashesInterface, KeysInterface, SortedSetsInterface, StreamsInterface};
use fred::types::Value;

use super::client::Server;
pub use super::keys::{KeyKind, User};
use super::keys::{LAYOUT_VERSION, OWNER_AND_STATUS, SESSION_FIELDS};
use super::reply::{Reply, Texts};
use super::{SessionStore, StoreError, health};
use crate::session::{Message, Partition, Session, SessionId, Status, Timestamp};

/// Keys that Redis looks at in one step of the walk.
pub const WALK_STEP: u32 = 500;
/// Entries of an index, or message ids, that one command reads.
pub const INDEX_PAGE: u32 = 500;
/// Messages that one command reads: each may be as large as a request's body.
const MESSAGES_PAGE: u64 = 50;
/// Sessions of a user that a repair looks at before it makes one the active one.
const OTHERS_MAX: u32 = 1000;
const VERB: &str = "audit";

/// A key that the walk met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalkedKey {
    /// It is of the layout.
    Known(FoundKey),
    /// No code of this version would have written it.
    Unknown(String),
}

/// A key of the layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundKey {
    /// The whole key.
    pub name: String,
    /// The partition that its hash tag names.
    pub partition: Partition,
    /// What it holds.
    pub kind: KeyKind,
}

impl FoundKey {
    /// The Redis type of a key of this kind.
    #[must_use]
    pub fn type_wanted(&self) -> &'static str {
        match self.kind {
            KeyKind::Session(_) | KeyKind::MessageIds(_) => "hash",
            KeyKind::Messages(_) => "stream",
            KeyKind::Pointer(_) => "string",
            KeyKind::History(_) | KeyKind::Business(_) => "zset",
        }
    }
}

/// When Redis removes a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// There is no such key.
    NoKey,
    /// Never.
    Never,
    /// At this moment.
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

/// A key's type, as Redis calls it, and expiry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// `none` if there is no such key.
    pub type_name: String,
    /// When it goes.
    pub expiry: Expiry,
}

/// A session's hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// A whole session.
    Session(Box<Session>),
    /// What is wrong with it.
    Malformed(String),
}

/// What a session's hash says of its owner and state, however broken the rest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSession {
    /// Its business.
    pub business_id: Option<String>,
    /// Its user.
    pub user_id: Option<String>,
    /// Its status, if it is one.
    pub status: Option<Status>,
    /// When it goes.
    pub expiry: Expiry,
}

impl NamedSession {
    /// Whether there is such a session.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.expiry != Expiry::NoKey
    }

    /// Whether it says that it is of another business, or of another user if one is given.
    #[must_use]
    pub fn is_of_another(&self, business_id: &str, user_id: Option<&str>) -> bool {
        let other_business = self.business_id.as_deref().is_some_and(|named| named != business_id);
        let other_user = self.user_id.as_deref().zip(user_id).is_some_and(|(named, user_id)| named != user_id);
        other_business || other_user
    }
}

/// What surrounds a session: the keys of it and of its user.
#[derive(Clone, Debug, PartialEq)]
pub struct Surroundings {
    /// Its messages, their ids, and its user's pointer, each with its expiry.
    pub siblings: [(String, Expiry); 3],
    /// The session that its user's pointer names.
    pub pointed_id: Option<String>,
    /// Its score in its user's history.
    pub history_score: Option<f64>,
    /// Its score among the active sessions of its business.
    pub business_score: Option<f64>,
    /// How many messages are stored.
    pub messages: u64,
    /// The entry id of the newest message.
    pub newest_entry: Option<String>,
}

/// An entry of the message stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    /// `<seq>-0`.
    pub entry_id: String,
    /// The message, or what is wrong with it.
    pub message: Result<Message, String>,
}

/// Whose entries a repair may put right: a session id, as an index names it, and the owner of that index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairSubject {
    /// Where the index is.
    pub partition: Partition,
    /// What it names.
    pub session_id: String,
    /// Whose it is.
    pub business_id: String,
    /// Whose it is, unless it is a whole business's.
    pub user_id: Option<String>,
}

/// A walk over every key of the prefix, on every master. Not a snapshot: a key that is there throughout is met at least
/// once, others may be.
#[derive(Debug)]
pub struct Walk<'a> {
    store: &'a SessionStore,
    /// The servers still to walk, the current one last.
    servers: Vec<Arc<Server>>,
    cursor: String,
}

impl Walk<'_> {
    /// The keys of the next step, or `None` at the end. A step may bring none.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn step(&mut self) -> Result<Option<Vec<WalkedKey>>, StoreError> {
        let Some(server) = self.servers.last() else {
            return Ok(None);
        };
        let (client, pattern) = (server.client().await?, self.store.keys.pattern());
        let page: Value = client.scan_page(self.cursor.clone(), pattern, Some(WALK_STEP), None).await?;
        let mut page = page.into_array().into_iter();
        let cursor = page.next().and_then(Value::into_string);
        let (Some(cursor), Some(found)) = (cursor, page.next()) else {
            return Err(unexpected("a step of a scan is a cursor and keys"));
        };
        if cursor == "0" {
            self.servers.pop();
        }
        self.cursor = cursor;
        let layout = self.store.keys.layout();
        let names = found.into_array().into_iter().map(lossy).filter(|name| *name != layout);
        Ok(Some(names.map(|name| self.store.walked(name)).collect()))
    }
}

impl SessionStore {
    /// Whether this code can read what Redis holds. Unlike [`SessionStore::check`] it writes nothing.
    ///
    /// # Errors
    /// [`StoreError::Layout`] if it cannot, and whatever keeps Redis from being asked.
    pub async fn check_layout(&self) -> Result<(), StoreError> {
        match health::stored_layout(&self.servers, self.keys.layout()).await? {
            Some(version) if version != LAYOUT_VERSION => Err(StoreError::Layout(version)),
            _ => Ok(()),
        }
    }

    /// Compares the clocks of this machine and of every server.
    ///
    /// # Errors
    /// [`StoreError::ClockSkew`] if they differ by more than is safe, and whatever keeps Redis from being asked.
    pub async fn check_clocks(&self) -> Result<(), StoreError> {
        for server in self.servers.all() {
            self.health.compare_clocks(server.unchecked_client(), server.name()).await?;
        }
        Ok(())
    }

    /// Begins a walk over the keyspace.
    ///
    /// # Errors
    /// If the masters of a cluster are not known.
    pub fn walk(&self) -> Result<Walk<'_>, StoreError> {
        let servers = self.servers.all();
        if servers.is_empty() {
            return Err(StoreError::Unavailable(Error::new(ErrorKind::Cluster, "its masters are not known")));
        }
        Ok(Walk { store: self, servers, cursor: "0".to_owned() })
    }

    fn walked(&self, name: String) -> WalkedKey {
        match self.keys.parse(&name) {
            Some((partition, kind)) => WalkedKey::Known(FoundKey { name, partition, kind }),
            None => WalkedKey::Unknown(name),
        }
    }

    /// A key's type and expiry.
    ///
    /// # Errors
    /// If the store cannot serve, as of every method here.
    pub async fn key_state(&self, key: &str) -> Result<KeyState, StoreError> {
        let type_name = self.servers.call(key, |client| async move { client.r#type::<String, _>(key).await });
        let (type_name, expiry) = futures_util::try_join!(type_name, self.expiry(key))?;
        Ok(KeyState { type_name, expiry })
    }

    async fn expiry(&self, key: &str) -> Result<Expiry, StoreError> {
        Ok(match self.servers.call(key, |client| async move { client.pexpire_time(key).await }).await? {
            -2 => Expiry::NoKey,
            -1 => Expiry::Never,
            ms => Expiry::At(Timestamp(ms)),
        })
    }

    /// The session's hash, which must be there.
    ///
    /// # Errors
    /// As above.
    pub async fn stored(&self, id: SessionId) -> Result<Stored, StoreError> {
        let key = self.keys.session(id);
        let (key, fields) = (key.as_str(), &self.fields);
        let read = |client: Client| async move { client.hmget(key, fields.clone()).await };
        let values = elements(self.servers.call(key, read).await)?;
        if values.is_empty() {
            return Ok(Stored::Malformed("it is no hash".to_owned()));
        }
        let mut reply = Reply::new(VERB, Value::Array(values))?;
        Ok(match reply.any_session() {
            Ok(Some(session)) if session.session_id == id => Stored::Session(Box::new(session)),
            Ok(Some(session)) => Stored::Malformed(format!("sessionId is {}", session.session_id)),
            Ok(None) => Stored::Malformed("sessionId is missing".to_owned()),
            Err(StoreError::Reply { problem, .. }) => {
                // Fields are read in their order: the last one that was taken is the one that is wrong.
                let place = SESSION_FIELDS.len().saturating_sub(reply.len() + 1);
                Stored::Malformed(format!("{}: {problem}", SESSION_FIELDS[place]))
            }
            Err(error) => return Err(error),
        })
    }

    /// The session that an index of this partition names.
    ///
    /// # Errors
    /// As above.
    pub async fn named(&self, partition: Partition, session_id: &str) -> Result<NamedSession, StoreError> {
        let [key, ..] = self.keys.named(partition, session_id);
        let key = key.as_str();
        let read = |client: Client| async move { client.hmget(key, OWNER_AND_STATUS.to_vec()).await };
        let fields = async { elements(self.servers.call(key, read).await) };
        let (fields, expiry) = futures_util::try_join!(fields, self.expiry(key))?;
        let mut fields = fields.into_iter().map(Value::into_string);
        let mut next = || fields.next().flatten();
        Ok(NamedSession {
            business_id: next(),
            user_id: next(),
            status: next().as_deref().and_then(Status::from_word),
            expiry,
        })
    }

    /// What surrounds a session.
    ///
    /// # Errors
    /// As above.
    pub async fn surroundings(&self, session: &Session) -> Result<Surroundings, StoreError> {
        let id = session.session_id;
        let (messages, message_ids) = (self.keys.messages(id), self.keys.message_ids(id));
        let pointer = self.keys.pointer(&session.business_id, &session.user_id);
        let history = self.keys.history(&session.business_id, &session.user_id);
        let business = self.keys.business(id.partition(), &session.business_id);
        let (messages_expiry, message_ids_expiry, pointer_expiry, pointed_id) = futures_util::try_join!(
            self.expiry(&messages),
            self.expiry(&message_ids),
            self.expiry(&pointer),
            self.pointed_at(&pointer)
        )?;
        let stream = messages.as_str();
        let read_newest = |client: Client| async move { client.xrevrange(stream, "+", "-", Some(1)).await };
        let read_length = |client: Client| async move { client.xlen(stream).await };
        let length = async { right_type::<u64>(self.servers.call(stream, read_length).await) };
        let newest = async { elements(self.servers.call(stream, read_newest).await) };
        let (history_score, business_score, length, newest) =
            futures_util::try_join!(self.score(&history, id), self.score(&business, id), length, newest)?;
        let newest_entry = newest.into_iter().next().and_then(entry_id);
        Ok(Surroundings {
            siblings: [(messages, messages_expiry), (message_ids, message_ids_expiry), (pointer, pointer_expiry)],
            pointed_id,
            history_score,
            business_score,
            messages: length.unwrap_or_default(),
            newest_entry,
        })
    }

    async fn score(&self, index: &str, id: SessionId) -> Result<Option<f64>, StoreError> {
        let score = self.servers.call(index, |client| async move { client.zscore(index, id.to_string()).await }).await;
        Ok(right_type::<Option<f64>>(score)?.flatten())
    }

    /// What a pointer names.
    ///
    /// # Errors
    /// As above.
    pub async fn pointed_at(&self, pointer: &str) -> Result<Option<String>, StoreError> {
        let value = self.servers.call(pointer, |client| async move { client.get(pointer).await }).await;
        let value = right_type::<Value>(value)?;
        Ok(value.filter(|value| !value.is_null()).map(lossy))
    }

    /// The key of a user's history.
    #[must_use]
    pub fn history_key(&self, business_id: &str, user_id: &str) -> String {
        self.keys.history(business_id, user_id)
    }

    /// At most [`INDEX_PAGE`] entries of an index from a place on, in its order: what they name, and their scores.
    ///
    /// # Errors
    /// As above.
    pub async fn index_page(&self, index: &str, place: i64) -> Result<Vec<(String, f64)>, StoreError> {
        let last = place + i64::from(INDEX_PAGE) - 1;
        let read = |client: Client| async move { client.zrange(index, place, last, None, false, None, true).await };
        let flat = elements(self.servers.call(index, read).await)?;
        let mut entries = Vec::with_capacity(flat.len() / 2);
        let mut flat = flat.into_iter();
        while let (Some(member), Some(score)) = (flat.next(), flat.next()) {
            let score = score.as_f64().ok_or_else(|| unexpected("a score is a number"))?;
            entries.push((lossy(member), score));
        }
        Ok(entries)
    }

    /// The oldest messages after an entry, or from the start; none at the end.
    ///
    /// # Errors
    /// As above.
    pub async fn messages_page(&self, id: SessionId, after: Option<&str>) -> Result<Vec<StoredMessage>, StoreError> {
        let start = after.map_or_else(|| "-".to_owned(), |entry_id| format!("({entry_id}"));
        let key = self.keys.messages(id);
        let (key, start) = (key.as_str(), start.as_str());
        let read = |client: Client| async move { client.xrange(key, start, "+", Some(MESSAGES_PAGE)).await };
        let entries = elements(self.servers.call(key, read).await)?;
        let mut messages = Vec::with_capacity(entries.len());
        for entry in entries {
            let entry_id = entry_id(entry.clone());
            let message = match Reply::new(VERB, Value::Array(vec![entry]))?.message(id) {
                Ok(message) => Ok(message),
                Err(StoreError::Reply { problem, .. }) => Err(problem.to_owned()),
                Err(error) => return Err(error),
            };
            messages.push(StoredMessage { entry_id: entry_id.unwrap_or_default(), message });
        }
        Ok(messages)
    }

    /// What the session's message index says of these message ids, and how many it holds in all.
    ///
    /// # Errors
    /// As above.
    pub async fn indexed_seqs(
        &self,
        id: SessionId,
        message_ids: Vec<String>,
    ) -> Result<(Vec<Option<String>>, u64), StoreError> {
        let key = self.keys.message_ids(id);
        let (key, asked_for) = (key.as_str(), &message_ids);
        let length = self.servers.call(key, |client| async move { client.hlen(key).await }).await;
        let length = right_type::<u64>(length)?;
        let asked = message_ids.len();
        let seqs = if asked == 0 {
            Vec::new()
        } else {
            let read = |client: Client| async move { client.hmget(key, asked_for.clone()).await };
            elements(self.servers.call(key, read).await)?
        };
        let mut seqs: Vec<_> = seqs.into_iter().map(Value::into_string).collect();
        seqs.resize(asked, None);
        Ok((seqs, length.unwrap_or_default()))
    }

    /// Puts right what is safe to put right about one session id. Returns what was done, each with the key.
    ///
    /// # Errors
    /// As above.
    pub async fn repair(&self, subject: &RepairSubject, now: Timestamp) -> Result<Vec<(String, String)>, StoreError> {
        let partition = self.keys.partition(subject.partition);
        let id = &subject.session_id;
        let mut keys = Vec::from(self.keys.named(subject.partition, id));
        keys.push(self.keys.business(subject.partition, &subject.business_id));
        if let Some(user_id) = &subject.user_id {
            keys.push(self.keys.pointer(&subject.business_id, user_id));
            keys.push(self.keys.history(&subject.business_id, user_id));
        }
        let (lifetime_ms, retention_ms) =
            (self.config.lifecycle.max_lifetime_ms(), self.config.lifecycle.retention_ms());
        let args = vec![
            partition,
            id.clone(),
            subject.business_id.clone(),
            subject.user_id.clone().unwrap_or_default(),
            now.0.to_string(),
            retention_ms.to_string(),
            (now.0 + lifetime_ms + retention_ms).to_string(),
            OTHERS_MAX.to_string(),
        ];
        let mut reply = match self.scripts.repair.run(&self.servers, keys, args).await {
            // A key of the wrong type stops the script before it writes. The audit says so of that key.
            Err(StoreError::Refused(error)) if is_wrong_type(&error) => return Ok(Vec::new()),
            reply => reply?,
        };
        match reply.string()?.as_str() {
            "repaired" => {}
            _ => return Err(reply.unknown_tag()),
        }
        let mut done = Vec::new();
        while !reply.is_empty() {
            done.push((reply.string()?, reply.string()?));
        }
        Ok(done)
    }

    /// How long a session stays readable after its end, in milliseconds.
    #[must_use]
    pub fn retention_ms(&self) -> i64 {
        self.config.lifecycle.retention_ms()
    }
}

fn unexpected(problem: &'static str) -> StoreError {
    StoreError::Reply { verb: VERB, problem }
}

/// Text that may have been written by anybody.
fn lossy(value: Value) -> String {
    let bytes = value.into_owned_bytes().unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn is_wrong_type(error: &Error) -> bool {
    error.details().contains("WRONGTYPE")
}

/// The reply, or nothing if the key is of another type.
fn right_type<T>(reply: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match reply {
        Err(StoreError::Refused(error)) if is_wrong_type(&error) => Ok(None),
        reply => reply.map(Some),
    }
}

/// The elements of an array; none if there is no such key, or one of another type.
fn elements(reply: Result<Value, StoreError>) -> Result<Vec<Value>, StoreError> {
    match right_type(reply)? {
        Some(Value::Array(values)) => Ok(values),
        _ => Ok(Vec::new()),
    }
}

fn entry_id(entry: Value) -> Option<String> {
    entry.into_array().into_iter().next().and_then(Value::into_string)
}
