//! Histories: the calls of clients, their results, and the order of their requests and responses.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};

use super::turns::{TurnCall, TurnView};
use super::user::budget::{self, STEPS_MAX};
use super::user::{Answer, Operation, SessionView, Step, Text, User};

/// The longest allowed time to a response: the services' deadline plus a margin for a busy machine.
const RESPONSE_TIME_MAX: Duration = Duration::from_secs(8);
pub const BUSINESS: &str = "b";

/// A call of a history. Its moments are read from a logical clock that all clients of a recorder share.
#[derive(Clone, Debug)]
pub struct Call {
    pub step: Step,
    /// The moment of the request.
    pub requested: usize,
    /// The moment of the response, or `None` if the client got none.
    pub responded: Option<usize>,
}

/// Whether the history is linearizable, or `None` if the check exceeds its budget of steps. The second value is the
/// number of steps.
///
/// A call without a response may take effect at any later moment. If it never does, the checker orders it after all
/// others.
pub fn is_linearizable(calls: &[Call]) -> (Option<bool>, usize) {
    let mut actions = Vec::new();
    let calls = calls.iter().filter(|call| call.step.answer.is_some() || !call.step.operation.is_read_only());
    for (number, call) in calls.enumerate() {
        actions.push((call.requested, (number, Action::Call(call.step.clone()))));
        actions.push((call.responded.unwrap_or(usize::MAX), (number, Action::Response(call.step.clone()))));
    }
    if actions.is_empty() {
        return (Some(true), 0);
    }
    actions.sort_by_key(|(moment, _)| *moment);
    let history = History::from_actions(actions.into_iter().map(|(_, action)| action).collect());
    budget::within(|| WGLChecker::<User>::is_linearizable(history))
}

/// Sends calls and keeps one history for each user.
pub struct Recorder {
    client: reqwest::Client,
    /// The prefix of the users' names.
    prefix: String,
    /// The logical clock.
    clock: AtomicUsize,
    histories: Vec<Mutex<Vec<Call>>>,
    /// The longest time to a response.
    slowest: Mutex<Duration>,
}

