//! The scripts of `lua/`: each is safe to run twice, keeps to one hash tag, and does what its header says.
//!
//! A connection that drops after a write looks like one that dropped before it, so a client may send a script again, now or
//! after others changed the session. These tests catch the command that the service sent, and send the very same again.

mod headers;
mod late;
mod readme;

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sessiond::session::Timestamp;

use self::headers::Header;
use crate::support::monitor::{Command, Monitor};
use crate::support::redis::{self, Look};
use crate::support::service::{Answer, Service};

/// Commands of the scripts that only read.
const READS: [&str; 10] =
    ["EXISTS", "GET", "HGET", "HMGET", "PEXPIRETIME", "XLEN", "XRANGE", "ZCARD", "ZRANGE", "ZSCORE"];
/// Commands of the scripts that write.
const WRITES: [&str; 10] = ["DEL", "HDEL", "HSET", "PEXPIREAT", "SET", "UNLINK", "XADD", "XTRIM", "ZADD", "ZREM"];
/// A business and a user that would open hash tags of their own and split keys if they were not encoded.
const BUSINESS: &str = "{b}:%";
const USER: &str = "a}:{u";

/// Longer than the activity resolution, shorter than the idle timeout.
const TOUCH_DUE: Duration = Duration::from_secs(2 * 60);
/// Longer than the idle timeout.
const EXPIRED: Duration = Duration::from_secs(31 * 60);

/// One file of `lua/`.
struct Script {
    verb: String,
    source: String,
    sha1: String,
}

/// Every file of `lua/`.
static SCRIPTS: LazyLock<Vec<Script>> = LazyLock::new(|| {
    let files = fs::read_dir(project().join("lua")).expect("lua/").map(|file| file.expect("a file").path());
    let scripts = files.filter(|path| path.extension().is_some_and(|extension| extension == "lua")).map(|path| {
        let verb = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let source = fs::read_to_string(path).expect("a script");
        let sha1 = fred::util::sha1_hash(&source);
        Script { verb, source, sha1 }
    });
    let mut scripts: Vec<_> = scripts.collect();
    scripts.sort_by(|one, other| one.verb.cmp(&other.verb));
    scripts
});

fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn script(verb: &str) -> &'static Script {
    SCRIPTS.iter().find(|script| script.verb == verb).expect("a script of this name")
}

/// The `FIELDS` of a script, in their order.
fn fields_of(verb: &str) -> Vec<String> {
    let (_, rest) = script(verb).source.split_once("\nlocal FIELDS = {\n").expect("a table of fields");
    let (table, _) = rest.split_once("\n}").expect("its end");
    table.split('\'').skip(1).step_by(2).map(str::to_owned).collect()
}

/// One run of a script, as the service asked for it.
#[derive(Clone, Debug)]
struct Run {
    verb: String,
    keys: Vec<String>,
    args: Vec<String>,
    /// What the script sent.
    inner: Vec<Vec<String>>,
    /// What the service answered its client.
    answer: Answer,
}

impl Run {
    /// The run that a command is, if it is one of a script of ours.
    fn of(command: &Command, answer: &Answer) -> Option<Self> {
        let text = command.words.get(1)?;
        let is_named = |script: &&Script| match command.words[0].to_uppercase().as_str() {
            "EVALSHA" => *text == script.sha1,
            "EVAL" => *text == script.source,
            _ => false,
        };
        let script = SCRIPTS.iter().find(is_named)?;
        let key_count: usize = command.words[2].parse().expect("a number of keys");
        let (keys, args) = command.words[3..].split_at(key_count);
        Some(Self {
            verb: script.verb.clone(),
            keys: keys.to_vec(),
            args: args.to_vec(),
            inner: command.inner.clone(),
            answer: answer.clone(),
        })
    }

    /// Runs the script with the same arguments again. By its text: another test may flush the server's scripts.
    async fn again(&self, look: &Look) -> Vec<Option<String>> {
        let key_count = self.keys.len().to_string();
        let mut words = vec!["EVAL", &script(&self.verb).source, &key_count];
        words.extend(self.keys.iter().chain(&self.args).map(String::as_str));
        let reply = look.command(&words).await.into_array();
        reply.into_iter().map(fred::types::Value::into_string).collect()
    }

    /// The same run with another value for an argument of the header.
    fn with(mut self, name: &str, value: &str) -> Self {
        let place = Header::of(script(&self.verb)).args.iter().position(|arg| arg == name).expect("an argument");
        value.clone_into(&mut self.args[place]);
        self
    }
}

