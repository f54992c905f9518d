//! A connection that only reads, next to the client's (fred). Nearly every request reads, and the client spends more
//! time on a read than Redis does. A session is read as a whole hash (`HGETALL`): looking up 17 named fields costs
//! Redis a third more than sending their names as well (`benches/HISTORY.md`).
//!
//! This connection decides nothing. If it does not get a reply (no connection, an error, a redirection, a loading
//! server), the client sends the command again and handles the case; a read may be repeated. It is open only while the
//! client has a connection, and leads to the same server. So it follows failovers, and is closed when the client's
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
use super::read_command::{ReadCommand, ReadReply};
use super::resp::{self, Flat, Frame};
use crate::session::{Session, SessionId};
use crate::store::StoreError;
use crate::store::keys::SESSION_FIELDS;
use crate::store::reply::SessionFields;

/// How often to check for an overdue reply and for a new connection of the client.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// Delay before a broken connection is opened again.
const REOPEN_AFTER: Duration = Duration::from_millis(200);
/// Timeout of one attempt to connect.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes of commands in one write.
const BATCH_BYTES_MAX: usize = 64 * 1024;
/// Least free space for replies before a read: a small buffer is filled by each of many reads.
const READ_BUFFER_MIN: usize = 16 * 1024;

/// The connection. A background task opens it, and reopens it whenever it breaks, until this is dropped.
#[derive(Debug)]
pub(super) struct ReadConnection {
    requests: UnboundedSender<ReadRequest>,
    /// The client's connection that the open connection is paired with.
    paired_with: Arc<SharedConnectionId>,
    task: AbortHandle,
}

/// A command and the receiver of its reply.
struct ReadRequest {
    command: ReadCommand,
    reply: ReplySender,
}

/// Takes the reply. Dropped if the client has to send the command.
enum ReplySender {
    /// The session with this id.
    Session(SessionId, oneshot::Sender<Result<Option<Session>, StoreError>>),
    /// Any reply that is not nested.
    Flat(oneshot::Sender<Result<ReadReply, StoreError>>),
}

impl Drop for ReadConnection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ReadConnection {
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

    /// The session `id` at `key`, if it exists. The outer `None` means that the client has to read it. `connection_id`
    /// is the client's present connection.
    pub(super) async fn session(
        &self,
        key: String,
        id: SessionId,
        connection_id: ConnectionId,
    ) -> Option<Result<Option<Session>, StoreError>> {
        let (reply, receiver) = oneshot::channel();
        self.request(ReadCommand::hash(key), ReplySender::Session(id, reply), connection_id)?;
        receiver.await.ok()
    }

    /// The reply to a command. `None` means that the client has to send it.
    pub(super) async fn read(
        &self,
        command: ReadCommand,
        connection_id: ConnectionId,
    ) -> Option<Result<ReadReply, StoreError>> {
        let (reply, receiver) = oneshot::channel();
        self.request(command, ReplySender::Flat(reply), connection_id)?;
        receiver.await.ok()
    }

    fn request(&self, command: ReadCommand, reply: ReplySender, connection_id: ConnectionId) -> Option<()> {
        if self.paired_with.get() != Some(connection_id) {
            return None;
        }
        self.requests.send(ReadRequest { command, reply }).ok()
    }
}

impl ReplySender {
    fn fail(self, error: Error) {
        // The caller may have given up.
        match self {
            Self::Session(_, reply) => drop(reply.send(Err(error.into()))),
            Self::Flat(reply) => drop(reply.send(Err(error.into()))),
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
    async fn run(self, mut requests: UnboundedReceiver<ReadRequest>) {
        loop {
            if let Some(id) = self.connection_id.get().filter(|_| self.client.is_connected()) {
                match tokio::time::timeout(CONNECT_TIMEOUT, open(&self.client, &self.config)).await {
                    Ok(Ok(stream)) => {
                        self.paired_with.set(Some(id));
                        // The client logs connections that break.
                        let _ = self.serve(stream, &mut requests, id).await;
                        self.paired_with.set(None);
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "cannot open the connection for reads"),
                    Err(_) => {}
                }
            }
            // Drops the requests that arrived meanwhile; the client serves them.
            while requests.try_recv().is_ok() {}
            // Reopens at once when the client has a new connection, otherwise after a delay.
            let _ = tokio::time::timeout(REOPEN_AFTER, self.connected.notified()).await;
        }
    }

    /// Sends the requests, several in one write, and delivers the replies in their order, until the connection breaks,
    /// a reply is overdue, or the client has another connection.
    async fn serve(
        &self,
        mut stream: Box<dyn Stream>,
        requests: &mut UnboundedReceiver<ReadRequest>,
        id: ConnectionId,
    ) -> io::Result<()> {
        let mut pending: VecDeque<(Instant, ReplySender)> = VecDeque::new();
        let (mut commands, mut replies) = (Vec::new(), BytesMut::new());
        let names = resp::encode_names(SESSION_FIELDS);
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        loop {
            if replies.capacity() - replies.len() < READ_BUFFER_MIN {
                replies.reserve(4 * READ_BUFFER_MIN);
            }
            tokio::select! {
                Some(first) = requests.recv() => {
                    // Yields once to the other tasks. A request that they add costs one more command, but no further
                    // write.
                    tokio::task::yield_now().await;
                    let sent = Instant::now();
                    let mut next = Some(first);
                    while let Some(ReadRequest { command, reply }) = next {
                        command.encode(&mut commands);
                        pending.push_back((sent, reply));
                        next = if commands.len() < BATCH_BYTES_MAX { requests.try_recv().ok() } else { None };
                    }
                    let written = tokio::time::timeout(self.timeout, write(&mut stream, &commands)).await;
                    written.map_err(|_| io::ErrorKind::TimedOut)??;
                    commands.clear();
                }
                read = stream.read_buf(&mut replies) => {
                    if read? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    deliver(&mut replies, &mut pending, &names)?;
                }
                _ = check.tick() => {
                    if self.connection_id.get() != Some(id) {
                        return Ok(());
                    }
                    if pending.front().is_some_and(|(since, ..)| since.elapsed() >= self.timeout) {
                        for (_, reply) in pending {
                            reply.fail(Error::new(ErrorKind::Timeout, "no reply to a read before the timeout"));
                        }
                        return Ok(());
                    }
                }
            }
        }
    }
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
    pending: &mut VecDeque<(Instant, ReplySender)>,
    names: &[Vec<u8>; SESSION_FIELDS.len()],
) -> io::Result<()> {
    while !replies.is_empty() {
        let Some((sent, request)) = pending.pop_front() else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        // The caller may have given up.
        match request {
            ReplySender::Session(id, reply) => {
                let Some((frame, length)) = resp::next_fields(replies, names)? else {
                    pending.push_front((sent, ReplySender::Session(id, reply)));
                    return Ok(());
                };
                if let Frame::Fields(texts) = frame {
                    let _ = reply.send(SessionFields(texts).session("get", id));
                }
                replies.advance(length);
            }
            ReplySender::Flat(reply) => {
                let Some((flat, length)) = resp::next_flat(replies)? else {
                    pending.push_front((sent, ReplySender::Flat(reply)));
                    return Ok(());
                };
                let frame = replies.split_to(length).freeze();
                let read = match flat {
                    Flat::Error => continue,
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
