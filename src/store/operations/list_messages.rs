//! Lists the messages of a session.

use std::time::{Duration, Instant};

use super::instrumented;
use crate::metrics::Operation;
use crate::session::{MessageJson, Session, SessionId, TenantScope, Timestamp};
use crate::store::redis::read_command::ReadCommand;
use crate::store::response_memory::{MemoryPermit, PAGE_BYTES_MAX, PIECE_BYTES, ResponseOwner, SMALL_RESPONSE_BYTES};
use crate::store::{SessionStore, StoreError};

/// The pause after a large read, as a multiple of the time that the read took. It leaves most of an event loop to other
/// requests.
const PAUSE_AFTER_LARGE_READ: u32 = 8;
/// Longest pause after a large read.
const PAUSE_MAX: Duration = Duration::from_millis(40);

/// Which messages to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageRange {
    /// The newest.
    Newest,
    /// The newest before this seq.
    Before(u64),
    /// The oldest after this seq.
    After(u64),
}

/// Messages in ascending seq, and where further pages start.
#[derive(Debug)]
pub struct MessagePage {
    /// In ascending seq.
    pub messages: Vec<MessageJson>,
    /// Set if older messages exist: read before this seq.
    pub before: Option<u64>,
    /// Set if newer messages exist: read after this seq.
    pub after: Option<u64>,
    /// The memory of a large page. Keep it until the response is sent.
    pub memory: Option<MemoryPermit>,
}

impl SessionStore {
    /// A page of a session's messages for `owner`, or `None` if the session does not exist within `scope`. The page
    /// ends after `limit` messages or 4 MiB.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn list_messages(
        &self,
        id: SessionId,
        range: MessageRange,
        limit: usize,
        scope: &TenantScope,
        owner: ResponseOwner,
        now: Timestamp,
    ) -> Result<Option<MessagePage>, StoreError> {
        instrumented(Operation::ListMessages, async move {
            let started = Instant::now();
            let mut seen = None;
            while started.elapsed() < self.topology.retry_budget() {
                let Some(session) = self.get_in_scope(id, scope, now).await? else {
                    return Ok(None);
                };
                // A failure to close the turn must not fail the read: the page then lacks the turn's message.
                if matches!(self.close_lost_turn(&session, now).await, Ok(true)) {
                    continue;
                }
                let held = Some((session.created_at, session.oldest_seq, session.message_count));
                if seen == held {
                    let problem = "the session lacks messages that it should have";
                    return Err(StoreError::Reply { operation: "list_messages", problem });
                }
                seen = held;
                let wanted = WantedMessages::of(&session, range, limit);
                let bytes_max = session.message_bytes_max(wanted.count());
                let page_bytes_max = bytes_max.min(PAGE_BYTES_MAX.max(session.largest_message_bytes));
                let memory = self.response_memory.reserve_if_large(owner, page_bytes_max).await?;
                if let Some(messages) = self.read_wanted(&session, &wanted).await? {
                    return Ok(Some(wanted.into_page(messages, memory)));
                }
                // The session was deleted, or messages were trimmed, since it was read. Read it again.
            }
            Err(StoreError::Busy("the session's messages change faster than they can be read".to_owned()))
        })
        .await
    }

    /// Reads the wanted messages piece by piece until the page is full. `None` if they no longer exist.
    async fn read_wanted(
        &self,
        session: &Session,
        wanted: &WantedMessages,
    ) -> Result<Option<Vec<MessageJson>>, StoreError> {
        let piece_max = if session.message_bytes_max(usize::MAX) <= PIECE_BYTES {
            u64::MAX
        } else {
            u64::try_from(PIECE_BYTES / session.largest_message_bytes.max(1)).unwrap_or(u64::MAX).max(1)
        };
        let (mut first, mut last) = (wanted.first, wanted.last);
        let (mut messages, mut bytes) = (Vec::with_capacity(wanted.count()), 0);
        while first <= last {
            let piece = if wanted.ascending {
                first..=last.min(first.saturating_add(piece_max - 1))
            } else {
                first.max(last.saturating_sub(piece_max - 1))..=last
            };
            let Some(mut read) = self.read_piece(session, *piece.start(), *piece.end()).await? else {
                return Ok(None);
            };
            (first, last) = if wanted.ascending { (piece.end() + 1, last) } else { (first, piece.start() - 1) };
            if !wanted.ascending {
                read.reverse();
            }
            for message in read {
                bytes += message.json_bytes();
                if bytes > PAGE_BYTES_MAX && !messages.is_empty() {
                    return Ok(Some(messages));
                }
                messages.push(message);
            }
        }
        Ok(Some(messages))
    }

    /// Reads the messages from `first` to `last`, one large piece at a time. `None` if they no longer exist.
    pub(in crate::store) async fn read_piece(
        &self,
        session: &Session,
        first: u64,
        last: u64,
    ) -> Result<Option<Vec<MessageJson>>, StoreError> {
        let count = usize::try_from(last - first + 1).unwrap_or(usize::MAX);
        if session.message_bytes_max(count) <= SMALL_RESPONSE_BYTES {
            return self.read_messages(session, first, last, false).await;
        }
        // One large piece at a time, and a pause after each, so other requests wait for at most one of them.
        let _permit = self.large_reads.acquire().await;
        let started = Instant::now();
        let piece = self.read_messages(session, first, last, true).await?;
        let bytes = piece.iter().flatten().map(MessageJson::json_bytes).sum::<usize>();
        if bytes > SMALL_RESPONSE_BYTES {
            let pause = started.elapsed().saturating_mul(PAUSE_AFTER_LARGE_READ).min(PAUSE_MAX);
            tokio::time::sleep(pause).await;
        }
        Ok(piece)
    }

    /// Reads the messages from `first` to `last`. `None` if the list does not have all of them.
    ///
    /// `seq` has no gaps and only the oldest messages are removed, so an index from the end follows from the number of
    /// messages. It is wrong if messages were appended since that number was read. The `seq` of what was read says by
    /// how many, and the messages are read again.
    async fn read_messages(
        &self,
        session: &Session,
        first: u64,
        last: u64,
        is_large: bool,
    ) -> Result<Option<Vec<MessageJson>>, StoreError> {
        let id = session.session_id;
        // The message may be newer than the session that was read.
        let mut newest = session.message_count.max(last);
        for _ in 0..SHIFTED_READS_MAX {
            let index = |seq: u64| -i64::try_from(newest - seq + 1).unwrap_or(i64::MAX);
            let command = ReadCommand::list(self.keys.messages(id), index(first), index(last));
            // A large reply would delay the other reads on the connection.
            let reply =
                if is_large { self.topology.read_by_client(&command).await } else { self.topology.read(command).await };
            let malformed =
                StoreError::Reply { operation: "list_messages", problem: "it is not the session's messages" };
            let messages = MessageJson::all_of(id, reply?.texts("list_messages")?).ok_or(malformed)?;
            let read_last = messages.last().map_or(0, |message| message.seq);
            if read_last > last {
                newest += read_last - last;
                continue;
            }
            let expected = (first..=last).eq(messages.iter().map(|message| message.seq));
            return Ok(expected.then_some(messages));
        }
        Err(StoreError::Busy("messages are appended faster than they can be read".to_owned()))
    }
}

