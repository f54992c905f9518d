//! Sends single commands to a Redis on a Unix socket, each with a timeout.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use rustix::process::Pid;

/// How long a server may take to reply to a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a server may take to stop after SHUTDOWN.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a probe got no reply.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// The server has the socket, but did not reply in time.
    Silent,
    /// The server does not have the socket.
    Unreachable(String),
    /// This process could not send the probe, for example because it has no file descriptor left.
    NotSent,
}

/// Probes the server with this process id, and returns its reply. An error is a reply as well: a server that loads its
/// data or requires a password is alive.
pub(super) fn ask_process(socket: &Path, process: Pid) -> Result<String, Unanswered> {
    let stream = match connect(socket, PROBE_TIMEOUT) {
        Ok(stream) => stream,
        // The socket's backlog is full.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Unanswered::Silent),
        // The file does not exist or is not a socket, or no process listens on it.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(Unanswered::Unreachable(format!("{}: {error}", socket.display())));
        }
        Err(_) => return Err(Unanswered::NotSent),
    };
    if !is_served_by(&stream, process) {
        return Err(Unanswered::Unreachable(format!("another process serves on {}", socket.display())));
    }
    send_command(stream, "PING").ok().filter(|reply| !reply.is_empty()).ok_or(Unanswered::Silent)
}

/// Whether any server replies.
pub(super) fn is_served(socket: &Path) -> bool {
    connect(socket, PROBE_TIMEOUT).and_then(|stream| send_command(stream, "PING")).is_ok()
}

/// Sends SHUTDOWN. Returns true if there was a server.
pub(super) fn shut_down(socket: &Path) -> bool {
    connect(socket, STOP_TIMEOUT).and_then(|stream| send_command(stream, "SHUTDOWN")).is_ok()
}

/// Connects within `timeout`. [`UnixStream::connect`] would wait without limit for a server that does not accept.
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

/// Sends one command and returns the start of the reply, which is empty if the server closes the connection.
fn send_command(mut stream: UnixStream, command: &str) -> io::Result<String> {
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let mut reply = [0; 128];
    let length = stream.read(&mut reply)?;
    Ok(String::from_utf8_lossy(&reply[..length]).into_owned())
}
