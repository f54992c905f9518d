//! Error responses. Errors of all layers have the same format (`docs/api.md`, "Errors").

use std::borrow::Cow;
use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder, response::Response as ApiResponse};

use crate::metrics;
use crate::session::SessionId;
use crate::store::StoreError;

/// The `Retry-After` of a `503`, in seconds.
const RETRY_AFTER_SECS: &str = "1";

const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
/// Maximum number of field problems in one response. Without a limit, a small request could cause a large response.
const PROBLEMS_MAX: usize = 20;
/// Maximum number of characters of a client's text that a response repeats.
const ECHOED_CHARS_MAX: usize = 64;

/// A client's own text, cut after [`ECHOED_CHARS_MAX`] characters.
pub(super) fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(ECHOED_CHARS_MAX) {
        Some((end, _)) => Cow::Owned(format!("{}...", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// Defines the error codes: variant, status, text of the code, and when the service responds with it.
macro_rules! codes {
    ($($variant:ident $status:ident $word:literal $when:literal,)+) => {
        /// What went wrong, in machine-readable form. Each code belongs to one status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Code {
            $(#[doc = $when] $variant,)+
        }

        impl Code {
            /// Every code.
            pub(super) const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The status of responses with this code.
            #[must_use]
            pub(super) fn status(self) -> StatusCode {
                match self {
                    $(Self::$variant => StatusCode::$status,)+
                }
            }

            /// The code as sent to clients.
            #[must_use]
            pub(super) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// When the service responds with this code.
            #[must_use]
            pub(super) fn when(self) -> &'static str {
                match self {
                    $(Self::$variant => $when,)+
                }
            }
        }
    };
}

codes! {
    InvalidRequest BAD_REQUEST "invalid_request"
        "malformed JSON, a wrong type, an unknown or missing field, an invalid query",
    Unauthorized UNAUTHORIZED "unauthorized" "the credential is missing or invalid",
    Forbidden FORBIDDEN "forbidden" "the credential lacks the scope, or has no access to this business, user or role",
    SessionNotFound NOT_FOUND "session_not_found" "the session does not exist",
    NoActiveSession NOT_FOUND "no_active_session" "the user has no active session",
    MessageNotFound NOT_FOUND "message_not_found" "the session has no message with this id",
    TurnNotFound NOT_FOUND "turn_not_found" "the session has had no turn with this id",
    RouteNotFound NOT_FOUND "route_not_found" "the path does not exist",
    MethodNotAllowed METHOD_NOT_ALLOWED "method_not_allowed"
        "the path does not support this method; `Allow` lists its methods",
    RequestTimeout REQUEST_TIMEOUT "request_timeout" "the request's body did not arrive in time",
    SessionNotActive CONFLICT "session_not_active"
        "messages can be appended, and turns begun, only in an active session",
    AnotherSessionActive CONFLICT "another_session_active" "the user has another active session, `activeSessionId`",
    MessageIdConflict CONFLICT "message_id_conflict" "the session has a message with this id and different content",
    TurnOpen CONFLICT "turn_open" "the session has an open turn, `openTurnId`, until its lease ends at `leaseUntil`",
    TurnClosed CONFLICT "turn_closed" "the turn is closed, or another writer has it; `turnStatus` says which",
    ChunkGap CONFLICT "chunk_gap" "the turn has fewer chunks than `from` says; its next one is `nextChunk`",
    ChunkConflict CONFLICT "chunk_conflict" "the turn has another chunk with one of these numbers",
    ConcurrentUpdate CONFLICT "concurrent_update"
        "concurrent changes repeatedly prevented the update; nothing was changed",
    VersionMismatch PRECONDITION_FAILED "version_mismatch" "`If-Match` does not name the current version",
    PayloadTooLarge PAYLOAD_TOO_LARGE "payload_too_large" "the body is larger than the limit",
    UriTooLong URI_TOO_LONG "uri_too_long" "the path and query are longer than the limit",
    HeadersTooLarge REQUEST_HEADER_FIELDS_TOO_LARGE "headers_too_large"
        "the headers exceed the limit on their size or number",
    UnsupportedMediaType UNSUPPORTED_MEDIA_TYPE "unsupported_media_type" "the body is not declared as JSON in UTF-8",
    RateLimited TOO_MANY_REQUESTS "rate_limited" "the credential, or its user, exceeds its rate limit",
    Internal INTERNAL_SERVER_ERROR "internal" "a bug; the log has the cause under `requestId`",
    Overloaded SERVICE_UNAVAILABLE "overloaded"
        "too many concurrent requests, or too many connections, in total or from one address",
    StoreUnavailable SERVICE_UNAVAILABLE "store_unavailable"
        "the store does not respond; a write may have been applied",
    StoreFull SERVICE_UNAVAILABLE "store_full" "the store accepts no more writes; reads and deletes work",
    StoreBusy SERVICE_UNAVAILABLE "store_busy" "the store is busy",
    ClockSkew SERVICE_UNAVAILABLE "clock_skew"
        "the clocks of the service and the store differ too much; reads and deletes work",
}

/// A problem with one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct FieldProblem {
    /// The member of the body (`[2].role` in an array), query parameter, path parameter or header.
    pub field: String,
    /// What is wrong with the field.
    pub message: String,
}

/// The members that only errors with one code have, see [`Problem`].
#[derive(Clone, Debug, Default)]
pub(super) struct ProblemMembers {
    pub(super) active_session_id: Option<String>,
    pub(super) open_turn_id: Option<String>,
    pub(super) lease_until: Option<String>,
    pub(super) turn_status: Option<&'static str>,
    pub(super) next_chunk: Option<u64>,
}

/// An error that becomes a response. [`finish`] adds the request id and writes the body.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    code: Code,
    detail: Cow<'static, str>,
    errors: Vec<FieldProblem>,
    members: Box<ProblemMembers>,
    /// Headers that only this response has.
    // Boxed to keep results small: few errors have any.
    headers: Option<Box<HeaderMap>>,
    /// The cause, for the log. It is not sent to the client.
    cause: Option<String>,
}

