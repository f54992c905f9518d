//! What can go wrong between a store method and Redis.

use fred::error::ErrorKind;

/// A failure of the store. Each says whether it is the server's state, the way to it, or a bug.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Redis did not answer in time, is not reachable, or refuses to serve. Whether a write was applied is not known.
    #[error("the store is unavailable: {0}")]
    Unavailable(#[source] fred::error::Error),
    /// Redis is at its memory limit and takes no writes. Nothing was applied.
    #[error("the store is full: {0}")]
    Full(#[source] fred::error::Error),
    /// Redis is occupied by a long-running script, or sessions change faster than they can be read.
    #[error("the store is busy: {0}")]
    Busy(String),
    /// Redis refused a command for a reason that no operator's action explains: a bug.
    #[error("the store refused a command: {0}")]
    Refused(#[source] fred::error::Error),
    /// The Redis holds sessions in a layout that this code does not know.
    #[error("the Redis holds another layout version, {0:?}, under this prefix; choose another --key-prefix")]
    Layout(String),
    /// A reply that the code does not understand, or one that belongs to another question: a bug.
    #[error("unexpected reply of {verb}: {problem}")]
    Reply {
        /// The store's verb.
        verb: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The operating system gave no random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

/// Replies by which a server says that it cannot serve now: it loads, fails over, moves slots, lost replicas, cannot save,
/// or was not told who we are.
const TRANSIENT: [&str; 13] = [
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MOVED",
    "ASK",
    "NOREPLICAS",
    "MISCONF",
    "UNBLOCKED",
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
];

impl From<fred::error::Error> for StoreError {
    fn from(error: fred::error::Error) -> Self {
        let details = error.details();
        let code = details.split(' ').next().unwrap_or_default();
        if code == "OOM" || details.contains("-OOM ") {
            return Self::Full(error);
        }
        if code == "BUSY" {
            return Self::Busy(details.to_owned());
        }
        if TRANSIENT.contains(&code) || details.contains("access a non local key") {
            return Self::Unavailable(error);
        }
        match error.kind() {
            ErrorKind::InvalidArgument
            | ErrorKind::InvalidCommand
            | ErrorKind::Parse
            | ErrorKind::NotFound
            | ErrorKind::Unknown => Self::Refused(error),
            _ => Self::Unavailable(error),
        }
    }
}
