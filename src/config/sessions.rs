//! Settings for sessions and messages.

use std::time::Duration;

use clap::Args;

use super::not_empty;
use super::setting_errors::SettingErrors;
use crate::session::{APPEND_MESSAGES_MAX, Identifier, Lifecycle};

/// More than the difference between clocks that NTP keeps in sync, and too short for users to notice.
const CLOCK_SKEW_MAX_DEFAULT: Duration = Duration::from_secs(30);

/// A writer renews its lease by calls over the network, so shorter leases would expire by network delays.
const TURN_LEASE_MIN: Duration = Duration::from_secs(1);

/// The settings as text.
#[derive(Args, Clone)]
pub(super) struct SessionArgs {
    /// Time without activity after which a session expires
    #[arg(long, global = true, env = "SESSIOND_IDLE_TIMEOUT", value_name = "DURATION", default_value = "30m")]
    idle_timeout: String,
    /// Time after its creation or last resume at which a session expires, even if it is in use
    #[arg(long, global = true, env = "SESSIOND_MAX_LIFETIME", value_name = "DURATION", default_value = "24h")]
    max_lifetime: String,
    /// Time for which a session stays readable after its end
    #[arg(long, global = true, env = "SESSIOND_RETENTION", value_name = "DURATION", default_value = "30days")]
    retention: String,
    /// Resolution at which activity is recorded: a get-or-create or heartbeat within it writes nothing, and expiries
    /// move by at least this. At most half of the idle timeout; 0 to write always [default: 60s, or a twentieth of the
    /// idle timeout if that is less]
    #[arg(long, global = true, env = "SESSIOND_ACTIVITY_RESOLUTION", value_name = "DURATION")]
    activity_resolution: Option<String>,
    /// Maximum difference between the clocks of the service and of Redis. Beyond it, creates, changes and appends are
    /// rejected with 503, and the service is not ready. At most a quarter of the idle timeout, of the maximum lifetime
    /// and of the retention. 0 for no limit [default: 30s, or that quarter if it is less]
    #[arg(long, global = true, env = "SESSIOND_MAX_CLOCK_SKEW", value_name = "DURATION")]
    max_clock_skew: Option<String>,
    /// locationId of sessions that are created without one
    #[arg(long, global = true, env = "SESSIOND_DEFAULT_LOCATION_ID", value_name = "TEXT", default_value = "L0100001")]
    default_location_id: String,
    /// sessionType of sessions that are created without one
    #[arg(long, global = true, env = "SESSIOND_DEFAULT_SESSION_TYPE", value_name = "TEXT", default_value = "general")]
    default_session_type: String,
    /// Number of newest messages that are kept per session, at least 100; appends remove older messages
    #[arg(long, global = true, env = "SESSIOND_MESSAGES_KEPT", value_name = "COUNT", default_value = "10000")]
    messages_kept: String,
    /// Bytes of newest messages that are kept per session, as JSON; an append removes older messages, but none of its
    /// own
    #[arg(long, global = true, env = "SESSIOND_MAX_SESSION_BYTES", value_name = "BYTES", default_value = "33554432")]
    max_session_bytes: String,
    /// Number of newest sessions that are kept per user; creates remove older sessions with their messages
    #[arg(long, global = true, env = "SESSIOND_MAX_SESSIONS_PER_USER", value_name = "COUNT", default_value = "1000")]
    max_sessions_per_user: String,
    /// How long the writer of a turn may be silent before others may close the turn as lost; every call of the writer
    /// renews it. At least 1s
    #[arg(long, global = true, env = "SESSIOND_TURN_LEASE", value_name = "DURATION", default_value = "30s")]
    turn_lease: String,
    /// Maximum bytes of all chunks of a turn, as JSON
    #[arg(long, global = true, env = "SESSIOND_MAX_TURN_BYTES", value_name = "BYTES", default_value = "1048576")]
    max_turn_bytes: String,
    /// Maximum number of users whose session id the process remembers, so that resuming the session needs no script;
    /// about 60 bytes per user. 0 to disable
    #[arg(long, global = true, env = "SESSIOND_HINT_CACHE_SIZE", value_name = "COUNT", default_value = "100000")]
    hint_cache_size: String,
    /// Maximum size in bytes of the metadata of a session or message, as JSON
    #[arg(long, global = true, env = "SESSIOND_MAX_METADATA_BYTES", value_name = "BYTES", default_value = "16384")]
    max_metadata_bytes: String,
    /// Maximum size in bytes of the content of a message, as JSON
    #[arg(long, global = true, env = "SESSIOND_MAX_CONTENT_BYTES", value_name = "BYTES", default_value = "262144")]
    max_content_bytes: String,
}

