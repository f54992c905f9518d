//! Faults of Redis, of the network and of the service itself. In every case each call gets a response in bounded time,
//! no acknowledged write is lost or applied twice, the service recovers without intervention, and the audit finds
//! nothing.

mod network;
mod process;
mod rejections;
mod store;

use serde_json::Value;

use crate::support::audit::expect_clean;
use crate::support::ledger::Ledger;
use crate::support::process::with_timeout;
use crate::support::service::Service;

/// The default request deadline (docs/configuration.md). `Service::start_on` would otherwise set 10 s.
const DEADLINE: [&str; 2] = ["--request-deadline", "1s"];

/// Waits until `/readyz` returns 200.
async fn wait_until_ready(service: &Service) {
    with_timeout(async { while service.get("/readyz").await.status != 200 {} }).await;
}

/// The last step of each test: checks that every call got a response, everything acknowledged is
/// stored, and the audit finds nothing.
async fn expect_intact(service: &Service, ledger: &mut Ledger) {
    ledger.expect_all_answered();
    with_timeout(ledger.expect_complete()).await;
    expect_clean(service).await;
}

fn one_message(message_id: &str) -> Value {
    serde_json::json!({"messageId": message_id, "role": "user", "content": "hello"})
}
