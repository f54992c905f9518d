//! Compares the `OpenAPI` document with the service, in both directions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use jsonschema::{Draft, Validator};
use reqwest::Method;
use serde_json::{Value, json};
use sessiond::auth::Scope;
use tempfile::TempDir;

use crate::support::credentials::api_key;
use crate::support::service::{Answer, Service};

/// The operations of the service: `docs/api.md`, Endpoints.
const OPERATIONS: [(&str, &str); 26] = [
    ("get", "/api/sessions/business/{businessId}/user/{userId}/export"),
    ("post", "/api/sessions/{sessionId}/turns"),
    ("get", "/api/sessions/{sessionId}/turns/{turnId}"),
    ("get", EVENTS),
    ("get", BUSINESS_EVENTS),
    ("post", "/api/sessions/{sessionId}/turns/{turnId}/chunks"),
    ("post", "/api/sessions/{sessionId}/turns/{turnId}/end"),
    ("post", "/api/sessions/{sessionId}/turns/{turnId}/cancel"),
    ("post", "/api/sessions"),
    ("get", "/api/sessions/{sessionId}"),
    ("patch", "/api/sessions/{sessionId}"),
    ("delete", "/api/sessions/{sessionId}"),
    ("get", "/api/sessions/{sessionId}/messages"),
    ("post", "/api/sessions/{sessionId}/messages"),
    ("get", MESSAGE),
    ("patch", MESSAGE),
    ("delete", MESSAGE),
    ("get", "/api/sessions/business/{businessId}/active"),
    ("get", "/api/sessions/business/{businessId}/user/{userId}/active"),
    ("get", "/api/sessions/business/{businessId}/user/{userId}/history"),
    ("delete", "/api/sessions/business/{businessId}/user/{userId}"),
    ("get", WHOAMI),
    ("get", "/livez"),
    ("get", "/readyz"),
    ("get", "/openapi.json"),
    ("get", "/docs"),
];
/// Needs a credential, but no scope.
const WHOAMI: &str = "/api/whoami";
/// The error codes (`docs/api.md`, Errors), except `overloaded`, which needs a service under overload.
const CODES: [&str; 27] = [
    "turn_not_found",
    "turn_open",
    "turn_closed",
    "chunk_gap",
    "chunk_conflict",
    "unauthorized",
    "forbidden",
    "rate_limited",
    "invalid_request",
    "session_not_found",
    "no_active_session",
    "message_not_found",
    "route_not_found",
    "method_not_allowed",
    "request_timeout",
    "payload_too_large",
    "unsupported_media_type",
    "session_not_active",
    "another_session_active",
    "message_id_conflict",
    "concurrent_update",
    "version_mismatch",
    "store_unavailable",
    "store_full",
    "store_busy",
    "clock_skew",
    "internal",
];
/// Statuses that need a fault, or a request that HTTP clients do not send. These tests do not cause them.
const FAULTS: [&str; 5] = ["408", "414", "431", "500", "503"];
/// A response that needs a race. `messages::one` shows that patches are retried.
const RACES: [(&str, &str); 1] = [("updateMessage", "409")];
/// Headers with a meaning for clients. A response has one exactly if the document names it.
const HEADERS: [&str; 10] = [
    "ETag",
    "Location",
    "Link",
    "X-Total-Count",
    "X-Request-Id",
    "Retry-After",
    "Allow",
    "WWW-Authenticate",
    "RateLimit",
    "RateLimit-Policy",
];
/// Documented headers that are absent if there is no further page, or no credential that has a rate limit.
const OPTIONAL_HEADERS: [&str; 3] = ["Link", "RateLimit", "RateLimit-Policy"];
const UNKNOWN_SESSION: &str = "/api/sessions/f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e";
const SESSION: &str = "/api/sessions/{sessionId}";
const MESSAGES: &str = "/api/sessions/{sessionId}/messages";
const MESSAGE: &str = "/api/sessions/{sessionId}/messages/{messageId}";
const TURNS: &str = "/api/sessions/{sessionId}/turns";
const TURN: &str = "/api/sessions/{sessionId}/turns/{turnId}";
const EVENTS: &str = "/api/sessions/{sessionId}/events";
const BUSINESS_EVENTS: &str = "/api/sessions/business/{businessId}/events";
const JSON: &str = "application/json";
/// The members of a message or a session that are sometimes absent.
const OPTIONAL_MEMBERS: [&str; 4] = ["finishReason", "lastMessage", "redactedAt", "turn"];

/// The generated document.
struct Document(Value);

impl Document {
    fn generated() -> Self {
        Self(serde_json::to_value(sessiond::http::document()).expect("JSON"))
    }

    /// Every operation: method, path, and its description in the document.
    fn operations(&self) -> Vec<(&str, &str, &Value)> {
        let paths = self.0["paths"].as_object().expect("paths");
        paths
            .iter()
            .flat_map(|(path, item)| {
                let operations = item.as_object().expect("operations").iter();
                operations.map(move |(method, operation)| (method.as_str(), path.as_str(), operation))
            })
            .collect()
    }

    fn operation(&self, method: &str, path: &str) -> &Value {
        let operation = &self.0["paths"][path][method];
        assert!(operation.is_object(), "{method} {path} is not documented");
        operation
    }

