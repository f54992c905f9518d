//! Two peers: bare axum, which answers without any store, and axum with the `redis` crate, written as its users write it.
//!
//! `sessiond-peers bare|redis PORT WORKERS [REDIS_URL SCRIPT]`; no workers: a current-thread runtime.

mod bare;
mod sessions;
mod with_redis;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::runtime::Builder;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let workers: usize = words[2].parse().expect("a number of workers");
    let mut builder = if workers == 0 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    if workers > 0 {
        builder.worker_threads(workers);
    }
    builder.enable_all().build().expect("a runtime").block_on(async {
        let router = match words[0].as_str() {
            "bare" => bare::router(),
            "redis" => with_redis::router(&words[3], &words[4]).await,
            other => panic!("no such peer: {other}"),
        };
        serve(router, &words[1]).await;
    });
}

async fn serve(router: Router, port: &str) {
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await.expect("a port");
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("a socket"));
    axum::serve(listener, router).await.expect("a listener that works");
}
