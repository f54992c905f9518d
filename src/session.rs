//! The domain: identifiers, sessions, messages, and the rules of a session's life. No I/O, no clock.

mod json_equality;

use std::borrow::Borrow;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Datelike, SecondsFormat, Timelike};
use ring::digest;
use utoipa::ToSchema;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

pub use self::json_equality::same_json;

/// The most characters that a title may have.
pub const TITLE_CHARS_MAX: usize = 200;
/// The most messages that one call may append.
pub const APPEND_MESSAGES_MAX: usize = 100;

/// A moment: Unix time in milliseconds. Shown as RFC 3339 in UTC with three decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

/// Returns the current time. Only the server reads the system's clock; tests pass a clock of their own.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

impl Timestamp {
    /// Appends what is shown, digit by digit: an answer has four of these, and formatting would cost as much as all else in it.
    fn write_rfc3339(self, out: &mut Vec<u8>) {
        let time = DateTime::from_timestamp_millis(self.0).unwrap_or_default();
        let Some(year) = u32::try_from(time.year()).ok().filter(|year| *year <= 9999) else {
            return out.extend_from_slice(self.to_string().as_bytes());
        };
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let parts = [
            (0..4, year),
            (5..7, time.month()),
            (8..10, time.day()),
            (11..13, time.hour()),
            (14..16, time.minute()),
            (17..19, time.second()),
            (20..23, time.timestamp_subsec_millis()),
        ];
        for (place, mut number) in parts {
            for digit in text[place].iter_mut().rev() {
                *digit = b'0' + u8::try_from(number % 10).unwrap_or_default();
                number /= 10;
            }
        }
        out.extend_from_slice(&text);
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = DateTime::from_timestamp_millis(self.0).unwrap_or_default();
        formatter.write_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

/// An identifier that clients choose (`businessId`, `userId`, `locationId`, `sessionType`, `messageId`): 1 to 128
/// characters of Unicode text without control characters, compared byte for byte (contract, 1.2). `.` and `..` are
/// refused: URL libraries remove them from a path, even percent-encoded (WHATWG URL, "single-dot URL path segment").
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identifier(String);

impl Identifier {
    /// The most characters that an identifier may have.
    pub const CHARS_MAX: usize = 128;

    /// Takes `text` as an identifier.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence that starts with the field's name.
    pub fn new(text: impl Into<String>) -> Result<Self, &'static str> {
        let text = text.into();
        if text.is_empty() {
            return Err("must not be empty");
        }
        if text.chars().count() > Self::CHARS_MAX {
            return Err("must have at most 128 characters");
        }
        if text.chars().any(char::is_control) {
            return Err("must not contain control characters");
        }
        if text == "." || text == ".." {
            return Err("must not be \".\" or \"..\": URL libraries remove these from a path");
        }
        Ok(Self(text))
    }

    /// The identifier's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Borrow<str> for Identifier {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Whose sessions a caller may reach. What is outside is, for that caller, not there.
#[derive(Clone, PartialEq, Eq)]
pub enum Reach {
    /// Every session.
    Everything,
    /// The sessions of these businesses.
    Businesses(Arc<HashSet<Identifier>>),
    /// The sessions of one user of one business.
    User {
        /// The business.
        business_id: Identifier,
        /// The user.
        user_id: Identifier,
    },
}

impl Reach {
    /// Whether the session is within.
    #[must_use]
    pub fn admits(&self, session: &Session) -> bool {
        self.admits_user(&session.business_id, &session.user_id)
    }

    /// Whether every session of the user is within.
    #[must_use]
    pub fn admits_user(&self, business: &str, user: &str) -> bool {
        match self {
            Self::User { business_id, user_id } => business_id.as_str() == business && user_id.as_str() == user,
            Self::Everything | Self::Businesses(_) => self.admits_business(business),
        }
    }

    /// Whether every session of the business is within.
    #[must_use]
    pub fn admits_business(&self, business: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Businesses(businesses) => businesses.contains(business),
            Self::User { .. } => false,
        }
    }
}

impl fmt::Debug for Reach {
    /// Without the user: who calls is nothing for a log.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Everything => "Everything",
            Self::Businesses(_) => "Businesses",
            Self::User { .. } => "User",
        })
    }
}

