//! Mode leased: units are accounted for ahead, a chunk at a time, and then handed out without writing anything.
//!
//! # Lock protocol
//!
//! What the tables say of a key, `granted` in its entry, is never less than what was handed out. A caller takes units as
//! long as there are any up to `granted`, by one atomic, under the shared lock of its part of the table. Only the worker
//! of the database moves `granted`: up when a row of the ledger that says so is on disk, and not before; down before it
//! writes that the rest is given back. It does both alone, under the exclusive lock.
//!
//! A crash loses what was handed out of the last chunk: the whole of it counts as used. Without a worker callers wait for
//! as long as `tenant_rls.lease_timeout` says, and are denied then.

use std::sync::atomic::Ordering::SeqCst;

use pgrx::prelude::*;
use pgrx::{Uuid, pg_sys};

use super::decision::{Enforcement, Limit, Reason, Verdict};
use super::escrow::{self, Escrow};
use super::ledger::{self, Folded};
use super::{Key, Left, Mode, period};
use crate::context::fence;
use crate::error::{Error, Result};
use crate::plan::{CachedPlan, as_owner};
use crate::registry;
use crate::shmem::{self, Entry, Kind};
use crate::{clock, gucs};

/// A lease that nobody has used for that long is given back, in microseconds: a worker stays for as long as there are any,
/// and is not to stand in the way of who drops the database.
const IDLE: i64 = 1_500_000;

/// The shortest time over which a rate is measured, in microseconds: two calls in a row are not a million a second, and a
/// crash would strand as many.
const SHORTEST: i64 = 100_000;

/// Keys that the worker picks in one look at all of them.
pub const MOST_KEYS: usize = 1024;

/// Mode leased.
pub struct Lease;

enum Attempt {
    Settled(Verdict, i64),
    /// There are not enough units at hand; whether more than these are wanted soon.
    Short,
    /// As `Settled`, and the worker had better be asked for more.
    Low(Verdict, i64),
    NotLeased,
}

impl Mode for Lease {
    fn name(&self) -> &'static str {
        "leased"
    }

    fn transactional(&self) -> bool {
        false
    }

    fn used(&self, key: &Key) -> Result<i64> {
        Escrow.used(key)
    }

    fn take(&self, key: &mut Key, units: i64) -> Result<(Verdict, i64)> {
        let (Some(name), Some(database)) = (escrow::name_of(key), shmem::database()) else {
            return Escrow.take(key, units);
        };
        let mut until = None;
        let answer = loop {
            match shmem::look(&name, |entry| attempt(entry, key, units)) {
                Some(Attempt::Settled(verdict, used)) => {
                    key.counted_by = Some(self.name());
                    break Ok((verdict, used));
                }
                Some(Attempt::Low(verdict, used)) => {
                    database.ask(&name);
                    key.counted_by = Some(self.name());
                    break Ok((verdict, used));
                }
                Some(Attempt::Short) => {
                    let now = clock::now();
                    let left = *until.get_or_insert(now + i64::from(gucs::lease_timeout()) * 1000) - now;
                    if left <= 0 {
                        break Ok(timed_out(key, &name));
                    }
                    database.ask(&name);
                    // SAFETY: waits until the worker has published, can be cancelled, and does not wait the first time:
                    // what was published before this process was in the list is not missed.
                    unsafe {
                        pg_sys::ConditionVariableTimedSleep(
                            database.published(),
                            left / 1000 + 1,
                            pg_sys::PG_WAIT_EXTENSION,
                        )
                    };
                }
                Some(Attempt::NotLeased) if begin(key, &name)? => {}
                Some(Attempt::NotLeased) => break Escrow.take(key, units),
                None if escrow::make(key, &name)? => {}
                None => break Escrow.take(key, units),
            }
        };
        if until.is_some() {
            // SAFETY: undoes what the sleep has begun.
            unsafe { pg_sys::ConditionVariableCancelSleep() };
        }
        answer
    }

    fn give(&self, key: &mut Key, _units: i64) -> Result<Left> {
        Err(Error::Unsupported {
            what: format!("units of \"{}\" cannot be given back", key.quota.resource.name),
            detail: "Its limit has mode leased, which keeps what was taken.".into(),
            hint: "Use mode escrow or strict.",
        })
    }

    fn force(&self, key: &mut Key, _units: i64) -> Result<()> {
        self.give(key, 0).map(drop)
    }

    fn try_lock(&self, _key: &Key) -> bool {
        // Nothing can be given back.
        false
    }
}

