//! Redis servers of one test: on a Unix socket or a TCP port, standalone or as a replica, sentinel or cluster node.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex, mpsc};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use super::acl;
use super::process::{TEST_TIMEOUT, signal_child};
use super::redis::{RedisProbe, server_program};

/// An append-only file as in production.
pub const AOF: &[&str] = &["--appendonly", "yes", "--appendfsync", "everysec"];
/// An append-only file that loses no acknowledged write.
pub const AOF_ALWAYS: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];
/// No data on disk. A restarted server is empty.
pub const IN_MEMORY: &[&str] = &["--appendonly", "no"];
/// The polling interval of tests that wait for a state.
pub const POLL: Duration = Duration::from_millis(25);
/// The polling interval while a server starts.
const START_POLL: Duration = Duration::from_millis(5);
/// Makes the kernel kill the server when the thread that spawned it ends.
const WITH_PARENT: [&str; 3] = ["setpriv", "--pdeathsig", "KILL"];
/// Gives the server a disk of 2 MB in its own mount namespace. Needs no root privileges.
const ON_SMALL_DISK: [&str; 7] = [
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
    "sh",
    "-c",
    r#"mount -t tmpfs -o size=2m tmpfs data && exec "$0" "$@""#,
];
const SOCKET: &str = "redis.sock";

/// The command line of a server.
struct RedisBuilder {
    folder: Folder,
    /// `None` for a Unix socket.
    port: Option<u16>,
    /// A command line to which the server's command line is appended.
    wrapper: Vec<String>,
    arguments: Vec<String>,
}

/// The folder of a server. `OfServer` is removed with the server, `OfTest` belongs to the test.
enum Folder {
    OfServer(TempDir),
    OfTest(PathBuf),
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Self::OfServer(folder) => folder.path(),
            Self::OfTest(folder) => folder,
        }
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

impl RedisBuilder {
    /// A server on a Unix socket, with the users of `deploy/redis.conf`.
    fn on_socket() -> Self {
        let folder = TempDir::new().expect("a folder");
        fs::create_dir(folder.path().join("data")).expect("a folder");
        // Redis resolves relative paths in the folder of its data.
        let [socket, log] = [SOCKET, "redis.log"].map(|name| folder.path().join(name));
        let [socket, log] = [&socket, &log].map(|path| path.to_str().expect("a path of text"));
        let own = ["--port", "0", "--bind", "127.0.0.1", "--unixsocket", socket, "--logfile", log];
        let kept = ["--dir", "data", "--save", "", "--maxmemory-policy", "noeviction"];
        let arguments = owned(&[&own[..], &kept].concat());
        Self { folder: Folder::OfServer(folder), port: None, wrapper: Vec::new(), arguments }
    }

    /// A server on this TCP port, with its own folder in `folder`.
    fn on_port(port: u16, folder: &Path) -> Self {
        let folder = folder.join(port.to_string());
        fs::create_dir_all(&folder).expect("a folder");
        Self { folder: Folder::OfTest(folder), port: Some(port), wrapper: Vec::new(), arguments: Vec::new() }
    }

    fn wrapped_in(mut self, words: &[&str]) -> Self {
        self.wrapper.extend(owned(words));
        self
    }

    fn arguments(mut self, words: &[&str]) -> Self {
        self.arguments.extend(owned(words));
        self
    }

    /// Adds the users of `deploy/redis.conf`.
    fn with_users(mut self) -> Self {
        self.arguments.extend(acl::arguments());
        self
    }

    /// Starts the server without waiting until it is ready.
    fn start(self) -> RedisServer {
        let Self { folder, port, wrapper, arguments } = self;
        let program = server_program().to_str().expect("a path of text").to_owned();
        let words =
            wrapper.into_iter().chain(owned(&WITH_PARENT)).chain([program]).chain(arguments).collect::<Vec<_>>();
        let child = spawn(&words, folder.path());
        RedisServer { port: port.unwrap_or_default(), is_on_socket: port.is_none(), folder, words, child }
    }
}

fn spawn(words: &[String], folder: &Path) -> Child {
    let [output, errors] = ["log", "stderr"].map(|name| File::create(folder.join(name)).expect("a file"));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).current_dir(folder);
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    spawn_by_lasting_thread(command).expect("setpriv or unshare")
}

/// Spawns a process by a thread that lasts as long as the test process. The kernel kills a server when the thread ends
/// that spawned it, and tokio ends a blocking thread that has had no work for 10 s.
fn spawn_by_lasting_thread(command: Command) -> std::io::Result<Child> {
    type Request = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: LazyLock<Mutex<mpsc::Sender<Request>>> = LazyLock::new(|| {
        let (requests, receiver) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, spawned) in receiver {
                // The test that waits for it may have failed.
                let _ = spawned.send(command.spawn());
            }
        });
        Mutex::new(requests)
    });
    let (spawned, result) = mpsc::channel();
    SPAWNER.lock().expect("no panic").send((command, spawned)).expect("the spawner");
    result.recv().expect("the spawner")
}

/// One server process. Killed when dropped.
pub struct RedisServer {
    /// 0 for a server on a Unix socket.
    pub port: u16,
    is_on_socket: bool,
    folder: Folder,
    words: Vec<String>,
    child: Child,
}

impl RedisServer {
    /// Starts a server on a Unix socket with these settings.
    pub fn start(settings: &[&str]) -> Self {
        RedisBuilder::on_socket().arguments(settings).with_users().start().up()
    }

