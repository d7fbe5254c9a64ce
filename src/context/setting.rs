//! The setting `app.current_tenant`.
//!
//! Every way to set it — SET, SET LOCAL, set_config, UPDATE pg_settings, PGOPTIONS, a function's SET clause,
//! ALTER ROLE and ALTER DATABASE — ends in the check hook here, which validates; the assign hook keeps the
//! parsed value. Whether the value still holds is decided again when it is used: see [`super::held`].

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::rc::Rc;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::ticket::Ticket;
use super::{carrier, marker, switch_log};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::gucs;
use crate::registry::{self, Tenant, Ways};
use crate::tenant::{CANONICAL_LEN, Status, TenantId};

/// The name of the setting.
pub const NAME: &CStr = c"app.current_tenant";

/// What the setting holds, as the check hook hands it to the assign hook.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Value {
    /// The tenant, unless the setting is empty.
    pub tenant: Option<TenantId>,
    /// When that tenant was registered, unless nobody could look (0): its successor is another tenant.
    pub created_at: i64,
    /// The ticket that it was set with, if it was.
    pub ticket: Option<Ticket>,
    /// Whether a parallel worker got it from its leader, which sends a ticket on a way of its own.
    pub from_leader: bool,
    /// Whether the value came with the session rather than from a statement.
    at_start: bool,
}

const NONE: Value = Value { tenant: None, created_at: 0, ticket: None, from_leader: false, at_start: true };

static VALUE: Backend<Cell<Value>> = Backend::new(Cell::new(NONE));
static GENERATION: Backend<Cell<u64>> = Backend::new(Cell::new(0));
/// The ticket with which [`set`] is just now setting its tenant.
static OFFERED: Backend<Cell<Option<(TenantId, Ticket)>>> = Backend::new(Cell::new(None));
static LOADING: Backend<Cell<bool>> = Backend::new(Cell::new(false));
static FAILED: Backend<Cell<bool>> = Backend::new(Cell::new(false));
/// When the statement began in which a function of ours was last asked for a tenant.
static REACHED: Backend<Cell<i64>> = Backend::new(Cell::new(0));

/// The storage that the server assigns the text to.
struct Text(Cell<*mut c_char>);
// SAFETY: only the server writes it, in the one thread of the backend.
unsafe impl Sync for Text {}
static TEXT: Text = Text(Cell::new(std::ptr::null_mut()));

/// What the session asks for.
#[inline]
pub fn value() -> Value {
    VALUE.get()
}

/// Grows with every change of the tenant.
#[inline]
pub fn generation() -> u64 {
    GENERATION.get()
}

/// Whether the last attempt to set a tenant failed. Code that ignores the error gets nothing, not the
/// previous tenant.
pub fn failed() -> bool {
    FAILED.get()
}

/// Notes an attempt that failed. One of a table's owner in the session of somebody else is not the session's.
pub fn attempt_failed() {
    REACHED.set(statement_start());
    if !registry::in_restricted_operation() {
        FAILED.set(true);
    }
}

/// When the server began with what the client has sent.
fn statement_start() -> i64 {
    // Every change of the tenant asks; the guard of pgrx's declaration would cost more than the call.
    unsafe extern "C-unwind" {
        fn GetCurrentStatementStartTimestamp() -> i64;
    }
    // SAFETY: reads a variable of the backend.
    unsafe { GetCurrentStatementStartTimestamp() }
}

