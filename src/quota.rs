//! Quotas: what a tenant may use, counted where it cannot be talked round.
//!
//! A call names a resource. The tenant is that of the session, the limit is that of its plan unless it has one
//! of its own, the period is the one that contains the server's clock. [`decision`] says yes or no, a [`Mode`]
//! makes it exact under concurrency, [`result`] answers.

pub mod amounts;
pub mod decision;
mod escrow;
pub mod events;
pub mod gauge;
pub mod idempotency;
pub mod impact;
pub mod lease;
pub mod ledger;
pub mod period;
pub mod reservation;
pub mod result;
mod strict;
pub mod tally;
pub mod threshold;

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::rc::Rc;

use pgrx::prelude::*;
use pgrx::{Uuid, direct_function_call, pg_sys};

use crate::call::{argument, datum_argument, sql_function};
use crate::clock;
use crate::context::{self, fence};
use crate::error::{Error, Result, or_raise};
use crate::plan::{CachedPlan, as_owner};
use crate::registry::{self, Holds, ModeName, Quota, Source, Tenant};
use crate::shmem::{self, Kind};
use crate::tenant::{Status, TenantId};
use amounts::AmountsError;
use decision::{Limit, Reason, Verdict, decide};
use idempotency::Request;
use period::Window;
use result::{Answer, Rows, composite};

/// How units of a key are taken and given back.
pub trait Mode {
    /// The name that results show.
    fn name(&self) -> &'static str;

    /// Units that count now, those of this transaction included.
    fn used(&self, key: &Key) -> Result<i64>;

    /// Takes `amount` (at least 1) if the limit allows it. The decision, and what counts after it.
    fn take(&self, key: &mut Key, amount: i64) -> Result<(Verdict, i64)>;

    /// Gives `amount` (at least 1) back. What is left, or an error if that were below zero.
    fn give(&self, key: &mut Key, amount: i64) -> Result<Left>;

    /// Whether units come back when the transaction rolls back. Where they do not, nothing that is stored with the
    /// transaction can say that they were taken: there are no idempotency keys and no reservations.
    fn transactional(&self) -> bool {
        true
    }

    /// Whether units of the key can be given back now without waiting for another transaction.
    fn try_lock(&self, key: &Key) -> bool;

    /// Moves the units by an amount of either sign, whatever the limit.
    fn force(&self, key: &mut Key, amount: i64) -> Result<()>;
}

/// Units that count after some were given back.
#[derive(Clone, Copy)]
pub struct Left {
    /// If what others have in flight comes to pass.
    pub used: i64,
    /// If it does not.
    pub least: i64,
}

/// Registers what happens at the ends of transactions. Called once, when the library is loaded.
pub fn init() {
    escrow::init();
}

/// A tenant, a resource and a period, with the limit that is in force.
pub struct Key {
    /// Who.
    pub tenant: Rc<Tenant>,
    /// What.
    pub quota: Rc<Quota>,
    /// The server's clock at the call, in Unix microseconds.
    pub now: i64,
    /// The period that contains `now`.
    pub window: Window,
    /// The limit in force.
    pub limit: Limit,
    /// Where it comes from.
    pub source: Source,
    /// The mode that has counted it in this call.
    counted_by: Option<&'static str>,
    purpose: Purpose,
}

/// What a key is for, which says how it is found again after a wait.
#[derive(Clone, Copy)]
enum Purpose {
    Take,
    Give,
    Settle(Window),
}

impl Key {
    /// The key of a resource for a tenant, now.
    pub fn of(tenant: Rc<Tenant>, resource: &str) -> Result<Key> {
        let quota = registry::quota(&tenant, resource)?;
        Ok(Key::now(tenant, quota, Purpose::Take))
    }

    /// The key to give units back to: a plan that no longer names the resource keeps nobody from that.
    pub fn to_give(tenant: Rc<Tenant>, resource: &str) -> Result<Key> {
        let quota = match registry::quota(&tenant, resource) {
            Err(Error::NoLimit { .. }) => registry::no_quota(resource)?,
            quota => quota?,
        };
        Ok(Key::now(tenant, quota, Purpose::Give))
    }

    /// The key of units that were taken in a period which may be over, with the limit of now.
    pub fn to_settle(tenant: Rc<Tenant>, resource: &str, window: Window) -> Result<Key> {
        let key = Key::to_give(tenant, resource)?;
        Ok(Key { window, purpose: Purpose::Settle(window), ..key })
    }

