//! The Lua scripts of `lua/`, run by their digest.

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::LuaInterface;
use fred::types::Value;

use super::connection::{Requirement, Server};
use super::resp;
use super::topology::Topology;
use crate::metrics;
use crate::session::TURN_CHUNKS_MAX;
use crate::store::error::Redirection;
use crate::store::reply::Reply;
use crate::store::{StoreConfig, StoreError};

/// The files that scripts share.
const COMMON: &str = include_str!("../../../lua/common.lua");
const APPEND: &str = include_str!("../../../lua/append.lua");
const TURN: &str = include_str!("../../../lua/turn.lua");

/// One script: an operation that Redis runs as one step.
#[derive(Debug)]
pub(in crate::store) struct Script {
    operation: &'static str,
    source: String,
    sha1: String,
    requirement: Requirement,
}

impl Script {
    /// A script that uses these parts. They come after its first line, which names the engine.
    fn new(parts: &[&str], operation: &'static str, source: &'static str, requirement: Requirement) -> Self {
        let (engine, body) = source.split_once('\n').unwrap_or_default();
        let source = [&[engine, "\n"], parts, &[body]].concat().concat();
        Self { operation, sha1: fred::util::sha1_hash(&source), source, requirement }
    }

    /// Runs the script on the server that has its keys.
    pub(in crate::store) async fn run(
        &self,
        topology: &Topology,
        keys: Vec<String>,
        args: Vec<String>,
    ) -> Result<Reply, StoreError> {
        let slot = keys.first().map_or("", String::as_str);
        if let Some(reply) = topology.run(self.requirement, slot, self.encode(&keys, &args)).await? {
            return Ok(Reply::of_texts(self.operation, reply.texts(self.operation)?));
        }
        let reply = topology.call_with(self.requirement, slot, |client| self.run_on(client, &keys, &args)).await?;
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
        let reply = client.eval(self.source.as_str(), keys.to_vec(), args.to_vec()).await;
        if reply.as_ref().is_err_and(|error| Redirection::of(error).is_some()) {
            // A server that a slot is moving to accepts one command for that slot per ASKING. The retry sends the
            // digest.
            let _: Value = client.script_load(self.source.as_str()).await?;
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
    pub(in crate::store) fn new(config: &StoreConfig) -> Self {
        macro_rules! source {
            ($name:literal) => {
                include_str!(concat!("../../../lua/", $name, ".lua"))
            };
        }
        let settings = settings(config);
        // Those that change sessions, those that append, and those that close turns.
        let changes = [&settings, COMMON];
        let appends = [&settings, COMMON, APPEND];
        let turns = [&settings, COMMON, APPEND, TURN];
        // Needed by scripts that set expiries or `updatedAt`. Scripts that only remove set neither.
        let clock = Requirement::SafeClock;
        Self {
            get_or_create: Script::new(&changes, "get_or_create", source!("get_or_create"), clock),
            update: Script::new(&turns, "update", source!("update"), clock),
            begin_turn: Script::new(&turns, "begin_turn", source!("begin_turn"), clock),
            append_chunks: Script::new(&appends, "append_chunks", source!("append_chunks"), clock),
            end_turn: Script::new(&turns, "end_turn", source!("end_turn"), clock),
            cancel_turn: Script::new(&turns, "cancel_turn", source!("cancel_turn"), clock),
            update_message: Script::new(&changes, "update_message", source!("update_message"), clock),
            redact_message: Script::new(&changes, "redact_message", source!("redact_message"), Requirement::Connection),
            append_messages: Script::new(&appends, "append_messages", source!("append_messages"), clock),
            delete: Script::new(&changes, "delete", source!("delete"), Requirement::Connection),
            erase_user: Script::new(&changes, "erase_user", source!("erase_user"), Requirement::Connection),
            ready: Script::new(&[], "ready", source!("ready"), Requirement::Connection),
            repair: Script::new(&[&settings], "repair", source!("repair"), Requirement::Connection),
        }
    }
}

/// The settings as constants of the scripts (`lua/README.md`).
fn settings(config: &StoreConfig) -> String {
    let lifecycle = &config.lifecycle;
    let constants = [
        ("IDLE_MS", lifecycle.idle_ms().to_string()),
        ("MAX_LIFETIME_MS", lifecycle.max_lifetime_ms().to_string()),
        ("RETENTION_MS", lifecycle.retention_ms().to_string()),
        ("RESOLUTION_MS", lifecycle.resolution_ms().to_string()),
        ("MESSAGES_KEPT", config.messages_kept.to_string()),
        ("SESSION_BYTES_MAX", config.session_bytes_max.to_string()),
        ("SESSIONS_MAX", config.sessions_per_user_max.to_string()),
        ("TURN_LEASE_MS", config.turn_lease_ms().to_string()),
        ("TURN_BYTES_MAX", config.turn_bytes_max.to_string()),
        ("TURN_CHUNKS_MAX", TURN_CHUNKS_MAX.to_string()),
    ];
    let (names, values): (Vec<_>, Vec<_>) = constants.into_iter().unzip();
    format!("local {} = {}\n", names.join(", "), values.join(", "))
}
