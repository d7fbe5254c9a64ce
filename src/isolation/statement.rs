//! What a statement on protected tables needs before it starts: a tenant, and an open fence if it writes.
//!
//! Policies ask for the tenant when they are evaluated, which a plan over an empty table never does; and
//! they cannot tell a read from a write.

use std::ffi::c_int;

use pgrx::pg_sys;

use crate::context::{self, fence};
use crate::error::{Error, or_raise};
use crate::gucs::{self, MissingTenant};
use crate::registry;

/// Raises what a statement that is about to start would have to raise for the lack of a tenant.
///
/// # Safety
///
/// `query` is what the server hands to an ExecutorStart hook.
pub unsafe fn check(query: *mut pg_sys::QueryDesc, flags: i32) {
    // SAFETY: the plan and its lists live as long as the query.
    unsafe {
        // A parallel worker runs part of a statement that its leader has checked.
        if pg_sys::ParallelWorkerNumber >= 0 || flags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as c_int != 0 {
            return;
        }
        let plan = (*query).plannedstmt;
        if !reads_protected(plan) {
            return;
        }
        registry::accept_invalidations();
        let tenant = match context::held() {
            Ok(Some(tenant)) => tenant,
            Ok(None) if gucs::missing_tenant() == MissingTenant::Empty => return,
            Ok(None) => Error::NoTenant.raise(),
            Err(error) => error.raise(),
        };
        if writes_protected(plan) {
            or_raise(fence::enter(&tenant));
        }
    }
}

/// Whether the policies of a protected table hold for the role that the statement reads it as.
unsafe fn reads_protected(plan: *mut pg_sys::PlannedStmt) -> bool {
    // SAFETY: the range table is a list of RangeTblEntry.
    unsafe {
        let length = list_length((*plan).rtable);
        (0..length).any(|at| {
            let entry = entry(plan, at);
            (*entry).rtekind == pg_sys::RTEKind::RTE_RELATION
                && registry::is_protected((*entry).relid)
                && pg_sys::check_enable_rls((*entry).relid, reader(plan, entry), true)
                    == pg_sys::CheckEnableRlsResult::RLS_ENABLED as c_int
        })
    }
}

/// Whether the statement changes or locks rows of a protected table.
unsafe fn writes_protected(plan: *mut pg_sys::PlannedStmt) -> bool {
    // SAFETY: resultRelations is a list of positions in the range table (from 1), rowMarks of PlanRowMark.
    unsafe {
        let targets = (0..list_length((*plan).resultRelations))
            .any(|at| is_protected_at(plan, pg_sys::list_nth_int((*plan).resultRelations, at as c_int)));
        targets
            || (0..list_length((*plan).rowMarks)).any(|at| {
                let mark = pg_sys::list_nth((*plan).rowMarks, at as c_int).cast::<pg_sys::PlanRowMark>();
                (*mark).markType <= pg_sys::RowMarkType::ROW_MARK_KEYSHARE
                    && is_protected_at(plan, (*mark).rti as c_int)
            })
    }
}

unsafe fn is_protected_at(plan: *mut pg_sys::PlannedStmt, position: c_int) -> bool {
    // SAFETY: positions in a plan are those of its range table, from 1.
    unsafe { registry::is_protected((*entry(plan, position as usize - 1)).relid) }
}

unsafe fn entry(plan: *mut pg_sys::PlannedStmt, at: usize) -> *mut pg_sys::RangeTblEntry {
    // SAFETY: the caller stays within the list.
    unsafe { pg_sys::list_nth((*plan).rtable, at as c_int).cast() }
}

unsafe fn list_length(list: *mut pg_sys::List) -> usize {
    // SAFETY: an empty list is a null pointer.
    unsafe { if list.is_null() { 0 } else { (*list).length as usize } }
}

/// The role that a table is read as: that of the view it is reached through, or else the current one
/// (InvalidOid).
#[cfg(feature = "pg15")]
unsafe fn reader(_plan: *mut pg_sys::PlannedStmt, entry: *mut pg_sys::RangeTblEntry) -> pg_sys::Oid {
    // SAFETY: the entry is live.
    unsafe { (*entry).checkAsUser }
}

/// The role that a table is read as: that of the view it is reached through, or else the current one
/// (InvalidOid).
#[cfg(not(feature = "pg15"))]
unsafe fn reader(plan: *mut pg_sys::PlannedStmt, entry: *mut pg_sys::RangeTblEntry) -> pg_sys::Oid {
    // SAFETY: perminfoindex is 0 or a position (from 1) in permInfos.
    unsafe {
        let position = (*entry).perminfoindex;
        if position == 0 {
            return pg_sys::InvalidOid;
        }
        let info =
            pg_sys::list_nth((*plan).permInfos, position as c_int - 1).cast::<pg_sys::RTEPermissionInfo>();
        (*info).checkAsUser
    }
}
