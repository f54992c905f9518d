//! The `OpenAPI` 3.1 document, generated from the annotations of the handlers, and the routes that serve it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::http::{Method, header};
use axum::routing::get;
use utoipa::OpenApi as _;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::link::{Link, LinkBuilder};
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{AdditionalProperties, Object, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Components, Content, Header, OpenApi, Ref, RefOr, Required, Response};
use utoipa_axum::router::OpenApiRouter;

use super::auth::{Requirement, X_API_KEY, requirement_of};
use super::error::{Code, FieldProblem, Problem, documented};
use super::request_id::LENGTH_MAX as REQUEST_ID_LENGTH_MAX;
use super::{AppState, businesses, events, export, health, message, messages, sessions, turns, whoami};
use crate::session::{Identifier, Included};

const REQUEST_ID: &str = "X-Request-Id";
const RATE_LIMIT: &str = "RateLimit";
const RATE_LIMIT_POLICY: &str = "RateLimit-Policy";
const BEARER: &str = "bearer";
const API_KEY: &str = "apiKey";
/// The bodies that may have no members except those in the document.
const CLOSED_SCHEMAS: [&str; 7] = [
    "GetOrCreateSession",
    "UpdateSession",
    "AppendMessage",
    "UpdateMessage",
    "BeginTurnBody",
    "AppendChunksBody",
    "EndTurnBody",
];
/// The names of all members and parameters that are an [`Identifier`].
const IDENTIFIERS: [&str; 7] = ["businessId", "userId", "locationId", "sessionType", MESSAGE_ID, TURN_ID, "writer"];
const MESSAGE_ID: &str = "messageId";
const TURN_ID: &str = "turnId";
/// Excludes control characters (Unicode category Cc), `.` and `..`: the text starts with a character other than a dot,
/// or with one dot and a character other than a dot, or with two dots and any character. Uses no look-ahead, because
/// several regular expression engines (RE2, Rust's `regex`) do not support it.
const IDENTIFIER_PATTERN: &str = concat!(
    r"^([^.\u0000-\u001F\u007F-\u009F][^\u0000-\u001F\u007F-\u009F]*",
    r"|\.[^.\u0000-\u001F\u007F-\u009F][^\u0000-\u001F\u007F-\u009F]*",
    r"|\.\.[^\u0000-\u001F\u007F-\u009F]+)$",
);
const SESSION_SCHEMA: &str = "Session";

/// The parts of the document other than the operations.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "sessiond",
        description = "Sessions of AI chat assistants: finds or creates a user's session in a business. At most one \
            session per business and user is active.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "sessions", description = "Find or create a session; read, change or delete it by its id."),
        (name = "messages", description = "The messages of a session."),
        (name = "turns", description = "Messages while they are being written."),
        (name = "events", description = "Streams of events as they happen."),
        (name = "businesses", description = "The sessions of a business and of its users."),
        (name = "credentials", description = "The permissions of the caller."),
        (name = "health", description = "Checks for orchestrators and load balancers."),
        (name = "documentation", description = "This document."),
    ),
    paths(openapi_json, docs),
    components(schemas(Problem, FieldProblem, Included)),
)]
struct Document;

/// The routes whose handlers use [`AppState`], with their documentation.
pub(super) fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .merge(sessions::router())
        .merge(messages::router())
        .merge(message::router())
        .merge(turns::router())
        .merge(events::router())
        .merge(businesses::router())
        .merge(export::router())
        .merge(whoami::router())
        .merge(health::router())
}

/// The `OpenAPI` document of this version of the service.
#[must_use]
pub fn document() -> OpenApi {
    complete(routes().into_openapi())
}

/// Adds what the annotations cannot express: request ids of requests and responses, the rejection of unknown members,
/// the constraints on identifiers, the links of a session in a response, and the credentials that routes need.
fn complete(mut document: OpenApi) -> OpenApi {
    let links = links(&mut document);
    let components = document.components.get_or_insert_default();
    components.parameters.insert(REQUEST_ID.to_owned(), RefOr::T(request_id_parameter()));
    components.headers.insert(REQUEST_ID.to_owned(), RefOr::T(request_id_header()));
    for (name, description) in [
        (RATE_LIMIT, "The remaining quota of the credential and its user: `r` requests now, all of it in `t` seconds."),
        (RATE_LIMIT_POLICY, "The quotas: `q` requests at once, and as many again in `w` seconds."),
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
    if let Some(RefOr::T(Schema::Object(session))) = components.schemas.get_mut(SESSION_SCHEMA) {
        session.properties.insert(Included::LastMessage.as_str().to_owned(), last_message_schema());
        session.properties.insert(Included::Turn.as_str().to_owned(), turn_schema());
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

/// Documents the credential that each operation needs unless it is public, and the responses to requests without it.
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
            let (scopes, codes): (Vec<_>, &[Code]) = match requirement_of(&method, Some(path)) {
                Requirement::Public => continue,
                Requirement::Credential => (vec![], &[Code::Unauthorized, Code::RateLimited]),
                Requirement::Scope(scope) => {
                    (vec![scope.as_str()], &[Code::Unauthorized, Code::Forbidden, Code::RateLimited])
                }
            };
            let schemes = [BEARER, API_KEY].map(|name| SecurityRequirement::new(name, scopes.clone()));
            operation.security = Some(schemes.into());
            operation.responses.responses.extend(documented(codes));
            for (status, response) in &mut operation.responses.responses {
                if status.starts_with('2') || status == "304" || status == "429" {
                    add_headers(response, &[RATE_LIMIT, RATE_LIMIT_POLICY]);
                }
            }
        }
    }
}

