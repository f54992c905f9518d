//! The `OpenAPI` 3.1 document, made from the handlers' own annotations, and the routes that show it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::http::{Method, header};
use axum::routing::get;
use utoipa::OpenApi as _;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::link::{Link, LinkBuilder};
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{AdditionalProperties, Object, ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Components, Content, Header, OpenApi, Ref, RefOr, Required, Response};
use utoipa_axum::router::OpenApiRouter;

use super::access::{Need, X_API_KEY, need_of};
use super::error::{Code, FieldProblem, Problem, documented};
use super::{App, REQUEST_ID_BYTES_MAX, businesses, docs, health, messages, sessions, whoami};
use crate::session::Identifier;

const REQUEST_ID: &str = "X-Request-Id";
const RATE_LIMIT: &str = "RateLimit";
const RATE_LIMIT_POLICY: &str = "RateLimit-Policy";
const BEARER: &str = "bearer";
const API_KEY: &str = "apiKey";
/// The bodies that may have no other members than those that the document lists.
const CLOSED_SCHEMAS: [&str; 3] = ["GetOrCreateSession", "UpdateSession", "AppendMessage"];
/// Members and parameters that are an [`Identifier`], wherever they are.
const IDENTIFIERS: [&str; 5] = ["businessId", "userId", "locationId", "sessionType", "messageId"];
/// No control characters (Unicode's category Cc), and neither `.` nor `..`: the text starts with another character than
/// a dot, or with one dot and another character, or with two dots and any character. It has no look-ahead, because
/// several regular expression engines (RE2, Rust's `regex`) do not support it.
const IDENTIFIER_PATTERN: &str = concat!(
    r"^([^.\u0000-\u001F\u007F-\u009F][^\u0000-\u001F\u007F-\u009F]*",
    r"|\.[^.\u0000-\u001F\u007F-\u009F][^\u0000-\u001F\u007F-\u009F]*",
    r"|\.\.[^\u0000-\u001F\u007F-\u009F]+)$",
);
const SESSION_SCHEMA: &str = "Session";

/// What the document says beside its operations.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "sessiond",
        description = "Which conversation is this user of this business in? Sessions of AI chat assistants: at most one \
            active session per business and user, always.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "sessions", description = "One session by its id, and the one call that finds or creates it."),
        (name = "messages", description = "What was said in a session."),
        (name = "businesses", description = "The sessions of a business and of its users."),
        (name = "credentials", description = "What the caller may do."),
        (name = "health", description = "For those who start, stop and route to the service."),
        (name = "documentation", description = "This document."),
    ),
    paths(openapi_json, docs),
    components(schemas(Problem, FieldProblem)),
)]
struct Document;

/// Every route of the contract that needs the store, with its documentation.
pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .merge(sessions::router())
        .merge(messages::router())
        .merge(businesses::router())
        .merge(whoami::router())
        .merge(health::router())
}

/// The document of this very code.
#[must_use]
pub fn document() -> OpenApi {
    complete(routes().into_openapi())
}

/// Adds what the annotations cannot say: a request and each of its answers have an id, unknown members are refused, what
/// an identifier is, where a session that was answered leads to, and that what is not public needs a credential.
fn complete(mut document: OpenApi) -> OpenApi {
    let links = links(&mut document);
    let components = document.components.get_or_insert_default();
    components.parameters.insert(REQUEST_ID.to_owned(), RefOr::T(request_id_parameter()));
    components.headers.insert(REQUEST_ID.to_owned(), RefOr::T(request_id_header()));
    for (name, description) in [
        (
            RATE_LIMIT,
            "What the credential, and its user, may still call: `r` calls now, all of the quota in `t` seconds.",
        ),
        (RATE_LIMIT_POLICY, "What they may call: `q` calls at once, and as many again in `w` seconds."),
    ] {
        components.headers.insert(name.to_owned(), RefOr::T(text_header(description)));
    }
    add_security_schemes(components);
    for (name, schema) in &mut components.schemas {
        if let RefOr::T(Schema::Object(schema)) = schema {
            if CLOSED_SCHEMAS.contains(&name.as_str()) {
                schema.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
            }
            schema.properties.iter_mut().for_each(|(name, schema)| limit_identifier(name, schema));
        }
    }
    require_credentials(&mut document);
    for operation in operations(&mut document) {
        for parameter in operation.parameters.get_or_insert_default() {
            if let RefOr::T(Parameter { name, schema: Some(schema), .. }) = parameter {
                limit_identifier(name, schema);
            }
        }
        let parameter = Ref::new(format!("#/components/parameters/{REQUEST_ID}"));
        operation.parameters.get_or_insert_default().push(RefOr::Ref(parameter));
        for response in operation.responses.responses.values_mut() {
            add_headers(response, &[REQUEST_ID]);
            if let RefOr::T(response) = response
                && is_session(response)
            {
                let link = |name: &String| RefOr::Ref(Ref::new(format!("#/components/links/{name}")));
                response.links.extend(links.keys().map(|name| (name.clone(), link(name))));
            }
        }
    }
    document.components.get_or_insert_default().links.extend(links);
    document
}

