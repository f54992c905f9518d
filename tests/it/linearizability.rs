//! Linearizability (Herlihy and Wing, 1990) of the calls for one user: they must be equivalent to a sequential order in
//! which each call takes effect at some moment between its request and its response. The tests send concurrent calls to
//! several processes, record every request and response, and have a checker search for such an order. Sessions do not
//! expire during a test.

pub mod history;
mod turns;
pub mod user;

use std::sync::mpsc::{self, RecvTimeoutError};

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;

use self::history::{Call, Recorder, is_linearizable};
use self::turns::TurnCall;
use self::user::{Answer, Operation, SessionView, Step, Text};
use crate::support::acl;
use crate::support::faulty_redis::FaultyRedis;
use crate::support::process::{self, Process};
use crate::support::random::Random;
use crate::support::redis::shared_url;

const HISTORIES: usize = 300;
/// The calls of one user's history.
#[derive(Clone, Copy)]
struct Size {
    clients: usize,
    /// Of each client.
    calls: usize,
}
const LARGE: Size = Size { clients: 5, calls: 6 };
/// Calls without a response may take effect at any later moment, so the checker has many more orders to try.
const UNDER_FAULTS: Size = Size { clients: 4, calls: 4 };
/// Histories that are recorded at the same time.
const CONCURRENT_HISTORIES: usize = 30;
/// Shorter than the time for which the tests stop Redis, so that some calls time out and take effect later.
pub const DEADLINE: [&str; 2] = ["--request-deadline", "500ms"];

/// The hint cache of each process: large enough for all users, too small, and off.
const HINTS: [[&str; 2]; 3] = [["--hint-cache-size", "100000"], ["--hint-cache-size", "1"], ["--hint-cache-size", "0"]];

/// A turn that a client is writing.
struct Written {
    session: Text,
    turn_id: Text,
    number: u64,
    next_chunk: usize,
}

impl Written {
    /// The turn of `operation`, as described by its answer.
    fn of(operation: &Operation, answer: Option<Answer>) -> Option<Self> {
        match (operation, answer) {
            (
                Operation::Turn(session, turn_id, TurnCall::Begin { .. }),
                Some(Answer::TurnBegun(turn) | Answer::Turn(turn)),
            ) => {
                let (session, turn_id) = (session.clone(), turn_id.clone());
                Some(Self { session, turn_id, number: turn.number, next_chunk: turn.next_chunk })
            }
            _ => None,
        }
    }

    /// A random call of the writer.
    fn call(&self, writer: &Text, random: &mut Random) -> Operation {
        let call = match random.below(4) {
            0 => TurnCall::End { number: self.number },
            // A chunk may be sent again, with another text, or with a number that is too high.
            kind => TurnCall::Write {
                number: self.number,
                from: (self.next_chunk + random.below(8) / 7).saturating_sub(random.below(4) / 3),
                chunk: format!("{writer}{kind} ").into(),
            },
        };
        Operation::Turn(self.session.clone(), self.turn_id.clone(), call)
    }
}

/// A random call for one of three turns of a session.
fn turn_call(session: Text, writer: &Text, random: &mut Random) -> Operation {
    let call = match random.below(5) {
        0 => TurnCall::Cancel,
        1 => TurnCall::Get,
        _ => {
            let if_open = *random.one_of(&["reject", "interrupt", "discard", "takeover"]);
            TurnCall::Begin { writer: writer.clone(), if_open }
        }
    };
    Operation::Turn(session, format!("t{}", random.below(3)).into(), call)
}

/// One client of a user. Makes random calls, each with one of the user's three most recently returned session ids.
async fn client(
    recorder: &Recorder,
    bases: &[String],
    (user, name): (usize, usize),
    calls: usize,
    mut random: Random,
    pause_max_ms: u64,
) {
    let writer: Text = format!("w{name}").into();
    let mut written: Option<Written> = None;
    for number in 0..calls {
        let ids = recorder.ids(user);
        let id = ids.get(ids.len().saturating_sub(1 + random.below(3))).cloned();
        let operation = match (random.below(24), id) {
            (16..20, Some(id)) => turn_call(id, &writer, &mut random),
            (18.., _) if written.is_some() => written.as_ref().expect("a turn").call(&writer, &mut random),
            (0, _) => Operation::EraseUser,
            (1 | 2, _) => Operation::Replace,
            (3 | 4, _) => Operation::GetActive,
            (5..8, Some(id)) => Operation::End(id),
            (8 | 9, Some(id)) => Operation::Resume(id),
            (10 | 11, Some(id)) => Operation::ResumeReplacing(id),
            (12, Some(id)) => Operation::Get(id),
            (13, Some(id)) => Operation::Append(id, format!("m{}-{number}", random.below(3)).into()),
            (14, Some(id)) => Operation::Delete(id),
            _ => Operation::GetOrCreate,
        };
        let base = random.one_of(bases).clone();
        let answer = recorder.call(&base, user, operation.clone()).await;
        match (&mut written, &answer) {
            (Some(written), Some(Answer::Written(next_chunk, _))) => written.next_chunk = *next_chunk,
            _ => written = Written::of(&operation, answer).or(written),
        }
        tokio::time::sleep(random.pause(0, pause_max_ms)).await;
    }
}

