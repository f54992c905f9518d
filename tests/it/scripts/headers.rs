//! What the headers of `lua/` and the conventions of `lua/README.md` promise.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::{
    READS, Run, SCRIPTS, Script, WRITES, append_messages_runs, delete_runs, erase_user_runs, fields_of,
    get_or_create_runs, project, ready_runs, script, session_key, update_runs,
};
use crate::support::acl;
use crate::support::monitor::Monitor;
use crate::support::server::{IN_MEMORY, RedisServer};
use crate::support::service::Service;

/// Where a script says that it has read all that it will read.
const ONLY_WRITES: &str = "-- From here on only writes.";

/// The comment that a script begins with.
#[derive(Debug, Default)]
pub(super) struct Header {
    keys: Vec<String>,
    pub(super) args: Vec<String>,
    /// The names of a group of arguments that may come any number of times.
    group: Vec<String>,
    /// What a reply, or an item of it, may start with.
    tags: BTreeSet<String>,
}

impl Header {
    pub(super) fn of(script: &Script) -> Self {
        let (mut header, mut section) = (Self::default(), "");
        for line in script.source.lines().skip(1).map_while(|line| line.strip_prefix("--")) {
            let mut text = line.trim_start();
            for name in ["KEYS", "ARGV", "Returns", "O("] {
                if let Some(rest) = line.strip_prefix(' ').and_then(|line| line.strip_prefix(name)) {
                    (section, text) = (name, rest.trim_start());
                }
            }
            match section {
                "KEYS" => header.keys.extend(numbered(text, header.keys.len())),
                "ARGV" => match text.split_once(" ... ") {
                    Some((number, names)) => {
                        assert_eq!(number, (header.args.len() + 1).to_string(), "{text}");
                        let names = names.split("  ").next().and_then(|names| names.split(" (").next());
                        header.group = names.unwrap_or_default().split(", ").map(str::to_owned).collect();
                    }
                    None => header.args.extend(numbered(text, header.args.len())),
                },
                "Returns" => header.tags.extend(text.split('`').skip(1).step_by(2).map(str::to_owned)),
                _ => {}
            }
        }
        // "or ``" is a value that is empty, no tag.
        header.tags.remove("");
        header
    }

    /// The number of the first argument of a group.
    fn group_start(&self) -> usize {
        self.args.len() + 1
    }
}

/// The names of `3 name, 4 name   what they are`, if the line starts with a number; the numbers go on from `before`.
fn numbered(line: &str, before: usize) -> Vec<String> {
    if !line.starts_with(|first: char| first.is_ascii_digit()) {
        return Vec::new();
    }
    let entries = line.split("  ").next().unwrap_or_default().split(", ").enumerate();
    let names = entries.map(|(place, entry)| {
        let (number, name) = entry.split_once(' ').expect("a number and a name");
        assert_eq!(number, (before + place + 1).to_string(), "the numbers have a gap: {line}");
        name.to_owned()
    });
    names.collect()
}

#[test]
fn every_script_starts_with_its_engine_and_a_whole_header() {
    assert!(SCRIPTS.len() >= 6);
    for Script { verb, source, .. } in SCRIPTS.iter() {
        assert!(source.starts_with("#!lua\n") || source.starts_with("#!lua flags="), "{verb}: without `#!lua` flags");
        let second = source.lines().nth(1).unwrap_or_default();
        assert!(second.starts_with(&format!("-- {verb}: ")), "{verb}: the second line says what it does");
        for part in ["\n-- Safe to run twice: ", "\n-- KEYS ", "\n-- ARGV ", "\n-- Returns {`", "\n-- O("] {
            let is_needless = verb == "ready" && part.contains("Safe");
            assert!(is_needless || source.contains(part), "{verb}: the header lacks {part:?}");
        }
        assert!(!source.contains('\t'), "{verb}: indented with tabs");
    }
}

