//! Redis Cluster: load on all masters, failure of a master, and slots that move under load.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use sessiond::session::Partition;
use tempfile::TempDir;

use crate::support::acl;
use crate::support::events::{EventStream, Followed, SessionClient};
use crate::support::load::{Load, User, expect_right, guest_of, statuses};
use crate::support::process::{self, Process, with_timeout};
use crate::support::random::Random;
use crate::support::redis_server::{POLL, RedisServer, cli, free_port, wait_for};
use crate::support::reply_proxy::ReplyProxy;
use crate::support::scrape::Scrape;

/// The maximum time until all users are served again. The requirement is 8 s, but a busy machine may need more.
const SERVING_AGAIN_MAX: Duration = Duration::from_secs(30);

struct Cluster {
    nodes: Vec<RedisServer>,
    folder: TempDir,
    timeout_ms: u32,
}

impl Cluster {
    /// Starts three masters, each with this many replicas.
    fn start(replicas: usize) -> Self {
        let folder = TempDir::new().expect("a folder");
        // The short timeout is for failovers only: on a busy machine, a node may reply too late to another one.
        let timeout_ms = if replicas == 0 { 15_000 } else { 1_500 };
        let start = |_| start_node(folder.path(), free_port(), timeout_ms);
        let nodes: Vec<_> = (0..3 * (1 + replicas)).map(start).collect();
        let mut create: Vec<_> = vec!["--cluster".to_owned(), "create".to_owned()];
        create.extend(nodes.iter().map(RedisServer::address));
        create.extend(["--cluster-replicas".to_owned(), replicas.to_string(), "--cluster-yes".to_owned()]);
        let words: Vec<_> = create.iter().map(String::as_str).collect();
        let output = cli(nodes[0].port, &words);
        assert!(output.contains("All 16384 slots covered"), "{output}");
        let cluster = Self { nodes, folder, timeout_ms };
        wait_for("a cluster", || cluster.nodes.iter().all(is_ok));
        let synced = |node: &RedisServer| node.info("role") == "master" || node.info("master_link_status") == "up";
        wait_for("replicas", || cluster.nodes.iter().all(synced));
        cluster
    }

    fn url(&self) -> String {
        let others: Vec<_> = self.nodes[1..].iter().map(|node| format!("node={}", node.address())).collect();
        format!("redis-cluster://{}{}?{}", acl::credentials(), self.nodes[0].address(), others.join("&"))
    }

    fn slot(&self, (business_id, user_id): &(String, String)) -> u16 {
        let tag = Partition::of_user(business_id, user_id).to_string();
        self.nodes[0].ask(&["CLUSTER", "KEYSLOT", &tag]).trim().parse().expect("a slot")
    }

    /// The index of the master that serves a slot at the start. Each of the first three nodes has a third of the slots.
    fn master_of(slot: u16) -> usize {
        usize::from(slot) * 3 / 16_384
    }

    /// Adds a master without slots, which CLUSTER SLOTS does not list. Returns its index in `nodes`.
    fn add(&mut self) -> usize {
        let bus = free_port();
        let node = start_node(self.folder.path(), bus, self.timeout_ms);
        let (port, bus) = (node.port.to_string(), bus.to_string());
        assert_eq!(self.nodes[0].ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).trim(), "OK");
        self.nodes.push(node);
        let known = self.nodes.len();
        let all_known = |node: &RedisServer| node.ask(&["CLUSTER", "NODES"]).matches("connected").count() == known;
        wait_for("a new member", || self.nodes.iter().all(|node| all_known(node) && is_ok(node)));
        known - 1
    }

    fn id(&self, node: usize) -> String {
        self.nodes[node].ask(&["CLUSTER", "MYID"]).trim().to_owned()
    }
}

fn start_node(folder: &Path, bus_port: u16, timeout_ms: u32) -> RedisServer {
    let timeout_ms = timeout_ms.to_string();
    let arguments = ["--cluster-enabled", "yes", "--cluster-node-timeout", &timeout_ms];
    let more = ["--cluster-require-full-coverage", "no", "--cluster-config-file", "nodes.conf"];
    let bus_port = bus_port.to_string();
    RedisServer::on_tcp(folder, &[arguments.as_slice(), &more, &["--cluster-port", &bus_port]].concat())
}

