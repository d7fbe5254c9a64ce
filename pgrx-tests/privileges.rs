//! The public surface, and who may reach what of it.

use std::collections::BTreeSet;

use postgres::Client;

use crate::harness::{A, B, Db, Session, answer, recorded, refuses};

/// Everything that CREATE EXTENSION makes, but what belongs to a table. Something new is added here by hand, and
/// to the README; something that goes or changes breaks users.
const SURFACE: &str = "
event trigger tenant_rls_close_before_drop
event trigger tenant_rls_ddl_guard
event trigger tenant_rls_drop_guard
event trigger tenant_rls_follow_tree
event trigger tenant_rls_relations_dropped
function current_tenant()
function current_tenant_key()
function required_tenant()
function required_tenant_key()
function reset_tenant()
function set_tenant(uuid,boolean)
function set_tenant_key(bigint,boolean)
function set_tenant_ticket(text,boolean)
function tenant_assert()
function tenant_audit()
function tenant_billing_set(uuid,timestamp with time zone,text)
function tenant_cache_delete(text)
function tenant_cache_get(text)
function tenant_cache_invalidate(text)
function tenant_cache_key(text)
function tenant_cache_set(text,jsonb,interval)
function tenant_cache_stats()
function tenant_context()
function tenant_create(uuid,text,text,text,bigint)
function tenant_delete(uuid)
function tenant_deployment_define(text,jsonb)
function tenant_deployment_drop(text)
function tenant_deployment_manifest(text,bigint)
function tenant_feature(text)
function tenant_feature_define(text,jsonb,text)
function tenant_feature_drop(text)
function tenant_feature_enabled(text,boolean)
function tenant_feature_set(text,jsonb,text,uuid,text,numeric,timestamp with time zone)
function tenant_feature_switch(text,boolean)
function tenant_feature_unset(text,text,uuid,text)
function tenant_features()
function tenant_features_configmap()
function tenant_fence(uuid,interval)
function tenant_gauge_changed()
function tenant_grant(regrole)
function tenant_grant(regrole,uuid,boolean)
function tenant_grant_operator(regrole)
function tenant_grant_ticket(regrole)
function tenant_list(text)
function tenant_lockdown(boolean)
function tenant_lockdown_undo(boolean)
function tenant_plan_change(uuid,text)
function tenant_plan_define(text,text)
function tenant_plan_impact(text,jsonb)
function tenant_plan_limit_set(text,text,bigint,boolean,text,text)
function tenant_protect(regclass,name,boolean)
function tenant_protect_plan(regclass,name)
function tenant_protect_schema(regnamespace)
function tenant_prove(regrole)
function tenant_quota_attach(regclass,text)
function tenant_quota_cancel(uuid)
function tenant_quota_check(text,bigint)
function tenant_quota_consume(text,bigint,text)
function tenant_quota_consume_many(jsonb,text)
function tenant_quota_detach(regclass,text)
function tenant_quota_reconcile(regclass)
function tenant_quota_release(text,bigint)
function tenant_quota_reserve(text,bigint,interval,text)
function tenant_quota_set(uuid,text,bigint,boolean,timestamp with time zone)
function tenant_quota_settle(uuid,bigint)
function tenant_quota_try_consume(text,bigint,text)
function tenant_quota_try_reserve(text,bigint,interval,text)
function tenant_quota_unset(uuid,text)
function tenant_release(text,text,numeric,text,uuid[])
function tenant_release_promote(bigint)
function tenant_release_rollback(bigint)
function tenant_repair(regclass,boolean)
function tenant_resource_define(text,text,text,text)
function tenant_resume(uuid)
function tenant_revoke(regrole)
function tenant_revoke(regrole,uuid)
function tenant_revoke_operator(regrole)
function tenant_rls.acting_role()
function tenant_rls.audit_app_role_attribute()
function tenant_rls.audit_app_role_becomes()
function tenant_rls.audit_app_role_operator()
function tenant_rls.audit_app_role_owner()
function tenant_rls.audit_app_roles()
function tenant_rls.audit_bypass_role()
function tenant_rls.audit_channel_open()
function tenant_rls.audit_crossing(oid)
function tenant_rls.audit_default_privileges()
function tenant_rls.audit_definer_function()
function tenant_rls.audit_definer_search_path()
function tenant_rls.audit_definer_trigger()
function tenant_rls.audit_definer_view()
function tenant_rls.audit_definers()
function tenant_rls.audit_fk_without_tenant()
function tenant_rls.audit_foreign_table()
function tenant_rls.audit_guard_disabled()
function tenant_rls.audit_guard_stored()
function tenant_rls.audit_immutable_policy()
function tenant_rls.audit_leakproof_function()
function tenant_rls.audit_materialized_view()
function tenant_rls.audit_new_owner()
function tenant_rls.audit_not_forced()
function tenant_rls.audit_not_preloaded()
function tenant_rls.audit_of_system(oid)
function tenant_rls.audit_parameter_grant()
function tenant_rls.audit_partition_unprotected()
function tenant_rls.audit_permissive_policy()
function tenant_rls.audit_policies()
function tenant_rls.audit_policy_changed()
function tenant_rls.audit_policy_constant()
function tenant_rls.audit_policy_duplicate()
function tenant_rls.audit_policy_missing()
function tenant_rls.audit_policy_reads_open()
function tenant_rls.audit_policy_session()
function tenant_rls.audit_policy_without_rls()
function tenant_rls.audit_privilege_without_policy()
function tenant_rls.audit_privileges(oid)
function tenant_rls.audit_public_privilege()
function tenant_rls.audit_publication_unfiltered()
function tenant_rls.audit_readers()
function tenant_rls.audit_registry_open()
function tenant_rls.audit_replica_identity()
function tenant_rls.audit_rls_off()
function tenant_rls.audit_role(oid)
function tenant_rls.audit_rule()
function tenant_rls.audit_schema_create()
function tenant_rls.audit_server_version()
function tenant_rls.audit_set_role()
function tenant_rls.audit_statistics_view()
function tenant_rls.audit_stored_settings()
function tenant_rls.audit_table_unprotected()
function tenant_rls.audit_tables()
function tenant_rls.audit_tenant_column_nullable()
function tenant_rls.audit_tenant_in_catalog()
function tenant_rls.audit_tenant_index_missing()
function tenant_rls.audit_tenant_stored()
function tenant_rls.audit_unfiltered_privilege()
function tenant_rls.audit_unique_without_tenant()
function tenant_rls.audit_volatile_policy()
function tenant_rls.audit_words(text)
function tenant_rls.cache_key_matches(text,text)
function tenant_rls.close_before_drop()
function tenant_rls.close_periods(bigint)
function tenant_rls.crossing_rows(oid)
function tenant_rls.ddl_guard()
function tenant_rls.drop_guard()
function tenant_rls.gauge_follow_tree()
function tenant_rls.invariants()
function tenant_rls.is_restoring()
function tenant_rls.lockdown_channels()
function tenant_rls.lockdown_open()
function tenant_rls.prove_as_owner(oid,text)
function tenant_rls.prove_check(regrole)
function tenant_rls.prove_copy(text,text,jsonb)
function tenant_rls.prove_enter(oid,uuid,text)
function tenant_rls.prove_judge(text,text,bigint,text,oid,boolean,oid[])
function tenant_rls.prove_keys(oid,oid,text,text,text,text,uuid,jsonb,oid[])
function tenant_rls.prove_table(oid,oid,text,boolean,uuid,bigint,uuid,bigint)
function tenant_rls.prove_tripwire()
function tenant_rls.prove_try(oid,uuid,text,boolean)
function tenant_rls.prove_view(oid,oid,uuid,bigint)
function tenant_rls.prove_worlds(oid,uuid,text)
function tenant_rls.purge_crossing(uuid)
function tenant_rls.purge_order()
function tenant_rls.purge_registry(uuid)
function tenant_rls.purge_uncovered()
function tenant_rls.quota_sweep(bigint)
function tenant_rls.record_billing()
function tenant_rls.record_change()
function tenant_rls.record_truncate()
function tenant_rls.registry_changed()
function tenant_rls.relations_dropped()
function tenant_rls.remember_removal()
function tenant_rls.repeat_removal()
function tenant_rls.replace_default()
function tenant_rls.resolve_role()
function tenant_rls.restore_begins()
function tenant_rls.restore_ends()
function tenant_rls.same_acl(text[],text[])
function tenant_rls.sees_all()
function tenant_rls.storage_of(uuid)
function tenant_rls.units_changed()
function tenant_rls.usage_of(uuid)
function tenant_route(uuid)
function tenant_route_set(uuid,text)
function tenant_route_unset(uuid)
function tenant_setting(text,jsonb)
function tenant_setting_set(text,jsonb,text,uuid,text)
function tenant_setting_unset(text,text,uuid,text)
function tenant_signing_key_drop(text)
function tenant_signing_key_set(text,text,bytea,timestamp with time zone,timestamp with time zone)
function tenant_suspend(uuid,text)
function tenant_unfence(uuid)
function tenant_unprotect(regclass)
function tenant_worker_status()
procedure tenant_purge(uuid,integer)
schema tenant_rls
sequence tenant_rls.changes_change_id_seq
sequence tenant_rls.releases_release_id_seq
table tenant_rls.attachments
table tenant_rls.audits
table tenant_rls.billing_changes
table tenant_rls.cache
table tenant_rls.cache_parts
table tenant_rls.changes
table tenant_rls.deployment_routes
table tenant_rls.deployments
table tenant_rls.feature_values
table tenant_rls.features
table tenant_rls.grants
table tenant_rls.idempotency_keys
table tenant_rls.leases
table tenant_rls.ledger
table tenant_rls.lockdowns
table tenant_rls.operators
table tenant_rls.overrides
table tenant_rls.plan_limits
table tenant_rls.plans
table tenant_rls.protected_tables
table tenant_rls.quota_events
table tenant_rls.release_targets
table tenant_rls.releases
table tenant_rls.removed_defaults
table tenant_rls.reservations
table tenant_rls.resources
table tenant_rls.settings
table tenant_rls.signing_keys
table tenant_rls.tenants
table tenant_rls.usage
table tenant_rls.usage_history
table tenant_rls.used_tickets
type tenant_cache_stats_result
type tenant_feature_result
type tenant_quota_result
type tenant_route_result
view tenant_cache_usage
view tenant_leases
view tenant_quota_events
view tenant_quota_invariants
view tenant_releases
view tenant_rls.units
view tenant_storage
view tenant_tables
view tenant_usage
view tenant_usage_history
";

