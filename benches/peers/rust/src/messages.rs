//! The request and response bodies of messages.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[derive(Deserialize, Serialize, Clone, Copy)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    User,
    Assistant,
    System,
    Tool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewMessage {
    pub message_id: Option<String>,
    pub role: Role,
    pub content: Value,
    #[serde(default)]
    pub metadata: Map<String, Value>,
}

/// One message, or an array of them. The response has the same form.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

/// A message as it is stored and returned.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    pub seq: u64,
    pub created_at: String,
    pub session_id: String,
    pub message_id: String,
    pub role: Role,
    pub content: Value,
    pub metadata: Map<String, Value>,
}

#[derive(Deserialize)]
pub struct Page {
    #[serde(default = "default_limit")]
    pub limit: usize,
}

fn default_limit() -> usize {
    50
}
