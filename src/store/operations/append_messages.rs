//! Appends messages to a session.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::instrumented;
use crate::metrics::{self, Operation};
use crate::session::{
    MessageJson, MessageMembers, MessageRest, NewMessage, SessionId, TenantScope, Timestamp, escaped_text, same_json,
};
use crate::store::reply::Reply;
use crate::store::{SessionStore, StoreError};

/// Number of a session's own keys, which precede those of its user.
const SESSION_KEYS: usize = 3;
/// Maximum number of turns that one append closes before it gives up.
const TURNS_LOST_MAX: u32 = 4;

/// Outcome of [`SessionStore::append_messages`].
#[derive(Debug)]
pub enum Append {
    /// All messages; at least one is new.
    Appended(Vec<MessageJson>),
    /// All messages; all were already stored.
    Replayed(Vec<MessageJson>),
    /// The session does not exist.
    Missing,
    /// The session is not active.
    NotActive,
    /// A message with this id and another role or content exists. Nothing was appended.
    Conflict(String),
}

impl SessionStore {
    /// Appends messages to a session within `tenant_scope`, all or none. A message whose id is stored with the same
    /// role and content is returned as it is stored.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn append_messages(
        &self,
        id: SessionId,
        new: &[NewMessage],
        tenant_scope: &TenantScope,
        now: Timestamp,
    ) -> Result<Append, StoreError> {
        instrumented(Operation::AppendMessages, async move {
            let (batch, lines) = (Batch::new(id, new)?, tenant_scope.lines());
            // The script checks the scope, unless it does not run or the scope has too many businesses to send.
            if (batch.is_err() || lines.is_none()) && self.get_in_scope(id, tenant_scope, now).await?.is_none() {
                return Ok(Append::Missing);
            }
            let mut batch = match batch {
                Ok(batch) => batch,
                Err(message_id) => return Ok(Append::Conflict(message_id)),
            };
            let scope = lines.unwrap_or_default();
            let mut keys = vec![self.keys.session(id), self.keys.messages(id), self.keys.message_ids(id)];
            let mut turns_lost = 0;
            loop {
                let mut args = vec![id.to_string(), scope.clone(), now.0.to_string(), now.to_string()];
                batch.push_args(&mut args);
                let reply = self.run(&self.scripts.append_messages, keys.clone(), args).await;
                let Some(mut reply) = self.reply_in_scope(reply, id, tenant_scope, now).await? else {
                    return Ok(Append::Missing);
                };
                match reply.string()?.as_str() {
                    "appended" => {
                        metrics::messages_trimmed(reply.parse()?);
                        let (messages, _, new) = batch.read_messages(&mut reply)?;
                        metrics::messages_appended(new);
                        return Ok(Append::Appended(messages));
                    }
                    "replayed" => {
                        reply.parse::<u64>()?;
                        let (messages, id_generated, _) = batch.read_messages(&mut reply)?;
                        // A generated id is known only if an earlier run of this call was applied and its reply was
                        // lost.
                        return Ok(if id_generated { Append::Appended(messages) } else { Append::Replayed(messages) });
                    }
                    "expiry_due" => {
                        keys.truncate(SESSION_KEYS);
                        keys.extend(self.user_keys(id.partition(), &reply.string()?, &reply.string()?));
                    }
                    "missing" => return Ok(Append::Missing),
                    "not_active" => return Ok(Append::NotActive),
                    "turn_open" => return Ok(Append::Conflict(batch.message_id_at(&mut reply)?)),
                    "turn_lost" if turns_lost < TURNS_LOST_MAX => {
                        turns_lost += 1;
                        if let Some(session) = self.get_in_scope(id, tenant_scope, now).await? {
                            self.close_lost_turn(&session, now).await?;
                        }
                    }
                    "turn_lost" => return Err(StoreError::Busy("the session's turns change too fast".to_owned())),
                    "conflict" => {
                        if let Some(message_id) = batch.adopt_stored_texts(&mut reply)? {
                            return Ok(Append::Conflict(message_id));
                        }
                    }
                    "damaged" => return Err(reply.unexpected("the ids and the messages do not agree")),
                    _ => return Err(reply.unknown_tag()),
                }
            }
        })
        .await
    }
}

/// The messages of one call, each id once, in the form that `append_messages.lua` takes.
struct Batch<'a> {
    session_id: SessionId,
    messages: Vec<BatchMessage<'a>>,
    /// For each message of the call, its index in `messages`.
    indexes: Vec<usize>,
}

