//! Invalid requests. Each is rejected with the status, code and error shape of docs/api.md, names the wrong fields, has
//! the id of the request, and changes nothing in Redis.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sessiond::embedded_redis::EmbeddedRedis;
use sessiond::store::RedisAddress;
use sessiond::{bootstrap, http, server};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::support::raw::{Framing, RawRequest, encode};
use crate::support::redis;
use crate::support::service::{Answer, Service};

const UNKNOWN_ID: &str = "f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e";
/// More than the limit of 256 KiB for a body.
const LARGE_BYTES: usize = 300 * 1024;
const METADATA_BYTES_MAX: usize = 16 * 1024;

/// Bodies that every endpoint rejects as invalid JSON.
const NOT_JSON: [&[u8]; 29] = [
    b"",
    b" ",
    b"{",
    b"{\"a\"",
    b"{\"a\":",
    b"{\"a\":1",
    b"{\"a\":1,}",
    b"{\"a\":1 \"b\":2}",
    b"{a:1}",
    b"{'a':1}",
    b"{\"a\":01}",
    b"{\"a\":.5}",
    b"{\"a\":+1}",
    b"{\"a\":NaN}",
    b"{\"a\":Infinity}",
    b"{\"a\":1e400}",
    b"{\"a\":-1e400}",
    b"{\"a\":nul}",
    b"{\"a\":\"b}",
    b"{\"a\":\"\\x\"}",
    b"{\"a\":\"\\u12\"}",
    b"{} {}",
    b"{}]",
    b"// no comment\n{}",
    b"\xef\xbb\xbf{}",
    b"{\"a\":\"\xff\"}",
    b"{\"a\":\"\xc0\x80\"}",
    b"{\"a\":\"\xed\xa0\x80\"}",
    b"\0{}",
];

/// Invalid content of JSON strings: raw control characters and lone surrogates.
const NOT_STRINGS: [&[u8]; 5] = [b"a\0b", b"a\nb", br"\ud83d", br"\udcac\ud83d", br"\ud83dx"];

/// A service on its own Redis, with sessions that an invalid request could change.
struct Fixture {
    service: Service,
    /// The active session of user `u` in business `b`: version 2, messages `m-1` and `m-2`.
    active: String,
    /// An ended session of the same user.
    ended: String,
    /// How many requests were rejected. Used for request ids.
    rejected: u32,
    // The server is dropped last, before its folder.
    _redis: EmbeddedRedis,
    _folder: TempDir,
}

impl Fixture {
    async fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        let redis = redis::embedded(folder.path());
        let service = Service::start_on(&redis.socket(), &[]).await;
        let ended = service.session_of("u").await;
        let replace = json!({"businessId": "b", "userId": "u", "ifActive": "replace", "metadata": {"kept": [1]}});
        let active = service.post("/api/sessions", replace).await.expect(201).string("sessionId");
        service.patch(&format!("/api/sessions/{active}"), json!({"title": "kept"})).await.expect(200);
        let messages = json!([
            {"messageId": "m-1", "role": "user", "content": "one"},
            {"messageId": "m-2", "role": "tool", "content": 2},
        ]);
        service.post(&format!("/api/sessions/{active}/messages"), messages).await.expect(201);
        Self { service, active, ended, rejected: 0, _redis: redis, _folder: folder }
    }

    fn session(&self) -> String {
        format!("/api/sessions/{}", self.active)
    }

    fn messages(&self) -> String {
        format!("/api/sessions/{}/messages", self.active)
    }

    fn message(&self) -> String {
        format!("{}/m-1", self.messages())
    }

    /// The endpoints with a body, each with a valid body.
    fn with_bodies(&self) -> [(&'static str, String, Value); 3] {
        [
            ("POST", "/api/sessions".to_owned(), json!({"businessId": "b", "userId": "new"})),
            ("PATCH", self.session(), json!({"title": "changed"})),
            ("POST", self.messages(), json!({"role": "user", "content": "three"})),
        ]
    }

    /// All data in Redis.
    async fn stored(&self) -> (Option<String>, BTreeMap<String, (Vec<u8>, String)>) {
        (self.service.probe.text(&["DBSIZE"]).await, self.service.probe.digest().await)
    }

    /// Sends a request. Panics unless it is rejected with this status, code and exactly these fields, and changes
    /// nothing.
    async fn reject(&mut self, request: RawRequest, status: u16, code: &str, fields: &[&str]) -> Answer {
        self.rejected += 1;
        let request_id = format!("rejected-{}", self.rejected);
        let before = self.stored().await;
        let request = request.header("x-request-id", request_id.as_bytes());
        let response = request.send(&self.service.base).await;
        assert_eq!(
            (response.status.as_u16(), response.string("code").as_str()),
            (status, code),
            "{request}: {response:?}"
        );
        response.expect_problem(status, code);
        assert_eq!(response.header("x-request-id"), Some(request_id.as_str()), "{request}: {response:?}");
        assert!(!response.string("detail").is_empty(), "{request}: {response:?}");
        let mut named = named_fields(&response);
        let mut wanted = fields.to_vec();
        named.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(named, wanted, "{request}: {response:?}");
        assert!(self.stored().await == before, "{request} changed Redis");
        response
    }

    async fn reject_body(&mut self, method: &str, path: &str, body: impl Into<Vec<u8>>, fields: &[&str]) {
        self.reject(RawRequest::new(method, path).json(body), 400, "invalid_request", fields).await;
    }

    async fn reject_get(&mut self, path: impl Into<Vec<u8>>, fields: &[&str]) {
        self.reject(RawRequest::new("GET", path), 400, "invalid_request", fields).await;
    }
}

