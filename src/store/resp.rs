//! As much of Redis's protocol (RESP2, <https://redis.io/docs/latest/develop/reference/protocol-spec/>) as reads of sessions need:
//! commands, and replies that are arrays of texts.

use std::io;

/// The longest text that Redis stores has 512 MiB.
const NUMBER_DIGITS_MAX: usize = 9;

/// A reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a, const N: usize> {
    /// An array of texts; `None` for nil.
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
pub(super) fn write_header(kind: u8, number: usize, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The next reply of what was received, and its length, if all of it is there: an array of `N` texts, or an error.
///
/// # Errors
/// If it is anything else: then nobody knows where the next one starts.
pub(super) fn next_frame<const N: usize>(received: &[u8]) -> io::Result<Option<(Frame<'_, N>, usize)>> {
    let mut reader = Reader { bytes: received, place: 0 };
    let Some(line) = reader.line() else {
        return Ok(None);
    };
    if line.first() == Some(&b'-') {
        return Ok(Some((Frame::Other, reader.place)));
    }
    if number(b'*', line)? != Some(N) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut places = [Text::Nil; N];
    for place in &mut places {
        match reader.text()? {
            Some(text) => *place = text,
            None => return Ok(None),
        }
    }
    let end = reader.place;
    // Checked once for all of them.
    let Ok(reply) = std::str::from_utf8(&received[..end]) else {
        return Ok(Some((Frame::Other, end)));
    };
    let mut texts = [None; N];
    for (text, place) in texts.iter_mut().zip(places) {
        if let Text::At { start, end: text_end } = place {
            let Some(whole) = reply.get(start..text_end) else {
                return Ok(Some((Frame::Other, end)));
            };
            *text = Some(whole);
        }
    }
    Ok(Some((Frame::Texts(texts), end)))
}

/// A text of a reply.
#[derive(Clone, Copy)]
enum Text {
    Nil,
    At { start: usize, end: usize },
}

/// Reads what was received, and takes nothing away.
struct Reader<'a> {
    bytes: &'a [u8],
    place: usize,
}

impl<'a> Reader<'a> {
    /// A line without its end, or `None` if that is not there yet.
    fn line(&mut self) -> Option<&'a [u8]> {
        let rest = &self.bytes[self.place..];
        let length = rest.iter().position(|&byte| byte == b'\r').filter(|length| length + 1 < rest.len())?;
        self.place += length + 2;
        Some(&rest[..length])
    }

    /// A text; `None` if not all of it is there yet.
    fn text(&mut self) -> io::Result<Option<Text>> {
        let Some(line) = self.line() else {
            return Ok(None);
        };
        let Some(length) = number(b'$', line)? else {
            return Ok(Some(Text::Nil));
        };
        let (start, end) = (self.place, self.place + length);
        self.place = end + 2;
        Ok((self.place <= self.bytes.len()).then_some(Text::At { start, end }))
    }
}

/// The number of a line of this kind; `None` for -1, which is nil.
fn number(kind: u8, line: &[u8]) -> io::Result<Option<usize>> {
    match line {
        [first, b'-', b'1'] if *first == kind => Ok(None),
        [first, digits @ ..] if *first == kind && (1..=NUMBER_DIGITS_MAX).contains(&digits.len()) => digits
            .iter()
            .try_fold(0, |number, digit| match digit {
                b'0'..=b'9' => Ok(number * 10 + usize::from(digit - b'0')),
                _ => Err(io::ErrorKind::InvalidData.into()),
            })
            .map(Some),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const N: usize>(received: &[u8]) -> Option<(Frame<'_, N>, usize)> {
        next_frame(received).expect("no error")
    }

    #[test]
    fn a_command_is_an_array_of_its_words() {
        let mut out = Vec::new();
        write_command([&b"HMGET"[..], "sd:é".as_bytes(), b""].into_iter(), &mut out);
        assert_eq!(out, "*3\r\n$5\r\nHMGET\r\n$5\r\nsd:é\r\n$0\r\n\r\n".as_bytes());
    }

    #[test]
    fn a_reply_is_taken_when_all_of_it_is_there_and_what_follows_is_left() {
        let reply = b"*3\r\n$3\r\na\r\n\r\n$-1\r\n$0\r\n\r\n*3\r\n";
        let whole = reply.len() - 4;
        for end in 0..whole {
            assert_eq!(read::<3>(&reply[..end]), None, "{end} bytes");
        }
        assert_eq!(read(reply), Some((Frame::Texts([Some("a\r\n"), None, Some("")]), whole)));
        assert_eq!(read(b"*1\r\n$1\r\n\xff\r\n"), Some((Frame::<1>::Other, 11)));
        // Text as a whole, but not where one of them ends.
        assert_eq!(read(b"*1\r\n$1\r\n\xc3\xa9\r"), Some((Frame::<1>::Other, 11)));
        assert_eq!(read(b"-MOVED 1 a:1\r\n*3"), Some((Frame::<3>::Other, 14)));
    }

    #[test]
    fn what_is_no_such_reply_is_an_error() {
        for reply in [
            "+OK\r\n",
            ":1\r\n",
            "*2\r\n$1\r\na\r\n",
            "*-1\r\n",
            "*3\r\n:1\r\n",
            "*3\r\n$x\r\n",
            "*3\r\n$9999999999\r\n",
        ] {
            assert!(next_frame::<3>(reply.as_bytes()).is_err(), "{reply:?}");
        }
    }
}
