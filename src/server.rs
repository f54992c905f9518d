//! Starts the service and stops it: listener, connections, drain. The one place that reads the clock.

mod patience;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::header;
use axum::routing::get;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use metrics_exporter_prometheus::{BuildError, PrometheusHandle};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

pub use self::patience::Patience;
use self::patience::{PatientIo, Serving};
use crate::auth::{self, Credentials, RateLimits};
use crate::config::{Config, RedisSource};
use crate::http::{self, App, Clock};
use crate::metrics;
use crate::session::Timestamp;
use crate::store::embedded::{EmbeddedError, EmbeddedRedis, find_server};
use crate::store::{RedisAddress, SessionStore, StoreConfig, StoreError};

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
        refuse_unfit: true,
    }
}

/// How long connections may keep the service waiting, from the settings.
#[must_use]
pub fn patience(config: &Config) -> Patience {
    Patience { head: config.receive_timeout, keep_alive: config.keep_alive_timeout, send: config.receive_timeout }
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
    let listener = TcpListener::bind(config.listen).await.map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?;
    serve_metrics(config, metrics).await?;
    tracing::info!("{credentials}");
    if config.allow_unauthenticated && config.auth.is_empty() {
        tracing::warn!(%address, "--allow-unauthenticated: whoever reaches this address may do everything");
    }
    tokio::spawn(keep_current(credentials));
    tracing::info!(address = %address, redis = %redis, "serving on http://{address}, documentation at http://{address}/docs");
    let mut unfit = None;
    let stop = async {
        tokio::select! {
            () = shutdown => {}
            error = unfit_store(&app.store) => unfit = Some(error),
        }
    };
    serve(listener, http::router(app.clone()), patience(config), config.shutdown_grace, stop).await;
    app.store.quit().await;
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
async fn serve_metrics(config: &Config, metrics: PrometheusHandle) -> Result<(), StartError> {
    let address = config.metrics_listen.unwrap_or(METRICS_LISTEN_DEFAULT);
    let listener = match TcpListener::bind(address).await {
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
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(metrics::UPKEEP_INTERVAL);
        loop {
            tick.tick().await;
            upkeep.run_upkeep();
        }
    });
    let render =
        move || async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render()) };
    let router = Router::new().route("/metrics", get(render));
    tokio::spawn(serve(listener, router, patience(config), Duration::ZERO, std::future::pending()));
    Ok(())
}

/// Accepts connections until `shutdown` resolves, then finishes what was accepted, for at most `grace`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    patience: Patience,
    grace: Duration,
    shutdown: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => connection(stream, router.clone(), patience, &graceful),
                Err(error) if is_of_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
    accept_waiting(listener, |stream| connection(stream, router.clone(), patience, &graceful));
    tracing::info!("stopping: finishing what was accepted");
    tokio::time::sleep(LAST_REQUESTS).await;
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests did not finish within {grace:?}");
    }
}

/// Closes the listener. The operating system had accepted some connections that we did not take yet: their clients may have
/// sent a request already, which closing the listener would drop.
fn accept_waiting(listener: TcpListener, mut serve: impl FnMut(TcpStream)) {
    // Asked directly, because the runtime tells of a connection only after its next look.
    let Ok(listener) = listener.into_std() else {
        return;
    };
    while let Ok((stream, _)) = listener.accept() {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            serve(stream);
        }
    }
}

/// Serves one connection in its own task.
fn connection(stream: TcpStream, router: Router, patience: Patience, graceful: &GracefulShutdown) {
    // Without it an answer may wait for the acknowledgement of the one before.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection was gone before it was served");
        return;
    }
    let serving = Serving::default();
    let io = PatientIo::new(TokioIo::new(stream), patience, serving.clone());
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
    let connection = hyper::server::conn::http1::Builder::new().header_read_timeout(None).serve_connection(io, service);
    let connection = graceful.watch(connection);
    tokio::spawn(async move {
        // What goes wrong with a connection is its client's doing.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection error");
        }
    });
}

/// Errors that belong to the connection that was to be accepted, not to the listener.
fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}
