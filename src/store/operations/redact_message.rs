//! Redacts one message.

use std::time::Instant;

use super::instrumented;
use crate::metrics::Operation;
use crate::session::{MessageRef, Role, TenantScope, Timestamp, escaped_text};
use crate::store::{SessionStore, StoreError};

/// Outcome of [`SessionStore::redact_message`].
#[derive(Debug)]
pub enum RedactMessage {
    /// The message is redacted, or was already.
    Redacted,
    /// The session does not exist.
    SessionMissing,
    /// The session has no message with this id.
    MessageMissing,
    /// The message has this role, which the caller may not redact.
    Forbidden(Role),
}

impl SessionStore {
    /// Removes content and metadata of a message of a session within `scope`. The message stays at its `seq`. Its role
    /// must be one of `own_roles`, unless that is `None`.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn redact_message(
        &self,
        message: &MessageRef,
        own_roles: Option<&[Role]>,
        scope: &TenantScope,
        now: Timestamp,
    ) -> Result<RedactMessage, StoreError> {
        instrumented(Operation::RedactMessage, async move {
            let id = message.session_id;
            let started = Instant::now();
            while started.elapsed() < self.topology.retry_budget() {
                let Some(session) = self.get_in_scope(id, scope, now).await? else {
                    return Ok(RedactMessage::SessionMissing);
                };
                let args = vec![
                    id.to_string(),
                    now.0.to_string(),
                    now.to_string(),
                    escaped_text(message.message_id.as_str()),
                    own_roles.map_or_else(String::new, lines_of),
                ];
                let mut keys = vec![self.keys.session(id), self.keys.messages(id), self.keys.message_ids(id)];
                keys.extend(self.turn_keys_of(&session));
                let mut reply = self.run(&self.scripts.redact_message, keys, args).await?;
                match reply.string()?.as_str() {
                    "redacted" => return Ok(RedactMessage::Redacted),
                    "missing" => return Ok(RedactMessage::SessionMissing),
                    "no_message" => return Ok(RedactMessage::MessageMissing),
                    "forbidden" => {
                        let role = Role::from_word(&reply.string()?);
                        let role = role.ok_or_else(|| reply.unexpected("a role is unknown"))?;
                        return Ok(RedactMessage::Forbidden(role));
                    }
                    // The session has a turn now. Read it again.
                    "has_turn" => {}
                    "damaged" => return Err(reply.unexpected("the ids and the messages do not agree")),
                    _ => return Err(reply.unknown_tag()),
                }
            }
            Err(StoreError::Busy("the session changes faster than it can be read".to_owned()))
        })
        .await
    }
}

/// Roles in the format of the script: each on its own line, between two line feeds.
fn lines_of(roles: &[Role]) -> String {
    roles.iter().fold("\n".to_owned(), |lines, role| lines + role.as_str() + "\n")
}
