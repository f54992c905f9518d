//! The topology of a Redis Cluster: its masters, and which of them serves which slot.
//!
//! Each master has a client of its own, so an unreachable master does not affect the others. A single client for all of
//! them would wait for all of them whenever it reconnects.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use fred::error::Error;
use fred::interfaces::ClusterInterface;
use fred::types::Value;
use fred::types::config::{Server as Address, ServerConfig};
use fred::util::redis_keyslot;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::connection::{ConnectionConfig, Server};
use crate::store::StoreError;

const SLOTS: usize = 16_384;
/// How often the topology is reloaded while a server is unreachable.
const RELOAD_INTERVAL_DEGRADED: Duration = Duration::from_millis(250);
/// How often the topology is reloaded otherwise. Servers report changes in between by MOVED.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);
/// Minimum time between two reloads, however many commands request one.
const RELOAD_SPACING: Duration = Duration::from_millis(50);

/// How long to wait for each further reply after the first one: an unreachable server never replies.
const NEXT_REPLY_TIMEOUT: Duration = Duration::from_millis(100);

/// The masters of a cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    state: Arc<ClusterState>,
    reload_task: AbortHandle,
}

#[derive(Debug)]
struct ClusterState {
    config: ConnectionConfig,
    /// The servers in the URL.
    seeds: Vec<Address>,
    map: RwLock<SlotMap>,
    reload_requested: Notify,
}

/// The known topology.
#[derive(Debug, Default)]
struct SlotMap {
    /// By the address that the cluster uses.
    servers: HashMap<Address, Arc<Server>>,
    /// The master of each slot. Empty until the topology is known.
    slots: Vec<Option<Arc<Server>>>,
    /// Masters and replicas: the servers to ask if no master replies.
    nodes: Vec<Node>,
}

/// A member of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    /// The address that the cluster uses.
    address: Address,
    /// The address to connect to: its host name, if it has one, because certificates are issued for that.
    target: Address,
}

/// The assignment of slots, as one server reports it.
#[derive(Debug, PartialEq, Eq)]
struct Assignment {
    /// First slot, last slot, and the master of the range; in ascending order.
    ranges: Vec<(u16, u16, Node)>,
    replicas: Vec<Node>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.reload_task.abort();
    }
}

impl Cluster {
    /// Starts to connect to a cluster.
    pub(super) fn connect(seeds: Vec<Address>, config: ConnectionConfig) -> Self {
        let state = Arc::new(ClusterState { config, seeds, map: RwLock::default(), reload_requested: Notify::new() });
        let reload_task = tokio::spawn(Arc::clone(&state).keep_topology()).abort_handle();
        Self { state, reload_task }
    }

    /// The master that serves the slot of `key`, if it is known.
    pub(super) fn master_of(&self, key: &str) -> Option<Arc<Server>> {
        let slot = usize::from(redis_keyslot(key.as_bytes()));
        self.state.map().slots.get(slot)?.clone()
    }

    /// Every master that serves slots.
    pub(super) fn masters(&self) -> Vec<Arc<Server>> {
        self.state.map().masters()
    }

    /// Records that another server serves the slot of `key` now, as a redirection says.
    pub(super) fn slot_has_moved(&self, key: &str, to: Address) -> Result<(), StoreError> {
        let server = self.server_at(to)?;
        let slot = usize::from(redis_keyslot(key.as_bytes()));
        if let Some(master) = self.state.map_mut().slots.get_mut(slot) {
            *master = Some(server);
        }
        self.request_reload();
        Ok(())
    }

    /// A member of the cluster. Connects to it if it is not known yet.
    pub(super) fn server_at(&self, address: Address) -> Result<Arc<Server>, StoreError> {
        let mut map = self.state.map_mut();
        Ok(self.state.server(&mut map.servers, &Node { address: address.clone(), target: address })?)
    }

    /// Requests a reload of the topology.
    pub(super) fn request_reload(&self) {
        self.state.reload_requested.notify_one();
    }
}

impl SlotMap {
    fn masters(&self) -> Vec<Arc<Server>> {
        let mut masters: Vec<Arc<Server>> = Vec::new();
        for server in self.slots.iter().flatten() {
            if !masters.iter().any(|known| Arc::ptr_eq(known, server)) {
                masters.push(Arc::clone(server));
            }
        }
        masters
    }
}

