//! Every setting, once: its flag, its variable, its default, its unit. The only place that reads the environment.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use hyper::Uri;
use hyper::http::HeaderName;
use hyper::http::uri::PathAndQuery;
use ipnet::IpNet;

use crate::auth::{AuthSettings, JwtAlgorithm, JwtSettings, NewApiKey, RateSettings, Scope};
use crate::session::{APPEND_MESSAGES_MAX, Identifier, Lifecycle, Role};
use crate::store::RedisAddress;
use crate::tls::CertificateFiles;

/// The session service in front of every conversation of an AI chat assistant
///
/// Answers which conversation a user of a business is in: finds the active session or creates it, in one atomic step in
/// Redis. Without a Redis URL it runs its own private Redis.
///
/// Every setting is a flag and a variable; the flag wins. Durations have a unit: 500ms, 30s, 5m, 24h, 30days.
#[derive(Parser)]
#[command(version, about, long_about, max_term_width = 120, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do; `serve` if nothing is said.
    #[command(subcommand)]
    pub command: Option<Subcommands>,
    /// The settings.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

impl Cli {
    /// Takes the program's arguments and variables. A variable that is set to nothing is not set.
    ///
    /// # Errors
    /// If they cannot be understood, or ask for help or the version: the error is the text to show.
    pub fn from_environment() -> Result<Self, clap::Error> {
        let command = Self::command().mut_args(|argument| {
            let variable = argument.get_env().and_then(|name| name.to_str());
            let argument = argument.clone().allow_negative_numbers(argument.get_num_args().is_none());
            match variable {
                Some(name) if is_set_to_nothing(name) => argument.env(None),
                _ => argument,
            }
        });
        Self::from_arg_matches(&command.try_get_matches()?)
    }
}

/// More requests at once than there can be connections.
const REQUESTS_MAX: usize = 1_000_000;
/// The least memory for large responses: a user's share, an eighth, has room for one page of 4 MiB.
const RESPONSE_MEMORY_MIN: usize = 32 << 20;
/// More event loops than any machine has cores.
const EVENT_LOOPS_MAX: usize = 1024;

/// More than clocks differ that are kept right by NTP, and less than anybody notices.
const CLOCK_SKEW_MAX_DEFAULT: Duration = Duration::from_secs(30);

const EXAMPLES: &str = "\
Examples:
  sessiond                                             serve on 127.0.0.1:3000 with a private Redis
  REDIS_URL=redis://127.0.0.1:6379 sessiond            serve with the Redis that is there
  sessiond --idle-timeout 1h check-config              show what these settings mean, and serve nothing
  sessiond audit                                       check what the private Redis has stored, and change nothing
  REDIS_URL=redis://127.0.0.1:6379 sessiond audit      check what is stored there, and change nothing
  sessiond keygen --help                               how callers get a credential
  curl -X POST http://127.0.0.1:3000/api/sessions -H 'Content-Type: application/json' \\
       -d '{\"businessId\":\"B0100001\",\"userId\":\"user_123\"}'";

/// What the program can do.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Subcommands {
    /// Serve the API (the default)
    Serve,
    /// Ask a running service on the --listen address whether it is ready; exit 0 if it is, 1 if not
    Healthcheck,
    /// Print the `OpenAPI` 3.1 document.
    #[command(about = "Print the OpenAPI 3.1 document")]
    Openapi,
    /// Check the settings and print what they mean; exit 2 if one is bad
    CheckConfig,
    /// Check every invariant over the stored sessions; exit 0 if all hold, 1 if not, 2 if Redis cannot be asked or the report
    /// cannot be written
    ///
    /// Safe on a Redis that serves: it reads at a bounded rate, and looks again at whatever seems broken. Use the settings
    /// of the service itself; a private Redis must not be in use by a running one. Of its store a copy is audited, which
    /// takes as much room: no file of the store is changed. Exit 2 also if that store is damaged, or there is none
    Audit(AuditArgs),
    /// Make an API key: the entry for the file of keys on stdout, the credential for its caller on stderr
    ///
    /// The file holds a hash. The credential itself is shown this once, and is nowhere else: give it to the caller, who
    /// sends it as `Authorization: Bearer <credential>` or `X-API-Key: <credential>`. It is shown only after the entry was
    /// written; exit 2 if either cannot be written.
    #[command(after_help = KEYGEN_EXAMPLES)]
    Keygen(KeygenArgs),
}

const KEYGEN_EXAMPLES: &str = "\
Examples:
  sessiond keygen --id orders --business B0100001 >> keys.toml      add a key for one business, and see its credential
  sessiond keygen --all-businesses --scope read --expires 2027-01-31T00:00:00Z
                                                                    a key that reads everything until then
A service that serves with --api-keys-file keys.toml takes the new key within 5 s, and forgets one whose entry is removed
as fast. To change a key without a gap: add a second one, give its credential to the caller, then remove the first.";

