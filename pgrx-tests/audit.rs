//! tenant_audit finds what is broken, and its SQL repairs it.

mod beside;
mod breaks;

use std::collections::BTreeSet;

use postgres::Client;

use crate::harness::{A, B, Db, Session, refuses, report};

/// A protected database in order: keys and references with the tenant, an application's role without more than it
/// needs, and tables of an owner that is neither superuser nor an application.
fn sound() -> Db {
    let db = Db::new();
    let (app, owner) = (db.app(), db.role_name("owner"));
    db.role(&app, "LOGIN");
    db.role(&owner, "LOGIN");
    db.admin().run(&format!(
        "CREATE SCHEMA shop AUTHORIZATION {owner};
         GRANT USAGE ON SCHEMA shop TO {app};
         CREATE TABLE shop.customers (tenant_id uuid NOT NULL, id int NOT NULL, name text, PRIMARY KEY (tenant_id, id));
         CREATE TABLE shop.orders (
             tenant_id uuid NOT NULL, id int NOT NULL, customer int, note text, PRIMARY KEY (tenant_id, id),
             FOREIGN KEY (tenant_id, customer) REFERENCES shop.customers (tenant_id, id));
         CREATE TABLE shop.events (tenant_id uuid NOT NULL, at date NOT NULL) PARTITION BY RANGE (at);
         CREATE TABLE shop.events_1 PARTITION OF shop.events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
         ALTER TABLE shop.customers OWNER TO {owner};
         ALTER TABLE shop.orders OWNER TO {owner};
         ALTER TABLE shop.events OWNER TO {owner};
         ALTER TABLE shop.events_1 OWNER TO {owner};
         SELECT tenant_protect('shop.customers'), tenant_protect('shop.orders'), tenant_protect('shop.events');
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA shop TO {app};
         SELECT tenant_create('{A}', name => 'Acme Inc.'), tenant_create('{B}'), tenant_grant('{app}');
         INSERT INTO shop.customers VALUES ('{A}', 1, 'a1'), ('{B}', 2, 'b2')"
    ));
    db
}