fn is_ok(node: &RedisServer) -> bool {
    node.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
}

/// Pairs of business and user.
fn users(count: usize) -> Vec<(String, String)> {
    (0..count).map(|n| (["b1", "b2"][n % 2].to_owned(), format!("user{n}"))).collect()
}

fn expect_clean(url: &str) {
    let audit = process::run(&["audit"], &[("REDIS_URL", &acl::audit_url(url))]);
    assert_eq!(audit.status.code(), Some(0), "{}", String::from_utf8_lossy(&audit.stdout));
}

async fn expect_nothing_lost(users: &[User], base: &str) {
    for user in users {
        assert_eq!(user.lost(base).await, Vec::<String>::new(), "{} {}", user.business_id, user.user_id);
    }
}

#[tokio::test]
async fn all_operations_work_and_active_lists_merge_all_masters() {
    let cluster = Cluster::start(0);
    let url = cluster.url();
    let (_service, base) = Process::serve(&[], &[("REDIS_URL", &url)]);
    let users = users(24);
    let load = Load::start(&base, &users).await;
    for business_id in ["b1", "b2"] {
        let list = format!("{base}/api/sessions/business/{business_id}/active?limit=100");
        let list: Value = reqwest::get(list).await.expect("a response").json().await.expect("JSON");
        let listed = |user: &&(String, String)| {
            list.as_array().expect("a list").iter().any(|session| session["userId"] == user.1.as_str())
        };
        let of_business = || users.iter().filter(|user| user.0 == business_id);
        assert_eq!(of_business().filter(listed).count(), of_business().count(), "{list}");
    }
    let worked = load.stop().await;
    expect_right(&worked);
    assert!(statuses(&worked).keys().all(|(status, _)| *status < 300), "{:?}", statuses(&worked));
    let mut masters: Vec<_> = users.iter().map(|user| Cluster::master_of(cluster.slot(user))).collect();
    masters.sort_unstable();
    masters.dedup();
    assert_eq!(masters, [0, 1, 2], "the users are not spread over all masters");
    expect_nothing_lost(&worked, &base).await;
    expect_clean(&url);
}

/// The users of the other masters are still served, and the service stays ready.
#[tokio::test]
async fn a_master_with_a_wrong_clock_rejects_creates_and_the_others_accept_them() {
    let cluster = Cluster::start(0);
    // The other nodes and the service connect to the second master through the proxy.
    let proxy = ReplyProxy::start_to_port(cluster.nodes[1].port).await;
    let port = proxy.port.to_string();
    assert_eq!(cluster.nodes[1].ask(&["CONFIG", "SET", "cluster-announce-port", &port]).trim(), "OK");
    wait_for("the announced port", || cluster.nodes.iter().all(|node| node.ask(&["CLUSTER", "SLOTS"]).contains(&port)));
    let url = format!("redis-cluster://{}{}", acl::credentials(), cluster.nodes[0].address());
    let start = move || Process::serve(&[], &[("REDIS_URL", &url)]);
    // The proxy runs on this test's thread, so the blocking start needs another one.
    let (service, base) = tokio::task::spawn_blocking(start).await.expect("no panic");
    let client = reqwest::Client::new();
    let create = async |(business_id, user_id): &(String, String)| {
        let body = serde_json::json!({"businessId": business_id, "userId": user_id});
        let response = client.post(format!("{base}/api/sessions")).json(&body).send().await.expect("a response");
        (response.status().as_u16(), response.json::<Value>().await.expect("JSON"))
    };
    let users = users(24);
    let on_second = |user: &&(String, String)| Cluster::master_of(cluster.slot(user)) == 1;
    with_timeout(async { while create(&users[0]).await.0 == 503 {} }).await;
    for user in &users {
        assert!(create(user).await.0 < 300);
    }
    for redis_ahead in [7200, -7200] {
        proxy.set_clock_ahead(redis_ahead);
        // The preflight checks the clock on every new connection.
        cluster.nodes[1].ask(&["CLIENT", "KILL", "TYPE", "normal"]);
        let unsafe_clock = "sessiond_store_problems{problem=\"clock_skew\"}";
        let scrape = Scrape::until(&service, |scrape| scrape.find(unsafe_clock) == Some(1)).await;
        let skew: f64 = scrape.series["sessiond_store_clock_skew_seconds"].parse().expect("a number");
        assert!((skew + f64::from(redis_ahead)).abs() < 1.0, "{skew}");
        for user in &users {
            let (status, body) = create(user).await;
            let expected = if on_second(&user) { (503, "clock_skew") } else { (200, "") };
            assert_eq!((status, body["code"].as_str().unwrap_or_default()), expected, "{user:?}: {body}");
        }
        assert_eq!(reqwest::get(format!("{base}/readyz")).await.expect("a response").status(), 200);
        proxy.set_clock_ahead(0);
        cluster.nodes[1].ask(&["CLIENT", "KILL", "TYPE", "normal"]);
        Scrape::until(&service, |scrape| scrape.find(unsafe_clock) == Some(0)).await;
    }
    with_timeout(async { while create(&users[0]).await.0 != 200 {} }).await;
    assert!(users.iter().any(|user| on_second(&user)) && !users.iter().all(|user| on_second(&user)));
}

