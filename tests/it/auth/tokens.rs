//! Forged, expired and malformed tokens of every algorithm: each is rejected with `401`, never with `500`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Method;
use serde_json::{Value, json};
use sessiond::auth::{JwtAlgorithm, Scope};
use tempfile::TempDir;

use crate::support::credentials::{AUDIENCE, Signer, api_key, claims, hmac_sha256, jwt_flags, unsigned, with, without};
use crate::support::service::Service;

const ACTIVE: &str = "/api/sessions/business/b/user/u/active";

async fn start(signer: &Signer, key_file: &[u8]) -> (Service, TempDir) {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("key");
    std::fs::write(&path, key_file).expect("a file");
    let flags = jwt_flags(signer.algorithm, &path);
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    (Service::start(&flags).await, folder)
}

async fn expect_accepted(service: &Service, token: &str, why: &str) {
    let response = service.get_as(token, ACTIVE).await;
    assert_eq!(
        (response.status.as_u16(), response.string("code").as_str()),
        (404, "no_active_session"),
        "{why}: {response:?}"
    );
}

async fn expect_rejected(service: &Service, token: &str, why: &str) {
    let response = service.get_as(token, ACTIVE).await;
    assert_eq!(response.status.as_u16(), 401, "{why}: {response:?}");
    response.expect_problem(401, "unauthorized");
}

/// Values that are neither a string nor a list of strings.
fn bad_scopes() -> Vec<Value> {
    let nested = json!([["read"]]);
    vec![
        json!(null),
        json!(1),
        json!(true),
        json!({}),
        json!({"read": true}),
        json!([1]),
        json!(["read", null]),
        nested,
    ]
}

/// Invalid claims, each with a description.
fn bad_claims(good: &Value, now_secs: i64) -> Vec<(String, Value)> {
    let mut bad: Vec<_> = ["iss", "aud", "exp", "businessId", "sub"]
        .map(|name| (format!("without {name}"), without(good, name)))
        .into_iter()
        .collect();
    let wrong = [
        ("iss", vec![json!("https://other.example.com/"), json!(""), json!(null), json!(1), json!({}), json!([])]),
        ("aud", vec![json!("other"), json!(["other"]), json!([]), json!(null), json!(1), json!({}), json!("")]),
        (
            "exp",
            vec![
                json!(now_secs - 31),
                json!(0),
                json!(-1),
                json!(format!("{}", now_secs + 300)),
                json!(null),
                json!([]),
                json!(true),
                json!(1e300),
            ],
        ),
        ("nbf", vec![json!(now_secs + 60), json!("0"), json!(null), json!([]), json!(1e300)]),
        (
            "businessId",
            vec![
                json!(""),
                json!(null),
                json!(1),
                json!(["b"]),
                json!({}),
                json!("b".repeat(129)),
                json!("b\0"),
                json!("."),
            ],
        ),
        (
            "sub",
            vec![json!(""), json!(null), json!(1), json!(["u"]), json!("u".repeat(129)), json!("u\n"), json!("..")],
        ),
        ("scope", bad_scopes()),
        ("scp", bad_scopes()),
    ];
    for (name, values) in wrong {
        bad.extend(values.into_iter().map(|value| (format!("{name} is {value}"), with(good, name, value))));
    }
    bad
}

/// Invalid token headers. The signature of the tokens is valid.
fn bad_headers(algorithm: JwtAlgorithm) -> Vec<Value> {
    let others = [
        "none", "None", "NONE", "", "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "ES256", "ES384",
        "EdDSA", "XX",
    ];
    let others = others.into_iter().filter(|name| *name != algorithm.as_str());
    let mut headers: Vec<_> = others.map(|name| json!({"alg": name, "typ": "JWT"})).collect();
    let name = algorithm.as_str();
    headers.extend([
        json!({"typ": "JWT"}),
        json!({"alg": null}),
        json!({"alg": [name]}),
        json!({"alg": name.to_lowercase() + " "}),
        json!({"alg": name, "crit": ["exp"], "exp": 1}),
        json!({"alg": name, "crit": ["b64"], "b64": false}),
        json!({"alg": name, "crit": []}),
        json!([]),
        json!("JWT"),
        json!(null),
    ]);
    headers
}

