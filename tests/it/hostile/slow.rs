//! Clients that take their time. They send something again and again, so it is not that nothing comes.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::process::patiently;
use crate::support::raw;

use super::{Target, to_end};

/// Between two bytes; the service waits for five of these.
const DRIP: Duration = Duration::from_millis(100);
const BODY: &str = "POST /api/sessions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";

/// Sends `at_once`, then `slowly` byte by byte, and returns what comes until the service closes the connection.
async fn drip(target: &Target, at_once: &str, slowly: &str) -> Vec<u8> {
    let (mut reading, mut writing) = target.connect().await.into_split();
    writing.write_all(at_once.as_bytes()).await.expect("a quick start");
    let drops = async {
        for byte in slowly.as_bytes() {
            tokio::time::sleep(DRIP).await;
            if writing.write_all(&[*byte]).await.is_err() {
                // It is closed.
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    patiently(async {
        tokio::select! { received = to_end(&mut reading) => received, () = drops => Vec::new() }
    })
    .await
}

#[tokio::test]
async fn a_byte_now_and_then_is_cut_off_in_time() {
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
        let answers = raw::answers(&drip(&target, at_once, slowly).await);
        let seen: Vec<_> = answers.iter().map(|answer| answer.status.as_u16()).collect();
        assert_eq!(seen, statuses, "{name}: {answers:?}");
    });
    futures_util::future::join_all(dripped).await;
    assert!(target.look.keys().await.is_empty());
}

#[tokio::test]
async fn a_client_that_takes_no_answer_is_cut_off_in_time() {
    let target = Target::start("deaf", &[]).await;
    let mut deaf = target.connect().await;
    let request = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    // Asks on and on, and takes nothing: once all buffers between are full, the service cannot go on.
    let asked = async { while deaf.write_all(request.as_bytes()).await.is_ok() {} };
    patiently(asked).await;
    let mut rest = Vec::new();
    // What was in the buffers, perhaps; then the end.
    let _ = patiently(deaf.read_to_end(&mut rest)).await;
}
