//! The position of a stream in a session: what the stream has sent so far.
//!
//! The position consists of numbers without gaps, which the store assigns anyway. Hashes detect that the store has
//! other content under the same numbers: a failover may have lost it, and new content may have been written since.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::event::Event;
use crate::session::{MessageJson, Session, Status, Turn, TurnStatus};
use crate::store::StreamSnapshot;

/// The version of the text of a cursor.
const CURSOR_VERSION: &str = "1";
/// The largest number of a cursor: that of a JavaScript number without loss. No session has as many messages.
const NUMBER_MAX: u64 = (1 << 53) - 1;
/// Approximate bytes of chunks in one event.
const CHUNK_EVENT_BYTES: usize = 32 * 1024;

/// Why a stream cannot continue from its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResetReason {
    /// The cursor is invalid, or is beyond the newest message.
    UnknownCursor,
    /// The next message is no longer stored, or too much has been written since.
    TooFar,
    /// The store has other content than what was sent.
    Diverged,
    /// Messages that were sent have been changed.
    Changed,
}

impl ResetReason {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::UnknownCursor => "unknown_cursor",
            Self::TooFar => "too_far",
            Self::Diverged => "diverged",
            Self::Changed => "changed",
        }
    }
}

/// Whether a stream has sent everything that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Everything was sent.
    UpToDate,
    /// There is more to read.
    Behind,
}

/// The part of the position that a cursor keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Hash of the session's id and start.
    session: u32,
    pub(super) seq: u64,
    /// Hash of the message at `seq`; 0 if unknown.
    message: u32,
    /// The number of the turn; 0 if there was none.
    turn: u64,
    /// Hash of the turn's id and start. A new writer does not change it.
    turn_identity: u32,
    next_chunk: u64,
    /// Hash of the last chunk; 0 if unknown.
    chunk: u32,
    /// Number of changes of messages.
    pub(super) changes: u64,
}

/// The state of a turn that a stream has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TurnState {
    number: Option<u64>,
    status: TurnStatus,
    cancel_requested: bool,
    message_seq: Option<u64>,
}

/// The position of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) cursor: Cursor,
    /// Whether the stream has not yet sent everything that was stored when it started.
    is_starting: bool,
    /// The version and the status that were sent last.
    session: Option<(u64, Status)>,
    /// The state of the turn that was sent last.
    turn: Option<TurnState>,
}

impl Cursor {
    /// The position after this message of a session, before any turn.
    pub(super) fn after(session: &Session, seq: u64) -> Self {
        let identity = format!("{} {}", session.session_id, session.created_at.0);
        Self {
            session: hash(identity.as_bytes()),
            seq,
            message: 0,
            turn: 0,
            turn_identity: 0,
            next_chunk: 0,
            chunk: 0,
            changes: session.changed_messages.count,
        }
    }

    /// The text of an event's id.
    pub(super) fn to_text(self) -> String {
        let Self { session, seq, message, turn, turn_identity, next_chunk, chunk, changes } = self;
        format!(
            "{CURSOR_VERSION}.{session:x}.{seq}.{message:x}.{turn}.{turn_identity:x}.{next_chunk}.{chunk:x}.{changes}"
        )
    }

    /// Parses what [`Self::to_text`] wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let parts: Vec<_> = text.split('.').collect();
        let [CURSOR_VERSION, session, seq, message, turn, turn_identity, next_chunk, chunk, changes] = parts[..] else {
            return None;
        };
        let hash = |text| u32::from_str_radix(text, 16).ok();
        let number = |text: &str| text.parse().ok().filter(|number| *number <= NUMBER_MAX);
        let cursor = Self {
            session: hash(session)?,
            seq: number(seq)?,
            message: hash(message)?,
            turn: number(turn)?,
            turn_identity: hash(turn_identity)?,
            next_chunk: number(next_chunk)?,
            chunk: hash(chunk)?,
            changes: number(changes)?,
        };
        (cursor.to_text() == text).then_some(cursor)
    }

    /// Whether this is the turn of the position. Its writer may have changed.
    fn is_in(&self, turn: &Turn) -> bool {
        self.turn != 0 && self.turn_identity == identity_of(turn)
    }
}

