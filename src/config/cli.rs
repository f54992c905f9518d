//! The command line: subcommands and their arguments.

use std::path::PathBuf;

use clap::{ArgGroup, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::{SettingsArgs, is_set_but_empty};
use crate::auth::{NewApiKey, Scope};

/// A session service for AI chat assistants
///
/// Finds the active session of a user of a business, or creates it, in one atomic step in Redis. Without a Redis URL,
/// the service starts an embedded Redis.
///
/// Every setting has a flag and an environment variable; the flag takes precedence. A duration has a unit: 500ms, 30s,
/// 5m, 24h, 30days.
#[derive(Parser)]
#[command(version, about, long_about, max_term_width = 120, after_help = EXAMPLES)]
pub struct Cli {
    /// The subcommand; `serve` if absent.
    #[command(subcommand)]
    pub command: Option<Subcommands>,
    /// The settings.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

impl Cli {
    /// Parses the arguments and environment variables of the program. A variable that is set but empty counts as not
    /// set.
    ///
    /// # Errors
    /// If parsing fails, or if the arguments ask for help or the version: the error is the text to show.
    pub fn from_environment() -> Result<Self, clap::Error> {
        let command = Self::command().mut_args(|argument| {
            let variable = argument.get_env().and_then(|name| name.to_str());
            let argument = argument.clone().allow_negative_numbers(argument.get_num_args().is_none());
            match variable {
                Some(name) if is_set_but_empty(name) => argument.env(None),
                _ => argument,
            }
        });
        Self::from_arg_matches(&command.try_get_matches()?)
    }
}

const EXAMPLES: &str = "\
Examples:
  sessiond                                             serve on 127.0.0.1:3000 with an embedded Redis
  REDIS_URL=redis://127.0.0.1:6379 sessiond            serve with an existing Redis
  sessiond --idle-timeout 1h check-config              print the resulting settings without serving
  sessiond audit                                       check the data of the embedded Redis without changing it
  REDIS_URL=redis://127.0.0.1:6379 sessiond audit      check the data of an existing Redis without changing it
  sessiond keygen --help                               how to create a credential for a caller
  curl -X POST http://127.0.0.1:3000/api/sessions -H 'Content-Type: application/json' \\
       -d '{\"businessId\":\"B0100001\",\"userId\":\"user_123\"}'";

/// The subcommands.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Subcommands {
    /// Serve the API (the default)
    Serve,
    /// Ask the running service on the --listen address whether it is ready; exit 0 if it is, 1 if not
    Healthcheck,
    /// Print the `OpenAPI` 3.1 document.
    #[command(about = "Print the OpenAPI 3.1 document")]
    Openapi,
    /// Check the settings and print the result without passwords; exit 2 if a setting is not valid
    CheckConfig,
    /// Check every invariant of the stored sessions; exit 0 if all hold, 1 if not, 2 if Redis cannot be read or the
    /// report cannot be written
    ///
    /// An audit is safe while services use the Redis: it reads at a bounded rate and checks each finding a second time.
    /// Pass the settings of the service. With an embedded Redis, stop the service first; the audit then reads a copy of
    /// the store, which needs as much disk space again, and changes no file. It also exits with 2 if that store is
    /// damaged or missing
    Audit(AuditArgs),
    /// Create an API key: print its entry for the key file on stdout, and the credential for the caller on stderr
    ///
    /// The entry contains only a hash. The credential is shown once and is not stored: give it to the caller, who sends
    /// it as `Authorization: Bearer <credential>` or `X-API-Key: <credential>`. It is shown only after the entry was
    /// written; exit 2 if either cannot be written.
    #[command(after_help = KEYGEN_EXAMPLES)]
    Keygen(KeygenArgs),
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages, one for the program and one for each subcommand
    Man {
        /// An existing directory
        directory: PathBuf,
    },
}

const KEYGEN_EXAMPLES: &str = "\
Examples:
  sessiond keygen --id orders --business B0100001 >> keys.toml      add a key for one business and show its credential
  sessiond keygen --all-businesses --scope read --expires 2027-01-31T00:00:00Z
                                                                    make a read-only key for all businesses that expires
A service with --api-keys-file keys.toml accepts a new key within 5 s of the change, and rejects a removed key as
quickly. To replace a key without downtime: add a second key, give its credential to the caller, remove the first.";

/// The API key to create.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(group = ArgGroup::new("businesses").required(true).args(["business", "all_businesses"]))]
pub struct KeygenArgs {
    /// Id of the key: 1 to 64 letters, digits, - or _ [default: a random id]
    #[arg(long, value_name = "TEXT")]
    id: Option<String>,
    /// A businessId that the key may access; repeat the flag for more businesses
    #[arg(long, value_name = "ID")]
    business: Vec<String>,
    /// Allow the key to access every business, including future ones
    #[arg(long)]
    all_businesses: bool,
    /// What the key may do; repeat the flag for more scopes. Erasing a user needs admin
    #[arg(long, value_enum, default_values = ["read", "write"])]
    scope: Vec<ScopeArg>,
    /// Time at which the key expires, in RFC 3339, such as 2027-01-31T00:00:00Z [default: never]
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
}

impl KeygenArgs {
    /// Converts the arguments to the key to create.
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

/// A scope of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ScopeArg {
    /// Read sessions and messages.
    Read,
    /// Create, change and delete sessions; append messages.
    Write,
    /// Erase users.
    Admin,
}

/// The arguments of `audit`.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditArgs {
    /// Format of the report
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
    /// Maximum number of keys and index entries to check per second
    #[arg(long, value_name = "COUNT", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_keys_per_second: u32,
    /// Repair what is safe to repair: remove entries and pointers to missing sessions, restore missing entries and
    /// pointers of existing sessions, set missing expiries. Everything else is reported and not changed; exit 0 if no
    /// finding remains. With an embedded Redis, the repair works on the store itself, not on a copy: like the service,
    /// it cuts off an unfinished write at the end of the store and keeps a copy of it
    #[arg(long)]
    pub repair: bool,
}

/// The format of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// Lines of text.
    Text,
    /// One JSON object.
    Json,
}
