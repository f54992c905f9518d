//! What the benchmarks share: a private Redis, and a runtime of one thread.

use std::path::PathBuf;

use sessiond::store::embedded::{EmbeddedRedis, find_server};
use tokio::runtime::{Builder, Runtime};

/// A Redis of this benchmark's own on a Unix socket, with the settings that the service gives its own. It ends with this.
pub(crate) struct PrivateRedis {
    redis: EmbeddedRedis,
    _folder: tempfile::TempDir,
}

impl PrivateRedis {
    pub(crate) fn start() -> Self {
        let folder = tempfile::TempDir::new().expect("a folder");
        let server = find_server(None, &std::env::var("PATH").expect("PATH")).expect("a Redis server");
        let redis = EmbeddedRedis::start(&server, folder.path()).expect("a private Redis");
        Self { redis, _folder: folder }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.redis.socket()
    }
}

/// One thread: no wake-up of another one is in the figures.
pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}
