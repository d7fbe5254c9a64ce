//! One statement sees one tenant.
//!
//! The first time a stored expression of a running query (a policy, a default, a view) asks for the tenant,
//! a marker is put into the memory context of that query, and linked into a list. The marker goes when the
//! context goes: at the end of the query, on error, with the cursor. While one is live, the check hook
//! refuses another tenant; for the ways that no hook can refuse (rollback, function exit, RESET ALL) the
//! marker knows the generation it was made at, and the next use raises.
//!
//! A statement that writes has a marker from its start, which forbids nothing until the statement asks: a
//! trigger before it may still choose the tenant, whose fence is then asked.

use std::cell::Cell;
use std::ffi::c_void;

use pgrx::pg_sys;

use super::setting;
use crate::backend::Backend;
use crate::tenant::TenantId;

/// The tenant of one running query.
#[repr(C)]
pub struct Marker {
    callback: pg_sys::MemoryContextCallback,
    context: pg_sys::MemoryContext,
    previous: *mut Marker,
    next: *mut Marker,
    /// Whether the query has asked for its tenant.
    asked: bool,
    /// Whether it writes, and the fence was asked for `id`.
    writes: bool,
    /// The generation of the setting at which the query first asked.
    pub generation: u64,
    /// The tenant's uuid, as a datum points to it.
    pub id: [u8; 16],
    /// The tenant's key, if it has one.
    pub key: Option<i64>,
}

static FIRST: Backend<Cell<*mut Marker>> = Backend::new(Cell::new(std::ptr::null_mut()));

/// Whether a statement is open that a marker belongs to.
#[inline]
pub fn any() -> bool {
    !FIRST.get().is_null()
}

/// Whether an open statement has used another tenant than `new`.
pub fn blocks(new: Option<TenantId>) -> bool {
    let mut marker = FIRST.get();
    while !marker.is_null() {
        // SAFETY: a marker in the list is live: its context unlinks it before it goes.
        unsafe {
            if (*marker).asked && new.is_none_or(|id| *id.as_bytes() != (*marker).id) {
                return true;
            }
            marker = (*marker).next;
        }
    }
    false
}

/// The marker of the query that owns `context`, if it has asked before.
pub fn find(context: pg_sys::MemoryContext) -> Option<*mut Marker> {
    // SAFETY: what `of` answers is live.
    of(context).filter(|marker| unsafe { (**marker).asked })
}

/// Whether the query that owns `context` writes, and has not asked the fence of this tenant.
pub fn writes_unfenced(context: pg_sys::MemoryContext, id: TenantId) -> bool {
    // SAFETY: what `of` answers is live.
    of(context).is_some_and(|marker| unsafe { (*marker).writes && (*marker).id != *id.as_bytes() })
}

fn of(context: pg_sys::MemoryContext) -> Option<*mut Marker> {
    let mut marker = FIRST.get();
    while !marker.is_null() {
        // SAFETY: as in `blocks`.
        unsafe {
            if (*marker).context == context {
                return Some(marker);
            }
            marker = (*marker).next;
        }
    }
    None
}

/// Marks a query that has asked for its tenant.
///
/// # Safety
///
/// `context` is the memory context of a running query.
pub unsafe fn put(context: pg_sys::MemoryContext, id: TenantId, key: Option<i64>) -> *mut Marker {
    // SAFETY: what `of` and `link` answer is live.
    unsafe {
        let marker = of(context).unwrap_or_else(|| link(context));
        (*marker).asked = true;
        (*marker).generation = setting::generation();
        (*marker).id = *id.as_bytes();
        (*marker).key = key;
        marker
    }
}

/// Marks a query that is going to write, and for whom the fence was asked.
///
/// # Safety
///
/// As for [`put`].
pub unsafe fn put_writer(context: pg_sys::MemoryContext, id: TenantId) {
    // SAFETY: what `link` answers is live.
    unsafe {
        let marker = link(context);
        (*marker).writes = true;
        (*marker).id = *id.as_bytes();
    }
}

/// An empty marker in `context`.
unsafe fn link(context: pg_sys::MemoryContext) -> *mut Marker {
    // Neither raises: the guard of pgrx's declarations would cost more than the calls.
    unsafe extern "C-unwind" {
        fn MemoryContextAllocExtended(
            context: pg_sys::MemoryContext,
            size: pg_sys::Size,
            flags: std::ffi::c_int,
        ) -> *mut c_void;
        fn MemoryContextRegisterResetCallback(
            context: pg_sys::MemoryContext,
            callback: *mut pg_sys::MemoryContextCallback,
        );
    }
    // SAFETY: the marker is written whole before it is linked, and unlinked by the callback before the
    // context frees it.
    unsafe {
        let mut marker =
            MemoryContextAllocExtended(context, size_of::<Marker>(), pg_sys::MCXT_ALLOC_NO_OOM as i32)
                .cast::<Marker>();
        if marker.is_null() {
            // Again, to raise what the server says of it.
            marker = pg_sys::MemoryContextAlloc(context, size_of::<Marker>()).cast();
        }
        let next = FIRST.get();
        marker.write(Marker {
            callback: pg_sys::MemoryContextCallback {
                func: Some(unlink),
                arg: marker.cast(),
                next: std::ptr::null_mut(),
            },
            context,
            previous: std::ptr::null_mut(),
            next,
            asked: false,
            writes: false,
            generation: 0,
            id: [0; 16],
            key: None,
        });
        if !next.is_null() {
            (*next).previous = marker;
        }
        FIRST.set(marker);
        MemoryContextRegisterResetCallback(context, &mut (*marker).callback);
        marker
    }
}

unsafe extern "C-unwind" fn unlink(marker: *mut c_void) {
    let marker = marker.cast::<Marker>();
    // SAFETY: called once, by the context that holds the marker, before its memory is freed.
    unsafe {
        let (previous, next) = ((*marker).previous, (*marker).next);
        if previous.is_null() {
            FIRST.set(next);
        } else {
            (*previous).next = next;
        }
        if !next.is_null() {
            (*next).previous = previous;
        }
    }
}

/// Whether a call comes from a stored expression that a query evaluates, and so ends with the query.
///
/// PL/pgSQL evaluates simple expressions (`x := required_tenant()`) in a context that lasts for the
/// transaction: a marker there would forbid switching until its end. Stored expressions lose the location
/// that the parser gave them, calls in query text keep it.
///
/// # Safety
///
/// `fcinfo` is that of a call by the executor.
pub unsafe fn is_stored_expression(fcinfo: pg_sys::FunctionCallInfo) -> bool {
    // SAFETY: fn_expr is null or the node of the call.
    unsafe {
        let expression = (*(*fcinfo).flinfo).fn_expr;
        !expression.is_null()
            && (*expression).type_ == pg_sys::NodeTag::T_FuncExpr
            && (*expression.cast::<pg_sys::FuncExpr>()).location == -1
    }
}
