//! Changes the metadata of one message.

use std::time::Instant;

use serde_json::{Map, Value};

use super::get_message::GetMessage;
use super::instrumented;
use super::update::random_mutation_id;
use crate::metrics::Operation;
use crate::session::{MessageJson, MessageRef, Role, TenantScope, Timestamp, patched_metadata};
use crate::store::response_memory::{MemoryPermit, ResponseOwner};
use crate::store::{SessionStore, StoreError};

/// The member of the metadata that every caller may patch in messages of every role.
const FEEDBACK: &str = "feedback";

/// Outcome of [`SessionStore::update_message`].
#[derive(Debug)]
pub enum UpdateMessage {
    /// The message after the change, and the memory of a large one. Keep it until the response is sent.
    Updated(MessageJson, Option<MemoryPermit>),
    /// The session does not exist.
    SessionMissing,
    /// The session has no message with this id.
    MessageMissing,
    /// The message has this role, and the caller may patch only `feedback` in messages of this role.
    Forbidden(Role),
    /// Concurrent changes interfered until the retries ran out. Nothing was changed.
    ConcurrentUpdate,
    /// The merged metadata would be too large. Nothing was changed.
    MetadataTooLarge,
    /// The message would be larger, and the session's messages would have too many bytes. Nothing was changed.
    SessionTooLarge,
}

/// The result of merging a patch into a message.
enum Patched {
    /// The same message with other metadata.
    Changed(MessageJson),
    /// The message is redacted, or already has this metadata.
    Unchanged,
    Forbidden(Role),
    TooLarge,
}

impl SessionStore {
    /// Merges a patch (RFC 7396) into the metadata of a message of a session within `scope`. A redacted message does
    /// not change. If the message's role is not one of `own_roles`, only the member `feedback` may be patched.
    /// `own_roles` is `None` if every role is allowed.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn update_message(
        &self,
        message: &MessageRef,
        patch: &Value,
        own_roles: Option<&[Role]>,
        scope: &TenantScope,
        owner: ResponseOwner,
        now: Timestamp,
    ) -> Result<UpdateMessage, StoreError> {
        instrumented(Operation::UpdateMessage, async move {
            let (id, mutation_id) = (message.session_id, random_mutation_id()?);
            let started = Instant::now();
            while started.elapsed() < self.topology.retry_budget() {
                let (stored, memory) = match self.find_message(message, scope, owner, now).await? {
                    GetMessage::Found(stored, memory) => (stored, memory),
                    GetMessage::SessionMissing => return Ok(UpdateMessage::SessionMissing),
                    GetMessage::MessageMissing => return Ok(UpdateMessage::MessageMissing),
                };
                let changed = match patched(&stored, patch, own_roles, self.config.metadata_bytes_max)? {
                    Patched::Changed(changed) => changed,
                    Patched::Unchanged => return Ok(UpdateMessage::Updated(stored, memory)),
                    Patched::Forbidden(role) => return Ok(UpdateMessage::Forbidden(role)),
                    Patched::TooLarge => return Ok(UpdateMessage::MetadataTooLarge),
                };
                let args = vec![
                    id.to_string(),
                    now.0.to_string(),
                    mutation_id.clone(),
                    stored.seq.to_string(),
                    stored.to_text(),
                    changed.to_text(),
                ];
                let keys = vec![self.keys.session(id), self.keys.messages(id)];
                let mut reply = self.run(&self.scripts.update_message, keys, args).await?;
                match reply.string()?.as_str() {
                    "updated" => return Ok(UpdateMessage::Updated(reply.message(id)?, memory)),
                    "missing" => return Ok(UpdateMessage::SessionMissing),
                    "too_large" => return Ok(UpdateMessage::SessionTooLarge),
                    // The message has changed in the meantime. Read it again.
                    "stale" => {}
                    _ => return Err(reply.unknown_tag()),
                }
            }
            Ok(UpdateMessage::ConcurrentUpdate)
        })
        .await
    }
}

fn patched(
    stored: &MessageJson,
    patch: &Value,
    own_roles: Option<&[Role]>,
    metadata_bytes_max: usize,
) -> Result<Patched, StoreError> {
    let malformed = StoreError::Reply { operation: "update_message", problem: "the stored message is malformed" };
    let Some(members) = stored.members() else {
        return Err(malformed);
    };
    let role = Role::from_word(&members.role);
    let metadata = serde_json::from_str::<Map<String, Value>>(members.metadata.get()).ok();
    let (Some(role), Some(metadata)) = (role, metadata) else {
        return Err(malformed);
    };
    let is_feedback = patch.as_object().is_some_and(|patch| patch.keys().all(|name| name == FEEDBACK));
    if own_roles.is_some_and(|own_roles| !own_roles.contains(&role)) && !is_feedback {
        return Ok(Patched::Forbidden(role));
    }
    let merged = patched_metadata(&metadata, patch);
    if members.redacted_at.is_some() || merged == metadata {
        return Ok(Patched::Unchanged);
    }
    let merged = Value::Object(merged).to_string();
    // The merged metadata may be longer than the text that the client sent, which is what an append limits.
    if merged.len() > metadata_bytes_max && merged.len() > Value::Object(metadata).to_string().len() {
        return Ok(Patched::TooLarge);
    }
    stored.with_metadata(members.metadata.get(), &merged).map(Patched::Changed).ok_or(malformed)
}