impl Position {
    /// The position of a stream that starts.
    pub(super) fn start(cursor: Cursor) -> Self {
        Self { cursor, is_starting: true, session: None, turn: None }
    }

    /// The number of the first chunk of a turn to read: the last chunk that was sent, which is compared.
    pub(super) fn first_chunk(&self, turn: &Turn) -> u64 {
        if self.cursor.is_in(turn) { self.cursor.next_chunk.saturating_sub(1) } else { 0 }
    }

    /// Advances to a snapshot, and adds the events in between. The snapshot may start before this position.
    ///
    /// # Errors
    /// If the stream cannot continue from this position. Then no events are added.
    pub(super) fn advance(
        &mut self,
        snapshot: &StreamSnapshot,
        events: &mut Vec<Event>,
    ) -> Result<Progress, ResetReason> {
        self.compare(snapshot)?;
        let session = &snapshot.session;
        let state = Some((session.version, session.status));
        if self.session != state {
            self.session = state;
            events.push(Event::session(session, self));
        }
        let turn = snapshot.turn.as_deref();
        // In a live stream, the chunks of a turn come before the message that the turn becomes.
        let continues = turn
            .is_some_and(|turn| !self.is_starting && self.cursor.is_in(turn) && turn.number == Some(self.cursor.turn));
        if let Some(turn) = turn.filter(|_| continues)
            && self.send_chunks(turn, snapshot, events) == Progress::Behind
        {
            return Ok(Progress::Behind);
        }
        let known_seq = self.cursor.seq;
        for message in &snapshot.contents.messages {
            if message.seq == self.cursor.seq + 1 {
                self.cursor.seq = message.seq;
                self.cursor.message = identity_of_message(message);
                events.push(Event::message(message, self));
            }
        }
        if self.cursor.seq < session.message_count {
            return Ok(Progress::Behind);
        }
        self.send_changes(snapshot, known_seq, events);
        if let Some(turn) = turn {
            self.send_turn(turn, snapshot, events);
            if turn.status != TurnStatus::Open && !self.is_starting {
                // The message has the content of the chunks.
                self.cursor.next_chunk = turn.next_chunk.unwrap_or_default();
            } else if self.send_chunks(turn, snapshot, events) == Progress::Behind {
                return Ok(Progress::Behind);
            }
        }
        if std::mem::take(&mut self.is_starting) {
            events.push(Event::ready(self));
        }
        Ok(Progress::UpToDate)
    }

    /// Fails if the store has other content than what was sent.
    fn compare(&self, snapshot: &StreamSnapshot) -> Result<(), ResetReason> {
        let (cursor, session) = (&self.cursor, &snapshot.session);
        if Cursor::after(session, 0).session != cursor.session
            || cursor.seq > session.message_count
            || cursor.turn > session.turn_number.unwrap_or_default()
            || cursor.changes > session.changed_messages.count
        {
            return Err(ResetReason::Diverged);
        }
        if cursor.seq + 1 < session.oldest_seq {
            return Err(ResetReason::TooFar);
        }
        let known = snapshot.contents.messages.iter().find(|message| message.seq == cursor.seq);
        if cursor.message != 0 && known.is_some_and(|message| identity_of_message(message) != cursor.message) {
            return Err(ResetReason::Diverged);
        }
        if session.changed_messages.since(cursor.changes).is_none() {
            return Err(ResetReason::Changed);
        }
        let Some(turn) = snapshot.turn.as_deref() else {
            return if cursor.turn == 0 { Ok(()) } else { Err(ResetReason::Diverged) };
        };
        let is_in = cursor.is_in(turn);
        if turn.number == Some(cursor.turn) && !is_in {
            return Err(ResetReason::Diverged);
        }
        let last = cursor.next_chunk.checked_sub(1).and_then(|last| last.checked_sub(snapshot.contents.first_chunk));
        let last = last.and_then(|index| snapshot.contents.chunks.get(usize::try_from(index).ok()?));
        let has_other_chunk = cursor.chunk != 0 && last.is_some_and(|chunk| hash(chunk) != cursor.chunk);
        if is_in && (cursor.next_chunk > turn.next_chunk.unwrap_or_default() || has_other_chunk) {
            return Err(ResetReason::Diverged);
        }
        Ok(())
    }

