//! Damaged files of a store: which damage is cut off, which is rejected, and that no data is lost which a plain
//! redis-server would keep.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::stores::{self, ALL, BASE, COMMANDS, Files, MANIFEST, Mode, Outcome, SESSIONS};
use super::{ask, get_when_served, post, redis_pid, serve, wait_until_written};
use crate::support::process::Process;

const SECTOR: usize = 512;
/// The start of a transaction.
const TRANSACTION: &[u8] = b"*1\r\n$5\r\nMULTI\r\n";
/// How many test cases run concurrently.
const THREADS: usize = 4;

/// The expected result of a damage.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// The data from this byte on is cut off and kept in a copy.
    CutOff(usize),
    /// The store is rejected, as by a plain redis-server.
    Rejected,
    /// The store is rejected, but a plain redis-server would load the file or the part before the damage.
    RejectedOnlyHere,
}

/// One damaged file.
struct Damage {
    name: String,
    file: &'static str,
    content: Vec<u8>,
    expected: Expected,
}

/// The damages of a command file.
fn damages_of_commands(content: &[u8]) -> Vec<Damage> {
    let starts = content.windows(TRANSACTION.len()).enumerate();
    let starts: Vec<_> = starts.filter(|(_, bytes)| *bytes == TRANSACTION).map(|(at, _)| at).collect();
    let places = [("head", 0), ("middle", starts[starts.len() / 2]), ("tail", starts[starts.len() - 1])];
    let mut damages = Vec::new();
    for (place, at) in places {
        let mut add = |how: &str, content: Vec<u8>, expected| {
            damages.push(Damage { name: format!("commands, {place}: {how}"), file: COMMANDS, content, expected });
        };
        let with = |at: usize, byte: u8| {
            let mut content = content.to_vec();
            content[at] = byte;
            content
        };
        add("a bit", with(at, content[at] ^ 1), Expected::Rejected);
        add("a byte made '#'", with(at, b'#'), Expected::Rejected);
        let mut zeros = content.to_vec();
        zeros[at..content.len().min(at + SECTOR)].fill(0);
        add("a sector of zeros", zeros, Expected::Rejected);
        add("cut within a command", content[..at + 7].to_vec(), Expected::CutOff(at));
        if place != "head" {
            let after_a_command = at + TRANSACTION.len() + 8;
            add("cut within a transaction", content[..after_a_command].to_vec(), Expected::CutOff(at));
        }
        if place == "tail" {
            // A plain redis-server does not check the end of the line.
            add("the last byte", with(content.len() - 1, b'x'), Expected::RejectedOnlyHere);
            let mut longer = content.to_vec();
            longer.extend([0; SECTOR]);
            add("a sector of zeros after it", longer, Expected::Rejected);
        } else {
            let mut gone = content.to_vec();
            gone.drain(at + 1..=at + SECTOR);
            add("a sector gone", gone, Expected::Rejected);
            // A plain redis-server treats it as an incomplete command, and cuts off everything from there.
            let length = at + content[at..].windows(3).position(|bytes| bytes == b"\r\n$").expect("a length") + 3;
            let mut longer = content.to_vec();
            longer.splice(length..=length, *b"90000000");
            add("a length that is too large", longer, Expected::RejectedOnlyHere);
        }
    }
    damages
}

/// The damages of a base file.
fn damages_of_base(content: &[u8]) -> Vec<Damage> {
    let damage =
        |how: &str, content: Vec<u8>, expected| Damage { name: format!("base, {how}"), file: BASE, content, expected };
    let with = |at: usize, bits: u8| {
        let mut content = content.to_vec();
        content[at] ^= bits;
        content
    };
    let middle = content.len() / 2;
    let mut zeros = content.to_vec();
    zeros[middle..middle + SECTOR].fill(0);
    vec![
        damage("head: a bit", with(0, 1), Expected::Rejected),
        damage("middle: a bit", with(middle, 1), Expected::Rejected),
        damage("middle: a byte", with(middle, 0xff), Expected::Rejected),
        damage("middle: a sector of zeros", zeros, Expected::Rejected),
        damage("middle: cut", content[..middle].to_vec(), Expected::Rejected),
        damage("tail: a bit", with(content.len() - 1, 1), Expected::Rejected),
        damage("tail: cut", content[..content.len() - 1].to_vec(), Expected::Rejected),
        damage("empty", Vec::new(), Expected::RejectedOnlyHere),
    ]
}

