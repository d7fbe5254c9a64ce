//! What the lints of `sql/audit/` cannot say in SQL: rows that already cross tenants, and the assertion.
//!
//! `sql/audit.sql` has what the lints share and the union of them; each lint is a file and a function of its own.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::policy::qualified;
use crate::error::{Error, Result, or_raise};
use crate::plan::{CachedPlan, Snapshot, as_table_owner, read, run_text};
use crate::registry;

/// How many findings the error of `tenant_assert` names.
const NAMED: usize = 5;

/// Rows of the referencing table of a foreign key whose tenant is not that of the row they refer to.
///
/// Counted as the owner of both tables, so that nothing of theirs (a partial index, for instance, whose
/// condition the planner evaluates) runs with more rights; with different owners, of a child too, there is no such role.
#[pg_extern(sql = false)]
fn crossing_rows(foreign_key: Option<pg_sys::Oid>) -> Option<i64> {
    // A count reads both tables: an audit must not take minutes. Foreign servers are not asked at all.
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT f.relowner, pg_catalog.format( \
            'SELECT pg_catalog.count(*) FROM %I.%I AS f JOIN %I.%I AS p ON p.%I OPERATOR(pg_catalog.<>) f.%I AND %s', \
            fn.nspname, f.relname, pn.nspname, p.relname, pt.tenant_column, ft.tenant_column, \
            (SELECT pg_catalog.string_agg(pg_catalog.format('p.%I OPERATOR(%I.%s) f.%I', y.attname, n.nspname, op.oprname, x.attname), ' AND ') \
              FROM ROWS FROM (pg_catalog.unnest(o.conkey), pg_catalog.unnest(o.confkey), pg_catalog.unnest(o.conpfeqop)) AS u (x, y, op) \
              JOIN pg_catalog.pg_attribute AS x ON x.attrelid OPERATOR(pg_catalog.=) o.conrelid AND x.attnum OPERATOR(pg_catalog.=) u.x \
              JOIN pg_catalog.pg_attribute AS y ON y.attrelid OPERATOR(pg_catalog.=) o.confrelid AND y.attnum OPERATOR(pg_catalog.=) u.y \
              JOIN pg_catalog.pg_operator AS op ON op.oid OPERATOR(pg_catalog.=) u.op \
              JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) op.oprnamespace)) \
          FROM pg_catalog.pg_constraint AS o \
          JOIN pg_catalog.pg_class AS f ON f.oid OPERATOR(pg_catalog.=) o.conrelid \
          JOIN pg_catalog.pg_namespace AS fn ON fn.oid OPERATOR(pg_catalog.=) f.relnamespace \
          JOIN tenant_rls.protected_tables AS ft ON ft.relation OPERATOR(pg_catalog.=) f.oid \
          JOIN pg_catalog.pg_class AS p ON p.oid OPERATOR(pg_catalog.=) o.confrelid \
          JOIN pg_catalog.pg_namespace AS pn ON pn.oid OPERATOR(pg_catalog.=) p.relnamespace \
          JOIN tenant_rls.protected_tables AS pt ON pt.relation OPERATOR(pg_catalog.=) p.oid \
          WHERE o.oid OPERATOR(pg_catalog.=) $1 \
          AND pt.key_type OPERATOR(pg_catalog.=) ft.key_type \
          AND NOT EXISTS ( \
            WITH RECURSIVE tree (relid) AS ( \
              SELECT u.o FROM pg_catalog.unnest(ARRAY[f.oid, p.oid]) AS u (o) \
              UNION \
              SELECT i.inhrelid FROM tree AS t \
              JOIN pg_catalog.pg_inherits AS i ON i.inhparent OPERATOR(pg_catalog.=) t.relid) \
            SELECT FROM tree AS t \
            JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) t.relid \
            WHERE c.relkind OPERATOR(pg_catalog.=) 'f' \
            OR c.reltuples OPERATOR(pg_catalog.>) 1000000 \
            OR c.relowner OPERATOR(pg_catalog.<>) f.relowner)",
        &[pg_sys::OIDOID],
    );
    let (owner, sql) = SELECT.first(&[foreign_key.into_datum()], |row| {
        (row.get::<pg_sys::Oid>(1).unwrap_or(pg_sys::InvalidOid), row.get::<String>(2).unwrap_or_default())
    })?;
    let mut count = None;
    as_table_owner(owner, || read(Snapshot::Latest, &sql, |row| count = row.get(1)));
    count
}

#[pg_extern(sql = false)]
fn tenant_assert() {
    or_raise(assert());
}

