//! The part of Redis's protocol (RESP2, <https://redis.io/docs/latest/develop/reference/protocol-spec/>) that reads and
//! scripts need: commands, and replies that are not nested. It parses a session four times as fast as the crate
//! `redis-protocol` does (`benches/HISTORY.md`).

use std::io;
use std::ops::Range;

/// Digits of the longest string that Redis stores, 512 MiB.
const NUMBER_DIGITS_MAX: usize = 9;

/// Bytes that a word of a command takes beside its own, unless it is longer than 9,999 bytes.
const WORD_OVERHEAD: usize = 9;

/// Maximum number of texts of a reply for which space is reserved before they arrive.
const TEXTS_RESERVED_MAX: usize = 1024;

/// A reply to a read of a session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a, const N: usize> {
    /// The values of a hash's fields; `None` for an absent field.
    Fields([Option<&'a str>; N]),
    /// An error, or values that are not UTF-8.
    Other,
}

/// A reply that is not nested, as places in the received bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Flat {
    /// Several texts or numbers.
    Texts(Vec<Range<usize>>),
    /// One text, or none.
    Text(Option<Range<usize>>),
    /// A number.
    Integer(i64),
    /// An error, or several texts of which one is missing.
    Other,
}

/// Appends a command.
pub(super) fn write_command<'a>(words: impl Iterator<Item = &'a [u8]> + Clone, out: &mut Vec<u8>) {
    write_header(b'*', words.clone().count(), out);
    for word in words {
        write_word(word, out);
    }
}

/// An encoded command.
pub(super) fn command<'a>(words: impl Iterator<Item = &'a [u8]> + Clone) -> Vec<u8> {
    let mut out = Vec::with_capacity(words.clone().map(|word| word.len() + WORD_OVERHEAD).sum());
    write_command(words, &mut out);
    out
}

/// Appends one word of a command.
pub(super) fn write_word(word: &[u8], out: &mut Vec<u8>) {
    write_header(b'$', word.len(), out);
    out.extend_from_slice(word);
    out.extend_from_slice(b"\r\n");
}

/// Appends a header line: the kind of the value that follows, and its length.
pub(super) fn write_header(kind: u8, number: usize, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Encodes names of fields as replies contain them, so they can be compared without parsing.
pub(super) fn encode_names<const N: usize>(names: [&str; N]) -> [Vec<u8>; N] {
    names.map(|name| format!("${}\r\n{name}\r\n", name.len()).into_bytes())
}

/// Parses the next reply in `received` and returns it with its length, or `None` if it is incomplete. A reply is an
/// error, or a hash: names and values in turn. Of a hash, the fields with these names ([`encode_names`]) are returned.
/// A missing hash has no fields.
///
/// # Errors
/// If the reply is anything else. The start of the next reply is then unknown.
pub(super) fn next_fields<'a, const N: usize>(
    received: &'a [u8],
    names: &[Vec<u8>; N],
) -> io::Result<Option<(Frame<'a, N>, usize)>> {
    if received.first() == Some(&b'-') {
        return Ok(line(received).map(|line| (Frame::Other, line.len() + 2)));
    }
    let mut reader = Reader { bytes: received, position: 0 };
    let Some(count) = reader.header(b'*')? else {
        return Ok(None);
    };
    if count % 2 != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let (mut ranges, mut expected) = ([const { None }; N], 0);
    for _ in 0..count / 2 {
        // Redis sends fields in the order in which they were first written, which is nearly that of `names`.
        let found = (expected..N).chain(0..expected).find(|&index| reader.skip(&names[index]));
        if found.is_none() && reader.text()?.is_none() {
            return Ok(None);
        }
        let Some(text) = reader.text()? else {
            return Ok(None);
        };
        if let Some(index) = found {
            ranges[index] = Some(text);
            expected = index + 1;
        }
    }
    let end = reader.position;
    // Checks all values at once.
    let Ok(reply) = std::str::from_utf8(&received[..end]) else {
        return Ok(Some((Frame::Other, end)));
    };
    let mut texts = [None; N];
    for (text, range) in texts.iter_mut().zip(ranges) {
        if let Some(range) = range {
            let Some(whole) = reply.get(range) else {
                return Ok(Some((Frame::Other, end)));
            };
            *text = Some(whole);
        }
    }
    Ok(Some((Frame::Fields(texts), end)))
}

