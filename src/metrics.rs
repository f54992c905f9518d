//! Every metric: its name, labels, buckets and help. Labels are bounded by the code: routes are templates, and nothing of
//! a business, user or session is in any.
//!
//! What a request touches is looked up once and kept: in `HANDLES`, or for what depends on the route and the status in
//! `ANSWERED`, one table a thread, so that nobody waits for a lock.

use std::cell::RefCell;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use tokio::runtime::RuntimeMetrics;

const REQUESTS: &str = "sessiond_http_requests_total";
const REQUEST_SECONDS: &str = "sessiond_http_request_duration_seconds";
const IN_FLIGHT: &str = "sessiond_http_requests_in_flight";
const SHED: &str = "sessiond_http_requests_shed_total";
const REFUSED: &str = "sessiond_credentials_refused_total";
const PANICS: &str = "sessiond_http_panics_total";
const CONNECTIONS: &str = "sessiond_http_connections";
const CONNECTIONS_REFUSED: &str = "sessiond_http_connections_refused_total";
const OPERATIONS: &str = "sessiond_store_operations_total";
const OPERATION_SECONDS: &str = "sessiond_store_operation_duration_seconds";
const STORE_ERRORS: &str = "sessiond_store_errors_total";
const STORE_RETRIES: &str = "sessiond_store_retries_total";
const STORE_RECONNECTS: &str = "sessiond_store_reconnects_total";
const STORE_UP: &str = "sessiond_store_up";
const STORE_CLOCK_SKEW: &str = "sessiond_store_clock_skew_seconds";
const STORE_PROBLEMS: &str = "sessiond_store_problems";
const HINT_LOOKUPS: &str = "sessiond_hint_lookups_total";
const CREATED: &str = "sessiond_sessions_created_total";
const RESUMED: &str = "sessiond_sessions_resumed_total";
const ENDED: &str = "sessiond_sessions_ended_total";
const DELETED: &str = "sessiond_sessions_deleted_total";
const APPENDED: &str = "sessiond_messages_appended_total";
const LOG_LINES_DROPPED: &str = "sessiond_log_lines_dropped_total";
const LAG_SECONDS: &str = "sessiond_event_loop_lag_seconds";
const EVENT_LOOPS: &str = "sessiond_runtime_event_loops";
const ALIVE_TASKS: &str = "sessiond_runtime_alive_tasks";
const QUEUE_DEPTH: &str = "sessiond_runtime_global_queue_depth";
const BUSY_SECONDS: &str = "sessiond_runtime_busy_seconds_total";
const BUILD: &str = "sessiond_build_info";

/// From 100 µs to 1 s: the deadline is the usual end.
const BUCKETS: [f64; 13] = [0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];
/// How often what was measured has to be folded into the buckets: without it memory grows until somebody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// How often the runtime and the store are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What the store is asked for: a method of the store each.
#[derive(Clone, Copy, Debug)]
pub enum Verb {
    /// `append_messages`
    AppendMessages,
    /// `delete`
    Delete,
    /// `erase_user`
    EraseUser,
    /// `get`
    Get,
    /// `get_active`
    GetActive,
    /// `get_or_create`
    GetOrCreate,
    /// `list_active`
    ListActive,
    /// `list_history`
    ListHistory,
    /// `list_messages`
    ListMessages,
    /// `ready`
    Ready,
    /// `update`
    Update,
}

impl Verb {
    const ALL: [Self; 11] = [
        Self::AppendMessages,
        Self::Delete,
        Self::EraseUser,
        Self::Get,
        Self::GetActive,
        Self::GetOrCreate,
        Self::ListActive,
        Self::ListHistory,
        Self::ListMessages,
        Self::Ready,
        Self::Update,
    ];

    /// The verb as it is spelled everywhere.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AppendMessages => "append_messages",
            Self::Delete => "delete",
            Self::EraseUser => "erase_user",
            Self::Get => "get",
            Self::GetActive => "get_active",
            Self::GetOrCreate => "get_or_create",
            Self::ListActive => "list_active",
            Self::ListHistory => "list_history",
            Self::ListMessages => "list_messages",
            Self::Ready => "ready",
            Self::Update => "update",
        }
    }
}

