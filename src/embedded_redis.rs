//! The embedded Redis: a child process on a Unix socket in the data directory, used when no Redis URL is configured.
//!
//! It runs the same engine and the same scripts as production; there is no second, in-memory implementation
//! (`docs/architecture.md`, "The embedded Redis").
//!
//! The service never discards stored data silently. `append_only_file` distinguishes an unfinished write at the end of
//! a file, which is cut off and kept in a copy, from damage, which prevents the start. `data_dir` distinguishes a first
//! start from a store with missing files.

mod append_only_file;
mod data_dir;
mod manifest;
mod probe;
mod rdb_file;
mod supervisor;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use self::data_dir::Copy;
use self::supervisor::Supervisor;

/// Names of server programs, in order of preference.
const SERVERS: [&str; 2] = ["valkey-server", "redis-server"];

/// Why the embedded Redis cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Neither `valkey-server` nor `redis-server` was found.
    #[error(
        "no valkey-server or redis-server found; install one (Debian, Ubuntu: `sudo apt-get install redis-server`; \
         Fedora: `sudo dnf install valkey`; Alpine: `sudo apk add valkey`; macOS: `brew install valkey`), \
         set its path in SESSIOND_REDIS_SERVER, or use a running server with REDIS_URL"
    )]
    NoServer,
    /// Another process uses the data directory.
    #[error("the data directory {0} is in use by another sessiond; stop it, or choose another with --data-dir")]
    InUse(PathBuf),
    /// The directory has other files, and was never a data directory of sessiond.
    #[error("{0} is neither empty nor a data directory of sessiond; choose another directory with --data-dir")]
    NotOurs(PathBuf),
    /// The path of the socket does not fit into a socket address.
    #[error("the path of the data directory {0} is too long for a Unix socket; choose a shorter one with --data-dir")]
    PathTooLong(PathBuf),
    /// The data directory cannot be used.
    #[error("cannot use the data directory {0}: {1}")]
    Directory(PathBuf, #[source] io::Error),
    /// A file of the store cannot be read.
    #[error("cannot read {0}: {1}; Redis was not started, and no file of the store was changed")]
    File(PathBuf, #[source] io::Error),
    /// A file of the store is damaged.
    #[error(
        "{file} is damaged{}: {what}. Redis was not started, and no file of the store was changed. Copy {data_dir} \
         to another place before you do anything else. Then restore a backup of the whole folder{remedy}. See \
         \"A damaged store\" in deploy/RUNBOOK.md",
        offset.map(|offset| format!(" at byte {offset}")).unwrap_or_default()
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// The byte offset of the damage, if it is known.
        offset: Option<u64>,
        /// What is wrong.
        what: String,
        /// The data directory.
        data_dir: PathBuf,
        /// What to do without a backup, as text to append; empty if nothing helps.
        remedy: String,
    },
    /// Redis would start without some or all of the stored data.
    #[error(
        "{0} holds or held a store, but {1}. Redis was not started, because it would start without the missing data. \
         Put the missing files back, or restore a backup of the whole folder. If you do not need the data, move the \
         folder away; sessiond then creates a new one. See \"A damaged store\" in deploy/RUNBOOK.md"
    )]
    Missing(PathBuf, String),
    /// The directory holds no store.
    #[error("{0} holds no store; set the data directory with --data-dir")]
    NoStore(PathBuf),
    /// An unfinished write at the end of a file could not be copied and cut off.
    #[error("cannot cut off the unfinished write at the end of {0} and keep a copy of it: {1}")]
    NotCut(PathBuf, #[source] io::Error),
    /// The copy for an audit could not be made.
    #[error("cannot copy the store to {0} for the audit; the copy needs as much disk space as the store: {1}")]
    NotCopied(PathBuf, #[source] io::Error),
    /// The server did not come up.
    #[error(
        "{server} did not come up: {why}. If it says that a file is damaged, see \"A damaged store\" in \
         deploy/RUNBOOK.md: copy {data_dir} to another place before you do anything else. Its last log lines:\n{log}"
    )]
    NotUp {
        /// The program.
        server: PathBuf,
        /// Its exit status, the error of starting it, or the timeout that it exceeded.
        why: String,
        /// The last lines of its log.
        log: String,
        /// The data directory.
        data_dir: PathBuf,
    },
}

impl EmbeddedError {
    fn damaged(data_dir: &Path, file: &Path, offset: Option<u64>, what: String, can_be_cut: bool) -> Self {
        let remedy = if can_be_cut {
            let manifest = data_dir.join(manifest::MANIFEST);
            format!(
                ", or lose every write after the damage: `redis-check-aof --fix {}` (Valkey: \
                 `valkey-check-aof`) cuts the file off at the damage",
                if manifest.exists() { &manifest } else { file }.display()
            )
        } else {
            String::new()
        };
        Self::Damaged { file: file.to_owned(), offset, what, data_dir: data_dir.to_owned(), remedy }
    }
}

/// The embedded Redis. It is restarted if it ends or its socket cannot be reached, and stopped when this is dropped.
#[derive(Debug)]
pub struct EmbeddedRedis {
    // Fields are dropped in this order: the server stops before its copy of the store is removed.
    supervisor: Supervisor,
    _copy: Option<Copy>,
    data_dir: PathBuf,
    note: Option<String>,
}

