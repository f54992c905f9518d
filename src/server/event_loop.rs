//! Serves connections: one event loop a thread, each with its own connection to Redis. A connection stays on the loop that it
//! is given to, so that a request never wakes another thread.

use std::convert::Infallible;
use std::io;
use std::net::TcpStream as StdTcpStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, RuntimeMetrics};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tower::Service;

use super::admission::Place;
use super::patience::{PatientIo, Serving};
use super::refusal::CompletedIo;
use super::{Connections, StartError};
use crate::http::{Api, App};
use crate::metrics;
use crate::store::SessionStore;

/// How long a service that stops still reads from the connections it has. hyper closes those at once on which it has read
/// nothing, or nothing new, even if a request is waiting there.
const LAST_REQUESTS: Duration = Duration::from_millis(100);
/// The headers that hyper takes if it is not told: then it keeps them on the stack, which is faster.
const HEADERS_OF_HYPER: usize = 100;

/// Connections on threads of their own.
pub(super) struct EventLoops {
    loops: Vec<Thread>,
}

/// What can be looked at from outside.
pub(super) struct View {
    pub(super) runtime: RuntimeMetrics,
    pub(super) store: Arc<SessionStore>,
}

struct Thread {
    connections: UnboundedSender<Accepted>,
    /// One for each connection that it has, and one more.
    load: Arc<()>,
    ended: oneshot::Receiver<()>,
    handle: JoinHandle<()>,
}

/// A connection that waits to be served.
struct Accepted {
    stream: StdTcpStream,
    place: Place,
    load: Arc<()>,
}

impl EventLoops {
    /// Starts as many as this, and says how to look at each.
    ///
    /// # Errors
    /// If there are no threads, or Redis's URL cannot be used.
    pub(super) fn start(
        count: usize,
        app: &Arc<App>,
        connections: &Connections,
        grace: Duration,
    ) -> Result<(Self, Vec<View>), StartError> {
        let (mut loops, mut views) = (Vec::new(), Vec::new());
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
                    // Connects from within this runtime.
                    match app.sibling() {
                        Ok(app) => {
                            let _ = started.send(Ok(View { runtime: runtime.metrics(), store: app.store.clone() }));
                            serve_all(receiver, &app, connections, grace).await;
                        }
                        Err(error) => drop(started.send(Err(error.into()))),
                    }
                });
                let _ = ends.send(());
            };
            let thread = std::thread::Builder::new().name(format!("event-loop-{number}"));
            let handle = thread.spawn(run).map_err(StartError::Threads)?;
            // A thread that says nothing has panicked, and that was logged.
            let ended_early = || StartError::Threads(io::Error::other("an event loop ended as it started"));
            views.push(starts.recv().map_err(|_| ended_early())??);
            loops.push(Thread { connections: sender, load: Arc::new(()), ended, handle });
        }
        Ok((Self { loops }, views))
    }

    /// Has the loop serve the connection that has fewest.
    pub(super) fn serve(&self, stream: TcpStream, place: Place) {
        // A thread ends only after a panic; it has no connections then, and would be given all of them.
        let alive = self.loops.iter().filter(|thread| !thread.connections.is_closed());
        let of_fewest = alive.min_by_key(|thread| Arc::strong_count(&thread.load));
        match (of_fewest, stream.into_std()) {
            (Some(thread), Ok(stream)) => {
                let load = thread.load.clone();
                // Nobody takes it if that thread ends just now.
                let _ = thread.connections.send(Accepted { stream, place, load });
            }
            (_, Err(error)) => tracing::debug!(%error, "a connection was gone before it was served"),
            (None, _) => {}
        }
    }

    /// Finishes what was accepted.
    pub(super) async fn finish(self) {
        // All learn of it before any is waited for.
        let threads: Vec<_> = self.loops.into_iter().map(|thread| (thread.ended, thread.handle)).collect();
        for (ended, handle) in threads {
            let _ = ended.await;
            // It has nothing left to do.
            let _ = handle.join();
        }
    }
}

