//! The timeouts and the retention of sessions.

use std::time::Duration;

use super::{Session, Timestamp};

/// The timeouts and the retention of sessions (docs/api.md, "The life of a session").
#[derive(Clone, Copy, Debug)]
pub struct Lifecycle {
    /// Time without activity after which a session expires.
    pub idle_timeout: Duration,
    /// Time after its creation or last resume at which a session expires, even if it is in use.
    pub max_lifetime: Duration,
    /// Time for which a session stays readable after its end.
    pub retention: Duration,
    /// Activity, and the expiry that follows from it, are written if they differ from the stored ones by this or more.
    pub activity_resolution: Duration,
}

impl Lifecycle {
    /// [`Self::idle_timeout`] in milliseconds.
    #[must_use]
    pub fn idle_ms(&self) -> i64 {
        millis(self.idle_timeout)
    }

    /// [`Self::max_lifetime`] in milliseconds.
    #[must_use]
    pub fn max_lifetime_ms(&self) -> i64 {
        millis(self.max_lifetime)
    }

    /// [`Self::retention`] in milliseconds.
    #[must_use]
    pub fn retention_ms(&self) -> i64 {
        millis(self.retention)
    }

    /// [`Self::activity_resolution`] in milliseconds.
    #[must_use]
    pub fn resolution_ms(&self) -> i64 {
        millis(self.activity_resolution)
    }

    /// Whether activity at `now` must be written: the last written activity, or the expiry that follows from the new
    /// one, differs by the activity resolution or more.
    #[must_use]
    pub fn is_touch_due(&self, session: &Session, now: Timestamp) -> bool {
        self.is_due([session.last_activity_at, session.expires_at, session.active_until], now)
    }

    /// The same for a session with these times: its last activity, its expiry and the end of its maximum lifetime.
    #[must_use]
    pub fn is_due(&self, [last_activity_at, expires_at, active_until]: [Timestamp; 3], now: Timestamp) -> bool {
        let idle_for = now.0.saturating_sub(last_activity_at.0);
        let expires = now.0.saturating_add(self.idle_ms()).min(active_until.0);
        let lag = expires.saturating_sub(expires_at.0);
        // The last step, to the end of the maximum lifetime, is always written: the reason of the end follows from it.
        let is_last_step = lag > 0 && expires == active_until.0;
        idle_for > 0 && (idle_for.max(lag) >= self.resolution_ms() || is_last_step)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
