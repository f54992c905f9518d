//! Checks the latest turn of a session and its chunks.

use super::{Inspection, Inspector};
use crate::session::{OpenTurn, SessionId, TurnStatus, escaped_text};
use crate::store::StoreError;
use crate::store::keyspace::{Expiry, FoundKey, Stored};

impl Inspector<'_> {
    /// The session names the open turn, and no closed turn.
    pub(super) async fn turn(
        &self,
        key: &FoundKey,
        id: SessionId,
        expiry: Expiry,
        out: &mut Inspection,
    ) -> Result<(), StoreError> {
        out.check_expires(key, expiry, None);
        let turn = match self.store.latest_turn(id).await {
            Err(StoreError::Reply { problem, .. }) => {
                out.find("turn", &key.name, problem.to_owned());
                return Ok(());
            }
            turn => turn?,
        };
        let (Some(turn), Stored::Session(session)) = (turn, self.store.stored_session(id).await?) else {
            return Ok(());
        };
        let named = session.open_turn.as_ref();
        let is_named = named.is_some_and(|open| open.escaped_id == escaped_text(&turn.turn_id));
        if is_named != (turn.status == TurnStatus::Open) {
            out.find("turn", &key.name, format!("is {}, but its session says otherwise", turn.status.as_str()));
        }
        let is_same_lease = |open: &OpenTurn| Some(open.lease_until) == turn.lease_until;
        if is_named && !named.is_some_and(is_same_lease) {
            out.find("turn", &key.name, "and its session have different ends of the lease");
        }
        if is_named && turn.number != session.turn_number {
            out.find("turn", &key.name, "and its session have different numbers");
        }
        Ok(())
    }
}
