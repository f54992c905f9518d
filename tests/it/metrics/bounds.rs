//! The number of series is bounded by the code; clients cannot increase it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::serve;
use crate::support::process::with_timeout;
use crate::support::random::Random;
use crate::support::raw::RawRequest;
use crate::support::scrape::Scrape;

const REQUESTS: usize = 10_000;
const CALLERS: usize = 16;
/// Part of every random text, so that it can be found in the metrics.
const CANARY: &str = "canary";

/// The paths of the requests. Each `*` is replaced by a random text.
const PATHS: [&str; 33] = [
    "/api/sessions",
    "/api/sessions/*",
    "/api/sessions/*/messages",
    "/api/sessions/*/messages?limit=*",
    "/api/sessions/*/messages/*",
    "/api/sessions/*/events",
    "/api/sessions/business/*/events",
    "/api/sessions/*/turns",
    "/api/sessions/*/turns/*",
    "/api/sessions/*/turns/*/chunks",
    "/api/sessions/*/turns/*/end",
    "/api/sessions/*/turns/*/cancel",
    "/api/sessions/business/*/active",
    "/api/sessions/business/*/active?cursor=*&*=*",
    "/api/sessions/business/*/user/*/active",
    "/api/sessions/business/*/user/*/history",
    "/api/sessions/business/*/user/*",
    "/api/sessions/business/*/user/*/export",
    "/api/whoami?*",
    "/livez",
    "/readyz?*",
    "/openapi.json",
    "/docs",
    "/docs/",
    "/docs/*",
    "/",
    "/console",
    "/console/",
    "/console/*",
    "/*",
    "/api/*/*?*=*",
    "/api/sessions/business/%FF*/active",
    "/*/%2e%2e/*//*",
];
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS", "TRACE", "*"];

/// A random text that no other request contains.
fn random_text(random: &mut Random) -> String {
    format!("{CANARY}{:x}", random.below(usize::MAX))
}

fn filled(template: &str, random: &mut Random) -> String {
    let mut filled = String::new();
    for (index, part) in template.split('*').enumerate() {
        if index > 0 {
            filled += &random_text(random);
        }
        filled += part;
    }
    filled
}

/// Every combination of a path, a method and a kind of body.
fn kinds() -> Vec<(&'static str, &'static str, usize)> {
    let paths = PATHS.iter().flat_map(|path| METHODS.iter().map(move |method| (*path, *method)));
    paths.flat_map(|(path, method)| (0..4).map(move |body| (path, method, body))).collect()
}

/// A body of one of four kinds: none, a create, a message, or a patch with an unknown member.
fn body(kind: usize, random: &mut Random) -> Option<Value> {
    let mut text = || Value::from(random_text(random));
    match kind {
        0 => None,
        1 => Some(json!({"businessId": text(), "userId": text(), "locationId": text(), "metadata": {"a": text()}})),
        2 => Some(json!({"messageId": text(), "role": "user", "content": text()})),
        _ => Some(json!({"title": text(), "canary": text()})),
    }
}

async fn send(client: &Client, base: &str, (path, method, body_kind): (&str, &str, usize), random: &mut Random) {
    let method = filled(method, random).to_uppercase();
    let method = Method::from_bytes(method.as_bytes()).expect("a token");
    let mut request = client.request(method, format!("{base}{}", filled(path, random)));
    request = request.header(random_text(random), random_text(random)).header("x-request-id", random_text(random));
    request =
        request.header("user-agent", random_text(random)).header("if-match", format!("\"{}\"", random_text(random)));
    request = request.header("authorization", format!("Bearer {}", random_text(random)));
    if let Some(body) = body(body_kind, random) {
        request = request.json(&body);
    }
    let response = request.send().await.expect("a response");
    assert!(response.status().as_u16() < 500, "{response:?}");
    // An event stream has no end of its own.
    if response.headers().get("content-type").is_none_or(|kind| kind != "text/event-stream") {
        response.bytes().await.expect("a body");
    }
}

/// Sends requests that HTTP clients do not produce and that the server rejects.
async fn send_malformed(base: &str, random: &mut Random) {
    let requests = [
        RawRequest::new(&random_text(random), "no-path"),
        RawRequest::new("GET", "/livez").header(&format!("{} {}", random_text(random), random_text(random)), "x"),
        RawRequest::new("GET", format!("/{}", random_text(random).repeat(7_000))),
        RawRequest::new("GET", "/livez").header("x", random_text(random).repeat(7_000)),
    ];
    for request in requests {
        assert!(request.send(base).await.status.is_client_error(), "{request}");
    }
}

fn names(scrape: &Scrape) -> BTreeSet<String> {
    scrape.series.keys().cloned().collect()
}

#[tokio::test]
async fn ten_thousand_random_requests_add_no_series() {
    let (service, base) = serve("crawl", &[]);
    let mut random = Random::seeded();
    let client = Client::new();
    let kinds = kinds();
    for kind in &kinds {
        send(&client, &base, *kind, &mut random).await;
    }
    send_malformed(&base, &mut random).await;
    let warm = Scrape::until(&service, |scrape| scrape.text.contains("lag_seconds_count")).await;

    let left = Arc::new(AtomicUsize::new(REQUESTS));
    let callers = (0..CALLERS).map(|_| random.fork()).collect::<Vec<_>>().into_iter().map(async |mut random| {
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            send(&client, &base, *random.one_of(&kinds), &mut random).await;
        }
    });
    with_timeout(join_all(callers)).await;
    send_malformed(&base, &mut random).await;
    let scrape = Scrape::of(&service).await;
    let handled = scrape.sum("sessiond_http_requests_total", &[]);
    assert!(usize::try_from(handled).expect("few") > REQUESTS, "{handled}");
    assert_eq!(names(&scrape), names(&warm));
    assert!(!scrape.text.to_lowercase().contains(CANARY), "{}", scrape.text);

    let document: Value =
        reqwest::get(format!("{base}/openapi.json")).await.expect("a response").json().await.expect("JSON");
    let mut routes: Vec<_> = document["paths"].as_object().expect("paths").keys().cloned().collect();
    let pages = ["/", "/console", "/console/", "/console/{file}", "/docs/", "/docs/{file}"];
    routes.extend(pages.into_iter().chain(["unmatched"]).map(str::to_owned));
    routes.sort();
    routes.dedup();
    assert_eq!(scrape.label_values("route"), routes);
    assert_eq!(scrape.label_values("method"), ["DELETE", "GET", "HEAD", "PATCH", "POST", "other"]);
}
