//! Supervision: the service restarts an embedded Redis that is running but unreachable. No acknowledged write is lost.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};

use super::{folder, get_when_served, post, redis_pid, serve, try_ask, wait_until_gone};
use crate::support::process::{Process, TEST_TIMEOUT};

const SOCKET: &str = "redis.sock";

/// Waits until a Redis process other than `before` serves in `folder` and has loaded its data.
fn wait_for_restart(folder: &Path, before: Pid) -> Pid {
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < TEST_TIMEOUT, "Redis was not restarted");
        if try_ask(folder, "PING").is_ok_and(|reply| reply.starts_with("+PONG")) && redis_pid(folder) != before {
            return redis_pid(folder);
        }
        std::thread::yield_now();
    }
}

/// Repeats a get-or-create until the service can reach Redis.
async fn create_when_served(base: &str, user: &str) -> Value {
    let started = Instant::now();
    loop {
        let request = reqwest::Client::new().post(format!("{base}/api/sessions"));
        let response = request.json(&json!({"businessId": "b", "userId": user})).send().await.expect("a response");
        match response.status().as_u16() {
            // An earlier call with a 503 may have created the session.
            200 | 201 => return response.json().await.expect("JSON"),
            503 => assert!(response.headers().contains_key("retry-after")),
            status => panic!("{status}"),
        }
        assert!(started.elapsed() < TEST_TIMEOUT, "{user} is not served");
    }
}

/// Puts something in place of the socket. A returned listener stays open until the end of the case.
type Change = fn(&Path) -> Option<UnixListener>;

#[tokio::test]
async fn redis_is_restarted_when_its_socket_is_removed_or_replaced() {
    let cases: [(&str, Change); 4] = [
        ("removed", |_| None),
        ("a file", |socket| {
            fs::write(socket, "a file").expect("a file");
            None
        }),
        ("a folder", |socket| {
            fs::create_dir(socket).expect("a folder");
            fs::write(socket.join("inner"), "a file").expect("a file");
            None
        }),
        ("another server's", |socket| Some(UnixListener::bind(socket).expect("a socket"))),
    ];
    for (name, replace) in cases {
        let folder = folder();
        let (mut service, base) = serve(&folder);
        let socket = folder.path().join(SOCKET);
        let mut sessions = vec![create_when_served(&base, "u0").await];
        // Twice, because the restarted Redis must be supervised, too.
        for number in 1..3 {
            let before = redis_pid(folder.path());
            fs::remove_file(&socket).expect("a socket");
            let removed = Instant::now();
            let _kept = replace(&socket);
            service.wait_for_line("stopping it to start it again");
            wait_until_gone(before);
            wait_for_restart(folder.path(), before);
            sessions.push(create_when_served(&base, &format!("u{number}")).await);
            println!("{name}: served again {:?} after the socket was removed", removed.elapsed());
        }
        for (number, session) in sessions.iter().enumerate() {
            let path = format!("/api/sessions/business/b/user/u{number}/active");
            assert_eq!(get_when_served(&base, &path).await["sessionId"], session["sessionId"], "{name}");
        }
        let aside = folder.path().join("redis.sock.moved-aside-1");
        assert_eq!(aside.exists(), ["a file", "a folder"].contains(&name), "{name}: other files must be kept");
    }
}

/// A process stopped by SIGSTOP: the kernel accepts connections, but Redis never replies.
#[tokio::test]
async fn an_unresponsive_redis_is_restarted() {
    let folder = folder();
    let (mut service, base) = serve(&folder);
    let session = post(&base, "/api/sessions", json!({"businessId": "b", "userId": "u"})).await;
    let before = redis_pid(folder.path());
    kill_process(before, Signal::STOP).expect("a running Redis");
    service.wait_for_line("it has not replied for");
    wait_until_gone(before);
    wait_for_restart(folder.path(), before);
    create_when_served(&base, "another").await;
    assert_eq!(get_when_served(&base, "/api/sessions/business/b/user/u/active").await, session);
}

/// The files are missing, so the only copy of the data is in the memory of Redis.
#[tokio::test]
async fn a_redis_with_missing_files_is_not_stopped() {
    let folder = folder();
    let (mut service, base) = serve(&folder);
    let session = post(&base, "/api/sessions", json!({"businessId": "b", "userId": "u"})).await;
    let before = redis_pid(folder.path());
    let [inner, away] = ["appendonlydir", "away"].map(|name| folder.path().join(name));
    fs::rename(&inner, &away).expect("a folder moved");
    fs::remove_file(folder.path().join(SOCKET)).expect("a socket");
    let line = service.wait_for_line("not stopping it");
    assert!(line.contains("files of its store are missing"), "{line}");
    assert!(test_kill_process(before).is_ok(), "Redis was stopped");

    fs::rename(&away, &inner).expect("a folder moved");
    wait_for_restart(folder.path(), before);
    create_when_served(&base, "another").await;
    assert_eq!(get_when_served(&base, "/api/sessions/business/b/user/u/active").await, session);
}

/// While Redis loads, it replies with LOADING.
#[tokio::test]
async fn a_redis_that_is_loading_is_not_restarted() {
    let folder = folder();
    let (mut service, base) = serve(&folder);
    post(&base, "/api/sessions", json!({"businessId": "b", "userId": "u"})).await;
    service.signal(Signal::TERM);
    assert!(service.wait().success(), "{:#?}", service.lines);
    let path = folder.path().join("appendonlydir/appendonly.aof.1.incr.aof");
    let mut content = fs::read(&path).expect("a file");
    content.extend(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n".repeat(500_000));
    fs::write(&path, content).expect("a file");
    let (service, base): (Process, _) = serve(&folder);
    create_when_served(&base, "another").await;
    assert!(!service.lines.iter().any(|line| line.contains("starting it again")), "{:#?}", service.lines);
}
