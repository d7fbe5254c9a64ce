//! Who may act for whom.

use pgrx::prelude::*;
use pgrx::{Uuid, pg_sys};

use crate::error::{Error, Result, or_raise};
use crate::isolation::policy::{qualified, quote_ident};
use crate::plan::{CachedPlan, as_owner, execute_text};
use crate::registry;

/// What an application calls. `tenant_grant` gives EXECUTE on these.
pub const APPLICATION_FUNCTIONS: &[&str] = &[
    "set_tenant(uuid, boolean)",
    "set_tenant_key(bigint, boolean)",
    "set_tenant_ticket(text, boolean)",
    "reset_tenant()",
    "tenant_context()",
    "tenant_quota_consume(text, bigint, text)",
    "tenant_quota_try_consume(text, bigint, text)",
    "tenant_quota_consume_many(jsonb, text)",
    "tenant_quota_check(text, bigint)",
    "tenant_quota_release(text, bigint)",
    "tenant_quota_reserve(text, bigint, interval, text)",
    "tenant_quota_try_reserve(text, bigint, interval, text)",
    "tenant_quota_settle(uuid, bigint)",
    "tenant_quota_cancel(uuid)",
    "tenant_feature(text)",
    "tenant_feature_enabled(text, boolean)",
    "tenant_features()",
    "tenant_setting(text, jsonb)",
    "tenant_route(uuid)",
    "tenant_cache_get(text)",
    "tenant_cache_set(text, jsonb, interval)",
    "tenant_cache_delete(text)",
    "tenant_cache_invalidate(text)",
    "tenant_cache_stats()",
    "tenant_cache_key(text)",
];

/// What an application reads. `tenant_grant` gives SELECT on these.
pub const APPLICATION_VIEWS: &[&str] =
    &["tenant_usage", "tenant_usage_history", "tenant_quota_events", "tenant_storage", "tenant_leases"];

/// What runs the registry. `tenant_grant_operator` gives EXECUTE on these.
pub const OPERATOR_FUNCTIONS: &[&str] = &[
    "tenant_create(uuid, text, text, text, bigint)",
    "tenant_plan_change(uuid, text)",
    "tenant_suspend(uuid, text)",
    "tenant_resume(uuid)",
    "tenant_fence(uuid, interval)",
    "tenant_unfence(uuid)",
    "tenant_delete(uuid)",
    "tenant_list(text)",
    "tenant_resource_define(text, text, text, text)",
    "tenant_plan_define(text, text)",
    "tenant_plan_limit_set(text, text, bigint, boolean, text, text)",
    "tenant_plan_impact(text, jsonb)",
    "tenant_billing_set(uuid, timestamptz, text)",
    "tenant_quota_set(uuid, text, bigint, boolean, timestamptz)",
    "tenant_quota_unset(uuid, text)",
    "tenant_purge(uuid, integer)",
    "tenant_audit()",
    "tenant_assert()",
    "tenant_feature_define(text, jsonb, text)",
    "tenant_feature_set(text, jsonb, text, uuid, text, numeric, timestamptz)",
    "tenant_feature_unset(text, text, uuid, text)",
    "tenant_feature_switch(text, boolean)",
    "tenant_feature_drop(text)",
    "tenant_features_configmap()",
    "tenant_setting_set(text, jsonb, text, uuid, text)",
    "tenant_setting_unset(text, text, uuid, text)",
    "tenant_route(uuid)",
    "tenant_route_set(uuid, text)",
    "tenant_route_unset(uuid)",
    "tenant_deployment_define(text, jsonb)",
    "tenant_deployment_drop(text)",
    "tenant_deployment_manifest(text, bigint)",
    "tenant_release(text, text, numeric, text, uuid[])",
    "tenant_release_promote(bigint)",
    "tenant_release_rollback(bigint)",
    "tenant_worker_status()",
];

/// What an operator reads.
pub const OPERATOR_VIEWS: &[&str] = &[
    "tenant_usage",
    "tenant_usage_history",
    "tenant_quota_events",
    "tenant_storage",
    "tenant_leases",
    "tenant_tables",
    "tenant_quota_invariants",
    "tenant_releases",
    "tenant_cache_usage",
];

#[pg_extern(sql = false)]
fn grant_every(role: Option<pg_sys::Oid>) {
    or_raise(grant(role, None, false));
}

#[pg_extern(sql = false)]
fn grant_every_by_ticket(role: Option<pg_sys::Oid>) {
    or_raise(grant(role, None, true));
}

#[pg_extern(sql = false)]
fn grant_one(role: Option<pg_sys::Oid>, tenant: Option<Uuid>, ticket_required: Option<bool>) {
    let checked = tenant.ok_or(Error::Null("the tenant")).and_then(|tenant| {
        let ticket_required = ticket_required.ok_or(Error::Null("ticket_required"))?;
        grant(role, Some(tenant), ticket_required)
    });
    or_raise(checked);
}

#[pg_extern(sql = false)]
fn revoke_every(role: Option<pg_sys::Oid>) {
    or_raise(revoke(role, None));
}

#[pg_extern(sql = false)]
fn revoke_one(role: Option<pg_sys::Oid>, tenant: Option<Uuid>) {
    or_raise(tenant.ok_or(Error::Null("the tenant")).and_then(|tenant| revoke(role, Some(tenant))));
}

#[pg_extern(sql = false)]
fn grant_operator(role: Option<pg_sys::Oid>) {
    static INSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.operators (role_name) VALUES ($1) \
          ON CONFLICT (role_name) DO UPDATE SET role_oid = EXCLUDED.role_oid",
        &[pg_sys::TEXTOID],
    );
    let run = || {
        let name = existing(role)?;
        as_owner(|| INSERT.execute(&[name.as_str().into_datum()]))?;
        give(&name, OPERATOR_FUNCTIONS, OPERATOR_VIEWS)
    };
    or_raise(run());
}

