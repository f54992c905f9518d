//! A connection that only receives what scripts publish (`lua/common.lua`), next to the client's. It is open while the
//! client has a connection and leads to the same server, so it follows failovers.
//!
//! What it delivers only says when to look: subscribers read from the store what has changed, and look by themselves as
//! well. So a lost message costs time and nothing else. If the connection breaks, if its server is silent, or if the
//! server ends a subscription because the slot has moved, each subscriber concerned gets `lost()`.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::bytes::{Buf, BytesMut};
use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::connection_id::SharedConnectionId;
use super::pipeline::{CONNECT_TIMEOUT, Stream, open};
use super::resp::{self, Pushed};
use crate::metrics;

/// How often to send a PING, and to check for a new connection of the client.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// After this time without a reply to a PING the connection is closed.
const SILENCE_MAX: Duration = Duration::from_secs(2);
const READ_BUFFER_BYTES: usize = 4096;

/// Receives what is published to a channel.
pub(crate) trait Subscriber: Debug + Send + Sync {
    /// A message was published.
    fn published(&self, message: &[u8]);
    /// Messages may have been lost, and no more will come: subscribe again.
    fn lost(&self);
}

/// The connection of one server. A background task opens it for the first subscription, and again whenever it is
/// needed.
#[derive(Debug)]
pub(super) struct SubscriberConnection {
    requests: UnboundedSender<Request>,
    task: AbortHandle,
}

enum Request {
    /// Subscribe, and confirm when the server has.
    Subscribe(String, Arc<dyn Subscriber>, oneshot::Sender<Result<(), Error>>),
    /// End the subscription of this subscriber.
    Unsubscribe(String, Arc<dyn Subscriber>),
}

impl Drop for SubscriberConnection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SubscriberConnection {
    /// Starts a connection next to this client's.
    pub(super) fn start(client: &Client, config: &Config, connection_id: &Arc<SharedConnectionId>) -> Self {
        let (requests, receiver) = unbounded_channel();
        let (client, config, connection_id) = (client.clone(), config.clone(), Arc::clone(connection_id));
        let driver = Driver { client, config, connection_id };
        Self { requests, task: tokio::spawn(driver.run(receiver)).abort_handle() }
    }

    /// Subscribes to a channel. Returns when the server has confirmed it.
    pub(super) async fn subscribe(&self, channel: String, subscriber: Arc<dyn Subscriber>) -> Result<(), Error> {
        let (confirm, confirmed) = oneshot::channel();
        let closed = || Error::new(ErrorKind::IO, "the connection for subscriptions is not open");
        self.requests.send(Request::Subscribe(channel, subscriber, confirm)).map_err(|_| closed())?;
        confirmed.await.map_err(|_| closed())?
    }

    /// Ends the subscription, if the channel still belongs to this subscriber.
    pub(super) fn unsubscribe(&self, channel: String, subscriber: Arc<dyn Subscriber>) {
        // The task has ended only if the server was dropped.
        let _ = self.requests.send(Request::Unsubscribe(channel, subscriber));
    }
}

struct Driver {
    client: Client,
    config: Config,
    connection_id: Arc<SharedConnectionId>,
}

/// The subscriptions of an open connection. If it is dropped, all of them are lost.
#[derive(Default)]
struct Subscriptions {
    by_channel: HashMap<String, Arc<dyn Subscriber>>,
    /// In the order of the commands.
    unconfirmed: VecDeque<(String, oneshot::Sender<Result<(), Error>>)>,
}

impl Drop for Subscriptions {
    fn drop(&mut self) {
        for subscriber in self.by_channel.values() {
            subscriber.lost();
        }
    }
}

impl Driver {
    async fn run(self, mut requests: UnboundedReceiver<Request>) {
        while let Some(first) = requests.recv().await {
            if matches!(first, Request::Unsubscribe(..)) {
                continue;
            }
            if self.client.is_connected() {
                match tokio::time::timeout(CONNECT_TIMEOUT, open(&self.client, &self.config)).await {
                    Ok(Ok(stream)) => {
                        metrics::subscriber_connected();
                        let ended = self.serve(stream, first, &mut requests).await;
                        metrics::subscriber_disconnected();
                        if let Err(error) = ended {
                            tracing::debug!(%error, "the connection for subscriptions ended");
                        }
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "cannot open the connection for subscriptions"),
                    Err(_) => {}
                }
            }
            // What was requested meanwhile fails. The subscribers try again.
            while requests.try_recv().is_ok() {}
        }
    }

