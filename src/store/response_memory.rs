//! Limits the memory of large responses, from before they are read until they are sent. The limits apply to the whole
//! process, to one credential, and to one user, so a caller that requests much waits for its own responses, not for
//! those of others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::StoreError;

/// Maximum bytes of a page, unless it has only one entry.
pub(super) const PAGE_BYTES_MAX: usize = 4 << 20;
/// Maximum bytes that one read of a page requests from Redis, unless one entry is larger.
pub(super) const PIECE_BYTES: usize = 256 << 10;
/// Responses up to this size reserve no memory.
pub(super) const SMALL_RESPONSE_BYTES: usize = 64 << 10;

/// One credential may hold the process's memory divided by this.
const CREDENTIAL_DIVISOR: u32 = 4;
/// One user may hold the process's memory divided by this.
const USER_DIVISOR: u32 = 8;
/// Maximum number of requests of one owner that wait for memory. Further ones are rejected immediately.
const WAITING_PER_OWNER_MAX: usize = 32;
const KIB: usize = 1024;

/// The owner of a response. Responses to callers without a credential count only against the limit of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ResponseOwner {
    /// The API key, or the business of a token.
    pub credential: Option<u64>,
    /// The user of a token.
    pub user: Option<u64>,
}

/// The memory for large responses.
#[derive(Debug)]
pub(super) struct ResponseMemory {
    process: Arc<Semaphore>,
    process_kib: u32,
    wait_max: Duration,
    /// The shares of the owners that hold memory or wait for it.
    shares: Mutex<HashMap<ResponseOwner, Weak<Share>>>,
}

/// The memory that one owner may hold.
#[derive(Debug)]
struct Share {
    free: Arc<Semaphore>,
    kib: u32,
    waiting: AtomicUsize,
}

/// Memory that is reserved for one response. Dropping this releases it.
#[derive(Debug)]
pub struct MemoryPermit {
    permits: Vec<OwnedSemaphorePermit>,
    _shares: Vec<Arc<Share>>,
}

impl MemoryPermit {
    /// Releases the memory beyond `bytes`.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let kib = bytes.div_ceil(KIB);
        for permit in &mut self.permits {
            drop(permit.split(permit.num_permits().saturating_sub(kib)));
        }
    }
}

impl ResponseMemory {
    /// Creates a memory budget of `bytes`. A request waits at most `wait_max` for its part.
    pub(super) fn new(bytes: usize, wait_max: Duration) -> Self {
        let process_kib = u32::try_from(bytes / KIB).unwrap_or(u32::MAX).min(u32::MAX >> 4);
        let process = Arc::new(Semaphore::new(process_kib as usize));
        Self { process, process_kib, wait_max, shares: Mutex::default() }
    }

    /// Reserves memory for a response of at most `bytes`, unless it is small.
    ///
    /// # Errors
    /// As [`Self::reserve`].
    pub(super) async fn reserve_if_large(
        &self,
        owner: ResponseOwner,
        bytes: usize,
    ) -> Result<Option<MemoryPermit>, StoreError> {
        if bytes <= SMALL_RESPONSE_BYTES {
            return Ok(None);
        }
        self.reserve(owner, bytes).await.map(Some)
    }

    /// Reserves memory for a response of at most `bytes`. A response that is larger than its owner's share takes the
    /// whole share.
    ///
    /// # Errors
    /// [`StoreError::ResponseMemory`] if there is none before the timeout, or if too many requests wait.
    pub(super) async fn reserve(&self, owner: ResponseOwner, bytes: usize) -> Result<MemoryPermit, StoreError> {
        let shares = self.shares_of(owner);
        let _waiting: Vec<_> =
            shares.iter().map(Waiting::count).collect::<Option<_>>().ok_or(StoreError::ResponseMemory)?;
        let least = shares.iter().map(|share| share.kib).min().unwrap_or(self.process_kib);
        let kib = u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX).min(least);
        let acquire = async {
            let mut permits = Vec::with_capacity(shares.len() + 1);
            // The smallest share first: a request that waits for its own share holds nothing of the larger ones.
            for semaphore in shares.iter().map(|share| &share.free).chain([&self.process]) {
                let permit = Arc::clone(semaphore).acquire_many_owned(kib).await;
                permits.push(permit.map_err(|_| StoreError::ResponseMemory)?);
            }
            Ok::<_, StoreError>(permits)
        };
        let permits = tokio::time::timeout(self.wait_max, acquire).await.map_err(|_| StoreError::ResponseMemory)??;
        Ok(MemoryPermit { permits, _shares: shares.clone() })
    }

    /// The shares that a response counts against, the smallest first.
    fn shares_of(&self, owner: ResponseOwner) -> Vec<Arc<Share>> {
        let of_user = owner.user.map(|_| (owner, USER_DIVISOR));
        let of_credential = owner.credential.map(|_| (ResponseOwner { user: None, ..owner }, CREDENTIAL_DIVISOR));
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.retain(|_, share| share.strong_count() > 0);
        let mut share = |(owner, parts): (_, u32)| {
            let known = shares.get(&owner).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let kib = (self.process_kib / parts).max(1);
                let free = Arc::new(Semaphore::new(kib as usize));
                let share = Arc::new(Share { free, kib, waiting: AtomicUsize::new(0) });
                shares.insert(owner, Arc::downgrade(&share));
                share
            })
        };
        of_user.into_iter().chain(of_credential).map(&mut share).collect()
    }
}

