//! What must hold of one key and of what it must agree with.

use futures_util::future::try_join_all;
use serde::de::IgnoredAny;

use super::{Finding, Pace};
use crate::session::{
    EndReason, Identifier, Message, Partition, Session, SessionId, Status, TITLE_CHARS_MAX, Timestamp,
};
use crate::store::keyspace::{
    Expiry, FoundKey, INDEX_PAGE, KeyKind, NamedSession, RepairSubject, Stored, StoredMessage, Surroundings, User,
    WalkedKey,
};
use crate::store::{SessionStore, StoreError, score_of};

/// Looks at keys.
pub(super) struct Inspector<'a> {
    pub(super) store: &'a SessionStore,
    pub(super) clock: &'a (dyn Fn() -> Timestamp + Sync),
    pub(super) pace: &'a Pace,
}

/// What one look at one key found.
#[derive(Default)]
pub(super) struct Inspection {
    pub(super) sessions: u64,
    pub(super) active: u64,
    pub(super) stale: u64,
    pub(super) found: Vec<Found>,
}

/// A finding, and what to repair if that is safe.
pub(super) struct Found {
    pub(super) finding: Finding,
    pub(super) subject: Option<RepairSubject>,
}

impl Inspection {
    fn find(&mut self, invariant: &'static str, key: &str, detail: impl Into<String>) {
        self.find_repairable(invariant, key, detail, None);
    }

    fn find_repairable(
        &mut self,
        invariant: &'static str,
        key: &str,
        detail: impl Into<String>,
        subject: Option<&RepairSubject>,
    ) {
        let finding = Finding { invariant, key: key.to_owned(), detail: detail.into() };
        self.found.push(Found { finding, subject: subject.cloned() });
    }

    fn check_expires(&mut self, key: &FoundKey, expiry: Expiry, subject: Option<&RepairSubject>) {
        if expiry == Expiry::Never {
            self.find_repairable("expiry-missing", &key.name, "never expires", subject);
        }
    }
}

