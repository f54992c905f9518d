//! Reads JSON bodies strictly, and reports the problems of all fields together.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};

use super::error::{ApiError, Code, FieldProblem, shortened};
use crate::session::{Identifier, TITLE_CHARS_MAX};

/// The largest integer up to which a JavaScript number represents every integer exactly.
pub(super) const SAFE_INTEGER_MAX: u64 = (1 << 53) - 1;

/// The error for a required field without a value after [`Fields::finish`]. Cannot happen: `finish` returns an error if
/// a required field is missing.
pub(super) fn unreported() -> ApiError {
    ApiError::internal("a required field is missing but was not reported")
}

/// Parses a body. Rejects duplicate keys of an object and [`RAW_VALUE_KEY`], at any depth, and nesting deeper than 127
/// levels.
///
/// # Errors
/// A `400` that says where the text stops being JSON.
pub(super) fn parse(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice::<Strict>(body)
        .map(|strict| strict.0)
        .map_err(|error| ApiError::new(Code::InvalidRequest, format!("The body is not valid JSON: {error}")))
}

/// The key by which `serde_json` marks a `RawValue`. An object with it would not be read back as it was stored.
const RAW_VALUE_KEY: &str = "$serde_json::private::RawValue";

/// A JSON value without duplicate keys, and without [`RAW_VALUE_KEY`].
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            if key == RAW_VALUE_KEY {
                return Err(A::Error::custom(format!("reserved key {key:?}")));
            }
            match object.entry(key) {
                Entry::Vacant(vacant) => {
                    let Strict(value) = members.next_value()?;
                    vacant.insert(value);
                }
                Entry::Occupied(occupied) => {
                    return Err(A::Error::custom(format!("duplicate key {:?}", shortened(occupied.key()))));
                }
            }
        }
        Ok(Value::Object(object))
    }
}

/// Capacity for the names of an object's known members. No object has more.
const KNOWN: usize = 8;

/// The members of an object, taken one by one. Collects problems, which [`Fields::finish`] reports together.
pub(super) struct Fields {
    /// The prefix of field names in problems: empty, or for example `[2].`.
    path: String,
    /// There are few, so a linear search is faster than a map.
    members: Vec<(String, Value)>,
    known: Vec<&'static str>,
    problems: Vec<FieldProblem>,
}

impl Fields {
    /// The members of the body, which must be an object.
    pub(super) fn of_body(body: Value) -> Result<Self, ApiError> {
        match body {
            Value::Object(members) => Ok(Self::new(String::new(), members)),
            _ => Err(ApiError::new(Code::InvalidRequest, "The body must be a JSON object")),
        }
    }

    pub(super) fn new(path: String, members: Map<String, Value>) -> Self {
        Self { path, members: members.into_iter().collect(), known: Vec::with_capacity(KNOWN), problems: Vec::new() }
    }

