//! Writes to stdout and stderr that report every failure and never panic.
//!
//! `println!` and `eprintln!` panic if they cannot write, and the handles of the standard library report success for a
//! descriptor that is not open for writing. Neither is usable here; clippy bans the macros.

use std::fs::File;
use std::io::{self, ErrorKind, Stderr, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::Duration;

/// The delay before a write is retried to a full descriptor that another process made non-blocking.
const FULL_RETRY: Duration = Duration::from_millis(10);
const NULL_DEVICE: &str = "/dev/null";

/// A descriptor that is written without a buffer and without a lock.
#[derive(Debug)]
pub struct Unbuffered<F>(F);

impl Unbuffered<Stderr> {
    /// Stderr.
    #[must_use]
    pub fn stderr() -> Self {
        Self(io::stderr())
    }
}

impl<F: AsFd> Write for Unbuffered<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes all of `rest`. After an error, `rest` is what was not written.
///
/// # Errors
/// The errors of the writer, except interruptions and full non-blocking descriptors, which are retried.
pub fn write_all(out: &mut impl Write, rest: &mut &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        match out.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => *rest = &rest[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(FULL_RETRY),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes text to stdout. If stdout is a file, the text is on disk when this returns: some file systems report a full
/// disk or an exceeded quota only when a file is synced.
///
/// # Errors
/// If any of it could not be written.
pub fn print(text: &str) -> io::Result<()> {
    let stdout = io::stdout();
    write_all(&mut Unbuffered(&stdout), &mut text.as_bytes())?;
    let file = File::from(stdout.as_fd().try_clone_to_owned()?);
    if !file.metadata()?.is_file() {
        return Ok(());
    }
    match file.sync_data() {
        // The file system does not support syncing.
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

/// Writes text to stderr. Blocks until all of it is written.
///
/// # Errors
/// If any of it could not be written.
pub fn print_error(text: &str) -> io::Result<()> {
    write_all(&mut Unbuffered::stderr(), &mut text.as_bytes())
}

/// Whether a descriptor is the null device, which discards what is written. This includes a standard descriptor that
/// was closed when the program started: Rust opens the null device in its place.
///
/// # Errors
/// If the descriptor cannot be examined.
pub fn is_discarded(descriptor: impl AsFd) -> io::Result<bool> {
    let device = File::from(descriptor.as_fd().try_clone_to_owned()?).metadata()?;
    Ok(device.file_type().is_char_device() && device.rdev() == std::fs::metadata(NULL_DEVICE)?.rdev())
}