    fn schema(&self, name: &str) -> &Value {
        let schema = &self.0["components"]["schemas"][name];
        assert!(schema.is_object(), "no schema {name}");
        schema
    }

    /// The target of a `$ref`, or the value itself if it is none.
    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        let Some(reference) = value["$ref"].as_str() else {
            return value;
        };
        let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} is outside of the document"));
        self.0.pointer(pointer).unwrap_or_else(|| panic!("{reference} has no target"))
    }

    fn validator(&self, schema: &Value) -> Validator {
        let mut whole = schema.clone();
        whole["components"] = self.0["components"].clone();
        let options = jsonschema::options().with_draft(Draft::Draft202012).should_validate_formats(true);
        options.build(&whole).unwrap_or_else(|error| panic!("{error}: {schema}"))
    }

    /// Panics unless the value is valid for the schema.
    fn check(&self, schema: &Value, value: &Value, what: &str) {
        let validator = self.validator(schema);
        let errors: Vec<_> =
            validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{what}: {errors:#?} in {value}");
    }
}

/// Visits a JSON value and every value inside it, with its path.
fn walk<'a>(path: &str, value: &'a Value, visit: &mut impl FnMut(&str, &'a Value)) {
    visit(path, value);
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, member)| walk(&format!("{path}/{name}"), member, visit));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| walk(&format!("{path}/{index}"), item, visit));
        }
        _ => {}
    }
}

fn names(value: &Value) -> BTreeSet<&str> {
    match value {
        Value::Object(members) => members.keys().map(String::as_str).collect(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
        _ => BTreeSet::new(),
    }
}

#[tokio::test]
async fn committed_document_is_up_to_date() {
    let generated = sessiond::http::document().to_pretty_json().expect("JSON");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let committed = std::fs::read_to_string(path).expect("openapi.json; write it: cargo run -- openapi > openapi.json");
    assert!(committed == format!("{generated}\n"), "openapi.json is out of date: cargo run -- openapi > openapi.json");
    let served = Service::start(&[]).await.get("/openapi.json").await.expect(200);
    assert!(served.text == generated, "the served document differs from the printed one");
}

#[test]
fn operations_are_those_of_the_contract() {
    let document = Document::generated();
    let documented: BTreeSet<_> = document.operations().into_iter().map(|(method, path, _)| (method, path)).collect();
    assert_eq!(documented, BTreeSet::from(OPERATIONS));
}

#[test]
fn every_operation_is_described() {
    let document = Document::generated();
    let tags: BTreeSet<_> =
        document.0["tags"].as_array().expect("tags").iter().filter_map(|tag| tag["name"].as_str()).collect();
    let mut ids = BTreeSet::new();
    for (method, path, operation) in document.operations() {
        let what = format!("{method} {path}");
        assert!(ids.insert(operation["operationId"].as_str().expect("an id")), "{what}: duplicate operationId");
        assert!(operation["summary"].as_str().is_some_and(|summary| !summary.is_empty()), "{what} has no summary");
        let of = names(&operation["tags"]);
        assert!(of.len() == 1 && of.is_subset(&tags), "{what}: {of:?}");
        let responses = operation["responses"].as_object().expect("responses");
        assert!(responses.keys().any(|status| status.starts_with('2')), "{what} has no response for success");
        for (status, response) in responses {
            assert!(response["description"].as_str().is_some_and(|text| !text.is_empty()), "{what} {status}");
            let contents = response["content"].as_object().map(serde_json::Map::len).unwrap_or_default();
            assert_eq!(contents, usize::from(!["204", "304"].contains(&status.as_str())), "{what} {status}");
            for content in response["content"].as_object().into_iter().flat_map(serde_json::Map::values) {
                assert!(content["schema"].is_object(), "{what} {status} has no schema");
            }
            let problem = response["content"]["application/problem+json"].is_object();
            assert_eq!(problem, !status.starts_with(['2', '3']), "{what} {status}");
        }
        let parameters = operation["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
        let parameters: Vec<_> = parameters.iter().map(|parameter| document.resolve(parameter)).collect();
        let of_path = parameters.iter().filter(|parameter| parameter["in"] == "path").count();
        let wanted: Vec<_> = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
        assert_eq!(of_path, wanted.len(), "{what}");
        for parameter in &parameters {
            let name = parameter["name"].as_str().expect("a name");
            assert!(parameter["description"].is_string() && parameter["schema"].is_object(), "{what} {name}");
            assert_eq!(parameter["required"] == true, wanted.contains(&name), "{what} {name}");
        }
        let has_body = ["post", "patch"].contains(&method) && !path.ends_with("/cancel");
        assert_eq!(operation["requestBody"]["required"] == true, has_body, "{what}");
        assert_eq!(names(&operation["requestBody"]["content"]).contains(JSON), has_body, "{what}");
    }
}

#[test]
fn references_have_a_target_and_schemas_compile() {
    let document = Document::generated();
    assert_eq!(document.0["openapi"].as_str().map(|version| &version[..4]), Some("3.1."));
    let (mut schemas, mut references) = (0, 0);
    walk("", &document.0, &mut |path, value| {
        if value["$ref"].is_string() {
            document.resolve(value);
            references += 1;
        }
        // OpenAPI 3.1 has the type null. `nullable` is of 3.0, and validators would ignore it.
        assert!(value.get("nullable").is_none() || path.ends_with("/properties"), "{path} is of OpenAPI 3.0");
        let (parent, name) = path.rsplit_once('/').unwrap_or_default();
        if name == "schema" || parent == "/components/schemas" || parent.ends_with("/properties") {
            document.validator(value);
            jsonschema::draft202012::meta::validate(value).unwrap_or_else(|error| panic!("{path}: {error}"));
            schemas += 1;
        }
    });
    assert!(schemas > 100 && references > 100, "only {schemas} schemas and {references} references found");
}

#[test]
fn examples_are_valid_for_their_schemas() {
    let document = Document::generated();
    let mut examples = 0;
    for (name, schema) in document.0["components"]["schemas"].as_object().expect("schemas") {
        if let Some(example) = schema.get("example") {
            document.check(schema, example, name);
            examples += 1;
        }
    }
    for (method, path, operation) in document.operations() {
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let parameter = document.resolve(parameter);
            if let Some(example) = parameter.get("example") {
                document.check(&parameter["schema"], example, &format!("{method} {path}"));
                examples += 1;
            }
        }
    }
    assert!(examples >= 9, "only {examples} examples found");
}

#[test]
fn schemas_name_every_member() {
    let document = Document::generated();
    for name in ["Session", "Message", "Turn"] {
        let schema = document.schema(name);
        let example = names(&schema["example"]);
        let mut properties = names(&schema["properties"]);
        properties.retain(|member| !OPTIONAL_MEMBERS.contains(member));
        assert_eq!((properties, names(&schema["required"])), (example.clone(), example), "{name}");
    }
    for name in [
        "GetOrCreateSession",
        "UpdateSession",
        "AppendMessage",
        "UpdateMessage",
        "BeginTurnBody",
        "AppendChunksBody",
        "EndTurnBody",
    ] {
        assert_eq!(document.schema(name)["additionalProperties"], false, "{name}: unknown members are rejected");
    }
    for (name, member) in [
        ("Session", "metadata"),
        ("Message", "metadata"),
        ("GetOrCreateSession", "metadata"),
        ("UpdateSession", "metadata"),
        ("UpdateMessage", "metadata"),
    ] {
        let metadata = &document.schema(name)["properties"][member];
        assert_eq!(metadata["additionalProperties"], json!({}), "{name}: metadata allows any member");
    }
    let codes = names(&document.schema("Problem")["properties"]["code"]["enum"]);
    let missing: Vec<_> = CODES.into_iter().filter(|code| !codes.contains(code)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Calls a service and checks each response against the document.
struct CheckedClient {
    document: Document,
    service: Service,
    /// Operation id and status of every response so far.
    reached: BTreeSet<(String, String)>,
    codes: BTreeSet<String>,
    /// Operation id and relation of every link so far.
    links: BTreeSet<(String, String)>,
}

/// A request, and the path template of its operation.
struct Call<'a> {
    method: Method,
    template: &'a str,
    path: String,
    headers: Vec<(&'a str, &'a str)>,
    body: Option<Value>,
}

fn call<'a>(method: Method, template: &'a str, path: &str) -> Call<'a> {
    Call { method, template, path: path.to_owned(), headers: Vec::new(), body: None }
}

