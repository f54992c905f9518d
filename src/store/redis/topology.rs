//! Sends each command to its server: the only one, or in a cluster the master of the key's slot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::types::config::ServerConfig;
use futures_util::future::join_all;

use super::cluster::Cluster;
use super::connection::{ConnectionConfig, Requirement, Server};
use super::connection_id::ConnectionId;
use super::read_command::{ReadCommand, ReadReply};
use super::subscriber::Subscriber;
use crate::metrics;
use crate::session::{Session, SessionId};
use crate::store::StoreError;
use crate::store::error::Redirection;

/// Share of the command timeout that may be spent on retries: by a call while a slot moves, by an operation after
/// concurrent changes.
const RETRY_SHARE: f64 = 0.5;

const NO_MASTER: &str = "CLUSTERDOWN No server is known to serve this slot";

/// All servers that hold sessions.
#[derive(Debug)]
pub(in crate::store) struct Topology {
    masters: Masters,
    retry_budget: Duration,
}

#[derive(Debug)]
enum Masters {
    One(Arc<Server>),
    Cluster(Cluster),
}

impl Topology {
    /// Starts to connect to the servers. Until they are connected, calls fail within a bounded time.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the settings cannot be used.
    pub(in crate::store) fn connect(config: ConnectionConfig) -> Result<Self, StoreError> {
        let retry_budget = config.command_timeout.mul_f64(RETRY_SHARE);
        let masters = match &config.client.server {
            ServerConfig::Clustered { hosts, .. } => Masters::Cluster(Cluster::connect(hosts.clone(), config)),
            _ => Masters::One(Server::connect(config)?),
        };
        Ok(Self { masters, retry_budget })
    }

    /// How long a call or an operation may retry.
    pub(in crate::store) fn retry_budget(&self) -> Duration {
        self.retry_budget
    }

    /// Sends a command about the slot of `key` to the server that has it.
    ///
    /// A command is sent once, and again only if it was certainly not applied: a server that redirects runs nothing,
    /// and a script that meets a key of a moving slot has only read so far.
    pub(in crate::store) async fn call<T, F>(&self, key: &str, send: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.call_with(Requirement::Connection, key, send).await
    }

    /// Like [`Self::call`], but fails if the server lacks what the command needs.
    pub(in crate::store) async fn call_with<T, F>(
        &self,
        requirement: Requirement,
        key: &str,
        send: impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        // Boxed, because the client's futures are large and few calls need them.
        match &self.masters {
            Masters::One(server) => Ok(Box::pin(server.send(requirement, &send)).await??),
            Masters::Cluster(cluster) => Box::pin(self.call_cluster(cluster, requirement, key, send)).await,
        }
    }

    /// The session `id` at `key`, over the pipelined connection. The outer `None` means that the client has to read it.
    pub(in crate::store) async fn read_session(
        &self,
        key: &str,
        id: SessionId,
    ) -> Result<Option<Option<Box<Session>>>, StoreError> {
        match &self.masters {
            Masters::One(server) => server.read_session(key, id).await,
            Masters::Cluster(cluster) => match cluster.master_of(key) {
                Some(server) => server.read_session(key, id).await,
                None => Ok(None),
            },
        }
    }

    /// The reply to a command that reads: over the pipelined connection, or else by the client.
    pub(in crate::store) async fn read(&self, command: ReadCommand) -> Result<ReadReply, StoreError> {
        if let Some(server) = self.master_of(command.key())
            && let Some(reply) = server.read(&command).await?
        {
            return Ok(reply);
        }
        self.read_by_client(&command).await
    }

    /// The reply to a script that needs this and has this key, over the pipelined connection. `None` means that the
    /// client has to run it.
    pub(super) async fn run(
        &self,
        requirement: Requirement,
        key: &str,
        command: Vec<u8>,
    ) -> Result<Option<ReadReply>, StoreError> {
        let Some(server) = self.master_of(key) else { return Ok(None) };
        let reply = server.run(requirement, command).await;
        if let (Err(_), Masters::Cluster(cluster)) = (&reply, &self.masters) {
            cluster.request_reload();
        }
        reply
    }

    /// The reply to a command that reads, by the client.
    pub(in crate::store) async fn read_by_client(&self, command: &ReadCommand) -> Result<ReadReply, StoreError> {
        let value = self.call(command.key(), |client| command.send(client)).await?;
        ReadReply::of_value(value).ok_or(StoreError::Reply { operation: "read", problem: "it is nested" })
    }

