//! Our own tables, functions and the extension itself.

use super::{Attack, attack, no, ok};

/// Everything of ours that a careless administrator may grant.
pub const CARELESS: &str = "GRANT USAGE ON SCHEMA tenant_rls TO {app}; GRANT ALL ON ALL TABLES IN SCHEMA tenant_rls TO {app}; GRANT ALL ON ALL SEQUENCES IN SCHEMA tenant_rls TO {app}";

pub fn attacks() -> Vec<Attack> {
    let mut attacks = tables();
    attacks.extend(functions());
    attacks.extend(extension());
    attacks
}

fn tables() -> Vec<Attack> {
    let closed = |name, sql| attack(name, "our privileges", "", vec![no("42501", sql)]);
    let careless = |name, sql| attack(name, "our row security", CARELESS, vec![ok(sql)]);
    vec![
        closed("read the tenants", "SELECT * FROM tenant_rls.tenants"),
        closed("read the grants", "SELECT * FROM tenant_rls.grants"),
        closed("read the usage", "SELECT * FROM tenant_rls.usage"),
        closed("read the changes", "SELECT * FROM tenant_rls.changes"),
        closed(
            "grant itself B",
            "INSERT INTO tenant_rls.grants (role_name, tenant_id) VALUES ('{app}', '{B}')",
        ),
        closed("make itself an operator", "INSERT INTO tenant_rls.operators (role_name) VALUES ('{app}')"),
        closed("empty the registry", "TRUNCATE tenant_rls.tenants CASCADE"),
        closed("forget that tables are protected", "DELETE FROM tenant_rls.protected_tables"),
        careless("read the tenants with careless grants", "SELECT * FROM tenant_rls.tenants"),
        careless("read the usage with careless grants", "SELECT * FROM tenant_rls.usage"),
        careless("read the changes with careless grants", "SELECT * FROM tenant_rls.changes"),
        careless("delete the usage of B with careless grants", "DELETE FROM tenant_rls.usage"),
        careless("change plans with careless grants", "UPDATE tenant_rls.tenants SET plan = 'enterprise'"),
        careless("raise limits with careless grants", "UPDATE tenant_rls.plan_limits SET quota_limit = NULL"),
        attack(
            "grant itself B with careless grants",
            "our row security",
            CARELESS,
            vec![
                no("42501", "INSERT INTO tenant_rls.grants (role_name, tenant_id) VALUES ('{app}', '{B}')"),
                no("42501", "SET app.current_tenant = '{B}'"),
            ],
        ),
        attack(
            "an override with careless grants",
            "our row security",
            CARELESS,
            vec![no("42501", "INSERT INTO tenant_rls.overrides VALUES ('{A}', 'calls', 1000000)")],
        ),
        attack(
            "pg_read_all_data",
            "our row security",
            "CREATE ROLE {own} LOGIN IN ROLE {app}, pg_read_all_data",
            vec![
                ok("SELECT * FROM tenant_rls.tenants"),
                ok("SELECT * FROM tenant_rls.usage"),
                ok("SELECT * FROM tenant_rls.changes"),
            ],
        )
        .by("own", ""),
    ]
}