struct BatchMessage<'a> {
    message_id: String,
    id_generated: bool,
    new: &'a NewMessage,
    /// The stored JSON of the content if that has another text than the new one, otherwise the new one.
    content_json: Cow<'a, str>,
    rest: MessageRest,
}

impl<'a> Batch<'a> {
    /// Creates a batch of the messages of a call. The inner error is an id that occurs twice with different content.
    fn new(session_id: SessionId, new: &'a [NewMessage]) -> Result<Result<Self, String>, StoreError> {
        let capacity = new.len();
        let mut batch =
            Self { session_id, messages: Vec::with_capacity(capacity), indexes: Vec::with_capacity(capacity) };
        for message in new {
            let (message_id, id_generated) = match &message.message_id {
                Some(message_id) => (message_id.to_string(), false),
                None => (random_message_id()?, true),
            };
            if let Some(index) = batch.messages.iter().position(|earlier| earlier.message_id == message_id) {
                let earlier = batch.messages[index].new;
                if earlier.role != message.role || !same_json(&earlier.content, &message.content) {
                    return Ok(Err(message_id));
                }
                batch.indexes.push(index);
            } else {
                batch.indexes.push(batch.messages.len());
                let NewMessage { role, content_json, metadata_json, .. } = message;
                let rest = MessageRest::new(session_id, &message_id, *role, content_json, metadata_json);
                let content_json = Cow::Borrowed(content_json.as_str());
                batch.messages.push(BatchMessage { message_id, id_generated, new: message, content_json, rest });
            }
        }
        Ok(Ok(batch))
    }

    fn push_args(&self, args: &mut Vec<String>) {
        for message in &self.messages {
            args.extend([
                escaped_text(&message.message_id),
                message.rest.json.clone(),
                message.rest.compared.to_string(),
            ]);
        }
    }

    /// The message id at the position that a reply names.
    fn message_id_at(&self, reply: &mut Reply) -> Result<String, StoreError> {
        let message = self.messages.get(reply.parse::<usize>()?.wrapping_sub(1));
        let message = message.ok_or_else(|| reply.unexpected("a position is out of range"))?;
        Ok(message.message_id.clone())
    }

    /// The script compares texts. If a stored text is the same JSON (with another order of members, or spelling of
    /// strings and numbers), this takes the stored text instead. If it is different JSON, this returns the message's
    /// id.
    fn adopt_stored_texts(&mut self, reply: &mut Reply) -> Result<Option<String>, StoreError> {
        while !reply.is_empty() {
            let (position, stored) = (reply.parse::<usize>()?, reply.message(self.session_id)?);
            let index = position.wrapping_sub(1);
            let Some(message) = self.messages.get_mut(index) else {
                return Err(reply.unexpected("a position is out of range"));
            };
            let Some(MessageMembers { role, content, .. }) = stored.members() else {
                return Err(reply.unexpected("a stored message is malformed"));
            };
            let same = serde_json::from_str::<serde_json::Value>(content.get())
                .is_ok_and(|stored| role == message.new.role.as_str() && same_json(&stored, &message.new.content));
            if !same || message.content_json == content.get() {
                return Ok(Some(message.message_id.clone()));
            }
            let NewMessage { role, metadata_json, .. } = message.new;
            message.rest = MessageRest::new(self.session_id, &message.message_id, *role, content.get(), metadata_json);
            message.content_json = Cow::Owned(content.get().to_owned());
        }
        Ok(None)
    }

    /// Reads the stored messages, one for each message of the call; whether an id was generated for this call; and how
    /// many messages are new.
    fn read_messages(&self, reply: &mut Reply) -> Result<(Vec<MessageJson>, bool, u64), StoreError> {
        let mut stored = Vec::with_capacity(self.messages.len());
        let mut new = 0;
        for _ in &self.messages {
            new += reply.parse::<u64>()?;
            stored.push(reply.message(self.session_id)?);
        }
        let id_generated = self.messages.iter().any(|message| message.id_generated);
        let messages = self.indexes.iter().filter_map(|&index| stored.get(index).cloned()).collect();
        Ok((messages, id_generated, new))
    }
}

/// A message id for a client that sent none: 96 random bits as 16 characters. Ids are unique in one session only, and
/// Redis holds each twice.
fn random_message_id() -> Result<String, StoreError> {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
