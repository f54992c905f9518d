//! `sessiond audit`: checks every invariant over the keyspace, and repairs on demand what is safe to repair.
//!
//! The walk is no snapshot: the service goes on writing. So each key is looked at together with what it must agree with,
//! and a finding counts only if a second look finds the same. Of a finding that both sides could report, one does: the
//! session of what is missing, the pointer or index of what is there but should not be.

mod inspect;

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use serde::Serialize;

use self::inspect::{Inspection, Inspector};
use crate::session::Timestamp;
use crate::store::keyspace::{WALK_STEP, WalkedKey};
use crate::store::{SessionStore, StoreError};

/// Keys that are looked at at the same time.
const CONCURRENT_KEYS: usize = 32;

/// Every invariant: its name in a [`Finding`], and what holds.
pub const INVARIANTS: [(&str, &str); 26] = [
    ("unknown-key", "every key under the prefix is one of the layout's"),
    ("wrong-type", "every key has the Redis type of its kind"),
    ("wrong-partition", "every key is in the partition of its session id, and that is its user's"),
    ("expiry-missing", "every key expires, but the layout version"),
    ("expiry-differs", "a session, its messages, their ids, and the pointer to it expire together"),
    ("expiry-too-early", "an index expires no earlier than a session that it names"),
    ("malformed-session", "every field of a session is there and of its kind"),
    ("impossible-times", "a session's times are in an order that can happen"),
    ("status-and-end", "endedAt and endReason are there if and only if the session is over, and fit its status"),
    ("pointer-to-nothing", "a pointer names a session that exists"),
    ("pointer-to-another", "a pointer names a session of its own user"),
    ("pointer-to-ended", "a pointer names a session that is not ended"),
    ("active-not-pointed-at", "an active session is the one that its user's pointer names"),
    ("two-active", "a user has at most one active session"),
    ("history-missing", "a session is in its user's history"),
    ("history-score", "a session's score in the history is its createdAt"),
    ("history-dangling", "a history names sessions that exist, or that went when their time was over"),
    ("history-of-another", "a history names sessions of its own user"),
    ("business-missing", "an active session is in its business's index"),
    ("business-score", "an active session's score in the business's index is its expiresAt"),
    ("business-dangling", "a business's index names sessions that exist, or that went when their time was over"),
    ("business-of-another", "a business's index names sessions of its own"),
    ("business-of-ended", "a business's index names no session that is ended"),
    ("message-count", "messageCount is the seq of the newest message, and not less than the messages stored"),
    ("message-stream", "a session's stored messages are well formed, of a session, and have no gap in their seq"),
    ("message-index", "the message ids of a session are those of its stored messages, each with its seq"),
];

/// One broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// Its name, from [`INVARIANTS`].
    pub invariant: &'static str,
    /// The Redis key where it is broken.
    pub key: String,
    /// How.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys and details may hold what anybody wrote: it must not control the terminal.
        write!(formatter, "{}: {}: {}", self.invariant, visible(&self.key), visible(&self.detail))
    }
}

/// One thing that was put right.
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

/// What an audit found. A key that Redis moved during the walk may count twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Keys under the prefix, without the layout version.
    pub keys: u64,
    /// Sessions.
    pub sessions: u64,
    /// Sessions that are active.
    pub active: u64,
    /// Index entries that outlived their session, which is no fault: reads skip them, later writes remove them.
    pub stale: u64,
    /// What is broken; after a repair, what is still broken.
    pub findings: Vec<Finding>,
    /// What was put right.
    pub repairs: Vec<Repair>,
    /// What is to be said of the store's files, which is no broken invariant.
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
    /// For people: a line for each finding and repair, and one that sums up.
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

/// How to audit.
#[derive(Clone, Copy, Debug)]
pub struct AuditOptions {
    /// The most keys and index entries that are looked at in a second.
    pub keys_per_second_max: u32,
    /// Whether to repair what is safe to repair.
    pub repair: bool,
}

/// Audits every key of the store's prefix. `clock` tells the time: a long walk sees it pass. `progress` is told of the
/// report as it grows.
///
/// # Errors
/// If the store cannot serve.
pub async fn audit(
    store: &SessionStore,
    options: AuditOptions,
    clock: &(dyn Fn() -> Timestamp + Sync),
    progress: &(dyn Fn(&Report) + Sync),
) -> Result<Report, StoreError> {
    let pace = Pace::new(options.keys_per_second_max);
    let inspector = Inspector { store, clock, pace: &pace };
    let mut report = Report::default();
    let mut broken = Vec::new();
    let mut walk = store.walk()?;
    while let Some(keys) = walk.step().await? {
        // Keys of other prefixes are passed over, which is work for Redis as well.
        pace.spend((WALK_STEP as usize).saturating_sub(keys.len())).await;
        for some in keys.chunks(CONCURRENT_KEYS) {
            pace.spend(some.len()).await;
            let inspections = try_join_all(some.iter().map(|key| inspect_surely(&inspector, key))).await?;
            for (key, inspection) in some.iter().zip(inspections) {
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

/// Looks at a key, and a second time if something is wrong with it.
async fn inspect_surely(inspector: &Inspector<'_>, key: &WalkedKey) -> Result<Inspection, StoreError> {
    let first = inspector.inspect(key).await?;
    if first.found.is_empty() {
        return Ok(first);
    }
    let mut second = inspector.inspect(key).await?;
    second.found.retain(|found| first.found.iter().any(|earlier| earlier.finding == found.finding));
    Ok(second)
}

/// Repairs what is safe to repair, one thing after another, and looks at every broken key again.
async fn repair(
    inspector: &Inspector<'_>,
    broken: &[(WalkedKey, Inspection)],
    report: &mut Report,
) -> Result<(), StoreError> {
    for found in broken.iter().flat_map(|(_, inspection)| &inspection.found) {
        if let Some(subject) = &found.subject {
            inspector.pace.spend(1).await;
            let repairs = inspector.store.repair(subject, (inspector.clock)()).await?;
            report.repairs.extend(repairs.into_iter().map(|(done, key)| Repair { done, key }));
        }
    }
    report.findings.clear();
    for (key, _) in broken {
        inspector.pace.spend(1).await;
        report.findings.extend(inspect_surely(inspector, key).await?.found.into_iter().map(|found| found.finding));
    }
    Ok(())
}

/// Keeps the audit from taking more of Redis than it may.
struct Pace {
    per_second: f64,
    next: Mutex<Instant>,
}

impl Pace {
    fn new(per_second: u32) -> Self {
        Self { per_second: f64::from(per_second), next: Mutex::new(Instant::now()) }
    }

    /// Waits until this many more may be looked at. Time that was not used is not made up for.
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
