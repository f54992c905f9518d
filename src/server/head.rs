//! Looks at the heads of requests before hyper does. hyper takes a line that ends with LF alone, as it may (RFC 9112, 2.2);
//! a proxy in front may not, and passes on as one header what would be two requests here.

use std::borrow::Cow;

/// The head of one request, as far as it was received.
#[derive(Default)]
pub(super) struct Head {
    /// Lines that ended, without empty ones in front of the first.
    lines: usize,
    /// Bytes of the line that did not end yet.
    line_bytes: usize,
    /// The byte before; `None` if it went by unseen.
    before: Option<u8>,
    is_over: bool,
}

impl Head {
    /// Passes on the next bytes of the head, and perhaps of what comes after it. A line that ends with LF alone is made one that
    /// hyper refuses: NUL may be nowhere in a head.
    pub(super) fn receive<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let mut passed_on = Cow::Borrowed(bytes);
        let mut start = 0;
        while !self.is_over
            && let Some(length) = bytes[start..].iter().position(|&byte| byte == b'\n')
        {
            let end = start + length;
            self.line_bytes += length;
            let before = end.checked_sub(1).map_or(self.before, |place| Some(passed_on[place]));
            if before.is_some_and(|byte| byte != b'\r') {
                passed_on.to_mut()[end] = 0;
                self.line_bytes += 1;
            } else if self.line_bytes > 1 {
                self.lines += 1;
                self.line_bytes = 0;
            } else {
                self.is_over = self.lines > 0;
                self.line_bytes = 0;
            }
            start = end + 1;
        }
        self.line_bytes += bytes.len() - start;
        // As it is passed on.
        self.before = passed_on.last().copied().or(self.before);
        passed_on
    }

    /// All of it was received.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// There is nothing but method and URI yet.
    pub(super) fn is_first_line(&self) -> bool {
        self.lines == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a head that is received in parts of this length; and whether it is over.
    fn received(head: &str, part_bytes: usize) -> (String, bool) {
        let mut scanned = Head::default();
        let parts: Vec<_> = head.as_bytes().chunks(part_bytes).map(|part| scanned.receive(part)).collect();
        (String::from_utf8(parts.concat()).expect("text"), scanned.is_over())
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
        for (head, wanted, is_over) in cases {
            for part_bytes in 1..=head.len() {
                assert_eq!(received(head, part_bytes), (wanted.to_owned(), is_over), "{head:?} by {part_bytes}");
            }
        }
    }

    #[test]
    fn a_head_whose_start_was_not_seen_is_not_spoilt() {
        let mut scanned = Head::default();
        assert_eq!(&*scanned.receive(b"\nhost: x\r\n\r\n"), b"\nhost: x\r\n\r\n");
        assert!(scanned.is_over());
    }
}
