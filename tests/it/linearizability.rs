//! To the clients of one user it must look as if their calls were made one after the other, each at some moment between
//! its call and its answer: linearizability (Herlihy and Wing, 1990). Clients of several processes ask at once, everything
//! that they were told is recorded, and a checker looks for such an order. Nothing expires in a test's time.

pub mod history;
pub mod user;

use std::sync::mpsc::{self, RecvTimeoutError};

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;

use self::history::{Call, Recorder, is_linearizable};
use self::user::{Answer, Shown, Step, Text, Verb};
use crate::support::acl;
use crate::support::process::{self, Process};
use crate::support::random::Random;
use crate::support::redis::shared_url;
use crate::support::victim::Victim;

const HISTORIES: usize = 300;
const CLIENTS: usize = 5;
const CALLS: usize = 6;
/// Histories that are recorded at the same time.
const AT_ONCE: usize = 30;
/// Shorter than a Redis is stopped, so that calls are given up that have their effect later.
pub const DEADLINE: [&str; 2] = ["--request-deadline", "500ms"];

/// How many users each process remembers: as many as there are, too few, none.
const HINTS: [[&str; 2]; 3] = [["--max-hints", "100000"], ["--max-hints", "1"], ["--max-hints", "0"]];

/// One client of a user: calls that its choices lead to, with any of the last few ids that anybody was told.
async fn client(recorder: &Recorder, bases: &[String], user: usize, mut random: Random, pause_max_ms: u64) {
    for number in 0..CALLS {
        let ids = recorder.ids(user);
        let id = ids.get(ids.len().saturating_sub(1 + random.below(3))).cloned();
        let verb = match (random.below(16), id) {
            (0, _) => Verb::EraseUser,
            (1 | 2, _) => Verb::Replace,
            (3 | 4, _) => Verb::GetActive,
            (5..8, Some(id)) => Verb::End(id),
            (8 | 9, Some(id)) => Verb::Resume(id),
            (10 | 11, Some(id)) => Verb::ResumeReplacing(id),
            (12, Some(id)) => Verb::Get(id),
            (13, Some(id)) => Verb::Append(id, format!("m{}-{number}", random.below(3)).into()),
            (14, Some(id)) => Verb::Delete(id),
            _ => Verb::GetOrCreate,
        };
        let base = random.one_of(bases).clone();
        recorder.call(&base, user, verb).await;
        tokio::time::sleep(random.pause(0, pause_max_ms)).await;
    }
}

/// Records a history for each user, some at a time.
async fn record(recorder: &Recorder, bases: &[String], random: &mut Random, pause_max_ms: u64) {
    let histories: Vec<_> = (0..recorder.users())
        .map(|user| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| random.fork()).collect();
            async move {
                let clients = clients.into_iter().map(|random| client(recorder, bases, user, random, pause_max_ms));
                join_all(clients).await;
            }
        })
        .collect();
    stream::iter(histories).for_each_concurrent(AT_ONCE, |history| history).await;
}

/// Panics unless the program finds nothing wrong with what is stored.
pub fn expect_clean(url: &str, prefix: &str) {
    let arguments = ["audit", "--key-prefix", prefix, "--max-keys-per-second", "1000000"];
    let audited = process::run(&arguments, &[("REDIS_URL", &acl::audit_url(url))]);
    assert!(audited.status.success(), "{}", String::from_utf8_lossy(&audited.stdout));
}

#[tokio::test]
async fn histories_of_several_processes_are_linearizable() {
    let url = shared_url();
    let prefix = format!("sd:lin-{}", std::process::id());
    let flags = ["--key-prefix", &prefix, "--request-deadline", "10s"];
    let processes = HINTS.map(|hints| Process::serve(&[&flags[..], &hints].concat(), &[("REDIS_URL", &url)]));
    let bases = processes.each_ref().map(|(_, base)| base.clone());
    let recorder = Recorder::new("u", HISTORIES);
    record(&recorder, &bases, &mut Random::seeded(), 2).await;
    let summary = recorder.expect_linearizable();
    assert_eq!(summary.unanswered, 0, "nothing happened to Redis, so everything is answered");
    expect_clean(&url, &prefix);
    println!("{summary:?}");
}

#[tokio::test]
async fn histories_are_linearizable_whatever_happens_to_redis() {
    let mut random = Random::seeded();
    let mut redis = Victim::start();
    let url = redis.url();
    let processes = HINTS.map(|hints| Process::serve(&[&DEADLINE[..], &hints].concat(), &[("REDIS_URL", &url)]));
    let bases = processes.each_ref().map(|(_, base)| base.clone());
    let recorder = Recorder::new("u", HISTORIES);
    // Dropped when it is over, also by a test that fails.
    let (running, over) = mpsc::channel::<()>();
    let faults = {
        let mut random = random.fork();
        tokio::task::spawn_blocking(move || {
            let mut suffered = Vec::new();
            while over.recv_timeout(random.pause(20, 300)) == Err(RecvTimeoutError::Timeout) {
                suffered.push(redis.suffer(&mut random));
            }
            (redis, suffered)
        })
    };
    record(&recorder, &bases, &mut random, 120).await;
    drop(running);
    let (_redis, suffered) = faults.await.expect("no panic");
    let summary = recorder.expect_linearizable();
    // What was given up may still be on its way: the services end first.
    drop(processes);
    expect_clean(&url, "sd");
    println!("{summary:?}; {suffered:?}");
}

