//! A pipelined connection next to that of the client (fred): through fred, reads and scripts cost the service a third
//! more. Each server has one for reads and one for scripts, because Redis may hold scripts back. A session is read as a
//! whole hash (`HGETALL`): measured with 17 fields, looking them up by name costs Redis a third more than sending their
//! names as well (`benches/HISTORY.md`).
//!
//! This connection decides nothing. If it does not get a reply of the right shape (no connection, an error, a
//! redirection, a loading server), the client sends the command again and handles the case: reads and scripts may run
//! twice. Only a script whose connection broke is not sent again, because it may have run. The connection is open only
//! while the client has one, and leads to the same server. So it follows failovers, and is closed when the client's
//! connection breaks.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::bytes::{Buf, BytesMut};
use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::config::{Config, ServerConfig, TlsConnector};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio_rustls::rustls::pki_types::ServerName;

use super::connection_id::{ConnectionId, SharedConnectionId};
use super::read_command::ReadReply;
use super::resp::{self, Flat, Frame};
use crate::session::{Session, SessionId};
use crate::store::StoreError;
use crate::store::keys::SESSION_FIELDS;
use crate::store::reply::SessionFields;

/// How often to check for an overdue reply and for a new connection of the client.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// After this time without a request the connection sends a PING, so that networks do not drop it, and to notice if one
/// has.
const PING_AFTER: Duration = Duration::from_secs(15);
/// Delay before a broken connection is opened again.
const REOPEN_AFTER: Duration = Duration::from_millis(200);
/// Timeout of one attempt to connect.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum bytes of commands in one write.
const BATCH_BYTES_MAX: usize = 64 * 1024;
/// Minimum free space for replies before a read: a small buffer is filled by each of many reads.
const READ_BUFFER_MIN: usize = 16 * 1024;

/// The connection. A background task opens it, and reopens it whenever it breaks, until this is dropped.
#[derive(Debug)]
pub(super) struct Pipeline {
    requests: UnboundedSender<Request>,
    /// The client's connection that the open connection is paired with.
    paired_with: Arc<SharedConnectionId>,
    task: AbortHandle,
}

/// An encoded command and the receiver of its reply.
struct Request {
    command: Vec<u8>,
    reply: ReplySender,
}

/// Takes the reply. Dropped if the client has to send the command.
enum ReplySender {
    /// The session with this id.
    Session(SessionId, oneshot::Sender<Result<Option<Box<Session>>, StoreError>>),
    /// Any reply to a read that is not nested.
    Read(oneshot::Sender<Result<ReadReply, StoreError>>),
    /// The reply to a script.
    Script(oneshot::Sender<Result<ReadReply, StoreError>>),
    /// The reply is discarded: to a PING, or to a request that already failed as overdue.
    Discard,
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pipeline {
    /// Starts a connection paired with this client's.
    pub(super) fn start(
        client: &Client,
        config: &Config,
        connection_id: &Arc<SharedConnectionId>,
        connected: Arc<Notify>,
        timeout: Duration,
    ) -> Self {
        let (requests, receiver) = unbounded_channel();
        let paired_with = Arc::new(SharedConnectionId::default());
        let driver = Driver {
            client: client.clone(),
            config: config.clone(),
            connection_id: Arc::clone(connection_id),
            connected,
            paired_with: Arc::clone(&paired_with),
            timeout,
        };
        Self { requests, paired_with, task: tokio::spawn(driver.run(receiver)).abort_handle() }
    }

    /// The session `id`, if it exists, which this command reads. The outer `None` means that the client has to read it.
    /// `connection_id` is the client's present connection.
    pub(super) async fn session(
        &self,
        command: Vec<u8>,
        id: SessionId,
        connection_id: ConnectionId,
    ) -> Option<Result<Option<Box<Session>>, StoreError>> {
        let (reply, receiver) = oneshot::channel();
        self.request(command, ReplySender::Session(id, reply), connection_id)?;
        receiver.await.ok()
    }

    /// The reply to a command that reads. `None` means that the client has to send it.
    pub(super) async fn read(
        &self,
        command: Vec<u8>,
        connection_id: ConnectionId,
    ) -> Option<Result<ReadReply, StoreError>> {
        let (reply, receiver) = oneshot::channel();
        self.request(command, ReplySender::Read(reply), connection_id)?;
        receiver.await.ok()
    }

    /// The reply to a script. `None` means that the client has to run it: it was not sent, or the reply is an error or
    /// has another shape.
    pub(super) async fn run(
        &self,
        command: Vec<u8>,
        connection_id: ConnectionId,
    ) -> Option<Result<ReadReply, StoreError>> {
        let (reply, receiver) = oneshot::channel();
        self.request(command, ReplySender::Script(reply), connection_id)?;
        receiver.await.ok()
    }

    fn request(&self, command: Vec<u8>, reply: ReplySender, connection_id: ConnectionId) -> Option<()> {
        if self.paired_with.get() != Some(connection_id) {
            return None;
        }
        self.requests.send(Request { command, reply }).ok()
    }
}

impl ReplySender {
    fn fail(self, error: Error) {
        // The caller may have given up.
        match self {
            Self::Session(_, reply) => drop(reply.send(Err(error.into()))),
            Self::Read(reply) | Self::Script(reply) => drop(reply.send(Err(error.into()))),
            Self::Discard => {}
        }
    }

