//! The `OpenAPI` 3.1 document, made from the handlers' own annotations, and the routes that show it.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use utoipa::OpenApi as _;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{Object, Type};
use utoipa::openapi::{OpenApi, RefOr};
use utoipa_axum::router::OpenApiRouter;

use super::error::{FieldProblem, Problem};
use super::{App, businesses, docs, health, messages, sessions};

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
        .merge(health::router())
}

/// The document of this very code.
#[must_use]
pub fn document() -> OpenApi {
    complete(routes().into_openapi())
}

/// Adds what holds for every operation: each answer has the request's id.
fn complete(mut document: OpenApi) -> OpenApi {
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            for response in operation.responses.responses.values_mut() {
                if let RefOr::T(response) = response {
                    let header = HeaderBuilder::new()
                        .schema(Some(Object::with_type(Type::String)))
                        .description(Some("The request's `X-Request-Id`, or the one that was made for it."))
                        .build();
                    response.headers.insert("X-Request-Id".to_owned(), RefOr::T(header));
                }
            }
        }
    }
    document
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
