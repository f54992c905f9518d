//! Names of keys and fields. Only this file and `lua/` know the layout of sessions in Redis (`docs/storage.md`).
//!
//! Every key of a user has the same hash tag, `{pppp}`: four hex digits, the user's [`Partition`]. Redis Cluster hashes
//! only the text between the braces, so all keys of a user are in one slot, and one script may access them together. A
//! session id starts with the same four digits, so the id alone determines the slot of its keys.

use std::fmt::Write;

use crate::session::{Identifier, Partition, SessionId};

/// The layout version that this code reads and writes, stored at `<prefix>:layout`.
pub(super) const LAYOUT_VERSION: &str = "2";

/// Fields of a session's hash that the store names individually.
pub(super) mod field {
    pub(in crate::store) const LOCATION_ID: &str = "locationId";
    pub(in crate::store) const METADATA: &str = "metadata";
    pub(in crate::store) const SESSION_TYPE: &str = "sessionType";
    pub(in crate::store) const TITLE: &str = "title";
}

/// Number of hex digits of a partition.
const PARTITION_DIGITS: usize = 4;

/// Declares the fields of a session's hash, each with its name in Redis.
macro_rules! session_fields {
    ($($field:ident = $name:expr,)+) => {
        /// A field of a session's hash.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum SessionField {
            $($field,)+
        }

        /// The names of the fields, in the order of [`SessionField`].
        pub(super) const SESSION_FIELDS: [&str; [$(SessionField::$field),+].len()] = [$($name),+];
    };
}

// About in the order in which they are first written, which is that of the replies unless a value is long. Only the
// speed of parsing depends on it.
//
// Absent fields: `title`, `endedAt` and `endReason` if null; `messageBytes` and `largestMessage` if there are no
// messages; `oldestSeq` until a message is trimmed; `historyAt` until a resume; `turnNumber` until the first turn;
// `turnId` and `turnUntil` unless a turn is open; `changedMessages` until a message is changed or redacted.
// `update.lua` and `update_message.lua` also store `mutations`, for their own use.
session_fields! {
    SessionId = "sessionId",
    Status = "status",
    MessageCount = "messageCount",
    Version = "version",
    CreatedAt = "createdAt",
    UpdatedAt = "updatedAt",
    LastActivityAt = "lastActivityAt",
    ExpiresAt = "expiresAt",
    ActiveUntil = "activeUntil",
    BusinessId = "businessId",
    UserId = "userId",
    LocationId = field::LOCATION_ID,
    SessionType = field::SESSION_TYPE,
    Metadata = field::METADATA,
    Title = field::TITLE,
    MessageBytes = "messageBytes",
    LargestMessage = "largestMessage",
    EndedAt = "endedAt",
    EndReason = "endReason",
    OldestSeq = "oldestSeq",
    HistoryAt = "historyAt",
    TurnNumber = "turnNumber",
    TurnId = "turnId",
    TurnUntil = "turnUntil",
    ChangedMessages = "changedMessages",
}

/// Fields of a turn's hash.
pub(super) mod turn_field {
    pub(in crate::store) const TURN_ID: &str = "turnId";
    pub(in crate::store) const NUMBER: &str = "number";
    pub(in crate::store) const SINCE: &str = "since";
    pub(in crate::store) const WRITER: &str = "writer";
    pub(in crate::store) const ROLE: &str = "role";
    pub(in crate::store) const METADATA: &str = "metadata";
    pub(in crate::store) const STATUS: &str = "status";
    pub(in crate::store) const NEXT_CHUNK: &str = "nextChunk";
    pub(in crate::store) const CHUNK_BYTES: &str = "chunkBytes";
    pub(in crate::store) const AFTER_SEQ: &str = "afterSeq";
    pub(in crate::store) const CANCEL_UNTIL: &str = "cancelUntil";
    pub(in crate::store) const LEASE_UNTIL: &str = "leaseUntil";
    pub(in crate::store) const STARTED_AT: &str = "startedAt";
    pub(in crate::store) const ENDED_AT: &str = "endedAt";
    pub(in crate::store) const ERROR: &str = "error";
    pub(in crate::store) const MESSAGE_SEQ: &str = "messageSeq";
    pub(in crate::store) const ENDED_AS: &str = "endedAs";
    pub(in crate::store) const EARLIER: &str = "earlier";
}

/// The fields that name the owner and the status of a session.
pub(super) const OWNER_AND_STATUS: [&str; 3] = ["businessId", "userId", "status"];

/// What a key of a partition holds, according to its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// A session's hash.
    Session(SessionId),
    /// A session's messages.
    Messages(SessionId),
    /// A session's map of `messageId` to `seq`.
    MessageIds(SessionId),
    /// A session's latest turn.
    Turn(SessionId),
    /// The chunks of that turn.
    Chunks(SessionId),
    /// A user's active pointer.
    Pointer(User),
    /// A user's history.
    History(User),
    /// The active sessions of a business in one partition.
    Business(String),
}

