//! Settings for the listeners and their connections.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use super::not_empty;
use super::setting_errors::SettingErrors;
use crate::tls::CertificateFiles;

/// The settings as text.
#[derive(Args, Clone)]
pub(super) struct ConnectionArgs {
    /// Address and port of the API listener; port 0 selects a free port
    #[arg(long, global = true, env = "SESSIOND_LISTEN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:3000")]
    listen: String,
    /// Address and port of the listener for /metrics in the Prometheus format [default: 127.0.0.1:9464, or none if that
    /// port is in use]
    #[arg(long, global = true, env = "SESSIOND_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    metrics_listen: Option<String>,
    /// PEM file with the certificate chain for HTTPS; reloaded within 5 s of a change [default: none, plain HTTP]
    #[arg(long, global = true, env = "SESSIOND_TLS_CERT_FILE", value_name = "FILE")]
    tls_cert_file: Option<String>,
    /// PEM file with the private key of the certificate; required with --tls-cert-file [default: none]
    #[arg(long, global = true, env = "SESSIOND_TLS_KEY_FILE", value_name = "FILE")]
    tls_key_file: Option<String>,
    /// Maximum number of open connections; lower if the system's limit of open files is lower
    #[arg(long, global = true, env = "SESSIOND_MAX_CONNECTIONS", value_name = "COUNT", default_value = "16384")]
    max_connections: String,
    /// Maximum number of open connections from one IPv4 address or IPv6 /64 network, and eight times that from an IPv6
    /// /48 network
    #[arg(
        long,
        global = true,
        env = "SESSIOND_MAX_CONNECTIONS_PER_ADDRESS",
        value_name = "COUNT",
        default_value = "1000"
    )]
    max_connections_per_address: String,
    /// Comma-separated addresses or networks (10.0.0.0/8) of proxies. A proxy connects for many clients, so only
    /// --max-connections applies to it
    #[arg(
        long,
        global = true,
        env = "SESSIOND_TRUSTED_PROXIES",
        value_name = "ADDRESSES",
        default_value = "127.0.0.1,::1"
    )]
    trusted_proxies: String,
    /// Maximum size in bytes of a request's head: path, query and all headers
    #[arg(long, global = true, env = "SESSIOND_MAX_HEADER_BYTES", value_name = "BYTES", default_value = "65536")]
    max_header_bytes: String,
    /// Maximum number of headers in a request
    #[arg(long, global = true, env = "SESSIOND_MAX_HEADERS", value_name = "COUNT", default_value = "100")]
    max_headers: String,
    /// Maximum time to receive a request's head, then its body, and maximum time in which a client accepts no byte of
    /// its response
    #[arg(long, global = true, env = "SESSIOND_RECEIVE_TIMEOUT", value_name = "DURATION", default_value = "10s")]
    receive_timeout: String,
    /// Maximum time from a response to the next request on the connection. Set it longer than the keep-alive timeout of
    /// the proxies in front
    #[arg(long, global = true, env = "SESSIOND_KEEP_ALIVE_TIMEOUT", value_name = "DURATION", default_value = "75s")]
    keep_alive_timeout: String,
    /// Maximum time to finish accepted requests after SIGTERM or SIGINT
    #[arg(long, global = true, env = "SESSIOND_SHUTDOWN_GRACE", value_name = "DURATION", default_value = "10s")]
    shutdown_grace: String,
}

/// The checked settings for the listeners and their connections.
#[derive(Clone, Debug)]
pub struct ConnectionConfig {
    /// Address of the API listener.
    pub listen: SocketAddr,
    /// Address of the metrics listener. `None` is the default address, which another service on the machine may use.
    pub metrics_listen: Option<SocketAddr>,
    /// The certificate for HTTPS; `None` for plain HTTP.
    pub tls: Option<CertificateFiles>,
    /// The limits of connections and of request heads.
    pub limits: ConnectionLimits,
    /// Maximum time to receive a request's head, and then its body; and the maximum time in which a client accepts no
    /// byte of its response.
    pub receive_timeout: Duration,
    /// Maximum time from a response to the next request on the connection.
    pub keep_alive_timeout: Duration,
    /// Maximum time to finish accepted requests after a signal to stop.
    pub shutdown_grace: Duration,
}

/// The limits of connections and of request heads.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Maximum number of open connections.
    pub total: usize,
    /// Maximum number of open connections from one address.
    pub per_address: usize,
    /// The addresses to which `per_address` does not apply.
    pub trusted_proxies: Vec<IpNet>,
    /// Maximum bytes of a request's head.
    pub head_bytes: usize,
    /// Maximum number of headers in a request.
    pub headers: usize,
}

impl ConnectionArgs {
    pub(super) fn check(&self, errors: &mut SettingErrors) -> Option<ConnectionConfig> {
        let listen = errors.parsed("--listen", &self.listen, "an address and a port, such as 127.0.0.1:3000");
        let metrics_listen = not_empty(self.metrics_listen.as_deref())
            .and_then(|text| errors.parsed("--metrics-listen", text, "an address and a port, such as 127.0.0.1:9464"));
        let tls = self.certificate_files(errors);
        let limits = self.connection_limits(errors);
        let receive_timeout = errors.duration("--receive-timeout", &self.receive_timeout);
        let keep_alive_timeout = errors.duration("--keep-alive-timeout", &self.keep_alive_timeout);
        let shutdown_grace = errors.duration("--shutdown-grace", &self.shutdown_grace);
        Some(ConnectionConfig {
            listen: listen?,
            metrics_listen,
            tls,
            limits,
            receive_timeout,
            keep_alive_timeout,
            shutdown_grace,
        })
    }

    fn connection_limits(&self, errors: &mut SettingErrors) -> ConnectionLimits {
        let per_address = &self.max_connections_per_address;
        ConnectionLimits {
            total: errors.number("--max-connections", &self.max_connections, 1, 1_000_000),
            per_address: errors.number("--max-connections-per-address", per_address, 1, 1_000_000),
            trusted_proxies: errors.list("--trusted-proxies", &self.trusted_proxies, network),
            // hyper's read buffer has at least 8192 bytes, so hyper would not enforce a lower limit.
            head_bytes: errors.number("--max-header-bytes", &self.max_header_bytes, 8192, 1 << 20),
            headers: errors.number("--max-headers", &self.max_headers, 20, 10_000),
        }
    }

    /// The certificate and key, if both files are given, readable and belong together.
    fn certificate_files(&self, errors: &mut SettingErrors) -> Option<CertificateFiles> {
        match (not_empty(self.tls_cert_file.as_deref()), not_empty(self.tls_key_file.as_deref())) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                let files = CertificateFiles { certificate: PathBuf::from(certificate), key: PathBuf::from(key) };
                let loaded = files.clone().load();
                let loaded =
                    loaded.map_err(|problems| format!("cannot be used with the key file: {}", problems.join("; ")));
                errors.checked("--tls-cert-file", loaded).map(|_| files)
            }
            (Some(_), None) => errors.checked("--tls-key-file", Err("is required with --tls-cert-file".to_owned())),
            (None, Some(_)) => errors.checked("--tls-cert-file", Err("is required with --tls-key-file".to_owned())),
        }
    }
}

/// Parses an address or a network.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map_err(|_| format!("must list addresses or networks, such as 10.0.0.7 or 10.0.0.0/8; it has {text:?}"))
}
