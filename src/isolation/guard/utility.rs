//! Commands that fire no event triggers, seen by the utility hook: where the library is preloaded, or has been called.

use std::ffi::CStr;

use pgrx::pg_sys::{self, NodeTag};
use pgrx::prelude::*;

use super::command::items;
use super::{Finding, at_work, reader, weakening, weigh};
use crate::error::{Result, or_raise};
use crate::plan::CachedPlan;
use crate::registry;

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

/// REASSIGN OWNED BY … TO: tables to a role that acts for tenants, readers to one that the policies do not hold for.
unsafe fn reassign(command: *mut pg_sys::ReassignOwnedStmt) -> Result<()> {
    const TAG: &str = "REASSIGN OWNED";
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT c.oid FROM pg_catalog.pg_class AS c \
          WHERE c.relowner OPERATOR(pg_catalog.=) ANY ($1) AND c.relkind OPERATOR(pg_catalog.=) ANY \
            (ARRAY['r', 'p', 'v', 'm']::pg_catalog.\"char\"[]) ORDER BY 1",
        &[pg_sys::OIDARRAYOID],
    );
    static ROUTINES: CachedPlan = CachedPlan::new(
        c"SELECT p.oid FROM pg_catalog.pg_proc AS p \
          WHERE p.proowner OPERATOR(pg_catalog.=) ANY ($1) AND p.prosecdef ORDER BY 1",
        &[pg_sys::OIDARRAYOID],
    );
    // SAFETY: the parser makes a list of RoleSpec; a role that does not exist is InvalidOid.
    let (from, to) = unsafe {
        let role = |spec: *mut pg_sys::RoleSpec| pg_sys::get_rolespec_oid(spec, true);
        (items((*command).roles).map(|spec| role(spec.cast())).collect::<Vec<_>>(), role((*command).newrole))
    };
    if to == pg_sys::InvalidOid || !registry::any_protected() {
        return Ok(());
    }
    let (mut relations, mut routines) = (Vec::new(), Vec::new());
    SELECT.run(&[from.clone().into_datum()], |row| relations.extend(row.get::<pg_sys::Oid>(1)));
    ROUTINES.run(&[from.into_datum()], |row| routines.extend(row.get::<pg_sys::Oid>(1)));
    for relation in relations {
        weakening::given(TAG, relation, to)?;
        reader::given(TAG, relation, to)?;
    }
    routines.into_iter().try_for_each(|routine| reader::routine(TAG, routine, Some(to)))
}
