//! The read connection: reads that it cannot serve go to the fred client.

use std::time::Instant;

use serde_json::json;

use crate::support::acl;
use crate::support::process::TEST_TIMEOUT;
use crate::support::redis_server::{IN_MEMORY, RedisServer};
use crate::support::service::Service;

/// The ids of the connections to Redis whose last command was this one.
async fn connections(redis: &RedisServer, last_command: &str) -> Vec<String> {
    let list = redis.probe().await.text(&["CLIENT", "LIST"]).await.expect("a list");
    let of_command = list.lines().filter(|line| line.contains(&format!(" cmd={last_command} ")));
    of_command.filter_map(|line| Some(line.strip_prefix("id=")?.split(' ').next()?.to_owned())).collect()
}

#[tokio::test]
async fn reads_are_served_while_the_read_connection_is_closed() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &[]).await;
    let path = format!("/api/sessions/{}", service.session_of("u").await);
    let mut killed = Vec::new();
    let started = Instant::now();
    // The connection of the fred client also sends PING; the read connection sends HGETALL only.
    while killed.len() < 3 {
        assert!(started.elapsed() < TEST_TIMEOUT, "the read connection is not opened again");
        service.get(&path).await.expect(200);
        for id in connections(&redis, "hgetall").await {
            if !killed.contains(&id) {
                redis.probe().await.command(&["CLIENT", "KILL", "ID", &id]).await;
                killed.push(id);
            }
        }
    }
    service.get(&path).await.expect(200);
}

#[tokio::test]
async fn reads_that_redis_rejects_are_repeated_by_the_client() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &[]).await;
    let path = format!("/api/sessions/{}", service.session_of("u").await);
    let probe = redis.probe().await;
    probe.command(&["ACL", "SETUSER", acl::SERVICE, "-hgetall"]).await;
    let rejected = service.get(&path).await.expect(503).json();
    assert!(rejected["detail"].as_str().is_some_and(|detail| detail.contains("NOPERM")), "{rejected}");
    probe.command(&["ACL", "SETUSER", acl::SERVICE, "+hgetall"]).await;
    service.get(&path).await.expect(200);
    // Redis also replies with an error if the key is not a hash.
    let key = probe.texts(&["KEYS", "*:s:*"]).await.remove(0);
    probe.command(&["DEL", &key]).await;
    probe.command(&["SET", &key, "text"]).await;
    assert_eq!(service.get(&path).await.expect(500).json()["code"], json!("internal"));
}
