//! Reads what an event stream has not sent yet.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;

use super::instrumented;
use super::turns::earlier_turn_since;
use crate::metrics::Operation;
use crate::session::{MessageJson, Session, SessionId, TenantScope, Timestamp, Turn, TurnStatus};
use crate::store::redis::read_command::ReadCommand;
use crate::store::{SessionStore, StoreError};

/// Approximate bytes of messages, and of chunks, in one read. A stream keeps them in memory until its client takes
/// them.
const PAGE_BYTES: usize = 32 * 1024;

/// What the stream has sent, which determines what to read.
pub struct StreamWants<'a> {
    /// `seq` of the last message that was sent. It is read too, so that it can be compared.
    pub last_seq: u64,
    /// Whether to compare that message even if there is no newer one.
    pub compares: bool,
    /// The number of the first chunk to read of this turn.
    pub first_chunk: &'a (dyn Fn(&Turn) -> u64 + Sync),
    /// The number of changes of messages that the stream knows.
    pub changes: u64,
    /// Whether to close the open turn if its lease has expired.
    pub closes_lost_turn: bool,
}

/// A session with its latest turn at one moment, and a page of its messages and chunks.
#[derive(Debug)]
pub struct StreamSnapshot {
    /// The session.
    pub session: Box<Session>,
    /// The turn that began last.
    pub turn: Option<Box<Turn>>,
    /// The lines of the field `earlier`: the turns before it.
    pub earlier_turns: String,
    /// The messages and chunks that the stream may lack.
    pub contents: StreamContents,
}

/// A page of the messages and chunks of a session.
#[derive(Debug)]
pub struct StreamContents {
    /// Messages in ascending `seq` without gaps.
    pub messages: Vec<MessageJson>,
    /// Whether these include the newest message.
    pub has_all_messages: bool,
    /// The number of the first one of `chunks`.
    pub first_chunk: u64,
    /// Chunks of the turn without gaps, as escaped JSON text without quotes.
    pub chunks: Vec<Bytes>,
    /// Whether these include the newest stored chunk.
    pub has_all_chunks: bool,
    /// The changed messages, by `seq`, if they are still stored.
    pub changed: BTreeMap<u64, MessageJson>,
}

impl StreamSnapshot {
    /// The closed turn that had this number, or had it before it was taken over, unless it is the latest turn. Its
    /// metadata comes from its message, if the snapshot contains that.
    #[must_use]
    pub fn closed_turn(&self, number: u64) -> Option<Box<Turn>> {
        let mut turn = earlier_turn_since(self.session.session_id, &self.earlier_turns, number).ok().flatten()?;
        let message = self.contents.messages.iter().find(|message| Some(message.seq) == turn.message_seq);
        if let Some(members) = message.and_then(MessageJson::members) {
            members.metadata.get().clone_into(&mut turn.metadata);
        }
        Some(turn)
    }
}

