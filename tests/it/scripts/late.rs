//! Scripts that run a second time after another client changed the session: the second run does not undo that change.

use serde_json::json;

use super::{EXPIRED, Run, TOUCH_DUE, assert_messages, fields_of, replacing, run, runs, session_key, stored_fields};
use crate::support::service::Service;

/// The active session. Panics unless the session hashes, the pointers and the business's index agree.
async fn active_session(service: &Service) -> Option<String> {
    let (probe, now) = (&service.probe, service.now().0);
    let (mut by_hash, mut by_pointer, mut by_index) = (Vec::new(), Vec::new(), Vec::new());
    for key in probe.keys_of('s').await {
        let mut session = probe.hash(&key).await;
        let expires: i64 = session["expiresAt"].parse().expect("a time");
        if session["status"] == "active" && now < expires {
            by_hash.extend(session.remove("sessionId"));
        }
    }
    for key in probe.keys_of('a').await {
        by_pointer.extend(probe.text(&["GET", &key]).await);
    }
    for key in probe.keys_of('b').await {
        by_index.extend(probe.texts(&["ZRANGE", &key, &format!("({now}"), "+inf", "BYSCORE"]).await);
    }
    assert_eq!((&by_hash, &by_hash), (&by_pointer, &by_index), "hash, pointer and index differ");
    assert!(by_hash.len() <= 1, "two active sessions: {by_hash:?}");
    by_hash.pop()
}

/// Runs a script again. Panics if that changes anything. Returns the reply.
async fn again_without_effect(service: &Service, run: &Run) -> Vec<Option<String>> {
    let before = service.probe.digest().await;
    let reply = run.again(&service.probe).await;
    assert_eq!(service.probe.digest().await, before, "a late second run wrote: {run:#?}");
    active_session(service).await;
    reply
}

#[tokio::test]
async fn a_late_second_create_returns_its_own_session_and_activates_nothing() {
    let service = Service::start(&[]).await;
    let create = run(&service, "get_or_create", 201, service.post("/api/sessions", replacing("u"))).await;
    let first = create.response.string("sessionId");
    let replace = run(&service, "get_or_create", 201, service.post("/api/sessions", replacing("u"))).await;
    let second = replace.response.string("sessionId");

    // Both sessions have been replaced since. The second run must not replace the active session.
    let third = service.post("/api/sessions", replacing("u")).await.string("sessionId");
    for (run, id) in [(create, first), (replace, second)] {
        let reply = again_without_effect(&service, &run).await;
        assert_eq!(reply[0].as_deref(), Some("replayed"));
        assert_eq!(fields_of(&reply[1..]), stored_fields(&service, &id).await, "the reply is the session as it is now");
        assert!(reply.contains(&Some("replaced".to_owned())), "{reply:?}");
    }
    assert_eq!(active_session(&service).await, Some(third));
}

#[tokio::test]
async fn a_late_second_create_after_an_end_leaves_it_ended() {
    let service = Service::start(&[]).await;
    let create = run(&service, "get_or_create", 201, service.get_or_create("u")).await;
    let path = format!("/api/sessions/{}", create.response.string("sessionId"));
    service.patch(&path, json!({"status": "ended"})).await.expect(200);
    again_without_effect(&service, &create).await;
    assert_eq!(active_session(&service).await, None);
}

/// The delete removes every trace of the first run, so the second run creates the session. It does not restore deleted
/// data: the session is empty.
#[tokio::test]
async fn a_late_second_create_after_a_delete_restores_no_data() {
    let service = Service::start(&[]).await;
    let create = run(&service, "get_or_create", 201, service.get_or_create("u")).await;
    let id = create.response.string("sessionId");
    let path = format!("/api/sessions/{id}");
    service.patch(&path, json!({"title": "secret"})).await.expect(200);
    service.post(&format!("{path}/messages"), json!({"role": "user", "content": "secret"})).await.expect(201);
    service.delete(&path).await.expect(204);

    assert_eq!(create.again(&service.probe).await[0].as_deref(), Some("created"));
    assert_eq!(active_session(&service).await, Some(id.clone()));
    assert_eq!(service.get(&path).await.expect(200).json(), create.response.json());
    assert_eq!(service.get(&format!("{path}/messages")).await.json(), json!([]));

    // If another create came first, its session is the user's, and the second run creates none.
    service.delete(&path).await.expect(204);
    let other = service.session_of("u").await;
    let reply = again_without_effect(&service, &create).await;
    assert_eq!(reply[0].as_deref(), Some("resumed"));
    assert_eq!(fields_of(&reply[1..])["sessionId"], other);
    service.get(&path).await.expect_problem(404, "session_not_found");
}

