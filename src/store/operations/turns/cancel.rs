//! Asks the writer of the open turn to stop.

use super::{NotOpen, turn_of};
use crate::metrics::Operation;
use crate::session::{Identifier, SessionId, TenantScope, Timestamp, Turn, escaped_text};
use crate::store::operations::instrumented;
use crate::store::{SessionStore, StoreError};

/// Outcome of [`SessionStore::cancel_turn`].
#[derive(Debug)]
pub enum CancelTurn {
    /// The open turn, whose writer is asked to stop.
    Cancelled(Box<Turn>),
    /// The turn is not open.
    NotOpen(NotOpen),
    /// The session does not exist.
    Missing,
}

impl SessionStore {
    /// Asks the writer of the open turn of a session within `scope` to stop.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn cancel_turn(
        &self,
        id: SessionId,
        turn_id: &Identifier,
        scope: &TenantScope,
        now: Timestamp,
    ) -> Result<CancelTurn, StoreError> {
        instrumented(Operation::CancelTurn, async move {
            if self.get_in_scope(id, scope, now).await?.is_none() {
                return Ok(CancelTurn::Missing);
            }
            let turn_id = escaped_text(turn_id.as_str());
            let args = vec![id.to_string(), now.0.to_string(), turn_id.clone()];
            let keys = vec![self.keys.session(id), self.keys.turn(id)];
            let mut reply = self.run(&self.scripts.cancel_turn, keys, args).await?;
            match reply.string()?.as_str() {
                "cancelled" => Ok(CancelTurn::Cancelled(turn_of(id, reply.named_values()?)?)),
                "not_open" => Ok(CancelTurn::NotOpen(self.not_open(id, &turn_id, now).await?)),
                "missing" => Ok(CancelTurn::Missing),
                _ => Err(reply.unknown_tag()),
            }
        })
        .await
    }
}