    fn now(tenant: Rc<Tenant>, quota: Rc<Quota>, purpose: Purpose) -> Key {
        let now = period::from_postgres(clock::now());
        let window = quota.window(&tenant, now);
        let (limit, source) = quota.limit(now);
        Key { tenant, quota, now, window, limit, source, counted_by: None, purpose }
    }

    /// The same key, as it is now.
    fn refresh(&mut self) -> Result<()> {
        registry::accept_invalidations();
        let id = self.tenant.id;
        let tenant = registry::tenant(id)?.ok_or(Error::UnknownTenant(id))?;
        let resource = self.quota.resource.name.clone();
        *self = match self.purpose {
            Purpose::Take => Key::of(tenant, &resource)?,
            Purpose::Give => Key::to_give(tenant, &resource)?,
            Purpose::Settle(window) => Key::to_settle(tenant, &resource, window)?,
        };
        Ok(())
    }

    /// The name of the mode that has counted it, or would.
    fn mode_name(&self) -> &'static str {
        self.counted_by.unwrap_or_else(|| mode_of(self).name())
    }

    /// Whether a lease has counted it in this call.
    fn is_leased(&self) -> bool {
        self.counted_by == Some(lease::Lease.name())
    }

    fn decide(&self, used: i64, amount: i64) -> Verdict {
        decide(self.limit, self.quota.enforcement, used, amount)
    }
}

/// The mode that counts a key now: that of its limit, or the one before until nothing of that is in flight. Escrow and
/// leased need shared memory, and run as strict without it.
fn mode_of(key: &Key) -> &'static dyn Mode {
    let is_shared = shmem::database().is_some() && *key.quota.resource.name != *registry::cache::RESOURCE;
    let Some(name) = escrow::name_of(key).filter(|_| is_shared) else { return &strict::Strict };
    let wanted = key.quota.mode.unwrap_or(ModeName::Escrow);
    match (shmem::look(&name, |entry| entry.kind()), wanted) {
        (Some(Kind::Leased) | None, ModeName::Leased) => &lease::Lease,
        (Some(Kind::Leased), _) => {
            lease::end(&name);
            &lease::Lease
        }
        (Some(Kind::Escrow), ModeName::Leased)
            // Who gives back needs the mode that can.
            if matches!(key.purpose, Purpose::Take)
                && !escrow::has_position(&name)
                && lease::begin(key, &name).unwrap_or(false) =>
        {
            &lease::Lease
        }
        (Some(Kind::Escrow), ModeName::Strict) if !escrow::has_position(&name) && shmem::retire(&name) => {
            &strict::Strict
        }
        (Some(Kind::Escrow), _) | (None, ModeName::Escrow) => &escrow::Escrow,
        (None, ModeName::Strict) => &strict::Strict,
    }
}

/// As [`mode_of`], to take units: a lease finds out whether the key is leased by the look that takes.
fn mode_to_take(key: &Key) -> &'static dyn Mode {
    match key.quota.mode {
        Some(ModeName::Leased) if shmem::database().is_some() => &lease::Lease,
        _ => mode_of(key),
    }
}

/// What counts now for a key.
pub fn peek(key: &Key) -> Result<Answer> {
    let mode = mode_of(key);
    let used = mode.used(key)?;
    Ok(Answer::of(key, key.decide(used, 0), used, reservation::holds(key)?))
}

/// The key that a call of the session means.
fn key_of_session(resource: Option<&str>) -> Result<Key> {
    let resource = resource.ok_or(Error::Null("the resource"))?;
    Key::of(context::required()?, resource)
}

fn checked_amount(amount: Option<i64>) -> Result<i64> {
    match amount.ok_or(Error::Null("the amount"))? {
        amount if amount >= 0 => Ok(amount),
        amount => Err(negative(amount)),
    }
}

fn negative(amount: i64) -> Error {
    Error::Invalid {
        what: "amount",
        value: amount.to_string(),
        hint: "Use a number of units; tenant_quota_release gives units of a gauge back.".into(),
    }
}

/// Refuses what is stored with the transaction, where units are not.
fn check_transactional(key: &Key) -> Result<()> {
    if mode_of(key).transactional() { Ok(()) } else { Err(not_transactional(key)) }
}

fn not_transactional(key: &Key) -> Error {
    Error::Unsupported {
        what: format!("mode {} has no idempotency keys and no reservations", lease::Lease.name()),
        detail: format!(
            "The limit of resource \"{}\" is kept in this mode, in which units outlive a rollback.",
            key.quota.resource.name
        ),
        hint: "Call without them, or let an operator set another mode with tenant_plan_limit_set.",
    }
}

