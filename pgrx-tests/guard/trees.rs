//! Partitions and children that come and go, and new tables.

use postgres::Client;

use super::{is_let_through, owner, recorded, shop};
use crate::harness::{A, B, Db, Session, waiting};

/// Whether a table is protected, and its root.
#[track_caller]
fn root(admin: &mut Client, table: &str) -> Option<String> {
    let rows = admin.rows(&format!(
        "SELECT p.root::text FROM tenant_rls.protected_tables AS p JOIN pg_class AS c ON c.oid = p.relation
         WHERE p.relation = '{table}'::regclass AND relrowsecurity AND relforcerowsecurity
         AND 2 = (SELECT count(*) FROM pg_policy WHERE polrelid = c.oid AND polname IN ('tenant_isolation', 'tenant_boundary'))"
    ));
    rows.first().map(|row| row.get(0))
}

/// However a table becomes a partition or child, at whatever depth, it is protected as its root is, with what is
/// below it, and keeps nobody's rows from nobody: an application that it is granted to sees those of its tenant.
#[test]
fn what_joins_is_protected() {
    let db = shop();
    let (mut owner, mut admin) = (owner(&db), db.admin());
    owner.run("CREATE SCHEMA s");
    admin.run(&format!("GRANT USAGE ON SCHEMA s TO {}", db.app()));
    for (sql, table, parent) in [
        ("CREATE TABLE e3 PARTITION OF events FOR VALUES IN (3)", "e3", "events"),
        ("CREATE TABLE IF NOT EXISTS e_default PARTITION OF events DEFAULT", "e_default", "events"),
        ("CREATE TABLE s.c PARTITION OF events_2 FOR VALUES IN ('c')", "s.c", "events"),
        (
            "CREATE TABLE e4 PARTITION OF events FOR VALUES IN (4) PARTITION BY LIST (note);
             CREATE TABLE e4_a PARTITION OF e4 FOR VALUES IN ('a') PARTITION BY HASH (tenant_id);
             CREATE TABLE e4_a_0 PARTITION OF e4_a FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
            "e4_a_0",
            "events",
        ),
        ("CREATE SCHEMA n CREATE TABLE e5 PARTITION OF shop.events FOR VALUES IN (5)", "n.e5", "events"),
        (
            "CREATE TABLE e6 (tenant_id uuid NOT NULL, day int, note text); ALTER TABLE events ATTACH PARTITION e6 FOR VALUES IN (6)",
            "e6",
            "events",
        ),
        (
            "CREATE TABLE e7 (LIKE events) PARTITION BY LIST (note); CREATE TABLE e7_a PARTITION OF e7 FOR VALUES IN ('a');
             ALTER TABLE events ATTACH PARTITION e7 FOR VALUES IN (7)",
            "e7_a",
            "events",
        ),
        ("DO $$ BEGIN CREATE TABLE e8 PARTITION OF events FOR VALUES IN (8); END $$", "e8", "events"),
        ("CREATE TABLE b2 (extra int) INHERITS (base)", "b2", "base"),
        ("CREATE TABLE b3 () INHERITS (child)", "b3", "base"),
        ("CREATE TABLE b4 (tenant_id uuid NOT NULL, note text); ALTER TABLE b4 INHERIT child", "b4", "base"),
    ] {
        owner.run(sql);
        assert_eq!(root(&mut admin, table).as_deref(), Some(parent), "{sql}");
        admin.run(&format!("GRANT SELECT ON {table} TO {}; GRANT USAGE ON SCHEMA {} TO {0}", db.app(), schema(table)));
        let mut app = db.connect(&db.app());
        assert_eq!(app.fails(&format!("SELECT FROM {table}")), "55000", "{sql}");
    }
    for (table, values) in [("e6", "6, 'b'"), ("e7_a", "7, 'a'"), ("e4_a_0", "4, 'a'")] {
        admin.run(&format!("INSERT INTO {table} VALUES ('{A}', {values}), ('{B}', {values})"));
        let mut app = db.connect_as(&db.app(), A);
        assert_eq!(app.one::<i64>(&format!("SELECT count(*) FROM {table}")), 1, "{table}");
    }
    let errors = "SELECT string_agg(code || ' ' || object, ', ') FROM tenant_audit() WHERE severity = 'error' AND code <> 'app_role_owner' AND object <> 'shop.open'";
    assert_eq!(admin.one::<Option<String>>(errors), None);
    // Taken back with the root.
    owner.run("SELECT tenant_unprotect('events'), tenant_unprotect('base')");
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_rls.protected_tables"), 2);
}

