//! The log: where it goes, and how much of it there is when very many lines would say the same.
//!
//! Everything that the program writes to stderr goes through a bounded queue to a thread of its own: whatever becomes of
//! stderr, nothing else waits for it or fails with it. What cannot be written is dropped and counted.
//!
//! What a client or an outage can bring about as often as it likes is written only if [`admits`] says so: the first few
//! lines of its kind, then one a second. The rest is counted, and [`tell_left_out`] tells how much that was.
//!
//! No line has anything of a body, a credential, a business or a user: lines name the request's id, its route and what the
//! code itself says.

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

/// Most bytes that wait to be written: a quarter of a second's lines of a service that logs every answer at its peak.
const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long the end of the program waits for its last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// The target of the line that reports dropped lines.
const DROPPED: &str = "sessiond::log::dropped";
/// Lines of one kind in a second.
const LINES_MAX: u32 = 10;
/// Lines of one kind in a second that follows one in which some were left out.
const LINES_MAX_IN_STORM: u32 = 1;
const SECOND: Duration = Duration::from_secs(1);
/// A kind that tells of bugs: what is left out of it is an error, too.
const PANIC: &str = "panic";

static LINES: Sampler = Sampler::new();
static QUEUE: Queue = Queue::new(QUEUE_BYTES_MAX);

/// Logs to stderr from now on: for people on a terminal, as JSON lines otherwise. Panics, too.
pub fn start(filter: &str) {
    is_written();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Queued);
    if io::stderr().is_terminal() {
        log.init();
    } else {
        log.json().flatten_event(true).init();
    }
    std::panic::set_hook(Box::new(panicked));
}

/// Starts the thread that writes the queue, once. Returns whether it runs.
fn is_written() -> bool {
    static IS_WRITTEN: OnceLock<bool> = OnceLock::new();
    *IS_WRITTEN.get_or_init(|| {
        let write = || QUEUE.write_to(Unbuffered::stderr(), report_dropped);
        std::thread::Builder::new().name("log".to_owned()).spawn(write).is_ok()
    })
}

fn report_dropped(dropped: u64) {
    tracing::warn!(target: DROPPED, dropped, "dropped lines of the log that could not be written, or not fast enough");
}

/// Writes text to stderr, after the lines of the log so far. Does not wait for it.
pub fn print(text: &str) {
    if is_written() {
        QUEUE.push(text.as_bytes());
    } else {
        // Without threads nothing is served, so this may wait. If it fails, there is no other place to report to.
        let _ = output::print_error(text);
    }
}

/// Writes a problem to stderr: a line for people, on whatever stderr is.
pub fn report(problem: impl Display) {
    print(&format!("sessiond: {problem}\n"));
}

/// Waits until all that was logged and printed is written, but no longer than a second. To be called before the process ends.
pub fn flush() {
    // If it takes longer, nobody reads the log.
    let _ = QUEUE.flush(FLUSH_TIMEOUT);
}

/// Makes log lines text of the queue.
struct Queued;

/// A line, written in one piece.
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
