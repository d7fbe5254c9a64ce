//! Equal checks of new rows, made once.
//!
//! Both policies have one condition. The server evaluates equal conditions of reads once; of writes it would
//! prepare and evaluate each, which is most of what an INSERT of one row pays for being protected. A plan needs
//! only the first of them.

use std::ffi::c_int;

use pgrx::pg_sys;

use super::statement::{cell, list_length};

/// Whether the plan writes. Raises nothing.
///
/// # Safety
///
/// `plan` is what the planner has made.
pub unsafe fn may_repeat(plan: *mut pg_sys::PlannedStmt) -> bool {
    // SAFETY: as the caller promises.
    unsafe { !(*plan).resultRelations.is_null() }
}

/// Takes repeated checks out of a plan that writes.
///
/// # Safety
///
/// `plan` is what the planner has made, before anybody else has it.
pub unsafe fn take_out_repeated(plan: *mut pg_sys::PlannedStmt) {
    // SAFETY: a plan that writes has its ModifyTable nodes at the top: of the statement, or of a CTE.
    unsafe {
        of_node((*plan).planTree);
        for at in 0..list_length((*plan).subplans) {
            of_node(cell((*plan).subplans, at).ptr_value.cast());
        }
    }
}

unsafe fn of_node(node: *mut pg_sys::Plan) {
    // SAFETY: the type of a node tells what it is; withCheckOptionLists is a list of lists of WithCheckOption.
    unsafe {
        if node.is_null() || (*node).type_ != pg_sys::NodeTag::T_ModifyTable {
            return;
        }
        let lists = (*node.cast::<pg_sys::ModifyTable>()).withCheckOptionLists;
        for at in 0..list_length(lists) {
            of_list(cell(lists, at).ptr_value.cast());
        }
    }
}

unsafe fn of_list(list: *mut pg_sys::List) {
    // SAFETY: the elements of a list are an array, whose first `kept` are what stays.
    unsafe {
        let option = |at: usize| cell(list, at).ptr_value.cast::<pg_sys::WithCheckOption>();
        let mut kept = 0;
        for at in 0..list_length(list) {
            if !(0..kept).any(|earlier| repeats(option(at), option(earlier))) {
                *(*list).elements.add(kept) = cell(list, at);
                kept += 1;
            }
        }
        if kept > 0 {
            (*list).length = kept as c_int;
        }
    }
}

/// Whether what the second checks makes the first needless. A volatile condition may answer differently.
unsafe fn repeats(option: *mut pg_sys::WithCheckOption, earlier: *mut pg_sys::WithCheckOption) -> bool {
    // SAFETY: both are live nodes.
    unsafe {
        (*option).kind == (*earlier).kind
            && pg_sys::equal((*option).qual.cast(), (*earlier).qual.cast())
            && !pg_sys::contain_volatile_functions((*option).qual)
    }
}