/// What key to make.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(group = ArgGroup::new("businesses").required(true).args(["business", "all_businesses"]))]
pub struct KeygenArgs {
    /// Names the key: 1 to 64 letters, digits, - or _ [default: a random one]
    #[arg(long, value_name = "TEXT")]
    id: Option<String>,
    /// A businessId that the key reaches; give it again for another one
    #[arg(long, value_name = "ID")]
    business: Vec<String>,
    /// The key reaches every business, also those to come
    #[arg(long)]
    all_businesses: bool,
    /// What the key may do; give it again for another one. Erasing a user needs admin
    #[arg(long, value_enum, default_values = ["read", "write"])]
    scope: Vec<ScopeArg>,
    /// When the key stops to be good, in RFC 3339, such as 2027-01-31T00:00:00Z [default: never]
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
}

impl KeygenArgs {
    /// The key that is asked for.
    #[must_use]
    pub fn into_key(self) -> NewApiKey {
        let scopes = self.scope.into_iter().map(|scope| match scope {
            ScopeArg::Read => Scope::Read,
            ScopeArg::Write => Scope::Write,
            ScopeArg::Admin => Scope::Admin,
        });
        NewApiKey { id: self.id, businesses: self.business, scopes: scopes.collect(), expires: self.expires }
    }
}

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ScopeArg {
    /// Read sessions and messages.
    Read,
    /// Create, change and delete sessions, append messages.
    Write,
    /// Erase users.
    Admin,
}

/// How to audit.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditArgs {
    /// How to print the report
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
    /// Most keys and index entries to look at in a second
    #[arg(long, value_name = "COUNT", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_keys_per_second: u32,
    /// Repair what is safe to repair: remove entries and pointers that lead nowhere, put back missing ones of existing
    /// sessions, set missing expiries. The rest is left alone and reported; exit 0 if nothing is left. The store of a
    /// private Redis is then used itself, as the service does: an unfinished write at its end is cut off, and a copy kept
    #[arg(long)]
    pub repair: bool,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// Lines for people.
    Text,
    /// One JSON object.
    Json,
}

