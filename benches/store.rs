//! What a verb of the store costs, beside a bare PING on the same kind of connection: the figures are ratios to it.
//! A private Redis on a Unix socket, one connection, one call at a time: what is measured is latency without queueing.

#![expect(clippy::expect_used, reason = "a benchmark that cannot go on ends")]
#![expect(clippy::disallowed_methods, reason = "benchmarks find the server program in the environment")]

use std::cell::Cell;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use fred::interfaces::ClientLike;
use fred::prelude::{Builder, Client, Config};
use fred::types::config::ServerConfig;
use sessiond::server::system_now;
use sessiond::session::{
    Identifier, IfActive, Lifecycle, NewMessage, NewSession, Reach, Role, SessionId, SessionPatch,
};
use sessiond::store::embedded::{EmbeddedRedis, find_server};
use sessiond::store::{GetOrCreate, MessageRange, RedisAddress, SessionStore, StoreConfig, VersionCondition};
use tokio::runtime::Runtime;

const PAGE: usize = 10;
const HISTORY_LENGTHS: [usize; 3] = [10, 100, 1000];

/// A store, a plain connection, and the Redis of both.
struct Bench {
    runtime: Runtime,
    store: SessionStore,
    plain: Client,
    users: Cell<u32>,
    _redis: EmbeddedRedis,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::TempDir::new().expect("a folder");
        let server = find_server(None, &std::env::var("PATH").expect("PATH")).expect("a Redis server");
        let redis = EmbeddedRedis::start(&server, folder.path()).expect("a private Redis");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (store, plain) = runtime.block_on(async {
            let store = SessionStore::connect(StoreConfig {
                redis: RedisAddress::Socket(redis.socket()),
                key_prefix: "bench".to_owned(),
                command_timeout: Duration::from_secs(5),
                lifecycle: Lifecycle {
                    idle_timeout: Duration::from_secs(30 * 60),
                    max_lifetime: Duration::from_secs(24 * 60 * 60),
                    retention: Duration::from_secs(30 * 24 * 60 * 60),
                    activity_resolution: Duration::from_secs(60),
                },
                messages_kept: 10_000,
                hints_max: 100_000,
                metadata_bytes_max: 16_384,
                refuse_unfit: true,
            });
            let server = ServerConfig::new_unix_socket(redis.socket());
            let plain = Builder::from_config(Config { server, ..Config::default() }).build().expect("a client");
            plain.init().await.expect("a connection");
            (store.expect("a store"), plain)
        });
        Self { runtime, store, plain, users: Cell::new(0), _redis: redis, _folder: folder }
    }

    /// What a session of a user nobody has seen before is created with.
    fn new_user(&self) -> NewSession {
        self.users.set(self.users.get() + 1);
        NewSession {
            business_id: identifier("B0100001"),
            user_id: identifier(&format!("user_{}", self.users.get())),
            location_id: identifier("L0100001"),
            session_type: identifier("general"),
            title: None,
            metadata: "{}".to_owned(),
            if_active: IfActive::Return,
        }
    }

    async fn create(&self, new: &NewSession) -> SessionId {
        match self.store.get_or_create(new, system_now()).await.expect("a session") {
            GetOrCreate::Created(session) | GetOrCreate::Resumed(session) => session.session_id,
        }
    }
}

fn identifier(text: &str) -> Identifier {
    Identifier::new(text).expect("an identifier")
}

fn message() -> NewMessage {
    NewMessage { message_id: None, role: Role::User, content: "When do you open?".into(), metadata: "{}".to_owned() }
}

fn verbs(criterion: &mut Criterion) {
    let bench = Bench::new();
    let (runtime, store) = (&bench.runtime, &bench.store);
    let mut group = criterion.benchmark_group("store");
    group.bench_function("ping", |timer| {
        timer.to_async(runtime).iter(|| async { bench.plain.ping::<()>(None).await.expect("PONG") });
    });

    let known = bench.new_user();
    let id = runtime.block_on(bench.create(&known));
    group.bench_function("get_or_create/create", |timer| {
        timer.to_async(runtime).iter(|| async { bench.create(&bench.new_user()).await });
    });
    group.bench_function("get_or_create/resume", |timer| {
        timer.to_async(runtime).iter(|| bench.create(&known));
    });
    group.bench_function("get", |timer| {
        timer
            .to_async(runtime)
            .iter(|| async { store.get(id, &Reach::Everything, system_now()).await.expect("an answer") });
    });
    group.bench_function("get_active", |timer| {
        let user = (&known.business_id, &known.user_id);
        timer
            .to_async(runtime)
            .iter(|| async { store.get_active(user.0, user.1, system_now()).await.expect("an answer") });
    });
    let heartbeat = SessionPatch {
        location_id: None,
        session_type: None,
        title: None,
        metadata: None,
        status: None,
        if_active: IfActive::Return,
    };
    group.bench_function("update/heartbeat", |timer| {
        timer.to_async(runtime).iter(|| async {
            store
                .update(id, &heartbeat, &VersionCondition::Any, &Reach::Everything, system_now())
                .await
                .expect("an answer")
        });
    });
    group.bench_function("append_messages/1", |timer| {
        let messages = [message()];
        timer.to_async(runtime).iter(|| async {
            store.append_messages(id, &messages, &Reach::Everything, system_now()).await.expect("an answer")
        });
    });
    group.bench_function("list_messages/50", |timer| {
        timer.to_async(runtime).iter(|| async {
            Box::pin(store.list_messages(id, MessageRange::Newest, 50, &Reach::Everything, system_now()))
                .await
                .expect("an answer")
        });
    });
    group.finish();
}

/// One page of histories of different lengths: what it costs must not depend on the length.
fn lists(criterion: &mut Criterion) {
    let bench = Bench::new();
    let (runtime, store) = (&bench.runtime, &bench.store);
    let mut group = criterion.benchmark_group("list_history");
    group.bench_function("ping", |timer| {
        timer.to_async(runtime).iter(|| async { bench.plain.ping::<()>(None).await.expect("PONG") });
    });
    for length in HISTORY_LENGTHS {
        let user = NewSession { if_active: IfActive::Replace, ..bench.new_user() };
        runtime.block_on(async {
            for _ in 0..length {
                bench.create(&user).await;
            }
        });
        group.bench_with_input(BenchmarkId::new("page_of_10", length), &user, |timer, user| {
            timer.to_async(runtime).iter(|| async {
                store.list_history(&user.business_id, &user.user_id, PAGE, None, system_now()).await.expect("a page")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, verbs, lists);
criterion_main!(benches);
