//! Equality of JSON values. A retry may serialize the same content differently.

use serde_json::{Number, Value};

/// 2^127. Every whole floating-point number of a smaller magnitude fits in an `i128`.
const INTEGERS_END: f64 = 170_141_183_460_469_231_731_687_303_715_884_105_728.0;

/// Whether two JSON values are equal at every depth. Numbers are compared by mathematical value (`1`, `1.0` and `10e-1`
/// are equal), objects regardless of the order of their members.
///
/// The compared numbers are the parsed ones: 64-bit integers, or the nearest IEEE 754 double of any other number.
#[must_use]
pub fn same_json(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => same_number(left, right),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same_json(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            let same_member =
                |(name, left): (&String, &Value)| right.get(name).is_some_and(|right| same_json(left, right));
            left.len() == right.len() && left.iter().all(same_member)
        }
        _ => left == right,
    }
}

/// Does not convert integers to `f64`: 9007199254740993 and 9007199254740992.0 differ but have the same nearest double.
fn same_number(left: &Number, right: &Number) -> bool {
    match (integer(left), integer(right)) {
        (Some(left), Some(right)) => left == right,
        (None, None) => left.as_f64().zip(right.as_f64()).is_some_and(|(left, right)| left.total_cmp(&right).is_eq()),
        _ => false,
    }
}

