//! [`SessionStore`]: sessions in Redis, one method per operation. The store knows no HTTP. It takes `now` as an
//! argument and reads the clock that it is given only to compare it with Redis's.

mod clock_skew;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod health;
mod hints;
mod keys;
pub mod keyspace;
mod operations;
mod redis;
mod reply;
mod response_memory;
mod subscriptions;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

pub use self::error::StoreError;
use self::health::{Checks, ChecksTask, Health};
use self::hints::Hints;
use self::keys::Keys;
pub(crate) use self::operations::score_of;
pub use self::operations::{
    Append, AppendChunks, BeginTurn, CancelTurn, ChunksAppended, Delete, EndRequest, EndTurn, GetMessage, GetOrCreate,
    GetTurn, MessagePage, MessageRange, NewChunks, NewTurn, NotOpen, PageRequest, Position, RedactMessage, SessionPage,
    StreamContents, StreamSnapshot, StreamWants, TurnChunks, TurnName, Update, UpdateMessage, VersionCondition,
};
pub use self::redis::address::RedisAddress;
use self::redis::connection::ConnectionConfig;
use self::redis::connection_id::SharedConnectionId;
use self::redis::read_command::{ReadCommand, ReadReply};
use self::redis::scripts::{Script, Scripts};
pub(crate) use self::redis::subscriber::Subscriber;
pub(crate) use self::redis::topology::Subscription;
use self::redis::topology::Topology;
use self::reply::Reply;
use self::response_memory::ResponseMemory;
pub use self::response_memory::{MemoryPermit, ResponseOwner};
use crate::session::{Clock, Lifecycle};

/// Configuration of a [`SessionStore`].
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Address of Redis.
    pub redis: RedisAddress,
    /// Prefix of all keys.
    pub key_prefix: String,
    /// Timeout of one command.
    pub command_timeout: Duration,
    /// Lifetimes of sessions.
    pub lifecycle: Lifecycle,
    /// How many of the newest messages of a session are kept; at least 100.
    pub messages_kept: usize,
    /// Bytes of the newest messages of a session that are kept; those of the last append are kept in any case.
    pub session_bytes_max: usize,
    /// How long the writer of a turn may be silent.
    pub turn_lease: Duration,
    /// Maximum bytes of all chunks of a turn, as JSON.
    pub turn_bytes_max: usize,
    /// How many of the newest sessions of a user are kept; at least 1.
    pub sessions_per_user_max: usize,
    /// Largest metadata of a session after a merge, in bytes.
    pub metadata_bytes_max: usize,
    /// Maximum number of users whose session id is remembered as a hint; 0 disables hints.
    pub hint_cache_size: usize,
    /// Maximum bytes of large responses in progress, from before they are read until they are sent.
    pub response_memory_bytes: usize,
    /// Longest time that a request waits for response memory.
    pub response_memory_wait: Duration,
    /// Whether to reject a Redis that may lose sessions.
    pub require_supported: bool,
    /// Largest accepted difference between the clocks of the service and of Redis; no limit if `None`.
    pub clock_skew_max: Option<Duration>,
    /// Interval between checks of the clocks, the settings of Redis and the layout while the service runs.
    pub check_interval: Duration,
}

impl StoreConfig {
    /// [`Self::turn_lease`] in milliseconds.
    fn turn_lease_ms(&self) -> i64 {
        i64::try_from(self.turn_lease.as_millis()).unwrap_or(i64::MAX)
    }
}

/// Sessions in Redis.
#[derive(Debug)]
pub struct SessionStore {
    config: StoreConfig,
    topology: Arc<Topology>,
    scripts: Scripts,
    keys: Keys,
    /// The connection on which this code's layout version was last read.
    layout_seen_by: SharedConnectionId,
    hints: Arc<Hints>,
    response_memory: Arc<ResponseMemory>,
    /// A single permit: a store runs one large read at a time.
    large_reads: Semaphore,
    health: Arc<Health>,
    /// The periodic checks. Only the first store of a process runs them; the stores of the other workers share the
    /// findings.
    checks: Option<ChecksTask>,
}