/// A session that a later create removed as the user's oldest one is missing, as after a delete.
#[tokio::test]
async fn a_late_second_create_after_its_session_was_removed_finds_the_active_one() {
    let service = Service::start(&["--max-sessions-per-user", "2"]).await;
    let create = run(&service, "get_or_create", 201, service.get_or_create("u")).await;
    service.post("/api/sessions", replacing("u")).await.expect(201);
    let beyond = run(&service, "get_or_create", 201, service.post("/api/sessions", replacing("u"))).await;
    service.get(&format!("/api/sessions/{}", create.response.string("sessionId"))).await.expect(404);
    for run in [&create, &beyond] {
        let reply = again_without_effect(&service, run).await;
        assert_ne!(reply[0].as_deref(), Some("created"));
        assert_eq!(fields_of(&reply[1..])["sessionId"], beyond.response.string("sessionId"));
    }
}

#[tokio::test]
async fn a_late_second_touch_does_not_move_times_back() {
    let service = Service::start(&[]).await;
    let id = service.session_of("u").await;
    service.advance(TOUCH_DUE);
    let touch = run(&service, "get_or_create", 200, service.get_or_create("u")).await;
    let path = format!("/api/sessions/{id}");
    service.advance(TOUCH_DUE);
    let heartbeat = run(&service, "update", 200, service.patch(&path, json!({}))).await;
    service.advance(TOUCH_DUE);
    let newer = service.patch(&path, json!({})).await.expect(200);
    for run in [touch, heartbeat.clone()] {
        again_without_effect(&service, &run).await;
    }
    assert_eq!(service.get(&path).await.json(), newer.json());

    // It does not reactivate a session that has a successor either, although the session was active at the time of the
    // first run.
    service.advance(EXPIRED);
    let successor = service.session_of("u").await;
    again_without_effect(&service, &heartbeat).await;
    assert_eq!(active_session(&service).await, Some(successor));
}

#[tokio::test]
async fn a_late_second_update_does_not_restore_its_values() {
    let service = Service::start(&[]).await;
    let path = format!("/api/sessions/{}", service.session_of("u").await);
    let body = json!({"title": "first", "metadata": {"by": "first"}});
    let update = run(&service, "update", 200, service.patch(&path, body)).await;
    // As many later updates as the session remembers besides the first.
    for title in ["second", "third", "last"] {
        let last = service.patch(&path, json!({"title": title, "metadata": {"by": title}})).await.expect(200);
        let reply = again_without_effect(&service, &update).await;
        assert_eq!(reply[0].as_deref(), Some("updated"));
        assert_eq!(service.get(&path).await.json(), last.json());
    }
}

#[tokio::test]
async fn a_late_second_end_or_resume_keeps_later_changes() {
    let service = Service::start(&[]).await;
    let first = service.session_of("u").await;
    let path = format!("/api/sessions/{first}");
    let end = run(&service, "update", 200, service.patch(&path, json!({"status": "ended"}))).await;
    let resume = run(&service, "update", 200, service.patch(&path, json!({"status": "active"}))).await;
    again_without_effect(&service, &end).await;
    assert_eq!(active_session(&service).await.as_ref(), Some(&first));
    service.patch(&path, json!({"status": "ended"})).await.expect(200);
    again_without_effect(&service, &resume).await;
    assert_eq!(active_session(&service).await, None);

    let second = service.session_of("u").await;
    let body = json!({"status": "active", "ifActive": "replace"});
    let take_over = run(&service, "update", 200, service.patch(&path, body.clone())).await;
    service.patch(&format!("/api/sessions/{second}"), body).await.expect(200);
    again_without_effect(&service, &take_over).await;
    assert_eq!(active_session(&service).await, Some(second));
}

#[tokio::test]
async fn a_late_second_append_appends_nothing() {
    let service = Service::start(&[]).await;
    let path = format!("/api/sessions/{}", service.session_of("u").await);
    let body = json!([{"role": "user", "content": "a"}, {"messageId": "m", "role": "user", "content": "b"}]);
    let append = run(&service, "append_messages", 201, service.post(&format!("{path}/messages"), body)).await;
    service.post(&format!("{path}/messages"), json!({"role": "user", "content": "c"})).await.expect(201);
    assert_messages(&append, &again_without_effect(&service, &append).await[1..]);
    service.patch(&path, json!({"status": "ended"})).await.expect(200);
    assert_messages(&append, &again_without_effect(&service, &append).await[1..]);
    service.delete(&path).await.expect(204);
    assert_eq!(again_without_effect(&service, &append).await, [Some("missing".to_owned())]);
}