impl ApiError {
    /// An error with a human-readable text.
    pub(super) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), members: Box::default(), headers: None, cause: None }
    }

    /// A `401` or `403` with a `Bearer` challenge (RFC 6750), to which `parameters` are appended.
    pub(super) fn challenge(code: Code, detail: impl Into<Cow<'static, str>>, parameters: &str) -> Self {
        let mut error = Self::new(code, detail);
        if let Ok(challenge) = HeaderValue::from_str(&format!("Bearer realm=\"sessiond\"{parameters}")) {
            error.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        error
    }

    /// A `429` with `Retry-After`.
    pub(super) fn rate_limited(retry_after_secs: u64) -> Self {
        let detail =
            format!("Too many requests with this credential, or of this user; try again after {retry_after_secs} s");
        let mut error = Self::new(Code::RateLimited, detail);
        error.headers_mut().insert(header::RETRY_AFTER, retry_after_secs.into());
        error
    }

    /// Headers that only this response has.
    pub(super) fn headers_mut(&mut self) -> &mut HeaderMap {
        self.headers.get_or_insert_default()
    }

    /// A `400` that lists the problems of several fields.
    #[must_use]
    pub(super) fn fields(mut errors: Vec<FieldProblem>) -> Self {
        let more = errors.len().saturating_sub(PROBLEMS_MAX);
        errors.truncate(PROBLEMS_MAX);
        let mut problems: Vec<_> = errors.iter().map(|error| format!("{} {}", error.field, error.message)).collect();
        if more > 0 {
            problems.push(format!("and {more} more"));
        }
        Self { errors, ..Self::new(Code::InvalidRequest, problems.join("; ")) }
    }

    /// A `400` for one field.
    pub(super) fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::fields(vec![FieldProblem { field: field.into(), message: message.into() }])
    }

    /// The `404` for a session.
    #[must_use]
    pub(super) fn session_not_found(id: &str) -> Self {
        Self::new(Code::SessionNotFound, format!("Session {} not found", shortened(id)))
    }

    /// The `404` for a message.
    #[must_use]
    pub(super) fn message_not_found(id: &str) -> Self {
        Self::new(Code::MessageNotFound, format!("Message {} not found", shortened(id)))
    }

    /// The `404` for a turn.
    #[must_use]
    pub(super) fn turn_not_found(id: &str) -> Self {
        Self::new(Code::TurnNotFound, format!("Turn {} not found", shortened(id)))
    }

    /// The `400` for a merge patch after which the metadata would be too large.
    #[must_use]
    pub(super) fn metadata_too_large(bytes_max: usize) -> Self {
        Self::field("metadata", format!("must have at most {bytes_max} bytes as JSON after the merge"))
    }

    /// The `409` that names the user's active session.
    #[must_use]
    pub(super) fn another_session_active(active: SessionId) -> Self {
        let detail = "The user has another active session; end it, or send \"ifActive\":\"replace\" to end it now";
        let members = ProblemMembers { active_session_id: Some(active.to_string()), ..ProblemMembers::default() };
        Self::new(Code::AnotherSessionActive, detail).with_members(members)
    }

    /// Sets members that only this error has.
    #[must_use]
    pub(super) fn with_members(self, members: ProblemMembers) -> Self {
        Self { members: Box::new(members), ..self }
    }

    /// A `500`. The client gets a fixed text, and the log gets the cause.
    pub(super) fn internal(cause: impl Into<String>) -> Self {
        let detail = "Internal error of the service; its log has the cause under the request id";
        Self { cause: Some(cause.into()), ..Self::new(Code::Internal, detail) }
    }

    /// Sets the cause, which is logged and not sent to the client.
    #[must_use]
    pub(super) fn caused_by(self, cause: impl Into<String>) -> Self {
        Self { cause: Some(cause.into()), ..self }
    }

    /// The error for a response to which a layer gave only a status. `None` if the status is not an error.
    fn of_bare_status(status: StatusCode) -> Option<Self> {
        Some(match status {
            StatusCode::NOT_FOUND => Self::new(Code::RouteNotFound, "This path does not exist"),
            StatusCode::METHOD_NOT_ALLOWED => Self::new(
                Code::MethodNotAllowed,
                "This path does not support this method; the header Allow lists its methods",
            ),
            StatusCode::URI_TOO_LONG => Self::new(Code::UriTooLong, "The path and query are too long"),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                Self::new(Code::HeadersTooLarge, "The path, query and headers exceed the limit on their size or number")
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                Self::new(Code::Overloaded, "There are too many connections, in total or from this address; try again")
            }
            _ if status.is_client_error() => {
                Self::new(Code::InvalidRequest, "The request is not valid HTTP/1.1, which this service parses strictly")
            }
            _ if status.is_server_error() => Self::internal(format!("a layer responded with {status}")),
            _ => return None,
        })
    }

    fn body(&self, request_id: &str) -> Vec<u8> {
        let title = self.code.status().canonical_reason().unwrap_or_default();
        let problem = Problem {
            r#type: "about:blank",
            title,
            status: self.code.status().as_u16(),
            detail: &self.detail,
            code: self.code.as_str(),
            request_id,
            errors: &self.errors,
            active_session_id: self.members.active_session_id.as_deref(),
            open_turn_id: self.members.open_turn_id.as_deref(),
            lease_until: self.members.lease_until.as_deref(),
            turn_status: self.members.turn_status,
            next_chunk: self.members.next_chunk,
            status_code: self.code.status().as_u16(),
            message: &self.detail,
            error: title,
        };
        // Strings and numbers always serialise.
        serde_json::to_vec(&problem).unwrap_or_default()
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let (code, detail) = match &error {
            StoreError::Unavailable(_) => (
                Code::StoreUnavailable,
                "The store does not respond; try again. A write may have been applied; all calls can be repeated",
            ),
            StoreError::NotServing(code, _) => {
                let detail = format!("The store cannot serve requests now ({code}); nothing was changed, try again");
                return Self::new(Code::StoreUnavailable, detail).caused_by(error.to_string());
            }
            StoreError::Layout(_) => (Code::StoreUnavailable, "The store belongs to another version of the service"),
            StoreError::UnsupportedServer { problem, .. } => {
                let detail = format!("The store is not set up for sessions: it {problem}");
                return Self::new(Code::StoreUnavailable, detail).caused_by(error.to_string());
            }
            StoreError::ClockSkew { difference, .. } => {
                let detail = format!(
                    "The service's clock is {difference} the store's: nothing was changed; reads and deletes still work"
                );
                return Self::new(Code::ClockSkew, detail).caused_by(error.to_string());
            }
            StoreError::Full(_) => (Code::StoreFull, "The store is full; reads and deletes still work"),
            StoreError::Busy(_) => (Code::StoreBusy, "The store is busy; try again"),
            StoreError::ResponseMemory => {
                metrics::request_shed();
                (Code::Overloaded, "Too many large responses are in progress; try again, or request smaller pages")
            }
            StoreError::Rejected(_) | StoreError::Reply { .. } | StoreError::Random(_) => {
                return Self::internal(error.to_string());
            }
        };
        Self { cause: Some(error.to_string()), ..Self::new(code, detail) }
    }
}

