//! Checks the messages of a session, and the index of their ids.

use super::{Inspection, Inspector, is_json_object};
use crate::session::{Identifier, MessageJson, Role, Session, SessionId, Timestamp, escaped_text, json_after_seq};
use crate::store::StoreError;
use crate::store::keyspace::{Expiry, FoundKey, RepairTarget, Stored, StoredMessage};

impl Inspector<'_> {
    pub(super) async fn messages(
        &self,
        key: &FoundKey,
        id: SessionId,
        expiry: Expiry,
        out: &mut Inspection,
    ) -> Result<(), StoreError> {
        if !self.messages_have_a_session(key, id, expiry, out).await? {
            return Ok(());
        }
        let before = self.store.stored_session(id).await?;
        let mut check = MessagesCheck::new(id);
        let indexed = loop {
            let page = self.store.messages_page(id, check.last_seq).await?;
            self.throttle.spend(page.len()).await;
            let page: Vec<_> = page.into_iter().map(|stored| check.parse(stored)).collect();
            let message_ids = page.iter().flatten().map(|message| escaped_text(&message.message_id)).collect();
            let (seqs, indexed) = self.store.indexed_seqs(id, message_ids).await?;
            if page.is_empty() {
                break indexed;
            }
            check.compare_ids(&page, seqs);
        };
        // The sizes agree with the messages only if nothing was appended in the meantime.
        if let (Stored::Session(session), true) = (&before, before == self.store.stored_session(id).await?) {
            check.compare_sizes(session);
        }
        for (invariant, faults) in [("message-list", check.list), ("message-index", check.index)] {
            if let Some(detail) = faults.detail() {
                out.find(invariant, &key.name, detail);
            }
        }
        if let surplus @ 1.. = indexed.saturating_sub(check.accounted) {
            out.find("message-index", &key.name, format!("{surplus} message ids belong to no stored message"));
        }
        Ok(())
    }

    pub(super) async fn message_ids(
        &self,
        key: &FoundKey,
        id: SessionId,
        expiry: Expiry,
        out: &mut Inspection,
    ) -> Result<(), StoreError> {
        let has_session = self.messages_have_a_session(key, id, expiry, out).await?;
        // If there are messages, `messages` compares them with these ids when the walk reaches them.
        if has_session && self.store.messages_page(id, None).await?.is_empty() {
            out.find("message-index", &key.name, "has message ids, but the session has no messages");
        }
        Ok(())
    }

    async fn messages_have_a_session(
        &self,
        key: &FoundKey,
        id: SessionId,
        expiry: Expiry,
        out: &mut Inspection,
    ) -> Result<bool, StoreError> {
        let session_id = id.to_string();
        let session_ref = self.store.session_ref(key.partition, &session_id).await?;
        let exists = session_ref.exists();
        if !exists {
            out.find("message-list", &key.name, "belongs to a session that does not exist");
        }
        let target = match (session_ref.business_id, session_ref.user_id) {
            (Some(business_id), Some(user_id)) => {
                Some(RepairTarget { partition: key.partition, session_id, business_id, user_id: Some(user_id) })
            }
            _ => None,
        };
        out.check_expires(key, expiry, target.as_ref());
        Ok(exists)
    }
}

/// Counts faults and keeps the first one.
#[derive(Default)]
struct Faults {
    count: u64,
    first: String,
}

impl Faults {
    fn add(&mut self, fault: String) {
        if self.count == 0 {
            self.first = fault;
        }
        self.count += 1;
    }

    fn detail(self) -> Option<String> {
        match self.count {
            0 => None,
            1 => Some(self.first),
            more => Some(format!("{}; and {} more", self.first, more - 1)),
        }
    }
}

/// A message that is in the service's format, apart from its content and metadata.
struct ParsedMessage {
    seq: u64,
    message_id: String,
}

/// Checks the messages of a session, from the oldest to the newest.
struct MessagesCheck {
    session_id: SessionId,
    /// `seq` of the last message that was read.
    last_seq: Option<u64>,
    list: Faults,
    index: Faults,
    /// Number of message ids in the index that belong to a stored message.
    accounted: u64,
    bytes: u64,
    largest: usize,
}

impl MessagesCheck {
    fn new(session_id: SessionId) -> Self {
        let (list, index) = (Faults::default(), Faults::default());
        Self { session_id, last_seq: None, list, index, accounted: 0, bytes: 0, largest: 0 }
    }

