//! The I/O of an HTTP/2 connection, between the socket and hyper.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use tokio::time::Sleep;

use super::CLOSE_DELAY;
use crate::http::DISCARD_BYTES_MAX;
use crate::server::timeouts::SendTimer;

/// The I/O of a connection. A write fails with [`io::ErrorKind::TimedOut`] when the client accepts no byte for too
/// long.
pub(super) struct Http2Io<T> {
    io: T,
    send_timer: SendTimer,
    /// Set once the sending side is closed.
    close_timer: Option<Pin<Box<Sleep>>>,
    discarded_bytes: usize,
}

impl<T> Http2Io<T> {
    pub(super) fn new(io: T, send_timeout: Duration) -> Self {
        Self { io, send_timer: SendTimer::new(send_timeout), close_timer: None, discarded_bytes: 0 }
    }
}

impl<T: Read + Unpin> Http2Io<T> {
    /// Reads and discards what the client still sends. Ready when the client has closed the connection, or after a
    /// delay.
    fn poll_discard(&mut self, context: &mut Context<'_>, close_timer: Pin<&mut Sleep>) -> Poll<()> {
        if close_timer.poll(context).is_ready() {
            return Poll::Ready(());
        }
        while self.discarded_bytes < DISCARD_BYTES_MAX {
            let mut bytes = [MaybeUninit::uninit(); 8192];
            let mut buffer = ReadBuf::uninit(&mut bytes);
            match ready!(Pin::new(&mut self.io).poll_read(context, buffer.unfilled())) {
                Ok(()) if !buffer.filled().is_empty() => self.discarded_bytes += buffer.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

impl<T: Read + Unpin> Read for Http2Io<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<T: Read + Write + Unpin> Write for Http2Io<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.io).poll_write(context, bytes);
        self.send_timer.poll_sent(context, sent)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = Pin::new(&mut self.io).poll_flush(context);
        self.send_timer.poll_sent(context, sent)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut close_timer = if let Some(close_timer) = this.close_timer.take() {
            close_timer
        } else {
            let sent = Pin::new(&mut this.io).poll_shutdown(context);
            ready!(this.send_timer.poll_sent(context, sent))?;
            Box::pin(tokio::time::sleep(CLOSE_DELAY))
        };
        // Closing immediately would reset the connection if the client is still sending, and the client might lose the
        // last responses and the GOAWAY.
        let discarded = this.poll_discard(context, close_timer.as_mut());
        this.close_timer = Some(close_timer);
        discarded.map(Ok)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.io).poll_write_vectored(context, buffers);
        self.send_timer.poll_sent(context, sent)
    }
}