fn functions() -> Vec<Attack> {
    let closed = |name, sql| attack(name, "our functions", "", vec![no("42501", sql)]);
    vec![
        closed("call tenant_grant", "SELECT tenant_grant('{app}')"),
        closed("call tenant_grant for B", "SELECT tenant_grant('{app}', '{B}')"),
        closed("call tenant_revoke of B's role", "SELECT tenant_revoke('{b}', '{B}')"),
        closed("call tenant_grant_operator", "SELECT tenant_grant_operator('{app}')"),
        closed("call tenant_revoke_operator", "SELECT tenant_revoke_operator('{operator}')"),
        closed("call tenant_suspend of B", "SELECT tenant_suspend('{B}')"),
        closed("call tenant_delete of B", "SELECT tenant_delete('{B}')"),
        closed("call tenant_fence of B", "SELECT tenant_fence('{B}')"),
        closed("call tenant_plan_change", "SELECT tenant_plan_change('{A}', 'enterprise')"),
        closed("call tenant_quota_set", "SELECT tenant_quota_set('{A}', 'calls', 1000)"),
        closed("call tenant_plan_limit_set", "SELECT tenant_plan_limit_set('free', 'calls', NULL, true)"),
        closed("call tenant_billing_set", "SELECT tenant_billing_set('{A}', now(), 'UTC')"),
        closed("call tenant_list", "SELECT tenant_list('suspended')"),
        closed("call tenant_create", "SELECT tenant_create()"),
        attack(
            "call the trigger functions of ours",
            "our privileges",
            "",
            vec![no("42501", "SELECT tenant_rls.acting_role()")],
        ),
        attack(
            "a trigger with a function of ours",
            "our functions",
            "GRANT USAGE ON SCHEMA tenant_rls TO {app}",
            vec![
                ok("CREATE TEMPORARY TABLE t (role_name text, role_oid oid)"),
                no(
                    "42501",
                    "CREATE TRIGGER t BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION tenant_rls.resolve_role()",
                ),
            ],
        ),
        attack(
            "a restore trigger of ours on an own table",
            "our functions",
            "GRANT USAGE ON SCHEMA tenant_rls TO {app}",
            vec![
                ok("CREATE TEMPORARY TABLE t (id int)"),
                no(
                    "42501",
                    "CREATE TRIGGER t BEFORE INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.restore_begins()",
                ),
            ],
        ),
        attack(
            "a change record of its own making",
            "our functions",
            "GRANT USAGE ON SCHEMA tenant_rls TO {app}",
            vec![
                ok("CREATE TEMPORARY TABLE tenants (id int)"),
                no(
                    "42501",
                    "CREATE TRIGGER t AFTER INSERT ON tenants FOR EACH ROW EXECUTE FUNCTION tenant_rls.record_change()",
                ),
            ],
        ),
        attack(
            "unprotect a table of others",
            "owner check",
            "",
            vec![no("42501", "SELECT tenant_unprotect('people')")],
        ),
        attack(
            "protect a table of others anew",
            "owner check",
            "",
            vec![no("42501", "SELECT tenant_protect('people', 'id', false)")],
        ),
        attack(
            "protect the tables of a schema without force",
            "owner check",
            "CREATE TABLE plain (tenant_id uuid); GRANT SELECT ON plain TO {app}",
            vec![ok(
                "SELECT target, left(result, 5) FROM tenant_protect_schema('public') ORDER BY target::text",
            )],
        ),
        attack(
            "attach a gauge to a table of others",
            "owner check",
            "",
            vec![no("42501", "SELECT tenant_quota_attach('people', 'seats')")],
        ),
        attack(
            "detach the gauge of a table of others",
            "owner check",
            "",
            vec![no("42501", "SELECT tenant_quota_detach('papers', 'papers')")],
        ),
        attack(
            "reconcile a table of others",
            "owner check",
            "",
            vec![no("42501", "SELECT tenant_quota_reconcile('papers')")],
        ),
        attack(
            "attach an own empty table to a gauge",
            "operator check",
            "CREATE SCHEMA own AUTHORIZATION {app}; CREATE TABLE own.own (tenant_id uuid NOT NULL); ALTER TABLE own.own OWNER TO {app}",
            vec![
                ok("SET client_min_messages = error; SELECT tenant_protect('own.own')"),
                no("42501", "SELECT tenant_quota_attach('own.own', 'seats')"),
            ],
        ).changes(),
        attack(
            "the usage function with B's name",
            "usage rights",
            "GRANT USAGE ON SCHEMA tenant_rls TO {app}",
            vec![no("42501", "SELECT * FROM tenant_rls.usage_of('{B}')")],
        ),
        attack(
            "the storage function with B's name",
            "usage rights",
            "GRANT USAGE ON SCHEMA tenant_rls TO {app}",
            vec![no("42501", "SELECT * FROM tenant_rls.storage_of('{B}')")],
        ),
        attack(
            "the storage function for all",
            "usage rights",
            "GRANT USAGE ON SCHEMA tenant_rls TO {app}",
            vec![no("42501", "SELECT * FROM tenant_rls.storage_of(NULL)")],
        ),
        attack(
            "the invariants of all",
            "usage rights",
            "GRANT USAGE ON SCHEMA tenant_rls TO {app}",
            vec![no("42501", "SELECT * FROM tenant_rls.invariants()")],
        ),
        attack(
            "the gauge trigger on an own table",
            "gauge trigger",
            "",
            vec![
                ok("CREATE TEMPORARY TABLE t (tenant_id uuid)"),
                super::any(
                    "CREATE TRIGGER t AFTER INSERT ON t REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION tenant_gauge_changed(); INSERT INTO t VALUES ('{B}')",
                ),
            ],
        ),
        attack(
            "a call of the event trigger functions",
            "our privileges",
            "",
            vec![no("42501", "SELECT tenant_rls.close_before_drop()")],
        ),
    ]
}

