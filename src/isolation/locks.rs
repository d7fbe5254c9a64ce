//! Commands that lock a table before the server asks whether the role may run them.
//!
//! The server looks up a name that a command gives, waits for the lock, and only then asks who owns what it has got.
//! So a command that it is going to refuse waits behind the transactions that use the table, and all who come later,
//! of every tenant, wait behind the command. What the server would refuse is refused here, before it waits:
//!
//! | command | lock | it takes |
//! |---|---|---|
//! | CREATE RULE | ACCESS EXCLUSIVE | the ownership of the table |
//! | CREATE TRIGGER | SHARE ROW EXCLUSIVE | the privilege TRIGGER |
//! | a foreign key, of a temporary table too | SHARE ROW EXCLUSIVE on what it refers to | the privilege REFERENCES |
//! | CREATE TABLE … PARTITION OF | ACCESS EXCLUSIVE | the ownership of the parent |
//! | ATTACH PARTITION | ACCESS EXCLUSIVE on what is attached, a table or an index | its ownership |
//! | DETACH PARTITION | ACCESS EXCLUSIVE on what is named, a partition or not | that it is one |
//! | ALTER INDEX … DEPENDS ON EXTENSION, and others | ACCESS EXCLUSIVE | the ownership |
//!
//! Locks up to SHARE UPDATE EXCLUSIVE (INHERITS, COMMENT, CREATE STATISTICS, publications) stop no reader and no
//! writer: their commands are the server's to refuse.

use std::ffi::{CStr, c_char};

use pgrx::pg_sys::{self, NodeTag};

use super::statement::{cell, list_length};
use crate::error::{Error, Result, or_raise};
use crate::registry;

/// What the server will ask for once it has the lock.
#[derive(Clone, Copy)]
enum Needed {
    Ownership,
    Privilege(u32),
    /// Ownership, unless it is an index of a partition of the table that this index is of.
    ToJoin(pg_sys::Oid),
    /// That it is a partition of this table or index; ownership leads to the server's own error.
    ToLeave(pg_sys::Oid),
}

/// A relation that a command names and would lock.
type Named = (*mut pg_sys::RangeVar, Needed);

/// Whether the command is of a kind that may have to be refused.
///
/// # Safety
///
/// `command` is a utility statement.
pub unsafe fn concerns(command: *mut pg_sys::Node) -> bool {
    // SAFETY: every node has a tag.
    unsafe {
        matches!(
            (*command).type_,
            NodeTag::T_RuleStmt
                | NodeTag::T_CreateTrigStmt
                | NodeTag::T_CreateStmt
                | NodeTag::T_CreateForeignTableStmt
                | NodeTag::T_AlterTableStmt
                | NodeTag::T_AlterObjectDependsStmt
        )
    }
}

/// Raises what the server would raise once it had the lock. Answers with the statement to run: a copy where a name
/// without a schema was given the one that it was found in. A wait for the lock is long enough for another session to
/// make the name mean a table that was not asked about.
///
/// # Safety
///
/// `statement` is that of a command which [`concerns`] says yes to.
pub unsafe fn check(statement: *mut pg_sys::PlannedStmt) -> *mut pg_sys::PlannedStmt {
    registry::accept_invalidations();
    if !registry::installed() {
        return statement;
    }
    // SAFETY: the caller's; the copy has the names of the original, in its order.
    unsafe {
        let mut schemas = Vec::new();
        for (name, needed) in named((*statement).utilityStmt) {
            let relation = find(name);
            or_raise(permit(relation, needed));
            schemas.push(schema_to_add(name, relation));
        }
        if schemas.iter().all(|schema| schema.is_null()) {
            return statement;
        }
        let copy = pg_sys::copyObjectImpl(statement.cast()).cast::<pg_sys::PlannedStmt>();
        for ((name, _), schema) in named((*copy).utilityStmt).into_iter().zip(schemas) {
            if !schema.is_null() {
                (*name).schemaname = schema;
            }
        }
        copy
    }
}

