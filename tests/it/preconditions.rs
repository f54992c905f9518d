//! `If-Match` and `If-None-Match`, also with entity tags that a proxy has changed.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use sessiond::auth::Scope;
use tempfile::TempDir;

use crate::support::credentials::api_key;
use crate::support::raw::RawRequest;
use crate::support::service::{Answer, Service};

/// Every form in which a client may send the tag of version 2: unchanged, weak (nginx), with a content coding (Apache,
/// Caddy, Jetty), in lists.
const TAGS_OF_VERSION_2: [&str; 13] = [
    "\"2\"",
    "W/\"2\"",
    "\"2-gzip\"",
    "W/\"2-gzip\"",
    "\"2--gzip\"",
    "\"2-br\"",
    "\"2-zstd\"",
    "*",
    "\"1\", \"2\"",
    "\"1\",W/\"2\",\"3\"",
    "\"other\", \"2\"",
    "  \"2\"  ",
    ",\"2\",",
];
/// Tags that do not name version 2.
const OTHER_TAGS: [&str; 10] =
    ["\"1\"", "W/\"1\"", "\"3-gzip\"", "\"1\", \"3\"", "\"02\"", "2", "w/\"2\"", "\"2-x\"", "\"\"", ""];

/// Creates a session of this user at version 2. Returns its path.
async fn second_version(service: &Service, user: &str) -> String {
    let path = format!("/api/sessions/{}", service.session_of(user).await);
    service.patch(&path, json!({"title": "second"})).await.expect(200);
    path
}

async fn read(service: &Service, method: &str, path: &str, tags: &str) -> Answer {
    RawRequest::new(method, path).header("if-none-match", tags).send(&service.base).await
}

fn expect_not_modified(response: &Answer, tag: &str, what: &str) {
    assert_eq!((response.status.as_u16(), response.text.as_str()), (304, ""), "{what}: {response:?}");
    assert_eq!(response.header("etag"), Some(tag), "{what}: {response:?}");
    // RFC 9110, 15.4.5: a 304 has no body, so no headers that describe one.
    let body_headers = (response.header("content-type"), response.header("content-length"));
    assert_eq!(body_headers, (None, None), "{what}: {response:?}");
    let usual = (response.header("cache-control"), response.header("x-content-type-options"));
    assert_eq!(usual, (Some("no-store"), Some("nosniff")), "{what}: {response:?}");
    assert!(response.header("x-request-id").is_some(), "{what}: {response:?}");
}

#[tokio::test]
async fn reads_of_a_known_version_return_304() {
    let service = Service::start(&[]).await;
    let path = second_version(&service, "u").await;
    for method in ["GET", "HEAD"] {
        for tags in TAGS_OF_VERSION_2 {
            expect_not_modified(&read(&service, method, &path, tags).await, "\"2\"", &format!("{method} {tags:?}"));
        }
        for tags in OTHER_TAGS {
            let response = read(&service, method, &path, tags).await;
            let (status, etag) = (response.status.as_u16(), response.header("etag"));
            assert_eq!((status, etag), (200, Some("\"2\"")), "{tags:?}: {response:?}");
            assert_eq!(response.text.is_empty(), method == "HEAD", "{tags:?}: {response:?}");
        }
        let lines =
            RawRequest::new(method, path.as_str()).header("if-none-match", "\"1\"").header("if-none-match", "\"2\"");
        expect_not_modified(&lines.send(&service.base).await, "\"2\"", "two lines");
    }
    // A missing session is a 404 for every tag.
    let missing = "/api/sessions/f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e";
    read(&service, "GET", missing, "*").await.expect_problem(404, "session_not_found");
    // A change makes a new version, a message does not.
    service.post(&format!("{path}/messages"), json!({"role": "user", "content": 1})).await.expect(201);
    expect_not_modified(&read(&service, "GET", &path, "\"2\"").await, "\"2\"", "after a message");
    service.patch(&path, json!({"title": "third"})).await.expect(200);
    assert_eq!(read(&service, "GET", &path, "\"2\"").await.expect(200).header("etag"), Some("\"3\""));
    expect_not_modified(&read(&service, "GET", &path, "\"3\"").await, "\"3\"", "after a change");
}