/// Splits the command file into two files, and damages the first one.
fn damages_of_a_file_between(store: &Path) -> Vec<(TempDir, Damage)> {
    let content = fs::read(store.join(COMMANDS)).expect("a file");
    let middle = content.len() / 2;
    let at = middle + content[middle..].windows(TRANSACTION.len()).position(|bytes| bytes == TRANSACTION).expect("one");
    let (first, second) = content.split_at(at);
    let mut bit = first.to_vec();
    bit[first.len() / 2..].iter_mut().find(|byte| **byte == b'*').into_iter().for_each(|byte| *byte ^= 1);
    let cases = [("a bit", bit, Expected::Rejected), ("cut", first[..at - 1].to_vec(), Expected::Rejected)];
    let make = |(how, content, expected): (&str, Vec<u8>, Expected)| {
        let folder = stores::copy(store);
        let next = COMMANDS.replace(".2.", ".3.");
        fs::write(folder.path().join(&next), second).expect("a file");
        let mut manifest = fs::File::options().append(true).open(folder.path().join(MANIFEST)).expect("a manifest");
        let name = next.rsplit('/').next().expect("a name");
        writeln!(manifest, "file {name} seq 3 type i").expect("a manifest");
        (folder, Damage { name: format!("a file between: {how}"), file: COMMANDS, content, expected })
    };
    cases.into_iter().map(make).collect()
}

/// Runs every command on a store with one damage. Returns the line of the matrix.
fn try_all(store: &Path, damage: &Damage) -> String {
    let damaged = || {
        let folder = stores::copy(store);
        fs::write(folder.path().join(damage.file), &damage.content).expect("a file");
        folder
    };
    let plain = stores::sessions_of_plain_redis(damaged().path());
    match (damage.expected, plain) {
        (Expected::CutOff(_) | Expected::RejectedOnlyHere, Some(_)) | (Expected::Rejected, None) => {}
        (expected, plain) => panic!("{}: expected {expected:?}, a plain redis-server finds {plain:?}", damage.name),
    }
    if damage.file == COMMANDS && !matches!(damage.expected, Expected::RejectedOnlyHere) {
        expect_same_result_of_tool(damaged().path(), damage);
    }
    let mut cells = vec![format!("{:<44}", damage.name), format!("plain: {:<11}", shown(plain))];
    for mode in ALL {
        let folder = damaged();
        let before = stores::files(folder.path());
        let outcome = stores::start(folder.path(), mode);
        let after = stores::files(folder.path());
        let name = format!("{}, {mode:?}: {}", damage.name, outcome.text);
        match damage.expected {
            Expected::CutOff(at) => expect_cut_off(&name, mode, damage, at, &outcome, plain, (&before, &after)),
            Expected::Rejected | Expected::RejectedOnlyHere => {
                assert_eq!((outcome.code, outcome.sessions), (Some(2), None), "{name}");
                assert!(before == after, "{name}: files were changed");
                assert!(outcome.text.contains(damage.file) && outcome.text.contains("is damaged"), "{name}");
                assert!(outcome.text.contains("Copy") && outcome.text.contains("backup"), "{name}");
                let is_of_the_end = damage.name.starts_with("commands");
                assert_eq!(outcome.text.contains("redis-check-aof --fix"), is_of_the_end, "{name}");
            }
        }
        let size = |files: &Files| files[damage.file].len();
        let copies: usize = after.iter().filter(|(name, _)| name.contains("cut-off")).map(|(_, copy)| copy.len()).sum();
        let (before, after) = (size(&before), size(&after));
        let (code, found) = (outcome.code.unwrap_or(-1), shown(outcome.sessions));
        cells.push(format!("{mode:?}: exit {code}, {before} -> {after} B, {copies} B kept apart, {found}"));
    }
    cells.join(" | ")
}

fn shown(sessions: Option<usize>) -> String {
    sessions.map_or("rejected".to_owned(), |count| format!("{count} sessions"))
}

fn expect_same_result_of_tool(folder: &Path, damage: &Damage) {
    if let Some((complete, is_all)) = stores::check_with_tool(&folder.join(damage.file)) {
        assert!(!is_all, "{}: the server's tool finds no damage", damage.name);
        if let Expected::CutOff(at) = damage.expected {
            assert_eq!(complete, at as u64, "{}: the server's tool would cut at another byte", damage.name);
        }
    }
}