fn attempt(entry: &Entry, key: &Key, units: i64) -> Attempt {
    if entry.kind() != Kind::Leased {
        return Attempt::NotLeased;
    }
    if entry.is_stale() {
        entry.returning.store(true, SeqCst);
    }
    entry.called_at.store(period::to_postgres(key.now), std::sync::atomic::Ordering::Relaxed);
    loop {
        let used = entry.sup.load(SeqCst);
        let verdict = key.decide(used, units);
        if !verdict.allowed {
            return Attempt::Settled(verdict, used);
        }
        let granted = entry.granted.load(SeqCst);
        let after = used + units;
        if after > granted {
            entry.asked.fetch_max(units, SeqCst);
            return Attempt::Short;
        }
        if entry.sup.compare_exchange(used, after, SeqCst, SeqCst).is_err() {
            continue;
        }
        let has_more = end_of(key.limit, key.quota.enforcement).is_none_or(|limit| granted < limit);
        let is_low = granted - after < entry.chunk.load(SeqCst) / 2 && has_more;
        // Whoever is the first to see that it runs low asks.
        if is_low && entry.asked.compare_exchange(0, 1, SeqCst, SeqCst).is_ok() {
            return Attempt::Low(verdict, after);
        }
        return Attempt::Settled(verdict, after);
    }
}

fn timed_out(key: &Key, name: &shmem::Key) -> (Verdict, i64) {
    let used = escrow::counted(name).unwrap_or_default();
    let remaining = key.decide(used, 0).remaining;
    (Verdict { allowed: false, granted: 0, reason: Reason::InFlight, remaining }, used)
}

/// Turns an entry of mode escrow into a leased one. `false` while transactions have units of it in flight, or reservations
/// hold some.
pub fn begin(key: &Key, name: &shmem::Key) -> Result<bool> {
    escrow::forget_holds(key, name)?;
    let begun = shmem::change(name, |entry| {
        if entry.kind() == Kind::Leased {
            return true;
        }
        // Units that are held will be given back, which a lease cannot do.
        if entry.pins.load(SeqCst) > 0 || entry.holds.load(SeqCst) > 0 || entry.is_stale() {
            return false;
        }
        let granted = entry.sup.load(SeqCst);
        let used = granted - entry.owed.swap(0, SeqCst);
        entry.granted.store(granted, SeqCst);
        entry.sup.store(used, SeqCst);
        entry.chunk.store(0, SeqCst);
        entry.asked.store(0, SeqCst);
        entry.returning.store(false, SeqCst);
        entry.noted.store(false, SeqCst);
        entry.used_then.store(used, SeqCst);
        entry.extended_at.store(clock::now(), SeqCst);
        entry.set_kind(Kind::Leased);
        true
    });
    Ok(begun.unwrap_or(false))
}

/// Asks the worker to end a lease, for another mode.
pub fn end(name: &shmem::Key) {
    let first = shmem::look(name, |entry| !entry.returning.swap(true, SeqCst)).unwrap_or(false);
    if first && let Some(database) = shmem::database() {
        database.ask(name);
    }
}

/// Takes back what a call that failed as a whole has taken a moment ago. If the lease is over by now, the worker has said that
/// the units are used, and is to say that they are not.
pub fn undo(name: &shmem::Key, units: i64) {
    let is_owed = shmem::look(name, |entry| match entry.kind() {
        Kind::Leased => {
            entry.sup.fetch_sub(units, SeqCst);
            false
        }
        Kind::Escrow => {
            entry.owed.fetch_add(units, SeqCst);
            true
        }
    });
    if is_owed == Some(true)
        && let Some(database) = shmem::database()
    {
        database.ask(name);
    }
}

/// Units that the worker is about to grant, or to take back (negative or none: the lease ends).
struct Move {
    key: shmem::Key,
    resets_at: i64,
    units: i64,
    /// What is granted and unused then.
    at_hand: i64,
    /// Units that nobody can take any more, since this was planned.
    withdrawn: i64,
    /// What was at hand when that was last written down.
    chunk: i64,
    /// The lease is over: units are given back that are owed.
    is_owed: bool,
}

/// What a worker has written for leases, and has yet to tell those who wait.
#[derive(Default)]
pub struct Moves {
    moves: Vec<Move>,
    ended: Vec<shmem::Key>,
    /// Leases of tenants that are fenced, which are left as they are.
    pub fenced: usize,
}

