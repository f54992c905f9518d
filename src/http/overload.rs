//! How many requests are served at once, and how many may wait for that, how long: what cannot be served in time is better told so
//! than answered when its client has given up. Those who wait are served in turn: to refuse one costs about as much as to
//! serve it, so that a service which refuses many has no time left for the others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::error::{ApiError, Code};
use crate::metrics;

/// Room for requests, of all event loops together.
#[derive(Debug)]
pub struct Capacity {
    room: Semaphore,
    waiting: AtomicUsize,
    waiting_max: usize,
    wait_max: Duration,
}

impl Capacity {
    /// Room for `served_max` requests at once, and `waiting_max` that wait for it, each for `wait_max` at the most.
    #[must_use]
    pub fn new(served_max: usize, waiting_max: usize, wait_max: Duration) -> Self {
        Self { room: Semaphore::new(served_max), waiting: AtomicUsize::new(0), waiting_max, wait_max }
    }

    /// Room for one request. A request that is refused was not begun.
    pub(super) async fn admit(&self) -> Result<Room<'_>, ApiError> {
        if let Ok(permit) = self.room.try_acquire() {
            return Ok(Room { _permit: permit, waited: Duration::ZERO });
        }
        let since = Instant::now();
        let _turn = Turn::take(self).ok_or_else(overloaded)?;
        match tokio::time::timeout(self.wait_max, self.room.acquire()).await {
            Ok(Ok(permit)) => Ok(Room { _permit: permit, waited: since.elapsed() }),
            _ => Err(overloaded()),
        }
    }
}

/// Room for one request, until it is dropped.
pub(super) struct Room<'a> {
    _permit: SemaphorePermit<'a>,
    /// How long the request waited for it.
    pub(super) waited: Duration,
}

fn overloaded() -> ApiError {
    metrics::request_shed();
    ApiError::new(Code::Overloaded, "There are more requests than can be served in time; nothing was done, try again")
}

/// A place among those who wait.
struct Turn<'a>(&'a AtomicUsize);

impl<'a> Turn<'a> {
    fn take(capacity: &'a Capacity) -> Option<Self> {
        let turn = Self(&capacity.waiting);
        // Dropped, and so given back, if it is one too many.
        (capacity.waiting.fetch_add(1, Ordering::Relaxed) < capacity.waiting_max).then_some(turn)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