fn schema(table: &str) -> &str {
    table.split_once('.').map_or("shop", |(schema, _)| schema)
}

/// With the guard off nothing is protected by itself, which is recorded.
#[test]
fn what_joins_while_the_guard_is_off_is_not_protected() {
    let db = shop();
    let mut admin = db.admin();
    let mut off = db.breaker();
    off.run("CREATE TABLE e3 PARTITION OF events FOR VALUES IN (3)");
    assert_eq!(root(&mut admin, "e3"), None);
    assert_eq!(recorded(&mut admin), 1);
    admin.run("SELECT tenant_protect('e3')");
    assert_eq!(root(&mut admin, "e3").as_deref(), Some("events"));
    admin.run("SET tenant_rls.ddl_guard = warn; CREATE TABLE e4 PARTITION OF events FOR VALUES IN (4)");
    assert_eq!(root(&mut admin, "e4").as_deref(), Some("events"));
    assert_eq!(recorded(&mut admin), 1);
}

/// A table that cannot be protected cannot join.
#[test]
fn what_cannot_be_protected_cannot_join() {
    let db = shop();
    let mut admin = db.admin();
    admin.run("CREATE FOREIGN TABLE far (tenant_id uuid NOT NULL, note text) SERVER files OPTIONS (filename '/dev/null')");
    for sql in [
        "ALTER FOREIGN TABLE far INHERIT base",
        "ALTER TABLE far INHERIT base",
        "CREATE FOREIGN TABLE f () INHERITS (base) SERVER files OPTIONS (filename '/dev/null')",
        "CREATE SCHEMA s CREATE TABLE t (tenant_id uuid NOT NULL, note text) CREATE TABLE u () INHERITS (shop.base, t)",
    ] {
        assert_eq!(admin.fails(sql), "42501", "{sql}");
        is_let_through(&db, sql);
    }
    // Rows without a tenant: the server refuses them itself.
    admin.run(&format!(
        "CREATE TABLE late (tenant_id uuid, note text); INSERT INTO late VALUES (NULL, 'x'), ('{A}', 'y')"
    ));
    assert_eq!(admin.fails("ALTER TABLE late INHERIT base"), "42804");
    admin.run("DELETE FROM late WHERE tenant_id IS NULL; ALTER TABLE late ALTER tenant_id SET NOT NULL; ALTER TABLE late INHERIT base");
    assert_eq!(root(&mut admin, "late").as_deref(), Some("base"));
}

/// A protected table that leaves its tree stays protected, with what is below it, as a tree of its own: it is not
/// unprotected with the old root, and going back takes back what was done to it alone.
#[test]
fn what_leaves_stays_protected() {
    for (leave, table, below) in [
        ("ALTER TABLE events DETACH PARTITION events_1", "events_1", "events_1"),
        ("ALTER TABLE events DETACH PARTITION events_1 CONCURRENTLY", "events_1", "events_1"),
        ("ALTER TABLE events DETACH PARTITION events_2", "events_2", "events_2_a"),
        ("ALTER TABLE events_2 DETACH PARTITION events_2_a", "events_2_a", "events_2_a"),
        ("ALTER TABLE child NO INHERIT base", "child", "child"),
    ] {
        let db = shop();
        let (mut owner, mut admin) = (owner(&db), db.admin());
        owner.run(leave);
        assert_eq!(root(&mut admin, table).as_deref(), Some(table), "{leave}");
        assert_eq!(root(&mut admin, below).as_deref(), Some(table), "{leave}");
        owner.run("SELECT tenant_unprotect('events'), tenant_unprotect('base')");
        assert_eq!(root(&mut admin, below).as_deref(), Some(table), "{leave}");
        assert_eq!(db.connect(&db.app()).fails(&format!("SELECT FROM {below}")), "55000", "{leave}");
        owner.run(&format!("SELECT tenant_unprotect('{table}')"));
        assert_eq!(root(&mut admin, below), None, "{leave}");
        let left: i64 = admin.one(&format!(
            "SELECT count(*) FROM pg_index WHERE indrelid IN ('{table}'::regclass, '{below}'::regclass)"
        ));
        assert_eq!(left, 0, "{leave}: an index stays");
    }
}

