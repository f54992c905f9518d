//! Random faults of Redis, of services and of connections, while 256 users of two service processes call every
//! operation. The suite runs this for 10 s; `make soak` runs it longer.

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::linearizability::history::{BUSINESS, Recorder};
use crate::linearizability::user::{Answer, Operation};
use crate::linearizability::{DEADLINE, expect_clean};
use crate::support::faulty_redis::FaultyRedis;
use crate::support::process::{Process, TEST_TIMEOUT};
use crate::support::random::Random;

const USERS: usize = 256;
const CLIENTS: usize = 24;
/// Shortest and longest pause between two calls of one client: about 400 calls per second in total.
const PAUSE_MS: (u64, u64) = (10, 110);
/// Shortest and longest pause between two faults.
const FAULT_PAUSE_MS: (u64, u64) = (20, 500);
/// The length of a round. Each round has new users, because the time to check a history grows with its number of calls
/// without a response.
const ROUND: Duration = Duration::from_secs(10);
/// The suite runs one round.
const SUITE_SECONDS: u64 = ROUND.as_secs();

/// Two service processes and their current base URLs.
struct Services {
    url: String,
    processes: [Process; 2],
    bases: Arc<RwLock<[String; 2]>>,
}

impl Services {
    fn start(url: &str) -> Self {
        let [(first, first_base), (second, second_base)] = [(), ()].map(|()| Self::serve(url));
        let bases = Arc::new(RwLock::new([first_base, second_base]));
        Self { url: url.to_owned(), processes: [first, second], bases }
    }

    fn serve(url: &str) -> (Process, String) {
        Process::serve(&DEADLINE, &[("REDIS_URL", url)])
    }
}

async fn client(recorder: &Recorder, bases: &RwLock<[String; 2]>, mut random: Random, until: Instant) {
    while Instant::now() < until {
        let user = random.below(recorder.users());
        let base = bases.read().expect("no panic")[random.below(2)].clone();
        let ids = recorder.ids(user);
        let id = ids.get(ids.len().saturating_sub(1 + random.below(3))).cloned();
        let text = format!("m{}", random.below(30)).into();
        let operation = match (random.below(32), id) {
            (0, _) => Operation::EraseUser,
            (1, Some(id)) => Operation::Delete(id),
            (2 | 3, _) => Operation::Replace,
            (4 | 5, _) => Operation::GetActive,
            (6..9, Some(id)) => Operation::End(id),
            (9 | 10, Some(id)) => Operation::Resume(id),
            (11 | 12, Some(id)) => Operation::ResumeReplacing(id),
            (13, Some(id)) => Operation::Get(id),
            (14..16, Some(id)) => Operation::Retitle(id, text),
            (16..22, Some(id)) => Operation::Append(id, text),
            (22..24, Some(id)) => Operation::ListMessages(id),
            (24, _) => {
                recorder
                    .list(&base, &format!("/api/sessions/business/{BUSINESS}/user/{}/history", recorder.name(user)))
                    .await;
                continue;
            }
            (25, _) => {
                recorder.list(&base, &format!("/api/sessions/business/{BUSINESS}/active?limit=100")).await;
                continue;
            }
            _ => Operation::GetOrCreate,
        };
        recorder.call(&base, user, operation).await;
        tokio::time::sleep(random.pause(PAUSE_MS.0, PAUSE_MS.1)).await;
    }
}

/// Injects faults one after another until `until`. Returns their names.
fn inject_faults(
    mut redis: FaultyRedis,
    mut services: Services,
    mut random: Random,
    until: Instant,
) -> (FaultyRedis, Services, Vec<&'static str>) {
    let mut faults = Vec::new();
    while Instant::now() < until {
        if random.below(6) == 0 {
            let number = random.below(2);
            let (process, base) = Services::serve(&services.url);
            // Replacing the old process drops it, which kills it.
            services.processes[number] = process;
            services.bases.write().expect("no panic")[number] = base;
            faults.push("service killed");
        } else {
            faults.push(redis.inject_fault(&mut random));
        }
        std::thread::sleep(random.pause(FAULT_PAUSE_MS.0, FAULT_PAUSE_MS.1));
    }
    (redis, services, faults)
}

