//! [`SessionStore`]: sessions in Redis, one method a verb. Knows no HTTP and reads no clock: `now` is an argument. The
//! clock that it is given is only compared with Redis's.

mod address;
mod client;
mod clock_skew;
mod cluster;
pub mod embedded;
mod error;
mod fitness;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod health;
mod hints;
mod keys;
pub mod keyspace;
mod lists;
mod messages;
mod reads;
mod reply;
mod resp;
mod response_memory;
mod scripts;
mod servers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::{HashesInterface, KeysInterface};
use fred::types::{MultipleKeys, Value};
use futures_util::FutureExt;
use futures_util::future::select_ok;
use tokio::sync::Semaphore;

pub use self::address::RedisAddress;
use self::client::Server;
pub use self::error::StoreError;
use self::health::{Checks, ChecksTask, Health};
use self::hints::Hints;
use self::keys::{Keys, SESSION_FIELDS, field};
pub(crate) use self::lists::score_of;
pub use self::lists::{Position, SessionPage};
pub use self::messages::{Append, MessagePage, MessageRange};
use self::reply::{Reply, Texts};
use self::response_memory::ResponseMemory;
pub use self::response_memory::{MemoryPermit, ResponseOwner};
use self::scripts::{Script, Scripts};
use self::servers::Servers;
use crate::metrics::{self, Verb};
use crate::session::{
    Clock, EndReason, Identifier, IfActive, Lifecycle, NewSession, Partition, PatchStatus, Reach, Session, SessionId,
    SessionPatch, Status, Timestamp, merge_patch,
};
use crate::spans::Span;

/// Stale index entries that one create removes from each index at the most.
const TRIM_MAX: u32 = 4;
/// Sessions that one run of the erase script removes at the most.
const ERASE_BATCH_MAX: u32 = 100;
/// Which part of a command's timeout a call may spend on trying again because others came in between.
const RETRY_SHARE: f64 = 0.5;
/// Not the number of any connection.
const NEVER_CONNECTED: u64 = 0;
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
    /// Users whose session's id is remembered at the most.
    pub hints_max: usize,
    /// The most bytes of large responses, from before they are read until they are sent.
    pub response_memory_bytes: usize,
    /// The most that a request waits for its part of that.
    pub response_memory_wait: Duration,
    /// Whether a Redis is refused that may lose sessions.
    pub refuse_unfit: bool,
    /// The most that the clocks of the service and of Redis may differ; no limit if `None`.
    pub clock_skew_max: Option<Duration>,
    /// How often the clocks, the settings of Redis and the layout are checked while the service runs.
    pub check_interval: Duration,
}

/// Sessions in Redis.
#[derive(Debug)]
pub struct SessionStore {
    config: StoreConfig,
    servers: Arc<Servers>,
    scripts: Scripts,
    keys: Keys,
    fields: MultipleKeys,
    /// The number of the connection by which the layout was last seen to be this code's.
    layout_seen_by: AtomicU64,
    retry_budget: Duration,
    hints: Arc<Hints>,
    response_memory: Arc<ResponseMemory>,
    /// A permit for the one large read that may be under way.
    large_reads: Semaphore,
    health: Arc<Health>,
    /// Of the first store of a process; its siblings share what is found.
    checks: Option<ChecksTask>,
}

/// What [`SessionStore::get_or_create`] did.
#[derive(Debug)]
pub enum GetOrCreate {
    /// A new session was created.
    Created(Session),
    /// The user has an active session.
    Resumed(Session),
    /// An earlier call with this idempotency key created this session, which is not active any more.
    Replayed(Session),
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
    pub fn connect(config: StoreConfig, clock: Clock) -> Result<Self, StoreError> {
        let hints = Arc::new(Hints::new(config.hints_max));
        let memory = ResponseMemory::new(config.response_memory_bytes, config.response_memory_wait);
        let health = Arc::new(Health::new(clock, config.clock_skew_max));
        let mut store = Self::connect_with(config, hints, Arc::new(memory), health)?;
        store.checks = store.config.refuse_unfit.then(|| store.checks().repeat(store.config.check_interval));
        Ok(store)
    }

