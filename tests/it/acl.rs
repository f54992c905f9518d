//! The Redis users of `deploy/redis.conf` have exactly the permissions that they need. All other tests show that the
//! permissions suffice: services connect as `sessiond`, audits as `sessiond-audit`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::acl;
use crate::support::events::EventStream;
use crate::support::process::{self, Process, TEST_TIMEOUT};
use crate::support::redis_server::{RedisServer, cli, wait_for};

/// Commands that need no permission.
const FREE: [&str; 3] = ["auth", "hello", "quit"];

fn set(names: impl IntoIterator<Item = &'static str>) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

/// The commands that a server has received since `CONFIG RESETSTAT`, except those that need no permission.
fn sent(server: &RedisServer) -> BTreeSet<String> {
    let own = set(FREE.into_iter().chain(["config|resetstat"]));
    server.sent().difference(&own).cloned().collect()
}

/// Panics unless the user `name` may send exactly the commands in `sent` and those that only other topologies use.
fn expect_exact(name: &str, sent: &BTreeSet<String>) {
    let in_a_cluster = acl::IN_A_CLUSTER.into_iter().chain(acl::WHILE_A_SLOT_MOVES);
    let elsewhere = set(in_a_cluster.chain(acl::WITH_SENTINEL).chain(acl::WITH_A_DATABASE));
    let used: BTreeSet<_> = sent.union(&elsewhere).cloned().collect();
    let unused: Vec<_> = acl::allowed(name).difference(&used).cloned().collect();
    assert_eq!(unused, Vec::<String>::new(), "{name} has permissions that it does not use");
    let missing: Vec<_> = used.difference(&acl::allowed(name)).cloned().collect();
    assert_eq!(missing, Vec::<String>::new(), "{name} lacks permissions that it uses");
}

async fn call(base: &str, method: Method, path: &str, body: Value) -> Value {
    let request = reqwest::Client::new().request(method.clone(), format!("{base}{path}")).json(&body);
    let response = request.send().await.expect("a response");
    assert!(response.status().is_success(), "{method} {path}: {response:?}");
    response.json().await.unwrap_or_default()
}

/// Calls every operation of a service. Returns the path of a session that exists afterwards.
async fn call_everything(base: &str) -> String {
    let user = |user_id: &str| json!({"businessId": "b", "userId": user_id});
    let replacing = json!({"businessId": "b", "userId": "u", "ifActive": "replace"});
    let session = call(base, Method::POST, "/api/sessions", user("u")).await;
    let path = format!("/api/sessions/{}", session["sessionId"].as_str().expect("an id"));
    let messages = format!("{path}/messages");
    let many: Value = (0..60).map(|n| json!({"messageId": format!("m{n}"), "role": "user", "content": n})).collect();
    let more: Value = (0..60).map(|n| json!({"messageId": format!("n{n}"), "role": "user", "content": n})).collect();
    let steps = [
        (Method::GET, "/readyz", Value::Null),
        (Method::POST, "/api/sessions", user("u")),
        (Method::PATCH, &path, json!({"title": "t", "metadata": {"a": 1}})),
        (Method::PATCH, &path, json!({"status": "ended"})),
        (Method::PATCH, &path, json!({"status": "active"})),
        (Method::POST, &messages, many.clone()),
        (Method::POST, &messages, many),
        // More messages than the service keeps.
        (Method::POST, &messages, more),
        (Method::GET, &format!("{messages}/n1"), Value::Null),
        (Method::PATCH, &format!("{messages}/n1"), json!({"metadata": {"a": 1}})),
        (Method::DELETE, &format!("{messages}/n1"), Value::Null),
        (Method::GET, &messages, Value::Null),
        (Method::GET, &format!("{messages}?after=60"), Value::Null),
        (Method::GET, &format!("{messages}?before=60"), Value::Null),
        (Method::GET, "/api/sessions/business/b/active", Value::Null),
        (Method::GET, "/api/sessions/business/b/user/u/active", Value::Null),
        (Method::GET, "/api/sessions/business/b/user/u/history", Value::Null),
        (Method::POST, "/api/sessions", replacing),
        (Method::DELETE, &path, Value::Null),
        (Method::DELETE, "/api/sessions/business/b/user/u", Value::Null),
        (Method::POST, "/api/sessions", user("left")),
    ];
    for (method, path, body) in steps {
        call(base, method, path, body).await;
    }
    let quiet = call(base, Method::POST, "/api/sessions", user("quiet")).await;
    let path = format!("/api/sessions/{}", quiet["sessionId"].as_str().expect("an id"));
    call(base, Method::PATCH, &path, json!({"status": "ended"})).await;
    path
}

/// Makes the service subscribe to a session, and end the subscription because the session is deleted.
async fn stream_everything(server: &RedisServer, base: &str) {
    let created = call(base, Method::POST, "/api/sessions", json!({"businessId": "b", "userId": "streamed"})).await;
    let path = format!("/api/sessions/{}", created["sessionId"].as_str().expect("an id"));
    let mut stream = EventStream::open(&format!("{base}{path}/events"), &[]).await;
    stream.until("ready").await;
    call(base, Method::DELETE, &path, Value::Null).await;
    stream.expect("deleted").await;
    assert!(stream.next().await.is_none());
    wait_for("the end of the subscription", || server.sent().contains("sunsubscribe"));
}

/// Makes the service read a session over the pipelined connection, and with fred after that connection was closed. Both
/// send HGETALL.
async fn read_both_ways(server: &RedisServer, base: &str, path: &str) -> BTreeSet<String> {
    let (mut killed, started) = (0, Instant::now());
    while killed == 0 {
        assert!(started.elapsed() < TEST_TIMEOUT, "no pipelined connection");
        call(base, Method::GET, path, Value::Null).await;
        for reader in server.ask(&["CLIENT", "LIST"]).lines().filter(|line| line.contains(" cmd=hgetall ")) {
            let id = reader.split([' ', '=']).nth(1).expect("an id");
            server.ask(&["CLIENT", "KILL", "ID", id]);
            killed += 1;
        }
    }
    call(base, Method::GET, path, Value::Null).await;
    set(["hgetall"])
}

#[tokio::test]
async fn each_user_has_exactly_the_permissions_it_uses() {
    let folder = TempDir::new().expect("a folder");
    let server = RedisServer::on_tcp(folder.path(), &[]);
    server.ask(&["CONFIG", "RESETSTAT"]);
    {
        let (_service, base) = Process::serve(&["--messages-kept", "100"], &[("REDIS_URL", &server.url())]);
        let path = call_everything(&base).await;
        stream_everything(&server, &base).await;
        // Collected before the test itself sends INFO.
        let mut sent = sent(&server);
        sent.extend(read_both_ways(&server, &base, &path).await);
        wait_for("a PING of the service", || server.sent().contains("ping"));
        sent.insert("ping".to_owned());
        expect_exact(acl::SERVICE, &sent);
    }

    // Defects of every kind, so that the repair script sends all of its commands.
    let tag_of = |user: &str| {
        let history = server.ask(&["KEYS", &format!("sd:*:h:b:{user}")]);
        history.split_once(":h:").expect("a remaining session").0.to_owned()
    };
    let (tag, other_tag) = (tag_of("left"), tag_of("quiet"));
    let id = server.ask(&["GET", &format!("{tag}:a:b:left")]).trim().to_owned();
    for command in [
        format!("DEL {tag}:a:b:left"),
        format!("ZREM {tag}:b:b {id}"),
        format!("PERSIST {tag}:s:{id}"),
        format!("ZADD {tag}:h:b:left 1 nonsense"),
        format!("SET {other_tag}:a:b:quiet nonsense PXAT 9999999999999"),
        format!("RPUSH {tag}:m:{id} nonsense"),
        format!("HSET {tag}:d:{id} m 1"),
        format!("ZADD {tag}:b:b 9999999999999 nonsense"),
    ] {
        server.ask(&command.split(' ').collect::<Vec<_>>());
    }
    server.ask(&["CONFIG", "RESETSTAT"]);
    // Slow enough that the audit also sends a PING.
    let audit = process::run(
        &["audit", "--repair", "--max-keys-per-second", "200"],
        &[("REDIS_URL", &acl::audit_url(&server.url()))],
    );
    assert!([Some(0), Some(1)].contains(&audit.status.code()), "{audit:?}");
    expect_exact(acl::AUDIT, &sent(&server));
}

#[test]
fn commands_without_permission_are_rejected() {
    let folder = TempDir::new().expect("a folder");
    let server = RedisServer::on_tcp(folder.path(), &[]);
    server.ask(&["SET", "other", "x"]);
    for (user, commands) in
        [(acl::SERVICE, vec!["SCAN 0", "TYPE sd:x"]), (acl::AUDIT, vec!["UNLINK sd:x", "HSET sd:x a b"])]
    {
        let always = [
            "FLUSHALL",
            "FLUSHDB",
            "KEYS *",
            "CONFIG GET requirepass",
            "CONFIG SET maxmemory 1",
            "ACL LIST",
            "GET other",
            "DEL other",
            "SUBSCRIBE sd:x",
            "PUBLISH sd:x y",
            "SHUTDOWN",
            "REPLICAOF NO ONE",
            "MONITOR",
            "CLIENT LIST",
            "FUNCTION LIST",
            "EVAL return{redis.call('GET','other')} 0",
            "EVAL return{redis.call('KEYS','*')} 0",
            "SCRIPT FLUSH",
            "CLUSTER RESET",
        ];
        for command in commands.into_iter().chain(always) {
            let words: Vec<_> = ["--no-auth-warning", "--user", user, "--pass", acl::PASSWORD]
                .into_iter()
                .chain(command.split(' '))
                .collect();
            let reply = cli(server.port, &words);
            // The second text is that of a script on Redis 7, the third that of Redis 8 and Valkey.
            let rejections = ["NOPERM", "The user executing the script can't", "ACL failure in script:"];
            assert!(rejections.iter().any(|text| reply.contains(text)), "{user}: {command}: {reply}");
        }
    }
    assert_eq!(server.ask(&["GET", "other"]).trim(), "x");
}

/// Uses the whole file, as an operator does.
#[tokio::test]
async fn the_shipped_redis_configuration_starts_a_working_server() {
    let folder = TempDir::new().expect("a folder");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/redis-conf");
    let mut command = Command::new(script);
    command.envs([("SESSIOND_REDIS_PASSWORD", "it's $ecret"), ("SESSIOND_REDIS_ADMIN_PASSWORD", "operator")]);
    let printed = command.output().expect("deploy/redis-conf");
    assert!(printed.status.success(), "{printed:?}");
    let file = folder.path().join("redis.conf");
    std::fs::write(&file, printed.stdout).expect("a file");
    let mut server = RedisServer::configured(folder.path(), &file);

    let url = format!("redis://sessiond:it%27s%20%24ecret@{}", server.address());
    let (_service, base) = Process::serve(&[], &[("REDIS_URL", &url)]);
    let session = call(&base, Method::POST, "/api/sessions", json!({"businessId": "b", "userId": "u"})).await;
    let admin = ["--no-auth-warning", "--user", "admin", "--pass", "operator"];
    let ask = |words: &[&str]| cli(server.port, &[&admin, words].concat());
    let settings = [
        ("appendonly", "yes"),
        ("appendfsync", "everysec"),
        ("maxmemory", "1073741824"),
        ("maxmemory-policy", "noeviction"),
        ("hash-max-listpack-value", "512"),
        ("save", ""),
    ];
    for (name, value) in settings {
        assert_eq!(ask(&["CONFIG", "GET", name]).trim_end(), format!("{name}\n{value}").trim_end());
    }
    assert!(cli(server.port, &["PING"]).contains("NOAUTH"), "Redis accepts commands without a password");
    // Users without a configured password are disabled.
    for user in ["default", "sessiond-audit", "exporter", "replication"] {
        assert!(ask(&["ACL", "GETUSER", user]).lines().any(|line| line.trim() == "off"), "{user}");
    }

    server.kill();
    server.start_again();
    let path = format!("{base}/api/sessions/{}", session["sessionId"].as_str().expect("an id"));
    let started = Instant::now();
    while let status = reqwest::get(&path).await.expect("a response").status()
        && status != StatusCode::OK
    {
        // While the service connects again.
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "the session is lost");
        assert!(started.elapsed() < TEST_TIMEOUT, "{status}");
    }
}
