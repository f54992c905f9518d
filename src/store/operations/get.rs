//! Reads one session.

use super::instrumented;
use crate::metrics::Operation;
use crate::session::{Session, SessionId, TenantScope, Timestamp};
use crate::store::{SessionStore, StoreError};

impl SessionStore {
    /// One session, or `None` if it does not exist, is no longer readable, or is outside `scope`.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn get(
        &self,
        id: SessionId,
        scope: &TenantScope,
        now: Timestamp,
    ) -> Result<Option<Box<Session>>, StoreError> {
        instrumented(Operation::Get, self.get_in_scope(id, scope, now)).await
    }
}
