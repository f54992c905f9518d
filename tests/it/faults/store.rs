//! A Redis that dies, hangs, restarts empty or is replaced by another server.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::{DEADLINE, expect_intact, one_message, wait_until_ready};
use crate::support::audit::expect_clean;
use crate::support::ledger::Ledger;
use crate::support::process::with_timeout;
use crate::support::proxy::Proxy;
use crate::support::redis::RedisProbe;
use crate::support::redis_server::{AOF, IN_MEMORY, RedisServer};
use crate::support::service::Service;

#[tokio::test]
async fn killed_redis_keeps_every_acknowledged_write() {
    let mut server = RedisServer::start(AOF);
    let service = Service::start_on(&server.socket(), &DEADLINE).await;
    let mut ledger = Ledger::new(&service.base);
    ledger.load(8).await;
    let fault = async {
        // Gives every user time for a few calls.
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.kill();
        service.get("/readyz").await.expect_problem(503, "store_unavailable");
        service.get_or_create("away").await.expect_problem(503, "store_unavailable");
        service.get("/livez").await.expect(200);
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.start_again();
        wait_until_ready(&service).await;
    };
    tokio::join!(ledger.load(12), fault);
    assert!(ledger.answered("503 store_unavailable") > 0, "{:?}", ledger.answers());
    ledger.load(4).await;
    expect_intact(&service, &mut ledger).await;
}

#[tokio::test]
async fn commands_applied_late_by_a_stopped_redis_are_harmless() {
    let server = RedisServer::start(AOF);
    let service = Service::start_on(&server.socket(), &DEADLINE).await;
    let mut ledger = Ledger::new(&service.base);
    ledger.load(4).await;
    let fault = async {
        server.signal(Signal::STOP);
        // Sent while Redis is stopped. They have timed out by the time Redis applies them.
        let users = (0..20).map(|number| format!("late{number}"));
        let responses = users.clone().map(|user| async { service.get_or_create(&{ user }).await });
        for response in futures_util::future::join_all(responses).await {
            response.expect_problem(503, "store_unavailable");
        }
        // The duration of the fault: much longer than the service keeps an unresponsive connection.
        tokio::time::sleep(Duration::from_secs(10)).await;
        server.signal(Signal::CONT);
        wait_until_ready(&service).await;
        users
    };
    let (users, ()) = tokio::join!(fault, ledger.load(24));
    let applied_late =
        server.probe().await.texts(&["KEYS", &format!("{}:*:a:b:late*", service.config.redis.key_prefix)]).await;
    assert!(!applied_late.is_empty(), "nothing was applied late, so the test shows nothing");
    for user in users {
        let first = with_timeout(async {
            loop {
                let response = service.get_or_create(&user).await;
                if response.status.is_success() {
                    break response.string("sessionId");
                }
            }
        });
        let first = first.await;
        let history = format!("/api/sessions/business/b/user/{user}/history");
        let history = service.get(&history).await.expect(200).json();
        assert_eq!((history.as_array().map(Vec::len), &history[0]["sessionId"]), (Some(1), &json!(first)), "{history}");
    }
    ledger.load(4).await;
    expect_intact(&service, &mut ledger).await;
}

#[tokio::test]
async fn redis_that_restarts_empty_is_served_immediately() {
    let mut server = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&server.socket(), &[]).await;
    let id = service.session_of("u").await;
    let path = format!("/api/sessions/{id}");
    service.post(&format!("{path}/messages"), one_message("m")).await.expect(201);
    server.kill();
    service.get(&path).await.expect_problem(503, "store_unavailable");
    server.start_again();
    // Does not poll /readyz: it would be the first call to run a script that the restarted Redis does not know.
    let gone = with_timeout(async {
        loop {
            let response = service.get(&path).await;
            if response.status != 503 {
                break response;
            }
        }
    });
    gone.await.expect_problem(404, "session_not_found");
    service.patch(&path, json!({"title": "t"})).await.expect_problem(404, "session_not_found");
    service.delete(&path).await.expect_problem(404, "session_not_found");
    service.post(&format!("{path}/messages"), one_message("m")).await.expect_problem(404, "session_not_found");
    service.delete("/api/sessions/business/b/user/u").await.expect(200);
    let new = service.get_or_create("u").await.expect(201).string("sessionId");
    assert_ne!(new, id);
    let path = format!("/api/sessions/{new}");
    service.post(&format!("{path}/messages"), one_message("m")).await.expect(201);
    service.patch(&path, json!({"title": "t"})).await.expect(200);
    service.delete(&path).await.expect(204);
    service.get("/readyz").await.expect(200);
    // The layout key was lost as well, and the service writes it again.
    let layout = format!("{}:layout", service.config.redis.key_prefix);
    assert_eq!(server.probe().await.text(&["GET", &layout]).await.as_deref(), Some("2"));
    expect_clean(&service).await;
}