/// What can be wrong with a Redis that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreProblem {
    /// Its clock and the service's differ by more than is safe.
    ClockSkew,
    /// It evicts keys when memory is short.
    Eviction,
    /// It holds another layout version.
    Layout,
    /// It writes no append-only file.
    Persistence,
    /// It acknowledges writes that no replica has.
    Replication,
    /// It does not report its settings or its time.
    Unchecked,
    /// It is too old.
    Version,
}

impl StoreProblem {
    /// Every problem.
    pub const ALL: [Self; 7] = [
        Self::ClockSkew,
        Self::Eviction,
        Self::Layout,
        Self::Persistence,
        Self::Replication,
        Self::Unchecked,
        Self::Version,
    ];

    /// The problem's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClockSkew => "clock_skew",
            Self::Eviction => "eviction",
            Self::Layout => "layout",
            Self::Persistence => "persistence",
            Self::Replication => "replication",
            Self::Unchecked => "unchecked",
            Self::Version => "version",
        }
    }
}

/// What is counted without regard to a route.
struct Handles {
    connections: Gauge,
    /// In the order of [`Verb::ALL`].
    operations: [Operation; Verb::ALL.len()],
    hint_hits: Counter,
    hint_misses: Counter,
    hints_stale: Counter,
    created: Counter,
    resumed: Counter,
    deleted: Counter,
    appended: Counter,
}

struct Operation {
    done: Counter,
    failed: Counter,
    seconds: Histogram,
}

/// Made at the first use, which [`install`] is.
static HANDLES: LazyLock<Handles> = LazyLock::new(|| Handles {
    connections: gauge!(CONNECTIONS),
    operations: Verb::ALL.map(Operation::of),
    hint_hits: counter!(HINT_LOOKUPS, "result" => "hit"),
    hint_misses: counter!(HINT_LOOKUPS, "result" => "miss"),
    hints_stale: counter!(HINT_LOOKUPS, "result" => "stale"),
    created: counter!(CREATED),
    resumed: counter!(RESUMED),
    deleted: counter!(DELETED),
    appended: counter!(APPENDED),
});

impl Operation {
    fn of(verb: Verb) -> Self {
        let op = verb.as_str();
        Self {
            done: counter!(OPERATIONS, "op" => op, "outcome" => "ok"),
            failed: counter!(OPERATIONS, "op" => op, "outcome" => "error"),
            seconds: histogram!(OPERATION_SECONDS, "op" => op),
        }
    }
}

/// The counters and the histogram of one route: as many as it has methods and statuses.
#[derive(Default)]
struct Answered {
    seconds: Vec<(&'static str, Histogram)>,
    requests: Vec<((&'static str, u16), Counter)>,
}

thread_local! {
    static ANSWERED: RefCell<Vec<(String, Answered)>> = RefCell::default();
}

/// Starts to record, for the whole process, and keeps what is recorded small for as long as that lives: whether it is
/// scraped or not, and on a thread of its own, so that no request waits for it.
///
/// # Errors
/// If something records already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    install_with(UPKEEP_INTERVAL)
}

fn install_with(upkeep_interval: Duration) -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for name in [REQUEST_SECONDS, OPERATION_SECONDS, LAG_SECONDS] {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), &BUCKETS)?;
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    describe();
    register();
    let kept = handle.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(upkeep_interval);
            kept.run_upkeep();
        }
    });
    Ok(handle)
}

