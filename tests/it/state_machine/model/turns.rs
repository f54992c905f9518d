//! The turns of the model (`docs/api.md`, "Turns").

use serde_json::{Value, json};

use super::{Expected, Lifetimes, Model, Session, merge_patch, problem, time};

/// Milliseconds from the end of a lease until other callers may close the turn.
const LOST_AFTER: i64 = 1000;
/// The time that a writer has to stop.
const STOP: i64 = 10_000;
/// How many of a session's last turns are recorded.
const TURNS_KNOWN: usize = 8;

/// One turn.
#[derive(Clone)]
pub struct Turn {
    pub id: String,
    pub number: u64,
    pub chunks: Vec<String>,
    writer: String,
    role: Value,
    metadata: Value,
    status: &'static str,
    after_seq: usize,
    /// Until when a cancel lets the writer continue.
    cancel_until: Option<i64>,
    lease_until: i64,
    started: i64,
    ended: Option<i64>,
    /// The status that its writer gave.
    ended_as: Option<String>,
    error: Value,
    is_redacted: bool,
    message_seq: Option<usize>,
}

/// How a turn is closed.
struct Close {
    status: &'static str,
    at: i64,
    message_at: i64,
    /// `None`: its chunks.
    content: Option<Value>,
    discards: bool,
    /// Whether its message is activity of the session.
    is_activity: bool,
}

impl Turn {
    fn renew(&mut self, now: i64, lifetimes: Lifetimes) {
        let until = now + lifetimes.lease;
        self.lease_until = self.cancel_until.map_or(until, |cancel_until| cancel_until.min(until));
    }

    fn document(&self, session: &Session) -> Value {
        json!({
            "turnId": self.id, "sessionId": session.id, "number": self.number, "writer": self.writer,
            "role": self.role, "metadata": self.metadata, "status": self.status, "nextChunk": self.chunks.len(),
            "afterSeq": self.after_seq, "cancelRequested": self.cancel_until.is_some(),
            "leaseUntil": time(self.lease_until), "startedAt": time(self.started), "endedAt": self.ended.map(time),
            "error": self.error, "messageSeq": self.message_seq,
        })
    }
}

fn turn_closed(status: &str) -> Expected {
    Expected::Problem { status: 409, code: "turn_closed", members: json!({"turnStatus": status}) }
}

impl Session {
    fn open_turn(&mut self) -> Option<&mut Turn> {
        self.turns.last_mut().filter(|turn| turn.ended.is_none())
    }

    /// From this moment on, the open turn is lost.
    pub fn lost_at(&self) -> Option<i64> {
        let open = self.turns.last().filter(|turn| turn.ended.is_none());
        open.map(|turn| turn.lease_until + LOST_AFTER)
    }

    pub fn has_lost_turn(&self, now: i64) -> bool {
        self.lost_at().is_some_and(|at| now >= at)
    }

    pub fn is_open_turn(&self, turn_id: &Value) -> bool {
        self.turns.last().is_some_and(|turn| turn.ended.is_none() && turn_id == turn.id.as_str())
    }

    /// The open turn as `include=turn` shows it.
    pub fn included_turn(&self) -> Value {
        let open = self.turns.last().filter(|turn| turn.ended.is_none());
        open.map_or(Value::Null, |turn| turn.document(self))
    }

    fn close(&mut self, close: Close) {
        let (id, seq) = (self.id.clone(), self.messages.len() + 1);
        let Some(turn) = self.open_turn() else { return };
        turn.status = if turn.cancel_until.is_some() { "cancelled" } else { close.status };
        turn.ended = Some(close.at);
        let has_text = !close.discards && (!turn.chunks.is_empty() || turn.status == "completed");
        let Some(content) = close.content.or_else(|| has_text.then(|| turn.chunks.concat().into())) else { return };
        turn.message_seq = Some(seq);
        let message = json!({
            "messageId": turn.id, "sessionId": id, "seq": seq, "role": turn.role, "content": content,
            "metadata": turn.metadata, "createdAt": time(close.message_at), "finishReason": turn.status,
        });
        self.messages.push(message);
        if close.is_activity {
            self.last_activity = close.message_at;
        }
    }

