//! What the tests stand on: a Redis, services in this process with a clock that the test sets, and services of their own
//! process.

pub mod audit;
pub mod load;
pub mod monitor;
pub mod process;
pub mod raw;
pub mod redis;
pub mod servers;
pub mod service;
