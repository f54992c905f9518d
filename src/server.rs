//! Starts the service and stops it: listener, connections, drain. The one place that reads the clock.

mod admission;
mod head;
mod patience;
mod refusal;

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::header;
use axum::routing::get;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use metrics_exporter_prometheus::{BuildError, PrometheusHandle};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tower::ServiceExt;

use self::admission::{Admission, Place};
pub use self::patience::Patience;
use self::patience::{PatientIo, Serving};
use self::refusal::CompletedIo;
use crate::auth::{self, Credentials, RateLimits};
use crate::config::{Config, ConnectionLimits, RedisSource};
use crate::http::{self, App, Clock};

use crate::session::Timestamp;
use crate::store::embedded::{EmbeddedError, EmbeddedRedis, find_server};
use crate::store::{RedisAddress, SessionStore, StoreConfig, StoreError};
use crate::tls::Certificate;
use crate::{log, metrics};

/// How long to wait before accepting again after the operating system refused: usually it is out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How long a service that stops still reads from the connections it has. hyper closes those at once on which it has read
/// nothing, or nothing new, even if a request is waiting there.
const LAST_REQUESTS: Duration = Duration::from_millis(100);
/// How much of the request's deadline one Redis command may take, and how much all that a request needs: the rest is for
/// saying that it took too long.
const COMMAND_SHARE: f64 = 0.75;
const ANSWER_SHARE: f64 = 0.9;
/// How often a service whose Redis does not answer looks whether it is one to be used.
const STORE_CHECK: Duration = Duration::from_millis(500);
/// How many connections the operating system may keep until they are accepted, if its own limit is not lower. It forgets
/// what comes beyond, and those clients try again after a second.
const CONNECTIONS_WAITING_MAX: u32 = 4096;
/// The headers that hyper takes if it is not told: then it keeps them on the stack, which is faster.
const HEADERS_OF_HYPER: usize = 100;

/// Where metrics are served if nothing is said.
const METRICS_LISTEN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no private Redis.
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    /// The address cannot be served on.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The Redis URL cannot be used, or leads to a Redis that must not be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificate cannot be used any more: it could when the settings were checked.
    #[error("cannot serve HTTPS: {0}")]
    Tls(String),
    /// Metrics cannot be recorded.
    #[error("cannot record metrics: {0}")]
    Metrics(#[from] BuildError),
}

/// The wall clock.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
pub fn system_now() -> Timestamp {
    Timestamp(chrono::Utc::now().timestamp_millis())
}

/// The Redis of a configuration: its address, and the private server if it is one. Blocks until that one is up.
///
/// # Errors
/// If the private Redis cannot be started.
pub fn start_redis(config: &Config) -> Result<(RedisAddress, Option<EmbeddedRedis>), EmbeddedError> {
    match &config.redis {
        RedisSource::Given(address) => Ok((address.clone(), None)),
        RedisSource::Embedded { server, search_path, data_dir } => {
            let server = find_server(server.as_deref(), search_path).ok_or(EmbeddedError::NoServer)?;
            let redis = EmbeddedRedis::start(&server, data_dir)?;
            tracing::info!(server = %server.display(), data = %data_dir.display(), "started a private Redis");
            Ok((RedisAddress::Socket(redis.socket()), Some(redis)))
        }
    }
}

/// Where the sessions are and how they live, from the settings.
#[must_use]
pub fn store_config(config: &Config, redis: RedisAddress) -> StoreConfig {
    StoreConfig {
        redis,
        key_prefix: config.key_prefix.clone(),
        command_timeout: config.request_deadline.mul_f64(COMMAND_SHARE),
        lifecycle: config.lifecycle,
        messages_kept: config.messages_kept,
        metadata_bytes_max: config.metadata_bytes_max,
        hints_max: config.hints_max,
        refuse_unfit: true,
    }
}

/// How a listener treats its connections.
#[derive(Clone, Debug)]
pub struct Connections {
    /// How long they may keep the service waiting.
    pub patience: Patience,
    /// How many there may be, and how long the heads of requests on them.
    pub limits: ConnectionLimits,
    /// The certificate to serve HTTPS with.
    pub certificate: Option<Certificate>,
}

/// How a listener treats its connections, from the settings; plain ones.
#[must_use]
pub fn connections(config: &Config) -> Connections {
    let patience =
        Patience { head: config.receive_timeout, keep_alive: config.keep_alive_timeout, send: config.receive_timeout };
    Connections { patience, limits: config.connections.clone(), certificate: None }
}

