//! `/livez` and `/readyz`, for orchestrators and load balancers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::AppState;
use super::error::{ApiError, problems};

/// The paths of this file.
pub(super) const ROUTES: [&str; 2] = ["/livez", "/readyz"];

/// The routes of this file.
pub(super) fn router() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new().routes(routes!(livez)).routes(routes!(readyz))
}

/// The health of the service.
#[derive(Serialize, ToSchema)]
struct Health {
    /// `alive` or `ready`.
    status: &'static str,
}

/// Check whether the process is alive
///
/// Does not query Redis: restarting the service because its store is unavailable would prolong the outage.
#[utoipa::path(
    get, path = "/livez", tag = "health", operation_id = "livez",
    responses((status = 200, description = "The process is alive.", body = Health)),
)]
async fn livez() -> Json<Health> {
    Json(Health { status: "alive" })
}

problems! {
    /// The reasons why the service is not ready.
    ReadyProblems { StoreFull, ClockSkew }
}

/// Check whether the service can serve requests
///
/// Asks Redis whether it would accept a write. The result includes the latest periodic checks of the settings of Redis
/// and of the difference between the clocks of the service and of Redis.
#[utoipa::path(
    get, path = "/readyz", tag = "health", operation_id = "readyz",
    responses((status = 200, description = "The service is ready.", body = Health), ReadyProblems),
)]
async fn readyz(State(app): State<Arc<AppState>>) -> Result<Json<Health>, ApiError> {
    app.store.ready().await?;
    Ok(Json(Health { status: "ready" }))
}
