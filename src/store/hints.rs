//! Hints: which session to read first for a known user. A hint may be wrong; only the session's hash decides
//! (`docs/architecture.md`, Hints).

use std::hash::BuildHasher;

use quick_cache::DefaultHashBuilder;
use quick_cache::sync::Cache;

use crate::session::SessionId;

/// The last known session of each recently seen user. It may have ended, or no longer exist.
///
/// A user is stored as 64 bits of a keyed hash. Two users with the same hash share a hint, which is wrong for one of
/// them.
#[derive(Debug)]
pub(super) struct Hints {
    /// `None` if hints are disabled.
    sessions: Option<Cache<u64, SessionId>>,
    hasher: DefaultHashBuilder,
}

impl Hints {
    /// Creates hints for at most `users_max` users; 0 disables them.
    pub(super) fn new(users_max: usize) -> Self {
        Self { sessions: (users_max > 0).then(|| Cache::new(users_max)), hasher: DefaultHashBuilder::default() }
    }

    pub(super) fn session_of(&self, business_id: &str, user_id: &str) -> Option<SessionId> {
        self.sessions.as_ref()?.get(&self.hasher.hash_one((business_id, user_id)))
    }

    pub(super) fn remember(&self, business_id: &str, user_id: &str, session_id: SessionId) {
        if let Some(sessions) = &self.sessions {
            sessions.insert(self.hasher.hash_one((business_id, user_id)), session_id);
        }
    }
}
