//! The lifecycle of a session (docs/api.md, Sessions): expiry, activity, resuming, retention and versions. Tests set
//! the clock.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sessiond::session::Timestamp;

use crate::support::service::{Answer, Service};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
/// The default timeouts (docs/configuration.md, Sessions).
const IDLE: Duration = Duration::from_secs(30 * 60);
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
const RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

const ACTIVE: &str = "/api/sessions/business/b/user/u/active";
const HISTORY: &str = "/api/sessions/business/b/user/u/history";

#[tokio::test]
async fn idle_session_expires_at_the_exact_millisecond() {
    let service = Service::start(&[]).await;
    let created = service.get_or_create("u").await.expect(201).json();
    let path = path(&created);
    let expires_at = after(service.now(), IDLE);
    assert_eq!(created["expiresAt"], expires_at);

    service.advance(just_before(IDLE));
    assert_eq!(service.get(&path).await.expect(200).json(), created);
    assert_eq!(service.get(ACTIVE).await.expect(200).json(), created);

    service.advance(MILLISECOND);
    let expired = with(&created, json!({"status": "expired", "endedAt": expires_at, "endReason": "idle"}));
    assert_eq!(service.get(&path).await.expect(200).json(), expired, "an expiry does not change the version");
    service.get(ACTIVE).await.expect_problem(404, "no_active_session");
    let of_business = service.get("/api/sessions/business/b/active").await.expect(200);
    assert_eq!((of_business.json(), of_business.header("x-total-count")), (json!([]), Some("0")));

    let successor = service.get_or_create("u").await.expect(201).json();
    assert_ne!(successor["sessionId"], created["sessionId"]);
    assert_eq!(
        service.get(&path).await.expect(200).json(),
        expired,
        "the response is the same before and after the expiry is written"
    );
    assert_eq!(service.get(HISTORY).await.expect(200).json(), json!([successor, expired]));
}

#[tokio::test]
async fn heartbeats_extend_a_session_up_to_its_maximum_lifetime() {
    let service = Service::start(&[]).await;
    let created = service.get_or_create("u").await.expect(201).json();
    let ends_at = after(service.now(), MAX_LIFETIME);
    for _ in 0..24 * 3 - 1 {
        service.advance(20 * MINUTE);
        service.patch(&path(&created), json!({})).await.expect(200);
    }
    let last = service.get(&path(&created)).await.json();
    assert_eq!(last["expiresAt"], ends_at, "expiresAt is the earlier of idle timeout and maximum lifetime");
    service.advance(just_before(20 * MINUTE));
    let last = service.patch(&path(&created), json!({})).await.expect(200).json();
    assert_eq!((&last["status"], &last["expiresAt"]), (&json!("active"), &json!(ends_at)));

    service.advance(MILLISECOND);
    let expired = with(&last, json!({"status": "expired", "endedAt": ends_at, "endReason": "max_lifetime"}));
    assert_eq!(service.get(&path(&created)).await.expect(200).json(), expired);
    service.get(ACTIVE).await.expect_problem(404, "no_active_session");
    service.get_or_create("u").await.expect(201);
    assert_eq!(service.get(&path(&created)).await.expect(200).json(), expired);
}

/// The last step to the end of the lifetime may be shorter than the resolution.
#[tokio::test]
async fn a_session_in_use_lives_to_the_end_of_its_maximum_lifetime() {
    let calls: [(&str, Value); 2] = [("/messages", json!({"role": "user", "content": "x"})), ("", json!({}))];
    for (resource, body) in calls {
        let service = Service::start(&["--max-lifetime", "40m"]).await;
        let created = service.get_or_create("u").await.expect(201).json();
        let (start, path) = (service.now(), path(&created));
        for _ in 0..34 {
            service.advance(70 * SECOND);
            let response = match resource {
                "" => service.patch(&path, body.clone()).await,
                _ => service.post(&format!("{path}{resource}"), body.clone()).await,
            };
            assert!(response.status.is_success(), "{response:?}");
        }
        service.advance(just_before(20 * SECOND));
        assert_eq!(service.get(&path).await.json()["status"], "active");
        service.advance(MILLISECOND);
        let expired = service.get(&path).await.json();
        assert_eq!(expired["endedAt"], after(start, 40 * MINUTE));
        assert_eq!((&expired["status"], &expired["endReason"]), (&json!("expired"), &json!("max_lifetime")));
    }
}

