//! Turns that end with each status, streams that see them and are reset, and data that is trimmed.

use reqwest::Method;
use serde_json::{Value, json};

use super::{Service, session};
use crate::support::events::EventStream;

const BUSINESS: &str = "b4";
/// How many sessions of a user, and messages of a session, are kept.
pub(super) const SESSIONS_KEPT: &str = "3";
pub(super) const MESSAGES_KEPT: &str = "100";
/// The lease of the writer of a turn.
pub(super) const LEASE: &str = "2s";

impl Service {
    /// Returns the streams that are still open.
    pub(super) async fn write_turns(&self) -> Vec<EventStream> {
        let mut of_business = self.stream(&format!("/api/sessions/business/{BUSINESS}/events"), "").await;
        of_business.expect("reset").await;
        let path = self.session_of("reader").await;
        let mut stream = self.stream(&format!("{path}/events"), "").await;
        let cursor = stream.until("ready").await.pop().and_then(|event| event.id).expect("an id");

        for turn_id in ["interrupted", "completed", "failed", "cancelled", "lost"] {
            let begin = json!({"turnId": turn_id, "writer": "w", "ifOpen": "interrupt"});
            let number = self.expect(201, Method::POST, &format!("{path}/turns"), begin).await["number"].clone();
            let turn = format!("{path}/turns/{turn_id}");
            let chunks = json!({"number": number, "from": 0, "chunks": ["a"]});
            self.expect(200, Method::POST, &format!("{turn}/chunks"), chunks).await;
            if turn_id == "cancelled" {
                self.expect(202, Method::POST, &format!("{turn}/cancel"), Value::Null).await;
            }
            let status = if turn_id == "failed" { "failed" } else { "completed" };
            if !matches!(turn_id, "interrupted" | "lost") {
                let end = json!({"number": number, "status": status});
                self.expect(200, Method::POST, &format!("{turn}/end"), end).await;
            }
        }
        while stream.until("turn").await.pop().is_some_and(|event| event.member("status") != "lost") {}
        let message = format!("{path}/messages/completed");
        self.expect(200, Method::PATCH, &message, json!({"metadata": {"a": 1}})).await;
        stream.until("changed").await;

        let other = self.session_of("other").await;
        self.stream(&format!("{path}/events?after=99"), "").await.expect("reset").await;
        self.stream(&format!("{other}/events"), &cursor).await.expect("reset").await;
        self.expect(204, Method::DELETE, &other, Value::Null).await;
        of_business.until("deleted").await;
        vec![stream, of_business]
    }

    /// Stores more than is kept.
    pub(super) async fn exceed_what_is_kept(&self) {
        let path = self.session_of("collector").await;
        let messages = vec![json!({"role": "user", "content": "a"}); 100];
        for _ in 0..2 {
            self.expect(201, Method::POST, &format!("{path}/messages"), json!(messages)).await;
        }
        for _ in 0..5 {
            let mut another = session(BUSINESS, "collector");
            another["ifActive"] = "replace".into();
            self.expect(201, Method::POST, "/api/sessions", another).await;
        }
    }

    /// Creates a session of the business that is followed, and returns its path.
    async fn session_of(&self, user_id: &str) -> String {
        let created = self.expect(201, Method::POST, "/api/sessions", session(BUSINESS, user_id)).await;
        format!("/api/sessions/{}", created["sessionId"].as_str().expect("an id"))
    }

    async fn stream(&self, path: &str, last_id: &str) -> EventStream {
        let key = format!("Bearer {}", self.keys.all);
        EventStream::open(&format!("{}{path}", self.base), &[("authorization", &key), ("last-event-id", last_id)]).await
    }
}
