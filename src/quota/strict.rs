//! Mode strict: one row per tenant, resource and period, changed in place by the one who holds its lock.
//!
//! # Lock protocol
//!
//! Whoever changes a key holds its lock, of a kind that no SQL command reaches, until the transaction ends.
//! The lock comes before the row: its holder meets no other writer, reads what is committed now at every
//! isolation level, decides, and updates the row without an executor. So no call fails with 40001, a call that
//! finds no room has locked nothing, and a denied call gives the key lock back at once. (A conditional UPDATE
//! that has waited for a row, and then finds no room, keeps the row locked until the end of its transaction.)
//!
//! A call that finds the lock taken looks at the committed value first: what is already over the limit is
//! denied without waiting. Otherwise it waits for the transaction that is changing the row, not for the lock: the
//! lock would be handed to the sleeper that waits longest, and nobody could work until the system has woken it.
//! One waits for that transaction, the others for the *turn*, as for a row that is locked.

use pgrx::prelude::*;
use pgrx::{Uuid, pg_sys};

use super::decision::Verdict;
use super::escrow::{self, Escrow};
use super::{Key, Left, Mode, events, ledger};
use crate::error::{Error, Result};
use crate::lock::{Class, Lock};
use crate::plan::{CachedPlan, as_owner};
use crate::quota::period;
use crate::registry;
use crate::registry::scan::Changed;
use crate::shmem;

/// How long a waiter gives the holder of the lock to reach the row, in microseconds, and how often.
const NAP: i64 = 50;
const MOST_NAPS: u32 = 10;

/// Mode strict.
pub struct Strict;

impl Mode for Strict {
    fn name(&self) -> &'static str {
        "strict"
    }

    fn used(&self, key: &Key) -> Result<i64> {
        let (id, resource) = (key.tenant.id, &key.quota.resource.name);
        // A tenant's cache counts itself.
        if **resource == *registry::cache::RESOURCE {
            return Ok(registry::units::used(id, resource, start(key))?.unwrap_or(0));
        }
        let in_ledger = match shmem::database() {
            Some(database) => !database.is_loaded(),
            None => true,
        };
        if in_ledger && registry::units::ledger_has_rows()? {
            return ledger::units(id, resource, start(key));
        }
        Ok(registry::units::used(id, resource, start(key))?.unwrap_or(0))
    }

    fn take(&self, key: &mut Key, amount: i64) -> Result<(Verdict, i64)> {
        self.prepare()?;
        if is_counted_elsewhere(key) {
            return Escrow.take(key, amount);
        }
        let lock = lock_of(key, Class::Key);
        if let Some(denied) = acquire(&lock, key, |key, used| {
            let verdict = key.decide(used, amount);
            (!verdict.allowed).then_some((verdict, used))
        })? {
            return Ok(denied);
        }
        // Between the look and the lock another may have begun to count it in shared memory.
        if is_counted_elsewhere(key) {
            lock.release();
            return Escrow.take(key, amount);
        }
        key.counted_by = Some(self.name());
        let (verdict, used) = self.take_locked(key, amount)?;
        if verdict.granted == 0 {
            lock.release();
        } else {
            let before = Some(used - verdict.granted);
            events::record(key.tenant.id, &key.quota.resource.name, start(key), before, used, key.limit)?;
        }
        Ok((verdict, used))
    }

    fn give(&self, key: &mut Key, amount: i64) -> Result<Left> {
        self.prepare()?;
        let lock = lock_of(key, Class::Key);
        acquire(&lock, key, |_, _| None::<()>)?;
        if is_counted_elsewhere(key) {
            lock.release();
            return Escrow.give(key, amount);
        }
        key.counted_by = Some(self.name());
        let mut fits = false;
        let used = change(key, |_, used| {
            fits = used >= amount;
            fits.then(|| used - amount)
        })?;
        if fits {
            let used = used.unwrap_or_default();
            return Ok(Left { used, least: used });
        }
        lock.release();
        let used = used.unwrap_or_default();
        Err(Error::BelowZero { resource: key.quota.resource.name.to_string(), used, amount })
    }

    fn force(&self, key: &mut Key, amount: i64) -> Result<()> {
        self.prepare()?;
        let lock = lock_of(key, Class::Key);
        acquire(&lock, key, |_, _| None::<()>)?;
        if is_counted_elsewhere(key) {
            lock.release();
            return Escrow.force(key, amount);
        }
        if change(key, |_, used| Some(used + amount))?.is_none() {
            insert(key, amount)?;
        }
        Ok(())
    }

    fn try_lock(&self, key: &Key) -> bool {
        lock_of(key, Class::Key).try_acquire()
    }
}

