//! How often a caller may call. One credential, and one user of it, each have a bucket: it holds what may be called at once,
//! and fills up again at the rate of the limit. The buckets are this process's own.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};

use super::Access;

/// How many seconds' worth of calls may come at once.
const BURST_SECS: u32 = 5;
/// After how many calls buckets that are full again are thrown away: there are never many more than this.
const CALLS_PER_CLEANING: u32 = 10_000;

/// How often callers may call.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateSettings {
    /// Calls a second with one credential: an API key, or the tokens of one business. `None` for no limit.
    pub credential_per_second: Option<NonZeroU32>,
    /// Calls a second of one user with tokens. `None` for no limit.
    pub user_per_second: Option<NonZeroU32>,
}

/// The buckets of all callers.
pub struct RateLimits<C: Clock = DefaultClock> {
    user: Option<Buckets<C>>,
    credential: Option<Buckets<C>>,
}

/// The credential, and the user if the bucket is one's.
type Key = (u64, u64);

/// The buckets of one limit.
struct Buckets<C: Clock> {
    name: &'static str,
    burst: NonZeroU32,
    per_second: NonZeroU32,
    limiter: RateLimiter<Key, DashMapStateStore<Key>, C, StateInformationMiddleware>,
    clock: C,
    calls: AtomicU32,
}

/// What a call left in one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Which limit.
    pub name: &'static str,
    /// What a full bucket holds.
    pub burst: u32,
    /// In how many seconds an empty one is full.
    pub window_secs: u32,
    /// What is left.
    pub remaining: u32,
    /// In how many seconds it is full again.
    pub reset_secs: u64,
    /// The bucket was empty: the call has to wait for as many seconds.
    pub retry_after_secs: Option<u64>,
}

impl RateLimits {
    /// Full buckets.
    #[must_use]
    pub fn new(settings: RateSettings) -> Self {
        Self::with_clock(settings, &DefaultClock::default())
    }
}

impl<C: Clock + Clone> RateLimits<C> {
    fn with_clock(settings: RateSettings, clock: &C) -> Self {
        let buckets = |name, per_second: Option<NonZeroU32>| {
            per_second.map(|per_second| Buckets::new(name, per_second, clock.clone()))
        };
        Self {
            user: buckets("user", settings.user_per_second),
            credential: buckets("credential", settings.credential_per_second),
        }
    }

    /// Counts a call. The last of what is returned is exceeded if any is.
    #[must_use]
    pub fn take(&self, access: &Access) -> Vec<Rate> {
        let mut rates = Vec::new();
        let Some(credential) = access.credential else {
            return rates;
        };
        // The user first: what one user may not call is not taken from all users.
        if let (Some(user), Some(subject)) = (&self.user, access.subject) {
            rates.push(user.take((credential.0, subject.0)));
        }
        if rates.iter().all(|rate| rate.retry_after_secs.is_none())
            && let Some(buckets) = &self.credential
        {
            rates.push(buckets.take((credential.0, 0)));
        }
        rates
    }
}

impl<C: Clock + Clone> Buckets<C> {
    fn new(name: &'static str, per_second: NonZeroU32, clock: C) -> Self {
        let burst = per_second.saturating_mul(NonZeroU32::MIN.saturating_add(BURST_SECS - 1));
        let quota = Quota::per_second(per_second).allow_burst(burst);
        let limiter = RateLimiter::new(quota, DashMapStateStore::default(), clock.clone());
        Self { name, burst, per_second, limiter, clock, calls: AtomicU32::new(0) }
    }

