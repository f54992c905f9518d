//! `/console/`: a page for people who look at conversations and act on them. It calls the API like any other client.
//! `/` redirects there.

use std::sync::Arc;

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value};

use super::static_files::{Page, StaticFile, redirect};
use crate::config::ConsoleConfig;

/// The templates of the routes of this file.
pub(super) const ROUTES: [&str; 4] = ["/", "/console", "/console/", "/console/{file}"];
const HTML: &str = include_str!(concat!(env!("OUT_DIR"), "/console.html"));
const FILES: &[StaticFile] = include!(concat!(env!("OUT_DIR"), "/console.rs"));
/// Only the page's own scripts and styles, only calls to the service, and no text becomes markup or code.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// The routes of the console, or only the route `/` if the console is disabled.
pub(super) fn router(config: &ConsoleConfig) -> Router {
    let is_enabled = config.is_enabled;
    let router = Router::new().route("/", get(move |headers: HeaderMap| async move { root(is_enabled, &headers) }));
    if !is_enabled {
        return router;
    }
    let page = Arc::new(Page::new(page(config.label.as_deref().unwrap_or_default()), CONTENT_SECURITY_POLICY));
    let page = get(move |headers: HeaderMap| async move { page.respond(&headers) });
    let file =
        |Path(name): Path<String>, headers: HeaderMap| async move { StaticFile::respond(FILES, &name, &headers) };
    router
        .route("/console", get(async || redirect("console/")))
        .route("/console/", page)
        .route("/console/{file}", get(file))
}

/// The page, with the label and the version of the service.
fn page(label: &str) -> String {
    let label = label.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
    HTML.replace("{{version}}", env!("CARGO_PKG_VERSION")).replace("{{label}}", &label)
}

/// Redirects browsers to a page, and gives programs a list of links.
fn root(has_console: bool, request: &HeaderMap) -> Response {
    let accepted = request.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
    let mut response = if accepted.into_iter().any(|line| line.contains("text/html")) {
        let page = if has_console { "console/" } else { "docs" };
        (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, page)]).into_response()
    } else {
        let links = [("console", "/console/"), ("docs", "/docs"), ("openapi", "/openapi.json"), ("ready", "/readyz")];
        let links = links.into_iter().filter(|(name, _)| has_console || *name != "console");
        let about = [("name", env!("CARGO_PKG_NAME")), ("version", env!("CARGO_PKG_VERSION"))];
        let members = about.into_iter().chain(links).map(|(name, text)| (name.to_owned(), Value::from(text)));
        Json(members.collect::<Map<_, _>>()).into_response()
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_text() {
        let page = page("\"><script>alert(1)</script>&amp;");
        assert!(page.contains("content=\"&quot;>&lt;script>alert(1)&lt;/script>&amp;amp;\""), "{page}");
        assert!(!page.contains("{{"), "{page}");
    }
}
