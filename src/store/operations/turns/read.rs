//! Reads a turn and its chunks.

use bytes::Bytes;

use super::{earlier_turn_of, earlier_turn_since, turn_of};
use crate::metrics::Operation;
use crate::session::{
    Identifier, MessageRef, Role, Session, SessionId, TenantScope, Timestamp, Turn, TurnStatus, escaped_text,
};
use crate::store::keys::turn_field;
use crate::store::operations::get_message::GetMessage;
use crate::store::operations::instrumented;
use crate::store::redis::read_command::ReadCommand;
use crate::store::reply::Reply;
use crate::store::response_memory::{MemoryPermit, ResponseOwner, SMALL_RESPONSE_BYTES};
use crate::store::{SessionStore, StoreError};

/// How often a turn is read again if it changes between two reads.
const READS_MAX: u32 = 8;

/// Bytes of a chunk besides its text: the JSON syntax, and the value that holds it.
const CHUNK_OVERHEAD_BYTES: usize = 35;

/// Which turn to read.
#[derive(Clone, Debug)]
pub enum TurnName {
    /// The turn that began last.
    Latest,
    /// The turn with this id.
    Id(Identifier),
}

/// A turn with its chunks from a given number on.
#[derive(Debug)]
pub struct TurnChunks {
    /// The turn.
    pub turn: Box<Turn>,
    /// Escaped JSON texts without quotes.
    pub chunks: Vec<Bytes>,
    /// The memory of a large response. Keep it until the response is sent.
    pub memory: Option<MemoryPermit>,
}

/// Outcome of [`SessionStore::get_turn`].
#[derive(Debug)]
pub enum GetTurn {
    /// The turn.
    Found(Box<TurnChunks>),
    /// The session has had no such turn, or the turn is no longer recorded.
    TurnMissing,
    /// The session does not exist.
    SessionMissing,
}

