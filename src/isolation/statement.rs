//! What a statement on protected tables needs before it starts: a tenant, and an open fence if it writes.
//!
//! Policies ask for the tenant when they are evaluated, which a plan over an empty table never does; and
//! they cannot tell a read from a write.

use std::ffi::c_int;

use pgrx::pg_sys;

use crate::context::{self, fence, marker, setting};
use crate::error::{Error, or_raise};
use crate::gucs::{self, MissingTenant};
use crate::registry;
use crate::tenant::TenantId;

/// Whether the statement names a protected table, or nobody knows yet. Raises nothing.
///
/// # Safety
///
/// `plan` is that of a query.
pub unsafe fn may_concern(plan: *mut pg_sys::PlannedStmt) -> bool {
    // SAFETY: the range table is a list of RangeTblEntry.
    unsafe {
        (0..list_length((*plan).rtable)).any(|at| {
            let entry = entry(plan, at);
            (*entry).rtekind == pg_sys::RTEKind::RTE_RELATION
                && registry::known_protected((*entry).relid) != Some(false)
        })
    }
}

/// Raises what a statement that is about to start would have to raise for the lack of a tenant. Answers with
/// the tenant if it writes.
///
/// # Safety
///
/// `query` is what the server hands to an ExecutorStart hook.
pub unsafe fn check(query: *mut pg_sys::QueryDesc, flags: i32) -> Option<TenantId> {
    // SAFETY: the plan and its lists live as long as the query.
    unsafe {
        // A parallel worker runs part of a statement that its leader has checked.
        if pg_sys::ParallelWorkerNumber >= 0 {
            return None;
        }
        let plan = (*query).plannedstmt;
        let roles = registry::roles_generation();
        registry::accept_invalidations();
        let reads = reads_protected(plan, roles != registry::roles_generation());
        if !reads || flags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as c_int != 0 {
            return None;
        }
        let tenant = match context::held() {
            Ok(Some(tenant)) => tenant,
            Ok(None) if gucs::missing_tenant() == MissingTenant::Empty => return None,
            Ok(None) => Error::NoTenant.raise(),
            Err(error) => error.raise(),
        };
        if !writes_protected(plan) {
            return None;
        }
        or_raise(fence::enter(&tenant));
        Some(tenant.id)
    }
}

/// Raises if the tenant that the statement has asked for no longer holds: a cursor is read on long after that, and a plan
/// that evaluates its policies once, for an index, would not notice. Also if the tenant has changed, in a way that could
/// not be refused.
///
/// # Safety
///
/// `query` is what the server hands to an ExecutorRun hook.
pub unsafe fn check_again(query: *mut pg_sys::QueryDesc) {
    // SAFETY: a query that has been started has a state, and its marker is live.
    unsafe {
        let Some(marker) = marker::find((*(*query).estate).es_query_cxt) else { return };
        if (*marker).generation != setting::generation() {
            Error::ChangedInStatement.raise();
        }
        registry::accept_invalidations();
        or_raise(context::held());
    }
}

/// Whether the policies of a protected table hold for the role that the statement reads it as. With
/// `roles_changed` since the plan was chosen, one that may lack the policies that hold now is refused.
unsafe fn reads_protected(plan: *mut pg_sys::PlannedStmt, roles_changed: bool) -> bool {
    unsafe extern "C-unwind" {
        fn InNoForceRLSOperation() -> bool;
    }
    let mut reads = false;
    // SAFETY: the range table is a list of RangeTblEntry; the function reads a variable of the backend.
    unsafe {
        for at in 0..list_length((*plan).rtable) {
            let entry = entry(plan, at);
            if (*entry).rtekind != pg_sys::RTEKind::RTE_RELATION || !registry::is_protected((*entry).relid) {
                continue;
            }
            let role = match reader(plan, entry) {
                pg_sys::InvalidOid => registry::current_role(),
                role => role,
            };
            // Rows are counted, and foreign keys checked, as the owner of the table that is named; a partition or
            // child of somebody else is read through it.
            if is_child(entry) && InNoForceRLSOperation() {
                continue;
            }
            let holds = registry::policies_hold((*entry).relid, role);
            if !holds {
                registry::catalog::remember_bypass(role);
            } else if roles_changed && registry::catalog::has_bypassed(role) {
                Error::RightsChanged { role: registry::role_name(role) }.raise();
            }
            reads |= holds;
        }
    }
    reads
}

/// Whether the statement changes or locks rows of a protected table.
unsafe fn writes_protected(plan: *mut pg_sys::PlannedStmt) -> bool {
    // SAFETY: resultRelations is a list of positions in the range table (from 1), rowMarks of PlanRowMark.
    unsafe {
        let targets = (0..list_length((*plan).resultRelations))
            .any(|at| is_protected_at(plan, cell((*plan).resultRelations, at).int_value));
        targets
            || (0..list_length((*plan).rowMarks)).any(|at| {
                let mark = cell((*plan).rowMarks, at).ptr_value.cast::<pg_sys::PlanRowMark>();
                (*mark).markType <= pg_sys::RowMarkType::ROW_MARK_KEYSHARE
                    && is_protected_at(plan, (*mark).rti as c_int)
            })
    }
}

unsafe fn is_protected_at(plan: *mut pg_sys::PlannedStmt, position: c_int) -> bool {
    // SAFETY: positions in a plan are those of its range table, from 1.
    unsafe { registry::is_protected((*entry(plan, position as usize - 1)).relid) }
}

pub(super) unsafe fn entry(plan: *mut pg_sys::PlannedStmt, at: usize) -> *mut pg_sys::RangeTblEntry {
    // SAFETY: the caller stays within the list, which holds pointers.
    unsafe { cell((*plan).rtable, at).ptr_value.cast() }
}

/// An element of a list. The server's own function is guarded in pgrx, which every statement would pay for.
pub(super) unsafe fn cell(list: *mut pg_sys::List, at: usize) -> pg_sys::ListCell {
    // SAFETY: the caller stays within the list, whose elements are an array.
    unsafe { *(*list).elements.add(at) }
}

pub(super) unsafe fn list_length(list: *mut pg_sys::List) -> usize {
    // SAFETY: an empty list is a null pointer.
    unsafe { if list.is_null() { 0 } else { (*list).length as usize } }
}

/// Whether the planner has added the entry for a partition or child: no privileges are asked for it.
#[cfg(feature = "pg15")]
unsafe fn is_child(entry: *mut pg_sys::RangeTblEntry) -> bool {
    // SAFETY: the entry is live.
    unsafe { (*entry).requiredPerms == 0 }
}

/// Whether the planner has added the entry for a partition or child: no privileges are asked for it.
#[cfg(not(feature = "pg15"))]
unsafe fn is_child(entry: *mut pg_sys::RangeTblEntry) -> bool {
    // SAFETY: the entry is live.
    unsafe { (*entry).perminfoindex == 0 }
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
            cell((*plan).permInfos, position as usize - 1).ptr_value.cast::<pg_sys::RTEPermissionInfo>();
        (*info).checkAsUser
    }
}