/// The value of a whole number; `None` for any other number.
fn integer(number: &Number) -> Option<i128> {
    if let Some(integer) = number.as_i128() {
        return Some(integer);
    }
    let float = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < INTEGERS_END)?;
    #[expect(clippy::cast_possible_truncation, reason = "the number is whole and in range")]
    Some(float as i128)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    fn same(left: &str, right: &str) -> bool {
        let (left, right) = (parsed(left), parsed(right));
        let same = same_json(&left, &right);
        assert_eq!(same, same_json(&right, &left), "{left} and {right}: not symmetric");
        assert!(same_json(&left, &left) && same_json(&right, &right), "{left} and {right}: not reflexive");
        same
    }

    #[test]
    fn numbers_are_compared_by_value() {
        let equal = [
            ["1", "1.0", "1e0", "10e-1", "0.1e1", "1.000"],
            ["0", "-0", "0.0", "-0.0", "0e5", "-0e-5"],
            ["-7", "-7.0", "-70e-1", "-0.7e1", "-7E0", "-7e+0"],
            ["0.5", "5e-1", "0.50", "50e-2", "0.05e1", "5E-1"],
            ["1000000000000000000000", "1e21", "1e+21", "10e20", "0.1e22", "1000000000000000000000.0"],
            [
                "9007199254740992",
                "9007199254740992.0",
                "9.007199254740992e15",
                "9007199254740992e0",
                "9007199254740992.00",
                "90071992547409920e-1",
            ],
            [
                "18446744073709549568",
                "18446744073709549568.0",
                "1.8446744073709549568e19",
                "18446744073709549568e0",
                "184467440737095495680e-1",
                "18446744073709549568.00",
            ],
        ];
        for texts in equal {
            for (left, right) in texts.iter().flat_map(|left| texts.map(|right| (left, right))) {
                assert!(same(left, right), "{left} and {right}");
                let nested = |number: &str| format!("{{\"a\":[null,{{\"b\":{number}}}],\"c\":{number}}}");
                assert!(same(&nested(left), &nested(right)), "{left} and {right}, nested");
            }
        }
        let different = [
            ("1", "2"),
            ("1", "-1"),
            ("1", "1.5"),
            ("1", "\"1\""),
            ("1", "true"),
            ("0", "null"),
            ("0", "5e-324"),
            ("9007199254740993", "9007199254740992.0"),
            ("9007199254740993", "9007199254740992"),
            ("-9007199254740993", "-9007199254740992.0"),
            ("18446744073709551615", "18446744073709551616"),
            ("18446744073709551615", "18446744073709551616.0"),
            ("9223372036854775807", "9223372036854775808.0"),
            ("-9223372036854775808", "9223372036854775808"),
            ("1e300", "1e301"),
            ("1e300", "-1e300"),
        ];
        for (left, right) in different {
            assert!(!same(left, right), "{left} and {right}");
            assert!(
                !same(&format!("[[{{\"a\":{left}}}]]"), &format!("[[{{\"a\":{right}}}]]")),
                "{left} and {right}, nested"
            );
        }
    }

    #[test]
    fn arrays_and_objects_are_compared_by_content() {
        assert!(same(r#"{"a":1,"b":{"c":[1,2],"d":null}}"#, r#"{"b":{"d":null,"c":[1.0,2e0]},"a":1}"#));
        let different = [
            ("[1,2]", "[2,1]"),
            ("[1]", "[1,1]"),
            ("[]", "{}"),
            ("[null]", "[]"),
            (r#"{"a":1}"#, r#"{"a":1,"b":1}"#),
            (r#"{"a":1}"#, r#"{"b":1}"#),
            (r#"{"a":null}"#, r#"{"b":null}"#),
            (r#"{"a":null}"#, "{}"),
            (r#""a""#, r#""A""#),
            ("false", "null"),
        ];
        for (left, right) in different {
            assert!(!same(left, right), "{left} and {right}");
        }
    }

    /// The exact decimal value of a number, as an independent oracle.
    fn exact(number: &Number) -> String {
        if number.is_f64() {
            // A double has at most 1074 digits after the decimal point.
            let text = format!("{:.1074}", number.as_f64().expect("a double"));
            let text = text.trim_end_matches('0').trim_end_matches('.');
            if text == "-0" { "0".to_owned() } else { text.to_owned() }
        } else {
            number.to_string()
        }
    }

    /// The canonical text of a value: numbers in decimal, members of objects sorted.
    fn canonical(value: &Value) -> String {
        match value {
            Value::Number(number) => exact(number),
            Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
            Value::Object(members) => {
                let mut members: Vec<_> =
                    members.iter().map(|(name, value)| format!("{name:?}:{}", canonical(value))).collect();
                members.sort();
                format!("{{{}}}", members.join(","))
            }
            other => other.to_string(),
        }
    }

    fn finite() -> impl Strategy<Value = f64> {
        use proptest::num::f64::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
        POSITIVE | NEGATIVE | NORMAL | SUBNORMAL | ZERO
    }

    /// An integer or a double, and a double that is equal to it or close to it.
    fn neighbours() -> impl Strategy<Value = (Value, Value)> {
        let steps = -2_i64..=2;
        let near = |float: f64, steps: i64| {
            (0..steps.abs()).fold(float, |float, _| if steps < 0 { float.next_down() } else { float.next_up() })
        };
        #[expect(clippy::cast_precision_loss, reason = "any double near the integer will do")]
        let pair = prop_oneof![
            (any::<u64>(), steps.clone())
                .prop_map(move |(number, steps)| (json!(number), json!(near(number as f64, steps)))),
            (any::<i64>(), steps.clone())
                .prop_map(move |(number, steps)| (json!(number), json!(near(number as f64, steps)))),
            (0..1_u64 << 54, steps.clone())
                .prop_map(move |(number, steps)| (json!(number), json!(near(number as f64, steps)))),
            (finite(), steps).prop_map(move |(number, steps)| (json!(number), json!(near(number, steps)))),
        ];
        // The neighbour of the largest double is infinity, which JSON cannot represent.
        pair.prop_filter("not a number", |(left, right)| left.is_number() && right.is_number())
    }

    /// Small values, which are often equal to each other.
    fn small() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-1..=1_i64).prop_map(Value::from),
            (-2..=2_i32).prop_map(|halves| json!(f64::from(halves) / 2.0)),
            "[ab]?".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::vec(("[ab]", inner), 0..3).prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    /// The same value, serialized differently.
    fn rewritten(value: &Value) -> Value {
        match value {
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => parsed(&format!("{integer}.0e0")),
                (None, Some(float)) if float.fract() == 0.0 => parsed(&format!("{float:.0}")),
                _ => value.clone(),
            },
            Value::Array(items) => items.iter().map(rewritten).collect(),
            Value::Object(members) => {
                members.iter().rev().map(|(name, value)| (name.clone(), rewritten(value))).collect()
            }
            other => other.clone(),
        }
    }

    proptest! {
        #[test]
        fn numbers_are_equal_iff_their_decimals_are((left, right) in neighbours()) {
            prop_assert_eq!(same_json(&left, &right), canonical(&left) == canonical(&right), "{} and {}", left, right);
            prop_assert_eq!(same_json(&right, &left), same_json(&left, &right), "{} and {}", left, right);
        }

        #[test]
        fn values_are_equal_iff_their_canonical_texts_are(left in small(), right in small()) {
            prop_assert_eq!(same_json(&left, &right), canonical(&left) == canonical(&right), "{} and {}", left, right);
        }

        #[test]
        fn serialization_does_not_affect_equality(value in small()) {
            let other = rewritten(&value);
            prop_assert!(same_json(&value, &other) && same_json(&other, &value), "{} and {}", value, other);
        }
    }
}