fn expect_cut_off(
    name: &str,
    mode: Mode,
    damage: &Damage,
    at: usize,
    outcome: &Outcome,
    plain: Option<usize>,
    (before, after): (&Files, &Files),
) {
    assert_eq!(outcome.code, Some(0), "{name}");
    assert_eq!(outcome.sessions, plain, "{name}");
    assert!(outcome.text.contains("unfinished write"), "{name}");
    if mode == Mode::Audit {
        assert!(before == after, "{name}: files were changed");
        return;
    }
    let copy = format!("{}.cut-off-at-{at}", damage.file);
    assert!(outcome.text.contains(&copy), "{name}");
    assert!(after[damage.file].starts_with(&damage.content[..at]), "{name}: too much was cut off");
    assert_eq!(after[&copy], &damage.content[at..], "{name}: the copy differs");
    for (file, content) in before.iter().filter(|(file, _)| *file != damage.file) {
        assert!(after[file] == *content, "{name}: {file} was changed");
    }
}

#[tokio::test]
async fn damage_is_rejected_and_unfinished_writes_are_cut_off() {
    let store = stores::make().await;
    let content = |file| fs::read(store.path().join(file)).expect("a file");
    let mut damages = damages_of_commands(&content(COMMANDS));
    damages.extend(damages_of_base(&content(BASE)));
    let between = damages_of_a_file_between(store.path());
    let mut cases: Vec<_> = damages.iter().map(|damage| (store.path(), damage)).collect();
    cases.extend(between.iter().map(|(folder, damage)| (folder.path(), damage)));
    let (queue, lines) = (Mutex::new(cases.into_iter().enumerate()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("no thread has panicked").next();
                    let Some((number, (store, damage))) = next else { break };
                    let line = try_all(store, damage);
                    lines.lock().expect("no thread has panicked").push((number, line));
                }
            });
        }
    });
    let mut lines = lines.into_inner().expect("no thread has panicked");
    lines.sort();
    for (_, line) in &lines {
        println!("{line}");
    }
    assert!(lines.len() > 25, "{}", lines.len());
}

/// The control case of the matrix: an intact store.
#[tokio::test]
async fn an_audit_of_an_intact_store_reads_all_of_it_and_changes_no_file() {
    let store = stores::make().await;
    fs::create_dir(store.path().join("audit-copy")).expect("a folder");
    fs::write(store.path().join("audit-copy/left"), "by an audit that was killed").expect("a file");
    let before = stores::all_files(store.path());
    let outcome = stores::start(store.path(), Mode::Audit);
    assert_eq!((outcome.code, outcome.sessions), (Some(0), Some(2 * SESSIONS)), "{}", outcome.text);
    let mut after = stores::all_files(store.path());
    after.insert("audit-copy/left".to_owned(), before["audit-copy/left"].clone());
    assert!(before == after, "{:?}, {:?}", before.keys(), after.keys());
    assert!(!store.path().join("audit-copy").exists());
}

/// Redis detects this damage only after it has begun to load and replies with LOADING.
#[tokio::test]
async fn a_store_that_redis_cannot_load_stops_the_service_and_the_audit() {
    let store = stores::make().await;
    let mut content = fs::read(store.path().join(COMMANDS)).expect("a file");
    let set = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n";
    content.extend(set.repeat(200_000));
    content.extend(b"*2\r\n$5\r\nSETTT\r\n$1\r\nk\r\n");
    fs::write(store.path().join(COMMANDS), content).expect("a file");
    let before = stores::files(store.path());
    for mode in ALL {
        let (code, text) = if mode == Mode::Serve {
            let variables = [("SESSIOND_DATA_DIR", store.path().to_str().expect("a path of text"))];
            let arguments = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
            let mut service = Process::start(&arguments, &variables);
            service.wait_for_line("did not come up");
            (service.wait().code(), service.lines.join("\n"))
        } else {
            let outcome = stores::start(store.path(), mode);
            (outcome.code, outcome.text)
        };
        assert_eq!(code, Some(2), "{mode:?}: {text}");
        assert!(text.contains("did not come up") && text.contains("nknown command 'SETTT'"), "{mode:?}: {text}");
        assert!(before == stores::files(store.path()), "{mode:?}: files were changed");
    }
}

async fn status(base: &str, path: &str) -> u16 {
    reqwest::get(format!("{base}{path}")).await.expect("a response").status().as_u16()
}

