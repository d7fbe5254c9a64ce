//! A cache of each tenant, in an unlogged table.
//!
//! # Reading
//!
//! `tenant_cache_get` is one index lookup below SQL, with the catalog snapshot: it sees what is committed now. It writes
//! nothing: hits and misses are counted in the backend, and handed over with the next write, or after `MOST_UNTOLD`
//! calls, if nobody has to be waited for. Counts that a transaction has handed over are lost when it rolls back.
//!
//! # Writing
//!
//! An entry is a row; two transactions that set one key wait for each other as for any row. What the entries of a tenant
//! add up to is kept in `PARTS` rows a tenant, of which a transaction takes one that no other open transaction
//! has taken: sessions that set different keys of one tenant do not wait. A part is taken by a lock of the advisory kind,
//! with a class number that no SQL function can produce, to the end of the transaction.
//!
//! # The budget
//!
//! The limit of the resource `cache_bytes`, checked after each write against what is committed and the transaction's
//! own. Over it the tenant's expired entries go, then its oldest ones, which indexes find; those that another transaction is
//! changing stay. One write in `SWEEP_EVERY` looks for expired entries in any case: what is written once and not asked
//! for again would stay until the budget is used up.

pub mod glob;

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::prelude::*;
use pgrx::{AnyNumeric, direct_function_call_as_datum, pg_sys};

use crate::backend::Backend;
use crate::call::{answer, argument, datum_argument, sql_function};
use crate::clock;
use crate::composite::composite;
use crate::context::{self, fence};
use crate::error::{Error, Result, or_raise};
use crate::lock::{Class, Lock};
use crate::plan::{CachedPlan, as_owner, with_indexes};
use crate::quota::decision::Enforcement;
use crate::quota::period;
use crate::registry::admin::datum;
use crate::registry::cache::{self, Entry, Order, Totals};
use crate::registry::{self, Tenant};
use crate::tenant::TenantId;
use glob::{Glob, successor};

const UUID: pg_sys::Oid = pg_sys::UUIDOID;
const TEXT: pg_sys::Oid = pg_sys::TEXTOID;
const INT8: pg_sys::Oid = pg_sys::INT8OID;
const INT4: pg_sys::Oid = pg_sys::INT4OID;
const TIMESTAMPTZ: pg_sys::Oid = pg_sys::TIMESTAMPTZOID;

/// Rows that the totals of a tenant are kept in.
const PARTS: i32 = 32;

/// Bytes that an entry counts beside key and value: its row and its places in two indexes.
const ROW: i64 = 100;

/// The longest key, in bytes: an index holds it.
const LONGEST_KEY: usize = 1024;

/// The longest pattern, in bytes: a comparison takes up to the product of the lengths, and cannot be canceled.
const LONGEST_PATTERN: usize = 4096;

/// Calls of `tenant_cache_get` that a backend counts before it writes the counts itself.
const MOST_UNTOLD: i64 = 10_000;

/// One write in so many takes expired entries along.
const SWEEP_EVERY: i64 = 16;

/// Expired entries that such a write takes along: more than are made meanwhile.
const MOST_SWEPT: usize = 32;

/// Tenants whose counts a backend holds.
const MOST_TENANTS: usize = 4096;

/// Hits and misses that are not in a table yet.
static UNTOLD: Backend<RefCell<Option<Counts>>> = Backend::new(RefCell::new(None));

/// Hits and misses.
type Counts = HashMap<TenantId, (i64, i64)>;

/// Counts a call, and says how many of the tenant are not in a table yet.
fn count(id: TenantId, hit: bool) -> i64 {
    let mut slot = UNTOLD.borrow_mut();
    let counts = slot.get_or_insert_default();
    if counts.len() >= MOST_TENANTS && !counts.contains_key(&id) {
        counts.clear();
    }
    let (hits, misses) = counts.entry(id).or_default();
    if hit {
        *hits += 1;
    } else {
        *misses += 1;
    }
    *hits + *misses
}

/// The counts of a tenant, which are then the caller's to write.
fn take_counts(id: TenantId) -> (i64, i64) {
    UNTOLD.borrow_mut().as_mut().and_then(|counts| counts.remove(&id)).unwrap_or_default()
}

