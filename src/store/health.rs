//! Checks while the service runs that the servers are safe to use: their clocks, their settings, and the layout that
//! they hold.
//!
//! The service computes expiries by its own clock, and Redis applies them by its clock. If the two differ by hours,
//! Redis removes keys that were just written, or the service treats sessions that other instances wrote as expired.
//! Settings and data can change under a connection that never breaks. So one task of the process checks every server at
//! an interval and on each new connection. All stores of the process share its findings. Requests read a flag and do
//! not wait for a check.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::interfaces::{ClientLike, KeysInterface};
use fred::types::{CustomCommand, SetOptions, Value};
use futures_util::future::{join, join_all};
use tokio::task::AbortHandle;

use super::StoreError;
use super::clock_skew::{Agreement, Skew, is_jump, unix_us};
use super::keys::LAYOUT_VERSION;
use super::redis::preflight;
use super::redis::topology::Topology;
use crate::metrics::{self, StoreProblem};
use crate::session::Clock;

/// How often the task looks for new connections and for a change of the service's clock.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A problem of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) problem: StoreProblem,
    /// A predicate that follows the name of the server.
    pub(super) text: String,
}

impl Finding {
    /// Whether the service must not start with such a server.
    fn is_unsafe(&self) -> bool {
        matches!(self.problem, StoreProblem::Eviction | StoreProblem::Version)
    }
}

/// State of all servers, shared by all stores of a process.
pub(super) struct Health {
    clock: Clock,
    /// Largest accepted difference of the clocks; no limit if `None`.
    max_skew: Option<Duration>,
    /// Whether the clock of any server differs by more than `max_skew`.
    is_any_clock_unsafe: AtomicBool,
    has_seen_layout: AtomicBool,
    is_layout_foreign: AtomicBool,
    /// By server name.
    servers: Mutex<BTreeMap<String, ServerHealth>>,
}

/// State of one server.
#[derive(Debug, Default)]
struct ServerHealth {
    findings: Vec<Finding>,
    skew: Option<Skew>,
    agreement: Agreement,
}

impl Health {
    pub(super) fn new(clock: Clock, max_skew: Option<Duration>) -> Self {
        Self {
            clock,
            max_skew,
            is_any_clock_unsafe: AtomicBool::new(false),
            has_seen_layout: AtomicBool::new(false),
            is_layout_foreign: AtomicBool::new(false),
            servers: Mutex::default(),
        }
    }

    /// Reads the settings and the time of a server, and records the findings.
    ///
    /// # Errors
    /// [`StoreError::UnsupportedServer`] for settings that lose sessions or cannot work, or the error of the command
    /// that failed.
    pub(super) async fn check(&self, client: &Client, server: &str) -> Result<(), StoreError> {
        let (settings, time) = join(settings(client), self.skew(client)).await;
        let mut findings = settings?;
        let skew = time?;
        if skew.is_none() {
            let text = "does not tell its time: its clock is not compared with the service's";
            findings.push(Finding { problem: StoreProblem::Unchecked, text: text.to_owned() });
        }
        let unsafe_problem = findings.iter().find(|finding| finding.is_unsafe()).map(|finding| finding.text.clone());
        self.record(server, findings, skew);
        match unsafe_problem {
            Some(problem) => Err(StoreError::UnsupportedServer { server: server.to_owned(), problem }),
            None => Ok(()),
        }
    }

