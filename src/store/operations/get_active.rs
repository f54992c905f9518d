//! Reads the active session of a user.

use super::instrumented;
use crate::metrics::Operation;
use crate::session::{Identifier, Session, SessionId, Status, Timestamp};
use crate::store::redis::read_command::ReadCommand;
use crate::store::{SessionStore, StoreError};

/// How often the user's pointer is followed if it changes in the meantime.
const POINTER_ATTEMPTS: u32 = 8;

impl SessionStore {
    /// The active session of a user.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn get_active(
        &self,
        business_id: &Identifier,
        user_id: &Identifier,
        now: Timestamp,
    ) -> Result<Option<Box<Session>>, StoreError> {
        instrumented(Operation::GetActive, async move {
            // The pointer names the session to read; the session itself says whether it is active. If it is not, it
            // ended between the two reads, and the pointer is followed again.
            let pointer = self.keys.pointer(business_id.as_str(), user_id.as_str());
            let mut seen = Vec::new();
            for _ in 0..POINTER_ATTEMPTS {
                let command = ReadCommand::string(pointer.clone());
                let Some(text) = self.read_command(command).await?.text("get_active")? else {
                    return Ok(None);
                };
                let id = std::str::from_utf8(&text).ok().and_then(|text| text.parse::<SessionId>().ok());
                let id = id
                    .ok_or(StoreError::Reply { operation: "get_active", problem: "the pointer is not a session id" })?;
                let session = self.read(id).await?.filter(|session| session.is_of_user(business_id, user_id));
                match session {
                    // An expired session that is still marked active has no successor yet.
                    Some(session) if session.status == Status::Active => {
                        return Ok((now < session.expires_at).then_some(session));
                    }
                    _ => seen.push(id),
                }
            }
            // A pointer that names the same session every time, which is inactive or another user's, is stale. The next
            // create replaces it.
            if seen.windows(2).all(|pair| pair[0] == pair[1]) {
                return Ok(None);
            }
            Err(StoreError::Busy("the user's active session changes faster than it can be read".to_owned()))
        })
        .await
    }
}
