//! Reads the content of keys.

use fred::clients::Client;
use fred::interfaces::{HashesInterface, KeysInterface, ListInterface, SortedSetsInterface};
use fred::types::Value;

use super::{
    Expiry, KeyState, OPERATION, RelatedKeys, SessionRef, Stored, StoredMessage, elements, lossy, right_type,
    unexpected,
};
use crate::session::{MessageJson, Partition, Session, SessionId, Status, Timestamp};
use crate::store::keys::{OWNER_AND_STATUS, SESSION_FIELDS};
use crate::store::redis::read_command::ReadCommand;
use crate::store::reply::{MalformedField, Reply};
use crate::store::{SessionStore, StoreError};

/// Entries of an index, or message ids, that one command reads.
pub const INDEX_PAGE: u32 = 500;
/// Messages that one command reads. Each may be as large as a request body.
const MESSAGES_PAGE: i64 = 50;

impl SessionStore {
    /// A key's type and expiry.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn key_state(&self, key: &str) -> Result<KeyState, StoreError> {
        let type_name = self.topology.call(key, |client| async move { client.r#type::<String, _>(key).await });
        let (type_name, expiry) = futures_util::try_join!(type_name, self.expiry(key))?;
        Ok(KeyState { type_name, expiry })
    }

    async fn expiry(&self, key: &str) -> Result<Expiry, StoreError> {
        Ok(match self.topology.call(key, |client| async move { client.pexpire_time(key).await }).await? {
            -2 => Expiry::NoKey,
            -1 => Expiry::Never,
            ms => Expiry::At(Timestamp(ms)),
        })
    }

    /// The content of a session's hash, which must exist.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn stored_session(&self, id: SessionId) -> Result<Stored, StoreError> {
        let reply = self.topology.read_by_client(&ReadCommand::hash(self.keys.session(id))).await;
        let Some(reply) = right_type(reply)? else {
            return Ok(Stored::Malformed("it is not a hash".to_owned()));
        };
        let fields = Reply::of_texts(OPERATION, reply.texts(OPERATION)?).fields()?;
        Ok(match fields.into_session() {
            Ok(Some(session)) if session.session_id == id => Stored::Session(session),
            Ok(Some(session)) => Stored::Malformed(format!("sessionId is {}", session.session_id)),
            Ok(None) => Stored::Malformed("sessionId is missing".to_owned()),
            Err(MalformedField { field, problem }) => {
                Stored::Malformed(format!("{}: {problem}", SESSION_FIELDS[field as usize]))
            }
        })
    }