/// Maximum number of reads of the same messages while others are appended.
const SHIFTED_READS_MAX: u32 = 16;

/// The messages of a page, subject to its limit of bytes.
struct WantedMessages {
    range: MessageRange,
    /// `seq` of the first one. More than `last` if there are none.
    first: u64,
    last: u64,
    /// Whether a page that is too large keeps its first messages instead of its last ones.
    ascending: bool,
    /// `seq` of the oldest and the newest message of the session.
    oldest: u64,
    newest: u64,
}

impl WantedMessages {
    fn of(session: &Session, range: MessageRange, limit: usize) -> Self {
        let (oldest, newest) = (session.oldest_seq, session.message_count);
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        let (first, last) = match range {
            MessageRange::After(seq) => {
                let first = seq.saturating_add(1).max(oldest);
                (first, newest.min(first.saturating_add(limit - 1)))
            }
            MessageRange::Newest | MessageRange::Before(_) => {
                let last =
                    if let MessageRange::Before(seq) = range { newest.min(seq.saturating_sub(1)) } else { newest };
                ((last + 1).saturating_sub(limit).max(oldest), last)
            }
        };
        Self { range, first, last, ascending: matches!(range, MessageRange::After(_)), oldest, newest }
    }

    fn count(&self) -> usize {
        usize::try_from((self.last + 1).saturating_sub(self.first)).unwrap_or(usize::MAX)
    }

    /// The page with these messages, in the order in which they were read.
    fn into_page(self, mut messages: Vec<MessageJson>, mut memory: Option<MemoryPermit>) -> MessagePage {
        if let Some(memory) = &mut memory {
            memory.shrink_to(messages.iter().map(MessageJson::json_bytes).sum());
        }
        if !self.ascending {
            messages.reverse();
        }
        // A page without messages lies between its neighbours.
        let (first, last) = match (messages.first(), messages.last(), self.range) {
            (Some(first), Some(last), _) => (first.seq, last.seq),
            (_, _, MessageRange::Newest) => (self.oldest, self.newest),
            (_, _, MessageRange::Before(seq)) => (seq.max(1), seq.saturating_sub(1)),
            (_, _, MessageRange::After(seq)) => (self.newest.min(seq) + 1, self.newest.max(seq)),
        };
        MessagePage {
            before: (self.oldest < first && self.oldest <= self.newest).then_some(first),
            after: (last < self.newest).then_some(last),
            messages,
            memory,
        }
    }
}
