//! Partitions: the keys of one partition share a hash slot.

use std::fmt;

/// The partition in which all keys of a user are stored: the first 16 bits of the user's session ids
/// (docs/storage.md, "Partitions and hash tags").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u16);

impl Partition {
    /// Maximum partitions of one business.
    pub const BUCKETS: u64 = 16;

    /// The partition of one user of a business. This function must never change: every stored session would be lost.
    ///
    /// `bucket = XXH3-64(userId) mod 16`, partition = the low 16 bits of XXH3-64(businessId, seed = bucket), both over
    /// the UTF-8 bytes (<https://github.com/Cyan4973/xxHash/blob/v0.8.3/doc/xxhash_spec.md>). Test vectors:
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

    /// Every partition that holds users of a business, without duplicates: two buckets may share a partition.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_in_one_of_at_most_16_partitions_of_their_business() {
        for business in ["B0100001", "💬", "a:b"] {
            let partitions = Partition::of_business(business);
            assert!(partitions.len() <= 16);
            for user in 0..1000 {
                assert!(partitions.contains(&Partition::of_user(business, &format!("user_{user}"))));
            }
        }
    }
}