/// How a master fails.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Killed,
    Hangs,
}

#[tokio::test]
async fn a_killed_master_fails_over_while_the_others_serve() {
    fail_a_master(Fault::Killed).await;
}

#[tokio::test]
async fn a_hanging_master_fails_over_while_the_others_serve() {
    fail_a_master(Fault::Hangs).await;
}

/// Makes the second master fail under load, and waits until each of its users is served again.
async fn fail_a_master(fault: Fault) {
    let mut cluster = Cluster::start(1);
    let url = cluster.url();
    let (_service, base) = Process::serve(&[], &[("REDIS_URL", &url)]);
    let master_of = |user: &(String, String)| Cluster::master_of(cluster.slot(user));
    // Only users whose calls all use one master.
    let shares_master = |user: &(String, String)| master_of(user) == master_of(&(user.0.clone(), guest_of(&user.1)));
    let users: Vec<_> = users(60).into_iter().filter(shares_master).take(12).collect();
    let masters: BTreeMap<_, _> = users.iter().map(|user| (user.1.clone(), master_of(user))).collect();
    assert_eq!(masters.values().collect::<BTreeSet<_>>().len(), 3, "users of each master: {masters:?}");
    let load = Load::start(&base, &users).await;
    tokio::time::sleep(POLL * 12).await;
    let failed_at = Instant::now();
    match fault {
        Fault::Killed => cluster.nodes[1].kill(),
        Fault::Hangs => cluster.nodes[1].signal(Signal::STOP),
    }
    // The service stays ready, because it can serve the users of the other masters.
    assert_eq!(reqwest::get(format!("{base}/readyz")).await.expect("a response").status(), 200);
    // Wait until the slots of the failed master are served again for each of its users.
    for user in users.iter().filter(|user| masters[&user.1] == 1) {
        let path = format!("{base}/api/sessions/business/{}/user/{}/active", user.0, user.1);
        while !reqwest::get(&path).await.expect("a response").status().is_success() {
            assert!(failed_at.elapsed() < SERVING_AGAIN_MAX, "not serving again: {}", user.1);
            tokio::time::sleep(POLL).await;
        }
    }
    let again = failed_at.elapsed();
    if matches!(fault, Fault::Hangs) {
        // The old master resumes and becomes a replica.
        cluster.nodes[1].signal(Signal::CONT);
        wait_for("a replica", || cluster.nodes[1].info("role") == "slave");
        let_work(20).await;
    }
    let worked = load.stop().await;
    let (of_failed, others): (Vec<_>, Vec<_>) = worked.into_iter().partition(|user| masters[&user.user_id] == 1);
    println!("{fault:?}: all serving again after {again:?}; its users: {:?}", statuses(&of_failed));
    let share = others.iter().map(User::served_percent).fold(100.0, f64::min);
    println!("others: {:?}; at least {share:.2} % served for each", statuses(&others));
    expect_right(&others);
    expect_nothing_lost(&others, &base).await;
    let mut lost = Vec::new();
    for user in &of_failed {
        lost.extend(user.lost(&base).await);
    }
    println!("lost writes that only the failed master had acknowledged: {lost:?}");
    assert!(share >= 99.0, "a user of the other masters had only {share:.2} % successful calls");
    expect_clean(&url);
}