fn describe() {
    describe_counter!(REQUESTS, "Requests answered.");
    describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "Time from a request's headers to its answer's.");
    describe_gauge!(IN_FLIGHT, "Requests that are being answered now.");
    describe_counter!(
        SHED,
        "Requests and connections turned away to protect the service: connections, overload, rate_limit."
    );
    describe_counter!(
        REFUSED,
        "Requests refused for their credential: missing, several, invalid, expired, rate, scope, reach, role."
    );
    describe_counter!(PANICS, "Panics while a request was answered; each became a 500.");
    describe_gauge!(CONNECTIONS, "Connections open now, to the API and to the metrics.");
    describe_counter!(CONNECTIONS_REFUSED, "Connections refused because there were too many.");
    describe_counter!(OPERATIONS, "Operations of the store: ok if Redis answered, else error.");
    describe_histogram!(
        OPERATION_SECONDS,
        Unit::Seconds,
        "Time that the store took for an operation, with its retries."
    );
    describe_counter!(
        STORE_ERRORS,
        "Operations of the store that failed, by what went wrong; abandoned if nobody waited for their end."
    );
    describe_counter!(
        STORE_RETRIES,
        "Commands sent again, because Redis had not run them: moved, ask, try_again, noscript."
    );
    describe_counter!(STORE_RECONNECTS, "Connections to a Redis after the first one.");
    describe_gauge!(STORE_UP, "1 if every Redis answers, of a cluster every known master; else 0.");
    describe_gauge!(
        STORE_CLOCK_SKEW,
        Unit::Seconds,
        "The service's clock minus Redis's, of the Redis whose clock differs most."
    );
    describe_gauge!(
        STORE_PROBLEMS,
        "Redis servers with a problem: clock_skew, eviction, layout, persistence, replication, unchecked, version."
    );
    describe_counter!(HINT_LOOKUPS, "Hints looked for by get-or-create: hit, miss, or stale for one that led nowhere.");
    describe_counter!(CREATED, "Sessions created.");
    describe_counter!(RESUMED, "Active sessions that were found for their user, and ended ones made active again.");
    describe_counter!(ENDED, "Sessions whose end was written down: client, replaced, idle, max_lifetime.");
    describe_counter!(DELETED, "Sessions deleted, also by the erasure of their user.");
    describe_counter!(APPENDED, "Messages appended, without repetitions.");
    describe_counter!(
        LOG_LINES_DROPPED,
        "Lines of the log that were dropped: they could not be written, or not as fast as they came."
    );
    describe_histogram!(LAG_SECONDS, Unit::Seconds, "By how much a timer of an event loop was late.");
    describe_gauge!(EVENT_LOOPS, "Event loops that serve requests, each a thread.");
    describe_gauge!(ALIVE_TASKS, "Tasks of the event loops that are not finished.");
    describe_gauge!(QUEUE_DEPTH, "Tasks that were woken from outside of their event loop and have not run yet.");
    describe_counter!(BUSY_SECONDS, Unit::Seconds, "Whole seconds that all event loops together were busy.");
    describe_gauge!(BUILD, "1, with what is running.");
    Collector::default().describe();
}

/// What can be known beforehand is there from the start, at 0: else the first event would be no increase.
fn register() {
    LazyLock::force(&HANDLES);
    counter!(PANICS).absolute(0);
    counter!(STORE_RECONNECTS).absolute(0);
    for limit in ["address", "total"] {
        counter!(CONNECTIONS_REFUSED, "limit" => limit).absolute(0);
    }
    for reason in ["connections", "overload", "rate_limit"] {
        counter!(SHED, "reason" => reason).absolute(0);
    }
    for reason in ["missing", "several", "invalid", "expired", "rate", "scope", "reach", "role"] {
        counter!(REFUSED, "reason" => reason).absolute(0);
    }
    for reason in ["moved", "ask", "try_again", "noscript"] {
        counter!(STORE_RETRIES, "reason" => reason).absolute(0);
    }
    for reason in ["client", "replaced", "idle", "max_lifetime"] {
        counter!(ENDED, "reason" => reason).absolute(0);
    }
    gauge!(STORE_UP).set(0.0);
    store_clock_skew(0.0);
    for problem in StoreProblem::ALL {
        store_problem(problem, 0);
    }
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION"), "revision" => env!("SESSIOND_REVISION")).set(1.0);
}

/// The metrics as Prometheus reads them, with the process's own as they are now.
#[must_use]
pub fn render(handle: &PrometheusHandle) -> String {
    Collector::default().collect();
    gauge!(IN_FLIGHT).set(count(BEING_ANSWERED.load(Ordering::Relaxed)));
    counter!(LOG_LINES_DROPPED).absolute(LINES_DROPPED.load(Ordering::Relaxed));
    handle.render()
}

