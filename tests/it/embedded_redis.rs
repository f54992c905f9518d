//! The embedded Redis of a service without `REDIS_URL`. The tests run the real program.

mod damage;
mod missing;
mod stores;
mod supervision;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::process::{Process, TEST_TIMEOUT};
use crate::support::redis::server_program;

/// Starts a service with an embedded Redis in `folder`.
fn serve(folder: &TempDir) -> (Process, String) {
    Process::serve(&[], &[("SESSIOND_DATA_DIR", folder.path().to_str().expect("a path of text"))])
}

fn folder() -> TempDir {
    TempDir::new().expect("a folder")
}

async fn post(base: &str, path: &str, body: Value) -> Value {
    let response = reqwest::Client::new().post(format!("{base}{path}")).json(&body).send().await.expect("a response");
    assert!(response.status().is_success(), "{response:?}");
    response.json().await.expect("JSON")
}

async fn get(base: &str, path: &str) -> Value {
    let response = reqwest::get(format!("{base}{path}")).await.expect("a response");
    response.json().await.expect("JSON")
}

/// Repeats a `GET` until the service has reconnected to its restarted Redis. Each of its connections reconnects at its
/// own time.
async fn get_when_served(base: &str, path: &str) -> Value {
    let started = std::time::Instant::now();
    loop {
        let response = reqwest::get(format!("{base}{path}")).await.expect("a response");
        match response.status().as_u16() {
            // This connection has not reconnected yet.
            503 => assert!(response.headers().contains_key("retry-after")),
            200 => return response.json().await.expect("JSON"),
            status => panic!("{status}"),
        }
        assert!(started.elapsed() < TEST_TIMEOUT, "Redis is not back");
    }
}

/// The replies of the Redis in `folder` to a command and to QUIT.
fn ask(folder: &Path, command: &str) -> String {
    try_ask(folder, command).expect("a reply")
}

fn try_ask(folder: &Path, command: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(folder.join("redis.sock"))?;
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}

/// The value of a field of INFO of the Redis in `folder`.
fn info(folder: &Path, name: &str) -> String {
    let reply = ask(folder, "INFO");
    let value = reply.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {name} in {reply}")).to_owned()
}

/// The process id of the Redis in `folder`, as Redis reports it.
fn redis_pid(folder: &Path) -> Pid {
    info(folder, "process_id").parse().ok().and_then(Pid::from_raw).expect("a process id")
}

/// Waits until Redis has written its append-only file. Redis writes it before it replies, except while a sync takes
/// long: then it writes up to two seconds later, and a `kill -9` of Redis loses that data.
fn wait_until_written(folder: &Path) {
    let started = std::time::Instant::now();
    while info(folder, "aof_buffer_length") != "0" {
        assert!(started.elapsed() < TEST_TIMEOUT, "Redis does not write the append-only file");
    }
}

