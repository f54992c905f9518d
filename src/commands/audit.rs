//! `sessiond audit`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sessiond::audit::{self, AuditOptions, Report};
use sessiond::config::{AuditArgs, Config, ReportFormat};
use sessiond::embedded_redis::{EmbeddedError, EmbeddedRedis};
use sessiond::signals::stop_signal;
use sessiond::store::{RedisAddress, SessionStore, StoreConfig, StoreError};
use sessiond::{bootstrap, log, output};

use super::{EXIT_USAGE, after_print, embedded_failure, fail};

/// How long an audit waits for one reply of Redis. No client waits for it.
const AUDIT_COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an audit waits for a Redis that it did not start.
const AUDIT_REDIS_WAIT: Duration = Duration::from_secs(3);
/// How long an audit waits for the embedded Redis, which has to load all of its data.
const AUDIT_LOAD_WAIT: Duration = Duration::from_secs(600);
/// The interval at which an audit retries a Redis that does not reply.
const AUDIT_POLL: Duration = Duration::from_millis(50);

/// Audits the Redis of a configuration and prints the report.
pub(crate) fn run(config: &Config, args: AuditArgs) -> ExitCode {
    log::start(&config.observability.log);
    let (redis, mut embedded) = match bootstrap::start_redis_to_audit(config, args.repair) {
        Ok(redis) => redis,
        Err(error) => return fail(&error, EXIT_USAGE),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, EXIT_USAGE),
    };
    let wait = if embedded.is_some() { AUDIT_LOAD_WAIT } else { AUDIT_REDIS_WAIT };
    let audited = runtime.block_on(async {
        let stop = match stop_signal() {
            Ok(stop) => stop,
            Err(error) => return Some(Err(AuditError::Signals(error))),
        };
        tokio::select! {
            audited = audit_of(config, redis, args, wait) => Some(audited),
            error = embedded_failure(embedded.as_mut()) => Some(Err(error.into())),
            () = stop => None,
        }
    });
    let notes = embedded.as_ref().and_then(EmbeddedRedis::note).map(str::to_owned).into_iter().collect();
    // Stops the embedded Redis cleanly, now that the audit has ended.
    drop(embedded);
    let report = match audited {
        Some(Ok(report)) => Report { notes, ..report },
        Some(Err(error)) => return fail(&error, EXIT_USAGE),
        None => return fail(&"the audit was stopped before its end", EXIT_USAGE),
    };
    let printed = match args.format {
        ReportFormat::Text => report.to_string(),
        ReportFormat::Json => serde_json::to_string_pretty(&report).unwrap_or_default(),
    };
    let status = if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    after_print(output::print(&format!("{printed}\n")), status)
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
enum AuditError {
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] std::io::Error),
}

async fn audit_of(config: &Config, redis: RedisAddress, args: AuditArgs, wait: Duration) -> Result<Report, AuditError> {
    let settings = StoreConfig {
        command_timeout: AUDIT_COMMAND_TIMEOUT,
        // An unsupported server is audited as well.
        require_supported: false,
        ..bootstrap::store_config(config, redis)
    };
    let store = SessionStore::connect(settings, Arc::new(bootstrap::system_now))?;
    let give_up = Instant::now() + wait;
    loop {
        match store.read_layout().await {
            Ok(()) => break,
            Err(error @ StoreError::Layout(_)) => return Err(error.into()),
            Err(error) if Instant::now() >= give_up => return Err(error.into()),
            Err(_) => tokio::time::sleep(AUDIT_POLL).await,
        }
    }
    // With a wrong clock the audit would find, and repair, problems that do not exist.
    store.check_clocks().await?;
    let options = AuditOptions { keys_per_second_max: args.max_keys_per_second, repair: args.repair };
    let on_terminal = std::io::stderr().is_terminal();
    let progress = |report: &Report| {
        if on_terminal {
            log::print(&format!("\r{} keys, {} findings", report.keys, report.findings.len()));
        }
    };
    let report = audit::audit(&store, options, &bootstrap::system_now, &progress).await;
    if on_terminal {
        // Clears the progress line before anything else is printed.
        log::print("\r\x1b[K");
        log::flush();
    }
    store.quit().await;
    Ok(report?)
}
