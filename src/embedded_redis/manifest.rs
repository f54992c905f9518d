//! The manifest of an append-only file (Redis 7.0 and newer), which lists its files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::EmbeddedError;

pub(super) const APPEND_ONLY_DIR: &str = "appendonlydir";
pub(super) const MANIFEST: &str = "appendonlydir/appendonly.aof.manifest";
/// The single append-only file of Redis before 7.0.
pub(super) const SINGLE_FILE: &str = "appendonly.aof";
const INCREMENT: &str = ".incr.aof";

/// One line of the manifest, which describes one file.
#[derive(Debug, Default)]
struct Entry {
    name: String,
    number: u64,
    kind: String,
}

/// Reads the manifest of a data directory. Returns the files that Redis loads, in loading order, relative to the data
/// directory.
///
/// # Errors
/// If Redis could not read the manifest, or would ignore or remove a file that has data.
pub(super) fn read(data_dir: &Path) -> Result<Vec<PathBuf>, EmbeddedError> {
    let path = data_dir.join(MANIFEST);
    let damaged = |what: String| EmbeddedError::damaged(data_dir, &path, None, what, false);
    let text = fs::read(&path).map_err(|error| EmbeddedError::File(path.clone(), error))?;
    let entries = parse(&text).map_err(damaged)?;
    let loaded = loaded(&entries).map_err(damaged)?;
    let paths = loaded.into_iter().map(|entry| locate(data_dir, &entry.name, entries.len() == 1));
    let paths = paths.collect::<Result<_, _>>()?;
    let folder = data_dir.join(APPEND_ONLY_DIR);
    for name in commands_in(&folder)? {
        if entries.iter().all(|entry| entry.name != name) {
            let what = format!("it does not name {name}, which holds commands that Redis would not load");
            return Err(damaged(what));
        }
    }
    Ok(paths)
}

/// Whether a directory has a non-empty file of appended commands.
pub(super) fn has_commands(folder: &Path) -> Result<bool, EmbeddedError> {
    Ok(!commands_in(folder)?.is_empty())
}

/// The names of the non-empty files of appended commands in a directory.
fn commands_in(folder: &Path) -> Result<Vec<String>, EmbeddedError> {
    let name = |entry: io::Result<fs::DirEntry>| {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        Ok((name.ends_with(INCREMENT) && entry.metadata()?.len() > 0).then_some(name))
    };
    let names = folder.read_dir().and_then(|entries| entries.map(name).filter_map(Result::transpose).collect());
    names.map_err(|error| EmbeddedError::File(folder.to_owned(), error))
}

fn locate(data_dir: &Path, name: &str, is_only: bool) -> Result<PathBuf, EmbeddedError> {
    let path = Path::new(APPEND_ONLY_DIR).join(name);
    if data_dir.join(&path).is_file() {
        return Ok(path);
    }
    // Redis moves the single file of an earlier version only after it has written the manifest.
    if is_only && name == SINGLE_FILE && data_dir.join(SINGLE_FILE).is_file() {
        return Ok(SINGLE_FILE.into());
    }
    Err(EmbeddedError::Missing(data_dir.to_owned(), format!("{}, which {MANIFEST} names, is missing", path.display())))
}

/// Returns the entries that Redis loads: the base, then the increments.
fn loaded(entries: &[Entry]) -> Result<Vec<&Entry>, String> {
    let of_kind = |kind: &'static str| entries.iter().filter(move |entry| entry.kind == kind);
    let mut bases = of_kind("b");
    let base = bases.next().ok_or("it names no base file")?;
    if bases.next().is_some() {
        return Err("it names two base files".to_owned());
    }
    let increments: Vec<_> = of_kind("i").collect();
    if !increments.is_sorted_by(|one, next| one.number < next.number) {
        return Err("its files are not in order".to_owned());
    }
    // Redis removes files of type `h` (history). When a newer base replaces them, the previous base and all increments
    // but one get that type.
    let mut old_bases = of_kind("h").filter(|entry| !entry.name.ends_with(INCREMENT));
    let is_replaced = old_bases.any(|entry| entry.number < base.number) && increments.len() == 1;
    if of_kind("h").next().is_some() && !is_replaced {
        return Err("it marks files as history, but no newer base replaces them".to_owned());
    }
    Ok([base].into_iter().chain(increments).collect())
}

fn parse(text: &[u8]) -> Result<Vec<Entry>, String> {
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    let text = str::from_utf8(text).map_err(|_| "it is not text")?;
    let text = text.strip_suffix('\n').ok_or("its last line has no newline")?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
    lines
        .map(|(number, line)| parse_line(line).ok_or(format!("its line {} does not describe a file", number + 1)))
        .collect()
}

