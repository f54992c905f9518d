//! The metrics: a bounded number of series, exact counts, and visible faults of Redis.

mod agreement;
mod bounds;
mod faults;
mod streams;

use crate::support::process::Process;
use crate::support::redis::shared_url;
use crate::support::scrape::Scrape;

/// The metrics that exist before any event.
const FROM_THE_START: [&str; 38] = [
    "sessiond_credentials_rejected_total",
    "sessiond_build_info",
    "sessiond_event_loop_lag_seconds",
    "sessiond_hint_lookups_total",
    "sessiond_http_connections",
    "sessiond_http_connections_rejected_total",
    "sessiond_http_panics_total",
    "sessiond_http_requests_in_flight",
    "sessiond_http_requests_shed_total",
    "sessiond_log_lines_dropped_total",
    "sessiond_messages_appended_total",
    "sessiond_messages_trimmed_total",
    "sessiond_runtime_alive_tasks",
    "sessiond_runtime_busy_seconds_total",
    "sessiond_runtime_global_queue_depth",
    "sessiond_runtime_event_loops",
    "sessiond_sessions_created_total",
    "sessiond_sessions_deleted_total",
    "sessiond_sessions_ended_total",
    "sessiond_sessions_resumed_total",
    "sessiond_sessions_trimmed_total",
    "sessiond_store_clock_skew_seconds",
    "sessiond_store_operation_duration_seconds",
    "sessiond_store_operations_total",
    "sessiond_store_problems",
    "sessiond_store_reconnects_total",
    "sessiond_store_retries_total",
    "sessiond_store_up",
    "sessiond_stream_delivery_seconds",
    "sessiond_stream_events_total",
    "sessiond_stream_resets_total",
    "sessiond_streams",
    "sessiond_subscriber_connections",
    "sessiond_turns_ended_total",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
];
/// The metrics that exist only after their first event, because their labels depend on it.
const WITH_THE_FIRST_EVENT: [&str; 3] =
    ["sessiond_http_request_duration_seconds", "sessiond_http_requests_total", "sessiond_store_errors_total"];

/// Starts a service on the shared Redis.
fn serve(prefix: &str, flags: &[&str]) -> (Process, String) {
    let url = shared_url();
    let common =
        ["--key-prefix", &format!("sd:{prefix}"), "--request-deadline", "10s", "--log", "info,sessiond::http=error"];
    Process::serve(&[&common, flags].concat(), &[("REDIS_URL", &url)])
}

#[tokio::test]
async fn every_metric_is_described_from_the_start_or_from_its_first_event() {
    let (service, base) = serve("first-scrape", &[]);
    let first = Scrape::until(&service, |scrape| scrape.text.contains("event_loop_lag_seconds_count")).await;
    let described = |scrape: &Scrape, name: &str| {
        let help = format!("# HELP {name} ");
        let has_help = scrape.text.lines().any(|line| line.strip_prefix(&help).is_some_and(|text| text.len() > 10));
        let kind = if name.ends_with("_total") {
            "counter"
        } else if name.ends_with("duration_seconds")
            || name.ends_with("lag_seconds")
            || name.ends_with("delivery_seconds")
        {
            "histogram"
        } else {
            "gauge"
        };
        has_help && scrape.text.contains(&format!("# TYPE {name} {kind}\n"))
    };
    for name in FROM_THE_START {
        assert!(described(&first, name), "{name}:\n{}", first.text);
    }
    for name in WITH_THE_FIRST_EVENT {
        assert!(!first.text.contains(name), "{name}:\n{}", first.text);
    }
    let names: Vec<_> = first.text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for name in names.iter().filter(|name| name.starts_with("sessiond_")) {
        assert!(FROM_THE_START.contains(name), "{name} is not in FROM_THE_START");
    }
    assert_eq!(first.sum("sessiond_build_info", &[&format!("version=\"{}\"", env!("CARGO_PKG_VERSION"))]), 1);

    reqwest::get(format!("{base}/livez")).await.expect("a response");
    let second = Scrape::of(&service).await;
    for name in ["sessiond_http_request_duration_seconds", "sessiond_http_requests_total"] {
        assert!(described(&second, name), "{name}:\n{}", second.text);
    }
}
