//! A service whose Redis comes and goes.

use sessiond::store::embedded::EmbeddedRedis;

use crate::support::process::PATIENCE;
use crate::support::redis::server_program;
use crate::support::service::Service;

#[tokio::test]
async fn a_service_that_starts_before_its_redis_serves_as_soon_as_that_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("redis.sock");
    let data_dir = folder.path().to_owned();
    let service = tokio::spawn(async move { Service::start_on(&socket, &[]).await.session_of("u").await });
    // Nothing listens yet, so the first attempt to connect fails: the service's task runs while this one waits.
    tokio::task::yield_now().await;
    let redis = tokio::task::spawn_blocking(move || EmbeddedRedis::start(&server_program(), &data_dir));
    let _redis = redis.await.expect("no panic").expect("a private Redis");
    tokio::time::timeout(PATIENCE, service).await.expect("a session in time").expect("no panic");
}
