//! How long the client of a connection may take, and the timer for writes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionTimeouts {
    /// From the first byte of a request, or from the start of the connection, to the end of the request's head. With
    /// HTTP/2 only from the start of the connection to its first request.
    pub head: Duration,
    /// From a response to the first byte of the next request.
    pub keep_alive: Duration,
    /// The longest time in which the client accepts no byte of a response.
    pub send: Duration,
}

/// The timer for the writes to a connection.
pub(super) struct SendTimer {
    timeout: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl SendTimer {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, sleep: None }
    }

    /// Returns the result of a write, or an error once the client has accepted nothing for too long.
    pub(super) fn poll_sent<R>(&mut self, context: &mut Context<'_>, sent: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if sent.is_ready() {
            self.sleep = None;
            return sent;
        }
        let timeout = self.timeout;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        sleep.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}
