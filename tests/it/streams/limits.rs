//! Limits on the number of open streams, and what ends streams: their credential, and the shutdown of the service.

use std::time::Duration;

use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;
use sessiond::auth::{JwtAlgorithm, Scope};
use tempfile::TempDir;

use super::Conversation;
use crate::support::credentials::{Signer, api_key, claims, jwt_flags, replace};
use crate::support::events::EventStream;
use crate::support::process::{Process, with_timeout};
use crate::support::redis::shared_url;
use crate::support::service::Service;

#[tokio::test]
async fn streams_beyond_the_limit_are_rejected_until_one_ends() {
    let service = Service::start(&["--max-streams", "3"]).await;
    let conversation = Conversation::of(&service, "u").await;
    let path = conversation.path("/events");
    let mut streams = Vec::new();
    for _ in 0..2 {
        streams.push(service.events(&path).await);
    }
    let _business = service.events("/api/sessions/business/b/events").await;
    service.get(&path).await.expect_problem(503, "overloaded");
    service.get("/api/sessions/business/b/events").await.expect_problem(503, "overloaded");
    service.get(&conversation.path("")).await.expect(200);
    // A deleted session ends its streams.
    service.delete(&conversation.path("")).await.expect(204);
    for stream in &mut streams {
        stream.until("deleted").await;
        assert!(stream.next().await.is_none());
    }
    drop(streams);
    let conversation = Conversation::of(&service, "u").await;
    let url = format!("{}{}", service.base, conversation.path("/events"));
    with_timeout(async { while EventStream::request(&url, &[]).await.expect("a response").status() != 200 {} }).await;
}

/// A service with tokens, and a signer of them.
fn with_tokens(folder: &TempDir) -> (Signer, Vec<String>) {
    let signer = Signer::new(JwtAlgorithm::Es256);
    let key_file = folder.path().join("key");
    std::fs::write(&key_file, signer.key_file()).expect("a file");
    (signer, jwt_flags(JwtAlgorithm::Es256, &key_file))
}

#[tokio::test]
async fn one_user_has_a_limit_that_ignores_disconnected_clients() {
    let folder = TempDir::new().expect("a folder");
    let (signer, mut flags) = with_tokens(&folder);
    flags.extend(["--max-streams-per-user", "2", "--rate-limit", "0", "--user-rate-limit", "0"].map(str::to_owned));
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let service = Service::start(&flags).await;
    let token = |user: &str| signer.token(&claims("b", user, service.now()));
    let session = async |user: &str| {
        let body = json!({"businessId": "b", "userId": user});
        service.bearer(&token(user), Method::POST, "/api/sessions", body).await.expect(201).string("sessionId")
    };
    let (own, other) = (session("u").await, session("v").await);
    let url = |id: &str| format!("{}/api/sessions/{id}/events", service.base);
    let bearer = |user: &str| format!("Bearer {}", token(user));
    let (mine, theirs) = (bearer("u"), bearer("v"));
    let first = EventStream::open(&url(&own), &[("authorization", &mine)]).await;
    let _second = EventStream::open(&url(&own), &[("authorization", &mine)]).await;
    let status = async |id: &str, bearer: &str| {
        EventStream::request(&url(id), &[("authorization", bearer)]).await.expect("a response").status().as_u16()
    };
    assert_eq!(status(&own, &mine).await, 503);
    assert_eq!(status(&other, &theirs).await, 200, "another user");
    assert_eq!(status(&other, &mine).await, 404, "another user's session looks like a missing one");
    let business = format!("{}/api/sessions/business/b/events", service.base);
    let rejected = EventStream::request(&business, &[("authorization", &mine)]).await.expect("a response");
    assert_eq!(rejected.status().as_u16(), 403, "a user does not see a whole business");
    drop(first);
    with_timeout(async { while status(&own, &mine).await != 200 {} }).await;
}

#[tokio::test]
async fn a_stream_ends_when_its_token_expires() {
    let folder = TempDir::new().expect("a folder");
    let (signer, flags) = with_tokens(&folder);
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let service = Service::start(&flags).await;
    let token = signer.token(&claims("b", "u", service.now()));
    let body = json!({"businessId": "b", "userId": "u"});
    let session = service.bearer(&token, Method::POST, "/api/sessions", body).await.expect(201).string("sessionId");
    let url = format!("{}/api/sessions/{session}/events", service.base);
    let mut stream = EventStream::open(&url, &[("authorization", &format!("Bearer {token}"))]).await;
    stream.until("ready").await;
    // Five minutes, and the leeway for clocks that differ.
    service.advance(Duration::from_secs(10 * 60));
    stream.expect("bye").await;
    assert!(stream.next().await.is_none());
    let again = EventStream::request(&url, &[("authorization", &format!("Bearer {token}"))]).await.expect("a response");
    assert_eq!(again.status().as_u16(), 401);
}

#[tokio::test]
async fn a_stream_ends_when_its_key_is_revoked() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("keys");
    let (first, first_entry) = api_key("first", &["b"], &[Scope::Read, Scope::Write], None);
    let (second, second_entry) = api_key("second", &["b"], &[Scope::Read, Scope::Write], None);
    replace(&file, format!("{first_entry}\n{second_entry}"));
    let flags = ["--key-prefix", "sd:withdrawn", "--api-keys-file", file.to_str().expect("a path")];
    let (_service, base) = Process::serve(&flags, &[("REDIS_URL", &shared_url())]);
    let url = format!("{base}/api/sessions/business/b/events");
    let mut withdrawn = EventStream::open(&url, &[("x-api-key", &first)]).await;
    let mut kept = EventStream::open(&url, &[("x-api-key", &second)]).await;
    for stream in [&mut withdrawn, &mut kept] {
        stream.expect("reset").await;
    }
    replace(&file, second_entry);
    withdrawn.expect("bye").await;
    assert!(withdrawn.next().await.is_none());
    let body = json!({"businessId": "b", "userId": "u"}).to_string();
    let create = reqwest::Client::new().post(format!("{base}/api/sessions")).header("x-api-key", &second);
    let created = create.header("content-type", "application/json").body(body).send().await.expect("a response");
    assert!(created.status().is_success());
    kept.expect("session").await;
}

#[tokio::test]
async fn a_stopping_service_sends_bye() {
    let flags = ["--key-prefix", "sd:good-bye", "--shutdown-grace", "60s"];
    let (mut service, base) = Process::serve(&flags, &[("REDIS_URL", &shared_url())]);
    let url = format!("{base}/api/sessions/business/b/events");
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut stream = EventStream::open(&url, &[]).await;
        stream.expect("reset").await;
        streams.push(stream);
    }
    service.signal(Signal::TERM);
    for stream in &mut streams {
        stream.expect("bye").await;
        assert!(stream.next().await.is_none());
    }
    assert!(service.wait().success());
}
