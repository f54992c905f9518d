//! The metrics of event streams and turns.

use std::sync::LazyLock;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::catalog::{
    SHED, STREAM_DELIVERY_SECONDS, STREAM_EVENTS, STREAM_RESETS, STREAMS, SUBSCRIBER_CONNECTIONS, TURNS_ENDED,
};
use super::{count, label};

label! {
    /// The kind of an event of a stream.
    StreamEvent {
        /// The stream cannot continue from its position.
        Reset = "reset",
        /// A session.
        Session = "session",
        /// A message.
        Message = "message",
        /// A turn.
        Turn = "turn",
        /// Chunks of a turn.
        Chunk = "chunk",
        /// Everything that was stored at the start has been sent.
        Ready = "ready",
        /// A message was changed.
        Changed = "changed",
        /// The session was deleted.
        Deleted = "deleted",
        /// The service ends the stream.
        Bye = "bye",
        /// A comment, which is not an event: it shows that the connection is alive.
        Comment = "comment",
    }
}

struct StreamMetrics {
    streams: Gauge,
    subscriber_connections: Gauge,
    /// In the order of [`StreamEvent::ALL`].
    events: [Counter; StreamEvent::ALL.len()],
    delivery_seconds: Histogram,
}

static METRICS: LazyLock<StreamMetrics> = LazyLock::new(|| StreamMetrics {
    streams: gauge!(STREAMS),
    subscriber_connections: gauge!(SUBSCRIBER_CONNECTIONS),
    events: StreamEvent::ALL.map(|event| counter!(STREAM_EVENTS, "event" => event.as_str())),
    delivery_seconds: histogram!(STREAM_DELIVERY_SECONDS),
});

/// Exports the series that are known in advance.
pub(super) fn register() {
    LazyLock::force(&METRICS);
    METRICS.streams.set(0.0);
    METRICS.subscriber_connections.set(0.0);
}

/// Sets the number of open streams.
pub fn streams_open(streams: usize) {
    METRICS.streams.set(count(streams));
}

/// Counts an event stream that was rejected because of a limit: `streams`, or `user_streams` of one user.
pub fn stream_shed(reason: &'static str) {
    counter!(SHED, "reason" => reason).increment(1);
}

/// Counts an event that was passed to a connection.
pub fn stream_event_sent(event: StreamEvent) {
    METRICS.events[event as usize].increment(1);
}

/// Counts a stream, or a feed with its streams, that cannot continue from its position. `reason` is that of the event.
pub fn stream_reset(reason: &'static str) {
    counter!(STREAM_RESETS, "reason" => reason).increment(1);
}

/// Records the time from a change to its event.
pub fn stream_delivered(took: Duration) {
    METRICS.delivery_seconds.record(took);
}

/// Counts a connection for subscriptions that was opened.
pub fn subscriber_connected() {
    METRICS.subscriber_connections.increment(1.0);
}

/// Counts a connection for subscriptions that ended.
pub fn subscriber_disconnected() {
    METRICS.subscriber_connections.decrement(1.0);
}

/// Counts a turn that was closed with this status.
pub fn turn_ended(status: &'static str) {
    counter!(TURNS_ENDED, "status" => status).increment(1);
}
