//! The metrics agree with the clients: each response is counted exactly once, in the right series.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use futures_util::future::join_all;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use super::serve;
use crate::support::process::with_timeout;
use crate::support::scrape::Scrape;

const CLIENTS: usize = 8;
const ROUNDS: usize = 15;

const SESSIONS: &str = "/api/sessions";
const SESSION: &str = "/api/sessions/{sessionId}";
const MESSAGES: &str = "/api/sessions/{sessionId}/messages";
const MESSAGE: &str = "/api/sessions/{sessionId}/messages/{messageId}";
const BUSINESS: &str = "/api/sessions/business/{businessId}/active";
const ACTIVE: &str = "/api/sessions/business/{businessId}/user/{userId}/active";
const HISTORY: &str = "/api/sessions/business/{businessId}/user/{userId}/history";
const USER: &str = "/api/sessions/business/{businessId}/user/{userId}";

/// The counts that a client expects: the series, without `sessiond_`, and the value of each.
#[derive(Default)]
struct Tally(BTreeMap<String, u64>);

impl Tally {
    fn count(&mut self, series: impl Into<String>, times: u64) {
        self.0.entry(series.into()).or_default().add_assign(times);
    }
}

/// A client with one user. It counts its calls.
struct CountingClient {
    client: Client,
    base: String,
    user_id: String,
    session_id: String,
    tally: Tally,
}

impl CountingClient {
    /// Calls a route and counts the call. The route runs the store operation `op` once, or none. Panics unless the
    /// response has this status.
    async fn call(&mut self, method: &str, route: &str, op: Option<&str>, body: Value, status: u16) -> Value {
        let path = route.replace("{sessionId}", &self.session_id).replace("{businessId}", "b");
        let path = path.replace("{userId}", &self.user_id).replace("{messageId}", "1");
        self.call_at(method, route, &path, op, body, status).await
    }

    async fn call_at(
        &mut self,
        method: &str,
        route: &str,
        path: &str,
        op: Option<&str>,
        body: Value,
        status: u16,
    ) -> Value {
        let request = self
            .client
            .request(Method::from_bytes(method.as_bytes()).expect("a method"), format!("{}{path}", self.base));
        // No session has version 0.
        let request = if status == 412 { request.header("if-match", "\"0\"") } else { request };
        let request = match &body {
            Value::Null => request,
            Value::String(text) => request.header("content-type", "application/json").body(text.clone()),
            body => request.json(body),
        };
        let response = request.send().await.expect("a response");
        let actual = response.status();
        let text = response.text().await.expect("text");
        assert_eq!(actual, StatusCode::from_u16(status).expect("a status"), "{method} {path} {body}: {text}");
        let known = ["GET", "HEAD", "POST", "PATCH", "DELETE"].contains(&method);
        let method = if known { method } else { "other" };
        let labels = format!("method=\"{method}\",route=\"{route}\"");
        self.tally.count(format!("http_requests_total{{{labels},status=\"{status}\"}}"), 1);
        self.tally.count(format!("http_request_duration_seconds_count{{{labels}}}"), 1);
        if let Some(op) = op {
            self.count_operation(op);
        }
        serde_json::from_str(&text).unwrap_or_default()
    }

    fn count_operation(&mut self, op: &str) {
        self.count(&format!("store_operations_total{{op=\"{op}\",outcome=\"ok\"}}"), 1);
        self.count(&format!("store_operation_duration_seconds_count{{op=\"{op}\"}}"), 1);
    }

    fn count(&mut self, series: &str, times: u64) {
        self.tally.count(series, times);
    }

    /// Creates a session of the user, which the following calls use.
    async fn create(&mut self, body: Value) {
        let created = self.call("POST", SESSIONS, Some("get_or_create"), body, 201).await;
        created["sessionId"].as_str().expect("an id").clone_into(&mut self.session_id);
        self.count("sessions_created_total", 1);
    }

    /// Makes one round of calls. The user has no session before and after it.
    async fn round(&mut self, first: bool) {
        let create = json!({"businessId": "b", "userId": self.user_id});
        let replace = json!({"businessId": "b", "userId": self.user_id, "ifActive": "replace"});
        self.create(create.clone()).await;
        self.count(
            if first { "hint_lookups_total{result=\"miss\"}" } else { "hint_lookups_total{result=\"stale\"}" },
            1,
        );
        self.call("POST", SESSIONS, Some("get_or_create"), create.clone(), 200).await;
        self.count("hint_lookups_total{result=\"hit\"}", 1);
        self.count("sessions_resumed_total", 1);
        self.reads().await;
        self.messages().await;
        self.changes(&replace).await;

        self.create(create).await;
        self.count("hint_lookups_total{result=\"stale\"}", 1);
        self.call("DELETE", SESSION, Some("delete"), Value::Null, 412).await;
        self.call("DELETE", SESSION, Some("delete"), Value::Null, 204).await;
        self.call("DELETE", SESSION, Some("delete"), Value::Null, 404).await;
        self.count("sessions_deleted_total", 1);
        let erased = self.call("DELETE", USER, Some("erase_user"), Value::Null, 200).await;
        assert_eq!(erased, json!({"deletedSessions": 2}));
        self.count("sessions_deleted_total", 2);
        self.call("DELETE", USER, Some("erase_user"), Value::Null, 200).await;
        self.rejected_calls().await;
    }

