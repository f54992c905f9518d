//! `sessiond serve`, the default.

use std::process::ExitCode;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sessiond::auth::Credentials;
use sessiond::config::Config;
use sessiond::signals::stop_signal;
#[cfg(feature = "otel")]
use sessiond::trace;
use sessiond::{bootstrap, log};

#[cfg(feature = "otel")]
use super::fail_with;
use super::{EXIT_USAGE, embedded_failure, fail};

/// Serves until a signal or a failure stops it.
pub(crate) fn run(config: &Config, credentials: Arc<Credentials>) -> ExitCode {
    log::start(&config.observability.log);
    #[cfg(feature = "otel")]
    let _exporter = match config.observability.otlp_endpoint.as_deref().map(trace::start).transpose() {
        Ok(exporter) => exporter,
        Err(problem) => return fail_with(&[problem]),
    };
    raise_open_files_limit();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    // From here on a signal stops the service cleanly, also while it starts.
    let stop = match runtime.block_on(async { stop_signal() }) {
        Ok(stop) => stop,
        Err(error) => return fail(&error, 1),
    };
    let (redis, mut embedded) = match bootstrap::start_redis(config) {
        Ok(redis) => redis,
        Err(error) => return fail(&error, EXIT_USAGE),
    };
    let mut failure = None;
    let stop = async {
        tokio::select! {
            () = stop => {}
            error = embedded_failure(embedded.as_mut()) => failure = Some(error),
        }
    };
    let result = runtime.block_on(bootstrap::run(config, redis, credentials, stop));
    // The embedded Redis stops last, because accepted requests need it.
    drop(embedded);
    // Does not wait for threads that block: one may be reading a file from a file system that hangs.
    runtime.shutdown_background();
    match (failure, result) {
        (Some(error), _) => fail(&error, EXIT_USAGE),
        (None, Ok(())) => ExitCode::SUCCESS,
        (None, Err(error)) => fail(&error, 1),
    }
}

/// Raises the soft limit of open files, which is usually 1,024, to the hard limit. Every connection is an open file.
fn raise_open_files_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
