//! Everything at once: two processes on one Redis, 256 users, every verb, and whatever may happen to servers, services and
//! connections. Ten seconds of it in the suite; `make soak` goes on for longer.

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::linearizability::history::{BUSINESS, Recorder};
use crate::linearizability::user::{Answer, Verb};
use crate::linearizability::{DEADLINE, expect_clean};
use crate::support::process::{PATIENCE, Process};
use crate::support::random::Random;
use crate::support::victim::Victim;

const USERS: usize = 256;
const CLIENTS: usize = 24;
/// Between two calls of one client: some 400 calls a second in all.
const PAUSE_MS: (u64, u64) = (10, 110);
const FAULT_PAUSE_MS: (u64, u64) = (20, 500);
/// Each round has users of its own: what explains a history with calls that nobody knows the end of takes a time to find
/// that grows with their number.
const ROUND: Duration = Duration::from_secs(10);
/// Rounds in the suite: one.
const SECONDS_IN_THE_SUITE: u64 = ROUND.as_secs();

/// Two processes, and where they are at the moment.
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
        let verb = match (random.below(32), id) {
            (0, _) => Verb::EraseUser,
            (1, Some(id)) => Verb::Delete(id),
            (2 | 3, _) => Verb::Replace,
            (4 | 5, _) => Verb::GetActive,
            (6..9, Some(id)) => Verb::End(id),
            (9 | 10, Some(id)) => Verb::Resume(id),
            (11 | 12, Some(id)) => Verb::ResumeReplacing(id),
            (13, Some(id)) => Verb::Get(id),
            (14..16, Some(id)) => Verb::Retitle(id, text),
            (16..22, Some(id)) => Verb::Append(id, text),
            (22..24, Some(id)) => Verb::ListMessages(id),
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
            _ => Verb::GetOrCreate,
        };
        recorder.call(&base, user, verb).await;
        tokio::time::sleep(random.pause(PAUSE_MS.0, PAUSE_MS.1)).await;
    }
}

/// Makes things happen until it is time, one after the other. Returns what it was.
fn rage(
    mut redis: Victim,
    mut services: Services,
    mut random: Random,
    until: Instant,
) -> (Victim, Services, Vec<&'static str>) {
    let mut suffered = Vec::new();
    while Instant::now() < until {
        if random.below(6) == 0 {
            let number = random.below(2);
            let (process, base) = Services::serve(&services.url);
            // The old one is killed when its place is taken.
            services.processes[number] = process;
            services.bases.write().expect("no panic")[number] = base;
            suffered.push("service killed");
        } else {
            suffered.push(redis.suffer(&mut random));
        }
        std::thread::sleep(random.pause(FAULT_PAUSE_MS.0, FAULT_PAUSE_MS.1));
    }
    (redis, services, suffered)
}

async fn wait_until_ready(base: &str) {
    let started = Instant::now();
    while !reqwest::get(format!("{base}/readyz")).await.is_ok_and(|response| response.status().is_success()) {
        assert!(started.elapsed() < PATIENCE, "{base} is not ready again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Every message that was acknowledged and whose session is still there is stored, once, where it was said to be.
fn expect_every_acknowledged_message(recorder: &Recorder, user: usize, read: &[(Verb, Option<Answer>)]) -> usize {
    let history = recorder.history(user);
    let mut acknowledged = 0;
    for (verb, answer) in read {
        let (Verb::ListMessages(id), Some(Answer::Messages(stored))) = (verb, answer) else { continue };
        for call in &history {
            if let (Verb::Append(to, message), Some(Answer::Appended(seq) | Answer::Replayed(seq))) =
                (&call.step.verb, &call.step.answer)
                && to == id
            {
                let places: Vec<_> = (1..).zip(stored).filter(|(_, stored)| *stored == message).collect();
                assert_eq!(places, [(*seq, message)], "user {user}, session {id}: {stored:?}");
                acknowledged += 1;
            }
        }
    }
    acknowledged
}

#[tokio::test]
async fn two_processes_and_256_users_survive_whatever_happens() {
    let seconds = std::env::var("SESSIOND_SOAK_SECONDS")
        .map_or(SECONDS_IN_THE_SUITE, |seconds| seconds.parse().expect("SESSIOND_SOAK_SECONDS is a number of seconds"));
    let mut random = Random::seeded();
    let redis = Victim::start();
    let mut state = (Services::start(&redis.url()), redis);
    for round in 0..seconds.div_ceil(ROUND.as_secs()) {
        state = survive(&format!("u{round}-"), state, &mut random).await;
    }
}

/// One round. What may be on its way when it ends is over when its services are ready again and have answered.
async fn survive(prefix: &str, (services, redis): (Services, Victim), random: &mut Random) -> (Services, Victim) {
    let (recorder, bases) = (Recorder::new(prefix, USERS), services.bases.clone());
    let until = Instant::now() + ROUND;
    let fate = random.fork();
    let rage = tokio::task::spawn_blocking(move || rage(redis, services, fate, until));
    join_all((0..CLIENTS).map(|_| client(&recorder, &bases, random.fork(), until))).await;
    let (redis, services, suffered) = rage.await.expect("no panic");

    let bases = bases.read().expect("no panic").clone();
    join_all(bases.iter().map(|base| wait_until_ready(base))).await;
    let mut acknowledged = 0;
    for user in 0..USERS {
        let mut verbs = vec![Verb::GetActive];
        verbs.extend(recorder.ids(user).into_iter().flat_map(|id| [Verb::Get(id.clone()), Verb::ListMessages(id)]));
        let base = &bases[user % 2];
        let read = join_all(verbs.into_iter().map(|verb| async {
            let answer = recorder.call(base, user, verb.clone()).await;
            assert!(answer.is_some(), "user {user}, {verb:?}: everything is well again, so it is answered");
            (verb, answer)
        }));
        acknowledged += expect_every_acknowledged_message(&recorder, user, &read.await);
    }
    assert!(acknowledged > 0, "no message survived: is this test asking the right thing?");
    let summary = recorder.expect_linearizable();
    expect_clean(&redis.url(), "sd");
    println!("{summary:?}; {acknowledged} acknowledged messages; {suffered:?}");
    (services, redis)
}
