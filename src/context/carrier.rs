//! What carries rows of one tenant into the session's time with another: cursors and temporary tables.
//!
//! A cursor that was read to its end keeps rows in a store that outlives its query, and so its marker: one
//! WITH HOLD, one that a procedure keeps over a commit, one whose rows a function has collected. Such a portal
//! is noted when a query that has asked for the tenant ends in it, and forgotten with the portal's memory.
//! While it waits to be read on, another tenant is refused; while it runs it may change tenants between its
//! statements, as a loop does.
//!
//! A temporary table that has pages blocks every change to another tenant than the session last acted for.
//! Nobody knows whose rows are in it, except that rows from before the first tenant are nobody's: a table that was
//! filled then blocks when it has a newer one.
//!
//! A rollback brings back what was dropped, emptied or deleted, and with it the tenant whose rows that may be.
//!
//! Paths that cannot refuse (the end of a transaction or function) make the next use raise: see
//! [`super::held`].

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};

use pgrx::pg_sys;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::gucs;
use crate::registry::scan::{Key, scan, scan_open};
use crate::tenant::TenantId;

/// A portal in which rows of a tenant were read.
#[repr(C)]
struct Carrier {
    callback: pg_sys::MemoryContextCallback,
    previous: *mut Carrier,
    next: *mut Carrier,
    portal: pg_sys::Portal,
    tenant: TenantId,
    /// Whether rows of another tenant were read too.
    mixed: bool,
}

static FIRST: Backend<Cell<*mut Carrier>> = Backend::new(Cell::new(std::ptr::null_mut()));

/// The tenant that the session last acted for, also when it has none now.
static LAST: Backend<Cell<Option<TenantId>>> = Backend::new(Cell::new(None));

/// A nesting level, and what [`LAST`] was before the (sub)transaction there changed it.
type Undo = (c_int, Option<TenantId>);
/// Those of the (sub)transactions that are open, the innermost last.
static UNDO: Backend<RefCell<Vec<Undo>>> = Backend::new(RefCell::new(Vec::new()));

/// The temporary tables that were filled before the first tenant, and the transaction from which on rows may be its.
static BEFORE: Backend<RefCell<Vec<pg_sys::Oid>>> = Backend::new(RefCell::new(Vec::new()));
static SINCE: Backend<Cell<pg_sys::TransactionId>> = Backend::new(Cell::new(pg_sys::InvalidTransactionId));

/// Listens to the ends of transactions. Called once, when the library is loaded.
pub fn init() {
    // SAFETY: the callbacks are functions of this library, which is never unloaded.
    unsafe {
        pg_sys::RegisterXactCallback(Some(transaction_ends), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction_ends), std::ptr::null_mut());
    }
}

// Both callbacks store, and raise and allocate nothing: they run in commits and aborts.
unsafe extern "C-unwind" fn transaction_ends(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    use pg_sys::XactEvent::*;
    match event {
        XACT_EVENT_ABORT => go_back(0),
        XACT_EVENT_COMMIT | XACT_EVENT_PREPARE => UNDO.borrow_mut().clear(),
        _ => {}
    }
}

unsafe extern "C-unwind" fn subtransaction_ends(
    event: pg_sys::SubXactEvent::Type,
    _own: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _arg: *mut c_void,
) {
    use pg_sys::SubXactEvent::*;
    if UNDO.borrow().is_empty() {
        return;
    }
    // SAFETY: reads the state of the transaction, which is still the one that ends.
    let level = unsafe { pg_sys::GetCurrentTransactionNestLevel() };
    match event {
        SUBXACT_EVENT_ABORT_SUB => go_back(level),
        SUBXACT_EVENT_COMMIT_SUB => {
            let mut undo = UNDO.borrow_mut();
            // What it has changed, the one around it has changed now.
            if let Some((at, last)) = undo.pop_if(|(at, _)| *at >= level)
                && undo.last().is_none_or(|(at, _)| *at < level - 1)
            {
                undo.push((at - 1, last));
            }
        }
        _ => {}
    }
}

