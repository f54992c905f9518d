//! Authentication and authorisation. Runs before any handler, and before the service keeps any part of the body.
//!
//! Access is denied by default: a route needs a credential unless it is listed here, and its method and path determine
//! the scope that it needs. A handler of one session passes [`Principal::tenant_scope`] to the store, whose operations
//! require it.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request};
use axum::http::request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use percent_encoding::percent_decode_str;

use super::error::{ApiError, Code};
use super::{ApiInner, AppState, console, docs};
use crate::auth::{AuthError, Credential, Fingerprint, Grant, Rate, Scope};
use crate::metrics;
use crate::session::{Role, TenantScope, Timestamp};
use crate::store::ResponseOwner;
use crate::streams::StreamCaller;

pub(super) const X_API_KEY: &str = "x-api-key";
pub(super) const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// Routes that need no credential: health checks for orchestrators and load balancers, and documents and pages for
/// clients that have no credential yet.
const PUBLIC: [&str; 3] = ["/livez", "/readyz", "/openapi.json"];
/// Routes that need a credential but none of its scopes, because they report the scopes.
const ANY_SCOPE: [&str; 1] = ["/api/whoami"];
/// Operations that need the scope `admin` instead of the scope for their method.
const ADMIN: [(Method, &str); 1] = [(Method::DELETE, "/api/sessions/business/{businessId}/user/{userId}")];
/// Path parameters, as named in the route templates.
const BUSINESS_ID: &str = "businessId";
const USER_ID: &str = "userId";

/// The credential that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Requirement {
    /// No credential.
    Public,
    /// A credential with any scopes, or with none.
    Credential,
    /// A credential with this scope.
    Scope(Scope),
}

/// The credential that a request needs. `route` is the route template, or `None` for a path without a route.
pub(super) fn requirement_of(method: &Method, route: Option<&str>) -> Requirement {
    let Some(route) = route else {
        // An unknown path needs a credential, like a protected route.
        return Requirement::Credential;
    };
    let is_page = docs::ROUTES.contains(&route) || console::ROUTES.contains(&route);
    if is_page || PUBLIC.contains(&route) {
        Requirement::Public
    } else if ANY_SCOPE.contains(&route) {
        Requirement::Credential
    } else if ADMIN.iter().any(|(admin, path)| (admin, *path) == (method, route)) {
        Requirement::Scope(Scope::Admin)
    } else if method.is_safe() {
        Requirement::Scope(Scope::Read)
    } else {
        Requirement::Scope(Scope::Write)
    }
}

/// The authenticated caller. Every request to a route that is not public has one.
pub(super) struct Principal(Arc<Grant>);

impl Principal {
    /// Whose sessions the caller may use.
    pub(super) fn tenant_scope(&self) -> &TenantScope {
        &self.0.tenant_scope
    }

    /// The roles of the messages that the caller may append and redact: `user_roles` with the token of one user;
    /// otherwise `None`, which means every role.
    pub(super) fn own_roles<'a>(&self, user_roles: &'a [Role]) -> Option<&'a [Role]> {
        self.is_one_user().then_some(user_roles)
    }

    /// Whether the caller has the token of one user.
    pub(super) fn is_one_user(&self) -> bool {
        matches!(self.tenant_scope(), TenantScope::User { .. })
    }

    /// The owner against whose share the memory of a large response counts.
    pub(super) fn response_owner(&self) -> ResponseOwner {
        let id = |fingerprint: Option<Fingerprint>| fingerprint.map(|fingerprint| fingerprint.0);
        ResponseOwner { credential: id(self.0.credential), user: id(self.0.subject) }
    }

    /// The caller, as a stream needs it to check the credential again.
    pub(super) fn stream_caller(&self, headers: &HeaderMap) -> StreamCaller {
        let credential = self.0.credential.and_then(|_| credential_of(headers));
        StreamCaller { grant: self.0.clone(), credential }
    }

    /// Whether the caller has this scope.
    pub(super) fn allows(&self, scope: Scope) -> bool {
        self.0.allows(scope)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Principal {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut request::Parts, _state: &S) -> Result<Self, ApiError> {
        let grant = parts.extensions.get::<Arc<Grant>>().cloned();
        grant.map(Self).ok_or_else(|| ApiError::internal("a public route has a handler that needs a principal"))
    }
}

