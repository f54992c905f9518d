//! Session ids.

use std::fmt;
use std::str::FromStr;

use ring::digest;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::{IdempotencyKey, Partition};

/// A session id: a UUID version 8 (RFC 9562). Its first 16 bits are the partition, so the id says where its session is
/// stored. Its other 106 free bits come from the random source of the operating system, so it cannot be guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(Uuid);

impl SessionId {
    /// Length of the text form, in bytes.
    pub(crate) const TEXT_BYTES: usize = Hyphenated::LENGTH;

    /// Writes the lower-case text form to `text` and returns it.
    pub(crate) fn write(self, text: &mut [u8; Self::TEXT_BYTES]) -> &str {
        self.0.as_hyphenated().encode_lower(text)
    }

    /// A new random id in `partition`.
    ///
    /// # Errors
    /// If the operating system returns no random bytes.
    pub fn random(partition: Partition) -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        [bytes[0], bytes[1]] = partition.0.to_be_bytes();
        Ok(Self(uuid::Builder::from_custom_bytes(bytes).into_uuid()))
    }

    /// The id of the session that an idempotency key of a user stands for. The function is deterministic and must never
    /// change. The id is the first 16 bytes of a SHA-256, with the bits of the partition, version and variant replaced.
    /// The hash is over a tag, the business, the user and the key, each preceded by its length in bytes (8 bytes,
    /// big-endian). Test vector:
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

    /// The partition in which the session is stored.
    #[must_use]
    pub fn partition(self) -> Partition {
        let [high, low, ..] = *self.0.as_bytes();
        Partition(u16::from_be_bytes([high, low]))
    }

    /// The 16 bytes of the id.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id that consists of these 16 bytes.
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

    /// Accepts only the hyphenated form, in lower or upper case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<uuid::fmt::Hyphenated>().map(|id| Self(id.into_uuid()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_id_contains_its_partition_and_106_random_bits() {
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
    fn only_the_hyphenated_form_is_accepted() {
        for text in ["", "6d21a9c45e1b8d7a9c3e2f4b6a8c0d1e", "{f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e}", "business"] {
            assert!(text.parse::<SessionId>().is_err(), "{text}");
        }
    }
}