/// Parses the next reply in `received` and returns it with its length, or `None` if it is incomplete.
///
/// # Errors
/// If the reply is nested, or no reply. The start of the next reply is then unknown.
pub(super) fn next_flat(received: &[u8]) -> io::Result<Option<(Flat, usize)>> {
    let mut reader = Reader { bytes: received, position: 0 };
    let flat = match received.first() {
        None => return Ok(None),
        Some(b'-' | b':') => {
            let Some(line) = line(received) else {
                return Ok(None);
            };
            reader.position = line.len() + 2;
            let number = std::str::from_utf8(&line[1..]).ok().and_then(|number| number.parse().ok());
            match (line[0], number) {
                (b'-', _) => Flat::Other,
                (_, Some(number)) => Flat::Integer(number),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        Some(b'$') if reader.skip(b"$-1\r\n") => Flat::Text(None),
        Some(b'$') => match reader.text()? {
            Some(text) => Flat::Text(Some(text)),
            None => return Ok(None),
        },
        Some(_) => {
            let Some(count) = reader.header(b'*')? else {
                return Ok(None);
            };
            let mut texts = Vec::with_capacity(count.min(TEXTS_RESERVED_MAX));
            let mut is_complete = true;
            for _ in 0..count {
                if reader.skip(b"$-1\r\n") {
                    is_complete = false;
                    continue;
                }
                let text = if reader.is_next(b":") { reader.number()? } else { reader.text()? };
                match text {
                    Some(text) => texts.push(text),
                    None => return Ok(None),
                }
            }
            if is_complete { Flat::Texts(texts) } else { Flat::Other }
        }
    };
    Ok(Some((flat, reader.position)))
}

/// What a server sends to a connection that subscribes (<https://redis.io/docs/latest/develop/pubsub/>).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pushed<'a> {
    /// A message was published to the channel.
    Message { channel: &'a str, message: &'a [u8] },
    /// The reply to SSUBSCRIBE.
    Subscribed(&'a str),
    /// The reply to SUNSUBSCRIBE; or the slot of the channel has moved.
    Unsubscribed(&'a str),
    /// The reply to PING.
    Pong,
    /// An error.
    Error(&'a str),
}

/// Parses what comes next in `received` and returns it with its length, or `None` if it is incomplete.
///
/// # Errors
/// If it is anything else. The start of the next one is then unknown.
pub(super) fn next_pushed(received: &[u8]) -> io::Result<Option<(Pushed<'_>, usize)>> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let text = |range: Range<usize>| received.get(range).and_then(|bytes| std::str::from_utf8(bytes).ok());
    if received.first() == Some(&b'-') {
        let Some(line) = line(received) else { return Ok(None) };
        return Ok(Some((Pushed::Error(text(1..line.len()).ok_or_else(invalid)?), line.len() + 2)));
    }
    let mut reader = Reader { bytes: received, position: 0 };
    let Some(count) = reader.header(b'*')? else { return Ok(None) };
    let Some(kind) = reader.text()? else { return Ok(None) };
    let Some(first) = reader.text()? else { return Ok(None) };
    let kind = text(kind).ok_or_else(invalid)?;
    let channel = text(first).ok_or_else(invalid)?;
    let pushed = match (kind, count) {
        ("smessage", 3) => match reader.text()? {
            Some(message) => Pushed::Message { channel, message: &received[message] },
            None => return Ok(None),
        },
        ("ssubscribe" | "sunsubscribe", 3) => {
            let Some(line) = line(&received[reader.position..]) else { return Ok(None) };
            if line.first() != Some(&b':') {
                return Err(invalid());
            }
            reader.position += line.len() + 2;
            if kind == "ssubscribe" { Pushed::Subscribed(channel) } else { Pushed::Unsubscribed(channel) }
        }
        ("pong", 2) => Pushed::Pong,
        _ => return Err(invalid()),
    };
    Ok(Some((pushed, reader.position)))
}

/// The first line, without its end.
fn line(received: &[u8]) -> Option<&[u8]> {
    received.windows(2).position(|pair| pair == b"\r\n").map(|end| &received[..end])
}

/// Reads the received bytes without consuming them.
struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Reader<'_> {
    fn is_next(&self, bytes: &[u8]) -> bool {
        self.bytes[self.position..].starts_with(bytes)
    }

    /// Skips these bytes, if they are next.
    fn skip(&mut self, bytes: &[u8]) -> bool {
        let is_next = self.is_next(bytes);
        if is_next {
            self.position += bytes.len();
        }
        is_next
    }

    /// Reads a header line of this kind and returns its number; `None` if the line is incomplete.
    fn header(&mut self, kind: u8) -> io::Result<Option<usize>> {
        let line = &self.bytes[self.position..];
        let mut number = 0;
        for (index, &byte) in line.iter().enumerate() {
            match byte {
                _ if index == 0 && byte == kind => {}
                b'0'..=b'9' if (1..=NUMBER_DIGITS_MAX).contains(&index) => {
                    number = number * 10 + usize::from(byte - b'0');
                }
                b'\r' if index > 1 => {
                    self.position += index + 2;
                    return Ok((self.position <= self.bytes.len()).then_some(number));
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        Ok(None)
    }

    /// Reads a number and returns the range of its digits and sign; `None` if it is incomplete.
    fn number(&mut self) -> io::Result<Option<Range<usize>>> {
        let Some(line) = line(&self.bytes[self.position..]) else {
            return Ok(None);
        };
        let (start, end) = (self.position + 1, self.position + line.len());
        self.position = end + 2;
        let digits = line[1..].strip_prefix(b"-").unwrap_or(&line[1..]);
        let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        if is_number { Ok(Some(start..end)) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// Reads a string and returns its range; `None` if it is incomplete.
    fn text(&mut self) -> io::Result<Option<Range<usize>>> {
        let Some(length) = self.header(b'$')? else {
            return Ok(None);
        };
        let (start, end) = (self.position, self.position + length);
        self.position = end + 2;
        Ok((self.position <= self.bytes.len()).then_some(start..end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = ["a", "bc", "d"];

    fn read(received: &[u8]) -> Option<(Frame<'_, 3>, usize)> {
        next_fields(received, &encode_names(NAMES)).expect("no error")
    }

    #[test]
    fn command_is_encoded_as_an_array() {
        let mut out = Vec::new();
        write_command([&b"HGETALL"[..], "sd:é".as_bytes(), b""].into_iter(), &mut out);
        assert_eq!(out, "*3\r\n$7\r\nHGETALL\r\n$5\r\nsd:é\r\n$0\r\n\r\n".as_bytes());
    }

    #[test]
    fn complete_reply_is_parsed_without_the_bytes_after_it() {
        let reply = b"*6\r\n$1\r\nd\r\n$3\r\na\r\n\r\n$1\r\nx\r\n$1\r\na\r\n$1\r\na\r\n$0\r\n\r\n*2\r\n";
        let whole = reply.len() - 4;
        for end in 0..whole {
            assert_eq!(read(&reply[..end]), None, "{end} bytes");
        }
        assert_eq!(read(reply), Some((Frame::Fields([Some(""), None, Some("a\r\n")]), whole)));
        assert_eq!(read(b"*0\r\n*2"), Some((Frame::Fields([None; 3]), 4)));
        assert_eq!(read(b"*2\r\n$1\r\na\r\n$1\r\n\xff\r\n"), Some((Frame::Other, 18)));
        // Valid UTF-8 as a whole, but not up to the end of the value.
        assert_eq!(read(b"*2\r\n$1\r\na\r\n$1\r\n\xc3\xa9\r"), Some((Frame::Other, 18)));
        assert_eq!(read(b"-MOVED 1 a:1\r\n*3"), Some((Frame::Other, 14)));
    }

    #[test]
    fn fields_are_found_in_any_order() {
        let texts = ["1", "2", "3"];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut reply = Vec::new();
            let pairs = order.iter().flat_map(|&index| [NAMES[index].as_bytes(), texts[index].as_bytes()]);
            write_command(pairs, &mut reply);
            assert_eq!(read(&reply), Some((Frame::Fields(texts.map(Some)), reply.len())), "{order:?}");
        }
    }

    #[test]
    fn flat_replies_are_parsed_without_the_bytes_after_them() {
        let cases = [
            ("*2\r\n$1\r\na\r\n$4\r\n\r\n*2\r\n", Flat::Texts(vec![8..9, 15..19])),
            ("*0\r\n", Flat::Texts(Vec::new())),
            ("$3\r\nabc\r\n", Flat::Text(Some(4..7))),
            ("$-1\r\n", Flat::Text(None)),
            (":-12\r\n", Flat::Integer(-12)),
            ("-ERR x\r\n", Flat::Other),
            ("*3\r\n:-1\r\n$1\r\na\r\n:20\r\n", Flat::Texts(vec![5..7, 13..14, 17..19])),
            ("*2\r\n$-1\r\n$1\r\na\r\n", Flat::Other),
        ];
        for (reply, flat) in cases {
            for end in 0..reply.len() {
                assert_eq!(next_flat(&reply.as_bytes()[..end]).ok().flatten(), None, "{reply:?}, {end} bytes");
            }
            let received = format!("{reply}*1\r\n");
            assert_eq!(next_flat(received.as_bytes()).expect("a reply"), Some((flat, reply.len())), "{reply:?}");
        }
        for other in ["+OK\r\n", "*1\r\n:1x\r\n", "*1\r\n:-\r\n", "*1\r\n*0\r\n", ":x\r\n", "x"] {
            assert!(next_flat(other.as_bytes()).is_err(), "{other:?}");
        }
    }

    #[test]
    fn what_subscriptions_receive_is_parsed() {
        let cases = [
            ("*3\r\n$8\r\nsmessage\r\n$1\r\nc\r\n$2\r\n\r\n\r\n", Pushed::Message { channel: "c", message: b"\r\n" }),
            ("*3\r\n$10\r\nssubscribe\r\n$1\r\nc\r\n:1\r\n", Pushed::Subscribed("c")),
            ("*3\r\n$12\r\nsunsubscribe\r\n$1\r\nc\r\n:0\r\n", Pushed::Unsubscribed("c")),
            ("*2\r\n$4\r\npong\r\n$0\r\n\r\n", Pushed::Pong),
            ("-MOVED 1 a:1\r\n", Pushed::Error("MOVED 1 a:1")),
        ];
        for (text, pushed) in cases {
            for end in 0..text.len() {
                assert_eq!(next_pushed(&text.as_bytes()[..end]).ok().flatten(), None, "{text:?}, {end} bytes");
            }
            let received = format!("{text}*3");
            assert_eq!(next_pushed(received.as_bytes()).expect("a push"), Some((pushed, text.len())), "{text:?}");
        }
        for other in ["+OK\r\n", "*3\r\n$8\r\nsmessage\r\n:1\r\n", "*2\r\n$7\r\nmessage\r\n$0\r\n\r\n"] {
            assert!(next_pushed(other.as_bytes()).is_err(), "{other:?}");
        }
    }

    #[test]
    fn other_replies_are_errors() {
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
            assert!(next_fields(reply.as_bytes(), &encode_names(NAMES)).is_err(), "{reply:?}");
        }
    }
}
