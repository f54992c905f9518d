//! Which messages of a session were changed or redacted.

use std::num::ParseIntError;
use std::str::FromStr;

/// The number of changes of messages in a session, and the messages that the last changes concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangedMessages {
    /// The number of changes.
    pub count: u64,
    /// `seq` of the last changed messages, the newest last.
    pub recent: Vec<u64>,
}

impl ChangedMessages {
    /// `seq` of the messages that were changed since there were `count` changes; `None` if they are no longer recorded.
    #[must_use]
    pub fn since(&self, count: u64) -> Option<&[u64]> {
        let due = usize::try_from(self.count.checked_sub(count)?).ok()?;
        self.recent.get(self.recent.len().checked_sub(due)?..)
    }
}

/// Parses the format of `lua/common.lua`: the count and the numbers, separated by spaces.
impl FromStr for ChangedMessages {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let mut numbers = text.split(' ').map(str::parse);
        let count = numbers.next().unwrap_or(Ok(0))?;
        Ok(Self { count, recent: numbers.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_since_a_recent_count_are_known() {
        let changed: ChangedMessages = "5 3 3 7".parse().expect("a valid text");
        assert_eq!(changed.since(5), Some([].as_slice()));
        assert_eq!(changed.since(3), Some([3, 7].as_slice()));
        assert_eq!(changed.since(2), Some([3, 3, 7].as_slice()));
        assert_eq!(changed.since(1), None);
        assert_eq!(changed.since(6), None);
        assert_eq!(ChangedMessages::default().since(0), Some([].as_slice()));
        assert!("x 1".parse::<ChangedMessages>().is_err());
    }
}