/// Reads what callers' credentials are checked against.
///
/// # Errors
/// A line for each problem. One is to have no credentials on an address that others can reach.
pub fn credentials(config: &Config) -> Result<Arc<Credentials>, Vec<String>> {
    let is_local = config.listen.ip().to_canonical().is_loopback();
    if config.auth.is_empty() && !is_local && !config.allow_unauthenticated {
        return Err(vec![format!(
            "--listen (SESSIOND_LISTEN) {} can be reached from other machines, and there are no credentials: give \
             --api-keys-file or --jwt-key-file, or --allow-unauthenticated if something in front checks who calls",
            config.listen
        )]);
    }
    Credentials::load(&config.auth).map(Arc::new)
}

/// What the handlers work with, from the settings.
///
/// # Errors
/// If the Redis URL cannot be used.
pub fn app(
    config: &Config,
    redis: RedisAddress,
    credentials: Arc<Credentials>,
    clock: Clock,
) -> Result<Arc<App>, StoreError> {
    Ok(Arc::new(App {
        store: SessionStore::connect(store_config(config, redis))?,
        credentials,
        rate_limits: RateLimits::new(config.rate),
        clock,
        default_location_id: config.default_location_id.clone(),
        default_session_type: config.default_session_type.clone(),
        body_bytes_max: config.body_bytes_max,
        metadata_bytes_max: config.metadata_bytes_max,
        content_bytes_max: config.content_bytes_max,
        uri_bytes_max: config.uri_bytes_max,
        cors_origins: config.cors_origins.clone(),
        body_timeout: config.receive_timeout,
        answer_timeout: config.request_deadline.mul_f64(ANSWER_SHARE),
    }))
}

/// Runs the service until `shutdown` resolves and what was accepted is finished.
///
/// # Errors
/// Why it did not start.
pub async fn run(
    config: &Config,
    redis: RedisAddress,
    credentials: Arc<Credentials>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let metrics = metrics::install()?;
    let app = app(config, redis.clone(), credentials.clone(), Arc::new(system_now))?;
    let cannot_listen = |error| StartError::Listen(config.listen, error);
    let listener = listen(config.listen).map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?;
    let certificate = config.tls.clone().map(Certificate::follow).transpose().map_err(StartError::Tls)?;
    serve_metrics(config, metrics)?;
    let watched = app.clone();
    tokio::spawn(metrics::watch(move || watched.store.is_up()));
    tokio::spawn(log::tell_left_out());
    tracing::info!("{credentials}");
    if config.allow_unauthenticated && config.auth.is_empty() {
        tracing::warn!(%address, "--allow-unauthenticated: whoever reaches this address may do everything");
    }
    tokio::spawn(keep_current(credentials));
    let scheme = if certificate.is_some() { "https" } else { "http" };
    let base = format!("{scheme}://{address}");
    tracing::info!(address = %address, redis = %redis, "serving on {base}, documentation at {base}/docs");
    let mut unfit = None;
    let stop = async {
        tokio::select! {
            () = shutdown => {}
            error = unfit_store(&app.store) => unfit = Some(error),
        }
    };
    let connections = Connections { certificate, ..connections(config) };
    serve(listener, http::router(app.clone()), connections, config.shutdown_grace, stop).await;
    app.store.quit().await;
    log::tell_left_out_now();
    if let Some(error) = unfit {
        return Err(error.into());
    }
    tracing::info!("stopped");
    Ok(())
}

/// Resolves if Redis turns out to be one that must not be used. Until it answers, the service is alive and not ready.
async fn unfit_store(store: &SessionStore) -> StoreError {
    loop {
        match store.check().await {
            Ok(()) => return std::future::pending().await,
            Err(error @ (StoreError::Layout(_) | StoreError::Unfit(_))) => return error,
            // The client tells the log why there is no connection.
            Err(_) => tokio::time::sleep(STORE_CHECK).await,
        }
    }
}

/// Looks at the files of keys for as long as the process lives.
async fn keep_current(credentials: Arc<Credentials>) {
    let mut tick = tokio::time::interval(auth::RELOAD_INTERVAL);
    loop {
        tick.tick().await;
        let credentials = credentials.clone();
        // Files are read on a thread that may wait. Should reading ever panic, the next look is not the last.
        let _ = tokio::task::spawn_blocking(move || credentials.reload()).await;
    }
}

/// Serves `/metrics` for as long as the process lives. The default address may be taken by another service on this
/// machine: then this one does without. An address that was asked for has to work.
fn serve_metrics(config: &Config, metrics: PrometheusHandle) -> Result<(), StartError> {
    let address = config.metrics_listen.unwrap_or(METRICS_LISTEN_DEFAULT);
    let listener = match listen(address) {
        Ok(listener) => listener,
        Err(error) if config.metrics_listen.is_some() => return Err(StartError::Listen(address, error)),
        Err(error) => {
            tracing::warn!(%address, %error, "serving no metrics; choose another address with --metrics-listen");
            return Ok(());
        }
    };
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "metrics on http://{address}/metrics");
    }
    let content_type = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    let render = move || async move { ([content_type], metrics::render(&metrics)) };
    let router = Router::new().route("/metrics", get(render));
    tokio::spawn(serve(listener, router, connections(config), Duration::ZERO, std::future::pending()));
    Ok(())
}

