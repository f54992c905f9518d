//! Clients that close their sending side, or both: what they sent completely is answered, what they cut off changes
//! nothing, and their connections do not stay.

use reqwest::StatusCode;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::process::{Process, patiently};
use crate::support::raw;
use crate::support::redis::Look;
use crate::support::scrape::Scrape;
use crate::support::server::{IN_MEMORY, RedisServer};

use super::{Target, to_end};

/// Longer than any test waits: what ends sooner did not end for its time.
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
    raw::answers(received).iter().map(|answer| answer.status.as_u16()).collect()
}

async fn sessions(look: &Look) -> usize {
    look.keys_of('s').await.len()
}

#[tokio::test]
async fn a_request_whose_client_closes_its_side_at_once_is_answered() {
    let target = Target::start("half-closed", &LONG).await;
    for number in 0..CLIENTS {
        let framing = if number % 2 == 0 { "chunked" } else { "content-length" };
        let received = target.send(create(&format!("u{number}"), framing).as_bytes(), true).await;
        assert_eq!(statuses(&received), [201], "{number}: {framing}");
    }
    assert_eq!(sessions(&target.look).await, CLIENTS);
    // Several behind each other, with and without bodies: all of them, in their order, and then the end.
    let piped: Vec<_> = (0..CLIENTS).map(|number| create(&format!("p{number}"), "chunked") + &get("/livez")).collect();
    let received = target.send(piped.concat().as_bytes(), true).await;
    assert_eq!(statuses(&received), [201, 200].repeat(CLIENTS));
    assert_eq!(sessions(&target.look).await, 2 * CLIENTS);
    // A large answer is sent whole.
    let large = target.send(get("/openapi.json").as_bytes(), true).await;
    assert_eq!(raw::answers(&large)[0].json()["openapi"], "3.1.0");
    let old = target.send(b"GET /livez HTTP/1.0\r\n\r\n", true).await;
    assert_eq!(statuses(&old), [200]);
    // Refusals, too: of the router, and of what is no HTTP.
    assert_eq!(statuses(&target.send(get("/nowhere").as_bytes(), true).await), [404]);
    assert_eq!(statuses(&target.send(b"GET /livez HTTP/1.1\nhost: x\n\n", true).await), [400]);
}

#[tokio::test]
async fn a_request_that_is_cut_off_changes_nothing_and_ends_at_once() {
    let target = Target::start("cut-off", &LONG).await;
    let (declared, chunked) = (create("u", "content-length"), create("u", "chunked"));
    let head = declared.find("\r\n\r\n").expect("the end of the head") + 4;
    let chunks = chunked.find("\r\n\r\n").expect("the end of the head") + 4;
    // Anywhere in the head: there is nobody to answer.
    for end in [0, 1, 20, head - 3, head - 2, head - 1] {
        assert_eq!(target.send(&declared.as_bytes()[..end], true).await, b"", "{end}");
    }
    for (request, ends) in [
        (&declared, [head, head + 1, declared.len() - 1]),
        // In the size, in the chunk, and between the two parts of its end.
        (&chunked, [chunks + 1, chunks + 10, chunked.len() - 2]),
    ] {
        for end in ends {
            let received = target.send(&request.as_bytes()[..end], true).await;
            let answers = raw::answers(&received);
            assert_eq!(answers.len(), 1, "{end} of {request}: {answers:?}");
            answers[0].expect_problem(400, "invalid_request");
        }
    }
    // A whole request is answered, also in front of one that is cut off.
    let both = get("/livez") + &declared[..head + 5];
    assert_eq!(statuses(&target.send(both.as_bytes(), true).await), [200, 400]);
    let both = get("/livez") + &declared[..head - 5];
    assert_eq!(statuses(&target.send(both.as_bytes(), true).await), [200]);
    assert_eq!(target.look.keys().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_connection_whose_client_has_no_more_requests_ends_at_once() {
    let target = Target::start("no-more", &LONG).await;
    // Without any request, and after one that was answered.
    for request in ["", "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let mut stream = target.connect().await;
        stream.write_all(request.as_bytes()).await.expect("a request sent");
        if !request.is_empty() {
            let mut start = [0; 12];
            patiently(stream.read_exact(&mut start)).await.expect("an answer");
            assert_eq!(&start, b"HTTP/1.1 200");
        }
        stream.shutdown().await.expect("one side closed");
        patiently(to_end(&mut stream)).await;
    }
    expect_no_connections(&target.service).await;
}

#[tokio::test]
async fn a_client_that_closes_its_side_and_takes_no_answer_is_cut_off_in_time() {
    // Of the time limits it is that for taking an answer that is short here.
    let target = Target::start("half-deaf", &[]).await;
    let mut deaf = Vec::new();
    for _ in 0..3 {
        let mut stream = target.connect().await;
        // More answers than there is room for on the way.
        stream.write_all(get("/openapi.json").repeat(300).as_bytes()).await.expect("requests sent");
        stream.shutdown().await.expect("one side closed");
        deaf.push(stream);
    }
    expect_no_connections(&target.service).await;
}

#[tokio::test]
async fn a_client_that_vanishes_while_it_is_served_leaves_nothing_behind() {
    let redis = RedisServer::start(IN_MEMORY);
    let flags = ["--request-deadline", "2s", "--receive-timeout", "1h", "--keep-alive-timeout", "1h"];
    let (service, base) = Process::serve(&flags, &[("REDIS_URL", &redis.url())]);
    let address = base.trim_start_matches("http://");
    let send = async |user: &str| {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(create(user, "content-length").as_bytes()).await.expect("a request sent");
        stream
    };
    let mut first = send("first").await;
    first.shutdown().await.expect("one side closed");
    assert_eq!(statuses(&patiently(to_end(&mut first)).await), [StatusCode::CREATED]);
    redis.signal(Signal::STOP);
    let mut half_closed = Vec::new();
    for number in 0..CLIENTS {
        let stream = send(&format!("u{number}")).await;
        match number % 3 {
            // Closed, and reset.
            0 => drop(stream),
            1 => stream.set_zero_linger().expect("a socket"),
            _ => half_closed.push(stream),
        }
    }
    for stream in &mut half_closed {
        stream.shutdown().await.expect("one side closed");
    }
    Scrape::until(&service, |scrape| scrape.value("sessiond_http_requests_in_flight") == 0).await;
    // Those who still read hear what became of it.
    for mut stream in half_closed {
        assert_eq!(statuses(&patiently(to_end(&mut stream)).await), [StatusCode::SERVICE_UNAVAILABLE]);
    }
    expect_no_connections(&service).await;
    redis.signal(Signal::CONT);
    patiently(async {
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

/// Waits until there is no connection but that of the scrape itself.
async fn expect_no_connections(service: &Process) {
    Scrape::until(service, |scrape| scrape.value("sessiond_http_connections") == 1).await;
}
