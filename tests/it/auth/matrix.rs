//! The tenant matrix, generated from the `OpenAPI` document: every operation with every kind of caller. The test fails
//! for a new operation until `needs` lists it.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::{Value, json};
use sessiond::auth::{JwtAlgorithm, Scope};
use tempfile::TempDir;

use crate::support::credentials::{Signer, api_key, claims, jwt_flags, with};
use crate::support::service::{Answer, Service};

const UNKNOWN_ID: &str = "f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e";

/// How an operation determines whose sessions it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// It is public and needs no credential.
    Public,
    /// Its path names a business.
    Business,
    /// It reports on the caller. It needs a credential, but no scope.
    Principal,
    /// Its path or body names a user.
    User,
    /// It names a session by its id.
    Session,
    /// It names a session by its id, and rejects the token of a user.
    Writer,
}

/// What an operation needs. This table is independent of the service's table, which is under test.
struct Need {
    operation: &'static str,
    target: Target,
    scope: Scope,
    body: Value,
    success: u16,
}

fn needs() -> Vec<Need> {
    let need = |operation, target, scope, success| Need { operation, target, scope, body: Value::Null, success };
    let user = json!({"businessId": "b", "userId": "u"});
    vec![
        Need { body: user, ..need("getOrCreateSession", Target::User, Scope::Write, 200) },
        need("getSession", Target::Session, Scope::Read, 200),
        Need { body: json!({"title": "t"}), ..need("updateSession", Target::Session, Scope::Write, 200) },
        need("deleteSession", Target::Session, Scope::Write, 204),
        need("listMessages", Target::Session, Scope::Read, 200),
        Need {
            body: json!({"role": "user", "content": 1}),
            ..need("appendMessages", Target::Session, Scope::Write, 201)
        },
        need("getMessage", Target::Session, Scope::Read, 200),
        Need { body: json!({"metadata": {"a": 1}}), ..need("updateMessage", Target::Session, Scope::Write, 200) },
        need("redactMessage", Target::Session, Scope::Write, 204),
        Need { body: json!({"turnId": "t", "writer": "w"}), ..need("beginTurn", Target::Writer, Scope::Write, 200) },
        need("getTurn", Target::Session, Scope::Read, 200),
        Need {
            body: json!({"number": 1, "from": 0, "chunks": ["x"]}),
            ..need("appendChunks", Target::Writer, Scope::Write, 200)
        },
        Need { body: json!({"number": 1, "status": "failed"}), ..need("endTurn", Target::Writer, Scope::Write, 200) },
        need("cancelTurn", Target::Session, Scope::Write, 202),
        need("sessionEvents", Target::Session, Scope::Read, 200),
        need("businessEvents", Target::Business, Scope::Read, 200),
        need("listActiveSessions", Target::Business, Scope::Read, 200),
        need("getActiveSession", Target::User, Scope::Read, 200),
        need("listSessionHistory", Target::User, Scope::Read, 200),
        need("exportUser", Target::User, Scope::Read, 200),
        need("eraseUser", Target::User, Scope::Admin, 200),
        need("whoami", Target::Principal, Scope::Read, 200),
        need("livez", Target::Public, Scope::Read, 200),
        need("readyz", Target::Public, Scope::Read, 200),
        need("openapi", Target::Public, Scope::Read, 200),
        need("docs", Target::Public, Scope::Read, 200),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    None,
    Bad,
    Expired,
    WrongBusiness,
    WrongUser,
    MissingScope,
    Right,
}

impl Case {
    const ALL: [Self; 7] = [
        Self::None,
        Self::Bad,
        Self::Expired,
        Self::WrongBusiness,
        Self::WrongUser,
        Self::MissingScope,
        // Last, because it may change data.
        Self::Right,
    ];
}

/// How a credential is presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    BearerApiKey,
    XApiKey,
    Jwt,
}

