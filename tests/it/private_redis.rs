//! The private Redis of a service that was given none, with the program as it is shipped.

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

use crate::support::process::{PATIENCE, Process};
use crate::support::redis::server_program;

/// A service with a private Redis in `folder`.
fn serve(folder: &TempDir) -> (Process, String) {
    Process::serve(&[], &[("SESSIOND_DATA_DIR", folder.path().to_str().expect("a path of text"))])
}

fn folder() -> TempDir {
    TempDir::new().expect("a folder")
}

async fn post(base: &str, path: &str, body: Value) -> Value {
    let answer = reqwest::Client::new().post(format!("{base}{path}")).json(&body).send().await.expect("an answer");
    assert!(answer.status().is_success(), "{answer:?}");
    answer.json().await.expect("JSON")
}

async fn get(base: &str, path: &str) -> Value {
    let answer = reqwest::get(format!("{base}{path}")).await.expect("an answer");
    answer.json().await.expect("JSON")
}

/// The answer of a service whose Redis is coming back: each of its connections does so at a moment of its own.
async fn get_when_served(base: &str, path: &str) -> Value {
    let started = std::time::Instant::now();
    loop {
        let answer = reqwest::get(format!("{base}{path}")).await.expect("an answer");
        match answer.status().as_u16() {
            // Not back yet: an honest answer all the same.
            503 => assert!(answer.headers().contains_key("retry-after")),
            200 => return answer.json().await.expect("JSON"),
            status => panic!("{status}"),
        }
        assert!(started.elapsed() < PATIENCE, "Redis is not back");
    }
}

/// What the Redis in `folder` replies to a command, and to QUIT.
fn ask(folder: &Path, command: &str) -> String {
    try_ask(folder, command).expect("an answer")
}

fn try_ask(folder: &Path, command: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(folder.join("redis.sock"))?;
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A value of the reply of INFO of the Redis in `folder`.
fn info(folder: &Path, name: &str) -> String {
    let answer = ask(folder, "INFO");
    let value = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {name} in {answer}")).to_owned()
}

/// The process id of the Redis in `folder`, from Redis itself.
fn redis_pid(folder: &Path) -> Pid {
    info(folder, "process_id").parse().ok().and_then(Pid::from_raw).expect("a process id")
}

/// Redis writes its append-only file before it answers, unless a sync of it takes long: then up to two seconds later, and a
/// `kill -9` of Redis itself loses that.
fn wait_until_written(folder: &Path) {
    let started = std::time::Instant::now();
    while info(folder, "aof_buffer_length") != "0" {
        assert!(started.elapsed() < PATIENCE, "the append-only file is not written");
    }
}

/// Waits until a process is gone, or is a zombie that nobody of ours can reap.
fn wait_until_gone(pid: Pid) {
    let started = std::time::Instant::now();
    let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let is_running = || {
        let state = std::fs::read_to_string(&stat).unwrap_or_default();
        test_kill_process(pid).is_ok() && !state.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"))
    };
    while is_running() {
        assert!(started.elapsed() < PATIENCE, "process {pid:?} is still there");
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

/// Redis 7.0 by itself keeps the start of it in the file, and applies that with the next one.
#[tokio::test]
async fn a_transaction_that_was_half_written_is_never_applied() {
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
    // The first start has to load it, the second one what was written after it.
    for user in ["second", "third"] {
        let (service, base) = serve(&folder);
        post(&base, "/api/sessions", json!({"businessId": "b", "userId": user})).await;
        assert!(ask(folder.path(), "EXISTS half").starts_with(":0"), "it was applied before {user}");
        assert!(
            service.lines.iter().any(|line| line.contains("cut off")) == (user == "second"),
            "{:#?}",
            service.lines
        );
        stop(service);
    }
}

#[tokio::test]
async fn a_redis_that_dies_is_started_again_with_its_data() {
    let folder = folder();
    let (mut service, base) = serve(&folder);
    let session = post(&base, "/api/sessions", json!({"businessId": "b", "userId": "u"})).await;
    wait_until_written(folder.path());
    kill_process(redis_pid(folder.path()), Signal::KILL).expect("a running Redis");
    service.wait_for_line("starting it again");
    assert_eq!(get_when_served(&base, "/api/sessions/business/b/user/u/active").await, session);
}

#[tokio::test]
async fn a_second_service_on_the_same_folder_is_refused() {
    let folder = folder();
    let (_first, base) = serve(&folder);
    let path = folder.path().to_str().expect("a path of text");
    let mut second = Process::start(&["--listen", "127.0.0.1:0"], &[("SESSIOND_DATA_DIR", path)]);
    assert_eq!(second.wait().code(), Some(2));
    let last = second.lines.last().expect("a line");
    assert!(last.contains("is in use by another sessiond") && last.contains("--data-dir"), "{last}");
    assert_eq!(get(&base, "/readyz").await, json!({"status": "ready"}), "the first goes on");
}

#[test]
fn nobody_else_can_read_the_folder_and_no_port_is_open() {
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
    assert!(!owned.iter().any(of_tcp), "the private Redis listens on TCP");
}

#[test]
fn without_a_server_program_it_says_what_to_install() {
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
    // Redis refuses a command that it does not know.
    std::fs::write(folder.path().join("sessiond.lock"), "").expect("a file");
    std::fs::write(folder.path().join("appendonly.aof"), "*2\r\n$4\r\nSETT\r\n$1\r\na\r\n").expect("a file");
    let mut service = Process::start(&["--listen", "127.0.0.1:0"], &[("SESSIOND_DATA_DIR", path)]);
    service.wait_for_line("did not come up");
    assert_eq!(service.wait().code(), Some(2));
    let all = service.lines.join("\n");
    assert!(all.contains("Unknown command 'SETT'"), "{all}");
}

#[test]
fn somebody_elses_folder_is_left_alone() {
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
fn the_server_can_be_named() {
    let folder = folder();
    let path = folder.path().to_str().expect("a path of text");
    let server = server_program();
    let server = server.to_str().expect("a path of text");
    let (_service, _) =
        Process::serve(&[], &[("SESSIOND_DATA_DIR", path), ("SESSIOND_REDIS_SERVER", server), ("PATH", "/nowhere")]);
}