    pub(super) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        let index = self.members.iter().position(|(member, _)| member == name)?;
        Some(self.members.remove(index).1)
    }

    pub(super) fn problem<T>(&mut self, name: &str, message: impl Into<String>) -> Option<T> {
        let field = format!("{}{}", self.path, shortened(name));
        self.problems.push(FieldProblem { field, message: message.into() });
        None
    }

    pub(super) fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Self, &'static str) -> Option<T>,
    ) -> Option<T> {
        if self.members.iter().any(|(member, _)| member == name) {
            return read(self, name);
        }
        self.known.push(name);
        self.problem(name, "is required")
    }

    pub(super) fn identifier(&mut self, name: &'static str) -> Option<Identifier> {
        match self.take(name)? {
            Value::String(text) => match Identifier::new(text) {
                Ok(identifier) => Some(identifier),
                Err(message) => self.problem(name, message),
            },
            _ => self.problem(name, "must be a string"),
        }
    }

    /// A title; null stands for no title.
    #[expect(clippy::option_option, reason = "absent, null and a string are three different values")]
    pub(super) fn title(&mut self, name: &'static str) -> Option<Option<String>> {
        match self.take(name)? {
            Value::Null => Some(None),
            Value::String(text) if text.chars().count() <= TITLE_CHARS_MAX => Some(Some(text)),
            Value::String(_) => self.problem(name, format!("must have at most {TITLE_CHARS_MAX} characters")),
            _ => self.problem(name, "must be a string or null"),
        }
    }

    /// A JSON object, as the text that `text_of` gives it, which must have at most `bytes_max` bytes.
    pub(super) fn object_text(
        &mut self,
        name: &'static str,
        text_of: impl FnOnce(&Value) -> String,
        bytes_max: usize,
    ) -> Option<String> {
        match self.take(name)? {
            value @ Value::Object(_) => {
                let text = text_of(&value);
                if text.len() > bytes_max {
                    return self.problem(name, format!("must have at most {bytes_max} bytes as JSON"));
                }
                Some(text)
            }
            _ => self.problem(name, "must be an object"),
        }
    }

    /// A merge patch of metadata: an object or null.
    pub(super) fn metadata_patch(&mut self, name: &'static str) -> Option<Value> {
        match self.take(name)? {
            patch @ (Value::Object(_) | Value::Null) => Some(patch),
            _ => self.problem(name, "must be an object or null"),
        }
    }

    /// A whole number from `min` to `max`, which JSON may write with a fraction of zero.
    pub(super) fn number(&mut self, name: &'static str, min: u64, max: u64) -> Option<u64> {
        let value = self.take(name)?;
        let whole = |float: &f64| float.fract() == 0.0;
        let number = value.as_u64().or_else(|| value.as_f64().filter(whole)?.to_string().parse().ok());
        match number {
            Some(number) if (min..=max).contains(&number) => Some(number),
            _ => self.problem(name, format!("must be a whole number from {min} to {max}")),
        }
    }

    /// One of `words`.
    pub(super) fn word<T>(
        &mut self,
        name: &'static str,
        words: &[&str],
        from_word: fn(&str) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(name)?;
        match value.as_str().and_then(from_word) {
            Some(word) => Some(word),
            None => self.problem(name, format!("must be one of {}", words.join(", "))),
        }
    }

    /// Adds a problem for every member that was not taken, and returns all problems.
    pub(super) fn into_problems(mut self) -> Vec<FieldProblem> {
        for (name, _) in std::mem::take(&mut self.members) {
            let message = format!("is unknown; the known members are {}", self.known.join(", "));
            self.problem::<()>(&name, message);
        }
        self.problems
    }

    /// Returns an error with all problems, if there are any.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        let problems = self.into_problems();
        if problems.is_empty() { Ok(()) } else { Err(ApiError::fields(problems)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_duplicate_keys_and_deep_nesting() {
        assert!(parse(br#"{"a":1,"b":[{"a":1}]}"#).is_ok());
        for body in
            [r#"{"a":1,"a":1}"#, r#"{"b":[{"a":1,"\u0061":2}]}"#, &"[".repeat(200), "{\"a\":1e400}", "", "{} {}"]
        {
            assert!(parse(body.as_bytes()).is_err(), "{body}");
        }
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(127).as_bytes()).is_ok());
        assert!(parse(nested(200).as_bytes()).is_err());
    }

    #[test]
    fn rejects_the_key_that_serde_json_reads_as_a_raw_value() {
        for body in [
            r#"{"$serde_json::private::RawValue":"x y"}"#,
            r#"{"\u0024serde_json::private::RawValue":"1"}"#,
            r#"[{"a":{"b":1,"$serde_json::private::RawValue":null}}]"#,
        ] {
            assert!(parse(body.as_bytes()).is_err(), "{body}");
        }
        // serde_json reads every other key of its own as a plain one.
        let body = r#"{"$serde_json::private::Number":"1","$serde_json::private::RawValue2":"1","a":{"$":1}}"#;
        let parsed = parse(body.as_bytes()).expect("JSON");
        assert_eq!(serde_json::from_str::<Value>(body).expect("JSON"), parsed);
    }

    #[test]
    fn parsed_values_serialise_to_the_same_text() {
        let body = r#"{"z":1,"a":[1.5,-3,18446744073709551615,null,true,"é\u0000💬"],"m":{}}"#;
        assert_eq!(parse(body.as_bytes()).expect("JSON").to_string(), body);
    }
}
