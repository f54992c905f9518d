//! API keys: `<keyId>.<secret>`, checked against a TOML file that holds the SHA-256 of each secret.
//!
//! A plain hash is enough, because a secret is 256 random bits: there is nothing to guess, so nothing to slow down.

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

use super::{Access, Fingerprint, Refusal, Scope};
use crate::session::{Identifier, Reach, Timestamp};

/// The most characters of a key's id.
const ID_CHARS_MAX: usize = 64;
/// The random bytes of a secret, and of an id that nobody chose.
const SECRET_BYTES: usize = 32;
const ID_BYTES: usize = 6;
/// The longest credential that is looked at.
const CREDENTIAL_BYTES_MAX: usize = 256;
/// The word for every business.
pub const ALL_BUSINESSES: &str = "*";

type Hash = [u8; 32];

/// The keys of a file.
pub(super) struct ApiKeys(HashMap<String, ApiKey>);

struct ApiKey {
    secret_sha256: Hash,
    expires: Option<Timestamp>,
    access: Arc<Access>,
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
    /// Takes the content of a file. A file without keys is one that nobody has a key of.
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
            // Not which: what stands in a wrong place may be a secret.
            problems.push("has something beside its keys, each of which begins with [[key]]".to_owned());
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

    /// What the bearer of a credential may do.
    pub(super) fn access(&self, credential: &str, now: Timestamp) -> Result<Arc<Access>, Refusal> {
        if credential.len() > CREDENTIAL_BYTES_MAX {
            return Err(Refusal::Invalid);
        }
        let (id, secret) = credential.split_once('.').ok_or(Refusal::Invalid)?;
        let key = self.0.get(id);
        // An unknown id costs what a wrong secret costs. No secret has the hash of zeros.
        let known = key.map_or([0; 32], |key| key.secret_sha256);
        let is_right: bool = known.ct_eq(&sha256(secret)).into();
        match key {
            Some(key) if is_right => match key.expires {
                Some(expires) if now >= expires => Err(Refusal::Expired),
                _ => Ok(key.access.clone()),
            },
            _ => Err(Refusal::Invalid),
        }
    }
}

fn sha256(text: &str) -> Hash {
    digest(&SHA256, text.as_bytes()).as_ref().try_into().unwrap_or_default()
}

/// What is wrong, and where; the parser's own text would repeat the line, which may hold a secret.
fn syntax_problem(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    format!("is not TOML in line {}", before.split('\n').count())
}

/// One `[[key]]`. Whatever is wrong with it is told by its number: a text in the wrong place may be a secret.
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

    /// A member, if it is there and good.
    fn take<T>(&mut self, name: &str, wanted: &str, read: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        let value = self.members.remove(name).as_ref().and_then(read);
        if value.is_none() {
            self.problem(&format!("needs `{name}`: {wanted}"));
        }
        value
    }

    /// The key with its id, if everything about it is good.
    fn read(&mut self) -> Option<(String, ApiKey)> {
        let id = self.take("id", "1 to 64 letters, digits, - or _", |value| {
            value.as_str().filter(|id| is_id(id)).map(str::to_owned)
        });
        let secret_sha256 = self.take("secret_sha256", "64 hexadecimal digits", |value| hash(value.as_str()?));
        let reach = self.take(
            "businesses",
            "a list of businessIds (each 1 to 128 characters, not \".\" or \"..\"), or \"*\" for all",
            |value| match value {
                Value::String(all) if all == ALL_BUSINESSES => Some(Reach::Everything),
                Value::Array(names) => {
                    let names: Option<Vec<_>> = names.iter().map(Value::as_str).collect();
                    // In a list it would be a business of this name; whoever writes that means all of them.
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
            self.problem("has a member beside id, secret_sha256, businesses, scopes and expires");
        }
        let id = id?;
        let credential = Some(Fingerprint::of("api key", &id));
        let access = Arc::new(Access { reach: reach?, scopes: scopes?, credential, subject: None });
        Some((id, ApiKey { secret_sha256: secret_sha256?, expires, access }))
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

/// The reach of these businesses, or `None` if one is no identifier or there is none.
#[must_use]
pub fn businesses(names: &[&str]) -> Option<Reach> {
    let names: Option<HashSet<_>> = names.iter().map(|name| Identifier::new(*name).ok()).collect();
    names.filter(|names| !names.is_empty()).map(|names| Reach::Businesses(Arc::new(names)))
}

/// A moment in RFC 3339, with its offset.
#[must_use]
pub fn expiry(text: &str) -> Option<Timestamp> {
    DateTime::parse_from_rfc3339(text).ok().map(|time| Timestamp(time.timestamp_millis()))
}

/// A key to be made.
#[derive(Clone, Debug)]
pub struct NewApiKey {
    /// Its id, or `None` to have one made.
    pub id: Option<String>,
    /// The businesses that it reaches; none for all of them.
    pub businesses: Vec<String>,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Until when, in RFC 3339.
    pub expires: Option<String>,
}

/// Makes a key: the credential for the caller, and the entry for the file.
///
/// # Errors
/// What is wrong with what was asked for.
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
    // A string, or a list of strings, is the same in JSON and in TOML.
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
    // What is made is what is read: so it is checked as it will be.
    match ApiKeys::parse(entry.as_bytes()) {
        Ok(_) => Ok((format!("{id}.{secret}"), entry)),
        Err(problems) => Err(problems.join("; ").replace("key 1 ", "the key ")),
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
