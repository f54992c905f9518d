//! Appends messages to a session.

use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::instrumented;
use crate::metrics::{self, Operation};
use crate::session::{
    MessageJson, NewMessage, SessionId, TenantScope, Timestamp, escaped_text, json_after_seq, same_json,
};
use crate::store::reply::Reply;
use crate::store::{SessionStore, StoreError};

/// Number of a session's own keys, which precede those of its user.
const SESSION_KEYS: usize = 3;

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
            let (batch, lines) = (Batch::new(id, new, now)?, tenant_scope.lines());
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
            let started = Instant::now();
            while started.elapsed() < self.topology.retry_budget() {
                let mut args = vec![scope.clone(), now.0.to_string()];
                batch.push_args(&mut args);
                let reply = self.run(&self.scripts.append_messages, keys.clone(), args).await;
                let Some(mut reply) = self.reply_in_scope(reply, id, tenant_scope, now).await? else {
                    return Ok(Append::Missing);
                };
                match reply.string()?.as_str() {
                    "appended" => {
                        metrics::messages_appended(batch.add_appended(&mut reply)?);
                        return Ok(Append::Appended(batch.into_stored()));
                    }
                    "known" => match batch.add_known(&mut reply)? {
                        Known::Conflict(message_id) => return Ok(Append::Conflict(message_id)),
                        Known::All => return Ok(batch.into_replayed()),
                        // The next run checks that they are still stored.
                        Known::Some => {}
                    },
                    "replayed" => return Ok(batch.into_replayed()),
                    "changed" => batch.forget_stored(),
                    "expiry_due" => {
                        keys.truncate(SESSION_KEYS);
                        keys.extend(self.user_keys(id.partition(), &reply.string()?, &reply.string()?));
                    }
                    "missing" => return Ok(Append::Missing),
                    "not_active" => return Ok(Append::NotActive),
                    "turn_open" => return Ok(Append::Conflict(batch.at_position(&mut reply)?.message_id.clone())),
                    "turn_lost" => {
                        if let Some(session) = self.get_in_scope(id, tenant_scope, now).await? {
                            self.close_lost_turn(&session, now).await?;
                        }
                    }
                    _ => return Err(reply.unknown_tag()),
                }
            }
            Err(StoreError::Busy("the session's messages or turns change too fast".to_owned()))
        })
        .await
    }
}

/// What the script's reply says of the messages whose ids are known.
enum Known {
    /// The message with this id is stored with another role or content.
    Conflict(String),
    /// All messages of the call are stored. The reply shows them at one moment.
    All,
    /// Some are.
    Some,
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
    /// Its JSON after `seq`.
    json: String,
    /// The stored message with this id, role and content, once it is known.
    stored: Option<MessageJson>,
}

