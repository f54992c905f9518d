//! Clients that close their sending side, or both sides: the service responds to complete requests, truncated requests
//! change nothing, and the connections do not stay open.

use reqwest::StatusCode;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::process::{Process, with_timeout};
use crate::support::raw;
use crate::support::redis::RedisProbe;
use crate::support::redis_server::{IN_MEMORY, RedisServer};
use crate::support::scrape::Scrape;

use super::{Target, to_end};

/// Longer than any test waits, so no connection ends because of a timeout.
const LONG: [&str; 4] = ["--receive-timeout", "1h", "--keep-alive-timeout", "1h"];
const CLIENTS: usize = 30;

fn create(user: &str, framing: &str) -> String {
    let body = format!("{{\"businessId\":\"b\",\"userId\":\"{user}\"}}");
    let length = body.len();
    let head = "POST /api/sessions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    match framing {
        "chunked" => format!("{head}transfer-encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"),
        _ => format!("{head}content-length: {length}\r\n\r\n{body}"),
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")
}

fn statuses(received: &[u8]) -> Vec<u16> {
    raw::answers(received).iter().map(|response| response.status.as_u16()).collect()
}

async fn sessions(probe: &RedisProbe) -> usize {
    probe.keys_of('s').await.len()
}

#[tokio::test]
async fn half_closed_clients_get_their_responses() {
    let target = Target::start("half-closed", &LONG).await;
    for number in 0..CLIENTS {
        let framing = if number % 2 == 0 { "chunked" } else { "content-length" };
        let received = target.send(create(&format!("u{number}"), framing).as_bytes(), true).await;
        assert_eq!(statuses(&received), [201], "{number}: {framing}");
    }
    assert_eq!(sessions(&target.probe).await, CLIENTS);
    // Pipelined requests with and without bodies: the service responds to all of them in order, then closes.
    let piped: Vec<_> = (0..CLIENTS).map(|number| create(&format!("p{number}"), "chunked") + &get("/livez")).collect();
    let received = target.send(piped.concat().as_bytes(), true).await;
    assert_eq!(statuses(&received), [201, 200].repeat(CLIENTS));
    assert_eq!(sessions(&target.probe).await, 2 * CLIENTS);
    // A large response is sent completely.
    let large = target.send(get("/openapi.json").as_bytes(), true).await;
    assert_eq!(raw::answers(&large)[0].json()["openapi"], "3.1.0");
    let old = target.send(b"GET /livez HTTP/1.0\r\n\r\n", true).await;
    assert_eq!(statuses(&old), [200]);
    // Error responses are sent too: for an unknown route, and for bytes that are not HTTP.
    assert_eq!(statuses(&target.send(get("/nowhere").as_bytes(), true).await), [404]);
    assert_eq!(statuses(&target.send(b"GET /livez HTTP/1.1\nhost: x\n\n", true).await), [400]);
}

#[tokio::test]
async fn truncated_requests_change_nothing_and_end_immediately() {
    let target = Target::start("cut-off", &LONG).await;
    let (declared, chunked) = (create("u", "content-length"), create("u", "chunked"));
    let head = declared.find("\r\n\r\n").expect("the end of the head") + 4;
    let chunks = chunked.find("\r\n\r\n").expect("the end of the head") + 4;
    // Truncated in the head: the service sends no response.
    for end in [0, 1, 20, head - 3, head - 2, head - 1] {
        assert_eq!(target.send(&declared.as_bytes()[..end], true).await, b"", "{end}");
    }
    for (request, ends) in [
        (&declared, [head, head + 1, declared.len() - 1]),
        // Truncated in the size, in the chunk, and before the last CRLF.
        (&chunked, [chunks + 1, chunks + 10, chunked.len() - 2]),
    ] {
        for end in ends {
            let received = target.send(&request.as_bytes()[..end], true).await;
            let responses = raw::answers(&received);
            assert_eq!(responses.len(), 1, "{end} of {request}: {responses:?}");
            responses[0].expect_problem(400, "invalid_request");
        }
    }
    // A complete request gets its response, also if a truncated one follows.
    let both = get("/livez") + &declared[..head + 5];
    assert_eq!(statuses(&target.send(both.as_bytes(), true).await), [200, 400]);
    let both = get("/livez") + &declared[..head - 5];
    assert_eq!(statuses(&target.send(both.as_bytes(), true).await), [200]);
    assert_eq!(target.probe.keys().await, Vec::<String>::new());
}

#[tokio::test]
async fn half_closed_connections_without_a_request_end_immediately() {
    let target = Target::start("no-more", &LONG).await;
    // Without any request, and after the response to one.
    for request in ["", "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let mut stream = target.connect().await;
        stream.write_all(request.as_bytes()).await.expect("the request is sent");
        if !request.is_empty() {
            let mut start = [0; 12];
            with_timeout(stream.read_exact(&mut start)).await.expect("a response");
            assert_eq!(&start, b"HTTP/1.1 200");
        }
        stream.shutdown().await.expect("one side closed");
        with_timeout(to_end(&mut stream)).await;
    }
    expect_no_connections(&target.service).await;
}