#[test]
fn headers_number_and_name_what_the_locals_read() {
    for script in SCRIPTS.iter() {
        let header = Header::of(script);
        let mut read: BTreeMap<(&str, usize), &str> = BTreeMap::new();
        for line in script.source.lines().filter(|line| line.starts_with("local ")) {
            let Some((names, values)) = line["local ".len()..].split_once(" = ") else { continue };
            for (name, value) in names.split(", ").zip(values.split(", ")) {
                for list in ["KEYS", "ARGV"] {
                    let Some((_, rest)) = value.split_once(&format!("{list}[")) else { continue };
                    let number = rest.split(']').next().and_then(|number| number.parse().ok()).expect("a number");
                    assert_eq!(read.insert((list, number), name), None, "{}: {list}[{number}] twice", script.verb);
                    let is_number = ["_ms", "_max", "keep"].iter().any(|unit| name.ends_with(unit));
                    assert_eq!(value.starts_with("tonumber("), is_number, "{}: {line}", script.verb);
                }
            }
        }
        for (list, names) in [("KEYS", &header.keys), ("ARGV", &header.args)] {
            let expected = names.iter().enumerate().map(|(place, name)| ((list, place + 1), name.as_str()));
            let actual = read.iter().filter(|((of, _), _)| *of == list).map(|(&place, &name)| (place, name));
            assert_eq!(actual.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{} and its header", script.verb);
        }
        let code = code_of(&script.source);
        let (start, width) = (header.group_start(), header.group.len());
        let ways = [
            format!("unpack(ARGV, {start})"),
            format!("= {start}, #ARGV, {width} do"),
            format!("FIRST, WIDTH = {start}, {width}"),
        ];
        let reads_group = ways.iter().any(|way| code.contains(way.as_str()));
        assert_eq!(reads_group, width > 0, "{}: the arguments from {start} on", script.verb);
    }
}

/// A script without its comments.
fn code_of(source: &str) -> String {
    let lines = source.lines().filter(|line| !line.trim_start().starts_with("--") && !line.starts_with("#!"));
    lines.collect::<Vec<_>>().join("\n")
}

async fn as_its_header_says(_: &Service, run: &Run, _: &str) {
    let header = Header::of(script(&run.verb));
    assert_eq!(run.keys.len(), header.keys.len(), "KEYS of {run:#?}");
    let more = run.args.len().checked_sub(header.args.len()).unwrap_or_else(|| panic!("too few ARGV: {run:#?}"));
    match header.group.len() {
        0 => assert_eq!(more, 0, "ARGV of {run:#?}"),
        width => assert_eq!(more % width, 0, "ARGV of {run:#?}"),
    }
    // An identifier can be a name's neighbour, but never a time or a partition.
    for (name, value) in header.args.iter().zip(&run.args) {
        if name.ends_with("_ms") || name.ends_with("_max") || name == "keep" {
            assert!(value.parse::<u64>().is_ok(), "{name} is {value:?} in {run:#?}");
        }
        if name == "partition" {
            assert!(run.keys[0].starts_with(value), "{name} is {value:?} in {run:#?}");
        }
    }
    let kinds = BTreeMap::from([
        ("session", "s"),
        ("created", "s"),
        ("messages", "m"),
        ("message_ids", "d"),
        ("pointer", "a"),
        ("history", "h"),
        ("business", "b"),
    ]);
    for (name, key) in header.keys.iter().zip(&run.keys) {
        let kind = kinds[name.as_str()];
        assert!(key.contains(&format!("}}:{kind}:")), "{name} is {key} in {run:#?}");
    }
}

#[tokio::test]
async fn the_service_sends_what_the_headers_list() {
    get_or_create_runs(as_its_header_says).await;
    update_runs(as_its_header_says).await;
    append_messages_runs(as_its_header_says).await;
    delete_runs(as_its_header_says).await;
    erase_user_runs(as_its_header_says).await;
    ready_runs(as_its_header_says).await;
}

/// The first literals of the tables of a script: of its replies and of their items.
fn tags_in(code: &str) -> BTreeSet<String> {
    let mut tags = BTreeSet::new();
    for table in code.split('{').skip(1).filter_map(|rest| rest.split('}').next()) {
        let first = table.split(',').next().unwrap_or_default();
        // A list of fields starts on a line of its own.
        if first.starts_with('\'') || first.contains(" and '") {
            tags.extend(first.split('\'').skip(1).step_by(2).map(str::to_owned));
        }
    }
    tags
}

/// The words that the store takes for the first of a script's reply.
fn tags_matched(verb: &str) -> BTreeSet<String> {
    let store = store_source();
    let (_, rest) = store.split_once(&format!("self.scripts.{verb}")).expect("a method that runs the script");
    let (_, rest) = rest.split_once(".as_str() {").expect("a match of the tag");
    let (arms, _) = rest.split_once("reply.unknown_tag()").expect("an arm for an unknown tag");
    let heads = arms.lines().filter_map(|line| line.split_once("=>")).map(|(head, _)| head);
    heads.flat_map(|head| head.split('"').skip(1).step_by(2).map(str::to_owned)).collect()
}

fn store_source() -> String {
    let mut source = fs::read_to_string(project().join("src/store.rs")).expect("the store");
    for file in fs::read_dir(project().join("src/store")).expect("its folder") {
        let path = file.expect("a file").path();
        // Its folders run no scripts.
        if path.is_file() {
            source.push_str(&fs::read_to_string(path).expect("a source file"));
        }
    }
    source
}

#[test]
fn headers_list_the_tags_that_scripts_return_and_the_store_matches() {
    for script in SCRIPTS.iter() {
        let mut tags = Header::of(script).tags;
        assert!(!tags.is_empty(), "{}: the header lists no tag", script.verb);
        assert_eq!(tags, tags_in(&code_of(&script.source)), "{}: the header and the script", script.verb);
        if script.verb == "append_messages" {
            // Of items, not of the reply: whichever it is, the answer's status follows from the reply's tag.
            tags.retain(|tag| tag != "new" && tag != "known");
        }
        assert_eq!(tags, tags_matched(&script.verb), "{}: the header and the store", script.verb);
    }
}

#[tokio::test]
async fn scripts_and_service_have_one_order_of_fields() {
    let redis = RedisServer::start(IN_MEMORY);
    let service = Service::start_on(&redis.socket(), &[]).await;
    let id = service.session_of("u").await;
    let key = session_key(&service, &id);
    // Read by the names of the fields, as where there is no connection for reads.
    service.look.command(&["ACL", "SETUSER", acl::SERVICE, "-hgetall"]).await;
    let monitor = Monitor::start(&redis.socket());
    service.get(&format!("/api/sessions/{id}")).await.expect(200);
    let commands = monitor.finish(&service.look).await;
    let read: Vec<_> = commands.iter().filter(|command| command.words.contains(&key)).collect();
    assert_eq!(read.len(), 1, "a read is one command: {read:#?}");
    assert_eq!(read[0].words[..2], ["HMGET", &key]);
    let fields = fields_of("get_or_create");
    assert_eq!(read[0].words[2..], fields);
    let with_fields: Vec<_> = SCRIPTS.iter().filter(|script| script.source.contains("local FIELDS")).collect();
    assert_eq!(with_fields.len(), 2);
    for script in with_fields {
        assert_eq!(fields_of(&script.verb), fields, "{}", script.verb);
    }
    // The places that get_or_create.lua names by number.
    assert_eq!((fields[13 - 1].as_str(), fields[14 - 1].as_str()), ("lastActivityAt", "expiresAt"));
    assert!(script("get_or_create").source.contains("document[13], document[14] = int(now_ms), int(expires)"));
}

/// The names of the commands that a line of Lua sends.
fn commands_in(line: &str) -> Vec<&str> {
    // A function of get_or_create.lua that only reads.
    let by_function = line.matches("fields_of(").filter(|_| !line.contains("function")).map(|_| "HMGET");
    let literal = line.split("redis.call('").skip(1).filter_map(|rest| rest.split('\'').next());
    literal.chain(by_function).collect()
}

#[test]
fn scripts_read_before_they_write_and_send_no_other_command() {
    for Script { verb, source, .. } in SCRIPTS.iter() {
        let code = code_of(source);
        assert!(!code.contains("cjson") && !code.contains("cmsgpack"), "{verb}: Lua moves strings, Rust speaks JSON");
        assert!(!code.contains("redis.pcall"), "{verb}: an error that is caught leaves half of a change");
        assert!(!code.contains("while ") && !code.contains("repeat"), "{verb}: loops are bounded by an argument");
        assert_eq!(code.matches("redis.").count(), code.matches("redis.call('").count(), "{verb}: names as literals");
        let (mut wrote, mut only_writes) = (false, false);
        for line in source.lines() {
            only_writes |= line.starts_with(ONLY_WRITES);
            for command in commands_in(line) {
                assert!(READS.contains(&command) || WRITES.contains(&command), "{verb}: reads or writes {command}?");
                assert!(!(READS.contains(&command) && (wrote || only_writes)), "{verb} reads after a write: {line}");
                wrote |= WRITES.contains(&command);
            }
            // A branch that ends here is not followed by what comes below it.
            wrote &= !line.trim_start().starts_with("return");
        }
        assert_eq!(only_writes, WRITES.iter().any(|write| code.contains(&format!("redis.call('{write}'"))), "{verb}");
    }
}

/// The same for what scripts really do, on every path that the runs above take.
#[tokio::test]
async fn no_run_reads_after_it_wrote() {
    let reads_first = async |_: &Service, run: &Run, _: &str| {
        let mut names = run.inner.iter().map(|command| command[0].as_str());
        names.find(|name| WRITES.contains(name));
        assert_eq!(names.find(|name| READS.contains(name)), None, "{run:#?}");
    };
    get_or_create_runs(reads_first).await;
    update_runs(reads_first).await;
    append_messages_runs(reads_first).await;
    delete_runs(reads_first).await;
    erase_user_runs(reads_first).await;
}
