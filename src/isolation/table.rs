//! A user's table, as the catalogs and our registry know it.

use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::policy::KeyType;
use crate::error::{Error, Result};
use crate::plan::{CachedPlan, as_owner};
use crate::registry::catalog;
use crate::registry::scan::{Key, protected_tables, scan};

/// A relation.
pub struct Table {
    /// Its oid.
    pub oid: pg_sys::Oid,
    /// Its schema, quoted.
    pub schema: String,
    /// Its name for SQL: quoted, with its schema.
    pub qualified: String,
    /// Its name for people.
    pub display: String,
    /// Its owner.
    pub owner: pg_sys::Oid,
    /// `pg_class.relkind`.
    pub kind: char,
    /// `pg_class.relpersistence`.
    pub persistence: char,
    /// Whether it belongs to an extension.
    pub of_extension: bool,
    /// Whether it lies in a schema of the system.
    pub of_system: bool,
}

/// A protected table, partition or child.
pub struct Protected {
    /// The table.
    pub relation: pg_sys::Oid,
    /// The top of its tree.
    pub root: pg_sys::Oid,
    /// The tenant column.
    pub column: String,
    /// What the column holds.
    pub key: KeyType,
    /// Whether the policies are to hold for the owner too.
    pub forced: bool,
}

/// The relation of this oid.
pub fn find(oid: pg_sys::Oid) -> Result<Table> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT \
            pg_catalog.quote_ident(n.nspname) OPERATOR(pg_catalog.||) '.' \
              OPERATOR(pg_catalog.||) pg_catalog.quote_ident(c.relname), \
            c.relname::pg_catalog.text, c.relowner, c.relkind::pg_catalog.text, c.relpersistence::pg_catalog.text, \
            EXISTS ( \
              SELECT FROM pg_catalog.pg_depend AS d \
              WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass \
              AND d.objid OPERATOR(pg_catalog.=) c.oid AND d.deptype OPERATOR(pg_catalog.=) 'e'), \
            n.nspname OPERATOR(pg_catalog.~) '^pg_' OR n.nspname OPERATOR(pg_catalog.=) 'information_schema', \
            pg_catalog.quote_ident(n.nspname) \
          FROM pg_catalog.pg_class AS c \
          JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
          WHERE c.oid OPERATOR(pg_catalog.=) $1",
        &[pg_sys::OIDOID],
    );
    let letter = |text: Option<String>| text.and_then(|text| text.chars().next()).unwrap_or(' ');
    SELECT
        .first(&[oid.into_datum()], |row| Table {
            oid,
            qualified: row.get(1).unwrap_or_default(),
            display: row.get(2).unwrap_or_default(),
            owner: row.get(3).unwrap_or(pg_sys::InvalidOid),
            kind: letter(row.get(4)),
            persistence: letter(row.get(5)),
            of_extension: row.get(6).unwrap_or(true),
            of_system: row.get(7).unwrap_or(true),
            schema: row.get(8).unwrap_or_default(),
        })
        .ok_or_else(|| Error::Unknown {
            what: "relation",
            name: oid.to_u32().to_string(),
            known: Vec::new(),
            hint: "",
        })
}

impl Table {
    /// Refuses a caller who is not the owner, a member of the owner, or a superuser.
    pub fn check_owner(&self) -> Result<()> {
        // SAFETY: looks role memberships up; superusers have every role.
        let is_owner = unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), self.owner) };
        if is_owner {
            return Ok(());
        }
        Err(Error::NotPermitted {
            what: format!("must be owner of table \"{}\"", self.display),
            hint: "Call it as the owner of the table, or as a superuser.",
        })
    }
}

/// What the registry knows of a table, if it is protected: also what others have committed since the snapshot of a
/// transaction at REPEATABLE READ.
pub fn protected(relation: pg_sys::Oid) -> Result<Option<Protected>> {
    let registry = catalog::table("protected_tables");
    if registry == pg_sys::InvalidOid {
        return Err(Error::NotInstalled);
    }
    let mut found = None;
    let key = [Key::Oid(protected_tables::RELATION, relation)];
    scan(registry, catalog::table("protected_tables_pkey"), &key, |row| {
        let column = row.get::<&CStr>(protected_tables::TENANT_COLUMN);
        found = Some(Protected {
            relation,
            root: row.get(protected_tables::ROOT).unwrap_or(relation),
            column: column.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            key: row
                .get::<String>(protected_tables::KEY_TYPE)
                .and_then(|key| KeyType::parse(&key))
                .unwrap_or(KeyType::Uuid),
            forced: row.get(protected_tables::FORCED).unwrap_or(true),
        });
    });
    Ok(found)
}

/// The table and everything that inherits from it, partitions and children, the table first.
pub fn tree(root: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"WITH RECURSIVE tree AS ( \
            SELECT $1 AS relation \
            UNION \
            SELECT i.inhrelid FROM pg_catalog.pg_inherits AS i \
            JOIN tree AS t ON i.inhparent OPERATOR(pg_catalog.=) t.relation \
          ) \
          SELECT t.relation FROM tree AS t \
          WHERE EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) t.relation) \
          ORDER BY t.relation OPERATOR(pg_catalog.<>) $1, t.relation",
        &[pg_sys::OIDOID],
    );
    let mut members = Vec::new();
    SELECT.run(&[root.into_datum()], |row| members.extend(row.get::<pg_sys::Oid>(1)));
    members
}

/// The tables that `relation` inherits from or is a partition of.
pub fn parents(relation: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT i.inhparent FROM pg_catalog.pg_inherits AS i \
          WHERE i.inhrelid OPERATOR(pg_catalog.=) $1 ORDER BY i.inhseqno",
        &[pg_sys::OIDOID],
    );
    let mut parents = Vec::new();
    SELECT.run(&[relation.into_datum()], |row| parents.extend(row.get::<pg_sys::Oid>(1)));
    parents
}

/// The partitions or children of a table.
pub fn children(relation: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT i.inhrelid FROM pg_catalog.pg_inherits AS i \
          WHERE i.inhparent OPERATOR(pg_catalog.=) $1 ORDER BY i.inhrelid",
        &[pg_sys::OIDOID],
    );
    let mut children = Vec::new();
    SELECT.run(&[relation.into_datum()], |row| children.extend(row.get::<pg_sys::Oid>(1)));
    children
}

/// Locks a tree until the end of the transaction.
pub fn lock_tree(root: pg_sys::Oid, mode: u32) {
    for member in tree(root) {
        // SAFETY: a lock of the transaction; a table that is gone by now is locked as a number only.
        unsafe { pg_sys::LockRelationOid(member, mode as i32) };
    }
}

/// Deletes what the registry knows of tables that no longer exist. The gauges that their rows counted for.
pub fn forget_dropped() -> Result<Vec<String>> {
    static TABLES: CachedPlan = CachedPlan::new(
        c"DELETE FROM tenant_rls.protected_tables AS p WHERE NOT EXISTS ( \
            SELECT FROM pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) p.relation)",
        &[],
    );
    static ATTACHMENTS: CachedPlan = CachedPlan::new(
        c"WITH gone AS ( \
            DELETE FROM tenant_rls.attachments AS a WHERE NOT EXISTS ( \
              SELECT FROM pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) a.relation) \
            RETURNING a.resource) \
          SELECT DISTINCT g.resource FROM gone AS g ORDER BY 1",
        &[],
    );
    let mut resources = Vec::new();
    as_owner(|| {
        ATTACHMENTS.run(&[], |row| resources.extend(row.get::<String>(1)));
        TABLES.execute(&[]);
    })?;
    Ok(resources)
}
