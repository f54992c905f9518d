//! A Redis that answers, and refuses: full, read-only, alone, unable to save, busy. And services whose clocks differ.

use std::cell::Cell;
use std::fs;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use super::{DEADLINE, one_message, ready};
use crate::support::audit::expect_clean;
use crate::support::process::patiently;
use crate::support::server::{AOF, IN_MEMORY, RedisServer};
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
async fn writes(service: &Service, id: &str) -> [Answer; 4] {
    let path = format!("/api/sessions/{id}");
    [
        service.post("/api/sessions", json!({"businessId": "b", "userId": "new"})).await,
        service.post("/api/sessions", json!({"businessId": "b", "userId": "u", "ifActive": "replace"})).await,
        service.patch(&path, json!({"title": "t"})).await,
        service.post(&format!("{path}/messages"), one_message("m2")).await,
    ]
}

#[tokio::test]
async fn a_full_redis_is_read_and_deleted_from() {
    let server = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&server.socket(), &[]).await;
    let id = session_with_message(&service, "u").await;
    let other = session_with_message(&service, "other").await;
    session_with_message(&service, "erased").await;
    let look = server.look().await;
    look.command(&["CONFIG", "SET", "maxmemory", "1"]).await;

    service.get("/readyz").await.expect_problem(503, "store_full");
    for answer in writes(&service, &id).await {
        answer.expect_problem(503, "store_full");
    }
    for path in reads(&id, "u") {
        service.get(&path).await.expect(200);
    }
    service.delete(&format!("/api/sessions/{other}")).await.expect(204);
    let erased = service.delete("/api/sessions/business/b/user/erased").await.expect(200);
    assert_eq!(erased.json(), json!({"deletedSessions": 1}));

    look.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    service.get("/readyz").await.expect(200);
    let session = service.get(&format!("/api/sessions/{id}")).await.expect(200);
    assert_eq!((session.member("version"), session.member("messageCount")), (json!(1), json!(1)), "{session:?}");
    for answer in writes(&service, &id).await {
        // The second one replaced the session that the last one would append to.
        assert!(answer.status.is_success() || answer.status == 409, "{answer:?}");
    }
    expect_clean(&service).await;
}

/// While Redis refuses writes with `code`: reads go on, all the time and at once with the writes; writes are refused.
async fn reads_go_on(service: &Service, id: &str, code: &str) {
    let before = service.get(&format!("/api/sessions/{id}")).await.expect(200).json();
    let refused = Cell::new(false);
    let reading = async {
        while !refused.get() {
            join_all(reads(id, "u").map(|path| async move { service.get(&path).await.expect(200) })).await;
        }
    };
    let writing = async {
        for _ in 0..10 {
            let path = format!("/api/sessions/{id}");
            let (answers, deleted) = tokio::join!(writes(service, id), service.delete(&path));
            for answer in answers.iter().chain([&deleted]) {
                answer.expect_problem(503, "store_unavailable");
                assert!(answer.string("detail").contains(code), "{answer:?}");
            }
            let not_ready = service.get("/readyz").await;
            not_ready.expect_problem(503, "store_unavailable");
            assert!(not_ready.string("detail").contains(code), "{not_ready:?}");
        }
        refused.set(true);
    };
    patiently(async { tokio::join!(reading, writing) }).await;
    assert_eq!(service.get(&format!("/api/sessions/{id}")).await.expect(200).json(), before);
    service.get("/livez").await.expect(200);
}

/// Writes as if nothing had been, and nothing is broken.
async fn serves_again(service: &Service) {
    ready(service).await;
    let id = session_with_message(service, "afterwards").await;
    service.delete(&format!("/api/sessions/{id}")).await.expect(204);
    expect_clean(service).await;
}

#[tokio::test]
async fn a_read_only_replica_is_read_from() {
    let server = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&server.socket(), &[]).await;
    let id = session_with_message(&service, "u").await;
    let look = server.look().await;
    // Of a master that is not there.
    look.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    reads_go_on(&service, &id, "READONLY").await;
    look.command(&["REPLICAOF", "NO", "ONE"]).await;
    serves_again(&service).await;
}

#[tokio::test]
async fn a_master_without_its_replicas_is_read_from() {
    let server = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&server.socket(), &[]).await;
    let id = session_with_message(&service, "u").await;
    let look = server.look().await;
    look.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    reads_go_on(&service, &id, "NOREPLICAS").await;
    look.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    serves_again(&service).await;
}

