//! A master with two replicas under three sentinels: the master is killed, or hangs, under load.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::acl;
use crate::support::events::{EventStream, names};
use crate::support::load::{Load, User, expect_right, statuses};
use crate::support::process::{self, Process};
use crate::support::redis_server::{POLL, RedisServer, wait_for};

/// The maximum duration of a failover. The requirement is 8 s; a busy machine may need more.
const WRITING_AGAIN_MAX: Duration = Duration::from_secs(30);

/// How the master fails.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Killed,
    /// It continues when the service writes to the new master.
    Hangs,
    /// It continues as soon as there is a new master, which neither it nor the service may know yet.
    HangsUntilReplaced,
}

struct Failover {
    servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
    _folder: TempDir,
}

impl Failover {
    /// Starts the servers. The first one is the master.
    fn start(min_replicas: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        let waits = ["--min-replicas-to-write", min_replicas, "--min-replicas-max-lag", "2"];
        let prompt = ["--repl-ping-replica-period", "1", "--repl-diskless-sync-delay", "0"];
        let arguments = [waits, prompt].concat();
        let master = RedisServer::on_tcp(folder.path(), &arguments);
        let port = master.port.to_string();
        let mut servers = vec![master];
        for _ in 0..2 {
            let replica = [arguments.as_slice(), &["--replicaof", "127.0.0.1", &port]].concat();
            servers.push(RedisServer::on_tcp(folder.path(), &replica));
        }
        wait_for("replicas", || servers[1..].iter().all(|server| server.info("master_link_status") == "up"));
        wait_for("good replicas", || min_replicas == "0" || servers[0].info("min_slaves_good_slaves") == "2");
        let configuration = format!(
            "sentinel monitor sessions 127.0.0.1 {port} 2\nsentinel down-after-milliseconds sessions 1000\n\
             sentinel failover-timeout sessions 3000\nsentinel parallel-syncs sessions 2\n"
        );
        let sentinels: Vec<_> = (0..3).map(|_| RedisServer::sentinel(folder.path(), &configuration)).collect();
        let knows = |sentinel: &RedisServer| sentinel.info("master0").contains("slaves=2,sentinels=3");
        wait_for("sentinels that know each other", || sentinels.iter().all(knows));
        Self { servers, sentinels, _folder: folder }
    }

    fn url(&self) -> String {
        let others: Vec<_> = self.sentinels[1..].iter().map(|node| format!("&node={}", node.address())).collect();
        let first = self.sentinels[0].address();
        format!("redis-sentinel://{}{first}?sentinelServiceName=sessions{}", acl::credentials(), others.concat())
    }
}

/// Makes the master fail under load, and waits until the service writes again. Returns the users and their lost
/// messages.
async fn fail_over(min_replicas: &str, fault: Fault) -> (Vec<User>, Vec<String>) {
    let mut setup = Failover::start(min_replicas);
    let url = setup.url();
    let (_service, base) = Process::serve(&[], &[("REDIS_URL", &url)]);
    let users: Vec<_> = (0..4).map(|n| ("b".to_owned(), format!("user{n}"))).collect();
    let load = Load::start(&base, &users).await;
    tokio::time::sleep(POLL * 20).await;
    match fault {
        Fault::Killed => setup.servers[0].kill(),
        Fault::Hangs | Fault::HangsUntilReplaced => setup.servers[0].signal(Signal::STOP),
    }
    let failed_at = Instant::now();
    // A stopped master may still have replied shortly after the signal, so this waits for the new one first.
    let old = setup.servers[0].port.to_string();
    wait_for_async("a new master", || {
        let address = setup.sentinels[0].ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "sessions"]);
        address.lines().nth(1).is_some_and(|port| port != old)
    })
    .await;
    let elected = failed_at.elapsed();
    if matches!(fault, Fault::HangsUntilReplaced) {
        setup.servers[0].signal(Signal::CONT);
    }
    let client = reqwest::Client::new();
    let probe = serde_json::json!({"businessId": "b", "userId": "probe", "ifActive": "replace"});
    loop {
        let request = client.post(format!("{base}/api/sessions")).json(&probe);
        if request.send().await.expect("a response").status().as_u16() == 201 {
            break;
        }
        assert!(failed_at.elapsed() < WRITING_AGAIN_MAX, "the service does not write again");
        tokio::time::sleep(POLL).await;
    }
    let again = failed_at.elapsed();
    if matches!(fault, Fault::Hangs) {
        setup.servers[0].signal(Signal::CONT);
    }
    if !matches!(fault, Fault::Killed) {
        wait_for_async("a replica", || setup.servers[0].info("role") == "slave").await;
    }
    tokio::time::sleep(POLL * 20).await;
    let users = load.stop().await;
    let mut lost = Vec::new();
    for user in &users {
        lost.extend(user.lost(&base).await);
    }
    let acknowledged: usize = users.iter().map(User::acknowledged).sum();
    println!("{fault:?}, min-replicas {min_replicas}: new master after {elected:?}, writing after {again:?}");
    println!("{} of {acknowledged} acknowledged messages lost; {:?}", lost.len(), statuses(&users));
    let audit = process::run(&["audit"], &[("REDIS_URL", &acl::audit_url(&url))]);
    assert_eq!(audit.status.code(), Some(0), "{}", String::from_utf8_lossy(&audit.stdout));
    let sent: BTreeSet<_> = setup.servers[1..].iter().flat_map(RedisServer::sent).collect();
    assert!(acl::WITH_SENTINEL.iter().all(|&command| sent.contains(command)), "{sent:?}");
    (users, lost)
}

