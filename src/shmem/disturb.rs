//! For tests: a counter of an entry, moved by hand.

use std::sync::atomic::Ordering::SeqCst;

use pgrx::Uuid;

use super::{Entry, Key, look};
use crate::call::{argument, sql_function};
use crate::error::Error;
use crate::tenant::TenantId;

sql_function!(
    /// `(tenant uuid, resource text, counter text, by bigint)`, of a resource without a period. NULL: whether there was an
    /// entry is what the caller finds out.
    tenant_rls_disturb,
    pg_finfo_tenant_rls_disturb,
    |fcinfo| {
        let tenant: Uuid = argument(fcinfo, 0).ok_or(Error::Null("the tenant"))?;
        let resource: &str = argument(fcinfo, 1).ok_or(Error::Null("the resource"))?;
        let counter: &str = argument(fcinfo, 2).ok_or(Error::Null("the counter"))?;
        let by: i64 = argument(fcinfo, 3).ok_or(Error::Null("the units"))?;
        let key = Key::new(TenantId::from_bytes(*tenant.as_bytes()), resource, i64::MIN);
        let moved = key.and_then(|key| look(&key, |entry| disturb(entry, counter, by)));
        assert!(moved.is_some(), "the key has an entry");
        Ok::<_, Error>(pgrx::pg_sys::Datum::null())
    }
);

fn disturb(entry: &Entry, counter: &str, by: i64) {
    match counter {
        "pins" => drop(entry.pins.fetch_add(by as u32, SeqCst)),
        "holds" => drop(entry.holds.fetch_add(by as u32, SeqCst)),
        "inf" => drop(entry.inf.fetch_add(by, SeqCst)),
        "granted" => drop(entry.granted.fetch_add(by, SeqCst)),
        "unfolded" => drop(entry.unfolded.fetch_add(by, SeqCst)),
        _ => panic!("no such counter: {counter}"),
    }
}
