//! The invariants of the design's picture (2.1), read from the source files: who may name what, and who may use whom.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Which modules a module may use. `main → server → http → store → session`; the rest are leaves, or read by a few.
const MAY_USE: [(&str, &[&str]); 15] = [
    ("main", &["audit", "auth", "config", "http", "log", "output", "server", "signals", "spans", "store", "tls"]),
    ("server", &["auth", "config", "http", "log", "metrics", "session", "store", "tls"]),
    ("http", &["auth", "log", "metrics", "session", "spans", "store"]),
    ("audit", &["session", "store"]),
    ("auth", &["session"]),
    ("store", &["log", "metrics", "session", "spans"]),
    // `config` checks every setting, so it asks those who know what is good; `CONFIG_TAKES` says what for.
    ("config", &["auth", "session", "store", "tls"]),
    ("fuzzing", &["http", "session", "store"]),
    ("log", &["metrics", "output"]),
    ("metrics", &[]),
    ("output", &[]),
    ("session", &[]),
    ("signals", &["log"]),
    ("spans", &["log"]),
    ("tls", &[]),
];
/// All that `config` may name of the store: the type that says what a Redis URL is.
const CONFIG_TAKES: &str = "RedisAddress";

/// One source file: its path below `src/`, and its code without comments and unit tests.
struct Source {
    path: String,
    code: String,
}

impl Source {
    /// `store` for `store.rs` and for all of `store/`.
    fn module(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap_or_default()
    }

    fn is_under(&self, module: &str) -> bool {
        self.module() == module
    }

    /// Its lines that name `path`, as whole words; what ends with `::` may go on.
    fn lines_naming(&self, path: &str) -> Vec<String> {
        let names = |line: &&str| {
            line.match_indices(path).any(|(start, _)| {
                let before = line[..start].chars().next_back().is_some_and(is_word);
                let after = line[start + path.len()..].chars().next().is_some_and(is_word);
                !before && (path.ends_with("::") || !after)
            })
        };
        self.code.lines().filter(names).map(|line| format!("src/{}: {}", self.path, line.trim())).collect()
    }

    /// The modules of this crate that it names.
    fn uses(&self) -> Vec<String> {
        let root = if self.path == "main.rs" { "sessiond::" } else { "crate::" };
        let mut used = Vec::new();
        for rest in self.code.split(root).skip(1) {
            match rest.strip_prefix('{') {
                Some(list) => used.extend(outermost(list).split(',').map(first_word)),
                None => used.push(first_word(rest)),
            }
        }
        used.retain(|name| !name.is_empty());
        used
    }
}

/// What is between an opened brace and its end, without what is in braces of its own.
fn outermost(list: &str) -> String {
    let (mut depth, mut outermost) = (1, String::new());
    for character in list.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            other if depth == 1 => outermost.push(other),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    outermost
}

fn first_word(text: &str) -> String {
    text.trim_start().chars().take_while(|&character| is_word(character)).collect()
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Every file of `src/`.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut sources) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let path = path.strip_prefix(&root).expect("a path below src").to_string_lossy().into_owned();
                sources.push(Source { path, code: code_of(&text) });
            }
        }
    }
    assert!(sources.len() > 20, "src/ was not found");
    sources
}

