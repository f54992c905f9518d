//! The scripts of `lua/`: each is safe to run twice, uses the keys of one hash tag, and matches its header.
//!
//! A connection that drops after a write looks like one that dropped before it. So a client may send a script again,
//! immediately or after other clients have changed the session. These tests record the command that the service sent,
//! and send the same command again.

mod headers;
mod late;
mod readme;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sessiond::session::{TURN_CHUNKS_MAX, Timestamp};

use self::headers::Header;
use crate::support::monitor::{Command, Monitor};
use crate::support::redis::{self, RedisProbe};
use crate::support::service::{Answer, Service};

/// The commands that scripts may use to read.
const READS: [&str; 11] =
    ["EXISTS", "GET", "HGET", "HGETALL", "HMGET", "LINDEX", "LRANGE", "PEXPIRETIME", "ZCARD", "ZRANGE", "ZSCORE"];
/// The commands that scripts may use to write.
const WRITES: [&str; 12] =
    ["DEL", "HDEL", "HSET", "LSET", "LTRIM", "PEXPIREAT", "RPUSH", "SET", "SPUBLISH", "UNLINK", "ZADD", "ZREM"];
/// Identifiers that would make hash tags and separators in keys if they were not encoded.
const BUSINESS: &str = "{b}:%";
const USER: &str = "a}:{u";

/// Longer than the activity resolution, shorter than the idle timeout.
const TOUCH_DUE: Duration = Duration::from_secs(2 * 60);
/// Longer than the idle timeout.
const EXPIRED: Duration = Duration::from_secs(31 * 60);

/// The shared files: the first one precedes the scripts that change sessions, the first two those that append, all of
/// them those that close turns.
const SHARED: [&str; 3] = ["common", "append", "turn"];

/// One script of `lua/`.
struct Script {
    operation: String,
    /// Its file.
    source: String,
    /// The shared files that it uses.
    shared: String,
}

impl Script {
    /// What a service with these settings sends: the file, and after its first line the settings and the shared files.
    fn text(&self, settings: &str) -> String {
        let (engine, body) = self.source.split_once('\n').expect("a line that names the engine");
        let settings = if self.operation == "ready" { "" } else { settings };
        [engine, "\n", settings, &self.shared, body].concat()
    }
}

/// The settings of a service as scripts have them.
fn settings_of(service: &Service) -> String {
    let (sessions, lifecycle) = (&service.config.sessions, &service.config.sessions.lifecycle);
    let constants = [
        ("IDLE_MS", lifecycle.idle_timeout.as_millis()),
        ("MAX_LIFETIME_MS", lifecycle.max_lifetime.as_millis()),
        ("RETENTION_MS", lifecycle.retention.as_millis()),
        ("RESOLUTION_MS", lifecycle.activity_resolution.as_millis()),
        ("MESSAGES_KEPT", sessions.messages_kept as u128),
        ("SESSION_BYTES_MAX", sessions.session_bytes_max as u128),
        ("SESSIONS_MAX", sessions.sessions_per_user_max as u128),
        ("TURN_LEASE_MS", sessions.turn_lease.as_millis()),
        ("TURN_BYTES_MAX", sessions.turn_bytes_max as u128),
        ("TURN_CHUNKS_MAX", TURN_CHUNKS_MAX as u128),
    ];
    let values = constants.map(|(_, value)| value.to_string());
    format!("local {} = {}\n", constants.map(|(name, _)| name).join(", "), values.join(", "))
}

/// Every file of `lua/`.
static SCRIPTS: LazyLock<Vec<Script>> = LazyLock::new(|| {
    let [common, append, turn] =
        SHARED.map(|name| fs::read_to_string(project().join(format!("lua/{name}.lua"))).expect("a shared file"));
    let files = fs::read_dir(project().join("lua")).expect("lua/").map(|file| file.expect("a file").path());
    let scripts = files.filter(|path| path.extension().is_some_and(|extension| extension == "lua")).map(|path| {
        let operation = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let source = fs::read_to_string(path).expect("a script");
        let shared = if source.contains("by_name(") {
            vec![common.as_str(), &append, &turn]
        } else if source.contains("is_in_scope(") {
            vec![common.as_str(), &append]
        } else if source.contains("notify(") {
            vec![common.as_str()]
        } else {
            Vec::new()
        };
        Script { operation, source, shared: shared.concat() }
    });
    let mut scripts: Vec<_> = scripts.filter(|script| !SHARED.contains(&script.operation.as_str())).collect();
    scripts.sort_by(|one, other| one.operation.cmp(&other.operation));
    scripts
});

fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn script(operation: &str) -> &'static Script {
    SCRIPTS.iter().find(|script| script.operation == operation).expect("a script of this name")
}

/// One run of a script that the service requested.
#[derive(Clone, Debug)]
struct Run {
    operation: String,
    /// What Redis ran.
    text: String,
    keys: Vec<String>,
    args: Vec<String>,
    /// The commands that the script sent.
    inner: Vec<Vec<String>>,
    /// What the service responded to its client.
    response: Answer,
}

