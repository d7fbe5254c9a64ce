//! The checks of new rows.
//!
//! Both policies have one condition, `tenant_id = required_tenant()`. The server evaluates equal conditions of reads
//! once; of writes it would prepare and evaluate each, and preparing two function calls is most of what an INSERT of
//! one row pays for being protected. So a plan keeps the first of equal conditions, and that one, where it is exactly
//! the policy's, is evaluated here: one comparison.
//!
//! The plan then says `false` in its place, and carries the condition where the executor does not look: a plan that is
//! run past our hook, whatever the way, refuses every row.

use std::ffi::c_int;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::statement::{cell, entry, list_length};
use crate::context::{current, marker::Marker, setting};
use crate::error::Error;
use crate::registry;
use crate::tenant::TenantId;

/// Whether the plan writes. Raises nothing.
///
/// # Safety
///
/// `plan` is what the planner has made.
pub unsafe fn any(plan: *mut pg_sys::PlannedStmt) -> bool {
    // SAFETY: as the caller promises.
    unsafe { !(*plan).resultRelations.is_null() }
}

/// Takes repeated checks out of a plan that writes, and sets those aside that [`take_over`] knows.
///
/// # Safety
///
/// `plan` is what the planner has made, before anybody else has it.
pub unsafe fn simplify(plan: *mut pg_sys::PlannedStmt) {
    // SAFETY: a plan that writes has its ModifyTable nodes at the top: of the statement, or of a CTE.
    unsafe {
        take_out_repeated((*plan).planTree);
        for at in 0..list_length((*plan).subplans) {
            take_out_repeated(cell((*plan).subplans, at).ptr_value.cast());
        }
        if let Some(node) = of_one_table(plan) {
            set_aside(node);
        }
    }
}

unsafe fn take_out_repeated(node: *mut pg_sys::Plan) {
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
        let mut kept = 0;
        for at in 0..list_length(list) {
            if !(0..kept).any(|earlier| repeats(option(list, at), option(list, earlier))) {
                *(*list).elements.add(kept) = cell(list, at);
                kept += 1;
            }
        }
        if kept > 0 {
            (*list).length = kept as c_int;
        }
    }
}

