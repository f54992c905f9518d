//! `/api/sessions/business/{businessId}/...`: the sessions of a business and of its users.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::AppState;
use super::auth::Principal;
use super::error::{ApiError, Code, problems};
use super::extract::{PathBusiness, PathUser, Query};
use super::include;
use super::pagination::{ListId, PageQuery};
use super::response::{included_response, page_response};
use crate::session::{Included, Session, SessionView};

const HISTORY_LIMIT_DEFAULT: u64 = 20;
const ACTIVE_LIMIT_DEFAULT: u64 = 50;

/// The routes of this file.
pub(super) fn router() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new()
        .routes(routes!(list_active))
        .routes(routes!(get_active))
        .routes(routes!(list_history))
        .routes(routes!(erase_user))
}

problems! {
    /// The errors of the lists of sessions.
    ListProblems { InvalidRequest }
}

/// List the active sessions of a business
///
/// Sorted by expiry, latest first. A session with activity between two pages moves to the front; no session is
/// repeated.
#[utoipa::path(
    get, path = "/api/sessions/business/{businessId}/active", tag = "businesses", operation_id = "listActiveSessions",
    params(
        ("businessId" = String, Path, description = "The id of the business."),
        ("limit" = Option<u64>, Query, description = "Maximum number of sessions on the page; default 50.",
            minimum = 1, maximum = 100, nullable = false),
        ("cursor" = Option<String>, Query, description = "Start of the page, from a `Link` header of this list.",
            nullable = false),
        ("include" = Option<Included>, Query, description = "Members to add to each session.", nullable = false),
    ),
    responses(
        (status = 200, description = "A page of sessions.", body = [Session], headers(
            ("Link" = String, description = "`rel=\"next\"`: the next page, if there is one."),
            ("X-Total-Count" = u64, description = "Number of active sessions."),
        )),
        ListProblems,
    ),
)]
async fn list_active(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    PathBusiness(business_id): PathBusiness,
    uri: Uri,
    query: Query,
) -> Result<Response, ApiError> {
    let list = ListId::active(&business_id);
    let query = PageQuery::read(query, list, ACTIVE_LIMIT_DEFAULT)?;
    let request = query.request(caller.response_owner());
    let (page, total) = app.store.list_active(&business_id, request, app.now()).await?;
    let mut response =
        page_response(page.sessions, SessionView::json_bytes, SessionView::write_json, page.memory).await;
    response.headers_mut().insert("x-total-count", total.into());
    if let Some(link) = page.next.and_then(|next| query.link(&uri, list, next)) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

problems! {
    /// The errors of reading the active session.
    GetActiveProblems { InvalidRequest, NoActiveSession }
}

/// Read the active session of a user
#[utoipa::path(
    get, path = "/api/sessions/business/{businessId}/user/{userId}/active", tag = "businesses",
    operation_id = "getActiveSession",
    params(
        ("businessId" = String, Path, description = "The id of the business."),
        ("userId" = String, Path, description = "The id of the user."),
        ("include" = Option<Included>, Query, description = "Members to add to the session.", nullable = false),
    ),
    responses(
        (status = 200, description = "The session.", body = Session,
            headers(("ETag" = String, description = "The session's version, in quotes."))),
        GetActiveProblems,
    ),
)]
async fn get_active(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    user: PathUser,
    mut query: Query,
) -> Result<Response, ApiError> {
    let include = include::read(&mut query);
    query.finish()?;
    let session = app.store.get_active(&user.business_id, &user.user_id, app.now()).await?;
    let none =
        || ApiError::new(Code::NoActiveSession, "The user has no active session; POST /api/sessions creates one");
    included_response(&app, &caller, session.ok_or_else(none)?, include).await
}

/// List the sessions of a user
///
/// With any status, last created or resumed first.
#[utoipa::path(
    get, path = "/api/sessions/business/{businessId}/user/{userId}/history", tag = "businesses",
    operation_id = "listSessionHistory",
    params(
        ("businessId" = String, Path, description = "The id of the business."),
        ("userId" = String, Path, description = "The id of the user."),
        ("limit" = Option<u64>, Query, description = "Maximum number of sessions on the page; default 20.",
            minimum = 1, maximum = 100, nullable = false),
        ("cursor" = Option<String>, Query, description = "Start of the page, from a `Link` header of this list.",
            nullable = false),
        ("include" = Option<Included>, Query, description = "Members to add to each session.", nullable = false),
    ),
    responses(
        (status = 200, description = "A page of sessions.", body = [Session],
            headers(("Link" = String, description = "`rel=\"next\"`: the next page, if there is one."))),
        ListProblems,
    ),
)]
async fn list_history(
    State(app): State<Arc<AppState>>,
    caller: Principal,
    user: PathUser,
    uri: Uri,
    query: Query,
) -> Result<Response, ApiError> {
    let list = ListId::history(&user.business_id, &user.user_id);
    let query = PageQuery::read(query, list, HISTORY_LIMIT_DEFAULT)?;
    let request = query.request(caller.response_owner());
    let page = app.store.list_history(&user.business_id, &user.user_id, request, app.now()).await?;
    let mut response =
        page_response(page.sessions, SessionView::json_bytes, SessionView::write_json, page.memory).await;
    if let Some(link) = page.next.and_then(|next| query.link(&uri, list, next)) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

/// The result of erasing a user.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({"deletedSessions": 2}))]
struct ErasedUser {
    /// Number of deleted sessions.
    deleted_sessions: u64,
}

problems! {
    /// The errors of erasing a user.
    EraseProblems { InvalidRequest }
}

/// Erase a user
///
/// Deletes every session and message of the user.
#[utoipa::path(
    delete, path = "/api/sessions/business/{businessId}/user/{userId}", tag = "businesses", operation_id = "eraseUser",
    params(
        ("businessId" = String, Path, description = "The id of the business."),
        ("userId" = String, Path, description = "The id of the user."),
    ),
    responses((status = 200, description = "All data of the user is deleted.", body = ErasedUser), EraseProblems),
)]
async fn erase_user(State(app): State<Arc<AppState>>, user: PathUser) -> Result<Response, ApiError> {
    let deleted_sessions = app.store.erase_user(&user.business_id, &user.user_id, app.now()).await?;
    Ok(Json(ErasedUser { deleted_sessions }).into_response())
}
