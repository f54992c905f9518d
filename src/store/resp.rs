//! As much of Redis's protocol (RESP2, <https://redis.io/docs/latest/develop/reference/protocol-spec/>) as reads of sessions need:
//! commands, and replies that are arrays of texts.

use std::io;
use std::ops::Range;

use fred::bytes::BytesMut;
use fred::bytes_utils::Str;

/// The longest text that Redis stores has 512 MiB.
const NUMBER_DIGITS_MAX: usize = 9;

/// A reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// An array of texts; `None` for nil.
    Texts(Vec<Option<Str>>),
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

/// Takes the next reply from what was received, if all of it is there: an array of `length` texts, or an error.
///
/// # Errors
/// If it is anything else: then nobody knows where the next one starts.
pub(super) fn next_frame(received: &mut BytesMut, length: usize) -> io::Result<Option<Frame>> {
    let mut reader = Reader { bytes: received, place: 0 };
    let Some(line) = reader.line() else {
        return Ok(None);
    };
    if line.first() == Some(&b'-') {
        let end = reader.place;
        drop(received.split_to(end));
        return Ok(Some(Frame::Other));
    }
    if number(b'*', line)? != Some(length) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut texts = Vec::with_capacity(length);
    for _ in 0..length {
        match reader.text()? {
            Some(text) => texts.push(text),
            None => return Ok(None),
        }
    }
    let end = reader.place;
    // Checked once for all of them.
    let Ok(frame) = Str::from_inner(received.split_to(end).freeze()) else {
        return Ok(Some(Frame::Other));
    };
    let text = |text| match text {
        Text::Nil => None,
        Text::At(range) => Some(frame.slice(range)),
    };
    Ok(Some(Frame::Texts(texts.into_iter().map(text).collect())))
}

/// A text of a reply.
enum Text {
    Nil,
    At(Range<usize>),
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
        let text = self.place..self.place + length;
        self.place = text.end + 2;
        Ok((self.place <= self.bytes.len()).then_some(Text::At(text)))
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

    fn read(received: &[u8], length: usize) -> io::Result<(Option<Frame>, usize)> {
        let mut received = BytesMut::from(received);
        let frame = next_frame(&mut received, length)?;
        Ok((frame, received.len()))
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
            assert_eq!(read(&reply[..end], 3).expect("no error"), (None, end), "{end} bytes");
        }
        let texts = vec![Some(Str::from("a\r\n")), None, Some(Str::new())];
        assert_eq!(read(reply, 3).expect("no error"), (Some(Frame::Texts(texts)), 4));
        assert_eq!(read(b"*1\r\n$1\r\n\xff\r\n", 1).expect("no error"), (Some(Frame::Other), 0));
        assert_eq!(read(b"-MOVED 1 a:1\r\n*3", 3).expect("no error"), (Some(Frame::Other), 2));
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
            assert!(read(reply.as_bytes(), 3).is_err(), "{reply:?}");
        }
    }
}
