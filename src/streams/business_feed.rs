//! The feed of one business on one worker: the changes of its sessions, as scripts publish them.
//!
//! Unlike the feed of a session, this feed depends on notifications, because it cannot detect that one was lost. When a
//! notification may have been lost, the feed sends `reset`, and clients read the list of active sessions again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::event::{COMMENT, deleted_text, reset_text, text_of};
use super::feeds::Feed;
use super::ring::{Entry, Ring};
use super::{FeedContext, UNSUBSCRIBED_POLL};
use crate::metrics::{self, StreamEvent};
use crate::session::{Partition, Session, SessionId, TenantScope, Timestamp, Turn};
use crate::store::{StoreError, Subscriber, Subscription};

/// Maximum number of queued notifications. Further ones count as lost.
const WAITING_MAX: usize = 4096;
/// Maximum number of notifications that are processed before the feed does other work.
const QUEUE_STEP: usize = 256;
/// How often the feed checks its subscriptions and looks for sessions that have expired.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// An event of a business.
#[derive(Clone, Debug)]
pub(super) struct BusinessEvent {
    pub(super) kind: StreamEvent,
    pub(super) text: Bytes,
}

impl Entry for BusinessEvent {
    fn bytes(&self) -> usize {
        self.text.len()
    }
}

/// The feed of one business.
#[derive(Debug)]
pub(super) struct BusinessFeed {
    business_id: String,
    context: FeedContext,
    ring: Ring<BusinessEvent>,
    inbox: Arc<Inbox>,
    /// Whether all subscriptions have been confirmed at least once.
    was_subscribed: watch::Sender<bool>,
    /// Whether a stream has started before that.
    has_unsubscribed_streams: AtomicBool,
}

/// The notifications that are still to be processed.
#[derive(Debug, Default)]
struct Inbox {
    notifications: Mutex<VecDeque<String>>,
    notify: Notify,
    /// Whether a notification was not processed, or may not have arrived.
    has_lost: AtomicBool,
}

/// What the feed knows of one of the business's partitions.
struct PartitionState {
    partition: Partition,
    subscription: Option<(Subscription, Arc<PartitionSubscriber>)>,
    /// The sessions that expired up to this time were sent.
    expired_until: Timestamp,
}

impl PartitionState {
    fn is_subscribed(&self) -> bool {
        self.subscription.as_ref().is_some_and(|(_, subscriber)| !subscriber.is_lost.load(Ordering::Relaxed))
    }
}

/// Puts the notifications of one partition into the inbox.
#[derive(Debug)]
struct PartitionSubscriber {
    inbox: Arc<Inbox>,
    /// Whether the subscription has ended.
    is_lost: AtomicBool,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.notifications.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the feed send `reset`.
    fn set_lost(&self) {
        self.has_lost.store(true, Ordering::Relaxed);
        self.notify.notify_one();
    }
}

impl Subscriber for PartitionSubscriber {
    fn published(&self, message: &[u8]) {
        let mut notifications = self.inbox.lock();
        if notifications.len() < WAITING_MAX {
            notifications.push_back(String::from_utf8_lossy(message).into_owned());
            self.inbox.notify.notify_one();
        } else {
            self.inbox.set_lost();
        }
    }

    fn lost(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
        self.inbox.set_lost();
    }
}

impl Feed for BusinessFeed {
    type Event = BusinessEvent;

    fn ring(&self) -> &Ring<BusinessEvent> {
        &self.ring
    }

    fn run(self: Arc<Self>) -> BoxFuture<'static, ()> {
        self.follow().boxed()
    }
}

impl BusinessFeed {
    pub(super) fn new(business_id: String, context: FeedContext) -> Self {
        let was_subscribed = watch::Sender::new(false);
        let has_unsubscribed_streams = AtomicBool::new(false);
        Self {
            business_id,
            context,
            ring: Ring::new(),
            inbox: Arc::default(),
            was_subscribed,
            has_unsubscribed_streams,
        }
    }

    /// Waits until all subscriptions are confirmed, for at most `time`.
    pub(super) async fn wait_until_subscribed(&self, time: Duration) {
        let mut was_subscribed = self.was_subscribed.subscribe();
        if tokio::time::timeout(time, was_subscribed.wait_for(|was_subscribed| *was_subscribed)).await.is_err() {
            // The stream starts anyway. What happens until they are confirmed is lost to it.
            self.has_unsubscribed_streams.store(true, Ordering::Relaxed);
        }
    }

    async fn follow(self: Arc<Self>) {
        let now = (self.context.clock)();
        let mut partitions: Vec<_> = Partition::of_business(&self.business_id)
            .into_iter()
            .map(|partition| PartitionState { partition, subscription: None, expired_until: now })
            .collect();
        let mut checked_at = None;
        let mut sent_at = Instant::now();
        loop {
            if self.inbox.has_lost.swap(false, Ordering::Relaxed) {
                self.inbox.lock().clear();
                self.reset();
            }
            let is_due = checked_at.is_none_or(|at: Instant| at.elapsed() >= CHECK_INTERVAL);
            if is_due || !partitions.iter().all(PartitionState::is_subscribed) {
                self.keep_subscribed(&mut partitions).await;
            }
            let mut has_sent = self.process_queue().await;
            if is_due {
                checked_at = Some(Instant::now());
                for partition in &mut partitions {
                    // What cannot be read now is read at the next check.
                    let Ok(has_expired) = self.send_expired(partition).await else { break };
                    has_sent |= has_expired;
                }
            }
            if has_sent {
                sent_at = Instant::now();
            } else if sent_at.elapsed() >= self.context.config.comment_interval {
                self.send(StreamEvent::Comment, Bytes::from_static(COMMENT));
                sent_at = Instant::now();
            }
            let is_subscribed = partitions.iter().all(PartitionState::is_subscribed);
            let wait = if is_subscribed { CHECK_INTERVAL } else { UNSUBSCRIBED_POLL };
            let _ = tokio::time::timeout(wait, self.inbox.notify.notified()).await;
        }
    }

