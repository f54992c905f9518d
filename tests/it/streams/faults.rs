//! Streams that are cut at random moments, by two services on one Redis, while turns are written and connections of
//! subscribers are killed; and during an outage of Redis.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use crate::support::events::{EventStream, Followed, SessionClient};
use crate::support::process::Process;
use crate::support::random::Random;
use crate::support::redis_server::RedisServer;
use crate::support::service::Service;

/// How many streams are cut. `SESSIOND_STREAM_CUTS` sets another number.
const CUTS: usize = 1_000;
/// Number of concurrent streams.
const READERS: usize = 8;

#[tokio::test]
async fn no_event_is_lost_or_repeated_over_random_cuts() {
    let wanted = std::env::var("SESSIOND_STREAM_CUTS").map_or(CUTS, |cuts| cuts.parse().expect("a number"));
    let redis = RedisServer::start(&[]);
    let service = Service::start_on(&redis.socket(), &["--rate-limit", "0"]).await;
    // One service depends on notifications, and one polls often.
    let sibling = service.polling_sibling().await;
    let nodes = [service.base.as_str(), &sibling.base];
    let client = SessionClient::new(&nodes, &service.session_of("u").await);
    let (is_done, cuts, mut random) = (AtomicBool::new(false), AtomicUsize::new(0), Random::seeded());
    let readers: Vec<_> = (0..READERS).map(|_| random.fork()).collect();
    let write = async {
        let mut acknowledged = Vec::new();
        while cuts.load(Ordering::Relaxed) < wanted {
            acknowledged.extend(client.write_from(&mut random, acknowledged.len() / 2, 1).await);
        }
        is_done.store(true, Ordering::Relaxed);
        acknowledged
    };
    let kill = async {
        while !is_done.load(Ordering::Relaxed) {
            redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let follow = join_all(readers.into_iter().map(|random| client.follow(random, &is_done, &cuts)));
    let (acknowledged, all, ()) = tokio::join!(write, follow, kill);
    let chunks: usize = all.iter().map(|followed| followed.chunks).sum();
    println!("{} cuts, {} messages, {chunks} chunks", cuts.load(Ordering::Relaxed), acknowledged.len());
    assert!(chunks > 0, "the streams saw turns as they were written");
    for followed in &all {
        assert_eq!(followed.resets, [""; 0]);
        client.expect_complete(followed, &mut random, &acknowledged).await;
    }
}

#[tokio::test]
async fn streams_survive_a_redis_outage_and_catch_up() {
    let mut redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let url = redis.url();
    let start = || Process::serve(&["--rate-limit", "0"], &[("REDIS_URL", &url)]);
    let ((_first, one), (second, two)) = (start(), start());
    let created = reqwest::Client::new().post(format!("{one}/api/sessions"));
    let created = created.json(&json!({"businessId": "b", "userId": "u"})).send().await.expect("a response");
    let id = created.json::<serde_json::Value>().await.expect("JSON")["sessionId"].as_str().expect("an id").to_owned();
    let client = SessionClient::new(&[&one, &two], &id);
    let mut stream = EventStream::open(&format!("{one}/api/sessions/{id}/events?after=0"), &[]).await;
    let (is_done, cuts, mut random) = (AtomicBool::new(false), AtomicUsize::new(0), Random::seeded());
    let readers: Vec<_> = (0..4).map(|_| random.fork()).collect();
    let write = async {
        let mut acknowledged = client.write(&mut random, 5).await;
        redis.kill();
        // A call waits for Redis, which starts again in the meantime. Then one of the services is killed.
        let more = client.write_from(&mut random, 5, 5);
        let again = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            redis.start_again();
            second.signal(rustix::process::Signal::KILL);
        };
        let (more, ()) = tokio::join!(more, again);
        acknowledged.extend(more);
        is_done.store(true, Ordering::Relaxed);
        acknowledged
    };
    let follow = join_all(readers.into_iter().map(|random| client.follow(random, &is_done, &cuts)));
    let (acknowledged, all) = tokio::join!(write, follow);
    for followed in &all {
        assert_eq!(followed.resets, [""; 0]);
        client.expect_complete(followed, &mut random, &acknowledged).await;
    }
    // The stream that was never cut has everything as well.
    let mut followed = Followed::default();
    while followed.messages.len() < acknowledged.len() {
        followed.take(&stream.next().await.expect("the stream stays open"));
    }
    client.expect_complete(&followed, &mut random, &acknowledged).await;
}