/// Extends the leases that ask, and ends those that nobody uses: writes it, in this transaction of the worker. When that is
/// on disk, and not before, [`Moves::publish`].
pub fn write(asks: &[shmem::Key]) -> Result<Moves> {
    registry::accept_invalidations();
    let mut moves = Moves::default();
    for key in asks {
        plan(key, &mut moves)?;
    }
    for change in &moves.moves {
        if change.units != 0 {
            ledger::write(&change.key, change.resets_at, change.units)?;
        }
        if !change.is_owed {
            note(change)?;
        }
    }
    Ok(moves)
}

impl Moves {
    /// Lets callers have what was granted. How many leases were moved.
    pub fn publish(mut self) -> usize {
        // From here on there is nothing to be undone.
        let (moves, ended) = (std::mem::take(&mut self.moves), std::mem::take(&mut self.ended));
        for change in &moves {
            shmem::change(&change.key, |entry| match change.is_owed {
                false => publish(entry, change.units),
                true => publish_owed(entry, -change.units),
            });
        }
        for key in &ended {
            shmem::change(key, |entry| {
                let used = entry.sup.load(SeqCst);
                // A call that failed as a whole may have taken back its units meanwhile: the next round gives those back too.
                if used == entry.granted.load(SeqCst) {
                    entry.inf.store(used, SeqCst);
                    entry.set_kind(Kind::Escrow);
                }
            });
        }
        if let Some(database) = shmem::database() {
            // SAFETY: wakes those that wait; the variable is in shared memory.
            unsafe { pg_sys::ConditionVariableBroadcast(database.published()) };
        }
        moves.len() + ended.len()
    }
}

/// What was planned and not committed: the units are where they were.
impl Drop for Moves {
    fn drop(&mut self) {
        for change in &self.moves {
            shmem::change(&change.key, |entry| {
                if entry.kind() == Kind::Leased {
                    entry.granted.fetch_add(change.withdrawn, SeqCst);
                    entry.chunk.store(change.chunk, SeqCst);
                }
            });
        }
    }
}

fn publish_owed(entry: &Entry, units: i64) {
    entry.owed.fetch_sub(units, SeqCst);
    // One that was looked up again since, from what this has written, knows it.
    if entry.kind() == Kind::Escrow && !entry.is_stale() {
        entry.unfolded.fetch_add(1, SeqCst);
        entry.inf.fetch_sub(units, SeqCst);
        entry.sup.fetch_sub(units, SeqCst);
    }
}

fn publish(entry: &Entry, units: i64) {
    entry.noted.store(true, SeqCst);
    entry.asked.store(0, SeqCst);
    if units != 0 {
        entry.unfolded.fetch_add(1, SeqCst);
    }
    if units > 0 {
        entry.granted.fetch_add(units, SeqCst);
        entry.used_then.store(entry.sup.load(SeqCst), SeqCst);
        entry.extended_at.store(clock::now(), SeqCst);
    }
}

/// What is to become of a lease.
fn plan(key: &shmem::Key, moves: &mut Moves) -> Result<()> {
    let now = clock::now();
    // Behind a fence nothing is written: who moves or purges the tenant has the last word.
    if registry::tenant(key.tenant())?.is_some_and(|tenant| !fence::try_enter(&tenant)) {
        moves.fenced += 1;
        return Ok(());
    }
    let limit = limit_of(key, now)?;
    let change = shmem::change(key, |entry| {
        let mut change = Move {
            key: *key,
            resets_at: entry.resets_at.load(SeqCst),
            units: 0,
            at_hand: 0,
            withdrawn: 0,
            chunk: entry.chunk.load(SeqCst),
            is_owed: false,
        };
        if entry.kind() != Kind::Leased {
            // A stale one is looked up first, by who uses it next.
            let owed = entry.owed.load(SeqCst);
            (change.units, change.is_owed) = (-owed, true);
            return (owed > 0 && !entry.is_stale()).then_some(change);
        }
        let (used, granted) = (entry.sup.load(SeqCst), entry.granted.load(SeqCst));
        let is_idle = now - entry.called_at.load(SeqCst) > IDLE || change.resets_at <= now;
        if entry.returning.load(SeqCst) || is_idle || limit.is_none() {
            // Nobody takes of it from here on.
            entry.granted.store(used, SeqCst);
            // What was changed by other means is what the tables say now, and is not for us to correct.
            change.withdrawn = granted - used;
            change.units = if entry.is_stale() { 0 } else { -change.withdrawn };
            return Some(change);
        }
        let limit = limit.unwrap_or_default();
        let seconds = (now - entry.extended_at.load(SeqCst)).max(SHORTEST) as f64 / 1e6;
        let rate = (used - entry.used_then.load(SeqCst)).max(0) as f64 / seconds;
        let demand = Demand { used, granted, asked: entry.asked.load(SeqCst), rate: rate as i64 };
        change.units = chunk(&demand, limit);
        // What is at hand then is what a crash would strand, and what tells when to ask again.
        change.at_hand = granted + change.units - used;
        entry.chunk.store(change.at_hand, SeqCst);
        if change.units == 0 && change.at_hand <= change.chunk {
            entry.asked.store(0, SeqCst);
            return None;
        }
        Some(change)
    });
    if let Some(change) = change.flatten() {
        // Even with nothing to give back: that nothing is at stake any more is written down.
        if change.at_hand == 0 && !change.is_owed {
            moves.ended.push(*key);
        }
        moves.moves.push(change);
    }
    Ok(())
}

