//! How long a connection may keep the service waiting: for the head of a request, for the next request, and for taking an
//! answer. hyper has one timer for the first two, so either slow heads or idle connections would have the wrong one.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::{Instant, Sleep};

/// The limits of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From the first byte of a request, or from the start of the connection, to the end of its head.
    pub head: Duration,
    /// From an answer to the first byte of the next request.
    pub keep_alive: Duration,
    /// Without the client taking any byte of an answer.
    pub send: Duration,
}

/// Counts when a request begins to be served and when it is answered. While the count is odd, nothing is awaited from the
/// client but a body, which has a limit of its own.
#[derive(Clone, Debug, Default)]
pub(super) struct Serving(Arc<AtomicU64>);

impl Serving {
    /// A request's head is complete, or its answer is.
    pub(super) fn turn(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests began to be served and how many answers are complete, together.
    pub(super) fn turns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// A request is being answered.
    pub(super) fn is_serving(&self) -> bool {
        self.turns() % 2 == 1
    }
}

/// What the client is awaited to send.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaiting {
    /// The end of a request's head.
    Head,
    /// The first byte of the next request.
    Request,
    /// Nothing.
    Nothing,
}

/// A connection that fails with [`io::ErrorKind::TimedOut`] when its client is too slow. A client that has closed its
/// sending side is awaited no more, and has the same time to take its answers.
pub(super) struct PatientIo<T> {
    io: T,
    patience: Patience,
    serving: Serving,
    turns_seen: u64,
    awaiting: Awaiting,
    /// Until when, once it did not come at once: most requests do, and need no look at the clock.
    until: Option<Instant>,
    /// Wakes no later than `until`, and mostly too early: to set it anew for every request costs more.
    receive: Pin<Box<Sleep>>,
    send: Option<Pin<Box<Sleep>>>,
}

impl<T> PatientIo<T> {
    pub(super) fn new(io: T, patience: Patience, serving: Serving) -> Self {
        let receive = Box::pin(tokio::time::sleep(patience.head));
        Self { io, patience, serving, turns_seen: 0, awaiting: Awaiting::Head, until: None, receive, send: None }
    }

    fn wait_for(&mut self, awaiting: Awaiting) {
        self.awaiting = awaiting;
        self.until = None;
    }

    /// Ready when what is awaited is overdue.
    fn poll_overdue(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let at_most = match self.awaiting {
            Awaiting::Head => self.patience.head,
            Awaiting::Request => self.patience.keep_alive,
            Awaiting::Nothing => return Poll::Pending,
        };
        let until = *self.until.get_or_insert_with(|| Instant::now() + at_most);
        if until < self.receive.deadline() {
            self.receive.as_mut().reset(until);
        }
        loop {
            ready!(self.receive.as_mut().poll(context));
            if self.receive.deadline() >= until {
                return Poll::Ready(());
            }
            self.receive.as_mut().reset(until);
        }
    }

    /// Passes on what became of a write, and fails it once the client has taken nothing for too long.
    fn poll_sent<R>(&mut self, context: &mut Context<'_>, sent: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if sent.is_ready() {
            self.send = None;
            return sent;
        }
        let limit = self.patience.send;
        let timer = self.send.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        timer.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: Read + Unpin> Read for PatientIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let turns = this.serving.turns();
        if this.serving.is_serving() {
            this.awaiting = Awaiting::Nothing;
        } else if turns != this.turns_seen {
            // Quick answers come without a read in between.
            this.wait_for(Awaiting::Request);
        }
        this.turns_seen = turns;
        let read = Pin::new(&mut this.io).poll_read(context, buffer);
        if read.is_ready() {
            if this.awaiting == Awaiting::Request {
                this.wait_for(Awaiting::Head);
            }
            return read;
        }
        this.poll_overdue(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: Write + Unpin> Write for PatientIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.io).poll_write(context, bytes);
        self.poll_sent(context, sent)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = Pin::new(&mut self.io).poll_flush(context);
        self.poll_sent(context, sent)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = Pin::new(&mut self.io).poll_shutdown(context);
        self.poll_sent(context, sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.io).poll_write_vectored(context, bytes);
        self.poll_sent(context, sent)
    }
}
