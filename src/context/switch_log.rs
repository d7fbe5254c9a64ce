//! The tenant in the server's log: a line for each change, and a tag on every line of the session.

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void};

use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::{PgLogLevel, PgSqlErrorCode};

use super::setting;
use crate::backend::Backend;
use crate::registry;
use crate::tenant::{CANONICAL_LEN, TenantId};

/// The last role that a tenant was set as: names cannot be looked up while a transaction ends.
static ROLE: Backend<RefCell<Option<(pg_sys::Oid, String)>>> = Backend::new(RefCell::new(None));

/// Learns the name of the role for the lines to come. Called where names can be looked up.
pub fn learn_role() {
    let role = registry::acting_role();
    *ROLE.borrow_mut() = Some((role, registry::role_name(role)));
}

/// Writes the line of a change. Looks nothing up: called also while a transaction ends.
#[allow(improper_ctypes_definitions)]
#[pg_guard]
pub unsafe extern "C-unwind" fn write(from: Option<TenantId>, to: Option<TenantId>) {
    let name = |tenant: Option<TenantId>| tenant.map_or_else(|| "none".to_string(), |id| id.to_string());
    let role = registry::acting_role();
    let role = match &*ROLE.borrow() {
        Some((known, name)) if *known == role => name.clone(),
        _ => role.to_u32().to_string(),
    };
    // SAFETY: reads a variable of the backend.
    let pid = unsafe { pg_sys::MyProcPid };
    let message = format!("tenant changed from {} to {} by role \"{role}\", pid {pid}", name(from), name(to));
    pgrx::pg_sys::panic::ErrorReport::new(
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        message,
        "tenant_rls",
    )
    .report(PgLogLevel::LOG_SERVER_ONLY);
}

/// Adds the session's tenant to what the server log says of an event.
///
/// Into `detail_log`, which the log shows in the place of the DETAIL: what is in CONTEXT goes to the client too.
///
/// # Safety
///
/// `report` is what the server hands to an emit_log hook. Raises nothing and allocates nothing that needs
/// dropping: the server may be out of memory, or about to die.
pub unsafe fn tag(report: *mut pg_sys::ErrorData) {
    unsafe extern "C-unwind" {
        fn MemoryContextAllocExtended(
            context: pg_sys::MemoryContext,
            size: usize,
            flags: c_int,
        ) -> *mut c_void;
        fn strlen(text: *const c_char) -> usize;
    }
    const LABEL: &[u8] = b"Tenant: ";
    // A longer DETAIL stays as it is: the server refuses to allocate what is larger than this by far.
    const LONGEST: usize = 1 << 24;
    let Some(id) = setting::value().tenant else { return };
    // SAFETY: the texts of a report are C strings or null; the copy has room for both parts and the zero, and
    // lives as long as the report.
    unsafe {
        let before = if (*report).detail_log.is_null() { (*report).detail } else { (*report).detail_log };
        let length = if before.is_null() { 0 } else { strlen(before) };
        if length > LONGEST {
            return;
        }
        let size = length + 1 + LABEL.len() + CANONICAL_LEN + 2;
        let flags = pg_sys::MCXT_ALLOC_NO_OOM as c_int;
        let copy = MemoryContextAllocExtended((*report).assoc_context, size, flags).cast::<u8>();
        if copy.is_null() {
            return;
        }
        let mut end = copy;
        let mut add = |bytes: *const u8, count: usize| {
            std::ptr::copy_nonoverlapping(bytes, end, count);
            end = end.add(count);
        };
        if length > 0 {
            add(before.cast(), length);
            add(b"\n".as_ptr(), 1);
        }
        let mut buffer = [0u8; CANONICAL_LEN];
        let canonical = id.write_canonical(&mut buffer);
        add(LABEL.as_ptr(), LABEL.len());
        add(canonical.as_ptr(), CANONICAL_LEN);
        add(c".".as_ptr().cast(), 2);
        (*report).detail_log = copy.cast();
    }
}
