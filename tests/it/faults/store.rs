//! A Redis that dies, hangs, comes back empty or is replaced by another.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::{DEADLINE, expect_whole, one_message, ready};
use crate::support::audit::expect_clean;
use crate::support::ledger::Ledger;
use crate::support::process::patiently;
use crate::support::proxy::Proxy;
use crate::support::redis::Look;
use crate::support::server::{AOF, IN_MEMORY, RedisServer};
use crate::support::service::Service;

#[tokio::test]
async fn killed_redis_comes_back_with_everything_that_was_acknowledged() {
    let mut server = RedisServer::start(AOF);
    let service = Service::start_on(&server.socket(), &DEADLINE).await;
    let mut ledger = Ledger::new(&service.base);
    ledger.load(8).await;
    let fault = async {
        // For as long as every user makes a few calls.
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.kill();
        service.get("/readyz").await.expect_problem(503, "store_unavailable");
        service.get_or_create("away").await.expect_problem(503, "store_unavailable");
        service.get("/livez").await.expect(200);
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.start_again();
        ready(&service).await;
    };
    tokio::join!(ledger.load(12), fault);
    assert!(ledger.answered("503 store_unavailable") > 0, "{:?}", ledger.answers());
    ledger.load(4).await;
    expect_whole(&service, &mut ledger).await;
}

#[tokio::test]
async fn what_a_stopped_redis_applies_late_does_no_harm() {
    let server = RedisServer::start(AOF);
    let service = Service::start_on(&server.socket(), &DEADLINE).await;
    let mut ledger = Ledger::new(&service.base);
    ledger.load(4).await;
    let fault = async {
        server.signal(Signal::STOP);
        // These are sent at once, and nobody waits for their reply any more when they are applied.
        let users = (0..20).map(|number| format!("late{number}"));
        let answers = users.clone().map(|user| async { service.get_or_create(&{ user }).await });
        for answer in futures_util::future::join_all(answers).await {
            answer.expect_problem(503, "store_unavailable");
        }
        // The fault's own duration: much longer than an unresponsive connection is kept.
        tokio::time::sleep(Duration::from_secs(10)).await;
        server.signal(Signal::CONT);
        ready(&service).await;
        users
    };
    let (users, ()) = tokio::join!(fault, ledger.load(24));
    let applied_late =
        server.look().await.texts(&["KEYS", &format!("{}:*:a:b:late*", service.config.key_prefix)]).await;
    assert!(!applied_late.is_empty(), "nothing was applied late: this shows nothing");
    for user in users {
        let first = patiently(async {
            loop {
                let answer = service.get_or_create(&user).await;
                if answer.status.is_success() {
                    break answer.string("sessionId");
                }
            }
        });
        let first = first.await;
        let history = format!("/api/sessions/business/b/user/{user}/history");
        let history = service.get(&history).await.expect(200).json();
        assert_eq!((history.as_array().map(Vec::len), &history[0]["sessionId"]), (Some(1), &json!(first)), "{history}");
    }
    ledger.load(4).await;
    expect_whole(&service, &mut ledger).await;
}

#[tokio::test]
async fn an_empty_redis_is_served_from_at_once() {
    let mut server = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&server.socket(), &[]).await;
    let id = service.session_of("u").await;
    let path = format!("/api/sessions/{id}");
    service.post(&format!("{path}/messages"), one_message("m")).await.expect(201);
    server.kill();
    service.get(&path).await.expect_problem(503, "store_unavailable");
    server.start_again();
    // Not by way of /readyz, whose script would be the first to be missed.
    let gone = patiently(async {
        loop {
            let answer = service.get(&path).await;
            if answer.status != 503 {
                break answer;
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
    // What was lost, too: which layout the sessions have.
    let layout = format!("{}:layout", service.config.key_prefix);
    assert_eq!(server.look().await.text(&["GET", &layout]).await.as_deref(), Some("1"));
    expect_clean(&service).await;
}

#[tokio::test]
async fn a_redis_that_comes_late_with_another_layout_is_refused() {
    let (first, second) = (RedisServer::start(IN_MEMORY), RedisServer::start(IN_MEMORY));
    let proxy = Proxy::start(&first.socket());
    let service = Service::start_on(&proxy.socket(), &[]).await;
    service.session_of("u").await;
    let (look, layout) = (second.look().await, format!("{}:layout", service.config.key_prefix));
    look.command(&["SET", &layout, "2"]).await;
    drop(first);
    proxy.lead_to(&second.socket());
    // What is on its way while the connection changes is carried out still.
    let is_refused = async || service.get_or_create("u").await.text.contains("belongs to another version");
    patiently(async { while !is_refused().await {} }).await;
    let keys = look.command(&["DBSIZE"]).await;
    service.get_or_create("another").await.expect_problem(503, "store_unavailable");
    assert_eq!(look.command(&["DBSIZE"]).await, keys, "something was written");
    look.command(&["SET", &layout, "1"]).await;
    service.get_or_create("another").await.expect(201);
}

/// How often a server has said that it does not know a script.
async fn unknown_scripts(look: &Look) -> u64 {
    let errors = look.text(&["INFO", "errorstats"]).await.expect("statistics");
    let count = errors.lines().find_map(|line| line.strip_prefix("errorstat_NOSCRIPT:count="));
    count.map_or(0, |count| count.trim().parse().expect("a number"))
}

#[tokio::test]
async fn nobody_notices_that_scripts_are_flushed() {
    let server = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&server.socket(), &[]).await;
    let look = server.look().await;
    let mut ledger = Ledger::new(&service.base);
    let flushing = async {
        loop {
            look.command(&["SCRIPT", "FLUSH"]).await;
            // So that other calls come in between.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! { () = ledger.load(20) => {}, () = flushing => {} }
    assert!(unknown_scripts(&look).await > 50, "scripts were hardly missed: this shows nothing");
    let failed: Vec<_> = ledger.answers().into_iter().filter(|how| !how.starts_with('2')).collect();
    assert!(failed.is_empty(), "{failed:?}");
    expect_whole(&service, &mut ledger).await;
}

#[tokio::test]
async fn a_promoted_replica_serves_without_knowing_the_scripts() {
    let master = RedisServer::start(IN_MEMORY);
    let replica = RedisServer::start(IN_MEMORY);
    let (master_look, replica_look) = (master.look().await, replica.look().await);
    let port = master.listen().await.to_string();
    master_look.command(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).await;
    replica_look.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    let proxy = Proxy::start(&master.socket());
    let service = Service::start_on(&proxy.socket(), &[]).await;
    let mut ledger = Ledger::new(&service.base);
    ledger.load(10).await;
    // What a replica has not got yet is lost with its master, and not promised: so it gets everything.
    patiently(async { while master_look.command(&["WAIT", "1", "100"]).await.as_u64() != Some(1) {} }).await;

    let before = unknown_scripts(&replica_look).await;
    replica_look.command(&["REPLICAOF", "NO", "ONE"]).await;
    drop(master);
    proxy.lead_to(&replica.socket());
    patiently(async { while service.get("/api/sessions/business/b/active").await.status != 200 {} }).await;
    ledger.load(10).await;
    assert!(unknown_scripts(&replica_look).await > before, "the replica knew the scripts: this shows nothing");
    let failed: Vec<_> = ledger.answers().into_iter().filter(|how| !how.starts_with('2')).collect();
    assert!(failed.is_empty(), "{failed:?}");
    expect_whole(&service, &mut ledger).await;
}
