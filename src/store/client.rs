//! The connection to Redis, with settings that keep every command bounded (design, 2.7).

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::config::{
    Config, Options, ReconnectError, ReconnectPolicy, Server, ServerConfig, TcpConfig, UnresponsiveConfig,
};
use fred::types::{Builder, Value};

use futures_util::future::join_all;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::AbortHandle;

use super::StoreError;

/// Commands that may wait for Redis at once; more are refused, so that an outage is not a memory leak.
const COMMANDS_WAITING_MAX: usize = 16_384;
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection may leave a command unanswered before it is taken for dead.
const UNRESPONSIVE_AFTER: Duration = Duration::from_secs(2);
/// How often that is looked at.
const UNRESPONSIVE_CHECK: Duration = Duration::from_millis(250);
/// A command whose connection broke is sent again, for the slot may have a new master. Scripts are safe to run twice.
const ATTEMPTS_ON_CLUSTER: u32 = 3;
const SCHEMES: [&str; 9] = [
    "redis",
    "rediss",
    "valkey",
    "valkeys",
    "redis+unix",
    "redis-cluster",
    "rediss-cluster",
    "redis-sentinel",
    "rediss-sentinel",
];
/// An error that goes on is told again after this long.
const REPEAT_ERROR_AFTER: Duration = Duration::from_secs(30);
const RECONNECT_MIN_MS: u32 = 50;
const RECONNECT_MAX_MS: u32 = 1_000;

/// Where Redis listens. Shown without credentials.
#[derive(Clone, PartialEq, Eq)]
pub enum RedisAddress {
    /// A URL that was checked; it may hold a password.
    Url(String),
    /// A Unix socket.
    Socket(PathBuf),
}

impl RedisAddress {
    /// Takes a URL: `redis://`, `rediss://`, `redis+unix://`, `redis-cluster://` or `redis-sentinel://`, as fred spells
    /// them (<https://docs.rs/fred/10.1.0/fred/types/config/struct.Config.html#method.from_url>).
    ///
    /// # Errors
    /// What is wrong with it, without the URL itself.
    pub fn from_url(url: &str) -> Result<Self, String> {
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        if !SCHEMES.contains(&scheme) {
            return Err(format!("must start with one of {}", SCHEMES.map(|scheme| format!("{scheme}://")).join(", ")));
        }
        match Config::from_url(url) {
            Ok(_) => Ok(Self::Url(url.to_owned())),
            Err(error) => Err(format!("is not a Redis URL: {}", error.details())),
        }
    }

    fn client_config(&self) -> Result<Config, fred::error::Error> {
        match self {
            Self::Url(url) => Config::from_url(url),
            Self::Socket(path) => Ok(Config { server: ServerConfig::new_unix_socket(path), ..Config::default() }),
        }
    }
}

impl fmt::Display for RedisAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(formatter, "{}", path.display()),
            Self::Url(url) => {
                // Credentials end at the last `@` of the authority; the query may hold more of them.
                let (scheme, rest) = url.split_once("://").unwrap_or(("redis", url));
                let rest = rest.split(['?', '#']).next().unwrap_or_default();
                let shown = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
                write!(formatter, "{scheme}://{shown}")
            }
        }
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RedisAddress({self})")
    }
}

/// A client that connects in the background, for ever. Commands fail in at most `command_timeout`.
///
/// # Errors
/// [`StoreError::Unavailable`] if the URL cannot be used.
pub(super) fn connect(address: &RedisAddress, command_timeout: Duration) -> Result<Client, StoreError> {
    let mut config = address.client_config()?;
    // Otherwise a Redis that is away when the service starts is never tried again.
    config.fail_fast = false;
    let attempts = if config.server.is_clustered() { ATTEMPTS_ON_CLUSTER } else { 1 };
    let mut reconnect_errors = vec![ReconnectError::ClusterDown, ReconnectError::Loading];
    if !(config.server.is_centralized() || config.server.is_unix_socket()) {
        // A new connection may lead to the new master. With a single server it only would take the reads away, too.
        reconnect_errors.push(ReconnectError::ReadOnly);
    }
    let client = Builder::from_config(config)
        .with_performance_config(|performance| performance.default_command_timeout = command_timeout)
        .with_connection_config(|connection| {
            connection.connection_timeout = CONNECT_TIMEOUT;
            connection.internal_command_timeout = CONNECT_TIMEOUT;
            connection.max_command_attempts = attempts;
            // After ASK, fred takes the next reply on a shared connection for that of its ASKING, whosever it is: callers
            // would get each other's answers. So redirections come back as errors (after MOVED with the new map of the
            // slots), and the store tries again.
            connection.max_redirections = 0;
            connection.max_command_buffer_len = COMMANDS_WAITING_MAX;
            connection.auto_client_setname = false;
            connection.unresponsive =
                UnresponsiveConfig { max_timeout: Some(UNRESPONSIVE_AFTER), interval: UNRESPONSIVE_CHECK };
            connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
            connection.reconnect_errors.clone_from(&reconnect_errors);
        })
        .set_policy(ReconnectPolicy::new_exponential(0, RECONNECT_MIN_MS, RECONNECT_MAX_MS, 2))
        .build()?;
    tokio::spawn(log_errors(client.error_rx()));
    // The task ends when the client is dropped; until then it reconnects.
    drop(client.connect());
    Ok(client)
}

/// Looks whether the servers answer at all, for as long as it is held.
#[derive(Debug)]
pub(super) struct Watch(AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Leaves a server that takes commands and answers none. fred's own detection counts from the last command that it wrote,
/// so it never sees that under load; and where there is a new master, it has to be asked for.
pub(super) fn watch(client: &Client) -> Watch {
    Watch(tokio::spawn(keep_watch(client.clone())).abort_handle())
}

async fn keep_watch(client: Client) {
    let mut silent_since = None;
    loop {
        tokio::time::sleep(UNRESPONSIVE_CHECK).await;
        let pings = client.active_connections().into_iter().map(|server| {
            let client = &client;
            async move {
                let one = Options { cluster_node: client.is_clustered().then_some(server), ..Options::default() };
                client.with_options(&one).ping::<Value>(None).await
            }
        });
        let is_silent =
            |reply: &Result<Value, Error>| matches!(reply, Err(error) if *error.kind() == ErrorKind::Timeout);
        if !join_all(pings).await.iter().any(is_silent) {
            silent_since = None;
            continue;
        }
        let since = *silent_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= UNRESPONSIVE_AFTER {
            tracing::warn!("Redis takes commands and answers none; connecting anew");
            // Returns when there is a connection again.
            let _ = client.force_reconnection().await;
            silent_since = None;
        }
    }
}

/// Tells the log why there is no connection: once for each reason, not for each attempt.
async fn log_errors(mut errors: Receiver<(Error, Option<Server>)>) {
    let mut last = (String::new(), Instant::now());
    loop {
        match errors.recv().await {
            Ok((error, server)) => {
                let error = error.to_string();
                if error != last.0 || last.1.elapsed() > REPEAT_ERROR_AFTER {
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
