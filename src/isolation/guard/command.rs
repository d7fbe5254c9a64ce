//! What a command has done, from what the server collects of it for event triggers.
//!
//! A command is its parts: ALTER TABLE has subcommands, CREATE SCHEMA whole commands, CREATE TABLE an ALTER TABLE for
//! its foreign keys. The server has looked up every name in it.

use std::ffi::{CStr, c_char, c_void};

use pgrx::pg_sys::{self, AlterTableType as Part, NodeTag, ObjectType};

use crate::plan::CachedPlan;

/// Something that a command has done, and that protection may suffer from.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// A table has been made that inherits from none.
    Made(pg_sys::Oid),
    /// A table has become a partition or child, or been made as one.
    Joined(pg_sys::Oid),
    /// A table has another partition.
    Attached(pg_sys::Oid),
    /// A table has a partition less.
    Detached(pg_sys::Oid),
    /// A child has left a parent.
    Left(pg_sys::Oid),
    /// Row level security has been switched off, or off for the owner.
    RowSecurity(pg_sys::Oid),
    /// A column that may be the tenant column: its name before, where the command says it.
    Column { relation: pg_sys::Oid, name: Option<String> },
    /// A column has been added, to a table that was there.
    Added { relation: pg_sys::Oid, column: i16, has_default: bool },
    /// A constraint has been added to a table that was there, or validated.
    Constraint(pg_sys::Oid),
    /// A relation has another owner.
    Owner(pg_sys::Oid),
    /// A view, a materialized view, or a relation with rules.
    Reader(pg_sys::Oid),
    /// A policy has been made, changed, or renamed to something else.
    Policy { policy: pg_sys::Oid, name: String, made: bool },
    /// Privileges on tables have been granted.
    Granted { relations: Vec<pg_sys::Oid>, grantees: Vec<pg_sys::Oid> },
    /// A function or procedure has been made or changed, or granted to somebody.
    Routine(pg_sys::Oid),
}

/// The parts of the command that has just ended. The server keeps them until its event triggers have ended.
fn collected() -> Vec<*mut pg_sys::CollectedCommand> {
    static COMMANDS: CachedPlan = CachedPlan::new(
        c"SELECT c.command FROM pg_catalog.pg_event_trigger_ddl_commands() AS c WHERE NOT c.in_extension",
        &[],
    );
    let mut commands = Vec::new();
    COMMANDS.run(&[], |row| commands.push(row.pointer::<pg_sys::CollectedCommand>(1)));
    commands
}

/// Tables whose rows have come to hold other values though nobody has written them: a column was added, or its values
/// were computed anew.
pub fn reshaped() -> Vec<pg_sys::Oid> {
    let mut relations = Vec::new();
    for command in collected() {
        // SAFETY: as in `collect` and `alter`.
        unsafe {
            if (*command).type_ == pg_sys::CollectedCommandType::SCT_AlterTable {
                let altered = (*command).d.alterTable;
                let reshapes = items(altered.subcmds).any(|part| {
                    let part = part.cast::<pg_sys::CollectedATSubcmd>();
                    computes((*(*part).parsetree.cast::<pg_sys::AlterTableCmd>()).subtype)
                });
                if reshapes {
                    relations.push(altered.objectId);
                }
            }
        }
    }
    relations
}

fn computes(subtype: Part::Type) -> bool {
    let subtype = kind(subtype);
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    if subtype == Part::AT_SetExpression {
        return true;
    }
    matches!(subtype, Part::AT_AddColumn | Part::AT_AlterColumnType)
}

/// What the command that has just ended has done, in order, each once.
pub fn changes() -> Vec<Change> {
    let mut changes = Vec::new();
    let mut made = Vec::new();
    for command in collected() {
        // SAFETY: the server keeps what it has collected until its event triggers have ended.
        unsafe { collect(command, &mut made, &mut changes) };
    }
    let mut unique = Vec::with_capacity(changes.len());
    for change in changes {
        if !unique.contains(&change) {
            unique.push(change);
        }
    }
    unique
}

unsafe fn collect(
    command: *mut pg_sys::CollectedCommand,
    made: &mut Vec<pg_sys::Oid>,
    changes: &mut Vec<Change>,
) {
    // SAFETY: the type of a collected command tells what its union holds.
    unsafe {
        match (*command).type_ {
            pg_sys::CollectedCommandType::SCT_Simple => {
                let address = (*command).d.simple.address;
                let tree = (*command).parsetree;
                if matches!(
                    (*tree).type_,
                    NodeTag::T_CreateStmt | NodeTag::T_CreateForeignTableStmt | NodeTag::T_CreateTableAsStmt
                ) {
                    made.push(address.objectId);
                }
                changes.extend(simple(tree, address.objectId));
            }
            pg_sys::CollectedCommandType::SCT_AlterTable => {
                let altered = (*command).d.alterTable;
                for part in items(altered.subcmds) {
                    let part = part.cast::<pg_sys::CollectedATSubcmd>();
                    changes.extend(alter(part, altered.objectId, made));
                }
            }
            pg_sys::CollectedCommandType::SCT_Grant => changes.extend(grant((*command).d.grant.istmt)),
            _ => {}
        }
    }
}

