//! The connection to one Redis, with settings that keep every command bounded (design, 2.7).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::config::{
    Config, ReconnectError, ReconnectPolicy, Server as Address, ServerConfig, TcpConfig, UnresponsiveConfig,
};
use fred::types::{Builder, CustomCommand, Value};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, Notify, OnceCell};
use tokio::task::AbortHandle;

use super::StoreError;
use super::health::Health;
use super::reads::Reads;
use crate::session::{Session, SessionId};
use crate::{log, metrics};

/// Commands that may wait for Redis at once; more are refused, so that an outage is not a memory leak.
const COMMANDS_WAITING_MAX: usize = 16_384;
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection may leave a command unanswered before it is taken for dead.
const UNRESPONSIVE_AFTER: Duration = Duration::from_secs(2);
/// How often that is looked at.
const UNRESPONSIVE_CHECK: Duration = Duration::from_millis(250);
/// An error that goes on is told again after this long.
const REPEAT_ERROR_AFTER: Duration = Duration::from_secs(30);
const RECONNECT_MIN_MS: u32 = 50;
const RECONNECT_MAX_MS: u32 = 1_000;

/// How to connect.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Where to, by which credentials, and with which TLS.
    pub(super) config: Config,
    /// The most that one command may take.
    pub(super) command_timeout: Duration,
    /// Whether a server that may lose sessions is refused.
    pub(super) refuse_unfit: bool,
    /// What is known of all servers.
    pub(super) health: Arc<Health>,
}

/// What a command needs of the server that it is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// A connection.
    Connection,
    /// That the clocks agree as well, because the command computes expiries from the service's time.
    SafeClock,
}

/// Counts the connections of this process, so that each has a number of its own.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

/// One server and the connection to it, which is made in the background, and for ever anew, until this is dropped.
///
/// With Sentinel this is whichever server is the master.
#[derive(Debug)]
pub(super) struct Server {
    /// Where it is, for the log.
    name: String,
    settings: Settings,
    connection: Connection,
    /// The number of the present connection, or of the last one; 0 before the first.
    connection_number: Arc<AtomicU64>,
    /// Whether it left a command unanswered lately.
    is_silent: Arc<AtomicBool>,
    is_fit: OnceCell<()>,
    /// The connection for reads of sessions.
    reads: Option<Reads>,
    /// A connection whose next command may be preceded by ASKING: nobody else writes to it in between.
    asking: Mutex<Option<Connection>>,
    watchers: Vec<AbortHandle>,
}

/// A client and the task that connects it. The task ends with this, even where there is nothing to connect to.
#[derive(Debug)]
struct Connection {
    client: Client,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for watcher in &self.watchers {
            watcher.abort();
        }
    }
}

impl Server {
    /// A server that is being connected to.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the settings cannot be used.
    pub(super) fn connect(settings: Settings) -> Result<Arc<Self>, Error> {
        let name = match &settings.config.server {
            ServerConfig::Unix { path } => path.display().to_string(),
            server => server.hosts().iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        };
        let client = client(&settings)?;
        let (connection_number, is_silent): (Arc<AtomicU64>, _) = (Arc::default(), Arc::default());
        // All listeners are there before the first event.
        let log = log_errors(client.error_rx());
        let counted = Arc::new(Notify::new());
        let count = count_connections(client.reconnect_rx(), Arc::clone(&connection_number), Arc::clone(&counted));
        let watch = keep_watch(client.clone(), Arc::clone(&is_silent));
        let watchers = vec![
            tokio::spawn(log).abort_handle(),
            tokio::spawn(count).abort_handle(),
            tokio::spawn(watch).abort_handle(),
        ];
        let reads = Reads::beside(&client, &settings.config, &connection_number, counted, settings.command_timeout);
        Ok(Arc::new(Self {
            name,
            settings,
            connection: Connection::of(client),
            connection_number,
            is_silent,
            is_fit: OnceCell::new(),
            reads,
            asking: Mutex::new(None),
            watchers,
        }))
    }

    /// The client, once this server is known to be fit for sessions.
    pub(super) async fn client(&self) -> Result<Client, StoreError> {
        let client = &self.connection.client;
        if self.settings.refuse_unfit {
            // Boxed, for it would make every call's future larger.
            self.is_fit.get_or_try_init(|| Box::pin(self.settings.health.check(client, &self.name))).await?;
        }
        Ok(client.clone())
    }

    /// Fails if this server does not have what a command needs.
    ///
    /// # Errors
    /// [`StoreError::ClockSkew`]
    pub(super) fn require(&self, needs: Needs) -> Result<(), StoreError> {
        match needs {
            Needs::Connection => Ok(()),
            Needs::SafeClock => self.settings.health.require_safe_clock(&self.name),
        }
    }

    /// What it is called in the log.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The session of this id at this key, by the connection for that; `None` if the client has to be asked.
    pub(super) async fn read_session(&self, key: String, id: SessionId) -> Result<Option<Option<Session>>, StoreError> {
        if self.settings.refuse_unfit && !self.is_fit.initialized() {
            return Ok(None);
        }
        let (Some(reads), Some(number)) = (&self.reads, self.connection_number()) else {
            return Ok(None);
        };
        reads.session(key, id, number).await.transpose()
    }