#[tokio::test]
async fn replacement_redis_with_another_layout_is_rejected() {
    let (first, second) = (RedisServer::start(IN_MEMORY), RedisServer::start(IN_MEMORY));
    let proxy = Proxy::start(&first.socket());
    let service = Service::start_on(&proxy.socket(), &[]).await;
    service.session_of("u").await;
    let (probe, layout) = (second.probe().await, format!("{}:layout", service.config.redis.key_prefix));
    probe.command(&["SET", &layout, "1"]).await;
    drop(first);
    proxy.set_target(&second.socket());
    // Commands that are in flight while the connection changes are still executed.
    let is_rejected = async || service.get_or_create("u").await.text.contains("belongs to another version");
    with_timeout(async { while !is_rejected().await {} }).await;
    let keys = probe.command(&["DBSIZE"]).await;
    service.get_or_create("another").await.expect_problem(503, "store_unavailable");
    assert_eq!(probe.command(&["DBSIZE"]).await, keys, "something was written");
    probe.command(&["SET", &layout, "2"]).await;
    service.get_or_create("another").await.expect(201);
}

/// How many NOSCRIPT errors a server has replied.
async fn noscript_errors(probe: &RedisProbe) -> u64 {
    let errors = probe.text(&["INFO", "errorstats"]).await.expect("statistics");
    let count = errors.lines().find_map(|line| line.strip_prefix("errorstat_NOSCRIPT:count="));
    count.map_or(0, |count| count.trim().parse().expect("a number"))
}

#[tokio::test]
async fn script_flush_fails_no_request() {
    let server = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&server.socket(), &[]).await;
    let probe = server.probe().await;
    let mut ledger = Ledger::new(&service.base);
    let flushing = async {
        loop {
            probe.command(&["SCRIPT", "FLUSH"]).await;
            // Lets other calls run between two flushes.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! { () = ledger.load(20) => {}, () = flushing => {} }
    assert!(noscript_errors(&probe).await > 50, "few NOSCRIPT errors, so the test shows nothing");
    let failed: Vec<_> = ledger.answers().into_iter().filter(|how| !how.starts_with('2')).collect();
    assert!(failed.is_empty(), "{failed:?}");
    expect_intact(&service, &mut ledger).await;
}

#[tokio::test]
async fn promoted_replica_without_scripts_fails_no_request() {
    let master = RedisServer::start(IN_MEMORY);
    let replica = RedisServer::start(IN_MEMORY);
    let (master_probe, replica_probe) = (master.probe().await, replica.probe().await);
    let port = master.listen().await.to_string();
    master_probe.command(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).await;
    replica_probe.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    let proxy = Proxy::start(&master.socket());
    let service = Service::start_on(&proxy.socket(), &[]).await;
    let mut ledger = Ledger::new(&service.base);
    ledger.load(10).await;
    // Writes that are not replicated are lost with the master, and the service does not promise to keep them. So the
    // test waits for the replica.
    with_timeout(async { while master_probe.command(&["WAIT", "1", "100"]).await.as_u64() != Some(1) {} }).await;

    let before = noscript_errors(&replica_probe).await;
    replica_probe.command(&["REPLICAOF", "NO", "ONE"]).await;
    drop(master);
    proxy.set_target(&replica.socket());
    with_timeout(async { while service.get("/api/sessions/business/b/active").await.status != 200 {} }).await;
    ledger.load(10).await;
    assert!(noscript_errors(&replica_probe).await > before, "the replica knew the scripts, so the test shows nothing");
    let failed: Vec<_> = ledger.answers().into_iter().filter(|how| !how.starts_with('2')).collect();
    assert!(failed.is_empty(), "{failed:?}");
    expect_intact(&service, &mut ledger).await;
}
