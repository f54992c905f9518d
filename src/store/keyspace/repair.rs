//! Repairs the indexes of one session.

use super::{RepairTarget, is_wrong_type};
use crate::session::Timestamp;
use crate::store::{SessionStore, StoreError};

impl SessionStore {
    /// Repairs what is safe to repair about one session id. Returns what was done, each with its key.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn repair(&self, target: &RepairTarget, now: Timestamp) -> Result<Vec<(String, String)>, StoreError> {
        let partition = self.keys.partition(target.partition);
        let id = &target.session_id;
        let mut keys = Vec::from(self.keys.named(target.partition, id));
        keys.push(self.keys.business(target.partition, &target.business_id));
        if let Some(user_id) = &target.user_id {
            keys.push(self.keys.pointer(&target.business_id, user_id));
            keys.push(self.keys.history(&target.business_id, user_id));
        }
        let (lifetime_ms, retention_ms) =
            (self.config.lifecycle.max_lifetime_ms(), self.config.lifecycle.retention_ms());
        let args = vec![
            partition,
            id.clone(),
            target.business_id.clone(),
            target.user_id.clone().unwrap_or_default(),
            now.0.to_string(),
            (now.0 + lifetime_ms + retention_ms).to_string(),
        ];
        let mut reply = match self.scripts.repair.run(&self.topology, keys, args).await {
            // A key of the wrong type stops the script before it writes. The audit reports that key.
            Err(StoreError::Rejected(error)) if is_wrong_type(&error) => return Ok(Vec::new()),
            reply => reply?,
        };
        match reply.string()?.as_str() {
            "repaired" => {}
            _ => return Err(reply.unknown_tag()),
        }
        let mut done = Vec::new();
        while !reply.is_empty() {
            done.push((reply.string()?, reply.string()?));
        }
        Ok(done)
    }
}
