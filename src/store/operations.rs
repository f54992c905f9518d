//! The operations of [`SessionStore`], one file each, and their shared code.

mod append_messages;
mod business_events;
mod delete;
mod erase_user;
mod export_user;
mod get;
mod get_active;
mod get_message;
mod get_or_create;
mod included;
mod list_active;
mod list_history;
mod list_messages;
mod read_stream;
mod ready;
mod redact_message;
mod session_page;
mod turns;
mod update;
mod update_message;

use std::time::Instant;

use futures_util::FutureExt;

pub use self::append_messages::Append;
pub use self::delete::Delete;
pub use self::get_message::GetMessage;
pub use self::get_or_create::GetOrCreate;
pub use self::list_messages::{MessagePage, MessageRange};
pub use self::read_stream::{StreamContents, StreamSnapshot, StreamWants};
pub use self::redact_message::RedactMessage;
pub(crate) use self::session_page::score_of;
pub use self::session_page::{PageRequest, Position, SessionPage};
pub use self::turns::{
    AppendChunks, BeginTurn, CancelTurn, ChunksAppended, EndRequest, EndTurn, GetTurn, NewChunks, NewTurn, NotOpen,
    TurnChunks, TurnName,
};
pub use self::update::Update;
pub use self::update_message::UpdateMessage;
use super::redis::read_command::ReadCommand;
use super::reply::Reply;
use super::{SessionStore, StoreError};
use crate::metrics::{self, Operation};
use crate::session::{EndReason, Partition, Session, SessionId, TenantScope, Timestamp, TurnStatus};
use crate::trace::Span;

/// Which versions of a session a call accepts (`If-Match`; `docs/api.md`, Preconditions).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionCondition {
    /// Any version.
    Any,
    /// One of these versions, as decimal text.
    OneOf(Vec<String>),
}

impl VersionCondition {
    fn accepts(&self, version: u64) -> bool {
        match self {
            Self::Any => true,
            Self::OneOf(versions) => versions.contains(&version.to_string()),
        }
    }

    /// The version that the script must find: the one that was read and accepted, or an empty string for any version.
    fn expected_version(&self, version: u64) -> String {
        match self {
            Self::Any => String::new(),
            Self::OneOf(_) => version.to_string(),
        }
    }
}

impl SessionStore {
    /// The session, if it is readable and within `scope`.
    ///
    /// Every operation that takes a session id calls this first, or its script compares the scope first. A session
    /// outside the caller's tenant scope is therefore treated as missing before anything else about it is examined.
    pub(in crate::store) async fn get_in_scope(
        &self,
        id: SessionId,
        scope: &TenantScope,
        now: Timestamp,
    ) -> Result<Option<Box<Session>>, StoreError> {
        let session = self.read(id).await?.and_then(|session| session.as_of(now, &self.config.lifecycle));
        Ok(session.filter(|session| scope.contains(session)))
    }

    /// The reply of a script that checks the scope itself; `None` if the session is outside of `scope` and the script
    /// could not report it. In a moving slot, a script with missing keys is rejected before it checks anything.
    async fn reply_in_scope(
        &self,
        reply: Result<Reply, StoreError>,
        id: SessionId,
        scope: &TenantScope,
        now: Timestamp,
    ) -> Result<Option<Reply>, StoreError> {
        match reply {
            Err(error @ StoreError::NotServing("TRYAGAIN", _)) => {
                self.get_in_scope(id, scope, now).await?.map_or(Ok(None), |_| Err(error))
            }
            reply => reply.map(Some),
        }
    }

    /// Reads one session as it is stored.
    async fn read(&self, id: SessionId) -> Result<Option<Box<Session>>, StoreError> {
        self.ensure_layout().await?;
        match self.topology.read_session(&self.keys.session(id), id).await? {
            Some(session) => Ok(session),
            None => self.read_by_client(id).await,
        }
    }