    /// Subscribes to a channel at the master of its slot.
    pub(in crate::store) async fn subscribe(
        &self,
        channel: &str,
        subscriber: Arc<dyn Subscriber>,
    ) -> Result<Subscription, StoreError> {
        let mut has_moved = false;
        loop {
            let server = self.master_of(channel).ok_or_else(|| Error::new(ErrorKind::Cluster, NO_MASTER))?;
            match server.subscribe(channel.to_owned(), Arc::clone(&subscriber)).await {
                Ok(()) => return Ok(Subscription { server, channel: channel.to_owned(), subscriber }),
                Err(error) => match (&self.masters, Redirection::of(&error)) {
                    (Masters::Cluster(cluster), Some(Redirection::Moved(address))) if !has_moved => {
                        cluster.slot_has_moved(channel, address)?;
                        has_moved = true;
                    }
                    _ => return Err(error.into()),
                },
            }
        }
    }

    /// Whether a subscription is at the server that serves its slot now.
    pub(in crate::store) fn is_current(&self, subscription: &Subscription) -> bool {
        self.master_of(&subscription.channel).is_some_and(|master| Arc::ptr_eq(&master, &subscription.server))
    }

    fn master_of(&self, key: &str) -> Option<Arc<Server>> {
        match &self.masters {
            Masters::One(server) => Some(Arc::clone(server)),
            Masters::Cluster(cluster) => cluster.master_of(key),
        }
    }

    async fn call_cluster<T, F>(
        &self,
        cluster: &Cluster,
        requirement: Requirement,
        key: &str,
        send: impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let started = Instant::now();
        let mut importing: Option<Arc<Server>> = None;
        for attempt in 0.. {
            // The first redirection is followed at once. Later attempts wait a little.
            if attempt > 1 {
                tokio::time::sleep(retry_delay()?).await;
            }
            let result = match importing.take() {
                Some(server) => {
                    server.require(requirement)?;
                    server.send_asking(&send).await
                }
                None => match cluster.master_of(key) {
                    Some(server) => server.send(requirement, &send).await?,
                    None => Err(Error::new(ErrorKind::Cluster, NO_MASTER)),
                },
            };
            let error = match result {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            match Redirection::of(&error) {
                _ if started.elapsed() >= self.retry_budget => return Err(error.into()),
                Some(Redirection::Moved(address)) => {
                    metrics::store_retried("moved");
                    cluster.slot_has_moved(key, address)?;
                }
                Some(Redirection::Ask(address)) => {
                    metrics::store_retried("ask");
                    importing = Some(cluster.server_at(address)?);
                }
                Some(Redirection::TryAgain) => {
                    metrics::store_retried("try_again");
                    cluster.request_reload();
                }
                None => {
                    cluster.request_reload();
                    if error.details() != NO_MASTER {
                        return Err(error.into());
                    }
                }
            }
        }
        Err(StoreError::Unavailable(Error::new_canceled()))
    }

    /// The servers that hold sessions: in a cluster, every master.
    pub(in crate::store) fn all(&self) -> Vec<Arc<Server>> {
        match &self.masters {
            Masters::One(server) => vec![Arc::clone(server)],
            Masters::Cluster(cluster) => cluster.masters(),
        }
    }

    pub(in crate::store) fn is_cluster(&self) -> bool {
        matches!(self.masters, Masters::Cluster(_))
    }

    /// The id of the connection to the server of `key`, if it is connected.
    pub(in crate::store) fn connection_id(&self, key: &str) -> Option<ConnectionId> {
        match &self.masters {
            Masters::One(server) => server.connection_id(),
            Masters::Cluster(cluster) => cluster.master_of(key)?.connection_id(),
        }
    }

    /// Closes the connections after the replies to all sent commands have arrived.
    pub(in crate::store) async fn quit(&self) {
        join_all(self.all().iter().map(|server| server.quit())).await;
    }
}

/// A subscription to a channel, until it is dropped.
#[derive(Debug)]
pub(crate) struct Subscription {
    server: Arc<Server>,
    channel: String,
    subscriber: Arc<dyn Subscriber>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.server.unsubscribe(std::mem::take(&mut self.channel), Arc::clone(&self.subscriber));
    }
}

/// A random delay of 2 to 17 ms, so callers that met the same moving slot do not retry together.
fn retry_delay() -> Result<Duration, StoreError> {
    let mut random = [0];
    getrandom::fill(&mut random)?;
    Ok(Duration::from_millis(2 + u64::from(random[0]) % 16))
}
