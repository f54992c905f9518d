//! A low, steady load of several users during a fault, with a record of every acknowledged write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::process::with_timeout;
use super::redis_server::POLL;

/// The pause of a user between two groups of calls.
const PAUSE: Duration = Duration::from_millis(10);

/// One call: its duration, its operation and the status of its response.
#[derive(Clone, Debug)]
pub struct Call {
    pub took: Duration,
    pub operation: &'static str,
    pub status: u16,
}

/// A user with one permanent session, and the known state of that session.
#[derive(Debug)]
pub struct User {
    pub business_id: String,
    #[expect(clippy::struct_field_names, reason = "the name in the API")]
    pub user_id: String,
    pub session_id: String,
    sent: BTreeSet<String>,
    /// Acknowledged messages: `messageId` and `seq`.
    acknowledged: BTreeMap<String, u64>,
    pub calls: Vec<Call>,
    /// Responses that are neither correct nor a `503`.
    pub wrong: Vec<String>,
}

/// The services that receive the calls of a load round-robin, as from a load balancer.
#[derive(Clone, Default)]
pub struct Nodes(Arc<Mutex<Vec<Arc<String>>>>);

impl Nodes {
    /// Adds the service with this base URL.
    pub fn add(&self, base: &str) {
        self.0.lock().expect("no panic").push(Arc::new(base.to_owned()));
    }

    /// Removes a service, and waits until it has responded to every call that it got.
    pub async fn remove(&self, base: &str) {
        let mut removed: Vec<_> = self.0.lock().expect("no panic").extract_if(.., |node| **node == base).collect();
        let node = removed.pop().expect("a service that is in use");
        let drained = async {
            while Arc::strong_count(&node) > 1 {
                tokio::time::sleep(POLL).await;
            }
        };
        with_timeout(drained).await;
    }

    /// The service for the next call, which it counts as in progress until the value is dropped.
    fn next(&self) -> Arc<String> {
        let mut nodes = self.0.lock().expect("no panic");
        nodes.rotate_left(1);
        nodes[0].clone()
    }
}

/// Users that are making calls.
pub struct Load {
    stop: Arc<AtomicBool>,
    users: Vec<JoinHandle<User>>,
}

impl Load {
    /// Creates the sessions of these users, then starts their calls.
    pub async fn start(base: &str, users: &[(String, String)]) -> Self {
        let nodes = Nodes::default();
        nodes.add(base);
        Self::start_on(&nodes, users).await
    }

    /// The same, on several services.
    pub async fn start_on(nodes: &Nodes, users: &[(String, String)]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut working = Vec::new();
        for (business_id, user_id) in users {
            let mut user = User::new(business_id, user_id);
            let body = json!({"businessId": business_id, "userId": user_id});
            let (status, session) = user.call(nodes, "create", Method::POST, "/api/sessions", body).await;
            assert_eq!(status, 201, "{session}");
            session["sessionId"].as_str().expect("an id").clone_into(&mut user.session_id);
            let (nodes, stop) = (nodes.clone(), stop.clone());
            working.push(tokio::spawn(async move {
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    user.work(&nodes, round).await;
                    round += 1;
                }
                user
            }));
        }
        Self { stop, users: working }
    }

    /// Stops after every user has finished its round. Returns the users.
    pub async fn stop(self) -> Vec<User> {
        self.stop.store(true, Ordering::Relaxed);
        let mut users = Vec::new();
        for user in self.users {
            users.push(user.await.expect("no panic"));
        }
        users
    }
}

impl User {
    fn new(business_id: &str, user_id: &str) -> Self {
        Self {
            business_id: business_id.to_owned(),
            user_id: user_id.to_owned(),
            session_id: String::new(),
            sent: BTreeSet::new(),
            acknowledged: BTreeMap::new(),
            calls: Vec::new(),
            wrong: Vec::new(),
        }
    }

    async fn call(
        &mut self,
        nodes: &Nodes,
        operation: &'static str,
        method: Method,
        path: &str,
        body: Value,
    ) -> (u16, Value) {
        thread_local!(static CLIENT: Client = Client::new());
        let started = Instant::now();
        let node = nodes.next();
        let request = CLIENT.with(Client::clone).request(method, format!("{node}{path}")).json(&body);
        let response = request.send().await.expect("a response");
        let status = response.status().as_u16();
        let body = response.json().await.unwrap_or_default();
        self.calls.push(Call { took: started.elapsed(), operation, status });
        (status, body)
    }

    fn check(&mut self, operation: &str, (status, body): &(u16, Value), is_correct: bool) {
        if *status != 503 && !is_correct {
            self.wrong.push(format!("{operation} of {} {}: {status} {body}", self.user_id, self.session_id));
        }
    }

