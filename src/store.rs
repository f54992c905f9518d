//! [`SessionStore`]: sessions in Redis, one method a verb. Knows no HTTP and reads no clock: `now` is an argument.

mod client;
pub mod embedded;
mod error;
mod keys;
pub mod keyspace;
mod reply;
mod scripts;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fred::clients::Client;
use fred::interfaces::{ClientLike, HashesInterface, KeysInterface, SortedSetsInterface, StreamsInterface};
use fred::types::sorted_sets::{ZRange, ZRangeBound, ZRangeKind};
use fred::types::{MultipleKeys, SetOptions, Value};
use futures_util::future::try_join_all;

pub use self::client::RedisAddress;
pub use self::error::StoreError;
use self::keys::{Keys, LAYOUT_VERSION, SESSION_FIELDS, field};
use self::reply::Reply;
use self::scripts::Scripts;
use crate::session::{
    Identifier, Lifecycle, Message, NewMessage, NewSession, Partition, PatchStatus, Session, SessionId, SessionPatch,
    Status, Timestamp, merge_patch,
};

/// Stale index entries that one create removes from each index at the most.
const TRIM_MAX: u32 = 4;
/// Messages beyond the kept ones that one append removes at the most.
const TRIM_MESSAGES_MAX: u32 = 200;
/// Sessions that one run of the erase script removes at the most.
const ERASE_BATCH_MAX: u32 = 100;
/// How often a change is tried again because another one came between its reading and its writing.
const UPDATE_ATTEMPTS: u32 = 64;
/// How often the user's pointer is followed again because it moved while it was followed.
const POINTER_ATTEMPTS: u32 = 8;
/// How often a list reads on to fill a page that has gaps.
const PAGE_READS_MAX: u32 = 4;
/// How many entries a history with gaps reads on by at the least: those of sessions that are gone lie together.
const PAGE_READ_ON: usize = 100;

/// Where the sessions are and how they live.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The Redis to use.
    pub redis: RedisAddress,
    /// What all keys start with.
    pub key_prefix: String,
    /// The most that one command may take.
    pub command_timeout: Duration,
    /// How long sessions live.
    pub lifecycle: Lifecycle,
    /// The newest messages of a session that are kept; at least 100.
    pub messages_kept: usize,
    /// The most bytes that a session's metadata may have after a merge.
    pub metadata_bytes_max: usize,
}

/// Sessions in Redis.
#[derive(Debug)]
pub struct SessionStore {
    client: Client,
    scripts: Scripts,
    keys: Keys,
    fields: MultipleKeys,
    lifecycle: Lifecycle,
    messages_kept: usize,
    metadata_bytes_max: usize,
}

/// What [`SessionStore::get_or_create`] did.
#[derive(Debug)]
pub enum GetOrCreate {
    /// A new session was created.
    Created(Session),
    /// The user has an active session.
    Resumed(Session),
}

/// What [`SessionStore::update`] did.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the large one is the usual one")]
pub enum Update {
    /// The session as it is now.
    Updated(Session),
    /// There is no such session.
    Missing,
    /// The session has a version that the condition does not name.
    VersionMismatch(u64),
    /// Another session of the user is active.
    AnotherActive(SessionId),
    /// Other changes came in between, again and again. Nothing was changed.
    ConcurrentUpdate,
    /// The merged metadata would be too large. Nothing was changed.
    MetadataTooLarge,
}

/// What [`SessionStore::append_messages`] did.
#[derive(Debug)]
pub enum Append {
    /// All messages, of which at least one is new.
    Appended(Vec<Message>),
    /// All messages, as they were stored before.
    Replayed(Vec<Message>),
    /// There is no such session.
    Missing,
    /// The session is not active.
    NotActive,
    /// A message with this id and another role or content exists. Nothing was appended.
    Conflict(String),
}

/// What [`SessionStore::delete`] did.
#[derive(Debug)]
pub enum Delete {
    /// It is gone.
    Deleted,
    /// There is no such session.
    Missing,
    /// The session has a version that the condition does not name.
    VersionMismatch(u64),
}

