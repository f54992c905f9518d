//! The program: its settings, exit statuses and signals, and its behaviour without a working Redis.

mod output;
mod signals;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::acl;
use crate::support::process::{self, Process, with_timeout};
use crate::support::redis::{RedisProbe, embedded, shared, shared_url};
use crate::support::redis_server::{AOF, IN_MEMORY, RedisServer};

/// Runs the program to its end. Returns its exit status and what it wrote to stderr.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, Vec<String>) {
    let mut process = Process::start(arguments, variables);
    (process.wait().code(), process.lines.clone())
}

#[test]
fn all_invalid_settings_are_reported_together() {
    let variables = [
        ("SESSIOND_IDLE_TIMEOUT", "soon"),
        ("SESSIOND_MAX_BODY_BYTES", "-1"),
        ("REDIS_URL", "http://user:hunter2@example.com"),
        ("SESSIOND_KEY_PREFIX", "a{b}"),
        ("SESSIOND_DEFAULT_LOCATION_ID", "a\tb"),
        ("SESSIOND_DEFAULT_SESSION_TYPE", ".."),
        // An empty variable counts as not set.
        ("SESSIOND_MESSAGES_KEPT", ""),
    ];
    let arguments = ["--listen", "nowhere", "--retention", "-1", "--log", "=x=", "check-config"];
    let (status, lines) = run(&arguments, &variables);
    assert_eq!(status, Some(2), "{lines:#?}");
    let names = [
        "SESSIOND_LISTEN",
        "REDIS_URL",
        "SESSIOND_KEY_PREFIX",
        "SESSIOND_IDLE_TIMEOUT",
        "SESSIOND_RETENTION",
        "SESSIOND_DEFAULT_LOCATION_ID",
        "SESSIOND_DEFAULT_SESSION_TYPE",
        "SESSIOND_MAX_BODY_BYTES",
        "SESSIOND_LOG",
    ];
    for name in names {
        assert_eq!(lines.iter().filter(|line| line.contains(name)).count(), 1, "{name}: {lines:#?}");
    }
    assert_eq!(lines.len(), names.len(), "{lines:#?}");
    assert!(!lines.join("\n").contains("hunter2"), "a password is in the output: {lines:#?}");
}

#[test]
fn rejects_an_activity_resolution_that_would_expire_active_users() {
    let (status, lines) = run(&["--idle-timeout", "2s", "--activity-resolution", "1h", "check-config"], &[]);
    assert_eq!(status, Some(2));
    assert!(lines.join("\n").contains("at most half of the idle timeout"), "{lines:#?}");
}

#[test]
fn rejects_a_clock_skew_that_would_expire_active_users() {
    let rejected: [&[&str]; 3] = [
        &["--max-clock-skew", "8m"],
        &["--max-clock-skew", "16s", "--max-lifetime", "1m"],
        &["--max-clock-skew", "16s", "--retention", "1m"],
    ];
    for flags in rejected {
        let (status, lines) = run(&[flags, &["check-config"]].concat(), &[]);
        assert_eq!((status, lines.len()), (Some(2), 1), "{flags:?}: {lines:#?}");
        assert!(lines[0].contains("SESSIOND_MAX_CLOCK_SKEW"), "{flags:?}: {lines:#?}");
    }
    let accepted: [(&[&str], &str); 6] = [
        (&[], "Some(\n            30s,\n        )"),
        (&["--idle-timeout", "1m"], "Some(\n            15s,\n        )"),
        (&["--max-clock-skew", "15s", "--retention", "1m"], "Some(\n            15s,\n        )"),
        (&["--max-clock-skew", "0", "--retention", "1ms"], "None"),
        (&["--max-clock-skew", "0s"], "None"),
        (&["--retention", "1h"], "Some(\n            30s,\n        )"),
    ];
    for (flags, skew) in accepted {
        let output = process::run(&[flags, &["check-config"]].concat(), &[]);
        let shown = String::from_utf8(output.stdout).expect("text");
        assert!(shown.contains(&format!("clock_skew_max: {skew}")), "{flags:?}: {shown}");
    }
}

