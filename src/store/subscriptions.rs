//! Subscriptions to the notifications of scripts (`lua/common.lua`).

use std::sync::Arc;

use fred::interfaces::ClientLike;
use fred::types::{CustomCommand, Value};

use super::{SessionStore, StoreError, Subscriber, Subscription};
use crate::log;
use crate::session::{Partition, SessionId};

/// Subscribes to a channel to which nothing is published.
#[derive(Debug)]
struct Probe;

impl Subscriber for Probe {
    fn published(&self, _message: &[u8]) {}
    fn lost(&self) {}
}

impl SessionStore {
    /// Checks that the service's Redis user may use the channels. A script whose `SPUBLISH` is rejected reports no
    /// error.
    ///
    /// # Errors
    /// [`StoreError::UnsupportedServer`] if it may not, or why it cannot be checked now.
    pub(crate) async fn require_channel_permissions(&self) -> Result<(), StoreError> {
        let channel = format!("{}:probe", self.config.key_prefix);
        let unsupported = |server: &str| StoreError::UnsupportedServer {
            server: server.to_owned(),
            problem: "does not let this user use the channels of event streams; give it &<prefix>:*, +spublish, \
                      +ssubscribe and +sunsubscribe, as deploy/redis.conf does"
                .to_owned(),
        };
        let is_permission_error = |error: &StoreError| matches!(error, StoreError::NotServing("NOPERM", _));
        for server in self.topology.all() {
            let publish = CustomCommand::new_static("SPUBLISH", None, false);
            let published = server.client().await?.custom::<Value, _>(publish, vec![channel.as_str(), ""]).await;
            // A member of a cluster that does not serve the slot of the channel replies with a redirection.
            if published.is_err_and(|error| is_permission_error(&error.into())) {
                return Err(unsupported(server.name()));
            }
        }
        match self.topology.subscribe(&channel, Arc::new(Probe)).await {
            Err(error) if is_permission_error(&error) => Err(unsupported(&self.config.redis.to_string())),
            subscribed => subscribed.map(drop),
        }
    }

    /// Subscribes to the changes of a session; `None` if that is not possible now.
    pub(crate) async fn subscribe_to_session(
        &self,
        id: SessionId,
        subscriber: Arc<dyn Subscriber>,
    ) -> Option<Subscription> {
        self.subscribe(&self.keys.session(id), subscriber).await
    }

    /// Subscribes to the changes of a business in one partition; `None` if that is not possible now.
    pub(crate) async fn subscribe_to_business(
        &self,
        partition: Partition,
        business_id: &str,
        subscriber: Arc<dyn Subscriber>,
    ) -> Option<Subscription> {
        self.subscribe(&self.keys.business_channel(partition, business_id), subscriber).await
    }

    /// Whether a subscription is still at the server that serves its slot.
    pub(crate) fn is_current(&self, subscription: &Subscription) -> bool {
        self.topology.is_current(subscription)
    }

    async fn subscribe(&self, channel: &str, subscriber: Arc<dyn Subscriber>) -> Option<Subscription> {
        let confirmation = self.topology.subscribe(channel, subscriber);
        match tokio::time::timeout(self.config.command_timeout, confirmation).await {
            Ok(Ok(subscription)) => return Some(subscription),
            Ok(Err(error)) if log::should_log("subscription") => {
                tracing::warn!(%error, "cannot subscribe to changes; event streams read them every second");
            }
            _ => {}
        }
        None
    }
}
