//! Signals: which of them stop the program, and which do not.
//!
//! | signal | effect |
//! |---|---|
//! | SIGTERM, SIGINT, SIGQUIT | finishes what was accepted, exit 0; the second of these ends the program at once, exit 1 |
//! | SIGHUP, SIGALRM | finishes what was accepted, exit 0. A hangup often comes twice, or with a SIGTERM, so it never counts as the second signal. If SIGHUP was ignored when the program started (`nohup`), it stays ignored |
//! | SIGUSR1, SIGUSR2 | nothing but a line in the log: other programs reopen their logs or reload by them, and their default action would drop accepted requests |
//! | SIGXFSZ | nothing: a write beyond the size limit of files fails instead |
//! | SIGPIPE | nothing: Rust ignores it |

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::log;

/// What people and supervisors send to end a program.
const STOP: [SignalKind; 3] = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
/// What happens to a program: its terminal is gone, or the time of `perl -e 'alarm ...; exec ...'` is over.
const HANG_UP: [SignalKind; 2] = [SignalKind::hangup(), SignalKind::alarm()];
const IGNORED: [SignalKind; 2] = [SignalKind::user_defined1(), SignalKind::user_defined2()];

/// Resolves at the first signal that stops the program, from now on. Call it within a runtime.
///
/// # Errors
/// If the operating system does not let the program handle signals.
pub fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut stop = listen(&STOP)?;
    let mut hang_up = listen(&HANG_UP)?;
    let mut ignored = listen(&IGNORED)?;
    // Only the default action has to go.
    listen(&[SignalKind::from_raw(Number::XFSZ.as_raw())])?;
    tokio::spawn(async move {
        loop {
            next(&mut ignored).await;
            if log::admits("signal") {
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

/// Handles signals from now on, but for those that were ignored when the program started and that mean a lost terminal.
fn listen(kinds: &[SignalKind]) -> io::Result<Vec<Signal>> {
    let is_kept_ignored = |kind: &SignalKind| *kind == SignalKind::hangup() && is_ignored(*kind);
    kinds.iter().filter(|kind| !is_kept_ignored(kind)).map(|kind| signal(*kind)).collect()
}

/// Waits for the next of these signals.
async fn next(signals: &mut [Signal]) {
    poll_fn(|context| {
        let came = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if came { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Whether this process ignores a signal. Known on Linux only.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}
