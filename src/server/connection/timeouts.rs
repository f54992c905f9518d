//! The timers of one connection. hyper has one timer for heads and for idle connections, which need different timeouts.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionTimeouts {
    /// From the first byte of a request, or from the start of the connection, to the end of the request's head.
    pub head: Duration,
    /// From a response to the first byte of the next request.
    pub keep_alive: Duration,
    /// The longest time in which the client accepts no byte of a response.
    pub send: Duration,
}

/// What the client is expected to send.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaiting {
    /// The end of a request's head.
    Head,
    /// The first byte of the next request.
    Request,
    /// Nothing, or a body, which has a timeout of its own.
    Nothing,
}

/// The timers for reads and writes.
pub(super) struct Timers {
    timeouts: ConnectionTimeouts,
    awaiting: Awaiting,
    /// When the read times out. Set only once a read has to wait: most reads do not wait, and so read no clock.
    read_deadline: Option<Instant>,
    /// Fires at `read_deadline` or, usually, before it: resetting the timer for every request costs more.
    read: Pin<Box<Sleep>>,
    send: Option<Pin<Box<Sleep>>>,
}

impl Timers {
    pub(super) fn new(timeouts: ConnectionTimeouts) -> Self {
        let read = Box::pin(tokio::time::sleep(timeouts.head));
        Self { timeouts, awaiting: Awaiting::Head, read_deadline: None, read, send: None }
    }

    pub(super) fn wait_for(&mut self, awaiting: Awaiting) {
        self.awaiting = awaiting;
        self.read_deadline = None;
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
        let deadline = *self.read_deadline.get_or_insert_with(|| Instant::now() + timeout);
        if deadline < self.read.deadline() {
            self.read.as_mut().reset(deadline);
        }
        loop {
            ready!(self.read.as_mut().poll(context));
            if self.read.deadline() >= deadline {
                return Poll::Ready(());
            }
            self.read.as_mut().reset(deadline);
        }
    }

    /// Returns the result of a write, or an error once the client has accepted nothing for too long.
    pub(super) fn poll_sent<R>(&mut self, context: &mut Context<'_>, sent: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if sent.is_ready() {
            self.send = None;
            return sent;
        }
        let timeout = self.timeouts.send;
        let timer = self.send.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        timer.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}