impl Inspector<'_> {
    /// One look at one key.
    pub(super) async fn inspect(&self, key: &WalkedKey) -> Result<Inspection, StoreError> {
        let mut out = Inspection::default();
        let name = match key {
            WalkedKey::Known(key) => &key.name,
            WalkedKey::Unknown(name) => name,
        };
        // The time is read before the data: what the service did by a later time must not look premature.
        let now = (self.clock)();
        let state = self.store.key_state(name).await?;
        if state.type_name == "none" {
            return Ok(out);
        }
        let WalkedKey::Known(key) = key else {
            out.find("unknown-key", name, format!("a {} that is not of this layout", state.type_name));
            return Ok(out);
        };
        if state.type_name != key.type_wanted() {
            out.find("wrong-type", name, format!("is a {}, not a {}", state.type_name, key.type_wanted()));
        } else if !is_at_home(key) {
            out.find("wrong-partition", name, "what it names belongs in another partition");
        } else {
            let expiry = state.expiry;
            match &key.kind {
                KeyKind::Session(id) => self.session(key, *id, expiry, now, &mut out).await?,
                KeyKind::Messages(id) => self.messages(key, *id, expiry, &mut out).await?,
                KeyKind::MessageIds(id) => self.message_ids(key, *id, expiry, &mut out).await?,
                KeyKind::Pointer(user) => self.pointer(key, user, expiry, &mut out).await?,
                KeyKind::History(user) => {
                    let owner = (user.business_id.as_str(), Some(user.user_id.as_str()));
                    self.index(key, owner, expiry, now, &mut out).await?;
                }
                KeyKind::Business(business_id) => {
                    self.index(key, (business_id.as_str(), None), expiry, now, &mut out).await?;
                }
            }
        }
        Ok(out)
    }

    async fn session(
        &self,
        key: &FoundKey,
        id: SessionId,
        expiry: Expiry,
        now: Timestamp,
        out: &mut Inspection,
    ) -> Result<(), StoreError> {
        out.sessions = 1;
        let session = match self.store.stored(id).await? {
            Stored::Session(session) => session,
            Stored::Malformed(problem) => {
                out.find("malformed-session", &key.name, problem);
                return Ok(());
            }
        };
        if Partition::of_user(&session.business_id, &session.user_id) != id.partition() {
            out.find("wrong-partition", &key.name, "its user belongs in another partition");
            return Ok(());
        }
        for (invariant, detail) in document_problems(&session) {
            out.find(invariant, &key.name, detail);
        }
        let subject = RepairSubject {
            partition: key.partition,
            session_id: id.to_string(),
            business_id: session.business_id.clone(),
            user_id: Some(session.user_id.clone()),
        };
        out.check_expires(key, expiry, Some(&subject));
        let around = Box::pin(self.store.surroundings(&session)).await?;
        check_siblings(key, expiry, &session, &around, out);
        check_message_count(key, &session, &around, out);
        match around.history_score {
            None => out.find_repairable("history-missing", &key.name, "is not in its user's history", Some(&subject)),
            Some(score) if is_not(score, session.created_at) => {
                out.find("history-score", &key.name, format!("is {score}, createdAt is {}", session.created_at.0));
            }
            Some(_) => {}
        }
        if session.status == Status::Active {
            self.marked_active(key, &session, &around, &subject, now, out).await?;
        }
        Ok(())
    }

    /// What must hold of a session that is marked active, though its time may be over.
    async fn marked_active(
        &self,
        key: &FoundKey,
        session: &Session,
        around: &Surroundings,
        subject: &RepairSubject,
        now: Timestamp,
        out: &mut Inspection,
    ) -> Result<(), StoreError> {
        let is_active = now < session.expires_at;
        out.active = u64::from(is_active);
        match around.business_score {
            None if is_active => {
                let detail = "is active, but not in its business's index";
                out.find_repairable("business-missing", &key.name, detail, Some(subject));
            }
            Some(score) if is_not(score, session.expires_at) => {
                out.find("business-score", &key.name, format!("is {score}, expiresAt is {}", session.expires_at.0));
            }
            _ => {}
        }
        if around.pointed_id.as_ref() == Some(&subject.session_id) {
            return Ok(());
        }
        if let Some(other) = self.another_active(session, around).await? {
            out.find("two-active", &key.name, format!("is marked active, and {other:?} of the same user too"));
        } else {
            let detail = format!("is marked active; its user's pointer names {:?}", around.pointed_id);
            out.find_repairable("active-not-pointed-at", &key.name, detail, Some(subject));
        }
        Ok(())
    }

    /// Another session of the user that is marked active, among the one that the pointer names and the history's.
    async fn another_active(&self, session: &Session, around: &Surroundings) -> Result<Option<String>, StoreError> {
        let id = session.session_id;
        let (business_id, user_id) = (session.business_id.as_str(), session.user_id.as_str());
        let history = self.store.history_key(business_id, user_id);
        let mut others: Vec<_> = around.pointed_id.iter().cloned().collect();
        let mut place = 0;
        loop {
            for other in &others {
                let named = self.store.named(id.partition(), other).await?;
                let is_users = !named.is_of_another(business_id, Some(user_id));
                if *other != id.to_string() && is_users && named.status == Some(Status::Active) {
                    return Ok(Some(other.clone()));
                }
            }
            others = self.store.index_page(&history, place).await?.into_iter().map(|(id, _)| id).collect();
            if others.is_empty() {
                return Ok(None);
            }
            self.pace.spend(others.len()).await;
            place += i64::from(INDEX_PAGE);
        }
    }

    async fn pointer(
        &self,
        key: &FoundKey,
        user: &User,
        expiry: Expiry,
        out: &mut Inspection,
    ) -> Result<(), StoreError> {
        let Some(session_id) = self.store.pointed_at(&key.name).await? else {
            return Ok(());
        };
        let named = self.store.named(key.partition, &session_id).await?;
        let subject = RepairSubject {
            partition: key.partition,
            session_id: session_id.clone(),
            business_id: user.business_id.clone(),
            user_id: Some(user.user_id.clone()),
        };
        out.check_expires(key, expiry, Some(&subject));
        let found = if !named.exists() {
            Some(("pointer-to-nothing", "which does not exist"))
        } else if named.is_of_another(&user.business_id, Some(&user.user_id)) {
            Some(("pointer-to-another", "which is another user's"))
        } else if is_over(&named) {
            Some(("pointer-to-ended", "which is ended"))
        } else {
            None
        };
        if let Some((invariant, how)) = found {
            out.find_repairable(invariant, &key.name, format!("names {session_id:?}, {how}"), Some(&subject));
        }
        Ok(())
    }

    /// A user's history, or the active sessions of a business.
    async fn index(
        &self,
        key: &FoundKey,
        owner: (&str, Option<&str>),
        expiry: Expiry,
        now: Timestamp,
        out: &mut Inspection,
    ) -> Result<(), StoreError> {
        let mut latest = (Timestamp(i64::MIN), String::new());
        let mut place = 0;
        loop {
            let entries = self.store.index_page(&key.name, place).await?;
            self.pace.spend(entries.len()).await;
            let named = try_join_all(entries.iter().map(|(id, _)| self.store.named(key.partition, id))).await?;
            for ((session_id, score), named) in entries.iter().zip(&named) {
                let subject = RepairSubject {
                    partition: key.partition,
                    session_id: session_id.clone(),
                    business_id: owner.0.to_owned(),
                    user_id: owner.1.map(str::to_owned),
                };
                if place == 0 && *session_id == entries[0].0 {
                    // Any entry will do to find the index by.
                    out.check_expires(key, expiry, Some(&subject));
                }
                self.entry(key, &subject, *score, named, now, out);
                // What a business's index names is due to be there for as long as it is active.
                let counts = owner.1.is_some() || !is_over(named);
                if let Expiry::At(time) = named.expiry
                    && counts
                    && time > latest.0
                {
                    latest = (time, session_id.clone());
                }
            }
            if entries.len() < INDEX_PAGE as usize {
                break;
            }
            place += i64::from(INDEX_PAGE);
        }
        if let Expiry::At(time) = expiry
            && time < latest.0
        {
            let detail = format!("expires {time}, {:?} that it names {}", latest.1, latest.0);
            out.find("expiry-too-early", &key.name, detail);
        }
        Ok(())
    }

    fn entry(
        &self,
        key: &FoundKey,
        subject: &RepairSubject,
        score: f64,
        named: &NamedSession,
        now: Timestamp,
        out: &mut Inspection,
    ) {
        let session_id = &subject.session_id;
        let of_user = subject.user_id.is_some();
        let (dangling, of_another) = if of_user {
            ("history-dangling", "history-of-another")
        } else {
            ("business-dangling", "business-of-another")
        };
        if !named.exists() {
            // Neither score is later than the session's end, so by then Redis may have removed it.
            if score + score_of(self.store.retention_ms()) <= score_of(now.0) {
                out.stale += 1;
            } else {
                let detail = format!("names {session_id:?}, which does not exist");
                out.find_repairable(dangling, &key.name, detail, Some(subject));
            }
        } else if named.is_of_another(&subject.business_id, subject.user_id.as_deref()) {
            out.find(of_another, &key.name, format!("names {session_id:?} of another owner"));
        } else if !of_user && is_over(named) {
            let detail = format!("names {session_id:?}, which is ended");
            out.find_repairable("business-of-ended", &key.name, detail, Some(subject));
        } else if !of_user && score <= score_of(now.0) {
            out.stale += 1;
        }
    }

    async fn messages(
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
            self.pace.spend(page.len()).await;
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
            out.find("message-index", &key.name, format!("{surplus} message ids are of no stored message"));
        }
        Ok(())
    }

    async fn message_ids(
        &self,
        key: &FoundKey,
        id: SessionId,
        expiry: Expiry,
        out: &mut Inspection,
    ) -> Result<(), StoreError> {
        let has_session = self.messages_have_a_session(key, id, expiry, out).await?;
        // Where there are messages, they are compared with these ids when the walk meets them.
        if has_session && self.store.messages_page(id, None).await?.is_empty() {
            out.find("message-index", &key.name, "there are message ids, but no messages");
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
            out.find("message-stream", &key.name, "is of a session that does not exist");
        }
        let subject = match (named.business_id, named.user_id) {
            (Some(business_id), Some(user_id)) => {
                Some(RepairSubject { partition: key.partition, session_id, business_id, user_id: Some(user_id) })
            }
            _ => None,
        };
        out.check_expires(key, expiry, subject.as_ref());
        Ok(exists)
    }
}

