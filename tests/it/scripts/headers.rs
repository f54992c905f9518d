//! The headers of the scripts in `lua/`, and the conventions of `lua/README.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::{
    READS, Run, SCRIPTS, Script, WRITES, append_messages_runs, delete_runs, erase_user_runs, get_or_create_runs,
    project, ready_runs, redact_message_runs, script, turn_runs, update_message_runs, update_runs,
};
use crate::support::service::Service;

/// The comment in a script after which it reads nothing more.
const ONLY_WRITES: &str = "-- From here on only writes.";

/// The comment at the start of a script.
#[derive(Debug, Default)]
pub(super) struct Header {
    keys: Vec<String>,
    pub(super) args: Vec<String>,
    /// The names of the arguments in a group that may occur any number of times.
    group: Vec<String>,
    /// The tags that a reply, or an item of it, may start with.
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
        // "or ``" is an empty value, not a tag.
        header.tags.remove("");
        header
    }

    /// The number of the first argument of a group.
    fn group_start(&self) -> usize {
        self.args.len() + 1
    }
}

/// The names in `3 name, 4 name   description`. Empty if the line does not start with a number. The numbers must
/// continue from `before`.
fn numbered(line: &str, before: usize) -> Vec<String> {
    if !line.starts_with(|first: char| first.is_ascii_digit()) {
        return Vec::new();
    }
    let entries = line.split("  ").next().unwrap_or_default().split(", ").enumerate();
    let names = entries.map(|(index, entry)| {
        let (number, name) = entry.split_once(' ').expect("a number and a name");
        assert_eq!(number, (before + index + 1).to_string(), "the numbers have a gap: {line}");
        name.to_owned()
    });
    names.collect()
}

#[test]
fn scripts_start_with_their_engine_and_a_complete_header() {
    assert!(SCRIPTS.len() >= 6);
    for Script { operation, source, .. } in SCRIPTS.iter() {
        let has_engine = source.starts_with("#!lua\n") || source.starts_with("#!lua flags=");
        assert!(has_engine, "{operation}: without `#!lua` flags");
        let second = source.lines().nth(1).unwrap_or_default();
        assert!(second.starts_with(&format!("-- {operation}: ")), "{operation}: the second line says what it does");
        for part in ["\n-- Safe to run twice: ", "\n-- KEYS ", "\n-- ARGV ", "\n-- Returns {`", "\n-- O("] {
            let is_needless = operation == "ready" && part.contains("Safe");
            assert!(is_needless || source.contains(part), "{operation}: the header lacks {part:?}");
        }
        assert!(!source.contains('\t'), "{operation}: indented with tabs");
    }
}