#[test]
fn rejects_origins_headers_and_networks_that_can_never_match() {
    let origins = [
        "*",
        "null",
        "chat.example.com",
        "https://chat.example.com/",
        "https://chat.example.com/path",
        "https://Chat.example.com",
        "https://chat.example.com:443",
        "http://chat.example.com:80",
        "https://user@chat.example.com",
        "https://good.example.com,https://",
    ];
    let networks = ["localhost", "10.0.0.0/33", "10.0.0", "10.0.0.1;10.0.0.2"];
    let headers = ["*", "X Tenant", "X-Tenant: a", "X-Tenant;a", "X-T\u{e9}nant", "X-Tenant,(a)"];
    let flags = [
        ("--cors-origins", origins.as_slice()),
        ("--cors-headers", headers.as_slice()),
        ("--trusted-proxies", networks.as_slice()),
    ];
    for (flag, texts) in flags {
        for text in texts {
            let (status, lines) = run(&[flag, text, "check-config"], &[]);
            assert_eq!((status, lines.len()), (Some(2), 1), "{text}: {lines:#?}");
            assert!(lines[0].contains(flag), "{text}: {lines:#?}");
        }
    }
    let good = [
        "--cors-origins",
        "https://a.b, http://localhost:5173,app://x",
        "--cors-headers",
        "X-Tenant, x_y.z,newrelic",
        "--trusted-proxies",
        "10.0.0.0/8, fd00::/8,::1",
    ];
    assert_eq!(run(&[good.as_slice(), &["check-config"]].concat(), &[]), (Some(0), Vec::new()));
}

#[test]
fn the_configuration_page_lists_every_setting_with_its_variable_and_default() {
    use clap::CommandFactory;
    let page = include_str!("../../docs/configuration.md");
    let command = sessiond::config::Cli::command();
    // Only builds with the feature `otel` have this setting. The section on traces documents it.
    let is_setting = |argument: &&clap::Arg| argument.get_env().is_some() && argument.get_id() != "otlp_endpoint";
    let settings: Vec<_> = command.get_arguments().filter(is_setting).collect();
    assert!(settings.len() > 15);
    for setting in settings {
        let flag = setting.get_long().expect("a flag");
        let variable = setting.get_env().and_then(|name| name.to_str()).expect("a variable");
        let row = format!("| `--{flag}` | `{variable}` | ");
        let row = page.lines().find(|line| line.starts_with(&row)).unwrap_or_else(|| panic!("no row {row}"));
        for default in setting.get_default_values() {
            assert!(row.contains(&format!("`{}`", default.display())), "{row}: the default is {default:?}");
        }
    }
    let rows = page.lines().filter(|line| line.starts_with("| `--")).count();
    assert_eq!(rows, command.get_arguments().filter(is_setting).count());
}

#[test]
fn the_configuration_page_lists_every_command() {
    use clap::CommandFactory;
    let page = include_str!("../../docs/configuration.md");
    for command in sessiond::config::Cli::command().get_subcommands() {
        let row = format!("| `{}", command.get_name());
        assert!(page.lines().any(|line| line.starts_with(&row)), "no row {row}");
    }
}

#[test]
fn manual_pages_and_completions_name_every_setting_and_command() {
    use clap::CommandFactory;
    let folder = TempDir::new().expect("a folder");
    let directory = folder.path().to_str().expect("text");
    assert_eq!(run(&["man", directory], &[("REDIS_URL", "redis://:hunter2@x")]), (Some(0), Vec::new()));
    let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_else(|_| panic!("no {name}"));
    let pages = page("sessiond.1");
    assert!(!pages.contains("hunter2"));
    let shells = ["bash", "elvish", "fish", "powershell", "zsh"].map(|shell| {
        let output = process::run(&["completions", shell], &[("REDIS_URL", "redis://:hunter2@x")]);
        String::from_utf8(output.stdout).expect("text")
    });
    let command = sessiond::config::Cli::command();
    for setting in command.get_arguments().filter_map(clap::Arg::get_long) {
        // roff escapes hyphens.
        let escaped = format!("\\-\\-{}", setting.replace('-', "\\-"));
        assert!(pages.contains(&escaped), "sessiond.1 has no {escaped}");
        for script in &shells {
            assert!(script.contains(setting) && !script.contains("hunter2"), "{setting} in {script}");
        }
    }
    for name in command.get_subcommands().map(clap::Command::get_name) {
        assert!(page(&format!("sessiond-{name}.1")).contains("sessiond"), "{name}");
        assert!(shells.iter().all(|script| script.contains(name)), "{name}");
    }
    let (status, lines) = run(&["man", "/dev/null"], &[]);
    assert_eq!(status, Some(2));
    assert!(lines.join("\n").contains("cannot write the manual pages to /dev/null"), "{lines:#?}");
}

