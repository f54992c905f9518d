//! The subcommands, one file each, and what they share: output and exit statuses.

pub(crate) mod audit;
pub(crate) mod check_config;
pub(crate) mod completions;
pub(crate) mod healthcheck;
pub(crate) mod keygen;
pub(crate) mod man;
pub(crate) mod openapi;
pub(crate) mod serve;

use std::fmt::Display;
use std::io::ErrorKind;
use std::process::ExitCode;

use sessiond::embedded_redis::{EmbeddedError, EmbeddedRedis};
use sessiond::{log, output};

/// The exit status for a bad flag, a bad setting or a missing prerequisite.
pub(crate) const EXIT_USAGE: u8 = 2;

/// Reports every problem of the settings.
pub(crate) fn fail_with(problems: &[String]) -> ExitCode {
    for problem in problems {
        log::report(problem);
    }
    ExitCode::from(EXIT_USAGE)
}

fn print_line(text: &str) -> ExitCode {
    after_print(output::print(&format!("{text}\n")), ExitCode::SUCCESS)
}

/// The exit status after printing to stdout: `status` if everything was printed, or if the reader, such as `head`,
/// closed the pipe.
pub(crate) fn after_print(result: std::io::Result<()>, status: ExitCode) -> ExitCode {
    match result {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            fail(&format!("cannot write to stdout: {error}"), EXIT_USAGE)
        }
        _ => status,
    }
}

fn fail(error: &dyn Display, status: u8) -> ExitCode {
    log::report(error);
    ExitCode::from(status)
}

/// Resolves if the embedded Redis cannot load its data. Never resolves without an embedded Redis.
async fn embedded_failure(embedded: Option<&mut EmbeddedRedis>) -> EmbeddedError {
    match embedded {
        Some(embedded) => embedded.failed().await,
        None => std::future::pending().await,
    }
}
