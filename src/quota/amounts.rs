//! What `tenant_quota_consume_many` and `tenant_plan_impact` are asked for: an object of whole numbers.
//!
//! Pure: JSON in, amounts or limits by resource out.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::decision::Limit;

/// Limits by resource.
pub type Limits = BTreeMap<String, Limit>;

/// Why the JSON is not an object of amounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AmountsError {
    /// The value, or one in it, is of another kind; as JSON.
    Kind(String),
    /// A number below 0.
    Negative(i64),
}

/// Reads the text of `{"resource": units, …}`: units are whole numbers from 0 to what a `bigint` holds, without a fraction or
/// an exponent. In the order of the names, which is the order of the locks.
///
/// # Errors
///
/// [`AmountsError`] for everything else. No amount is left out, rounded or clamped.
pub fn parse(text: &str) -> Result<BTreeMap<String, i64>, AmountsError> {
    object(text)?.into_iter().map(|(resource, amount)| Ok((resource, whole(&amount)?))).collect()
}

/// Reads the text of `{"resource": limit, …}`: as [`parse`], and null is unlimited.
///
/// # Errors
///
/// [`AmountsError`] for everything else.
pub fn parse_limits(text: &str) -> Result<Limits, AmountsError> {
    let limit = |value: Value| if value.is_null() { Ok(None) } else { whole(&value).map(Some) };
    object(text)?.into_iter().map(|(resource, value)| Ok((resource, limit(value)?))).collect()
}

fn object(text: &str) -> Result<Map<String, Value>, AmountsError> {
    // A jsonb may hold numbers beyond those of the parser.
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(AmountsError::Kind(text.into())),
    }
}

fn whole(value: &Value) -> Result<i64, AmountsError> {
    match value.as_i64() {
        Some(amount) if amount >= 0 => Ok(amount),
        Some(amount) => Err(AmountsError::Negative(amount)),
        None => Err(AmountsError::Kind(value.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(text: &str) -> Result<Vec<(String, i64)>, AmountsError> {
        parse(text).map(|amounts| amounts.into_iter().collect())
    }

    #[test]
    fn objects_of_whole_numbers_are_read_in_the_order_of_names() {
        assert_eq!(
            of(r#"{"b": 0, "a": 9223372036854775807}"#),
            Ok(vec![("a".into(), i64::MAX), ("b".into(), 0)])
        );
        assert_eq!(of("{}"), Ok(vec![]));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in ["null", "1", "\"a\"", "[]", "[1]", "true"] {
            assert!(matches!(of(text), Err(AmountsError::Kind(_))), "{text}");
        }
        for value in
            ["null", "1.5", "1e3", "1.0", "\"1\"", "true", "[1]", "{}", "9223372036854775808", "1e400"]
        {
            let text = format!("{{\"a\": 1, \"b\": {value}}}");
            assert!(matches!(of(&text), Err(AmountsError::Kind(_))), "{value}");
        }
        assert_eq!(of(r#"{"a": 1, "b": -1}"#), Err(AmountsError::Negative(-1)));
        assert_eq!(of(r#"{"a": -9223372036854775808}"#), Err(AmountsError::Negative(i64::MIN)));
    }

    #[test]
    fn a_limit_of_null_is_unlimited() {
        let limits =
            parse_limits(r#"{"b": null, "a": 0}"#).map(|limits| limits.into_iter().collect::<Vec<_>>());
        assert_eq!(limits, Ok(vec![("a".into(), Some(0)), ("b".into(), None)]));
        for text in ["null", "[]", r#"{"a": "null"}"#, r#"{"a": 1.5}"#, r#"{"a": 1e400}"#] {
            assert!(matches!(parse_limits(text), Err(AmountsError::Kind(_))), "{text}");
        }
        assert_eq!(parse_limits(r#"{"a": -1}"#), Err(AmountsError::Negative(-1)));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(2, 8, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("\\PC{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn fuzz_json_means_what_it_says_or_is_refused(value in any_json()) {
            match (parse(&value.to_string()), value) {
                (Ok(amounts), Value::Object(object)) => {
                    prop_assert_eq!(amounts.len(), object.len());
                    for (resource, amount) in amounts {
                        prop_assert!(amount >= 0);
                        prop_assert_eq!(object[&resource].to_string(), amount.to_string());
                    }
                }
                (Ok(_), _) => prop_assert!(false, "not an object"),
                (Err(AmountsError::Negative(amount)), Value::Object(object)) => {
                    prop_assert!(amount < 0 && object.values().any(|value| value.as_i64() == Some(amount)));
                }
                (Err(_), _) => {}
            }
        }

        #[test]
        fn fuzz_a_resource_name_stays_as_it_is(
            names in proptest::collection::btree_map("\\PC{0,12}|[\\x00-\\x1f\"'\\\\/]{1,4}", any::<(u32, bool)>(), 0..5),
        ) {
            // As the server prints a jsonb, and as a client may write it.
            let spelled = |name: &str, escaped: bool| match escaped {
                true => name.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect(),
                false => { let json = Value::from(name).to_string(); json[1..json.len() - 1].to_string() }
            };
            let fields = names.iter().map(|(name, (amount, escaped))| format!("\"{}\": {amount}", spelled(name, *escaped)));
            let text = format!("{{{}}}", fields.collect::<Vec<_>>().join(", "));
            let expected = names.into_iter().map(|(name, (amount, _))| (name, i64::from(amount)));
            prop_assert_eq!(of(&text), Ok(expected.collect::<Vec<_>>()));
        }

        #[test]
        fn fuzz_text_of_json_never_panics(text in "[\\[\\]{}\":,0-9a-z.eE+-]{0,40}|\\{(\"[a-c]\":-?[0-9]{1,20}(\\.[0-9]|e[0-9]{1,3})?,?){0,3}\\}") {
            if let Ok(amounts) = parse(&text) {
                prop_assert!(amounts.values().all(|amount| *amount >= 0));
            }
        }
    }
}
