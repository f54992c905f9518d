//! Key and field names: the one place, beside `lua/`, that knows how sessions lie in Redis.
//!
//! Every key of a user has the same hash tag, `{pppp}`: four hex digits, the user's [`Partition`]. Redis Cluster hashes
//! only what is between the braces, so all of them are in one slot and one script may touch them together. A session id
//! starts with the same four digits, so the id alone says where its keys are.

use std::fmt::Write;

use crate::session::{Identifier, Partition, SessionId};

/// The layout that this code reads and writes. Stored under `<prefix>:layout`.
pub(super) const LAYOUT_VERSION: &str = "1";

/// Fields that the store names one by one: of a session's hash, or of a message in the stream.
pub(super) mod field {
    pub(in crate::store) const CONTENT: &str = "content";
    pub(in crate::store) const CREATED_AT: &str = "createdAt";
    pub(in crate::store) const LOCATION_ID: &str = "locationId";
    pub(in crate::store) const MESSAGE_ID: &str = "messageId";
    pub(in crate::store) const METADATA: &str = "metadata";
    pub(in crate::store) const ROLE: &str = "role";
    pub(in crate::store) const SESSION_TYPE: &str = "sessionType";
    pub(in crate::store) const TITLE: &str = "title";
}

/// How many hex digits a partition has.
const PARTITION_DIGITS: usize = 4;

/// The fields of a session's hash, in the order in which scripts answer them and replies are read.
/// Absent: `title`, `endedAt` and `endReason` that are null, `largestMessage` without messages. One more, `mutations`,
/// is `update.lua`'s own.
pub(super) const SESSION_FIELDS: [&str; 18] = [
    "sessionId",
    "businessId",
    "userId",
    field::LOCATION_ID,
    field::SESSION_TYPE,
    "status",
    field::TITLE,
    field::METADATA,
    "messageCount",
    "version",
    field::CREATED_AT,
    "updatedAt",
    "lastActivityAt",
    "expiresAt",
    "activeUntil",
    "endedAt",
    "endReason",
    "largestMessage",
];

/// Those of them that say whose a session is, and whether it is over.
pub(super) const OWNER_AND_STATUS: [&str; 3] = ["businessId", "userId", "status"];

/// What a key of a partition holds, from its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// A session's hash.
    Session(SessionId),
    /// A session's messages.
    Messages(SessionId),
    /// A session's `messageId` to `seq`.
    MessageIds(SessionId),
    /// A user's active pointer.
    Pointer(User),
    /// A user's history.
    History(User),
    /// The active sessions of a business in one partition.
    Business(String),
}

/// A user, who is one only within a business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The business.
    pub business_id: String,
    /// The user of it.
    pub user_id: String,
}

/// Makes keys. All of them start with the prefix that the operator chose.
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

    /// `sd:layout`: the version of this layout.
    pub(super) fn layout(&self) -> &str {
        &self.layout
    }

    /// `sd:{pppp}:`: what all keys of a partition start with.
    pub(super) fn partition(&self, partition: Partition) -> String {
        format!("{}:{{{partition}}}:", self.prefix)
    }

    /// `sd:{pppp}:s:<sessionId>`: the session's hash.
    pub(super) fn session(&self, id: SessionId) -> String {
        self.of_session("s", id)
    }

    /// `sd:{pppp}:m:<sessionId>`: the session's messages, a stream with entry ids `<seq>-0`.
    pub(super) fn messages(&self, id: SessionId) -> String {
        self.of_session("m", id)
    }

    /// `sd:{pppp}:d:<sessionId>`: messageId to seq, a hash.
    pub(super) fn message_ids(&self, id: SessionId) -> String {
        self.of_session("d", id)
    }

    /// The hash, stream and message ids of what an index of the partition names, which may be no session's id at all.
    pub(super) fn named(&self, partition: Partition, session_id: &str) -> [String; 3] {
        let partition = self.partition(partition);
        ["s:", "m:", "d:"].map(|kind| format!("{partition}{kind}{session_id}"))
    }

    /// `sd:{pppp}:a:<businessId>:<userId>`: the user's active pointer, a session id.
    pub(super) fn pointer(&self, business_id: &str, user_id: &str) -> String {
        self.of_user("a:", business_id, user_id)
    }

    /// `sd:{pppp}:h:<businessId>:<userId>`: the user's history, a sorted set by `createdAt`.
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

    /// What to scan for: the keys that start with the prefix.
    pub(super) fn pattern(&self) -> String {
        format!("{}:*", self.prefix)
    }

    /// The reverse of the functions above: the partition that a key says it is in and what it holds; `None` if none of
    /// them made it.
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
            "a" => KeyKind::Pointer(user()?),
            "h" => KeyKind::History(user()?),
            "b" => KeyKind::Business(decoded(name)?),
            _ => return None,
        };
        let spelled = match &kind {
            KeyKind::Session(id) => self.session(*id),
            KeyKind::Messages(id) => self.messages(*id),
            KeyKind::MessageIds(id) => self.message_ids(*id),
            KeyKind::Pointer(user) => self.pointer(&user.business_id, &user.user_id),
            KeyKind::History(user) => self.history(&user.business_id, &user.user_id),
            KeyKind::Business(business_id) => self.business(partition, business_id),
        };
        // Each thing has one name: another spelling of it is a key that nobody reads.
        let well_spelled = tag == partition.to_string() && spelled.split_once("}:")?.1 == rest;
        well_spelled.then_some((partition, kind))
    }

    /// What is about one session. Its id starts with its partition. Joined, for formatting takes longer than all else here.
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

/// Appends an identifier with `%`, `:`, `{`, `}` and control bytes percent-encoded: no two pairs of identifiers make one
/// key, and none can open a hash tag of its own.
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

/// The identifier that [`push_encoded`] wrote so, if it is one.
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
    fn hostile_identifiers_stay_in_their_place() {
        let keys = Keys::new("sd".to_owned());
        let pointer = keys.pointer("a:b", "{c}%\u{1}💬");
        assert!(pointer.ends_with(":a:a%3ab:%7bc%7d%25%01💬"), "{pointer}");
        assert_ne!(keys.pointer("a:b", "c"), keys.pointer("a", "b:c"));
        assert_ne!(keys.pointer("a%3ab", "c"), keys.pointer("a:b", "c"));
    }
    #[test]
    fn a_key_says_what_it_holds() {
        let keys = Keys::new("sd".to_owned());
        let user = User { business_id: "a:b".to_owned(), user_id: "{c}%💬".to_owned() };
        let partition = Partition::of_user(&user.business_id, &user.user_id);
        let id = SessionId::random(partition).expect("random bytes");
        let cases = [
            (keys.session(id), KeyKind::Session(id)),
            (keys.messages(id), KeyKind::Messages(id)),
            (keys.message_ids(id), KeyKind::MessageIds(id)),
            (keys.pointer(&user.business_id, &user.user_id), KeyKind::Pointer(user.clone())),
            (keys.history(&user.business_id, &user.user_id), KeyKind::History(user.clone())),
            (keys.business(partition, &user.business_id), KeyKind::Business(user.business_id.clone())),
        ];
        for (key, kind) in cases {
            assert_eq!(keys.parse(&key), Some((partition, kind)), "{key}");
        }
        let strange = [
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
        for key in strange {
            assert_eq!(keys.parse(&key), None, "{key}");
        }
    }
}
