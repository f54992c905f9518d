//! The address of Redis.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};

use fred::types::config::{Config, ServerConfig};
use percent_encoding::percent_decode;

const SCHEMES: [&str; 9] = [
    "redis",
    "rediss",
    "valkey",
    "valkeys",
    "redis+unix",
    "redis-cluster",
    "rediss-cluster",
    "redis-sentinel",
    "rediss-sentinel",
];

/// Address of Redis. `Display` and `Debug` omit credentials.
#[derive(Clone, PartialEq, Eq)]
pub enum RedisAddress {
    /// A validated URL, which may contain a password.
    Url(String),
    /// The path of a Unix socket.
    Socket(PathBuf),
}

impl RedisAddress {
    /// Parses a URL: `redis://`, `rediss://`, `redis+unix://`, `redis-cluster://` or `redis-sentinel://`, as fred
    /// spells them (<https://docs.rs/fred/10.1.0/fred/types/config/struct.Config.html#method.from_url>). The path of a
    /// socket may be percent-encoded.
    ///
    /// # Errors
    /// What is wrong with the URL, without the URL itself.
    pub fn from_url(url: &str) -> Result<Self, String> {
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        if !SCHEMES.contains(&scheme) {
            return Err(format!("must start with one of {}", SCHEMES.map(|scheme| format!("{scheme}://")).join(", ")));
        }
        let config = client_config(url).map_err(|error| format!("is not a Redis URL: {}", error.details()))?;
        if let ServerConfig::Unix { path } = &config.server {
            // A Unix socket has no query and no fragment, so these characters can only belong to the path.
            if url.contains(['?', '#']) {
                return Err("must have %3F for ? and %23 for # in the path of a socket".to_owned());
            }
            if path.file_name().is_none() {
                return Err("must name a socket, as in redis+unix:///run/redis/redis.sock".to_owned());
            }
            SocketAddr::from_pathname(path).map_err(|error| format!("cannot be the path of a socket: {error}"))?;
        }
        Ok(Self::Url(url.to_owned()))
    }

    pub(in crate::store) fn client_config(&self) -> Result<Config, fred::error::Error> {
        match self {
            Self::Url(url) => client_config(url),
            Self::Socket(path) => Ok(Config { server: ServerConfig::new_unix_socket(path), ..Config::default() }),
        }
    }
}

/// Parses a URL and decodes the path of a socket: fred decodes only the user and the password.
fn client_config(url: &str) -> Result<Config, fred::error::Error> {
    let mut config = Config::from_url(url)?;
    if let ServerConfig::Unix { path } = &mut config.server {
        *path = decoded(path);
    }
    Ok(config)
}

fn decoded(path: &Path) -> PathBuf {
    PathBuf::from(OsString::from_vec(percent_decode(path.as_os_str().as_bytes()).collect()))
}

impl fmt::Display for RedisAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(formatter, "{}", path.display()),
            Self::Url(url) => {
                // Credentials end at the last `@` before the first `/`. The query may contain credentials, too.
                let (scheme, rest) = url.split_once("://").unwrap_or(("redis", url));
                let rest = rest.split(['?', '#']).next().unwrap_or_default();
                let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
                write!(formatter, "{scheme}://{host}{path}")
            }
        }
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RedisAddress({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    /// The path of the socket in a URL.
    fn socket(url: &str) -> PathBuf {
        let address = RedisAddress::from_url(url).unwrap_or_else(|problem| panic!("{url}: {problem}"));
        match address.client_config().expect("a configuration").server {
            ServerConfig::Unix { path } => path,
            other => panic!("{url}: {other:?}"),
        }
    }

    #[test]
    fn socket_path_is_percent_decoded() {
        let cases = [
            ("redis+unix:///tmp/with%20space/redis.sock", "/tmp/with space/redis.sock"),
            ("redis+unix:///tmp/with space/redis.sock", "/tmp/with space/redis.sock"),
            ("redis+unix:///tmp/100%25/a%2520b", "/tmp/100%/a%20b"),
            ("redis+unix:///tmp/100%/50%off", "/tmp/100%/50%off"),
            ("redis+unix:///tmp/what%3F/%23one", "/tmp/what?/#one"),
            ("redis+unix:///tmp/grün/gr%C3%BCn", "/tmp/grün/grün"),
            ("redis+unix:///tmp/a@b:c/[d]{e}\"<f>", "/tmp/a@b:c/[d]{e}\"<f>"),
            ("redis+unix://user:p%40ss@localhost/tmp/a%20@b", "/tmp/a @b"),
        ];
        for (url, path) in cases {
            assert_eq!(socket(url), Path::new(path), "{url}");
        }
        assert_eq!(socket("redis+unix:///tmp/%FF").as_os_str(), OsStr::from_bytes(b"/tmp/\xff"));
        let config = RedisAddress::from_url("redis+unix://us%20er:p%40ss@localhost/a").expect("a URL").client_config();
        let config = config.expect("a configuration");
        assert_eq!((config.username.as_deref(), config.password.as_deref()), (Some("us er"), Some("p@ss")));
    }

    #[test]
    fn rejects_invalid_socket_paths_with_the_reason() {
        let long = format!("redis+unix:///{}", "x".repeat(108));
        let cases = [
            ("redis+unix://", "must name a socket"),
            ("redis+unix://localhost", "must name a socket"),
            ("redis+unix:///", "must name a socket"),
            ("redis+unix:///tmp/a?b", "%3F"),
            ("redis+unix:///tmp/a#b", "%23"),
            ("redis+unix:///tmp/a%00b", "null"),
            (&long, "SUN_LEN"),
        ];
        for (url, reason) in cases {
            let problem = RedisAddress::from_url(url).expect_err(url);
            assert!(problem.contains(reason), "{url}: {problem}");
        }
    }

    #[test]
    fn address_is_shown_without_credentials() {
        let cases = [
            ("redis://user:secret@host:6379/1", "redis://host:6379/1"),
            ("redis://:p%40ss@host", "redis://host"),
            ("redis+unix://user:secret@localhost/tmp/a@b/r.sock", "redis+unix://localhost/tmp/a@b/r.sock"),
            ("redis+unix:///tmp/a@b/r.sock", "redis+unix:///tmp/a@b/r.sock"),
            ("redis-sentinel://host:1?sentinelServiceName=s&sentinelPassword=secret", "redis-sentinel://host:1"),
        ];
        for (url, shown) in cases {
            let address = RedisAddress::from_url(url).unwrap_or_else(|problem| panic!("{url}: {problem}"));
            assert_eq!((address.to_string(), format!("{address:?}")), (shown.into(), format!("RedisAddress({shown})")));
        }
    }
}
