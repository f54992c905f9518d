//! A load generator with a ledger of every acknowledged write. Each acknowledged write must be stored exactly once,
//! despite all faults. A write without acknowledgement may be stored or not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::process::TEST_TIMEOUT;

const USERS: usize = 16;
/// The time between two calls of one user. All users together make 100 calls per second.
const CALL_INTERVAL: Duration = Duration::from_millis(160);
/// The name under which a call without a readable response is counted.
const NO_ANSWER: &str = "no answer";

/// Concurrent users, each of which makes one call at a time.
pub struct Ledger {
    /// The base URL of the service.
    pub base: String,
    client: reqwest::Client,
    users: Vec<User>,
}

/// What is known of one user's data.
struct User {
    name: String,
    calls: usize,
    /// The id of the active session, if it is certain.
    current: Option<String>,
    /// The number of creates of unknown outcome: at most this many sessions may exist that are not in `sessions`.
    unknown_creates: usize,
    sessions: BTreeMap<String, SessionRecord>,
    /// How many calls had each outcome, by status and error code.
    answers: BTreeMap<String, usize>,
}

/// How certain a change is. A change without a response stays at `Maybe`, because Redis may apply it late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Certainty {
    #[default]
    No,
    Maybe,
    Yes,
}

/// What is known of one session.
#[derive(Debug, Default)]
struct SessionRecord {
    version: u64,
    /// The last acknowledged title.
    title: Value,
    /// Titles of unknown outcome. Either `title` or one of these must be stored.
    unknown_titles: Vec<Value>,
    ended: Certainty,
    deleted: Certainty,
    /// Acknowledged messages: id and seq.
    messages: BTreeMap<String, u64>,
    unknown_messages: BTreeSet<String>,
}

/// The status and body of a response, or `None` if the outcome is unknown.
type Outcome = Option<(u16, Value)>;

impl Ledger {
    pub fn new(base: &str) -> Self {
        let user = |number| User {
            name: format!("user{number}"),
            calls: 0,
            current: None,
            unknown_creates: 0,
            sessions: BTreeMap::new(),
            answers: BTreeMap::new(),
        };
        let client = reqwest::Client::builder().timeout(TEST_TIMEOUT).build().expect("a client");
        Self { base: base.to_owned(), client, users: (0..USERS).map(user).collect() }
    }

    /// Makes `calls_per_user` calls for every user, at a total rate of 100 calls per second.
    pub async fn load(&mut self, calls_per_user: usize) {
        let Self { base, client, users } = self;
        join_all(users.iter_mut().map(|user| user.load(client, base, calls_per_user))).await;
    }

    /// How many calls had this outcome, such as `503 store_unavailable`.
    pub fn answered(&self, how: &str) -> usize {
        self.users.iter().map(|user| user.answers.get(how).copied().unwrap_or(0)).sum()
    }

    /// Every outcome that occurred.
    pub fn answers(&self) -> BTreeSet<&str> {
        self.users.iter().flat_map(|user| user.answers.keys().map(String::as_str)).collect()
    }

    /// Panics if a call had no response.
    pub fn expect_all_answered(&self) {
        assert_eq!(self.answered(NO_ANSWER), 0, "{:?}", self.answers());
    }

    /// Repeats the appends of unknown outcome, then compares the ledger with the stored data.
    pub async fn expect_complete(&mut self) {
        let Self { base, client, users } = self;
        let acknowledged: usize = users.iter().map(User::acknowledged_messages).sum();
        assert!(acknowledged > 0, "no write was acknowledged, so the test proves nothing");
        join_all(users.iter_mut().map(|user| async {
            user.repeat_unknown_appends(client, base).await;
            user.expect_complete(client, base).await;
        }))
        .await;
    }
}

impl User {
    fn acknowledged_messages(&self) -> usize {
        self.sessions.values().map(|record| record.messages.len()).sum()
    }

    async fn load(&mut self, client: &reqwest::Client, base: &str, calls: usize) {
        let mut pace = tokio::time::interval(CALL_INTERVAL);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for _ in 0..calls {
            pace.tick().await;
            let step = self.calls;
            self.calls += 1;
            let Some(id) = self.current.clone() else {
                self.get_or_create(client, base).await;
                continue;
            };
            match step % 10 {
                0 => self.get_or_create(client, base).await,
                3 | 7 => self.retitle(client, base, &id, &format!("title {step}")).await,
                9 if step % 20 == 9 => self.end(client, base, &id).await,
                9 => self.delete(client, base, &id).await,
                _ => self.append(client, base, &id, &format!("message-{}-{step}", self.name)).await,
            }
        }
    }

