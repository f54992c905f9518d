//! Settings for credentials and rate limits.

use std::path::PathBuf;

use clap::Args;

use super::not_empty;
use super::setting_errors::SettingErrors;
use crate::auth::{CredentialConfig, JwtAlgorithm, JwtConfig, RateConfig};
use crate::session::Role;

/// The settings as text.
#[derive(Args, Clone)]
pub(super) struct AuthArgs {
    /// TOML file with the accepted API keys; `sessiond keygen` makes its entries. Reloaded when it changes
    /// [default: none]
    #[arg(long, global = true, env = "SESSIOND_API_KEYS_FILE", value_name = "FILE")]
    api_keys_file: Option<String>,
    /// File with the key that verifies JWTs: a secret of at least 32 bytes (HS256), a public key in PEM, or a JWK set
    /// (the kid of a token selects its key). Reloaded when it changes. Requires the other three --jwt settings
    /// [default: none]
    #[arg(long, global = true, env = "SESSIOND_JWT_KEY_FILE", value_name = "FILE")]
    jwt_key_file: Option<String>,
    /// Signature algorithm of JWTs: `HS256`, `RS256`, `ES256` or `EdDSA`. Tokens with another algorithm are rejected
    /// [default: none]
    #[arg(long, global = true, env = "SESSIOND_JWT_ALGORITHM", value_name = "NAME")]
    jwt_algorithm: Option<String>,
    /// Required value of the iss claim of a JWT [default: none]
    #[arg(long, global = true, env = "SESSIOND_JWT_ISSUER", value_name = "TEXT")]
    jwt_issuer: Option<String>,
    /// Value that the aud claim of a JWT must equal or contain [default: none]
    #[arg(long, global = true, env = "SESSIOND_JWT_AUDIENCE", value_name = "TEXT")]
    jwt_audience: Option<String>,
    /// Allow the service to run without credentials on an address that other machines can reach
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
    /// Maximum number of requests per second for one API key, or for all tokens of one business together. A burst may
    /// use five seconds' worth at once. Each process counts separately. 0 for no limit
    #[arg(long, global = true, env = "SESSIOND_RATE_LIMIT", value_name = "COUNT", default_value = "2000")]
    rate_limit: String,
    /// Maximum number of requests per second for one user with a token, with the same burst. 0 for no limit
    #[arg(long, global = true, env = "SESSIOND_USER_RATE_LIMIT", value_name = "COUNT", default_value = "100")]
    user_rate_limit: String,
    /// Comma-separated roles (user, assistant, system, tool) of the messages that the token of one user may append and
    /// redact. API keys and tokens of a whole business may append and redact messages of every role
    #[arg(long, global = true, env = "SESSIOND_USER_ROLES", value_name = "ROLES", default_value = "user")]
    user_roles: String,
}

/// The checked settings for credentials and rate limits.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// The files and rules that credentials are checked against.
    pub credentials: CredentialConfig,
    /// Whether the service may run without credentials on an address that other machines can reach.
    pub allow_unauthenticated: bool,
    /// The rate limits.
    pub rates: RateConfig,
    /// The roles of the messages that the token of one user may append and redact.
    pub user_roles: Vec<Role>,
}

impl AuthArgs {
    pub(super) fn check(&self, errors: &mut SettingErrors) -> AuthConfig {
        AuthConfig {
            credentials: self.credentials(errors),
            allow_unauthenticated: errors
                .parsed("--allow-unauthenticated", &self.allow_unauthenticated, "true or false")
                .unwrap_or_default(),
            rates: self.rates(errors),
            user_roles: self.user_roles(errors),
        }
    }

    /// Checks the credential settings. JWTs need a key, an issuer and an audience together: without the last two, the
    /// service would accept tokens that were issued for other services.
    fn credentials(&self, errors: &mut SettingErrors) -> CredentialConfig {
        let api_keys_file = not_empty(self.api_keys_file.as_deref()).map(PathBuf::from);
        let jwt_settings = [
            ("--jwt-key-file", &self.jwt_key_file),
            ("--jwt-algorithm", &self.jwt_algorithm),
            ("--jwt-issuer", &self.jwt_issuer),
            ("--jwt-audience", &self.jwt_audience),
        ];
        let jwt_settings = jwt_settings.map(|(flag, text)| (flag, not_empty(text.as_deref())));
        if jwt_settings.iter().all(|(_, text)| text.is_none()) {
            return CredentialConfig { api_keys_file, jwt: None };
        }
        let [key_file, algorithm, issuer, audience] = jwt_settings.map(|(flag, text)| {
            let missing = "is required: JWTs need a key file, an algorithm, an issuer and an audience";
            errors.checked(flag, text.ok_or_else(|| missing.to_owned()))
        });
        let algorithm = algorithm.and_then(|text| {
            let problem = format!("must be HS256, RS256, ES256 or EdDSA; it is {text:?}");
            errors.checked("--jwt-algorithm", JwtAlgorithm::from_word(text).ok_or(problem))
        });
        let jwt = match (algorithm, key_file, issuer, audience) {
            (Some(algorithm), Some(key_file), Some(issuer), Some(audience)) => Some(JwtConfig {
                algorithm,
                key_file: PathBuf::from(key_file),
                issuer: issuer.to_owned(),
                audience: audience.to_owned(),
            }),
            _ => None,
        };
        CredentialConfig { api_keys_file, jwt }
    }

    fn user_roles(&self, errors: &mut SettingErrors) -> Vec<Role> {
        let problems = errors.len();
        let roles = errors.list("--user-roles", &self.user_roles, role);
        if roles.is_empty() && errors.len() == problems {
            errors.checked::<()>("--user-roles", Err(format!("must name a role: {}", Role::WORDS.join(", "))));
        }
        roles
    }

    fn rates(&self, errors: &mut SettingErrors) -> RateConfig {
        RateConfig {
            credential_per_second: errors.rate("--rate-limit", &self.rate_limit),
            user_per_second: errors.rate("--user-rate-limit", &self.user_rate_limit),
        }
    }
}

/// Parses a message role.
fn role(text: &str) -> Result<Role, String> {
    Role::from_word(text).ok_or_else(|| format!("must list roles from {}; it has {text:?}", Role::WORDS.join(", ")))
}
