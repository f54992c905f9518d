//! Every metric: its name, labels, buckets and help. Labels are bounded by the code: routes are templates, and nothing of
//! a business, user or session is in any.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

const REQUESTS: &str = "sessiond_http_requests_total";
const REQUEST_SECONDS: &str = "sessiond_http_request_duration_seconds";
const REFUSED: &str = "sessiond_credentials_refused_total";
const PANICS: &str = "sessiond_http_panics_total";
const CONNECTIONS: &str = "sessiond_http_connections";
const CONNECTIONS_REFUSED: &str = "sessiond_http_connections_refused_total";
const HINT_LOOKUPS: &str = "sessiond_hint_lookups_total";
const BUILD: &str = "sessiond_build_info";

/// From 100 µs to 1 s: the deadline is the usual end.
const REQUEST_BUCKETS: [f64; 13] =
    [0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];
/// How often what was measured has to be folded into the buckets: without it memory grows until somebody scrapes.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Starts to record, for the whole process.
///
/// # Errors
/// If something records already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let seconds = Matcher::Full(REQUEST_SECONDS.to_owned());
    let recorder = PrometheusBuilder::new().set_buckets_for_metric(seconds, &REQUEST_BUCKETS)?.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    describe_counter!(REQUESTS, "Requests answered.");
    describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "Time from a request's headers to its answer.");
    describe_counter!(
        REFUSED,
        "Requests refused for their credential: missing, several, invalid, expired, rate, scope, reach."
    );
    describe_counter!(PANICS, "Panics while a request was answered; each became a 500.");
    describe_gauge!(CONNECTIONS, "Connections open now, to the API and to the metrics.");
    describe_counter!(CONNECTIONS_REFUSED, "Connections refused because there were too many.");
    // Both can be watched for the first one.
    counter!(PANICS).absolute(0);
    for limit in ["address", "total"] {
        counter!(CONNECTIONS_REFUSED, "limit" => limit).absolute(0);
    }
    describe_counter!(HINT_LOOKUPS, "Hints looked for by get-or-create: hit, miss, or stale for one that led nowhere.");
    for result in ["hit", "miss", "stale"] {
        counter!(HINT_LOOKUPS, "result" => result).absolute(0);
    }
    describe_gauge!(BUILD, "1, with what is running.");
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

/// Counts one answer. `method` is one of the contract's or `other`, `route` a template of the router's or `unmatched`.
pub fn request_answered(method: &'static str, route: String, status: u16, took: Duration) {
    counter!(REQUESTS, "method" => method, "route" => route.clone(), "status" => status.to_string()).increment(1);
    histogram!(REQUEST_SECONDS, "method" => method, "route" => route).record(took);
}

/// Counts one request that was refused for its credential. `reason` is one of those that the metric's help lists.
pub fn credential_refused(reason: &'static str) {
    counter!(REFUSED, "reason" => reason).increment(1);
}

/// Counts a request that could not be read: whatever it was, its method and route are not known.
pub fn request_refused(status: u16) {
    counter!(REQUESTS, "method" => "other", "route" => "unmatched", "status" => status.to_string()).increment(1);
}

/// Counts one hint that was looked for: `hit`, `miss`, or `stale` for one that led nowhere.
pub fn hint_looked_up(result: &'static str) {
    counter!(HINT_LOOKUPS, "result" => result).increment(1);
}

/// Counts a panic of a handler or a layer.
pub fn panicked() {
    counter!(PANICS).increment(1);
}

/// Counts a connection that was opened.
pub fn connection_opened() {
    gauge!(CONNECTIONS).increment(1.0);
}

/// Counts a connection that was closed.
pub fn connection_closed() {
    gauge!(CONNECTIONS).decrement(1.0);
}

/// Counts a connection that there was no place for: because of the `total`, or of those of its `address`.
pub fn connection_refused(limit: &'static str) {
    counter!(CONNECTIONS_REFUSED, "limit" => limit).increment(1);
}
