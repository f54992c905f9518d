//! First starts and missing files: the service creates a store in a folder without one. It rejects a store with missing
//! files instead of creating an empty one.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::stores::{self, ALL, BASE, COMMANDS, MANIFEST, MARKER, Mode, SESSIONS};
use super::{folder, post, serve};
use crate::support::process::{self, Process};

const DIR: &str = "appendonlydir";

fn remove(folder: &Path, name: &str) {
    let path = folder.join(name);
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("removed");
}

fn write(folder: &Path, name: &str, content: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, content).expect("a file");
}

/// A folder that sessiond has used and that contains no store.
fn used() -> tempfile::TempDir {
    let folder = folder();
    write(folder.path(), "sessiond.lock", "1\n");
    folder
}

/// A change of the files in a folder.
type Change = fn(&Path);

#[tokio::test]
async fn a_store_with_missing_files_is_rejected_unchanged() {
    let cases: [(&str, &str, Change); 14] = [
        ("the manifest is removed", MANIFEST, |store| remove(store, MANIFEST)),
        ("the manifest is empty", "it is empty", |store| write(store, MANIFEST, "")),
        ("the manifest is cut", "does not name appendonly.aof.2.incr.aof", |store| {
            let manifest = fs::read_to_string(store.join(MANIFEST)).expect("a manifest");
            write(store, MANIFEST, manifest.split_inclusive('\n').next().expect("a line"));
        }),
        ("an older manifest", "appendonly.aof.1.base.rdb", |store| {
            let manifest = fs::read_to_string(store.join(MANIFEST)).expect("a manifest");
            write(store, MANIFEST, &manifest.replace('2', "1"));
        }),
        ("the folder is removed", MANIFEST, |store| remove(store, DIR)),
        ("the folder is empty", MANIFEST, |store| {
            remove(store, DIR);
            fs::create_dir(store.join(DIR)).expect("a folder");
        }),
        ("the folder is a file", "is not a folder", |store| {
            remove(store, DIR);
            write(store, DIR, "");
        }),
        ("the base is removed", BASE, |store| remove(store, BASE)),
        ("the commands are removed", COMMANDS, |store| remove(store, COMMANDS)),
        ("all files are empty", BASE, |store| {
            write(store, BASE, "");
            write(store, COMMANDS, "");
        }),
        ("a file that the manifest does not name", "3.incr.aof", |store| {
            fs::copy(store.join(COMMANDS), store.join(COMMANDS.replace(".2.", ".3."))).expect("a copy");
        }),
        ("a store of an earlier version, the manifest removed", "there is appendonlydir", |store| {
            remove(store, MARKER);
            remove(store, MANIFEST);
        }),
        ("a store of an earlier version, the folder removed", "redis.log says", |store| {
            remove(store, MARKER);
            remove(store, DIR);
        }),
        ("only the marker is left", MANIFEST, |store| {
            for name in [DIR, "redis.log", "sessiond.lock"] {
                remove(store, name);
            }
        }),
    ];
    let store = stores::make().await;
    for (name, text, change) in cases {
        for mode in ALL {
            let folder = stores::copy(store.path());
            change(folder.path());
            let before = stores::files(folder.path());
            let outcome = stores::start(folder.path(), mode);
            assert_eq!((outcome.code, outcome.sessions), (Some(2), None), "{name}, {mode:?}: {}", outcome.text);
            assert!(outcome.text.contains(text), "{name}, {mode:?}: {}", outcome.text);
            assert!(outcome.text.contains("backup of the whole folder"), "{name}, {mode:?}: {}", outcome.text);
            assert!(before == stores::files(folder.path()), "{name}, {mode:?}: files were changed");
        }
    }
}

#[test]
fn a_folder_with_other_files_is_not_a_first_start() {
    let names =
        ["dump.rdb", "appendonlydir/appendonly.aof.1.incr.aof", "temp-rewriteaof-1.aof", "appendonly.aof.bak", "old/x"];
    for name in names {
        for content in ["", "REDIS0010"] {
            let folder = used();
            write(folder.path(), name, content);
            let before = stores::files(folder.path());
            let outcome = stores::start(folder.path(), Mode::Serve);
            assert_eq!(outcome.code, Some(2), "{name}: {}", outcome.text);
            let first = name.split('/').next().expect("a name");
            assert!(outcome.text.contains(&format!("there is {first}")), "{name}: {}", outcome.text);
            assert!(before == stores::files(folder.path()), "{name}: files were changed");
        }
    }
}

#[tokio::test]
async fn a_first_start_creates_a_store() {
    let prepare: [(&str, Change); 4] = [
        ("empty", |_| {}),
        ("the root of a new file system", |folder| fs::create_dir(folder.join("lost+found")).expect("a folder")),
        ("a start that found no server", |folder| {
            for name in ["sessiond.lock", "redis.log", "redis.sock"] {
                write(folder, name, "");
            }
            fs::create_dir(folder.join("lost+found")).expect("a folder");
        }),
        // Redis creates these files one after the other, and the manifest last.
        ("a first start that was interrupted", |folder| {
            for name in ["sessiond.lock", MARKER, "temp-rewriteaof-1.aof", "appendonlydir/appendonly.aof.1.incr.aof"] {
                write(folder, name, "");
            }
            write(folder, "appendonlydir/appendonly.aof.1.base.rdb", "REDIS0010");
        }),
    ];
    for (name, prepare) in prepare {
        let folder = folder();
        prepare(folder.path());
        let has_lost_and_found = folder.path().join("lost+found").exists();
        for number in 0..2 {
            let (mut service, base) = serve(&folder);
            post(&base, "/api/sessions", json!({"businessId": "b", "userId": format!("u{number}")})).await;
            assert_eq!(stores::sessions(folder.path()).len(), number + 1, "{name}");
            stores::stop(&mut service);
        }
        assert_eq!(folder.path().join("lost+found").is_dir(), has_lost_and_found, "{name}");
        let marker = fs::read_to_string(folder.path().join(MARKER)).expect("a marker");
        assert!(marker.contains("holds a store"), "{name}: {marker}");
    }
}

