//! `/api/whoami`: what the caller's credential may do.

use std::sync::Arc;

use axum::Json;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::access::Caller;
use super::error::problems;
use crate::auth::{ALL_BUSINESSES, Scope};
use crate::session::{Identifier, Reach};

/// The routes of this file.
pub(super) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(whoami))
}

/// What a credential may do.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({"businesses": ["B0100001"], "userId": "user_123", "scopes": ["read", "write"]}))]
struct WhoAmI {
    /// The businesses that it reaches, or `*` for all.
    #[schema(schema_with = businesses_schema)]
    businesses: Value,
    /// The one user that it reaches, or null for all users of the businesses.
    #[schema(required)]
    user_id: Option<String>,
    /// Which calls it may make: in the order read, write, admin.
    #[schema(schema_with = scopes_schema)]
    scopes: Vec<&'static str>,
}

fn businesses_schema() -> Schema {
    let all = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([ALL_BUSINESSES]));
    let some = ArrayBuilder::new().items(ObjectBuilder::new().schema_type(Type::String)).min_items(Some(1));
    OneOfBuilder::new()
        .item(all)
        .item(some)
        .description(Some("The businesses that the credential reaches, or `*` for all."))
        .build()
        .into()
}

fn scopes_schema() -> Schema {
    let scope = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(Scope::ALL.map(Scope::as_str)));
    ArrayBuilder::new()
        .items(scope)
        .max_items(Some(Scope::ALL.len()))
        .description(Some("Which calls the credential may make: in the order read, write, admin."))
        .build()
        .into()
}

problems! {
    /// What this can be refused for.
    WhoAmIProblems {}
}

/// Read what the caller's credential may do
///
/// Needs a credential, and none of its scopes. A service that is open to everybody says so.
#[utoipa::path(
    get, path = "/api/whoami", tag = "credentials", operation_id = "whoami",
    responses((status = 200, description = "What it may do.", body = WhoAmI), WhoAmIProblems),
)]
async fn whoami(caller: Caller) -> Json<WhoAmI> {
    let (businesses, user_id) = match caller.reach() {
        Reach::Everything => (json!(ALL_BUSINESSES), None),
        Reach::Businesses(businesses) => {
            let mut businesses: Vec<_> = businesses.iter().map(Identifier::as_str).collect();
            businesses.sort_unstable();
            (json!(businesses), None)
        }
        Reach::User { business_id, user_id } => (json!([business_id.as_str()]), Some(user_id.to_string())),
    };
    let scopes = Scope::ALL.into_iter().filter(|scope| caller.allows(*scope)).map(Scope::as_str).collect();
    Json(WhoAmI { businesses, user_id, scopes })
}