/// Lets the load run for this many polling intervals, because the test needs load during the current state.
async fn let_work(polls: u32) {
    tokio::time::sleep(POLL * polls).await;
}

#[tokio::test]
async fn resharding_under_load_loses_nothing() {
    const SLOTS: u16 = 300;
    let cluster = Cluster::start(0);
    let url = cluster.url();
    let (_service, base) = Process::serve(&[], &[("REDIS_URL", &url)]);
    // The tool moves the first slots of the master. These users are in them.
    let movers = (0..).map(|n| (format!("business{n}"), "mover".to_owned())).filter(|user| cluster.slot(user) < SLOTS);
    let mut users = users(8);
    users.extend(movers.take(4));
    let load = Load::start(&base, &users).await;
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to, count) = (cluster.id(from), cluster.id(to), SLOTS.to_string());
        let port = cluster.nodes[0].port;
        let address = cluster.nodes[0].address();
        let tool = tokio::task::spawn_blocking(move || {
            let words = ["--cluster", "reshard", &address, "--cluster-from", &from, "--cluster-to", &to];
            cli(port, &[words.as_slice(), &["--cluster-slots", &count, "--cluster-yes"]].concat())
        });
        let output = tool.await.expect("no panic");
        assert!(!output.contains("ERR"), "{output}");
        let_work(4).await;
    }
    let worked = load.stop().await;
    println!("{:?}", statuses(&worked));
    expect_right(&worked);
    expect_nothing_lost(&worked, &base).await;
    expect_clean(&url);
}

#[tokio::test]
async fn a_migrating_slot_under_load_stays_readable_and_consistent() {
    let mut cluster = Cluster::start(0);
    let to = cluster.add();
    let url = cluster.url();
    let (_service, base) = Process::serve(&[], &[("REDIS_URL", &url)]);
    let users = users(24);
    let slot = cluster.slot(&users[0]);
    let from = Cluster::master_of(slot);
    let (from_id, to_id, slot) = (cluster.id(from), cluster.id(to), slot.to_string());
    let load = Load::start(&base, &users).await;
    let (from, to) = (&cluster.nodes[from], &cluster.nodes[to]);
    assert_eq!(to.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).trim(), "OK");
    assert_eq!(from.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).trim(), "OK");
    let to_port = to.port.to_string();
    let mut moved = 0;
    loop {
        let_work(2).await;
        let keys = from.ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "1"]);
        let Some(key) = keys.lines().next().filter(|key| !key.is_empty()) else { break };
        let reply = from.ask(&["MIGRATE", "127.0.0.1", &to_port, "", "0", "5000", "KEYS", key]);
        assert!(["OK", "NOKEY"].contains(&reply.trim()), "{reply}");
        moved += 1;
    }
    let_work(10).await;
    for node in [to, from].into_iter().chain(&cluster.nodes) {
        assert_eq!(node.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).trim(), "OK");
    }
    let_work(10).await;
    let worked = load.stop().await;
    let (of_slot, others): (Vec<_>, Vec<_>) = worked.into_iter().partition(|user| user.user_id == users[0].1);
    println!("{moved} keys moved; {:?}; others: {:?}", statuses(&of_slot), statuses(&others));
    let slowest = of_slot.iter().chain(&others).flat_map(|user| &user.calls).map(|call| call.took).max();
    println!("slowest {slowest:?}");
    let worked: Vec<_> = of_slot.into_iter().chain(others).collect();
    let failed: Vec<_> = statuses(&worked).into_keys().filter(|(status, _)| *status == 503).collect();
    assert!(failed.iter().all(|(_, operation)| !["get", "history"].contains(operation)), "{failed:?}");
    expect_right(&worked);
    expect_nothing_lost(&worked, &base).await;
    expect_clean(&url);
    let sent: BTreeSet<_> = cluster.nodes.iter().flat_map(RedisServer::sent).collect();
    assert!(acl::IN_A_CLUSTER.iter().all(|&command| sent.contains(command)), "{sent:?}");
}

/// A slot that a test moves key by key and with pauses, as `redis-cli --cluster reshard` does without pauses.
struct SlotMove<'a> {
    cluster: &'a Cluster,
    slot: String,
    from: &'a RedisServer,
    to: &'a RedisServer,
    to_id: String,
}