/// Notes an attempt that never reached us, when the server reports the error of a statement that names `set_tenant`:
/// a text that is no uuid fails before the function is called, as does everything in a transaction that was aborted.
///
/// An error that a function catches is not reported, and one that `log_min_messages` keeps out of the log is not seen.
///
/// # Safety
///
/// `report` is what the server hands to an emit_log hook. Raises and allocates nothing.
pub unsafe fn hear_of_error(report: *const pg_sys::ErrorData) {
    const NAME: &[u8] = b"set_tenant";
    // SAFETY: the statement that the client has sent is a C string, or null.
    unsafe {
        let arrived = REACHED.get() == statement_start();
        if (*report).elevel < pg_sys::PGERROR as c_int || arrived || pg_sys::debug_query_string.is_null() {
            return;
        }
        let statement = CStr::from_ptr(pg_sys::debug_query_string).to_bytes();
        if statement.windows(NAME.len()).any(|part| part.eq_ignore_ascii_case(NAME)) {
            FAILED.set(true);
        }
    }
}

/// Defines the setting. What the session holds of that name already is checked here by the server: a value
/// that fails is dropped with a WARNING.
pub fn init() {
    LOADING.set(true);
    // Not GUC_NOT_WHILE_SEC_REST, which would refuse SECURITY DEFINER functions too, and before the check hook
    // hears of the attempt.
    let flags = pg_sys::GUC_REPORT | pg_sys::GUC_DISALLOW_IN_FILE;
    // SAFETY: the strings are static, the storage lives as long as the library, which is never unloaded,
    // and the hooks have the server's signatures.
    unsafe {
        pg_sys::DefineCustomStringVariable(
            NAME.as_ptr(),
            c"The tenant that the session acts for.".as_ptr(),
            c"Set it with set_tenant(tenant); every other way is validated in the same way. Empty: none."
                .as_ptr(),
            TEXT.0.as_ptr(),
            c"".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            flags as c_int,
            Some(check),
            Some(assign),
            None,
        );
    }
    LOADING.set(false);
}

/// Takes an offered ticket back when the attempt is over, whichever way that went.
struct Offer;

impl Drop for Offer {
    fn drop(&mut self) {
        OFFERED.set(None);
    }
}

