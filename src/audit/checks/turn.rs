//! Checks the latest turn of a session.

use super::{Inspection, Inspector};
use crate::session::{OpenTurn, Session, SessionId, TurnStatus, escaped_text};
use crate::store::StoreError;
use crate::store::keyspace::{Expiry, FoundKey, Stored};

const INVARIANT: &str = "turn-and-session";

impl Inspector<'_> {
    /// The session's open turn exists.
    pub(super) async fn open_turn(
        &self,
        key: &FoundKey,
        session: &Session,
        out: &mut Inspection,
    ) -> Result<(), StoreError> {
        if session.open_turn.is_none() {
            return Ok(());
        }
        match self.store.latest_turn(session.session_id).await {
            Ok(None) => out.find(INVARIANT, &key.name, "has an open turn that does not exist"),
            // The check of the turn reports one that cannot be parsed.
            Ok(Some(_)) | Err(StoreError::Reply { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

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
                out.find("malformed-turn", &key.name, problem.to_owned());
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
            out.find(INVARIANT, &key.name, format!("is {}, but its session says otherwise", turn.status.as_str()));
        }
        let is_same_lease = |open: &OpenTurn| Some(open.lease_until) == turn.lease_until;
        if is_named && !named.is_some_and(is_same_lease) {
            out.find(INVARIANT, &key.name, "and its session have different ends of the lease");
        }
        if is_named && turn.number != session.turn_number {
            out.find(INVARIANT, &key.name, "and its session have different numbers");
        }
        Ok(())
    }
}