/// Adds references to headers of the components to a response.
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
        "An API key, `<keyId>.<secret>`, or a JWT. A service on a loopback address may be configured to need neither.",
    ));
    let api_key = ApiKeyValue::with_description(X_API_KEY, "An API key, `<keyId>.<secret>`.");
    components.security_schemes.insert(BEARER.to_owned(), SecurityScheme::Http(bearer.build()).into());
    components.security_schemes.insert(API_KEY.to_owned(), SecurityScheme::ApiKey(ApiKey::Header(api_key)).into());
}

fn operations(document: &mut OpenApi) -> impl Iterator<Item = &mut Operation> {
    let items = document.paths.paths.values_mut();
    items.flat_map(|item| [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete].into_iter().flatten())
}

/// Adds the constraints on identifiers to a schema, if `name` is the name of an identifier.
fn limit_identifier(name: &str, schema: &mut RefOr<Schema>) {
    if let RefOr::T(Schema::Object(schema)) = schema
        && IDENTIFIERS.contains(&name)
    {
        schema.min_length = Some(1);
        schema.max_length = Some(Identifier::CHARS_MAX);
        schema.pattern = Some(IDENTIFIER_PATTERN.to_owned());
    }
}

/// The schema of the member that `include=lastMessage` adds to a session.
fn last_message_schema() -> RefOr<Schema> {
    let description = "The newest message, or null. Only with `include=lastMessage`, and not if the response would \
        have more than 4 MiB.";
    let null = ObjectBuilder::new().schema_type(Type::Null);
    OneOfBuilder::new().description(Some(description)).item(null).item(Ref::from_schema_name("Message")).into()
}

/// The schema of the member that `include=turn` adds to a session.
fn turn_schema() -> RefOr<Schema> {
    let null = ObjectBuilder::new().schema_type(Type::Null);
    let description = "The open turn, or null. Only with `include=turn`.";
    OneOfBuilder::new().description(Some(description)).item(null).item(Ref::from_schema_name("Turn")).into()
}

/// A link to every operation whose path parameters are all members of a session.
fn links(document: &mut OpenApi) -> BTreeMap<String, RefOr<Link>> {
    let mut links = BTreeMap::new();
    for operation in operations(document) {
        let parameters = operation.parameters.iter().flatten().filter_map(|parameter| match parameter {
            RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Path => Some(parameter.name.clone()),
            _ => None,
        });
        let id = operation.operation_id.clone().unwrap_or_default();
        let parameters: Vec<_> = parameters.collect();
        if parameters.is_empty() || parameters.iter().any(|name| name == MESSAGE_ID || name == TURN_ID) {
            continue;
        }
        let link = parameters.iter().fold(LinkBuilder::new().operation_id(&id), |link, name| {
            link.parameter(name, format!("$response.body#/{name}"))
        });
        links.insert(id, RefOr::T(link.build()));
    }
    links
}

/// Whether the body of the response is one session.
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
            "The request's id in the response and the log. Replaced if it is not 1 to 128 visible ASCII characters.",
        ))
        .schema(Some(Object::with_type(Type::String)))
        .build()
}

fn request_id_header() -> Header {
    HeaderBuilder::new()
        .description(Some("The request's `X-Request-Id`, or a random id."))
        .schema(Some(
            ObjectBuilder::new()
                .schema_type(Type::String)
                .min_length(Some(1))
                .max_length(Some(REQUEST_ID_LENGTH_MAX))
                .pattern(Some("^[!-~]*$")),
        ))
        .build()
}

/// The route `/openapi.json`.
pub(super) fn router(document: OpenApi) -> Router {
    // Serialising a document that was built in memory cannot fail.
    let text: Arc<str> = complete(document).to_pretty_json().unwrap_or_default().into();
    let json = move || async move { ([(header::CONTENT_TYPE, "application/json")], text.to_string()) };
    Router::new().route("/openapi.json", get(json))
}

/// This document
#[utoipa::path(
    get, path = "/openapi.json", tag = "documentation", operation_id = "openapi",
    responses((status = 200, description = "The OpenAPI 3.1 document.", body = Object)),
)]
#[expect(dead_code, reason = "documents a route that `router` adds")]
fn openapi_json() {}

/// Browse this document
#[utoipa::path(
    get, path = "/docs", tag = "documentation", operation_id = "docs",
    responses(
        (status = 200, description = "A self-contained page.", body = String, content_type = "text/html",
            headers(("ETag" = String, description = "Changes with the page."))),
        (status = 304, description = "The page is the one that `If-None-Match` names.",
            headers(("ETag" = String, description = "Changes with the page."))),
    ),
)]
#[expect(dead_code, reason = "documents a route of `docs::router`")]
fn docs() {}
