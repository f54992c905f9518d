//! `Host` (RFC 9112, 3.2): a request without exactly one valid `Host` is rejected on every route and for every caller.

use sessiond::auth::Scope;
use tempfile::TempDir;

use crate::support::credentials::api_key;
use crate::support::raw;
use crate::support::service::Answer;

use super::Target;

const ORIGIN: &str = "https://chat.example.com";
const BODY: &str = "{\"businessId\":\"b\",\"userId\":\"u\"}";

/// The start of requests to routes of every kind, without `Host`, and the status of each if it has `Host` but no
/// credential.
fn requests() -> Vec<(String, u16)> {
    let post =
        format!("POST /api/sessions HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", BODY.len());
    let preflight = "OPTIONS /api/sessions HTTP/1.1\r\naccess-control-request-method: POST\r\n".to_owned();
    vec![
        ("GET /livez HTTP/1.1\r\n".to_owned(), 200),
        ("GET /readyz HTTP/1.1\r\n".to_owned(), 200),
        ("GET /openapi.json HTTP/1.1\r\n".to_owned(), 200),
        ("GET /docs HTTP/1.1\r\n".to_owned(), 200),
        ("GET /console/ HTTP/1.1\r\n".to_owned(), 200),
        ("GET /api/sessions/business/b/active HTTP/1.1\r\n".to_owned(), 401),
        ("DELETE /api/sessions/business/b/user/u HTTP/1.1\r\n".to_owned(), 401),
        ("GET /nowhere HTTP/1.1\r\n".to_owned(), 401),
        ("PUT /livez HTTP/1.1\r\n".to_owned(), 405),
        ("OPTIONS * HTTP/1.1\r\n".to_owned(), 401),
        // `Host` is required even if the target names a host.
        ("GET http://example.com/livez HTTP/1.1\r\n".to_owned(), 200),
        (preflight, 200),
        (post, 401),
    ]
}

/// Sends the request with these header lines, and a second request after it. Returns the response to the first.
async fn send(target: &Target, request: &str, lines: &str) -> Answer {
    let body = if request.starts_with("POST") { BODY } else { "" };
    let next = "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let bytes = format!("{request}origin: {ORIGIN}\r\nx-request-id: mine\r\n{lines}\r\n{body}{next}");
    let responses = raw::answers(&target.send(bytes.as_bytes(), false).await);
    assert_eq!(responses.len(), 2, "{request}{lines}: {responses:?}");
    assert_eq!(responses[1].status, 200, "the connection stays open: {responses:?}");
    responses[0].clone()
}

#[tokio::test]
async fn requests_without_one_valid_host_are_rejected_before_authentication() {
    let folder = TempDir::new().expect("a folder");
    let (credential, entry) = api_key("key", &["b"], &Scope::ALL, None);
    let keys = folder.path().join("keys.toml");
    std::fs::write(&keys, entry).expect("a file");
    let flags = ["--api-keys-file", keys.to_str().expect("a path"), "--cors-origins", ORIGIN];
    let target = Target::start("host", &flags).await;
    let with_key = format!("x-api-key: {credential}\r\n");
    let before = target.probe.digest().await;
    for (request, status) in requests() {
        let bad = [
            "",
            "host: a\r\nhost: a\r\n",
            "host: a\r\nHOST: b\r\n",
            "host: a b\r\n",
            "host: a, b\r\n",
            "host: user@example.com\r\n",
            "host: http://example.com\r\n",
            "host: example.com/livez\r\n",
            "host: example.com:http\r\n",
            "host: [::1\r\n",
            "host: a%2\r\n",
            "host: b\u{fc}cher.example\r\n",
        ];
        for host in bad {
            for key in ["", &with_key] {
                let response = send(&target, &request, &format!("{host}{key}")).await;
                let detail = response.expect_problem(400, "invalid_request").string("detail");
                assert!(detail.contains("Host"), "{request}{host}: {response:?}");
                assert_eq!(response.header("x-request-id"), Some("mine"), "{request}{host}: {response:?}");
            }
        }
        for host in ["host: x\r\n", "Host: example.com:3000\r\n", "host: [::1]:3000\r\n", "host: \r\n"] {
            let response = send(&target, &request, host).await;
            assert_eq!(response.status.as_u16(), status, "{request}{host}: {response:?}");
        }
    }
    assert!(target.probe.digest().await == before, "a rejected request changed Redis");
    // HTTP/1.0 requires no `Host`, but one that is present must be valid.
    for (host, status) in [("", 200), ("host: x\r\n", 200), ("host: a b\r\n", 400), ("host: a\r\nhost: a\r\n", 400)] {
        let received = target.send(format!("GET /livez HTTP/1.0\r\n{host}\r\n").as_bytes(), false).await;
        let statuses: Vec<_> = raw::answers(&received).iter().map(|response| response.status.as_u16()).collect();
        assert_eq!(statuses, [status], "{host:?}");
    }
}
