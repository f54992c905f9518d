//! API keys: `<keyId>.<secret>`, checked against a TOML file that holds the SHA-256 of each secret.
//!
//! A plain hash is enough: a secret has 256 random bits, so it cannot be guessed, and a slow hash would add nothing.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fmt::Write;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::DateTime;
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;
use toml::{Table, Value};

use super::{AuthError, Fingerprint, Grant, Scope};
use crate::session::{Identifier, TenantScope, Timestamp};

/// Maximum characters of a key's id.
const ID_CHARS_MAX: usize = 64;
/// Random bytes of a secret, and of a generated id.
const SECRET_BYTES: usize = 32;
const ID_BYTES: usize = 6;
/// Longer credentials are rejected unread.
const CREDENTIAL_BYTES_MAX: usize = 256;
/// The value of `businesses` that stands for every business.
pub const ALL_BUSINESSES: &str = "*";

type Hash = [u8; 32];

/// The keys of one key file.
pub(super) struct ApiKeys(HashMap<String, ApiKey>);

struct ApiKey {
    secret_sha256: Hash,
    expires: Option<Timestamp>,
    grant: Arc<Grant>,
}

impl fmt::Display for ApiKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => formatter.write_str("1 API key"),
            count => write!(formatter, "{count} API keys"),
        }
    }
}

impl ApiKeys {
    /// Parses a key file. An empty file is valid and rejects every key.
    ///
    /// # Errors
    /// Returns one line for each problem. No line contains a value of the file, which may be a secret.
    pub(super) fn parse(content: &[u8]) -> Result<Self, Vec<String>> {
        let text = std::str::from_utf8(content).map_err(|_| vec!["is not UTF-8".to_owned()])?;
        let mut table: Table = text.parse().map_err(|error| vec![syntax_problem(text, &error)])?;
        let mut problems = Vec::new();
        let entries = match table.remove("key") {
            Some(Value::Array(entries)) => entries,
            None => Vec::new(),
            Some(_) => {
                problems.push("`key` must be a list of tables: each key begins with [[key]]".to_owned());
                Vec::new()
            }
        };
        if !table.is_empty() {
            // Does not name it: a misplaced text may be a secret.
            problems.push("has an entry that is not a key: each key begins with [[key]]".to_owned());
        }
        let mut keys = HashMap::new();
        for (index, entry) in entries.into_iter().enumerate() {
            let mut entry = Entry::new(index + 1, entry, &mut problems);
            if let Some((id, key)) = entry.read()
                && keys.insert(id, key).is_some()
            {
                entry.problem("has the id of an earlier key");
            }
        }
        if problems.is_empty() { Ok(Self(keys)) } else { Err(problems) }
    }

    /// The grant of a credential, `<keyId>.<secret>`.
    pub(super) fn grant(&self, credential: &str, now: Timestamp) -> Result<Arc<Grant>, AuthError> {
        if credential.len() > CREDENTIAL_BYTES_MAX {
            return Err(AuthError::Invalid);
        }
        let (id, secret) = credential.split_once('.').ok_or(AuthError::Invalid)?;
        let key = self.0.get(id);
        // An unknown id takes as long as a wrong secret: both compare one hash. No secret has a hash of zeros.
        let known = key.map_or([0; 32], |key| key.secret_sha256);
        let is_right: bool = known.ct_eq(&sha256(secret)).into();
        match key {
            Some(key) if is_right => match key.expires {
                Some(expires) if now >= expires => Err(AuthError::Expired),
                _ => Ok(key.grant.clone()),
            },
            _ => Err(AuthError::Invalid),
        }
    }
}

fn sha256(text: &str) -> Hash {
    digest(&SHA256, text.as_bytes()).as_ref().try_into().unwrap_or_default()
}

/// Describes a syntax error by its line number. The parser's own message quotes the line, which may contain a secret.
fn syntax_problem(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    format!("is not TOML in line {}", before.split('\n').count())
}

/// One `[[key]]` entry. Its problems name its position and never its texts, because a misplaced text may be a secret.
struct Entry<'a> {
    number: usize,
    members: Table,
    problems: &'a mut Vec<String>,
}

impl<'a> Entry<'a> {
    fn new(number: usize, entry: Value, problems: &'a mut Vec<String>) -> Self {
        let members = match entry {
            Value::Table(members) => members,
            _ => Table::new(),
        };
        Self { number, members, problems }
    }

    fn problem(&mut self, problem: &str) {
        self.problems.push(format!("key {} {problem}", self.number));
    }

    /// Removes a member and reads it. Reports a problem if it is missing or not valid.
    fn take<T>(&mut self, name: &str, wanted: &str, read: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        let value = self.members.remove(name).as_ref().and_then(read);
        if value.is_none() {
            self.problem(&format!("needs `{name}`: {wanted}"));
        }
        value
    }

