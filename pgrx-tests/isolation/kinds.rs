//! Partitions, inheritance, numeric tenant columns, unusual names.

use super::{changed, texts};
use crate::harness::{A, B, Db, Session};

/// A database in which [`A`] has the key 7 and [`B`] the key 8.
fn with_keys() -> Db {
    let db = Db::with_orders();
    db.admin().run(&format!(
        "UPDATE tenant_rls.tenants SET tenant_key = 7 WHERE tenant_id = '{A}';
         UPDATE tenant_rls.tenants SET tenant_key = 8 WHERE tenant_id = '{B}'"
    ));
    db
}

/// A table `events`, in partitions by day and, below one of these, by tenant; two rows of each tenant.
fn with_partitions() -> Db {
    let db = Db::with_orders();
    db.admin().run(&format!(
        "CREATE TABLE events (day int, tenant_id uuid, note text) PARTITION BY LIST (day);
         CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1);
         CREATE TABLE events_2 PARTITION OF events FOR VALUES IN (2) PARTITION BY HASH (tenant_id);
         CREATE TABLE events_2_0 PARTITION OF events_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE events_2_1 PARTITION OF events_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
         INSERT INTO events VALUES (1, '{A}', 'a1'), (2, '{A}', 'a2'), (1, '{B}', 'b1'), (2, '{B}', 'b2');
         SELECT tenant_protect('events');
         GRANT SELECT, INSERT, UPDATE, DELETE ON events, events_1, events_2, events_2_0, events_2_1 TO {}",
        db.app()
    ));
    db
}

/// A partitioned table shows the tenant's rows, through the root and through each partition.
#[test]
fn partitions_show_its_rows() {
    let db = with_partitions();
    let mut app = db.connect_as(&db.app(), A);
    assert_eq!(texts(&mut app, "SELECT note FROM events ORDER BY day"), ["a1", "a2"]);
    assert_eq!(texts(&mut app, "SELECT note FROM events_1"), ["a1"]);
    assert_eq!(texts(&mut app, "SELECT note FROM events_2"), ["a2"]);
    let leaves = "SELECT note FROM events_2_0 UNION ALL SELECT note FROM events_2_1";
    assert_eq!(texts(&mut app, leaves), ["a2"]);
}

/// Every table of the tree raises without a tenant, also the empty ones.
#[test]
fn partitions_raise_without_a_tenant() {
    let db = with_partitions();
    let mut app = db.connect(&db.app());
    for table in ["events", "events_1", "events_2", "events_2_0", "events_2_1"] {
        assert_eq!(app.fails(&format!("SELECT FROM {table}")), "55000", "{table}");
    }
}

/// Rows are written through the root and through a partition, for the tenant alone.
#[test]
fn partitions_take_its_rows() {
    let db = with_partitions();
    let mut app = db.connect_as(&db.app(), A);
    for table in ["events", "events_1"] {
        assert_eq!(app.fails(&format!("INSERT INTO {table} VALUES (1, '{B}')")), "42501", "{table}");
        assert_eq!(app.fails(&format!("UPDATE {table} SET tenant_id = '{B}'")), "42501", "{table}");
        app.run(&format!("INSERT INTO {table} (day, note) VALUES (1, 'new')"));
    }
    assert_eq!(changed(&mut app, "UPDATE events SET day = 3 - day WHERE note = 'a1'"), 1);
    assert_eq!(changed(&mut app, "DELETE FROM events"), 4);
    assert_eq!(texts(&mut db.admin(), "SELECT note FROM events ORDER BY day"), ["b1", "b2"]);
}

/// A generic plan reads the partition of the tenant alone.
#[test]
fn partitions_are_pruned_at_run_time() {
    let db = with_partitions();
    let mut app = db.connect_as(&db.app(), A);
    app.run("SET plan_cache_mode = force_generic_plan; PREPARE q AS SELECT FROM events_2");
    let plan = texts(&mut app, "EXPLAIN (COSTS OFF) EXECUTE q").join("\n");
    assert!(plan.contains("Subplans Removed: 1"), "{plan}");
}

/// A fence holds for writes through any table of the tree.
#[test]
fn partitions_are_fenced() {
    let db = with_partitions();
    db.admin().run(&format!("SELECT tenant_fence('{A}')"));
    let mut app = db.connect_as(&db.app(), A);
    for table in ["events", "events_1", "events_2"] {
        assert_eq!(app.fails(&format!("UPDATE {table} SET note = 'x'")), "25006", "{table}");
        assert_eq!(app.fails(&format!("SELECT FROM {table} FOR SHARE")), "25006", "{table}");
    }
}

/// Children by inheritance are protected as their parent is.
#[test]
fn children_show_its_rows() {
    let db = Db::with_orders();
    let app = db.app();
    db.admin().run(&format!(
        "CREATE TABLE base (id int, tenant_id uuid, note text);
         CREATE TABLE child (extra int) INHERITS (base);
         CREATE TABLE grandchild () INHERITS (child);
         INSERT INTO base VALUES (1, '{A}', 'a1'), (2, '{B}', 'b2');
         INSERT INTO child VALUES (3, '{A}', 'a3'), (4, '{B}', 'b4');
         INSERT INTO grandchild VALUES (5, '{A}', 'a5'), (6, '{B}', 'b6');
         SELECT tenant_protect('base');
         GRANT SELECT, INSERT, UPDATE, DELETE ON base, child, grandchild TO {app}"
    ));
    let mut session = db.connect_as(&app, A);
    assert_eq!(texts(&mut session, "SELECT note FROM base ORDER BY id"), ["a1", "a3", "a5"]);
    assert_eq!(texts(&mut session, "SELECT note FROM ONLY base"), ["a1"]);
    assert_eq!(texts(&mut session, "SELECT note FROM child ORDER BY id"), ["a3", "a5"]);
    assert_eq!(texts(&mut session, "SELECT note FROM grandchild"), ["a5"]);
    assert_eq!(session.fails(&format!("INSERT INTO grandchild VALUES (7, '{B}')")), "42501");
    assert_eq!(changed(&mut session, "DELETE FROM base"), 3);
    assert_eq!(db.connect(&app).fails("SELECT FROM grandchild"), "55000");
}

