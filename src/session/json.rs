//! Writes sessions and messages as JSON.

use std::ops::Range;

use super::{SessionId, Timestamp};

/// The name of a member with its comma, quotes and colon, so that one copy writes all of it.
macro_rules! member {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}
pub(super) use member;

/// Approximate number of bytes in the JSON of a session or message, without the texts of the client.
pub(super) const JSON_OVERHEAD_BYTES: usize = 512;

/// Writes one JSON object to a buffer, member by member.
pub(super) struct JsonObject<'a> {
    out: &'a mut Vec<u8>,
    /// Position of the first byte: the comma of the first member, until `close` replaces it by the brace.
    start: usize,
    /// The last written time and its position. Many times of a session are equal, and copying is cheaper than
    /// formatting.
    last_time: Option<(Timestamp, Range<usize>)>,
}

impl<'a> JsonObject<'a> {
    pub(super) fn open(out: &'a mut Vec<u8>) -> Self {
        Self { start: out.len(), out, last_time: None }
    }

    /// Writes a name made by [`member`].
    pub(super) fn name(&mut self, name: &'static str) {
        self.out.extend_from_slice(name.as_bytes());
    }

    /// Writes a string of any characters, escaped.
    pub(super) fn string(&mut self, name: &'static str, value: &str) {
        self.name(name);
        write_json_string(value, self.out);
    }

    /// Writes a string that needs no escaping, or null.
    pub(super) fn word(&mut self, name: &'static str, value: Option<&str>) {
        match value {
            Some(word) => {
                self.name(name);
                self.out.push(b'"');
                self.out.extend_from_slice(word.as_bytes());
                self.out.push(b'"');
            }
            None => self.json(name, "null"),
        }
    }

    pub(super) fn id(&mut self, name: &'static str, id: SessionId) {
        self.word(name, Some(id.write(&mut [0; SessionId::TEXT_BYTES])));
    }

    pub(super) fn time(&mut self, name: &'static str, time: Timestamp) {
        self.name(name);
        self.out.push(b'"');
        let start = self.out.len();
        match &self.last_time {
            Some((last, written)) if *last == time => self.out.extend_from_within(written.clone()),
            _ => time.write_rfc3339(self.out),
        }
        self.last_time = Some((time, start..self.out.len()));
        self.out.push(b'"');
    }

    pub(super) fn number(&mut self, name: &'static str, value: u64) {
        self.json(name, itoa::Buffer::new().format(value));
    }

    pub(super) fn optional_string(&mut self, name: &'static str, value: Option<&str>) {
        match value {
            Some(value) => self.string(name, value),
            None => self.json(name, "null"),
        }
    }

    pub(super) fn optional_number(&mut self, name: &'static str, value: Option<u64>) {
        match value {
            Some(value) => self.number(name, value),
            None => self.json(name, "null"),
        }
    }

    pub(super) fn optional_time(&mut self, name: &'static str, time: Option<Timestamp>) {
        match time {
            Some(time) => self.time(name, time),
            None => self.json(name, "null"),
        }
    }

    /// Writes an array of strings that are escaped already.
    pub(super) fn escaped_strings(&mut self, name: &'static str, strings: &[impl AsRef<[u8]>]) {
        self.json(name, "[");
        for (index, string) in strings.iter().enumerate() {
            self.out.extend_from_slice(if index == 0 { b"\"" } else { b",\"" });
            self.out.extend_from_slice(string.as_ref());
            self.out.push(b'"');
        }
        self.out.push(b']');
    }

    /// Writes a value that is already JSON.
    pub(super) fn json(&mut self, name: &'static str, text: &str) {
        self.name(name);
        self.out.extend_from_slice(text.as_bytes());
    }

    /// Completes the object, which must have at least one member.
    pub(super) fn close(self) {
        self.out[self.start] = b'{';
        self.out.push(b'}');
    }
}

/// Appends `text` as a JSON string (RFC 8259, section 7).
fn write_json_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    escape(text, |piece| out.extend_from_slice(piece.as_bytes()));
    out.push(b'"');
}

/// Appends `text` as a JSON string without its quotes.
pub(super) fn push_escaped(text: &str, out: &mut String) {
    escape(text, |piece| out.push_str(piece));
}

fn escape(text: &str, mut push: impl FnMut(&str)) {
    let mut rest = text;
    while let Some(place) = rest.bytes().position(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        let (plain, special) = rest.split_at(place);
        push(plain);
        match special.as_bytes()[0] {
            b'"' => push("\\\""),
            b'\\' => push("\\\\"),
            byte => push(&format!("\\u{byte:04x}")),
        }
        rest = &special[1..];
    }
    push(rest);
}

/// JSON without spaces between its tokens.
#[must_use]
pub fn compact_json(json: &str) -> String {
    let mut compact = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(place) = rest.bytes().position(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b'"')) {
        compact.push_str(&rest[..place]);
        rest = &rest[place..];
        let end = if rest.starts_with('"') { string_bytes(rest) } else { 1 };
        if end > 1 {
            compact.push_str(&rest[..end]);
        }
        rest = &rest[end..];
    }
    compact.push_str(rest);
    compact
}

/// Bytes of the JSON string that `text` starts with, with its quotes.
fn string_bytes(text: &str) -> usize {
    let mut is_escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_strings_are_escaped() {
        let text = "\"\\\u{0}\n\u{1f}/é💬\u{7f}\u{2028}";
        let mut out = Vec::new();
        write_json_string(text, &mut out);
        assert_eq!(serde_json::from_slice::<String>(&out).ok().as_deref(), Some(text));
    }

    #[test]
    fn spaces_between_tokens_are_removed() {
        let json = "\t{ \"a \\\" b\\\\\" :\r\n[ 1.50 , -0 ,\" \", 12345678901234567890123 ] } ";
        assert_eq!(compact_json(json), "{\"a \\\" b\\\\\":[1.50,-0,\" \",12345678901234567890123]}");
        assert_eq!(compact_json("\"\""), "\"\"");
        assert_eq!(compact_json(" null"), "null");
    }
}
