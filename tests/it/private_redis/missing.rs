//! A first start is one in an empty folder. Where files of a store are missing, an empty store is not begun in their place.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::stores::{self, ALL, BASE, COMMANDS, MANIFEST, MARKER, SESSIONS, Started};
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

/// A folder that sessiond has used, without a store.
fn used() -> tempfile::TempDir {
    let folder = folder();
    write(folder.path(), "sessiond.lock", "1\n");
    folder
}

/// What is done to a store.
type Change = fn(&Path);

#[tokio::test]
async fn a_store_with_missing_files_is_refused_as_it_is() {
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
    for (name, said, change) in cases {
        for started in ALL {
            let folder = stores::copy(store.path());
            change(folder.path());
            let before = stores::files(folder.path());
            let outcome = stores::start(folder.path(), started);
            assert_eq!((outcome.code, outcome.sessions), (Some(2), None), "{name}, {started:?}: {}", outcome.said);
            assert!(outcome.said.contains(said), "{name}, {started:?}: {}", outcome.said);
            assert!(outcome.said.contains("backup of the whole folder"), "{name}, {started:?}: {}", outcome.said);
            assert!(before == stores::files(folder.path()), "{name}, {started:?}: files were changed");
        }
    }
}

#[test]
fn a_folder_with_other_files_is_no_first_start() {
    let names =
        ["dump.rdb", "appendonlydir/appendonly.aof.1.incr.aof", "temp-rewriteaof-1.aof", "appendonly.aof.bak", "old/x"];
    for name in names {
        for content in ["", "REDIS0010"] {
            let folder = used();
            write(folder.path(), name, content);
            let before = stores::files(folder.path());
            let outcome = stores::start(folder.path(), Started::Serve);
            assert_eq!(outcome.code, Some(2), "{name}: {}", outcome.said);
            let first = name.split('/').next().expect("a name");
            assert!(outcome.said.contains(&format!("there is {first}")), "{name}: {}", outcome.said);
            assert!(before == stores::files(folder.path()), "{name}: files were changed");
        }
    }
}

#[tokio::test]
async fn a_first_start_in_a_folder_without_a_store_begins_one() {
    let prepare: [(&str, Change); 4] = [
        ("empty", |_| {}),
        ("the root of a new file system", |folder| fs::create_dir(folder.join("lost+found")).expect("a folder")),
        ("a start that found no server", |folder| {
            for name in ["sessiond.lock", "redis.log", "redis.sock"] {
                write(folder, name, "");
            }
            fs::create_dir(folder.join("lost+found")).expect("a folder");
        }),
        // Redis makes these files one after the other, and the manifest last.
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

/// The first start is over once a server was up: what it left behind is a store from then on.
#[test]
fn an_interrupted_first_start_leaves_no_commands() {
    let folder = used();
    write(folder.path(), MARKER, "");
    write(folder.path(), "appendonlydir/appendonly.aof.1.incr.aof", "*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n");
    let outcome = stores::start(folder.path(), Started::Serve);
    assert_eq!(outcome.code, Some(2), "{}", outcome.said);
    assert!(outcome.said.contains("there is appendonlydir"), "{}", outcome.said);
}

#[tokio::test]
async fn the_single_file_of_an_earlier_redis_is_taken_over() {
    let store = stores::make().await;
    let content = fs::read(store.path().join(COMMANDS)).expect("a file");
    let with = |content: &[u8]| {
        let folder = used();
        fs::write(folder.path().join("appendonly.aof"), content).expect("a file");
        folder
    };
    for started in ALL {
        let folder = with(&content);
        let outcome = stores::start(folder.path(), started);
        assert_eq!((outcome.code, outcome.sessions), (Some(0), Some(SESSIONS)), "{started:?}: {}", outcome.said);
        assert_eq!(folder.path().join(MANIFEST).exists(), started != Started::Audit, "{started:?}");

        let folder = with(&content[..content.len() - 1]);
        let outcome = stores::start(folder.path(), started);
        assert_eq!((outcome.code, outcome.sessions), (Some(0), Some(SESSIONS - 1)), "{started:?}: {}", outcome.said);
        assert!(outcome.said.contains("unfinished write"), "{started:?}: {}", outcome.said);

        let mut damaged = content.clone();
        damaged[0] = b'#';
        let folder = with(&damaged);
        let outcome = stores::start(folder.path(), started);
        assert_eq!(outcome.code, Some(2), "{started:?}: {}", outcome.said);
        assert_eq!(fs::read(folder.path().join("appendonly.aof")).expect("a file"), damaged, "{started:?}");
    }
}

/// A file of Redis 4 to 6: an RDB file with commands after it. Redis alone can tell where these start.
#[tokio::test]
async fn a_single_file_that_starts_as_an_rdb_file_is_taken_over_or_refused_by_redis() {
    let store = stores::make().await;
    let mut content = fs::read(store.path().join(BASE)).expect("a file");
    content.extend(fs::read(store.path().join(COMMANDS)).expect("a file"));
    for (length, code, sessions) in
        [(content.len(), Some(0), Some(2 * SESSIONS)), (content.len() - 1, Some(2), None), (200, Some(2), None)]
    {
        let folder = used();
        fs::write(folder.path().join("appendonly.aof"), &content[..length]).expect("a file");
        let outcome = stores::start(folder.path(), Started::Serve);
        assert_eq!((outcome.code, outcome.sessions), (code, sessions), "{length}: {}", outcome.said);
        if code == Some(2) {
            assert!(outcome.said.contains("did not come up"), "{length}: {}", outcome.said);
            let found = stores::files(folder.path());
            assert!(found.values().any(|found| found == &content[..length]), "{length}: the file was changed");
        }
    }
}

#[test]
fn an_audit_makes_no_store() {
    let folder = folder();
    let absent = folder.path().join("absent");
    for data_dir in [folder.path(), &absent] {
        for flags in [&["audit"][..], &["audit", "--repair"]] {
            let variables = [("SESSIOND_DATA_DIR", data_dir.to_str().expect("a path of text"))];
            let output = process::run(flags, &variables);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains("holds no store"), "{said}");
            assert!(stores::all_files(folder.path()).is_empty() && !absent.exists(), "{said}");
        }
    }
}

/// No tool of the server is needed, and its program may have the other name.
#[tokio::test]
async fn a_store_is_recovered_with_nothing_but_a_valkey_server() {
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
