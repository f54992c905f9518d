//! What it costs to count, and what a scrape costs.

#![expect(clippy::expect_used, reason = "a benchmark that cannot go on ends")]

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use sessiond::metrics::{self, InFlight, Verb};

const ROUTES: [&str; 14] = [
    "/api/sessions",
    "/api/sessions/{sessionId}",
    "/api/sessions/{sessionId}/messages",
    "/api/sessions/business/{businessId}/active",
    "/api/sessions/business/{businessId}/user/{userId}",
    "/api/sessions/business/{businessId}/user/{userId}/active",
    "/api/sessions/business/{businessId}/user/{userId}/history",
    "/livez",
    "/readyz",
    "/openapi.json",
    "/docs",
    "/docs/{file}",
    "/metrics",
    "unmatched",
];
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PATCH", "DELETE", "other"];
const STATUSES: [u16; 8] = [200, 201, 400, 401, 404, 405, 409, 503];
const VERBS: [Verb; 4] = [Verb::Get, Verb::GetOrCreate, Verb::AppendMessages, Verb::Update];

fn counting(criterion: &mut Criterion) {
    let handle = metrics::install().expect("nothing records yet");
    let took = Duration::from_micros(300);
    let mut group = criterion.benchmark_group("metrics");
    group.bench_function("request_answered", |timer| {
        timer.iter(|| {
            let in_flight = InFlight::begin();
            metrics::request_answered("GET", ROUTES[1], 200, took);
            drop(in_flight);
        });
    });
    group.bench_function("store_answered", |timer| timer.iter(|| metrics::store_answered(Verb::Get, None, took)));

    // More series than a service ever has, each of which was measured a hundred times.
    for _ in 0..100 {
        for (route, method) in ROUTES.iter().flat_map(|route| METHODS.map(|method| (route, method))) {
            for status in STATUSES {
                metrics::request_answered(method, route, status, took);
            }
        }
        for verb in VERBS {
            metrics::store_answered(verb, None, took);
        }
    }
    group.bench_function("render", |timer| timer.iter(|| metrics::render(&handle)));
    group.finish();
}

criterion_group!(benches, counting);
criterion_main!(benches);
