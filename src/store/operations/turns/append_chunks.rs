//! Appends chunks to the open turn.

use super::NotOpen;
use crate::metrics::Operation;
use crate::session::{Identifier, SessionId, Status, TenantScope, Timestamp, escaped_text};
use crate::store::operations::instrumented;
use crate::store::{SessionStore, StoreError};

/// Chunks to append.
#[derive(Clone, Debug)]
pub struct NewChunks {
    /// The turn.
    pub turn_id: Identifier,
    /// The number of the turn.
    pub number: u64,
    /// The number of the first chunk, from 0.
    pub from: u64,
    /// Escaped JSON texts without quotes.
    pub chunks: Vec<String>,
}

/// The turn after an append.
#[derive(Clone, Copy, Debug)]
pub struct ChunksAppended {
    /// How many chunks it has.
    pub next_chunk: u64,
    /// When the lease ends.
    pub lease_until: Timestamp,
    /// Whether the writer should stop.
    pub cancel_requested: bool,
}

/// Outcome of [`SessionStore::append_chunks`].
#[derive(Debug)]
pub enum AppendChunks {
    /// All chunks are stored.
    Appended(ChunksAppended),
    /// The turn has only this many chunks.
    Gap(u64),
    /// A stored chunk with one of these numbers has other content.
    Conflict,
    /// The turn would have too many chunks or bytes.
    TooLarge,
    /// The writer does not have the turn, or it is closed.
    NotOpen(NotOpen),
    /// The session does not exist.
    Missing,
}

impl SessionStore {
    /// Appends chunks to the open turn of a session within `scope`, and renews its lease.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn append_chunks(
        &self,
        id: SessionId,
        new: &NewChunks,
        scope: &TenantScope,
        now: Timestamp,
    ) -> Result<AppendChunks, StoreError> {
        instrumented(Operation::AppendChunks, async move {
            // The script checks the scope, unless the scope has too many businesses to send.
            let lines = scope.lines();
            if lines.is_none() && self.get_in_scope(id, scope, now).await?.is_none() {
                return Ok(AppendChunks::Missing);
            }
            let turn_id = escaped_text(new.turn_id.as_str());
            let mut args = vec![
                id.to_string(),
                lines.unwrap_or_default(),
                now.0.to_string(),
                turn_id.clone(),
                new.number.to_string(),
                new.from.to_string(),
            ];
            args.extend(new.chunks.iter().cloned());
            let keys = vec![self.keys.session(id), self.keys.turn(id), self.keys.chunks(id)];
            let reply = self.run(&self.scripts.append_chunks, keys, args).await;
            let Some(mut reply) = self.reply_in_scope(reply, id, scope, now).await? else {
                return Ok(AppendChunks::Missing);
            };
            match reply.string()?.as_str() {
                "appended" => {
                    let appended = ChunksAppended {
                        next_chunk: reply.parse()?,
                        lease_until: reply.time()?,
                        cancel_requested: !reply.string()?.is_empty(),
                    };
                    let is_active = reply.string()? == Status::Active.as_str();
                    let times = [reply.time()?, reply.time()?, reply.time()?];
                    if is_active && self.config.lifecycle.is_due(times, now) {
                        self.record_activity_of(id, now).await;
                    }
                    Ok(AppendChunks::Appended(appended))
                }
                "chunk_gap" => Ok(AppendChunks::Gap(reply.parse()?)),
                "chunk_conflict" => Ok(AppendChunks::Conflict),
                "too_large" => Ok(AppendChunks::TooLarge),
                "taken" => Ok(AppendChunks::NotOpen(NotOpen::Taken)),
                "not_open" => Ok(AppendChunks::NotOpen(self.not_open(id, &turn_id, now).await?)),
                "damaged" => Err(reply.unexpected("the turn lacks chunks")),
                "missing" => Ok(AppendChunks::Missing),
                _ => Err(reply.unknown_tag()),
            }
        })
        .await
    }

    async fn record_activity_of(&self, id: SessionId, now: Timestamp) {
        if let Ok(Some(session)) = self.get_in_scope(id, &TenantScope::Everything, now).await {
            self.record_activity(&session, now).await;
        }
    }
}
