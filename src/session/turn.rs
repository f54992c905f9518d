//! Turns: messages while they are being written (docs/api.md, "Turns").

use serde_json::Value;
use utoipa::ToSchema;

use super::json::{JSON_OVERHEAD_BYTES, JsonObject, member};
use super::{Role, SessionId, Timestamp, words};

/// Maximum number of chunks of a turn.
pub const TURN_CHUNKS_MAX: usize = 32_768;

words! {
    /// The state of a turn.
    TurnStatus {
        /// Its writer is writing it.
        Open = "open",
        /// Its writer completed it.
        Completed = "completed",
        /// Its writer failed.
        Failed = "failed",
        /// A reader asked its writer to stop.
        Cancelled = "cancelled",
        /// The session was ended, or another turn began in its place.
        Interrupted = "interrupted",
        /// Its writer was silent for longer than its lease.
        Lost = "lost",
    }
}

words! {
    /// The status with which a writer ends a turn.
    EndStatus {
        /// The reply is complete.
        Completed = "completed",
        /// The writer could not complete it.
        Failed = "failed",
    }
}

words! {
    /// What to do if a turn is open.
    IfOpen {
        /// Reject this call.
        Reject = "reject",
        /// Close another turn, and keep its text as its message.
        Interrupt = "interrupt",
        /// Close another turn without a message, or begin this one again without its chunks.
        Discard = "discard",
        /// Continue this turn as its new writer.
        Takeover = "takeover",
    }
}

/// One message while it is being written. Members of an old turn that are no longer stored are null.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "camelCase", example = turn_example)]
pub struct Turn {
    /// Unique within the session, and the `messageId` of the message that it becomes.
    pub turn_id: String,
    /// The session that the turn belongs to.
    #[schema(value_type = String, format = Uuid)]
    pub session_id: SessionId,
    /// Grows from turn to turn of a session, and changes with the writer.
    #[schema(required, minimum = 1)]
    pub number: Option<u64>,
    /// The number that the turn had when its chunks began: a takeover keeps the chunks, a discard removes them. Not
    /// in the JSON.
    #[schema(ignore)]
    pub since: Option<u64>,
    /// The run of a worker that writes it.
    #[schema(required)]
    pub writer: Option<String>,
    /// The role of the message that it becomes.
    pub role: Role,
    /// The metadata of the message that it becomes.
    #[schema(value_type = HashMap<String, Value>)]
    pub metadata: String,
    /// The state of the turn.
    pub status: TurnStatus,
    /// How many chunks it has.
    #[schema(required, minimum = 0)]
    pub next_chunk: Option<u64>,
    /// Bytes of the chunks as JSON, without quotes. Not in the JSON.
    #[schema(ignore)]
    pub chunk_bytes: usize,
    /// `seq` of the session's last message when the turn began; 0 if there was none.
    #[schema(required, minimum = 0)]
    pub after_seq: Option<u64>,
    /// Whether a reader has asked the writer to stop.
    pub cancel_requested: bool,
    /// When the lease of the writer ends.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub lease_until: Option<Timestamp>,
    /// When the turn began.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// When the turn was closed.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// Why it failed, as its writer gave it.
    #[schema(required, value_type = Option<Value>)]
    pub error: Option<String>,
    /// `seq` of the message that it became.
    #[schema(required, minimum = 1)]
    pub message_seq: Option<u64>,
    /// The status that its writer gave. Not in the JSON; it identifies a repeated end.
    #[schema(ignore)]
    pub ended_as: Option<String>,
}

impl Turn {
    /// Appends the turn as JSON, with these chunks, which are escaped JSON texts without quotes.
    pub fn write_json(&self, chunks: Option<&[impl AsRef<[u8]>]>, out: &mut Vec<u8>) {
        let mut object = JsonObject::open(out);
        object.string(member!("turnId"), &self.turn_id);
        object.id(member!("sessionId"), self.session_id);
        object.optional_number(member!("number"), self.number);
        object.optional_string(member!("writer"), self.writer.as_deref());
        object.word(member!("role"), Some(self.role.as_str()));
        object.json(member!("metadata"), &self.metadata);
        object.word(member!("status"), Some(self.status.as_str()));
        object.optional_number(member!("nextChunk"), self.next_chunk);
        object.optional_number(member!("afterSeq"), self.after_seq);
        object.json(member!("cancelRequested"), if self.cancel_requested { "true" } else { "false" });
        object.optional_time(member!("leaseUntil"), self.lease_until);
        object.optional_time(member!("startedAt"), self.started_at);
        object.optional_time(member!("endedAt"), self.ended_at);
        object.json(member!("error"), self.error.as_deref().unwrap_or("null"));
        object.optional_number(member!("messageSeq"), self.message_seq);
        if let Some(chunks) = chunks {
            object.escaped_strings(member!("chunks"), chunks);
        }
        object.close();
    }

    /// Appends the JSON of an event with these chunks, from number `from` on.
    pub fn write_chunks_json(&self, from: u64, chunks: &[impl AsRef<[u8]>], out: &mut Vec<u8>) {
        let mut object = JsonObject::open(out);
        object.string(member!("turnId"), &self.turn_id);
        object.optional_number(member!("number"), self.number);
        object.number(member!("from"), from);
        object.escaped_strings(member!("chunks"), chunks);
        object.close();
    }

    /// Approximate number of bytes of the JSON, without chunks.
    #[must_use]
    pub fn json_bytes(&self) -> usize {
        let error = self.error.as_ref().map_or(0, String::len);
        JSON_OVERHEAD_BYTES + self.turn_id.len() + self.metadata.len() + error
    }

    /// The turn as JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = Vec::new();
        self.write_json(None::<&[&[u8]]>, &mut json);
        json
    }
}

fn turn_example() -> Value {
    serde_json::json!({
        "turnId": "re:m-1", "sessionId": "f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e", "number": 1, "writer": "worker-7f3a",
        "role": "assistant", "metadata": {}, "status": "open", "nextChunk": 2, "afterSeq": 1, "cancelRequested": false,
        "leaseUntil": "2026-11-22T10:00:31.000Z", "startedAt": "2026-11-22T10:00:01.000Z", "endedAt": null,
        "error": null, "messageSeq": null,
    })
}

/// The open turn of a session, as the session's hash names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenTurn {
    /// Its id as escaped JSON text, without quotes.
    pub escaped_id: String,
    /// When the lease of its writer ends.
    pub lease_until: Timestamp,
}

impl OpenTurn {
    /// Milliseconds from the end of a turn's lease until it may be closed as lost. The same value as in
    /// `lua/append.lua`.
    const LOST_AFTER_MS: i64 = 1000;

    /// When the turn may be closed as lost.
    #[must_use]
    pub fn lost_at(&self) -> Timestamp {
        Self::lost_after(self.lease_until)
    }

    /// When a turn whose lease ends at `lease_until` may be closed as lost.
    #[must_use]
    pub fn lost_after(lease_until: Timestamp) -> Timestamp {
        Timestamp(lease_until.0.saturating_add(Self::LOST_AFTER_MS))
    }

    /// Whether the turn may be closed as lost.
    #[must_use]
    pub fn is_lost(&self, now: Timestamp) -> bool {
        now >= self.lost_at()
    }
}
