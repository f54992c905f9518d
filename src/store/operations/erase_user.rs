//! Erases every session and message of a user.

use super::instrumented;
use crate::metrics::{self, Operation};
use crate::session::{Identifier, Partition, Timestamp};
use crate::store::{SessionStore, StoreError};

impl SessionStore {
    /// Erases every session and message of a user. Returns the number of erased sessions.
    ///
    /// # Errors
    /// If the store cannot serve. Some sessions may have been erased by then; another call erases the rest.
    pub async fn erase_user(
        &self,
        business_id: &Identifier,
        user_id: &Identifier,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        instrumented(Operation::EraseUser, async move {
            let (business_id, user_id) = (business_id.as_str(), user_id.as_str());
            let partition = Partition::of_user(business_id, user_id);
            let mut erased = 0;
            loop {
                let keys = vec![
                    self.keys.pointer(business_id, user_id),
                    self.keys.history(business_id, user_id),
                    self.keys.business(partition, business_id),
                ];
                let args =
                    vec![self.keys.partition(partition), now.0.to_string(), business_id.to_owned(), user_id.to_owned()];
                let mut reply = self.run(&self.scripts.erase_user, keys, args).await?;
                match reply.string()?.as_str() {
                    "erased" => {
                        let batch = reply.parse::<u64>()?;
                        metrics::sessions_deleted(batch);
                        erased += batch;
                        if reply.parse::<u64>()? == 0 {
                            return Ok(erased);
                        }
                    }
                    _ => return Err(reply.unknown_tag()),
                }
            }
        })
        .await
    }
}