async fn wait_for_async(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < process::TEST_TIMEOUT, "timed out waiting for {what}");
        tokio::time::sleep(POLL).await;
    }
}

#[tokio::test]
async fn killing_the_master_loses_no_acknowledged_write_if_a_replica_is_required() {
    let (users, lost) = fail_over("1", Fault::Killed).await;
    expect_right(&users);
    assert_eq!(lost, Vec::<String>::new());
}

#[tokio::test]
async fn a_hanging_master_loses_no_acknowledged_write_if_a_replica_is_required() {
    let (users, lost) = fail_over("1", Fault::Hangs).await;
    expect_right(&users);
    assert_eq!(lost, Vec::<String>::new());
}

/// A Redis that continues accepts writes for up to a second, because it has not checked its replicas yet. They are lost
/// when it becomes a replica, so the service must not acknowledge them.
#[tokio::test]
async fn a_master_that_continues_after_its_replacement_acknowledges_no_write() {
    let (users, lost) = fail_over("1", Fault::HangsUntilReplaced).await;
    expect_right(&users);
    assert_eq!(lost, Vec::<String>::new());
}

/// Writes that only the old master acknowledged may be lost here. The test counts them; the remaining data must be
/// consistent.
#[tokio::test]
async fn fails_over_without_a_required_replica() {
    fail_over("0", Fault::Killed).await;
}

/// The new master lacks what the old one acknowledged and streams have sent.
#[tokio::test]
async fn a_failover_that_loses_sent_events_resets_streams() {
    let mut setup = Failover::start("0");
    let url = setup.url();
    let (_service, base) = Process::serve(&[], &[("REDIS_URL", &url)]);
    let client = reqwest::Client::new();
    let post = async |path: &str, body: Value| {
        let response = client.post(format!("{base}{path}")).json(&body).send().await.expect("a response");
        assert_eq!(response.status().as_u16(), 201);
        response.json::<Value>().await.expect("JSON")
    };
    let created = post("/api/sessions", json!({"businessId": "b", "userId": "u"})).await;
    let session = format!("/api/sessions/{}", created["sessionId"].as_str().expect("an id"));
    let append =
        async |text: &str| post(&format!("{session}/messages"), json!({"role": "user", "content": text})).await;
    append("kept").await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = EventStream::open(&format!("{base}{session}/events?after=0"), &[]).await;
        assert_eq!(names(&stream.until("ready").await), ["session", "message", "ready"]);
        streams.push(stream);
    }
    let offset = |server: &RedisServer| server.info("master_repl_offset");
    let (master, replicas) = setup.servers.split_first().expect("a master");
    wait_for_async("replicas with everything", || replicas.iter().all(|replica| offset(replica) == offset(master)))
        .await;
    for replica in replicas {
        // The master does not know this user, so replication cannot continue.
        for words in [["masteruser", "nobody"], ["masterauth", "x"]] {
            assert_eq!(replica.ask(&["CONFIG", "SET", words[0], words[1]]).trim(), "OK");
        }
        replica.ask(&["CLIENT", "KILL", "TYPE", "master"]);
    }
    wait_for_async("cut links", || replicas.iter().all(|replica| replica.info("master_link_status") == "down")).await;
    append("lost").await;
    for stream in &mut streams {
        assert_eq!(stream.expect("message").await.member("content"), "lost");
    }
    setup.servers[0].kill();
    for stream in &mut streams {
        assert_eq!(stream.expect("reset").await.member("reason"), "diverged");
        assert_eq!(names(&stream.until("ready").await), ["session", "ready"]);
    }
    let listed =
        reqwest::get(format!("{base}{session}/messages")).await.expect("a response").text().await.expect("a body");
    assert!(listed.contains("kept") && !listed.contains("lost"), "{listed}");
}
