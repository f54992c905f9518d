//! Extractors for the ids in a path, a JSON body, and a query. They reject invalid input with an [`ApiError`].

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body_util::BodyExt;
use serde_json::Value;

use super::error::{ApiError, Code, FieldProblem, shortened};
use super::{json, media_type};
use crate::session::{IdempotencyKey, Identifier, MessageRef, SessionId};

/// The session id in the path. A text that is not a UUID is a session that does not exist (`404`).
pub(super) struct PathSession(pub(super) SessionId);

impl<S: Send + Sync> FromRequestParts<S> for PathSession {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(text)) => text.parse().map(Self).map_err(|_| ApiError::session_not_found(&text)),
            Err(_) => Err(ApiError::session_not_found("of this path")),
        }
    }
}

/// The business id in the path.
pub(super) struct PathBusiness(pub(super) Identifier);

impl<S: Send + Sync> FromRequestParts<S> for PathBusiness {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(business_id) = Path::<String>::from_request_parts(parts, state).await.map_err(invalid_path)?;
        identifiers([("businessId", business_id)]).map(|[business_id]| Self(business_id))
    }
}

/// The business id and the user id in the path.
pub(super) struct PathUser {
    pub(super) business_id: Identifier,
    pub(super) user_id: Identifier,
}

impl<S: Send + Sync> FromRequestParts<S> for PathUser {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path((business_id, user_id)) =
            Path::<(String, String)>::from_request_parts(parts, state).await.map_err(invalid_path)?;
        identifiers([("businessId", business_id), ("userId", user_id)])
            .map(|[business_id, user_id]| Self { business_id, user_id })
    }
}

/// The session id and the message id in the path. A text that is not a UUID is a session that does not exist (`404`).
pub(super) struct PathMessage(pub(super) MessageRef);

impl<S: Send + Sync> FromRequestParts<S> for PathMessage {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let (session_id, message_id) = session_and_identifier(parts, state, "messageId").await?;
        Ok(Self(MessageRef { session_id, message_id }))
    }
}

/// The session id and the turn id in the path. A text that is not a UUID is a session that does not exist (`404`).
pub(super) struct PathTurn {
    pub(super) session_id: SessionId,
    pub(super) turn_id: Identifier,
}

impl<S: Send + Sync> FromRequestParts<S> for PathTurn {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let (session_id, turn_id) = session_and_identifier(parts, state, "turnId").await?;
        Ok(Self { session_id, turn_id })
    }
}

/// The session id in the path, and the identifier of this name after it.
async fn session_and_identifier<S: Send + Sync>(
    parts: &mut Parts,
    state: &S,
    name: &'static str,
) -> Result<(SessionId, Identifier), ApiError> {
    let Path((session_id, identifier)) =
        Path::<(String, String)>::from_request_parts(parts, state).await.map_err(invalid_path)?;
    let [identifier] = identifiers([(name, identifier)])?;
    let session_id = session_id.parse().map_err(|_| ApiError::session_not_found(&session_id))?;
    Ok((session_id, identifier))
}

fn invalid_path(_: axum::extract::rejection::PathRejection) -> ApiError {
    ApiError::new(Code::InvalidRequest, "The path is not percent-encoded UTF-8")
}

/// Parses all identifiers, or reports the problems of all.
fn identifiers<const N: usize>(named: [(&'static str, String); N]) -> Result<[Identifier; N], ApiError> {
    let mut problems = Vec::new();
    let mut good = Vec::with_capacity(N);
    for (name, text) in named {
        match Identifier::new(text) {
            Ok(identifier) => good.push(identifier),
            Err(message) => problems.push(FieldProblem { field: name.to_owned(), message: message.to_owned() }),
        }
    }
    good.try_into().map_err(|_| ApiError::fields(problems))
}

/// Maximum bytes that are read and discarded of a body that is too large, or before a connection is closed. Many
/// clients read the response only after they have sent the whole body, and closing without reading would reset the
/// connection.
pub const DISCARD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Receives the whole body, of at most `bytes_max` bytes.
///
/// # Errors
/// A `413` if the body is larger, a `400` if it ends before it is complete.
pub(super) async fn receive(headers: &HeaderMap, mut body: Body, bytes_max: usize) -> Result<Body, ApiError> {
    if is_declared_too_large(&body, bytes_max) && headers.contains_key(header::EXPECT) {
        // The client sends the body only after a `100 Continue`.
        return Err(too_large(bytes_max));
    }
    // Most bodies arrive in one frame, which is not copied.
    let (mut received, mut first) = (Vec::new(), Bytes::new());
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|_| ApiError::new(Code::InvalidRequest, "The body ended before it was complete"))?
            .into_data()
            .unwrap_or_default();
        let is_first = length == 0;
        length += frame.len();
        if is_first {
            first = frame;
        } else if length <= bytes_max {
            received.extend_from_slice(&std::mem::take(&mut first));
            received.extend_from_slice(&frame);
        } else if length > DISCARD_BYTES_MAX {
            break;
        }
    }
    if length > bytes_max {
        return Err(too_large(bytes_max));
    }
    Ok(if received.is_empty() { Body::from(first) } else { Body::from(received) })
}

