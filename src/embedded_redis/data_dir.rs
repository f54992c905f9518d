//! The data directory of the embedded Redis: its lock, whether it holds a store, and whether that store can be loaded.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, test_kill_process};

use super::EmbeddedError;
use super::append_only_file::{self, Ending, Fault, check_commands, sync_folder};
use super::manifest::{self, APPEND_ONLY_DIR, MANIFEST, SINGLE_FILE};
use super::rdb_file::{check_rdb, is_rdb};

pub(super) const SOCKET: &str = "redis.sock";
pub(super) const LOG: &str = "redis.log";
const LOCK: &str = "sessiond.lock";
/// Marks a directory that holds a store, so missing files are detected. Empty until the first start has succeeded.
const MARKER: &str = "sessiond.store";
const MARKER_TEXT: &str =
    "This folder holds a store of sessiond. sessiond does not start if files of the store are missing.\n";
/// The directory of an audit's copy of the store while the audit runs.
const AUDIT_COPY: &str = "audit-copy";
/// A directory in the root of a new file system, and so in a data directory that is a mount point.
const LOST_AND_FOUND: &str = "lost+found";
/// How many bytes of the server's log are searched for `READY_LOG_TEXT`.
const LOG_START_BYTES: u64 = 1 << 20;
/// Files that a directory without a store may have.
const NON_STORE_FILES: [&str; 6] = [SOCKET, LOG, LOCK, MARKER, AUDIT_COPY, LOST_AND_FOUND];
/// The prefix of temporary files, which Redis renames once they are complete.
const TEMPORARY: &str = "temp-";
/// What a server logs once it is ready, without the first letter: it matches `Ready` and `ready`.
const READY_LOG_TEXT: &[u8] = b"eady to accept connections";
/// The longest path of a Unix socket on Linux, in bytes (`sun_path` less its final NUL).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// How long the embedded Redis of a killed service may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// The interval at which a held lock is tried again.
const POLL: Duration = Duration::from_millis(5);

/// The files of a store, relative to the data directory: the manifest, and the files that Redis loads, in that order.
#[derive(Debug)]
pub(super) struct StoreFiles {
    manifest: Option<PathBuf>,
    loaded: Vec<PathBuf>,
}

/// An incomplete command or transaction at the end of the last file.
#[derive(Debug)]
pub(super) struct UnfinishedEnd {
    /// The file, relative to the data directory.
    file: PathBuf,
    /// The byte at which it starts.
    offset: u64,
    bytes: u64,
}

/// The state of a directory's marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marked {
    /// There is no marker.
    Not,
    /// A first start has begun, but no server has been up yet.
    FirstStart,
    /// A server has been up.
    InUse,
}

/// Fails if the directory has files other than `lost+found` and was never a data directory of sessiond.
pub(super) fn require_ours(data_dir: &Path) -> Result<(), EmbeddedError> {
    let is_ours = [LOCK, MARKER].iter().any(|name| data_dir.join(name).exists());
    let names = names_in(data_dir)?;
    if is_ours || names.iter().all(|name| name == LOST_AND_FOUND) {
        return Ok(());
    }
    Err(EmbeddedError::NotOurs(data_dir.to_owned()))
}

/// Fails if the path of a Unix socket in the directory would be too long.
pub(super) fn require_short_path(data_dir: &Path) -> Result<(), EmbeddedError> {
    if data_dir.join(SOCKET).as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(EmbeddedError::PathTooLong(data_dir.to_owned()));
    }
    Ok(())
}

/// Takes the lock of the data directory. With `shows_owner`, writes this process's id to the lock file. The operating
/// system releases the lock when this process and its server have ended, also after a crash. The server of a killed
/// service may still be writing its last commands, so a lock whose owner is dead is retried for `STOP_TIMEOUT`.
pub(super) fn lock(data_dir: &Path, shows_owner: bool) -> Result<File, EmbeddedError> {
    let unusable = |error| EmbeddedError::Directory(data_dir.to_owned(), error);
    let path = data_dir.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(unusable)?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
            Err(TryLockError::WouldBlock) => {
                let owner = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
                let is_alive = owner.and_then(Pid::from_raw).is_none_or(|pid| test_kill_process(pid).is_ok());
                if is_alive || started.elapsed() > STOP_TIMEOUT {
                    return Err(EmbeddedError::InUse(data_dir.to_owned()));
                }
                std::thread::sleep(POLL);
            }
        }
    }
    if shows_owner {
        file.set_len(0).map_err(unusable)?;
        (&file).write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(unusable)?;
    }
    Ok(file)
}

