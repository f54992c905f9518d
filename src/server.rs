//! Listens, limits connections, gives them to workers, and drains them at shutdown.

mod connection_limit;
mod http1;
mod http2;
mod timeouts;
mod worker;

use std::future::Future;
use std::io::{self, Write};
use std::net::{self, IpAddr, SocketAddr};
use std::time::Duration;

use metrics_exporter_prometheus::BuildError;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use self::connection_limit::{ConnectionLimiter, ConnectionPermit};
pub use self::timeouts::ConnectionTimeouts;
pub use self::worker::HttpService;
pub(crate) use self::worker::Workers;
use self::worker::{ConnectionServer, Shutdown};
use crate::config::ConnectionLimits;
use crate::store::StoreError;
use crate::tls::Certificate;
use crate::{log, metrics};

/// The delay before accepting again after an error, which usually means that no file descriptors are left.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How many connections the operating system holds until they are accepted, unless its own limit is lower. It drops
/// further connections, and their clients retry after a second.
const LISTEN_BACKLOG: u32 = 4096;

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The service cannot listen on the address.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The Redis URL cannot be used, or its server is unsupported.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificate cannot be used, although it was valid when the settings were checked.
    #[error("cannot serve HTTPS: {0}")]
    Tls(String),
    /// A worker's thread or event loop could not be started.
    #[error("cannot start a worker: {0}")]
    Threads(#[source] io::Error),
    /// Metrics cannot be recorded.
    #[error("cannot record metrics: {0}")]
    Metrics(#[from] BuildError),
}

/// The settings for a listener's connections.
#[derive(Clone, Debug)]
pub struct ConnectionSettings {
    /// How long clients may take.
    pub timeouts: ConnectionTimeouts,
    /// The limits on the number of connections and on the size of request heads.
    pub limits: ConnectionLimits,
    /// The certificate to serve HTTPS with.
    pub certificate: Option<Certificate>,
}

/// Listens like `TcpListener::bind`, but with a larger backlog for bursts of new connections.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted service can bind while connections of the previous process are in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

/// Serves on the caller's event loop until `shutdown` resolves, then finishes accepted requests for at most `grace`.
pub async fn serve(
    listener: TcpListener,
    service: impl HttpService,
    connections: ConnectionSettings,
    grace: Duration,
    shutdown: impl Future<Output = ()>,
) {
    let server = ConnectionServer::new(service, connections.clone());
    accept(listener, &connections, shutdown, |stream, permit| server.serve(stream, permit)).await;
    server.finish(grace).await;
}

/// Accepts connections until `shutdown` resolves. Rejects those beyond the limits.
pub(crate) async fn accept(
    listener: TcpListener,
    connections: &ConnectionSettings,
    shutdown: impl Future<Output = ()>,
    serve: impl Fn(TcpStream, ConnectionPermit),
) {
    let limiter = ConnectionLimiter::new(connections.limits.clone());
    let admit = |stream, client| match limiter.acquire(client) {
        Ok(permit) => serve(stream, permit),
        Err(exceeded) => {
            metrics::connection_rejected(exceeded.as_str());
            tracing::debug!(%client, limit = exceeded.as_str(), "too many connections");
            reject(stream, connections.certificate.is_some());
        }
    };
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => admit(stream, client.ip()),
                Err(error) if is_connection_error(&error) => {}
                Err(error) => {
                    if log::should_log("accept") {
                        tracing::warn!(%error, "cannot accept a connection");
                    }
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
    accept_waiting(listener, admit);
    tracing::info!("stopping: finishing accepted requests");
}

/// Sends a `503` if the connection is a plain one, and closes it.
fn reject(stream: TcpStream, expects_tls: bool) {
    // A client that expects TLS could not read the response.
    if !expects_tls && let Ok(mut stream) = stream.into_std() {
        // The response fits into the send buffer of a new connection. After an error the connection is closed as well.
        let _ = stream.write_all(&http1::overloaded_response());
        let _ = stream.shutdown(net::Shutdown::Write);
    }
}

/// Accepts the connections that the operating system still holds, then closes the listener. Their clients may have sent
/// requests already, which closing the listener would drop.
fn accept_waiting(listener: TcpListener, admit: impl Fn(TcpStream, IpAddr)) {
    // Uses the standard library: tokio reports a waiting connection only after it has polled the operating system
    // again.
    let Ok(listener) = listener.into_std() else {
        return;
    };
    while let Ok((stream, client)) = listener.accept() {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            admit(stream, client.ip());
        }
    }
}

/// Whether an error concerns only the connection that was being accepted, not the listener.
fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}