/// Which versions of a session a call insists on (`If-Match`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionCondition {
    /// Any version will do.
    Any,
    /// One of these, as decimal text.
    OneOf(Vec<String>),
}

impl VersionCondition {
    fn admits(&self, version: u64) -> bool {
        match self {
            Self::Any => true,
            Self::OneOf(versions) => versions.contains(&version.to_string()),
        }
    }

    /// What a script compares: the version that was read and admitted, or nothing.
    fn pinned(&self, version: u64) -> String {
        match self {
            Self::Any => String::new(),
            Self::OneOf(_) => version.to_string(),
        }
    }
}

/// Which messages to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageRange {
    /// The newest.
    Newest,
    /// The newest before this seq.
    Before(u64),
    /// The oldest after this seq.
    After(u64),
}

/// Messages in ascending seq, and which seqs further pages start from.
#[derive(Debug)]
pub struct MessagePage {
    /// In ascending seq.
    pub messages: Vec<Message>,
    /// Older ones are there: read before this seq.
    pub before: Option<u64>,
    /// Newer ones are there: read after this seq.
    pub after: Option<u64>,
}

/// A place in a list: the entry that a page ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The list's sort key: Unix time in milliseconds.
    pub score: i64,
    /// The entry.
    pub session_id: SessionId,
}

/// Sessions in the list's order, and where the next page starts.
#[derive(Debug)]
pub struct SessionPage {
    /// In the list's order.
    pub sessions: Vec<Session>,
    /// The place to continue from, if there may be more.
    pub next: Option<Position>,
}

impl SessionStore {
    /// A store that connects in the background. Until it is connected, calls fail in bounded time.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the URL cannot be used.
    pub fn connect(config: StoreConfig) -> Result<Self, StoreError> {
        Ok(Self {
            client: client::connect(&config.redis, config.command_timeout)?,
            scripts: Scripts::new(),
            keys: Keys::new(config.key_prefix),
            fields: SESSION_FIELDS.to_vec().into(),
            lifecycle: config.lifecycle,
            messages_kept: config.messages_kept,
            metadata_bytes_max: config.metadata_bytes_max,
        })
    }

    /// Writes the layout version if there is none, and returns whether the stored one is this code's.
    ///
    /// # Errors
    /// If Redis cannot be asked.
    pub async fn claim_layout(&self) -> Result<bool, StoreError> {
        let key = self.keys.layout();
        let _: Value = self.client.set(key.as_str(), LAYOUT_VERSION, None, Some(SetOptions::NX), false).await?;
        let stored: Option<String> = self.client.get(key).await?;
        Ok(stored.as_deref() == Some(LAYOUT_VERSION))
    }

    /// Whether Redis answers and would take a write.
    ///
    /// # Errors
    /// Why it would not.
    pub async fn ready(&self) -> Result<(), StoreError> {
        let mut reply = self.scripts.ready.run(&self.client, Vec::new(), Vec::new()).await?;
        match reply.string()?.as_str() {
            "ready" => Ok(()),
            tag => Err(reply.unexpected(tag)),
        }
    }