async fn wait_until_ready(base: &str) {
    let started = Instant::now();
    while !reqwest::get(format!("{base}/readyz")).await.is_ok_and(|response| response.status().is_success()) {
        assert!(started.elapsed() < TEST_TIMEOUT, "{base} is not ready again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Panics unless every acknowledged message is stored once, at its acknowledged `seq`, if its session still exists.
/// Returns how many such messages there are.
fn expect_acknowledged_messages(recorder: &Recorder, user: usize, read: &[(Operation, Option<Answer>)]) -> usize {
    let history = recorder.history(user);
    let mut acknowledged = 0;
    for (operation, answer) in read {
        let (Operation::ListMessages(id), Some(Answer::Messages(stored))) = (operation, answer) else { continue };
        for call in &history {
            if let (Operation::Append(to, message), Some(Answer::Appended(seq) | Answer::Replayed(seq))) =
                (&call.step.operation, &call.step.answer)
                && to == id
            {
                let found: Vec<_> = (1..).zip(stored).filter(|(_, stored)| *stored == message).collect();
                assert_eq!(found, [(*seq, message)], "user {user}, session {id}: {stored:?}");
                acknowledged += 1;
            }
        }
    }
    acknowledged
}

#[tokio::test]
async fn random_faults_lose_no_acknowledged_write() {
    let seconds = std::env::var("SESSIOND_SOAK_SECONDS")
        .map_or(SUITE_SECONDS, |seconds| seconds.parse().expect("SESSIOND_SOAK_SECONDS is a number of seconds"));
    let mut random = Random::seeded();
    let redis = FaultyRedis::start();
    let mut state = (Services::start(&redis.url()), redis);
    for round in 0..seconds.div_ceil(ROUND.as_secs()) {
        state = run_round(&format!("u{round}-"), state, &mut random).await;
    }
}

/// Runs one round. A call that is in flight when the load ends has ended once the services are ready again and
/// have responded to the reads.
async fn run_round(
    prefix: &str,
    (services, redis): (Services, FaultyRedis),
    random: &mut Random,
) -> (Services, FaultyRedis) {
    let (recorder, bases) = (Recorder::new(prefix, USERS), services.bases.clone());
    let until = Instant::now() + ROUND;
    let fault_random = random.fork();
    let injector = tokio::task::spawn_blocking(move || inject_faults(redis, services, fault_random, until));
    join_all((0..CLIENTS).map(|_| client(&recorder, &bases, random.fork(), until))).await;
    let (redis, services, faults) = injector.await.expect("no panic");

    let bases = bases.read().expect("no panic").clone();
    join_all(bases.iter().map(|base| wait_until_ready(base))).await;
    let mut acknowledged = 0;
    for user in 0..USERS {
        let mut operations = vec![Operation::GetActive];
        operations.extend(
            recorder.ids(user).into_iter().flat_map(|id| [Operation::Get(id.clone()), Operation::ListMessages(id)]),
        );
        let base = &bases[user % 2];
        let read = join_all(operations.into_iter().map(|operation| async {
            let answer = recorder.call(base, user, operation.clone()).await;
            assert!(answer.is_some(), "user {user}, {operation:?}: no response after the faults have ended");
            (operation, answer)
        }));
        acknowledged += expect_acknowledged_messages(&recorder, user, &read.await);
    }
    assert!(acknowledged > 0, "no acknowledged message to check: does this test still test anything?");
    let summary = recorder.expect_linearizable();
    expect_clean(&redis.url(), "sd");
    println!("{summary:?}; {acknowledged} acknowledged messages; {faults:?}");
    (services, redis)
}