/// Every run of a script that a call to the service causes.
async fn runs(service: &Service, verb: &str, status: u16, call: impl Future<Output = Answer>) -> Vec<Run> {
    let monitor = Monitor::start(&redis::shared());
    let answer = call.await.expect(status);
    let mut commands = monitor.finish(&service.look).await;
    // `ready` has neither keys nor arguments: every service sends the same.
    let own = format!("{}:", service.config.key_prefix);
    commands.retain(|command| verb == "ready" || command.words.iter().any(|word| word.starts_with(&own)));
    // A digest that the server does not know is followed by the text; only that one runs.
    let is_repeated = |one: &Command, next: &Command| {
        one.words[0] == "EVALSHA" && next.words[0] == "EVAL" && one.words[2..] == next.words[2..]
    };
    let ran = |&place: &usize| commands.get(place + 1).is_none_or(|next| !is_repeated(&commands[place], next));
    let ran = (0..commands.len()).filter(ran).filter_map(|place| Run::of(&commands[place], &answer));
    let runs: Vec<_> = ran.filter(|run| run.verb == verb).collect();
    assert!(!runs.is_empty(), "{verb} did not run for {answer:?}");
    runs
}

/// The one run of a script that a call to the service causes.
async fn run(service: &Service, verb: &str, status: u16, call: impl Future<Output = Answer>) -> Run {
    let mut runs = runs(service, verb, status, call).await;
    assert!(runs.len() == 1 || verb == "ready", "{runs:#?}");
    runs.remove(0)
}

/// The body of a get-or-create that begins a new conversation.
fn replacing(user_id: &str) -> Value {
    json!({"businessId": "b", "userId": user_id, "ifActive": "replace"})
}

// What each script is asked to do. Every check below is made right after the run, with the tag that a second run of the
// same must answer.

async fn get_or_create_runs(check: impl AsyncFn(&Service, &Run, &str)) {
    let service = Service::start(&[]).await;
    let verb = "get_or_create";
    let body = json!({"businessId": BUSINESS, "userId": USER, "title": "t", "metadata": {"a": "\"\n💬"}});
    let replace = json!({"businessId": BUSINESS, "userId": USER, "ifActive": "replace"});
    let created = run(&service, verb, 201, service.post("/api/sessions", body.clone())).await;
    check(&service, &created, "replayed").await;
    // A service that has not seen the user yet cannot know without the script.
    let sibling = service.sibling(&[]).await;
    let resumed = run(&service, verb, 200, sibling.post("/api/sessions", body.clone())).await;
    check(&service, &resumed, "resumed").await;
    service.advance(TOUCH_DUE);
    let touched = run(&service, verb, 200, service.post("/api/sessions", body.clone())).await;
    check(&service, &touched, "resumed").await;
    let replaced = run(&service, verb, 201, service.post("/api/sessions", replace.clone())).await;
    check(&service, &replaced, "replayed").await;
    service.advance(EXPIRED);
    let after_expiry = run(&service, verb, 201, service.post("/api/sessions", body)).await;
    check(&service, &after_expiry, "replayed").await;
    // What Redis does to a session whose retention is over. Its index entry is trimmed by the next create.
    service.look.command(&["DEL", &session_key(&service, &created.answer.string("sessionId"))]).await;
    let trimmed = run(&service, verb, 201, service.post("/api/sessions", replace)).await;
    assert!(trimmed.inner.iter().any(|command| command[0] == "ZREM" && command[1].contains("}:h:")), "{trimmed:#?}");
    check(&service, &trimmed, "replayed").await;
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
    // The first is expired, but nobody has written that down.
    patched(&second, json!({"status": "active"}), 200, "updated").await;
    service.advance(EXPIRED);
    patched(&second, json!({}), 200, "updated").await;
}