    /// The active session of a user, or a new one; or always a new one in place of it (`replace`).
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn get_or_create(&self, new: &NewSession, now: Timestamp) -> Result<GetOrCreate, StoreError> {
        let (business_id, user_id) = (new.business_id.as_str(), new.user_id.as_str());
        let partition = Partition::of_user(business_id, user_id);
        let id = SessionId::random(partition)?;
        let keys = vec![
            self.keys.pointer(business_id, user_id),
            self.keys.history(business_id, user_id),
            self.keys.business(partition, business_id),
            self.keys.session(id),
        ];
        let mut args = vec![
            self.keys.partition(partition),
            id.to_string(),
            now.0.to_string(),
            self.lifecycle.idle_ms().to_string(),
            self.lifecycle.max_lifetime_ms().to_string(),
            self.lifecycle.retention_ms().to_string(),
            self.lifecycle.resolution_ms().to_string(),
            new.if_active.as_str().to_owned(),
            TRIM_MAX.to_string(),
        ];
        let mut set = |name: &str, value: &str| args.extend([name.to_owned(), value.to_owned()]);
        set(field::BUSINESS_ID, business_id);
        set(field::USER_ID, user_id);
        set(field::LOCATION_ID, new.location_id.as_str());
        set(field::SESSION_TYPE, new.session_type.as_str());
        set(field::METADATA, &new.metadata);
        if let Some(title) = &new.title {
            set(field::TITLE, title);
        }

        let mut reply = self.scripts.get_or_create.run(&self.client, keys, args).await?;
        match reply.string()?.as_str() {
            "created" => Ok(GetOrCreate::Created(self.created(new, id, reply.time()?))),
            "replayed" => match reply.session(id)?.and_then(|session| session.at(now, &self.lifecycle)) {
                Some(session) => Ok(GetOrCreate::Created(session)),
                None => Err(reply.unexpected("the created session is missing")),
            },
            "resumed" => match reply.any_session()?.and_then(|session| session.at(now, &self.lifecycle)) {
                Some(session) if session.business_id == business_id && session.user_id == user_id => {
                    Ok(GetOrCreate::Resumed(session))
                }
                _ => Err(reply.unexpected("the active session is missing or another user's")),
            },
            tag => Err(reply.unexpected(tag)),
        }
    }

    /// What `get_or_create.lua` has just written: no read-back is needed.
    fn created(&self, new: &NewSession, id: SessionId, at: Timestamp) -> Session {
        let active_until = Timestamp(at.0 + self.lifecycle.max_lifetime_ms());
        Session {
            session_id: id,
            business_id: new.business_id.to_string(),
            user_id: new.user_id.to_string(),
            location_id: new.location_id.to_string(),
            session_type: new.session_type.to_string(),
            status: Status::Active,
            title: new.title.clone(),
            metadata: new.metadata.clone(),
            message_count: 0,
            version: 1,
            created_at: at,
            updated_at: at,
            last_activity_at: at,
            expires_at: active_until.min(Timestamp(at.0 + self.lifecycle.idle_ms())),
            active_until,
            ended_at: None,
            end_reason: None,
        }
    }