    /// Adds the messages that were sent before and have been changed since.
    fn send_changes(&mut self, snapshot: &StreamSnapshot, known_seq: u64, events: &mut Vec<Event>) {
        let changed = &snapshot.session.changed_messages;
        let mut due: Vec<_> = changed.since(self.cursor.changes).unwrap_or_default().to_vec();
        due.sort_unstable();
        due.dedup();
        self.cursor.changes = changed.count;
        for seq in due.into_iter().filter(|seq| *seq <= known_seq) {
            if let Some(message) = snapshot.contents.changed.get(&seq) {
                events.push(Event::changed(message, self));
            }
        }
    }

    /// Adds the turn if its state is new, after the end of the previous turn.
    fn send_turn(&mut self, turn: &Turn, snapshot: &StreamSnapshot, events: &mut Vec<Event>) {
        let state = TurnState {
            number: turn.number,
            status: turn.status,
            cancel_requested: turn.cancel_requested,
            message_seq: turn.message_seq,
        };
        if self.turn == Some(state) {
            return;
        }
        let is_other = self.cursor.turn != 0 && !self.cursor.is_in(turn);
        let is_closed_known = self.turn.is_some_and(|turn| turn.status != TurnStatus::Open);
        let closed = if is_other && !is_closed_known { snapshot.closed_turn(self.cursor.turn) } else { None };
        if let Some(closed) = &closed {
            events.push(Event::turn(closed, self));
        }
        if !self.cursor.is_in(turn) {
            (self.cursor.next_chunk, self.cursor.chunk) = (0, 0);
        }
        self.cursor.turn = turn.number.unwrap_or_default();
        self.cursor.turn_identity = identity_of(turn);
        self.turn = Some(state);
        // The end of the previous turn is unknown. A client discards the text of that turn when it receives a turn
        // without chunks. The chunks follow.
        let is_first_known = is_other && !is_closed_known && closed.is_none();
        events.push(if is_first_known && turn.next_chunk != Some(0) {
            Event::turn(&Turn { next_chunk: Some(0), ..turn.clone() }, self)
        } else {
            Event::turn(turn, self)
        });
    }

    /// Adds the chunks that were not sent yet.
    fn send_chunks(&mut self, turn: &Turn, snapshot: &StreamSnapshot, events: &mut Vec<Event>) -> Progress {
        let stored = turn.next_chunk.unwrap_or_default();
        if self.cursor.next_chunk >= stored {
            return Progress::UpToDate;
        }
        let Some(known) = self.cursor.next_chunk.checked_sub(snapshot.contents.first_chunk) else {
            return Progress::Behind;
        };
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let mut due = snapshot.contents.chunks.get(known..).unwrap_or_default();
        while let Some(first) = due.first() {
            let mut bytes = 0;
            let fits = |chunk: &&Bytes| {
                let before = bytes;
                bytes += chunk.len();
                before < CHUNK_EVENT_BYTES
            };
            let (now, later) = due.split_at(due.iter().take_while(fits).count());
            let number = self.cursor.next_chunk;
            self.cursor.next_chunk += u64::try_from(now.len()).unwrap_or_default();
            self.cursor.chunk = hash(now.last().unwrap_or(first));
            events.push(Event::chunk(turn, number, now, self));
            due = later;
        }
        if !snapshot.contents.has_all_chunks {
            return Progress::Behind;
        }
        // The chunks of a closed turn may be deleted.
        self.cursor.next_chunk = stored;
        Progress::UpToDate
    }
}

/// A hash that is not 0.
fn hash(bytes: &[u8]) -> u32 {
    let [.., a, b, c, d] = xxh3_64(bytes).to_be_bytes();
    u32::from_be_bytes([a, b, c, d]).max(1)
}

/// Hash of the parts of a message that changes and redactions keep.
fn identity_of_message(message: &MessageJson) -> u32 {
    let json = message.as_bytes();
    let role = b"\",\"role\":\"";
    let end = json.windows(role.len()).position(|bytes| bytes == role).unwrap_or(json.len());
    hash(&json[..end])
}

fn identity_of(turn: &Turn) -> u32 {
    let (started, since) = (turn.started_at.map_or(0, |started| started.0), turn.since.unwrap_or_default());
    hash(format!("{started} {since} {}", turn.turn_id).as_bytes())
}

#[cfg(test)]
mod tests;
