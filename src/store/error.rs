//! Errors of the store.

use fred::error::ErrorKind;
use fred::types::config::Server as Address;

/// An error of the store. The variants distinguish the state of the server, the connection to it, and bugs.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Redis is unreachable or did not reply before the timeout. It is not known whether a write was applied.
    #[error("the store is unavailable: {0}")]
    Unavailable(#[source] fred::error::Error),
    /// Redis replied that it cannot serve now; the text is its error code. Nothing was applied.
    #[error("the store cannot serve: {1}")]
    NotServing(&'static str, #[source] fred::error::Error),
    /// Redis is at its memory limit and rejects writes. Nothing was applied.
    #[error("the store is full: {0}")]
    Full(#[source] fred::error::Error),
    /// Redis runs a long script, or sessions change faster than they can be read.
    #[error("the store is busy: {0}")]
    Busy(String),
    /// Too many large responses are in progress. Nothing was read.
    #[error("there is no memory for another large response")]
    ResponseMemory,
    /// Redis rejected a command for a reason that no action of an operator explains: a bug.
    #[error("the store rejected a command: {0}")]
    Rejected(#[source] fred::error::Error),
    /// Redis holds sessions in a layout that this code does not know.
    #[error("the Redis holds another layout version, {0:?}, under this prefix; choose another --key-prefix")]
    Layout(String),
    /// Redis is too old, or its settings can lose sessions.
    #[error("the Redis at {server} {problem}")]
    UnsupportedServer {
        /// Its address.
        server: String,
        /// What is wrong with it, as a predicate.
        problem: String,
    },
    /// The clocks of the service and of Redis differ by more than the limit. Nothing was applied.
    #[error("the clock of this service is {difference} the clock of the Redis at {server}; set the one that is wrong")]
    ClockSkew {
        /// Its address.
        server: String,
        /// The difference: `7200.000 s behind` or `7200.000 s ahead of`.
        difference: String,
    },
    /// A reply that the code does not understand, or that belongs to another request: a bug.
    #[error("unexpected reply to {operation}: {problem}")]
    Reply {
        /// The operation of the store.
        operation: &'static str,
        /// What is wrong with the reply, without any of its content.
        problem: &'static str,
    },
    /// The operating system returned no random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

impl StoreError {
    /// The kind of the error, for metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable(error) if *error.kind() == ErrorKind::Timeout => "timeout",
            Self::Unavailable(_) => "unavailable",
            Self::NotServing(..) => "not_serving",
            Self::Full(_) => "full",
            Self::Busy(_) => "busy",
            Self::ResponseMemory => "response_memory",
            Self::Rejected(_) => "rejected",
            Self::Layout(_) => "layout",
            Self::UnsupportedServer { .. } => "unsupported_server",
            Self::ClockSkew { .. } => "clock_skew",
            Self::Reply { .. } => "reply",
            Self::Random(_) => "random",
        }
    }
}

/// Error codes of a server that cannot serve now: it is loading, failing over, moving slots, short of replicas, unable
/// to save, or requires authentication or a permission.
const NOT_SERVING: [&str; 12] = [
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MOVED",
    "ASK",
    "NOREPLICAS",
    "MISCONF",
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
];

/// The text after which a server repeats the arguments of an unknown command.
const ARGUMENTS: &str = ", with args beginning with:";

/// Parts of the errors of a script that accesses an undeclared key in a slot that is moving to another server, in lower
/// case: of Redis up to 7.2 and Valkey, and of Redis 8.
const MOVING_SLOT: [&str; 3] = [
    "attempted to access a non local key",
    "undeclared keys were accessed during rehashing of the slot",
    "attempted to access a slot not served",
];

fn is_of_moving_slot(details: &str) -> bool {
    let details = details.to_ascii_lowercase();
    MOVING_SLOT.iter().any(|part| details.contains(part))
}

/// The reply of a cluster's server that did not run a command, because it does not have the slot or has only part of
/// it. Nothing was written: a server that redirects runs nothing, and scripts read before they write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Redirection {
    /// Another server has the slot.
    Moved(Address),
    /// Another server has this key, and is importing the slot.
    Ask(Address),
    /// The keys of the slot are being moved.
    TryAgain,
}

impl Redirection {
    pub(super) fn of(error: &fred::error::Error) -> Option<Self> {
        let details = error.details();
        let mut words = details.split(' ');
        let kind = words.next().unwrap_or_default();
        match kind {
            // `MOVED 3999 10.0.0.1:6381`
            "MOVED" | "ASK" => {
                let (host, port) = words.nth(1)?.rsplit_once(':')?;
                let port = port.parse::<u16>().ok()?;
                // The cluster does not know its own addresses: its topology has to be reloaded.
                if host.is_empty() {
                    return Some(Self::TryAgain);
                }
                let address = Address::new(host.to_owned(), port);
                Some(if kind == "ASK" { Self::Ask(address) } else { Self::Moved(address) })
            }
            "TRYAGAIN" => Some(Self::TryAgain),
            _ => is_of_moving_slot(details).then_some(Self::TryAgain),
        }
    }
}

impl From<fred::error::Error> for StoreError {
    fn from(error: fred::error::Error) -> Self {
        let error = without_arguments(error);
        if is_of_moving_slot(error.details()) {
            return Self::NotServing("TRYAGAIN", error);
        }
        let details = error.details();
        match details.split(' ').next().unwrap_or_default() {
            "OOM" => return Self::Full(error),
            "BUSY" => return Self::Busy(details.to_owned()),
            code => {
                if let Some(code) = NOT_SERVING.into_iter().find(|known| *known == code) {
                    return Self::NotServing(code, error);
                }
            }
        }
        // A reply of the server starts with a code in capitals. Other errors are the client's own, about its
        // connection.
        let code = details.split(' ').next().unwrap_or_default();
        let is_reply = code.len() > 2 && code.bytes().all(|byte| byte.is_ascii_uppercase());
        match error.kind() {
            ErrorKind::InvalidArgument | ErrorKind::InvalidCommand | ErrorKind::Parse | ErrorKind::NotFound => {
                Self::Rejected(error)
            }
            ErrorKind::Unknown if is_reply => Self::Rejected(error),
            _ => Self::Unavailable(error),
        }
    }
}

/// Removes the arguments from the error for an unknown command: they contain keys, which name users, and user data.
fn without_arguments(error: fred::error::Error) -> fred::error::Error {
    match error.details().split_once(ARGUMENTS) {
        Some((before, _)) => fred::error::Error::new(error.kind().clone(), before.to_owned()),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_replies_are_classified() {
        let not_serving = [
            "LOADING Redis is loading the dataset in memory",
            "READONLY You can't write against a read only replica.",
            "READONLY You can't write against a read only replica. script: 6f, on @user_script:80.",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "CLUSTERDOWN The cluster is down",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "MOVED 3999 127.0.0.1:6381",
            "ASK 3999 127.0.0.1:6381",
            "ERR Script attempted to access a non local key in a cluster node script: 6f, on @user_script:80.",
            "ERR Attempted to access a non local key in a cluster node script: 6f, on @user_script:80.",
            "ERR Unable to execute command 'hmget' in script because undeclared keys were accessed during rehashing of \
             the slot script: 6f, on @user_script:80.",
            "ERR Script attempted to access a slot not served script: 6f, on @user_script:80.",
            "NOREPLICAS Not enough good replicas to write.",
            "MISCONF Errors writing to the AOF file: No space left on device",
            "NOAUTH Authentication required.",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "NOPERM this user has no permissions to run the 'hmget' command",
        ];
        let error = |details: &'static str| StoreError::from(fred::error::Error::new(ErrorKind::Unknown, details));
        for details in not_serving {
            assert!(matches!(error(details), StoreError::NotServing(..)), "{details}");
        }
        assert!(matches!(error("OOM command not allowed when used memory > 'maxmemory'."), StoreError::Full(_)));
        assert!(matches!(error("BUSY Redis is busy running a script."), StoreError::Busy(_)));
        assert!(matches!(error("ERR wrong number of arguments"), StoreError::Rejected(_)));
        let unknown = error("ERR unknown command 'EVALSHA', with args beginning with: '6f' 'sd:{03f2}:a:b:user_123' ");
        assert_eq!(unknown.to_string(), "the store rejected a command: Unknown Error: ERR unknown command 'EVALSHA'");
        // Errors of the client itself, about its connection.
        for details in ["Too many failed write attempts.", "Missing response."] {
            assert!(matches!(error(details), StoreError::Unavailable(_)), "{details}");
        }
        let timeout = fred::error::Error::new(ErrorKind::Timeout, "Request timed out.");
        assert!(matches!(StoreError::from(timeout), StoreError::Unavailable(_)));
    }

    #[test]
    fn redirections_are_parsed() {
        let read = |details: &'static str| Redirection::of(&fred::error::Error::new(ErrorKind::Cluster, details));
        let at = |host: &str, port| Address::new(host.to_owned(), port);
        assert_eq!(read("MOVED 3999 127.0.0.1:6381"), Some(Redirection::Moved(at("127.0.0.1", 6381))));
        assert_eq!(read("ASK 3999 ::1:6381"), Some(Redirection::Ask(at("::1", 6381))));
        assert_eq!(read("TRYAGAIN Multiple keys request during rehashing of slot"), Some(Redirection::TryAgain));
        assert_eq!(read("ERR attempted to access a non local key in a cluster node"), Some(Redirection::TryAgain));
        assert_eq!(read("MOVED 3999 :6381"), Some(Redirection::TryAgain));
        for other in ["MOVED", "MOVED 3999", "MOVED 3999 host", "MOVED 3999 host:x", "CLUSTERDOWN The cluster is down"]
        {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
