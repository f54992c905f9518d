//! A connection to Redis that goes wrong in ways that a server cannot be asked for.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
    fault: Arc<Mutex<Fault>>,
}

impl ReplyProxy {
    /// A proxy of the Redis at `socket`.
    pub async fn start(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("redis://{}{}", acl::credentials(), listener.local_addr().expect("an address"));
        let proxy = Self { url, fault: Arc::default() };
        let forwarding = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = UnixStream::connect(&socket).await.expect("a Redis");
                tokio::spawn(forwarding.clone().forward(client, server));
            }
        });
        proxy
    }

    pub fn arm(&self, fault: Fault) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// What is still to happen.
    pub fn armed(&self) -> Fault {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn forward(self, client: TcpStream, server: UnixStream) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
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
                        let mut reply: Vec<u8> = received.drain(..length).collect();
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
