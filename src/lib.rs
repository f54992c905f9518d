//! sessiond is a session service for AI chat assistants. On every page load of a chat frontend it finds the user's
//! active session with a business, or creates one, in one atomic step in Redis.
//!
//! `docs/architecture.md` has the code map, the path of a request, the invariants and the design.
//!
//! A module uses only modules to its right: `main → commands → bootstrap → server → http → streams → store → session`.
//! Beside them are [`auth`], [`config`], [`embedded_redis`], [`log`], [`metrics`], [`output`], [`reload`], [`signals`],
//! [`tls`] and [`trace`]; [`audit`] uses the store.

pub mod audit;
pub mod auth;
pub mod bootstrap;
pub mod config;
pub mod embedded_redis;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod http;
pub mod log;
pub mod metrics;
pub mod output;
pub mod reload;
pub mod server;
pub mod session;
pub mod signals;
pub mod store;
pub mod streams;
pub mod tls;
pub mod trace;
