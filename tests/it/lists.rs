//! Lists: order, pages, and the effects of inserts and deletes between two pages.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use sessiond::session::{Partition, Timestamp};

use crate::support::audit::expect_clean;
use crate::support::service::{Answer, Service};

fn ids(response: &Answer) -> Vec<String> {
    let sessions = response.json();
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
        // The clock does not advance.
        created.insert(0, replace(&service, "u").await);
    }
    let path = "/api/sessions/business/b/user/u/history";
    assert_eq!(ids(&service.get(path).await.expect(200)), created);
    assert_eq!(pages(&service, &format!("{path}?limit=3")).await.concat(), created);
    assert_eq!(pages(&service, &format!("{path}?limit=7")).await, [created], "a full last page has no next link");
}

#[tokio::test]
async fn history_pages_survive_inserts_and_deletes_between_them() {
    let service = Service::start(&[]).await;
    let mut remaining = Vec::new();
    for _ in 0..10 {
        remaining.insert(0, replace(&service, "u").await);
    }
    let first = service.get("/api/sessions/business/b/user/u/history?limit=4").await.expect(200);
    let mut seen = ids(&first);
    // Adds a session at the front, and deletes the last entry of the page and one of the next page.
    replace(&service, "u").await;
    for index in [3, 5] {
        service.delete(&format!("/api/sessions/{}", remaining[index])).await.expect(204);
    }
    seen.extend(pages(&service, &first.link("next").expect("a next page")).await.concat());
    remaining.remove(5);
    assert_eq!(seen, remaining);
}

#[tokio::test]
async fn resumed_session_moves_to_the_front_of_the_history() {
    let service = Service::start(&[]).await;
    let mut order = Vec::new();
    for _ in 0..6 {
        order.insert(0, replace(&service, "u").await);
    }
    let path = "/api/sessions/business/b/user/u/history";
    let resume = async |order: &mut Vec<String>, index: usize| {
        let id = order.remove(index);
        let body = json!({"status": "active", "ifActive": "replace"});
        let resumed = service.patch(&format!("/api/sessions/{id}"), body).await.expect(200);
        order.insert(0, id);
        resumed
    };
    // The clock does not advance: each resume and create is a millisecond after the one before.
    let start = service.now();
    for (number, index) in (6..).zip([5, 2, 5]) {
        let resumed = resume(&mut order, index).await;
        assert_eq!(resumed.string("updatedAt"), Timestamp(start.0 + number).to_string());
        assert_eq!(ids(&service.get(path).await.expect(200)), order);
        expect_clean(&service).await;
    }
    order.insert(0, replace(&service, "u").await);
    let newest = service.get(path).await.json()[0]["createdAt"].clone();
    assert_eq!(newest, Timestamp(start.0 + 9).to_string(), "later than every resume");

    // Between two pages, a session of the first page and one of a later page are resumed.
    let first = service.get(&format!("{path}?limit=3")).await.expect(200);
    assert_eq!(ids(&first), order[..3]);
    let mut later = order[3..].to_vec();
    let moved = later.remove(1);
    for id in [order[1].clone(), moved] {
        let index = order.iter().position(|other| *other == id).expect("an entry");
        resume(&mut order, index).await;
    }
    let rest = pages(&service, &first.link("next").expect("a next page")).await.concat();
    assert_eq!(rest, later, "only the resumed session is missing, and none is repeated");
    assert_eq!(ids(&service.get(path).await.expect(200)), order);

    // A change other than a resume moves nothing.
    service.patch(&format!("/api/sessions/{}", order[4]), json!({"title": "t"})).await.expect(200);
    service.patch(&format!("/api/sessions/{}", order[0]), json!({"status": "active"})).await.expect(200);
    assert_eq!(ids(&service.get(path).await.expect(200)), order);
    expect_clean(&service).await;
}

#[tokio::test]
async fn entries_of_missing_sessions_are_skipped_and_pages_stay_full() {
    let service = Service::start(&[]).await;
    let mut created = Vec::new();
    for _ in 0..12 {
        created.insert(0, replace(&service, "u").await);
    }
    // The state after expiry by Redis: the hashes of six sessions no longer exist, but their history entries do.
    for id in &created[2..8] {
        let key = format!("{}:{{{}}}:s:{id}", service.config.redis.key_prefix, &id[..4]);
        service.probe.command(&["DEL", &key]).await;
    }
    created.drain(2..8);
    let path = "/api/sessions/business/b/user/u/history?limit=4";
    assert_eq!(ids(&service.get(path).await.expect(200)), created[..4]);
    assert_eq!(pages(&service, path).await.concat(), created);
}

