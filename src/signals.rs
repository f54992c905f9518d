//! The program's handling of signals.
//!
//! - SIGTERM, SIGINT, SIGQUIT: finishes accepted requests and exits with 0. A second one ends the program at once, with
//!   exit status 1.
//! - SIGHUP, SIGALRM: finishes accepted requests and exits with 0. A hangup often arrives twice, or with a SIGTERM, so
//!   it never counts as the second signal. If SIGHUP was ignored when the program started (`nohup`), it stays ignored.
//! - SIGUSR1, SIGUSR2: only logged. Other programs reopen their logs or reload on these signals, and the default action
//!   would drop accepted requests.
//! - SIGXFSZ: no effect. A write beyond the size limit of files fails instead.
//! - SIGPIPE: no effect. Rust ignores it.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::log;

/// Sent by people and supervisors to end a program.
const STOP: [SignalKind; 3] = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
/// Sent when the terminal closes, or when the alarm of `perl -e 'alarm ...; exec ...'` expires.
const HANG_UP: [SignalKind; 2] = [SignalKind::hangup(), SignalKind::alarm()];
const IGNORED: [SignalKind; 2] = [SignalKind::user_defined1(), SignalKind::user_defined2()];

/// Installs the signal handlers. The returned future resolves at the first signal that stops the program. Must be
/// called within a runtime.
///
/// # Errors
/// If the operating system does not let the program handle signals.
pub fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut stop = listen(&STOP)?;
    let mut hang_up = listen(&HANG_UP)?;
    let mut ignored = listen(&IGNORED)?;
    // A handler replaces the default action, which ends the program.
    listen(&[SignalKind::from_raw(Number::XFSZ.as_raw())])?;
    tokio::spawn(async move {
        loop {
            next(&mut ignored).await;
            if log::should_log("signal") {
                tracing::info!("ignored SIGUSR1 or SIGUSR2");
            }
        }
    });
    Ok(async move {
        let is_first_stop = tokio::select! {
            () = next(&mut stop) => true,
            () = next(&mut hang_up) => false,
        };
        tokio::spawn(async move {
            if !is_first_stop {
                next(&mut stop).await;
            }
            next(&mut stop).await;
            tracing::warn!("a second signal: ending at once");
            log::flush();
            std::process::exit(1);
        });
    })
}

/// Installs handlers for signals, except for a SIGHUP that was ignored when the program started.
fn listen(kinds: &[SignalKind]) -> io::Result<Vec<Signal>> {
    let is_kept_ignored = |kind: &SignalKind| *kind == SignalKind::hangup() && is_ignored(*kind);
    kinds.iter().filter(|kind| !is_kept_ignored(kind)).map(|kind| signal(*kind)).collect()
}

/// Waits for the next of these signals.
async fn next(signals: &mut [Signal]) {
    poll_fn(|context| {
        let received = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if received { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Whether this process ignores a signal. Always false on systems other than Linux.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}