impl<'a> Call<'a> {
    fn json(mut self, body: Value) -> Self {
        self.body = Some(body);
        self.header("content-type", JSON)
    }

    fn header(mut self, name: &'a str, value: &'a str) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value));
        self
    }
}

impl CheckedClient {
    async fn start() -> Self {
        let (document, service) = (Document::generated(), Service::start(&[]).await);
        Self { document, service, reached: BTreeSet::new(), codes: BTreeSet::new(), links: BTreeSet::new() }
    }

    async fn get(&mut self, template: &str, path: &str, status: u16) -> Answer {
        self.call(call(Method::GET, template, path), status).await
    }

    /// Sends a request. Panics unless the response has this status and is as documented.
    async fn call(&mut self, call: Call<'_>, status: u16) -> Answer {
        let body = call.body.as_ref().map(Value::to_string).unwrap_or_default().into_bytes();
        let response = self.service.send(call.method.clone(), &call.path, &call.headers, body).await.expect(status);
        let what = format!("{} {}: {}", call.method, call.path, response.status);
        let operation = self.document.operation(&call.method.as_str().to_lowercase(), call.template);
        let id = operation["operationId"].as_str().expect("an id").to_owned();
        let documented = &operation["responses"][status.to_string()];
        assert!(documented.is_object(), "{what} is not documented");
        if let (true, Some(body)) = (status < 300, &call.body) {
            let declared =
                call.headers.iter().find(|(name, _)| *name == "content-type").map_or(JSON, |(_, value)| value);
            let schema = &operation["requestBody"]["content"][declared]["schema"];
            assert!(schema.is_object(), "{what}: {declared} is accepted and not documented");
            self.document.check(schema, body, &format!("{what}: the request"));
        }
        self.check_body(documented, &response, &what);
        self.check_headers(documented, &response, &what);
        if status >= 400 {
            let code = response.expect_problem(status, &response.string("code")).string("code");
            let description = documented["description"].as_str().expect("a description");
            assert!(description.contains(&format!("`{code}`")), "{what}: {code} is not described");
            self.codes.insert(code);
        }
        for relation in ["prev", "next"].into_iter().filter(|relation| response.link(relation).is_some()) {
            self.links.insert((id.clone(), relation.to_owned()));
        }
        self.reached.insert((id, status.to_string()));
        response
    }

