//! The ledger: what was added to keys since it was last folded into `tenant_rls.usage`.
//!
//! A transaction in mode escrow, and the worker for mode leased, write one row for each key, which nobody else ever
//! touches: nobody waits. The units of a key are its row in `tenant_rls.usage` and its rows here, together. A worker folds
//! the rows of many transactions into one.
//!
//! # Lock protocol
//!
//! Whoever folds holds the lock of the ledger until its transaction ends; whoever loads a database or looks a changed key up
//! again holds it while he reads: what one counts the other does not move meanwhile. Writers do not take it. It comes after
//! the lock of the key, and no other of ours is taken while it is held; but a caller of mode strict that folds what is left
//! ([`fold_leftovers`]) has it to the end of its transaction and takes keys then. Without shared memory nobody waits for it with
//! a key in hand: who has got a key has found the ledger empty, or has this lock. With shared memory that is full, and units that
//! are changed by other means meanwhile, it can be a deadlock.
//!
//! [`load`] makes entries without holding the locks of their keys: of keys that have rows in the ledger, which nobody counts in
//! mode strict. Those that are there it leaves as they are.

use std::sync::atomic::Ordering::SeqCst;

use pgrx::prelude::*;
use pgrx::{Uuid, pg_sys};

use crate::clock;
use crate::error::{Error, Result};
use crate::lock::{Class, Lock};
use crate::plan::{CachedPlan, as_owner};
use crate::registry;
use crate::shmem::{self, Entry, Kind, Recorded};
use crate::tenant::TenantId;

/// Rows that one transaction folds at most.
pub const BATCH: i64 = 10_000;

/// Adds a row. Runs no trigger, and no code of a user.
pub fn write(key: &shmem::Key, resets_at: i64, units: i64) -> Result<()> {
    registry::units::add_to_ledger(key.tenant(), key.resource(), key.period_start(), resets_at, units)
}

fn lock() -> Lock {
    Lock::new(Class::Ledger, [0, 0])
}

/// The units of a key as they are committed, this transaction's own rows included.
pub fn units(id: TenantId, resource: &str, period_start: i64) -> Result<i64> {
    recorded(id, resource, period_start).map(|(units, _)| units)
}

/// Those units, and how many rows of the ledger they are in.
fn recorded(id: TenantId, resource: &str, period_start: i64) -> Result<(i64, i64)> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT (coalesce((SELECT u.used FROM tenant_rls.usage AS u WHERE u.tenant_id OPERATOR(pg_catalog.=) $1 \
                   AND u.resource OPERATOR(pg_catalog.=) $2 AND u.period_start OPERATOR(pg_catalog.=) $3), 0) \
             OPERATOR(pg_catalog.+) coalesce(pg_catalog.sum(l.units), 0))::pg_catalog.int8, pg_catalog.count(*) \
           FROM tenant_rls.ledger AS l WHERE l.tenant_id OPERATOR(pg_catalog.=) $1 \
           AND l.resource OPERATOR(pg_catalog.=) $2 AND l.period_start OPERATOR(pg_catalog.=) $3",
        &[pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::TIMESTAMPTZOID],
    );
    let mut found = (0, 0);
    let arguments = [datum(id), resource.into_datum(), period_start.into_datum()];
    as_owner(|| {
        SELECT.run_latest(&arguments, |row| {
            found = (row.get(1).unwrap_or_default(), row.get(2).unwrap_or_default());
        })
    })?;
    Ok(found)
}

fn datum(id: TenantId) -> Option<pg_sys::Datum> {
    Uuid::from_bytes(*id.as_bytes()).into_datum()
}

