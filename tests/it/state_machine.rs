//! Random sequences of calls and times: every response must be that of a simple model of the contract (`docs/api.md`).
//! proptest shortens a failing case and prints its operations.

mod model;
mod operation;
mod turns;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use reqwest::Method;
use serde_json::{Map, Value, json};

use self::model::{Expected, Lifetimes, Model, Owner};
use self::operation::{IfMatch, Json, Moment, Operation, Range, Step, USERS, Which, operations};
use self::turns::TurnCall;
use crate::support::service::{Answer, Service};

/// How many cases each test has, unless `PROPTEST_CASES` is larger.
const CASES_MIN: u32 = 1000;
const MINUTE_MS: i64 = 60_000;
/// More pages than any list of a case has, so links in a circle make a case fail.
const PAGES_MAX: usize = 200;
/// Outcomes that each run must have, or the operations are drawn badly.
const OUTCOMES: &[&str] = &[
    "200 active",
    "200 ended client",
    "200 ended replaced",
    "200 expired idle",
    "200 expired max_lifetime",
    "200 erased",
    "200 redacted",
    "200 replayed",
    "201 active",
    "201 appended",
    "204",
    "404 message_not_found",
    "404 no_active_session",
    "404 session_not_found",
    "409 another_session_active",
    "409 message_id_conflict",
    "409 session_not_active",
    "412 version_mismatch",
];
/// The members that only some problems have.
const PROBLEM_MEMBERS: &[&str] = &["activeSessionId", "openTurnId", "leaseUntil", "turnStatus", "nextChunk"];
const LIFETIMES: [&str; 6] = ["--idle-timeout", "10m", "--max-lifetime", "35m", "--retention", "2h"];

#[test]
fn responses_match_the_model_if_all_activity_is_written() {
    run(&[&LIFETIMES[..], &["--activity-resolution", "0"]].concat(), 0, usize::MAX);
}

#[test]
fn responses_match_the_model_with_the_default_activity_resolution_and_few_sessions_per_user() {
    // The smaller of 60 s and a twentieth of the idle timeout.
    run(&[&LIFETIMES[..], &["--max-sessions-per-user", "3"]].concat(), MINUTE_MS / 2, 3);
}

fn run(flags: &[&str], resolution: i64, sessions_kept: usize) {
    let (idle, max_lifetime, retention) = (10 * MINUTE_MS, 35 * MINUTE_MS, 120 * MINUTE_MS);
    let lease = MINUTE_MS / 2;
    let lifetimes = Lifetimes { idle, max_lifetime, retention, resolution, lease, sessions_kept };
    let mut config = Config { failure_persistence: None, ..Config::default() };
    config.cases = config.cases.max(CASES_MIN);
    // A fixed seed, so the message of a failing case can name it.
    if matches!(config.rng_seed, RngSeed::Random) {
        config.rng_seed = RngSeed::Fixed(getrandom::u64().expect("random bytes"));
    }
    let seed = config.rng_seed;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    // Three services on one Redis, with one clock: with hints, with one hint, and without. The calls of one make the
    // hints of the others stale.
    let services = runtime.block_on(async {
        let service = Service::start(flags).await;
        let few = service.sibling(&[flags, &["--hint-cache-size", "1"]].concat()).await;
        let none = service.sibling(&[flags, &["--hint-cache-size", "0"]].concat()).await;
        [service, few, none]
    });
    let drawn = RefCell::new(Drawn::default());
    let result = TestRunner::new(config).run(&operations(), |operations| {
        let mut case = Case::new(&services, lifetimes, &drawn);
        runtime.block_on(case.run(&operations)).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => {
            let outcomes = &drawn.borrow().outcomes;
            let wanted = OUTCOMES.iter().chain(turns::OUTCOMES);
            let missing: Vec<_> = wanted.filter(|outcome| !outcomes.contains_key(**outcome)).collect();
            assert!(missing.is_empty(), "never drawn: {missing:?}; drawn: {outcomes:#?}");
        }
        Err(TestError::Fail(reason, operations)) => {
            let lines: Vec<_> = operations.iter().enumerate().map(|(n, step)| format!("{n:>4} {step:?}")).collect();
            panic!("{reason}\nThe operations:\n{}\nPROPTEST_RNG_SEED={seed} repeats this", lines.join("\n"));
        }
        Err(error) => panic!("{error}"),
    }
}

/// The number of cases so far, and their outcomes.
#[derive(Default)]
struct Drawn {
    cases: u32,
    /// How often each outcome occurred.
    outcomes: BTreeMap<String, u32>,
}

/// One sequence of operations, run on the services and on the model.
struct Case<'a> {
    services: &'a [Service; 3],
    /// The service of the current operation.
    service: &'a Service,
    drawn: &'a RefCell<Drawn>,
    lifetimes: Lifetimes,
    model: Model,
    owners: [Owner; USERS],
    /// The ids of all sessions that this case created.
    ids: Vec<String>,
}

