//! Hooks of the server.
//!
//! A hook is an unguarded shell around one guarded function of ours. A guard around the whole would rebuild
//! every error of every statement in the server, and lose its CONTEXT, constraint and table on the way.

use std::cell::Cell;
use std::ffi::{c_char, c_int};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::backend::Backend;
use crate::context::{carrier, marker, setting, switch_log};
use crate::isolation::guard::utility;
use crate::isolation::{checks, lockdown, locks, statement};
use crate::tenant::TenantId;

static PREVIOUS_PLANNER: Backend<Cell<pg_sys::planner_hook_type>> = Backend::new(Cell::new(None));
static PREVIOUS_START: Backend<Cell<pg_sys::ExecutorStart_hook_type>> = Backend::new(Cell::new(None));
static PREVIOUS_RUN: Backend<Cell<pg_sys::ExecutorRun_hook_type>> = Backend::new(Cell::new(None));
static PREVIOUS_UTILITY: Backend<Cell<pg_sys::ProcessUtility_hook_type>> = Backend::new(Cell::new(None));
static PREVIOUS_END: Backend<Cell<pg_sys::ExecutorEnd_hook_type>> = Backend::new(Cell::new(None));
static PREVIOUS_LOG: Backend<Cell<pg_sys::emit_log_hook_type>> = Backend::new(Cell::new(None));

/// Installs the hooks. Called once, when the library is loaded.
pub fn init() {
    // SAFETY: reads and writes a hook variable of the one thread of the backend or postmaster.
    unsafe {
        PREVIOUS_PLANNER.set(pg_sys::planner_hook);
        pg_sys::planner_hook = Some(planner);
        PREVIOUS_START.set(pg_sys::ExecutorStart_hook);
        pg_sys::ExecutorStart_hook = Some(executor_start);
        PREVIOUS_RUN.set(pg_sys::ExecutorRun_hook);
        pg_sys::ExecutorRun_hook = Some(executor_run);
        PREVIOUS_UTILITY.set(pg_sys::ProcessUtility_hook);
        pg_sys::ProcessUtility_hook = Some(process_utility);
        PREVIOUS_END.set(pg_sys::ExecutorEnd_hook);
        pg_sys::ExecutorEnd_hook = Some(executor_end);
        PREVIOUS_LOG.set(pg_sys::emit_log_hook);
        pg_sys::emit_log_hook = Some(emit_log);
    }
}

