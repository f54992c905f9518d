//! The request and response bodies.

use std::collections::HashMap;

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewSession {
    pub business_id: String,
    pub user_id: String,
    #[serde(default = "default_location")]
    pub location_id: String,
    #[serde(default = "default_type")]
    pub session_type: String,
    #[serde(default)]
    pub metadata: Map<String, Value>,
}

fn default_location() -> String {
    "L0100001".to_owned()
}

fn default_type() -> String {
    "general".to_owned()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    pub session_id: String,
    pub business_id: String,
    pub user_id: String,
    pub location_id: String,
    pub session_type: String,
    pub status: String,
    pub title: Option<String>,
    pub metadata: Map<String, Value>,
    pub message_count: u64,
    pub version: u64,
    pub created_at: Option<String>,
    pub updated_at: Option<String>,
    pub last_activity_at: Option<String>,
    pub expires_at: Option<String>,
    pub ended_at: Option<String>,
    pub end_reason: Option<String>,
}

impl Session {
    /// A session from the fields of its hash. `None` if the hash does not exist.
    pub fn from_fields(mut fields: HashMap<String, String>) -> Option<Self> {
        let session_id = fields.remove("sessionId")?;
        let mut take = |name: &str| fields.remove(name);
        Some(Self {
            session_id,
            business_id: take("businessId")?,
            user_id: take("userId")?,
            location_id: take("locationId")?,
            session_type: take("sessionType")?,
            status: take("status")?,
            title: take("title"),
            metadata: serde_json::from_str(&take("metadata")?).ok()?,
            message_count: take("messageCount")?.parse().ok()?,
            version: take("version")?.parse().ok()?,
            created_at: iso(take("createdAt")),
            updated_at: iso(take("updatedAt")),
            last_activity_at: iso(take("lastActivityAt")),
            expires_at: iso(take("expiresAt")),
            ended_at: iso(take("endedAt")),
            end_reason: take("endReason"),
        })
    }
}

fn iso(ms: Option<String>) -> Option<String> {
    time_text(ms?.parse().ok()?)
}

/// RFC 3339, UTC, with milliseconds.
pub fn time_text(ms: i64) -> Option<String> {
    Some(DateTime::from_timestamp_millis(ms)?.to_rfc3339_opts(SecondsFormat::Millis, true))
}
