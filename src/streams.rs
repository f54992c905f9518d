//! Event streams (docs/api.md, "Event streams"): the events of a session, or of a business, as they happen.

mod business_feed;
mod business_stream;
mod control;
mod event;
mod feeds;
mod limits;
mod position;
mod ring;
mod session_feed;
mod session_stream;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use self::business_feed::BusinessFeed;
pub use self::business_stream::BusinessStream;
use self::control::Control;
pub use self::control::StreamCaller;
use self::feeds::Feeds;
pub use self::limits::{StreamLimit, StreamLimits};
pub(crate) use self::position::ResetReason;
use self::position::{Cursor, Position};
use self::session_feed::{SessionFeed, before_newest};
pub use self::session_stream::SessionStream;
use crate::auth::Credentials;
use crate::metrics;
use crate::session::{Clock, Session, SessionId};
use crate::store::{SessionStore, StoreError};

/// Interval between the reads of a feed that has no subscription.
const UNSUBSCRIBED_POLL: Duration = Duration::from_secs(1);
/// The delay before a stream reads again after the store failed.
const RETRY_READ: Duration = Duration::from_secs(1);
/// How often the credentials of open streams are checked.
const CREDENTIAL_CHECK: Duration = Duration::from_secs(1);
/// At shutdown, streams end this far apart, but all of them within this share of the grace period. So their clients do
/// not reconnect at the same time: a few at a time, because other calls wait while several streams are opened.
const END_SPACING: Duration = Duration::from_millis(2);
const END_SHARE: f64 = 0.8;
const END_TICK: Duration = Duration::from_millis(1);

/// Settings of streams.
#[derive(Clone, Copy, Debug)]
pub struct StreamConfig {
    /// Interval between the reads of a feed when nothing is published.
    pub poll: Duration,
    /// The same, while a turn is open.
    pub turn_poll: Duration,
    /// Time without an event after which a comment is sent.
    pub comment_interval: Duration,
}

impl Default for StreamConfig {
    fn default() -> Self {
        let poll = Duration::from_secs(15);
        Self { poll, turn_poll: Duration::from_secs(2), comment_interval: poll }
    }
}

/// The store, clock and settings that all feeds of a worker share.
#[derive(Clone)]
struct FeedContext {
    store: Arc<SessionStore>,
    clock: Clock,
    config: StreamConfig,
}

impl FeedContext {
    /// Records the delay from a change to its event.
    fn delivered(&self, published_ms: i64) {
        let took = (self.clock)().0.saturating_sub(published_ms);
        metrics::stream_delivered(Duration::from_millis(u64::try_from(took).unwrap_or_default()));
    }
}

impl std::fmt::Debug for FeedContext {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("FeedContext").finish_non_exhaustive()
    }
}

/// Where a stream of a session starts.
#[derive(Clone, Debug)]
pub enum StreamStart {
    /// After the event with this id (`Last-Event-ID`).
    Cursor(String),
    /// After the message with this `seq`.
    After(u64),
    /// With this many of the newest messages.
    Last,
}

/// Why a stream was not opened.
#[derive(Debug)]
pub enum StreamError {
    /// A limit on open streams is reached.
    Limit(StreamLimit),
    /// The service is stopping.
    Stopping,
    /// The store cannot serve.
    Store(StoreError),
}

impl From<StoreError> for StreamError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The streams of one worker.
#[derive(Debug)]
pub struct Streams {
    context: FeedContext,
    credentials: Arc<Credentials>,
    limits: Arc<StreamLimits>,
    sessions: Arc<Feeds<SessionId, SessionFeed>>,
    businesses: Arc<Feeds<String, BusinessFeed>>,
    open: Arc<Mutex<Vec<Arc<Control>>>>,
    is_stopping: AtomicBool,
    /// The task that checks credentials. It starts with the first stream.
    check: OnceLock<AbortHandle>,
}

impl Drop for Streams {
    fn drop(&mut self) {
        if let Some(check) = self.check.get() {
            check.abort();
        }
    }
}

impl Streams {
    /// Creates the registry of streams, without streams.
    #[must_use]
    pub fn new(
        store: Arc<SessionStore>,
        clock: Clock,
        config: StreamConfig,
        credentials: Arc<Credentials>,
        limits: Arc<StreamLimits>,
    ) -> Self {
        let context = FeedContext { store, clock, config };
        let (sessions, businesses, open) = Default::default();
        let is_stopping = AtomicBool::new(false);
        Self { context, credentials, limits, sessions, businesses, open, is_stopping, check: OnceLock::new() }
    }