impl<'a> SlotMove<'a> {
    /// Starts to move the slot of the user from its master to the next one.
    fn start(cluster: &'a Cluster, user: &(String, String)) -> Self {
        let slot = cluster.slot(user);
        let from = Cluster::master_of(slot);
        let to = (from + 1) % 3;
        let (from_id, to_id, slot) = (cluster.id(from), cluster.id(to), slot.to_string());
        let (from, to) = (&cluster.nodes[from], &cluster.nodes[to]);
        assert_eq!(to.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).trim(), "OK");
        assert_eq!(from.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).trim(), "OK");
        Self { cluster, slot, from, to, to_id }
    }

    fn keys_on(&self, node: &RedisServer) -> Vec<String> {
        node.ask(&["CLUSTER", "GETKEYSINSLOT", &self.slot, "100"]).lines().map(str::to_owned).collect()
    }

    /// Moves the keys whose names have none of these endings.
    fn move_all_but(&self, endings: &[&str]) {
        for key in self.keys_on(self.from).iter().filter(|key| !key.is_empty()) {
            if !endings.iter().any(|ending| key.ends_with(ending)) {
                let port = self.to.port.to_string();
                let reply = self.from.ask(&["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS", key]);
                assert_eq!(reply.trim(), "OK", "{key}");
            }
        }
    }

    /// Moves the other keys and then the slot.
    fn finish(&self) {
        self.move_all_but(&[]);
        for node in [self.to, self.from].into_iter().chain(&self.cluster.nodes) {
            assert_eq!(node.ask(&["CLUSTER", "SETSLOT", &self.slot, "NODE", &self.to_id]).trim(), "OK");
        }
    }
}

/// A user whose two sessions have keys in a slot that moves.
struct Mover {
    base: String,
    user: (String, String),
    client: reqwest::Client,
}

impl Mover {
    fn new(base: &str) -> Self {
        let user = ("b1".to_owned(), "mover".to_owned());
        Self { base: base.to_owned(), user, client: reqwest::Client::new() }
    }

    async fn call(&self, method: Method, path: &str, key: &str, body: Value) -> (u16, Value) {
        let mut request = self.client.request(method, format!("{}/api/sessions{path}", self.base)).json(&body);
        if !key.is_empty() {
            request = request.header("Idempotency-Key", key);
        }
        let response = with_timeout(request.send()).await.expect("a response");
        (response.status().as_u16(), response.json().await.unwrap_or_default())
    }

    /// Gets or creates the session of the user. Returns its id.
    async fn create(&self, key: &str) -> (u16, String) {
        let body = json!({"businessId": self.user.0, "userId": self.user.1});
        let (status, session) = self.call(Method::POST, "", key, body).await;
        (status, session["sessionId"].as_str().unwrap_or_default().to_owned())
    }

    /// Creates a session with a message.
    async fn create_with_message(&self, key: &str) -> String {
        let (status, id) = self.create(key).await;
        assert_eq!(status, 201);
        let message = json!({"messageId": "m1", "role": "user", "content": "x"});
        let (status, body) = self.call(Method::POST, &format!("/{id}/messages"), "", message).await;
        assert_eq!(status, 201, "{body}");
        id
    }

    async fn set_status(&self, id: &str, patch: Value) -> (u16, Value) {
        self.call(Method::PATCH, &format!("/{id}"), "", patch).await
    }

    /// Creates a session with this idempotency key and ends it, then creates another one. Returns both ids.
    async fn ended_and_active(&self, key: &str) -> [String; 2] {
        let ended = self.create_with_message(key).await;
        assert_eq!(self.set_status(&ended, json!({"status": "ended"})).await.0, 200);
        [ended, self.create_with_message("").await]
    }

    /// The status of a session.
    async fn status(&self, id: &str) -> Value {
        self.call(Method::GET, &format!("/{id}"), "", Value::Null).await.1["status"].clone()
    }

    async fn erase(&self) -> u16 {
        let path = format!("/business/{}/user/{}", self.user.0, self.user.1);
        self.call(Method::DELETE, &path, "", Value::Null).await.0
    }
}