#[tokio::test]
async fn a_late_second_append_notices_that_a_known_message_has_changed() {
    let service = Service::start(&[]).await;
    let path = format!("/api/sessions/{}/messages", service.session_of("u").await);
    let message = |id: &str| json!({"messageId": id, "role": "user", "content": "secret"});
    service.post(&path, message("m")).await.expect(201);
    let body = json!([message("n"), message("m")]);
    let append = runs(&service, "append_messages", 201, service.post(&path, body)).await.remove(1);
    service.delete(&format!("{path}/m")).await.expect(204);
    let redacted = again_without_effect(&service, &append).await.pop().flatten().expect("a message");
    assert!(redacted.contains(r#""content":null"#), "{redacted}");
    let [ids] = &service.probe.keys_of('d').await[..] else { panic!("one hash of ids") };
    service.probe.command(&["HDEL", ids, "m"]).await;
    assert_eq!(again_without_effect(&service, &append).await, [Some("changed".to_owned())]);
}

#[tokio::test]
async fn a_late_second_patch_or_redaction_of_a_message_changes_nothing() {
    let service = Service::start(&[]).await;
    let path = format!("/api/sessions/{}/messages", service.session_of("u").await);
    for id in ["m", "n"] {
        service.post(&path, json!({"messageId": id, "role": "user", "content": "secret"})).await.expect(201);
    }
    let message = format!("{path}/m");
    let first = run(&service, "update_message", 200, service.patch(&message, json!({"metadata": {"a": 1}}))).await;
    let undo = json!({"metadata": {"a": null}});
    let undone = run(&service, "update_message", 200, service.patch(&message, undo)).await;
    // The message is again the one from which the first run started.
    let reply = again_without_effect(&service, &first).await;
    assert_eq!(reply, [Some("updated".to_owned()), Some(undone.response.text.clone())]);
    // A new call that started from an earlier state of the message is rejected.
    let stale = undone.with("mutation_id", "_new_call_");
    assert_eq!(again_without_effect(&service, &stale).await, [Some("stale".to_owned())]);

    let redact = run(&service, "redact_message", 204, service.delete(&message)).await;
    let redacted = service.get(&message).await.expect(200).text;
    service.advance(TOUCH_DUE);
    assert_eq!(again_without_effect(&service, &redact).await, [Some("redacted".to_owned())]);
    let reply = again_without_effect(&service, &first).await;
    assert_eq!(reply, [Some("updated".to_owned()), Some(redacted.clone())]);
    assert_eq!(service.get(&message).await.expect(200).text, redacted);

    let session = path.trim_end_matches("/messages");
    service.delete(session).await.expect(204);
    for run in [&first, &stale, &redact] {
        assert_eq!(again_without_effect(&service, run).await, [Some("missing".to_owned())]);
    }
}

#[tokio::test]
async fn a_late_second_run_does_not_touch_a_deleted_session_or_its_successor() {
    let service = Service::start(&[]).await;
    let path = format!("/api/sessions/{}", service.session_of("u").await);
    let update = run(&service, "update", 200, service.patch(&path, json!({"title": "t"}))).await;
    let delete = run(&service, "delete", 204, service.delete(&path)).await;
    for with_successor in [false, true] {
        if with_successor {
            service.session_of("u").await;
        }
        for run in [&update, &delete] {
            assert_eq!(again_without_effect(&service, run).await, [Some("missing".to_owned())]);
        }
    }
}

/// An erasure runs until no session remains, so it may also erase a session that is created before the response. It
/// erases such a session completely or not at all.
#[tokio::test]
async fn a_late_second_erasure_erases_whole_sessions() {
    let service = Service::start(&[]).await;
    service.session_of("u").await;
    let erase = run(&service, "erase_user", 200, service.delete("/api/sessions/business/b/user/u")).await;
    let path = format!("/api/sessions/{}", service.session_of("u").await);
    service.post(&format!("{path}/messages"), json!({"role": "user", "content": "c"})).await.expect(201);
    let neighbour = service.session_of("other").await;
    let reply = erase.again(&service.probe).await;
    assert_eq!(reply, ["erased", "1", "0"].map(|word| Some(word.to_owned())));
    assert_eq!(active_session(&service).await.as_ref(), Some(&neighbour));
    assert_eq!(service.probe.keys_of('s').await, [session_key(&service, &neighbour)]);
    for kind in ['m', 'd'] {
        assert_eq!(service.probe.keys_of(kind).await, Vec::<String>::new());
    }
}

/// Rejections that clients cause only by a race: the version changed after the service read it.
#[tokio::test]
async fn a_changed_version_is_rejected_and_nothing_is_written() {
    let service = Service::start(&[]).await;
    let path = format!("/api/sessions/{}", service.session_of("u").await);
    let update = run(&service, "update", 200, service.patch(&path, json!({"title": "t"}))).await;
    let update = update.with("mutation_id", "_new_call_");
    let doomed = format!("/api/sessions/{}", service.session_of("other").await);
    let delete = run(&service, "delete", 204, service.delete(&doomed)).await;
    let delete = Run { keys: update.keys.clone(), ..delete }.with("id", &update.args[1]);
    for (run, tag) in [
        (update.clone().with("if_version", "1"), "version_mismatch"),
        (update.with("base_metadata", "={\"a\":1}"), "stale"),
        (delete.with("if_version", "1"), "version_mismatch"),
    ] {
        assert_eq!(again_without_effect(&service, &run).await, [Some(tag.to_owned())]);
    }
    assert_eq!(service.get(&path).await.expect(200).header("etag"), Some("\"2\""));
}
