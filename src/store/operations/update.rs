//! Changes a session: its title, metadata, status, or only its last activity.

use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{VersionCondition, count_closed_turn, count_end, instrumented};
use crate::metrics::{self, Operation};
use crate::session::{
    EndReason, PatchStatus, Session, SessionId, SessionPatch, Status, TenantScope, Timestamp, patched_metadata,
};
use crate::store::keys::field;
use crate::store::{SessionStore, StoreError};

/// Outcome of [`SessionStore::update`].
#[derive(Debug)]
pub enum Update {
    /// The session after the change.
    Updated(Box<Session>),
    /// The session does not exist.
    Missing,
    /// The session has this version, which the condition does not accept.
    VersionMismatch(u64),
    /// Another session of the user is active.
    AnotherActive(SessionId),
    /// Concurrent changes interfered until the retries ran out. Nothing was changed.
    ConcurrentUpdate,
    /// The merged metadata would be too large. Nothing was changed.
    MetadataTooLarge,
}

impl SessionStore {
    /// Changes a session within `scope`.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn update(
        &self,
        id: SessionId,
        patch: &SessionPatch,
        condition: &VersionCondition,
        scope: &TenantScope,
        now: Timestamp,
    ) -> Result<Update, StoreError> {
        instrumented(Operation::Update, async move {
            let mutation_id = random_mutation_id()?;
            let started = Instant::now();
            while started.elapsed() < self.topology.retry_budget() {
                let Some(session) = self.get_in_scope(id, scope, now).await? else {
                    return Ok(Update::Missing);
                };
                if !condition.accepts(session.version) {
                    return Ok(Update::VersionMismatch(session.version));
                }
                if patch.is_heartbeat() && self.is_recorded(&session, now) {
                    return Ok(Update::Updated(session));
                }
                let metadata = match &patch.metadata {
                    Some(metadata_patch) => Some(merged_metadata(&session, metadata_patch)?),
                    None => None,
                };
                if metadata.as_ref().is_some_and(|merged| merged.len() > self.config.metadata_bytes_max) {
                    return Ok(Update::MetadataTooLarge);
                }
                let args = self.update_args(&session, patch, metadata, condition, &mutation_id, now);
                let mut keys = self.keys_of(&session);
                keys.extend(session.turn_number.map(|_| self.keys.turn(id)));
                keys.extend(session.open_turn.as_ref().map(|_| self.keys.chunks(id)));
                let mut reply = self.run(&self.scripts.update, keys, args).await?;
                match reply.string()?.as_str() {
                    "updated" => {
                        let (change, other_ended) = (reply.string()?, reply.string()?);
                        count_end(&other_ended);
                        count_closed_turn(&reply.string()?);
                        return match reply.session(id)?.and_then(|session| session.as_of(now, &self.config.lifecycle)) {
                            Some(session) => {
                                count_change(&change, &session);
                                Ok(Update::Updated(session))
                            }
                            None => Err(reply.unexpected("the updated session is missing")),
                        };
                    }
                    "missing" => return Ok(Update::Missing),
                    "another_active" => return Ok(Update::AnotherActive(reply.parse()?)),
                    // The session has changed in the meantime, or has a turn now. Read it again.
                    "version_mismatch" | "stale" | "has_turn" => {}
                    _ => return Err(reply.unknown_tag()),
                }
            }
            Ok(Update::ConcurrentUpdate)
        })
        .await
    }

    /// Whether the session is active and its activity at `now` need not be written.
    ///
    /// A service with an unsafe clock cannot decide this, so it calls the script, which is then rejected.
    fn is_recorded(&self, session: &Session, now: Timestamp) -> bool {
        session.status == Status::Active
            && !self.config.lifecycle.is_touch_due(session, now)
            && !self.health.is_any_clock_unsafe()
    }

    fn update_args(
        &self,
        session: &Session,
        patch: &SessionPatch,
        metadata: Option<String>,
        condition: &VersionCondition,
        mutation_id: &str,
        now: Timestamp,
    ) -> Vec<String> {
        let base_metadata = metadata.as_ref().map_or_else(String::new, |_| format!("={}", session.metadata));
        let mut args = vec![
            self.keys.partition(session.session_id.partition()),
            session.session_id.to_string(),
            now.0.to_string(),
            mutation_id.to_owned(),
            condition.expected_version(session.version),
            base_metadata,
            patch.status.map_or("", PatchStatus::as_str).to_owned(),
            patch.if_active.as_str().to_owned(),
        ];
        let mut set = |name: &str, value: String| args.extend([name.to_owned(), value]);
        if let Some(location_id) = &patch.location_id {
            set(field::LOCATION_ID, format!("={location_id}"));
        }
        if let Some(session_type) = &patch.session_type {
            set(field::SESSION_TYPE, format!("={session_type}"));
        }
        if let Some(title) = &patch.title {
            set(field::TITLE, title.as_ref().map_or_else(String::new, |title| format!("={title}")));
        }
        if let Some(metadata) = metadata {
            set(field::METADATA, format!("={metadata}"));
        }
        args
    }
}

/// Counts a resume or an end that an update caused.
fn count_change(change: &str, session: &Session) {
    match change {
        "resumed" => metrics::session_resumed(),
        "ended" | "expired" => count_end(session.end_reason.map_or("", EndReason::as_str)),
        _ => {}
    }
}

/// The session's metadata with a merge patch applied (RFC 7396). A patch of `null` empties it.
fn merged_metadata(session: &Session, patch: &serde_json::Value) -> Result<String, StoreError> {
    let malformed = |_| StoreError::Reply { operation: "update", problem: "the stored metadata is not a JSON object" };
    let metadata = serde_json::from_str(&session.metadata).map_err(malformed)?;
    serde_json::to_string(&patched_metadata(&metadata, patch)).map_err(malformed)
}

/// 64 random bits as 11 characters, which identify one call of `update.lua` or `update_message.lua`.
pub(super) fn random_mutation_id() -> Result<String, StoreError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
