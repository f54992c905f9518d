//! `sessiond check-config`.

use std::process::ExitCode;

use sessiond::auth::Credentials;
use sessiond::config::Config;

use super::print_line;

/// Prints the settings in force, and a summary of the credentials.
pub(crate) fn run(config: &Config, credentials: &Credentials) -> ExitCode {
    print_line(&format!("{config:#?}\n{credentials}"))
}
