//! Histories: what clients asked, what they were told, and which of it was over before something else began.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};

use super::user::{Answer, Shown, Step, Text, User, Verb};

/// No answer may take longer, whatever happens: the services' deadline, and what a busy machine adds.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(8);
pub const BUSINESS: &str = "b";

/// A call of a history. Moments are numbers that increase for all clients of a recorder.
#[derive(Clone, Debug)]
pub struct Call {
    pub step: Step,
    pub called: usize,
    pub answered: Option<usize>,
}

/// Whether the calls could have been made one after the other, each at a moment between its call and its answer.
///
/// A call without an answer may take effect at any later moment, or never: that is, after all the others.
pub fn is_linearizable(calls: &[Call]) -> bool {
    let mut actions = Vec::new();
    let calls = calls.iter().filter(|call| call.step.answer.is_some() || !call.step.verb.only_reads());
    for (number, call) in calls.enumerate() {
        actions.push((call.called, (number, Action::Call(call.step.clone()))));
        actions.push((call.answered.unwrap_or(usize::MAX), (number, Action::Response(call.step.clone()))));
    }
    if actions.is_empty() {
        return true;
    }
    actions.sort_by_key(|(moment, _)| *moment);
    WGLChecker::<User>::is_linearizable(History::from_actions(actions.into_iter().map(|(_, action)| action).collect()))
}

/// Sends calls and keeps one history for each user.
pub struct Recorder {
    client: reqwest::Client,
    /// What the names of its users start with.
    prefix: String,
    moment: AtomicUsize,
    histories: Vec<Mutex<Vec<Call>>>,
    /// The longest time that an answer took.
    slowest: Mutex<Duration>,
}

impl Recorder {
    pub fn new(prefix: &str, users: usize) -> Self {
        let client = reqwest::Client::builder().timeout(ANSWER_TIME_MAX).build().expect("a client");
        let histories = (0..users).map(|_| Mutex::default()).collect();
        Self { client, prefix: prefix.to_owned(), moment: AtomicUsize::new(0), histories, slowest: Mutex::default() }
    }

    pub fn name(&self, user: usize) -> String {
        format!("{}{user}", self.prefix)
    }

    pub fn users(&self) -> usize {
        self.histories.len()
    }

    pub fn history(&self, user: usize) -> Vec<Call> {
        self.histories[user].lock().expect("no panic").clone()
    }

    /// The ids that answers told of a user's sessions, in the order in which they were told.
    pub fn ids(&self, user: usize) -> Vec<Text> {
        let mut ids: Vec<Text> = Vec::new();
        for call in &*self.histories[user].lock().expect("no panic") {
            if let Some(Answer::Created(Shown { id, .. }) | Answer::Found(Shown { id, .. })) = &call.step.answer
                && !ids.contains(id)
            {
                ids.push(id.clone());
            }
        }
        ids
    }

    /// Makes one call for a user of the service at `base`, and records it.
    pub async fn call(&self, base: &str, user: usize, verb: Verb) -> Option<Answer> {
        let (method, path, body) = request(&self.name(user), &verb);
        let request = self.client.request(method, format!("{base}{path}")).header("content-type", "application/json");
        let request = request.body(body.map(|body| body.to_string()).unwrap_or_default());
        let (started, called) = (Instant::now(), self.moment.fetch_add(1, Ordering::SeqCst));
        let answer = match request.send().await {
            Ok(response) => match (response.status(), response.text().await) {
                (status, Ok(text)) => understood(&verb, status, &text),
                (_, Err(error)) => unanswered(&error),
            },
            Err(error) => unanswered(&error),
        };
        let answered = answer.is_some().then(|| self.moment.fetch_add(1, Ordering::SeqCst));
        {
            let mut slowest = self.slowest.lock().expect("no panic");
            *slowest = started.elapsed().max(*slowest);
        }
        let step = Step { verb, answer: answer.clone() };
        self.histories[user].lock().expect("no panic").push(Call { step, called, answered });
        answer
    }

    /// Reads a list, which belongs to no history: it only has to be one, or refused for a while.
    pub async fn list(&self, base: &str, path: &str) {
        match self.client.get(format!("{base}{path}")).send().await {
            Ok(response) => {
                let status = response.status().as_u16();
                assert!(matches!(status, 200 | 503), "{path}: {status} {:?}", response.text().await);
            }
            Err(error) => drop(unanswered(&error)),
        }
    }

    /// Panics unless every history is linearizable. Returns how many calls there were, and how many without an answer.
    pub fn expect_linearizable(&self) -> Summary {
        let mut summary = Summary { slowest: *self.slowest.lock().expect("no panic"), ..Summary::default() };
        for user in 0..self.users() {
            let mut calls = self.history(user);
            calls.sort_by_key(|call| call.called);
            summary.histories += 1;
            summary.calls += calls.len();
            summary.unanswered += calls.iter().filter(|call| call.answered.is_none()).count();
            assert!(is_linearizable(&calls), "user {user}: no order explains this history:\n{calls:#?}");
        }
        summary
    }
}