/// What PUBLIC may do with it: what sql/privileges.sql gives. What a session may see of it is another matter.
const PUBLIC: &str = "
EXECUTE current_tenant()
EXECUTE current_tenant_key()
EXECUTE required_tenant()
EXECUTE required_tenant_key()
EXECUTE tenant_gauge_changed()
EXECUTE tenant_protect(regclass,name,boolean)
EXECUTE tenant_protect_plan(regclass,name)
EXECUTE tenant_protect_schema(regnamespace)
EXECUTE tenant_quota_attach(regclass,text)
EXECUTE tenant_quota_detach(regclass,text)
EXECUTE tenant_quota_reconcile(regclass)
EXECUTE tenant_repair(regclass,boolean)
EXECUTE tenant_rls.invariants()
EXECUTE tenant_rls.sees_all()
EXECUTE tenant_rls.storage_of(uuid)
EXECUTE tenant_rls.usage_of(uuid)
EXECUTE tenant_unprotect(regclass)
USAGE tenant_cache_stats_result
USAGE tenant_feature_result
USAGE tenant_quota_result
USAGE tenant_route_result
";

/// What tenant_grant gives.
const APPLICATION: &str = "
EXECUTE reset_tenant()
EXECUTE set_tenant(uuid,boolean)
EXECUTE set_tenant_key(bigint,boolean)
EXECUTE set_tenant_ticket(text,boolean)
EXECUTE tenant_cache_delete(text)
EXECUTE tenant_cache_get(text)
EXECUTE tenant_cache_invalidate(text)
EXECUTE tenant_cache_key(text)
EXECUTE tenant_cache_set(text,jsonb,interval)
EXECUTE tenant_cache_stats()
EXECUTE tenant_context()
EXECUTE tenant_feature(text)
EXECUTE tenant_feature_enabled(text,boolean)
EXECUTE tenant_features()
EXECUTE tenant_quota_cancel(uuid)
EXECUTE tenant_quota_check(text,bigint)
EXECUTE tenant_quota_consume(text,bigint,text)
EXECUTE tenant_quota_consume_many(jsonb,text)
EXECUTE tenant_quota_release(text,bigint)
EXECUTE tenant_quota_reserve(text,bigint,interval,text)
EXECUTE tenant_quota_settle(uuid,bigint)
EXECUTE tenant_quota_try_consume(text,bigint,text)
EXECUTE tenant_quota_try_reserve(text,bigint,interval,text)
EXECUTE tenant_route(uuid)
EXECUTE tenant_setting(text,jsonb)
SELECT tenant_leases
SELECT tenant_quota_events
SELECT tenant_storage
SELECT tenant_usage
SELECT tenant_usage_history
";

