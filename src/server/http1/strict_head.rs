//! Checks the heads of requests before hyper parses them. hyper accepts a line that ends with LF alone, as RFC 9112,
//! 2.2 permits. A proxy in front may not, and may forward as one header what hyper would parse as two requests.

use std::borrow::Cow;

/// The part of one request's head that was received.
#[derive(Default)]
pub(super) struct StrictHead {
    /// The number of complete lines, without empty ones before the first.
    lines: usize,
    /// The number of bytes of the incomplete line.
    line_bytes: usize,
    /// The previous byte; `None` if it was not seen.
    before: Option<u8>,
    is_complete: bool,
}

impl StrictHead {
    /// Returns the next bytes, of the head or after it, for hyper. Replaces an LF that has no CR before it with NUL,
    /// which is not allowed in a head, so hyper rejects the request.
    pub(super) fn receive<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let mut passed_on = Cow::Borrowed(bytes);
        let mut start = 0;
        while !self.is_complete
            && let Some(length) = bytes[start..].iter().position(|&byte| byte == b'\n')
        {
            let end = start + length;
            self.line_bytes += length;
            let before = end.checked_sub(1).map_or(self.before, |index| Some(passed_on[index]));
            if before.is_some_and(|byte| byte != b'\r') {
                passed_on.to_mut()[end] = 0;
                self.line_bytes += 1;
            } else if self.line_bytes > 1 {
                self.lines += 1;
                self.line_bytes = 0;
            } else {
                self.is_complete = self.lines > 0;
                self.line_bytes = 0;
            }
            start = end + 1;
        }
        self.line_bytes += bytes.len() - start;
        // The byte as passed on: it may have been replaced.
        self.before = passed_on.last().copied().or(self.before);
        passed_on
    }

    /// Whether the whole head was received.
    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Whether the first line, with method and URI, is still incomplete.
    pub(super) fn is_first_line(&self) -> bool {
        self.lines == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What hyper gets of a head that is received in parts of this length, and whether the head is complete.
    fn received(head: &str, part_bytes: usize) -> (String, bool) {
        let mut scanned = StrictHead::default();
        let parts: Vec<_> = head.as_bytes().chunks(part_bytes).map(|part| scanned.receive(part)).collect();
        (String::from_utf8(parts.concat()).expect("text"), scanned.is_complete())
    }

    #[test]
    fn lines_end_with_crlf_only() {
        let cases = [
            ("GET / HTTP/1.1\r\nhost: x\r\n\r\n", "GET / HTTP/1.1\r\nhost: x\r\n\r\n", true),
            ("\r\n\r\nGET / HTTP/1.1\r\n\r\nbody\n\n", "\r\n\r\nGET / HTTP/1.1\r\n\r\nbody\n\n", true),
            ("GET / HTTP/1.1\r\nhost: x\r\n", "GET / HTTP/1.1\r\nhost: x\r\n", false),
            ("GET / HTTP/1.1\nhost: x\n\n", "GET / HTTP/1.1\0host: x\0\0", false),
            (
                "GET / HTTP/1.1\r\na: \n\nPOST / HTTP/1.1\r\n\r\n",
                "GET / HTTP/1.1\r\na: \0\0POST / HTTP/1.1\r\n\r\n",
                true,
            ),
            ("GET / HTTP/1.1\r\na: b\r\n\n", "GET / HTTP/1.1\r\na: b\r\n\0", false),
        ];
        for (head, wanted, is_complete) in cases {
            for part_bytes in 1..=head.len() {
                assert_eq!(received(head, part_bytes), (wanted.to_owned(), is_complete), "{head:?} by {part_bytes}");
            }
        }
    }

    #[test]
    fn lf_after_an_unseen_byte_is_kept() {
        let mut scanned = StrictHead::default();
        assert_eq!(&*scanned.receive(b"\nhost: x\r\n\r\n"), b"\nhost: x\r\n\r\n");
        assert!(scanned.is_complete());
    }
}
