//! A service whose Redis comes and goes.

use crate::support::process::PATIENCE;
use crate::support::server::{IN_MEMORY, RedisServer};
use crate::support::service::Service;

#[tokio::test]
async fn a_service_that_starts_before_its_redis_serves_as_soon_as_that_is_there() {
    let mut redis = RedisServer::start(IN_MEMORY);
    redis.kill();
    let socket = redis.socket();
    let service = tokio::spawn(async move { Service::start_on(&socket, &[]).await.session_of("u").await });
    // Nothing listens yet, so the first attempt to connect fails: the service's task runs while this one waits.
    tokio::task::yield_now().await;
    let start = move || {
        redis.start_again();
        redis
    };
    let _redis = tokio::task::spawn_blocking(start).await.expect("no panic");
    tokio::time::timeout(PATIENCE, service).await.expect("a session in time").expect("no panic");
}
