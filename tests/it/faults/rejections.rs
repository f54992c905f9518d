//! A Redis that replies with errors because it is full, read-only, without replicas, unable to save or busy. Also
//! services whose clocks differ.

use std::cell::Cell;
use std::fs;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use super::{DEADLINE, one_message, wait_until_ready};
use crate::support::audit::expect_clean;
use crate::support::process::with_timeout;
use crate::support::redis_server::{AOF, IN_MEMORY, RedisServer};
use crate::support::service::{Answer, Service};

/// Every read of a session and of its user.
fn reads(id: &str, user_id: &str) -> [String; 5] {
    [
        format!("/api/sessions/{id}"),
        format!("/api/sessions/{id}/messages"),
        "/api/sessions/business/b/active".to_owned(),
        format!("/api/sessions/business/b/user/{user_id}/active"),
        format!("/api/sessions/business/b/user/{user_id}/history"),
    ]
}

/// A session with a message.
async fn session_with_message(service: &Service, user_id: &str) -> String {
    let id = service.session_of(user_id).await;
    service.post(&format!("/api/sessions/{id}/messages"), one_message("m1")).await.expect(201);
    id
}

/// Every write that needs memory.
async fn writes(service: &Service, id: &str) -> [Answer; 5] {
    let path = format!("/api/sessions/{id}");
    [
        service.post("/api/sessions", json!({"businessId": "b", "userId": "new"})).await,
        service.post("/api/sessions", json!({"businessId": "b", "userId": "u", "ifActive": "replace"})).await,
        service.patch(&path, json!({"title": "t"})).await,
        service.patch(&format!("{path}/messages/m1"), json!({"metadata": {"a": 1}})).await,
        service.post(&format!("{path}/messages"), one_message("m2")).await,
    ]
}

#[tokio::test]
async fn full_redis_allows_reads_and_deletes() {
    let server = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&server.socket(), &[]).await;
    let id = session_with_message(&service, "u").await;
    let other = session_with_message(&service, "other").await;
    session_with_message(&service, "erased").await;
    let probe = server.probe().await;
    probe.command(&["CONFIG", "SET", "maxmemory", "1"]).await;

    service.get("/readyz").await.expect_problem(503, "store_full");
    for response in writes(&service, &id).await {
        response.expect_problem(503, "store_full");
    }
    for path in reads(&id, "u") {
        service.get(&path).await.expect(200);
    }
    service.delete(&format!("/api/sessions/{other}/messages/m1")).await.expect(204);
    service.delete(&format!("/api/sessions/{other}")).await.expect(204);
    let erased = service.delete("/api/sessions/business/b/user/erased").await.expect(200);
    assert_eq!(erased.json(), json!({"deletedSessions": 1}));

    probe.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    service.get("/readyz").await.expect(200);
    let session = service.get(&format!("/api/sessions/{id}")).await.expect(200);
    assert_eq!((session.member("version"), session.member("messageCount")), (json!(1), json!(1)), "{session:?}");
    for response in writes(&service, &id).await {
        // The second write replaces the session that the last one appends to.
        assert!(response.status.is_success() || response.status == 409, "{response:?}");
    }
    expect_clean(&service).await;
}

/// Checks a Redis that replies `code` to writes: concurrent reads succeed, and every write gets a 503.
async fn expect_read_only(service: &Service, id: &str, code: &str) {
    let before = service.get(&format!("/api/sessions/{id}")).await.expect(200).json();
    let writes_done = Cell::new(false);
    let reading = async {
        while !writes_done.get() {
            join_all(reads(id, "u").map(|path| async move { service.get(&path).await.expect(200) })).await;
        }
    };
    let writing = async {
        for _ in 0..10 {
            let path = format!("/api/sessions/{id}");
            let (responses, deleted) = tokio::join!(writes(service, id), service.delete(&path));
            for response in responses.iter().chain([&deleted]) {
                response.expect_problem(503, "store_unavailable");
                assert!(response.string("detail").contains(code), "{response:?}");
            }
            let not_ready = service.get("/readyz").await;
            not_ready.expect_problem(503, "store_unavailable");
            assert!(not_ready.string("detail").contains(code), "{not_ready:?}");
        }
        writes_done.set(true);
    };
    with_timeout(async { tokio::join!(reading, writing) }).await;
    assert_eq!(service.get(&format!("/api/sessions/{id}")).await.expect(200).json(), before);
    service.get("/livez").await.expect(200);
}

