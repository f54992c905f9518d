//! Where to look first for a user's active session: hints, never the truth.

use std::hash::BuildHasher;

use quick_cache::DefaultHashBuilder;
use quick_cache::sync::Cache;

use crate::session::SessionId;

/// The session that each of the users seen lately had. It may have ended since, or be gone.
///
/// A user is kept as 64 bits of a keyed hash: two users who share them share a hint, which leads one of them nowhere.
#[derive(Debug)]
pub(super) struct Hints {
    /// None if nothing is to be remembered.
    sessions: Option<Cache<u64, SessionId>>,
    hasher: DefaultHashBuilder,
}

impl Hints {
    /// Hints for this many users at the most.
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
