//! Slow clients. They keep sending bytes, so an idle timeout alone would not stop them.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::process::with_timeout;
use crate::support::raw;

use super::{Target, to_end};

/// The pause between two bytes. The receive timeout is five times as long.
const DRIP: Duration = Duration::from_millis(100);
const BODY: &str = "POST /api/sessions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";

/// Sends `at_once`, then `slowly` byte by byte. Returns what the service sends until it closes the connection.
async fn drip(target: &Target, at_once: &str, slowly: &str) -> Vec<u8> {
    let (mut reading, mut writing) = target.connect().await.into_split();
    writing.write_all(at_once.as_bytes()).await.expect("the first bytes are sent");
    let drops = async {
        for byte in slowly.as_bytes() {
            tokio::time::sleep(DRIP).await;
            if writing.write_all(&[*byte]).await.is_err() {
                // The service has closed the connection.
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    with_timeout(async {
        tokio::select! { received = to_end(&mut reading) => received, () = drops => Vec::new() }
    })
    .await
}

#[tokio::test]
async fn slow_requests_end_at_the_receive_timeout() {
    let target = Target::start("slow", &[]).await;
    let long_header = format!("GET /livez HTTP/1.1\r\nhost: x\r\na: {}", "a".repeat(1000));
    let (start, rest) = long_header.split_at("GET /livez HTTP".len());
    let second = format!("GET /livez HTTP/1.1\r\nhost: x\r\n\r\n{start}");
    let body = "{\"businessId\":\"b\",\"userId\":\"u\"}".repeat(100);
    let declared = format!("{BODY}content-length: {}\r\n\r\n", body.len());
    let chunked = format!("{BODY}transfer-encoding: chunked\r\n\r\n");
    let chunks = "1\r\n{\r\n".repeat(1000);
    let cases: [(&str, &str, &str, &[u16]); 6] = [
        ("head", "", &long_header, &[]),
        ("header", "GET /livez HTTP/1.1\r\nhost: x\r\n", &long_header, &[]),
        ("empty lines", "", &"\r\n".repeat(1000), &[]),
        ("second head", &second, rest, &[200]),
        ("body", &declared, &body, &[408]),
        ("chunks", &chunked, &chunks, &[408]),
    ];
    let dripped = cases.map(async |(name, at_once, slowly, statuses)| {
        let responses = raw::answers(&drip(&target, at_once, slowly).await);
        let seen: Vec<_> = responses.iter().map(|response| response.status.as_u16()).collect();
        assert_eq!(seen, statuses, "{name}: {responses:?}");
    });
    futures_util::future::join_all(dripped).await;
    assert!(target.probe.keys().await.is_empty());
}

#[tokio::test]
async fn connections_of_clients_that_do_not_read_are_closed() {
    let target = Target::start("deaf", &[]).await;
    let mut stream = target.connect().await;
    let request = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    // Sends requests without reading: once all buffers are full, the service cannot write its responses.
    let send_until_closed = async { while stream.write_all(request.as_bytes()).await.is_ok() {} };
    with_timeout(send_until_closed).await;
    let mut rest = Vec::new();
    // Reads buffered bytes, if any, to the end of the connection.
    let _ = with_timeout(stream.read_to_end(&mut rest)).await;
}