#[test]
fn check_config_shows_the_settings_and_no_password() {
    let program = env!("CARGO_BIN_EXE_sessiond");
    let output = std::process::Command::new(program)
        .args(["check-config", "--idle-timeout", "90s"])
        .env("REDIS_URL", "redis://default:hunter2@redis.internal:6379/1")
        .output()
        .expect("the program");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("90s") && text.contains("redis.internal:6379"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    let help = std::process::Command::new(program).arg("--help").env("REDIS_URL", "redis://:hunter2@x").output();
    let help = String::from_utf8_lossy(&help.expect("the program").stdout).into_owned();
    assert!(
        help.contains("REDIS_URL") && help.contains("SESSIOND_IDLE_TIMEOUT") && !help.contains("hunter2"),
        "{help}"
    );
}

#[test]
fn healthcheck_reports_whether_the_service_is_ready() {
    let url = shared_url();
    let (_service, base) = Process::serve(&["--key-prefix", "sd:healthcheck"], &[("REDIS_URL", &url)]);
    let address = base.trim_start_matches("http://");
    assert_eq!(run(&["healthcheck", "--listen", address], &[("REDIS_URL", &url)]).0, Some(0));
    let (status, lines) = run(&["healthcheck", "--listen", "127.0.0.1:1"], &[("REDIS_URL", &url)]);
    assert_eq!(status, Some(1));
    assert!(lines.join("\n").contains("no response from 127.0.0.1:1"), "{lines:#?}");
}

#[test]
fn a_port_in_use_is_reported() {
    let url = shared_url();
    let (_service, base) = Process::serve(&["--key-prefix", "sd:taken"], &[("REDIS_URL", &url)]);
    let address = base.trim_start_matches("http://");
    let (status, lines) = run(&["--listen", address], &[("REDIS_URL", &url)]);
    assert_eq!(status, Some(1));
    assert!(lines.join("\n").contains(&format!("cannot listen on {address}")), "{lines:#?}");
}

#[tokio::test]
async fn rejects_a_redis_with_another_layout() {
    let url = shared_url();
    let probe = RedisProbe::at(&shared(), "sd:foreign").await;
    probe.command(&["SET", "sd:foreign:layout", "0"]).await;
    let (status, lines) = run(&["--listen", "127.0.0.1:0", "--key-prefix", "sd:foreign"], &[("REDIS_URL", &url)]);
    assert_eq!(status, Some(1));
    assert!(lines.join("\n").contains("another layout version"), "{lines:#?}");
}

#[tokio::test]
async fn without_redis_the_service_is_live_but_not_ready_and_recovers() {
    let mut redis = RedisServer::start(IN_MEMORY);
    redis.kill();
    let (_service, base) = Process::serve(&[], &[("REDIS_URL", &redis.url())]);
    let status = |path: &str| {
        let url = format!("{base}{path}");
        async move { reqwest::get(url).await.expect("a response").status().as_u16() }
    };
    assert_eq!(status("/livez").await, 200);
    let not_ready = reqwest::get(format!("{base}/readyz")).await.expect("a response");
    assert_eq!(not_ready.status().as_u16(), 503);
    assert!(not_ready.headers().contains_key("retry-after"));
    let problem: Value = not_ready.json().await.expect("JSON");
    assert_eq!(problem["code"], "store_unavailable");
    redis.start_again();
    with_timeout(async { while status("/readyz").await != 200 {} }).await;
    assert_eq!(status("/api/sessions/business/b/active").await, 200);
}

#[tokio::test]
async fn a_hanging_redis_causes_503_within_the_deadline_until_it_recovers() {
    let folder = TempDir::new().expect("a folder");
    let redis = embedded(folder.path());
    let url = acl::url(&redis.socket());
    let (_service, base) = Process::serve(&["--request-deadline", "300ms"], &[("REDIS_URL", &url)]);
    let post = || async {
        let body = json!({"businessId": "b", "userId": "u"});
        let request = reqwest::Client::new().post(format!("{base}/api/sessions")).json(&body);
        request.send().await.expect("a response")
    };
    assert_eq!(post().await.status().as_u16(), 201);
    let pid = redis.process_id().and_then(rustix::process::Pid::from_raw).expect("a running Redis");
    rustix::process::kill_process(pid, Signal::STOP).expect("a running Redis");
    let response = post().await;
    assert_eq!(response.status().as_u16(), 503);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(response.json::<Value>().await.expect("JSON")["code"], "store_unavailable");
    assert_eq!(reqwest::get(format!("{base}/livez")).await.expect("a response").status().as_u16(), 200);
    rustix::process::kill_process(pid, Signal::CONT).expect("a running Redis");
    with_timeout(async { while post().await.status().as_u16() != 200 {} }).await;
}

#[tokio::test]
async fn rejects_a_redis_with_another_layout_that_starts_later() {
    let mut redis = RedisServer::start(AOF);
    redis.probe().await.command(&["SET", "sd:layout", "99"]).await;
    redis.kill();
    let (mut service, base) = Process::serve(&[], &[("REDIS_URL", &redis.url())]);
    assert_eq!(reqwest::get(format!("{base}/readyz")).await.expect("a response").status().as_u16(), 503);
    redis.start_again();
    assert_eq!(service.wait().code(), Some(1));
    assert!(service.lines.join("\n").contains("another layout version"), "{:#?}", service.lines);
    let probe = redis.probe().await;
    assert_eq!(probe.texts(&["KEYS", "*"]).await, ["sd:layout"], "the service wrote into another layout");
}

#[tokio::test]
async fn a_wrong_password_is_logged() {
    let folder = TempDir::new().expect("a folder");
    let redis = embedded(folder.path());
    let probe = RedisProbe::at(&redis.socket(), "sd").await;
    probe.command(&["CONFIG", "SET", "requirepass", "correct-horse"]).await;
    let url = format!("redis+unix://default:hunter2@localhost{}", redis.socket().display());
    let (mut service, base) = Process::serve(&[], &[("REDIS_URL", &url)]);
    service.wait_for_line("WRONGPASS");
    assert_eq!(reqwest::get(format!("{base}/readyz")).await.expect("a response").status().as_u16(), 503);
    assert!(!service.lines.join("\n").contains("hunter2"), "{:#?}", service.lines);
}

#[tokio::test]
async fn a_signal_while_waiting_for_redis_stops_the_service_cleanly() {
    let (mut service, _) = Process::serve(&[], &[("REDIS_URL", "redis://127.0.0.1:1")]);
    service.signal(Signal::TERM);
    assert_eq!(service.wait().code(), Some(0), "{:#?}", service.lines);
}

#[tokio::test]
async fn slow_clients_are_disconnected_and_idle_ones_are_not() {
    let url = shared_url();
    let flags = ["--key-prefix", "sd:timeout", "--receive-timeout", "200ms", "--keep-alive-timeout", "60s"];
    let (_service, base) = Process::serve(&flags, &[("REDIS_URL", &url)]);
    let connect = || async { TcpStream::connect(base.trim_start_matches("http://")).await.expect("a connection") };
    let ask = async |stream: &mut TcpStream| {
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a request sent");
        let mut response = [0; 1024];
        let length = stream.read(&mut response).await.expect("a response");
        String::from_utf8_lossy(&response[..length]).into_owned()
    };
    let mut idle = connect().await;
    assert!(ask(&mut idle).await.starts_with("HTTP/1.1 200"));

    let mut silent = connect().await;
    let mut partial_head = connect().await;
    partial_head.write_all(b"GET /livez HTTP/1.1\r\nHo").await.expect("a partial head sent");
    let mut partial_second_head = connect().await;
    assert!(ask(&mut partial_second_head).await.starts_with("HTTP/1.1 200"));
    partial_second_head.write_all(b"GET /livez HTTP/1.1\r\nHo").await.expect("a partial head sent");
    for slow in [&mut silent, &mut partial_head, &mut partial_second_head] {
        let mut response = String::new();
        let ended = with_timeout(slow.read_to_string(&mut response)).await;
        assert!(ended.is_err() || response.is_empty(), "{response}");
    }
    for (length, expected) in [("9", "HTTP/1.1 408"), ("999999", "HTTP/1.1 413")] {
        let mut partial_body = connect().await;
        let head = format!(
            "POST /api/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{{"
        );
        partial_body.write_all(head.as_bytes()).await.expect("a partial body sent");
        let mut response = String::new();
        with_timeout(partial_body.read_to_string(&mut response)).await.expect("a response");
        assert!(response.starts_with(expected), "{response}");
    }

    // The idle connection has been idle for longer than the receive timeout, and is still open.
    assert!(ask(&mut idle).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn metrics_count_requests_by_route_and_never_by_path() {
    let url = shared_url();
    let (service, base) = Process::serve(&["--key-prefix", "sd:metrics"], &[("REDIS_URL", &url)]);
    for path in ["/livez", "/api/sessions/business/canary/active", "/nowhere/canary", "/api/sessions/canary"] {
        reqwest::get(format!("{base}{path}")).await.expect("a response");
    }
    let text = reqwest::get(service.metrics_url()).await.expect("a response").text().await.expect("a body");
    let series = [
        r#"sessiond_http_requests_total{method="GET",route="/livez",status="200"} 1"#,
        concat!(
            r#"sessiond_http_requests_total{method="GET",route="/api/sessions/business/{businessId}/active","#,
            r#"status="200"} 1"#
        ),
        r#"sessiond_http_requests_total{method="GET",route="unmatched",status="404"} 1"#,
        r#"sessiond_http_request_duration_seconds_count{method="GET",route="/api/sessions/{sessionId}"} 1"#,
    ];
    for one in series {
        assert!(text.contains(one), "{one}\n{text}");
    }
    assert!(!text.contains("canary"), "{text}");
}