#[pg_extern(sql = false)]
fn revoke_operator(role: Option<pg_sys::Oid>) {
    // By oid as well: a role that was renamed has its grant under the old name.
    static DELETE: CachedPlan = CachedPlan::new(
        c"DELETE FROM tenant_rls.operators AS o \
          WHERE o.role_name OPERATOR(pg_catalog.=) $1 OR o.role_oid OPERATOR(pg_catalog.=) $2",
        &[pg_sys::TEXTOID, pg_sys::OIDOID],
    );
    let run = || {
        let name = existing(role)?;
        as_owner(|| DELETE.execute(&[name.as_str().into_datum(), role.into_datum()]))?;
        take(&name, OPERATOR_FUNCTIONS, OPERATOR_VIEWS)?;
        // What both kinds of grant give stays if the role has the other kind.
        if has_grants(role)? { give(&name, APPLICATION_FUNCTIONS, APPLICATION_VIEWS) } else { Ok(()) }
    };
    or_raise(run());
}

fn grant(role: Option<pg_sys::Oid>, tenant: Option<Uuid>, ticket_required: bool) -> Result<()> {
    static INSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.grants (role_name, tenant_id, ticket_required) VALUES ($1, $2, $3) \
          ON CONFLICT (role_name, tenant_id) DO UPDATE \
          SET role_oid = EXCLUDED.role_oid, ticket_required = EXCLUDED.ticket_required",
        &[pg_sys::TEXTOID, pg_sys::UUIDOID, pg_sys::BOOLOID],
    );
    let name = existing(role)?;
    as_owner(|| {
        INSERT.execute(&[name.as_str().into_datum(), tenant.into_datum(), ticket_required.into_datum()])
    })?;
    give(&name, APPLICATION_FUNCTIONS, APPLICATION_VIEWS)
}

fn revoke(role: Option<pg_sys::Oid>, tenant: Option<Uuid>) -> Result<()> {
    static DELETE: CachedPlan = CachedPlan::new(
        c"DELETE FROM tenant_rls.grants AS g \
          WHERE (g.role_name OPERATOR(pg_catalog.=) $1 OR g.role_oid OPERATOR(pg_catalog.=) $3) \
          AND (g.tenant_id OPERATOR(pg_catalog.=) $2 OR (g.tenant_id IS NULL AND $2 IS NULL))",
        &[pg_sys::TEXTOID, pg_sys::UUIDOID, pg_sys::OIDOID],
    );
    let name = existing(role)?;
    as_owner(|| DELETE.execute(&[name.as_str().into_datum(), tenant.into_datum(), role.into_datum()]))?;
    if has_grants(role)? {
        return Ok(());
    }
    take(&name, APPLICATION_FUNCTIONS, APPLICATION_VIEWS)?;
    if is_operator(role)? { give(&name, OPERATOR_FUNCTIONS, OPERATOR_VIEWS) } else { Ok(()) }
}

/// The name of a role that exists. NULL must not come to mean everybody.
fn existing(role: Option<pg_sys::Oid>) -> Result<String> {
    let role = role.ok_or(Error::Null("the role"))?;
    // SAFETY: looks the role up; answers null for one that does not exist.
    let name = unsafe { pg_sys::GetUserNameFromId(role, true) };
    if name.is_null() {
        return Err(Error::Unknown {
            what: "role",
            name: role.to_u32().to_string(),
            known: Vec::new(),
            hint: "",
        });
    }
    Ok(registry::role_name(role))
}

fn has_grants(role: Option<pg_sys::Oid>) -> Result<bool> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT true FROM tenant_rls.grants AS g WHERE g.role_oid OPERATOR(pg_catalog.=) $1 LIMIT 1",
        &[pg_sys::OIDOID],
    );
    as_owner(|| SELECT.execute(&[role.into_datum()]) > 0)
}

fn is_operator(role: Option<pg_sys::Oid>) -> Result<bool> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT true FROM tenant_rls.operators AS o WHERE o.role_oid OPERATOR(pg_catalog.=) $1",
        &[pg_sys::OIDOID],
    );
    as_owner(|| SELECT.execute(&[role.into_datum()]) > 0)
}

fn give(role: &str, functions: &[&str], views: &[&str]) -> Result<()> {
    let schema = registry::extension_schema()?;
    let role = quote_ident(role);
    as_owner(|| {
        execute_text(&format!("GRANT USAGE ON SCHEMA {} TO {role}", quote_ident(&schema)));
        execute_text(&format!("GRANT EXECUTE ON ROUTINE {} TO {role}", in_schema(&schema, functions)));
        execute_text(&format!("GRANT SELECT ON {} TO {role}", in_schema(&schema, views)));
    })
}

/// USAGE of the schema stays: the role may have had it before.
fn take(role: &str, functions: &[&str], views: &[&str]) -> Result<()> {
    let schema = registry::extension_schema()?;
    let role = quote_ident(role);
    as_owner(|| {
        execute_text(&format!("REVOKE EXECUTE ON ROUTINE {} FROM {role}", in_schema(&schema, functions)));
        execute_text(&format!("REVOKE SELECT ON {} FROM {role}", in_schema(&schema, views)));
    })
}

fn in_schema(schema: &str, objects: &[&str]) -> String {
    let objects: Vec<String> = objects
        .iter()
        .map(|object| match object.split_once('(') {
            Some((name, arguments)) => format!("{}({arguments}", qualified(schema, name)),
            None => qualified(schema, object),
        })
        .collect();
    objects.join(", ")
}
