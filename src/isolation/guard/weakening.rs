//! What a command may have taken from a protected table.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::super::policy::{BOUNDARY_POLICY, ISOLATION_POLICY, PolicySpec};
use super::super::table::{self, Protected, Table};
use super::super::{deparsed_function, find_column, found_policies, known_undo, row_security as flags};
use super::tree::{has_tenant_column, warn_unprotected};
use super::{Finding, advise, take_back, weigh};
use crate::error::{Error, Result};
use crate::gucs::{self, Watch};
use crate::plan::CachedPlan;
use crate::registry;

const OURS: [&str; 2] = [ISOLATION_POLICY, BOUNDARY_POLICY];

/// ALTER TABLE … DISABLE or NO FORCE ROW LEVEL SECURITY.
pub fn row_security(tag: &str, relation: pg_sys::Oid) -> Result<()> {
    let Some(known) = table::protected(relation)? else { return Ok(()) };
    let (what, why) = match flags(relation) {
        (false, _) => ("disable", "Its rows would be open to whoever has privileges on it."),
        (true, false) if known.forced => (
            "no longer force",
            "Its owner would see the rows of all tenants, as would views and functions of the owner.",
        ),
        _ => return Ok(()),
    };
    let table = table::find(relation)?;
    weigh(
        tag,
        Finding {
            object: table.qualified.clone(),
            to: format!("{what} row level security of protected table \"{}\"", table.display),
            why: why.into(),
            hint: take_back(&table.qualified),
        },
    )
}

/// A command about the column of that name, or about one that it does not name.
pub fn column(tag: &str, relation: pg_sys::Oid, name: Option<&str>) -> Result<()> {
    let Some(known) = table::protected(relation)? else { return Ok(()) };
    if name.is_some_and(|name| name != known.column) {
        return Ok(());
    }
    let table = table::find(relation)?;
    let (what, why) = match find_column(&table, &known.column) {
        Err(Error::NoColumn { .. }) => {
            ("drop or rename", "The registry and the application know it by its name.")
        }
        Err(Error::WrongType { .. }) => {
            ("change the type of", "Tenants are named with uuid, bigint or integer.")
        }
        Err(error) => return Err(error),
        Ok(column) if column.key != known.key => {
            ("change the type of", "The policies compare it with another.")
        }
        Ok(column) if !column.not_null => (
            "take NOT NULL from",
            "A row without a tenant belongs to nobody, and foreign keys do not check it.",
        ),
        Ok(column)
            if known_undo(relation)?.default && !defaults_to_tenant(relation, column.number, &known)? =>
        {
            (
                "change the default of",
                "An INSERT that does not name the tenant would be refused, or get another.",
            )
        }
        Ok(_) => return Ok(()),
    };
    weigh(
        tag,
        Finding {
            object: table.qualified.clone(),
            to: format!("{what} tenant column \"{}\" of protected table \"{}\"", known.column, table.display),
            why: why.into(),
            hint: take_back(&table.qualified),
        },
    )
}

/// Whether the column has the default that tenant_protect gives.
fn defaults_to_tenant(relation: pg_sys::Oid, column: i16, known: &Protected) -> Result<bool> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT true FROM pg_catalog.pg_attrdef AS d \
          WHERE d.adrelid OPERATOR(pg_catalog.=) $1 AND d.adnum OPERATOR(pg_catalog.=) $2 \
          AND pg_catalog.pg_get_expr(d.adbin, d.adrelid) OPERATOR(pg_catalog.=) $3",
        &[pg_sys::OIDOID, pg_sys::INT2OID, pg_sys::TEXTOID],
    );
    let function = deparsed_function(&registry::extension_schema()?, known.key);
    Ok(SELECT.execute(&[relation.into_datum(), column.into_datum(), function.into_datum()]) > 0)
}