impl ClusterState {
    fn map(&self) -> RwLockReadGuard<'_, SlotMap> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_mut(&self) -> RwLockWriteGuard<'_, SlotMap> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server of a node: a known one, or a new one that connects in the background.
    fn server(&self, servers: &mut HashMap<Address, Arc<Server>>, node: &Node) -> Result<Arc<Server>, Error> {
        if let Some(server) = servers.get(&node.address) {
            return Ok(Arc::clone(server));
        }
        let mut config = self.config.clone();
        config.client.server = ServerConfig::Centralized { server: node.target.clone() };
        let server = Server::connect(config)?;
        servers.insert(node.address.clone(), Arc::clone(&server));
        Ok(server)
    }

    async fn keep_topology(self: Arc<Self>) {
        let mut reloaded_at: Option<Instant> = None;
        loop {
            let is_due = reloaded_at.is_none_or(|at| at.elapsed() >= RELOAD_INTERVAL);
            let masters = self.map().masters();
            if is_due || masters.is_empty() || !masters.iter().all(|server| server.is_responsive()) {
                self.reload().await;
                reloaded_at = Some(Instant::now());
            }
            tokio::time::sleep(RELOAD_SPACING).await;
            if tokio::time::timeout(RELOAD_INTERVAL_DEGRADED, self.reload_requested.notified()).await.is_ok() {
                reloaded_at = None;
            }
        }
    }

    /// Asks the servers for the assignment of slots, and adopts the one that most of them report.
    async fn reload(&self) {
        let mut servers = self.map().servers.clone();
        // An unreachable server would only delay the others.
        servers.retain(|_, server| server.is_responsive());
        let mut reports = ask(&servers).await;
        if reports.is_empty() {
            // At the start, and after all masters were unreachable, every known member is asked.
            for node in self.nodes_to_try() {
                if let Err(error) = self.server(&mut servers, &node) {
                    tracing::warn!(%error, "cannot connect to a member of the cluster");
                }
            }
            reports = ask(&servers).await;
        }
        let votes = |assignment: &Assignment| reports.iter().filter(|other| other.ranges == assignment.ranges).count();
        if let Some(assignment) = reports.iter().max_by_key(|assignment| votes(assignment)) {
            self.adopt(assignment, servers);
        }
    }

    fn nodes_to_try(&self) -> Vec<Node> {
        let seeds = self.seeds.iter().map(|seed| Node { address: seed.clone(), target: seed.clone() });
        self.map().nodes.iter().cloned().chain(seeds).collect()
    }

    /// Replaces the topology. Servers that the assignment does not name are dropped.
    fn adopt(&self, assignment: &Assignment, mut servers: HashMap<Address, Arc<Server>>) {
        let mut map = self.map_mut();
        // A redirection may have added a server in the meantime.
        servers.extend(map.servers.drain());
        let mut next = SlotMap { slots: vec![None; SLOTS], ..SlotMap::default() };
        for (first, last, node) in &assignment.ranges {
            match self.server(&mut servers, node) {
                Ok(server) => {
                    next.slots[usize::from(*first)..=usize::from(*last)].fill(Some(Arc::clone(&server)));
                    next.servers.insert(node.address.clone(), server);
                    next.nodes.push(node.clone());
                }
                Err(error) => tracing::warn!(%error, "cannot connect to a master of the cluster"),
            }
        }
        next.nodes.extend(assignment.replicas.iter().cloned());
        *map = next;
    }
}

/// Asks all servers and returns the assignments of those that reply. Waits for the first reply as long as a command may
/// take.
async fn ask(servers: &HashMap<Address, Arc<Server>>) -> Vec<Assignment> {
    let mut replies: FuturesUnordered<_> = servers.iter().map(|(address, server)| ask_one(address, server)).collect();
    let mut assignments = Vec::new();
    let mut timeout = Duration::MAX;
    while let Ok(Some(reply)) = tokio::time::timeout(timeout, replies.next()).await {
        if let Some(assignment) = reply {
            assignments.push(assignment);
            timeout = NEXT_REPLY_TIMEOUT;
        }
    }
    assignments
}