/// Sets the tenant as SET (or, if `is_local`, SET LOCAL) does, through the check hook; with a ticket or without.
pub fn set(tenant: Option<TenantId>, ticket: Option<Ticket>, is_local: bool) {
    REACHED.set(statement_start());
    let _offer = Offer;
    OFFERED.set(tenant.zip(ticket));
    let text = tenant.map(|id| id.to_string()).unwrap_or_default();
    let Ok(text) = CString::new(text) else { return };
    let action =
        if is_local { pg_sys::GucAction::GUC_ACTION_LOCAL } else { pg_sys::GucAction::GUC_ACTION_SET };
    // SAFETY: both strings outlive the call, which copies them. A refusal raises.
    unsafe {
        pg_sys::set_config_option(
            NAME.as_ptr(),
            text.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            action,
            true,
            0,
            false,
        );
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn check(
    new: *mut *mut c_char,
    extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the server hands a pointer to its copy of the new text, which is null only where the boot value
    // is null, and ours is not.
    let text = unsafe { CStr::from_ptr(*new) };
    let tests_only = source == pg_sys::GucSource::PGC_S_TEST;
    // Whatever becomes of this attempt, the ticket serves no other.
    let offered = OFFERED.take();
    match validate(text, source, offered) {
        Ok(value) => {
            // SAFETY: as above; the server frees what it gets with the allocator it came from.
            if !unsafe { store(value, new, extra) } {
                return false;
            }
            if !tests_only && source >= pg_sys::GucSource::PGC_S_INTERACTIVE {
                FAILED.set(false);
            }
            true
        }
        Err(error) => {
            if !tests_only {
                attempt_failed();
            }
            report(&error);
            false
        }
    }
}

fn validate(
    text: &CStr,
    source: pg_sys::GucSource::Type,
    offered: Option<(TenantId, Ticket)>,
) -> Result<Value> {
    use pg_sys::GucSource::*;
    let at_start = source < PGC_S_INTERACTIVE;
    let none = Value { at_start, ..NONE };
    if matches!(source, PGC_S_ENV_VAR | PGC_S_FILE | PGC_S_ARGV | PGC_S_GLOBAL) && !text.is_empty() {
        return Err(Error::NotFromThere);
    }
    // SAFETY: reads a variable of the backend.
    let in_worker = unsafe { pg_sys::InitializingParallelWorker };
    let parse = || {
        let lossy = text.to_string_lossy();
        TenantId::parse(&lossy).map_err(|_| Error::NotAUuid(lossy.into_owned()))
    };
    if in_worker {
        // The leader has validated it; here nothing can be looked up yet.
        return if text.is_empty() {
            Ok(none)
        } else {
            parse().map(|id| Value { tenant: Some(id), from_leader: true, ..none })
        };
    }
    // SAFETY: reads the state of the transaction.
    let in_transaction = unsafe { pg_sys::IsTransactionState() };
    if source == PGC_S_TEST {
        // ALTER ROLE … SET and a function's SET clause: who will act is not known before it is used.
        if !text.is_empty() && in_transaction && registry::installed() {
            parse()?;
        }
        return Ok(none);
    }
    if source >= PGC_S_INTERACTIVE && registry::in_restricted_operation() {
        return Err(Error::NotPermitted {
            what: "cannot set parameter \"app.current_tenant\" within security-restricted operation".into(),
            hint: "",
        });
    }
    if text.is_empty() {
        if in_transaction && marker::blocks(None) {
            return Err(Error::SwitchInStatement);
        }
        return Ok(none);
    }
    if !in_transaction {
        return Err(Error::NoTransaction);
    }
    // In a database without the extension the text means nothing.
    if !registry::installed() {
        return Ok(none);
    }
    let id = parse()?;
    registry::accept_invalidations();
    let role = registry::acting_role();
    let ticket = offered.filter(|(of, _)| *of == id).map(|(_, ticket)| ticket);
    let tenant = admit(id, if ticket.is_some() { Ways::Ticket } else { Ways::Name })?;
    if LOADING.get() && tenant.status == Status::Fenced {
        // The statement that loads the library began before the hooks that hold writers back were there.
        return Err(Error::Fenced(id));
    }
    if source >= PGC_S_INTERACTIVE && registry::rights(role)?.bypasses && value().tenant != Some(id) {
        Error::Bypasses { role: registry::role_name(role) }.warn();
    }
    if gucs::log_switch() {
        switch_log::learn_role();
    }
    Ok(Value { tenant: Some(id), created_at: tenant.created_at, ticket, from_leader: false, at_start })
}

/// The tenant, if the session may act for it now: no open statement sees another one, the role was granted it in that
/// way, its status allows it, and the session holds no rows of another.
pub fn admit(id: TenantId, way: Ways) -> Result<Rc<Tenant>> {
    if marker::blocks(Some(id)) {
        return Err(Error::SwitchInStatement);
    }
    let role = registry::acting_role();
    let tenant = registry::admit(role, id, way)?;
    carrier::act_for(id, || Ok(registry::rights(role)?.bypasses))?;
    Ok(tenant)
}

/// Hands the server the canonical text and the parsed value.
///
/// # Safety
///
/// `new` and `extra` are those of a check hook.
unsafe fn store(value: Value, new: *mut *mut c_char, extra: *mut *mut c_void) -> bool {
    // SAFETY: what is written has just been allocated in that size, and what is freed came from the same
    // allocator, as the server promises of a check hook's text.
    unsafe {
        if let Some(id) = value.tenant {
            let mut buffer = [0u8; CANONICAL_LEN];
            let canonical = id.write_canonical(&mut buffer);
            if CStr::from_ptr(*new).to_bytes() != canonical.as_bytes() {
                let copy = memory::allocate(CANONICAL_LEN + 1).cast::<u8>();
                if copy.is_null() {
                    return false;
                }
                std::ptr::copy_nonoverlapping(canonical.as_ptr(), copy, CANONICAL_LEN);
                *copy.add(CANONICAL_LEN) = 0;
                memory::free((*new).cast());
                *new = copy.cast();
            }
        }
        let kept = memory::allocate(size_of::<Value>()).cast::<Value>();
        if kept.is_null() {
            return false;
        }
        kept.write(value);
        *extra = kept.cast();
        true
    }
}

/// The allocator of setting texts: malloc up to PostgreSQL 15, a memory context since 16.
mod memory {
    use std::ffi::c_void;

    #[cfg(feature = "pg15")]
    pub unsafe fn allocate(size: usize) -> *mut c_void {
        unsafe extern "C" {
            fn malloc(size: usize) -> *mut c_void;
        }
        // SAFETY: plain malloc; the caller checks for null.
        unsafe { malloc(size) }
    }

    #[cfg(feature = "pg15")]
    pub unsafe fn free(pointer: *mut c_void) {
        unsafe extern "C" {
            fn free(pointer: *mut c_void);
        }
        // SAFETY: the caller hands what malloc gave.
        unsafe { free(pointer) }
    }

    #[cfg(not(feature = "pg15"))]
    pub unsafe fn allocate(size: usize) -> *mut c_void {
        // SAFETY: at level LOG the server answers null instead of raising.
        unsafe { pgrx::pg_sys::guc_malloc(pgrx::pg_sys::LOG as i32, size) }
    }

    #[cfg(not(feature = "pg15"))]
    pub unsafe fn free(pointer: *mut c_void) {
        // SAFETY: the caller hands what guc_malloc gave.
        unsafe { pgrx::pg_sys::guc_free(pointer) }
    }
}

/// Tells the server why the value is refused.
fn report(error: &Error) {
    let text = error.text();
    // SAFETY: the server reads the strings right after the hook returns, and does not free them; memory of
    // the current context lives that long.
    unsafe {
        pg_sys::GUC_check_errcode(text.code as c_int);
        pg_sys::GUC_check_errmsg_string = palloc_string(&text.message);
        pg_sys::GUC_check_errdetail_string =
            text.detail.as_deref().map_or(std::ptr::null_mut(), palloc_string);
        pg_sys::GUC_check_errhint_string = text.hint.as_deref().map_or(std::ptr::null_mut(), palloc_string);
    }
}

fn palloc_string(text: &str) -> *mut c_char {
    let text = text.replace('\0', "");
    // SAFETY: one byte more than the text, which has no zero inside.
    unsafe {
        let copy = pg_sys::palloc(text.len() + 1).cast::<u8>();
        std::ptr::copy_nonoverlapping(text.as_ptr(), copy, text.len());
        *copy.add(text.len()) = 0;
        copy.cast()
    }
}

// Called also while a transaction ends, in a commit or an abort: it stores, writes to the log, and no more.
unsafe extern "C-unwind" fn assign(_text: *const c_char, extra: *mut c_void) {
    // SAFETY: extra is what the check hook allocated for this value, or null for the boot value.
    let value = if extra.is_null() { NONE } else { unsafe { *extra.cast::<Value>() } };
    let old = VALUE.replace(value);
    if old.tenant != value.tenant || old.created_at != value.created_at {
        GENERATION.set(GENERATION.get() + 1);
        // A worker only repeats what its leader has set.
        // SAFETY: reads a variable of the backend; the line is written behind a guard of its own.
        unsafe {
            if gucs::log_switch() && !pg_sys::InitializingParallelWorker {
                switch_log::write(old.tenant, value.tenant);
            }
        }
    }
    // RESET returns to the start value without asking the check hook, and is an attempt that succeeds.
    // SAFETY: reads the state of the transaction; a rollback and a commit are outside it.
    let is_open = || unsafe { pg_sys::IsTransactionState() };
    if FAILED.get() && value.at_start && is_open() && !registry::in_restricted_operation() {
        FAILED.set(false);
    }
}
