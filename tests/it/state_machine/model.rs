//! A model of the contract (`docs/api.md`), as simple as possible: a list of sessions, and one method per operation. It
//! shares no logic with the service, so an error in one of them shows as a difference.

mod turns;

use serde_json::{Map, Value, json};
use sessiond::session::Timestamp;

use self::turns::Turn;

/// How long sessions live, in milliseconds.
#[derive(Clone, Copy)]
pub struct Lifetimes {
    pub idle: i64,
    pub max_lifetime: i64,
    pub retention: i64,
    pub resolution: i64,
    /// How long the writer of a turn may be silent.
    pub lease: i64,
    /// How many of a user's newest sessions are kept.
    pub sessions_kept: usize,
}

/// The owner of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub business: String,
    pub user: String,
}

/// The state of the service.
pub struct Model {
    pub now: i64,
    lifetimes: Lifetimes,
    /// In the order of their creation.
    sessions: Vec<Session>,
}

/// One session.
pub struct Session {
    pub id: String,
    pub owner: Owner,
    pub version: u64,
    pub expires: i64,
    /// The end of the maximum lifetime.
    pub max_lifetime_end: i64,
    /// The messages, oldest first.
    pub messages: Vec<Value>,
    /// The turns, in the order of their begin. Only the last one may be open.
    pub turns: Vec<Turn>,
    pub turn_number: u64,
    location: Value,
    kind: Value,
    title: Value,
    metadata: Value,
    created: i64,
    /// When it was created or last resumed.
    history: i64,
    updated: i64,
    last_activity: i64,
    /// When and why the session was ended. `None` for an expired session.
    ended: Option<(i64, &'static str)>,
}

/// The response that the contract requires.
#[derive(Debug, PartialEq)]
pub enum Expected {
    /// A session, with its version as `ETag`, and with its `Location` if it was created.
    Session { status: u16, document: Value },
    /// Another JSON body.
    Body { status: u16, body: Value },
    /// No body.
    NoContent,
    /// A problem with this code, and the members that only some problems have.
    Problem { status: u16, code: &'static str, members: Value },
}

fn problem(status: u16, code: &'static str) -> Expected {
    Expected::Problem { status, code, members: json!({}) }
}

/// Whether a PATCH only records activity: `ifActive` matters to a resume alone.
fn is_heartbeat(body: &Value) -> bool {
    body.as_object().is_some_and(|members| members.keys().all(|name| name == "ifActive"))
}

fn is_redacted(message: &Value) -> bool {
    message.get("redactedAt").is_some()
}

fn time(ms: i64) -> Value {
    Timestamp(ms).to_string().into()
}

impl Session {
    fn is_active(&self, now: i64) -> bool {
        self.ended.is_none() && now < self.expires
    }

    /// The end of the retention, unless activity moves it.
    pub fn retention_end(&self, lifetimes: Lifetimes) -> i64 {
        self.ended.map_or(self.expires, |(at, _)| at) + lifetimes.retention
    }

    fn end(&mut self, at: i64, reason: &'static str) {
        self.ended = Some((at, reason));
        self.updated = at;
        self.version += 1;
    }

    fn touch(&mut self, now: i64, lifetimes: Lifetimes) {
        self.last_activity = self.last_activity.max(now);
        self.expires = self.expiry_after(self.last_activity, lifetimes);
    }

    /// As [`Self::touch`], but the expiry only moves by the resolution or more.
    fn record(&mut self, now: i64, lifetimes: Lifetimes) {
        self.last_activity = self.last_activity.max(now);
        let expires = self.expiry_after(self.last_activity, lifetimes);
        if (expires - self.expires).abs() >= lifetimes.resolution || self.is_last_step(expires) {
            self.expires = expires;
        }
    }

    fn expiry_after(&self, activity: i64, lifetimes: Lifetimes) -> i64 {
        self.max_lifetime_end.min(activity + lifetimes.idle)
    }

    /// Whether the expiry moves to the end of the maximum lifetime.
    fn is_last_step(&self, expires: i64) -> bool {
        expires > self.expires && expires == self.max_lifetime_end
    }

    /// Whether activity that changes nothing else is written.
    fn is_touch_due(&self, now: i64, lifetimes: Lifetimes) -> bool {
        let (idle_for, expires) = (now - self.last_activity, self.expiry_after(now, lifetimes));
        let moves = idle_for.max(expires - self.expires) >= lifetimes.resolution;
        idle_for > 0 && (moves || self.is_last_step(expires))
    }

