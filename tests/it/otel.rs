//! OpenTelemetry spans, as a collector receives them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

use reqwest::Client;
use rustix::process::Signal;
use serde_json::json;

use crate::support::process::{Process, TEST_TIMEOUT};
use crate::support::redis::shared_url;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const UNSAMPLED_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "00f067aa0ba902b7";

/// The parts of a span that the tests check.
#[derive(Clone, Debug, Default, PartialEq)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    /// `name=value`, sorted.
    attributes: Vec<String>,
}

/// Starts a collector. Returns its URL, and the bodies that are posted to `/v1/traces`.
fn collector() -> (String, Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (sender, bodies) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut stream = stream.expect("a connection");
                while let Some(body) = read_post(&mut stream) {
                    let ok = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
                    stream.write_all(ok.as_bytes()).expect("the response is sent");
                    // Fails if the test has ended.
                    let _ = sender.send(body);
                }
            });
        }
    });
    (url, bodies)
}

/// Reads the body of the next request of a connection. `None` at the end of the connection.
fn read_post(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let (mut received, mut part) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received[..end]).to_lowercase();
            assert!(head.starts_with("post /v1/traces http/1.1"), "{head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
            let whole = end + 4 + length.parse::<usize>().expect("a number");
            if received.len() >= whole {
                return Some(received[end + 4..whole].to_vec());
            }
        }
        match stream.read(&mut part) {
            Ok(length) if length > 0 => received.extend_from_slice(&part[..length]),
            _ => return None,
        }
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let (byte, rest) = bytes.split_first().expect("more bytes");
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return value;
        }
    }
}

/// The fields of a protobuf message: number and bytes. A varint has its 8 bytes in little-endian order.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                fields.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)).expect("a length"),
            5 => 4,
            other => panic!("no wire type {other}"),
        };
        let (field, rest) = bytes.split_at(length);
        bytes = rest;
        fields.push((key >> 3, field.to_vec()));
    }
    fields
}

fn all(message: &[u8], number: u64) -> Vec<Vec<u8>> {
    fields(message).into_iter().filter(|(field, _)| *field == number).map(|(_, value)| value).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// An attribute as `name=value`. The value is a string or an integer.
fn attribute(message: &[u8]) -> String {
    let name = String::from_utf8(all(message, 1).concat()).expect("a name");
    let value = &fields(&all(message, 2).concat())[0];
    let text = match value {
        (1, text) => String::from_utf8(text.clone()).expect("text"),
        (_, number) => u64::from_le_bytes(number.as_slice().try_into().expect("a number")).to_string(),
    };
    format!("{name}={text}")
}

/// The spans of an `ExportTraceServiceRequest`, and the attributes of its resource.
fn spans(body: &[u8]) -> (Vec<Span>, Vec<String>) {
    let (mut spans, mut resource) = (Vec::new(), Vec::new());
    for of_resource in all(body, 1) {
        resource.extend(all(&all(&of_resource, 1).concat(), 1).iter().map(|message| attribute(message)));
        for span in all(&of_resource, 2).iter().flat_map(|scope| all(scope, 2)) {
            let mut attributes: Vec<_> = all(&span, 9).iter().map(|message| attribute(message)).collect();
            attributes.sort();
            let [trace, id, parent] = [1, 2, 4].map(|number| hex(&all(&span, number).concat()));
            let name = String::from_utf8(all(&span, 5).concat()).expect("a name");
            spans.push(Span { trace, id, parent, name, attributes });
        }
    }
    (spans, resource)
}

#[tokio::test]
async fn spans_of_a_request_and_its_operation_join_the_callers_trace() {
    let (collector, bodies) = collector();
    let url = shared_url();
    let variables = [("REDIS_URL", url.as_str()), ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector)];
    let (mut service, base) = Process::serve(&["--key-prefix", "sd:otel", "--request-deadline", "10s"], &variables);
    let create = async |trace: &str, flags: &str| {
        let body = json!({"businessId": "canary-b", "userId": "canary-u", "metadata": {"a": "canary-m"}});
        let request = Client::new().post(format!("{base}/api/sessions?canary")).json(&body);
        let request = request.header("traceparent", format!("00-{trace}-{CALLER}-{flags}"));
        request.header("x-request-id", "the-id").send().await.expect("a response")
    };
    assert!(create(UNSAMPLED_TRACE, "00").await.status().is_success());
    assert_eq!(create(TRACE, "01").await.status().as_u16(), 200);
    let active = format!("{base}/api/sessions/business/canary-b/user/canary-nobody/active");
    let unknown = reqwest::get(active).await.expect("a response");
    assert_eq!(unknown.status().as_u16(), 404);
    // The service sends the last spans before it exits.
    service.signal(Signal::TERM);
    assert_eq!(service.wait().code(), Some(0), "{:#?}", service.lines);
    let mut collected = Vec::new();
    while collected.len() < 4 {
        let body = bodies.recv_timeout(TEST_TIMEOUT).expect("spans");
        assert!(!String::from_utf8_lossy(&body).contains("canary"), "{}", String::from_utf8_lossy(&body));
        let (spans, resource) = spans(&body);
        assert!(resource.contains(&"service.name=sessiond".to_owned()), "{resource:?}");
        collected.extend(spans);
    }
    let named = |name: &str| {
        let found: Vec<_> = collected.iter().filter(|span| span.name == name).collect();
        assert_eq!(found.len(), 1, "{name} in {collected:#?}");
        found[0].clone()
    };
    let (request, operation) = (named("POST /api/sessions"), named("get_or_create"));
    assert_eq!((request.trace.as_str(), request.parent.as_str()), (TRACE, CALLER));
    let expected = [
        "http.request.method=POST",
        "http.response.status_code=200",
        "http.route=/api/sessions",
        "sessiond.request_id=the-id",
    ];
    assert_eq!(request.attributes, expected);
    assert_eq!((operation.trace.as_str(), &operation.parent), (TRACE, &request.id));
    assert_eq!(operation.attributes, ["db.operation.name=get_or_create", "db.system.name=redis"]);
    // A request without `traceparent` starts a trace.
    let other = named("GET /api/sessions/business/{businessId}/user/{userId}/active");
    assert_eq!((other.parent.as_str(), named("get_active").parent), ("", other.id));
    assert_eq!(collected.len(), 4, "{collected:#?}");
}

#[tokio::test]
async fn unreachable_collector_is_logged_and_requests_are_served() {
    let url = shared_url();
    let flags = ["--key-prefix", "sd:otel-away", "--request-deadline", "10s", "--otlp-endpoint", "http://127.0.0.1:1"];
    let (mut service, base) = Process::serve(&flags, &[("REDIS_URL", &url)]);
    let response = reqwest::get(format!("{base}/api/sessions/business/b/active")).await.expect("a response");
    assert_eq!(response.status().as_u16(), 200);
    service.signal(Signal::TERM);
    assert_eq!(service.wait().code(), Some(0), "{:#?}", service.lines);
    assert!(service.lines.iter().any(|line| line.contains("spans were not sent")), "{:#?}", service.lines);
}

#[test]
fn rejects_unsupported_collector_urls() {
    for bad in ["localhost:4318", "https://collector.example.com", "http://x/?a=b", "grpc://x"] {
        let mut process = Process::start(&["--otlp-endpoint", bad, "check-config"], &[]);
        assert_eq!(process.wait().code(), Some(2));
        assert!(process.lines.join("\n").contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{:#?}", process.lines);
    }
}