/// The checked settings for sessions and messages.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The timeouts and the retention of sessions.
    pub lifecycle: Lifecycle,
    /// Maximum difference between the clocks of the service and of Redis; `None` for no limit.
    pub clock_skew_max: Option<Duration>,
    /// `locationId` of sessions that are created without one.
    pub default_location_id: Identifier,
    /// `sessionType` of sessions that are created without one.
    pub default_session_type: Identifier,
    /// Number of newest messages that are kept per session.
    pub messages_kept: usize,
    /// Bytes of newest messages that are kept per session, as JSON.
    pub session_bytes_max: usize,
    /// Number of newest sessions that are kept per user.
    pub sessions_per_user_max: usize,
    /// How long the writer of a turn may be silent.
    pub turn_lease: Duration,
    /// Maximum bytes of all chunks of a turn, as JSON.
    pub turn_bytes_max: usize,
    /// Maximum number of users whose session id the process remembers.
    pub hint_cache_size: usize,
    /// Maximum bytes of metadata, as JSON.
    pub metadata_bytes_max: usize,
    /// Maximum bytes of a message's content, as JSON.
    pub content_bytes_max: usize,
}

impl SessionArgs {
    pub(super) fn check(&self, errors: &mut SettingErrors) -> Option<SessionConfig> {
        let lifecycle = self.lifecycle(errors);
        let clock_skew_max = self.clock_skew_max(errors, &lifecycle);
        let default_location_id = errors.identifier("--default-location-id", &self.default_location_id);
        let default_session_type = errors.identifier("--default-session-type", &self.default_session_type);
        let messages_kept = errors.number("--messages-kept", &self.messages_kept, APPEND_MESSAGES_MAX, 1_000_000);
        let session_bytes_max = errors.number("--max-session-bytes", &self.max_session_bytes, 1, 1 << 30);
        let sessions_per_user_max = errors.number("--max-sessions-per-user", &self.max_sessions_per_user, 1, 1_000_000);
        let turn_lease = errors.duration("--turn-lease", &self.turn_lease);
        if turn_lease < TURN_LEASE_MIN && !turn_lease.is_zero() {
            errors.checked::<()>("--turn-lease", Err("must be at least 1s".to_owned()));
        }
        let turn_bytes_max = errors.number("--max-turn-bytes", &self.max_turn_bytes, 1, 16 << 20);
        let hint_cache_size = errors.number("--hint-cache-size", &self.hint_cache_size, 0, 100_000_000);
        let metadata_bytes_max = errors.number("--max-metadata-bytes", &self.max_metadata_bytes, 2, 1 << 30);
        let content_bytes_max = errors.number("--max-content-bytes", &self.max_content_bytes, 2, 1 << 30);
        Some(SessionConfig {
            lifecycle,
            clock_skew_max,
            default_location_id: default_location_id?,
            default_session_type: default_session_type?,
            messages_kept,
            session_bytes_max,
            sessions_per_user_max,
            turn_lease,
            turn_bytes_max,
            hint_cache_size,
            metadata_bytes_max,
            content_bytes_max,
        })
    }

    fn lifecycle(&self, errors: &mut SettingErrors) -> Lifecycle {
        let idle_timeout = errors.duration("--idle-timeout", &self.idle_timeout);
        Lifecycle {
            idle_timeout,
            max_lifetime: errors.duration("--max-lifetime", &self.max_lifetime),
            retention: errors.duration("--retention", &self.retention),
            activity_resolution: self.activity_resolution(errors, idle_timeout),
        }
    }

    fn activity_resolution(&self, errors: &mut SettingErrors, idle_timeout: Duration) -> Duration {
        let resolution = match &self.activity_resolution {
            Some(text) => errors.duration_or_zero("--activity-resolution", text),
            None => (idle_timeout / 20).min(Duration::from_secs(60)),
        };
        if resolution > idle_timeout / 2 && !idle_timeout.is_zero() {
            let problem = "must be at most half of the idle timeout, or sessions in use would expire";
            errors.checked::<()>("--activity-resolution", Err(problem.to_owned()));
        }
        resolution
    }

    /// Checks the limit of the clock skew. The clocks of two services may differ by twice this limit (at most half of
    /// the idle timeout), and their knowledge of activity by the activity resolution (at most the other half). So no
    /// service treats a session as expired that is in use. At least three quarters of the retention always remain.
    fn clock_skew_max(&self, errors: &mut SettingErrors, lifecycle: &Lifecycle) -> Option<Duration> {
        let Lifecycle { idle_timeout, max_lifetime, retention, .. } = *lifecycle;
        let quarter = idle_timeout.min(max_lifetime).min(retention) / 4;
        let skew = match not_empty(self.max_clock_skew.as_deref()) {
            Some(text) => errors.duration_or_zero("--max-clock-skew", text),
            None => quarter.min(CLOCK_SKEW_MAX_DEFAULT),
        };
        if skew.is_zero() {
            return None;
        }
        if skew > quarter && !quarter.is_zero() {
            let problem = "must be at most a quarter of the idle timeout, the maximum lifetime and the retention, or \
                           sessions in use would expire; or 0 for no limit";
            errors.checked::<()>("--max-clock-skew", Err(problem.to_owned()));
        }
        Some(skew)
    }
}