/// A command file that is not empty shows that a server was running, so this is not a first start.
#[test]
fn a_folder_with_commands_is_not_an_interrupted_first_start() {
    let folder = used();
    write(folder.path(), MARKER, "");
    write(folder.path(), "appendonlydir/appendonly.aof.1.incr.aof", "*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n");
    let outcome = stores::start(folder.path(), Mode::Serve);
    assert_eq!(outcome.code, Some(2), "{}", outcome.text);
    assert!(outcome.text.contains("there is appendonlydir"), "{}", outcome.text);
}

#[tokio::test]
async fn the_single_file_of_an_earlier_redis_is_migrated() {
    let store = stores::make().await;
    let content = fs::read(store.path().join(COMMANDS)).expect("a file");
    let with = |content: &[u8]| {
        let folder = used();
        fs::write(folder.path().join("appendonly.aof"), content).expect("a file");
        folder
    };
    for mode in ALL {
        let folder = with(&content);
        let outcome = stores::start(folder.path(), mode);
        assert_eq!((outcome.code, outcome.sessions), (Some(0), Some(SESSIONS)), "{mode:?}: {}", outcome.text);
        assert_eq!(folder.path().join(MANIFEST).exists(), mode != Mode::Audit, "{mode:?}");

        let folder = with(&content[..content.len() - 1]);
        let outcome = stores::start(folder.path(), mode);
        assert_eq!((outcome.code, outcome.sessions), (Some(0), Some(SESSIONS - 1)), "{mode:?}: {}", outcome.text);
        assert!(outcome.text.contains("unfinished write"), "{mode:?}: {}", outcome.text);

        let mut damaged = content.clone();
        damaged[0] = b'#';
        let folder = with(&damaged);
        let outcome = stores::start(folder.path(), mode);
        assert_eq!(outcome.code, Some(2), "{mode:?}: {}", outcome.text);
        assert_eq!(fs::read(folder.path().join("appendonly.aof")).expect("a file"), damaged, "{mode:?}");
    }
}

/// A file of Redis 4 to 6: an RDB file followed by commands. Only Redis can find where the commands start.
#[tokio::test]
async fn a_single_file_with_an_rdb_preamble_is_migrated_or_rejected_by_redis() {
    let store = stores::make().await;
    let mut content = fs::read(store.path().join(BASE)).expect("a file");
    content.extend(fs::read(store.path().join(COMMANDS)).expect("a file"));
    for (length, code, sessions) in
        [(content.len(), Some(0), Some(2 * SESSIONS)), (content.len() - 1, Some(2), None), (200, Some(2), None)]
    {
        let folder = used();
        fs::write(folder.path().join("appendonly.aof"), &content[..length]).expect("a file");
        let outcome = stores::start(folder.path(), Mode::Serve);
        assert_eq!((outcome.code, outcome.sessions), (code, sessions), "{length}: {}", outcome.text);
        if code == Some(2) {
            assert!(outcome.text.contains("did not come up"), "{length}: {}", outcome.text);
            let found = stores::files(folder.path());
            assert!(found.values().any(|found| found == &content[..length]), "{length}: the file was changed");
        }
    }
}

#[test]
fn an_audit_creates_no_store() {
    let folder = folder();
    let absent = folder.path().join("absent");
    for data_dir in [folder.path(), &absent] {
        for flags in [&["audit"][..], &["audit", "--repair"]] {
            let variables = [("SESSIOND_DATA_DIR", data_dir.to_str().expect("a path of text"))];
            let output = process::run(flags, &variables);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{text}");
            assert!(text.contains("holds no store"), "{text}");
            assert!(stores::all_files(folder.path()).is_empty() && !absent.exists(), "{text}");
        }
    }
}

/// The service needs no tool of the server, and the server program may be `valkey-server`.
#[tokio::test]
async fn a_store_is_recovered_with_only_a_valkey_server_installed() {
    let store = stores::make().await;
    let programs = folder();
    let program = programs.path().join("valkey-server");
    std::os::unix::fs::symlink(crate::support::redis::server_program(), program).expect("a link");
    let content = fs::read(store.path().join(COMMANDS)).expect("a file");
    fs::write(store.path().join(COMMANDS), &content[..content.len() - 1]).expect("a file");
    let [path, data_dir] = [programs.path(), store.path()].map(|path| path.to_str().expect("a path of text"));
    let (service, _) = Process::serve(&[], &[("SESSIOND_DATA_DIR", data_dir), ("PATH", path)]);
    assert!(service.lines.iter().any(|line| line.contains("it was cut off")), "{:#?}", service.lines);
    assert_eq!(stores::sessions(store.path()).len(), 2 * SESSIONS - 1);
}