#[tokio::test]
async fn a_resume_while_the_active_session_has_not_moved_is_rejected() {
    let cluster = Cluster::start(0);
    let url = cluster.url();
    let (_service, base) = Process::serve(&[], &[("REDIS_URL", &url)]);
    let mover = Mover::new(&base);
    let [ended, active] = mover.ended_and_active("").await;
    let moving = SlotMove::start(&cluster, &mover.user);
    moving.move_all_but(&[&format!(":s:{active}")]);
    let (status, body) = mover.set_status(&ended, json!({"status": "active"})).await;
    assert!([409, 503].contains(&status), "{status}: {body}");
    moving.finish();
    assert_eq!([mover.status(&ended).await, mover.status(&active).await], ["ended", "active"]);
    assert_eq!(mover.set_status(&ended, json!({"status": "active"})).await.0, 409);
    expect_clean(&url);
}

/// The active session is the only one in the index of its business, and has no messages. So the resume would empty a key
/// and write it again, and write keys that do not exist: the master that the slot is leaving rejects such commands.
#[tokio::test]
async fn a_resume_that_replaces_in_a_moving_slot_changes_all_or_nothing() {
    let cluster = Cluster::start(0);
    let url = cluster.url();
    let (_service, base) = Process::serve(&[], &[("REDIS_URL", &url)]);
    let mover = Mover::new(&base);
    let ended = mover.create_with_message("").await;
    assert_eq!(mover.set_status(&ended, json!({"status": "ended"})).await.0, 200);
    let (_, active) = mover.create("").await;
    let moving = SlotMove::start(&cluster, &mover.user);
    let replace = json!({"status": "active", "ifActive": "replace"});
    for rest in [[""].as_slice(), &[&format!(":s:{active}")], &[]] {
        moving.move_all_but(rest);
        let (status, body) = mover.set_status(&ended, replace.clone()).await;
        assert_eq!(status, 503, "{body}");
        assert_eq!([mover.status(&ended).await, mover.status(&active).await], ["ended", "active"]);
    }
    moving.finish();
    expect_clean(&url);
    assert_eq!(mover.set_status(&ended, replace).await.0, 200);
    assert_eq!([mover.status(&ended).await, mover.status(&active).await], ["active", "ended"]);
    expect_clean(&url);
}

#[tokio::test]
async fn an_erasure_in_a_moving_slot_leaves_nothing_behind() {
    let cluster = Cluster::start(0);
    let url = cluster.url();
    let (_service, base) = Process::serve(&[], &[("REDIS_URL", &url)]);
    // The keys that have not moved yet: of both sessions, or only messages of the older one.
    let rounds = [(["s", "m", "d"].as_slice(), true), (&["s", "m", "d"], false), (&["m", "d"], true)];
    for (round, (kinds, is_of_both)) in rounds.into_iter().enumerate() {
        // Each round moves a slot of its own. If a slot moved back at once, news of the first move could still arrive.
        let mover = Mover { user: ("b1".to_owned(), format!("mover{round}")), ..Mover::new(&base) };
        let [ended, active] = mover.ended_and_active("").await;
        let moving = SlotMove::start(&cluster, &mover.user);
        let ids = if is_of_both { vec![&ended, &active] } else { vec![&ended] };
        let rest: Vec<_> = kinds.iter().flat_map(|kind| ids.iter().map(move |id| format!(":{kind}:{id}"))).collect();
        moving.move_all_but(&rest.iter().map(String::as_str).collect::<Vec<_>>());
        let status = mover.erase().await;
        moving.finish();
        if status == 503 {
            assert_eq!([mover.status(&ended).await, mover.status(&active).await], ["ended", "active"]);
            assert_eq!(mover.erase().await, 200);
        }
        let left: Vec<_> = cluster.nodes.iter().flat_map(|node| moving.keys_on(node)).collect();
        assert!(left.iter().all(String::is_empty), "{status}: {left:?}");
        expect_clean(&url);
    }
}

