//! Checks credentials: maps the text of a credential to a [`Grant`]. Uses no HTTP, no store and no clock.
//!
//! There are two kinds. *API keys* are for servers: the caller holds a secret, and the service stores its hash
//! (`api_keys.rs`). *JWTs* are for users in browsers: another service signs their claims (`jwt.rs`). The key files of
//! both are reloaded when they change, so keys can be added and revoked without a restart.

mod api_keys;
mod jwt;
mod rate_limit;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest;

use self::api_keys::ApiKeys;
pub use self::api_keys::{ALL_BUSINESSES, NewApiKey, businesses, expiry, generate};
use self::jwt::JwtKeys;
pub use self::jwt::{JwtAlgorithm, JwtConfig};
pub use self::rate_limit::{Rate, RateConfig, RateLimits};
use crate::reload::Reloadable;
use crate::session::{TenantScope, Timestamp};

/// A permission that a call requires (docs/api.md, "Credentials").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Read sessions and messages.
    Read,
    /// Create, change and delete sessions; append messages.
    Write,
    /// Erase users.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    /// The scope as it is spelled in key files and tokens.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    /// Parses a scope as it is spelled in key files and tokens.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == word)
    }
}

/// Identifies a credential, or a user of one, in logs and limits, which must not contain the original text. The first
/// 64 bits of a SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    fn of(kind: &str, text: &str) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        // No kind contains a NUL, so the pair of kind and text is unambiguous.
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

/// What a caller may do: the result of a credential check.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The sessions that the caller may use.
    pub tenant_scope: TenantScope,
    /// The calls that the caller may make.
    pub scopes: Vec<Scope>,
    /// The credential, for limits and logs: the API key, or the business of a token. `None` if the service runs without
    /// credentials.
    pub credential: Option<Fingerprint>,
    /// The user of a token. `None` for an API key and for a token of a whole business.
    pub subject: Option<Fingerprint>,
    /// When the credential expires, if that is known.
    pub valid_until: Option<Timestamp>,
}

impl Grant {
    /// Whether the caller may make calls that require this scope.
    #[must_use]
    pub fn allows(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
}

/// The text of a credential, and how it was sent.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// In `X-API-Key`.
    ApiKey(String),
    /// In `Authorization: Bearer`.
    Bearer(String),
}

/// Omits the text, which is a secret.
impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ApiKey(_) => "ApiKey",
            Self::Bearer(_) => "Bearer",
        })
    }
}

/// Why a credential is rejected. Contains no part of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// It is unknown, wrong, forged or incomplete.
    Invalid,
    /// It was valid and has expired.
    Expired,
}

/// The files and rules that credentials are checked against.
#[derive(Clone, Debug, Default)]
pub struct CredentialConfig {
    /// The file of API keys; `None` if API keys are not accepted.
    pub api_keys_file: Option<PathBuf>,
    /// The key and rules for tokens; `None` if tokens are not accepted.
    pub jwt: Option<JwtConfig>,
}

impl CredentialConfig {
    /// Whether no credentials are configured. Every caller may then do everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.api_keys_file.is_none() && self.jwt.is_none()
    }
}

/// The loaded keys that credentials are checked against.
pub struct Credentials {
    api_keys: Option<Reloadable<ApiKeys>>,
    jwt: Option<Reloadable<JwtKeys>>,
    everything: Arc<Grant>,
}