    fn check_body(&self, documented: &Value, response: &Answer, what: &str) {
        let Some(contents) = documented["content"].as_object() else {
            let has_body = !response.text.is_empty() || response.header("content-type").is_some();
            assert!(!has_body, "{what} has a body: {response:?}");
            return;
        };
        let content_type = response.header("content-type").expect("a content type");
        let essence = content_type.split(';').next().unwrap_or_default();
        let content = contents.get(essence).unwrap_or_else(|| panic!("{what}: {content_type} is not documented"));
        // Each event of a stream has this schema. Streams are not read here.
        if essence == "text/event-stream" {
            return;
        }
        let body = if essence.ends_with("json") && !essence.ends_with("ndjson") {
            response.json()
        } else {
            Value::from(response.text.as_str())
        };
        self.document.check(&content["schema"], &body, what);
    }

    fn check_headers(&self, documented: &Value, response: &Answer, what: &str) {
        let documented_names = names(&documented["headers"]);
        for name in HEADERS {
            let value = response.header(name);
            assert_eq!(
                documented_names.contains(name),
                value.is_some() || (OPTIONAL_HEADERS.contains(&name) && documented_names.contains(name)),
                "{what}: {name} in {response:?}"
            );
            if let Some(value) = value {
                let schema = &self.document.resolve(&documented["headers"][name])["schema"];
                let typed =
                    if schema["type"] == "integer" { value.parse::<u64>().map(Value::from) } else { Ok(value.into()) };
                self.document.check(schema, &typed.expect("a number"), &format!("{what}: {name}"));
            }
        }
        assert!(documented_names.iter().all(|name| HEADERS.contains(name)), "{what}: {documented_names:?}");
    }

    /// Documented operations and statuses that no response had so far.
    fn not_reached(&self) -> BTreeSet<(String, String)> {
        let documented = self.document.operations().into_iter().flat_map(|(_, _, operation)| {
            let id = operation["operationId"].as_str().expect("an id");
            names(&operation["responses"]).into_iter().map(move |status| (id.to_owned(), status.to_owned()))
        });
        documented.filter(|pair| !self.reached.contains(pair)).collect()
    }

    async fn post_session(&mut self, body: Value, status: u16) -> Answer {
        self.call(call(Method::POST, "/api/sessions", "/api/sessions").json(body), status).await
    }

    /// Sends bodies that every operation with a body rejects.
    async fn send_invalid_bodies(&mut self, method: Method, template: &str, path: &str) {
        let make = || call(method.clone(), template, path);
        self.call(make().json(json!({"unknown": 1})), 400).await;
        self.call(make().json(json!({"content": "x".repeat(300 * 1024)})), 413).await;
        self.call(make().json(json!({})).header("content-type", "text/plain"), 415).await;
    }

    /// Calls the operations of `/api/sessions` and `/api/sessions/{sessionId}`.
    async fn drive_sessions(&mut self) {
        let user = json!({"businessId": "b", "userId": "u"});
        let first = self.post_session(user.clone(), 201).await.string("sessionId");
        self.post_session(user.clone(), 200).await;
        let second = self
            .post_session(
                json!({
                    "businessId": "b", "userId": "u", "locationId": "l", "sessionType": "t", "title": "t",
                    "metadata": {"k": [1, null]}, "ifActive": "replace",
                }),
                201,
            )
            .await
            .string("sessionId");
        self.send_invalid_bodies(Method::POST, "/api/sessions", "/api/sessions").await;
        let (first, second) = (format!("/api/sessions/{first}"), format!("/api/sessions/{second}"));
        let patch = |path: &str| call(Method::PATCH, SESSION, path);
        self.get(SESSION, &first, 200).await;
        self.call(call(Method::GET, SESSION, &first).header("if-none-match", "\"1\""), 200).await;
        self.call(call(Method::GET, SESSION, &first).header("if-none-match", "\"2\""), 304).await;
        self.get(SESSION, UNKNOWN_SESSION, 404).await;
        self.get(SESSION, "/api/sessions/1", 404).await;
        self.call(patch(&second).json(json!({})), 200).await;
        let merge = patch(&second).json(json!({"title": null, "metadata": {"k": null, "l": {}}}));
        self.call(merge.header("content-type", "application/merge-patch+json"), 200).await;
        self.call(patch(UNKNOWN_SESSION).json(json!({})), 404).await;
        let rejected = self.call(patch(&first).json(json!({"status": "active"})), 409).await;
        assert!(second.ends_with(&rejected.string("activeSessionId")));
        self.call(patch(&first).json(json!({"status": "active", "ifActive": "replace"})), 200).await;
        self.call(patch(&first).json(json!({"status": "ended"})), 200).await;
        self.call(patch(&first).json(json!({})).header("if-match", "\"0\""), 412).await;
        self.send_invalid_bodies(Method::PATCH, SESSION, &second).await;
        let delete = |path: &str| call(Method::DELETE, SESSION, path);
        self.call(delete(&first).header("if-match", "\"0\""), 412).await;
        self.call(delete(&first), 204).await;
        self.call(delete(&first), 404).await;
    }

