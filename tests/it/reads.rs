//! The connection for reads of sessions: what it cannot answer, the client does.

use std::time::Instant;

use serde_json::json;

use crate::support::acl;
use crate::support::process::PATIENCE;
use crate::support::server::{IN_MEMORY, RedisServer};
use crate::support::service::Service;

/// The ids of Redis's connections whose last command was this one.
async fn connections(redis: &RedisServer, last_command: &str) -> Vec<String> {
    let list = redis.look().await.text(&["CLIENT", "LIST"]).await.expect("a list");
    let of_command = list.lines().filter(|line| line.contains(&format!(" cmd={last_command} ")));
    of_command.filter_map(|line| Some(line.strip_prefix("id=")?.split(' ').next()?.to_owned())).collect()
}

#[tokio::test]
async fn a_read_whose_connection_is_gone_is_answered_by_the_client() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &[]).await;
    let path = format!("/api/sessions/{}", service.session_of("u").await);
    let mut killed = Vec::new();
    let started = Instant::now();
    // The client's own connection says PING, too; the other one reads and nothing else.
    while killed.len() < 3 {
        assert!(started.elapsed() < PATIENCE, "the connection is not opened again");
        service.get(&path).await.expect(200);
        for id in connections(&redis, "hgetall").await {
            if !killed.contains(&id) {
                redis.look().await.command(&["CLIENT", "KILL", "ID", &id]).await;
                killed.push(id);
            }
        }
    }
    service.get(&path).await.expect(200);
}

#[tokio::test]
async fn a_read_that_is_refused_is_asked_of_the_client_which_says_why() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &[]).await;
    let path = format!("/api/sessions/{}", service.session_of("u").await);
    let look = redis.look().await;
    // Rules for a version that did not send it yet: the client asks for the fields by their names.
    look.command(&["ACL", "SETUSER", acl::SERVICE, "-hgetall"]).await;
    service.get(&path).await.expect(200);
    look.command(&["ACL", "SETUSER", acl::SERVICE, "-hmget"]).await;
    let refused = service.get(&path).await.expect(503).json();
    assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains("NOPERM")), "{refused}");
    look.command(&["ACL", "SETUSER", acl::SERVICE, "+hgetall", "+hmget"]).await;
    service.get(&path).await.expect(200);
    // What is no hash at all is an error of Redis, too.
    let key = look.texts(&["KEYS", "*:s:*"]).await.remove(0);
    look.command(&["DEL", &key]).await;
    look.command(&["SET", &key, "text"]).await;
    assert_eq!(service.get(&path).await.expect(500).json()["code"], json!("internal"));
}