fn extension() -> Vec<Attack> {
    let wide = "SET ROLE {owner}; CREATE POLICY wide ON orders USING (true); CREATE POLICY wide ON people USING (true); RESET ROLE";
    vec![
        attack(
            "drop the extension",
            "catalog rights",
            "",
            vec![no("42501", "DROP EXTENSION tenant_rls CASCADE")],
        ),
        attack(
            "update the extension",
            "catalog rights",
            "",
            vec![no("42501", "ALTER EXTENSION tenant_rls UPDATE")],
        ),
        attack(
            "a member added to the extension",
            "catalog rights",
            "",
            vec![
                ok("CREATE TEMPORARY TABLE t (id int)"),
                no("42501", "ALTER EXTENSION tenant_rls ADD TABLE t"),
            ],
        ),
        attack(
            "the extension dropped with its policies",
            "boundary stays",
            wide,
            vec![ok("DROP EXTENSION tenant_rls CASCADE").by("admin"), ok("SELECT count(*) FROM orders")],
        ),
        attack(
            "the schema of the functions dropped",
            "catalog rights",
            "",
            vec![no("42501", "DROP SCHEMA public CASCADE")],
        ),
        attack(
            "disable an event trigger",
            "catalog rights",
            "",
            vec![no("42501", "ALTER EVENT TRIGGER tenant_rls_close_before_drop DISABLE")],
        ),
        attack(
            "switch triggers off for the session",
            "catalog rights",
            "",
            vec![no("42501", "SET session_replication_role = replica")],
        ),
        attack(
            "disable row security",
            "catalog rights",
            "",
            vec![no("42501", "ALTER TABLE orders DISABLE ROW LEVEL SECURITY")],
        ),
        attack(
            "drop the boundary",
            "catalog rights",
            "",
            vec![no("42501", "DROP POLICY tenant_boundary ON orders")],
        ),
        attack(
            "change the boundary",
            "catalog rights",
            "",
            vec![no("42501", "ALTER POLICY tenant_boundary ON orders USING (true)")],
        ),
        attack(
            "a policy of its own",
            "catalog rights",
            "",
            vec![no("42501", "CREATE POLICY mine ON orders USING (true)")],
        ),
        attack(
            "drop what it owns",
            "catalog rights",
            "",
            // The order of its warnings is that of the rows of a shared catalog.
            vec![
                ok("SET client_min_messages = error"),
                super::any("DROP OWNED BY {app}"),
                super::any("SELECT * FROM orders"),
            ],
        ),
        attack(
            "the library by hand",
            "catalog rights",
            "",
            vec![no(
                "42501",
                "CREATE FUNCTION pg_temp.required_tenant() RETURNS uuid LANGUAGE c AS 'tenant_rls', 'required_tenant'",
            )],
        ),
        attack("load the library", "catalog rights", "", vec![no("42501", "LOAD '$libdir/tenant_rls'")]),
    ]
}