    /// Calls the operations of `/api/sessions/{sessionId}/messages`.
    async fn drive_messages(&mut self) {
        let session = self.service.session_of("talker").await;
        let path = format!("/api/sessions/{session}/messages");
        let post = |body: Value| call(Method::POST, MESSAGES, &path).json(body);
        let known = json!({"messageId": "m", "role": "user", "content": "c", "metadata": {"k": 1}});
        self.call(post(known.clone()), 201).await;
        self.call(post(known.clone()), 200).await;
        self.call(post(json!([known])), 200).await;
        let contents = [json!("c"), json!(1), json!(1.5), json!(false), json!({"k": null}), json!([null])];
        let several: Vec<_> = contents.iter().zip(["user", "assistant", "system", "tool", "user", "user"]).collect();
        let several: Vec<_> =
            several.into_iter().map(|(content, role)| json!({"role": role, "content": content})).collect();
        self.call(post(json!(several)), 201).await;
        self.call(post(json!({"messageId": "m", "role": "user", "content": "other"})), 409).await;
        self.send_invalid_bodies(Method::POST, MESSAGES, &path).await;
        self.get(MESSAGES, &path, 200).await;
        self.get(MESSAGES, &format!("{path}?limit=1&before=3"), 200).await;
        self.get(MESSAGES, &format!("{path}?limit=1000&after=6"), 200).await;
        let before_all = self.get(MESSAGES, &format!("{path}?before=0"), 200).await;
        assert_eq!(before_all.json(), json!([]));
        let next = self.get(MESSAGES, &before_all.link("next").expect("newer messages"), 200).await;
        assert_eq!(next.json()[0]["seq"], 1);
        self.get(MESSAGES, &format!("{path}?limit=0"), 400).await;
        let unknown = format!("{UNKNOWN_SESSION}/messages");
        self.get(MESSAGES, &unknown, 404).await;
        self.call(call(Method::POST, MESSAGES, &unknown).json(json!({"role": "user", "content": 1})), 404).await;
        self.service.advance(Duration::from_secs(31 * 60));
        self.call(post(json!({"role": "user", "content": 1})), 409).await;
        self.get(SESSION, &format!("/api/sessions/{session}"), 200).await;
    }

    /// Calls the operations of `/api/sessions/{sessionId}/messages/{messageId}`.
    async fn drive_message(&mut self) {
        let messages = format!("/api/sessions/{}/messages", self.service.session_of("reviewer").await);
        self.service.post(&messages, json!({"messageId": "a/b", "role": "user", "content": 1})).await.expect(201);
        let path = format!("{messages}/a%2Fb");
        let change = |path: &str, body: Value| call(Method::PATCH, MESSAGE, path).json(body);
        let delete = |path: &str| call(Method::DELETE, MESSAGE, path);
        self.get(MESSAGE, &path, 200).await;
        self.call(change(&path, json!({"metadata": {"k": [null]}})), 200).await;
        let merge = change(&path, json!({"metadata": null})).header("content-type", "application/merge-patch+json");
        self.call(merge, 200).await;
        self.send_invalid_bodies(Method::PATCH, MESSAGE, &path).await;
        self.call(delete(&path), 204).await;
        self.get(MESSAGE, &path, 200).await;
        self.get(MESSAGES, &messages, 200).await;
        let long = format!("{messages}/{}", "x".repeat(129));
        for (path, status) in
            [(format!("{messages}/c"), 404), (format!("{UNKNOWN_SESSION}/messages/c"), 404), (long, 400)]
        {
            self.get(MESSAGE, &path, status).await;
            self.call(change(&path, json!({"metadata": {}})), status).await;
            self.call(delete(&path), status).await;
        }
    }

    /// Calls the operations of turns.
    async fn drive_turns(&mut self) {
        let session = self.post_session(json!({"businessId": "b", "userId": "turns"}), 201).await.string("sessionId");
        let turns = format!("/api/sessions/{session}/turns");
        let (chunks, end, cancel) = (format!("{TURN}/chunks"), format!("{TURN}/end"), format!("{TURN}/cancel"));
        let begin = |turn_id: &str| call(Method::POST, TURNS, &turns).json(json!({"turnId": turn_id, "writer": "w"}));
        let some = |number: u64, from: u64| json!({"number": number, "from": from, "chunks": ["x"]});
        let over = |number: u64| json!({"number": number, "status": "completed"});
        let path = |rest: &str| format!("{turns}/t{rest}");
        self.call(begin("t"), 201).await;
        self.call(begin("t"), 200).await;
        self.call(begin("u"), 409).await;
        self.call(call(Method::POST, &chunks, &path("/chunks")).json(some(1, 0)), 200).await;
        self.call(call(Method::POST, &chunks, &path("/chunks")).json(some(1, 9)), 409).await;
        let conflict = json!({"number": 1, "from": 0, "chunks": ["y"]});
        self.call(call(Method::POST, &chunks, &path("/chunks")).json(conflict), 409).await;
        self.get(TURN, &path("?from=1"), 200).await;
        self.get(TURN, &format!("{turns}/latest"), 200).await;
        self.get(TURN, &path("?from=x"), 400).await;
        self.call(call(Method::POST, &cancel, &path("/cancel")), 202).await;
        self.call(call(Method::POST, &end, &path("/end")).json(over(2)), 409).await;
        self.call(call(Method::POST, &end, &path("/end")).json(over(1)), 200).await;
        self.call(call(Method::POST, &cancel, &path("/cancel")), 409).await;
        let long = format!("{turns}/{}", "x".repeat(129));
        self.call(call(Method::POST, &cancel, &format!("{long}/cancel")), 400).await;
        self.send_invalid_bodies(Method::POST, TURNS, &turns).await;
        self.send_invalid_bodies(Method::POST, &chunks, &path("/chunks")).await;
        self.send_invalid_bodies(Method::POST, &end, &path("/end")).await;
        let unknown = format!("{UNKNOWN_SESSION}/turns");
        self.call(call(Method::POST, TURNS, &unknown).json(json!({"turnId": "t", "writer": "w"})), 404).await;
        for path in [format!("{unknown}/t"), format!("{turns}/none")] {
            self.get(TURN, &path, 404).await;
            self.call(call(Method::POST, &chunks, &format!("{path}/chunks")).json(some(1, 0)), 404).await;
            self.call(call(Method::POST, &end, &format!("{path}/end")).json(over(1)), 404).await;
            self.call(call(Method::POST, &cancel, &format!("{path}/cancel")), 404).await;
        }
    }

