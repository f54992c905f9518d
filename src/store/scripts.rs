//! The Lua scripts of `lua/`, run by their digest.

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::LuaInterface;
use fred::types::Value;

use super::StoreError;
use super::client::{Needs, Server};
use super::error::Redirection;
use super::reply::Reply;
use super::servers::Servers;
use crate::metrics;

/// One script: a verb that Redis runs as one step.
#[derive(Debug)]
pub(super) struct Script {
    verb: &'static str,
    source: &'static str,
    sha1: String,
    needs: Needs,
}

impl Script {
    fn new(verb: &'static str, source: &'static str) -> Self {
        Self { verb, source, sha1: fred::util::sha1_hash(source), needs: Needs::Connection }
    }

    /// A script that sets expiries.
    fn setting_expiries(verb: &'static str, source: &'static str) -> Self {
        Self { needs: Needs::SafeClock, ..Self::new(verb, source) }
    }

    /// Runs the script where its keys are.
    pub(super) async fn run(
        &self,
        servers: &Servers,
        keys: Vec<String>,
        args: Vec<String>,
    ) -> Result<Reply, StoreError> {
        let slot = keys.first().map_or("", String::as_str);
        let reply = servers.call_with(self.needs, slot, |client| self.run_on(client, &keys, &args)).await?;
        Reply::new(self.verb, reply)
    }

    /// Runs a script that has no keys on this server.
    pub(super) async fn run_at(&self, server: &Server) -> Result<Reply, StoreError> {
        let reply = self.run_on(server.client().await?, &[], &[]).await?;
        Reply::new(self.verb, reply)
    }

    /// Runs the script on one server by its digest. A server that does not know it (new, restarted, promoted, flushed) is
    /// sent its text.
    async fn run_on(&self, client: Client, keys: &[String], args: &[String]) -> Result<Value, Error> {
        match client.evalsha(self.sha1.as_str(), keys.to_vec(), args.to_vec()).await {
            // NOSCRIPT comes before anything is run, so this is the first run, not a second one.
            Err(error) if error.details().starts_with("NOSCRIPT") => {}
            other => return other,
        }
        metrics::store_retried("noscript");
        let reply = client.eval(self.source, keys.to_vec(), args.to_vec()).await;
        if reply.as_ref().is_err_and(|error| Redirection::of(error).is_some()) {
            // A server that a slot is moving to takes one command for it at a time. The next one will be the digest.
            let _: Value = client.script_load(self.source).await?;
        }
        reply
    }
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
    pub(super) fn new() -> Self {
        Self {
            get_or_create: Script::setting_expiries("get_or_create", include_str!("../../lua/get_or_create.lua")),
            update: Script::setting_expiries("update", include_str!("../../lua/update.lua")),
            append_messages: Script::setting_expiries("append_messages", include_str!("../../lua/append_messages.lua")),
            delete: Script::new("delete", include_str!("../../lua/delete.lua")),
            erase_user: Script::new("erase_user", include_str!("../../lua/erase_user.lua")),
            ready: Script::new("ready", include_str!("../../lua/ready.lua")),
            repair: Script::new("repair", include_str!("../../lua/repair.lua")),
        }
    }
}
