//! The bounded queue in front of stderr. One thread writes it, so no other thread waits for the reader of stderr.
//!
//! If that thread cannot keep up (a pipe that is not read, a stopped terminal), or cannot write (a full disk, a pipe
//! whose reader has ended), lines are dropped and counted. When it can write again, one line reports how many.

use std::io::Write;
use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{metrics, output};

/// Lines that wait to be written.
pub(super) struct Queue {
    bytes_max: usize,
    state: Mutex<State>,
    /// Notified when there is something to write.
    filled: Condvar,
    /// Notified when there is nothing left to write.
    drained: Condvar,
}

struct State {
    /// Complete lines, one after the other.
    waiting: Vec<u8>,
    /// Whether lines were taken from `waiting` and are being written.
    is_writing: bool,
    /// The number of dropped lines that were not reported yet.
    dropped: u64,
}

impl State {
    fn drop_lines(&mut self, text: &[u8]) {
        let lines = text.iter().map(|byte| u64::from(*byte == b'\n')).sum();
        self.dropped += lines;
        metrics::log_lines_dropped(lines);
    }
}

impl Queue {
    /// An empty queue for at most `bytes_max` bytes. The thread that writes may hold as many in addition.
    pub(super) const fn new(bytes_max: usize) -> Self {
        let state = State { waiting: Vec::new(), is_writing: false, dropped: 0 };
        Self { bytes_max, state: Mutex::new(state), filled: Condvar::new(), drained: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues text, or drops all of it if it would exceed the limit.
    pub(super) fn push(&self, text: &[u8]) {
        self.push_if_at_most(self.bytes_max, text);
    }

    /// Queues text that reports dropped lines. The limit does not apply to it, because each batch has one such line.
    pub(super) fn push_report(&self, text: &[u8]) {
        self.push_if_at_most(usize::MAX, text);
    }

    fn push_if_at_most(&self, bytes_max: usize, text: &[u8]) {
        let mut state = self.state();
        if state.waiting.len().saturating_add(text.len()) > bytes_max {
            state.drop_lines(text);
            return;
        }
        let is_first = state.waiting.is_empty();
        state.waiting.extend_from_slice(text);
        drop(state);
        if is_first {
            self.filled.notify_one();
        }
    }

    /// Writes what is queued, in batches, until the process ends. Calls `report` with the number of dropped lines when
    /// writing succeeds again.
    pub(super) fn write_to(&self, mut out: impl Write, report: impl Fn(u64)) -> ! {
        let (mut batch, mut is_torn) = (Vec::new(), false);
        loop {
            let state = self.filled.wait_while(self.state(), |state| state.waiting.is_empty());
            let mut state = state.unwrap_or_else(PoisonError::into_inner);
            mem::swap(&mut state.waiting, &mut batch);
            state.is_writing = true;
            drop(state);

            let mut rest = batch.as_slice();
            let written = write_lines(&mut out, &mut rest, &mut is_torn);
            let mut state = self.state();
            let dropped = if written.is_ok() { mem::take(&mut state.dropped) } else { 0 };
            state.drop_lines(rest);
            drop(state);
            batch.clear();
            if dropped > 0 {
                report(dropped);
            }

            let mut state = self.state();
            state.is_writing = false;
            if state.waiting.is_empty() {
                self.drained.notify_all();
            }
        }
    }

    /// Waits until everything is written or dropped, for at most `timeout`. Returns false after a timeout.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        let is_busy = |state: &mut State| state.is_writing || !state.waiting.is_empty();
        let waited = self.drained.wait_timeout_while(self.state(), timeout, is_busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

/// Writes a batch. `is_torn` is set when writing fails in the middle of a line. The next call then ends that line
/// before it writes another one.
fn write_lines(out: &mut impl Write, rest: &mut &[u8], is_torn: &mut bool) -> std::io::Result<()> {
    if *is_torn {
        output::write_all(out, &mut b"\n".as_slice())?;
        *is_torn = false;
    }
    let lines = *rest;
    let written = output::write_all(out, rest);
    let before = lines.len() - rest.len();
    *is_torn = written.is_err() && before > 0 && lines[before - 1] != b'\n';
    written
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

    use super::*;

    /// Only a failing test waits this long.
    const TEST_TIMEOUT: Duration = Duration::from_secs(60);

    /// A writer that announces each write, and then waits for its result.
    struct Scripted {
        offered: Sender<Vec<u8>>,
        results: Receiver<io::Result<usize>>,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // If the test has ended, every write fails until the test binary ends.
            let _ = self.offered.send(bytes.to_vec());
            self.results.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Written {
        queue: Arc<Queue>,
        offered: Receiver<Vec<u8>>,
        results: SyncSender<io::Result<usize>>,
    }

    impl Written {
        /// A queue of 100 bytes that is written by a thread of its own.
        fn start() -> Self {
            let (sender, offered) = channel();
            let (results, receiver) = sync_channel(1);
            let queue = Arc::new(Queue::new(100));
            let thread_queue = queue.clone();
            std::thread::spawn(move || {
                let report = |dropped| thread_queue.push_report(format!("dropped {dropped}\n").as_bytes());
                thread_queue.write_to(Scripted { offered: sender, results: receiver }, report)
            });
            Self { queue, offered, results }
        }

        /// Returns what the thread writes next.
        fn next(&self) -> String {
            String::from_utf8(self.offered.recv_timeout(TEST_TIMEOUT).expect("a write")).expect("text")
        }

        fn complete(&self, result: io::Result<usize>) {
            self.results.send(result).expect("a thread that writes");
        }

        /// Expects a write of this text, and takes all of it.
        fn take(&self, text: &str) {
            assert_eq!(self.next(), text);
            self.complete(Ok(text.len()));
        }
    }

    #[test]
    fn lines_beyond_the_limit_are_dropped_and_counted() {
        let written = Written::start();
        written.queue.push(b"first\n");
        assert_eq!(written.next(), "first\n");
        for _ in 0..1_000 {
            written.queue.push(b"123456789\n");
        }
        assert!(!written.queue.flush(Duration::ZERO), "a flush waits no longer than its timeout");
        written.complete(Ok(6));
        written.take(&("123456789\n".repeat(10) + "dropped 990\n"));
        assert!(written.queue.flush(TEST_TIMEOUT));
        written.queue.push(b"again\n");
        written.take("again\n");
        assert!(written.queue.flush(TEST_TIMEOUT));
    }

    #[test]
    fn unwritable_lines_are_counted_and_a_torn_line_is_ended() {
        let written = Written::start();
        written.queue.push(b"one\ntwo\nthree\n");
        assert_eq!(written.next(), "one\ntwo\nthree\n");
        written.complete(Ok(5));
        assert_eq!(written.next(), "wo\nthree\n");
        written.complete(Err(io::ErrorKind::StorageFull.into()));
        assert!(written.queue.flush(TEST_TIMEOUT), "a flush does not wait for lines that cannot be written");
        written.queue.push(b"four\n");
        assert_eq!(written.next(), "\n");
        written.complete(Err(io::ErrorKind::StorageFull.into()));
        assert!(written.queue.flush(TEST_TIMEOUT));
        written.queue.push(b"five\n");
        written.take("\n");
        written.take("five\n");
        written.take("dropped 3\n");
        written.queue.push(b"six\n");
        written.take("six\n");
        assert!(written.queue.flush(TEST_TIMEOUT));
    }

    #[test]
    fn interrupted_and_blocked_writes_are_retried() {
        let written = Written::start();
        written.queue.push(b"one\n");
        for kind in [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock] {
            assert_eq!(written.next(), "one\n");
            written.complete(Err(kind.into()));
        }
        written.take("one\n");
        assert!(written.queue.flush(TEST_TIMEOUT));
    }
}
