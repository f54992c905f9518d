//! CORS: which origins may call the service from a browser, and what they may read.

use reqwest::Method;

use crate::support::raw::RawRequest;
use crate::support::service::{Answer, Service};

const ORIGIN: &str = "https://chat.example.com";
const SECOND: &str = "http://localhost:5173";
const FOREIGN: [&str; 6] = [
    "https://evil.example.com",
    "http://chat.example.com",
    "https://chat.example.com.evil.com",
    "https://chat.example.com:8443",
    "https://CHAT.example.com",
    "null",
];
const SESSIONS: &str = "/api/sessions";

/// The request headers that pages may send, sorted.
const ALLOWED: [&str; 12] = [
    "authorization",
    "baggage",
    "content-type",
    "idempotency-key",
    "if-match",
    "if-none-match",
    "last-event-id",
    "sentry-trace",
    "traceparent",
    "tracestate",
    "x-api-key",
    "x-request-id",
];

async fn start() -> Service {
    Service::start(&["--cors-origins", &format!("{ORIGIN}, {SECOND}")]).await
}

/// The members of a list header, in lower case and sorted.
fn words(response: &Answer, name: &str) -> Vec<String> {
    let text = response.header(name).unwrap_or_default().to_lowercase();
    let mut words: Vec<_> =
        text.split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect();
    words.sort();
    words
}

/// Sends the CORS preflight of a page of this origin that will send JSON with a credential.
async fn preflight(service: &Service, origin: &str, method: &str, path: &str) -> Answer {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", method),
        ("access-control-request-headers", "authorization,content-type,if-match"),
    ];
    service.send(Method::OPTIONS, path, &headers, Vec::new()).await
}

#[tokio::test]
async fn configured_origins_may_call_and_read() {
    let service = start().await;
    for origin in [ORIGIN, SECOND] {
        let body = br#"{"businessId":"b","userId":"u"}"#.to_vec();
        let headers = [("origin", origin), ("content-type", "application/json")];
        let response = service.send(Method::POST, SESSIONS, &headers, body).await;
        assert!(response.status.is_success(), "{response:?}");
        assert_eq!(response.header("access-control-allow-origin"), Some(origin), "{response:?}");
        // Pages may also read errors: of the router, of the handlers, and of the layers before them.
        let rejected = [
            (service.send(Method::GET, "/nowhere", &headers, Vec::new()).await, 404),
            (service.send(Method::POST, SESSIONS, &headers, b"{".to_vec()).await, 400),
            (service.send(Method::POST, SESSIONS, &headers, vec![b' '; 300_000]).await, 413),
            (service.send(Method::GET, &format!("/{}", "a".repeat(9000)), &headers, Vec::new()).await, 414),
        ];
        for (response, status) in rejected {
            let response = response.expect(status);
            assert_eq!(response.header("access-control-allow-origin"), Some(origin), "{response:?}");
            assert!(words(&response, "vary").contains(&"origin".to_owned()), "{response:?}");
        }
        let exposed = [
            "etag",
            "link",
            "location",
            "ratelimit",
            "ratelimit-policy",
            "retry-after",
            "www-authenticate",
            "x-request-id",
            "x-total-count",
        ];
        assert_eq!(words(&response, "access-control-expose-headers"), exposed);
        // The service uses no cookies.
        assert_eq!(response.header("access-control-allow-credentials"), None);
    }
}

#[tokio::test]
async fn a_cors_preflight_needs_no_credential_and_changes_nothing() {
    let service = start().await;
    for (method, path) in [("POST", SESSIONS), ("PATCH", "/api/sessions/f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e")] {
        let response = preflight(&service, ORIGIN, method, path).await.expect(200);
        assert_eq!(response.header("access-control-allow-origin"), Some(ORIGIN), "{response:?}");
        assert_eq!(words(&response, "access-control-allow-methods"), ["delete", "get", "head", "patch", "post"]);
        assert_eq!(words(&response, "access-control-allow-headers"), ALLOWED);
        assert!(response.header("x-request-id").is_some() && response.text.is_empty(), "{response:?}");
    }
    assert!(service.probe.keys().await.is_empty());
    // Without a requested method, OPTIONS is an ordinary request to a path that does not support it.
    let plain = RawRequest::new("OPTIONS", SESSIONS).header("origin", ORIGIN).send(&service.base).await;
    plain.expect_problem(405, "method_not_allowed");
    assert_eq!(plain.header("allow"), Some("POST"));
}

#[tokio::test]
async fn configured_request_headers_are_allowed() {
    let flags = ["--cors-origins", ORIGIN, "--cors-headers", "X-Tenant, newrelic,x-tenant, If-Match"];
    let service = Service::start(&flags).await;
    let response = preflight(&service, ORIGIN, "POST", SESSIONS).await.expect(200);
    let mut allowed = [&ALLOWED[..], &["newrelic", "x-tenant"]].concat();
    allowed.sort_unstable();
    let mut actual = words(&response, "access-control-allow-headers");
    actual.dedup();
    assert_eq!(actual, allowed);
    let response = preflight(&service, FOREIGN[0], "POST", SESSIONS).await;
    assert_eq!(response.header("access-control-allow-origin"), None, "{response:?}");
}

#[tokio::test]
async fn other_origins_may_read_nothing() {
    let service = start().await;
    for origin in FOREIGN {
        let response = service.send(Method::GET, "/livez", &[("origin", origin)], Vec::new()).await;
        assert_eq!(response.header("access-control-allow-origin"), None, "{origin}: {response:?}");
        let response = preflight(&service, origin, "POST", SESSIONS).await;
        assert_eq!(response.header("access-control-allow-origin"), None, "{origin}: {response:?}");
    }
    // Content types that a browser sends without a preflight are not accepted as JSON.
    for declared in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let headers = [("origin", FOREIGN[0]), ("content-type", declared)];
        let body = br#"{"businessId":"b","userId":"u"}"#.to_vec();
        service.send(Method::POST, SESSIONS, &headers, body).await.expect_problem(415, "unsupported_media_type");
    }
    assert!(service.probe.keys().await.is_empty());
}

#[tokio::test]
async fn without_configured_origins_no_cors_headers_are_sent() {
    let service = Service::start(&[]).await;
    let response = service.send(Method::GET, "/livez", &[("origin", ORIGIN)], Vec::new()).await.expect(200);
    let has_cors_headers =
        |response: &Answer| response.headers.keys().any(|name| name.as_str().starts_with("access-control"));
    assert!(!has_cors_headers(&response), "{response:?}");
    let response = preflight(&service, ORIGIN, "POST", SESSIONS).await;
    assert!(!has_cors_headers(response.expect_problem(405, "method_not_allowed")));
}
