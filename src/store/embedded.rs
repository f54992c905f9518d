//! The private Redis of a service that was given none: a child process on a Unix socket in the data directory.
//!
//! It is the same engine and the same scripts as in production; there is no second, in-memory implementation.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, test_kill_process};

/// The servers that are looked for, in this order.
const SERVERS: [&str; 2] = ["valkey-server", "redis-server"];
const SOCKET: &str = "redis.sock";
const LOG: &str = "redis.log";
const MANIFEST: &str = "appendonlydir/appendonly.aof.manifest";
/// What `redis-check-aof` and `valkey-check-aof` say when they have cut something off.
const TRUNCATED: &[u8] = b"Successfully truncated AOF";
const LOCK: &str = "sessiond.lock";
/// How much of the server's log is read for its last lines.
const LOG_TAIL_BYTES: u64 = 4096;
/// The longest path that a Unix socket can have on Linux (`sun_path` less its final NUL).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// How long a new server may take until its socket answers, if only to say that it is loading.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may take to stop when asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
const RESTART_DELAY_MIN: Duration = Duration::from_millis(100);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(5);
/// A server that lived this long is restarted without delay.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// Between two looks at a server that starts.
const POLL: Duration = Duration::from_millis(5);

/// Why there is no private Redis.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// No server program was found.
    #[error(
        "no valkey-server or redis-server found; install one (Debian, Ubuntu: `sudo apt-get install redis-server`; \
         Fedora: `sudo dnf install valkey`; Alpine: `sudo apk add valkey`; macOS: `brew install valkey`), \
         name it with SESSIOND_REDIS_SERVER, or use a running one with REDIS_URL"
    )]
    NoServer,
    /// Another process uses the data directory.
    #[error("the data directory {0} is in use by another sessiond; stop that one, or choose another with --data-dir")]
    InUse(PathBuf),
    /// The data directory is somebody else's folder.
    #[error("{0} is neither empty nor a data directory of sessiond; choose another with --data-dir")]
    NotOurs(PathBuf),
    /// The path of the socket does not fit into a socket address.
    #[error("the data directory {0} has too long a path for a Unix socket; choose a shorter one with --data-dir")]
    PathTooLong(PathBuf),
    /// The data directory cannot be used.
    #[error("cannot use the data directory {0}: {1}")]
    Directory(PathBuf, #[source] io::Error),
    /// The server did not come up.
    #[error("{0} did not come up: {1}; its last log lines:\n{2}")]
    NotUp(PathBuf, String, String),
}

/// A private Redis, restarted if it dies, stopped with the service.
#[derive(Debug)]
pub struct EmbeddedRedis {
    shared: Arc<Shared>,
    supervisor: Option<JoinHandle<()>>,
    data_dir: PathBuf,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    stopping: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stop: bool,
    /// The running child, not yet reaped: its process id cannot belong to anybody else.
    child: Option<Pid>,
    /// How the last child ended, or why there was none.
    last_end: Option<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds the server to start: `wanted`, or the first of `valkey-server` and `redis-server` in `search_path`.
#[must_use]
pub fn find_server(wanted: Option<&Path>, search_path: &str) -> Option<PathBuf> {
    if let Some(wanted) = wanted {
        // The server is started from another folder. Links are kept: the program may look at its own name.
        return Some(std::path::absolute(wanted).unwrap_or_else(|_| wanted.to_owned()));
    }
    let is_program = |path: &PathBuf| {
        // An empty part of the search path would be the current folder.
        path.is_absolute() && path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let candidates =
        SERVERS.iter().flat_map(|server| search_path.split(':').map(move |folder| Path::new(folder).join(server)));
    candidates.into_iter().find(is_program)
}

impl EmbeddedRedis {
    /// Starts `server` on a socket in `data_dir` and waits until the socket answers. Blocks; recovers earlier data.
    ///
    /// # Errors
    /// Why it is not up. Nothing is left running then.
    pub fn start(server: &Path, data_dir: &Path) -> Result<Self, EmbeddedError> {
        let unusable = |error| EmbeddedError::Directory(data_dir.to_owned(), error);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(unusable)?;
        let data_dir = data_dir.canonicalize().map_err(unusable)?;
        let is_empty = data_dir.read_dir().map_err(unusable)?.next().is_none();
        if !is_empty && !data_dir.join(LOCK).exists() {
            return Err(EmbeddedError::NotOurs(data_dir));
        }
        fs::set_permissions(&data_dir, fs::Permissions::from_mode(0o700)).map_err(unusable)?;
        if data_dir.join(SOCKET).as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(EmbeddedError::PathTooLong(data_dir));
        }
        let lock = lock(&data_dir)?;
        stop_orphan(&data_dir);
        cut_off_half_transaction(server, &data_dir);

        let shared = Arc::new(Shared::default());
        let supervisor = std::thread::Builder::new()
            .name("redis-supervisor".to_owned())
            .spawn({
                let (server, data_dir, shared) = (server.to_owned(), data_dir.clone(), shared.clone());
                move || supervise(&server, &data_dir, &lock, &shared)
            })
            .map_err(unusable)?;
        let redis = Self { shared, supervisor: Some(supervisor), data_dir };
        redis.wait_until_up(server)?;
        Ok(redis)
    }

    /// The socket that the server listens on.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.data_dir.join(SOCKET)
    }