impl Recorder {
    pub fn new(prefix: &str, users: usize) -> Self {
        let client = reqwest::Client::builder().timeout(RESPONSE_TIME_MAX).build().expect("a client");
        let histories = (0..users).map(|_| Mutex::default()).collect();
        Self { client, prefix: prefix.to_owned(), clock: AtomicUsize::new(0), histories, slowest: Mutex::default() }
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

    /// The session ids that responses contained for a user, in the order of the responses.
    pub fn ids(&self, user: usize) -> Vec<Text> {
        let mut ids: Vec<Text> = Vec::new();
        for call in &*self.histories[user].lock().expect("no panic") {
            if let Some(Answer::Created(SessionView { id, .. }) | Answer::Found(SessionView { id, .. })) =
                &call.step.answer
                && !ids.contains(id)
            {
                ids.push(id.clone());
            }
        }
        ids
    }

    /// Makes one call for a user at the service at `base`, and records it. Returns `None` if the outcome is unknown.
    pub async fn call(&self, base: &str, user: usize, operation: Operation) -> Option<Answer> {
        let (method, path, body) = request(&self.name(user), &operation);
        let request = self.client.request(method, format!("{base}{path}")).header("content-type", "application/json");
        let request = request.body(body.map(|body| body.to_string()).unwrap_or_default());
        let (started, requested) = (Instant::now(), self.clock.fetch_add(1, Ordering::SeqCst));
        let answer = match request.send().await {
            Ok(response) => match (response.status(), response.text().await) {
                (status, Ok(text)) => parse_response(&operation, status, &text),
                (_, Err(error)) => unknown_outcome(&error),
            },
            Err(error) => unknown_outcome(&error),
        };
        let responded = answer.is_some().then(|| self.clock.fetch_add(1, Ordering::SeqCst));
        {
            let mut slowest = self.slowest.lock().expect("no panic");
            *slowest = started.elapsed().max(*slowest);
        }
        let step = Step { operation, answer: answer.clone() };
        self.histories[user].lock().expect("no panic").push(Call { step, requested, responded });
        answer
    }

    /// Reads a list. Lists are not part of a history: the response only has to be a 200 or a 503.
    pub async fn list(&self, base: &str, path: &str) {
        match self.client.get(format!("{base}{path}")).send().await {
            Ok(response) => {
                let status = response.status().as_u16();
                assert!(matches!(status, 200 | 503), "{path}: {status} {:?}", response.text().await);
            }
            Err(error) => drop(unknown_outcome(&error)),
        }
    }

    /// Panics unless every history is linearizable.
    pub fn expect_linearizable(&self) -> Summary {
        let mut summary = Summary { slowest: *self.slowest.lock().expect("no panic"), ..Summary::default() };
        for user in 0..self.users() {
            let mut calls = self.history(user);
            calls.sort_by_key(|call| call.requested);
            summary.histories += 1;
            summary.calls += calls.len();
            summary.without_response += calls.iter().filter(|call| call.responded.is_none()).count();
            let (verdict, steps) = is_linearizable(&calls);
            summary.steps_max = summary.steps_max.max(steps);
            match verdict {
                Some(true) => {}
                Some(false) => panic!("user {user}: this history is not linearizable:\n{calls:#?}"),
                None => panic!("user {user}: no verdict after {STEPS_MAX} steps on this history:\n{calls:#?}"),
            }
        }
        summary
    }
}

/// The statistics of a run.
#[derive(Debug, Default)]
#[expect(dead_code, reason = "it is printed")]
pub struct Summary {
    histories: usize,
    calls: usize,
    pub without_response: usize,
    slowest: Duration,
    /// The largest number of steps for one history.
    steps_max: usize,
}

/// The outcome of a call whose service or connection ended: unknown. Panics if the call timed out.
fn unknown_outcome(error: &reqwest::Error) -> Option<Answer> {
    assert!(!error.is_timeout(), "no response in {RESPONSE_TIME_MAX:?}: {error:?}");
    None
}

fn request(user: &str, operation: &Operation) -> (Method, String, Option<Value>) {
    let session = |id: &Text| format!("/api/sessions/{id}");
    let of_user = format!("/api/sessions/business/{BUSINESS}/user/{user}");
    let create = |if_active: &str| {
        let body = json!({"businessId": BUSINESS, "userId": user, "ifActive": if_active});
        (Method::POST, "/api/sessions".to_owned(), Some(body))
    };
    match operation {
        Operation::GetOrCreate => create("return"),
        Operation::Replace => create("replace"),
        Operation::GetActive => (Method::GET, format!("{of_user}/active"), None),
        Operation::Get(id) => (Method::GET, session(id), None),
        Operation::End(id) => (Method::PATCH, session(id), Some(json!({"status": "ended"}))),
        Operation::Resume(id) => (Method::PATCH, session(id), Some(json!({"status": "active"}))),
        Operation::ResumeReplacing(id) => {
            (Method::PATCH, session(id), Some(json!({"status": "active", "ifActive": "replace"})))
        }
        Operation::Retitle(id, title) => (Method::PATCH, session(id), Some(json!({"title": &**title}))),
        Operation::Append(id, message_id) => {
            let body = json!({"messageId": &**message_id, "role": "user", "content": &**message_id});
            (Method::POST, format!("{}/messages", session(id)), Some(body))
        }
        Operation::Turn(id, turn_id, call) => {
            let turns = format!("{}/turns", session(id));
            let turn = format!("{turns}/{turn_id}");
            match call {
                TurnCall::Begin { writer, if_open } => {
                    let body = json!({"turnId": &**turn_id, "writer": &**writer, "ifOpen": if_open});
                    (Method::POST, turns, Some(body))
                }
                TurnCall::Write { number, from, chunk } => {
                    let body = json!({"number": number, "from": from, "chunks": [&**chunk]});
                    (Method::POST, format!("{turn}/chunks"), Some(body))
                }
                TurnCall::End { number } => {
                    let body = json!({"number": number, "status": "completed"});
                    (Method::POST, format!("{turn}/end"), Some(body))
                }
                TurnCall::Cancel => (Method::POST, format!("{turn}/cancel"), None),
                TurnCall::Get => (Method::GET, turn, None),
            }
        }
        Operation::ListMessages(id) => (Method::GET, format!("{}/messages?limit=1000", session(id)), None),
        Operation::Delete(id) => (Method::DELETE, session(id), None),
        Operation::EraseUser => (Method::DELETE, of_user, None),
    }
}

/// The result that a response describes, or `None` for a 503, whose outcome is unknown. Panics on any response that
/// docs/api.md does not describe for the operation, such as a 500.
fn parse_response(operation: &Operation, status: StatusCode, text: &str) -> Option<Answer> {
    let body: Value = serde_json::from_str(text).unwrap_or_default();
    let unexpected = || -> ! { panic!("{operation:?}: {status} {text}") };
    let member = |name: &str| body[name].as_str().unwrap_or_else(|| unexpected());
    let number =
        |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok()).unwrap_or_else(|| unexpected());
    let view = || SessionView {
        id: member("sessionId").into(),
        active: member("status") == "active",
        version: body["version"].as_u64().unwrap_or_else(|| unexpected()),
        title: body["title"].as_str().map(Text::from),
        messages: number(&body["messageCount"]),
    };
    let answer = match (status.as_u16(), operation) {
        (503, _) => {
            let code = member("code");
            assert!(matches!(code, "store_unavailable" | "store_busy"), "{operation:?}: {text}");
            return None;
        }
        (201, Operation::GetOrCreate | Operation::Replace) => Answer::Created(view()),
        (201, Operation::Append(..)) => Answer::Appended(number(&body["seq"])),
        (200, Operation::Append(..)) => Answer::Replayed(number(&body["seq"])),
        (200, Operation::EraseUser) => Answer::Erased(number(&body["deletedSessions"])),
        (200, Operation::ListMessages(_)) => {
            let messages = body.as_array().unwrap_or_else(|| unexpected());
            let seqs = messages.iter().map(|message| number(&message["seq"]));
            assert!(seqs.eq(1..=messages.len()), "seqs are not 1, 2, 3 ...: {text}");
            Answer::Messages(
                messages.iter().map(|message| message["messageId"].as_str().unwrap_or("").into()).collect(),
            )
        }
        (_, Operation::Turn(_, _, call)) if body["code"] != "session_not_found" => {
            turn_answer(call, status, &body).unwrap_or_else(|| unexpected())
        }
        (200, Operation::Replace | Operation::Delete(_)) => unexpected(),
        (200, _) => Answer::Found(view()),
        (204, Operation::Delete(_)) => Answer::Deleted,
        (404, _) if matches!(member("code"), "session_not_found" | "no_active_session") => Answer::NotFound,
        (409, Operation::Resume(_)) if member("code") == "another_session_active" => {
            Answer::AnotherActive(member("activeSessionId").into())
        }
        (409, Operation::Append(..)) if member("code") == "session_not_active" => Answer::NotActive,
        // A slow Redis left no time for another attempt. The call changed nothing.
        (409, _) if member("code") == "concurrent_update" => return None,
        _ => unexpected(),
    };
    Some(answer)
}