    /// Opens event streams.
    async fn drive_events(&mut self) {
        let session = self.post_session(json!({"businessId": "b", "userId": "events"}), 201).await.string("sessionId");
        let events = format!("/api/sessions/{session}/events");
        self.get(EVENTS, &format!("{events}?last=1"), 200).await;
        self.get(EVENTS, &format!("{events}?last=101"), 400).await;
        self.get(EVENTS, &format!("{UNKNOWN_SESSION}/events"), 404).await;
        self.get(BUSINESS_EVENTS, "/api/sessions/business/b/events", 200).await;
        self.get(BUSINESS_EVENTS, &format!("/api/sessions/business/{}/events", "x".repeat(129)), 400).await;
    }

    /// Calls the operations of businesses and users.
    async fn drive_businesses(&mut self) {
        let (active, of_user) =
            ("/api/sessions/business/{businessId}/active", "/api/sessions/business/{businessId}/user/{userId}");
        let (of_user_active, history) = (format!("{of_user}/active"), format!("{of_user}/history"));
        for user in ["x", "x", "y"] {
            self.post_session(json!({"businessId": "c", "userId": user, "ifActive": "replace"}), 201).await;
        }
        let long = "x".repeat(129);
        let first = self.get(active, "/api/sessions/business/c/active?limit=1", 200).await;
        self.get(active, &first.link("next").expect("a next page"), 200).await;
        self.get(active, &format!("/api/sessions/business/{long}/active"), 400).await;
        let first = self.get(&history, "/api/sessions/business/c/user/x/history?limit=1", 200).await;
        self.get(&history, &first.link("next").expect("a next page"), 200).await;
        self.get(&history, "/api/sessions/business/c/user/x/history?cursor=x", 400).await;
        self.get(&of_user_active, "/api/sessions/business/c/user/x/active", 200).await;
        self.get(&of_user_active, "/api/sessions/business/c/user/z/active", 404).await;
        let session = self.service.post("/api/sessions", json!({"businessId": "c", "userId": "x"})).await;
        let messages = format!("/api/sessions/{}/messages", session.string("sessionId"));
        self.service.post(&messages, json!({"role": "user", "content": [null]})).await.expect(201);
        for (template, path) in [
            (active, "/api/sessions/business/c/active"),
            (&history, "/api/sessions/business/c/user/x/history"),
            (&of_user_active, "/api/sessions/business/c/user/x/active"),
            (SESSION, messages.trim_end_matches("/messages")),
        ] {
            self.get(template, &format!("{path}?include=lastMessage,turn"), 200).await;
            self.get(template, &format!("{path}?include=turns"), 400).await;
        }
        self.get(&of_user_active, &format!("/api/sessions/business/c/user/{long}/active"), 400).await;
        let export = format!("{of_user}/export");
        self.get(&export, "/api/sessions/business/c/user/x/export", 200).await;
        self.get(&export, &format!("/api/sessions/business/c/user/{long}/export"), 400).await;
        let erase = |user: &str| call(Method::DELETE, of_user, &format!("/api/sessions/business/c/user/{user}"));
        self.call(erase("x"), 200).await;
        self.call(erase(&long), 400).await;
    }

