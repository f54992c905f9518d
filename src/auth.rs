//! Credentials: from the text that a caller presents to what it may do. Knows no HTTP and no store, and reads no clock.
//!
//! There are two kinds. *API keys* are for servers: a secret that the caller holds and the service knows the hash of
//! (`api_keys.rs`). *JWTs* are for users in browsers: claims that another service has signed (`jwt.rs`). Both come from
//! files that are read again while the service runs, so keys are added and withdrawn without a restart.

mod api_keys;
mod jwt;
mod rate;
mod watched;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ring::digest;

use self::api_keys::ApiKeys;
pub use self::api_keys::{ALL_BUSINESSES, NewApiKey, businesses, expiry, generate};
use self::jwt::JwtKeys;
pub use self::jwt::{JwtAlgorithm, JwtSettings};
pub use self::rate::{Rate, RateLimits, RateSettings};
use self::watched::Watched;
use crate::session::{Reach, Role, Timestamp};

/// How often the files have to be looked at. A change is taken when two looks in a row saw it: one that is being written
/// is not.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// What a call needs to be allowed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Read sessions and messages.
    Read,
    /// Create, change and delete sessions, append messages.
    Write,
    /// Erase users.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    /// The scope as files and tokens have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    /// The scope of a word, if it is one.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == word)
    }
}

/// Stands for a credential, or for a user of one, where the thing itself must not be told: in logs, and in what counts
/// calls. 64 bits of a SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    fn of(kind: &str, text: &str) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        // No kind has a NUL, so none runs into the text.
        context.update(kind.as_bytes());
        context.update(b"\0");
        context.update(text.as_bytes());
        let hash = context.finish();
        let first = hash.as_ref().first_chunk().copied().unwrap_or_default();
        Self(u64::from_be_bytes(first))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

/// What a caller may do.
#[derive(Clone, Debug)]
pub struct Access {
    /// Whose sessions.
    pub reach: Reach,
    /// Which calls.
    pub scopes: Vec<Scope>,
    /// Who answers for the calls: the API key, or the business of a token. `None` if there are no credentials.
    pub credential: Option<Fingerprint>,
    /// The user of a token.
    pub subject: Option<Fingerprint>,
}

impl Access {
    /// Whether calls that need this scope are allowed.
    #[must_use]
    pub fn allows(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
}

/// Why a credential is not accepted. Says nothing of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is unknown, wrong, forged, or lacks something.
    Invalid,
    /// It was good until some time ago.
    Expired,
}

/// Where credentials are checked against, and what they allow beside their scopes.
#[derive(Clone, Debug, Default)]
pub struct AuthSettings {
    /// The file of API keys.
    pub api_keys_file: Option<PathBuf>,
    /// How tokens are checked.
    pub jwt: Option<JwtSettings>,
    /// The roles of the messages that a token of one user may append.
    pub user_roles: Vec<Role>,
}

impl AuthSettings {
    /// Whether there are no credentials, so that everybody may do everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.api_keys_file.is_none() && self.jwt.is_none()
    }
}

/// Everything that callers' credentials are checked against.
pub struct Credentials {
    api_keys: Option<Watched<ApiKeys>>,
    jwt: Option<Watched<JwtKeys>>,
    everything: Arc<Access>,
}

impl Credentials {
    /// Reads the files.
    ///
    /// # Errors
    /// A line for each problem, without anything secret.
    pub fn load(settings: &AuthSettings) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let mut good = |found: Vec<String>| problems.extend(found);
        let api_keys = settings.api_keys_file.as_deref().map(|path| read("api-keys", path, ApiKeys::parse));
        let jwt = settings.jwt.clone().map(|settings| {
            let path = settings.key_file.clone();
            read("jwt-key", &path, move |content| JwtKeys::parse(&settings, content))
        });
        let api_keys = api_keys.and_then(|read| read.map_err(&mut good).ok());
        let jwt = jwt.and_then(|read| read.map_err(&mut good).ok());
        if !problems.is_empty() {
            return Err(problems);
        }
        let everything =
            Access { reach: Reach::Everything, scopes: Scope::ALL.to_vec(), credential: None, subject: None };
        Ok(Self { api_keys, jwt, everything: Arc::new(everything) })
    }

    /// What anybody may do without a credential: everything if none are configured, or nothing.
    #[must_use]
    pub fn of_anybody(&self) -> Option<Arc<Access>> {
        (self.api_keys.is_none() && self.jwt.is_none()).then(|| self.everything.clone())
    }

    /// What the bearer of `<keyId>.<secret>` may do.
    ///
    /// # Errors
    /// Why nothing.
    pub fn of_api_key(&self, credential: &str, now: Timestamp) -> Result<Arc<Access>, Refusal> {
        self.api_keys.as_ref().ok_or(Refusal::Invalid)?.current().access(credential, now)
    }

    /// What the bearer of a JWT or of `<keyId>.<secret>` may do. A JWT has two dots, the other has one.
    ///
    /// # Errors
    /// Why nothing.
    pub fn of_bearer(&self, credential: &str, now: Timestamp) -> Result<Arc<Access>, Refusal> {
        if credential.bytes().filter(|&byte| byte == b'.').take(2).count() < 2 {
            return self.of_api_key(credential, now);
        }
        self.jwt.as_ref().ok_or(Refusal::Invalid)?.current().access(credential, now).map(Arc::new)
    }

    /// Looks at the files again. What changed and is good is in force from now on; what is not leaves the keys as they
    /// were. Either is told to the log. Blocks while it reads.
    pub fn reload(&self) {
        if let Some(api_keys) = &self.api_keys {
            api_keys.look_again();
        }
        if let Some(jwt) = &self.jwt {
            jwt.look_again();
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl fmt::Display for Credentials {
    /// How many keys there are.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.api_keys, &self.jwt) {
            (None, None) => formatter.write_str("no credentials: everybody may do everything"),
            (Some(api_keys), None) => api_keys.current().fmt(formatter),
            (None, Some(jwt)) => jwt.current().fmt(formatter),
            (Some(api_keys), Some(jwt)) => write!(formatter, "{}; {}", api_keys.current(), jwt.current()),
        }
    }
}

/// Reads a file of keys for the first time. `setting` is its flag without dashes and `-file`.
fn read<T: fmt::Display>(
    setting: &str,
    path: &Path,
    parse: impl Fn(&[u8]) -> Result<T, Vec<String>> + Send + Sync + 'static,
) -> Result<Watched<T>, Vec<String>> {
    let told = |problem| {
        let variable = setting.replace('-', "_").to_uppercase();
        format!("--{setting}-file (SESSIOND_{variable}_FILE) {}: {problem}", path.display())
    };
    Watched::read(path, parse).map_err(|problems| problems.into_iter().map(told).collect())
}