fn checked<'a>(
    text: Option<&'a str>,
    what: &'static str,
    most: usize,
    hint: &'static str,
) -> Result<&'a str> {
    let text = text.ok_or(Error::Null(what))?;
    if text.len() > most {
        return Err(Error::TooLong { what, bytes: text.len(), most, hint });
    }
    Ok(text)
}

/// The tenant of a call that writes: not in a read-only transaction, not on a standby, not behind a fence.
fn writer(command: &std::ffi::CStr) -> Result<std::rc::Rc<Tenant>> {
    let tenant = context::required()?;
    // SAFETY: raises 25006 in a read-only transaction, which a standby's always are.
    unsafe { pg_sys::PreventCommandIfReadOnly(command.as_ptr()) };
    fence::enter(&tenant)?;
    Ok(tenant)
}

/// A part of the tenant's totals that no other open transaction has, until the end of this one. If all are taken, waits
/// for one, or answers `None`.
fn find_part(id: TenantId, wait: bool) -> Option<i32> {
    // SAFETY: reads a variable of the backend.
    let own = unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        let number = (*pg_sys::MyProc).pgprocno;
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        let number = pg_sys::MyProcNumber;
        number % PARTS
    };
    let lock = |part: i32| Lock::of_tenant(Class::CachePart, id, part as u32);
    let free = (0..PARTS).map(|step| (own + step) % PARTS).find(|part| lock(*part).try_acquire());
    free.or_else(|| wait.then(|| lock(own).acquire()).map(|()| own))
}

fn part(id: TenantId) -> i32 {
    find_part(id, true).unwrap_or_default()
}

/// Adds to a part of the totals, and hands over what was counted.
fn add(id: TenantId, part: i32, key_count: i64, size: i64, evictions: i64) {
    static UPSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.cache_parts AS p (tenant_id, part, key_count, size, hits, misses, evictions) \
          VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (tenant_id, part) DO UPDATE \
          SET key_count = p.key_count OPERATOR(pg_catalog.+) EXCLUDED.key_count, \
              size = p.size OPERATOR(pg_catalog.+) EXCLUDED.size, hits = p.hits OPERATOR(pg_catalog.+) EXCLUDED.hits, \
              misses = p.misses OPERATOR(pg_catalog.+) EXCLUDED.misses, \
              evictions = p.evictions OPERATOR(pg_catalog.+) EXCLUDED.evictions",
        &[UUID, INT4, INT8, INT8, INT8, INT8, INT8],
    );
    let (hits, misses) = take_counts(id);
    let numbers = [key_count, size, hits, misses, evictions].map(IntoDatum::into_datum);
    let [a, b, c, d, e] = numbers;
    UPSERT.run_latest(&[datum(id), part.into_datum(), a, b, c, d, e], |_| ());
}

sql_function!(
    /// The value of a key.
    tenant_cache_get,
    pg_finfo_tenant_cache_get,
    |fcinfo| {
        let key: Option<&str> = argument(fcinfo, 0);
        let key = key.ok_or(Error::Null("the key"))?;
        let tenant = context::required()?;
        if !cache::is_here() {
            return Ok(answer(fcinfo, None));
        }
        let value = cache::value(tenant.id, key, clock::now())?;
        let untold = count(tenant.id, value.is_some());
        if untold >= MOST_UNTOLD {
            hand_over(&tenant)?;
        }
        Ok(answer(fcinfo, value))
    }
);

/// Writes what was counted, where that is allowed and waits for nobody.
fn hand_over(tenant: &Tenant) -> Result<()> {
    // SAFETY: reads a variable of the backend.
    if unsafe { pg_sys::XactReadOnly } || !fence::try_enter(tenant) {
        return Ok(());
    }
    find_part(tenant.id, false).map_or(Ok(()), |part| as_owner(|| add(tenant.id, part, 0, 0, 0)))
}