/// A request that waits for memory. Dropping this ends the wait.
struct Waiting<'a>(&'a Share);

impl<'a> Waiting<'a> {
    fn count(share: &'a Arc<Share>) -> Option<Self> {
        let waiting = Self(share);
        // Beyond the limit, `waiting` is dropped, which undoes the count.
        (share.waiting.fetch_add(1, Ordering::Relaxed) < WAITING_PER_OWNER_MAX).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::poll_immediate;

    use super::*;

    const MIB: usize = 1 << 20;

    fn user(credential: u64, user: u64) -> ResponseOwner {
        ResponseOwner { credential: Some(credential), user: Some(user) }
    }

    /// The memory, or `None` if the request would have to wait for it.
    async fn if_free(memory: &ResponseMemory, owner: ResponseOwner, bytes: usize) -> Option<MemoryPermit> {
        poll_immediate(Box::pin(memory.reserve(owner, bytes))).await.map(|reserved| reserved.expect("memory"))
    }

    fn memory() -> ResponseMemory {
        ResponseMemory::new(64 * MIB, Duration::from_secs(60))
    }

    #[tokio::test]
    async fn users_credentials_and_the_process_have_limits() {
        let memory = memory();
        let mut held = Vec::new();
        for owner in [user(1, 1), user(1, 1)] {
            held.push(if_free(&memory, owner, 4 * MIB).await.expect("memory"));
        }
        assert!(if_free(&memory, user(1, 1), 4 * MIB).await.is_none(), "a third page of one user");
        for owner in [user(1, 2), user(1, 2)] {
            held.push(if_free(&memory, owner, 4 * MIB).await.expect("memory"));
        }
        assert!(if_free(&memory, user(1, 3), 4 * MIB).await.is_none(), "a fifth page of one credential");
        for credential in 2..5 {
            let owner = ResponseOwner { credential: Some(credential), user: None };
            held.push(if_free(&memory, owner, 16 * MIB).await.expect("memory"));
        }
        assert!(if_free(&memory, ResponseOwner::default(), KIB).await.is_none(), "more than the process has");
        drop(held);
        assert!(if_free(&memory, ResponseOwner::default(), 64 * MIB).await.is_some());
        assert!(memory.shares_of(ResponseOwner::default()).is_empty());
        assert_eq!(memory.shares.lock().expect("shares").len(), 0, "shares remain");
    }

    #[tokio::test]
    async fn unused_memory_is_released() {
        let memory = memory();
        let mut permit = if_free(&memory, user(1, 1), 8 * MIB).await.expect("memory");
        permit.shrink_to(100 * KIB + 1);
        let other = if_free(&memory, user(1, 1), 8 * MIB - 101 * KIB).await.expect("the rest of the share");
        assert!(if_free(&memory, user(1, 1), KIB).await.is_none());
        drop((permit, other));
        // A response that is larger than its share takes the whole share.
        assert!(if_free(&memory, user(1, 1), 1 << 40).await.is_some());
    }

    #[tokio::test]
    async fn waiting_is_limited_in_time_and_number() {
        let memory = ResponseMemory::new(64 * MIB, Duration::from_millis(1));
        let held = memory.reserve(user(1, 1), 8 * MIB).await.expect("memory");
        let mut requests: Vec<_> = (0..40).map(|_| Box::pin(memory.reserve(user(1, 1), MIB))).collect();
        let mut waiting = Vec::new();
        for request in &mut requests {
            match poll_immediate(request.as_mut()).await {
                None => waiting.push(request),
                Some(rejected) => assert!(matches!(rejected, Err(StoreError::ResponseMemory))),
            }
        }
        assert_eq!(waiting.len(), WAITING_PER_OWNER_MAX);
        for request in waiting {
            assert!(matches!(request.await, Err(StoreError::ResponseMemory)));
        }
        drop(held);
        assert!(memory.reserve(user(1, 1), 8 * MIB).await.is_ok());
    }
}
