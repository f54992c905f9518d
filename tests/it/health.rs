//! Changes while the service runs: the clocks of the service and of Redis, the settings of Redis, and its layout key.
//! The service reports each on `/readyz`, in the metrics and in the log, and recovers when it is corrected.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use reqwest::{Client, Method};
use serde_json::{Value, json};
use sessiond::bootstrap::{self, system_now};
use sessiond::http;
use sessiond::server;
use sessiond::session::{Clock, Timestamp};
use sessiond::store::{RedisAddress, StoreConfig};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::support::acl;
use crate::support::audit::expect_clean;
use crate::support::process::{self, Process, with_timeout};
use crate::support::redis::RedisProbe;
use crate::support::redis_server::{AOF, IN_MEMORY, RedisServer, wait_for};
use crate::support::reply_proxy::ReplyProxy;
use crate::support::scrape::Scrape;
use crate::support::service::{Answer, Service};

const MINUTE_MS: i64 = 60 * 1000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
/// The injected clock does not advance, so the limit is longer than a test may take.
const FLAGS: [&str; 4] = ["--retention", "1h", "--max-clock-skew", "5m"];

/// Sets the service's clock to Redis's clock plus `ahead_ms`, and has the service compare them.
async fn set_clock(service: &Service, ahead_ms: i64) {
    service.set_now(Timestamp(system_now().0 + ahead_ms));
    service.app.store.run_checks_once().await;
}

fn create_body(user_id: &str) -> Value {
    json!({"businessId": "b", "userId": user_id})
}

fn message() -> Value {
    json!({"role": "user", "content": "hello"})
}

/// Makes every call that needs a safe clock, on the active session at `active` and the ended one at `ended`.
async fn writes(service: &Service, active: &str, ended: &str) -> Vec<Answer> {
    let replace = json!({"businessId": "b", "userId": "u", "ifActive": "replace"});
    vec![
        service.get_or_create("new").await,
        service.get_or_create("u").await,
        service.post("/api/sessions", replace).await,
        service.post(&format!("{active}/messages"), message()).await,
        service.patch(&format!("{active}/messages/m"), json!({"metadata": {"a": 1}})).await,
        service.patch(active, json!({"title": "t"})).await,
        service.patch(active, json!({})).await,
        service.patch(ended, json!({"status": "active"})).await,
        service.patch(active, json!({"status": "ended"})).await,
    ]
}

#[tokio::test]
async fn clock_skew_allows_only_reads_and_deletes_until_corrected() {
    let redis = RedisServer::start(IN_MEMORY);
    // The service's clock is a day ahead when it starts.
    let service = Service::start_on(&redis.socket(), &FLAGS).await;
    service.get("/readyz").await.expect_problem(503, "clock_skew");
    service.get_or_create("u").await.expect_problem(503, "clock_skew");
    assert_eq!(service.probe.keys().await, Vec::<String>::new());

    set_clock(&service, 0).await;
    service.get("/readyz").await.expect(200);
    let path = |id: String| format!("/api/sessions/{id}");
    let ended = path(service.session_of("w").await);
    service.patch(&ended, json!({"status": "ended"})).await.expect(200);
    let active = path(service.session_of("u").await);
    let mut known = message();
    known["messageId"] = "m".into();
    service.post(&format!("{active}/messages"), known).await.expect(201);
    let before = service.probe.digest().await;
    let differences = [
        (-2 * HOUR_MS, "7200"),
        (-31 * 24 * HOUR_MS, "2678400"),
        (-6 * MINUTE_MS, "360"),
        (6 * MINUTE_MS, "360"),
        (50 * MINUTE_MS, "3000"),
    ];
    for (ahead_ms, seconds) in differences {
        // Redis's clock has advanced since then, so the difference may be a second less.
        set_clock(&service, ahead_ms).await;
        let rejected = service.get("/readyz").await;
        let detail = rejected.expect_problem(503, "clock_skew").string("detail");
        let side = if ahead_ms < 0 { "behind" } else { "ahead of" };
        let rounded = (seconds.parse::<i64>().expect("seconds") - i64::from(ahead_ms > 0)).to_string();
        assert!(detail.contains(side) && (detail.contains(seconds) || detail.contains(&rounded)), "{detail}");
        for response in writes(&service, &active, &ended).await {
            response.expect_problem(503, "clock_skew");
        }
        service.get("/livez").await.expect(200);
        for path in [active.clone(), format!("{active}/messages"), "/api/sessions/business/b/active".to_owned()] {
            service.get(&path).await.expect(200);
        }
        service.get("/api/sessions/business/b/user/u/history").await.expect(200);
    }
    assert!(service.probe.digest().await == before, "something was written");
    service.delete(&format!("{active}/messages/m")).await.expect(204);
    service.delete(&ended).await.expect(204);
    service.delete("/api/sessions/business/b/user/u").await.expect(200);
    assert_eq!(service.probe.keys().await, Vec::<String>::new());

    for close_ms in [0, -4 * MINUTE_MS, 4 * MINUTE_MS] {
        set_clock(&service, close_ms).await;
        service.get("/readyz").await.expect(200);
        let user_id = format!("u{close_ms}");
        let created = service.get_or_create(&user_id).await.expect(201);
        let path = path(created.string("sessionId"));
        service.post(&format!("{path}/messages"), message()).await.expect(201);
        service.get(&path).await.expect(200);
    }
    set_clock(&service, 0).await;
    expect_clean(&service).await;
}

