//! Checks the messages of a session, and the index of their ids.

use serde::de::IgnoredAny;

use super::{Inspection, Inspector, is_json_object, seq_of};
use crate::session::{Identifier, Message, SessionId};
use crate::store::StoreError;
use crate::store::keyspace::{Expiry, FoundKey, RepairTarget, StoredMessage};

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
        let mut check = StreamCheck::default();
        let mut last: Option<String> = None;
        let indexed = loop {
            let page = self.store.messages_page(id, last.as_deref()).await?;
            self.throttle.spend(page.len()).await;
            let message_ids = page.iter().filter_map(|stored| stored.message.as_ref().ok());
            let message_ids = message_ids.map(|message| message.message_id.clone()).collect();
            let (seqs, indexed) = self.store.indexed_seqs(id, message_ids).await?;
            let Some(newest) = page.last() else {
                break indexed;
            };
            last = Some(newest.entry_id.clone());
            check.take(page, seqs);
        };
        for (invariant, faults) in [("message-stream", check.stream), ("message-index", check.index)] {
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
        let named = self.store.named(key.partition, &session_id).await?;
        let exists = named.exists();
        if !exists {
            out.find("message-stream", &key.name, "belongs to a session that does not exist");
        }
        let subject = match (named.business_id, named.user_id) {
            (Some(business_id), Some(user_id)) => {
                Some(RepairTarget { partition: key.partition, session_id, business_id, user_id: Some(user_id) })
            }
            _ => None,
        };
        out.check_expires(key, expiry, subject.as_ref());
        Ok(exists)
    }
}

fn message_problem(message: &Message) -> Option<&'static str> {
    if Identifier::new(message.message_id.as_str()).is_err() {
        return Some("its messageId is not an identifier");
    }
    if message.content == "null" || serde_json::from_str::<IgnoredAny>(&message.content).is_err() {
        return Some("its content is not a JSON value or is null");
    }
    (!is_json_object(&message.metadata)).then_some("its metadata is not a JSON object")
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

/// Checks the messages of a session, from the oldest to the newest.
#[derive(Default)]
struct StreamCheck {
    newest_seq: Option<u64>,
    stream: Faults,
    index: Faults,
    /// Number of message ids in the index that belong to a stored message.
    accounted: u64,
}

impl StreamCheck {
    /// Checks a page of messages. `seqs` has the seq that the index contains for each readable message.
    fn take(&mut self, page: Vec<StoredMessage>, seqs: Vec<Option<String>>) {
        let mut seqs = seqs.into_iter();
        for StoredMessage { entry_id, message } in page {
            match seq_of(&entry_id) {
                None => self.stream.add(format!("{entry_id} is not <seq>-0")),
                Some(seq) => {
                    if self.newest_seq.is_some_and(|before| before + 1 != seq) {
                        self.stream.add(format!("a gap before {entry_id}"));
                    }
                    self.newest_seq = Some(seq);
                }
            }
            let message = match message {
                Ok(message) => message,
                Err(problem) => {
                    self.stream.add(format!("{entry_id}: {problem}"));
                    // Its id is unknown, so one surplus id in the index is not a finding.
                    self.accounted += 1;
                    continue;
                }
            };
            if let Some(problem) = message_problem(&message) {
                self.stream.add(format!("{entry_id}: {problem}"));
            }
            match seqs.next().flatten() {
                Some(seq) if seq == message.seq.to_string() => self.accounted += 1,
                Some(seq) => {
                    self.accounted += 1;
                    self.index.add(format!("the messageId of {entry_id} has seq {seq:?}"));
                }
                None => self.index.add(format!("the messageId of {entry_id} is missing")),
            }
        }
    }
}
