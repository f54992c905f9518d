//! JSON Web Tokens (RFC 7519), for users in browsers. The service that authenticates the users signs them.
//!
//! The algorithm is a setting and is not read from the token. So an unsigned token is never accepted, and a public key
//! is never used as a shared secret. `ring`, which TLS needs anyway, verifies the signatures.

use std::fmt;
use std::path::PathBuf;

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::signature::{Error as SignatureError, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Validation, decode, decode_header};
use ring::{hmac, signature};
use serde::{Deserialize, Deserializer};

use super::{AuthError, Fingerprint, Grant, Scope, businesses};
use crate::session::{Identifier, TenantScope, Timestamp};

/// Longer tokens are rejected unread, although the limit of request headers would allow them.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Accepted difference between the clocks of the signer and of this service, in seconds.
const LEEWAY_SECS: f64 = 30.0;
/// RFC 7518, section 3.2: the key must be at least as long as the hash output.
const SECRET_BYTES_MIN: usize = 32;
/// RFC 7518, section 3.3: at least 2048 bits.
const RSA_BYTES_MIN: usize = 2048 / 8;
/// An uncompressed point of P-256, and a public key of Ed25519.
const P256_BYTES: usize = 65;
const ED25519_BYTES: usize = 32;

/// The signature algorithm of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JwtAlgorithm {
    /// HMAC with SHA-256: the signer and this service share one secret.
    Hs256,
    /// RSA with SHA-256, PKCS #1 v1.5.
    Rs256,
    /// ECDSA with P-256 and SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl JwtAlgorithm {
    /// Every algorithm.
    pub const ALL: [Self; 4] = [Self::Hs256, Self::Rs256, Self::Es256, Self::EdDsa];

    /// Its name (RFC 7518, RFC 8037).
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// Parses the name of an algorithm.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == word)
    }

    fn algorithm(self) -> Algorithm {
        match self {
            Self::Hs256 => Algorithm::HS256,
            Self::Rs256 => Algorithm::RS256,
            Self::Es256 => Algorithm::ES256,
            Self::EdDsa => Algorithm::EdDSA,
        }
    }
}

/// The key and rules that tokens are checked against.
#[derive(Clone, Debug)]
pub struct JwtConfig {
    /// The only accepted algorithm.
    pub algorithm: JwtAlgorithm,
    /// The file of the secret, the public key, or the key set.
    pub key_file: PathBuf,
    /// The required value of `iss`.
    pub issuer: String,
    /// The value that `aud` must equal or contain.
    pub audience: String,
}

/// The keys of one key file.
pub(super) struct JwtKeys {
    algorithm: JwtAlgorithm,
    validation: Validation,
    /// Each key with its `kid`, if it has one.
    keys: Vec<(Option<String>, DecodingKey)>,
    /// Whether the file is a JWK set, in which the `kid` of a token selects the key.
    is_set: bool,
}

impl fmt::Display for JwtKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = if self.keys.len() == 1 { "key" } else { "keys" };
        write!(formatter, "{} {keys} for JWTs of {}", self.keys.len(), self.algorithm.as_str())
    }
}

/// The claims of a token, without `iss` and `aud`. A token with a claim of the wrong type is rejected.
#[derive(Deserialize)]
struct Claims {
    exp: f64,
    #[serde(default, deserialize_with = "some")]
    nbf: Option<f64>,
    #[serde(rename = "businessId")]
    business_id: String,
    #[serde(default, deserialize_with = "some")]
    sub: Option<String>,
    #[serde(default, deserialize_with = "some")]
    scope: Option<ScopeClaim>,
    /// Microsoft Entra ID and Okta send `scope` under this name.
    #[serde(default, deserialize_with = "some")]
    scp: Option<ScopeClaim>,
}

/// Scopes, as one space-separated text (RFC 8693, section 4.2) or as a list of texts.
#[derive(Deserialize)]
#[serde(untagged)]
enum ScopeClaim {
    Text(String),
    List(Vec<String>),
}

impl ScopeClaim {
    /// The scopes of this service. Scopes of other services are ignored.
    fn scopes(&self) -> Vec<Scope> {
        match self {
            Self::Text(words) => words.split(' ').filter_map(Scope::from_word).collect(),
            Self::List(words) => words.iter().filter_map(|word| Scope::from_word(word)).collect(),
        }
    }
}

impl Claims {
    /// The scopes of the token: those that both claims contain, or those of the only claim. Without either claim, read
    /// and write.
    fn scopes(&self) -> Vec<Scope> {
        match (&self.scope, &self.scp) {
            (None, None) => vec![Scope::Read, Scope::Write],
            (Some(only), None) | (None, Some(only)) => only.scopes(),
            (Some(scope), Some(scp)) => {
                let scp = scp.scopes();
                scope.scopes().into_iter().filter(|scope| scp.contains(scope)).collect()
            }
        }
    }
}

