//! The domain: identifiers, sessions, messages and the life cycle of sessions. No I/O, no clock.

mod changed_messages;
mod id;
mod identifier;
mod json;
mod json_equality;
mod lifecycle;
mod merge_patch;
mod message;
mod partition;
mod tenant_scope;
mod timestamp;
mod turn;
mod view;

use utoipa::ToSchema;

pub use self::changed_messages::ChangedMessages;
pub use self::id::SessionId;
pub use self::identifier::{IdempotencyKey, Identifier};
pub use self::json::compact_json;
use self::json::{JSON_OVERHEAD_BYTES, JsonObject, member};
pub use self::json_equality::same_json;
pub use self::lifecycle::Lifecycle;
pub use self::merge_patch::{merge_patch, patched_metadata};
pub use self::message::{
    APPEND_MESSAGES_MAX, Message, MessageJson, MessageMembers, MessageRef, NewMessage, Role, content_schema,
    escaped_text, json_after_seq,
};
pub use self::partition::Partition;
pub use self::tenant_scope::TenantScope;
pub use self::timestamp::{Clock, Timestamp};
pub use self::turn::{EndStatus, IfOpen, OpenTurn, TURN_CHUNKS_MAX, Turn, TurnStatus};
pub use self::view::{Include, Included, LastMessage, SessionView, ViewedTurn};

/// Maximum characters of a title.
pub const TITLE_CHARS_MAX: usize = 200;