/// What the command names and would lock before it asks.
unsafe fn named(command: *mut pg_sys::Node) -> Vec<Named> {
    // SAFETY: a node of the parser is what its tag says.
    unsafe {
        match (*command).type_ {
            NodeTag::T_RuleStmt => {
                vec![((*command.cast::<pg_sys::RuleStmt>()).relation, Needed::Ownership)]
            }
            NodeTag::T_CreateTrigStmt => {
                let needed = Needed::Privilege(pg_sys::ACL_TRIGGER);
                vec![((*command.cast::<pg_sys::CreateTrigStmt>()).relation, needed)]
            }
            // A function that is to depend on an extension is no relation.
            NodeTag::T_AlterObjectDependsStmt => {
                let relation = (*command.cast::<pg_sys::AlterObjectDependsStmt>()).relation;
                if relation.is_null() { Vec::new() } else { vec![(relation, Needed::Ownership)] }
            }
            NodeTag::T_AlterTableStmt => in_alter_table(command.cast()),
            // The statement of a foreign table begins with that of a table. Foreign keys of either come as ALTER TABLE.
            _ => in_create_table(command.cast()),
        }
    }
}

unsafe fn in_create_table(command: *mut pg_sys::CreateStmt) -> Vec<Named> {
    // SAFETY: the list is of RangeVar.
    unsafe {
        if (*command).partbound.is_null() || is_there_already(command) {
            return Vec::new();
        }
        let parents = (*command).inhRelations;
        (0..list_length(parents)).map(|at| (cell(parents, at).ptr_value.cast(), Needed::Ownership)).collect()
    }
}

/// Whether IF NOT EXISTS leaves the command nothing to do.
unsafe fn is_there_already(command: *mut pg_sys::CreateStmt) -> bool {
    // SAFETY: looks the name up where the table would be made.
    unsafe {
        (*command).if_not_exists && {
            let schema = pg_sys::RangeVarGetCreationNamespace((*command).relation);
            pg_sys::get_relname_relid((*(*command).relation).relname, schema) != pg_sys::InvalidOid
        }
    }
}

unsafe fn in_alter_table(command: *mut pg_sys::AlterTableStmt) -> Vec<Named> {
    let mut names = Vec::new();
    // SAFETY: the lists are of what the server's parser puts there.
    unsafe {
        let altered = find((*command).relation);
        // Of that table the server asks for the owner before it waits.
        if altered == pg_sys::InvalidOid || !owns(altered) {
            return names;
        }
        for at in 0..list_length((*command).cmds) {
            let step = cell((*command).cmds, at).ptr_value.cast::<pg_sys::AlterTableCmd>();
            match (*step).subtype {
                pg_sys::AlterTableType::AT_AttachPartition => {
                    names.push((partition(step), Needed::ToJoin(altered)));
                }
                pg_sys::AlterTableType::AT_DetachPartition
                | pg_sys::AlterTableType::AT_DetachPartitionFinalize => {
                    names.push((partition(step), Needed::ToLeave(altered)));
                }
                pg_sys::AlterTableType::AT_AddConstraint => names.extend(referred_to((*step).def)),
                pg_sys::AlterTableType::AT_AddColumn => {
                    let column = (*step).def.cast::<pg_sys::ColumnDef>();
                    let is_there = (*step).missing_ok && pg_sys::get_attnum(altered, (*column).colname) != 0;
                    let constraints = if is_there { std::ptr::null_mut() } else { (*column).constraints };
                    for at in 0..list_length(constraints) {
                        names.extend(referred_to(cell(constraints, at).ptr_value.cast()));
                    }
                }
                _ => {}
            }
        }
    }
    names
}

unsafe fn partition(step: *mut pg_sys::AlterTableCmd) -> *mut pg_sys::RangeVar {
    // SAFETY: such steps have one.
    unsafe { (*(*step).def.cast::<pg_sys::PartitionCmd>()).name }
}

/// The table that a foreign key refers to. Other nodes refer to none.
unsafe fn referred_to(constraint: *mut pg_sys::Node) -> Option<Named> {
    // SAFETY: a node of the parser is what its tag says.
    unsafe {
        if constraint.is_null() || (*constraint).type_ != NodeTag::T_Constraint {
            return None;
        }
        let constraint = constraint.cast::<pg_sys::Constraint>();
        let refers =
            (*constraint).contype == pg_sys::ConstrType::CONSTR_FOREIGN && !(*constraint).pktable.is_null();
        refers.then(|| ((*constraint).pktable, Needed::Privilege(pg_sys::ACL_REFERENCES)))
    }
}