impl Strict {
    /// Makes sure that the units of a key without an entry are in its row alone.
    fn prepare(&self) -> Result<()> {
        if !ledger::load()? {
            ledger::fold_leftovers()?;
        }
        Ok(())
    }

    fn take_locked(&self, key: &mut Key, amount: i64) -> Result<(Verdict, i64)> {
        let mut verdict = key.decide(0, amount);
        let used = change(key, |key, used| {
            verdict = key.decide(used, amount);
            verdict.allowed.then(|| used + amount)
        })?;
        match used {
            Some(used) => Ok((verdict, used)),
            None if verdict.allowed => {
                insert(key, amount)?;
                Ok((verdict, amount))
            }
            None => Ok((verdict, 0)),
        }
    }
}

/// Whether shared memory counts the key: then the row of `tenant_rls.usage` is not all of it.
fn is_counted_elsewhere(key: &Key) -> bool {
    escrow::name_of(key).is_some_and(|name| shmem::look(&name, |_| ()).is_some())
}

/// Takes the lock of the key, unless `settled` has an answer from the units that are committed.
fn acquire<T>(lock: &Lock, key: &mut Key, settled: impl Fn(&Key, i64) -> Option<T>) -> Result<Option<T>> {
    if lock.try_acquire() {
        return Ok(None);
    }
    let turn = lock_of(key, Class::Turn);
    let mut has_turn = false;
    let mut naps = 0;
    let answer = loop {
        let (used, writer) =
            registry::units::used_and_writer(key.tenant.id, &key.quota.resource.name, start(key))?;
        let answer = settled(key, used);
        if answer.is_some() {
            break answer;
        }
        match writer {
            _ if !has_turn => {
                turn.acquire();
                has_turn = true;
            }
            Some(writer) => wait_for(writer),
            // The holder is between the lock and the row, or has just ended.
            None if naps < MOST_NAPS => {
                naps += 1;
                // SAFETY: sleeps for microseconds.
                unsafe { pg_sys::pg_usleep(NAP) };
            }
            // It holds the lock for something else, as the first units of a period, and may do so for long.
            None => {
                lock.acquire();
                key.refresh()?;
                break None;
            }
        }
        // The wait may have been long: limit, plan and period are looked at again.
        key.refresh()?;
        if lock.try_acquire() {
            break None;
        }
    };
    if has_turn {
        turn.release();
    }
    Ok(answer)
}

/// The start of the period, as it is stored.
pub fn start(key: &Key) -> i64 {
    period::to_postgres(key.window.start)
}

fn wait_for(writer: pg_sys::TransactionId) {
    let (relation, row) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: waits for the end of a transaction, and can be cancelled.
    unsafe { pg_sys::XactLockTableWait(writer, relation, row, pg_sys::XLTW_Oper::XLTW_None) };
}

/// Changes the units that are committed now. `None` before the first of the period.
fn change(key: &mut Key, mut change: impl FnMut(&Key, i64) -> Option<i64>) -> Result<Option<i64>> {
    loop {
        let resource = key.quota.resource.name.clone();
        match registry::units::change_used(key.tenant.id, &resource, start(key), |used| change(key, used))? {
            Changed::Done(used) => return Ok(used),
            // Only SQL by hand on our table gets here: it does not know the lock of the key.
            Changed::Busy(writer) => {
                wait_for(writer);
                key.refresh()?;
            }
        }
    }
}

/// The first units of a period.
fn insert(key: &Key, amount: i64) -> Result<()> {
    static INSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.usage (tenant_id, resource, period_start, resets_at, used) VALUES ($1, $2, $3, $4, $5)",
        &[
            pg_sys::UUIDOID,
            pg_sys::TEXTOID,
            pg_sys::TIMESTAMPTZOID,
            pg_sys::TIMESTAMPTZOID,
            pg_sys::INT8OID,
        ],
    );
    let arguments = [
        Uuid::from_bytes(*key.tenant.id.as_bytes()).into_datum(),
        (&*key.quota.resource.name).into_datum(),
        start(key).into_datum(),
        period::to_postgres(key.window.end).into_datum(),
        amount.into_datum(),
    ];
    let write = registry::units::OwnWrite::begin();
    as_owner(|| INSERT.execute(&arguments))?;
    drop(write);
    Ok(())
}

/// The lock of a key.
pub fn lock_of(key: &Key, class: Class) -> Lock {
    Lock::hashed(class, &(key.tenant.id, &*key.quota.resource.name))
}
