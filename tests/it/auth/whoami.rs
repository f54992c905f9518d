//! `GET /api/whoami`: each caller hears what it may do, word for word.

use reqwest::Method;
use serde_json::{Value, json};
use sessiond::auth::{JwtAlgorithm, Scope};
use tempfile::TempDir;

use crate::support::credentials::{Signer, api_key, claims, jwt_flags, with, without};
use crate::support::service::Service;

const WHOAMI: &str = "/api/whoami";

#[tokio::test]
async fn a_service_without_credentials_lets_everybody_do_everything() {
    let service = Service::start(&[]).await;
    let answer = service.get(WHOAMI).await.expect(200);
    assert_eq!(answer.text, r#"{"businesses":"*","userId":null,"scopes":["read","write","admin"]}"#);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let head = service.send(Method::HEAD, WHOAMI, &[], Vec::new()).await.expect(200);
    assert_eq!((head.text.as_str(), head.header("content-length")), ("", answer.header("content-length")));
    // A credential changes nothing where none is asked for.
    assert_eq!(service.get_as("a.b", WHOAMI).await.expect(200).text, answer.text);
}

#[tokio::test]
async fn every_credential_hears_what_it_may_do_whatever_its_scopes() {
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
            let answer = service.call_as(&[(headers.0, &headers.1)], Method::GET, WHOAMI, None).await.expect(200);
            assert_eq!(answer.json(), wanted);
            assert!(answer.header("ratelimit").is_some(), "{answer:?}");
        }
    }
    let user = claims("b", "auth0|123", service.now());
    let admin = with(&user, "scope", "admin read");
    let tokens = [
        (user.clone(), json!("auth0|123"), vec!["read", "write"]),
        (with(&user, "scope", "write read openid"), json!("auth0|123"), vec!["read", "write"]),
        (with(&user, "scp", json!(["read"])), json!("auth0|123"), vec!["read"]),
        // Nothing that it may do: this is how its holder finds out.
        (with(&user, "scope", "openid"), json!("auth0|123"), vec![]),
        // A token of the business, whoever holds it.
        (admin.clone(), Value::Null, vec!["read", "admin"]),
        (without(&admin, "sub"), Value::Null, vec!["read", "admin"]),
    ];
    for (claims, user_id, scopes) in tokens {
        let answer = service.get_as(&signer.token(&claims), WHOAMI).await.expect(200);
        assert_eq!(answer.json(), json!({"businesses": ["b"], "userId": user_id, "scopes": scopes}), "{claims}");
    }

    service.get(WHOAMI).await.expect_problem(401, "unauthorized");
    service.get_as("one.wrong", WHOAMI).await.expect_problem(401, "unauthorized");
    assert_eq!(service.look.keys().await, Vec::<String>::new(), "Redis is not asked");
}
