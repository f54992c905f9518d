//! The settings: one file per area, each setting with its flag, environment variable, default and unit.
//!
//! No other module reads the environment.

mod auth;
mod cli;
mod connections;
mod console;
mod observability;
mod redis;
mod requests;
mod sessions;
mod setting_errors;

use clap::Args;

pub use self::auth::AuthConfig;
pub use self::cli::{AuditArgs, Cli, KeygenArgs, ReportFormat, Subcommands};
pub use self::connections::{ConnectionConfig, ConnectionLimits};
pub use self::console::ConsoleConfig;
pub use self::observability::ObservabilityConfig;
pub use self::redis::{RedisConfig, RedisSource};
pub use self::requests::{CorsConfig, RequestConfig};
pub use self::sessions::SessionConfig;
use self::setting_errors::SettingErrors;

/// The settings as text. [`SettingsArgs::check`] checks all of them and reports every bad one at once.
#[derive(Args, Clone)]
pub struct SettingsArgs {
    #[command(flatten)]
    connections: connections::ConnectionArgs,
    #[command(flatten)]
    auth: auth::AuthArgs,
    #[command(flatten)]
    redis: redis::RedisArgs,
    #[command(flatten)]
    sessions: sessions::SessionArgs,
    #[command(flatten)]
    requests: requests::RequestArgs,
    #[command(flatten)]
    console: console::ConsoleArgs,
    #[command(flatten)]
    observability: observability::ObservabilityArgs,
}

/// The checked settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The listeners and their connections.
    pub connections: ConnectionConfig,
    /// Credentials and rate limits.
    pub auth: AuthConfig,
    /// The Redis that holds the sessions.
    pub redis: RedisConfig,
    /// Sessions and messages.
    pub sessions: SessionConfig,
    /// Requests: concurrency, sizes, CORS and the deadline.
    pub requests: RequestConfig,
    /// The console.
    pub console: ConsoleConfig,
    /// The log and traces.
    pub observability: ObservabilityConfig,
}

impl SettingsArgs {
    /// Checks every setting.
    ///
    /// # Errors
    /// Returns one line for each bad setting.
    pub fn check(self) -> Result<Config, Vec<String>> {
        let mut errors = SettingErrors::default();
        let connections = self.connections.check(&mut errors);
        let auth = self.auth.check(&mut errors);
        let redis = self.redis.check(&mut errors);
        let sessions = self.sessions.check(&mut errors);
        let requests = self.requests.check(&mut errors);
        let console = self.console.check(&mut errors);
        let observability = self.observability.check(&mut errors);
        let config = connections.zip(redis).zip(sessions).map(|((connections, redis), sessions)| Config {
            connections,
            auth,
            redis,
            sessions,
            requests,
            console,
            observability,
        });
        errors.into_result(config)
    }
}

/// Returns `None` for an empty text: a variable that is set but empty counts as not set.
fn not_empty(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

#[expect(clippy::disallowed_methods, reason = "only this module reads the environment")]
fn is_set_but_empty(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| value.is_empty())
}

#[expect(clippy::disallowed_methods, reason = "only this module reads the environment")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