/// What tenant_grant_operator gives.
const OPERATOR: &str = "
EXECUTE tenant_assert()
EXECUTE tenant_audit()
EXECUTE tenant_billing_set(uuid,timestamp with time zone,text)
EXECUTE tenant_create(uuid,text,text,text,bigint)
EXECUTE tenant_delete(uuid)
EXECUTE tenant_deployment_define(text,jsonb)
EXECUTE tenant_deployment_drop(text)
EXECUTE tenant_deployment_manifest(text,bigint)
EXECUTE tenant_feature_define(text,jsonb,text)
EXECUTE tenant_feature_drop(text)
EXECUTE tenant_feature_set(text,jsonb,text,uuid,text,numeric,timestamp with time zone)
EXECUTE tenant_feature_switch(text,boolean)
EXECUTE tenant_feature_unset(text,text,uuid,text)
EXECUTE tenant_features_configmap()
EXECUTE tenant_fence(uuid,interval)
EXECUTE tenant_list(text)
EXECUTE tenant_plan_change(uuid,text)
EXECUTE tenant_plan_define(text,text)
EXECUTE tenant_plan_impact(text,jsonb)
EXECUTE tenant_plan_limit_set(text,text,bigint,boolean,text,text)
EXECUTE tenant_purge(uuid,integer)
EXECUTE tenant_quota_set(uuid,text,bigint,boolean,timestamp with time zone)
EXECUTE tenant_quota_unset(uuid,text)
EXECUTE tenant_release(text,text,numeric,text,uuid[])
EXECUTE tenant_release_promote(bigint)
EXECUTE tenant_release_rollback(bigint)
EXECUTE tenant_resource_define(text,text,text,text)
EXECUTE tenant_resume(uuid)
EXECUTE tenant_route(uuid)
EXECUTE tenant_route_set(uuid,text)
EXECUTE tenant_route_unset(uuid)
EXECUTE tenant_setting_set(text,jsonb,text,uuid,text)
EXECUTE tenant_setting_unset(text,text,uuid,text)
EXECUTE tenant_suspend(uuid,text)
EXECUTE tenant_unfence(uuid)
EXECUTE tenant_worker_status()
SELECT tenant_cache_usage
SELECT tenant_leases
SELECT tenant_quota_events
SELECT tenant_quota_invariants
SELECT tenant_releases
SELECT tenant_storage
SELECT tenant_tables
SELECT tenant_usage
SELECT tenant_usage_history
";

