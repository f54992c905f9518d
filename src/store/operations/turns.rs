//! Turns: begin, write, end, cancel and read them (docs/api.md, "Turns").

mod append_chunks;
mod begin;
mod cancel;
mod end;
mod read;

use std::collections::HashMap;

pub use self::append_chunks::{AppendChunks, ChunksAppended, NewChunks};
pub use self::begin::{BeginTurn, NewTurn};
pub use self::cancel::CancelTurn;
pub use self::end::{EndRequest, EndTurn};
pub use self::read::{GetTurn, TurnChunks, TurnName};
use crate::session::{
    EndStatus, OpenTurn, Role, Session, SessionId, SessionPatch, Status, TenantScope, Timestamp, Turn, TurnStatus,
};
use crate::store::keys::turn_field;
use crate::store::{SessionStore, StoreError, VersionCondition};

/// Why a call of a writer, or a cancel, has no effect.
#[derive(Debug)]
pub enum NotOpen {
    /// Another writer has the turn.
    Taken,
    /// The turn is closed.
    Closed(Box<Turn>),
    /// The session has had no turn with this id, or the turn is no longer recorded.
    TurnMissing,
    /// The session was deleted in the meantime.
    SessionMissing,
}

impl SessionStore {
    /// The keys of the scripts that may close a turn.
    fn turn_keys(&self, id: SessionId) -> Vec<String> {
        vec![
            self.keys.session(id),
            self.keys.messages(id),
            self.keys.message_ids(id),
            self.keys.turn(id),
            self.keys.chunks(id),
        ]
    }

    /// The keys of the session's latest turn, if it has had one.
    pub(super) fn turn_keys_of(&self, session: &Session) -> Vec<String> {
        let id = session.session_id;
        session.turn_number.map(|_| vec![self.keys.turn(id), self.keys.chunks(id)]).unwrap_or_default()
    }

    /// Whether the session still exists. Call this after its turns have been read, because a deletion removes them too.
    async fn remains(&self, id: SessionId, now: Timestamp) -> Result<bool, StoreError> {
        Ok(self.get_in_scope(id, &TenantScope::Everything, now).await?.is_some())
    }

    /// Closes the session's open turn if its lease has expired. Returns whether it did.
    pub(super) async fn close_lost_turn(&self, session: &Session, now: Timestamp) -> Result<bool, StoreError> {
        let is_lost = |turn: &&OpenTurn| turn.is_lost(now);
        let (Some(turn), Some(number)) = (session.open_turn.as_ref().filter(is_lost), session.turn_number) else {
            return Ok(false);
        };
        let lost = end::CloseArgs { status: TurnStatus::Lost.as_str(), ..end::CloseArgs::default() };
        // Boxed to keep the futures of the callers small.
        let reply = Box::pin(self.run_end_turn(session.session_id, &turn.escaped_id, number, &lost, now)).await?;
        Ok(matches!(reply, end::CloseReply::Closed(_)))
    }

    /// The session after its open turn was closed, if the lease of that has expired.
    pub(super) async fn with_lost_turn_closed(
        &self,
        session: Box<Session>,
        now: Timestamp,
    ) -> Result<Box<Session>, StoreError> {
        let is_lost = session.open_turn.as_ref().is_some_and(|turn| turn.is_lost(now));
        // A failure to close the turn must not fail the read: the session is then shown without the turn. If the turn
        // is not closed by this call, another call has closed it, or its writer has renewed the lease.
        if !is_lost || self.close_lost_turn(&session, now).await.is_err() {
            return Ok(session);
        }
        Ok(self.get_in_scope(session.session_id, &TenantScope::Everything, now).await?.unwrap_or(session))
    }

    /// When other callers may close turns whose lease expired during an outage of the store that ended at `time`: their
    /// writers get one more lease.
    pub(crate) fn lost_turns_closable_at(&self, time: Timestamp) -> Timestamp {
        OpenTurn::lost_after(Timestamp(time.0.saturating_add(self.config.turn_lease_ms())))
    }

    /// Records the activity of a writer, if the session is active and a write is due. The writer's call has already
    /// been stored. After an error, the writer's next call records it; after its last call, none does.
    async fn record_activity(&self, session: &Session, now: Timestamp) {
        if session.status != Status::Active || !self.config.lifecycle.is_touch_due(session, now) {
            return;
        }
        let (heartbeat, everything) = (SessionPatch::heartbeat(), TenantScope::Everything);
        let recorded = self.update(session.session_id, &heartbeat, &VersionCondition::Any, &everything, now);
        // Boxed to keep the future of every call small.
        let _ = Box::pin(recorded).await;
    }
}

