//! `tenant_quota_result`.

use std::borrow::Cow;
use std::rc::Rc;

use pgrx::prelude::*;
use pgrx::{Uuid, pg_sys};

use super::decision::{Enforcement, Limit, Verdict};
use super::period::{self, Window};
use super::{Holds, Key};
use crate::composite::{self, Columns};
use crate::registry::Source;

const COLUMNS: usize = 15;

/// What a quota function answers.
pub struct Answer {
    /// The decision. `remaining` counts `used`.
    pub verdict: Verdict,
    /// The resource.
    pub resource: Rc<str>,
    /// Units that count now.
    pub used: i64,
    /// Those of them that are held by reservations.
    pub held: i64,
    /// The limit in force.
    pub limit: Limit,
    /// The period.
    pub window: Window,
    /// Microseconds until units are free again, of a denied call.
    pub retry_after: Option<i64>,
    /// Where the limit comes from.
    pub source: Source,
    /// What happens above it.
    pub enforcement: Enforcement,
    /// The mode that decided.
    pub mode: Cow<'static, str>,
    /// The reservation that the call made or ended.
    pub reservation_id: Option<Uuid>,
}

impl Answer {
    /// The answer to a call that has left `used` units of the key, reservations that are due included.
    pub fn of(key: &Key, verdict: Verdict, used: i64, holds: Holds) -> Answer {
        let used = (used - holds.due).max(0);
        let remaining = key.decide(used, 0).remaining;
        Answer {
            verdict: Verdict { remaining, ..verdict },
            resource: key.quota.resource.name.clone(),
            used,
            held: holds.held,
            limit: key.limit,
            window: key.window,
            retry_after: super::retry_after(key, &verdict),
            source: key.source,
            enforcement: key.quota.enforcement,
            mode: Cow::Borrowed(key.mode_name()),
            reservation_id: None,
        }
    }

    fn columns(&self) -> Columns<COLUMNS> {
        let bounded = self.window.end != period::INFINITY;
        [
            self.verdict.allowed.into_datum(),
            self.verdict.granted.into_datum(),
            (&*self.resource).into_datum(),
            self.used.into_datum(),
            self.held.into_datum(),
            self.limit.into_datum(),
            self.verdict.remaining.into_datum(),
            bounded.then(|| pg_sys::Datum::from(period::to_postgres(self.window.start))),
            bounded.then(|| pg_sys::Datum::from(period::to_postgres(self.window.end))),
            self.retry_after.map(interval),
            self.verdict.reason.as_str().into_datum(),
            self.source.as_str().into_datum(),
            self.enforcement.as_str().into_datum(),
            (&*self.mode).into_datum(),
            self.reservation_id.into_datum(),
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