/// Prepares the store for loading: cuts off an unfinished write at its end, keeps a copy of it, and returns a note that
/// says so. Marks a directory without a store as one whose first start has begun.
///
/// # Errors
/// If the store is damaged or incomplete, or its unfinished end cannot be cut off.
pub(super) fn recover(data_dir: &Path) -> Result<Option<String>, EmbeddedError> {
    let Some(files) = find_store(data_dir)? else {
        write_marker(data_dir, "").map_err(|error| EmbeddedError::Directory(data_dir.to_owned(), error))?;
        return Ok(None);
    };
    let Some(end) = check(data_dir, &files)? else {
        return Ok(None);
    };
    let path = data_dir.join(&end.file);
    let copy = append_only_file::cut_off(&path, end.offset).map_err(|error| EmbeddedError::NotCut(path, error))?;
    let note = format!("{end}; it was cut off, and a copy of it is {}", copy.display());
    tracing::warn!("{note}");
    Ok(Some(note))
}

/// Marks the directory as one that holds a store.
pub(super) fn mark_in_use(data_dir: &Path) -> Result<(), EmbeddedError> {
    let unusable = |error| EmbeddedError::Directory(data_dir.to_owned(), error);
    match read_marker(data_dir).map_err(unusable)? {
        Marked::InUse => Ok(()),
        _ => write_marker(data_dir, MARKER_TEXT).map_err(unusable),
    }
}

fn write_marker(data_dir: &Path, text: &str) -> io::Result<()> {
    let path = data_dir.join(MARKER);
    let mut marker = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
    marker.write_all(text.as_bytes())?;
    marker.sync_all()?;
    sync_folder(&path)
}

fn read_marker(data_dir: &Path) -> io::Result<Marked> {
    match fs::metadata(data_dir.join(MARKER)) {
        Ok(marker) if marker.is_file() && marker.len() == 0 => Ok(Marked::FirstStart),
        Ok(_) => Ok(Marked::InUse),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Marked::Not),
        Err(error) => Err(error),
    }
}

/// Returns the files of the directory's store, or `None` if the directory has never held one.
///
/// # Errors
/// If the directory holds or held a store, and Redis would start without some or all of its data.
pub(super) fn find_store(data_dir: &Path) -> Result<Option<StoreFiles>, EmbeddedError> {
    let missing = |what: String| EmbeddedError::Missing(data_dir.to_owned(), what);
    let folder = data_dir.join(APPEND_ONLY_DIR);
    let has_folder = exists(&folder)?;
    if has_folder && !folder.is_dir() {
        return Err(missing(format!("{APPEND_ONLY_DIR} is not a folder")));
    }
    if exists(&data_dir.join(MANIFEST))? {
        let loaded = manifest::read(data_dir)?;
        return Ok(Some(StoreFiles { manifest: Some(MANIFEST.into()), loaded }));
    }
    let marker = read_marker(data_dir).map_err(|error| EmbeddedError::Directory(data_dir.to_owned(), error))?;
    if marker == Marked::InUse {
        return Err(missing(format!("{MANIFEST} is missing")));
    }
    // Redis before 7.0 wrote a single file, which later versions load and convert.
    let single = fs::metadata(data_dir.join(SINGLE_FILE)).is_ok_and(|file| file.is_file() && file.len() > 0);
    if single && (!has_folder || names_in(&folder)?.is_empty()) {
        return Ok(Some(StoreFiles { manifest: None, loaded: vec![SINGLE_FILE.into()] }));
    }
    let mut others = names_in(data_dir)?;
    others.retain(|name| !NON_STORE_FILES.contains(&name.as_str()));
    if marker == Marked::FirstStart {
        let has_commands = has_folder && manifest::has_commands(&folder)?;
        others.retain(|name| !name.starts_with(TEMPORARY) && (name != APPEND_ONLY_DIR || has_commands));
    }
    if !others.is_empty() {
        others.sort();
        return Err(missing(format!("{MANIFEST} is missing (there is {})", others.join(", "))));
    }
    if marker == Marked::Not && log_shows_ready_server(data_dir) {
        return Err(missing(format!("{MANIFEST} is missing ({LOG} says that a Redis has served from here)")));
    }
    Ok(None)
}

/// Checks every file that Redis will load. Returns the unfinished write at the end of the last one, if there is one.
///
/// # Errors
/// If a file cannot be read, or has any other damage.
pub(super) fn check(data_dir: &Path, files: &StoreFiles) -> Result<Option<UnfinishedEnd>, EmbeddedError> {
    let mut unfinished = None;
    for (number, file) in files.loaded.iter().enumerate() {
        let is_last = number + 1 == files.loaded.len();
        let path = data_dir.join(file);
        // `redis-check-aof --fix` cuts off only the last file, and no RDB file.
        let can_be_cut = is_last && !is_named_rdb(&path);
        let failed = |fault| match fault {
            Fault::Io(error) => EmbeddedError::File(path.clone(), error),
            Fault::Damage { offset, what } => EmbeddedError::damaged(data_dir, &path, offset, what, can_be_cut),
        };
        let ending = check_file(&path).map_err(failed)?;
        if let Ending::Unfinished { offset } = ending {
            if !is_last {
                let what = "it ends within a command, and another file follows".to_owned();
                return Err(failed(Fault::Damage { offset: Some(offset), what }));
            }
            let length = fs::metadata(&path).map_err(|error| failed(error.into()))?.len();
            unfinished = Some(UnfinishedEnd { file: file.clone(), offset, bytes: length.saturating_sub(offset) });
        }
    }
    Ok(unfinished)
}

