//! Checks whether Redis can serve.

use fred::error::Error;
use futures_util::future::select_ok;

use super::instrumented;
use crate::metrics::Operation;
use crate::store::redis::connection::Server;
use crate::store::{SessionStore, StoreError};

impl SessionStore {
    /// Checks that Redis replies and accepts writes. In a cluster, one master that does is enough: otherwise a load
    /// balancer would take this service away from the users of all other masters.
    ///
    /// # Errors
    /// The reason why Redis cannot serve.
    pub async fn ready(&self) -> Result<(), StoreError> {
        instrumented(Operation::Ready, async move {
            self.ensure_layout().await?;
            let servers = self.topology.all();
            if servers.is_empty() {
                return Err(StoreError::Unavailable(Error::new_canceled()));
            }
            let checks = servers.iter().map(|server| Box::pin(self.ready_at(server)));
            select_ok(checks).await.map(|((), _others)| ())
        })
        .await
    }

    async fn ready_at(&self, server: &Server) -> Result<(), StoreError> {
        let mut reply = self.scripts.ready.run_at(server).await?;
        match reply.string()?.as_str() {
            "ready" => self.health.require_safe(server.name()),
            _ => Err(reply.unknown_tag()),
        }
    }
}
