//! Parses settings and collects one line for each bad one.

use std::num::NonZeroU32;
use std::time::Duration;

#[cfg(feature = "otel")]
use hyper::Uri;

#[cfg(feature = "otel")]
use super::not_empty;
use crate::session::Identifier;

/// Collects one line for each bad setting. The values that the methods return for bad settings are never used.
#[derive(Default)]
pub(super) struct SettingErrors(Vec<String>);

impl SettingErrors {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the configuration if every setting is valid, or the collected lines.
    pub(super) fn into_result<T>(self, config: Option<T>) -> Result<T, Vec<String>> {
        config.filter(|_| self.0.is_empty()).ok_or(self.0)
    }

    pub(super) fn checked<T>(&mut self, flag: &str, checked: Result<T, String>) -> Option<T> {
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

    pub(super) fn parsed<T: std::str::FromStr>(&mut self, flag: &str, text: &str, wanted: &str) -> Option<T> {
        self.checked(flag, text.parse().map_err(|_| format!("must be {wanted}; it is {text:?}")))
    }

    /// A duration with a unit, from 1 ms to 10 years.
    pub(super) fn duration(&mut self, flag: &str, text: &str) -> Duration {
        self.duration_of(flag, text, false, "from 1ms to 10years")
    }

    /// A duration with a unit, from 1 ms to 10 years, or zero.
    pub(super) fn duration_or_zero(&mut self, flag: &str, text: &str) -> Duration {
        self.duration_of(flag, text, true, "0, or from 1ms to 10years")
    }

    fn duration_of(&mut self, flag: &str, text: &str, may_be_zero: bool, wanted: &str) -> Duration {
        const SHORTEST: Duration = Duration::from_millis(1);
        const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);
        let parsed = if text == "0" { Ok(Duration::ZERO) } else { humantime::parse_duration(text) };
        let checked = match parsed {
            Ok(duration) if (SHORTEST..=LONGEST).contains(&duration) || (may_be_zero && duration.is_zero()) => {
                Ok(duration)
            }
            Ok(_) => Err(format!("must be {wanted}; it is {text:?}")),
            Err(_) => Err(format!("must be a duration with a unit, such as 500ms, 30s, 5m or 24h; it is {text:?}")),
        };
        self.checked(flag, checked).unwrap_or_default()
    }

    pub(super) fn number(&mut self, flag: &str, text: &str, min: usize, max: usize) -> usize {
        let checked = match text.parse() {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            _ => Err(format!("must be a whole number from {min} to {max}; it is {text:?}")),
        };
        self.checked(flag, checked).unwrap_or(min)
    }

    /// A number of requests per second; `None` for 0, which means no limit.
    pub(super) fn rate(&mut self, flag: &str, text: &str) -> Option<NonZeroU32> {
        NonZeroU32::new(u32::try_from(self.number(flag, text, 0, 1_000_000)).unwrap_or_default())
    }

    /// A comma-separated list. Spaces around the items and empty items are ignored.
    pub(super) fn list<T>(&mut self, flag: &str, text: &str, read: fn(&str) -> Result<T, String>) -> Vec<T> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        self.checked(flag, parts.map(read).collect()).unwrap_or_default()
    }

    pub(super) fn identifier(&mut self, flag: &str, text: &str) -> Option<Identifier> {
        self.checked(flag, Identifier::new(text).map_err(str::to_owned))
    }

    pub(super) fn key_prefix(&mut self, text: String) -> String {
        let good = |character: char| character.is_ascii_alphanumeric() || "-_.:".contains(character);
        if text.is_empty() || text.len() > 64 || !text.chars().all(good) {
            let problem = format!("must be 1 to 64 letters, digits or -_.: ; it is {text:?}");
            self.checked::<()>("--key-prefix", Err(problem));
        }
        text
    }

    /// The URL of a collector.
    #[cfg(feature = "otel")]
    pub(super) fn endpoint(&mut self, flag: &str, text: Option<&str>) -> Option<String> {
        let text = not_empty(text)?;
        let uri = text.parse::<Uri>().unwrap_or_default();
        // The URL is shown by check-config and logged, so it must not have a password.
        let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        let is_good = uri.scheme_str() == Some("http") && uri.query().is_none() && !has_user;
        let wanted = "must be a URL such as http://127.0.0.1:4318, without a user, a password or a query; https is not \
                      supported: run a collector on this machine";
        let shown = if text.contains('@') { String::new() } else { format!("; it is {text:?}") };
        self.checked(flag, if is_good { Ok(text.to_owned()) } else { Err(format!("{wanted}{shown}")) })
    }

    pub(super) fn log_filter(&mut self, text: String) -> String {
        if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&text) {
            self.checked::<()>("--log", Err(format!("must be a filter such as info,sessiond=debug: {error}")));
        }
        text
    }
}