/// Serves what comes until nothing more can come, then finishes it.
async fn serve_all(
    mut accepted: UnboundedReceiver<Accepted>,
    app: &Arc<App>,
    connections: Connections,
    grace: Duration,
) {
    let event_loop = EventLoop::new(Api::new(app.clone()), connections);
    tokio::spawn(metrics::watch_lag());
    while let Some(Accepted { stream, place, load }) = accepted.recv().await {
        match TcpStream::from_std(stream) {
            Ok(stream) => event_loop.serve(stream, (place, load)),
            Err(error) => tracing::warn!(%error, "cannot serve a connection"),
        }
    }
    event_loop.finish(grace).await;
    app.store.quit().await;
}

/// What answers requests, and is always ready to.
pub trait Answering:
    Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<T> Answering for T where
    T: Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

/// Connections that are served by the runtime that this is used in.
pub(super) struct EventLoop<S> {
    served: Arc<Served<S>>,
    graceful: GracefulShutdown,
}

struct Served<S> {
    service: S,
    connections: Connections,
}

impl<S: Answering> EventLoop<S> {
    pub(super) fn new(service: S, connections: Connections) -> Self {
        Self { served: Arc::new(Served { service, connections }), graceful: GracefulShutdown::new() }
    }

    /// Serves a connection in its own task. What it holds is held to its end.
    pub(super) fn serve(&self, stream: TcpStream, held: impl Send + 'static) {
        // Without it an answer may wait for the acknowledgement of the one before.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was gone before it was served");
            return;
        }
        let (served, watcher) = (self.served.clone(), self.graceful.watcher());
        tokio::spawn(async move {
            served.secured(stream, watcher).await;
            drop(held);
        });
    }

    /// Finishes what was accepted, for at most `grace`.
    pub(super) async fn finish(self, grace: Duration) {
        tokio::time::sleep(LAST_REQUESTS).await;
        if tokio::time::timeout(grace, self.graceful.shutdown()).await.is_err() {
            tracing::warn!("some requests did not finish within {grace:?}");
        }
    }
}

impl<S: Answering> Served<S> {
    /// Makes the connection a TLS one if it has to be, and serves it.
    async fn secured(&self, stream: TcpStream, watcher: Watcher) {
        match &self.connections.certificate {
            None => self.requests(stream, watcher).await,
            Some(certificate) => {
                let handshake = certificate.acceptor().accept(stream);
                match tokio::time::timeout(self.connections.patience.head, handshake).await {
                    // Boxed, for a plain connection would have room for it, too.
                    Ok(Ok(stream)) => Box::pin(self.requests(stream, watcher)).await,
                    Ok(Err(error)) => tracing::debug!(%error, "no TLS connection"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                }
            }
        }
    }

    /// Serves the requests of a connection.
    async fn requests(&self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static, watcher: Watcher) {
        let Connections { patience, limits, .. } = &self.connections;
        let serving = Serving::default();
        let io = PatientIo::new(TokioIo::new(stream), *patience, serving.clone());
        let io = CompletedIo::new(io, serving.clone());
        let service = self.service.clone();
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            serving.turn();
            let request = request.map(|body| if body.is_end_stream() { Body::empty() } else { Body::new(body) });
            let (answering, serving) = (service.clone().call(request), serving.clone());
            async move {
                let answer = answering.await;
                serving.turn();
                answer
            }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.header_read_timeout(None).max_header_size(limits.head_bytes);
        // A client may close its sending side behind its last request, and still read the answer (`nc -N`, RFC 9112,
        // 9.6). It looks like one that is gone, so such a request is served to its end, too: the request's deadline
        // bounds that.
        builder.half_close(true);
        // One buffer is sent faster than two, and answers are small.
        builder.writev(false);
        if limits.headers != HEADERS_OF_HYPER {
            builder.max_headers(limits.headers);
        }
        // What goes wrong with a connection is its client's doing.
        if let Err(error) = watcher.watch(builder.serve_connection(io, service)).await {
            tracing::debug!(%error, "connection error");
        }
    }
}
