//! Quotas: what a tenant may use, counted where it cannot be talked round.
//!
//! A call names a resource. The tenant is that of the session, the limit is that of its plan unless it has one
//! of its own, the period is the one that contains the server's clock. [`decision`] says yes or no, a [`Mode`]
//! makes it exact under concurrency, [`result`] answers.

pub mod amounts;
pub mod decision;
pub mod events;
pub mod gauge;
pub mod impact;
pub mod period;
pub mod result;
mod strict;
pub mod tally;
pub mod threshold;

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::rc::Rc;

use pgrx::{direct_function_call, pg_sys};

use crate::call::{argument, datum_argument, sql_function};
use crate::clock;
use crate::context::{self, fence};
use crate::error::{Error, Result};
use crate::registry::{self, Kind, Quota, Source, Tenant};
use crate::tenant::Status;
use amounts::AmountsError;
use decision::{Limit, Reason, Verdict, decide};
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

    /// Gives `amount` (at least 1) back. What counts after it, or an error if that were below zero.
    fn give(&self, key: &mut Key, amount: i64) -> Result<i64>;
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
    gives: bool,
}

impl Key {
    /// The key of a resource for a tenant, now.
    pub fn of(tenant: Rc<Tenant>, resource: &str) -> Result<Key> {
        let quota = registry::quota(&tenant, resource)?;
        Ok(Key::now(tenant, quota, false))
    }

    /// The key to give units back to: a plan that no longer names the resource keeps nobody from that.
    pub fn to_give(tenant: Rc<Tenant>, resource: &str) -> Result<Key> {
        let quota = match registry::quota(&tenant, resource) {
            Err(Error::NoLimit { .. }) => registry::no_quota(resource)?,
            quota => quota?,
        };
        Ok(Key::now(tenant, quota, true))
    }

    fn now(tenant: Rc<Tenant>, quota: Rc<Quota>, gives: bool) -> Key {
        let now = period::from_postgres(clock::now());
        let window = quota.window(&tenant, now);
        let (limit, source) = quota.limit(now);
        Key { tenant, quota, now, window, limit, source, gives }
    }

    /// The same key, as it is now.
    fn refresh(&mut self) -> Result<()> {
        registry::accept_invalidations();
        let id = self.tenant.id;
        let tenant = registry::tenant(id)?.ok_or(Error::UnknownTenant(id))?;
        let resource = self.quota.resource.name.clone();
        *self = if self.gives { Key::to_give(tenant, &resource)? } else { Key::of(tenant, &resource)? };
        Ok(())
    }

    fn decide(&self, used: i64, amount: i64) -> Verdict {
        decide(self.limit, self.quota.enforcement, used, amount)
    }
}

/// The mode of a key. Escrow and leased need shared memory, and run as strict without it.
fn mode_of(_key: &Key) -> &'static dyn Mode {
    &strict::Strict
}

