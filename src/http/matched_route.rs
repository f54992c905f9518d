//! Matches a path to its route before the router does. The route template labels metrics and logs, and determines the
//! credential that a request needs.

use std::collections::HashSet;

use axum::http::Method;
use matchit::Router;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn};
use utoipa::openapi::{OpenApi, RefOr};

use super::{console, docs};

/// Only these paths are checked for unknown query parameters.
const API: &str = "/api/";

/// The templates of all routes.
pub(super) struct RouteMatcher {
    routes: Router<String>,
    /// The templates and methods of operations that have query parameters.
    with_query: HashSet<(String, Method)>,
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
        let with_query = document.paths.paths.iter().flat_map(|(template, item)| {
            let operations = [
                (Method::GET, &item.get),
                (Method::HEAD, &item.get),
                (Method::POST, &item.post),
                (Method::PATCH, &item.patch),
                (Method::DELETE, &item.delete),
            ];
            let with_query = operations.into_iter().filter(|(_, operation)| operation.as_ref().is_some_and(has_query));
            with_query.map(|(method, _)| (template.clone(), method))
        });
        Self { routes, with_query: with_query.collect() }
    }

    /// Whether an operation of the API may have a query.
    pub(super) fn takes_query(&self, route: &str, method: &Method) -> bool {
        !route.starts_with(API) || self.with_query.contains(&(route.to_owned(), method.clone()))
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

fn has_query(operation: &Operation) -> bool {
    operation.parameters.iter().flatten().any(is_of_query)
}

fn is_of_query(parameter: &RefOr<Parameter>) -> bool {
    matches!(parameter, RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query)
}
