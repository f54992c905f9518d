//! The commands that a server receives, read with `MONITOR`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::process::TEST_TIMEOUT;
use super::redis::RedisProbe;

/// A command of a client, with the commands of the script that it runs.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// Its name and arguments.
    pub words: Vec<String>,
    /// The commands that its script sends, in order.
    pub inner: Vec<Vec<String>>,
}

/// Records every command that a server receives from any client.
pub struct Monitor {
    lines: BufReader<UnixStream>,
}

impl Monitor {
    /// Starts to record the commands that the server at `socket` receives.
    pub fn start(socket: &Path) -> Self {
        let mut stream = UnixStream::connect(socket).expect("a connection");
        stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("a socket that can time out");
        stream.write_all(b"MONITOR\r\n").expect("a server that listens");
        let mut monitor = Self { lines: BufReader::new(stream) };
        assert_eq!(monitor.line(), "+OK");
        monitor
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        line.trim_end_matches("\r\n").to_owned()
    }

    /// Returns every command until now. MONITOR reports commands in order, so an ECHO that is sent now marks the end.
    pub async fn finish(mut self, probe: &RedisProbe) -> Vec<Command> {
        static FINISHED: AtomicU32 = AtomicU32::new(0);
        let mark = format!("mark-{}-{}", std::process::id(), FINISHED.fetch_add(1, Ordering::Relaxed));
        probe.command(&["ECHO", &mark]).await;
        let mut commands: Vec<Command> = Vec::new();
        loop {
            let line = self.line();
            // `+1795341600.000000 [0 unix:/path] "GET" "key"`, with `lua` for the address of a script.
            let (origin, words) = line.split_once("] ").unwrap_or_else(|| panic!("not a command: {line}"));
            let words = unquote(words);
            if words == ["ECHO", &mark] {
                return commands;
            }
            match commands.last_mut() {
                Some(caller) if origin.ends_with(" lua") => caller.inner.push(words),
                // A script that started before the monitor has no known caller.
                None if origin.ends_with(" lua") => {}
                _ => commands.push(Command { words, inner: Vec::new() }),
            }
        }
    }
}

/// The arguments of one line, as `sdscatrepr` of Redis quotes them.
fn unquote(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), Vec::new(), false);
    let mut bytes = line.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' if quoted => words.push(String::from_utf8_lossy(&std::mem::take(&mut word)).into_owned()),
            b'\\' => word.push(match bytes.next().expect("an escaped byte") {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'a' => 7,
                b'b' => 8,
                b'x' => {
                    let digits = [bytes.next(), bytes.next()].map(|digit| char::from(digit.expect("two digits")));
                    u8::from_str_radix(&String::from_iter(digits), 16).expect("hexadecimal digits")
                }
                other => other,
            }),
            other if quoted => word.push(other),
            _ => {}
        }
        quoted ^= byte == b'"';
    }
    words
}

#[test]
fn quoted_arguments_are_unquoted() {
    let line = r#""SET" "a b" "" "\"\\\n\r\t\a\b\x00\xf0\x9f\x92\xac]""#;
    assert_eq!(unquote(line), ["SET", "a b", "", "\"\\\n\r\t\u{7}\u{8}\0💬]"]);
}