    /// Starts a server on a Unix socket with these settings and its data on a disk of 2 MB.
    pub fn start_on_small_disk(settings: &[&str]) -> Self {
        let builder = RedisBuilder::on_socket().wrapped_in(&ON_SMALL_DISK);
        builder.arguments(settings).with_users().start().up()
    }

    /// Starts a server on a free TCP port, with its own folder in `folder`.
    pub fn on_tcp(folder: &Path, arguments: &[&str]) -> Self {
        Self::on_port(free_port(), folder, arguments).up()
    }

    /// Starts a server on this TCP port without waiting until it is ready.
    pub fn on_port(port: u16, folder: &Path, arguments: &[&str]) -> Self {
        let own = ["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        RedisBuilder::on_port(port, folder).arguments(&own).arguments(arguments).with_users().start()
    }

    /// Starts a server with this configuration file on a free TCP port.
    pub fn configured(folder: &Path, configuration: &Path) -> Self {
        let port = free_port();
        let own = [configuration.to_str().expect("a path"), "--port", &port.to_string(), "--bind", "127.0.0.1"];
        RedisBuilder::on_port(port, folder).arguments(&own).start().up()
    }

    /// Starts a sentinel with this configuration, which the sentinel rewrites.
    pub fn sentinel(folder: &Path, configuration: &str) -> Self {
        let port = free_port();
        let builder = RedisBuilder::on_port(port, folder);
        let text = format!("port {port}\nbind 127.0.0.1\n{configuration}");
        fs::write(builder.folder.path().join("sentinel.conf"), text).expect("a configuration");
        builder.arguments(&["sentinel.conf", "--sentinel"]).start().up()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The URL with which a service connects to this server.
    pub fn url(&self) -> String {
        if self.is_on_socket {
            acl::url(&self.socket())
        } else {
            format!("redis://{}{}", acl::credentials(), self.address())
        }
    }

    /// A direct connection to a server on a Unix socket, without a proxy.
    pub async fn probe(&self) -> RedisProbe {
        RedisProbe::at(&self.socket(), "sd").await
    }

    /// The reply of a server on a TCP port, as `redis-cli` prints it.
    pub fn ask(&self, words: &[&str]) -> String {
        cli(self.port, words)
    }

    /// The first line of the reply to an inline command, from a server on a Unix socket.
    pub fn line(&self, command: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).expect("a connection");
        stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("a timeout");
        stream.write_all(format!("{command}\r\n").as_bytes()).expect("a write");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("a reply");
        line.trim_end().to_owned()
    }

    /// The value of a field of INFO.
    pub fn info(&self, name: &str) -> String {
        let info = self.ask(&["INFO"]);
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    }

    /// The names of the commands that the server has received from any client.
    pub fn sent(&self) -> BTreeSet<String> {
        acl::sent(&self.ask(&["INFO", "commandstats"]))
    }

    pub fn signal(&self, signal: Signal) {
        signal_child(&self.child, signal);
    }

    /// Kills the server with SIGKILL and waits for its end. Does nothing if the server has ended.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts the server again after a kill, with the data on its disk.
    pub fn start_again(&mut self) {
        self.child = spawn(&self.words, self.folder.path());
        self.wait_until_up();
    }

    /// Makes the server also listen on a free TCP port. Returns the port.
    pub async fn listen(&self) -> u16 {
        let probe = self.probe().await;
        loop {
            let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
            // Another process may have taken the port in the meantime.
            if probe.try_command(&["CONFIG", "SET", "port", &port.to_string()]).await.is_ok() {
                return port;
            }
        }
    }

    /// The folder of the server's data.
    pub fn data_folder(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The path of a file in the data folder, resolved in the server's mount namespace.
    pub fn data_file(&self, name: &str) -> PathBuf {
        let data = self.data_folder().join(name);
        let data = data.strip_prefix("/").expect("an absolute path");
        PathBuf::from(format!("/proc/{}/root", self.child.id())).join(data)
    }

    fn up(mut self) -> Self {
        self.wait_until_up();
        self
    }

    fn wait_until_up(&mut self) {
        let started = Instant::now();
        while !self.is_ready() {
            let ended = self.child.try_wait().expect("a child");
            if ended.is_some() || started.elapsed() > TEST_TIMEOUT {
                let read = |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
                panic!("no Redis ({ended:?}): {}{}{}", read("redis.log"), read("log"), read("stderr"));
            }
            std::thread::sleep(START_POLL);
        }
    }

    /// Whether the server replies to PING and is not loading, as far as a client without a password can see.
    fn is_ready(&self) -> bool {
        if !self.is_on_socket {
            return ["PONG", "NOAUTH Authentication required."].contains(&self.ask(&["PING"]).trim());
        }
        let Ok(mut stream) = UnixStream::connect(self.socket()) else {
            return false;
        };
        stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("a timeout");
        let mut reply = [0; 5];
        stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut reply).is_ok() && &reply == b"+PONG"
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A free port below the range that the system uses for outgoing connections.
pub fn free_port() -> u16 {
    loop {
        let mut random = [0; 2];
        getrandom::fill(&mut random).expect("random bytes");
        let port = 12_000 + u16::from_le_bytes(random) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Runs `redis-cli`. Returns its output.
pub fn cli(port: u16, words: &[&str]) -> String {
    let port = port.to_string();
    let output = Command::new("redis-cli").args(["-h", "127.0.0.1", "-p", &port]).args(words).output();
    String::from_utf8_lossy(&output.expect("redis-cli").stdout).into_owned()
}

/// Polls until `holds` returns true. Returns how long that took.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < TEST_TIMEOUT, "timeout while waiting for {what}");
        std::thread::sleep(POLL);
    }
    started.elapsed()
}
