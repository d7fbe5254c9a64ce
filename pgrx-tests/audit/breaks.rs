//! One database a code, broken in exactly that way.

use super::{findings, sound, trouble};
use crate::harness::{A, Db, Session};

/// A way to break the database of [`sound`]. `@app` and `@owner` are its roles, `@other` is a role without rights,
/// `@db` the database.
pub struct Case {
    pub code: &'static str,
    pub(super) broken: &'static str,
    /// The object of the finding.
    object: &'static str,
}

const fn case(code: &'static str, broken: &'static str, object: &'static str) -> Case {
    Case { code, broken, object }
}

pub const CASES: &[Case] = &[
    case("rls_off", "ALTER TABLE shop.orders DISABLE ROW LEVEL SECURITY", "shop.orders"),
    case("not_forced", "ALTER TABLE shop.orders NO FORCE ROW LEVEL SECURITY", "shop.orders"),
    case("not_forced", "SELECT tenant_protect('shop.orders', force => false)", "shop.orders"),
    case("policy_missing", "DROP POLICY tenant_boundary ON shop.orders", "shop.orders"),
    case("policy_missing", "DROP POLICY tenant_isolation ON shop.events_1", "shop.events_1"),
    case("policy_changed", "ALTER POLICY tenant_boundary ON shop.orders USING (true)", "shop.orders"),
    case("policy_changed", "ALTER POLICY tenant_boundary ON shop.orders TO @app", "shop.orders"),
    case(
        "policy_changed",
        "DROP POLICY tenant_boundary ON shop.orders;
         CREATE POLICY tenant_boundary ON shop.orders USING (tenant_id = required_tenant()) WITH CHECK (tenant_id = required_tenant())",
        "shop.orders",
    ),
    case(
        "policy_changed",
        "DROP POLICY tenant_boundary ON shop.orders;
         CREATE POLICY tenant_boundary ON shop.orders AS RESTRICTIVE FOR SELECT USING (tenant_id = required_tenant())",
        "shop.orders",
    ),
    case(
        "policy_changed",
        "CREATE FUNCTION shop.required_tenant() RETURNS uuid STABLE LANGUAGE sql AS 'SELECT NULL::uuid';
         ALTER POLICY tenant_boundary ON shop.orders WITH CHECK (tenant_id = shop.required_tenant())",
        "shop.orders",
    ),
    case("policy_constant", "CREATE POLICY mine ON shop.orders AS RESTRICTIVE USING (true)", "mine on shop.orders"),
    case("policy_constant", "CREATE POLICY mine ON shop.orders AS RESTRICTIVE USING (false)", "mine on shop.orders"),
    case("policy_constant", "CREATE POLICY mine ON shop.orders AS RESTRICTIVE USING (note = ' x ' OR true)", "mine on shop.orders"),
    case("policy_constant", "CREATE POLICY mine ON shop.orders AS RESTRICTIVE USING (id > 0) WITH CHECK (1 = 1)", "mine on shop.orders"),
    case("policy_constant", "CREATE POLICY mine ON shop.orders AS RESTRICTIVE FOR INSERT", "mine on shop.orders"),
    case("policy_duplicate", "CREATE POLICY mine ON shop.orders AS RESTRICTIVE USING (tenant_id = required_tenant()) WITH CHECK (tenant_id = required_tenant())", "mine on shop.orders"),
    case(
        "policy_duplicate",
        "CREATE TABLE shop.plain (n int); CREATE POLICY a ON shop.plain FOR SELECT TO @app, @other USING (n = 1);
         CREATE POLICY b ON shop.plain FOR SELECT TO @other, @app USING (n = 1)",
        "b on shop.plain",
    ),
    case(
        "policy_reads_open",
        "CREATE TABLE shop.members (id int, name text); GRANT SELECT, UPDATE (name) ON shop.members TO @app;
         CREATE POLICY mine ON shop.orders AS RESTRICTIVE USING (EXISTS (SELECT FROM shop.members AS m WHERE m.id = customer))",
        "mine on shop.orders",
    ),
    case(
        "policy_session",
        "CREATE TABLE shop.plain (who text); CREATE POLICY mine ON shop.plain USING (who = current_setting('app.who', true))",
        "mine on shop.plain",
    ),
    case("policy_session", "CREATE TABLE shop.plain (who text); CREATE POLICY mine ON shop.plain USING (who = current_user)", "mine on shop.plain"),
    case("policy_session", "CREATE POLICY mine ON shop.orders AS RESTRICTIVE USING (tenant_id = current_tenant() OR note = 'all')", "mine on shop.orders"),
    case(
        "privilege_without_policy",
        "CREATE TABLE shop.plain (n int); ALTER TABLE shop.plain ENABLE ROW LEVEL SECURITY; GRANT SELECT ON shop.plain TO PUBLIC",
        "shop.plain",
    ),
    case(
        "privilege_without_policy",
        "CREATE TABLE shop.plain (n int); ALTER TABLE shop.plain ENABLE ROW LEVEL SECURITY; GRANT SELECT, UPDATE ON shop.plain TO @app;
         CREATE POLICY mine ON shop.plain FOR SELECT TO @app USING (n = 1); CREATE POLICY yours ON shop.plain FOR UPDATE TO @other USING (n = 1)",
        "shop.plain",
    ),
    case("public_privilege", "GRANT SELECT ON shop.orders TO PUBLIC", "shop.orders"),
    case("public_privilege", "GRANT UPDATE (note) ON shop.orders TO PUBLIC", "shop.orders"),
    case("permissive_policy", "CREATE POLICY mine ON shop.orders FOR SELECT USING (true)", "shop.orders"),
    // A table that a role of the registry attached while the extension's triggers were not there.
    case(
        "partition_unprotected",
        "CREATE TABLE shop.events_2 (LIKE shop.events); ALTER TABLE shop.events_2 OWNER TO @owner;
         ALTER TABLE shop.events ATTACH PARTITION shop.events_2 FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')",
        "shop.events_2",
    ),
    case("partition_unprotected", "CREATE TABLE shop.child () INHERITS (shop.orders)", "shop.child"),
    case("partition_unprotected", "CREATE TABLE shop.parent (tenant_id uuid); ALTER TABLE shop.free INHERIT shop.parent", "shop.free"),
    case("table_unprotected", "CREATE TABLE shop.more (tenant_id uuid NOT NULL)", "shop.more"),
    case("table_unprotected", "CREATE TABLE shop.more (tenant_id bigint NOT NULL); GRANT SELECT ON shop.more TO @app", "shop.more"),
    case("table_unprotected", "CREATE TABLE shop.more (tenant_id text NOT NULL)", "shop.more"),
    case(
        "table_unprotected",
        "CREATE TABLE shop.a (org uuid NOT NULL); SELECT tenant_protect('shop.a', 'org');
         CREATE TABLE shop.b (org uuid NOT NULL)",
        "shop.b",
    ),
    case("policy_without_rls", "CREATE TABLE shop.plain (n int); CREATE POLICY p ON shop.plain USING (n = 1)", "shop.plain"),
    case("tenant_column_nullable", "ALTER TABLE shop.free ALTER COLUMN tenant_id DROP NOT NULL", "shop.free.tenant_id"),
    case("tenant_index_missing", "DROP INDEX shop.free_tenant_id_idx", "shop.free"),
    case("unique_without_tenant", "ALTER TABLE shop.orders ADD CONSTRAINT k UNIQUE (note, id)", "shop.k on shop.orders"),
    case("unique_without_tenant", "ALTER TABLE shop.free ADD PRIMARY KEY (n)", "shop.free_pkey on shop.free"),
    case("unique_without_tenant", "CREATE UNIQUE INDEX k ON shop.orders (lower(note), (id + 1)) WHERE id > 0", "shop.k on shop.orders"),
    case("unique_without_tenant", "CREATE UNIQUE INDEX k ON shop.orders (id) INCLUDE (tenant_id)", "shop.k on shop.orders"),
    case("unique_without_tenant", "ALTER TABLE shop.free ADD COLUMN u uuid UNIQUE", "shop.free_u_key on shop.free"),
    case(
        "unique_without_tenant",
        "CREATE EXTENSION btree_gist; ALTER TABLE shop.free ADD CONSTRAINT k EXCLUDE USING gist (n WITH =)",
        "shop.k on shop.free",
    ),
    case(
        "fk_without_tenant",
        "ALTER TABLE shop.customers ADD UNIQUE (id);
         ALTER TABLE shop.orders ADD COLUMN buyer int CONSTRAINT f REFERENCES shop.customers (id) ON DELETE SET NULL DEFERRABLE",
        "f on shop.orders",
    ),
    case(
        "fk_without_tenant",
        "ALTER TABLE shop.free ADD UNIQUE (n), ADD UNIQUE (n, tenant_id);
         ALTER TABLE shop.events ADD COLUMN n int CONSTRAINT f REFERENCES shop.free (n) ON DELETE CASCADE",
        "f on shop.events",
    ),
    case(
        "fk_without_tenant",
        "ALTER TABLE shop.customers ADD UNIQUE (id); CREATE TABLE shop.plain (n int CONSTRAINT f REFERENCES shop.customers (id))",
        "f on shop.plain",
    ),
    case("unfiltered_privilege", "GRANT TRUNCATE ON shop.orders TO @app", "shop.orders"),
    case("unfiltered_privilege", "GRANT TRIGGER ON shop.orders TO PUBLIC", "shop.orders"),
    case("unfiltered_privilege", "GRANT REFERENCES (id) ON shop.orders TO @other", "shop.orders"),
    case(
        "unfiltered_privilege",
        "GRANT TRUNCATE ON shop.orders TO @other WITH GRANT OPTION; GRANT USAGE ON SCHEMA shop TO @other;
         SET ROLE @other; GRANT TRUNCATE ON shop.orders TO @app; RESET ROLE",
        "shop.orders",
    ),
    case(
        "unfiltered_privilege",
        "DO $$ BEGIN IF current_setting('server_version_num')::int >= 170000 THEN GRANT MAINTAIN ON shop.orders TO @app;
         ELSE GRANT REFERENCES ON shop.orders TO @app; END IF; END $$",
        "shop.orders",
    ),
    case("app_role_attribute", "ALTER ROLE @app SUPERUSER", "@app"),
    case("app_role_attribute", "ALTER ROLE @app BYPASSRLS", "@app"),
    case("app_role_attribute", "GRANT @app TO @other; ALTER ROLE @other CREATEROLE", "@other"),
    case("app_role_attribute", "ALTER ROLE @app REPLICATION", "@app"),
    case("app_role_owner", "GRANT CREATE ON SCHEMA shop TO @owner; ALTER TABLE shop.free OWNER TO @app", "shop.free"),
    case("app_role_becomes", "GRANT @owner TO @app", "@app"),
    case("app_role_becomes", "ALTER ROLE @other BYPASSRLS; GRANT @other TO @app", "@app"),
    case("app_role_becomes", "GRANT pg_read_server_files TO @app", "@app"),
    case("app_role_becomes", "GRANT @owner TO @other; GRANT @other TO @app", "@app"),
    case("app_role_operator", "SELECT tenant_grant_operator('@app')", "@app"),
    case("bypass_role", "ALTER ROLE @other BYPASSRLS", "@other"),
    case("definer_view", "CREATE VIEW shop.v AS SELECT * FROM shop.orders", "shop.v"),
    case("definer_view", "CREATE VIEW shop.v AS SELECT * FROM shop.orders; ALTER VIEW shop.v OWNER TO @owner", "shop.v"),
    case(
        "definer_view",
        "CREATE VIEW shop.inner_view WITH (security_invoker) AS SELECT * FROM shop.orders;
         CREATE VIEW shop.v AS SELECT * FROM shop.inner_view",
        "shop.v",
    ),
    case("materialized_view", "CREATE MATERIALIZED VIEW shop.m AS SELECT * FROM shop.orders; GRANT SELECT ON shop.m TO @app", "shop.m"),
    case(
        "materialized_view",
        "CREATE VIEW shop.v WITH (security_invoker) AS SELECT * FROM shop.orders;
         CREATE MATERIALIZED VIEW shop.m AS SELECT * FROM shop.v; GRANT SELECT (id) ON shop.m TO PUBLIC",
        "shop.m",
    ),
    case("materialized_view", "CREATE MATERIALIZED VIEW shop.m AS SELECT * FROM shop.orders; ALTER TABLE shop.m OWNER TO @app", "shop.m"),
    case(
        "definer_function",
        "CREATE FUNCTION shop.f(int) RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = shop, pg_temp AS 'SELECT count(*) FROM orders'",
        "shop.f(integer)",
    ),
    case(
        "definer_function",
        "CREATE PROCEDURE shop.f() LANGUAGE sql SECURITY DEFINER SET search_path = shop, pg_temp AS 'DELETE FROM orders';
         REVOKE ALL ON PROCEDURE shop.f() FROM PUBLIC; GRANT EXECUTE ON PROCEDURE shop.f() TO @app",
        "shop.f()",
    ),
    case(
        "definer_trigger",
        "CREATE FUNCTION shop.f() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = shop, pg_temp AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER g BEFORE INSERT ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.f()",
        "g on shop.orders",
    ),
    case(
        "definer_search_path",
        "CREATE FUNCTION shop.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'; ALTER FUNCTION shop.f() OWNER TO @owner",
        "shop.f()",
    ),
    case(
        "definer_search_path",
        "CREATE FUNCTION shop.f() RETURNS int LANGUAGE sql SECURITY DEFINER SET search_path = pg_temp, shop AS 'SELECT 1';
         ALTER FUNCTION shop.f() OWNER TO @owner",
        "shop.f()",
    ),
    case("leakproof_function", "CREATE FUNCTION shop.f(text) RETURNS boolean LEAKPROOF LANGUAGE sql AS 'SELECT true'", "shop.f(text)"),
    case(
        "foreign_table",
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;
         CREATE FOREIGN TABLE shop.far (tenant_id uuid, n int) SERVER s; GRANT SELECT ON shop.far TO @app",
        "shop.far",
    ),
    case(
        "foreign_table",
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;
         CREATE FOREIGN TABLE shop.far PARTITION OF shop.events FOR VALUES FROM ('2030-01-01') TO ('2031-01-01') SERVER s",
        "shop.far",
    ),
    case("publication_unfiltered", "CREATE PUBLICATION p_@db FOR TABLE shop.orders", "p_@db"),
    case("publication_unfiltered", "CREATE PUBLICATION p_@db FOR ALL TABLES", "p_@db"),
    case("publication_unfiltered", "CREATE PUBLICATION p_@db FOR TABLES IN SCHEMA shop", "p_@db"),
    case("replica_identity", "CREATE PUBLICATION p_@db FOR TABLE shop.free WHERE (n = 1) WITH (publish = 'insert')", "shop.free"),
    case(
        "volatile_policy",
        "CREATE POLICY mine ON shop.orders AS RESTRICTIVE USING (random() < 2)",
        "shop.orders",
    ),
    case("volatile_policy", "CREATE TABLE shop.plain (n int); CREATE POLICY mine ON shop.plain USING (n > random())", "shop.plain"),
    case(
        "immutable_policy",
        "CREATE FUNCTION shop.who() RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT current_setting('app.who', true) $$;
         CREATE POLICY mine ON shop.orders AS RESTRICTIVE USING (note = shop.who())",
        "shop.who()",
    ),
    case("rule", "CREATE RULE r AS ON INSERT TO shop.orders DO ALSO NOTIFY x", "r on shop.orders"),
    case("default_privileges", "ALTER DEFAULT PRIVILEGES FOR ROLE @owner GRANT SELECT ON TABLES TO PUBLIC", "@owner"),
    case("default_privileges", "ALTER DEFAULT PRIVILEGES FOR ROLE @owner IN SCHEMA shop GRANT TRUNCATE ON TABLES TO @app", "@owner in shop"),
    case("schema_create", "GRANT CREATE ON SCHEMA shop TO @app", "shop"),
    case("schema_create", "GRANT CREATE ON SCHEMA public TO PUBLIC", "public"),
    case("tenant_stored", "ALTER ROLE @app SET app.current_tenant = '@tenant'", "@app"),
    case("tenant_stored", "ALTER ROLE @app IN DATABASE @db SET app.current_tenant = '@tenant'", "@app"),
    case("tenant_stored", "ALTER DATABASE @db SET app.current_tenant = '@tenant'", "database"),
    case("tenant_stored", "CREATE FUNCTION shop.f() RETURNS int LANGUAGE sql SET app.current_tenant = '@tenant' AS 'SELECT 1'", "shop.f()"),
    case("parameter_grant", "GRANT SET ON PARAMETER tenant_rls.missing_tenant TO @app", "tenant_rls.missing_tenant"),
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    case("parameter_grant", "GRANT SET ON PARAMETER event_triggers TO @app", "event_triggers"),
    case("tenant_in_catalog", "CREATE SCHEMA acme_inc", "acme_inc"),
    case("tenant_in_catalog", "CREATE POLICY mine ON shop.orders AS RESTRICTIVE USING (tenant_id = '@tenant')", "mine on shop.orders"),
    case("tenant_in_catalog", "COMMENT ON COLUMN shop.orders.note IS 'for @tenant only'", "shop.orders.note"),
    case("tenant_in_catalog", "COMMENT ON ROLE @app IS 'Acme, Inc'", "@app"),
    case("tenant_in_catalog", "CREATE TABLE shop.\"orders_@tenant\" (n int)", "shop.\"orders_@tenant\""),
    case("guard_disabled", "ALTER EVENT TRIGGER tenant_rls_follow_tree DISABLE", "tenant_rls_follow_tree"),
    case("guard_disabled", "ALTER TABLE tenant_rls.tenants DISABLE TRIGGER registry_changed", "registry_changed on tenant_rls.tenants"),
    case("guard_stored", "ALTER ROLE @app SET tenant_rls.ddl_guard = off", "@app"),
    case("guard_stored", "ALTER ROLE @owner IN DATABASE @db SET tenant_rls.ddl_guard = WARN", "@owner"),
    case("guard_stored", "ALTER DATABASE @db SET tenant_rls.guard_switch = no", "database"),
    case("guard_stored", "CREATE FUNCTION shop.f() RETURNS int LANGUAGE sql SET session_replication_role = replica AS 'SELECT 1'", "shop.f()"),
    case("registry_open", "ALTER TABLE tenant_rls.tenants DISABLE ROW LEVEL SECURITY", "tenant_rls.tenants"),
    case("registry_open", "CREATE POLICY p ON tenant_rls.tenants USING (true)", "tenant_rls.tenants"),
    case("registry_open", "GRANT SELECT ON tenant_rls.tenants TO @app", "tenant_rls.tenants"),
    case(
        "channel_open",
        "SELECT FROM tenant_lockdown(true); GRANT EXECUTE ON FUNCTION pg_notify(text, text) TO PUBLIC",
        "pg_notify(text,text)",
    ),
    case("channel_open", "SELECT FROM tenant_lockdown(true); GRANT TEMPORARY ON DATABASE @db TO PUBLIC", "DATABASE @db"),
    case("channel_open", "ALTER DATABASE @db SET lo_compat_privileges = yes", "database"),
];

