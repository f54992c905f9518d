//! The users of `deploy/redis.conf`, with its very rules. Services connect as `sessiond`, audits as `sessiond-audit`; what a
//! test itself asks of a server, it asks as the default user, who may do everything here.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::process::PATIENCE;

/// Who serves.
pub const SERVICE: &str = "sessiond";
/// Who audits.
pub const AUDIT: &str = "sessiond-audit";
/// What a service sends only in a cluster; `cluster.rs` sees that it does.
pub const IN_A_CLUSTER: [&str; 2] = ["asking", "cluster|slots"];
/// What it sends there only if a slot is still on its way when its new master is first asked for a script.
pub const WHILE_A_SLOT_MOVES: [&str; 1] = ["script|load"];
/// What a service sends only with Sentinel; `sentinel.rs` sees that it does.
pub const WITH_SENTINEL: [&str; 1] = ["role"];
/// What a service sends only if its URL names a database; `topologies.rs` sees that it does.
pub const WITH_A_DATABASE: [&str; 1] = ["select"];

const CONF: &str = include_str!("../../../deploy/redis.conf");
/// Needs percent-encoding in a URL.
pub const PASSWORD: &str = "corr%ct:horse@";
const ENCODED_PASSWORD: &str = "corr%25ct%3Ahorse%40";

/// The rules of a user, as ACL SETUSER takes them, with the tests' password.
pub fn rules(user: &str) -> Vec<String> {
    let line = CONF.lines().find_map(|line| line.strip_prefix("user ")?.strip_prefix(user)?.strip_prefix(' '));
    let words = line.unwrap_or_else(|| panic!("deploy/redis.conf has no user {user}")).split(' ');
    words.map(|word| if word.starts_with("#sha256(") { format!(">{PASSWORD}") } else { word.to_owned() }).collect()
}

/// The commands that a user may send, as the rules spell them.
pub fn allowed(user: &str) -> BTreeSet<String> {
    rules(user).iter().filter_map(|rule| Some(rule.strip_prefix('+')?.to_owned())).collect()
}

/// Arguments by which a server knows the users from its start.
pub fn arguments() -> Vec<String> {
    let of = |user: &str| [vec!["--user".to_owned(), user.to_owned()], rules(user)].concat();
    [of(SERVICE), of(AUDIT)].concat()
}

/// Has the server at `socket` know the users, until it ends.
pub fn set_up(socket: &Path) {
    let mut stream = BufReader::new(UnixStream::connect(socket).expect("a server"));
    stream.get_ref().set_read_timeout(Some(PATIENCE)).expect("a timeout");
    for user in [SERVICE, AUDIT] {
        let command = format!("ACL SETUSER {user} {}\r\n", rules(user).join(" "));
        stream.get_mut().write_all(command.as_bytes()).expect("a server that listens");
        let mut answer = String::new();
        stream.read_line(&mut answer).expect("an answer");
        assert_eq!(answer, "+OK\r\n", "{command}");
    }
}

/// A URL's user and password, for the service.
pub fn credentials() -> String {
    format!("{SERVICE}:{ENCODED_PASSWORD}@")
}

/// The service's URL of the server at `socket`.
pub fn url(socket: &Path) -> String {
    format!("redis+unix://{}localhost{}", credentials(), socket.display())
}

/// The audit's URL of the server of this service's URL.
pub fn audit_url(url: &str) -> String {
    let (before, after) = url.split_once(&format!("//{SERVICE}:")).expect("the URL of a service");
    format!("{before}//{AUDIT}:{after}")
}

/// The names of all commands that a server was ever sent, from its INFO COMMANDSTATS.
pub fn sent(commandstats: &str) -> BTreeSet<String> {
    let names = commandstats.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split(':').next());
    names.map(str::to_owned).collect()
}
