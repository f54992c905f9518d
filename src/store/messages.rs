//! The verbs of messages.

use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::interfaces::StreamsInterface;
use fred::types::Value;

use super::reply::{Reply, Texts};
use super::response_memory::{MemoryPermit, PAGE_BYTES_MAX, PIECE_BYTES, ResponseOwner, SMALL_RESPONSE_BYTES};
use super::{SessionStore, StoreError, counted};
use crate::metrics::{self, Verb};
use crate::session::{Message, NewMessage, Reach, SessionId, Timestamp, same_json};

/// Messages beyond the kept ones that one append removes at the most.
const TRIM_MESSAGES_MAX: u32 = 200;
/// Bytes of conflicting contents after which one append reads no more of them.
const CONFLICT_BYTES_MAX: u32 = 1 << 20;

/// How much longer than a large read the pause after it is, so that such reads leave most of a loop to others; and the
/// most that it is.
const PAUSE_AFTER_LARGE_READ: u32 = 2;
const PAUSE_MAX: Duration = Duration::from_millis(10);

/// What [`SessionStore::append_messages`] did.
#[derive(Debug)]
pub enum Append {
    /// All messages, of which at least one is new.
    Appended(Vec<Message>),
    /// All messages, as they were stored before.
    Replayed(Vec<Message>),
    /// There is no such session.
    Missing,
    /// The session is not active.
    NotActive,
    /// A message with this id and another role or content exists. Nothing was appended.
    Conflict(String),
}

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

/// Messages in ascending seq, and which seqs further pages start from.
#[derive(Debug)]
pub struct MessagePage {
    /// In ascending seq.
    pub messages: Vec<Message>,
    /// Older ones are there: read before this seq.
    pub before: Option<u64>,
    /// Newer ones are there: read after this seq.
    pub after: Option<u64>,
    /// The memory of a large page. To be kept until the response is sent.
    pub memory: Option<MemoryPermit>,
}

impl SessionStore {
    /// Appends messages to a session within `reach`, all or none. Ids that are known with the same role and content are answered as stored.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn append_messages(
        &self,
        id: SessionId,
        new: &[NewMessage],
        reach: &Reach,
        now: Timestamp,
    ) -> Result<Append, StoreError> {
        counted(Verb::AppendMessages, self.append(id, new, reach, now)).await
    }

    async fn append(
        &self,
        id: SessionId,
        new: &[NewMessage],
        reach: &Reach,
        now: Timestamp,
    ) -> Result<Append, StoreError> {
        let Some(session) = self.within(id, reach, now).await? else {
            return Ok(Append::Missing);
        };
        let mut batch = match Batch::new(new)? {
            Ok(batch) => batch,
            Err(message_id) => return Ok(Append::Conflict(message_id)),
        };
        loop {
            let mut args = vec![
                id.to_string(),
                now.0.to_string(),
                self.config.lifecycle.idle_ms().to_string(),
                self.config.lifecycle.retention_ms().to_string(),
                self.config.messages_kept.to_string(),
                TRIM_MESSAGES_MAX.to_string(),
                CONFLICT_BYTES_MAX.to_string(),
            ];
            batch.push_args(&mut args);
            let mut reply = self.run(&self.scripts.append_messages, self.keys_of(&session), args).await?;
            match reply.string()?.as_str() {
                "appended" => {
                    let (messages, _, new) = batch.read_messages(&mut reply, id)?;
                    metrics::messages_appended(new);
                    return Ok(Append::Appended(messages));
                }
                "replayed" => {
                    let (messages, made_here, _) = batch.read_messages(&mut reply, id)?;
                    // An id that was made for this call is known only because an earlier run of it was lost.
                    return Ok(if made_here { Append::Appended(messages) } else { Append::Replayed(messages) });
                }
                "missing" => return Ok(Append::Missing),
                "not_active" => return Ok(Append::NotActive),
                "conflict" => {
                    if let Some(message_id) = batch.adopt_stored_texts(&mut reply)? {
                        return Ok(Append::Conflict(message_id));
                    }
                }
                _ => return Err(reply.unknown_tag()),
            }
        }
    }

    /// A page of a session's messages for `owner`, or `None` if there is no such session within `reach`. It ends after
    /// `limit` messages or 4 MiB.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn list_messages(
        &self,
        id: SessionId,
        range: MessageRange,
        limit: usize,
        reach: &Reach,
        owner: ResponseOwner,
        now: Timestamp,
    ) -> Result<Option<MessagePage>, StoreError> {
        // Boxed, for it has room for three calls at once.
        counted(Verb::ListMessages, Box::pin(self.page_of_messages(id, range, limit, reach, owner, now))).await
    }

    async fn page_of_messages(
        &self,
        id: SessionId,
        range: MessageRange,
        limit: usize,
        reach: &Reach,
        owner: ResponseOwner,
        now: Timestamp,
    ) -> Result<Option<MessagePage>, StoreError> {
        let Some(session) = self.within(id, reach, now).await? else {
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
        // Without messages, or after several reads, the session may have been deleted meanwhile.
        let is_certain = !read.messages.is_empty() && read.pieces == 1 || session.message_count == 0;
        if !is_certain && self.within(id, reach, now).await?.is_none() {
            return Ok(None);
        }
        Ok(Some(read.into_page(range, session.message_count, &oldest, memory)))
    }

    /// Reads messages piece by piece until there are `limit` and one more, or the page is full.
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
                // One large piece at a time, and a pause after each: other requests wait for one of them at the most.
                let is_large = count.saturating_mul(largest) > SMALL_RESPONSE_BYTES;
                let _turn = if is_large { self.large_reads.acquire().await.ok() } else { None };
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

    /// Messages in the order of the range: the newest first, but for [`MessageRange::After`].
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
                // Not `(seq-0`: Redis refuses what would be before 0, and there is no message with that seq.
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
    /// There are more than the page has room for.
    has_more: bool,
    /// How many reads it took.
    pieces: usize,
}