impl Run {
    /// The run of a script of `lua/` that this command of a service with these settings requested. `None` for another
    /// command.
    fn of(command: &Command, settings: &str, response: &Answer) -> Option<Self> {
        let named = command.words.get(1)?;
        let (script, text) = SCRIPTS.iter().map(|script| (script, script.text(settings))).find(|(_, text)| {
            match command.words[0].to_uppercase().as_str() {
                "EVALSHA" => *named == fred::util::sha1_hash(text),
                "EVAL" => named == text,
                _ => false,
            }
        })?;
        let key_count: usize = command.words[2].parse().expect("a number of keys");
        let (keys, args) = command.words[3..].split_at(key_count);
        Some(Self {
            operation: script.operation.clone(),
            text,
            keys: keys.to_vec(),
            args: args.to_vec(),
            inner: command.inner.clone(),
            response: response.clone(),
        })
    }

    /// Runs the script with the same arguments again. Uses EVAL, because another test may flush the server's scripts.
    async fn again(&self, probe: &RedisProbe) -> Vec<Option<String>> {
        let key_count = self.keys.len().to_string();
        let mut words = vec!["EVAL", &self.text, &key_count];
        words.extend(self.keys.iter().chain(&self.args).map(String::as_str));
        let reply = probe.command(&words).await.into_array();
        reply.into_iter().map(fred::types::Value::into_string).collect()
    }

    /// The turn's id among the arguments.
    fn turn_id(&self) -> &str {
        let index = Header::of(script(&self.operation)).args.iter().position(|arg| arg == "turn_id");
        &self.args[index.expect("an argument")]
    }

    /// The same run with another value for the argument of this name.
    fn with(mut self, name: &str, value: &str) -> Self {
        let index = Header::of(script(&self.operation)).args.iter().position(|arg| arg == name).expect("an argument");
        value.clone_into(&mut self.args[index]);
        self
    }
}

/// Calls the service. Returns every run of the script that the call causes.
async fn runs(service: &Service, operation: &str, status: u16, call: impl Future<Output = Answer>) -> Vec<Run> {
    let monitor = Monitor::start(&redis::shared());
    let response = call.await.expect(status);
    let mut commands = monitor.finish(&service.probe).await;
    // `ready` has neither keys nor arguments, so the runs of this service cannot be distinguished from those of others.
    let own = format!("{}:", service.config.redis.key_prefix);
    commands.retain(|command| operation == "ready" || command.words.iter().any(|word| word.starts_with(&own)));
    // If the server does not know a digest, the service sends EVAL after it, and only that runs the script. A command
    // on another connection, such as a check of the layout, may come between them.
    let is_repeated = |one: &Command, later: &Command| {
        let is_same = one.words[0] == "EVALSHA" && later.words[0] == "EVAL" && one.words[2..] == later.words[2..];
        is_same && one.inner.is_empty()
    };
    let settings = settings_of(service);
    let ran = |&index: &usize| !commands[index + 1..].iter().any(|later| is_repeated(&commands[index], later));
    let ran = (0..commands.len()).filter(ran).filter_map(|index| Run::of(&commands[index], &settings, &response));
    let runs: Vec<_> = ran.filter(|run| run.operation == operation).collect();
    assert!(!runs.is_empty(), "{operation} did not run for {response:?}");
    runs
}

/// Calls the service. Returns the only run of the script that the call causes.
async fn run(service: &Service, operation: &str, status: u16, call: impl Future<Output = Answer>) -> Run {
    let mut runs = runs(service, operation, status, call).await;
    assert!(runs.len() == 1 || operation == "ready", "{runs:#?}");
    runs.remove(0)
}

/// The body of a get-or-create that replaces an active session.
fn replacing(user_id: &str) -> Value {
    json!({"businessId": "b", "userId": user_id, "ifActive": "replace"})
}

// The runs of each script. `check` is called right after each run, with the tag that a second run must return.

