//! Redis servers of any kind, by TCP on free ports: plain, with TLS, replicas, sentinels, the nodes of a cluster.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::acl;
use super::process::PATIENCE;
use super::redis::server_program;

/// How often a state that a test waits for is looked at.
pub const POLL: Duration = Duration::from_millis(25);

/// A port that nobody listens on, below those that the system gives to outgoing connections.
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

/// One server process. Killed when dropped, and by the kernel when the test's thread ends.
pub struct RedisServer {
    pub port: u16,
    child: Child,
}

impl RedisServer {
    /// Starts a server on a free port in `folder`, with these arguments beside, and waits until it answers.
    pub fn start(folder: &Path, arguments: &[&str]) -> Self {
        let server = Self::start_on(free_port(), folder, arguments);
        server.wait_until_up();
        server
    }

    /// Starts a server on this port in a folder of its own. Does not wait for it.
    pub fn start_on(port: u16, folder: &Path, arguments: &[&str]) -> Self {
        let port_text = port.to_string();
        let own = ["--port", &port_text, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        let users = acl::arguments();
        let users = users.iter().map(String::as_str);
        let arguments: Vec<_> = arguments.iter().copied().chain(users).collect();
        Self::spawn(port, &folder_of(folder, port), &own, &arguments)
    }

    /// Starts a server with this configuration, on a free port, and waits until it answers, if only to refuse.
    pub fn start_configured(folder: &Path, configuration: &Path) -> Self {
        let port = free_port();
        let port_text = port.to_string();
        let configuration = configuration.to_str().expect("a path");
        let own = [configuration, "--port", &port_text, "--bind", "127.0.0.1"];
        let server = Self::spawn(port, &folder_of(folder, port), &own, &[]);
        wait_for("a server that answers", || !cli(port, &["PING"]).is_empty());
        server
    }

    /// Starts a sentinel with this configuration, which it rewrites.
    pub fn start_sentinel(folder: &Path, configuration: &str) -> Self {
        let port = free_port();
        let folder = folder_of(folder, port);
        let file = folder.join("sentinel.conf");
        let text = format!("port {port}\nbind 127.0.0.1\n{configuration}");
        std::fs::write(&file, text).expect("a configuration");
        let server = Self::spawn(port, &folder, &[file.to_str().expect("a path"), "--sentinel"], &[]);
        server.wait_until_up();
        server
    }

    fn spawn(port: u16, folder: &Path, own: &[&str], arguments: &[&str]) -> Self {
        let log = std::fs::File::create(folder.join("log")).expect("a log");
        // So that a test that is killed leaves no servers.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(server_program()).args(own).args(arguments);
        command.current_dir(folder).stdin(Stdio::null()).stdout(log).stderr(Stdio::null());
        Self { port, child: command.spawn().expect("a server") }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The service's URL of it.
    pub fn url(&self) -> String {
        format!("redis://{}{}", acl::credentials(), self.address())
    }

    /// The commands that it was sent so far, by whomever.
    pub fn sent(&self) -> BTreeSet<String> {
        acl::sent(&self.ask(&["INFO", "commandstats"]))
    }

    fn wait_until_up(&self) {
        wait_for("a server that answers", || cli(self.port, &["PING"]).trim() == "PONG");
    }

    /// What it answers, as `redis-cli` prints it.
    pub fn ask(&self, words: &[&str]) -> String {
        cli(self.port, words)
    }

    /// A line of its INFO.
    pub fn info(&self, name: &str) -> String {
        let info = self.ask(&["INFO"]);
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("a running server");
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn folder_of(folder: &Path, port: u16) -> PathBuf {
    let folder = folder.join(port.to_string());
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// What `redis-cli` prints.
pub fn cli(port: u16, words: &[&str]) -> String {
    let port = port.to_string();
    let output = Command::new("redis-cli").args(["-h", "127.0.0.1", "-p", &port]).args(words).output();
    String::from_utf8_lossy(&output.expect("redis-cli").stdout).into_owned()
}

/// Polls until it holds. Returns how long that took.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(POLL);
    }
    started.elapsed()
}
