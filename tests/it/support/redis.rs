//! One embedded Redis for the whole test binary, and a probe that reads any Redis.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use fred::interfaces::ClientLike;
use fred::prelude::{Builder, Client, Config, Value};
use fred::types::CustomCommand;
use sessiond::embedded_redis::{EmbeddedRedis, find_server};

use super::acl;

const FOLDER_PREFIX: &str = "sessiond-it-";

/// The socket of the Redis that all tests of this process share. The kernel stops the server when this process ends.
pub fn shared() -> PathBuf {
    static SERVER: OnceLock<EmbeddedRedis> = OnceLock::new();
    SERVER
        .get_or_init(|| {
            remove_stale_folders();
            embedded(&std::env::temp_dir().join(format!("{FOLDER_PREFIX}{}", std::process::id())))
        })
        .socket()
}

/// The URL with which a service connects to the shared Redis.
pub fn shared_url() -> String {
    acl::url(&shared())
}

/// Starts an embedded Redis with its data in `folder`, as the service does, and defines the users of
/// `deploy/redis.conf`.
pub fn embedded(folder: &Path) -> EmbeddedRedis {
    let redis = EmbeddedRedis::start(&server_program(), folder).expect("an embedded Redis");
    acl::set_up(&redis.socket());
    redis
}

/// The installed server program.
pub fn server_program() -> PathBuf {
    let search_path = std::env::var("PATH").expect("PATH");
    find_server(None, &search_path).expect("a valkey-server or redis-server; `make test` installs one")
}

/// Removes the folders of test processes that have ended. A folder that is in use is locked.
fn remove_stale_folders() {
    for entry in fs::read_dir(std::env::temp_dir()).expect("the temporary folder").flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(FOLDER_PREFIX);
        let lock = File::open(entry.path().join("sessiond.lock"));
        if is_ours && lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            // Another test process may be removing it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A connection with which a test sends any command to a Redis.
#[derive(Clone)]
pub struct RedisProbe {
    client: Client,
    prefix: String,
}

impl RedisProbe {
    /// Connects to the server at `socket`. The methods that list keys return those that start with `prefix`.
    pub async fn at(socket: &Path, prefix: &str) -> Self {
        let server = fred::types::config::ServerConfig::new_unix_socket(socket);
        let client = Builder::from_config(Config { server, ..Config::default() }).build().expect("a client");
        client.init().await.expect("a connection");
        Self { client, prefix: prefix.to_owned() }
    }

    /// The reply to a command. Panics on an error.
    pub async fn command(&self, words: &[&str]) -> Value {
        self.try_command(words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// The reply to a command, or its error.
    pub async fn try_command(&self, words: &[&str]) -> Result<Value, fred::error::Error> {
        let name = CustomCommand::new(words[0].to_owned(), None, false);
        let arguments: Vec<Value> = words[1..].iter().map(|word| Value::from(*word)).collect();
        self.client.custom(name, arguments).await
    }

    /// The reply to a command as a string.
    pub async fn text(&self, words: &[&str]) -> Option<String> {
        self.command(words).await.into_string()
    }

    /// The reply to a command as a list of strings.
    pub async fn texts(&self, words: &[&str]) -> Vec<String> {
        let reply = self.command(words).await.into_array();
        reply.into_iter().map(|value| value.into_string().expect("a string")).collect()
    }

    /// Every key with the prefix except the layout version, sorted.
    pub async fn keys(&self) -> Vec<String> {
        let mut keys = self.texts(&["KEYS", &format!("{}:{{*", self.prefix)]).await;
        keys.sort();
        keys
    }

    /// The keys of one kind (`s`, `a`, `h`, `b`, `m` or `d`).
    pub async fn keys_of(&self, kind: char) -> Vec<String> {
        let all = self.keys().await;
        all.into_iter().filter(|key| key.contains(&format!("}}:{kind}:"))).collect()
    }

    /// Every key with the prefix, with its content and expiry. Two digests are equal if and only if nothing changed in
    /// between.
    pub async fn digest(&self) -> BTreeMap<String, (Vec<u8>, String)> {
        let mut digest = BTreeMap::new();
        for key in self.keys().await {
            let content = self.command(&["DUMP", &key]).await.into_owned_bytes().expect("a key that exists");
            let expiry = self.text(&["PEXPIRETIME", &key]).await.expect("an expiry");
            digest.insert(key, (content, expiry));
        }
        digest
    }

    /// A hash as a map.
    pub async fn hash(&self, key: &str) -> BTreeMap<String, String> {
        let flat = self.texts(&["HGETALL", key]).await;
        flat.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
    }
}
