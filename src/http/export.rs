//! `/api/sessions/business/{businessId}/user/{userId}/export`: everything that is stored of a user.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::{StreamExt, stream};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::AppState;
use super::auth::Principal;
use super::error::{ApiError, problems};
use super::extract::PathUser;
use crate::session::{Session, SessionId, TenantScope};
use crate::store::{MemoryPermit, MessageRange, Position, ResponseOwner, StoreError};

/// Number of messages that one step reads.
const MESSAGES_MAX: usize = 100;

/// The routes of this file.
pub(super) fn router() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new().routes(routes!(export_user))
}

problems! {
    /// The errors of exporting a user.
    ExportProblems { InvalidRequest }
}

/// Export a user
///
/// Returns one JSON object per line: `{"session":…}` for each session of the user, first created or resumed first,
/// each followed by `{"message":…}` for each of its messages. If the store fails during the export, the connection is
/// cut before the end of the body.
#[utoipa::path(
    get, path = "/api/sessions/business/{businessId}/user/{userId}/export", tag = "businesses",
    operation_id = "exportUser",
    params(
        ("businessId" = String, Path, description = "The id of the business."),
        ("userId" = String, Path, description = "The id of the user."),
    ),
    responses(
        (status = 200, description = "A line for each session and message; none for an unknown user.", body = String,
            content_type = "application/x-ndjson"),
        ExportProblems,
    ),
)]
async fn export_user(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    user: PathUser,
) -> Result<Response, ApiError> {
    let mut export = Export::new(app, user, caller.response_owner());
    // Reads the first part now, so that a failure of the store results in an error status.
    let body = match export.step().await? {
        None => Body::empty(),
        Some(first) => {
            let rest = stream::try_unfold(export, |mut export| async move {
                Ok::<_, StoreError>(export.step().await?.map(|lines| (lines, export)))
            });
            Body::from_stream(stream::iter([Ok(first)]).chain(rest))
        }
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

/// An export in progress. It holds one page in memory.
struct Export {
    app: Arc<AppState>,
    user: PathUser,
    owner: ResponseOwner,
    /// The sessions that were read and are not exported yet.
    sessions: VecDeque<Session>,
    /// The session whose messages come next, and the `seq` after which they do.
    current: Option<(SessionId, u64)>,
    /// The position of the next sessions; `None` for the start of the history.
    after: Option<Position>,
    has_more_sessions: bool,
    /// The memory of the last page, until the connection requests the next one.
    memory: Option<MemoryPermit>,
}

impl Export {
    fn new(app: Arc<AppState>, user: PathUser, owner: ResponseOwner) -> Self {
        let (sessions, current, after, memory) = (VecDeque::new(), None, None, None);
        Self { app, user, owner, sessions, current, after, has_more_sessions: true, memory }
    }

    /// The next lines, or `None` at the end.
    async fn step(&mut self) -> Result<Option<Bytes>, StoreError> {
        loop {
            self.memory = None;
            if let Some((id, seq)) = self.current.take() {
                if let Some(lines) = self.messages_after(id, seq).await? {
                    return Ok(Some(lines));
                }
            } else if let Some(session) = self.sessions.pop_front() {
                self.current = Some((session.session_id, 0));
                return Ok(Some([b"{\"session\":", session.to_json().as_slice(), b"}\n"].concat().into()));
            } else if self.has_more_sessions {
                let PathUser { business_id, user_id } = &self.user;
                let read = self.app.store.export_user(business_id, user_id, self.after, self.app.now()).await?;
                (self.sessions, self.after) = (read.0.into(), read.1);
                self.has_more_sessions = self.after.is_some();
            } else {
                return Ok(None);
            }
        }
    }

    /// The lines of the next messages of a session; `None` if there are none, or if the session was deleted in the
    /// meantime.
    async fn messages_after(&mut self, id: SessionId, seq: u64) -> Result<Option<Bytes>, StoreError> {
        let (range, scope) = (MessageRange::After(seq), TenantScope::Everything);
        let page = self.app.store.list_messages(id, range, MESSAGES_MAX, &scope, self.owner, self.app.now()).await?;
        let Some(page) = page.filter(|page| !page.messages.is_empty()) else { return Ok(None) };
        if page.after.is_some() {
            self.current = page.messages.last().map(|message| (id, message.seq));
        }
        let mut lines = Vec::with_capacity(page.messages.iter().map(|message| message.json_bytes() + 14).sum());
        for message in &page.messages {
            for part in [b"{\"message\":".as_slice(), message.as_bytes(), b"}\n"] {
                lines.extend_from_slice(part);
            }
        }
        self.memory = page.memory;
        Ok(Some(lines.into()))
    }
}
