//! Measures what each operation of the store costs. The baseline is a bare PING on the same kind of connection: read
//! the figures as ratios to it.
//!
//! An embedded Redis on a Unix socket, one connection, one call at a time: the figures are latency without queueing.

#![expect(clippy::expect_used, reason = "a benchmark stops at the first error")]
#![expect(clippy::disallowed_methods, reason = "benchmarks find the Redis server through PATH")]

mod support;

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use fred::interfaces::ClientLike;
use fred::prelude::{Builder, Client, Config};
use fred::types::config::ServerConfig;
use sessiond::bootstrap::system_now;
use sessiond::session::{
    Identifier, IfActive, Include, Lifecycle, NewMessage, NewSession, Role, SessionId, SessionPatch, TenantScope,
};
use sessiond::store::{
    GetOrCreate, MessageRange, PageRequest, RedisAddress, ResponseOwner, SessionStore, StoreConfig, VersionCondition,
};
use tokio::runtime::Runtime;

const PAGE: usize = 10;
const HISTORY_LENGTHS: [usize; 3] = [10, 100, 1000];

/// A store and a plain Redis client, on the same embedded Redis.
struct Bench {
    runtime: Runtime,
    store: SessionStore,
    plain: Client,
    users: Cell<u32>,
    _redis: support::BenchRedis,
}

impl Bench {
    fn new() -> Self {
        let redis = support::BenchRedis::start();
        let runtime = support::runtime();
        let (store, plain) = runtime.block_on(async {
            let settings = StoreConfig {
                redis: RedisAddress::Socket(redis.socket()),
                key_prefix: "bench".to_owned(),
                command_timeout: Duration::from_secs(5),
                lifecycle: Lifecycle {
                    idle_timeout: Duration::from_secs(30 * 60),
                    max_lifetime: Duration::from_secs(24 * 60 * 60),
                    retention: Duration::from_secs(30 * 24 * 60 * 60),
                    activity_resolution: Duration::from_secs(60),
                },
                session_bytes_max: 32 << 20,
                turn_lease: Duration::from_secs(30),
                turn_bytes_max: 1 << 20,
                sessions_per_user_max: 1000,
                messages_kept: 10_000,
                hint_cache_size: 100_000,
                metadata_bytes_max: 16_384,
                response_memory_bytes: 64 << 20,
                response_memory_wait: Duration::from_millis(500),
                require_supported: true,
                clock_skew_max: None,
                check_interval: Duration::from_secs(10),
            };
            let store = SessionStore::connect(settings, Arc::new(system_now));
            let server = ServerConfig::new_unix_socket(redis.socket());
            let plain = Builder::from_config(Config { server, ..Config::default() }).build().expect("a client");
            plain.init().await.expect("a connection");
            (store.expect("a store"), plain)
        });
        Self { runtime, store, plain, users: Cell::new(0), _redis: redis }
    }

    /// A new session of a user that was not used before.
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
            idempotency_key: None,
        }
    }

    async fn create(&self, new: &NewSession) -> SessionId {
        match self.store.get_or_create(new, system_now()).await.expect("a session") {
            GetOrCreate::Created(session) | GetOrCreate::Resumed(session) | GetOrCreate::Replayed(session) => {
                session.session_id
            }
        }
    }
}

fn identifier(text: &str) -> Identifier {
    Identifier::new(text).expect("an identifier")
}

/// A patch that changes nothing, but counts as activity.
fn heartbeat() -> SessionPatch {
    SessionPatch {
        location_id: None,
        session_type: None,
        title: None,
        metadata: None,
        status: None,
        if_active: IfActive::Return,
    }
}

fn message() -> NewMessage {
    let content = "When do you open?";
    NewMessage {
        message_id: None,
        role: Role::User,
        content: content.into(),
        content_json: format!("\"{content}\""),
        metadata_json: "{}".to_owned(),
    }
}

fn operations(criterion: &mut Criterion) {
    let bench = Bench::new();
    let mut group = criterion.benchmark_group("store");
    group.bench_function("ping", |timer| {
        timer.to_async(&bench.runtime).iter(|| async { bench.plain.ping::<()>(None).await.expect("PONG") });
    });
    let known = bench.new_user();
    let id = bench.runtime.block_on(bench.create(&known));
    reads(&bench, &mut group, &known, id);
    writes(&bench, &mut group, id);
    removals(&bench, &mut group);
    group.finish();
}