/// Makes sure that every key with rows in the ledger has an entry. `false` if they cannot all have one.
pub fn load() -> Result<bool> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT l.tenant_id, l.resource, l.period_start, l.resets_at, \
             (l.units OPERATOR(pg_catalog.+) coalesce(u.used, 0))::pg_catalog.int8, l.rows, \
             EXISTS (SELECT FROM tenant_rls.reservations AS r WHERE r.state OPERATOR(pg_catalog.=) 'held' \
                AND r.tenant_id OPERATOR(pg_catalog.=) l.tenant_id AND r.resource OPERATOR(pg_catalog.=) l.resource \
                AND r.period_start OPERATOR(pg_catalog.=) l.period_start) \
           FROM (SELECT s.tenant_id, s.resource, s.period_start, pg_catalog.max(s.resets_at) AS resets_at, \
                 pg_catalog.sum(s.units) AS units, pg_catalog.count(*) AS rows \
                 FROM tenant_rls.ledger AS s GROUP BY s.tenant_id, s.resource, s.period_start) AS l \
           LEFT JOIN tenant_rls.usage AS u ON u.tenant_id OPERATOR(pg_catalog.=) l.tenant_id \
           AND u.resource OPERATOR(pg_catalog.=) l.resource AND u.period_start OPERATOR(pg_catalog.=) l.period_start",
        &[],
    );
    let Some(database) = shmem::database() else { return Ok(false) };
    if database.is_loaded() {
        return Ok(true);
    }
    let lock = lock();
    lock.acquire();
    let generation = database.generation();
    let mut fits = true;
    if !database.is_loaded() {
        as_owner(|| {
            SELECT.run_latest(&[], |row| {
                let instant = |column| row.get::<i64>(column).unwrap_or_default();
                let (Some(id), Some(resource)) = (row.get::<Uuid>(1), row.get::<String>(2)) else { return };
                let id = TenantId::from_bytes(*id.as_bytes());
                // What does not fit into a key is counted in mode strict, which folds first.
                let recorded = Recorded {
                    units: instant(5),
                    unfolded: instant(6),
                    may_hold: row.get(7).unwrap_or(true),
                    generation,
                };
                // One that is there is looked up again by who needs it next: what has been committed since this look
                // would be lost here.
                let made = shmem::Key::new(id, &resource, instant(3)).is_some_and(|key| {
                    shmem::look(&key, |_| ()).is_some() || shmem::put(&key, instant(4), recorded)
                });
                fits &= made;
            })
        })?;
        if registry::units::any_holds()? {
            database.reserves.store(true, SeqCst);
        }
        if fits {
            database.set_loaded(generation);
            database.busy.store(true, SeqCst);
        }
    }
    lock.release();
    Ok(fits)
}

/// Looks the units of an entry up again that were changed by other means. The caller holds the lock of the key.
pub fn reload(key: &shmem::Key) -> Result<()> {
    let Some(database) = shmem::database() else { return Ok(()) };
    let lock = lock();
    lock.acquire();
    let generation = database.generation();
    let (units, unfolded) = recorded(key.tenant(), key.resource(), key.period_start())?;
    let (start, now) = (key.period_start(), clock::now());
    let may_hold = registry::units::holds(key.tenant(), key.resource(), start, now)?.any();
    shmem::change(key, |entry| count_on(entry, Recorded { units, unfolded, may_hold, generation }));
    lock.release();
    Ok(())
}

/// Takes over what is recorded, unless something is in flight, or somebody else has just done so. Nobody can have changed
/// the units since the look: what is stale and has nothing in flight is not pinned. Of a lease the worker knows more.
fn count_on(entry: &Entry, recorded: Recorded) {
    if entry.pins.load(SeqCst) == 0 && entry.kind() == Kind::Escrow && entry.is_stale() {
        entry.set_units(recorded);
    }
}

/// A key whose rows were folded.
pub struct Folded {
    /// Whose.
    pub tenant: TenantId,
    /// Of what.
    pub resource: String,
    /// Since when, in microseconds since 2000-01-01.
    pub period_start: i64,
    /// Until when, in microseconds since 2000-01-01.
    pub resets_at: i64,
    /// How many rows.
    pub rows: i64,
    /// The units that are in `tenant_rls.usage` now.
    pub used: i64,
    /// The generation of the entry when the rows were folded, if it had one.
    generation: Option<u64>,
}

impl Folded {
    /// A key without rows, of which so much is used.
    pub fn nothing(entry: &Entry, used: i64) -> Folded {
        let key = entry.key();
        Folded {
            tenant: key.tenant(),
            resource: key.resource().into(),
            period_start: key.period_start(),
            resets_at: entry.resets_at.load(SeqCst),
            rows: 0,
            used,
            generation: None,
        }
    }

    /// The name of its entry; `None` if it is too long for one.
    pub fn name(&self) -> Option<shmem::Key> {
        shmem::Key::new(self.tenant, &self.resource, self.period_start)
    }