/// Whether a key is where its own name says that it belongs.
fn is_at_home(key: &FoundKey) -> bool {
    match &key.kind {
        KeyKind::Session(id) | KeyKind::Messages(id) | KeyKind::MessageIds(id) => id.partition() == key.partition,
        KeyKind::Pointer(user) | KeyKind::History(user) => {
            Partition::of_user(&user.business_id, &user.user_id) == key.partition
        }
        KeyKind::Business(business_id) => Partition::of_business(business_id).contains(&key.partition),
    }
}

fn is_over(named: &NamedSession) -> bool {
    matches!(named.status, Some(Status::Ended | Status::Expired))
}

fn is_not(score: f64, time: Timestamp) -> bool {
    score.total_cmp(&score_of(time.0)).is_ne()
}

/// What a session's own fields say against each other and against the contract.
fn document_problems(session: &Session) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    let identifiers = [
        ("the business", &session.business_id),
        ("the user", &session.user_id),
        ("the location", &session.location_id),
        ("the type", &session.session_type),
    ];
    for (name, text) in identifiers {
        if let Err(problem) = Identifier::new(text.as_str()) {
            problems.push(("malformed-session", format!("{name} {problem}")));
        }
    }
    if session.title.as_ref().is_some_and(|title| title.chars().count() > TITLE_CHARS_MAX) {
        problems.push(("malformed-session", "title is too long".to_owned()));
    }
    if !is_json_object(&session.metadata) {
        problems.push(("malformed-session", "metadata is not a JSON object".to_owned()));
    }
    if session.version == 0 {
        problems.push(("malformed-session", "version is 0".to_owned()));
    }
    let is_expired = session.status == Status::Expired;
    // `createdAt` is the order of creation: it may be ahead of the clock, and so of the session's activity and end.
    let mut orders = vec![
        (("its creation", session.created_at), ("its last change", session.updated_at)),
        (("its last activity", session.last_activity_at), ("its expiry", session.expires_at)),
        (("its expiry", session.expires_at), ("the end of its lifetime", session.active_until)),
    ];
    if let Some(ended_at) = session.ended_at
        && is_expired
    {
        orders.push((("its expiry", session.expires_at), ("its end", ended_at)));
        orders.push((("its end", ended_at), ("its expiry", session.expires_at)));
    }
    for ((earlier, earlier_at), (later, later_at)) in orders {
        if earlier_at > later_at {
            problems.push(("impossible-times", format!("{earlier} {earlier_at} is after {later} {later_at}")));
        }
    }
    let fits = match (session.status, session.ended_at, session.end_reason) {
        (Status::Active, None, None) => true,
        (Status::Ended, Some(_), Some(reason)) => matches!(reason, EndReason::Client | EndReason::Replaced),
        (Status::Expired, Some(_), Some(reason)) => matches!(reason, EndReason::Idle | EndReason::MaxLifetime),
        _ => false,
    };
    if !fits {
        let reason = session.end_reason.map(EndReason::as_str);
        let detail =
            format!("status is {:?}, endedAt {:?}, endReason {reason:?}", session.status.as_str(), session.ended_at);
        problems.push(("status-and-end", detail));
    }
    problems
}

