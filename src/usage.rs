//! What the usage views need beyond SQL.
//!
//! # Lock protocol
//!
//! Views wait for nobody. Closing periods takes rows that nobody has locked, and keeps them until the transaction ends: who
//! settles a reservation of such a period meanwhile waits.

mod counters;

use std::collections::HashMap;

use pgrx::prelude::*;
use pgrx::{AnyNumeric, Uuid, pg_sys};

use crate::context;
use crate::error::{Error, Result, or_raise};
use crate::isolation::rows;
use crate::isolation::table::{self, Protected, Table};
use crate::plan::{CachedPlan, Snapshot, as_owner, read};
use crate::quota::{self, gauge, period};
use crate::registry;
use crate::tenant::TenantId;

/// Whether the role sees the usage of all tenants.
#[pg_extern(sql = false)]
fn sees_all() -> bool {
    registry::accept_invalidations();
    or_raise(registry::rights(registry::acting_role())).sees_all
}

/// Refuses the usage of a tenant that the session does not act for.
fn check_visible(tenant: Option<TenantId>) -> Result<()> {
    registry::accept_invalidations();
    if registry::rights(registry::acting_role())?.sees_all {
        return Ok(());
    }
    let own = context::held()?.map(|tenant| tenant.id);
    if tenant.is_some() && own == tenant {
        return Ok(());
    }
    Err(Error::NotPermitted {
        what: "permission denied for the usage of other tenants".into(),
        hint: "Operators and members of pg_read_all_stats see all tenants.",
    })
}

fn instant(unix: i64) -> Option<TimestampWithTimeZone> {
    // An unbounded window has no start and no end.
    if unix == period::INFINITY || unix == period::NEG_INFINITY {
        return None;
    }
    TimestampWithTimeZone::try_from(period::to_postgres(unix)).ok()
}

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn usage_of(
    tenant: Option<Uuid>,
) -> TableIterator<
    'static,
    (
        name!(resource, String),
        name!(period_start, Option<TimestampWithTimeZone>),
        name!(resets_at, Option<TimestampWithTimeZone>),
        name!(used, i64),
        name!(held, i64),
        name!(quota_limit, Option<i64>),
        name!(remaining, Option<i64>),
        name!(percent_used, Option<AnyNumeric>),
        name!(enforcement, String),
        name!(mode, String),
    ),
> {
    let rows = || {
        let id = tenant.map(|id| TenantId::from_bytes(*id.as_bytes()));
        check_visible(id)?;
        let Some(tenant) = id.map(registry::tenant).transpose()?.flatten() else { return Ok(Vec::new()) };
        let mut rows = Vec::new();
        for resource in registry::limited_resources(&tenant)? {
            let key = quota::Key::of(tenant.clone(), &resource)?;
            let now = quota::peek(&key)?;
            rows.push((
                resource.to_string(),
                instant(now.window.start),
                instant(now.window.end),
                now.used,
                now.held,
                now.limit,
                now.verdict.remaining,
                now.limit.and_then(|limit| percent(now.used, limit)),
                now.enforcement.as_str().to_string(),
                now.mode.into_owned(),
            ));
        }
        Ok(rows)
    };
    TableIterator::new(or_raise(rows()))
}

/// Per cent with one decimal; of a limit of 0 there is no per cent unless something is used.
fn percent(used: i64, limit: i64) -> Option<AnyNumeric> {
    let tenths = match (used, limit) {
        (0, 0) => 0,
        (_, 0) => return None,
        _ => i128::from(used) * 1000 / i128::from(limit),
    };
    AnyNumeric::try_from(format!("{}.{}", tenths / 10, tenths % 10).as_str()).ok()
}

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn storage_of(
    tenant: Option<Uuid>,
) -> TableIterator<
    'static,
    (name!(owner_id, Uuid), name!(target, pg_sys::Oid), name!(row_count, i64), name!(total_bytes, i64)),
> {
    let rows = || {
        let id = tenant.map(|id| TenantId::from_bytes(*id.as_bytes()));
        check_visible(id)?;
        let mut found = Vec::new();
        for (table, protected) in roots()? {
            for (name, size) in rows::measure(&table, &protected, id, Snapshot::Active)? {
                if let Some(owner) = name.tenant()? {
                    found.push((Uuid::from_bytes(*owner.as_bytes()), table.oid, size.rows, size.bytes));
                }
            }
        }
        Ok(found)
    };
    TableIterator::new(or_raise(rows()))
}