    fn document(&self, now: i64) -> Value {
        let (status, ended) = match self.ended {
            Some(ended) => ("ended", Some(ended)),
            None if self.is_active(now) => ("active", None),
            None if self.expires == self.max_lifetime_end => ("expired", Some((self.expires, "max_lifetime"))),
            None => ("expired", Some((self.expires, "idle"))),
        };
        json!({
            "sessionId": self.id, "businessId": self.owner.business, "userId": self.owner.user,
            "locationId": self.location, "sessionType": self.kind, "status": status, "title": self.title,
            "metadata": self.metadata, "messageCount": self.messages.len(), "version": self.version,
            "createdAt": time(self.created), "updatedAt": time(self.updated),
            "lastActivityAt": time(self.last_activity), "expiresAt": time(self.expires),
            "endedAt": ended.map(|(at, _)| time(at)), "endReason": ended.map(|(_, reason)| reason),
        })
    }

    fn response(&self, status: u16, now: i64) -> Expected {
        Expected::Session { status, document: self.document(now) }
    }
}

impl Model {
    pub fn new(now: i64, lifetimes: Lifetimes) -> Self {
        Self { now, lifetimes, sessions: Vec::new() }
    }

    /// The session with this id, if it can still be read.
    pub fn session(&self, id: &str) -> Option<&Session> {
        self.index(id).map(|index| &self.sessions[index])
    }

    fn index(&self, id: &str) -> Option<usize> {
        let id = id.to_lowercase();
        self.sessions.iter().position(|session| session.id == id && self.is_readable(session))
    }

    fn is_readable(&self, session: &Session) -> bool {
        self.now < session.retention_end(self.lifetimes)
    }

    fn active_index(&self, owner: &Owner) -> Option<usize> {
        self.sessions.iter().position(|session| session.owner == *owner && session.is_active(self.now))
    }

    /// The moment of a create or resume: later than those of the user's other sessions.
    fn next_in_history(&self, owner: &Owner) -> i64 {
        let own = self.sessions.iter().filter(|session| session.owner == *owner);
        own.map(|session| session.history + 1).max().map_or(self.now, |next| next.max(self.now))
    }

    /// POST /api/sessions. `new_id` is the id that the service chose, if it created a session.
    pub fn get_or_create(&mut self, owner: &Owner, body: &Value, new_id: &str) -> Expected {
        let active = self.active_index(owner);
        let replaces = body.get("ifActive") == Some(&json!("replace"));
        if let Some(index) = active.filter(|_| !replaces) {
            let (now, lifetimes) = (self.now, self.lifetimes);
            let session = &mut self.sessions[index];
            if session.is_touch_due(now, lifetimes) {
                session.touch(now, lifetimes);
            }
            return session.response(200, now);
        }
        let at = self.next_in_history(owner);
        if let Some(index) = active {
            let old = &mut self.sessions[index];
            old.end(self.now.max(old.updated), "replaced");
        }
        let member = |name: &str, default: Value| body.get(name).cloned().unwrap_or(default);
        let mut session = Session {
            id: new_id.to_owned(),
            owner: owner.clone(),
            version: 1,
            expires: 0,
            max_lifetime_end: self.now + self.lifetimes.max_lifetime,
            messages: Vec::new(),
            turns: Vec::new(),
            turn_number: 0,
            location: member("locationId", json!("L0100001")),
            kind: member("sessionType", json!("general")),
            title: member("title", Value::Null),
            metadata: member("metadata", json!({})),
            created: at,
            history: at,
            updated: at,
            last_activity: self.now,
            ended: None,
        };
        session.touch(self.now, self.lifetimes);
        let response = session.response(201, self.now);
        self.sessions.push(session);
        self.trim(owner);
        response
    }

    /// Removes the user's oldest sessions beyond the limit. A create is the only call that adds one.
    fn trim(&mut self, owner: &Owner) {
        let mut places: Vec<_> = self.sessions.iter().filter(|session| session.owner == *owner).collect();
        places.sort_by_key(|session| -session.history);
        if let Some(newest_removed) = places.get(self.lifetimes.sessions_kept).map(|session| session.history) {
            self.sessions.retain(|session| session.owner != *owner || session.history > newest_removed);
        }
    }

    /// GET /api/sessions/{sessionId}
    pub fn get(&self, id: &str) -> Expected {
        self.session(id).map_or(problem(404, "session_not_found"), |session| session.response(200, self.now))
    }

    /// GET /api/sessions/{sessionId}?include=lastMessage,turn
    pub fn get_with_includes(&mut self, id: &str) -> Expected {
        self.close_lost_turn(id);
        let mut expected = self.get(id);
        if let (Expected::Session { document, .. }, Some(session)) = (&mut expected, self.session(id)) {
            document["lastMessage"] = session.messages.last().cloned().unwrap_or_default();
            document["turn"] = session.included_turn();
        }
        expected
    }