#[tokio::test]
async fn a_redis_that_cannot_save_is_read_from() {
    let server = RedisServer::start_on_small_disk(AOF);
    let service = Service::start_on(&server.socket(), &[]).await;
    let id = session_with_message(&service, "u").await;
    let filler = server.data_file("filler");
    // Whatever there is room for: the write that finds none is an error.
    let _ = fs::write(&filler, vec![0; 4 * 1024 * 1024]);
    // What Redis was told before it found its disk full was acknowledged, and it still holds that.
    patiently(async {
        let path = "/api/sessions";
        let replace = || service.post(path, json!({"businessId": "b", "userId": "filling", "ifActive": "replace"}));
        while replace().await.status != 503 {}
    })
    .await;
    reads_go_on(&service, &id, "MISCONF").await;
    fs::remove_file(&filler).expect("room again");
    serves_again(&service).await;
}

#[tokio::test]
async fn a_busy_redis_is_told_apart_and_waited_for() {
    let server = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&server.socket(), &DEADLINE).await;
    let id = session_with_message(&service, "u").await;
    let (look, busy) = (server.look().await, server.look().await);
    look.command(&["CONFIG", "SET", "busy-reply-threshold", "100"]).await;
    let script = tokio::spawn(async move { busy.try_command(&["EVAL", "while true do end", "0"]).await });

    let (mut write_seen, mut read_seen, mut health_seen) = (false, false, false);
    let path = format!("/api/sessions/{id}");
    patiently(async {
        while !(write_seen && read_seen && health_seen) {
            let answers = [
                (service.get_or_create("u").await, &mut write_seen),
                (service.get(&path).await, &mut read_seen),
                (service.get("/readyz").await, &mut health_seen),
            ];
            for (answer, seen) in answers {
                // The script may not have begun yet; until it counts as slow, the server says nothing at all.
                if answer.status == 503 {
                    let code = answer.string("code");
                    answer.expect_problem(503, if code == "store_busy" { "store_busy" } else { "store_unavailable" });
                    *seen |= code == "store_busy";
                }
            }
        }
    })
    .await;
    look.command(&["SCRIPT", "KILL"]).await;
    assert!(script.await.expect("no panic").is_err(), "the script was killed");
    serves_again(&service).await;
    assert_eq!(service.get_or_create("u").await.expect(200).string("sessionId"), id);
}

const HOUR: Duration = Duration::from_secs(60 * 60);

/// What a clock that is an hour ahead does, and what it does not.
#[tokio::test]
async fn a_clock_that_is_ahead_ends_sessions_early_and_never_makes_two() {
    let slow = Service::start(&[]).await;
    let fast = slow.sibling_ahead(HOUR).await;
    let first = slow.session_of("u").await;

    // To the fast one the session has been idle for too long: it expires, half an hour early.
    fast.get("/api/sessions/business/b/user/u/active").await.expect_problem(404, "no_active_session");
    slow.get("/api/sessions/business/b/user/u/active").await.expect(200);
    let second = fast.get_or_create("u").await.expect(201);
    let ended = slow.get(&format!("/api/sessions/{first}")).await.expect(200);
    assert_eq!((ended.string("status"), ended.string("endReason")), ("expired".to_owned(), "idle".to_owned()));

    // Its successor is active for both, until the fast one's time is over: longer, for the slow one.
    let found = slow.get_or_create("u").await.expect(200);
    assert_eq!(found.json(), second.json());
    slow.advance(HOUR);
    slow.get_or_create("u").await.expect(200);
    slow.advance(HOUR / 2);
    expect_clean(&slow).await;

    // What the slow one creates expires by its own time, and comes last in the history all the same.
    let third = slow.get_or_create("u").await.expect(201);
    let minutes = |answer: &Answer, member: &str| {
        chrono::DateTime::parse_from_rfc3339(&answer.string(member)).expect("a time").timestamp_millis()
    };
    assert_eq!(minutes(&third, "expiresAt"), slow.now().0 + 30 * 60 * 1000);
    assert!(minutes(&third, "createdAt") > minutes(&second, "createdAt"));
    let history = slow.get("/api/sessions/business/b/user/u/history").await.expect(200).json();
    let ids: Vec<_> = history.as_array().expect("a list").iter().map(|one| one["sessionId"].clone()).collect();
    assert_eq!(ids, [third.string("sessionId"), second.string("sessionId"), first].map(serde_json::Value::from));
    for service in [&slow, &fast] {
        expect_clean(service).await;
    }
}

#[tokio::test]
async fn services_whose_clocks_differ_never_make_two_active_sessions() {
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
                    // The other one may have ended it by now.
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