    /// Makes a service with API keys reject every operation that is not public, because of a missing credential, a
    /// missing scope, and the rate limit.
    async fn drive_rejections(&mut self) {
        let folder = TempDir::new().expect("a folder");
        let keys = folder.path().join("keys.toml");
        let (reader, reader_entry) = api_key("reader", &[], &[Scope::Read], None);
        let (writer, writer_entry) = api_key("writer", &[], &[Scope::Write], None);
        std::fs::write(&keys, format!("{reader_entry}\n{writer_entry}")).expect("a file");
        let flags = ["--api-keys-file", keys.to_str().expect("a path"), "--rate-limit"];
        self.service = Service::start(&[flags.as_slice(), &["0"]].concat()).await;
        let mut limited = Service::start(&[flags.as_slice(), &["1"]].concat()).await;
        for (method, template) in OPERATIONS.into_iter().filter(|(_, path)| path.starts_with("/api/")) {
            let path = template.replace("{sessionId}", "1").replace("{messageId}", "m").replace("{turnId}", "t");
            let path = path.replace("{businessId}", "b").replace("{userId}", "u");
            let method: Method = method.to_uppercase().parse().expect("a method");
            let other = if method == Method::GET { &writer } else { &reader };
            self.call(call(method.clone(), template, &path), 401).await;
            let lacks_scope = if template == WHOAMI { 200 } else { 403 };
            self.call(call(method.clone(), template, &path).header("x-api-key", other), lacks_scope).await;
            let headers = [("x-api-key", other.as_str())];
            while limited.send(method.clone(), &path, &headers, Vec::new()).await.status != 429 {}
            std::mem::swap(&mut self.service, &mut limited);
            let response = self.call(call(method, template, &path).header("x-api-key", other), 429).await;
            for name in ["ratelimit", "ratelimit-policy"] {
                assert!(response.header(name).is_some(), "{name}: {response:?}");
            }
            std::mem::swap(&mut self.service, &mut limited);
        }
    }
}

#[tokio::test]
async fn every_read_rejects_unknown_query_parameters() {
    let service = Service::start(&[]).await;
    let id = service.session_of("u").await;
    let reads = OPERATIONS.into_iter().filter(|(method, path)| *method == "get" && path.starts_with("/api/"));
    for (_, template) in reads {
        let path = template.replace("{sessionId}", &id).replace("{messageId}", "m").replace("{turnId}", "t");
        let path = path.replace("{businessId}", "b").replace("{userId}", "u");
        let rejected = service.get(&format!("{path}?unknown=1")).await.expect(400);
        assert_eq!(rejected.json()["errors"][0]["field"], "unknown", "{template}: {rejected:?}");
    }
    service.get("/livez?unknown=1").await.expect(200);
    // Other calls have no query parameters, and ignore a query.
    service.patch(&format!("/api/sessions/{id}?unknown=1"), json!({})).await.expect(200);
    let unknown_method = service.send(Method::PUT, "/api/sessions?unknown=1", &[], Vec::new()).await;
    assert!(unknown_method.expect(405).header("allow").is_some());
}

#[tokio::test]
async fn responses_are_as_documented() {
    let mut client = CheckedClient::start().await;
    client.drive_sessions().await;
    client.drive_messages().await;
    client.drive_message().await;
    client.drive_turns().await;
    client.drive_events().await;
    client.drive_businesses().await;
    for path in [WHOAMI, "/livez", "/readyz", "/openapi.json", "/docs"] {
        client.get(path, path, 200).await;
    }
    client.get(WHOAMI, &format!("{WHOAMI}?unknown=1"), 400).await;
    let page = client.get("/docs", "/docs", 200).await;
    let tag = page.header("etag").expect("an entity tag");
    client.call(call(Method::GET, "/docs", "/docs").header("if-none-match", tag), 304).await;
    client.drive_rejections().await;
    let not_reached = client.not_reached();
    let is_expected =
        |(id, status): &(String, String)| !FAULTS.contains(&status.as_str()) && !RACES.contains(&(id, status));
    let not_faults: Vec<_> = not_reached.iter().filter(|response| is_expected(response)).collect();
    assert!(not_faults.is_empty(), "documented, but never returned: {not_faults:?}");
    let pair = |(id, relation): (&str, &str)| (id.to_owned(), relation.to_owned());
    let links = [
        ("listActiveSessions", "next"),
        ("listMessages", "next"),
        ("listMessages", "prev"),
        ("listSessionHistory", "next"),
    ];
    assert_eq!(client.links, links.map(pair).into());
    let codes: BTreeSet<_> = client.codes.iter().map(String::as_str).collect();
    let unseen: BTreeSet<_> = BTreeSet::from(CODES).difference(&codes).copied().collect();
    let elsewhere = [
        // No documented operation returns these.
        "route_not_found",
        "method_not_allowed",
        // These need a fault, or a very large number of callers.
        "request_timeout",
        "store_unavailable",
        "store_full",
        "store_busy",
        "clock_skew",
        "internal",
        "concurrent_update",
    ];
    assert_eq!(unseen, elsewhere.into());
}

#[tokio::test]
async fn sessions_and_messages_have_exactly_the_documented_members() {
    let document = Document::generated();
    let service = Service::start(&[]).await;
    let created = service.get_or_create("u").await.expect(201);
    let path = format!("/api/sessions/{}", created.string("sessionId"));
    let ended = service.patch(&path, json!({"title": "t"})).await.expect(200);
    service.post(&format!("{path}/messages"), json!({"role": "user", "content": 1})).await.expect(201);
    let message = service.get(&format!("{path}/messages")).await.expect(200).json()[0].clone();
    let ended = [ended, service.patch(&path, json!({"status": "ended"})).await.expect(200)];
    let listed = service.get("/api/sessions/business/b/user/u/history").await.expect(200).json()[0].clone();
    let sessions = ended.iter().chain([&created]).map(Answer::json).chain([listed]);
    let rendered = sessions.map(|session| ("Session", session)).chain([("Message", message)]);
    for (name, value) in rendered {
        let mut properties = names(&document.schema(name)["properties"]);
        properties.retain(|member| !OPTIONAL_MEMBERS.contains(member));
        assert_eq!(names(&value), properties, "{name}");
    }
}

