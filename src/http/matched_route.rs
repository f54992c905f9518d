//! Matches a path to its route before the router does. The route template labels metrics and logs, and determines the
//! credential that a request needs.

use matchit::Router;
use utoipa::openapi::OpenApi;

use super::{console, docs};

/// The templates of all routes.
pub(super) struct RouteMatcher(Router<String>);

impl RouteMatcher {
    /// The templates in the document, and those of web pages and their files.
    pub(super) fn of(document: &OpenApi) -> Self {
        let mut routes = Router::new();
        // `/docs` is in the document as well.
        let pages = docs::ROUTES.into_iter().chain(console::ROUTES);
        for template in document.paths.paths.keys().map(String::as_str).chain(pages) {
            // Fails only for `/docs`, which is inserted twice: the router has already rejected conflicting templates.
            let _ = routes.insert(template, template.to_owned());
        }
        Self(routes)
    }

    /// The template of this path's route.
    pub(super) fn matched(&self, path: &str) -> Option<&str> {
        self.0.at(path).ok().map(|found| found.value.as_str())
    }

    /// The values of these parameters in a path, percent-encoded.
    pub(super) fn parameters<'path, const N: usize>(
        &self,
        path: &'path str,
        names: [&str; N],
    ) -> [Option<&'path str>; N] {
        let found = self.0.at(path).ok();
        names.map(|name| found.as_ref()?.params.get(name))
    }
}
