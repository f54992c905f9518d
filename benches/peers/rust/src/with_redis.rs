//! The same work with the `redis` crate: one shared connection that reconnects, the script by EVALSHA.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use redis::aio::ConnectionManager;
use redis::{AsyncCommands, Script};
use uuid::Uuid;

use crate::sessions::{NewSession, Session};

const IDLE_MS: u64 = 30 * 60_000;
const MAX_LIFETIME_MS: u64 = 24 * 3_600_000;
const RETENTION_MS: u64 = 30 * 24 * 3_600_000;
const RESOLUTION_MS: u64 = 60_000;
/// The order in which the script answers them.
const FIELDS: [&str; 17] = [
    "sessionId",
    "businessId",
    "userId",
    "locationId",
    "sessionType",
    "status",
    "title",
    "metadata",
    "messageCount",
    "version",
    "createdAt",
    "updatedAt",
    "lastActivityAt",
    "expiresAt",
    "activeUntil",
    "endedAt",
    "endReason",
];

#[derive(Clone)]
struct App {
    redis: ConnectionManager,
    get_or_create: Arc<Script>,
}

pub async fn router(redis_url: &str, script_file: &str) -> Router {
    let client = redis::Client::open(redis_url).expect("a Redis URL");
    let script = std::fs::read_to_string(script_file).expect("the script");
    let redis = ConnectionManager::new(client).await.expect("a connection");
    Router::new()
        .route("/api/sessions/{id}", get(get_session))
        .route("/api/sessions", post(get_or_create))
        .with_state(App { redis, get_or_create: Arc::new(Script::new(&script)) })
}

async fn get_session(State(mut app): State<App>, Path(id): Path<Uuid>) -> Result<Response, Failure> {
    let fields: HashMap<String, String> = app.redis.hgetall(format!("peer:s:{id}")).await?;
    Ok(Session::from_fields(fields).map(Json).ok_or(StatusCode::NOT_FOUND).into_response())
}

async fn get_or_create(State(mut app): State<App>, Json(new): Json<NewSession>) -> Result<Response, Failure> {
    let id = Uuid::new_v4().to_string();
    let NewSession { business_id, user_id, location_id, session_type, metadata } = new;
    let now_ms = chrono::Utc::now().timestamp_millis();
    let mut call = app.get_or_create.prepare_invoke();
    call.key(format!("peer:a:{business_id}:{user_id}"))
        .key(format!("peer:h:{business_id}:{user_id}"))
        .key(format!("peer:b:{business_id}"))
        .key(format!("peer:s:{id}"));
    call.arg("peer:").arg(&id).arg(now_ms);
    call.arg(IDLE_MS).arg(MAX_LIFETIME_MS).arg(RETENTION_MS).arg(RESOLUTION_MS).arg("return").arg(4);
    call.arg("businessId").arg(&business_id).arg("userId").arg(&user_id);
    call.arg("locationId").arg(&location_id).arg("sessionType").arg(&session_type);
    call.arg("metadata").arg(serde_json::Value::Object(metadata).to_string());
    let mut values: Vec<Option<String>> = call.invoke_async(&mut app.redis).await?;
    let tag = values.remove(0);
    let (status, fields) = if tag.as_deref() == Some("resumed") {
        let named = FIELDS.iter().zip(values).filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
        (StatusCode::OK, named.collect())
    } else {
        (StatusCode::CREATED, app.redis.hgetall(format!("peer:s:{id}")).await?)
    };
    let session = Session::from_fields(fields).map(Json).ok_or(StatusCode::INTERNAL_SERVER_ERROR);
    Ok((status, session).into_response())
}

/// Redis did not do it.
struct Failure(redis::RedisError);

impl From<redis::RedisError> for Failure {
    fn from(error: redis::RedisError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, self.0.to_string()).into_response()
    }
}