/// As `take`, for what is stored with the transaction. The mode may have changed while the call waited for others.
fn take_transactional(
    key: &mut Key,
    amount: i64,
    take: impl FnOnce(&mut Key, i64) -> Result<Answer>,
) -> Result<Answer> {
    check_transactional(key)?;
    let answer = take(key, amount)?;
    if key.is_leased() {
        Leased::default().note(key, answer.verdict.granted);
        return Err(not_transactional(key));
    }
    Ok(answer)
}

/// A writer of usage: not in a read-only transaction, not on a standby, not in a parallel query, not behind a fence.
fn check_writer(tenant: &Tenant) -> Result<()> {
    // Every call asks; the guard of pgrx's declaration would cost more than the look.
    unsafe extern "C-unwind" {
        fn IsInParallelMode() -> bool;
    }
    // SAFETY: raises 25006 in a read-only transaction, which a standby's always are, and 25000 in a parallel query: what
    // a function has done that wrongly says it is PARALLEL SAFE would be written by nobody.
    unsafe {
        pg_sys::PreventCommandIfReadOnly(c"changing a quota".as_ptr());
        if IsInParallelMode() {
            pg_sys::PreventCommandIfParallelMode(c"changing a quota".as_ptr());
        }
    }
    if tenant.status == Status::Fenced {
        return Err(Error::Fenced(tenant.id));
    }
    fence::enter(tenant)
}

/// A writer of the units of a key: not by hand on a gauge that follows rows.
fn check_writable(key: &Key) -> Result<()> {
    if key.quota.resource.attached {
        return Err(Error::Attached { resource: key.quota.resource.name.to_string() });
    }
    check_writer(&key.tenant)
}

/// A call may have waited for others: a tenant that was suspended meanwhile changes nothing, nor does a call by
/// hand on a gauge that has been attached. Raising gives the units back.
fn check_still_writable(key: &Key) -> Result<()> {
    context::required()?;
    let resource = &key.quota.resource.name;
    if registry::resource(resource)?.attached {
        return Err(Error::Attached { resource: resource.to_string() });
    }
    Ok(())
}

/// Takes units of a key, or looks if the amount is 0.
fn take(key: &mut Key, amount: i64) -> Result<Answer> {
    if amount == 0 {
        return peek(key);
    }
    let mode = mode_to_take(key);
    check_writable(key)?;
    let (mut verdict, mut used) = mode.take(key, amount)?;
    let mut holds = reservation::holds(key)?;
    if holds.due > 0 && matches!(verdict.reason, Reason::Soft | Reason::Shadow) {
        // Units that are due make no overage.
        verdict.reason = key.decide((used - amount - holds.due).max(0), amount).reason;
    } else if holds.due > 0
        && !verdict.allowed
        && key.decide((used - holds.due).max(0), amount).allowed
        && reservation::expire(key, i64::MAX)? > 0
    {
        (verdict, used) = mode.take(key, amount)?;
        holds = reservation::holds(key)?;
    }
    check_still_writable(key)?;
    if verdict.reason == Reason::Shadow {
        pgrx::log!(
            "quota of \"{}\" would have denied {amount} units of tenant {}",
            key.quota.resource.name,
            key.tenant.id
        );
    }
    Ok(Answer::of(key, verdict, used, holds))
}

/// How long to wait after a denial before it is worth another try, in microseconds.
fn retry_after(key: &Key, verdict: &Verdict) -> Option<i64> {
    // Others are about to decide.
    const SOON: i64 = 100_000;
    match verdict.reason {
        _ if verdict.allowed => None,
        Reason::AmountExceedsLimit => None,
        Reason::InFlight => Some(SOON),
        // Units of a period that is over do not come back.
        _ if !key.window.contains(key.now) => None,
        _ => period::retry_after(key.window, key.now),
    }
}

/// The error of a denied call.
fn exhausted(key: &Key, verdict: &Verdict, used: i64, requested: i64) -> Error {
    let bounded = key.window.end != period::INFINITY;
    let retry_after = retry_after(key, verdict);
    let detail = serde_json::json!({
        "tenant": key.tenant.id.to_string(),
        "resource": &*key.quota.resource.name,
        "quota_limit": key.limit,
        "used": used,
        "requested": requested,
        "resets_at": bounded.then(|| period::rfc3339(key.window.end)),
        "retry_after": retry_after.map(|microseconds| microseconds.div_euclid(1_000_000) + 1),
    });
    Error::Exhausted {
        resource: key.quota.resource.name.to_string(),
        detail: detail.to_string(),
        gauge: key.quota.resource.kind == registry::Kind::Gauge,
    }
}