fn check_siblings(key: &FoundKey, expiry: Expiry, session: &Session, around: &Surroundings, out: &mut Inspection) {
    let is_pointed_at = around.pointed_id.as_deref() == Some(session.session_id.to_string().as_str());
    let points_rightly = session.status == Status::Active && is_pointed_at;
    let [messages, message_ids, pointer] = &around.siblings;
    for (sibling, sibling_expiry) in [messages, message_ids].into_iter().chain(points_rightly.then_some(pointer)) {
        // What never expires, or is not there, is found where it is or is missing.
        if let (Expiry::At(own), Expiry::At(other)) = (expiry, sibling_expiry)
            && own != *other
        {
            out.find("expiry-differs", &key.name, format!("expires {own}, {sibling} {other}"));
        }
    }
}

fn check_message_count(key: &FoundKey, session: &Session, around: &Surroundings, out: &mut Inspection) {
    let count = session.message_count;
    let newest = around.newest_entry.as_deref().map_or(Some(0), seq_of);
    if around.messages > count {
        let detail = format!("messageCount is {count}, {} messages are stored", around.messages);
        out.find("message-count", &key.name, detail);
    } else if let Some(newest) = newest
        && newest != count
    {
        out.find("message-count", &key.name, format!("messageCount is {count}, the newest message has seq {newest}"));
    }
}

/// The seq of an entry id `<seq>-0`.
fn seq_of(entry_id: &str) -> Option<u64> {
    entry_id.strip_suffix("-0").and_then(|seq| seq.parse().ok())
}

fn is_json_object(text: &str) -> bool {
    serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).is_ok()
}

fn message_problem(message: &Message) -> Option<&'static str> {
    if Identifier::new(message.message_id.as_str()).is_err() {
        return Some("its messageId is no identifier");
    }
    if message.content == "null" || serde_json::from_str::<IgnoredAny>(&message.content).is_err() {
        return Some("its content is no JSON value");
    }
    (!is_json_object(&message.metadata)).then_some("its metadata is not a JSON object")
}

/// The first of several faults, and how many there are.
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

/// A session's messages, from the oldest to the newest.
#[derive(Default)]
struct StreamCheck {
    newest_seq: Option<u64>,
    stream: Faults,
    index: Faults,
    /// Message ids of the index that need no other explanation.
    accounted: u64,
}

impl StreamCheck {
    /// Takes a page of messages, and what the index says of those that can be read.
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
                    // Its id cannot be told, so one that is left over is not held against the index.
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