/// What the server's own role for statistics may do.
const STATISTICS: &str = "
EXECUTE tenant_worker_status()
SELECT tenant_leases
SELECT tenant_quota_events
SELECT tenant_quota_invariants
SELECT tenant_storage
SELECT tenant_usage
SELECT tenant_usage_history
";

/// The members of the extension: class, oid, and the identity that PostgreSQL gives them, without the schema of
/// the functions for applications.
const MEMBERS: &str = "
    SELECT d.classid, d.objid, i.type,
        regexp_replace(i.identity, '\\m(public|tenancy|pg_catalog)\\.', '', 'g') AS identity
    FROM pg_depend AS d, pg_identify_object(d.classid, d.objid, 0) AS i
    WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
    AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'tenant_rls')";

/// The lines of a query, sorted, one a line.
fn lines(client: &mut Client, sql: &str) -> String {
    let mut lines: Vec<String> = client.rows(sql).iter().map(|row| row.get(0)).collect();
    lines.sort();
    format!("\n{}\n", lines.join("\n"))
}

fn surface(client: &mut Client) -> String {
    // Row types of tables and views come with them; the composite type is one of its own.
    lines(
        client,
        &format!(
            "SELECT CASE type WHEN 'composite type' THEN 'type' ELSE type END || ' ' || identity FROM ({MEMBERS}) AS m
             WHERE NOT (classid = 'pg_type'::regclass AND EXISTS (
                 SELECT FROM pg_type AS t LEFT JOIN pg_class AS c ON c.oid = t.typrelid
                 WHERE t.oid = objid AND (t.typelem <> 0 OR c.relkind <> 'c')))
             AND type NOT IN ('index', 'trigger') AND NOT (type = 'composite type' AND classid = 'pg_class'::regclass)"
        ),
    )
}

/// Privileges on members that `grantee` (0 is PUBLIC) was given itself.
fn privileges(client: &mut Client, grantee: &str) -> String {
    lines(
        client,
        &format!(
            "WITH member AS ({MEMBERS}), acl AS (
                 SELECT identity, coalesce(proacl, acldefault('f', proowner)) AS acl FROM member
                 JOIN pg_proc AS p ON classid = 'pg_proc'::regclass AND p.oid = objid
                 UNION ALL
                 SELECT identity, coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", relowner))
                 FROM member JOIN pg_class AS c ON classid = 'pg_class'::regclass AND c.oid = objid
                 UNION ALL
                 SELECT concat(identity, '.', attname), attacl
                 FROM member JOIN pg_attribute AS a ON classid = 'pg_class'::regclass AND a.attrelid = objid
                 UNION ALL
                 SELECT identity, coalesce(typacl, acldefault('T', typowner)) FROM member
                 JOIN pg_type AS t ON classid = 'pg_type'::regclass AND t.oid = objid
                 WHERE t.typelem = 0 AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = t.typrelid AND c.relkind <> 'c')
                 UNION ALL
                 SELECT identity, coalesce(nspacl, acldefault('n', nspowner)) FROM member
                 JOIN pg_namespace AS n ON classid = 'pg_namespace'::regclass AND n.oid = objid)
             SELECT privilege_type || ' ' || identity FROM acl, aclexplode(acl) WHERE grantee = {grantee}"
        ),
    )
}

/// Every object that the extension makes is known.
#[test]
fn the_surface_is_known() {
    assert_eq!(surface(&mut Db::new().admin()), SURFACE);
}

/// PUBLIC may do what sql/privileges.sql says, and nothing else.
#[test]
fn public_may_do_what_is_listed() {
    assert_eq!(privileges(&mut Db::new().admin(), "0"), PUBLIC);
}

/// Privileges that new objects of this owner give to everybody do not reach ours.
#[test]
fn default_privileges_do_not_open_the_extension() {
    let db = Db::without_extension();
    let mut admin = db.admin();
    admin.run(
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO PUBLIC; ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC;
         ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO PUBLIC; ALTER DEFAULT PRIVILEGES GRANT USAGE ON SEQUENCES TO PUBLIC;
         ALTER DEFAULT PRIVILEGES REVOKE USAGE ON TYPES FROM PUBLIC; CREATE EXTENSION tenant_rls",
    );
    assert_eq!(privileges(&mut admin, "0"), PUBLIC);
}

/// The role of the server for statistics reads the views of usage.
#[test]
fn readers_of_statistics_may_read_usage() {
    assert_eq!(privileges(&mut Db::new().admin(), "'pg_read_all_stats'::regrole"), STATISTICS);
}

