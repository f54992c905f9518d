//! Ids of connections to Redis. An id is unique in the process, so it distinguishes a connection from its successor.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

/// The id of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct ConnectionId(NonZeroU64);

impl ConnectionId {
    /// A new id.
    pub(super) fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(NonZeroU64::MIN.saturating_add(LAST.fetch_add(1, Ordering::Relaxed)))
    }
}

/// The id of the present connection, or none. Tasks share it.
#[derive(Debug, Default)]
pub(in crate::store) struct SharedConnectionId(AtomicU64);

impl SharedConnectionId {
    pub(in crate::store) fn get(&self) -> Option<ConnectionId> {
        NonZeroU64::new(self.0.load(Ordering::Acquire)).map(ConnectionId)
    }

    pub(in crate::store) fn set(&self, id: Option<ConnectionId>) {
        self.0.store(id.map_or(0, |id| id.0.get()), Ordering::Release);
    }
}