#[tokio::test]
async fn appending_is_activity() {
    let service = Service::start(&[]).await;
    let created = service.get_or_create("u").await.json();
    service.advance(just_before(IDLE));
    service.post(&messages(&created), json!({"messageId": "m", "role": "user", "content": "Hello!"})).await.expect(201);
    let now = service.now();
    let times = json!({"messageCount": 1, "lastActivityAt": now.to_string(), "expiresAt": after(now, IDLE)});
    assert_eq!(
        service.get(&path(&created)).await.json(),
        with(&created, times),
        "activity does not change the version"
    );
}

#[tokio::test]
async fn resuming_restarts_both_timeouts() {
    let service = Service::start(&["--max-lifetime", "40m"]).await;
    let created = service.get_or_create("u").await.json();
    service.advance(HOUR);
    let resumed = service.patch(&path(&created), json!({"status": "active"})).await.expect(200).json();
    let now = service.now();
    let changes = json!({
        "version": 2, "updatedAt": now.to_string(), "lastActivityAt": now.to_string(), "expiresAt": after(now, IDLE),
    });
    assert_eq!(resumed, with(&created, changes), "a resumed session has no endedAt and no endReason");
    assert_eq!(service.get(ACTIVE).await.expect(200).json(), resumed);
    assert_eq!(service.get_or_create("u").await.expect(200).json(), resumed);

    service.advance(20 * MINUTE);
    let kept = service.patch(&path(&created), json!({})).await.json();
    assert_eq!(kept["expiresAt"], after(now, 40 * MINUTE), "the maximum lifetime counts from the resume");
}

#[tokio::test]
async fn sessions_are_readable_until_the_exact_end_of_retention() {
    for ending in ["ended", "expired"] {
        let service = Service::start(&[]).await;
        let created = service.get_or_create("u").await.json();
        service.post(&messages(&created), json!({"messageId": "m", "role": "user", "content": 1})).await.expect(201);
        service.advance(MINUTE);
        if ending == "ended" {
            service.patch(&path(&created), json!({"status": "ended"})).await.expect(200);
        } else {
            service.advance(29 * MINUTE);
        }
        service.advance(just_before(RETENTION));
        let session = service.get(&path(&created)).await.expect(200).json();
        assert_eq!(session["status"], ending);
        assert_eq!(service.get(HISTORY).await.expect(200).json(), json!([session]));
        assert_eq!(service.get(&messages(&created)).await.expect(200).json()[0]["content"], 1);

        service.advance(MILLISECOND);
        let before = service.probe.digest().await;
        service.get(&path(&created)).await.expect_problem(404, "session_not_found");
        service.get(&messages(&created)).await.expect_problem(404, "session_not_found");
        let replay = json!({"messageId": "m", "role": "user", "content": 1});
        service.post(&messages(&created), replay).await.expect_problem(404, "session_not_found");
        service.patch(&path(&created), json!({"title": "x"})).await.expect_problem(404, "session_not_found");
        service.patch(&path(&created), json!({"status": "active"})).await.expect_problem(404, "session_not_found");
        service.delete(&path(&created)).await.expect_problem(404, "session_not_found");
        assert_eq!(service.get(HISTORY).await.expect(200).json(), json!([]));
        assert_eq!(service.probe.digest().await, before, "{ending}: a rejected call wrote something");
        let erased = service.delete("/api/sessions/business/b/user/u").await.expect(200).json();
        assert_eq!(erased, json!({"deletedSessions": 0}), "{ending}");
    }
}

