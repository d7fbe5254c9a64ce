//! Making a table right: what its protection leaves to its keys, and protecting it while it is written to.
//!
//! Both functions find their statements with one query each, over catalogs alone. What has to look at rows does
//! so with the rights of the table's owner and its policies off, as foreign key checks do: validated under the
//! policies, a foreign key would be checked for one tenant and marked valid for all.

use std::collections::HashMap;
use std::ffi::CStr;

use pgrx::prelude::*;
use pgrx::{name, pg_sys};

use super::table::{self, Table};
use super::{check_kind, check_parents, deparsed, find_column};
use crate::error::{Error, Result, or_raise};
use crate::plan::{CachedPlan, Snapshot, as_owner, as_table_owner, execute_text, read, run_text};
use crate::registry;

/// Repairs may uncover others: a partition that is protected now has keys of its own.
const ROUNDS: usize = 8;

struct Step {
    /// `None` for what no statement can repair.
    statement: Option<String>,
    why: String,
    /// The table's owner, with whose rights and without policies a foreign key is added and validated.
    runner: Option<pg_sys::Oid>,
    /// What counts the rows that refer to another tenant.
    crossing: Option<String>,
    /// Such rows stand in its way.
    waits: bool,
    /// Whom to count as.
    reader: Option<pg_sys::Oid>,
    one_owner: bool,
    may: bool,
    owner: String,
}

type Reported = (i32, Option<String>, String);

#[pg_extern(sql = false)]
fn tenant_repair(
    target: Option<pg_sys::Oid>,
    apply: Option<bool>,
) -> TableIterator<'static, (name!(step, i32), name!(statement, Option<String>), name!(why, String))> {
    let repair = || {
        let target = table::find(target.ok_or(Error::Null("the table"))?)?;
        let apply = apply.ok_or(Error::Null("apply"))?;
        target.check_owner()?;
        let Some(root) = protected_root(target.oid)? else {
            return Err(Error::NotProtected { relation: target.display });
        };
        let root = table::find(root)?;
        root.check_owner()?;
        if apply { repair_tree(&root) } else { describe(&root) }
    };
    TableIterator::new(or_raise(repair()))
}

/// The root of the tree that the table is protected in, or will be: a new partition is not protected yet.
fn protected_root(relation: pg_sys::Oid) -> Result<Option<pg_sys::Oid>> {
    if let Some(known) = table::protected(relation)? {
        return Ok(Some(known.root));
    }
    for parent in table::parents(relation) {
        if let Some(root) = protected_root(parent)? {
            return Ok(Some(root));
        }
    }
    Ok(None)
}

fn describe(root: &Table) -> Result<Vec<Reported>> {
    let mut counted = Counted::default();
    let mut reported = Vec::new();
    for step in steps(root)? {
        let (_, why) = counted.judge(&step);
        report(&mut reported, step.statement, why);
    }
    Ok(reported)
}

fn repair_tree(root: &Table) -> Result<Vec<Reported>> {
    let mut reported = Vec::new();
    let mut left = Vec::new();
    for _ in 0..ROUNDS {
        let before = reported.len();
        let mut counted = Counted::default();
        left.clear();
        for step in steps(root)? {
            let (possible, why) = counted.judge(&step);
            match step.statement {
                Some(statement) if possible => {
                    // In one transaction there is no CONCURRENTLY.
                    let statement =
                        statement.replacen("CREATE UNIQUE INDEX CONCURRENTLY ", "CREATE UNIQUE INDEX ", 1);
                    match step.runner {
                        Some(owner) if step.one_owner => as_table_owner(owner, || execute_text(&statement)),
                        // Between two owners a key is added without looking at a row.
                        _ => execute_text(&statement),
                    };
                    report(&mut reported, Some(statement), why);
                }
                statement => left.push((statement, why)),
            }
        }
        if reported.len() == before {
            break;
        }
    }
    for (statement, why) in left {
        report(&mut reported, statement, format!("not done: {why}"));
    }
    Ok(reported)
}

fn report(reported: &mut Vec<Reported>, statement: Option<String>, why: String) {
    reported.push((reported.len() as i32 + 1, statement, why));
}

/// Rows that refer to another tenant, by the statement that counts them.
#[derive(Default)]
struct Counted(HashMap<String, Option<i64>>);

impl Counted {
    /// Whether the step can be done now, and why it is to be done, or why not.
    fn judge(&mut self, step: &Step) -> (bool, String) {
        if !step.may {
            return (false, format!("{}; by the owner, {}", step.why, step.owner));
        }
        let (Some(crossing), Some(reader)) = (&step.crossing, step.reader) else {
            return (step.statement.is_some(), step.why.clone());
        };
        let rows = *self.0.entry(crossing.clone()).or_insert_with(|| count(crossing, reader, step.one_owner));
        match rows {
            Some(0) => (true, step.why.clone()),
            Some(rows) => {
                (!step.waits, format!("{}; rows that refer to a row of another tenant: {rows}", step.why))
            }
            None => (
                !step.waits,
                format!(
                    "{}; the tables have two owners: a superuser who trusts both counts the rows that cross, and runs the statement",
                    step.why
                ),
            ),
        }
    }
}