/// Values of every type, and around every bound of the contract that a schema can express.
fn values() -> Vec<Value> {
    let lengths = [1, 128, 129, 200, 201].map(|length| json!("💬".repeat(length)));
    let words = ["", ".", "..", "...", ".a", "return", "replace", "active", "ended", "expired", "user", "tool"]
        .map(Value::from);
    let others = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!([]),
        json!(["a"]),
        json!({}),
        json!({"a": null}),
        json!([{}]),
    ];
    lengths.into_iter().chain(words).chain(others).collect()
}

#[tokio::test]
async fn document_and_service_accept_the_same_bodies() {
    let document = Document::generated();
    let service = Service::start(&[]).await;
    let session = format!("/api/sessions/{}", service.session_of("u").await);
    let talk = format!("/api/sessions/{}/messages", service.session_of("talker").await);
    service.post(&talk, json!({"messageId": "m", "role": "user", "content": 1})).await.expect(201);
    let message = format!("{talk}/m");
    let turns = format!("/api/sessions/{}/turns", service.session_of("writer").await);
    let (chunks, end) = (format!("{TURN}/chunks"), format!("{TURN}/end"));
    let requests = [
        (
            Method::POST,
            "/api/sessions",
            "/api/sessions".to_owned(),
            "GetOrCreateSession",
            json!({"businessId": "b", "userId": "v"}),
        ),
        (Method::PATCH, SESSION, session, "UpdateSession", json!({})),
        (Method::POST, MESSAGES, talk, "AppendMessage", json!({"role": "user", "content": "c"})),
        (Method::PATCH, MESSAGE, message, "UpdateMessage", json!({"metadata": {}})),
        (Method::POST, TURNS, turns.clone(), "BeginTurnBody", json!({"turnId": "t", "writer": "w"})),
        (
            Method::POST,
            &chunks,
            format!("{turns}/t/chunks"),
            "AppendChunksBody",
            json!({"number": 1, "from": 0, "chunks": ["a"]}),
        ),
        (Method::POST, &end, format!("{turns}/t/end"), "EndTurnBody", json!({"number": 1, "status": "completed"})),
    ];
    for (method, template, path, schema, base) in requests {
        let operation = document.operation(&method.as_str().to_lowercase(), template);
        let validator = document.validator(&operation["requestBody"]["content"][JSON]["schema"]);
        let mut bodies = values();
        for name in names(&document.schema(schema)["properties"]).into_iter().chain(["unknown"]) {
            let mut without = base.clone();
            without.as_object_mut().expect("an object").remove(name);
            bodies.push(without);
            for value in values() {
                let mut body = base.clone();
                body[name] = value;
                bodies.push(json!([base, body]));
                bodies.push(body);
            }
        }
        bodies.extend([1, 100, 101].map(|count| json!(vec![base.clone(); count])));
        let (mut good, mut bad) = (0, 0);
        for body in bodies {
            let response =
                service.send(method.clone(), &path, &[("content-type", JSON)], body.to_string().into_bytes()).await;
            let is_good = response.status != 400;
            assert!(!response.status.is_server_error(), "{response:?}");
            assert_eq!(is_good, validator.is_valid(&body), "{method} {path} {body}: {response:?}");
            *(if is_good { &mut good } else { &mut bad }) += 1;
        }
        assert!(good > 3 && bad > 10, "{method} {path}: {good} good and {bad} bad bodies");
    }
}

#[tokio::test]
async fn document_and_service_accept_the_same_queries() {
    let document = Document::generated();
    let service = Service::start(&[]).await;
    let session = service.session_of("u").await;
    let turn = json!({"turnId": "t", "writer": "w"});
    service.post(&format!("/api/sessions/{session}/turns"), turn).await.expect(201);
    let path_of = |template: &str| {
        let path = template.replace("{sessionId}", &session).replace("{turnId}", "t");
        path.replace("{businessId}", "b").replace("{userId}", "u")
    };
    let numbers = ["-1", "0", "1", "2", "99", "100", "101", "1000", "1001", "9007199254740991", "9007199254740992"];
    let mut checked = BTreeMap::new();
    for (method, template, operation) in document.operations() {
        let parameters = operation["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
        let parameters = parameters.iter().map(|parameter| document.resolve(parameter));
        for parameter in parameters.filter(|parameter| parameter["schema"]["type"] == "integer") {
            let validator = document.validator(&parameter["schema"]);
            let name = parameter["name"].as_str().expect("a name");
            assert_eq!((method, &parameter["in"]), ("get", &json!("query")), "{template} {name}");
            for number in numbers {
                let response = service.get(&format!("{}?{name}={number}", path_of(template))).await;
                let value: Value = serde_json::from_str(number).expect("a number");
                let is_accepted = response.status == 200;
                assert_eq!(is_accepted, validator.is_valid(&value), "{template} {name}={number}: {response:?}");
                *checked.entry(name.to_owned()).or_insert(0) += 1;
            }
        }
    }
    let count = numbers.len();
    assert_eq!(
        checked,
        [("after", 2 * count), ("before", count), ("from", count), ("last", count), ("limit", 3 * count)]
            .map(|(name, count)| (name.to_owned(), count))
            .into()
    );
}
