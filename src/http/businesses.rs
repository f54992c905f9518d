//! `/api/sessions/business/{businessId}/...`: the sessions of a business and of its users.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::access::Caller;
use super::error::{ApiError, Code, problems};
use super::extract::{PathBusiness, PathUser, Query};
use super::page::{ListId, PageQuery};
use super::sessions::{page_response, session_response};
use crate::session::Session;

const HISTORY_LIMIT_DEFAULT: u64 = 20;
const ACTIVE_LIMIT_DEFAULT: u64 = 50;

/// The routes of this file.
pub(super) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list_active))
        .routes(routes!(get_active))
        .routes(routes!(list_history))
        .routes(routes!(erase_user))
}

problems! {
    /// What a list can be refused for.
    ListProblems { InvalidRequest }
}

/// List the active sessions of a business
///
/// Latest expiry first. A session that is touched between two pages moves to the front; none comes twice.
#[utoipa::path(
    get, path = "/api/sessions/business/{businessId}/active", tag = "businesses", operation_id = "listActiveSessions",
    params(
        ("businessId" = String, Path, description = "The business."),
        ("limit" = Option<u64>, Query, description = "The most sessions to answer; 50 if absent.",
            minimum = 1, maximum = 100, nullable = false),
        ("cursor" = Option<String>, Query, description = "Where to go on: from a `Link` of this list.",
            nullable = false),
    ),
    responses(
        (status = 200, description = "A page of sessions.", body = [Session], headers(
            ("Link" = String, description = "`rel=\"next\"` to the next page, if there is one."),
            ("X-Total-Count" = u64, description = "How many sessions are active."),
        )),
        ListProblems,
    ),
)]
async fn list_active(
    State(app): State<Arc<App>>,
    caller: Caller,
    PathBusiness(business_id): PathBusiness,
    uri: Uri,
    query: Query,
) -> Result<Response, ApiError> {
    let list = ListId::active(&business_id);
    let query = PageQuery::read(query, list, ACTIVE_LIMIT_DEFAULT)?;
    let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
    let owner = caller.response_owner();
    let (page, total) = app.store.list_active(&business_id, limit, query.after, owner, app.now()).await?;
    let mut response = page_response(&page.sessions, Session::write_json, page.memory).await;
    response.headers_mut().insert("x-total-count", total.into());
    if let Some(link) = page.next.and_then(|next| query.link(&uri, list, next)) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

problems! {
    /// What the look-up of the active session can be refused for.
    GetActiveProblems { InvalidRequest, NoActiveSession }
}

/// Read the active session of a user
#[utoipa::path(
    get, path = "/api/sessions/business/{businessId}/user/{userId}/active", tag = "businesses",
    operation_id = "getActiveSession",
    params(
        ("businessId" = String, Path, description = "The business."),
        ("userId" = String, Path, description = "The user."),
    ),
    responses(
        (status = 200, description = "The session.", body = Session,
            headers(("ETag" = String, description = "The session's version, in quotes."))),
        GetActiveProblems,
    ),
)]
async fn get_active(State(app): State<Arc<App>>, user: PathUser) -> Result<Response, ApiError> {
    let session = app.store.get_active(&user.business_id, &user.user_id, app.now()).await?;
    let none =
        || ApiError::new(Code::NoActiveSession, "The user has no active session; POST /api/sessions creates one");
    Ok(session_response(StatusCode::OK, &session.ok_or_else(none)?))
}

/// List the sessions of a user
///
/// Newest first, whatever their status.
#[utoipa::path(
    get, path = "/api/sessions/business/{businessId}/user/{userId}/history", tag = "businesses",
    operation_id = "listSessionHistory",
    params(
        ("businessId" = String, Path, description = "The business."),
        ("userId" = String, Path, description = "The user."),
        ("limit" = Option<u64>, Query, description = "The most sessions to answer; 20 if absent.",
            minimum = 1, maximum = 100, nullable = false),
        ("cursor" = Option<String>, Query, description = "Where to go on: from a `Link` of this list.",
            nullable = false),
    ),
    responses(
        (status = 200, description = "A page of sessions.", body = [Session],
            headers(("Link" = String, description = "`rel=\"next\"` to the next page, if there is one."))),
        ListProblems,
    ),
)]
async fn list_history(
    State(app): State<Arc<App>>,
    caller: Caller,
    user: PathUser,
    uri: Uri,
    query: Query,
) -> Result<Response, ApiError> {
    let list = ListId::history(&user.business_id, &user.user_id);
    let query = PageQuery::read(query, list, HISTORY_LIMIT_DEFAULT)?;
    let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
    let owner = caller.response_owner();
    let page = app.store.list_history(&user.business_id, &user.user_id, limit, query.after, owner, app.now()).await?;
    let mut response = page_response(&page.sessions, Session::write_json, page.memory).await;
    if let Some(link) = page.next.and_then(|next| query.link(&uri, list, next)) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

/// What was erased.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({"deletedSessions": 2}))]
struct ErasedUser {
    /// How many sessions there were.
    deleted_sessions: u64,
}

problems! {
    /// What erasing a user can be refused for.
    EraseProblems { InvalidRequest }
}

/// Erase a user
///
/// Deletes every session and message of the user.
#[utoipa::path(
    delete, path = "/api/sessions/business/{businessId}/user/{userId}", tag = "businesses", operation_id = "eraseUser",
    params(
        ("businessId" = String, Path, description = "The business."),
        ("userId" = String, Path, description = "The user."),
    ),
    responses((status = 200, description = "Nothing of the user is left.", body = ErasedUser), EraseProblems),
)]
async fn erase_user(State(app): State<Arc<App>>, user: PathUser) -> Result<Response, ApiError> {
    let deleted_sessions = app.store.erase_user(&user.business_id, &user.user_id, app.now()).await?;
    Ok(Json(ErasedUser { deleted_sessions }).into_response())
}
