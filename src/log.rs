//! The log: where it goes, and how much of it there is when very many lines would say the same.
//!
//! What a client or an outage can bring about as often as it likes is written only if [`admits`] says so: the first few
//! lines of its kind, then one a second. The rest is counted, and [`tell_left_out`] tells how much that was.
//!
//! No line has anything of a body, a credential, a business or a user: lines name the request's id, its route and what the
//! code itself says.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Lines of one kind in a second.
const LINES_MAX: u32 = 10;
/// Lines of one kind in a second that follows one in which some were left out.
const LINES_MAX_IN_STORM: u32 = 1;
const SECOND: Duration = Duration::from_secs(1);
/// A kind that tells of bugs: what is left out of it is an error, too.
const PANIC: &str = "panic";

static LINES: Sampler = Sampler::new();

/// Logs to stderr from now on: for people on a terminal, as JSON lines otherwise. Panics, too.
pub fn start(filter: &str) {
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        log.init();
    } else {
        log.json().flatten_event(true).init();
    }
    std::panic::set_hook(Box::new(panicked));
}

fn panicked(panic: &PanicHookInfo<'_>) {
    if admits(PANIC) {
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        tracing::error!(backtrace, "{panic}");
    }
}

/// Whether a line of this kind is to be written now. `kind` is one of the code's own words.
#[must_use]
pub fn admits(kind: &'static str) -> bool {
    LINES.admits(kind)
}

/// Tells once a second what was left out, for as long as the process lives.
pub async fn tell_left_out() {
    loop {
        tokio::time::sleep(SECOND).await;
        tell_left_out_now();
    }
}

/// Tells what was left out since that was told last.
pub fn tell_left_out_now() {
    for (kind, left_out) in LINES.next_second() {
        tracing::warn!(kind, left_out, "left out lines of the same kind");
    }
}

/// Counts lines by their kind.
struct Sampler(Mutex<BTreeMap<&'static str, Lines>>);

/// The lines of one kind in this second.
#[derive(Default)]
struct Lines {
    written: u32,
    left_out: u64,
    /// Some of the second before were left out.
    is_storm: bool,
}

impl Sampler {
    const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    fn kinds(&self) -> MutexGuard<'_, BTreeMap<&'static str, Lines>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admits(&self, kind: &'static str) -> bool {
        let mut kinds = self.kinds();
        let lines = kinds.entry(kind).or_default();
        let admits = lines.written < if lines.is_storm { LINES_MAX_IN_STORM } else { LINES_MAX };
        if admits {
            lines.written += 1;
        } else {
            lines.left_out += 1;
        }
        admits
    }

    /// Begins a second. Returns how many lines of the last one were left out, by their kind.
    fn next_second(&self) -> Vec<(&'static str, u64)> {
        let mut left_out = Vec::new();
        for (kind, lines) in self.kinds().iter_mut() {
            let is_storm = lines.left_out > 0;
            if is_storm {
                left_out.push((*kind, lines.left_out));
            }
            *lines = Lines { is_storm, ..Lines::default() };
        }
        left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_few_lines_and_a_count_and_its_end_is_noticed() {
        let lines = Sampler::new();
        let admitted = |count: usize| (0..count).filter(|_| lines.admits("a")).count();
        assert_eq!(admitted(10), 10);
        assert_eq!(lines.next_second(), []);
        assert_eq!(admitted(1_000), 10);
        assert!(lines.admits("b"), "another kind has lines of its own");
        assert_eq!(lines.next_second(), [("a", 990)]);
        assert_eq!(admitted(1_000), 1);
        assert_eq!(lines.next_second(), [("a", 999)]);
        // Calmer, but not over.
        assert_eq!(admitted(2), 1);
        assert_eq!(lines.next_second(), [("a", 1)]);
        assert_eq!(admitted(1), 1);
        assert_eq!(lines.next_second(), []);
        assert_eq!(admitted(20), 10);
    }
}