/// The relation of that name, which is not locked; `InvalidOid` if there is none.
unsafe fn find(name: *mut pg_sys::RangeVar) -> pg_sys::Oid {
    // SAFETY: the name is the parser's. A schema that the role may not use is refused, as it would be anyway.
    unsafe {
        pg_sys::RangeVarGetRelidExtended(
            name,
            pg_sys::NoLock as i32,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            std::ptr::null_mut(),
        )
    }
}

/// The schema of the relation, if the name lacks one. Nobody else can change what a temporary table is called.
unsafe fn schema_to_add(name: *mut pg_sys::RangeVar, relation: pg_sys::Oid) -> *mut c_char {
    // SAFETY: looks a relation up; one that is gone by now has no schema.
    unsafe {
        let schema = pg_sys::get_rel_namespace(relation);
        if !(*name).schemaname.is_null() || schema == pg_sys::InvalidOid || pg_sys::isTempNamespace(schema) {
            return std::ptr::null_mut();
        }
        pg_sys::get_namespace_name(schema)
    }
}

/// The server's own answer, if it is no.
fn permit(relation: pg_sys::Oid, needed: Needed) -> Result<()> {
    if relation == pg_sys::InvalidOid {
        return Ok(());
    }
    let (granted, mode) = match needed {
        Needed::Ownership => (owns(relation), 0),
        Needed::ToJoin(index) => (owns(relation) || is_index_of_partition(relation, index), 0),
        Needed::ToLeave(parent) => (owns(relation) || parent_of(relation) == Some(parent), 0),
        Needed::Privilege(mode) => (has_privilege(relation, mode), mode),
    };
    if granted {
        return Ok(());
    }
    // SAFETY: looks a relation up; the name is a C string, or null for one that is gone by now.
    let (name, kind) = unsafe {
        let name = pg_sys::get_rel_name(relation);
        if name.is_null() {
            return Ok(());
        }
        (CStr::from_ptr(name).to_string_lossy(), pg_sys::get_rel_relkind(relation) as u8)
    };
    let kind = match kind {
        b'i' | b'I' => "index",
        b'v' => "view",
        b'm' => "materialized view",
        b'f' => "foreign table",
        b'S' => "sequence",
        _ => "table",
    };
    Err(Error::RefusedBeforeLock {
        what: match mode {
            0 => format!("must be owner of {kind} {name}"),
            _ => format!("permission denied for {kind} {name}"),
        },
    })
}

fn owns(relation: pg_sys::Oid) -> bool {
    let role = registry::current_role();
    // SAFETY: looks a relation up that was there a moment ago.
    unsafe {
        #[cfg(feature = "pg15")]
        let owns = pg_sys::pg_class_ownercheck(relation, role);
        #[cfg(not(feature = "pg15"))]
        let owns = pg_sys::object_ownercheck(pg_sys::RelationRelationId, relation, role);
        owns
    }
}

/// Whether the role has the privilege on the table, or REFERENCES on one of its columns: which of them a foreign key
/// needs is known only later.
fn has_privilege(relation: pg_sys::Oid, mode: u32) -> bool {
    let role = registry::current_role();
    let mode = mode as pg_sys::AclMode;
    // SAFETY: as in `owns`.
    unsafe {
        pg_sys::pg_class_aclcheck(relation, role, mode) == pg_sys::AclResult::ACLCHECK_OK
            || pg_sys::pg_attribute_aclcheck_all(relation, role, mode, pg_sys::AclMaskHow::ACLMASK_ANY)
                == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// Whether `index` is of a partition of the table that `parent` is an index of.
fn is_index_of_partition(index: pg_sys::Oid, parent: pg_sys::Oid) -> bool {
    // SAFETY: looks both up; a relation that is no index has no table.
    let (table, parent) =
        unsafe { (pg_sys::IndexGetRelation(index, true), pg_sys::IndexGetRelation(parent, true)) };
    table != pg_sys::InvalidOid && parent_of(table) == Some(parent)
}

/// What the relation is a partition of.
fn parent_of(relation: pg_sys::Oid) -> Option<pg_sys::Oid> {
    unsafe extern "C-unwind" {
        fn get_partition_parent(relation: pg_sys::Oid, even_if_detached: bool) -> pg_sys::Oid;
    }
    // SAFETY: looks the relation up; a partition has a parent, so that nothing is raised.
    unsafe { pg_sys::get_rel_relispartition(relation).then(|| get_partition_parent(relation, true)) }
}