/// ADD COLUMN, to a table that was there.
pub fn added(tag: &str, relation: pg_sys::Oid, column: i16, has_default: bool) -> Result<()> {
    // What calls one of ours depends on it.
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attrdef AS d \
          JOIN pg_catalog.pg_attribute AS a \
            ON a.attrelid OPERATOR(pg_catalog.=) d.adrelid AND a.attnum OPERATOR(pg_catalog.=) d.adnum \
          JOIN pg_catalog.pg_depend AS p ON p.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_attrdef'::pg_catalog.regclass \
            AND p.objid OPERATOR(pg_catalog.=) d.oid \
            AND p.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass \
          JOIN pg_catalog.pg_proc AS f ON f.oid OPERATOR(pg_catalog.=) p.refobjid \
          JOIN pg_catalog.pg_extension AS e ON e.extnamespace OPERATOR(pg_catalog.=) f.pronamespace \
          WHERE d.adrelid OPERATOR(pg_catalog.=) $1 AND d.adnum OPERATOR(pg_catalog.=) $2 \
          AND e.extname OPERATOR(pg_catalog.=) 'tenant_rls' \
          AND f.proname OPERATOR(pg_catalog.=) ANY (ARRAY[ \
            'required_tenant', 'required_tenant_key', 'current_tenant', 'current_tenant_key']::pg_catalog.name[])",
        &[pg_sys::OIDOID, pg_sys::INT2OID],
    );
    let stamped = has_default
        .then(|| SELECT.first(&[relation.into_datum(), column.into_datum()], |row| row.get::<String>(1)))
        .flatten()
        .flatten();
    if let Some(name) = stamped {
        let table = table::find(relation)?;
        return weigh(tag, Finding {
            object: table.qualified.clone(),
            to: format!("add column \"{name}\" to table \"{}\" with the tenant as its default", table.display),
            why: "Every row that is there would get the tenant of this session.".into(),
            hint: "Add the column without a default, fill it, then call tenant_protect, which sets the default.".into(),
        });
    }
    if gucs::auto_protect() == Watch::Off || registry::is_protected(relation) || !has_tenant_column(relation)
    {
        return Ok(());
    }
    // SAFETY: a syscache lookup; the name is a C string.
    let tenant = unsafe { pg_sys::get_attnum(relation, c"tenant_id".as_ptr()) };
    // Its rows have no tenant yet: it is protected when they do, and by nobody before.
    if tenant == column && table::parents(relation).is_empty() {
        let table = table::find(relation)?;
        if super::super::check_kind(&table).is_ok() {
            warn_unprotected(&table);
        }
    }
    Ok(())
}

/// A constraint that was added to a table that was there, or validated.
pub fn constraint(tag: &str, constraint: pg_sys::Oid) -> Result<()> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT c.conrelid, c.conname::pg_catalog.text FROM pg_catalog.pg_constraint AS c \
          WHERE c.oid OPERATOR(pg_catalog.=) $1 AND c.contype OPERATOR(pg_catalog.=) 'f' AND c.convalidated",
        &[pg_sys::OIDOID],
    );
    let valid =
        SELECT.first(&[constraint.into_datum()], |row| row.get::<pg_sys::Oid>(1).zip(row.get::<String>(2)));
    let Some((relation, name)) = valid.flatten() else { return Ok(()) };
    if !registry::is_protected(relation) || !registry::policies_hold(relation, registry::current_role()) {
        return Ok(());
    }
    validated(tag, &table::find(relation)?, &name)
}

fn validated(tag: &str, table: &Table, name: &str) -> Result<()> {
    let role = registry::role_name(registry::current_role());
    weigh(tag, Finding {
        object: table.qualified.clone(),
        to: format!(
            "validate foreign key \"{name}\" of protected table \"{}\" as role \"{role}\"",
            table.display
        ),
        why: "The policies hold for the role: the rows of one tenant would be checked, and the constraint marked valid for those of all.".into(),
        hint: "Do it as a superuser or a role with BYPASSRLS. ADD FOREIGN KEY … NOT VALID checks nothing, and passes.".into(),
    })
}