    /// Calls every operation once. Creates and deletes a session of a second user, [`guest_of`].
    async fn work(&mut self, nodes: &Nodes, round: u32) {
        let path = format!("/api/sessions/{}", self.session_id);
        let id = Value::from(self.session_id.clone());
        let message_id = format!("{}-{round}", self.user_id);
        let message = json!({"messageId": message_id, "role": "user", "content": message_id});
        self.sent.insert(message_id.clone());
        let response = self.call(nodes, "append", Method::POST, &format!("{path}/messages"), message).await;
        let is_ours = response.1["sessionId"] == id && response.1["messageId"] == message_id.as_str();
        self.check("append", &response, matches!(response.0, 200 | 201) && is_ours);
        if let (true, Some(seq)) = (is_ours, response.1["seq"].as_u64()) {
            self.acknowledged.insert(message_id, seq);
        }
        tokio::time::sleep(PAUSE).await;

        let response = self.call(nodes, "get", Method::GET, &path, Value::Null).await;
        self.check("get", &response, response.0 == 200 && response.1["sessionId"] == id);
        let body = json!({"businessId": self.business_id, "userId": self.user_id});
        let response = self.call(nodes, "resume", Method::POST, "/api/sessions", body).await;
        self.check("resume", &response, response.0 == 200 && response.1["sessionId"] == id);
        let list = format!("/api/sessions/business/{}/user/{}/history", self.business_id, self.user_id);
        let response = self.call(nodes, "history", Method::GET, &list, Value::Null).await;
        self.check("history", &response, response.0 == 200 && response.1[0]["sessionId"] == id);
        tokio::time::sleep(PAUSE).await;

        // A session that is created and deleted in this round. After a 503 its state is unknown, so the round ends.
        let guest = guest_of(&self.user_id);
        let body = json!({"businessId": self.business_id, "userId": guest, "ifActive": "replace"});
        let response = self.call(nodes, "replace", Method::POST, "/api/sessions", body).await;
        self.check("replace", &response, response.0 == 201 && response.1["userId"] == guest.as_str());
        let Some(guest_id) = response.1["sessionId"].as_str().map(str::to_owned) else { return };
        let guest_path = format!("/api/sessions/{guest_id}");
        let response = self.call(nodes, "update", Method::PATCH, &guest_path, json!({"title": guest_id})).await;
        self.check("update", &response, response.0 == 200 && response.1["title"] == guest_id.as_str());
        let response = self.call(nodes, "delete", Method::DELETE, &guest_path, Value::Null).await;
        self.check("delete", &response, response.0 == 204);
        tokio::time::sleep(PAUSE).await;
    }

    /// The percentage of this user's calls with a 2xx response.
    pub fn served_percent(&self) -> f64 {
        let served = self.calls.iter().filter(|call| call.status < 300).count();
        100.0 * f64::from(u32::try_from(served).expect("few"))
            / f64::from(u32::try_from(self.calls.len()).expect("few"))
    }

    /// Acknowledged messages that are missing or stored with another `seq`. Panics if the stored messages have a gap, a
    /// duplicate, or an unexpected content.
    pub async fn lost(&self, base: &str) -> Vec<String> {
        let mut stored = BTreeMap::new();
        let mut after = 0;
        loop {
            let url = format!("{base}/api/sessions/{}/messages?limit=1000&after={after}", self.session_id);
            let page = reqwest::get(url).await.expect("a response").json::<Value>().await.expect("JSON");
            let page = page.as_array().unwrap_or_else(|| panic!("no messages of {}: {page}", self.session_id));
            if page.is_empty() {
                break;
            }
            for message in page {
                assert_eq!(message["seq"].as_u64(), Some(after + 1), "a gap: {message}");
                after += 1;
                let message_id = message["messageId"].as_str().expect("an id").to_owned();
                assert_eq!(message["content"], message_id.as_str(), "another content: {message}");
                assert!(self.sent.contains(&message_id), "never sent: {message}");
                assert_eq!(stored.insert(message_id, after), None, "stored twice: {message}");
            }
        }
        let lost = self.acknowledged.iter().filter(|(message_id, seq)| stored.get(*message_id) != Some(seq));
        lost.map(|(message_id, seq)| format!("{message_id} as {seq}")).collect()
    }

    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }
}

/// The second user, whose sessions are created and deleted in every round.
pub fn guest_of(user_id: &str) -> String {
    format!("{user_id}-guest")
}

/// The number of calls by status and operation.
pub fn statuses<'a>(users: impl IntoIterator<Item = &'a User>) -> BTreeMap<(u16, &'static str), u32> {
    let mut statuses = BTreeMap::new();
    for call in users.into_iter().flat_map(|user| &user.calls) {
        *statuses.entry((call.status, call.operation)).or_default() += 1;
    }
    statuses
}

/// Panics if any response was wrong.
pub fn expect_right<'a>(users: impl IntoIterator<Item = &'a User>) {
    let wrong: Vec<_> = users.into_iter().flat_map(|user| &user.wrong).take(20).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