#[test]
fn headers_list_the_keys_and_arguments_that_scripts_read() {
    for script in SCRIPTS.iter() {
        let header = Header::of(script);
        let mut read: BTreeMap<(&str, usize), &str> = BTreeMap::new();
        for line in script.source.lines().filter(|line| line.starts_with("local ")) {
            let Some((names, values)) = line["local ".len()..].split_once(" = ") else { continue };
            for (name, value) in names.split(", ").zip(values.split(", ")) {
                for list in ["KEYS", "ARGV"] {
                    let Some((_, rest)) = value.split_once(&format!("{list}[")) else { continue };
                    let number = rest.split(']').next().and_then(|number| number.parse().ok()).expect("a number");
                    assert_eq!(read.insert((list, number), name), None, "{}: {list}[{number}] twice", script.operation);
                    let is_number = ["_ms", "_max", "keep"].iter().any(|unit| name.ends_with(unit));
                    assert_eq!(value.ends_with(" + 0"), is_number, "{}: {line}", script.operation);
                }
            }
        }
        for (list, names) in [("KEYS", &header.keys), ("ARGV", &header.args)] {
            let expected = names.iter().enumerate().map(|(index, name)| ((list, index + 1), name.as_str()));
            let actual = read.iter().filter(|((of, _), _)| *of == list).map(|(&index, &name)| (index, name));
            assert_eq!(actual.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{} and its header", script.operation);
        }
        let code = code_of(&script.source);
        let (start, width) = (header.group_start(), header.group.len());
        let ways = [
            format!("unpack(ARGV, {start})"),
            format!("= {start}, #ARGV, {width} do"),
            format!("FIRST, WIDTH = {start}, {width}"),
        ];
        let reads_group = ways.iter().any(|way| code.contains(way.as_str()));
        assert_eq!(reads_group, width > 0, "{}: the arguments from {start} on", script.operation);
    }
}

/// A script without its comments.
fn code_of(source: &str) -> String {
    let lines = source.lines().filter(|line| !line.trim_start().starts_with("--") && !line.starts_with("#!"));
    lines.collect::<Vec<_>>().join("\n")
}

async fn matches_its_header(_: &Service, run: &Run, _: &str) {
    let header = Header::of(script(&run.operation));
    // An append knows the keys of the user only after its first run, and few sessions have turns.
    let is_short = match run.operation.as_str() {
        "append_messages" | "redact_message" => run.keys.len() == 3,
        "update" => [6, 7].contains(&run.keys.len()),
        "delete" => run.keys.len() == 6,
        _ => false,
    };
    assert!(is_short || run.keys.len() == header.keys.len(), "KEYS of {run:#?}");
    let more = run.args.len().checked_sub(header.args.len()).unwrap_or_else(|| panic!("too few ARGV: {run:#?}"));
    match header.group.len() {
        0 => assert_eq!(more, 0, "ARGV of {run:#?}"),
        width => assert_eq!(more % width, 0, "ARGV of {run:#?}"),
    }
    // An identifier is neither a number nor a partition, so this finds arguments in the wrong order.
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
        ("turn", "t"),
        ("chunks", "r"),
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
async fn the_service_sends_the_keys_and_arguments_of_the_headers() {
    get_or_create_runs(matches_its_header).await;
    update_runs(matches_its_header).await;
    append_messages_runs(matches_its_header).await;
    update_message_runs(matches_its_header).await;
    redact_message_runs(matches_its_header).await;
    delete_runs(matches_its_header).await;
    erase_user_runs(matches_its_header).await;
    turn_runs(matches_its_header).await;
    ready_runs(matches_its_header).await;
}

/// The first literals of the tables in a script. These tables are its replies and their items.
fn tags_in(code: &str) -> BTreeSet<String> {
    let mut tags = BTreeSet::new();
    for table in code.split('{').skip(1).filter_map(|rest| rest.split('}').next()) {
        let first = table.split(',').next().unwrap_or_default();
        // Skips lists of fields, which start on a new line.
        if first.starts_with('\'') || first.contains(" and '") {
            tags.extend(first.split('\'').skip(1).step_by(2).map(str::to_owned));
        }
    }
    tags
}

/// The tags that the store expects at the start of a script's reply.
fn tags_matched(operation: &str) -> BTreeSet<String> {
    let store = store_source();
    // Not the script of another operation whose name starts with this one's.
    let name = format!("self.scripts.{operation}");
    let mut uses = store.split(&name).skip(1);
    let rest = uses.find(|rest| !rest.starts_with('_')).expect("a method that runs the script");
    let (_, rest) = rest.split_once(".as_str() {").expect("a match of the tag");
    let (arms, _) = rest.split_once("reply.unknown_tag()").expect("an arm for an unknown tag");
    let heads = arms.lines().filter_map(|line| line.split_once("=>")).map(|(head, _)| head);
    heads.flat_map(|head| head.split('"').skip(1).step_by(2).map(str::to_owned)).collect()
}

/// Every file of the store, one after another.
fn store_source() -> String {
    let mut source = String::new();
    let (mut folders, mut files) = (vec![project().join("src/store")], vec![project().join("src/store.rs")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { &mut folders } else { &mut files }.push(path);
        }
    }
    for file in files {
        source.push_str(&fs::read_to_string(file).expect("a source file"));
    }
    source
}

#[test]
fn headers_list_the_tags_that_scripts_return_and_the_store_matches() {
    for script in SCRIPTS.iter() {
        let tags = Header::of(script).tags;
        assert!(!tags.is_empty(), "{}: the header lists no tag", script.operation);
        assert_eq!(tags, tags_in(&code_of(&script.source)), "{}: the header and the script", script.operation);
        assert_eq!(tags, tags_matched(&script.operation), "{}: the header and the store", script.operation);
    }
}

/// The names of the commands that a line of Lua sends.
fn commands_in(line: &str) -> Vec<&str> {
    line.split("redis.call('").skip(1).filter_map(|rest| rest.split('\'').next()).collect()
}

#[test]
fn scripts_read_before_they_write_and_use_known_commands_only() {
    for Script { operation, source, .. } in SCRIPTS.iter() {
        let code = code_of(source);
        assert!(!code.contains("cjson") && !code.contains("cmsgpack"), "{operation}: only Rust parses JSON");
        assert!(!code.contains("redis.pcall"), "{operation}: a caught error leaves a partial change");
        assert!(!code.contains("while ") && !code.contains("repeat"), "{operation}: loops are bounded by an argument");
        let (mentions, calls) = (code.matches("redis.").count(), code.matches("redis.call('").count());
        assert_eq!(mentions, calls, "{operation}: commands are named by literals");
        let (mut wrote, mut only_writes) = (false, false);
        for line in source.lines() {
            only_writes |= line.starts_with(ONLY_WRITES);
            for command in commands_in(line) {
                let (reads, writes) = (READS.contains(&command), WRITES.contains(&command));
                assert!(reads || writes, "{operation}: unknown command {command}");
                assert!(!(reads && (wrote || only_writes)), "{operation} reads after a write: {line}");
                wrote |= writes;
            }
            // The code below a return does not run after the writes above it.
            wrote &= !line.trim_start().starts_with("return");
        }
        let has_writes = WRITES.iter().any(|write| code.contains(&format!("redis.call('{write}'")));
        let has_writes = has_writes || code.contains("write_close(");
        assert_eq!(only_writes, has_writes, "{operation}");
    }
}

/// Checks the same for the commands that scripts really send, on every path that the runs above take.
#[tokio::test]
async fn no_run_reads_after_a_write() {
    let reads_first = async |_: &Service, run: &Run, _: &str| {
        let mut names = run.inner.iter().map(|command| command[0].as_str());
        names.find(|name| WRITES.contains(name));
        assert_eq!(names.find(|name| READS.contains(name)), None, "{run:#?}");
    };
    get_or_create_runs(reads_first).await;
    update_runs(reads_first).await;
    append_messages_runs(reads_first).await;
    update_message_runs(reads_first).await;
    redact_message_runs(reads_first).await;
    delete_runs(reads_first).await;
    erase_user_runs(reads_first).await;
    turn_runs(reads_first).await;
}