    fn take(&self, key: Key) -> Rate {
        if self.calls.fetch_add(1, Ordering::Relaxed) % CALLS_PER_CLEANING == CALLS_PER_CLEANING - 1 {
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
        let (remaining, retry_after_secs) = match self.limiter.check_key(&key) {
            Ok(state) => (state.remaining_burst_capacity(), None),
            Err(until) => {
                let wait = until.wait_time_from(self.clock.now());
                (0, Some(wait.as_secs_f64().ceil().max(1.0)))
            }
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds")]
        let retry_after_secs = retry_after_secs.map(|secs| secs as u64);
        let (burst, per_second) = (self.burst.get(), self.per_second.get());
        let reset_secs = u64::from((burst - remaining.min(burst)).div_ceil(per_second));
        Rate { name: self.name, burst, window_secs: BURST_SECS, remaining, reset_secs, retry_after_secs }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use governor::clock::FakeRelativeClock;

    use super::super::{Fingerprint, Scope};
    use super::*;
    use crate::session::Reach;

    fn caller(credential: u64, subject: Option<u64>) -> Access {
        let (credential, subject) = (Some(Fingerprint(credential)), subject.map(Fingerprint));
        Access { reach: Reach::Everything, scopes: vec![Scope::Read], credential, subject }
    }

    fn limits(credential: u32, user: u32, clock: &FakeRelativeClock) -> RateLimits<FakeRelativeClock> {
        let settings =
            RateSettings { credential_per_second: NonZeroU32::new(credential), user_per_second: NonZeroU32::new(user) };
        RateLimits::with_clock(settings, clock)
    }

    fn admitted(limits: &RateLimits<FakeRelativeClock>, access: &Access, calls: u32) -> usize {
        let good = |rates: Vec<Rate>| rates.iter().all(|rate| rate.retry_after_secs.is_none());
        (0..calls).filter(|_| good(limits.take(access))).count()
    }

    #[test]
    fn a_bucket_holds_five_seconds_and_fills_up_at_its_rate() {
        let clock = FakeRelativeClock::default();
        let limits = limits(10, 2, &clock);
        let (user, other, server) = (caller(1, Some(1)), caller(1, Some(2)), caller(1, None));
        assert_eq!(admitted(&limits, &user, 1000), 10);
        // Of the credential's 50, the user's refused calls have taken none.
        assert_eq!(admitted(&limits, &other, 1000), 10);
        assert_eq!(admitted(&limits, &server, 1000), 30);
        let exceeded = limits.take(&user);
        assert_eq!(exceeded.len(), 1);
        assert_eq!((exceeded[0].name, exceeded[0].remaining, exceeded[0].retry_after_secs), ("user", 0, Some(1)));
        assert_eq!(exceeded[0].reset_secs, 5);
        clock.advance(Duration::from_secs(1));
        assert_eq!((admitted(&limits, &user, 1000), admitted(&limits, &server, 1000)), (2, 8));
        clock.advance(Duration::from_secs(5));
        let rates = limits.take(&user);
        assert_eq!(
            rates.iter().map(|rate| (rate.name, rate.remaining)).collect::<Vec<_>>(),
            [("user", 9), ("credential", 49)]
        );
        // Others have their own.
        assert_eq!(admitted(&limits, &caller(2, Some(1)), 5), 5);
    }

    #[test]
    fn a_million_users_leave_no_million_buckets_behind() {
        let clock = FakeRelativeClock::default();
        let limits = limits(0, 20, &clock);
        let mut most = 0;
        for user in 0..1_000_000 {
            assert_eq!(admitted(&limits, &caller(1, Some(user)), 1), 1);
            // 20,000 calls a second, which one process hardly answers.
            clock.advance(Duration::from_micros(50));
            most = most.max(limits.user.as_ref().map_or(0, |buckets| buckets.limiter.len()));
        }
        assert!(most <= 13_000, "{most} buckets");
    }

    #[test]
    fn without_a_credential_or_a_limit_nothing_is_counted() {
        let clock = FakeRelativeClock::default();
        let open = Access { credential: None, ..caller(1, None) };
        assert_eq!(limits(1, 1, &clock).take(&open), []);
        assert_eq!(limits(0, 0, &clock).take(&caller(1, Some(1))), []);
    }
}
