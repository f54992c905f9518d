//! Callers of every kind and faults of every kind, so that each metric has something to tell.

use std::fs;
use std::time::Instant;

use reqwest::{Client, Method};
use rustix::process::Signal;
use serde_json::{Value, json};
use sessiond::auth::{JwtAlgorithm, Scope};
use sessiond::server::system_now;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::support::credentials::{Signer, api_key, claims, jwt_flags};
use crate::support::process::{PATIENCE, Process};
use crate::support::prometheus::Prometheus;
use crate::support::server::{AOF, RedisServer};
use crate::support::servers::POLL;

/// Requests that a user with a token may make a second; five times as many at once.
const USER_RATE_LIMIT: &str = "1";
/// Connections at once.
const CONNECTIONS: &str = "40";
const USERS: u32 = 10;

/// A service as it is shipped, and one that ends sessions soon, on a Redis of their own.
pub struct Stage {
    pub redis: RedisServer,
    pub services: Vec<Service>,
    _folder: TempDir,
}

/// One service.
pub struct Service {
    _process: Process,
    base: String,
    /// `host:port` of its metrics.
    pub metrics: String,
    keys: Keys,
    client: Client,
}

#[derive(Clone)]
struct Keys {
    all: String,
    reader: String,
    /// A user's token.
    greedy: String,
}

impl Stage {
    /// Starts everything.
    pub fn set() -> Self {
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
        let limits = ["--user-rate-limit", USER_RATE_LIMIT, "--max-connections", CONNECTIONS];
        let jwt = jwt_flags(JwtAlgorithm::Hs256, &secret);
        let jwt = jwt.iter().map(String::as_str);
        let common: Vec<_> = ["--api-keys-file", file].into_iter().chain(limits).chain(jwt).collect();
        let short = ["--idle-timeout", "500ms", "--max-lifetime", "1500ms"];
        let services =
            [&[][..], &short].map(|more| Service::start(&[common.as_slice(), more].concat(), &redis.url(), &keys));
        Self { redis, services: services.into(), _folder: folder }
    }

