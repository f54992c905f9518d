//! Lists the sessions of a user for an export.

use futures_util::future::try_join_all;

use super::instrumented;
use super::session_page::ScoreBound;
use crate::metrics::Operation;
use crate::session::{Identifier, Session, TenantScope, Timestamp};
use crate::store::redis::read_command::ReadCommand;
use crate::store::reply::Reply;
use crate::store::{Position, SessionStore, StoreError};

/// Number of sessions that one step of an export reads.
const SESSIONS_MAX: usize = 16;

impl SessionStore {
    /// The user's next sessions after a position of the history, first created or resumed first; and the position to
    /// continue from, if there may be more.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn export_user(
        &self,
        business_id: &Identifier,
        user_id: &Identifier,
        after: Option<Position>,
        now: Timestamp,
    ) -> Result<(Vec<Session>, Option<Position>), StoreError> {
        instrumented(Operation::ExportUser, async move {
            let key = self.keys.history(business_id.as_str(), user_id.as_str());
            let lowest = after.map_or(ScoreBound::Infinite, |position| ScoreBound::Above(position.score));
            let (lowest, highest) = (lowest.to_text("-inf"), ScoreBound::Infinite.to_text("+inf"));
            let command = ReadCommand::sorted_set_up(key, lowest, highest, SESSIONS_MAX);
            let mut reply = Reply::of_texts("export_user", self.read_command(command).await?.texts("export_user")?);
            let mut entries = Vec::with_capacity(SESSIONS_MAX);
            while !reply.is_empty() {
                entries.push(Position { session_id: reply.parse()?, score: reply.parse()? });
            }
            let next = entries.last().copied().filter(|_| entries.len() == SESSIONS_MAX);
            let user = TenantScope::User { business_id: business_id.clone(), user_id: user_id.clone() };
            let read = entries.iter().map(|entry| self.get_in_scope(entry.session_id, &user, now));
            Ok((try_join_all(read).await?.into_iter().flatten().map(|session| *session).collect(), next))
        })
        .await
    }
}
