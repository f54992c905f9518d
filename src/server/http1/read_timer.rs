//! The timer for the reads of one connection. hyper has one timer for heads and for idle connections, which need
//! different timeouts.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep};

use crate::server::timeouts::ConnectionTimeouts;

/// What the client is expected to send.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaiting {
    /// The end of a request's head.
    Head,
    /// The first byte of the next request.
    Request,
    /// Nothing, or a body, which has its own timeout.
    Nothing,
}

/// The timer for reads.
pub(super) struct ReadTimer {
    timeouts: ConnectionTimeouts,
    awaiting: Awaiting,
    /// When the read times out. Set only when a read has to wait. Most reads do not wait, and so do not read the clock.
    deadline: Option<Instant>,
    /// Fires at `deadline`, or usually before it: resetting the timer for every request would be slower.
    sleep: Pin<Box<Sleep>>,
}

impl ReadTimer {
    pub(super) fn new(timeouts: ConnectionTimeouts) -> Self {
        let sleep = Box::pin(tokio::time::sleep(timeouts.head));
        Self { timeouts, awaiting: Awaiting::Head, deadline: None, sleep }
    }

    pub(super) fn wait_for(&mut self, awaiting: Awaiting) {
        self.awaiting = awaiting;
        self.deadline = None;
    }

    /// Records that bytes, EOF or an error arrived.
    pub(super) fn received(&mut self) {
        if self.awaiting == Awaiting::Request {
            self.wait_for(Awaiting::Head);
        }
    }

    /// Ready when the read has timed out.
    pub(super) fn poll_overdue(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let timeout = match self.awaiting {
            Awaiting::Head => self.timeouts.head,
            Awaiting::Request => self.timeouts.keep_alive,
            Awaiting::Nothing => return Poll::Pending,
        };
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + timeout);
        if deadline < self.sleep.deadline() {
            self.sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(self.sleep.as_mut().poll(context));
            if self.sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(deadline);
        }
    }
}