async fn get_or_create_runs(check: impl AsyncFn(&Service, &Run, &str)) {
    let flags = ["--max-sessions-per-user", "3"];
    let service = Service::start(&flags).await;
    let operation = "get_or_create";
    let body = json!({"businessId": BUSINESS, "userId": USER, "title": "t", "metadata": {"a": "\"\n💬"}});
    let replace = json!({"businessId": BUSINESS, "userId": USER, "ifActive": "replace"});
    let created = run(&service, operation, 201, service.post("/api/sessions", body.clone())).await;
    check(&service, &created, "replayed").await;
    // Another service has no hint for the user, so it needs the script.
    let without_hint = service.sibling(&flags).await;
    let resumed = run(&service, operation, 200, without_hint.post("/api/sessions", body.clone())).await;
    check(&service, &resumed, "resumed").await;
    service.advance(TOUCH_DUE);
    let touched = run(&service, operation, 200, service.post("/api/sessions", body.clone())).await;
    check(&service, &touched, "resumed").await;
    let replaced = run(&service, operation, 201, service.post("/api/sessions", replace.clone())).await;
    check(&service, &replaced, "replayed").await;
    service.advance(EXPIRED);
    let after_expiry = run(&service, operation, 201, service.post("/api/sessions", body)).await;
    check(&service, &after_expiry, "replayed").await;
    // Redis removes a session at the end of its retention. The next create removes its entry in the history.
    service.probe.command(&["DEL", &session_key(&service, &created.response.string("sessionId"))]).await;
    let trimmed = run(&service, operation, 201, service.post("/api/sessions", replace.clone())).await;
    assert!(trimmed.inner.iter().any(|command| command[0] == "ZREM" && command[1].contains("}:h:")), "{trimmed:#?}");
    assert!(trimmed.inner.iter().all(|command| command[0] != "UNLINK"), "three sessions are left: {trimmed:#?}");
    check(&service, &trimmed, "replayed").await;
    // The user has as many sessions as are kept, so the oldest one is removed.
    let beyond = run(&service, operation, 201, service.post("/api/sessions", replace)).await;
    let oldest = session_key(&service, &replaced.response.string("sessionId"));
    assert!(beyond.inner.iter().any(|command| command[0] == "UNLINK" && command[1] == oldest), "{beyond:#?}");
    check(&service, &beyond, "replayed").await;
}

async fn update_runs(check: impl AsyncFn(&Service, &Run, &str)) {
    let service = Service::start(&[]).await;
    let user = json!({"businessId": BUSINESS, "userId": USER, "ifActive": "replace"});
    let first = service.post("/api/sessions", user.clone()).await.string("sessionId");
    let first = format!("/api/sessions/{first}");
    let patched = async |path: &str, body: Value, status: u16, tag: &str| {
        let run = run(&service, "update", status, service.patch(path, body)).await;
        check(&service, &run, tag).await;
    };
    patched(&first, json!({"title": "t", "locationId": "l", "sessionType": "{s}"}), 200, "updated").await;
    patched(&first, json!({"metadata": {"a": {"b": 1}}}), 200, "updated").await;
    patched(&first, json!({"metadata": {"a": {"b": null}}, "title": null}), 200, "updated").await;
    service.advance(TOUCH_DUE);
    patched(&first, json!({}), 200, "updated").await;
    patched(&first, json!({"status": "ended", "title": "over"}), 200, "updated").await;
    patched(&first, json!({"status": "ended"}), 200, "updated").await;
    patched(&first, json!({"title": "long over"}), 200, "updated").await;
    patched(&first, json!({"status": "active"}), 200, "updated").await;
    let second = service.post("/api/sessions", user).await.expect(201).string("sessionId");
    let second = format!("/api/sessions/{second}");
    service.post(&format!("{second}/messages"), json!({"role": "user", "content": 1})).await.expect(201);
    patched(&first, json!({"status": "active"}), 409, "another_active").await;
    patched(&first, json!({"status": "active", "ifActive": "replace"}), 200, "updated").await;
    service.advance(EXPIRED);
    // The first session is expired, but its stored status is still active.
    patched(&second, json!({"status": "active"}), 200, "updated").await;
    service.advance(EXPIRED);
    patched(&second, json!({}), 200, "updated").await;
}

async fn append_messages_runs(check: impl AsyncFn(&Service, &Run, &str)) {
    let service = Service::start(&["--messages-kept", "100", "--max-body-bytes", "2000000"]).await;
    let created = service.post("/api/sessions", json!({"businessId": BUSINESS, "userId": USER})).await;
    let session = format!("/api/sessions/{}", created.string("sessionId"));
    let path = format!("{session}/messages");
    let appended = async |body: Value, status: u16, tag: &str| {
        service.advance(Duration::from_millis(1));
        let run = run(&service, "append_messages", status, service.post(&path, body)).await;
        check(&service, &run, tag).await;
    };
    let message = |id: &str, content: Value| json!({"messageId": id, "role": "user", "content": content});
    appended(message("m{1}", json!({"z": 1, "a": "\"\n💬"})), 201, "known").await;
    appended(json!({"role": "tool", "content": [null], "metadata": {"k": "v"}}), 201, "known").await;
    appended(json!([message("m2", json!(2)), {"role": "system", "content": ""}]), 201, "known").await;
    let body = json!([message("m3", json!(3)), message("m2", json!(2))]);
    let partly_known = runs(&service, "append_messages", 201, service.post(&path, body)).await;
    assert_eq!(partly_known.len(), 2, "m2 is known: {partly_known:#?}");
    check(&service, &partly_known[1], "known").await;
    appended(message("m3", json!(3)), 200, "known").await;
    appended(json!([message("m4", json!(4)), message("m3", json!("three"))]), 409, "known").await;
    service.advance(TOUCH_DUE);
    let due = runs(&service, "append_messages", 201, service.post(&path, message("m6", json!(6)))).await;
    assert_eq!(due.iter().map(|run| run.keys.len()).collect::<Vec<_>>(), [3, 6], "the expiry moves: {due:#?}");
    check(&service, &due[1], "known").await;
    let hundred: Vec<_> = (0..100).map(|number| message(&format!("n{number}"), json!(number))).collect();
    appended(json!(hundred), 201, "known").await;
    let listed = service.get(&format!("{path}?limit=1000")).await.json();
    assert_eq!((listed.as_array().map(Vec::len), &listed[0]["seq"]), (Some(100), &json!(7)), "nothing was trimmed");
    service.patch(&session, json!({"status": "ended"})).await.expect(200);
    appended(message("m5", json!(5)), 409, "not_active").await;
    appended(message("n99", json!(99)), 200, "known").await;
    // One run returns at most a mebibyte of stored messages, so the last one confirms the others.
    let second = service.post("/api/sessions", json!({"businessId": BUSINESS, "userId": USER})).await;
    let path = format!("/api/sessions/{}/messages", second.string("sessionId"));
    let large: Vec<_> = (0..7).map(|number| message(&format!("l{number}"), json!("x".repeat(200 << 10)))).collect();
    for some in large.chunks(2) {
        service.post(&path, json!(some)).await.expect(201);
    }
    let rounds = runs(&service, "append_messages", 200, service.post(&path, json!(large))).await;
    assert_eq!(rounds.len(), 3, "{:?}", rounds.iter().map(|run| run.args.len()).collect::<Vec<_>>());
    check(&service, &rounds[2], "replayed").await;
}