/// The page for operators lists the same, but for what is in the schema of the tables.
#[test]
fn the_document_says_who_may_do_what() {
    let page = include_str!("../docs/operations.md");
    let names = |text: &str| -> BTreeSet<String> {
        let quoted = text.split('`').skip(1).step_by(2);
        quoted.map(|name| name.split('(').next().unwrap_or(name).to_string()).collect()
    };
    for (who, list) in [
        ("| PUBLIC |", PUBLIC),
        ("| `tenant_grant(role)`, `tenant_grant_ticket(role)` |", APPLICATION),
        ("| `tenant_grant_operator(role)` |", OPERATOR),
        ("| `pg_read_all_stats` |", STATISTICS),
    ] {
        let written = page.lines().find_map(|line| line.strip_prefix(who)).expect(who);
        let given = list.lines().filter_map(|line| line.split_once(' ')).map(|(_, object)| object);
        let given = given.filter(|object| !object.starts_with("tenant_rls."));
        let given: BTreeSet<String> =
            given.map(|object| object.split('(').next().unwrap_or(object).into()).collect();
        assert_eq!(names(written), given, "{who}");
    }
}

/// The page on the registry names every table.
#[test]
fn the_document_names_every_table() {
    let page = include_str!("../docs/registry.md");
    let (_, tables) = page.split_once("\n## Tables\n").expect("a section on tables");
    for table in SURFACE.lines().filter_map(|line| line.strip_prefix("table tenant_rls.")) {
        let named = tables.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
        assert!(named.into_iter().any(|names| names.contains(&format!("`{table}`"))), "{table}");
    }
}

/// tenant_grant and tenant_grant_operator give what is listed, and take it back.
#[test]
fn grants_give_what_is_listed_and_take_it_back() {
    let db = Db::new();
    let mut admin = db.admin();
    let role = db.role_name("role");
    db.role(&role, "LOGIN");
    admin.run(&format!("SELECT tenant_create('{A}')"));
    let grantee = format!("'{role}'::regrole");
    for (argument, given) in [("", APPLICATION), (&*format!(", '{A}'"), APPLICATION)] {
        admin.run(&format!("SELECT tenant_grant('{role}'{argument})"));
        assert_eq!(privileges(&mut admin, &grantee), given);
        admin.run(&format!("SELECT tenant_revoke('{role}'{argument})"));
        assert_eq!(privileges(&mut admin, &grantee), "\n\n");
    }
    admin.run(&format!("SELECT tenant_grant_operator('{role}')"));
    assert_eq!(privileges(&mut admin, &grantee), OPERATOR);
    admin.run(&format!("SELECT tenant_revoke_operator('{role}')"));
    assert_eq!(privileges(&mut admin, &grantee), "\n\n");
}

/// Who has two kinds of grant keeps the one that is not revoked, in either order.
#[test]
fn revoking_one_kind_of_grant_leaves_the_other() {
    let db = Db::new();
    let mut admin = db.admin();
    let role = db.role_name("role");
    db.role(&role, "LOGIN");
    admin.run(&format!("SELECT tenant_create('{A}')"));
    let grantee = format!("'{role}'::regrole");
    let both = format!("SELECT tenant_grant('{role}'), tenant_grant_operator('{role}')");
    admin.run(&both);
    admin.run(&format!("SELECT tenant_revoke('{role}')"));
    assert_eq!(privileges(&mut admin, &grantee), OPERATOR);
    admin.run(&format!("{both}; SELECT tenant_revoke_operator('{role}')"));
    assert_eq!(privileges(&mut admin, &grantee), APPLICATION);
    admin.run(&format!("SELECT tenant_grant('{role}', '{A}'); SELECT tenant_revoke('{role}')"));
    assert_eq!(privileges(&mut admin, &grantee), APPLICATION);
    admin.run(&format!("SELECT tenant_revoke('{role}', '{A}')"));
    assert_eq!(privileges(&mut admin, &grantee), "\n\n");
}

/// A stranger calls nothing but what is PUBLIC.
#[test]
fn a_stranger_is_refused() {
    let db = Db::with_orders();
    let name = db.role_name("stranger");
    db.role(&name, "LOGIN");
    let mut stranger = db.connect(&name);
    refuses(
        &mut stranger,
        &[
            (&format!("SELECT set_tenant('{A}')"), "42501"),
            ("SELECT reset_tenant()", "42501"),
            ("SELECT tenant_context()", "42501"),
            ("SELECT * FROM tenant_quota_consume('users')", "42501"),
            ("SELECT tenant_create()", "42501"),
            (&format!("SELECT tenant_grant('{name}')"), "42501"),
            (&format!("SELECT tenant_grant_operator('{name}')"), "42501"),
            ("SELECT tenant_list()", "42501"),
            ("SELECT * FROM tenant_rls.tenants", "42501"),
            ("SELECT tenant_protect('orders')", "42501"),
            ("SELECT tenant_quota_attach('orders', 'users')", "42501"),
        ],
    );
    stranger.run("SELECT current_tenant()");
    db.admin().run(&format!("SELECT tenant_grant('{name}')"));
    stranger.run(&format!("SELECT set_tenant('{A}')"));
}

