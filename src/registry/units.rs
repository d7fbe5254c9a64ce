//! Units used: the rows of `tenant_rls.usage`, read and changed below SQL.
//!
//! # Lock protocol
//!
//! Who changes a row holds the lock of its key, or, for the worker, that of the ledger: two writers of one row meet only when one
//! of them is SQL by hand. Reading takes no lock but that of the table against DROP. The two tables are locked in one order, usage
//! before ledger: against those who attach a gauge ([`lock_usage`]) by whoever is about to have units in flight ([`open_units`])
//! and by the worker, which waits for none of them ([`keep_tables`]).

use std::cell::Cell;

use pgrx::prelude::*;
use pgrx::{Uuid, pg_sys};

use super::cache;
use super::catalog::{FUNCTION_INFO, catalog, table};
use super::scan::{self, Changed, Key, scan, scan_in_order};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::lock::of_transaction;
use crate::shmem;
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

impl Holds {
    /// Whether there are any.
    pub fn any(self) -> bool {
        self.held > 0 || self.due > 0
    }
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

/// Whether any reservation is held.
pub fn any_holds() -> Result<bool> {
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let mut any = false;
    if catalog.reservations_held != pg_sys::InvalidOid {
        scan_in_order(catalog.reservations, catalog.reservations_held, &[], |_| {
            any = true;
            false
        });
    }
    Ok(any)
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

/// Keeps all quota calls away from units until the transaction ends, and waits for those at work.
pub fn lock_usage() -> Result<()> {
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    for table in [catalog.usage, catalog.ledger] {
        // SAFETY: a lock of the transaction.
        of_transaction(|| unsafe { pg_sys::LockRelationOid(table, pg_sys::ShareRowExclusiveLock as i32) });
    }
    Ok(())
}

/// Announces that this transaction will write units: [`lock_usage`] waits for its end. Both tables, in the order in which
/// that takes them.
pub fn open_units() -> Result<()> {
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    for table in [catalog.usage, catalog.ledger] {
        // SAFETY: a lock of the transaction.
        of_transaction(|| unsafe { pg_sys::LockRelationOid(table, pg_sys::RowExclusiveLock as i32) });
    }
    Ok(())
}

/// Adds a row to the ledger.
pub fn add_to_ledger(
    id: TenantId,
    resource: &str,
    period_start: i64,
    resets_at: i64,
    units: i64,
) -> Result<()> {
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let some = |datum: Option<pg_sys::Datum>| datum.unwrap_or(pg_sys::Datum::null());
    let mut values = [
        some(Uuid::from_bytes(*id.as_bytes()).into_datum()),
        some(resource.into_datum()),
        pg_sys::Datum::from(period_start),
        pg_sys::Datum::from(resets_at),
        pg_sys::Datum::from(units),
    ];
    scan::add(catalog.ledger, &mut values);
    Ok(())
}

/// Whether the ledger may have rows. Without shared memory none are written to it, so what was empty once stays empty.
pub fn ledger_has_rows() -> Result<bool> {
    static EMPTY: Backend<Cell<pg_sys::Oid>> = Backend::new(Cell::new(pg_sys::InvalidOid));
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    if catalog.ledger == pg_sys::InvalidOid || EMPTY.get() == catalog.ledger {
        return Ok(false);
    }
    let mut rows = 0;
    scan(catalog.ledger, pg_sys::InvalidOid, &[], |_| rows += 1);
    if rows == 0 && !shmem::is_available() {
        EMPTY.set(catalog.ledger);
    }
    Ok(rows > 0)
}

/// Keeps the tables that a worker uses from being dropped until its transaction ends. `false`, and nothing is kept, if the
/// extension is not there, or somebody has one of them for himself: a worker waits for nobody.
pub fn keep_tables() -> bool {
    super::accept_invalidations();
    let Some(catalog) = catalog() else { return false };
    let read = [
        catalog.tenants,
        catalog.resources,
        catalog.plan_limits,
        catalog.overrides,
        catalog.billing_changes,
        catalog.attachments,
    ];
    // A gauge that is being attached keeps the first two from writers.
    let written = [catalog.usage, catalog.ledger, catalog.leases];
    let keep = |tables: &[pg_sys::Oid], mode: u32| {
        // SAFETY: a lock of the transaction; a table that is gone by then is found out by the server's own check.
        let keep = |table| unsafe { pg_sys::ConditionalLockRelationOid(table, mode as i32) };
        tables.iter().all(|table| *table != pg_sys::InvalidOid && keep(*table))
    };
    keep(&read, pg_sys::AccessShareLock) && keep(&written, pg_sys::RowExclusiveLock) && super::installed()
}

/// Whether units are being written by us, who keep shared memory in step.
static OWN_WRITE: Backend<Cell<bool>> = Backend::new(Cell::new(false));

/// Whether this transaction has changed units by SQL on our tables.
static CHANGED: Backend<Cell<bool>> = Backend::new(Cell::new(false));

/// A statement of ours on the tables of units, until dropped.
pub struct OwnWrite(bool);

impl OwnWrite {
    /// Begins it.
    pub fn begin() -> OwnWrite {
        OwnWrite(OWN_WRITE.replace(true))
    }
}

impl Drop for OwnWrite {
    fn drop(&mut self) {
        OWN_WRITE.set(self.0);
    }
}

/// Trigger on the tables of units: what SQL by hand, a purge or a restore has changed is looked up again.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn units_changed(_fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    if !OWN_WRITE.get()
        && let Some(database) = shmem::database()
    {
        // At once for this session, and for the others when it has ended.
        database.units_changed();
        CHANGED.set(true);
    }
    pg_sys::Datum::null()
}

/// Version record of [`units_changed`].
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_units_changed() -> *const pg_sys::Pg_finfo_record {
    &FUNCTION_INFO
}

/// Whether this transaction has changed units by SQL on our tables.
pub fn are_changed() -> bool {
    CHANGED.get()
}

/// To be called when a transaction has ended. Moves atomics only.
pub fn transaction_ends(event: pg_sys::XactEvent::Type) {
    use pg_sys::XactEvent::*;
    if matches!(event, XACT_EVENT_COMMIT | XACT_EVENT_ABORT)
        && CHANGED.replace(false)
        && let Some(database) = shmem::database()
    {
        database.units_changed();
    }
}
