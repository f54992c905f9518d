//! A private Redis that runs and cannot be reached is started again, with everything that it had acknowledged.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};

use super::{folder, get_when_served, post, redis_pid, serve, try_ask, wait_until_gone};
use crate::support::process::{PATIENCE, Process};

const SOCKET: &str = "redis.sock";

/// Waits until another Redis than `before` serves in `folder`, and has loaded its data.
fn wait_for_another(folder: &Path, before: Pid) -> Pid {
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < PATIENCE, "Redis was not started again");
        if try_ask(folder, "PING").is_ok_and(|reply| reply.starts_with("+PONG")) && redis_pid(folder) != before {
            return redis_pid(folder);
        }
        std::thread::yield_now();
    }
}

/// Creates a session as soon as the service can.
async fn create_when_served(base: &str, user: &str) -> Value {
    let started = Instant::now();
    loop {
        let request = reqwest::Client::new().post(format!("{base}/api/sessions"));
        let answer = request.json(&json!({"businessId": "b", "userId": user})).send().await.expect("an answer");
        match answer.status().as_u16() {
            // An earlier call, of which there was no answer, may have created it.
            200 | 201 => return answer.json().await.expect("JSON"),
            503 => assert!(answer.headers().contains_key("retry-after")),
            status => panic!("{status}"),
        }
        assert!(started.elapsed() < PATIENCE, "{user} is not served");
    }
}

/// What is done to the socket. What it returns is kept until the end.
type Change = fn(&Path) -> Option<UnixListener>;

#[tokio::test]
async fn a_socket_that_is_removed_or_replaced_is_made_again() {
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
        // More than once: a restart is watched, too.
        for number in 1..3 {
            let before = redis_pid(folder.path());
            fs::remove_file(&socket).expect("a socket");
            let removed = Instant::now();
            let _kept = replace(&socket);
            service.wait_for_line("stopping it to start it again");
            wait_until_gone(before);
            wait_for_another(folder.path(), before);
            sessions.push(create_when_served(&base, &format!("u{number}")).await);
            println!("{name}: served again {:?} after the socket was lost", removed.elapsed());
        }
        for (number, session) in sessions.iter().enumerate() {
            let path = format!("/api/sessions/business/b/user/u{number}/active");
            assert_eq!(get_when_served(&base, &path).await["sessionId"], session["sessionId"], "{name}");
        }
        let aside = folder.path().join("redis.sock.moved-aside-1");
        assert_eq!(aside.exists(), ["a file", "a folder"].contains(&name), "{name}: other files are kept");
    }
}

/// Stopped, as by a debugger that was forgotten: it takes connections and answers nothing.
#[tokio::test]
async fn a_redis_that_does_not_answer_is_started_again() {
    let folder = folder();
    let (mut service, base) = serve(&folder);
    let session = post(&base, "/api/sessions", json!({"businessId": "b", "userId": "u"})).await;
    let before = redis_pid(folder.path());
    kill_process(before, Signal::STOP).expect("a running Redis");
    service.wait_for_line("it has not answered for");
    wait_until_gone(before);
    wait_for_another(folder.path(), before);
    create_when_served(&base, "another").await;
    assert_eq!(get_when_served(&base, "/api/sessions/business/b/user/u/active").await, session);
}

/// What it would load is gone, so all that there is of the store is in its memory.
#[tokio::test]
async fn a_redis_whose_files_are_gone_is_not_stopped() {
    let folder = folder();
    let (mut service, base) = serve(&folder);
    let session = post(&base, "/api/sessions", json!({"businessId": "b", "userId": "u"})).await;
    let before = redis_pid(folder.path());
    let [inner, away] = ["appendonlydir", "away"].map(|name| folder.path().join(name));
    fs::rename(&inner, &away).expect("a folder moved");
    fs::remove_file(folder.path().join(SOCKET)).expect("a socket");
    let line = service.wait_for_line("not stopping it");
    assert!(line.contains("files of its store are missing"), "{line}");
    assert!(test_kill_process(before).is_ok(), "it runs");

    fs::rename(&away, &inner).expect("a folder moved");
    wait_for_another(folder.path(), before);
    create_when_served(&base, "another").await;
    assert_eq!(get_when_served(&base, "/api/sessions/business/b/user/u/active").await, session);
}

/// It answers that it is loading, for as long as that takes.
#[tokio::test]
async fn a_redis_that_loads_its_data_is_left_alone() {
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
