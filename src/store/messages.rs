//! The verbs of messages.

use fred::clients::Client;
use fred::interfaces::StreamsInterface;
use fred::types::Value;

use super::reply::{Reply, Texts};
use super::{SessionStore, StoreError, counted};
use crate::metrics::{self, Verb};
use crate::session::{Message, NewMessage, Reach, SessionId, Timestamp};

/// Messages beyond the kept ones that one append removes at the most.
const TRIM_MESSAGES_MAX: u32 = 200;

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

    /// A page of a session's messages, or `None` if there is no such session within `reach`.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn list_messages(
        &self,
        id: SessionId,
        range: MessageRange,
        limit: u64,
        reach: &Reach,
        now: Timestamp,
    ) -> Result<Option<MessagePage>, StoreError> {
        // Boxed, for it has room for three calls at once.
        counted(Verb::ListMessages, Box::pin(self.page_of_messages(id, range, limit, reach, now))).await
    }

    async fn page_of_messages(
        &self,
        id: SessionId,
        range: MessageRange,
        limit: u64,
        reach: &Reach,
        now: Timestamp,
    ) -> Result<Option<MessagePage>, StoreError> {
        // Before the messages are read: how long that takes would tell a foreign session from a missing one.
        if *reach != Reach::Everything && self.within(id, reach, now).await?.is_none() {
            return Ok(None);
        }
        let key = self.keys.messages(id);
        let key = key.as_str();
        let count = Some(limit + 1);
        // The messages are read first: if the session is there afterwards, it was there when they were read.
        let read = |client: Client| async move {
            match range {
                MessageRange::Newest => client.xrevrange::<Value, _, _, _>(key, "+", "-", count).await,
                // Not `(seq-0`: Redis refuses what would be before 0, and there is no message with that seq.
                MessageRange::Before(seq) => client.xrevrange(key, seq.saturating_sub(1).to_string(), "-", count).await,
                MessageRange::After(seq) => client.xrange(key, format!("({seq}-0"), "+", count).await,
            }
        };
        let messages = async { read_messages(self.call(key, read).await?, id) };
        let read_oldest = |client: Client| async move { client.xrange(key, "-", "+", Some(1)).await };
        let oldest = async {
            match range {
                MessageRange::After(_) => read_messages(self.call(key, read_oldest).await?, id),
                _ => Ok(Vec::new()),
            }
        };
        let (mut messages, oldest, session) = futures_util::try_join!(messages, oldest, self.within(id, reach, now))?;
        let Some(session) = session else {
            return Ok(None);
        };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = messages.len() > limit;
        messages.truncate(limit);
        let (before, after) = match range {
            MessageRange::Newest | MessageRange::Before(_) => {
                messages.reverse();
                let newest = messages.last().map_or(0, |message| message.seq);
                let after = match range {
                    MessageRange::Before(seq) if messages.is_empty() => seq.saturating_sub(1),
                    _ => newest,
                };
                let newer = range != MessageRange::Newest && after < session.message_count;
                (messages.first().filter(|_| more).map(|first| first.seq), newer.then_some(after))
            }
            MessageRange::After(seq) => {
                let end = session.message_count.min(seq) + 1;
                let before = messages.first().map_or(end, |first| first.seq);
                let older = oldest.first().is_some_and(|oldest| oldest.seq < before);
                (older.then_some(before), messages.last().filter(|_| more).map(|last| last.seq))
            }
        };
        Ok(Some(MessagePage { messages, before, after }))
    }
}

fn read_messages(value: Value, id: SessionId) -> Result<Vec<Message>, StoreError> {
    let mut reply = Reply::new("list_messages", value)?;
    let mut messages = Vec::new();
    while !reply.is_empty() {
        messages.push(reply.message(id)?);
    }
    Ok(messages)
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
                if (earlier.role, &earlier.content) != (message.role, &message.content) {
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

    /// The script compares texts. Where the stored text only differs in the order of members or in spacing, the stored
    /// one is taken instead; where it says something else, the message's id is returned.
    fn adopt_stored_texts(&mut self, reply: &mut Reply) -> Result<Option<String>, StoreError> {
        while !reply.is_empty() {
            let (position, role, content) = (reply.parse::<usize>()?, reply.role()?, reply.string()?);
            let place = position.wrapping_sub(1);
            let Some(message) = self.messages.get_mut(place) else {
                return Err(reply.unexpected("a position is not of this call"));
            };
            let same = serde_json::from_str::<serde_json::Value>(&content)
                .is_ok_and(|stored| role == message.new.role && stored == message.new.content);
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