/// Foreign keys that a protected table has got, and that were validated, by becoming a partition.
pub fn inherited(tag: &str, relation: pg_sys::Oid) -> Result<()> {
    // One that was there before keeps its dependency on the columns; ATTACH gives it a parent, and checks nothing.
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT DISTINCT c.conname::pg_catalog.text, d.xmin FROM pg_catalog.pg_constraint AS c \
          JOIN pg_catalog.pg_depend AS d ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_constraint'::pg_catalog.regclass \
            AND d.objid OPERATOR(pg_catalog.=) c.oid AND d.deptype OPERATOR(pg_catalog.=) 'a' \
            AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass \
            AND d.refobjid OPERATOR(pg_catalog.=) c.conrelid \
          WHERE c.conrelid OPERATOR(pg_catalog.=) $1 AND c.contype OPERATOR(pg_catalog.=) 'f' AND c.convalidated \
          AND c.conparentid OPERATOR(pg_catalog.<>) 0::pg_catalog.oid ORDER BY 1",
        &[pg_sys::OIDOID],
    );
    for member in table::tree(relation) {
        if !registry::is_protected(member) || !registry::policies_hold(member, registry::current_role()) {
            continue;
        }
        let mut keys = Vec::new();
        SELECT.run(&[member.into_datum()], |row| {
            keys.extend(row.get::<String>(1).zip(row.get::<pg_sys::TransactionId>(2)));
        });
        // SAFETY: compares a number with those of the transaction.
        let is_new = |by| unsafe { pg_sys::TransactionIdIsCurrentTransactionId(by) };
        if let Some((name, _)) = keys.iter().find(|(_, by)| is_new(*by)) {
            validated(tag, &table::find(member)?, name)?;
        }
    }
    Ok(())
}

/// A table that belongs, or is to belong, to another owner.
pub fn given(tag: &str, relation: pg_sys::Oid, owner: pg_sys::Oid) -> Result<()> {
    if !registry::is_protected(relation) || !registry::may_act(owner)? {
        return Ok(());
    }
    let table = table::find(relation)?;
    weigh(tag, Finding {
        object: table.qualified,
        to: format!("give protected table \"{}\" to role \"{}\"", table.display, registry::role_name(owner)),
        why: "The role acts for tenants, and an owner can take the protection back.".into(),
        hint: "Let a role own it that no tenant_grant names, and GRANT SELECT, INSERT, UPDATE, DELETE to the application.".into(),
    })
}

/// A policy that was made, changed or renamed; `name` is what it was called before.
pub fn policy(tag: &str, policy: pg_sys::Oid, name: &str, made: bool) -> Result<()> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT p.polrelid, p.polpermissive FROM pg_catalog.pg_policy AS p WHERE p.oid OPERATOR(pg_catalog.=) $1",
        &[pg_sys::OIDOID],
    );
    let found = SELECT.first(&[policy.into_datum()], |row| row.get::<pg_sys::Oid>(1).zip(row.get::<bool>(2)));
    let Some((relation, permissive)) = found.flatten() else { return Ok(()) };
    let Some(known) = table::protected(relation)? else { return Ok(()) };
    if OURS.contains(&name) {
        return policies(tag, &known, &[name]);
    }
    if made && permissive {
        advise(
            format!(
                "permissive policy \"{name}\" of protected table \"{}\" has no effect",
                table::find(relation)?.display
            ),
            "Policy tenant_isolation lets the rows of the tenant through already, and tenant_boundary no others.",
            "Use AS RESTRICTIVE for a policy that narrows.".into(),
        );
    }
    Ok(())
}

/// Judges which of our policies, of these, are not what they must be.
fn policies(tag: &str, known: &Protected, names: &[&str]) -> Result<()> {
    let table = table::find(known.relation)?;
    let schema = registry::extension_schema()?;
    let found =
        found_policies(&table, &PolicySpec { schema: &schema, column: &known.column, key: known.key });
    for name in names {
        let what = match found.iter().find(|found| found.name == *name) {
            Some(found) if found.right => continue,
            Some(_) => "change",
            None => "drop or rename",
        };
        weigh(
            tag,
            Finding {
                object: table.qualified.clone(),
                to: format!("{what} policy \"{name}\" of protected table \"{}\"", table.display),
                why: "The policy is what keeps the rows of tenants apart.".into(),
                hint: take_back(&table.qualified),
            },
        )?;
    }
    Ok(())
}

