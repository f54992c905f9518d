//! Reloads files when they change: written in place, replaced by a rename, or swapped behind a symbolic link.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use ring::digest::{SHA256, digest};

/// The interval at which files should be read again. A change takes effect after two identical reads.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

type Parse<T, const N: usize> = Box<dyn Fn(&[Vec<u8>; N]) -> Result<T, Vec<String>> + Send + Sync>;

/// The value of `N` files that belong together, parsed from their last valid contents.
pub(crate) struct Reloadable<T, const N: usize = 1> {
    paths: [PathBuf; N],
    parse: Parse<T, N>,
    current: RwLock<Arc<T>>,
    version: AtomicU64,
    seen: Mutex<Seen<N>>,
}

/// The state of the last reads. Contents are compared, because modification times are too coarse, and a renamed file
/// keeps its own.
struct Seen<const N: usize> {
    /// The fingerprint of the last read.
    last: Fingerprint<N>,
    /// The fingerprint of the contents that were parsed last.
    parsed: Fingerprint<N>,
}

/// The hash of each file, or the error of reading it.
type Fingerprint<const N: usize> = [Vec<u8>; N];

impl<T: fmt::Display, const N: usize> Reloadable<T, N> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// A line for each problem.
    pub(crate) fn read(
        paths: [PathBuf; N],
        parse: impl Fn(&[Vec<u8>; N]) -> Result<T, Vec<String>> + Send + Sync + 'static,
    ) -> Result<Self, Vec<String>> {
        let (contents, fingerprint) = read(&paths);
        let value = parse(&contents?)?;
        Ok(Self {
            paths,
            parse: Box::new(parse),
            current: RwLock::new(Arc::new(value)),
            version: AtomicU64::new(0),
            seen: Mutex::new(Seen { last: fingerprint.clone(), parsed: fingerprint }),
        })
    }

    /// The value of the last valid contents.
    pub(crate) fn current(&self) -> Arc<T> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often the value has changed.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// Reads the files again. Accepts a change after two identical reads, so a partial write is never parsed. Blocks.
    pub(crate) fn reload_if_changed(&self) {
        let (contents, fingerprint) = read(&self.paths);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_settled = std::mem::replace(&mut seen.last, fingerprint.clone()) == fingerprint;
        if !is_settled || seen.parsed == fingerprint {
            return;
        }
        seen.parsed = fingerprint;
        let file = self.paths[0].display();
        match contents.and_then(|contents| (self.parse)(&contents)) {
            Ok(value) => {
                tracing::info!(%file, "reloaded the changed file: {value}");
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                self.version.fetch_add(1, Ordering::Relaxed);
            }
            Err(problems) => {
                for problem in problems {
                    tracing::error!(%file, problem, "the changed file is not valid; the last valid one stays in force");
                }
            }
        }
    }
}

/// Reads all files. Returns their contents, and the fingerprint of the contents.
fn read<const N: usize>(paths: &[PathBuf; N]) -> (Result<[Vec<u8>; N], Vec<String>>, Fingerprint<N>) {
    let (mut contents, mut fingerprint) = ([const { Vec::new() }; N], [const { Vec::new() }; N]);
    let mut problems = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        match fs::read(path) {
            Ok(content) => {
                fingerprint[index] = digest(&SHA256, &content).as_ref().to_vec();
                contents[index] = content;
            }
            Err(error) => {
                let problem = format!("cannot be read: {error}");
                fingerprint[index] = problem.clone().into_bytes();
                problems.push(if N == 1 { problem } else { format!("{} {problem}", path.display()) });
            }
        }
    }
    (if problems.is_empty() { Ok(contents) } else { Err(problems) }, fingerprint)
}