/// Calls of a hand-written history: when each was made and answered, or never.
fn calls(rows: Vec<(usize, Option<usize>, Verb, Option<Answer>)>) -> Vec<Call> {
    let call = |(called, answered, verb, answer)| Call { step: Step { verb, answer }, called, answered };
    rows.into_iter().map(call).collect()
}

fn shown(id: &str, active: bool, version: u64) -> Shown {
    Shown { id: id.into(), active, version, title: None, messages: 0 }
}

#[test]
fn the_checker_accepts_what_some_order_explains() {
    let [a, b] = ["a", "b"].map(Text::from);
    let found = |id, active, version| Some(Answer::Found(shown(id, active, version)));
    let created = |id| Some(Answer::Created(shown(id, true, 1)));
    let accepted = [
        vec![],
        // At once: the one that found it was answered first.
        vec![(0, Some(3), Verb::GetOrCreate, created("a")), (1, Some(2), Verb::GetOrCreate, found("a", true, 1))],
        // Created without an answer, found later; and a replace without one that had its effect last.
        vec![
            (0, None, Verb::GetOrCreate, None),
            (1, None, Verb::Replace, None),
            (2, Some(3), Verb::GetActive, found("a", true, 1)),
            (4, Some(5), Verb::End(a.clone()), found("a", false, 2)),
            (6, Some(7), Verb::GetActive, found("b", true, 1)),
            (8, Some(9), Verb::Resume(a.clone()), Some(Answer::AnotherActive(b.clone()))),
        ],
        // An end that never had an effect.
        vec![
            (0, Some(1), Verb::GetOrCreate, created("a")),
            (2, None, Verb::End(a.clone()), None),
            (3, Some(4), Verb::GetActive, found("a", true, 1)),
        ],
        // One that nobody was told is erased with the others.
        vec![
            (0, None, Verb::GetOrCreate, None),
            (1, Some(2), Verb::Replace, created("b")),
            (3, Some(4), Verb::EraseUser, Some(Answer::Erased(2))),
        ],
    ];
    for history in accepted.map(calls) {
        assert!(is_linearizable(&history), "{history:#?}");
    }
}

#[test]
fn the_checker_refuses_what_no_order_explains() {
    let [a, m] = ["a", "m"].map(Text::from);
    let found = |id, active, version| Some(Answer::Found(shown(id, active, version)));
    let created = |id| Some(Answer::Created(shown(id, true, 1)));
    let refused = [
        // Two sessions for one user, even if both were asked for at once.
        vec![(0, Some(2), Verb::GetOrCreate, created("a")), (1, Some(3), Verb::GetOrCreate, created("b"))],
        // Found before anybody asked for it.
        vec![(0, Some(1), Verb::GetActive, found("a", true, 1)), (2, None, Verb::GetOrCreate, None)],
        // Active after its end was answered.
        vec![
            (0, Some(1), Verb::GetOrCreate, created("a")),
            (2, Some(3), Verb::End(a.clone()), found("a", false, 2)),
            (4, Some(5), Verb::GetActive, found("a", true, 1)),
        ],
        // An acknowledged create is gone.
        vec![(0, Some(1), Verb::GetOrCreate, created("a")), (2, Some(3), Verb::GetActive, Some(Answer::NotFound))],
        // One end that is given up has its effect twice.
        vec![
            (0, Some(1), Verb::GetOrCreate, created("a")),
            (2, None, Verb::End(a.clone()), None),
            (3, Some(4), Verb::Resume(a.clone()), found("a", true, 3)),
            (5, Some(6), Verb::GetActive, Some(Answer::NotFound)),
        ],
        // A message that is stored twice.
        vec![
            (0, Some(1), Verb::GetOrCreate, created("a")),
            (2, None, Verb::Append(a.clone(), m.clone()), None),
            (3, Some(4), Verb::ListMessages(a.clone()), Some(Answer::Messages(vec![m.clone(), m.clone()]))),
        ],
        // A session of somebody else.
        vec![(0, Some(1), Verb::GetOrCreate, created("a")), (2, Some(3), Verb::Get(a.clone()), found("b", true, 1))],
        // Brought back after its deletion.
        vec![
            (0, Some(1), Verb::GetOrCreate, created("a")),
            (2, Some(3), Verb::Delete(a.clone()), Some(Answer::Deleted)),
            (4, Some(5), Verb::Get(a.clone()), found("a", true, 1)),
        ],
    ];
    for history in refused.map(calls) {
        assert!(!is_linearizable(&history), "{history:#?}");
    }
}

/// Every recorded answer matters: a history in which one is turned into another is refused.
#[tokio::test]
async fn a_recorded_history_with_one_false_answer_is_refused() {
    let url = shared_url();
    let prefix = format!("sd:lin-false-{}", std::process::id());
    let (_process, base) = Process::serve(&["--key-prefix", &prefix], &[("REDIS_URL", &url)]);
    let recorder = Recorder::new("u", 1);
    record(&recorder, &[base], &mut Random::seeded(), 2).await;
    let history = recorder.history(0);
    assert!(is_linearizable(&history));
    for place in 0..history.len() {
        let mut history = history.clone();
        let Some(Answer::Created(shown) | Answer::Found(shown)) = &mut history[place].step.answer else { continue };
        shown.version += 100;
        assert!(!is_linearizable(&history), "{place}: {history:#?}");
    }
}