#[tokio::test]
async fn forged_and_malformed_tokens_are_rejected() {
    for algorithm in JwtAlgorithm::ALL {
        let signer = Signer::new(algorithm);
        let (service, _folder) = start(&signer, &signer.key_file()).await;
        let now_secs = service.now().0 / 1000;
        let good = claims("b", "u", service.now());
        expect_accepted(&service, &signer.token(&good), "a good token").await;
        for (why, claims) in bad_claims(&good, now_secs) {
            expect_rejected(&service, &signer.token(&claims), &format!("{algorithm:?} {why}")).await;
        }
        for header in bad_headers(algorithm) {
            let why = format!("{algorithm:?} {header}");
            expect_rejected(&service, &signer.token_with(&header, &good), &why).await;
            let unsigned = unsigned(&header.to_string(), &good.to_string());
            expect_rejected(&service, &format!("{unsigned}."), &why).await;
        }
        // A token whose HMAC uses the public key as its secret must be rejected (RFC 8725, 2.1).
        let header = json!({"alg": "HS256", "typ": "JWT"}).to_string();
        let message = unsigned(&header, &good.to_string());
        let pem = signer.key_file();
        let [shortest, der] = signer.public_key();
        for secret in [pem.as_slice(), pem.trim_ascii(), &shortest, &der, b""] {
            if algorithm != JwtAlgorithm::Hs256 || secret.is_empty() {
                let forged = format!("{message}.{}", URL_SAFE_NO_PAD.encode(hmac_sha256(secret, message.as_bytes())));
                expect_rejected(&service, &forged, &format!("{algorithm:?}: HS256 with the public key")).await;
            }
        }
        for other in JwtAlgorithm::ALL {
            if (algorithm, other) != (JwtAlgorithm::Rs256, JwtAlgorithm::Rs256) {
                let token = Signer::new(other).token(&good);
                expect_rejected(&service, &token, &format!("{algorithm:?}: another {other:?} key")).await;
            }
        }
    }
}