/// Listens as `TcpListener::bind` does, but with room for a crowd that comes at once.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A service that is started again does not wait for the connections of the one before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(CONNECTIONS_WAITING_MAX)
}

/// Accepts connections until `shutdown` resolves, then finishes what was accepted, for at most `grace`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    connections: Connections,
    grace: Duration,
    shutdown: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let listening = Arc::new(Listening { router, admission: Admission::new(connections.limits.clone()), connections });
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => listening.accept(stream, client.ip(), &graceful),
                Err(error) if is_of_connection(&error) => {}
                Err(error) => {
                    if log::admits("accept") {
                        tracing::warn!(%error, "cannot accept a connection");
                    }
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
    accept_waiting(listener, |stream, client| listening.accept(stream, client, &graceful));
    tracing::info!("stopping: finishing what was accepted");
    tokio::time::sleep(LAST_REQUESTS).await;
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests did not finish within {grace:?}");
    }
}

/// Closes the listener. The operating system had accepted some connections that we did not take yet: their clients may have
/// sent a request already, which closing the listener would drop.
fn accept_waiting(listener: TcpListener, mut serve: impl FnMut(TcpStream, IpAddr)) {
    // Asked directly, because the runtime tells of a connection only after its next look.
    let Ok(listener) = listener.into_std() else {
        return;
    };
    while let Ok((stream, client)) = listener.accept() {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            serve(stream, client.ip());
        }
    }
}

/// A listener, and what its connections share.
struct Listening {
    router: Router,
    connections: Connections,
    admission: Arc<Admission>,
}

impl Listening {
    /// Serves a connection in its own task, if there is a place for it.
    fn accept(self: &Arc<Self>, stream: TcpStream, client: IpAddr, graceful: &GracefulShutdown) {
        let place = match self.admission.admit(client) {
            Ok(place) => place,
            Err(refused) => {
                metrics::connection_refused(refused.as_str());
                tracing::debug!(%client, limit = refused.as_str(), "too many connections");
                return self.turn_away(stream);
            }
        };
        // Without it an answer may wait for the acknowledgement of the one before.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was gone before it was served");
            return;
        }
        tokio::spawn(self.clone().secured(stream, graceful.watcher(), place));
    }

    /// Says why, as far as that costs nothing, and closes the connection.
    fn turn_away(&self, stream: TcpStream) {
        // A client that expects TLS could not read it.
        if self.connections.certificate.is_none()
            && let Ok(mut stream) = stream.into_std()
        {
            // A new connection has room for this; whatever goes wrong, it is closed.
            let _ = stream.write_all(&refusal::overloaded());
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// Makes the connection a TLS one if it has to be, and serves it. The place is held to its end.
    async fn secured(self: Arc<Self>, stream: TcpStream, watcher: Watcher, place: Place) {
        match &self.connections.certificate {
            None => self.served(stream, watcher).await,
            Some(certificate) => {
                let handshake = certificate.acceptor().accept(stream);
                match tokio::time::timeout(self.connections.patience.head, handshake).await {
                    // Boxed, for a plain connection would have room for it, too.
                    Ok(Ok(stream)) => Box::pin(self.served(stream, watcher)).await,
                    Ok(Err(error)) => tracing::debug!(%error, "no TLS connection"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                }
            }
        }
        drop(place);
    }

    /// Serves the requests of a connection.
    async fn served(&self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static, watcher: Watcher) {
        let Connections { patience, limits, .. } = &self.connections;
        let serving = Serving::default();
        let io = PatientIo::new(TokioIo::new(stream), *patience, serving.clone());
        let io = CompletedIo::new(io, serving.clone());
        let router = self.router.clone();
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            let (router, serving) = (router.clone(), serving.clone());
            async move {
                serving.turn();
                let request: Request = request.map(axum::body::Body::new);
                let answer = router.oneshot(request).await.unwrap_or_else(|never| match never {});
                serving.turn();
                Ok::<_, Infallible>(answer)
            }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.header_read_timeout(None).max_header_size(limits.head_bytes);
        if limits.headers != HEADERS_OF_HYPER {
            builder.max_headers(limits.headers);
        }
        // What goes wrong with a connection is its client's doing.
        if let Err(error) = watcher.watch(builder.serve_connection(io, service)).await {
            tracing::debug!(%error, "connection error");
        }
    }
}

/// Errors that belong to the connection that was to be accepted, not to the listener.
fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}
