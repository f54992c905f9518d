//! The log: an access line for each response if enabled, few lines in an outage, and no user data. Requests are served
//! even if the log cannot be written.

mod canary;
mod unwritable;

use futures_util::future::join_all;
use reqwest::{Client, Method};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::process::{Process, with_timeout};
use crate::support::redis::shared_url;
use crate::support::redis_server::{IN_MEMORY, RedisServer};
use crate::support::scrape::Scrape;

const CALLERS: usize = 1_000;
const REQUESTS: usize = 20_000;
/// The limit for all log lines of the outage test.
const LINES_MAX: usize = 500;

fn parsed(service: &Process) -> Vec<Value> {
    let parse = |line: &String| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    service.lines.iter().map(parse).collect()
}

#[tokio::test]
async fn access_log_has_one_line_per_response_if_enabled() {
    let url = shared_url();
    for (filter, enabled) in [("info,sessiond::access=debug", true), ("info,fred=error", false)] {
        let (mut service, base) =
            Process::serve(&["--key-prefix", "sd:access", "--log", filter], &[("REDIS_URL", &url)]);
        let client = Client::new();
        let send = async |method: &str, path: &str, id: &str| {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            let request = client.request(method, format!("{base}{path}")).header("x-request-id", id);
            request.send().await.expect("a response")
        };
        send("GET", "/livez", "first").await;
        send("GET", "/api/sessions/business/b/active", "second").await;
        send("BREW", "/api/sessions/business/b/active", "third").await;
        send("GET", "/nowhere", "fourth").await;
        service.signal(Signal::TERM);
        service.wait();
        let lines = parsed(&service);
        let mut lines: Vec<_> = lines.iter().filter(|line| line["target"] == "sessiond::access").collect();
        lines.sort_by_key(|line| line["request_id"].to_string());
        if !enabled {
            assert!(lines.is_empty(), "{lines:#?}");
            continue;
        }
        let expected = [
            ("first", "GET", "/livez", 200),
            ("fourth", "GET", "unmatched", 404),
            ("second", "GET", "/api/sessions/business/{businessId}/active", 200),
            ("third", "other", "/api/sessions/business/{businessId}/active", 405),
        ];
        assert_eq!(lines.len(), expected.len(), "{lines:#?}");
        for (line, (id, method, route, status)) in lines.iter().zip(expected) {
            let fields = json!([line["request_id"], line["method"], line["route"], line["status"], line["level"]]);
            assert_eq!(fields, json!([id, method, route, status, "DEBUG"]));
            assert!(line["duration_us"].is_u64(), "{line}");
        }
    }
}

#[tokio::test]
async fn outage_logs_few_lines_and_counts_the_suppressed_ones() {
    let mut redis = RedisServer::start(IN_MEMORY);
    // Every caller gets a permit, so all requests wait for Redis.
    let flags = ["--request-deadline", "300ms", "--max-concurrent-requests", "1000"];
    let (mut service, base) = Process::serve(&flags, &[("REDIS_URL", &redis.url())]);
    let client = Client::new();
    let create = async || {
        let body = json!({"businessId": "b", "userId": "u"});
        let request = client.post(format!("{base}/api/sessions")).json(&body);
        request.send().await.expect("a response").status().as_u16()
    };
    with_timeout(async { while create().await == 503 {} }).await;
    let before = Scrape::of(&service).await;
    let fail = async || {
        let callers = (0..CALLERS).map(async |_| {
            for _ in 0..REQUESTS / CALLERS / 2 {
                assert_eq!(create().await, 503);
            }
        });
        with_timeout(join_all(callers)).await;
    };
    redis.signal(Signal::STOP);
    fail().await;
    redis.kill();
    fail().await;
    let failed = "sessiond_http_requests_total{method=\"POST\",route=\"/api/sessions\",status=\"503\"}";
    let failed_before = before.find(failed).unwrap_or_default();
    let failures = Scrape::of(&service).await.value(failed);
    assert_eq!(usize::try_from(failures - failed_before).expect("few"), REQUESTS);
    service.signal(Signal::TERM);
    service.wait();

    let lines = parsed(&service);
    let first: Vec<_> = lines.iter().skip(LINES_MAX).take(3).collect();
    assert!(lines.len() < LINES_MAX, "{} lines, such as {first:#?}", lines.len());
    let logged: Vec<_> = lines.iter().filter(|line| line["message"] == "could not serve").collect();
    assert!(logged.len() >= 10, "{lines:#?}");
    for line in &logged {
        let fields = json!([line["level"], line["method"], line["route"], line["status"], line["code"]]);
        assert_eq!(fields, json!(["WARN", "POST", "/api/sessions", 503, "store_unavailable"]), "{line}");
        assert!(line["request_id"].is_string() && line["duration_us"].is_u64() && line["cause"].is_string(), "{line}");
    }
    let suppressed = lines.iter().filter(|line| line["kind"] == "store_unavailable");
    let suppressed: u64 = suppressed.map(|line| line["suppressed"].as_u64().expect("a number")).sum();
    // Each failure is either logged or counted, including those from before the service was connected.
    assert_eq!(u64::try_from(logged.len()).expect("few") + suppressed, failures);
}
