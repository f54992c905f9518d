//! The workload of the monitoring test: every kind of call and of fault, so that each metric has data.

mod turns;

use std::fs;
use std::time::Instant;

use reqwest::{Client, Method};
use rustix::process::Signal;
use serde_json::{Value, json};
use sessiond::auth::{JwtAlgorithm, Scope};
use sessiond::bootstrap::system_now;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::support::credentials::{Signer, api_key, claims, jwt_flags};
use crate::support::events::EventStream;
use crate::support::process::{Process, TEST_TIMEOUT};
use crate::support::prometheus::Prometheus;
use crate::support::redis_server::POLL;
use crate::support::redis_server::{AOF, RedisServer};

/// The rate limit of a user with a token, in requests per second. The burst is five times as large.
const USER_RATE_LIMIT: &str = "1";
/// The limit of concurrent connections.
const CONNECTIONS_MAX: &str = "40";
const USERS: u32 = 10;

/// A service with the default timeouts, and one whose sessions expire soon, on a Redis of this test.
pub struct Workload {
    pub redis: RedisServer,
    pub services: Vec<Service>,
    /// Open until the end.
    streams: Vec<EventStream>,
    _folder: TempDir,
}

/// A running service.
pub struct Service {
    _process: Process,
    base: String,
    /// The address of its metrics, as `host:port`.
    pub metrics: String,
    keys: Keys,
    client: Client,
}

#[derive(Clone)]
struct Keys {
    all: String,
    reader: String,
    /// The token of the user who exceeds the rate limit.
    greedy: String,
}

impl Workload {
    /// Starts the Redis and the services.
    pub fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        let redis = RedisServer::start(AOF);
        let (all, all_entry) = api_key("all", &[], &Scope::ALL, None);
        let (reader, reader_entry) = api_key("reader", &["b0"], &[Scope::Read], None);
        let file = folder.path().join("keys.toml");
        fs::write(&file, format!("{all_entry}\n{reader_entry}")).expect("a file written");
        let signer = Signer::new(JwtAlgorithm::Hs256);
        let secret = folder.path().join("secret");
        fs::write(&secret, signer.key_file()).expect("a file written");
        let greedy = signer.token(&claims("b0", "greedy", system_now()));
        let keys = Keys { all, reader, greedy };
        let file = file.to_str().expect("a path of text");
        let limits = ["--user-rate-limit", USER_RATE_LIMIT, "--max-connections", CONNECTIONS_MAX];
        let jwt = jwt_flags(JwtAlgorithm::Hs256, &secret);
        let jwt = jwt.iter().map(String::as_str);
        let kept = ["--max-sessions-per-user", turns::SESSIONS_KEPT, "--messages-kept", turns::MESSAGES_KEPT];
        let files_and_lease = ["--api-keys-file", file, "--turn-lease", turns::LEASE];
        let common: Vec<_> = files_and_lease.into_iter().chain(limits).chain(kept).chain(jwt).collect();
        let short = ["--idle-timeout", "500ms", "--max-lifetime", "1500ms"];
        let services =
            [&[][..], &short].map(|more| Service::start(&[common.as_slice(), more].concat(), &redis.url(), &keys));
        Self { redis, services: services.into(), streams: Vec::new(), _folder: folder }
    }

    /// Makes every kind of call, then causes every fault of Redis.
    pub async fn run(&mut self, prometheus: &Prometheus) {
        let [usual, short_lived] = self.services.as_slice() else { panic!("two services") };
        for user in 0..USERS {
            usual.call_every_route(user).await;
        }
        usual.call_unscoped_paths().await;
        usual.exceed_permissions_and_rate_limit().await;
        usual.exceed_connection_limit().await;
        short_lived.expire_sessions().await;
        usual.exceed_what_is_kept().await;
        self.streams = usual.write_turns().await;

        let probe = self.redis.probe().await;
        probe.command(&["SCRIPT", "FLUSH"]).await;
        usual.expect(201, Method::POST, "/api/sessions", session("b1", "after-flush")).await;
        self.redis.signal(Signal::STOP);
        usual.call_without_redis(prometheus).await;
        self.redis.signal(Signal::CONT);
        self.redis.kill();
        usual.until(503, "/readyz").await;
        usual.call_without_redis(prometheus).await;
        self.redis.start_again();
        for service in &self.services {
            service.until(200, "/readyz").await;
        }
        for user in 0..USERS {
            self.services[0].call_every_route(user).await;
        }
        // The stream of the business has continued, and has sent a `reset` because it may have missed events.
        self.streams.last_mut().expect("a stream").until("reset").await;
    }
}

