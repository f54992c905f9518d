//! The private Redis of a service that was given none: a child process on a Unix socket in the data directory.
//!
//! It is the same engine and the same scripts as in production; there is no second, in-memory implementation.
//!
//! Nothing that was stored is given up without being asked: `append_only_file` tells an unfinished end, which is cut off and
//! kept, from damage, which is refused; `data_dir` tells a first start from a store with missing files.

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

/// The servers that are looked for, in this order.
const SERVERS: [&str; 2] = ["valkey-server", "redis-server"];

/// Why there is no private Redis.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// No server program was found.
    #[error(
        "no valkey-server or redis-server found; install one (Debian, Ubuntu: `sudo apt-get install redis-server`; \
         Fedora: `sudo dnf install valkey`; Alpine: `sudo apk add valkey`; macOS: `brew install valkey`), \
         name it with SESSIOND_REDIS_SERVER, or use a running one with REDIS_URL"
    )]
    NoServer,
    /// Another process uses the data directory.
    #[error("the data directory {0} is in use by another sessiond; stop that one, or choose another with --data-dir")]
    InUse(PathBuf),
    /// The data directory is somebody else's folder.
    #[error("{0} is neither empty nor a data directory of sessiond; choose another with --data-dir")]
    NotOurs(PathBuf),
    /// The path of the socket does not fit into a socket address.
    #[error("the data directory {0} has too long a path for a Unix socket; choose a shorter one with --data-dir")]
    PathTooLong(PathBuf),
    /// The data directory cannot be used.
    #[error("cannot use the data directory {0}: {1}")]
    Directory(PathBuf, #[source] io::Error),
    /// A file of the store cannot be read.
    #[error("cannot read {0}: {1}; Redis was not started, and no file of the store was changed")]
    File(PathBuf, #[source] io::Error),
    /// A file of the store is damaged.
    #[error(
        "{file} is damaged{}: {what}. Redis was not started, and no file of the store was changed. Copy {data_dir} to \
         another place before you do anything else. Then restore a backup of the whole folder{remedy}. See \"A damaged \
         store\" in deploy/RUNBOOK.md",
        offset.map(|offset| format!(" at byte {offset}")).unwrap_or_default()
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where, in bytes, if that is known.
        offset: Option<u64>,
        /// What is there.
        what: String,
        /// The data directory.
        data_dir: PathBuf,
        /// What may be done if there is no backup.
        remedy: String,
    },
    /// Redis would start empty, or without a part of the store.
    #[error(
        "{0} holds or held a store, but {1}. Redis was not started, because it would begin without the data that is \
         missing. Put the missing files back, or restore a backup of the whole folder. If the data is not needed, move \
         the folder away; sessiond then makes a new one. See \"A damaged store\" in deploy/RUNBOOK.md"
    )]
    Missing(PathBuf, String),
    /// There is nothing to audit.
    #[error("{0} holds no store; choose its data directory with --data-dir")]
    NoStore(PathBuf),
    /// An unfinished end could not be cut off, or no copy of it made.
    #[error("cannot cut off the unfinished write at the end of {0} and keep a copy of it: {1}")]
    NotCut(PathBuf, #[source] io::Error),
    /// The copy for an audit could not be made.
    #[error("cannot copy the store to {0} for the audit, which takes as much room as the store: {1}")]
    NotCopied(PathBuf, #[source] io::Error),
    /// The server did not come up.
    #[error(
        "{server} did not come up: {why}. If it says that a file is damaged, see \"A damaged store\" in \
         deploy/RUNBOOK.md: copy {data_dir} to another place before you do anything else. Its last log lines:\n{log}"
    )]
    NotUp {
        /// The program.
        server: PathBuf,
        /// How it ended.
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
                ", or give up everything that was written after the damage: `redis-check-aof --fix {}` (Valkey: \
                 `valkey-check-aof`) cuts the file off there",
                if manifest.exists() { &manifest } else { file }.display()
            )
        } else {
            String::new()
        };
        Self::Damaged { file: file.to_owned(), offset, what, data_dir: data_dir.to_owned(), remedy }
    }
}

/// A private Redis, restarted if it dies or can no longer be reached, stopped with the service.
#[derive(Debug)]
pub struct EmbeddedRedis {
    // Dropped in this order: the server stops before its copy is removed.
    supervisor: Supervisor,
    _copy: Option<Copy>,
    data_dir: PathBuf,
    note: Option<String>,
}