/// Parses pairs of a key and a value. Ignores unknown keys, as Redis does.
fn parse_line(line: &str) -> Option<Entry> {
    let mut words = line.split_ascii_whitespace();
    let mut entry = Entry::default();
    let mut seen = 0;
    while let Some(key) = words.next() {
        let value = words.next()?;
        match key {
            "file" => value.clone_into(&mut entry.name),
            "seq" => entry.number = value.parse().ok()?,
            "type" => value.clone_into(&mut entry.kind),
            _ => continue,
        }
        seen += 1;
    }
    let is_name = entry.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    let is_kind = ["b", "i", "h"].contains(&entry.kind.as_str());
    (seen == 3 && is_name && is_kind && entry.number > 0).then_some(entry)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// The manifest after a rewrite, before Redis has removed the old files.
    const REWRITTEN: &str = "file appendonly.aof.2.base.rdb seq 2 type b\n\
                             file appendonly.aof.1.base.rdb seq 1 type h\n\
                             file appendonly.aof.1.incr.aof seq 1 type h\n\
                             file appendonly.aof.2.incr.aof seq 2 type i\n";
    /// The manifest after a failed rewrite.
    const TEXT: &str = "file appendonly.aof.2.base.rdb seq 2 type b\n\
                        file appendonly.aof.2.incr.aof seq 2 type i\n\
                        file appendonly.aof.3.incr.aof seq 3 type i\n";
    const NAMES: [&str; 3] = ["appendonly.aof.2.base.rdb", "appendonly.aof.2.incr.aof", "appendonly.aof.3.incr.aof"];

    fn folder(names: &[&str]) -> TempDir {
        let folder = TempDir::new().expect("a folder");
        fs::create_dir(folder.path().join(APPEND_ONLY_DIR)).expect("a folder");
        for name in names {
            fs::write(folder.path().join(APPEND_ONLY_DIR).join(name), "content").expect("a file");
        }
        folder
    }

    fn read_text(folder: &TempDir, text: &[u8]) -> Result<Vec<PathBuf>, EmbeddedError> {
        fs::write(folder.path().join(MANIFEST), text).expect("a file");
        read(folder.path())
    }

    fn paths(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(|name| Path::new(APPEND_ONLY_DIR).join(name)).collect()
    }

    #[test]
    fn the_files_that_redis_loads_are_read_in_order() {
        let folder = folder(&NAMES);
        assert_eq!(read_text(&folder, TEXT.as_bytes()).expect("a manifest"), paths(&NAMES));
        assert_eq!(
            read_text(&folder, REWRITTEN.as_bytes())
                .expect_err("one file too many")
                .to_string()
                .matches("3.incr")
                .count(),
            1
        );
        let newer = TEXT.replace("type i", "type i startoffset 10").replace("file", "#a comment\nfile");
        assert_eq!(read_text(&folder, newer.as_bytes()).expect("a manifest"), paths(&NAMES));
    }

    /// Otherwise Redis would ignore a file, or remove it as history.
    #[test]
    fn a_damaged_manifest_loses_no_file() {
        for (text, names) in [(TEXT, &NAMES[..]), (REWRITTEN, &NAMES[..2])] {
            let folder = folder(names);
            let expect = |damaged: &[u8], how: &str| match read_text(&folder, damaged) {
                Ok(found) => assert_eq!(found, paths(names), "{how}: {}", String::from_utf8_lossy(damaged)),
                Err(EmbeddedError::Damaged { .. } | EmbeddedError::Missing(..)) => {}
                Err(error) => panic!("{how}: {error}"),
            };
            for at in 0..text.len() {
                expect(&text.as_bytes()[..at], &format!("cut at {at}"));
                let mut damaged = text.as_bytes().to_vec();
                for bit in 0..8 {
                    damaged[at] = text.as_bytes()[at] ^ (1 << bit);
                    expect(&damaged, &format!("bit {bit} of byte {at}"));
                }
                damaged[at] = b'#';
                expect(&damaged, &format!("# at {at}"));
                damaged[at..].fill(0);
                expect(&damaged, &format!("zeros from {at}"));
            }
        }
    }

    #[test]
    fn named_files_must_exist_and_unnamed_files_must_be_empty() {
        let folder = folder(&NAMES);
        for name in NAMES {
            let path = folder.path().join(APPEND_ONLY_DIR).join(name);
            let content = fs::read(&path).expect("a file");
            fs::remove_file(&path).expect("a file");
            let found = read_text(&folder, TEXT.as_bytes());
            assert!(matches!(&found, Err(EmbeddedError::Missing(_, what)) if what.contains(name)), "{found:?}");
            fs::write(&path, content).expect("a file");
        }
        // Redis creates this file before it names it in the manifest. While the file is empty, nothing can be lost.
        let next = folder.path().join(APPEND_ONLY_DIR).join("appendonly.aof.4.incr.aof");
        fs::write(&next, "").expect("a file");
        assert_eq!(read_text(&folder, TEXT.as_bytes()).expect("a manifest"), paths(&NAMES));
        fs::write(&next, "x").expect("a file");
        let found = read_text(&folder, TEXT.as_bytes());
        assert!(matches!(&found, Err(EmbeddedError::Damaged { what, .. }) if what.contains("4.incr")), "{found:?}");
    }
}
