//! Pages of which origins may call the service from a browser, and what they may read.

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

/// The headers that pages may send, sorted.
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

/// A header of several words, in lower case and sorted.
fn words(answer: &Answer, name: &str) -> Vec<String> {
    let text = answer.header(name).unwrap_or_default().to_lowercase();
    let mut words: Vec<_> =
        text.split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect();
    words.sort();
    words
}

/// What a browser asks before a page of this origin may send JSON with a credential.
async fn preflight(service: &Service, origin: &str, method: &str, path: &str) -> Answer {
    let asked = [
        ("origin", origin),
        ("access-control-request-method", method),
        ("access-control-request-headers", "authorization,content-type,if-match"),
    ];
    service.send(Method::OPTIONS, path, &asked, Vec::new()).await
}

#[tokio::test]
async fn pages_of_the_configured_origins_may_call_and_read() {
    let service = start().await;
    for origin in [ORIGIN, SECOND] {
        let body = br#"{"businessId":"b","userId":"u"}"#.to_vec();
        let headers = [("origin", origin), ("content-type", "application/json")];
        let answer = service.send(Method::POST, SESSIONS, &headers, body).await;
        assert!(answer.status.is_success(), "{answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), Some(origin), "{answer:?}");
        // Errors are for pages, too: of the router, of the handlers, and before both.
        let refused = [
            (service.send(Method::GET, "/nowhere", &headers, Vec::new()).await, 404),
            (service.send(Method::POST, SESSIONS, &headers, b"{".to_vec()).await, 400),
            (service.send(Method::POST, SESSIONS, &headers, vec![b' '; 300_000]).await, 413),
            (service.send(Method::GET, &format!("/{}", "a".repeat(9000)), &headers, Vec::new()).await, 414),
        ];
        for (answer, status) in refused {
            let answer = answer.expect(status);
            assert_eq!(answer.header("access-control-allow-origin"), Some(origin), "{answer:?}");
            assert!(words(&answer, "vary").contains(&"origin".to_owned()), "{answer:?}");
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
        assert_eq!(words(&answer, "access-control-expose-headers"), exposed);
        // No cookie is ever of use here.
        assert_eq!(answer.header("access-control-allow-credentials"), None);
    }
}

#[tokio::test]
async fn a_preflight_is_answered_without_a_credential_and_changes_nothing() {
    let service = start().await;
    for (method, path) in [("POST", SESSIONS), ("PATCH", "/api/sessions/f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e")] {
        let answer = preflight(&service, ORIGIN, method, path).await.expect(200);
        assert_eq!(answer.header("access-control-allow-origin"), Some(ORIGIN), "{answer:?}");
        assert_eq!(words(&answer, "access-control-allow-methods"), ["delete", "get", "head", "patch", "post"]);
        assert_eq!(words(&answer, "access-control-allow-headers"), ALLOWED);
        assert!(answer.header("x-request-id").is_some() && answer.text.is_empty(), "{answer:?}");
    }
    assert!(service.look.keys().await.is_empty());
    // Without a method that it asks for it is a request like any other, for a path that has no OPTIONS.
    let plain = RawRequest::new("OPTIONS", SESSIONS).header("origin", ORIGIN).send(&service.base).await;
    plain.expect_problem(405, "method_not_allowed");
    assert_eq!(plain.header("allow"), Some("POST"));
}

#[tokio::test]
async fn pages_may_send_the_headers_that_are_configured_as_well() {
    let flags = ["--cors-origins", ORIGIN, "--cors-headers", "X-Tenant, newrelic,x-tenant, If-Match"];
    let service = Service::start(&flags).await;
    let answer = preflight(&service, ORIGIN, "POST", SESSIONS).await.expect(200);
    let mut allowed = [&ALLOWED[..], &["newrelic", "x-tenant"]].concat();
    allowed.sort_unstable();
    let mut said = words(&answer, "access-control-allow-headers");
    said.dedup();
    assert_eq!(said, allowed);
    let answer = preflight(&service, FOREIGN[0], "POST", SESSIONS).await;
    assert_eq!(answer.header("access-control-allow-origin"), None, "{answer:?}");
}

#[tokio::test]
async fn pages_of_other_origins_may_read_nothing() {
    let service = start().await;
    for origin in FOREIGN {
        let answer = service.send(Method::GET, "/livez", &[("origin", origin)], Vec::new()).await;
        assert_eq!(answer.header("access-control-allow-origin"), None, "{origin}: {answer:?}");
        let answer = preflight(&service, origin, "POST", SESSIONS).await;
        assert_eq!(answer.header("access-control-allow-origin"), None, "{origin}: {answer:?}");
    }
    // What a browser sends without asking first is not taken for JSON.
    for declared in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let headers = [("origin", FOREIGN[0]), ("content-type", declared)];
        let body = br#"{"businessId":"b","userId":"u"}"#.to_vec();
        service.send(Method::POST, SESSIONS, &headers, body).await.expect_problem(415, "unsupported_media_type");
    }
    assert!(service.look.keys().await.is_empty());
}

#[tokio::test]
async fn without_configured_origins_nothing_is_said_to_pages() {
    let service = Service::start(&[]).await;
    let answer = service.send(Method::GET, "/livez", &[("origin", ORIGIN)], Vec::new()).await.expect(200);
    let said = |answer: &Answer| answer.headers.keys().any(|name| name.as_str().starts_with("access-control"));
    assert!(!said(&answer), "{answer:?}");
    let answer = preflight(&service, ORIGIN, "POST", SESSIONS).await;
    assert!(!said(answer.expect_problem(405, "method_not_allowed")));
}