sql_function!(
    /// Keeps a value.
    tenant_cache_set,
    pg_finfo_tenant_cache_set,
    |fcinfo| {
        let key = checked(argument(fcinfo, 0), "the key", LONGEST_KEY, "Use a hash of it.")?;
        let value = datum_argument(fcinfo, 1).ok_or(Error::Null("the value"))?;
        let expires_at = expiry(argument(fcinfo, 2))?;
        let tenant = writer(c"tenant_cache_set()")?;
        let value = pg_sys::Datum::from(pg_sys::pg_detoast_datum(value.cast_mut_ptr()));
        let size = (key.len() + pgrx::varlena::varsize_4b(value.cast_mut_ptr())) as i64 + ROW;
        set(&tenant, key, value, expires_at, size)?;
        Ok(pg_sys::Datum::null())
    }
);

/// The instant at which the time is over, by the server's clock.
fn expiry(ttl: Option<pgrx::datum::Interval>) -> Result<pg_sys::Datum> {
    let ttl = ttl.ok_or(Error::Null("the ttl"))?;
    if clock::length(&ttl) <= 0 {
        return Err(Error::NotAhead {
            what: "ttl",
            value: ttl.to_string(),
            hint: "Use a longer time; tenant_cache_delete removes a key.",
        });
    }
    let now = pg_sys::Datum::from(clock::now());
    // SAFETY: a timestamptz and an interval. Raises 22008 beyond the end of time.
    let expires_at = unsafe {
        direct_function_call_as_datum(pg_sys::timestamptz_pl_interval, &[Some(now), ttl.into_datum()])
    };
    Ok(expires_at.unwrap_or(now))
}

/// The budget of a tenant, `None` without one that holds.
fn budget(tenant: &std::rc::Rc<Tenant>) -> Result<Option<i64>> {
    let quota = registry::quota(tenant, cache::RESOURCE)?;
    Ok(quota.limit(period::from_postgres(clock::now())).0.filter(|_| quota.enforcement == Enforcement::Hard))
}

fn set(
    tenant: &std::rc::Rc<Tenant>,
    key: &str,
    value: pg_sys::Datum,
    expires_at: pg_sys::Datum,
    size: i64,
) -> Result<()> {
    // The row tells what it had counted before: whoever waited for another transaction replaces that one's entry.
    static UPSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.cache AS c (tenant_id, key, value, expires_at, set_at, size, replaced) \
          VALUES ($1, $2, $3, $4, pg_catalog.clock_timestamp(), $5, 0) ON CONFLICT (tenant_id, key) DO UPDATE \
          SET value = EXCLUDED.value, expires_at = EXCLUDED.expires_at, set_at = EXCLUDED.set_at, \
              size = EXCLUDED.size, replaced = c.size \
          RETURNING replaced",
        &[UUID, TEXT, pg_sys::JSONBOID, TIMESTAMPTZ, INT8],
    );
    let budget = budget(tenant)?;
    let id = tenant.id;
    if budget.is_some_and(|budget| size > budget) {
        // It would have to go at once. The value before it does not hold any more either.
        remove(id, key, 1)?;
        return Ok(());
    }
    let part = part(id);
    as_owner(|| {
        let arguments = [datum(id), key.into_datum(), Some(value), Some(expires_at), size.into_datum()];
        let mut replaced = 0;
        UPSERT.run_latest(&arguments, |row| replaced = row.get(1).unwrap_or_default());
        add(id, part, i64::from(replaced == 0), size - replaced, 0);
    })?;
    let over = budget.map_or(Ok(0), |budget| cache::totals(id).map(|totals| totals.size - budget))?.max(0);
    if over > 0 || clock::now() % SWEEP_EVERY == 0 {
        trim(id, part, over)?;
    }
    Ok(())
}

/// Removes entries of the tenant that have expired, and then its oldest ones, until `over` bytes are free.
fn trim(id: TenantId, part: i32, over: i64) -> Result<()> {
    let now = clock::now();
    let expired = select(id, Order::Expiry, |entry, number, size| {
        entry.expires_at <= now && (number < MOST_SWEPT || size < over)
    })?;
    let (mut key_count, mut size) = evict(id, expired)?;
    let mut evictions = 0;
    if size < over {
        let old = select(id, Order::Age, |_, _, found| size + found < over)?;
        let (number, bytes) = evict(id, old)?;
        evictions = number;
        key_count += number;
        size += bytes;
    }
    if key_count > 0 {
        as_owner(|| add(id, part, -key_count, -size, evictions))?;
    }
    Ok(())
}

