//! The id of a request, in the header `X-Request-Id` of its response and in the log.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use uuid::Uuid;

pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Maximum number of characters in the request id of a client.
pub(super) const LENGTH_MAX: usize = 128;

/// The client's `X-Request-Id` if it has one of 1 to 128 visible ASCII characters, or a random one.
pub(super) fn of(request: &Request) -> HeaderValue {
    let mut given = request.headers().get_all(X_REQUEST_ID).iter();
    match (given.next(), given.next()) {
        (Some(id), None) if is_valid(id.as_bytes()) => id.clone(),
        _ => random(),
    }
}

fn is_valid(id: &[u8]) -> bool {
    (1..=LENGTH_MAX).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// A random UUID (version 4).
pub(super) fn random() -> HeaderValue {
    let mut text = Uuid::encode_buffer();
    let text = Uuid::new_v4().as_hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("unidentified"))
}
