//! Commands that would open a table: by its owner, who means to let the application in, by an administrator who does
//! not know better, and by an application that may create objects of its own.

use super::{Attack, any, attack, no, ok};

/// What the application sees of the orders after it.
fn orders() -> super::Step {
    ok("SET app.current_tenant = '{A}'; SELECT note FROM orders ORDER BY id; RESET app.current_tenant")
        .by("app")
}

pub fn attacks() -> Vec<Attack> {
    let mut attacks = of_the_owner();
    attacks.extend(trees());
    attacks.extend(of_others());
    attacks
}

fn of_the_owner() -> Vec<Attack> {
    let by_owner =
        |name, sql| attack(name, "ddl guard", "", vec![no("42501", sql), orders()]).by("owner", "{A}");
    vec![
        by_owner("the owner disables row security", "ALTER TABLE orders DISABLE ROW LEVEL SECURITY"),
        by_owner("the owner disables it among other things", "ALTER TABLE orders ADD COLUMN x int, DISABLE ROW LEVEL SECURITY, ALTER note SET DEFAULT 1"),
        by_owner("the owner disables it in a block", "DO $$ BEGIN ALTER TABLE orders DISABLE ROW LEVEL SECURITY; END $$"),
        by_owner("the owner disables it on a leaf", "ALTER TABLE events_2027_0 DISABLE ROW LEVEL SECURITY"),
        by_owner("the owner takes force", "ALTER TABLE orders NO FORCE ROW LEVEL SECURITY"),
        by_owner("the owner drops the boundary", "DROP POLICY tenant_boundary ON orders"),
        by_owner("the owner changes the boundary", "ALTER POLICY tenant_boundary ON orders USING (true) WITH CHECK (true)"),
        by_owner("the owner gives the boundary to others", "ALTER POLICY tenant_boundary ON orders TO {stranger}"),
        by_owner("the owner renames the boundary", "ALTER POLICY tenant_boundary ON orders RENAME TO old_boundary"),
        by_owner("the owner drops the policies with the column", "ALTER TABLE orders DROP COLUMN tenant_id CASCADE"),
        by_owner("the owner renames the column", "ALTER TABLE orders RENAME tenant_id TO old"),
        by_owner("the owner lets the column be null", "ALTER TABLE jobs ALTER tenant_id DROP NOT NULL"),
        by_owner("the owner grants TRUNCATE", "GRANT TRUNCATE ON orders TO {app}"),
        by_owner("the owner grants everything", "GRANT ALL ON orders TO {app}"),
        by_owner("the owner grants REFERENCES of a column", "GRANT REFERENCES (id) ON people TO {app}"),
        // The query of a materialized view runs in a security-restricted operation, where nobody acts for a tenant.
        attack("the owner copies the rows of a tenant", "no tenant in code of owners", "", vec![
            no("55000", "CREATE MATERIALIZED VIEW copied AS SELECT * FROM orders"), orders()]).by("owner", "{A}"),
        by_owner("a default that stamps all rows", "ALTER TABLE badges ADD COLUMN t uuid DEFAULT required_tenant()"),
        by_owner("a foreign key that is checked for one tenant", "ALTER TABLE badges ADD FOREIGN KEY (tenant_id, id) REFERENCES orders"),
        attack("the owner tries again after a refusal", "ddl guard", "", vec![
            ok("BEGIN; SAVEPOINT s"), no("42501", "ALTER TABLE orders DISABLE ROW LEVEL SECURITY"), ok("ROLLBACK TO s"),
            ok("DO $$ BEGIN ALTER TABLE orders DISABLE ROW LEVEL SECURITY; EXCEPTION WHEN OTHERS THEN NULL; END $$; COMMIT"),
            orders()]).by("owner", "{A}"),
        attack("the owner pretends to restore", "ddl guard", "", vec![
            ok("SET row_security = off; SET check_function_bodies = off"),
            no("42501", "ALTER TABLE orders DISABLE ROW LEVEL SECURITY"), orders()]).by("owner", "{A}"),
        attack("the owner switches the guard off", "settings", "", vec![
            no("42501", "SET tenant_rls.ddl_guard = off"), no("42501", "SET LOCAL tenant_rls.ddl_guard = warn"),
            no("42501", "SELECT set_config('tenant_rls.ddl_guard', 'off', false)"),
            no("42501", "ALTER ROLE {owner} SET tenant_rls.ddl_guard = off"),
            no("42501", "ALTER EVENT TRIGGER tenant_rls_ddl_guard DISABLE")]).by("owner", "{A}"),
        attack("the owner hides a command in an index", "ddl guard",
            "SET ROLE {owner}; CREATE FUNCTION disable() RETURNS void LANGUAGE plpgsql AS $$ BEGIN ALTER TABLE public.orders DISABLE ROW LEVEL SECURITY; END $$;
             CREATE FUNCTION own(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM public.disable(); RETURN $1; END $$; RESET ROLE",
            vec![no("42501", "CREATE INDEX ON people (own(id))"), orders()]).by("owner", "{A}"),
    ]
}

fn trees() -> Vec<Attack> {
    let later = |name, sql, insert, select| {
        attack(
            name,
            "ddl guard",
            "",
            vec![
                ok("SET client_min_messages = error"),
                ok(sql),
                ok(insert).by("admin"),
                ok("SET app.current_tenant = '{A}'").by("app"),
                ok(select).by("app"),
            ],
        )
        .by("owner", "{A}")
        .changes()
    };
    vec![
        later("a partition that comes later",
            "CREATE TABLE events_2028 PARTITION OF events FOR VALUES FROM ('2028-01-01') TO ('2029-01-01'); GRANT SELECT ON events_2028 TO {app}",
            "INSERT INTO events VALUES ('{B}', '2028-05-01', 1, 'canary-b')", "SELECT * FROM events_2028"),
        later("a leaf that comes later",
            "CREATE TABLE events_2028 PARTITION OF events FOR VALUES FROM ('2028-01-01') TO ('2029-01-01') PARTITION BY HASH (id);
             CREATE TABLE events_2028_0 PARTITION OF events_2028 FOR VALUES WITH (MODULUS 1, REMAINDER 0); GRANT SELECT ON events_2028_0 TO {app}",
            "INSERT INTO events VALUES ('{B}', '2028-05-01', 1, 'canary-b')", "SELECT * FROM events_2028_0"),
        later("a partition that is attached",
            "CREATE TABLE late (LIKE events INCLUDING ALL); GRANT SELECT ON late TO {app};
             ALTER TABLE events ATTACH PARTITION late FOR VALUES FROM ('2028-01-01') TO ('2029-01-01')",
            "INSERT INTO late VALUES ('{B}', '2028-05-01', 1, 'canary-b')", "SELECT * FROM late"),
        later("a child that comes later", "CREATE TABLE papers_new () INHERITS (papers); GRANT SELECT ON papers_new TO {app}",
            "SET app.current_tenant = '{B}'; INSERT INTO papers_new VALUES ('{B}', 9, 'canary-b')", "SELECT * FROM papers_new"),
        attack("a parent that is open", "ddl guard",
            "SET ROLE {owner}; CREATE TABLE everything (tenant_id uuid, note text); GRANT SELECT ON everything TO {app}; RESET ROLE", vec![
            no("42501", "ALTER TABLE people INHERIT everything"),
            no("42501", "ALTER TABLE orders INHERIT everything"),
            ok("SELECT * FROM everything").by("app"),
        ]).by("owner", "{A}"),
    ]
}

fn of_others() -> Vec<Attack> {
    let by_admin = |name, setup, sql| {
        attack(
            name,
            "ddl guard",
            setup,
            vec![no("42501", sql).by("admin"), ok("SELECT note FROM orders ORDER BY id")],
        )
    };
    let mine = "CREATE SCHEMA mine AUTHORIZATION {app}";
    vec![
        by_admin("an administrator makes a view", "", "CREATE VIEW all_orders AS SELECT * FROM orders"),
        by_admin("an administrator makes a view over a view", "", "CREATE VIEW all_orders AS SELECT * FROM orders_invoker"),
        by_admin("an administrator takes over a view", "", "ALTER VIEW orders_owner OWNER TO CURRENT_USER"),
        by_admin("an administrator makes a view read as its owner",
            "CREATE VIEW all_orders WITH (security_invoker) AS SELECT * FROM orders; GRANT SELECT ON all_orders TO {app}",
            "ALTER VIEW all_orders RESET (security_invoker)"),
        by_admin("an administrator makes a materialized view", "", "CREATE MATERIALIZED VIEW all_orders AS SELECT * FROM orders"),
        by_admin("an administrator makes a function", "",
            "CREATE FUNCTION all_orders() RETURNS SETOF orders LANGUAGE sql SECURITY DEFINER BEGIN ATOMIC SELECT * FROM orders; END"),
        by_admin("an administrator makes a rule", "CREATE TABLE inbox (id int)",
            "CREATE RULE r AS ON INSERT TO inbox DO ALSO DELETE FROM orders"),
        by_admin("an administrator gives the table away", "", "ALTER TABLE orders OWNER TO {app}"),
        by_admin("an administrator gives all tables away", "", "REASSIGN OWNED BY {owner} TO {app}"),
        by_admin("an administrator disables row security", "", "ALTER TABLE orders DISABLE ROW LEVEL SECURITY"),
        by_admin("an administrator disables the guard", "", "ALTER EVENT TRIGGER tenant_rls_ddl_guard DISABLE"),
        attack("a view of the application", "policy", mine, vec![
            ok("SET client_min_messages = error; CREATE VIEW mine.v AS SELECT * FROM orders; GRANT SELECT ON mine.v TO {b}; GRANT USAGE ON SCHEMA mine TO {b}"),
            ok("SELECT note FROM mine.v ORDER BY id")]),
        attack("a copy of the application", "no tenant in code of owners", mine, vec![
            no("55000", "CREATE MATERIALIZED VIEW mine.m AS SELECT * FROM orders")]),
        attack("an empty copy of the application", "ddl guard", mine, vec![
            no("42501", "CREATE MATERIALIZED VIEW mine.m AS SELECT * FROM orders WITH NO DATA")]),
        attack("a table of the application with a tenant column", "policy", mine, vec![
            ok("SET client_min_messages = error; CREATE TABLE mine.t (tenant_id uuid, note text); INSERT INTO mine.t VALUES ('{B}', 'planted')"),
            any("SELECT tenant_protect('mine.t')"), ok("SELECT note FROM orders ORDER BY id")]).changes(),
        attack("a child of the application", "catalog rights", mine, vec![
            no("42501", "CREATE TABLE mine.t () INHERITS (public.papers)"),
            no("42501", "CREATE TABLE mine.t PARTITION OF public.events FOR VALUES FROM ('2029-01-01') TO ('2030-01-01')")]),
    ]
}