    /// Sends commands and delivers messages until the connection breaks, its server is silent, or the client has
    /// another connection.
    async fn serve(
        &self,
        mut stream: Box<dyn Stream>,
        first: Request,
        requests: &mut UnboundedReceiver<Request>,
    ) -> io::Result<()> {
        let id = self.connection_id.get();
        let mut subscriptions = Subscriptions::default();
        let (mut commands, mut received) = (Vec::new(), BytesMut::new());
        let mut last_heard = Instant::now();
        let mut ping = tokio::time::interval(PING_INTERVAL);
        ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        subscriptions.request(first, &mut commands);
        loop {
            if !commands.is_empty() {
                let write = async {
                    stream.write_all(&commands).await?;
                    stream.flush().await
                };
                tokio::time::timeout(SILENCE_MAX, write).await.map_err(|_| io::ErrorKind::TimedOut)??;
                commands.clear();
            }
            received.reserve(READ_BUFFER_BYTES);
            tokio::select! {
                biased;
                read = stream.read_buf(&mut received) => {
                    if read? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    last_heard = Instant::now();
                    while let Some((pushed, length)) = resp::next_pushed(&received)? {
                        subscriptions.receive(&pushed)?;
                        received.advance(length);
                    }
                }
                Some(request) = requests.recv() => subscriptions.request(request, &mut commands),
                _ = ping.tick() => {
                    if self.connection_id.get() != id || !self.client.is_connected() {
                        return Ok(());
                    }
                    if last_heard.elapsed() > SILENCE_MAX {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    resp::write_command([b"PING".as_slice()].into_iter(), &mut commands);
                }
            }
        }
    }
}

impl Subscriptions {
    fn request(&mut self, request: Request, commands: &mut Vec<u8>) {
        match request {
            Request::Subscribe(channel, subscriber, confirm) => {
                resp::write_command([b"SSUBSCRIBE".as_slice(), channel.as_bytes()].into_iter(), commands);
                self.by_channel.insert(channel.clone(), subscriber);
                self.unconfirmed.push_back((channel, confirm));
            }
            Request::Unsubscribe(channel, subscriber) => {
                // Another one may have the channel by now.
                if self.by_channel.get(&channel).is_some_and(|current| Arc::ptr_eq(current, &subscriber)) {
                    self.by_channel.remove(&channel);
                    resp::write_command([b"SUNSUBSCRIBE".as_slice(), channel.as_bytes()].into_iter(), commands);
                }
            }
        }
    }

    fn receive(&mut self, pushed: &Pushed<'_>) -> io::Result<()> {
        match *pushed {
            Pushed::Message { channel, message } => {
                if let Some(subscriber) = self.by_channel.get(channel) {
                    subscriber.published(message);
                }
            }
            Pushed::Subscribed(channel) => match self.unconfirmed.pop_front() {
                // The caller may have given up.
                Some((expected, confirm)) if expected == channel => drop(confirm.send(Ok(()))),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            },
            // The reply to an unsubscription of ours finds no subscriber, unless there is a new one, which then
            // subscribes again.
            Pushed::Unsubscribed(channel) => {
                if let Some(subscriber) = self.by_channel.remove(channel) {
                    subscriber.lost();
                }
            }
            Pushed::Error(text) => {
                let Some((channel, confirm)) = self.unconfirmed.pop_front() else {
                    return Err(io::Error::other(text.to_owned()));
                };
                // A later subscription of the channel has replaced this one.
                if !self.unconfirmed.iter().any(|(later, _)| *later == channel) {
                    self.by_channel.remove(&channel);
                }
                let _ = confirm.send(Err(Error::new(ErrorKind::Unknown, text.to_owned())));
            }
            Pushed::Pong => {}
        }
        Ok(())
    }
}
