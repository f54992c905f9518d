//! Backups of a Redis in use, taken and restored as docs/operations.md describes.

use std::fs;
use std::path::Path;
use std::time::Instant;

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::acl;
use crate::support::faulty_redis::remove_unfinished_transaction;
use crate::support::ledger::Ledger;
use crate::support::load::{Load, User, expect_right};
use crate::support::process::{self, Process, TEST_TIMEOUT, with_timeout};
use crate::support::redis::RedisProbe;
use crate::support::redis_server::{AOF, IN_MEMORY, POLL, RedisServer};

const APPEND_ONLY_DIR: &str = "appendonlydir";
const SNAPSHOT: &str = "dump.rdb";
const LEDGER_CALLS: usize = 8;

/// Copies the append-only file of a Redis in use. Redis must not replace the files in the meantime.
async fn copy_append_only_file(probe: &RedisProbe, data: &Path, backup: &Path) {
    probe.command(&["CONFIG", "SET", "auto-aof-rewrite-percentage", "0"]).await;
    // The file may lack writes that a slow sync delays.
    wait_for_info(probe, &["aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0", "aof_buffer_length:0"]).await;
    copy_folder(&data.join(APPEND_ONLY_DIR), &backup.join(APPEND_ONLY_DIR));
    probe.command(&["CONFIG", "SET", "auto-aof-rewrite-percentage", "100"]).await;
}

/// Makes a Redis in use write a snapshot, and copies the snapshot.
async fn copy_snapshot(probe: &RedisProbe, data: &Path, backup: &Path) {
    probe.command(&["BGSAVE"]).await;
    wait_for_info(probe, &["rdb_bgsave_in_progress:0", "rdb_last_bgsave_status:ok"]).await;
    fs::copy(data.join(SNAPSHOT), backup.join(SNAPSHOT)).expect("a snapshot");
}

