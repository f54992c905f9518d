//! The limits of connections, in total and per address; and 10,000 silent connections.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::load::{Load, User};
use crate::support::process::with_timeout;
use crate::support::raw;
use crate::support::service::Answer;

use super::{Target, expect_all_served, to_end};

const SILENT: usize = 10_000;
/// Open files that are left for the other tests in this process.
const OPEN_FILES_OF_OTHERS: usize = 6_000;
/// How many connections are opened at once. The kernel queues some thousands of connections and drops the rest.
const AT_ONCE: usize = 500;
/// How long the load runs without the silent connections, for comparison.
const ALONE: Duration = Duration::from_secs(2);

/// Connects from this loopback address.
async fn connect_from(address: &str, target: &Target) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(address.parse::<IpAddr>().expect("an address"), 0)).expect("a port");
    with_timeout(socket.connect(target.address())).await.expect("a connection")
}

/// Sends a request on this connection and returns the response.
async fn exchange(mut stream: TcpStream) -> Answer {
    // Fails if the service has already rejected the connection.
    let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let responses = raw::answers(&with_timeout(to_end(&mut stream)).await);
    let [response] = responses.as_slice() else { panic!("one response, not {responses:?}") };
    response.clone()
}

/// Opens a connection that is served, and stays open.
async fn hold(address: &str, target: &Target) -> TcpStream {
    let mut stream = connect_from(address, target).await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("the request is sent");
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.expect("a response");
    assert_eq!(&start, b"HTTP/1.1 200", "{address}");
    stream
}

/// Waits until a client from this address is served.
async fn expect_served_again(address: &str, target: &Target) {
    with_timeout(async { while exchange(connect_from(address, target).await).await.status.as_u16() != 200 {} }).await;
}

#[tokio::test]
async fn connections_over_the_limit_are_rejected() {
    let target = Target::start("crowd", &["--max-connections", "8"]).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(hold("127.0.0.1", &target).await);
    }
    let response = exchange(target.connect().await).await;
    response.expect_problem(503, "overloaded");
    held.pop();
    expect_served_again("127.0.0.1", &target).await;
}

#[tokio::test]
async fn connections_per_address_are_limited_except_for_trusted_proxies() {
    let flags = ["--max-connections-per-address", "2", "--trusted-proxies", "127.0.0.1,127.0.9.0/24"];
    let target = Target::start("addresses", &flags).await;
    let mut held = vec![hold("127.0.0.2", &target).await, hold("127.0.0.2", &target).await];
    exchange(connect_from("127.0.0.2", &target).await).await.expect_problem(503, "overloaded");
    for other in ["127.0.0.3", "127.0.9.1", "127.0.9.1", "127.0.9.1", "127.0.0.1", "127.0.0.1", "127.0.0.1"] {
        held.push(hold(other, &target).await);
    }
    exchange(connect_from("127.0.0.2", &target).await).await.expect_problem(503, "overloaded");
    held.remove(0);
    expect_served_again("127.0.0.2", &target).await;
}

/// The 99th percentile of the duration of calls.
fn p99(users: &[User]) -> Duration {
    let mut took: Vec<_> = users.iter().flat_map(|user| user.calls.iter().map(|call| call.took)).collect();
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

/// Opens `count` connections that send nothing, and expects the service to close each of them without a response.
async fn expect_silent_connections_closed(target: &Target, count: usize) {
    let mut silent = Vec::new();
    while silent.len() < count {
        let more = (0..AT_ONCE.min(count - silent.len())).map(|_| target.connect());
        silent.extend(join_all(more).await);
        // The service accepts connections in order: once this one is served, all of those are accepted.
        exchange(target.connect().await).await.expect(200);
    }
    let ends = silent.into_iter().map(async |mut stream| {
        let received = to_end(&mut stream).await;
        assert!(received.is_empty(), "{:?}", String::from_utf8_lossy(&received));
    });
    with_timeout(join_all(ends)).await;
}

#[tokio::test]
async fn silent_connections_are_closed_while_others_are_served() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("enough open files");
    let possible = limit.maximum.map_or(SILENT, |most| usize::try_from(most).unwrap_or(SILENT));
    let count = possible.saturating_sub(OPEN_FILES_OF_OTHERS).min(SILENT);
    assert!(count > 1000, "the limit of open files, {possible}, is too low for this test");
    let target = Target::start("silent", &["--receive-timeout", "3s"]).await;
    let users: Vec<_> = (0..4).map(|number| ("b".to_owned(), format!("u{number}"))).collect();
    let load = Load::start(&target.base, &users).await;
    tokio::time::sleep(ALONE).await;
    let alone = load.stop().await;

    let users: Vec<_> = (0..4).map(|number| ("b".to_owned(), format!("v{number}"))).collect();
    let load = Load::start(&target.base, &users).await;
    expect_silent_connections_closed(&target, count).await;
    let loaded = load.stop().await;
    expect_all_served(&alone);
    expect_all_served(&loaded);
    println!("p99 alone {:?}, with {count} silent connections {:?}", p99(&alone), p99(&loaded));
}
