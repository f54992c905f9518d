//! A Redis of a test's own, to be stopped, killed, filled and led astray.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use super::acl;
use super::process::{PATIENCE, signal_child};
use super::redis::{Look, server_program};

/// An append-only file, as a production Redis has it.
pub const AOF: &[&str] = &["--appendonly", "yes", "--appendfsync", "everysec"];
/// Nothing on disk: a restart is an empty one.
pub const IN_MEMORY: &[&str] = &["--appendonly", "no"];
/// Between two looks at a server that starts.
const POLL: Duration = Duration::from_millis(5);
/// Has the kernel kill the server with the thread that started it, which is the test's.
const WITH_PARENT: [&str; 3] = ["setpriv", "--pdeathsig", "KILL"];
/// Gives the server a disk of 2 MB that nobody else sees, and that goes with it. Needs no root.
const ON_SMALL_DISK: [&str; 7] = [
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
    "sh",
    "-c",
    r#"mount -t tmpfs -o size=2m tmpfs data && exec "$0" "$@""#,
];

/// A running server. Killed when dropped.
pub struct RedisServer {
    folder: TempDir,
    words: Vec<String>,
    child: Child,
}

impl RedisServer {
    /// A server on a Unix socket, with these settings.
    pub fn start(settings: &[&str]) -> Self {
        Self::start_with(&[], settings)
    }

    /// The same, with its data on a disk of 2 MB.
    pub fn start_on_small_disk(settings: &[&str]) -> Self {
        Self::start_with(&ON_SMALL_DISK, settings)
    }

    fn start_with(wrapper: &[&str], settings: &[&str]) -> Self {
        let folder = TempDir::new().expect("a folder");
        fs::create_dir(folder.path().join("data")).expect("a folder");
        let program = server_program();
        let [socket, data, log] = ["redis.sock", "data", "redis.log"].map(|name| folder.path().join(name));
        let [program, socket, data, log] =
            [&program, &socket, &data, &log].map(|path| path.to_str().expect("a path of text"));
        let own = [program, "--port", "0", "--bind", "127.0.0.1", "--unixsocket", socket, "--logfile", log];
        let kept = ["--dir", data, "--save", "", "--maxmemory-policy", "noeviction"];
        let words = wrapper.iter().chain(&WITH_PARENT).chain(&own).chain(&kept).chain(settings);
        let words: Vec<_> = words.map(|word| (*word).to_owned()).chain(acl::arguments()).collect();
        let child = spawn(&words, &folder);
        let mut server = Self { folder, words, child };
        server.wait_until_up();
        server
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    /// The service's URL of it.
    pub fn url(&self) -> String {
        acl::url(&self.socket())
    }

    /// A connection past every proxy.
    pub async fn look(&self) -> Look {
        Look::at(&self.socket(), "sd").await
    }

    pub fn signal(&self, signal: Signal) {
        signal_child(&self.child, signal);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("an exit status");
    }

    /// Starts it again after a kill, with what it left on disk.
    pub fn start_again(&mut self) {
        self.child = spawn(&self.words, &self.folder);
        self.wait_until_up();
    }

    /// Has it listen on a free TCP port, too.
    pub async fn listen(&self) -> u16 {
        let look = self.look().await;
        loop {
            let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
            // Somebody else may have taken it meanwhile.
            if look.try_command(&["CONFIG", "SET", "port", &port.to_string()]).await.is_ok() {
                return port;
            }
        }
    }

    /// A file beside its data, seen as the server sees it.
    pub fn data_file(&self, name: &str) -> PathBuf {
        let data = self.folder.path().join("data").join(name);
        let data = data.strip_prefix("/").expect("an absolute path");
        PathBuf::from(format!("/proc/{}/root", self.child.id())).join(data)
    }

    fn wait_until_up(&mut self) {
        let started = Instant::now();
        while !self.answers() {
            let ended = self.child.try_wait().expect("a child");
            if ended.is_some() || started.elapsed() > PATIENCE {
                let log = fs::read_to_string(self.folder.path().join("redis.log")).unwrap_or_default();
                let errors = fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default();
                panic!("no Redis ({ended:?}): {log}{errors}");
            }
            std::thread::sleep(POLL);
        }
    }

    /// Whether it says anything and is not loading.
    fn answers(&self) -> bool {
        let Ok(mut stream) = UnixStream::connect(self.socket()) else {
            return false;
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut answer = [0; 5];
        stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok() && &answer == b"+PONG"
    }
}

fn spawn(words: &[String], folder: &TempDir) -> Child {
    let errors = File::create(folder.path().join("stderr")).expect("a file");
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).current_dir(folder.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().expect("setpriv or unshare")
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
