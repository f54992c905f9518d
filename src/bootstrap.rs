//! Builds the parts of the service from its configuration and runs them. No other module reads the system clock.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;

use crate::auth::{Credentials, RateLimits};
use crate::config::{Config, RedisSource};
use crate::embedded_redis::{EmbeddedError, EmbeddedRedis, find_server};
use crate::http::{AppState, ConcurrencyLimiter};
use crate::reload::RELOAD_INTERVAL;
use crate::server::{self, ConnectionSettings, ConnectionTimeouts, StartError, Workers};
use crate::session::{Clock, Timestamp};
use crate::store::{RedisAddress, SessionStore, StoreConfig, StoreError};
use crate::streams::{StreamConfig, StreamLimits, Streams};
use crate::tls::{Certificate, CertificateFiles};
use crate::{log, metrics};

/// The shares of the request deadline for one Redis command, and for a whole request. The rest is for sending the
/// response that reports the timeout.
const COMMAND_SHARE: f64 = 0.75;
const RESPONSE_SHARE: f64 = 0.9;
/// The delay before the first preflight check is repeated, while Redis does not reply.
const STORE_CHECK_RETRY: Duration = Duration::from_millis(500);
/// The interval at which the clocks, the settings of Redis and the stored layout are checked while the service runs.
const STORE_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The default of `--metrics-listen`.
const METRICS_LISTEN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

/// The wall clock.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
pub fn system_now() -> Timestamp {
    Timestamp(chrono::Utc::now().timestamp_millis())
}

/// Returns the address of the configured Redis. Without a Redis URL, starts the embedded Redis, returns it as well, and
/// blocks until it is up.
///
/// # Errors
/// If the embedded Redis cannot be started.
pub fn start_redis(config: &Config) -> Result<(RedisAddress, Option<EmbeddedRedis>), EmbeddedError> {
    start_redis_by(config, EmbeddedRedis::start)
}

/// Like [`start_redis`], for an audit. The embedded Redis gets a copy of the store, unless the audit is to `repair` the
/// store.
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
    match &config.redis.source {
        RedisSource::Given(address) => Ok((address.clone(), None)),
        RedisSource::Embedded { server, search_path, data_dir } => {
            let server = find_server(server.as_deref(), search_path).ok_or(EmbeddedError::NoServer)?;
            let redis = start(&server, data_dir)?;
            tracing::info!(server = %server.display(), data = %data_dir.display(), "started the embedded Redis");
            Ok((RedisAddress::Socket(redis.socket()), Some(redis)))
        }
    }
}

/// The settings of the store, from the configuration.
#[must_use]
pub fn store_config(config: &Config, redis: RedisAddress) -> StoreConfig {
    StoreConfig {
        redis,
        key_prefix: config.redis.key_prefix.clone(),
        command_timeout: config.requests.request_deadline.mul_f64(COMMAND_SHARE),
        lifecycle: config.sessions.lifecycle,
        messages_kept: config.sessions.messages_kept,
        session_bytes_max: config.sessions.session_bytes_max,
        turn_lease: config.sessions.turn_lease,
        turn_bytes_max: config.sessions.turn_bytes_max,
        sessions_per_user_max: config.sessions.sessions_per_user_max,
        metadata_bytes_max: config.sessions.metadata_bytes_max,
        hint_cache_size: config.sessions.hint_cache_size,
        response_memory_bytes: config.requests.response_memory_bytes,
        response_memory_wait: config.requests.queue_wait_max,
        require_supported: true,
        clock_skew_max: config.sessions.clock_skew_max,
        check_interval: STORE_CHECK_INTERVAL,
    }
}

/// The settings for connections without TLS, from the configuration.
#[must_use]
pub fn connection_settings(config: &Config) -> ConnectionSettings {
    let timeouts = ConnectionTimeouts {
        head: config.connections.receive_timeout,
        keep_alive: config.connections.keep_alive_timeout,
        send: config.connections.receive_timeout,
    };
    ConnectionSettings { timeouts, limits: config.connections.limits.clone(), certificate: None }
}

/// Reads the API keys and JWT keys that credentials are checked against.
///
/// # Errors
/// A line for each problem. Without keys, an address that other machines can reach is a problem, unless
/// `--allow-unauthenticated` is set.
pub fn credentials(config: &Config) -> Result<Arc<Credentials>, Vec<String>> {
    let is_local = config.connections.listen.ip().to_canonical().is_loopback();
    if config.auth.credentials.is_empty() && !is_local && !config.auth.allow_unauthenticated {
        return Err(vec![format!(
            "--listen (SESSIOND_LISTEN) {} can be reached from other machines, and there are no credentials: set \
             --api-keys-file or --jwt-key-file, or --allow-unauthenticated if a proxy in front authenticates callers",
            config.connections.listen
        )]);
    }
    Credentials::load(&config.auth.credentials).map(Arc::new)
}

/// The state of the handlers, from the configuration.
///
/// # Errors
/// If the Redis URL cannot be used.
pub fn app_state(
    config: &Config,
    redis: RedisAddress,
    credentials: Arc<Credentials>,
    clock: Clock,
) -> Result<Arc<AppState>, StoreError> {
    app_state_with(config, store_config(config, redis), credentials, clock)
}