    /// PATCH. `is_match` says whether `If-Match` allows the current version.
    pub fn patch(&mut self, id: &str, is_match: bool, body: &Value) -> Expected {
        let Some(index) = self.index(id) else {
            return problem(404, "session_not_found");
        };
        if !is_match {
            return problem(412, "version_mismatch");
        }
        let (now, lifetimes) = (self.now, self.lifetimes);
        let was_active = self.sessions[index].is_active(now);
        let resumes = body.get("status") == Some(&json!("active")) && !was_active;
        if resumes && let Some(other) = self.active_index(&self.sessions[index].owner) {
            let other = &mut self.sessions[other];
            if body.get("ifActive") != Some(&json!("replace")) {
                let members = json!({"activeSessionId": other.id});
                return Expected::Problem { status: 409, code: "another_session_active", members };
            }
            other.end(now.max(other.updated), "replaced");
        }
        let resumed_at = self.next_in_history(&self.sessions[index].owner);
        let session = &mut self.sessions[index];
        let before = session.patchable();
        session.merge(body);
        if before != session.patchable() || resumes {
            session.version += 1;
            session.updated = session.updated.max(now);
        }
        if resumes {
            session.ended = None;
            session.history = resumed_at;
            session.updated = session.updated.max(resumed_at);
            session.max_lifetime_end = session.last_activity.max(now) + lifetimes.max_lifetime;
        }
        if body.get("status") == Some(&json!("ended")) && was_active {
            if before == session.patchable() {
                session.version += 1;
            }
            session.interrupt_turn(now, false, false);
            session.updated = session.updated.max(now);
            session.ended = Some((session.updated, "client"));
        } else if resumes {
            session.touch(now, lifetimes);
        } else if was_active && (!is_heartbeat(body) || session.is_touch_due(now, lifetimes)) {
            session.record(now, lifetimes);
        }
        session.response(200, now)
    }

    /// DELETE /api/sessions/{sessionId}
    pub fn delete(&mut self, id: &str, is_match: bool) -> Expected {
        match self.index(id) {
            None => problem(404, "session_not_found"),
            Some(_) if !is_match => problem(412, "version_mismatch"),
            Some(index) => {
                self.sessions.remove(index);
                Expected::NoContent
            }
        }
    }

    /// POST messages. `new_ids` has one id per message of the call: the one that the service chose if the message has
    /// none.
    pub fn append(&mut self, id: &str, body: &Value, new_ids: &[String]) -> Expected {
        let sent = body.as_array().cloned().unwrap_or_else(|| vec![body.clone()]);
        let same = |known: &Value, new: &Value| {
            known["role"] == new["role"] && (is_redacted(known) || known["content"] == new["content"])
        };
        let Some(index) = self.index(id) else {
            return problem(404, "session_not_found");
        };
        let (now, lifetimes) = (self.now, self.lifetimes);
        let session = &mut self.sessions[index];
        let at = session.last_activity.max(now);
        let mut messages = session.messages.clone();
        let mut returned = Vec::new();
        for (place, (message, new_id)) in sent.iter().zip(new_ids).enumerate() {
            let has_same_id = |earlier: &&Value| earlier["messageId"] == message["messageId"];
            let earlier = sent[..place].iter().find(has_same_id).filter(|_| message.get("messageId").is_some());
            if earlier.is_some_and(|earlier| !same(earlier, message)) {
                return problem(409, "message_id_conflict");
            }
            let message_id = message.get("messageId").cloned().unwrap_or_else(|| new_id.clone().into());
            if let Some(known) = messages.iter().find(|known| known["messageId"] == message_id) {
                if !same(known, message) {
                    return problem(409, "message_id_conflict");
                }
                returned.push(known.clone());
                continue;
            }
            if session.is_open_turn(&message_id) {
                return problem(409, "message_id_conflict");
            }
            messages.push(json!({
                "messageId": message_id, "sessionId": session.id, "seq": messages.len() + 1, "role": message["role"],
                "content": message["content"], "metadata": message.get("metadata").cloned().unwrap_or(json!({})),
                "createdAt": time(at),
            }));
            returned.extend(messages.last().cloned());
        }
        let has_new = messages.len() > session.messages.len();
        if has_new {
            if !session.is_active(now) {
                return problem(409, "session_not_active");
            }
            if session.has_lost_turn(now) {
                session.close_lost_turn(now);
                return self.append(id, body, new_ids);
            }
            session.messages = messages;
            session.record(now, lifetimes);
        }
        let body = if body.is_array() { returned.into() } else { returned.remove(0) };
        Expected::Body { status: if has_new { 201 } else { 200 }, body }
    }