#[tokio::test]
async fn late_changes_do_not_extend_the_retention() {
    let service = Service::start(&[]).await;
    let created = service.get_or_create("u").await.json();
    service.advance(just_before(IDLE + RETENTION));
    // This also writes the expiry.
    service.patch(&path(&created), json!({"title": "late"})).await.expect(200);
    service.advance(MILLISECOND);
    service.get(&path(&created)).await.expect_problem(404, "session_not_found");
}

#[tokio::test]
async fn empty_patch_is_activity_and_keeps_the_version() {
    let service = Service::start(&[]).await;
    let created = service.get_or_create("u").await.json();
    // The default resolution.
    service.advance(MINUTE);
    let patched = service.patch(&path(&created), json!({})).await.expect(200);
    let now = service.now();
    let touched = with(&created, json!({"lastActivityAt": now.to_string(), "expiresAt": after(now, IDLE)}));
    assert_eq!(patched.json(), touched);
    assert_eq!(patched.header("etag"), Some("\"1\""));
    assert_eq!(service.get(&path(&created)).await.json(), touched);
}

#[tokio::test]
async fn reading_is_not_activity() {
    let service = Service::start(&[]).await;
    let created = service.get_or_create("u").await.json();
    service.advance(IDLE / 2);
    let before = service.probe.digest().await;
    let business = "/api/sessions/business/b/active".to_owned();
    for read in [path(&created), messages(&created), ACTIVE.to_owned(), HISTORY.to_owned(), business] {
        service.get(&read).await.expect(200);
    }
    assert_eq!(service.probe.digest().await, before);
    service.advance(IDLE / 2);
    service.get(ACTIVE).await.expect_problem(404, "no_active_session");
}

#[tokio::test]
async fn get_or_create_writes_activity_that_is_older_than_the_resolution() {
    let service = Service::start(&["--activity-resolution", "10s"]).await;
    let created = service.get_or_create("u").await.json();
    let before = service.probe.digest().await;
    service.advance(just_before(10 * SECOND));
    assert_eq!(
        service.get_or_create("u").await.expect(200).json(),
        created,
        "lastActivityAt may lag by the resolution"
    );
    assert_eq!(service.probe.digest().await, before);
    service.advance(MILLISECOND);
    let now = service.now();
    let touched = with(&created, json!({"lastActivityAt": now.to_string(), "expiresAt": after(now, IDLE)}));
    assert_eq!(service.get_or_create("u").await.expect(200).json(), touched);
    assert_eq!(service.get(&path(&created)).await.json(), touched);
    // A heartbeat has the same resolution, and writes nothing within it.
    service.advance(MILLISECOND);
    assert_eq!(service.patch(&path(&created), json!({})).await.json(), touched);
    service.advance(10 * SECOND);
    let patched = service.patch(&path(&created), json!({})).await.json();
    assert_eq!(patched["lastActivityAt"], service.now().to_string());
    assert_eq!(patched["expiresAt"], after(service.now(), IDLE));
}

#[tokio::test]
async fn the_default_resolution_is_a_minute_or_a_twentieth_of_the_idle_timeout() {
    for (idle, resolution) in [("1h", MINUTE), ("10m", MINUTE / 2)] {
        let service = Service::start(&["--idle-timeout", idle]).await;
        let created = service.get_or_create("u").await.json();
        service.advance(just_before(resolution));
        assert_eq!(service.get_or_create("u").await.json()["lastActivityAt"], created["createdAt"], "{idle}");
        service.advance(MILLISECOND);
        assert_eq!(service.get_or_create("u").await.json()["lastActivityAt"], service.now().to_string(), "{idle}");
    }
}

