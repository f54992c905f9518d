//! The feed of one session on one worker: follows the session in the store for all of its streams.
//!
//! A notification only triggers a read. Events result from comparing a read with what was sent before. So a lost or
//! late notification delays events, and does not lose any. A feed also reads at intervals, when the session expires,
//! and when the lease of its turn ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use super::event::Event;
use super::feeds::Feed;
use super::position::{Cursor, Position, Progress, ResetReason};
use super::ring::{Entry, Ring};
use super::{FeedContext, UNSUBSCRIBED_POLL};
use crate::metrics;
use crate::session::{OpenTurn, Session, SessionId, Status, Timestamp};
use crate::store::{StoreError, StreamSnapshot, StreamWants, Subscriber, Subscription};

/// The delay before reading again when a change is overdue.
const OVERDUE_POLL: Duration = Duration::from_millis(250);

/// Maximum number of messages, and of their bytes, that a stream sends to catch up.
const MESSAGES_MAX: u64 = 1000;
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

impl Entry for Event {
    fn bytes(&self) -> usize {
        self.text.len()
    }
}

impl Feed for SessionFeed {
    type Event = Event;

    fn ring(&self) -> &Ring<Event> {
        &self.ring
    }

    fn run(self: Arc<Self>) -> BoxFuture<'static, ()> {
        self.follow().boxed()
    }
}

/// The feed of one session.
#[derive(Debug)]
pub(super) struct SessionFeed {
    id: SessionId,
    context: FeedContext,
    ring: Ring<Event>,
    /// The position after the newest event of the ring; `None` before a stream has caught up. Locked while the next
    /// events are read, so a stream joins without a gap.
    position: Mutex<Option<Position>>,
    /// Unix time in milliseconds of the last read that failed; 0 if none has.
    failed_ms: AtomicI64,
    wake: Arc<Wake>,
}

/// Wakes a feed when something was published.
#[derive(Debug, Default)]
struct Wake {
    notify: Notify,
    is_lost: AtomicBool,
    /// When the oldest change was published that was not read yet; 0 if there is none.
    published_ms: AtomicI64,
}

impl Subscriber for Wake {
    fn published(&self, message: &[u8]) {
        let ms = std::str::from_utf8(message).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        let _ = self.published_ms.compare_exchange(0, ms, Ordering::Relaxed, Ordering::Relaxed);
        self.notify.notify_one();
    }

    fn lost(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
        self.notify.notify_one();
    }
}

/// The events for a stream that catches up.
pub(super) struct CaughtUp {
    pub(super) events: Vec<Event>,
    pub(super) position: Position,
    /// The number of the feed's next event, if the stream has all events before it.
    pub(super) joined: Option<u64>,
}

/// When a feed reads again without a notification.
struct Due {
    expires_at: Option<Timestamp>,
    lost_at: Option<Timestamp>,
    is_behind: bool,
}

impl SessionFeed {
    pub(super) fn new(id: SessionId, context: FeedContext) -> Self {
        Self {
            id,
            context,
            ring: Ring::new(),
            position: Mutex::default(),
            failed_ms: AtomicI64::new(0),
            wake: Arc::default(),
        }
    }

    /// Follows the session until it is deleted.
    async fn follow(self: Arc<Self>) {
        let mut subscription = None;
        let mut compares = true;
        let mut sent_at = Instant::now();
        loop {
            let is_new = self.keep_subscribed(&mut subscription).await;
            let now = (self.context.clock)();
            // Boxed, because the futures of the reads take 9 KB, and feeds wait most of the time.
            let refreshed = Box::pin(self.refresh(compares || is_new, now)).await;
            if matches!(refreshed, Ok(Refreshed::Deleted)) {
                return;
            }
            if matches!(refreshed, Ok(Refreshed::Sent(_))) {
                sent_at = Instant::now();
            }
            let comment_interval = self.context.config.comment_interval;
            if sent_at.elapsed() >= comment_interval {
                self.send_comment().await;
                sent_at = Instant::now();
            }
            let wait = if let Ok(Refreshed::Sent(due) | Refreshed::Nothing(due)) = refreshed {
                self.wait_for(&due, subscription.is_some(), now)
            } else {
                self.failed_ms.store(now.0, Ordering::Relaxed);
                UNSUBSCRIBED_POLL
            };
            let wait = wait.min(comment_interval.saturating_sub(sent_at.elapsed()));
            compares = tokio::time::timeout(wait, self.wake.notify.notified()).await.is_err();
        }
    }