/// Parses the hash of a turn.
fn turn_of(session_id: SessionId, mut fields: HashMap<String, String>) -> Result<Box<Turn>, StoreError> {
    let mut take = |name: &str| fields.remove(name);
    Ok(Box::new(Turn {
        turn_id: take(turn_field::TURN_ID).and_then(|text| unescaped(&text)).ok_or(MALFORMED)?,
        session_id,
        number: number_of(take(turn_field::NUMBER))?,
        since: number_of(take(turn_field::SINCE))?,
        writer: take(turn_field::WRITER).and_then(|text| unescaped(&text)),
        role: take(turn_field::ROLE).and_then(|word| Role::from_word(&word)).ok_or(MALFORMED)?,
        metadata: take(turn_field::METADATA).ok_or(MALFORMED)?,
        status: take(turn_field::STATUS).and_then(|word| TurnStatus::from_word(&word)).ok_or(MALFORMED)?,
        next_chunk: number_of(take(turn_field::NEXT_CHUNK))?,
        chunk_bytes: number_of(take(turn_field::CHUNK_BYTES))?.and_then(|bytes| bytes.try_into().ok()).unwrap_or(0),
        after_seq: number_of(take(turn_field::AFTER_SEQ))?,
        cancel_requested: take(turn_field::CANCEL_UNTIL).is_some(),
        lease_until: time_of(take(turn_field::LEASE_UNTIL))?,
        started_at: time_of(take(turn_field::STARTED_AT))?,
        ended_at: time_of(take(turn_field::ENDED_AT))?,
        error: take(turn_field::ERROR),
        message_seq: number_of(take(turn_field::MESSAGE_SEQ))?,
        ended_as: take(turn_field::ENDED_AS),
    }))
}

/// Parses a closed turn from its line of the field `earlier` (`lua/turn.lua`).
fn earlier_turn_of(session_id: SessionId, line: &str) -> Result<Box<Turn>, StoreError> {
    let fields: Vec<_> = line.split('\t').collect();
    let [turn_id, number, writer, role, status, ended_as, next_chunk, after_seq, lease, started, ended, seq] =
        fields.as_slice()
    else {
        return Err(MALFORMED);
    };
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let status = TurnStatus::from_word(status).ok_or(MALFORMED)?;
    Ok(Box::new(Turn {
        turn_id: unescaped(turn_id).ok_or(MALFORMED)?,
        session_id,
        number: number_of(text(number))?,
        since: None,
        writer: unescaped(writer),
        role: Role::from_word(role).ok_or(MALFORMED)?,
        metadata: "{}".to_owned(),
        status,
        next_chunk: number_of(text(next_chunk))?,
        chunk_bytes: 0,
        after_seq: number_of(text(after_seq))?,
        cancel_requested: status == TurnStatus::Cancelled,
        lease_until: time_of(text(lease))?,
        started_at: time_of(text(started))?,
        ended_at: time_of(text(ended))?,
        error: None,
        message_seq: number_of(text(seq))?,
        ended_as: text(ended_as),
    }))
}

/// Number of closed turns that a session remembers besides its latest turn: one less than `TURNS_KEPT` of
/// `lua/turn.lua`.
const EARLIER_TURNS_KEPT: usize = 7;

/// The closed turn that had this number, or had it before another writer took it over. `earlier` are the lines of the
/// closed turns, oldest first. `None` if the turn may have been forgotten.
pub(super) fn earlier_turn_since(
    session_id: SessionId,
    earlier: &str,
    number: u64,
) -> Result<Option<Box<Turn>>, StoreError> {
    let lines = earlier.lines().filter(|line| !line.is_empty());
    let mut turns: Vec<_> = lines.map(|line| earlier_turn_of(session_id, line)).collect::<Result<_, _>>()?;
    let Some(index) = turns.iter().position(|turn| turn.number.is_some_and(|last| last >= number)) else {
        return Ok(None);
    };
    // The turns before the first line are forgotten, if there were any.
    let is_certain = index > 0 || turns[0].number == Some(number) || turns.len() < EARLIER_TURNS_KEPT;
    Ok(is_certain.then(|| turns.swap_remove(index)))
}

const MALFORMED: StoreError = StoreError::Reply { operation: "turn", problem: "a field of the turn is malformed" };

fn number_of(text: Option<String>) -> Result<Option<u64>, StoreError> {
    text.map(|text| text.parse().map_err(|_| MALFORMED)).transpose()
}

fn time_of(text: Option<String>) -> Result<Option<Timestamp>, StoreError> {
    text.map(|text| text.parse().map(Timestamp).map_err(|_| MALFORMED)).transpose()
}

/// Decodes a JSON string that has no quotes.
fn unescaped(text: &str) -> Option<String> {
    serde_json::from_str(&format!("\"{text}\"")).ok()
}

impl EndStatus {
    /// Whether a turn was ended with this status by its writer.
    fn is_of(self, turn: &Turn) -> bool {
        turn.ended_as.as_deref() == Some(self.as_str())
    }
}
