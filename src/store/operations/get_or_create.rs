//! Finds the active session of a user, or creates one.

use super::{count_end, instrumented};
use crate::metrics::{self, Operation};
use crate::session::{
    ChangedMessages, Identifier, IfActive, NewSession, Partition, Session, SessionId, Status, Timestamp,
};
use crate::store::keys::field;
use crate::store::{SessionStore, StoreError};

/// Outcome of [`SessionStore::get_or_create`].
#[derive(Debug)]
pub enum GetOrCreate {
    /// A new session was created.
    Created(Box<Session>),
    /// The user has an active session.
    Resumed(Box<Session>),
    /// An earlier call with this idempotency key created this session, which is no longer active.
    Replayed(Box<Session>),
}

impl SessionStore {
    /// The active session of a user, or a new one if there is none. With `replace`, always a new one that replaces the
    /// active session.
    ///
    /// # Errors
    /// If the store cannot serve.
    pub async fn get_or_create(&self, new: &NewSession, now: Timestamp) -> Result<GetOrCreate, StoreError> {
        instrumented(Operation::GetOrCreate, async move {
            // A hint may name another session than the one of the idempotency key.
            if new.if_active == IfActive::Return
                && new.idempotency_key.is_none()
                && let Some(session) = self.resume_hinted(&new.business_id, &new.user_id, now).await?
            {
                metrics::session_resumed();
                return Ok(GetOrCreate::Resumed(session));
            }
            // Boxed to keep the future of a hint hit small.
            let outcome = Box::pin(self.run_get_or_create(new, now)).await?;
            match &outcome {
                GetOrCreate::Created(_) => metrics::session_created(),
                GetOrCreate::Resumed(_) => metrics::session_resumed(),
                GetOrCreate::Replayed(_) => {}
            }
            if let GetOrCreate::Created(session) | GetOrCreate::Resumed(session) = &outcome {
                self.hints.remember(&session.business_id, &session.user_id, session.session_id);
            }
            Ok(outcome)
        })
        .await
    }

    /// The active session of a user, if the user's hint names it and no write is due.
    ///
    /// The hint only names the session to read. The session's hash says whether it is this user's and active. If it is,
    /// it is the session that the script would return, because at most one session of a user is active.
    async fn resume_hinted(
        &self,
        business_id: &Identifier,
        user_id: &Identifier,
        now: Timestamp,
    ) -> Result<Option<Box<Session>>, StoreError> {
        // With an unsafe clock, an expired session may seem active. The script is rejected in that case.
        if self.health.is_any_clock_unsafe() {
            return Ok(None);
        }
        let (business_id, user_id) = (business_id.as_str(), user_id.as_str());
        let Some(id) = self.hints.session_of(business_id, user_id) else {
            metrics::hint_missed();
            return Ok(None);
        };
        let session = self.read(id).await?.filter(|session| {
            session.business_id == business_id
                && session.user_id == user_id
                && session.status == Status::Active
                && now < session.expires_at
        });
        if session.is_some() {
            metrics::hint_hit();
        } else {
            metrics::hint_was_stale();
        }
        Ok(session.filter(|session| !self.config.lifecycle.is_touch_due(session, now)))
    }

    async fn run_get_or_create(&self, new: &NewSession, now: Timestamp) -> Result<GetOrCreate, StoreError> {
        let (business_id, user_id) = (new.business_id.as_str(), new.user_id.as_str());
        let partition = Partition::of_user(business_id, user_id);
        let id = match &new.idempotency_key {
            Some(key) => SessionId::of_idempotency_key(business_id, user_id, key),
            None => SessionId::random(partition)?,
        };
        let keys = vec![
            self.keys.pointer(business_id, user_id),
            self.keys.history(business_id, user_id),
            self.keys.business(partition, business_id),
            self.keys.session(id),
        ];
        let mut args = vec![
            self.keys.partition(partition),
            id.to_string(),
            now.0.to_string(),
            new.if_active.as_str().to_owned(),
            business_id.to_owned(),
            user_id.to_owned(),
            new.idempotency_key.as_ref().map_or("", |_| "1").to_owned(),
        ];
        let mut set = |name: &str, value: &str| args.extend([name.to_owned(), value.to_owned()]);
        set(field::LOCATION_ID, new.location_id.as_str());
        set(field::SESSION_TYPE, new.session_type.as_str());
        set(field::METADATA, &new.metadata);
        if let Some(title) = &new.title {
            set(field::TITLE, title);
        }

        let mut reply = self.run(&self.scripts.get_or_create, keys, args).await?;
        match reply.string()?.as_str() {
            "created" => {
                let created_at = reply.time()?;
                count_end(&reply.string()?);
                metrics::sessions_trimmed(reply.parse()?);
                Ok(GetOrCreate::Created(self.created(new, id, created_at, now)))
            }
            "replayed" => match reply.session(id)?.and_then(|session| session.as_of(now, &self.config.lifecycle)) {
                Some(session) if new.idempotency_key.is_some() => Ok(GetOrCreate::Replayed(session)),
                Some(session) => Ok(GetOrCreate::Created(session)),
                None => Err(reply.unexpected("the created session is missing")),
            },
            "resumed" => match reply
                .fields()?
                .any_session("get_or_create")?
                .and_then(|session| session.as_of(now, &self.config.lifecycle))
            {
                Some(session) if session.business_id == business_id && session.user_id == user_id => {
                    Ok(GetOrCreate::Resumed(session))
                }
                _ => Err(reply.unexpected("the active session is missing or another user's")),
            },
            "foreign" => Err(reply.unexpected("another user's session has the id")),
            _ => Err(reply.unknown_tag()),
        }
    }

    /// The session that `get_or_create.lua` has just written, without reading it back.
    fn created(&self, new: &NewSession, id: SessionId, created_at: Timestamp, now: Timestamp) -> Box<Session> {
        let active_until = Timestamp(now.0 + self.config.lifecycle.max_lifetime_ms());
        Box::new(Session {
            session_id: id,
            business_id: new.business_id.to_string(),
            user_id: new.user_id.to_string(),
            location_id: new.location_id.to_string(),
            session_type: new.session_type.to_string(),
            status: Status::Active,
            title: new.title.clone(),
            metadata: new.metadata.clone(),
            message_count: 0,
            version: 1,
            created_at,
            updated_at: created_at,
            last_activity_at: now,
            expires_at: active_until.min(Timestamp(now.0 + self.config.lifecycle.idle_ms())),
            active_until,
            ended_at: None,
            end_reason: None,
            largest_message_bytes: 0,
            message_bytes: 0,
            oldest_seq: 1,
            history_at: created_at,
            turn_number: None,
            open_turn: None,
            changed_messages: ChangedMessages::default(),
        })
    }
}
