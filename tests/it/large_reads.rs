//! Limits on the size of a response and on the memory of responses in progress, for the process and for each
//! credential.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sessiond::auth::Scope;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::credentials::{api_key, replace};
use crate::support::process::with_timeout;
use crate::support::redis_server::{IN_MEMORY, RedisServer};
use crate::support::service::Service;

const PAGE_BYTES_MAX: usize = 4 << 20;
/// Just below the largest content that one call may append with the default settings, in bytes.
const CONTENT_BYTES: usize = 250_000;

/// Appends `count` messages of `bytes` bytes each, one per call. Returns the path of the session's messages.
async fn session_with_large_messages(service: &Service, user: &str, count: usize, bytes: usize) -> String {
    let path = format!("/api/sessions/{}/messages", service.session_of(user).await);
    for _ in 0..count {
        service.post(&path, json!({"role": "user", "content": "x".repeat(bytes)})).await.expect(201);
    }
    path
}

/// Follows a list's links, starting at `path`. Returns the lengths of the pages in bytes, and the member `name` of each
/// entry.
async fn pages(service: &Service, path: &str, relation: &str, name: &str) -> (Vec<usize>, Vec<Value>) {
    let (mut lengths, mut entries, mut next) = (Vec::new(), Vec::new(), Some(path.to_owned()));
    while let Some(link) = next {
        let page = service.get(&link).await.expect(200);
        lengths.push(page.text.len());
        let listed = page.json().as_array().expect("an array").iter().map(|entry| entry[name].clone()).collect();
        entries.push(listed);
        next = page.link(relation);
    }
    if relation == "prev" {
        entries.reverse();
    }
    (lengths, entries.into_iter().flat_map(|page: Vec<Value>| page).collect())
}

#[tokio::test]
async fn message_pages_end_at_4_mib_and_link_to_the_rest() {
    let service = Service::start(&[]).await;
    let path = session_with_large_messages(&service, "u", 40, CONTENT_BYTES).await;
    service.post(&path, json!([{"role": "user", "content": 1}, {"role": "user", "content": 2}])).await.expect(201);
    let every_seq: Vec<_> = (1..=42).map(Value::from).collect();
    for (query, relation) in [("limit=1000", "prev"), ("limit=1000&after=0", "next"), ("limit=7", "prev")] {
        let (lengths, seqs) = pages(&service, &format!("{path}?{query}"), relation, "seq").await;
        assert_eq!(seqs, every_seq, "{query}");
        assert!(lengths.iter().all(|length| *length <= PAGE_BYTES_MAX), "{query}: {lengths:?}");
        if query != "limit=7" {
            assert!(
                lengths[0] > PAGE_BYTES_MAX - 2 * CONTENT_BYTES,
                "a page has space for another message: {lengths:?}"
            );
        }
    }
}

#[tokio::test]
async fn message_larger_than_a_page_gets_its_own_page() {
    let service = Service::start(&["--max-content-bytes", "6000000", "--max-body-bytes", "7000000"]).await;
    let path = session_with_large_messages(&service, "u", 3, 5_000_000).await;
    let (lengths, seqs) = pages(&service, &path, "prev", "seq").await;
    assert_eq!((lengths.len(), seqs), (3, vec![json!(1), json!(2), json!(3)]));
}

#[tokio::test]
async fn session_pages_end_at_4_mib_and_link_to_the_rest() {
    let service = Service::start(&["--max-metadata-bytes", "200000"]).await;
    let metadata = json!({"x": "x".repeat(150_000)});
    for number in 0..60 {
        // User `u` gets 30 sessions, the last of them active. The other 30 users get one active session each.
        let user = if number % 2 == 0 { "u".to_owned() } else { format!("u{number}") };
        let body = json!({"businessId": "b", "userId": user, "ifActive": "replace", "metadata": metadata});
        service.post("/api/sessions", body).await.expect(201);
    }
    for (path, sessions) in [("/api/sessions/business/b/user/u/history", 30), ("/api/sessions/business/b/active", 31)] {
        let (lengths, ids) = pages(&service, &format!("{path}?limit=100"), "next", "sessionId").await;
        let distinct: std::collections::BTreeSet<_> = ids.iter().map(Value::to_string).collect();
        assert_eq!((ids.len(), distinct.len()), (sessions, sessions), "{path}");
        assert!(lengths.iter().all(|length| *length <= PAGE_BYTES_MAX), "{path}: {lengths:?}");
        assert_eq!(lengths.len(), 2, "{path}: {lengths:?}");
    }
}

/// Requests a page and reads only the start of the response, so that the rest stays in the service's memory.
async fn request_without_reading(service: &Service, path: &str, credential: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let address = service.base.trim_start_matches("http://").parse().expect("an address");
    let mut stream = socket.connect(address).await.expect("a connection");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {credential}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("a request sent");
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.expect("the start of a response");
    assert_eq!(&status, b"HTTP/1.1 200");
    stream
}