    /// Everything that callers do, then everything that happens to Redis.
    pub async fn play(&mut self, prometheus: &Prometheus) {
        let [usual, brief] = self.services.as_slice() else { panic!("two services") };
        for user in 0..USERS {
            usual.live(user).await;
        }
        usual.look_around().await;
        usual.be_refused().await;
        usual.crowd().await;
        brief.expire().await;

        let look = self.redis.look().await;
        look.command(&["SCRIPT", "FLUSH"]).await;
        usual.expect(201, Method::POST, "/api/sessions", session("b1", "after-flush")).await;
        self.redis.signal(Signal::STOP);
        usual.fail(prometheus).await;
        self.redis.signal(Signal::CONT);
        self.redis.kill();
        usual.until(503, "/readyz").await;
        usual.fail(prometheus).await;
        self.redis.start_again();
        for service in &self.services {
            service.until(200, "/readyz").await;
        }
        for user in 0..USERS {
            self.services[0].live(user).await;
        }
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

    /// What it tells of itself.
    pub async fn scrape(&self) -> String {
        let answer = reqwest::get(format!("http://{}/metrics", self.metrics)).await.expect("an answer");
        answer.text().await.expect("text")
    }

    async fn call(&self, key: &str, method: Method, path: &str, body: Value) -> (u16, Value) {
        let request = self.client.request(method, format!("{}{path}", self.base)).bearer_auth(key).json(&body);
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    async fn expect(&self, status: u16, method: Method, path: &str, body: Value) -> Value {
        let (answered, body) = self.call(&self.keys.all, method.clone(), path, body).await;
        assert_eq!(answered, status, "{method} {path}: {body}");
        body
    }

    /// Asks until the answer has this status.
    async fn until(&self, status: u16, path: &str) -> Value {
        let started = Instant::now();
        loop {
            let (answered, body) = self.call(&self.keys.all, Method::GET, path, Value::Null).await;
            if answered == status {
                return body;
            }
            assert!(started.elapsed() < PATIENCE, "waited in vain for {status} of {path}: {answered} {body}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Calls that need Redis, before and after a scrape: a kind of error is counted from its first time on, and an increase
    /// is what comes after.
    async fn fail(&self, prometheus: &Prometheus) {
        for _ in 0..2 {
            self.expect(503, Method::GET, "/api/sessions/business/b1/user/u1/active", Value::Null).await;
            self.expect(503, Method::POST, "/api/sessions", session("b1", "nobody")).await;
            prometheus.scraped(1.0).await;
        }
    }

    /// A user's life with sessions, every route of it.
    async fn live(&self, user: u32) {
        let (business_id, user_id) = (format!("b{}", user % 3), format!("u{user}"));
        let of_user = format!("/api/sessions/business/{business_id}/user/{user_id}");
        let made = self.expect(201, Method::POST, "/api/sessions", session(&business_id, &user_id)).await;
        let path = format!("/api/sessions/{}", made["sessionId"].as_str().expect("an id"));
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
        // The service's hint of the user leads nowhere now.
        self.expect(201, Method::POST, "/api/sessions", session(&business_id, &user_id)).await;
        self.expect(200, Method::DELETE, &of_user, Value::Null).await;
    }

    async fn look_around(&self) {
        for path in ["/livez", "/readyz", "/openapi.json", "/docs"] {
            self.expect(200, Method::GET, path, Value::Null).await;
        }
        self.expect(404, Method::GET, "/nothing/here", Value::Null).await;
        self.expect(400, Method::POST, "/api/sessions", json!({"businessId": 1})).await;
        self.expect(405, Method::PUT, "/api/sessions", Value::Null).await;
    }

    /// Credentials of several bad kinds, and a user who calls too often.
    async fn be_refused(&self) {
        let list = "/api/sessions/business/b0/active";
        let answers = [
            self.call("no.key", Method::GET, list, Value::Null).await,
            self.call(&self.keys.reader, Method::POST, "/api/sessions", session("b0", "u")).await,
            self.call(&self.keys.reader, Method::GET, "/api/sessions/business/b1/active", Value::Null).await,
        ];
        assert_eq!(answers.map(|answer| answer.0), [401, 403, 403]);
        let started = Instant::now();
        let own = "/api/sessions/business/b0/user/greedy/active";
        while self.call(&self.keys.greedy, Method::GET, own, Value::Null).await.0 != 429 {
            assert!(started.elapsed() < PATIENCE, "never over the rate limit");
        }
    }

    /// More connections than there may be.
    async fn crowd(&self) {
        let address = self.base.strip_prefix("http://").expect("an address");
        let mut crowd = Vec::new();
        for _ in 0..2 * CONNECTIONS.parse::<u32>().expect("a number") {
            crowd.push(TcpStream::connect(address).await.expect("a connection"));
        }
        let started = Instant::now();
        while self.scrape().await.contains("sessiond_http_connections_refused_total{limit=\"total\"} 0\n") {
            assert!(started.elapsed() < PATIENCE, "no connection was refused");
            tokio::time::sleep(POLL).await;
        }
        drop(crowd);
        self.until(200, "/livez").await;
    }

    /// Sessions that end by themselves: one is left alone, the other kept busy until its lifetime is over. A hint of each
    /// leads nowhere when its user comes back.
    async fn expire(&self) {
        for (user_id, busy) in [("idle", false), ("busy", true)] {
            let made = self.expect(201, Method::POST, "/api/sessions", session("b2", user_id)).await;
            let path = format!("/api/sessions/{}", made["sessionId"].as_str().expect("an id"));
            let started = Instant::now();
            while self.expect(200, Method::GET, &path, Value::Null).await["status"] == "active" {
                assert!(started.elapsed() < PATIENCE, "it never expired");
                if busy {
                    self.call(&self.keys.all, Method::PATCH, &path, json!({})).await;
                }
                tokio::time::sleep(POLL).await;
            }
            self.expect(201, Method::POST, "/api/sessions", session("b2", user_id)).await;
        }
    }
}