    /// The running server's process id, or `None` while it is restarted.
    #[must_use]
    pub fn process_id(&self) -> Option<i32> {
        self.shared.state().child.map(|child| child.as_raw_nonzero().get())
    }

    fn wait_until_up(&self, server: &Path) -> Result<(), EmbeddedError> {
        let started = Instant::now();
        let why = loop {
            if ask(&self.socket(), "PING").is_ok() {
                return Ok(());
            }
            if let Some(end) = self.shared.state().last_end.take() {
                break end;
            }
            if started.elapsed() > START_TIMEOUT {
                break format!("no answer for {} s", START_TIMEOUT.as_secs());
            }
            std::thread::sleep(POLL);
        };
        Err(EmbeddedError::NotUp(server.to_owned(), why, log_tail(&self.data_dir)))
    }
}

impl Drop for EmbeddedRedis {
    /// Stops the server cleanly: what was acknowledged is on disk when this returns.
    fn drop(&mut self) {
        {
            let mut state = self.shared.state();
            state.stop = true;
            signal(state.child, Signal::TERM);
        }
        self.shared.stopping.notify_all();
        let asked = Instant::now();
        let mut killed = false;
        while self.supervisor.as_ref().is_some_and(|supervisor| !supervisor.is_finished()) {
            if !killed && asked.elapsed() > STOP_TIMEOUT {
                tracing::warn!("the private Redis does not stop; killing it");
                signal(self.shared.state().child, Signal::KILL);
                killed = true;
            }
            std::thread::sleep(POLL);
        }
        if let Some(supervisor) = self.supervisor.take() {
            // The supervisor does not panic; if it did, there is nothing left to stop.
            let _ = supervisor.join();
        }
    }
}

fn signal(child: Option<Pid>, signal: Signal) {
    if let Some(child) = child {
        // It may have ended by itself in this moment.
        let _ = rustix::process::kill_process(child, signal);
    }
}

/// Takes the data directory's lock, and writes into it whose it is. The operating system gives it back when this process
/// and its server have ended, however they do. A server whose service was killed may still be writing its last commands:
/// it is waited for.
fn lock(data_dir: &Path) -> Result<File, EmbeddedError> {
    let unusable = |error| EmbeddedError::Directory(data_dir.to_owned(), error);
    let path = data_dir.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(unusable)?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
            Err(TryLockError::WouldBlock) => {
                let owner = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
                let is_alive = owner.and_then(Pid::from_raw).is_none_or(|pid| test_kill_process(pid).is_ok());
                if is_alive || started.elapsed() > STOP_TIMEOUT {
                    return Err(EmbeddedError::InUse(data_dir.to_owned()));
                }
                std::thread::sleep(POLL);
            }
        }
    }
    file.set_len(0).map_err(unusable)?;
    (&file).write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(unusable)?;
    Ok(file)
}

/// Stops a server that outlived its service. On Linux there is none: the kernel ends it with the service.
fn stop_orphan(data_dir: &Path) {
    let socket = data_dir.join(SOCKET);
    if ask(&socket, "SHUTDOWN").is_ok() {
        tracing::warn!("stopped a Redis that was left behind in {}", data_dir.display());
    }
    // Redis replaces a socket file that nobody listens on; a missing one is the usual case.
    let _ = fs::remove_file(socket);
}