    /// The most units that were used at one time. Of a lease a part is granted ahead, and some were given back since.
    pub fn most_used(&self) -> i64 {
        let most = self.name().and_then(|key| {
            shmem::look(&key, |entry| match entry.kind() {
                Kind::Leased => entry.sup.load(SeqCst),
                Kind::Escrow => entry.peak.load(SeqCst).max(self.used),
            })
        });
        most.unwrap_or(self.used)
    }
}

/// Folds rows that are committed, in this transaction. When it has committed, [`settle`] must be told.
pub fn fold() -> Result<Vec<Folded>> {
    static FOLD: CachedPlan = CachedPlan::new(
        c"WITH folded AS ( \
             DELETE FROM tenant_rls.ledger AS l \
             WHERE l.ctid OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT s.ctid FROM tenant_rls.ledger AS s LIMIT $1)) \
             RETURNING l.tenant_id, l.resource, l.period_start, l.resets_at, l.units), \
           summed AS ( \
             SELECT f.tenant_id, f.resource, f.period_start, pg_catalog.max(f.resets_at) AS resets_at, \
                pg_catalog.sum(f.units)::pg_catalog.int8 AS units, pg_catalog.count(*) AS rows \
             FROM folded AS f GROUP BY f.tenant_id, f.resource, f.period_start), \
           moved AS ( \
             INSERT INTO tenant_rls.usage AS u (tenant_id, resource, period_start, resets_at, used) \
             SELECT s.tenant_id, s.resource, s.period_start, s.resets_at, s.units FROM summed AS s \
             ON CONFLICT (tenant_id, resource, period_start) DO UPDATE \
             SET used = u.used OPERATOR(pg_catalog.+) EXCLUDED.used \
             RETURNING u.tenant_id, u.resource, u.period_start, u.used) \
           SELECT s.tenant_id, s.resource, s.period_start, s.resets_at, s.rows, m.used \
           FROM summed AS s JOIN moved AS m ON m.tenant_id OPERATOR(pg_catalog.=) s.tenant_id \
           AND m.resource OPERATOR(pg_catalog.=) s.resource AND m.period_start OPERATOR(pg_catalog.=) s.period_start",
        &[pg_sys::INT8OID],
    );
    lock().acquire();
    registry::units::open_units()?;
    let mut folded = Vec::new();
    let writes = registry::units::OwnWrite::begin();
    as_owner(|| {
        FOLD.run_latest(&[BATCH.into_datum()], |row| {
            let number = |column| row.get::<i64>(column).unwrap_or_default();
            if let (Some(id), Some(resource)) = (row.get::<Uuid>(1), row.get::<String>(2)) {
                folded.push(Folded {
                    tenant: TenantId::from_bytes(*id.as_bytes()),
                    resource,
                    period_start: number(3),
                    resets_at: number(4),
                    rows: number(5),
                    used: number(6),
                    generation: None,
                });
            }
        })
    })?;
    drop(writes);
    for key in &mut folded {
        key.generation = key.name().and_then(|name| shmem::look(&name, Entry::generation));
    }
    Ok(folded)
}

/// Tells the entries which rows have been folded. One that was made or looked up again since knows it.
pub fn settle(folded: &[Folded]) {
    for key in folded {
        if let Some(name) = key.name() {
            shmem::look(&name, |entry| {
                if Some(entry.generation()) == key.generation {
                    entry.unfolded.fetch_sub(key.rows, SeqCst);
                }
            });
        }
    }
}

/// Folds the whole ledger in the transaction of a caller of mode strict, where no shared memory tells that the key has no
/// rows in it. Rows are left behind by a server that had the library preloaded; none come while it has not.
pub fn fold_leftovers() -> Result<()> {
    if !registry::units::ledger_has_rows()? {
        return Ok(());
    }
    while !fold()?.is_empty() {}
    Ok(())
}

/// Refuses what would leave shared memory behind what a prepared transaction holds.
pub fn cannot_prepare() -> Error {
    Error::Unsupported {
        what: "cannot PREPARE a transaction that has changed units which shared memory counts".into(),
        detail: "Units that wait for COMMIT PREPARED cannot be counted in shared memory.".into(),
        hint: "Use mode strict for the limits that such transactions use.",
    }
}
