//! `sessiond healthcheck`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use sessiond::tls;

use super::{fail, print_line};

const TIMEOUT: Duration = Duration::from_secs(3);

/// Asks the service at `address` whether it is ready.
pub(crate) fn run(address: SocketAddr, is_tls: bool) -> ExitCode {
    let ask = || -> std::io::Result<String> {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        if is_tls { ask_ready(tls::connect_unverified(address, stream)?, address) } else { ask_ready(stream, address) }
    };
    match ask() {
        Ok(response) if response.starts_with("HTTP/1.1 200 ") => print_line("ready"),
        Ok(response) => fail(&format!("not ready: {}", response.lines().last().unwrap_or_default()), 1),
        Err(error) => fail(&format!("no response from {address}: {error}"), 1),
    }
}

fn ask_ready(mut stream: impl Read + Write, address: SocketAddr) -> std::io::Result<String> {
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    Ok(response)
}
