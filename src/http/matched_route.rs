//! Matches a path to its route before the router does. The route template labels metrics and logs, and determines the
//! credential that a request needs, and whether the request may have a query.

use std::collections::HashSet;

use axum::http::Method;
use matchit::Router;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn};
use utoipa::openapi::{OpenApi, RefOr};

use super::{console, docs};

/// The paths of the API.
const API: &str = "/api/";

/// The templates of all routes.
pub(super) struct RouteMatcher {
    routes: Router<String>,
    /// The templates of the API whose GET has no query parameters.
    without_query: HashSet<String>,
}

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
        let of_api = document.paths.paths.iter().filter(|(template, _)| template.starts_with(API));
        let without_query = of_api.filter(|(_, item)| item.get.as_ref().is_some_and(takes_no_query));
        let without_query = without_query.map(|(template, _)| template.clone()).collect();
        Self { routes, without_query }
    }

    /// Whether this is a call of the API that reads and has no query parameters.
    pub(super) fn takes_no_query(&self, route: &str, method: &Method) -> bool {
        matches!(*method, Method::GET | Method::HEAD) && self.without_query.contains(route)
    }

    /// The template of this path's route.
    pub(super) fn matched(&self, path: &str) -> Option<&str> {
        self.routes.at(path).ok().map(|found| found.value.as_str())
    }

    /// The values of these parameters in a path, percent-encoded.
    pub(super) fn parameters<'path, const N: usize>(
        &self,
        path: &'path str,
        names: [&str; N],
    ) -> [Option<&'path str>; N] {
        let found = self.routes.at(path).ok();
        names.map(|name| found.as_ref()?.params.get(name))
    }
}

fn takes_no_query(operation: &Operation) -> bool {
    !operation.parameters.iter().flatten().any(is_query_parameter)
}

fn is_query_parameter(parameter: &RefOr<Parameter>) -> bool {
    matches!(parameter, RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query)
}
