//! A connection for reads of sessions alone, beside the client's: nearly every request is one, and a client that can do
//! everything spends more time on it than Redis does. It asks for all of a hash, `HGETALL`: to take the names of 17 fields and
//! look for each costs Redis a third more than to send them (`benches/RESULTS.md`).
//!
//! It decides nothing. Whatever is not a session's fields (no connection, an error, a redirection, a loading server) is asked
//! again by the client, which knows what to do: a read may be repeated. It is open only beside a connection of the client, to
//! the server which that one leads to, so it follows failovers, and is closed when the client's breaks.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fred::bytes::{Buf, BytesMut};
use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::config::{Config, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use super::StoreError;
use super::keys::SESSION_FIELDS;
use super::reply::{Fields, Texts};
use super::resp::{self, Frame};
use crate::session::{Session, SessionId};

/// Not the number of any connection of a client.
const NOT_OPEN: u64 = 0;
/// How often it is looked whether an answer is overdue, and whether the client's connection is another one.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How long to wait before a connection that broke is opened again.
const REOPEN_AFTER: Duration = Duration::from_millis(200);
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How many bytes of commands are written together at the most.
const WRITTEN_TOGETHER_MAX: usize = 64 * 1024;
/// How much room there is for replies at the least: too little is filled by each of many reads.
const READ_TOGETHER: usize = 16 * 1024;

/// The connection, which is made in the background, and for ever anew, until this is dropped.
#[derive(Debug)]
pub(super) struct Reads {
    asked: UnboundedSender<Asked>,
    /// The number of the client's connection beside which it is open.
    open_beside: Arc<AtomicU64>,
    task: AbortHandle,
}

/// A session that is asked for, by its key.
struct Asked {
    key: String,
    id: SessionId,
    answer: Answer,
}

/// Where the session goes to. Dropped if the client is to be asked.
type Answer = oneshot::Sender<Result<Option<Session>, StoreError>>;

impl Drop for Reads {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reads {
    /// A connection beside this client's. None with TLS: that is the client's, and costs more than is saved here.
    pub(super) fn beside(
        client: &Client,
        config: &Config,
        connection_number: &Arc<AtomicU64>,
        counted: Arc<Notify>,
        timeout: Duration,
    ) -> Option<Self> {
        if config.tls.is_some() {
            return None;
        }
        let (asked, receiver) = unbounded_channel();
        let open_beside = Arc::new(AtomicU64::new(NOT_OPEN));
        let link = Link {
            client: client.clone(),
            config: config.clone(),
            connection_number: Arc::clone(connection_number),
            counted,
            open_beside: Arc::clone(&open_beside),
            timeout,
        };
        Some(Self { asked, open_beside, task: tokio::spawn(link.keep(receiver)).abort_handle() })
    }

    /// The session of this id at this key, if there is one. `None` if the client is to be asked, whose present connection
    /// has this number.
    pub(super) async fn session(
        &self,
        key: String,
        id: SessionId,
        connection_number: u64,
    ) -> Option<Result<Option<Session>, StoreError>> {
        if self.open_beside.load(Ordering::Acquire) != connection_number {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        self.asked.send(Asked { key, id, answer }).ok()?;
        answered.await.ok()
    }
}

/// What the connection is made of.
struct Link {
    client: Client,
    config: Config,
    connection_number: Arc<AtomicU64>,
    /// Tells that the client has a connection.
    counted: Arc<Notify>,
    open_beside: Arc<AtomicU64>,
    timeout: Duration,
}

impl Link {
    async fn keep(self, mut asked: UnboundedReceiver<Asked>) {
        loop {
            let number = self.connection_number.load(Ordering::Acquire);
            if number != NOT_OPEN && self.client.is_connected() {
                match tokio::time::timeout(CONNECT_TIMEOUT, self.open()).await {
                    Ok(Ok(stream)) => {
                        self.open_beside.store(number, Ordering::Release);
                        // The client tells the log of connections that break.
                        let _ = self.serve(stream, &mut asked, number).await;
                        self.open_beside.store(NOT_OPEN, Ordering::Release);
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "no connection for reads"),
                    Err(_) => {}
                }
            }
            // Those who asked meanwhile ask the client.
            while asked.try_recv().is_ok() {}
            // At once if there is another one to be beside of; else not too often.
            let _ = tokio::time::timeout(REOPEN_AFTER, self.counted.notified()).await;
        }
    }

    /// Connects to where the client is connected, as the same user.
    async fn open(&self) -> io::Result<Box<dyn Stream>> {
        let mut stream: Box<dyn Stream> = if let ServerConfig::Unix { path } = &self.config.server {
            Box::new(UnixStream::connect(path).await?)
        } else {
            let servers = self.client.active_connections();
            let server = servers.first().ok_or(io::ErrorKind::NotConnected)?;
            let stream = TcpStream::connect((&*server.host, server.port)).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        };
        let mut greeting: Vec<Vec<&[u8]>> = Vec::new();
        match (&self.config.username, &self.config.password) {
            (Some(username), Some(password)) => {
                greeting.push(vec![b"AUTH", username.as_bytes(), password.as_bytes()]);
            }
            (None, Some(password)) => greeting.push(vec![b"AUTH", password.as_bytes()]),
            _ => {}
        }
        let database = self.config.database.map(|database| database.to_string());
        if let Some(database) = &database {
            greeting.push(vec![b"SELECT", database.as_bytes()]);
        }
        for words in greeting {
            let mut command = Vec::new();
            resp::write_command(words.into_iter(), &mut command);
            stream.write_all(&command).await?;
            let mut reply = [0; 5];
            stream.read_exact(&mut reply).await?;
            if &reply != b"+OK\r\n" {
                return Err(io::Error::other("refused"));
            }
        }
        Ok(stream)
    }

    /// Sends what is asked, together what is asked together, and gives out the answers in their order, until the connection
    /// breaks, an answer is overdue, or the client has another connection.
    async fn serve(
        &self,
        mut stream: Box<dyn Stream>,
        asked: &mut UnboundedReceiver<Asked>,
        number: u64,
    ) -> io::Result<()> {
        let mut waiting: VecDeque<(Instant, SessionId, Answer)> = VecDeque::new();
        let (mut commands, mut replies) = (Vec::new(), BytesMut::new());
        let names = resp::spelled(SESSION_FIELDS);
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        loop {
            if replies.capacity() - replies.len() < READ_TOGETHER {
                replies.reserve(4 * READ_TOGETHER);
            }
            tokio::select! {
                Some(first) = asked.recv() => {
                    // One look at the sockets first: what comes by then costs one more command, and not one more write.
                    tokio::task::yield_now().await;
                    let sent = Instant::now();
                    let mut next = Some(first);
                    while let Some(Asked { key, id, answer }) = next {
                        resp::write_command([&b"HGETALL"[..], key.as_bytes()].into_iter(), &mut commands);
                        waiting.push_back((sent, id, answer));
                        next = if commands.len() < WRITTEN_TOGETHER_MAX { asked.try_recv().ok() } else { None };
                    }
                    let written = tokio::time::timeout(self.timeout, stream.write_all(&commands)).await;
                    written.map_err(|_| io::ErrorKind::TimedOut)??;
                    commands.clear();
                }
                read = stream.read_buf(&mut replies) => {
                    if read? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    while let Some((frame, length)) = resp::next_fields(&replies, &names)? {
                        let Some((_, id, answer)) = waiting.pop_front() else {
                            return Err(io::ErrorKind::InvalidData.into());
                        };
                        if let Frame::Texts(texts) = frame {
                            // Whoever asked may have given up.
                            let _ = answer.send(Fields::new("get", &texts).session(id));
                        }
                        replies.advance(length);
                    }
                }
                _ = look.tick() => {
                    if self.connection_number.load(Ordering::Acquire) != number {
                        return Ok(());
                    }
                    if waiting.front().is_some_and(|(since, ..)| since.elapsed() >= self.timeout) {
                        for (.., answer) in waiting {
                            let timeout = Error::new(ErrorKind::Timeout, "a read was not answered in time");
                            let _ = answer.send(Err(timeout.into()));
                        }
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// A connection of whatever kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
