//! The responses of several resources: one session, JSON that is already text, and pages in parts.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use super::AppState;
use super::auth::Principal;
use super::error::ApiError;
use crate::session::{Include, Session};
use crate::store::MemoryPermit;

/// Maximum bytes of a large body that are passed to the connection in one part.
const BODY_PART_BYTES: usize = 64 << 10;

/// A response with one session and what the caller asked to include.
pub(super) async fn included_response(
    app: &AppState,
    caller: &Principal,
    session: Box<Session>,
    include: Include,
) -> Result<Response, ApiError> {
    if include == Include::default() {
        return Ok(session_response(StatusCode::OK, &session));
    }
    let (view, memory) =
        Box::pin(app.store.with_included(session, include, caller.response_owner(), app.now())).await?;
    let mut body = Vec::with_capacity(view.json_bytes());
    view.write_json(&mut body);
    let mut response = match memory {
        Some(memory) => large_response([body.into()].into(), memory),
        None => json_response(StatusCode::OK, body),
    };
    set_entity_tag(&mut response, &view.session);
    Ok(response)
}

/// A response with one session, and with its version as the entity tag.
pub(super) fn session_response(status: StatusCode, session: &Session) -> Response {
    let mut body = Vec::with_capacity(640 + session.metadata.len());
    session.write_json(&mut body);
    let mut response = json_response(status, body);
    set_entity_tag(&mut response, session);
    response
}

/// Sets the entity tag: the version in quotes.
pub(super) fn set_entity_tag(response: &mut Response, session: &Session) {
    // The 20 digits of the largest version, between two quotes.
    let mut tag = [b'"'; 22];
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(session.version).as_bytes();
    tag[1..=digits.len()].copy_from_slice(digits);
    if let Ok(tag) = HeaderValue::from_bytes(&tag[..digits.len() + 2]) {
        response.headers_mut().insert(header::ETAG, tag);
    }
}

/// A response with a body that is already JSON.
pub(super) fn json_response(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A response with a page of items. Yields to other requests after each item of a large page, and holds `memory` until
/// the connection has taken the last part of the body.
pub(super) async fn page_response<T>(
    items: Vec<T>,
    bytes_of: fn(&T) -> usize,
    write: fn(&T, &mut Vec<u8>),
    memory: Option<MemoryPermit>,
) -> Response {
    let Some(memory) = memory else {
        return json_response(StatusCode::OK, json_array(&items, bytes_of, write));
    };
    // One part for each item: a buffer of the whole page would be copied and mapped in one long step.
    let mut parts = VecDeque::with_capacity(items.len() + 1);
    for item in items {
        let mut part = Vec::with_capacity(bytes_of(&item));
        part.push(if parts.is_empty() { b'[' } else { b',' });
        write(&item, &mut part);
        parts.push_back(Bytes::from(part));
        drop(item);
        tokio::task::yield_now().await;
    }
    parts.push_back(Bytes::from_static(if parts.is_empty() { b"[]" } else { b"]" }));
    large_response(parts, memory)
}

/// A response whose JSON body has these parts. Holds `memory` until the connection has taken the last one.
pub(super) fn large_response(parts: VecDeque<Bytes>, memory: MemoryPermit) -> Response {
    let unsent_bytes = parts.iter().map(Bytes::len).sum();
    let mut response = json_response(StatusCode::OK, Vec::new());
    *response.body_mut() = Body::new(LargeBody { parts, unsent_bytes, has_yielded: false, _memory: memory });
    response
}

/// A body that is sent in parts, so that the connection buffers only a small part of it.
struct LargeBody {
    parts: VecDeque<Bytes>,
    unsent_bytes: usize,
    /// Whether this body has yielded to other requests since the last part.
    has_yielded: bool,
    _memory: MemoryPermit,
}

impl HttpBody for LargeBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.has_yielded = !self.has_yielded;
        if self.has_yielded && self.unsent_bytes > 0 {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Some(part) = take_part(&mut self.parts) else {
            return Poll::Ready(None);
        };
        self.unsent_bytes -= part.len();
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.unsent_bytes == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.unsent_bytes).unwrap_or(u64::MAX))
    }
}

/// A copy of the next part of a body: the connection may send it after the body and its memory permit are dropped, and
/// a slice would keep the whole body in memory.
fn take_part(parts: &mut VecDeque<Bytes>) -> Option<Bytes> {
    let first = parts.front_mut()?;
    let part = Bytes::copy_from_slice(&first.split_to(first.len().min(BODY_PART_BYTES)));
    if first.is_empty() {
        parts.pop_front();
    }
    Some(part)
}

/// The items as a JSON array. `bytes_of` says about how many bytes each has.
pub(super) fn json_array<T>(items: &[T], bytes_of: fn(&T) -> usize, write: fn(&T, &mut Vec<u8>)) -> Vec<u8> {
    let mut body = Vec::with_capacity(2 + items.iter().map(|item| bytes_of(item) + 1).sum::<usize>());
    body.push(b'[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        write(item, &mut body);
    }
    body.push(b']');
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_large_body_keeps_no_other_in_memory() {
        let mut parts = VecDeque::from([Bytes::from(vec![0; BODY_PART_BYTES + 1])]);
        for length in [BODY_PART_BYTES, 1] {
            let part = take_part(&mut parts).expect("a part");
            assert!(part.len() == length && part.is_unique());
        }
        assert_eq!(take_part(&mut parts), None);
    }
}
