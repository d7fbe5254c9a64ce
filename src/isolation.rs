//! Tables whose rows belong to tenants: protecting them, and taking that back.
//!
//! Protection is two policies with the same predicate, `tenant_column = required_tenant()`. The permissive one
//! lets the tenant's rows through, the RESTRICTIVE one keeps every other permissive policy, present or future,
//! from letting more through. The whole tree is protected, because a partition or child that is named in a
//! statement is read under its own policies, not its parent's.

mod audit;
pub mod checks;
pub mod guard;
pub mod lockdown;
pub mod locks;
pub mod policy;
mod prove;
pub mod repair;
pub mod rows;
pub mod statement;
pub mod table;

use std::cell::Cell;
use std::ffi::CStr;

use pgrx::prelude::*;
use pgrx::{JsonB, pg_sys};
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::error::{Error, Result, or_raise};
use crate::plan::{CachedPlan, Snapshot, as_owner, as_table_owner, execute_text, read, run_text};
use crate::registry;
use policy::{BOUNDARY_POLICY, ISOLATION_POLICY, KeyType, PolicySpec, quote_ident};
use table::Table;

/// Whether the guard is protecting: it says in one sentence what the steps would say in many.
static QUIET: Backend<Cell<bool>> = Backend::new(Cell::new(false));

macro_rules! say {
    ($($text:tt)*) => {
        if !QUIET.get() {
            pgrx::notice!($($text)*);
        }
    };
}

/// Runs `f` without its notices.
fn quietly<T>(f: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            QUIET.set(self.0);
        }
    }
    let before = Before(QUIET.replace(true));
    let value = f();
    drop(before);
    value
}

/// What protecting one table changed, so that unprotecting changes back that and no more.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Undo {
    not_null: bool,
    default: bool,
    enabled: bool,
    forced: bool,
    index: Option<String>,
    /// Indexes of the table's own that became part of the root's, and go with it.
    joined_indexes: Vec<String>,
    grants: Vec<String>,
    /// Grants that others had passed on, with the role that did.
    passed_on: Vec<(String, String)>,
    policies: Vec<String>,
}

/// The tenant column of one table.
struct Column {
    number: i16,
    key: KeyType,
    not_null: bool,
    has_default: bool,
}

#[pg_extern(sql = false)]
fn tenant_protect(target: Option<pg_sys::Oid>, tenant_column: Option<&CStr>, force: Option<bool>) {
    let protect = || {
        let target = target.ok_or(Error::Null("the table"))?;
        let column = tenant_column.ok_or(Error::Null("the tenant column"))?.to_string_lossy().into_owned();
        let force = force.ok_or(Error::Null("force"))?;
        let root = table::find(target)?;
        check_kind(&root)?;
        root.check_owner()?;
        check_parents(&root)?;
        table::lock_tree(target, pg_sys::AccessExclusiveLock);
        protect_tree(&root, &column, force)
    };
    or_raise(protect());
}

#[pg_extern(sql = false)]
fn tenant_unprotect(target: Option<pg_sys::Oid>) {
    let unprotect = || {
        let root = table::find(target.ok_or(Error::Null("the table"))?)?;
        root.check_owner()?;
        guard::tree::find_roots(root.oid)?;
        let Some(known) = table::protected(root.oid)? else {
            return Err(Error::NotProtected { relation: root.display });
        };
        if known.root != root.oid {
            return Err(Error::NotTheRoot { relation: root.display });
        }
        check_unattached(&root)?;
        table::lock_tree(root.oid, pg_sys::AccessExclusiveLock);
        guard::tree::let_go(root.oid)?;
        for member in protected_members(root.oid)? {
            unprotect_one(&table::find(member)?)?;
        }
        Ok(())
    };
    or_raise(unprotect());
}

