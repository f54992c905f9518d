//! Settings for the log and traces.

use clap::Args;

use super::setting_errors::SettingErrors;

/// The settings as text.
#[derive(Args, Clone)]
pub(super) struct ObservabilityArgs {
    /// URL of the `OpenTelemetry` collector that receives spans by OTLP, such as `http://127.0.0.1:4318`
    /// [default: none]
    #[cfg(feature = "otel")]
    #[arg(long, global = true, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Log filter, such as `info,sessiond=debug`: a level, and levels per target
    #[arg(long, global = true, env = "SESSIOND_LOG", value_name = "FILTER", default_value = "info,fred=error")]
    log: String,
}

/// The checked settings for the log and traces.
#[derive(Clone, Debug)]
pub struct ObservabilityConfig {
    /// URL of the collector that receives spans.
    #[cfg(feature = "otel")]
    pub otlp_endpoint: Option<String>,
    /// The log filter.
    pub log: String,
}

impl ObservabilityArgs {
    pub(super) fn check(&self, errors: &mut SettingErrors) -> ObservabilityConfig {
        ObservabilityConfig {
            #[cfg(feature = "otel")]
            otlp_endpoint: errors.endpoint("--otlp-endpoint", self.otlp_endpoint.as_deref()),
            log: errors.log_filter(self.log.clone()),
        }
    }
}
