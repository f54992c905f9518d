//! What the tests stand on: a Redis, services in this process with a clock that the test sets, and services of their own
//! process.

pub mod acl;
pub mod audit;
pub mod credentials;
pub mod ledger;
pub mod load;
pub mod monitor;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod random;
pub mod raw;
pub mod redis;
pub mod reply_proxy;
pub mod scrape;
pub mod server;
pub mod servers;
pub mod service;
pub mod sinks;
pub mod unlogged;
pub mod victim;