    /// Ends a request whose connection broke. It is not known whether a script ran.
    fn disconnect(self) {
        if matches!(self, Self::Script(_)) {
            self.fail(Error::new(ErrorKind::IO, "the connection broke before the reply"));
        }
    }
}

/// State of the background task.
struct Driver {
    client: Client,
    config: Config,
    connection_id: Arc<SharedConnectionId>,
    /// Notified when the client has a new connection.
    connected: Arc<Notify>,
    paired_with: Arc<SharedConnectionId>,
    timeout: Duration,
}

impl Driver {
    async fn run(self, mut requests: UnboundedReceiver<Request>) {
        loop {
            if let Some(id) = self.connection_id.get().filter(|_| self.client.is_connected()) {
                match tokio::time::timeout(CONNECT_TIMEOUT, open(&self.client, &self.config)).await {
                    Ok(Ok(stream)) => {
                        self.paired_with.set(Some(id));
                        let mut pending = VecDeque::new();
                        // The client logs connections that break.
                        let _ = self.serve(stream, &mut requests, &mut pending, id).await;
                        self.paired_with.set(None);
                        for Pending { reply, .. } in pending {
                            reply.disconnect();
                        }
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "cannot open a pipelined connection"),
                    Err(_) => {}
                }
            }
            // Drops the requests that arrived meanwhile; the client serves them.
            while requests.try_recv().is_ok() {}
            // Reopens at once when the client has a new connection, otherwise after a delay.
            let _ = tokio::time::timeout(REOPEN_AFTER, self.connected.notified()).await;
        }
    }

