//! Serves an HTTP/1.1 connection. Its I/O, between the socket and hyper, enforces timeouts, rejects request heads that
//! proxies may parse differently, and adds a body to the error responses that hyper makes itself.

mod error_body;
mod read_timer;
mod strict_head;

use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use self::error_body::ErrorBody;
pub(super) use self::error_body::overloaded_response;
use self::read_timer::{Awaiting, ReadTimer};
use self::strict_head::StrictHead;
use super::timeouts::{ConnectionTimeouts, SendTimer};
use super::{ConnectionSettings, HttpService, Shutdown};
use crate::http::{DISCARD_BYTES_MAX, IsEventStream};

/// Maximum bytes that are joined before they are sent. Sending one buffer is faster than sending two.
const JOINED_BYTES_MAX: usize = 4096;
/// hyper's default limit on the number of headers. With the default, hyper keeps headers on the stack, which is faster.
const HYPER_HEADERS_DEFAULT: usize = 100;
/// Maximum bytes of a response that are buffered for a slow client, besides the last part; and of a request's body that
/// one read returns. If the limit on the head is larger, the buffer has that size.
const BUFFER_BYTES_MAX: usize = 32 * 1024;
/// Maximum bytes of a request's head that one read returns.
const HEAD_READ_BYTES: usize = 4096;