/// Serves the API on a store that checks at this interval. Returns the base URL.
async fn serve(service: &Service, redis: &RedisServer, check_interval: Duration, clock: Clock) -> String {
    let address = RedisAddress::from_url(&redis.url()).expect("a good URL");
    let settings = StoreConfig { check_interval, ..bootstrap::store_config(&service.config, address) };
    let app =
        bootstrap::app_state_with(&service.config, settings, service.app.credentials.clone(), clock).expect("an app");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    let connections = bootstrap::connection_settings(&service.config);
    tokio::spawn(server::serve(listener, http::Api::new(app), connections, Duration::ZERO, std::future::pending()));
    base
}

async fn call(base: &str, method: Method, path: &str, body: Value) -> (u16, Value) {
    let response = Client::new().request(method, format!("{base}{path}")).json(&body).send().await.expect("a response");
    (response.status().as_u16(), response.json().await.unwrap_or_default())
}

async fn create(base: &str, user_id: &str) -> (u16, Value) {
    call(base, Method::POST, "/api/sessions", create_body(user_id)).await
}

/// Polls `/readyz` until it has this status. Returns its detail.
async fn until_ready_is(base: &str, status: u16) -> String {
    with_timeout(async {
        loop {
            let (actual, body) = call(base, Method::GET, "/readyz", Value::Null).await;
            if actual == status {
                return body["detail"].as_str().unwrap_or_default().to_owned();
            }
        }
    })
    .await
}

#[tokio::test]
async fn clock_skew_rejects_the_first_create_of_a_process() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &FLAGS).await;
    let clock = Arc::new(|| Timestamp(system_now().0 - 2 * HOUR_MS));
    let base = serve(&service, &redis, Duration::from_hours(1), clock).await;
    let first = with_timeout(async {
        loop {
            // Retries until the service is connected.
            let (status, body) = create(&base, "u").await;
            if body["code"] != "store_unavailable" {
                return (status, body["code"].clone());
            }
        }
    });
    assert_eq!(first.await, (503, json!("clock_skew")));
    assert_eq!(service.probe.command(&["DBSIZE"]).await.as_u64(), Some(1), "a key other than the layout was written");
}

/// A clock that is ahead of the system's by as many milliseconds as the test sets.
fn movable_clock() -> (Arc<AtomicI64>, Clock) {
    let ahead_ms = Arc::new(AtomicI64::new(0));
    let ahead = ahead_ms.clone();
    (ahead_ms, Arc::new(move || Timestamp(system_now().0 + ahead.load(Ordering::SeqCst))))
}

#[tokio::test]
async fn clock_jump_triggers_an_immediate_comparison() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &FLAGS).await;
    let (ahead_ms, clock) = movable_clock();
    // The interval is longer than the test, so no periodic comparison is due.
    let base = serve(&service, &redis, Duration::from_hours(1), clock).await;
    until_ready_is(&base, 200).await;
    for jump_ms in [-2 * HOUR_MS, HOUR_MS] {
        ahead_ms.store(jump_ms, Ordering::SeqCst);
        assert!(until_ready_is(&base, 503).await.contains("clock"));
        ahead_ms.store(0, Ordering::SeqCst);
        until_ready_is(&base, 200).await;
    }
}

