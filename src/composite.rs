//! Answers that are rows of a composite type, made without pgrx's composite helpers, which cost more than the rest of a
//! call.

use pgrx::pg_sys;

/// Values of a row, in the order of the type's columns; `None` is NULL.
pub type Columns<const N: usize> = [Option<pg_sys::Datum>; N];

fn split<const N: usize>(columns: &Columns<N>) -> ([pg_sys::Datum; N], [bool; N]) {
    (columns.map(|column| column.unwrap_or(pg_sys::Datum::null())), columns.map(|column| column.is_none()))
}

/// The row as the composite that the function of this call returns.
///
/// # Safety
///
/// `fcinfo` is the call of a function that returns a composite type with these columns and keeps nothing else in
/// `fn_extra`.
pub unsafe fn composite<const N: usize>(
    fcinfo: pg_sys::FunctionCallInfo,
    columns: &Columns<N>,
) -> pg_sys::Datum {
    let (mut values, mut nulls) = split(columns);
    // SAFETY: the descriptor is made once per call site and lives as long as its flinfo; the arrays are as
    // long as the type has columns, which the caller vouches for.
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

/// The rows of a function that returns a set.
pub struct Rows(*mut pg_sys::ReturnSetInfo);

impl Rows {
    /// Starts an empty set.
    ///
    /// # Safety
    ///
    /// `fcinfo` is the call of a function that returns a set of a composite type.
    pub unsafe fn start(fcinfo: pg_sys::FunctionCallInfo) -> Rows {
        // SAFETY: the caller vouches for the call.
        unsafe {
            pg_sys::InitMaterializedSRF(fcinfo, 0);
            Rows((*fcinfo).resultinfo.cast())
        }
    }

    /// Adds a row.
    ///
    /// # Safety
    ///
    /// The type of the set has these columns.
    pub unsafe fn push<const N: usize>(&mut self, columns: &Columns<N>) {
        let (mut values, mut nulls) = split(columns);
        // SAFETY: the set was started, and the caller vouches for the columns.
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
