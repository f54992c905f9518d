//! The calls of the existing client, unchanged, in the order in which a page load makes them.

use serde_json::json;

use crate::support::service::Service;

#[tokio::test]
async fn a_new_user_gets_a_session_and_finds_it_again() {
    let service = Service::start(&[]).await;
    let active = "/api/sessions/business/B0100001/user/user_123/active";
    service.get(active).await.expect_problem(404, "no_active_session");

    let body = json!({"businessId": "B0100001", "userId": "user_123", "locationId": "L001", "sessionType": "general"});
    let created = service.post("/api/sessions", body.clone()).await.expect(201);
    let id = created.string("sessionId");
    assert_eq!(created.header("location"), Some(format!("/api/sessions/{id}").as_str()));
    assert_eq!(created.header("etag"), Some("\"1\""));
    let now = service.now().to_string();
    let expected = json!({
        "sessionId": id, "businessId": "B0100001", "userId": "user_123", "locationId": "L001",
        "sessionType": "general", "status": "active", "title": null, "metadata": {}, "messageCount": 0, "version": 1,
        "createdAt": now, "updatedAt": now, "lastActivityAt": now,
        "expiresAt": sessiond::session::Timestamp(service.now().0 + 30 * 60 * 1000).to_string(),
        "endedAt": null, "endReason": null,
    });
    assert_eq!(created.json(), expected);

    assert_eq!(service.post("/api/sessions", body).await.expect(200).json(), expected);
    assert_eq!(service.get(active).await.expect(200).json(), expected);
    assert_eq!(service.get(&format!("/api/sessions/{id}")).await.expect(200).json(), expected);
    assert_eq!(service.get(&format!("/api/sessions/{}", id.to_uppercase())).await.expect(200).json(), expected);
    let history = "/api/sessions/business/B0100001/user/user_123/history?limit=20";
    assert_eq!(service.get(history).await.expect(200).json(), json!([expected]));
    let of_business = service.get("/api/sessions/business/B0100001/active").await.expect(200);
    assert_eq!(of_business.json(), json!([expected]));
    assert_eq!(of_business.header("x-total-count"), Some("1"));
}