unsafe fn simple(tree: *mut pg_sys::Node, object: pg_sys::Oid) -> Option<Change> {
    // SAFETY: a node of the parser is what its tag says.
    unsafe {
        match (*tree).type_ {
            // A foreign table begins with the same fields.
            NodeTag::T_CreateStmt | NodeTag::T_CreateForeignTableStmt => {
                let inherits = !(*tree.cast::<pg_sys::CreateStmt>()).inhRelations.is_null();
                Some(if inherits { Change::Joined(object) } else { Change::Made(object) })
            }
            NodeTag::T_CreateTableAsStmt => match (*tree.cast::<pg_sys::CreateTableAsStmt>()).objtype {
                ObjectType::OBJECT_MATVIEW => Some(Change::Reader(object)),
                _ => Some(Change::Made(object)),
            },
            NodeTag::T_ViewStmt => Some(Change::Reader(object)),
            NodeTag::T_RuleStmt => super::reader::of_rule(object).map(Change::Reader),
            NodeTag::T_RenameStmt => {
                let rename = tree.cast::<pg_sys::RenameStmt>();
                let name = text((*rename).subname);
                match (*rename).renameType {
                    ObjectType::OBJECT_COLUMN => Some(Change::Column { relation: object, name }),
                    ObjectType::OBJECT_POLICY => {
                        Some(Change::Policy { policy: object, name: name?, made: false })
                    }
                    _ => None,
                }
            }
            NodeTag::T_CreatePolicyStmt => {
                let name = text((*tree.cast::<pg_sys::CreatePolicyStmt>()).policy_name)?;
                Some(Change::Policy { policy: object, name, made: true })
            }
            NodeTag::T_AlterPolicyStmt => {
                let name = text((*tree.cast::<pg_sys::AlterPolicyStmt>()).policy_name)?;
                Some(Change::Policy { policy: object, name, made: false })
            }
            NodeTag::T_CreateFunctionStmt | NodeTag::T_AlterFunctionStmt => Some(Change::Routine(object)),
            NodeTag::T_AlterOwnerStmt => match (*tree.cast::<pg_sys::AlterOwnerStmt>()).objectType {
                ObjectType::OBJECT_FUNCTION | ObjectType::OBJECT_PROCEDURE | ObjectType::OBJECT_ROUTINE => {
                    Some(Change::Routine(object))
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// `made` are the tables that the same command has made: they have no rows that a constraint could have missed.
unsafe fn alter(
    part: *mut pg_sys::CollectedATSubcmd,
    relation: pg_sys::Oid,
    made: &[pg_sys::Oid],
) -> Option<Change> {
    // SAFETY: the server collects nothing but AlterTableCmd here.
    let (command, address) = unsafe { ((*part).parsetree.cast::<pg_sys::AlterTableCmd>(), (*part).address) };
    let is_new = made.contains(&relation);
    // SAFETY: as above; `name` is a name or null.
    unsafe {
        match kind((*command).subtype) {
            // PostgreSQL 15 does not say which partition.
            Part::AT_AttachPartition => Some(Change::Attached(relation)),
            Part::AT_DetachPartition | Part::AT_DetachPartitionFinalize => Some(Change::Detached(relation)),
            Part::AT_AddInherit => Some(Change::Joined(relation)),
            Part::AT_DropInherit => Some(Change::Left(relation)),
            Part::AT_DisableRowSecurity | Part::AT_NoForceRowSecurity => Some(Change::RowSecurity(relation)),
            Part::AT_AlterColumnType
            | Part::AT_DropNotNull
            | Part::AT_DropColumn
            | Part::AT_ColumnDefault => Some(Change::Column { relation, name: text((*command).name) }),
            // NOT NULL is a constraint with a name from PostgreSQL 18 on.
            Part::AT_DropConstraint => Some(Change::Column { relation, name: None }),
            Part::AT_AddColumn if !is_new => {
                let definition = (*command).def.cast::<pg_sys::ColumnDef>();
                let has_default = !definition.is_null()
                    && (!(*definition).raw_default.is_null() || !(*definition).cooked_default.is_null());
                let column = address.objectSubId as i16;
                Some(Change::Added { relation: address.objectId, column, has_default })
            }
            Part::AT_AddConstraint | Part::AT_ValidateConstraint if !is_new => {
                Some(Change::Constraint(address.objectId))
            }
            // A foreign key whose columns have got another type is made anew, and checked where that wrote the table anew:
            // else it has the operators of before.
            Part::AT_ReAddConstraint => {
                let constraint = (*command).def.cast::<pg_sys::Constraint>();
                ((*constraint).contype == pg_sys::ConstrType::CONSTR_FOREIGN
                    && (*constraint).old_conpfeqop.is_null())
                .then_some(Change::Constraint(address.objectId))
            }
            // What is enforced from now on is validated; whether it is deferrable validates nothing.
            #[cfg(feature = "pg18")]
            Part::AT_AlterConstraint
                if (*(*command).def.cast::<pg_sys::ATAlterConstraint>()).alterEnforceability =>
            {
                Some(Change::Constraint(address.objectId))
            }
            Part::AT_ChangeOwner => Some(Change::Owner(relation)),
            Part::AT_SetRelOptions | Part::AT_ResetRelOptions | Part::AT_ReplaceRelOptions => {
                super::reader::is_view(relation).then_some(Change::Reader(relation))
            }
            _ => None,
        }
    }
}

/// Until PostgreSQL 15 some subcommands have another number where they reach partitions and children.
fn kind(subtype: Part::Type) -> Part::Type {
    #[cfg(feature = "pg15")]
    match subtype {
        Part::AT_AddColumnRecurse => return Part::AT_AddColumn,
        Part::AT_DropColumnRecurse => return Part::AT_DropColumn,
        Part::AT_AddConstraintRecurse => return Part::AT_AddConstraint,
        Part::AT_ValidateConstraintRecurse => return Part::AT_ValidateConstraint,
        Part::AT_DropConstraintRecurse => return Part::AT_DropConstraint,
        _ => {}
    }
    subtype
}

unsafe fn grant(grant: *mut pg_sys::InternalGrant) -> Vec<Change> {
    // SAFETY: the lists hold oids, col_privs nodes.
    unsafe {
        if !(*grant).is_grant {
            return Vec::new();
        }
        let oids = |list| items_of_oids(list).collect::<Vec<_>>();
        match (*grant).objtype {
            ObjectType::OBJECT_TABLE => {
                let strong = pg_sys::ACL_TRUNCATE | pg_sys::ACL_REFERENCES | pg_sys::ACL_TRIGGER;
                #[cfg(any(feature = "pg17", feature = "pg18"))]
                let strong = strong | pg_sys::ACL_MAINTAIN;
                // Of columns REFERENCES alone is looked for, which is not worth reading the list for.
                let may_be_strong = (*grant).all_privs
                    || u64::from(strong) & u64::from((*grant).privileges) != 0
                    || !(*grant).col_privs.is_null();
                if !may_be_strong {
                    return Vec::new();
                }
                vec![Change::Granted { relations: oids((*grant).objects), grantees: oids((*grant).grantees) }]
            }
            ObjectType::OBJECT_FUNCTION | ObjectType::OBJECT_PROCEDURE | ObjectType::OBJECT_ROUTINE => {
                oids((*grant).objects).into_iter().map(Change::Routine).collect()
            }
            _ => Vec::new(),
        }
    }
}

unsafe fn text(name: *const c_char) -> Option<String> {
    // SAFETY: the caller hands a C string or null.
    (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

/// The items of a list of pointers, which outlives the iterator.
///
/// # Safety
///
/// `list` is such a list, or null.
pub unsafe fn items(list: *mut pg_sys::List) -> impl Iterator<Item = *mut c_void> {
    // SAFETY: an empty list is a null pointer.
    let length = if list.is_null() { 0 } else { unsafe { (*list).length } };
    // SAFETY: the position is within the list, which outlives the iterator.
    (0..length).map(move |at| unsafe { pg_sys::list_nth(list, at) })
}

unsafe fn items_of_oids(list: *mut pg_sys::List) -> impl Iterator<Item = pg_sys::Oid> {
    // SAFETY: an empty list is a null pointer.
    let length = if list.is_null() { 0 } else { unsafe { (*list).length } };
    // SAFETY: as in `items`; the list holds oids.
    (0..length).map(move |at| unsafe { pg_sys::list_nth_oid(list, at) })
}

/// The strings of a list of names.
///
/// # Safety
///
/// `list` is one that the parser makes of String nodes, or null.
pub unsafe fn names<'a>(list: *mut pg_sys::List) -> impl Iterator<Item = &'a CStr> {
    // SAFETY: as the caller promises.
    unsafe { items(list).map(|item| CStr::from_ptr((*item.cast::<pg_sys::String>()).sval)) }
}