/// The keys of the first entries, and when the last of them was set. `wanted` is asked with an entry, and with the
/// number and bytes of those before it.
fn select(
    id: TenantId,
    order: Order,
    wanted: impl Fn(&Entry, usize, i64) -> bool,
) -> Result<(Vec<String>, i64)> {
    let (mut keys, mut size, mut newest) = (Vec::new(), 0, i64::MIN);
    cache::entries(id, order, |entry| {
        let wanted = wanted(&entry, keys.len(), size);
        if wanted {
            size += entry.size;
            newest = newest.max(entry.set_at);
            keys.push(entry.key);
        }
        wanted
    })?;
    Ok((keys, newest))
}

/// Removes entries that were set no later than that, and that nobody is changing. How many, and their bytes.
fn evict(id: TenantId, (keys, newest): (Vec<String>, i64)) -> Result<(i64, i64)> {
    static DELETE: CachedPlan = CachedPlan::new(
        c"WITH old AS MATERIALIZED ( \
              SELECT c.key FROM tenant_rls.cache AS c \
              WHERE c.tenant_id OPERATOR(pg_catalog.=) $1 AND c.key OPERATOR(pg_catalog.=) ANY ($2) \
              AND c.set_at OPERATOR(pg_catalog.<=) $3 FOR UPDATE SKIP LOCKED), \
          gone AS (DELETE FROM tenant_rls.cache AS c USING old \
              WHERE c.tenant_id OPERATOR(pg_catalog.=) $1 AND c.key OPERATOR(pg_catalog.=) old.key RETURNING c.size) \
          SELECT pg_catalog.count(*), pg_catalog.sum(gone.size)::pg_catalog.int8 FROM gone",
        &[UUID, pg_sys::TEXTARRAYOID, TIMESTAMPTZ],
    );
    if keys.is_empty() {
        return Ok((0, 0));
    }
    let arguments = [datum(id), keys.into_datum(), Some(pg_sys::Datum::from(newest))];
    removed(&DELETE, &arguments)
}

/// What a statement has removed: the number of entries and their bytes, which it answers with.
fn removed(delete: &CachedPlan, arguments: &[Option<pg_sys::Datum>]) -> Result<(i64, i64)> {
    let mut gone = (0, 0);
    let mut read = |row: &crate::plan::Row| {
        gone = (row.get(1).unwrap_or_default(), row.get(2).unwrap_or_default());
    };
    as_owner(|| with_indexes(|| delete.run_latest(arguments, &mut read)))?;
    Ok(gone)
}

/// Removes a key. Whether it was there.
fn remove(id: TenantId, key: &str, evictions: i64) -> Result<bool> {
    static DELETE: CachedPlan = CachedPlan::new(
        c"DELETE FROM tenant_rls.cache AS c \
          WHERE c.tenant_id OPERATOR(pg_catalog.=) $1 AND c.key OPERATOR(pg_catalog.=) $2 \
          RETURNING c.size, c.expires_at OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()",
        &[UUID, TEXT],
    );
    let mut found = None;
    as_owner(|| {
        with_indexes(|| {
            DELETE.run_latest(&[datum(id), key.into_datum()], |row| {
                found = Some((row.get::<i64>(1).unwrap_or_default(), row.get::<bool>(2) == Some(true)));
            })
        })
    })?;
    if found.is_some() || evictions > 0 {
        let (key_count, size) = found.map_or((0, 0), |(size, _)| (-1, -size));
        let part = part(id);
        as_owner(|| add(id, part, key_count, size, evictions))?;
    }
    Ok(found.is_some_and(|(_, was_valid)| was_valid))
}

sql_function!(
    /// Removes a key.
    tenant_cache_delete,
    pg_finfo_tenant_cache_delete,
    |fcinfo| {
        let key: Option<&str> = argument(fcinfo, 0);
        let key = key.ok_or(Error::Null("the key"))?;
        let tenant = writer(c"tenant_cache_delete()")?;
        Ok(answer(fcinfo, remove(tenant.id, key, 0)?.into_datum()))
    }
);

