//! The checks of one key and of the keys that it must agree with; one file per kind of key.

mod index;
mod messages;
mod pointer;
mod session;
mod turn;

use super::{Finding, Throttle};
use crate::session::{Partition, Status, Timestamp};
use crate::store::keyspace::{Expiry, FoundKey, KeyKind, RepairTarget, SessionRef, WalkedKey};
use crate::store::{SessionStore, StoreError};

/// Minimum difference of expiries that is a finding. Moving a slot (MIGRATE) keeps the remaining time of a key, not the
/// moment of its expiry. So each move may shift an expiry by the duration of the move.
const EXPIRY_DRIFT_MS: u64 = 1_000;

/// Checks keys.
pub(super) struct Inspector<'a> {
    pub(super) store: &'a SessionStore,
    pub(super) clock: &'a (dyn Fn() -> Timestamp + Sync),
    pub(super) throttle: &'a Throttle,
}

/// The result of one check of one key.
#[derive(Default)]
pub(super) struct Inspection {
    pub(super) sessions: u64,
    pub(super) active: u64,
    pub(super) stale: u64,
    pub(super) found: Vec<Found>,
}

/// A finding, and the target of its repair if that is safe.
pub(super) struct Found {
    pub(super) finding: Finding,
    pub(super) target: Option<RepairTarget>,
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
        target: Option<&RepairTarget>,
    ) {
        let finding = Finding { invariant, key: key.to_owned(), detail: detail.into() };
        self.found.push(Found { finding, target: target.cloned() });
    }

    fn check_expires(&mut self, key: &FoundKey, expiry: Expiry, target: Option<&RepairTarget>) {
        if expiry == Expiry::Never {
            self.find_repairable("expiry-missing", &key.name, "never expires", target);
        }
    }
}

impl Inspector<'_> {
    /// Checks one key.
    pub(super) async fn inspect(&self, key: &WalkedKey) -> Result<Inspection, StoreError> {
        let mut out = Inspection::default();
        let name = match key {
            WalkedKey::Known(key) => &key.name,
            WalkedKey::Unknown(name) => name,
        };
        // Reads the clock before the data: otherwise an expiry that the service stored in between would look premature.
        let now = (self.clock)();
        let state = self.store.key_state(name).await?;
        if state.type_name == "none" {
            return Ok(out);
        }
        let WalkedKey::Known(key) = key else {
            out.find("unknown-key", name, format!("a {} that does not belong to the layout", state.type_name));
            return Ok(out);
        };
        if state.type_name != key.expected_type() {
            out.find("wrong-type", name, format!("is a {}, not a {}", state.type_name, key.expected_type()));
        } else if !is_in_its_partition(key) {
            out.find("wrong-partition", name, "its session or owner belongs to another partition");
        } else {
            let expiry = state.expiry;
            match &key.kind {
                KeyKind::Session(id) => self.session(key, *id, expiry, now, &mut out).await?,
                KeyKind::Messages(id) => self.messages(key, *id, expiry, &mut out).await?,
                KeyKind::MessageIds(id) => self.message_ids(key, *id, expiry, &mut out).await?,
                KeyKind::Turn(id) => self.turn(key, *id, expiry, &mut out).await?,
                KeyKind::Chunks(_) => out.check_expires(key, expiry, None),
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
}

/// Whether a key is in the partition to which its name assigns it.
fn is_in_its_partition(key: &FoundKey) -> bool {
    match &key.kind {
        KeyKind::Session(id)
        | KeyKind::Messages(id)
        | KeyKind::MessageIds(id)
        | KeyKind::Turn(id)
        | KeyKind::Chunks(id) => id.partition() == key.partition,
        KeyKind::Pointer(user) | KeyKind::History(user) => {
            Partition::of_user(&user.business_id, &user.user_id) == key.partition
        }
        KeyKind::Business(business_id) => Partition::of_business(business_id).contains(&key.partition),
    }
}

fn has_ended(session_ref: &SessionRef) -> bool {
    matches!(session_ref.status, Some(Status::Ended | Status::Expired))
}

fn is_json_object(text: &str) -> bool {
    serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).is_ok()
}
