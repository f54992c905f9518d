//! A service that starts before its Redis.

use crate::support::process::TEST_TIMEOUT;
use crate::support::redis_server::{IN_MEMORY, RedisServer};
use crate::support::service::Service;

#[tokio::test]
async fn a_service_started_before_its_redis_serves_once_redis_is_up() {
    let mut redis = RedisServer::start(IN_MEMORY);
    redis.kill();
    let socket = redis.socket();
    let service = tokio::spawn(async move { Service::start_on(&socket, &[]).await.session_of("u").await });
    // Lets the service's task run. Its first attempt to connect fails, because nothing listens yet.
    tokio::task::yield_now().await;
    let start = move || {
        redis.start_again();
        redis
    };
    let _redis = tokio::task::spawn_blocking(start).await.expect("no panic");
    tokio::time::timeout(TEST_TIMEOUT, service).await.expect("a session in time").expect("no panic");
}
