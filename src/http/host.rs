//! The host of a request. Requests on all routes must have a valid one: in the header `Host` (RFC 9112, section 3.2),
//! or with HTTP/2 in the pseudo-header `:authority` (RFC 9113, section 8.3.1), which hyper makes a part of the URI.
//!
//! The service does not use its value. Proxies do, and two proxies that disagree on the host of a request send it to
//! different servers.

use std::net::Ipv6Addr;

use axum::extract::Request;
use axum::http::{HeaderValue, Uri, Version, header};

use super::error::{ApiError, Code};

/// Rejects a request with several hosts or an invalid one, an HTTP/1.1 request without `Host`, and an HTTP/2 request
/// that has neither `Host` nor `:authority`, or in which they differ.
pub(super) fn check(request: &Request) -> Result<(), ApiError> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, has_several) = (hosts.next(), hosts.next().is_some());
    let is_http2 = request.version() == Version::HTTP_2;
    // In HTTP/1.1 the URI may have a host as well. RFC 9112, section 3.2.2, gives it precedence over `Host`.
    let authority = request.uri().authority().filter(|_| is_http2);
    let detail = match host {
        None if request.version() == Version::HTTP_11 => "An HTTP/1.1 request must have the header Host",
        None if is_http2 && authority.is_none() => {
            "An HTTP/2 request must have the pseudo-header :authority or the header Host"
        }
        _ if has_several => "The header Host must be sent once",
        Some(host) if !is_host(host.as_bytes()) => {
            "The header Host must be a host name or an IP address, with a port or without, such as example.com:3000"
        }
        _ if authority.is_some_and(|authority| !is_host(authority.as_str().as_bytes())) => {
            "The pseudo-header :authority must be a host name or an IP address, with a port or without"
        }
        Some(host) if authority.is_some() && !is_same_host(request.uri(), host) => {
            "The pseudo-header :authority and the header Host must be the same"
        }
        _ => return Ok(()),
    };
    Err(ApiError::new(Code::InvalidRequest, detail))
}

/// Whether the header `Host` names the host of the URI. Case and the default port make no difference.
fn is_same_host(uri: &Uri, host: &HeaderValue) -> bool {
    let default_port = if uri.scheme_str() == Some("http") { ":80" } else { ":443" };
    let without_port = |host: &str| {
        let stripped = host.strip_suffix(default_port).or_else(|| host.strip_suffix(':'));
        stripped.unwrap_or(host).to_ascii_lowercase()
    };
    let authority = uri.authority().map(|authority| without_port(authority.as_str()));
    authority == host.to_str().ok().map(without_port)
}

/// Whether this is `uri-host [ ":" port ]`. An empty value is valid: it is the `Host` of a URI without a host.
fn is_host(value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else {
        return false;
    };
    let (is_host_valid, port) = match text.strip_prefix('[').map(|literal| literal.split_once(']')) {
        Some(None) => return false,
        Some(Some((address, port))) => (address.parse::<Ipv6Addr>().is_ok(), port),
        None => {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (is_registered_name(name.as_bytes()), port)
        }
    };
    let is_port =
        |port: &str| port.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    is_host_valid && (port.is_empty() || is_port(port))
}

/// Whether this is a `reg-name` (RFC 3986, section 3.2.2). IPv4 addresses match it too.
fn is_registered_name(name: &[u8]) -> bool {
    let mut rest = name;
    while let Some((&byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => after,
            _ if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte) => after,
            _ => return false,
        };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_host_names_and_addresses_with_optional_ports() {
        let good = [
            "",
            "x",
            "example.com",
            "EXAMPLE.com:80",
            "example.com:",
            "127.0.0.1:3000",
            "[::1]",
            "[2001:db8::1]:3000",
            "[::ffff:127.0.0.1]:",
            "a_b-c.d~e",
            "a%20b",
            "a,b;c=d",
            "xn--bcher-kva.example",
        ];
        for host in good {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        let bad = [
            " ",
            "a b",
            "a, b",
            "user@example.com",
            "user:secret@example.com",
            "http://example.com",
            "example.com/",
            "example.com?a",
            "example.com#a",
            "example.com:http",
            "example.com:80:80",
            "example.com:-1",
            "::1",
            "[::1",
            "[::1]80",
            "[127.0.0.1]",
            "[]",
            "a[::1]",
            "a%2",
            "a%zz",
            "a\\b",
            "a\"b",
            "a<b>",
            "bücher.example",
        ];
        for host in bad {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
        assert!(!is_host(b"\xff"));
    }

    #[test]
    fn http2_requests_name_one_host() {
        let cases = [
            ("https://example.com/a", "", true),
            ("https://example.com/a", "example.com", true),
            ("https://EXAMPLE.com/a", "example.COM:443", true),
            ("https://example.com:443/a", "example.com:", true),
            ("http://example.com:80/a", "example.com", true),
            ("https://[::1]:3000/a", "[::1]:3000", true),
            ("/a", "example.com", true),
            ("/a", "", false),
            ("https://user@example.com/a", "", false),
            ("https://example.com/a", "example.org", false),
            ("https://example.com/a", "example.com:80", false),
            ("https://example.com:3000/a", "example.com", false),
            ("https://example.com/a", "example.com,example.com", false),
            ("https://[::1]/a", "[::1]:3000", false),
        ];
        for (uri, host, is_valid) in cases {
            let mut request = axum::http::Request::builder().version(Version::HTTP_2).uri(uri);
            if !host.is_empty() {
                request = request.header(header::HOST, host);
            }
            let request = request.body(axum::body::Body::empty()).expect("a request");
            assert_eq!(check(&request).is_ok(), is_valid, "{uri} {host}");
        }
    }
}
