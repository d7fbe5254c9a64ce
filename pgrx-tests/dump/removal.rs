//! DROP: what is left is closed, and nothing of ours gets in the way.

use postgres::Client;

use crate::harness::{A, B, Db, Session};

/// A database with `orders` of [`Db::with_orders`], owned by a role without superuser, with a permissive policy
/// that shows every row, and a gauge that follows the rows. The names of the owner and of the application.
fn protected() -> (Db, String, String) {
    let db = Db::with_orders();
    let (owner, app) = (db.role_name("owner"), db.app());
    db.role(&owner, "LOGIN");
    db.breaker().run(&format!(
        "ALTER TABLE orders OWNER TO {owner};
         CREATE POLICY everybody ON orders USING (true);
         GRANT TRUNCATE ON orders TO {app};
         SELECT tenant_resource_define('orders', 'gauge', 'order', 'none');
         SELECT tenant_plan_limit_set('free', 'orders', 100), tenant_quota_attach('orders', 'orders')"
    ));
    (db, owner, app)
}

/// A session reads no row and writes none, whether it names a tenant or not.
#[track_caller]
fn assert_closed(session: &mut Client) {
    for tenant in ["", A, "anything"] {
        session.run(&format!("SET app.current_tenant = '{tenant}'"));
        assert_eq!(session.one::<i64>("SELECT count(*) FROM orders"), 0);
        assert_eq!(session.fails(&format!("INSERT INTO orders VALUES (50, '{A}')")), "42501");
        assert_eq!(session.execute("UPDATE orders SET note = 'x'", &[]).unwrap(), 0);
        assert_eq!(session.execute("DELETE FROM orders", &[]).unwrap(), 0);
    }
}

#[test]
fn the_extension_is_not_dropped_while_tables_are_protected() {
    let db = Db::with_orders();
    let mut admin = db.admin();
    assert_eq!(admin.fails("DROP EXTENSION tenant_rls"), "2BP01");
    admin.run("SELECT tenant_unprotect('orders'); DROP EXTENSION tenant_rls");
}

/// Every way in which the extension can go, seen by sessions from before and by new ones.
#[test]
fn protected_tables_are_closed_when_the_extension_is_gone() {
    for (number, schema, statement) in [
        (1, "public", "DROP EXTENSION tenant_rls CASCADE"),
        (2, "public", "DROP EXTENSION IF EXISTS nothing, tenant_rls CASCADE"),
        (3, "tenancy", "DROP SCHEMA tenancy CASCADE"),
        (4, "public", "DROP EXTENSION plpgsql CASCADE"),
        (5, "tenancy", "DROP OWNED BY {super} CASCADE"),
    ] {
        let db = Db::without_extension();
        let [owner, app, superuser] = ["owner", "app", "super"].map(|name| db.role_name(name));
        db.role(&owner, "LOGIN");
        db.role(&app, "LOGIN");
        db.role(&superuser, "LOGIN SUPERUSER");
        db.connect(&superuser).run(&format!(
            "CREATE SCHEMA IF NOT EXISTS {schema}; CREATE EXTENSION tenant_rls SCHEMA {schema};
             SET search_path = public, {schema};
             CREATE TABLE orders (id int PRIMARY KEY, tenant_id uuid NOT NULL, note text);
             ALTER TABLE orders OWNER TO {owner};
             SELECT tenant_protect('orders'), tenant_create('{A}'), tenant_grant('{app}');
             CREATE POLICY everybody ON orders USING (true);
             GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO {app};
             INSERT INTO orders VALUES (1, '{A}')"
        ));
        let mut old = db.connect_as(&app, A);
        let cached = old.prepare("SELECT count(*) FROM orders").unwrap();
        assert_eq!(old.query_one(&cached, &[]).unwrap().get::<_, i64>(0), 1);
        db.admin().run(&statement.replace("{super}", &superuser));
        let left: i64 = db.admin().one("SELECT count(*) FROM pg_extension WHERE extname = 'tenant_rls'");
        assert_eq!(left, 0, "{number}");
        assert_eq!(old.query_one(&cached, &[]).unwrap().get::<_, i64>(0), 0, "{statement}");
        for mut session in [old, db.connect(&app), db.connect(&owner)] {
            assert_closed(&mut session);
        }
    }
}

