//! The streams of a connection: how many there are, and whether the client reads their responses.
//!
//! A client grants a window of bytes for each stream, and may stop extending it at any time. The response then waits in
//! memory. A stream whose response makes no progress within the send timeout is reset. Other streams continue.
//!
//! A stream cannot be reset after hyper has received the end of its response. So a large response is ended only when
//! the rest has been sent. A small response is ended immediately, which saves a frame and a write. It fits into every
//! usual window. If it stalls nevertheless, the connection is closed.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use bytes::Buf;
use hyper::body::{Frame, SizeHint};
use hyper::rt::Executor;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::server::timeouts::ConnectionTimeouts;

/// Maximum bytes of a small response. The next part of a larger response is taken when at most this many bytes are
/// unsent.
const SMALL: usize = 16 * 1024;

tokio::task_local! {
    /// The unsent bytes of the stream of the current task.
    static SENDING: Arc<Sending>;
}

/// The streams of a connection.
pub(super) struct Streams {
    send_timeout: Duration,
    open: watch::Sender<usize>,
    stalled: Notify,
}

impl Streams {
    pub(super) fn new(send_timeout: Duration) -> Self {
        Self { send_timeout, open: watch::Sender::new(0), stalled: Notify::new() }
    }

    /// Resolves when the client has sent no request for too long.
    pub(super) async fn unused(&self, timeouts: &ConnectionTimeouts) {
        let mut open = self.open.subscribe();
        if tokio::time::timeout(timeouts.head, open.changed()).await.is_ok() {
            self.idle_for(timeouts.keep_alive).await;
        }
    }

    /// Resolves when no stream has been open for this long.
    pub(super) async fn idle_for(&self, timeout: Duration) {
        let mut open = self.open.subscribe();
        while open.wait_for(|&open| open == 0).await.is_ok()
            && tokio::time::timeout(timeout, open.changed()).await.is_ok()
        {}
    }

    /// Resolves when the client does not read a response whose stream cannot be reset.
    pub(super) async fn stalled(&self) {
        self.stalled.notified().await;
    }
}

/// A stream that is open until this is dropped.
struct OpenStream(Arc<Streams>);

impl OpenStream {
    fn new(streams: Arc<Streams>) -> Self {
        streams.open.send_modify(|open| *open += 1);
        Self(streams)
    }

    /// Serves the stream until its response has been sent.
    async fn serve(self, stream: impl Future<Output = ()>) {
        let sending = Arc::new(Sending::new());
        let mut stalled = pin!(sending.stalled_for(self.0.send_timeout));
        {
            let mut stream = pin!(SENDING.scope(sending.clone(), stream));
            tokio::select! {
                biased;
                () = stream.as_mut() => {}
                // Dropping the stream resets it.
                () = stalled.as_mut() => return,
            }
        }
        tokio::select! {
            biased;
            () = sending.sent() => {}
            () = stalled.as_mut() => self.0.stalled.notify_one(),
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

/// Runs each stream of a connection in its own task.
#[derive(Clone)]
pub(super) struct StreamExecutor(Arc<Streams>);

impl StreamExecutor {
    pub(super) fn new(streams: Arc<Streams>) -> Self {
        Self(streams)
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        tokio::spawn(OpenStream::new(self.0.clone()).serve(stream));
    }
}

/// The part of a response that hyper has taken from its body and that has not been sent. It is shared by the task of
/// the stream, which also runs hyper's future for the stream, and the task of the connection.
struct Sending(Mutex<Unsent>);

struct Unsent {
    bytes: usize,
    /// When the client last accepted bytes, or when the first of these became ready.
    progressed: Instant,
    /// Wakes the task of the stream.
    waker: Option<Waker>,
}

impl Sending {
    fn new() -> Self {
        Self(Mutex::new(Unsent { bytes: 0, progressed: Instant::now(), waker: None }))
    }

    fn unsent(&self) -> MutexGuard<'_, Unsent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that bytes are ready to be sent.
    fn begin(&self, count: usize) {
        let mut unsent = self.unsent();
        if unsent.bytes == 0 {
            unsent.progressed = Instant::now();
        }
        unsent.bytes += count;
    }

    /// Records that bytes have been sent, or dropped.
    fn finish(&self, count: usize) {
        let mut unsent = self.unsent();
        unsent.bytes -= count;
        unsent.progressed = Instant::now();
        if unsent.bytes <= SMALL
            && let Some(waker) = unsent.waker.take()
        {
            waker.wake();
        }
    }

    /// Ready when at most `max` bytes are unsent.
    fn poll_unsent(&self, context: &mut Context<'_>, max: usize) -> Poll<()> {
        let mut unsent = self.unsent();
        if unsent.bytes <= max {
            return Poll::Ready(());
        }
        unsent.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// Resolves when everything has been sent.
    async fn sent(&self) {
        poll_fn(|context| self.poll_unsent(context, 0)).await;
    }

    /// Resolves when the client has accepted none of the unsent bytes for this long. Must be polled after the stream,
    /// which does not wake it.
    async fn stalled_for(&self, timeout: Duration) {
        let mut timer = pin!(tokio::time::sleep(timeout));
        poll_fn(|context| {
            let progressed = {
                let unsent = self.unsent();
                if unsent.bytes == 0 {
                    return Poll::Pending;
                }
                unsent.progressed
            };
            // Fires at the deadline or before it: resetting the timer at each progress would be slower.
            loop {
                ready!(timer.as_mut().poll(context));
                if timer.deadline() >= progressed + timeout {
                    return Poll::Ready(());
                }
                timer.as_mut().reset(progressed + timeout);
            }
        })
        .await;
    }
}

/// The body of a response. Reports which parts of it have been sent.
pub(super) struct ResponseBody {
    body: Body,
    has_ended: bool,
    /// The number of bytes that were taken from the body.
    taken: usize,
    sending: Arc<Sending>,
}

impl ResponseBody {
    /// Replaces the body of a response to the stream of the current task.
    pub(super) fn in_response(response: Response) -> Response<Self> {
        response.map(|body| Self { body, has_ended: false, taken: 0, sending: SENDING.get() })
    }
}

impl HttpBody for ResponseBody {
    type Data = ResponseData;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if !self.has_ended {
            ready!(self.sending.poll_unsent(context, SMALL));
            if let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) {
                self.taken += frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
                let sending = self.sending.clone();
                return Poll::Ready(Some(frame.map(|frame| frame.map_data(|bytes| ResponseData::new(bytes, sending)))));
            }
            self.has_ended = true;
        }
        if self.taken > SMALL {
            ready!(self.sending.poll_unsent(context, 0));
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.taken <= SMALL
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes of a response. Reports which of them have been sent.
pub(super) struct ResponseData {
    bytes: Bytes,
    sending: Arc<Sending>,
}

impl ResponseData {
    fn new(bytes: Bytes, sending: Arc<Sending>) -> Self {
        sending.begin(bytes.len());
        Self { bytes, sending }
    }
}

impl Buf for ResponseData {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.sending.finish(count);
    }
}

impl Drop for ResponseData {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.sending.finish(self.bytes.len());
        }
    }
}