/// Up to where units of the key may be granted, if tenant and limit still are there.
fn limit_of(key: &shmem::Key, now: i64) -> Result<Option<Limit>> {
    let Some(tenant) = registry::tenant(key.tenant())? else { return Ok(None) };
    match registry::quota(&tenant, key.resource()) {
        Ok(quota) => Ok(Some(end_of(quota.limit(period::from_postgres(now)).0, quota.enforcement))),
        Err(Error::NoLimit { .. } | Error::Unknown { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where units end. A limit that denies nothing is no end.
fn end_of(limit: Limit, enforcement: Enforcement) -> Limit {
    limit.filter(|_| enforcement == Enforcement::Hard)
}

/// What is known of a lease that asks for more.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Units handed out.
    pub used: i64,
    /// Units accounted for.
    pub granted: i64,
    /// Units that somebody waits for, 0 if nobody does.
    pub asked: i64,
    /// Units a second since the last extension.
    pub rate: i64,
}

/// The units to grant: as many as are at hand then for a second at that rate, of what remains at most half, and at least
/// what is waited for. Pure.
pub fn chunk(demand: &Demand, limit: Limit) -> i64 {
    let remains = limit.unwrap_or(i64::MAX).saturating_sub(demand.granted).max(0);
    let unused = demand.granted - demand.used;
    let asked = demand.asked.saturating_sub(unused).max(0);
    let ahead = demand.rate.saturating_sub(unused).min((remains / 2).max(1));
    ahead.max(asked).min(remains).max(0)
}

/// Writes down which part of what is granted a crash would strand.
fn note(change: &Move) -> Result<()> {
    static EXTENDED: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.leases AS l (tenant_id, resource, period_start, resets_at, chunk) \
          VALUES ($1, $2, $3, $4, $5) ON CONFLICT (tenant_id, resource, period_start) DO UPDATE SET chunk = EXCLUDED.chunk",
        &[
            pg_sys::UUIDOID,
            pg_sys::TEXTOID,
            pg_sys::TIMESTAMPTZOID,
            pg_sys::TIMESTAMPTZOID,
            pg_sys::INT8OID,
        ],
    );
    let key = &change.key;
    let arguments = [
        Uuid::from_bytes(*key.tenant().as_bytes()).into_datum(),
        key.resource().into_datum(),
        key.period_start().into_datum(),
        change.resets_at.into_datum(),
        change.at_hand.into_datum(),
    ];
    as_owner(|| EXTENDED.execute(&arguments))?;
    Ok(())
}

/// What leases of before a crash have stranded: their last chunk counts as used. To be called in a transaction of a worker.
pub fn note_stranded() -> Result<()> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT l.tenant_id, l.resource, l.period_start FROM tenant_rls.leases AS l WHERE l.chunk OPERATOR(pg_catalog.>) 0",
        &[],
    );
    static UPDATE: CachedPlan = CachedPlan::new(
        c"UPDATE tenant_rls.leases AS l SET stranded = l.stranded OPERATOR(pg_catalog.+) l.chunk, chunk = 0 \
          WHERE l.tenant_id OPERATOR(pg_catalog.=) $1 AND l.resource OPERATOR(pg_catalog.=) $2 \
          AND l.period_start OPERATOR(pg_catalog.=) $3",
        &[pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::TIMESTAMPTZOID],
    );
    let mut lost = Vec::new();
    as_owner(|| {
        SELECT.run(&[], |row| {
            let (Some(id), Some(resource), Some(start)) =
                (row.get::<Uuid>(1), row.get::<String>(2), row.get::<i64>(3))
            else {
                return;
            };
            let tenant = crate::tenant::TenantId::from_bytes(*id.as_bytes());
            // A lease that callers have begun since, and that was not extended yet, is another one.
            let is_held = shmem::Key::new(tenant, &resource, start)
                .and_then(|key| {
                    shmem::look(&key, |entry| entry.kind() == Kind::Leased && entry.noted.load(SeqCst))
                })
                .unwrap_or(false);
            if !is_held {
                lost.push((id, resource, start));
            }
        });
        for (id, resource, start) in &lost {
            UPDATE.execute(&[id.into_datum(), resource.as_str().into_datum(), start.into_datum()]);
        }
    })
}

