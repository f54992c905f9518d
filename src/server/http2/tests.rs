//! Connections in memory, with a paused clock: which connections and streams the limits and timeouts of HTTP/2 end.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;
use h2::client::{Builder, SendRequest};
use h2::{Reason, RecvStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;
use crate::server::ConnectionTimeouts;

const HEAD: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(75);
const SEND: Duration = Duration::from_secs(10);
const LARGE: usize = 1 << 20;
const COMMENT_INTERVAL: Duration = Duration::from_secs(15);
/// Longer than all timeouts together.
const HOUR: Duration = Duration::from_secs(3600);

/// A connection to a server in this process. Tokio's clock is paused: it advances when all tasks wait.
struct Server {
    client: Option<DuplexStream>,
    served: JoinHandle<()>,
    shutdown: watch::Sender<bool>,
}

impl Server {
    fn start(router: Router) -> Self {
        Self::start_with_buffer(router, 8 << 20)
    }

    /// Starts a server whose socket buffers this many bytes.
    fn start_with_buffer(router: Router, bytes: usize) -> Self {
        let limits =
            ConnectionLimits { total: 1, per_address: 1, trusted_proxies: Vec::new(), head_bytes: 8192, headers: 20 };
        let timeouts = ConnectionTimeouts { head: HEAD, keep_alive: KEEP_ALIVE, send: SEND };
        let settings = ConnectionSettings { timeouts, limits, certificate: None };
        let (client, server) = tokio::io::duplex(bytes);
        let (sender, receiver) = watch::channel(false);
        let serve = async move { serve(server, router, &settings, Shutdown::new(receiver)).await };
        Self { client: Some(client), served: tokio::spawn(serve), shutdown: sender }
    }

    /// Connects a client whose streams start with this window.
    async fn connect(&mut self, window: u32) -> SendRequest<Bytes> {
        let io = self.client.take().expect("the client's side");
        let mut builder = Builder::new();
        builder.initial_window_size(window).initial_connection_window_size(1 << 24);
        let (client, connection) = builder.handshake(io).await.expect("a connection");
        tokio::spawn(connection);
        client
    }

    /// How long the connection stays open from now.
    async fn closed_after(self) -> Duration {
        let now = Instant::now();
        within_hour(self.served).await.expect("no panic");
        now.elapsed()
    }
}

/// Waits for something that needs no real time, only the paused clock.
async fn within_hour<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(HOUR, wait).await.expect("an end")
}

fn routes() -> Router {
    let comment = async |()| {
        tokio::time::sleep(COMMENT_INTERVAL).await;
        Some((Ok::<_, JoinError>(Bytes::from_static(b":\n")), ()))
    };
    let comments = move || async move { Body::from_stream(stream::unfold((), comment)) };
    let large = async || vec![b'a'; LARGE];

    let slow = async || tokio::time::sleep(5 * SEND).await;
    let open = async || Body::from_stream(stream::pending::<Result<Bytes, JoinError>>());
    let routes = Router::new().route("/", get(async || "small")).route("/large", get(large));
    routes.route("/comments", get(comments)).route("/open", get(open)).route("/slow", get(slow))
}

async fn send(client: &mut SendRequest<Bytes>, request: axum::http::request::Builder) -> Response<RecvStream> {
    let request = request.body(()).expect("a request");
    let mut ready = client.clone().ready().await.expect("an open connection");
    let (response, _) = ready.send_request(request, true).expect("an open connection");
    within_hour(response).await.expect("a response")
}

fn request(path: &str) -> axum::http::request::Builder {
    axum::http::Request::builder().uri(format!("https://x{path}"))
}

/// Reads a body to its end.
async fn read(response: Response<RecvStream>) -> Result<Vec<u8>, h2::Error> {
    let (mut body, mut received) = (response.into_body(), Vec::new());
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        received.extend_from_slice(&data);
    }
    Ok(received)
}

