//! Views, rules and functions that read protected tables with the rights of their owner.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::super::table;
use super::{Finding, advise, weigh};
use crate::error::Result;
use crate::plan::CachedPlan;
use crate::registry;

/// The relation of a rule.
pub fn of_rule(rule: pg_sys::Oid) -> Option<pg_sys::Oid> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT r.ev_class FROM pg_catalog.pg_rewrite AS r WHERE r.oid OPERATOR(pg_catalog.=) $1",
        &[pg_sys::OIDOID],
    );
    SELECT.first(&[rule.into_datum()], |row| row.get(1)).flatten()
}

/// Whether the relation is a view.
pub fn is_view(relation: pg_sys::Oid) -> bool {
    // SAFETY: a syscache lookup.
    unsafe { pg_sys::get_rel_relkind(relation) as u8 == pg_sys::RELKIND_VIEW }
}

/// A relation that belongs, or is to belong, to another owner. Who may own a copy is anybody but an application.
pub fn given(tag: &str, oid: pg_sys::Oid, owner: pg_sys::Oid) -> Result<()> {
    // SAFETY: a syscache lookup.
    let kind = unsafe { pg_sys::get_rel_relkind(oid) } as u8;
    if kind == pg_sys::RELKIND_MATVIEW && !registry::may_act(owner)? {
        return Ok(());
    }
    read_as(tag, oid, Some(owner))
}

/// A relation that has been made or changed, and may read protected tables by its rules.
pub fn relation(tag: &str, relation: pg_sys::Oid) -> Result<()> {
    read_as(tag, relation, None)
}

/// The same with the rights of a role, if it is not the owner's.
fn read_as(tag: &str, relation: pg_sys::Oid, role: Option<pg_sys::Oid>) -> Result<()> {
    let read = read_by_rules(relation, !is_invoker(relation));
    if read.is_empty() {
        return Ok(());
    }
    let reader = table::find(relation)?;
    // A copy is one whoever reads it; a view of a view reads as the owner of the inner one, which was judged by itself.
    let bases = protected_below(read, if reader.kind == 'm' { Through::Every } else { Through::Invokers });
    if bases.is_empty() {
        return Ok(());
    }
    if reader.persistence == 't' || reader.of_extension {
        return Ok(());
    }
    let base = |oid: pg_sys::Oid| table::find(oid).map(|base| base.display);
    if reader.kind == 'm' {
        return weigh(
            tag,
            Finding {
                object: reader.qualified.clone(),
                to: format!(
                    "make materialized view \"{}\" of protected table \"{}\"",
                    reader.display,
                    base(bases[0])?
                ),
                why: "It holds the rows that its owner saw when it was refreshed, and has no policies."
                    .into(),
                hint: "Use a view WITH (security_invoker = true), or a table that tenant_protect protects."
                    .into(),
            },
        );
    }
    let role = role.unwrap_or(reader.owner);
    let (owner, what, reads) = match reader.kind {
        'v' => (registry::role_name(role), "view", "reads"),
        _ => (registry::role_name(role), "the rules of", "read"),
    };
    let hint = if reader.kind == 'v' {
        format!(
            "Make it WITH (security_invoker = true), or ALTER VIEW {} SET (security_invoker = true).",
            reader.qualified
        )
    } else {
        "Use a trigger, which has the rights of whoever writes.".into()
    };
    match bases.iter().find(|base| !registry::policies_hold(**base, role)) {
        Some(open) => weigh(
            tag,
            Finding {
                object: reader.qualified.clone(),
                to: format!(
                    "let {what} \"{}\" read protected table \"{}\" with the rights of role \"{owner}\"",
                    reader.display,
                    base(*open)?
                ),
                why: "The policies do not hold for that role: the rows of all tenants would be shown.".into(),
                hint,
            },
        ),
        None => {
            advise(
                format!(
                    "{what} \"{}\" {reads} protected table \"{}\" with the rights of role \"{owner}\"",
                    reader.display,
                    base(bases[0])?
                ),
                "The policies hold for that role now. With another owner, or another attribute of this one, they might not.",
                hint,
            );
            Ok(())
        }
    }
}