    /// Another store of the same sessions, with the same hints and limits, and connections of its own, for another event loop.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the URL cannot be used.
    pub fn sibling(&self) -> Result<Self, StoreError> {
        let (hints, memory, health) = (&self.hints, &self.response_memory, &self.health);
        Self::connect_with(self.config.clone(), Arc::clone(hints), Arc::clone(memory), Arc::clone(health))
    }

    fn connect_with(
        config: StoreConfig,
        hints: Arc<Hints>,
        response_memory: Arc<ResponseMemory>,
        health: Arc<Health>,
    ) -> Result<Self, StoreError> {
        let retry_budget = config.command_timeout.mul_f64(RETRY_SHARE);
        let servers = Servers::connect(client::Settings {
            config: config.redis.client_config()?,
            command_timeout: config.command_timeout,
            refuse_unfit: config.refuse_unfit,
            health: Arc::clone(&health),
        })?;
        Ok(Self {
            servers: Arc::new(servers),
            scripts: Scripts::new(),
            keys: Keys::new(config.key_prefix.clone()),
            fields: SESSION_FIELDS.to_vec().into(),
            layout_seen_by: AtomicU64::new(NEVER_CONNECTED),
            retry_budget,
            hints,
            response_memory,
            large_reads: Semaphore::new(1),
            health,
            checks: None,
            config,
        })
    }

    fn checks(&self) -> Checks {
        Checks {
            servers: Arc::clone(&self.servers),
            layout_key: self.keys.layout().to_owned(),
            health: Arc::clone(&self.health),
        }
    }

    /// Checks the clocks, the settings of all servers, and the layout, as the store itself does at each interval. What it
    /// finds decides what is served from then on.
    pub async fn check_servers(&self) {
        self.checks().run().await;
    }

    /// Sends a command about the slot of this key, once the layout is known to be this code's.
    async fn call<T, F>(&self, key: &str, send: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.check().await?;
        self.servers.call(key, send).await
    }

    /// Runs a script, once the layout is known to be this code's.
    async fn run(&self, script: &Script, keys: Vec<String>, args: Vec<String>) -> Result<Reply, StoreError> {
        self.check().await?;
        script.run(&self.servers, keys, args).await
    }

    /// Whether Redis is fit and holds this code's layout. If it holds none yet, it does from now on.
    ///
    /// It is looked at again by each new connection: there may be another Redis at its end, or one that lost everything. A
    /// command that was on its way when the old one broke may come first.
    ///
    /// # Errors
    /// [`StoreError::Layout`] or [`StoreError::Unfit`] if it is not, and whatever keeps Redis from being asked.
    pub async fn check(&self) -> Result<(), StoreError> {
        let seen_by = self.layout_seen_by.load(Ordering::Acquire);
        let connected_by = self.servers.connection_number(self.keys.layout());
        match connected_by {
            // It is read again by each call until it is this code's.
            _ if self.health.is_layout_foreign() => {}
            Some(number) if number == seen_by => return Ok(()),
            // The users of a cluster's other masters do not wait for this one.
            None if self.servers.is_cluster() && seen_by != NEVER_CONNECTED => return Ok(()),
            _ => {}
        }
        // Boxed, for it would make every call's future larger.
        Box::pin(self.health.check_layout(&self.servers, self.keys.layout())).await?;
        if let Some(number) = connected_by.or_else(|| self.servers.connection_number(self.keys.layout())) {
            self.layout_seen_by.store(number, Ordering::Release);
        }
        Ok(())
    }

