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
    // SAFETY: the arrays are as long as the type has columns, which the caller vouches for, and nothing looks at the
    // catalog while the descriptor is used.
    unsafe {
        let tuple = pg_sys::heap_form_tuple(descriptor(fcinfo), values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data)
    }
}

/// The descriptor of the composite that the function of this call returns, until something looks at the catalog.
///
/// A statement that calls once is the usual one, and a copy would take it longer than all of the call: the first answer
/// of a call site is made with the descriptor that the server keeps, the others with a copy in `fn_extra`.
///
/// # Safety
///
/// As for [`composite`].
unsafe fn descriptor(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::TupleDesc {
    /// Its address is what `fn_extra` holds after the first answer.
    static ANSWERED: u8 = 0;
    let answered = (&raw const ANSWERED).cast_mut().cast();
    // SAFETY: the caller vouches for the call; a copy lives as long as the flinfo that holds it.
    unsafe {
        let flinfo = (*fcinfo).flinfo;
        if (*flinfo).fn_extra.is_null() {
            (*flinfo).fn_extra = answered;
            let result = pg_sys::get_fn_expr_rettype(flinfo);
            if result != pg_sys::InvalidOid && result != pg_sys::RECORDOID {
                let known = pg_sys::lookup_type_cache(result, pg_sys::TYPECACHE_TUPDESC as i32);
                if !(*known).tupDesc.is_null() {
                    return (*known).tupDesc;
                }
            }
        }
        if (*flinfo).fn_extra == answered {
            let mut descriptor: pg_sys::TupleDesc = std::ptr::null_mut();
            pg_sys::get_call_result_type(fcinfo, std::ptr::null_mut(), &mut descriptor);
            let old = pg_sys::MemoryContextSwitchTo((*flinfo).fn_mcxt);
            (*flinfo).fn_extra = pg_sys::BlessTupleDesc(pg_sys::CreateTupleDescCopy(descriptor)).cast();
            pg_sys::MemoryContextSwitchTo(old);
        }
        (*flinfo).fn_extra.cast()
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
