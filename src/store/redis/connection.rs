//! The connection to one Redis, with settings that bound every command (`docs/architecture.md`, Redis connections).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

use super::connection_id::{ConnectionId, SharedConnectionId};
use super::pipeline::Pipeline;
use super::read_command::{ReadCommand, ReadReply};
use super::subscriber::{Subscriber, SubscriberConnection};
use crate::session::{Session, SessionId};
use crate::store::StoreError;
use crate::store::health::Health;
use crate::{log, metrics};

/// Maximum number of commands that wait for Redis at once. More are rejected, so an outage does not leak memory.
const COMMANDS_WAITING_MAX: usize = 16_384;
/// Timeout of one attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// After this time without a reply fred replaces a connection.
const UNRESPONSIVE_AFTER: Duration = Duration::from_secs(2);
/// Interval between checks for an unresponsive server.
const UNRESPONSIVE_CHECK: Duration = Duration::from_millis(250);
/// A connection that is made within this time shows that Sentinel was asked, or that the server replies.
const CONNECT_PROMPTLY: Duration = Duration::from_millis(500);
/// A persistent error is logged again after this time.
const REPEAT_ERROR_AFTER: Duration = Duration::from_secs(30);
const RECONNECT_MIN_MS: u32 = 50;
const RECONNECT_MAX_MS: u32 = 1_000;

/// How to connect to a server.
#[derive(Clone, Debug)]
pub(in crate::store) struct ConnectionConfig {
    /// The client's configuration: address, credentials and TLS.
    pub(in crate::store) client: Config,
    /// Timeout of one command.
    pub(in crate::store) command_timeout: Duration,
    /// Whether to reject a server that may lose sessions.
    pub(in crate::store) require_supported: bool,
    /// State of all servers.
    pub(in crate::store) health: Arc<Health>,
}

/// What a command needs from its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Requirement {
    /// A connection.
    Connection,
    /// A connection and clocks that agree, because the command computes expiries from the service's time.
    SafeClock,
}

/// One server and the connection to it. A background task connects, and reconnects whenever the connection breaks,
/// until this is dropped.
///
/// With Sentinel this is the current master.
#[derive(Debug)]
pub(in crate::store) struct Server {
    /// Its address, for the log.
    name: String,
    config: ConnectionConfig,
    connection: Connection,
    /// The present connection, or the last one; none before the first.
    connection_id: Arc<SharedConnectionId>,
    /// Whether a PING timed out, and the connection is not replaced yet.
    is_unresponsive: Arc<AtomicBool>,
    /// Set once the preflight check has passed.
    preflight_passed: OnceCell<()>,
    /// The connection for reads.
    reads: Pipeline,
    /// The connection for scripts.
    scripts: Pipeline,
    /// The connection for subscriptions.
    subscriber_connection: SubscriberConnection,
    /// A connection for commands that ASKING precedes. The lock keeps other commands from coming in between.
    asking: Mutex<Option<Connection>>,
    watchers: Vec<AbortHandle>,
}

