//! One private Redis for the whole binary, and a look into any.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use fred::interfaces::ClientLike;
use fred::prelude::{Builder, Client, Config, Value};
use fred::types::CustomCommand;
use sessiond::store::embedded::{EmbeddedRedis, find_server};

use super::acl;

const FOLDER_PREFIX: &str = "sessiond-it-";

/// The socket of the Redis that all tests of this process share. The kernel ends the server with this process.
pub fn shared() -> PathBuf {
    static SERVER: OnceLock<EmbeddedRedis> = OnceLock::new();
    SERVER
        .get_or_init(|| {
            remove_left_folders();
            private(&std::env::temp_dir().join(format!("{FOLDER_PREFIX}{}", std::process::id())))
        })
        .socket()
}

/// The service's URL of that Redis.
pub fn shared_url() -> String {
    acl::url(&shared())
}

/// A Redis with its data in `folder`, as the program starts it, that knows the users of `deploy/redis.conf`.
pub fn private(folder: &Path) -> EmbeddedRedis {
    let redis = EmbeddedRedis::start(&server_program(), folder).expect("a private Redis");
    acl::set_up(&redis.socket());
    redis
}

/// The installed server program.
pub fn server_program() -> PathBuf {
    let search_path = std::env::var("PATH").expect("PATH");
    find_server(None, &search_path).expect("a valkey-server or redis-server; `make test` installs one")
}

/// Removes the folders of processes that are gone: a server's folder is locked for as long as it is used.
fn remove_left_folders() {
    for entry in fs::read_dir(std::env::temp_dir()).expect("the temporary folder").flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(FOLDER_PREFIX);
        let lock = File::open(entry.path().join("sessiond.lock"));
        if is_ours && lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            // Another test process may be removing it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A connection that sends any command.
#[derive(Clone)]
pub struct Look {
    client: Client,
    prefix: String,
}

impl Look {
    /// A look at the keys that start with `prefix`, on the server at `socket`.
    pub async fn at(socket: &Path, prefix: &str) -> Self {
        let server = fred::types::config::ServerConfig::new_unix_socket(socket);
        let client = Builder::from_config(Config { server, ..Config::default() }).build().expect("a client");
        client.init().await.expect("a connection");
        Self { client, prefix: prefix.to_owned() }
    }

    /// The reply of a command.
    pub async fn command(&self, words: &[&str]) -> Value {
        self.try_command(words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// The reply of a command, or why there is none.
    pub async fn try_command(&self, words: &[&str]) -> Result<Value, fred::error::Error> {
        let name = CustomCommand::new(words[0].to_owned(), None, false);
        let arguments: Vec<Value> = words[1..].iter().map(|word| Value::from(*word)).collect();
        self.client.custom(name, arguments).await
    }

    /// The reply of a command as a string.
    pub async fn text(&self, words: &[&str]) -> Option<String> {
        self.command(words).await.into_string()
    }

    /// The reply of a command as a list of strings.
    pub async fn texts(&self, words: &[&str]) -> Vec<String> {
        let reply = self.command(words).await.into_array();
        reply.into_iter().map(|value| value.into_string().expect("a string")).collect()
    }

    /// Every key of the prefix but the layout version, sorted.
    pub async fn keys(&self) -> Vec<String> {
        let mut keys = self.texts(&["KEYS", &format!("{}:{{*", self.prefix)]).await;
        keys.sort();
        keys
    }

    /// Keys of one kind (`s`, `a`, `h`, `b`, `m` or `d`).
    pub async fn keys_of(&self, kind: char) -> Vec<String> {
        let all = self.keys().await;
        all.into_iter().filter(|key| key.contains(&format!("}}:{kind}:"))).collect()
    }

    /// Every key of the prefix with its content and expiry: equal if and only if nothing was written in between.
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
