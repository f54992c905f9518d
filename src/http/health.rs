//! `/livez` and `/readyz`, for those who start, stop and route to the service.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::error::{ApiError, problems};

/// The paths of this file.
pub(super) const ROUTES: [&str; 2] = ["/livez", "/readyz"];

/// The routes of this file.
pub(super) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(livez)).routes(routes!(readyz))
}

/// How the service is.
#[derive(Serialize, ToSchema)]
struct Health {
    /// `alive` or `ready`.
    status: &'static str,
}

/// Is the process alive?
///
/// Never asks Redis: a service that is restarted because its store is away makes an outage longer.
#[utoipa::path(
    get, path = "/livez", tag = "health", operation_id = "livez",
    responses((status = 200, description = "It is.", body = Health)),
)]
async fn livez() -> Json<Health> {
    Json(Health { status: "alive" })
}

problems! {
    /// Why the service is not ready.
    ReadyProblems { StoreFull, ClockSkew }
}

/// Can it serve?
///
/// Asks Redis whether it would take a write. The clocks of the service and of Redis are compared, and Redis's settings
/// checked, now and then: what is found there counts as well.
#[utoipa::path(
    get, path = "/readyz", tag = "health", operation_id = "readyz",
    responses((status = 200, description = "It can.", body = Health), ReadyProblems),
)]
async fn readyz(State(app): State<Arc<App>>) -> Result<Json<Health>, ApiError> {
    app.store.ready().await?;
    Ok(Json(Health { status: "ready" }))
}
