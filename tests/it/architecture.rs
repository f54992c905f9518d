//! The architecture invariants of `docs/architecture.md` (Invariants), checked on the source files: which names a
//! module may use, and which other modules.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Which modules a module may use. The main chain is `main → commands → bootstrap → server → http → streams → store →
/// session`. The other modules are leaves or are used by a few.
const MAY_USE: [(&str, &[&str]); 20] = [
    ("main", &["bootstrap", "commands", "config", "log", "output"]),
    (
        "commands",
        &[
            "audit",
            "auth",
            "bootstrap",
            "config",
            "embedded_redis",
            "http",
            "log",
            "output",
            "signals",
            "store",
            "tls",
            "trace",
        ],
    ),
    (
        "bootstrap",
        &[
            "auth",
            "config",
            "embedded_redis",
            "http",
            "log",
            "metrics",
            "reload",
            "server",
            "session",
            "store",
            "streams",
            "tls",
        ],
    ),
    ("server", &["config", "http", "log", "metrics", "store", "tls"]),
    ("http", &["auth", "config", "log", "metrics", "session", "store", "streams", "trace"]),
    ("audit", &["session", "store"]),
    ("auth", &["reload", "session"]),
    ("store", &["log", "metrics", "session", "trace"]),
    // `config` checks every setting, so it uses the modules that define valid values. `CONFIG_TAKES` limits this for
    // `store`.
    ("config", &["auth", "session", "store", "tls"]),
    ("embedded_redis", &[]),
    ("fuzzing", &["http", "session", "store"]),
    ("log", &["metrics", "output"]),
    ("metrics", &[]),
    ("output", &[]),
    ("reload", &[]),
    ("session", &[]),
    ("signals", &["log"]),
    ("streams", &["auth", "metrics", "session", "store"]),
    ("tls", &["reload"]),
    ("trace", &["log"]),
];
/// The only type of the store that `config` may name: the one that parses a Redis URL.
const CONFIG_TAKES: &str = "RedisAddress";

/// The maximum number of lines in a source file.
const LINES_MAX: usize = 500;
/// The maximum number of characters in a line.
const LINE_CHARS_MAX: usize = 120;

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

    /// Whether the file belongs to the program and not to the library.
    fn is_program(&self) -> bool {
        self.is_under("main") || self.is_under("commands")
    }

    fn is_under(&self, module: &str) -> bool {
        self.module() == module
    }

    /// The lines that contain `path` as a whole word. A `path` that ends with `::` may be followed by a word.
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

    /// The modules of this crate that the file names.
    fn uses(&self) -> Vec<String> {
        let root = if self.is_program() { "sessiond::" } else { "crate::" };
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

/// The text up to the closing brace, without the text in nested braces.
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
    assert!(sources.len() > 20, "too few source files found in src/");
    sources
}

/// The text without comments and without the unit tests at the end of the file.
fn code_of(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| line.split(" // ").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Panics if a file names `path` for which `may` returns false.
fn expect_only(path: &str, may: impl Fn(&Source) -> bool, advice: &str) {
    let sources = sources();
    let (allowed, other): (Vec<_>, Vec<_>) = sources.iter().partition(|source| may(source));
    let found: Vec<_> = other.iter().flat_map(|source| source.lines_naming(path)).collect();
    assert!(found.is_empty(), "{advice}:\n{}", found.join("\n"));
    let expected = allowed.iter().any(|source| !source.lines_naming(path).is_empty());
    assert!(expected, "no allowed file names {path}: update this test");
}

#[test]
fn only_the_store_names_the_redis_client() {
    let advice = "fred is named outside of src/store: give SessionStore a method, or wrap the type there";
    expect_only("fred::", |source| source.is_under("store"), advice);
}

#[test]
fn only_bootstrap_http_and_server_name_axum() {
    let advice = "axum is named outside src/bootstrap.rs, src/http and src/server: return a type of the module and let \
                  http render it";
    let may = |source: &Source| ["bootstrap", "http", "server"].iter().any(|module| source.is_under(module));
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
fn only_bootstrap_reads_the_clock() {
    let advice = "the wall clock is read outside of bootstrap::system_now: take `now` as an argument";
    expect_only("Utc::now", |source| source.is_under("bootstrap"), advice);
    let sources = sources();
    let calls = sources.iter().flat_map(|source| source.lines_naming("Utc::now"));
    assert_eq!(calls.count(), 1, "{advice}");
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
            panic!("src/{} is a new module: add it to MAY_USE with as few dependencies as possible", source.path)
        });
        for used in source.uses() {
            used_any = true;
            assert!(
                used == module || allowed.contains(&used.as_str()),
                "src/{} uses {used}, but {module} may use {allowed:?} only: move the code down, or pass it in",
                source.path
            );
        }
        // Otherwise `super` would bypass the rule.
        let above = if source.path.contains('/') { "super::super::" } else { "super::" };
        let found = source.lines_naming(above);
        assert!(found.is_empty(), "use `crate::` to name modules above this one:\n{}", found.join("\n"));
    }
    assert!(used_any, "no module uses another one: update this test");
}

#[test]
fn session_uses_no_other_module_and_no_io() {
    for source in sources().iter().filter(|source| source.is_under("session")) {
        for name in ["crate::", "tokio::", "std::fs", "std::net", "std::io", "async fn", "tracing::"] {
            let advice = "src/session.rs is the domain: it uses no other module, no I/O and no async code";
            assert_eq!(source.lines_naming(name), Vec::<String>::new(), "{advice}");
        }
    }
}

