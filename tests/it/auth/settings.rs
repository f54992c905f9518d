//! Settings of credentials: what the program needs to start, how it reports what is missing, and `keygen`.

use serde_json::json;
use sessiond::auth::{JwtAlgorithm, Scope};
use tempfile::TempDir;

use crate::support::credentials::{Signer, api_key, jwt_flags};
use crate::support::process::{Process, run};
use crate::support::redis::shared_url;

/// Runs `check-config`. Returns its exit status and all of its output.
fn check(arguments: &[&str]) -> (Option<i32>, String) {
    let arguments: Vec<_> = arguments.iter().copied().chain(["check-config"]).collect();
    let output = run(&arguments, &[]);
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn without_credentials_only_loopback_addresses_are_allowed() {
    for local in ["127.0.0.1:0", "127.9.9.9:1", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
        let (status, text) = check(&["--listen", local]);
        assert_eq!(status, Some(0), "{local}: {text}");
        assert!(text.contains("no credentials"), "{text}");
    }
    for reachable in ["0.0.0.0:0", "[::]:0", "192.0.2.1:3000", "[2001:db8::1]:3000", "[::ffff:192.0.2.1]:0"] {
        let (status, text) = check(&["--listen", reachable]);
        assert_eq!((status, text.lines().count()), (Some(2), 1), "{reachable}: {text}");
        for fix in ["--api-keys-file", "--jwt-key-file", "--allow-unauthenticated", reachable] {
            assert!(text.contains(fix), "{text}");
        }
        assert_eq!(check(&["--listen", reachable, "--allow-unauthenticated"]).0, Some(0));
        assert_eq!(check(&["--listen", reachable, "--allow-unauthenticated=false"]).0, Some(2));
    }
    // `serve` reports the same before it starts anything.
    let output = run(&["serve", "--listen", "0.0.0.0:0", "--redis-server", "/nowhere"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("there are no credentials"), "{output:?}");
    let (status, text) = check(&["--allow-unauthenticated=perhaps"]);
    assert!(status == Some(2) && text.contains("SESSIOND_ALLOW_UNAUTHENTICATED"), "{text}");
}

#[test]
fn with_credentials_any_address_is_allowed() {
    let folder = TempDir::new().expect("a folder");
    let keys = folder.path().join("keys.toml");
    std::fs::write(&keys, api_key("a", &[], &Scope::ALL, None).1).expect("a file");
    let signer = Signer::new(JwtAlgorithm::Hs256);
    let secret = folder.path().join("secret");
    std::fs::write(&secret, signer.key_file()).expect("a file");
    let mut flags = jwt_flags(JwtAlgorithm::Hs256, &secret);
    flags.extend(["--listen", "0.0.0.0:0", "--api-keys-file", keys.to_str().expect("a path")].map(str::to_owned));
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let (status, text) = check(&flags);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("1 API key; 1 key for JWTs of HS256"), "{text}");
    let secret = String::from_utf8(signer.key_file()).expect("text");
    assert!(!text.contains(&secret), "{text}");
}

#[test]
fn serving_without_authentication_is_logged_as_a_warning() {
    let url = shared_url();
    let (service, _) = Process::serve(&["--allow-unauthenticated"], &[("REDIS_URL", &url)]);
    let log = service.lines.join("\n");
    assert!(log.contains("WARN") && log.contains("anyone who reaches this address may do everything"), "{log}");
}

#[test]
fn errors_in_an_api_key_file_name_the_entry_and_not_its_text() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("keys.toml");
    let (credential, entry) = api_key("good", &["b"], &[Scope::Read], None);
    let (_, secret) = credential.split_once('.').expect("a secret");
    let without_id = entry.replace("id = \"good\"", &format!("id = \"{credential}\""));
    let problems = [
        format!("{entry}\n{entry}"),
        without_id,
        entry.replace("secret_sha256 = \"", &format!("secret_sha256 = \"{secret}")),
        entry.replace("businesses = [\"b\"]", "businesses = []"),
        entry.replace("businesses = [\"b\"]", "businesses = [\"*\"]"),
        entry.replace("businesses = [\"b\"]", "businesses = [\"b\", \"..\"]"),
        entry.replace("businesses = [\"b\"]", "businesses = \"b\""),
        entry.replace("scopes = [\"read\"]", "scopes = [\"erase\"]"),
        entry.replace("scopes = [\"read\"]", "scopes = []"),
        format!("{entry}\nexpires = \"2027-01-01\""),
        format!("{entry}\nexpires = 2027-01-01T00:00:00"),
        format!("{entry}\nsecret = \"{secret}\""),
        format!("secret = \"{secret}\"\n{entry}"),
        format!("{entry}\nsecret = {secret}"),
        "key = 1".to_owned(),
    ];
    let path = file.to_str().expect("a path");
    for content in &problems {
        std::fs::write(&file, content).expect("a file");
        let (status, text) = check(&["--api-keys-file", path]);
        assert_eq!((status, text.lines().count()), (Some(2), 1), "{content}: {text}");
        assert!(text.contains("--api-keys-file (SESSIOND_API_KEYS_FILE)") && text.contains(path), "{text}");
        assert!(!text.contains(secret), "{text}");
    }
    // All errors of both files are reported together.
    let entries = problems[1..4].join("\n");
    std::fs::write(&file, entries).expect("a file");
    let mut flags = jwt_flags(JwtAlgorithm::EdDsa, &folder.path().join("nowhere"));
    flags.extend(["--api-keys-file", path].map(str::to_owned));
    let (status, text) = check(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!((status, text.lines().count()), (Some(2), 4), "{text}");
    for wanted in
        ["key 1 needs `id`", "key 2 needs `secret_sha256`", "key 3 needs `businesses`", "SESSIOND_JWT_KEY_FILE"]
    {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    for content in ["", "# none yet\n", "key = []", &format!("{entry}\nexpires = 2027-01-01T00:00:00+01:00")] {
        std::fs::write(&file, content).expect("a file");
        let (status, text) = check(&["--api-keys-file", path]);
        assert_eq!(status, Some(0), "{content}: {text}");
    }
}

#[test]
fn jwt_keys_must_fit_the_algorithm() {
    use JwtAlgorithm::{EdDsa, Es256, Hs256, Rs256};
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("key");
    let private = include_bytes!("rsa-test-key.pem").to_vec();
    let pem = |algorithm| Signer::new(algorithm).key_file();
    let set = |keys: &[serde_json::Value]| json!({"keys": keys}).to_string().into_bytes();
    let mut canary = Signer::new(Hs256).jwk("1");
    canary["k"] = "Y2FuYXJ5".into();
    let mut number = canary.clone();
    number["kid"] = json!({"canary": "canary"});
    let twice = Signer::new(EdDsa);
    let bad = [
        (Hs256, vec![], "less than 32 bytes"),
        (Hs256, b"canary".to_vec(), "less than 32 bytes"),
        (Hs256, pem(Rs256), "PEM"),
        (Hs256, private.clone(), "private key"),
        (Rs256, private, "private key"),
        (Rs256, pem(Es256), "no public key"),
        (Rs256, pem(Hs256), "no public key"),
        (Es256, pem(EdDsa), "no public key"),
        (EdDsa, pem(Es256), "no public key"),
        (EdDsa, b"-----BEGIN PUBLIC KEY-----\ncanary\n-----END PUBLIC KEY-----\n".to_vec(), "no public key"),
        (Hs256, set(&[canary]), "key 1 of the set has less than 32 bytes"),
        (Hs256, set(&[number]), "is not a JWK set (line 1"),
        (EdDsa, set(&[]), "has no key for EdDSA"),
        (EdDsa, set(&[Signer::new(Es256).jwk("1")]), "has no key for EdDSA"),
        (EdDsa, set(&[twice.jwk("1"), twice.jwk("1")]), "the kid of an earlier one"),
        (EdDsa, b"{\"keys\": [\"canary\"".to_vec(), "is not a JWK set"),
    ];
    for (algorithm, content, problem) in bad {
        std::fs::write(&file, &content).expect("a file");
        let flags = jwt_flags(algorithm, &file);
        let (status, text) = check(&flags.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((status, text.lines().count()), (Some(2), 1), "{algorithm:?} {problem}: {text}");
        assert!(text.contains(problem) && text.contains("SESSIOND_JWT_KEY_FILE"), "{problem}: {text}");
        assert!(!text.contains("canary") && !text.contains("Y2FuYXJ5"), "{text}");
    }
}

#[test]
fn jwt_settings_are_required_together() {
    let all = ["--jwt-key-file", "--jwt-algorithm", "--jwt-issuer", "--jwt-audience"];
    for given in all {
        let value = if given == "--jwt-algorithm" { "RS256" } else { "x" };
        let (status, text) = check(&[given, value]);
        assert_eq!((status, text.lines().count()), (Some(2), 3), "{text}");
        for missing in all.into_iter().filter(|flag| *flag != given) {
            assert!(text.contains(&format!("{missing} (SESSIOND_JWT_")), "{missing}: {text}");
        }
    }
    for algorithm in ["none", "rs256", "HS512", "RS256,HS256"] {
        let flags = ["--jwt-key-file", "x", "--jwt-algorithm", algorithm, "--jwt-issuer", "i", "--jwt-audience", "a"];
        let (status, text) = check(&flags);
        assert!(status == Some(2) && text.contains("must be HS256, RS256, ES256 or EdDSA"), "{text}");
    }
}

#[tokio::test]
async fn keygen_creates_a_working_key_and_prints_its_secret_once() {
    let folder = TempDir::new().expect("a folder");
    let (file, url) = (folder.path().join("keys.toml"), shared_url());
    let (mut content, mut credentials) = (String::new(), Vec::new());
    for arguments in [
        &["--id", "orders", "--business", "b", "--business", "a \"b\"\\", "--scope", "read"][..],
        &["--all-businesses", "--expires", "2999-01-31T00:00:00Z"],
    ] {
        // `keygen` ignores the settings of the service, also invalid ones.
        let output = run(&[&["keygen"], arguments].concat(), &[("SESSIOND_LISTEN", "nowhere")]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let (entry, message) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let credential = message.trim().rsplit(' ').next().expect("a credential").to_owned();
        let (_, secret) = credential.split_once('.').expect("a secret");
        assert!(secret.len() == 43 && !entry.contains(secret), "{entry}");
        content.push_str(&entry);
        credentials.push(credential);
    }
    assert!(credentials[0].starts_with("orders.") && credentials[1].starts_with("key-"), "{credentials:?}");
    std::fs::write(&file, content).expect("a file");
    let flags = ["--key-prefix", "sd:keygen", "--api-keys-file", file.to_str().expect("a path")];
    let (_service, base) = Process::serve(&flags, &[("REDIS_URL", &url)]);
    for (credential, business, status) in [(0, "b", 200), (0, "c", 403), (1, "c", 200)] {
        let url = format!("{base}/api/sessions/business/{business}/active");
        let request = reqwest::Client::new().get(url).bearer_auth(&credentials[credential]);
        assert_eq!(request.send().await.expect("a response").status().as_u16(), status);
    }
    let help = String::from_utf8_lossy(&run(&["keygen", "--help"], &[]).stdout).into_owned();
    for text in ["--api-keys-file", ">> keys.toml", "X-API-Key", "within 5 s", "Erasing a user needs admin"] {
        assert!(help.contains(text), "{text}: {help}");
    }
    for wrong in [
        &["keygen"][..],
        &["keygen", "--business", "b", "--all-businesses"],
        &["keygen", "--business", ""],
        &["keygen", "--business", "."],
    ] {
        assert_eq!(run(wrong, &[]).status.code(), Some(2), "{wrong:?}");
    }
    let bad = [("--id", "a.b"), ("--id", "a\"\nx = \"y"), ("--expires", "tomorrow"), ("--scope", "erase")];
    for (flag, value) in bad {
        let output = run(&["keygen", "--all-businesses", flag, value], &[]);
        assert!(output.status.code() == Some(2) && output.stdout.is_empty(), "{output:?}");
    }
}