    /// Applies the redaction of the message that the latest turn became.
    pub fn redact_turn(&mut self, message_id: &str) {
        if let Some(turn) = self.turns.last_mut().filter(|turn| turn.ended.is_some() && turn.id == message_id) {
            (turn.metadata, turn.error, turn.is_redacted) = (json!({}), Value::Null, true);
        }
    }

    pub fn close_lost_turn(&mut self, now: i64) {
        if let Some(at) = self.lost_at().filter(|at| now >= *at).map(|at| at - LOST_AFTER) {
            self.close(Close {
                status: "lost",
                at,
                message_at: at,
                content: None,
                discards: false,
                is_activity: false,
            });
        }
    }

    /// Closes the open turn because the session ends or another turn begins.
    pub fn interrupt_turn(&mut self, now: i64, discards: bool, is_activity: bool) {
        self.close_lost_turn(now);
        let message_at = self.last_activity.max(now);
        self.close(Close { status: "interrupted", at: now, message_at, content: None, discards, is_activity });
    }

    /// What is recorded of a closed turn: everything of the latest one, less of the earlier ones, and what its message
    /// records.
    fn closed_turn(&self, turn_id: &str) -> Option<Value> {
        let known = self.turns.iter().rev().take(TURNS_KNOWN);
        if let Some((back, turn)) = known.enumerate().find(|(_, turn)| turn.id == turn_id && turn.ended.is_some()) {
            let mut document = turn.document(self);
            if back > 0 {
                let message = self.messages.iter().find(|message| message["messageId"] == turn_id);
                let message = message.filter(|_| turn.message_seq.is_some());
                document["metadata"] = message.map_or(json!({}), |message| message["metadata"].clone());
                document["error"] = Value::Null;
            }
            return Some(document);
        }
        let message = self.messages.iter().find(|message| message["messageId"] == turn_id)?;
        let status = message.get("finishReason").cloned().unwrap_or(json!("completed"));
        Some(json!({
            "turnId": turn_id, "sessionId": self.id, "number": null, "writer": null, "role": message["role"],
            "metadata": message["metadata"], "status": status, "nextChunk": null, "afterSeq": null,
            "cancelRequested": status == "cancelled", "leaseUntil": null, "startedAt": null, "endedAt": null,
            "error": null, "messageSeq": message["seq"],
        }))
    }

    fn is_written_by_a_turn(&self, message_id: &str) -> bool {
        let mut messages = self.messages.iter();
        messages.any(|message| message["messageId"] == message_id && message.get("finishReason").is_some())
    }

    /// Records the activity of a writer.
    fn record_turn(&mut self, now: i64, lifetimes: Lifetimes) {
        if self.is_active(now) && self.is_touch_due(now, lifetimes) {
            self.record(now, lifetimes);
        }
    }

    /// The open turn, if it has this id and number.
    fn turn_of_writer(&mut self, turn_id: &str, number: u64) -> Result<&mut Turn, Expected> {
        if !self.is_open_turn(&turn_id.into()) {
            let closed = self.closed_turn(turn_id);
            return Err(closed.map_or(problem(404, "turn_not_found"), |turn| {
                turn_closed(turn["status"].as_str().unwrap_or_default())
            }));
        }
        self.open_turn().filter(|turn| turn.number == number).ok_or(turn_closed("taken"))
    }
}

impl Model {
    /// Closes the open turn if it is lost, as a read of messages does.
    pub fn close_lost_turn(&mut self, id: &str) {
        if let Some(index) = self.index(id) {
            self.sessions[index].close_lost_turn(self.now);
        }
    }

    /// Closes the open turn if it is lost and has this id, as a read of its message does.
    pub fn close_lost_turn_named(&mut self, id: &str, turn_id: &str) {
        if self.session(id).is_some_and(|session| session.is_open_turn(&turn_id.into())) {
            self.close_lost_turn(id);
        }
    }