fn assert() -> Result<()> {
    let sql = format!(
        "SELECT a.code, a.object, a.finding FROM {}() AS a WHERE a.severity OPERATOR(pg_catalog.=) 'error'",
        qualified(&registry::extension_schema()?, "tenant_audit")
    );
    let mut first = Vec::new();
    let count = run_text(&sql, &[], &[], |row| {
        if first.len() < NAMED {
            let text = |column| row.get::<String>(column).unwrap_or_default();
            first.push(format!("{}: {}: {}", text(1), text(2), text(3)));
        }
    });
    if count == 0 { Ok(()) } else { Err(Error::AuditFailed { count, first }) }
}

// What lockdown calls open stands in a file that comes later.
extension_sql_file!(
    "../../sql/audit/channel_open.sql",
    name = "audit_channel_open",
    requires = ["audit", "lockdown"]
);

macro_rules! lints {
    ($($file:tt => $name:tt,)*) => {
        $(extension_sql_file!($file, name = $name, requires = ["audit"]);)*
    };
}

lints! {
    "../../sql/audit/app_role_attribute.sql" => "audit_app_role_attribute",
    "../../sql/audit/app_role_becomes.sql" => "audit_app_role_becomes",
    "../../sql/audit/app_role_operator.sql" => "audit_app_role_operator",
    "../../sql/audit/app_role_owner.sql" => "audit_app_role_owner",
    "../../sql/audit/bypass_role.sql" => "audit_bypass_role",
    "../../sql/audit/default_privileges.sql" => "audit_default_privileges",
    "../../sql/audit/definer_function.sql" => "audit_definer_function",
    "../../sql/audit/definer_search_path.sql" => "audit_definer_search_path",
    "../../sql/audit/definer_trigger.sql" => "audit_definer_trigger",
    "../../sql/audit/definer_view.sql" => "audit_definer_view",
    "../../sql/audit/fk_without_tenant.sql" => "audit_fk_without_tenant",
    "../../sql/audit/foreign_table.sql" => "audit_foreign_table",
    "../../sql/audit/guard_disabled.sql" => "audit_guard_disabled",
    "../../sql/audit/guard_stored.sql" => "audit_guard_stored",
    "../../sql/audit/immutable_policy.sql" => "audit_immutable_policy",
    "../../sql/audit/leakproof_function.sql" => "audit_leakproof_function",
    "../../sql/audit/materialized_view.sql" => "audit_materialized_view",
    "../../sql/audit/not_forced.sql" => "audit_not_forced",
    "../../sql/audit/not_preloaded.sql" => "audit_not_preloaded",
    "../../sql/audit/parameter_grant.sql" => "audit_parameter_grant",
    "../../sql/audit/partition_unprotected.sql" => "audit_partition_unprotected",
    "../../sql/audit/permissive_policy.sql" => "audit_permissive_policy",
    "../../sql/audit/policy_changed.sql" => "audit_policy_changed",
    "../../sql/audit/policy_constant.sql" => "audit_policy_constant",
    "../../sql/audit/policy_duplicate.sql" => "audit_policy_duplicate",
    "../../sql/audit/policy_missing.sql" => "audit_policy_missing",
    "../../sql/audit/policy_reads_open.sql" => "audit_policy_reads_open",
    "../../sql/audit/policy_session.sql" => "audit_policy_session",
    "../../sql/audit/policy_without_rls.sql" => "audit_policy_without_rls",
    "../../sql/audit/privilege_without_policy.sql" => "audit_privilege_without_policy",
    "../../sql/audit/public_privilege.sql" => "audit_public_privilege",
    "../../sql/audit/publication_unfiltered.sql" => "audit_publication_unfiltered",
    "../../sql/audit/registry_open.sql" => "audit_registry_open",
    "../../sql/audit/replica_identity.sql" => "audit_replica_identity",
    "../../sql/audit/rls_off.sql" => "audit_rls_off",
    "../../sql/audit/rule.sql" => "audit_rule",
    "../../sql/audit/schema_create.sql" => "audit_schema_create",
    "../../sql/audit/server_version.sql" => "audit_server_version",
    "../../sql/audit/statistics_view.sql" => "audit_statistics_view",
    "../../sql/audit/table_unprotected.sql" => "audit_table_unprotected",
    "../../sql/audit/tenant_column_nullable.sql" => "audit_tenant_column_nullable",
    "../../sql/audit/tenant_in_catalog.sql" => "audit_tenant_in_catalog",
    "../../sql/audit/tenant_index_missing.sql" => "audit_tenant_index_missing",
    "../../sql/audit/tenant_stored.sql" => "audit_tenant_stored",
    "../../sql/audit/unfiltered_privilege.sql" => "audit_unfiltered_privilege",
    "../../sql/audit/unique_without_tenant.sql" => "audit_unique_without_tenant",
    "../../sql/audit/volatile_policy.sql" => "audit_volatile_policy",
}
