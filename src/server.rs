//! Starts the service and stops it: listener, connections, drain. The one place that reads the clock.

mod admission;
mod event_loop;
mod head;
mod patience;
mod refusal;

use std::future::Future;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use metrics_exporter_prometheus::{BuildError, PrometheusHandle};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use self::admission::{Admission, Place};
pub use self::event_loop::Answering;
use self::event_loop::{EventLoop, EventLoops};
pub use self::patience::Patience;
use crate::auth::{self, Credentials, RateLimits};
use crate::config::{Config, ConnectionLimits, RedisSource};
use crate::http::{App, Capacity};
use crate::session::{Clock, Timestamp};
use crate::store::embedded::{EmbeddedError, EmbeddedRedis, find_server};
use crate::store::{RedisAddress, SessionStore, StoreConfig, StoreError};
use crate::tls::Certificate;
use crate::{log, metrics};

/// How long to wait before accepting again after the operating system refused: usually it is out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How much of the request's deadline one Redis command may take, and how much all that a request needs: the rest is for
/// saying that it took too long.
const COMMAND_SHARE: f64 = 0.75;
const ANSWER_SHARE: f64 = 0.9;
/// How often a service whose Redis does not answer views whether it is one to be used.
const STORE_CHECK: Duration = Duration::from_millis(500);
/// How often the clocks, the settings of Redis and the layout are checked while the service runs.
const STORE_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How many connections the operating system may keep until they are accepted, if its own limit is not lower. It forgets
/// what comes beyond, and those clients try again after a second.
const CONNECTIONS_WAITING_MAX: u32 = 4096;
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
    /// The operating system gives no threads to serve on.
    #[error("cannot start to serve: {0}")]
    Threads(#[source] io::Error),
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
    start_redis_by(config, EmbeddedRedis::start)
}

/// The Redis that an audit looks at. The embedded one is a copy of the store, which is not changed, unless the audit is to
/// repair it. Blocks until it is up.
///
/// # Errors
/// If the embedded Redis cannot be started, or there is no store.
pub fn start_redis_to_audit(
    config: &Config,
    repair: bool,
) -> Result<(RedisAddress, Option<EmbeddedRedis>), EmbeddedError> {
    start_redis_by(config, if repair { EmbeddedRedis::start_existing } else { EmbeddedRedis::start_on_copy })
}

fn start_redis_by(
    config: &Config,
    start: impl FnOnce(&Path, &Path) -> Result<EmbeddedRedis, EmbeddedError>,
) -> Result<(RedisAddress, Option<EmbeddedRedis>), EmbeddedError> {
    match &config.redis {
        RedisSource::Given(address) => Ok((address.clone(), None)),
        RedisSource::Embedded { server, search_path, data_dir } => {
            let server = find_server(server.as_deref(), search_path).ok_or(EmbeddedError::NoServer)?;
            let redis = start(&server, data_dir)?;
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
        response_memory_bytes: config.requests.response_memory_bytes,
        response_memory_wait: config.requests.wait,
        refuse_unfit: true,
        clock_skew_max: config.clock_skew_max,
        check_interval: STORE_CHECK_INTERVAL,
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
    app_with(config, store_config(config, redis), credentials, clock)
}

/// The same, with other settings of the store.
///
/// # Errors
/// If the Redis URL cannot be used.
pub fn app_with(
    config: &Config,
    store: StoreConfig,
    credentials: Arc<Credentials>,
    clock: Clock,
) -> Result<Arc<App>, StoreError> {
    Ok(Arc::new(App {
        store: Arc::new(SessionStore::connect(store, clock.clone())?),
        credentials,
        rate_limits: Arc::new(RateLimits::new(config.rate)),
        capacity: Arc::new(Capacity::new(config.requests.served, config.requests.waiting, config.requests.wait)),
        clock,
        user_roles: config.auth.user_roles.clone(),
        default_location_id: config.default_location_id.clone(),
        default_session_type: config.default_session_type.clone(),
        body_bytes_max: config.body_bytes_max,
        metadata_bytes_max: config.metadata_bytes_max,
        content_bytes_max: config.content_bytes_max,
        uri_bytes_max: config.uri_bytes_max,
        cors_origins: config.cors.origins.clone(),
        cors_headers: config.cors.headers.clone(),
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
    let connections = Connections { certificate, ..connections(config) };
    let (event_loops, views) = EventLoops::start(config.event_loops, &app, &connections, config.shutdown_grace)?;
    let runtimes = views.iter().map(|view| view.runtime.clone()).collect();
    let stores: Vec<_> = views.into_iter().map(|view| view.store).chain([app.store.clone()]).collect();
    tokio::spawn(metrics::watch(runtimes, move || stores.iter().all(|store| store.is_up())));
    tokio::spawn(log::tell_left_out());
    tracing::info!("{credentials}");
    if config.allow_unauthenticated && config.auth.is_empty() {
        tracing::warn!(%address, "--allow-unauthenticated: whoever reaches this address may do everything");
    }
    tokio::spawn(keep_current(credentials));
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let base = format!("{scheme}://{address}");
    tracing::info!(address = %address, redis = %redis, "serving on {base}, documentation at {base}/docs");
    let mut unfit = None;
    let stop = async {
        tokio::select! {
            () = shutdown => {}
            error = unfit_store(&app.store) => unfit = Some(error),
        }
    };
    accept(listener, &connections, stop, |stream, place| event_loops.serve(stream, place)).await;
    event_loops.finish().await;
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
            Err(error @ (StoreError::Layout(_) | StoreError::Unfit { .. })) => return error,
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

/// Serves on one event loop, the caller's, until `shutdown` resolves, then finishes what was accepted, for at most `grace`.
pub async fn serve(
    listener: TcpListener,
    service: impl Answering,
    connections: Connections,
    grace: Duration,
    shutdown: impl Future<Output = ()>,
) {
    let event_loop = EventLoop::new(service, connections.clone());
    accept(listener, &connections, shutdown, |stream, place| event_loop.serve(stream, place)).await;
    event_loop.finish(grace).await;
}

/// Accepts connections until `shutdown` resolves, and has those served that there is a place for.
async fn accept(
    listener: TcpListener,
    connections: &Connections,
    shutdown: impl Future<Output = ()>,
    serve: impl Fn(TcpStream, Place),
) {
    let admission = Admission::new(connections.limits.clone());
    let admit = |stream, client| match admission.admit(client) {
        Ok(place) => serve(stream, place),
        Err(refused) => {
            metrics::connection_refused(refused.as_str());
            tracing::debug!(%client, limit = refused.as_str(), "too many connections");
            turn_away(stream, connections.certificate.is_some());
        }
    };
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => admit(stream, client.ip()),
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
    accept_waiting(listener, admit);
    tracing::info!("stopping: finishing what was accepted");
}

/// Says why, as far as that costs nothing, and closes the connection.
fn turn_away(stream: TcpStream, expects_tls: bool) {
    // A client that expects TLS could not read it.
    if !expects_tls && let Ok(mut stream) = stream.into_std() {
        // A new connection has room for this; whatever goes wrong, it is closed.
        let _ = stream.write_all(&refusal::overloaded());
        let _ = stream.shutdown(Shutdown::Write);
    }
}

/// Closes the listener. The operating system had accepted some connections that we did not take yet: their clients may have
/// sent a request already, which closing the listener would drop.
fn accept_waiting(listener: TcpListener, admit: impl Fn(TcpStream, IpAddr)) {
    // Asked directly, because the runtime tells of a connection only after its next look.
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

/// Errors that belong to the connection that was to be accepted, not to the listener.
fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}
