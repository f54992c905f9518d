//! A Redis that things happen to. What it acknowledged it has synced to its file, so it loses nothing of that.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::acl;
use super::process::PATIENCE;
use super::random::Random;
use super::redis::server_program;

/// Between two looks at a server that starts.
const POLL: Duration = Duration::from_millis(5);
/// The shortest and longest time that it is stopped: shorter and longer than the deadline of the services.
const STOPPED_MS: (u64, u64) = (50, 1_200);

/// A server of one test. Killed when dropped.
pub struct Victim {
    folder: TempDir,
    child: Child,
}

impl Victim {
    /// Starts an empty one.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let child = spawn(&folder);
        let victim = Self { folder, child };
        victim.wait_until_it_answers();
        victim
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    /// The service's URL of it.
    pub fn url(&self) -> String {
        acl::url(&self.socket())
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("a running process");
    }

    /// The first line of the reply to an inline command, or nothing if there is none.
    fn ask(&self, command: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    }

    fn wait_until_it_answers(&self) {
        let started = Instant::now();
        while self.ask("PING").as_deref() != Some("+PONG") {
            assert!(started.elapsed() < PATIENCE, "redis-server does not answer");
            std::thread::sleep(POLL);
        }
    }

    /// One thing that happens to servers and connections, to its end. Returns what it was.
    pub fn suffer(&mut self, random: &mut Random) -> &'static str {
        match random.below(4) {
            0 => {
                self.signal(Signal::STOP);
                // It hangs for this long; nothing is waited for.
                std::thread::sleep(random.pause(STOPPED_MS.0, STOPPED_MS.1));
                self.signal(Signal::CONT);
                "stopped"
            }
            1 => {
                self.child.kill().expect("a running process");
                self.child.wait().expect("an exit status");
                mend_file(&self.folder);
                self.child = spawn(&self.folder);
                self.wait_until_it_answers();
                "killed"
            }
            2 => {
                let reply = self.ask("CLIENT KILL TYPE normal").expect("a reply");
                assert!(reply.starts_with(':'), "{reply}");
                "disconnected"
            }
            _ => {
                assert_eq!(self.ask("SCRIPT FLUSH").as_deref(), Some("+OK"));
                "flushed"
            }
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Cuts off a transaction that the kill left half written, as docs/operations.md advises. Redis 7.0 itself leaves its start in the
/// file, and runs that with the next transaction when the file is loaded once more.
fn mend_file(folder: &TempDir) {
    let checker = server_program().to_string_lossy().replace("-server", "-check-aof");
    let mut command = Command::new(checker);
    command.args(["--fix", "appendonlydir/appendonly.aof.manifest"]).current_dir(folder.path());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("a redis-check-aof");
    // It asks only if there is something to cut off.
    let _ = child.stdin.take().expect("its stdin").write_all(b"y\n");
    child.wait().expect("an exit status");
}

fn spawn(folder: &TempDir) -> Child {
    let options =
        "--port 0 --unixsocket redis.sock --appendonly yes --appendfsync always --maxmemory-policy noeviction";
    let mut command = Command::new(server_program());
    command.args(options.split(' ')).args(["--save", ""]).args(acl::arguments()).current_dir(folder.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a redis-server")
}