#[tokio::test]
async fn rejected_calls_write_nothing_not_even_a_detected_expiry() {
    let service = Service::start(&["--max-metadata-bytes", "64"]).await;
    let created = service.get_or_create("u").await.json();
    service.post(&messages(&created), json!({"messageId": "m", "role": "user", "content": 1})).await.expect(201);
    service.advance(IDLE);
    assert_eq!(service.get(&path(&created)).await.json()["status"], "expired");
    let before = service.probe.digest().await;

    let new = json!({"role": "user", "content": 1});
    service.post(&messages(&created), new).await.expect_problem(409, "session_not_active");
    let partly_new = json!([{"messageId": "m", "role": "user", "content": 1}, {"role": "user", "content": 2}]);
    service.post(&messages(&created), partly_new).await.expect_problem(409, "session_not_active");
    let other = json!({"messageId": "m", "role": "user", "content": 2});
    service.post(&messages(&created), other).await.expect_problem(409, "message_id_conflict");
    send_if_match(&service, Method::PATCH, &created, "\"2\"", json!({"status": "active"}))
        .await
        .expect_problem(412, "version_mismatch");
    send_if_match(&service, Method::DELETE, &created, "\"2\"", json!({})).await.expect_problem(412, "version_mismatch");
    let large = json!({"metadata": {"k": "v".repeat(64)}});
    service.patch(&path(&created), large).await.expect_problem(400, "invalid_request");
    service.patch(&path(&created), json!({"status": "expired"})).await.expect_problem(400, "invalid_request");
    let body = json!({"businessId": "b", "userId": "u", "ifActive": "end"});
    service.post("/api/sessions", body).await.expect_problem(400, "invalid_request");
    service.get(ACTIVE).await.expect_problem(404, "no_active_session");
    assert_eq!(service.probe.digest().await, before);

    // The next accepted change writes the expiry.
    service.patch(&path(&created), json!({})).await.expect(200);
    assert_ne!(service.probe.digest().await, before);
}

#[tokio::test]
async fn rejected_resume_writes_nothing() {
    let service = Service::start(&[]).await;
    let first = service.get_or_create("u").await.json();
    service.advance(IDLE);
    let second = service.get_or_create("u").await.expect(201).json();
    let before = service.probe.digest().await;
    service.advance(SECOND);
    let patch = json!({"status": "active", "title": "lost", "metadata": {"a": 1}});
    let rejected = service.patch(&path(&first), patch).await;
    rejected.expect_problem(409, "another_session_active");
    assert_eq!(rejected.member("activeSessionId"), second["sessionId"]);
    assert_eq!(service.probe.digest().await, before);
}

#[tokio::test]
async fn resume_can_replace_the_active_session() {
    let service = Service::start(&[]).await;
    let first = service.get_or_create("u").await.json();
    service.patch(&path(&first), json!({"status": "ended"})).await.expect(200);
    service.advance(SECOND);
    let second = service.get_or_create("u").await.expect(201).json();
    service.advance(SECOND);
    let now = service.now().to_string();
    let resumed = service.patch(&path(&first), json!({"status": "active", "ifActive": "replace"})).await.expect(200);
    assert_eq!((resumed.member("status"), resumed.member("version")), (json!("active"), json!(3)));
    assert_eq!((resumed.member("endedAt"), resumed.member("endReason")), (Value::Null, Value::Null));
    let ended = json!({"status": "ended", "endReason": "replaced", "endedAt": now, "updatedAt": now, "version": 2});
    assert_eq!(service.get(&path(&second)).await.json(), with(&second, ended));
    assert_eq!(service.get(ACTIVE).await.json(), resumed.json());
    let of_business = service.get("/api/sessions/business/b/active").await;
    assert_eq!((of_business.json(), of_business.header("x-total-count")), (json!([resumed.json()]), Some("1")));
    assert_eq!(service.get(HISTORY).await.json()[0], resumed.json(), "the last resume is first in the history");
}

#[tokio::test]
async fn create_with_replace_ends_the_active_session() {
    let service = Service::start(&[]).await;
    let first = service.get_or_create("u").await.json();
    let body = json!({"businessId": "b", "userId": "u", "ifActive": "replace"});
    let second = service.post("/api/sessions", body).await.expect(201).json();
    let next = Timestamp(service.now().0 + 1).to_string();
    assert_eq!(second["createdAt"], next, "createdAt strictly increases, even within one millisecond");
    assert_eq!(second["expiresAt"], after(service.now(), IDLE), "the expiry counts from now");
    let now = service.now().to_string();
    let ended = json!({"status": "ended", "endReason": "replaced", "endedAt": now, "updatedAt": now, "version": 2});
    assert_eq!(service.get(&path(&first)).await.json(), with(&first, ended));
}

