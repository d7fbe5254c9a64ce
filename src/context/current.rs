//! `required_tenant()`, `current_tenant()` and their bigint twins.
//!
//! Policies call these for every row, so they are C functions of the server's own convention: a row costs one
//! comparison of a number. The first call of each call site and query does the work; see [`super::marker`].

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::marker::{self, Marker};
use super::setting;
use crate::error::{Error, or_raise};
use crate::gucs::{self, MissingTenant};
use crate::registry::{self, FUNCTION_INFO};

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Required,
    Current,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Uuid,
    Key,
}

macro_rules! sql_function {
    ($name:ident, $info:ident, $wanted:expr, $form:expr) => {
        /// The SQL function of that name.
        ///
        /// # Safety
        ///
        /// Called by the server alone.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
            // SAFETY: the server hands a valid call; fn_extra is null or the marker that `first_call` left
            // there, which lives as long as the query that flinfo belongs to.
            unsafe {
                let marker = (*(*fcinfo).flinfo).fn_extra.cast::<Marker>();
                if !marker.is_null() && (*marker).generation == setting::generation() {
                    if let Some(datum) = datum_of(marker, $form) {
                        return datum;
                    }
                }
                first_call(fcinfo, $wanted, $form)
            }
        }

        /// Version record of the function.
        #[unsafe(no_mangle)]
        pub extern "C" fn $info() -> *const pg_sys::Pg_finfo_record {
            &FUNCTION_INFO
        }
    };
}

sql_function!(required_tenant, pg_finfo_required_tenant, Wanted::Required, Form::Uuid);
sql_function!(required_tenant_key, pg_finfo_required_tenant_key, Wanted::Required, Form::Key);
sql_function!(current_tenant, pg_finfo_current_tenant, Wanted::Current, Form::Uuid);
sql_function!(current_tenant_key, pg_finfo_current_tenant_key, Wanted::Current, Form::Key);

#[inline]
unsafe fn datum_of(marker: *const Marker, form: Form) -> Option<pg_sys::Datum> {
    // SAFETY: the marker is live, and so is the uuid inside it until the query ends.
    unsafe {
        match form {
            Form::Uuid => Some(pg_sys::Datum::from((&raw const (*marker).id).cast_mut())),
            Form::Key => (*marker).key.map(pg_sys::Datum::from),
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn first_call(
    fcinfo: pg_sys::FunctionCallInfo,
    wanted: Wanted,
    form: Form,
) -> pg_sys::Datum {
    // SAFETY: the server hands a valid call, whose flinfo outlives it.
    unsafe {
        let flinfo = (*fcinfo).flinfo;
        if !(*flinfo).fn_extra.is_null() {
            let marker = (*flinfo).fn_extra.cast::<Marker>();
            if (*marker).generation != setting::generation() {
                Error::ChangedInStatement.raise();
            }
            return without_key(fcinfo, wanted, marker);
        }
        let stored = marker::is_stored_expression(fcinfo);
        if stored && let Some(known) = marker::find((*flinfo).fn_mcxt) {
            if (*known).generation != setting::generation() {
                Error::ChangedInStatement.raise();
            }
            (*flinfo).fn_extra = known.cast();
            return datum_of(known, form).unwrap_or_else(|| without_key(fcinfo, wanted, known));
        }
        let Some(tenant) = resolve(wanted) else {
            (*fcinfo).isnull = true;
            return pg_sys::Datum::null();
        };
        // Outside a query the result lives as long as the caller's memory, and nothing is remembered.
        let context = if stored { (*flinfo).fn_mcxt } else { pg_sys::CurrentMemoryContext };
        if !stored {
            return match form {
                Form::Uuid => {
                    let copy = pg_sys::MemoryContextAlloc(context, 16).cast::<[u8; 16]>();
                    copy.write(*tenant.id.as_bytes());
                    pg_sys::Datum::from(copy)
                }
                Form::Key => match tenant.key {
                    Some(key) => pg_sys::Datum::from(key),
                    None if wanted == Wanted::Required => Error::NoKey(tenant.id).raise(),
                    None => {
                        (*fcinfo).isnull = true;
                        pg_sys::Datum::null()
                    }
                },
            };
        }
        if marker::writes_unfenced(context, tenant.id) {
            or_raise(super::fence::enter(&tenant));
        }
        let marker = marker::put(context, tenant.id, tenant.key);
        (*flinfo).fn_extra = marker.cast();
        datum_of(marker, form).unwrap_or_else(|| without_key(fcinfo, wanted, marker))
    }
}

/// The answer for a tenant without a key.
unsafe fn without_key(
    fcinfo: pg_sys::FunctionCallInfo,
    wanted: Wanted,
    marker: *const Marker,
) -> pg_sys::Datum {
    // SAFETY: both are live, as in the caller.
    unsafe {
        if wanted == Wanted::Required {
            Error::NoKey(crate::tenant::TenantId::from_bytes((*marker).id)).raise();
        }
        (*fcinfo).isnull = true;
        pg_sys::Datum::null()
    }
}

/// The tenant that holds now, or `None` where that is an answer.
fn resolve(wanted: Wanted) -> Option<std::rc::Rc<registry::Tenant>> {
    registry::accept_invalidations();
    match super::held() {
        Ok(Some(tenant)) => Some(tenant),
        Ok(None) if wanted == Wanted::Current || gucs::missing_tenant() == MissingTenant::Empty => None,
        Ok(None) => Error::NoTenant.raise(),
        Err(_) if wanted == Wanted::Current => None,
        Err(error) => or_raise(Err(error)),
    }
}