#[test]
fn config_uses_only_the_redis_url_type_of_the_store() {
    for source in sources().iter().filter(|source| source.is_under("config")) {
        for line in source.lines_naming("crate::store") {
            let advice = "config only checks settings and connects to nothing: start the store in src/bootstrap.rs";
            assert!(line.ends_with(&format!("use crate::store::{CONFIG_TAKES};")), "{advice}:\n{line}");
        }
    }
}

/// Every field of a session's hash.
fn field_names() -> Vec<String> {
    let keys =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/keys.rs")).expect("a source file");
    let (_, constants) = keys.split_once("pub(super) mod field {").expect("the module with the field constants");
    let (constants, rest) = constants.split_once("\n}\n").expect("the end of the module");
    let (_, listed) = rest.split_once("\nsession_fields! {").expect("the fields of a session");
    let (listed, _) = listed.split_once("\n}\n").expect("the end of the list");
    let literals = [constants, listed].into_iter().flat_map(|part| part.split('"').skip(1).step_by(2));
    let mut names: Vec<_> = literals.map(str::to_owned).collect();
    names.push("mutations".to_owned());
    assert!(["title", "endReason", "oldestSeq"].iter().all(|name| names.iter().any(|known| known == name)));
    names
}

#[test]
fn only_keys_rs_names_redis_keys_and_fields() {
    let fields = field_names().into_iter().map(|name| format!("\"{name}\""));
    let kinds = ["a", "b", "d", "h", "m", "s"];
    let parts = kinds.iter().flat_map(|kind| [format!("\"{kind}:"), format!(":{kind}:"), format!("}}{kind}:")]);
    let spelled: Vec<_> = fields.chain(parts).chain([":layout\"".to_owned(), "{{{".to_owned()]).collect();
    let (mut found, mut in_keys) = (Vec::new(), 0);
    // JSON fields have the same names. Only in src/store and src/audit such a name is a Redis field.
    for source in sources().iter().filter(|source| source.is_under("store") || source.is_under("audit")) {
        for line in source.code.lines().filter(|line| spelled.iter().any(|name| line.contains(name.as_str()))) {
            match source.path.as_str() {
                "store/keys.rs" => in_keys += 1,
                path => found.push(format!("src/{path}: {}", line.trim())),
            }
        }
    }
    assert!(in_keys > 20, "src/store/keys.rs contains too few names: update this test");
    assert!(found.is_empty(), "define these names in src/store/keys.rs:\n{}", found.join("\n"));
}

#[test]
fn no_source_file_is_longer_than_500_lines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let long: Vec<_> = sources()
        .into_iter()
        .map(|source| {
            (fs::read_to_string(root.join(&source.path)).expect("a source file").lines().count(), source.path)
        })
        .filter(|(lines, _)| *lines > LINES_MAX)
        .collect();
    assert!(long.is_empty(), "split these files by responsibility: {long:?}");
}

#[test]
fn no_line_is_longer_than_120_characters() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut long = Vec::new();
    for source in sources() {
        let text = fs::read_to_string(root.join(&source.path)).expect("a source file");
        let lines = text.lines().enumerate().filter(|(_, line)| line.chars().count() > LINE_CHARS_MAX);
        long.extend(lines.map(|(number, _)| format!("src/{}:{}", source.path, number + 1)));
    }
    assert!(long.is_empty(), "wrap these lines: {long:#?}");
}

#[test]
fn no_line_of_a_page_or_script_is_longer_than_120_characters() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut long = Vec::new();
    for folder in [".", "docs", "lua", "tests", "benches", "clients/typescript", "fuzz"] {
        for entry in fs::read_dir(root.join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            let Some(extension @ ("md" | "lua")) = path.extension().and_then(|extension| extension.to_str()) else {
                continue;
            };
            // It keeps what was recorded as it was.
            if path.ends_with("benches/HISTORY.md") {
                continue;
            }
            let text = fs::read_to_string(&path).expect("a text");
            let mut is_code = false;
            for (index, line) in text.lines().enumerate() {
                is_code ^= extension == "md" && line.trim_start().starts_with("```");
                // A row of a table is one line, and so is what a program prints.
                let is_row = extension == "md" && line.trim_start().starts_with('|');
                if line.chars().count() > LINE_CHARS_MAX && !is_row && !is_code {
                    long.push(format!("{}:{}", path.display(), index + 1));
                }
            }
        }
    }
    assert!(long.is_empty(), "wrap these lines: {long:#?}");
}

#[test]
fn tests_readme_describes_every_module() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let main = fs::read_to_string(root.join("tests/it/main.rs")).expect("the tests");
    let modules: Vec<_> = main.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';')).collect();
    assert!(modules.len() > 20, "tests/it/main.rs declares few modules: {modules:?}");
    let readme = fs::read_to_string(root.join("tests/README.md")).expect("the README");
    let rows = readme.lines().filter(|line| line.starts_with("| `"));
    let named: Vec<_> = rows.filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split('`')).collect();
    let missing: Vec<_> = modules.into_iter().filter(|module| !named.contains(module)).collect();
    assert!(missing.is_empty(), "tests/README.md has no row for {missing:?}");
}