    /// Renews the subscriptions that are missing, outdated or lost.
    async fn keep_subscribed(&self, partitions: &mut [PartitionState]) {
        let is_new = join_all(partitions.iter_mut().map(|partition| self.subscribe(partition))).await;
        if !partitions.iter().all(PartitionState::is_subscribed) {
            return;
        }
        let may_have_missed = self.was_subscribed.send_replace(true);
        if is_new.contains(&true) && (may_have_missed || self.has_unsubscribed_streams.load(Ordering::Relaxed)) {
            self.reset();
        }
    }

    /// Subscribes unless there is a current subscription. Returns whether there was none.
    async fn subscribe(&self, state: &mut PartitionState) -> bool {
        let is_current = |(subscription, _): &(Subscription, _)| self.context.store.is_current(subscription);
        if state.is_subscribed() && state.subscription.as_ref().is_some_and(is_current) {
            return false;
        }
        state.subscription = None;
        let subscriber = Arc::new(PartitionSubscriber { inbox: self.inbox.clone(), is_lost: AtomicBool::new(false) });
        let (store, partition) = (&self.context.store, state.partition);
        let subscription = store.subscribe_to_business(partition, &self.business_id, subscriber.clone()).await;
        state.subscription = subscription.map(|subscription| (subscription, subscriber));
        true
    }

    /// Processes the first queued notifications. Returns whether there were any.
    async fn process_queue(&self) -> bool {
        for count in 0..QUEUE_STEP {
            if self.inbox.has_lost.load(Ordering::Relaxed) {
                return count > 0;
            }
            let next = self.inbox.lock().pop_front();
            let Some(notification) = next else { return count > 0 };
            if self.process(&notification).await.is_err() {
                self.inbox.set_lost();
            }
        }
        // There may be more.
        self.inbox.notify.notify_one();
        true
    }

    /// Sends the events of one notification, which has the time of the change, the session id and the changes.
    async fn process(&self, notification: &str) -> Result<(), StoreError> {
        let mut words = notification.split(' ');
        let published = words.next().and_then(|text| text.parse::<i64>().ok());
        let Some(id) = words.next().and_then(|text| text.parse::<SessionId>().ok()) else { return Ok(()) };
        let now = (self.context.clock)();
        let mut session = None;
        for word in words {
            if word == "d" {
                self.send(StreamEvent::Deleted, deleted_text(id));
                continue;
            }
            if session.is_none() {
                session = self.session(id, now).await?;
            }
            // If the session was deleted in the meantime, a notification of the deletion follows.
            let Some(session) = &session else { return Ok(()) };
            self.send_change(session, word).await?;
        }
        if let Some(published) = published {
            self.context.delivered(published);
        }
        Ok(())
    }

    async fn session(&self, id: SessionId, now: Timestamp) -> Result<Option<Box<Session>>, StoreError> {
        let session = self.context.store.get(id, &TenantScope::Everything, now).await?;
        Ok(session.filter(|session| session.business_id == self.business_id))
    }

    /// Sends one change of a session (`lua/common.lua`).
    async fn send_change(&self, session: &Session, word: &str) -> Result<(), StoreError> {
        let (kind, numbers) = word.split_at_checked(1).unwrap_or_default();
        match kind {
            "s" => self.send_session(session),
            "t" => self.send_turn(self.context.store.latest_turn(session.session_id).await?.as_deref()),
            "o" => {
                let Ok(number) = numbers.parse() else { return Ok(()) };
                self.send_turn(self.context.store.earlier_turn(session.session_id, number).await?.as_deref());
            }
            "m" | "c" => {
                let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
                let (Ok(first), Ok(last)) = (first.parse(), last.parse()) else { return Ok(()) };
                let kind = if kind == "m" { StreamEvent::Message } else { StreamEvent::Changed };
                for message in self.context.store.kept_messages(session, first, last).await? {
                    self.send(kind, text_of(kind, None, &message.without_content()));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Sends the sessions of a partition that have expired since the last check. Scripts publish nothing when a session
    /// expires. Returns whether there were any.
    async fn send_expired(&self, state: &mut PartitionState) -> Result<bool, StoreError> {
        let (now, mut has_sent) = ((self.context.clock)(), false);
        while state.expired_until < now {
            let (partition, since) = (state.partition, state.expired_until);
            let expired = self.context.store.expired_sessions(partition, &self.business_id, since, now).await?;
            state.expired_until = expired.until;
            for session in expired.sessions {
                self.send_session(&session);
                has_sent = true;
            }
        }
        Ok(has_sent)
    }

    fn send_turn(&self, turn: Option<&Turn>) {
        if let Some(turn) = turn {
            self.send(StreamEvent::Turn, text_of(StreamEvent::Turn, None, &turn.to_json()));
        }
    }

    fn send_session(&self, session: &Session) {
        self.send(StreamEvent::Session, text_of(StreamEvent::Session, None, &session.to_json()));
    }

    fn reset(&self) {
        metrics::stream_reset("lost");
        self.send(StreamEvent::Reset, reset_text("lost"));
    }

    fn send(&self, kind: StreamEvent, text: Bytes) {
        self.ring.push(vec![BusinessEvent { kind, text }]);
    }
}
