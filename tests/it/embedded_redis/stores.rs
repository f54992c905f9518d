//! Stores on disk for tests that damage them. The program creates a store once, and each test case uses a copy.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{ask, info, post, serve, try_ask};
use crate::support::process::{self, Process, TEST_TIMEOUT, signal_child};
use crate::support::redis::server_program;

pub const MANIFEST: &str = "appendonlydir/appendonly.aof.manifest";
pub const BASE: &str = "appendonlydir/appendonly.aof.2.base.rdb";
pub const COMMANDS: &str = "appendonlydir/appendonly.aof.2.incr.aof";
pub const MARKER: &str = "sessiond.store";
/// Files of a running process, which are not part of a store.
const OF_THE_PROCESS: [&str; 3] = ["sessiond.lock", "redis.log", "redis.sock"];
/// The number of sessions in the base file, and also in the command file.
pub const SESSIONS: usize = 30;

/// The command that runs on a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Serve,
    Audit,
    Repair,
}

pub const ALL: [Mode; 3] = [Mode::Serve, Mode::Audit, Mode::Repair];

/// The result of a command on a store.
#[derive(Debug)]
pub struct Outcome {
    /// The exit status.
    pub code: Option<i32>,
    /// The number of sessions found, or `None` if the store was rejected.
    pub sessions: Option<usize>,
    /// The text on stderr, followed by the report of an audit.
    pub text: String,
}

/// The files in a folder and its subfolders, by relative path.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Creates a store with a base file and a command file. The store is not in use.
pub async fn make() -> TempDir {
    let folder = super::folder();
    let (mut service, base) = serve(&folder);
    // A business each, so each file has all writes of its sessions' indexes.
    let create = async |kind: &str| {
        for number in 0..SESSIONS {
            post(&base, "/api/sessions", json!({"businessId": kind, "userId": format!("{number}")})).await;
        }
    };
    create("base").await;
    assert!(ask(folder.path(), "BGREWRITEAOF").starts_with('+'));
    let started = Instant::now();
    while info(folder.path(), "aof_rewrite_in_progress") != "0" || !folder.path().join(BASE).exists() {
        assert!(started.elapsed() < TEST_TIMEOUT, "Redis does not rewrite the append-only file");
    }
    create("commands").await;
    stop(&mut service);
    folder
}

pub fn stop(service: &mut Process) {
    service.signal(Signal::TERM);
    assert!(service.wait().success(), "{:#?}", service.lines);
}

/// A copy of a store.
pub fn copy(store: &Path) -> TempDir {
    let folder = super::folder();
    for (name, content) in all_files(store) {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, content).expect("a file");
    }
    folder
}

/// All files in `folder` and its subfolders.
pub fn all_files(folder: &Path) -> Files {
    let (mut files, mut folders) = (Files::new(), vec![PathBuf::new()]);
    while let Some(inner) = folders.pop() {
        for entry in fs::read_dir(folder.join(&inner)).expect("a folder") {
            let entry = entry.expect("an entry");
            let path = inner.join(entry.file_name());
            let name = path.to_str().expect("a path of text").to_owned();
            match entry.file_type().expect("a type") {
                kind if kind.is_dir() => folders.push(path),
                kind if kind.is_file() => drop(files.insert(name, fs::read(entry.path()).expect("a file"))),
                _ => drop(files.insert(name, Vec::new())),
            }
        }
    }
    files
}

/// The files of the store in `folder`.
pub fn files(folder: &Path) -> Files {
    let mut files = all_files(folder);
    files.retain(|name, _| !OF_THE_PROCESS.contains(&name.as_str()));
    files
}

/// Runs the program on the store in `folder`. Stops it once it serves.
pub fn start(folder: &Path, mode: Mode) -> Outcome {
    let data_dir = folder.to_str().expect("a path of text");
    let variables = [("SESSIOND_DATA_DIR", data_dir)];
    let arguments: &[&str] = match mode {
        Mode::Serve => return start_service(folder, &variables),
        Mode::Audit => &["audit", "--format", "json"],
        Mode::Repair => &["audit", "--format", "json", "--repair"],
    };
    let output = process::run(arguments, &variables);
    let report = String::from_utf8(output.stdout).expect("text");
    let sessions = serde_json::from_str::<Value>(&report).ok().and_then(|report| report["sessions"].as_u64());
    let text = format!("{}{report}", String::from_utf8_lossy(&output.stderr));
    Outcome { code: output.status.code(), sessions: sessions.and_then(|count| usize::try_from(count).ok()), text }
}

fn start_service(folder: &Path, variables: &[(&str, &str)]) -> Outcome {
    let arguments = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
    let mut service = Process::start(&arguments, variables);
    let serves = service.wait_for_any(&["serving on http", "sessiond: "]).contains("serving on http");
    let sessions = serves.then(|| sessions(folder).len());
    if serves {
        service.signal(Signal::TERM);
    }
    let code = service.wait().code();
    Outcome { code, sessions, text: service.lines.join("\n") }
}

/// The keys of all sessions in the running Redis in `folder`.
pub fn sessions(folder: &Path) -> BTreeSet<String> {
    let started = Instant::now();
    loop {
        let reply = ask(folder, "KEYS *:s:*");
        if !reply.starts_with("-LOADING") {
            return reply.lines().filter(|line| line.contains(":s:")).map(str::to_owned).collect();
        }
        assert!(started.elapsed() < TEST_TIMEOUT, "Redis is still loading");
    }
}

/// Starts a plain Redis on the store in `folder`. Returns the number of sessions, or `None` if Redis rejects the store.
pub fn sessions_of_plain_redis(folder: &Path) -> Option<usize> {
    let mut command = Command::new(server_program());
    command.current_dir(folder).args(["--port", "0", "--unixsocket", "redis.sock", "--save", ""]);
    command.args(["--appendonly", "yes"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = KillOnDrop(command.spawn().expect("a redis-server"));
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < TEST_TIMEOUT, "the server neither serves nor exits");
        if child.0.try_wait().expect("a child").is_some() {
            return None;
        }
        if try_ask(folder, "PING").is_ok_and(|reply| reply.starts_with("+PONG")) {
            let sessions = sessions(folder).len();
            signal_child(&child.0, Signal::TERM);
            child.0.wait().expect("an exit status");
            return Some(sessions);
        }
        std::thread::yield_now();
    }
}

/// A server process that is killed when dropped.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Checks a command file with `redis-check-aof` or `valkey-check-aof`. Returns the length of the valid part in bytes,
/// and whether that is the whole file. `None` if the tool is not installed.
pub fn check_with_tool(file: &Path) -> Option<(u64, bool)> {
    let server = server_program();
    let name = server.file_name()?.to_str()?.replace("-server", "-check-aof");
    let output = Command::new(server.with_file_name(name)).arg(file).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, rest) = text.split_once("ok_up_to=").unwrap_or_else(|| panic!("{text}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((digits.parse().expect("a number"), output.status.success()))
}
