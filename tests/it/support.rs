//! Shared test support: Redis servers, services in this process with a clock that the test sets, and services in their
//! own process.

pub mod acl;
pub mod audit;
pub mod credentials;
pub mod events;
pub mod faulty_redis;
pub mod ledger;
pub mod load;
pub mod monitor;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod random;
pub mod raw;
pub mod redis;
pub mod redis_server;
pub mod reply_proxy;
pub mod scrape;
pub mod service;
pub mod sinks;
pub mod unlogged;
