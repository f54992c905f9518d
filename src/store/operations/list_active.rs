//! Lists the active sessions of a business.

use std::cmp::Reverse;

use futures_util::future::try_join_all;

use super::instrumented;
use super::session_page::{PAGE_READS_MAX, PageBuilder, ScoreBound};
use super::{PageRequest, Position, SessionPage};
use crate::metrics::Operation;
use crate::session::{Identifier, Partition, Session, Status, Timestamp};
use crate::store::redis::read_command::ReadCommand;
use crate::store::{SessionStore, StoreError};

impl SessionStore {
    /// A page of the active sessions of a business, latest expiry first, and the total number of active sessions. The
    /// page ends after the requested number of sessions or 4 MiB.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn list_active(
        &self,
        business_id: &Identifier,
        request: PageRequest,
        now: Timestamp,
    ) -> Result<(SessionPage, u64), StoreError> {
        instrumented(Operation::ListActive, async move {
            let partitions = Partition::of_business(business_id.as_str());
            let keys: Vec<_> =
                partitions.into_iter().map(|partition| self.keys.business(partition, business_id.as_str())).collect();
            let totals = try_join_all(keys.iter().map(|key| self.count_active(key, now)));
            let page = self.page_of_active(business_id, &keys, request, now);
            let (totals, page) = futures_util::try_join!(totals, page)?;
            Ok((page, totals.into_iter().sum()))
        })
        .await
    }

    async fn page_of_active(
        &self,
        business_id: &Identifier,
        keys: &[String],
        request: PageRequest,
        now: Timestamp,
    ) -> Result<SessionPage, StoreError> {
        let (mut page, limit) = (PageBuilder::new(request), request.limit);
        for _ in 0..PAGE_READS_MAX {
            let mut entries = self.merged_entries(keys, page.after, now, limit + 1).await?;
            entries.truncate(limit + 1);
            let exhausted = entries.len() <= limit;
            let is_active =
                |session: &Session| session.status == Status::Active && session.business_id == business_id.as_str();
            if self.fill_page(&mut page, &entries, &is_active, now).await? {
                break;
            }
            if exhausted {
                return Ok(page.last());
            }
        }
        Ok(page.with_next())
    }

    /// The first entries of all indexes after a position: at least `wanted`, unless there are fewer.
    ///
    /// Each index is asked for its share and a little more. Those of which every entry is on the page are asked again:
    /// the next entry of such an index may be on the page as well.
    async fn merged_entries(
        &self,
        keys: &[String],
        after: Option<Position>,
        now: Timestamp,
        wanted: usize,
    ) -> Result<Vec<Position>, StoreError> {
        let order = |entry: &Position| Reverse((entry.score, entry.session_id));
        let share = wanted.div_ceil(keys.len());
        let count = share + share.div_ceil(2);
        let mut merged: Vec<Position> = Vec::with_capacity(keys.len() * count);
        // The indexes to ask, each with the last entry that was read of it.
        let mut asked: Vec<_> = keys.iter().map(|key| (key, after)).collect();
        while !asked.is_empty() {
            let reads = asked.iter().map(|(key, after)| self.active_entries(key, *after, now, count));
            let mut unread = Vec::new();
            for (entries, (key, _)) in try_join_all(reads).await?.into_iter().zip(asked) {
                if entries.len() >= count {
                    unread.push((key, entries.last().copied()));
                }
                merged.extend(entries);
            }
            merged.sort_unstable_by_key(order);
            if let Some(last) = merged.get(wanted - 1) {
                unread.retain(|(_, end)| end.as_ref().is_some_and(|end| order(end) <= order(last)));
            }
            asked = unread;
        }
        Ok(merged)
    }

    /// The first `limit` entries of one business index after a position. Several sessions may expire in the same
    /// millisecond, so entries with the position's own score are read again, and those up to the position are dropped.
    /// If too few remain, twice as many are read.
    async fn active_entries(
        &self,
        key: &str,
        after: Option<Position>,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Position>, StoreError> {
        let highest = after.map_or(ScoreBound::Infinite, |position| ScoreBound::Inclusive(position.score));
        let is_after = |entry: &Position| {
            after.is_none_or(|after| (entry.score, entry.session_id) < (after.score, after.session_id))
        };
        let mut count = limit;
        loop {
            let mut entries = self.range_down(key, highest, ScoreBound::Above(now.0), count).await?;
            let exhausted = entries.len() < count;
            entries.retain(is_after);
            if exhausted || entries.len() >= limit {
                return Ok(entries);
            }
            count *= 2;
        }
    }

    async fn count_active(&self, key: &str, now: Timestamp) -> Result<u64, StoreError> {
        let command = ReadCommand::sorted_set_count(key.to_owned(), format!("({}", now.0), "+inf".to_owned());
        let count = self.read_command(command).await?.integer("list_active")?;
        Ok(count.unsigned_abs())
    }
}
