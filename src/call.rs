//! SQL functions in the server's own calling convention, for what pgrx's takes too long, or has no type for.

use pgrx::{FromDatum, pg_sys};

/// Argument `number` (from 0) of a call, or `None` when it is NULL.
///
/// # Safety
///
/// The SQL declaration has such an argument, of type `T`.
pub unsafe fn argument<T: FromDatum>(fcinfo: pg_sys::FunctionCallInfo, number: usize) -> Option<T> {
    // SAFETY: the caller vouches for it.
    unsafe {
        let argument = (*fcinfo).args.as_slice((*fcinfo).nargs as usize)[number];
        T::from_datum(argument.value, argument.isnull)
    }
}

/// The same, as the server hands it.
///
/// # Safety
///
/// The SQL declaration has such an argument.
pub unsafe fn datum_argument(fcinfo: pg_sys::FunctionCallInfo, number: usize) -> Option<pg_sys::Datum> {
    // SAFETY: as above.
    let argument = unsafe { (*fcinfo).args.as_slice((*fcinfo).nargs as usize)[number] };
    (!argument.isnull).then_some(argument.value)
}

/// The answer of a call.
///
/// # Safety
///
/// `fcinfo` is the call that is running.
pub unsafe fn answer(fcinfo: pg_sys::FunctionCallInfo, value: Option<pg_sys::Datum>) -> pg_sys::Datum {
    // SAFETY: the caller vouches for it.
    unsafe { (*fcinfo).isnull = value.is_none() };
    value.unwrap_or(pg_sys::Datum::null())
}

/// `sql_function!(/** doc */ name, pg_finfo_name, |fcinfo| Result<Datum>)`: the C function `name`.
macro_rules! sql_function {
    ($(#[$doc:meta])* $name:ident, $info:ident, $body:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// Called by the server alone.
        #[pgrx::pg_guard]
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(fcinfo: pgrx::pg_sys::FunctionCallInfo) -> pgrx::pg_sys::Datum {
            // Some bodies read no argument.
            #[allow(unused_unsafe)]
            // SAFETY: the server hands a call of the SQL function of this name, whose arguments and result are those
            // that the install script declares.
            unsafe { $crate::error::or_raise(($body)(fcinfo)) }
        }

        /// Version record of the function.
        #[unsafe(no_mangle)]
        pub extern "C" fn $info() -> *const pgrx::pg_sys::Pg_finfo_record {
            &$crate::registry::FUNCTION_INFO
        }
    };
}
pub(crate) use sql_function;