/// Careless grants open no table: row level security without policies denies.
#[test]
fn careless_grants_open_nothing() {
    let db = Db::with_orders();
    let name = db.role_name("role");
    db.role(&name, "LOGIN");
    let mut admin = db.admin();
    admin.run(&format!(
        "SELECT tenant_quota_set('{A}', 'users', 1), tenant_grant_operator('{}');
         GRANT USAGE ON SCHEMA tenant_rls TO {name}; GRANT ALL ON ALL TABLES IN SCHEMA tenant_rls TO {name};
         GRANT pg_read_all_data, pg_write_all_data TO {name}",
        db.app()
    ));
    let tables: Vec<String> = admin
        .rows("SELECT relname::text FROM pg_class WHERE relnamespace = 'tenant_rls'::regnamespace AND relkind = 'r'")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(tables.len() >= 13);
    let mut role = db.connect(&name);
    for table in tables {
        assert_eq!(role.one::<i64>(&format!("SELECT count(*) FROM tenant_rls.{table}")), 0, "{table}");
        assert_eq!(
            role.execute(&format!("DELETE FROM tenant_rls.{table}"), &[]).expect("no rows"),
            0,
            "{table}"
        );
    }
    refuses(
        &mut role,
        &[
            (&format!("INSERT INTO tenant_rls.grants (role_name) VALUES ('{name}')"), "42501"),
            (&format!("INSERT INTO tenant_rls.operators (role_name) VALUES ('{name}')"), "42501"),
            (&format!("INSERT INTO tenant_rls.overrides VALUES ('{B}', 'users', 1000)"), "42501"),
        ],
    );
    assert_eq!(role.execute("UPDATE tenant_rls.tenants SET plan = 'enterprise'", &[]).expect("no rows"), 0);
}

/// Every table of ours denies by default.
#[test]
fn every_table_has_row_level_security() {
    let mut admin = Db::new().admin();
    let open = lines(
        &mut admin,
        "SELECT relname::text FROM pg_class AS c WHERE relnamespace = 'tenant_rls'::regnamespace AND relkind IN ('r', 'p')
         AND (NOT relrowsecurity OR EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = c.oid))",
    );
    assert_eq!(open, "\n\n");
}

/// Every object that people meet says what it is.
#[test]
fn every_object_has_a_comment() {
    let mut admin = Db::new().admin();
    let silent = lines(
        &mut admin,
        &format!(
            "SELECT identity FROM ({MEMBERS}) AS m WHERE obj_description(objid, classid::regclass::name) IS NULL
             AND type IN ('function', 'procedure', 'view', 'table', 'sequence', 'schema', 'event trigger')"
        ),
    );
    assert_eq!(silent, "\n\n");
    let silent = lines(
        &mut admin,
        &format!(
            "SELECT format('%s on %s', tgname, identity) FROM ({MEMBERS}) AS m
             JOIN pg_trigger AS t ON classid = 'pg_class'::regclass AND t.tgrelid = objid AND NOT t.tgisinternal
             WHERE coalesce(obj_description(t.oid, 'pg_trigger'), '') = ''"
        ),
    );
    assert_eq!(silent, "\n\n");
    for name in
        ["tenant_quota_result", "tenant_cache_stats_result", "tenant_feature_result", "tenant_route_result"]
    {
        let sql = format!("SELECT obj_description('{name}'::regtype, 'pg_type') IS NOT NULL");
        assert!(admin.one::<bool>(&sql), "{name}");
    }
}

/// Code that is not C fixes its search_path; definer rights come with it only.
#[test]
fn functions_fix_their_search_path() {
    let mut admin = Db::new().admin();
    let loose = lines(
        &mut admin,
        &format!(
            "SELECT identity FROM ({MEMBERS}) AS m JOIN pg_proc AS p ON classid = 'pg_proc'::regclass AND p.oid = objid
             JOIN pg_language AS l ON l.oid = p.prolang
             WHERE (l.lanname <> 'c' OR p.prosecdef)
             AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false)"
        ),
    );
    assert_eq!(loose, "\n\n");
}