/// Whether a body has a length that is too large (`Content-Length`).
pub(super) fn is_declared_too_large(body: &Body, bytes_max: usize) -> bool {
    body.size_hint().lower() > u64::try_from(bytes_max).unwrap_or(u64::MAX)
}

pub(super) fn too_large(bytes_max: usize) -> ApiError {
    ApiError::new(Code::PayloadTooLarge, format!("The body is larger than {bytes_max} bytes"))
}

/// Reads and drops the body of a rejected request, up to the size limit `bytes_max`. Closing a connection with unread
/// data may lose the response.
pub(super) async fn discard(headers: &HeaderMap, mut body: Body, bytes_max: usize) {
    // A client that waits for a `100 Continue` sends nothing.
    let mut length = if headers.contains_key(header::EXPECT) { usize::MAX } else { 0 };
    while length <= bytes_max {
        match body.frame().await {
            Some(Ok(frame)) => length += frame.into_data().map_or(0, |data| data.len()),
            Some(Err(_)) | None => break,
        }
    }
}

/// A body that is declared as JSON. Merge patches (RFC 7396) are JSON too.
pub(super) struct JsonBody {
    pub(super) value: Value,
    /// The body as it was sent.
    pub(super) text: Bytes,
}

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(mut request: Request, _state: &S) -> Result<Self, ApiError> {
        if !media_type::is_json(request.headers()) {
            let detail = "The body must be JSON in UTF-8, declared by one header Content-Type: application/json";
            return Err(ApiError::new(Code::UnsupportedMediaType, detail));
        }
        let is_plain =
            |encoding: &HeaderValue| encoding.is_empty() || encoding.as_bytes().eq_ignore_ascii_case(b"identity");
        if !request.headers().get_all(header::CONTENT_ENCODING).iter().all(is_plain) {
            let detail = "The body must not be compressed: send it without Content-Encoding";
            return Err(ApiError::new(Code::UnsupportedMediaType, detail));
        }
        // `receive` has put the body into one frame.
        let frame = request.body_mut().frame().await.transpose();
        let frame = frame.map_err(|error| ApiError::internal(error.to_string()))?;
        let text = frame.and_then(|frame| frame.into_data().ok()).unwrap_or_default();
        json::parse(&text).map(|value| Self { value, text })
    }
}

pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The `Idempotency-Key` of a create, if the request has one.
pub(super) struct MaybeIdempotencyKey(pub(super) Option<IdempotencyKey>);

impl<S: Send + Sync> FromRequestParts<S> for MaybeIdempotencyKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let invalid = |message: &str| ApiError::field("Idempotency-Key", message);
        let mut keys = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
        match (keys.next(), keys.next()) {
            (None, _) => Ok(Self(None)),
            (Some(key), None) => {
                let key = IdempotencyKey::new(key.to_str().unwrap_or_default()).map_err(invalid)?;
                Ok(Self(Some(key)))
            }
            (Some(_), Some(_)) => Err(invalid("must be given once")),
        }
    }
}

/// The parameters of a query, taken one by one like [`json::Fields`].
pub(super) struct Query {
    parameters: Vec<(String, String)>,
    known: Vec<&'static str>,
    problems: Vec<FieldProblem>,
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Ok(Self::of(parts.uri.query()))
    }
}

impl Query {
    pub(super) fn of(query: Option<&str>) -> Self {
        let parameters = form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect();
        Self { parameters, known: Vec::new(), problems: Vec::new() }
    }

    pub(super) fn problem(&mut self, name: &str, message: impl Into<String>) {
        self.problems.push(FieldProblem { field: shortened(name).into_owned(), message: message.into() });
    }

    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        let index = self.parameters.iter().position(|(parameter, _)| parameter == name)?;
        Some(self.parameters.remove(index).1)
    }

    /// A whole number from `min` to `max`, in decimal digits.
    pub(super) fn number(&mut self, name: &'static str, min: u64, max: u64) -> Option<u64> {
        let text = self.text(name)?;
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|number| digits && (min..=max).contains(number));
        if number.is_none() {
            self.problem(name, format!("must be a whole number from {min} to {max}"));
        }
        number
    }

    /// Returns an error with all problems, if there are any. Unknown and repeated parameters are problems.
    pub(super) fn finish(mut self) -> Result<(), ApiError> {
        for (name, _) in std::mem::take(&mut self.parameters) {
            if self.known.contains(&name.as_str()) {
                self.problem(&name, "must be given once");
            } else if self.known.is_empty() {
                self.problem(&name, "is unknown; this call has no query parameters");
            } else {
                let message = format!("is unknown; the known parameters are {}", self.known.join(", "));
                self.problem(&name, message);
            }
        }
        if self.problems.is_empty() { Ok(()) } else { Err(ApiError::fields(self.problems)) }
    }
}
