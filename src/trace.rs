//! Tracing spans: one for each request and, as its children, one for each operation of the store. Without the feature
//! `otel`, spans are empty and cost nothing.
//!
//! A span has the same fields as a log line. It contains nothing of a body, a credential, a business or a user.

#[cfg(not(feature = "otel"))]
mod disabled;
#[cfg(feature = "otel")]
mod otel;

#[cfg(not(feature = "otel"))]
pub use self::disabled::Span;
#[cfg(feature = "otel")]
pub use self::otel::{ExporterGuard, Span, start};