/// A user. The same user id in another business is another user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The business.
    pub business_id: String,
    /// The user's id within the business.
    pub user_id: String,
}

/// Builds keys. All of them start with the operator's prefix.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    layout: String,
}

impl Keys {
    pub(super) fn new(prefix: String) -> Self {
        let layout = format!("{prefix}:layout");
        Self { prefix, layout }
    }

    /// `sd:layout`: the layout version.
    pub(super) fn layout(&self) -> &str {
        &self.layout
    }

    /// `sd:{pppp}:`: the prefix of all keys of a partition.
    pub(super) fn partition(&self, partition: Partition) -> String {
        format!("{}:{{{partition}}}:", self.prefix)
    }

    /// `sd:{pppp}:s:<sessionId>`: the session's hash.
    pub(super) fn session(&self, id: SessionId) -> String {
        self.of_session("s", id)
    }

    /// The channel of a business in a partition, to which scripts publish its changes (`lua/common.lua`). The channel
    /// of a session is its key.
    pub(super) fn business_channel(&self, partition: Partition, business_id: &str) -> String {
        format!("{}b:{business_id}", self.partition(partition))
    }

    /// `sd:{pppp}:m:<sessionId>`: the session's messages, a list of JSON, oldest first.
    pub(super) fn messages(&self, id: SessionId) -> String {
        self.of_session("m", id)
    }

    /// `sd:{pppp}:d:<sessionId>`: the session's map of `messageId` to `seq`, a hash.
    pub(super) fn message_ids(&self, id: SessionId) -> String {
        self.of_session("d", id)
    }

    /// `sd:{pppp}:t:<sessionId>`: the session's latest turn, a hash.
    pub(super) fn turn(&self, id: SessionId) -> String {
        self.of_session("t", id)
    }

    /// `sd:{pppp}:r:<sessionId>`: the chunks of that turn, a list of JSON strings without quotes.
    pub(super) fn chunks(&self, id: SessionId) -> String {
        self.of_session("r", id)
    }

    /// The keys of the hash, the messages and the message ids of `session_id`, as an index of the partition names it.
    /// It may not be a valid session id.
    pub(super) fn named(&self, partition: Partition, session_id: &str) -> [String; 3] {
        let partition = self.partition(partition);
        ["s:", "m:", "d:"].map(|kind| format!("{partition}{kind}{session_id}"))
    }

    /// `sd:{pppp}:a:<businessId>:<userId>`: the user's active pointer, a session id.
    pub(super) fn pointer(&self, business_id: &str, user_id: &str) -> String {
        self.of_user("a:", business_id, user_id)
    }

    /// `sd:{pppp}:h:<businessId>:<userId>`: the user's history, a sorted set by creation or last resume.
    pub(super) fn history(&self, business_id: &str, user_id: &str) -> String {
        self.of_user("h:", business_id, user_id)
    }

    /// `sd:{pppp}:b:<businessId>`: the active sessions of the business in the partition, a sorted set by `expiresAt`.
    pub(super) fn business(&self, partition: Partition, business_id: &str) -> String {
        let mut key = self.partition(partition);
        key.push_str("b:");
        push_encoded(&mut key, business_id);
        key
    }

    /// The pattern for SCAN: all keys with the prefix.
    pub(super) fn pattern(&self) -> String {
        format!("{}:*", self.prefix)
    }

    /// The reverse of the functions above: the partition in the hash tag of a key, and what the key holds. `None` if
    /// none of these functions builds the key.
    pub(super) fn parse(&self, key: &str) -> Option<(Partition, KeyKind)> {
        let (tag, rest) = key.strip_prefix(&self.prefix)?.strip_prefix(":{")?.split_once("}:")?;
        let partition = Partition(u16::from_str_radix(tag, 16).ok()?);
        let (kind, name) = rest.split_once(':')?;
        let user = || {
            let (business_id, user_id) = name.split_once(':')?;
            Some(User { business_id: decoded(business_id)?, user_id: decoded(user_id)? })
        };
        let kind = match kind {
            "s" => KeyKind::Session(name.parse().ok()?),
            "m" => KeyKind::Messages(name.parse().ok()?),
            "d" => KeyKind::MessageIds(name.parse().ok()?),
            "t" => KeyKind::Turn(name.parse().ok()?),
            "r" => KeyKind::Chunks(name.parse().ok()?),
            "a" => KeyKind::Pointer(user()?),
            "h" => KeyKind::History(user()?),
            "b" => KeyKind::Business(decoded(name)?),
            _ => return None,
        };
        let canonical = match &kind {
            KeyKind::Session(id) => self.session(*id),
            KeyKind::Messages(id) => self.messages(*id),
            KeyKind::MessageIds(id) => self.message_ids(*id),
            KeyKind::Turn(id) => self.turn(*id),
            KeyKind::Chunks(id) => self.chunks(*id),
            KeyKind::Pointer(user) => self.pointer(&user.business_id, &user.user_id),
            KeyKind::History(user) => self.history(&user.business_id, &user.user_id),
            KeyKind::Business(business_id) => self.business(partition, business_id),
        };
        // Only the canonical key counts: the service never reads a key with another spelling.
        let is_canonical = tag == partition.to_string() && canonical.split_once("}:")?.1 == rest;
        is_canonical.then_some((partition, kind))
    }

