//! `/docs`: Swagger UI. All of its files are embedded in the binary.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::HeaderMap;
use axum::routing::get;

use super::static_files::{Page, StaticFile, redirect};

/// The templates of the routes of this file.
pub(super) const ROUTES: [&str; 3] = ["/docs", "/docs/", "/docs/{file}"];
const HTML: &str = include_str!(concat!(env!("OUT_DIR"), "/docs.html"));
const FILES: &[StaticFile] = include!(concat!(env!("OUT_DIR"), "/docs.rs"));
/// Swagger UI uses inline styles, and images in its style sheet.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn router() -> Router {
    let page = Arc::new(Page::new(HTML.to_owned(), CONTENT_SECURITY_POLICY));
    let page = get(move |headers: HeaderMap| async move { page.respond(&headers) });
    let file =
        |Path(name): Path<String>, headers: HeaderMap| async move { StaticFile::respond(FILES, &name, &headers) };
    Router::new()
        .route("/docs", page)
        .route("/docs/", get(async || redirect("../docs")))
        .route("/docs/{file}", get(file))
}