/// The settings as text, before any is checked: so all bad ones can be told at once. Not `Debug`: a URL may hold a
/// password.
#[derive(Args, Clone)]
pub struct SettingsArgs {
    /// Address to serve the API on
    #[arg(long, global = true, env = "SESSIOND_LISTEN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:3000")]
    listen: String,
    /// Address to serve /metrics on, in the format of Prometheus [default: 127.0.0.1:9464, or none if that is taken]
    #[arg(long, global = true, env = "SESSIOND_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    metrics_listen: Option<String>,
    /// File of API keys, in TOML; `sessiond keygen` makes its entries. Read again when it changes
    #[arg(long, global = true, env = "SESSIOND_API_KEYS_FILE", value_name = "FILE")]
    api_keys_file: Option<String>,
    /// File of the key that JWTs are checked with: a secret of 32 bytes or more (HS256), a public key in PEM, or a JWK set,
    /// whose key a token chooses by kid. Read again when it changes. Needs the other three settings of JWTs
    #[arg(long, global = true, env = "SESSIOND_JWT_KEY_FILE", value_name = "FILE")]
    jwt_key_file: Option<String>,
    /// How JWTs are signed: `HS256`, `RS256`, `ES256` or `EdDSA`. Any other token is refused, whatever it says itself
    #[arg(long, global = true, env = "SESSIOND_JWT_ALGORITHM", value_name = "NAME")]
    jwt_algorithm: Option<String>,
    /// What the claim iss of a JWT has to be
    #[arg(long, global = true, env = "SESSIOND_JWT_ISSUER", value_name = "TEXT")]
    jwt_issuer: Option<String>,
    /// What the claim aud of a JWT has to be or contain
    #[arg(long, global = true, env = "SESSIOND_JWT_AUDIENCE", value_name = "TEXT")]
    jwt_audience: Option<String>,
    /// Serve without credentials on an address that other machines can reach
    #[arg(
        long,
        global = true,
        env = "SESSIOND_ALLOW_UNAUTHENTICATED",
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true"
    )]
    allow_unauthenticated: String,
    /// Most requests a second with one API key, or with all tokens of one business; five seconds' worth may come at once. Each
    /// process counts its own. 0 for no limit
    #[arg(long, global = true, env = "SESSIOND_RATE_LIMIT", value_name = "COUNT", default_value = "2000")]
    rate_limit: String,
    /// Most requests a second of one user with a token, as above
    #[arg(long, global = true, env = "SESSIOND_USER_RATE_LIMIT", value_name = "COUNT", default_value = "100")]
    user_rate_limit: String,
    /// Roles of the messages that a token of one user may append, comma-separated: user, assistant, system, tool. API
    /// keys and tokens of a whole business may append all of them
    #[arg(long, global = true, env = "SESSIOND_USER_ROLES", value_name = "ROLES", default_value = "user")]
    user_roles: String,
    /// Redis to use: redis://, rediss://, redis+unix://, redis-cluster:// or redis-sentinel://; without it the service
    /// runs its own. Prefer the variable: other users of the machine can read flags
    #[arg(long, global = true, env = "REDIS_URL", value_name = "URL", hide_env_values = true)]
    redis_url: Option<String>,
    /// Folder of the private Redis's data
    #[arg(
        long,
        global = true,
        env = "SESSIOND_DATA_DIR",
        value_name = "FOLDER",
        help = "Folder of the private Redis's data [default: $XDG_DATA_HOME/sessiond or ~/.local/share/sessiond]"
    )]
    data_dir: Option<String>,
    /// Program of the private Redis [default: the first valkey-server or redis-server in PATH]
    #[arg(long, global = true, env = "SESSIOND_REDIS_SERVER", value_name = "FILE")]
    redis_server: Option<String>,
    /// What all Redis keys start with; services with different prefixes can share a Redis
    #[arg(long, global = true, env = "SESSIOND_KEY_PREFIX", value_name = "TEXT", default_value = "sd")]
    key_prefix: String,
    /// A session expires after this long without activity
    #[arg(long, global = true, env = "SESSIOND_IDLE_TIMEOUT", value_name = "DURATION", default_value = "30m")]
    idle_timeout: String,
    /// A session expires this long after it was created or resumed
    #[arg(long, global = true, env = "SESSIOND_MAX_LIFETIME", value_name = "DURATION", default_value = "24h")]
    max_lifetime: String,
    /// A session stays readable this long after its end
    #[arg(long, global = true, env = "SESSIOND_RETENTION", value_name = "DURATION", default_value = "30days")]
    retention: String,
    /// A get-or-create writes activity only if the last written one is this old [default: 60s or a twentieth of the idle
    /// timeout, whichever is less]
    #[arg(long, global = true, env = "SESSIOND_ACTIVITY_RESOLUTION", value_name = "DURATION")]
    activity_resolution: Option<String>,
    /// Most that the clocks of the service and of Redis may differ: beyond it, sessions are neither created nor changed, and
    /// the service is not ready. At most a quarter of the idle timeout, the maximum lifetime and the retention. 0 for no
    /// limit [default: 30s, or that quarter if it is less]
    #[arg(long, global = true, env = "SESSIOND_MAX_CLOCK_SKEW", value_name = "DURATION")]
    max_clock_skew: Option<String>,
    /// locationId of a session that is created without one
    #[arg(long, global = true, env = "SESSIOND_DEFAULT_LOCATION_ID", value_name = "TEXT", default_value = "L0100001")]
    default_location_id: String,
    /// sessionType of a session that is created without one
    #[arg(long, global = true, env = "SESSIOND_DEFAULT_SESSION_TYPE", value_name = "TEXT", default_value = "general")]
    default_session_type: String,
    /// Newest messages of a session that are kept; at least 100
    #[arg(long, global = true, env = "SESSIOND_MESSAGES_KEPT", value_name = "COUNT", default_value = "10000")]
    messages_kept: String,
    /// Users whose session's id is remembered, so that resuming it needs no script; some 60 bytes each. 0 for none
    #[arg(long, global = true, env = "SESSIOND_MAX_HINTS", value_name = "COUNT", default_value = "100000")]
    max_hints: String,
    /// Event loops that serve requests, each a thread with a connection of its own to Redis [default: one a core]
    #[arg(long, global = true, env = "SESSIOND_EVENT_LOOPS", value_name = "COUNT")]
    event_loops: Option<String>,
    /// Most requests that are served at once; further ones wait
    #[arg(long, global = true, env = "SESSIOND_MAX_CONCURRENT_REQUESTS", value_name = "COUNT", default_value = "512")]
    max_concurrent_requests: String,
    /// Most requests that wait to be served; further ones are a 503 at once
    #[arg(long, global = true, env = "SESSIOND_MAX_WAITING_REQUESTS", value_name = "COUNT", default_value = "16384")]
    max_waiting_requests: String,
    /// Most time that a request waits to be served; then it is a 503. At most the request deadline
    #[arg(long, global = true, env = "SESSIOND_MAX_WAIT", value_name = "DURATION", default_value = "500ms")]
    max_wait: String,
    /// Most bytes of a request's body
    #[arg(long, global = true, env = "SESSIOND_MAX_BODY_BYTES", value_name = "BYTES", default_value = "262144")]
    max_body_bytes: String,
    /// Most bytes of a session's or message's metadata, as JSON
    #[arg(long, global = true, env = "SESSIOND_MAX_METADATA_BYTES", value_name = "BYTES", default_value = "16384")]
    max_metadata_bytes: String,
    /// Most bytes of a message's content, as JSON
    #[arg(long, global = true, env = "SESSIOND_MAX_CONTENT_BYTES", value_name = "BYTES", default_value = "262144")]
    max_content_bytes: String,
    /// Most bytes of responses over 64 KiB, from before they are read until they are sent; an API key, or the tokens of a
    /// business, get a quarter of it, one user with a token an eighth. Further ones wait, and then are a 503
    #[arg(long, global = true, env = "SESSIOND_MAX_RESPONSE_MEMORY", value_name = "BYTES", default_value = "67108864")]
    max_response_memory: String,
    /// Most bytes of a request's path and query; at most 65534
    #[arg(long, global = true, env = "SESSIOND_MAX_URI_BYTES", value_name = "BYTES", default_value = "8192")]
    max_uri_bytes: String,
    /// Most bytes of a request's head: its path and query, and all of its headers
    #[arg(long, global = true, env = "SESSIOND_MAX_HEADER_BYTES", value_name = "BYTES", default_value = "65536")]
    max_header_bytes: String,
    /// Most headers of a request
    #[arg(long, global = true, env = "SESSIOND_MAX_HEADERS", value_name = "COUNT", default_value = "100")]
    max_headers: String,
    /// Most connections at a time; fewer if the system's limit of open files is lower
    #[arg(long, global = true, env = "SESSIOND_MAX_CONNECTIONS", value_name = "COUNT", default_value = "16384")]
    max_connections: String,
    /// Most connections at a time from one IPv4 address or IPv6 /64 network, and eight times that from an IPv6 /48
    #[arg(
        long,
        global = true,
        env = "SESSIOND_MAX_CONNECTIONS_PER_ADDRESS",
        value_name = "COUNT",
        default_value = "1000"
    )]
    max_connections_per_address: String,
    /// Addresses or networks (10.0.0.0/8) of proxies, comma-separated: many clients come from there, so only the limit of
    /// all connections holds for them
    #[arg(long, global = true, env = "SESSIOND_PROXIES", value_name = "ADDRESSES", default_value = "127.0.0.1,::1")]
    proxies: String,
    /// Origins whose pages may call the service from a browser, comma-separated, as in `https://chat.example.com`
    /// [default: none]
    #[arg(long, global = true, env = "SESSIOND_CORS_ORIGINS", value_name = "ORIGINS")]
    cors_origins: Option<String>,
    /// Headers that those pages may send beside the usual ones, comma-separated, as in `X-Tenant,X-Correlation-Id`
    /// [default: none]
    #[arg(long, global = true, env = "SESSIOND_CORS_HEADERS", value_name = "HEADERS")]
    cors_headers: Option<String>,
    /// Certificate chain to serve HTTPS with, in PEM; read again within 5s of a change [default: none, plain HTTP]
    #[arg(long, global = true, env = "SESSIOND_TLS_CERT_FILE", value_name = "FILE")]
    tls_cert_file: Option<String>,
    /// Private key of the certificate, in PEM
    #[arg(long, global = true, env = "SESSIOND_TLS_KEY_FILE", value_name = "FILE")]
    tls_key_file: Option<String>,
    /// Most time to answer a request that was received; a store that hangs is a 503 by then
    #[arg(long, global = true, env = "SESSIOND_REQUEST_DEADLINE", value_name = "DURATION", default_value = "1s")]
    request_deadline: String,
    /// Most time for a request's headers to arrive, for its body after them, and for a client to take any of its answer
    #[arg(long, global = true, env = "SESSIOND_RECEIVE_TIMEOUT", value_name = "DURATION", default_value = "10s")]
    receive_timeout: String,
    /// Most time from an answer to the next request on its connection; longer than that of the proxies in front
    #[arg(long, global = true, env = "SESSIOND_KEEP_ALIVE_TIMEOUT", value_name = "DURATION", default_value = "75s")]
    keep_alive_timeout: String,
    /// Most time to finish accepted requests after SIGTERM or SIGINT
    #[arg(long, global = true, env = "SESSIOND_SHUTDOWN_GRACE", value_name = "DURATION", default_value = "10s")]
    shutdown_grace: String,
    /// `OpenTelemetry` collector to send spans to by OTLP, as in `http://127.0.0.1:4318` [default: none]
    #[cfg(feature = "otel")]
    #[arg(long, global = true, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// What to log, as in `info,sessiond=debug`
    #[arg(long, global = true, env = "SESSIOND_LOG", value_name = "FILTER", default_value = "info,fred=error")]
    log: String,
}