#[test]
fn a_drop_that_is_rolled_back_changes_nothing() {
    let (db, _, app) = protected();
    let mut admin = db.admin();
    let mut policies =
        || admin.one::<String>("SELECT string_agg(p::text, ' ' ORDER BY p) FROM pg_policies AS p");
    let before = policies();
    db.admin().run("BEGIN; DROP EXTENSION tenant_rls CASCADE; ROLLBACK");
    assert_eq!(policies(), before);
    let mut session = db.connect_as(&app, A);
    assert_eq!(session.one::<i64>("SELECT count(*) FROM orders"), 2);
}

#[test]
fn nothing_gets_in_the_way_of_ddl_afterwards() {
    let (db, owner, _) = protected();
    let mut admin = db.admin();
    admin.run(&format!("CREATE SCHEMA s; CREATE TABLE s.t (id int); ALTER TABLE s.t OWNER TO {owner}"));
    admin.run("DROP EXTENSION tenant_rls CASCADE");
    let left: i64 = admin.one("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'orders'::regclass");
    assert_eq!(left, 0);
    admin.run("INSERT INTO orders VALUES (60, gen_random_uuid()); TRUNCATE orders");
    admin.run("CREATE TABLE more (id int); ALTER TABLE more ADD n int; DROP TABLE more");
    admin.run(&format!("DROP SCHEMA s CASCADE; DROP OWNED BY {owner}"));
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM pg_class WHERE relname = 'orders'"), 0);
}

/// Backends remember tables, plans and protected tables of an extension by their numbers.
#[test]
fn a_new_extension_serves_sessions_of_the_former_one() {
    let (db, _, app) = protected();
    let mut admin = db.admin();
    admin.run("GRANT CREATE ON SCHEMA public TO PUBLIC; ALTER TABLE orders ADD customer_id uuid");
    let mut old = db.connect_as(&app, A);
    old.run("INSERT INTO orders (id) VALUES (10)");
    assert_eq!(old.one::<i64>("SELECT used FROM tenant_usage WHERE resource = 'orders'"), 3);
    assert_eq!(old.one::<i64>("SELECT used FROM tenant_quota_consume('api_requests', 5)"), 5);

    admin.run("DROP EXTENSION tenant_rls CASCADE");
    assert_closed(&mut old);
    assert_eq!(old.fails(&format!("SELECT set_tenant('{A}')")), "42883");
    admin.run(&format!(
        "UPDATE orders SET customer_id = CASE tenant_id WHEN '{A}' THEN '{B}' ELSE '{A}' END::uuid"
    ));
    admin.run(&format!(
        "CREATE EXTENSION tenant_rls; SELECT tenant_create('{A}'), tenant_create('{B}'), tenant_grant('{app}');
         SELECT tenant_resource_define('orders', 'gauge', 'order', 'none');
         SELECT tenant_plan_limit_set('free', 'orders', 100);
         SELECT tenant_protect('orders', 'customer_id'), tenant_quota_attach('orders', 'orders')"
    ));

    for mut session in [old, db.connect(&app)] {
        session.run("RESET app.current_tenant");
        assert_eq!(session.fails("SELECT count(*) FROM orders"), "55000");
        session.run(&format!("SET app.current_tenant = '{A}'"));
        assert_eq!(session.one::<i64>("SELECT count(*) FROM orders"), 2, "the rows that were B's");
        session.run(&format!("INSERT INTO orders (id, tenant_id) VALUES (20, '{B}')"));
        assert_eq!(session.one::<i64>("SELECT used FROM tenant_usage WHERE resource = 'orders'"), 3);
        assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_quota_invariants"), 0);
        session.run("DELETE FROM orders WHERE id = 20");
        assert_eq!(session.one::<i64>("SELECT used FROM tenant_quota_consume('api_requests', 0)"), 0);
    }
}

