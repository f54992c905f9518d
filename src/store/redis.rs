//! The Redis servers that hold sessions: connections, routing of commands to servers, and scripts.

pub(super) mod address;
mod cluster;
pub(super) mod connection;
pub(super) mod connection_id;
mod pipeline;
pub(super) mod preflight;
pub(super) mod read_command;
mod resp;
pub(super) mod scripts;
pub(super) mod subscriber;
pub(super) mod topology;