/// Records a history for each user, `CONCURRENT_HISTORIES` at a time.
async fn record(recorder: &Recorder, bases: &[String], size: Size, random: &mut Random, pause_max_ms: u64) {
    let histories: Vec<_> = (0..recorder.users())
        .map(|user| {
            let clients: Vec<_> = (0..size.clients).map(|_| random.fork()).collect();
            async move {
                let clients = clients
                    .into_iter()
                    .enumerate()
                    .map(|(name, random)| client(recorder, bases, (user, name), size.calls, random, pause_max_ms));
                join_all(clients).await;
            }
        })
        .collect();
    stream::iter(histories).for_each_concurrent(CONCURRENT_HISTORIES, |history| history).await;
}

/// Runs `sessiond audit` and panics unless it finds nothing.
pub fn expect_clean(url: &str, prefix: &str) {
    let arguments = ["audit", "--key-prefix", prefix, "--max-keys-per-second", "1000000"];
    let audited = process::run(&arguments, &[("REDIS_URL", &acl::audit_url(url))]);
    let text = [audited.stdout, audited.stderr].concat();
    assert!(audited.status.success(), "{}", String::from_utf8_lossy(&text));
}

#[tokio::test]
async fn histories_of_several_processes_are_linearizable() {
    let url = shared_url();
    let prefix = format!("sd:lin-{}", std::process::id());
    let flags = ["--key-prefix", &prefix, "--request-deadline", "10s"];
    let processes = HINTS.map(|hints| Process::serve(&[&flags[..], &hints].concat(), &[("REDIS_URL", &url)]));
    let bases = processes.each_ref().map(|(_, base)| base.clone());
    let recorder = Recorder::new("u", HISTORIES);
    record(&recorder, &bases, LARGE, &mut Random::seeded(), 2).await;
    let summary = recorder.expect_linearizable();
    assert_eq!(summary.without_response, 0, "a call got no response although Redis had no fault");
    expect_clean(&url, &prefix);
    println!("{summary:?}");
}

#[tokio::test]
async fn histories_are_linearizable_under_redis_faults() {
    let mut random = Random::seeded();
    let mut redis = FaultyRedis::start();
    let url = redis.url();
    let processes = HINTS.map(|hints| Process::serve(&[&DEADLINE[..], &hints].concat(), &[("REDIS_URL", &url)]));
    let bases = processes.each_ref().map(|(_, base)| base.clone());
    let recorder = Recorder::new("u", HISTORIES);
    // Dropping `running` stops the faults, even if the test fails.
    let (running, stopped) = mpsc::channel::<()>();
    let faults = {
        let mut random = random.fork();
        tokio::task::spawn_blocking(move || {
            let mut applied = Vec::new();
            while stopped.recv_timeout(random.pause(20, 300)) == Err(RecvTimeoutError::Timeout) {
                applied.push(redis.inject_fault(&mut random));
            }
            (redis, applied)
        })
    };
    record(&recorder, &bases, UNDER_FAULTS, &mut random, 120).await;
    drop(running);
    let (_redis, applied) = faults.await.expect("no panic");
    let summary = recorder.expect_linearizable();
    // Calls that timed out may still take effect, so the services end before the audit.
    drop(processes);
    expect_clean(&url, "sd");
    println!("{summary:?}; {applied:?}");
}

/// The calls of a hand-written history. Each row has the moment of the request, the moment of the response or `None`,
/// the operation, and its result.
fn calls(rows: Vec<(usize, Option<usize>, Operation, Option<Answer>)>) -> Vec<Call> {
    let call =
        |(requested, responded, operation, answer)| Call { step: Step { operation, answer }, requested, responded };
    rows.into_iter().map(call).collect()
}

fn view(id: &str, active: bool, version: u64) -> SessionView {
    SessionView { id: id.into(), active, version, title: None, messages: 0 }
}

