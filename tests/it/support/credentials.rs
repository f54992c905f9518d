//! Credentials of every kind: API key files, and JWTs signed as an external identity provider would sign them.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::{Value, json};
use sessiond::auth::{JwtAlgorithm, NewApiKey, Scope, generate};
use sessiond::session::Timestamp;

pub const ISSUER: &str = "https://login.example.com/";
pub const AUDIENCE: &str = "sessiond";
/// A fixed test key, because `ring` cannot generate RSA keys.
const RSA_KEY: &str = include_str!("../auth/rsa-test-key.pem");

/// The bytes before the public key in its DER form (`SubjectPublicKeyInfo`, RFC 5280).
const RSA_2048_PREFIX: &str = "30820122300d06092a864886f70d01010105000382010f00";
const P256_PREFIX: &str = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
const ED25519_PREFIX: &str = "302a300506032b6570032100";

/// Generates an API key. Returns the credential and its entry for the key file. An empty `businesses` means all
/// businesses.
pub fn api_key(id: &str, businesses: &[&str], scopes: &[Scope], expires: Option<&str>) -> (String, String) {
    let new = NewApiKey {
        id: Some(id.to_owned()),
        businesses: businesses.iter().map(|&name| name.to_owned()).collect(),
        scopes: scopes.to_vec(),
        expires: expires.map(str::to_owned),
    };
    generate(&new).expect("a key")
}

/// Replaces a file atomically by renaming, as `mv` does.
pub fn replace(path: &Path, content: impl AsRef<[u8]>) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).expect("a file written");
    std::fs::rename(&new, path).expect("a file replaced");
}

/// The flags of a service that accepts tokens of this algorithm.
pub fn jwt_flags(algorithm: JwtAlgorithm, key_file: &Path) -> Vec<String> {
    let key_file = key_file.to_str().expect("a path of text");
    let flags = ["--jwt-key-file", key_file, "--jwt-algorithm", algorithm.as_str()];
    flags.into_iter().chain(["--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE]).map(str::to_owned).collect()
}

/// The claims of a user's token that is valid for five minutes.
pub fn claims(business_id: &str, user_id: &str, now: Timestamp) -> Value {
    let now_secs = now.0 / 1000;
    json!({
        "iss": ISSUER, "aud": AUDIENCE, "iat": now_secs, "nbf": now_secs, "exp": now_secs + 300,
        "businessId": business_id, "sub": user_id,
    })
}

/// `claims` with the claim `name` added or replaced.
pub fn with(claims: &Value, name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims.clone();
    claims[name] = value.into();
    claims
}

/// `claims` without the claim `name`.
pub fn without(claims: &Value, name: &str) -> Value {
    let mut claims = claims.clone();
    claims.as_object_mut().expect("claims").remove(name).expect("a claim to remove");
    claims
}

/// Signs tokens.
pub struct Signer {
    pub algorithm: JwtAlgorithm,
    key: Key,
}

enum Key {
    Secret(Vec<u8>),
    Rsa(Box<RsaKeyPair>),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Signer {
    /// A signer with a new key. All RS256 signers share one key.
    pub fn new(algorithm: JwtAlgorithm) -> Self {
        let random = SystemRandom::new();
        let key = match algorithm {
            JwtAlgorithm::Hs256 => {
                let mut secret = [0; 32];
                random.fill(&mut secret).expect("random bytes");
                Key::Secret(URL_SAFE_NO_PAD.encode(secret).into_bytes())
            }
            JwtAlgorithm::Rs256 => {
                let lines = RSA_KEY.lines().filter(|line| !line.starts_with('-'));
                let der = STANDARD.decode(lines.collect::<String>()).expect("base64");
                Key::Rsa(Box::new(RsaKeyPair::from_pkcs8(&der).expect("an RSA key")))
            }
            JwtAlgorithm::Es256 => {
                let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
                let der = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
                Key::Ec(EcdsaKeyPair::from_pkcs8(algorithm, der.as_ref(), &random).expect("a key"))
            }
            JwtAlgorithm::EdDsa => {
                let der = Ed25519KeyPair::generate_pkcs8(&random).expect("a key");
                Key::Ed(Ed25519KeyPair::from_pkcs8(der.as_ref()).expect("a key"))
            }
        };
        Self { algorithm, key }
    }

    /// The public key in its raw form and in DER. Both are empty for a shared secret.
    pub fn public_key(&self) -> [Vec<u8>; 2] {
        let (prefix, public) = match &self.key {
            Key::Secret(_) => return [vec![], vec![]],
            Key::Rsa(key) => (RSA_2048_PREFIX, key.public_key().as_ref()),
            Key::Ec(key) => (P256_PREFIX, key.public_key().as_ref()),
            Key::Ed(key) => (ED25519_PREFIX, key.public_key().as_ref()),
        };
        let prefix = (0..prefix.len()).step_by(2).map(|at| u8::from_str_radix(&prefix[at..at + 2], 16).expect("hex"));
        [public.to_vec(), prefix.chain(public.iter().copied()).collect()]
    }

    /// The content of the service's key file: the shared secret, or the public key in PEM.
    pub fn key_file(&self) -> Vec<u8> {
        if let Key::Secret(secret) = &self.key {
            return secret.clone();
        }
        let [_, der] = self.public_key();
        let lines: Vec<_> = STANDARD.encode(der).into_bytes().chunks(64).map(<[u8]>::to_vec).collect();
        [b"-----BEGIN PUBLIC KEY-----\n", lines.join(&b'\n').as_slice(), b"\n-----END PUBLIC KEY-----\n"].concat()
    }

    /// The key as a member of a JWK set.
    pub fn jwk(&self, kid: &str) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = match &self.key {
            Key::Secret(secret) => json!({"kty": "oct", "k": text(secret)}),
            Key::Rsa(key) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(key.public());
                json!({"kty": "RSA", "n": text(&public.n), "e": text(&public.e)})
            }
            Key::Ec(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "x": text(x), "y": text(y)})
            }
            Key::Ed(key) => json!({"kty": "OKP", "crv": "Ed25519", "x": text(key.public_key().as_ref())}),
        };
        jwk["kid"] = kid.into();
        jwk["use"] = "sig".into();
        jwk["alg"] = self.algorithm.as_str().into();
        jwk
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            Key::Secret(secret) => hmac_sha256(secret, message),
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).expect("a signature");
                signature
            }
            Key::Ec(key) => key.sign(&random, message).expect("a signature").as_ref().to_vec(),
            Key::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// A token with these claims.
    pub fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({"alg": self.algorithm.as_str(), "typ": "JWT"}), claims)
    }

    /// A token with these claims and this header.
    pub fn token_with(&self, header: &Value, claims: &Value) -> String {
        self.token_of(&header.to_string(), &claims.to_string())
    }

    /// A token with this header and these claims as raw text, which need not be JSON.
    pub fn token_of(&self, header: &str, claims: &str) -> String {
        let message = unsigned(header, claims);
        let signature = self.sign(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// A token without the last dot and the signature.
pub fn unsigned(header: &str, claims: &str) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

pub fn hmac_sha256(secret: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
}
