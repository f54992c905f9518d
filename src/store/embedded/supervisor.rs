//! Keeps the embedded Redis running: starts it again when it ends, and stops it when its socket can no longer be reached.

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

/// How much of the server's log is read for its last lines.
const LOG_TAIL_BYTES: u64 = 4096;
/// How long a new server may take until its socket answers, if only to say that it is loading.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may take to stop when asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
const RESTART_DELAY_MIN: Duration = Duration::from_millis(100);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(5);
/// A server that lived this long is restarted without delay.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// Between two probes of a server that starts.
const START_POLL: Duration = Duration::from_millis(5);
/// Between two probes of a server that loads its data.
const LOADING_POLL: Duration = Duration::from_millis(20);
/// How long a start waits for the data to be loaded, too: a store that cannot be loaded is then refused before anything is
/// served. A large store is loaded while the service answers that it is not ready.
const LOAD_WAIT: Duration = Duration::from_secs(1);
/// Between two probes of a server that runs.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// How long a server that runs may leave probes unanswered. A server that loads its data answers them. One that is slow for
/// as long as this has failed every request for as long; a shorter time would stop servers that only wait for a disk.
const NO_ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// A running server, restarted if it dies, stopped when this is dropped.
#[derive(Debug)]
pub(super) struct Supervisor {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Why the first server ended before it had loaded its data.
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
    /// The running child, not yet reaped: its process id cannot belong to another process.
    child: Option<Pid>,
    /// Whether a server has answered.
    has_answered: bool,
    /// Whether a server has loaded its data, so that it can be loaded.
    has_loaded: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for as long as `go_on` says so, `time` at most. Returns true as soon as the server is to stop.
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
    /// Starts `server` in `data_dir`, and returns once it answers, if only to say that it is still loading.
    ///
    /// # Errors
    /// Why it is not up. Nothing is left running then.
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

    /// The running server's process id, or `None` while it is restarted.
    pub(super) fn process_id(&self) -> Option<i32> {
        self.shared.state().child.map(|child| child.as_raw_nonzero().get())
    }

    /// Resolves if the first server ends before it has loaded its data: it cannot be loaded.
    pub(super) async fn failed(&mut self) -> EmbeddedError {
        match (&mut self.failed).await {
            Ok(error) => error,
            Err(_) => std::future::pending().await,
        }
    }

    fn wait_until_up(&mut self, server: &Path, data_dir: &Path) -> Result<(), EmbeddedError> {
        let started = Instant::now();
        let mut answered: Option<Instant> = None;
        loop {
            let (has_answered, has_loaded) = {
                let state = self.shared.state();
                (state.has_answered, state.has_loaded)
            };
            if has_loaded || answered.is_some_and(|answered| answered.elapsed() > LOAD_WAIT) {
                return Ok(());
            }
            if let Ok(error) = self.failed.try_recv() {
                return Err(error);
            }
            if has_answered {
                answered.get_or_insert_with(Instant::now);
            } else if started.elapsed() > START_TIMEOUT {
                let why = format!("no answer for {} s", START_TIMEOUT.as_secs());
                return Err(not_up(server, data_dir, why));
            }
            std::thread::sleep(START_POLL);
        }
    }
}

