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
        if marker::is_stored_expression(fcinfo) {
            let Some(marker) = marker_of((*flinfo).fn_mcxt, wanted) else {
                (*fcinfo).isnull = true;
                return pg_sys::Datum::null();
            };
            (*flinfo).fn_extra = marker.cast();
            return datum_of(marker, form).unwrap_or_else(|| without_key(fcinfo, wanted, marker));
        }
        let Some(tenant) = resolve(wanted) else {
            (*fcinfo).isnull = true;
            return pg_sys::Datum::null();
        };
        // Outside a query the result lives as long as the caller's memory, and nothing is remembered.
        match form {
            Form::Uuid => {
                let copy = pg_sys::MemoryContextAlloc(pg_sys::CurrentMemoryContext, 16).cast::<[u8; 16]>();
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
        }
    }
}

/// What `required_tenant()` in a stored expression would go by in the query that owns `context`, which has asked for
/// its tenant then; `None` where it would be NULL.
///
/// # Safety
///
/// `context` is the memory context of a running query.
pub unsafe fn required_in(context: pg_sys::MemoryContext) -> Option<*mut Marker> {
    // SAFETY: as the caller promises.
    unsafe { marker_of(context, Wanted::Required) }
}

/// The marker of the query that owns `context`, which asks for its tenant now unless it has before; `None` where
/// no tenant is an answer.
unsafe fn marker_of(context: pg_sys::MemoryContext, wanted: Wanted) -> Option<*mut Marker> {
    // SAFETY: the context is that of a running query; a marker that is found there is live.
    unsafe {
        if let Some(known) = marker::find(context) {
            if (*known).generation != setting::generation() {
                Error::ChangedInStatement.raise();
            }
            return Some(known);
        }
        let tenant = resolve(wanted)?;
        if marker::writes_unfenced(context, tenant.id) {
            or_raise(super::fence::enter(&tenant));
        }
        Some(marker::put(context, tenant.id, tenant.key))
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