impl SessionStore {
    /// Creates a store that connects in the background. Until it is connected, calls fail within a bounded time.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the URL cannot be used.
    pub fn connect(config: StoreConfig, clock: Clock) -> Result<Self, StoreError> {
        let hints = Arc::new(Hints::new(config.hint_cache_size));
        let memory = ResponseMemory::new(config.response_memory_bytes, config.response_memory_wait);
        let health = Arc::new(Health::new(clock, config.clock_skew_max));
        let mut store = Self::connect_with(config, hints, Arc::new(memory), health)?;
        store.checks = store.config.require_supported.then(|| store.checks().repeat(store.config.check_interval));
        Ok(store)
    }

    /// Creates another store for another worker: the same sessions, hints and limits, with its own connections.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the URL cannot be used.
    pub fn with_own_connections(&self) -> Result<Self, StoreError> {
        let (hints, memory, health) = (&self.hints, &self.response_memory, &self.health);
        Self::connect_with(self.config.clone(), Arc::clone(hints), Arc::clone(memory), Arc::clone(health))
    }

    fn connect_with(
        config: StoreConfig,
        hints: Arc<Hints>,
        response_memory: Arc<ResponseMemory>,
        health: Arc<Health>,
    ) -> Result<Self, StoreError> {
        let topology = Topology::connect(ConnectionConfig {
            client: config.redis.client_config()?,
            command_timeout: config.command_timeout,
            require_supported: config.require_supported,
            health: Arc::clone(&health),
        })?;
        Ok(Self {
            topology: Arc::new(topology),
            scripts: Scripts::new(&config),
            keys: Keys::new(config.key_prefix.clone()),
            layout_seen_by: SharedConnectionId::default(),
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
            topology: Arc::clone(&self.topology),
            layout_key: self.keys.layout().to_owned(),
            health: Arc::clone(&self.health),
        }
    }

    /// Checks the clocks, the settings of all servers, and the layout, as the periodic task does. The findings decide
    /// which requests are served from then on.
    pub async fn run_checks_once(&self) {
        self.checks().run().await;
    }

    /// Reads, after the layout check.
    async fn read_command(&self, command: ReadCommand) -> Result<ReadReply, StoreError> {
        self.ensure_layout().await?;
        self.topology.read(command).await
    }

    /// Runs a script, after the layout check.
    async fn run(&self, script: &Script, keys: Vec<String>, args: Vec<String>) -> Result<Reply, StoreError> {
        self.ensure_layout().await?;
        script.run(&self.topology, keys, args).await
    }

    /// Checks that Redis is supported and holds this code's layout. Writes the layout version if there is none.
    ///
    /// The check runs again on each new connection, because it may lead to another Redis or to one that lost its data.
    /// A command that was being sent when the old connection broke may run before the check.
    ///
    /// # Errors
    /// [`StoreError::Layout`] or [`StoreError::UnsupportedServer`] if the check fails, or the error of the command that
    /// failed.
    pub async fn ensure_layout(&self) -> Result<(), StoreError> {
        let seen_by = self.layout_seen_by.get();
        let connected_by = self.topology.connection_id(self.keys.layout());
        match connected_by {
            // Each call reads a foreign layout version again until it is this code's.
            _ if self.health.is_layout_foreign() => {}
            Some(id) if Some(id) == seen_by => return Ok(()),
            // In a cluster, users of the other masters do not wait for the master of the layout key.
            None if self.topology.is_cluster() && seen_by.is_some() => return Ok(()),
            _ => {}
        }
        // Boxed to keep the future of every call small.
        Box::pin(self.health.ensure_layout(&self.topology, self.keys.layout())).await?;
        if let Some(id) = connected_by.or_else(|| self.topology.connection_id(self.keys.layout())) {
            self.layout_seen_by.set(Some(id));
        }
        Ok(())
    }

    /// Whether every Redis is connected and replies. Reads known state and sends no command.
    #[must_use]
    pub fn is_up(&self) -> bool {
        let servers = self.topology.all();
        !servers.is_empty() && servers.iter().all(|server| server.is_responsive())
    }

    /// Closes the connections after the replies to all sent commands have arrived.
    pub async fn quit(&self) {
        self.topology.quit().await;
    }
}
