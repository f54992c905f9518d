//! `sessiond openapi`.

use std::process::ExitCode;

use sessiond::http;

use super::print_line;

/// Prints the `OpenAPI` document.
pub(crate) fn run() -> ExitCode {
    print_line(&http::document().to_pretty_json().unwrap_or_default())
}
