//! What one user can store: the newest messages of the newest sessions, at any rate of writes.

use futures_util::future::join_all;
use serde_json::{Value, json};
use sessiond::session::Partition;

use crate::support::audit::expect_clean;
use crate::support::process::Process;
use crate::support::redis;
use crate::support::scrape::Scrape;
use crate::support::service::{Answer, Service};

const HISTORY: &str = "/api/sessions/business/b/user/u/history?limit=100";

const MESSAGES_KEPT: usize = 100;
const SESSION_BYTES_MAX: usize = 20_000;
const SESSIONS_MAX: usize = 5;
/// Messages of one call, and characters of the content of each. The first two cases exceed the number of messages that
/// are kept, the others the bytes. The last one alone has more bytes than are kept.
const BATCHES: [(usize, usize); 4] = [(100, 10), (60, 10), (3, 6_000), (1, 30_000)];
/// An upper bound of the bytes of a session without messages, with its index entries.
const EMPTY_SESSION_BYTES: usize = 2_048;
/// An upper bound of the bytes of a message id, with the list's overhead for its message.
const MESSAGE_OVERHEAD_BYTES: usize = 160;

async fn replace(service: &Service) -> String {
    replace_with_key(service, None).await.expect(201).string("sessionId")
}

async fn replace_with_key(service: &Service, key: Option<&str>) -> Answer {
    let body = json!({"businessId": "b", "userId": "u", "ifActive": "replace"}).to_string();
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(key.map(|key| ("idempotency-key", key)));
    service.send(reqwest::Method::POST, "/api/sessions", &headers, body.into_bytes()).await
}

/// The ids of the user's sessions, last created or resumed first.
async fn history(service: &Service) -> Vec<String> {
    let sessions = service.get(HISTORY).await.expect(200).json();
    let ids = sessions.as_array().expect("a list").iter().map(|session| session["sessionId"].as_str());
    ids.map(|id| id.expect("an id").to_owned()).collect()
}

fn path(id: &str) -> String {
    format!("/api/sessions/{id}")
}

fn messages_path(id: &str) -> String {
    format!("/api/sessions/{id}/messages")
}

/// Panics unless the session is missing and no key names it.
async fn assert_gone(service: &Service, id: &str) {
    service.get(&path(id)).await.expect_problem(404, "session_not_found");
    service.get(&messages_path(id)).await.expect_problem(404, "session_not_found");
    let keys = service.probe.keys().await;
    assert!(!keys.iter().any(|key| key.contains(id)), "{id} is left in {keys:#?}");
}

fn json_bytes(messages: &[Value]) -> usize {
    messages.iter().map(|message| message.to_string().len()).sum()
}

/// Appends a batch, and adds its messages to the sent ones. Returns their bytes.
async fn append(service: &Service, id: &str, (count, characters): (usize, usize), sent: &mut Vec<Value>) -> usize {
    let content = "x".repeat(characters);
    let batch: Value = (0..count).map(|_| json!({"role": "user", "content": content})).collect();
    let appended = service.post(&messages_path(id), batch).await.expect(201).json();
    let appended = appended.as_array().expect("a list");
    sent.extend(appended.iter().cloned());
    json_bytes(appended)
}

/// Panics unless the session has exactly the newest messages that fit, or those of the last call.
async fn assert_newest_messages(service: &Service, id: &str, sent: &[Value], last_batch: (usize, usize)) {
    let listed = service.get(&format!("{}?limit=1000", messages_path(id))).await.expect(200).json();
    let listed = listed.as_array().expect("a list");
    let (_, newest) = sent.split_at(sent.len() - listed.len());
    assert_eq!(listed, newest, "not the newest messages");
    let fits = |messages: &[Value]| messages.len() <= MESSAGES_KEPT && json_bytes(messages) <= SESSION_BYTES_MAX;
    assert!(fits(listed) || listed.len() == last_batch.0, "{} messages, {}", listed.len(), json_bytes(listed));
    assert!(
        listed.len() == sent.len() || !fits(&sent[sent.len() - listed.len() - 1..]),
        "{} messages are fewer than fit",
        listed.len()
    );
}

