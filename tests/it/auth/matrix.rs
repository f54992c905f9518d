//! The tenant matrix, generated from the `OpenAPI` document: every operation, by every kind of caller. A new operation fails
//! it until it is told here what the operation needs.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::{Value, json};
use sessiond::auth::{JwtAlgorithm, Scope};
use tempfile::TempDir;

use crate::support::credentials::{Signer, api_key, claims, jwt_flags, with};
use crate::support::service::{Answer, Service};

const UNKNOWN_ID: &str = "f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e";

/// What an operation says about whose sessions it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    /// Nobody's: it needs no credential.
    Nobody,
    /// Its path names a business.
    Business,
    /// The caller's own: it needs a credential, and none of its scopes.
    Caller,
    /// Its path or body names a user.
    User,
    /// It names a session by its id.
    Session,
}

/// What an operation needs, in the tests' own words: the service's table is what is tested.
struct Need {
    operation: &'static str,
    about: About,
    scope: Scope,
    body: Value,
    success: u16,
}

fn needs() -> Vec<Need> {
    let need = |operation, about, scope, success| Need { operation, about, scope, body: Value::Null, success };
    let user = json!({"businessId": "b", "userId": "u"});
    vec![
        Need { body: user, ..need("getOrCreateSession", About::User, Scope::Write, 200) },
        need("getSession", About::Session, Scope::Read, 200),
        Need { body: json!({"title": "t"}), ..need("updateSession", About::Session, Scope::Write, 200) },
        need("deleteSession", About::Session, Scope::Write, 204),
        need("listMessages", About::Session, Scope::Read, 200),
        Need {
            body: json!({"role": "user", "content": 1}),
            ..need("appendMessages", About::Session, Scope::Write, 201)
        },
        need("listActiveSessions", About::Business, Scope::Read, 200),
        need("getActiveSession", About::User, Scope::Read, 200),
        need("listSessionHistory", About::User, Scope::Read, 200),
        need("eraseUser", About::User, Scope::Admin, 200),
        need("whoami", About::Caller, Scope::Read, 200),
        need("livez", About::Nobody, Scope::Read, 200),
        need("readyz", About::Nobody, Scope::Read, 200),
        need("openapi", About::Nobody, Scope::Read, 200),
        need("docs", About::Nobody, Scope::Read, 200),
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
        // Last, because it may change something.
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

/// A service with credentials of both kinds, and callers of every case.
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
        // A good id with another key's secret.
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

    /// The active session of user `u` in business `b`, with a message; also one in business `c`, which is nobody's business.
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
        session
    }

    /// The credential of a case, or `None` if there is no such caller.
    fn credential(&self, need: &Need, kind: Kind, case: Case) -> Option<String> {
        if kind == Kind::Jwt { Some(self.token(need, case)) } else { self.api_key(need, case) }
    }

    fn api_key(&self, need: &Need, case: Case) -> Option<String> {
        let name = match case {
            Case::None => return Some(String::new()),
            Case::Bad => "bad",
            Case::Expired => "expired",
            Case::WrongBusiness => "wrong business",
            // A key is of a server, which may act for every user of its businesses.
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
        // What is about more than one user takes more than a user's token.
        let is_for_all = need.about == About::Business || need.scope == Scope::Admin;
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

/// The status and code that a caller has to get.
fn expected(need: &Need, case: Case) -> (u16, &'static str) {
    match case {
        _ if need.about == About::Nobody => (need.success, ""),
        Case::Right => (need.success, ""),
        Case::None | Case::Bad | Case::Expired => (401, "unauthorized"),
        _ if need.about == About::Caller => (need.success, ""),
        Case::WrongBusiness | Case::WrongUser if need.about == About::Session => (404, "session_not_found"),
        Case::WrongBusiness | Case::WrongUser | Case::MissingScope => (403, "forbidden"),
    }
}

/// An answer without what differs from call to call: the request's id, the time, the session's id.
fn alike(answer: &Answer, session: &str) -> (u16, BTreeMap<String, String>, String) {
    let request_id = answer.header("x-request-id").unwrap_or_default();
    let headers = answer.headers.iter().filter(|(name, _)| !["date", "x-request-id"].contains(&name.as_str()));
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()));
    let text = answer.text.replace(request_id, "<request>").replace(session, "<session>");
    (answer.status.as_u16(), headers.collect(), text)
}

#[tokio::test]
async fn every_operation_admits_whom_it_must_and_nobody_else() {
    let fixture = Fixture::start().await;
    let document = serde_json::to_value(sessiond::http::document()).expect("JSON");
    let (mut covered, mut cells, mut denied) = (BTreeSet::new(), 0, 0);
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let id = operation["operationId"].as_str().expect("an id");
            let need = needs().into_iter().find(|need| need.operation == id);
            let need = need.unwrap_or_else(|| panic!("{method} {path} is new: say in `needs` what {id} takes"));
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
                    try_cell(&fixture, &need, (&method, path), (kind, case), &credential).await;
                }
            }
        }
    }
    let all: BTreeSet<_> = needs().iter().map(|need| need.operation).collect();
    assert_eq!(covered, all, "an operation that there is no more");
    // The last one is refused to nobody who has a good credential.
    assert_eq!((cells, denied), (15 * (7 + 6 + 6), 10 * (6 + 5 + 5) + 3 * 3));
}

