//! The masters of a Redis Cluster, and which of them serves which slot.
//!
//! One client for each master, so that a master that is away takes none of the others with it: a single client for all of
//! them would wait for all of them whenever it connects anew.

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

use super::StoreError;
use super::client::{Server, Settings};

const SLOTS: usize = 16_384;
/// How often the servers are asked who serves what while one of them is away.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How often they are asked otherwise. They say by MOVED what has changed in between.
const LOOK_ANYWAY: Duration = Duration::from_secs(10);
/// The least time between two looks, however many commands ask for one.
const LOOKS_APART: Duration = Duration::from_millis(50);

/// How long the next one may take to answer when somebody has: one that is away answers never.
const LATER_ANSWER: Duration = Duration::from_millis(100);

/// The masters of a cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    shared: Arc<Shared>,
    keeper: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    /// Those that the URL names.
    seeds: Vec<Address>,
    map: RwLock<Map>,
    look_again: Notify,
}

/// Who serves what, as far as is known.
#[derive(Debug, Default)]
struct Map {
    /// By the address that the cluster calls them by.
    servers: HashMap<Address, Arc<Server>>,
    /// The master of each slot. Empty before anything is known.
    slots: Vec<Option<Arc<Server>>>,
    /// Masters and replicas: whom to ask if no master answers.
    nodes: Vec<Node>,
}

/// A member of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    /// What the cluster calls it.
    address: Address,
    /// Where to connect: its host name, if it has one, for that is what certificates are made out to.
    target: Address,
}

/// What one server says of the cluster.
#[derive(Debug, PartialEq, Eq)]
struct Assignment {
    /// First slot, last slot, and the master of both and of all in between; in ascending order.
    ranges: Vec<(u16, u16, Node)>,
    replicas: Vec<Node>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Cluster {
    /// A cluster that is being connected to.
    pub(super) fn connect(seeds: Vec<Address>, settings: Settings) -> Self {
        let shared = Arc::new(Shared { settings, seeds, map: RwLock::default(), look_again: Notify::new() });
        let keeper = tokio::spawn(Arc::clone(&shared).keep_map()).abort_handle();
        Self { shared, keeper }
    }

    /// The master that serves the slot of this key.
    pub(super) fn master_of(&self, key: &str) -> Option<Arc<Server>> {
        let slot = usize::from(redis_keyslot(key.as_bytes()));
        self.shared.map().slots.get(slot)?.clone()
    }

    /// Every master that serves slots.
    pub(super) fn masters(&self) -> Vec<Arc<Server>> {
        self.shared.map().masters()
    }

    /// Believes a server that said who serves the slot of this key now.
    pub(super) fn slot_has_moved(&self, key: &str, to: Address) -> Result<(), StoreError> {
        let server = self.server_at(to)?;
        let slot = usize::from(redis_keyslot(key.as_bytes()));
        if let Some(master) = self.shared.map_mut().slots.get_mut(slot) {
            *master = Some(server);
        }
        self.look_again();
        Ok(())
    }

    /// A member of the cluster, whether it is known yet or not.
    pub(super) fn server_at(&self, address: Address) -> Result<Arc<Server>, StoreError> {
        let mut map = self.shared.map_mut();
        Ok(self.shared.server(&mut map.servers, &Node { address: address.clone(), target: address })?)
    }

    /// Has the servers asked who serves what.
    pub(super) fn look_again(&self) {
        self.shared.look_again.notify_one();
    }
}

impl Map {
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

impl Shared {
    fn map(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_mut(&self) -> RwLockWriteGuard<'_, Map> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server of this node: a known one, or one that is connected to from now on.
    fn server(&self, servers: &mut HashMap<Address, Arc<Server>>, node: &Node) -> Result<Arc<Server>, Error> {
        if let Some(server) = servers.get(&node.address) {
            return Ok(Arc::clone(server));
        }
        let mut settings = self.settings.clone();
        settings.config.server = ServerConfig::Centralized { server: node.target.clone() };
        let server = Server::connect(settings)?;
        servers.insert(node.address.clone(), Arc::clone(&server));
        Ok(server)
    }

    async fn keep_map(self: Arc<Self>) {
        let mut looked_at: Option<Instant> = None;
        loop {
            let is_due = looked_at.is_none_or(|at| at.elapsed() >= LOOK_ANYWAY);
            let masters = self.map().masters();
            if is_due || masters.is_empty() || !masters.iter().all(|server| server.answers()) {
                self.look().await;
                looked_at = Some(Instant::now());
            }
            tokio::time::sleep(LOOKS_APART).await;
            if tokio::time::timeout(LOOK_AGAIN, self.look_again.notified()).await.is_ok() {
                looked_at = None;
            }
        }
    }

    /// Asks the servers who serves what, and believes what most of them say.
    async fn look(&self) {
        let mut asked = self.map().servers.clone();
        // One that is away would only keep the others waiting.
        asked.retain(|_, server| server.answers());
        let mut said = ask(&asked).await;
        if said.is_empty() {
            // As at the start, and after all masters were away: whoever was ever heard of may know.
            for node in self.nodes_to_try() {
                if let Err(error) = self.server(&mut asked, &node) {
                    tracing::warn!(%error, "a member of the cluster cannot be connected to");
                }
            }
            said = ask(&asked).await;
        }
        let votes = |assignment: &Assignment| said.iter().filter(|other| other.ranges == assignment.ranges).count();
        if let Some(assignment) = said.iter().max_by_key(|assignment| votes(assignment)) {
            self.adopt(assignment, asked);
        }
    }

    fn nodes_to_try(&self) -> Vec<Node> {
        let seeds = self.seeds.iter().map(|seed| Node { address: seed.clone(), target: seed.clone() });
        self.map().nodes.iter().cloned().chain(seeds).collect()
    }

    /// Makes an assignment the map. Servers that it does not name are let go of.
    fn adopt(&self, assignment: &Assignment, mut servers: HashMap<Address, Arc<Server>>) {
        let mut map = self.map_mut();
        // A redirection may have made one in the meantime.
        servers.extend(map.servers.drain());
        let mut next = Map { slots: vec![None; SLOTS], ..Map::default() };
        for (first, last, node) in &assignment.ranges {
            match self.server(&mut servers, node) {
                Ok(server) => {
                    next.slots[usize::from(*first)..=usize::from(*last)].fill(Some(Arc::clone(&server)));
                    next.servers.insert(node.address.clone(), server);
                    next.nodes.push(node.clone());
                }
                Err(error) => tracing::warn!(%error, "a master of the cluster cannot be connected to"),
            }
        }
        next.nodes.extend(assignment.replicas.iter().cloned());
        *map = next;
    }
}

/// What those of the servers say that answer. Waits for the first as long as commands may take.
async fn ask(servers: &HashMap<Address, Arc<Server>>) -> Vec<Assignment> {
    let mut answers: FuturesUnordered<_> = servers.iter().map(|(address, server)| ask_one(address, server)).collect();
    let mut said = Vec::new();
    let mut patience = Duration::MAX;
    while let Ok(Some(answer)) = tokio::time::timeout(patience, answers.next()).await {
        if let Some(assignment) = answer {
            said.push(assignment);
            patience = LATER_ANSWER;
        }
    }
    said
}

async fn ask_one(address: &Address, server: &Server) -> Option<Assignment> {
    let reply = server.unchecked_client().cluster_slots::<Value>().await.ok()?;
    let assignment = Assignment::read(reply, &address.host);
    if assignment.is_none() {
        tracing::warn!(server = %address, "its reply to CLUSTER SLOTS is not understood");
    }
    assignment.filter(|assignment| !assignment.ranges.is_empty())
}

impl Assignment {
    /// Reads the reply of a server to CLUSTER SLOTS (<https://redis.io/docs/latest/commands/cluster-slots/>).
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
    /// `[host, port, id, metadata]`. A host that is null or empty is the one that was asked.
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