/// An index that a partition had before is its own again when it leaves, and stays.
#[test]
fn an_own_index_leaves_with_its_partition() {
    let db = Db::new();
    let mut admin = db.admin();
    let indexes =
        "SELECT string_agg(pg_get_indexdef(indexrelid), ', ') FROM pg_index WHERE indrelid = 'p_1'::regclass";
    admin.run(
        "CREATE TABLE p (tenant_id uuid, day int) PARTITION BY LIST (day); CREATE TABLE p_1 PARTITION OF p FOR VALUES IN (1);
         CREATE INDEX ON p_1 (tenant_id)",
    );
    let before: String = admin.one(indexes);
    admin.run("SELECT tenant_protect('p'); ALTER TABLE p DETACH PARTITION p_1; SELECT tenant_unprotect('p')");
    assert_eq!(admin.one::<String>(indexes), before);
    admin.run("SELECT tenant_unprotect('p_1')");
    assert_eq!(admin.one::<String>(indexes), before);
}

/// What comes back has the root of its new parents; what left while nobody watched is found out.
#[test]
fn roots_follow_the_tree() {
    let db = shop();
    let mut admin = db.admin();
    admin.run("ALTER TABLE events DETACH PARTITION events_2; ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES IN (2)");
    assert_eq!(root(&mut admin, "events_2_a").as_deref(), Some("events"));
    admin.run("BEGIN; ALTER TABLE events DETACH PARTITION events_2; ROLLBACK");
    assert_eq!(root(&mut admin, "events_2_a").as_deref(), Some("events"));
    admin.run("SET session_replication_role = replica; ALTER TABLE events DETACH PARTITION events_2; RESET session_replication_role");
    assert_eq!(root(&mut admin, "events_2").as_deref(), Some("events"));
    admin.run("SELECT tenant_unprotect('events')");
    assert_eq!(root(&mut admin, "events_2_a").as_deref(), Some("events_2"));
    admin.run("SELECT tenant_unprotect('events_2')");
}

/// A partition of somebody else is read through its parent as foreign keys are checked and rows are counted: its own
/// policies do not hold there, and no tenant is asked for.
#[test]
fn a_partition_of_somebody_else_is_read_through_its_parent() {
    let db = shop();
    let mut admin = db.admin();
    let keeper = db.role_name("keeper");
    db.role(&keeper, "");
    admin.run(&format!(
        "ALTER TABLE events ADD UNIQUE (tenant_id, day, note); ALTER TABLE events_1 OWNER TO {keeper};
         CREATE TABLE refers (t uuid, d int, n text, FOREIGN KEY (t, d, n) REFERENCES events (tenant_id, day, note));
         GRANT INSERT ON refers TO {}", db.app()
    ));
    let mut app = db.connect(&db.app());
    app.run(&format!("INSERT INTO refers VALUES ('{A}', 1, 'a'), ('{B}', 2, 'b')"));
    assert_eq!(app.fails(&format!("INSERT INTO refers VALUES ('{A}', 1, 'none')")), "23503");
    assert_eq!(app.fails("SELECT FROM events"), "55000");
}

/// Gauges count a new partition from its first row on, and its rows no longer when it has left.
#[test]
fn gauges_follow_protected_partitions() {
    let db = shop();
    let mut admin = db.admin();
    admin.run(&format!(
        "SELECT tenant_resource_define('events', 'gauge', 'event', 'none');
         SELECT tenant_plan_limit_set('free', 'events', 100), tenant_quota_attach('events', 'events');
         CREATE SCHEMA s CREATE TABLE e3 PARTITION OF shop.events FOR VALUES IN (3);
         CREATE TABLE e4 PARTITION OF events FOR VALUES IN (4);
         INSERT INTO s.e3 VALUES ('{A}', 3, 'a'); INSERT INTO e4 VALUES ('{A}', 4, 'a')"
    ));
    let used = format!("SELECT used FROM tenant_rls.units WHERE resource = 'events' AND tenant_id = '{A}'");
    assert_eq!(admin.one::<i64>(&used), 4);
    admin.run("ALTER TABLE events DETACH PARTITION e4");
    assert_eq!(admin.one::<i64>(&used), 3);
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_quota_invariants"), 0);
}

