//! `tenant_plan_impact`: who would be over with other limits of a plan.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::amounts::{self, AmountsError};
use super::decision::Limit;
use super::{Key, peek};
use crate::call::{argument, datum_argument, sql_function};
use crate::composite::Rows;
use crate::error::{Error, Result};
use crate::json;
use crate::plan::{CachedPlan, as_owner};
use crate::registry::admin::{datum, existing_plan};
use crate::registry::{self, Source};
use crate::tenant::TenantId;

sql_function!(
    /// The tenants of a plan that use more than the limits that are asked about.
    tenant_plan_impact,
    pg_finfo_tenant_plan_impact,
    |fcinfo| {
        registry::accept_invalidations();
        let plan = existing_plan(argument(fcinfo, 0))?;
        let limits = checked_limits(datum_argument(fcinfo, 1))?;
        for resource in limits.keys() {
            registry::resource(resource)?;
        }
        let mut rows = Rows::start(fcinfo);
        for id in tenants_of(plan)? {
            pg_sys::check_for_interrupts!();
            for (resource, limit) in &limits {
                if let Some((used, limit)) = over(id, resource, *limit)? {
                    rows.push(&[
                        datum(id),
                        resource.into_datum(),
                        used.into_datum(),
                        limit.into_datum(),
                        (used - limit).into_datum(),
                    ]);
                }
            }
        }
        Ok(pg_sys::Datum::null())
    }
);

/// What the tenant uses, and the limit that this is over: its own, if it has one that wins over the plan.
fn over(id: TenantId, resource: &str, limit: Limit) -> Result<Option<(i64, i64)>> {
    let Some(tenant) = registry::tenant(id)? else { return Ok(None) };
    // As for giving back: the plan need not name the resource yet.
    let key = Key::to_give(tenant, resource)?;
    let limit = if key.source == Source::Override { key.limit } else { limit };
    let used = peek(&key)?.used;
    Ok(limit.filter(|limit| used > *limit).map(|limit| (used, limit)))
}

/// The tenants of a plan, but those that are deleted.
fn tenants_of(plan: &str) -> Result<Vec<TenantId>> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT t.tenant_id FROM tenant_rls.tenants AS t \
          WHERE t.plan OPERATOR(pg_catalog.=) $1 AND t.status OPERATOR(pg_catalog.<>) 'deleted' ORDER BY t.tenant_id",
        &[pg_sys::TEXTOID],
    );
    let mut tenants = Vec::new();
    as_owner(|| {
        SELECT.run(&[plan.into_datum()], |row| {
            tenants.extend(row.get::<pgrx::Uuid>(1).map(|id| TenantId::from_bytes(*id.as_bytes())));
        });
    })?;
    Ok(tenants)
}

/// `{"resource": limit, …}`; null is unlimited.
fn checked_limits(limits: Option<pg_sys::Datum>) -> Result<amounts::Limits> {
    let text = json::text(limits.ok_or(Error::Null("the limits"))?);
    let invalid = |value| {
        Error::Invalid {
        what: "limits",
        value,
        hint: "Use an object of whole numbers from 0 on, or null for unlimited: {\"users\": 5, \"projects\": null}."
            .into(),
    }
    };
    amounts::parse_limits(&text).map_err(|error| match error {
        AmountsError::Negative(limit) => invalid(limit.to_string()),
        AmountsError::Kind(value) => invalid(value),
    })
}