/// A session with a message of the id `m{1}`. Returns the path of the message.
async fn message_to_change(service: &Service) -> String {
    let created = service.post("/api/sessions", json!({"businessId": BUSINESS, "userId": USER})).await;
    let messages = format!("/api/sessions/{}/messages", created.string("sessionId"));
    let message = json!({"messageId": "m\"{1}", "role": "user", "content": "\"\n💬", "metadata": {"a": 1}});
    service.post(&messages, json!([{"role": "user", "content": 1}, message])).await.expect(201);
    service.advance(Duration::from_millis(1));
    format!("{messages}/m%22%7B1%7D")
}

async fn update_message_runs(check: impl AsyncFn(&Service, &Run, &str)) {
    let service = Service::start(&[]).await;
    let path = message_to_change(&service).await;
    for patch in [json!({"a": null, "b": {"c": "\"\n💬"}}), json!({"b": {"d": 1}}), json!(null)] {
        let body = json!({"metadata": patch});
        let run = run(&service, "update_message", 200, service.patch(&path, body)).await;
        check(&service, &run, "updated").await;
    }
}

async fn redact_message_runs(check: impl AsyncFn(&Service, &Run, &str)) {
    let service = Service::start(&[]).await;
    let path = message_to_change(&service).await;
    for _ in 0..2 {
        let redacted = run(&service, "redact_message", 204, service.delete(&path)).await;
        check(&service, &redacted, "redacted").await;
    }
    let unknown = run(&service, "redact_message", 404, service.delete(&format!("{path}x"))).await;
    check(&service, &unknown, "no_message").await;
}

async fn delete_runs(check: impl AsyncFn(&Service, &Run, &str)) {
    let service = Service::start(&[]).await;
    let user = json!({"businessId": BUSINESS, "userId": USER, "ifActive": "replace"});
    let ended = format!("/api/sessions/{}", service.post("/api/sessions", user.clone()).await.string("sessionId"));
    let active = format!("/api/sessions/{}", service.post("/api/sessions", user).await.string("sessionId"));
    service.post(&format!("{active}/messages"), json!({"role": "user", "content": 1})).await.expect(201);
    for (path, others_left) in [(ended, 1), (active, 0)] {
        let deleted = run(&service, "delete", 204, service.delete(&path)).await;
        check(&service, &deleted, "missing").await;
        assert_eq!(service.probe.keys_of('a').await.len(), others_left, "the pointer is the active session's");
    }
    assert_eq!(service.probe.keys().await, Vec::<String>::new(), "every key of the user is removed");
}

