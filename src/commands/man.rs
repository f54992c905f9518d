//! `sessiond man`.

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use sessiond::config::Cli;

use super::{EXIT_USAGE, fail};

/// Writes the manual pages.
pub(crate) fn run(directory: &Path) -> ExitCode {
    // The default synopsis names every setting.
    let command = Cli::command().override_usage("sessiond [OPTIONS] [COMMAND]");
    match clap_mangen::generate_to(command, directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot write the manual pages to {}: {error}", directory.display()), EXIT_USAGE),
    }
}