async fn append_messages_runs(check: impl AsyncFn(&Service, &Run, &str)) {
    let service = Service::start(&["--messages-kept", "100"]).await;
    let created = service.post("/api/sessions", json!({"businessId": BUSINESS, "userId": USER})).await;
    let session = format!("/api/sessions/{}", created.string("sessionId"));
    let path = format!("{session}/messages");
    let appended = async |body: Value, status: u16, tag: &str| {
        service.advance(Duration::from_millis(1));
        let run = run(&service, "append_messages", status, service.post(&path, body)).await;
        check(&service, &run, tag).await;
    };
    let message = |id: &str, content: Value| json!({"messageId": id, "role": "user", "content": content});
    appended(message("m{1}", json!({"z": 1, "a": "\"\n💬"})), 201, "replayed").await;
    appended(json!({"role": "tool", "content": [null], "metadata": {"k": "v"}}), 201, "replayed").await;
    appended(json!([message("m2", json!(2)), {"role": "system", "content": ""}]), 201, "replayed").await;
    appended(json!([message("m3", json!(3)), message("m2", json!(2))]), 201, "replayed").await;
    appended(message("m3", json!(3)), 200, "replayed").await;
    appended(json!([message("m4", json!(4)), message("m3", json!("three"))]), 409, "conflict").await;
    let hundred: Vec<_> = (0..100).map(|number| message(&format!("n{number}"), json!(number))).collect();
    appended(json!(hundred), 201, "replayed").await;
    let listed = service.get(&format!("{path}?limit=1000")).await.json();
    assert_eq!((listed.as_array().map(Vec::len), &listed[0]["seq"]), (Some(100), &json!(6)), "nothing was trimmed");
    service.patch(&session, json!({"status": "ended"})).await.expect(200);
    appended(message("m5", json!(5)), 409, "not_active").await;
    appended(message("n99", json!(99)), 200, "replayed").await;
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
        assert_eq!(service.look.keys_of('a').await.len(), others_left, "the pointer is the active session's");
    }
    assert_eq!(service.look.keys().await, Vec::<String>::new(), "every key of the user is gone");
}

async fn erase_user_runs(check: impl AsyncFn(&Service, &Run, &str)) {
    let service = Service::start(&[]).await;
    // More than one run removes.
    for _ in 0..102 {
        let user = json!({"businessId": BUSINESS, "userId": USER, "ifActive": "replace"});
        let created = service.post("/api/sessions", user).await.expect(201);
        let messages = format!("/api/sessions/{}/messages", created.string("sessionId"));
        service.post(&messages, json!({"role": "user", "content": 1})).await.expect(201);
    }
    // What Redis does to a session whose retention is over. It is not erased, only forgotten.
    let gone = service.look.keys_of('s').await.remove(0);
    service.look.command(&["DEL", &gone, &gone.replace("}:s:", "}:m:"), &gone.replace("}:s:", "}:d:")]).await;
    let path = format!("/api/sessions/business/{}/user/{}", "%7Bb%7D:%25", "a%7D:%7Bu");
    let erased = runs(&service, "erase_user", 200, service.delete(&path)).await;
    assert_eq!((erased.len(), erased[0].answer.member("deletedSessions")), (2, json!(101)));
    for run in erased {
        check(&service, &run, "erased").await;
    }
    let nothing = run(&service, "erase_user", 200, service.delete(&path)).await;
    assert_eq!(nothing.answer.member("deletedSessions"), 0);
    check(&service, &nothing, "erased").await;
    assert_eq!(service.look.keys().await, Vec::<String>::new(), "every key of the user is gone");
}

async fn ready_runs(check: impl AsyncFn(&Service, &Run, &str)) {
    let service = Service::start(&[]).await;
    let ready = run(&service, "ready", 200, service.get("/readyz")).await;
    check(&service, &ready, "ready").await;
}

// Safe to run twice.

/// Runs a script again at once: nothing changes, and it answers what is stored.
async fn safe_to_run_twice(service: &Service, run: &Run, tag: &str) {
    let before = service.look.digest().await;
    let reply = run.again(&service.look).await;
    assert_eq!(service.look.digest().await, before, "a second run wrote: {run:#?}");
    assert_eq!(reply[0].as_deref(), Some(tag), "{reply:?} to a second run of {run:#?}");
    match tag {
        "replayed" | "resumed" if run.verb == "get_or_create" => assert_answers(service, run, &reply[1..]).await,
        "updated" => {
            assert_eq!(reply[1..3], [Some(String::new()), Some(String::new())], "a second run changes nothing");
            assert_answers(service, run, &reply[3..]).await;
        }
        "another_active" => assert_eq!(run.answer.member("activeSessionId"), json!(reply[1])),
        "replayed" => assert_messages(run, &reply[1..]),
        "conflict" => assert_eq!(reply[1..].len() % 3, 0, "{reply:?}"),
        // Nothing is left to erase, and nothing remains.
        "erased" => assert_eq!(reply[1..], [Some("0".to_owned()), Some("0".to_owned())]),
        "missing" | "not_active" | "ready" => assert_eq!(reply.len(), 1, "{reply:?}"),
        _ => panic!("say what a second {tag} must answer"),
    }
}