#[test]
fn a_new_extension_works_in_the_session_that_dropped_the_former_one() {
    let (db, _, app) = protected();
    let mut admin = db.admin();
    admin.run(&format!(
        "DROP EXTENSION tenant_rls CASCADE; CREATE EXTENSION tenant_rls;
         SELECT tenant_create('{A}'), tenant_grant('{app}'), tenant_protect('orders');
         SELECT tenant_resource_define('orders', 'gauge', 'order', 'none');
         SELECT tenant_plan_limit_set('free', 'orders', 100)"
    ));
    // A gauge counts no rows of tenants that the new registry does not know.
    assert_eq!(admin.fails("SELECT tenant_quota_attach('orders', 'orders')"), "42704");
    admin.run(&format!("SELECT tenant_create('{B}'); SELECT tenant_quota_attach('orders', 'orders')"));
    let mut session = db.connect_as(&app, A);
    assert_eq!(session.one::<i64>("SELECT count(*) FROM orders"), 2);
    session.run("INSERT INTO orders (id) VALUES (10)");
    assert_eq!(session.one::<i64>("SELECT used FROM tenant_usage WHERE resource = 'orders'"), 3);
    admin.run("BEGIN; DROP EXTENSION tenant_rls CASCADE; CREATE EXTENSION tenant_rls; COMMIT");
    admin.run(&format!("SELECT tenant_create('{A}'), tenant_grant('{app}'), tenant_protect('orders')"));
    // The tenant of that name is another one now.
    assert_eq!(session.fails("SELECT count(*) FROM orders"), "55000");
    session.run(&format!("SET app.current_tenant = '{A}'"));
    assert_eq!(session.one::<i64>("SELECT count(*) FROM orders"), 3);
}

/// Two tables feed one gauge; one of them is a tree in a schema of its own.
fn with_tree() -> (Db, String) {
    let (db, owner, _) = protected();
    db.admin().run(&format!(
        "CREATE SCHEMA s AUTHORIZATION {owner}; SET ROLE {owner};
         CREATE TABLE s.items (id int, tenant_id uuid NOT NULL) PARTITION BY RANGE (id);
         CREATE TABLE s.low PARTITION OF s.items FOR VALUES FROM (0) TO (100);
         CREATE TABLE s.high PARTITION OF s.items FOR VALUES FROM (100) TO (200);
         SELECT tenant_protect('s.items'); RESET ROLE;
         SELECT tenant_quota_attach('s.items', 'orders');
         INSERT INTO s.items VALUES (1, '{A}'), (2, '{A}'), (101, '{A}'), (102, '{B}')"
    ));
    (db, owner)
}

/// Units of A and B, tables that are protected, tables that are attached; no invariant is violated.
fn facts(admin: &mut Client) -> (i64, i64, i64, i64) {
    let mut count = |sql: &str| admin.one::<i64>(sql);
    assert_eq!(count("SELECT count(*) FROM tenant_quota_invariants"), 0);
    let dangling = "SELECT count(*) FROM (SELECT relation, root FROM tenant_rls.protected_tables
        UNION ALL SELECT relation, root FROM tenant_rls.attachments) AS r
        WHERE NOT EXISTS (SELECT FROM pg_class WHERE oid = relation) OR NOT EXISTS (SELECT FROM pg_class WHERE oid = root)";
    assert_eq!(count(dangling), 0);
    let mut used = |tenant: &str| {
        count(&format!(
            "SELECT used FROM tenant_rls.units WHERE resource = 'orders' AND tenant_id = '{tenant}'"
        ))
    };
    let (a, b) = (used(A), used(B));
    (
        a,
        b,
        count("SELECT count(*) FROM tenant_rls.protected_tables"),
        count("SELECT count(*) FROM tenant_rls.attachments"),
    )
}

#[test]
fn dropped_tables_are_forgotten_and_their_rows_no_longer_count() {
    let (db, owner) = with_tree();
    let mut admin = db.admin();
    assert_eq!(facts(&mut admin), (5, 3, 4, 4));
    let mut as_owner = db.connect(&owner);
    as_owner.run("DROP TABLE s.high");
    assert_eq!(facts(&mut admin), (4, 2, 3, 3));
    as_owner.run("BEGIN; DROP TABLE s.items; ROLLBACK");
    assert_eq!(facts(&mut admin), (4, 2, 3, 3));
    as_owner.run("DROP TABLE s.items");
    assert_eq!(facts(&mut admin), (2, 2, 1, 1));
    as_owner.run("DROP TABLE orders");
    assert_eq!(facts(&mut admin), (0, 0, 0, 0));
}

#[test]
fn a_dropped_schema_is_forgotten() {
    let (db, owner) = with_tree();
    let mut admin = db.admin();
    db.connect(&owner).run("DROP SCHEMA s CASCADE");
    assert_eq!(facts(&mut admin), (2, 2, 1, 1));
}

#[test]
fn the_tables_of_a_dropped_owner_are_forgotten() {
    let (db, owner) = with_tree();
    let mut admin = db.admin();
    admin.run(&format!("DROP OWNED BY {owner}"));
    assert_eq!(facts(&mut admin), (0, 0, 0, 0));
}
