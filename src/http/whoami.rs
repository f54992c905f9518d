//! `/api/whoami`: the permissions of the caller's credential.

use std::sync::Arc;

use axum::Json;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::AppState;
use super::auth::Principal;
use super::error::problems;
use crate::auth::{ALL_BUSINESSES, Scope};
use crate::session::{Identifier, TenantScope};

/// The routes of this file.
pub(super) fn router() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new().routes(routes!(whoami))
}

/// The permissions of a credential.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({"businesses": ["B0100001"], "userId": "user_123", "scopes": ["read", "write"]}))]
struct WhoAmI {
    /// The businesses that the credential has access to, or `*` for all.
    #[schema(schema_with = businesses_schema)]
    businesses: Value,
    /// The only user that the credential has access to, or null for all users of the businesses.
    #[schema(required)]
    user_id: Option<String>,
    /// The scopes of the credential, in the order read, write, admin.
    #[schema(schema_with = scopes_schema)]
    scopes: Vec<&'static str>,
}

fn businesses_schema() -> Schema {
    let all = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([ALL_BUSINESSES]));
    let some = ArrayBuilder::new().items(ObjectBuilder::new().schema_type(Type::String)).min_items(Some(1));
    OneOfBuilder::new()
        .item(all)
        .item(some)
        .description(Some("The businesses that the credential has access to, or `*` for all."))
        .build()
        .into()
}

fn scopes_schema() -> Schema {
    let scope = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(Scope::ALL.map(Scope::as_str)));
    ArrayBuilder::new()
        .items(scope)
        .max_items(Some(Scope::ALL.len()))
        .description(Some("The scopes of the credential, in the order read, write, admin."))
        .build()
        .into()
}

problems! {
    /// The errors of reading the permissions.
    WhoAmIProblems { InvalidRequest }
}

/// Read the permissions of the caller's credential
///
/// Requires a credential, but none of its scopes. A service without credentials reports full access.
#[utoipa::path(
    get, path = "/api/whoami", tag = "credentials", operation_id = "whoami",
    responses((status = 200, description = "The permissions of the credential.", body = WhoAmI), WhoAmIProblems),
)]
async fn whoami(caller: Principal) -> Json<WhoAmI> {
    let (businesses, user_id) = match caller.tenant_scope() {
        TenantScope::Everything => (json!(ALL_BUSINESSES), None),
        TenantScope::Businesses(businesses) => {
            let mut businesses: Vec<_> = businesses.iter().map(Identifier::as_str).collect();
            businesses.sort_unstable();
            (json!(businesses), None)
        }
        TenantScope::User { business_id, user_id } => (json!([business_id.as_str()]), Some(user_id.to_string())),
    };
    let scopes = Scope::ALL.into_iter().filter(|scope| caller.allows(*scope)).map(Scope::as_str).collect();
    Json(WhoAmI { businesses, user_id, scopes })
}
