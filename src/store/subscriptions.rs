//! Subscriptions to the notifications of scripts (`lua/common.lua`), and the reads of the event streams of a business.

use std::sync::Arc;

use fred::interfaces::ClientLike;
use fred::types::{CustomCommand, Value};
use futures_util::future::try_join_all;

use super::redis::read_command::ReadCommand;
use super::{SessionStore, StoreError, Subscriber, Subscription};
use crate::log;
use crate::session::{MessageJson, OpenTurn, Partition, Session, SessionId, Status, TenantScope, Timestamp};

/// Maximum number of expired sessions that are sent to a business's streams in one step.
const EXPIRED_MAX: usize = 1000;

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

    /// From when other callers may close turns whose lease expired during an outage of the store that lasted until
    /// `time`.
    pub(crate) fn lost_after(&self, time: Timestamp) -> Timestamp {
        OpenTurn::lost_after(Timestamp(time.0.saturating_add(self.config.turn_lease_ms())))
    }

    /// The messages of a session from `first` to `last` that are still stored.
    pub(crate) async fn kept_messages(
        &self,
        session: &Session,
        first: u64,
        last: u64,
    ) -> Result<Vec<MessageJson>, StoreError> {
        let (mut messages, mut seq) = (Vec::new(), first.max(session.oldest_seq));
        while seq <= last.min(session.message_count) {
            // One at a time: a large reply would delay the other reads on the connection.
            messages.extend(self.read_piece(session, seq, seq).await?.into_iter().flatten());
            seq += 1;
        }
        Ok(messages)
    }

    /// The sessions of a business in one partition that expired after `since`, up to `now`.
    pub(crate) async fn expired_sessions(
        &self,
        partition: Partition,
        business_id: &str,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<Vec<Session>, StoreError> {
        let key = self.keys.business(partition, business_id);
        let (lowest, highest) = (format!("({}", since.0), now.0.to_string());
        let entries = self.read_command(ReadCommand::sorted_set_up(key, lowest, highest, EXPIRED_MAX)).await?;
        let entries = entries.texts("expired_sessions")?;
        let ids = entries.chunks(2).filter_map(|entry| std::str::from_utf8(&entry[0]).ok()?.parse().ok());
        let sessions = try_join_all(ids.map(|id| self.get_in_scope(id, &TenantScope::Everything, now))).await?;
        Ok(sessions.into_iter().flatten().filter(|session| session.status == Status::Expired).collect())
    }
}