#[tokio::test]
async fn one_user_cannot_exceed_the_bounds() {
    let limits = [
        ("--messages-kept", MESSAGES_KEPT),
        ("--max-session-bytes", SESSION_BYTES_MAX),
        ("--max-sessions-per-user", SESSIONS_MAX),
    ];
    let limits = limits.map(|(flag, value)| (flag, value.to_string()));
    let flags: Vec<_> = limits.iter().flat_map(|(flag, value)| [*flag, value.as_str()]).collect();
    let service = Service::start(&flags).await;

    // Another user of the same partition, whose keys are on the same server, and who shares some of them.
    let home = Partition::of_user("b", "u");
    let mut names = (0..).map(|number| format!("n{number}"));
    let neighbour = names.find(|user| Partition::of_user("b", user) == home).expect("a user");
    let ended = service.session_of(&neighbour).await;
    service.post(&messages_path(&ended), json!({"role": "user", "content": "first"})).await.expect(201);
    service.patch(&path(&ended), json!({"status": "ended"})).await.expect(200);
    let active = service.session_of(&neighbour).await;
    let neighbours_keys = service.probe.keys().await;
    let ended_before = service.get(&path(&ended)).await.json();
    let mut neighbours_messages = Vec::new();

    let (mut sessions, mut largest_batch, mut largest_memory) = (Vec::new(), 0, 0);
    for number in 0..3 * SESSIONS_MAX {
        let (id, mut sent) = (replace(&service).await, Vec::new());
        let mut last_batch = (0, 0);
        for turn in 0..=BATCHES.len() {
            last_batch = BATCHES[(number + turn) % BATCHES.len()];
            largest_batch = append(&service, &id, last_batch, &mut sent).await.max(largest_batch);
            assert_newest_messages(&service, &id, &sent, last_batch).await;

            let keys = service.probe.keys().await;
            let own = keys.iter().filter(|key| !neighbours_keys.contains(key));
            let sizes = own.map(async |key| {
                let bytes = service.probe.command(&["MEMORY", "USAGE", key, "SAMPLES", "0"]).await.as_u64();
                bytes.and_then(|bytes| usize::try_from(bytes).ok()).expect("a size")
            });
            largest_memory = join_all(sizes).await.iter().sum::<usize>().max(largest_memory);
        }
        sessions.insert(0, (id, sent, last_batch));

        assert_eq!(service.get_or_create(&neighbour).await.expect(200).string("sessionId"), active);
        let appended = service.post(&messages_path(&active), json!({"role": "user", "content": number})).await;
        neighbours_messages.push(appended.expect(201).json());
    }

    let session_bytes = SESSION_BYTES_MAX.max(largest_batch) + MESSAGES_KEPT * MESSAGE_OVERHEAD_BYTES;
    let bound = SESSIONS_MAX * (session_bytes + EMPTY_SESSION_BYTES);
    let written: usize = sessions.iter().map(|(_, sent, _)| json_bytes(sent)).sum();
    println!("{written} bytes written, {largest_memory} bytes of memory, {bound} allowed");
    assert!(written > 3 * bound, "{written} bytes do not test a bound of {bound}");
    assert!(largest_memory <= bound, "{largest_memory} bytes of memory, {bound} allowed");

    let (kept, removed) = sessions.split_at(SESSIONS_MAX);
    assert!(history(&service).await.iter().eq(kept.iter().map(|(id, ..)| id)), "the newest sessions are kept");
    for (id, sent, last_batch) in kept {
        assert_eq!(service.get(&path(id)).await.expect(200).member("messageCount"), sent.len());
        assert_newest_messages(&service, id, sent, *last_batch).await;
    }
    for (id, ..) in removed {
        assert_gone(&service, id).await;
    }
    assert_eq!(service.get(&path(&ended)).await.expect(200).json(), ended_before);
    assert_eq!(service.get(&messages_path(&ended)).await.json()[0]["content"], "first");
    assert_eq!(service.get(&messages_path(&active)).await.json(), Value::from(neighbours_messages));
    expect_clean(&service).await;
}

#[tokio::test]
async fn lowered_limit_is_reached_a_few_sessions_at_a_time() {
    let service = Service::start(&[]).await;
    let mut newest_first = Vec::new();
    for _ in 0..12 {
        let id = replace(&service).await;
        service.post(&messages_path(&id), json!({"role": "user", "content": 1})).await.expect(201);
        newest_first.insert(0, id);
    }
    let lowered = service.sibling(&["--max-sessions-per-user", "2"]).await;
    let before = service.probe.digest().await;
    lowered.get_or_create("u").await.expect(200);
    assert_eq!(service.probe.digest().await, before, "only a create removes sessions");
    for left in [9, 6, 3, 2, 2] {
        newest_first.insert(0, replace(&lowered).await);
        for id in newest_first.drain(left..) {
            assert_gone(&lowered, &id).await;
        }
        assert_eq!(history(&lowered).await, newest_first);
        expect_clean(&lowered).await;
    }
}

#[tokio::test]
async fn create_may_remove_the_session_that_it_replaces() {
    let service = Service::start(&["--max-sessions-per-user", "1"]).await;
    let mut last = replace(&service).await;
    for _ in 0..3 {
        service.post(&messages_path(&last), json!({"role": "user", "content": 1})).await.expect(201);
        let id = replace(&service).await;
        assert_gone(&service, &last).await;
        assert_eq!(history(&service).await, std::slice::from_ref(&id));
        expect_clean(&service).await;
        last = id;
    }
}

#[tokio::test]
async fn resumed_session_is_kept_as_a_new_one() {
    let service = Service::start(&["--max-sessions-per-user", "3"]).await;
    let [first, second, third] = [replace(&service).await, replace(&service).await, replace(&service).await];
    let resume = json!({"status": "active", "ifActive": "replace"});
    service.patch(&path(&first), resume.clone()).await.expect(200);
    let fourth = replace(&service).await;
    assert_eq!(history(&service).await, [fourth, first, third]);
    assert_gone(&service, &second).await;
    service.patch(&path(&second), resume).await.expect_problem(404, "session_not_found");
    expect_clean(&service).await;
}

