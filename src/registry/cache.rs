//! The rows of tenants' caches, read below SQL.

use std::ops::AddAssign;

use pgrx::pg_sys;

use super::catalog::catalog;
use super::scan::{self, Key, Row, scan, scan_in_order};
use crate::error::{Error, Result};
use crate::tenant::TenantId;

/// The resource whose limit is the budget of a cache.
pub const RESOURCE: &str = "cache_bytes";

/// What the entries of a tenant add up to.
#[derive(Clone, Copy, Default)]
pub struct Totals {
    /// Entries, expired ones that are still there included.
    pub key_count: i64,
    /// Their bytes.
    pub size: i64,
    /// Keys that were asked for and there.
    pub hits: i64,
    /// Keys that were asked for and not there.
    pub misses: i64,
    /// Entries that went because the budget was used up.
    pub evictions: i64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.key_count += other.key_count;
        self.size += other.size;
        self.hits += other.hits;
        self.misses += other.misses;
        self.evictions += other.evictions;
    }
}

/// Whether there are caches here: not on a standby, which has no unlogged tables.
pub fn is_here() -> bool {
    // SAFETY: reads the state of the server.
    unsafe { !pg_sys::RecoveryInProgress() }
}

/// The value of a key that has not expired at `now` (microseconds since 2000-01-01), in the current memory context.
pub fn value(id: TenantId, key: &str, now: i64) -> Result<Option<pg_sys::Datum>> {
    use scan::cache as column;
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let mut value = None;
    // An older SQL version has no cache.
    if catalog.cache_parts_pkey == pg_sys::InvalidOid {
        return Ok(None);
    }
    let keys = [Key::Uuid(column::TENANT_ID, id), Key::Text(column::KEY, key)];
    scan(catalog.cache, catalog.cache_pkey, &keys, |row| {
        if row.instant(column::EXPIRES_AT).is_some_and(|expires_at| now < expires_at) {
            value = row.server_json(column::VALUE);
        }
    });
    Ok(value)
}

/// What the entries of a tenant add up to, as it is committed now, this transaction's own included.
pub fn totals(id: TenantId) -> Result<Totals> {
    use scan::cache_parts as column;
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let mut totals = Totals::default();
    if !is_here() || catalog.cache_parts_pkey == pg_sys::InvalidOid {
        return Ok(totals);
    }
    let number = |row: &Row, column| row.get::<i64>(column).unwrap_or_default();
    scan(catalog.cache_parts, catalog.cache_parts_pkey, &[Key::Uuid(column::TENANT_ID, id)], |row| {
        totals += Totals {
            key_count: number(row, column::KEY_COUNT),
            size: number(row, column::SIZE),
            hits: number(row, column::HITS),
            misses: number(row, column::MISSES),
            evictions: number(row, column::EVICTIONS),
        };
    });
    Ok(totals)
}

/// An entry, without its value.
pub struct Entry {
    /// The key.
    pub key: String,
    /// When it was set, in microseconds since 2000-01-01.
    pub set_at: i64,
    /// Until when it holds.
    pub expires_at: i64,
    /// Its bytes.
    pub size: i64,
}

/// The order in which entries are visited.
#[derive(Clone, Copy)]
pub enum Order {
    /// The oldest first.
    Age,
    /// Those that expire first.
    Expiry,
}

/// Calls `each` for the entries of a tenant until it answers false. Entries that another transaction is changing are
/// left out.
pub fn entries(id: TenantId, order: Order, mut each: impl FnMut(Entry) -> bool) -> Result<()> {
    use scan::cache as column;
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let index = match order {
        Order::Age => catalog.cache_age,
        Order::Expiry => catalog.cache_expiry,
    };
    scan_in_order(catalog.cache, index, &[Key::Uuid(column::TENANT_ID, id)], |row| {
        row.writer().is_some()
            || each(Entry {
                key: row.get(column::KEY).unwrap_or_default(),
                set_at: row.instant(column::SET_AT).unwrap_or_default(),
                expires_at: row.instant(column::EXPIRES_AT).unwrap_or_default(),
                size: row.get(column::SIZE).unwrap_or_default(),
            })
    });
    Ok(())
}