/// The document says what the test says.
fn expect_documented(need: &Need, operation: &Value) {
    if need.about == About::Nobody {
        assert_eq!(operation["security"], Value::Null, "{} is public", need.operation);
        return;
    }
    let is_callers = need.about == About::Caller;
    let scopes = if is_callers { vec![] } else { vec![need.scope.as_str()] };
    assert_eq!(operation["security"], json!([{"bearer": scopes}, {"apiKey": scopes}]), "{}", need.operation);
    assert!(operation["responses"]["401"].is_object(), "{}", need.operation);
    assert_eq!(operation["responses"]["403"].is_object(), !is_callers, "{}", need.operation);
}

/// One call by one caller.
async fn try_cell(
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
        let path = template.replace("{sessionId}", session).replace("{businessId}", "b").replace("{userId}", "u");
        let (headers, method) = (headers.clone(), method.clone());
        async move { fixture.service.call_as(&headers, method, &path, body).await }
    };
    let (status, code) = expected(need, case);
    let before = fixture.service.look.digest().await;
    let answer = call(&session).await;
    assert_eq!(answer.status.as_u16(), status, "{what}: {answer:?}");
    if status < 400 {
        return;
    }
    assert!(fixture.service.look.digest().await == before, "{what} changed Redis");
    answer.expect_problem(status, code);
    let challenge = answer.header("www-authenticate");
    let wanted = match (status, case) {
        (401, Case::None) => Some("Bearer realm=\"sessiond\"".to_owned()),
        (401, _) => Some("Bearer realm=\"sessiond\", error=\"invalid_token\"".to_owned()),
        (403, _) => Some("Bearer realm=\"sessiond\", error=\"insufficient_scope\"".to_owned()),
        _ => None,
    };
    let scope = format!(", scope=\"{}\"", need.scope.as_str());
    assert_eq!(challenge.map(|text| text.trim_end_matches(&scope).to_owned()), wanted, "{what}: {answer:?}");
    if status == 404 {
        let missing = call(UNKNOWN_ID).await;
        assert_eq!(alike(&answer, &session), alike(&missing, UNKNOWN_ID), "{what}: tells that the session is there");
    }
}

#[tokio::test]
async fn what_is_not_there_is_behind_a_credential_too() {
    let fixture = Fixture::start().await;
    let service = &fixture.service;
    for path in ["/", "/metrics", "/api", "/api/sessions/", "/api/sessions/a/b/c", "/docs/../api", "//livez", "/LIVEZ"]
    {
        service.get(path).await.expect_problem(401, "unauthorized");
        service.get_as(&fixture.api_keys["right"], path).await.expect_problem(404, "route_not_found");
    }
    // A method that a path does not have: of a protected one it takes a credential to hear of it, of a public one not.
    service.delete("/api/sessions").await.expect_problem(401, "unauthorized");
    let other = service.bearer(&fixture.api_keys["right"], Method::DELETE, "/api/sessions", Value::Null).await;
    other.expect_problem(405, "method_not_allowed");
    service.delete("/livez").await.expect_problem(405, "method_not_allowed");
    // What the page at /docs loads.
    service.get("/docs/swagger-ui.css").await.expect(200);
}
