//! HTTP requests sent byte for byte as a test defines them. HTTP client libraries would normalize them.

use std::fmt;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::process::TEST_TIMEOUT;
use super::service::Answer;

/// A request that is sent without normalization.
#[derive(Clone, Debug)]
pub struct RawRequest {
    pub method: String,
    /// Path and query, percent-encoded or not.
    pub target: Vec<u8>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    pub framing: Framing,
}

/// How a request declares the length of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    ContentLength,
    Chunked,
    /// A `Content-Length` of one byte more than the body has. The client then shuts down its side of the connection.
    CutOff,
}

impl RawRequest {
    pub fn new(method: &str, target: impl Into<Vec<u8>>) -> Self {
        let (method, target) = (method.to_owned(), target.into());
        Self { method, target, headers: Vec::new(), body: Vec::new(), framing: Framing::ContentLength }
    }

    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Sets a body without a `Content-Type`.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn json(self, body: impl Into<Vec<u8>>) -> Self {
        self.header("content-type", "application/json").body(body)
    }

    pub fn framing(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.method.as_bytes(), b" ", &self.target, b" HTTP/1.1\r\nhost: test\r\n"].concat();
        let mut header = |name: &str, value: &[u8]| bytes.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        for (name, value) in &self.headers {
            header(name, value);
        }
        let length = self.body.len();
        match self.framing {
            Framing::ContentLength if length > 0 => header("content-length", length.to_string().as_bytes()),
            Framing::ContentLength => {}
            Framing::CutOff => header("content-length", (length + 1).to_string().as_bytes()),
            Framing::Chunked => header("transfer-encoding", b"chunked"),
        }
        bytes.extend_from_slice(b"\r\n");
        if self.framing == Framing::Chunked {
            for chunk in self.body.chunks(10_000) {
                bytes.extend([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
        } else {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }

    /// Sends the request on a new connection to the service at `base` (`http://address`).
    pub async fn send(&self, base: &str) -> Answer {
        let (request, base) = (self.clone(), base.to_owned());
        tokio::task::spawn_blocking(move || request.exchange(&base)).await.expect("a response")
    }

    fn exchange(&self, base: &str) -> Answer {
        let mut stream = TcpStream::connect(base.strip_prefix("http://").expect("a base URL")).expect("a connection");
        stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("a timeout");
        let (bytes, cut_off) = (self.bytes(), self.framing == Framing::CutOff);
        let mut writing = stream.try_clone().expect("a second handle");
        std::thread::spawn(move || {
            // The service may respond and close the connection before it has read the whole request.
            let _ = writing.write_all(&bytes);
            if cut_off {
                let _ = writing.shutdown(Shutdown::Write);
            }
        });
        let mut received = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            if let Some((response, _)) = parse(&received, self.method == "HEAD") {
                // Also ends the writing thread.
                let _ = stream.shutdown(Shutdown::Both);
                return response;
            }
            let read =
                stream.read(&mut buffer).unwrap_or_else(|error| panic!("{error} instead of a response to {self}"));
            assert!(read > 0, "the response to {self} ended early: {:?}", String::from_utf8_lossy(&received));
            received.extend_from_slice(&buffer[..read]);
        }
    }
}

impl fmt::Display for RawRequest {
    /// The first 600 bytes of the request.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes();
        write!(formatter, "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(600)]))
    }
}

/// All responses of a connection until its end.
pub fn answers(mut received: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while !received.is_empty() {
        let whole = parse(received, false);
        let (response, length) = whole.unwrap_or_else(|| panic!("cut off: {:?}", String::from_utf8_lossy(received)));
        answers.push(response);
        received = &received[length..];
    }
    answers
}

/// A complete response and its length in bytes, or `None` if the response is incomplete. The service sends a
/// `Content-Length` with every body.
pub fn parse(received: &[u8], head_only: bool) -> Option<(Answer, usize)> {
    let end = received.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&received[..end]).expect("a head of visible characters");
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
    let status = StatusCode::from_bytes(status.as_bytes()).expect("a status");
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").expect("a header");
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        headers.append(name, HeaderValue::from_str(value).expect("a header value"));
    }
    let length = headers.get("content-length").and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0);
    let body = &received[end + 4..];
    let body = if head_only { &[] } else { body.get(..length)? };
    let response = Answer { status, headers, text: String::from_utf8(body.to_vec()).expect("a body of UTF-8") };
    Some((response, end + 4 + body.len()))
}

/// `text` as one path segment or query value. Percent-encodes all bytes except letters, digits, `-`, `_` and `~`. Dots
/// are encoded because `.` and `..` have a meaning in a path.
pub fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.extend(format!("%{byte:02X}").chars());
        }
    }
    encoded
}