/// The fields in the `errors` of a response. Panics if one has no message.
fn named_fields(response: &Answer) -> Vec<String> {
    let errors = response.member("errors");
    let errors = errors.as_array().map(Vec::as_slice).unwrap_or_default();
    let named = |error: &Value| {
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{response:?}");
        error["field"].as_str().expect("a field's name").to_owned()
    };
    errors.iter().map(named).collect()
}

/// A JSON object whose text has exactly `bytes` bytes.
fn object_of(bytes: usize) -> Value {
    json!({"k": "x".repeat(bytes - "{\"k\":\"\"}".len())})
}

/// `base` with one member set.
fn with(base: &Value, name: &str, value: &Value) -> Value {
    let mut body = base.clone();
    body[name] = value.clone();
    body
}

/// Values that are not valid identifiers.
fn bad_identifiers() -> Vec<Value> {
    let too_long = ["a".repeat(129), "💬".repeat(129), "e\u{301}".repeat(65)];
    let controls = ["\0", "a\0b", "a\nb", "\u{1f}", "\u{7f}", "\u{85}", "\u{9f}"];
    // URL libraries of clients remove `.` and `..` from a path.
    let others = ["", ".", ".."];
    let texts = too_long.into_iter().chain(controls.into_iter().chain(others).map(str::to_owned));
    texts.map(Value::from).chain([json!(null), json!(1), json!(1.5), json!(true), json!([]), json!({})]).collect()
}

fn bad_titles() -> Vec<Value> {
    vec![json!("t".repeat(201)), json!("💬".repeat(201)), json!(1), json!(false), json!(["t"]), json!({})]
}

/// Without `null`, which is valid in a patch.
fn bad_metadata() -> Vec<Value> {
    vec![object_of(METADATA_BYTES_MAX + 1), json!("{}"), json!(1), json!(true), json!([])]
}

fn bad_words(others: &[&str]) -> Vec<Value> {
    let others = others.iter().map(|word| json!(word));
    others.chain([json!(""), json!(null), json!(1), json!(true), json!([]), json!({})]).collect()
}

#[tokio::test]
async fn rejects_bodies_that_are_not_json() {
    let mut fixture = Fixture::start().await;
    for (method, path, base) in fixture.with_bodies() {
        let members = base.to_string();
        let members = members.trim_start_matches('{').trim_end_matches('}');
        for body in NOT_JSON {
            fixture.reject_body(method, &path, body, &[]).await;
        }
        for text in NOT_STRINGS {
            for body in [
                [format!("{{{members},\"metadata\":{{\"k\":\"").as_bytes(), text, b"\"}}"].concat(),
                [format!("{{{members},\"metadata\":{{\"").as_bytes(), text, b"\":1}}"].concat(),
            ] {
                fixture.reject_body(method, &path, body, &[]).await;
            }
        }
        for body in ["null", "1", "\"text\"", "true", "[]", "[[]]"] {
            let fields: &[&str] = if body == "[[]]" && path.ends_with("/messages") { &["[0]"] } else { &[] };
            fixture.reject_body(method, &path, body, fields).await;
        }
        // A valid body without its last byte, on an open and on a closed connection.
        let whole = base.to_string();
        fixture.reject_body(method, &path, &whole.as_bytes()[..whole.len() - 1], &[]).await;
        let cut_off = RawRequest::new(method, path.as_str()).json(whole).framing(Framing::CutOff);
        fixture.reject(cut_off, 400, "invalid_request", &[]).await;
    }
}

#[tokio::test]
async fn rejects_duplicate_and_reserved_keys_at_any_depth() {
    let mut fixture = Fixture::start().await;
    for (method, path, base) in fixture.with_bodies() {
        let members = base.to_string();
        let members = members.trim_start_matches('{').trim_end_matches('}');
        for body in [
            format!("{{{members},{members}}}"),
            format!("{{{members},\"metadata\":{{}},\"metadata\":{{}}}}"),
            format!("{{{members},\"metadata\":{{\"a\":1,\"a\":1}}}}"),
            format!("{{{members},\"metadata\":{{\"a\":1,\"\\u0061\":1}}}}"),
            format!("{{{members},\"metadata\":{{\"l\":[0,{{\"o\":{{\"k\":null,\"k\":null}}}}]}}}}"),
            format!("{{{members},\"unknown\":{{\"k\":1,\"k\":1}}}}"),
            format!("{{{members},\"metadata\":{{\"a\":{{\"$serde_json::private::RawValue\":\"x y\"}}}}}}"),
        ] {
            fixture.reject_body(method, &path, body, &[]).await;
        }
    }
    let path = fixture.messages();
    for body in [
        r#"{"role":"user","content":{"a":1,"a":1}}"#,
        r#"{"role":"user","content":[[{"a":{"b":1,"b":2}}]]}"#,
        r#"[{"role":"user","content":1},{"role":"user","role":"user","content":1}]"#,
        r#"[{"role":"user","content":[{"$serde_json::private::RawValue":"1"}]}]"#,
    ] {
        fixture.reject_body("POST", &path, body, &[]).await;
    }
}

