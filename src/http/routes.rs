//! Which route a path has, known before the router is asked: by its template a request is counted, logged and admitted.

use matchit::Router;
use utoipa::openapi::OpenApi;

/// The templates of all routes.
pub(super) struct Routes(Router<String>);

impl Routes {
    /// Those of the document, and what the documentation page loads.
    pub(super) fn of(document: &OpenApi) -> Self {
        let mut routes = Router::new();
        for template in document.paths.paths.keys().map(String::as_str).chain(["/docs/{file}"]) {
            // The router would have refused two that are alike, and what is not here has no route.
            let _ = routes.insert(template, template.to_owned());
        }
        Self(routes)
    }

    /// The template that this path follows.
    pub(super) fn template_of(&self, path: &str) -> Option<&str> {
        self.0.at(path).ok().map(|found| found.value.as_str())
    }

    /// What a path has in the place of a parameter, as it is written there.
    pub(super) fn parameter<'path>(&self, path: &'path str, name: &str) -> Option<&'path str> {
        self.0.at(path).ok()?.params.get(name)
    }
}
