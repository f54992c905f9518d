//! The pipelined connections for reads and for scripts: what they cannot serve goes to the fred client.

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
async fn calls_are_served_while_a_pipelined_connection_is_closed() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &[]).await;
    let path = format!("/api/sessions/{}", service.session_of("u").await);
    let messages = format!("{path}/messages");
    let mut appended = 0;
    // The connection of the fred client also sends PING; these send reads only, and scripts only.
    for command in ["hgetall", "evalsha"] {
        let (mut killed, started) = (Vec::new(), Instant::now());
        while killed.len() < 3 {
            assert!(started.elapsed() < TEST_TIMEOUT, "the connection for {command} is not opened again");
            service.get(&path).await.expect(200);
            service.post(&messages, json!({"role": "user", "content": command})).await.expect(201);
            appended += 1;
            for id in connections(&redis, command).await {
                if !killed.contains(&id) {
                    redis.probe().await.command(&["CLIENT", "KILL", "ID", &id]).await;
                    killed.push(id);
                }
            }
        }
    }
    assert_eq!(service.get(&path).await.expect(200).json()["messageCount"], appended);
}

/// Redis holds writes back, as in a failover that is coordinated: a script gets a bounded error, and reads are served.
#[tokio::test]
async fn reads_do_not_wait_behind_scripts() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &[]).await;
    let path = format!("/api/sessions/{}", service.session_of("u").await);
    let messages = format!("{path}/messages");
    service.wait_for_read_connection().await;
    let probe = redis.probe().await;
    let append =
        async |id: &str| service.post(&messages, json!({"messageId": id, "role": "user", "content": id})).await;
    append("before").await.expect(201);
    probe.command(&["CLIENT", "PAUSE", "3600000", "WRITE"]).await;
    let (rejected, read) = tokio::join!(append("held"), service.get(&path));
    assert_eq!(rejected.expect(503).json()["code"], json!("store_unavailable"));
    assert_eq!(read.expect(200).json()["messageCount"], 1);
    probe.command(&["CLIENT", "UNPAUSE"]).await;
    let (started, mut status) = (Instant::now(), 503);
    while status == 503 {
        assert!(started.elapsed() < TEST_TIMEOUT, "scripts are not served again");
        status = append("held").await.status.as_u16();
    }
    append("after").await.expect(201);
    assert_eq!(service.get(&path).await.expect(200).json()["messageCount"], 3);
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
