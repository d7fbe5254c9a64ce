//! Commands that reach past policies and need no privilege that could be revoked.
//!
//! `tenant_lockdown` (sql/lockdown.sql) revokes what can be revoked. What is left is here: LOCK TABLE stops all
//! tenants and needs but UPDATE; EXPLAIN tells how many rows others have; LISTEN and NOTIFY carry messages
//! between tenants.

use pgrx::pg_sys;

use crate::error::{Error, Result, or_raise};
use crate::registry::{self, catalog, scan};

/// Whether a lockdown refuses such commands.
///
/// # Safety
///
/// `command` is a utility statement.
pub unsafe fn concerns(command: *mut pg_sys::Node) -> bool {
    // SAFETY: a node of the parser is what its tag says.
    unsafe {
        match (*command).type_ {
            // Up to ROW EXCLUSIVE it is what SELECT and UPDATE take as well.
            pg_sys::NodeTag::T_LockStmt => {
                (*command.cast::<pg_sys::LockStmt>()).mode > pg_sys::RowExclusiveLock as i32
            }
            pg_sys::NodeTag::T_ExplainStmt
            | pg_sys::NodeTag::T_ListenStmt
            | pg_sys::NodeTag::T_NotifyStmt => true,
            _ => false,
        }
    }
}

/// Raises if the command is refused to the roles that the session runs as.
///
/// # Safety
///
/// `command` is one that [`concerns`] says yes to.
pub unsafe fn check(command: *mut pg_sys::Node) {
    if !or_raise(refused(registry::current_role())) {
        return;
    }
    // SAFETY: the caller's.
    let name = match unsafe { (*command).type_ } {
        pg_sys::NodeTag::T_LockStmt => "LOCK TABLE",
        pg_sys::NodeTag::T_ExplainStmt => "EXPLAIN",
        pg_sys::NodeTag::T_ListenStmt => "LISTEN",
        _ => "NOTIFY",
    };
    raise(name);
}

/// Raises if plans, with what the planner expects of the rows of all tenants, are about to be sent to such a role: the
/// parameter debug_print_plan is everybody's.
pub fn check_printing() {
    if or_raise(refused(registry::acting_role())) {
        raise("debug_print_plan");
    }
}

fn raise(name: &str) -> ! {
    Error::NotPermitted {
        what: format!("{name} is refused to roles that act for tenants"),
        hint: "This database is locked down (tenant_lockdown). Use a role with BYPASSRLS for maintenance.",
    }
    .raise()
}

/// No role on the way counts less for having been left by SET ROLE: it could be taken again.
fn refused(runs_as: pg_sys::Oid) -> Result<bool> {
    registry::accept_invalidations();
    if !is_locked() || registry::rights(runs_as)?.bypasses {
        return Ok(false);
    }
    // SAFETY: reads a variable of the backend.
    let session = unsafe { pg_sys::GetSessionUserId() };
    for role in [session, registry::acting_role(), registry::current_role()] {
        if registry::may_act(role)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The catalog snapshot leaves the transaction without one of its own: LOCK TABLE comes before it at REPEATABLE READ.
fn is_locked() -> bool {
    let table = catalog::table("lockdowns");
    let mut locked = false;
    if table != pg_sys::InvalidOid {
        scan::scan(
            table,
            pg_sys::InvalidOid,
            &[scan::Key::Text(scan::lockdowns::OBJECT, "COMMANDS")],
            |_| locked = true,
        );
    }
    locked
}
