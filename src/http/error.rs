//! Every error answer, from whatever layer, in the one shape of the contract (1.4).

use std::borrow::Cow;
use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder, response::Response as ApiResponse};

use crate::metrics;
use crate::session::SessionId;
use crate::store::StoreError;

/// How long a client should wait before it tries again, in seconds, after a `503`.
const RETRY_AFTER_SECS: &str = "1";

const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
/// How many problems one answer tells, so that no small request gets a large answer.
const PROBLEMS_MAX: usize = 20;
/// How much of a client's own text an answer repeats, in characters.
const REPEATED_CHARS_MAX: usize = 64;

/// A client's own text, cut where it is long.
pub(super) fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(REPEATED_CHARS_MAX) {
        Some((end, _)) => Cow::Owned(format!("{}...", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// Makes the table of error codes: variant, status, the code's word, and when it is answered.
macro_rules! codes {
    ($($variant:ident $status:ident $word:literal $when:literal,)+) => {
        /// What went wrong, for programs. Each code belongs to one status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Code {
            $(#[doc = $when] $variant,)+
        }

        impl Code {
            /// Every code.
            pub(super) const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The code's status.
            #[must_use]
            pub(super) fn status(self) -> StatusCode {
                match self {
                    $(Self::$variant => StatusCode::$status,)+
                }
            }

            /// The code as clients see it.
            #[must_use]
            pub(super) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// When it is answered.
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
    InvalidRequest BAD_REQUEST "invalid_request" "malformed JSON, a wrong type, an unknown or missing field, a bad query",
    Unauthorized UNAUTHORIZED "unauthorized" "there is no credential, or one that is not good",
    Forbidden FORBIDDEN "forbidden" "the credential lacks the scope, does not reach this business or user, or may not use this role",
    SessionNotFound NOT_FOUND "session_not_found" "there is no such session",
    NoActiveSession NOT_FOUND "no_active_session" "the user has no active session",
    RouteNotFound NOT_FOUND "route_not_found" "the service has no such path",
    MethodNotAllowed METHOD_NOT_ALLOWED "method_not_allowed" "the path has no such method; `Allow` lists those it has",
    RequestTimeout REQUEST_TIMEOUT "request_timeout" "the request's body did not arrive in time",
    SessionNotActive CONFLICT "session_not_active" "messages can be appended to an active session only",
    AnotherSessionActive CONFLICT "another_session_active" "the user has another active session, `activeSessionId`",
    MessageIdConflict CONFLICT "message_id_conflict" "the session has a message with this id and other content",
    ConcurrentUpdate CONFLICT "concurrent_update" "other changes came in between, again and again; nothing was changed",
    VersionMismatch PRECONDITION_FAILED "version_mismatch" "`If-Match` does not name the current version",
    PayloadTooLarge PAYLOAD_TOO_LARGE "payload_too_large" "the body is larger than the limit",
    UriTooLong URI_TOO_LONG "uri_too_long" "the path and query are longer than the limit",
    HeadersTooLarge REQUEST_HEADER_FIELDS_TOO_LARGE "headers_too_large" "the headers are larger, or more, than the limit",
    UnsupportedMediaType UNSUPPORTED_MEDIA_TYPE "unsupported_media_type" "the body is not declared as JSON in UTF-8",
    RateLimited TOO_MANY_REQUESTS "rate_limited" "the credential, or its user, calls more often than allowed",
    Internal INTERNAL_SERVER_ERROR "internal" "a bug; the log has its cause under `requestId`",
    Overloaded SERVICE_UNAVAILABLE "overloaded" "there are more requests at once than can be served in time, or too many connections, in total or from one address",
    StoreUnavailable SERVICE_UNAVAILABLE "store_unavailable" "the store does not answer; a write may have been applied",
    StoreFull SERVICE_UNAVAILABLE "store_full" "the store takes no more writes; reads and deletes work",
    StoreBusy SERVICE_UNAVAILABLE "store_busy" "the store is occupied",
    ClockSkew SERVICE_UNAVAILABLE "clock_skew" "the clocks of the service and of the store differ too much; reads and deletes work",
}

/// One problem of one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct FieldProblem {
    /// Where: a member of the body, `[2].role` for one of an array, or a parameter of the query.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// An error answer in the making. The outermost layer adds the request's id and writes the body.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    code: Code,
    detail: Cow<'static, str>,
    errors: Vec<FieldProblem>,
    active_session_id: Option<SessionId>,
    /// A header that only this answer has.
    header: Option<Box<(HeaderName, HeaderValue)>>,
    /// What the log is told and the client is not.
    cause: Option<String>,
}

impl ApiError {
    /// An error with a text for people.
    pub(super) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), active_session_id: None, header: None, cause: None }
    }

    /// A refusal for want of a credential: RFC 6750 says of `Bearer` what is wanted.
    pub(super) fn challenge(code: Code, detail: impl Into<Cow<'static, str>>, parameters: &str) -> Self {
        let challenge = HeaderValue::from_str(&format!("Bearer realm=\"sessiond\"{parameters}")).ok();
        let header = challenge.map(|challenge| Box::new((header::WWW_AUTHENTICATE, challenge)));
        Self { header, ..Self::new(code, detail) }
    }

    /// The `429`, which the client may try again after some time.
    pub(super) fn rate_limited(retry_after_secs: u64) -> Self {
        let detail =
            format!("Too many calls with this credential, or of this user; try again after {retry_after_secs} s");
        let header = Some(Box::new((header::RETRY_AFTER, retry_after_secs.into())));
        Self { header, ..Self::new(Code::RateLimited, detail) }
    }

    /// A `400` for fields of the body or the query.
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

    /// The `409` that names the session in the way.
    #[must_use]
    pub(super) fn another_session_active(active: SessionId) -> Self {
        let detail = "The user has another active session; end it, or send \"ifActive\":\"replace\" to end it now";
        Self { active_session_id: Some(active), ..Self::new(Code::AnotherSessionActive, detail) }
    }

    /// A `500`: the client gets a fixed text, the log the cause.
    pub(super) fn internal(cause: impl Into<String>) -> Self {
        let detail = "Something went wrong in the service; its log has the cause under the request id";
        Self { cause: Some(cause.into()), ..Self::new(Code::Internal, detail) }
    }

    /// Tells the log, and not the client, what the cause is.
    #[must_use]
    pub(super) fn caused_by(self, cause: impl Into<String>) -> Self {
        Self { cause: Some(cause.into()), ..self }
    }

    /// What stands in for an answer that some layer gave with a status alone.
    fn of_status(status: StatusCode) -> Option<Self> {
        Some(match status {
            StatusCode::NOT_FOUND => Self::new(Code::RouteNotFound, "There is nothing at this path"),
            StatusCode::METHOD_NOT_ALLOWED => Self::new(
                Code::MethodNotAllowed,
                "This path does not have this method; the header Allow lists its methods",
            ),
            StatusCode::URI_TOO_LONG => Self::new(Code::UriTooLong, "The path and query are too long"),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                Self::new(Code::HeadersTooLarge, "The path, query and headers are too large together, or too many")
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                Self::new(Code::Overloaded, "There are too many connections, in total or from this address; try again")
            }
            _ if status.is_client_error() => {
                Self::new(Code::InvalidRequest, "The request is not HTTP/1.1 as this service reads it")
            }
            _ if status.is_server_error() => Self::internal(format!("a layer answered {status}")),
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
            active_session_id: self.active_session_id.map(|id| id.to_string()),
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
                "The store does not answer; try again. A write may or may not have been applied: all calls can be repeated",
            ),
            StoreError::NotServing(code, _) => {
                let detail = format!("The store does not serve now ({code}); nothing was changed, try again");
                return Self::new(Code::StoreUnavailable, detail).caused_by(error.to_string());
            }
            StoreError::Layout(_) => (Code::StoreUnavailable, "The store belongs to another version of the service"),
            StoreError::Unfit { problem, .. } => {
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
                (Code::Overloaded, "There are too many large responses under way; try again, or ask for smaller pages")
            }
            StoreError::Refused(_) | StoreError::Reply { .. } | StoreError::Random(_) => {
                return Self::internal(error.to_string());
            }
        };
        Self { cause: Some(error.to_string()), ..Self::new(code, detail) }
    }
}

