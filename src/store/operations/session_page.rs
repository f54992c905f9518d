//! Pages of sessions by keyset cursors. The cost depends on the size of the page, not of the list.

use futures_util::future::try_join_all;

use crate::session::{Identifier, Include, Session, SessionId, SessionView, TITLE_CHARS_MAX, TenantScope, Timestamp};
use crate::store::redis::read_command::ReadCommand;
use crate::store::reply::Reply;
use crate::store::response_memory::{MemoryPermit, PAGE_BYTES_MAX, PIECE_BYTES, ResponseOwner, SMALL_RESPONSE_BYTES};
use crate::store::{SessionStore, StoreError};

/// Maximum number of reads to fill a page that has gaps.
pub(super) const PAGE_READS_MAX: u32 = 4;
/// Minimum number of entries in a further read of a history with gaps: entries of sessions that no longer exist are
/// next to each other.
pub(super) const REFILL_ENTRIES_MIN: usize = 100;
/// Maximum bytes of a session's fields except its metadata: five identifiers and a title, with at most four bytes per
/// character, and the fields that do not depend on the client.
const SESSION_BYTES_BESIDE_METADATA_MAX: usize = 5 * 4 * Identifier::CHARS_MAX + 4 * TITLE_CHARS_MAX + 512;

/// A position in a list: the entry that a page ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The list's sort key: Unix time in milliseconds.
    pub score: i64,
    /// The entry.
    pub session_id: SessionId,
}

/// The page of a list that a caller requests.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    /// Maximum number of sessions on the page.
    pub limit: usize,
    /// The position to continue from; `None` for the first page.
    pub after: Option<Position>,
    /// What to add to each session.
    pub include: Include,
    /// The owner of the response.
    pub owner: ResponseOwner,
}

/// Sessions in the list's order, and where the next page starts.
#[derive(Debug)]
pub struct SessionPage {
    /// In the list's order.
    pub sessions: Vec<SessionView>,
    /// The position to continue from, if there may be more sessions.
    pub next: Option<Position>,
    /// The memory of a large page. Keep it until the response is sent.
    pub memory: Option<MemoryPermit>,
}

/// A page that is being filled.
pub(super) struct PageBuilder {
    request: PageRequest,
    sessions: Vec<SessionView>,
    bytes: usize,
    memory: Option<MemoryPermit>,
    /// The last entry that was examined.
    pub(super) after: Option<Position>,
}

impl PageBuilder {
    pub(super) fn new(request: PageRequest) -> Self {
        Self { request, sessions: Vec::with_capacity(request.limit), bytes: 0, memory: None, after: request.after }
    }

    /// Adds the sessions of these entries that exist. Returns whether an existing session did not fit: only such a
    /// session makes a further page.
    fn fill(&mut self, entries: &[Position], read: Vec<Option<SessionView>>) -> bool {
        for (entry, session) in entries.iter().zip(read) {
            if let Some(session) = session {
                let bytes = self.bytes + session.json_bytes();
                if self.sessions.len() == self.request.limit || (!self.sessions.is_empty() && bytes > PAGE_BYTES_MAX) {
                    return true;
                }
                self.bytes = bytes;
                self.sessions.push(session);
            }
            self.after = Some(*entry);
        }
        false
    }

    pub(super) fn last(self) -> SessionPage {
        SessionPage { next: None, ..self.with_next() }
    }

    pub(super) fn with_next(mut self) -> SessionPage {
        if let Some(memory) = &mut self.memory {
            memory.shrink_to(self.bytes);
        }
        SessionPage { sessions: self.sessions, next: self.after, memory: self.memory }
    }
}