/// Waits until the service is ready, then checks that it accepts writes and that the audit finds nothing.
async fn expect_recovery(service: &Service) {
    wait_until_ready(service).await;
    let id = session_with_message(service, "afterwards").await;
    service.delete(&format!("/api/sessions/{id}")).await.expect(204);
    expect_clean(service).await;
}

#[tokio::test]
async fn read_only_replica_serves_reads() {
    let server = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&server.socket(), &[]).await;
    let id = session_with_message(&service, "u").await;
    let probe = server.probe().await;
    // Makes it the replica of a master that does not exist.
    probe.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    expect_read_only(&service, &id, "READONLY").await;
    probe.command(&["REPLICAOF", "NO", "ONE"]).await;
    expect_recovery(&service).await;
}

#[tokio::test]
async fn master_with_too_few_replicas_serves_reads() {
    let server = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&server.socket(), &[]).await;
    let id = session_with_message(&service, "u").await;
    let probe = server.probe().await;
    probe.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    expect_read_only(&service, &id, "NOREPLICAS").await;
    probe.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    expect_recovery(&service).await;
}

#[tokio::test]
async fn redis_with_a_full_disk_serves_reads() {
    let server = RedisServer::start_on_small_disk(AOF);
    let service = Service::start_on(&server.socket(), &[]).await;
    let id = session_with_message(&service, "u").await;
    let filler = server.data_file("filler");
    // Fills the disk. The write fails when no space is left, which is intended.
    let _ = fs::write(&filler, vec![0; 4 * 1024 * 1024]);
    // Redis acknowledges writes until it notices that its disk is full, and keeps those.
    with_timeout(async {
        let path = "/api/sessions";
        let replace = || service.post(path, json!({"businessId": "b", "userId": "filling", "ifActive": "replace"}));
        while replace().await.status != 503 {}
    })
    .await;
    expect_read_only(&service, &id, "MISCONF").await;
    fs::remove_file(&filler).expect("the filler removed");
    expect_recovery(&service).await;
}