#[tokio::test]
async fn nesting_depth_is_limited() {
    let mut fixture = Fixture::start().await;
    let nested = |depth: usize| format!("{}{}", "{\"k\":".repeat(depth), ["1", &"}".repeat(depth)].concat());
    for (method, path, base) in fixture.with_bodies() {
        let members = base.to_string();
        let members = members.trim_start_matches('{').trim_end_matches('}');
        fixture.reject_body(method, &path, format!("{{{members},\"metadata\":{}}}", nested(200)), &[]).await;
        fixture.reject_body(method, &path, "[".repeat(100_000), &[]).await;
        let deep = format!("{{{members},\"metadata\":{}}}", nested(100));
        let accepted = RawRequest::new(method, path).json(deep).send(&fixture.service.base).await;
        assert!(accepted.status.is_success(), "{accepted:?}");
    }
}

#[tokio::test]
async fn every_field_of_a_get_or_create_is_checked() {
    let mut fixture = Fixture::start().await;
    let base = json!({"businessId": "b", "userId": "new"});
    let mut with_null = bad_metadata();
    with_null.push(json!(null));
    let wrong = [
        ("businessId", bad_identifiers()),
        ("userId", bad_identifiers()),
        ("locationId", bad_identifiers()),
        ("sessionType", bad_identifiers()),
        ("title", bad_titles()),
        ("metadata", with_null),
        ("ifActive", bad_words(&["Return", "REPLACE", "end", "return "])),
    ];
    for (name, values) in wrong {
        for value in values {
            fixture.reject_body("POST", "/api/sessions", with(&base, name, &value).to_string(), &[name]).await;
        }
    }
    let unknown = ["status", "sessionId", "version", "createdAt", "business_id", "BusinessId", "__proto__", ""];
    for name in unknown {
        fixture.reject_body("POST", "/api/sessions", with(&base, name, &json!("active")).to_string(), &[name]).await;
    }
    fixture.reject_body("POST", "/api/sessions", "{}", &["businessId", "userId"]).await;
    fixture.reject_body("POST", "/api/sessions", r#"{"businessId":"b"}"#, &["userId"]).await;
    let all_wrong = json!({
        "businessId": "", "locationId": null, "sessionType": 1, "title": [], "metadata": "", "ifActive": "", "more": 1,
    });
    let all = ["businessId", "userId", "locationId", "sessionType", "title", "metadata", "ifActive", "more"];
    fixture.reject_body("POST", "/api/sessions", all_wrong.to_string(), &all).await;
}

#[tokio::test]
async fn every_field_of_an_update_is_checked() {
    let mut fixture = Fixture::start().await;
    let path = fixture.session();
    let base = json!({"title": "changed"});
    let wrong = [
        ("locationId", bad_identifiers()),
        ("sessionType", bad_identifiers()),
        ("title", bad_titles()),
        ("metadata", bad_metadata()),
        ("status", bad_words(&["Active", "expired", "replaced"])),
        ("ifActive", bad_words(&["Return", "end"])),
    ];
    for (name, values) in wrong {
        for value in values {
            fixture.reject_body("PATCH", &path, with(&base, name, &value).to_string(), &[name]).await;
        }
    }
    for name in ["businessId", "userId", "sessionId", "version", "messageCount", "expiresAt", "endReason", "Title"] {
        fixture.reject_body("PATCH", &path, with(&base, name, &json!("b")).to_string(), &[name]).await;
    }
    let all_wrong =
        json!({"locationId": "", "sessionType": 1, "title": 1, "metadata": 1, "status": 1, "ifActive": 1, "more": 1});
    let all = ["locationId", "sessionType", "title", "metadata", "status", "ifActive", "more"];
    fixture.reject_body("PATCH", &path, all_wrong.to_string(), &all).await;
    // Merge patches are checked in the same way.
    let merge = RawRequest::new("PATCH", path).header("content-type", "application/merge-patch+json").body("{\"a\":1}");
    fixture.reject(merge, 400, "invalid_request", &["a"]).await;
}

#[tokio::test]
async fn every_field_of_a_message_update_is_checked() {
    let mut fixture = Fixture::start().await;
    let path = fixture.message();
    for body in ["", "[]", "null", "{\"metadata\":{}", "{\"metadata\":{\"a\":1,\"a\":1}}"] {
        fixture.reject_body("PATCH", &path, body, &[]).await;
    }
    fixture.reject_body("PATCH", &path, "{}", &["metadata"]).await;
    for value in bad_metadata() {
        fixture.reject_body("PATCH", &path, json!({"metadata": value}).to_string(), &["metadata"]).await;
    }
    for name in ["messageId", "seq", "role", "content", "createdAt", "redactedAt", "Metadata"] {
        let body = with(&json!({"metadata": {}}), name, &Value::Null);
        fixture.reject_body("PATCH", &path, body.to_string(), &[name]).await;
    }
}

#[tokio::test]
async fn every_field_of_a_message_is_checked() {
    let mut fixture = Fixture::start().await;
    let path = fixture.messages();
    let base = json!({"role": "user", "content": "three"});
    let mut with_null = bad_metadata();
    with_null.push(json!(null));
    let wrong = [
        ("messageId", bad_identifiers()),
        ("role", bad_words(&["User", "bot", "function"])),
        ("content", vec![json!(null)]),
        ("metadata", with_null),
        ("seq", vec![json!(3)]),
        ("sessionId", vec![json!(fixture.active)]),
        ("createdAt", vec![json!("2026-11-22T10:00:00.000Z")]),
    ];
    for (name, values) in wrong {
        for value in values {
            let message = with(&base, name, &value);
            fixture.reject_body("POST", &path, message.to_string(), &[name]).await;
            let second = format!("[1].{name}");
            fixture.reject_body("POST", &path, json!([base, message, base]).to_string(), &[&second]).await;
        }
    }
    fixture.reject_body("POST", &path, "{}", &["role", "content"]).await;
    fixture.reject_body("POST", &path, r#"[{"content":1},{"role":"user"}]"#, &["[0].role", "[1].content"]).await;
    fixture
        .reject_body("POST", &path, json!([base, 1, null, [base], "x"]).to_string(), &["[1]", "[2]", "[3]", "[4]"])
        .await;
    fixture.reject_body("POST", &path, json!(vec![base.clone(); 101]).to_string(), &[]).await;
    let all_wrong =
        json!([base, {"messageId": "", "role": "", "content": null, "metadata": [], "more": 1}, {"role": 1}]);
    let all = ["[1].messageId", "[1].role", "[1].content", "[1].metadata", "[1].more", "[2].role", "[2].content"];
    fixture.reject_body("POST", &path, all_wrong.to_string(), &all).await;
}

#[tokio::test]
async fn bodies_are_limited_to_256_kib_and_metadata_to_16_kib() {
    let mut fixture = Fixture::start().await;
    for framing in [Framing::ContentLength, Framing::Chunked] {
        for (method, path, base) in fixture.with_bodies() {
            let large = with(&base, "metadata", &object_of(LARGE_BYTES)).to_string();
            let request = RawRequest::new(method, path).json(large).framing(framing);
            fixture.reject(request, 413, "payload_too_large", &[]).await;
        }
        // Bodies that the endpoint ignores are limited, too.
        for (method, path) in [("GET", fixture.session()), ("DELETE", fixture.session())] {
            let request = RawRequest::new(method, path).body(vec![b' '; LARGE_BYTES]).framing(framing);
            fixture.reject(request, 413, "payload_too_large", &[]).await;
        }
        let around = r#"{"role":"user","content":""}"#.len();
        let exactly = |bytes: usize| json!({"role": "user", "content": "x".repeat(bytes - around)}).to_string();
        let path = fixture.messages();
        let request = RawRequest::new("POST", path.as_str()).json(exactly(256 * 1024 + 1)).framing(framing);
        fixture.reject(request, 413, "payload_too_large", &[]).await;
        let request = RawRequest::new("POST", path.as_str()).json(exactly(256 * 1024)).framing(framing);
        request.send(&fixture.service.base).await.expect(201);
    }

    // Metadata of the maximum size is accepted everywhere. A merge that exceeds it is rejected.
    let most = object_of(METADATA_BYTES_MAX);
    let body = json!({"businessId": "b", "userId": "full", "metadata": most});
    let full = fixture.service.post("/api/sessions", body).await.expect(201);
    assert_eq!(full.member("metadata"), most);
    let message = json!({"role": "user", "content": 1, "metadata": most});
    assert_eq!(fixture.service.post(&fixture.messages(), message).await.expect(201).member("metadata"), most);
    let path = format!("/api/sessions/{}", full.string("sessionId"));
    fixture.reject_body("PATCH", &path, r#"{"title":"t","metadata":{"":0}}"#, &["metadata"]).await;
    let half = object_of(METADATA_BYTES_MAX / 2 + 8)["k"].clone();
    fixture.service.patch(&path, json!({"metadata": {"k": half}})).await.expect(200);
    fixture.reject_body("PATCH", &path, json!({"metadata": {"l": half}}).to_string(), &["metadata"]).await;
    // Members that the same patch removes do not count.
    fixture.service.patch(&path, json!({"metadata": {"k": null, "l": half}})).await.expect(200);
}

#[tokio::test]
async fn uri_and_content_limits_are_configurable() {
    let service = Service::start(&["--max-uri-bytes", "1024", "--max-content-bytes", "10"]).await;
    let path = "/api/sessions/business/b/active?cursor=";
    let get = |bytes: usize| RawRequest::new("GET", format!("{path}{}", "a".repeat(bytes - path.len())));
    // The cursor is invalid, but the URI is not too long.
    get(1024).send(&service.base).await.expect_problem(400, "invalid_request");
    get(1025).send(&service.base).await.expect_problem(414, "uri_too_long");
    let messages = format!("/api/sessions/{}/messages", service.session_of("u").await);
    let message = |content: Value| json!({"role": "user", "content": content});
    // The limit counts the JSON text, including quotes.
    service.post(&messages, message(json!("12345678"))).await.expect(201);
    for content in [json!("123456789"), json!(["1", "2", "34"])] {
        let response = service.post(&messages, message(content)).await;
        assert_eq!(named_fields(response.expect_problem(400, "invalid_request")), ["content"]);
    }
    assert_eq!(service.get(&messages).await.json().as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn rejects_bodies_without_exactly_one_json_content_type() {
    let mut fixture = Fixture::start().await;
    let rejected = [
        "text/plain",
        "text/json",
        "application/xml",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "application/jsonx",
        "application/json, application/json",
        "application/json; charset=iso-8859-1",
        "application/json; charset=utf-16",
        "application/json; charset=\"latin1\"",
        "application/json; charset=utf-8; charset=latin1",
        "application/json; charset=\"utf-8",
        "application/json; a=\"b\"; charset=us-ascii",
        "json",
        "*/*",
        "application/",
        "",
    ];
    for (method, path, base) in fixture.with_bodies() {
        let bare = RawRequest::new(method, path.as_str()).body(base.to_string());
        fixture.reject(bare.clone(), 415, "unsupported_media_type", &[]).await;
        for declared in rejected {
            let request = bare.clone().header("content-type", declared);
            fixture.reject(request, 415, "unsupported_media_type", &[]).await;
        }
        let twice = bare.clone().header("content-type", "application/json").header("content-type", "application/json");
        fixture.reject(twice, 415, "unsupported_media_type", &[]).await;
        let compressed = bare.clone().header("content-type", "application/json").header("content-encoding", "gzip");
        fixture.reject(compressed, 415, "unsupported_media_type", &[]).await;
        let not_ascii = bare.clone().header("content-type", b"application/json; a=\xff");
        fixture.reject(not_ascii, 415, "unsupported_media_type", &[]).await;
        for declared in [
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
            "application/json; charset=utf8",
            "application/json; charset=\"utf8\"",
            "application/json ; Charset = UTF8",
            "application/merge-patch+json;charset=\"utf-8\"; q=1",
            "application/json; a=\"; charset=latin1\"; charset=utf-8",
            "Application/JSON",
            "application/merge-patch+json",
        ] {
            let response = bare.clone().header("content-type", declared).send(&fixture.service.base).await;
            assert!(response.status.is_success(), "{declared}: {response:?}");
        }
    }
}

#[tokio::test]
async fn rejects_invalid_query_parameters() {
    let mut fixture = Fixture::start().await;
    let history = "/api/sessions/business/b/user/u/history".to_owned();
    let active = "/api/sessions/business/b/active".to_owned();
    let lists = [(history.clone(), "101"), (active.clone(), "101"), (fixture.messages(), "1001")];
    let not_numbers =
        ["", "0", "-1", "1e18", "1000000000000000000", "NaN", "1.0", "+1", "%201", "1%20", "0x1", "%ff", "%00"];
    let huge = "18446744073709551617";
    for (path, too_many) in lists {
        for limit in not_numbers.into_iter().chain([too_many, huge, "null", "%D9%A1"]) {
            fixture.reject_get(format!("{path}?limit={limit}"), &["limit"]).await;
        }
        fixture.reject_get(format!("{path}?limit"), &["limit"]).await;
        fixture.reject_get(format!("{path}?limit=1&limit=1"), &["limit"]).await;
        for name in ["page", "Limit", "limit[]", "offset"] {
            fixture.reject_get(format!("{path}?{name}=1"), &[name]).await;
        }
        fixture.reject_get(format!("{path}?limit=0&x=1&y"), &["limit", "x", "y"]).await;
    }
    let messages = fixture.messages();
    for name in ["before", "after"] {
        for value in ["", "-1", "x", "1.5", "9007199254740992", huge, "NaN"] {
            fixture.reject_get(format!("{messages}?{name}={value}"), &[name]).await;
        }
        fixture.reject_get(format!("{messages}?{name}=1&{name}=2"), &[name]).await;
        fixture.reject_get(format!("{history}?{name}=1"), &[name]).await;
        fixture.reject_get(format!("{active}?{name}=1"), &[name]).await;
    }
    fixture.reject_get(format!("{messages}?before=2&after=1"), &["after"]).await;
    fixture.reject_get(format!("{messages}?before=x&after=y&limit=z"), &["before", "after", "limit"]).await;
    fixture.reject_get(format!("{messages}?cursor=AQ"), &["cursor"]).await;
}

#[tokio::test]
async fn rejects_malformed_cursors_and_cursors_of_other_lists() {
    let mut fixture = Fixture::start().await;
    // More sessions of a second user and of the same users in another business, so that every list has a second page.
    for (business, user) in [("b", "v"), ("b", "v"), ("c", "u"), ("c", "u"), ("c", "v")] {
        let replace = json!({"businessId": business, "userId": user, "ifActive": "replace"});
        fixture.service.post("/api/sessions", replace).await.expect(201);
    }
    let lists = [
        "/api/sessions/business/b/user/u/history",
        "/api/sessions/business/b/user/v/history",
        "/api/sessions/business/c/user/u/history",
        "/api/sessions/business/b/active",
        "/api/sessions/business/c/active",
    ];
    let mut cursors = Vec::new();
    for list in lists {
        let next = fixture.service.get(&format!("{list}?limit=1")).await.expect(200).link("next").expect("a next page");
        fixture.service.get(&next).await.expect(200);
        cursors.push(next.split_once("cursor=").expect("a cursor").1.to_owned());
    }
    for (place, list) in lists.into_iter().enumerate() {
        let own = &cursors[place];
        for (other, cursor) in cursors.iter().enumerate() {
            if other != place {
                fixture.reject_get(format!("{list}?cursor={cursor}"), &["cursor"]).await;
            }
        }
        let garbage = ["", "x", "AQ", "null", "%00", "%ff", "....", "%F0%9F%92%AC"].map(str::to_owned);
        let almost = [own[1..].to_owned(), own[..own.len() - 1].to_owned(), format!("{own}AAAA"), format!("{own}=")];
        for cursor in garbage.into_iter().chain(almost).chain(["A".repeat(5000)]) {
            fixture.reject_get(format!("{list}?cursor={cursor}"), &["cursor"]).await;
        }
        fixture.reject_get(format!("{list}?cursor={own}&cursor={own}"), &["cursor"]).await;
        fixture.reject_get(format!("{list}?cursor=x&limit=0&more"), &["cursor", "limit", "more"]).await;
    }
}

#[tokio::test]
async fn rejects_invalid_identifiers_in_paths() {
    let mut fixture = Fixture::start().await;
    let texts = bad_identifiers().into_iter().filter_map(|value| value.as_str().map(encode));
    for bad in texts.filter(|text| !text.is_empty()) {
        fixture.reject_get(format!("/api/sessions/business/{bad}/active"), &["businessId"]).await;
        for (method, last) in [("GET", "/active"), ("GET", "/history"), ("DELETE", "")] {
            for (user, fields) in [
                (format!("{bad}/user/u"), &["businessId"] as &[&str]),
                (format!("b/user/{bad}"), &["userId"]),
                (format!("{bad}/user/{bad}"), &["businessId", "userId"]),
            ] {
                let request = RawRequest::new(method, format!("/api/sessions/business/{user}{last}"));
                fixture.reject(request, 400, "invalid_request", fields).await;
            }
        }
    }
    let messages = fixture.messages();
    let texts = bad_identifiers().into_iter().filter_map(|value| value.as_str().map(encode));
    for bad in texts.filter(|text| !text.is_empty()) {
        for method in ["GET", "PATCH", "DELETE"] {
            let request = RawRequest::new(method, format!("{messages}/{bad}")).json(r#"{"metadata":{}}"#);
            fixture.reject(request, 400, "invalid_request", &["messageId"]).await;
        }
    }
    // Empty segments are empty identifiers.
    fixture.reject_get("/api/sessions/business//active", &["businessId"]).await;
    fixture.reject_get("/api/sessions/business//user//active", &["businessId", "userId"]).await;
    fixture.reject_get("/api/sessions/business/b/user//history", &["userId"]).await;
    for bad in ["%ff", "%c0%80", "a%ed%a0%80", "%F0%9F%92"] {
        for (method, path) in [
            ("GET", format!("{bad}/active")),
            ("GET", format!("{bad}/user/u/active")),
            ("GET", format!("b/user/{bad}/history")),
            ("DELETE", format!("b/user/{bad}")),
        ] {
            let request = RawRequest::new(method, format!("/api/sessions/business/{path}"));
            fixture.reject(request, 400, "invalid_request", &[]).await;
        }
        fixture.reject_get(format!("{messages}/{bad}"), &[]).await;
    }
}

#[tokio::test]
async fn missing_sessions_are_not_found() {
    let mut fixture = Fixture::start().await;
    let simple = fixture.active.replace('-', "");
    let ids = [
        UNKNOWN_ID.to_owned(),
        "00000000-0000-0000-0000-000000000000".to_owned(),
        "ffffffff-ffff-ffff-ffff-ffffffffffff".to_owned(),
        simple,
        format!("{{{}}}", fixture.active),
        format!("urn:uuid:{}", fixture.active),
        format!("{}0", fixture.active),
        format!("{}%20", fixture.active),
        format!("{}%00", fixture.active),
        fixture.active[1..].to_owned(),
        fixture.active.replace('-', "_"),
        "business".to_owned(),
        "active".to_owned(),
        "..".to_owned(),
        "%2e%2e".to_owned(),
        "1".to_owned(),
        "%00".to_owned(),
        "%ff".to_owned(),
        "*".to_owned(),
        "x".repeat(1000),
    ];
    for id in ids {
        let path = format!("/api/sessions/{id}");
        for request in [
            RawRequest::new("GET", path.as_str()),
            RawRequest::new("DELETE", path.as_str()),
            RawRequest::new("PATCH", path.as_str()).json("{}"),
            RawRequest::new("GET", format!("{path}/messages")),
            RawRequest::new("POST", format!("{path}/messages")).json(r#"{"role":"user","content":1}"#),
        ] {
            fixture.reject(request, 404, "session_not_found", &[]).await;
        }
    }
    fixture.reject(RawRequest::new("GET", "/api/sessions//messages"), 404, "session_not_found", &[]).await;
    let nobody = RawRequest::new("GET", "/api/sessions/business/b/user/nobody/active");
    fixture.reject(nobody, 404, "no_active_session", &[]).await;
}

#[tokio::test]
async fn unknown_paths_are_not_found() {
    let mut fixture = Fixture::start().await;
    let session = fixture.session();
    let unknown = [
        "//",
        "/api",
        "/api/",
        "/api/sessions/",
        "/api/session",
        "/API/sessions",
        "/api/Sessions",
        "/api//sessions",
        "//api/sessions",
        "/%61pi/sessions",
        "/api/sessions/business/",
        "/api/sessions/business/b/active/",
        "/api/sessions/business/b/history",
        "/api/sessions/business/b/user",
        "/api/sessions/business/b/user/",
        "/api/sessions/business/b/user/u/",
        "/api/sessions/business/b/user/u/active/",
        "/api/sessions/business/b/user/u/history/",
        "/api/sessions/business/b/user/u/u2/active",
        "/api/sessions/business/b/users/u/active",
        "/api/whoami/",
        "/api/whoami/me",
        "/livez/",
        "/readyz/",
        "/healthz",
        "/metrics",
        "/openapi.json/",
        "/openapi.yaml",
        "/docs/a/b",
        "/docs/../livez",
        "/console/a/b",
        "/favicon.ico",
        "/*",
        "/.",
    ]
    .map(str::to_owned);
    let of_session =
        ["/", "/messages/", "/messages/1/2", "/message", "//", "//messages"].map(|end| format!("{session}{end}"));
    for path in unknown.into_iter().chain(of_session) {
        for method in ["GET", "POST", "DELETE"] {
            fixture.reject(RawRequest::new(method, path.as_str()).json("{}"), 404, "route_not_found", &[]).await;
        }
    }
    fixture.reject(RawRequest::new("GET", "/docs/nothing.js"), 404, "route_not_found", &[]).await;
    fixture.reject(RawRequest::new("OPTIONS", "*"), 404, "route_not_found", &[]).await;
}

#[tokio::test]
async fn unsupported_methods_are_rejected_with_the_allowed_ones() {
    let mut fixture = Fixture::start().await;
    let paths = [
        ("/api/sessions".to_owned(), vec!["POST"]),
        (fixture.session(), vec!["GET", "HEAD", "PATCH", "DELETE"]),
        (fixture.messages(), vec!["GET", "HEAD", "POST"]),
        (fixture.message(), vec!["GET", "HEAD", "PATCH", "DELETE"]),
        ("/api/sessions/business/b/active".to_owned(), vec!["GET", "HEAD"]),
        ("/api/sessions/business/b/user/u/active".to_owned(), vec!["GET", "HEAD"]),
        ("/api/sessions/business/b/user/u/history".to_owned(), vec!["GET", "HEAD"]),
        ("/api/sessions/business/b/user/u".to_owned(), vec!["DELETE"]),
        ("/api/whoami".to_owned(), vec!["GET", "HEAD"]),
        ("/livez".to_owned(), vec!["GET", "HEAD"]),
        ("/readyz".to_owned(), vec!["GET", "HEAD"]),
        ("/openapi.json".to_owned(), vec!["GET", "HEAD"]),
        ("/docs".to_owned(), vec!["GET", "HEAD"]),
        ("/".to_owned(), vec!["GET", "HEAD"]),
        ("/console/".to_owned(), vec!["GET", "HEAD"]),
    ];
    let methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PURGE", "get"];
    for (path, mut allowed) in paths {
        allowed.sort_unstable();
        for method in methods.into_iter().filter(|method| !allowed.contains(method)) {
            let request = RawRequest::new(method, path.as_str()).json("{}");
            let response = if method == "HEAD" {
                // Responses to HEAD have no body.
                let before = fixture.stored().await;
                let response = request.header("x-request-id", "head").send(&fixture.service.base).await.expect(405);
                assert_eq!(response.header("x-request-id"), Some("head"), "{response:?}");
                assert!(fixture.stored().await == before, "HEAD {path} changed Redis");
                response
            } else {
                fixture.reject(request, 405, "method_not_allowed", &[]).await
            };
            let mut named: Vec<_> = response.header("allow").expect("Allow").split(',').map(str::trim).collect();
            named.sort_unstable();
            assert_eq!(named, allowed, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn if_match_with_another_version_changes_nothing() {
    let mut fixture = Fixture::start().await;
    let path = fixture.session();
    let version = fixture.service.get(&path).await.member("version");
    assert_eq!(version, 2);
    let stale: [&[u8]; 22] = [
        b"\"1\"",
        b"\"3\"",
        b"\"02\"",
        b"\"2 \"",
        b"\"-2\"",
        b"\"2.0\"",
        b"\"*\"",
        b"2",
        b"\"2",
        b"2\"",
        b"W/\"1\"",
        b"w/\"2\"",
        b"W/2",
        b"\"1-gzip\"",
        b"\"2-\"",
        b"\"2-identity\"",
        b"\"2;gzip\"",
        b"'2'",
        b"\"1\", \"3\"",
        b"\"\"",
        b"",
        b"\"\xff\"",
    ];
    for tag in stale {
        for request in [
            RawRequest::new("PATCH", path.as_str()).json(r#"{"title":"changed"}"#),
            RawRequest::new("PATCH", path.as_str()).json("{}"),
            RawRequest::new("PATCH", path.as_str()).json(r#"{"status":"ended"}"#),
            RawRequest::new("DELETE", path.as_str()),
        ] {
            fixture.reject(request.header("if-match", tag), 412, "version_mismatch", &[]).await;
        }
    }
    let twice = RawRequest::new("DELETE", path.as_str()).header("if-match", "\"1\"").header("if-match", "\"3\"");
    fixture.reject(twice, 412, "version_mismatch", &[]).await;
    // `If-Match` also applies to a resume.
    let ended = RawRequest::new("PATCH", format!("/api/sessions/{}", fixture.ended));
    let resume = ended.json(r#"{"status":"active","ifActive":"replace"}"#).header("if-match", "\"1\"");
    fixture.reject(resume, 412, "version_mismatch", &[]).await;
    let listed =
        RawRequest::new("PATCH", path.as_str()).json(r#"{"title":"changed"}"#).header("if-match", "\"1\", \"2\"");
    listed.send(&fixture.service.base).await.expect(200);
}

#[tokio::test]
async fn calls_that_conflict_with_the_state_change_nothing() {
    let mut fixture = Fixture::start().await;
    let ended = format!("/api/sessions/{}", fixture.ended);
    let message = |body: Value| RawRequest::new("POST", "").json(body.to_string());
    let to = |path: String, mut request: RawRequest| {
        request.target = path.into_bytes();
        request
    };
    let new = json!({"role": "user", "content": 1});
    fixture.reject(to(format!("{ended}/messages"), message(new.clone())), 409, "session_not_active", &[]).await;
    let array = message(json!([new, new]));
    fixture.reject(to(format!("{ended}/messages"), array), 409, "session_not_active", &[]).await;
    for body in [r#"{"status":"active"}"#, r#"{"status":"active","ifActive":"return","title":"changed"}"#] {
        let resume = RawRequest::new("PATCH", ended.as_str()).json(body);
        let response = fixture.reject(resume, 409, "another_session_active", &[]).await;
        assert_eq!(response.string("activeSessionId"), fixture.active);
    }
    let known = json!({"messageId": "m-1", "role": "user", "content": "one"});
    for body in [
        with(&known, "content", &json!("other")),
        with(&known, "content", &json!(["one"])),
        with(&known, "role", &json!("assistant")),
        json!([new, known, with(&known, "content", &json!("other"))]),
        json!([new, with(&known, "content", &json!(1)), new]),
        json!([{"messageId": "n", "role": "user", "content": 1}, {"messageId": "n", "role": "user", "content": 2}]),
    ] {
        fixture.reject(to(fixture.messages(), message(body)), 409, "message_id_conflict", &[]).await;
    }

    // A rejected call does not store an expiry that it notices.
    fixture.service.advance(Duration::from_secs(31 * 60));
    assert_eq!(fixture.service.get(&fixture.session()).await.string("status"), "expired");
    fixture.reject(to(fixture.messages(), message(new)), 409, "session_not_active", &[]).await;
    let mismatch = RawRequest::new("PATCH", fixture.session()).json("{}").header("if-match", "\"9\"");
    fixture.reject(mismatch, 412, "version_mismatch", &[]).await;
    let active = RawRequest::new("GET", "/api/sessions/business/b/user/u/active");
    fixture.reject(active, 404, "no_active_session", &[]).await;
}

#[tokio::test]
async fn every_response_has_the_id_of_its_request() {
    let service = Service::start(&[]).await;
    let id = service.session_of("u").await;
    let requests = [
        (200, RawRequest::new("GET", "/livez")),
        (200, RawRequest::new("GET", "/docs")),
        (200, RawRequest::new("GET", "/openapi.json")),
        (200, RawRequest::new("GET", format!("/api/sessions/{id}"))),
        (404, RawRequest::new("GET", format!("/api/sessions/{UNKNOWN_ID}"))),
        (404, RawRequest::new("GET", "/nothing")),
        (405, RawRequest::new("PUT", "/api/sessions")),
        (400, RawRequest::new("POST", "/api/sessions").json("{")),
        (413, RawRequest::new("POST", "/api/sessions").json("x".repeat(LARGE_BYTES))),
        (415, RawRequest::new("POST", "/api/sessions").body("{}")),
        (204, RawRequest::new("DELETE", format!("/api/sessions/{id}"))),
    ];
    let too_long = "x".repeat(129);
    let not_ids: [&[u8]; 6] = [b"", b"two words", b"tab\tbed", "ü".as_bytes(), b"\xff", too_long.as_bytes()];
    let longest = "x".repeat(128);
    let mut generated = Vec::new();
    for (status, request) in requests {
        for valid_id in ["1", "~!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}", longest.as_str()] {
            // The DELETE succeeds only once.
            let response = request.clone().header("X-REQUEST-ID", valid_id).send(&service.base).await;
            assert!(response.status.as_u16() == status || status == 204, "{request}: {response:?}");
            assert_eq!(response.header("x-request-id"), Some(valid_id), "{request}: {response:?}");
            let to_browsers = (response.header("x-content-type-options"), response.header("cache-control"));
            // A web page is revalidated each time, and its unchanged files are not sent again.
            let cache = if response.header("content-type").is_some_and(|kind| kind.starts_with("text/html")) {
                "no-cache"
            } else {
                "no-store"
            };
            assert_eq!(to_browsers, (Some("nosniff"), Some(cache)), "{request}: {response:?}");
            if response.status.as_u16() >= 400 {
                assert_eq!(response.string("requestId"), valid_id);
            }
        }
        let bare = request.clone();
        let twice = request.clone().header("x-request-id", "one").header("x-request-id", "two");
        let others = not_ids.map(|not_id| request.clone().header("x-request-id", not_id));
        for request in others.into_iter().chain([bare, twice]) {
            let response = request.send(&service.base).await;
            let id = response.header("x-request-id").unwrap_or_else(|| panic!("{request}: {response:?}")).to_owned();
            assert!((1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()), "{request}: {id}");
            assert_eq!(response.headers.get_all("x-request-id").iter().count(), 1, "{request}: {response:?}");
            generated.push(id);
        }
    }
    let count = generated.len();
    generated.sort_unstable();
    generated.dedup();
    assert_eq!(generated.len(), count, "an id was generated twice, or an invalid id was accepted");
}

#[tokio::test]
async fn a_panic_is_reported_as_an_internal_error() {
    let service = Service::start(&[]).await;
    let metrics = sessiond::metrics::install().expect("the only recorder of this process");
    // Handlers read the clock that the test injects. This clock panics.
    let broken = Arc::new(|| panic!("the clock has a secret"));
    let credentials = service.app.credentials.clone();
    let redis = RedisAddress::from_url(&redis::shared_url()).expect("a good URL");
    let app = bootstrap::app_state(&service.config, redis, credentials, broken).expect("an app");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    let (connections, second) = (bootstrap::connection_settings(&service.config), Duration::from_secs(1));
    tokio::spawn(server::serve(listener, http::Api::new(app), connections, second, std::future::pending()));
    for request in [
        RawRequest::new("POST", "/api/sessions").json(r#"{"businessId":"b","userId":"u"}"#),
        RawRequest::new("GET", format!("/api/sessions/{UNKNOWN_ID}")),
        RawRequest::new("GET", "/api/sessions/business/b/active"),
    ] {
        let response = request.header("x-request-id", "panicking").send(&base).await;
        response.expect_problem(500, "internal");
        assert_eq!(response.header("x-request-id"), Some("panicking"));
        assert!(!response.text.contains("secret"), "the response discloses the cause: {response:?}");
        RawRequest::new("GET", "/livez").send(&base).await.expect(200);
    }
    let rendered = metrics.render();
    let panics = rendered.lines().find_map(|line| line.strip_prefix("sessiond_http_panics_total "));
    // Other tests of this process may increase the counter, too.
    assert!(panics.is_some_and(|count| count.parse().is_ok_and(|count: u32| count >= 3)), "{rendered}");
}
