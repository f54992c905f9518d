//! Reads what the event streams of a business send.

use futures_util::FutureExt;
use futures_util::future::try_join_all;

use super::instrumented;
use crate::metrics::Operation;
use crate::session::{MessageJson, Partition, Session, Status, TenantScope, Timestamp};
use crate::store::redis::read_command::ReadCommand;
use crate::store::reply::Reply;
use crate::store::{Position, SessionStore, StoreError};

/// Maximum number of entries that one read of expired sessions returns.
const EXPIRED_MAX: usize = 1000;

/// Sessions that have expired.
pub(crate) struct ExpiredSessions {
    /// In the order in which they expired.
    pub(crate) sessions: Vec<Session>,
    /// The sessions that expired up to this time have been read.
    pub(crate) until: Timestamp,
}

impl SessionStore {
    /// The sessions of a business in one partition that expired after `since`, up to `now`; or the first of them, if
    /// there are many.
    pub(crate) async fn expired_sessions(
        &self,
        partition: Partition,
        business_id: &str,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<ExpiredSessions, StoreError> {
        instrumented(Operation::ReadStream, async move {
            let key = self.keys.business(partition, business_id);
            let (lowest, highest) = (format!("({}", since.0), now.0.to_string());
            let command = ReadCommand::sorted_set_up(key, lowest, highest, EXPIRED_MAX);
            let texts = self.read_command(command).await?.texts("expired_sessions")?;
            let is_full = texts.len() >= 2 * EXPIRED_MAX;
            let mut reply = Reply::of_texts("expired_sessions", texts);
            let mut entries = Vec::new();
            while !reply.is_empty() {
                // A damaged entry or session must not hide the others.
                if let (Ok(session_id), Ok(score)) = (reply.parse(), reply.parse()) {
                    entries.push(Position { score, session_id });
                }
            }
            let until = until_of(&mut entries, is_full).unwrap_or(now);
            let read = entries.iter().map(|entry| self.get_in_scope(entry.session_id, &TenantScope::Everything, now));
            let read = try_join_all(read.map(|read| read.map(skip_damaged))).await?.into_iter().flatten();
            let has_expired =
                |session: &Session| session.status == Status::Expired && session.business_id == business_id;
            Ok(ExpiredSessions { sessions: read.map(|session| *session).filter(has_expired).collect(), until })
        })
        .await
    }

    /// The messages of a session from `first` to `last` that are still stored.
    pub(crate) async fn kept_messages(
        &self,
        session: &Session,
        first: u64,
        last: u64,
    ) -> Result<Vec<MessageJson>, StoreError> {
        instrumented(Operation::ReadStream, async move {
            let (mut messages, mut seq) = (Vec::new(), first.max(session.oldest_seq));
            while seq <= last.min(session.message_count) {
                // One at a time: a large reply would delay the other reads on the connection.
                messages.extend(self.read_piece(session, seq, seq).await?.into_iter().flatten());
                seq += 1;
            }
            Ok(messages)
        })
        .await
    }
}

/// A session that cannot be parsed counts as missing.
fn skip_damaged(read: Result<Option<Box<Session>>, StoreError>) -> Result<Option<Box<Session>>, StoreError> {
    match read {
        Err(StoreError::Reply { .. }) => Ok(None),
        read => read,
    }
}

/// The time up to which these entries are complete, if the read was full: there may be more of the last time, whose
/// entries are therefore removed, unless all entries have that time.
fn until_of(entries: &mut Vec<Position>, is_full: bool) -> Option<Timestamp> {
    let last = entries.last().filter(|_| is_full)?.score;
    if entries[0].score == last {
        return Some(Timestamp(last));
    }
    entries.retain(|entry| entry.score < last);
    Some(Timestamp(last - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::SessionId;

    #[test]
    fn a_full_read_is_complete_up_to_the_last_time_that_it_has_completely() {
        let until = |scores: &[i64], is_full| {
            let id = SessionId::random(Partition::of_user("b", "u")).expect("an id");
            let mut entries: Vec<_> = scores.iter().map(|&score| Position { score, session_id: id }).collect();
            let until = until_of(&mut entries, is_full);
            (entries.len(), until.map(|until| until.0))
        };
        assert_eq!(until(&[], false), (0, None));
        assert_eq!(until(&[5, 7], false), (2, None));
        assert_eq!(until(&[5, 7, 8], true), (2, Some(7)));
        assert_eq!(until(&[5, 8, 8], true), (1, Some(7)));
        // More sessions than one read returns expired in the same millisecond: the others are skipped.
        assert_eq!(until(&[8, 8, 8], true), (3, Some(8)));
    }
}