/// Waits until the reply to INFO has all of these lines.
async fn wait_for_info(probe: &RedisProbe, lines: &[&str]) {
    let started = Instant::now();
    loop {
        let info = probe.text(&["INFO", "persistence"]).await.expect("a reply");
        if lines.iter().all(|line| info.lines().any(|found| found == *line)) {
            return;
        }
        assert!(started.elapsed() < TEST_TIMEOUT, "never {lines:?}: {info}");
        tokio::time::sleep(POLL).await;
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

/// Cuts the last bytes off the newest command file, like a copy that was taken during a write.
fn cut_off_the_end(backup: &Path) {
    let files = fs::read_dir(backup.join(APPEND_ONLY_DIR)).expect("a folder").map(|entry| entry.expect("one").path());
    let commands = files.max_by_key(|path| path.to_string_lossy().ends_with(".incr.aof")).expect("a command file");
    let file = fs::File::options().write(true).open(commands).expect("a command file");
    let length = file.metadata().expect("a length").len();
    file.set_len(length - 5).expect("a shorter file");
}

/// Starts another Redis on a backup.
fn start_on(backup: &Path, settings: &[&str]) -> RedisServer {
    let mut server = RedisServer::start(settings);
    server.kill();
    let data = server.data_folder();
    fs::remove_dir_all(&data).expect("the empty data");
    fs::create_dir(&data).expect("a folder");
    let append_only = backup.join(APPEND_ONLY_DIR);
    if append_only.exists() {
        copy_folder(&append_only, &data.join(APPEND_ONLY_DIR));
    } else {
        fs::copy(backup.join(SNAPSHOT), data.join(SNAPSHOT)).expect("a snapshot");
    }
    server.start_again();
    server
}

/// A service on a Redis, and clients that use it.
struct Original {
    _service: Process,
    base: String,
    ledger: Ledger,
    load: Load,
    deleted_later: String,
}

async fn send(base: &str, method: Method, path: &str, body: Value) -> (u16, Value) {
    let response = Client::new().request(method, format!("{base}/api/sessions{path}")).json(&body).send().await;
    let response = response.expect("a response");
    (response.status().as_u16(), response.json().await.unwrap_or_default())
}

async fn create(base: &str, user_id: &str) -> String {
    let (status, session) = send(base, Method::POST, "", json!({"businessId": "b", "userId": user_id})).await;
    assert_eq!(status, 201, "{session}");
    session["sessionId"].as_str().expect("an id").to_owned()
}

impl Original {
    /// Starts the service, makes the calls of the ledger, and starts a load that continues during the backup.
    async fn start(server: &RedisServer) -> Self {
        let (service, base) = Process::serve(&[], &[("REDIS_URL", &server.url())]);
        let mut ledger = Ledger::new(&base);
        ledger.load(LEDGER_CALLS).await;
        ledger.expect_all_answered();
        let deleted_later = create(&base, "deleted after the backup").await;
        let users: Vec<_> = (0..4).map(|number| ("load".to_owned(), format!("user{number}"))).collect();
        let load = Load::start(&base, &users).await;
        // `cut_off_the_end` cuts off the last write, which is this one or one of the load.
        create(&base, "the last before the backup").await;
        Self { _service: service, base, ledger, load, deleted_later }
    }

    /// Makes calls after the backup, then compares the restored data with the acknowledged writes: it has everything
    /// from before the backup, and nothing from after it.
    async fn expect_restored(self, restore: impl FnOnce() -> RedisServer) {
        let Self { _service, base, mut ledger, load, deleted_later } = self;
        let created_later = create(&base, "created after the backup").await;
        assert_eq!(send(&base, Method::DELETE, &format!("/{deleted_later}"), Value::Null).await.0, 204);
        // Gives every user time for a few calls after the backup.
        tokio::time::sleep(POLL * 8).await;
        let users = load.stop().await;
        expect_right(&users);

        let restored = restore();
        let (_restored_service, base) = Process::serve(&[], &[("REDIS_URL", &restored.url())]);
        expect_clean(&restored);
        ledger.base.clone_from(&base);
        with_timeout(ledger.expect_complete()).await;
        let mut lost = 0;
        for user in &users {
            // Panics unless the stored messages are the first ones, without gaps.
            lost += user.lost(&base).await.len();
        }
        let acknowledged: usize = users.iter().map(User::acknowledged).sum();
        println!("{lost} of {acknowledged} messages that were acknowledged during or after the backup are lost");
        assert!(lost > 0, "the load made no call after the backup, so the test proves nothing");
        assert_eq!(send(&base, Method::GET, &format!("/{created_later}"), Value::Null).await.0, 404);
        let (status, session) = send(&base, Method::GET, &format!("/{deleted_later}"), Value::Null).await;
        assert_eq!((status, &session["status"]), (200, &json!("active")), "{session}");
        // Users continue where the backup ends.
        let user = &users[0];
        let body = json!({"businessId": user.business_id, "userId": user.user_id});
        let (status, session) = send(&base, Method::POST, "", body).await;
        assert_eq!((status, &session["sessionId"]), (200, &json!(user.session_id)), "{session}");
        let message = json!({"role": "user", "content": "again"});
        let path = format!("/{}/messages", user.session_id);
        let (status, appended) = send(&base, Method::POST, &path, message).await;
        let next = session["messageCount"].as_u64().map(|count| count + 1);
        assert_eq!((status, appended["seq"].as_u64()), (201, next), "{appended}");
        expect_clean(&restored);
    }
}

fn expect_clean(server: &RedisServer) {
    let audit = process::run(&["audit"], &[("REDIS_URL", &acl::audit_url(&server.url()))]);
    assert_eq!(audit.status.code(), Some(0), "{}", String::from_utf8_lossy(&audit.stdout));
}

#[tokio::test]
async fn a_copied_append_only_file_has_everything_until_the_backup() {
    let server = RedisServer::start(AOF);
    let original = Original::start(&server).await;
    let backup = TempDir::new().expect("a folder");
    copy_append_only_file(&server.probe().await, &server.data_folder(), backup.path()).await;
    original
        .expect_restored(|| {
            cut_off_the_end(backup.path());
            remove_unfinished_transaction(backup.path());
            start_on(backup.path(), AOF)
        })
        .await;
}

#[tokio::test]
async fn a_snapshot_has_everything_until_the_backup() {
    let server = RedisServer::start(AOF);
    let original = Original::start(&server).await;
    let backup = TempDir::new().expect("a folder");
    copy_snapshot(&server.probe().await, &server.data_folder(), backup.path()).await;

    // With an append-only file, Redis starts without reading the snapshot.
    let empty = start_on(backup.path(), AOF);
    assert_eq!(empty.line("DBSIZE"), ":0");

    let converted = TempDir::new().expect("a folder");
    let without_append_only_file = start_on(backup.path(), IN_MEMORY);
    let probe = without_append_only_file.probe().await;
    probe.command(&["CONFIG", "SET", "appendonly", "yes"]).await;
    let written = ["aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0", "aof_last_bgrewrite_status:ok"];
    wait_for_info(&probe, &written).await;
    drop(probe);
    let data = without_append_only_file.data_folder().join(APPEND_ONLY_DIR);
    copy_folder(&data, &converted.path().join(APPEND_ONLY_DIR));
    original.expect_restored(|| start_on(converted.path(), AOF)).await;
}

#[tokio::test]
async fn a_copied_data_directory_of_an_embedded_redis_serves_elsewhere() {
    let folders = [TempDir::new().expect("a folder"), TempDir::new().expect("a folder")];
    let [data, restored] = folders.each_ref().map(|folder| folder.path().join("data"));
    let serve = |folder: &Path| Process::serve(&["--data-dir", folder.to_str().expect("a path")], &[]);
    let (_service, base) = serve(&data);
    let mut ledger = Ledger::new(&base);
    ledger.load(LEDGER_CALLS).await;
    ledger.expect_all_answered();
    create(&base, "cut off").await;
    let probe = RedisProbe::at(&data.join("redis.sock"), "sd").await;
    copy_append_only_file(&probe, &data, &restored).await;
    fs::copy(data.join("sessiond.store"), restored.join("sessiond.store")).expect("the mark of a store");
    cut_off_the_end(&restored);
    let created_later = create(&base, "created after the backup").await;

    let (restored_service, base) = serve(&restored);
    assert!(restored_service.lines.iter().any(|line| line.contains("cut off")), "{:#?}", restored_service.lines);
    assert_eq!(send(&base, Method::GET, &format!("/{created_later}"), Value::Null).await.0, 404);
    ledger.base = base;
    with_timeout(ledger.expect_complete()).await;
}