/// Sends one command and returns the start of its answer.
fn ask(socket: &Path, command: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(STOP_TIMEOUT))?;
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let mut answer = [0; 128];
    let length = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Starts one server. Its settings are arguments, so that a file in the data directory cannot change them.
fn spawn(server: &Path, data_dir: &Path, lock: &File, shared: &Shared) -> io::Result<Child> {
    let mut command = Command::new(server);
    // Paths are relative to the data directory: no quoting, and no limit on the server's side.
    command.current_dir(data_dir).args(["--dir", ".", "--unixsocket", SOCKET, "--unixsocketperm", "700"]);
    command.args(["--port", "0", "--daemonize", "no", "--logfile", LOG, "--always-show-logo", "no"]);
    command.args(["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]);
    command.args(["--maxmemory-policy", "noeviction", "--hash-max-listpack-value", "512"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // A group of its own: Ctrl-C on the terminal is the service's to handle, it still needs Redis to finish requests.
    command.process_group(0);
    end_with_parent(&mut command, lock)?;
    let mut state = shared.state();
    if state.stop {
        // Whoever stops us has found no child to signal.
        return Err(io::ErrorKind::Interrupted.into());
    }
    let child = command.spawn()?;
    state.child = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
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

/// Keeps a server running until it is meant to stop.
///
/// All children are started from this one thread: the kernel takes the end of the starting *thread* for the parent's.
fn supervise(server: &Path, data_dir: &Path, lock: &File, shared: &Shared) {
    let mut delay = RESTART_DELAY_MIN;
    loop {
        let started = Instant::now();
        let end = match spawn(server, data_dir, lock, shared) {
            Ok(child) => reap(child, shared),
            Err(error) => error.to_string(),
        };
        let mut state = shared.state();
        if state.stop {
            return;
        }
        tracing::error!(end, log = log_tail(data_dir), "the private Redis ended; starting it again");
        state.last_end = Some(end);
        if started.elapsed() >= STABLE_AFTER {
            delay = RESTART_DELAY_MIN;
        }
        let waited = shared.stopping.wait_timeout_while(state, delay, |state| !state.stop);
        if waited.unwrap_or_else(PoisonError::into_inner).0.stop {
            return;
        }
        delay = (delay * 2).min(RESTART_DELAY_MAX);
        cut_off_half_transaction(server, data_dir);
    }
}

/// Has the server's own tool end the append-only file with a whole transaction. A server that was killed while it wrote one
/// leaves its start there, and Redis 7.0 would apply that with the next one when the file is loaded for the second time.
fn cut_off_half_transaction(server: &Path, data_dir: &Path) {
    let name = server.file_name().unwrap_or_default().to_string_lossy().replace("-server", "-check-aof");
    if !data_dir.join(MANIFEST).exists() {
        return;
    }
    let mut tool = Command::new(server.with_file_name(name));
    tool.current_dir(data_dir).args(["--fix", MANIFEST]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let said = tool.stderr(Stdio::null()).spawn().and_then(|mut tool| {
        if let Some(mut stdin) = tool.stdin.take() {
            // It asks only if there is something to cut off; otherwise it may have ended already.
            let _ = stdin.write_all(b"y\n");
        }
        tool.wait_with_output()
    });
    match said {
        Ok(said) if said.stdout.windows(TRUNCATED.len()).any(|words| words == TRUNCATED) => {
            tracing::warn!("the append-only file ended with half a write, which was cut off");
        }
        Ok(said) if said.status.success() => {}
        // Redis says what is wrong when it loads the file.
        Ok(said) => tracing::error!(status = %said.status, "the append-only file is damaged"),
        Err(error) => tracing::warn!(%error, "the append-only file cannot be checked before it is loaded"),
    }
}

/// Waits for the child to end. It stays a zombie until the state no longer names it, so nobody signals a stranger.
fn reap(mut child: Child, shared: &Shared) -> String {
    let pid = shared.state().child;
    if let Some(pid) = pid {
        // If this fails, the wait below does its work.
        let _ = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    }
    let mut state = shared.state();
    state.child = None;
    child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
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