fn take_or_raise(key: &mut Key, amount: i64) -> Result<Answer> {
    let answer = take(key, amount)?;
    if answer.verdict.allowed {
        Ok(answer)
    } else {
        Err(exhausted(key, &answer.verdict, answer.used, amount))
    }
}

sql_function!(
    /// Takes units, or raises 53400.
    tenant_quota_consume,
    pg_finfo_tenant_quota_consume,
    |fcinfo| one(fcinfo, take_or_raise)
);

sql_function!(
    /// Takes units if the limit allows it.
    tenant_quota_try_consume,
    pg_finfo_tenant_quota_try_consume,
    |fcinfo| one(fcinfo, take)
);

sql_function!(
    /// What `tenant_quota_try_consume` would answer.
    tenant_quota_check,
    pg_finfo_tenant_quota_check,
    |fcinfo| {
        let key = key_of_session(argument(fcinfo, 0))?;
        let amount = checked_amount(argument(fcinfo, 1))?;
        let (used, holds) = (mode_of(&key).used(&key)?, reservation::holds(&key)?);
        // Nothing is taken, and units that are due are as good as free.
        let verdict = Verdict { granted: 0, ..key.decide((used - holds.due).max(0), amount) };
        Ok(composite(fcinfo, &Answer::of(&key, verdict, used, holds)))
    }
);

sql_function!(
    /// Gives units of a gauge back.
    tenant_quota_release,
    pg_finfo_tenant_quota_release,
    |fcinfo| {
        let resource: Option<&str> = argument(fcinfo, 0);
        let resource = resource.ok_or(Error::Null("the resource"))?;
        let mut key = Key::to_give(context::required()?, resource)?;
        let amount = checked_amount(argument(fcinfo, 1))?;
        if key.quota.resource.kind != registry::Kind::Gauge {
            return Err(Error::NotAGauge { resource: key.quota.resource.name.to_string() });
        }
        if amount == 0 {
            return Ok(composite(fcinfo, &peek(&key)?));
        }
        Ok(composite(fcinfo, &release(&mut key, amount)?))
    }
);

fn release(key: &mut Key, amount: i64) -> Result<Answer> {
    let mode = mode_of(key);
    check_writable(key)?;
    let Left { used, least } = mode.give(key, amount)?;
    check_still_writable(key)?;
    // Looked up after the units were given back: of two who do so at once, one sees the other's.
    let holds = reservation::holds(key)?;
    let reserved = holds.held + holds.due;
    if least < reserved {
        let resource = key.quota.resource.name.to_string();
        return Err(Error::BelowZero { resource, used: (least + amount - reserved).max(0), amount });
    }
    let verdict = Verdict { granted: amount, ..key.decide(used, 0) };
    Ok(Answer::of(key, verdict, used, holds))
}

sql_function!(
    /// Takes units of several resources, all or nothing.
    tenant_quota_consume_many,
    pg_finfo_tenant_quota_consume_many,
    |fcinfo| {
        let amounts = checked_amounts(datum_argument(fcinfo, 0))?;
        let idempotency_key: Option<&str> = argument(fcinfo, 1);
        let take = || take_all(&amounts, idempotency_key.is_some());
        let answers = match idempotency_key {
            None => take()?,
            Some(key) => idempotency::once(key, &Request::new("consume_many", &amounts), take)?,
        };
        let mut rows = Rows::start(fcinfo);
        for answer in &answers {
            rows.push(answer);
        }
        Ok(pg_sys::Datum::null())
    }
);

/// Takes units of several resources, or of none and raises.
fn take_all(amounts: &BTreeMap<String, i64>, is_stored: bool) -> Result<Vec<Answer>> {
    let mut keys = Vec::with_capacity(amounts.len());
    for (resource, amount) in amounts {
        let key = key_of_session(Some(resource))?;
        if is_stored {
            check_transactional(&key)?;
        }
        keys.push((key, *amount));
    }
    // In the order of the names, so that two calls cannot wait for each other, and those last that a rollback does not give
    // back. The first denial raises, which gives back what was taken before it.
    keys.sort_by_key(|(key, _)| !mode_of(key).transactional());
    let mut leased = Leased::default();
    let mut answers = Vec::with_capacity(keys.len());
    for (key, amount) in &mut keys {
        answers.push(take_or_raise(key, *amount)?);
        if key.is_leased() {
            leased.note(key, *amount);
            if is_stored {
                return Err(not_transactional(key));
            }
        }
    }
    leased.keep();
    Ok(answers)
}

/// What a call has taken of leases, which goes back unless the call succeeds as a whole.
#[derive(Default)]
struct Leased(Vec<(shmem::Key, i64)>);