    /// POST .../turns
    pub fn begin_turn(&mut self, id: &str, body: &Value) -> Expected {
        let (now, lifetimes) = (self.now, self.lifetimes);
        let Some(index) = self.index(id) else {
            return problem(404, "session_not_found");
        };
        let session = &mut self.sessions[index];
        let turn_id = body["turnId"].as_str().unwrap_or_default().to_owned();
        let writer = body["writer"].as_str().unwrap_or_default().to_owned();
        let if_open = body.get("ifOpen").and_then(Value::as_str).unwrap_or("reject");
        let is_this = session.is_open_turn(&body["turnId"]);
        if let Some(body) = session.closed_turn(&turn_id).filter(|_| !is_this) {
            return Expected::Body { status: 200, body };
        }
        let is_own = is_this && session.open_turn().is_some_and(|turn| turn.writer == writer);
        if !is_own && !session.is_active(now) {
            return problem(409, "session_not_active");
        }
        if !is_own {
            let was_lost = session.has_lost_turn(now);
            match (session.open_turn(), if_open) {
                (Some(_), _) if was_lost => session.close_lost_turn(now),
                (Some(_), "interrupt" | "discard") if !is_this => {
                    session.interrupt_turn(now, if_open == "discard", true);
                }
                (Some(_), "takeover" | "discard") if is_this => {}
                (Some(open), _) => {
                    let members = json!({"openTurnId": open.id, "leaseUntil": time(open.lease_until)});
                    return Expected::Problem { status: 409, code: "turn_open", members };
                }
                (None, _) => {}
            }
            if let Some(body) = session.closed_turn(&turn_id).filter(|_| was_lost && is_this) {
                return Expected::Body { status: 200, body };
            }
            session.turn_number += 1;
        }
        if !is_this || (!is_own && if_open == "discard") {
            let cancel_until = session.open_turn().and_then(|turn| turn.cancel_until);
            session.turns.retain(|turn| turn.ended.is_some());
            session.turns.push(Turn {
                id: turn_id,
                number: 0,
                chunks: Vec::new(),
                writer: String::new(),
                role: body.get("role").cloned().unwrap_or(json!("assistant")),
                metadata: body.get("metadata").cloned().unwrap_or(json!({})),
                status: "open",
                after_seq: session.messages.len(),
                cancel_until,
                lease_until: 0,
                started: now,
                ended: None,
                ended_as: None,
                error: Value::Null,
                is_redacted: false,
                message_seq: None,
            });
        }
        let number = session.turn_number;
        if let Some(turn) = session.open_turn() {
            (turn.number, turn.writer) = (number, writer);
            turn.renew(now, lifetimes);
        }
        session.record_turn(now, lifetimes);
        let body = session.turns.last().map(|turn| turn.document(session));
        Expected::Body { status: if is_this { 200 } else { 201 }, body: body.unwrap_or_default() }
    }