/// Redis is killed while its file is damaged: the service does not restart it on the damaged file, and cuts off
/// nothing.
#[tokio::test]
async fn damage_found_at_a_restart_of_redis_is_left_unchanged() {
    let store = stores::make().await;
    let (mut service, base) = serve(&store);
    let session = post(&base, "/api/sessions", json!({"businessId": "b", "userId": "late"})).await;
    wait_until_written(store.path());
    let path = store.path().join(COMMANDS);
    let content = fs::read(&path).expect("a file");
    let at = content.windows(TRANSACTION.len()).position(|bytes| bytes == TRANSACTION).expect("a transaction");
    let file = fs::File::options().write(true).open(&path).expect("a file");
    file.write_all_at(b"#", at as u64).expect("a byte written");
    let damaged = stores::files(store.path());
    kill_process(redis_pid(store.path()), Signal::KILL).expect("a running Redis");
    for _ in 0..2 {
        let line = service.wait_for_line("cannot start the embedded Redis again");
        assert!(line.contains(COMMANDS) && line.contains("is damaged at byte"), "{line}");
    }
    assert_eq!(status(&base, "/readyz").await, 503);
    assert_eq!(status(&base, "/livez").await, 200);
    assert!(damaged == stores::files(store.path()), "files were changed");

    file.write_all_at(b"*", at as u64).expect("a byte written");
    assert_eq!(get_when_served(&base, "/api/sessions/business/b/user/late/active").await, session);
    assert_eq!(stores::sessions(store.path()).len(), 2 * SESSIONS + 1);
}

/// Redis is killed during a write, while the service keeps running.
#[tokio::test]
async fn an_unfinished_write_is_cut_off_at_a_restart_of_redis() {
    let store = stores::make().await;
    let (mut service, base) = serve(&store);
    wait_until_written(store.path());
    let path = store.path().join(COMMANDS);
    let length = fs::metadata(&path).expect("a file").len();
    let half = "*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$1\r\n1\r\n";
    let mut file = fs::File::options().append(true).open(&path).expect("a file");
    file.write_all(half.as_bytes()).expect("a file written");
    kill_process(redis_pid(store.path()), Signal::KILL).expect("a running Redis");
    service.wait_for_line("it was cut off");
    get_when_served(&base, "/readyz").await;
    assert_eq!(stores::sessions(store.path()).len(), 2 * SESSIONS);
    assert!(ask(store.path(), "EXISTS half").starts_with(":0"));
    let copy = store.path().join(format!("{COMMANDS}.cut-off-at-{length}"));
    assert_eq!(fs::read_to_string(copy).expect("a copy"), half);
}

#[test]
fn without_disk_space_for_a_copy_nothing_is_cut_off() {
    let folder = super::folder();
    // A file system in its own mount namespace, just large enough for the file.
    let script = r#"
        mount -t tmpfs -o size=1m tmpfs data && cd data && : > sessiond.lock || exit 9
        printf '*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n*3\r\n$3\r\nSET\r\n$7\r\npointer\r\n$700000\r\n' \
            > appendonly.aof
        head -c 600000 /dev/zero | tr '\0' x >> appendonly.aof
        before=$(md5sum appendonly.aof)
        timeout 60 "$0" --listen 127.0.0.1:0; echo "exit $?" >&2
        [ "$before" = "$(md5sum appendonly.aof)" ] && echo "unchanged" >&2; ls >&2"#;
    fs::create_dir(folder.path().join("data")).expect("a folder");
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_sessiond")]);
    let command = command.current_dir(folder.path()).env("SESSIOND_DATA_DIR", folder.path().join("data"));
    let output = command.env("SESSIOND_LOG", "info").output().expect("a shell");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("exit 2") && text.contains("unchanged"), "{text}");
    assert!(
        text.contains("keep a copy of it: No space left on device") && !text.contains("\nappendonly.aof.cut"),
        "{text}"
    );
}

/// The JSON report contains the notes, too.
#[tokio::test]
async fn the_audit_report_notes_an_unfinished_write() {
    let store = stores::make().await;
    let mut file = fs::File::options().append(true).open(store.path().join(COMMANDS)).expect("a file");
    file.write_all(b"*1\r\n$5\r\nMULTI\r\n").expect("a file written");
    let data_dir = store.path().to_str().expect("a path of text");
    let run = |arguments: &[&str]| {
        let output = crate::support::process::run(arguments, &[("SESSIOND_DATA_DIR", data_dir)]);
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let (code, text) = run(&["audit"]);
    assert_eq!(code, Some(0), "{text}");
    let note = format!("{COMMANDS} ends with an unfinished write of 15 bytes, from byte ");
    assert!(text.starts_with(&format!("note: {note}")) && text.contains("was left out"), "{text}");
    let (_, json) = run(&["audit", "--repair", "--format", "json"]);
    let report: Value = serde_json::from_str(&json).expect("JSON");
    let noted = report["notes"][0].as_str().expect("a note");
    assert!(noted.contains(&note) && noted.contains("was cut off, and a copy of it is "), "{noted}");
    let (_, json) = run(&["audit", "--format", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&json).expect("JSON")["notes"], json!([]));
}
