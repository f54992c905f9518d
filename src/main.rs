//! The program: parses its arguments and dispatches.

mod commands;

use std::io::IsTerminal;
use std::process::ExitCode;

use mimalloc::MiMalloc;
use sessiond::config::{Cli, Subcommands};
use sessiond::{bootstrap, log, output};

use self::commands::{EXIT_USAGE, after_print, fail_with};

/// Requests make many small, short-lived allocations. `benches/RESULTS.md` has the cost of each allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let status = run();
    log::flush();
    status
}

fn run() -> ExitCode {
    let cli = match Cli::from_environment() {
        Ok(cli) => cli,
        Err(error) => return show_usage(&error),
    };
    let command = match cli.command.unwrap_or(Subcommands::Serve) {
        Subcommands::Openapi => return commands::openapi::run(),
        Subcommands::Keygen(args) => return commands::keygen::run(args),
        Subcommands::Completions { shell } => return commands::completions::run(shell),
        Subcommands::Man { directory } => return commands::man::run(&directory),
        command => command,
    };
    let config = match cli.settings.check() {
        Ok(config) => config,
        Err(problems) => return fail_with(&problems),
    };
    match command {
        Subcommands::Healthcheck => {
            return commands::healthcheck::run(config.connections.listen, config.connections.tls.is_some());
        }
        Subcommands::Audit(args) => return commands::audit::run(&config, args),
        _ => {}
    }
    match bootstrap::credentials(&config) {
        Ok(credentials) if command == Subcommands::CheckConfig => commands::check_config::run(&config, &credentials),
        Ok(credentials) => commands::serve::run(&config, credentials),
        Err(problems) => fail_with(&problems),
    }
}

/// Prints the help or the version to stdout, or an error in the arguments to stderr. On a terminal, clap prints the
/// text, with colours.
fn show_usage(usage: &clap::Error) -> ExitCode {
    let text = usage.render().to_string();
    if !usage.use_stderr() {
        let on_terminal = std::io::stdout().is_terminal();
        return after_print(if on_terminal { usage.print() } else { output::print(&text) }, ExitCode::SUCCESS);
    }
    if std::io::stderr().is_terminal() {
        // After a failure the exit status still reports the error.
        let _ = usage.print();
    } else {
        log::print(&text);
    }
    ExitCode::from(EXIT_USAGE)
}
