//! Limits the number of concurrent requests, the number of requests that wait for a permit, and the time that they
//! wait.
//!
//! A request that cannot be served in time is rejected with `503`, because its client would give up before the
//! response. Waiting requests get permits in the order of arrival. Rejecting a request costs about as much as serving
//! it, so a service that rejects many has no time left for the others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::error::{ApiError, Code};
use crate::metrics;

/// The permits for concurrent requests, shared by all workers.
#[derive(Debug)]
pub struct ConcurrencyLimiter {
    permits: Semaphore,
    waiting: AtomicUsize,
    waiting_max: usize,
    wait_max: Duration,
}

impl ConcurrencyLimiter {
    /// Allows `served_max` concurrent requests, and `waiting_max` more that each wait at most `wait_max` for a permit.
    #[must_use]
    pub fn new(served_max: usize, waiting_max: usize, wait_max: Duration) -> Self {
        Self { permits: Semaphore::new(served_max), waiting: AtomicUsize::new(0), waiting_max, wait_max }
    }

    /// Waits for a permit for one request.
    ///
    /// # Errors
    /// `overloaded` if the queue is full or the wait too long. Nothing has been done for the request.
    pub(super) async fn acquire(&self) -> Result<ConcurrencyPermit<'_>, ApiError> {
        if let Ok(permit) = self.permits.try_acquire() {
            return Ok(ConcurrencyPermit { _permit: permit, waited: Duration::ZERO });
        }
        let since = Instant::now();
        let _slot = QueueSlot::take(self).ok_or_else(overloaded)?;
        match tokio::time::timeout(self.wait_max, self.permits.acquire()).await {
            Ok(Ok(permit)) => Ok(ConcurrencyPermit { _permit: permit, waited: since.elapsed() }),
            _ => Err(overloaded()),
        }
    }
}

/// A permit for one request, released on drop.
pub(super) struct ConcurrencyPermit<'a> {
    _permit: SemaphorePermit<'a>,
    /// How long the request waited for the permit.
    pub(super) waited: Duration,
}

fn overloaded() -> ApiError {
    metrics::request_shed();
    ApiError::new(Code::Overloaded, "There are more requests than can be served in time; nothing was done, try again")
}

/// A slot in the queue of waiting requests, released on drop.
struct QueueSlot<'a>(&'a AtomicUsize);

impl<'a> QueueSlot<'a> {
    fn take(limiter: &'a ConcurrencyLimiter) -> Option<Self> {
        let slot = Self(&limiter.waiting);
        // If the queue is full, the slot is dropped, which undoes the increment.
        (limiter.waiting.fetch_add(1, Ordering::Relaxed) < limiter.waiting_max).then_some(slot)
    }
}

impl Drop for QueueSlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
