//! `tenant_quota_result`, made without SQL and without pgrx's composite helpers, which cost more than the
//! rest of a call.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::decision::Verdict;
use super::{Key, period};

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
    fn columns(&self) -> [Option<pg_sys::Datum>; COLUMNS] {
        let key = self.key;
        let window = key.window;
        let bounded = window.end != period::INFINITY;
        let retry_after = if self.verdict.allowed { None } else { period::retry_after(window, key.now) };
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

fn values(answer: &Answer) -> ([pg_sys::Datum; COLUMNS], [bool; COLUMNS]) {
    let columns = answer.columns();
    (columns.map(|column| column.unwrap_or(pg_sys::Datum::null())), columns.map(|column| column.is_none()))
}

/// The answer as the composite that the function of this call returns.
///
/// # Safety
///
/// `fcinfo` is the call of a function that returns `tenant_quota_result`.
pub unsafe fn composite(fcinfo: pg_sys::FunctionCallInfo, answer: &Answer) -> pg_sys::Datum {
    let (mut values, mut nulls) = values(answer);
    // SAFETY: the descriptor is made once per call site and lives as long as its flinfo; the arrays are as
    // long as the type has columns, which the install script and this file agree on.
    unsafe {
        let flinfo = (*fcinfo).flinfo;
        if (*flinfo).fn_extra.is_null() {
            let mut descriptor: pg_sys::TupleDesc = std::ptr::null_mut();
            pg_sys::get_call_result_type(fcinfo, std::ptr::null_mut(), &mut descriptor);
            let old = pg_sys::MemoryContextSwitchTo((*flinfo).fn_mcxt);
            (*flinfo).fn_extra = pg_sys::BlessTupleDesc(pg_sys::CreateTupleDescCopy(descriptor)).cast();
            pg_sys::MemoryContextSwitchTo(old);
        }
        let descriptor = (*flinfo).fn_extra.cast();
        let tuple = pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data)
    }
}

/// The rows of a function that returns a set of `tenant_quota_result`.
pub struct Rows(*mut pg_sys::ReturnSetInfo);

impl Rows {
    /// Starts an empty set.
    ///
    /// # Safety
    ///
    /// `fcinfo` is the call of a function that returns a set of `tenant_quota_result`.
    pub unsafe fn start(fcinfo: pg_sys::FunctionCallInfo) -> Rows {
        // SAFETY: the caller vouches for the call.
        unsafe {
            pg_sys::InitMaterializedSRF(fcinfo, 0);
            Rows((*fcinfo).resultinfo.cast())
        }
    }

    /// Adds a row.
    pub fn push(&mut self, answer: &Answer) {
        let (mut values, mut nulls) = values(answer);
        // SAFETY: the set was started for this type.
        unsafe {
            pg_sys::tuplestore_putvalues(
                (*self.0).setResult,
                (*self.0).setDesc,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
        }
    }
}
