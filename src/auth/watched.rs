//! A file that is read again when it changes: written in place, replaced by a rename, or swapped behind a symbolic link.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use ring::digest::{Digest, SHA256, digest};

type Parse<T> = Box<dyn Fn(&[u8]) -> Result<T, Vec<String>> + Send + Sync>;

/// What a file says, as of when it last said something good.
pub(super) struct Watched<T> {
    path: PathBuf,
    parse: Parse<T>,
    current: RwLock<Arc<T>>,
    seen: Mutex<Seen>,
}

/// Fingerprints of the file: contents are compared, not times, which are too coarse, and move with renames.
struct Seen {
    /// What the last look saw.
    last: Fingerprint,
    /// What was parsed last.
    parsed: Fingerprint,
}

type Fingerprint = Vec<u8>;

impl<T: fmt::Display> Watched<T> {
    /// Reads the file for the first time.
    pub(super) fn read(
        path: &Path,
        parse: impl Fn(&[u8]) -> Result<T, Vec<String>> + Send + Sync + 'static,
    ) -> Result<Self, Vec<String>> {
        let (content, fingerprint) = look(path);
        let value = parse(&content?)?;
        Ok(Self {
            path: path.to_owned(),
            parse: Box::new(parse),
            current: RwLock::new(Arc::new(value)),
            seen: Mutex::new(Seen { last: fingerprint.clone(), parsed: fingerprint }),
        })
    }

    /// What it said when it last said something good.
    pub(super) fn current(&self) -> Arc<T> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes what the file says if that is new, and was there at the last look already: half of a file that is being
    /// written is no file.
    pub(super) fn look_again(&self) {
        let (content, fingerprint) = look(&self.path);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_settled = std::mem::replace(&mut seen.last, fingerprint.clone()) == fingerprint;
        if !is_settled || seen.parsed == fingerprint {
            return;
        }
        seen.parsed = fingerprint;
        let file = self.path.display();
        match content.and_then(|content| (self.parse)(&content)) {
            Ok(value) => {
                tracing::info!(%file, "read the changed file: {value}");
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
            }
            Err(problems) => {
                for problem in problems {
                    tracing::error!(%file, problem, "the changed file is broken: what it said before stays in force");
                }
            }
        }
    }
}

/// The content, and what tells it from another. A file that cannot be read is told from others by its error.
fn look(path: &Path) -> (Result<Vec<u8>, Vec<String>>, Fingerprint) {
    let hash = |bytes: &[u8]| -> Digest { digest(&SHA256, bytes) };
    match fs::read(path) {
        Ok(content) => {
            let fingerprint = hash(&content).as_ref().to_vec();
            (Ok(content), fingerprint)
        }
        Err(error) => {
            let problem = format!("cannot be read: {error}");
            let fingerprint = problem.clone().into_bytes();
            (Err(vec![problem]), fingerprint)
        }
    }
}
