//! The same operations with the `redis` crate: one shared connection that reconnects, and the script by EVALSHA.

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
#[derive(Clone)]
struct AppState {
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
        .with_state(AppState { redis, get_or_create: Arc::new(Script::new(&script)) })
}

async fn get_session(State(mut app): State<AppState>, Path(id): Path<Uuid>) -> Result<Response, Failure> {
    let fields: HashMap<String, String> = app.redis.hgetall(format!("peer:s:{id}")).await?;
    Ok(Session::from_fields(fields).map(Json).ok_or(StatusCode::NOT_FOUND).into_response())
}

async fn get_or_create(State(mut app): State<AppState>, Json(new): Json<NewSession>) -> Result<Response, Failure> {
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
    call.arg(&business_id).arg(&user_id).arg("");
    call.arg("locationId").arg(&location_id).arg("sessionType").arg(&session_type);
    call.arg("metadata").arg(serde_json::Value::Object(metadata).to_string());
    let mut reply: Vec<String> = call.invoke_async(&mut app.redis).await?;
    let fields = reply.split_off(1);
    let (status, fields) = if reply[0] == "resumed" {
        let pairs = fields.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        (StatusCode::OK, pairs.collect())
    } else {
        (StatusCode::CREATED, app.redis.hgetall(format!("peer:s:{id}")).await?)
    };
    let session = Session::from_fields(fields).map(Json).ok_or(StatusCode::INTERNAL_SERVER_ERROR);
    Ok((status, session).into_response())
}

/// A failed Redis command. Rendered as a 503 with the error text.
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