/// What counts now for a key, and the mode that says so.
pub fn peek(key: &Key) -> Result<(&'static str, i64)> {
    let mode = mode_of(key);
    Ok((mode.name(), mode.used(key)?))
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

fn no_idempotency_key(key: Option<&str>) -> Result<()> {
    match key {
        None => Ok(()),
        Some(_) => Err(Error::Unsupported {
            what: "idempotency keys are not supported".into(),
            detail: "This version stores no answers.".into(),
            hint: "Call without idempotency_key.",
        }),
    }
}

/// A writer of usage: not in a read-only transaction, not on a standby, not behind a fence, not by hand on a
/// gauge that follows rows.
fn check_writable(key: &Key) -> Result<()> {
    // SAFETY: raises 25006 in a read-only transaction, which a standby's always are.
    unsafe { pg_sys::PreventCommandIfReadOnly(c"changing a quota".as_ptr()) };
    if key.quota.resource.attached {
        return Err(Error::Attached { resource: key.quota.resource.name.to_string() });
    }
    if key.tenant.status == Status::Fenced {
        return Err(Error::Fenced(key.tenant.id));
    }
    fence::enter(&key.tenant)
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
fn take(key: &mut Key, amount: i64) -> Result<(Verdict, i64)> {
    let mode = mode_of(key);
    if amount == 0 {
        let used = mode.used(key)?;
        return Ok((key.decide(used, 0), used));
    }
    check_writable(key)?;
    let (verdict, used) = mode.take(key, amount)?;
    check_still_writable(key)?;
    if verdict.reason == Reason::Shadow {
        pgrx::log!(
            "quota of \"{}\" would have denied {amount} units of tenant {}",
            key.quota.resource.name,
            key.tenant.id
        );
    }
    Ok((verdict, used))
}

/// The error of a denied call.
fn exhausted(key: &Key, verdict: &Verdict, used: i64, requested: i64) -> Error {
    let bounded = key.window.end != period::INFINITY;
    let retry_after = if verdict.reason == Reason::AmountExceedsLimit {
        None
    } else {
        period::retry_after(key.window, key.now)
    };
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
        gauge: key.quota.resource.kind == Kind::Gauge,
    }
}

fn consume_or_raise(key: &mut Key, amount: i64) -> Result<(Verdict, i64)> {
    let (verdict, used) = take(key, amount)?;
    if verdict.allowed { Ok((verdict, used)) } else { Err(exhausted(key, &verdict, used, amount)) }
}

sql_function!(
    /// Takes units, or raises 53400.
    tenant_quota_consume,
    pg_finfo_tenant_quota_consume,
    |fcinfo| one(fcinfo, consume_or_raise)
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
        let mode = mode_of(&key);
        let used = mode.used(&key)?;
        let mut verdict = key.decide(used, amount);
        // Nothing was taken: what remains is what remained.
        verdict.granted = 0;
        verdict.remaining = key.decide(used, 0).remaining;
        Ok(composite(fcinfo, &Answer { key: &key, verdict, used, mode: mode.name() }))
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
        if key.quota.resource.kind != Kind::Gauge {
            return Err(Error::NotAGauge { resource: key.quota.resource.name.to_string() });
        }
        let mode = mode_of(&key);
        let used = if amount == 0 {
            mode.used(&key)?
        } else {
            check_writable(&key)?;
            let used = mode.give(&mut key, amount)?;
            check_still_writable(&key)?;
            used
        };
        let mut verdict = key.decide(used, 0);
        verdict.granted = amount;
        Ok(composite(fcinfo, &Answer { key: &key, verdict, used, mode: mode.name() }))
    }
);

sql_function!(
    /// Takes units of several resources, all or nothing.
    tenant_quota_consume_many,
    pg_finfo_tenant_quota_consume_many,
    |fcinfo| {
        let amounts = checked_amounts(datum_argument(fcinfo, 0))?;
        no_idempotency_key(argument(fcinfo, 1))?;
        let mut rows = Rows::start(fcinfo);
        // In the order of the names, so that two calls cannot wait for each other. The first denial raises,
        // which gives back what was taken before it.
        for (resource, amount) in &amounts {
            let mut key = key_of_session(Some(resource))?;
            let (verdict, used) = consume_or_raise(&mut key, *amount)?;
            rows.push(&Answer { key: &key, verdict, used, mode: mode_of(&key).name() });
        }
        Ok(pg_sys::Datum::null())
    }
);

/// A call of one resource whose answer is one row.
unsafe fn one(
    fcinfo: pg_sys::FunctionCallInfo,
    take: fn(&mut Key, i64) -> Result<(Verdict, i64)>,
) -> Result<pg_sys::Datum> {
    // SAFETY: a call of consume or try_consume: text, bigint, text.
    unsafe {
        let mut key = key_of_session(argument(fcinfo, 0))?;
        let amount = checked_amount(argument(fcinfo, 1))?;
        no_idempotency_key(argument(fcinfo, 2))?;
        let (verdict, used) = take(&mut key, amount)?;
        Ok(composite(fcinfo, &Answer { key: &key, verdict, used, mode: mode_of(&key).name() }))
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