    /// One session, or `None` if there is none or it is no longer readable.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn get(&self, id: SessionId, now: Timestamp) -> Result<Option<Session>, StoreError> {
        Ok(self.read(id).await?.and_then(|session| session.at(now, &self.lifecycle)))
    }

    /// One session as it is stored.
    async fn read(&self, id: SessionId) -> Result<Option<Session>, StoreError> {
        let value: Value = self.client.hmget(self.keys.session(id), self.fields.clone()).await?;
        Reply::new("get", value)?.session(id)
    }

    /// The active session of a user.
    ///
    /// The pointer says which session to look at; the session itself says whether it is active. If it is not, it was
    /// ended between the two reads, and the pointer is followed again.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn get_active(
        &self,
        business_id: &Identifier,
        user_id: &Identifier,
        now: Timestamp,
    ) -> Result<Option<Session>, StoreError> {
        let pointer = self.keys.pointer(business_id.as_str(), user_id.as_str());
        let mut missing = None;
        for _ in 0..POINTER_ATTEMPTS {
            let Some(text) = self.client.get::<Option<String>, _>(pointer.as_str()).await? else {
                return Ok(None);
            };
            let id: SessionId =
                text.parse().map_err(|_| StoreError::Reply { verb: "get_active", problem: text.clone() })?;
            match self.read(id).await? {
                // An expired session that is still marked active has had no successor yet.
                Some(session) if session.status == Status::Active => {
                    return Ok((now < session.expires_at).then_some(session));
                }
                Some(_) => {}
                // A deleted session never comes back: if the pointer still names it, it leads nowhere.
                None if missing == Some(id) => return Ok(None),
                None => missing = Some(id),
            }
        }
        Err(StoreError::Busy("the user's active session changes faster than it can be read".to_owned()))
    }

    /// Changes a session.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn update(
        &self,
        id: SessionId,
        patch: &SessionPatch,
        condition: &VersionCondition,
        now: Timestamp,
    ) -> Result<Update, StoreError> {
        let mutation_id = random_mutation_id()?;
        for _ in 0..UPDATE_ATTEMPTS {
            let Some(session) = self.get(id, now).await? else {
                return Ok(Update::Missing);
            };
            if !condition.admits(session.version) {
                return Ok(Update::VersionMismatch(session.version));
            }
            let metadata = match &patch.metadata {
                Some(metadata_patch) => Some(merged_metadata(&session, metadata_patch)?),
                None => None,
            };
            if metadata.as_ref().is_some_and(|merged| merged.len() > self.metadata_bytes_max) {
                return Ok(Update::MetadataTooLarge);
            }
            let args = self.update_args(&session, patch, metadata, condition, &mutation_id, now);
            let mut reply = self.scripts.update.run(&self.client, self.keys_of(&session), args).await?;
            match reply.string()?.as_str() {
                "updated" => {
                    let (_change, _other_ended) = (reply.string()?, reply.string()?);
                    return match reply.session(id)?.and_then(|session| session.at(now, &self.lifecycle)) {
                        Some(session) => Ok(Update::Updated(session)),
                        None => Err(reply.unexpected("the updated session is missing")),
                    };
                }
                "missing" => return Ok(Update::Missing),
                "another_active" => return Ok(Update::AnotherActive(reply.parse()?)),
                // Another change came in between: look again.
                "version_mismatch" | "stale" => {}
                tag => return Err(reply.unexpected(tag)),
            }
        }
        Ok(Update::ConcurrentUpdate)
    }

    fn update_args(
        &self,
        session: &Session,
        patch: &SessionPatch,
        metadata: Option<String>,
        condition: &VersionCondition,
        mutation_id: &str,
        now: Timestamp,
    ) -> Vec<String> {
        let base_version = if metadata.is_some() { session.version.to_string() } else { String::new() };
        let mut args = vec![
            self.keys.partition(session.session_id.partition()),
            session.session_id.to_string(),
            now.0.to_string(),
            self.lifecycle.idle_ms().to_string(),
            self.lifecycle.max_lifetime_ms().to_string(),
            self.lifecycle.retention_ms().to_string(),
            mutation_id.to_owned(),
            condition.pinned(session.version),
            base_version,
            patch.status.map_or("", PatchStatus::as_str).to_owned(),
            patch.if_active.as_str().to_owned(),
        ];
        let mut set = |name: &str, value: String| args.extend([name.to_owned(), value]);
        if let Some(location_id) = &patch.location_id {
            set(field::LOCATION_ID, format!("={location_id}"));
        }
        if let Some(session_type) = &patch.session_type {
            set(field::SESSION_TYPE, format!("={session_type}"));
        }
        if let Some(title) = &patch.title {
            set(field::TITLE, title.as_ref().map_or_else(String::new, |title| format!("={title}")));
        }
        if let Some(metadata) = metadata {
            set(field::METADATA, format!("={metadata}"));
        }
        args
    }

    /// The keys of a session and of its user, in the order in which the scripts declare them.
    fn keys_of(&self, session: &Session) -> Vec<String> {
        let id = session.session_id;
        vec![
            self.keys.session(id),
            self.keys.messages(id),
            self.keys.message_ids(id),
            self.keys.pointer(&session.business_id, &session.user_id),
            self.keys.history(&session.business_id, &session.user_id),
            self.keys.business(id.partition(), &session.business_id),
        ]
    }

    /// Appends messages, all or none. Ids that are known with the same role and content are answered as stored.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn append_messages(
        &self,
        id: SessionId,
        new: &[NewMessage],
        now: Timestamp,
    ) -> Result<Append, StoreError> {
        let Some(session) = self.get(id, now).await? else {
            return Ok(Append::Missing);
        };
        let mut batch = match Batch::new(new)? {
            Ok(batch) => batch,
            Err(message_id) => return Ok(Append::Conflict(message_id)),
        };
        loop {
            let mut args = vec![
                id.to_string(),
                now.0.to_string(),
                self.lifecycle.idle_ms().to_string(),
                self.lifecycle.retention_ms().to_string(),
                self.messages_kept.to_string(),
                TRIM_MESSAGES_MAX.to_string(),
            ];
            batch.push_args(&mut args);
            let mut reply = self.scripts.append_messages.run(&self.client, self.keys_of(&session), args).await?;
            match reply.string()?.as_str() {
                "appended" => return Ok(Append::Appended(batch.read_messages(&mut reply, id)?.0)),
                "replayed" => {
                    let (messages, made_here) = batch.read_messages(&mut reply, id)?;
                    // An id that was made for this call is known only because an earlier run of it was lost.
                    return Ok(if made_here { Append::Appended(messages) } else { Append::Replayed(messages) });
                }
                "missing" => return Ok(Append::Missing),
                "not_active" => return Ok(Append::NotActive),
                "conflict" => {
                    if let Some(message_id) = batch.adopt_stored_texts(&mut reply)? {
                        return Ok(Append::Conflict(message_id));
                    }
                }
                tag => return Err(reply.unexpected(tag)),
            }
        }
    }

    /// A page of a session's messages, or `None` if there is no such session.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn list_messages(
        &self,
        id: SessionId,
        range: MessageRange,
        limit: u64,
        now: Timestamp,
    ) -> Result<Option<MessagePage>, StoreError> {
        let key = self.keys.messages(id);
        let count = Some(limit + 1);
        // The messages are read first: if the session is there afterwards, it was there when they were read.
        let messages = async {
            let value: Value = match range {
                MessageRange::Newest => self.client.xrevrange(key.as_str(), "+", "-", count).await?,
                // Not `(seq-0`: Redis refuses what would be before 0, and there is no message with that seq.
                MessageRange::Before(seq) => {
                    self.client.xrevrange(key.as_str(), seq.saturating_sub(1).to_string(), "-", count).await?
                }
                MessageRange::After(seq) => self.client.xrange(key.as_str(), format!("({seq}-0"), "+", count).await?,
            };
            read_messages(value, id)
        };
        let oldest = async {
            match range {
                MessageRange::After(_) => read_messages(self.client.xrange(key.as_str(), "-", "+", Some(1)).await?, id),
                _ => Ok(Vec::new()),
            }
        };
        let (mut messages, oldest, session) = futures_util::try_join!(messages, oldest, self.get(id, now))?;
        let Some(session) = session else {
            return Ok(None);
        };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = messages.len() > limit;
        messages.truncate(limit);
        let (before, after) = match range {
            MessageRange::Newest | MessageRange::Before(_) => {
                messages.reverse();
                let newest = messages.last().map_or(0, |message| message.seq);
                let after = match range {
                    MessageRange::Before(seq) if messages.is_empty() => seq.saturating_sub(1),
                    _ => newest,
                };
                let newer = range != MessageRange::Newest && after < session.message_count;
                (messages.first().filter(|_| more).map(|first| first.seq), newer.then_some(after))
            }
            MessageRange::After(seq) => {
                let before = messages.first().map_or(seq.saturating_add(1), |first| first.seq);
                let older = oldest.first().is_some_and(|oldest| oldest.seq < before);
                (older.then_some(before), messages.last().filter(|_| more).map(|last| last.seq))
            }
        };
        Ok(Some(MessagePage { messages, before, after }))
    }

    /// Deletes a session with its messages.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn delete(
        &self,
        id: SessionId,
        condition: &VersionCondition,
        now: Timestamp,
    ) -> Result<Delete, StoreError> {
        for _ in 0..UPDATE_ATTEMPTS {
            let Some(session) = self.get(id, now).await? else {
                return Ok(Delete::Missing);
            };
            if !condition.admits(session.version) {
                return Ok(Delete::VersionMismatch(session.version));
            }
            let args = vec![
                id.to_string(),
                now.0.to_string(),
                self.lifecycle.retention_ms().to_string(),
                condition.pinned(session.version),
            ];
            let mut reply = self.scripts.delete.run(&self.client, self.keys_of(&session), args).await?;
            match reply.string()?.as_str() {
                "deleted" => return Ok(Delete::Deleted),
                "missing" => return Ok(Delete::Missing),
                // Another change came in between: look again.
                "version_mismatch" => {}
                tag => return Err(reply.unexpected(tag)),
            }
        }
        Err(StoreError::Busy("the session changes faster than it can be read".to_owned()))
    }

    /// Erases every session and message of a user. Returns how many sessions there were.
    ///
    /// # Errors
    /// If the store cannot serve. Some sessions may be gone by then; another call erases the rest.
    pub async fn erase_user(
        &self,
        business_id: &Identifier,
        user_id: &Identifier,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let (business_id, user_id) = (business_id.as_str(), user_id.as_str());
        let partition = Partition::of_user(business_id, user_id);
        let mut erased = 0;
        loop {
            let keys = vec![
                self.keys.pointer(business_id, user_id),
                self.keys.history(business_id, user_id),
                self.keys.business(partition, business_id),
            ];
            let args = vec![
                self.keys.partition(partition),
                now.0.to_string(),
                self.lifecycle.retention_ms().to_string(),
                ERASE_BATCH_MAX.to_string(),
            ];
            let mut reply = self.scripts.erase_user.run(&self.client, keys, args).await?;
            match reply.string()?.as_str() {
                "erased" => {
                    erased += reply.parse::<u64>()?;
                    if reply.parse::<u64>()? == 0 {
                        return Ok(erased);
                    }
                }
                tag => return Err(reply.unexpected(tag)),
            }
        }
    }

    /// A page of the user's sessions, newest first.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn list_history(
        &self,
        business_id: &Identifier,
        user_id: &Identifier,
        limit: usize,
        after: Option<Position>,
        now: Timestamp,
    ) -> Result<SessionPage, StoreError> {
        let key = self.keys.history(business_id.as_str(), user_id.as_str());
        let mut after = after;
        let mut sessions = Vec::with_capacity(limit);
        let mut wanted = limit + 1;
        // Entries whose session is gone leave gaps; a page with very many of them stays short and has a next one.
        for _ in 0..PAGE_READS_MAX {
            // Scores are unique: createdAt strictly increases for a user.
            let highest = after.map_or(ScoreBound::Infinite, |position| ScoreBound::Below(position.score));
            let entries = self.range_down(&key, highest, ScoreBound::Infinite, 0, wanted).await?;
            let exhausted = entries.len() < wanted;
            let read = try_join_all(entries.iter().map(|entry| self.get(entry.session_id, now))).await?;
            for (entry, session) in entries.into_iter().zip(read) {
                // Only a session that is there makes a further page.
                if sessions.len() == limit && session.is_some() {
                    return Ok(SessionPage { sessions, next: after });
                }
                sessions.extend(session);
                after = Some(entry);
            }
            if exhausted {
                return Ok(SessionPage { sessions, next: None });
            }
            wanted = wanted.max(PAGE_READ_ON);
        }
        Ok(SessionPage { sessions, next: after })
    }

    /// A page of the active sessions of a business, latest expiry first, and how many there are in all.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn list_active(
        &self,
        business_id: &Identifier,
        limit: usize,
        after: Option<Position>,
        now: Timestamp,
    ) -> Result<(SessionPage, u64), StoreError> {
        let partitions = Partition::of_business(business_id.as_str());
        let keys: Vec<_> =
            partitions.into_iter().map(|partition| self.keys.business(partition, business_id.as_str())).collect();
        let totals = try_join_all(keys.iter().map(|key| self.count_active(key, now)));
        let page = self.page_of_active(&keys, limit, after, now);
        let (totals, page) = futures_util::try_join!(totals, page)?;
        Ok((page, totals.into_iter().sum()))
    }

    async fn page_of_active(
        &self,
        keys: &[String],
        limit: usize,
        after: Option<Position>,
        now: Timestamp,
    ) -> Result<SessionPage, StoreError> {
        let mut after = after;
        let mut sessions = Vec::with_capacity(limit);
        for _ in 0..PAGE_READS_MAX {
            let heads = keys.iter().map(|key| self.active_entries(key, after, now, limit + 1));
            let mut entries: Vec<_> = try_join_all(heads).await?.into_iter().flatten().collect();
            entries.sort_unstable_by_key(|entry| std::cmp::Reverse((entry.score, entry.session_id)));
            entries.truncate(limit + 1);
            let exhausted = entries.len() <= limit;
            let read = try_join_all(entries.iter().map(|entry| self.get(entry.session_id, now))).await?;
            for (entry, session) in entries.into_iter().zip(read) {
                let session = session.filter(|session| session.status == Status::Active);
                // Only a session that is there makes a further page.
                if sessions.len() == limit && session.is_some() {
                    return Ok(SessionPage { sessions, next: after });
                }
                sessions.extend(session);
                after = Some(entry);
            }
            if exhausted {
                return Ok(SessionPage { sessions, next: None });
            }
        }
        Ok(SessionPage { sessions, next: after })
    }

    /// The first `limit` entries of one business index after a position. Several may expire in the same millisecond, so
    /// entries with the position's own score are read again and those up to it dropped.
    async fn active_entries(
        &self,
        key: &str,
        after: Option<Position>,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Position>, StoreError> {
        let highest = after.map_or(ScoreBound::Infinite, |position| ScoreBound::Inclusive(position.score));
        let mut entries = Vec::new();
        let mut offset = 0;
        loop {
            let read = self.range_down(key, highest, ScoreBound::Above(now.0), offset, limit).await?;
            let exhausted = read.len() < limit;
            offset += read.len();
            let is_after = |entry: &Position| {
                after.is_none_or(|after| (entry.score, entry.session_id) < (after.score, after.session_id))
            };
            entries.extend(read.into_iter().filter(is_after));
            if exhausted || entries.len() >= limit {
                return Ok(entries);
            }
        }
    }

    async fn count_active(&self, key: &str, now: Timestamp) -> Result<u64, StoreError> {
        // Scores are whole milliseconds, so "above now" is "from the next millisecond on".
        Ok(self.client.zcount(key, score_of(now.0 + 1), f64::INFINITY).await?)
    }

    /// Entries of a sorted set from `highest` downwards.
    async fn range_down(
        &self,
        key: &str,
        highest: ScoreBound,
        lowest: ScoreBound,
        offset: usize,
        count: usize,
    ) -> Result<Vec<Position>, StoreError> {
        let (offset, count) = (i64::try_from(offset), i64::try_from(count));
        let limit = Some((offset.unwrap_or(i64::MAX), count.unwrap_or(i64::MAX)));
        let value: Value = self
            .client
            .zrevrangebyscore(key, highest.as_range(f64::INFINITY), lowest.as_range(f64::NEG_INFINITY), true, limit)
            .await?;
        let mut reply = Reply::new("list", value)?;
        let mut entries = Vec::new();
        while !reply.is_empty() {
            entries.push(Position { session_id: reply.parse()?, score: reply.parse()? });
        }
        Ok(entries)
    }

    /// Closes the connection after what was sent is answered.
    pub async fn quit(&self) {
        // Nothing is left to be done if even that fails.
        let _ = self.client.quit().await;
    }
}

