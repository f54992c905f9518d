//! A service in its own process whose log the test does not read.

use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Signal;

use super::process::{command_under, signal_child, with_timeout};
use super::redis_server::POLL;
use super::scrape::Scrape;

/// A running service. Killed when dropped.
pub struct Unlogged {
    child: Child,
    pub base: String,
    pub metrics_url: String,
}

impl Unlogged {
    /// Starts a service, run by a wrapper, and waits until it is ready. It listens on an address of its own, because
    /// the test cannot read the address from the log.
    pub async fn serve(
        wrapper: &[&str],
        arguments: &[&str],
        variables: &[(&str, &str)],
        stderr: impl Into<Stdio>,
    ) -> Self {
        let address = own_address();
        let [api, metrics] = [format!("{address}:3000"), format!("{address}:9464")];
        let arguments = [&["--listen", &api, "--metrics-listen", &metrics], arguments].concat();
        let mut command = command_under(wrapper, &arguments, variables);
        let child = command.stdout(Stdio::null()).stderr(stderr).spawn().expect("the program");
        let mut service =
            Self { child, base: format!("http://{api}"), metrics_url: format!("http://{metrics}/metrics") };
        let url = format!("{}/readyz", service.base);
        with_timeout(async {
            while !reqwest::get(&url).await.is_ok_and(|response| response.status().is_success()) {
                let ended = service.child.try_wait().expect("a child");
                assert!(ended.is_none(), "the service ended at startup: {ended:?}");
                tokio::time::sleep(POLL).await;
            }
        })
        .await;
        service
    }

    pub async fn scrape(&self) -> Scrape {
        Scrape::at(&self.metrics_url).await
    }

    pub fn signal(&self, signal: Signal) {
        signal_child(&self.child, signal);
    }

    /// Waits until the service has ended.
    pub async fn wait(&mut self) -> ExitStatus {
        with_timeout(async {
            loop {
                if let Some(status) = self.child.try_wait().expect("a child") {
                    return status;
                }
                tokio::time::sleep(POLL).await;
            }
        })
        .await
    }
}

impl Drop for Unlogged {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A loopback address that no other test of this or another process uses.
fn own_address() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    format!("127.{}.{high}.{low}", 64 + COUNT.fetch_add(1, Ordering::Relaxed) % 64)
}