/// The text without comments and without the unit tests, which come last in a file.
fn code_of(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| line.split(" // ").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Panics if `path` is named in a file that `may` does not allow.
fn expect_only(path: &str, may: impl Fn(&Source) -> bool, advice: &str) {
    let sources = sources();
    let (allowed, other): (Vec<_>, Vec<_>) = sources.iter().partition(|source| may(source));
    let found: Vec<_> = other.iter().flat_map(|source| source.lines_naming(path)).collect();
    assert!(found.is_empty(), "{advice}:\n{}", found.join("\n"));
    let expected = allowed.iter().any(|source| !source.lines_naming(path).is_empty());
    assert!(expected, "nobody names {path} any more: is this test looking for the right thing?");
}

#[test]
fn only_the_store_names_the_redis_client() {
    let advice = "fred is named outside of src/store: give SessionStore a method, or wrap the type there";
    expect_only("fred::", |source| source.is_under("store"), advice);
}

#[test]
fn only_http_and_server_name_axum() {
    let advice =
        "axum is named outside of src/http and src/server.rs: answer with a type of your own, let http render it";
    let may = |source: &Source| source.is_under("http") || source.is_under("server");
    expect_only("axum::", may, advice);
    expect_only("utoipa_axum::", |source| source.is_under("http"), advice);
}

#[test]
fn only_config_reads_the_environment() {
    let advice = "the environment is read outside of src/config.rs: make it a setting, and pass its value";
    expect_only("std::env", |source| source.is_under("config"), advice);
    for source in sources().iter().filter(|source| !source.is_under("config")) {
        for name in ["env::var", "env::var_os", "env::vars", "env::args", "option_env!"] {
            assert_eq!(source.lines_naming(name), Vec::<String>::new(), "{advice}");
        }
    }
}

#[test]
fn one_place_reads_the_clock() {
    let advice = "the wall clock is read outside of server::system_now: take `now` as an argument";
    expect_only("Utc::now", |source| source.is_under("server"), advice);
    let sources = sources();
    let of_server = sources.iter().flat_map(|source| source.lines_naming("Utc::now"));
    assert_eq!(of_server.count(), 1, "{advice}");
    for source in &sources {
        for name in ["SystemTime", "Local::now", "UNIX_EPOCH"] {
            assert_eq!(source.lines_naming(name), Vec::<String>::new(), "{advice}");
        }
    }
}

#[test]
fn modules_use_only_those_below_them() {
    let may_use = BTreeMap::from(MAY_USE);
    let mut used_any = false;
    for source in sources() {
        let module = source.module();
        if module == "lib" {
            continue;
        }
        let allowed = may_use.get(module).unwrap_or_else(|| {
            panic!("src/{} is a new module: add it to MAY_USE, with as few others as it can do with", source.path)
        });
        for used in source.uses() {
            used_any = true;
            assert!(
                used == module || allowed.contains(&used.as_str()),
                "src/{} uses {used}, but {module} may use {allowed:?} only: move the code down, or pass it in",
                source.path
            );
        }
        // Otherwise `super` would be a way around the rule.
        let above = if source.path.contains('/') { "super::super::" } else { "super::" };
        let found = source.lines_naming(above);
        assert!(found.is_empty(), "name modules above your own by `crate::`:\n{}", found.join("\n"));
    }
    assert!(used_any, "no module uses another: is this test looking for the right thing?");
}

#[test]
fn session_is_a_leaf_without_input_and_output() {
    for source in sources().iter().filter(|source| source.is_under("session")) {
        for name in ["crate::", "tokio::", "std::fs", "std::net", "std::io", "async fn", "tracing::"] {
            let advice = "src/session.rs is the domain: no other module, no I/O, nothing to wait for";
            assert_eq!(source.lines_naming(name), Vec::<String>::new(), "{advice}");
        }
    }
}

#[test]
fn config_takes_no_more_of_the_store_than_what_a_redis_url_is() {
    for source in sources().iter().filter(|source| source.is_under("config")) {
        for line in source.lines_naming("crate::store") {
            let advice = "config checks settings and connects to nothing: start the store in src/server.rs";
            assert!(line.ends_with(&format!("use crate::store::{CONFIG_TAKES};")), "{advice}:\n{line}");
        }
    }
}

/// Every field that a script or a stream names.
fn field_names() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("lua");
    let read = |file: &str| fs::read_to_string(folder.join(file)).expect("a script");
    let update = read("update.lua");
    let (_, table) = update.split_once("local FIELDS = {").expect("a table of fields");
    let (table, _) = table.split_once('}').expect("its end");
    let mut names: Vec<_> = table.split('\'').skip(1).step_by(2).map(str::to_owned).collect();
    let append = read("append_messages.lua");
    let (_, add) = append.split_once("redis.call('XADD'").expect("an append");
    let (add, _) = add.split_once(")\n").expect("its end");
    let of_messages = add.split('\'').skip(1).step_by(2).filter(|name| name.chars().all(char::is_alphabetic));
    names.extend(of_messages.map(str::to_owned));
    names.push("mutations".to_owned());
    assert!(["title", "endReason", "messageId", "content"].iter().all(|name| names.iter().any(|known| known == name)));
    names
}

#[test]
fn only_keys_rs_spells_keys_and_fields() {
    let fields = field_names().into_iter().map(|name| format!("\"{name}\""));
    let kinds = ["a", "b", "d", "h", "m", "s"];
    let parts = kinds.iter().flat_map(|kind| [format!("\"{kind}:"), format!(":{kind}:"), format!("}}{kind}:")]);
    let spelled: Vec<_> = fields.chain(parts).chain([":layout\"".to_owned(), "{{{".to_owned()]).collect();
    let (mut found, mut in_keys) = (Vec::new(), 0);
    // Clients name their own fields alike; only under src/store a name is one of Redis.
    for source in sources().iter().filter(|source| source.is_under("store") || source.is_under("audit")) {
        for line in source.code.lines().filter(|line| spelled.iter().any(|name| line.contains(name.as_str()))) {
            match source.path.as_str() {
                "store/keys.rs" => in_keys += 1,
                path => found.push(format!("src/{path}: {}", line.trim())),
            }
        }
    }
    assert!(in_keys > 20, "src/store/keys.rs spells few names: is this test looking for the right thing?");
    assert!(found.is_empty(), "name it in src/store/keys.rs and use that:\n{}", found.join("\n"));
}