/// Forgets what leases of closed periods have stranded. How many there were.
pub fn forget_closed(batch: i64) -> Result<u64> {
    static DELETE: CachedPlan = CachedPlan::new(
        c"DELETE FROM tenant_rls.leases AS l WHERE l.ctid OPERATOR(pg_catalog.=) ANY (ARRAY( \
             SELECT s.ctid FROM tenant_rls.leases AS s WHERE s.chunk OPERATOR(pg_catalog.=) 0 \
             AND (s.stranded OPERATOR(pg_catalog.=) 0 OR s.resets_at OPERATOR(pg_catalog.<) \
                (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) '1 hour'::pg_catalog.interval)) \
             LIMIT $1))",
        &[pg_sys::INT8OID],
    );
    as_owner(|| DELETE.execute(&[batch.into_datum()]))
}

/// Keys of which more was used than events know, whatever has been folded.
pub fn news() -> Vec<Folded> {
    let mut news = Vec::with_capacity(MOST_KEYS);
    shmem::each(|entry| {
        let used = match entry.kind() {
            Kind::Leased => entry.sup.load(SeqCst),
            // A lease that has just ended; what transactions have committed is known.
            Kind::Escrow => entry.inf.load(SeqCst),
        };
        if used > entry.peak.load(SeqCst) && news.len() < news.capacity() {
            news.push(Folded::nothing(entry, used));
        }
    });
    news
}

/// Events know of those units now.
pub fn told(known: &[(shmem::Key, i64)]) {
    for (key, used) in known {
        shmem::look(key, |entry| entry.peak.fetch_max(*used, SeqCst));
    }
}

/// Leases of this database that should be looked at without being asked for, [`MOST_KEYS`] at most, and how many there are.
pub fn to_end(everything: bool) -> (Vec<shmem::Key>, usize) {
    let now = clock::now();
    let mut keys = Vec::with_capacity(MOST_KEYS);
    let mut leases = 0;
    shmem::each(|entry| {
        leases += usize::from(entry.kind() == Kind::Leased);
        let idle = now - entry.called_at.load(SeqCst) > IDLE || entry.resets_at.load(SeqCst) <= now;
        if entry.owed.load(SeqCst) > 0 && keys.len() < keys.capacity() {
            keys.push(*entry.key());
        } else if entry.kind() == Kind::Leased && keys.len() < keys.capacity() {
            if everything {
                entry.returning.store(true, SeqCst);
            }
            // A call that failed as a whole has given back what the tables do not say is at stake.
            let has_more = entry.granted.load(SeqCst) - entry.sup.load(SeqCst) > entry.chunk.load(SeqCst);
            if everything || idle || has_more || entry.returning.load(SeqCst) || entry.asked.load(SeqCst) > 0
            {
                keys.push(*entry.key());
            }
        }
    });
    (keys, leases)
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_chunk_shrinks_towards_the_limit() {
        let demand = |granted| Demand { used: granted, granted, asked: 1, rate: 1000 };
        assert_eq!(chunk(&demand(0), Some(10_000)), 1000);
        assert_eq!(chunk(&demand(9_900), Some(10_000)), 50);
        assert_eq!(chunk(&demand(9_999), Some(10_000)), 1);
        assert_eq!(chunk(&demand(10_000), Some(10_000)), 0);
    }

    #[test]
    fn who_asks_for_more_than_a_chunk_gets_it_or_what_there_is() {
        let demand = Demand { used: 90, granted: 100, asked: 500, rate: 0 };
        assert_eq!(chunk(&demand, Some(1000)), 490);
        assert_eq!(chunk(&demand, Some(589)), 489);
        assert_eq!(chunk(&demand, None), 490);
    }

    proptest! {
        #[test]
        fn no_chunk_passes_the_limit(used: i64, granted: i64, asked: i64, rate: i64, limit: Option<i64>) {
            let mask = |number: i64| number & i64::MAX;
            let (granted, limit) = (mask(granted), limit.map(mask));
            let demand = Demand { used: mask(used).min(granted), granted, asked: mask(asked), rate: mask(rate) };
            let units = chunk(&demand, limit);
            prop_assert!(units >= 0);
            if let Some(limit) = limit {
                prop_assert!(units == 0 || granted <= limit - units);
            }
        }
    }
}
