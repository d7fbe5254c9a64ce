//! Tables that come, join a protected tree, or leave it.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::super::table::{self, Protected, Table};
use super::super::{
    Undo, check_kind, find_column, known_undo, protect_tree, protected_members, quietly, save_undo,
};
use super::{Finding, weakening, weigh};
use crate::error::{Error, Result};
use crate::gucs::{self, Watch};
use crate::plan::{CachedPlan, as_owner};
use crate::registry;

/// What tenant columns are called where nobody has said another name.
pub const TENANT_COLUMN: &str = "tenant_id";

/// A new table that inherits from none: protected, if it has a tenant column and the setting says so.
pub fn made(relation: pg_sys::Oid) -> Result<()> {
    let watch = gucs::auto_protect();
    if watch == Watch::Off || !has_tenant_column(relation) || registry::is_protected(relation) {
        return Ok(());
    }
    let table = table::find(relation)?;
    if check_kind(&table).is_err() {
        return Ok(());
    }
    if watch == Watch::Warn {
        warn_unprotected(&table);
        return Ok(());
    }
    table::lock_tree(relation, pg_sys::AccessExclusiveLock);
    quietly(|| protect_tree(&table, TENANT_COLUMN, true))?;
    pgrx::notice!("table \"{}\" is protected: it has a column \"{TENANT_COLUMN}\"", table.display);
    Ok(())
}

/// Whether the relation has a column of that name, of a type that tenants are named with. Syscaches only: every
/// CREATE TABLE asks.
pub fn has_tenant_column(relation: pg_sys::Oid) -> bool {
    // SAFETY: lookups of a relation that the running command has locked; the name is a C string.
    let type_oid = unsafe {
        let column = pg_sys::get_attnum(relation, c"tenant_id".as_ptr());
        if column <= 0 {
            return false;
        }
        pg_sys::get_atttype(relation, column)
    };
    [pg_sys::UUIDOID, pg_sys::INT8OID, pg_sys::INT4OID].contains(&type_oid)
}

/// Says that a table has a tenant column and is open.
pub fn warn_unprotected(table: &Table) {
    let (name, qualified) = (&table.display, &table.qualified);
    Error::Advice {
        what: format!("table \"{name}\" has a column \"{TENANT_COLUMN}\" and is not protected"),
        why: "Who has privileges on it has them on the rows of all tenants.".into(),
        hint: format!("SELECT tenant_protect('{qualified}'); or SET tenant_rls.auto_protect = on."),
    }
    .warn();
}

/// A table that has become a partition or child, of whatever parents.
pub fn joined(tag: &str, relation: pg_sys::Oid) -> Result<()> {
    let parents = table::parents(relation);
    let protected: Vec<Protected> =
        parents.iter().filter_map(|parent| table::protected(*parent).transpose()).collect::<Result<_>>()?;
    let known = table::protected(relation)?;
    if protected.is_empty() && known.is_none() {
        return Ok(());
    }
    let table = table::find(relation)?;
    if let Some(open) = parents.iter().find(|parent| protected.iter().all(|known| known.relation != **parent))
    {
        let parent = table::find(*open)?;
        return weigh(tag, Finding {
            object: table.qualified.clone(),
            to: format!(
                "make \"{}\" a partition or child of \"{}\", which is not protected",
                table.display, parent.display
            ),
            why: "Who reads the parent would read the rows of all tenants, without the policies of the child.".into(),
            hint: format!("SELECT tenant_protect('{}') first.", parent.qualified),
        });
    }
    let Some(parent) = protected.first() else { return Ok(()) };
    let parent_name = table::find(parent.relation)?.display;
    if gucs::ddl_guard() == Watch::Off {
        return match known {
            Some(_) => find_roots(relation),
            None => weigh(tag, unprotected(&table, &parent_name, "", String::new())),
        };
    }
    match protect(&table, parent) {
        Ok(()) if known.is_none() => {
            pgrx::notice!("table \"{}\" is protected, as \"{parent_name}\" is", table.display);
            Ok(())
        }
        Ok(()) => Ok(()),
        Err(error) => {
            let text = error.text();
            let why = text.detail.unwrap_or(text.message);
            weigh(tag, unprotected(&table, &parent_name, &why, text.hint.unwrap_or_default()))
        }
    }
}

