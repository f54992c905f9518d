//! Settings for the Redis that holds the sessions.

use std::path::{Path, PathBuf};

use clap::Args;

use super::setting_errors::SettingErrors;
use super::{environment, not_empty};
use crate::store::RedisAddress;

/// The settings as text. Not `Debug`, because a URL may contain a password.
#[derive(Args, Clone)]
pub(super) struct RedisArgs {
    /// URL of the Redis to use: redis://, rediss://, redis+unix://, redis-cluster:// or redis-sentinel://. Prefer the
    /// variable: other users of the machine can read flags [default: none, the service starts an embedded Redis]
    #[arg(long, global = true, env = "REDIS_URL", value_name = "URL", hide_env_values = true)]
    redis_url: Option<String>,
    /// Data directory of the embedded Redis
    #[arg(
        long,
        global = true,
        env = "SESSIOND_DATA_DIR",
        value_name = "FOLDER",
        help = "Data directory of the embedded Redis [default: $XDG_DATA_HOME/sessiond or ~/.local/share/sessiond]"
    )]
    data_dir: Option<String>,
    /// Program to run as the embedded Redis [default: the first valkey-server or redis-server in PATH]
    #[arg(long, global = true, env = "SESSIOND_REDIS_SERVER", value_name = "FILE")]
    redis_server: Option<String>,
    /// Prefix of all Redis keys, 1 to 64 characters (letters, digits, -_.:). Services with different prefixes can share
    /// a Redis
    #[arg(long, global = true, env = "SESSIOND_KEY_PREFIX", value_name = "TEXT", default_value = "sd")]
    key_prefix: String,
}

/// The checked settings for the Redis that holds the sessions.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// Which Redis to use.
    pub source: RedisSource,
    /// The prefix of all Redis keys.
    pub key_prefix: String,
}

/// Which Redis to use.
#[derive(Clone, Debug)]
pub enum RedisSource {
    /// An existing Redis.
    Given(RedisAddress),
    /// An embedded Redis, which the service starts.
    Embedded {
        /// The server program; `None` to search for one in `search_path`.
        server: Option<PathBuf>,
        /// The value of `PATH`.
        search_path: String,
        /// Its data directory.
        data_dir: PathBuf,
    },
}

impl RedisArgs {
    pub(super) fn check(&self, errors: &mut SettingErrors) -> Option<RedisConfig> {
        let source = self.source(errors);
        let key_prefix = errors.key_prefix(self.key_prefix.clone());
        Some(RedisConfig { source: source?, key_prefix })
    }

    /// The Redis of the URL if one is given, otherwise the embedded Redis.
    fn source(&self, errors: &mut SettingErrors) -> Option<RedisSource> {
        if let Some(url) = not_empty(self.redis_url.as_deref()) {
            return errors.checked("--redis-url", RedisAddress::from_url(url)).map(RedisSource::Given);
        }
        let data_dir = match not_empty(self.data_dir.as_deref()) {
            Some(path) => Some(PathBuf::from(path)),
            None => errors.checked("--data-dir", default_data_dir()),
        };
        data_dir.map(|data_dir| RedisSource::Embedded {
            server: not_empty(self.redis_server.as_deref()).map(PathBuf::from),
            search_path: environment("PATH").unwrap_or_default(),
            data_dir,
        })
    }
}

fn default_data_dir() -> Result<PathBuf, String> {
    let folder = environment("XDG_DATA_HOME").filter(|path| Path::new(path).is_absolute()).map(PathBuf::from);
    let folder = folder.or_else(|| environment("HOME").map(|home| Path::new(&home).join(".local/share")));
    match folder {
        Some(folder) => Ok(folder.join("sessiond")),
        None => Err("is required: neither XDG_DATA_HOME nor HOME is set".to_owned()),
    }
}