fn session(business_id: &str, user_id: &str) -> Value {
    json!({"businessId": business_id, "userId": user_id})
}

impl Service {
    fn start(flags: &[&str], redis_url: &str, keys: &Keys) -> Self {
        let (process, base) = Process::serve(flags, &[("REDIS_URL", redis_url)]);
        let line = process.lines.iter().find(|line| line.contains("metrics on http://")).expect("the metrics' address");
        let (_, address) = line.split_once("metrics on http://").expect("an address");
        let metrics = address.split_once("/metrics").expect("its path").0.to_owned();
        Self { _process: process, base, metrics, keys: keys.clone(), client: Client::new() }
    }

    /// Returns its metrics.
    pub async fn scrape(&self) -> String {
        let response = reqwest::get(format!("http://{}/metrics", self.metrics)).await.expect("a response");
        response.text().await.expect("text")
    }

    async fn call(&self, key: &str, method: Method, path: &str, body: Value) -> (u16, Value) {
        let request = self.client.request(method, format!("{}{path}", self.base)).bearer_auth(key).json(&body);
        let response = request.send().await.expect("a response");
        (response.status().as_u16(), response.json().await.unwrap_or_default())
    }

    async fn expect(&self, status: u16, method: Method, path: &str, body: Value) -> Value {
        let (actual, body) = self.call(&self.keys.all, method.clone(), path, body).await;
        assert_eq!(actual, status, "{method} {path}: {body}");
        body
    }