/// A service with credentials of both kinds, for the callers of every case.
struct Fixture {
    service: Service,
    api_keys: BTreeMap<&'static str, String>,
    signer: Signer,
    stranger: Signer,
    _folder: TempDir,
}

impl Fixture {
    async fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        let all = Scope::ALL;
        let keys = [
            ("all", api_key("all", &[], &all, None)),
            ("right", api_key("right", &["b"], &all, Some("2999-01-01T00:00:00Z"))),
            ("expired", api_key("expired", &["b"], &all, Some("2020-01-01T00:00:00+01:00"))),
            ("wrong business", api_key("wrong", &["c", "d"], &all, None)),
            ("without read", api_key("no-read", &["b"], &[Scope::Write, Scope::Admin], None)),
            ("without write", api_key("no-write", &["b"], &[Scope::Read, Scope::Admin], None)),
            ("without admin", api_key("no-admin", &["b"], &[Scope::Read, Scope::Write], None)),
        ];
        let keys_file = folder.path().join("keys.toml");
        let entries: Vec<_> = keys.iter().map(|(_, (_, entry))| entry.as_str()).collect();
        std::fs::write(&keys_file, entries.join("\n")).expect("a file");
        let mut api_keys: BTreeMap<_, _> = keys.into_iter().map(|(name, (credential, _))| (name, credential)).collect();
        // A valid id with the secret of another key.
        let (_, secret) = api_keys["all"].split_once('.').expect("a secret");
        api_keys.insert("bad", format!("right.{secret}"));
        let (signer, stranger) = (Signer::new(JwtAlgorithm::EdDsa), Signer::new(JwtAlgorithm::EdDsa));
        let jwt_file = folder.path().join("jwt.pem");
        std::fs::write(&jwt_file, signer.key_file()).expect("a file");
        let mut flags = jwt_flags(JwtAlgorithm::EdDsa, &jwt_file);
        flags.extend(["--api-keys-file", keys_file.to_str().expect("a path")].map(str::to_owned));
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        Self { service: Service::start(&flags).await, api_keys, signer, stranger, _folder: folder }
    }

    /// Prepares an active session of user `u` in business `b` with a message, and a session in business `c`. Returns
    /// the id of the first one.
    async fn session(&self) -> String {
        let all = &self.api_keys["all"];
        let post = |body: Value| self.service.bearer(all, Method::POST, "/api/sessions", body);
        post(json!({"businessId": "c", "userId": "u"})).await;
        post(json!({"businessId": "b", "userId": "other"})).await;
        let session = post(json!({"businessId": "b", "userId": "u"})).await.string("sessionId");
        let message = json!({"messageId": "m", "role": "user", "content": "hello"});
        let path = format!("/api/sessions/{session}/messages");
        let appended = self.service.bearer(all, Method::POST, &path, message).await;
        assert!(appended.status.is_success(), "{appended:?}");
        let path = format!("/api/sessions/{session}/turns");
        let turn = json!({"turnId": "t", "writer": "w"});
        let began = self.service.bearer(all, Method::POST, &path, turn).await;
        assert!(began.status.is_success(), "{began:?}");
        session
    }

    /// The credential of a case, or `None` if the case does not exist for this kind.
    fn credential(&self, need: &Need, kind: Kind, case: Case) -> Option<String> {
        if kind == Kind::Jwt { Some(self.token(need, case)) } else { self.api_key(need, case) }
    }

    fn api_key(&self, need: &Need, case: Case) -> Option<String> {
        let name = match case {
            Case::None => return Some(String::new()),
            Case::Bad => "bad",
            Case::Expired => "expired",
            Case::WrongBusiness => "wrong business",
            // An API key belongs to a server, which may act for every user of its businesses.
            Case::WrongUser => return None,
            Case::MissingScope => match need.scope {
                Scope::Read => "without read",
                Scope::Write => "without write",
                Scope::Admin => "without admin",
            },
            Case::Right => "right",
        };
        Some(self.api_keys[name].clone())
    }

    fn token(&self, need: &Need, case: Case) -> String {
        let now = self.service.now();
        let own = claims("b", "u", now);
        // An operation on more than one user needs more than a user's token.
        let is_for_all = [Target::Business, Target::Writer].contains(&need.target) || need.scope == Scope::Admin;
        let right = if is_for_all { with(&own, "scope", "read write admin profile") } else { own.clone() };
        let claims = match case {
            Case::None => return String::new(),
            Case::Bad => return self.stranger.token(&right),
            Case::Expired => with(&right, "exp", now.0 / 1000 - 60),
            Case::WrongBusiness => with(&right, "businessId", "c"),
            Case::WrongUser => claims("b", "other", now),
            Case::MissingScope => {
                let left: Vec<_> = Scope::ALL.into_iter().filter(|scope| *scope != need.scope).collect();
                let words = left.into_iter().filter(|scope| is_for_all || *scope != Scope::Admin).map(Scope::as_str);
                with(&right, "scope", words.collect::<Vec<_>>().join(" "))
            }
            Case::Right => right,
        };
        self.signer.token(&claims)
    }
}

