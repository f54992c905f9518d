//! As much of Redis's protocol (RESP2, <https://redis.io/docs/latest/develop/reference/protocol-spec/>) as reads of sessions need:
//! commands, and replies that are hashes.

use std::io;
use std::ops::Range;

/// The longest text that Redis stores has 512 MiB.
const NUMBER_DIGITS_MAX: usize = 9;

/// A reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a, const N: usize> {
    /// The texts of a hash's fields; `None` for what it has not.
    Texts([Option<&'a str>; N]),
    /// An error, or texts that are no UTF-8.
    Other,
}

/// Appends a command.
pub(super) fn write_command<'a>(words: impl Iterator<Item = &'a [u8]> + Clone, out: &mut Vec<u8>) {
    write_header(b'*', words.clone().count(), out);
    for word in words {
        write_header(b'$', word.len(), out);
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// Appends the line that says how long what follows is.
fn write_header(kind: u8, number: usize, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Names of fields as replies have them, to be found in there without a look at their parts.
pub(super) fn spelled<const N: usize>(names: [&str; N]) -> [Vec<u8>; N] {
    names.map(|name| format!("${}\r\n{name}\r\n", name.len()).into_bytes())
}

/// The next reply of what was received, and its length, if all of it is there: a hash, names and texts in turn, of which
/// those of these names ([`spelled`]) are taken, or an error. A hash that is not there has no fields.
///
/// # Errors
/// If it is anything else: then nobody knows where the next one starts.
pub(super) fn next_fields<'a, const N: usize>(
    received: &'a [u8],
    names: &[Vec<u8>; N],
) -> io::Result<Option<(Frame<'a, N>, usize)>> {
    if received.first() == Some(&b'-') {
        let end = received.windows(2).position(|pair| pair == b"\r\n");
        return Ok(end.map(|end| (Frame::Other, end + 2)));
    }
    let mut reader = Reader { bytes: received, place: 0 };
    let Some(count) = reader.header(b'*')? else {
        return Ok(None);
    };
    if count % 2 != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let (mut places, mut expected) = ([const { None }; N], 0);
    for _ in 0..count / 2 {
        // Fields come in the order in which they were written at first, which is nearly that of the names.
        let found = (expected..N).chain(0..expected).find(|&place| reader.skip(&names[place]));
        if found.is_none() && reader.text()?.is_none() {
            return Ok(None);
        }
        let Some(text) = reader.text()? else {
            return Ok(None);
        };
        if let Some(place) = found {
            places[place] = Some(text);
            expected = place + 1;
        }
    }
    let end = reader.place;
    // Checked once for all of them.
    let Ok(reply) = std::str::from_utf8(&received[..end]) else {
        return Ok(Some((Frame::Other, end)));
    };
    let mut texts = [None; N];
    for (text, place) in texts.iter_mut().zip(places) {
        if let Some(place) = place {
            let Some(whole) = reply.get(place) else {
                return Ok(Some((Frame::Other, end)));
            };
            *text = Some(whole);
        }
    }
    Ok(Some((Frame::Texts(texts), end)))
}

/// Reads what was received, and takes nothing away.
struct Reader<'a> {
    bytes: &'a [u8],
    place: usize,
}

impl Reader<'_> {
    /// Goes on behind these bytes, if they are next.
    fn skip(&mut self, bytes: &[u8]) -> bool {
        let is_next = self.bytes[self.place..].starts_with(bytes);
        if is_next {
            self.place += bytes.len();
        }
        is_next
    }

    /// The number of the line that says how long what follows is; `None` if not all of the line is there yet.
    fn header(&mut self, kind: u8) -> io::Result<Option<usize>> {
        let line = &self.bytes[self.place..];
        let mut number = 0;
        for (place, &byte) in line.iter().enumerate() {
            match byte {
                _ if place == 0 && byte == kind => {}
                b'0'..=b'9' if (1..=NUMBER_DIGITS_MAX).contains(&place) => {
                    number = number * 10 + usize::from(byte - b'0');
                }
                b'\r' if place > 1 => {
                    self.place += place + 2;
                    return Ok((self.place <= self.bytes.len()).then_some(number));
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        Ok(None)
    }

    /// Where a text is; `None` if not all of it is there yet.
    fn text(&mut self) -> io::Result<Option<Range<usize>>> {
        let Some(length) = self.header(b'$')? else {
            return Ok(None);
        };
        let (start, end) = (self.place, self.place + length);
        self.place = end + 2;
        Ok((self.place <= self.bytes.len()).then_some(start..end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = ["a", "bc", "d"];

    fn read(received: &[u8]) -> Option<(Frame<'_, 3>, usize)> {
        next_fields(received, &spelled(NAMES)).expect("no error")
    }

    #[test]
    fn a_command_is_an_array_of_its_words() {
        let mut out = Vec::new();
        write_command([&b"HGETALL"[..], "sd:é".as_bytes(), b""].into_iter(), &mut out);
        assert_eq!(out, "*3\r\n$7\r\nHGETALL\r\n$5\r\nsd:é\r\n$0\r\n\r\n".as_bytes());
    }

    #[test]
    fn a_reply_is_taken_when_all_of_it_is_there_and_what_follows_is_left() {
        let reply = b"*6\r\n$1\r\nd\r\n$3\r\na\r\n\r\n$1\r\nx\r\n$1\r\na\r\n$1\r\na\r\n$0\r\n\r\n*2\r\n";
        let whole = reply.len() - 4;
        for end in 0..whole {
            assert_eq!(read(&reply[..end]), None, "{end} bytes");
        }
        assert_eq!(read(reply), Some((Frame::Texts([Some(""), None, Some("a\r\n")]), whole)));
        assert_eq!(read(b"*0\r\n*2"), Some((Frame::Texts([None; 3]), 4)));
        assert_eq!(read(b"*2\r\n$1\r\na\r\n$1\r\n\xff\r\n"), Some((Frame::Other, 18)));
        // Text as a whole, but not where one of them ends.
        assert_eq!(read(b"*2\r\n$1\r\na\r\n$1\r\n\xc3\xa9\r"), Some((Frame::Other, 18)));
        assert_eq!(read(b"-MOVED 1 a:1\r\n*3"), Some((Frame::Other, 14)));
    }

    #[test]
    fn fields_are_found_in_whatever_order_they_come() {
        let texts = ["1", "2", "3"];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut reply = Vec::new();
            let pairs = order.iter().flat_map(|&place| [NAMES[place].as_bytes(), texts[place].as_bytes()]);
            write_command(pairs, &mut reply);
            assert_eq!(read(&reply), Some((Frame::Texts(texts.map(Some)), reply.len())), "{order:?}");
        }
    }

    #[test]
    fn what_is_no_such_reply_is_an_error() {
        for reply in [
            "+OK\r\n",
            ":1\r\n",
            "*3\r\n$1\r\na\r\n",
            "*-1\r\n",
            "*2\r\n:1\r\n",
            "*2\r\n$x\r\n",
            "*2\r\n$-1\r\n",
            "*2\r\n$1\r\na\r\n$-1\r\n",
            "*2\r\n$9999999999\r\n",
        ] {
            assert!(next_fields(reply.as_bytes(), &spelled(NAMES)).is_err(), "{reply:?}");
        }
    }
}
