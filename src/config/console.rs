//! Settings for the console.

use clap::Args;

use super::not_empty;
use super::setting_errors::SettingErrors;

/// Maximum number of characters of the label.
const LABEL_CHARS_MAX: usize = 40;

/// The settings as text.
#[derive(Args, Clone)]
pub(super) struct ConsoleArgs {
    /// Do not serve the console, the page at /console/
    #[arg(
        long,
        global = true,
        env = "SESSIOND_NO_CONSOLE",
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true"
    )]
    no_console: String,
    /// Name of the environment that the console shows, such as `production`; at most 40 characters. It determines the
    /// colour of the bar at the top [default: none]
    #[arg(long, global = true, env = "SESSIOND_CONSOLE_LABEL", value_name = "TEXT")]
    console_label: Option<String>,
}

/// The checked settings for the console.
#[derive(Clone, Debug)]
pub struct ConsoleConfig {
    /// Whether the console is served.
    pub is_enabled: bool,
    /// The name of the environment.
    pub label: Option<String>,
}

impl ConsoleArgs {
    pub(super) fn check(&self, errors: &mut SettingErrors) -> ConsoleConfig {
        let no_console = errors.parsed("--no-console", &self.no_console, "true or false");
        let label = not_empty(self.console_label.as_deref()).and_then(|text| {
            let is_good = text.chars().count() <= LABEL_CHARS_MAX && !text.chars().any(char::is_control);
            let problem = format!("must be at most {LABEL_CHARS_MAX} characters without control characters");
            errors.checked("--console-label", is_good.then(|| text.to_owned()).ok_or(problem))
        });
        ConsoleConfig { is_enabled: no_console != Some(true), label }
    }
}
