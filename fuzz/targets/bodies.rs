//! Checks that the service accepts exactly the request bodies that its OpenAPI document allows.
#![no_main]

use std::sync::LazyLock;

use jsonschema::Validator;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use serde_json::{Value, json};

/// The schemas, in the order of the results of `sessiond::fuzzing::bodies`.
const SCHEMAS: [&str; 3] = ["GetOrCreateSession", "UpdateSession", "AppendMessages"];

static VALIDATORS: LazyLock<[Validator; 3]> = LazyLock::new(|| {
    let document = serde_json::to_value(sessiond::http::document()).expect("JSON");
    SCHEMAS.map(|name| {
        let schema = json!({"$ref": format!("#/components/schemas/{name}"), "components": document["components"]});
        jsonschema::draft202012::new(&schema).expect("a schema")
    })
});

fuzz_target!(|input: &[u8]| {
    if let Some((body, accepted)) = sessiond::fuzzing::bodies(input) {
        let documented = VALIDATORS.each_ref().map(|validator| validator.is_valid(&body));
        assert_eq!(accepted, documented, "{SCHEMAS:?}: {}", Value::to_string(&body));
    }
});

// Half of the mutations replace one JSON value in the body: byte mutations rarely produce another valid value.
fuzz_mutator!(|data: &mut [u8], size: usize, size_max: usize, seed: u32| {
    let changed = seed.is_multiple_of(2).then(|| replace_one_value(&data[..size], seed / 2)).flatten();
    match changed {
        Some(changed) if changed.len() <= size_max => {
            data[..changed.len()].copy_from_slice(&changed);
            changed.len()
        }
        _ => fuzzer_mutate(data, size, size_max),
    }
});

fn replace_one_value(text: &[u8], seed: u32) -> Option<Vec<u8>> {
    let mut body = serde_json::from_slice::<Value>(text).ok()?;
    let mut pointers = Vec::new();
    add_pointers(&body, "", &mut pointers);
    let long = ["x".repeat(128), "x".repeat(129), "é".repeat(200), "x".repeat(201)].map(Value::from);
    let words = ["", ".", "..", "\u{7f}"].map(Value::from);
    let others = [json!(null), json!(true), json!(-1.5), json!([]), json!({}), json!([null])];
    let values = [&long[..], &words, &others].concat();
    let seed = usize::try_from(seed).ok()?;
    let (pointer, value) = (&pointers[seed % pointers.len()], &values[seed / pointers.len() % values.len()]);
    *body.pointer_mut(pointer)? = value.clone();
    serde_json::to_vec(&body).ok()
}

/// Adds the JSON pointers (RFC 6901) of a value and of every value inside it.
fn add_pointers(value: &Value, pointer: &str, pointers: &mut Vec<String>) {
    pointers.push(pointer.to_owned());
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                add_pointers(item, &format!("{pointer}/{index}"), pointers);
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                let name = name.replace('~', "~0").replace('/', "~1");
                add_pointers(member, &format!("{pointer}/{name}"), pointers);
            }
        }
        _ => {}
    }
}