/// One end of a range of scores.
#[derive(Clone, Copy)]
enum ScoreBound {
    Infinite,
    Inclusive(i64),
    Below(i64),
    Above(i64),
}

impl ScoreBound {
    fn as_range(self, infinite: f64) -> ZRange {
        let (kind, score) = match self {
            Self::Infinite => (ZRangeKind::Inclusive, infinite),
            Self::Inclusive(ms) => (ZRangeKind::Inclusive, score_of(ms)),
            Self::Below(ms) | Self::Above(ms) => (ZRangeKind::Exclusive, score_of(ms)),
        };
        let range = if score == f64::INFINITY {
            ZRangeBound::InfiniteScore
        } else if score == f64::NEG_INFINITY {
            ZRangeBound::NegInfiniteScore
        } else {
            ZRangeBound::Score(score)
        };
        ZRange { kind, range }
    }
}

/// A time as a sorted set's score. Milliseconds fit in the 53 bits that are exact.
#[expect(clippy::cast_precision_loss, reason = "exact until the year 287396")]
pub(crate) fn score_of(ms: i64) -> f64 {
    ms as f64
}

/// The session's metadata with a merge patch applied (RFC 7396); `null` empties it.
fn merged_metadata(session: &Session, patch: &serde_json::Value) -> Result<String, StoreError> {
    let broken = |error: serde_json::Error| StoreError::Reply { verb: "update", problem: error.to_string() };
    let mut metadata = serde_json::from_str(&session.metadata).map_err(broken)?;
    match patch {
        serde_json::Value::Object(patch) => merge_patch(&mut metadata, patch.clone()),
        _ => metadata.clear(),
    }
    serde_json::to_string(&metadata).map_err(broken)
}

