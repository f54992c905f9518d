//! The cost of HTTP alone: a `GET` returns the constant bytes of a session, a `POST` parses and renders JSON.

use axum::extract::Path;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};

use crate::sessions::{NewSession, Session};

const SESSION: &str = r#"{"sessionId":"f4bcc94a-5785-88ab-887f-b7afa6c6030f","businessId":"B0100001","userId":"user_000001","locationId":"L0100001","sessionType":"general","status":"active","title":null,"metadata":{},"messageCount":0,"version":1,"createdAt":"2026-11-22T20:11:35.749Z","updatedAt":"2026-11-22T20:11:35.749Z","lastActivityAt":"2026-11-22T20:11:35.749Z","expiresAt":"2026-11-22T20:41:35.749Z","endedAt":null,"endReason":null}"#;
const TIME: &str = "2026-11-22T20:11:35.749Z";

pub fn router() -> Router {
    Router::new().route("/api/sessions/{id}", get(constant)).route("/api/sessions", post(json))
}

async fn constant(Path(_id): Path<String>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], SESSION)
}

async fn json(Json(new): Json<NewSession>) -> Json<Session> {
    let time = || Some(TIME.to_owned());
    Json(Session {
        session_id: "f4bcc94a-5785-88ab-887f-b7afa6c6030f".to_owned(),
        business_id: new.business_id,
        user_id: new.user_id,
        location_id: new.location_id,
        session_type: new.session_type,
        status: "active".to_owned(),
        title: None,
        metadata: new.metadata,
        message_count: 0,
        version: 1,
        created_at: time(),
        updated_at: time(),
        last_activity_at: time(),
        expires_at: time(),
        ended_at: None,
        end_reason: None,
    })
}