/// The roots of the protected trees whose rows the session may have counted, in the order of their names.
///
/// Whoever owns a table can keep all others from counting it: by a lock, or by code in the condition of an index. So a
/// table of a role that itself is one of a tenant's is counted only for those who have joined that role, superusers not
/// excepted.
fn roots() -> Result<Vec<(Table, Protected)>> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT p.relation::pg_catalog.oid FROM tenant_rls.protected_tables AS p \
          JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) p.relation \
          WHERE p.relation OPERATOR(pg_catalog.=) p.root ORDER BY c.relname, c.oid",
        &[],
    );
    let mut found = Vec::new();
    as_owner(|| SELECT.run(&[], |row| found.extend(row.get::<pg_sys::Oid>(1))))?;
    let role = registry::acting_role();
    let mut counted = HashMap::new();
    let mut roots = Vec::new();
    for relation in found {
        let Some(protected) = table::protected(relation)? else { continue };
        let table = table::find(relation)?;
        let is_counted = match counted.get(&table.owner) {
            Some(known) => *known,
            None => {
                // SAFETY: looks role memberships up; both are only numbers to it.
                let joined = unsafe { pg_sys::is_member_of_role_nosuper(role, table.owner) };
                *counted.entry(table.owner).or_insert(joined || !is_of_tenants(table.owner)?)
            }
        };
        if is_counted {
            roots.push((table, protected));
        }
    }
    Ok(roots)
}

/// Whether somebody can become the role who acts for some tenants, and not for every one as he likes.
fn is_of_tenants(role: pg_sys::Oid) -> Result<bool> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT true FROM pg_catalog.pg_roles AS r \
          WHERE pg_catalog.pg_has_role(r.oid, $1, 'MEMBER') AND NOT r.rolsuper AND NOT r.rolbypassrls \
          AND EXISTS ( \
            SELECT FROM tenant_rls.grants AS g WHERE pg_catalog.pg_has_role(r.oid, g.role_oid, 'MEMBER')) \
          AND NOT EXISTS ( \
            SELECT FROM tenant_rls.grants AS g WHERE pg_catalog.pg_has_role(r.oid, g.role_oid, 'MEMBER') \
            AND g.tenant_id IS NULL AND NOT g.ticket_required) \
          LIMIT 1",
        &[pg_sys::OIDOID],
    );
    as_owner(|| SELECT.execute(&[role.into_datum()]) > 0)
}

/// Moves units of closed periods from the table that calls write to the one that only views read, `batch` rows at most,
/// so that no transaction of it is long. How many were moved.
///
/// A period counts as closed an hour after its end: calls that have begun in it are over by then, and what still comes
/// is added by the next run. A row that somebody is changing is left for it too.
pub fn close_periods(batch: i64) -> Result<u64> {
    // Units that are held in a period keep it open.
    static MOVE: CachedPlan = CachedPlan::new(
        c"WITH closed AS ( \
             SELECT u.tenant_id, u.resource, u.period_start FROM tenant_rls.usage AS u \
             WHERE u.resets_at OPERATOR(pg_catalog.<) \
                (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) '1 hour'::pg_catalog.interval) \
             AND NOT EXISTS (SELECT FROM tenant_rls.reservations AS r \
                WHERE r.tenant_id OPERATOR(pg_catalog.=) u.tenant_id AND r.resource OPERATOR(pg_catalog.=) u.resource \
                AND r.period_start OPERATOR(pg_catalog.=) u.period_start AND r.state OPERATOR(pg_catalog.=) 'held') \
             LIMIT $1 FOR UPDATE SKIP LOCKED), \
           moved AS ( \
             DELETE FROM tenant_rls.usage AS u USING closed AS c \
             WHERE u.tenant_id OPERATOR(pg_catalog.=) c.tenant_id \
             AND u.resource OPERATOR(pg_catalog.=) c.resource \
             AND u.period_start OPERATOR(pg_catalog.=) c.period_start \
             RETURNING u.tenant_id, u.resource, u.period_start, u.resets_at, u.used) \
           INSERT INTO tenant_rls.usage_history AS h (tenant_id, resource, period_start, resets_at, used) \
           SELECT m.tenant_id, m.resource, m.period_start, m.resets_at, m.used FROM moved AS m \
           ON CONFLICT (tenant_id, resource, period_start) \
           DO UPDATE SET used = h.used OPERATOR(pg_catalog.+) EXCLUDED.used",
        &[pg_sys::INT8OID],
    );
    // Shared memory lets go of the keys of closed periods by itself.
    let write = registry::units::OwnWrite::begin();
    let moved = as_owner(|| MOVE.execute(&[batch.into_datum()]));
    drop(write);
    moved
}

#[pg_extern(sql = false)]
fn close_periods_by_hand(batch: Option<i64>) -> i64 {
    let close = || match batch.ok_or(Error::Null("the batch"))? {
        batch if batch > 0 => close_periods(batch),
        batch => Err(Error::Invalid {
            what: "batch",
            value: batch.to_string(),
            hint: "Use a number of rows of at least 1.".into(),
        }),
    };
    or_raise(close()) as i64
}

