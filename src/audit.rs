//! `sessiond audit`: checks every invariant of the keyspace and, on request, repairs what is safe to repair.
//!
//! The walk is not a snapshot, because services keep writing. So the audit reads each key together with the keys that
//! it must agree with, and reports a finding only if a second check confirms it. Where two keys disagree, one of them
//! reports: the session reports a missing pointer or index entry, the pointer or index reports a surplus one.

mod checks;

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use serde::Serialize;

use self::checks::{Inspection, Inspector};
use crate::session::Timestamp;
use crate::store::keyspace::{WALK_STEP, WalkedKey};
use crate::store::{SessionStore, StoreError};

/// Number of keys that are checked concurrently.
const CONCURRENT_KEYS: usize = 32;

/// Every invariant: its name in a [`Finding`], and its statement.
pub const INVARIANTS: [(&str, &str); 28] = [
    ("unknown-key", "every key under the prefix belongs to the layout"),
    ("wrong-type", "every key has the Redis type of its kind"),
    ("wrong-partition", "every key is in the partition of its session id, which is the partition of its user"),
    ("expiry-missing", "every key but the layout version has an expiry"),
    ("expiry-differs", "a session, its messages, their ids, and the pointer to it expire within a second"),
    ("expiry-too-early", "an index expires no earlier than a session that it names, or less than a second"),
    ("malformed-session", "every required field of a session is present and valid"),
    ("impossible-times", "the times of a session are in a possible order"),
    ("status-and-end", "endedAt and endReason are present if and only if the session has ended, and match its status"),
    ("pointer-to-nothing", "a pointer names a session that exists"),
    ("pointer-to-another", "a pointer names a session of its own user"),
    ("pointer-to-ended", "a pointer names a session that is not ended"),
    ("active-not-pointed-at", "an active session is the one that its user's pointer names"),
    ("two-active", "a user has at most one active session"),
    ("history-missing", "a session is in its user's history"),
    ("history-score", "a session's score in the history is its historyAt, or its createdAt without a resume"),
    ("history-dangling", "a history names sessions that exist, or that expired after their retention"),
    ("history-of-another", "a history names sessions of its own user"),
    ("business-missing", "an active session is in its business's index"),
    ("business-score", "an active session's score in the business's index is its expiresAt"),
    ("business-dangling", "a business's index names sessions that exist, or that expired after their retention"),
    ("business-of-another", "a business's index names sessions of that business"),
    ("business-of-ended", "a business's index names no session that is ended"),
    ("message-count", "messageCount is the seq of the newest message, and at least the number of stored messages"),
    ("message-list", "stored messages are well formed, belong to an existing session, and have no gap in their seq"),
    ("message-index", "the index of message ids has exactly the stored messages of its session, each with its seq"),
    ("malformed-turn", "every required field of a turn is present and valid"),
    (
        "turn-and-session",
        "a session names its latest turn as open if and only if it is open, with its number and lease",
    ),
];

/// One broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The name of the invariant, from [`INVARIANTS`].
    pub invariant: &'static str,
    /// The Redis key that breaks it.
    pub key: String,
    /// How the key breaks it.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys and details may contain texts of clients, which must not send control characters to the terminal.
        write!(formatter, "{}: {}: {}", self.invariant, visible(&self.key), visible(&self.detail))
    }
}

/// One repair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Repair {
    /// What was done.
    pub done: String,
    /// The Redis key that was written.
    pub key: String,
}

impl fmt::Display for Repair {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.done, visible(&self.key))
    }
}

fn visible(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

/// The result of an audit. A key that Redis moved during the walk may count twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Number of keys under the prefix, without the layout version.
    pub keys: u64,
    /// Number of sessions.
    pub sessions: u64,
    /// Number of active sessions.
    pub active: u64,
    /// Number of index entries that outlived their session. These are not findings: reads skip them, and later writes
    /// remove them.
    pub stale: u64,
    /// The broken invariants; after a repair, those that are still broken.
    pub findings: Vec<Finding>,
    /// The repairs.
    pub repairs: Vec<Repair>,
    /// Notes on the files of an embedded Redis, which are not broken invariants.
    pub notes: Vec<String>,
}

impl Report {
    fn add(&mut self, inspection: &Inspection) {
        self.keys += 1;
        self.sessions += inspection.sessions;
        self.active += inspection.active;
        self.stale += inspection.stale;
        self.findings.extend(inspection.found.iter().map(|found| found.finding.clone()));
    }
}