/// A session with everything of the core in it, which ends with known numbers.
fn tour(admin: &mut Client) {
    admin.run(&format!(
        "CREATE TABLE public.rows (id integer, tenant_id pg_catalog.uuid); CREATE TABLE public.keys (tenant_id bigint);
         SELECT tenant_create('{A}', tenant_key => 7), tenant_create('{B}', 'starter');
         SELECT tenant_resource_define('calls', 'counter', 'call', 'day'), tenant_resource_define('rows', 'gauge', 'row', 'none');
         SELECT tenant_plan_define('team', 'free'), tenant_plan_limit_set('team', 'calls', 10), tenant_plan_limit_set('team', 'rows', 4);
         SELECT tenant_plan_change('{A}', 'team'), tenant_quota_set('{A}', 'calls', 5), tenant_quota_set('{A}', 'users', 5);
         SELECT tenant_quota_unset('{A}', 'users'), tenant_billing_set('{A}', '2020-01-01', 'Europe/Zurich');
         SELECT tenant_suspend('{A}'), tenant_resume('{A}'); SELECT tenant_fence('{A}'); SELECT tenant_unfence('{A}');
         SELECT tenant_list();
         SELECT tenant_protect('public.rows'), tenant_protect('public.keys'); SELECT tenant_protect('public.rows');
         SELECT tenant_quota_attach('public.rows', 'rows'), tenant_quota_attach('public.keys', 'rows');
         SET app.current_tenant = '{A}'; SELECT tenant_context();
         SELECT * FROM tenant_quota_consume('calls', 2); SELECT * FROM tenant_quota_try_consume('calls', 4);
         SELECT * FROM tenant_quota_consume_many('{{\"calls\": 1, \"users\": 1}}'); SELECT * FROM tenant_quota_release('users');
         SELECT * FROM tenant_quota_consume('users', 1, 'k'); SELECT * FROM tenant_quota_consume('users', 1, 'k');
         SELECT * FROM tenant_quota_consume_many('{{\"users\": 1}}', 'm'); SELECT * FROM tenant_quota_release('users', 2);
         SELECT q.* FROM tenant_quota_reserve('users', 1, '1 minute', 'r') AS r, LATERAL tenant_quota_settle(r.reservation_id, 0) AS q;
         SELECT q.* FROM tenant_quota_try_reserve('users', 1, '1 minute') AS r, LATERAL tenant_quota_cancel(r.reservation_id) AS q;
         SELECT tenant_rls.quota_sweep();
         SELECT tenant_feature_define('dark', 'false'), tenant_feature_define('old', '1'), tenant_feature_set('dark', 'true', rollout_percent => 50);
         SELECT tenant_feature_set('dark', 'true', 'tenant', '{A}'), tenant_feature_set('dark', '1', 'plan', plan => 'team');
         SELECT tenant_feature_unset('dark', 'plan', plan => 'team'), tenant_feature_switch('dark', true), tenant_feature_drop('old');
         SELECT tenant_setting_set('size', '1', 'global'), tenant_setting_set('size', '2', 'tenant', '{A}');
         SELECT tenant_setting_unset('size', 'tenant', '{A}'), tenant_setting_unset('size', 'global'), tenant_setting('size');
         SELECT tenant_deployment_define('api', '{{\"image\": \"api:1\", \"plans\": [\"team\"], \"location\": {{\"a\": 1}}}}');
         SELECT tenant_deployment_define('api', '{{\"replicas\": 2}}'), tenant_route_set('{A}', 'api'), tenant_route_unset('{A}');
         SELECT tenant_release('api', 'api:2', 10, 'team', '{{{A}}}'), tenant_deployment_manifest('api', 1);
         SELECT tenant_release_promote(1), tenant_release('api', 'api:3', 50); SELECT tenant_release_rollback(2), tenant_release_rollback(1);
         SELECT * FROM tenant_route(); SELECT * FROM tenant_releases; SELECT * FROM tenant_feature('dark');
         SELECT tenant_feature_enabled('dark'), tenant_features(), tenant_features_configmap(); SELECT tenant_deployment_drop('api');
         SELECT tenant_cache_set(pg_catalog.concat('k', n), '1') FROM pg_catalog.generate_series(1, 40) AS n; SELECT tenant_cache_get('k1'), tenant_cache_delete('k1');
         SELECT tenant_cache_invalidate('k[2-3]*'), tenant_cache_key('k'); SELECT * FROM tenant_cache_stats(); SELECT * FROM tenant_cache_usage;
         SELECT tenant_quota_set('{A}', 'cache_bytes', 500), tenant_cache_set('k1', '1');
         INSERT INTO public.rows (id) VALUES (1), (2), (3); INSERT INTO public.keys DEFAULT VALUES;
         UPDATE public.rows SET id = 4 WHERE id OPERATOR(pg_catalog.=) 1"
    ));
}

/// What [`tour`] leaves to be looked at, and taken back.
fn end_of_tour(admin: &mut Client, role: &str) {
    admin.run(&format!(
        "TRUNCATE public.keys; SELECT tenant_quota_reconcile('public.rows'); SELECT tenant_quota_detach('public.keys', 'rows');
         SELECT * FROM tenant_usage; SELECT * FROM tenant_usage_history; SELECT * FROM tenant_quota_events; SELECT * FROM tenant_storage; SELECT * FROM tenant_tables;
         SELECT tenant_unprotect('public.keys'); SELECT tenant_protect_schema('public'); DROP TABLE public.keys;
         SELECT tenant_grant('{role}'), tenant_grant('{role}', '{A}'), tenant_grant_operator('{role}');
         SELECT tenant_revoke('{role}'), tenant_revoke('{role}', '{A}'), tenant_revoke_operator('{role}');
         SELECT tenant_delete('{B}')"
    ));
    admin.run(&format!("CALL tenant_purge('{B}')"));
    let verdicts = admin.rows(&format!("SELECT verdict FROM tenant_prove('{role}')"));
    assert_eq!(verdicts.iter().filter(|row| row.get::<_, &str>(0) == "isolated").count(), 9);
    assert_eq!(admin.rows("SELECT 1 FROM tenant_quota_invariants").len(), 0);
}