/// The database before it is broken: with a table more, whose tenant column is no part of a key.
pub(super) fn before() -> Db {
    let db = sound();
    db.role(&db.role_name("other"), "LOGIN");
    db.admin().run("CREATE TABLE shop.free (tenant_id uuid, n int); SELECT tenant_protect('shop.free')");
    db
}

/// Each case is found, under its code and with its object, is not there before, and is gone after its fix.
#[test]
fn each_fix_repairs_what_was_found() {
    std::thread::scope(|scope| {
        let size = CASES.len().div_ceil(4);
        for cases in CASES.chunks(size) {
            scope.spawn(move || cases.iter().for_each(check));
        }
    });
}

/// The text of a case for a database.
pub(super) fn fill(db: &Db, text: &str) -> String {
    text.replace("@app", &db.app())
        .replace("@owner", &db.role_name("owner"))
        .replace("@other", &db.role_name("other"))
        .replace("@db", db.name())
        .replace("@tenant", A)
}

/// Roles outlive the database, and would be found by the others.
pub(super) fn restore_roles(db: &Db) {
    db.admin().run(&fill(db, "ALTER ROLE @app NOSUPERUSER NOBYPASSRLS; ALTER ROLE @other NOBYPASSRLS"));
}

fn check(case: &Case) {
    let db = before();
    let mut admin = db.admin();
    let (broken, object) = (fill(&db, case.broken), fill(&db, case.object));
    let found = |admin: &mut postgres::Client| -> Vec<String> {
        findings(admin, case.code).into_iter().filter(|(of, _)| *of == object).map(|(_, fix)| fix).collect()
    };
    assert_eq!(found(&mut admin), [""; 0], "{}: before", case.code);
    db.breaker().run(&broken);
    let fixes = found(&mut admin);
    assert!(!fixes.is_empty(), "{} is not found after {broken}: {:#?}", case.code, trouble(&mut admin));
    for fix in fixes {
        if let Err(error) = admin.batch_execute(&fix) {
            panic!("{}: {fix}: {error:?}", case.code);
        }
    }
    assert_eq!(found(&mut admin), [""; 0], "{} stays after its fix", case.code);
    restore_roles(&db);
}
