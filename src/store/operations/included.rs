//! Adds the newest message and the open turn to sessions that have been read.

use futures_util::future::try_join_all;

use super::instrumented;
use crate::metrics::Operation;
use crate::session::{Include, LastMessage, Session, SessionView, Timestamp, ViewedTurn};
use crate::store::response_memory::{MemoryPermit, PAGE_BYTES_MAX, PIECE_BYTES, ResponseOwner};
use crate::store::{SessionStore, StoreError};

impl SessionStore {
    /// A session with the members that the caller requested, for `owner`, and the memory of a large response. Keep the
    /// memory until the response is sent. The message is omitted if the response would exceed 4 MiB.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn with_included(
        &self,
        session: Box<Session>,
        include: Include,
        owner: ResponseOwner,
        now: Timestamp,
    ) -> Result<(SessionView, Option<MemoryPermit>), StoreError> {
        instrumented(Operation::Include, async move {
            let session = self.with_lost_turn_closed(session, now).await?;
            let message_bytes = if include.last_message { session.largest_message_bytes } else { 0 };
            let mut memory = self.response_memory.reserve_if_large(owner, message_bytes).await?;
            let mut view = SessionView::of(session);
            if include.turn {
                self.include_turns(&mut [&mut view], now).await?;
            }
            if include.last_message {
                let last_message = self.last_message(&view.session).await?;
                view.include_last_message(last_message, PAGE_BYTES_MAX);
            }
            if let Some(memory) = &mut memory {
                memory.shrink_to(view.json_bytes());
            }
            Ok((view, memory))
        })
        .await
    }

    /// Adds the open turn to each of these sessions.
    pub(super) async fn include_turns(&self, views: &mut [&mut SessionView], now: Timestamp) -> Result<(), StoreError> {
        let turns = try_join_all(views.iter().map(|view| self.open_turn(&view.session, now))).await?;
        for (view, turn) in views.iter_mut().zip(turns) {
            view.turn = turn.map_or(ViewedTurn::Null, ViewedTurn::Turn);
        }
        Ok(())
    }

    /// Adds the newest message to each of these sessions until one does not fit into `bytes_max` bytes. Reads a limited
    /// number of bytes at a time. Returns whether all messages fit.
    pub(super) async fn include_last_messages(
        &self,
        views: &mut [&mut SessionView],
        bytes_max: usize,
    ) -> Result<bool, StoreError> {
        let largest = views.iter().map(|view| view.session.largest_message_bytes).max().unwrap_or_default();
        let mut room = bytes_max;
        for piece in views.chunks_mut((PIECE_BYTES / largest.max(1)).max(1)) {
            let messages = try_join_all(piece.iter().map(|view| self.last_message(&view.session))).await?;
            for (view, message) in piece.iter_mut().zip(messages) {
                if !view.include_last_message(message, room) {
                    return Ok(false);
                }
                room = room.saturating_sub(view.json_bytes());
            }
        }
        Ok(true)
    }

    /// The newest message of a session that has been read. Omitted if it is no longer stored.
    async fn last_message(&self, session: &Session) -> Result<LastMessage, StoreError> {
        let newest = session.message_count;
        if newest == 0 {
            return Ok(LastMessage::Null);
        }
        let read = self.read_piece(session, newest, newest).await?;
        Ok(read.and_then(|mut messages| messages.pop()).map_or(LastMessage::Omitted, LastMessage::Message))
    }
}
