//! Unwritable or unread file descriptors for the program's output.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;

use rustix::fs::OFlags;
use rustix::io::ioctl_fionbio;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// A full disk.
pub fn full() -> File {
    File::options().write(true).open("/dev/full").expect("/dev/full")
}

/// A descriptor that is not open for writing.
pub fn read_only() -> File {
    File::open("/dev/null").expect("/dev/null")
}

/// A pipe whose reading end is closed.
pub fn broken_pipe() -> PipeWriter {
    pipe().expect("a pipe").1
}

/// A full pipe that is not read.
pub fn stuck_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = pipe().expect("a pipe");
    fill(&writer);
    (reader, writer)
}

/// A full pipe that is not read, and that another process has made non-blocking.
pub fn stuck_non_blocking_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = stuck_pipe();
    ioctl_fionbio(&writer, true).expect("a non-blocking pipe");
    (reader, writer)
}

/// A full socket that is not read, like the socket of a stuck journal.
pub fn stuck_socket() -> (UnixStream, OwnedFd) {
    let (reader, writer) = UnixStream::pair().expect("sockets");
    fill(&writer);
    (reader, writer.into())
}

/// A terminal whose output is suspended, as after Ctrl-S. Returns the controlling side and the terminal.
pub fn stuck_terminal() -> (OwnedFd, File) {
    let other_side = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&other_side).and_then(|()| unlockpt(&other_side)).expect("a terminal that can be opened");
    let path = ptsname(&other_side, Vec::new()).expect("its name").into_string().expect("a name of text");
    let no_control = i32::try_from(OFlags::NOCTTY.bits()).expect("a flag");
    let terminal = File::options().read(true).write(true).custom_flags(no_control).open(path).expect("a terminal");
    fill(&terminal);
    (other_side, terminal)
}

/// Writes until the descriptor cannot take another byte.
fn fill(descriptor: &impl AsFd) {
    ioctl_fionbio(descriptor, true).expect("a non-blocking descriptor");
    for lines in [[b'\n'; 4096].as_slice(), b"\n"] {
        while rustix::io::write(descriptor, lines).is_ok() {}
    }
    ioctl_fionbio(descriptor, false).expect("a blocking descriptor");
}