/// The result of a call for a turn, or `None` if docs/api.md does not describe the response for it.
fn turn_answer(call: &TurnCall, status: StatusCode, body: &Value) -> Option<Answer> {
    let number = |name: &str| body[name].as_u64().and_then(|number| usize::try_from(number).ok());
    let text = |name: &str| body[name].as_str().map(Text::from);
    let view = || {
        let is_open = body["status"] == "open";
        let joined = |chunks: &Vec<Value>| chunks.iter().map(|chunk| chunk.as_str()).collect::<Option<String>>();
        Some(TurnView {
            number: body["number"].as_u64()?,
            writer: text("writer")?,
            status: text("status")?,
            next_chunk: number("nextChunk")?,
            after_seq: number("afterSeq")?,
            cancel_requested: body["cancelRequested"].as_bool()?,
            message_seq: number("messageSeq"),
            text: body["chunks"].as_array().filter(|_| is_open).and_then(joined),
        })
    };
    match (status.as_u16(), call) {
        (201, TurnCall::Begin { .. }) => Some(Answer::TurnBegun(view()?)),
        (200, TurnCall::Write { .. }) => {
            Some(Answer::Written(number("nextChunk")?, body["cancelRequested"].as_bool()?))
        }
        (202, TurnCall::Cancel) | (200, TurnCall::Begin { .. } | TurnCall::End { .. } | TurnCall::Get) => {
            Some(Answer::Turn(view()?))
        }
        (404 | 409, _) => match body["code"].as_str()? {
            "session_not_active" => Some(Answer::NotActive),
            "turn_not_found" => Some(Answer::TurnNotFound),
            "turn_open" => Some(Answer::TurnOpen(text("openTurnId")?)),
            "turn_closed" => Some(Answer::TurnClosed(text("turnStatus")?)),
            "chunk_gap" => Some(Answer::ChunkGap(number("nextChunk")?)),
            "chunk_conflict" => Some(Answer::ChunkConflict),
            _ => None,
        },
        _ => None,
    }
}