/// Redis rejects a create in a moving slot, because the key of the new session is missing. Only the session of an
/// idempotency key may exist: here it is no longer readable, but Redis has not removed it.
#[tokio::test]
async fn a_create_while_the_active_session_has_not_moved_is_rejected() {
    let cluster = Cluster::start(0);
    let url = cluster.url();
    let (_service, base) = Process::serve(&[], &[("REDIS_URL", &url)]);
    let mover = Mover::new(&base);
    let [ended, active] = mover.ended_and_active("key-of-the-mover").await;
    let partition = Partition::of_user(&mover.user.0, &mover.user.1);
    let keys = ["s", "m", "d"].map(|kind| format!("sd:{{{partition}}}:{kind}:{ended}"));
    let node = &cluster.nodes[Cluster::master_of(cluster.slot(&mover.user))];
    assert_eq!(node.ask(&["HSET", &keys[0], "endedAt", "1", "expiresAt", "1"]).trim(), "0");
    let moving = SlotMove::start(&cluster, &mover.user);
    for rest in [[""].as_slice(), &[&format!(":s:{active}"), &format!(":m:{ended}")], &[&format!(":s:{active}")]] {
        moving.move_all_but(rest);
        let (status, id) = mover.create("key-of-the-mover").await;
        assert!(status == 503 || (status, &id) == (200, &active), "{status} {id}");
    }
    moving.finish();
    assert_eq!(mover.status(&active).await, "active");
    assert_eq!(mover.create("key-of-the-mover").await, (200, active));
    // Redis removes the key a moment later. After that, a create succeeds.
    assert_eq!(moving.to.ask(&["DEL", &keys[0], &keys[1], &keys[2]]).trim(), "3");
    let history = format!("sd:{{{partition}}}:h:{}:{}", mover.user.0, mover.user.1);
    assert_eq!(moving.to.ask(&["ZREM", &history, &ended]).trim(), "1");
    expect_clean(&url);
}

#[tokio::test]
async fn streams_miss_nothing_while_their_slot_moves() {
    const SLOTS: u16 = 300;
    let cluster = Cluster::start(0);
    let url = cluster.url();
    let start = || Process::serve(&["--rate-limit", "0"], &[("REDIS_URL", &url)]);
    let ((_first, one), (_second, two)) = (start(), start());
    let business = (0..10_000)
        .map(|n| format!("business{n}"))
        .find(|business| cluster.slot(&(business.clone(), "u".to_owned())) < SLOTS);
    let create = reqwest::Client::new().post(format!("{one}/api/sessions"));
    let created = create.json(&json!({"businessId": business, "userId": "u"})).send().await.expect("a response");
    let id = created.json::<Value>().await.expect("JSON")["sessionId"].as_str().expect("an id").to_owned();
    let client = SessionClient::new(&[&one, &two], &id);
    let (is_done, cuts, mut random) = (AtomicBool::new(false), AtomicUsize::new(0), Random::seeded());
    let readers: Vec<_> = (0..4).map(|_| random.fork()).collect();
    let has_moved = AtomicBool::new(false);
    let move_slots = async {
        for (from, to) in [(0, 1), (1, 0)] {
            let (from, to, count) = (cluster.id(from), cluster.id(to), SLOTS.to_string());
            let (port, address) = (cluster.nodes[0].port, cluster.nodes[0].address());
            let tool = tokio::task::spawn_blocking(move || {
                let words = ["--cluster", "reshard", &address, "--cluster-from", &from, "--cluster-to", &to];
                cli(port, &[words.as_slice(), &["--cluster-slots", &count, "--cluster-yes"]].concat())
            });
            let output = tool.await.expect("no panic");
            assert!(!output.contains("ERR"), "{output}");
        }
        has_moved.store(true, Ordering::Relaxed);
    };
    let write = async {
        let mut acknowledged = Vec::new();
        while !has_moved.load(Ordering::Relaxed) {
            acknowledged.extend(client.write_from(&mut random, acknowledged.len() / 2, 1).await);
        }
        is_done.store(true, Ordering::Relaxed);
        acknowledged
    };
    // One stream is never interrupted.
    let mut whole = EventStream::open(&format!("{one}/api/sessions/{id}/events?after=0"), &[]).await;
    let follow = join_all(readers.into_iter().map(|random| client.follow(random, &is_done, &cuts)));
    let (acknowledged, all, ()) = tokio::join!(write, follow, move_slots);
    println!("{} messages, {} cuts", acknowledged.len(), cuts.load(Ordering::Relaxed));
    let mut followed = Followed::default();
    while followed.messages.len() < acknowledged.len() {
        followed.take(&whole.next().await.expect("the stream stays open"));
    }
    for followed in all.iter().chain([&followed]) {
        assert_eq!(followed.resets, [""; 0]);
        client.expect_complete(followed, &mut random, &acknowledged).await;
    }
}
