//! Adds the body of `docs/api.md`, "Errors", to the error responses that hyper makes itself, for requests that it
//! cannot parse. hyper has no hook for that. It writes a head without a body, which is recognised and replaced before
//! it is sent.

use axum::http::StatusCode;

use super::strict_head::StrictHead;
use crate::{http, metrics};

/// A header of the responses that hyper writes without a body.
const NO_BODY: &[u8] = b"content-length: 0\r\n";
/// A header of every response of the router, and of no response that hyper makes itself.
const ROUTER_HEADER: &[u8] = b"x-request-id:";

/// Makes a complete response, after which the connection is closed. `head` is its status line and its headers, except
/// the headers of the body.
fn response(status: StatusCode, head: &[u8]) -> Vec<u8> {
    metrics::request_rejected(status.as_u16());
    let (headers, body) = http::error_response(status);
    let mut response = head.to_vec();
    for (name, value) in &headers {
        response.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    response.extend(format!("content-length: {}\r\n\r\n", body.len()).into_bytes());
    response.extend(body);
    response
}

/// The response to a connection that exceeds a limit.
pub(in crate::server) fn overloaded_response() -> Vec<u8> {
    response(StatusCode::SERVICE_UNAVAILABLE, b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n")
}

/// Returns the response to send instead of `written`, if that is an error response that hyper made itself.
fn replacement(written: &[u8], head_received: &StrictHead) -> Option<Vec<u8>> {
    let status = written.strip_prefix(b"HTTP/1.1 4").and(written.get(9..12))?;
    let head = written.strip_suffix(b"\r\n")?;
    let at = position(head, NO_BODY)?;
    if position(head, b"\r\n\r\n").is_some() || position(head, ROUTER_HEADER).is_some() {
        return None;
    }
    let (status_line, headers) = (position(head, b"\r\n")?, &head[at + NO_BODY.len()..]);
    match StatusCode::from_bytes(status).ok()? {
        // hyper reports only that the head is too large. If its first line is incomplete, the URI is too long.
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE if head_received.is_first_line() => {
            let before = &head[status_line..at];
            Some(response(StatusCode::URI_TOO_LONG, &[b"HTTP/1.1 414 URI Too Long", before, headers].concat()))
        }
        status => Some(response(status, &[&head[..at], headers].concat())),
    }
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// The response that replaces an error response of hyper, if hyper has written one.
#[derive(Default)]
pub(super) struct ErrorBody {
    response: Option<Vec<u8>>,
    sent_bytes: usize,
}

impl ErrorBody {
    /// Makes the replacement, if `written` is an error response that hyper made itself.
    pub(super) fn recognise(&mut self, written: &[u8], head: &StrictHead) {
        if self.response.is_none() {
            self.response = replacement(written, head);
        }
    }

    pub(super) fn is_used(&self) -> bool {
        self.response.is_some()
    }

    pub(super) fn unsent(&self) -> Option<&[u8]> {
        self.response.as_ref()?.get(self.sent_bytes..).filter(|bytes| !bytes.is_empty())
    }

    pub(super) fn advance(&mut self, count: usize) {
        self.sent_bytes += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head_of(bytes: &[u8]) -> StrictHead {
        let mut head = StrictHead::default();
        head.receive(bytes);
        head
    }

    #[test]
    fn only_error_responses_of_hyper_are_replaced() {
        let own = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\
                    date: x\r\n\r\n";
        let response = replacement(own, &head_of(b"GET / HTTP/1.1\r\na")).expect("a response");
        let response = String::from_utf8(response).expect("text");
        let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ndate: x\r\n"));
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
        assert!(head.contains("x-request-id: ") && head.contains("no-store") && head.contains("nosniff"), "{head}");
        let uri_too_long = replacement(own, &head_of(b"GET /a")).expect("a response");
        assert!(uri_too_long.starts_with(b"HTTP/1.1 414 URI Too Long\r\nconnection: close\r\ndate: x\r\n"));
        let others: [&[u8]; 6] = [
            b"",
            b"HTTP/1.1 4",
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\nx-request-id: a\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n\r\n",
            b"{\"text\":\"HTTP/1.1 431 \\r\\ncontent-length: 0\\r\\n\"}",
        ];
        for other in others {
            assert_eq!(replacement(other, &StrictHead::default()), None, "{}", String::from_utf8_lossy(other));
        }
    }
}
