//! Spans: one for each request, and in it one for each operation of the store. Only with the feature `otel`; without it
//! they are nothing, and take no time.
//!
//! A span has what a line of the log has, and nothing of a body, a credential, a business or a user.

#[cfg(not(feature = "otel"))]
mod none;
#[cfg(feature = "otel")]
mod otel;

#[cfg(not(feature = "otel"))]
pub use self::none::Span;
#[cfg(feature = "otel")]
pub use self::otel::{Exporting, Span, start};