/// The fields are what is stored, and what the client was answered.
async fn assert_answers(service: &Service, run: &Run, fields: &[Option<String>]) {
    assert_eq!(fields, stored_fields(service, fields[0].as_deref().expect("an id")).await);
    let names = fields_of("get_or_create");
    assert_eq!(fields.len(), names.len());
    for (name, value) in names.iter().zip(fields) {
        let answered = run.answer.member(name);
        let time = |ms: &String| json!(Timestamp(ms.parse().expect("a time")).to_string());
        let expected = match (name.as_str(), value) {
            ("activeUntil" | "largestMessage", _) => continue,
            (_, None) => Value::Null,
            ("messageCount" | "version", Some(number)) => json!(number.parse::<u64>().expect("a number")),
            ("metadata", Some(text)) => serde_json::from_str(text).expect("JSON"),
            (name, Some(ms)) if name.ends_with("At") => time(ms),
            (_, Some(text)) => json!(text),
        };
        assert_eq!(answered, expected, "{name} of {run:#?}");
    }
}

/// The messages are those that the client was answered.
fn assert_messages(run: &Run, flat: &[Option<String>]) {
    let answered = run.answer.json();
    let answered = answered.as_array().cloned().unwrap_or_else(|| vec![answered]);
    assert_eq!(flat.len(), answered.len() * 6);
    for (stored, answered) in flat.chunks(6).zip(answered) {
        let text = |place: usize| stored[place].as_deref().expect("a value");
        assert_eq!(text(0), "known");
        assert_eq!(answered["seq"], text(1).parse::<u64>().expect("a number"));
        assert_eq!(answered["createdAt"], Timestamp(text(2).parse().expect("a time")).to_string());
        assert_eq!(answered["role"], text(3));
        assert_eq!(answered["content"].to_string(), text(4));
        assert_eq!(answered["metadata"].to_string(), text(5));
    }
}

async fn stored_fields(service: &Service, id: &str) -> Vec<Option<String>> {
    let (key, names) = (session_key(service, id), fields_of("get_or_create"));
    let words: Vec<_> = ["HMGET", &key].into_iter().chain(names.iter().map(String::as_str)).collect();
    let stored = service.look.command(&words).await.into_array();
    stored.into_iter().map(fred::types::Value::into_string).collect()
}