/// Finds the server to start: `wanted`, or the first of `valkey-server` and `redis-server` in `search_path`.
#[must_use]
pub fn find_server(wanted: Option<&Path>, search_path: &str) -> Option<PathBuf> {
    if let Some(wanted) = wanted {
        // The server is started from another folder. Links are kept: the program may look at its own name.
        return Some(std::path::absolute(wanted).unwrap_or_else(|_| wanted.to_owned()));
    }
    let is_program = |path: &PathBuf| {
        // An empty part of the search path would be the current folder.
        path.is_absolute() && path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let candidates =
        SERVERS.iter().flat_map(|server| search_path.split(':').map(move |folder| Path::new(folder).join(server)));
    candidates.into_iter().find(is_program)
}

impl EmbeddedRedis {
    /// Starts `server` on a socket in `data_dir`, and waits until the socket answers. Blocks; recovers earlier data, of
    /// which an unfinished write at the end is cut off, and a copy kept.
    ///
    /// # Errors
    /// Why it is not up. Nothing is left running then.
    pub fn start(server: &Path, data_dir: &Path) -> Result<Self, EmbeddedError> {
        let unusable = |error| EmbeddedError::Directory(data_dir.to_owned(), error);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(unusable)?;
        let data_dir = data_dir.canonicalize().map_err(unusable)?;
        data_dir::require_ours(&data_dir)?;
        fs::set_permissions(&data_dir, fs::Permissions::from_mode(0o700)).map_err(unusable)?;
        data_dir::require_short_path(&data_dir)?;
        let lock = data_dir::lock(&data_dir, true)?;
        if probe::shut_down(&data_dir.join(data_dir::SOCKET)) {
            // On Linux there is none: the kernel ends it with the service.
            tracing::warn!("stopped a Redis that was left behind in {}", data_dir.display());
        }
        data_dir::remove_left_copy(&data_dir)?;
        let note = data_dir::recover(&data_dir)?;
        let supervisor = Supervisor::start(server, &data_dir, lock)?;
        data_dir::mark_in_use(&data_dir)?;
        Ok(Self { supervisor, _copy: None, data_dir, note })
    }

    /// As [`EmbeddedRedis::start`], but only on a store that exists.
    ///
    /// # Errors
    /// Why it is not up. Nothing is left running then.
    pub fn start_existing(server: &Path, data_dir: &Path) -> Result<Self, EmbeddedError> {
        existing(data_dir)?;
        Self::start(server, data_dir)
    }

    /// Starts `server` on a copy of the store in `data_dir`, which is not changed and must not be in use. The copy goes when
    /// this is dropped. It is without an unfinished write at the end, as [`EmbeddedRedis::start`] would have it.
    ///
    /// # Errors
    /// Why it is not up. Nothing is left running then.
    pub fn start_on_copy(server: &Path, data_dir: &Path) -> Result<Self, EmbeddedError> {
        let data_dir = existing(data_dir)?;
        let lock = data_dir::lock(&data_dir, false)?;
        if probe::is_served(&data_dir.join(data_dir::SOCKET)) {
            return Err(EmbeddedError::InUse(data_dir));
        }
        let files = data_dir::find_store(&data_dir)?.ok_or_else(|| EmbeddedError::NoStore(data_dir.clone()))?;
        let end = data_dir::check(&data_dir, &files)?;
        let copy = Copy::make(&data_dir, &files, end.as_ref())?;
        data_dir::require_short_path(copy.path())?;
        let supervisor = Supervisor::start(server, copy.path(), lock)?;
        let note = end.map(|end| format!("{end}; it was left out, as the service would cut it off"));
        Ok(Self { supervisor, data_dir: copy.path().to_owned(), _copy: Some(copy), note })
    }

    /// The socket that the server listens on.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.data_dir.join(data_dir::SOCKET)
    }

    /// The running server's process id, or `None` while it is restarted.
    #[must_use]
    pub fn process_id(&self) -> Option<i32> {
        self.supervisor.process_id()
    }

    /// What is to be said of the store's files although they can be loaded: an unfinished write at the end.
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Resolves if the server ends before it has loaded its data for the first time: it will not be able to.
    pub async fn failed(&mut self) -> EmbeddedError {
        self.supervisor.failed().await
    }
}

/// A folder that holds a store.
fn existing(data_dir: &Path) -> Result<PathBuf, EmbeddedError> {
    let Ok(data_dir) = data_dir.canonicalize() else {
        return Err(EmbeddedError::NoStore(data_dir.to_owned()));
    };
    data_dir::require_ours(&data_dir)?;
    // Whatever else is wrong is said by one who has the lock: a running Redis changes its files.
    if matches!(data_dir::find_store(&data_dir), Ok(None)) {
        return Err(EmbeddedError::NoStore(data_dir));
    }
    Ok(data_dir)
}