sql_function!(
    /// Removes the keys of a pattern.
    tenant_cache_invalidate,
    pg_finfo_tenant_cache_invalidate,
    |fcinfo| {
        let hint = "Invalidate with several patterns.";
        let pattern = checked(argument(fcinfo, 0), "the pattern", LONGEST_PATTERN, hint)?;
        let tenant = writer(c"tenant_cache_invalidate()")?;
        let (key_count, size) = invalidate(tenant.id, pattern)?;
        if key_count > 0 {
            let part = part(tenant.id);
            as_owner(|| add(tenant.id, part, -key_count, -size, 0))?;
        }
        Ok(answer(fcinfo, key_count.into_datum()))
    }
);

fn invalidate(id: TenantId, pattern: &str) -> Result<(i64, i64)> {
    static BETWEEN: CachedPlan = CachedPlan::new(
        c"WITH gone AS (DELETE FROM tenant_rls.cache AS c \
              WHERE c.tenant_id OPERATOR(pg_catalog.=) $1 AND c.key OPERATOR(pg_catalog.>=) $3 \
              AND c.key OPERATOR(pg_catalog.<) $4 AND tenant_rls.cache_key_matches(c.key, $2) RETURNING c.size) \
          SELECT pg_catalog.count(*), pg_catalog.sum(gone.size)::pg_catalog.int8 FROM gone",
        &[UUID, TEXT, TEXT, TEXT],
    );
    static FROM: CachedPlan = CachedPlan::new(
        c"WITH gone AS (DELETE FROM tenant_rls.cache AS c \
              WHERE c.tenant_id OPERATOR(pg_catalog.=) $1 AND c.key OPERATOR(pg_catalog.>=) $3 \
              AND tenant_rls.cache_key_matches(c.key, $2) RETURNING c.size) \
          SELECT pg_catalog.count(*), pg_catalog.sum(gone.size)::pg_catalog.int8 FROM gone",
        &[UUID, TEXT, TEXT],
    );
    let prefix = Glob::parse(pattern).prefix();
    let (pattern, from) = (pattern.into_datum(), prefix.as_str().into_datum());
    // SAFETY: reads a variable of the backend. In another encoding the order of bytes is not that of code points.
    let is_utf8 = unsafe { pg_sys::GetDatabaseEncoding() } == pg_sys::pg_enc::PG_UTF8 as i32;
    match successor(&prefix).filter(|_| is_utf8) {
        Some(end) => removed(&BETWEEN, &[datum(id), pattern, from, end.into_datum()]),
        None => removed(&FROM, &[datum(id), pattern, from]),
    }
}

#[pg_extern(sql = false)]
fn cache_key_matches(key: &str, pattern: &str) -> bool {
    // One statement asks for many keys.
    static LAST: Backend<RefCell<Option<(String, Glob)>>> = Backend::new(RefCell::new(None));
    let mut last = LAST.borrow_mut();
    match &*last {
        Some((known, glob)) if known == pattern => glob.matches(key),
        _ => {
            let glob = Glob::parse(pattern);
            let answer = glob.matches(key);
            *last = Some((pattern.into(), glob));
            answer
        }
    }
}

sql_function!(
    /// What the cache holds, and what came of it.
    tenant_cache_stats,
    pg_finfo_tenant_cache_stats,
    |fcinfo| {
        let tenant = context::required()?;
        let Totals { key_count, size, mut hits, mut misses, evictions } = cache::totals(tenant.id)?;
        // What this backend has not told yet counts too.
        let own = UNTOLD.borrow().as_ref().and_then(|counts| counts.get(&tenant.id).copied());
        let (own_hits, own_misses) = own.unwrap_or_default();
        hits += own_hits;
        misses += own_misses;
        let hundredths = size.saturating_mul(100) / (1 << 20);
        let megabytes = AnyNumeric::try_from(format!("{}.{:02}", hundredths / 100, hundredths % 100).as_str());
        let columns = [
            key_count.into_datum(),
            size.into_datum(),
            megabytes.ok().into_datum(),
            hits.into_datum(),
            misses.into_datum(),
            evictions.into_datum(),
            budget(&tenant)?.into_datum(),
        ];
        Ok(composite(fcinfo, &columns))
    }
);

#[pg_extern(sql = false)]
fn tenant_cache_key(key: Option<&str>) -> String {
    let name = || {
        let key = key.ok_or(Error::Null("the key"))?;
        Ok(format!("tenant:{}:{key}", context::required()?.id))
    };
    or_raise(name())
}
