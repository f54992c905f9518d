//! The Redis users of `deploy/redis.conf`, with the rules of that file. Services connect as `sessiond`, audits as
//! `sessiond-audit`. Commands that a test itself sends run as the default user, which has every permission here.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::process::TEST_TIMEOUT;

/// The user of services.
pub const SERVICE: &str = "sessiond";
/// The user of audits.
pub const AUDIT: &str = "sessiond-audit";
/// Commands that a service sends only to a cluster. `cluster.rs` checks that it sends them.
pub const IN_A_CLUSTER: [&str; 2] = ["asking", "cluster|slots"];
/// A command that a service sends to a cluster only if a slot is still migrating when its new master first runs a
/// script.
pub const WHILE_A_SLOT_MOVES: [&str; 1] = ["script|load"];
/// A command that a service sends only with Sentinel. `sentinel.rs` checks that it sends it.
pub const WITH_SENTINEL: [&str; 1] = ["role"];
/// A command that a service sends only if its URL names a database. `topologies.rs` checks that it sends it.
pub const WITH_A_DATABASE: [&str; 1] = ["select"];

const CONF: &str = include_str!("../../../deploy/redis.conf");
/// The password of both users. It needs percent-encoding in a URL.
pub const PASSWORD: &str = "corr%ct:horse@";
const ENCODED_PASSWORD: &str = "corr%25ct%3Ahorse%40";

/// The rules of `user` as arguments of ACL SETUSER, with the tests' password.
pub fn rules(user: &str) -> Vec<String> {
    let line = CONF.lines().find_map(|line| line.strip_prefix("user ")?.strip_prefix(user)?.strip_prefix(' '));
    let words = line.unwrap_or_else(|| panic!("deploy/redis.conf has no user {user}")).split(' ');
    words.map(|word| if word.starts_with("#sha256(") { format!(">{PASSWORD}") } else { word.to_owned() }).collect()
}

/// The commands that `user` may send, spelled as in its rules.
pub fn allowed(user: &str) -> BTreeSet<String> {
    rules(user).iter().filter_map(|rule| Some(rule.strip_prefix('+')?.to_owned())).collect()
}

/// Command-line arguments that make a server define the users at startup.
pub fn arguments() -> Vec<String> {
    let of = |user: &str| [vec!["--user".to_owned(), user.to_owned()], rules(user)].concat();
    [of(SERVICE), of(AUDIT)].concat()
}

/// Defines the users on the running server at `socket`.
pub fn set_up(socket: &Path) {
    let mut stream = BufReader::new(UnixStream::connect(socket).expect("a server"));
    stream.get_ref().set_read_timeout(Some(TEST_TIMEOUT)).expect("a timeout");
    for user in [SERVICE, AUDIT] {
        let command = format!("ACL SETUSER {user} {}\r\n", rules(user).join(" "));
        stream.get_mut().write_all(command.as_bytes()).expect("a server that listens");
        let mut reply = String::new();
        stream.read_line(&mut reply).expect("a reply");
        assert_eq!(reply, "+OK\r\n", "{command}");
    }
}

/// The service's user and password, for a URL.
pub fn credentials() -> String {
    format!("{SERVICE}:{ENCODED_PASSWORD}@")
}

/// The URL with which a service connects to the server at `socket`.
pub fn url(socket: &Path) -> String {
    format!("redis+unix://{}localhost{}", credentials(), socket.display())
}

/// Converts the URL of a service to the URL with which an audit connects to the same server.
pub fn audit_url(url: &str) -> String {
    let (before, after) = url.split_once(&format!("//{SERVICE}:")).expect("the URL of a service");
    format!("{before}//{AUDIT}:{after}")
}

/// The names of the commands that a server has received, from its reply to INFO COMMANDSTATS.
pub fn sent(commandstats: &str) -> BTreeSet<String> {
    let names = commandstats.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split(':').next());
    names.map(str::to_owned).collect()
}
