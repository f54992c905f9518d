//! A proxy between a service and its Redis that simulates network faults. It forwards one Unix socket to another.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

const CHUNK_BYTES: usize = 16 * 1024;

/// What the proxy does with requests and replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Forwards everything.
    Pass,
    /// Closes the connection instead of forwarding a request.
    CutBefore,
    /// Forwards a request, waits for its reply, drops the reply and closes the connection.
    CutAfter,
    /// Reads requests and never forwards them. A connection that lost a request stays in this state, because a stream
    /// has no gaps.
    BlackHole,
    /// Delays every chunk in both directions.
    Delay(Duration),
    /// Forwards one byte at a time.
    ByteByByte,
    /// Limits both directions to this many bytes per second.
    Throttle(u32),
}

#[derive(Debug)]
struct Plan {
    fault: Fault,
    /// If set, the fault applies once, to the first request that contains this.
    marker: Option<Vec<u8>>,
    /// How many requests had a fault.
    fault_count: u32,
}

/// A running proxy. It ends with the test's runtime.
pub struct Proxy {
    folder: TempDir,
    plan: Arc<Mutex<Plan>>,
    target: watch::Sender<PathBuf>,
}

impl Proxy {
    /// A proxy in front of the server at `target`. Call it within a runtime.
    pub fn start(target: &Path) -> Self {
        let folder = TempDir::new().expect("a folder");
        let listener = UnixListener::bind(folder.path().join("proxy.sock")).expect("a socket");
        let plan = Arc::new(Mutex::new(Plan { fault: Fault::Pass, marker: None, fault_count: 0 }));
        let (target, targets) = watch::channel(target.to_owned());
        tokio::spawn({
            let plan = plan.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(connection(client, targets.clone(), plan.clone()));
                }
            }
        });
        Self { folder, plan, target }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("proxy.sock")
    }

    /// Applies `fault` to all requests from now on.
    pub fn set(&self, fault: Fault) {
        self.replace(fault, None);
    }

    /// Applies `fault` once, to the first request that contains `marker`.
    pub fn once(&self, fault: Fault, marker: &str) {
        self.replace(fault, Some(marker.as_bytes().to_vec()));
    }

    fn replace(&self, fault: Fault, marker: Option<Vec<u8>>) {
        let mut plan = self.plan.lock().expect("no panic");
        (plan.fault, plan.marker) = (fault, marker);
    }

    /// How many requests had a fault.
    pub fn fault_count(&self) -> u32 {
        self.plan.lock().expect("no panic").fault_count
    }

    /// Forwards new connections to another server, and closes the existing ones.
    pub fn set_target(&self, target: &Path) {
        self.target.send_replace(target.to_owned());
    }
}

impl Plan {
    fn for_request(&mut self, request: &[u8]) -> Fault {
        let fault = self.fault;
        if let Some(marker) = &self.marker {
            if !request.windows(marker.len()).any(|window| window == marker) {
                return Fault::Pass;
            }
            (self.fault, self.marker) = (Fault::Pass, None);
        }
        self.fault_count += u32::from(fault != Fault::Pass);
        fault
    }

    /// The fault of a reply. `deliver` applies only delays and fragmentation: cuts and black holes apply to requests.
    fn for_reply(&self) -> Fault {
        if self.marker.is_some() { Fault::Pass } else { self.fault }
    }
}

/// Forwards one connection to its end. Returning closes both sides.
async fn connection(mut client: UnixStream, mut targets: watch::Receiver<PathBuf>, plan: Arc<Mutex<Plan>>) {
    let target = targets.borrow_and_update().clone();
    let Ok(mut server) = UnixStream::connect(target).await else {
        return;
    };
    let (mut request, mut reply) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut lost = false;
    loop {
        tokio::select! {
            read = client.read(&mut request) => {
                let Ok(length @ 1..) = read else { return };
                let bytes = &request[..length];
                let fault = plan.lock().expect("no panic").for_request(bytes);
                lost |= fault == Fault::BlackHole;
                if lost {
                    continue;
                }
                if fault == Fault::CutBefore || deliver(&mut server, bytes, fault).await.is_err() {
                    return;
                }
                if fault == Fault::CutAfter {
                    // The reply shows that Redis has applied the request.
                    let _ = server.read(&mut reply).await;
                    return;
                }
            }
            read = server.read(&mut reply), if !lost => {
                let Ok(length @ 1..) = read else { return };
                let fault = plan.lock().expect("no panic").for_reply();
                if deliver(&mut client, &reply[..length], fault).await.is_err() {
                    return;
                }
            }
            _ = targets.changed() => return,
        }
    }
}

async fn deliver(to: &mut UnixStream, bytes: &[u8], fault: Fault) -> std::io::Result<()> {
    // These sleeps are the faults themselves.
    match fault {
        Fault::Delay(delay) => tokio::time::sleep(delay).await,
        Fault::Throttle(bytes_per_second) => {
            let length = u32::try_from(bytes.len()).expect("a chunk");
            tokio::time::sleep(Duration::from_secs(1) * length / bytes_per_second).await;
        }
        Fault::ByteByByte => {
            for byte in bytes {
                to.write_all(std::slice::from_ref(byte)).await?;
                // Let the other side read the byte.
                tokio::task::yield_now().await;
            }
            return Ok(());
        }
        _ => {}
    }
    to.write_all(bytes).await
}