/// Deserializes a claim that may be absent but not null.
fn some<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl JwtKeys {
    /// Parses a key file.
    ///
    /// # Errors
    /// Returns one line for each problem. No line contains a value of the file, which may be a secret.
    pub(super) fn parse(config: &JwtConfig, content: &[u8]) -> Result<Self, Vec<String>> {
        // Fails if the process has a provider already; any provider works.
        let _ = PROVIDER.install_default();
        let algorithm = config.algorithm;
        let is_set = content.trim_ascii_start().first() == Some(&b'{');
        let keys = if is_set {
            keys_of_set(algorithm, content)?
        } else {
            vec![(None, single_key(algorithm, content).map_err(|problem| vec![problem.to_owned()])?)]
        };
        let mut validation = Validation::new(algorithm.algorithm());
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.set_issuer(&[&config.issuer]);
        validation.set_audience(&[&config.audience]);
        // `check_times` checks both: the crate would read the system clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        Ok(Self { algorithm, validation, keys, is_set })
    }

    /// The grant of a token.
    pub(super) fn grant(&self, token: &str, now: Timestamp) -> Result<Grant, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::Invalid);
        }
        let header = decode_header(token).map_err(invalid)?;
        // RFC 7515, section 4.1.11: a token with critical extensions must be rejected unless all of them are supported.
        if header.crit.is_some() {
            return Err(AuthError::Invalid);
        }
        let key = self.key(header.kid.as_deref()).ok_or(AuthError::Invalid)?;
        let claims = decode::<Claims>(token, key, &self.validation).map_err(invalid)?.claims;
        check_times(&claims, now)?;
        granted(claims)
    }

    fn key(&self, kid: Option<&str>) -> Option<&DecodingKey> {
        let found = match (kid, self.keys.as_slice()) {
            // A single key verifies every token, unless it is of a set and the token names another `kid`.
            (None, [only]) => Some(only),
            (_, [only]) if !self.is_set => Some(only),
            (None, _) => None,
            (Some(kid), keys) => keys.iter().find(|(known, _)| known.as_deref() == Some(kid)),
        };
        found.map(|(_, key)| key)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn invalid(error: Error) -> AuthError {
    // Logs only the kind of the error: JSON errors quote values of the token.
    let problem = match error.kind() {
        ErrorKind::Json(_) => "Json",
        ErrorKind::InvalidSignature => "InvalidSignature",
        ErrorKind::InvalidAlgorithm => "InvalidAlgorithm",
        ErrorKind::InvalidIssuer => "InvalidIssuer",
        ErrorKind::InvalidAudience => "InvalidAudience",
        ErrorKind::MissingRequiredClaim(_) => "MissingRequiredClaim",
        _ => "InvalidToken",
    };
    tracing::debug!(problem, "rejected a token");
    AuthError::Invalid
}

fn check_times(claims: &Claims, now: Timestamp) -> Result<(), AuthError> {
    #[expect(clippy::cast_precision_loss, reason = "f64 represents milliseconds exactly until the year 287396")]
    let now_secs = now.0 as f64 / 1000.0;
    if now_secs >= claims.exp + LEEWAY_SECS {
        return Err(AuthError::Expired);
    }
    match claims.nbf {
        Some(nbf) if now_secs + LEEWAY_SECS < nbf => Err(AuthError::Invalid),
        _ => Ok(()),
    }
}

/// The grant of a verified token.
fn granted(claims: Claims) -> Result<Grant, AuthError> {
    let scopes = claims.scopes();
    #[expect(clippy::cast_possible_truncation, reason = "a later time saturates")]
    let valid_until = Timestamp(((claims.exp + LEEWAY_SECS) * 1000.0) as i64);
    let business_id = Identifier::new(claims.business_id).map_err(|_| AuthError::Invalid)?;
    let user_id = claims.sub.map(Identifier::new).transpose().map_err(|_| AuthError::Invalid)?;
    let credential = Some(Fingerprint::of("jwt", business_id.as_str()));
    let subject = user_id.as_ref().map(|user_id| Fingerprint::of(business_id.as_str(), user_id.as_str()));
    let tenant_scope = if scopes.contains(&Scope::Admin) {
        businesses(&[business_id.as_str()]).ok_or(AuthError::Invalid)?
    } else {
        // A token without the scope `admin` must name its user.
        TenantScope::User { business_id, user_id: user_id.ok_or(AuthError::Invalid)? }
    };
    Ok(Grant { tenant_scope, scopes, credential, subject, valid_until: Some(valid_until) })
}

/// The key of a file that is not a JWK set: a secret, or a public key in PEM.
fn single_key(algorithm: JwtAlgorithm, content: &[u8]) -> Result<DecodingKey, &'static str> {
    let content = content.trim_ascii();
    let is_pem = content.starts_with(b"-----BEGIN");
    if content.windows(11).any(|window| window == b"PRIVATE KEY") {
        return Err("is a private key, which only the signer may have: use the public key");
    }
    let key = match algorithm {
        JwtAlgorithm::Hs256 if is_pem => return Err("is a key in PEM: HS256 needs the secret of the signer"),
        JwtAlgorithm::Hs256 => Ok(DecodingKey::from_secret(content)),
        JwtAlgorithm::Rs256 => DecodingKey::from_rsa_pem(content),
        JwtAlgorithm::Es256 => DecodingKey::from_ec_pem(content),
        JwtAlgorithm::EdDsa => DecodingKey::from_ed_pem(content),
    };
    checked(algorithm, key)
}

