//! Connections, more than there may be: in total, from one address, and ten thousand that say nothing.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::load::{Load, User};
use crate::support::process::patiently;
use crate::support::raw;
use crate::support::service::Answer;

use super::{Target, expect_all_served, to_end};

const SILENT: usize = 10_000;
/// Open files that this process, where other tests run, keeps for them.
const OPEN_FILES_OF_OTHERS: usize = 6_000;
/// How many connections are opened at once: the system keeps some thousands waiting, and forgets the rest.
const AT_ONCE: usize = 500;
/// How long the steady client works alone, to compare.
const ALONE: Duration = Duration::from_secs(2);

/// A connection from this loopback address.
async fn connect_from(address: &str, target: &Target) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(address.parse::<IpAddr>().expect("an address"), 0)).expect("a port");
    patiently(socket.connect(target.address())).await.expect("a connection")
}

/// What a request on this connection is answered.
async fn ask(mut stream: TcpStream) -> Answer {
    // Who is turned away may be so before anything is sent.
    let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let answers = raw::answers(&patiently(to_end(&mut stream)).await);
    let [answer] = answers.as_slice() else { panic!("one answer, not {answers:?}") };
    answer.clone()
}

/// A connection that is held, and served.
async fn hold(address: &str, target: &Target) -> TcpStream {
    let mut stream = connect_from(address, target).await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("a request sent");
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.expect("an answer");
    assert_eq!(&start, b"HTTP/1.1 200", "{address}");
    stream
}

/// Waits until a client of this address is served.
async fn expect_served_again(address: &str, target: &Target) {
    patiently(async { while ask(connect_from(address, target).await).await.status.as_u16() != 200 {} }).await;
}

#[tokio::test]
async fn there_are_so_many_connections_and_no_more() {
    let target = Target::start("crowd", &["--max-connections", "8"]).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(hold("127.0.0.1", &target).await);
    }
    let answer = ask(target.connect().await).await;
    answer.expect_problem(503, "overloaded");
    held.pop();
    expect_served_again("127.0.0.1", &target).await;
}

#[tokio::test]
async fn an_address_has_so_many_connections_and_a_proxy_has_all() {
    let flags = ["--max-connections-per-address", "2", "--proxies", "127.0.0.1,127.0.9.0/24"];
    let target = Target::start("addresses", &flags).await;
    let mut held = vec![hold("127.0.0.2", &target).await, hold("127.0.0.2", &target).await];
    ask(connect_from("127.0.0.2", &target).await).await.expect_problem(503, "overloaded");
    for other in ["127.0.0.3", "127.0.9.1", "127.0.9.1", "127.0.9.1", "127.0.0.1", "127.0.0.1", "127.0.0.1"] {
        held.push(hold(other, &target).await);
    }
    ask(connect_from("127.0.0.2", &target).await).await.expect_problem(503, "overloaded");
    held.remove(0);
    expect_served_again("127.0.0.2", &target).await;
}

/// The time that all but one in a hundred calls took at most.
fn p99(users: &[User]) -> Duration {
    let mut took: Vec<_> = users.iter().flat_map(|user| user.calls.iter().map(|call| call.took)).collect();
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

/// Sees how a client fares while `count` others say nothing, and that each of those is closed.
async fn stay_silent(target: &Target, count: usize) {
    let mut silent = Vec::new();
    while silent.len() < count {
        let more = (0..AT_ONCE.min(count - silent.len())).map(|_| target.connect());
        silent.extend(join_all(more).await);
        // Connections are accepted in their order: once this one is served, none of them waits to be.
        ask(target.connect().await).await.expect(200);
    }
    let ends = silent.into_iter().map(async |mut stream| {
        let received = to_end(&mut stream).await;
        assert!(received.is_empty(), "{:?}", String::from_utf8_lossy(&received));
    });
    patiently(join_all(ends)).await;
}

#[tokio::test]
async fn ten_thousand_silent_connections_are_closed_and_others_served_meanwhile() {
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
    stay_silent(&target, count).await;
    let beside = load.stop().await;
    expect_all_served(&alone);
    expect_all_served(&beside);
    println!("p99 alone {:?}, beside {count} silent connections {:?}", p99(&alone), p99(&beside));
}
