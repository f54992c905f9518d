//! The export of a user: a line for each session and message.

use serde_json::{Value, json};

use crate::support::service::Service;

const EXPORT: &str = "/api/sessions/business/b/user/u/export";

async fn exported(service: &Service) -> Vec<Value> {
    let response = service.get(EXPORT).await.expect(200);
    assert_eq!(response.header("content-type"), Some("application/x-ndjson"));
    assert!(response.text.is_empty() || response.text.ends_with('\n'));
    response.text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
}

#[tokio::test]
async fn an_export_has_every_session_and_message_of_the_user() {
    let service = Service::start(&[]).await;
    assert_eq!(exported(&service).await, Vec::<Value>::new());
    service.get_or_create("other").await.expect(201);
    let mut expected = Vec::new();
    // More sessions and messages than one step reads.
    for number in 0..20 {
        let body = json!({"businessId": "b", "userId": "u", "ifActive": "replace", "title": format!("{number}\n")});
        let id = service.post("/api/sessions", body).await.expect(201).string("sessionId");
        let messages = format!("/api/sessions/{id}/messages");
        let count = if number == 3 { 250 } else { number % 2 };
        for batch in (0..count).collect::<Vec<_>>().chunks(100) {
            let batch: Vec<_> = batch.iter().map(|n| json!({"role": "user", "content": format!("{n}\n")})).collect();
            service.post(&messages, json!(batch)).await.expect(201);
        }
        let listed = service.get(&format!("{messages}?limit=1000")).await.expect(200).json();
        expected.push((id, listed));
    }
    let mut lines = Vec::new();
    for (id, messages) in expected {
        lines.push(json!({"session": service.get(&format!("/api/sessions/{id}")).await.expect(200).json()}));
        lines.extend(messages.as_array().expect("an array").iter().map(|message| json!({"message": message})));
    }
    assert_eq!(exported(&service).await, lines);
}

#[tokio::test]
async fn a_large_export_is_complete() {
    let service = Service::start(&[]).await;
    let path = format!("/api/sessions/{}/messages", service.session_of("u").await);
    let content = "x".repeat(200 << 10);
    for n in 0..60 {
        let message = json!({"messageId": format!("m{n}"), "role": "user", "content": content});
        service.post(&path, message).await.expect(201);
    }
    let lines = exported(&service).await;
    assert_eq!(lines.len(), 61);
    assert!(lines[1..].iter().all(|line| line["message"]["content"] == content.as_str()));
}

#[tokio::test]
async fn an_export_closes_a_lost_turn() {
    let service = Service::start(&[]).await;
    let session = format!("/api/sessions/{}", service.session_of("u").await);
    service.post(&format!("{session}/turns"), json!({"turnId": "t", "writer": "w"})).await.expect(201);
    let chunks = json!({"number": 1, "from": 0, "chunks": ["half"]});
    service.post(&format!("{session}/turns/t/chunks"), chunks).await.expect(200);
    assert_eq!(exported(&service).await.len(), 1);
    service.advance(std::time::Duration::from_secs(60));
    let lines = exported(&service).await;
    assert_eq!(
        (&lines[1]["message"]["content"], &lines[1]["message"]["finishReason"]),
        (&json!("half"), &json!("lost"))
    );
}