/// Refuses what cannot hold policies, is not the user's, or would not keep them.
fn check_kind(table: &Table) -> Result<()> {
    let refuse =
        |why: &str, hint| Err(Error::WrongKind { relation: table.display.clone(), why: why.into(), hint });
    if table.of_system {
        return refuse("is a system relation", "");
    }
    if table.of_extension {
        return refuse("belongs to an extension", "");
    }
    match (table.kind, table.persistence) {
        ('r' | 'p', 't') => refuse("is a temporary table", "Only the session that made it sees it."),
        ('r' | 'p', _) => Ok(()),
        ('v', _) => {
            refuse("is a view", "Protect the tables that it reads, and set security_invoker on the view.")
        }
        ('m', _) => {
            refuse("is a materialized view", "It holds the rows of all tenants; protect a table instead.")
        }
        ('f', _) => {
            refuse("is a foreign table", "Its rows are read by another server, which knows no tenant.")
        }
        ('S', _) => refuse("is a sequence", ""),
        _ => refuse("is not a table", ""),
    }
}

/// A table that is read through an unprotected parent is read without its own policies.
fn check_parents(table: &Table) -> Result<()> {
    for parent in table::parents(table.oid) {
        if table::protected(parent)?.is_none() {
            return Err(Error::WrongKind {
                relation: table.display.clone(),
                why: format!(
                    "is a partition or child of \"{}\", which is not protected",
                    table::find(parent)?.display
                ),
                hint: "Protect the root of the tree.",
            });
        }
    }
    Ok(())
}

fn check_unattached(root: &Table) -> Result<()> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT a.resource FROM tenant_rls.attachments AS a WHERE a.root OPERATOR(pg_catalog.=) $1 ORDER BY 1 LIMIT 1",
        &[pg_sys::REGCLASSOID],
    );
    let resource = as_owner(|| SELECT.first(&[root.oid.into_datum()], |row| row.get::<String>(1)))?.flatten();
    match resource {
        None => Ok(()),
        Some(resource) => Err(Error::Attached { resource }),
    }
}

fn protect_tree(root: &Table, column: &str, force: bool) -> Result<()> {
    let mut members = Vec::new();
    for oid in table::tree(root.oid) {
        let member = table::find(oid)?;
        check_kind(&member)?;
        member.check_owner()?;
        let column = find_column(&member, column)?;
        members.push((member, column));
    }
    // A partition that is protected on its own has the root of its parents.
    let top = guard::tree::top(root.oid)?;
    let mut undos = Vec::with_capacity(members.len());
    for (member, found) in &members {
        check_nulls(member, column, found)?;
        undos.push(known_undo(member.oid)?);
    }
    protect_columns(root, column, &members, &mut undos)?;
    for ((member, found), undo) in members.iter().zip(&mut undos) {
        protect_one(member, column, found, force, undo)?;
    }
    index_tree(column, &members, &mut undos)?;
    for ((member, found), undo) in members.iter().zip(&undos) {
        record(member, top, column, found.key, force, undo)?;
    }
    Ok(())
}

fn find_column(table: &Table, column: &str) -> Result<Column> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT a.attnum, a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull, a.atthasdef \
          OR a.attidentity OPERATOR(pg_catalog.<>) '' OR a.attgenerated OPERATOR(pg_catalog.<>) '' \
          FROM pg_catalog.pg_attribute AS a \
          WHERE a.attrelid OPERATOR(pg_catalog.=) $1 AND a.attname OPERATOR(pg_catalog.=) $2::pg_catalog.name \
          AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped",
        &[pg_sys::OIDOID, pg_sys::TEXTOID],
    );
    let found = SELECT.first(&[table.oid.into_datum(), column.into_datum()], |row| {
        let key = match row.get::<pg_sys::Oid>(2) {
            Some(pg_sys::UUIDOID) => Some(KeyType::Uuid),
            Some(pg_sys::INT8OID) => Some(KeyType::BigInt),
            Some(pg_sys::INT4OID) => Some(KeyType::Integer),
            _ => None,
        };
        let type_name = row.get::<String>(3).unwrap_or_default();
        key.ok_or(type_name).map(|key| Column {
            number: row.get(1).unwrap_or_default(),
            key,
            not_null: row.get(4).unwrap_or_default(),
            has_default: row.get(5).unwrap_or_default(),
        })
    });
    match found {
        None => Err(Error::NoColumn { relation: table.display.clone(), column: column.into() }),
        Some(Err(type_name)) => {
            Err(Error::WrongType { relation: table.display.clone(), column: column.into(), type_name })
        }
        Some(Ok(column)) => Ok(column),
    }
}