    /// Checks one message on its own. `None` if its id is unknown.
    fn parse(&mut self, stored: StoredMessage) -> Option<ParsedMessage> {
        let StoredMessage { seq, json } = stored;
        self.last_seq = Some(seq);
        self.bytes += u64::try_from(json.len()).unwrap_or_default();
        self.largest = self.largest.max(json.len());
        let parsed = self.parsed(MessageJson::of(self.session_id, json).as_ref(), seq);
        match parsed {
            Ok(message) => Some(message),
            Err(problem) => {
                self.list.add(format!("{seq}: {problem}"));
                // One surplus id in the index is not another finding.
                self.accounted += 1;
                None
            }
        }
    }

    fn parsed(&mut self, message: Option<&MessageJson>, seq: u64) -> Result<ParsedMessage, &'static str> {
        let message = message.ok_or("it does not start as a message of the session")?;
        let members = message.members().ok_or("it is not the JSON of a message")?;
        let role = Role::from_word(&members.role).ok_or("its role is unknown")?;
        if message.seq != seq {
            self.list.add(format!("{seq}: its seq is {}", message.seq));
        }
        if Identifier::new(&*members.message_id).is_err() {
            self.list.add(format!("{seq}: its messageId is not an identifier"));
        }
        let (content, metadata) = (members.content.get(), members.metadata.get());
        let is_redacted = members.redacted_at.is_some();
        if (content == "null") != is_redacted || (is_redacted && metadata != "{}") {
            self.list.add(format!("{seq}: its content, metadata and redactedAt contradict each other"));
        }
        if !is_json_object(metadata) {
            self.list.add(format!("{seq}: its metadata is not a JSON object"));
        }
        // Its time does not matter.
        let (id, created_at) = (&members.message_id, Timestamp(0));
        let mut json = json_after_seq(created_at, self.session_id, id, role, content, metadata);
        let more = [("finishReason", &members.finish_reason), ("redactedAt", &members.redacted_at)];
        for (name, value) in more.iter().filter_map(|(name, value)| value.as_ref().map(|value| (name, value))) {
            json.truncate(json.len() - 1);
            json.extend([",\"", name, "\":\"", value, "\"}"]);
        }
        if message.after_created_at() != MessageJson::stored(seq, created_at, &json).after_created_at() {
            self.list.add(format!("{seq}: its members are not in their order"));
        }
        Ok(ParsedMessage { seq: message.seq, message_id: members.message_id.into_owned() })
    }

    /// Compares a page of messages with the index. `seqs` has the seq that the index contains for each parsed message.
    fn compare_ids(&mut self, page: &[Option<ParsedMessage>], seqs: Vec<Option<String>>) {
        for (message, seq) in page.iter().flatten().zip(seqs) {
            match seq {
                Some(seq) if seq == message.seq.to_string() => self.accounted += 1,
                Some(seq) => {
                    self.accounted += 1;
                    self.index.add(format!("the messageId of {} has seq {seq:?}", message.seq));
                }
                None => self.index.add(format!("the messageId of {} is missing", message.seq)),
            }
        }
    }

    fn compare_sizes(&mut self, session: &Session) {
        if session.message_bytes != self.bytes {
            self.list.add(format!("messageBytes is {}, the messages have {}", session.message_bytes, self.bytes));
        }
        if session.largest_message_bytes < self.largest {
            let stored = session.largest_message_bytes;
            self.list.add(format!("largestMessage is {stored}, a message has {}", self.largest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Partition, Timestamp};

    #[test]
    fn only_redacted_messages_have_no_content() {
        let id = SessionId::random(Partition(7)).expect("random bytes");
        let problem_of = |role_and_rest: &str| {
            let at = Timestamp(0);
            let start = format!("{{\"seq\":1,\"createdAt\":\"{at}\",\"sessionId\":\"{id}\",\"messageId\":\"m\"");
            let mut check = MessagesCheck::new(id);
            let json = format!("{start},\"role\":\"user\",{role_and_rest}}}").into();
            check.parse(StoredMessage { seq: 1, json });
            check.list.detail()
        };
        let valid = [
            r#""content":"null","metadata":{"a":1}"#,
            r#""content":null,"metadata":{},"redactedAt":"2026-11-22T10:00:00.000Z""#,
        ];
        for rest in valid {
            assert_eq!(problem_of(rest), None, "{rest}");
        }
        let invalid = [
            r#""content":null,"metadata":{}"#,
            r#""content":1,"metadata":{},"redactedAt":"x""#,
            r#""content":null,"metadata":{"a":1},"redactedAt":"x""#,
            r#""content":null,"metadata":{},"redactedAt":7"#,
            // Members in another order, and one more.
            r#""content":null,"redactedAt":"x","metadata":{}"#,
            r#""content":1,"metadata":{},"more":1"#,
        ];
        for rest in invalid {
            assert!(problem_of(rest).is_some(), "{rest}");
        }
    }
}
