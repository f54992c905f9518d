//! Workers. Each is a thread with one event loop and one set of Redis connections. It serves every request of its
//! client connections, so no request wakes another thread.

use std::convert::Infallible;
use std::io;
use std::net::TcpStream as StdTcpStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, RuntimeMetrics};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tower::Service;

use super::connection_limit::ConnectionPermit;
use super::{ConnectionSettings, StartError, http1, http2};
use crate::http::{Api, AppState};
use crate::store::SessionStore;
use crate::{metrics, tls};

/// How long a stopping service still reads from its connections before it tells hyper to shut down. hyper then closes
/// every connection on which it has read no part of a new request, even if a request is waiting to be read.
const DRAIN_DELAY: Duration = Duration::from_millis(100);

/// The workers of a service.
pub(crate) struct Workers {
    threads: Vec<WorkerThread>,
}

/// The parts of a worker that are read for metrics.
pub(crate) struct WorkerHandle {
    pub(crate) runtime: RuntimeMetrics,
    pub(crate) store: Arc<SessionStore>,
}

struct WorkerThread {
    connections: UnboundedSender<Accepted>,
    /// Its reference count is the number of the worker's connections, plus one.
    load: Arc<()>,
    ended: oneshot::Receiver<()>,
    handle: JoinHandle<()>,
}

/// An accepted connection that is being sent to a worker.
struct Accepted {
    stream: StdTcpStream,
    permit: ConnectionPermit,
    load: Arc<()>,
}

impl Workers {
    /// Starts `count` workers.
    ///
    /// # Errors
    /// If a thread or event loop cannot be started, or the Redis URL cannot be used.
    pub(crate) fn start(
        count: usize,
        app: &Arc<AppState>,
        connections: &ConnectionSettings,
        grace: Duration,
    ) -> Result<(Self, Vec<WorkerHandle>), StartError> {
        let (mut threads, mut handles) = (Vec::new(), Vec::new());
        for number in 0..count {
            let (sender, receiver) = unbounded_channel();
            let (started, starts) = std::sync::mpsc::channel();
            let (ends, ended) = oneshot::channel();
            let (app, connections) = (app.clone(), connections.clone());
            let run = move || {
                let runtime = match Builder::new_current_thread().enable_all().build().map_err(StartError::Threads) {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(started.send(Err(error))),
                };
                runtime.block_on(async {
                    // The Redis connections belong to this runtime.
                    match app.with_own_connections() {
                        Ok(app) => {
                            let _ =
                                started.send(Ok(WorkerHandle { runtime: runtime.metrics(), store: app.store.clone() }));
                            serve_all(receiver, &app, connections, grace).await;
                        }
                        Err(error) => drop(started.send(Err(error.into()))),
                    }
                });
                let _ = ends.send(());
            };
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            let handle = thread.spawn(run).map_err(StartError::Threads)?;
            // A thread that sends nothing has panicked, and the panic was logged.
            let ended_early = || StartError::Threads(io::Error::other("a worker ended while it was starting"));
            handles.push(starts.recv().map_err(|_| ended_early())??);
            threads.push(WorkerThread { connections: sender, load: Arc::new(()), ended, handle });
        }
        Ok((Self { threads }, handles))
    }

    /// Gives the connection to the worker that has the fewest.
    pub(crate) fn serve(&self, stream: TcpStream, permit: ConnectionPermit) {
        // A thread ends only after a panic. An ended thread has the fewest connections, and would get all new ones.
        let alive = self.threads.iter().filter(|thread| !thread.connections.is_closed());
        let least_loaded = alive.min_by_key(|thread| Arc::strong_count(&thread.load));
        match (least_loaded, stream.into_std()) {
            (Some(thread), Ok(stream)) => {
                let load = thread.load.clone();
                // If the thread has just ended, the connection is dropped.
                let _ = thread.connections.send(Accepted { stream, permit, load });
            }
            (_, Err(error)) => tracing::debug!(%error, "a connection was closed before it was served"),
            (None, _) => {}
        }
    }