/// The error says why a response is wrong.
type Outcome = Result<(), String>;

impl<'a> Case<'a> {
    fn new(services: &'a [Service; 3], lifetimes: Lifetimes, drawn: &'a RefCell<Drawn>) -> Self {
        drawn.borrow_mut().cases += 1;
        let number = drawn.borrow().cases;
        // Each case has new users, so it starts without sessions: two users of one business, and one with the same id
        // in another business. Their ids have characters with a meaning in keys and paths.
        let owner = |business: &str, user: &str| Owner {
            business: format!("{business}:{number}"),
            user: format!("{user}|{number}"),
        };
        let owners = [owner("b{%7d", "é/@?#"), owner("b{%7d", "a:b"), owner("b{%7d:", "é/@?#")];
        let service = &services[0];
        let model = Model::new(service.now().0, lifetimes);
        Self { services, service, drawn, lifetimes, model, owners, ids: Vec::new() }
    }

    async fn run(&mut self, operations: &[Operation]) -> Outcome {
        for (number, operation) in operations.iter().enumerate() {
            self.service = &self.services[number % self.services.len()];
            self.step(operation).await.map_err(|wrong| format!("Operation {number}, {operation:?}: {wrong}"))?;
        }
        self.read_everything().await.map_err(|wrong| format!("After all operations: {wrong}"))
    }

    async fn step(&mut self, operation: &Operation) -> Outcome {
        match operation {
            Operation::GetOrCreate { user, body } => self.get_or_create(*user, body).await,
            Operation::Get { session } => self.get(&self.id(*session)).await,
            Operation::Patch { session, if_match, body } => self.patch(*session, *if_match, body).await,
            Operation::Delete { session, if_match } => self.delete(*session, *if_match).await,
            Operation::Append { session, body } => self.append(&self.id(*session), body).await,
            Operation::GetMessage { session, message } => {
                let id = self.id(*session);
                let response = self.service.get(&message_path(&id, message)).await;
                let expected = self.model.get_message(&id, message);
                self.check(&response, &expected)
            }
            Operation::PatchMessage { session, message, patch } => {
                let (id, body) = (self.id(*session), json!({"metadata": patch.0}));
                let response = self.service.patch(&message_path(&id, message), body).await;
                let expected = self.model.patch_message(&id, message, &patch.0);
                self.check(&response, &expected)
            }
            Operation::RedactMessage { session, message } => {
                let id = self.id(*session);
                let response = self.service.delete(&message_path(&id, message)).await;
                let expected = self.model.redact_message(&id, message);
                self.check(&response, &expected)
            }
            Operation::ListMessages { session, range, limit } => {
                self.list_messages(&self.id(*session), *range, *limit).await
            }
            Operation::Turn { session, call } => self.turn(&self.id(*session), call).await,
            Operation::GetActive { user } => self.get_active(*user).await,
            Operation::ListHistory { user, limit } => self.list_history(*user, *limit).await,
            Operation::ListActive { user, limit } => self.list_active(*user, *limit).await,
            Operation::EraseUser { user } => self.erase_user(*user).await,
            Operation::Advance(step) => {
                self.advance(self.milliseconds(*step));
                Ok(())
            }
            Operation::KeepAlive { session, times, minutes } => {
                for _ in 0..*times {
                    self.advance(minutes * MINUTE_MS);
                    self.patch(*session, IfMatch::Absent, &Json(json!({}))).await?;
                }
                Ok(())
            }
        }
    }

    fn advance(&mut self, ms: i64) {
        self.service.advance(Duration::from_millis(u64::try_from(ms).expect("time that passes")));
        self.model.now += ms;
    }

    fn milliseconds(&self, step: Step) -> i64 {
        match step {
            Step::Millis(ms) => ms,
            Step::Seconds(seconds) => seconds * 1000,
            Step::Minutes(minutes) => minutes * MINUTE_MS,
            Step::Hours(hours) => hours * 60 * MINUTE_MS,
            Step::To { session, moment, plus_ms } => {
                let at = self.model.session(&self.id(session)).map_or(0, |session| match moment {
                    Moment::Expiry => session.expires,
                    Moment::MaxLifetime => session.max_lifetime_end,
                    Moment::EndOfRetention => session.retention_end(self.lifetimes),
                    Moment::LostTurn => session.lost_at().unwrap_or_default(),
                });
                (at + plus_ms - self.model.now).max(0)
            }
        }
    }