fn read_messages(value: Value, id: SessionId) -> Result<Vec<Message>, StoreError> {
    let mut reply = Reply::new("list_messages", value)?;
    let mut messages = Vec::new();
    while !reply.is_empty() {
        messages.push(reply.message(id)?);
    }
    Ok(messages)
}

/// 64 random bits as 11 characters: names one call of `update.lua`.
fn random_mutation_id() -> Result<String, StoreError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// The messages of one call, each id once, as `append_messages.lua` takes them.
struct Batch {
    messages: Vec<BatchMessage>,
    /// For each message of the call its place in `messages`.
    places: Vec<usize>,
}

struct BatchMessage {
    message_id: String,
    made_here: bool,
    new: NewMessage,
    content: String,
}

impl Batch {
    /// Takes the messages of a call. An id that comes twice with other content is the inner error.
    fn new(new: &[NewMessage]) -> Result<Result<Self, String>, StoreError> {
        let mut batch = Self { messages: Vec::with_capacity(new.len()), places: Vec::with_capacity(new.len()) };
        for message in new {
            let (message_id, made_here) = match &message.message_id {
                Some(message_id) => (message_id.to_string(), false),
                None => (random_message_id()?, true),
            };
            if let Some(place) = batch.messages.iter().position(|earlier| earlier.message_id == message_id) {
                let earlier = &batch.messages[place].new;
                if (earlier.role, &earlier.content) != (message.role, &message.content) {
                    return Ok(Err(message_id));
                }
                batch.places.push(place);
            } else {
                batch.places.push(batch.messages.len());
                let content = message.content.to_string();
                batch.messages.push(BatchMessage { message_id, made_here, new: message.clone(), content });
            }
        }
        Ok(Ok(batch))
    }