/// The settings, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address to serve the API on.
    pub listen: SocketAddr,
    /// Address to serve the metrics on. The default one may be taken, by another service on the machine.
    pub metrics_listen: Option<SocketAddr>,
    /// What callers' credentials are checked against.
    pub auth: AuthSettings,
    /// Whether to serve without credentials on an address that others can reach.
    pub allow_unauthenticated: bool,
    /// How often callers may call.
    pub rate: RateSettings,
    /// Where the sessions are.
    pub redis: RedisSource,
    /// What all Redis keys start with.
    pub key_prefix: String,
    /// How long sessions live.
    pub lifecycle: Lifecycle,
    /// The most that the clocks of the service and of Redis may differ; no limit if `None`.
    pub clock_skew_max: Option<Duration>,
    /// `locationId` of a session that is created without one.
    pub default_location_id: Identifier,
    /// `sessionType` of a session that is created without one.
    pub default_session_type: Identifier,
    /// The newest messages of a session that are kept.
    pub messages_kept: usize,
    /// Users whose session's id is remembered at the most.
    pub hints_max: usize,
    /// How many event loops serve requests.
    pub event_loops: usize,
    /// How many requests at once.
    pub requests: RequestLimits,
    /// The most bytes of a request's body.
    pub body_bytes_max: usize,
    /// The most bytes of metadata.
    pub metadata_bytes_max: usize,
    /// The most bytes of a message's content.
    pub content_bytes_max: usize,
    /// The most bytes of a request's path and query.
    pub uri_bytes_max: usize,
    /// How many connections there may be, and how long the heads of requests on them.
    pub connections: ConnectionLimits,
    /// Which pages may call the service from a browser.
    pub cors: CorsSettings,
    /// The certificate to serve HTTPS with.
    pub tls: Option<CertificateFiles>,
    /// The most that answering may take.
    pub request_deadline: Duration,
    /// The most that a request's headers, and then its body, may take to arrive.
    pub receive_timeout: Duration,
    /// The most from an answer to the next request on its connection.
    pub keep_alive_timeout: Duration,
    /// The most that accepted requests may take after the signal to stop.
    pub shutdown_grace: Duration,
    /// The collector to send spans to.
    #[cfg(feature = "otel")]
    pub otlp_endpoint: Option<String>,
    /// What to log.
    pub log: String,
}

