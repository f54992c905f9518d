//! Shared by the benchmarks: an embedded Redis, and a single-threaded runtime.

use std::path::PathBuf;

use sessiond::embedded_redis::{EmbeddedRedis, find_server};
use tokio::runtime::{Builder, Runtime};

/// An embedded Redis on a Unix socket, with the settings that the service gives its own. Stops when dropped.
pub(crate) struct BenchRedis {
    redis: EmbeddedRedis,
    _folder: tempfile::TempDir,
}

impl BenchRedis {
    pub(crate) fn start() -> Self {
        let folder = tempfile::TempDir::new().expect("a folder");
        let server = find_server(None, &std::env::var("PATH").expect("PATH")).expect("a Redis server");
        let redis = EmbeddedRedis::start(&server, folder.path()).expect("an embedded Redis");
        Self { redis, _folder: folder }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.redis.socket()
    }
}

/// A single-threaded runtime, so the figures include no wake-up of another thread.
pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}
