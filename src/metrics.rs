//! Every metric: its name, labels, buckets and help. The code bounds the values of all labels: routes are templates,
//! and no label contains a business, user or session.
//!
//! The metrics that a request updates are looked up once and cached: in `HANDLES`, or in `ROUTE_METRICS` if they depend
//! on the route and the status. `ROUTE_METRICS` is per thread, so that no request waits for a lock.

mod catalog;
mod streams;

use std::cell::RefCell;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use tokio::runtime::RuntimeMetrics;

use self::catalog::{
    ALIVE_TASKS, APPENDED, BUILD, BUSY_SECONDS, CONNECTIONS, CONNECTIONS_REJECTED, CREATED, CREDENTIALS_REJECTED,
    DELETED, ENDED, EVENT_LOOPS, HINT_LOOKUPS, IN_FLIGHT, LAG_SECONDS, LOG_LINES_DROPPED, MESSAGES_TRIMMED,
    OPERATION_SECONDS, OPERATIONS, PANICS, QUEUE_DEPTH, REQUEST_SECONDS, REQUESTS, RESUMED, SESSIONS_TRIMMED, SHED,
    STORE_CLOCK_SKEW, STORE_ERRORS, STORE_PROBLEMS, STORE_RECONNECTS, STORE_RETRIES, STORE_UP, STREAM_DELIVERY_SECONDS,
};

pub use self::streams::{
    StreamEvent, stream_delivered, stream_event_sent, stream_reset, stream_shed, streams_open, subscriber_connected,
    subscriber_disconnected, turn_ended,
};

/// Buckets of all histograms, in seconds: from 100 µs to 1 s, the default request deadline.
const BUCKETS: [f64; 13] = [0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];
/// How often recorded values are folded into the buckets. Otherwise memory would grow until the next scrape.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// How often the runtimes and the store are sampled.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);

/// Declares the values of a label, each with its text.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every value.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            /// The text of the value.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }
    };
}

use label;

label! {
    /// An operation of the store: one of its methods.
    Operation {
        /// `append_chunks`
        AppendChunks = "append_chunks",
        /// `append_messages`
        AppendMessages = "append_messages",
        /// `begin_turn`
        BeginTurn = "begin_turn",
        /// `cancel_turn`
        CancelTurn = "cancel_turn",
        /// `delete`
        Delete = "delete",
        /// `end_turn`
        EndTurn = "end_turn",
        /// `erase_user`
        EraseUser = "erase_user",
        /// `export_user`
        ExportUser = "export_user",
        /// `get`
        Get = "get",
        /// `get_active`
        GetActive = "get_active",
        /// `get_message`
        GetMessage = "get_message",
        /// `get_or_create`
        GetOrCreate = "get_or_create",
        /// `get_turn`
        GetTurn = "get_turn",
        /// `include`
        Include = "include",
        /// `list_active`
        ListActive = "list_active",
        /// `list_history`
        ListHistory = "list_history",
        /// `list_messages`
        ListMessages = "list_messages",
        /// `read_stream`
        ReadStream = "read_stream",
        /// `ready`
        Ready = "ready",
        /// `redact_message`
        RedactMessage = "redact_message",
        /// `update`
        Update = "update",
        /// `update_message`
        UpdateMessage = "update_message",
    }
}

label! {
    /// A problem of a Redis that replies.
    StoreProblem {
        /// The difference between its clock and the service's exceeds the limit.
        ClockSkew = "clock_skew",
        /// It evicts keys when its memory is full.
        Eviction = "eviction",
        /// It holds another layout version.
        Layout = "layout",
        /// It does not write an append-only file.
        Persistence = "persistence",
        /// It acknowledges writes before a replica has them.
        Replication = "replication",
        /// It does not report its settings or its time, so they are not checked.
        Unchecked = "unchecked",
        /// Its version is not supported.
        Version = "version",
    }
}