impl<'a> Batch<'a> {
    /// Creates a batch of the messages of a call. The inner error is an id that occurs twice with different content.
    fn new(session_id: SessionId, new: &'a [NewMessage], now: Timestamp) -> Result<Result<Self, String>, StoreError> {
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
                let json = json_after_seq(now, session_id, &message_id, *role, content_json, metadata_json);
                batch.messages.push(BatchMessage { message_id, id_generated, new: message, json, stored: None });
            }
        }
        Ok(Ok(batch))
    }

    fn push_args(&self, args: &mut Vec<String>) {
        for message in &self.messages {
            let json = message.stored.as_ref().map_or_else(|| message.json.clone(), MessageJson::to_text);
            args.extend([escaped_text(&message.message_id), json]);
        }
    }

    /// The message at the position that a reply names.
    fn at_position(&mut self, reply: &mut Reply) -> Result<&mut BatchMessage<'a>, StoreError> {
        let index = reply.parse::<usize>()?.wrapping_sub(1);
        self.messages.get_mut(index).ok_or_else(|| reply.unexpected("a position is out of range"))
    }

    /// Adds the stored messages of a reply; at least one, so the call makes progress. Redacted messages have no
    /// content, so for them the role decides whether it is the same message.
    fn add_known(&mut self, reply: &mut Reply) -> Result<Known, StoreError> {
        let mut known = 0;
        while known == 0 || !reply.is_empty() {
            let session_id = self.session_id;
            let message = self.at_position(reply)?;
            let stored = reply.message(session_id)?;
            let members = stored.members().filter(|members| members.message_id == message.message_id);
            let members = members.ok_or_else(|| reply.unexpected("the ids and the messages do not agree"))?;
            let content = members.content.get();
            let same_content = members.redacted_at.is_some()
                || content == message.new.content_json
                || serde_json::from_str::<Value>(content).is_ok_and(|stored| same_json(&stored, &message.new.content));
            if members.role != message.new.role.as_str() || !same_content {
                return Ok(Known::Conflict(message.message_id.clone()));
            }
            message.stored = Some(stored);
            known += 1;
        }
        Ok(if known == self.messages.len() { Known::All } else { Known::Some })
    }

    fn forget_stored(&mut self) {
        for message in &mut self.messages {
            message.stored = None;
        }
    }

    /// Adds the messages that the script has appended, and returns their number. The reply names the session, because a
    /// connection that mixes up replies must not tell a user another user's seq.
    fn add_appended(&mut self, reply: &mut Reply) -> Result<u64, StoreError> {
        let (session_id, trimmed) = (reply.parse::<SessionId>()?, reply.parse()?);
        let (newest_seq, created_at) = (reply.parse::<u64>()?, reply.time()?);
        let new: Vec<_> = self.messages.iter_mut().filter(|message| message.stored.is_none()).collect();
        let before = newest_seq.checked_sub(new.len() as u64).filter(|_| session_id == self.session_id);
        let before = before.ok_or_else(|| reply.unexpected("it belongs to another append"))?;
        for (seq, message) in (before + 1..).zip(new) {
            message.stored = Some(MessageJson::stored(seq, created_at, &message.json));
        }
        metrics::messages_trimmed(trimmed);
        Ok(newest_seq - before)
    }

    /// The stored messages, one for each message of the call.
    fn into_stored(self) -> Vec<MessageJson> {
        let stored = |index: &usize| self.messages.get(*index)?.stored.clone();
        self.indexes.iter().filter_map(stored).collect()
    }

    /// The outcome if all messages were stored before. A generated id is known only if an earlier run of this call was
    /// applied and its reply was lost.
    fn into_replayed(self) -> Append {
        let id_generated = self.messages.iter().any(|message| message.id_generated);
        let stored = self.into_stored();
        if id_generated { Append::Appended(stored) } else { Append::Replayed(stored) }
    }
}

/// A message id for a client that sent none: 96 random bits as 16 characters. Ids are unique in one session only, and
/// Redis holds each twice.
fn random_message_id() -> Result<String, StoreError> {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Identifier, Partition, Role};

    fn reply(texts: &[&str]) -> Reply {
        Reply::of_texts("test", texts.iter().map(|text| text.to_string().into()).collect())
    }

    #[test]
    fn replies_to_another_append_are_rejected() {
        let [id, other] = [1, 2].map(|_| SessionId::random(Partition(7)).expect("random bytes"));
        let new = ["a", "b"].map(|name| NewMessage {
            message_id: Some(Identifier::new(name).expect("an identifier")),
            role: Role::User,
            content: Value::from(name),
            content_json: format!("\"{name}\""),
            metadata_json: "{}".to_owned(),
        });
        let batch = || Batch::new(id, &new, Timestamp(0)).expect("random bytes").expect("ids that differ");
        let (id, other) = (id.to_string(), other.to_string());
        let mut appended = batch();
        assert_eq!(appended.add_appended(&mut reply(&[&id, "0", "3", "1"])).expect("a reply"), 2);
        let stored = appended.into_stored();
        assert_eq!(stored.iter().map(|message| message.seq).collect::<Vec<_>>(), [2, 3]);
        assert!(stored[1].to_text().starts_with(r#"{"seq":3,"createdAt":"1970-01-01T00:00:00.001Z","sessionId":"#));
        for wrong in [&[other.as_str(), "0", "3", "1"], &[id.as_str(), "0", "1", "1"]] {
            assert!(batch().add_appended(&mut reply(wrong)).is_err(), "{wrong:?}");
        }
        let of_a = stored[0].to_text();
        for wrong in [&["0", of_a.as_str()][..], &["2", &of_a], &["3", &of_a], &["1"], &[]] {
            assert!(batch().add_known(&mut reply(wrong)).is_err(), "{wrong:?}");
        }
        assert!(matches!(batch().add_known(&mut reply(&["1", &of_a])), Ok(Known::Some)));
    }
}
