//! The service itself, as it is shipped, killed and stopped; and its memory while Redis hangs.

use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::acl;
use crate::support::ledger::Ledger;
use crate::support::process::{self, Process, patiently};
use crate::support::server::{AOF, IN_MEMORY, RedisServer};

/// Connections on each of which a request is under way when the service is told to stop.
const UNDER_WAY: usize = 64;
const REQUESTS: usize = 20_000;
const CALLERS: usize = 2_000;
const GROWTH_BYTES_MAX: u64 = 100 * 1024 * 1024;

fn serve(server: &RedisServer) -> (Process, String) {
    // Thousands of requests that were not served are not of interest.
    Process::serve(&["--log", "info,sessiond::http=error"], &[("REDIS_URL", &server.url())])
}

/// The audit that is shipped with the service.
fn expect_clean(server: &RedisServer) {
    let audited =
        process::run(&["audit", "--max-keys-per-second", "1000000"], &[("REDIS_URL", &acl::audit_url(&server.url()))]);
    assert_eq!(audited.status.code(), Some(0), "{audited:?}");
}

/// The next service finds everything that was acknowledged.
async fn expect_nothing_lost(mut ledger: Ledger, server: &RedisServer) {
    let (_service, base) = serve(server);
    ledger.base = base;
    ledger.load(5).await;
    patiently(ledger.expect_complete()).await;
    expect_clean(server);
}

#[tokio::test]
async fn a_killed_service_loses_nothing() {
    let server = RedisServer::start(AOF);
    let (mut service, base) = serve(&server);
    let mut ledger = Ledger::new(&base);
    let fault = async {
        // For as long as every user makes a few calls.
        tokio::time::sleep(Duration::from_secs(1)).await;
        service.signal(Signal::KILL);
    };
    tokio::join!(ledger.load(10), fault);
    service.wait();
    assert!(ledger.answered("no answer") > 0, "{:?}", ledger.answers());
    expect_nothing_lost(ledger, &server).await;
}

#[tokio::test]
async fn a_service_that_is_told_to_stop_answers_what_it_was_sent() {
    stop_under_load(Signal::TERM).await;
}

#[tokio::test]
async fn a_service_whose_terminal_is_closed_answers_what_it_was_sent() {
    stop_under_load(Signal::HUP).await;
}

async fn stop_under_load(signal: Signal) {
    let server = RedisServer::start(AOF);
    let (mut service, base) = serve(&server);
    let mut ledger = Ledger::new(&base);
    let host = base.trim_start_matches("http://");
    let fault = async {
        // For as long as every user makes a few calls.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let under_way = (0..UNDER_WAY).map(async |number| {
            let body = json!({"businessId": "b", "userId": format!("last{number}")}).to_string();
            let mut stream = TcpStream::connect(host).await.expect("a connection");
            let length = body.len();
            let head = "POST /api/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json";
            let request = format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}");
            stream.write_all(request.as_bytes()).await.expect("a request sent");
            stream
        });
        let streams = join_all(under_way).await;
        service.signal(signal);
        let answers = streams.into_iter().map(async |mut stream| {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer");
            answer
        });
        patiently(join_all(answers)).await
    };
    let ((), answers) = tokio::join!(ledger.load(10), fault);
    for answer in answers {
        // A machine that is busy with other tests may miss the deadline: that is an answer, too.
        assert!(answer.starts_with("HTTP/1.1 201") || answer.starts_with("HTTP/1.1 503"), "{answer:?}");
    }
    assert_eq!(service.wait().code(), Some(0), "{:#?}", service.lines);
    expect_nothing_lost(ledger, &server).await;
}

#[tokio::test]
async fn memory_is_bounded_while_redis_hangs() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("enough open files");
    let server = RedisServer::start(IN_MEMORY);
    let log = "info,sessiond::http=error";
    let (service, base) =
        Process::serve(&["--request-deadline", "300ms", "--log", log], &[("REDIS_URL", &server.url())]);
    let client = reqwest::Client::new();
    let create = async |user: String| {
        let body = json!({"businessId": "b", "userId": user});
        let request = client.post(format!("{base}/api/sessions")).json(&body);
        request.send().await.expect("an answer").status().as_u16()
    };
    // Connections and code take memory, too: not what this is about.
    join_all((0..CALLERS).map(|caller| create(format!("u{caller}")))).await;
    let before = service.resident_bytes();
    server.signal(Signal::STOP);
    let callers = (0..CALLERS).map(async |caller| {
        for _ in 0..REQUESTS / CALLERS {
            assert_eq!(create(format!("u{caller}")).await, 503);
        }
    });
    patiently(join_all(callers)).await;
    let growth = service.resident_bytes().saturating_sub(before);
    server.signal(Signal::CONT);
    patiently(async { while !matches!(create("again".to_owned()).await, 200 | 201) {} }).await;
    assert!(growth < GROWTH_BYTES_MAX, "{REQUESTS} requests took {growth} bytes");
    expect_clean(&server);
}