/// What the session last acted for is what it was before the (sub)transaction of that level.
fn go_back(level: c_int) {
    let mut undo = UNDO.borrow_mut();
    while let Some((_, last)) = undo.pop_if(|(at, _)| *at >= level) {
        LAST.set(last);
    }
}

/// Whether rows that a query reads now may stay in the portal that runs it.
///
/// # Safety
///
/// Called while a query ends.
#[inline]
pub unsafe fn is_in_a_portal() -> bool {
    // SAFETY: the portal that is active is live. One of several statements keeps no rows.
    unsafe {
        !pg_sys::ActivePortal.is_null()
            && (*pg_sys::ActivePortal).strategy != pg_sys::PortalStrategy::PORTAL_MULTI_QUERY
    }
}

/// Notes that the active portal has rows of the tenant.
///
/// # Safety
///
/// Only after [`is_in_a_portal`].
pub unsafe fn note(tenant: TenantId) {
    // SAFETY: the carrier is written whole before it is linked, and unlinked by the callback before the
    // portal's context frees it. Those in the list are live.
    unsafe {
        let portal = pg_sys::ActivePortal;
        let mut known = FIRST.get();
        while !known.is_null() {
            if (*known).portal == portal {
                (*known).mixed |= (*known).tenant != tenant;
                return;
            }
            known = (*known).next;
        }
        let context = (*portal).portalContext;
        let carrier = pg_sys::MemoryContextAlloc(context, size_of::<Carrier>()).cast::<Carrier>();
        let next = FIRST.get();
        carrier.write(Carrier {
            callback: pg_sys::MemoryContextCallback {
                func: Some(unlink),
                arg: carrier.cast(),
                next: std::ptr::null_mut(),
            },
            previous: std::ptr::null_mut(),
            next,
            portal,
            tenant,
            mixed: false,
        });
        if !next.is_null() {
            (*next).previous = carrier;
        }
        FIRST.set(carrier);
        pg_sys::MemoryContextRegisterResetCallback(context, &mut (*carrier).callback);
    }
}