    /// Whether every Redis is connected and answers, as far as is known without asking.
    #[must_use]
    pub fn is_up(&self) -> bool {
        let servers = self.servers.all();
        !servers.is_empty() && servers.iter().all(|server| server.answers())
    }

    /// Whether Redis answers and would take a write. Of a cluster, one master that would is enough: those who route calls
    /// would otherwise take this service away from the users of all the others.
    ///
    /// # Errors
    /// Why it would not.
    pub async fn ready(&self) -> Result<(), StoreError> {
        counted(Verb::Ready, self.any_ready()).await
    }

    async fn any_ready(&self) -> Result<(), StoreError> {
        self.check().await?;
        let servers = self.servers.all();
        if servers.is_empty() {
            return Err(StoreError::Unavailable(Error::new_canceled()));
        }
        let answers = servers.iter().map(|server| Box::pin(self.ready_at(server)));
        select_ok(answers).await.map(|((), _others)| ())
    }

    async fn ready_at(&self, server: &Server) -> Result<(), StoreError> {
        let mut reply = self.scripts.ready.run_at(server).await?;
        match reply.string()?.as_str() {
            "ready" => self.health.require_safe(server.name()),
            _ => Err(reply.unknown_tag()),
        }
    }

    /// The active session of a user, or a new one; or always a new one in place of it (`replace`).
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn get_or_create(&self, new: &NewSession, now: Timestamp) -> Result<GetOrCreate, StoreError> {
        counted(Verb::GetOrCreate, self.find_or_create(new, now)).await
    }

    async fn find_or_create(&self, new: &NewSession, now: Timestamp) -> Result<GetOrCreate, StoreError> {
        // The session of an idempotency key need not be the one that a hint leads to.
        if new.if_active == IfActive::Return
            && new.idempotency_key.is_none()
            && let Some(session) = self.resume_hinted(&new.business_id, &new.user_id, now).await?
        {
            metrics::session_resumed();
            return Ok(GetOrCreate::Resumed(session));
        }
        // Boxed, for those who are found by their hint would have room for it, too.
        let outcome = Box::pin(self.run_get_or_create(new, now)).await?;
        match &outcome {
            GetOrCreate::Created(_) => metrics::session_created(),
            GetOrCreate::Resumed(_) => metrics::session_resumed(),
            GetOrCreate::Replayed(_) => {}
        }
        if let GetOrCreate::Created(session) | GetOrCreate::Resumed(session) = &outcome {
            self.hints.remember(&session.business_id, &session.user_id, session.session_id);
        }
        Ok(outcome)
    }

    /// The active session of a user, if the hint for this user leads to it and nothing is to be written.
    ///
    /// The hint only says where to look. That the session is this user's and active says its hash, and then it is the one
    /// that the script would answer: of a user's sessions one at the most is active.
    async fn resume_hinted(
        &self,
        business_id: &Identifier,
        user_id: &Identifier,
        now: Timestamp,
    ) -> Result<Option<Session>, StoreError> {
        // By a clock that is behind, an expired session would seem active: the script is refused then.
        if self.health.is_any_clock_unsafe() {
            return Ok(None);
        }
        let (business_id, user_id) = (business_id.as_str(), user_id.as_str());
        let Some(id) = self.hints.session_of(business_id, user_id) else {
            metrics::hint_missed();
            return Ok(None);
        };
        let session = self.read(id).await?.filter(|session| {
            session.business_id == business_id
                && session.user_id == user_id
                && session.status == Status::Active
                && now < session.expires_at
        });
        if session.is_some() {
            metrics::hint_hit();
        } else {
            metrics::hint_was_stale();
        }
        Ok(session.filter(|session| !self.config.lifecycle.is_touch_due(session.last_activity_at, now)))
    }

