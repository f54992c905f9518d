//! The service binary when it is killed or stopped, and its memory while Redis hangs.

use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::acl;
use crate::support::ledger::Ledger;
use crate::support::process::{self, Process, with_timeout};
use crate::support::redis_server::{AOF, IN_MEMORY, RedisServer};

/// Connections that each have one request in flight when the service gets the signal.
const IN_FLIGHT: usize = 64;
const REQUESTS: usize = 20_000;
const CALLERS: usize = 2_000;
const GROWTH_BYTES_MAX: u64 = 100 * 1024 * 1024;

fn serve(server: &RedisServer) -> (Process, String) {
    // Keeps thousands of 503 responses out of the log.
    Process::serve(&["--log", "info,sessiond::http=error"], &[("REDIS_URL", &server.url())])
}

/// Runs `sessiond audit` and panics unless it finds nothing.
fn expect_clean(server: &RedisServer) {
    let audited =
        process::run(&["audit", "--max-keys-per-second", "1000000"], &[("REDIS_URL", &acl::audit_url(&server.url()))]);
    assert_eq!(audited.status.code(), Some(0), "{audited:?}");
}

/// Starts another service on the same Redis, which has to find everything that was acknowledged.
async fn expect_nothing_lost(mut ledger: Ledger, server: &RedisServer) {
    let (_service, base) = serve(server);
    ledger.base = base;
    ledger.load(5).await;
    with_timeout(ledger.expect_complete()).await;
    expect_clean(server);
}

#[tokio::test]
async fn killed_service_loses_no_acknowledged_write() {
    let server = RedisServer::start(AOF);
    let (mut service, base) = serve(&server);
    let mut ledger = Ledger::new(&base);
    let fault = async {
        // Gives every user time for a few calls.
        tokio::time::sleep(Duration::from_secs(1)).await;
        service.signal(Signal::KILL);
    };
    tokio::join!(ledger.load(10), fault);
    service.wait();
    assert!(ledger.answered("no answer") > 0, "{:?}", ledger.answers());
    expect_nothing_lost(ledger, &server).await;
}

#[tokio::test]
async fn sigterm_lets_requests_in_flight_finish() {
    stop_under_load(Signal::TERM).await;
}

#[tokio::test]
async fn sighup_lets_requests_in_flight_finish() {
    stop_under_load(Signal::HUP).await;
}

async fn stop_under_load(signal: Signal) {
    let server = RedisServer::start(AOF);
    let (mut service, base) = serve(&server);
    let mut ledger = Ledger::new(&base);
    let host = base.trim_start_matches("http://");
    let fault = async {
        // Gives every user time for a few calls.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let requests = (0..IN_FLIGHT).map(async |number| {
            let body = json!({"businessId": "b", "userId": format!("last{number}")}).to_string();
            let mut stream = TcpStream::connect(host).await.expect("a connection");
            let length = body.len();
            let head = "POST /api/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json";
            let request = format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}");
            stream.write_all(request.as_bytes()).await.expect("a request sent");
            stream
        });
        let streams = join_all(requests).await;
        service.signal(signal);
        let responses = streams.into_iter().map(async |mut stream| {
            let mut response = String::new();
            stream.read_to_string(&mut response).await.expect("a response");
            response
        });
        with_timeout(join_all(responses)).await
    };
    let ((), responses) = tokio::join!(ledger.load(10), fault);
    for response in responses {
        // A machine that is busy with other tests may miss the deadline, so a 503 is accepted.
        assert!(response.starts_with("HTTP/1.1 201") || response.starts_with("HTTP/1.1 503"), "{response:?}");
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
        request.send().await.expect("a response").status().as_u16()
    };
    // Opens all connections first, so that their memory is not counted as growth.
    join_all((0..CALLERS).map(|caller| create(format!("u{caller}")))).await;
    let before = service.resident_bytes();
    server.signal(Signal::STOP);
    let callers = (0..CALLERS).map(async |caller| {
        for _ in 0..REQUESTS / CALLERS {
            assert_eq!(create(format!("u{caller}")).await, 503);
        }
    });
    with_timeout(join_all(callers)).await;
    let growth = service.resident_bytes().saturating_sub(before);
    server.signal(Signal::CONT);
    with_timeout(async { while !matches!(create("again".to_owned()).await, 200 | 201) {} }).await;
    assert!(growth < GROWTH_BYTES_MAX, "{REQUESTS} requests took {growth} bytes");
    expect_clean(&server);
}
