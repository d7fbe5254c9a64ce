//! Hooks of the server.
//!
//! A hook is an unguarded shell around one guarded function of ours. A guard around the whole would rebuild
//! every error of every statement in the server, and lose its CONTEXT, constraint and table on the way.

use std::cell::Cell;

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::backend::Backend;
use crate::isolation::statement;

static PREVIOUS_START: Backend<Cell<pg_sys::ExecutorStart_hook_type>> = Backend::new(Cell::new(None));

/// Installs the hooks. Called once, when the library is loaded.
pub fn init() {
    // SAFETY: reads and writes a hook variable of the one thread of the backend or postmaster.
    unsafe {
        PREVIOUS_START.set(pg_sys::ExecutorStart_hook);
        pg_sys::ExecutorStart_hook = Some(executor_start);
    }
}

unsafe extern "C-unwind" fn executor_start(query: *mut pg_sys::QueryDesc, flags: i32) {
    // pgrx's own declaration of the standard function is guarded.
    unsafe extern "C-unwind" {
        fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, flags: i32);
    }
    // SAFETY: the server hands a query that it is about to run; nothing here needs dropping, so an error of
    // the functions called may jump over this frame.
    unsafe {
        // A plan that no policy has shaped depends on no role: other statements pay for this comparison only.
        if (*(*query).plannedstmt).dependsOnRole {
            check_statement(query, flags);
        }
        match PREVIOUS_START.get() {
            Some(previous) => previous(query, flags),
            None => standard_ExecutorStart(query, flags),
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_statement(query: *mut pg_sys::QueryDesc, flags: i32) {
    // SAFETY: the query is the hook's.
    unsafe { statement::check(query, flags) }
}
