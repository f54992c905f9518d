//! The log: where it is written, and how repeated lines are limited.
//!
//! Log lines and error reports pass through a bounded queue to one thread that writes stderr. No other thread waits for
//! stderr, or fails if stderr fails. Lines that cannot be written are dropped and counted.
//!
//! Lines that a client or an outage can cause without limit are written only if [`should_log`] allows it: the first few
//! lines of a kind, then one a second. The rest is counted, and [`report_suppressed`] logs the count.
//!
//! No line has any part of a body, a credential, a business or a user. Lines have the request's id, its route and texts
//! of the code.

mod queue;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use self::queue::Queue;
use crate::output::{self, Unbuffered};

/// Maximum bytes of queued lines. A service at its peak that logs every response fills the queue in a quarter of a
/// second.
const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long the program waits at its end for the last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// The target of the line that reports dropped lines.
const DROPPED: &str = "sessiond::log::dropped";
/// Maximum number of lines of one kind in a second.
const LINES_MAX: u32 = 10;
/// Maximum number of lines of one kind in a second, if lines of the previous second were suppressed.
const LINES_MAX_IN_STORM: u32 = 1;
const SECOND: Duration = Duration::from_secs(1);
/// The kind of lines that report panics.
const PANIC: &str = "panic";

static LINES: Sampler = Sampler::new();
static QUEUE: Queue = Queue::new(QUEUE_BYTES_MAX);

/// Starts logging to stderr: readable lines on a terminal, JSON lines otherwise. Panics are logged as well.
pub fn start(filter: &str) {
    start_writer();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Queued);
    if io::stderr().is_terminal() {
        log.init();
    } else {
        log.json().flatten_event(true).init();
    }
    std::panic::set_hook(Box::new(log_panic));
}

/// Starts the thread that writes the queue, once. Returns whether it runs.
fn start_writer() -> bool {
    static IS_RUNNING: OnceLock<bool> = OnceLock::new();
    *IS_RUNNING.get_or_init(|| {
        let write = || QUEUE.write_to(Unbuffered::stderr(), report_dropped);
        std::thread::Builder::new().name("log".to_owned()).spawn(write).is_ok()
    })
}

fn report_dropped(dropped: u64) {
    tracing::warn!(target: DROPPED, dropped, "dropped log lines that stderr did not take, or not fast enough");
}

/// Writes text to stderr, after the log lines so far. Does not wait until it is written.
pub fn print(text: &str) {
    if start_writer() {
        QUEUE.push(text.as_bytes());
    } else {
        // Without threads nothing is served, so this may block. A failure cannot be reported anywhere else.
        let _ = output::print_error(text);
    }
}

/// Writes a problem to stderr as a plain line, even if the log has JSON lines.
pub fn report(problem: impl Display) {
    print(&format!("sessiond: {problem}\n"));
}

/// Waits until everything that was logged and printed is written, for at most a second. To be called before the process
/// ends.
pub fn flush() {
    // After the timeout, the remaining lines are lost: the reader of stderr is too slow, or does not read.
    let _ = QUEUE.flush(FLUSH_TIMEOUT);
}

/// Writes log lines to the queue.
struct Queued;

/// The writer of one log line, which is written in one piece.
struct Line {
    is_report: bool,
}

impl<'a> MakeWriter<'a> for Queued {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { is_report: false }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line {
        Line { is_report: event.target() == DROPPED }
    }
}

impl Write for Line {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if self.is_report {
            QUEUE.push_report(text);
        } else {
            QUEUE.push(text);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    if should_log(PANIC) {
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        tracing::error!(backtrace, "{panic}");
    }
}

/// Whether a line of this kind is to be written now. `kind` is a constant of the code, so the code bounds their number.
#[must_use]
pub fn should_log(kind: &'static str) -> bool {
    LINES.should_log(kind)
}

/// Logs once a second how many lines were suppressed, until the process ends.
pub async fn report_suppressed() {
    loop {
        tokio::time::sleep(SECOND).await;
        report_suppressed_now();
    }
}

/// Logs how many lines were suppressed since the last report.
pub fn report_suppressed_now() {
    for (kind, suppressed) in LINES.next_second() {
        tracing::warn!(kind, suppressed, "suppressed lines of the same kind");
    }
}

/// Counts and limits lines by their kind.
struct Sampler(Mutex<BTreeMap<&'static str, Lines>>);

/// The lines of one kind in this second.
#[derive(Default)]
struct Lines {
    written: u32,
    suppressed: u64,
    /// Whether lines of the previous second were suppressed.
    is_storm: bool,
}

impl Sampler {
    const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    fn kinds(&self) -> MutexGuard<'_, BTreeMap<&'static str, Lines>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn should_log(&self, kind: &'static str) -> bool {
        let mut kinds = self.kinds();
        let lines = kinds.entry(kind).or_default();
        let should_log = lines.written < if lines.is_storm { LINES_MAX_IN_STORM } else { LINES_MAX };
        if should_log {
            lines.written += 1;
        } else {
            lines.suppressed += 1;
        }
        should_log
    }

    /// Begins a second. Returns how many lines of the last one were suppressed, by their kind.
    fn next_second(&self) -> Vec<(&'static str, u64)> {
        let mut suppressed = Vec::new();
        for (kind, lines) in self.kinds().iter_mut() {
            let is_storm = lines.suppressed > 0;
            if is_storm {
                suppressed.push((*kind, lines.suppressed));
            }
            *lines = Lines { is_storm, ..Lines::default() };
        }
        suppressed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_lines_are_suppressed_and_counted_until_they_stop() {
        let lines = Sampler::new();
        let logged = |count: usize| (0..count).filter(|_| lines.should_log("a")).count();
        assert_eq!(logged(10), 10);
        assert_eq!(lines.next_second(), []);
        assert_eq!(logged(1_000), 10);
        assert!(lines.should_log("b"), "each kind has its own limit");
        assert_eq!(lines.next_second(), [("a", 990)]);
        assert_eq!(logged(1_000), 1);
        assert_eq!(lines.next_second(), [("a", 999)]);
        // Fewer lines, but still too many.
        assert_eq!(logged(2), 1);
        assert_eq!(lines.next_second(), [("a", 1)]);
        assert_eq!(logged(1), 1);
        assert_eq!(lines.next_second(), []);
        assert_eq!(logged(20), 10);
    }
}