    async fn read_by_client(&self, id: SessionId) -> Result<Option<Box<Session>>, StoreError> {
        let command = ReadCommand::hash(self.keys.session(id));
        let fields = self.topology.read_by_client(&command).await?.texts("get")?;
        Reply::of_texts("get", fields).session(id)
    }

    /// The keys of a session and of its user, in the order of the scripts' KEYS.
    fn keys_of(&self, session: &Session) -> Vec<String> {
        let id = session.session_id;
        let mut keys = vec![self.keys.session(id), self.keys.messages(id), self.keys.message_ids(id)];
        keys.extend(self.user_keys(id.partition(), &session.business_id, &session.user_id));
        keys
    }

    /// The pointer, the history and the business index of a user.
    fn user_keys(&self, partition: Partition, business_id: &str, user_id: &str) -> [String; 3] {
        [
            self.keys.pointer(business_id, user_id),
            self.keys.history(business_id, user_id),
            self.keys.business(partition, business_id),
        ]
    }
}

/// Counts an operation, measures its duration and records its span.
///
/// Not an async function: that would store the operation's future twice.
fn instrumented<T>(
    operation: Operation,
    future: impl Future<Output = Result<T, StoreError>>,
) -> impl Future<Output = Result<T, StoreError>> {
    let span = Span::of_operation(operation.as_str());
    let future = span.around(future);
    let running = RunningOperation { operation, span, started: Instant::now(), error_kind: Some("abandoned") };
    future.inspect(move |result| running.end(result.as_ref().err().map(StoreError::kind)))
}

/// An operation in progress. If it is dropped before it ends, because the request deadline has passed, it counts as
/// abandoned.
struct RunningOperation {
    operation: Operation,
    span: Span,
    started: Instant,
    error_kind: Option<&'static str>,
}

impl RunningOperation {
    fn end(mut self, error_kind: Option<&'static str>) {
        self.error_kind = error_kind;
    }
}

impl Drop for RunningOperation {
    fn drop(&mut self) {
        metrics::operation_finished(self.operation, self.error_kind, self.started.elapsed());
        self.span.finish_operation(self.error_kind);
    }
}

/// Counts the end of a session that a script recorded. The reason is empty if no session ended.
fn count_end(reason: &str) {
    if let Some(reason) = EndReason::from_word(reason) {
        metrics::session_ended(reason.as_str());
    }
}

/// Counts a turn that a script closed. The status is empty if it closed none.
fn count_closed_turn(status: &str) {
    if let Some(status) = TurnStatus::from_word(status) {
        metrics::turn_ended(status.as_str());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Maximum bytes of the future of a call. It is copied several times on its way to a task.
    const FUTURE_BYTES_MAX: usize = 2048;

    /// The name of a call with parameters of these types, and the bytes of its future.
    macro_rules! future_of {
        ($call:ident($($parameter:ident),+)) => {{
            fn bytes<$($parameter,)+ F>(_: impl FnOnce($($parameter),+) -> F) -> usize {
                size_of::<F>()
            }
            (stringify!($call), bytes(SessionStore::$call))
        }};
    }

    #[test]
    fn the_futures_of_calls_are_small() {
        let futures = [
            future_of!(get_or_create(A, B, C)),
            future_of!(get(A, B, C, D)),
            future_of!(get_active(A, B, C, D)),
            future_of!(update(A, B, C, D, E, G)),
            future_of!(delete(A, B, C, D, E)),
            future_of!(append_messages(A, B, C, D, E)),
            future_of!(list_messages(A, B, C, D, E, G, H)),
            future_of!(get_message(A, B, C, D, E)),
            future_of!(list_history(A, B, C, D, E)),
            future_of!(list_active(A, B, C, D)),
            future_of!(begin_turn(A, B, C, D, E)),
            future_of!(append_chunks(A, B, C, D, E)),
            future_of!(end_turn(A, B, C, D, E)),
            future_of!(read_stream(A, B, C, D)),
        ];
        for (call, bytes) in futures {
            assert!(bytes <= FUTURE_BYTES_MAX, "{call}: {bytes} bytes; box what it rarely awaits");
        }
    }
}
