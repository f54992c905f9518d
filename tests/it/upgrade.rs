//! A rolling upgrade: two versions of the service run at the same time on one Redis. `SESSIOND_OTHER_PROGRAM` names the
//! program of the other version; `make upgrade-check` builds the previous commit. Without the variable, both are this
//! program.

use std::collections::{BTreeSet, VecDeque};

use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::support::acl;
use crate::support::ledger::Ledger;
use crate::support::load::{Load, Nodes, User, expect_right, statuses};
use crate::support::process::{self, Process, with_timeout};
use crate::support::redis_server::{AOF, RedisServer};
use crate::support::scrape::Scrape;

const NODES: usize = 3;
/// A service is replaced after the newest one has responded to this many requests.
const REQUESTS_MIN: u64 = 200;
const LEDGER_CALLS: usize = 10;
/// The maximum percentage of calls with the response `503`. A machine that is busy with other tests may miss a
/// deadline.
const UNAVAILABLE_PERCENT_MAX: u32 = 1;

/// One running service.
struct Node {
    process: Process,
    base: String,
}

impl Node {
    /// Starts a service and waits until it is ready. The load continues in the meantime.
    async fn start(program: &str, redis_url: &str) -> Self {
        let (program, redis_url) = (program.to_owned(), redis_url.to_owned());
        let serve = move || Process::serve_by(&[&program], &[], &[("REDIS_URL", &redis_url)]);
        let (process, base) = spawn_blocking(serve).await.expect("no panic");
        let ready =
            async { while reqwest::get(format!("{base}/readyz")).await.expect("a response").status() != 200 {} };
        with_timeout(ready).await;
        Self { process, base }
    }

    async fn version(&self) -> String {
        let builds = Scrape::of(&self.process).await.nonzero("sessiond_build_info");
        builds.into_keys().collect()
    }

    async fn wait_until_in_use(&self) {
        let is_in_use = |scrape: &Scrape| scrape.sum("sessiond_http_requests_total", &["/api/"]) >= REQUESTS_MIN;
        Scrape::until(&self.process, is_in_use).await;
    }

    async fn stop(mut self) {
        self.process.signal(Signal::TERM);
        let status = spawn_blocking(move || self.process.wait()).await.expect("no panic");
        assert_eq!(status.code(), Some(0));
    }
}

fn expect_clean(program: &str, redis_url: &str) {
    let mut audit = process::command_of(&[program, "audit"], &[("REDIS_URL", &acl::audit_url(redis_url))]);
    let output = audit.output().expect("the program");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Makes five sessions of one user, and reads the history in pages of one session, each page from the next of these
/// services.
async fn expect_pages_across(bases: &[&str]) {
    let client = reqwest::Client::new();
    let mut created = BTreeSet::new();
    for base in bases.iter().cycle().take(5) {
        let body = json!({"businessId": "b", "userId": "pages", "ifActive": "replace"});
        let request = client.request(Method::POST, format!("{base}/api/sessions")).json(&body);
        let session: Value = request.send().await.expect("a response").json().await.expect("JSON");
        created.insert(session["sessionId"].as_str().expect("an id").to_owned());
    }
    let mut listed = BTreeSet::new();
    let mut next = Some("/api/sessions/business/b/user/pages/history?limit=1".to_owned());
    let mut bases = bases.iter().cycle();
    while let Some(path) = next {
        let base = bases.next().expect("a service");
        let response = reqwest::get(format!("{base}{path}")).await.expect("a response");
        let link = response.headers().get("link").map(|link| link.to_str().expect("text").to_owned());
        next = link.and_then(|link| Some(link.split_once('<')?.1.split_once('>')?.0.to_owned()));
        let page: Value = response.json().await.expect("JSON");
        let id = page[0]["sessionId"].as_str().unwrap_or_else(|| panic!("a page without a session: {page}"));
        assert!(listed.insert(id.to_owned()), "{id} is listed twice");
    }
    // The history also has the user's sessions from an earlier call.
    assert!(listed.is_superset(&created), "{created:?}, listed: {listed:?}");
}

#[tokio::test]
async fn services_are_replaced_one_by_one_under_load_and_back() {
    let this = process::PROGRAM.to_owned();
    let other = std::env::var("SESSIOND_OTHER_PROGRAM").unwrap_or_else(|_| this.clone());
    let server = RedisServer::start(AOF);
    let url = server.url();

    let nodes = Nodes::default();
    let mut running = VecDeque::new();
    for _ in 0..NODES {
        let node = Node::start(&other, &url).await;
        nodes.add(&node.base);
        running.push_back(node);
    }
    let mut ledger = Ledger::new(&running[0].base);
    ledger.load(LEDGER_CALLS).await;
    let users: Vec<_> = (0..8).map(|number| ("load".to_owned(), format!("user{number}"))).collect();
    let load = Load::start_on(&nodes, &users).await;
    // An upgrade to this version, then the way back.
    for program in [&this, &other] {
        for _ in 0..NODES {
            let new = Node::start(program, &url).await;
            println!("{} is replaced by {}", running[0].version().await, new.version().await);
            nodes.add(&new.base);
            new.wait_until_in_use().await;
            let old = running.pop_front().expect("an old service");
            expect_pages_across(&[&old.base, &new.base]).await;
            running.push_back(new);
            nodes.remove(&old.base).await;
            old.stop().await;
        }
        ledger.base.clone_from(&running[0].base);
        ledger.load(LEDGER_CALLS).await;
    }
    let users = load.stop().await;

    expect_right(&users);
    let statuses = statuses(&users);
    let count = |matches: fn(u16) -> bool| {
        statuses.iter().filter(|((status, _), _)| matches(*status)).map(|(_, count)| count).sum::<u32>()
    };
    let (all, unavailable) = (count(|_| true), count(|status| status == 503));
    let acknowledged: usize = users.iter().map(User::acknowledged).sum();
    println!("{all} calls, {unavailable} of them 503; {acknowledged} acknowledged messages; {statuses:?}");
    assert!(unavailable * 100 <= all * UNAVAILABLE_PERCENT_MAX, "{statuses:?}");
    let base = &running[0].base;
    for user in &users {
        assert_eq!(user.lost(base).await, Vec::<String>::new(), "{}", user.user_id);
    }
    ledger.expect_all_answered();
    with_timeout(ledger.expect_complete()).await;
    for program in [&this, &other] {
        expect_clean(program, &url);
    }
}