/// The runs of the scripts of turns, of an update that closes one, and of a delete.
async fn turn_runs(check: impl AsyncFn(&Service, &Run, &str)) {
    let service = Service::start(&[]).await;
    let created = service.post("/api/sessions", json!({"businessId": BUSINESS, "userId": USER})).await;
    let session = format!("/api/sessions/{}", created.string("sessionId"));
    let turns = format!("{session}/turns");
    let post = async |operation: &str, path: &str, body: Value, status: u16, tag: &str| {
        let run = run(&service, operation, status, service.post(&format!("{turns}{path}"), body)).await;
        check(&service, &run, tag).await;
    };
    let begin = |turn_id: &str, if_open: &str| json!({"turnId": turn_id, "writer": "\"{w", "ifOpen": if_open});
    let some = |number: u64, from: u64| json!({"number": number, "from": from, "chunks": ["{\"\\", "💬"]});
    post("begin_turn", "", begin("t{1}", "reject"), 201, "known").await;
    post("append_chunks", "/t%7B1%7D/chunks", some(1, 0), 200, "appended").await;
    post("append_chunks", "/t%7B1%7D/chunks", some(1, 1), 409, "chunk_conflict").await;
    post("append_chunks", "/t%7B1%7D/chunks", some(1, 3), 409, "chunk_gap").await;
    post("append_chunks", "/t%7B1%7D/chunks", some(7, 2), 409, "taken").await;
    post("cancel_turn", "/t%7B1%7D/cancel", Value::Null, 202, "cancelled").await;
    post("begin_turn", "", begin("t2", "interrupt"), 201, "known").await;
    post("begin_turn", "", begin("t3", "discard"), 201, "known").await;
    post("append_chunks", "/t3/chunks", some(3, 0), 200, "appended").await;
    post("begin_turn", "", json!({"turnId": "t3", "writer": "x", "ifOpen": "takeover"}), 200, "known").await;
    post("end_turn", "/t3/end", json!({"number": 4, "status": "failed", "error": {"a": 1}}), 200, "not_open").await;
    post("begin_turn", "", begin("t3", "reject"), 200, "closed").await;
    post("begin_turn", "", begin("t4", "reject"), 201, "known").await;
    let ended = run(&service, "update", 200, service.patch(&session, json!({"status": "ended"}))).await;
    check(&service, &ended, "updated").await;
    let resumed = run(&service, "update", 200, service.patch(&session, json!({"status": "active"}))).await;
    check(&service, &resumed, "updated").await;
    let deleted = run(&service, "delete", 204, service.delete(&session)).await;
    check(&service, &deleted, "missing").await;
    assert_eq!(service.probe.keys().await, Vec::<String>::new(), "every key of the user is removed");
}

async fn erase_user_runs(check: impl AsyncFn(&Service, &Run, &str)) {
    let service = Service::start(&[]).await;
    // More sessions than one run erases.
    for _ in 0..102 {
        let user = json!({"businessId": BUSINESS, "userId": USER, "ifActive": "replace"});
        let created = service.post("/api/sessions", user).await.expect(201);
        let messages = format!("/api/sessions/{}/messages", created.string("sessionId"));
        service.post(&messages, json!({"role": "user", "content": 1})).await.expect(201);
    }
    // Redis removes a session at the end of its retention. The erasure does not count it.
    let gone = service.probe.keys_of('s').await.remove(0);
    service.probe.command(&["DEL", &gone, &gone.replace("}:s:", "}:m:"), &gone.replace("}:s:", "}:d:")]).await;
    let path = format!("/api/sessions/business/{}/user/{}", "%7Bb%7D:%25", "a%7D:%7Bu");
    let erased = runs(&service, "erase_user", 200, service.delete(&path)).await;
    assert_eq!((erased.len(), erased[0].response.member("deletedSessions")), (2, json!(101)));
    for run in erased {
        check(&service, &run, "erased").await;
    }
    let nothing = run(&service, "erase_user", 200, service.delete(&path)).await;
    assert_eq!(nothing.response.member("deletedSessions"), 0);
    check(&service, &nothing, "erased").await;
    assert_eq!(service.probe.keys().await, Vec::<String>::new(), "every key of the user is removed");
}

async fn ready_runs(check: impl AsyncFn(&Service, &Run, &str)) {
    let service = Service::start(&[]).await;
    let ready = run(&service, "ready", 200, service.get("/readyz")).await;
    check(&service, &ready, "ready").await;
}

// Safe to run twice.

/// Runs a script again immediately. Panics unless it changes nothing and returns the stored state.
async fn safe_to_run_twice(service: &Service, run: &Run, tag: &str) {
    let before = service.probe.digest().await;
    let reply = run.again(&service.probe).await;
    assert_eq!(service.probe.digest().await, before, "a second run wrote: {run:#?}");
    assert_eq!(reply[0].as_deref(), Some(tag), "{reply:?} to a second run of {run:#?}");
    match tag {
        "replayed" | "resumed" if run.operation == "get_or_create" => assert_session(service, run, &reply[1..]).await,
        "updated" if run.operation == "update_message" => {
            assert_eq!(reply[1..], [Some(run.response.text.clone())], "the message of the response");
        }
        "updated" => {
            assert!(
                reply[1..4].iter().all(|change| change.as_deref() == Some("")),
                "a second run changes nothing: {reply:?}"
            );
            assert_session(service, run, &reply[4..]).await;
        }
        "another_active" => assert_eq!(run.response.member("activeSessionId"), json!(reply[1])),
        "known" if run.operation == "append_messages" && run.response.status == 409 => {
            assert_eq!(reply[1..].len(), 2, "one message is in conflict: {reply:?}");
        }
        "known" if run.operation == "append_messages" => assert_messages(run, &reply[1..]),
        // No session was erased, and none remains.
        "erased" => assert_eq!(reply[1..], [Some("0".to_owned()), Some("0".to_owned())]),
        "replayed" | "missing" | "not_active" | "ready" | "redacted" | "no_message" | "not_open" | "taken"
        | "chunk_conflict" => {
            assert_eq!(reply.len(), 1, "{reply:?}");
        }
        "closed" => assert_eq!(reply[1..], [Some(String::new())], "a second run closes nothing"),
        "known" => {
            assert_eq!(reply[1].as_deref(), Some(""), "a second run closes nothing");
            assert_eq!(fields_of(&reply[2..])["turnId"], run.turn_id(), "{reply:?}");
        }
        "cancelled" => assert_eq!(fields_of(&reply[1..])["turnId"], run.turn_id(), "{reply:?}"),
        "appended" => assert_eq!(json!(reply[1]), run.response.member("nextChunk").to_string()),
        "chunk_gap" => assert_eq!(reply.len(), 2, "{reply:?}"),
        _ => panic!("no check for a second run with the tag {tag}"),
    }
}

