//! The list of all metrics: kind, name, help, and the label values that are exported from the start.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram};

/// Describes one metric. The unit is seconds if the name contains `_seconds`.
macro_rules! describe_one {
    (counter $name:ident $help:literal) => {
        if $name.contains("_seconds") {
            describe_counter!($name, Unit::Seconds, $help);
        } else {
            describe_counter!($name, $help);
        }
    };
    (gauge $name:ident $help:literal) => {
        if $name.contains("_seconds") {
            describe_gauge!($name, Unit::Seconds, $help);
        } else {
            describe_gauge!($name, $help);
        }
    };
    (histogram $name:ident $help:literal) => {
        describe_histogram!($name, Unit::Seconds, $help)
    };
}

macro_rules! start_at_zero {
    ($name:ident $zero:literal) => {
        counter!($name).absolute($zero)
    };
    ($name:ident $zero:literal $label:literal [$($value:literal),+]) => {
        for value in [$($value),+] {
            counter!($name, $label => value).absolute($zero);
        }
    };
}

macro_rules! catalog {
    ($($kind:ident $const:ident = $name:literal, $help:literal
        $(, from $zero:literal $(for $label:literal in [$($value:literal),+])?)?;)+) => {
        $(pub(super) const $const: &str = $name;)+

        /// Registers kind and help of every metric with the recorder.
        pub(super) fn describe() {
            $(describe_one!($kind $const $help);)+
        }

        /// Exports counters at 0, so that Prometheus sees their first event as an increase.
        pub(super) fn start_counters() {
            $($(start_at_zero!($const $zero $($label [$($value),+])?);)?)+
        }
    };
}

catalog! {
    counter REQUESTS = "sessiond_http_requests_total",
        "Requests that got a response.";
    histogram REQUEST_SECONDS = "sessiond_http_request_duration_seconds",
        "Time from the headers of a request to the headers of its response.";
    gauge IN_FLIGHT = "sessiond_http_requests_in_flight",
        "Requests in flight now.";
    counter SHED = "sessiond_http_requests_shed_total",
        "Requests and connections rejected by a limit: connections, overload, rate_limit, streams, user_streams.",
        from 0 for "reason" in ["connections", "overload", "rate_limit", "streams", "user_streams"];
    counter CREDENTIALS_REJECTED = "sessiond_credentials_rejected_total",
        "Requests rejected because of their credential: missing, several, invalid, expired, rate, scope, tenant, role.",
        from 0 for "reason" in ["missing", "several", "invalid", "expired", "rate", "scope", "tenant", "role"];
    counter PANICS = "sessiond_http_panics_total",
        "Panics in request handling; each became a 500.",
        from 0;
    gauge CONNECTIONS = "sessiond_http_connections",
        "Open connections to the API and metrics listeners.";
    counter CONNECTIONS_REJECTED = "sessiond_http_connections_rejected_total",
        "Connections rejected because of a connection limit.",
        from 0 for "limit" in ["address", "total"];
    counter OPERATIONS = "sessiond_store_operations_total",
        "Operations of the store: ok if Redis replied, else error.";
    histogram OPERATION_SECONDS = "sessiond_store_operation_duration_seconds",
        "Duration of an operation of the store, including retries.";
    counter STORE_ERRORS = "sessiond_store_errors_total",
        "Failed operations of the store by kind of error; abandoned if the request deadline passed first.";
    counter STORE_RETRIES = "sessiond_store_retries_total",
        "Commands sent again because Redis had not run them: moved, ask, try_again, noscript.",
        from 0 for "reason" in ["moved", "ask", "try_again", "noscript"];
    counter STORE_RECONNECTS = "sessiond_store_reconnects_total",
        "Connections to a Redis that replaced a broken one.",
        from 0;
    gauge STORE_UP = "sessiond_store_up",
        "1 if every Redis replies (in a cluster, every known master), else 0.";
    gauge STORE_CLOCK_SKEW = "sessiond_store_clock_skew_seconds",
        "The service's clock minus Redis's clock, for the Redis with the largest difference.";
    gauge STORE_PROBLEMS = "sessiond_store_problems",
        "Redis servers with a problem: clock_skew, eviction, layout, persistence, replication, unchecked, version.";
    counter HINT_LOOKUPS = "sessiond_hint_lookups_total",
        "Hint lookups by get-or-create: hit, miss, or stale if the hint did not lead to the active session.";
    counter CREATED = "sessiond_sessions_created_total",
        "Sessions created.";
    counter RESUMED = "sessiond_sessions_resumed_total",
        "Active sessions found for their user, and ended sessions made active again.";
    counter ENDED = "sessiond_sessions_ended_total",
        "Sessions whose end was stored: client, replaced, idle, max_lifetime.",
        from 0 for "reason" in ["client", "replaced", "idle", "max_lifetime"];
    counter DELETED = "sessiond_sessions_deleted_total",
        "Sessions deleted, including by an erasure of their user.";
    counter APPENDED = "sessiond_messages_appended_total",
        "Messages appended, without replays.";
    counter SESSIONS_TRIMMED = "sessiond_sessions_trimmed_total",
        "Oldest sessions removed by creates for users with more sessions than are kept.";
    counter MESSAGES_TRIMMED = "sessiond_messages_trimmed_total",
        "Oldest messages removed by appends to sessions with more messages or bytes than are kept.";
    counter TURNS_ENDED = "sessiond_turns_ended_total",
        "Turns closed: completed, failed, cancelled, interrupted, or lost if the writer's lease expired.",
        from 0 for "status" in ["completed", "failed", "cancelled", "interrupted", "lost"];
    gauge STREAMS = "sessiond_streams",
        "Open event streams.";
    counter STREAM_EVENTS = "sessiond_stream_events_total",
        "Events passed to connections, by kind; comment is not an event, and keeps connections alive.",
        from 0 for "event" in ["reset", "session", "message", "turn", "chunk", "ready", "changed", "deleted", "bye",
            "comment"];
    counter STREAM_RESETS = "sessiond_stream_resets_total",
        "Streams, or feeds of several streams, that could not continue from their position; lost: only for businesses.",
        from 0 for "reason" in ["unknown_cursor", "too_far", "diverged", "changed", "lost"];
    histogram STREAM_DELIVERY_SECONDS = "sessiond_stream_delivery_seconds",
        "Time from a change, by the clock of the service that made it, to its event, once for all streams of a worker.";
    gauge SUBSCRIBER_CONNECTIONS = "sessiond_subscriber_connections",
        "Connections to Redis that receive notifications for event streams.";
    counter LOG_LINES_DROPPED = "sessiond_log_lines_dropped_total",
        "Log lines dropped because stderr could not take them, or not fast enough.";
    histogram LAG_SECONDS = "sessiond_event_loop_lag_seconds",
        "Delay of timers of the event loops.";
    gauge EVENT_LOOPS = "sessiond_runtime_event_loops",
        "Event loops that serve requests; each is a worker thread's.";
    gauge ALIVE_TASKS = "sessiond_runtime_alive_tasks",
        "Unfinished tasks of all event loops.";
    gauge QUEUE_DEPTH = "sessiond_runtime_global_queue_depth",
        "Tasks that another thread woke and that have not run yet.";
    counter BUSY_SECONDS = "sessiond_runtime_busy_seconds_total",
        "Busy time of all event loops together, in whole seconds.";
    gauge BUILD = "sessiond_build_info",
        "Always 1; the labels identify the running build.";
}