impl IntoResponse for ApiError {
    /// An empty response that carries the error. [`finish`] writes the body.
    fn into_response(mut self) -> Response {
        let mut response = self.code.status().into_response();
        if self.code.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECS));
        }
        if let Some(headers) = self.headers.take() {
            response.headers_mut().extend(*headers);
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// The headers and body of the error response to a request that never reaches the router.
pub(super) fn of_status(status: StatusCode, request_id: &str) -> (HeaderMap, Vec<u8>) {
    let error = ApiError::of_bare_status(status).unwrap_or_else(|| ApiError::internal("the status is not an error"));
    let body = error.body(request_id);
    let mut headers = std::mem::take(error.into_response().headers_mut());
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, PROBLEM);
    (headers, body)
}

/// Writes the body of an error response, whether a handler or another layer made it. Returns the code and cause, for
/// the log.
pub(super) fn finish(response: &mut Response, request_id: &str) -> Option<(Code, Option<String>)> {
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        None => ApiError::of_bare_status(response.status())?,
    };
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, PROBLEM);
    *response.status_mut() = error.code.status();
    *response.body_mut() = Body::from(error.body(request_id));
    Some((error.code, error.cause))
}

/// An error response: the members of RFC 9457, those of this service, and three that `NestJS` clients read.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = problem_example)]
pub(super) struct Problem<'a> {
    /// Always `about:blank`; `code` identifies the error.
    #[schema(pattern = "^about:blank$")]
    r#type: &'a str,
    /// The reason phrase of the status.
    title: &'a str,
    /// The status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What went wrong, in human-readable form.
    detail: &'a str,
    /// What went wrong, in machine-readable form.
    #[schema(schema_with = code_schema)]
    code: &'a str,
    /// The `X-Request-Id` of the response, which is also in the log.
    #[schema(min_length = 1, max_length = 128)]
    request_id: &'a str,
    /// The invalid fields of the request, if it has any.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    errors: &'a [FieldProblem],
    /// The user's active session, which prevents a resume (`another_session_active`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = String, format = Uuid, required = false)]
    active_session_id: Option<&'a str>,
    /// The open turn (`turn_open`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, required = false)]
    open_turn_id: Option<&'a str>,
    /// When the lease of the open turn ends (`turn_open`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = String, format = DateTime, required = false)]
    lease_until: Option<&'a str>,
    /// How the turn ended; `taken` if another writer has it (`turn_closed`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, required = false)]
    turn_status: Option<&'a str>,
    /// How many chunks the turn has (`chunk_gap`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, required = false)]
    next_chunk: Option<u64>,
    /// The same as `status`, for `NestJS` clients.
    #[schema(minimum = 400, maximum = 599)]
    status_code: u16,
    /// The same as `detail`, for `NestJS` clients.
    message: &'a str,
    /// The same as `title`, for `NestJS` clients.
    error: &'a str,
}

