//! `GET /api/whoami`: it returns the grant of the caller.

use reqwest::Method;
use serde_json::{Value, json};
use sessiond::auth::{JwtAlgorithm, Scope};
use tempfile::TempDir;

use crate::support::credentials::{Signer, api_key, claims, jwt_flags, with, without};
use crate::support::service::Service;

const WHOAMI: &str = "/api/whoami";

#[tokio::test]
async fn without_credentials_whoami_returns_every_scope() {
    let service = Service::start(&[]).await;
    let response = service.get(WHOAMI).await.expect(200);
    assert_eq!(response.text, r#"{"businesses":"*","userId":null,"scopes":["read","write","admin"]}"#);
    assert_eq!(response.header("content-type"), Some("application/json"));
    let head = service.send(Method::HEAD, WHOAMI, &[], Vec::new()).await.expect(200);
    assert_eq!((head.text.as_str(), head.header("content-length")), ("", response.header("content-length")));
    // A service without credentials ignores a credential.
    assert_eq!(service.get_as("a.b", WHOAMI).await.expect(200).text, response.text);
}

#[tokio::test]
async fn whoami_returns_the_grant_of_every_credential() {
    let folder = TempDir::new().expect("a folder");
    let keys = [
        (api_key("all", &[], &Scope::ALL, None), json!("*"), vec!["read", "write", "admin"]),
        (api_key("one", &["b"], &[Scope::Write, Scope::Read], None), json!(["b"]), vec!["read", "write"]),
        (
            api_key("many", &["z", "a b", "\u{e9}", "b"], &[Scope::Admin], None),
            json!(["a b", "b", "z", "\u{e9}"]),
            vec!["admin"],
        ),
        (api_key("twice", &["b", "b"], &[Scope::Read, Scope::Read], None), json!(["b"]), vec!["read"]),
        (api_key("writer", &["b"], &[Scope::Write], Some("2999-01-01T00:00:00Z")), json!(["b"]), vec!["write"]),
    ];
    let (keys_file, jwt_file) = (folder.path().join("keys.toml"), folder.path().join("jwt"));
    let entries: Vec<_> = keys.iter().map(|((_, entry), ..)| entry.as_str()).collect();
    std::fs::write(&keys_file, entries.join("\n")).expect("a file");
    let signer = Signer::new(JwtAlgorithm::EdDsa);
    std::fs::write(&jwt_file, signer.key_file()).expect("a file");
    let mut flags = jwt_flags(signer.algorithm, &jwt_file);
    flags.extend(["--api-keys-file", keys_file.to_str().expect("a path")].map(str::to_owned));
    let service = Service::start(&flags.iter().map(String::as_str).collect::<Vec<_>>()).await;

    for ((credential, _), businesses, scopes) in &keys {
        let wanted = json!({"businesses": businesses, "userId": null, "scopes": scopes});
        for headers in [("x-api-key", credential.clone()), ("authorization", format!("Bearer {credential}"))] {
            let response = service.call_as(&[(headers.0, &headers.1)], Method::GET, WHOAMI, None).await.expect(200);
            assert_eq!(response.json(), wanted);
            assert!(response.header("ratelimit").is_some(), "{response:?}");
        }
    }
    let user = claims("b", "auth0|123", service.now());
    let admin = with(&user, "scope", "admin read");
    let tokens = [
        (user.clone(), json!("auth0|123"), vec!["read", "write"]),
        (with(&user, "scope", "write read openid"), json!("auth0|123"), vec!["read", "write"]),
        (with(&user, "scp", json!(["read"])), json!("auth0|123"), vec!["read"]),
        // A token without any known scope may still call whoami.
        (with(&user, "scope", "openid"), json!("auth0|123"), vec![]),
        // A token of the business, with or without a user.
        (admin.clone(), Value::Null, vec!["read", "admin"]),
        (without(&admin, "sub"), Value::Null, vec!["read", "admin"]),
    ];
    for (claims, user_id, scopes) in tokens {
        let response = service.get_as(&signer.token(&claims), WHOAMI).await.expect(200);
        assert_eq!(response.json(), json!({"businesses": ["b"], "userId": user_id, "scopes": scopes}), "{claims}");
    }

    service.get(WHOAMI).await.expect_problem(401, "unauthorized");
    service.get_as("one.wrong", WHOAMI).await.expect_problem(401, "unauthorized");
    assert_eq!(service.probe.keys().await, Vec::<String>::new(), "whoami wrote to Redis");
}