    fn id(&self, which: Which) -> String {
        const UNKNOWN: &str = "00000000-0000-8000-8000-000000000000";
        let newest = |back: usize| self.ids.iter().rev().cycle().nth(back).map_or(UNKNOWN, String::as_str);
        match which {
            Which::Newest(back) => newest(back).to_owned(),
            Which::UpperCase(back) => newest(back).to_uppercase(),
            Which::Unknown => UNKNOWN.to_owned(),
            Which::NoUuid => "business%20{}".to_owned(),
        }
    }

    /// The header, and whether it names the session's current version.
    fn if_match(&self, id: &str, if_match: IfMatch) -> (Option<String>, bool) {
        let version = self.model.session(id).map_or(1, |session| session.version);
        match if_match {
            IfMatch::Absent => (None, true),
            IfMatch::Current => (Some(format!("\"{version}\"")), true),
            IfMatch::AmongOthers => (Some(format!("\"{}\", \"{version}\"", version + 1)), true),
            IfMatch::Star => (Some("*".to_owned()), true),
            IfMatch::Other => (Some(format!("\"{}\"", version + 1)), false),
            IfMatch::Weak => (Some(format!("W/\"{version}\"")), true),
        }
    }

    async fn get_or_create(&mut self, user: usize, body: &Json) -> Outcome {
        let owner = &self.owners[user];
        let mut sent = body.0.clone();
        sent["businessId"] = owner.business.as_str().into();
        sent["userId"] = owner.user.as_str().into();
        let response = self.service.post("/api/sessions", sent).await;
        let id = if response.status == 201 { response.string("sessionId") } else { String::new() };
        if self.ids.contains(&id) {
            return Err(format!("not a new id: {response:?}"));
        }
        let expected = self.model.get_or_create(owner, &body.0, &id);
        self.check(&response, &expected)?;
        if response.status == 201 {
            self.ids.push(id);
        }
        Ok(())
    }

    async fn get(&self, id: &str) -> Outcome {
        self.check(&self.service.get(&format!("/api/sessions/{id}")).await, &self.model.get(id))
    }

    async fn patch(&mut self, session: Which, if_match: IfMatch, body: &Json) -> Outcome {
        let id = self.id(session);
        let (header, names_version) = self.if_match(&id, if_match);
        let response = self.send(Method::PATCH, &id, header, body.0.to_string()).await;
        let expected = self.model.patch(&id, names_version, &body.0);
        self.check(&response, &expected)
    }

    async fn delete(&mut self, session: Which, if_match: IfMatch) -> Outcome {
        let id = self.id(session);
        let (header, names_version) = self.if_match(&id, if_match);
        let response = self.send(Method::DELETE, &id, header, String::new()).await;
        let expected = self.model.delete(&id, names_version);
        self.check(&response, &expected)
    }

    async fn send(&self, method: Method, id: &str, if_match: Option<String>, body: String) -> Answer {
        let mut headers = vec![("content-type", "application/merge-patch+json")];
        headers.extend(if_match.as_deref().map(|tags| ("if-match", tags)));
        self.service.send(method, &format!("/api/sessions/{id}"), &headers, body.into_bytes()).await
    }

    async fn append(&mut self, id: &str, body: &Json) -> Outcome {
        let response = self.service.post(&format!("/api/sessions/{id}/messages"), body.0.clone()).await;
        let count = body.0.as_array().map_or(1, Vec::len);
        let new_ids: Vec<_> = (0..count)
            .map(|index| {
                let returned = response.json();
                let message = if body.0.is_array() { &returned[index] } else { &returned };
                let new_id = message["messageId"].as_str().filter(|id| !id.is_empty());
                new_id.map_or_else(|| format!("none {index}"), str::to_owned)
            })
            .collect();
        let expected = self.model.append(id, &body.0, &new_ids);
        self.check(&response, &expected)
    }