/// How many connections there may be, and how long the heads of requests on them.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// The most connections.
    pub total: usize,
    /// The most connections from one address.
    pub per_address: usize,
    /// The addresses for which `per_address` does not hold.
    pub proxies: Vec<IpNet>,
    /// The most bytes of a request's head.
    pub head_bytes: usize,
    /// The most headers of a request.
    pub headers: usize,
}

/// Which pages may call the service from a browser.
#[derive(Clone, Debug)]
pub struct CorsSettings {
    /// Their origins.
    pub origins: Vec<String>,
    /// Headers that they may send, beside the service's own.
    pub headers: Vec<HeaderName>,
}

/// How many requests at once.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// The most that are served.
    pub served: usize,
    /// The most that wait to be.
    pub waiting: usize,
    /// The most that one waits.
    pub wait: Duration,
    /// The most bytes of large responses under way.
    pub response_memory_bytes: usize,
}

/// Which Redis to use.
#[derive(Clone, Debug)]
pub enum RedisSource {
    /// One that is there.
    Given(RedisAddress),
    /// A private one, started by the service.
    Embedded {
        /// The program, or `None` to look for one.
        server: Option<PathBuf>,
        /// Where programs are looked for.
        search_path: String,
        /// The folder of its data.
        data_dir: PathBuf,
    },
}

impl SettingsArgs {
    /// Checks every setting.
    ///
    /// # Errors
    /// One line for each bad setting.
    pub fn check(self) -> Result<Config, Vec<String>> {
        let mut bad = Bad(Vec::new());
        let lifecycle = self.lifecycle(&mut bad);
        let clock_skew_max = self.clock_skew_max(&mut bad, &lifecycle);
        let redis = self.redis(&mut bad);
        let connections = self.connection_limits(&mut bad);
        let cors = self.cors(&mut bad);
        let tls = self.certificate_files(&mut bad);
        let listen = bad.parsed("--listen", &self.listen, "an address and a port, such as 127.0.0.1:3000");
        let metrics_listen = not_empty(self.metrics_listen.as_deref())
            .and_then(|text| bad.parsed("--metrics-listen", text, "an address and a port, such as 127.0.0.1:9464"));
        let auth = self.auth(&mut bad);
        let allow_unauthenticated =
            bad.parsed("--allow-unauthenticated", &self.allow_unauthenticated, "true or false").unwrap_or_default();
        let rate = self.rate(&mut bad);
        let requests = self.request_limits(&mut bad);
        let event_loops = self.event_loops(&mut bad);
        let key_prefix = bad.key_prefix(self.key_prefix);
        let default_location_id = bad.identifier("--default-location-id", self.default_location_id);
        let default_session_type = bad.identifier("--default-session-type", self.default_session_type);
        let messages_kept = bad.number("--messages-kept", &self.messages_kept, APPEND_MESSAGES_MAX, 1_000_000);
        let hints_max = bad.number("--max-hints", &self.max_hints, 0, 100_000_000);
        let body_bytes_max = bad.number("--max-body-bytes", &self.max_body_bytes, 1024, 1 << 30);
        let metadata_bytes_max = bad.number("--max-metadata-bytes", &self.max_metadata_bytes, 2, 1 << 30);
        let content_bytes_max = bad.number("--max-content-bytes", &self.max_content_bytes, 2, 1 << 30);
        let uri_bytes_max = bad.number("--max-uri-bytes", &self.max_uri_bytes, 1024, 65_534);
        let request_deadline = bad.duration("--request-deadline", &self.request_deadline);
        let receive_timeout = bad.duration("--receive-timeout", &self.receive_timeout);
        let keep_alive_timeout = bad.duration("--keep-alive-timeout", &self.keep_alive_timeout);
        let shutdown_grace = bad.duration("--shutdown-grace", &self.shutdown_grace);
        #[cfg(feature = "otel")]
        let otlp_endpoint = bad.endpoint("--otlp-endpoint", self.otlp_endpoint.as_deref());
        let log = bad.log_filter(self.log);
        match (listen, redis, default_location_id, default_session_type) {
            (Some(listen), Some(redis), Some(default_location_id), Some(default_session_type)) if bad.0.is_empty() => {
                Ok(Config {
                    listen,
                    metrics_listen,
                    auth,
                    allow_unauthenticated,
                    rate,
                    redis,
                    key_prefix,
                    lifecycle,
                    clock_skew_max,
                    default_location_id,
                    default_session_type,
                    messages_kept,
                    hints_max,
                    event_loops,
                    requests,
                    body_bytes_max,
                    metadata_bytes_max,
                    content_bytes_max,
                    uri_bytes_max,
                    connections,
                    cors,
                    tls,
                    request_deadline,
                    receive_timeout,
                    keep_alive_timeout,
                    shutdown_grace,
                    #[cfg(feature = "otel")]
                    otlp_endpoint,
                    log,
                })
            }
            _ => Err(bad.0),
        }
    }

