//! The message roles that a caller may use: a user's token may not write messages of the assistant.

use reqwest::Method;
use serde_json::{Value, json};
use sessiond::auth::{JwtAlgorithm, Scope};
use tempfile::TempDir;

use crate::support::credentials::{Signer, api_key, claims, jwt_flags, with, without};
use crate::support::process::run;
use crate::support::service::{Answer, Service};

const ROLES: [&str; 4] = ["user", "assistant", "system", "tool"];

/// A service, an API key with every scope, and a signer of tokens.
struct Fixture {
    service: Service,
    key: String,
    signer: Signer,
    _folder: TempDir,
}

impl Fixture {
    async fn start(more: &[&str]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let (key, entry) = api_key("key", &["b"], &Scope::ALL, None);
        let (keys, jwt) = (folder.path().join("keys.toml"), folder.path().join("jwt"));
        std::fs::write(&keys, entry).expect("a file");
        let signer = Signer::new(JwtAlgorithm::EdDsa);
        std::fs::write(&jwt, signer.key_file()).expect("a file");
        let mut flags = jwt_flags(signer.algorithm, &jwt);
        flags.extend(["--api-keys-file", keys.to_str().expect("a path")].map(str::to_owned));
        let flags: Vec<_> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Self { service: Service::start(&flags).await, key, signer, _folder: folder }
    }

    /// The token of user `u`.
    fn user(&self) -> String {
        self.signer.token(&claims("b", "u", self.service.now()))
    }

    /// The path of the messages of user `u`'s active session.
    async fn messages(&self) -> String {
        let body = json!({"businessId": "b", "userId": "u"});
        let session = self.service.bearer(&self.key, Method::POST, "/api/sessions", body).await;
        format!("/api/sessions/{}/messages", session.string("sessionId"))
    }

    async fn append(&self, credential: &str, path: &str, body: Value) -> Answer {
        self.service.bearer(credential, Method::POST, path, body).await
    }

    /// Panics unless the append is rejected with the name of the wrong field and changes nothing.
    async fn expect_rejected(&self, path: &str, body: Value, field: &str) {
        let before = self.service.probe.digest().await;
        let response = self.append(&self.user(), path, body.clone()).await;
        let detail = response.expect_problem(403, "forbidden").string("detail");
        assert!(detail.starts_with(&format!("{field} is ")) && detail.contains("API key"), "{body}: {detail}");
        let challenge = response.header("www-authenticate");
        assert_eq!(challenge, Some("Bearer realm=\"sessiond\", error=\"insufficient_scope\""), "{body}");
        assert!(self.service.probe.digest().await == before, "{body} changed Redis");
    }
}

fn message(role: &str) -> Value {
    json!({"role": role, "content": "hello"})
}

#[tokio::test]
async fn a_users_token_may_append_only_user_messages() {
    let fixture = Fixture::start(&[]).await;
    let path = fixture.messages().await;
    fixture.append(&fixture.user(), &path, message("user")).await.expect(201);
    fixture.append(&fixture.user(), &path, json!([message("user"), message("user")])).await.expect(201);
    for role in &ROLES[1..] {
        fixture.expect_rejected(&path, message(role), "role").await;
        fixture.expect_rejected(&path, json!([message(role)]), "[0].role").await;
        fixture.expect_rejected(&path, json!([message("user"), message("user"), message(role)]), "[2].role").await;
        // A repeated message with such a role is rejected as well.
        let known = json!({"messageId": format!("m-{role}"), "role": role, "content": "hello"});
        fixture.append(&fixture.key, &path, known.clone()).await.expect(201);
        fixture.expect_rejected(&path, known.clone(), "role").await;
        fixture.append(&fixture.key, &path, known.clone()).await.expect(200);
        // A message with the same `messageId` and the role user is the usual conflict.
        let as_user = with(&known, "role", "user");
        fixture.append(&fixture.user(), &path, as_user).await.expect_problem(409, "message_id_conflict");
        // The response does not disclose whether the session exists.
        let unknown = "/api/sessions/f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e/messages";
        fixture.expect_rejected(unknown, message(role), "role").await;
    }
    let scoped = with(&claims("b", "u", fixture.service.now()), "scope", "read write");
    let scoped = fixture.signer.token(&scoped);
    fixture.append(&scoped, &path, message("assistant")).await.expect_problem(403, "forbidden");
}

