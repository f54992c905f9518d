//! Keeps the embedded Redis running: restarts it when it ends or when its socket cannot be reached.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::sync::oneshot;

use super::EmbeddedError;
use super::data_dir::{self, LOG, SOCKET};
use super::probe::{self, Unanswered};

/// How many bytes at the end of the server's log are read for an error message.
const LOG_TAIL_BYTES: u64 = 4096;
/// How long a new server may take until its first reply. A `-LOADING` error counts as a reply.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may take to stop after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
const RESTART_DELAY_MIN: Duration = Duration::from_millis(100);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(5);
/// A server that ran this long is restarted after the shortest delay.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// The interval of probes while a server starts.
const START_POLL: Duration = Duration::from_millis(5);
/// The interval of probes while a server loads its data.
const LOADING_POLL: Duration = Duration::from_millis(20);
/// How long a start waits for the data to be loaded after the first reply, to report a store that cannot be loaded
/// before the service listens. A larger store is loaded while the service reports that it is not ready.
const LOAD_WAIT: Duration = Duration::from_secs(1);
/// The interval of probes while a server runs.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// How long a running server may leave probes without a reply. A server that loads its data replies to them. A server
/// that has not replied for this long has failed every request since; a shorter timeout would stop servers that
/// only wait for a disk.
const NO_REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// A running server. It is restarted if it ends, and stopped when this is dropped.
#[derive(Debug)]
pub(super) struct Supervisor {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Receives an error if the first server ends before it has loaded its data.
    failed: oneshot::Receiver<EmbeddedError>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when `stop` or `child` changes.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stop: bool,
    /// The running child. It is not reaped yet, so its process id cannot belong to another process.
    child: Option<Pid>,
    /// Whether a server has replied to a probe.
    has_replied: bool,
    /// Whether a server has loaded the data, which shows that the data can be loaded.
    has_loaded: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while `go_on` returns true, for at most `time`. Returns true, at once, if the server is to stop.
    fn wait(&self, time: Duration, go_on: impl Fn(&State) -> bool) -> bool {
        let waited = self.changed.wait_timeout_while(self.state(), time, |state| !state.stop && go_on(state));
        waited.unwrap_or_else(PoisonError::into_inner).0.stop
    }

    fn set_child(&self, state: &mut State, child: Option<Pid>) {
        state.child = child;
        self.changed.notify_all();
    }
}

impl Supervisor {
    /// Starts `server` in `data_dir`. Returns once it has loaded its data, or `LOAD_WAIT` after its first reply.
    ///
    /// # Errors
    /// Why the server is not up. No process is left running then.
    pub(super) fn start(server: &Path, data_dir: &Path, lock: File) -> Result<Self, EmbeddedError> {
        let unusable = |error| EmbeddedError::Directory(data_dir.to_owned(), error);
        let shared = Arc::new(Shared::default());
        let (failed_sender, failed) = oneshot::channel();
        let mut supervisor = Self { shared: shared.clone(), threads: Vec::new(), failed };
        let run = {
            let (server, data_dir, shared) = (server.to_owned(), data_dir.to_owned(), shared.clone());
            move || supervise(&server, &data_dir, &lock, &shared, failed_sender)
        };
        let thread = std::thread::Builder::new().name("redis-supervisor".to_owned());
        supervisor.threads.push(thread.spawn(run).map_err(unusable)?);
        let run = {
            let (data_dir, shared) = (data_dir.to_owned(), shared);
            move || watch(&data_dir, &shared)
        };
        let thread = std::thread::Builder::new().name("redis-watch".to_owned());
        supervisor.threads.push(thread.spawn(run).map_err(unusable)?);
        supervisor.wait_until_up(server, data_dir)?;
        Ok(supervisor)
    }

    /// The process id of the running server, or `None` during a restart.
    pub(super) fn process_id(&self) -> Option<i32> {
        self.shared.state().child.map(|child| child.as_raw_nonzero().get())
    }

    /// Resolves if the first server ends before it has loaded its data, because the data cannot be loaded.
    pub(super) async fn failed(&mut self) -> EmbeddedError {
        match (&mut self.failed).await {
            Ok(error) => error,
            Err(_) => std::future::pending().await,
        }
    }

    fn wait_until_up(&mut self, server: &Path, data_dir: &Path) -> Result<(), EmbeddedError> {
        let started = Instant::now();
        let mut first_reply: Option<Instant> = None;
        loop {
            let (has_replied, has_loaded) = {
                let state = self.shared.state();
                (state.has_replied, state.has_loaded)
            };
            if has_loaded || first_reply.is_some_and(|first_reply| first_reply.elapsed() > LOAD_WAIT) {
                return Ok(());
            }
            if let Ok(error) = self.failed.try_recv() {
                return Err(error);
            }
            if has_replied {
                first_reply.get_or_insert_with(Instant::now);
            } else if started.elapsed() > START_TIMEOUT {
                let why = format!("no reply for {} s", START_TIMEOUT.as_secs());
                return Err(not_up(server, data_dir, why));
            }
            std::thread::sleep(START_POLL);
        }
    }
}