impl fmt::Display for Report {
    /// Shows one line for each note, repair and finding, and a summary.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(formatter, "note: {}", visible(note))?;
        }
        for repair in &self.repairs {
            writeln!(formatter, "repaired: {repair}")?;
        }
        for finding in &self.findings {
            writeln!(formatter, "found: {finding}")?;
        }
        let Self { keys, sessions, active, stale, findings, repairs, .. } = self;
        let (findings, repairs) = (findings.len(), repairs.len());
        write!(
            formatter,
            "{keys} keys; {sessions} sessions, {active} active; {stale} stale index entries; \
             {findings} findings; {repairs} repairs"
        )
    }
}

/// The options of an audit.
#[derive(Clone, Copy, Debug)]
pub struct AuditOptions {
    /// Maximum keys and index entries that are checked per second.
    pub keys_per_second_max: u32,
    /// Whether to repair what is safe to repair.
    pub repair: bool,
}

/// Audits every key under the prefix of the store. Reads `clock` for every key, because a walk may take long. Calls
/// `progress` with the report after each step.
///
/// # Errors
/// If an operation of the store fails.
pub async fn audit(
    store: &SessionStore,
    options: AuditOptions,
    clock: &(dyn Fn() -> Timestamp + Sync),
    progress: &(dyn Fn(&Report) + Sync),
) -> Result<Report, StoreError> {
    let throttle = Throttle::new(options.keys_per_second_max);
    let inspector = Inspector { store, clock, throttle: &throttle };
    let mut report = Report::default();
    let mut broken = Vec::new();
    let mut walk = store.walk()?;
    while let Some(keys) = walk.step().await? {
        // Counts the keys of other prefixes too: skipping them is also work for Redis.
        throttle.spend((WALK_STEP as usize).saturating_sub(keys.len())).await;
        for chunk in keys.chunks(CONCURRENT_KEYS) {
            throttle.spend(chunk.len()).await;
            let inspections = try_join_all(chunk.iter().map(|key| inspect_confirmed(&inspector, key))).await?;
            for (key, inspection) in chunk.iter().zip(inspections) {
                report.add(&inspection);
                if !inspection.found.is_empty() {
                    broken.push((key.clone(), inspection));
                }
            }
        }
        progress(&report);
    }
    if options.repair {
        repair(&inspector, &broken, &mut report).await?;
    }
    report.findings.sort();
    report.findings.dedup();
    report.repairs.sort();
    Ok(report)
}

/// Checks a key, and checks it again if there are findings. Returns the findings of both checks.
async fn inspect_confirmed(inspector: &Inspector<'_>, key: &WalkedKey) -> Result<Inspection, StoreError> {
    let first = inspector.inspect(key).await?;
    if first.found.is_empty() {
        return Ok(first);
    }
    let mut second = inspector.inspect(key).await?;
    second.found.retain(|found| first.found.iter().any(|earlier| earlier.finding == found.finding));
    Ok(second)
}

/// Repairs what is safe to repair, one finding after the other, and checks every broken key again.
async fn repair(
    inspector: &Inspector<'_>,
    broken: &[(WalkedKey, Inspection)],
    report: &mut Report,
) -> Result<(), StoreError> {
    for found in broken.iter().flat_map(|(_, inspection)| &inspection.found) {
        if let Some(target) = &found.target {
            inspector.throttle.spend(1).await;
            let repairs = inspector.store.repair(target, (inspector.clock)()).await?;
            report.repairs.extend(repairs.into_iter().map(|(done, key)| Repair { done, key }));
        }
    }
    report.findings.clear();
    for (key, _) in broken {
        inspector.throttle.spend(1).await;
        report.findings.extend(inspect_confirmed(inspector, key).await?.found.into_iter().map(|found| found.finding));
    }
    Ok(())
}

/// Limits the rate at which the audit reads from Redis.
struct Throttle {
    per_second: f64,
    next: Mutex<Instant>,
}

impl Throttle {
    fn new(per_second: u32) -> Self {
        Self { per_second: f64::from(per_second), next: Mutex::new(Instant::now()) }
    }

    /// Waits until `count` more keys or entries may be read. Unused time does not accumulate.
    async fn spend(&self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let now = Instant::now();
        let turn = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = now.max(*next);
            *next = turn + Duration::from_secs_f64(f64::from(count) / self.per_second);
            turn
        };
        if turn > now {
            tokio::time::sleep_until(turn.into()).await;
        }
    }
}
