//! JSON merge patches.

/// Applies a JSON merge patch (RFC 7396, section 2) to the members of an object.
pub fn merge_patch(
    target: &mut serde_json::Map<String, serde_json::Value>,
    patch: serde_json::Map<String, serde_json::Value>,
) {
    for (name, value) in patch {
        match value {
            serde_json::Value::Null => {
                target.shift_remove(&name);
            }
            serde_json::Value::Object(inner) => {
                let member = target.entry(name).or_insert(serde_json::Value::Null);
                if !member.is_object() {
                    *member = serde_json::Value::Object(serde_json::Map::new());
                }
                if let serde_json::Value::Object(member) = member {
                    merge_patch(member, inner);
                }
            }
            value => {
                target.insert(name, value);
            }
        }
    }
}

/// Metadata with a JSON merge patch applied. A patch of `null` empties it.
#[must_use]
pub fn patched_metadata(
    metadata: &serde_json::Map<String, serde_json::Value>,
    patch: &serde_json::Value,
) -> serde_json::Map<String, serde_json::Value> {
    let serde_json::Value::Object(patch) = patch else {
        return serde_json::Map::new();
    };
    let mut patched = metadata.clone();
    merge_patch(&mut patched, patch.clone());
    patched
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_patch_passes_the_test_cases_of_rfc_7396() {
        // RFC 7396, appendix A: the cases in which target and patch are objects.
        let cases = [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ];
        for (target, patch, expected) in cases {
            let mut merged = serde_json::from_str(target).expect("an object");
            merge_patch(&mut merged, serde_json::from_str(patch).expect("an object"));
            assert_eq!(serde_json::to_string(&merged).expect("JSON"), expected, "{target} with {patch}");
        }
    }
}
