//! Settings of tenants: customisation without a fork.
//!
//! A tenant's own are the keys of `tenants.settings`; those of plans and everybody are rows of `tenant_rls.settings`.

use std::collections::BTreeMap;

use pgrx::prelude::*;
use pgrx::{Uuid, pg_sys};

use crate::call::{answer, argument, datum_argument, sql_function};
use crate::context;
use crate::error::{Error, Result, or_raise};
use crate::json::{self, Json, Object};
use crate::plan::{CachedPlan, as_owner};
use crate::registry::admin::check_name;
use crate::registry::settings::settings;
use crate::registry::target::{Target, target};
use crate::registry::{self, Tenant};

const UUID: pg_sys::Oid = pg_sys::UUIDOID;
const TEXT: pg_sys::Oid = pg_sys::TEXTOID;
const JSONB: pg_sys::Oid = pg_sys::JSONBOID;

sql_function!(
    /// What holds of a setting.
    tenant_setting,
    pg_finfo_tenant_setting,
    |fcinfo| {
        let key: Option<&str> = argument(fcinfo, 0);
        let key = key.ok_or(Error::Null("the key"))?;
        let value = value(&*context::required()?, key)?.or_else(|| datum_argument(fcinfo, 1));
        Ok(answer(fcinfo, value))
    }
);

/// The tenant's own, its plan's, or everybody's.
fn value(tenant: &Tenant, key: &str) -> Result<Option<pg_sys::Datum>> {
    let own = registry::own(tenant)?;
    if let Some(value) = own.settings.as_ref().and_then(|settings| settings.field(key)) {
        return Ok(Some(value));
    }
    let all = settings()?;
    let of = |plan| all.get(&plan).and_then(|settings| settings.get(key)).map(Json::to_server);
    Ok(of(Some(tenant.plan.clone())).or_else(|| of(None)))
}

/// All that hold for a tenant, as a JSON object.
pub fn effective(tenant: &Tenant) -> Result<String> {
    let all = settings()?;
    let mut texts = BTreeMap::new();
    for plan in [None, Some(tenant.plan.clone())] {
        let of_plan = all.get(&plan).into_iter().flatten();
        texts.extend(of_plan.map(|(key, value)| (key.to_string(), value.text())));
    }
    let mut object = Object::new();
    for (key, text) in texts {
        object.push(&key, &text);
    }
    let object = object.finish();
    let own = registry::own(tenant)?;
    Ok(own.settings.as_ref().map_or_else(|| object.clone(), |own| json::merge(&object, own)))
}

sql_function!(
    /// Sets a setting.
    tenant_setting_set,
    pg_finfo_tenant_setting_set,
    |fcinfo| {
        static UPSERT: CachedPlan = CachedPlan::new(
            c"INSERT INTO tenant_rls.settings (key, plan, value) VALUES ($1, $2, $3) \
              ON CONFLICT (key, plan) DO UPDATE SET value = EXCLUDED.value",
            &[TEXT, TEXT, JSONB],
        );
        // The whole column may have been set to something that has no keys.
        static UPDATE: CachedPlan = CachedPlan::new(
            c"UPDATE tenant_rls.tenants SET settings = CASE \
                  WHEN pg_catalog.jsonb_typeof(settings) OPERATOR(pg_catalog.=) 'object' \
                  THEN settings ELSE '{}' END OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object($1, $3) \
              WHERE tenants.tenant_id OPERATOR(pg_catalog.=) $2",
            &[TEXT, UUID, JSONB],
        );
        let key = check_name("key", argument(fcinfo, 0))?;
        let value = datum_argument(fcinfo, 1).ok_or(Error::Null("the value"))?;
        let target = target(argument(fcinfo, 2), argument::<Uuid>(fcinfo, 3), argument(fcinfo, 4))?;
        as_owner(|| match target {
            Target::Tenant(_) => UPDATE.execute(&[key.into_datum(), target.tenant(), Some(value)]),
            _ => UPSERT.execute(&[key.into_datum(), target.plan(), Some(value)]),
        })?;
        Ok(pg_sys::Datum::null())
    }
);

#[pg_extern(sql = false)]
fn tenant_setting_unset(key: Option<&str>, scope: Option<&str>, tenant: Option<Uuid>, plan: Option<&str>) {
    static DELETE: CachedPlan = CachedPlan::new(
        c"DELETE FROM tenant_rls.settings AS s \
          WHERE s.key OPERATOR(pg_catalog.=) $1 \
          AND (s.plan OPERATOR(pg_catalog.=) $2 OR (s.plan IS NULL AND $2 IS NULL))",
        &[TEXT, TEXT],
    );
    static UPDATE: CachedPlan = CachedPlan::new(
        c"UPDATE tenant_rls.tenants SET settings = settings OPERATOR(pg_catalog.-) $1 \
          WHERE tenants.tenant_id OPERATOR(pg_catalog.=) $2 \
          AND pg_catalog.jsonb_typeof(settings) OPERATOR(pg_catalog.=) 'object' \
          AND settings OPERATOR(pg_catalog.?) $1",
        &[TEXT, UUID],
    );
    let unset = || {
        let key = check_name("key", key)?;
        let target = target(scope, tenant, plan)?;
        as_owner(|| match target {
            Target::Tenant(_) => UPDATE.execute(&[key.into_datum(), target.tenant()]),
            _ => DELETE.execute(&[key.into_datum(), target.plan()]),
        })
    };
    or_raise(unset());
}
