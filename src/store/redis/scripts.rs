//! The Lua scripts of `lua/`, run by their digest.

use std::borrow::Cow;

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::LuaInterface;
use fred::types::Value;

use super::connection::{Needs, Server};
use super::topology::Topology;
use crate::metrics;
use crate::store::StoreError;
use crate::store::error::Redirection;
use crate::store::reply::Reply;

/// The first line of a script.
const ENGINE: &str = "#!lua\n";

/// What scripts share: the files that precede those that append, and those that close turns.
const APPENDS: [&str; 1] = [include_str!("../../../lua/prelude.lua")];
const TURNS: [&str; 2] = [APPENDS[0], include_str!("../../../lua/turn.lua")];

/// One script: an operation that Redis runs as one step.
#[derive(Debug)]
pub(in crate::store) struct Script {
    operation: &'static str,
    source: Cow<'static, str>,
    sha1: String,
    needs: Needs,
}

impl Script {
    fn new(operation: &'static str, source: &'static str) -> Self {
        Self::of(operation, source.into(), Needs::Connection)
    }

    fn of(operation: &'static str, source: Cow<'static, str>, needs: Needs) -> Self {
        Self { operation, sha1: fred::util::sha1_hash(&source), source, needs }
    }

    /// A script that needs clocks that agree, because it sets expiries or `updatedAt`. Scripts that only remove set
    /// neither.
    fn with_safe_clock(operation: &'static str, source: &'static str) -> Self {
        Self::of(operation, source.into(), Needs::SafeClock)
    }

    /// A script with a safe clock that uses the functions of these files.
    fn after(files: &[&'static str], operation: &'static str, source: &'static str) -> Self {
        let body = source.strip_prefix(ENGINE).unwrap_or(source);
        let source = [&[ENGINE], files, &[body]].concat().concat();
        Self::of(operation, source.into(), Needs::SafeClock)
    }

    /// Runs the script on the server that has its keys.
    pub(in crate::store) async fn run(
        &self,
        topology: &Topology,
        keys: Vec<String>,
        args: Vec<String>,
    ) -> Result<Reply, StoreError> {
        let slot = keys.first().map_or("", String::as_str);
        let reply = topology.call_with(self.needs, slot, |client| self.run_on(client, &keys, &args)).await?;
        Reply::new(self.operation, reply)
    }

    /// Runs a script without keys on this server.
    pub(in crate::store) async fn run_at(&self, server: &Server) -> Result<Reply, StoreError> {
        let reply = self.run_on(server.client().await?, &[], &[]).await?;
        Reply::new(self.operation, reply)
    }

    /// Runs the script on one server by its digest. A server that does not know the digest (new, restarted, promoted,
    /// flushed) is sent the text.
    async fn run_on(&self, client: Client, keys: &[String], args: &[String]) -> Result<Value, Error> {
        match client.evalsha(self.sha1.as_str(), keys.to_vec(), args.to_vec()).await {
            // Redis replies NOSCRIPT before it runs anything, so the script still runs only once.
            Err(error) if error.details().starts_with("NOSCRIPT") => {}
            other => return other,
        }
        metrics::store_retried("noscript");
        let reply = client.eval(&*self.source, keys.to_vec(), args.to_vec()).await;
        if reply.as_ref().is_err_and(|error| Redirection::of(error).is_some()) {
            // A server that a slot is moving to accepts one command for that slot per ASKING. The retry sends the
            // digest.
            let _: Value = client.script_load(&*self.source).await?;
        }
        reply
    }
}

/// Every script of the service.
#[derive(Debug)]
pub(in crate::store) struct Scripts {
    pub(in crate::store) get_or_create: Script,
    pub(in crate::store) update: Script,
    pub(in crate::store) begin_turn: Script,
    pub(in crate::store) append_chunks: Script,
    pub(in crate::store) end_turn: Script,
    pub(in crate::store) cancel_turn: Script,
    pub(in crate::store) update_message: Script,
    pub(in crate::store) redact_message: Script,
    pub(in crate::store) append_messages: Script,
    pub(in crate::store) delete: Script,
    pub(in crate::store) erase_user: Script,
    pub(in crate::store) ready: Script,
    pub(in crate::store) repair: Script,
}

impl Scripts {
    pub(in crate::store) fn new() -> Self {
        Self {
            get_or_create: Script::with_safe_clock("get_or_create", include_str!("../../../lua/get_or_create.lua")),
            update: Script::after(&TURNS, "update", include_str!("../../../lua/update.lua")),
            begin_turn: Script::after(&TURNS, "begin_turn", include_str!("../../../lua/begin_turn.lua")),
            append_chunks: Script::after(&APPENDS, "append_chunks", include_str!("../../../lua/append_chunks.lua")),
            end_turn: Script::after(&TURNS, "end_turn", include_str!("../../../lua/end_turn.lua")),
            cancel_turn: Script::after(&TURNS, "cancel_turn", include_str!("../../../lua/cancel_turn.lua")),
            update_message: Script::with_safe_clock("update_message", include_str!("../../../lua/update_message.lua")),
            redact_message: Script::new("redact_message", include_str!("../../../lua/redact_message.lua")),
            append_messages: Script::after(
                &APPENDS,
                "append_messages",
                include_str!("../../../lua/append_messages.lua"),
            ),
            delete: Script::new("delete", include_str!("../../../lua/delete.lua")),
            erase_user: Script::new("erase_user", include_str!("../../../lua/erase_user.lua")),
            ready: Script::new("ready", include_str!("../../../lua/ready.lua")),
            repair: Script::new("repair", include_str!("../../../lua/repair.lua")),
        }
    }
}
