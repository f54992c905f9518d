//! The header `Host`: requests on all routes must have a valid one (RFC 9112, section 3.2).
//!
//! The service does not use its value. Proxies do, and two proxies that disagree on the host of a request send it to
//! different servers.

use std::net::Ipv6Addr;

use axum::extract::Request;
use axum::http::{Version, header};

use super::error::{ApiError, Code};

/// Rejects an HTTP/1.1 request without `Host`, and any request with several or with an invalid one.
pub(super) fn check(request: &Request) -> Result<(), ApiError> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let detail = match (hosts.next(), hosts.next()) {
        (None, _) if request.version() == Version::HTTP_11 => "An HTTP/1.1 request must have the header Host",
        (Some(_), Some(_)) => "The header Host must be sent once",
        (Some(host), None) if !is_host(host.as_bytes()) => {
            "The header Host must be a host name or an IP address, with a port or without, such as example.com:3000"
        }
        _ => return Ok(()),
    };
    Err(ApiError::new(Code::InvalidRequest, detail))
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
}
