//! The acceptance tests: the real service, real sockets and a real Redis. All tests are in one binary. Every test has
//! its own key prefix, so they run concurrently on one Redis server.

#![expect(clippy::expect_used, reason = "a test that cannot continue fails")]
#![expect(clippy::print_stdout, reason = "tests print what they measured")]
#![expect(clippy::disallowed_methods, reason = "tests read the environment to find the Redis server program")]
#![expect(unreachable_pub, reason = "the whole binary is one crate")]

mod acl;
mod architecture;
mod audit;
mod auth;
mod backup;
mod bad_input;
mod bounds;
mod cli;
mod client_flow;
mod cluster;
mod connection;
mod cors;
mod embedded_redis;
mod export;
mod faults;
mod health;
mod hints;
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
mod pages;
mod pipeline;
mod preconditions;
mod races;
mod redis_outage;
mod scripts;
mod security;
mod sentinel;
mod state_machine;
mod streams;
mod support;
mod topologies;
mod turns;
mod upgrade;
