//! The body of a response with the events of one session.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::body::{Body, Frame};

use super::RETRY_READ;
use super::event::Event;
use super::feeds::Membership;
use super::position::{Position, ResetReason};
use super::ring::Next;
use super::session_feed::{CaughtUp, SessionFeed};
use crate::metrics;
use crate::session::SessionId;

/// A stream of one session. While it is live, it has no task, queue or timer of its own.
pub struct SessionStream {
    membership: Membership<SessionId, SessionFeed>,
    state: State,
    position: Position,
    /// How many messages to send if the stream cannot continue from its position.
    last: u64,
    unsent: VecDeque<Event>,
}

enum State {
    /// Sends what is unsent, and then reads from the store.
    Behind,
    CatchingUp(BoxFuture<'static, CaughtUp>),
    /// Next takes the feed's event with this number.
    Live(u64),
    Ended,
}

impl SessionStream {
    pub(super) fn new(
        membership: Membership<SessionId, SessionFeed>,
        (position, reset): (Position, Option<ResetReason>),
        last: u64,
    ) -> Self {
        let mut unsent = VecDeque::from([Event::retry(&position)]);
        unsent.extend(reset.map(|reason| Event::reset(reason, &position)));
        Self { membership, state: State::Behind, position, last, unsent }
    }

    /// Reads the first part, so that a failure of the store results in an error status.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub(super) async fn begin(mut self) -> Result<Self, crate::store::StoreError> {
        let caught_up = self.feed().catch_up(self.position.clone(), self.last).await?;
        self.apply(caught_up);
        Ok(self)
    }

    fn feed(&self) -> Arc<SessionFeed> {
        self.membership.feed()
    }

    fn apply(&mut self, CaughtUp { events, position, joined }: CaughtUp) {
        self.unsent.extend(events);
        self.position = position;
        self.state = joined.map_or(State::Behind, State::Live);
    }

    fn catch_up(&self) -> BoxFuture<'static, CaughtUp> {
        let (feed, position, last) = (self.feed(), self.position.clone(), self.last);
        async move {
            if let Ok(caught_up) = feed.catch_up(position.clone(), last).await {
                return caught_up;
            }
            // The stream stays open, and continues when the store is available again.
            tokio::time::sleep(RETRY_READ).await;
            CaughtUp { events: vec![Event::comment(&position)], position, joined: None }
        }
        .boxed()
    }

    fn send(&mut self, event: Event) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        metrics::stream_event_sent(event.kind);
        if event.is_last {
            self.state = State::Ended;
            self.unsent.clear();
        }
        Poll::Ready(Some(Ok(Frame::data(event.text))))
    }
}

impl Body for SessionStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        if matches!(this.state, State::Ended) {
            return Poll::Ready(None);
        }
        if this.membership.control.must_end(context) {
            return this.send(Event::bye(&this.position));
        }
        loop {
            if let Some(event) = this.unsent.pop_front() {
                return this.send(event);
            }
            match &mut this.state {
                State::Ended => return Poll::Ready(None),
                State::Behind => this.state = State::CatchingUp(this.catch_up()),
                State::CatchingUp(caught_up) => {
                    let caught_up = ready!(caught_up.poll_unpin(context));
                    this.apply(caught_up);
                }
                State::Live(number) => match this.membership.ring().event(*number) {
                    Next::Wait => return Poll::Pending,
                    Next::Gone => this.state = State::Behind,
                    Next::Event(event) => {
                        *number += 1;
                        this.position = event.position.clone();
                        return this.send(event);
                    }
                },
            }
        }
    }
}
