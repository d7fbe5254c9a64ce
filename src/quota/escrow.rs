//! Mode escrow: an interval in shared memory admits, a row of the transaction's own makes it durable.
//!
//! # Lock protocol
//!
//! A call moves the ends of the interval of its key, which are atomics of an entry in shared memory, and notes in the
//! journal of its transaction what it has moved ([`interval`]). Before the transaction commits it writes one row for each
//! key into the ledger; when it has ended, the interval closes around what came to pass. Nobody waits: a call that might
//! overshoot if others commit is denied with reason `in_flight`.
//!
//! *Paths never mix on a key.* An entry is made by who holds the lock of the key, so no transaction of mode strict, which holds
//! that lock to its end, is at work on the key then; or, when a database is loaded, for a key that has rows in the ledger, which
//! mode strict does not count. Mode strict counts a key only when, holding the lock, it
//! has removed the entry, which goes only while nothing is in flight and no row of the ledger is left. Until then a key
//! that is to be strict stays in escrow.
//!
//! The callbacks at the end of a transaction move atomics, and can do nothing else: an error there would take the server
//! down. The row in the ledger is written where one can still fail.

pub mod interval;
#[cfg(test)]
mod model;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::decision::Verdict;
use super::{Key, Left, Mode, lease, ledger, strict};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::lock::Class;
use crate::registry;
use crate::shmem::{self, Kind, Pinned, Recorded};
use crate::tenant::TenantId;
use interval::{Flight, Interval, Shift, admit, returnable};

/// How long a caller that gives back waits for units whose transaction has committed and is about to say so, in
/// microseconds, and how often.
const NAP: i64 = 100;
const MOST_NAPS: u32 = 10_000;

/// Mode escrow.
pub struct Escrow;

/// What this transaction has in flight on one key.
struct Position {
    key: shmem::Key,
    pinned: Pinned,
    flight: Flight,
    resource: Rc<str>,
    resets_at: i64,
}

static JOURNAL: Backend<RefCell<Vec<Position>>> = Backend::new(RefCell::new(Vec::new()));

/// Registers what happens at the ends of transactions. Called once, when the library is loaded.
pub fn init() {
    // SAFETY: the callbacks are functions of this library, which is never unloaded.
    unsafe {
        pg_sys::RegisterXactCallback(Some(transaction_ends), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction_ends), std::ptr::null_mut());
    }
}

impl Mode for Escrow {
    fn name(&self) -> &'static str {
        "escrow"
    }

    fn used(&self, key: &Key) -> Result<i64> {
        let Some(name) = name_of(key) else { return strict::Strict.used(key) };
        match counted(&name) {
            Some(used) => Ok(used),
            // Changed by other means, and not looked up again yet: some of the units may be in the ledger.
            None if shmem::look(&name, |_| ()).is_some() => {
                ledger::units(key.tenant.id, &key.quota.resource.name, strict::start(key))
            }
            None => strict::Strict.used(key),
        }
    }

    fn take(&self, key: &mut Key, units: i64) -> Result<(Verdict, i64)> {
        match place(key)? {
            Place::Journal(at) => {
                key.counted_by = Some(self.name());
                Ok(take_at(at, key, units))
            }
            Place::Strict => strict::Strict.take(key, units),
            Place::Leased => lease::Lease.take(key, units),
        }
    }

    fn give(&self, key: &mut Key, units: i64) -> Result<Left> {
        match place(key)? {
            Place::Journal(at) => {
                key.counted_by = Some(self.name());
                give_at(at, key, units)
            }
            Place::Strict => strict::Strict.give(key, units),
            Place::Leased => lease::Lease.give(key, units),
        }
    }

    fn force(&self, key: &mut Key, units: i64) -> Result<()> {
        let at = match place(key)? {
            Place::Journal(at) => at,
            Place::Strict => return strict::Strict.force(key, units),
            Place::Leased => return lease::Lease.force(key, units),
        };
        let mut journal = JOURNAL.borrow_mut();
        let position = &mut journal[at];
        let shift = position.flight.shift(units);
        position.flight.push(level(), units);
        apply(position.pinned, shift);
        Ok(())
    }

    fn try_lock(&self, key: &Key) -> bool {
        // With nothing in flight there is nothing to wait for; one that is not there yet is made by who has the lock.
        let is_free =
            |entry: &shmem::Entry| entry.kind() == Kind::Escrow && !entry.is_stale() && !is_pinned(entry);
        let known = name_of(key).and_then(|name| shmem::look(&name, is_free));
        known.unwrap_or_else(|| strict::lock_of(key, Class::Key).try_acquire())
    }
}

