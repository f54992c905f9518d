//! Checks the indexes: the history of a user, and the active sessions of a business.

use futures_util::future::try_join_all;

use super::{EXPIRY_DRIFT_MS, Inspection, Inspector, has_ended};
use crate::session::Timestamp;
use crate::store::keyspace::{Expiry, FoundKey, INDEX_PAGE, RepairTarget, SessionRef};
use crate::store::{StoreError, score_of};

impl Inspector<'_> {
    /// Checks a user's history, or the active sessions of a business. `owner` is the business and, for a history, the
    /// user.
    pub(super) async fn index(
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
            self.throttle.spend(entries.len()).await;
            let session_refs =
                try_join_all(entries.iter().map(|(id, _)| self.store.session_ref(key.partition, id))).await?;
            for ((session_id, score), session_ref) in entries.iter().zip(&session_refs) {
                let target = RepairTarget {
                    partition: key.partition,
                    session_id: session_id.clone(),
                    business_id: owner.0.to_owned(),
                    user_id: owner.1.map(str::to_owned),
                };
                if place == 0 && *session_id == entries[0].0 {
                    // A repair finds the index by any of its entries.
                    out.check_expires(key, expiry, Some(&target));
                }
                self.entry(key, &target, *score, session_ref, now, out);
                // An entry of a business's index is required only while its session is active.
                let counts = owner.1.is_some() || !has_ended(session_ref);
                if let Expiry::At(time) = session_ref.expiry
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
            && latest.0.0.saturating_sub(time.0) >= EXPIRY_DRIFT_MS.cast_signed()
        {
            let detail = format!("expires at {time}, but its session {:?} at {}", latest.1, latest.0);
            out.find("expiry-too-early", &key.name, detail);
        }
        Ok(())
    }

    fn entry(
        &self,
        key: &FoundKey,
        target: &RepairTarget,
        score: f64,
        session_ref: &SessionRef,
        now: Timestamp,
        out: &mut Inspection,
    ) {
        let session_id = &target.session_id;
        let of_user = target.user_id.is_some();
        let (dangling, of_another) = if of_user {
            ("history-dangling", "history-of-another")
        } else {
            ("business-dangling", "business-of-another")
        };
        if !session_ref.exists() {
            // No score is later than the session's end, so Redis may have removed the session once score + retention
            // has passed.
            if score + score_of(self.store.retention_ms()) <= score_of(now.0) {
                out.stale += 1;
            } else {
                let detail = format!("names {session_id:?}, which does not exist");
                out.find_repairable(dangling, &key.name, detail, Some(target));
            }
        } else if session_ref.is_of_another(&target.business_id, target.user_id.as_deref()) {
            out.find(of_another, &key.name, format!("names {session_id:?} of another owner"));
        } else if !of_user && has_ended(session_ref) {
            let detail = format!("names {session_id:?}, which is ended");
            out.find_repairable("business-of-ended", &key.name, detail, Some(target));
        } else if !of_user && score <= score_of(now.0) {
            out.stale += 1;
        }
    }
}