fn session_key(service: &Service, id: &str) -> String {
    format!("{}:{{{}}}:s:{id}", service.config.key_prefix, &id[..4])
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
async fn delete_is_safe_to_run_twice() {
    delete_runs(safe_to_run_twice).await;
}

#[tokio::test]
async fn erase_user_is_safe_to_run_twice() {
    erase_user_runs(safe_to_run_twice).await;
}

#[tokio::test]
async fn ready_is_safe_to_run_twice() {
    ready_runs(safe_to_run_twice).await;
}

// One hash tag.

/// What Redis Cluster hashes: the text between the first `{` and the next `}`.
fn hash_tag(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once('{')?;
    rest.split_once('}').map(|(tag, _)| tag).filter(|tag| !tag.is_empty())
}

/// The keys of a command, as the server itself finds them.
async fn keys_of(look: &Look, command: &[String]) -> Vec<String> {
    let words: Vec<_> = ["COMMAND", "GETKEYS"].into_iter().chain(command.iter().map(String::as_str)).collect();
    look.texts(&words).await
}

async fn one_hash_tag(service: &Service, run: &Run, _: &str) {
    let mut keys = run.keys.clone();
    for command in &run.inner {
        keys.extend(keys_of(&service.look, command).await);
    }
    assert!(keys.len() > run.keys.len(), "the script touched no key: {run:#?}");
    let partition = format!("{}:{{{}}}:", service.config.key_prefix, hash_tag(&keys[0]).expect("a hash tag"));
    for key in keys {
        assert!(key.starts_with(&partition), "{key} is not of {partition}: in a cluster {} would fail", run.verb);
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
async fn delete_keeps_to_one_hash_tag() {
    delete_runs(one_hash_tag).await;
}

#[tokio::test]
async fn erase_user_keeps_to_one_hash_tag() {
    erase_user_runs(one_hash_tag).await;
}

#[tokio::test]
async fn ready_touches_no_key() {
    let no_key = async |_: &Service, run: &Run, _: &str| {
        assert_eq!((&run.keys, &run.args, &run.inner), (&vec![], &vec![], &vec![]));
    };
    ready_runs(no_key).await;
}

/// A server of its own shows what the service sends, all of it and nothing else.
#[tokio::test]
async fn no_endpoint_searches_the_keyspace() {
    let folder = tempfile::tempdir().expect("a folder");
    let redis = redis::private(folder.path());
    let service = Service::start_on(&redis.socket(), &[]).await;
    service.until_reads_are_apart().await;
    let monitor = Monitor::start(&redis.socket());
    let called = call_every_endpoint(&service).await;
    let commands = monitor.finish(&service.look).await;

    let document = service.get("/openapi.json").await.json();
    let paths = document["paths"].as_object().expect("paths").iter();
    let operations = paths.flat_map(|(path, item)| {
        item.as_object().expect("operations").keys().map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    assert_eq!(called, operations.collect(), "every endpoint is to be called");

    let all = commands.iter().flat_map(|command| std::iter::once(&command.words).chain(&command.inner));
    let names: BTreeSet<_> = all.map(|words| words[0].to_uppercase()).collect();
    for needed in ["EVALSHA", "HGETALL", "HMGET", "HSET", "XRANGE"] {
        assert!(names.contains(needed), "the monitor missed {needed}: {names:?}");
    }
    // None of these is bounded by its arguments, or belongs to a request.
    for banned in ["FLUSHALL", "FLUSHDB", "HSCAN", "KEYS", "RANDOMKEY", "SCAN", "SMEMBERS", "SSCAN", "ZSCAN"] {
        assert!(!names.contains(banned), "an endpoint sends {banned}");
    }
    // A session's hash has a fixed set of fields; the other one has as many as there are messages.
    let whole = commands.iter().filter(|command| command.words[0].eq_ignore_ascii_case("HGETALL"));
    assert!(whole.clone().all(|command| command.words[1].contains("}:s:")), "{:#?}", whole.collect::<Vec<_>>());
}

/// Calls every endpoint once or more. Returns each as `METHOD /path/{parameter}`.
async fn call_every_endpoint(service: &Service) -> BTreeSet<String> {
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
        ("POST", "/api/sessions/{sessionId}/messages", Some(json!({"role": "user", "content": 1})), 201),
        ("GET", "/api/sessions/{sessionId}/messages", None, 200),
        ("GET", "/api/sessions/{sessionId}/messages?after=0", None, 200),
        ("GET", "/api/sessions/{sessionId}/messages?before=2", None, 200),
        ("GET", "/api/sessions/business/{businessId}/active", None, 200),
        ("GET", "/api/sessions/business/{businessId}/user/{userId}/active", None, 200),
        ("GET", "/api/sessions/business/{businessId}/user/{userId}/history", None, 200),
        ("POST", "/api/sessions", Some(replacing("u")), 201),
        ("DELETE", "/api/sessions/{sessionId}", None, 204),
        ("DELETE", "/api/sessions/business/{businessId}/user/{userId}", None, 200),
    ] {
        let filled = path.replace("{sessionId}", &id).replace("{businessId}", "b").replace("{userId}", "u");
        let body = body.map_or_else(Vec::new, |body: Value| body.to_string().into_bytes());
        let name = Method::from_bytes(method.as_bytes()).expect("a method");
        service.send(name, &filled, &[("content-type", "application/json")], body).await.expect(status);
        called.insert(format!("{method} {}", path.split('?').next().unwrap_or_default()));
    }
    called
}

// A server that forgot the scripts.

#[tokio::test]
async fn a_script_flush_is_not_visible_to_a_client() {
    let service = Service::start(&[]).await;
    let path = format!("/api/sessions/{}", service.session_of("u").await);
    let messages = format!("{path}/messages");
    for _ in 0..3 {
        for (method, path, body, status) in [
            (Method::GET, "/readyz", json!(null), 200),
            (Method::POST, "/api/sessions", json!({"businessId": "b", "userId": "u"}), 200),
            (Method::POST, "/api/sessions", replacing("w"), 201),
            (Method::PATCH, &path, json!({"metadata": {"a": 1}}), 200),
            (Method::PATCH, &path, json!({"status": "ended"}), 200),
            (Method::PATCH, &path, json!({"status": "active"}), 200),
            (Method::POST, &messages, json!([{"role": "user", "content": 1}]), 201),
            (Method::DELETE, "/api/sessions/business/b/user/w", json!(null), 200),
        ] {
            // A touch that is due cannot be answered without the script.
            service.advance(TOUCH_DUE);
            service.look.command(&["SCRIPT", "FLUSH"]).await;
            let body = body.to_string().into_bytes();
            service.send(method, path, &[("content-type", "application/json")], body).await.expect(status);
        }
    }
    let listed = service.get(&messages).await.json();
    assert_eq!(listed.as_array().map(Vec::len), Some(3), "each append ran once: {listed}");
    service.look.command(&["SCRIPT", "FLUSH"]).await;
    service.delete(&path).await.expect(204);
}