#[test]
fn checker_accepts_linearizable_histories() {
    let [a, b] = ["a", "b"].map(Text::from);
    let found = |id, active, version| Some(Answer::Found(view(id, active, version)));
    let created = |id| Some(Answer::Created(view(id, true, 1)));
    let accepted = [
        vec![],
        // Concurrent calls: the one that found the session got its response first.
        vec![
            (0, Some(3), Operation::GetOrCreate, created("a")),
            (1, Some(2), Operation::GetOrCreate, found("a", true, 1)),
        ],
        // A create without a response, found later, and a replace without a response that took effect last.
        vec![
            (0, None, Operation::GetOrCreate, None),
            (1, None, Operation::Replace, None),
            (2, Some(3), Operation::GetActive, found("a", true, 1)),
            (4, Some(5), Operation::End(a.clone()), found("a", false, 2)),
            (6, Some(7), Operation::GetActive, found("b", true, 1)),
            (8, Some(9), Operation::Resume(a.clone()), Some(Answer::AnotherActive(b.clone()))),
        ],
        // An end without a response that never took effect.
        vec![
            (0, Some(1), Operation::GetOrCreate, created("a")),
            (2, None, Operation::End(a.clone()), None),
            (3, Some(4), Operation::GetActive, found("a", true, 1)),
        ],
        // A session whose create got no response is erased with the others.
        vec![
            (0, None, Operation::GetOrCreate, None),
            (1, Some(2), Operation::Replace, created("b")),
            (3, Some(4), Operation::EraseUser, Some(Answer::Erased(2))),
        ],
    ];
    for history in accepted.map(calls) {
        assert_eq!(is_linearizable(&history).0, Some(true), "{history:#?}");
    }
}

#[test]
fn checker_rejects_non_linearizable_histories() {
    let [a, m] = ["a", "m"].map(Text::from);
    let found = |id, active, version| Some(Answer::Found(view(id, active, version)));
    let created = |id| Some(Answer::Created(view(id, true, 1)));
    let rejected = [
        // Two active sessions of one user, created by concurrent calls.
        vec![(0, Some(2), Operation::GetOrCreate, created("a")), (1, Some(3), Operation::GetOrCreate, created("b"))],
        // A session found before the call that creates it.
        vec![(0, Some(1), Operation::GetActive, found("a", true, 1)), (2, None, Operation::GetOrCreate, None)],
        // A session that is active after the response to its end.
        vec![
            (0, Some(1), Operation::GetOrCreate, created("a")),
            (2, Some(3), Operation::End(a.clone()), found("a", false, 2)),
            (4, Some(5), Operation::GetActive, found("a", true, 1)),
        ],
        // A session not found after its acknowledged create.
        vec![
            (0, Some(1), Operation::GetOrCreate, created("a")),
            (2, Some(3), Operation::GetActive, Some(Answer::NotFound)),
        ],
        // An end without a response that took effect twice.
        vec![
            (0, Some(1), Operation::GetOrCreate, created("a")),
            (2, None, Operation::End(a.clone()), None),
            (3, Some(4), Operation::Resume(a.clone()), found("a", true, 3)),
            (5, Some(6), Operation::GetActive, Some(Answer::NotFound)),
        ],
        // A message stored twice by one append.
        vec![
            (0, Some(1), Operation::GetOrCreate, created("a")),
            (2, None, Operation::Append(a.clone(), m.clone()), None),
            (3, Some(4), Operation::ListMessages(a.clone()), Some(Answer::Messages(vec![m.clone(), m.clone()]))),
        ],
        // A response with another session than the requested one.
        vec![
            (0, Some(1), Operation::GetOrCreate, created("a")),
            (2, Some(3), Operation::Get(a.clone()), found("b", true, 1)),
        ],
        // A session found after its deletion.
        vec![
            (0, Some(1), Operation::GetOrCreate, created("a")),
            (2, Some(3), Operation::Delete(a.clone()), Some(Answer::Deleted)),
            (4, Some(5), Operation::Get(a.clone()), found("a", true, 1)),
        ],
    ];
    for history in rejected.map(calls) {
        assert_eq!(is_linearizable(&history).0, Some(false), "{history:#?}");
    }
}

/// Shows that the checker uses every recorded response: it rejects a history in which any one of them is changed.
#[tokio::test]
async fn recorded_history_with_one_wrong_response_is_rejected() {
    let url = shared_url();
    let prefix = format!("sd:lin-false-{}", std::process::id());
    let (_process, base) = Process::serve(&["--key-prefix", &prefix], &[("REDIS_URL", &url)]);
    let recorder = Recorder::new("u", 1);
    record(&recorder, &[base], LARGE, &mut Random::seeded(), 2).await;
    let history = recorder.history(0);
    assert_eq!(is_linearizable(&history).0, Some(true));
    for index in 0..history.len() {
        let mut history = history.clone();
        match &mut history[index].step.answer {
            Some(Answer::Created(view) | Answer::Found(view)) => view.version += 100,
            Some(Answer::TurnBegun(turn) | Answer::Turn(turn)) => turn.number += 100,
            Some(Answer::Written(next_chunk, _)) => *next_chunk += 100,
            _ => continue,
        }
        assert_eq!(is_linearizable(&history).0, Some(false), "{index}: {history:#?}");
    }
}
