//! Units used: the rows of `tenant_rls.usage`, read and changed below SQL.

use pgrx::pg_sys;

use super::cache;
use super::catalog::catalog;
use super::scan::{self, Changed, Key, scan, scan_in_order};
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

/// Units of a key that reservations hold.
#[derive(Clone, Copy, Default)]
pub struct Holds {
    /// Of reservations that have not expired.
    pub held: i64,
    /// Of those that have, and whose units were not given back yet.
    pub due: i64,
}

/// The units that are held at `now`, both in microseconds since 2000-01-01, as it is committed now, this transaction's
/// own included. What another transaction is just ending counts as held.
pub fn holds(id: TenantId, resource: &str, period_start: i64, now: i64) -> Result<Holds> {
    use scan::reservations as column;
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let mut holds = Holds::default();
    // An older SQL version has no reservations.
    if catalog.reservations_held == pg_sys::InvalidOid {
        return Ok(holds);
    }
    let keys = [
        Key::Uuid(column::TENANT_ID, id),
        Key::Text(column::RESOURCE, resource),
        Key::Instant(column::PERIOD_START, period_start),
    ];
    // The index has no others than those that are held. They were all counted, so their sum is no larger than what is used.
    scan_in_order(catalog.reservations, catalog.reservations_held, &keys, |row| {
        let units = row.get::<i64>(column::UNITS).unwrap_or_default();
        let due = row.instant(column::EXPIRES_AT).is_some_and(|at| at <= now) && row.writer().is_none();
        let sum = if due { &mut holds.due } else { &mut holds.held };
        *sum = sum.saturating_add(units);
        true
    });
    Ok(holds)
}

fn usage_key(id: TenantId, resource: &str, period_start: i64) -> [Key<'_>; 3] {
    [
        Key::Uuid(scan::usage::TENANT_ID, id),
        Key::Text(scan::usage::RESOURCE, resource),
        Key::Instant(scan::usage::PERIOD_START, period_start),
    ]
}

/// Keeps all quota calls away from the table of units until the transaction ends, and waits for those at work.
pub fn lock_usage() -> Result<()> {
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    // SAFETY: a lock of the transaction.
    unsafe { pg_sys::LockRelationOid(catalog.usage, pg_sys::ShareRowExclusiveLock as i32) };
    Ok(())
}
