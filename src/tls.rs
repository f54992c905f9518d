//! TLS of the API's own listener: the certificate's files, and what is made of them.

use std::fmt;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, SignatureScheme, StreamOwned,
};

/// How often the files are looked at.
const RELOAD_CHECK: Duration = Duration::from_secs(1);
const HTTP_1_1: &[u8] = b"http/1.1";

/// Where a certificate chain and its key are, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, then those that lead to its CA.
    pub certificate: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
}

/// The content of both files. Not `Debug`: one is a private key.
#[derive(PartialEq, Eq)]
struct Pair {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl CertificateFiles {
    /// What the service presents to its clients.
    ///
    /// # Errors
    /// What is wrong with the files. It is text for people, and tells nothing of the key.
    pub fn load(&self) -> Result<Arc<ServerConfig>, String> {
        server_config(&self.read()?)
    }

    fn read(&self) -> Result<Pair, String> {
        let read = |path: &PathBuf| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        Ok(Pair { certificate: read(&self.certificate)?, key: read(&self.key)? })
    }
}

fn server_config(pair: &Pair) -> Result<Arc<ServerConfig>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pair.certificate).collect();
    let chain = chain.map_err(|error| format!("the certificate file is not PEM: {error}"))?;
    if chain.is_empty() {
        return Err("the certificate file has no certificate".to_owned());
    }
    let key =
        PrivateKeyDer::from_pem_slice(&pair.key).map_err(|_| "the key file has no private key in PEM".to_owned())?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = builder.and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    let mut config = config.map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The certificate that new connections get.
#[derive(Clone)]
pub struct Certificate(watch::Receiver<Arc<ServerConfig>>);

impl fmt::Debug for Certificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Certificate").finish_non_exhaustive()
    }
}

impl Certificate {
    /// Loads the files, and again whenever they change, for as long as this is used. A pair that cannot be used changes
    /// nothing and is told to the log, once.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn follow(files: CertificateFiles) -> Result<Self, String> {
        let mut seen = files.read();
        let (sender, receiver) = watch::channel(seen.as_ref().map_err(String::clone).and_then(server_config)?);
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(RELOAD_CHECK);
            while !sender.is_closed() {
                tick.tick().await;
                let read = files.clone();
                // On a thread that may wait: connections are accepted meanwhile.
                let Ok(now) = tokio::task::spawn_blocking(move || read.read()).await else { continue };
                // Compared by content: the times of files that a link leads to from one moment to the next say nothing.
                if now == seen {
                    continue;
                }
                match now.as_ref().map_err(String::clone).and_then(server_config) {
                    Ok(config) => {
                        sender.send_replace(config);
                        tracing::info!(file = %files.certificate.display(), "new connections get the new certificate");
                    }
                    Err(error) => tracing::warn!(error, "cannot use the new certificate, keeping the old one"),
                }
                seen = now;
            }
        });
        Ok(Self(receiver))
    }

    /// Makes a connection a TLS one.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.borrow().clone())
    }
}

/// A TLS connection to a service of ours, whoever it says it is: only for asking how it is.
///
/// # Errors
/// If there is no connection.
pub fn connect_unverified(
    address: SocketAddr,
    stream: TcpStream,
) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(std::io::Error::other)?;
    let verifier = Arc::new(Anyone(provider()));
    let config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    let name = ServerName::IpAddress(address.ip().into());
    let connection = ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
    Ok(StreamOwned::new(connection, stream))
}

/// Takes any certificate. A certificate is for the service's public name and not for the address that it listens on; and
/// nothing that is worth protecting is said.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
