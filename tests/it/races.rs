//! Many concurrent callers, spread over three service processes on one Redis: with 100,000 hints, with one, and with
//! none.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::process::Process;
use crate::support::redis::{RedisProbe, shared, shared_url};

const CALLERS: usize = 10_000;
/// How many connections are opened at once. The backlog of a listener is shorter than `CALLERS`.
const CONNECTS_AT_ONCE: usize = 500;

/// Service processes on the shared Redis, with one key prefix.
struct Processes {
    _running: [Process; 3],
    hosts: [String; 3],
    probe: RedisProbe,
}

impl Processes {
    async fn start(prefix: &str) -> Self {
        let prefix = format!("sd:{prefix}-{}", std::process::id());
        let url = shared_url();
        // Requests of 10,000 callers take long on a small machine.
        let timeouts = ["--request-deadline", "60s", "--receive-timeout", "60s", "--max-queue-wait", "60s"];
        let flags = [&["--key-prefix", &prefix][..], &timeouts].concat();
        let [(first, first_url), (second, second_url), (third, third_url)] = ["100000", "1", "0"]
            .map(|hints| Process::serve(&[&flags[..], &["--hint-cache-size", hints]].concat(), &[("REDIS_URL", &url)]));
        let hosts = [first_url, second_url, third_url].map(|url| url.trim_start_matches("http://").to_owned());
        Self { _running: [first, second, third], hosts, probe: RedisProbe::at(&shared(), &prefix).await }
    }

    /// Connects to one of the processes, round-robin by `turn`.
    async fn connect(&self, turn: usize) -> TcpStream {
        TcpStream::connect(&self.hosts[turn % self.hosts.len()]).await.expect("a connection")
    }
}

/// Sends a request on a connection, which the service then closes. Returns the status and the body.
async fn exchange(stream: &mut TcpStream, method: &str, path: &str, body: &Value) -> (u16, Value) {
    send(stream, method, path, body).await;
    receive(stream).await
}

async fn send(stream: &mut TcpStream, method: &str, path: &str, body: &Value) {
    let body = body.to_string();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("the request is sent");
}

async fn receive(stream: &mut TcpStream) -> (u16, Value) {
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("a response");
    let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, serde_json::from_str(body).unwrap_or_default())
}

/// Raises the soft limit of open files to the hard limit: both ends of 10,000 connections need file descriptors. The
/// services inherit the limit.
fn raise_open_files_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("the hard limit");
    let enough = limit.maximum.is_none_or(|most| most > CALLERS as u64 + 1_000);
    assert!(enough, "this test opens {CALLERS} connections: raise the hard limit of open files (ulimit -Hn)");
}

#[tokio::test]
async fn ten_thousand_concurrent_creates_return_one_session() {
    raise_open_files_limit();
    let processes = Processes::start("race-create").await;
    let mut streams = Vec::with_capacity(CALLERS);
    while streams.len() < CALLERS {
        let turns = streams.len()..(streams.len() + CONNECTS_AT_ONCE).min(CALLERS);
        streams.extend(join_all(turns.map(|turn| processes.connect(turn))).await);
    }
    let body = json!({"businessId": "b", "userId": "everybody"});
    // All callers are connected. They all send their request before any of them reads a response.
    join_all(streams.iter_mut().map(|stream| send(stream, "POST", "/api/sessions", &body))).await;
    let responses = join_all(streams.iter_mut().map(receive)).await;

    let created = responses.iter().filter(|(status, _)| *status == 201).count();
    let resumed = responses.iter().filter(|(status, _)| *status == 200).count();
    assert_eq!((created, resumed), (1, CALLERS - 1));
    let ids: BTreeSet<_> = responses.iter().map(|(_, session)| session["sessionId"].to_string()).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");

    let [session] = &processes.probe.keys_of('s').await[..] else { panic!("one hash") };
    let [pointer] = &processes.probe.keys_of('a').await[..] else { panic!("one pointer") };
    let [history] = &processes.probe.keys_of('h').await[..] else { panic!("one history") };
    let id = processes.probe.text(&["GET", pointer]).await.expect("a pointer");
    assert!(session.ends_with(&id) && ids.contains(&format!("{id:?}")), "{session} {id} {ids:?}");
    assert_eq!(processes.probe.texts(&["ZRANGE", history, "0", "-1"]).await, [id]);
}

