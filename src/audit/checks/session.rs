//! Checks the hash of a session, and that the related keys agree with it.

use super::{EXPIRY_DRIFT_MS, Inspection, Inspector, is_json_object};
use crate::session::{EndReason, Identifier, Partition, Session, SessionId, Status, TITLE_CHARS_MAX, Timestamp};
use crate::store::keyspace::{Expiry, FoundKey, INDEX_PAGE, RelatedKeys, RepairTarget, Stored};
use crate::store::{StoreError, score_of};

impl Inspector<'_> {
    pub(super) async fn session(
        &self,
        key: &FoundKey,
        id: SessionId,
        expiry: Expiry,
        now: Timestamp,
        out: &mut Inspection,
    ) -> Result<(), StoreError> {
        out.sessions = 1;
        let session = match self.store.stored_session(id).await? {
            Stored::Session(session) => session,
            Stored::Malformed(problem) => {
                out.find("malformed-session", &key.name, problem);
                return Ok(());
            }
        };
        if Partition::of_user(&session.business_id, &session.user_id) != id.partition() {
            out.find("wrong-partition", &key.name, "its user belongs to another partition");
            return Ok(());
        }
        for (invariant, detail) in document_problems(&session) {
            out.find(invariant, &key.name, detail);
        }
        let target = RepairTarget {
            partition: key.partition,
            session_id: id.to_string(),
            business_id: session.business_id.clone(),
            user_id: Some(session.user_id.clone()),
        };
        out.check_expires(key, expiry, Some(&target));
        let related = Box::pin(self.store.related_keys(&session)).await?;
        compare_expiries(key, expiry, &session, &related, out);
        check_message_count(key, &session, &related, out);
        self.open_turn(key, &session, out).await?;
        match related.history_score {
            None => out.find_repairable("history-missing", &key.name, "is not in its user's history", Some(&target)),
            Some(score) if is_not(score, session.history_at) => {
                out.find("history-score", &key.name, format!("is {score}, not {}", session.history_at.0));
            }
            Some(_) => {}
        }
        if session.status == Status::Active {
            self.marked_active(key, &session, &related, &target, now, out).await?;
        }
        Ok(())
    }

    /// Checks a session with the stored status `active`, whether or not its `expiresAt` has passed.
    async fn marked_active(
        &self,
        key: &FoundKey,
        session: &Session,
        related: &RelatedKeys,
        target: &RepairTarget,
        now: Timestamp,
        out: &mut Inspection,
    ) -> Result<(), StoreError> {
        let is_active = now < session.expires_at;
        out.active = u64::from(is_active);
        match related.business_score {
            None if is_active => {
                let detail = "is active, but not in its business's index";
                out.find_repairable("business-missing", &key.name, detail, Some(target));
            }
            Some(score) if is_not(score, session.expires_at) => {
                out.find("business-score", &key.name, format!("is {score}, expiresAt is {}", session.expires_at.0));
            }
            _ => {}
        }
        if related.pointed_id.as_ref() == Some(&target.session_id) {
            return Ok(());
        }
        if let Some(other) = self.another_active(session, related).await? {
            out.find("two-active", &key.name, format!("is marked active, and so is {other:?} of the same user"));
        } else {
            let detail = format!("is marked active; its user's pointer names {:?}", related.pointed_id);
            out.find_repairable("active-not-pointed-at", &key.name, detail, Some(target));
        }
        Ok(())
    }

    /// Finds another session of the user that is marked active, in the pointer and the history.
    async fn another_active(&self, session: &Session, related: &RelatedKeys) -> Result<Option<String>, StoreError> {
        let id = session.session_id;
        let (business_id, user_id) = (session.business_id.as_str(), session.user_id.as_str());
        let history = self.store.history_key(business_id, user_id);
        let mut others: Vec<_> = related.pointed_id.iter().cloned().collect();
        let mut place = 0;
        loop {
            for other in &others {
                let session_ref = self.store.session_ref(id.partition(), other).await?;
                let is_users = !session_ref.is_of_another(business_id, Some(user_id));
                if *other != id.to_string() && is_users && session_ref.status == Some(Status::Active) {
                    return Ok(Some(other.clone()));
                }
            }
            others = self.store.index_page(&history, place).await?.into_iter().map(|(id, _)| id).collect();
            if others.is_empty() {
                return Ok(None);
            }
            self.throttle.spend(others.len()).await;
            place += i64::from(INDEX_PAGE);
        }
    }
}

fn is_not(score: f64, time: Timestamp) -> bool {
    score.total_cmp(&score_of(time.0)).is_ne()
}

/// Finds fields of a session that are not valid or contradict each other.
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
    // `createdAt` gives the order of creation and may be ahead of the clock, so it may be later than the session's
    // activity and end.
    let mut orders = vec![
        (("its creation", session.created_at), ("its creation or last resume", session.history_at)),
        (("its creation or last resume", session.history_at), ("its last change", session.updated_at)),
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

fn compare_expiries(key: &FoundKey, expiry: Expiry, session: &Session, related: &RelatedKeys, out: &mut Inspection) {
    let is_pointed_at = related.pointed_id.as_deref() == Some(session.session_id.to_string().as_str());
    let is_its_pointer = session.status == Status::Active && is_pointed_at;
    let [messages, message_ids, pointer] = &related.keys_with_expiry;
    for (related_key, related_expiry) in [messages, message_ids].into_iter().chain(is_its_pointer.then_some(pointer)) {
        // Other checks report keys that are missing or never expire.
        if let (Expiry::At(own), Expiry::At(other)) = (expiry, related_expiry)
            && own.0.abs_diff(other.0) >= EXPIRY_DRIFT_MS
        {
            out.find("expiry-differs", &key.name, format!("expires at {own}, {related_key} at {other}"));
        }
    }
}

fn check_message_count(key: &FoundKey, session: &Session, related: &RelatedKeys, out: &mut Inspection) {
    let (oldest, count) = (session.oldest_seq, session.message_count);
    let expected = (count + 1).saturating_sub(oldest);
    if related.messages != expected {
        let detail = format!("messages {oldest} to {count} are expected, {} are stored", related.messages);
        out.find("message-count", &key.name, detail);
    } else if let Some(stored) = related.oldest_and_newest
        && stored != (oldest, count)
    {
        let detail = format!("messages {oldest} to {count} are expected, {} to {} are stored", stored.0, stored.1);
        out.find("message-count", &key.name, detail);
    }
}