    /// A key of one session, whose id starts with its partition. Concatenated, because formatting would take longer
    /// than all other work here.
    fn of_session(&self, kind: &str, id: SessionId) -> String {
        let mut text = [0; SessionId::TEXT_BYTES];
        let id = id.write(&mut text);
        let mut key = String::with_capacity(self.prefix.len() + PARTITION_DIGITS + kind.len() + id.len() + 5);
        for part in [&self.prefix, ":{", &id[..PARTITION_DIGITS], "}:", kind, ":", id] {
            key.push_str(part);
        }
        key
    }

    fn of_user(&self, kind: &str, business_id: &str, user_id: &str) -> String {
        let mut key = self.partition(Partition::of_user(business_id, user_id));
        key.push_str(kind);
        push_encoded(&mut key, business_id);
        key.push(':');
        push_encoded(&mut key, user_id);
        key
    }
}

/// Appends an identifier with `%`, `:`, `{`, `}` and control bytes percent-encoded. So two different pairs of
/// identifiers never build the same key, and no identifier can open a hash tag.
fn push_encoded(key: &mut String, identifier: &str) {
    for character in identifier.chars() {
        if matches!(character, '%' | ':' | '{' | '}') || character.is_ascii_control() {
            // Writing to a string cannot fail.
            let _ = write!(key, "%{:02x}", u32::from(character));
        } else {
            key.push(character);
        }
    }
}

/// Decodes what [`push_encoded`] wrote; `None` if it is not a valid identifier.
fn decoded(text: &str) -> Option<String> {
    let mut pieces = text.split('%');
    let mut identifier = pieces.next()?.to_owned();
    for piece in pieces {
        let (hex, rest) = piece.split_at_checked(2)?;
        identifier.push(char::from(u8::from_str_radix(hex, 16).ok()?));
        identifier.push_str(rest);
    }
    Identifier::new(identifier.as_str()).is_ok().then_some(identifier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_in_identifiers_are_encoded() {
        let keys = Keys::new("sd".to_owned());
        let pointer = keys.pointer("a:b", "{c}%\u{1}💬");
        assert!(pointer.ends_with(":a:a%3ab:%7bc%7d%25%01💬"), "{pointer}");
        assert_ne!(keys.pointer("a:b", "c"), keys.pointer("a", "b:c"));
        assert_ne!(keys.pointer("a%3ab", "c"), keys.pointer("a:b", "c"));
    }

    #[test]
    fn keys_are_parsed_to_what_they_hold() {
        let keys = Keys::new("sd".to_owned());
        let user = User { business_id: "a:b".to_owned(), user_id: "{c}%💬".to_owned() };
        let partition = Partition::of_user(&user.business_id, &user.user_id);
        let id = SessionId::random(partition).expect("random bytes");
        let cases = [
            (keys.session(id), KeyKind::Session(id)),
            (keys.messages(id), KeyKind::Messages(id)),
            (keys.message_ids(id), KeyKind::MessageIds(id)),
            (keys.turn(id), KeyKind::Turn(id)),
            (keys.chunks(id), KeyKind::Chunks(id)),
            (keys.pointer(&user.business_id, &user.user_id), KeyKind::Pointer(user.clone())),
            (keys.history(&user.business_id, &user.user_id), KeyKind::History(user.clone())),
            (keys.business(partition, &user.business_id), KeyKind::Business(user.business_id.clone())),
        ];
        for (key, kind) in cases {
            assert_eq!(keys.parse(&key), Some((partition, kind)), "{key}");
        }
        let invalid = [
            keys.layout().to_owned(),
            "sd:{03F2}:b:x".to_owned(),
            "sd:{3f2}:b:x".to_owned(),
            "sd:{03f2}:b:".to_owned(),
            "sd:{03f2}:b:%3A".to_owned(),
            "sd:{03f2}:b:%78".to_owned(),
            "sd:{03f2}:a:x".to_owned(),
            "sd:{03f2}:a:x:y:z".to_owned(),
            "sd:{03f2}:x:y".to_owned(),
            "sd2:{03f2}:b:x".to_owned(),
            keys.session(id).to_uppercase(),
        ];
        for key in invalid {
            assert_eq!(keys.parse(&key), None, "{key}");
        }
    }
}