#[tokio::test]
async fn damaged_tokens_are_rejected() {
    for algorithm in JwtAlgorithm::ALL {
        let signer = Signer::new(algorithm);
        let (service, _folder) = start(&signer, &signer.key_file()).await;
        let good = claims("b", "u", service.now());
        let token = signer.token(&good);
        let [header, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else {
            panic!("a token has three parts");
        };
        let other_user = URL_SAFE_NO_PAD.encode(with(&good, "sub", "v").to_string());
        let mut flipped = URL_SAFE_NO_PAD.decode(signature).expect("base64");
        flipped[7] ^= 1;
        let flipped = URL_SAFE_NO_PAD.encode(flipped);
        let huge = "x".repeat(40_000);
        let damaged = [
            format!("{header}.{other_user}.{signature}"),
            format!("{header}.{payload}.{flipped}"),
            format!("{header}.{payload}."),
            format!("{header}.{payload}"),
            format!("{header}..{signature}"),
            format!(".{payload}.{signature}"),
            format!("{token}.{signature}"),
            format!("{token}="),
            format!("{token}{signature}"),
            format!("{header}.{payload}.{}", &signature[..signature.len() - 4]),
            "..".to_owned(),
            "...".to_owned(),
            ".".repeat(1000),
            "a.b.c".to_owned(),
            "bnVsbA.bnVsbA.".to_owned(),
            token.to_uppercase(),
            signer.token(&with(&good, "padding", huge.as_str())),
            format!("{huge}.{payload}.{signature}"),
            signer.token_of(&format!("{{\"alg\":\"{}\"}}", algorithm.as_str()), &"[".repeat(5000)),
            signer.token_of(&format!("{{\"alg\":\"{}\"}}", algorithm.as_str()), "not JSON"),
            signer.token_of(&"[".repeat(5000), &good.to_string()),
            // The claim `sub` twice.
            signer.token_of(
                &format!("{{\"alg\":\"{}\"}}", algorithm.as_str()),
                &good.to_string().replacen('{', "{\"sub\":\"v\",", 1),
            ),
        ];
        for token in damaged {
            expect_rejected(&service, &token, &format!("{algorithm:?} {token:.300}")).await;
        }
    }
}

#[tokio::test]
async fn clock_leeway_and_additional_claims_are_accepted() {
    let signer = Signer::new(JwtAlgorithm::Es256);
    let (service, _folder) = start(&signer, &signer.key_file()).await;
    let now_secs = service.now().0 / 1000;
    let good = claims("b", "u", service.now());
    for (name, value) in [
        ("exp", json!(now_secs - 20)),
        ("exp", json!(f64::from(u32::try_from(now_secs).expect("a time")) + 0.5)),
        ("exp", json!(now_secs + 1_000_000_000)),
        ("nbf", json!(now_secs + 20)),
        ("nbf", json!(0.5)),
        ("aud", json!(["other", AUDIENCE])),
        ("scope", json!("openid profile read")),
        ("email", json!("u@example.com")),
    ] {
        expect_accepted(&service, &signer.token(&with(&good, name, value.clone())), &format!("{name} {value}")).await;
    }
    for name in ["nbf", "iat"] {
        expect_accepted(&service, &signer.token(&without(&good, name)), &format!("without {name}")).await;
    }
    let with_kid = json!({"alg": "ES256", "kid": "any", "typ": "at+jwt", "x5t": "x"});
    expect_accepted(&service, &signer.token_with(&with_kid, &good), "a kid for a single key").await;
    // A token without a user is valid only with the scope admin, which covers the whole business.
    let admin = with(&without(&good, "sub"), "scope", "read admin");
    expect_accepted(&service, &signer.token(&admin), "an admin").await;
    expect_rejected(&service, &signer.token(&with(&without(&good, "sub"), "scope", "read write")), "no user").await;
}

#[tokio::test]
async fn scope_and_scp_determine_the_scopes_of_a_token() {
    let signer = Signer::new(JwtAlgorithm::EdDsa);
    let (service, _folder) = start(&signer, &signer.key_file()).await;
    let good = claims("b", "u", service.now());
    let user = json!({"businessId": "b", "userId": "u"});
    let erase = "/api/sessions/business/b/user/u";
    let (none, all) = ([false; 3], [true; 3]);
    let (read, write) = ([true, false, false], [false, true, false]);
    let (both, no_write) = ([true, true, false], [true, false, true]);
    let one = [
        (json!("read"), read),
        (json!("write openid"), write),
        (json!("read write"), both),
        (json!(["read"]), read),
        (json!(["write", "read", "profile"]), both),
        (json!(["read", "write", "admin"]), all),
        (json!("admin read"), no_write),
        (json!(""), none),
        (json!([]), none),
        (json!("openid profile"), none),
        (json!("READ"), none),
        // Each member of a list is one scope.
        (json!(["read write"]), none),
    ];
    let mut cases = vec![(good.clone(), both)];
    for (value, may) in one {
        cases.extend(["scope", "scp"].map(|name| (with(&good, name, value.clone()), may)));
    }
    let two = [
        (json!("read write"), json!(["read"]), read),
        (json!(["read"]), json!("read write admin"), read),
        (json!("read"), json!("write"), none),
        (json!("read write admin"), json!(["admin", "read"]), no_write),
        (json!("openid"), json!("read"), none),
    ];
    for (scope, scp, may) in two {
        cases.push((with(&with(&good, "scope", scope.clone()), "scp", scp.clone()), may));
        cases.push((with(&with(&good, "scope", scp), "scp", scope), may));
    }
    for (claims, may) in cases {
        let token = signer.token(&claims);
        let responses = [
            service.bearer(&token, Method::POST, "/api/sessions", user.clone()).await,
            service.get_as(&token, "/api/sessions/business/b/user/u/history").await,
            service.bearer(&token, Method::DELETE, erase, Value::Null).await,
        ];
        let [created, seen, erased] = responses.map(|response| match response.status.as_u16() {
            200 | 201 => true,
            status => {
                assert_eq!(status, 403, "{claims}: {response:?}");
                false
            }
        });
        assert_eq!([seen, created, erased], may, "{claims}");
    }
}

#[tokio::test]
async fn keys_of_a_jwk_set_are_selected_by_kid() {
    for algorithm in JwtAlgorithm::ALL {
        let (first, second) = (Signer::new(algorithm), Signer::new(algorithm));
        let other = if algorithm == JwtAlgorithm::EdDsa { JwtAlgorithm::Es256 } else { JwtAlgorithm::EdDsa };
        let mut for_encryption = Signer::new(algorithm).jwk("encryption");
        for_encryption["use"] = "enc".into();
        let unknown_kind = json!({"kty": "XYZ", "kid": "unknown"});
        let keys = [first.jwk("1"), for_encryption, second.jwk("2"), Signer::new(other).jwk("other"), unknown_kind];
        let (service, _folder) = start(&first, json!({"keys": keys}).to_string().as_bytes()).await;
        let good = claims("b", "u", service.now());
        let token =
            |signer: &Signer, kid: Value| signer.token_with(&json!({"alg": algorithm.as_str(), "kid": kid}), &good);
        expect_accepted(&service, &token(&first, json!("1")), "the first key").await;
        expect_accepted(&service, &token(&second, json!("2")), "the second key").await;
        if algorithm != JwtAlgorithm::Rs256 {
            expect_rejected(&service, &token(&first, json!("2")), "the wrong kid").await;
        }
        for kid in [json!("3"), json!(""), json!("encryption"), json!("other"), json!(1), json!(null)] {
            expect_rejected(&service, &token(&first, kid.clone()), &format!("{algorithm:?} {kid}")).await;
        }
        expect_rejected(&service, &first.token(&good), "no kid and two keys").await;
        let (service, _folder) = start(&first, json!({"keys": [first.jwk("1")]}).to_string().as_bytes()).await;
        expect_accepted(&service, &first.token(&good), "no kid and one key").await;
        expect_rejected(&service, &token(&first, json!("2")), "a kid that differs from the only key's").await;
    }
}

#[tokio::test]
async fn requests_must_have_exactly_one_credential() {
    let signer = Signer::new(JwtAlgorithm::EdDsa);
    let (service, _folder) = start(&signer, &signer.key_file()).await;
    let token = signer.token(&claims("b", "u", service.now()));
    let bearer = format!("Bearer {token}");
    let (lower, spaced) = (format!("bearer {token}"), format!("BEARER   {token} "));
    for good in [&bearer, &lower, &spaced] {
        let response = service.call_as(&[("authorization", good)], Method::GET, ACTIVE, None).await;
        response.expect_problem(404, "no_active_session");
    }
    let basic = format!("Basic {token}");
    let rejected: [&[(&str, &str)]; 9] = [
        &[("authorization", &token)],
        &[("authorization", "Bearer")],
        &[("authorization", "Bearer ")],
        &[("authorization", &basic)],
        &[("authorization", &bearer), ("authorization", &bearer)],
        &[("authorization", &bearer), ("x-api-key", "a.b")],
        // A token is not an API key, and this service has no API keys.
        &[("x-api-key", &token)],
        &[("x-api-key", "")],
        &[("cookie", &bearer)],
    ];
    for headers in rejected {
        let response = service.call_as(headers, Method::GET, ACTIVE, None).await;
        response.expect_problem(401, "unauthorized");
        let challenge = response.header("www-authenticate").expect("a challenge");
        assert!(challenge.starts_with("Bearer realm=\"sessiond\""), "{challenge}");
    }
    // Without an API key, another scheme counts as an invalid credential.
    for scheme in ["Basic dTpw", "Digest username=\"u\"", "Negotiate", "Bearer"] {
        let response = service.call_as(&[("authorization", scheme)], Method::GET, ACTIVE, None).await;
        response.expect_problem(401, "unauthorized");
    }
    let in_query = format!("{ACTIVE}?access_token={token}");
    service.get(&in_query).await.expect_problem(401, "unauthorized");
}

#[tokio::test]
async fn an_api_key_takes_precedence_over_the_authorization_of_a_proxy() {
    let folder = TempDir::new().expect("a folder");
    let (key, entry) = api_key("key", &["b"], &[Scope::Read], None);
    let keys = folder.path().join("keys.toml");
    std::fs::write(&keys, entry).expect("a file");
    let signer = Signer::new(JwtAlgorithm::EdDsa);
    let jwt = folder.path().join("jwt");
    std::fs::write(&jwt, signer.key_file()).expect("a file");
    let mut flags = jwt_flags(signer.algorithm, &jwt);
    flags.extend(["--api-keys-file", keys.to_str().expect("a path")].map(str::to_owned));
    let service = Service::start(&flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let bearer = format!("Bearer {}", signer.token(&claims("b", "u", service.now())));
    let of_proxies = [
        "Basic dTpw",
        "basic dTpw",
        "Digest username=\"u\", realm=\"r\"",
        "Negotiate YII=",
        "AWS4-HMAC-SHA256 x",
        "Bearers x",
        "x",
        "",
    ];
    for other in of_proxies {
        let headers = [("x-api-key", key.as_str()), ("authorization", other)];
        service.call_as(&headers, Method::GET, ACTIVE, None).await.expect_problem(404, "no_active_session");
        // The service checks only the API key, also if the key is invalid or lacks the scope.
        let headers = [("x-api-key", "key.wrong"), ("authorization", other)];
        service.call_as(&headers, Method::GET, ACTIVE, None).await.expect_problem(401, "unauthorized");
        let headers = [("x-api-key", key.as_str()), ("authorization", other)];
        service.call_as(&headers, Method::DELETE, "/api/sessions", None).await.expect_problem(403, "forbidden");
    }
    let several: [&[(&str, &str)]; 6] = [
        &[("x-api-key", &key), ("authorization", &bearer)],
        &[("x-api-key", &key), ("authorization", "bearer\tx")],
        &[("x-api-key", &key), ("authorization", "BEARER")],
        &[("x-api-key", &key), ("authorization", "Basic dTpw"), ("authorization", &bearer)],
        &[("x-api-key", &key), ("x-api-key", &key)],
        &[("x-api-key", &key), ("x-api-key", &key), ("authorization", "Basic dTpw")],
    ];
    for headers in several {
        let response = service.call_as(headers, Method::GET, ACTIVE, None).await;
        let detail = response.expect_problem(401, "unauthorized").string("detail");
        assert!(detail.contains("more than one credential"), "{headers:?}: {response:?}");
    }
}
