//! Features, and the values that plans and everybody have of them.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use pgrx::{AnyNumeric, pg_sys};

use super::Kept;
use super::scan::{self, Key, Row, scan};
use crate::error::Result;
use crate::feature::bucket::Share;
use crate::feature::resolution::Rule;
use crate::json::Json;

/// A value of a feature.
pub struct Value {
    /// As it was set.
    pub json: Json,
    /// The value of one that is a boolean.
    pub boolean: Option<bool>,
}

impl Value {
    fn of(json: Json) -> Value {
        let boolean = match json.text().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        };
        Value { json, boolean }
    }
}

/// A feature.
pub struct Feature {
    /// What holds where nothing else does.
    pub default: Value,
    /// What its buckets are made with.
    pub salt: String,
    /// Whether values other than the default count.
    pub is_on: bool,
    /// The value for everybody.
    pub global: Option<Rule<Value>>,
    /// The values of plans.
    pub plans: HashMap<Rc<str>, Rule<Value>>,
}

/// All features, by name.
pub type Features = BTreeMap<Rc<str>, Feature>;

/// The features that are defined.
pub fn features() -> Result<Rc<Features>> {
    static FEATURES: Kept<Features> = Kept::new();
    FEATURES.get(|catalog| {
        use scan::{feature_values, features};
        let mut found = Features::new();
        // An older SQL version has no features.
        if catalog.feature_values_tenant == pg_sys::InvalidOid {
            return found;
        }
        scan(catalog.features, pg_sys::InvalidOid, &[], |row| {
            let Some(default) = row.json(features::DEFAULT_VALUE) else { return };
            let name = row.get::<String>(features::FEATURE).unwrap_or_default();
            let feature = Feature {
                default: Value::of(default),
                salt: row.get(features::SALT).unwrap_or_default(),
                is_on: row.get(features::IS_ON).unwrap_or(true),
                global: None,
                plans: HashMap::new(),
            };
            found.insert(name.into(), feature);
        });
        let key = [Key::Null(feature_values::TENANT_ID)];
        scan(catalog.feature_values, catalog.feature_values_tenant, &key, |row| {
            let Some((name, rule)) = rule(row) else { return };
            let Some(feature) = found.get_mut(&*name) else { return };
            match row.get::<String>(feature_values::PLAN) {
                Some(plan) => _ = feature.plans.insert(plan.into(), rule),
                None => feature.global = Some(rule),
            }
        });
        found
    })
}

/// A row of `tenant_rls.feature_values`: the feature and its rule.
pub(super) fn rule(row: &Row) -> Option<(String, Rule<Value>)> {
    use scan::feature_values as column;
    let rule = Rule {
        value: Value::of(row.json(column::VALUE)?),
        share: share(row, column::ROLLOUT_PERCENT),
        expires_at: row.instant(column::EXPIRES_AT).unwrap_or(i64::MAX),
    };
    Some((row.get(column::FEATURE)?, rule))
}

/// A column of percentages.
pub(super) fn share(row: &Row, column: i16) -> Share {
    let percent = row.get::<AnyNumeric>(column).and_then(|percent| f64::try_from(percent).ok());
    // What cannot be read reaches nobody.
    percent.and_then(Share::of_percent).unwrap_or(Share::NONE)
}