/// Where a user's keys live: 16 bits that every session id starts with (design, 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u16);

impl Partition {
    /// How many partitions one business is spread over at the most.
    pub const BUCKETS: u64 = 16;

    /// The partition of one user of a business. Stable for ever: changing it would lose every stored session.
    ///
    /// `bucket = XXH3-64(userId) mod 16`, partition = the low 16 bits of XXH3-64(businessId, seed = bucket), both over
    /// the UTF-8 bytes (<https://github.com/Cyan4973/xxHash/blob/v0.8.3/doc/xxhash_spec.md>). Vectors:
    ///
    /// ```
    /// use sessiond::session::Partition;
    /// assert_eq!(Partition::of_user("B0100001", "user_123").to_string(), "f4bc");
    /// assert_eq!(Partition::of_user("", "").to_string(), "fda0");
    /// assert_eq!(Partition::of_user("💬", "jane@example.com").to_string(), "3e3e");
    /// ```
    #[must_use]
    pub fn of_user(business_id: &str, user_id: &str) -> Self {
        let bucket = xxhash_rust::xxh3::xxh3_64(user_id.as_bytes()) % Self::BUCKETS;
        Self::of_bucket(business_id, bucket)
    }

    /// Every partition that holds users of a business, each once: two buckets may share one.
    #[must_use]
    pub fn of_business(business_id: &str) -> Vec<Self> {
        let mut partitions: Vec<_> = (0..Self::BUCKETS).map(|bucket| Self::of_bucket(business_id, bucket)).collect();
        partitions.sort_unstable();
        partitions.dedup();
        partitions
    }

    fn of_bucket(business_id: &str, bucket: u64) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_64_with_seed(business_id.as_bytes(), bucket);
        let [.., high, low] = hash.to_be_bytes();
        Self(u16::from_be_bytes([high, low]))
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:04x}", self.0)
    }
}

/// A session's id: a UUID version 8 (RFC 9562) whose first 16 bits are the partition and whose other 106 free bits are
/// from the operating system's random source. It cannot be guessed and says where its session is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(Uuid);

impl SessionId {
    /// How long its text is, in bytes.
    pub(crate) const TEXT_BYTES: usize = Hyphenated::LENGTH;

    /// Writes its text, in lower-case, and returns that.
    pub(crate) fn write(self, text: &mut [u8; Self::TEXT_BYTES]) -> &str {
        self.0.as_hyphenated().encode_lower(text)
    }

    /// A new id in `partition`.
    ///
    /// # Errors
    /// If the operating system gives no random bytes.
    pub fn random(partition: Partition) -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        [bytes[0], bytes[1]] = partition.0.to_be_bytes();
        Ok(Self(uuid::Builder::from_custom_bytes(bytes).into_uuid()))
    }

    /// The id of the session that a user's idempotency key stands for: the same for the same three, for all time. Its 106
    /// bits are the first ones of SHA-256 over a tag and the three, each after its length in bytes as 8 bytes, the most
    /// significant first. Vector:
    ///
    /// ```
    /// use sessiond::session::{IdempotencyKey, SessionId};
    /// let key = IdempotencyKey::new("0123456789abcdef").unwrap();
    /// let id = SessionId::of_idempotency_key("B0100001", "user_123", &key);
    /// assert_eq!(id.to_string(), "f4bc8dd0-4457-88b7-9e21-99b640b30240");
    /// ```
    #[must_use]
    pub fn of_idempotency_key(business_id: &str, user_id: &str, key: &IdempotencyKey) -> Self {
        let mut hash = digest::Context::new(&digest::SHA256);
        for part in ["sessiond idempotency key", business_id, user_id, key.0.as_str()] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let mut bytes: [u8; 16] = hash.finish().as_ref().first_chunk().copied().unwrap_or_default();
        [bytes[0], bytes[1]] = Partition::of_user(business_id, user_id).0.to_be_bytes();
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// The partition that the session lives in.
    #[must_use]
    pub fn partition(self) -> Partition {
        let [high, low, ..] = *self.0.as_bytes();
        Partition(u16::from_be_bytes([high, low]))
    }

    /// The id's 16 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id with these 16 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(formatter)
    }
}