/// The expected status and code.
fn expected(need: &Need, case: Case) -> (u16, &'static str) {
    match case {
        _ if need.target == Target::Public => (need.success, ""),
        Case::Right => (need.success, ""),
        Case::None | Case::Bad | Case::Expired => (401, "unauthorized"),
        _ if need.target == Target::Principal => (need.success, ""),
        Case::WrongBusiness if need.target == Target::Writer => (404, "session_not_found"),
        Case::WrongBusiness | Case::WrongUser if need.target == Target::Session => (404, "session_not_found"),
        Case::WrongBusiness | Case::WrongUser | Case::MissingScope => (403, "forbidden"),
    }
}

/// A response without the values that differ between calls: request id, time and session id.
fn normalized(response: &Answer, session: &str) -> (u16, BTreeMap<String, String>, String) {
    let request_id = response.header("x-request-id").unwrap_or_default();
    let headers = response.headers.iter().filter(|(name, _)| !["date", "x-request-id"].contains(&name.as_str()));
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()));
    let text = response.text.replace(request_id, "<request>").replace(session, "<session>");
    (response.status.as_u16(), headers.collect(), text)
}

#[tokio::test]
async fn every_operation_accepts_only_authorized_callers() {
    let fixture = Fixture::start().await;
    let document = serde_json::to_value(sessiond::http::document()).expect("JSON");
    let (mut covered, mut cells, mut denied) = (BTreeSet::new(), 0, 0);
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let id = operation["operationId"].as_str().expect("an id");
            let need = needs().into_iter().find(|need| need.operation == id);
            let need = need.unwrap_or_else(|| panic!("{method} {path} is new: add {id} to `needs`"));
            covered.insert(need.operation);
            expect_documented(&need, operation);
            let method: Method = method.to_uppercase().parse().expect("a method");
            for kind in [Kind::BearerApiKey, Kind::XApiKey, Kind::Jwt] {
                for case in Case::ALL {
                    let Some(credential) = fixture.credential(&need, kind, case) else {
                        continue;
                    };
                    cells += 1;
                    let (status, _) = expected(&need, case);
                    denied += u32::from(status >= 400);
                    check_cell(&fixture, &need, (&method, path), (kind, case), &credential).await;
                }
            }
        }
    }
    let all: BTreeSet<_> = needs().iter().map(|need| need.operation).collect();
    assert_eq!(covered, all, "an operation no longer exists");
    // The last term is `whoami`, which accepts every valid credential.
    assert_eq!((cells, denied), (26 * (7 + 6 + 6), 21 * (6 + 5 + 5) + 3 * 3));
}