    /// Stops the workers after they have finished the accepted requests.
    pub(crate) async fn finish(self) {
        // Drops all senders first, so all workers stop at the same time.
        let threads: Vec<_> = self.threads.into_iter().map(|thread| (thread.ended, thread.handle)).collect();
        for (ended, handle) in threads {
            let _ = ended.await;
            // The thread has nothing left to do.
            let _ = handle.join();
        }
    }
}

/// Serves connections until the sender is dropped, then finishes them.
async fn serve_all(
    mut accepted: UnboundedReceiver<Accepted>,
    app: &Arc<AppState>,
    connections: ConnectionSettings,
    grace: Duration,
) {
    let server = ConnectionServer::new(Api::new(app.clone()), connections);
    tokio::spawn(metrics::watch_lag());
    while let Some(Accepted { stream, permit, load }) = accepted.recv().await {
        match TcpStream::from_std(stream) {
            Ok(stream) => server.serve(stream, (permit, load)),
            Err(error) => tracing::warn!(%error, "cannot serve a connection"),
        }
    }
    tokio::join!(app.streams.shut_down(grace), server.finish(grace));
    app.store.quit().await;
}

/// A service that is always ready.
pub trait HttpService:
    Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<T> HttpService for T where
    T: Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

/// Serves connections on the current runtime.
pub(super) struct ConnectionServer<S> {
    served: Arc<Served<S>>,
    shutdown: watch::Sender<bool>,
}

/// Tells a connection when the service stops. The service waits until every `Shutdown` is dropped.
pub(super) struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    pub(super) fn new(has_begun: watch::Receiver<bool>) -> Self {
        Self(has_begun)
    }

    /// Resolves when the service stops.
    pub(super) async fn begun(&mut self) {
        // An error means that the service has stopped waiting.
        let _ = self.0.wait_for(|has_begun| *has_begun).await;
    }
}

struct Served<S> {
    service: S,
    connections: ConnectionSettings,
}

impl<S: HttpService> ConnectionServer<S> {
    pub(super) fn new(service: S, connections: ConnectionSettings) -> Self {
        Self { served: Arc::new(Served { service, connections }), shutdown: watch::Sender::new(false) }
    }

    /// Serves a connection in its own task, and drops `held` at its end.
    pub(super) fn serve(&self, stream: TcpStream, held: impl Send + 'static) {
        // Otherwise a response may wait for the acknowledgement of the previous one (Nagle's algorithm).
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was closed before it was served");
            return;
        }
        let (served, shutdown) = (self.served.clone(), Shutdown::new(self.shutdown.subscribe()));
        tokio::spawn(async move {
            served.serve_connection(stream, shutdown).await;
            drop(held);
        });
    }

    /// Finishes accepted requests, for at most `grace`.
    pub(super) async fn finish(self, grace: Duration) {
        tokio::time::sleep(DRAIN_DELAY).await;
        self.shutdown.send_replace(true);
        if tokio::time::timeout(grace, self.shutdown.closed()).await.is_err() {
            tracing::warn!("some requests did not finish within {grace:?}");
        }
    }
}

impl<S: HttpService> Served<S> {
    /// Does the TLS handshake, if the listener has a certificate, and serves the requests.
    async fn serve_connection(&self, stream: TcpStream, shutdown: Shutdown) {
        let (service, connections) = (self.service.clone(), &self.connections);
        match &connections.certificate {
            None => http1::serve(stream, service, connections, shutdown).await,
            Some(certificate) => {
                let handshake = certificate.acceptor().accept(stream);
                // Boxed below to keep the future of a plain connection small.
                match tokio::time::timeout(connections.timeouts.head, handshake).await {
                    Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(tls::HTTP_2) => {
                        Box::pin(http2::serve(stream, service, connections, shutdown)).await;
                    }
                    Ok(Ok(stream)) => Box::pin(http1::serve(stream, service, connections, shutdown)).await,
                    Ok(Err(error)) => tracing::debug!(%error, "the TLS handshake failed"),
                    Err(_) => tracing::debug!("the TLS handshake timed out"),
                }
            }
        }
    }
}
