//! Two peers to compare with: bare axum, which has no store, and axum with the `redis` crate, written as its users
//! would write it.
//!
//! `sessiond-peers bare|redis PORT WORKERS [REDIS_URL SCRIPT]`. With 0 workers, the runtime is single-threaded.

mod bare;
mod messages;
mod sessions;
mod with_redis;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::runtime::Builder;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let workers: usize = arguments[2].parse().expect("a number of workers");
    let mut builder = if workers == 0 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    if workers > 0 {
        builder.worker_threads(workers);
    }
    builder.enable_all().build().expect("a runtime").block_on(async {
        let router = match arguments[0].as_str() {
            "bare" => bare::router(),
            "redis" => with_redis::router(&arguments[3], &arguments[4]).await,
            other => panic!("no such peer: {other}"),
        };
        serve(router, &arguments[1]).await;
    });
}

async fn serve(router: Router, port: &str) {
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await.expect("a port");
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("a socket"));
    axum::serve(listener, router).await.expect("the listener accepts connections");
}