/// Counts rows without a tenant, all of them: policies that the table may have already do not hold here.
fn check_nulls(table: &Table, name: &str, column: &Column) -> Result<()> {
    if column.not_null || has_check(table, name) {
        return Ok(());
    }
    let sql = format!(
        "SELECT pg_catalog.count(*) FROM ONLY {} AS t WHERE t.{} IS NULL",
        table.qualified,
        quote_ident(name)
    );
    let mut count = 0;
    as_table_owner(table.owner, || {
        read(Snapshot::Latest, &sql, |row| count = row.get::<i64>(1).unwrap_or_default())
    });
    if count == 0 {
        return Ok(());
    }
    Err(Error::Nulls { relation: table.display.clone(), column: name.into(), count })
}

/// Whether a valid constraint says that the column is not null. The server then sets NOT NULL without reading a
/// row, and large tables are protected in a moment.
fn has_check(table: &Table, column: &str) -> bool {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT true FROM pg_catalog.pg_constraint AS c \
          WHERE c.conrelid OPERATOR(pg_catalog.=) $1 AND c.contype OPERATOR(pg_catalog.=) 'c' AND c.convalidated \
          AND pg_catalog.pg_get_expr(c.conbin, c.conrelid) \
            OPERATOR(pg_catalog.=) pg_catalog.format('(%I IS NOT NULL)', $2)",
        &[pg_sys::OIDOID, pg_sys::TEXTOID],
    );
    SELECT.execute(&[table.oid.into_datum(), column.into_datum()]) > 0
}

/// NOT NULL and the default, which a partitioned table hands to its partitions.
fn protect_columns(
    root: &Table,
    column: &str,
    members: &[(Table, Column)],
    undos: &mut [Undo],
) -> Result<()> {
    let quoted = quote_ident(column);
    if members.iter().any(|(_, found)| !found.not_null) {
        let one_owner = members.iter().all(|(member, _)| member.owner == root.owner);
        set_not_null(root, &quoted, one_owner);
        say!("column \"{column}\" of table \"{}\" is NOT NULL now", root.display);
    }
    let schema = quote_ident(&registry::extension_schema()?);
    for ((member, found), undo) in members.iter().zip(undos) {
        undo.not_null |= !found.not_null;
        if !found.has_default {
            execute_text(&format!(
                "ALTER TABLE ONLY {} ALTER COLUMN {quoted} SET DEFAULT {schema}.{}()",
                member.qualified,
                found.key.required_function()
            ));
            undo.default = true;
            say!(
                "column \"{column}\" of table \"{}\" defaults to {}() now",
                member.display,
                found.key.required_function()
            );
        }
    }
    Ok(())
}

/// As the owner, who may be another one than the caller: the server evaluates the conditions of the table's
/// constraints, to see whether one says it already.
fn set_not_null(table: &Table, column: &str, as_owner: bool) {
    let statement = format!("ALTER TABLE {} ALTER COLUMN {column} SET NOT NULL", table.qualified);
    if as_owner {
        as_table_owner(table.owner, || execute_text(&statement));
    } else {
        execute_text(&statement);
    }
}

fn protect_one(table: &Table, name: &str, column: &Column, force: bool, undo: &mut Undo) -> Result<()> {
    let (enabled, forced) = row_security(table.oid);
    if !enabled {
        execute_text(&format!("ALTER TABLE {} ENABLE ROW LEVEL SECURITY", table.qualified));
        undo.enabled = true;
    }
    if force && !forced {
        execute_text(&format!("ALTER TABLE {} FORCE ROW LEVEL SECURITY", table.qualified));
        undo.forced = true;
    } else if !force && undo.forced {
        execute_text(&format!("ALTER TABLE {} NO FORCE ROW LEVEL SECURITY", table.qualified));
        undo.forced = false;
    }
    if !enabled {
        say!("row level security of table \"{}\" is enabled now", table.display);
    }
    create_policies(table, name, column.key, undo)?;
    revoke_privileges(table, undo);
    Ok(())
}

