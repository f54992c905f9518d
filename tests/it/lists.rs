//! Lists: order, pages, and what inserts and deletes between two pages do to them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::service::{Answer, Service};

fn ids(answer: &Answer) -> Vec<String> {
    let sessions = answer.json();
    let sessions = sessions.as_array().expect("an array");
    sessions.iter().map(|session| session["sessionId"].as_str().expect("an id").to_owned()).collect()
}

async fn replace(service: &Service, user: &str) -> String {
    let body = json!({"businessId": "b", "userId": user, "ifActive": "replace"});
    service.post("/api/sessions", body).await.expect(201).string("sessionId")
}

/// Follows a list to its end. Returns the ids of each page.
async fn pages(service: &Service, first: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut next = Some(first.to_owned());
    while let Some(link) = next {
        let page = service.get(&link).await.expect(200);
        pages.push(ids(&page));
        next = page.link("next");
    }
    pages
}

#[tokio::test]
async fn history_is_newest_first_even_within_a_millisecond() {
    let service = Service::start(&[]).await;
    let mut created = Vec::new();
    for _ in 0..7 {
        // The clock stands.
        created.insert(0, replace(&service, "u").await);
    }
    let path = "/api/sessions/business/b/user/u/history";
    assert_eq!(ids(&service.get(path).await.expect(200)), created);
    assert_eq!(pages(&service, &format!("{path}?limit=3")).await.concat(), created);
    assert_eq!(pages(&service, &format!("{path}?limit=7")).await, [created], "a full last page has no next");
}

#[tokio::test]
async fn history_pages_survive_inserts_and_deletes_between_them() {
    let service = Service::start(&[]).await;
    let mut there_throughout = Vec::new();
    for _ in 0..10 {
        there_throughout.insert(0, replace(&service, "u").await);
    }
    let first = service.get("/api/sessions/business/b/user/u/history?limit=4").await.expect(200);
    let mut met = ids(&first);
    // A new one at the front; the entry that the page ended with, and one of the next page, are deleted.
    replace(&service, "u").await;
    for gone in [3, 5] {
        service.delete(&format!("/api/sessions/{}", there_throughout[gone])).await.expect(204);
    }
    met.extend(pages(&service, &first.link("next").expect("a next page")).await.concat());
    there_throughout.remove(5);
    assert_eq!(met, there_throughout);
}

#[tokio::test]
async fn an_entry_whose_session_is_gone_is_skipped_and_the_page_still_full() {
    let service = Service::start(&[]).await;
    let mut created = Vec::new();
    for _ in 0..12 {
        created.insert(0, replace(&service, "u").await);
    }
    // What Redis's own expiry leaves behind: the hashes of the older half are gone, their history entries are not.
    for gone in &created[2..8] {
        let key = format!("{}:{{{}}}:s:{gone}", service.config.key_prefix, &gone[..4]);
        service.look.command(&["DEL", &key]).await;
    }
    created.drain(2..8);
    let path = "/api/sessions/business/b/user/u/history?limit=4";
    assert_eq!(ids(&service.get(path).await.expect(200)), created[..4]);
    assert_eq!(pages(&service, path).await.concat(), created);
}

#[tokio::test]
async fn active_sessions_come_latest_expiry_first_from_all_partitions() {
    let service = Service::start(&[]).await;
    let mut created = Vec::new();
    for user in 0..60 {
        created.insert(0, service.session_of(&format!("user_{user}")).await);
        service.advance(Duration::from_millis(1));
    }
    let partitions: BTreeSet<_> = created.iter().map(|id| id[..4].to_owned()).collect();
    assert!(partitions.len() > 10, "60 users are spread over up to 16 partitions");
    let path = "/api/sessions/business/b/active";
    let first = service.get(path).await.expect(200);
    assert_eq!(first.header("x-total-count"), Some("60"));
    assert_eq!(ids(&first), created[..50], "the default limit is 50");
    assert_eq!(pages(&service, &format!("{path}?limit=7")).await.concat(), created);
    assert_eq!(ids(&service.get("/api/sessions/business/a/active").await.expect(200)), Vec::<String>::new());
}

#[tokio::test]
async fn active_sessions_that_expire_in_the_same_millisecond_come_once_each() {
    let service = Service::start(&[]).await;
    let mut created = BTreeSet::new();
    for user in 0..40 {
        // The clock stands: all have one expiry, and many share a partition.
        created.insert(service.session_of(&format!("user_{user}")).await);
    }
    for limit in [1, 3, 39, 40] {
        let met = pages(&service, &format!("/api/sessions/business/b/active?limit={limit}")).await.concat();
        assert_eq!(met.len(), created.len(), "limit {limit}");
        assert_eq!(met.into_iter().collect::<BTreeSet<_>>(), created, "limit {limit}");
    }
}

#[tokio::test]
async fn a_session_touched_between_two_pages_moves_to_the_front_and_none_comes_twice() {
    let service = Service::start(&["--activity-resolution", "0"]).await;
    let mut created = Vec::new();
    for user in 0..6 {
        created.insert(0, service.session_of(&format!("user_{user}")).await);
        service.advance(Duration::from_secs(1));
    }
    let first = service.get("/api/sessions/business/b/active?limit=2").await.expect(200);
    service.get_or_create("user_0").await.expect(200);
    let rest = pages(&service, &first.link("next").expect("a next page")).await.concat();
    assert_eq!([ids(&first), rest].concat(), created[..5], "the touched one is at the front now");
    assert_eq!(ids(&service.get("/api/sessions/business/b/active?limit=1").await.expect(200)), created[5..]);
}

#[tokio::test]
async fn ended_and_expired_sessions_are_not_active() {
    let service = Service::start(&[]).await;
    let ended = service.session_of("ended").await;
    service.session_of("expired").await;
    service.advance(Duration::from_secs(60));
    let active = service.session_of("active").await;
    service.patch(&format!("/api/sessions/{ended}"), json!({"status": "ended"})).await.expect(200);
    service.advance(Duration::from_secs(30 * 60 - 60));
    let list = service.get("/api/sessions/business/b/active").await.expect(200);
    assert_eq!((ids(&list), list.header("x-total-count")), (vec![active], Some("1")));
}

#[tokio::test]
async fn erasing_a_user_leaves_nothing_of_it_and_all_of_the_others() {
    let service = Service::start(&[]).await;
    for _ in 0..230 {
        replace(&service, "u").await;
    }
    let other = service.session_of("v").await;
    let messages = format!("/api/sessions/{}/messages", service.session_of("u").await);
    service.post(&messages, json!({"role": "user", "content": "x"})).await.expect(201);
    let path = "/api/sessions/business/b/user/u";
    assert_eq!(service.delete(path).await.expect(200).json(), json!({"deletedSessions": 230}));
    assert_eq!(service.delete(path).await.expect(200).json(), json!({"deletedSessions": 0}));
    assert_eq!(service.get(&format!("{path}/history")).await.json(), Value::Array(Vec::new()));
    service.get(&messages).await.expect_problem(404, "session_not_found");
    assert_eq!(ids(&service.get("/api/sessions/business/b/active").await), [other]);
    let left = service.look.keys().await;
    assert!(left.iter().all(|key| !key.ends_with(":u") && !key.contains(":m:") && !key.contains(":d:")), "{left:?}");
}