    fn event_loops(&self, bad: &mut Bad) -> usize {
        match not_empty(self.event_loops.as_deref()) {
            Some(text) => bad.number("--event-loops", text, 1, EVENT_LOOPS_MAX),
            None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(EVENT_LOOPS_MAX),
        }
    }

    fn request_limits(&self, bad: &mut Bad) -> RequestLimits {
        RequestLimits {
            served: bad.number("--max-concurrent-requests", &self.max_concurrent_requests, 1, REQUESTS_MAX),
            waiting: bad.number("--max-waiting-requests", &self.max_waiting_requests, 0, REQUESTS_MAX),
            wait: bad.duration("--max-wait", &self.max_wait),
            response_memory_bytes: bad.number(
                "--max-response-memory",
                &self.max_response_memory,
                RESPONSE_MEMORY_MIN,
                1 << 40,
            ),
        }
    }

    fn user_roles(&self, bad: &mut Bad) -> Vec<Role> {
        let problems = bad.0.len();
        let roles = bad.list("--user-roles", &self.user_roles, role);
        if roles.is_empty() && bad.0.len() == problems {
            bad.checked::<()>("--user-roles", Err(format!("must name a role: {}", Role::WORDS.join(", "))));
        }
        roles
    }

    fn cors(&self, bad: &mut Bad) -> CorsSettings {
        CorsSettings {
            origins: bad.list("--cors-origins", self.cors_origins.as_deref().unwrap_or_default(), origin),
            headers: bad.list("--cors-headers", self.cors_headers.as_deref().unwrap_or_default(), header_name),
        }
    }

    fn rate(&self, bad: &mut Bad) -> RateSettings {
        RateSettings {
            credential_per_second: bad.rate("--rate-limit", &self.rate_limit),
            user_per_second: bad.rate("--user-rate-limit", &self.user_rate_limit),
        }
    }

    fn lifecycle(&self, bad: &mut Bad) -> Lifecycle {
        let idle_timeout = bad.duration("--idle-timeout", &self.idle_timeout);
        Lifecycle {
            idle_timeout,
            max_lifetime: bad.duration("--max-lifetime", &self.max_lifetime),
            retention: bad.duration("--retention", &self.retention),
            activity_resolution: self.activity_resolution(bad, idle_timeout),
        }
    }

    fn activity_resolution(&self, bad: &mut Bad, idle_timeout: Duration) -> Duration {
        let resolution = match &self.activity_resolution {
            Some(text) if text == "0" => Duration::ZERO,
            Some(text) => bad.duration("--activity-resolution", text),
            None => (idle_timeout / 20).min(Duration::from_secs(60)),
        };
        if resolution > idle_timeout / 2 && !idle_timeout.is_zero() {
            let problem = "must be at most half of the idle timeout, or users who are active would expire";
            bad.checked::<()>("--activity-resolution", Err(problem.to_owned()));
        }
        resolution
    }

    /// The clocks of two services may differ by twice this, and what they know of activity by the activity resolution, half
    /// of the idle timeout at the most: so none of them takes a session for expired that is in use. Of the retention, three
    /// quarters are left in any case.
    fn clock_skew_max(&self, bad: &mut Bad, lifecycle: &Lifecycle) -> Option<Duration> {
        let Lifecycle { idle_timeout, max_lifetime, retention, .. } = *lifecycle;
        let quarter = idle_timeout.min(max_lifetime).min(retention) / 4;
        let skew = match not_empty(self.max_clock_skew.as_deref()) {
            Some("0") => return None,
            Some(text) => bad.duration("--max-clock-skew", text),
            None => quarter.min(CLOCK_SKEW_MAX_DEFAULT),
        };
        if skew > quarter && !quarter.is_zero() {
            let problem = "must be at most a quarter of the idle timeout, the maximum lifetime and the retention, or \
                           sessions in use would expire; or 0 for no limit";
            bad.checked::<()>("--max-clock-skew", Err(problem.to_owned()));
        }
        Some(skew)
    }

