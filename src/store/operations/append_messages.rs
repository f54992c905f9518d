//! Appends messages to a session.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::instrumented;
use crate::metrics::{self, Operation};
use crate::session::{
    MessageJson, NewMessage, SessionId, TenantScope, Timestamp, escaped_text, json_after_created_at, json_after_seq,
    same_json,
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
                let mut args = vec![scope.clone(), now.0.to_string()];
                batch.push_args(now, &mut args);
                let reply = self.run(&self.scripts.append_messages, keys.clone(), args).await;
                let Some(mut reply) = self.reply_in_scope(reply, id, tenant_scope, now).await? else {
                    return Ok(Append::Missing);
                };
                match reply.string()?.as_str() {
                    "appended" => {
                        metrics::messages_trimmed(reply.parse()?);
                        metrics::messages_appended(batch.add_appended(reply.parse()?, reply.time()?));
                        return Ok(Append::Appended(batch.into_stored()));
                    }
                    "known" => {
                        if let Some(message_id) = batch.add_known(&mut reply)? {
                            return Ok(Append::Conflict(message_id));
                        }
                        if batch.unknown().next().is_none() {
                            // A generated id is known only if an earlier run of this call was applied and its reply was
                            // lost.
                            let id_generated = batch.messages.iter().any(|message| message.id_generated);
                            let stored = batch.into_stored();
                            return Ok(if id_generated { Append::Appended(stored) } else { Append::Replayed(stored) });
                        }
                    }
                    "expiry_due" => {
                        keys.truncate(SESSION_KEYS);
                        keys.extend(self.user_keys(id.partition(), &reply.string()?, &reply.string()?));
                    }
                    "missing" => return Ok(Append::Missing),
                    "not_active" => return Ok(Append::NotActive),
                    "turn_open" => {
                        let message = batch.unknown().nth(reply.parse::<usize>()?.wrapping_sub(1));
                        let message = message.ok_or_else(|| reply.unexpected("a position is out of range"))?;
                        return Ok(Append::Conflict(message.message_id.clone()));
                    }
                    "turn_lost" if turns_lost < TURNS_LOST_MAX => {
                        turns_lost += 1;
                        if let Some(session) = self.get_in_scope(id, tenant_scope, now).await? {
                            self.close_lost_turn(&session, now).await?;
                        }
                    }
                    "turn_lost" => return Err(StoreError::Busy("the session's turns change too fast".to_owned())),
                    _ => return Err(reply.unknown_tag()),
                }
            }
        })
        .await
    }
}

/// The messages of one call, each id once.
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
    /// The JSON to store, after `createdAt`.
    rest: String,
    /// The stored message with this id, role and content, once it is known.
    stored: Option<MessageJson>,
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
                let rest = json_after_created_at(session_id, &message_id, *role, content_json, metadata_json);
                batch.messages.push(BatchMessage { message_id, id_generated, new: message, rest, stored: None });
            }
        }
        Ok(Ok(batch))
    }

    /// The messages that are not known to be stored: those that the script is given.
    fn unknown(&self) -> impl Iterator<Item = &BatchMessage<'a>> {
        self.messages.iter().filter(|message| message.stored.is_none())
    }

    fn push_args(&self, now: Timestamp, args: &mut Vec<String>) {
        for message in self.unknown() {
            args.extend([escaped_text(&message.message_id), json_after_seq(now, &message.rest)]);
        }
    }

    /// Adds the stored messages of a reply, or returns the id of one that has another role or content than the new
    /// one. Redacted messages have no content, so for them the role decides.
    fn add_known(&mut self, reply: &mut Reply) -> Result<Option<String>, StoreError> {
        let mut asked: Vec<_> = self.messages.iter_mut().filter(|message| message.stored.is_none()).collect();
        loop {
            let index = reply.parse::<usize>()?.wrapping_sub(1);
            let stored = reply.message(self.session_id)?;
            let message = asked.get_mut(index).ok_or_else(|| reply.unexpected("a position is out of range"))?;
            let members = stored.members().filter(|members| members.message_id == message.message_id);
            let members = members.ok_or_else(|| reply.unexpected("the ids and the messages do not agree"))?;
            let content = members.content.get();
            let same_content = members.redacted_at.is_some()
                || content == message.new.content_json
                || serde_json::from_str::<Value>(content).is_ok_and(|stored| same_json(&stored, &message.new.content));
            if members.role != message.new.role.as_str() || !same_content {
                return Ok(Some(message.message_id.clone()));
            }
            message.stored = Some(stored);
            if reply.is_empty() {
                return Ok(None);
            }
        }
    }

    /// Adds the messages that the script has appended, and returns their number.
    fn add_appended(&mut self, newest_seq: u64, created_at: Timestamp) -> u64 {
        let mut appended = 0;
        for (seq, message) in (1..=newest_seq).rev().zip(self.messages.iter_mut().rev().filter(|m| m.stored.is_none()))
        {
            message.stored = Some(MessageJson::new(seq, created_at, &message.rest));
            appended += 1;
        }
        appended
    }

    /// The stored messages, one for each message of the call.
    fn into_stored(self) -> Vec<MessageJson> {
        let stored = |index: &usize| self.messages.get(*index)?.stored.clone();
        self.indexes.iter().filter_map(stored).collect()
    }
}

/// A message id for a client that sent none: 96 random bits as 16 characters. Ids are unique in one session only, and
/// Redis holds each twice.
fn random_message_id() -> Result<String, StoreError> {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