fn problem_example() -> serde_json::Value {
    serde_json::json!({
        "type": "about:blank", "title": "Not Found", "status": 404,
        "detail": "Session f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e not found", "code": "session_not_found",
        "requestId": "0b8e0a52-2a3f-4d3c-8f0a-6a4f6f1f7a11", "statusCode": 404,
        "message": "Session f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e not found", "error": "Not Found",
    })
}

fn code_schema() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("What went wrong, in machine-readable form. Each code belongs to one status."))
        .enum_values(Some(Code::ALL.iter().map(|code| code.as_str())))
        .build()
}

/// The documentation of the error responses with these codes, one response per status.
pub(super) fn documented(codes: &[Code]) -> BTreeMap<String, RefOr<ApiResponse>> {
    let mut by_status = BTreeMap::<String, Vec<Code>>::new();
    for &code in codes {
        by_status.entry(code.status().as_u16().to_string()).or_default().push(code);
    }
    let response = |codes: Vec<Code>| {
        let lines: Vec<_> = codes.iter().map(|code| format!("`{}`: {}", code.as_str(), code.when())).collect();
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let mut response =
            ResponseBuilder::new().description(lines.join("; ")).content("application/problem+json", content);
        let retryable = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS];
        if codes.iter().any(|code| retryable.contains(&code.status())) {
            let seconds = HeaderBuilder::new()
                .schema(Some(Object::with_type(Type::Integer)))
                .description(Some("Seconds to wait before a retry."))
                .build();
            response = response.header("Retry-After", seconds);
        }
        if codes.iter().any(|code| [Code::Unauthorized, Code::Forbidden].contains(code)) {
            let challenge = HeaderBuilder::new()
                .schema(Some(Object::with_type(Type::String)))
                .description(Some("The credential that is required (RFC 6750)."));
            response = response.header("WWW-Authenticate", challenge.build());
        }
        RefOr::T(response.build())
    };
    by_status.into_iter().map(|(status, codes)| (status, response(codes))).collect()
}

/// Declares a type that documents the error responses of an operation. The macro adds the codes that every operation
/// can respond with.
macro_rules! problems {
    ($(#[$doc:meta])* $name:ident { $($code:ident),* $(,)? }) => {
        $(#[$doc])*
        struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses() -> std::collections::BTreeMap<
                String,
                utoipa::openapi::RefOr<utoipa::openapi::response::Response>,
            > {
                $crate::http::error::documented(&[
                    $($crate::http::error::Code::$code,)*
                    $crate::http::error::Code::UriTooLong,
                    $crate::http::error::Code::HeadersTooLarge,
                    $crate::http::error::Code::Internal,
                    $crate::http::error::Code::Overloaded,
                    $crate::http::error::Code::StoreUnavailable,
                    $crate::http::error::Code::StoreBusy,
                ])
            }
        }
    };
}
pub(super) use problems;