    /// What credentials are checked against. A key for JWTs without an issuer and an audience would accept tokens that were
    /// made for other services.
    fn auth(&self, bad: &mut Bad) -> AuthSettings {
        let user_roles = self.user_roles(bad);
        let api_keys_file = not_empty(self.api_keys_file.as_deref()).map(PathBuf::from);
        let jwt_settings = [
            ("--jwt-key-file", &self.jwt_key_file),
            ("--jwt-algorithm", &self.jwt_algorithm),
            ("--jwt-issuer", &self.jwt_issuer),
            ("--jwt-audience", &self.jwt_audience),
        ];
        let jwt_settings = jwt_settings.map(|(flag, text)| (flag, not_empty(text.as_deref())));
        if jwt_settings.iter().all(|(_, text)| text.is_none()) {
            return AuthSettings { api_keys_file, jwt: None, user_roles };
        }
        let [key_file, algorithm, issuer, audience] = jwt_settings.map(|(flag, text)| {
            let missing = "must be given: JWTs need a key file, an algorithm, an issuer and an audience";
            bad.checked(flag, text.ok_or_else(|| missing.to_owned()))
        });
        let algorithm = algorithm.and_then(|text| {
            let problem = format!("must be HS256, RS256, ES256 or EdDSA; it is {text:?}");
            bad.checked("--jwt-algorithm", JwtAlgorithm::from_word(text).ok_or(problem))
        });
        let jwt = match (algorithm, key_file, issuer, audience) {
            (Some(algorithm), Some(key_file), Some(issuer), Some(audience)) => Some(JwtSettings {
                algorithm,
                key_file: PathBuf::from(key_file),
                issuer: issuer.to_owned(),
                audience: audience.to_owned(),
            }),
            _ => None,
        };
        AuthSettings { api_keys_file, jwt, user_roles }
    }

    fn connection_limits(&self, bad: &mut Bad) -> ConnectionLimits {
        let per_address = &self.max_connections_per_address;
        ConnectionLimits {
            total: bad.number("--max-connections", &self.max_connections, 1, 1_000_000),
            per_address: bad.number("--max-connections-per-address", per_address, 1, 1_000_000),
            proxies: bad.list("--proxies", &self.proxies, network),
            // hyper takes what it has in its buffer, which is no smaller.
            head_bytes: bad.number("--max-header-bytes", &self.max_header_bytes, 8192, 1 << 20),
            headers: bad.number("--max-headers", &self.max_headers, 20, 10_000),
        }
    }

    /// The certificate and key, if they are there and belong together.
    fn certificate_files(&self, bad: &mut Bad) -> Option<CertificateFiles> {
        match (not_empty(self.tls_cert_file.as_deref()), not_empty(self.tls_key_file.as_deref())) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                let files = CertificateFiles { certificate: PathBuf::from(certificate), key: PathBuf::from(key) };
                let loaded = files.load().map_err(|error| format!("cannot be used with the key file: {error}"));
                bad.checked("--tls-cert-file", loaded).map(|_| files)
            }
            (Some(_), None) => bad.checked("--tls-key-file", Err("must be given with --tls-cert-file".to_owned())),
            (None, Some(_)) => bad.checked("--tls-cert-file", Err("must be given with --tls-key-file".to_owned())),
        }
    }

    /// The Redis that was given, or the private one.
    fn redis(&self, bad: &mut Bad) -> Option<RedisSource> {
        if let Some(url) = not_empty(self.redis_url.as_deref()) {
            return bad.checked("--redis-url", RedisAddress::from_url(url)).map(RedisSource::Given);
        }
        let data_dir = match not_empty(self.data_dir.as_deref()) {
            Some(path) => Some(PathBuf::from(path)),
            None => bad.checked("--data-dir", default_data_dir()),
        };
        data_dir.map(|data_dir| RedisSource::Embedded {
            server: not_empty(self.redis_server.as_deref()).map(PathBuf::from),
            search_path: environment("PATH").unwrap_or_default(),
            data_dir,
        })
    }
}