    async fn list_messages(&mut self, id: &str, range: Range, limit: Option<usize>) -> Outcome {
        let mut query = vec![match range {
            Range::Newest => String::new(),
            Range::Before(seq) => format!("before={seq}"),
            Range::After(seq) => format!("after={seq}"),
        }];
        query.extend(limit.map(|limit| format!("limit={limit}")));
        query.retain(|parameter| !parameter.is_empty());
        let response = self.service.get(&format!("/api/sessions/{id}/messages?{}", query.join("&"))).await;
        self.model.close_lost_turn(id);
        let Some(session) = self.model.session(id) else {
            return self.check(&response, &self.model.get(id));
        };
        let all = &session.messages;
        let limit = limit.unwrap_or(50);
        // The bounds of the page as indexes into `all`. `seq` counts from 1.
        let (from, to) = match range {
            Range::Newest => (all.len().saturating_sub(limit), all.len()),
            Range::Before(seq) => {
                let to = seq.saturating_sub(1).min(all.len());
                (to.saturating_sub(limit), to)
            }
            Range::After(seq) => {
                let from = seq.min(all.len());
                (from, (from + limit).min(all.len()))
            }
        };
        self.check(&response, &Expected::Body { status: 200, body: all[from..to].into() })?;
        let announced = (response.link("prev").is_some(), response.link("next").is_some());
        same("links to older and newer messages", &announced, &(from > 0, to < all.len()))
    }

    /// Follows the links of one relation, starting at a page. Returns all messages, page by page.
    async fn message_pages(&self, path: String, relation: &str) -> Vec<Vec<Value>> {
        let mut pages = Vec::new();
        let mut next = Some(path);
        while let Some(path) = next.filter(|_| pages.len() < PAGES_MAX) {
            let response = self.service.get(&path).await.expect(200);
            pages.push(response.json().as_array().cloned().unwrap_or_default());
            next = response.link(relation);
        }
        pages
    }

    async fn get_active(&self, user: usize) -> Outcome {
        let owner = &self.owners[user];
        let response = self.service.get(&format!("{}/active", user_path(owner))).await;
        self.check(&response, &self.model.active(owner))
    }

    async fn list_history(&self, user: usize, limit: usize) -> Outcome {
        let owner = &self.owners[user];
        let expected = self.model.history(owner);
        let pages = self.pages(format!("{}/history?limit={limit}", user_path(owner)), limit, None).await?;
        same("the history", &pages, &expected)
    }

    async fn list_active(&self, user: usize, limit: usize) -> Outcome {
        let business = &self.owners[user].business;
        let mut expected = self.model.active_of_business(business);
        let path = format!("/api/sessions/business/{}/active?limit={limit}", encoded(business));
        let mut pages = self.pages(path, limit, Some(expected.len())).await?;
        let expiries = |list: &[Value]| list.iter().map(|session| session["expiresAt"].clone()).collect::<Vec<_>>();
        same("the order of the active sessions", &expiries(&pages), &expiries(&expected))?;
        // The order of sessions that expire at the same moment is not specified.
        for list in [&mut pages, &mut expected] {
            list.sort_by_key(|session| session["sessionId"].to_string());
        }
        same("the active sessions", &pages, &expected)
    }

    /// All entries of a list of sessions. Every page but the last must be full and must have a link to the next.
    async fn pages(&self, path: String, limit: usize, total: Option<usize>) -> Result<Vec<Value>, String> {
        let mut entries = Vec::new();
        let mut next = Some(path);
        while let Some(path) = next {
            let response = self.service.get(&path).await;
            let page = response.json();
            let page =
                page.as_array().filter(|_| response.status == 200).ok_or_else(|| format!("no list: {response:?}"))?;
            same("X-Total-Count", &response.header("x-total-count"), &total.map(|total| total.to_string()).as_deref())?;
            next = response.link("next");
            let fits = if next.is_some() { page.len() == limit } else { page.len() <= limit };
            if !fits || (page.is_empty() && !entries.is_empty()) || entries.len() > PAGES_MAX * limit {
                return Err(format!("{path}: a page of {} of {limit}, next {next:?}", page.len()));
            }
            entries.extend(page.iter().cloned());
        }
        Ok(entries)
    }

    async fn erase_user(&mut self, user: usize) -> Outcome {
        let owner = &self.owners[user];
        let response = self.service.delete(&user_path(owner)).await;
        let expected = self.model.erase(owner);
        self.check(&response, &expected)
    }

    /// Compares a response with the expected one, and counts the expected outcome.
    fn check(&self, response: &Answer, expected: &Expected) -> Outcome {
        let outcome = match expected {
            Expected::Session { status, document } => {
                format!("{status} {} {}", text(document, "status"), text(document, "endReason")).trim_end().to_owned()
            }
            Expected::Body { status, body } if body.get("turnId").is_some() => {
                format!("{status} turn {}", text(body, "status"))
            }
            Expected::Body { status, body } if body.get("nextChunk").is_some() => format!("{status} chunks"),
            Expected::Body { status: 201, .. } => "201 appended".to_owned(),
            Expected::Body { status, body } if body.get("deletedSessions").is_some() => format!("{status} erased"),
            Expected::Body { status, body } if body.get("redactedAt").is_some() => format!("{status} redacted"),
            Expected::Body { status, body } if body.get("messageId").is_some() => format!("{status} replayed"),
            Expected::Body { status, .. } => format!("{status} several"),
            Expected::NoContent => "204".to_owned(),
            Expected::Problem { status, code, members } => {
                format!("{status} {code} {}", text(members, "turnStatus")).trim_end().to_owned()
            }
        };
        *self.drawn.borrow_mut().outcomes.entry(outcome).or_default() += 1;
        compare(response, expected)
    }