    fn at(host: &str, port: u16) -> Address {
        Address::new(host.to_owned(), port)
    }

    #[test]
    fn a_reply_says_who_serves_what_and_where() {
        let by_name = vec!["hostname".into(), "a.example".into()];
        let reply = Value::Array(vec![
            range(100, 16_383, vec![node("10.0.0.2".into(), 2, by_name), node("10.0.0.3".into(), 3, Vec::new())]),
            range(0, 99, vec![node(Value::Null, 1, Vec::new())]),
        ]);
        let read = Assignment::read(reply, "10.0.0.9").expect("a reply that is understood");
        let first = Node { address: at("10.0.0.9", 1), target: at("10.0.0.9", 1) };
        let second = Node { address: at("10.0.0.2", 2), target: at("a.example", 2) };
        assert_eq!(read.ranges, [(0, 99, first), (100, 16_383, second)]);
        assert_eq!(read.replicas, [Node { address: at("10.0.0.3", 3), target: at("10.0.0.3", 3) }]);
    }

    #[test]
    fn a_reply_of_another_shape_is_not_believed() {
        let master = || node("h".into(), 1, Vec::new());
        let replies = [
            range(0, 16_384, vec![master()]),
            range(9, 8, vec![master()]),
            range(-1, 8, vec![master()]),
            range(0, 8, vec![]),
            range(0, 8, vec![node("h".into(), 65_536, Vec::new())]),
            "what".into(),
        ];
        for reply in replies {
            assert_eq!(Assignment::read(Value::Array(vec![reply.clone()]), "h"), None, "{reply:?}");
        }
    }
}