/// Reads until `text` has arrived. Returns the bytes after it.
async fn read_to(stream: &mut TcpStream, text: &str) -> Vec<u8> {
    let mut received = Vec::new();
    loop {
        assert!(with_timeout(stream.read_buf(&mut received)).await.expect("bytes") > 0, "{text}");
        let found = received.windows(text.len()).position(|bytes| bytes == text.as_bytes());
        if let Some(start) = found {
            return received.split_off(start + text.len());
        }
    }
}

#[tokio::test]
async fn event_streams_end_with_their_client_and_other_requests_wait_for_their_end() {
    let target = Target::start("stream-ends", &LONG).await;
    let events = get("/api/sessions/business/b/events");
    // The client closes both sides, or only one. Nothing else would end the stream.
    for closes_both in [true, false] {
        let mut stream = target.connect().await;
        stream.write_all(events.as_bytes()).await.expect("the request is sent");
        read_to(&mut stream, "event: reset").await;
        if !closes_both {
            stream.shutdown().await.expect("one side closed");
            with_timeout(to_end(&mut stream)).await;
        }
        drop(stream);
        expect_no_connections(&target.service).await;
    }
    // Requests that are sent during a stream are served after it, even if they are large.
    let received = target.send(create("u", "content-length").as_bytes(), true).await;
    let id = raw::answers(&received)[0].json()["sessionId"].as_str().expect("an id").to_owned();
    let mut stream = target.connect().await;
    stream.write_all(get(&format!("/api/sessions/{id}/events")).as_bytes()).await.expect("the request is sent");
    read_to(&mut stream, "event: ready").await;
    let piped = get("/livez").repeat(300);
    stream.write_all(piped.as_bytes()).await.expect("the requests are sent");
    let delete = format!("DELETE /api/sessions/{id} HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(statuses(&target.send(delete.as_bytes(), true).await), [204]);
    let mut responses = read_to(&mut stream, "\r\n0\r\n\r\n").await;
    stream.shutdown().await.expect("one side closed");
    responses.extend(with_timeout(to_end(&mut stream)).await);
    assert_eq!(statuses(&responses), [200; 300]);
}

#[tokio::test]
async fn connections_of_half_closed_clients_that_do_not_read_are_closed() {
    // The receive timeout is short here. It also limits how long a client may accept no byte.
    let target = Target::start("half-deaf", &[]).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = target.connect().await;
        // More responses than fit into the socket buffers.
        stream.write_all(get("/openapi.json").repeat(300).as_bytes()).await.expect("the requests are sent");
        stream.shutdown().await.expect("one side closed");
        held.push(stream);
    }
    expect_no_connections(&target.service).await;
}

#[tokio::test]
async fn clients_that_disconnect_while_served_leave_no_connection_open() {
    let redis = RedisServer::start(IN_MEMORY);
    let flags = ["--request-deadline", "2s", "--receive-timeout", "1h", "--keep-alive-timeout", "1h"];
    let (service, base) = Process::serve(&flags, &[("REDIS_URL", &redis.url())]);
    let address = base.trim_start_matches("http://");
    let send = async |user: &str| {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(create(user, "content-length").as_bytes()).await.expect("the request is sent");
        stream
    };
    let mut first = send("first").await;
    first.shutdown().await.expect("one side closed");
    assert_eq!(statuses(&with_timeout(to_end(&mut first)).await), [StatusCode::CREATED]);
    redis.signal(Signal::STOP);
    let mut half_closed = Vec::new();
    for number in 0..CLIENTS {
        let stream = send(&format!("u{number}")).await;
        match number % 3 {
            // Closes the connection; the next arm resets it.
            0 => drop(stream),
            1 => stream.set_zero_linger().expect("a socket"),
            _ => half_closed.push(stream),
        }
    }
    for stream in &mut half_closed {
        stream.shutdown().await.expect("one side closed");
    }
    Scrape::until(&service, |scrape| scrape.value("sessiond_http_requests_in_flight") == 0).await;
    // Clients that still read get a 503.
    for mut stream in half_closed {
        assert_eq!(statuses(&with_timeout(to_end(&mut stream)).await), [StatusCode::SERVICE_UNAVAILABLE]);
    }
    expect_no_connections(&service).await;
    redis.signal(Signal::CONT);
    with_timeout(async {
        loop {
            let mut again = send("again").await;
            again.shutdown().await.expect("one side closed");
            if statuses(&to_end(&mut again).await) != [StatusCode::SERVICE_UNAVAILABLE] {
                break;
            }
        }
    })
    .await;
}

/// Waits until the connection of the scrape is the only one.
async fn expect_no_connections(service: &Process) {
    Scrape::until(service, |scrape| scrape.value("sessiond_http_connections") == 1).await;
}
