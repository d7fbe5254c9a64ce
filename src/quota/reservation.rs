//! Reservations: units that are held until it is known how many it takes, or until their time is over.
//!
//! # States
//!
//! A reservation is `held` until it is `settled` at what it really took, `cancelled`, or `expired`. The units count as
//! used from the start, in the period in which they were reserved. One whose time is over is *due*: it counts as free, and
//! can be neither settled nor cancelled any more, although its units are given back only when somebody needs them
//! ([`expire`], by a call that would be denied otherwise) or when it is swept up ([`expire_due`]).
//!
//! # Lock protocol
//!
//! Whoever ends a reservation holds a lock on it until the transaction ends. So the next one waits, and then sees what is
//! committed, at every isolation level. It changes the row before it changes units, for the time may be over when it has
//! waited for those. What expires reservations takes rows that nobody has locked, and waits for none.

use pgrx::datum::Interval;
use pgrx::prelude::*;
use pgrx::{Uuid, pg_sys};

use super::decision::{Reason, Verdict};
use super::idempotency::{self, Request};
use super::period::{self, Window};
use super::result::{Answer, composite};
use super::{
    Holds, Key, admit, admitted, check_still_writable, check_writable, check_writer, checked_amount, escrow,
    key_of_session, mode_of, take, take_or_raise, take_transactional,
};
use crate::call::{argument, sql_function};
use crate::clock;
use crate::context;
use crate::error::{Error, Result};
use crate::lock::{Class, Lock};
use crate::plan::{CachedPlan, as_owner};
use crate::registry;
use crate::registry::admin::datum;
use crate::tenant::TenantId;

/// The longest time that units are held for, in microseconds.
const LONGEST_TTL: i64 = 30 * 86_400_000_000;

/// Keys whose reservations are swept up in one transaction, which holds a lock for each.
const MOST_KEYS: i64 = 64;

/// The units of a key that reservations hold.
pub fn holds(key: &Key) -> Result<Holds> {
    // A gauge that follows rows counts them, and nothing else; there are no reservations of a lease.
    if key.quota.resource.attached || key.is_leased() || !escrow::may_hold(key) {
        return Ok(Holds::default());
    }
    recorded_holds(key)
}

/// The same, as the table says it.
pub fn recorded_holds(key: &Key) -> Result<Holds> {
    let start = period::to_postgres(key.window.start);
    let now = period::to_postgres(key.now);
    registry::units::holds(key.tenant.id, &key.quota.resource.name, start, now)
}

sql_function!(
    /// Holds units, or raises 53400.
    tenant_quota_reserve,
    pg_finfo_tenant_quota_reserve,
    |fcinfo| reserve_call(fcinfo, take_or_raise)
);

sql_function!(
    /// Holds units if the limit allows it.
    tenant_quota_try_reserve,
    pg_finfo_tenant_quota_try_reserve,
    |fcinfo| reserve_call(fcinfo, take)
);

sql_function!(
    /// Ends a reservation at what it really took.
    tenant_quota_settle,
    pg_finfo_tenant_quota_settle,
    |fcinfo| {
        let id = argument(fcinfo, 0).ok_or(Error::Null("the reservation"))?;
        let actual = checked_amount(argument(fcinfo, 1))?;
        Ok(composite(fcinfo, &end(id, Outcome::Settle(actual))?))
    }
);

sql_function!(
    /// Ends a reservation that took nothing.
    tenant_quota_cancel,
    pg_finfo_tenant_quota_cancel,
    |fcinfo| {
        let id = argument(fcinfo, 0).ok_or(Error::Null("the reservation"))?;
        Ok(composite(fcinfo, &end(id, Outcome::Cancel)?))
    }
);

/// # Safety
///
/// `fcinfo` is a call of reserve or try_reserve: text, bigint, interval, text.
unsafe fn reserve_call(
    fcinfo: pg_sys::FunctionCallInfo,
    take: fn(&mut Key, i64) -> Result<Answer>,
) -> Result<pg_sys::Datum> {
    // SAFETY: the caller vouches for the arguments.
    unsafe {
        let resource: Option<&str> = argument(fcinfo, 0);
        let resource = resource.ok_or(Error::Null("the resource"))?;
        let amount = checked_amount(argument(fcinfo, 1))?;
        let ttl = checked_ttl(argument(fcinfo, 2))?;
        let reserve = || reserve(resource, amount, ttl, take);
        let answer = match argument(fcinfo, 3) {
            None => reserve()?,
            Some(key) => {
                idempotency::once_for_one(key, &Request::reservation(resource, amount, ttl), reserve)?
            }
        };
        Ok(composite(fcinfo, &answer))
    }
}