/// Panics unless the document lists the security requirements in `need`.
fn expect_documented(need: &Need, operation: &Value) {
    if need.target == Target::Public {
        assert_eq!(operation["security"], Value::Null, "{} is public", need.operation);
        return;
    }
    let is_callers = need.target == Target::Principal;
    let scopes = if is_callers { vec![] } else { vec![need.scope.as_str()] };
    assert_eq!(operation["security"], json!([{"bearer": scopes}, {"apiKey": scopes}]), "{}", need.operation);
    assert!(operation["responses"]["401"].is_object(), "{}", need.operation);
    assert_eq!(operation["responses"]["403"].is_object(), !is_callers, "{}", need.operation);
}

/// Makes one call with one credential and checks the response.
async fn check_cell(
    fixture: &Fixture,
    need: &Need,
    (method, template): (&Method, &str),
    (kind, case): (Kind, Case),
    credential: &str,
) {
    let what = format!("{} as {case:?} by {kind:?}", need.operation);
    let session = fixture.session().await;
    let bearer = format!("Bearer {credential}");
    let header = if kind == Kind::XApiKey { ("x-api-key", credential) } else { ("authorization", bearer.as_str()) };
    let headers = if case == Case::None { vec![] } else { vec![header] };
    let body = Some(&need.body).filter(|body| !body.is_null());
    let call = |session: &str| {
        let path = template.replace("{sessionId}", session).replace("{messageId}", "m").replace("{turnId}", "t");
        let path = path.replace("{businessId}", "b").replace("{userId}", "u");
        let (headers, method) = (headers.clone(), method.clone());
        async move { fixture.service.call_as(&headers, method, &path, body).await }
    };
    let (status, code) = expected(need, case);
    let before = fixture.service.probe.digest().await;
    let response = call(&session).await;
    assert_eq!(response.status.as_u16(), status, "{what}: {response:?}");
    if status < 400 {
        return;
    }
    assert!(fixture.service.probe.digest().await == before, "{what} changed Redis");
    response.expect_problem(status, code);
    let challenge = response.header("www-authenticate");
    let wanted = match (status, case) {
        (401, Case::None) => Some("Bearer realm=\"sessiond\"".to_owned()),
        (401, _) => Some("Bearer realm=\"sessiond\", error=\"invalid_token\"".to_owned()),
        (403, _) => Some("Bearer realm=\"sessiond\", error=\"insufficient_scope\"".to_owned()),
        _ => None,
    };
    let scope = format!(", scope=\"{}\"", need.scope.as_str());
    assert_eq!(challenge.map(|text| text.trim_end_matches(&scope).to_owned()), wanted, "{what}: {response:?}");
    if status == 404 {
        let missing = call(UNKNOWN_ID).await;
        assert_eq!(
            normalized(&response, &session),
            normalized(&missing, UNKNOWN_ID),
            "{what}: the response discloses that the session exists"
        );
    }
}

#[tokio::test]
async fn unknown_routes_require_a_credential() {
    let fixture = Fixture::start().await;
    let service = &fixture.service;
    for path in ["/metrics", "/api", "/api/sessions/", "/api/sessions/a/b/c", "/docs/../api", "//livez", "/LIVEZ"] {
        service.get(path).await.expect_problem(401, "unauthorized");
        service.get_as(&fixture.api_keys["right"], path).await.expect_problem(404, "route_not_found");
    }
    // A 405 for a protected path needs a credential. A 405 for a public path does not.
    service.delete("/api/sessions").await.expect_problem(401, "unauthorized");
    let other = service.bearer(&fixture.api_keys["right"], Method::DELETE, "/api/sessions", Value::Null).await;
    other.expect_problem(405, "method_not_allowed");
    service.delete("/livez").await.expect_problem(405, "method_not_allowed");
    // Pages and their files need none.
    for path in ["/", "/console/", "/docs", "/docs/"] {
        service.get(path).await.expect(200);
    }
    service.get("/console/nothing.js").await.expect_problem(404, "route_not_found");
}