/// A disagreement: tenant, resource, what it is, what was expected, what is there.
type Finding = (Option<Uuid>, Option<String>, &'static str, Option<i64>, Option<i64>);

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn invariants() -> TableIterator<
    'static,
    (
        name!(tenant, Option<Uuid>),
        name!(resource, Option<String>),
        name!(finding, &'static str),
        name!(expected, Option<i64>),
        name!(actual, Option<i64>),
    ),
> {
    let findings = || {
        registry::accept_invalidations();
        if !registry::rights(registry::acting_role())?.sees_all {
            return Err(Error::NotPermitted {
                what: "permission denied for the usage of other tenants".into(),
                hint: "Operators and members of pg_read_all_stats see all tenants.",
            });
        }
        let mut findings = Vec::new();
        orphans(&mut findings)?;
        counters::check(&mut findings)?;
        overheld(&mut findings)?;
        for resource in gauge::attached()? {
            drift(&resource, &mut findings)?;
        }
        Ok(findings)
    };
    TableIterator::new(or_raise(findings()))
}

/// Usage of tenants or resources that the registry does not know.
fn orphans(findings: &mut Vec<Finding>) -> Result<()> {
    let sql = "SELECT u.tenant_id, u.resource, t.tenant_id IS NULL, u.used \
               FROM ( \
                 SELECT c.tenant_id, c.resource, c.used FROM tenant_rls.units AS c \
                 UNION ALL \
                 SELECT h.tenant_id, h.resource, h.used FROM tenant_rls.usage_history AS h \
               ) AS u \
               LEFT JOIN tenant_rls.tenants AS t ON t.tenant_id OPERATOR(pg_catalog.=) u.tenant_id \
               LEFT JOIN tenant_rls.resources AS r ON r.resource OPERATOR(pg_catalog.=) u.resource \
               WHERE t.tenant_id IS NULL OR r.resource IS NULL";
    as_owner(|| {
        read(Snapshot::Active, sql, |row| {
            let finding = match row.get::<bool>(3) {
                Some(true) => "usage of a tenant that is not registered",
                _ => "usage of a resource that is not defined",
            };
            findings.push((row.get(1), row.get(2), finding, None, row.get(4)));
        });
    })
}

/// Reservations that hold more than is used.
fn overheld(findings: &mut Vec<Finding>) -> Result<()> {
    let sql = "SELECT h.tenant_id, h.resource, h.units, coalesce(u.used, 0) FROM ( \
                   SELECT r.tenant_id, r.resource, r.period_start, pg_catalog.sum(r.units)::pg_catalog.int8 AS units \
                   FROM tenant_rls.reservations AS r WHERE r.state OPERATOR(pg_catalog.=) 'held' GROUP BY 1, 2, 3) AS h \
               LEFT JOIN tenant_rls.units AS u ON u.tenant_id OPERATOR(pg_catalog.=) h.tenant_id \
                   AND u.resource OPERATOR(pg_catalog.=) h.resource \
                   AND u.period_start OPERATOR(pg_catalog.=) h.period_start \
               WHERE h.units OPERATOR(pg_catalog.>) coalesce(u.used, 0)";
    as_owner(|| {
        read(Snapshot::Active, sql, |row| {
            let finding = "reservations hold more than is used";
            findings.push((row.get(1), row.get(2), finding, row.get(3), row.get(4)));
        });
    })
}

/// Gauges that differ from the rows that they follow, in the snapshot of the calling statement.
fn drift(resource: &str, findings: &mut Vec<Finding>) -> Result<()> {
    let gauge::Behind { tenants: mut rows, strangers } = gauge::units_behind(resource, Snapshot::Active)?;
    for (name, count) in strangers {
        let tenant = name.tenant()?.map(|id| Uuid::from_bytes(*id.as_bytes()));
        let finding = "rows of a tenant that is not registered";
        findings.push((tenant, Some(resource.into()), finding, Some(0), Some(count)));
    }
    for (tenant, used) in gauge::recorded(resource, Snapshot::Active)? {
        let expected = rows.remove(&tenant).unwrap_or(0);
        if expected != used {
            findings.push(gauge_finding(tenant, resource, expected, used));
        }
    }
    findings.extend(rows.into_iter().map(|(tenant, rows)| gauge_finding(tenant, resource, rows, 0)));
    Ok(())
}

fn gauge_finding(tenant: TenantId, resource: &str, expected: i64, actual: i64) -> Finding {
    let tenant = Uuid::from_bytes(*tenant.as_bytes());
    (
        Some(tenant),
        Some(resource.into()),
        "the gauge differs from the rows it follows",
        Some(expected),
        Some(actual),
    )
}
