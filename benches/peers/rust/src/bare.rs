//! The cost of HTTP alone: a `GET` returns the constant bytes of a session or of a page of messages, a `POST` parses
//! and renders JSON.

use std::fmt::Write;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};

use crate::messages::Page;
use crate::sessions::{NewSession, Session};

const SESSION: &str = r#"{"sessionId":"f4bcc94a-5785-88ab-887f-b7afa6c6030f","businessId":"B0100001","userId":"user_000001","locationId":"L0100001","sessionType":"general","status":"active","title":null,"metadata":{},"messageCount":0,"version":1,"createdAt":"2026-11-22T20:11:35.749Z","updatedAt":"2026-11-22T20:11:35.749Z","lastActivityAt":"2026-11-22T20:11:35.749Z","expiresAt":"2026-11-22T20:41:35.749Z","endedAt":null,"endReason":null}"#;
const TIME: &str = "2026-11-22T20:11:35.749Z";

/// The largest page of messages.
const MESSAGES_MAX: usize = 100;
/// Bytes of a message's content, as in the other benchmarks.
const CONTENT_BYTES: usize = 220;

pub fn router() -> Router {
    let pages = (0..=MESSAGES_MAX).map(messages).collect();
    Router::new()
        .route("/api/sessions/{id}", get(constant))
        .route("/api/sessions/{id}/messages", get(page))
        .with_state(pages)
        .route("/api/sessions", post(json))
}

/// A page of as many messages, with as many bytes as the service returns.
fn messages(count: usize) -> Bytes {
    let mut text = String::from("[");
    for seq in 1..=count {
        let comma = if seq == 1 { "" } else { "," };
        let role = if seq % 2 == 1 { "user" } else { "assistant" };
        let content = "x".repeat(CONTENT_BYTES);
        write!(
            text,
            r#"{comma}{{"seq":{seq},"createdAt":"{TIME}","sessionId":"f4bcc94a-5785-88ab-887f-b7afa6c6030f","messageId":"0198f4bcc94aF785","role":"{role}","content":"{content}","metadata":{{}}}}"#
        )
        .expect("a string takes all text");
    }
    text.push(']');
    text.into()
}

async fn constant(Path(_id): Path<String>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], SESSION)
}

async fn page(
    State(pages): State<Arc<[Bytes]>>,
    Path(_id): Path<String>,
    Query(page): Query<Page>,
) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], pages[page.limit.min(MESSAGES_MAX)].clone())
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