#[tokio::test]
async fn ending_is_idempotent_and_not_activity() {
    let service = Service::start(&[]).await;
    let created = service.get_or_create("u").await.json();
    service.advance(MINUTE);
    let now = service.now().to_string();
    let ended = service.patch(&path(&created), json!({"status": "ended"})).await.expect(200).json();
    let changes = json!({"status": "ended", "endReason": "client", "endedAt": now, "updatedAt": now, "version": 2});
    assert_eq!(ended, with(&created, changes));
    service.get(ACTIVE).await.expect_problem(404, "no_active_session");

    service.advance(MINUTE);
    for patch in [json!({"status": "ended"}), json!({})] {
        assert_eq!(service.patch(&path(&created), patch).await.expect(200).json(), ended);
    }
    service.advance(MINUTE);
    let retitled = service.patch(&path(&created), json!({"title": "Opening hours"})).await.expect(200).json();
    let changes = json!({"title": "Opening hours", "version": 3, "updatedAt": service.now().to_string()});
    assert_eq!(retitled, with(&ended, changes), "a new title does not reactivate an ended session");
    service.get(ACTIVE).await.expect_problem(404, "no_active_session");
}

#[tokio::test]
async fn ending_an_expired_session_keeps_it_expired() {
    let service = Service::start(&[]).await;
    let created = service.get_or_create("u").await.json();
    service.advance(IDLE + MINUTE);
    let expired = service.get(&path(&created)).await.json();
    for patch in [json!({"status": "ended"}), json!({})] {
        assert_eq!(service.patch(&path(&created), patch).await.expect(200).json(), expired);
    }
    let retitled = service.patch(&path(&created), json!({"title": "t", "status": "ended"})).await.expect(200).json();
    let changes = json!({"title": "t", "version": 2, "updatedAt": service.now().to_string()});
    assert_eq!(retitled, with(&expired, changes));
}

#[tokio::test]
async fn each_change_increments_the_version_and_if_match_checks_it() {
    let service = Service::start(&[]).await;
    let created = service.get_or_create("u").await.json();
    let patch = json!({"title": "t", "metadata": {"a": {"b": 1}}, "locationId": "L2", "status": "ended"});
    let changed = service.patch(&path(&created), patch.clone()).await.expect(200);
    assert_eq!((changed.member("version"), changed.header("etag")), (json!(2), Some("\"2\"")));
    service.advance(SECOND);
    let again = service.patch(&path(&created), patch).await.expect(200);
    assert_eq!(again.json(), changed.json(), "the same values change nothing");
    let removed = service.patch(&path(&created), json!({"metadata": {"a": {"c": null}}})).await.expect(200);
    assert_eq!(removed.json(), changed.json(), "removing a missing member changes nothing");

    let before = service.probe.digest().await;
    for tags in ["\"1\"", "\"1\", \"3\"", "W/\"1\"", "2", "\"\""] {
        for method in [Method::PATCH, Method::DELETE] {
            let response = send_if_match(&service, method, &created, tags, json!({"title": "no"})).await;
            response.expect_problem(412, "version_mismatch");
        }
    }
    assert_eq!(service.probe.digest().await, before);
    for (tags, version) in [("\"2\"", 3), ("\"1\", \"3\"", 4), ("*", 5)] {
        let patch = json!({"title": format!("t{version}")});
        let response = send_if_match(&service, Method::PATCH, &created, tags, patch).await.expect(200);
        assert_eq!(response.member("version"), version, "{tags}");
    }
    send_if_match(&service, Method::DELETE, &created, "\"5\"", json!({})).await.expect(204);
    service.get(&path(&created)).await.expect_problem(404, "session_not_found");
}