/// Like [`app_state`], with other settings of the store.
///
/// # Errors
/// If the Redis URL cannot be used.
pub fn app_state_with(
    config: &Config,
    store: StoreConfig,
    credentials: Arc<Credentials>,
    clock: Clock,
) -> Result<Arc<AppState>, StoreError> {
    let store = Arc::new(SessionStore::connect(store, clock.clone())?);
    let limits = StreamLimits::new(config.requests.streams_max, config.requests.streams_per_user_max);
    let stream_config = StreamConfig::default();
    let streams = Streams::new(store.clone(), clock.clone(), stream_config, credentials.clone(), Arc::new(limits));
    Ok(Arc::new(AppState {
        store,
        streams: Arc::new(streams),
        credentials,
        rate_limits: Arc::new(RateLimits::new(config.auth.rates)),
        concurrency: Arc::new(ConcurrencyLimiter::new(
            config.requests.concurrent_max,
            config.requests.waiting_max,
            config.requests.queue_wait_max,
        )),
        clock,
        user_roles: config.auth.user_roles.clone(),
        sessions: config.sessions.clone(),
        requests: config.requests.clone(),
        console: config.console.clone(),
        body_timeout: config.connections.receive_timeout,
        response_timeout: config.requests.request_deadline.mul_f64(RESPONSE_SHARE),
    }))
}

/// Runs the service until `shutdown` resolves, then finishes accepted requests.
///
/// # Errors
/// Why the service did not start, or that the first preflight check found an unsupported Redis.
pub async fn run(
    config: &Config,
    redis: RedisAddress,
    credentials: Arc<Credentials>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let metrics = metrics::install()?;
    let state = app_state(config, redis.clone(), credentials.clone(), Arc::new(system_now))?;
    let cannot_listen = |error| StartError::Listen(config.connections.listen, error);
    let listener = server::listen(config.connections.listen).map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?;
    let certificate = config.connections.tls.clone().map(CertificateFiles::load).transpose();
    let certificate = certificate.map_err(|problems| StartError::Tls(problems.join("; ")))?;
    serve_metrics(config, metrics)?;
    let connections = ConnectionSettings { certificate: certificate.clone(), ..connection_settings(config) };
    let (workers, handles) =
        Workers::start(config.requests.event_loops, &state, &connections, config.connections.shutdown_grace)?;
    let runtimes = handles.iter().map(|handle| handle.runtime.clone()).collect();
    let stores: Vec<_> = handles.into_iter().map(|handle| handle.store).chain([state.store.clone()]).collect();
    tokio::spawn(metrics::watch(runtimes, move || stores.iter().all(|store| store.is_up())));
    tokio::spawn(log::report_suppressed());
    tracing::info!("{credentials}");
    if config.auth.allow_unauthenticated && config.auth.credentials.is_empty() {
        tracing::warn!(%address, "--allow-unauthenticated: anyone who reaches this address may do everything");
    }
    tokio::spawn(reload_files(credentials, certificate));
    let scheme = if config.connections.tls.is_some() { "https" } else { "http" };
    let base = format!("{scheme}://{address}");
    let console = if config.console.is_enabled { format!(", console at {base}/console/") } else { String::new() };
    tracing::info!(address = %address, redis = %redis, "serving on {base}, documentation at {base}/docs{console}");
    let mut unsupported = None;
    let stop = async {
        tokio::select! {
            () = shutdown => {}
            error = unsupported_store(&state.store) => unsupported = Some(error),
        }
    };
    server::accept(listener, &connections, stop, |stream, permit| workers.serve(stream, permit)).await;
    workers.finish().await;
    state.store.quit().await;
    log::report_suppressed_now();
    if let Some(error) = unsupported {
        return Err(error.into());
    }
    tracing::info!("stopped");
    Ok(())
}

/// Resolves if the first preflight check finds an unsupported Redis. Until Redis replies, the service is alive and not
/// ready.
async fn unsupported_store(store: &SessionStore) -> StoreError {
    loop {
        let checked = async {
            store.ensure_layout().await?;
            store.require_channel_permissions().await
        };
        match checked.await {
            Ok(()) => return std::future::pending().await,
            Err(error @ (StoreError::Layout(_) | StoreError::UnsupportedServer { .. })) => return error,
            // The Redis client logs why it is not connected.
            Err(_) => tokio::time::sleep(STORE_CHECK_RETRY).await,
        }
    }
}

/// Reloads the files of keys and certificates until the process ends.
async fn reload_files(credentials: Arc<Credentials>, certificate: Option<Certificate>) {
    let mut tick = tokio::time::interval(RELOAD_INTERVAL);
    loop {
        tick.tick().await;
        let (credentials, certificate) = (credentials.clone(), certificate.clone());
        let reload = move || {
            credentials.reload();
            if let Some(certificate) = certificate {
                certificate.reload_if_changed();
            }
        };
        // On a thread that may block. A panic ends this reload only; the next one is tried.
        let _ = tokio::task::spawn_blocking(reload).await;
    }
}

/// Serves `/metrics` until the process ends. Another service on this machine may use the default address: then this one
/// serves no metrics. A failure to listen on a configured address is an error.
fn serve_metrics(config: &Config, metrics: PrometheusHandle) -> Result<(), StartError> {
    let address = config.connections.metrics_listen.unwrap_or(METRICS_LISTEN_DEFAULT);
    let listener = match server::listen(address) {
        Ok(listener) => listener,
        Err(error) if config.connections.metrics_listen.is_some() => return Err(StartError::Listen(address, error)),
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
    tokio::spawn(server::serve(listener, router, connection_settings(config), Duration::ZERO, std::future::pending()));
    Ok(())
}
