//! Ends a turn.

use serde_json::{Map, Value};

use super::{NotOpen, turn_of};
use crate::metrics::{self, Operation};
use crate::session::{
    EndStatus, Identifier, SessionId, TenantScope, Timestamp, Turn, TurnStatus, escaped_text, patched_metadata,
};
use crate::store::operations::instrumented;
use crate::store::{SessionStore, StoreError};

/// How a writer ends a turn.
#[derive(Clone, Debug)]
pub struct EndRequest {
    /// The turn.
    pub turn_id: Identifier,
    /// The number of the turn.
    pub number: u64,
    /// Whether it is completed or failed.
    pub status: EndStatus,
    /// The JSON of the message's content; `None` for all chunks joined.
    pub content_json: Option<String>,
    /// A merge patch for the turn's metadata.
    pub metadata: Option<Value>,
    /// The cause of a failure, JSON.
    pub error_json: Option<String>,
}

/// Outcome of [`SessionStore::end_turn`].
#[derive(Debug)]
pub enum EndTurn {
    /// The closed turn. It was closed by this call, or before with the same status.
    Ended(Box<Turn>),
    /// The writer does not have the turn.
    NotOpen(NotOpen),
    /// The merged metadata would be too large.
    MetadataTooLarge,
    /// The session does not exist.
    Missing,
}

/// How to close a turn. Absent texts are empty.
#[derive(Debug, Default)]
pub(super) struct CloseArgs<'a> {
    pub(super) status: &'a str,
    pub(super) content: &'a str,
    pub(super) metadata: &'a str,
    pub(super) error: &'a str,
}

/// Reply of `end_turn.lua`.
pub(super) enum CloseReply {
    Closed(Box<Turn>),
    Taken,
    NotOpen,
    Missing,
}

impl SessionStore {
    /// Closes the open turn of a session within `scope`, with the message that it becomes.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn end_turn(
        &self,
        id: SessionId,
        end: &EndRequest,
        scope: &TenantScope,
        now: Timestamp,
    ) -> Result<EndTurn, StoreError> {
        instrumented(Operation::EndTurn, async move {
            let Some(session) = self.get_in_scope(id, scope, now).await? else {
                return Ok(EndTurn::Missing);
            };
            let turn_id = escaped_text(end.turn_id.as_str());
            let metadata = match &end.metadata {
                None => String::new(),
                Some(patch) => match self.latest_turn(id).await? {
                    // The metadata of a turn changes only with its number.
                    Some(turn) if turn.number == Some(end.number) => merged(&turn, patch)?,
                    Some(turn) if turn.status == TurnStatus::Open && turn.turn_id == end.turn_id.as_str() => {
                        return Ok(EndTurn::NotOpen(NotOpen::Taken));
                    }
                    _ => return Ok(outcome_if_closed(end, self.not_open(id, &turn_id, now).await?)),
                },
            };
            if metadata.len() > self.config.metadata_bytes_max {
                return Ok(EndTurn::MetadataTooLarge);
            }
            let close = CloseArgs {
                status: end.status.as_str(),
                content: end.content_json.as_deref().unwrap_or_default(),
                metadata: &metadata,
                error: end.error_json.as_deref().unwrap_or_default(),
            };
            match self.run_end_turn(id, &turn_id, end.number, &close, now).await? {
                CloseReply::Closed(turn) => {
                    self.record_activity(&session, now).await;
                    Ok(EndTurn::Ended(turn))
                }
                CloseReply::Taken => Ok(EndTurn::NotOpen(NotOpen::Taken)),
                CloseReply::NotOpen => Ok(outcome_if_closed(end, self.not_open(id, &turn_id, now).await?)),
                CloseReply::Missing => Ok(EndTurn::Missing),
            }
        })
        .await
    }

    pub(super) async fn run_end_turn(
        &self,
        id: SessionId,
        escaped_turn_id: &str,
        number: u64,
        close: &CloseArgs<'_>,
        now: Timestamp,
    ) -> Result<CloseReply, StoreError> {
        let args = vec![
            id.to_string(),
            now.0.to_string(),
            escaped_turn_id.to_owned(),
            number.to_string(),
            close.status.to_owned(),
            close.content.to_owned(),
            close.metadata.to_owned(),
            close.error.to_owned(),
        ];
        let mut reply = self.run(&self.scripts.end_turn, self.turn_keys(id), args).await?;
        match reply.string()?.as_str() {
            "closed" => {
                let turn = turn_of(id, reply.named_values()?)?;
                metrics::turn_ended(turn.status.as_str());
                Ok(CloseReply::Closed(turn))
            }
            "taken" => Ok(CloseReply::Taken),
            "not_open" => Ok(CloseReply::NotOpen),
            "missing" => Ok(CloseReply::Missing),
            _ => Err(reply.unknown_tag()),
        }
    }

    /// Why the turn with this id is not open.
    pub(super) async fn not_open(
        &self,
        id: SessionId,
        escaped_turn_id: &str,
        now: Timestamp,
    ) -> Result<NotOpen, StoreError> {
        if let Some(closed) = self.closed_turn(id, escaped_turn_id).await? {
            return Ok(NotOpen::Closed(closed));
        }
        Ok(if self.remains(id, now).await? { NotOpen::TurnMissing } else { NotOpen::SessionMissing })
    }
}

/// The outcome of an end that found the turn closed.
fn outcome_if_closed(end: &EndRequest, reason: NotOpen) -> EndTurn {
    match reason {
        NotOpen::Closed(turn) if end.status.is_of(&turn) && turn.number == Some(end.number) => EndTurn::Ended(turn),
        reason => EndTurn::NotOpen(reason),
    }
}

/// The metadata of a turn with a merge patch (RFC 7396).
fn merged(turn: &Turn, patch: &Value) -> Result<String, StoreError> {
    let metadata = serde_json::from_str::<Map<String, Value>>(&turn.metadata).map_err(|_| super::MALFORMED)?;
    Ok(Value::Object(patched_metadata(&metadata, patch)).to_string())
}