/// Says of every operation that is not public what credential it needs, and how it answers without one.
fn require_credentials(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        let operations = [
            (Method::GET, &mut item.get),
            (Method::POST, &mut item.post),
            (Method::PATCH, &mut item.patch),
            (Method::DELETE, &mut item.delete),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            let (scopes, refusals): (Vec<_>, &[Code]) = match need_of(&method, Some(path)) {
                Need::Nothing => continue,
                Need::Credential => (vec![], &[Code::Unauthorized, Code::RateLimited]),
                Need::Scope(scope) => (vec![scope.as_str()], &[Code::Unauthorized, Code::Forbidden, Code::RateLimited]),
            };
            let schemes = [BEARER, API_KEY].map(|name| SecurityRequirement::new(name, scopes.clone()));
            operation.security = Some(schemes.into());
            operation.responses.responses.extend(documented(refusals));
            for (status, response) in &mut operation.responses.responses {
                if status.starts_with('2') || status == "304" || status == "429" {
                    add_headers(response, &[RATE_LIMIT, RATE_LIMIT_POLICY]);
                }
            }
        }
    }
}

/// Refers a response to headers of the components.
fn add_headers(response: &mut RefOr<utoipa::openapi::Response>, names: &[&str]) {
    if let RefOr::T(response) = response {
        for name in names {
            let header = Ref::new(format!("#/components/headers/{name}"));
            response.headers.insert((*name).to_owned(), RefOr::Ref(header));
        }
    }
}

fn text_header(description: &str) -> Header {
    HeaderBuilder::new().description(Some(description)).schema(Some(Object::with_type(Type::String))).build()
}

fn add_security_schemes(components: &mut Components) {
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
        "An API key, `<keyId>.<secret>`, or a JWT. A service on a loopback address may be set up to need neither.",
    ));
    let api_key = ApiKeyValue::with_description(X_API_KEY, "An API key, `<keyId>.<secret>`.");
    components.security_schemes.insert(BEARER.to_owned(), SecurityScheme::Http(bearer.build()).into());
    components.security_schemes.insert(API_KEY.to_owned(), SecurityScheme::ApiKey(ApiKey::Header(api_key)).into());
}

fn operations(document: &mut OpenApi) -> impl Iterator<Item = &mut Operation> {
    let items = document.paths.paths.values_mut();
    items.flat_map(|item| [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete].into_iter().flatten())
}

/// Says what an identifier may be, if the schema with this name is that of one.
fn limit_identifier(name: &str, schema: &mut RefOr<Schema>) {
    if let RefOr::T(Schema::Object(schema)) = schema
        && IDENTIFIERS.contains(&name)
    {
        schema.min_length = Some(1);
        schema.max_length = Some(Identifier::CHARS_MAX);
        schema.pattern = Some(IDENTIFIER_PATTERN.to_owned());
    }
}

/// A link to every operation whose path needs no more than a session's own members.
fn links(document: &mut OpenApi) -> BTreeMap<String, RefOr<Link>> {
    let mut links = BTreeMap::new();
    for operation in operations(document) {
        let parameters = operation.parameters.iter().flatten().filter_map(|parameter| match parameter {
            RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Path => Some(parameter.name.clone()),
            _ => None,
        });
        let id = operation.operation_id.clone().unwrap_or_default();
        let link = parameters.fold(LinkBuilder::new().operation_id(&id), |link, name| {
            link.parameter(&name, format!("$response.body#/{name}"))
        });
        let link = link.build();
        if !link.parameters.is_empty() {
            links.insert(id, RefOr::T(link));
        }
    }
    links
}

/// Whether an answer is one session.
fn is_session(response: &Response) -> bool {
    let session = Ref::from_schema_name(SESSION_SCHEMA);
    response.content.values().any(|content| {
        matches!(content, RefOr::T(Content { schema: Some(RefOr::Ref(schema)), .. })
            if schema.ref_location == session.ref_location)
    })
}

fn request_id_parameter() -> Parameter {
    ParameterBuilder::new()
        .name(REQUEST_ID)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "Names the request in the answer and the log. One is made if it is not 1 to 128 visible ASCII characters.",
        ))
        .schema(Some(Object::with_type(Type::String)))
        .build()
}

fn request_id_header() -> Header {
    HeaderBuilder::new()
        .description(Some("The request's `X-Request-Id`, or the one that was made for it."))
        .schema(Some(
            ObjectBuilder::new()
                .schema_type(Type::String)
                .min_length(Some(1))
                .max_length(Some(REQUEST_ID_BYTES_MAX))
                .pattern(Some("^[!-~]*$")),
        ))
        .build()
}

/// `/openapi.json` and `/docs`.
pub(super) fn router(document: OpenApi) -> Router {
    // Serialising a document that was built in memory cannot fail.
    let text: Arc<str> = complete(document).to_pretty_json().unwrap_or_default().into();
    let json = move || async move { ([(header::CONTENT_TYPE, "application/json")], text.to_string()) };
    Router::new()
        .route("/openapi.json", get(json))
        .route("/docs", get(docs::page))
        .route("/docs/{file}", get(docs::file))
}

/// This document
#[utoipa::path(
    get, path = "/openapi.json", tag = "documentation", operation_id = "openapi",
    responses((status = 200, description = "The OpenAPI 3.1 document.", body = Object)),
)]
#[expect(dead_code, reason = "documents a route that `router` makes")]
fn openapi_json() {}

/// This document, to browse
#[utoipa::path(
    get, path = "/docs", tag = "documentation", operation_id = "docs",
    responses((status = 200, description = "A page that needs no other server.", body = String, content_type = "text/html")),
)]
#[expect(dead_code, reason = "documents a route that `router` makes")]
fn docs() {}