#[tokio::test]
async fn periodic_check_detects_clock_policy_and_layout_changes() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &FLAGS).await;
    let (ahead_ms, clock) = movable_clock();
    let base = serve(&service, &redis, Duration::from_millis(10), clock).await;
    until_ready_is(&base, 200).await;
    assert_eq!(create(&base, "before").await.0, 201);

    ahead_ms.store(-2 * HOUR_MS, Ordering::SeqCst);
    assert!(until_ready_is(&base, 503).await.contains("clock"));
    assert_eq!(create(&base, "u").await.1["code"], "clock_skew");
    ahead_ms.store(0, Ordering::SeqCst);
    until_ready_is(&base, 200).await;
    assert_eq!(create(&base, "u").await.0, 201);

    let probe = redis.probe().await;
    probe.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    assert!(until_ready_is(&base, 503).await.contains("maxmemory-policy allkeys-lru"));
    probe.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    until_ready_is(&base, 200).await;

    let layout = format!("{}:layout", service.config.redis.key_prefix);
    probe.command(&["FLUSHALL"]).await;
    with_timeout(async { while probe.text(&["GET", &layout]).await.as_deref() != Some("2") {} }).await;
    probe.command(&["SET", &layout, "1"]).await;
    assert!(until_ready_is(&base, 503).await.contains("another version"));
    probe.command(&["SET", &layout, "2"]).await;
    until_ready_is(&base, 200).await;
}

#[tokio::test]
async fn evicting_policy_makes_the_service_unready_until_reset() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &[]).await;
    let probe = redis.probe().await;
    for policy in ["allkeys-lru", "volatile-ttl", "allkeys-random"] {
        probe.command(&["CONFIG", "SET", "maxmemory-policy", policy]).await;
        service.app.store.run_checks_once().await;
        let detail = service.get("/readyz").await.expect_problem(503, "store_unavailable").string("detail");
        assert!(detail.contains(&format!("maxmemory-policy {policy}")) && !detail.contains(".sock"), "{detail}");
        // An unready service still serves requests.
        service.get_or_create(policy).await.expect(201);
        probe.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
        service.app.store.run_checks_once().await;
        service.get("/readyz").await.expect(200);
    }
}

#[tokio::test]
async fn replacement_by_an_old_redis_makes_the_service_unready() {
    let redis = RedisServer::start(IN_MEMORY);
    let proxy = ReplyProxy::start(redis.socket()).await;
    let service = Service::start_on(&redis.socket(), &FLAGS).await;
    let address = RedisAddress::from_url(&proxy.url).expect("a good URL");
    let clock = Arc::new(system_now);
    let app = bootstrap::app_state(&service.config, address, service.app.credentials.clone(), clock).expect("an app");
    with_timeout(async { while app.store.ready().await.is_err() {} }).await;
    proxy.set_old(true);
    app.store.run_checks_once().await;
    let error = app.store.ready().await.expect_err("an old server").to_string();
    assert!(error.contains("6.") && error.contains("or newer"), "{error}");
    proxy.set_old(false);
    app.store.run_checks_once().await;
    app.store.ready().await.expect("a good server");
}

/// The type of the layout key, and its value if it is a string.
async fn layout(probe: &RedisProbe, key: &str) -> (Option<String>, Option<String>) {
    let kind = probe.text(&["TYPE", key]).await;
    let text = if kind.as_deref() == Some("string") { probe.text(&["GET", key]).await } else { None };
    (kind, text)
}

#[tokio::test]
async fn lost_layout_key_is_written_again() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &[]).await;
    let (probe, key) = (redis.probe().await, format!("{}:layout", service.config.redis.key_prefix));
    service.session_of("u").await;
    for command in [&["FLUSHALL"][..], &["FLUSHDB", "ASYNC"], &["DEL", &key], &["PEXPIRE", &key, "0"]] {
        probe.command(command).await;
        service.app.store.run_checks_once().await;
        assert_eq!(layout(&probe, &key).await, (Some("string".into()), Some("2".into())), "{command:?}");
        service.get("/readyz").await.expect(200);
        let response = service.get_or_create("u").await;
        assert!(response.status.is_success(), "{command:?}: {response:?}");
        expect_clean(&service).await;
    }
}

