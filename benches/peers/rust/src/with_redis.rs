//! The same operations with the `redis` crate: one shared connection that reconnects, the script by EVALSHA, and
//! messages as a list of JSON that MULTI appends to and trims.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use redis::aio::ConnectionManager;
use redis::{AsyncCommands, Script};
use uuid::Uuid;

use crate::messages::{Message, NewMessage, OneOrMany, Page};
use crate::sessions::{NewSession, Session, time_text};

const IDLE_MS: u64 = 30 * 60_000;
const RETENTION_MS: u64 = 30 * 24 * 3_600_000;
const MESSAGES_KEPT: isize = 10_000;

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
        .route("/api/sessions/{id}/messages", get(list_messages).post(append_messages))
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
    call.arg("peer:").arg(&id).arg(now_ms).arg("return");
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

async fn list_messages(
    State(mut app): State<AppState>,
    Path(id): Path<Uuid>,
    Query(page): Query<Page>,
) -> Result<Response, Failure> {
    let limit = isize::try_from(page.limit.min(1000)).expect("at most 1000");
    let texts: Vec<String> = app.redis.lrange(format!("peer:m:{id}"), -limit, -1).await?;
    if texts.is_empty() && !app.redis.exists::<_, bool>(format!("peer:s:{id}")).await? {
        return Ok(StatusCode::NOT_FOUND.into_response());
    }
    let messages: Result<Vec<Message>, _> = texts.iter().map(|text| serde_json::from_str(text)).collect();
    Ok(messages.map(Json).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR).into_response())
}

/// Not atomic: between the read and `MULTI` another caller may take the same seq.
async fn append_messages(
    State(mut app): State<AppState>,
    Path(id): Path<Uuid>,
    Json(new): Json<OneOrMany<NewMessage>>,
) -> Result<Response, Failure> {
    let (session, list) = (format!("peer:s:{id}"), format!("peer:m:{id}"));
    let (status, expires_at, count): (Option<String>, Option<u64>, Option<u64>) =
        app.redis.hmget(&session, &["status", "expiresAt", "messageCount"]).await?;
    let now_ms = chrono::Utc::now().timestamp_millis();
    let now = u64::try_from(now_ms).expect("a time after 1970");
    let (Some(status), Some(expires_at), Some(count)) = (status, expires_at, count) else {
        return Ok(StatusCode::NOT_FOUND.into_response());
    };
    if status != "active" || now >= expires_at {
        return Ok(StatusCode::CONFLICT.into_response());
    }
    let created_at = time_text(now_ms).expect("a time of this era");
    let stored = |(new, seq): (NewMessage, u64)| Message {
        seq,
        created_at: created_at.clone(),
        session_id: id.to_string(),
        message_id: new.message_id.unwrap_or_else(|| Uuid::new_v4().to_string()),
        role: new.role,
        content: new.content,
        metadata: new.metadata,
    };
    let messages = match new {
        OneOrMany::One(one) => OneOrMany::One(stored((one, count + 1))),
        OneOrMany::Many(many) => OneOrMany::Many(many.into_iter().zip(count + 1..).map(stored).collect()),
    };
    let all = match &messages {
        OneOrMany::One(one) => std::slice::from_ref(one),
        OneOrMany::Many(many) => many,
    };
    let texts: Vec<_> = all.iter().map(|message| serde_json::to_string(message).expect("JSON")).collect();
    let (new_count, expiry) = (count + texts.len() as u64, now + IDLE_MS);
    let fields = [("messageCount", new_count), ("lastActivityAt", now), ("expiresAt", expiry)];
    let mut transaction = redis::pipe();
    transaction.atomic().rpush(&list, texts).ignore().ltrim(&list, -MESSAGES_KEPT, -1).ignore();
    let deletion = i64::try_from(expiry + RETENTION_MS).expect("a time of this era");
    transaction.pexpire_at(&list, deletion).ignore().hset_multiple(&session, &fields).ignore();
    let () = transaction.query_async(&mut app.redis).await?;
    Ok((StatusCode::CREATED, Json(messages)).into_response())
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