#[tokio::test]
async fn a_matching_tag_does_not_hide_an_expiry_or_another_session() {
    let service = Service::start(&[]).await;
    let active = "/api/sessions/business/b/user/u/active";
    let first = service.get_or_create("u").await.expect(201);
    let replace = json!({"businessId": "b", "userId": "u", "ifActive": "replace"});
    let second = service.post("/api/sessions", replace).await.expect(201);
    assert_eq!(first.header("etag"), second.header("etag"), "both are of version 1");
    assert_eq!(read(&service, "GET", active, "\"1\"").await.expect(200).json(), second.json());
    let path = format!("/api/sessions/{}", second.string("sessionId"));
    expect_not_modified(&read(&service, "GET", &path, "\"1\"").await, "\"1\"", "active");
    service.advance(Duration::from_secs(31 * 60));
    let expired = read(&service, "GET", &path, "\"1\"").await.expect(200);
    assert_eq!((expired.string("status").as_str(), expired.header("etag")), ("expired", Some("\"1\"")));
}

#[tokio::test]
async fn if_match_accepts_tags_that_a_proxy_has_changed() {
    let service = Service::start(&[]).await;
    for (number, tags) in TAGS_OF_VERSION_2.into_iter().enumerate() {
        let path = second_version(&service, &format!("patch-{number}")).await;
        let request = RawRequest::new("PATCH", path.as_str()).json(r#"{"title":"third"}"#).header("if-match", tags);
        let patched = request.send(&service.base).await.expect(200);
        assert_eq!(patched.header("etag"), Some("\"3\""), "{tags:?}: {patched:?}");
        let path = second_version(&service, &format!("delete-{number}")).await;
        RawRequest::new("DELETE", path).header("if-match", tags).send(&service.base).await.expect(204);
    }
    let path = second_version(&service, "kept").await;
    for tags in OTHER_TAGS {
        for request in [RawRequest::new("PATCH", path.as_str()).json("{}"), RawRequest::new("DELETE", path.as_str())] {
            let response = request.header("if-match", tags).send(&service.base).await;
            response.expect_problem(412, "version_mismatch");
        }
    }
    // Writes ignore `If-None-Match`.
    for tags in ["*", "\"2\"", "\"1\""] {
        let request = RawRequest::new("PATCH", path.as_str()).json("{}").header("if-none-match", tags);
        request.send(&service.base).await.expect(200);
    }
}

#[tokio::test]
async fn a_304_has_the_rate_limit_headers() {
    let folder = TempDir::new().expect("a folder");
    let (key, entry) = api_key("key", &["b"], &Scope::ALL, None);
    let keys = folder.path().join("keys.toml");
    std::fs::write(&keys, entry).expect("a file");
    let service = Service::start(&["--api-keys-file", keys.to_str().expect("a path")]).await;
    let headers = [("x-api-key", key.as_str()), ("content-type", "application/json")];
    let body = br#"{"businessId":"b","userId":"u"}"#.to_vec();
    let created = service.send(Method::POST, "/api/sessions", &headers, body).await.expect(201);
    let path = format!("/api/sessions/{}", created.string("sessionId"));
    let headers = [("x-api-key", key.as_str()), ("if-none-match", "\"1\"")];
    let response = service.send(Method::GET, &path, &headers, Vec::new()).await;
    expect_not_modified(&response, "\"1\"", "with a key");
    assert!(response.header("ratelimit").is_some() && response.header("ratelimit-policy").is_some(), "{response:?}");
    // Without a credential, the response does not show whether a tag matches.
    service.send(Method::GET, &path, &[("if-none-match", "*")], Vec::new()).await.expect_problem(401, "unauthorized");
}
