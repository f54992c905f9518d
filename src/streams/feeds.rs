//! The feeds of one worker: one for each session or business that has streams on it.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tokio::task::AbortHandle;

use super::control::Control;
use super::limits::StreamPermit;
use super::ring::{Entry, Ring};

/// Follows one session or business for all of its streams.
pub(super) trait Feed: Send + Sync + 'static {
    type Event: Entry;

    /// The events that the streams share.
    fn ring(&self) -> &Ring<Self::Event>;

    /// Runs until there is nothing left to follow.
    fn run(self: Arc<Self>) -> BoxFuture<'static, ()>;
}

/// The feeds that have streams, by the session or business that they follow.
#[derive(Debug)]
pub(super) struct Feeds<K, F>(Mutex<HashMap<K, Running<F>>>);

#[derive(Debug)]
struct Running<F> {
    feed: Arc<F>,
    task: AbortHandle,
}

/// The membership of a stream in a feed, until it is dropped. A feed ends with its last stream.
pub(super) struct Membership<K: Eq + Hash, F: Feed> {
    feeds: Arc<Feeds<K, F>>,
    key: K,
    feed: Arc<F>,
    pub(super) control: Arc<Control>,
    _permit: StreamPermit,
}

impl<K: Eq + Hash, F> Default for Feeds<K, F> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone, F: Feed> Feeds<K, F> {
    /// Adds a stream to the feed of `key`. Creates the feed if there is none.
    pub(super) fn join(
        self: &Arc<Self>,
        key: K,
        make: impl FnOnce() -> F,
        control: Arc<Control>,
        permit: StreamPermit,
    ) -> Membership<K, F> {
        let mut feeds = self.lock();
        // A feed ends when its session is deleted. The session may have been created again since.
        let running = feeds.get(&key).filter(|running| !running.task.is_finished());
        let feed = running.map(|running| Arc::clone(&running.feed));
        let feed = feed.unwrap_or_else(|| {
            let feed = Arc::new(make());
            let task = tokio::spawn(Arc::clone(&feed).run()).abort_handle();
            feeds.insert(key.clone(), Running { feed: Arc::clone(&feed), task });
            feed
        });
        feed.ring().join(Arc::clone(&control));
        Membership { feeds: Arc::clone(self), key, feed, control, _permit: permit }
    }
}

impl<K: Eq + Hash, F> Feeds<K, F> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Running<F>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, F: Feed> Membership<K, F> {
    pub(super) fn feed(&self) -> Arc<F> {
        Arc::clone(&self.feed)
    }

    pub(super) fn ring(&self) -> &Ring<F::Event> {
        self.feed.ring()
    }
}

impl<K: Eq + Hash, F: Feed> Drop for Membership<K, F> {
    fn drop(&mut self) {
        let mut feeds = self.feeds.lock();
        let remaining = self.feed.ring().leave(&self.control);
        let is_of_key = |running: &Running<F>| Arc::ptr_eq(&running.feed, &self.feed);
        if remaining == 0
            && feeds.get(&self.key).is_some_and(is_of_key)
            && let Some(running) = feeds.remove(&self.key)
        {
            running.task.abort();
        }
    }
}