    /// POST .../chunks
    pub fn append_chunks(&mut self, id: &str, turn_id: &str, body: &Value) -> Expected {
        let (now, lifetimes) = (self.now, self.lifetimes);
        let Some(index) = self.index(id) else {
            return problem(404, "session_not_found");
        };
        let session = &mut self.sessions[index];
        let turn = match session.turn_of_writer(turn_id, body["number"].as_u64().unwrap_or_default()) {
            Ok(turn) => turn,
            Err(problem) => return problem,
        };
        let sent: Vec<_> = body["chunks"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let from = usize::try_from(body["from"].as_u64().unwrap_or_default()).expect("a small number");
        if from > turn.chunks.len() && !sent.is_empty() {
            let members = json!({"nextChunk": turn.chunks.len()});
            return Expected::Problem { status: 409, code: "chunk_gap", members };
        }
        if turn.chunks.iter().skip(from).zip(&sent).any(|(known, new)| known != new) {
            return problem(409, "chunk_conflict");
        }
        let known = turn.chunks.len().saturating_sub(from);
        turn.chunks.extend(sent.into_iter().skip(known).map(str::to_owned));
        turn.renew(now, lifetimes);
        let body = json!({
            "nextChunk": turn.chunks.len(), "leaseUntil": time(turn.lease_until),
            "cancelRequested": turn.cancel_until.is_some(),
        });
        session.record_turn(now, lifetimes);
        Expected::Body { status: 200, body }
    }

    /// POST .../end
    pub fn end_turn(&mut self, id: &str, turn_id: &str, body: &Value) -> Expected {
        let (now, lifetimes) = (self.now, self.lifetimes);
        let Some(index) = self.index(id) else {
            return problem(404, "session_not_found");
        };
        let session = &mut self.sessions[index];
        let given = body["status"].as_str().unwrap_or_default();
        let known = session.turns.iter().rev().take(TURNS_KNOWN).find(|turn| turn.id == turn_id);
        let is_repeated =
            known.is_some_and(|turn| body["number"] == turn.number && turn.ended_as.as_deref() == Some(given));
        if is_repeated {
            let body = session.closed_turn(turn_id).unwrap_or_default();
            return Expected::Body { status: 200, body };
        }
        let message_at = session.last_activity.max(now);
        let turn = match session.turn_of_writer(turn_id, body["number"].as_u64().unwrap_or_default()) {
            Ok(turn) => turn,
            Err(problem) => return problem,
        };
        turn.ended_as = Some(given.to_owned());
        if let Some(patch) = body.get("metadata") {
            turn.metadata = merge_patch(&turn.metadata, patch);
        }
        turn.error = body.get("error").filter(|_| given == "failed").cloned().unwrap_or_default();
        let status = if given == "completed" { "completed" } else { "failed" };
        let content = body.get("content").cloned();
        let is_activity = session.is_active(now);
        session.close(Close { status, at: now, message_at, content, discards: false, is_activity });
        session.record_turn(now, lifetimes);
        Expected::Body { status: 200, body: session.closed_turn(turn_id).unwrap_or_default() }
    }

    /// POST .../cancel
    pub fn cancel_turn(&mut self, id: &str, turn_id: &str) -> Expected {
        let now = self.now;
        let Some(index) = self.index(id) else {
            return problem(404, "session_not_found");
        };
        let session = &mut self.sessions[index];
        let number = session.turn_number;
        let turn = match session.turn_of_writer(turn_id, number) {
            Ok(turn) => turn,
            Err(problem) => return problem,
        };
        let cancel_until = *turn.cancel_until.get_or_insert(now + STOP);
        turn.lease_until = turn.lease_until.min(cancel_until);
        let body = session.turns.last().map(|turn| turn.document(session));
        Expected::Body { status: 202, body: body.unwrap_or_default() }
    }

    /// GET .../turns/{turnId}, or `latest` without an id. `returned` are the chunks that the service returned: it is
    /// not specified how much longer than the lease time the chunks of a closed turn are readable.
    pub fn get_turn(&mut self, id: &str, turn_id: Option<&str>, from: usize, returned: &Value) -> Expected {
        let latest = self.session(id).and_then(|session| session.turns.last());
        if latest.is_some_and(|turn| turn_id.is_none_or(|turn_id| turn.id == turn_id)) {
            self.close_lost_turn(id);
        }
        let Some(session) = self.session(id) else {
            return problem(404, "session_not_found");
        };
        let latest = session.turns.last().filter(|turn| turn_id.is_none_or(|turn_id| turn.id == turn_id));
        let mut body = match (latest, turn_id) {
            (Some(turn), _) => turn.document(session),
            (None, Some(turn_id)) => {
                let is_plain = |turn: &Value| turn["number"].is_null() && !session.is_written_by_a_turn(turn_id);
                session.closed_turn(turn_id).filter(|turn| !is_plain(turn)).unwrap_or_default()
            }
            (None, None) => Value::Null,
        };
        if body.is_null() {
            return problem(404, "turn_not_found");
        }
        let is_readable = |turn: &&Turn| turn.ended.is_none_or(|ended| self.now < ended + self.lifetimes.lease);
        body["chunks"] = match latest {
            None => json!([]),
            Some(turn) if turn.is_redacted => json!([]),
            Some(turn) if !is_readable(&turn) && *returned == json!([]) => json!([]),
            Some(turn) => turn.chunks.iter().skip(from).cloned().collect(),
        };
        Expected::Body { status: 200, body }
    }
}
