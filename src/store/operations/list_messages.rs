//! Lists the messages of a session.

use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::interfaces::StreamsInterface;
use fred::types::Value;

use super::instrumented;
use crate::metrics::Operation;
use crate::session::{Message, SessionId, TenantScope, Timestamp};
use crate::store::reply::Reply;
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
    pub messages: Vec<Message>,
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
        // Boxed, because the future contains those of three concurrent calls.
        instrumented(
            Operation::ListMessages,
            Box::pin(async move {
                let Some(session) = self.get_in_scope(id, scope, now).await? else {
                    return Ok(None);
                };
                let largest = session.largest_message_bytes;
                let read_max = usize::try_from(session.message_count).unwrap_or(usize::MAX).min(limit + 1);
                let memory = match read_max.saturating_mul(largest) {
                    bytes if bytes <= SMALL_RESPONSE_BYTES => None,
                    bytes => Some(self.response_memory.reserve(owner, bytes.min(PAGE_BYTES_MAX.max(largest))).await?),
                };
                let oldest = async {
                    match range {
                        MessageRange::After(_) => self.read_messages(id, MessageRange::After(0), 1).await,
                        _ => Ok(Vec::new()),
                    }
                };
                let (read, oldest) = futures_util::try_join!(self.read_page(id, range, limit, largest), oldest)?;
                // If no messages were read, or several reads were made, the session may have been deleted in the
                // meantime.
                let is_certain = !read.messages.is_empty() && read.pieces == 1 || session.message_count == 0;
                if !is_certain && self.get_in_scope(id, scope, now).await?.is_none() {
                    return Ok(None);
                }
                Ok(Some(read.into_page(range, session.message_count, &oldest, memory)))
            }),
        )
        .await
    }

    /// Reads messages piece by piece until there are `limit + 1`, or the page is full.
    async fn read_page(
        &self,
        id: SessionId,
        range: MessageRange,
        limit: usize,
        largest: usize,
    ) -> Result<ReadMessages, StoreError> {
        let piece_max = (PIECE_BYTES / largest.max(1)).max(1);
        let mut read = ReadMessages { messages: Vec::new(), bytes: 0, has_more: false, pieces: 0 };
        let mut next = range;
        loop {
            let count = piece_max.min(limit + 1 - read.messages.len());
            let piece = {
                // One large piece at a time, and a pause after each, so other requests wait for at most one of them.
                let is_large = count.saturating_mul(largest) > SMALL_RESPONSE_BYTES;
                let _permit = if is_large { self.large_reads.acquire().await.ok() } else { None };
                let started = Instant::now();
                let piece = self.read_messages(id, next, count).await?;
                if piece.iter().map(Message::json_bytes).sum::<usize>() > SMALL_RESPONSE_BYTES {
                    let pause = started.elapsed().saturating_mul(PAUSE_AFTER_LARGE_READ).min(PAUSE_MAX);
                    tokio::time::sleep(pause).await;
                }
                piece
            };
            read.pieces += 1;
            let is_last = piece.len() < count;
            next = match (piece.last(), range) {
                (Some(last), MessageRange::After(_)) => MessageRange::After(last.seq),
                (Some(last), _) => MessageRange::Before(last.seq),
                (None, _) => return Ok(read),
            };
            if read.take(piece, limit) || is_last {
                return Ok(read);
            }
        }
    }

    /// Messages in the order of the range: oldest first for [`MessageRange::After`], otherwise newest first.
    async fn read_messages(
        &self,
        id: SessionId,
        range: MessageRange,
        count: usize,
    ) -> Result<Vec<Message>, StoreError> {
        let key = self.keys.messages(id);
        let key = key.as_str();
        let count = Some(u64::try_from(count).unwrap_or(u64::MAX));
        let read = |client: Client| async move {
            match range {
                MessageRange::Newest => client.xrevrange::<Value, _, _, _>(key, "+", "-", count).await,
                // Not `(seq-0`: Redis rejects `(0-0`, and no message has the seq 0.
                MessageRange::Before(seq) => client.xrevrange(key, seq.saturating_sub(1).to_string(), "-", count).await,
                MessageRange::After(seq) => client.xrange(key, format!("({seq}-0"), "+", count).await,
            }
        };
        let mut reply = Reply::new("list_messages", self.call(key, read).await?)?;
        let mut messages = Vec::new();
        while !reply.is_empty() {
            messages.push(reply.message(id)?);
        }
        Ok(messages)
    }
}

/// Messages of a page, in the order in which they are read.
struct ReadMessages {
    messages: Vec<Message>,
    bytes: usize,
    /// More messages exist than fit on the page.
    has_more: bool,
    /// Number of reads.
    pieces: usize,
}

impl ReadMessages {
    /// Adds the messages that fit on the page. Returns whether the page is full.
    fn take(&mut self, piece: Vec<Message>, limit: usize) -> bool {
        for message in piece {
            let bytes = self.bytes + message.json_bytes();
            if self.messages.len() == limit || (!self.messages.is_empty() && bytes > PAGE_BYTES_MAX) {
                self.has_more = true;
                return true;
            }
            self.bytes = bytes;
            self.messages.push(message);
        }
        false
    }

    fn into_page(
        self,
        range: MessageRange,
        message_count: u64,
        oldest: &[Message],
        mut memory: Option<MemoryPermit>,
    ) -> MessagePage {
        if let Some(memory) = &mut memory {
            memory.shrink_to(self.bytes);
        }
        let Self { mut messages, has_more, .. } = self;
        let (before, after) = match range {
            MessageRange::Newest | MessageRange::Before(_) => {
                messages.reverse();
                let newest = messages.last().map_or(0, |message| message.seq);
                let after = match range {
                    MessageRange::Before(seq) if messages.is_empty() => seq.saturating_sub(1),
                    _ => newest,
                };
                let newer = range != MessageRange::Newest && after < message_count;
                (messages.first().filter(|_| has_more).map(|first| first.seq), newer.then_some(after))
            }
            MessageRange::After(seq) => {
                let end = message_count.min(seq) + 1;
                let before = messages.first().map_or(end, |first| first.seq);
                let older = oldest.first().is_some_and(|oldest| oldest.seq < before);
                (older.then_some(before), messages.last().filter(|_| has_more).map(|last| last.seq))
            }
        };
        MessagePage { messages, before, after, memory }
    }
}