fn row_security(relation: pg_sys::Oid) -> (bool, bool) {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT c.relrowsecurity, c.relforcerowsecurity FROM pg_catalog.pg_class AS c \
          WHERE c.oid OPERATOR(pg_catalog.=) $1",
        &[pg_sys::OIDOID],
    );
    SELECT
        .first(&[relation.into_datum()], |row| (row.get(1).unwrap_or(false), row.get(2).unwrap_or(false)))
        .unwrap_or_default()
}

/// A policy with the name of one of ours.
struct Found {
    name: String,
    /// Whether it is what [`PolicySpec`] makes.
    right: bool,
    /// What makes it again.
    statement: String,
}

/// The policies of a table that have the names of ours. pg_get_expr qualifies what is not on the search_path, which
/// the SQL functions set to pg_catalog.
fn found_policies(table: &Table, spec: &PolicySpec) -> Vec<Found> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT p.polname::pg_catalog.text, \
            p.polcmd OPERATOR(pg_catalog.=) '*' AND p.polroles OPERATOR(pg_catalog.=) '{0}'::pg_catalog.oid[] \
            AND p.polpermissive OPERATOR(pg_catalog.=) (p.polname OPERATOR(pg_catalog.=) $2::pg_catalog.name) \
            AND pg_catalog.pg_get_expr(p.polqual, p.polrelid) OPERATOR(pg_catalog.=) $4 \
            AND pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) OPERATOR(pg_catalog.=) $4, \
            pg_catalog.format('CREATE POLICY %I ON %s AS %s FOR %s TO %s%s%s', \
              p.polname, $5, CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END, \
              CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' \
                WHEN 'd' THEN 'DELETE' ELSE 'ALL' END, \
              (SELECT pg_catalog.string_agg( \
                CASE WHEN r OPERATOR(pg_catalog.=) 0::pg_catalog.oid THEN 'PUBLIC' \
                ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(r)) END, ', ') \
                FROM pg_catalog.unnest(p.polroles) AS r), \
              COALESCE(' USING (' OPERATOR(pg_catalog.||) pg_catalog.pg_get_expr(p.polqual, p.polrelid) \
                OPERATOR(pg_catalog.||) ')', ''), \
              COALESCE(' WITH CHECK (' OPERATOR(pg_catalog.||) pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) \
                OPERATOR(pg_catalog.||) ')', '')) \
          FROM pg_catalog.pg_policy AS p \
          WHERE p.polrelid OPERATOR(pg_catalog.=) $1 \
          AND p.polname OPERATOR(pg_catalog.=) ANY (ARRAY[$2, $3]::pg_catalog.name[])",
        &[pg_sys::OIDOID, pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::TEXTOID],
    );
    let arguments = [
        table.oid.into_datum(),
        ISOLATION_POLICY.into_datum(),
        BOUNDARY_POLICY.into_datum(),
        deparsed(spec.column, spec.schema, spec.key).into_datum(),
        table.qualified.as_str().into_datum(),
    ];
    let mut found = Vec::new();
    SELECT.run(&arguments, |row| {
        found.push(Found {
            name: row.get(1).unwrap_or_default(),
            right: row.get(2).unwrap_or(false),
            statement: row.get(3).unwrap_or_default(),
        });
    });
    found
}

/// Creates the two policies, in the place of what has their names and is not the same.
fn create_policies(table: &Table, column: &str, key: KeyType, undo: &mut Undo) -> Result<()> {
    let schema = registry::extension_schema()?;
    let spec = PolicySpec { schema: &schema, column, key };
    let found = found_policies(table, &spec);
    let known = table::protected(table.oid)?.is_some();
    for (name, statement) in
        [ISOLATION_POLICY, BOUNDARY_POLICY].into_iter().zip(spec.create_policy_statements(&table.qualified))
    {
        match found.iter().find(|found| found.name == name) {
            Some(Found { right: true, .. }) => continue,
            Some(other) => {
                execute_text(&format!("DROP POLICY {} ON {}", quote_ident(name), table.qualified));
                say!("policy \"{name}\" of table \"{}\" was another one and is replaced", table.display);
                // What stood there before the first protection comes back; a changed policy of ours does not.
                if !known {
                    undo.policies.push(other.statement.clone());
                }
            }
            None => say!("policy \"{name}\" of table \"{}\" is created", table.display),
        }
        execute_text(&statement);
    }
    Ok(())
}

