//! Redacts one message.

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
            if self.get_in_scope(id, scope, now).await?.is_none() {
                return Ok(RedactMessage::SessionMissing);
            }
            let args = vec![
                id.to_string(),
                now.0.to_string(),
                now.to_string(),
                self.config.lifecycle.retention_ms().to_string(),
                escaped_text(message.message_id.as_str()),
                own_roles.map_or_else(String::new, lines_of),
            ];
            let keys = vec![self.keys.session(id), self.keys.messages(id), self.keys.message_ids(id)];
            let mut reply = self.run(&self.scripts.redact_message, keys, args).await?;
            match reply.string()?.as_str() {
                "redacted" => Ok(RedactMessage::Redacted),
                "missing" => Ok(RedactMessage::SessionMissing),
                "no_message" => Ok(RedactMessage::MessageMissing),
                "forbidden" => {
                    let role = Role::from_word(&reply.string()?);
                    Ok(RedactMessage::Forbidden(role.ok_or_else(|| reply.unexpected("a role is unknown"))?))
                }
                "damaged" => Err(reply.unexpected("the ids and the messages do not agree")),
                _ => Err(reply.unknown_tag()),
            }
        })
        .await
    }
}

/// Roles as the script takes them: lines, each between two line feeds.
fn lines_of(roles: &[Role]) -> String {
    roles.iter().fold("\n".to_owned(), |lines, role| lines + role.as_str() + "\n")
}
