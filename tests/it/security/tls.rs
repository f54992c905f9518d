//! HTTPS on the service's listener: its certificate, the reload of the certificate, and clients without TLS.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rcgen::{CertificateParams, DnType, KeyPair};
use rustix::fs::OFlags;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

use crate::support::process::{self, with_timeout};
use crate::support::raw;
use crate::support::redis_server::POLL;

use super::{Target, to_end};

pub(super) const HOST: &str = "sessions.internal";
const REQUEST: &[u8] = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
const CLIENTS: usize = 4;

/// A self-signed certificate and its key.
pub(super) struct Pair {
    certificate: String,
    key: String,
    der: CertificateDer<'static>,
}

impl Pair {
    pub(super) fn make(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([HOST.to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { certificate: certificate.pem(), key: key.serialize_pem(), der: certificate.der().clone() }
    }
}

/// The files of a service's certificate and key.
pub(super) struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    pub(super) fn of(folder: &Path, pair: &Pair) -> Self {
        let files = Self { certificate: folder.join("cert.pem"), key: folder.join("key.pem") };
        files.write(pair);
        files
    }

    /// Writes one file after the other, as tools do: for a moment, certificate and key do not match.
    fn write(&self, pair: &Pair) {
        std::fs::write(&self.certificate, &pair.certificate).expect("a file");
        std::fs::write(&self.key, &pair.key).expect("a file");
    }

    pub(super) fn flags(&self) -> [&str; 4] {
        let [certificate, key] = [&self.certificate, &self.key].map(|file| file.to_str().expect("a path"));
        ["--tls-cert-file", certificate, "--tls-key-file", key]
    }
}

/// A client that trusts these certificates and no others.
pub(super) fn connector(trusted: &[&Pair], protocols: &[&[u8]]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for pair in trusted {
        roots.add(pair.der.clone()).expect("a certificate");
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("versions");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

pub(super) async fn connect(target: &Target, connector: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(HOST).expect("a name");
    connector.connect(name, target.connect().await).await
}

/// Sends a request on a connection that stays open. Returns the status of the response.
pub(super) async fn exchange(stream: &mut TlsStream<TcpStream>) -> u16 {
    stream.write_all(REQUEST).await.expect("the request is sent");
    // A TLS write returns once the bytes are encrypted. If the task has used up its budget, they have not been sent
    // yet.
    stream.flush().await.expect("the request is sent");
    let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let length = stream.read(&mut buffer).await.expect("a response");
        assert!(length > 0, "no response");
        received.extend_from_slice(&buffer[..length]);
        if let Some((response, _)) = raw::parse(&received, false) {
            return response.status.as_u16();
        }
    }
}

/// The certificate that the service presents to a new connection.
async fn presented(target: &Target, connector: &TlsConnector) -> CertificateDer<'static> {
    let stream = connect(target, connector).await.expect("a handshake");
    let (_, connection) = stream.get_ref();
    connection.peer_certificates().expect("certificates")[0].clone().into_owned()
}

#[tokio::test]
async fn only_https_is_served() {
    let (folder, pair) = (TempDir::new().expect("a folder"), Pair::make("only"));
    let files = Files::of(folder.path(), &pair);
    let target = Target::start("tls", &files.flags()).await;
    assert!(target.base.starts_with("https://"), "{}", target.base);
    let client = connector(&[&pair], &[]);
    let mut stream = with_timeout(connect(&target, &client)).await.expect("a handshake");
    for _ in 0..3 {
        assert_eq!(with_timeout(exchange(&mut stream)).await, 200);
    }
    // Bytes that are not HTTP get an error response in the usual shape.
    stream.write_all(b"GET /livez HTTP/1.1\nhost: x\n\n").await.expect("the request is sent");
    let responses = raw::answers(&with_timeout(to_end(&mut stream)).await);
    assert_eq!(responses.len(), 1, "{responses:?}");
    responses[0].expect_problem(400, "invalid_request");

    // A client that uses plain HTTP gets no HTTP response.
    let received = target.send(REQUEST, false).await;
    assert!(!received.starts_with(b"HTTP"), "{:?}", String::from_utf8_lossy(&received));
    // A client that does not trust the certificate cannot connect.
    assert!(connect(&target, &connector(&[&Pair::make("other")], &[])).await.is_err());

    let address = target.address().to_string();
    let flags: Vec<_> = ["healthcheck", "--listen", &address].into_iter().chain(files.flags()).collect();
    let checked = process::run(&flags, &[]);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
}

#[tokio::test]
async fn half_closed_clients_get_their_responses() {
    let (folder, pair) = (TempDir::new().expect("a folder"), Pair::make("goodbye"));
    let files = Files::of(folder.path(), &pair);
    let target = Target::start("tls-goodbye", &files.flags()).await;
    let client = connector(&[&pair], &[]);
    let create = |user: usize| {
        let body = format!("{{\"businessId\":\"b\",\"userId\":\"u{user}\"}}");
        let head = "POST /api/sessions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
        format!("{head}content-length: {}\r\n\r\n{body}", body.len())
    };
    for user in 0..CLIENTS {
        let mut stream = connect(&target, &client).await.expect("a handshake");
        stream.write_all((create(user) + &create(user)).as_bytes()).await.expect("the requests are sent");
        stream.flush().await.expect("the requests are sent");
        if user % 2 == 0 {
            // Sends `close_notify`, then ends the TCP stream.
            stream.shutdown().await.expect("one side closed");
        } else {
            // Only ends the TCP stream, as some clients do.
            stream.get_mut().0.shutdown().await.expect("one side closed");
        }
        let responses = raw::answers(&with_timeout(to_end(&mut stream)).await);
        let statuses: Vec<_> = responses.iter().map(|response| response.status.as_u16()).collect();
        assert_eq!(statuses, [201, 200], "{user}");
    }
    // A truncated request is not executed.
    let mut stream = connect(&target, &client).await.expect("a handshake");
    let request = create(CLIENTS);
    stream.write_all(&request.as_bytes()[..request.len() - 1]).await.expect("most of the request is sent");
    stream.shutdown().await.expect("one side closed");
    let responses = raw::answers(&with_timeout(to_end(&mut stream)).await);
    assert_eq!(responses.len(), 1, "{responses:?}");
    responses[0].expect_problem(400, "invalid_request");
    assert_eq!(target.probe.keys_of('s').await.len(), CLIENTS);
}

#[tokio::test]
async fn slow_handshakes_end_at_the_receive_timeout() {
    let (folder, pair) = (TempDir::new().expect("a folder"), Pair::make("slow"));
    let target = Target::start("tls-slow", &Files::of(folder.path(), &pair).flags()).await;
    // No bytes at all, and the start of a handshake.
    for sent in [b"".as_slice(), b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"] {
        assert_eq!(target.send(sent, false).await, b"", "{sent:?}");
    }
    // A complete handshake, then no bytes or half a head.
    for sent in [b"".as_slice(), b"GET /livez HTT"] {
        let mut stream = connect(&target, &connector(&[&pair], &[])).await.expect("a handshake");
        stream.write_all(sent).await.expect("half a head is sent");
        stream.flush().await.expect("half a head is sent");
        assert_eq!(with_timeout(to_end(&mut stream)).await, b"", "{sent:?}");
    }
}

#[tokio::test]
async fn certificates_are_reloaded_without_failed_requests_and_broken_ones_are_not_used() {
    let folder = TempDir::new().expect("a folder");
    let pairs = ["first", "second", "third"].map(Pair::make);
    let files = Files::of(folder.path(), &pairs[0]);
    let mut target = Target::start("tls-reload", &files.flags()).await;
    let client = connector(&pairs.each_ref(), &[]);
    let stop = Arc::new(AtomicBool::new(false));
    // Each client uses one connection that stays open, and a new one for each request.
    let load = async {
        let clients = (0..CLIENTS).map(async |_| {
            let mut kept = connect(&target, &client).await.expect("a handshake");
            let mut requests = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut new = connect(&target, &client).await.expect("a handshake");
                assert_eq!((exchange(&mut kept).await, exchange(&mut new).await), (200, 200));
                requests += 2;
            }
            requests
        });
        futures_util::future::join_all(clients).await
    };
    let changes = async {
        for pair in &pairs[1..] {
            files.write(pair);
            while presented(&target, &client).await != pair.der {}
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (requests, ()) = with_timeout(async { tokio::join!(load, changes) }).await;
    assert!(requests.iter().all(|&count| count > 2), "{requests:?}");

    // None of these can be used: the key does not match, the certificate is not PEM, the certificate is missing.
    let broken: [&dyn Fn(); 3] = [
        &|| std::fs::write(&files.key, &pairs[0].key).expect("a file"),
        &|| std::fs::write(&files.certificate, "nothing").expect("a file"),
        &|| std::fs::remove_file(&files.certificate).expect("a file"),
    ];
    for break_it in broken {
        break_it();
        target.service.wait_for_line("stays in force");
        assert_eq!(presented(&target, &client).await, pairs[2].der);
    }
    files.write(&pairs[0]);
    with_timeout(async { while presented(&target, &client).await != pairs[0].der {} }).await;
    let log = target.service.lines.join("\n");
    assert!(!log.contains("PRIVATE KEY"), "{log}");
}

#[tokio::test]
async fn a_certificate_file_whose_read_hangs_blocks_nothing() {
    let (folder, pair) = (TempDir::new().expect("a folder"), Pair::make("only"));
    let files = Files::of(folder.path(), &pair);
    let mut target = Target::start("tls-hang", &files.flags()).await;
    let client = connector(&[&pair], &[]);
    // A pipe behaves like a file on a file system that hangs: opening it succeeds, reading it blocks.
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    std::fs::rename(&pipe, &files.certificate).expect("another file in its place");
    let non_blocking = i32::try_from(OFlags::NONBLOCK.bits()).expect("a flag");
    // Fails until the service has opened the pipe for reading.
    let open = || File::options().write(true).custom_flags(non_blocking).open(&files.certificate);
    let _writer = with_timeout(async {
        loop {
            match open() {
                Ok(writer) => break writer,
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    })
    .await;
    assert_eq!(with_timeout(presented(&target, &client)).await, pair.der);
    target.service.signal(Signal::TERM);
    assert_eq!(target.service.wait().code(), Some(0), "{:#?}", target.service.lines);
}

#[test]
fn unusable_certificates_are_reported_at_the_start() {
    let folder = TempDir::new().expect("a folder");
    let (pair, other) = (Pair::make("one"), Pair::make("other"));
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.to_str().expect("a path").to_owned()
    };
    let certificate = write("cert.pem", &pair.certificate);
    let [key, other_key] = [("key.pem", &pair.key), ("other.pem", &other.key)].map(|(name, text)| write(name, text));
    let nothing = write("nothing.pem", "");
    let bad = [
        (vec!["--tls-cert-file", &certificate], "SESSIOND_TLS_KEY_FILE"),
        (vec!["--tls-key-file", &key], "SESSIOND_TLS_CERT_FILE"),
        (vec!["--tls-cert-file", &certificate, "--tls-key-file", &other_key], "SESSIOND_TLS_CERT_FILE"),
        (vec!["--tls-cert-file", &nothing, "--tls-key-file", &key], "SESSIOND_TLS_CERT_FILE"),
        (vec!["--tls-cert-file", &certificate, "--tls-key-file", &nothing], "SESSIOND_TLS_CERT_FILE"),
        (vec!["--tls-cert-file", "/nowhere/cert.pem", "--tls-key-file", &key], "/nowhere/cert.pem"),
        (vec!["--tls-cert-file", &key, "--tls-key-file", &certificate], "SESSIOND_TLS_CERT_FILE"),
    ];
    for (flags, named) in bad {
        let output = process::run(&flags, &[]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {text}");
        assert!(text.contains(named) && text.lines().count() == 1, "{flags:?}: {text}");
        assert!(!text.contains("PRIVATE KEY"), "{text}");
    }
    let good = process::run(&["check-config", "--tls-cert-file", &certificate, "--tls-key-file", &key], &[]);
    assert_eq!(good.status.code(), Some(0), "{good:?}");
}