/// The predicate as the server prints it.
fn deparsed(column: &str, schema: &str, key: KeyType) -> String {
    printed("(%I = %I.%I())", &[column, schema, key.required_function()])
}

/// The default of a tenant column as the server prints it.
fn deparsed_function(schema: &str, key: KeyType) -> String {
    printed("%I.%I()", &[schema, key.required_function()])
}

/// Names in a text, quoted where the server quotes them.
fn printed(format: &str, names: &[&str]) -> String {
    let mut printed = String::new();
    run_text(
        "SELECT pg_catalog.format($1, VARIADIC $2)",
        &[pg_sys::TEXTOID, pg_sys::TEXTARRAYOID],
        &[format.into_datum(), names.to_vec().into_datum()],
        |row| printed = row.get(1).unwrap_or_default(),
    );
    printed
}

/// Privileges that policies do not reach: TRUNCATE empties every tenant, REFERENCES and TRIGGER look at rows.
fn revoke_privileges(table: &Table, undo: &mut Undo) {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT pg_catalog.format('%s ON TABLE %s', \
              x.privilege_type OPERATOR(pg_catalog.||) COALESCE(x.columns, ''), $2), \
            CASE WHEN x.grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid THEN 'PUBLIC' \
              ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(x.grantee)) END, \
            x.is_grantable, \
            CASE WHEN x.grantor OPERATOR(pg_catalog.<>) x.relowner \
              THEN pg_catalog.pg_get_userbyid(x.grantor)::pg_catalog.text END \
          FROM ( \
            SELECT g.grantor, g.grantee, g.privilege_type, g.is_grantable, NULL::pg_catalog.text AS columns, c.relowner \
            FROM pg_catalog.pg_class AS c, pg_catalog.aclexplode(c.relacl) AS g \
            WHERE c.oid OPERATOR(pg_catalog.=) $1 \
            UNION ALL \
            SELECT g.grantor, g.grantee, g.privilege_type, g.is_grantable, \
              ' (' OPERATOR(pg_catalog.||) pg_catalog.quote_ident(a.attname) OPERATOR(pg_catalog.||) ')', c.relowner \
            FROM pg_catalog.pg_class AS c \
            JOIN pg_catalog.pg_attribute AS a ON a.attrelid OPERATOR(pg_catalog.=) c.oid, \
            pg_catalog.aclexplode(a.attacl) AS g \
            WHERE c.oid OPERATOR(pg_catalog.=) $1 \
          ) AS x \
          WHERE x.grantee OPERATOR(pg_catalog.<>) x.relowner \
          AND x.privilege_type OPERATOR(pg_catalog.=) ANY \
            (ARRAY['TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN']::pg_catalog.text[])",
        &[pg_sys::OIDOID, pg_sys::TEXTOID],
    );
    let mut grants = Vec::new();
    SELECT.run(&[table.oid.into_datum(), table.qualified.as_str().into_datum()], |row| {
        let text = |column| row.get::<String>(column).unwrap_or_default();
        grants.push((text(1), text(2), row.get::<bool>(3).unwrap_or(false), row.get::<String>(4)));
    });
    for (privilege, grantee, grantable, grantor) in grants {
        // What others have passed on goes with what they had.
        execute_text(&format!("REVOKE {privilege} FROM {grantee} CASCADE"));
        let option = if grantable { " WITH GRANT OPTION" } else { "" };
        let grant = format!("GRANT {privilege} TO {grantee}{option}");
        match grantor {
            None => undo.grants.push(grant),
            Some(grantor) => undo.passed_on.push((grantor, grant)),
        }
        say!("{privilege} is revoked from {grantee}: policies do not hold for it");
    }
}

