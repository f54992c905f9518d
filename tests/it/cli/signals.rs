//! Signals that stop a service. A stopping service completes the requests that it has accepted.

use reqwest::Client;
use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::process::Process;
use crate::support::redis::shared_url;

/// The deadline is long because the machine may be busy with other tests.
const FLAGS: [&str; 4] = ["--key-prefix", "sd:drain", "--request-deadline", "20s"];

/// A service with a connection on which it has received a part of a request.
struct PartialRequest {
    service: Process,
    base: String,
    stream: TcpStream,
    rest: String,
}

impl PartialRequest {
    async fn start() -> Self {
        let (service, base) = Process::serve(&FLAGS, &[("REDIS_URL", &shared_url())]);
        let mut stream = TcpStream::connect(base.trim_start_matches("http://")).await.expect("a connection");
        let body = json!({"businessId": "b", "userId": "u"}).to_string();
        let head = format!(
            "POST /api/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let (first, rest) = body.split_at(5);
        stream.write_all(format!("{head}{first}").as_bytes()).await.expect("a partial body sent");
        let mut response = reqwest::get(format!("{base}/livez")).await.expect("a response");
        assert!(response.chunk().await.expect("a body").is_some());
        Self { service, base, stream, rest: rest.to_owned() }
    }

    /// Sends a signal and waits until the service stops accepting connections.
    async fn stop(&mut self, signal: Signal) {
        self.service.signal(signal);
        self.service.wait_for_line("stopping");
        let refused = TcpStream::connect(self.base.trim_start_matches("http://")).await;
        assert!(refused.is_err(), "the service still accepts connections after {signal:?}");
    }

    /// Sends the rest of the request. Panics unless it succeeds.
    async fn complete(&mut self) {
        self.stream.write_all(self.rest.as_bytes()).await.expect("the rest sent");
        let mut response = String::new();
        self.stream.read_to_string(&mut response).await.expect("a response");
        assert!(response.starts_with("HTTP/1.1 20"), "{response}");
    }
}

#[tokio::test]
async fn accepted_requests_complete_unless_a_second_signal_arrives() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let mut request = PartialRequest::start().await;
        request.stop(signal).await;
        request.complete().await;
        assert_eq!(request.service.wait().code(), Some(0), "{signal:?}: {:#?}", request.service.lines);

        let mut request = PartialRequest::start().await;
        request.stop(signal).await;
        request.service.signal(Signal::TERM);
        assert_eq!(request.service.wait().code(), Some(1), "{signal:?}: {:#?}", request.service.lines);
    }
}

#[tokio::test]
async fn sighup_stops_the_service_and_never_counts_as_a_second_signal() {
    // A closing terminal sends SIGHUP twice. A session manager sends SIGTERM as well, before or after SIGHUP.
    let second = [(Signal::HUP, Signal::HUP), (Signal::HUP, Signal::TERM), (Signal::TERM, Signal::HUP)];
    for (first, second) in second.into_iter().chain([(Signal::ALARM, Signal::HUP)]) {
        let mut request = PartialRequest::start().await;
        request.stop(first).await;
        request.service.signal(second);
        request.complete().await;
        let status = request.service.wait().code();
        assert_eq!(status, Some(0), "{first:?}, {second:?}: {:#?}", request.service.lines);
    }
}

#[tokio::test]
async fn unrelated_signals_are_ignored() {
    let (mut service, base) = Process::serve(&FLAGS, &[("REDIS_URL", &shared_url())]);
    // All requests use one connection.
    let client = Client::new();
    for signal in [Signal::PIPE, Signal::XFSZ, Signal::USR2, Signal::USR1] {
        service.signal(signal);
        let response = client.get(format!("{base}/readyz")).send().await.expect("a response");
        assert_eq!(response.status().as_u16(), 200, "{signal:?}");
    }
    service.wait_for_line("ignored SIGUSR1");
    service.signal(Signal::TERM);
    assert_eq!(service.wait().code(), Some(0), "{:#?}", service.lines);
}

#[tokio::test]
async fn a_sighup_ignored_at_start_stays_ignored() {
    let nohup = ["sh", "-c", "trap '' HUP; exec \"$0\" \"$@\""];
    let url = shared_url();
    let (mut service, base) = Process::serve_under(&nohup, &FLAGS, &[("REDIS_URL", &url)]);
    service.signal(Signal::HUP);
    service.signal(Signal::USR1);
    service.wait_for_line("ignored SIGUSR1");
    let response = reqwest::get(format!("{base}/readyz")).await.expect("a response");
    assert_eq!(response.status().as_u16(), 200);
    assert!(!service.lines.join("\n").contains("stopping"), "{:#?}", service.lines);
    service.signal(Signal::TERM);
    assert_eq!(service.wait().code(), Some(0), "{:#?}", service.lines);
}