    /// Reads the id and the key. Returns `None` and reports the problems if a required member is missing or not valid.
    fn read(&mut self) -> Option<(String, ApiKey)> {
        let id = self.take("id", "1 to 64 letters, digits, - or _", |value| {
            value.as_str().filter(|id| is_id(id)).map(str::to_owned)
        });
        let secret_sha256 = self.take("secret_sha256", "64 hexadecimal digits", |value| hash(value.as_str()?));
        let tenant_scope = self.take(
            "businesses",
            "a list of businessIds (each 1 to 128 characters, not \".\" or \"..\"), or \"*\" for all",
            |value| match value {
                Value::String(all) if all == ALL_BUSINESSES => Some(TenantScope::Everything),
                Value::Array(names) => {
                    let names: Option<Vec<_>> = names.iter().map(Value::as_str).collect();
                    // In a list, "*" would name a business called "*", which is probably a mistake.
                    businesses(&names.filter(|names| !names.contains(&ALL_BUSINESSES))?)
                }
                _ => None,
            },
        );
        let scopes = self.take("scopes", "a list of \"read\", \"write\", \"admin\"", |value| {
            let words = value.as_array()?.iter();
            let scopes: Option<Vec<_>> = words.map(|word| Scope::from_word(word.as_str()?)).collect();
            scopes.filter(|scopes| !scopes.is_empty())
        });
        let mut expires = None;
        if self.members.contains_key("expires") {
            let wanted = "a time with its offset, such as \"2027-01-31T00:00:00Z\"";
            expires = self.take("expires", wanted, |value| match value {
                Value::String(text) => expiry(text),
                Value::Datetime(time) => expiry(&time.to_string()),
                _ => None,
            });
        }
        if !self.members.is_empty() {
            self.problem("has a member other than id, secret_sha256, businesses, scopes and expires");
        }
        let id = id?;
        let credential = Some(Fingerprint::of("api key", &id));
        let grant = Arc::new(Grant {
            tenant_scope: tenant_scope?,
            scopes: scopes?,
            credential,
            subject: None,
            valid_until: expires,
        });
        Some((id, ApiKey { secret_sha256: secret_sha256?, expires, grant }))
    }
}

fn is_id(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (1..=ID_CHARS_MAX).contains(&text.len()) && text.bytes().all(good)
}

fn hash(hex: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    if hex.len() != 2 * hash.len() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(hash)
}

/// The tenant scope of these businesses; `None` if the list is empty or a name is not an identifier.
#[must_use]
pub fn businesses(names: &[&str]) -> Option<TenantScope> {
    let names: Option<HashSet<_>> = names.iter().map(|name| Identifier::new(*name).ok()).collect();
    names.filter(|names| !names.is_empty()).map(|names| TenantScope::Businesses(Arc::new(names)))
}

/// Parses a time in RFC 3339, which includes an offset.
#[must_use]
pub fn expiry(text: &str) -> Option<Timestamp> {
    DateTime::parse_from_rfc3339(text).ok().map(|time| Timestamp(time.timestamp_millis()))
}

/// An API key to create.
#[derive(Clone, Debug)]
pub struct NewApiKey {
    /// Its id; `None` to generate one.
    pub id: Option<String>,
    /// The businesses that it may access; empty for all.
    pub businesses: Vec<String>,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When it expires, in RFC 3339; `None` for never.
    pub expires: Option<String>,
}

/// Creates an API key. Returns the credential for the caller and the entry for the key file.
///
/// # Errors
/// Returns what is wrong with `new`, or that the operating system returned no random bytes.
pub fn generate(new: &NewApiKey) -> Result<(String, String), String> {
    let random = |bytes: &mut [u8]| getrandom::fill(bytes).map_err(|error| format!("no random bytes: {error}"));
    let mut bytes = [0; SECRET_BYTES];
    random(&mut bytes)?;
    let secret = URL_SAFE_NO_PAD.encode(bytes);
    let id = if let Some(id) = &new.id {
        id.clone()
    } else {
        let mut bytes = [0; ID_BYTES];
        random(&mut bytes)?;
        format!("key-{}", hex(&bytes))
    };
    // Strings and lists of strings are spelled alike in JSON and TOML.
    let mut lines = vec!["[[key]]".to_owned()];
    let mut set = |name: &str, value: serde_json::Value| lines.push(format!("{name} = {value}"));
    set("id", id.as_str().into());
    set("secret_sha256", hex(&sha256(&secret)).into());
    if new.businesses.is_empty() {
        set("businesses", ALL_BUSINESSES.into());
    } else {
        set("businesses", new.businesses.clone().into());
    }
    set("scopes", new.scopes.iter().map(|scope| scope.as_str()).collect());
    if let Some(expires) = &new.expires {
        set("expires", expires.as_str().into());
    }
    let entry = lines.join("\n");
    // Validates the entry with the parser that will read it.
    match ApiKeys::parse(entry.as_bytes()) {
        Ok(_) => Ok((format!("{id}.{secret}"), entry)),
        Err(problems) => Err(problems.join("; ").replace("key 1 ", "the key ")),
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