fn protect(table: &Table, parent: &Protected) -> Result<()> {
    check_kind(table)?;
    table::lock_tree(table.oid, pg_sys::AccessExclusiveLock);
    quietly(|| protect_tree(table, &parent.column, parent.forced))
}

fn unprotected(table: &Table, parent: &str, why: &str, hint: String) -> Finding {
    Finding {
        object: table.qualified.clone(),
        to: format!("make \"{}\" a partition or child of protected table \"{parent}\"", table.display),
        why: if why.is_empty() {
            "A statement that names it would see the rows of all tenants.".into()
        } else {
            why.into()
        },
        hint,
    }
}

/// A table that has another partition.
pub fn attached(tag: &str, parent: pg_sys::Oid) -> Result<()> {
    let root = table::protected(parent)?.map(|known| known.root);
    for child in table::children(parent) {
        if table::protected(child)?.map(|known| known.root) != root {
            weakening::inherited(tag, child)?;
            joined(tag, child)?;
        }
    }
    Ok(())
}

/// A table that has a partition less. That one stays protected, with what is below it, as a tree of its own.
pub fn detached(parent: pg_sys::Oid) -> Result<()> {
    let Some(known) = table::protected(parent)? else { return Ok(()) };
    for member in protected_members(known.root)? {
        if member != known.root && table::parents(member).is_empty() {
            find_roots(member)?;
            adopt_index(member, &known)?;
        }
    }
    Ok(())
}

/// The index of a partition that was made with its root's is its own now, and goes when the protection does.
fn adopt_index(relation: pg_sys::Oid, known: &Protected) -> Result<()> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT pg_catalog.quote_ident(n.nspname) OPERATOR(pg_catalog.||) '.' \
            OPERATOR(pg_catalog.||) pg_catalog.quote_ident(c.relname) \
          FROM pg_catalog.pg_index AS i \
          JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) i.indexrelid \
          JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
          WHERE i.indrelid OPERATOR(pg_catalog.=) $1 AND i.indkey[0] OPERATOR(pg_catalog.=) $2 \
          AND i.indnatts OPERATOR(pg_catalog.=) 1 AND NOT i.indisunique AND i.indpred IS NULL \
          AND NOT c.relispartition ORDER BY c.oid DESC LIMIT 1",
        &[pg_sys::OIDOID, pg_sys::INT2OID],
    );
    let undo = known_undo(relation)?;
    if undo.index.is_some() || !undo.joined_indexes.is_empty() || known_undo(known.root)?.index.is_none() {
        return Ok(());
    }
    let column = find_column(&table::find(relation)?, &known.column)?.number;
    let index =
        SELECT.first(&[relation.into_datum(), column.into_datum()], |row| row.get::<String>(1)).flatten();
    save_undo(relation, &Undo { index, ..undo })
}

/// The top of the tree that a table is in: of its first parent's, where it has several.
pub fn top(relation: pg_sys::Oid) -> Result<pg_sys::Oid> {
    let mut top = relation;
    while let Some(parent) = table::parents(top).first() {
        if table::protected(*parent)?.is_none() {
            break;
        }
        top = *parent;
    }
    Ok(top)
}

/// Notes the tops of the trees that a table and what is below it are in now.
pub fn find_roots(relation: pg_sys::Oid) -> Result<()> {
    static UPDATE: CachedPlan = CachedPlan::new(
        c"UPDATE tenant_rls.protected_tables AS p SET root = $2 WHERE p.relation OPERATOR(pg_catalog.=) $1",
        &[pg_sys::REGCLASSOID, pg_sys::REGCLASSOID],
    );
    for member in table::tree(relation) {
        let Some(known) = table::protected(member)? else { continue };
        let root = top(member)?;
        if known.root != root {
            as_owner(|| UPDATE.execute(&[member.into_datum(), root.into_datum()]))?;
        }
    }
    Ok(())
}

/// Notes which members have left the tree of a root while nobody watched.
pub fn let_go(root: pg_sys::Oid) -> Result<()> {
    for member in protected_members(root)? {
        if top(member)? != root {
            find_roots(member)?;
        }
    }
    Ok(())
}