/// Microseconds.
fn checked_ttl(ttl: Option<Interval>) -> Result<i64> {
    let ttl = ttl.ok_or(Error::Null("the ttl"))?;
    match clock::length(&ttl) {
        ..=0 => Err(Error::NotAhead {
            what: "ttl",
            value: ttl.to_string(),
            hint: "Use a longer time: as long as the work takes at most.",
        }),
        length => {
            i64::try_from(length).ok().filter(|length| *length <= LONGEST_TTL).ok_or_else(|| Error::Invalid {
                what: "ttl",
                value: ttl.to_string(),
                hint: "Units can be held for 30 days at most.".into(),
            })
        }
    }
}

fn reserve(
    resource: &str,
    amount: i64,
    ttl: i64,
    take: fn(&mut Key, i64) -> Result<Answer>,
) -> Result<Answer> {
    static INSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.reservations (tenant_id, resource, period_start, resets_at, units, expires_at) \
          VALUES ($1, $2, $3, $4, $5, $6) RETURNING reservation_id",
        &[
            pg_sys::UUIDOID,
            pg_sys::TEXTOID,
            pg_sys::TIMESTAMPTZOID,
            pg_sys::TIMESTAMPTZOID,
            pg_sys::INT8OID,
            pg_sys::TIMESTAMPTZOID,
        ],
    );
    let mut key = key_of_session(Some(resource))?;
    let mut answer = take_transactional(&mut key, amount, take)?;
    if answer.verdict.granted == 0 {
        return Ok(answer);
    }
    escrow::note_hold(&key);
    let arguments = [
        datum(key.tenant.id),
        resource.into_datum(),
        period::to_postgres(key.window.start).into_datum(),
        period::to_postgres(key.window.end).into_datum(),
        amount.into_datum(),
        // The time begins when the units are there.
        (clock::now() + ttl).into_datum(),
    ];
    answer.reservation_id = as_owner(|| INSERT.first(&arguments, |row| row.get(1)))?.flatten();
    answer.held += amount;
    Ok(answer)
}

/// How a reservation ends at the hands of its tenant.
#[derive(Clone, Copy)]
enum Outcome {
    Settle(i64),
    Cancel,
}

/// What has become of a reservation.
#[derive(Clone, Copy)]
enum State {
    Held,
    Settled(i64),
    Cancelled,
    Expired,
}

/// A row of `tenant_rls.reservations`.
struct Reservation {
    resource: String,
    window: Window,
    units: i64,
    state: State,
}

fn find(tenant: TenantId, id: Uuid) -> Result<Reservation> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT r.resource, r.period_start, r.resets_at, r.units, r.actual, r.state, \
              r.expires_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() \
          FROM tenant_rls.reservations AS r \
          WHERE r.reservation_id OPERATOR(pg_catalog.=) $1 AND r.tenant_id OPERATOR(pg_catalog.=) $2",
        &[pg_sys::UUIDOID, pg_sys::UUIDOID],
    );
    let mut found = None;
    as_owner(|| {
        SELECT.run_latest(&[id.into_datum(), datum(tenant)], |row| {
            let instant = |column| row.get::<i64>(column).map(period::from_postgres).unwrap_or_default();
            let state = match (row.get::<String>(6).as_deref(), row.get(7)) {
                (Some("held"), Some(false)) => State::Held,
                (Some("settled"), _) => State::Settled(row.get(5).unwrap_or_default()),
                (Some("cancelled"), _) => State::Cancelled,
                _ => State::Expired,
            };
            found = Some(Reservation {
                resource: row.get(1).unwrap_or_default(),
                window: Window { start: instant(2), end: instant(3) },
                units: row.get(4).unwrap_or_default(),
                state,
            });
        });
    })?;
    // Of another tenant's the answer is the same.
    found.ok_or_else(|| Error::Unknown {
        what: "reservation",
        name: id.to_string(),
        known: Vec::new(),
        hint: "tenant_quota_reserve answers with its reservation_id; one that has ended is forgotten a day after its time.",
    })
}

fn end(id: Uuid, outcome: Outcome) -> Result<Answer> {
    let tenant = context::required()?;
    check_writer(&tenant)?;
    // With the tenant in it: nobody waits for the reservation of another.
    let lock = Lock::hashed(Class::Once, &(tenant.id, id.as_bytes()));
    lock.acquire();
    let tenant = context::required()?;
    let found = find(tenant.id, id)?;
    let mut key = Key::to_settle(tenant, &found.resource, found.window)?;
    let (reason, granted) = match (found.state, outcome) {
        (State::Held, outcome) => return end_held(id, &found, &mut key, outcome),
        (State::Settled(before), Outcome::Settle(actual)) if before == actual => (Reason::Replay, actual),
        (State::Settled(before), Outcome::Settle(actual)) => {
            return Err(Error::Invalid {
                what: "number of units",
                value: actual.to_string(),
                hint: format!("The reservation was settled at {before} units, and stays so."),
            });
        }
        (State::Cancelled, Outcome::Cancel) => (Reason::Replay, found.units),
        // Its units are free already.
        (State::Expired, Outcome::Cancel) => (Reason::Ok, 0),
        (State::Settled(_), Outcome::Cancel) => return Err(ended("was settled")),
        (State::Cancelled, Outcome::Settle(_)) => return Err(ended("was cancelled")),
        (State::Expired, Outcome::Settle(_)) => return Err(ended("has expired")),
    };
    // What has ended does not change any more: nobody has to wait for this transaction.
    lock.release();
    Ok(ending(super::peek(&key)?, id, reason, granted))
}

