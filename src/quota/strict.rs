//! Mode strict: one row per tenant, resource and period, changed by one conditional UPDATE.
//!
//! # Lock protocol
//!
//! Whoever changes a key holds its lock, of a kind that no SQL command reaches, until the transaction ends.
//! The lock comes before the row: whoever has it meets no other writer on the row, so an UPDATE that finds no
//! room has locked nothing, and a denied call gives the key lock back at once. (An UPDATE that has waited for
//! a row, and then finds no room, keeps the row locked until the end of its transaction.)
//!
//! A call that finds the lock taken looks at the committed value first: what is already over the limit is
//! denied without waiting.

use std::hash::{DefaultHasher, Hash, Hasher};

use pgrx::prelude::*;
use pgrx::{Uuid, pg_sys};

use super::decision::{Enforcement, Verdict};
use super::{Key, Mode};
use crate::error::{Error, Result};
use crate::plan::{CachedPlan, as_owner};
use crate::quota::period;
use crate::registry;

/// SQL can take advisory locks of class 1 and 2 only.
const CLASS: u16 = 7216;

/// Mode strict.
pub struct Strict;

impl Mode for Strict {
    fn name(&self) -> &'static str {
        "strict"
    }

    fn used(&self, key: &Key) -> Result<i64> {
        Ok(registry::used(key.tenant.id, &key.quota.resource.name, start(key))?.unwrap_or(0))
    }

    fn take(&self, key: &mut Key, amount: i64) -> Result<(Verdict, i64)> {
        let lock = Lock::of(key);
        if !lock.try_acquire() {
            let used = self.used(key)?;
            let verdict = key.decide(used, amount);
            if !verdict.allowed {
                return Ok((verdict, used));
            }
            lock.acquire();
            // The wait may have been long: limit, plan, period and status are looked at again.
            key.refresh()?;
        }
        let (verdict, used) = self.take_locked(key, amount)?;
        if verdict.granted == 0 {
            lock.release();
        }
        Ok((verdict, used))
    }

    fn give(&self, key: &mut Key, amount: i64) -> Result<i64> {
        let lock = Lock::of(key);
        if !lock.try_acquire() {
            lock.acquire();
        }
        match update(key, -amount, i64::MAX)? {
            Some(used) => Ok(used),
            None => {
                let used = self.used(key)?;
                lock.release();
                Err(Error::BelowZero { resource: key.quota.resource.name.to_string(), used, amount })
            }
        }
    }
}

impl Strict {
    fn take_locked(&self, key: &Key, amount: i64) -> Result<(Verdict, i64)> {
        let ceiling = match (key.limit, key.quota.enforcement) {
            (Some(limit), Enforcement::Hard) => limit - amount.min(limit),
            _ => i64::MAX - amount,
        };
        let fits =
            key.limit.is_none_or(|limit| amount <= limit) || key.quota.enforcement != Enforcement::Hard;
        if fits {
            if let Some(used) = update(key, amount, ceiling)? {
                return Ok((key.decide(used - amount, amount), used));
            }
            if registry::used(key.tenant.id, &key.quota.resource.name, start(key))?.is_none() {
                insert(key, amount)?;
                return Ok((key.decide(0, amount), amount));
            }
        }
        let used = self.used(key)?;
        Ok((key.decide(used, amount), used))
    }
}

fn start(key: &Key) -> i64 {
    period::to_postgres(key.window.start)
}

fn key_datums(key: &Key) -> [Option<pg_sys::Datum>; 3] {
    [
        Uuid::from_bytes(*key.tenant.id.as_bytes()).into_datum(),
        (&*key.quota.resource.name).into_datum(),
        start(key).into_datum(),
    ]
}

/// Adds `amount`, which may be negative, if `used` is at most `ceiling` and stays at least 0. The new value,
/// or `None` if no row was changed.
fn update(key: &Key, amount: i64, ceiling: i64) -> Result<Option<i64>> {
    static UPDATE: CachedPlan = CachedPlan::new(
        c"UPDATE tenant_rls.usage AS u SET used = u.used OPERATOR(pg_catalog.+) $4 \
          WHERE u.tenant_id OPERATOR(pg_catalog.=) $1 AND u.resource OPERATOR(pg_catalog.=) $2 \
          AND u.period_start OPERATOR(pg_catalog.=) $3 AND u.used OPERATOR(pg_catalog.<=) $5 \
          AND u.used OPERATOR(pg_catalog.>=) $6 RETURNING u.used",
        &[
            pg_sys::UUIDOID,
            pg_sys::TEXTOID,
            pg_sys::TIMESTAMPTZOID,
            pg_sys::INT8OID,
            pg_sys::INT8OID,
            pg_sys::INT8OID,
        ],
    );
    let floor = if amount < 0 { -amount } else { 0 };
    let [tenant, resource, period_start] = key_datums(key);
    let arguments =
        [tenant, resource, period_start, amount.into_datum(), ceiling.into_datum(), floor.into_datum()];
    as_owner(|| UPDATE.first(&arguments, |row| row.get::<i64>(1).unwrap_or_default()))
}

fn insert(key: &Key, amount: i64) -> Result<()> {
    static INSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.usage (tenant_id, resource, period_start, resets_at, used) VALUES ($1, $2, $3, $4, $5)",
        &[pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::TIMESTAMPTZOID, pg_sys::TIMESTAMPTZOID, pg_sys::INT8OID],
    );
    let [tenant, resource, period_start] = key_datums(key);
    let resets_at = period::to_postgres(key.window.end).into_datum();
    as_owner(|| INSERT.execute(&[tenant, resource, period_start, resets_at, amount.into_datum()]))?;
    Ok(())
}

/// The lock of a key.
struct Lock(pg_sys::LOCKTAG);

impl Lock {
    fn of(key: &Key) -> Lock {
        // Two keys of the same hash wait for each other, which is slower and as right.
        let mut hasher = DefaultHasher::new();
        key.tenant.id.hash(&mut hasher);
        key.quota.resource.name.hash(&mut hasher);
        let hash = hasher.finish();
        Lock(pg_sys::LOCKTAG {
            // SAFETY: reads a variable of the backend.
            locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
            locktag_field2: (hash >> 32) as u32,
            locktag_field3: hash as u32,
            locktag_field4: CLASS,
            locktag_type: pg_sys::LockTagType::LOCKTAG_ADVISORY as u8,
            locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
        })
    }

    fn try_acquire(&self) -> bool {
        // SAFETY: the tag is complete; the lock belongs to the transaction, which releases it.
        let result = unsafe { pg_sys::LockAcquire(&self.0, pg_sys::ExclusiveLock as i32, false, true) };
        result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }

    fn acquire(&self) {
        // SAFETY: as above; waits, and can be cancelled.
        unsafe { pg_sys::LockAcquire(&self.0, pg_sys::ExclusiveLock as i32, false, false) };
    }

    /// Gives back what this call has acquired; what an earlier call of the transaction holds stays.
    fn release(&self) {
        // SAFETY: this call has acquired it once.
        unsafe { pg_sys::LockRelease(&self.0, pg_sys::ExclusiveLock as i32, false) };
    }
}
