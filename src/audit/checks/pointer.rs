//! Checks a user's active pointer.

use super::{Inspection, Inspector, has_ended};
use crate::store::StoreError;
use crate::store::keyspace::{Expiry, FoundKey, RepairTarget, User};

impl Inspector<'_> {
    pub(super) async fn pointer(
        &self,
        key: &FoundKey,
        user: &User,
        expiry: Expiry,
        out: &mut Inspection,
    ) -> Result<(), StoreError> {
        let Some(session_id) = self.store.pointer_target(&key.name).await? else {
            return Ok(());
        };
        let session_ref = self.store.session_ref(key.partition, &session_id).await?;
        let target = RepairTarget {
            partition: key.partition,
            session_id: session_id.clone(),
            business_id: user.business_id.clone(),
            user_id: Some(user.user_id.clone()),
        };
        out.check_expires(key, expiry, Some(&target));
        let found = if !session_ref.exists() {
            Some(("pointer-to-nothing", "which does not exist"))
        } else if session_ref.is_of_another(&user.business_id, Some(&user.user_id)) {
            Some(("pointer-to-another", "which is another user's"))
        } else if has_ended(&session_ref) {
            Some(("pointer-to-ended", "which is ended"))
        } else {
            None
        };
        if let Some((invariant, how)) = found {
            out.find_repairable(invariant, &key.name, format!("names {session_id:?}, {how}"), Some(&target));
        }
        Ok(())
    }
}
