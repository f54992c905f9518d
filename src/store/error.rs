//! What can go wrong between a store method and Redis.

use fred::error::ErrorKind;
use fred::types::config::Server as Address;

/// A failure of the store. Each says whether it is the server's state, the way to it, or a bug.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Redis did not answer in time or is not reachable. Whether a write was applied is not known.
    #[error("the store is unavailable: {0}")]
    Unavailable(#[source] fred::error::Error),
    /// Redis said that it does not serve now, and by which of its error codes. Nothing was applied.
    #[error("the store does not serve: {1}")]
    NotServing(&'static str, #[source] fred::error::Error),
    /// Redis is at its memory limit and takes no writes. Nothing was applied.
    #[error("the store is full: {0}")]
    Full(#[source] fred::error::Error),
    /// Redis is occupied by a long-running script, or sessions change faster than they can be read.
    #[error("the store is busy: {0}")]
    Busy(String),
    /// Too many large responses are under way. Nothing was read.
    #[error("there is no memory for one more large response")]
    ResponseMemory,
    /// Redis refused a command for a reason that no operator's action explains: a bug.
    #[error("the store refused a command: {0}")]
    Refused(#[source] fred::error::Error),
    /// The Redis holds sessions in a layout that this code does not know.
    #[error("the Redis holds another layout version, {0:?}, under this prefix; choose another --key-prefix")]
    Layout(String),
    /// The Redis is too old, or set up so that it loses sessions.
    #[error("the Redis at {server} {problem}")]
    Unfit {
        /// Its address.
        server: String,
        /// What is wrong with it, as a predicate.
        problem: String,
    },
    /// The clocks of the service and of Redis differ by more than is safe. Nothing was applied.
    #[error("the clock of this service is {difference} the clock of the Redis at {server}; set the one that is wrong")]
    ClockSkew {
        /// Its address.
        server: String,
        /// By how much: `7200.000 s behind` or `7200.000 s ahead of`.
        difference: String,
    },
    /// A reply that the code does not understand, or one that belongs to another question: a bug.
    #[error("unexpected reply of {verb}: {problem}")]
    Reply {
        /// The store's verb.
        verb: &'static str,
        /// What is wrong with it, without anything that was in it.
        problem: &'static str,
    },
    /// The operating system gave no random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

impl StoreError {
    /// What went wrong, in a word, for metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable(error) if *error.kind() == ErrorKind::Timeout => "timeout",
            Self::Unavailable(_) => "unavailable",
            Self::NotServing(..) => "not_serving",
            Self::Full(_) => "full",
            Self::Busy(_) => "busy",
            Self::ResponseMemory => "response_memory",
            Self::Refused(_) => "refused",
            Self::Layout(_) => "layout",
            Self::Unfit { .. } => "unfit",
            Self::ClockSkew { .. } => "clock_skew",
            Self::Reply { .. } => "reply",
            Self::Random(_) => "random",
        }
    }
}

/// Error codes by which a server says that it does not serve now: it loads, fails over, moves slots, lost its replicas,
/// cannot save, or was not told who we are.
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

/// Where a server starts to repeat the arguments of a command that it does not know.
const ARGUMENTS: &str = ", with args beginning with:";

/// What a script is told that touches a key of a slot that is on its way to another server, without having declared it.
const NON_LOCAL_KEY: &str = "attempted to access a non local key";

/// What a server of a cluster says of a command that it did not run, for its slot is not here, or only in part. Nothing was
/// written: a server that redirects runs nothing, and scripts read before they write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Redirection {
    /// Another server has the slot.
    Moved(Address),
    /// Another server has this key, and will have the slot.
    Ask(Address),
    /// The keys of the slot are on their way.
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
                // A cluster that does not know its own addresses: the map of it says more.
                if host.is_empty() {
                    return Some(Self::TryAgain);
                }
                let address = Address::new(host.to_owned(), port);
                Some(if kind == "ASK" { Self::Ask(address) } else { Self::Moved(address) })
            }
            "TRYAGAIN" => Some(Self::TryAgain),
            _ => details.contains(NON_LOCAL_KEY).then_some(Self::TryAgain),
        }
    }
}

impl From<fred::error::Error> for StoreError {
    fn from(error: fred::error::Error) -> Self {
        let error = without_arguments(error);
        if error.details().contains(NON_LOCAL_KEY) {
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
        // What the server replied starts with a code in capitals; the rest is the client's own, about its connection.
        let code = details.split(' ').next().unwrap_or_default();
        let is_reply = code.len() > 2 && code.bytes().all(|byte| byte.is_ascii_uppercase());
        match error.kind() {
            ErrorKind::InvalidArgument | ErrorKind::InvalidCommand | ErrorKind::Parse | ErrorKind::NotFound => {
                Self::Refused(error)
            }
            ErrorKind::Unknown if is_reply => Self::Refused(error),
            _ => Self::Unavailable(error),
        }
    }
}

/// A server that does not know a command repeats its arguments: keys, which name users, and what they wrote.
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
    fn every_reply_has_its_meaning() {
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
        assert!(matches!(error("ERR wrong number of arguments"), StoreError::Refused(_)));
        let unknown = error("ERR unknown command 'EVALSHA', with args beginning with: '6f' 'sd:{03f2}:a:b:user_123' ");
        assert_eq!(unknown.to_string(), "the store refused a command: Unknown Error: ERR unknown command 'EVALSHA'");
        // These are the client's own words, about its connection.
        for details in ["Too many failed write attempts.", "Missing response."] {
            assert!(matches!(error(details), StoreError::Unavailable(_)), "{details}");
        }
        let timeout = fred::error::Error::new(ErrorKind::Timeout, "Request timed out.");
        assert!(matches!(StoreError::from(timeout), StoreError::Unavailable(_)));
    }

    #[test]
    fn redirections_are_read_with_their_address() {
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