/// The error for a business or user outside the caller's tenant scope, whether or not that business or user exists.
pub(super) fn forbidden_tenant() -> ApiError {
    metrics::credential_rejected("tenant");
    let detail = "The credential has no access to this business or user";
    ApiError::challenge(Code::Forbidden, detail, ", error=\"insufficient_scope\"")
}

/// The error for a message with a role that the token of one user may not use. `field` is the path of the role in the
/// body, and `limited_to` what such a token may do with `user_roles` only.
pub(super) fn forbidden_role(field: &str, role: Role, limited_to: &str, user_roles: &[Role]) -> ApiError {
    metrics::credential_rejected("role");
    let roles: Vec<_> = user_roles.iter().map(|role| role.as_str()).collect();
    let detail = format!(
        "{field} is {}, but the token of a user may {limited_to} these roles: {}; use an API key or a business token",
        role.as_str(),
        roles.join(", ")
    );
    ApiError::challenge(Code::Forbidden, detail, ", error=\"insufficient_scope\"")
}

/// The error for a token of one user that begins, writes or ends a turn.
pub(super) fn forbidden_writer() -> ApiError {
    metrics::credential_rejected("role");
    let detail = "The token of a user may read and cancel turns only; use an API key or a business token";
    ApiError::challenge(Code::Forbidden, detail, ", error=\"insufficient_scope\"")
}

/// An authorised request.
pub(super) struct Authorised {
    /// The grant of the credential; `None` on a public route.
    pub(super) grant: Option<Arc<Grant>>,
    /// The state of the rate limits that apply.
    pub(super) rates: Vec<Rate>,
}

/// Adds headers with the state of the rate limits (draft-ietf-httpapi-ratelimit-headers).
pub(super) fn add_rate_headers(rates: &[Rate], headers: &mut HeaderMap) {
    if rates.is_empty() {
        return;
    }
    let policy = rates.iter().map(|rate| format!("\"{}\";q={};w={}", rate.name, rate.burst, rate.window_secs));
    let remaining = rates.iter().map(|rate| format!("\"{}\";r={};t={}", rate.name, rate.remaining, rate.reset_secs));
    for (name, items) in [(RATELIMIT_POLICY, policy.collect::<Vec<_>>()), (RATELIMIT, remaining.collect())] {
        if let Ok(value) = HeaderValue::from_str(&items.join(", ")) {
            headers.insert(name, value);
        }
    }
}

/// Checks the credential, its rate limits, its scope, and the business and user of the path.
pub(super) fn authorise(api: &ApiInner, route: Option<&str>, request: &Request) -> Result<Authorised, ApiError> {
    let app = &api.app;
    let requirement = requirement_of(request.method(), route);
    if requirement == Requirement::Public {
        return Ok(Authorised { grant: None, rates: Vec::new() });
    }
    let grant = match app.credentials.anonymous() {
        Some(grant) => grant,
        None => authenticate(app, request.headers(), app.now())?,
    };
    let rates = app.rate_limits.take(&grant);
    if let Some(seconds) = rates.iter().find_map(|rate| rate.retry_after_secs) {
        metrics::credential_rejected("rate");
        let mut error = ApiError::rate_limited(seconds);
        add_rate_headers(&rates, error.headers_mut());
        return Err(error);
    }
    if let Requirement::Scope(scope) = requirement {
        if !grant.allows(scope) {
            metrics::credential_rejected("scope");
            let parameters = format!(", error=\"insufficient_scope\", scope=\"{}\"", scope.as_str());
            let detail = "The credential lacks the scope of this call";
            return Err(ApiError::challenge(Code::Forbidden, detail, &parameters));
        }
        if grant.tenant_scope != TenantScope::Everything && !is_within(&grant.tenant_scope, api, request.uri().path()) {
            return Err(forbidden_tenant());
        }
    }
    Ok(Authorised { grant: Some(grant), rates })
}

