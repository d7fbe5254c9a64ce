//! `tenant_quota_result`.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::decision::Verdict;
use super::{Key, period};
use crate::composite::{self, Columns};

const COLUMNS: usize = 15;

/// What a quota function answers.
pub struct Answer<'a> {
    /// The key that was asked for.
    pub key: &'a Key,
    /// The decision.
    pub verdict: Verdict,
    /// Units that count now.
    pub used: i64,
    /// The mode that decided.
    pub mode: &'static str,
}

impl Answer<'_> {
    fn columns(&self) -> Columns<COLUMNS> {
        let key = self.key;
        let window = key.window;
        let bounded = window.end != period::INFINITY;
        let retry_after = super::retry_after(key, &self.verdict);
        [
            self.verdict.allowed.into_datum(),
            self.verdict.granted.into_datum(),
            (&*key.quota.resource.name).into_datum(),
            self.used.into_datum(),
            0i64.into_datum(),
            key.limit.into_datum(),
            self.verdict.remaining.into_datum(),
            bounded.then(|| pg_sys::Datum::from(period::to_postgres(window.start))),
            bounded.then(|| pg_sys::Datum::from(period::to_postgres(window.end))),
            retry_after.map(interval),
            self.verdict.reason.as_str().into_datum(),
            key.source.as_str().into_datum(),
            key.quota.enforcement.as_str().into_datum(),
            self.mode.into_datum(),
            None,
        ]
    }
}

/// An `interval` of that many microseconds.
fn interval(microseconds: i64) -> pg_sys::Datum {
    // SAFETY: the memory is as large as the struct that is written to it whole.
    unsafe {
        let interval = pg_sys::palloc(size_of::<pg_sys::Interval>()).cast::<pg_sys::Interval>();
        interval.write(pg_sys::Interval { time: microseconds, day: 0, month: 0 });
        pg_sys::Datum::from(interval)
    }
}

/// The answer as the composite that the function of this call returns.
///
/// # Safety
///
/// `fcinfo` is the call of a function that returns `tenant_quota_result`.
pub unsafe fn composite(fcinfo: pg_sys::FunctionCallInfo, answer: &Answer) -> pg_sys::Datum {
    // SAFETY: the columns are those of the type, which the install script and this file agree on.
    unsafe { composite::composite(fcinfo, &answer.columns()) }
}

/// The rows of a function that returns a set of `tenant_quota_result`.
pub struct Rows(composite::Rows);

impl Rows {
    /// Starts an empty set.
    ///
    /// # Safety
    ///
    /// `fcinfo` is the call of a function that returns a set of `tenant_quota_result`.
    pub unsafe fn start(fcinfo: pg_sys::FunctionCallInfo) -> Rows {
        // SAFETY: the caller vouches for the call.
        unsafe { Rows(composite::Rows::start(fcinfo)) }
    }

    /// Adds a row.
    pub fn push(&mut self, answer: &Answer) {
        // SAFETY: the set was started for this type.
        unsafe { self.0.push(&answer.columns()) }
    }
}
