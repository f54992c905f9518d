//! Timestamps and clocks.

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Datelike, SecondsFormat, Timelike};

/// A Unix time in milliseconds. Displayed as RFC 3339 in UTC with three decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

/// Returns the current time. Only `bootstrap` reads the system clock; tests pass their own clock.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

impl Timestamp {
    /// Length of the displayed text, in bytes, up to the year 9999.
    pub(super) const TEXT_BYTES: usize = 24;

    /// Appends the displayed text digit by digit. A response contains four times, and formatting them with `chrono`
    /// would cost as much as the rest of the response.
    pub(super) fn write_rfc3339(self, out: &mut Vec<u8>) {
        let time = DateTime::from_timestamp_millis(self.0).unwrap_or_default();
        let Some(year) = u32::try_from(time.year()).ok().filter(|year| *year <= 9999) else {
            return out.extend_from_slice(self.to_string().as_bytes());
        };
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let parts = [
            (0..4, year),
            (5..7, time.month()),
            (8..10, time.day()),
            (11..13, time.hour()),
            (14..16, time.minute()),
            (17..19, time.second()),
            (20..23, time.timestamp_subsec_millis()),
        ];
        for (place, mut number) in parts {
            for digit in text[place].iter_mut().rev() {
                *digit = b'0' + u8::try_from(number % 10).unwrap_or_default();
                number /= 10;
            }
        }
        out.extend_from_slice(&text);
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = DateTime::from_timestamp_millis(self.0).unwrap_or_default();
        formatter.write_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_times_equal_displayed_times() {
        let days = (-800_000..3_000_000).step_by(997).map(|day| day * 86_400_000);
        let moments = days.enumerate().map(|(n, day)| day + i64::try_from(n).expect("few") * 12_345_678 % 86_400_000);
        for moment in
            moments.chain([0, -1, 999, 951_782_399_999, i64::MAX, i64::MIN, 253_402_300_799_999, 253_402_300_800_000])
        {
            let mut written = Vec::new();
            Timestamp(moment).write_rfc3339(&mut written);
            assert_eq!(String::from_utf8(written).expect("text"), Timestamp(moment).to_string());
        }
    }

    #[test]
    fn timestamps_have_three_decimals() {
        assert_eq!(Timestamp(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Timestamp(1_795_341_600_001).to_string(), "2026-11-22T10:00:00.001Z");
    }
}