/// Waits until a process has ended. A zombie counts as ended, because this process cannot reap it.
fn wait_until_gone(pid: Pid) {
    let started = std::time::Instant::now();
    let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let is_running = || {
        let state = std::fs::read_to_string(&stat).unwrap_or_default();
        test_kill_process(pid).is_ok() && !state.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"))
    };
    while is_running() {
        assert!(started.elapsed() < TEST_TIMEOUT, "process {pid:?} is still running");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn data_survives_a_clean_stop_and_the_child_ends_with_it() {
    let folder = folder();
    let (mut service, base) = serve(&folder);
    let session = post(&base, "/api/sessions", json!({"businessId": "b", "userId": "u"})).await;
    let child = redis_pid(folder.path());
    service.signal(Signal::TERM);
    assert!(service.wait().success(), "{:#?}", service.lines);
    wait_until_gone(child);

    let (_service, base) = serve(&folder);
    assert_eq!(get(&base, "/api/sessions/business/b/user/u/active").await, session);
}

#[tokio::test]
async fn data_survives_kill_9_and_the_child_ends_with_it() {
    let folder = folder();
    let (mut service, base) = serve(&folder);
    let session = post(&base, "/api/sessions", json!({"businessId": "b", "userId": "u"})).await;
    let messages: Vec<_> = (0..100).map(|number| json!({"role": "user", "content": number})).collect();
    let path = format!("/api/sessions/{}/messages", session["sessionId"].as_str().expect("an id"));
    post(&base, &path, Value::Array(messages)).await;
    let child = redis_pid(folder.path());
    service.signal(Signal::KILL);
    service.wait();
    wait_until_gone(child);

    let (_service, base) = serve(&folder);
    let found = get(&base, "/api/sessions/business/b/user/u/active").await;
    assert_eq!((&found["sessionId"], &found["messageCount"]), (&session["sessionId"], &json!(100)));
    assert_eq!(get(&base, &format!("{path}?limit=1000")).await.as_array().map(Vec::len), Some(100));
}

/// Redis 7.0 keeps the start of such a transaction in the file, and applies it together with the next transaction.
#[tokio::test]
async fn a_partially_written_transaction_is_never_applied() {
    let folder = folder();
    let stop = |mut service: Process| {
        service.signal(Signal::TERM);
        assert!(service.wait().success(), "{:#?}", service.lines);
    };
    let (service, base) = serve(&folder);
    post(&base, "/api/sessions", json!({"businessId": "b", "userId": "first"})).await;
    stop(service);
    let file = folder.path().join("appendonlydir/appendonly.aof.1.incr.aof");
    let mut file = std::fs::File::options().append(true).open(file).expect("an append-only file");
    let half = "*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$1\r\n1\r\n*3\r\n$3\r\nSET\r\n$5\r\nother";
    file.write_all(half.as_bytes()).expect("a file written");
    // The first start loads the partial transaction, the second one also what was written after it.
    for user in ["second", "third"] {
        let (service, base) = serve(&folder);
        post(&base, "/api/sessions", json!({"businessId": "b", "userId": user})).await;
        assert!(ask(folder.path(), "EXISTS half").starts_with(":0"), "the transaction was applied before {user}");
        assert!(
            service.lines.iter().any(|line| line.contains("cut off")) == (user == "second"),
            "{:#?}",
            service.lines
        );
        stop(service);
    }
}

#[tokio::test]
async fn a_killed_redis_is_restarted_with_its_data() {
    let folder = folder();
    let (mut service, base) = serve(&folder);
    let session = post(&base, "/api/sessions", json!({"businessId": "b", "userId": "u"})).await;
    wait_until_written(folder.path());
    kill_process(redis_pid(folder.path()), Signal::KILL).expect("a running Redis");
    service.wait_for_line("starting it again");
    assert_eq!(get_when_served(&base, "/api/sessions/business/b/user/u/active").await, session);
}

#[tokio::test]
async fn a_second_service_on_the_same_folder_is_rejected() {
    let folder = folder();
    let (_first, base) = serve(&folder);
    let path = folder.path().to_str().expect("a path of text");
    let mut second = Process::start(&["--listen", "127.0.0.1:0"], &[("SESSIOND_DATA_DIR", path)]);
    assert_eq!(second.wait().code(), Some(2));
    let last = second.lines.last().expect("a line");
    assert!(last.contains("is in use by another sessiond") && last.contains("--data-dir"), "{last}");
    assert_eq!(get(&base, "/readyz").await, json!({"status": "ready"}), "the first service is not ready");
}

#[test]
fn the_data_folder_is_private_and_no_port_is_open() {
    let folder = folder();
    let inner = folder.path().join("data");
    let path = inner.to_str().expect("a path of text");
    let (_service, _) = Process::serve(&[], &[("SESSIOND_DATA_DIR", path)]);
    let mode = |path: &Path| std::fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode(&inner), 0o700);
    assert_eq!(mode(&inner.join("redis.sock")), 0o700);
    let child = redis_pid(&inner);
    let sockets = std::fs::read_to_string(format!("/proc/{}/net/tcp", child.as_raw_nonzero())).expect("sockets");
    let owned: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", child.as_raw_nonzero()))
        .expect("open files")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|target| target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned))
        .collect();
    let of_tcp = |inode: &String| sockets.lines().any(|line| line.split_whitespace().nth(9) == Some(inode));
    assert!(!owned.iter().any(of_tcp), "the embedded Redis listens on TCP");
}

#[test]
fn a_missing_server_program_is_reported_with_the_package_to_install() {
    let folder = folder();
    let path = folder.path().to_str().expect("a path of text");
    let mut service = Process::start(&["--listen", "127.0.0.1:0"], &[("SESSIOND_DATA_DIR", path), ("PATH", path)]);
    assert_eq!(service.wait().code(), Some(2));
    let last = service.lines.last().expect("a line");
    assert!(last.contains("sudo apt-get install redis-server") && last.contains("REDIS_URL"), "{last}");
}

#[test]
fn a_server_that_cannot_start_is_reported_with_its_log() {
    let folder = folder();
    let path = folder.path().to_str().expect("a path of text");
    // Redis does not load a file with an unknown command.
    std::fs::write(folder.path().join("sessiond.lock"), "").expect("a file");
    std::fs::write(folder.path().join("appendonly.aof"), "*2\r\n$4\r\nSETT\r\n$1\r\na\r\n").expect("a file");
    let mut service = Process::start(&["--listen", "127.0.0.1:0"], &[("SESSIOND_DATA_DIR", path)]);
    service.wait_for_line("did not come up");
    assert_eq!(service.wait().code(), Some(2));
    let all = service.lines.join("\n");
    assert!(all.contains("nknown command 'SETT'"), "{all}");
}

#[test]
fn an_unrelated_folder_is_rejected_and_left_unchanged() {
    let folder = folder();
    std::fs::write(folder.path().join("letters.txt"), "mine").expect("a file");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("permissions");
    let path = folder.path().to_str().expect("a path of text");
    let mut service = Process::start(&["--listen", "127.0.0.1:0"], &[("SESSIOND_DATA_DIR", path)]);
    assert_eq!(service.wait().code(), Some(2));
    assert!(service.lines.join("\n").contains("neither empty nor a data directory"), "{:#?}", service.lines);
    assert_eq!(std::fs::metadata(folder.path()).expect("a folder").permissions().mode() & 0o777, 0o755);
}

#[test]
fn the_server_program_is_configurable() {
    let folder = folder();
    let path = folder.path().to_str().expect("a path of text");
    let server = server_program();
    let server = server.to_str().expect("a path of text");
    let (_service, _) =
        Process::serve(&[], &[("SESSIOND_DATA_DIR", path), ("SESSIOND_REDIS_SERVER", server), ("PATH", "/nowhere")]);
}
