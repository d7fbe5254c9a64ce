//! Units used: the rows of `tenant_rls.usage`, read and changed below SQL.

use pgrx::pg_sys;

use super::cache;
use super::catalog::{catalog, table};
use super::scan::{self, Changed, Key, scan};
use crate::error::{Error, Result};
use crate::tenant::TenantId;

/// The committed units of a tenant and resource in the period that starts then (microseconds since
/// 2000-01-01), this transaction's own included; `None` before the first.
pub fn used(id: TenantId, resource: &str, period_start: i64) -> Result<Option<i64>> {
    if resource == cache::RESOURCE {
        return Ok(Some(cache::totals(id)?.size));
    }
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let mut used = None;
    let keys = usage_key(id, resource, period_start);
    scan(catalog.usage, catalog.usage_pkey, &keys, |row| used = row.get::<i64>(scan::usage::USED));
    Ok(used)
}

/// As [`used`], and the transaction that is changing them, if there is one.
pub fn used_and_writer(
    id: TenantId,
    resource: &str,
    period_start: i64,
) -> Result<(i64, Option<pg_sys::TransactionId>)> {
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let mut found = (0, None);
    let keys = usage_key(id, resource, period_start);
    scan(catalog.usage, catalog.usage_pkey, &keys, |row| {
        found = (row.get::<i64>(scan::usage::USED).unwrap_or_default(), row.writer());
    });
    Ok(found)
}

/// Changes those units to what `change` makes of them; `None` leaves them. The caller holds the lock of the key.
pub fn change_used(
    id: TenantId,
    resource: &str,
    period_start: i64,
    change: impl FnMut(i64) -> Option<i64>,
) -> Result<Changed> {
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let keys = usage_key(id, resource, period_start);
    Ok(scan::change(catalog.usage, catalog.usage_pkey, &keys, scan::usage::USED, change))
}

fn usage_key(id: TenantId, resource: &str, period_start: i64) -> [Key<'_>; 3] {
    [
        Key::Uuid(scan::usage::TENANT_ID, id),
        Key::Text(scan::usage::RESOURCE, resource),
        Key::Instant(scan::usage::PERIOD_START, period_start),
    ]
}

/// The thresholds of that key that have an event, as they are committed now. `None` if the SQL version is older than
/// events.
pub fn known_thresholds(id: TenantId, resource: &str, period_start: i64) -> Result<Option<Vec<i16>>> {
    let (events, pkey) = (table("quota_events"), table("quota_events_pkey"));
    if events == pg_sys::InvalidOid || pkey == pg_sys::InvalidOid {
        return Ok(None);
    }
    let mut known = Vec::new();
    scan(events, pkey, &usage_key(id, resource, period_start), |row| {
        known.extend(row.get::<i16>(scan::quota_events::THRESHOLD));
    });
    Ok(Some(known))
}

/// Keeps all quota calls away from the table of units until the transaction ends, and waits for those at work.
pub fn lock_usage() -> Result<()> {
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    // SAFETY: a lock of the transaction.
    unsafe { pg_sys::LockRelationOid(catalog.usage, pg_sys::ShareRowExclusiveLock as i32) };
    Ok(())
}