/// The planner evaluates expressions of both owners: with one, it gets that one's rights; with two, nobody counts.
fn count(sql: &str, reader: pg_sys::Oid, one_owner: bool) -> Option<i64> {
    let mut rows = None;
    if one_owner {
        as_table_owner(reader, || read(Snapshot::Latest, sql, |row| rows = row.get::<i64>(1)));
    }
    rows
}

fn steps(root: &Table) -> Result<Vec<Step>> {
    static PROTECTED: CachedPlan = CachedPlan::new(
        c"SELECT p.relation::pg_catalog.oid, p.tenant_column::pg_catalog.text, p.forced FROM tenant_rls.protected_tables AS p",
        &[],
    );
    let (mut relations, mut columns, mut force) = (Vec::new(), Vec::new(), true);
    as_owner(|| {
        PROTECTED.run(&[], |row| {
            let Some((relation, column)) = row.get::<pg_sys::Oid>(1).zip(row.get::<String>(2)) else {
                return;
            };
            if relation == root.oid {
                force = row.get(3).unwrap_or(true);
            }
            relations.push(relation);
            columns.push(column);
        })
    })?;
    let known =
        table::protected(root.oid)?.ok_or_else(|| Error::NotProtected { relation: root.display.clone() })?;
    let schema = registry::extension_schema()?;
    let protect = protect_call(root, &schema, &known.column, force);
    let arguments = [
        root.oid.into_datum(),
        relations.into_datum(),
        columns.into_datum(),
        protect.into_datum(),
        deparsed(&known.column, &schema, known.key).into_datum(),
    ];
    let types = [pg_sys::OIDOID, pg_sys::OIDARRAYOID, pg_sys::TEXTARRAYOID, pg_sys::TEXTOID, pg_sys::TEXTOID];
    let mut steps = Vec::new();
    run_text(include_str!("repair/steps.sql"), &types, &arguments, |row| {
        steps.push(Step {
            statement: row.get(1),
            why: row.get(2).unwrap_or_default(),
            runner: row.get(3),
            crossing: row.get(4),
            waits: row.get(5).unwrap_or(false),
            reader: row.get(6),
            one_owner: row.get(7).unwrap_or(false),
            may: row.get(8).unwrap_or(false),
            owner: row.get(9).unwrap_or_default(),
        });
    });
    Ok(steps)
}

/// The call that protects the table, as SQL.
fn protect_call(root: &Table, schema: &str, column: &str, force: bool) -> String {
    let mut call = String::new();
    run_text(
        "SELECT pg_catalog.format('%I.tenant_protect(%L, %L, %s)', $1, $2, $3, $4::pg_catalog.text)",
        &[pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::BOOLOID],
        &[schema.into_datum(), root.qualified.as_str().into_datum(), column.into_datum(), force.into_datum()],
        |row| call = row.get(1).unwrap_or_default(),
    );
    call
}

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn tenant_protect_plan(
    target: Option<pg_sys::Oid>,
    tenant_column: Option<&CStr>,
) -> TableIterator<
    'static,
    (
        name!(step, i32),
        name!(statement, String),
        name!(lock, String),
        name!(in_transaction, bool),
        name!(why, String),
    ),
> {
    let plan = || {
        let root = table::find(target.ok_or(Error::Null("the table"))?)?;
        let column = tenant_column.ok_or(Error::Null("the tenant column"))?.to_string_lossy().into_owned();
        check_kind(&root)?;
        root.check_owner()?;
        check_parents(&root)?;
        let mut is_protected = true;
        for member in table::tree(root.oid) {
            find_column(&table::find(member)?, &column)?;
            is_protected &= table::protected(member)?.is_some();
        }
        let protect = protect_call(&root, &registry::extension_schema()?, &column, true);
        let arguments =
            [root.oid.into_datum(), column.into_datum(), protect.into_datum(), is_protected.into_datum()];
        let types = [pg_sys::OIDOID, pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::BOOLOID];
        let mut steps = Vec::new();
        run_text(include_str!("repair/plan.sql"), &types, &arguments, |row| {
            let text = |column| row.get::<String>(column).unwrap_or_default();
            steps.push((steps.len() as i32 + 1, text(1), text(2), row.get(3).unwrap_or(false), text(4)));
        });
        Ok(steps)
    };
    TableIterator::new(or_raise(plan()))
}
