//! Begins a turn.

use super::{turn_of, unescaped};
use crate::metrics::Operation;
use crate::session::{Identifier, IfOpen, Role, SessionId, TenantScope, Timestamp, Turn, escaped_text};
use crate::store::operations::{count_closed_turn, instrumented};
use crate::store::{SessionStore, StoreError};

/// A turn to begin.
#[derive(Clone, Debug)]
pub struct NewTurn {
    /// Unique within the session.
    pub turn_id: Identifier,
    /// The worker's run that writes the turn.
    pub writer: Identifier,
    /// The role of the message that it becomes.
    pub role: Role,
    /// The metadata of that message, the JSON of an object.
    pub metadata_json: String,
    /// What to do if a turn is open.
    pub if_open: IfOpen,
}

/// Outcome of [`SessionStore::begin_turn`].
#[derive(Debug)]
pub enum BeginTurn {
    /// The turn is new.
    Began(Box<Turn>),
    /// The turn in its current state: this writer has it, or it is closed.
    Known(Box<Turn>),
    /// Another turn is open, or another writer has this turn.
    TurnOpen {
        /// The open turn.
        turn_id: String,
        /// When its lease ends.
        lease_until: Timestamp,
    },
    /// The session is not active.
    NotActive,
    /// The session does not exist.
    Missing,
}

impl SessionStore {
    /// Begins a turn of a session within `scope`, or takes over the open one.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn begin_turn(
        &self,
        id: SessionId,
        new: &NewTurn,
        scope: &TenantScope,
        now: Timestamp,
    ) -> Result<BeginTurn, StoreError> {
        instrumented(Operation::BeginTurn, async move {
            let Some(session) = self.get_in_scope(id, scope, now).await? else {
                return Ok(BeginTurn::Missing);
            };
            let turn_id = escaped_text(new.turn_id.as_str());
            let args = vec![
                id.to_string(),
                now.0.to_string(),
                turn_id.clone(),
                escaped_text(new.writer.as_str()),
                new.role.as_str().to_owned(),
                new.metadata_json.clone(),
                new.if_open.as_str().to_owned(),
            ];
            let mut reply = self.run(&self.scripts.begin_turn, self.turn_keys(id), args).await?;
            match reply.string()?.as_str() {
                "began" => {
                    count_closed_turn(&reply.string()?);
                    self.record_activity(&session, now).await;
                    Ok(BeginTurn::Began(turn_of(id, reply.named_values()?)?))
                }
                "known" => {
                    count_closed_turn(&reply.string()?);
                    self.record_activity(&session, now).await;
                    Ok(BeginTurn::Known(turn_of(id, reply.named_values()?)?))
                }
                "closed" => {
                    count_closed_turn(&reply.string()?);
                    match self.closed_turn(id, &turn_id).await? {
                        Some(turn) => Ok(BeginTurn::Known(turn)),
                        // The session or the message was deleted in the meantime.
                        None if !self.remains(id, now).await? => Ok(BeginTurn::Missing),
                        None => Err(StoreError::Busy("the session changes faster than it can be read".to_owned())),
                    }
                }
                "turn_open" => {
                    let turn_id = unescaped(&reply.string()?).ok_or(super::MALFORMED)?;
                    Ok(BeginTurn::TurnOpen { turn_id, lease_until: reply.time()? })
                }
                "not_active" => Ok(BeginTurn::NotActive),
                "missing" => Ok(BeginTurn::Missing),
                _ => Err(reply.unknown_tag()),
            }
        })
        .await
    }
}