    /// Subscribes unless there is a current subscription. Returns whether it has subscribed.
    async fn keep_subscribed(&self, subscription: &mut Option<Subscription>) -> bool {
        let is_lost = self.wake.is_lost.swap(false, Ordering::Relaxed);
        let is_current = |subscription: &Subscription| self.context.store.is_current(subscription);
        if !is_lost && subscription.as_ref().is_some_and(is_current) {
            return false;
        }
        *subscription = None;
        *subscription = self.context.store.subscribe_to_session(self.id, self.wake.clone()).await;
        subscription.is_some()
    }

    /// Reads the changes, and sends them to all streams.
    async fn refresh(&self, compares: bool, now: Timestamp) -> Result<Refreshed, StoreError> {
        let mut position = self.position.lock().await;
        let Some(position) = position.as_mut() else {
            return Ok(Refreshed::Nothing(Due { expires_at: None, lost_at: None, is_behind: false }));
        };
        let mut published = self.wake.published_ms.swap(0, Ordering::Relaxed);
        let wants = StreamWants {
            last_seq: position.cursor.seq,
            compares,
            first_chunk: &|turn| position.first_chunk(turn),
            changes: position.cursor.changes,
            closes_lost_turn: self.lost_turns_closable_at().is_none_or(|at| now >= at),
        };
        let Some(snapshot) = self.context.store.read_stream(self.id, &wants, now).await? else {
            self.ring.push(vec![Event::deleted(self.id, position)]);
            return Ok(Refreshed::Deleted);
        };
        let (sent, progress) = self.advance(position, &snapshot);
        if sent && published == 0 {
            // A read that was already running can have read the change.
            published = self.wake.published_ms.swap(0, Ordering::Relaxed);
        }
        if sent && published > 0 {
            self.context.delivered(published);
        }
        let due = Due::of(&snapshot.session, progress);
        Ok(if sent { Refreshed::Sent(due) } else { Refreshed::Nothing(due) })
    }

    /// Advances the feed to a snapshot. Returns whether there were new events.
    fn advance(&self, position: &mut Position, snapshot: &StreamSnapshot) -> (bool, Progress) {
        let mut events = Vec::new();
        let progress = position.advance(snapshot, &mut events).or_else(|reason| {
            metrics::stream_reset(reason.as_str());
            *position = Position::start(Cursor::after(&snapshot.session, snapshot.session.message_count));
            events = vec![Event::reset(reason, position)];
            position.advance(snapshot, &mut events)
        });
        let is_new = !events.is_empty();
        self.ring.push(events);
        // A position that was just made from a snapshot cannot differ from it.
        (is_new, progress.unwrap_or(Progress::Behind))
    }

    /// Reads what a stream has not sent. If the stream is then up to date, it continues with the events of the ring. If
    /// it cannot continue from its position, it starts again with the newest `last` messages.
    pub(super) async fn catch_up(&self, mut position: Position, last: u64) -> Result<CaughtUp, StoreError> {
        let now = (self.context.clock)();
        let mut of_feed = self.position.lock().await;
        let (last_seq, changes) = (position.cursor.seq, position.cursor.changes);
        let wants = StreamWants {
            last_seq: of_feed.as_ref().map_or(last_seq, |feed| feed.cursor.seq.min(last_seq)),
            compares: true,
            first_chunk: &|turn| {
                let first = position.first_chunk(turn);
                of_feed.as_ref().map_or(first, |feed| feed.first_chunk(turn).min(first))
            },
            changes: of_feed.as_ref().map_or(changes, |feed| feed.cursor.changes.min(changes)),
            closes_lost_turn: self.lost_turns_closable_at().is_none_or(|at| now >= at),
        };
        let read = self.context.store.read_stream(self.id, &wants, now).await;
        let read = read.inspect_err(|_| self.failed_ms.store(now.0, Ordering::Relaxed));
        let Some(snapshot) = read? else {
            let events = vec![Event::deleted(self.id, &position)];
            return Ok(CaughtUp { events, position, joined: None });
        };
        let mut events = Vec::new();
        let progress = match position.advance(&snapshot, &mut events) {
            Ok(progress) => progress,
            Err(reason) => {
                metrics::stream_reset(reason.as_str());
                position = Position::start(before_newest(&snapshot.session, last));
                let events = vec![Event::reset(reason, &position)];
                return Ok(CaughtUp { events, position, joined: None });
            }
        };
        let feed_progress = match of_feed.as_mut() {
            Some(feed) => self.advance(feed, &snapshot).1,
            None if progress == Progress::UpToDate => {
                *of_feed = Some(position.clone());
                // The feed does not know yet when the session expires.
                self.wake.notify.notify_one();
                progress
            }
            None => Progress::Behind,
        };
        let is_up_to_date = progress == Progress::UpToDate && feed_progress == Progress::UpToDate;
        Ok(CaughtUp { events, position, joined: is_up_to_date.then(|| self.ring.end()) })
    }

