//! Faults of Redis, of the network and of the service itself. Whatever happens: every call is answered in bounded time, no
//! acknowledged write is lost or doubled, service comes back by itself, and the audit finds nothing.

mod network;
mod process;
mod refusals;
mod store;

use serde_json::Value;

use crate::support::audit::expect_clean;
use crate::support::ledger::Ledger;
use crate::support::process::patiently;
use crate::support::service::Service;

/// The contract's deadline.
const DEADLINE: [&str; 2] = ["--request-deadline", "1s"];

/// Waits until the service says that it is ready.
async fn ready(service: &Service) {
    patiently(async { while service.get("/readyz").await.status != 200 {} }).await;
}

/// The end of every test: all that was promised is there, and the keyspace is whole.
async fn expect_whole(service: &Service, ledger: &mut Ledger) {
    ledger.expect_all_answered();
    patiently(ledger.expect_complete()).await;
    expect_clean(service).await;
}

fn one_message(message_id: &str) -> Value {
    serde_json::json!({"messageId": message_id, "role": "user", "content": "hello"})
}
