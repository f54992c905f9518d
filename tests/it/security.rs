//! Malicious clients on real sockets: the service rejects their requests or closes their connections within its
//! timeouts, executes nothing that they hide, and serves other clients in the meantime.

mod attacks;
mod connection_limits;
mod half_closed;
mod host;
mod http2;
mod slow;
mod tls;

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::load::{User, statuses};
use crate::support::process::{Process, with_timeout};
use crate::support::redis::{RedisProbe, shared, shared_url};

/// A service process on the shared Redis.
struct Target {
    service: Process,
    base: String,
    probe: RedisProbe,
}

impl Target {
    /// Starts a service with the key prefix `sd:{name}`. The receive timeout is 500 ms unless `flags` set it.
    async fn start(name: &str, flags: &[&str]) -> Self {
        let prefix = &format!("sd:{name}");
        // Long, for machines that are busy with other tests. These tests are not about the deadline.
        let timeout: &[&str] = if flags.contains(&"--receive-timeout") { &[] } else { &["--receive-timeout", "500ms"] };
        let own = ["--key-prefix", prefix, "--request-deadline", "20s"];
        let flags: Vec<_> = own.iter().chain(timeout).chain(flags).copied().collect();
        let url = shared_url();
        let (service, base) = Process::serve(&flags, &[("REDIS_URL", &url)]);
        let probe = RedisProbe::at(&shared(), prefix).await;
        Self { service, base, probe }
    }

    fn address(&self) -> SocketAddr {
        let (_, address) = self.base.split_once("://").expect("a base URL");
        address.parse().expect("an address")
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address()).await.expect("a connection")
    }

    /// Sends these bytes, then nothing more. Returns what the service sends until it closes the connection. With
    /// `half_close`, the client closes its sending side after the bytes.
    async fn send(&self, bytes: &[u8], half_close: bool) -> Vec<u8> {
        let (mut reading, mut writing) = self.connect().await.into_split();
        let write = async {
            // Fails if the service closes the connection first, which some tests expect.
            let _ = writing.write_all(bytes).await;
            if half_close {
                let _ = writing.shutdown().await;
            }
            writing
        };
        let (received, _writing) = with_timeout(async { tokio::join!(to_end(&mut reading), write) }).await;
        received
    }
}

/// Reads until the connection is closed or reset.
async fn to_end(reading: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut received = Vec::new();
    // Keeps the bytes received before a reset.
    let _ = reading.read_to_end(&mut received).await;
    received
}

/// Panics unless every call was served.
fn expect_all_served(users: &[User]) {
    crate::support::load::expect_right(users);
    let statuses = statuses(users);
    assert!(!statuses.is_empty() && statuses.keys().all(|(status, _)| *status < 300), "{statuses:?}");
}
