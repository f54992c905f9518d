//! Who calls, and may they? Asked before any handler, and before anything of the body is kept.
//!
//! Denied by default: a route is protected unless it is named here, and what it needs follows from its method and its path.
//! A handler that looks at one session asks the store with [`Caller::reach`], and cannot do without.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request};
use axum::http::request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;

use super::error::{ApiError, Code};
use super::extract::discard;
use super::routes::Routes;
use super::{App, Parts, serve};
use crate::auth::{Access, Fingerprint, Rate, Refusal, Scope};
use crate::metrics;
use crate::session::{Reach, Role, Timestamp};
use crate::store::ResponseOwner;

pub(super) const X_API_KEY: &str = "x-api-key";
pub(super) const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// What needs no credential: health for those who restart and route, documentation for those who have no credential yet.
const PUBLIC: [&str; 5] = ["/livez", "/readyz", "/openapi.json", "/docs", "/docs/{file}"];
/// What needs a credential, and none of its scopes: it says what they are.
const ANY_SCOPE: [&str; 1] = ["/api/whoami"];
/// What needs more than its method says.
const ADMIN: [(Method, &str); 1] = [(Method::DELETE, "/api/sessions/business/{businessId}/user/{userId}")];
/// Names of path parameters, as routes have them.
const BUSINESS_ID: &str = "businessId";
const USER_ID: &str = "userId";

/// What a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing: it is public.
    Nothing,
    /// A credential, whatever its scopes.
    Credential,
    /// A credential with this scope.
    Scope(Scope),
}

/// What a call needs. `route` is the router's template.
pub(super) fn need_of(method: &Method, route: Option<&str>) -> Need {
    let Some(route) = route else {
        // A path that does not exist.
        return Need::Credential;
    };
    if PUBLIC.contains(&route) {
        Need::Nothing
    } else if ANY_SCOPE.contains(&route) {
        Need::Credential
    } else if ADMIN.iter().any(|(admin, path)| (admin, *path) == (method, route)) {
        Need::Scope(Scope::Admin)
    } else if method.is_safe() {
        Need::Scope(Scope::Read)
    } else {
        Need::Scope(Scope::Write)
    }
}

/// Who calls. Every request that reaches a handler has one.
pub(super) struct Caller(Arc<Access>);

impl Caller {
    /// Whose sessions the caller may reach.
    pub(super) fn reach(&self) -> &Reach {
        &self.0.reach
    }

    /// Who the memory of a large response is counted for.
    pub(super) fn response_owner(&self) -> ResponseOwner {
        let id = |fingerprint: Option<Fingerprint>| fingerprint.map(|fingerprint| fingerprint.0);
        ResponseOwner { credential: id(self.0.credential), user: id(self.0.subject) }
    }

    /// Whether the caller has this scope.
    pub(super) fn allows(&self, scope: Scope) -> bool {
        self.0.allows(scope)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut request::Parts, _state: &S) -> Result<Self, ApiError> {
        let access = parts.extensions.get::<Arc<Access>>().cloned();
        access.map(Self).ok_or_else(|| ApiError::internal("a protected handler on a public route"))
    }
}

/// The answer to a call that names a business or user outside of the credential's reach, whether or not there is anything.
pub(super) fn outside() -> ApiError {
    metrics::credential_refused("reach");
    let detail = "The credential does not reach this business or user";
    ApiError::challenge(Code::Forbidden, detail, ", error=\"insufficient_scope\"")
}

/// The answer to a token of one user that appends a message of a role which is not for users. `field` is the message's
/// role.
pub(super) fn not_for_users(field: &str, role: Role, user_roles: &[Role]) -> ApiError {
    metrics::credential_refused("role");
    let roles: Vec<_> = user_roles.iter().map(|role| role.as_str()).collect();
    let detail = format!(
        "{field} is {}, and the token of a user appends messages of {} only; use an API key or a token of the business",
        role.as_str(),
        roles.join(", ")
    );
    ApiError::challenge(Code::Forbidden, detail, ", error=\"insufficient_scope\"")
}

/// Has a request served if its credential is good for it.
pub(super) async fn authorised(parts: &Parts, route: Option<&str>, request: &mut Request) -> Response {
    let app = &parts.app;
    let mut rates = Vec::new();
    let mut response = match admit(parts, route, request, &mut rates) {
        Ok(access) => {
            if let Some(access) = access {
                request.extensions_mut().insert(access);
            }
            serve(parts, route, request).await.unwrap_or_else(IntoResponse::into_response)
        }
        Err(refused) => refuse(app, request, refused).await,
    };
    // Not with other refusals: a foreign session's answer is a missing one's, byte for byte.
    let tells = [StatusCode::NOT_MODIFIED, StatusCode::TOO_MANY_REQUESTS];
    if response.status().is_success() || tells.contains(&response.status()) {
        tell_rates(&rates, response.headers_mut());
    }
    response
}

/// Refuses a request before its body is kept: reads the body and forgets it, so that the client gets to the answer.
pub(super) async fn refuse(app: &App, request: &mut Request, refused: ApiError) -> Response {
    let body = std::mem::take(request.body_mut());
    let discarded = discard(request.headers(), body, app.body_bytes_max);
    // Whether all of it came or not: the answer is the same.
    let _ = tokio::time::timeout(app.body_timeout, discarded).await;
    refused.into_response()
}

