//! [`SessionStore`]: sessions in Redis, one method a verb. Knows no HTTP and reads no clock: `now` is an argument.

mod client;
pub mod embedded;
mod error;
mod fitness;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod keys;
pub mod keyspace;
mod lists;
mod messages;
mod reply;
mod scripts;

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fred::clients::Client;
use fred::interfaces::{ClientLike, HashesInterface, KeysInterface};
use fred::types::{MultipleKeys, SetOptions, Value};
use tokio::sync::OnceCell;

pub use self::client::RedisAddress;
pub use self::error::StoreError;
use self::keys::{Keys, LAYOUT_VERSION, SESSION_FIELDS, field};
pub(crate) use self::lists::score_of;
pub use self::lists::{Position, SessionPage};
pub use self::messages::{Append, MessagePage, MessageRange};
use self::reply::Reply;
use self::scripts::{Scripts, while_slot_moves};
use crate::session::{
    Identifier, Lifecycle, NewSession, Partition, PatchStatus, Session, SessionId, SessionPatch, Status, Timestamp,
    merge_patch,
};

/// Stale index entries that one create removes from each index at the most.
const TRIM_MAX: u32 = 4;
/// Sessions that one run of the erase script removes at the most.
const ERASE_BATCH_MAX: u32 = 100;
/// Which part of a command's timeout a call may spend on trying again because others came in between.
const RETRY_SHARE: f64 = 0.5;
/// How often the user's pointer is followed again because it moved while it was followed.
const POINTER_ATTEMPTS: u32 = 8;

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
    checked: OnceCell<()>,
    _watch: client::Watch,
    retry_budget: Duration,
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

impl SessionStore {
    /// A store that connects in the background. Until it is connected, calls fail in bounded time.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the URL cannot be used.
    pub fn connect(config: StoreConfig) -> Result<Self, StoreError> {
        let retry_budget = config.command_timeout.mul_f64(RETRY_SHARE);
        let client = client::connect(&config.redis, config.command_timeout)?;
        Ok(Self {
            _watch: client::watch(&client),
            client,
            scripts: Scripts::new(retry_budget),
            keys: Keys::new(config.key_prefix),
            fields: SESSION_FIELDS.to_vec().into(),
            checked: OnceCell::new(),
            retry_budget,
            lifecycle: config.lifecycle,
            messages_kept: config.messages_kept,
            metadata_bytes_max: config.metadata_bytes_max,
        })
    }

    /// The connection, once this Redis is known to be fit and its layout to be this code's.
    async fn client(&self) -> Result<&Client, StoreError> {
        self.checked.get_or_try_init(|| self.check_once()).await?;
        Ok(&self.client)
    }

    async fn check_once(&self) -> Result<(), StoreError> {
        // Read first: a store that takes no writes can still be read.
        let key = self.keys.layout();
        let mut stored: Option<String> = self.client.get(key.as_str()).await?;
        if stored.as_deref().is_some_and(|stored| stored != LAYOUT_VERSION) {
            return Err(StoreError::Layout(stored.unwrap_or_default()));
        }
        fitness::check(&self.client).await?;
        if stored.is_none() {
            let () = self.client.set(key.as_str(), LAYOUT_VERSION, None, Some(SetOptions::NX), false).await?;
            stored = self.client.get(key).await?;
        }
        if stored.as_deref() != Some(LAYOUT_VERSION) {
            return Err(StoreError::Layout(stored.unwrap_or_default()));
        }
        Ok(())
    }

    /// Whether this Redis is fit and holds this code's layout. If it holds none yet, it does from now on.
    ///
    /// # Errors
    /// [`StoreError::Layout`] or [`StoreError::Unfit`] if it is not, and whatever keeps Redis from being asked.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.client().await.map(|_| ())
    }

    /// Whether Redis answers and would take a write.
    ///
    /// # Errors
    /// Why it would not.
    pub async fn ready(&self) -> Result<(), StoreError> {
        let mut reply = self.scripts.ready.run(self.client().await?, Vec::new(), Vec::new()).await?;
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

        let mut reply = self.scripts.get_or_create.run(self.client().await?, keys, args).await?;
        match reply.string()?.as_str() {
            "created" => Ok(GetOrCreate::Created(self.created(new, id, reply.time()?, now))),
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
    fn created(&self, new: &NewSession, id: SessionId, created_at: Timestamp, now: Timestamp) -> Session {
        let active_until = Timestamp(now.0 + self.lifecycle.max_lifetime_ms());
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
            created_at,
            updated_at: created_at,
            last_activity_at: now,
            expires_at: active_until.min(Timestamp(now.0 + self.lifecycle.idle_ms())),
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
        let (client, key) = (self.client().await?, self.keys.session(id));
        let send = || client.hmget(key.as_str(), self.fields.clone());
        let value: Value = while_slot_moves(self.retry_budget, send).await?;
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
        let mut seen = Vec::new();
        for _ in 0..POINTER_ATTEMPTS {
            let client = self.client().await?;
            let send = || client.get::<Option<String>, _>(pointer.as_str());
            let Some(text) = while_slot_moves(self.retry_budget, send).await? else {
                return Ok(None);
            };
            let id: SessionId =
                text.parse().map_err(|_| StoreError::Reply { verb: "get_active", problem: text.clone() })?;
            match self.read(id).await? {
                // An expired session that is still marked active has had no successor yet.
                Some(session) if session.status == Status::Active => {
                    return Ok((now < session.expires_at).then_some(session));
                }
                _ => seen.push(id),
            }
        }
        // A pointer that leads nowhere, again and again, is a leftover; the next create replaces it.
        if seen.windows(2).all(|pair| pair[0] == pair[1]) {
            return Ok(None);
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
        let started = Instant::now();
        while started.elapsed() < self.retry_budget {
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
            let mut reply = self.scripts.update.run(self.client().await?, self.keys_of(&session), args).await?;
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
        let base_metadata = metadata.as_ref().map_or_else(String::new, |_| format!("={}", session.metadata));
        let mut args = vec![
            self.keys.partition(session.session_id.partition()),
            session.session_id.to_string(),
            now.0.to_string(),
            self.lifecycle.idle_ms().to_string(),
            self.lifecycle.max_lifetime_ms().to_string(),
            self.lifecycle.retention_ms().to_string(),
            mutation_id.to_owned(),
            condition.pinned(session.version),
            base_metadata,
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
        let started = Instant::now();
        while started.elapsed() < self.retry_budget {
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
            let client = self.client().await?;
            let mut reply = self.scripts.delete.run(client, self.keys_of(&session), args).await?;
            match reply.string()?.as_str() {
                "deleted" => return Ok(Delete::Deleted),
                // On a cluster the script may have been sent again after it ran: what was there a moment ago is gone by our doing,
                // or by another delete at the same time.
                "missing" if client.is_clustered() => return Ok(Delete::Deleted),
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
            let mut reply = self.scripts.erase_user.run(self.client().await?, keys, args).await?;
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

    /// Closes the connection after what was sent is answered.
    pub async fn quit(&self) {
        // Nothing is left to be done if even that fails.
        let _ = self.client.quit().await;
    }
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

/// 64 random bits as 11 characters: names one call of `update.lua`.
fn random_mutation_id() -> Result<String, StoreError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