/// Panics unless the fields (alternating names and values) are those that are stored, and those of the response.
async fn assert_session(service: &Service, run: &Run, flat: &[Option<String>]) {
    let fields = fields_of(flat);
    assert_eq!(fields, stored_fields(service, &fields["sessionId"]).await);
    let session = run.response.json();
    for (name, actual) in session.as_object().expect("a session") {
        let time = |ms: &String| json!(Timestamp(ms.parse().expect("a time")).to_string());
        let expected = match (name.as_str(), fields.get(name)) {
            (_, None) => Value::Null,
            ("messageCount" | "version", Some(number)) => json!(number.parse::<u64>().expect("a number")),
            ("metadata", Some(text)) => serde_json::from_str(text).expect("JSON"),
            (name, Some(ms)) if name.ends_with("At") => time(ms),
            (_, Some(text)) => json!(text),
        };
        assert_eq!(*actual, expected, "{name} of {run:#?}");
    }
}

/// Panics unless the known messages are those of the response that the script was not given as stored.
fn assert_messages(run: &Run, known: &[Option<String>]) {
    let messages = run.response.json();
    let messages = messages.as_array().cloned().unwrap_or_else(|| vec![messages]);
    let given = run.args[2..].chunks(2).map(|pair| pair[1].starts_with('{'));
    let new = (1..).zip(given).zip(messages).filter(|((_, is_stored), _)| !is_stored);
    let expected: Vec<_> =
        new.flat_map(|((position, _), message)| [Some(position.to_string()), Some(message.to_string())]).collect();
    assert_eq!(known, expected);
}

/// The fields of a reply, as alternating names and values.
fn fields_of(flat: &[Option<String>]) -> BTreeMap<String, String> {
    flat.chunks(2).map(|pair| (pair[0].clone().expect("a name"), pair[1].clone().expect("a value"))).collect()
}