impl Drop for Supervisor {
    /// Stops the server cleanly, so acknowledged writes are on disk when this returns. Kills it after `STOP_TIMEOUT`.
    fn drop(&mut self) {
        {
            let mut state = self.shared.state();
            state.stop = true;
            signal(state.child, Signal::TERM);
            // A child that was stopped by a signal handles SIGTERM only once it continues.
            signal(state.child, Signal::CONT);
        }
        self.shared.changed.notify_all();
        let stop_sent = Instant::now();
        let mut killed = false;
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            if !killed && stop_sent.elapsed() > STOP_TIMEOUT {
                tracing::warn!("the embedded Redis does not stop; killing it");
                signal(self.shared.state().child, Signal::KILL);
                killed = true;
            }
            std::thread::sleep(START_POLL);
        }
        for thread in self.threads.drain(..) {
            // The threads do not panic; if one did, there is nothing left to stop.
            let _ = thread.join();
        }
    }
}

fn signal(child: Option<Pid>, signal: Signal) {
    if let Some(child) = child {
        // Fails if the child has just ended.
        let _ = rustix::process::kill_process(child, signal);
    }
}

fn not_up(server: &Path, data_dir: &Path, why: String) -> EmbeddedError {
    EmbeddedError::NotUp { server: server.to_owned(), why, log: log_tail(data_dir), data_dir: data_dir.to_owned() }
}

