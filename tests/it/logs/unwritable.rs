//! A stderr that cannot be written: the service still serves requests without delay, and SIGTERM ends it with status 0.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::process::Stdio;

use futures_util::future::join_all;
use reqwest::Client;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::process::{Process, with_timeout};
use crate::support::redis::shared_url;
use crate::support::redis_server::POLL;
use crate::support::sinks;
use crate::support::unlogged::Unlogged;

const DROPPED: &str = "sessiond_log_lines_dropped_total";
/// Requests of one caller between two scrapes of the metrics.
const REQUESTS: usize = 20;
const CALLERS: usize = 8;

async fn create(client: &Client, base: &str) -> u16 {
    let body = json!({"businessId": "b", "userId": "u"});
    let request = client.post(format!("{base}/api/sessions")).json(&body);
    request.send().await.expect("a response").status().as_u16()
}

/// Starts a service with the log level `trace`.
async fn serve(wrapper: &[&str], stderr: impl Into<Stdio>) -> Unlogged {
    let url = shared_url();
    // Debug builds are slow at that log level.
    let flags = ["--key-prefix", "sd:unwritable", "--log", "trace", "--request-deadline", "30s"];
    Unlogged::serve(wrapper, &flags, &[("REDIS_URL", &url)], stderr).await
}

async fn expect_responses(service: &Unlogged) {
    let client = Client::new();
    let callers = (0..CALLERS).map(async |_| {
        for _ in 0..REQUESTS {
            assert!(matches!(create(&client, &service.base).await, 200 | 201));
        }
    });
    with_timeout(join_all(callers)).await;
    let alive = with_timeout(client.get(format!("{}/livez", service.base)).send()).await.expect("a response");
    assert_eq!(alive.status().as_u16(), 200);
}

/// Calls a service until it has dropped log lines.
async fn drop_lines(service: &Unlogged) {
    while service.scrape().await.value(DROPPED) == 0 {
        expect_responses(service).await;
    }
}

async fn expect_clean_exit(mut service: Unlogged) {
    service.signal(Signal::TERM);
    assert_eq!(service.wait().await.code(), Some(0));
}

/// Checks a service whose writes to stderr fail: it serves requests and drops log lines.
async fn expect_service_with_dropped_lines(wrapper: &[&str], stderr: impl Into<Stdio>) {
    let service = serve(wrapper, stderr).await;
    expect_responses(&service).await;
    drop_lines(&service).await;
    expect_clean_exit(service).await;
}

/// Checks a service whose stderr blocks or is closed: it serves requests.
async fn expect_service(wrapper: &[&str], stderr: impl Into<Stdio>) {
    let service = serve(wrapper, stderr).await;
    expect_responses(&service).await;
    expect_clean_exit(service).await;
}

#[tokio::test]
async fn log_to_a_full_device_is_dropped() {
    expect_service_with_dropped_lines(&[], sinks::full()).await;
}

#[tokio::test]
async fn log_to_a_file_on_a_full_disk_is_dropped() {
    let on_small_disk = "mount -t tmpfs -o size=4k tmpfs /mnt && exec \"$0\" \"$@\" 2>/mnt/log";
    expect_service_with_dropped_lines(
        &["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", on_small_disk],
        Stdio::null(),
    )
    .await;
}

#[tokio::test]
async fn log_beyond_the_file_size_limit_is_dropped() {
    let file = tempfile::tempfile().expect("a file");
    expect_service_with_dropped_lines(&["sh", "-c", "ulimit -f 1; exec \"$0\" \"$@\""], file).await;
}

#[tokio::test]
async fn log_to_a_broken_pipe_is_dropped() {
    expect_service_with_dropped_lines(&[], sinks::broken_pipe()).await;
}

#[tokio::test]
async fn log_to_a_read_only_descriptor_is_dropped() {
    expect_service_with_dropped_lines(&[], sinks::read_only()).await;
}

#[tokio::test]
async fn closed_stderr_does_not_block_requests() {
    expect_service(&["sh", "-c", "exec \"$0\" \"$@\" 2>&-"], Stdio::null()).await;
}

#[tokio::test]
async fn unread_pipe_does_not_block_requests() {
    let (_reader, stderr) = sinks::stuck_pipe();
    expect_service(&[], stderr).await;
}

#[tokio::test]
async fn unread_non_blocking_pipe_does_not_block_requests() {
    let (_reader, stderr) = sinks::stuck_non_blocking_pipe();
    expect_service(&[], stderr).await;
}

#[tokio::test]
async fn unread_socket_does_not_block_requests() {
    let (_reader, stderr) = sinks::stuck_socket();
    expect_service(&[], stderr).await;
}

#[tokio::test]
async fn stopped_terminal_does_not_block_requests() {
    let (_other_side, stderr) = sinks::stuck_terminal();
    expect_service(&[], stderr).await;
}

#[tokio::test]
async fn log_that_resumes_reports_the_number_of_dropped_lines() {
    let (reader, stderr) = sinks::stuck_pipe();
    let mut service = serve(&[], stderr).await;
    drop_lines(&service).await;
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(reader).lines().map_while(Result::ok).filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_str::<Value>(&line).map_err(|_| line)).try_for_each(|line| sender.send(line))
    });
    let mut reported = 0;
    let mut count = |line: Result<Value, String>| {
        let line = line.unwrap_or_else(|line| panic!("incomplete line: {line}"));
        reported += line["dropped"].as_u64().unwrap_or_default();
        line
    };
    // A line that is logged now is written after all queued lines, unless it is dropped. So the test repeats SIGUSR1.
    let mut tick = tokio::time::interval(POLL);
    let mut is_drained = false;
    with_timeout(async {
        while !is_drained {
            tokio::select! {
                _ = tick.tick() => service.signal(Signal::USR1),
                line = lines.recv() => {
                    is_drained = count(line.expect("a line"))["message"].to_string().contains("SIGUSR1");
                }
            }
        }
    })
    .await;
    let dropped = service.scrape().await.value(DROPPED);
    service.signal(Signal::TERM);
    assert_eq!(service.wait().await.code(), Some(0));
    while let Some(line) = with_timeout(lines.recv()).await {
        count(line);
    }
    assert_eq!(reported, dropped);
}

#[tokio::test]
async fn full_disk_for_the_embedded_redis_log_does_not_affect_requests() {
    let folder = TempDir::new().expect("a folder");
    std::fs::write(folder.path().join("sessiond.lock"), "").expect("a data directory of the service");
    symlink("/dev/full", folder.path().join("redis.log")).expect("a link");
    let variables = [("SESSIOND_DATA_DIR", folder.path().to_str().expect("a path of text"))];
    let (mut service, base) = Process::serve(&[], &variables);
    let client = Client::new();
    assert_eq!(create(&client, &base).await, 201);
    // The service reads that log when its Redis ends.
    service.signal_children(Signal::KILL);
    service.wait_for_line("the embedded Redis ended");
    with_timeout(async { while create(&client, &base).await != 200 {} }).await;
    service.signal(Signal::TERM);
    assert_eq!(service.wait().code(), Some(0), "{:#?}", service.lines);
}