    /// Owner and state of the session that an index of this partition names.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn session_ref(&self, partition: Partition, session_id: &str) -> Result<SessionRef, StoreError> {
        let [key, ..] = self.keys.named(partition, session_id);
        let key = key.as_str();
        let read = |client: Client| async move { client.hmget(key, OWNER_AND_STATUS.to_vec()).await };
        let fields = async { elements(self.topology.call(key, read).await) };
        let (fields, expiry) = futures_util::try_join!(fields, self.expiry(key))?;
        let mut fields = fields.into_iter().map(Value::into_string);
        let mut next = || fields.next().flatten();
        Ok(SessionRef {
            business_id: next(),
            user_id: next(),
            status: next().as_deref().and_then(Status::from_word),
            expiry,
        })
    }

    /// The keys related to a session.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn related_keys(&self, session: &Session) -> Result<RelatedKeys, StoreError> {
        let id = session.session_id;
        let (messages, message_ids) = (self.keys.messages(id), self.keys.message_ids(id));
        let pointer = self.keys.pointer(&session.business_id, &session.user_id);
        let history = self.keys.history(&session.business_id, &session.user_id);
        let business = self.keys.business(id.partition(), &session.business_id);
        let (messages_expiry, message_ids_expiry, pointer_expiry, pointed_id) = futures_util::try_join!(
            self.expiry(&messages),
            self.expiry(&message_ids),
            self.expiry(&pointer),
            self.pointer_target(&pointer)
        )?;
        let list = messages.as_str();
        let read_length = |client: Client| async move { client.llen(list).await };
        let length = async { right_type::<u64>(self.topology.call(list, read_length).await) };
        let (history_score, business_score, length, oldest, newest) = futures_util::try_join!(
            self.score(&history, id),
            self.score(&business, id),
            length,
            self.seq_at(id, 0),
            self.seq_at(id, -1)
        )?;
        Ok(RelatedKeys {
            keys_with_expiry: [
                (messages, messages_expiry),
                (message_ids, message_ids_expiry),
                (pointer, pointer_expiry),
            ],
            pointed_id,
            history_score,
            business_score,
            messages: length.unwrap_or_default(),
            oldest_and_newest: oldest.zip(newest),
        })
    }

    async fn score(&self, index: &str, id: SessionId) -> Result<Option<f64>, StoreError> {
        let score = self.topology.call(index, |client| async move { client.zscore(index, id.to_string()).await }).await;
        Ok(right_type::<Option<f64>>(score)?.flatten())
    }

    /// The text in a pointer, normally a session id.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn pointer_target(&self, pointer: &str) -> Result<Option<String>, StoreError> {
        let value = self.topology.call(pointer, |client| async move { client.get(pointer).await }).await;
        let value = right_type::<Value>(value)?;
        Ok(value.filter(|value| !value.is_null()).map(lossy))
    }

    /// The key of a user's history.
    #[must_use]
    pub fn history_key(&self, business_id: &str, user_id: &str) -> String {
        self.keys.history(business_id, user_id)
    }

    /// At most [`INDEX_PAGE`] entries of an index, starting at rank `start`: their members and scores.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn index_page(&self, index: &str, start: i64) -> Result<Vec<(String, f64)>, StoreError> {
        let last = start + i64::from(INDEX_PAGE) - 1;
        let read = |client: Client| async move { client.zrange(index, start, last, None, false, None, true).await };
        let flat = elements(self.topology.call(index, read).await)?;
        let mut entries = Vec::with_capacity(flat.len() / 2);
        let mut flat = flat.into_iter();
        while let (Some(member), Some(score)) = (flat.next(), flat.next()) {
            let score = score.as_f64().ok_or_else(|| unexpected("a score is not a number"))?;
            entries.push((lossy(member), score));
        }
        Ok(entries)
    }

    /// The messages after `seq`, or from the oldest one on. Empty at the end.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn messages_page(&self, id: SessionId, after: Option<u64>) -> Result<Vec<StoredMessage>, StoreError> {
        let mut oldest = self.seq_at(id, 0).await?;
        loop {
            let first = oldest.unwrap_or(1);
            let start = after.map_or(0, |after| (after + 1).saturating_sub(first));
            let start = i64::try_from(start).unwrap_or(i64::MAX);
            let command = ReadCommand::list(self.keys.messages(id), start, start.saturating_add(MESSAGES_PAGE - 1));
            let elements = right_type(self.topology.read_by_client(&command).await)?;
            let elements = elements.map_or(Ok(Vec::new()), |reply| reply.texts(OPERATION))?;
            // An append may trim the oldest messages in the meantime. Then all indexes change.
            let oldest_now = self.seq_at(id, 0).await?;
            if oldest_now == oldest {
                let seqs = first.saturating_add(start.unsigned_abs())..;
                return Ok(seqs.zip(elements).map(|(seq, json)| StoredMessage { seq, json }).collect());
            }
            oldest = oldest_now;
        }
    }

    /// The `seq` of the message at an index of the list, if it is a message of the session.
    async fn seq_at(&self, id: SessionId, index: i64) -> Result<Option<u64>, StoreError> {
        let command = ReadCommand::list(self.keys.messages(id), index, index);
        let element = match right_type(self.topology.read_by_client(&command).await)? {
            Some(reply) => reply.texts(OPERATION)?.pop(),
            None => None,
        };
        Ok(element.and_then(|json| MessageJson::of(id, json)).map(|message| message.seq))
    }

    /// The seqs that the session's message index holds for these message ids, and the number of ids in that index.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn indexed_seqs(
        &self,
        id: SessionId,
        message_ids: Vec<String>,
    ) -> Result<(Vec<Option<String>>, u64), StoreError> {
        let key = self.keys.message_ids(id);
        let (key, asked_for) = (key.as_str(), &message_ids);
        let length = self.topology.call(key, |client| async move { client.hlen(key).await }).await;
        let length = right_type::<u64>(length)?;
        let asked = message_ids.len();
        let seqs = if asked == 0 {
            Vec::new()
        } else {
            let read = |client: Client| async move { client.hmget(key, asked_for.clone()).await };
            elements(self.topology.call(key, read).await)?
        };
        let mut seqs: Vec<_> = seqs.into_iter().map(Value::into_string).collect();
        seqs.resize(asked, None);
        Ok((seqs, length.unwrap_or_default()))
    }
}