#[tokio::test]
async fn active_sessions_of_all_partitions_are_sorted_by_latest_expiry_first() {
    let service = Service::start(&[]).await;
    let mut created = Vec::new();
    for user in 0..60 {
        created.insert(0, service.session_of(&format!("user_{user}")).await);
        service.advance(Duration::from_millis(1));
    }
    let partitions: BTreeSet<_> = created.iter().map(|id| id[..4].to_owned()).collect();
    assert!(partitions.len() > 10, "60 users are in few of the up to 16 partitions of a business");
    let path = "/api/sessions/business/b/active";
    let first = service.get(path).await.expect(200);
    assert_eq!(first.header("x-total-count"), Some("60"));
    assert_eq!(ids(&first), created[..50], "the default limit is 50");
    assert_eq!(pages(&service, &format!("{path}?limit=7")).await.concat(), created);
    assert_eq!(ids(&service.get("/api/sessions/business/a/active").await.expect(200)), Vec::<String>::new());
}

#[tokio::test]
async fn active_sessions_with_equal_expiry_are_listed_once_each() {
    let service = Service::start(&[]).await;
    let mut created = BTreeSet::new();
    for user in 0..40 {
        // The clock does not advance: all sessions have the same expiry, and many share a partition.
        created.insert(service.session_of(&format!("user_{user}")).await);
    }
    for limit in [1, 3, 39, 40] {
        let seen = pages(&service, &format!("/api/sessions/business/b/active?limit={limit}")).await.concat();
        assert_eq!(seen.len(), created.len(), "limit {limit}");
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), created, "limit {limit}");
    }
}

#[tokio::test]
async fn session_touched_between_two_pages_moves_to_the_front_without_duplicates() {
    let service = Service::start(&["--activity-resolution", "0"]).await;
    let mut created = Vec::new();
    for user in 0..6 {
        created.insert(0, service.session_of(&format!("user_{user}")).await);
        service.advance(Duration::from_secs(1));
    }
    let first = service.get("/api/sessions/business/b/active?limit=2").await.expect(200);
    service.get_or_create("user_0").await.expect(200);
    let rest = pages(&service, &first.link("next").expect("a next page")).await.concat();
    assert_eq!(
        [ids(&first), rest].concat(),
        created[..5],
        "the touched session moved to the front, before these pages"
    );
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
async fn erasing_a_user_removes_all_its_keys_and_no_others() {
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
    let left = service.probe.keys().await;
    assert!(left.iter().all(|key| !key.ends_with(":u") && !key.contains(":m:") && !key.contains(":d:")), "{left:?}");
}

/// A damaged pointer or index names the session of another owner. Nobody may see that session by it, or change it.
#[tokio::test]
async fn an_entry_that_names_the_session_of_another_owner_shows_nothing() {
    let service = Service::start(&["--hint-cache-size", "0"]).await;
    let foreign = json!({"businessId": "b2", "userId": "u2"});
    let foreign = service.post("/api/sessions", foreign).await.expect(201).string("sessionId");
    let home = Partition::of_user("b", "u");
    let key = |rest: &str| format!("{}:{{{home}}}:{rest}", service.config.redis.key_prefix);
    // The scripts look for the session in the partition of the user.
    let stored = format!("{}:{{{}}}:s:{foreign}", service.config.redis.key_prefix, &foreign[..4]);
    service.probe.command(&["COPY", &stored, &key(&format!("s:{foreign}"))]).await;
    let damage = async || {
        let (pointer, history, business) = (key("a:b:u"), key("h:b:u"), key("b:b"));
        service.probe.command(&["SET", &pointer, &foreign]).await;
        for index in [&history, &business] {
            service.probe.command(&["ZADD", index, "99999999999999", &foreign]).await;
        }
    };
    damage().await;
    let user = "/api/sessions/business/b/user/u";
    service.get(&format!("{user}/active")).await.expect_problem(404, "no_active_session");
    assert_eq!(ids(&service.get(&format!("{user}/history")).await.expect(200)), Vec::<String>::new());
    assert_eq!(service.get(&format!("{user}/export")).await.expect(200).text, "");
    assert_eq!(ids(&service.get("/api/sessions/business/b/active").await.expect(200)), Vec::<String>::new());

    let own = service.get_or_create("u").await.expect(201).string("sessionId");
    let own_path = format!("/api/sessions/{own}");
    service.patch(&own_path, json!({"status": "ended"})).await.expect(200);
    damage().await;
    service.patch(&own_path, json!({"status": "active"})).await.expect(200);
    assert_eq!(service.get(&format!("{user}/active")).await.expect(200).string("sessionId"), own);
    damage().await;
    let body = json!({"businessId": "b", "userId": "u", "ifActive": "replace"});
    let other = service.post("/api/sessions", body).await.expect(201).string("sessionId");
    assert_ne!(other, foreign);
    damage().await;
    service.delete(user).await.expect(200);
    assert_eq!(service.probe.hash(&key(&format!("s:{foreign}"))).await, service.probe.hash(&stored).await);
}