/// Schemas in the search_path before pg_catalog, full of operators, functions, types and tables that raise, change
/// nothing; nor do temporary tables.
#[test]
fn a_hostile_search_path_changes_nothing() {
    let db = Db::new();
    let (mut admin, role) = (db.admin(), db.role_name("role"));
    db.role(&role, "LOGIN");
    admin.run(include_str!("privileges/hostile.sql"));
    admin.run("SET search_path = evil, pg_catalog, public");
    assert_eq!(admin.fails("SELECT 1 = 1"), "XX999");
    tour(&mut admin);
    end_of_tour(&mut admin, &role);
    assert_eq!(admin.one::<i32>("SELECT pg_catalog.count(*)::pg_catalog.int4 FROM public.rows"), 3);
}

/// What SQL can call takes no pointer of the server's, and there is no operator, cast or estimator of ours that the planner
/// would ask.
#[test]
fn nothing_of_ours_takes_internal() {
    let db = Db::new();
    let mut admin = db.admin();
    let members =
        "FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'tenant_rls'
         AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'";
    let functions = format!(
        "SELECT count(*) {members} JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid"
    );
    assert!(admin.one::<i64>(&functions) > 100);
    let takes = "p.proargtypes::oid[] && ARRAY['internal', 'cstring', 'record', '\"any\"']::regtype[]::oid[]";
    let odd = format!("{functions} WHERE {takes} OR p.prorettype = 'internal'::regtype OR p.prosupport <> 0");
    assert_eq!(admin.one::<i64>(&odd), 0);
    let classes = format!("SELECT string_agg(DISTINCT d.classid::regclass::text, ',') {members}");
    assert_eq!(admin.one::<String>(&classes), "pg_class,pg_event_trigger,pg_namespace,pg_proc,pg_type");
}

/// Whoever could make objects in the database before CREATE EXTENSION may have prepared for it: its schema, a function of
/// the same name and arguments, functions and operators that fit better than those of pg_catalog, temporary tables. The
/// script takes over nothing that is there, and calls none of it.
#[test]
fn what_waits_for_the_install_script_is_not_used() {
    let db = Db::without_extension();
    let mut admin = db.admin();
    let install = "CREATE EXTENSION tenant_rls SCHEMA tenancy";
    admin.run(&include_str!("privileges/hostile.sql").replace("evil", "tenancy"));
    admin.run("SET search_path = tenancy, pg_catalog, public");
    admin.run("CREATE SCHEMA tenant_rls");
    assert_eq!(admin.fails(install), "42P06");
    admin.run("DROP SCHEMA tenant_rls");
    for squatted in
        ["required_tenant()", "current_tenant()", "required_tenant_key()", "tenant_gauge_changed()"]
    {
        assert_eq!(admin.fails(install), "42723", "{squatted}");
        admin.run(&format!("DROP FUNCTION tenancy.{squatted}"));
    }
    // What the script puts into texts is the name of the schema: the server refuses those that could end one.
    for name in ["'", "$", "\\", "\"\""] {
        let schema = format!("\"tenancy{name}\"");
        admin.run(&format!("CREATE SCHEMA {schema}"));
        assert_ne!(admin.attempt(&format!("CREATE EXTENSION tenant_rls SCHEMA {schema}")), None, "{schema}");
        admin.run(&format!("DROP SCHEMA {schema}"));
    }
    admin.run(install);
    // Without what waits in the session.
    assert_eq!(surface(&mut db.admin()), SURFACE);
    assert_eq!(privileges(&mut db.admin(), "0"), PUBLIC);
    let role = db.role_name("role");
    db.role(&role, "LOGIN");
    assert_eq!(admin.fails("SELECT 1 = 1"), "XX999");
    tour(&mut admin);
    end_of_tour(&mut admin, &role);
}

/// In another schema everything has another name, and works.
#[test]
fn the_extension_can_live_in_another_schema() {
    let db = Db::without_extension();
    let (mut admin, role) = (db.admin(), db.role_name("role"));
    db.role(&role, "LOGIN");
    admin.run("CREATE SCHEMA tenancy; CREATE EXTENSION tenant_rls SCHEMA tenancy");
    assert_eq!(surface(&mut admin), SURFACE);
    assert_eq!(privileges(&mut admin, "0"), PUBLIC);
    admin.run("SET search_path = tenancy");
    tour(&mut admin);
    assert_eq!(recorded(&mut admin, A, "rows"), 4);
    end_of_tour(&mut admin, &role);
    admin.run(&format!("SELECT tenant_grant('{role}'); GRANT SELECT, INSERT ON public.rows TO {role}"));
    let mut app = db.connect(&role);
    app.run(&format!("SET app.current_tenant = '{A}'"));
    assert_eq!(app.one::<i64>("SELECT count(*) FROM rows"), 3);
    app.run("INSERT INTO rows VALUES (8)");
    assert_eq!(app.fails("INSERT INTO rows VALUES (9)"), "53400");
    assert_eq!(answer(&mut app, "tenancy.tenant_quota_check('calls')")["used"], 3);
    assert_eq!(app.one::<i64>("SELECT used FROM tenancy.tenant_usage WHERE resource = 'calls'"), 3);
}