/// A client and the task that connects it. Dropping this stops the task, even if there is no server to connect to.
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
    /// Starts to connect to a server.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the settings cannot be used.
    pub(in crate::store) fn connect(config: ConnectionConfig) -> Result<Arc<Self>, Error> {
        let name = match &config.client.server {
            ServerConfig::Unix { path } => path.display().to_string(),
            server => server.hosts().iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        };
        let client = client(&config)?;
        let (connection_id, is_unresponsive): (Arc<SharedConnectionId>, _) = (Arc::default(), Arc::default());
        // Subscribes before the client connects, so no event is missed.
        let log = log_errors(client.error_rx());
        let connected = [Arc::new(Notify::new()), Arc::new(Notify::new())];
        let track = track_connections(client.reconnect_rx(), Arc::clone(&connection_id), connected.clone());
        let watch = watch_responsiveness(client.clone(), Arc::clone(&is_unresponsive));
        let watchers = vec![
            tokio::spawn(log).abort_handle(),
            tokio::spawn(track).abort_handle(),
            tokio::spawn(watch).abort_handle(),
        ];
        let [reads, scripts] = connected.map(|connected| {
            Pipeline::start(&client, &config.client, &connection_id, connected, config.command_timeout)
        });
        let subscriber_connection = SubscriberConnection::start(&client, &config.client, &connection_id);
        Ok(Arc::new(Self {
            name,
            config,
            connection: Connection::of(client),
            connection_id,
            is_unresponsive,
            preflight_passed: OnceCell::new(),
            reads,
            scripts,
            subscriber_connection,
            asking: Mutex::new(None),
            watchers,
        }))
    }

    /// The client, after the preflight check of the server has passed.
    pub(in crate::store) async fn client(&self) -> Result<Client, StoreError> {
        let client = &self.connection.client;
        if self.config.require_supported {
            // Boxed to keep the future of every call small.
            self.preflight_passed.get_or_try_init(|| Box::pin(self.config.health.check(client, &self.name))).await?;
        }
        Ok(client.clone())
    }

    /// Fails if this server lacks what a command needs.
    ///
    /// # Errors
    /// [`StoreError::ClockSkew`]
    pub(in crate::store) fn require(&self, requirement: Requirement) -> Result<(), StoreError> {
        match requirement {
            Requirement::Connection => Ok(()),
            Requirement::SafeClock => self.config.health.require_safe_clock(&self.name),
        }
    }

    /// Sends a command to this server if it has what the command needs.
    ///
    /// The inner error is that of the command. It is a timeout as well if the reply may be that of a master that hung,
    /// was replaced meanwhile, and does not know that.
    pub(in crate::store) async fn send<T, F>(
        &self,
        requirement: Requirement,
        send: &impl Fn(Client) -> F,
    ) -> Result<Result<T, Error>, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let client = self.client().await?;
        self.require(requirement)?;
        if let Err(error) = self.require_responsive() {
            return Ok(Err(error));
        }
        let result = send(client).await;
        Ok(self.require_responsive().and(result))
    }

    fn require_responsive(&self) -> Result<(), Error> {
        if self.is_unresponsive.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Timeout, "Redis does not reply"));
        }
        Ok(())
    }

    /// Its name in the log.
    pub(in crate::store) fn name(&self) -> &str {
        &self.name
    }

    /// The session `id` at `key`, over the pipelined connection. The outer `None` means that the client has to read it.
    pub(in crate::store) async fn read_session(
        &self,
        key: &str,
        id: SessionId,
    ) -> Result<Option<Option<Box<Session>>>, StoreError> {
        let Some(connection_id) = self.pipelined_connection() else { return Ok(None) };
        let session = self.reads.session(ReadCommand::encode_hash(key), id, connection_id).await.transpose()?;
        self.require_responsive()?;
        Ok(session)
    }

    /// The reply to a command, over the pipelined connection. `None` means that the client has to send it.
    pub(in crate::store) async fn read(&self, command: &ReadCommand) -> Result<Option<ReadReply>, StoreError> {
        let Some(connection_id) = self.pipelined_connection() else { return Ok(None) };
        let reply = self.reads.read(command.encode(), connection_id).await.transpose()?;
        self.require_responsive()?;
        Ok(reply)
    }

    /// The reply to a script that needs this, over the pipelined connection. `None` means that the client has to run
    /// it.
    ///
    /// A reply counts only if it came before the client had another connection: before that, Redis may have been a
    /// master that hung and was replaced.
    pub(in crate::store) async fn run(
        &self,
        requirement: Requirement,
        command: Vec<u8>,
    ) -> Result<Option<ReadReply>, StoreError> {
        let Some(connection_id) = self.pipelined_connection() else { return Ok(None) };
        self.require(requirement)?;
        let reply = self.scripts.run(command, connection_id).await.transpose()?;
        self.require_responsive()?;
        if reply.is_some() && self.connection_id() != Some(connection_id) {
            return Err(Error::new(ErrorKind::IO, "the connection broke before the reply").into());
        }
        Ok(reply)
    }

    /// The client's present connection, if the pipelined connections beside it may be used.
    fn pipelined_connection(&self) -> Option<ConnectionId> {
        if self.config.require_supported && !self.preflight_passed.initialized() || self.require_responsive().is_err() {
            return None;
        }
        self.connection_id()
    }

    /// Subscribes to a channel. Returns when the server has confirmed it.
    pub(in crate::store) async fn subscribe(
        &self,
        channel: String,
        subscriber: Arc<dyn Subscriber>,
    ) -> Result<(), Error> {
        self.subscriber_connection.subscribe(channel, subscriber).await
    }

    /// Ends the subscription, if the channel still belongs to this subscriber.
    pub(in crate::store) fn unsubscribe(&self, channel: String, subscriber: Arc<dyn Subscriber>) {
        self.subscriber_connection.unsubscribe(channel, subscriber);
    }

    /// The client, without a preflight check.
    pub(in crate::store) fn unchecked_client(&self) -> &Client {
        &self.connection.client
    }

    /// Sends a command about a slot that is moving to this server and does not belong to it yet.
    pub(in crate::store) async fn send_asking<T, F>(&self, send: &impl Fn(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut asking = self.asking.lock().await;
        if asking.is_none() {
            *asking = Some(Connection::of(client(&self.config)?));
        }
        let Some(Connection { client, .. }) = asking.as_ref() else {
            return Err(Error::new_canceled());
        };
        let asking_command = CustomCommand::new_static("ASKING", None, false);
        let _: Value = client.custom(asking_command, Vec::<Value>::new()).await?;
        send(client.clone()).await
    }

    /// Whether the server is connected and replies.
    pub(in crate::store) fn is_responsive(&self) -> bool {
        self.connection.client.is_connected() && !self.is_unresponsive.load(Ordering::Relaxed)
    }

    /// The id of the present connection, if there is one.
    pub(in crate::store) fn connection_id(&self) -> Option<ConnectionId> {
        self.connection_id.get().filter(|_| self.connection.client.is_connected())
    }

    /// Closes the connection after the replies to all sent commands have arrived.
    pub(in crate::store) async fn quit(&self) {
        // There is nothing else to do if this fails.
        let _ = self.connection.client.quit().await;
    }
}