async fn stored_fields(service: &Service, id: &str) -> BTreeMap<String, String> {
    let stored = service.probe.texts(&["HGETALL", &session_key(service, id)]).await;
    stored.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

fn session_key(service: &Service, id: &str) -> String {
    format!("{}:{{{}}}:s:{id}", service.config.redis.key_prefix, &id[..4])
}

#[tokio::test]
async fn get_or_create_is_safe_to_run_twice() {
    get_or_create_runs(safe_to_run_twice).await;
}

#[tokio::test]
async fn update_is_safe_to_run_twice() {
    update_runs(safe_to_run_twice).await;
}

#[tokio::test]
async fn append_messages_is_safe_to_run_twice() {
    append_messages_runs(safe_to_run_twice).await;
}

#[tokio::test]
async fn update_message_is_safe_to_run_twice() {
    update_message_runs(safe_to_run_twice).await;
}

#[tokio::test]
async fn redact_message_is_safe_to_run_twice() {
    redact_message_runs(safe_to_run_twice).await;
}

#[tokio::test]
async fn delete_is_safe_to_run_twice() {
    delete_runs(safe_to_run_twice).await;
}

#[tokio::test]
async fn erase_user_is_safe_to_run_twice() {
    erase_user_runs(safe_to_run_twice).await;
}

#[tokio::test]
async fn turns_are_safe_to_run_twice() {
    turn_runs(safe_to_run_twice).await;
}

#[tokio::test]
async fn ready_is_safe_to_run_twice() {
    ready_runs(safe_to_run_twice).await;
}

// One hash tag.

/// The part of a key that Redis Cluster hashes: the text between the first `{` and the next `}`.
fn hash_tag(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once('{')?;
    rest.split_once('}').map(|(tag, _)| tag).filter(|tag| !tag.is_empty())
}

/// The keys of a command, according to the server.
async fn keys_of(probe: &RedisProbe, command: &[String]) -> Vec<String> {
    let words: Vec<_> = ["COMMAND", "GETKEYS"].into_iter().chain(command.iter().map(String::as_str)).collect();
    probe.texts(&words).await
}

async fn one_hash_tag(service: &Service, run: &Run, _: &str) {
    let mut keys = run.keys.clone();
    // A channel is not a key for the server, but must be in the same slot.
    let (published, others): (Vec<_>, Vec<_>) = run.inner.iter().partition(|command| command[0] == "SPUBLISH");
    for command in others {
        keys.extend(keys_of(&service.probe, command).await);
    }
    assert!(keys.len() > run.keys.len(), "the script touched no key: {run:#?}");
    let partition = format!("{}:{{{}}}:", service.config.redis.key_prefix, hash_tag(&keys[0]).expect("a hash tag"));
    for command in published {
        assert!(command[1].starts_with(&partition), "{command:?} is not of {partition}");
    }
    for key in keys {
        assert!(key.starts_with(&partition), "{key} is not of {partition}: {} would fail in a cluster", run.operation);
        assert!(!key[partition.len()..].contains(['{', '}']), "{key} has an identifier that is not encoded");
    }
}

#[tokio::test]
async fn get_or_create_keeps_to_one_hash_tag() {
    get_or_create_runs(one_hash_tag).await;
}

#[tokio::test]
async fn update_keeps_to_one_hash_tag() {
    update_runs(one_hash_tag).await;
}

#[tokio::test]
async fn append_messages_keeps_to_one_hash_tag() {
    append_messages_runs(one_hash_tag).await;
}

#[tokio::test]
async fn update_message_keeps_to_one_hash_tag() {
    update_message_runs(one_hash_tag).await;
}

#[tokio::test]
async fn redact_message_keeps_to_one_hash_tag() {
    redact_message_runs(one_hash_tag).await;
}

#[tokio::test]
async fn delete_keeps_to_one_hash_tag() {
    delete_runs(one_hash_tag).await;
}

#[tokio::test]
async fn erase_user_keeps_to_one_hash_tag() {
    erase_user_runs(one_hash_tag).await;
}

#[tokio::test]
async fn turns_keep_to_one_hash_tag() {
    turn_runs(one_hash_tag).await;
}

#[tokio::test]
async fn ready_touches_no_key() {
    let no_key = async |_: &Service, run: &Run, _: &str| {
        assert_eq!((&run.keys, &run.args, &run.inner), (&vec![], &vec![], &vec![]));
    };
    ready_runs(no_key).await;
}

/// Has a Redis of its own, so the monitor sees the commands of this service only.
#[tokio::test]
async fn no_endpoint_searches_the_keyspace() {
    let folder = tempfile::tempdir().expect("a folder");
    let redis = redis::embedded(folder.path());
    let service = Service::start_on(&redis.socket(), &[]).await;
    service.wait_for_read_connection().await;
    let monitor = Monitor::start(&redis.socket());
    let called = call_every_endpoint(&service).await;
    let commands = monitor.finish(&service.probe).await;

    let document = service.get("/openapi.json").await.json();
    let paths = document["paths"].as_object().expect("paths").iter();
    let operations = paths.flat_map(|(path, item)| {
        item.as_object().expect("operations").keys().map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    assert_eq!(called, operations.collect(), "every endpoint must be called");

    let all = commands.iter().flat_map(|command| std::iter::once(&command.words).chain(&command.inner));
    let names: BTreeSet<_> = all.map(|words| words[0].to_uppercase()).collect();
    for needed in ["EVALSHA", "HGETALL", "HMGET", "HSET", "LRANGE"] {
        assert!(names.contains(needed), "the monitor missed {needed}: {names:?}");
    }
    // The cost of these commands is not bounded by their arguments, or no request should send them.
    for banned in ["FLUSHALL", "FLUSHDB", "HSCAN", "KEYS", "RANDOMKEY", "SCAN", "SMEMBERS", "SSCAN", "ZSCAN"] {
        assert!(!names.contains(banned), "an endpoint sends {banned}");
    }
    // The hashes of sessions and turns have a fixed set of fields; the hash of message ids has one field per message.
    let whole = commands.iter().filter(|command| command.words[0].eq_ignore_ascii_case("HGETALL"));
    let is_bounded = |key: &str| key.contains("}:s:") || key.contains("}:t:");
    assert!(whole.clone().all(|command| is_bounded(&command.words[1])), "{:#?}", whole.collect::<Vec<_>>());
}

/// Calls every endpoint at least once. Returns each as `METHOD /path/{parameter}`.
async fn call_every_endpoint(service: &Service) -> BTreeSet<String> {
    const MESSAGES: &str = "/api/sessions/{sessionId}/messages";
    const MESSAGE: &str = "/api/sessions/{sessionId}/messages/{messageId}";
    const TURN: &str = "/api/sessions/{sessionId}/turns/{turnId}";
    let turn = |rest: &str| format!("{TURN}{rest}");
    let id = service.session_of("u").await;
    let mut called = BTreeSet::new();
    for (method, path, body, status) in [
        ("GET", "/livez", None, 200),
        ("GET", "/readyz", None, 200),
        ("GET", "/openapi.json", None, 200),
        ("GET", "/docs", None, 200),
        ("GET", "/api/whoami", None, 200),
        ("POST", "/api/sessions", Some(json!({"businessId": "b", "userId": "u"})), 200),
        ("POST", "/api/sessions", Some(json!({"businessId": "b", "userId": "w"})), 201),
        ("GET", "/api/sessions/{sessionId}", None, 200),
        ("PATCH", "/api/sessions/{sessionId}", Some(json!({"title": "t", "metadata": {"a": 1}})), 200),
        ("PATCH", "/api/sessions/{sessionId}", Some(json!({"status": "ended"})), 200),
        ("PATCH", "/api/sessions/{sessionId}", Some(json!({"status": "active"})), 200),
        ("POST", MESSAGES, Some(json!({"messageId": "m", "role": "user", "content": 1})), 201),
        ("GET", MESSAGE, None, 200),
        ("PATCH", MESSAGE, Some(json!({"metadata": {"a": 1}})), 200),
        ("DELETE", MESSAGE, None, 204),
        ("GET", "/api/sessions/{sessionId}/messages", None, 200),
        ("GET", "/api/sessions/{sessionId}/messages?after=0", None, 200),
        ("GET", "/api/sessions/{sessionId}/messages?before=2", None, 200),
        ("POST", "/api/sessions/{sessionId}/turns", Some(json!({"turnId": "t", "writer": "w"})), 201),
        ("POST", &turn("/chunks"), Some(json!({"number": 1, "from": 0, "chunks": ["x"]})), 200),
        ("POST", &turn("/cancel"), None, 202),
        ("GET", TURN, None, 200),
        ("POST", &turn("/end"), Some(json!({"number": 1, "status": "completed"})), 200),
        ("GET", "/api/sessions/{sessionId}/events?last=1", None, 200),
        ("GET", "/api/sessions/business/{businessId}/events", None, 200),
        ("GET", "/api/sessions/business/{businessId}/active", None, 200),
        ("GET", "/api/sessions/business/{businessId}/user/{userId}/active", None, 200),
        ("GET", "/api/sessions/business/{businessId}/user/{userId}/history", None, 200),
        ("GET", "/api/sessions/business/{businessId}/user/{userId}/export", None, 200),
        ("POST", "/api/sessions", Some(replacing("u")), 201),
        ("DELETE", "/api/sessions/{sessionId}", None, 204),
        ("DELETE", "/api/sessions/business/{businessId}/user/{userId}", None, 200),
    ] {
        let filled = path.replace("{sessionId}", &id).replace("{messageId}", "m").replace("{turnId}", "t");
        let filled = filled.replace("{businessId}", "b").replace("{userId}", "u");
        let body = body.map_or_else(Vec::new, |body: Value| body.to_string().into_bytes());
        let name = Method::from_bytes(method.as_bytes()).expect("a method");
        service.send(name, &filled, &[("content-type", "application/json")], body).await.expect(status);
        called.insert(format!("{method} {}", path.split('?').next().unwrap_or_default()));
    }
    called
}

// A server without the scripts.

#[tokio::test]
async fn a_script_flush_is_not_visible_to_a_client() {
    let service = Service::start(&[]).await;
    let path = format!("/api/sessions/{}", service.session_of("u").await);
    let messages = format!("{path}/messages");
    for round in 0..3 {
        let id = format!("m{round}");
        let message = format!("{messages}/{id}");
        for (method, path, body, status) in [
            (Method::GET, "/readyz", json!(null), 200),
            (Method::POST, "/api/sessions", json!({"businessId": "b", "userId": "u"}), 200),
            (Method::POST, "/api/sessions", replacing("w"), 201),
            (Method::PATCH, &path, json!({"metadata": {"a": 1}}), 200),
            (Method::PATCH, &path, json!({"status": "ended"}), 200),
            (Method::PATCH, &path, json!({"status": "active"}), 200),
            (Method::POST, &messages, json!([{"messageId": id, "role": "user", "content": 1}]), 201),
            (Method::PATCH, &message, json!({"metadata": {"a": 1}}), 200),
            (Method::DELETE, &message, json!(null), 204),
            (Method::DELETE, "/api/sessions/business/b/user/w", json!(null), 200),
        ] {
            // When activity must be recorded, the service needs the script even if it has a hint.
            service.advance(TOUCH_DUE);
            service.probe.command(&["SCRIPT", "FLUSH"]).await;
            let body = body.to_string().into_bytes();
            service.send(method, path, &[("content-type", "application/json")], body).await.expect(status);
        }
    }
    let listed = service.get(&messages).await.json();
    assert_eq!(listed.as_array().map(Vec::len), Some(3), "each append ran once: {listed}");
    service.probe.command(&["SCRIPT", "FLUSH"]).await;
    service.delete(&path).await.expect(204);
}