impl FromStr for SessionId {
    type Err = uuid::Error;

    /// Takes the hyphenated form only, in lower- or upper-case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<uuid::fmt::Hyphenated>().map(|id| Self(id.into_uuid()))
    }
}

/// What a client names one create by, so that it can be repeated: 16 to 128 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The fewest characters of a key: shorter ones may have been used before by accident.
    pub const CHARS_MIN: usize = 16;
    /// The most characters of a key.
    pub const CHARS_MAX: usize = 128;

    /// Takes `text` as a key.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence that starts with the header's name.
    pub fn new(text: impl Into<String>) -> Result<Self, &'static str> {
        let text = text.into();
        let is_visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_visible && (Self::CHARS_MIN..=Self::CHARS_MAX).contains(&text.len()) {
            Ok(Self(text))
        } else {
            Err("must have 16 to 128 visible ASCII characters, such as a UUID")
        }
    }
}

/// A word of the contract that has a fixed set of values: `as_str` and its reverse.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
        pub enum $name {
            $($(#[$variant_doc])* #[schema(rename = $word)] $variant,)+
        }

        impl $name {
            /// Every word, in the order of the contract.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word as clients and Redis have it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// The value of a word, if it is one.
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

words! {
    /// Where a session is in its life.
    Status {
        /// It is the user's conversation.
        Active = "active",
        /// A client ended or replaced it.
        Ended = "ended",
        /// It reached `expiresAt`.
        Expired = "expired",
    }
}

words! {
    /// Why a session is no longer active.
    EndReason {
        /// A client set `status` to `ended`.
        Client = "client",
        /// A client began or resumed another conversation in its place.
        Replaced = "replaced",
        /// Nothing happened for the idle timeout.
        Idle = "idle",
        /// It had been active for the maximum lifetime.
        MaxLifetime = "max_lifetime",
    }
}

words! {
    /// What to do if the user has another active session.
    IfActive {
        /// Give that one back (creating), or refuse (resuming).
        Return = "return",
        /// End that one, in the same step.
        Replace = "replace",
    }
}

words! {
    /// Who a message is from.
    Role {
        /// The person.
        User = "user",
        /// The assistant.
        Assistant = "assistant",
        /// Instructions.
        System = "system",
        /// The result of a tool.
        Tool = "tool",
    }
}

/// One conversation of one user with one business.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "camelCase", example = session_example)]
pub struct Session {
    /// A UUID.
    #[schema(value_type = String, format = Uuid)]
    pub session_id: SessionId,
    /// The business that the user talks to.
    pub business_id: String,
    /// The user, unique in the business.
    pub user_id: String,
    /// The business's location.
    pub location_id: String,
    /// What kind of conversation it is.
    pub session_type: String,
    /// Where it is in its life.
    pub status: Status,
    /// At most 200 characters.
    #[schema(required, max_length = 200)]
    pub title: Option<String>,
    /// What the client keeps with it.
    // The text of a JSON object, so that reads can splice it in.
    #[schema(value_type = HashMap<String, Value>)]
    pub metadata: String,
    /// Messages ever appended.
    #[schema(minimum = 0)]
    pub message_count: u64,
    /// One more for every change of the document; activity is not a change.
    #[schema(minimum = 1)]
    pub version: u64,
    /// When it was created; strictly increases from session to session of a user.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When the document last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// When the user was last seen.
    #[schema(value_type = String, format = DateTime)]
    pub last_activity_at: Timestamp,
    /// When it stops to be active if nothing more happens.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// When the maximum lifetime ends it. Not shown to clients: the reason of an expiry follows from it.
    #[schema(ignore)]
    pub active_until: Timestamp,
    /// When it stopped to be active.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// Why it stopped to be active.
    #[schema(required)]
    pub end_reason: Option<EndReason>,
    /// The most bytes that the id, content and metadata of one of its messages have; 0 without messages. Not shown to
    /// clients: it bounds how many messages one command reads.
    #[schema(ignore)]
    pub largest_message_bytes: usize,
}

/// A member's name with what is around it: one piece to copy.
macro_rules! member {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}

/// About how many bytes of a session's or message's JSON are not the client's texts.
const JSON_BYTES_BESIDE_TEXTS: usize = 512;

impl Session {
    /// About how many bytes [`Self::write_json`] appends.
    #[must_use]
    pub fn json_bytes(&self) -> usize {
        let texts = [&self.business_id, &self.user_id, &self.location_id, &self.session_type, &self.metadata];
        let title = self.title.as_ref().map_or(0, String::len);
        JSON_BYTES_BESIDE_TEXTS + title + texts.iter().map(|text| text.len()).sum::<usize>()
    }

    /// The session as it is at `now`, or `None` if it is no longer readable.
    ///
    /// A stored `active` whose `expires_at` has come reads as `expired`; the next script that meets it writes that down.
    #[must_use]
    pub fn at(mut self, now: Timestamp, lifecycle: &Lifecycle) -> Option<Self> {
        if self.status == Status::Active && now >= self.expires_at {
            self.status = Status::Expired;
            self.ended_at = Some(self.expires_at);
            let lived_out = self.expires_at == self.active_until;
            self.end_reason = Some(if lived_out { EndReason::MaxLifetime } else { EndReason::Idle });
        }
        let over = self.ended_at.unwrap_or(self.expires_at);
        (now.0 < over.0.saturating_add(lifecycle.retention_ms())).then_some(self)
    }

    /// Appends the session as the JSON of the contract. `metadata` is spliced in as it is stored.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let mut object = JsonObject::open(out);
        object.id(member!("sessionId"), self.session_id);
        object.string(member!("businessId"), &self.business_id);
        object.string(member!("userId"), &self.user_id);
        object.string(member!("locationId"), &self.location_id);
        object.string(member!("sessionType"), &self.session_type);
        object.word(member!("status"), Some(self.status.as_str()));
        match &self.title {
            Some(title) => object.string(member!("title"), title),
            None => object.word(member!("title"), None),
        }
        object.json(member!("metadata"), &self.metadata);
        object.number(member!("messageCount"), self.message_count);
        object.number(member!("version"), self.version);
        object.time(member!("createdAt"), self.created_at);
        object.time(member!("updatedAt"), self.updated_at);
        object.time(member!("lastActivityAt"), self.last_activity_at);
        object.time(member!("expiresAt"), self.expires_at);
        match self.ended_at {
            Some(ended_at) => object.time(member!("endedAt"), ended_at),
            None => object.word(member!("endedAt"), None),
        }
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

/// One message of a session.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "camelCase", example = message_example)]
pub struct Message {
    /// Unique in its session.
    pub message_id: String,
    /// The session it belongs to.
    #[schema(value_type = String, format = Uuid)]
    pub session_id: SessionId,
    /// 1, 2, 3 ... per session, without gaps.
    #[schema(minimum = 1)]
    pub seq: u64,
    /// Who it is from.
    pub role: Role,
    /// Any JSON value but null, as its text.
    #[schema(schema_with = content_schema)]
    pub content: String,
    /// What the client keeps with it.
    // The text of a JSON object, so that reads can splice it in.
    #[schema(value_type = HashMap<String, Value>)]
    pub metadata: String,
    /// When it was appended.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

impl Message {
    /// About how many bytes [`Self::write_json`] appends.
    #[must_use]
    pub fn json_bytes(&self) -> usize {
        JSON_BYTES_BESIDE_TEXTS + self.message_id.len() + self.content.len() + self.metadata.len()
    }

    /// Appends the message as the JSON of the contract. `content` and `metadata` are spliced in as they are stored.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let mut object = JsonObject::open(out);
        object.string(member!("messageId"), &self.message_id);
        object.id(member!("sessionId"), self.session_id);
        object.number(member!("seq"), self.seq);
        object.word(member!("role"), Some(self.role.as_str()));
        object.json(member!("content"), &self.content);
        object.json(member!("metadata"), &self.metadata);
        object.time(member!("createdAt"), self.created_at);
        object.close();
    }
}

fn message_example() -> serde_json::Value {
    serde_json::json!({
        "messageId": "m-1", "sessionId": "f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e", "seq": 1, "role": "user",
        "content": "Hello!", "metadata": {}, "createdAt": "2026-11-22T10:00:01.000Z",
    })
}

/// The schema of a message's content: any JSON value but null.
#[must_use]
pub fn content_schema() -> utoipa::openapi::schema::Object {
    use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
    let any_but_null = [Type::String, Type::Number, Type::Boolean, Type::Object, Type::Array];
    ObjectBuilder::new()
        .schema_type(SchemaType::Array(any_but_null.to_vec()))
        .description(Some("Any JSON value but null."))
        .build()
}

/// A message to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMessage {
    /// The client's id, or `None` to have one made.
    pub message_id: Option<Identifier>,
    /// Who it is from.
    pub role: Role,
    /// Any JSON value but null.
    pub content: serde_json::Value,
    /// A JSON object, as its text.
    pub metadata: String,
}

/// What a session is created with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSession {
    /// The business.
    pub business_id: Identifier,
    /// The user.
    pub user_id: Identifier,
    /// The business's location.
    pub location_id: Identifier,
    /// What kind of conversation it is.
    pub session_type: Identifier,
    /// At most [`TITLE_CHARS_MAX`] characters.
    pub title: Option<String>,
    /// A JSON object, as its text.
    pub metadata: String,
    /// What to do if the user has an active session.
    pub if_active: IfActive,
    /// Names the new session, so that a repeated call does not create another.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// The changes of one PATCH. `None` leaves a field as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPatch {
    /// The new location.
    pub location_id: Option<Identifier>,
    /// The new kind.
    pub session_type: Option<Identifier>,
    /// The new title; `Some(None)` removes it.
    pub title: Option<Option<String>>,
    /// A JSON merge patch of the metadata; `null` empties it.
    pub metadata: Option<serde_json::Value>,
    /// End it, or resume it.
    pub status: Option<PatchStatus>,
    /// What a resume does if another session is active.
    pub if_active: IfActive,
}

words! {
    /// What a client may set `status` to.
    PatchStatus {
        /// Resume the session as the user's active one.
        Active = "active",
        /// End it.
        Ended = "ended",
    }
}

/// How long sessions live.
#[derive(Clone, Copy, Debug)]
pub struct Lifecycle {
    /// Without activity for this long, a session expires.
    pub idle_timeout: Duration,
    /// A session expires this long after it last became active.
    pub max_lifetime: Duration,
    /// A session stays readable this long after its end.
    pub retention: Duration,
    /// Activity of a get-or-create that follows the last written one by less than this is not written.
    pub activity_resolution: Duration,
}

impl Lifecycle {
    /// [`Self::idle_timeout`] in milliseconds.
    #[must_use]
    pub fn idle_ms(&self) -> i64 {
        millis(self.idle_timeout)
    }

    /// [`Self::max_lifetime`] in milliseconds.
    #[must_use]
    pub fn max_lifetime_ms(&self) -> i64 {
        millis(self.max_lifetime)
    }

    /// [`Self::retention`] in milliseconds.
    #[must_use]
    pub fn retention_ms(&self) -> i64 {
        millis(self.retention)
    }

    /// [`Self::activity_resolution`] in milliseconds.
    #[must_use]
    pub fn resolution_ms(&self) -> i64 {
        millis(self.activity_resolution)
    }

    /// Whether activity at `now` is to be written, after that of `last`.
    #[must_use]
    pub fn is_touch_due(&self, last: Timestamp, now: Timestamp) -> bool {
        now > last && now.0.saturating_sub(last.0) >= self.resolution_ms()
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Applies a JSON merge patch (RFC 7396, section 2) to an object's members.
pub fn merge_patch(
    target: &mut serde_json::Map<String, serde_json::Value>,
    patch: serde_json::Map<String, serde_json::Value>,
) {
    for (name, value) in patch {
        match value {
            serde_json::Value::Null => {
                target.shift_remove(&name);
            }
            serde_json::Value::Object(inner) => {
                let member = target.entry(name).or_insert(serde_json::Value::Null);
                if !member.is_object() {
                    *member = serde_json::Value::Object(serde_json::Map::new());
                }
                if let serde_json::Value::Object(member) = member {
                    merge_patch(member, inner);
                }
            }
            value => {
                target.insert(name, value);
            }
        }
    }
}

/// Writes one JSON object member by member, straight to bytes.
struct JsonObject<'a> {
    out: &'a mut Vec<u8>,
    /// Where it begins: with a comma, until it is closed.
    start: usize,
    /// The last time that was written, and where: of a session's times many are the same.
    last_time: Option<(Timestamp, Range<usize>)>,
}

impl<'a> JsonObject<'a> {
    fn open(out: &'a mut Vec<u8>) -> Self {
        Self { start: out.len(), out, last_time: None }
    }

    /// A name by [`member`].
    fn name(&mut self, name: &'static str) {
        self.out.extend_from_slice(name.as_bytes());
    }

    /// A string with whatever characters, escaped.
    fn string(&mut self, name: &'static str, value: &str) {
        self.name(name);
        write_json_string(value, self.out);
    }

    /// A string that needs no escaping, or null.
    fn word(&mut self, name: &'static str, value: Option<&str>) {
        match value {
            Some(word) => {
                self.name(name);
                self.out.push(b'"');
                self.out.extend_from_slice(word.as_bytes());
                self.out.push(b'"');
            }
            None => self.json(name, "null"),
        }
    }

    fn id(&mut self, name: &'static str, id: SessionId) {
        self.word(name, Some(id.write(&mut [0; SessionId::TEXT_BYTES])));
    }

    fn time(&mut self, name: &'static str, time: Timestamp) {
        self.name(name);
        self.out.push(b'"');
        let start = self.out.len();
        match &self.last_time {
            Some((last, written)) if *last == time => self.out.extend_from_within(written.clone()),
            _ => time.write_rfc3339(self.out),
        }
        self.last_time = Some((time, start..self.out.len()));
        self.out.push(b'"');
    }

    fn number(&mut self, name: &'static str, value: u64) {
        self.json(name, itoa::Buffer::new().format(value));
    }

    /// A value that is JSON already.
    fn json(&mut self, name: &'static str, text: &str) {
        self.name(name);
        self.out.extend_from_slice(text.as_bytes());
    }

    /// Ends it. It has members.
    fn close(self) {
        self.out[self.start] = b'{';
        self.out.push(b'}');
    }
}

/// Appends `text` as a JSON string (RFC 8259, section 7).
fn write_json_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(place) = rest.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        let (plain, special) = rest.split_at(place);
        out.extend_from_slice(plain);
        match special[0] {
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            byte => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
        }
        rest = &special[1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_they_are_shown() {
        let days = (-800_000..3_000_000).step_by(997).map(|day| day * 86_400_000);
        let moments = days.enumerate().map(|(n, day)| day + i64::try_from(n).expect("few") * 12_345_678 % 86_400_000);
        for moment in
            moments.chain([0, -1, 999, 951_782_399_999, i64::MAX, i64::MIN, 253_402_300_799_999, 253_402_300_800_000])
        {
            let mut written = Vec::new();
            Timestamp(moment).write_rfc3339(&mut written);
            assert_eq!(String::from_utf8(written).expect("text"), Timestamp(moment).to_string());
        }
    }

    #[test]
    fn identifiers_have_1_to_128_characters_without_control_characters_and_are_no_dot_segments() {
        for text in ["a", "a:b", "{}", "%2f", "auth0|123", "jane@example.com", "urn:x:y", " ", "💬", "...", ".a", "%2e"]
        {
            assert!(Identifier::new(text).is_ok(), "{text:?}");
        }
        assert!(Identifier::new("ü".repeat(128)).is_ok());
        for text in ["", "a\0b", "\n", "\u{7f}", "\u{85}", &"a".repeat(129), ".", ".."] {
            assert!(Identifier::new(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_session_id_carries_its_partition_and_106_random_bits() {
        let id = SessionId::random(Partition(0x03f2)).expect("random bytes");
        let text = id.to_string();
        assert!(text.starts_with("03f2"), "{text}");
        assert_eq!(text.as_bytes()[14], b'8', "{text}: version 8");
        assert!(b"89ab".contains(&text.as_bytes()[19]), "{text}: the variant of RFC 9562");
        assert_eq!(id.partition(), Partition(0x03f2));
        assert_eq!(text.to_uppercase().parse(), Ok(id));
        let ids: Vec<_> = (0..1000).map(|_| SessionId::random(Partition(0)).expect("random bytes")).collect();
        let changing = (0..128).filter(|bit| {
            let is_set = |id: &SessionId| id.as_bytes()[bit / 8] & (1 << (bit % 8)) != 0;
            ids.iter().any(is_set) && !ids.iter().all(is_set)
        });
        assert_eq!(changing.count(), 106);
    }

    #[test]
    fn only_the_hyphenated_form_is_a_session_id() {
        for text in ["", "6d21a9c45e1b8d7a9c3e2f4b6a8c0d1e", "{f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e}", "business"] {
            assert!(text.parse::<SessionId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_business_has_at_most_16_partitions_and_every_user_is_in_one() {
        for business in ["B0100001", "💬", "a:b"] {
            let partitions = Partition::of_business(business);
            assert!(partitions.len() <= 16);
            for user in 0..1000 {
                assert!(partitions.contains(&Partition::of_user(business, &format!("user_{user}"))));
            }
        }
    }

    #[test]
    fn timestamps_have_three_decimals() {
        assert_eq!(Timestamp(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Timestamp(1_795_341_600_001).to_string(), "2026-11-22T10:00:00.001Z");
    }

    #[test]
    fn json_strings_escape_what_they_must() {
        let text = "\"\\\u{0}\n\u{1f}/é💬\u{7f}\u{2028}";
        let mut out = Vec::new();
        write_json_string(text, &mut out);
        assert_eq!(serde_json::from_slice::<String>(&out).ok().as_deref(), Some(text));
    }

    #[test]
    fn merge_patch_does_what_rfc_7396_lists() {
        // RFC 7396, appendix A: the cases whose target and patch are objects.
        let cases = [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ];
        for (target, patch, expected) in cases {
            let mut merged = serde_json::from_str(target).expect("an object");
            merge_patch(&mut merged, serde_json::from_str(patch).expect("an object"));
            assert_eq!(serde_json::to_string(&merged).expect("JSON"), expected, "{target} with {patch}");
        }
    }
}