unsafe extern "C-unwind" fn planner(
    query: *mut pg_sys::Query,
    text: *const c_char,
    options: c_int,
    parameters: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    unsafe extern "C-unwind" {
        fn standard_planner(
            query: *mut pg_sys::Query,
            text: *const c_char,
            options: c_int,
            parameters: pg_sys::ParamListInfo,
        ) -> *mut pg_sys::PlannedStmt;
    }
    // SAFETY: as in `executor_start`; the plan is new, and nobody else has it yet.
    unsafe {
        if pg_sys::Debug_print_plan {
            check_printing();
        }
        let plan = match PREVIOUS_PLANNER.get() {
            Some(previous) => previous(query, text, options, parameters),
            None => standard_planner(query, text, options, parameters),
        };
        if checks::any(plan) {
            simplify_checks(plan);
        }
        plan
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_printing() {
    lockdown::check_printing();
}

#[pg_guard]
unsafe extern "C-unwind" fn simplify_checks(plan: *mut pg_sys::PlannedStmt) {
    // SAFETY: the plan is the hook's.
    unsafe { checks::simplify(plan) }
}

unsafe extern "C-unwind" fn executor_start(query: *mut pg_sys::QueryDesc, flags: i32) {
    // pgrx's own declaration of the standard function is guarded.
    unsafe extern "C-unwind" {
        fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, flags: i32);
    }
    // SAFETY: the server hands a query that it is about to run; nothing here needs dropping, so an error of
    // the functions called may jump over this frame.
    unsafe {
        // Other statements pay for a look at their tables only.
        let concerned = statement::may_concern((*query).plannedstmt);
        let writer = if concerned { check_statement(query, flags) } else { None };
        match PREVIOUS_START.get() {
            Some(previous) => previous(query, flags),
            None => standard_ExecutorStart(query, flags),
        }
        checks::take_over(query);
        if let Some(tenant) = writer {
            mark_writer(query, tenant);
        }
    }
}

// Both sides of these calls are Rust: the convention is there for the guard.
#[allow(improper_ctypes_definitions)]
#[pg_guard]
unsafe extern "C-unwind" fn check_statement(query: *mut pg_sys::QueryDesc, flags: i32) -> Option<TenantId> {
    // SAFETY: the query is the hook's.
    unsafe { statement::check(query, flags) }
}

#[allow(improper_ctypes_definitions)]
#[pg_guard]
unsafe extern "C-unwind" fn mark_writer(query: *mut pg_sys::QueryDesc, tenant: TenantId) {
    // SAFETY: the query has been started, and its context lives until its end.
    unsafe { marker::put_writer((*(*query).estate).es_query_cxt, tenant) }
}

macro_rules! executor_run {
    ($($argument:ident: $type:ty),*) => {
        unsafe extern "C-unwind" fn executor_run(query: *mut pg_sys::QueryDesc, $($argument: $type),*) {
            unsafe extern "C-unwind" {
                fn standard_ExecutorRun(query: *mut pg_sys::QueryDesc, $($argument: $type),*);
            }
            // SAFETY: as in `executor_start`.
            unsafe {
                if marker::any() {
                    check_again(query);
                }
                match PREVIOUS_RUN.get() {
                    Some(previous) => previous(query, $($argument),*),
                    None => standard_ExecutorRun(query, $($argument),*),
                }
            }
        }
    };
}

#[cfg(not(feature = "pg18"))]
executor_run!(direction: pg_sys::ScanDirection::Type, count: u64, once: bool);
#[cfg(feature = "pg18")]
executor_run!(direction: pg_sys::ScanDirection::Type, count: u64);

#[pg_guard]
unsafe extern "C-unwind" fn check_again(query: *mut pg_sys::QueryDesc) {
    // SAFETY: the query is the hook's.
    unsafe { statement::check_again(query) }
}

#[allow(clippy::too_many_arguments)]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    unsafe extern "C-unwind" {
        fn standard_ProcessUtility(
            statement: *mut pg_sys::PlannedStmt,
            text: *const c_char,
            read_only_tree: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            parameters: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            destination: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
    }
    // SAFETY: as in `executor_start`.
    unsafe {
        let command = (*statement).utilityStmt;
        if lockdown::concerns(command) || utility::concerns(command) {
            check_command(command);
        }
        let statement = if locks::concerns(command) { check_locks(statement) } else { statement };
        let next = PREVIOUS_UTILITY.get().unwrap_or(standard_ProcessUtility);
        next(statement, text, read_only_tree, context, parameters, environment, destination, completion);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_command(command: *mut pg_sys::Node) {
    // SAFETY: the command is the hook's, and one that the caller says concerns us.
    unsafe { if utility::concerns(command) { utility::check(command) } else { lockdown::check(command) } }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_locks(statement: *mut pg_sys::PlannedStmt) -> *mut pg_sys::PlannedStmt {
    // SAFETY: the statement is the hook's, and its command one that the caller says concerns us.
    unsafe { locks::check(statement) }
}

unsafe extern "C-unwind" fn executor_end(query: *mut pg_sys::QueryDesc) {
    unsafe extern "C-unwind" {
        fn standard_ExecutorEnd(query: *mut pg_sys::QueryDesc);
    }
    // SAFETY: as in `executor_start`.
    unsafe {
        if marker::any() && carrier::is_in_a_portal() {
            note_carrier(query);
        }
        match PREVIOUS_END.get() {
            Some(previous) => previous(query),
            None => standard_ExecutorEnd(query),
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn note_carrier(query: *mut pg_sys::QueryDesc) {
    // SAFETY: a query that is about to end has a state, and its marker is live.
    unsafe {
        if let Some(marker) = marker::find((*(*query).estate).es_query_cxt) {
            carrier::note(TenantId::from_bytes((*marker).id));
        }
    }
}

// Not guarded at all: it runs while an error is being reported, and calls nothing that raises.
unsafe extern "C-unwind" fn emit_log(report: *mut pg_sys::ErrorData) {
    // SAFETY: the report is the server's.
    unsafe {
        setting::hear_of_error(report);
        switch_log::tag(report);
        if let Some(previous) = PREVIOUS_LOG.get() {
            previous(report);
        }
    }
}
