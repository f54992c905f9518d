//! Deletes a session with its messages.

use std::time::Instant;

use super::{VersionCondition, instrumented};
use crate::metrics::{self, Operation};
use crate::session::{SessionId, TenantScope, Timestamp};
use crate::store::{SessionStore, StoreError};

/// Outcome of [`SessionStore::delete`].
#[derive(Debug)]
pub enum Delete {
    /// The session was deleted.
    Deleted,
    /// The session does not exist.
    Missing,
    /// The session has this version, which the condition does not accept.
    VersionMismatch(u64),
}

impl SessionStore {
    /// Deletes a session within `scope`, with its messages.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn delete(
        &self,
        id: SessionId,
        condition: &VersionCondition,
        scope: &TenantScope,
        now: Timestamp,
    ) -> Result<Delete, StoreError> {
        instrumented(Operation::Delete, async move {
            let started = Instant::now();
            while started.elapsed() < self.topology.retry_budget() {
                let Some(session) = self.get_in_scope(id, scope, now).await? else {
                    return Ok(Delete::Missing);
                };
                if !condition.accepts(session.version) {
                    return Ok(Delete::VersionMismatch(session.version));
                }
                let args = vec![id.to_string(), now.0.to_string(), condition.expected_version(session.version)];
                let mut keys = self.keys_of(&session);
                keys.extend(self.turn_keys_of(&session));
                let mut reply = self.run(&self.scripts.delete, keys, args).await?;
                match reply.string()?.as_str() {
                    "deleted" => {
                        metrics::sessions_deleted(1);
                        return Ok(Delete::Deleted);
                    }
                    "missing" => return Ok(Delete::Missing),
                    // The session has changed in the meantime, or has a turn now. Read it again.
                    "version_mismatch" | "has_turn" => {}
                    _ => return Err(reply.unknown_tag()),
                }
            }
            Err(StoreError::Busy("the session changes faster than it can be read".to_owned()))
        })
        .await
    }
}
