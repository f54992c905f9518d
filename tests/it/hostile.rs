//! Clients that mean harm, byte for byte on real sockets: whatever they send, they are refused or cut off in time, nothing
//! that they hide is executed, and other clients are served meanwhile.

mod attacks;
mod crowds;
mod half_closed;
mod host;
mod slow;
mod tls;

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::load::{User, statuses};
use crate::support::process::{Process, patiently};
use crate::support::redis::{Look, shared, shared_url};

/// A service in a process of its own, on the shared Redis.
struct Target {
    service: Process,
    base: String,
    look: Look,
}

impl Target {
    /// Its keys start with `sd:` and this; a request's head, and then its body, may take half a second.
    async fn start(name: &str, flags: &[&str]) -> Self {
        let prefix = &format!("sd:{name}");
        // The deadline is long for machines that are busy with other tests, and not what this is about.
        let patience: &[&str] =
            if flags.contains(&"--receive-timeout") { &[] } else { &["--receive-timeout", "500ms"] };
        let own = ["--key-prefix", prefix, "--request-deadline", "20s"];
        let flags: Vec<_> = own.iter().chain(patience).chain(flags).copied().collect();
        let url = shared_url();
        let (service, base) = Process::serve(&flags, &[("REDIS_URL", &url)]);
        let look = Look::at(&shared(), prefix).await;
        Self { service, base, look }
    }

    fn address(&self) -> SocketAddr {
        let (_, address) = self.base.split_once("://").expect("a base URL");
        address.parse().expect("an address")
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address()).await.expect("a connection")
    }

    /// Sends these bytes, then nothing more, and returns what comes back until the service closes the connection.
    async fn send(&self, bytes: &[u8], hang_up: bool) -> Vec<u8> {
        let (mut reading, mut writing) = self.connect().await.into_split();
        let write = async {
            // It may be cut off in the middle: that is what this is about.
            let _ = writing.write_all(bytes).await;
            if hang_up {
                let _ = writing.shutdown().await;
            }
            writing
        };
        let (received, _writing) = patiently(async { tokio::join!(to_end(&mut reading), write) }).await;
        received
    }
}

/// What comes until the connection ends, in whatever way.
async fn to_end(reading: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut received = Vec::new();
    // What came before a reset counts.
    let _ = reading.read_to_end(&mut received).await;
    received
}

/// Panics unless every call was served.
fn expect_all_served(users: &[User]) {
    crate::support::load::expect_right(users);
    let statuses = statuses(users);
    assert!(!statuses.is_empty() && statuses.keys().all(|(status, _)| *status < 300), "{statuses:?}");
}