/// What a run did.
#[derive(Debug, Default)]
#[expect(dead_code, reason = "it is printed")]
pub struct Summary {
    histories: usize,
    calls: usize,
    pub unanswered: usize,
    slowest: Duration,
}

/// The service ended or the connection did. Whether the call had an effect is not known. Silence is not allowed.
fn unanswered(error: &reqwest::Error) -> Option<Answer> {
    assert!(!error.is_timeout(), "no answer in {ANSWER_TIME_MAX:?}: {error:?}");
    None
}

fn request(user: &str, verb: &Verb) -> (Method, String, Option<Value>) {
    let session = |id: &Text| format!("/api/sessions/{id}");
    let of_user = format!("/api/sessions/business/{BUSINESS}/user/{user}");
    let create = |if_active: &str| {
        let body = json!({"businessId": BUSINESS, "userId": user, "ifActive": if_active});
        (Method::POST, "/api/sessions".to_owned(), Some(body))
    };
    match verb {
        Verb::GetOrCreate => create("return"),
        Verb::Replace => create("replace"),
        Verb::GetActive => (Method::GET, format!("{of_user}/active"), None),
        Verb::Get(id) => (Method::GET, session(id), None),
        Verb::End(id) => (Method::PATCH, session(id), Some(json!({"status": "ended"}))),
        Verb::Resume(id) => (Method::PATCH, session(id), Some(json!({"status": "active"}))),
        Verb::ResumeReplacing(id) => {
            (Method::PATCH, session(id), Some(json!({"status": "active", "ifActive": "replace"})))
        }
        Verb::Retitle(id, title) => (Method::PATCH, session(id), Some(json!({"title": &**title}))),
        Verb::Append(id, message_id) => {
            let body = json!({"messageId": &**message_id, "role": "user", "content": &**message_id});
            (Method::POST, format!("{}/messages", session(id)), Some(body))
        }
        Verb::ListMessages(id) => (Method::GET, format!("{}/messages?limit=1000", session(id)), None),
        Verb::Delete(id) => (Method::DELETE, session(id), None),
        Verb::EraseUser => (Method::DELETE, of_user, None),
    }
}

/// What an answer says; nothing if it says that nobody knows. Whatever the contract does not foresee panics, and a `500`
/// above all.
fn understood(verb: &Verb, status: StatusCode, text: &str) -> Option<Answer> {
    let body: Value = serde_json::from_str(text).unwrap_or_default();
    let unforeseen = || -> ! { panic!("{verb:?}: {status} {text}") };
    let member = |name: &str| body[name].as_str().unwrap_or_else(|| unforeseen());
    let number =
        |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok()).unwrap_or_else(|| unforeseen());
    let shown = || Shown {
        id: member("sessionId").into(),
        active: member("status") == "active",
        version: body["version"].as_u64().unwrap_or_else(|| unforeseen()),
        title: body["title"].as_str().map(Text::from),
        messages: number(&body["messageCount"]),
    };
    let answer = match (status.as_u16(), verb) {
        (503, _) => {
            let code = member("code");
            assert!(matches!(code, "store_unavailable" | "store_busy"), "{verb:?}: {text}");
            return None;
        }
        (201, Verb::GetOrCreate | Verb::Replace) => Answer::Created(shown()),
        (201, Verb::Append(..)) => Answer::Appended(number(&body["seq"])),
        (200, Verb::Append(..)) => Answer::Replayed(number(&body["seq"])),
        (200, Verb::EraseUser) => Answer::Erased(number(&body["deletedSessions"])),
        (200, Verb::ListMessages(_)) => {
            let messages = body.as_array().unwrap_or_else(|| unforeseen());
            let seqs = messages.iter().map(|message| number(&message["seq"]));
            assert!(seqs.eq(1..=messages.len()), "seq counts 1, 2, 3 ...: {text}");
            Answer::Messages(
                messages.iter().map(|message| message["messageId"].as_str().unwrap_or("").into()).collect(),
            )
        }
        (200, Verb::Replace | Verb::Delete(_)) => unforeseen(),
        (200, _) => Answer::Found(shown()),
        (204, Verb::Delete(_)) => Answer::Deleted,
        (404, _) if matches!(member("code"), "session_not_found" | "no_active_session") => Answer::NotFound,
        (409, Verb::Resume(_)) if member("code") == "another_session_active" => {
            Answer::AnotherActive(member("activeSessionId").into())
        }
        (409, Verb::Append(..)) if member("code") == "session_not_active" => Answer::NotActive,
        _ => unforeseen(),
    };
    Some(answer)
}