impl Credentials {
    /// Reads the key files.
    ///
    /// # Errors
    /// Returns one line for each problem. No line contains a secret.
    pub fn load(config: &CredentialConfig) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let mut collect = |found: Vec<String>| problems.extend(found);
        let api_keys = config.api_keys_file.as_deref().map(|path| read("api-keys", path, ApiKeys::parse));
        let jwt = config.jwt.clone().map(|config| {
            let path = config.key_file.clone();
            read("jwt-key", &path, move |content| JwtKeys::parse(&config, content))
        });
        let api_keys = api_keys.and_then(|read| read.map_err(&mut collect).ok());
        let jwt = jwt.and_then(|read| read.map_err(&mut collect).ok());
        if !problems.is_empty() {
            return Err(problems);
        }
        let everything = Grant {
            tenant_scope: TenantScope::Everything,
            scopes: Scope::ALL.to_vec(),
            credential: None,
            subject: None,
            valid_until: None,
        };
        Ok(Self { api_keys, jwt, everything: Arc::new(everything) })
    }

    /// The grant of a caller without a credential: everything if no credentials are configured, otherwise `None`.
    #[must_use]
    pub fn anonymous(&self) -> Option<Arc<Grant>> {
        (self.api_keys.is_none() && self.jwt.is_none()).then(|| self.everything.clone())
    }

    /// The grant of an API key, `<keyId>.<secret>`.
    ///
    /// # Errors
    /// Returns why the key is rejected.
    pub fn of_api_key(&self, credential: &str, now: Timestamp) -> Result<Arc<Grant>, AuthError> {
        self.api_keys.as_ref().ok_or(AuthError::Invalid)?.current().grant(credential, now)
    }

    /// The grant of a bearer token: a JWT, which contains two dots, or an API key, which contains one.
    ///
    /// # Errors
    /// Returns why the token is rejected.
    pub fn of_bearer(&self, credential: &str, now: Timestamp) -> Result<Arc<Grant>, AuthError> {
        if credential.bytes().filter(|&byte| byte == b'.').take(2).count() < 2 {
            return self.of_api_key(credential, now);
        }
        self.jwt.as_ref().ok_or(AuthError::Invalid)?.current().grant(credential, now).map(Arc::new)
    }

    /// The grant of a credential.
    ///
    /// # Errors
    /// Returns why it is rejected.
    pub fn check(&self, credential: &Credential, now: Timestamp) -> Result<Arc<Grant>, AuthError> {
        match credential {
            Credential::ApiKey(text) => self.of_api_key(text, now),
            Credential::Bearer(text) => self.of_bearer(text, now),
        }
    }

    /// Changes when the keys change.
    #[must_use]
    pub fn version(&self) -> u64 {
        let api_keys = self.api_keys.as_ref().map_or(0, Reloadable::version);
        api_keys + self.jwt.as_ref().map_or(0, Reloadable::version)
    }

    /// Reloads the key files if they changed. A valid change takes effect at once; a file that is not valid leaves the
    /// loaded keys in force. Both are logged. Blocks while it reads.
    pub fn reload(&self) {
        if let Some(api_keys) = &self.api_keys {
            api_keys.reload_if_changed();
        }
        if let Some(jwt) = &self.jwt {
            jwt.reload_if_changed();
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl fmt::Display for Credentials {
    /// Shows the number of keys.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.api_keys, &self.jwt) {
            (None, None) => formatter.write_str("no credentials: every caller may do everything"),
            (Some(api_keys), None) => api_keys.current().fmt(formatter),
            (None, Some(jwt)) => jwt.current().fmt(formatter),
            (Some(api_keys), Some(jwt)) => write!(formatter, "{}; {}", api_keys.current(), jwt.current()),
        }
    }
}

/// Reads a key file for the first time. `setting` is its flag without the leading dashes and `-file`.
fn read<T: fmt::Display>(
    setting: &str,
    path: &Path,
    parse: impl Fn(&[u8]) -> Result<T, Vec<String>> + Send + Sync + 'static,
) -> Result<Reloadable<T>, Vec<String>> {
    let describe = |problem| {
        let variable = setting.replace('-', "_").to_uppercase();
        format!("--{setting}-file (SESSIOND_{variable}_FILE) {}: {problem}", path.display())
    };
    Reloadable::read([path.to_owned()], move |[content]| parse(content))
        .map_err(|problems| problems.into_iter().map(describe).collect())
}