/// Findings of a code, or of all codes that are not about the server: object and fix.
#[track_caller]
fn findings(client: &mut Client, code: &str) -> Vec<(String, String)> {
    client
        .query("SELECT object, fix FROM tenant_audit() WHERE code = $1 ORDER BY object, fix", &[&code])
        .expect("an audit")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

/// Every error and warning that is not about the server, as one text a line.
#[track_caller]
fn trouble(client: &mut Client) -> Vec<String> {
    // Roles are global to the cluster: those of tests that run beside this one are not looked at by codes about
    // applications, which start at the grants of this database.
    client
        .rows(
            "SELECT concat_ws(' | ', severity, code, object, finding) FROM tenant_audit()
             WHERE severity <> 'info' AND code NOT IN ('server_version', 'not_preloaded')",
        )
        .iter()
        .map(|row| row.get(0))
        .collect()
}

/// A database in order has no errors and no warnings but those about the server.
#[test]
fn a_sound_database_has_no_findings() {
    let db = sound();
    assert_eq!(trouble(&mut db.admin()), [""; 0]);
    db.admin().run("SELECT tenant_assert()");
}

/// An empty database is audited too, as is one whose schema of functions has a name that needs quotes.
#[test]
fn the_schema_of_the_extension_may_have_any_name() {
    let db = Db::without_extension();
    let mut admin = db.admin();
    admin.run("CREATE SCHEMA \"My Tenancy\"; CREATE EXTENSION tenant_rls SCHEMA \"My Tenancy\"");
    admin.run("SET search_path = \"My Tenancy\", public");
    assert_eq!(trouble(&mut admin), [""; 0]);
    admin.run("CREATE TABLE t (tenant_id uuid NOT NULL)");
    let unprotected = findings(&mut admin, "table_unprotected");
    assert_eq!(unprotected.len(), 1);
    admin.run(&unprotected[0].1);
    assert_eq!(trouble(&mut admin), [""; 0]);
}

/// tenant_assert raises for an error, not for a warning.
#[test]
fn assert_raises_for_errors() {
    let db = sound();
    let mut admin = db.admin();
    admin.run("CREATE POLICY mine ON shop.orders USING (true)");
    admin.run("SELECT tenant_assert()");
    db.breaker().run("ALTER TABLE shop.orders DISABLE ROW LEVEL SECURITY");
    let error = report(&mut admin, "SELECT tenant_assert()");
    assert_eq!(error.code().code(), "55000");
    assert!(error.detail().is_some_and(|detail| detail.contains("rls_off: shop.orders")));
    admin.run("ALTER TABLE shop.orders ENABLE ROW LEVEL SECURITY; SELECT tenant_assert()");
}

/// Operators audit; applications, owners of tables and strangers do not, and learn nothing of tenants by it.
#[test]
fn operators_may_audit() {
    let db = sound();
    let operator = db.role_name("operator");
    db.role(&operator, "LOGIN");
    db.admin().run(&format!("SELECT tenant_grant_operator('{operator}')"));
    db.connect(&operator).run("SELECT * FROM tenant_audit(); SELECT tenant_assert()");
    for role in [db.app(), db.role_name("owner")] {
        refuses(
            &mut db.connect(&role),
            &[
                ("SELECT * FROM tenant_audit()", "42501"),
                ("SELECT tenant_assert()", "42501"),
                ("SELECT * FROM tenant_rls.audit_tenant_in_catalog()", "42501"),
                ("SELECT tenant_rls.crossing_rows(1)", "42501"),
            ],
        );
    }
}

/// A role that may call the audit and does not see all tenants is told that rows can cross, not how many do.
#[test]
fn counts_are_for_those_who_see_all_tenants() {
    let db = sound();
    let ci = db.role_name("ci");
    db.role(&ci, "LOGIN");
    let mut admin = db.admin();
    admin.run(&format!("GRANT EXECUTE ON FUNCTION tenant_audit() TO {ci}"));
    cross(&mut admin);
    let severity = "SELECT severity FROM tenant_audit() WHERE code = 'fk_without_tenant'";
    assert_eq!(admin.one::<String>(severity), "error");
    let mut ci = db.connect(&ci);
    assert_eq!(ci.one::<String>(severity), "warning");
    let counts =
        "SELECT count(*) FROM tenant_audit() WHERE code = 'fk_without_tenant' AND finding LIKE '%: 1'";
    assert_eq!(ci.one::<i64>(counts), 0);
    assert_eq!(admin.one::<i64>(counts), 1);
}

/// A reference of A's order to B's customer.
fn cross(admin: &mut Client) {
    admin.run(&format!(
        "ALTER TABLE shop.customers ADD CONSTRAINT customers_id_key UNIQUE (id);
         ALTER TABLE shop.orders ADD COLUMN buyer int CONSTRAINT orders_buyer_fkey REFERENCES shop.customers (id);
         INSERT INTO shop.orders (tenant_id, id, buyer) VALUES ('{A}', 1, 2)"
    ));
}

/// Code of a table's owner that the count meets does not keep the audit from its findings. (With whose rights that code
/// runs: owners.rs.)
#[test]
fn an_owner_cannot_stop_the_audit() {
    let db = sound();
    let mut admin = db.admin();
    cross(&mut admin);
    let owner = db.role_name("owner");
    admin.run(&format!("GRANT CREATE ON SCHEMA shop TO {owner}"));
    db.connect(&owner).run(
        "CREATE FUNCTION shop.quiet(int) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT true';
         CREATE INDEX ON shop.orders (tenant_id) WHERE shop.quiet(1);
         CREATE OR REPLACE FUNCTION shop.quiet(int) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS
         $$ BEGIN RAISE division_by_zero; END $$",
    );
    let severity = "SELECT severity FROM tenant_audit() WHERE code = 'fk_without_tenant'";
    assert_eq!(db.admin().one::<String>(severity), "warning");
    admin.run(
        "CREATE OR REPLACE FUNCTION shop.quiet(int) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT true'",
    );
    assert_eq!(db.admin().one::<String>(severity), "error");
}

/// Names are data: neither a table, a column, a role nor a policy can put SQL into a fix.
#[test]
fn hostile_names_stay_names() {
    let db = Db::new();
    let mut admin = db.admin();
    let evil = "x\"; DROP TABLE victim; --\n'; DROP TABLE victim; --\\";
    let escaped = evil.replace('"', "\"\"");
    let quoted = format!("\"{escaped}\"");
    let mut admin_role = db.role_name("x\"; DROP TABLE victim; --\n'");
    admin_role = format!("\"{}\"", admin_role.replace('"', "\"\""));
    db.breaker().run(&format!(
        "CREATE TABLE victim (n int); CREATE ROLE {admin_role};
         CREATE SCHEMA {quoted};
         CREATE TABLE {quoted}.{quoted} ({quoted} uuid NOT NULL, id int CONSTRAINT \"{escaped}1\" UNIQUE, other int);
         SELECT tenant_protect(format('%I.%I', $evil${evil}$evil$, $evil${evil}$evil$), $evil${evil}$evil$);
         CREATE UNIQUE INDEX \"{escaped}2\" ON {quoted}.{quoted} (other, id);
         CREATE TABLE {quoted}.child ({quoted} uuid NOT NULL, parent int CONSTRAINT {quoted} REFERENCES {quoted}.{quoted} (id));
         CREATE POLICY {quoted} ON {quoted}.{quoted} USING (true);
         DROP POLICY tenant_boundary ON {quoted}.{quoted};
         GRANT TRUNCATE ON {quoted}.{quoted} TO {admin_role};
         ALTER DEFAULT PRIVILEGES IN SCHEMA {quoted} GRANT TRUNCATE ON TABLES TO {admin_role};
         CREATE FUNCTION {quoted}.{quoted}() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';
         CREATE VIEW {quoted}.view AS SELECT * FROM {quoted}.{quoted};
         CREATE PUBLICATION {quoted} FOR TABLE {quoted}.{quoted}"
    ));
    assert!(trouble(&mut admin).len() >= 9);
    // A fix can be in the way of another until that one has run, so more than one round.
    for _ in 0..4 {
        for row in admin.rows("SELECT fix FROM tenant_audit() WHERE severity <> 'info' AND fix NOT LIKE '--%' AND fix NOT LIKE 'ALTER SYSTEM%'") {
            let _ = admin.batch_execute(row.get(0));
        }
    }
    assert_eq!(trouble(&mut admin), [""; 0]);
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM pg_class WHERE relname = 'victim'"), 1);
    admin.run(&format!("DROP OWNED BY {admin_role}; DROP ROLE {admin_role}"));
}

/// The audit does not look names up where its caller has put others.
#[test]
fn the_search_path_of_the_caller_does_not_matter() {
    let db = sound();
    let mut admin = db.admin();
    db.breaker().run("ALTER TABLE shop.orders NO FORCE ROW LEVEL SECURITY");
    admin.run(
        "CREATE SCHEMA trap;
         CREATE FUNCTION trap.never(oid, oid) RETURNS boolean LANGUAGE sql AS 'SELECT false';
         CREATE OPERATOR trap.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = trap.never);
         CREATE VIEW trap.pg_class AS SELECT 1 AS nothing;
         CREATE TEMP VIEW pg_policy AS SELECT 1 AS nothing;
         SET search_path = trap, pg_temp, pg_catalog, public",
    );
    assert_eq!(findings(&mut admin, "not_forced")[0].0, "shop.orders");
    assert_eq!(findings(&mut admin, "policy_missing").len(), 0);
}

/// tenant_tables says when the table was audited; a transaction that only reads leaves no trace.
#[test]
fn the_last_audit_is_recorded() {
    let db = sound();
    let mut admin = db.admin();
    let audited = "SELECT count(last_audit) FROM tenant_tables";
    assert_eq!(admin.one::<i64>(audited), 0);
    admin.run("BEGIN READ ONLY; SELECT * FROM tenant_audit(); COMMIT");
    assert_eq!(admin.one::<i64>(audited), 0);
    admin.run("SELECT * FROM tenant_audit()");
    assert_eq!(admin.one::<i64>(audited), 4);
    // Protected after the audit: not audited yet.
    admin.run("CREATE TABLE late (tenant_id uuid NOT NULL); SELECT tenant_protect('late')");
    assert_eq!(admin.one::<i64>(audited), 4);
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_tables"), 5);
}

/// A database in which tenant_lockdown was not called is told so, once, and no longer when it was.
#[test]
fn channels_are_open_until_locked_down() {
    let db = sound();
    let mut admin = db.admin();
    let open = findings(&mut admin, "channel_open");
    assert_eq!(open.len(), 1, "{open:?}");
    assert_eq!(open[0].0, "tenant_lockdown");
    admin.run(&open[0].1);
    assert_eq!(findings(&mut admin, "channel_open"), []);
    admin.run("SELECT * FROM tenant_lockdown_undo(true)");
    assert_eq!(findings(&mut admin, "channel_open"), open);
}

/// The views of the server as a cluster has them that is older than their fix.
#[test]
fn old_views_of_statistics_are_found() {
    let db = sound();
    let mut admin = db.admin();
    let replace = |admin: &mut Client, view: &str, owner: &str, by: &str| {
        let definition: String = admin.one(&format!("SELECT pg_get_viewdef('pg_catalog.{view}'::regclass)"));
        assert!(definition.contains(owner), "{definition}");
        let definition = definition.replacen(owner, by, 1);
        admin.run(&format!(
            "SET allow_system_table_mods = on; CREATE OR REPLACE VIEW pg_catalog.{view} AS {definition}"
        ));
    };
    for view in ["pg_stats_ext", "pg_stats_ext_exprs"] {
        let (owner, anybody) = ("pg_has_role(c.relowner, 'USAGE'::text)", "(c.relowner IS NOT NULL)");
        assert_eq!(findings(&mut admin, "statistics_view"), []);
        replace(&mut admin, view, owner, anybody);
        let found = findings(&mut admin, "statistics_view");
        assert_eq!(found.iter().map(|(object, _)| object.as_str()).collect::<Vec<_>>(), [view]);
        replace(&mut admin, view, anybody, owner);
    }
}

/// Every lint is run by tenant_audit, and every lint has a test that breaks a database for it.
#[test]
fn every_lint_runs_and_is_tested() {
    let db = Db::new();
    let mut admin = db.admin();
    let lints: BTreeSet<String> = admin
        .rows("SELECT substr(proname, 7) FROM pg_proc WHERE pronamespace = 'tenant_rls'::regnamespace AND proargnames @> '{severity,code,fix}'")
        .iter()
        .map(|row| row.get(0))
        .collect();
    let audit: String = admin.one("SELECT prosrc FROM pg_proc WHERE proname = 'tenant_audit'");
    for lint in &lints {
        assert!(audit.contains(&format!("tenant_rls.audit_{lint}()")), "{lint} is not run");
    }
    let mut tested: BTreeSet<String> = breaks::CASES.iter().map(|case| case.code.to_string()).collect();
    // About the server: two that a test cannot break, and one that SQL does not repair.
    tested.extend(["server_version".into(), "not_preloaded".into(), "statistics_view".into()]);
    assert_eq!(lints, tested);
}
