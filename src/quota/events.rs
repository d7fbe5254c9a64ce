//! Events: a tenant has used 80 or 100 per cent of a limit. One row for each period and threshold.
//!
//! The row belongs to the transaction whose units have crossed the threshold, and goes with its rollback. In mode
//! strict that transaction holds the lock of the key, so nobody waits for the row who does not wait for the units.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::decision::Limit;
use super::threshold::crossed;
use crate::error::Result;
use crate::plan::{CachedPlan, as_owner};
use crate::registry::{admin, units};
use crate::tenant::TenantId;

/// Writes the events of a tenant and resource in the period that starts then (microseconds since 2000-01-01), whose
/// units were `before` and are `used` now. Who knows only what is used leaves `before` out: what was written before is
/// not written again.
pub fn record(
    tenant: TenantId,
    resource: &str,
    period_start: i64,
    before: Option<i64>,
    used: i64,
    limit: Limit,
) -> Result<()> {
    static INSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.quota_events (tenant_id, resource, period_start, threshold, used, quota_limit) \
          VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        &[
            pg_sys::UUIDOID,
            pg_sys::TEXTOID,
            pg_sys::TIMESTAMPTZOID,
            pg_sys::INT2OID,
            pg_sys::INT8OID,
            pg_sys::INT8OID,
        ],
    );
    let mut thresholds = crossed(limit, before, used).peekable();
    if thresholds.peek().is_none() {
        return Ok(());
    }
    // ON CONFLICT raises 40001 for a row that the snapshot of the transaction does not see; this look sees it.
    let Some(known) = units::known_thresholds(tenant, resource, period_start)? else { return Ok(()) };
    for threshold in thresholds.filter(|threshold| !known.contains(threshold)) {
        let arguments = [
            admin::datum(tenant),
            resource.into_datum(),
            period_start.into_datum(),
            threshold.into_datum(),
            used.into_datum(),
            limit.into_datum(),
        ];
        as_owner(|| INSERT.execute(&arguments))?;
    }
    Ok(())
}