#[tokio::test]
async fn foreign_layout_rejects_writes() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &[]).await;
    let (probe, key) = (redis.probe().await, format!("{}:layout", service.config.redis.key_prefix));
    let session = format!("/api/sessions/{}", service.session_of("u").await);
    let replaced: [&[&str]; 4] =
        [&["SET", &key, "1"], &["SET", &key, ""], &["LPUSH", &key, "2"], &["SETRANGE", &key, "1", "\u{1}"]];
    for words in replaced {
        if words[0] == "LPUSH" {
            probe.command(&["DEL", &key]).await;
        }
        probe.command(words).await;
        let (stored, keys) = (layout(&probe, &key).await, probe.command(&["DBSIZE"]).await);
        service.app.store.run_checks_once().await;
        for response in [
            service.get("/readyz").await,
            service.get_or_create("u").await,
            service.get_or_create("another").await,
            service.patch(&session, json!({"title": "t"})).await,
            service.post(&format!("{session}/messages"), message()).await,
        ] {
            let detail = response.expect_problem(503, "store_unavailable").string("detail");
            assert!(detail.contains("another version"), "{words:?}: {detail}");
        }
        assert_eq!((layout(&probe, &key).await, probe.command(&["DBSIZE"]).await), (stored, keys), "{words:?}");
        probe.command(&["SET", &key, "2"]).await;
        service.get("/readyz").await.expect(200);
        service.get_or_create("u").await.expect(200);
    }
    expect_clean(&service).await;
}

/// Cuts the service's connections. The service checks a server whenever it connects.
async fn reconnect(probe: &RedisProbe) {
    probe.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
}

fn problems(scrape: &Scrape) -> Vec<String> {
    let counted = scrape.nonzero("sessiond_store_problems").into_iter();
    counted.map(|(labels, count)| format!("{labels} {count}")).collect()
}

/// Polls the metrics until they report exactly these problems.
async fn until_problems_are(service: &Process, expected: &[&str]) -> Scrape {
    let expected: Vec<_> = expected.iter().map(|problem| format!("{{problem=\"{problem}\"}} 1")).collect();
    Scrape::until(service, |scrape| problems(scrape) == expected).await
}

fn skew(scrape: &Scrape) -> f64 {
    scrape.series["sessiond_store_clock_skew_seconds"].parse().expect("a number")
}

/// How many log lines contain `text`.
fn count_lines(service: &Process, text: &str) -> usize {
    service.lines.iter().filter(|line| line.contains(text)).count()
}

#[tokio::test]
async fn each_change_is_counted_and_logged_once() {
    let redis = RedisServer::start(AOF);
    let proxy = ReplyProxy::start(redis.socket()).await;
    let url = proxy.url.clone();
    let start = move || Process::serve(&["--event-loops", "2"], &[("REDIS_URL", &url)]);
    // The proxy runs on this test's runtime, which must not be blocked while the process starts.
    let (mut service, base) = tokio::task::spawn_blocking(start).await.expect("no panic");
    until_ready_is(&base, 200).await;
    assert!(skew(&until_problems_are(&service, &[]).await).abs() < 1.0);
    let probe = redis.probe().await;

    let steps: [(i32, [&str; 2], &[&str]); 6] = [
        // Logged as a warning; requests are still served.
        (5, ["maxmemory-policy", "noeviction"], &[]),
        (7200, ["maxmemory-policy", "noeviction"], &["clock_skew"]),
        (-7200, ["maxmemory-policy", "volatile-lru"], &["clock_skew", "eviction"]),
        (0, ["maxmemory-policy", "noeviction"], &[]),
        (0, ["appendonly", "no"], &["persistence"]),
        (0, ["appendonly", "yes"], &[]),
    ];
    for (redis_ahead, [setting, value], expected) in steps {
        proxy.set_clock_ahead(redis_ahead);
        probe.command(&["CONFIG", "SET", setting, value]).await;
        reconnect(&probe).await;
        until_problems_are(&service, expected).await;
        let is_ready = expected.iter().all(|problem| *problem == "persistence");
        until_ready_is(&base, if is_ready { 200 } else { 503 }).await;
        Scrape::until(&service, |scrape| (skew(scrape) + f64::from(redis_ahead)).abs() < 1.0).await;
    }
    service.signal(rustix::process::Signal::TERM);
    service.wait();
    for (level, text, count) in [
        // At a difference of 5 s, and at two hours. Going from two hours ahead to two hours behind is not a change.
        ("WARN", "behind the clock of the Redis", 2),
        ("WARN", "sessions can be read and deleted", 1),
        ("INFO", "they agree again", 1),
        ("WARN", "maxmemory-policy volatile-lru", 1),
        ("WARN", "appendonly no", 1),
        ("INFO", "no longer has this problem", 2),
    ] {
        let words = [&format!("\"level\":\"{level}\""), text, "sessiond::store::health"];
        let matches = |line: &&String| words.iter().all(|word| line.contains(word));
        assert_eq!(service.lines.iter().filter(matches).count(), count, "{text}: {:#?}", service.lines);
    }
}