    /// Reads all sessions, messages and lists of this case, and compares them with the model.
    async fn read_everything(&mut self) -> Outcome {
        for id in &self.ids.clone() {
            self.get(id).await?;
            let included = self.service.get(&format!("/api/sessions/{id}?include=lastMessage,turn")).await;
            let expected = self.model.get_with_includes(id);
            self.check(&included, &expected)?;
            self.turn(id, &TurnCall::LATEST).await?;
            self.list_messages(id, Range::Newest, Some(1000)).await?;
            if let Some(session) = self.model.session(id) {
                let path = format!("/api/sessions/{id}/messages?limit=2");
                let forward = self.message_pages(format!("{path}&after=0"), "next").await;
                same("the messages from the oldest on", &forward.concat(), &session.messages)?;
                let mut backward = self.message_pages(path, "prev").await;
                backward.reverse();
                same("the messages from the newest on", &backward.concat(), &session.messages)?;
            }
        }
        for user in 0..USERS {
            self.get_active(user).await?;
            self.list_history(user, 2).await?;
            self.list_history(user, 100).await?;
            self.list_active(user, 1).await?;
        }
        Ok(())
    }
}

/// Compares a response with the expected one, including every member of the body.
fn compare(response: &Answer, expected: &Expected) -> Outcome {
    let etag = response.header("etag").map(str::to_owned);
    let location = response.header("location").map(str::to_owned);
    let (media_type, wanted_etag, wanted_location) = match expected {
        Expected::Session { status, document } => {
            let created = (*status == 201).then(|| format!("/api/sessions/{}", text(document, "sessionId")));
            (Some("application/json"), Some(format!("\"{}\"", document["version"])), created)
        }
        Expected::Body { status, body } => {
            let began = (*status == 201).then(|| body["turnId"].as_str()).flatten();
            let turn_path = |turn_id| format!("/api/sessions/{}/turns/{}", text(body, "sessionId"), encoded(turn_id));
            (Some("application/json"), None, began.map(turn_path))
        }
        Expected::NoContent => (None, None, None),
        Expected::Problem { .. } => (Some("application/problem+json"), None, None),
    };
    let status = response.status.as_u16();
    let actual = match expected {
        Expected::Session { .. } => Expected::Session { status, document: response.json() },
        Expected::Body { .. } => Expected::Body { status, body: response.json() },
        Expected::NoContent if response.text.is_empty() && status == 204 => Expected::NoContent,
        Expected::Problem { code, .. } if response.json()["code"] == *code => {
            let problem = response.json();
            let member = |name: &&str| Some(((*name).to_owned(), problem.get(*name)?.clone()));
            let members = PROBLEM_MEMBERS.iter().filter_map(member).collect::<Map<_, _>>().into();
            Expected::Problem { status, code, members }
        }
        _ => return Err(format!("\n  expected {expected:?}\n  actual   {response:?}")),
    };
    if actual != *expected {
        return Err(format!("\n  expected {expected:?}\n  actual   {actual:?}"));
    }
    same("Content-Type", &response.header("content-type"), &media_type)?;
    same("ETag", &etag, &wanted_etag)?;
    same("Location", &location, &wanted_location)
}

fn same<T: PartialEq + std::fmt::Debug + ?Sized>(what: &str, actual: &T, expected: &T) -> Outcome {
    if actual == expected {
        return Ok(());
    }
    Err(format!("{what}:\n  expected {expected:?}\n  actual   {actual:?}"))
}

fn text<'a>(document: &'a Value, name: &str) -> &'a str {
    document[name].as_str().unwrap_or_default()
}

fn message_path(session: &str, message: &str) -> String {
    format!("/api/sessions/{session}/messages/{}", encoded(message))
}

fn user_path(owner: &Owner) -> String {
    format!("/api/sessions/business/{}/user/{}", encoded(&owner.business), encoded(&owner.user))
}

/// Percent-encodes every byte that is not an ASCII letter or digit.
fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}