/// Serves the requests of a connection.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    service: impl HttpService,
    ConnectionSettings { timeouts, limits, .. }: &ConnectionSettings,
    mut shutdown: Shutdown,
) {
    let phase = RequestPhase::default();
    let io = ConnectionIo::new(TokioIo::new(stream), *timeouts, phase.clone());
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        phase.advance();
        let request = request.map(|body| if body.is_end_stream() { Body::empty() } else { Body::new(body) });
        let (response, phase) = (service.clone().call(request), phase.clone());
        async move {
            let response = response.await;
            if response.as_ref().is_ok_and(|response| response.extensions().get::<IsEventStream>().is_some()) {
                phase.stream();
            }
            phase.advance();
            response
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.header_read_timeout(None).max_header_size(limits.head_bytes);
    builder.max_buf_size(BUFFER_BYTES_MAX.max(limits.head_bytes));
    // A client may close its sending side after its last request and still read the response (`nc -N`; RFC 9112, 9.6).
    // A client that has disconnected looks the same, so its request is also served to the end, within the request
    // deadline. Event streams have no end of their own: `ConnectionIo` ends them when their client has closed the
    // connection.
    builder.half_close(true);
    // hyper does not copy bodies into its buffer then; `ConnectionIo` joins what is small.
    builder.writev(true);
    if limits.headers != HYPER_HEADERS_DEFAULT {
        builder.max_headers(limits.headers);
    }
    let mut connection = pin!(builder.serve_connection(io, service));
    let result = tokio::select! {
        biased;
        result = connection.as_mut() => result,
        () = shutdown.begun() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // Errors of a connection are caused by its client, so they are logged at level debug.
    if let Err(error) = result {
        tracing::debug!(%error, "connection error");
    }
}

/// Whether a request is being served, shared by the connection's I/O and its service.
#[derive(Clone, Debug, Default)]
struct RequestPhase(Arc<RequestPhaseState>);

#[derive(Debug, Default)]
struct RequestPhaseState {
    /// Counts the starts and ends of requests. The count is odd while one is served.
    number: AtomicU64,
    /// The count at the end of the last request whose response is an event stream; 0 if there was none.
    stream: AtomicU64,
}

impl RequestPhase {
    /// Records that a request's head is complete, or that its response is.
    fn advance(&self) {
        self.0.number.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that the response to the request that is being served is an event stream.
    fn stream(&self) {
        self.0.stream.store(self.number() + 1, Ordering::Relaxed);
    }

    fn is_stream(&self) -> bool {
        self.0.stream.load(Ordering::Relaxed) == self.number() && self.number() > 0
    }

    fn number(&self) -> u64 {
        self.0.number.load(Ordering::Relaxed)
    }

    fn is_serving(&self) -> bool {
        self.number() % 2 == 1
    }
}

/// The I/O of a connection. It fails with [`io::ErrorKind::TimedOut`] when the client is too slow.
struct ConnectionIo<T> {
    io: T,
    phase: RequestPhase,
    phase_seen: u64,
    read_timer: ReadTimer,
    send_timer: SendTimer,
    head: StrictHead,
    error_body: ErrorBody,
    discarded_bytes: usize,
    /// Bytes that arrived while an event stream was being sent.
    received_ahead: Vec<u8>,
}

impl<T> ConnectionIo<T> {
    fn new(io: T, timeouts: ConnectionTimeouts, phase: RequestPhase) -> Self {
        Self {
            io,
            phase,
            phase_seen: 0,
            read_timer: ReadTimer::new(timeouts),
            send_timer: SendTimer::new(timeouts.send),
            head: StrictHead::default(),
            error_body: ErrorBody::default(),
            discarded_bytes: 0,
            received_ahead: Vec::new(),
        }
    }

    /// Detects that a request began or ended since the last read.
    fn update_phase(&mut self) {
        let number = self.phase.number();
        let has_changed = std::mem::replace(&mut self.phase_seen, number) != number;
        if has_changed {
            self.head = StrictHead::default();
        }
        if self.phase.is_serving() {
            self.read_timer.wait_for(Awaiting::Nothing);
        } else if has_changed {
            // A whole request may have been served since the last read.
            self.read_timer.wait_for(Awaiting::Request);
        }
    }
}

impl<T: Read + Unpin> ConnectionIo<T> {
    /// Reads from the socket. Before a head is complete, checks its lines.
    fn poll_read_checked(&mut self, context: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        // Bytes that arrive while a request is served belong to its body, or to a pipelined request.
        if self.phase.is_serving() || self.head.is_complete() {
            return self.poll_read_next(context, buffer);
        }
        let mut bytes = [MaybeUninit::uninit(); HEAD_READ_BYTES];
        let length = buffer.remaining().min(HEAD_READ_BYTES);
        let mut part = ReadBuf::uninit(&mut bytes[..length]);
        ready!(self.poll_read_next(context, part.unfilled()))?;
        buffer.put_slice(&self.head.receive(part.filled()));
        Poll::Ready(Ok(()))
    }

    fn poll_read_next(&mut self, context: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if self.received_ahead.is_empty() {
            return Pin::new(&mut self.io).poll_read(context, buffer);
        }
        let later = self.received_ahead.split_off(self.received_ahead.len().min(buffer.remaining()));
        buffer.put_slice(&std::mem::replace(&mut self.received_ahead, later));
        Poll::Ready(Ok(()))
    }

    /// Whether the client of an event stream has closed the connection. hyper does not read while it sends the stream.
    fn is_closed(&mut self, context: &mut Context<'_>) -> bool {
        while self.received_ahead.len() < HEAD_READ_BYTES {
            let mut bytes = [MaybeUninit::uninit(); 1024];
            let mut part = ReadBuf::uninit(&mut bytes);
            match Pin::new(&mut self.io).poll_read(context, part.unfilled()) {
                Poll::Ready(Ok(())) if !part.filled().is_empty() => {
                    self.received_ahead.extend_from_slice(part.filled());
                    // hyper may wait for these bytes, because the stream has ended.
                    context.waker().wake_by_ref();
                }
                Poll::Ready(_) => return true,
                Poll::Pending => return false,
            }
        }
        false
    }
}

impl<T: Write + Unpin> ConnectionIo<T> {
    /// If `written` is an error response that hyper made itself, writes the service's response instead. Returns `None`
    /// for anything else.
    fn poll_write_error(&mut self, context: &mut Context<'_>, written: &[u8]) -> Poll<Option<io::Result<usize>>> {
        // While a request is served, the response comes from the router.
        if !self.phase.is_serving() {
            self.error_body.recognise(written, &self.head);
        }
        while let Some(unsent) = self.error_body.unsent() {
            let sent = Pin::new(&mut self.io).poll_write(context, unsent);
            match ready!(self.send_timer.poll_sent(context, sent)) {
                Ok(0) => return Poll::Ready(Some(Err(io::ErrorKind::WriteZero.into()))),
                Ok(count) => self.error_body.advance(count),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        Poll::Ready(self.error_body.is_used().then_some(Ok(written.len())))
    }
}

impl<T: Read + Unpin> Read for ConnectionIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.update_phase();
        let read = this.poll_read_checked(context, buffer);
        if read.is_ready() {
            this.read_timer.received();
            return read;
        }
        this.read_timer.poll_overdue(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: Read + Write + Unpin> Write for ConnectionIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(result) = ready!(self.poll_write_error(context, bytes)) {
            return Poll::Ready(result);
        }
        let this = &mut *self;
        let sent = Pin::new(&mut this.io).poll_write(context, bytes);
        this.send_timer.poll_sent(context, sent)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.phase.is_stream() && this.is_closed(context) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let sent = Pin::new(&mut this.io).poll_flush(context);
        this.send_timer.poll_sent(context, sent)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let sent = Pin::new(&mut this.io).poll_shutdown(context);
        ready!(this.send_timer.poll_sent(context, sent))?;
        while this.error_body.is_used() && this.discarded_bytes < DISCARD_BYTES_MAX {
            let mut bytes = [MaybeUninit::uninit(); 8192];
            let mut buffer = ReadBuf::uninit(&mut bytes);
            // Ends at EOF or the read timeout.
            match ready!(Pin::new(&mut *this).poll_read(context, buffer.unfilled())) {
                Ok(()) if !buffer.filled().is_empty() => this.discarded_bytes += buffer.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = buffers.first().map(|buffer| &**buffer).unwrap_or_default();
        if let Some(result) = ready!(self.poll_write_error(context, first)) {
            return Poll::Ready(result);
        }
        let this = &mut *self;
        let total: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let sent = if total <= JOINED_BYTES_MAX {
            let mut joined = [MaybeUninit::<u8>::uninit(); JOINED_BYTES_MAX];
            let mut joined = ReadBuf::uninit(&mut joined);
            for buffer in buffers {
                joined.unfilled().put_slice(buffer);
            }
            Pin::new(&mut this.io).poll_write(context, joined.filled())
        } else {
            Pin::new(&mut this.io).poll_write_vectored(context, buffers)
        };
        this.send_timer.poll_sent(context, sent)
    }
}
