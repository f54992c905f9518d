//! `sessiond completions`.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;
use sessiond::config::Cli;
use sessiond::output;

use super::after_print;

/// Prints the script that completes the program's arguments.
pub(crate) fn run(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    after_print(output::print(&String::from_utf8_lossy(&script)), ExitCode::SUCCESS)
}