impl IntoResponse for ApiError {
    /// An empty answer that carries the error; [`finish`] writes the body.
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        if self.code.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECS));
        }
        if let Some((name, value)) = self.header.as_deref() {
            response.headers_mut().insert(name, value.clone());
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// The headers and the body of the answer to a request that never gets to the router.
pub(super) fn refusal(status: StatusCode, request_id: &str) -> (HeaderMap, Vec<u8>) {
    let error = ApiError::of_status(status).unwrap_or_else(|| ApiError::internal("refused without an error"));
    let body = error.body(request_id);
    let mut headers = std::mem::take(error.into_response().headers_mut());
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, PROBLEM);
    (headers, body)
}

/// Gives an error answer its body, whichever layer it came from. Returns the code and cause, for the log.
pub(super) fn finish(response: &mut Response, request_id: &str) -> Option<(Code, Option<String>)> {
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        None => ApiError::of_status(response.status())?,
    };
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, PROBLEM);
    *response.status_mut() = error.code.status();
    *response.body_mut() = Body::from(error.body(request_id));
    Some((error.code, error.cause))
}

/// An error answer: the members of RFC 9457, ours, and the three that `NestJS` clients read.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = problem_example)]
pub(super) struct Problem<'a> {
    /// Always `about:blank`: `code` tells errors apart.
    #[schema(pattern = "^about:blank$")]
    r#type: &'a str,
    /// The status in words.
    title: &'a str,
    /// The status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What went wrong, for people.
    detail: &'a str,
    /// What went wrong, for programs.
    #[schema(schema_with = code_schema)]
    code: &'a str,
    /// The answer's `X-Request-Id`; the log has it too.
    #[schema(min_length = 1, max_length = 128)]
    request_id: &'a str,
    /// Each field that is wrong, if the request was.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    errors: &'a [FieldProblem],
    /// The session in the way of a resume (`another_session_active`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = String, format = Uuid, required = false)]
    active_session_id: Option<String>,
    /// The status, as `NestJS` names it.
    #[schema(minimum = 400, maximum = 599)]
    status_code: u16,
    /// `detail`, as `NestJS` names it.
    message: &'a str,
    /// `title`, as `NestJS` names it.
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
        .description(Some("What went wrong, for programs. Each code belongs to one status."))
        .enum_values(Some(Code::ALL.iter().map(|code| code.as_str())))
        .build()
}

/// The documentation of the error answers with these codes, one for each status.
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
        let waits = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS];
        if codes.iter().any(|code| waits.contains(&code.status())) {
            let seconds = HeaderBuilder::new()
                .schema(Some(Object::with_type(Type::Integer)))
                .description(Some("Seconds to wait before trying again."))
                .build();
            response = response.header("Retry-After", seconds);
        }
        if codes.iter().any(|code| [Code::Unauthorized, Code::Forbidden].contains(code)) {
            let challenge = HeaderBuilder::new()
                .schema(Some(Object::with_type(Type::String)))
                .description(Some("What credential is wanted (RFC 6750)."));
            response = response.header("WWW-Authenticate", challenge.build());
        }
        RefOr::T(response.build())
    };
    by_status.into_iter().map(|(status, codes)| (status, response(codes))).collect()
}

/// Declares a type that stands for the error answers of an operation in its documentation. What every operation with a
/// body or without one may answer is added by itself.
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