/// bigint and integer columns hold the tenant's key.
#[test]
fn keys_are_tenants() {
    for kind in ["bigint", "integer"] {
        let db = with_keys();
        let app = db.app();
        db.admin().run(&format!(
            "CREATE TABLE posts (id int PRIMARY KEY, account_id {kind}, note text);
             INSERT INTO posts VALUES (1, 7, 'a1'), (2, 8, 'b2');
             SELECT tenant_protect('posts', 'account_id');
             GRANT SELECT, INSERT, UPDATE, DELETE ON posts TO {app}"
        ));
        let mut session = db.connect_as(&app, A);
        assert_eq!(texts(&mut session, "SELECT note FROM posts"), ["a1"], "{kind}");
        session.run("INSERT INTO posts (id, note) VALUES (3, 'a3')");
        assert_eq!(
            texts(&mut session, "SELECT note FROM posts WHERE account_id = 7 ORDER BY id"),
            ["a1", "a3"]
        );
        assert_eq!(session.fails("INSERT INTO posts VALUES (4, 8)"), "42501", "{kind}");
        assert_eq!(changed(&mut session, "DELETE FROM posts"), 2, "{kind}");
        assert_eq!(db.connect(&app).fails("SELECT FROM posts"), "55000", "{kind}");
    }
}

/// A tenant without a key reads and writes no table that goes by keys.
#[test]
fn a_tenant_without_a_key_is_refused() {
    let db = Db::with_orders();
    let app = db.app();
    db.admin().run(&format!(
        "CREATE TABLE posts (id int, account_id bigint NOT NULL); INSERT INTO posts VALUES (1, 0);
         SELECT tenant_protect('posts', 'account_id'); GRANT SELECT, INSERT ON posts TO {app}"
    ));
    let mut session = db.connect_as(&app, A);
    assert_eq!(session.fails("SELECT FROM posts"), "55000");
    assert_eq!(session.fails("INSERT INTO posts VALUES (2, 1)"), "55000");
    db.admin().run(&format!("UPDATE tenant_rls.tenants SET tenant_key = 1 WHERE tenant_id = '{A}'"));
    session.run("SELECT FROM posts; INSERT INTO posts VALUES (2, 1)");
}

/// An integer column is read by its index.
#[test]
fn an_integer_column_uses_its_index() {
    let db = with_keys();
    let app = db.app();
    db.admin().run(&format!(
        "CREATE TABLE posts (account_id integer, note text); SELECT tenant_protect('posts', 'account_id');
         GRANT SELECT ON posts TO {app}"
    ));
    let mut session = db.connect_as(&app, A);
    session.run("SET enable_seqscan = off");
    let plan = texts(&mut session, "EXPLAIN (COSTS OFF) SELECT FROM posts").join("\n");
    assert!(plan.contains("Index Cond"), "{plan}");
}

/// Names that need quotes, and a search_path that leads astray, change nothing.
#[test]
fn unusual_names_work() {
    let db = Db::with_orders();
    let app = db.app();
    db.admin().run(&format!(
        "CREATE SCHEMA \"My Shop\";
         CREATE TABLE \"My Shop\".\"select \"\"x\" (\"Tenant Id\" uuid, note text);
         INSERT INTO \"My Shop\".\"select \"\"x\" VALUES ('{A}', 'a'), ('{B}', 'b');
         SELECT tenant_protect('\"My Shop\".\"select \"\"x\"', 'Tenant Id');
         GRANT USAGE ON SCHEMA \"My Shop\" TO {app}; GRANT SELECT ON \"My Shop\".\"select \"\"x\" TO {app}"
    ));
    let mut session = db.connect_as(&app, A);
    session.run("CREATE FUNCTION pg_temp.required_tenant() RETURNS uuid LANGUAGE sql AS 'SELECT NULL::uuid'");
    session.run("SET search_path = pg_temp, \"My Shop\"");
    assert_eq!(texts(&mut session, "SELECT note FROM \"select \"\"x\""), ["a"]);
}

/// An extension in a schema of its own works as well.
#[test]
fn another_schema_works() {
    let db = Db::without_extension();
    let app = db.app();
    db.role(&app, "LOGIN");
    db.admin().run(&format!(
        "CREATE SCHEMA tenancy; CREATE EXTENSION tenant_rls SCHEMA tenancy;
         CREATE TABLE orders (id int, tenant_id uuid);
         SELECT tenancy.tenant_protect('orders'), tenancy.tenant_create('{A}'), tenancy.tenant_grant('{app}');
         GRANT SELECT, INSERT ON orders TO {app}"
    ));
    let mut session = db.connect(&app);
    session.run(&format!("SELECT tenancy.set_tenant('{A}', false); INSERT INTO orders (id) VALUES (1)"));
    assert_eq!(texts(&mut session, "SELECT tenant_id::text FROM orders"), [A]);
}
