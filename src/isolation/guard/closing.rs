//! What keeps protected tables closed when a command takes the extension away.
//!
//! The policies go with the functions that they call. A table that has a permissive policy of its own would
//! then show every row to everybody. So before such a command the boundary becomes one that lets nothing
//! through and needs no function; it stays.

use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::super::policy::{BOUNDARY_POLICY, quote_ident};
use super::super::table;
use super::command::{items, names};
use super::event;
use crate::error::{Result, or_raise};
use crate::plan::{CachedPlan, as_owner, execute_text};
use crate::registry::{self, FUNCTION_INFO};

/// The extensions whose CASCADE takes ours along.
const EXTENSIONS: [&CStr; 2] = [c"tenant_rls", c"plpgsql"];

/// Event trigger: closes the protected tables before the extension is dropped.
///
/// # Safety
///
/// Called by the server alone.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn close_before_drop(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the command is that of the event.
    let drops = unsafe { drops_extension((*event(fcinfo)).parsetree) };
    or_raise(drops.and_then(|drops| if drops { close_tables() } else { Ok(()) }));
    pg_sys::Datum::null()
}

/// Version record of [`close_before_drop`].
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_close_before_drop() -> *const pg_sys::Pg_finfo_record {
    &FUNCTION_INFO
}

/// Whether the command takes the extension along. Without CASCADE the policies keep it.
unsafe fn drops_extension(command: *mut pg_sys::Node) -> Result<bool> {
    if !registry::installed() {
        return Ok(false);
    }
    // SAFETY: a node of the parser is what its tag says.
    unsafe {
        match (*command).type_ {
            pg_sys::NodeTag::T_DropStmt => {
                let drop = command.cast::<pg_sys::DropStmt>();
                if (*drop).behavior != pg_sys::DropBehavior::DROP_CASCADE {
                    return Ok(false);
                }
                match (*drop).removeType {
                    pg_sys::ObjectType::OBJECT_EXTENSION => {
                        Ok(names((*drop).objects).any(|name| EXTENSIONS.contains(&name)))
                    }
                    pg_sys::ObjectType::OBJECT_SCHEMA => {
                        let schema = registry::extension_schema()?;
                        Ok(names((*drop).objects).any(|name| name.to_bytes() == schema.as_bytes()))
                    }
                    _ => Ok(false),
                }
            }
            pg_sys::NodeTag::T_DropOwnedStmt => {
                let drop = command.cast::<pg_sys::DropOwnedStmt>();
                let owner = registry::owner()?;
                Ok((*drop).behavior == pg_sys::DropBehavior::DROP_CASCADE
                    && items((*drop).roles)
                        .any(|role| pg_sys::get_rolespec_oid(role.cast::<pg_sys::RoleSpec>(), true) == owner))
            }
            _ => Ok(false),
        }
    }
}

fn close_tables() -> Result<()> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT p.relation::pg_catalog.oid FROM tenant_rls.protected_tables AS p \
          WHERE EXISTS ( \
            SELECT FROM pg_catalog.pg_class AS c \
            WHERE c.oid OPERATOR(pg_catalog.=) p.relation::pg_catalog.oid) \
          ORDER BY 1",
        &[],
    );
    let mut relations = Vec::new();
    as_owner(|| SELECT.run(&[], |row| relations.extend(row.get::<pg_sys::Oid>(1))))?;
    let policy = quote_ident(BOUNDARY_POLICY);
    for relation in relations {
        let table = table::find(relation)?.qualified;
        execute_text(&format!("DROP POLICY IF EXISTS {policy} ON {table}"));
        execute_text(&format!(
            "CREATE POLICY {policy} ON {table} AS RESTRICTIVE FOR ALL TO PUBLIC USING (false) WITH CHECK (false)"
        ));
    }
    Ok(())
}