/// Creates, replaces, ends and resumes sessions, in an order that depends on the caller's number.
async fn caller(processes: &Processes, number: usize) {
    let mut known = Vec::new();
    for step in 0..12 {
        let turn = number + step;
        let mut stream = processes.connect(turn).await;
        // A fixed mix, different for each caller.
        let last = known.last().cloned().unwrap_or_else(|| "none".to_owned());
        let change = |body: Value| ("PATCH", format!("/api/sessions/{last}"), body);
        let post = |body: Value| ("POST", "/api/sessions".to_owned(), body);
        let (method, path, body) = match (number * 7 + step * 5) % 8 {
            0 | 1 => post(json!({"businessId": "b", "userId": "u"})),
            2 | 3 => post(json!({"businessId": "b", "userId": "u", "ifActive": "replace"})),
            4 => change(json!({"status": "ended"})),
            5 => change(json!({"status": "active"})),
            6 => change(json!({"status": "active", "ifActive": "replace"})),
            _ => change(json!({"metadata": {"caller": number}})),
        };
        let (status, response) = exchange(&mut stream, method, &path, &body).await;
        assert!(matches!(status, 200 | 201 | 404 | 409), "{method} {path} {body}: {status} {response}");
        if let Some(id) = response["sessionId"].as_str() {
            known.push(id.to_owned());
        }
    }
}

#[tokio::test]
async fn concurrent_operations_leave_at_most_one_active_session() {
    let processes = Processes::start("race-mixed").await;
    join_all((0..128).map(|number| caller(&processes, number))).await;

    let mut active = Vec::new();
    let sessions = processes.probe.keys_of('s').await;
    for key in &sessions {
        let session = processes.probe.hash(key).await;
        if session["status"] == "active" {
            active.push(session["sessionId"].clone());
        }
    }
    let mut pointed = Vec::new();
    for key in processes.probe.keys_of('a').await {
        pointed.extend(processes.probe.text(&["GET", &key]).await);
    }
    let mut indexed = Vec::new();
    for key in processes.probe.keys_of('b').await {
        indexed.extend(processes.probe.texts(&["ZRANGE", &key, "0", "-1"]).await);
    }
    assert!(active.len() <= 1, "{active:?}");
    assert_eq!(pointed, active);
    assert_eq!(indexed, active);
    let [history] = &processes.probe.keys_of('h').await[..] else { panic!("one history") };
    let entries = processes.probe.texts(&["ZRANGE", history, "0", "-1", "WITHSCORES"]).await;
    assert_eq!(entries.len() / 2, sessions.len());
    let scores: BTreeSet<_> = entries.iter().skip(1).step_by(2).collect();
    assert_eq!(scores.len(), sessions.len(), "scores strictly increase");
}

#[tokio::test]
async fn concurrent_patches_of_different_members_are_all_kept() {
    let processes = Processes::start("race-patch").await;
    let mut stream = processes.connect(0).await;
    let (_, session) = exchange(&mut stream, "POST", "/api/sessions", &json!({"businessId": "b", "userId": "u"})).await;
    let path = format!("/api/sessions/{}", session["sessionId"].as_str().expect("an id"));
    let add_key = |number: usize| {
        let (processes, path) = (&processes, &path);
        async move {
            let mut stream = processes.connect(number).await;
            let body = json!({"metadata": {format!("key{number}"): number}});
            exchange(&mut stream, "PATCH", path, &body).await.0
        }
    };
    let statuses = join_all((0..24).map(add_key)).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    let (_, after) = exchange(&mut processes.connect(1).await, "GET", &path, &json!({})).await;
    assert_eq!(after["metadata"].as_object().map(serde_json::Map::len), Some(24), "{after}");
    assert_eq!(after["version"], 25);
}