impl Drop for Supervisor {
    /// Stops the server cleanly: what was acknowledged is on disk when this returns.
    fn drop(&mut self) {
        {
            let mut state = self.shared.state();
            state.stop = true;
            signal(state.child, Signal::TERM);
            // One that is stopped by a signal could not end.
            signal(state.child, Signal::CONT);
        }
        self.shared.changed.notify_all();
        let asked = Instant::now();
        let mut killed = false;
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            if !killed && asked.elapsed() > STOP_TIMEOUT {
                tracing::warn!("the private Redis does not stop; killing it");
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
        // It may have ended by itself in this moment.
        let _ = rustix::process::kill_process(child, signal);
    }
}

fn not_up(server: &Path, data_dir: &Path, why: String) -> EmbeddedError {
    EmbeddedError::NotUp { server: server.to_owned(), why, log: log_tail(data_dir), data_dir: data_dir.to_owned() }
}

/// Starts one server. Its settings are arguments, so that a file in the data directory cannot change them.
fn spawn(server: &Path, data_dir: &Path, lock: &File, shared: &Shared) -> io::Result<Child> {
    data_dir::clear_socket_path(data_dir)?;
    let mut command = Command::new(server);
    // Paths are relative to the data directory: no quoting, and no limit on the server's side.
    command.current_dir(data_dir).args(["--dir", ".", "--unixsocket", SOCKET, "--unixsocketperm", "700"]);
    command.args(["--port", "0", "--daemonize", "no", "--logfile", LOG, "--always-show-logo", "no"]);
    command.args(["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]);
    // An unfinished end was cut off before, and a copy kept. Redis itself would cut without one.
    command.args(["--aof-load-truncated", "no"]);
    command.args(["--maxmemory-policy", "noeviction", "--hash-max-listpack-value", "512"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // A group of its own: Ctrl-C on the terminal is the service's to handle, it still needs Redis to finish requests.
    command.process_group(0);
    end_with_parent(&mut command, lock)?;
    let mut state = shared.state();
    if state.stop {
        // The one who stops us has found no child to signal.
        return Err(io::ErrorKind::Interrupted.into());
    }
    let child = command.spawn()?;
    shared.set_child(&mut state, i32::try_from(child.id()).ok().and_then(Pid::from_raw));
    Ok(child)
}

/// Has the kernel stop the child when its parent ends, even by `kill -9`: with SIGTERM, so that it still writes what it
/// acknowledged (Redis holds that back for up to two seconds while a sync of its file takes long). The lock goes with the
/// child, so that nobody else uses the folder before that is done. On other systems than Linux an orphan is stopped by the
/// next start.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a child can ask for its parent-death signal only between fork and exec")]
fn end_with_parent(command: &mut Command, lock: &File) -> io::Result<()> {
    let lock = lock.try_clone()?;
    let parent = rustix::process::getpid();
    let between_fork_and_exec = move || {
        rustix::io::fcntl_setfd(&lock, rustix::io::FdFlags::empty())?;
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        // The parent may have ended before the kernel knew of the wish.
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed: these are three system calls, and the error
    // that they may make is not allocated.
    unsafe { command.pre_exec(between_fork_and_exec) };
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent(_command: &mut Command, _lock: &File) -> io::Result<()> {
    Ok(())
}

/// Keeps a server running until it is meant to stop, or until it turns out that its data cannot be loaded.
///
/// All children are started from this one thread: the kernel takes the end of the starting *thread* for the parent's.
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
            // The receiver is gone if the service is stopping.
            let _ = failed.send(not_up(server, data_dir, end));
            return;
        }
        tracing::error!(end, log = log_tail(data_dir), "the private Redis ended; starting it again");
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
                Err(error) => tracing::error!(%error, "cannot start the embedded Redis again; trying once more later"),
            }
        }
    }
}

/// Waits for the child to end. It stays a zombie until the state no longer names it, so that no other process is signalled.
fn reap(mut child: Child, shared: &Shared) -> String {
    let pid = shared.state().child;
    if let Some(pid) = pid {
        // If this fails, the wait below does its work.
        let _ = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    }
    let mut state = shared.state();
    shared.set_child(&mut state, None);
    child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
}

/// What the watch knows of one child.
struct Watched {
    child: Pid,
    /// When it last answered, or started.
    last_answer: Instant,
    has_answered: bool,
    has_loaded: bool,
    /// Whether the log says already that it is not stopped.
    is_told: bool,
}

impl Watched {
    fn new(child: Pid) -> Self {
        Self { child, last_answer: Instant::now(), has_answered: false, has_loaded: false, is_told: false }
    }
}

/// Probes the running server. Stops it, so that it is started again, if it cannot be reached at its socket: the file was
/// removed or replaced, or the server does not answer.
fn watch(data_dir: &Path, shared: &Shared) {
    let socket = data_dir.join(SOCKET);
    let mut watched: Option<Watched> = None;
    loop {
        let (known, interval) = match &watched {
            None => (None, PROBE_INTERVAL),
            Some(watched) if watched.has_loaded => (Some(watched.child), PROBE_INTERVAL),
            Some(watched) if watched.has_answered => (Some(watched.child), LOADING_POLL),
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
            other => other.insert(Watched::new(child)),
        };
        let trouble = match probe::ask_process(&socket, child) {
            Ok(reply) => {
                watched.last_answer = Instant::now();
                watched.has_answered = true;
                watched.has_loaded = !reply.starts_with("-LOADING");
                let mut state = shared.state();
                state.has_answered = true;
                state.has_loaded |= watched.has_loaded;
                continue;
            }
            Err(Unanswered::Unreachable(why)) if watched.has_answered => why,
            Err(Unanswered::NotAsked) => continue,
            Err(Unanswered::Unreachable(why)) if watched.last_answer.elapsed() > START_TIMEOUT => why,
            Err(_) if watched.last_answer.elapsed() < NO_ANSWER_TIMEOUT => continue,
            Err(_) => format!("it has not answered for {} s", NO_ANSWER_TIMEOUT.as_secs()),
        };
        if data_dir::is_on_disk(data_dir) {
            tracing::error!(trouble, "the embedded Redis cannot be reached; stopping it to start it again");
            // Redis removes what has the socket's name when it stops, even another's file.
            if let Err(error) = data_dir::clear_socket_path(data_dir) {
                tracing::error!(%error, "cannot clear the path of the socket");
            }
            stop_child(child, shared);
        } else if !watched.is_told {
            watched.is_told = true;
            tracing::error!(
                trouble,
                "the embedded Redis cannot be reached, and files of its store are missing in {}; not stopping it, because \
                 it alone has all of its data",
                data_dir.display()
            );
        }
    }
}

/// Stops one child. A child that is stopped by a signal goes on, so that it can end cleanly.
fn stop_child(child: Pid, shared: &Shared) {
    let send = |name| signal(shared.state().child.filter(|&current| current == child), name);
    send(Signal::TERM);
    send(Signal::CONT);
    while shared.state().child == Some(child) {
        if shared.wait(STOP_TIMEOUT, |state| state.child == Some(child)) {
            return;
        }
        // Nothing happens to one that has ended meanwhile.
        send(Signal::KILL);
    }
}

fn log_tail(data_dir: &Path) -> String {
    let mut log = Vec::new();
    if let Ok(mut file) = File::open(data_dir.join(LOG)) {
        let length = file.metadata().map_or(0, |file| file.len());
        // A log that cannot be read is told as an empty one.
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)));
        let _ = file.take(LOG_TAIL_BYTES).read_to_end(&mut log);
    }
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