    /// The start of a stream that continues: after `cursor`; or with the newest `last` messages and the reason, if it
    /// cannot continue from there.
    pub(super) async fn start(
        &self,
        session: &Session,
        cursor: Result<Cursor, ResetReason>,
        last: u64,
    ) -> Result<(Position, Option<ResetReason>), StoreError> {
        let cursor = match cursor {
            Ok(cursor) => self.reset_reason(session, &cursor).await?.map_or(Ok(cursor), Err),
            none => none,
        };
        Ok(match cursor {
            Ok(cursor) => (Position::start(cursor), None),
            Err(reason) => {
                metrics::stream_reset(reason.as_str());
                (Position::start(before_newest(session, last)), Some(reason))
            }
        })
    }

    /// Why a stream cannot continue from this cursor, as far as the session's hash shows.
    async fn reset_reason(&self, session: &Session, cursor: &Cursor) -> Result<Option<ResetReason>, StoreError> {
        if cursor.changes < session.changed_messages.count {
            return Ok(Some(ResetReason::Changed));
        }
        let due = session.message_count.saturating_sub(cursor.seq);
        if due > MESSAGES_MAX || cursor.seq + 1 < session.oldest_seq {
            return Ok(Some(ResetReason::TooFar));
        }
        let first = cursor.seq + 1;
        let exceeds = self.context.store.has_more_message_bytes(session, first, MESSAGE_BYTES_MAX).await?;
        Ok(exceeds.then_some(ResetReason::TooFar))
    }

    async fn send_comment(&self) {
        if let Some(position) = self.position.lock().await.as_ref() {
            self.ring.push(vec![Event::comment(position)]);
        }
    }

    /// When lost turns may be closed, if the store has failed: then their writers get one more lease.
    fn lost_turns_closable_at(&self) -> Option<Timestamp> {
        let failed_at = Timestamp(self.failed_ms.load(Ordering::Relaxed));
        (failed_at.0 > 0).then(|| self.context.store.lost_turns_closable_at(failed_at))
    }

    /// How long to wait for a notification.
    fn wait_for(&self, due: &Due, is_subscribed: bool, now: Timestamp) -> Duration {
        if due.is_behind {
            return Duration::ZERO;
        }
        let config = &self.context.config;
        let poll = match (is_subscribed, due.lost_at) {
            (false, _) => UNSUBSCRIBED_POLL,
            (true, Some(_)) => config.turn_poll,
            (true, None) => config.poll,
        };
        let lost_at = due.lost_at.map(|at| self.lost_turns_closable_at().map_or(at, |closable| at.max(closable)));
        let until = |at: Timestamp| match u64::try_from(at.0.saturating_sub(now.0)) {
            Ok(ms) if ms > 0 => Duration::from_millis(ms),
            _ => OVERDUE_POLL,
        };
        [due.expires_at, lost_at].into_iter().flatten().map(until).fold(poll, Duration::min)
    }
}

enum Refreshed {
    Sent(Due),
    Nothing(Due),
    Deleted,
}

impl Due {
    fn of(session: &Session, progress: Progress) -> Self {
        Self {
            expires_at: (session.status == Status::Active).then_some(session.expires_at),
            lost_at: session.open_turn.as_ref().map(OpenTurn::lost_at),
            is_behind: progress == Progress::Behind,
        }
    }
}

/// The position before the newest `last` messages that are stored.
pub(super) fn before_newest(session: &Session, last: u64) -> Cursor {
    let seq = session.message_count.saturating_sub(last).max(session.oldest_seq - 1).min(session.message_count);
    Cursor::after(session, seq)
}