/// An index that starts with the tenant column, on every table that has none. One on a partitioned table
/// covers its partitions.
fn index_tree(column: &str, members: &[(Table, Column)], undos: &mut [Undo]) -> Result<()> {
    let before = members.iter().map(|(member, _)| lone_indexes(member.oid)).collect::<Vec<_>>();
    for ((member, found), undo) in members.iter().zip(undos.iter_mut()) {
        if tenant_index(member.oid, found.number).is_some() {
            continue;
        }
        execute_text(&format!("CREATE INDEX ON {} ({})", member.qualified, quote_ident(column)));
        undo.index = tenant_index(member.oid, found.number);
        say!(
            "index {} is created: no index of table \"{}\" started with \"{column}\"",
            undo.index.as_deref().unwrap_or_default(),
            member.display
        );
    }
    for (((member, _), undo), before) in members.iter().zip(undos).zip(before) {
        let after = lone_indexes(member.oid);
        // Its own new index is not among those from before.
        undo.joined_indexes.extend(before.into_iter().filter(|index| !after.contains(index)));
    }
    Ok(())
}

/// The definitions of the indexes that are not part of a parent's.
fn lone_indexes(relation: pg_sys::Oid) -> Vec<String> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT pg_catalog.pg_get_indexdef(i.indexrelid) FROM pg_catalog.pg_index AS i \
          JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) i.indexrelid \
          WHERE i.indrelid OPERATOR(pg_catalog.=) $1 AND NOT c.relispartition",
        &[pg_sys::OIDOID],
    );
    let mut indexes = Vec::new();
    SELECT.run(&[relation.into_datum()], |row| indexes.extend(row.get::<String>(1)));
    indexes
}

/// Whether the index of that name is the table's: another one may have the name by now.
fn is_index_of(relation: pg_sys::Oid, index: &str) -> bool {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT true FROM pg_catalog.pg_index AS i \
          WHERE i.indrelid OPERATOR(pg_catalog.=) $1 \
          AND i.indexrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass($2)::pg_catalog.oid",
        &[pg_sys::OIDOID, pg_sys::TEXTOID],
    );
    SELECT.execute(&[relation.into_datum(), index.into_datum()]) > 0
}

/// The name of a complete index whose first column is the tenant.
fn tenant_index(relation: pg_sys::Oid, column: i16) -> Option<String> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT pg_catalog.quote_ident(n.nspname) OPERATOR(pg_catalog.||) '.' \
            OPERATOR(pg_catalog.||) pg_catalog.quote_ident(c.relname) \
          FROM pg_catalog.pg_index AS i \
          JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) i.indexrelid \
          JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
          WHERE i.indrelid OPERATOR(pg_catalog.=) $1 AND i.indkey[0] OPERATOR(pg_catalog.=) $2 \
          AND i.indpred IS NULL AND i.indisvalid ORDER BY c.oid LIMIT 1",
        &[pg_sys::OIDOID, pg_sys::INT2OID],
    );
    SELECT.first(&[relation.into_datum(), column.into_datum()], |row| row.get(1)).flatten()
}

fn known_undo(relation: pg_sys::Oid) -> Result<Undo> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT p.undo FROM tenant_rls.protected_tables AS p WHERE p.relation OPERATOR(pg_catalog.=) $1",
        &[pg_sys::REGCLASSOID],
    );
    let undo = as_owner(|| SELECT.first(&[relation.into_datum()], |row| row.get::<JsonB>(1)))?.flatten();
    Ok(undo.and_then(|JsonB(value)| serde_json::from_value(value).ok()).unwrap_or_default())
}

fn record(
    table: &Table,
    root: pg_sys::Oid,
    column: &str,
    key: KeyType,
    forced: bool,
    undo: &Undo,
) -> Result<()> {
    static UPSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.protected_tables (relation, root, tenant_column, key_type, forced, undo) \
          VALUES ($1, $2, $3::pg_catalog.name, $4, $5, $6) \
          ON CONFLICT (relation) DO UPDATE SET root = EXCLUDED.root, tenant_column = EXCLUDED.tenant_column, \
          key_type = EXCLUDED.key_type, forced = EXCLUDED.forced, undo = EXCLUDED.undo",
        &[
            pg_sys::REGCLASSOID,
            pg_sys::REGCLASSOID,
            pg_sys::TEXTOID,
            pg_sys::TEXTOID,
            pg_sys::BOOLOID,
            pg_sys::JSONBOID,
        ],
    );
    let undo = JsonB(serde_json::to_value(undo).unwrap_or_default());
    let arguments = [
        table.oid.into_datum(),
        root.into_datum(),
        column.into_datum(),
        key.as_str().into_datum(),
        forced.into_datum(),
        undo.into_datum(),
    ];
    as_owner(|| UPSERT.execute(&arguments))?;
    Ok(())
}