unsafe extern "C-unwind" fn unlink(carrier: *mut c_void) {
    let carrier = carrier.cast::<Carrier>();
    // SAFETY: called once, by the context that holds the carrier, before its memory is freed.
    unsafe {
        let (previous, next) = ((*carrier).previous, (*carrier).next);
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

/// Whether a cursor that can be read on has rows of another tenant.
fn in_a_cursor(new: TenantId) -> bool {
    let mut carrier = FIRST.get();
    while !carrier.is_null() {
        // SAFETY: a carrier in the list is live, and so is the portal whose memory it lies in.
        unsafe {
            let waits = (*(*carrier).portal).status == pg_sys::PortalStatus::PORTAL_READY;
            if waits && ((*carrier).mixed || (*carrier).tenant != new) {
                return true;
            }
            carrier = (*carrier).next;
        }
    }
    false
}

/// Lets the session act for the tenant, or refuses because something in it may hold rows of another.
///
/// `exempt` is a role that policies do not hold for: it reads all rows anyway.
pub fn act_for(new: TenantId, exempt: impl FnOnce() -> Result<bool>) -> Result<()> {
    let last = LAST.get();
    if last == Some(new) && FIRST.get().is_null() {
        return Ok(());
    }
    // A worker has the leader's temporary tables, and not its past.
    // SAFETY: reads a variable of the backend.
    if unsafe { pg_sys::ParallelWorkerNumber } >= 0 {
        return Ok(());
    }
    let schema = if last == Some(new) { pg_sys::InvalidOid } else { temporary_schema() };
    if last.is_none() {
        *BEFORE.borrow_mut() = filled_tables(schema);
        // Rows that this very transaction has written count as its tenant's.
        // SAFETY: reads the state of the transaction and of the server.
        SINCE.set(unsafe {
            match pg_sys::GetTopTransactionIdIfAny() {
                pg_sys::InvalidTransactionId => pg_sys::ReadNextTransactionId(),
                own => own,
            }
        });
    } else if (schema != pg_sys::InvalidOid || !FIRST.get().is_null()) && gucs::guard_switch() && !exempt()? {
        if in_a_cursor(new) {
            return Err(Error::SwitchWithCursor);
        }
        if let Some(table) = grown_table(schema) {
            return Err(Error::SwitchWithTable { table: name_of(table) });
        }
    }
    if last != Some(new) {
        // SAFETY: reads the state of the transaction.
        let level = unsafe { pg_sys::GetCurrentTransactionNestLevel() };
        let mut undo = UNDO.borrow_mut();
        if undo.last().is_none_or(|(at, _)| *at < level) {
            undo.push((level, last));
        }
        LAST.set(Some(new));
    }
    Ok(())
}

/// A temporary table that may hold rows of the last tenant.
fn grown_table(schema: pg_sys::Oid) -> Option<pg_sys::Oid> {
    let before = BEFORE.borrow();
    filled_tables(schema).into_iter().find(|table| !before.contains(table) || has_newer_rows(*table))
}

/// Whether a temporary table has a row that was written since the first tenant.
fn has_newer_rows(table: pg_sys::Oid) -> bool {
    let since = SINCE.get();
    let mut newer = false;
    // SAFETY: as in `filled_tables`; the scan ends before the relation is closed.
    unsafe {
        let relation = pg_sys::RelationIdGetRelation(table);
        if relation.is_null() {
            return false;
        }
        scan_open(relation, |row| newer |= !row.is_older_than(since));
        pg_sys::RelationClose(relation);
    }
    newer
}

/// The schema of this session's temporary tables, if it has ever made one.
fn temporary_schema() -> pg_sys::Oid {
    // Every change of the tenant asks; the guard of pgrx's declaration would cost more than the call.
    unsafe extern "C-unwind" {
        fn GetTempNamespaceState(schema: *mut pg_sys::Oid, toast: *mut pg_sys::Oid);
    }
    let (mut schema, mut toast) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
    // SAFETY: reads two variables of the backend.
    unsafe { GetTempNamespaceState(&mut schema, &mut toast) };
    schema
}

/// The tables in a schema of temporary ones that have pages. A table without pages has no rows.
fn filled_tables(schema: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // Columns and index of pg_depend, which the bindings do not name.
    const DEPEND: pg_sys::Oid = pg_sys::Oid::from_u32(2608);
    const BY_REFERENCE: pg_sys::Oid = pg_sys::Oid::from_u32(2674);
    const CLASS: i16 = 1;
    const OBJECT: i16 = 2;
    const ON_CLASS: i16 = 4;
    const ON_OBJECT: i16 = 5;
    let mut filled = Vec::new();
    if schema == pg_sys::InvalidOid {
        return filled;
    }
    let mut tables = Vec::new();
    let on_schema = [Key::Oid(ON_CLASS, pg_sys::NamespaceRelationId), Key::Oid(ON_OBJECT, schema)];
    scan(DEPEND, BY_REFERENCE, &on_schema, |row| {
        if row.get::<pg_sys::Oid>(CLASS) == Some(pg_sys::RelationRelationId) {
            tables.extend(row.get::<pg_sys::Oid>(OBJECT));
        }
    });
    for table in tables {
        // SAFETY: the table is of this session, which is not dropping it now. Not opened as a statement does:
        // that would forbid PREPARE TRANSACTION.
        unsafe {
            if pg_sys::get_rel_relkind(table) as u8 != pg_sys::RELKIND_RELATION {
                continue;
            }
            let relation = pg_sys::RelationIdGetRelation(table);
            if relation.is_null() {
                continue;
            }
            let pages = pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM);
            pg_sys::RelationClose(relation);
            if pages > 0 {
                filled.push(table);
            }
        }
    }
    filled
}

fn name_of(table: pg_sys::Oid) -> String {
    // SAFETY: answers with a string of the current memory context, or null.
    unsafe {
        let name = pg_sys::get_rel_name(table);
        if name.is_null() {
            return String::new();
        }
        std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}
