//! Features: what is on for which tenant, in the words of OpenFeature.
//!
//! A feature has a default; values for one tenant, for a plan, or for everybody go before it, in this order
//! ([`resolution`]). A value may hold for a percentage only: who belongs to it is decided by [`bucket`].

pub mod bucket;
pub mod resolution;

use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use pgrx::{AnyNumeric, Uuid, pg_sys};

use crate::call::{answer, argument, datum_argument, sql_function};
use crate::clock;
use crate::composite::composite;
use crate::context;
use crate::error::{Error, Result, or_raise};
use crate::json::{self, Object, quote};
use crate::plan::{CachedPlan, as_owner};
use crate::registry::admin::check_name;
use crate::registry::features::{Feature, Value, features};
use crate::registry::target::{Target, target};
use crate::registry::{self, Tenant};
use bucket::Share;
use resolution::{Rule, Scope, resolve};

const UUID: pg_sys::Oid = pg_sys::UUIDOID;
const TEXT: pg_sys::Oid = pg_sys::TEXTOID;
const JSONB: pg_sys::Oid = pg_sys::JSONBOID;

/// A value, and why it is the one.
struct Resolved<'a> {
    value: &'a Value,
    /// Whom the value is meant for.
    variant: &'static str,
    /// A reason of the OpenFeature specification, section 1.4.7 of its types.
    reason: &'static str,
}

/// What holds of a feature for a tenant; without one, for those of whom nothing is known.
fn resolved<'a>(
    feature: &'a Feature,
    own: Option<&'a Rule<Value>>,
    tenant: Option<&Tenant>,
    now: i64,
) -> Resolved<'a> {
    if !feature.is_on {
        return Resolved { value: &feature.default, variant: "default", reason: "DISABLED" };
    }
    let plan = tenant.and_then(|tenant| feature.plans.get(&tenant.plan));
    // The last bucket, which only a share of all has.
    let bucket = || tenant.map_or(bucket::BUCKETS - 1, |tenant| bucket::bucket(&feature.salt, tenant.id));
    let Some(hit) = resolve(own, plan, feature.global.as_ref(), now, bucket) else {
        return Resolved { value: &feature.default, variant: "default", reason: "DEFAULT" };
    };
    let reason = match hit.scope {
        _ if hit.split => "SPLIT",
        Scope::Tenant | Scope::Plan => "TARGETING_MATCH",
        Scope::Global => "STATIC",
    };
    Resolved { value: hit.value, variant: hit.scope.as_str(), reason }
}

/// Runs `with` on what holds of a feature for the tenant of the session; `None` for one that is not defined.
fn with_feature<T>(name: Option<&str>, with: impl FnOnce(Option<Resolved>) -> T) -> Result<T> {
    let name = name.ok_or(Error::Null("the feature"))?;
    let tenant = context::required()?;
    let all = features()?;
    let Some(feature) = all.get(name) else { return Ok(with(None)) };
    let own = registry::own(&tenant)?;
    Ok(with(Some(resolved(feature, own.features.get(name), Some(&tenant), clock::now()))))
}

sql_function!(
    /// What holds of a feature, and why.
    tenant_feature,
    pg_finfo_tenant_feature,
    |fcinfo| with_feature(argument(fcinfo, 0), |resolved| {
        let columns = match resolved {
            Some(resolved) => [
                Some(resolved.value.json.datum()),
                resolved.variant.into_datum(),
                resolved.reason.into_datum(),
                None,
            ],
            None => [None, None, "ERROR".into_datum(), "FLAG_NOT_FOUND".into_datum()],
        };
        composite(fcinfo, &columns)
    })
);

sql_function!(
    /// The value of a boolean feature.
    tenant_feature_enabled,
    pg_finfo_tenant_feature_enabled,
    |fcinfo| {
        let value = with_feature(argument(fcinfo, 0), |resolved| resolved.and_then(|r| r.value.boolean))?;
        let value = value.or_else(|| argument(fcinfo, 1));
        Ok(answer(fcinfo, value.into_datum()))
    }
);

sql_function!(
    /// The values of all features.
    tenant_features,
    pg_finfo_tenant_features,
    |_| Ok(json::parse(&values_and_names(Some(&*context::required()?))?.0))
);

/// For a tenant, or for those of whom nothing is known: an object with the values of all features, and an array with
/// the names of those that are `true`, as JSON.
pub fn values_and_names(tenant: Option<&Tenant>) -> Result<(String, String)> {
    let all = features()?;
    let own = tenant.map(registry::own).transpose()?;
    let now = clock::now();
    let (mut values, mut names) = (Object::new(), Vec::new());
    for (name, feature) in &*all {
        let own = own.as_ref().and_then(|own| own.features.get(name));
        let value = resolved(feature, own, tenant, now).value;
        values.push(name, &value.json.text());
        if value.boolean == Some(true) {
            names.push(quote(name));
        }
    }
    Ok((values.finish(), format!("[{}]", names.join(","))))
}

/// The name of a feature that exists.
fn existing(feature: Option<&str>) -> Result<&str> {
    let name = feature.ok_or(Error::Null("the feature"))?;
    registry::accept_invalidations();
    let all = features()?;
    if all.contains_key(name) {
        return Ok(name);
    }
    Err(Error::Unknown {
        what: "feature",
        name: name.into(),
        known: all.keys().map(|name| name.to_string()).collect(),
        hint: "Define it with tenant_feature_define(feature, default_value).",
    })
}

