//! Key rotation while the service runs: calls with a valid key are never rejected, and a removed key is valid for at
//! most 5 s.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use sessiond::auth::{CredentialConfig, Credentials, JwtAlgorithm, Scope};
use sessiond::bootstrap::system_now;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::support::credentials::{Signer, api_key, claims, jwt_flags, replace};
use crate::support::process::{Process, with_timeout};
use crate::support::redis::shared_url;

/// The time within which a change of a file must take effect.
const IN_FORCE: Duration = Duration::from_secs(5);
const ACTIVE: &str = "/api/sessions/business/b/user/u/active";

async fn status(client: &reqwest::Client, base: &str, credential: &str) -> u16 {
    let request = client.get(format!("{base}{ACTIVE}")).bearer_auth(credential);
    request.send().await.expect("a response").status().as_u16()
}

/// Calls without a pause. Each of them must be accepted.
struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<u64>,
}

impl Load {
    fn start(base: &str, credential: &str) -> Self {
        let (stop, base, credential) = (Arc::new(AtomicBool::new(false)), base.to_owned(), credential.to_owned());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (client, mut calls) = (reqwest::Client::new(), 0);
            while !stopped.load(Ordering::Relaxed) {
                assert_eq!(status(&client, &base, &credential).await, 404, "a valid key was rejected");
                calls += 1;
            }
            calls
        });
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let calls = self.task.await.expect("no call failed");
        assert!(calls > 10, "{calls} calls are too few");
    }
}

/// Waits until a credential gets this status. Panics if that takes longer than `IN_FORCE`.
async fn wait_for_status(base: &str, credential: &str, wanted: u16) {
    let (client, started) = (reqwest::Client::new(), Instant::now());
    with_timeout(async { while status(&client, base, credential).await != wanted {} }).await;
    assert!(started.elapsed() <= IN_FORCE, "it took {:?}", started.elapsed());
}

/// Replaces a file with the first key by one with both keys, and that by one with the second key.
async fn rotate(flags: &[&str], file: &Path, contents: [&str; 3], credentials: [&str; 2]) -> (Process, String) {
    let [first, second] = credentials;
    replace(file, contents[0]);
    let url = shared_url();
    let (service, base) = Process::serve(flags, &[("REDIS_URL", &url)]);
    wait_for_status(&base, first, 404).await;
    wait_for_status(&base, second, 401).await;
    let load = Load::start(&base, first);
    replace(file, contents[1]);
    wait_for_status(&base, second, 404).await;
    wait_for_status(&base, first, 404).await;
    load.stop().await;
    let load = Load::start(&base, second);
    // This file is written in place instead of being replaced.
    std::fs::write(file, contents[2]).expect("a file written");
    wait_for_status(&base, first, 401).await;
    load.stop().await;
    (service, base)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn api_keys_are_rotated_without_rejections_and_revoked_in_time() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("keys.toml");
    let (first, first_entry) = api_key("first", &["b"], &[Scope::Read], None);
    let (second, second_entry) = api_key("second", &[], &[Scope::Read], None);
    let both = format!("{first_entry}\n{second_entry}");
    let flags =
        ["--key-prefix", "sd:rotated-keys", "--rate-limit", "0", "--api-keys-file", file.to_str().expect("a path")];
    let (mut service, base) = rotate(&flags, &file, [&first_entry, &both, &second_entry], [&first, &second]).await;

    let load = Load::start(&base, &second);
    let (_, pasted) = first.split_once('.').expect("a secret");
    replace(&file, format!("{both}\nsecret = \"{pasted}\nmore = 1\n"));
    service.wait_for_line("is not TOML in line");
    std::fs::remove_file(&file).expect("a file");
    service.wait_for_line("cannot be read");
    wait_for_status(&base, &first, 401).await;
    load.stop().await;
    // A valid file after an invalid one is loaded, and so is a file without keys.
    replace(&file, &first_entry);
    wait_for_status(&base, &first, 404).await;
    wait_for_status(&base, &second, 401).await;
    replace(&file, "# nobody\n");
    wait_for_status(&base, &first, 401).await;
    let log = service.lines.join("\n");
    assert!(log.contains("stays in force") && log.contains("2 API keys") && !log.contains(pasted), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_jwk_set_are_rotated_without_rejections_and_revoked_in_time() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("jwks.json");
    let signers = [Signer::new(JwtAlgorithm::Es256), Signer::new(JwtAlgorithm::Es256)];
    let [first, second] = [0, 1].map(|place| {
        let header = json!({"alg": "ES256", "kid": place.to_string()});
        signers[place].token_with(&header, &claims("b", "u", system_now()))
    });
    let set = |places: &[usize]| {
        let keys: Vec<_> = places.iter().map(|&place| signers[place].jwk(&place.to_string())).collect();
        json!({"keys": keys}).to_string()
    };
    let mut flags = jwt_flags(JwtAlgorithm::Es256, &file);
    flags.extend(["--key-prefix", "sd:rotated-set", "--rate-limit", "0", "--user-rate-limit", "0"].map(str::to_owned));
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    rotate(&flags, &file, [&set(&[0]), &set(&[0, 1]), &set(&[1])], [&first, &second]).await;
}

#[test]
fn partially_written_key_files_are_not_loaded() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("keys.toml");
    let (first, first_entry) = api_key("first", &["b"], &[Scope::Read], None);
    let (second, second_entry) = api_key("second", &["b"], &[Scope::Read], None);
    let both = format!("{first_entry}\n{second_entry}\n");
    std::fs::write(&file, &both).expect("a file");
    let settings = CredentialConfig { api_keys_file: Some(file.clone()), ..CredentialConfig::default() };
    let credentials = Credentials::load(&settings).expect("good keys");
    let good = |credential: &str| credentials.of_api_key(credential, system_now()).is_ok();
    // Prefixes of the file, as a slow writer leaves them behind. Some of them contain complete keys.
    for length in (0..both.len()).step_by(both.len() / 20) {
        std::fs::write(&file, &both[..length]).expect("a file");
        credentials.reload();
        assert!(good(&first) && good(&second), "the first {length} of {} bytes were loaded", both.len());
    }
    std::fs::write(&file, &second_entry).expect("a file");
    credentials.reload();
    assert!(good(&first));
    credentials.reload();
    assert!(!good(&first) && good(&second));
}