/// Declares an enum of the words that a field of the API may contain (docs/api.md), with `as_str` and `from_word`.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
        pub enum $name {
            $($(#[$variant_doc])* #[schema(rename = $word)] $variant,)+
        }

        impl $name {
            /// Every word, in the order of docs/api.md.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word in API bodies and in Redis.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// Parses a word.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}
use words;

words! {
    /// The state of a session.
    Status {
        /// It is the user's current conversation.
        Active = "active",
        /// A client ended or replaced it.
        Ended = "ended",
        /// It reached its `expiresAt`.
        Expired = "expired",
    }
}

words! {
    /// Why a session is no longer active.
    EndReason {
        /// A client set `status` to `ended`.
        Client = "client",
        /// A client created or resumed another session in its place.
        Replaced = "replaced",
        /// There was no activity for the idle timeout.
        Idle = "idle",
        /// It was active for the maximum lifetime.
        MaxLifetime = "max_lifetime",
    }
}

words! {
    /// What to do if the user has another active session.
    IfActive {
        /// A create returns that session; a resume is rejected.
        Return = "return",
        /// End that session in the same step.
        Replace = "replace",
    }
}

/// One conversation of one user with one business.
// Calls pass it in a box: it has some 450 bytes, and is moved often.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "camelCase", example = session_example)]
pub struct Session {
    /// A UUID.
    #[schema(value_type = String, format = Uuid)]
    pub session_id: SessionId,
    /// The business that the user talks to.
    pub business_id: String,
    /// The user; unique within the business.
    pub user_id: String,
    /// The location of the business.
    pub location_id: String,
    /// The kind of conversation.
    pub session_type: String,
    /// The state of the session.
    pub status: Status,
    /// The title; at most 200 characters.
    #[schema(required, max_length = 200)]
    pub title: Option<String>,
    /// A JSON object that the client keeps with the session.
    // Stored as text, so that reads can splice it into the response.
    #[schema(value_type = HashMap<String, Value>)]
    pub metadata: String,
    /// Number of messages ever appended.
    #[schema(minimum = 0)]
    pub message_count: u64,
    /// Incremented by every change of the session; activity is not a change.
    #[schema(minimum = 1)]
    pub version: u64,
    /// When the session was created. Strictly increases from session to session of a user.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When the session last changed. A redaction of a message does not count.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// Time of the last activity. May lag by the activity resolution.
    #[schema(value_type = String, format = DateTime)]
    pub last_activity_at: Timestamp,
    /// When the session expires if there is no more activity. May lag by the activity resolution.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// When the maximum lifetime of the session ends. Not in the JSON; it determines the reason of an expiry.
    #[schema(ignore)]
    pub active_until: Timestamp,
    /// When the session stopped being active.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// Why the session stopped being active.
    #[schema(required)]
    pub end_reason: Option<EndReason>,
    /// Bytes of its largest message ever; 0 without messages. Not in the JSON; it bounds how many messages one command
    /// reads.
    #[schema(ignore)]
    pub largest_message_bytes: usize,
    /// Bytes of the messages that are kept. Not in the JSON.
    #[schema(ignore)]
    pub message_bytes: u64,
    /// `seq` of the oldest message that is kept; 1 without messages. Not in the JSON.
    #[schema(ignore)]
    pub oldest_seq: u64,
    /// When the session was created or last resumed: its score in its user's history. Not in the JSON.
    #[schema(ignore)]
    pub history_at: Timestamp,
    /// The number of the latest turn, if there was one. Not in the JSON.
    #[schema(ignore)]
    pub turn_number: Option<u64>,
    /// The open turn. Not in the JSON.
    #[schema(ignore)]
    pub open_turn: Option<OpenTurn>,
    /// Which messages were changed last. Not in the JSON.
    #[schema(ignore)]
    pub changed_messages: ChangedMessages,
}

impl Session {
    /// Approximate number of bytes that [`Self::write_json`] appends.
    #[must_use]
    pub fn json_bytes(&self) -> usize {
        let texts = [&self.business_id, &self.user_id, &self.location_id, &self.session_type, &self.metadata];
        let title = self.title.as_ref().map_or(0, String::len);
        JSON_OVERHEAD_BYTES + title + texts.iter().map(|text| text.len()).sum::<usize>()
    }

    /// Whether the session belongs to this user.
    #[must_use]
    pub fn is_of_user(&self, business_id: &Identifier, user_id: &Identifier) -> bool {
        self.business_id == business_id.as_str() && self.user_id == user_id.as_str()
    }

    /// An upper bound of the bytes of `count` of the messages that are kept.
    #[must_use]
    pub fn message_bytes_max(&self, count: usize) -> usize {
        let all = usize::try_from(self.message_bytes).unwrap_or(usize::MAX);
        count.saturating_mul(self.largest_message_bytes).min(all)
    }

    /// The session as of `now`, or `None` if its retention has ended.
    ///
    /// A session that is stored as `active` and has reached its `expires_at` is returned as `expired`. The next
    /// create, change or resume that reads the session stores that status.
    #[must_use]
    pub fn as_of(mut self: Box<Self>, now: Timestamp, lifecycle: &Lifecycle) -> Option<Box<Self>> {
        if self.status == Status::Active && now >= self.expires_at {
            self.status = Status::Expired;
            self.ended_at = Some(self.expires_at);
            let reached_max_lifetime = self.expires_at == self.active_until;
            self.end_reason = Some(if reached_max_lifetime { EndReason::MaxLifetime } else { EndReason::Idle });
        }
        let end = self.ended_at.unwrap_or(self.expires_at);
        (now.0 < end.0.saturating_add(lifecycle.retention_ms())).then_some(self)
    }

    /// The session as JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = Vec::with_capacity(self.json_bytes());
        self.write_json(&mut json);
        json
    }

    /// Appends the session as JSON (docs/api.md, "Session fields"). Splices in `metadata` as stored.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let mut object = JsonObject::open(out);
        object.id(member!("sessionId"), self.session_id);
        object.string(member!("businessId"), &self.business_id);
        object.string(member!("userId"), &self.user_id);
        object.string(member!("locationId"), &self.location_id);
        object.string(member!("sessionType"), &self.session_type);
        object.word(member!("status"), Some(self.status.as_str()));
        object.optional_string(member!("title"), self.title.as_deref());
        object.json(member!("metadata"), &self.metadata);
        object.number(member!("messageCount"), self.message_count);
        object.number(member!("version"), self.version);
        object.time(member!("createdAt"), self.created_at);
        object.time(member!("updatedAt"), self.updated_at);
        object.time(member!("lastActivityAt"), self.last_activity_at);
        object.time(member!("expiresAt"), self.expires_at);
        object.optional_time(member!("endedAt"), self.ended_at);
        object.word(member!("endReason"), self.end_reason.map(EndReason::as_str));
        object.close();
    }
}

fn session_example() -> serde_json::Value {
    serde_json::json!({
        "sessionId": "f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e", "businessId": "B0100001", "userId": "user_123",
        "locationId": "L0100001", "sessionType": "general", "status": "active", "title": null, "metadata": {},
        "messageCount": 0, "version": 1, "createdAt": "2026-11-22T10:00:00.000Z",
        "updatedAt": "2026-11-22T10:00:00.000Z", "lastActivityAt": "2026-11-22T10:00:00.000Z",
        "expiresAt": "2026-11-22T10:30:00.000Z", "endedAt": null, "endReason": null,
    })
}

/// The content of a session to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSession {
    /// The business.
    pub business_id: Identifier,
    /// The user.
    pub user_id: Identifier,
    /// The location of the business.
    pub location_id: Identifier,
    /// The kind of conversation.
    pub session_type: Identifier,
    /// The title; at most [`TITLE_CHARS_MAX`] characters.
    pub title: Option<String>,
    /// The text of a JSON object.
    pub metadata: String,
    /// What to do if the user has an active session.
    pub if_active: IfActive,
    /// Determines the id of the new session, so that a repeated call does not create another one.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// The changes of one `PATCH`. `None` keeps the stored value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPatch {
    /// The new location.
    pub location_id: Option<Identifier>,
    /// The new kind.
    pub session_type: Option<Identifier>,
    /// The new title; `Some(None)` removes the title.
    pub title: Option<Option<String>>,
    /// A JSON merge patch of the metadata; `null` clears the metadata.
    pub metadata: Option<serde_json::Value>,
    /// Whether to end or resume the session.
    pub status: Option<PatchStatus>,
    /// What a resume does if another session of the user is active.
    pub if_active: IfActive,
}

impl SessionPatch {
    /// The patch that only records activity.
    #[must_use]
    pub fn heartbeat() -> Self {
        let if_active = IfActive::Return;
        Self { location_id: None, session_type: None, title: None, metadata: None, status: None, if_active }
    }

    /// Whether it only records activity.
    #[must_use]
    pub fn is_heartbeat(&self) -> bool {
        let Self { location_id, session_type, title, metadata, status, if_active: _ } = self;
        location_id.is_none() && session_type.is_none() && title.is_none() && metadata.is_none() && status.is_none()
    }
}

words! {
    /// What a client may set `status` to.
    PatchStatus {
        /// Resume the session as the user's active one.
        Active = "active",
        /// End the session.
        Ended = "ended",
    }
}
