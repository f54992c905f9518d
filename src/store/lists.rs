//! The verbs of lists: pages by keyset cursors, whose cost is the page's and not the list's.

use fred::clients::Client;
use fred::interfaces::SortedSetsInterface;
use fred::types::Value;
use fred::types::sorted_sets::{ZRange, ZRangeBound, ZRangeKind};
use futures_util::future::try_join_all;

use super::reply::{Reply, Texts};
use super::response_memory::{MemoryPermit, PAGE_BYTES_MAX, PIECE_BYTES, ResponseOwner, SMALL_RESPONSE_BYTES};
use super::{SessionStore, StoreError, counted};
use crate::metrics::Verb;
use crate::session::{Identifier, Partition, Reach, Session, SessionId, Status, TITLE_CHARS_MAX, Timestamp};

/// How often a list reads on to fill a page that has gaps.
const PAGE_READS_MAX: u32 = 4;
/// How many entries a history with gaps reads on by at the least: those of sessions that are gone lie together.
const PAGE_READ_ON: usize = 100;
/// The most bytes of a session's fields but its metadata: five identifiers and a title of at most four bytes a
/// character, and what does not depend on the client.
const SESSION_BYTES_BESIDE_METADATA_MAX: usize = 5 * 4 * Identifier::CHARS_MAX + 4 * TITLE_CHARS_MAX + 512;

/// A place in a list: the entry that a page ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The list's sort key: Unix time in milliseconds.
    pub score: i64,
    /// The entry.
    pub session_id: SessionId,
}

/// Sessions in the list's order, and where the next page starts.
#[derive(Debug)]
pub struct SessionPage {
    /// In the list's order.
    pub sessions: Vec<Session>,
    /// The place to continue from, if there may be more.
    pub next: Option<Position>,
    /// The memory of a large page. To be kept until the response is sent.
    pub memory: Option<MemoryPermit>,
}

/// A page that is being filled.
struct PageUnderWay {
    limit: usize,
    sessions: Vec<Session>,
    bytes: usize,
    memory: Option<MemoryPermit>,
    /// The last entry that was looked at.
    after: Option<Position>,
}

impl PageUnderWay {
    fn new(limit: usize, after: Option<Position>) -> Self {
        Self { limit, sessions: Vec::with_capacity(limit), bytes: 0, memory: None, after }
    }

    /// Takes what is there of these entries. Whether there is more than there is room for: only a session that is there
    /// makes a further page.
    fn fill(&mut self, entries: &[Position], read: impl IntoIterator<Item = Option<Session>>) -> bool {
        for (entry, session) in entries.iter().zip(read) {
            if let Some(session) = session {
                let bytes = self.bytes + session.json_bytes();
                if self.sessions.len() == self.limit || (!self.sessions.is_empty() && bytes > PAGE_BYTES_MAX) {
                    return true;
                }
                self.bytes = bytes;
                self.sessions.push(session);
            }
            self.after = Some(*entry);
        }
        false
    }

    fn last(self) -> SessionPage {
        SessionPage { next: None, ..self.with_next() }
    }

    fn with_next(mut self) -> SessionPage {
        if let Some(memory) = &mut self.memory {
            memory.shrink_to(self.bytes);
        }
        SessionPage { sessions: self.sessions, next: self.after, memory: self.memory }
    }
}