/// Replaces what [`known_undo`] answers.
fn save_undo(relation: pg_sys::Oid, undo: &Undo) -> Result<()> {
    static UPDATE: CachedPlan = CachedPlan::new(
        c"UPDATE tenant_rls.protected_tables AS p SET undo = $2 WHERE p.relation OPERATOR(pg_catalog.=) $1",
        &[pg_sys::REGCLASSOID, pg_sys::JSONBOID],
    );
    let undo = JsonB(serde_json::to_value(undo).unwrap_or_default());
    as_owner(|| UPDATE.execute(&[relation.into_datum(), undo.into_datum()]))?;
    Ok(())
}

fn role_of(name: &str) -> Option<pg_sys::Oid> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: looks the role up; answers InvalidOid for one that does not exist.
    match unsafe { pg_sys::get_role_oid(name.as_ptr(), true) } {
        pg_sys::InvalidOid => None,
        role => Some(role),
    }
}

fn protected_members(root: pg_sys::Oid) -> Result<Vec<pg_sys::Oid>> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT p.relation::pg_catalog.oid FROM tenant_rls.protected_tables AS p \
          WHERE p.root OPERATOR(pg_catalog.=) $1 ORDER BY p.relation OPERATOR(pg_catalog.<>) $1, 1",
        &[pg_sys::REGCLASSOID],
    );
    let mut members = Vec::new();
    as_owner(|| SELECT.run(&[root.into_datum()], |row| members.extend(row.get::<pg_sys::Oid>(1))))?;
    Ok(members)
}

fn unprotect_one(table: &Table) -> Result<()> {
    static DELETE: CachedPlan = CachedPlan::new(
        c"DELETE FROM tenant_rls.protected_tables AS p WHERE p.relation OPERATOR(pg_catalog.=) $1",
        &[pg_sys::REGCLASSOID],
    );
    let Some(known) = table::protected(table.oid)? else { return Ok(()) };
    let undo = known_undo(table.oid)?;
    // First, so that what follows is about a table that nobody guards.
    as_owner(|| DELETE.execute(&[table.oid.into_datum()]))?;
    let (name, column) = (&table.qualified, quote_ident(&known.column));
    for policy in [ISOLATION_POLICY, BOUNDARY_POLICY] {
        execute_text(&format!("DROP POLICY IF EXISTS {} ON {name}", quote_ident(policy)));
    }
    for statement in undo.policies.iter().chain(&undo.grants) {
        execute_text(statement);
    }
    for (grantor, grant) in &undo.passed_on {
        as_table_owner(role_of(grantor).unwrap_or(table.owner), || execute_text(grant));
    }
    if undo.forced {
        execute_text(&format!("ALTER TABLE {name} NO FORCE ROW LEVEL SECURITY"));
    }
    if undo.enabled {
        execute_text(&format!("ALTER TABLE {name} DISABLE ROW LEVEL SECURITY"));
    }
    if let Some(index) = undo.index.as_ref().filter(|index| is_index_of(table.oid, index)) {
        execute_text(&format!("DROP INDEX {index}"));
    }
    // Those of a table that has left its tree are its own again.
    let lone = lone_indexes(table.oid);
    for definition in undo.joined_indexes.iter().filter(|definition| !lone.contains(definition)) {
        execute_text(definition);
    }
    // The column may be gone, or be a partition's, whose parent says whether it is NOT NULL.
    if find_column(table, &known.column).is_ok() {
        if undo.default {
            execute_text(&format!("ALTER TABLE ONLY {name} ALTER COLUMN {column} DROP DEFAULT"));
        }
        let inherits = table::parents(table.oid).into_iter().any(|parent| {
            table::find(parent)
                .and_then(|parent| find_column(&parent, &known.column))
                .is_ok_and(|c| c.not_null)
        });
        if undo.not_null && !inherits {
            execute_text(&format!("ALTER TABLE {name} ALTER COLUMN {column} DROP NOT NULL"));
        } else if !undo.not_null && !inherits {
            // The parent's DROP NOT NULL has reached it.
            set_not_null(table, &column, true);
        }
    }
    Ok(())
}
