//! The Lua scripts of `lua/`, run by their digest.

use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::interfaces::LuaInterface;
use fred::types::Value;

use super::StoreError;
use super::error::is_slot_moving;
use super::reply::Reply;

/// One script: a verb that Redis runs as one step.
#[derive(Debug)]
pub(super) struct Script {
    verb: &'static str,
    source: &'static str,
    sha1: String,
    retry_budget: Duration,
}

impl Script {
    fn new(verb: &'static str, source: &'static str, retry_budget: Duration) -> Self {
        Self { verb, source, sha1: fred::util::sha1_hash(source), retry_budget }
    }

    /// Runs the script.
    pub(super) async fn run(&self, client: &Client, keys: Vec<String>, args: Vec<String>) -> Result<Reply, StoreError> {
        let reply = while_slot_moves(self.retry_budget, || self.run_once(client, &keys, &args)).await?;
        Reply::new(self.verb, reply)
    }

    /// Runs the script by its digest. A server that does not know it (new, restarted, promoted, flushed) is sent its text.
    async fn run_once(&self, client: &Client, keys: &[String], args: &[String]) -> Result<Value, fred::error::Error> {
        match client.evalsha(self.sha1.as_str(), keys.to_vec(), args.to_vec()).await {
            // NOSCRIPT comes before anything is run, so this is the first run, not a second one.
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                client.eval(self.source, keys.to_vec(), args.to_vec()).await
            }
            other => other,
        }
    }
}

/// Sends a command. While its slot moves to another server it is sent again, for as long as the budget allows: it has not
/// written anything then.
pub(super) async fn while_slot_moves<T, F>(budget: Duration, send: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, fred::error::Error>>,
{
    let started = Instant::now();
    loop {
        match send().await {
            Err(error) if is_slot_moving(&error) && started.elapsed() < budget => {
                tokio::time::sleep(retry_delay()?).await;
            }
            other => return Ok(other?),
        }
    }
}

/// A few milliseconds, at random: callers that met the same moving slot do not come back together.
fn retry_delay() -> Result<Duration, StoreError> {
    let mut random = [0];
    getrandom::fill(&mut random)?;
    Ok(Duration::from_millis(2 + u64::from(random[0]) % 16))
}

/// Every script of the service.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) get_or_create: Script,
    pub(super) update: Script,
    pub(super) append_messages: Script,
    pub(super) delete: Script,
    pub(super) erase_user: Script,
    pub(super) ready: Script,
    pub(super) repair: Script,
}

impl Scripts {
    pub(super) fn new(retry_budget: Duration) -> Self {
        let script = |verb, source| Script::new(verb, source, retry_budget);
        Self {
            get_or_create: script("get_or_create", include_str!("../../lua/get_or_create.lua")),
            update: script("update", include_str!("../../lua/update.lua")),
            append_messages: script("append_messages", include_str!("../../lua/append_messages.lua")),
            delete: script("delete", include_str!("../../lua/delete.lua")),
            erase_user: script("erase_user", include_str!("../../lua/erase_user.lua")),
            ready: script("ready", include_str!("../../lua/ready.lua")),
            repair: script("repair", include_str!("../../lua/repair.lua")),
        }
    }
}
