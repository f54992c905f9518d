//! The program: parses its arguments and runs what they say.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mimalloc::MiMalloc;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sessiond::audit::{self, AuditOptions, Report};
use sessiond::auth::{self, Credentials};
use sessiond::config::{AuditArgs, Cli, Config, KeygenArgs, ReportFormat, Subcommands};
use sessiond::signals::stop_signal;
#[cfg(feature = "otel")]
use sessiond::spans;
use sessiond::store::embedded::{EmbeddedError, EmbeddedRedis};
use sessiond::store::{RedisAddress, SessionStore, StoreConfig, StoreError};
use sessiond::{http, log, output, server, tls};

/// Requests are many small, short-lived pieces of memory: benches/RESULTS.md has what each allocator costs.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The exit status of a bad setting or a missing prerequisite, as of a bad flag.
const EXIT_USAGE: u8 = 2;
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an audit waits for one answer of Redis: it is in no hurry.
const AUDIT_COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an audit waits for a Redis that is running.
const AUDIT_REDIS_WAIT: Duration = Duration::from_secs(3);
/// How long an audit waits for the private Redis, which has all of its data to load.
const AUDIT_LOAD_WAIT: Duration = Duration::from_secs(600);
/// How often an audit asks a Redis again that does not answer.
const AUDIT_POLL: Duration = Duration::from_millis(50);

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
        Subcommands::Openapi => return print_line(&http::document().to_pretty_json().unwrap_or_default()),
        Subcommands::Keygen(args) => return keygen(args),
        command => command,
    };
    let config = match cli.settings.check() {
        Ok(config) => config,
        Err(problems) => return fail_with(&problems),
    };
    match command {
        Subcommands::Healthcheck => return healthcheck(config.listen, config.tls.is_some()),
        Subcommands::Audit(args) => return run_audit(&config, args),
        _ => {}
    }
    match server::credentials(&config) {
        Ok(credentials) if command == Subcommands::CheckConfig => print_line(&format!("{config:#?}\n{credentials}")),
        Ok(credentials) => serve(&config, credentials),
        Err(problems) => fail_with(&problems),
    }
}

/// Shows the help or the version on stdout, or on stderr why the arguments cannot be understood. clap itself prints to
/// terminals, for it knows about colours.
fn show_usage(usage: &clap::Error) -> ExitCode {
    let text = usage.render().to_string();
    if !usage.use_stderr() {
        let on_terminal = std::io::stdout().is_terminal();
        return after_print(if on_terminal { usage.print() } else { output::print(&text) }, ExitCode::SUCCESS);
    }
    if std::io::stderr().is_terminal() {
        // If it fails, the exit status says enough.
        let _ = usage.print();
    } else {
        log::print(&text);
    }
    ExitCode::from(EXIT_USAGE)
}

/// Tells every problem of the settings.
fn fail_with(problems: &[String]) -> ExitCode {
    for problem in problems {
        log::report(problem);
    }
    ExitCode::from(EXIT_USAGE)
}

/// Makes an API key. The entry alone goes to stdout, to be appended to a file; the credential must not end up there.
///
/// The credential is shown only if its entry was written, and an entry is written only if its credential can be shown:
/// each is useless without the other.
fn keygen(args: KeygenArgs) -> ExitCode {
    let [stdout, stderr] = [output::is_discarded(std::io::stdout()), output::is_discarded(std::io::stderr())];
    for (name, is_discarded) in [("stdout", stdout), ("stderr", stderr)] {
        match is_discarded {
            Ok(false) => {}
            Ok(true) => return fail(&format!("no key was made: {name} is closed or /dev/null"), EXIT_USAGE),
            Err(error) => return fail(&format!("no key was made: cannot use {name}: {error}"), EXIT_USAGE),
        }
    }
    let (credential, entry) = match auth::generate(&args.into_key()) {
        Ok(made) => made,
        Err(problem) => return fail_with(&[problem]),
    };
    if let Err(error) = output::print(&format!("\n{entry}\n")) {
        let advice = "remove what there is of it; its credential is not shown";
        return fail(&format!("cannot write the entry to stdout: {error}: {advice}"), EXIT_USAGE);
    }
    match output::print_error(&format!("credential (shown only now): {credential}\n")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot show the credential: {error}: remove its entry"), EXIT_USAGE),
    }
}

fn print_line(text: &str) -> ExitCode {
    after_print(output::print(&format!("{text}\n")), ExitCode::SUCCESS)
}

/// The exit status after printing to stdout: `status` if all was printed, or as much as its reader wanted, such as `head`.
fn after_print(result: std::io::Result<()>, status: ExitCode) -> ExitCode {
    match result {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            fail(&format!("cannot write to stdout: {error}"), EXIT_USAGE)
        }
        _ => status,
    }
}

