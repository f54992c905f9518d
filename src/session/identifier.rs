//! Identifiers and idempotency keys, which clients choose.

use std::borrow::Borrow;
use std::fmt;

/// An identifier that clients choose (`businessId`, `userId`, `locationId`, `sessionType`, `messageId`): 1 to 128
/// Unicode characters without control characters, compared byte for byte (docs/api.md, "Identifiers"). `.` and `..` are
/// rejected, because URL libraries remove them from a path, even percent-encoded (WHATWG URL, "single-dot URL path
/// segment").
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identifier(String);

impl Identifier {
    /// Maximum characters of an identifier.
    pub const CHARS_MAX: usize = 128;

    /// Checks `text` and returns it as an identifier.
    ///
    /// # Errors
    /// Returns what is wrong with it, as the end of a sentence that starts with the name of the field.
    pub fn new(text: impl Into<String>) -> Result<Self, &'static str> {
        let text = text.into();
        if text.is_empty() {
            return Err("must not be empty");
        }
        if text.chars().count() > Self::CHARS_MAX {
            return Err("must have at most 128 characters");
        }
        if text.chars().any(char::is_control) {
            return Err("must not contain control characters");
        }
        if text == "." || text == ".." {
            return Err("must not be \".\" or \"..\": URL libraries remove these from a path");
        }
        Ok(Self(text))
    }

    /// The text of the identifier.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Borrow<str> for Identifier {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The key with which a client marks a create to repeat it safely: 16 to 128 visible ASCII characters (docs/api.md,
/// "Retries and idempotency").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(pub(super) String);

impl IdempotencyKey {
    /// Minimum characters of a key. Shorter keys could collide by accident.
    pub const CHARS_MIN: usize = 16;
    /// Maximum characters of a key.
    pub const CHARS_MAX: usize = 128;

    /// Checks `text` and returns it as a key.
    ///
    /// # Errors
    /// Returns what is wrong with it, as the end of a sentence that starts with the name of the header.
    pub fn new(text: impl Into<String>) -> Result<Self, &'static str> {
        let text = text.into();
        let is_visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_visible && (Self::CHARS_MIN..=Self::CHARS_MAX).contains(&text.len()) {
            Ok(Self(text))
        } else {
            Err("must have 16 to 128 visible ASCII characters, such as a UUID")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_wrong_lengths_control_characters_and_dot_segments() {
        for text in ["a", "a:b", "{}", "%2f", "auth0|123", "jane@example.com", "urn:x:y", " ", "💬", "...", ".a", "%2e"]
        {
            assert!(Identifier::new(text).is_ok(), "{text:?}");
        }
        assert!(Identifier::new("ü".repeat(128)).is_ok());
        for text in ["", "a\0b", "\n", "\u{7f}", "\u{85}", &"a".repeat(129), ".", ".."] {
            assert!(Identifier::new(text).is_err(), "{text:?}");
        }
    }
}
