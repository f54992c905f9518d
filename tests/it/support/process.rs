//! The `sessiond` program in its own process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The time limit of every wait in a test. Only a failing test reaches it.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_sessiond");

/// Runs the program to its end with these arguments and variables, and no other settings.
pub fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    command(arguments, variables).output().expect("the program")
}

/// A command of the program with these arguments and variables, and no other settings.
pub fn command(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    command_under(&[], arguments, variables)
}

/// The same, run by a wrapper: a command line to which the program and its arguments are appended.
pub fn command_under(wrapper: &[&str], arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    command_of(&[wrapper, &[PROGRAM], arguments].concat(), variables)
}

/// Any command line with these variables, and no other settings.
pub fn command_of(words: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    command.env_clear().envs(["PATH", "HOME"].map(|name| (name, std::env::var(name).unwrap_or_default())));
    command.envs(variables.iter().copied());
    command
}

/// A running program. Killed when dropped.
pub struct Process {
    child: Child,
    log: Receiver<String>,
    /// Every log line that was read so far.
    pub lines: Vec<String>,
}

impl Process {
    /// Starts the program with these arguments and variables, and no other settings.
    pub fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::spawn(command(arguments, variables))
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program");
        let stderr = BufReader::new(child.stderr.take().expect("its stderr"));
        let (sender, log) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, log, lines: Vec::new() }
    }

    /// Starts a service on a free port. Returns it with its base URL once it serves.
    pub fn serve(arguments: &[&str], variables: &[(&str, &str)]) -> (Self, String) {
        Self::serve_under(&[], arguments, variables)
    }

    /// The same, run by a wrapper.
    pub fn serve_under(wrapper: &[&str], arguments: &[&str], variables: &[(&str, &str)]) -> (Self, String) {
        Self::serve_by(&[wrapper, &[PROGRAM]].concat(), arguments, variables)
    }

    /// The same, with this command line in place of the program, which may be another version.
    pub fn serve_by(program: &[&str], arguments: &[&str], variables: &[(&str, &str)]) -> (Self, String) {
        let addresses = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
        let mut process = Self::spawn(command_of(&[program, &addresses, arguments].concat(), variables));
        let line = process.wait_for_line("serving on http");
        let start = line.find("http").expect("an address");
        let length = line[start..].find(',').expect("the end of the address");
        (process, line[start..start + length].to_owned())
    }

    /// Waits until the program logs a line that contains `text`. Returns the line.
    pub fn wait_for_line(&mut self, text: &str) -> String {
        self.wait_for_any(&[text])
    }

    /// Waits until the program logs a line that contains one of `texts`. Returns the line.
    pub fn wait_for_any(&mut self, texts: &[&str]) -> String {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            let line = self.log.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| panic!("never logged {texts:?}: {:#?}", self.lines));
            self.lines.push(line.clone());
            if texts.iter().any(|text| line.contains(text)) {
                return line;
            }
        }
    }

    /// The URL of the metrics, from the log of a service that serves.
    pub fn metrics_url(&self) -> String {
        let line = self.lines.iter().find(|line| line.contains("metrics on http")).expect("the address of the metrics");
        let start = line.find("http://").expect("an address");
        let length = line[start..].find("/metrics").expect("a path") + "/metrics".len();
        line[start..start + length].to_owned()
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: Signal) {
        signal_child(&self.child, signal);
    }

    /// Sends a signal to the program's child processes.
    pub fn signal_children(&self, signal: Signal) {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("a running process");
        for thread in threads {
            let children = std::fs::read_to_string(thread.expect("a thread").path().join("children"));
            for child in children.unwrap_or_default().split_whitespace() {
                let pid = child.parse().ok().and_then(Pid::from_raw).expect("a process id");
                kill_process(pid, signal).expect("a running process");
            }
        }
    }

    /// The resident memory of the program in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Waits until the program has ended, and reads the rest of its log.
    pub fn wait(&mut self) -> ExitStatus {
        let status = self.child.wait().expect("an exit status");
        self.lines.extend(self.log.iter());
        status
    }
}

/// Sends a signal to a child process that has not been waited for.
pub fn signal_child(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).expect("a running process");
}

/// Waits for a future for at most [`TEST_TIMEOUT`], then panics.
pub async fn with_timeout<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_TIMEOUT, wait).await.expect("no timeout")
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
