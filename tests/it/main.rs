//! The acceptance tests: the real service on real sockets, on a real Redis. One binary; every test has a key prefix of
//! its own, so all of them run at once on one server.

mod client_flow;
mod support;