    /// The client, whatever the server is like.
    pub(super) fn unchecked_client(&self) -> &Client {
        &self.connection.client
    }

    /// Sends a command about a slot that is on its way to this server, and is not its own yet.
    pub(super) async fn send_asking<T, F>(&self, send: &impl Fn(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut asking = self.asking.lock().await;
        if asking.is_none() {
            *asking = Some(Connection::of(client(&self.settings)?));
        }
        let Some(Connection { client, .. }) = asking.as_ref() else {
            return Err(Error::new_canceled());
        };
        let ask = CustomCommand::new_static("ASKING", None, false);
        let _: Value = client.custom(ask, Vec::<Value>::new()).await?;
        send(client.clone()).await
    }

    /// Whether there is a connection, and answers come by it.
    pub(super) fn answers(&self) -> bool {
        self.connection.client.is_connected() && !self.is_silent.load(Ordering::Relaxed)
    }

    /// Which connection this is, of all that this process ever made, if there is one at the moment.
    pub(super) fn connection_number(&self) -> Option<u64> {
        self.connection.client.is_connected().then(|| self.connection_number.load(Ordering::Acquire))
    }

    /// Closes the connection after what was sent is answered.
    pub(super) async fn quit(&self) {
        // Nothing is left to be done if even that fails.
        let _ = self.connection.client.quit().await;
    }
}

impl Connection {
    fn of(client: Client) -> Self {
        let task = client.connect().abort_handle();
        Self { client, task }
    }
}

fn client(settings: &Settings) -> Result<Client, Error> {
    let mut config = settings.config.clone();
    // Otherwise a Redis that is away when the service starts is never tried again.
    config.fail_fast = false;
    let mut reconnect_errors = vec![ReconnectError::Loading];
    if config.server.is_sentinel() {
        // A new connection may lead to the new master. With a single server it only would take the reads away, too.
        reconnect_errors.push(ReconnectError::ReadOnly);
    }
    Builder::from_config(config)
        .with_performance_config(|performance| performance.default_command_timeout = settings.command_timeout)
        .with_connection_config(|connection| {
            connection.connection_timeout = CONNECT_TIMEOUT;
            connection.internal_command_timeout = CONNECT_TIMEOUT;
            // Whether a command whose connection broke was applied is not known: the client of the service may decide to
            // try again.
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = COMMANDS_WAITING_MAX;
            connection.auto_client_setname = false;
            connection.unresponsive =
                UnresponsiveConfig { max_timeout: Some(UNRESPONSIVE_AFTER), interval: UNRESPONSIVE_CHECK };
            connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
            connection.reconnect_errors.clone_from(&reconnect_errors);
        })
        .set_policy(ReconnectPolicy::new_exponential(0, RECONNECT_MIN_MS, RECONNECT_MAX_MS, 2))
        .build()
}

/// Leaves a server that takes commands and answers none. fred's own detection counts from the last command that it wrote,
/// so it never sees that under load; and where there is a new master, it has to be asked for.
async fn keep_watch(client: Client, is_silent: Arc<AtomicBool>) {
    let mut silent_since = None;
    loop {
        tokio::time::sleep(UNRESPONSIVE_CHECK).await;
        let reply = client.ping::<Value>(None).await;
        if !matches!(&reply, Err(error) if *error.kind() == ErrorKind::Timeout) {
            silent_since = None;
            is_silent.store(false, Ordering::Relaxed);
            continue;
        }
        is_silent.store(true, Ordering::Relaxed);
        let since = *silent_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= UNRESPONSIVE_AFTER {
            tracing::warn!("Redis takes commands and answers none; connecting anew");
            // Returns when there is a connection again.
            let _ = client.force_reconnection().await;
            silent_since = None;
        }
    }
}

/// Gives each connection its number, and tells of it.
async fn count_connections(mut connected: Receiver<Address>, number: Arc<AtomicU64>, counted: Arc<Notify>) {
    while !matches!(connected.recv().await, Err(RecvError::Closed)) {
        if number.load(Ordering::Acquire) != 0 {
            metrics::store_reconnected();
        }
        number.store(1 + CONNECTIONS.fetch_add(1, Ordering::Relaxed), Ordering::Release);
        counted.notify_one();
    }
}

/// Tells the log why there is no connection: once for each reason, not for each attempt.
async fn log_errors(mut errors: Receiver<(Error, Option<Address>)>) {
    let mut last = (String::new(), Instant::now());
    loop {
        match errors.recv().await {
            Ok((error, server)) => {
                let error = error.to_string();
                let is_news = error != last.0 || last.1.elapsed() > REPEAT_ERROR_AFTER;
                // Two reasons in turn are news each time.
                if is_news && log::admits("connection") {
                    let server = server.map(|server| server.to_string()).unwrap_or_default();
                    tracing::warn!(server, error, "no connection to Redis; trying on");
                    last = (error, Instant::now());
                }
            }
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}
