//! Measures what it costs to record metrics, and to render them for a scrape.

#![expect(clippy::expect_used, reason = "a benchmark stops at the first error")]

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use sessiond::metrics::{self, InFlight, Operation};

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
const MEASURED: [Operation; 4] = [Operation::Get, Operation::GetOrCreate, Operation::AppendMessages, Operation::Update];

fn counting(criterion: &mut Criterion) {
    let handle = metrics::install().expect("no recorder is installed yet");
    let took = Duration::from_micros(300);
    let mut group = criterion.benchmark_group("metrics");
    group.bench_function("request_finished", |timer| {
        timer.iter(|| {
            let in_flight = InFlight::begin();
            metrics::request_finished("GET", ROUTES[1], 200, took);
            drop(in_flight);
        });
    });
    group.bench_function("operation_finished", |timer| {
        timer.iter(|| metrics::operation_finished(Operation::Get, None, took));
    });

    // More series than a service ever has, with 100 recorded values each.
    for _ in 0..100 {
        for (route, method) in ROUTES.iter().flat_map(|route| METHODS.map(|method| (route, method))) {
            for status in STATUSES {
                metrics::request_finished(method, route, status, took);
            }
        }
        for operation in MEASURED {
            metrics::operation_finished(operation, None, took);
        }
    }
    group.bench_function("render", |timer| timer.iter(|| metrics::render(&handle)));
    group.finish();
}

criterion_group!(benches, counting);
criterion_main!(benches);