/// The units of a key that shared memory counts, those included that other transactions may still take, and what this one
/// has taken and given back.
pub fn counted(name: &shmem::Key) -> Option<i64> {
    let own = JOURNAL.borrow().iter().find(|position| position.key == *name).map(|position| {
        let flight = &position.flight;
        flight.net() - flight.share().sup
    });
    let counted = shmem::look(name, |entry| {
        (!entry.is_stale() || is_pinned(entry)).then(|| entry.sup.load(Ordering::SeqCst))
    });
    Some(counted.flatten()? + own.unwrap_or(0))
}

fn is_pinned(entry: &shmem::Entry) -> bool {
    entry.pins.load(Ordering::SeqCst) > 0
}

/// Whether reservations may hold units of a key. Of most keys shared memory knows that none do.
pub fn may_hold(key: &Key) -> bool {
    let Some(database) = shmem::database().filter(|database| database.is_loaded()) else { return true };
    let known = || {
        shmem::look(&name_of(key)?, |entry| {
            entry.kind() == Kind::Escrow && entry.holds.load(Ordering::SeqCst) > 0
        })
    };
    database.reserves.load(Ordering::SeqCst) && known().unwrap_or(true)
}

/// A reservation is about to hold units of a key.
pub fn note_hold(key: &Key) {
    if let Some(database) = shmem::database() {
        database.reserves.store(true, Ordering::SeqCst);
    }
    if let Some(name) = name_of(key) {
        shmem::look(&name, |entry| entry.holds.fetch_add(1, Ordering::SeqCst));
    }
}

/// Looks whether reservations hold units of a key at all, so that it can be counted without asking. Those that were noted
/// before the look belong to transactions that have ended, if nothing is in flight.
pub fn forget_holds(key: &Key, name: &shmem::Key) -> Result<()> {
    let settled = |entry: &shmem::Entry| (!is_pinned(entry)).then(|| entry.holds.load(Ordering::SeqCst));
    let Some(before) = shmem::change(name, settled).flatten().filter(|holds| *holds > 0) else {
        return Ok(());
    };
    if !super::reservation::recorded_holds(key)?.any() {
        shmem::change(name, |entry| {
            if settled(entry) == Some(before) {
                entry.holds.store(0, Ordering::SeqCst);
            }
        });
    }
    Ok(())
}

/// What this transaction has taken of a resource and not yet written, by tenant.
pub fn pending(resource: &str) -> Vec<(TenantId, i64)> {
    JOURNAL
        .borrow()
        .iter()
        .filter(|position| *position.resource == *resource)
        .map(|position| (position.key.tenant(), position.flight.net()))
        .collect()
}

/// The name that the entry of a key has.
pub fn name_of(key: &Key) -> Option<shmem::Key> {
    shmem::Key::new(key.tenant.id, &key.quota.resource.name, strict::start(key))
}

/// Whether this transaction has units of a key in flight.
pub fn has_position(name: &shmem::Key) -> bool {
    JOURNAL.borrow().iter().any(|position| position.key == *name)
}

/// Who counts a key.
enum Place {
    /// The entry that the journal has there, which is pinned.
    Journal(usize),
    /// Shared memory has no room for it.
    Strict,
    /// A lease that has not ended yet.
    Leased,
}

fn place(key: &Key) -> Result<Place> {
    let Some(name) = name_of(key) else { return Ok(Place::Strict) };
    if let Some(at) = JOURNAL.borrow().iter().position(|position| position.key == name) {
        return Ok(Place::Journal(at));
    }
    // Who attaches a table to the gauge waits for the transactions that have it.
    registry::units::open_units()?;
    let pinned = match pin(key, &name)? {
        Ok(pinned) => pinned,
        Err(elsewhere) => return Ok(elsewhere),
    };
    let mut journal = JOURNAL.borrow_mut();
    journal.push(Position {
        key: name,
        pinned,
        flight: Flight::new(),
        resource: key.quota.resource.name.clone(),
        resets_at: super::period::to_postgres(key.window.end),
    });
    Ok(Place::Journal(journal.len() - 1))
}