#[tokio::test]
async fn a_users_token_redacts_only_its_own_roles_and_patches_only_feedback_of_others() {
    let fixture = Fixture::start(&["--user-roles", "user,tool"]).await;
    let (path, user) = (fixture.messages().await, fixture.user());
    for role in ROLES {
        let known = json!({"messageId": role, "role": role, "content": "hello", "metadata": {"a": 1}});
        fixture.append(&fixture.key, &path, known).await.expect(201);
    }
    let call = async |credential: &str, method: Method, role: &str, body: Value| {
        fixture.service.bearer(credential, method, &format!("{path}/{role}"), body).await
    };
    for role in ["assistant", "system"] {
        let before = fixture.service.probe.digest().await;
        let forbidden = [
            (Method::DELETE, Value::Null),
            (Method::PATCH, json!({"metadata": {"a": 2}})),
            (Method::PATCH, json!({"metadata": {"a": null}})),
            (Method::PATCH, json!({"metadata": {"feedback": 1, "a": 1}})),
            (Method::PATCH, json!({"metadata": null})),
        ];
        for (method, body) in forbidden {
            let response = call(&user, method.clone(), role, body.clone()).await;
            let detail = response.expect_problem(403, "forbidden").string("detail");
            let wanted = format!("The message's role is {role}, but ");
            assert!(detail.starts_with(&wanted) && detail.contains("these roles: user, tool;"), "{detail}");
            let challenge = response.header("www-authenticate");
            assert_eq!(challenge, Some("Bearer realm=\"sessiond\", error=\"insufficient_scope\""), "{method} {body}");
        }
        assert!(fixture.service.probe.digest().await == before, "a forbidden call changed Redis");
        let patched = call(&user, Method::PATCH, role, json!({"metadata": {"feedback": {"stars": 5}}})).await;
        assert_eq!(patched.expect(200).member("metadata"), json!({"a": 1, "feedback": {"stars": 5}}));
        let cleared = call(&user, Method::PATCH, role, json!({"metadata": {"feedback": null}})).await;
        assert_eq!(cleared.expect(200).member("metadata"), json!({"a": 1}));
        call(&user, Method::PATCH, role, json!({"metadata": {}})).await.expect(200);
    }
    for role in ["user", "tool"] {
        let patched = call(&user, Method::PATCH, role, json!({"metadata": {"a": null, "b": 1}})).await;
        assert_eq!(patched.expect(200).member("metadata"), json!({"b": 1}));
        call(&user, Method::DELETE, role, Value::Null).await.expect(204);
    }
    // An API key may change and redact messages with every role.
    for role in ROLES {
        call(&fixture.key, Method::PATCH, role, json!({"metadata": {"z": 1}})).await.expect(200);
        call(&fixture.key, Method::DELETE, role, Value::Null).await.expect(204);
        // A role is also forbidden if the message has been redacted already.
        let again = call(&user, Method::DELETE, role, Value::Null).await.status.as_u16();
        assert_eq!(again, if ["user", "tool"].contains(&role) { 204 } else { 403 }, "{role}");
    }
}

#[tokio::test]
async fn api_keys_and_business_tokens_may_append_messages_of_every_role() {
    let fixture = Fixture::start(&[]).await;
    let path = fixture.messages().await;
    // A token with the scope admin belongs to the business, even if it names a user.
    let admin = with(&claims("b", "u", fixture.service.now()), "scope", "read write admin");
    let of_business = fixture.signer.token(&without(&admin, "sub"));
    for credential in [&fixture.key, &of_business, &fixture.signer.token(&admin)] {
        for role in ROLES {
            fixture.append(credential, &path, message(role)).await.expect(201);
        }
        fixture.append(credential, &path, json!(ROLES.map(message))).await.expect(201);
    }
}

#[tokio::test]
async fn without_credentials_every_role_is_allowed() {
    let service = Service::start(&[]).await;
    let path = format!("/api/sessions/{}/messages", service.session_of("u").await);
    service.post(&path, json!(ROLES.map(message))).await.expect(201);
}

#[tokio::test]
async fn the_roles_of_users_are_configurable() {
    let fixture = Fixture::start(&["--user-roles", "tool, user"]).await;
    let path = fixture.messages().await;
    for role in ["user", "tool"] {
        fixture.append(&fixture.user(), &path, message(role)).await.expect(201);
    }
    fixture.append(&fixture.user(), &path, json!([message("tool"), message("user")])).await.expect(201);
    for role in ["assistant", "system"] {
        fixture.expect_rejected(&path, message(role), "role").await;
        fixture.expect_rejected(&path, json!([message("tool"), message(role)]), "[1].role").await;
    }
    for bad in ["bot", "User", "user;tool", "user,admin", ",", " "] {
        let output = run(&["check-config", "--user-roles", bad], &[]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{bad}: {text}");
        assert!(text.contains("SESSIOND_USER_ROLES") && text.contains("assistant"), "{bad}: {text}");
    }
}
