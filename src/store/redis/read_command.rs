//! A command that reads one key, and its reply.

use bytes::Bytes;
use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::ClientLike;
use fred::types::{CustomCommand, Value};

use super::resp;
use crate::store::StoreError;

const HASH: &str = "HGETALL";

/// A command that reads one key.
#[derive(Clone, Debug)]
pub(in crate::store) struct ReadCommand {
    name: &'static str,
    key: String,
    args: Vec<String>,
}

impl ReadCommand {
    /// All fields of a hash, names and values in turn.
    pub(in crate::store) fn hash(key: String) -> Self {
        Self { name: HASH, key, args: Vec::new() }
    }

    /// One field of a hash.
    pub(in crate::store) fn hash_field(key: String, field: String) -> Self {
        Self { name: "HGET", key, args: vec![field] }
    }

    /// A string.
    pub(in crate::store) fn string(key: String) -> Self {
        Self { name: "GET", key, args: Vec::new() }
    }

    /// Elements of a list, from one index to another. Negative ones count from the end.
    pub(in crate::store) fn list(key: String, start: i64, stop: i64) -> Self {
        Self { name: "LRANGE", key, args: vec![start.to_string(), stop.to_string()] }
    }

    /// At most `count` entries of a sorted set, in descending order: members and scores in turn.
    pub(in crate::store) fn sorted_set_down(key: String, highest: String, lowest: String, count: usize) -> Self {
        let limit = ["WITHSCORES", "LIMIT", "0"].map(str::to_owned);
        let args = [highest, lowest].into_iter().chain(limit).chain([count.to_string()]).collect();
        Self { name: "ZREVRANGEBYSCORE", key, args }
    }

    /// The same in ascending order.
    pub(in crate::store) fn sorted_set_up(key: String, lowest: String, highest: String, count: usize) -> Self {
        let limit = ["BYSCORE", "LIMIT", "0"].map(str::to_owned);
        let args = [lowest, highest].into_iter().chain(limit).chain([count.to_string(), "WITHSCORES".to_owned()]);
        Self { name: "ZRANGE", key, args: args.collect() }
    }

    /// Number of entries of a sorted set from one score to another.
    pub(in crate::store) fn sorted_set_count(key: String, lowest: String, highest: String) -> Self {
        Self { name: "ZCOUNT", key, args: vec![lowest, highest] }
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let words = [self.name, &self.key].into_iter().chain(self.args.iter().map(String::as_str));
        resp::command(words.map(str::as_bytes))
    }

    /// [`Self::hash`], encoded.
    pub(super) fn encode_hash(key: &str) -> Vec<u8> {
        resp::command([HASH, key].map(str::as_bytes).into_iter())
    }

    /// Sends the command by the client.
    pub(super) async fn send(&self, client: Client) -> Result<Value, Error> {
        let args: Vec<_> = std::iter::once(&self.key).chain(&self.args).cloned().collect();
        client.custom(CustomCommand::new_static(self.name, None, false), args).await
    }
}

/// The reply to a [`ReadCommand`].
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) enum ReadReply {
    /// Several texts.
    Texts(Vec<Bytes>),
    /// One text, or none.
    Text(Option<Bytes>),
    /// A number.
    Integer(i64),
}

impl ReadReply {
    pub(in crate::store) fn texts(self, operation: &'static str) -> Result<Vec<Bytes>, StoreError> {
        match self {
            Self::Texts(texts) => Ok(texts),
            _ => Err(StoreError::Reply { operation, problem: "it is not an array of texts" }),
        }
    }

    pub(in crate::store) fn text(self, operation: &'static str) -> Result<Option<Bytes>, StoreError> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(StoreError::Reply { operation, problem: "it is not a text" }),
        }
    }

    pub(in crate::store) fn integer(self, operation: &'static str) -> Result<i64, StoreError> {
        match self {
            Self::Integer(number) => Ok(number),
            _ => Err(StoreError::Reply { operation, problem: "it is not a number" }),
        }
    }

    /// The reply that the client received; `None` for one of another shape.
    pub(super) fn of_value(value: Value) -> Option<Self> {
        let text = |value| match value {
            Value::String(text) => Some(text.into_inner()),
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        };
        match value {
            Value::Null => Some(Self::Text(None)),
            Value::Integer(number) => Some(Self::Integer(number)),
            Value::Array(values) => values.into_iter().map(text).collect::<Option<_>>().map(Self::Texts),
            value => text(value).map(|text| Self::Text(Some(text))),
        }
    }
}
