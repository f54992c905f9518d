//! A service whose log is not read by the test.

use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Signal;

use super::process::{command_under, patiently, signal_child};
use super::scrape::Scrape;
use super::servers::POLL;

/// A running service. Killed when dropped.
pub struct Unlogged {
    child: Child,
    pub base: String,
    pub metrics_url: String,
}

impl Unlogged {
    /// Starts a service, run by a wrapper, and returns it once it answers. It listens on an address of its own, because there
    /// is no log to learn the address from.
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
        patiently(async {
            while !reqwest::get(&url).await.is_ok_and(|answer| answer.status().is_success()) {
                let ended = service.child.try_wait().expect("a child");
                assert!(ended.is_none(), "it ended as it started: {ended:?}");
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

    /// Waits until it ended.
    pub async fn wait(&mut self) -> ExitStatus {
        patiently(async {
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
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A loopback address that no other test uses, in this process or another.
fn own_address() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    format!("127.{}.{high}.{low}", 64 + COUNT.fetch_add(1, Ordering::Relaxed) % 64)
}
