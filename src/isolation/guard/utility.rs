//! Commands that fire no event triggers, seen by the utility hook: where the library is preloaded, or has been called.

use std::ffi::CStr;

use pgrx::pg_sys::{self, NodeTag};
use pgrx::prelude::*;

use super::command::items;
use super::{Finding, at_work, weakening, weigh};
use crate::error::{Result, or_raise};
use crate::plan::{CachedPlan, as_owner};
use crate::registry::scan;
use crate::registry::{self, catalog};

/// Whether the guard looks at such commands.
///
/// # Safety
///
/// `command` is a utility statement.
pub unsafe fn concerns(command: *mut pg_sys::Node) -> bool {
    // SAFETY: a node of the parser is what its tag says.
    unsafe {
        matches!(
            (*command).type_,
            NodeTag::T_AlterEventTrigStmt
                | NodeTag::T_AlterExtensionContentsStmt
                | NodeTag::T_ReassignOwnedStmt
        )
    }
}

/// Judges a command before it runs.
///
/// # Safety
///
/// `command` is one that [`concerns`] says yes to.
pub unsafe fn check(command: *mut pg_sys::Node) {
    if !at_work() {
        return;
    }
    // SAFETY: a node of the parser is what its tag says.
    let checked = unsafe {
        match (*command).type_ {
            NodeTag::T_AlterEventTrigStmt => event_trigger(command.cast()),
            NodeTag::T_AlterExtensionContentsStmt => members(command.cast()),
            _ => reassign(command.cast()),
        }
    };
    or_raise(checked);
}

/// ALTER EVENT TRIGGER … DISABLE of one of ours.
unsafe fn event_trigger(command: *mut pg_sys::AlterEventTrigStmt) -> Result<()> {
    // SAFETY: the name is a C string; both lookups are of the catalogs.
    let (name, ours, fires) = unsafe {
        let trigger = pg_sys::get_event_trigger_oid((*command).trigname, true);
        let extension = pg_sys::get_extension_oid(c"tenant_rls".as_ptr(), true);
        let ours = trigger != pg_sys::InvalidOid
            && pg_sys::getExtensionOfObject(pg_sys::EventTriggerRelationId, trigger) == extension;
        let fires = [b'O', b'A'].contains(&((*command).tgenabled as u8));
        (CStr::from_ptr((*command).trigname).to_string_lossy().into_owned(), ours, fires)
    };
    if !ours || fires {
        return Ok(());
    }
    weigh(
        "ALTER EVENT TRIGGER",
        Finding {
            object: name.clone(),
            to: format!("disable event trigger \"{name}\""),
            why: "It is what watches over protected tables.".into(),
            hint: "A superuser can SET tenant_rls.ddl_guard = off, which is recorded.".into(),
        },
    )
}

/// ALTER EXTENSION tenant_rls DROP …
unsafe fn members(command: *mut pg_sys::AlterExtensionContentsStmt) -> Result<()> {
    // SAFETY: the name is a C string.
    let leaves = unsafe { (*command).action < 0 && CStr::from_ptr((*command).extname) == c"tenant_rls" };
    if !leaves {
        return Ok(());
    }
    weigh(
        "ALTER EXTENSION",
        Finding {
            object: "tenant_rls".into(),
            to: "take a member out of extension \"tenant_rls\"".into(),
            why: "What is no member can be dropped alone.".into(),
            hint: "A superuser can SET tenant_rls.ddl_guard = off, which is recorded.".into(),
        },
    )
}

/// REASSIGN OWNED BY … TO a role that acts for tenants.
unsafe fn reassign(command: *mut pg_sys::ReassignOwnedStmt) -> Result<()> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT c.relname::pg_catalog.text, pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class AS c \
          JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
          WHERE c.oid OPERATOR(pg_catalog.=) ANY ($1) AND c.relowner OPERATOR(pg_catalog.=) ANY ($2) ORDER BY 2",
        &[pg_sys::OIDARRAYOID, pg_sys::OIDARRAYOID],
    );
    // SAFETY: the parser makes a list of RoleSpec; a role that does not exist is InvalidOid.
    let (from, to) = unsafe {
        let role = |spec: *mut pg_sys::RoleSpec| pg_sys::get_rolespec_oid(spec, true);
        (items((*command).roles).map(|spec| role(spec.cast())).collect::<Vec<_>>(), role((*command).newrole))
    };
    if to == pg_sys::InvalidOid || !registry::may_act(to)? {
        return Ok(());
    }
    let mut protected = Vec::new();
    let table = catalog::table("protected_tables");
    scan::scan(table, pg_sys::InvalidOid, &[], |row| {
        protected.extend(row.get::<pg_sys::Oid>(scan::protected_tables::RELATION));
    });
    let mut tables = Vec::new();
    as_owner(|| {
        SELECT.run(&[protected.into_datum(), from.into_datum()], |row| {
            tables.extend(row.get::<String>(1).zip(row.get::<String>(2)));
        })
    })?;
    tables.iter().try_for_each(|(name, qualified)| weakening::owned_by("REASSIGN OWNED", name, qualified, to))
}
