//! `/docs`: Swagger UI. All of its files are embedded in the binary.

use std::sync::{Arc, LazyLock};

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa_swagger_ui::Config;

static CONFIG: LazyLock<Arc<Config<'static>>> =
    LazyLock::new(|| Arc::new(Config::from("/openapi.json").use_base_layout().try_it_out_enabled(true)));

/// The page. It gets a `base` element, because its links are relative to `/docs/`.
pub(super) async fn page() -> Response {
    serve("index.html", |html| html.replacen("<head>", "<head><base href=\"/docs/\">", 1))
}

/// A script or style sheet of the page.
pub(super) async fn file(Path(file): Path<String>) -> Response {
    serve(&file, |text| text)
}

fn serve(file: &str, edit: fn(String) -> String) -> Response {
    match utoipa_swagger_ui::serve(file, CONFIG.clone()) {
        Ok(Some(found)) => {
            let body = if found.content_type.starts_with("text/html") {
                edit(String::from_utf8_lossy(&found.bytes).into_owned()).into_bytes()
            } else {
                found.bytes.into_owned()
            };
            ([(header::CONTENT_TYPE, found.content_type)], body).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}