async fn ask_one(address: &Address, server: &Server) -> Option<Assignment> {
    let reply = server.unchecked_client().cluster_slots::<Value>().await.ok()?;
    let assignment = Assignment::read(reply, &address.host);
    if assignment.is_none() {
        tracing::warn!(server = %address, "cannot parse its reply to CLUSTER SLOTS");
    }
    assignment.filter(|assignment| !assignment.ranges.is_empty())
}

impl Assignment {
    /// Parses the reply of a server to CLUSTER SLOTS (<https://redis.io/docs/latest/commands/cluster-slots/>).
    fn read(reply: Value, asked_host: &str) -> Option<Self> {
        let mut ranges = Vec::new();
        let mut replicas = Vec::new();
        for range in reply.into_array() {
            let mut range = range.into_array().into_iter();
            let (first, last) = (slot(&range.next()?)?, slot(&range.next()?)?);
            if first > last {
                return None;
            }
            ranges.push((first, last, Node::read(range.next()?, asked_host)?));
            for node in range {
                replicas.push(Node::read(node, asked_host)?);
            }
        }
        ranges.sort_unstable_by_key(|(first, ..)| *first);
        Some(Self { ranges, replicas })
    }
}

fn slot(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|slot| u16::try_from(slot).ok()).filter(|slot| usize::from(*slot) < SLOTS)
}

impl Node {
    /// Parses `[host, port, id, metadata]`. A host that is null or empty is the host that was asked.
    fn read(node: Value, asked_host: &str) -> Option<Self> {
        let mut node = node.into_array().into_iter();
        let host = node.next()?.into_string().filter(|host| !host.is_empty());
        let host = host.unwrap_or_else(|| asked_host.to_owned());
        let port = u16::try_from(node.next()?.as_u64()?).ok()?;
        let metadata = node.nth(1).map(Value::into_array).unwrap_or_default();
        let mut metadata = metadata.into_iter().map(Value::into_string);
        let mut name = None;
        while let (Some(key), Some(value)) = (metadata.next(), metadata.next()) {
            if key.as_deref() == Some("hostname") {
                name = value.filter(|name| !name.is_empty());
            }
        }
        let target = Address::new(name.unwrap_or_else(|| host.clone()), port);
        Some(Self { address: Address::new(host, port), target })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(host: Value, port: i64, metadata: Vec<Value>) -> Value {
        Value::Array(vec![host, Value::Integer(port), "id".into(), Value::Array(metadata)])
    }

    fn range(first: i64, last: i64, nodes: Vec<Value>) -> Value {
        Value::Array([vec![Value::Integer(first), Value::Integer(last)], nodes].concat())
    }

    fn address(host: &str, port: u16) -> Address {
        Address::new(host.to_owned(), port)
    }

    #[test]
    fn cluster_slots_reply_is_parsed() {
        let by_name = vec!["hostname".into(), "a.example".into()];
        let reply = Value::Array(vec![
            range(100, 16_383, vec![node("10.0.0.2".into(), 2, by_name), node("10.0.0.3".into(), 3, Vec::new())]),
            range(0, 99, vec![node(Value::Null, 1, Vec::new())]),
        ]);
        let read = Assignment::read(reply, "10.0.0.9").expect("a valid reply");
        let first = Node { address: address("10.0.0.9", 1), target: address("10.0.0.9", 1) };
        let second = Node { address: address("10.0.0.2", 2), target: address("a.example", 2) };
        assert_eq!(read.ranges, [(0, 99, first), (100, 16_383, second)]);
        assert_eq!(read.replicas, [Node { address: address("10.0.0.3", 3), target: address("10.0.0.3", 3) }]);
    }

    #[test]
    fn malformed_cluster_slots_reply_is_rejected() {
        let master = || node("h".into(), 1, Vec::new());
        let replies = [
            range(0, 16_384, vec![master()]),
            range(9, 8, vec![master()]),
            range(-1, 8, vec![master()]),
            range(0, 8, vec![]),
            range(0, 8, vec![node("h".into(), 65_536, Vec::new())]),
            "text".into(),
        ];
        for reply in replies {
            assert_eq!(Assignment::read(Value::Array(vec![reply.clone()]), "h"), None, "{reply:?}");
        }
    }
}
