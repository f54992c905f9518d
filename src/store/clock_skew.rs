//! The difference between the service's clock and a server's, within the error that a round trip allows.

use std::fmt;
use std::time::{Duration, Instant};

use fred::types::Value;

/// If the service's clock and the elapsed time between two polls differ by more than this, the clock was set.
const CLOCK_JUMP: Duration = Duration::from_secs(1);
/// A larger difference of the clocks, in microseconds, is logged as a warning.
const SKEW_WARNED_US: i64 = 1_000_000;

/// How well the two clocks agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Agreement {
    #[default]
    Close,
    /// They differ by more than a second, but not by more than the limit.
    Differing,
    /// They differ by more than the limit.
    Unsafe,
}

/// The service's clock minus a server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Skew {
    pub(super) us: i64,
    /// The real difference is at most this far from `us`.
    error_us: i64,
}

impl Skew {
    /// Computes the skew. The server read its clock during the round trip, and the service read its own clock at the
    /// end.
    pub(super) fn of(service_ms: i64, server_us: i64, round_trip: Duration) -> Self {
        let half_us = i64::try_from(round_trip.as_micros() / 2).unwrap_or(i64::MAX);
        let difference_us = service_ms.saturating_mul(1_000).saturating_sub(server_us);
        // The service's clock has a resolution of 1 ms.
        Self { us: difference_us.saturating_sub(half_us), error_us: half_us.saturating_add(1_000) }
    }

    /// The agreement, if the error leaves no doubt about it; otherwise the possible one that is closest to `before`.
    pub(super) fn agreement(self, max_skew: Option<Duration>, before: Agreement) -> Agreement {
        let max_us = max_skew.map_or(i64::MAX, |max| i64::try_from(max.as_micros()).unwrap_or(i64::MAX));
        let classify = |difference_us: i64| {
            if difference_us > max_us {
                Agreement::Unsafe
            } else if difference_us > SKEW_WARNED_US {
                Agreement::Differing
            } else {
                Agreement::Close
            }
        };
        let size_us = self.us.saturating_abs();
        before.clamp(classify(size_us.saturating_sub(self.error_us)), classify(size_us.saturating_add(self.error_us)))
    }

    pub(super) fn seconds(self) -> f64 {
        Duration::from_micros(self.us.unsigned_abs()).as_secs_f64().copysign(if self.us < 0 { -1.0 } else { 1.0 })
    }
}

impl fmt::Display for Skew {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.us < 0 { "behind" } else { "ahead of" };
        write!(formatter, "{:.3} s {side}", self.seconds().abs())
    }
}

/// Whether the service's clock was set between two polls. Each is a moment and the clock's time in milliseconds.
pub(super) fn is_jump((before, before_ms): (Instant, i64), (now, now_ms): (Instant, i64)) -> bool {
    let passed_ms = i64::try_from((now - before).as_millis()).unwrap_or(i64::MAX);
    let jump_ms = now_ms.saturating_sub(before_ms).saturating_sub(passed_ms);
    Duration::from_millis(jump_ms.unsigned_abs()) > CLOCK_JUMP
}

/// Parses the reply to TIME (seconds, and microseconds of the second) as Unix time in microseconds.
pub(super) fn unix_us(reply: Value) -> Option<i64> {
    let mut parts = reply.into_array().into_iter().map(|part| part.as_i64());
    let (seconds, microseconds) = (parts.next()??, parts.next()??);
    seconds.checked_mul(1_000_000)?.checked_add(microseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Option<Duration> = Some(Duration::from_secs(30));

    fn skew(ahead: Duration, error: Duration) -> Skew {
        let us = |duration: Duration| i64::try_from(duration.as_micros()).expect("a short duration");
        Skew { us: us(ahead), error_us: us(error) }
    }

    #[test]
    fn round_trip_bounds_the_error() {
        // The server read 10.000000 s; the reply came 400 ms after the request, when the service read 10.300 s.
        let skew = Skew::of(10_300, 10_000_000, Duration::from_millis(400));
        assert_eq!(skew, Skew { us: 100_000, error_us: 201_000 });
        assert_eq!(skew.to_string(), "0.100 s ahead of");
        let behind = Skew::of(0, 7_200_000_000, Duration::ZERO);
        assert_eq!((behind.seconds().to_string(), behind.to_string()), ("-7200".into(), "7200.000 s behind".into()));
        // Extreme clocks are compared without overflow.
        for (service_ms, server_us) in [(i64::MAX, 0), (i64::MIN, i64::MAX)] {
            let skew = Skew::of(service_ms, server_us, Duration::MAX);
            assert_eq!(skew.agreement(MAX, Agreement::Close), Agreement::Close, "the error is as large as the skew");
        }
    }

    #[test]
    fn agreement_changes_only_beyond_the_error() {
        let (close, small) = (Duration::ZERO, Duration::from_millis(1));
        let secs = Duration::from_secs;
        let cases = [
            (close, small, [Agreement::Close; 3]),
            (secs(2), small, [Agreement::Differing; 3]),
            (secs(31), small, [Agreement::Unsafe; 3]),
            // Within the error, the agreement stays as it was.
            (secs(1), secs(2), [Agreement::Close, Agreement::Differing, Agreement::Differing]),
            (secs(31), secs(2), [Agreement::Differing, Agreement::Differing, Agreement::Unsafe]),
            (secs(31), secs(60), [Agreement::Close, Agreement::Differing, Agreement::Unsafe]),
        ];
        let before = [Agreement::Close, Agreement::Differing, Agreement::Unsafe];
        for (ahead, error, expected) in cases {
            let ahead = skew(ahead, error);
            let behind = Skew { us: -ahead.us, ..ahead };
            for skew in [ahead, behind] {
                assert_eq!(before.map(|before| skew.agreement(MAX, before)), expected, "{skew:?}");
            }
        }
        assert_eq!(skew(secs(7200), small).agreement(None, Agreement::Close), Agreement::Differing);
        // A limit below the difference that is logged.
        assert_eq!(skew(small * 200, small).agreement(Some(small * 125), Agreement::Close), Agreement::Unsafe);
    }

    #[test]
    fn clock_jumps_are_detected() {
        let start = (Instant::now(), 1_000_000);
        let after =
            |passed_ms: u64, ms: i64| is_jump(start, (start.0 + Duration::from_millis(passed_ms), 1_000_000 + ms));
        for (passed_ms, ms) in [(0, 0), (250, 250), (250, 251), (10_000, 10_000), (10_000, 9_001), (0, 1_000)] {
            assert!(!after(passed_ms, ms), "{passed_ms} {ms}");
        }
        for (passed_ms, ms) in [(250, 7_200_000), (250, -7_200_000), (2_000, 500), (0, 1_001), (0, i64::MIN)] {
            assert!(after(passed_ms, ms), "{passed_ms} {ms}");
        }
    }

    #[test]
    fn time_reply_is_parsed() {
        let text = |text: &'static str| Value::from(text);
        assert_eq!(unix_us(Value::Array(vec![text("1795341600"), text("7")])), Some(1_795_341_600_000_007));
        let other = [vec![], vec![text("1")], vec![text("x"), text("1")], vec![text("9223372036854775807"), text("1")]];
        for reply in other {
            assert_eq!(unix_us(Value::Array(reply.clone())), None, "{reply:?}");
        }
    }
}
