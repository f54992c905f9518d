//! The functions that the fuzz targets call. Each parses its input like one part of the service does, and panics if a
//! property does not hold. Compiled for `fuzz/`, and for the test below, which replays the committed corpus.

use serde_json::{Map, Value};

pub use crate::http::fuzzing::{bodies, cursor};
use crate::session::{SessionId, merge_patch};
pub use crate::store::fuzzing::{keys, reply};

/// Parsing accepts exactly the hyphenated form of a session id, and an id has one text form.
pub fn session_id(input: &str) {
    let is_id = input.len() == 36
        && input.bytes().enumerate().all(|(place, byte)| match place {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    let parsed = input.parse::<SessionId>();
    assert_eq!(parsed.is_ok(), is_id, "{input:?}");
    if let Ok(id) = parsed {
        let text = id.to_string();
        assert_eq!(text, input.to_ascii_lowercase());
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(SessionId::from_bytes(*id.as_bytes()), id);
        assert_eq!(id.partition().to_string(), text[..4]);
    }
}

/// A merge patch gives the result of the algorithm in RFC 7396, and applying it again changes nothing. The input is two
/// lines of JSON: the target and the patch.
pub fn merge(input: &str) {
    let Some((target, patch)) = input.split_once('\n') else {
        return;
    };
    let (Ok(target), Ok(patch)) = (serde_json::from_str::<Map<_, _>>(target), serde_json::from_str::<Map<_, _>>(patch))
    else {
        return;
    };
    let expected = rfc_merge_patch(Value::Object(target.clone()), &Value::Object(patch.clone()));
    let mut merged = target;
    merge_patch(&mut merged, patch.clone());
    assert_eq!(Value::Object(merged.clone()), expected);
    merge_patch(&mut merged, patch);
    assert_eq!(Value::Object(merged), expected);
}

/// `MergePatch(Target, Patch)`, a literal transcription of RFC 7396, section 2.
fn rfc_merge_patch(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch.clone();
    };
    let mut target = match target {
        Value::Object(target) => target,
        _ => Map::new(),
    };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            let member = target.remove(name).unwrap_or(Value::Null);
            target.insert(name.clone(), rfc_merge_patch(member, value));
        }
    }
    Value::Object(target)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn replay(target: &str, run: fn(&str)) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut count = 0;
        for entry in fs::read_dir(folder).expect("a corpus") {
            let input = fs::read(entry.expect("an entry").path()).expect("an input");
            if let Ok(input) = String::from_utf8(input) {
                run(&input);
                count += 1;
            }
        }
        assert!(count > 0, "the corpus of {target} is empty");
    }

    #[test]
    fn committed_corpus_passes_the_fuzz_targets() {
        replay("session_id", session_id);
        replay("keys", keys);
        replay("cursor", cursor);
        replay("bodies", |input| drop(bodies(input.as_bytes())));
        replay("merge", merge);
        replay("reply", reply);
    }
}