impl Connection {
    fn of(client: Client) -> Self {
        let task = client.connect().abort_handle();
        Self { client, task }
    }
}

fn client(config: &ConnectionConfig) -> Result<Client, Error> {
    let mut client_config = config.client.clone();
    // Otherwise the client gives up on a Redis that is unreachable when the service starts.
    client_config.fail_fast = false;
    let mut reconnect_errors = vec![ReconnectError::Loading];
    if client_config.server.is_sentinel() {
        // A new connection may lead to the new master. With a single server it would only interrupt the reads as well.
        reconnect_errors.push(ReconnectError::ReadOnly);
    }
    Builder::from_config(client_config)
        .with_performance_config(|performance| performance.default_command_timeout = config.command_timeout)
        .with_connection_config(|connection| {
            connection.connection_timeout = CONNECT_TIMEOUT;
            connection.internal_command_timeout = CONNECT_TIMEOUT;
            // If a connection breaks, it is not known whether its commands were applied. The service's client decides
            // whether to retry.
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

/// Replaces the connection to a server that accepts commands and does not reply. fred's own detection counts from the
/// last command that it wrote, so it never detects this under load.
///
/// Redis may have been replaced by another master while it hung, and continue without knowing that: then it accepts
/// writes for up to a second, and they are lost. So after a timeout no reply is used until a new connection is made
/// within [`CONNECT_PROMPTLY`]: that shows that Sentinel was asked, or that the server replies. Sentinel takes at least
/// a second to notice what the PING notices within that time.
async fn watch_responsiveness(client: Client, is_unresponsive: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(UNRESPONSIVE_CHECK).await;
        let reply = client.ping::<Value>(None).await;
        let is_timeout = matches!(&reply, Err(error) if *error.kind() == ErrorKind::Timeout);
        if !is_timeout || !client.is_connected() {
            continue;
        }
        is_unresponsive.store(true, Ordering::Relaxed);
        tracing::warn!("Redis accepts commands but does not reply; reconnecting");
        loop {
            let started = Instant::now();
            // Returns once there is a connection again.
            if client.force_reconnection().await.is_ok() && started.elapsed() < CONNECT_PROMPTLY {
                break;
            }
            tokio::time::sleep(UNRESPONSIVE_CHECK).await;
        }
        is_unresponsive.store(false, Ordering::Relaxed);
    }
}

/// Assigns an id to each new connection, and notifies the pipelined connections.
async fn track_connections(
    mut reconnections: Receiver<Address>,
    id: Arc<SharedConnectionId>,
    connected: [Arc<Notify>; 2],
) {
    while !matches!(reconnections.recv().await, Err(RecvError::Closed)) {
        if id.get().is_some() {
            metrics::store_reconnected();
        }
        id.set(Some(ConnectionId::next()));
        for connected in &connected {
            connected.notify_one();
        }
    }
}

/// Logs why there is no connection: once for each reason, not for each attempt.
async fn log_errors(mut errors: Receiver<(Error, Option<Address>)>) {
    let mut last = (String::new(), Instant::now());
    loop {
        match errors.recv().await {
            Ok((error, server)) => {
                let error = error.to_string();
                let is_new = error != last.0 || last.1.elapsed() > REPEAT_ERROR_AFTER;
                // Two alternating reasons are new each time, so the lines are also rate-limited.
                if is_new && log::should_log("connection") {
                    let server = server.map(|server| server.to_string()).unwrap_or_default();
                    tracing::warn!(server, error, "no connection to Redis; retrying");
                    last = (error, Instant::now());
                }
            }
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}
