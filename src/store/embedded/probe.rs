//! Asks a Redis at a Unix socket, within a bounded time.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use rustix::process::Pid;

/// How long a server may take to answer a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a server may take to stop when asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a server did not answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// It has the socket, and does not answer in time.
    Silent,
    /// It does not have the socket.
    Unreachable(String),
    /// This process could not ask; it may have no file descriptor left.
    NotAsked,
}

/// Asks the server with this process id. Any reply is one: a server that loads its data or wants a password is alive.
pub(super) fn ask_process(socket: &Path, process: Pid) -> Result<String, Unanswered> {
    let stream = match connect(socket, PROBE_TIMEOUT) {
        Ok(stream) => stream,
        // As many connections wait as the operating system keeps.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Unanswered::Silent),
        // There is no file, or one that is not a socket or that no process listens on.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(Unanswered::Unreachable(format!("{}: {error}", socket.display())));
        }
        Err(_) => return Err(Unanswered::NotAsked),
    };
    if !is_served_by(&stream, process) {
        return Err(Unanswered::Unreachable(format!("another process serves on {}", socket.display())));
    }
    ask_on(stream, "PING").ok().filter(|reply| !reply.is_empty()).ok_or(Unanswered::Silent)
}

/// Whether any server answers.
pub(super) fn is_served(socket: &Path) -> bool {
    connect(socket, PROBE_TIMEOUT).and_then(|stream| ask_on(stream, "PING")).is_ok()
}

/// Has a server stop, and returns true if there was one.
pub(super) fn shut_down(socket: &Path) -> bool {
    connect(socket, STOP_TIMEOUT).and_then(|stream| ask_on(stream, "SHUTDOWN")).is_ok()
}

/// Connects. Unlike [`UnixStream::connect`] it does not wait without a bound for a server that does not accept.
fn connect(socket: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(socket)?;
    let descriptor = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)?;
    set_socket_timeout(&descriptor, Timeout::Send, Some(timeout))?;
    set_socket_timeout(&descriptor, Timeout::Recv, Some(timeout))?;
    rustix::net::connect(&descriptor, &address)?;
    Ok(descriptor.into())
}

#[cfg(target_os = "linux")]
fn is_served_by(stream: &UnixStream, process: Pid) -> bool {
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| peer.pid == process)
}

#[cfg(not(target_os = "linux"))]
fn is_served_by(_stream: &UnixStream, _process: Pid) -> bool {
    true
}

/// Sends one command and returns the start of its reply, which is empty if the server closes the connection.
fn ask_on(mut stream: UnixStream, command: &str) -> io::Result<String> {
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let mut reply = [0; 128];
    let length = stream.read(&mut reply)?;
    Ok(String::from_utf8_lossy(&reply[..length]).into_owned())
}