fn reads(bench: &Bench, group: &mut BenchmarkGroup<WallTime>, known: &NewSession, id: SessionId) {
    let (runtime, store) = (&bench.runtime, &bench.store);
    group.bench_function("get_or_create/resume", |timer| {
        timer.to_async(runtime).iter(|| bench.create(known));
    });
    group.bench_function("get", |timer| {
        timer
            .to_async(runtime)
            .iter(|| async { store.get(id, &TenantScope::Everything, system_now()).await.expect("a result") });
    });
    group.bench_function("get_active", |timer| {
        let user = (&known.business_id, &known.user_id);
        timer
            .to_async(runtime)
            .iter(|| async { store.get_active(user.0, user.1, system_now()).await.expect("a result") });
    });
    for _ in 0..PAGE {
        runtime.block_on(bench.create(&bench.new_user()));
    }
    group.bench_function("list_active/10", |timer| {
        timer
            .to_async(runtime)
            .iter(|| async { store.list_active(&known.business_id, page(), system_now()).await.expect("a page") });
    });
}

/// The first page of a list.
fn page() -> PageRequest {
    PageRequest { limit: PAGE, after: None, include: Include::default(), owner: ResponseOwner::default() }
}

fn writes(bench: &Bench, group: &mut BenchmarkGroup<WallTime>, id: SessionId) {
    let (runtime, store) = (&bench.runtime, &bench.store);
    group.bench_function("get_or_create/create", |timer| {
        timer.to_async(runtime).iter(|| async { bench.create(&bench.new_user()).await });
    });
    let update = async |patch: SessionPatch| {
        let any = VersionCondition::Any;
        store.update(id, &patch, &any, &TenantScope::Everything, system_now()).await.expect("a result")
    };
    group.bench_function("update/heartbeat", |timer| timer.to_async(runtime).iter(|| update(heartbeat())));
    let titles = Cell::new(0);
    group.bench_function("update/title", |timer| {
        timer.to_async(runtime).iter(|| {
            titles.set(titles.get() + 1);
            update(SessionPatch { title: Some(Some(format!("Title {}", titles.get()))), ..heartbeat() })
        });
    });
    group.bench_function("append_messages/1", |timer| {
        let messages = [message()];
        timer.to_async(runtime).iter(|| async {
            store.append_messages(id, &messages, &TenantScope::Everything, system_now()).await.expect("a result")
        });
    });
    group.bench_function("list_messages/50", |timer| {
        timer.to_async(runtime).iter(|| async {
            Box::pin(store.list_messages(
                id,
                MessageRange::Newest,
                50,
                &TenantScope::Everything,
                ResponseOwner::default(),
                system_now(),
            ))
            .await
            .expect("a result")
        });
    });
}

/// Measures operations that remove sessions. Each iteration needs new ones, which are created outside of the measured
/// time.
fn removals(bench: &Bench, group: &mut BenchmarkGroup<WallTime>) {
    let (runtime, store) = (&bench.runtime, &bench.store);
    group.bench_function("delete", |timer| {
        timer.to_async(runtime).iter_custom(|times| async move {
            let mut ids = Vec::new();
            for _ in 0..times {
                ids.push(bench.create(&bench.new_user()).await);
            }
            let started = Instant::now();
            for id in ids {
                let any = VersionCondition::Any;
                store.delete(id, &any, &TenantScope::Everything, system_now()).await.expect("a result");
            }
            started.elapsed()
        });
    });
    group.bench_function("erase_user/1", |timer| {
        timer.to_async(runtime).iter_custom(|times| async move {
            let users: Vec<_> = (0..times).map(|_| bench.new_user()).collect();
            for user in &users {
                bench.create(user).await;
            }
            let started = Instant::now();
            for user in &users {
                store.erase_user(&user.business_id, &user.user_id, system_now()).await.expect("a result");
            }
            started.elapsed()
        });
    });
}

/// Measures one page of histories of different lengths: its cost must not depend on the length.
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
                store.list_history(&user.business_id, &user.user_id, page(), system_now()).await.expect("a page")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, operations, lists);
criterion_main!(benches);