fn serve(config: &Config, credentials: Arc<Credentials>) -> ExitCode {
    log::start(&config.log);
    #[cfg(feature = "otel")]
    let _exporting = match config.otlp_endpoint.as_deref().map(spans::start).transpose() {
        Ok(exporting) => exporting,
        Err(problem) => return fail_with(&[problem]),
    };
    raise_open_files_limit();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    // From here on a signal stops the service cleanly, however far its start has come.
    let stop = match runtime.block_on(async { stop_signal() }) {
        Ok(stop) => stop,
        Err(error) => return fail(&error, 1),
    };
    let (redis, mut embedded) = match server::start_redis(config) {
        Ok(redis) => redis,
        Err(error) => return fail(&error, EXIT_USAGE),
    };
    let mut failure = None;
    let stop = async {
        tokio::select! {
            () = stop => {}
            error = failed(embedded.as_mut()) => failure = Some(error),
        }
    };
    let result = runtime.block_on(server::run(config, redis, credentials, stop));
    // The private Redis goes last: accepted requests need it to the end.
    drop(embedded);
    // A file that cannot be read, because its file system hangs, may still have a thread wait for it.
    runtime.shutdown_background();
    match (failure, result) {
        (Some(error), _) => fail(&error, EXIT_USAGE),
        (None, Ok(())) => ExitCode::SUCCESS,
        (None, Err(error)) => fail(&error, 1),
    }
}

/// Resolves if the embedded Redis turns out to be unable to load its data.
async fn failed(embedded: Option<&mut EmbeddedRedis>) -> EmbeddedError {
    match embedded {
        Some(embedded) => embedded.failed().await,
        None => std::future::pending().await,
    }
}

/// Audits the Redis of a configuration and prints the report.
fn run_audit(config: &Config, args: AuditArgs) -> ExitCode {
    log::start(&config.log);
    let (redis, mut embedded) = match server::start_redis_to_audit(config, args.repair) {
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
            error = failed(embedded.as_mut()) => Some(Err(error.into())),
            () = stop => None,
        }
    });
    let notes = embedded.as_ref().and_then(EmbeddedRedis::note).map(str::to_owned).into_iter().collect();
    // The private Redis goes last, and cleanly.
    drop(embedded);
    let report = match audited {
        Some(Ok(report)) => Report { notes, ..report },
        Some(Err(error)) => return fail(&error, EXIT_USAGE),
        None => return fail(&"stopped before the end", EXIT_USAGE),
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
        // It is looked at all the more.
        refuse_unfit: false,
        ..server::store_config(config, redis)
    };
    let store = SessionStore::connect(settings, Arc::new(server::system_now))?;
    let give_up = Instant::now() + wait;
    loop {
        match store.check_layout().await {
            Ok(()) => break,
            Err(error @ StoreError::Layout(_)) => return Err(error.into()),
            Err(error) if Instant::now() >= give_up => return Err(error.into()),
            Err(_) => tokio::time::sleep(AUDIT_POLL).await,
        }
    }
    // By a wrong clock it would find faults that are none, and repair them.
    store.check_clocks().await?;
    let options = AuditOptions { keys_per_second_max: args.max_keys_per_second, repair: args.repair };
    let on_terminal = std::io::stderr().is_terminal();
    let progress = |report: &Report| {
        if on_terminal {
            log::print(&format!("\r{} keys, {} findings", report.keys, report.findings.len()));
        }
    };
    let report = audit::audit(&store, options, &server::system_now, &progress).await;
    if on_terminal {
        // The progress line goes before anything else is printed.
        log::print("\r\x1b[K");
        log::flush();
    }
    store.quit().await;
    Ok(report?)
}

fn fail(error: &dyn Display, status: u8) -> ExitCode {
    log::report(error);
    ExitCode::from(status)
}

/// Every connection is an open file, and the usual soft limit is 1,024: takes the hard limit.
fn raise_open_files_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Asks the service at `address` whether it is ready.
fn healthcheck(address: SocketAddr, by_tls: bool) -> ExitCode {
    let ask = || -> std::io::Result<String> {
        let stream = TcpStream::connect_timeout(&address, HEALTHCHECK_TIMEOUT)?;
        stream.set_read_timeout(Some(HEALTHCHECK_TIMEOUT))?;
        if by_tls { ask_ready(tls::connect_unverified(address, stream)?, address) } else { ask_ready(stream, address) }
    };
    match ask() {
        Ok(answer) if answer.starts_with("HTTP/1.1 200 ") => print_line("ready"),
        Ok(answer) => fail(&format!("not ready: {}", answer.lines().last().unwrap_or_default()), 1),
        Err(error) => fail(&format!("no answer from {address}: {error}"), 1),
    }
}

fn ask_ready(mut stream: impl Read + Write, address: SocketAddr) -> std::io::Result<String> {
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
