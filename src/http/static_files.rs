//! Web pages that the binary embeds, and the files that they load. `build.rs` compresses the files and names them by
//! their contents. So browsers cache the files, and request only the page again.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use xxhash_rust::xxh3::xxh3_64;

/// For a file whose name changes with its content.
const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// For a page: caches ask each time whether it has changed.
const REVALIDATED: HeaderValue = HeaderValue::from_static("no-cache");

/// A file that a page loads.
pub(super) struct StaticFile {
    pub(super) name: &'static str,
    pub(super) identity: &'static [u8],
    pub(super) gzip: &'static [u8],
    pub(super) brotli: &'static [u8],
}

impl StaticFile {
    /// The response with the file of this name, in the best coding that the client accepts.
    pub(super) fn respond(files: &[Self], name: &str, request: &HeaderMap) -> Response {
        let Some(file) = files.iter().find(|file| file.name == name) else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let (coding, content) = if accepts(request, "br") {
            (Some("br"), file.brotli)
        } else if accepts(request, "gzip") {
            (Some("gzip"), file.gzip)
        } else {
            (None, file.identity)
        };
        let mut response = Response::new(Body::from(Bytes::from_static(content)));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(file.content_type()));
        headers.insert(header::CACHE_CONTROL, IMMUTABLE);
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        if let Some(coding) = coding {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
        response
    }

    fn content_type(&self) -> &'static str {
        match self.name.rsplit('.').next() {
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => "application/octet-stream",
        }
    }
}

/// Whether the client accepts a content coding (RFC 9110, section 12.5.3). A wildcard does not count: a client that
/// sends only that works without a coding.
fn accepts(request: &HeaderMap, coding: &str) -> bool {
    let lines = request.get_all(header::ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|item| {
        let (name, weight) = item.split_once(';').unwrap_or((item, ""));
        let weight = weight.trim().to_ascii_lowercase();
        let is_excluded = weight.strip_prefix("q=").and_then(|weight| weight.parse().ok()) == Some(0.0_f32);
        name.trim().eq_ignore_ascii_case(coding) && !is_excluded
    })
}

/// A page, which is short and is not compressed.
pub(super) struct Page {
    html: Bytes,
    /// The entity tag, without quotes.
    tag: String,
    content_security_policy: HeaderValue,
}

impl Page {
    pub(super) fn new(html: String, content_security_policy: &'static str) -> Self {
        let tag = format!("{:016x}", xxh3_64(html.as_bytes()));
        Self { html: html.into(), tag, content_security_policy: HeaderValue::from_static(content_security_policy) }
    }

    /// The response with the page, or `304` for a client that has it.
    pub(super) fn respond(&self, request: &HeaderMap) -> Response {
        let mut tags = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
        // Matches even if a proxy has made the tag weak or appended a coding to it.
        let mut response = if tags.any(|line| line.contains(&self.tag)) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], Body::from(self.html.clone())).into_response()
        };
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, REVALIDATED);
        if let Ok(tag) = HeaderValue::try_from(format!("\"{}\"", self.tag)) {
            headers.insert(header::ETAG, tag);
        }
        headers.insert(header::CONTENT_SECURITY_POLICY, self.content_security_policy.clone());
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin"));
        response
    }
}

/// A permanent redirect to a reference relative to the path of the request, because a proxy may serve the service under
/// another path.
pub(super) fn redirect(location: &'static str) -> Response {
    (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, location)]).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_accepted_codings_are_used() {
        for (text, accepted) in [
            ("", [false, false]),
            ("gzip, deflate, br, zstd", [true, true]),
            ("GZIP;q=0.5 , br;q=0", [true, false]),
            ("gzip;q=0.000, br;Q=0.1", [false, true]),
            ("*", [false, false]),
            ("identity, x-gzip, brotli", [false, false]),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(text))]);
            assert_eq!(["gzip", "br"].map(|coding| accepts(&headers, coding)), accepted, "{text}");
        }
    }
}