    fn push_args(&self, args: &mut Vec<String>) {
        for message in &self.messages {
            args.extend([
                message.message_id.clone(),
                message.new.role.as_str().to_owned(),
                message.content.clone(),
                message.new.metadata.clone(),
            ]);
        }
    }

    /// The script compares texts. Where the stored text only differs in the order of members or in spacing, the stored
    /// one is taken instead; where it says something else, the message's id is returned.
    fn adopt_stored_texts(&mut self, reply: &mut Reply) -> Result<Option<String>, StoreError> {
        while !reply.is_empty() {
            let (position, role, content) = (reply.parse::<usize>()?, reply.role()?, reply.string()?);
            let place = position.wrapping_sub(1);
            let Some(message) = self.messages.get_mut(place) else {
                return Err(reply.unexpected("a position is not of this call"));
            };
            let same = serde_json::from_str::<serde_json::Value>(&content)
                .is_ok_and(|stored| role == message.new.role && stored == message.new.content);
            if !same || message.content == content {
                return Ok(Some(message.message_id.clone()));
            }
            message.content = content;
        }
        Ok(None)
    }

    /// The messages as they are stored, one for each of the call; and whether an id was made for this call.
    fn read_messages(&self, reply: &mut Reply, session_id: SessionId) -> Result<(Vec<Message>, bool), StoreError> {
        let mut stored = Vec::with_capacity(self.messages.len());
        for message in &self.messages {
            let _origin = reply.string()?;
            stored.push(Message {
                message_id: message.message_id.clone(),
                session_id,
                seq: reply.parse()?,
                created_at: reply.time()?,
                role: reply.role()?,
                content: reply.string()?,
                metadata: reply.string()?,
            });
        }
        let made_here = self.messages.iter().any(|message| message.made_here);
        let messages = self.places.iter().filter_map(|&place| stored.get(place).cloned()).collect();
        Ok((messages, made_here))
    }
}

/// A message id for a client that brought none: a UUID version 4.
fn random_message_id() -> Result<String, StoreError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string())
}