/// Looks at the event loops' runtimes and, by `is_up`, at the store for as long as the process lives.
pub async fn watch(runtimes: Vec<RuntimeMetrics>, is_up: impl Fn() -> bool) {
    let store_up = gauge!(STORE_UP);
    let (loops, tasks, queue) = (gauge!(EVENT_LOOPS), gauge!(ALIVE_TASKS), gauge!(QUEUE_DEPTH));
    let busy = counter!(BUSY_SECONDS);
    let mut tick = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tick.tick().await;
        store_up.set(if is_up() { 1.0 } else { 0.0 });
        loops.set(count(runtimes.len()));
        tasks.set(count(runtimes.iter().map(RuntimeMetrics::num_alive_tasks).sum()));
        queue.set(count(runtimes.iter().map(RuntimeMetrics::global_queue_depth).sum()));
        let busy_time: Duration = runtimes.iter().map(|runtime| runtime.worker_total_busy_duration(0)).sum();
        busy.absolute(busy_time.as_secs());
    }
}

/// Looks how late this event loop is, for as long as it runs.
pub async fn watch_lag() {
    let lag = histogram!(LAG_SECONDS);
    loop {
        let due = Instant::now() + LOOK_INTERVAL;
        tokio::time::sleep_until(due.into()).await;
        lag.record(due.elapsed());
    }
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

/// Read when metrics are: a gauge of the library's takes several times as long, twice for every request.
static BEING_ANSWERED: AtomicUsize = AtomicUsize::new(0);

/// Read when metrics are: lines may be dropped before anything records.
static LINES_DROPPED: AtomicU64 = AtomicU64::new(0);

/// Counts lines of the log that were dropped.
pub fn log_lines_dropped(lines: u64) {
    LINES_DROPPED.fetch_add(lines, Ordering::Relaxed);
}

/// A request that is being answered, until this is dropped: also if its client has gone.
#[derive(Debug)]
pub struct InFlight(());

impl InFlight {
    /// Counts a request whose headers are there.
    #[must_use]
    pub fn begin() -> Self {
        BEING_ANSWERED.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        BEING_ANSWERED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts one answer. `method` is one of the contract's or `other`, `route` a template of the router's or `unmatched`.
pub fn request_answered(method: &'static str, route: &str, status: u16, took: Duration) {
    ANSWERED.with_borrow_mut(|routes| {
        let place = routes.iter().position(|(known, _)| known == route).unwrap_or(routes.len());
        if place == routes.len() {
            routes.push((route.to_owned(), Answered::default()));
        }
        let answered = &mut routes[place].1;
        let requests = kept(
            &mut answered.requests,
            (method, status),
            || counter!(REQUESTS, "method" => method, "route" => route.to_owned(), "status" => status.to_string()),
        );
        requests.increment(1);
        let seconds = kept(&mut answered.seconds, method, || {
            // From the first request on: else the first failure would be no increase.
            for status in ["500", "503"] {
                counter!(REQUESTS, "method" => method, "route" => route.to_owned(), "status" => status).increment(0);
            }
            histogram!(REQUEST_SECONDS, "method" => method, "route" => route.to_owned())
        });
        seconds.record(took);
    });
}

/// The value of a key, made if it is not there yet. There are few.
fn kept<K: PartialEq, V>(list: &mut Vec<(K, V)>, key: K, make: impl FnOnce() -> V) -> &V {
    let place = list.iter().position(|(known, _)| *known == key).unwrap_or(list.len());
    if place == list.len() {
        list.push((key, make()));
    }
    &list[place].1
}

/// Counts one request that was refused for its credential. `reason` is one of those that the metric's help lists.
pub fn credential_refused(reason: &'static str) {
    counter!(REFUSED, "reason" => reason).increment(1);
    if reason == "rate" {
        counter!(SHED, "reason" => "rate_limit").increment(1);
    }
}

/// Counts a request that was refused because there are too many at once.
pub fn request_shed() {
    counter!(SHED, "reason" => "overload").increment(1);
}

/// Counts a request that could not be read: whatever it was, its method and route are not known.
pub fn request_refused(status: u16) {
    counter!(REQUESTS, "method" => "other", "route" => "unmatched", "status" => status.to_string()).increment(1);
}

/// Counts a panic of a handler or a layer.
pub fn panicked() {
    counter!(PANICS).increment(1);
}

/// Counts a connection that was opened.
pub fn connection_opened() {
    HANDLES.connections.increment(1.0);
}

/// Counts a connection that was closed.
pub fn connection_closed() {
    HANDLES.connections.decrement(1.0);
}

/// Counts a connection that there was no place for: because of the `total`, or of those of its `address`.
pub fn connection_refused(limit: &'static str) {
    counter!(CONNECTIONS_REFUSED, "limit" => limit).increment(1);
    counter!(SHED, "reason" => "connections").increment(1);
}

/// Counts an operation of the store, by the kind of its error if it failed.
pub fn store_answered(verb: Verb, error_kind: Option<&'static str>, took: Duration) {
    let operation = &HANDLES.operations[verb as usize];
    operation.seconds.record(took);
    if let Some(kind) = error_kind {
        operation.failed.increment(1);
        counter!(STORE_ERRORS, "op" => verb.as_str(), "kind" => kind).increment(1);
    } else {
        operation.done.increment(1);
    }
}

/// Counts a command that is sent again: `moved`, `ask`, `try_again` or `noscript`.
pub fn store_retried(reason: &'static str) {
    counter!(STORE_RETRIES, "reason" => reason).increment(1);
}

/// Counts a connection that takes the place of one that broke.
pub fn store_reconnected() {
    counter!(STORE_RECONNECTS).increment(1);
}

/// Sets by how many seconds the service's clock is ahead of Redis's; negative if it is behind.
pub fn store_clock_skew(seconds: f64) {
    gauge!(STORE_CLOCK_SKEW).set(seconds);
}

/// Sets how many servers have a problem.
pub fn store_problem(problem: StoreProblem, servers: usize) {
    gauge!(STORE_PROBLEMS, "problem" => problem.as_str()).set(count(servers));
}

/// Counts a hint that led to the user's active session.
pub fn hint_hit() {
    HANDLES.hint_hits.increment(1);
}

/// Counts a user of whom there was no hint.
pub fn hint_missed() {
    HANDLES.hint_misses.increment(1);
}

/// Counts a hint that led nowhere.
pub fn hint_was_stale() {
    HANDLES.hints_stale.increment(1);
}

/// Counts a session that was created.
pub fn session_created() {
    HANDLES.created.increment(1);
}

/// Counts a session that its user came back to.
pub fn session_resumed() {
    HANDLES.resumed.increment(1);
}

/// Counts a session whose end was written down. `reason` is its `endReason`.
pub fn session_ended(reason: &'static str) {
    counter!(ENDED, "reason" => reason).increment(1);
}

/// Counts sessions that were deleted.
pub fn sessions_deleted(sessions: u64) {
    HANDLES.deleted.increment(sessions);
}

/// Counts messages that are new to their session.
pub fn messages_appended(messages: u64) {
    HANDLES.appended.increment(messages);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 30 minutes of 1,000 requests a second, as fast as they can be counted.
    const REQUESTS: u32 = 30 * 60 * 1_000;
    const WARM_UP: u32 = REQUESTS / 20;
    /// What is measured takes 8 bytes until it is folded into its buckets: 29 MB for these requests.
    const GROWTH_BYTES_MAX: u64 = 12_000_000;

    fn resident_bytes() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("the status of this process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    #[test]
    #[cfg_attr(not(target_os = "linux"), ignore)]
    fn memory_stays_flat_though_nobody_scrapes() {
        install_with(Duration::from_millis(20)).expect("nothing records yet");
        let count = |requests: u32| {
            for _ in 0..requests {
                request_answered("GET", "/api/sessions/{sessionId}", 200, Duration::from_micros(300));
                store_answered(Verb::Get, None, Duration::from_micros(200));
            }
        };
        count(WARM_UP);
        let before = resident_bytes();
        count(REQUESTS);
        let growth = resident_bytes().saturating_sub(before);
        assert!(growth < GROWTH_BYTES_MAX, "grown by {growth} bytes");
    }
}
