//! Every way to reach a Redis with `REDIS_URL`, and the servers that the service rejects or warns about.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::acl;
use crate::support::process::{self, Process};
use crate::support::redis_server::{RedisServer, cli, free_port, wait_for};

/// Starts a service with these variables, creates, reads and deletes a session, and audits the stored data.
async fn expect_service(variables: &[(&str, &str)]) -> Process {
    let (service, base) = Process::serve(&[], variables);
    let audit_variables: Vec<_> = variables.iter().map(|&(name, value)| (name, audit_value(name, value))).collect();
    let audit_variables: Vec<_> = audit_variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let client = reqwest::Client::new();
    let call = |method: Method, path: String, body: Value| {
        let request = client.request(method, format!("{base}{path}")).json(&body);
        async move {
            let response = request.send().await.expect("a response");
            (response.status(), response.json::<Value>().await.unwrap_or_default())
        }
    };
    let user = json!({"businessId": "b", "userId": "u"});
    let (status, session) = call(Method::POST, "/api/sessions".to_owned(), user.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{session} {:#?}", service.lines);
    let path = format!("/api/sessions/{}", session["sessionId"].as_str().expect("an id"));
    let message = json!({"role": "user", "content": "hello"});
    let (status, appended) = call(Method::POST, format!("{path}/messages"), message).await;
    assert_eq!(status, StatusCode::CREATED, "{appended}");
    let (status, active) = call(Method::GET, "/api/sessions/business/b/active".to_owned(), Value::Null).await;
    assert_eq!((status, &active[0]["sessionId"]), (StatusCode::OK, &session["sessionId"]), "{active}");
    let audit = process::run(&["audit"], &audit_variables);
    assert_eq!(audit.status.code(), Some(0), "{}", String::from_utf8_lossy(&audit.stdout));
    let (status, _) = call(Method::DELETE, path.clone(), Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, _) = call(Method::GET, path, Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    service
}

/// The value of the variable for an audit, which has another Redis user if the service has one.
fn audit_value(name: &str, value: &str) -> String {
    let is_url = name == "REDIS_URL" && value.contains("//sessiond:");
    if is_url { acl::audit_url(value) } else { value.to_owned() }
}

/// Starts a service that must exit because it rejects its Redis. Returns the exit status and the line with the reason.
fn expect_rejection(url: &str) -> (Option<i32>, String) {
    let mut service = Process::start(&["--listen", "127.0.0.1:0"], &[("REDIS_URL", url)]);
    let status = service.wait().code();
    let why: Vec<_> = service.lines.iter().filter(|line| !line.starts_with('{')).cloned().collect();
    assert_eq!(why.len(), 1, "one line has the reason: {:#?}", service.lines);
    (status, why[0].clone())
}

#[tokio::test]
async fn connects_by_tcp_by_socket_and_with_a_password() {
    let folder = TempDir::new().expect("a folder");
    let socket = folder.path().join("redis.sock");
    let socket = socket.to_str().expect("a path");
    let server = RedisServer::on_tcp(folder.path(), &["--unixsocket", socket]);
    // The password has characters that a URL has to encode.
    let service = expect_service(&[("REDIS_URL", &server.url())]).await;
    assert!(!service.lines.join("\n").contains("horse"), "a password is logged: {:#?}", service.lines);
    expect_service(&[("REDIS_URL", &acl::url(Path::new(socket)))]).await;
    // Another database has another keyspace.
    expect_service(&[("REDIS_URL", &format!("{}/3", server.url()))]).await;
    let sent = server.sent();
    assert!(acl::WITH_A_DATABASE.iter().all(|&command| sent.contains(command)), "{sent:?}");
    expect_service(&[("REDIS_URL", &format!("redis://{}", server.address()))]).await;
    expect_service(&[("REDIS_URL", &format!("redis+unix://{socket}"))]).await;
    server.ask(&["CONFIG", "SET", "requirepass", "other"]);
    expect_service(&[("REDIS_URL", &format!("redis://:other@{}", server.address()))]).await;
    expect_service(&[("REDIS_URL", &format!("redis+unix://default:other@localhost{socket}"))]).await;
}

/// A socket's path may have characters that have a meaning in URLs, or that URLs must encode.
#[tokio::test]
async fn connects_by_a_socket_whose_path_needs_encoding() {
    let folder = TempDir::new().expect("a folder");
    let socket = folder.path().join("redis.sock");
    let _server = RedisServer::on_tcp(folder.path(), &["--unixsocket", socket.to_str().expect("a path")]);
    let names = [
        ("with space", "with space"),
        ("with%20space", "with space"),
        ("100%25", "100%"),
        ("50%off", "50%off"),
        ("a%2520b", "a%20b"),
        ("what%3F%23", "what?#"),
        ("grün", "grün"),
        ("gr%C3%BCn", "grün"),
        ("a@b:1", "a@b:1"),
    ];
    for (spelled, name) in names {
        let path = folder.path().join(name);
        if !path.exists() {
            std::fs::create_dir(&path).expect("a folder");
            std::os::unix::fs::symlink(&socket, path.join("r.sock")).expect("a link to the socket");
        }
        let url = format!("redis+unix://{}localhost{}/{spelled}/r.sock", acl::credentials(), folder.path().display());
        let audit = process::run(&["audit"], &[("REDIS_URL", &acl::audit_url(&url))]);
        assert_eq!(audit.status.code(), Some(0), "{spelled}: {audit:?}");
    }
    let spelled = format!("redis+unix://{}localhost{}/with space/r.sock", acl::credentials(), folder.path().display());
    let service = expect_service(&[("REDIS_URL", &spelled)]).await;
    assert!(!service.lines.join("\n").contains("horse"), "a password is logged: {:#?}", service.lines);
}

/// A private CA with a certificate and its key, as files.
struct Certificates {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Certificates {
    /// Makes a new CA, and a certificate of it for `host`.
    fn make(folder: &Path, host: &str) -> Self {
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca_params = CertificateParams::new(Vec::new()).expect("parameters");
        // Certificates name their CA. A CA of the same name with another key would cause a bad signature instead of an
        // unknown issuer.
        ca_params.distinguished_name.push(DnType::CommonName, format!("CA of {host}"));
        ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = ca_params.self_signed(&ca_key).expect("a CA");
        let issuer = Issuer::new(ca_params, ca_key);
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([host.to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        let write = |name: &str, text: String| {
            let path = folder.join(format!("{host}-{name}"));
            std::fs::write(&path, text).expect("a file");
            path
        };
        Self {
            ca: write("ca.pem", ca.pem()),
            certificate: write("certificate.pem", certificate.pem()),
            key: write("key.pem", key.serialize_pem()),
        }
    }

    /// Settings of a server or a sentinel that accepts TLS on this port, and uses TLS to connect to others.
    fn settings(&self, tls_port: u16) -> [(&'static str, String); 5] {
        let path = |path: &Path| path.to_str().expect("a path").to_owned();
        [
            ("tls-port", tls_port.to_string()),
            ("tls-cert-file", path(&self.certificate)),
            ("tls-key-file", path(&self.key)),
            ("tls-ca-cert-file", path(&self.ca)),
            ("tls-auth-clients", "no".to_owned()),
        ]
    }

    /// Starts a server that also accepts TLS. Returns it and its TLS port.
    fn server(&self, folder: &Path, more: &[&str]) -> (RedisServer, u16) {
        let tls_port = free_port();
        let settings = self.settings(tls_port).map(|(name, value)| [format!("--{name}"), value]);
        let arguments: Vec<_> = settings.iter().flatten().map(String::as_str).chain(more.iter().copied()).collect();
        (RedisServer::on_tcp(folder, &arguments), tls_port)
    }
}

/// The certificate is for a host name, but the cluster announces addresses by default, so the service has to use the
/// announced host names.
#[tokio::test]
async fn connects_to_a_cluster_by_tls() {
    let folder = TempDir::new().expect("a folder");
    let certificates = Certificates::make(folder.path(), "localhost");
    let bus_port = free_port().to_string();
    let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus_port, "--tls-cluster", "yes"];
    let names = ["--cluster-announce-ip", "127.0.0.1", "--cluster-announce-hostname", "localhost"];
    let (server, port) = certificates.server(folder.path(), &[cluster.as_slice(), &names].concat());
    assert_eq!(server.ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).trim(), "OK");
    wait_for("a cluster", || server.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
    let slots = server.ask(&["CLUSTER", "SLOTS"]);
    assert!(slots.contains("127.0.0.1") && slots.contains("localhost"), "{slots}");
    let url = format!("rediss-cluster://{}localhost:{port}", acl::credentials());
    let ca = certificates.ca.to_str().expect("a path");
    expect_service(&[("REDIS_URL", &url), ("SSL_CERT_FILE", ca)]).await;
}

#[tokio::test]
async fn connects_to_a_sentinel_and_its_master_by_tls() {
    let folder = TempDir::new().expect("a folder");
    let certificates = Certificates::make(folder.path(), "localhost");
    let (_master, port) = certificates.server(folder.path(), &["--tls-replication", "yes"]);
    let sentinel_port = free_port();
    let settings = certificates.settings(sentinel_port).map(|(name, value)| format!("{name} {value}\n")).concat();
    let sentinel = RedisServer::sentinel(
        folder.path(),
        &format!(
            "{settings}tls-replication yes\nsentinel resolve-hostnames yes\nsentinel announce-hostnames yes\n\
             sentinel monitor sessions localhost {port} 1\n"
        ),
    );
    wait_for("a master that the sentinel reaches", || sentinel.info("master0").contains("status=ok"));
    let url = format!("rediss-sentinel://{}localhost:{sentinel_port}?sentinelServiceName=sessions", acl::credentials());
    let ca = certificates.ca.to_str().expect("a path");
    expect_service(&[("REDIS_URL", &url), ("SSL_CERT_FILE", ca)]).await;
}

#[tokio::test]
async fn tls_accepts_a_private_ca_and_rejects_another_ca_or_name() {
    let folder = TempDir::new().expect("a folder");
    let good = Certificates::make(folder.path(), "localhost");
    let other_name = Certificates::make(folder.path(), "redis.internal");
    let (_server, port) = good.server(folder.path(), &[]);
    let (_other_server, other_port) = other_name.server(folder.path(), &[]);
    let (ca, other_ca) = (good.ca.to_str().expect("a path"), other_name.ca.to_str().expect("a path"));
    let url = format!("rediss://{}localhost:{port}", acl::credentials());
    expect_service(&[("REDIS_URL", &url), ("SSL_CERT_FILE", ca)]).await;

    let other_url = format!("rediss://localhost:{other_port}");
    let rejected = [(&url, other_ca, "UnknownIssuer"), (&other_url, other_ca, "NotValidForName")];
    for (url, ca, why) in rejected {
        let (mut service, base) = Process::serve(&[], &[("REDIS_URL", url), ("SSL_CERT_FILE", ca)]);
        service.wait_for_line(why);
        let response = reqwest::get(format!("{base}/api/sessions/business/b/active")).await.expect("a response");
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{why}");
    }
    // A missing CA file is a bad setting: the service does not start.
    let (status, lines) = {
        let variables = [("REDIS_URL", url.as_str()), ("SSL_CERT_FILE", "/nowhere/ca.pem")];
        let output = process::run(&["check-config"], &variables);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(status, Some(2), "{lines}");
    assert!(lines.contains("/nowhere/ca.pem") && lines.contains("REDIS_URL"), "{lines}");
}

#[test]
fn a_server_that_denies_the_channels_of_streams_is_rejected() {
    let folder = TempDir::new().expect("a folder");
    let server = RedisServer::on_tcp(folder.path(), &[]);
    for rules in [["resetchannels", "+spublish"], ["&sd:*", "-spublish"], ["+spublish", "-ssubscribe"]] {
        server.ask(&[&["ACL", "SETUSER", acl::SERVICE][..], &rules].concat());
        let (status, why) = expect_rejection(&server.url());
        assert_eq!(status, Some(1), "{why}");
        assert!(why.contains("channels of event streams"), "{why}");
    }
}

#[test]
fn servers_that_evict_or_have_another_layout_are_rejected() {
    let folder = TempDir::new().expect("a folder");
    let server = RedisServer::on_tcp(folder.path(), &["--maxmemory-policy", "allkeys-lru"]);
    let url = server.url();
    let (status, why) = expect_rejection(&url);
    assert_eq!(status, Some(1), "{why}");
    assert!(why.contains("allkeys-lru") && why.contains("noeviction"), "{why}");
    assert_eq!(server.ask(&["KEYS", "*"]).trim(), "", "nothing was written");

    server.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    server.ask(&["SET", "sd:layout", "1"]);
    let (status, why) = expect_rejection(&url);
    assert_eq!(status, Some(1), "{why}");
    assert!(why.contains("layout version, \"1\""), "{why}");
    assert_eq!(server.ask(&["KEYS", "*"]).trim(), "sd:layout", "nothing was written");
}

#[tokio::test]
async fn warns_about_a_master_that_may_lose_acknowledged_writes() {
    let folder = TempDir::new().expect("a folder");
    let master = RedisServer::on_tcp(folder.path(), &[]);
    let port = master.port.to_string();
    let _replica = RedisServer::on_tcp(folder.path(), &["--replicaof", "127.0.0.1", &port]);
    wait_for("a replica", || master.info("connected_slaves") == "1");
    let url = master.url();
    let (mut service, base) = Process::serve(&[], &[("REDIS_URL", &url)]);
    wait_for("service", || cli(master.port, &["EXISTS", "sd:layout"]).trim() == "1");
    // It is a warning only: the service serves.
    let response = reqwest::get(format!("{base}/readyz")).await.expect("a response");
    assert_eq!(response.status(), StatusCode::OK);
    service.signal(Signal::TERM);
    assert_eq!(service.wait().code(), Some(0), "{:#?}", service.lines);
    let warned = |line: &&String| line.contains("WARN") && line.contains("min-replicas-to-write");
    assert_eq!(service.lines.iter().filter(warned).count(), 1, "{:#?}", service.lines);
}