/// The metrics that do not depend on a route.
struct Handles {
    connections: Gauge,
    /// In the order of [`Operation::ALL`].
    operations: [OperationMetrics; Operation::ALL.len()],
    hint_hits: Counter,
    hint_misses: Counter,
    hints_stale: Counter,
    created: Counter,
    resumed: Counter,
    deleted: Counter,
    appended: Counter,
    messages_trimmed: Counter,
    sessions_trimmed: Counter,
}

struct OperationMetrics {
    done: Counter,
    failed: Counter,
    seconds: Histogram,
}

/// Initialized by its first use, in [`install`].
static HANDLES: LazyLock<Handles> = LazyLock::new(|| Handles {
    connections: gauge!(CONNECTIONS),
    operations: Operation::ALL.map(OperationMetrics::of),
    hint_hits: counter!(HINT_LOOKUPS, "result" => "hit"),
    hint_misses: counter!(HINT_LOOKUPS, "result" => "miss"),
    hints_stale: counter!(HINT_LOOKUPS, "result" => "stale"),
    created: counter!(CREATED),
    resumed: counter!(RESUMED),
    deleted: counter!(DELETED),
    appended: counter!(APPENDED),
    messages_trimmed: counter!(MESSAGES_TRIMMED),
    sessions_trimmed: counter!(SESSIONS_TRIMMED),
});

impl OperationMetrics {
    fn of(operation: Operation) -> Self {
        let op = operation.as_str();
        Self {
            done: counter!(OPERATIONS, "op" => op, "outcome" => "ok"),
            failed: counter!(OPERATIONS, "op" => op, "outcome" => "error"),
            seconds: histogram!(OPERATION_SECONDS, "op" => op),
        }
    }
}

/// The metrics of one route: a histogram per method, and a counter per method and status.
#[derive(Default)]
struct RouteMetrics {
    seconds: Vec<(&'static str, Histogram)>,
    requests: Vec<((&'static str, u16), Counter)>,
}

thread_local! {
    static ROUTE_METRICS: RefCell<Vec<(String, RouteMetrics)>> = RefCell::default();
}

/// Installs the recorder for the whole process. A separate thread bounds its memory regularly, whether or not it is
/// scraped, so that no request waits for that work.
///
/// # Errors
/// If the process already has a recorder.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    install_with(UPKEEP_INTERVAL)
}

fn install_with(upkeep_interval: Duration) -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for name in [REQUEST_SECONDS, OPERATION_SECONDS, LAG_SECONDS, STREAM_DELIVERY_SECONDS] {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), &BUCKETS)?;
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    catalog::describe();
    Collector::default().describe();
    register();
    let upkeep_handle = handle.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(upkeep_interval);
            upkeep_handle.run_upkeep();
        }
    });
    Ok(handle)
}

/// Exports every series that is known in advance at 0. Otherwise Prometheus would not see its first event as an
/// increase.
fn register() {
    LazyLock::force(&HANDLES);
    streams::register();
    catalog::start_counters();
    gauge!(STORE_UP).set(0.0);
    store_clock_skew(0.0);
    for problem in StoreProblem::ALL {
        store_problem(problem, 0);
    }
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION"), "revision" => env!("SESSIOND_REVISION")).set(1.0);
}

/// Renders all metrics in the Prometheus format, with current values of the process metrics.
#[must_use]
pub fn render(handle: &PrometheusHandle) -> String {
    Collector::default().collect();
    gauge!(IN_FLIGHT).set(count(IN_FLIGHT_REQUESTS.load(Ordering::Relaxed)));
    counter!(LOG_LINES_DROPPED).absolute(LINES_DROPPED.load(Ordering::Relaxed));
    handle.render()
}