#[tokio::test]
async fn busy_redis_gives_store_busy_until_its_script_ends() {
    let server = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&server.socket(), &DEADLINE).await;
    let id = session_with_message(&service, "u").await;
    let (probe, busy) = (server.probe().await, server.probe().await);
    probe.command(&["CONFIG", "SET", "busy-reply-threshold", "100"]).await;
    let script = tokio::spawn(async move { busy.try_command(&["EVAL", "while true do end", "0"]).await });

    let (mut write_seen, mut read_seen, mut health_seen) = (false, false, false);
    let path = format!("/api/sessions/{id}");
    with_timeout(async {
        while !(write_seen && read_seen && health_seen) {
            let responses = [
                (service.get_or_create("u").await, &mut write_seen),
                (service.get(&path).await, &mut read_seen),
                (service.get("/readyz").await, &mut health_seen),
            ];
            for (response, seen) in responses {
                // The script may not have started yet, and Redis does not reply until it exceeds busy-reply-threshold.
                if response.status == 503 {
                    let code = response.string("code");
                    response.expect_problem(503, if code == "store_busy" { "store_busy" } else { "store_unavailable" });
                    *seen |= code == "store_busy";
                }
            }
        }
    })
    .await;
    probe.command(&["SCRIPT", "KILL"]).await;
    assert!(script.await.expect("no panic").is_err(), "the script was not killed");
    expect_recovery(&service).await;
    assert_eq!(service.get_or_create("u").await.expect(200).string("sessionId"), id);
}

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Shows the effects of a clock that is an hour ahead.
#[tokio::test]
async fn clock_that_is_ahead_ends_sessions_early_and_keeps_one_active() {
    let slow = Service::start(&[]).await;
    let fast = slow.sibling_ahead(HOUR).await;
    let first = slow.session_of("u").await;

    // For the fast service the session has exceeded its idle timeout, so it expires half an hour early.
    fast.get("/api/sessions/business/b/user/u/active").await.expect_problem(404, "no_active_session");
    slow.get("/api/sessions/business/b/user/u/active").await.expect(200);
    let second = fast.get_or_create("u").await.expect(201);
    let ended = slow.get(&format!("/api/sessions/{first}")).await.expect(200);
    assert_eq!((ended.string("status"), ended.string("endReason")), ("expired".to_owned(), "idle".to_owned()));

    // Its successor is active for both. Its expiry follows the fast clock, so it lasts longer for the slow service.
    let found = slow.get_or_create("u").await.expect(200);
    assert_eq!(found.json(), second.json());
    slow.advance(HOUR);
    slow.get_or_create("u").await.expect(200);
    slow.advance(HOUR / 2);
    expect_clean(&slow).await;

    // A session that the slow service creates expires by the slow clock, and is still the newest in the history.
    let third = slow.get_or_create("u").await.expect(201);
    let milliseconds = |response: &Answer, member: &str| {
        chrono::DateTime::parse_from_rfc3339(&response.string(member)).expect("a time").timestamp_millis()
    };
    assert_eq!(milliseconds(&third, "expiresAt"), slow.now().0 + 30 * 60 * 1000);
    assert!(milliseconds(&third, "createdAt") > milliseconds(&second, "createdAt"));
    let history = slow.get("/api/sessions/business/b/user/u/history").await.expect(200).json();
    let ids: Vec<_> = history.as_array().expect("a list").iter().map(|one| one["sessionId"].clone()).collect();
    assert_eq!(ids, [third.string("sessionId"), second.string("sessionId"), first].map(serde_json::Value::from));
    for service in [&slow, &fast] {
        expect_clean(service).await;
    }
}

#[tokio::test]
async fn services_with_different_clocks_keep_at_most_one_active_session() {
    let slow = Service::start(&[]).await;
    let fast = slow.sibling_ahead(HOUR).await;
    let user = async |number: usize| {
        let user_id = format!("u{number}");
        for step in 0..12 {
            let calls = [&slow, &fast].map(|service| {
                let if_active = if (number + step).is_multiple_of(3) { "replace" } else { "return" };
                let body = json!({"businessId": "b", "userId": user_id, "ifActive": if_active});
                async move {
                    let session = service.post("/api/sessions", body).await;
                    assert!(session.status.is_success(), "{session:?}");
                    let path = format!("/api/sessions/{}", session.string("sessionId"));
                    // The other service may have ended the session in the meantime.
                    let appended = service.post(&format!("{path}/messages"), one_message("m")).await;
                    assert!(appended.status.is_success() || appended.status == 409, "{appended:?}");
                    let resumed = service.patch(&path, json!({"status": "active"})).await;
                    assert!(resumed.status.is_success() || resumed.status == 409, "{resumed:?}");
                }
            });
            join_all(calls).await;
        }
        for service in [&slow, &fast] {
            let history =
                service.get(&format!("/api/sessions/business/b/user/{user_id}/history?limit=100")).await.json();
            let active = history.as_array().expect("a list").iter().filter(|one| one["status"] == "active").count();
            assert!(active <= 1, "{history}");
        }
    };
    join_all((0..8).map(user)).await;
    for service in [&slow, &fast] {
        expect_clean(service).await;
    }
}