fn is_named_rdb(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("rdb"))
}

fn check_file(path: &Path) -> Result<Ending, Fault> {
    match is_rdb(path)? {
        true if is_named_rdb(path) => check_rdb(path).map(|()| Ending::Whole),
        false if is_named_rdb(path) => {
            Err(Fault::Damage { offset: Some(0), what: "it does not start like an RDB file".to_owned() })
        }
        // A file of Redis before 7.0: RDB data, then commands. Only Redis knows where the commands start.
        true => Ok(Ending::Whole),
        false => check_commands(path),
    }
}

/// A copy of a store, removed when dropped.
#[derive(Debug)]
pub(super) struct Copy(PathBuf);

impl Copy {
    /// Copies a store, without its unfinished end, into the data directory. Its file system is chosen for the size of a
    /// store, and other users cannot read the directory.
    pub(super) fn make(
        data_dir: &Path,
        files: &StoreFiles,
        end: Option<&UnfinishedEnd>,
    ) -> Result<Self, EmbeddedError> {
        remove_stale_copy(data_dir)?;
        let copy = Self(data_dir.join(AUDIT_COPY));
        let failed = |error| EmbeddedError::NotCopied(copy.0.clone(), error);
        fs::DirBuilder::new().mode(0o700).create(&copy.0).map_err(failed)?;
        fs::DirBuilder::new().mode(0o700).create(copy.0.join(APPEND_ONLY_DIR)).map_err(failed)?;
        for file in files.manifest.iter().chain(&files.loaded) {
            fs::copy(data_dir.join(file), copy.0.join(file)).map_err(failed)?;
        }
        if let Some(end) = end {
            let file = File::options().write(true).open(copy.0.join(&end.file)).map_err(failed)?;
            file.set_len(end.offset).map_err(failed)?;
        }
        Ok(copy)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, "cannot remove the audit's copy of the store, {}", self.0.display());
        }
    }
}

/// Removes the copy that a killed audit left. The caller must hold the lock.
pub(super) fn remove_stale_copy(data_dir: &Path) -> Result<(), EmbeddedError> {
    match fs::remove_dir_all(data_dir.join(AUDIT_COPY)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(EmbeddedError::Directory(data_dir.join(AUDIT_COPY), error))
        }
        _ => Ok(()),
    }
}

/// Clears the path of the socket: removes a socket that was left there, and moves any other file aside.
pub(super) fn clear_socket_path(data_dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let socket = data_dir.join(SOCKET);
    match fs::symlink_metadata(&socket) {
        Ok(file) if file.file_type().is_socket() => fs::remove_file(&socket),
        Ok(_) => {
            let mut names = (1..).map(|number| data_dir.join(format!("{SOCKET}.moved-aside-{number}")));
            let free = names.find(|path| fs::symlink_metadata(path).is_err()).unwrap_or_default();
            tracing::warn!("{} is not a socket; moving it to {}", socket.display(), free.display());
            fs::rename(&socket, free)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether the store's files exist. Without them, a restarted Redis could not load its data.
pub(super) fn is_on_disk(data_dir: &Path) -> bool {
    find_store(data_dir).is_ok_and(|files| files.is_some())
}

fn exists(path: &Path) -> Result<bool, EmbeddedError> {
    path.try_exists().map_err(|error| EmbeddedError::File(path.to_owned(), error))
}

fn names_in(folder: &Path) -> Result<Vec<String>, EmbeddedError> {
    let unusable = |error| EmbeddedError::Directory(folder.to_owned(), error);
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    folder.read_dir().and_then(|entries| entries.map(name).collect()).map_err(unusable)
}

fn log_shows_ready_server(data_dir: &Path) -> bool {
    let Ok(log) = File::open(data_dir.join(LOG)) else {
        return false;
    };
    // The first start is logged near the beginning. Bounded, because the log may be a link to an endless device.
    let lines = BufReader::new(log.take(LOG_START_BYTES)).split(b'\n').map_while(Result::ok);
    lines.into_iter().any(|line| line.windows(READY_LOG_TEXT.len()).any(|text| text == READY_LOG_TEXT))
}

impl std::fmt::Display for UnfinishedEnd {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, offset, bytes } = self;
        write!(formatter, "{} ends with an unfinished write of {bytes} bytes, from byte {offset}", file.display())
    }
}