/// Whether the business and user of the path, if it has them, are within the tenant scope.
fn is_within(scope: &TenantScope, api: &ApiInner, path: &str) -> bool {
    let values = api.routes.parameters(path, [BUSINESS_ID, USER_ID]);
    let values = values.map(|value| value.map(|value| percent_decode_str(value).decode_utf8()));
    match &values {
        [None, None] => true,
        [Some(Ok(business_id)), None] => scope.contains_business(business_id),
        [Some(Ok(business_id)), Some(Ok(user_id))] => scope.contains_user(business_id, user_id),
        // A value that is not UTF-8 is outside every tenant scope.
        _ => false,
    }
}

/// Checks the only credential of a request. If there is an API key, an `Authorization` header with another scheme than
/// Bearer is ignored: it is meant for a proxy in front of the service, for example one that requires Basic.
fn authenticate(app: &AppState, headers: &HeaderMap, now: Timestamp) -> Result<Arc<Grant>, ApiError> {
    let reject = |reason, detail, parameters| {
        metrics::credential_rejected(reason);
        Err(ApiError::challenge(Code::Unauthorized, detail, parameters))
    };
    let mut api_keys = headers.get_all(X_API_KEY).iter();
    let api_key = api_keys.next();
    let is_credential = |value: &&HeaderValue| api_key.is_none() || is_bearer(value.as_bytes());
    let mut bearers = headers.get_all(header::AUTHORIZATION).iter().filter(is_credential);
    let checked = match (bearers.next(), api_key, bearers.next().or(api_keys.next())) {
        (None, None, _) => {
            let detail = "This call needs a credential: Authorization: Bearer <credential>, or X-API-Key: <credential>";
            return reject("missing", detail, "");
        }
        (Some(value), None, None) => match bearer(value.as_bytes()) {
            Some(credential) => app.credentials.of_bearer(credential, now),
            None => return reject("invalid", "The header Authorization must be: Bearer <credential>", ""),
        },
        (None, Some(value), None) => {
            let credential = value.to_str().map_err(|_| AuthError::Invalid);
            credential.and_then(|credential| app.credentials.of_api_key(credential.trim(), now))
        }
        _ => {
            let detail = "The request has more than one credential; send one Authorization: Bearer, or one X-API-Key";
            return reject("several", detail, ", error=\"invalid_token\"");
        }
    };
    match checked {
        Ok(grant) => {
            if let Some(credential) = grant.credential {
                tracing::debug!(%credential, "authenticated");
            }
            Ok(grant)
        }
        Err(AuthError::Invalid) => reject("invalid", "The credential is not valid", ", error=\"invalid_token\""),
        Err(AuthError::Expired) => reject("expired", "The credential has expired", ", error=\"invalid_token\""),
    }
}

/// The credential of a request that was authenticated.
fn credential_of(headers: &HeaderMap) -> Option<Credential> {
    if let Some(api_key) = headers.get(X_API_KEY) {
        return Some(Credential::ApiKey(api_key.to_str().ok()?.trim().to_owned()));
    }
    Some(Credential::Bearer(bearer(headers.get(header::AUTHORIZATION)?.as_bytes())?.to_owned()))
}

/// Whether the scheme of an `Authorization` header is Bearer. Schemes are case-insensitive (RFC 9110, section 11.1).
fn is_bearer(value: &[u8]) -> bool {
    value.split(u8::is_ascii_whitespace).next().is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer"))
}

/// The credential of an `Authorization: Bearer` header.
fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, credential) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    let credential = credential.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !credential.is_empty()).then_some(credential)
}
