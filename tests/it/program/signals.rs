//! Which signals stop a service, and that it then finishes what it accepted.

use reqwest::Client;
use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::process::Process;
use crate::support::redis::shared_url;

/// The deadline is long for machines that are busy with other tests.
const FLAGS: [&str; 4] = ["--key-prefix", "sd:drain", "--request-deadline", "20s"];

/// A service, and a connection to it whose request it has accepted and not received completely.
struct Accepted {
    service: Process,
    base: String,
    stream: TcpStream,
    rest: String,
}

impl Accepted {
    async fn start() -> Self {
        let (service, base) = Process::serve(&FLAGS, &[("REDIS_URL", &shared_url())]);
        let mut stream = TcpStream::connect(base.trim_start_matches("http://")).await.expect("a connection");
        let body = json!({"businessId": "b", "userId": "u"}).to_string();
        let head = format!(
            "POST /api/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let (first, rest) = body.split_at(5);
        stream.write_all(format!("{head}{first}").as_bytes()).await.expect("half a body sent");
        let mut probe = reqwest::get(format!("{base}/livez")).await.expect("an answer");
        assert!(probe.chunk().await.expect("a body").is_some());
        Self { service, base, stream, rest: rest.to_owned() }
    }

    /// Sends the signal that stops the service.
    async fn stop(&mut self, signal: Signal) {
        self.service.signal(signal);
        self.service.wait_for_line("stopping");
        let refused = TcpStream::connect(self.base.trim_start_matches("http://")).await;
        assert!(refused.is_err(), "it still accepts after {signal:?}");
    }

    async fn expect_answer(&mut self) {
        self.stream.write_all(self.rest.as_bytes()).await.expect("the rest sent");
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    }
}

#[tokio::test]
async fn what_was_accepted_is_finished_and_a_second_signal_does_not_wait() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let mut accepted = Accepted::start().await;
        accepted.stop(signal).await;
        accepted.expect_answer().await;
        assert_eq!(accepted.service.wait().code(), Some(0), "{signal:?}: {:#?}", accepted.service.lines);

        let mut accepted = Accepted::start().await;
        accepted.stop(signal).await;
        accepted.service.signal(Signal::TERM);
        assert_eq!(accepted.service.wait().code(), Some(1), "{signal:?}: {:#?}", accepted.service.lines);
    }
}

#[tokio::test]
async fn a_hangup_stops_the_service_and_is_never_the_second_signal() {
    // A terminal that closes sends SIGHUP twice, and a session manager SIGTERM with it, in either order.
    let second = [(Signal::HUP, Signal::HUP), (Signal::HUP, Signal::TERM), (Signal::TERM, Signal::HUP)];
    for (first, second) in second.into_iter().chain([(Signal::ALARM, Signal::HUP)]) {
        let mut accepted = Accepted::start().await;
        accepted.stop(first).await;
        accepted.service.signal(second);
        accepted.expect_answer().await;
        let status = accepted.service.wait().code();
        assert_eq!(status, Some(0), "{first:?}, {second:?}: {:#?}", accepted.service.lines);
    }
}

#[tokio::test]
async fn signals_that_ask_for_nothing_are_ignored() {
    let (mut service, base) = Process::serve(&FLAGS, &[("REDIS_URL", &shared_url())]);
    // One connection throughout.
    let client = Client::new();
    for signal in [Signal::PIPE, Signal::XFSZ, Signal::USR2, Signal::USR1] {
        service.signal(signal);
        let answer = client.get(format!("{base}/readyz")).send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 200, "{signal:?}");
    }
    service.wait_for_line("ignored SIGUSR1");
    service.signal(Signal::TERM);
    assert_eq!(service.wait().code(), Some(0), "{:#?}", service.lines);
}

#[tokio::test]
async fn a_hangup_that_was_ignored_at_the_start_stays_ignored() {
    let by_nohup = ["sh", "-c", "trap '' HUP; exec \"$0\" \"$@\""];
    let url = shared_url();
    let (mut service, base) = Process::serve_under(&by_nohup, &FLAGS, &[("REDIS_URL", &url)]);
    service.signal(Signal::HUP);
    service.signal(Signal::USR1);
    service.wait_for_line("ignored SIGUSR1");
    let answer = reqwest::get(format!("{base}/readyz")).await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 200);
    assert!(!service.lines.join("\n").contains("stopping"), "{:#?}", service.lines);
    service.signal(Signal::TERM);
    assert_eq!(service.wait().code(), Some(0), "{:#?}", service.lines);
}