#[tokio::test]
async fn master_with_min_replicas_to_write_0_is_reported() {
    let folder = TempDir::new().expect("a folder");
    let waiting = ["--min-replicas-to-write", "1", "--appendonly", "yes"];
    let master = RedisServer::on_tcp(folder.path(), &waiting);
    let port = master.port.to_string();
    let _replica = RedisServer::on_tcp(folder.path(), &["--replicaof", "127.0.0.1", &port]);
    wait_for("a replica", || master.info("min_slaves_good_slaves") == "1");
    let (mut service, base) = Process::serve(&[], &[("REDIS_URL", &master.url())]);
    until_ready_is(&base, 200).await;
    until_problems_are(&service, &[]).await;
    for (replicas, expected) in [("0", &["replication"][..]), ("1", &[])] {
        master.ask(&["CONFIG", "SET", "min-replicas-to-write", replicas]);
        master.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
        until_problems_are(&service, expected).await;
        until_ready_is(&base, 200).await;
    }
    service.signal(rustix::process::Signal::TERM);
    service.wait();
    assert_eq!(count_lines(&service, "min-replicas-to-write 0"), 1, "{:#?}", service.lines);
}

#[tokio::test]
async fn redis_without_the_time_command_is_served_with_one_warning() {
    let redis = RedisServer::start(AOF);
    let probe = redis.probe().await;
    probe.command(&["ACL", "SETUSER", acl::SERVICE, "-time"]).await;
    let (mut service, base) = Process::serve(&["--event-loops", "2"], &[("REDIS_URL", &redis.url())]);
    until_ready_is(&base, 200).await;
    for number in 0..8 {
        assert_eq!(create(&base, &format!("u{number}")).await.0, 201);
    }
    until_problems_are(&service, &["unchecked"]).await;
    probe.command(&["ACL", "SETUSER", acl::SERVICE, "+time"]).await;
    reconnect(&probe).await;
    until_problems_are(&service, &[]).await;
    service.signal(rustix::process::Signal::TERM);
    service.wait();
    assert_eq!(count_lines(&service, "does not tell its time"), 1, "{:#?}", service.lines);
}

#[tokio::test]
async fn audit_with_clock_skew_fails_and_repairs_nothing() {
    let redis = RedisServer::start(IN_MEMORY);
    let probe = redis.probe().await;
    let service = Service::start_on(&redis.socket(), &FLAGS).await;
    set_clock(&service, 0).await;
    service.session_of("u").await;
    let history = service.probe.keys_of('h').await.remove(0);
    probe.command(&["PERSIST", &history]).await;
    let proxy = ReplyProxy::start(redis.socket()).await;
    let url = acl::audit_url(&proxy.url);
    let prefix = service.config.redis.key_prefix.clone();
    let audit = async |arguments: &'static [&str]| {
        let (url, prefix) = (url.clone(), prefix.clone());
        let run = move || {
            let words = [&["audit", "--key-prefix", &prefix], arguments].concat();
            process::run(&words, &[("REDIS_URL", url.as_str())])
        };
        tokio::task::spawn_blocking(run).await.expect("no panic")
    };
    for ahead in [40 * 24 * 3600, -7200] {
        proxy.set_clock_ahead(ahead);
        for arguments in [&[][..], &["--repair"]] {
            let output = audit(arguments).await;
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{output:?}");
            assert!(stderr.contains("the clock of this service is"), "{stderr}");
        }
    }
    assert_eq!(probe.command(&["PEXPIRETIME", &history]).await.as_i64(), Some(-1));
    proxy.set_clock_ahead(0);
    assert_eq!(audit(&["--repair"]).await.status.code(), Some(0));
}