impl Leased {
    fn note(&mut self, key: &Key, units: i64) {
        self.0.extend(escrow::name_of(key).zip(Some(units)));
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        for (name, units) in &self.0 {
            lease::undo(name, *units);
        }
    }
}

/// A call of one resource whose answer is one row.
unsafe fn one(
    fcinfo: pg_sys::FunctionCallInfo,
    take: fn(&mut Key, i64) -> Result<Answer>,
) -> Result<pg_sys::Datum> {
    // SAFETY: a call of consume or try_consume: text, bigint, text.
    unsafe {
        let resource: Option<&str> = argument(fcinfo, 0);
        let resource = resource.ok_or(Error::Null("the resource"))?;
        let amount = checked_amount(argument(fcinfo, 1))?;
        let answer = match argument(fcinfo, 2) {
            None => take(&mut key_of_session(Some(resource))?, amount)?,
            Some(key) => idempotency::once_for_one(key, &Request::one("consume", resource, amount), || {
                take_transactional(&mut key_of_session(Some(resource))?, amount, take)
            })?,
        };
        Ok(composite(fcinfo, &answer))
    }
}

/// `{"resource": units, …}`, in the order of the names.
fn checked_amounts(amounts: Option<pg_sys::Datum>) -> Result<BTreeMap<String, i64>> {
    let amounts = amounts.ok_or(Error::Null("the amounts"))?;
    // SAFETY: a jsonb; its text is a string of the current memory context. Not JsonB, which raises XX000 for numbers
    // that jsonb holds and serde_json does not.
    let text = unsafe { direct_function_call::<&CStr>(pg_sys::jsonb_out, &[Some(amounts)]) };
    amounts::parse(&text.map(CStr::to_string_lossy).unwrap_or_default()).map_err(|error| match error {
        AmountsError::Negative(amount) => negative(amount),
        AmountsError::Kind(value) => Error::Invalid {
            what: "amounts",
            value,
            hint: "Use an object of whole numbers: {\"api_requests\": 1, \"compute_seconds\": 20}.".into(),
        },
    })
}

/// Ends what has expired, of all tenants: reservations, and answers that are kept no longer. At most `batch` of each.
///
/// Waits for nobody. What belongs to a tenant that is fenced or deleted stays as it is, and so does what other
/// transactions have locked. Returns how many rows it changed.
pub fn sweep(batch: i64) -> Result<u64> {
    registry::accept_invalidations();
    Ok(reservation::expire_due(batch)?
        + reservation::forget_ended(batch)?
        + idempotency::forget_expired(batch)?)
}

/// When the next reservation or stored answer expires, in microseconds since 2000-01-01.
pub fn next_due() -> Result<Option<i64>> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT least( \
             (SELECT pg_catalog.min(r.expires_at) FROM tenant_rls.reservations AS r WHERE r.state OPERATOR(pg_catalog.=) 'held'), \
             (SELECT pg_catalog.min(k.expires_at) FROM tenant_rls.idempotency_keys AS k))",
        &[],
    );
    Ok(as_owner(|| SELECT.first(&[], |row| row.get::<i64>(1)))?.flatten())
}

/// Tenants in whose rows a worker changes something, in one transaction: it holds a lock for each.
pub const MOST_TENANTS: i64 = 64;

/// The tenant, if something of it may be written now without waiting for a fence.
fn admit(id: Uuid) -> Result<Option<Rc<Tenant>>> {
    let tenant = registry::tenant(TenantId::from_bytes(*id.as_bytes()))?;
    Ok(tenant.filter(|tenant| fence::try_enter(tenant)))
}

/// The tenants that a plan finds for a batch, as far as they are admitted.
fn admitted(plan: &CachedPlan, batch: i64) -> Result<Vec<Uuid>> {
    let mut found = Vec::new();
    let arguments = [batch.into_datum(), MOST_TENANTS.into_datum()];
    as_owner(|| plan.run_latest(&arguments, |row| found.extend(row.get::<Uuid>(1))))?;
    let mut tenants = Vec::new();
    for id in found {
        if admit(id)?.is_some() {
            tenants.push(id);
        }
    }
    Ok(tenants)
}

#[pg_extern(sql = false)]
fn quota_sweep(batch: Option<i64>) -> i64 {
    let sweep = || match batch.ok_or(Error::Null("the batch"))? {
        batch if batch > 0 => sweep(batch),
        batch => Err(Error::Invalid {
            what: "batch",
            value: batch.to_string(),
            hint: "Use a number of rows, at least 1.".into(),
        }),
    };
    or_raise(sweep()) as i64
}