/// Pins the entry of a key, which is made if need be, or says who counts it instead.
fn pin(key: &Key, name: &shmem::Key) -> Result<std::result::Result<Pinned, Place>> {
    enum Found {
        Pinned(Pinned),
        Stale,
        Leased,
    }
    loop {
        let found = shmem::look(name, |entry| {
            if entry.kind() == Kind::Leased {
                return Found::Leased;
            }
            if entry.is_stale() && !is_pinned(entry) {
                return Found::Stale;
            }
            entry.called_at.store(super::period::to_postgres(key.now), Ordering::Relaxed);
            Found::Pinned(shmem::pin(entry))
        });
        match found {
            Some(Found::Pinned(pinned)) => return Ok(Ok(pinned)),
            Some(Found::Leased) => return Ok(Err(Place::Leased)),
            Some(Found::Stale) => reload(key, name)?,
            None => {
                if !make(key, name)? {
                    return Ok(Err(Place::Strict));
                }
            }
        }
    }
}

fn reload(key: &Key, name: &shmem::Key) -> Result<()> {
    let lock = strict::lock_of(key, Class::Key);
    lock.acquire();
    ledger::reload(name)?;
    lock.release();
    Ok(())
}

/// Makes the entry of a key, unless this transaction counts it in mode strict, or there is no room.
pub fn make(key: &Key, name: &shmem::Key) -> Result<bool> {
    if !ledger::load()? {
        return Ok(false);
    }
    let Some(database) = shmem::database() else { return Ok(false) };
    let lock = strict::lock_of(key, Class::Key);
    let is_first = lock.acquire_first();
    let made = is_first && {
        // Units that are changed meanwhile are looked up again: the generation is that of before.
        let generation = database.generation();
        let units = strict::Strict.used(key)?;
        let may_hold = super::reservation::recorded_holds(key)?.any();
        let resets_at = super::period::to_postgres(key.window.end);
        shmem::put(name, resets_at, Recorded { units, unfolded: 0, may_hold, generation })
    };
    lock.release();
    Ok(made)
}

/// The level of nested transactions, from 1.
fn level() -> i32 {
    unsafe extern "C-unwind" {
        fn GetCurrentTransactionNestLevel() -> i32;
    }
    // SAFETY: reads the backend's own state.
    unsafe { GetCurrentTransactionNestLevel() }
}

fn interval_of(pinned: Pinned) -> Interval {
    let entry = pinned.entry();
    Interval { inf: entry.inf.load(Ordering::SeqCst), sup: entry.sup.load(Ordering::SeqCst) }
}

fn apply(pinned: Pinned, shift: Shift) {
    let entry = pinned.entry();
    if shift.inf != 0 {
        entry.inf.fetch_add(shift.inf, Ordering::SeqCst);
    }
    if shift.sup != 0 {
        entry.sup.fetch_add(shift.sup, Ordering::SeqCst);
    }
}

fn take_at(at: usize, key: &Key, units: i64) -> (Verdict, i64) {
    let level = level();
    let mut journal = JOURNAL.borrow_mut();
    let Position { pinned, flight, .. } = &mut journal[at];
    let entry = pinned.entry();
    let answer = loop {
        let interval = interval_of(*pinned);
        let (verdict, used) = admit(interval, flight, key.limit, key.quota.enforcement, units);
        if !verdict.allowed {
            break (verdict, used);
        }
        let shift = flight.shift(units);
        let sup = interval.sup + shift.sup;
        if entry.sup.compare_exchange(interval.sup, sup, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            flight.push(level, units);
            break (verdict, used + units);
        }
    };
    drop_empty(&mut journal, at);
    answer
}

