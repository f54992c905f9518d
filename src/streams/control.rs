//! Ends streams from outside: at shutdown, and when a credential expires or changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;

use futures_util::task::AtomicWaker;

use crate::auth::{Credential, Credentials, Grant, Scope};
use crate::session::Timestamp;

/// The credential with which a stream was opened.
#[derive(Clone, Debug)]
pub struct StreamCaller {
    /// The grant of the credential.
    pub grant: Arc<Grant>,
    /// The credential itself; `None` if the service runs without credentials.
    pub credential: Option<Credential>,
}

impl StreamCaller {
    /// Whether the credential still has the same grant.
    fn is_valid(&self, credentials: &Credentials, now: Timestamp) -> bool {
        let Some(credential) = &self.credential else { return true };
        let has_same_grant =
            |grant: Arc<Grant>| grant.tenant_scope == self.grant.tenant_scope && grant.allows(Scope::Read);
        credentials.check(credential, now).is_ok_and(has_same_grant)
    }

    pub(super) fn has_lost_access(&self, credentials: &Credentials, has_changed: bool, now: Timestamp) -> bool {
        let has_expired = self.grant.valid_until.is_some_and(|until| now >= until);
        has_expired || (has_changed && !self.is_valid(credentials, now))
    }
}

/// The handle by which a feed and the registry control one stream.
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

    /// Wakes the stream, because there is a new event.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    /// Asks the stream to send `bye` and to end.
    pub(super) fn end(&self) {
        self.ends.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Whether the stream must send `bye`. Registers `context` for the next [`Self::wake`], so look for new events
    /// after this call, not before.
    pub(super) fn must_end(&self, context: &Context<'_>) -> bool {
        self.waker.register(context.waker());
        self.ends.load(Ordering::Relaxed)
    }
}