unsafe fn option(list: *mut pg_sys::List, at: usize) -> *mut pg_sys::WithCheckOption {
    // SAFETY: the caller stays within the list, which holds WithCheckOption.
    unsafe { cell(list, at).ptr_value.cast() }
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

/// The node of a plan that inserts into or updates one table with checks and nothing below it. Rows that are routed to
/// partitions meet checks that the executor makes on the way.
unsafe fn of_one_table(plan: *mut pg_sys::PlannedStmt) -> Option<*mut pg_sys::ModifyTable> {
    use pg_sys::CmdType::{CMD_INSERT, CMD_UPDATE};
    // SAFETY: the type of a node tells what it is; the relations of a ModifyTable are positions in the range table, from 1.
    unsafe {
        let node = (*plan).planTree.cast::<pg_sys::ModifyTable>();
        if (*node).plan.type_ != pg_sys::NodeTag::T_ModifyTable
            || !matches!((*node).operation, CMD_INSERT | CMD_UPDATE)
            || (*node).rootRelation != 0
            || list_length((*node).resultRelations) != 1
            || list_length((*node).withCheckOptionLists) != 1
            || list_length((*node).fdwPrivLists) != 1
        {
            return None;
        }
        let target = entry(plan, cell((*node).resultRelations, 0).int_value as usize - 1);
        ((*target).relkind as u8 == pg_sys::RELKIND_RELATION).then_some(node)
    }
}

/// Replaces the checks that are a policy's of ours with `false`. The conditions go where those of foreign tables have
/// their private data, which plans of other tables leave empty.
unsafe fn set_aside(node: *mut pg_sys::ModifyTable) {
    // SAFETY: both lists have the one element of the one table.
    unsafe {
        let checks = cell((*node).withCheckOptionLists, 0).ptr_value.cast::<pg_sys::List>();
        let mut conditions = std::ptr::null_mut();
        for at in 0..list_length(checks) {
            let check = option(checks, at);
            let condition = condition_of((*check).qual.cast());
            conditions = pg_sys::lappend(conditions, condition.unwrap_or(std::ptr::null_mut()).cast());
            if condition.is_some() {
                let never = pg_sys::makeBoolConst(false, false);
                (*check).qual = pg_sys::lappend(std::ptr::null_mut(), never.cast()).cast();
            }
        }
        (*(*(*node).fdwPrivLists).elements).ptr_value = conditions.cast();
    }
}

/// The comparison that is all of a check and one that [`is_own`] can make: of a column with the tenant or its key.
unsafe fn condition_of(qual: *mut pg_sys::List) -> Option<*mut pg_sys::OpExpr> {
    // SAFETY: the type of a node tells what it is; checks of a plan are lists of conditions.
    unsafe {
        if list_length(qual) != 1 {
            return None;
        }
        let condition = cell(qual, 0).ptr_value.cast::<pg_sys::OpExpr>();
        if (*condition).xpr.type_ != pg_sys::NodeTag::T_OpExpr || list_length((*condition).args) != 2 {
            return None;
        }
        let required: usize = match (*condition).opfuncid.to_u32() {
            pg_sys::F_UUID_EQ => current::required_tenant as *const () as usize,
            pg_sys::F_INT8EQ | pg_sys::F_INT48EQ => current::required_tenant_key as *const () as usize,
            _ => return None,
        };
        let column = cell((*condition).args, 0).ptr_value.cast::<pg_sys::Var>();
        let call = cell((*condition).args, 1).ptr_value.cast::<pg_sys::FuncExpr>();
        let fits = (*column).xpr.type_ == pg_sys::NodeTag::T_Var
            && (*column).varattno > 0
            && (*call).xpr.type_ == pg_sys::NodeTag::T_FuncExpr
            && (*call).args.is_null()
            && may_execute((*call).funcid);
        if !fits {
            return None;
        }
        let mut function = pg_sys::FmgrInfo::default();
        pg_sys::fmgr_info((*call).funcid, &mut function);
        (function.fn_addr.map(|address| address as usize) == Some(required)).then_some(condition)
    }
}

/// Whether the role may call the function, which the executor would ask at every start. The plan goes when either
/// changes.
unsafe fn may_execute(function: pg_sys::Oid) -> bool {
    let role = registry::current_role();
    // SAFETY: looks the function up.
    let answer = unsafe {
        #[cfg(feature = "pg15")]
        let answer = pg_sys::pg_proc_aclcheck(function, role, pg_sys::ACL_EXECUTE);
        #[cfg(not(feature = "pg15"))]
        let answer =
            pg_sys::object_aclcheck(pg_sys::ProcedureRelationId, function, role, pg_sys::ACL_EXECUTE.into());
        answer
    };
    answer == pg_sys::AclResult::ACLCHECK_OK
}

/// Lets `is_own` make the checks that `simplify` has set aside. Raises nothing.
///
/// # Safety
///
/// `query` has been started, and not run yet.
pub unsafe fn take_over(query: *mut pg_sys::QueryDesc) {
    // SAFETY: as for `of_one_table`; the states of a ModifyTable's checks are in the order of its checks.
    unsafe {
        let node = (*(*query).plannedstmt).planTree.cast::<pg_sys::ModifyTable>();
        if (*node).plan.type_ != pg_sys::NodeTag::T_ModifyTable || list_length((*node).fdwPrivLists) != 1 {
            return;
        }
        let conditions = cell((*node).fdwPrivLists, 0).ptr_value.cast::<pg_sys::List>();
        let target = (*(*query).planstate.cast::<pg_sys::ModifyTableState>()).resultRelInfo;
        // Not ours: private data of a foreign table.
        if conditions.is_null() || !(*target).ri_FdwRoutine.is_null() {
            return;
        }
        let states = (*target).ri_WithCheckOptionExprs;
        for at in 0..list_length(states).min(list_length(conditions)) {
            let condition = cell(conditions, at).ptr_value;
            if !condition.is_null() {
                let state = cell(states, at).ptr_value.cast::<pg_sys::ExprState>();
                (*state).expr = condition.cast();
                (*state).evalfunc = Some(is_own);
                (*state).evalfunc_private = std::ptr::null_mut();
            }
        }
    }
}

/// Whether the new row is the tenant's: what the executor calls to evaluate a check. Remembers the marker of the
/// query as the function in the condition would.
unsafe extern "C-unwind" fn is_own(
    state: *mut pg_sys::ExprState,
    context: *mut pg_sys::ExprContext,
    is_null: *mut bool,
) -> pg_sys::Datum {
    // The guarded declaration of pgrx costs more than the call.
    unsafe extern "C-unwind" {
        fn slot_getsomeattrs_int(slot: *mut pg_sys::TupleTableSlot, attnum: c_int);
    }
    // SAFETY: the state is one that `take_over` has prepared, the row has the column that the plan was made with,
    // and the marker is live until the query ends.
    unsafe {
        *is_null = false;
        let mut marker = (*state).evalfunc_private.cast::<Marker>();
        if marker.is_null() || (*marker).generation != setting::generation() {
            marker = ask((*context).ecxt_per_query_memory);
            if marker.is_null() {
                return pg_sys::Datum::from(false);
            }
            (*state).evalfunc_private = marker.cast();
        }
        let condition = (*state).expr.cast::<pg_sys::OpExpr>();
        let column = (*cell((*condition).args, 0).ptr_value.cast::<pg_sys::Var>()).varattno;
        let row = (*context).ecxt_scantuple;
        if (*row).tts_nvalid < column {
            slot_getsomeattrs_int(row, column.into());
        }
        let at = column as usize - 1;
        let value = *(*row).tts_values.add(at);
        let is_set = !*(*row).tts_isnull.add(at);
        let own = match (*condition).opfuncid.to_u32() {
            pg_sys::F_UUID_EQ => is_set && *value.cast_mut_ptr::<[u8; 16]>() == (*marker).id,
            operator => {
                let key = match (*marker).key {
                    Some(key) => key,
                    None => no_key(marker),
                };
                let wide = operator == pg_sys::F_INT8EQ;
                is_set && key == if wide { value.value() as i64 } else { i64::from(value.value() as i32) }
            }
        };
        pg_sys::Datum::from(own)
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn ask(query: pg_sys::MemoryContext) -> *mut Marker {
    // SAFETY: the context is that of the query that makes the check.
    unsafe { current::required_in(query) }.unwrap_or(std::ptr::null_mut())
}

#[pg_guard]
unsafe extern "C-unwind" fn no_key(marker: *mut Marker) -> i64 {
    // SAFETY: the marker is live.
    Error::NoKey(TenantId::from_bytes(unsafe { (*marker).id })).raise()
}