impl SessionStore {
    /// Reads the sessions of these entries, a bounded number at a time, and adds those that are wanted to the page.
    /// Returns whether more sessions exist than fit on the page. An entry of a damaged index may name the session of
    /// another owner, which `is_wanted` must reject.
    pub(super) async fn fill_page(
        &self,
        page: &mut PageBuilder,
        entries: &[Position],
        is_wanted: &(dyn Fn(&Session) -> bool + Sync),
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let session_bytes_max = self.session_bytes_max();
        for piece in entries.chunks((PIECE_BYTES / session_bytes_max).max(1)) {
            self.reserve_memory(page, page.bytes).await?;
            let free = page.request.limit - page.sessions.len();
            let read = piece.iter().map(|entry| self.get_in_scope(entry.session_id, &TenantScope::Everything, now));
            let read =
                try_join_all(read).await?.into_iter().map(|session| session.filter(|session| is_wanted(session)));
            let mut read = read.collect::<Vec<_>>();
            if page.request.include != Include::default() {
                for session in read.iter_mut().filter(|session| session.is_some()).take(free) {
                    if let Some(found) = session.take() {
                        // It may have ended in the meantime.
                        *session =
                            Some(self.with_lost_turn_closed(found, now).await?).filter(|session| is_wanted(session));
                    }
                }
            }
            let mut read: Vec<_> = read.into_iter().map(|session| session.map(SessionView::of)).collect();
            if page.request.include.turn {
                let mut views: Vec<_> = read.iter_mut().flatten().take(free).collect();
                self.include_turns(&mut views, now).await?;
            }
            if page.request.include.last_message {
                let mut views: Vec<_> = read.iter_mut().flatten().take(free).collect();
                let bytes = views.iter().map(|view| view.json_bytes() + view.session.largest_message_bytes);
                self.reserve_memory(page, page.bytes + bytes.sum::<usize>()).await?;
                let room = PAGE_BYTES_MAX.saturating_sub(page.bytes);
                page.request.include.last_message = self.include_last_messages(&mut views, room).await?;
            }
            if page.fill(piece, read) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Maximum bytes of one session.
    fn session_bytes_max(&self) -> usize {
        self.config.metadata_bytes_max.saturating_add(SESSION_BYTES_BESIDE_METADATA_MAX)
    }

    /// Reserves memory for the whole page if it may soon have this many `bytes` and they are not few.
    async fn reserve_memory(&self, page: &mut PageBuilder, bytes: usize) -> Result<(), StoreError> {
        if bytes > SMALL_RESPONSE_BYTES && page.memory.is_none() {
            let PageRequest { limit, include, owner, .. } = page.request;
            let (one, max) = (self.session_bytes_max(), PAGE_BYTES_MAX.max(self.session_bytes_max()));
            let bytes = if include.last_message { max } else { limit.saturating_mul(one).min(max) };
            page.memory = Some(self.response_memory.reserve(owner, bytes).await?);
        }
        Ok(())
    }

    /// Entries of a sorted set in descending order, starting at `highest`.
    pub(super) async fn range_down(
        &self,
        key: &str,
        highest: ScoreBound,
        lowest: ScoreBound,
        count: usize,
    ) -> Result<Vec<Position>, StoreError> {
        let (highest, lowest) = (highest.to_text("+inf"), lowest.to_text("-inf"));
        let command = ReadCommand::sorted_set_down(key.to_owned(), highest, lowest, count);
        let mut reply = Reply::of_texts("list", self.read_command(command).await?.texts("list")?);
        let mut entries = Vec::with_capacity(count);
        while !reply.is_empty() {
            entries.push(Position { session_id: reply.parse()?, score: reply.parse()? });
        }
        Ok(entries)
    }
}

/// One end of a range of scores.
#[derive(Clone, Copy)]
pub(super) enum ScoreBound {
    Infinite,
    Inclusive(i64),
    Below(i64),
    Above(i64),
}

impl ScoreBound {
    pub(super) fn to_text(self, infinite: &str) -> String {
        match self {
            Self::Infinite => infinite.to_owned(),
            Self::Inclusive(ms) => ms.to_string(),
            Self::Below(ms) | Self::Above(ms) => format!("({ms}"),
        }
    }
}

/// A time as a score of a sorted set. An `f64` represents milliseconds of up to 53 bits exactly.
#[expect(clippy::cast_precision_loss, reason = "exact until the year 287396")]
pub(crate) fn score_of(ms: i64) -> f64 {
    ms as f64
}