/// Starts one server. Its settings are arguments, so no file in the data directory can change them.
fn spawn(server: &Path, data_dir: &Path, lock: &File, shared: &Shared) -> io::Result<Child> {
    data_dir::clear_socket_path(data_dir)?;
    let mut command = Command::new(server);
    // Paths are relative to the data directory, so they need no quoting and stay below the server's limits.
    command.current_dir(data_dir).args(["--dir", ".", "--unixsocket", SOCKET, "--unixsocketperm", "700"]);
    command.args(["--port", "0", "--daemonize", "no", "--logfile", LOG, "--always-show-logo", "no"]);
    command.args(["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]);
    // `data_dir::recover` has cut off an unfinished write and kept a copy. Redis would cut it off without a copy.
    command.args(["--aof-load-truncated", "no"]);
    command.args(["--maxmemory-policy", "noeviction", "--hash-max-listpack-value", "512"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // In its own process group, Redis does not get the SIGINT of Ctrl-C: the service needs it to finish requests.
    command.process_group(0);
    end_with_parent(&mut command, lock)?;
    let mut state = shared.state();
    if state.stop {
        // `Supervisor::drop` found no child to signal, so none may be started now.
        return Err(io::ErrorKind::Interrupted.into());
    }
    let child = command.spawn()?;
    shared.set_child(&mut state, i32::try_from(child.id()).ok().and_then(Pid::from_raw));
    Ok(child)
}

/// Makes the kernel stop the child when its parent ends, even by `kill -9`. It sends SIGTERM, so the child still writes
/// what it acknowledged: Redis may hold that back for up to two seconds while a sync of its file takes long. The child
/// inherits the lock, so no other service uses the directory before the child has ended. On systems other than Linux,
/// the next start stops an orphaned child.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a child can ask for its parent-death signal only between fork and exec")]
fn end_with_parent(command: &mut Command, lock: &File) -> io::Result<()> {
    let lock = lock.try_clone()?;
    let parent = rustix::process::getpid();
    let between_fork_and_exec = move || {
        rustix::io::fcntl_setfd(&lock, rustix::io::FdFlags::empty())?;
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        // The parent may have ended before the signal was set.
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    };
    // SAFETY: only async-signal-safe calls are allowed between fork and exec. The closure makes three system calls, and
    // its errors are not allocated.
    unsafe { command.pre_exec(between_fork_and_exec) };
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent(_command: &mut Command, _lock: &File) -> io::Result<()> {
    Ok(())
}

/// Keeps a server running until `stop` is set, or until the first server ends before it has loaded its data.
///
/// This one thread starts all children, because the kernel sends the parent-death signal when the starting *thread*
/// ends.
fn supervise(server: &Path, data_dir: &Path, lock: &File, shared: &Shared, failed: oneshot::Sender<EmbeddedError>) {
    let mut delay = RESTART_DELAY_MIN;
    loop {
        let started = Instant::now();
        let end = match spawn(server, data_dir, lock, shared) {
            Ok(child) => reap(child, shared),
            Err(error) => error.to_string(),
        };
        let (stop, has_loaded) = {
            let state = shared.state();
            (state.stop, state.has_loaded)
        };
        if stop {
            return;
        }
        if !has_loaded {
            // The receiver has been dropped if the service is stopping.
            let _ = failed.send(not_up(server, data_dir, end));
            return;
        }
        tracing::error!(end, log = log_tail(data_dir), "the embedded Redis ended; starting it again");
        if started.elapsed() >= STABLE_AFTER {
            delay = RESTART_DELAY_MIN;
        }
        loop {
            if shared.wait(delay, |_| true) {
                return;
            }
            delay = (delay * 2).min(RESTART_DELAY_MAX);
            match data_dir::recover(data_dir) {
                Ok(_) => break,
                Err(error) => tracing::error!(%error, "cannot start the embedded Redis again; will retry"),
            }
        }
    }
}

/// Waits for the child to end, and returns its exit status as text. The child is reaped only after the state no longer
/// names it, so a signal cannot reach another process with the same id.
fn reap(mut child: Child, shared: &Shared) -> String {
    let pid = shared.state().child;
    if let Some(pid) = pid {
        // If this fails, `child.wait()` below waits instead.
        let _ = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    }
    let mut state = shared.state();
    shared.set_child(&mut state, None);
    child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
}

/// The state that `watch` has of one child.
struct WatchedChild {
    child: Pid,
    /// When it last replied, or was started.
    last_reply: Instant,
    has_replied: bool,
    has_loaded: bool,
    /// Whether the log already says that this child is not stopped.
    is_reported: bool,
}

impl WatchedChild {
    fn new(child: Pid) -> Self {
        Self { child, last_reply: Instant::now(), has_replied: false, has_loaded: false, is_reported: false }
    }
}

/// Probes the running server. If the server cannot be reached at its socket (the file was removed or replaced, or the
/// server does not reply), stops it, and `supervise` restarts it. If the store's files are missing as well, leaves it
/// running.
fn watch(data_dir: &Path, shared: &Shared) {
    let socket = data_dir.join(SOCKET);
    let mut watched: Option<WatchedChild> = None;
    loop {
        let (known, interval) = match &watched {
            None => (None, PROBE_INTERVAL),
            Some(watched) if watched.has_loaded => (Some(watched.child), PROBE_INTERVAL),
            Some(watched) if watched.has_replied => (Some(watched.child), LOADING_POLL),
            Some(watched) => (Some(watched.child), START_POLL),
        };
        if shared.wait(interval, |state| state.child == known) {
            return;
        }
        let Some(child) = shared.state().child else {
            watched = None;
            continue;
        };
        let watched = match &mut watched {
            Some(watched) if watched.child == child => watched,
            other => other.insert(WatchedChild::new(child)),
        };
        let trouble = match probe::ask_process(&socket, child) {
            Ok(reply) => {
                watched.last_reply = Instant::now();
                watched.has_replied = true;
                watched.has_loaded = !reply.starts_with("-LOADING");
                let mut state = shared.state();
                state.has_replied = true;
                state.has_loaded |= watched.has_loaded;
                continue;
            }
            Err(Unanswered::Unreachable(why)) if watched.has_replied => why,
            Err(Unanswered::NotSent) => continue,
            Err(Unanswered::Unreachable(why)) if watched.last_reply.elapsed() > START_TIMEOUT => why,
            Err(_) if watched.last_reply.elapsed() < NO_REPLY_TIMEOUT => continue,
            Err(_) => format!("it has not replied for {} s", NO_REPLY_TIMEOUT.as_secs()),
        };
        if data_dir::is_on_disk(data_dir) {
            tracing::error!(trouble, "the embedded Redis cannot be reached; stopping it to start it again");
            // When Redis stops, it removes the file at its socket's path, even if another process made that file.
            if let Err(error) = data_dir::clear_socket_path(data_dir) {
                tracing::error!(%error, "cannot clear the path of the socket");
            }
            stop_child(child, shared);
        } else if !watched.is_reported {
            watched.is_reported = true;
            tracing::error!(
                trouble,
                "the embedded Redis cannot be reached, and files of its store are missing in {}; not stopping it, \
                 because only its memory has all of the data",
                data_dir.display()
            );
        }
    }
}

/// Stops one child, and kills it after `STOP_TIMEOUT`. SIGCONT lets a child that a signal had stopped end cleanly.
fn stop_child(child: Pid, shared: &Shared) {
    let send = |name| signal(shared.state().child.filter(|&current| current == child), name);
    send(Signal::TERM);
    send(Signal::CONT);
    while shared.state().child == Some(child) {
        if shared.wait(STOP_TIMEOUT, |state| state.child == Some(child)) {
            return;
        }
        // Does nothing if the child has ended already.
        send(Signal::KILL);
    }
}

fn log_tail(data_dir: &Path) -> String {
    let mut log = Vec::new();
    if let Ok(mut file) = File::open(data_dir.join(LOG)) {
        let length = file.metadata().map_or(0, |file| file.len());
        // A log that cannot be read is treated as empty.
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)));
        let _ = file.take(LOG_TAIL_BYTES).read_to_end(&mut log);
    }
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