    /// The session and the index of the message, or the problem that one of them does not exist.
    fn find_message(&mut self, id: &str, message_id: &str) -> Result<(&mut Session, usize), Expected> {
        let index = self.index(id).ok_or(problem(404, "session_not_found"))?;
        let session = &mut self.sessions[index];
        let place = session.messages.iter().position(|message| message["messageId"] == message_id);
        place.map(|place| (session, place)).ok_or(problem(404, "message_not_found"))
    }

    /// GET .../messages/{messageId}
    pub fn get_message(&mut self, id: &str, message_id: &str) -> Expected {
        self.close_lost_turn_named(id, message_id);
        match self.find_message(id, message_id) {
            Ok((session, place)) => Expected::Body { status: 200, body: session.messages[place].clone() },
            Err(problem) => problem,
        }
    }

    /// PATCH .../messages/{messageId}
    pub fn patch_message(&mut self, id: &str, message_id: &str, patch: &Value) -> Expected {
        self.close_lost_turn_named(id, message_id);
        let now = self.now;
        let (session, place) = match self.find_message(id, message_id) {
            Ok(found) => found,
            Err(problem) => return problem,
        };
        let message = &mut session.messages[place];
        let before = message.clone();
        if !is_redacted(message) {
            message["metadata"] = match patch {
                Value::Null => json!({}),
                patch => merge_patch(&message["metadata"], patch),
            };
        }
        let body = message.clone();
        if body != before {
            session.change(now);
        }
        Expected::Body { status: 200, body }
    }

    /// DELETE .../messages/{messageId}
    pub fn redact_message(&mut self, id: &str, message_id: &str) -> Expected {
        let now = self.now;
        let (session, place) = match self.find_message(id, message_id) {
            Ok(found) => found,
            Err(problem) => return problem,
        };
        let message = &mut session.messages[place];
        if !is_redacted(message) {
            message["content"] = Value::Null;
            message["metadata"] = json!({});
            message["redactedAt"] = time(now);
            session.version += 1;
            session.redact_turn(message_id);
        }
        Expected::NoContent
    }

    /// GET .../user/{userId}/active
    pub fn active(&self, owner: &Owner) -> Expected {
        let active = self.active_index(owner).map(|index| &self.sessions[index]);
        active.map_or(problem(404, "no_active_session"), |session| session.response(200, self.now))
    }

    /// All of the user's sessions, the one created or resumed last first.
    pub fn history(&self, owner: &Owner) -> Vec<Value> {
        let mut own: Vec<_> = self.sessions.iter().filter(|session| session.owner == *owner).collect();
        own.retain(|session| self.is_readable(session));
        own.sort_by_key(|session| -session.history);
        own.into_iter().map(|session| session.document(self.now)).collect()
    }

    /// All active sessions of a business, latest expiry first.
    pub fn active_of_business(&self, business: &str) -> Vec<Value> {
        let mut active: Vec<_> = self.sessions.iter().filter(|session| session.owner.business == business).collect();
        active.retain(|session| session.is_active(self.now));
        active.sort_by_key(|session| -session.expires);
        active.into_iter().map(|session| session.document(self.now)).collect()
    }

    /// DELETE of a user.
    pub fn erase(&mut self, owner: &Owner) -> Expected {
        let deleted = self.history(owner).len();
        self.sessions.retain(|session| session.owner != *owner);
        Expected::Body { status: 200, body: json!({"deletedSessions": deleted}) }
    }
}

impl Session {
    /// Counts a change that is not activity.
    fn change(&mut self, now: i64) {
        self.version += 1;
        self.updated = self.updated.max(now);
    }

    /// The members that a PATCH can set, except the status.
    fn patchable(&self) -> [Value; 4] {
        [self.location.clone(), self.kind.clone(), self.title.clone(), self.metadata.clone()]
    }

    fn merge(&mut self, body: &Value) {
        let set = |field: &mut Value, name: &str| {
            if let Some(value) = body.get(name) {
                *field = value.clone();
            }
        };
        set(&mut self.location, "locationId");
        set(&mut self.kind, "sessionType");
        set(&mut self.title, "title");
        match body.get("metadata") {
            Some(Value::Null) => self.metadata = json!({}),
            Some(patch) => self.metadata = merge_patch(&self.metadata, patch),
            None => {}
        }
    }
}

/// The algorithm of RFC 7396, section 2.
fn merge_patch(target: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch.clone();
    };
    let mut merged = target.as_object().cloned().unwrap_or_else(Map::new);
    for (name, value) in patch {
        if value.is_null() {
            merged.shift_remove(name);
        } else {
            let member = merge_patch(merged.get(name).unwrap_or(&Value::Null), value);
            merged.insert(name.clone(), member);
        }
    }
    merged.into()
}
