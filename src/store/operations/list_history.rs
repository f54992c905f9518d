//! Lists the sessions of a user.

use super::instrumented;
use super::session_page::{PAGE_READS_MAX, PageBuilder, REFILL_ENTRIES_MIN, ScoreBound};
use super::{PageRequest, SessionPage};
use crate::metrics::Operation;
use crate::session::{Identifier, Session, Timestamp};
use crate::store::{SessionStore, StoreError};

impl SessionStore {
    /// A page of the user's sessions, the one created or resumed last first. It ends after the requested number of
    /// sessions or 4 MiB.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn list_history(
        &self,
        business_id: &Identifier,
        user_id: &Identifier,
        request: PageRequest,
        now: Timestamp,
    ) -> Result<SessionPage, StoreError> {
        instrumented(Operation::ListHistory, async move {
            let key = self.keys.history(business_id.as_str(), user_id.as_str());
            let is_of_user = |session: &Session| session.is_of_user(business_id, user_id);
            let mut page = PageBuilder::new(request);
            let mut wanted = request.limit + 1;
            // Entries whose session no longer exists leave gaps. A page with very many gaps stays short, and has a next
            // page.
            for _ in 0..PAGE_READS_MAX {
                // Scores are unique, because each create and resume takes a score above those of the user's history.
                let highest = page.after.map_or(ScoreBound::Infinite, |position| ScoreBound::Below(position.score));
                let entries = self.range_down(&key, highest, ScoreBound::Infinite, wanted).await?;
                let exhausted = entries.len() < wanted;
                if self.fill_page(&mut page, &entries, &is_of_user, now).await? {
                    break;
                }
                if exhausted {
                    return Ok(page.last());
                }
                wanted = wanted.max(REFILL_ENTRIES_MIN);
            }
            Ok(page.with_next())
        })
        .await
    }
}