/// A new table with a tenant column is protected, warned about, or let alone, as the setting says.
#[test]
fn new_tables_go_by_the_setting() {
    let db = shop();
    let role = db.role_name("owner");
    for (setting, warnings, protected) in [("on", 0, true), ("warn", 1, false), ("off", 0, false)] {
        db.admin().run(&format!("ALTER ROLE {role} SET tenant_rls.auto_protect = {setting}"));
        let (mut session, notices) = db.connect_listening(&role, &format!("-c app.current_tenant={A}"));
        for sql in [
            "CREATE TABLE t (id int, tenant_id uuid)",
            "CREATE TABLE t (tenant_id bigint PRIMARY KEY)",
            "CREATE TABLE t (LIKE orders INCLUDING ALL)",
            "CREATE TABLE t (tenant_id int, id int) PARTITION BY LIST (id)",
            "CREATE TABLE t AS SELECT * FROM orders",
            "SELECT id, tenant_id INTO t FROM orders",
            "CREATE UNLOGGED TABLE t (tenant_id uuid)",
            "DO $$ BEGIN CREATE TABLE t (tenant_id uuid); END $$",
            "CREATE TABLE t (tenant_id uuid, id int, FOREIGN KEY (tenant_id, id) REFERENCES orders)",
        ] {
            session.run(sql);
            assert_eq!(notices.warnings(), warnings, "{setting}: {sql}");
            assert_eq!(root(&mut db.admin(), "t").is_some(), protected, "{setting}: {sql}");
            session.run("DROP TABLE t");
        }
        for sql in [
            "CREATE TABLE t (id int, tenant uuid)",
            "CREATE TABLE t (tenant_id text)",
            "CREATE TEMPORARY TABLE t (tenant_id uuid)",
            "CREATE TABLE t AS SELECT id FROM orders",
        ] {
            session.run(sql);
            assert_eq!(notices.warnings(), 0, "{setting}: {sql}");
            let protected = "SELECT count(*) FROM tenant_rls.protected_tables AS p JOIN pg_class AS c ON c.oid = p.relation WHERE relname = 't'";
            assert_eq!(db.admin().one::<i64>(protected), 0, "{setting}: {sql}");
            session.run("DROP TABLE t");
        }
        // Rows without a tenant: it is protected when they have one.
        session.run("CREATE TABLE t (id int); ALTER TABLE t ADD COLUMN tenant_id uuid");
        assert_eq!(notices.warnings(), usize::from(setting != "off"), "{setting}");
        session.run("DROP TABLE t");
        session.run("CREATE TABLE IF NOT EXISTS open (tenant_id uuid)");
        assert_eq!(notices.warnings(), 0, "{setting}");
    }
    let mut admin = db.admin();
    admin.run("SET tenant_rls.auto_protect = on");
    assert_eq!(admin.fails("CREATE TABLE t AS SELECT NULL::uuid AS tenant_id"), "23502");
    admin.run("CREATE TABLE t AS SELECT NULL::uuid AS tenant_id WITH NO DATA");
    assert_eq!(root(&mut admin, "t").as_deref(), Some("t"));
}

/// Protection that others commit while a command waits, or since a transaction at REPEATABLE READ began, counts.
#[test]
fn what_is_committed_meanwhile_counts() {
    let db = shop();
    let mut owner = owner(&db);
    let mut admin = db.admin();
    admin.run(&format!(
        "CREATE TABLE p (tenant_id uuid, id int) PARTITION BY LIST (id); CREATE TABLE q (tenant_id uuid); CREATE TABLE r (tenant_id uuid);
         ALTER TABLE p OWNER TO {0}; ALTER TABLE q OWNER TO {0}; ALTER TABLE r OWNER TO {0}",
        db.role_name("owner")
    ));
    owner.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class LIMIT 1");
    admin.run("SELECT tenant_protect('p'), tenant_protect('q')");
    owner.run("CREATE TABLE p_1 PARTITION OF p FOR VALUES IN (1); SAVEPOINT s");
    assert_eq!(owner.fails("ALTER TABLE q DISABLE ROW LEVEL SECURITY"), "42501");
    owner.run("ROLLBACK TO s; COMMIT");
    assert_eq!(root(&mut admin, "p_1").as_deref(), Some("p"));

    let mut first = db.admin();
    first.run("BEGIN; SELECT tenant_protect('r')");
    let waiter =
        std::thread::spawn(move || owner.fails("ALTER TABLE r ADD COLUMN x int, DISABLE ROW LEVEL SECURITY"));
    waiting(&mut admin, 1);
    first.run("COMMIT");
    assert_eq!(waiter.join().unwrap(), "42501");

    // The other way round: the partition is there first, and is protected with its root.
    let mut first = super::owner(&db);
    db.admin().run("SELECT tenant_unprotect('p')");
    first.run("BEGIN; CREATE TABLE p_2 PARTITION OF p FOR VALUES IN (2)");
    let mut second = db.admin();
    let waiter = std::thread::spawn(move || second.run("SELECT tenant_protect('p')"));
    waiting(&mut admin, 1);
    first.run("COMMIT");
    waiter.join().unwrap();
    assert_eq!(root(&mut admin, "p_2").as_deref(), Some("p"));
}