/// Tells the caller what it may still call (draft-ietf-httpapi-ratelimit-headers).
fn tell_rates(rates: &[Rate], headers: &mut HeaderMap) {
    if rates.is_empty() {
        return;
    }
    let policy = rates.iter().map(|rate| format!("\"{}\";q={};w={}", rate.name, rate.burst, rate.window_secs));
    let left = rates.iter().map(|rate| format!("\"{}\";r={};t={}", rate.name, rate.remaining, rate.reset_secs));
    for (name, items) in [(RATELIMIT_POLICY, policy.collect::<Vec<_>>()), (RATELIMIT, left.collect())] {
        if let Ok(value) = HeaderValue::from_str(&items.join(", ")) {
            headers.insert(name, value);
        }
    }
}

/// What the caller may do, or `None` if the route is public; and what it may still call.
fn admit(
    parts: &Parts,
    route: Option<&str>,
    request: &Request,
    rates: &mut Vec<Rate>,
) -> Result<Option<Arc<Access>>, ApiError> {
    let app = &parts.app;
    let need = need_of(request.method(), route);
    if need == Need::Nothing {
        return Ok(None);
    }
    let access = match app.credentials.of_anybody() {
        Some(access) => access,
        None => authenticate(app, request.headers(), app.now())?,
    };
    *rates = app.rate_limits.take(&access);
    if let Some(seconds) = rates.iter().find_map(|rate| rate.retry_after_secs) {
        metrics::credential_refused("rate");
        return Err(ApiError::rate_limited(seconds));
    }
    if let Need::Scope(scope) = need {
        if !access.allows(scope) {
            metrics::credential_refused("scope");
            let parameters = format!(", error=\"insufficient_scope\", scope=\"{}\"", scope.as_str());
            return Err(ApiError::challenge(
                Code::Forbidden,
                "The credential lacks the scope of this call",
                &parameters,
            ));
        }
        if access.reach != Reach::Everything && !is_within(&access.reach, &parts.routes, request.uri().path()) {
            return Err(outside());
        }
    }
    Ok(Some(access))
}

/// Whether the business and user of the path, if it has them, are within a bounded reach.
fn is_within(reach: &Reach, routes: &Routes, path: &str) -> bool {
    let values = [BUSINESS_ID, USER_ID].map(|name| {
        let value = routes.parameter(path, name)?;
        Some(percent_decode_str(value).decode_utf8())
    });
    match &values {
        [None, None] => true,
        [Some(Ok(business_id)), None] => reach.admits_business(business_id),
        [Some(Ok(business_id)), Some(Ok(user_id))] => reach.admits_user(business_id, user_id),
        // What is not text is in nobody's reach.
        _ => false,
    }
}

/// Checks the one credential of a request. Beside an API key, an `Authorization` of another scheme than Bearer is
/// ignored: it is for a proxy in front, such as one that asks for Basic.
fn authenticate(app: &App, headers: &HeaderMap, now: Timestamp) -> Result<Arc<Access>, ApiError> {
    let refused = |reason, detail, parameters| {
        metrics::credential_refused(reason);
        Err(ApiError::challenge(Code::Unauthorized, detail, parameters))
    };
    let mut api_keys = headers.get_all(X_API_KEY).iter();
    let api_key = api_keys.next();
    let is_ours = |value: &&HeaderValue| api_key.is_none() || is_bearer(value.as_bytes());
    let mut bearers = headers.get_all(header::AUTHORIZATION).iter().filter(is_ours);
    let checked = match (bearers.next(), api_key, bearers.next().or(api_keys.next())) {
        (None, None, _) => {
            let detail = "This call needs a credential: Authorization: Bearer <credential>, or X-API-Key: <credential>";
            return refused("missing", detail, "");
        }
        (Some(value), None, None) => match bearer(value.as_bytes()) {
            Some(credential) => app.credentials.of_bearer(credential, now),
            None => return refused("invalid", "The header Authorization must be: Bearer <credential>", ""),
        },
        (None, Some(value), None) => {
            let credential = value.to_str().map_err(|_| Refusal::Invalid);
            credential.and_then(|credential| app.credentials.of_api_key(credential.trim(), now))
        }
        _ => {
            let detail = "The request has more than one credential; send one Authorization: Bearer, or one X-API-Key";
            return refused("several", detail, ", error=\"invalid_token\"");
        }
    };
    match checked {
        Ok(access) => {
            if let Some(credential) = access.credential {
                tracing::debug!(%credential, "admitted");
            }
            Ok(access)
        }
        Err(Refusal::Invalid) => refused("invalid", "The credential is not valid", ", error=\"invalid_token\""),
        Err(Refusal::Expired) => refused("expired", "The credential has expired", ", error=\"invalid_token\""),
    }
}

/// Whether the scheme of an `Authorization` header is Bearer, whatever follows it. Schemes are the same in lower- and
/// upper-case (RFC 9110, 11.1).
fn is_bearer(value: &[u8]) -> bool {
    value.split(u8::is_ascii_whitespace).next().is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer"))
}

/// The credential of an `Authorization: Bearer` header.
fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, credential) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    let credential = credential.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !credential.is_empty()).then_some(credential)
}
