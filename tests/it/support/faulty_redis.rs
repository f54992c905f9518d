//! A Redis server with injected random faults. It syncs every write before it acknowledges it, so no acknowledged write
//! is lost.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::random::Random;
use super::redis::server_program;
use super::redis_server::{AOF_ALWAYS, RedisServer};

/// The shortest and longest time that the server is stopped. The first is shorter and the second is longer than the
/// request deadline of the services.
const STOPPED_MS: (u64, u64) = (50, 1_200);

/// The server of one test. Killed when dropped.
pub struct FaultyRedis(RedisServer);

impl FaultyRedis {
    /// Starts a server without data.
    pub fn start() -> Self {
        Self(RedisServer::start(AOF_ALWAYS))
    }

    /// The URL with which a service connects to this server.
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// Injects one random fault and waits for its end. Returns the name of the fault.
    pub fn inject_fault(&mut self, random: &mut Random) -> &'static str {
        match random.below(4) {
            0 => {
                self.0.signal(Signal::STOP);
                // The sleep is the duration of the fault.
                std::thread::sleep(random.pause(STOPPED_MS.0, STOPPED_MS.1));
                self.0.signal(Signal::CONT);
                "stopped"
            }
            1 => {
                self.0.kill();
                remove_unfinished_transaction(&self.0.data_folder());
                self.0.start_again();
                "killed"
            }
            2 => {
                let reply = self.0.line("CLIENT KILL TYPE normal");
                assert!(reply.starts_with(':'), "{reply}");
                "disconnected"
            }
            _ => {
                assert_eq!(self.0.line("SCRIPT FLUSH"), "+OK");
                "flushed"
            }
        }
    }
}

/// Cuts off a transaction that was only partly written before the kill, as docs/operations.md advises. Redis 7.0 keeps
/// the start of such a transaction in the file, and runs it with the next transaction when it loads the file again.
pub fn remove_unfinished_transaction(data: &Path) {
    let checker = server_program().to_string_lossy().replace("-server", "-check-aof");
    let mut command = Command::new(checker);
    command.args(["--fix", "appendonlydir/appendonly.aof.manifest"]).current_dir(data);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("a redis-check-aof");
    // The program asks for confirmation only if there is something to cut off.
    let _ = child.stdin.take().expect("its stdin").write_all(b"y\n");
    child.wait().expect("an exit status");
}