    async fn call(
        &mut self,
        client: &reqwest::Client,
        base: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Outcome {
        let mut request = client.request(method.clone(), format!("{base}/api/sessions{path}"));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = async {
            let response = request.send().await?;
            let (status, retry_after) = (response.status().as_u16(), response.headers().contains_key("retry-after"));
            Ok::<_, reqwest::Error>((status, retry_after, response.bytes().await?))
        };
        let (status, retry_after, body) = match response.await {
            Ok(response) => response,
            Err(error) => {
                assert!(!error.is_timeout(), "{method} {path} hangs");
                *self.answers.entry(NO_ANSWER.to_owned()).or_default() += 1;
                return None;
            }
        };
        let body: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") };
        let how = format!("{status} {}", body["code"].as_str().unwrap_or_default());
        *self.answers.entry(how.trim_end().to_owned()).or_default() += 1;
        assert_eq!(status == 503, retry_after, "{method} {path}: {status} {body}");
        if status == 503 {
            return None;
        }
        assert!(status < 500, "{method} {path}: {status} {body}");
        Some((status, body))
    }

    async fn get_or_create(&mut self, client: &reqwest::Client, base: &str) {
        let body = json!({"businessId": "b", "userId": self.name});
        let Some((status, session)) = self.call(client, base, Method::POST, "", Some(&body)).await else {
            self.unknown_creates += 1;
            return;
        };
        let id = session["sessionId"].as_str().expect("an id").to_owned();
        match &self.current {
            Some(current) if self.sessions[current].is_active() => {
                assert_eq!((status, &id), (200, current), "{}: an acknowledged session is not active", self.name);
            }
            _ => {
                let known = self.sessions.get(&id).is_some_and(SessionRecord::may_be_active);
                assert!(status == 201 || known || self.unknown_creates > 0, "no call created {session}");
            }
        }
        let record = self.sessions.entry(id.clone()).or_default();
        let version = session["version"].as_u64().expect("a version");
        assert!(version >= record.version, "{id}: version {} was acknowledged: {session}", record.version);
        record.version = version;
        self.current = Some(id);
    }

    async fn append(&mut self, client: &reqwest::Client, base: &str, id: &str, message_id: &str) {
        let body = json!({"messageId": message_id, "role": "user", "content": {"text": message_id}});
        let outcome = self.call(client, base, Method::POST, &format!("/{id}/messages"), Some(&body)).await;
        let record = self.sessions.get_mut(id).expect("a session that is known");
        match outcome {
            None => {
                record.unknown_messages.insert(message_id.to_owned());
            }
            Some((201 | 200, message)) => {
                record.messages.insert(message_id.to_owned(), message["seq"].as_u64().expect("a seq"));
                record.unknown_messages.remove(message_id);
            }
            // The earlier append was not applied, and can no longer be applied.
            Some((409, _)) if record.ended != Certainty::No => {
                record.unknown_messages.remove(message_id);
            }
            Some((404, _)) if record.deleted != Certainty::No => {
                record.unknown_messages.remove(message_id);
            }
            Some((status, response)) => panic!("{message_id} of {id}: {status} {response}"),
        }
    }

    async fn retitle(&mut self, client: &reqwest::Client, base: &str, id: &str, title: &str) {
        let outcome = self.call(client, base, Method::PATCH, &format!("/{id}"), Some(&json!({"title": title}))).await;
        let record = self.sessions.get_mut(id).expect("a session that is known");
        match outcome {
            None => record.unknown_titles.push(title.into()),
            Some((404, _)) if record.deleted == Certainty::Maybe => self.current = None,
            Some((200, session)) => {
                record.title = title.into();
                record.version = session["version"].as_u64().expect("a version");
            }
            Some((status, response)) => panic!("{title} of {id}: {status} {response}"),
        }
    }

    async fn end(&mut self, client: &reqwest::Client, base: &str, id: &str) {
        let body = json!({"status": "ended"});
        let outcome = self.call(client, base, Method::PATCH, &format!("/{id}"), Some(&body)).await;
        let record = self.sessions.get_mut(id).expect("a session that is known");
        match outcome {
            None => record.ended = Certainty::Maybe,
            Some((200, session)) => {
                record.ended = Certainty::Yes;
                record.version = session["version"].as_u64().expect("a version");
            }
            Some((404, _)) if record.deleted == Certainty::Maybe => {}
            Some((status, response)) => panic!("end of {id}: {status} {response}"),
        }
        self.current = None;
    }

    async fn delete(&mut self, client: &reqwest::Client, base: &str, id: &str) {
        let outcome = self.call(client, base, Method::DELETE, &format!("/{id}"), None).await;
        let record = self.sessions.get_mut(id).expect("a session that is known");
        record.deleted = match outcome {
            None => Certainty::Maybe,
            Some((204, _)) => Certainty::Yes,
            Some((404, _)) if record.deleted == Certainty::Maybe => Certainty::Yes,
            Some((status, response)) => panic!("delete of {id}: {status} {response}"),
        };
        self.current = None;
    }

    async fn repeat_unknown_appends(&mut self, client: &reqwest::Client, base: &str) {
        let unknown = self
            .sessions
            .iter()
            .flat_map(|(id, record)| record.unknown_messages.iter().map(|message_id| (id.clone(), message_id.clone())));
        let unknown: Vec<_> = unknown.collect();
        for (id, message_id) in unknown {
            while self.sessions[&id].deleted != Certainty::Yes
                && self.sessions[&id].unknown_messages.contains(&message_id)
            {
                self.append(client, base, &id, &message_id).await;
            }
        }
    }

    async fn expect_complete(&mut self, client: &reqwest::Client, base: &str) {
        let path = format!("/business/b/user/{}/history?limit=100", self.name);
        let history = self.read(client, base, &path).await.expect("a history");
        let stored: BTreeSet<_> =
            history.as_array().expect("a list").iter().map(|one| text(&one["sessionId"])).collect();
        let unknown = stored.iter().filter(|id| !self.sessions.contains_key(*id)).count();
        assert!(unknown <= self.unknown_creates, "{}: {stored:?}, of {:?}", self.name, self.sessions.keys());
        let active = history.as_array().expect("a list").iter().filter(|one| one["status"] == "active").count();
        assert!(active <= 1, "{history}");

        for (id, record) in std::mem::take(&mut self.sessions) {
            let session = self.read(client, base, &format!("/{id}")).await;
            assert_eq!(session.is_some(), stored.contains(&id), "{id}: the session and the history differ");
            match (&session, record.deleted) {
                (None, Certainty::No) => panic!("{id} was acknowledged and is lost: {record:?}"),
                (Some(_), Certainty::Yes) => panic!("{id} was deleted and still exists"),
                (Some(session), _) => {
                    record.expect_in(session);
                    let messages = self.read(client, base, &format!("/{id}/messages?limit=1000")).await;
                    record.expect_messages(session, &messages.expect("its messages"));
                }
                (None, _) => {}
            }
        }
    }

    /// Reads a resource, or `None` if it does not exist. Repeats the call on a `503`.
    async fn read(&mut self, client: &reqwest::Client, base: &str, path: &str) -> Option<Value> {
        loop {
            match self.call(client, base, Method::GET, path, None).await {
                Some((200, body)) => return Some(body),
                Some((404, _)) => return None,
                // A machine that is busy with other tests may miss a deadline.
                None => {}
                other => panic!("GET {path}: {other:?}"),
            }
        }
    }
}

impl SessionRecord {
    fn is_active(&self) -> bool {
        (self.ended, self.deleted) == (Certainty::No, Certainty::No)
    }

