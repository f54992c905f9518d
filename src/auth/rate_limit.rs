//! Rate limits: a token bucket for each credential, and one for each user of a credential.
//!
//! A full bucket holds the calls of a burst and refills at the rate of the limit. Each process counts separately.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};

use super::Grant;

/// Size of a bucket, in seconds at the rate of the limit.
const BURST_SECS: u32 = 5;
/// Number of calls after which full buckets are removed. So there are at most the buckets of the callers of the last
/// [`BURST_SECS`], and this many.
const CALLS_PER_CLEANING: u32 = 10_000;

/// The rate limits of callers.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateConfig {
    /// Maximum calls per second with one credential: an API key, or all tokens of one business. `None` for no limit.
    pub credential_per_second: Option<NonZeroU32>,
    /// Maximum calls per second of one user with a token. `None` for no limit.
    pub user_per_second: Option<NonZeroU32>,
}

/// The buckets of all callers.
pub struct RateLimits<C: Clock = DefaultClock> {
    user: Option<Buckets<C>>,
    credential: Option<Buckets<C>>,
}

/// The credential and, for the bucket of a user, the user; 0 otherwise.
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

/// The state of one bucket after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The name of the limit: `user` or `credential`.
    pub name: &'static str,
    /// Calls that a full bucket holds.
    pub burst: u32,
    /// Seconds in which an empty bucket refills.
    pub window_secs: u32,
    /// Calls that remain in the bucket.
    pub remaining: u32,
    /// Seconds until the bucket is full.
    pub reset_secs: u64,
    /// Seconds after which the caller may retry. Set only if the bucket was empty, so the call is rejected.
    pub retry_after_secs: Option<u64>,
}

impl RateLimits {
    /// Creates the limits with full buckets.
    #[must_use]
    pub fn new(config: RateConfig) -> Self {
        Self::with_clock(config, &DefaultClock::default())
    }
}

impl<C: Clock + Clone> RateLimits<C> {
    fn with_clock(config: RateConfig, clock: &C) -> Self {
        let buckets = |name, per_second: Option<NonZeroU32>| {
            per_second.map(|per_second| Buckets::new(name, per_second, clock.clone()))
        };
        Self {
            user: buckets("user", config.user_per_second),
            credential: buckets("credential", config.credential_per_second),
        }
    }

    /// Counts a call and returns the state of its buckets. If the call exceeds a limit, that limit is the last element.
    #[must_use]
    pub fn take(&self, grant: &Grant) -> Vec<Rate> {
        let mut rates = Vec::new();
        let Some(credential) = grant.credential else {
            return rates;
        };
        // The user's bucket first, so that a call that exceeds it takes nothing from the credential's bucket.
        if let (Some(user), Some(subject)) = (&self.user, grant.subject) {
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
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the wait is a few seconds")]
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
    use crate::session::TenantScope;

    fn caller(credential: u64, subject: Option<u64>) -> Grant {
        let (credential, subject) = (Some(Fingerprint(credential)), subject.map(Fingerprint));
        Grant {
            tenant_scope: TenantScope::Everything,
            scopes: vec![Scope::Read],
            credential,
            subject,
            valid_until: None,
        }
    }

    fn limits(credential: u32, user: u32, clock: &FakeRelativeClock) -> RateLimits<FakeRelativeClock> {
        let config =
            RateConfig { credential_per_second: NonZeroU32::new(credential), user_per_second: NonZeroU32::new(user) };
        RateLimits::with_clock(config, clock)
    }

    fn accepted(limits: &RateLimits<FakeRelativeClock>, grant: &Grant, calls: u32) -> usize {
        let good = |rates: Vec<Rate>| rates.iter().all(|rate| rate.retry_after_secs.is_none());
        (0..calls).filter(|_| good(limits.take(grant))).count()
    }

    #[test]
    fn bucket_holds_five_seconds_of_calls_and_refills_at_its_rate() {
        let clock = FakeRelativeClock::default();
        let limits = limits(10, 2, &clock);
        let (user, other, server) = (caller(1, Some(1)), caller(1, Some(2)), caller(1, None));
        assert_eq!(accepted(&limits, &user, 1000), 10);
        // The user's rejected calls took nothing from the 50 calls of the credential.
        assert_eq!(accepted(&limits, &other, 1000), 10);
        assert_eq!(accepted(&limits, &server, 1000), 30);
        let exceeded = limits.take(&user);
        assert_eq!(exceeded.len(), 1);
        assert_eq!((exceeded[0].name, exceeded[0].remaining, exceeded[0].retry_after_secs), ("user", 0, Some(1)));
        assert_eq!(exceeded[0].reset_secs, 5);
        clock.advance(Duration::from_secs(1));
        assert_eq!((accepted(&limits, &user, 1000), accepted(&limits, &server, 1000)), (2, 8));
        clock.advance(Duration::from_secs(5));
        let rates = limits.take(&user);
        assert_eq!(
            rates.iter().map(|rate| (rate.name, rate.remaining)).collect::<Vec<_>>(),
            [("user", 9), ("credential", 49)]
        );
        // Another credential has its own buckets.
        assert_eq!(accepted(&limits, &caller(2, Some(1)), 5), 5);
    }

    #[test]
    fn full_buckets_are_removed() {
        let clock = FakeRelativeClock::default();
        let limits = limits(0, 20, &clock);
        let mut most = 0;
        for user in 0..1_000_000 {
            assert_eq!(accepted(&limits, &caller(1, Some(user)), 1), 1);
            // 20,000 calls per second, about the most that one process serves.
            clock.advance(Duration::from_micros(50));
            most = most.max(limits.user.as_ref().map_or(0, |buckets| buckets.limiter.len()));
        }
        assert!(most <= 13_000, "{most} buckets");
    }

    #[test]
    fn calls_without_a_credential_or_a_limit_are_not_counted() {
        let clock = FakeRelativeClock::default();
        let open = Grant { credential: None, ..caller(1, None) };
        assert_eq!(limits(1, 1, &clock).take(&open), []);
        assert_eq!(limits(0, 0, &clock).take(&caller(1, Some(1))), []);
    }
}
