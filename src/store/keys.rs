//! Key and field names: the one place, beside `lua/`, that knows how sessions lie in Redis.
//!
//! Every key of a user has the same hash tag, `{pppp}`: four hex digits, the user's [`Partition`]. Redis Cluster hashes
//! only what is between the braces, so all of them are in one slot and one script may touch them together. A session id
//! starts with the same four digits, so the id alone says where its keys are.

use std::fmt::Write;

use crate::session::{Partition, SessionId};

/// The layout that this code reads and writes. Stored under `<prefix>:layout`.
pub(super) const LAYOUT_VERSION: &str = "1";

/// Fields that the store names one by one: of a session's hash, or of a message in the stream.
pub(super) mod field {
    pub(in crate::store) const BUSINESS_ID: &str = "businessId";
    pub(in crate::store) const CONTENT: &str = "content";
    pub(in crate::store) const CREATED_AT: &str = "createdAt";
    pub(in crate::store) const LOCATION_ID: &str = "locationId";
    pub(in crate::store) const MESSAGE_ID: &str = "messageId";
    pub(in crate::store) const METADATA: &str = "metadata";
    pub(in crate::store) const ROLE: &str = "role";
    pub(in crate::store) const SESSION_TYPE: &str = "sessionType";
    pub(in crate::store) const TITLE: &str = "title";
    pub(in crate::store) const USER_ID: &str = "userId";
}

/// The fields of a session's hash, in the order in which every read and every script's answer has them.
/// Absent: `title`, `endedAt` and `endReason` that are null. One more, `mutations`, is `update.lua`'s own.
pub(super) const SESSION_FIELDS: [&str; 17] = [
    "sessionId",
    field::BUSINESS_ID,
    field::USER_ID,
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
];

/// Makes keys. All of them start with the prefix that the operator chose.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix }
    }

    /// `sd:layout`: the version of this layout.
    pub(super) fn layout(&self) -> String {
        format!("{}:layout", self.prefix)
    }

    /// `sd:{pppp}:`: what all keys of a partition start with.
    pub(super) fn partition(&self, partition: Partition) -> String {
        format!("{}:{{{partition}}}:", self.prefix)
    }

    /// `sd:{pppp}:s:<sessionId>`: the session's hash.
    pub(super) fn session(&self, id: SessionId) -> String {
        format!("{}s:{id}", self.partition(id.partition()))
    }

    /// `sd:{pppp}:m:<sessionId>`: the session's messages, a stream with entry ids `<seq>-0`.
    pub(super) fn messages(&self, id: SessionId) -> String {
        format!("{}m:{id}", self.partition(id.partition()))
    }

    /// `sd:{pppp}:d:<sessionId>`: messageId to seq, a hash.
    pub(super) fn message_ids(&self, id: SessionId) -> String {
        format!("{}d:{id}", self.partition(id.partition()))
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
}