/// The entry of a session that Redis has removed does not count.
#[tokio::test]
async fn entries_of_missing_sessions_are_removed_before_sessions() {
    let service = Service::start(&["--max-sessions-per-user", "3"]).await;
    let [first, second, third] = [replace(&service).await, replace(&service).await, replace(&service).await];
    let hash = service.probe.keys_of('s').await.into_iter().find(|key| key.ends_with(&second)).expect("its hash");
    service.probe.command(&["DEL", &hash]).await;
    let fourth = replace(&service).await;
    assert_eq!(history(&service).await, [fourth, third, first]);
    expect_clean(&service).await;
}

#[tokio::test]
async fn idempotency_key_of_a_removed_session_creates_it_again() {
    let service = Service::start(&["--max-sessions-per-user", "2"]).await;
    let key = Some("0123456789abcdef");
    let first = replace_with_key(&service, key).await.expect(201).string("sessionId");
    service.post(&messages_path(&first), json!({"role": "user", "content": 1})).await.expect(201);
    let [_, third] = [replace(&service).await, replace(&service).await];
    assert_gone(&service, &first).await;
    assert_eq!(replace_with_key(&service, key).await.expect(201).string("sessionId"), first);
    assert_eq!(service.get(&messages_path(&first)).await.expect(200).json(), json!([]));
    assert_eq!(replace_with_key(&service, key).await.expect(200).string("sessionId"), first);
    assert_eq!(history(&service).await, [first, third]);
    expect_clean(&service).await;
}

/// A session that the key creates again has an entry in the history already.
#[tokio::test]
async fn session_that_is_created_again_is_counted_once() {
    let service = Service::start(&["--max-sessions-per-user", "3", "--retention", "1h"]).await;
    let key = Some("0123456789abcdef");
    let first = replace_with_key(&service, key).await.expect(201).string("sessionId");
    service.patch(&path(&first), json!({"status": "ended"})).await.expect(200);
    service.advance(std::time::Duration::from_secs(60 * 60));
    let [second, third] = [replace(&service).await, replace(&service).await];
    assert_eq!(replace_with_key(&service, key).await.expect(201).string("sessionId"), first);
    assert_eq!(history(&service).await, [first, third, second]);
    expect_clean(&service).await;
}

#[tokio::test]
async fn removed_sessions_are_counted() {
    let flags = ["--key-prefix", "sd:bounds-metric", "--max-sessions-per-user", "2"];
    let (service, base) = Process::serve(&flags, &[("REDIS_URL", &redis::shared_url())]);
    let body = json!({"businessId": "b", "userId": "u", "ifActive": "replace"});
    for _ in 0..5 {
        let sent = reqwest::Client::new().post(format!("{base}/api/sessions")).json(&body).send().await;
        assert_eq!(sent.expect("a response").status(), 201);
    }
    let scrape = Scrape::of(&service).await;
    let (created, trimmed) = ("sessiond_sessions_created_total", "sessiond_sessions_trimmed_total");
    assert_eq!((scrape.value(created), scrape.value(trimmed)), (5, 3));
}

#[tokio::test]
async fn patches_of_messages_keep_the_bytes_of_a_session_bounded() {
    let service = Service::start(&["--max-session-bytes", "2000"]).await;
    let id = service.session_of("u").await;
    let messages = format!("{}/messages", path(&id));
    let message = |id: &str| json!({"messageId": id, "role": "user", "content": "x".repeat(600)});
    service.post(&messages, json!([message("a"), message("b")])).await.expect(201);
    let patch = |length: usize| json!({"metadata": {"k": "x".repeat(length)}});
    let (first, second) = (format!("{messages}/a"), format!("{messages}/b"));
    service.patch(&first, patch(200)).await.expect(200);
    let before = service.probe.digest().await;
    for (message, length) in [(&first, 600), (&second, 300)] {
        let rejected = service.patch(message, patch(length)).await;
        let errors = rejected.expect_problem(400, "invalid_request").member("errors");
        assert_eq!(errors[0]["field"], "metadata", "{errors}");
    }
    assert!(service.probe.digest().await == before, "a rejected patch changed Redis");
    // With a lower bound, a patch may still make a message smaller.
    let lowered = service.sibling(&["--max-session-bytes", "1000"]).await;
    lowered.patch(&first, patch(201)).await.expect_problem(400, "invalid_request");
    lowered.patch(&first, patch(199)).await.expect(200);
    lowered.patch(&first, json!({"metadata": null})).await.expect(200);
    service.patch(&second, patch(300)).await.expect(200);
    let listed = service.get(&messages).await.expect(200).json();
    assert!(json_bytes(listed.as_array().expect("a list")) <= 2000);
    expect_clean(&service).await;
}