impl SessionStore {
    /// A page of the user's sessions for `owner`, newest first. It ends after `limit` sessions or 4 MiB.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn list_history(
        &self,
        business_id: &Identifier,
        user_id: &Identifier,
        limit: usize,
        after: Option<Position>,
        owner: ResponseOwner,
        now: Timestamp,
    ) -> Result<SessionPage, StoreError> {
        counted(Verb::ListHistory, self.page_of_history(business_id, user_id, limit, after, owner, now)).await
    }

    async fn page_of_history(
        &self,
        business_id: &Identifier,
        user_id: &Identifier,
        limit: usize,
        after: Option<Position>,
        owner: ResponseOwner,
        now: Timestamp,
    ) -> Result<SessionPage, StoreError> {
        let key = self.keys.history(business_id.as_str(), user_id.as_str());
        let mut page = PageUnderWay::new(limit, after);
        let mut wanted = limit + 1;
        // Entries whose session is gone leave gaps; a page with very many of them stays short and has a next one.
        for _ in 0..PAGE_READS_MAX {
            // Scores are unique: createdAt strictly increases for a user.
            let highest = page.after.map_or(ScoreBound::Infinite, |position| ScoreBound::Below(position.score));
            let entries = self.range_down(&key, highest, ScoreBound::Infinite, wanted).await?;
            let exhausted = entries.len() < wanted;
            if self.fill_page(&mut page, &entries, |_| true, owner, now).await? {
                break;
            }
            if exhausted {
                return Ok(page.last());
            }
            wanted = wanted.max(PAGE_READ_ON);
        }
        Ok(page.with_next())
    }

    /// Reads the sessions of these entries, a bounded number at a time, and puts those that are `wanted` on the page.
    /// Returns whether there is more than the page has room for.
    async fn fill_page(
        &self,
        page: &mut PageUnderWay,
        entries: &[Position],
        wanted: fn(&Session) -> bool,
        owner: ResponseOwner,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let session_bytes_max = self.config.metadata_bytes_max.saturating_add(SESSION_BYTES_BESIDE_METADATA_MAX);
        for piece in entries.chunks((PIECE_BYTES / session_bytes_max).max(1)) {
            if page.bytes > SMALL_RESPONSE_BYTES && page.memory.is_none() {
                let bytes = page.limit.saturating_mul(session_bytes_max).min(PAGE_BYTES_MAX.max(session_bytes_max));
                page.memory = Some(self.response_memory.reserve(owner, bytes).await?);
            }
            let read = piece.iter().map(|entry| self.within(entry.session_id, &Reach::Everything, now));
            let read = try_join_all(read).await?.into_iter().map(|session| session.filter(wanted));
            if page.fill(piece, read) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A page of the active sessions of a business for `owner`, latest expiry first, and how many there are in all. It
    /// ends after `limit` sessions or 4 MiB.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn list_active(
        &self,
        business_id: &Identifier,
        limit: usize,
        after: Option<Position>,
        owner: ResponseOwner,
        now: Timestamp,
    ) -> Result<(SessionPage, u64), StoreError> {
        counted(Verb::ListActive, self.page_of_active_and_total(business_id, limit, after, owner, now)).await
    }

    async fn page_of_active_and_total(
        &self,
        business_id: &Identifier,
        limit: usize,
        after: Option<Position>,
        owner: ResponseOwner,
        now: Timestamp,
    ) -> Result<(SessionPage, u64), StoreError> {
        let partitions = Partition::of_business(business_id.as_str());
        let keys: Vec<_> =
            partitions.into_iter().map(|partition| self.keys.business(partition, business_id.as_str())).collect();
        let totals = try_join_all(keys.iter().map(|key| self.count_active(key, now)));
        let page = self.page_of_active(&keys, limit, after, owner, now);
        let (totals, page) = futures_util::try_join!(totals, page)?;
        Ok((page, totals.into_iter().sum()))
    }

    async fn page_of_active(
        &self,
        keys: &[String],
        limit: usize,
        after: Option<Position>,
        owner: ResponseOwner,
        now: Timestamp,
    ) -> Result<SessionPage, StoreError> {
        let mut page = PageUnderWay::new(limit, after);
        for _ in 0..PAGE_READS_MAX {
            let heads = keys.iter().map(|key| self.active_entries(key, page.after, now, limit + 1));
            let mut entries: Vec<_> = try_join_all(heads).await?.into_iter().flatten().collect();
            entries.sort_unstable_by_key(|entry| std::cmp::Reverse((entry.score, entry.session_id)));
            entries.truncate(limit + 1);
            let exhausted = entries.len() <= limit;
            let is_active = |session: &Session| session.status == Status::Active;
            if self.fill_page(&mut page, &entries, is_active, owner, now).await? {
                break;
            }
            if exhausted {
                return Ok(page.last());
            }
        }
        Ok(page.with_next())
    }

    /// The first `limit` entries of one business index after a position. Several may expire in the same millisecond, so
    /// entries with the
    /// position's own score are read again and those up to it dropped; if these are too many, twice as many are read.
    async fn active_entries(
        &self,
        key: &str,
        after: Option<Position>,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Position>, StoreError> {
        let highest = after.map_or(ScoreBound::Infinite, |position| ScoreBound::Inclusive(position.score));
        let is_after = |entry: &Position| {
            after.is_none_or(|after| (entry.score, entry.session_id) < (after.score, after.session_id))
        };
        let mut count = limit;
        loop {
            let mut entries = self.range_down(key, highest, ScoreBound::Above(now.0), count).await?;
            let exhausted = entries.len() < count;
            entries.retain(is_after);
            if exhausted || entries.len() >= limit {
                return Ok(entries);
            }
            count *= 2;
        }
    }

    async fn count_active(&self, key: &str, now: Timestamp) -> Result<u64, StoreError> {
        // Scores are whole milliseconds, so "above now" is "from the next millisecond on".
        self.call(key, |client| async move { client.zcount(key, score_of(now.0 + 1), f64::INFINITY).await }).await
    }

    /// Entries of a sorted set from `highest` downwards.
    async fn range_down(
        &self,
        key: &str,
        highest: ScoreBound,
        lowest: ScoreBound,
        count: usize,
    ) -> Result<Vec<Position>, StoreError> {
        let limit = Some((0, i64::try_from(count).unwrap_or(i64::MAX)));
        let range = |client: Client| async move {
            let (highest, lowest) = (highest.as_range(f64::INFINITY), lowest.as_range(f64::NEG_INFINITY));
            client.zrevrangebyscore::<Value, _, _, _>(key, highest, lowest, true, limit).await
        };
        let value = self.call(key, range).await?;
        let mut reply = Reply::new("list", value)?;
        let mut entries = Vec::new();
        while !reply.is_empty() {
            entries.push(Position { session_id: reply.parse()?, score: reply.parse()? });
        }
        Ok(entries)
    }
}

/// One end of a range of scores.
#[derive(Clone, Copy)]
enum ScoreBound {
    Infinite,
    Inclusive(i64),
    Below(i64),
    Above(i64),
}

impl ScoreBound {
    fn as_range(self, infinite: f64) -> ZRange {
        let (kind, score) = match self {
            Self::Infinite => (ZRangeKind::Inclusive, infinite),
            Self::Inclusive(ms) => (ZRangeKind::Inclusive, score_of(ms)),
            Self::Below(ms) | Self::Above(ms) => (ZRangeKind::Exclusive, score_of(ms)),
        };
        let range = if score == f64::INFINITY {
            ZRangeBound::InfiniteScore
        } else if score == f64::NEG_INFINITY {
            ZRangeBound::NegInfiniteScore
        } else {
            ZRangeBound::Score(score)
        };
        ZRange { kind, range }
    }
}

/// A time as a sorted set's score. Milliseconds fit in the 53 bits that are exact.
#[expect(clippy::cast_precision_loss, reason = "exact until the year 287396")]
pub(crate) fn score_of(ms: i64) -> f64 {
    ms as f64
}