/// What a command has dropped: our policies, of tables that are still there.
pub fn dropped(tag: &str) -> Result<()> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT c.oid, o.address_names[3] FROM pg_catalog.pg_event_trigger_dropped_objects() AS o \
          JOIN pg_catalog.pg_namespace AS n ON n.nspname OPERATOR(pg_catalog.=) o.address_names[1] \
          JOIN pg_catalog.pg_class AS c \
            ON c.relnamespace OPERATOR(pg_catalog.=) n.oid AND c.relname OPERATOR(pg_catalog.=) o.address_names[2] \
          WHERE o.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_policy'::pg_catalog.regclass ORDER BY 1, 2",
        &[],
    );
    let mut policies_gone = Vec::new();
    SELECT.run(&[], |row| policies_gone.extend(row.get::<pg_sys::Oid>(1).zip(row.get::<String>(2))));
    for (relation, name) in policies_gone {
        let Some(known) = table::protected(relation)? else { continue };
        if OURS.contains(&name.as_str()) {
            // With the column its policies go.
            if find_column(&table::find(relation)?, &known.column).is_err() {
                column(tag, relation, Some(&known.column))?;
            } else {
                policies(tag, &known, &[&name])?;
            }
        }
    }
    Ok(())
}

/// GRANT of privileges that no policy holds for.
pub fn granted(tag: &str, relations: &[pg_sys::Oid], grantees: &[pg_sys::Oid]) -> Result<()> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT DISTINCT x.privilege_type, CASE WHEN x.grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid THEN 'PUBLIC' \
            ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(x.grantee)) END \
          FROM ( \
            SELECT g.grantee, g.privilege_type, c.relowner \
            FROM pg_catalog.pg_class AS c, pg_catalog.aclexplode(c.relacl) AS g \
            WHERE c.oid OPERATOR(pg_catalog.=) $1 \
            UNION ALL \
            SELECT g.grantee, g.privilege_type, c.relowner \
            FROM pg_catalog.pg_class AS c \
            JOIN pg_catalog.pg_attribute AS a ON a.attrelid OPERATOR(pg_catalog.=) c.oid, \
            pg_catalog.aclexplode(a.attacl) AS g \
            WHERE c.oid OPERATOR(pg_catalog.=) $1 \
          ) AS x \
          WHERE x.grantee::pg_catalog.int8 OPERATOR(pg_catalog.=) ANY ($2) AND x.grantee OPERATOR(pg_catalog.<>) x.relowner \
          AND x.privilege_type OPERATOR(pg_catalog.=) ANY \
            (ARRAY['TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN']::pg_catalog.text[]) \
          ORDER BY 1 DESC, 2",
        &[pg_sys::OIDOID, pg_sys::INT8ARRAYOID],
    );
    // As an oid, PUBLIC would be NULL.
    let grantees: Vec<i64> = grantees.iter().map(|grantee| grantee.to_u32().into()).collect();
    for relation in relations.iter().filter(|relation| registry::is_protected(**relation)) {
        let mut found = Vec::new();
        SELECT.run(&[relation.into_datum(), grantees.clone().into_datum()], |row| {
            found.extend(row.get::<String>(1).zip(row.get::<String>(2)));
        });
        for (privilege, grantee) in found {
            let table = table::find(*relation)?;
            weigh(
                tag,
                Finding {
                    object: table.qualified.clone(),
                    to: format!("grant {privilege} on protected table \"{}\" to {grantee}", table.display),
                    why: "Policies do not hold for it: it reaches the rows of all tenants.".into(),
                    hint: "GRANT SELECT, INSERT, UPDATE, DELETE instead of ALL.".into(),
                },
            )?;
        }
    }
    Ok(())
}