fn ended(how: &str) -> Error {
    Error::WrongState {
        what: format!("the reservation {how}"),
        detail: "Its units are not held any more.".into(),
        hint: "Take what was used with tenant_quota_consume.",
    }
}

/// Ends a reservation that is held, whose lock the caller holds.
fn end_held(id: Uuid, found: &Reservation, key: &mut Key, outcome: Outcome) -> Result<Answer> {
    static END: CachedPlan = CachedPlan::new(
        c"UPDATE tenant_rls.reservations AS r SET state = $2, actual = $3 \
          WHERE r.reservation_id OPERATOR(pg_catalog.=) $1 AND r.state OPERATOR(pg_catalog.=) 'held'",
        &[pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::INT8OID],
    );
    check_writable(key)?;
    let (state, actual) = match outcome {
        Outcome::Settle(actual) => ("settled", Some(actual)),
        Outcome::Cancel => ("cancelled", None),
    };
    let arguments = [id.into_datum(), state.into_datum(), actual.into_datum()];
    if as_owner(|| END.run_latest(&arguments, |_| ()))? == 0 {
        // Its time was over between the look and this.
        return Err(ended("has expired"));
    }
    let back = found.units.saturating_sub(actual.unwrap_or(0));
    let (answer, reason) = if back < 0 {
        let answer = take_or_raise(key, -back)?;
        let reason = answer.verdict.reason;
        (answer, reason)
    } else {
        if back > 0 {
            mode_of(key).give(key, back)?;
            check_still_writable(key)?;
        }
        (super::peek(key)?, Reason::Ok)
    };
    Ok(ending(answer, id, reason, actual.unwrap_or(found.units)))
}

/// The answer to the end of a reservation: `granted` is what it took, or, cancelled, what it gave back.
fn ending(answer: Answer, id: Uuid, reason: Reason, granted: i64) -> Answer {
    let verdict = Verdict { allowed: true, granted, reason, ..answer.verdict };
    Answer { verdict, reservation_id: Some(id), ..answer }
}

/// Gives the units of at most `most` reservations of a key back whose time is over. How many there were.
pub fn expire(key: &Key, most: i64) -> Result<u64> {
    static EXPIRE: CachedPlan = CachedPlan::new(
        c"WITH due AS MATERIALIZED ( \
              SELECT r.reservation_id FROM tenant_rls.reservations AS r \
              WHERE r.tenant_id OPERATOR(pg_catalog.=) $1 AND r.resource OPERATOR(pg_catalog.=) $2 \
              AND r.period_start OPERATOR(pg_catalog.=) $3 AND r.state OPERATOR(pg_catalog.=) 'held' \
              AND r.expires_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() \
              ORDER BY r.expires_at LIMIT $4 FOR UPDATE SKIP LOCKED) \
          UPDATE tenant_rls.reservations AS r SET state = 'expired' FROM due \
          WHERE r.reservation_id OPERATOR(pg_catalog.=) due.reservation_id RETURNING r.units",
        &[pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::TIMESTAMPTZOID, pg_sys::INT8OID],
    );
    let mut units: i64 = 0;
    let resource = &key.quota.resource.name;
    let start = period::to_postgres(key.window.start);
    let arguments = [datum(key.tenant.id), (&**resource).into_datum(), start.into_datum(), most.into_datum()];
    let expired = as_owner(|| {
        EXPIRE.run_latest(&arguments, |row| {
            units = units.saturating_add(row.get(1).unwrap_or_default());
        })
    })?;
    if units > 0 && !key.quota.resource.attached {
        let mut key = Key::to_settle(key.tenant.clone(), resource, key.window)?;
        match mode_of(&key).give(&mut key, units) {
            // Somebody has set the units by hand. That must not keep the tenant, or all others, from going on.
            Err(Error::BelowZero { used, .. }) if used > 0 => mode_of(&key).give(&mut key, used).map(drop)?,
            Err(Error::BelowZero { .. }) => {}
            left => left.map(drop)?,
        }
    }
    Ok(expired)
}

