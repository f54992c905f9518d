//! How many requests are served at once, and how many may wait for that: what comes on top could not be served in time, and is
//! better told so at once. Otherwise everybody waits for those whose clients have given up.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::error::{ApiError, Code};
use crate::metrics;

/// A crowd that comes at once may wait almost as long as its requests have; one that goes on coming for longer than this has to
/// be turned away sooner, or all of them wait as long as that and none is served well.
const CROWD_MAX: Duration = Duration::from_secs(2);
/// How much of a request's time may go by with waiting.
const CROWD_SHARE: f64 = 0.8;

/// Room for requests, of all event loops together.
#[derive(Debug)]
pub struct Capacity {
    room: Semaphore,
    waiting: AtomicUsize,
    /// When somebody began to wait, of those who wait without a gap; in milliseconds after `started`.
    crowded_since_ms: AtomicU64,
    started: Instant,
    waiting_max: usize,
    wait_max: Duration,
}

impl Capacity {
    /// Room for `served_max` requests at once, and `waiting_max` that wait for it; each for `wait_max` at the most, if more come
    /// than can be served for longer than a moment.
    #[must_use]
    pub fn new(served_max: usize, waiting_max: usize, wait_max: Duration) -> Self {
        Self {
            room: Semaphore::new(served_max),
            waiting: AtomicUsize::new(0),
            crowded_since_ms: AtomicU64::new(0),
            started: Instant::now(),
            waiting_max,
            wait_max,
        }
    }

    /// Room for one request that has this much time, until it is dropped. A request that is refused was not begun.
    pub(super) async fn admit(&self, time: Duration) -> Result<SemaphorePermit<'_>, ApiError> {
        if let Ok(room) = self.room.try_acquire() {
            return Ok(room);
        }
        let turn = Turn::take(self).ok_or_else(overloaded)?;
        match tokio::time::timeout(turn.wait_max(time), self.room.acquire()).await {
            Ok(Ok(room)) => Ok(room),
            _ => Err(overloaded()),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn overloaded() -> ApiError {
    metrics::request_shed();
    ApiError::new(Code::Overloaded, "There are more requests than can be served in time; nothing was done, try again")
}

/// A place among those who wait.
struct Turn<'a>(&'a Capacity);

impl<'a> Turn<'a> {
    fn take(capacity: &'a Capacity) -> Option<Self> {
        let turn = Self(capacity);
        let before = capacity.waiting.fetch_add(1, Ordering::Relaxed);
        if before == 0 {
            capacity.crowded_since_ms.store(capacity.now_ms(), Ordering::Relaxed);
        }
        // Dropped, and so given back, if it is one too many.
        (before < capacity.waiting_max).then_some(turn)
    }

    /// The most that a request waits which has this much time.
    fn wait_max(&self, time: Duration) -> Duration {
        let crowded_ms = self.0.now_ms().saturating_sub(self.0.crowded_since_ms.load(Ordering::Relaxed));
        let wait_max = time.mul_f64(CROWD_SHARE);
        if Duration::from_millis(crowded_ms) > CROWD_MAX { wait_max.min(self.0.wait_max) } else { wait_max }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_may_wait_and_one_that_goes_on_coming_less() {
        let second = Duration::from_secs(1);
        let mut capacity = Capacity::new(1, 2, Duration::from_millis(200));
        capacity.started = Instant::now().checked_sub(10 * second).expect("a running clock");
        let first = Turn::take(&capacity).expect("a place");
        assert_eq!(first.wait_max(second), Duration::from_millis(800));
        capacity.crowded_since_ms.store(5_000, Ordering::Relaxed);
        let second_turn = Turn::take(&capacity).expect("a place");
        assert_eq!(second_turn.wait_max(second), Duration::from_millis(200));
        assert!(Turn::take(&capacity).is_none(), "there are places for two");
        drop((first, second_turn));
        // Nobody waited in between, so this is another crowd.
        assert_eq!(Turn::take(&capacity).expect("a place").wait_max(second), Duration::from_millis(800));
    }
}