/// A variable that is set to nothing is not set.
fn not_empty(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// Collects a line for each bad setting; the values that it returns for those are never used.
struct Bad(Vec<String>);

impl Bad {
    fn checked<T>(&mut self, flag: &str, checked: Result<T, String>) -> Option<T> {
        match checked {
            Ok(value) => Some(value),
            Err(problem) => {
                let variable = match flag {
                    "--redis-url" => "REDIS_URL".to_owned(),
                    "--otlp-endpoint" => "OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(),
                    _ => format!("SESSIOND_{}", flag.trim_start_matches('-').replace('-', "_").to_uppercase()),
                };
                self.0.push(format!("{flag} ({variable}) {problem}"));
                None
            }
        }
    }

    fn parsed<T: std::str::FromStr>(&mut self, flag: &str, text: &str, wanted: &str) -> Option<T> {
        self.checked(flag, text.parse().map_err(|_| format!("must be {wanted}; it is {text:?}")))
    }

    /// A duration with a unit, from 1 ms to 10 years.
    fn duration(&mut self, flag: &str, text: &str) -> Duration {
        const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);
        let checked = match humantime::parse_duration(text) {
            Ok(duration) if duration >= Duration::from_millis(1) && duration <= LONGEST => Ok(duration),
            Ok(_) => Err(format!("must be from 1ms to 10years; it is {text:?}")),
            Err(_) => Err(format!("must be a duration with a unit, such as 500ms, 30s, 5m or 24h; it is {text:?}")),
        };
        self.checked(flag, checked).unwrap_or_default()
    }

    fn number(&mut self, flag: &str, text: &str, least: usize, most: usize) -> usize {
        let checked = match text.parse() {
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            _ => Err(format!("must be a whole number from {least} to {most}; it is {text:?}")),
        };
        self.checked(flag, checked).unwrap_or(least)
    }

    /// A number of requests a second; `None` for 0, which is no limit.
    fn rate(&mut self, flag: &str, text: &str) -> Option<NonZeroU32> {
        NonZeroU32::new(u32::try_from(self.number(flag, text, 0, 1_000_000)).unwrap_or_default())
    }

    /// The parts between commas; spaces around them are nothing.
    fn list<T>(&mut self, flag: &str, text: &str, read: fn(&str) -> Result<T, String>) -> Vec<T> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        self.checked(flag, parts.map(read).collect()).unwrap_or_default()
    }

    fn identifier(&mut self, flag: &str, text: String) -> Option<Identifier> {
        self.checked(flag, Identifier::new(text).map_err(str::to_owned))
    }

    fn key_prefix(&mut self, text: String) -> String {
        let good = |character: char| character.is_ascii_alphanumeric() || "-_.:".contains(character);
        if text.is_empty() || text.len() > 64 || !text.chars().all(good) {
            let problem = format!("must be 1 to 64 letters, digits or -_.: ; it is {text:?}");
            self.checked::<()>("--key-prefix", Err(problem));
        }
        text
    }

    /// The URL of a collector.
    #[cfg(feature = "otel")]
    fn endpoint(&mut self, flag: &str, text: Option<&str>) -> Option<String> {
        let text = not_empty(text)?;
        let uri = text.parse::<Uri>().unwrap_or_default();
        let is_good = uri.scheme_str() == Some("http") && uri.query().is_none();
        let wanted =
            "must be a URL such as http://127.0.0.1:4318; not https, for which a collector next door is needed";
        self.checked(flag, if is_good { Ok(text.to_owned()) } else { Err(format!("{wanted}; it is {text:?}")) })
    }

    fn log_filter(&mut self, text: String) -> String {
        if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&text) {
            self.checked::<()>("--log", Err(format!("must be a filter such as info,sessiond=debug: {error}")));
        }
        text
    }
}

/// An address, or a network.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map_err(|_| format!("must be addresses or networks, such as 10.0.0.7 or 10.0.0.0/8; it has {text:?}"))
}

/// An origin as browsers send it (RFC 6454, 6.2): they are compared byte for byte.
fn origin(text: &str) -> Result<String, String> {
    let uri = text.parse::<Uri>().unwrap_or_default();
    let origin = match (uri.scheme_str(), uri.authority(), uri.path_and_query().map(PathAndQuery::as_str)) {
        (Some("https"), Some(authority), _) if authority.port_u16() == Some(443) => None,
        (Some("http"), Some(authority), _) if authority.port_u16() == Some(80) => None,
        (Some(scheme), Some(authority), Some("/") | None) if !authority.as_str().contains('@') => {
            Some(format!("{scheme}://{authority}").to_lowercase())
        }
        _ => None,
    };
    origin.filter(|origin| origin == text).ok_or_else(|| {
        let wanted =
            "must be origins as browsers send them: scheme and host in lower case, the port if it is not the usual one";
        format!("{wanted}, such as https://chat.example.com; it has {text:?}")
    })
}

/// A role of messages.
fn role(text: &str) -> Result<Role, String> {
    Role::from_word(text).ok_or_else(|| format!("must be roles of {}; it has {text:?}", Role::WORDS.join(", ")))
}

/// The name of a header. A browser would take `*` for every header.
fn header_name(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok().filter(|name| name.as_str() != "*");
    name.ok_or_else(|| format!("must be names of headers, such as X-Tenant,X-Correlation-Id; it has {text:?}"))
}

fn default_data_dir() -> Result<PathBuf, String> {
    let folder = environment("XDG_DATA_HOME").filter(|path| Path::new(path).is_absolute()).map(PathBuf::from);
    let folder = folder.or_else(|| environment("HOME").map(|home| Path::new(&home).join(".local/share")));
    match folder {
        Some(folder) => Ok(folder.join("sessiond")),
        None => Err("must be given: neither XDG_DATA_HOME nor HOME is set".to_owned()),
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn is_set_to_nothing(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| value.is_empty())
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