    fn may_be_active(&self) -> bool {
        self.ended != Certainty::Yes && self.deleted != Certainty::Yes
    }

    fn expect_in(&self, session: &Value) {
        assert!(session["version"].as_u64() >= Some(self.version), "{session}: {self:?}");
        let known = self.title == session["title"] || self.unknown_titles.contains(&session["title"]);
        assert!(known, "{session}: {self:?}");
        match self.ended {
            Certainty::Yes => assert_eq!(session["status"], "ended", "{session}"),
            Certainty::No => assert_eq!(session["status"], "active", "{session}: {self:?}"),
            Certainty::Maybe => {}
        }
    }

    fn expect_messages(&self, session: &Value, messages: &Value) {
        let messages = messages.as_array().expect("a list");
        let seqs: Vec<_> = messages.iter().map(|message| message["seq"].as_u64().expect("a seq")).collect();
        assert_eq!(seqs, (1..=messages.len() as u64).collect::<Vec<_>>(), "{messages:?}");
        assert_eq!(session["messageCount"], messages.len(), "{session}");
        let stored: BTreeMap<_, _> = messages.iter().map(|one| (text(&one["messageId"]), one)).collect();
        assert_eq!(stored.len(), messages.len(), "a message is stored twice: {messages:?}");
        for (message_id, seq) in &self.messages {
            let message = stored.get(message_id).unwrap_or_else(|| panic!("{message_id} was acknowledged and is lost"));
            assert_eq!(message["seq"], *seq, "{message}");
            assert_eq!(message["content"]["text"], *message_id, "{message}");
        }
        for message_id in stored.keys() {
            assert!(
                self.messages.contains_key(message_id),
                "{message_id}: it was never sent, or its repetition has an unknown outcome"
            );
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}