    /// Repeats a GET until the response has this status.
    async fn until(&self, status: u16, path: &str) -> Value {
        let started = Instant::now();
        loop {
            let (actual, body) = self.call(&self.keys.all, Method::GET, path, Value::Null).await;
            if actual == status {
                return body;
            }
            assert!(started.elapsed() < TEST_TIMEOUT, "{path} never returned {status}, but {actual}: {body}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Makes calls that need Redis, before and after a scrape. The series of a kind of error starts at its first error,
    /// so only later errors are an increase.
    async fn call_without_redis(&self, prometheus: &Prometheus) {
        for _ in 0..2 {
            self.expect(503, Method::GET, "/api/sessions/business/b1/user/u1/active", Value::Null).await;
            self.expect(503, Method::POST, "/api/sessions", session("b1", "nobody")).await;
            prometheus.scraped(1.0).await;
        }
    }

    /// Calls every route for one user, including errors.
    async fn call_every_route(&self, user: u32) {
        let (business_id, user_id) = (format!("b{}", user % 3), format!("u{user}"));
        let of_user = format!("/api/sessions/business/{business_id}/user/{user_id}");
        let created = self.expect(201, Method::POST, "/api/sessions", session(&business_id, &user_id)).await;
        let path = format!("/api/sessions/{}", created["sessionId"].as_str().expect("an id"));
        let messages = format!("{path}/messages");
        self.expect(200, Method::POST, "/api/sessions", session(&business_id, &user_id)).await;
        self.expect(200, Method::GET, &path, Value::Null).await;
        self.expect(201, Method::POST, &messages, json!([{"role": "user", "content": "a"}])).await;
        self.expect(200, Method::GET, &messages, Value::Null).await;
        self.expect(200, Method::GET, &format!("{of_user}/active"), Value::Null).await;
        self.expect(200, Method::PATCH, &path, json!({"title": "t"})).await;
        self.expect(200, Method::PATCH, &path, json!({"status": "ended"})).await;
        self.expect(409, Method::POST, &messages, json!({"role": "user", "content": "late"})).await;
        self.expect(200, Method::PATCH, &path, json!({"status": "active"})).await;
        let mut another = session(&business_id, &user_id);
        another["ifActive"] = "replace".into();
        self.expect(201, Method::POST, "/api/sessions", another).await;
        self.expect(200, Method::GET, &format!("{of_user}/history"), Value::Null).await;
        self.expect(200, Method::GET, &format!("/api/sessions/business/{business_id}/active"), Value::Null).await;
        self.expect(204, Method::DELETE, &path, Value::Null).await;
        self.expect(404, Method::GET, &path, Value::Null).await;
        self.expect(200, Method::DELETE, &of_user, Value::Null).await;
        // The service's hint for the user is stale now.
        self.expect(201, Method::POST, "/api/sessions", session(&business_id, &user_id)).await;
        self.expect(200, Method::DELETE, &of_user, Value::Null).await;
    }

    async fn call_unscoped_paths(&self) {
        for path in ["/livez", "/readyz", "/openapi.json", "/docs"] {
            self.expect(200, Method::GET, path, Value::Null).await;
        }
        self.expect(404, Method::GET, "/nothing/here", Value::Null).await;
        self.expect(400, Method::POST, "/api/sessions", json!({"businessId": 1})).await;
        self.expect(405, Method::PUT, "/api/sessions", Value::Null).await;
    }

    /// Uses an unknown API key, keys without the scope or business, and a user who exceeds the rate limit.
    async fn exceed_permissions_and_rate_limit(&self) {
        let list = "/api/sessions/business/b0/active";
        let responses = [
            self.call("no.key", Method::GET, list, Value::Null).await,
            self.call(&self.keys.reader, Method::POST, "/api/sessions", session("b0", "u")).await,
            self.call(&self.keys.reader, Method::GET, "/api/sessions/business/b1/active", Value::Null).await,
        ];
        assert_eq!(responses.map(|response| response.0), [401, 403, 403]);
        let started = Instant::now();
        let own = "/api/sessions/business/b0/user/greedy/active";
        while self.call(&self.keys.greedy, Method::GET, own, Value::Null).await.0 != 429 {
            assert!(started.elapsed() < TEST_TIMEOUT, "no 429 from the rate limit");
        }
    }

    /// Opens twice as many connections as the limit allows.
    async fn exceed_connection_limit(&self) {
        let address = self.base.strip_prefix("http://").expect("an address");
        let mut connections = Vec::new();
        for _ in 0..2 * CONNECTIONS_MAX.parse::<u32>().expect("a number") {
            connections.push(TcpStream::connect(address).await.expect("a connection"));
        }
        let started = Instant::now();
        while self.scrape().await.contains("sessiond_http_connections_rejected_total{limit=\"total\"} 0\n") {
            assert!(started.elapsed() < TEST_TIMEOUT, "no connection was rejected");
            tokio::time::sleep(POLL).await;
        }
        drop(connections);
        self.until(200, "/livez").await;
    }

    /// Lets two sessions expire: one by the idle timeout, the other, which is kept active, by its maximum lifetime.
    /// After that the hints of both users are stale.
    async fn expire_sessions(&self) {
        for (user_id, busy) in [("idle", false), ("busy", true)] {
            let created = self.expect(201, Method::POST, "/api/sessions", session("b2", user_id)).await;
            let path = format!("/api/sessions/{}", created["sessionId"].as_str().expect("an id"));
            let started = Instant::now();
            while self.expect(200, Method::GET, &path, Value::Null).await["status"] == "active" {
                assert!(started.elapsed() < TEST_TIMEOUT, "the session did not expire");
                if busy {
                    self.call(&self.keys.all, Method::PATCH, &path, json!({})).await;
                }
                tokio::time::sleep(POLL).await;
            }
            self.expect(201, Method::POST, "/api/sessions", session("b2", user_id)).await;
        }
    }
}