    /// The difference of the clocks, or `None` if the server does not report its time.
    async fn skew(&self, client: &Client) -> Result<Option<Skew>, StoreError> {
        let time = CustomCommand::new_static("TIME", None, false);
        let sent = Instant::now();
        let reply = client.custom::<Value, Value>(time, Vec::new()).await.map_err(StoreError::from);
        let service_ms = self.now_ms();
        let round_trip = sent.elapsed();
        match reply {
            Ok(reply) => Ok(unix_us(reply).map(|server_us| Skew::of(service_ms, server_us, round_trip))),
            Err(StoreError::NotServing("NOPERM", _) | StoreError::Rejected(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Compares the clocks, and fails if they differ by more than the limit.
    ///
    /// # Errors
    /// [`StoreError::ClockSkew`], or the error of the command that failed.
    pub(super) async fn compare_clocks(&self, client: &Client, server: &str) -> Result<(), StoreError> {
        if let Some(skew) = self.skew(client).await? {
            self.record(server, Vec::new(), Some(skew));
        }
        self.require_safe_clock(server)
    }

    fn now_ms(&self) -> i64 {
        (self.clock)().0
    }

    fn servers(&self) -> MutexGuard<'_, BTreeMap<String, ServerHealth>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the state of a server and logs what changed.
    fn record(&self, server: &str, findings: Vec<Finding>, skew: Option<Skew>) {
        let mut servers = self.servers();
        let known = servers.entry(server.to_owned()).or_default();
        log_findings(server, &known.findings, &findings);
        let agreement = skew.map_or(Agreement::Close, |skew| skew.agreement(self.max_skew, known.agreement));
        if let Some(skew) = skew.filter(|_| agreement != known.agreement) {
            log_agreement(server, skew, agreement);
        }
        *known = ServerHealth { findings, skew, agreement };
        self.publish(&servers);
    }

    /// Forgets all servers except these.
    fn keep_only(&self, names: &[&str]) {
        let mut servers = self.servers();
        servers.retain(|name, _| names.contains(&name.as_str()));
        self.publish(&servers);
    }

    fn publish(&self, servers: &BTreeMap<String, ServerHealth>) {
        let unsafe_clocks = servers.values().filter(|server| server.agreement == Agreement::Unsafe).count();
        self.is_any_clock_unsafe.store(unsafe_clocks > 0, Ordering::Release);
        let skews = servers.values().filter_map(|server| server.skew);
        metrics::store_clock_skew(skews.max_by_key(|skew| skew.us.unsigned_abs()).map_or(0.0, Skew::seconds));
        for problem in StoreProblem::ALL {
            let has_problem = |server: &&ServerHealth| server.findings.iter().any(|finding| finding.problem == problem);
            let count = match problem {
                StoreProblem::ClockSkew => unsafe_clocks,
                StoreProblem::Layout => usize::from(self.is_layout_foreign()),
                _ => servers.values().filter(has_problem).count(),
            };
            metrics::store_problem(problem, count);
        }
    }

    /// Whether any server's clock differs by more than the limit.
    pub(super) fn is_any_clock_unsafe(&self) -> bool {
        self.is_any_clock_unsafe.load(Ordering::Acquire)
    }

    /// Fails if this server's clock differs by more than the limit.
    ///
    /// # Errors
    /// [`StoreError::ClockSkew`]
    pub(super) fn require_safe_clock(&self, server: &str) -> Result<(), StoreError> {
        if !self.is_any_clock_unsafe() {
            return Ok(());
        }
        match self.servers().get(server) {
            Some(ServerHealth { agreement: Agreement::Unsafe, skew: Some(skew), .. }) => {
                Err(StoreError::ClockSkew { server: server.to_owned(), difference: skew.to_string() })
            }
            _ => Ok(()),
        }
    }

    /// Fails if the clock or the settings of this server are known to be unsafe.
    ///
    /// # Errors
    /// [`StoreError::ClockSkew`] and [`StoreError::UnsupportedServer`]
    pub(super) fn require_safe(&self, server: &str) -> Result<(), StoreError> {
        self.require_safe_clock(server)?;
        let servers = self.servers();
        let findings = servers.get(server).map_or(&[][..], |known| &known.findings);
        match findings.iter().find(|finding| finding.is_unsafe()) {
            Some(finding) => {
                Err(StoreError::UnsupportedServer { server: server.to_owned(), problem: finding.text.clone() })
            }
            None => Ok(()),
        }
    }

    /// Whether the layout version that was last read is not this code's.
    pub(super) fn is_layout_foreign(&self) -> bool {
        self.is_layout_foreign.load(Ordering::Acquire)
    }

    /// Checks that Redis holds this code's layout. Writes the layout version if there is none.
    ///
    /// # Errors
    /// [`StoreError::Layout`] if Redis holds another layout, or the error of the command that failed.
    pub(super) async fn ensure_layout(&self, topology: &Topology, key: &str) -> Result<(), StoreError> {
        // Read first: a Redis that rejects writes can still be read.
        let mut stored = stored_layout(topology, key).await?;
        if stored.is_none() {
            let set_new = |client: Client| async move {
                client.set(key, LAYOUT_VERSION, None, Some(SetOptions::NX), false).await
            };
            let () = topology.call(key, set_new).await?;
            if self.has_seen_layout.load(Ordering::Acquire) {
                tracing::warn!("wrote the layout version again: it was missing, so Redis has lost its data");
            }
            stored = stored_layout(topology, key).await?;
        }
        let foreign = stored.filter(|version| version != LAYOUT_VERSION);
        self.has_seen_layout.store(true, Ordering::Release);
        let was_foreign = self.is_layout_foreign.swap(foreign.is_some(), Ordering::AcqRel);
        if was_foreign != foreign.is_some() {
            self.publish(&self.servers());
        }
        if let Some(version) = foreign {
            if !was_foreign {
                tracing::warn!(version, "Redis holds another layout version; requests are rejected until that changes");
            }
            return Err(StoreError::Layout(version));
        }
        if was_foreign {
            tracing::info!("Redis holds the expected layout version again");
        }
        Ok(())
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Health").finish_non_exhaustive()
    }
}

/// Problems of a server's version and settings.
async fn settings(client: &Client) -> Result<Vec<Finding>, StoreError> {
    match client.info::<String>(None).await {
        Ok(info) => Ok(preflight::findings(&info)),
        Err(error) if error.details().starts_with("NOPERM") => {
            let text = "does not report its version and settings (NOPERM), so they were not checked".to_owned();
            Ok(vec![Finding { problem: StoreProblem::Unchecked, text }])
        }
        Err(error) => Err(error.into()),
    }
}

/// The stored layout version. A key of another type counts as another version.
pub(super) async fn stored_layout(topology: &Topology, key: &str) -> Result<Option<String>, StoreError> {
    let get = |client: Client| async move { client.get::<Value, _>(key).await };
    match topology.call(key, get).await {
        Ok(Value::Null) => Ok(None),
        Ok(version) => Ok(Some(String::from_utf8_lossy(&version.into_owned_bytes().unwrap_or_default()).into_owned())),
        Err(StoreError::Rejected(error)) if error.details().starts_with("WRONGTYPE") => {
            Ok(Some("a key of another type".to_owned()))
        }
        Err(error) => Err(error),
    }
}

fn log_findings(server: &str, before: &[Finding], now: &[Finding]) {
    for Finding { problem, text } in now.iter().filter(|finding| !before.contains(finding)) {
        tracing::warn!(problem = problem.as_str(), "the Redis at {server} {text}");
    }
    let is_over = |finding: &&Finding| !now.iter().any(|other| other.problem == finding.problem);
    for Finding { problem, .. } in before.iter().filter(is_over) {
        tracing::info!(problem = problem.as_str(), "the Redis at {server} no longer has this problem");
    }
}

fn log_agreement(server: &str, skew: Skew, agreement: Agreement) {
    let clocks = format!("the clock of this service is {skew} the clock of the Redis at {server}");
    match agreement {
        Agreement::Close => tracing::info!("{clocks}: they agree again"),
        Agreement::Differing => tracing::warn!("{clocks}"),
        Agreement::Unsafe => tracing::warn!("{clocks}: sessions can be read and deleted, but not created or changed"),
    }
}

/// Inputs of one round of checks.
#[derive(Debug)]
pub(super) struct Checks {
    pub(super) topology: Arc<Topology>,
    pub(super) layout_key: String,
    pub(super) health: Arc<Health>,
}

/// The task that repeats the checks. Dropping this stops it.
#[derive(Debug)]
pub(super) struct ChecksTask(AbortHandle);

impl Drop for ChecksTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Checks {
    /// Starts the task. It runs a round at each interval, on each new connection, and when the service's clock was set.
    pub(super) fn repeat(self, interval: Duration) -> ChecksTask {
        let repeat = async move {
            let (mut seen_ids, mut checked_at) = (Vec::new(), None::<Instant>);
            let mut polled_at = (Instant::now(), self.health.now_ms());
            loop {
                let servers = self.topology.all();
                let connection_ids: Vec<_> = servers.iter().map(|server| server.connection_id()).collect();
                let poll = (Instant::now(), self.health.now_ms());
                let is_due = checked_at.is_none_or(|at| at.elapsed() >= interval);
                if is_due || connection_ids != seen_ids || is_jump(polled_at, poll) {
                    self.run().await;
                    (seen_ids, checked_at) = (connection_ids, Some(Instant::now()));
                }
                polled_at = poll;
                tokio::time::sleep(POLL_INTERVAL.min(interval)).await;
            }
        };
        ChecksTask(tokio::spawn(repeat).abort_handle())
    }

    /// Checks all connected servers and the layout. A check that fails leaves the known state as it was. The command
    /// timeout bounds each command.
    pub(super) async fn run(&self) {
        let servers = self.topology.all();
        let connected = servers.iter().filter(|server| server.connection_id().is_some());
        let server_checks = join_all(connected.map(async |server| {
            // `check` records an unsafe server; the server's connection logs missing replies.
            let _ = self.health.check(server.unchecked_client(), server.name()).await;
        }));
        let layout_check = async {
            if self.topology.connection_id(&self.layout_key).is_some()
                && let Err(error) = self.health.ensure_layout(&self.topology, &self.layout_key).await
            {
                tracing::debug!(%error, "cannot check the layout");
            }
        };
        join(server_checks, layout_check).await;
        if !servers.is_empty() {
            self.health.keep_only(&servers.iter().map(|server| server.name()).collect::<Vec<_>>());
        }
    }
}