    async fn reads(&mut self) {
        self.call("GET", SESSION, Some("get"), Value::Null, 200).await;
        self.call("HEAD", SESSION, Some("get"), Value::Null, 200).await;
        let with_message = format!("/api/sessions/{}?include=lastMessage", self.session_id);
        self.call_at("GET", SESSION, &with_message, Some("get"), Value::Null, 200).await;
        self.count_operation("include");
        self.call("GET", BUSINESS, Some("list_active"), Value::Null, 200).await;
        self.call("GET", HISTORY, Some("list_history"), Value::Null, 200).await;
        self.call("GET", ACTIVE, Some("get_active"), Value::Null, 200).await;
        self.call("GET", "/readyz", Some("ready"), Value::Null, 200).await;
        self.call("GET", "/livez", None, Value::Null, 200).await;
    }

    async fn messages(&mut self) {
        let message = |id: &str, content: &str| json!({"messageId": id, "role": "user", "content": content});
        let append = Some("append_messages");
        self.call("POST", MESSAGES, append, message("1", "a"), 201).await;
        self.call("POST", MESSAGES, append, message("1", "a"), 200).await;
        self.call("POST", MESSAGES, append, json!([message("1", "a"), message("2", "b"), message("3", "c")]), 201)
            .await;
        self.call("POST", MESSAGES, append, json!([message("4", "d"), message("4", "d")]), 201).await;
        self.call("POST", MESSAGES, append, message("1", "other"), 409).await;
        self.call("POST", MESSAGES, append, json!({"role": "tool", "content": {}}), 201).await;
        self.count("messages_appended_total", 5);
        self.call("GET", MESSAGES, Some("list_messages"), Value::Null, 200).await;
        self.call("GET", MESSAGE, Some("get_message"), Value::Null, 200).await;
        self.call("PATCH", MESSAGE, Some("update_message"), json!({"metadata": {"a": 1}}), 200).await;
        self.call("PATCH", MESSAGE, Some("update_message"), json!({"metadata": {"a": 1}}), 200).await;
        self.call("DELETE", MESSAGE, Some("redact_message"), Value::Null, 204).await;
        self.call("DELETE", MESSAGE, Some("redact_message"), Value::Null, 204).await;
    }

    /// Changes and replaces sessions. The user has two ended sessions after it.
    async fn changes(&mut self, replace: &Value) {
        let update = Some("update");
        self.call("PATCH", SESSION, update, json!({"title": "t"}), 200).await;
        self.call("PATCH", SESSION, update, json!({}), 200).await;
        self.call("PATCH", SESSION, update, json!({"title": "u"}), 412).await;
        let first = self.session_id.clone();
        self.create(replace.clone()).await;
        let second = std::mem::replace(&mut self.session_id, first);
        self.count("sessions_ended_total{reason=\"replaced\"}", 1);

        self.call("PATCH", SESSION, update, json!({"status": "active"}), 409).await;
        self.call("PATCH", SESSION, update, json!({"status": "active", "ifActive": "replace"}), 200).await;
        self.count("sessions_ended_total{reason=\"replaced\"}", 1);
        self.count("sessions_resumed_total", 1);
        self.session_id = second;
        self.call("POST", MESSAGES, Some("append_messages"), json!({"role": "user", "content": 1}), 409).await;
        self.call("PATCH", SESSION, update, json!({"status": "active", "ifActive": "replace"}), 200).await;
        self.count("sessions_ended_total{reason=\"replaced\"}", 1);
        self.count("sessions_resumed_total", 1);
        // The second call finds an ended session, so only the first is counted.
        self.call("PATCH", SESSION, update, json!({"status": "ended"}), 200).await;
        self.call("PATCH", SESSION, update, json!({"status": "ended"}), 200).await;
        self.count("sessions_ended_total{reason=\"client\"}", 1);
        self.call("GET", ACTIVE, Some("get_active"), Value::Null, 404).await;
    }

