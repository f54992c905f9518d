//! Whatever becomes of stderr: callers are served, nothing waits, and SIGTERM ends the service with 0.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::process::Stdio;

use futures_util::future::join_all;
use reqwest::Client;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::process::{Process, patiently};
use crate::support::redis::shared_url;
use crate::support::servers::POLL;
use crate::support::sinks;
use crate::support::unlogged::Unlogged;

const DROPPED: &str = "sessiond_log_lines_dropped_total";
/// Requests of one caller between two looks at the metrics.
const REQUESTS: usize = 20;
const CALLERS: usize = 8;

async fn create(client: &Client, base: &str) -> u16 {
    let body = json!({"businessId": "b", "userId": "u"});
    let request = client.post(format!("{base}/api/sessions")).json(&body);
    request.send().await.expect("an answer").status().as_u16()
}

/// A service that logs very much.
async fn serve(wrapper: &[&str], stderr: impl Into<Stdio>) -> Unlogged {
    let url = shared_url();
    // Debug builds take long to log that much.
    let flags = ["--key-prefix", "sd:unwritable", "--log", "trace", "--request-deadline", "30s"];
    Unlogged::serve(wrapper, &flags, &[("REDIS_URL", &url)], stderr).await
}

async fn expect_answers(service: &Unlogged) {
    let client = Client::new();
    let callers = (0..CALLERS).map(async |_| {
        for _ in 0..REQUESTS {
            assert!(matches!(create(&client, &service.base).await, 200 | 201));
        }
    });
    patiently(join_all(callers)).await;
    let alive = patiently(client.get(format!("{}/livez", service.base)).send()).await.expect("an answer");
    assert_eq!(alive.status().as_u16(), 200);
}

/// Calls a service until it has dropped lines of its log.
async fn drop_lines(service: &Unlogged) {
    while service.scrape().await.value(DROPPED) == 0 {
        expect_answers(service).await;
    }
}

async fn expect_to_stop(mut service: Unlogged) {
    service.signal(Signal::TERM);
    assert_eq!(service.wait().await.code(), Some(0));
}

/// Serves with a stderr that cannot be written.
async fn expect_service_without_log(wrapper: &[&str], stderr: impl Into<Stdio>) {
    let service = serve(wrapper, stderr).await;
    expect_answers(&service).await;
    drop_lines(&service).await;
    expect_to_stop(service).await;
}

/// Serves with a stderr that is stuck, or none.
async fn expect_service(wrapper: &[&str], stderr: impl Into<Stdio>) {
    let service = serve(wrapper, stderr).await;
    expect_answers(&service).await;
    expect_to_stop(service).await;
}

#[tokio::test]
async fn a_log_on_a_full_device_is_dropped() {
    expect_service_without_log(&[], sinks::full()).await;
}

#[tokio::test]
async fn a_log_in_a_file_on_a_full_disk_is_dropped() {
    let on_small_disk = "mount -t tmpfs -o size=4k tmpfs /mnt && exec \"$0\" \"$@\" 2>/mnt/log";
    expect_service_without_log(
        &["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", on_small_disk],
        Stdio::null(),
    )
    .await;
}

#[tokio::test]
async fn a_log_beyond_the_size_limit_of_files_is_dropped() {
    let file = tempfile::tempfile().expect("a file");
    expect_service_without_log(&["sh", "-c", "ulimit -f 1; exec \"$0\" \"$@\""], file).await;
}

#[tokio::test]
async fn a_log_whose_reader_ended_is_dropped() {
    expect_service_without_log(&[], sinks::broken_pipe()).await;
}

#[tokio::test]
async fn a_log_that_is_not_open_for_writing_is_dropped() {
    expect_service_without_log(&[], sinks::read_only()).await;
}

#[tokio::test]
async fn a_closed_stderr_is_no_log() {
    expect_service(&["sh", "-c", "exec \"$0\" \"$@\" 2>&-"], Stdio::null()).await;
}

#[tokio::test]
async fn a_pipe_that_nobody_reads_holds_up_nobody() {
    let (_reader, stderr) = sinks::stuck_pipe();
    expect_service(&[], stderr).await;
}

#[tokio::test]
async fn a_non_blocking_pipe_that_nobody_reads_holds_up_nobody() {
    let (_reader, stderr) = sinks::stuck_non_blocking_pipe();
    expect_service(&[], stderr).await;
}

#[tokio::test]
async fn a_socket_that_nobody_reads_holds_up_nobody() {
    let (_reader, stderr) = sinks::stuck_socket();
    expect_service(&[], stderr).await;
}

#[tokio::test]
async fn a_stopped_terminal_holds_up_nobody() {
    let (_other_side, stderr) = sinks::stuck_terminal();
    expect_service(&[], stderr).await;
}

#[tokio::test]
async fn a_log_that_is_read_again_says_how_many_lines_are_missing() {
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
        let line = line.unwrap_or_else(|line| panic!("half a line: {line}"));
        reported += line["dropped"].as_u64().unwrap_or_default();
        line
    };
    // A line that is logged now comes after all that waits, unless it is dropped, too.
    let mut tick = tokio::time::interval(POLL);
    let mut is_drained = false;
    patiently(async {
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
    while let Some(line) = patiently(lines.recv()).await {
        count(line);
    }
    assert_eq!(reported, dropped);
}

#[tokio::test]
async fn a_full_disk_for_the_log_of_the_private_redis_changes_nothing() {
    let folder = TempDir::new().expect("a folder");
    std::fs::write(folder.path().join("sessiond.lock"), "").expect("a folder of the service's");
    symlink("/dev/full", folder.path().join("redis.log")).expect("a link");
    let variables = [("SESSIOND_DATA_DIR", folder.path().to_str().expect("a path of text"))];
    let (mut service, base) = Process::serve(&[], &variables);
    let client = Client::new();
    assert_eq!(create(&client, &base).await, 201);
    // The service quotes that log when its Redis ends.
    service.signal_children(Signal::KILL);
    service.wait_for_line("the private Redis ended");
    patiently(async { while create(&client, &base).await != 200 {} }).await;
    service.signal(Signal::TERM);
    assert_eq!(service.wait().code(), Some(0), "{:#?}", service.lines);
}
