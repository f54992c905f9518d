//! Which server a command goes to: the only one, or in a cluster the master of the key's slot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::types::config::ServerConfig;
use futures_util::future::join_all;

use super::StoreError;
use super::client::{Needs, Server, Settings};
use super::cluster::Cluster;
use super::error::Redirection;
use crate::metrics;
use crate::session::{Session, SessionId};

/// Which part of a command's timeout a call may spend on trying again while a slot moves.
const RETRY_SHARE: f64 = 0.5;

const NO_MASTER: &str = "CLUSTERDOWN No server is known to serve this slot";

/// All servers that hold sessions.
#[derive(Debug)]
pub(super) struct Servers {
    topology: Topology,
    retry_budget: Duration,
}

#[derive(Debug)]
enum Topology {
    One(Arc<Server>),
    Cluster(Cluster),
}

impl Servers {
    /// Servers that are being connected to. Until they are, calls fail in bounded time.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the settings cannot be used.
    pub(super) fn connect(settings: Settings) -> Result<Self, StoreError> {
        let retry_budget = settings.command_timeout.mul_f64(RETRY_SHARE);
        let topology = match &settings.config.server {
            ServerConfig::Clustered { hosts, .. } => Topology::Cluster(Cluster::connect(hosts.clone(), settings)),
            _ => Topology::One(Server::connect(settings)?),
        };
        Ok(Self { topology, retry_budget })
    }

    /// Sends a command about the slot of this key to the server that has it.
    ///
    /// It is sent once, and again only where it was certainly not applied: a server that redirects runs nothing, and a
    /// script that meets a key on its way to another server has only read so far.
    pub(super) async fn call<T, F>(&self, key: &str, send: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.call_with(Needs::Connection, key, send).await
    }

    /// Sends a command as [`Self::call`] does, if the server has what the command needs.
    pub(super) async fn call_with<T, F>(
        &self,
        needs: Needs,
        key: &str,
        send: impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        match &self.topology {
            Topology::One(server) => {
                let client = server.client().await?;
                server.require(needs)?;
                Ok(send(client).await?)
            }
            // Boxed, for it would make every call's future larger.
            Topology::Cluster(cluster) => Box::pin(self.call_cluster(cluster, needs, key, send)).await,
        }
    }

    /// The session of this id at this key, by the connection for that; `None` if the client has to be asked.
    pub(super) async fn read_session(&self, key: String, id: SessionId) -> Result<Option<Option<Session>>, StoreError> {
        match &self.topology {
            Topology::One(server) => server.read_session(key, id).await,
            Topology::Cluster(cluster) => match cluster.master_of(&key) {
                Some(server) => server.read_session(key, id).await,
                None => Ok(None),
            },
        }
    }

    async fn call_cluster<T, F>(
        &self,
        cluster: &Cluster,
        needs: Needs,
        key: &str,
        send: impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let started = Instant::now();
        let mut importing: Option<Arc<Server>> = None;
        for attempt in 0.. {
            // Those who were told to go elsewhere go at once; then it is better to wait a little.
            if attempt > 1 {
                tokio::time::sleep(retry_delay()?).await;
            }
            let result = match importing.take() {
                Some(server) => {
                    server.require(needs)?;
                    server.send_asking(&send).await
                }
                None => match cluster.master_of(key) {
                    Some(server) => {
                        let client = server.client().await?;
                        server.require(needs)?;
                        send(client).await
                    }
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
                    cluster.look_again();
                }
                None => {
                    cluster.look_again();
                    if error.details() != NO_MASTER {
                        return Err(error.into());
                    }
                }
            }
        }
        Err(StoreError::Unavailable(Error::new_canceled()))
    }

    /// The servers that hold sessions: every master, if it is a cluster.
    pub(super) fn all(&self) -> Vec<Arc<Server>> {
        match &self.topology {
            Topology::One(server) => vec![Arc::clone(server)],
            Topology::Cluster(cluster) => cluster.masters(),
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.topology, Topology::Cluster(_))
    }

    /// The number of the connection by which this key is asked for, if there is one at the moment.
    pub(super) fn connection_number(&self, key: &str) -> Option<u64> {
        match &self.topology {
            Topology::One(server) => server.connection_number(),
            Topology::Cluster(cluster) => cluster.master_of(key)?.connection_number(),
        }
    }

    /// Closes the connections after what was sent is answered.
    pub(super) async fn quit(&self) {
        join_all(self.all().iter().map(|server| server.quit())).await;
    }
}

/// A few milliseconds, at random: callers that met the same moving slot do not come back together.
fn retry_delay() -> Result<Duration, StoreError> {
    let mut random = [0];
    getrandom::fill(&mut random)?;
    Ok(Duration::from_millis(2 + u64::from(random[0]) % 16))
}
