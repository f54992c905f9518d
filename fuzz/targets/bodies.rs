//! What the service accepts as a body is what its document says.
#![no_main]

use std::sync::LazyLock;

use jsonschema::Validator;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// In the order of what `bodies` returns.
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