/// Ends what is held of a gauge that begins or ceases to follow rows: what it says then is the number of rows.
///
/// The caller keeps quota calls away. One that has changed its reservation and waits for the units is refused when it goes
/// on; it is not waited for.
pub fn end_all(resource: &str) -> Result<()> {
    static END: CachedPlan = CachedPlan::new(
        c"WITH held AS MATERIALIZED ( \
              SELECT r.reservation_id FROM tenant_rls.reservations AS r \
              WHERE r.resource OPERATOR(pg_catalog.=) $1 AND r.state OPERATOR(pg_catalog.=) 'held' \
              FOR UPDATE SKIP LOCKED) \
          UPDATE tenant_rls.reservations AS r SET state = 'expired' FROM held \
          WHERE r.reservation_id OPERATOR(pg_catalog.=) held.reservation_id",
        &[pg_sys::TEXTOID],
    );
    as_owner(|| END.run_latest(&[resource.into_datum()], |_| ()))?;
    Ok(())
}

/// Gives the units of at most `batch` reservations back whose time is over. See [`sweep`](super::sweep).
pub fn expire_due(batch: i64) -> Result<u64> {
    static KEYS: CachedPlan = CachedPlan::new(
        c"SELECT r.tenant_id, r.resource, r.period_start, r.resets_at FROM tenant_rls.reservations AS r \
          JOIN tenant_rls.tenants AS t ON t.tenant_id OPERATOR(pg_catalog.=) r.tenant_id \
          WHERE r.state OPERATOR(pg_catalog.=) 'held' \
          AND r.expires_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() \
          AND t.status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'suspended']::pg_catalog.text[]) \
          GROUP BY r.tenant_id, r.resource, r.period_start, r.resets_at ORDER BY pg_catalog.random() LIMIT $1",
        &[pg_sys::INT8OID],
    );
    let mut keys = Vec::new();
    as_owner(|| {
        KEYS.run_latest(&[batch.min(MOST_KEYS).into_datum()], |row| {
            let instant = |column| row.get::<i64>(column).map(period::from_postgres).unwrap_or_default();
            let window = Window { start: instant(3), end: instant(4) };
            keys.extend(row.get::<Uuid>(1).zip(row.get::<String>(2)).map(|(id, name)| (id, name, window)));
        });
    })?;
    let mut expired = 0;
    for (id, resource, window) in keys {
        let left = batch - expired as i64;
        if left <= 0 {
            break;
        }
        let Some(tenant) = admit(id)? else { continue };
        let key = match Key::to_settle(tenant, &resource, window) {
            // A resource that was deleted by hand.
            Err(Error::Unknown { .. }) => continue,
            key => key?,
        };
        if mode_of(&key).try_lock(&key) {
            expired += expire(&key, left)?;
        }
    }
    Ok(expired)
}

/// Deletes at most `batch` reservations that have ended, a day after their time. See [`sweep`](super::sweep).
pub fn forget_ended(batch: i64) -> Result<u64> {
    static TENANTS: CachedPlan = CachedPlan::new(
        c"SELECT DISTINCT old.tenant_id FROM ( \
              SELECT r.tenant_id FROM tenant_rls.reservations AS r \
              JOIN tenant_rls.tenants AS t ON t.tenant_id OPERATOR(pg_catalog.=) r.tenant_id \
              WHERE r.state OPERATOR(pg_catalog.<>) 'held' AND r.expires_at OPERATOR(pg_catalog.<=) \
                  (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) '24 hours'::pg_catalog.interval) \
              AND t.status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'suspended']::pg_catalog.text[]) \
              ORDER BY r.expires_at LIMIT $1) AS old LIMIT $2",
        &[pg_sys::INT8OID, pg_sys::INT8OID],
    );
    static DELETE: CachedPlan = CachedPlan::new(
        c"WITH old AS MATERIALIZED ( \
              SELECT r.reservation_id FROM tenant_rls.reservations AS r \
              WHERE r.state OPERATOR(pg_catalog.<>) 'held' AND r.expires_at OPERATOR(pg_catalog.<=) \
                  (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) '24 hours'::pg_catalog.interval) \
              AND r.tenant_id OPERATOR(pg_catalog.=) ANY ($1) \
              ORDER BY r.expires_at LIMIT $2 FOR UPDATE SKIP LOCKED) \
          DELETE FROM tenant_rls.reservations AS r USING old \
          WHERE r.reservation_id OPERATOR(pg_catalog.=) old.reservation_id",
        &[pg_sys::UUIDARRAYOID, pg_sys::INT8OID],
    );
    let tenants = admitted(&TENANTS, batch)?;
    as_owner(|| DELETE.run_latest(&[tenants.into_datum(), batch.into_datum()], |_| ()))
}