fn give_at(at: usize, key: &Key, units: i64) -> Result<Left> {
    let level = level();
    for nap in 0..=MOST_NAPS {
        let mut journal = JOURNAL.borrow_mut();
        let Position { pinned, flight, .. } = &mut journal[at];
        let entry = pinned.entry();
        let interval = interval_of(*pinned);
        let there = returnable(interval, flight);
        if there.inf >= units {
            let inf = interval.inf + flight.shift(-units).inf;
            if entry.inf.compare_exchange(interval.inf, inf, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                flight.push(level, -units);
                return Ok(Left { used: there.sup - units, least: there.inf - units });
            }
        } else if there.sup < units || nap == MOST_NAPS {
            let used = there.inf.max(0);
            drop_empty(&mut journal, at);
            return Err(Error::BelowZero {
                resource: key.quota.resource.name.to_string(),
                used,
                amount: units,
            });
        } else {
            drop(journal);
            // SAFETY: sleeps for microseconds, and can be cancelled in between.
            unsafe {
                pg_sys::pg_usleep(NAP);
                pg_sys::check_for_interrupts!();
            }
        }
    }
    unreachable!("the last nap has raised")
}

/// Lets go of a key of which nothing is in flight.
fn drop_empty(journal: &mut Vec<Position>, at: usize) {
    if journal[at].flight.is_empty() {
        journal.swap_remove(at).pinned.unpin();
    }
}

unsafe extern "C-unwind" fn transaction_ends(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    use pg_sys::XactEvent::*;
    match event {
        XACT_EVENT_PRE_COMMIT if !JOURNAL.borrow().is_empty() => {
            // SAFETY: guarded, and allowed to fail.
            unsafe { write_ledger() }
        }
        XACT_EVENT_PRE_PREPARE if !JOURNAL.borrow().is_empty() || registry::units::are_changed() => {
            // SAFETY: as above.
            unsafe { refuse_prepare() }
        }
        XACT_EVENT_COMMIT => {
            let mut journal = JOURNAL.borrow_mut();
            for mut position in journal.drain(..) {
                let entry = position.pinned.entry();
                if position.flight.net() != 0 {
                    entry.unfolded.fetch_add(1, Ordering::SeqCst);
                    if let Some(database) = shmem::database() {
                        database.busy.store(true, Ordering::Relaxed);
                    }
                }
                apply(position.pinned, position.flight.commit());
                entry.peak.fetch_max(entry.inf.load(Ordering::SeqCst), Ordering::SeqCst);
                position.pinned.unpin();
            }
        }
        XACT_EVENT_ABORT | XACT_EVENT_PARALLEL_ABORT | XACT_EVENT_PARALLEL_COMMIT => {
            let mut journal = JOURNAL.borrow_mut();
            for mut position in journal.drain(..) {
                apply(position.pinned, position.flight.abort(0));
                position.pinned.unpin();
            }
        }
        _ => {}
    }
    registry::units::transaction_ends(event);
}

#[pg_guard]
unsafe extern "C-unwind" fn write_ledger() {
    let rows: Vec<_> = JOURNAL
        .borrow()
        .iter()
        .filter(|position| position.flight.net() != 0)
        .map(|position| (position.key, position.resets_at, position.flight.net()))
        .collect();
    for (key, resets_at, units) in rows {
        crate::error::or_raise(ledger::write(&key, resets_at, units));
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn refuse_prepare() {
    ledger::cannot_prepare().raise();
}

unsafe extern "C-unwind" fn subtransaction_ends(
    event: pg_sys::SubXactEvent::Type,
    _child: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut std::ffi::c_void,
) {
    use pg_sys::SubXactEvent::*;
    if JOURNAL.borrow().is_empty() || !matches!(event, SUBXACT_EVENT_COMMIT_SUB | SUBXACT_EVENT_ABORT_SUB) {
        return;
    }
    let level = level();
    let mut journal = JOURNAL.borrow_mut();
    for at in (0..journal.len()).rev() {
        let Position { pinned, flight, .. } = &mut journal[at];
        if event == SUBXACT_EVENT_COMMIT_SUB {
            flight.merge(level);
        } else {
            let shift = flight.abort(level);
            apply(*pinned, shift);
            drop_empty(&mut journal, at);
        }
    }
}