impl ReadMessages {
    /// Takes what the page has room for. Returns whether it is full.
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

/// The messages of one call, each id once, as `append_messages.lua` takes them.
struct Batch {
    messages: Vec<BatchMessage>,
    /// For each message of the call its place in `messages`.
    places: Vec<usize>,
}

struct BatchMessage {
    message_id: String,
    made_here: bool,
    new: NewMessage,
    content: String,
}

impl Batch {
    /// Takes the messages of a call. An id that comes twice with other content is the inner error.
    fn new(new: &[NewMessage]) -> Result<Result<Self, String>, StoreError> {
        let mut batch = Self { messages: Vec::with_capacity(new.len()), places: Vec::with_capacity(new.len()) };
        for message in new {
            let (message_id, made_here) = match &message.message_id {
                Some(message_id) => (message_id.to_string(), false),
                None => (random_message_id()?, true),
            };
            if let Some(place) = batch.messages.iter().position(|earlier| earlier.message_id == message_id) {
                let earlier = &batch.messages[place].new;
                if earlier.role != message.role || !same_json(&earlier.content, &message.content) {
                    return Ok(Err(message_id));
                }
                batch.places.push(place);
            } else {
                batch.places.push(batch.messages.len());
                let content = message.content.to_string();
                batch.messages.push(BatchMessage { message_id, made_here, new: message.clone(), content });
            }
        }
        Ok(Ok(batch))
    }

    fn push_args(&self, args: &mut Vec<String>) {
        for message in &self.messages {
            args.extend([
                message.message_id.clone(),
                message.new.role.as_str().to_owned(),
                message.content.clone(),
                message.new.metadata.clone(),
            ]);
        }
    }

    /// The script compares texts. Where the stored text says the same in another way (order of members, spacing,
    /// spelling of numbers), the stored one is taken instead; where it says something else, the message's id is
    /// returned.
    fn adopt_stored_texts(&mut self, reply: &mut Reply) -> Result<Option<String>, StoreError> {
        while !reply.is_empty() {
            let (position, role, content) = (reply.parse::<usize>()?, reply.role()?, reply.string()?);
            let place = position.wrapping_sub(1);
            let Some(message) = self.messages.get_mut(place) else {
                return Err(reply.unexpected("a position is not of this call"));
            };
            let same = serde_json::from_str::<serde_json::Value>(&content)
                .is_ok_and(|stored| role == message.new.role && same_json(&stored, &message.new.content));
            if !same || message.content == content {
                return Ok(Some(message.message_id.clone()));
            }
            message.content = content;
        }
        Ok(None)
    }

    /// The messages as they are stored, one for each of the call; and whether an id was made for this call.
    fn read_messages(&self, reply: &mut Reply, session_id: SessionId) -> Result<(Vec<Message>, bool, u64), StoreError> {
        let mut stored = Vec::with_capacity(self.messages.len());
        let mut new = 0;
        for message in &self.messages {
            new += u64::from(reply.string()? == "new");
            stored.push(Message {
                message_id: message.message_id.clone(),
                session_id,
                seq: reply.parse()?,
                created_at: reply.time()?,
                role: reply.role()?,
                content: reply.string()?,
                metadata: reply.string()?,
            });
        }
        let made_here = self.messages.iter().any(|message| message.made_here);
        let messages = self.places.iter().filter_map(|&place| stored.get(place).cloned()).collect();
        Ok((messages, made_here, new))
    }
}

/// A message id for a client that brought none: a UUID version 4.
fn random_message_id() -> Result<String, StoreError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string())
}
