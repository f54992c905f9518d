//! The acceptance tests: the real service on real sockets, on a real Redis. One binary; every test has a key prefix of
//! its own, so all of them run at once on one server.

#![expect(clippy::expect_used, reason = "a test that cannot go on ends")]
#![expect(clippy::print_stdout, reason = "tests print what they measured")]
#![expect(clippy::disallowed_methods, reason = "tests find the server program in the environment")]
#![expect(unreachable_pub, reason = "the whole binary is one crate")]

mod acl;
mod architecture;
mod audit;
mod auth;
mod bad_input;
mod client_flow;
mod cluster;
mod connection;
mod cors;
mod faults;
mod health;
mod hints;
mod hostile;
mod idempotency;
mod identifiers;
mod large_reads;
mod lifecycle;
mod linearizability;
mod lists;
mod logs;
mod messages;
mod metrics;
mod monitoring;
mod mutants;
mod nemesis;
mod openapi;
#[cfg(feature = "otel")]
mod otel;
mod overload;
mod preconditions;
mod private_redis;
mod program;
mod races;
mod reads;
mod redis_outage;
mod scripts;
mod sentinel;
mod state_machine;
mod support;
mod topologies;
