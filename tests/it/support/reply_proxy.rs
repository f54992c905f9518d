//! A connection to Redis that goes wrong in ways that a server cannot be asked for.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use super::acl;

/// What is in a reply that is a session's hash: the name of its first field.
const SESSION: &[u8] = b"\r\n$9\r\nsessionId\r\n";

/// What happens next, once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Nothing does, when a command with this text comes.
    Nothing(&'static str),
    /// The next two sessions that are read by one connection change places.
    SwapSessions,
    /// The connection ends after a command with this text in it was carried out, before its reply.
    CutAfter(&'static str),
}

/// Forwards connections to one Redis. Ends with the test's runtime.
#[derive(Clone)]
pub struct ReplyProxy {
    /// The service's URL of it.
    pub url: String,
    /// Its port on 127.0.0.1.
    pub port: u16,
    fault: Arc<Mutex<Fault>>,
    /// By how many seconds the clock of the Redis seems to be ahead.
    clock_ahead: Arc<AtomicI64>,
    /// Whether the Redis says that it is of version 6.
    seems_old: Arc<AtomicBool>,
}

/// Where a proxy leads to.
#[derive(Clone)]
enum Target {
    Socket(PathBuf),
    Port(u16),
}

impl ReplyProxy {
    /// A proxy of the Redis at `socket`.
    pub async fn start(socket: PathBuf) -> Self {
        Self::start_to(Target::Socket(socket)).await
    }

    /// A proxy of the Redis at this port.
    pub async fn start_to_port(port: u16) -> Self {
        Self::start_to(Target::Port(port)).await
    }

    async fn start_to(target: Target) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let url = format!("redis://{}{address}", acl::credentials());
        let proxy = Self {
            url,
            port: address.port(),
            fault: Arc::default(),
            clock_ahead: Arc::default(),
            seems_old: Arc::default(),
        };
        let forwarding = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (proxy, target) = (forwarding.clone(), target.clone());
                tokio::spawn(async move {
                    match target {
                        Target::Socket(path) => {
                            proxy.forward(client, UnixStream::connect(path).await.expect("a Redis")).await;
                        }
                        Target::Port(port) => {
                            proxy
                                .forward(client, TcpStream::connect(("127.0.0.1", port)).await.expect("a Redis"))
                                .await;
                        }
                    }
                });
            }
        });
        proxy
    }

    /// Has the clock of the Redis seem to be ahead by so many seconds, from now on.
    pub fn set_clock_ahead(&self, seconds: i32) {
        self.clock_ahead.store(seconds.into(), Ordering::SeqCst);
    }

    /// Has the Redis say that it is of version 6, from now on.
    pub fn set_old(&self, seems_old: bool) {
        self.seems_old.store(seems_old, Ordering::SeqCst);
    }

    /// A reply as the service is to get it.
    fn altered(&self, mut reply: Vec<u8>) -> Vec<u8> {
        let ahead = self.clock_ahead.load(Ordering::SeqCst);
        if let Some((seconds, microseconds)) = time(&reply).filter(|_| ahead != 0) {
            let seconds = (seconds + ahead).to_string();
            let length = microseconds.len();
            return format!("*2\r\n${}\r\n{seconds}\r\n${length}\r\n{microseconds}\r\n", seconds.len()).into_bytes();
        }
        for version in [&b"redis_version:"[..], b"valkey_version:"] {
            let place = reply.windows(version.len()).position(|window| window == version);
            if let Some(place) = place.filter(|_| self.seems_old.load(Ordering::SeqCst)) {
                reply[place + version.len()] = b'6';
            }
        }
        reply
    }

    pub fn arm(&self, fault: Fault) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// What is still to happen.
    pub fn armed(&self) -> Fault {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn forward(self, client: TcpStream, server: impl AsyncRead + AsyncWrite) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = tokio::io::split(server);
        let (mut sent, mut received, mut held, mut cuts) = (vec![0; 65_536], Vec::new(), None, false);
        loop {
            tokio::select! {
                read = from_client.read(&mut sent) => {
                    let Ok(1..) = read else { return };
                    let bytes = &sent[..read.unwrap_or_default()];
                    let armed = self.armed();
                    if let Fault::CutAfter(text) | Fault::Nothing(text) = armed
                        && has(bytes, text.as_bytes())
                    {
                        self.arm(Fault::None);
                        cuts = armed == Fault::CutAfter(text);
                    }
                    if to_server.write_all(bytes).await.is_err() { return }
                }
                read = from_server.read_buf(&mut received) => {
                    let Ok(1..) = read else { return };
                    if cuts { return }
                    while let Some(length) = reply_length(&received) {
                        let mut reply = self.altered(received.drain(..length).collect());
                        if self.armed() == Fault::SwapSessions && has(&reply, SESSION) {
                            let Some(first) = held.take() else {
                                held = Some(reply);
                                continue;
                            };
                            self.arm(Fault::None);
                            reply.extend_from_slice(&first);
                        }
                        if to_client.write_all(&reply).await.is_err() { return }
                    }
                }
            }
        }
    }
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The seconds and microseconds of a reply to TIME.
fn time(reply: &[u8]) -> Option<(i64, &str)> {
    let mut lines = std::str::from_utf8(reply).ok()?.strip_prefix("*2\r\n$10\r\n")?.split("\r\n");
    let seconds = lines.next()?.parse().ok()?;
    lines.next()?.strip_prefix('$')?;
    let microseconds = lines.next()?;
    microseconds.parse::<u32>().ok()?;
    (lines.next() == Some("") && lines.next().is_none()).then_some((seconds, microseconds))
}

/// How long the first reply is (RESP2), if all of it is there.
fn reply_length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(2).position(|window| window == b"\r\n")? + 2;
    let count = || std::str::from_utf8(&bytes[1..end - 2]).ok()?.parse::<i64>().ok();
    match bytes[0] {
        b'$' => {
            let length = usize::try_from(count()?).map_or(end, |length| end + length + 2);
            (bytes.len() >= length).then_some(length)
        }
        b'*' => (0..count()?).try_fold(end, |length, _| Some(length + reply_length(&bytes[length..])?)),
        _ => Some(end),
    }
}