/// Finds the server to start: `wanted`, or the first of `valkey-server` and `redis-server` in `search_path`.
#[must_use]
pub fn find_server(wanted: Option<&Path>, search_path: &str) -> Option<PathBuf> {
    if let Some(wanted) = wanted {
        // Absolute, because the server starts in another directory. Symbolic links are kept, because the program may
        // check the name by which it was started.
        return Some(std::path::absolute(wanted).unwrap_or_else(|_| wanted.to_owned()));
    }
    let is_program = |path: &PathBuf| {
        // An empty entry of the search path would mean the current directory.
        path.is_absolute() && path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let candidates =
        SERVERS.iter().flat_map(|server| search_path.split(':').map(move |folder| Path::new(folder).join(server)));
    candidates.into_iter().find(is_program)
}

impl EmbeddedRedis {
    /// Starts `server` on the store in `data_dir`, with a socket there, and waits until it replies. Blocks.
    ///
    /// Cuts off an unfinished write at the end of the store, and keeps a copy of it.
    ///
    /// # Errors
    /// Why the server is not up. No process is left running then.
    pub fn start(server: &Path, data_dir: &Path) -> Result<Self, EmbeddedError> {
        let unusable = |error| EmbeddedError::Directory(data_dir.to_owned(), error);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(unusable)?;
        let data_dir = data_dir.canonicalize().map_err(unusable)?;
        data_dir::require_ours(&data_dir)?;
        fs::set_permissions(&data_dir, fs::Permissions::from_mode(0o700)).map_err(unusable)?;
        data_dir::require_short_path(&data_dir)?;
        let lock = data_dir::lock(&data_dir, true)?;
        if probe::shut_down(&data_dir.join(data_dir::SOCKET)) {
            // Does not happen on Linux, where the kernel stops the child when its parent ends.
            tracing::warn!("stopped a Redis that an earlier process left running in {}", data_dir.display());
        }
        data_dir::remove_stale_copy(&data_dir)?;
        let note = data_dir::recover(&data_dir)?;
        let supervisor = Supervisor::start(server, &data_dir, lock)?;
        data_dir::mark_in_use(&data_dir)?;
        Ok(Self { supervisor, _copy: None, data_dir, note })
    }

    /// Like [`EmbeddedRedis::start`], but fails if `data_dir` holds no store.
    ///
    /// # Errors
    /// Why the server is not up. No process is left running then.
    pub fn start_existing(server: &Path, data_dir: &Path) -> Result<Self, EmbeddedError> {
        existing_store_dir(data_dir)?;
        Self::start(server, data_dir)
    }

    /// Starts `server` on a copy of the store in `data_dir`. The store itself is not changed, and must not be in use.
    ///
    /// The copy lacks an unfinished write at the end, which [`EmbeddedRedis::start`] would cut off. It is removed when
    /// this is dropped.
    ///
    /// # Errors
    /// Why the server is not up. No process is left running then.
    pub fn start_on_copy(server: &Path, data_dir: &Path) -> Result<Self, EmbeddedError> {
        let data_dir = existing_store_dir(data_dir)?;
        let lock = data_dir::lock(&data_dir, false)?;
        if probe::is_served(&data_dir.join(data_dir::SOCKET)) {
            return Err(EmbeddedError::InUse(data_dir));
        }
        let files = data_dir::find_store(&data_dir)?.ok_or_else(|| EmbeddedError::NoStore(data_dir.clone()))?;
        let end = data_dir::check(&data_dir, &files)?;
        let copy = Copy::make(&data_dir, &files, end.as_ref())?;
        data_dir::require_short_path(copy.path())?;
        let supervisor = Supervisor::start(server, copy.path(), lock)?;
        let note = end.map(|end| format!("{end}; it was left out, because the service would cut it off"));
        Ok(Self { supervisor, data_dir: copy.path().to_owned(), _copy: Some(copy), note })
    }

    /// The socket that the server listens on.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.data_dir.join(data_dir::SOCKET)
    }

    /// The process id of the running server, or `None` during a restart.
    #[must_use]
    pub fn process_id(&self) -> Option<i32> {
        self.supervisor.process_id()
    }

    /// A note for the operator, if the store ended with an unfinished write.
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Resolves if the first server ends before it has loaded its data, because the data cannot be loaded. Never
    /// resolves otherwise.
    pub async fn failed(&mut self) -> EmbeddedError {
        self.supervisor.failed().await
    }
}

/// The canonical path of a directory that holds a store.
fn existing_store_dir(data_dir: &Path) -> Result<PathBuf, EmbeddedError> {
    let Ok(data_dir) = data_dir.canonicalize() else {
        return Err(EmbeddedError::NoStore(data_dir.to_owned()));
    };
    data_dir::require_ours(&data_dir)?;
    // The caller reports other errors once it holds the lock, because a running Redis changes its files.
    if matches!(data_dir::find_store(&data_dir), Ok(None)) {
        return Err(EmbeddedError::NoStore(data_dir));
    }
    Ok(data_dir)
}
