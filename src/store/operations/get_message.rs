//! Reads one message.

use super::instrumented;
use crate::metrics::Operation;
use crate::session::{MessageJson, MessageRef, TenantScope, Timestamp, escaped_text};
use crate::store::redis::read_command::ReadCommand;
use crate::store::response_memory::{MemoryPermit, ResponseOwner};
use crate::store::{SessionStore, StoreError};

/// How often a message is read again if the session's messages change in the meantime.
const LOOKUPS_MAX: u32 = 8;

/// Outcome of [`SessionStore::get_message`].
#[derive(Debug)]
pub enum GetMessage {
    /// The message, and the memory of a large one. Keep it until the response is sent.
    Found(MessageJson, Option<MemoryPermit>),
    /// The session does not exist.
    SessionMissing,
    /// The session has no message with this id.
    MessageMissing,
}

impl SessionStore {
    /// One message of a session within `scope`, for `owner`.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn get_message(
        &self,
        message: &MessageRef,
        scope: &TenantScope,
        owner: ResponseOwner,
        now: Timestamp,
    ) -> Result<GetMessage, StoreError> {
        instrumented(Operation::GetMessage, self.find_message(message, scope, owner, now)).await
    }

    /// Reads the session, the message's `seq`, and the message at that `seq`.
    pub(super) async fn find_message(
        &self,
        message: &MessageRef,
        scope: &TenantScope,
        owner: ResponseOwner,
        now: Timestamp,
    ) -> Result<GetMessage, StoreError> {
        let id = message.session_id;
        let message_id = escaped_text(message.message_id.as_str());
        let mut seen = None;
        for _ in 0..LOOKUPS_MAX {
            let Some(session) = self.get_in_scope(id, scope, now).await? else {
                return Ok(GetMessage::SessionMissing);
            };
            // A failure to close the turn must not fail the read: the turn has no message then.
            if session.open_turn.as_ref().is_some_and(|turn| turn.escaped_id == message_id)
                && matches!(self.close_lost_turn(&session, now).await, Ok(true))
            {
                continue;
            }
            let command = ReadCommand::hash_field(self.keys.message_ids(id), message_id.clone());
            let Some(seq) = self.read_command(command).await?.text("get_message")? else {
                return Ok(GetMessage::MessageMissing);
            };
            let seq = std::str::from_utf8(&seq).ok().and_then(|seq| seq.parse().ok());
            let seq = seq.ok_or(StoreError::Reply { operation: "get_message", problem: "a seq is not a number" })?;
            let held = Some((session.created_at, session.oldest_seq, session.message_count, seq));
            if seen == held {
                let problem = "the session lacks a message that its ids name";
                return Err(StoreError::Reply { operation: "get_message", problem });
            }
            seen = held;
            let mut memory = self.response_memory.reserve_if_large(owner, session.largest_message_bytes).await?;
            let read = self.read_piece(&session, seq, seq).await?;
            // A session that was created again in the meantime may have another message at this seq.
            let read = read.and_then(|mut messages| messages.pop());
            if let Some(found) = read.filter(|found| found.has_id(&message_id)) {
                if let Some(memory) = &mut memory {
                    memory.shrink_to(found.json_bytes());
                }
                return Ok(GetMessage::Found(found, memory));
            }
            // The session was deleted, or the message was trimmed, since its seq was read.
        }
        Err(StoreError::Busy("the session's messages change faster than they can be read".to_owned()))
    }
}