#[tokio::test(start_paused = true)]
async fn connections_without_requests_are_closed() {
    // No byte, a preface, and half of a head. Each is closed after the head timeout, and the delay of the close.
    let half = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\0\0\0\0\x01\x82";
    for sent in [&half[..0], &half[..33], half] {
        let mut server = Server::start(routes());
        let mut client = server.client.take().expect("the client's side");
        client.write_all(sent).await.expect("the bytes are sent");
        assert_eq!(server.closed_after().await.as_secs(), (HEAD + CLOSE_DELAY).as_secs(), "{sent:?}");
    }
    // A client that reads its GOAWAY closes the connection itself.
    let mut server = Server::start(routes());
    let client = server.connect(65_535).await;
    assert_eq!(server.closed_after().await.as_secs(), HEAD.as_secs());
    assert!(client.ready().await.is_err());
    // After a response, the keep-alive timeout counts.
    let mut server = Server::start(routes());
    let mut client = server.connect(65_535).await;
    tokio::time::sleep(HEAD / 2).await;
    assert_eq!(read(send(&mut client, request("/")).await).await.expect("a body"), b"small");
    assert_eq!(server.closed_after().await.as_secs(), KEEP_ALIVE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn streams_that_send_little_stay_open() {
    let mut server = Server::start(routes());
    let mut client = server.connect(65_535).await;
    let mut comments = send(&mut client, request("/comments")).await.into_body();
    for _ in 0..1000 {
        let data = comments.data().await.expect("no end").expect("a comment");
        comments.flow_control().release_capacity(data.len()).expect("a window");
    }
    assert!(!server.served.is_finished());
    // After the stream has ended, the connection is unused.
    drop(comments);
    assert_eq!(server.closed_after().await.as_secs(), KEEP_ALIVE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn connections_of_vanished_clients_are_closed() {
    let mut server = Server::start(routes());
    let io = server.client.take().expect("the client's side");
    let (mut client, mut connection) = h2::client::handshake(io).await.expect("a connection");
    tokio::select! {
        response = send(&mut client, request("/comments")) => assert_eq!(response.status(), StatusCode::OK),
        _ = &mut connection => unreachable!("the connection is open"),
    }
    // From here on the client neither reads nor writes.
    let closed = server.closed_after().await;
    assert!(closed <= PING_INTERVAL + PING_TIMEOUT + CLOSE_DELAY, "{closed:?}");
}

#[tokio::test(start_paused = true)]
async fn responses_that_are_not_read_are_reset_and_others_are_sent() {
    // The unread response stalls at its first byte, in the middle, or just before its end.
    for window in [0, 40_000, (1 << 20) - 1] {
        let mut server = Server::start(routes());
        let mut client = server.connect(window).await;
        let start = Instant::now();
        let mut unread = send(&mut client, request("/large")).await.into_body();
        let mut received = 0;
        let error = loop {
            match within_hour(unread.data()).await.expect("no end") {
                Ok(data) => received += data.len(),
                Err(error) => break error,
            }
        };
        assert_eq!((error.reason(), received), (Some(Reason::CANCEL), window as usize));
        assert_eq!(start.elapsed().as_secs(), SEND.as_secs());
        assert_eq!(send(&mut client, request("/").method("HEAD")).await.status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn responses_that_are_read_slowly_are_sent() {
    let mut server = Server::start(routes());
    let mut client = server.connect(40_000).await;
    let mut body = send(&mut client, request("/large")).await.into_body();
    let mut received = 0;
    while let Some(data) = body.data().await {
        let length = data.expect("no reset").len();
        received += length;
        tokio::time::sleep(SEND / 4).await;
        body.flow_control().release_capacity(length).expect("a window");
    }
    assert_eq!(received, LARGE);
}

#[tokio::test(start_paused = true)]
async fn connections_of_clients_that_read_nothing_are_closed() {
    let mut server = Server::start_with_buffer(routes(), 1024);
    let io = server.client.take().expect("the client's side");
    let mut builder = Builder::new();
    builder.initial_window_size(1 << 24).initial_connection_window_size(1 << 24);
    let (mut client, mut connection) = within_hour(builder.handshake(io)).await.expect("a connection");
    tokio::select! {
        response = send(&mut client, request("/large")) => assert_eq!(response.status(), StatusCode::OK),
        _ = &mut connection => unreachable!("the connection is open"),
    }
    assert_eq!(server.closed_after().await.as_secs(), SEND.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_response_whose_end_is_not_read_closes_the_connection() {
    let mut server = Server::start(routes());
    let mut client = server.connect(1).await;
    let _unread = send(&mut client, request("/")).await;
    assert_eq!(server.closed_after().await.as_secs(), SEND.as_secs());
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_reset_are_served_and_count() {
    let [running, done] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let handler = {
        let (running, done) = (running.clone(), done.clone());
        async move || {
            running.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(1)).await;
            running.fetch_sub(1, Ordering::Relaxed);
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    let mut server = Server::start(Router::new().route("/", get(handler)));
    let mut client = server.connect(65_535).await;
    for _ in 0..3 * STREAMS_MAX {
        client = client.ready().await.expect("an open connection");
        let (response, _) = client.send_request(request("/").body(()).expect("a request"), true).expect("a stream");
        // The server sees the request before the reset.
        tokio::time::sleep(Duration::from_micros(10)).await;
        drop(response);
        assert!(running.load(Ordering::Relaxed) <= STREAMS_MAX as usize);
    }
    assert_eq!(running.load(Ordering::Relaxed), STREAMS_MAX as usize);
    // The connection counts until all of them have been served.
    drop(client);
    server.closed_after().await;
    assert_eq!((running.load(Ordering::Relaxed), done.load(Ordering::Relaxed)), (0, STREAMS_MAX as usize));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_finishes_requests() {
    let mut server = Server::start(routes());
    let mut client = server.connect(65_535).await;
    let (response, _) = client.send_request(request("/slow").body(()).expect("a request"), true).expect("a stream");
    tokio::time::sleep(Duration::from_millis(1)).await;
    server.shutdown.send_replace(true);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(client.ready().await.is_err(), "no more streams are accepted");
    assert!(!server.shutdown.is_closed(), "the service waits for the connection");
    assert_eq!(response.await.expect("a response").status(), StatusCode::OK);
    assert!(server.closed_after().await < CLOSE_DELAY);
    // A client that does not react delays the stop only by the close delay.
    let mut server = Server::start(routes());
    let _client = server.client.take();
    server.shutdown.send_replace(true);
    assert_eq!(server.closed_after().await.as_secs(), CLOSE_DELAY.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_still_sends_reads_why_the_connection_is_closed() {
    for closes in [true, false] {
        let mut server = Server::start(routes());
        let mut client = server.client.take().expect("the client's side");
        // DATA of stream 0 is an error.
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        client.write_all(preface).await.expect("the bytes are sent");
        let mut received = Vec::new();
        within_hour(client.read_to_end(&mut received)).await.expect("an end");
        let goaway = [b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0".as_slice(), &1_u32.to_be_bytes()].concat();
        assert!(received.ends_with(&goaway), "{received:?}");
        // The service has closed only its own side.
        client.write_all(b"more").await.expect("the bytes are sent");
        let client = (!closes).then_some(client);
        let delay = if closes { Duration::ZERO } else { CLOSE_DELAY };
        assert_eq!(server.closed_after().await.as_secs(), delay.as_secs(), "{closes}");
        drop(client);
    }
}

#[tokio::test(start_paused = true)]
async fn heads_over_a_limit_are_rejected() {
    let mut server = Server::start(routes());
    let mut client = server.connect(65_535).await;
    let many = |count| (0..count).fold(request("/"), |request, number| request.header(format!("a{number}"), "b"));
    let long = |bytes: usize| request("/").header("a", "b".repeat(bytes));
    for (request, status, has_body) in [
        (many(20), 200, true),
        (many(21), 431, true),
        (long(8192 - 7), 200, true),
        (long(8192 - 6), 431, true),
        (long(16_000), 431, true),
        // hyper itself rejects it.
        (long(20_000), 431, false),
        (request("/").method("HEAD"), 200, false),
    ] {
        let text = format!("{request:?}");
        let response = send(&mut client, request).await;
        assert_eq!(response.status().as_u16(), status, "{text}");
        if status == 431 && has_body {
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            assert!(response.headers().contains_key("x-request-id"));
        }
        assert_eq!(!read(response).await.expect("a body").is_empty(), has_body, "{text}");
    }
    // A head that is much too large.
    let response = client.send_request(long(100_000).body(()).expect("a request"), true).expect("a stream").0.await;
    assert_eq!(response.expect_err("no response").reason(), Some(Reason::ENHANCE_YOUR_CALM));
    server.closed_after().await;
}

#[tokio::test(start_paused = true)]
async fn streams_over_the_limit_wait() {
    let mut server = Server::start(routes());
    let mut client = server.connect(65_535).await;
    let mut open = Vec::new();
    for _ in 0..STREAMS_MAX {
        client = client.ready().await.expect("an open connection");
        open.push(client.send_request(request("/open").body(()).expect("a request"), true).expect("a stream"));
        tokio::time::sleep(Duration::from_micros(10)).await;
    }
    let (response, _) = client.send_request(request("/").body(()).expect("a request"), true).expect("a stream");
    let mut response = pin!(response);
    assert!(tokio::time::timeout(KEEP_ALIVE, response.as_mut()).await.is_err(), "no stream is free");
    drop(open.pop());
    assert_eq!(response.await.expect("a response").status(), StatusCode::OK);
}