#[tokio::test]
async fn backward_clock_moves_no_timestamp_back() {
    let service = Service::start(&["--activity-resolution", "0"]).await;
    let first = service.get_or_create("u").await.json();
    let start = service.now();
    service.advance(5 * MINUTE);
    service.post(&messages(&first), json!({"messageId": "m1", "role": "user", "content": 1})).await.expect(201);
    let mut last = service.patch(&path(&first), json!({"title": "t"})).await.expect(200).json();
    service.set_now(Timestamp(start.0 + 1000));

    assert_eq!(service.get_or_create("u").await.expect(200).json(), last);
    assert_eq!(service.patch(&path(&first), json!({})).await.expect(200).json(), last);
    let message = json!({"messageId": "m2", "role": "user", "content": 1});
    let message = service.post(&messages(&first), message).await.expect(201);
    assert_eq!(message.member("createdAt"), last["lastActivityAt"], "createdAt of messages never decreases");
    for patch in [json!({"title": "u"}), json!({"status": "ended"}), json!({"status": "active"})] {
        let response = service.patch(&path(&first), patch).await.expect(200).json();
        assert_no_time_moved_back(&last, &response);
        last = response;
    }

    service.set_now(Timestamp(start.0 - 1000));
    let body = json!({"businessId": "b", "userId": "u", "ifActive": "replace"});
    let second = service.post("/api/sessions", body.clone()).await.expect(201).json();
    assert_eq!(
        second["createdAt"],
        Timestamp(start.0 + 1001).to_string(),
        "createdAt is later than the last resume even when the clock goes back"
    );
    let replaced = service.get(&path(&first)).await.json();
    assert_no_time_moved_back(&last, &replaced);
    assert_eq!(service.get(HISTORY).await.json(), json!([second, replaced]));

    // The same for the other way to replace a session: a resume.
    service.set_now(Timestamp(start.0 + 2000));
    let second = service.patch(&path(&second), json!({"title": "v"})).await.expect(200).json();
    service.set_now(start);
    let resume = json!({"status": "active", "ifActive": "replace"});
    let resumed = service.patch(&path(&first), resume).await.expect(200).json();
    assert_no_time_moved_back(&replaced, &resumed);
    let after = service.get(&path(&second)).await.json();
    assert_no_time_moved_back(&second, &after);
    assert_eq!(service.get(HISTORY).await.json(), json!([resumed, after]), "the last resume is first");
}

/// Panics if a timestamp of the session decreased, or if the session ended before its last change.
fn assert_no_time_moved_back(before: &Value, after: &Value) {
    for name in ["createdAt", "updatedAt", "lastActivityAt", "expiresAt"] {
        // RFC 3339 in UTC sorts as text.
        assert!(after[name].as_str() >= before[name].as_str(), "{name}: {before} became {after}");
    }
    if !after["endedAt"].is_null() {
        assert!(after["endedAt"].as_str() >= before["updatedAt"].as_str(), "endedAt: {before} became {after}");
    }
}

fn just_before(duration: Duration) -> Duration {
    duration.saturating_sub(MILLISECOND)
}

async fn send_if_match(service: &Service, method: Method, session: &Value, tags: &str, body: Value) -> Answer {
    let headers = [("content-type", "application/json"), ("if-match", tags)];
    service.send(method, &path(session), &headers, body.to_string().into_bytes()).await
}

fn path(session: &Value) -> String {
    format!("/api/sessions/{}", session["sessionId"].as_str().expect("a session"))
}

fn messages(session: &Value) -> String {
    format!("{}/messages", path(session))
}

/// A copy of `document` with the members in `changes` replaced.
fn with(document: &Value, changes: Value) -> Value {
    let mut document = document.clone();
    let Value::Object(changes) = changes else { panic!("no object: {changes}") };
    for (name, value) in changes {
        document[name] = value;
    }
    document
}

fn after(time: Timestamp, duration: Duration) -> String {
    Timestamp(time.0 + i64::try_from(duration.as_millis()).expect("a short duration")).to_string()
}