impl SessionStore {
    /// A turn of a session within `scope`, with its chunks from number `from` on. Closes an open turn first if its
    /// lease has expired.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn get_turn(
        &self,
        id: SessionId,
        name: &TurnName,
        from: u64,
        scope: &TenantScope,
        owner: ResponseOwner,
        now: Timestamp,
    ) -> Result<GetTurn, StoreError> {
        instrumented(Operation::GetTurn, async move {
            let Some(session) = self.get_in_scope(id, scope, now).await? else {
                return Ok(GetTurn::SessionMissing);
            };
            let mut may_close = true;
            for _ in 0..READS_MAX {
                let (turn, earlier) = match self.stored_turn(id).await? {
                    Some((turn, earlier)) => (Some(turn), earlier),
                    None => (None, String::new()),
                };
                let is_named = |turn: &Turn| match name {
                    TurnName::Latest => true,
                    TurnName::Id(turn_id) => turn.turn_id == turn_id.as_str(),
                };
                let Some(turn) = turn.filter(|turn| is_named(turn)) else {
                    let before = match name {
                        TurnName::Id(id_of_turn) => {
                            self.recorded_turn(id, &escaped_text(id_of_turn.as_str()), &earlier).await?
                        }
                        TurnName::Latest => None,
                    };
                    // A message without `finishReason` was not written by a turn.
                    if let Some(turn) = before.filter(|turn| turn.number.is_some() || turn.ended_as.is_some()) {
                        let alone = TurnChunks { turn, chunks: Vec::new(), memory: None };
                        return Ok(GetTurn::Found(Box::new(alone)));
                    }
                    let remains = self.remains(id, now).await?;
                    return Ok(if remains { GetTurn::TurnMissing } else { GetTurn::SessionMissing });
                };
                // Only a call that is not rejected closes the turn. If the turn cannot be closed now, it is returned as
                // open.
                if std::mem::take(&mut may_close) && matches!(self.close_lost_turn(&session, now).await, Ok(true)) {
                    continue;
                }
                let wanted = usize::try_from(turn.next_chunk.unwrap_or_default().saturating_sub(from)).unwrap_or(0);
                let bytes = if wanted == 0 { 0 } else { turn.chunk_bytes + wanted * CHUNK_OVERHEAD_BYTES };
                // For the chunks and for the response with them.
                let memory = self.response_memory.reserve_if_large(owner, 2 * bytes).await?;
                let mut chunks = if wanted == 0 { Vec::new() } else { self.read_chunks(id, from, bytes).await? };
                let again = self.latest_turn(id).await?.filter(|again| again.number == turn.number);
                // If another writer has begun the turn again, the chunks belong to that writer.
                let Some(again) = again else { continue };
                // The turn may have been closed, and its chunks deleted, in the meantime.
                let has_lost_chunks = chunks.len() < wanted && again.status != TurnStatus::Open;
                chunks.truncate(wanted);
                if has_lost_chunks || chunks.len() == wanted {
                    let turn = if has_lost_chunks { again } else { turn };
                    return Ok(GetTurn::Found(Box::new(TurnChunks { turn, chunks, memory })));
                }
            }
            Err(StoreError::Busy("the session's turns change faster than they can be read".to_owned()))
        })
        .await
    }

    /// The chunks of the latest turn from number `from` on, which have about this many `bytes` together.
    async fn read_chunks(&self, id: SessionId, from: u64, bytes: usize) -> Result<Vec<Bytes>, StoreError> {
        let command = ReadCommand::list(self.keys.chunks(id), i64::try_from(from).unwrap_or(i64::MAX), -1);
        if bytes <= SMALL_RESPONSE_BYTES {
            return self.read_command(command).await?.texts("get_turn");
        }
        // A large reply would delay the other reads on the connection.
        let _permit = self.large_reads.acquire().await;
        self.topology.read_by_client(&command).await?.texts("get_turn")
    }

    /// The open turn of a session that has been read, unless its lease has expired.
    pub(crate) async fn open_turn(&self, session: &Session, now: Timestamp) -> Result<Option<Box<Turn>>, StoreError> {
        if session.open_turn.as_ref().is_none_or(|turn| turn.is_lost(now)) {
            return Ok(None);
        }
        Ok(self.latest_turn(session.session_id).await?.filter(|turn| turn.status == TurnStatus::Open))
    }

    /// The turn that began last.
    pub(crate) async fn latest_turn(&self, id: SessionId) -> Result<Option<Box<Turn>>, StoreError> {
        Ok(self.stored_turn(id).await?.map(|(turn, _)| turn))
    }

    /// The turn with this number, if it was closed before the latest turn began and is still recorded.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub(crate) async fn earlier_turn(&self, id: SessionId, number: u64) -> Result<Option<Box<Turn>>, StoreError> {
        let Some((_, earlier)) = self.stored_turn(id).await? else { return Ok(None) };
        let turn = earlier_turn_since(id, &earlier, number)?.filter(|turn| turn.number == Some(number));
        let Some(turn) = turn else { return Ok(None) };
        self.recorded_turn(id, &escaped_text(&turn.turn_id), &earlier).await
    }

    /// The turn that began last, and the lines of the turns before it.
    pub(in crate::store::operations) async fn stored_turn(
        &self,
        id: SessionId,
    ) -> Result<Option<(Box<Turn>, String)>, StoreError> {
        let texts = self.read_command(ReadCommand::hash(self.keys.turn(id))).await?.texts("get_turn")?;
        if texts.is_empty() {
            return Ok(None);
        }
        let mut fields = Reply::of_texts("get_turn", texts).named_values()?;
        let earlier = fields.remove(turn_field::EARLIER).unwrap_or_default();
        Ok(Some((turn_of(id, fields)?, earlier)))
    }

    /// A closed turn: the latest one, an earlier one that is recorded, or one that is known from its message.
    pub(super) async fn closed_turn(
        &self,
        id: SessionId,
        escaped_turn_id: &str,
    ) -> Result<Option<Box<Turn>>, StoreError> {
        let Some((turn, earlier)) = self.stored_turn(id).await? else {
            return self.recorded_turn(id, escaped_turn_id, "").await;
        };
        if turn.status != TurnStatus::Open && escaped_text(&turn.turn_id) == escaped_turn_id {
            return Ok(Some(turn));
        }
        self.recorded_turn(id, escaped_turn_id, &earlier).await
    }

    async fn recorded_turn(
        &self,
        id: SessionId,
        escaped_turn_id: &str,
        earlier: &str,
    ) -> Result<Option<Box<Turn>>, StoreError> {
        let is_named = |line: &&str| line.split('\t').next() == Some(escaped_turn_id);
        if let Some(line) = earlier.split('\n').find(is_named) {
            let mut turn = earlier_turn_of(id, line)?;
            if turn.message_seq.is_some()
                && let Some(message) = self.turn_of_message(id, escaped_turn_id).await?
            {
                turn.metadata = message.metadata;
            }
            return Ok(Some(turn));
        }
        self.turn_of_message(id, escaped_turn_id).await
    }

    /// The turn as far as its message records it.
    async fn turn_of_message(&self, id: SessionId, escaped_turn_id: &str) -> Result<Option<Box<Turn>>, StoreError> {
        let Some(turn_id) = super::unescaped(escaped_turn_id).and_then(|turn_id| Identifier::new(turn_id).ok()) else {
            return Ok(None);
        };
        let message = MessageRef { session_id: id, message_id: turn_id };
        let owner = ResponseOwner::default();
        // At time 0, every readable session counts as readable.
        let now = Timestamp(0);
        let found = Box::pin(self.find_message(&message, &TenantScope::Everything, owner, now)).await?;
        let GetMessage::Found(stored, _memory) = found else { return Ok(None) };
        let members = stored.members().ok_or(super::MALFORMED)?;
        let status = members.finish_reason.as_deref().and_then(TurnStatus::from_word);
        Ok(Some(Box::new(Turn {
            turn_id: message.message_id.to_string(),
            session_id: id,
            number: None,
            since: None,
            writer: None,
            role: Role::from_word(&members.role).ok_or(super::MALFORMED)?,
            metadata: members.metadata.get().to_owned(),
            status: status.unwrap_or(TurnStatus::Completed),
            next_chunk: None,
            chunk_bytes: 0,
            after_seq: None,
            cancel_requested: status == Some(TurnStatus::Cancelled),
            lease_until: None,
            started_at: None,
            ended_at: None,
            error: None,
            message_seq: Some(stored.seq),
            ended_as: status.map(|status| status.as_str().to_owned()),
        })))
    }
}
