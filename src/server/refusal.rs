//! Requests that hyper refuses by itself, because it cannot read them. It has no place for the contract's body: it writes a
//! head with none, which is recognised and completed here, on its way to the client.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::http::StatusCode;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};

use super::head::Head;
use super::patience::Serving;
use crate::{http, metrics};

/// A head that hyper writes with no body.
const NO_BODY: &[u8] = b"content-length: 0\r\n";
/// Every answer of the router has it; none of hyper's has.
const OF_THE_ROUTER: &[u8] = b"x-request-id:";
/// How much of what a refused client still sends is read: closing at once would reset the connection, and the client may
/// lose the answer.
const DISCARD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A whole answer for a connection that is closed after it. `head` is its status line and headers, without those of the body.
fn answer(status: StatusCode, head: &[u8]) -> Vec<u8> {
    metrics::request_refused(status.as_u16());
    let (headers, body) = http::refusal(status);
    let mut answer = head.to_vec();
    for (name, value) in &headers {
        answer.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    answer.extend(format!("content-length: {}\r\n\r\n", body.len()).into_bytes());
    answer.extend(body);
    answer
}

/// The answer to a connection that there is no place for.
pub(super) fn overloaded() -> Vec<u8> {
    answer(StatusCode::SERVICE_UNAVAILABLE, b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n")
}

/// What hyper's own answer becomes, if `written` is one.
fn completed(written: &[u8], head_received: &Head) -> Option<Vec<u8>> {
    let status = written.strip_prefix(b"HTTP/1.1 4").and(written.get(9..12))?;
    let head = written.strip_suffix(b"\r\n")?;
    let place = position(head, NO_BODY)?;
    if position(head, b"\r\n\r\n").is_some() || position(head, OF_THE_ROUTER).is_some() {
        return None;
    }
    let (status_line, headers) = (position(head, b"\r\n")?, &head[place + NO_BODY.len()..]);
    match StatusCode::from_bytes(status).ok()? {
        // All that hyper knows is that the head got too large.
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE if head_received.is_first_line() => {
            let before = &head[status_line..place];
            Some(answer(StatusCode::URI_TOO_LONG, &[b"HTTP/1.1 414 URI Too Long", before, headers].concat()))
        }
        status => Some(answer(status, &[&head[..place], headers].concat())),
    }
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// The most of a head that is looked at in one go.
const HEAD_PART_BYTES: usize = 4096;

/// A connection on which heads are strict, and every refusal has a body.
pub(super) struct CompletedIo<T> {
    io: T,
    serving: Serving,
    turns_seen: u64,
    head: Head,
    /// The answer that is written in the place of hyper's, and how much of it is.
    refusal: Option<(Vec<u8>, usize)>,
    discarded: usize,
}

impl<T> CompletedIo<T> {
    pub(super) fn new(io: T, serving: Serving) -> Self {
        Self { io, serving, turns_seen: 0, head: Head::default(), refusal: None, discarded: 0 }
    }
}

impl<T: Write + Unpin> CompletedIo<T> {
    /// Writes our answer if `written` is hyper's own, and says that all of that is written.
    fn poll_refuse(&mut self, context: &mut Context<'_>, written: &[u8]) -> Poll<Option<io::Result<usize>>> {
        // While a request is being answered it is the router that answers.
        if self.refusal.is_none() && !self.serving.is_serving() {
            self.refusal = completed(written, &self.head).map(|answer| (answer, 0));
        }
        let Some((answer, sent)) = &mut self.refusal else {
            return Poll::Ready(None);
        };
        while *sent < answer.len() {
            match ready!(Pin::new(&mut self.io).poll_write(context, &answer[*sent..])) {
                Ok(0) => return Poll::Ready(Some(Err(io::ErrorKind::WriteZero.into()))),
                Ok(count) => *sent += count,
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        Poll::Ready(Some(Ok(written.len())))
    }
}

impl<T: Read + Unpin> Read for CompletedIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let turns = this.serving.turns();
        if turns != this.turns_seen {
            this.turns_seen = turns;
            this.head = Head::default();
        }
        // What comes while a request is answered is its body, or sent without waiting for the answer, which no proxy does.
        if this.serving.is_serving() || this.head.is_over() {
            return Pin::new(&mut this.io).poll_read(context, buffer);
        }
        let mut bytes = [MaybeUninit::uninit(); HEAD_PART_BYTES];
        let most = buffer.remaining().min(HEAD_PART_BYTES);
        let mut part = ReadBuf::uninit(&mut bytes[..most]);
        ready!(Pin::new(&mut this.io).poll_read(context, part.unfilled()))?;
        buffer.put_slice(&this.head.receive(part.filled()));
        Poll::Ready(Ok(()))
    }
}

impl<T: Read + Write + Unpin> Write for CompletedIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match ready!(self.poll_refuse(context, bytes)) {
            Some(refused) => Poll::Ready(refused),
            None => Pin::new(&mut self.io).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_shutdown(context))?;
        while self.refusal.is_some() && self.discarded < DISCARD_BYTES_MAX {
            let mut bytes = [MaybeUninit::uninit(); 8192];
            let mut buffer = ReadBuf::uninit(&mut bytes);
            // Ends with the client, or with our patience.
            match ready!(Pin::new(&mut self.io).poll_read(context, buffer.unfilled())) {
                Ok(()) if !buffer.filled().is_empty() => self.discarded += buffer.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = buffers.first().map(|buffer| &**buffer).unwrap_or_default();
        match ready!(self.poll_refuse(context, first)) {
            Some(refused) => Poll::Ready(refused),
            None => Pin::new(&mut self.io).poll_write_vectored(context, buffers),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head_of(bytes: &[u8]) -> Head {
        let mut head = Head::default();
        head.receive(bytes);
        head
    }

    #[test]
    fn only_an_answer_of_hyper_s_own_is_completed() {
        let own = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let completed_text =
            String::from_utf8(completed(own, &head_of(b"GET / HTTP/1.1\r\na")).expect("an answer")).expect("text");
        let (head, body) = completed_text.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ndate: x\r\n"));
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
        assert!(head.contains("x-request-id: ") && head.contains("no-store") && head.contains("nosniff"), "{head}");
        let of_uri = completed(own, &head_of(b"GET /a")).expect("an answer");
        assert!(of_uri.starts_with(b"HTTP/1.1 414 URI Too Long\r\nconnection: close\r\ndate: x\r\n"));
        let others: [&[u8]; 6] = [
            b"",
            b"HTTP/1.1 4",
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\nx-request-id: a\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n\r\n",
            b"{\"text\":\"HTTP/1.1 431 \\r\\ncontent-length: 0\\r\\n\"}",
        ];
        for other in others {
            assert_eq!(completed(other, &Head::default()), None, "{}", String::from_utf8_lossy(other));
        }
    }
}