/// A percentage, as a column of ours takes it.
pub fn checked_percent(percent: Option<AnyNumeric>) -> Result<Option<pg_sys::Datum>> {
    let percent = percent.ok_or(Error::Null("the percentage"))?;
    let number = f64::try_from(percent.clone()).ok();
    let share = number.and_then(Share::of_percent).ok_or_else(|| Error::Invalid {
        what: "percentage",
        value: percent.to_string(),
        hint: "Use a number from 0 to 100.".into(),
    })?;
    Ok(AnyNumeric::try_from(share.percent()).ok().into_datum())
}

sql_function!(
    /// Defines a feature.
    tenant_feature_define,
    pg_finfo_tenant_feature_define,
    |fcinfo| {
        static INSERT: CachedPlan = CachedPlan::new(
            c"INSERT INTO tenant_rls.features (feature, default_value, salt) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            &[TEXT, JSONB, TEXT],
        );
        let name = check_name("feature", argument(fcinfo, 0))?;
        let default = datum_argument(fcinfo, 1).ok_or(Error::Null("the default"))?;
        let salt = argument::<&str>(fcinfo, 2).unwrap_or(name);
        if as_owner(|| INSERT.execute(&[name.into_datum(), Some(default), salt.into_datum()]))? == 0 {
            return Err(Error::Exists {
                what: "feature",
                name: name.into(),
                hint: "Set a value for everybody with tenant_feature_set(feature, value).",
            });
        }
        Ok(pg_sys::Datum::null())
    }
);

sql_function!(
    /// Sets a value of a feature.
    tenant_feature_set,
    pg_finfo_tenant_feature_set,
    |fcinfo| {
        static UPSERT: CachedPlan = CachedPlan::new(
            c"INSERT INTO tenant_rls.feature_values (feature, plan, tenant_id, value, rollout_percent, expires_at) \
              VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (feature, plan, tenant_id) DO UPDATE \
              SET value = EXCLUDED.value, rollout_percent = EXCLUDED.rollout_percent, expires_at = EXCLUDED.expires_at",
            &[TEXT, TEXT, UUID, JSONB, pg_sys::NUMERICOID, pg_sys::TIMESTAMPTZOID],
        );
        let name = existing(argument(fcinfo, 0))?;
        let value = datum_argument(fcinfo, 1).ok_or(Error::Null("the value"))?;
        let target = target(argument(fcinfo, 2), argument::<Uuid>(fcinfo, 3), argument(fcinfo, 4))?;
        let percent = argument::<AnyNumeric>(fcinfo, 5);
        if let (Target::Tenant(_), Some(some)) = (target, &percent)
            && *some != AnyNumeric::from(100)
        {
            return Err(Error::Invalid {
                what: "percentage",
                value: some.to_string(),
                hint: "One tenant has a value or not: leave rollout_percent out.".into(),
            });
        }
        let percent = checked_percent(percent)?;
        let expires_at = argument::<TimestampWithTimeZone>(fcinfo, 6).into_datum();
        let arguments =
            [name.into_datum(), target.plan(), target.tenant(), Some(value), percent, expires_at];
        as_owner(|| UPSERT.execute(&arguments))?;
        Ok(pg_sys::Datum::null())
    }
);

#[pg_extern(sql = false)]
fn tenant_feature_unset(
    feature: Option<&str>,
    scope: Option<&str>,
    tenant: Option<Uuid>,
    plan: Option<&str>,
) {
    static DELETE: CachedPlan = CachedPlan::new(
        c"DELETE FROM tenant_rls.feature_values AS v WHERE v.feature OPERATOR(pg_catalog.=) $1 \
          AND (v.plan OPERATOR(pg_catalog.=) $2 OR (v.plan IS NULL AND $2 IS NULL)) \
          AND (v.tenant_id OPERATOR(pg_catalog.=) $3 OR (v.tenant_id IS NULL AND $3 IS NULL))",
        &[TEXT, TEXT, UUID],
    );
    let unset = || {
        let name = existing(feature)?;
        let target = target(scope, tenant, plan)?;
        as_owner(|| DELETE.execute(&[name.into_datum(), target.plan(), target.tenant()]))
    };
    or_raise(unset());
}

#[pg_extern(sql = false)]
fn tenant_feature_switch(feature: Option<&str>, is_on: Option<bool>) {
    static UPDATE: CachedPlan = CachedPlan::new(
        c"UPDATE tenant_rls.features SET is_on = $2 WHERE features.feature OPERATOR(pg_catalog.=) $1",
        &[TEXT, pg_sys::BOOLOID],
    );
    let switch = || {
        let name = existing(feature)?;
        let is_on = is_on.ok_or(Error::Null("is_on"))?;
        as_owner(|| UPDATE.execute(&[name.into_datum(), is_on.into_datum()]))
    };
    or_raise(switch());
}

#[pg_extern(sql = false)]
fn tenant_feature_drop(feature: Option<&str>) {
    static DELETE: CachedPlan = CachedPlan::new(
        c"DELETE FROM tenant_rls.features AS f WHERE f.feature OPERATOR(pg_catalog.=) $1",
        &[TEXT],
    );
    let drop = || {
        let name = existing(feature)?;
        as_owner(|| DELETE.execute(&[name.into_datum()]))
    };
    or_raise(drop());
}