/// Samples the runtimes of the workers and, with `is_up`, the state of the store. Never returns.
pub async fn watch(runtimes: Vec<RuntimeMetrics>, is_up: impl Fn() -> bool) {
    let store_up = gauge!(STORE_UP);
    let (loops, tasks, queue) = (gauge!(EVENT_LOOPS), gauge!(ALIVE_TASKS), gauge!(QUEUE_DEPTH));
    let busy = counter!(BUSY_SECONDS);
    let mut tick = tokio::time::interval(SAMPLE_INTERVAL);
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

/// Measures how late the timers of this event loop are. Never returns.
pub async fn watch_lag() {
    let lag = histogram!(LAG_SECONDS);
    loop {
        let due = Instant::now() + SAMPLE_INTERVAL;
        tokio::time::sleep_until(due.into()).await;
        lag.record(due.elapsed());
    }
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

/// Copied to its gauge when the metrics are rendered: updating the library's gauge twice per request would take several
/// times as long.
static IN_FLIGHT_REQUESTS: AtomicUsize = AtomicUsize::new(0);

/// Copied to its counter when the metrics are rendered: lines may be dropped before the recorder is installed.
static LINES_DROPPED: AtomicU64 = AtomicU64::new(0);

/// Counts dropped log lines.
pub fn log_lines_dropped(lines: u64) {
    LINES_DROPPED.fetch_add(lines, Ordering::Relaxed);
}

/// Counts a request as in flight until it is dropped, which also happens if the client disconnects.
#[derive(Debug)]
pub struct InFlight(());

impl InFlight {
    /// Counts a request whose headers were received.
    #[must_use]
    pub fn begin() -> Self {
        IN_FLIGHT_REQUESTS.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        IN_FLIGHT_REQUESTS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts one response. `method` is a method of the API or `other`; `route` is a route template or `unmatched`.
pub fn request_finished(method: &'static str, route: &str, status: u16, took: Duration) {
    ROUTE_METRICS.with_borrow_mut(|routes| {
        let place = routes.iter().position(|(known, _)| known == route).unwrap_or(routes.len());
        if place == routes.len() {
            routes.push((route.to_owned(), RouteMetrics::default()));
        }
        let route_metrics = &mut routes[place].1;
        let requests = get_or_insert(
            &mut route_metrics.requests,
            (method, status),
            || counter!(REQUESTS, "method" => method, "route" => route.to_owned(), "status" => status.to_string()),
        );
        requests.increment(1);
        let seconds = get_or_insert(&mut route_metrics.seconds, method, || {
            // Exports the failures at 0. Otherwise Prometheus would not see the first one as an increase.
            for status in ["500", "503"] {
                counter!(REQUESTS, "method" => method, "route" => route.to_owned(), "status" => status).increment(0);
            }
            histogram!(REQUEST_SECONDS, "method" => method, "route" => route.to_owned())
        });
        seconds.record(took);
    });
}

/// Returns the value of a key, and inserts it if it is missing. A linear search, because the lists are short.
fn get_or_insert<K: PartialEq, V>(list: &mut Vec<(K, V)>, key: K, make: impl FnOnce() -> V) -> &V {
    let place = list.iter().position(|(known, _)| *known == key).unwrap_or(list.len());
    if place == list.len() {
        list.push((key, make()));
    }
    &list[place].1
}

/// Counts a request that was rejected because of its credential. The help of the metric lists the values of `reason`.
pub fn credential_rejected(reason: &'static str) {
    counter!(CREDENTIALS_REJECTED, "reason" => reason).increment(1);
    if reason == "rate" {
        counter!(SHED, "reason" => "rate_limit").increment(1);
    }
}

/// Counts a request that was rejected because too many requests are in flight.
pub fn request_shed() {
    counter!(SHED, "reason" => "overload").increment(1);
}

/// Counts a request that could not be parsed, so its method and route are unknown.
pub fn request_rejected(status: u16) {
    counter!(REQUESTS, "method" => "other", "route" => "unmatched", "status" => status.to_string()).increment(1);
}

/// Counts a panic of a handler or of middleware.
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

/// Counts a connection that was rejected. `limit` is the exceeded limit: `total` or `address`.
pub fn connection_rejected(limit: &'static str) {
    counter!(CONNECTIONS_REJECTED, "limit" => limit).increment(1);
    counter!(SHED, "reason" => "connections").increment(1);
}

/// Counts an operation of the store, with the kind of its error if it failed.
pub fn operation_finished(operation: Operation, error_kind: Option<&'static str>, took: Duration) {
    let metrics = &HANDLES.operations[operation as usize];
    metrics.seconds.record(took);
    if let Some(kind) = error_kind {
        metrics.failed.increment(1);
        counter!(STORE_ERRORS, "op" => operation.as_str(), "kind" => kind).increment(1);
    } else {
        metrics.done.increment(1);
    }
}

/// Counts a command that is sent again. `reason` is `moved`, `ask`, `try_again` or `noscript`.
pub fn store_retried(reason: &'static str) {
    counter!(STORE_RETRIES, "reason" => reason).increment(1);
}

/// Counts a connection that replaces a broken one.
pub fn store_reconnected() {
    counter!(STORE_RECONNECTS).increment(1);
}

/// Sets the number of seconds by which the service's clock is ahead of Redis's; negative if it is behind.
pub fn store_clock_skew(seconds: f64) {
    gauge!(STORE_CLOCK_SKEW).set(seconds);
}

/// Sets the number of Redis servers that have a problem.
pub fn store_problem(problem: StoreProblem, servers: usize) {
    gauge!(STORE_PROBLEMS, "problem" => problem.as_str()).set(count(servers));
}

/// Counts a hint that led to the user's active session.
pub fn hint_hit() {
    HANDLES.hint_hits.increment(1);
}

/// Counts a lookup that found no hint.
pub fn hint_missed() {
    HANDLES.hint_misses.increment(1);
}

/// Counts a hint that did not lead to the user's active session.
pub fn hint_was_stale() {
    HANDLES.hints_stale.increment(1);
}

/// Counts a session that was created.
pub fn session_created() {
    HANDLES.created.increment(1);
}

/// Counts an active session that was found for its user, or an ended one that was made active again.
pub fn session_resumed() {
    HANDLES.resumed.increment(1);
}

/// Counts a session whose end was stored. `reason` is its `endReason`.
pub fn session_ended(reason: &'static str) {
    counter!(ENDED, "reason" => reason).increment(1);
}

/// Counts sessions that were deleted.
pub fn sessions_deleted(sessions: u64) {
    HANDLES.deleted.increment(sessions);
}

/// Counts appended messages, without replays.
pub fn messages_appended(messages: u64) {
    HANDLES.appended.increment(messages);
}

/// Counts messages that an append removed because the session has more than it keeps.
pub fn messages_trimmed(messages: u64) {
    if messages > 0 {
        HANDLES.messages_trimmed.increment(messages);
    }
}

/// Counts sessions that a create removed because the user has more than the service keeps.
pub fn sessions_trimmed(sessions: u64) {
    if sessions > 0 {
        HANDLES.sessions_trimmed.increment(sessions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 30 minutes of 1,000 requests per second, counted as fast as possible.
    const REQUESTS: u32 = 30 * 60 * 1_000;
    const WARM_UP: u32 = REQUESTS / 20;
    /// A recorded value takes 8 bytes until it is folded into its bucket: 29 MB for these requests.
    const GROWTH_BYTES_MAX: u64 = 12_000_000;

    fn resident_bytes() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("the status of this process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    #[test]
    #[cfg_attr(not(target_os = "linux"), ignore)]
    fn memory_stays_flat_without_scrapes() {
        install_with(Duration::from_millis(20)).expect("no recorder yet");
        let count = |requests: u32| {
            for _ in 0..requests {
                request_finished("GET", "/api/sessions/{sessionId}", 200, Duration::from_micros(300));
                operation_finished(Operation::Get, None, Duration::from_micros(200));
            }
        };
        count(WARM_UP);
        let before = resident_bytes();
        count(REQUESTS);
        let growth = resident_bytes().saturating_sub(before);
        assert!(growth < GROWTH_BYTES_MAX, "memory grew by {growth} bytes");
    }
}