#[tokio::test]
async fn unread_large_responses_block_only_their_credential() {
    let folder = TempDir::new().expect("a folder");
    let keys = ["slow", "other"].map(|id| api_key(id, &["b"], &Scope::ALL, None));
    let keys_file = folder.path().join("keys.toml");
    replace(&keys_file, keys.each_ref().map(|(_, entry)| entry.clone()).join("\n"));
    let [slow, other] = keys.map(|(credential, _)| credential);
    let keys_file = keys_file.to_str().expect("a path of text");
    // One credential may use a quarter of the memory: 8 MiB, which is two pages.
    let limits = ["--max-response-memory", "33554432", "--max-queue-wait", "50ms", "--rate-limit", "0"];
    let service = Service::start(&[&["--api-keys-file", keys_file], &limits[..]].concat()).await;
    let user = json!({"businessId": "b", "userId": "u"});
    let session = service.bearer(&slow, Method::POST, "/api/sessions", user).await.expect(201);
    let path = format!("/api/sessions/{}/messages", session.string("sessionId"));
    for _ in 0..17 {
        let message = json!({"role": "user", "content": "x".repeat(CONTENT_BYTES)});
        service.bearer(&slow, Method::POST, &path, message).await.expect(201);
    }
    let page = format!("{path}?limit=1000");
    let unread = join_all((0..2).map(|_| request_without_reading(&service, &page, &slow))).await;
    service.get_as(&slow, &page).await.expect_problem(503, "overloaded");
    // Small responses do not count against the limit, and other credentials have their own quarter.
    service.get_as(&slow, path.trim_end_matches("/messages")).await.expect(200);
    service.get_as(&other, &page).await.expect(200);
    service.get_as(&slow, &page).await.expect_problem(503, "overloaded");
    drop(unread);
    with_timeout(async { while service.get_as(&slow, &page).await.status != 200 {} }).await;
}

#[tokio::test]
async fn pages_with_last_messages_and_single_messages_count_against_the_limit() {
    let folder = TempDir::new().expect("a folder");
    let (key, entry) = api_key("key", &["b"], &Scope::ALL, None);
    let keys_file = folder.path().join("keys.toml");
    replace(&keys_file, entry);
    let keys_file = keys_file.to_str().expect("a path of text");
    // The credential may use 8 MiB.
    let limits = ["--max-response-memory", "33554432", "--max-queue-wait", "50ms", "--rate-limit", "0"];
    let service = Service::start(&[&["--api-keys-file", keys_file], &limits[..]].concat()).await;
    let mut path = String::new();
    // 17 of these messages with their sessions take a little less than 4 MiB, so two pages take all of the memory.
    for _ in 0..17 {
        let user = json!({"businessId": "b", "userId": "u", "ifActive": "replace"});
        let session = service.bearer(&key, Method::POST, "/api/sessions", user).await.expect(201);
        path = format!("/api/sessions/{}", session.string("sessionId"));
        let message = json!({"messageId": "m", "role": "user", "content": "x".repeat(246_000)});
        service.bearer(&key, Method::POST, &format!("{path}/messages"), message).await.expect(201);
    }
    let history = "/api/sessions/business/b/user/u/history";
    let (page, message) = (format!("{history}?include=lastMessage"), format!("{path}/messages/m"));
    let unread = join_all((0..2).map(|_| request_without_reading(&service, &page, &key))).await;
    let large = [page.clone(), format!("{page}&limit=2"), message.clone(), format!("{path}?include=lastMessage")];
    for path in &large {
        service.get_as(&key, path).await.expect_problem(503, "overloaded");
    }
    let body = json!({"metadata": {"a": 1}});
    service.bearer(&key, Method::PATCH, &message, body).await.expect_problem(503, "overloaded");
    for path in [path.as_str(), history] {
        service.get_as(&key, path).await.expect(200);
    }
    drop(unread);
    for path in &large {
        with_timeout(async { while service.get_as(&key, path).await.status != 200 {} }).await;
    }
}

/// How many bytes Redis has sent to all of its clients.
async fn bytes_sent(redis: &RedisServer) -> u64 {
    let info = redis.probe().await.text(&["INFO", "stats"]).await.expect("statistics");
    let line = info.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:")).expect("the output bytes");
    line.trim().parse().expect("a number")
}

#[tokio::test]
async fn conflicting_append_does_not_read_all_stored_contents() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &[]).await;
    let path = format!("/api/sessions/{}/messages", service.session_of("u").await);
    let id = |number: usize| format!("m{number}");
    for number in 0..100 {
        let message = json!({"messageId": id(number), "role": "user", "content": "x".repeat(CONTENT_BYTES)});
        service.post(&path, message).await.expect(201);
    }
    let messages = (0..100).map(|number| json!({"messageId": id(number), "role": "user", "content": 1}));
    let messages: Vec<_> = messages.collect();
    let before = bytes_sent(&redis).await;
    service.post(&path, json!(messages)).await.expect_problem(409, "message_id_conflict");
    let read = bytes_sent(&redis).await - before;
    assert!(read < 3_000_000, "{read} bytes were read for a conflict");
}

#[tokio::test]
async fn replay_of_large_messages_with_reordered_members_is_recognised() {
    let service = Service::start(&["--max-body-bytes", "4000000"]).await;
    let path = format!("/api/sessions/{}/messages", service.session_of("u").await);
    let long = "x".repeat(CONTENT_BYTES / 2);
    let body = |reversed: bool| {
        let messages = (0..20).map(|number| {
            let (one, other) = ("\"a\":1".to_owned(), format!("\"b\":\"{long}\""));
            let members = if reversed { [other, one] } else { [one, other] }.join(",");
            format!("{{\"messageId\":\"m{number}\",\"role\":\"user\",\"content\":{{{members}}}}}")
        });
        format!("[{}]", messages.collect::<Vec<_>>().join(",")).into_bytes()
    };
    let json_type = [("content-type", "application/json")];
    let first = service.send(Method::POST, &path, &json_type, body(false)).await.expect(201);
    let again = service.send(Method::POST, &path, &json_type, body(true)).await.expect(200);
    assert!(first.text == again.text, "the replay differs from the stored messages");
}
