//! Events: a tenant has used 80 or 100 per cent of a limit. One row for each period and threshold.
//!
//! In mode strict the row belongs to the transaction whose units have crossed the threshold, and goes with its rollback. That
//! transaction holds the lock of the key, so nobody waits for the row who does not wait for the units. In the other modes a
//! worker writes it, when it folds what was committed.
//!
//! # Lock protocol
//!
//! Rows of one key have one writer at a time: the holder of its lock in mode strict, the worker in the others. The worker shares
//! the lock of the tenant, if it is free, until its transaction ends, which is after a few tenants. What sends events takes
//! rows that nobody has locked.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::decision::Limit;
use super::ledger::Folded;
use super::period;
use super::threshold::crossed;
use crate::clock;
use crate::context::fence;
use crate::error::{Error, Result};
use crate::plan::{CachedPlan, as_owner};
use crate::registry::{self, admin, units};
use crate::shmem;
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

/// Sends a NOTIFY for events that were not sent yet, of the last hour: the payload is the row as JSON. How many there were.
pub fn notify(batch: i64) -> Result<u64> {
    static NOTIFY: CachedPlan = CachedPlan::new(
        c"WITH sent AS ( \
             UPDATE tenant_rls.quota_events AS e SET notified = true \
             WHERE e.ctid OPERATOR(pg_catalog.=) ANY (ARRAY( \
                SELECT s.ctid FROM tenant_rls.quota_events AS s WHERE NOT s.notified \
                AND s.occurred_at OPERATOR(pg_catalog.>) \
                    (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) '1 hour'::pg_catalog.interval) \
                LIMIT $1 FOR UPDATE SKIP LOCKED)) \
             RETURNING e.tenant_id, e.resource, e.period_start, e.threshold, e.used, e.quota_limit, e.occurred_at) \
           SELECT pg_catalog.pg_notify('tenant_rls', pg_catalog.to_jsonb(s)::pg_catalog.text) FROM sent AS s",
        &[pg_sys::INT8OID],
    );
    as_owner(|| NOTIFY.execute(&[batch.into_datum()]))
}

/// Writes the events of keys that a worker has folded, and says how much of which it knows now. Holds a lock for each
/// tenant that has any: see [`super::MOST_TENANTS`].
pub fn record_folded(folded: &[Folded]) -> Result<Vec<(shmem::Key, i64)>> {
    registry::accept_invalidations();
    let mut known = Vec::with_capacity(folded.len());
    for key in folded {
        let used = key.most_used();
        known.extend(key.name().map(|name| (name, used)));
        let Some(tenant) = registry::tenant(key.tenant)? else { continue };
        let limit = match registry::quota(&tenant, &key.resource) {
            Ok(quota) => quota.limit(period::from_postgres(clock::now())).0,
            Err(Error::NoLimit { .. } | Error::Unknown { .. }) => continue,
            Err(error) => return Err(error),
        };
        // Of a tenant that is fenced, or about to be purged, nothing is written; the next look makes up for it. Most keys
        // have nothing to tell, and take no lock.
        if crossed(limit, None, used).next().is_some() {
            if fence::try_enter(&tenant) {
                record(key.tenant, &key.resource, key.period_start, None, used, limit)?;
            } else {
                known.pop();
            }
        }
    }
    Ok(known)
}
