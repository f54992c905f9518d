//! What ends a stream from outside: shutdown, and a credential that is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;

use futures_util::task::AtomicWaker;

use crate::auth::{Credential, Credentials, Grant, Scope};
use crate::session::Timestamp;

/// The credential with which a stream was opened.
#[derive(Clone, Debug)]
pub struct StreamCaller {
    /// What it grants.
    pub grant: Arc<Grant>,
    /// Its text; `None` if the service runs without credentials.
    pub credential: Option<Credential>,
}

impl StreamCaller {
    /// Whether the credential still grants the same.
    fn is_valid(&self, credentials: &Credentials, now: Timestamp) -> bool {
        let Some(credential) = &self.credential else { return true };
        let grants_the_same =
            |grant: Arc<Grant>| grant.tenant_scope == self.grant.tenant_scope && grant.allows(Scope::Read);
        credentials.check(credential, now).is_ok_and(grants_the_same)
    }

    pub(super) fn is_over(&self, credentials: &Credentials, has_changed: bool, now: Timestamp) -> bool {
        let has_expired = self.grant.valid_until.is_some_and(|until| now >= until);
        has_expired || (has_changed && !self.is_valid(credentials, now))
    }
}

/// One stream, as its feed and the registry see it.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) caller: StreamCaller,
    waker: AtomicWaker,
    ends: AtomicBool,
}

impl Control {
    pub(super) fn new(caller: StreamCaller) -> Self {
        Self { caller, waker: AtomicWaker::new(), ends: AtomicBool::new(false) }
    }

    /// Says that there is something new.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    /// Asks the stream to say good-bye and end.
    pub(super) fn end(&self) {
        self.ends.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Whether the stream must say good-bye. Also has `context` woken at the next [`Self::wake`], so look for news
    /// after this, not before.
    pub(super) fn must_end(&self, context: &Context<'_>) -> bool {
        self.waker.register(context.waker());
        self.ends.load(Ordering::Relaxed)
    }
}