    /// Sends the requests, several in one write, and delivers the replies in their order, until the connection breaks
    /// or the client has another connection. After the first overdue reply no more requests are sent: the connection
    /// ends when the others have their replies, or are overdue as well.
    async fn serve(
        &self,
        mut stream: Box<dyn Stream>,
        requests: &mut UnboundedReceiver<Request>,
        pending: &mut VecDeque<Pending>,
        id: ConnectionId,
    ) -> io::Result<()> {
        let (mut commands, mut replies) = (Vec::new(), BytesMut::new());
        let names = resp::encode_names(SESSION_FIELDS);
        // With an argument, the reply is a text like that of other commands.
        let ping = resp::command([&b"PING"[..], b"p"].into_iter());
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        let mut is_closing = false;
        let mut sent_at = Instant::now();
        loop {
            if replies.capacity() - replies.len() < READ_BUFFER_MIN {
                replies.reserve(4 * READ_BUFFER_MIN);
            }
            tokio::select! {
                Some(first) = requests.recv(), if !is_closing => {
                    // Yields once to the other tasks. A request that they add costs one more command, but no further
                    // write.
                    tokio::task::yield_now().await;
                    sent_at = Instant::now();
                    let mut next = Some(first);
                    while let Some(Request { command, reply }) = next {
                        commands.extend_from_slice(&command);
                        pending.push_back(Pending { sent: sent_at, reply });
                        next = if commands.len() < BATCH_BYTES_MAX { requests.try_recv().ok() } else { None };
                    }
                    let written = tokio::time::timeout(self.timeout, write(&mut stream, &commands)).await;
                    written.map_err(|_| io::ErrorKind::TimedOut)??;
                    commands.clear();
                    commands.shrink_to(2 * BATCH_BYTES_MAX);
                }
                read = stream.read_buf(&mut replies) => {
                    if read? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    deliver(&mut replies, pending, &names)?;
                }
                _ = check.tick() => {
                    if self.connection_id.get() != Some(id) {
                        return Ok(());
                    }
                    let is_overdue = |request: &&mut Pending| request.sent.elapsed() >= self.timeout;
                    for Pending { reply, .. } in pending.iter_mut().take_while(is_overdue) {
                        let overdue = std::mem::replace(reply, ReplySender::Discard);
                        overdue.fail(Error::new(ErrorKind::Timeout, "no reply before the timeout"));
                        is_closing = true;
                    }
                    self.paired_with.set(Some(id).filter(|_| !is_closing));
                    if !is_closing && sent_at.elapsed() >= PING_AFTER {
                        sent_at = Instant::now();
                        pending.push_back(Pending { sent: sent_at, reply: ReplySender::Discard });
                        let written = tokio::time::timeout(self.timeout, write(&mut stream, &ping)).await;
                        written.map_err(|_| io::ErrorKind::TimedOut)??;
                    }
                }
            }
            if is_closing {
                // Drops the requests that arrived meanwhile; the client serves them.
                while requests.try_recv().is_ok() {}
                if pending.iter().all(|request| matches!(request.reply, ReplySender::Discard)) {
                    return Ok(());
                }
            }
        }
    }
}

/// A request whose reply has not arrived.
struct Pending {
    sent: Instant,
    reply: ReplySender,
}

/// Connects to the client's server, as the same user.
pub(super) async fn open(client: &Client, config: &Config) -> io::Result<Box<dyn Stream>> {
    let mut stream: Box<dyn Stream> = if let ServerConfig::Unix { path } = &config.server {
        Box::new(UnixStream::connect(path).await?)
    } else {
        let servers = client.active_connections();
        let server = servers.first().ok_or(io::ErrorKind::NotConnected)?;
        let tcp = TcpStream::connect((&*server.host, server.port)).await?;
        tcp.set_nodelay(true)?;
        match &config.tls {
            Some(tls) => {
                let TlsConnector::Rustls(connector) = &tls.connector;
                let name = server.tls_server_name.as_ref().unwrap_or(&server.host).to_string();
                let name = ServerName::try_from(name).map_err(io::Error::other)?;
                Box::new(connector.connect(name, tcp).await?)
            }
            None => Box::new(tcp),
        }
    };
    let mut handshake: Vec<Vec<&[u8]>> = Vec::new();
    match (&config.username, &config.password) {
        (Some(username), Some(password)) => {
            handshake.push(vec![b"AUTH", username.as_bytes(), password.as_bytes()]);
        }
        (None, Some(password)) => handshake.push(vec![b"AUTH", password.as_bytes()]),
        _ => {}
    }
    let database = config.database.map(|database| database.to_string());
    if let Some(database) = &database {
        handshake.push(vec![b"SELECT", database.as_bytes()]);
    }
    for words in handshake {
        let mut command = Vec::new();
        resp::write_command(words.into_iter(), &mut command);
        stream.write_all(&command).await?;
        stream.flush().await?;
        let mut reply = [0; 5];
        stream.read_exact(&mut reply).await?;
        if &reply != b"+OK\r\n" {
            return Err(io::Error::other("the server rejected AUTH or SELECT"));
        }
    }
    Ok(stream)
}

async fn write(stream: &mut Box<dyn Stream>, commands: &[u8]) -> io::Result<()> {
    stream.write_all(commands).await?;
    // A TLS stream buffers what it has encrypted.
    stream.flush().await
}

/// Delivers the complete replies to the requests that wait for them, in their order. An error is not delivered: the
/// client sends the command again.
fn deliver(
    replies: &mut BytesMut,
    pending: &mut VecDeque<Pending>,
    names: &[Vec<u8>; SESSION_FIELDS.len()],
) -> io::Result<()> {
    while !replies.is_empty() {
        let Some(Pending { sent, reply: request }) = pending.pop_front() else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        // The caller may have given up.
        match request {
            ReplySender::Session(id, reply) => {
                let Some((frame, length)) = resp::next_fields(replies, names)? else {
                    pending.push_front(Pending { sent, reply: ReplySender::Session(id, reply) });
                    return Ok(());
                };
                if let Frame::Fields(texts) = frame {
                    let _ = reply.send(SessionFields(texts).session("get", id));
                }
                replies.advance(length);
            }
            request => {
                let Some((flat, length)) = resp::next_flat(replies)? else {
                    pending.push_front(Pending { sent, reply: request });
                    return Ok(());
                };
                let frame = replies.split_to(length).freeze();
                let (ReplySender::Read(reply) | ReplySender::Script(reply)) = request else { continue };
                let read = match flat {
                    Flat::Other => continue,
                    Flat::Integer(number) => ReadReply::Integer(number),
                    Flat::Text(text) => ReadReply::Text(text.map(|range| frame.slice(range))),
                    Flat::Texts(texts) => ReadReply::Texts(texts.into_iter().map(|range| frame.slice(range)).collect()),
                };
                let _ = reply.send(Ok(read));
            }
        }
    }
    Ok(())
}

/// A TCP, TLS or Unix stream.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