impl SessionStore {
    /// Reads what a stream of this session needs, or `None` if the session does not exist.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn read_stream(
        &self,
        id: SessionId,
        wants: &StreamWants<'_>,
        now: Timestamp,
    ) -> Result<Option<StreamSnapshot>, StoreError> {
        instrumented(Operation::ReadStream, async move {
            let started = Instant::now();
            let mut seen = None;
            while started.elapsed() < self.topology.retry_budget() {
                let Some(session) = self.get_in_scope(id, &TenantScope::Everything, now).await? else {
                    return Ok(None);
                };
                // A failure to close the turn must not fail the read.
                if wants.closes_lost_turn && matches!(self.close_lost_turn(&session, now).await, Ok(true)) {
                    continue;
                }
                let stored = if session.turn_number.is_some() { self.stored_turn(id).await? } else { None };
                let (turn, earlier_turns) = stored.map_or((None, String::new()), |(turn, lines)| (Some(turn), lines));
                let read = (session, turn);
                let is_as_before = seen.as_ref() == Some(&read);
                // A second read with the same result is accepted: the session and the turn are stable.
                if is_consistent(&read.0, read.1.as_deref()) || is_as_before {
                    if let Some(contents) = self.contents(&read.0, read.1.as_deref(), wants).await? {
                        let (session, turn) = read;
                        return Ok(Some(StreamSnapshot { session, turn, earlier_turns, contents }));
                    }
                    if is_as_before {
                        let problem = "the session lacks messages or chunks that it should have";
                        return Err(StoreError::Reply { operation: "read_stream", problem });
                    }
                }
                // Another turn began, or messages were trimmed, since the session was read.
                seen = Some(read);
            }
            Err(StoreError::Busy("the session changes faster than it can be read".to_owned()))
        })
        .await
    }

    /// Whether the messages from `first` on have more than `bytes_max` bytes.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn has_more_message_bytes(
        &self,
        session: &Session,
        first: u64,
        bytes_max: usize,
    ) -> Result<bool, StoreError> {
        let count =
            |first: u64| usize::try_from((session.message_count + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        let (mut first, mut room) = (first, bytes_max);
        while session.message_bytes_max(count(first)) > room {
            let last = page_end(session, first);
            let Some(messages) = self.read_piece(session, first, last).await? else { return Ok(false) };
            let bytes = messages.iter().map(MessageJson::json_bytes).sum();
            let Some(left) = room.checked_sub(bytes) else { return Ok(true) };
            (first, room) = (last + 1, left);
        }
        Ok(false)
    }

    /// Reads the messages and chunks; `None` if any of them no longer exists.
    async fn contents(
        &self,
        session: &Session,
        turn: Option<&Turn>,
        wants: &StreamWants<'_>,
    ) -> Result<Option<StreamContents>, StoreError> {
        let (mut first_chunk, mut chunks, mut has_all_chunks) = (0, Vec::new(), true);
        if let Some(turn) = turn {
            first_chunk = (wants.first_chunk)(turn);
            match self.page_of_chunks(turn, first_chunk).await? {
                Some(page) => (chunks, has_all_chunks) = page,
                None => return Ok(None),
            }
        }
        let (mut messages, mut has_all_messages) = (Vec::new(), true);
        let is_kept = wants.last_seq + 1 >= session.oldest_seq;
        if is_kept && (wants.last_seq < session.message_count || (wants.compares && wants.last_seq > 0)) {
            let first = wants.last_seq.max(session.oldest_seq);
            if first <= session.message_count {
                let last = page_end(session, wants.last_seq + 1).max(first);
                match self.read_piece(session, first, last).await? {
                    Some(page) => messages = page,
                    None => return Ok(None),
                }
                has_all_messages = last == session.message_count;
            }
        }
        let mut changed = BTreeMap::new();
        for &seq in session.changed_messages.since(wants.changes).unwrap_or_default() {
            if seq >= session.oldest_seq
                && let Some(message) = self.read_piece(session, seq, seq).await?.and_then(|mut piece| piece.pop())
            {
                changed.insert(seq, message);
            }
        }
        Ok(Some(StreamContents { messages, has_all_messages, first_chunk, chunks, has_all_chunks, changed }))
    }

    /// Chunks of the latest turn from number `first` on, and whether they are all. `None` if another turn has begun, or
    /// if the turn was closed and its chunks were deleted in the meantime.
    async fn page_of_chunks(&self, turn: &Turn, first: u64) -> Result<Option<(Vec<Bytes>, bool)>, StoreError> {
        let stored = turn.next_chunk.unwrap_or_default();
        let wanted = stored.saturating_sub(first);
        if wanted == 0 {
            return Ok(Some((Vec::new(), true)));
        }
        let average = turn.chunk_bytes / usize::try_from(stored).unwrap_or(usize::MAX).max(1);
        // The stream has already sent the first chunk.
        let page = u64::try_from(PAGE_BYTES / average.max(1)).unwrap_or(u64::MAX).max(1).saturating_add(1).min(wanted);
        let index = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let command = ReadCommand::list(self.keys.chunks(turn.session_id), index(first), index(first + page - 1));
        let chunks = self.topology.read(command).await?.texts("read_stream")?;
        // After the chunks, because they belong to another turn or writer if one has begun. Concurrent reads may swap
        // their order, for example while the slot moves.
        let again = self.latest_turn(turn.session_id).await?;
        let Some(again) = again.filter(|again| again.number == turn.number) else { return Ok(None) };
        let has_all = chunks.len() as u64 == page;
        if !has_all && (turn.status == TurnStatus::Open || again.status != turn.status) {
            return Ok(None);
        }
        Ok(Some((chunks, !has_all || page == wanted)))
    }
}

/// `seq` of the last message of a page that begins with `first`.
fn page_end(session: &Session, first: u64) -> u64 {
    let count = u64::try_from(PAGE_BYTES / session.largest_message_bytes.max(1)).unwrap_or(u64::MAX).max(1);
    first.saturating_add(count - 1).min(session.message_count)
}

/// Whether the session and its latest turn are consistent, as if read at the same moment.
fn is_consistent(session: &Session, turn: Option<&Turn>) -> bool {
    let Some(turn) = turn else { return true };
    turn.number == session.turn_number
        && (turn.status == TurnStatus::Open) == session.open_turn.is_some()
        && turn.message_seq.is_none_or(|seq| seq <= session.message_count)
}