    /// Creates the registry of another worker, with that worker's store.
    #[must_use]
    pub fn for_worker(&self, store: Arc<SessionStore>) -> Self {
        let FeedContext { clock, config, .. } = self.context.clone();
        Self::new(store, clock, config, Arc::clone(&self.credentials), Arc::clone(&self.limits))
    }

    /// Opens a stream of a session, which was just read. If `start` gives no position, the stream begins with the
    /// newest `last` messages.
    ///
    /// # Errors
    /// If there are too many streams, or the store cannot serve.
    pub async fn open_session_stream(
        &self,
        session: &Session,
        start: StreamStart,
        last: u64,
        caller: StreamCaller,
    ) -> Result<SessionStream, StreamError> {
        let id = session.session_id;
        let (control, permit) = self.register(caller)?;
        let make = || SessionFeed::new(id, self.context.clone());
        let membership = self.sessions.join(id, make, control, permit);
        let feed = membership.feed();
        let cursor = match start {
            StreamStart::Cursor(text) => Some(Cursor::parse(&text).ok_or(ResetReason::UnknownCursor)),
            StreamStart::After(seq) if seq > session.message_count => Some(Err(ResetReason::UnknownCursor)),
            StreamStart::After(seq) => Some(Ok(Cursor::after(session, seq))),
            StreamStart::Last => None,
        };
        let start = match cursor {
            Some(cursor) => feed.start(session, cursor, last).await?,
            None => (Position::start(before_newest(session, last)), None),
        };
        Ok(SessionStream::new(membership, start, last).begin().await?)
    }

    /// Opens a stream of a business.
    ///
    /// # Errors
    /// If there are too many streams.
    pub async fn open_business_stream(
        &self,
        business_id: &str,
        caller: StreamCaller,
    ) -> Result<BusinessStream, StreamError> {
        let (control, permit) = self.register(caller)?;
        let make = || BusinessFeed::new(business_id.to_owned(), self.context.clone());
        let membership = self.businesses.join(business_id.to_owned(), make, control, permit);
        Ok(BusinessStream::open(membership).await)
    }

    /// Rejects new streams, and ends the open ones, spread over most of `time`.
    pub async fn shut_down(&self, time: Duration) {
        self.is_stopping.store(true, Ordering::Relaxed);
        let streams = self.lock().clone();
        let count = u32::try_from(streams.len()).unwrap_or(u32::MAX);
        let spacing = time.mul_f64(END_SHARE).min(END_SPACING.saturating_mul(count)) / count.max(1);
        let started = Instant::now();
        for (number, control) in (0..).zip(&streams) {
            // A sleep may be longer than a tick, so several may be due after it.
            while started.elapsed() < spacing.saturating_mul(number) {
                tokio::time::sleep(END_TICK).await;
            }
            control.end();
        }
    }

    fn register(&self, caller: StreamCaller) -> Result<(Arc<Control>, limits::StreamPermit), StreamError> {
        if self.is_stopping.load(Ordering::Relaxed) {
            return Err(StreamError::Stopping);
        }
        let permit = self.limits.acquire(caller.grant.subject).map_err(StreamError::Limit)?;
        let control = Arc::new(Control::new(caller));
        self.lock().push(Arc::clone(&control));
        self.check.get_or_init(|| {
            let (open, credentials, clock) =
                (Arc::clone(&self.open), self.credentials.clone(), self.context.clock.clone());
            tokio::spawn(check_credentials(open, credentials, clock)).abort_handle()
        });
        Ok((control, permit))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Control>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the streams whose credential has expired or changed, and removes ended streams from the list.
async fn check_credentials(open: Arc<Mutex<Vec<Arc<Control>>>>, credentials: Arc<Credentials>, clock: Clock) {
    let mut version = credentials.version();
    loop {
        tokio::time::sleep(CREDENTIAL_CHECK).await;
        let now = clock();
        let has_changed = std::mem::replace(&mut version, credentials.version()) != version;
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        // Only this list still refers to the controls of ended streams.
        open.retain(|control| Arc::strong_count(control) > 1);
        for control in open.iter().filter(|control| control.caller.has_lost_access(&credentials, has_changed, now)) {
            control.end();
        }
    }
}