    async fn run_get_or_create(&self, new: &NewSession, now: Timestamp) -> Result<GetOrCreate, StoreError> {
        let (business_id, user_id) = (new.business_id.as_str(), new.user_id.as_str());
        let partition = Partition::of_user(business_id, user_id);
        let id = match &new.idempotency_key {
            Some(key) => SessionId::of_idempotency_key(business_id, user_id, key),
            None => SessionId::random(partition)?,
        };
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
            self.config.lifecycle.idle_ms().to_string(),
            self.config.lifecycle.max_lifetime_ms().to_string(),
            self.config.lifecycle.retention_ms().to_string(),
            self.config.lifecycle.resolution_ms().to_string(),
            new.if_active.as_str().to_owned(),
            TRIM_MAX.to_string(),
            business_id.to_owned(),
            user_id.to_owned(),
            new.idempotency_key.as_ref().map_or("", |_| "1").to_owned(),
        ];
        let mut set = |name: &str, value: &str| args.extend([name.to_owned(), value.to_owned()]);
        set(field::LOCATION_ID, new.location_id.as_str());
        set(field::SESSION_TYPE, new.session_type.as_str());
        set(field::METADATA, &new.metadata);
        if let Some(title) = &new.title {
            set(field::TITLE, title);
        }

        let mut reply = self.run(&self.scripts.get_or_create, keys, args).await?;
        match reply.string()?.as_str() {
            "created" => {
                let created_at = reply.time()?;
                count_end(&reply.string()?);
                Ok(GetOrCreate::Created(self.created(new, id, created_at, now)))
            }
            "replayed" => match reply.session(id)?.and_then(|session| session.at(now, &self.config.lifecycle)) {
                Some(session) if new.idempotency_key.is_some() => Ok(GetOrCreate::Replayed(session)),
                Some(session) => Ok(GetOrCreate::Created(session)),
                None => Err(reply.unexpected("the created session is missing")),
            },
            "resumed" => match reply.any_session()?.and_then(|session| session.at(now, &self.config.lifecycle)) {
                Some(session) if session.business_id == business_id && session.user_id == user_id => {
                    Ok(GetOrCreate::Resumed(session))
                }
                _ => Err(reply.unexpected("the active session is missing or another user's")),
            },
            "foreign" => Err(reply.unexpected("another user's session has the id")),
            _ => Err(reply.unknown_tag()),
        }
    }

    /// What `get_or_create.lua` has just written: no read-back is needed.
    fn created(&self, new: &NewSession, id: SessionId, created_at: Timestamp, now: Timestamp) -> Session {
        let active_until = Timestamp(now.0 + self.config.lifecycle.max_lifetime_ms());
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
            expires_at: active_until.min(Timestamp(now.0 + self.config.lifecycle.idle_ms())),
            active_until,
            ended_at: None,
            end_reason: None,
            largest_message_bytes: 0,
        }
    }

    /// One session, or `None` if there is none, it is no longer readable, or it is outside of `reach`.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn get(&self, id: SessionId, reach: &Reach, now: Timestamp) -> Result<Option<Session>, StoreError> {
        counted(Verb::Get, self.within(id, reach, now)).await
    }

    /// The session, if it is within reach.
    ///
    /// Every verb that takes an id begins with this, so that a session outside of the caller's reach is a missing one
    /// before anything else about it is looked at, and costs the same: one `HGETALL`.
    async fn within(&self, id: SessionId, reach: &Reach, now: Timestamp) -> Result<Option<Session>, StoreError> {
        let session = self.read(id).await?.and_then(|session| session.at(now, &self.config.lifecycle));
        Ok(session.filter(|session| reach.admits(session)))
    }

    /// One session as it is stored.
    async fn read(&self, id: SessionId) -> Result<Option<Session>, StoreError> {
        self.check().await?;
        match self.servers.read_session(self.keys.session(id), id).await? {
            Some(session) => Ok(session),
            // Boxed, for it would make every call's future larger.
            None => Box::pin(self.read_by_client(id)).await,
        }
    }

    async fn read_by_client(&self, id: SessionId) -> Result<Option<Session>, StoreError> {
        let key = self.keys.session(id);
        let (key, fields) = (key.as_str(), &self.fields);
        let read = |client: Client| async move { client.hmget::<Value, _, _>(key, fields.clone()).await };
        Reply::new("get", self.servers.call(key, read).await?)?.session(id)
    }

    /// The active session of a user.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn get_active(
        &self,
        business_id: &Identifier,
        user_id: &Identifier,
        now: Timestamp,
    ) -> Result<Option<Session>, StoreError> {
        counted(Verb::GetActive, self.follow_pointer(business_id, user_id, now)).await
    }

    /// The pointer says which session to look at; the session itself says whether it is active. If it is not, it was
    /// ended between the two reads, and the pointer is followed again.
    async fn follow_pointer(
        &self,
        business_id: &Identifier,
        user_id: &Identifier,
        now: Timestamp,
    ) -> Result<Option<Session>, StoreError> {
        let pointer = self.keys.pointer(business_id.as_str(), user_id.as_str());
        let pointer = pointer.as_str();
        let mut seen = Vec::new();
        for _ in 0..POINTER_ATTEMPTS {
            let follow = |client: Client| async move { client.get::<Option<String>, _>(pointer).await };
            let Some(text) = self.call(pointer, follow).await? else {
                return Ok(None);
            };
            let no_id = StoreError::Reply { verb: "get_active", problem: "the pointer is not a session's id" };
            let id: SessionId = text.parse().map_err(|_| no_id)?;
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

    /// Changes a session within `reach`.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn update(
        &self,
        id: SessionId,
        patch: &SessionPatch,
        condition: &VersionCondition,
        reach: &Reach,
        now: Timestamp,
    ) -> Result<Update, StoreError> {
        counted(Verb::Update, self.change(id, patch, condition, reach, now)).await
    }

    async fn change(
        &self,
        id: SessionId,
        patch: &SessionPatch,
        condition: &VersionCondition,
        reach: &Reach,
        now: Timestamp,
    ) -> Result<Update, StoreError> {
        let mutation_id = random_mutation_id()?;
        let started = Instant::now();
        while started.elapsed() < self.retry_budget {
            let Some(session) = self.within(id, reach, now).await? else {
                return Ok(Update::Missing);
            };
            if !condition.admits(session.version) {
                return Ok(Update::VersionMismatch(session.version));
            }
            let metadata = match &patch.metadata {
                Some(metadata_patch) => Some(merged_metadata(&session, metadata_patch)?),
                None => None,
            };
            if metadata.as_ref().is_some_and(|merged| merged.len() > self.config.metadata_bytes_max) {
                return Ok(Update::MetadataTooLarge);
            }
            let args = self.update_args(&session, patch, metadata, condition, &mutation_id, now);
            let mut reply = self.run(&self.scripts.update, self.keys_of(&session), args).await?;
            match reply.string()?.as_str() {
                "updated" => {
                    let (change, other_ended) = (reply.string()?, reply.string()?);
                    count_end(&other_ended);
                    return match reply.session(id)?.and_then(|session| session.at(now, &self.config.lifecycle)) {
                        Some(session) => {
                            count_change(&change, &session);
                            Ok(Update::Updated(session))
                        }
                        None => Err(reply.unexpected("the updated session is missing")),
                    };
                }
                "missing" => return Ok(Update::Missing),
                "another_active" => return Ok(Update::AnotherActive(reply.parse()?)),
                // Another change came in between: look again.
                "version_mismatch" | "stale" => {}
                _ => return Err(reply.unknown_tag()),
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
            self.config.lifecycle.idle_ms().to_string(),
            self.config.lifecycle.max_lifetime_ms().to_string(),
            self.config.lifecycle.retention_ms().to_string(),
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

    /// Deletes a session within `reach`, with its messages.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn delete(
        &self,
        id: SessionId,
        condition: &VersionCondition,
        reach: &Reach,
        now: Timestamp,
    ) -> Result<Delete, StoreError> {
        counted(Verb::Delete, self.remove(id, condition, reach, now)).await
    }

    async fn remove(
        &self,
        id: SessionId,
        condition: &VersionCondition,
        reach: &Reach,
        now: Timestamp,
    ) -> Result<Delete, StoreError> {
        let started = Instant::now();
        while started.elapsed() < self.retry_budget {
            let Some(session) = self.within(id, reach, now).await? else {
                return Ok(Delete::Missing);
            };
            if !condition.admits(session.version) {
                return Ok(Delete::VersionMismatch(session.version));
            }
            let args = vec![
                id.to_string(),
                now.0.to_string(),
                self.config.lifecycle.retention_ms().to_string(),
                condition.pinned(session.version),
            ];
            let mut reply = self.run(&self.scripts.delete, self.keys_of(&session), args).await?;
            match reply.string()?.as_str() {
                "deleted" => {
                    metrics::sessions_deleted(1);
                    return Ok(Delete::Deleted);
                }
                "missing" => return Ok(Delete::Missing),
                // Another change came in between: look again.
                "version_mismatch" => {}
                _ => return Err(reply.unknown_tag()),
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
        counted(Verb::EraseUser, self.erase_all(business_id, user_id, now)).await
    }

    async fn erase_all(
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
                self.config.lifecycle.retention_ms().to_string(),
                ERASE_BATCH_MAX.to_string(),
            ];
            let mut reply = self.run(&self.scripts.erase_user, keys, args).await?;
            match reply.string()?.as_str() {
                "erased" => {
                    let batch = reply.parse::<u64>()?;
                    metrics::sessions_deleted(batch);
                    erased += batch;
                    if reply.parse::<u64>()? == 0 {
                        return Ok(erased);
                    }
                }
                _ => return Err(reply.unknown_tag()),
            }
        }
    }

    /// Closes the connections after what was sent is answered.
    pub async fn quit(&self) {
        self.servers.quit().await;
    }
}

/// Counts an operation and takes its time, from now on.
///
/// Not an async function: that would have room for the operation twice.
fn counted<T>(
    verb: Verb,
    operation: impl Future<Output = Result<T, StoreError>>,
) -> impl Future<Output = Result<T, StoreError>> {
    let span = Span::of_operation(verb.as_str());
    let operation = span.around(operation);
    let counting = Counting { verb, span, started: Instant::now(), error_kind: Some("abandoned") };
    operation.inspect(move |result| counting.end(result.as_ref().err().map(StoreError::kind)))
}

/// An operation that is under way. If nobody waits for its end, because the request's deadline is over, it is counted
/// as abandoned.
struct Counting {
    verb: Verb,
    span: Span,
    started: Instant,
    error_kind: Option<&'static str>,
}

impl Counting {
    fn end(mut self, error_kind: Option<&'static str>) {
        self.error_kind = error_kind;
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        metrics::store_answered(self.verb, self.error_kind, self.started.elapsed());
        self.span.ended(self.error_kind);
    }
}

/// Counts what the change of an update did to the session's life.
fn count_change(change: &str, session: &Session) {
    match change {
        "resumed" => metrics::session_resumed(),
        "ended" | "expired" => count_end(session.end_reason.map_or("", EndReason::as_str)),
        _ => {}
    }
}

/// Counts an end that a script wrote down. The reason is empty if there was none.
fn count_end(reason: &str) {
    if let Some(reason) = EndReason::from_word(reason) {
        metrics::session_ended(reason.as_str());
    }
}

/// The session's metadata with a merge patch applied (RFC 7396); `null` empties it.
fn merged_metadata(session: &Session, patch: &serde_json::Value) -> Result<String, StoreError> {
    let broken = |_| StoreError::Reply { verb: "update", problem: "the stored metadata is not an object of JSON" };
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
