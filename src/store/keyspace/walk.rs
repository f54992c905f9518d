//! Walks over all keys.

use std::sync::Arc;

use fred::error::{Error, ErrorKind};
use fred::interfaces::KeysInterface;
use fred::types::Value;

use super::{FoundKey, WalkedKey, lossy, unexpected};
use crate::store::redis::connection::Server;
use crate::store::{SessionStore, StoreError};

/// Keys that Redis examines in one step of the walk.
pub const WALK_STEP: u32 = 500;

/// A walk over every key with the prefix, on every master. It is not a snapshot: a key that exists throughout is
/// returned at least once; another key may or may not be returned.
#[derive(Debug)]
pub struct Walk<'a> {
    store: &'a SessionStore,
    /// The servers still to walk, the current one last.
    servers: Vec<Arc<Server>>,
    cursor: String,
}

impl Walk<'_> {
    /// The keys of the next step, or `None` at the end. A step may return no keys.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn step(&mut self) -> Result<Option<Vec<WalkedKey>>, StoreError> {
        let Some(server) = self.servers.last() else {
            return Ok(None);
        };
        let (client, pattern) = (server.client().await?, self.store.keys.pattern());
        let page: Value = client.scan_page(self.cursor.clone(), pattern, Some(WALK_STEP), None).await?;
        let mut page = page.into_array().into_iter();
        let cursor = page.next().and_then(Value::into_string);
        let (Some(cursor), Some(found)) = (cursor, page.next()) else {
            return Err(unexpected("a reply to SCAN is not a cursor and keys"));
        };
        if cursor == "0" {
            self.servers.pop();
        }
        self.cursor = cursor;
        let layout = self.store.keys.layout();
        let names = found.into_array().into_iter().map(lossy).filter(|name| *name != layout);
        Ok(Some(names.map(|name| self.store.classify(name)).collect()))
    }
}

impl SessionStore {
    /// Starts a walk over the keyspace.
    ///
    /// # Errors
    /// If the masters of a cluster are not known.
    pub fn walk(&self) -> Result<Walk<'_>, StoreError> {
        let servers = self.topology.all();
        if servers.is_empty() {
            return Err(StoreError::Unavailable(Error::new(ErrorKind::Cluster, "no master is known")));
        }
        Ok(Walk { store: self, servers, cursor: "0".to_owned() })
    }

    fn classify(&self, name: String) -> WalkedKey {
        match self.keys.parse(&name) {
            Some((partition, kind)) => WalkedKey::Known(FoundKey { name, partition, kind }),
            None => WalkedKey::Unknown(name),
        }
    }
}
