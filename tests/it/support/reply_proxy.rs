//! A proxy in front of Redis that injects faults which a real server cannot produce on demand.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Notify;

use super::acl;

/// The name of a session hash's first field in a reply. Identifies replies that contain a session.
const SESSION: &[u8] = b"\r\n$9\r\nsessionId\r\n";

/// The next fault. It happens once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// No fault. It is disarmed by the next command that contains this text, so a test can detect that command.
    Observe(&'static str),
    /// Holds back the next command that contains this text, and what follows on its connection, until
    /// [`ReplyProxy::release`].
    Hold(&'static str),
    /// A command is held back.
    Held,
    /// Swaps the next two sessions that are read over one connection.
    SwapSessions,
    /// Closes the connection after Redis has run a command that contains this text, before the reply is forwarded.
    CutAfter(&'static str),
}

/// A proxy in front of one Redis. It ends with the test's runtime.
#[derive(Clone)]
pub struct ReplyProxy {
    /// The URL with which a service connects to the proxy.
    pub url: String,
    /// The port of the proxy on 127.0.0.1.
    pub port: u16,
    fault: Arc<Mutex<Fault>>,
    released: Arc<Notify>,
    /// How many seconds are added to the clock in replies to TIME.
    clock_ahead: Arc<AtomicI64>,
    /// Whether replies to INFO report version 6.
    seems_old: Arc<AtomicBool>,
}

/// The server behind a proxy.
#[derive(Clone)]
enum Target {
    Socket(PathBuf),
    Port(u16),
}

impl ReplyProxy {
    /// Starts a proxy in front of the Redis at `socket`.
    pub async fn start(socket: PathBuf) -> Self {
        Self::start_to(Target::Socket(socket)).await
    }

    /// Starts a proxy in front of the Redis on this port of 127.0.0.1.
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
            released: Arc::default(),
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

    /// Makes the clock of the Redis appear to be `seconds` ahead.
    pub fn set_clock_ahead(&self, seconds: i32) {
        self.clock_ahead.store(seconds.into(), Ordering::SeqCst);
    }

    /// Makes the Redis report version 6.
    pub fn set_old(&self, seems_old: bool) {
        self.seems_old.store(seems_old, Ordering::SeqCst);
    }

    /// A reply with the changes for the clock and the version.
    fn altered(&self, mut reply: Vec<u8>) -> Vec<u8> {
        let ahead = self.clock_ahead.load(Ordering::SeqCst);
        if let Some((seconds, microseconds)) = time(&reply).filter(|_| ahead != 0) {
            let seconds = (seconds + ahead).to_string();
            let length = microseconds.len();
            return format!("*2\r\n${}\r\n{seconds}\r\n${length}\r\n{microseconds}\r\n", seconds.len()).into_bytes();
        }
        for version in [&b"redis_version:"[..], b"valkey_version:"] {
            let start = reply.windows(version.len()).position(|window| window == version);
            if let Some(start) = start.filter(|_| self.seems_old.load(Ordering::SeqCst)) {
                reply[start + version.len()] = b'6';
            }
        }
        reply
    }

    /// Sets the next fault.
    pub fn arm(&self, fault: Fault) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// Forwards the command that is held back.
    pub fn release(&self) {
        self.arm(Fault::None);
        self.released.notify_one();
    }

    /// The fault that has not happened yet.
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
                    if let Fault::CutAfter(text) | Fault::Observe(text) = armed
                        && has(bytes, text.as_bytes())
                    {
                        self.arm(Fault::None);
                        cuts = armed == Fault::CutAfter(text);
                    }
                    if let Fault::Hold(text) = armed
                        && has(bytes, text.as_bytes())
                    {
                        self.arm(Fault::Held);
                        self.released.notified().await;
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

/// The seconds and microseconds if `reply` is a reply to TIME.
fn time(reply: &[u8]) -> Option<(i64, &str)> {
    let mut lines = std::str::from_utf8(reply).ok()?.strip_prefix("*2\r\n$10\r\n")?.split("\r\n");
    let seconds = lines.next()?.parse().ok()?;
    lines.next()?.strip_prefix('$')?;
    let microseconds = lines.next()?;
    microseconds.parse::<u32>().ok()?;
    (lines.next() == Some("") && lines.next().is_none()).then_some((seconds, microseconds))
}

/// The length in bytes of the first reply (RESP2), or `None` if it is incomplete.
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
