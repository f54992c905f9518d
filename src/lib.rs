//! sessiond
pub mod config;
pub mod http;
pub mod server;
pub mod session;
pub mod store;