/// Checks that the key has the length that the algorithm requires.
fn checked(algorithm: JwtAlgorithm, key: Result<DecodingKey, Error>) -> Result<DecodingKey, &'static str> {
    let key = key.map_err(|_| "has no public key for this algorithm, in PEM or as a JWK set")?;
    let length = match key.kind() {
        DecodingKeyKind::SecretOrDer(bytes) => bytes.len(),
        DecodingKeyKind::RsaModulusExponent { n, .. } => n.len(),
    };
    match algorithm {
        JwtAlgorithm::Hs256 if length < SECRET_BYTES_MIN => Err("has less than 32 bytes: HS256 needs at least 32"),
        JwtAlgorithm::Rs256 if length < RSA_BYTES_MIN => Err("has an RSA key of less than 2048 bits"),
        JwtAlgorithm::Es256 if length != P256_BYTES => Err("has a key of a curve other than P-256"),
        JwtAlgorithm::EdDsa if length != ED25519_BYTES => Err("has a key of a curve other than Ed25519"),
        _ => Ok(key),
    }
}

/// The keys of a JWK set (RFC 7517) for this algorithm. Other keys serve other purposes and are ignored.
fn keys_of_set(algorithm: JwtAlgorithm, content: &[u8]) -> Result<Vec<(Option<String>, DecodingKey)>, Vec<String>> {
    let set: JwkSet = serde_json::from_slice(content).map_err(|error| {
        // Does not show the error's own text, which quotes values.
        vec![format!("is not a JWK set (line {}, column {})", error.line(), error.column())]
    })?;
    let (mut keys, mut problems) = (Vec::<(Option<String>, DecodingKey)>::new(), Vec::new());
    for (index, jwk) in set.keys.iter().enumerate().filter(|(_, jwk)| is_for(algorithm, jwk)) {
        let (number, kid) = (index + 1, jwk.common.key_id.clone());
        match checked(algorithm, DecodingKey::from_jwk(jwk)) {
            Err(problem) => problems.push(format!("key {number} of the set {problem}")),
            Ok(_) if keys.iter().any(|(known, _)| *known == kid) => {
                problems.push(format!("key {number} of the set has the kid of an earlier one"));
            }
            Ok(key) => keys.push((kid, key)),
        }
    }
    if keys.is_empty() && problems.is_empty() {
        problems.push(format!("has no key for {}", algorithm.as_str()));
    }
    if problems.is_empty() { Ok(keys) } else { Err(problems) }
}

fn is_for(algorithm: JwtAlgorithm, jwk: &Jwk) -> bool {
    let (kind, named) = match &jwk.algorithm {
        AlgorithmParameters::OctetKey(_) => (JwtAlgorithm::Hs256, KeyAlgorithm::HS256),
        AlgorithmParameters::RSA(_) => (JwtAlgorithm::Rs256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (JwtAlgorithm::Es256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (JwtAlgorithm::EdDsa, KeyAlgorithm::EdDSA)
        }
        _ => return false,
    };
    let is_named = jwk.common.key_algorithm.as_ref().is_none_or(|other| *other == named);
    let is_for_signatures = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
    kind == algorithm && is_named && is_for_signatures
}

/// Implements the crate's cryptography interface with `ring`. Either of the crate's own backends would add a whole
/// cryptography library.
static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: |algorithm, key| {
        if key.family() != algorithm.family() {
            return Err(ErrorKind::InvalidKeyFormat.into());
        }
        Ok(Box::new(RingVerifier { algorithm: *algorithm, key: key.clone() }))
    },
    key_utils: KeyUtils::new_unimplemented(),
};

struct RingVerifier {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        let public: &dyn signature::VerificationAlgorithm = match self.algorithm {
            Algorithm::HS256 => {
                let secret = self.key.try_get_as_bytes().map_err(SignatureError::from_source)?;
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                return hmac::verify(&key, message, signature).map_err(|_| SignatureError::new());
            }
            Algorithm::RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Algorithm::ES256 => &signature::ECDSA_P256_SHA256_FIXED,
            Algorithm::EdDSA => &signature::ED25519,
            _ => return Err(SignatureError::new()),
        };
        let verified = match self.key.kind() {
            DecodingKeyKind::SecretOrDer(bytes) => {
                signature::UnparsedPublicKey::new(public, bytes).verify(message, signature)
            }
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                let key = signature::RsaPublicKeyComponents { n: without_zeros(n), e: without_zeros(e) };
                key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
        };
        verified.map_err(|_| SignatureError::new())
    }
}

/// The bytes of a number without leading zeros, which some JWK sets contain.
fn without_zeros(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|&byte| byte != 0).unwrap_or(bytes.len());
    &bytes[start..]
}
