//! Hints: the hint of a known user saves the script, and a stale hint never gives a wrong response.

use std::time::Duration;

use serde_json::json;

use crate::support::monitor::Monitor;
use crate::support::redis_server::{IN_MEMORY, RedisServer};
use crate::support::service::Service;

/// The names of the commands that a get-or-create of `u` sends, and the session of the response.
async fn resumed_by(redis: &RedisServer, service: &Service) -> (Vec<String>, serde_json::Value) {
    let monitor = Monitor::start(&redis.socket());
    let response = service.get_or_create("u").await.expect(200).json();
    let commands = monitor.finish(&redis.probe().await).await;
    // Ignores the service's PING and its checks of the layout, and the HELLO of the test's own connection.
    let of_layout = |word: &String| word.ends_with(":layout");
    let commands = commands.into_iter().filter(|command| !command.words.iter().any(of_layout));
    let names = commands.map(|command| command.words[0].to_uppercase());
    (names.filter(|name| matches!(name.as_str(), "HGETALL" | "EVALSHA" | "EVAL" | "GET")).collect(), response)
}

#[tokio::test]
async fn resuming_a_known_user_takes_one_read_and_no_script() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &[]).await;
    service.wait_for_read_connection().await;
    let created = service.get_or_create("u").await.expect(201).json();
    assert_eq!(resumed_by(&redis, &service).await, (vec!["HGETALL".to_owned()], created.clone()));

    // A minute later activity is due, and the script writes it. After that it is one read again.
    service.advance(Duration::from_mins(1));
    let (commands, touched) = resumed_by(&redis, &service).await;
    assert_eq!(commands, ["HGETALL", "EVALSHA"]);
    assert_eq!(touched["sessionId"], created["sessionId"]);
    assert_eq!(touched["lastActivityAt"], service.now().to_string());
    assert_eq!(resumed_by(&redis, &service).await, (vec!["HGETALL".to_owned()], touched));
}

#[tokio::test]
async fn without_hints_each_call_runs_the_script() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &["--hint-cache-size", "0"]).await;
    let created = service.get_or_create("u").await.expect(201).json();
    assert_eq!(resumed_by(&redis, &service).await, (vec!["EVALSHA".to_owned()], created));
}

#[tokio::test]
async fn stale_hints_give_no_wrong_session() {
    let service = Service::start(&[]).await;
    let other = service.sibling(&[]).await;
    let path = |id: &str| format!("/api/sessions/{id}");

    let first = service.session_of("u").await;
    other.patch(&path(&first), json!({"status": "ended"})).await.expect(200);
    let second = service.get_or_create("u").await.expect(201).string("sessionId");

    let replace = json!({"businessId": "b", "userId": "u", "ifActive": "replace"});
    let third = other.post("/api/sessions", replace).await.expect(201).string("sessionId");
    assert_eq!(service.get_or_create("u").await.expect(200).string("sessionId"), third);

    other.delete(&path(&third)).await.expect(204);
    let fourth = service.get_or_create("u").await.expect(201).string("sessionId");

    // The other service resumes the second session in place of the fourth.
    let resume = json!({"status": "active", "ifActive": "replace"});
    other.patch(&path(&second), resume).await.expect(200);
    assert_eq!(service.get_or_create("u").await.expect(200).string("sessionId"), second);

    service.advance(Duration::from_mins(30));
    let fifth = service.get_or_create("u").await.expect(201).string("sessionId");
    assert!(![first, second, third, fourth].contains(&fifth));
}

#[tokio::test]
async fn hints_are_per_business_and_user() {
    let service = Service::start(&[]).await;
    let mut ids = Vec::new();
    // Pairs whose concatenations collide: `abc` or `abcd`.
    for (business, user) in [("a", "bc"), ("ab", "c"), ("abc", "d"), ("a", "bcd")] {
        let body = json!({"businessId": business, "userId": user});
        let created = service.post("/api/sessions", body.clone()).await.expect(201).json();
        assert_eq!(service.post("/api/sessions", body).await.expect(200).json(), created);
        ids.push(created["sessionId"].clone());
    }
    ids.dedup();
    assert_eq!(ids.len(), 4);
}