    /// Makes calls that are rejected before the store, or find no session.
    async fn rejected_calls(&mut self) {
        let unknown = "/api/sessions/00000000-0000-8000-8000-000000000000";
        self.call_at("GET", SESSION, unknown, Some("get"), Value::Null, 404).await;
        self.call_at("PATCH", SESSION, unknown, Some("update"), json!({}), 404).await;
        self.call_at("GET", SESSION, "/api/sessions/nonsense", None, Value::Null, 404).await;
        self.call("POST", SESSIONS, None, json!({"businessId": "b"}), 400).await;
        self.call("POST", SESSIONS, None, Value::from("{"), 400).await;
        self.call("POST", SESSIONS, None, Value::Null, 415).await;
        self.call("POST", SESSIONS, None, Value::from("x".repeat(300_000)), 413).await;
        self.call("PUT", SESSIONS, None, Value::Null, 405).await;
        self.call("BREW", "/livez", None, Value::Null, 405).await;
        self.call_at("GET", "unmatched", "/nowhere", None, Value::Null, 404).await;
    }
}

#[tokio::test]
async fn metrics_equal_the_counts_of_the_clients() {
    let (service, base) = serve("agreement", &[]);
    let callers = (0..CLIENTS).map(async |number| {
        let tally = Tally::default();
        let (client, user_id) = (Client::new(), format!("u{number}"));
        let mut caller = CountingClient { client, base: base.clone(), user_id, session_id: String::new(), tally };
        for round in 0..ROUNDS {
            caller.round(round == 0).await;
        }
        caller.tally
    });
    let mut expected = BTreeMap::<String, u64>::new();
    for tally in with_timeout(join_all(callers)).await {
        for (series, times) in tally.0 {
            expected.entry(series).or_default().add_assign(times);
        }
    }
    // The clients have disconnected. The connection of the scrape itself is counted.
    let idle = |scrape: &Scrape| {
        scrape.value("sessiond_http_requests_in_flight") == 0 && scrape.value("sessiond_http_connections") == 1
    };
    let scrape = Scrape::until(&service, idle).await;
    let counters = [
        "http_requests_total",
        "http_request_duration_seconds_count",
        "store_operations_total",
        "store_operation_duration_seconds_count",
        "hint_lookups_total",
        "sessions_created_total",
        "sessions_resumed_total",
        "sessions_ended_total",
        "sessions_deleted_total",
        "messages_appended_total",
    ];
    let mut counted = BTreeMap::new();
    for name in counters {
        let of_name = scrape.nonzero(&format!("sessiond_{name}"));
        counted.extend(of_name.into_iter().map(|(labels, value)| (format!("{name}{labels}"), value)));
    }
    assert!(expected.len() > 50 && expected.keys().any(|series| series.contains("status=\"413\"")), "{expected:#?}");
    assert_eq!(counted, expected);
    for name in ["store_errors_total", "store_reconnects_total", "http_panics_total", "http_requests_shed_total"] {
        assert_eq!(scrape.nonzero(&format!("sessiond_{name}")), BTreeMap::new());
    }
    assert_eq!(scrape.value("sessiond_store_up"), 1);
}

/// An expiry is counted when it is written, which the next change does.
#[tokio::test]
async fn expired_sessions_are_counted_once_by_reason() {
    let limits: [(&str, &[&str]); 2] =
        [("idle", &["--idle-timeout", "20ms"]), ("max_lifetime", &["--max-lifetime", "20ms"])];
    for (reason, flags) in limits {
        let (service, base) = serve(&format!("ended-{reason}"), flags);
        let client = Client::new();
        let create = async || {
            let request = client.post(format!("{base}{SESSIONS}")).json(&json!({"businessId": "b", "userId": "u"}));
            request.send().await.expect("a response").json::<Value>().await.expect("a session")
        };
        let first = create().await;
        let url = format!("{base}{SESSIONS}/{}", first["sessionId"].as_str().expect("an id"));
        let get = async || reqwest::get(&url).await.expect("a response").json::<Value>().await.expect("a session");
        with_timeout(async { while get().await["status"] != "expired" {} }).await;
        let ended = "sessiond_sessions_ended_total";
        assert_eq!(Scrape::of(&service).await.nonzero(ended), BTreeMap::new(), "a read wrote the expiry");
        assert_ne!(create().await["sessionId"], first["sessionId"]);
        assert_eq!(get().await["endReason"], reason);
        let expected = BTreeMap::from([(format!("{{reason=\"{reason}\"}}"), 1)]);
        assert_eq!(Scrape::of(&service).await.nonzero(ended), expected);
    }
}
