//! Limits the number of open streams of the process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::auth::Fingerprint;
use crate::metrics;

/// The limits, and the number of open streams. Shared by all workers.
#[derive(Debug)]
pub struct StreamLimits {
    total_max: usize,
    per_user_max: usize,
    open: Mutex<OpenStreams>,
}

#[derive(Debug, Default)]
struct OpenStreams {
    total: usize,
    by_user: HashMap<Fingerprint, usize>,
}

/// The limit that another stream would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamLimit {
    /// The limit of the process.
    Total,
    /// The limit of the user of a token.
    User,
}

/// One open stream, until it is dropped.
#[derive(Debug)]
pub(super) struct StreamPermit {
    limits: Arc<StreamLimits>,
    user: Option<Fingerprint>,
}

impl StreamLimits {
    /// Creates the limits: `total_max` streams, and `per_user_max` streams of one user.
    #[must_use]
    pub fn new(total_max: usize, per_user_max: usize) -> Self {
        Self { total_max, per_user_max, open: Mutex::default() }
    }

    /// Counts one more stream. `user` is the user of the caller's token.
    pub(super) fn acquire(self: &Arc<Self>, user: Option<Fingerprint>) -> Result<StreamPermit, StreamLimit> {
        let mut open = self.lock();
        let of_user = user.map_or(0, |user| open.by_user.get(&user).copied().unwrap_or_default());
        if user.is_some() && of_user >= self.per_user_max {
            return Err(StreamLimit::User);
        }
        if open.total >= self.total_max {
            return Err(StreamLimit::Total);
        }
        open.total += 1;
        if let Some(user) = user {
            open.by_user.insert(user, of_user + 1);
        }
        metrics::streams_open(open.total);
        Ok(StreamPermit { limits: Arc::clone(self), user })
    }

    fn lock(&self) -> MutexGuard<'_, OpenStreams> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut open = self.limits.lock();
        open.total -= 1;
        metrics::streams_open(open.total);
        if let Some(user) = self.user
            && let Some(of_user) = open.by_user.get_mut(&user)
        {
            *of_user -= 1;
            if *of_user == 0 {
                open.by_user.remove(&user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_count_until_they_are_dropped() {
        let limits = Arc::new(StreamLimits::new(3, 2));
        let user = Some(Fingerprint(1));
        let first = limits.acquire(user).expect("the first");
        let _second = limits.acquire(user).expect("the second");
        assert_eq!(limits.acquire(user).err(), Some(StreamLimit::User));
        let _other = limits.acquire(None).expect("the third");
        assert_eq!(limits.acquire(Some(Fingerprint(2))).err(), Some(StreamLimit::Total));
        drop(first);
        let _again = limits.acquire(user).expect("one is free again");
    }
}
