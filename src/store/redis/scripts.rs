//! The Lua scripts of `lua/`, run by their digest.

use std::borrow::Cow;

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::LuaInterface;
use fred::types::Value;

use super::connection::{Needs, Server};
use super::resp;
use super::topology::Topology;
use crate::metrics;
use crate::store::StoreError;
use crate::store::error::Redirection;
use crate::store::reply::Reply;

/// What scripts share: the files that precede those that change sessions, those that append, and those that close
/// turns.
const CHANGES: [&str; 1] = [include_str!("../../../lua/common.lua")];
const APPENDS: [&str; 2] = [CHANGES[0], include_str!("../../../lua/prelude.lua")];
const TURNS: [&str; 3] = [APPENDS[0], APPENDS[1], include_str!("../../../lua/turn.lua")];

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

    /// A script that uses the functions of these files. They come after its first line, which names the engine.
    fn after(files: &[&'static str], operation: &'static str, source: &'static str, needs: Needs) -> Self {
        let (engine, body) = source.split_once('\n').unwrap_or_default();
        let source = [&[engine, "\n"], files, &[body]].concat().concat();
        Self::of(operation, source.into(), needs)
    }

    /// The same, for a script that needs clocks that agree, because it sets expiries or `updatedAt`. Scripts that only
    /// remove set neither.
    fn with_safe_clock(files: &[&'static str], operation: &'static str, source: &'static str) -> Self {
        Self::after(files, operation, source, Needs::SafeClock)
    }

    /// Runs the script on the server that has its keys.
    pub(in crate::store) async fn run(
        &self,
        topology: &Topology,
        keys: Vec<String>,
        args: Vec<String>,
    ) -> Result<Reply, StoreError> {
        let slot = keys.first().map_or("", String::as_str);
        if let Some(reply) = topology.run(self.needs, slot, self.encode(&keys, &args)).await? {
            return Ok(Reply::of_texts(self.operation, reply.texts(self.operation)?));
        }
        let reply = topology.call_with(self.needs, slot, |client| self.run_on(client, &keys, &args)).await?;
        Reply::new(self.operation, reply)
    }

    /// Runs a script without keys on this server.
    pub(in crate::store) async fn run_at(&self, server: &Server) -> Result<Reply, StoreError> {
        let reply = self.run_on(server.client().await?, &[], &[]).await?;
        Reply::new(self.operation, reply)
    }

    fn encode(&self, keys: &[String], args: &[String]) -> Vec<u8> {
        let key_count = keys.len().to_string();
        let words = ["EVALSHA", &self.sha1, &key_count].into_iter().chain(keys.iter().chain(args).map(String::as_str));
        resp::command(words.map(str::as_bytes))
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
        macro_rules! source {
            ($name:literal) => {
                include_str!(concat!("../../../lua/", $name, ".lua"))
            };
        }
        Self {
            get_or_create: Script::with_safe_clock(&CHANGES, "get_or_create", source!("get_or_create")),
            update: Script::with_safe_clock(&TURNS, "update", source!("update")),
            begin_turn: Script::with_safe_clock(&TURNS, "begin_turn", source!("begin_turn")),
            append_chunks: Script::with_safe_clock(&APPENDS, "append_chunks", source!("append_chunks")),
            end_turn: Script::with_safe_clock(&TURNS, "end_turn", source!("end_turn")),
            cancel_turn: Script::with_safe_clock(&TURNS, "cancel_turn", source!("cancel_turn")),
            update_message: Script::with_safe_clock(&CHANGES, "update_message", source!("update_message")),
            redact_message: Script::after(&CHANGES, "redact_message", source!("redact_message"), Needs::Connection),
            append_messages: Script::with_safe_clock(&APPENDS, "append_messages", source!("append_messages")),
            delete: Script::after(&CHANGES, "delete", source!("delete"), Needs::Connection),
            erase_user: Script::after(&CHANGES, "erase_user", source!("erase_user"), Needs::Connection),
            ready: Script::new("ready", source!("ready")),
            repair: Script::new("repair", source!("repair")),
        }
    }
}