/// A function or procedure that has been made or changed, or that somebody may call now; with a role, one that is to
/// belong to it.
pub fn routine(tag: &str, routine: pg_sys::Oid, to: Option<pg_sys::Oid>) -> Result<()> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT p.oid::pg_catalog.regprocedure::pg_catalog.text, p.proowner, ARRAY( \
            SELECT g.grantee FROM pg_catalog.aclexplode( \
              COALESCE(p.proacl, pg_catalog.acldefault('f', p.proowner))) AS g \
            WHERE g.grantee OPERATOR(pg_catalog.<>) p.proowner) \
          FROM pg_catalog.pg_proc AS p \
          WHERE p.oid OPERATOR(pg_catalog.=) $1 AND p.prosecdef \
          AND p.prorettype OPERATOR(pg_catalog.<>) ALL (ARRAY[ \
            'pg_catalog.trigger'::pg_catalog.regtype, 'pg_catalog.event_trigger'::pg_catalog.regtype]::pg_catalog.oid[])",
        &[pg_sys::OIDOID],
    );
    // Only a body in the form of the SQL standard (BEGIN ATOMIC) depends on what it reads.
    static READS: CachedPlan = CachedPlan::new(
        c"SELECT DISTINCT d.refobjid FROM pg_catalog.pg_depend AS d \
          WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass \
          AND d.objid OPERATOR(pg_catalog.=) $1 \
          AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass",
        &[pg_sys::OIDOID],
    );
    let found = SELECT.first(&[routine.into_datum()], |row| {
        (
            row.get::<String>(1).unwrap_or_default(),
            row.get::<pg_sys::Oid>(2).unwrap_or(pg_sys::InvalidOid),
            row.get::<Vec<pg_sys::Oid>>(3).unwrap_or_default(),
        )
    });
    let Some((name, owner, grantees)) = found else { return Ok(()) };
    let owner = to.unwrap_or(owner);
    let mut read = Vec::new();
    READS.run(&[routine.into_datum()], |row| read.extend(row.get::<pg_sys::Oid>(1)));
    let role = registry::role_name(owner);
    let hint = format!(
        "Make it SECURITY INVOKER, give it to a role that the policies hold for, or REVOKE EXECUTE ON ROUTINE {name} FROM PUBLIC."
    );
    if let Some(open) = protected_below(read, Through::Invokers)
        .into_iter()
        .find(|base| !registry::policies_hold(*base, owner))
    {
        return weigh(
            tag,
            Finding {
                object: name.clone(),
                to: format!(
                    "let function {name} read protected table \"{}\" with the rights of role \"{role}\"",
                    table::find(open)?.display
                ),
                why:
                    "The policies do not hold for that role: the function would show the rows of all tenants."
                        .into(),
                hint,
            },
        );
    }
    if !registry::rights(owner)?.bypasses || !registry::any_protected() {
        return Ok(());
    }
    for grantee in grantees {
        if grantee == pg_sys::InvalidOid || registry::may_act(grantee)? {
            let caller =
                if grantee == pg_sys::InvalidOid { "PUBLIC".into() } else { registry::role_name(grantee) };
            advise(
                format!("function {name} runs with the rights of role \"{role}\", and {caller} may call it"),
                "The policies do not hold for that role. What the function reads cannot be seen from outside.",
                hint,
            );
            break;
        }
    }
    Ok(())
}

/// What the rules of a relation name: all of them with `definer`, else those that are not its SELECT.
fn read_by_rules(relation: pg_sys::Oid, definer: bool) -> Vec<pg_sys::Oid> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT DISTINCT d.refobjid FROM pg_catalog.pg_rewrite AS r \
          JOIN pg_catalog.pg_depend AS d ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_rewrite'::pg_catalog.regclass \
            AND d.objid OPERATOR(pg_catalog.=) r.oid \
            AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass \
            AND d.refobjid OPERATOR(pg_catalog.<>) r.ev_class \
          WHERE r.ev_class OPERATOR(pg_catalog.=) $1 AND ($2 OR r.ev_type OPERATOR(pg_catalog.<>) '1')",
        &[pg_sys::OIDOID, pg_sys::BOOLOID],
    );
    let mut read = Vec::new();
    SELECT.run(&[relation.into_datum(), definer.into_datum()], |row| read.extend(row.get::<pg_sys::Oid>(1)));
    read
}

/// Whether a view is read with the rights of its reader.
fn is_invoker(relation: pg_sys::Oid) -> bool {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT true FROM pg_catalog.pg_class AS c, pg_catalog.pg_options_to_table(c.reloptions) AS x \
          WHERE c.oid OPERATOR(pg_catalog.=) $1 AND x.option_name OPERATOR(pg_catalog.=) 'security_invoker' \
          AND x.option_value::pg_catalog.bool",
        &[pg_sys::OIDOID],
    );
    SELECT.execute(&[relation.into_datum()]) > 0
}

/// The views that [`protected_below`] looks through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Through {
    Every,
    Invokers,
}

/// The protected tables among these relations, and below the views among them.
fn protected_below(mut read: Vec<pg_sys::Oid>, through: Through) -> Vec<pg_sys::Oid> {
    let mut bases = Vec::new();
    let mut at = 0;
    while let Some(relation) = read.get(at).copied() {
        at += 1;
        if registry::is_protected(relation) {
            bases.push(relation);
        } else if through == Through::Every || is_invoker(relation) {
            for below in read_by_rules(relation, true) {
                if !read.contains(&below) {
                    read.push(below);
                }
            }
        }
    }
    bases
}
