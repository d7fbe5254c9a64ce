//! Gauges that follow the rows of tables, and their bytes.

mod bytes;

use std::thread;

use postgres::Client;

use crate::harness::{A, B, Db, Session, answer, recorded, refuses, waiting};

/// [`Db::with_orders`], with the gauge `rows` on the table: 100 on plan free.
fn attached() -> Db {
    let db = Db::with_orders();
    define(&mut db.admin(), "rows", 100);
    db.admin().run("SELECT tenant_quota_attach('orders', 'rows')");
    db
}

/// A gauge with a limit on plan free.
fn define(admin: &mut Client, gauge: &str, limit: i64) {
    admin.run(&format!(
        "SELECT tenant_resource_define('{gauge}', 'gauge', 'row', 'none');
         SELECT tenant_plan_limit_set('free', '{gauge}', {limit})"
    ));
}

/// A partitioned table `events`, protected, attached to the gauge `rows`, with a partition for each day number
/// below 10 and 20, written by the application.
fn partitioned() -> Db {
    let db = Db::with_orders();
    define(&mut db.admin(), "rows", 100);
    db.admin().run(&format!(
        "CREATE TABLE events (day int, tenant_id uuid NOT NULL) PARTITION BY RANGE (day);
         CREATE TABLE events_0 PARTITION OF events FOR VALUES FROM (0) TO (10);
         CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (10) TO (20);
         SELECT tenant_protect('events'), tenant_quota_attach('events', 'rows');
         GRANT SELECT, INSERT, UPDATE, DELETE ON events, events_0, events_1 TO {}",
        db.app()
    ));
    db
}

/// Asserts what the gauge says of both tenants, and that it is right.
#[track_caller]
fn counts(db: &Db, a: i64, b: i64) {
    let mut admin = db.admin();
    assert_eq!((recorded(&mut admin, A, "rows"), recorded(&mut admin, B, "rows")), (a, b));
    assert_eq!(drift(&mut admin), "");
}

/// What tenant_quota_invariants finds.
#[track_caller]
fn drift(admin: &mut Client) -> String {
    admin.one(
        "SELECT coalesce(string_agg(concat_ws(' ', tenant, resource, finding, expected, actual), '; '), '')
         FROM tenant_quota_invariants",
    )
}

/// Attaching counts the rows that are there.
#[test]
fn attach_counts_existing_rows() {
    counts(&attached(), 2, 2);
}

/// An application's statements, each followed by the gauge.
#[test]
fn statements_move_the_gauge() {
    let db = attached();
    let mut app = db.connect_as(&db.app(), A);
    for (sql, a) in [
        ("INSERT INTO orders (id) VALUES (10)", 3),
        ("INSERT INTO orders (id) VALUES (11), (12), (13)", 6),
        ("INSERT INTO orders (id) SELECT i FROM generate_series(20, 29) AS i", 16),
        ("INSERT INTO orders (id) SELECT 1 WHERE false", 16),
        ("INSERT INTO orders (id) VALUES (10), (14) ON CONFLICT DO NOTHING", 17),
        ("INSERT INTO orders (id) VALUES (10), (15) ON CONFLICT (id) DO UPDATE SET note = 'x'", 18),
        ("UPDATE orders SET note = 'y'", 18),
        ("UPDATE orders SET id = id + 1000 WHERE id > 25", 18),
        ("DELETE FROM orders WHERE id >= 1000", 14),
        ("DELETE FROM orders WHERE id = -1", 14),
        (
            "WITH gone AS (DELETE FROM orders WHERE id = 10 RETURNING *) INSERT INTO orders SELECT id + 40, tenant_id FROM gone",
            14,
        ),
        ("DELETE FROM orders", 0),
    ] {
        app.run(sql);
        assert_eq!(recorded(&mut db.admin(), A, "rows"), a, "{sql}");
    }
    counts(&db, 0, 2);
}

/// MERGE with all three actions in one statement.
#[test]
fn merge_moves_the_gauge() {
    let db = attached();
    let merge = "MERGE INTO orders AS o USING (VALUES (1), (2), (50), (51), (52)) AS n (id) ON o.id = n.id
         WHEN MATCHED AND n.id = 1 THEN DELETE WHEN MATCHED THEN UPDATE SET note = 'm'
         WHEN NOT MATCHED THEN INSERT (id) VALUES (n.id)";
    db.connect_as(&db.app(), A).run(merge);
    counts(&db, 4, 2);
}

/// A superuser's COPY, and his statements over several tenants, count for each tenant.
#[test]
fn bulk_loads_of_several_tenants_are_counted() {
    let db = attached();
    let mut admin = db.admin();
    let mut copy = admin.copy_in("COPY orders FROM STDIN").expect("a COPY");
    let rows = format!("10\t{A}\t\\N\n11\t{B}\t\\N\n12\t{B}\t\\N\n");
    std::io::Write::write_all(&mut copy, rows.as_bytes()).expect("rows");
    copy.finish().expect("the end of a COPY");
    counts(&db, 3, 4);
    admin.run("DELETE FROM orders WHERE id IN (1, 11, 12)");
    counts(&db, 2, 2);
}

/// A table's owner with BYPASSRLS may COPY, and is counted.
#[test]
fn an_owner_with_bypassrls_may_copy() {
    let db = attached();
    let owner = db.role_name("owner");
    db.role(&owner, "LOGIN BYPASSRLS");
    db.admin().run(&format!("ALTER TABLE orders OWNER TO {owner}"));
    let mut session = db.connect(&owner);
    let mut copy = session.copy_in("COPY orders FROM STDIN").expect("a COPY");
    std::io::Write::write_all(&mut copy, format!("10\t{A}\t\\N\n").as_bytes()).expect("rows");
    copy.finish().expect("the end of a COPY");
    counts(&db, 3, 2);
}

/// A row that a superuser moves to another tenant counts for that one.
#[test]
fn rows_move_between_tenants() {
    let db = attached();
    db.admin().run(&format!("UPDATE orders SET tenant_id = '{B}' WHERE id = 1"));
    counts(&db, 1, 3);
    db.admin().run(&format!(
        "UPDATE orders SET tenant_id = CASE tenant_id WHEN '{A}' THEN '{B}' ELSE '{A}' END::uuid"
    ));
    counts(&db, 3, 1);
}

/// TRUNCATE takes all rows, those of the own transaction included, and a rollback brings them back.
#[test]
fn truncate_empties_the_gauge() {
    let db = attached();
    let mut admin = db.admin();
    admin.run(&format!("BEGIN; INSERT INTO orders VALUES (10, '{A}'); TRUNCATE orders; ROLLBACK"));
    counts(&db, 2, 2);
    admin.run(&format!("BEGIN; INSERT INTO orders VALUES (10, '{A}'); TRUNCATE orders; INSERT INTO orders VALUES (11, '{B}'); COMMIT"));
    counts(&db, 0, 1);
}

/// TRUNCATE … CASCADE reaches a table that is attached through the foreign key of one that is not.
#[test]
fn truncate_cascade_empties_the_gauge() {
    let db = attached();
    db.admin().run(
        "CREATE TABLE notes (id int PRIMARY KEY);
         ALTER TABLE orders ADD COLUMN note_id int REFERENCES notes;
         TRUNCATE notes CASCADE",
    );
    counts(&db, 0, 0);
}

/// TRUNCATE with a snapshot that is older than rows of others: they go too, and the gauge says so, at once or when
/// a transaction that was refused is retried.
#[test]
fn truncate_with_an_old_snapshot_loses_nothing() {
    for first in
        ["", "LOCK TABLE tenant_rls.leases; DELETE FROM tenant_rls.usage; DELETE FROM tenant_rls.ledger"]
    {
        let db = attached();
        let mut old = db.admin();
        if !first.is_empty() {
            old.run("DELETE FROM orders");
        }
        // A worker leaves units alone meanwhile.
        old.run(first);
        old.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class");
        db.connect_as(&db.app(), A).run("INSERT INTO orders (id) VALUES (10)");
        match old.attempt("TRUNCATE orders").as_deref() {
            None => old.run("COMMIT"),
            Some("40001") => {
                old.run("ROLLBACK");
                old.run("TRUNCATE orders");
            }
            Some(other) => panic!("{first}: {other}"),
        }
        counts(&db, 0, 0);
    }
}

/// Rows written with a snapshot that is older than the last change of the gauge are counted.
#[test]
fn rows_with_an_old_snapshot_are_counted() {
    let db = attached();
    let mut old = db.connect_as(&db.app(), A);
    old.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class");
    db.connect_as(&db.app(), A).run("INSERT INTO orders (id) VALUES (10)");
    match old.attempt("INSERT INTO orders (id) VALUES (11)").as_deref() {
        None => old.run("COMMIT"),
        Some("40001") => {
            old.run("ROLLBACK");
            old.run("INSERT INTO orders (id) VALUES (11)");
        }
        Some(other) => panic!("{other}"),
    }
    counts(&db, 4, 2);
}

/// Rows written through the root of a partitioned table count once.
#[test]
fn rows_through_the_root_count_once() {
    let db = partitioned();
    let mut app = db.connect_as(&db.app(), A);
    app.run("INSERT INTO events (day) VALUES (1), (2), (11)");
    counts(&db, 3, 0);
    app.run("UPDATE events SET day = day + 1; DELETE FROM events WHERE day = 12");
    counts(&db, 2, 0);
}

/// Rows written directly into a partition count once.
#[test]
fn rows_into_a_partition_count_once() {
    let db = partitioned();
    let mut app = db.connect_as(&db.app(), A);
    app.run("INSERT INTO events_0 (day) VALUES (1), (2); INSERT INTO events_1 (day) VALUES (11)");
    counts(&db, 3, 0);
    app.run("DELETE FROM events_0 WHERE day = 1");
    counts(&db, 2, 0);
}

/// An UPDATE that moves rows to another partition changes nothing; one that moves them to another tenant does.
#[test]
fn cross_partition_updates_count_once() {
    let db = partitioned();
    let mut app = db.connect_as(&db.app(), A);
    app.run("INSERT INTO events (day) VALUES (1), (2); UPDATE events SET day = day + 10");
    counts(&db, 2, 0);
    db.admin().run(&format!("UPDATE events SET day = day - 10, tenant_id = '{B}' WHERE day = 11"));
    counts(&db, 1, 1);
}

/// TRUNCATE of one partition, then of the root.
#[test]
fn truncate_of_partitions_is_counted() {
    let db = partitioned();
    db.connect_as(&db.app(), A).run("INSERT INTO events (day) VALUES (1), (2), (11), (12), (13)");
    db.admin().run("TRUNCATE events_0");
    counts(&db, 3, 0);
    db.admin().run("INSERT INTO events VALUES (1, 'bbbbbbbb-0000-4000-8000-00000000000b'); TRUNCATE events");
    counts(&db, 0, 0);
}

/// A partition that is detached takes its rows along; attached, it brings them.
#[test]
fn partitions_take_their_rows_along() {
    let db = partitioned();
    let mut admin = db.admin();
    db.connect_as(&db.app(), A).run("INSERT INTO events (day) VALUES (1), (2), (11)");
    admin.run("ALTER TABLE events DETACH PARTITION events_0");
    counts(&db, 1, 0);
    admin.run(&format!("INSERT INTO events_0 VALUES (3, '{A}'), (4, '{B}')"));
    counts(&db, 1, 0);
    admin.run("ALTER TABLE events ATTACH PARTITION events_0 FOR VALUES FROM (0) TO (10)");
    counts(&db, 4, 1);
    admin.run(&format!("DELETE FROM events_0 WHERE tenant_id = '{A}'"));
    counts(&db, 1, 1);
}

/// DETACH PARTITION CONCURRENTLY takes the rows along too.
#[test]
fn partitions_detached_concurrently_take_their_rows_along() {
    let db = partitioned();
    db.connect_as(&db.app(), A).run("INSERT INTO events (day) VALUES (1), (2), (11)");
    db.admin().run("ALTER TABLE events DETACH PARTITION events_0 CONCURRENTLY");
    counts(&db, 1, 0);
}

/// A partition that is created later counts, through the root and by its own name, TRUNCATE included.
#[test]
fn new_partitions_count() {
    let db = partitioned();
    let mut admin = db.admin();
    admin.run("CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (20) TO (30)");
    db.connect_as(&db.app(), A).run("INSERT INTO events (day) VALUES (21)");
    counts(&db, 1, 0);
    admin.run(&format!("INSERT INTO events_2 VALUES (22, '{A}'), (23, '{B}')"));
    counts(&db, 2, 1);
    admin.run("TRUNCATE events_2");
    counts(&db, 0, 0);
}

/// A partition of a partition, made later, counts too.
#[test]
fn partitions_of_partitions_count() {
    let db = partitioned();
    let mut admin = db.admin();
    admin.run(
        "CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (20) TO (30) PARTITION BY RANGE (day);
         CREATE TABLE events_20 PARTITION OF events_2 FOR VALUES FROM (20) TO (25)",
    );
    admin.run(&format!("INSERT INTO events_2 VALUES (21, '{A}'); INSERT INTO events_20 VALUES (22, '{A}'); INSERT INTO events VALUES (23, '{A}')"));
    counts(&db, 3, 0);
    admin.run("DROP TABLE events_2");
    counts(&db, 0, 0);
}

/// Dropped partitions and dropped tables count no more.
#[test]
fn dropped_tables_count_no_more() {
    let db = partitioned();
    let mut admin = db.admin();
    db.connect_as(&db.app(), A).run("INSERT INTO events (day) VALUES (1), (2), (11)");
    admin.run("DROP TABLE events_0");
    counts(&db, 1, 0);
    admin.run("DROP TABLE events");
    counts(&db, 0, 0);
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_rls.attachments"), 0);
    db.connect_as(&db.app(), A).run("SELECT * FROM tenant_quota_consume('rows')");
}

/// DROP SCHEMA and DROP OWNED drop tables too.
#[test]
fn tables_dropped_with_their_schema_count_no_more() {
    let db = attached();
    db.admin().run("CREATE SCHEMA s; ALTER TABLE orders SET SCHEMA s; DROP SCHEMA s CASCADE");
    counts(&db, 0, 0);
}

/// A DROP that is rolled back changes nothing.
#[test]
fn a_drop_that_is_rolled_back_counts_on() {
    let db = attached();
    db.admin().run("BEGIN; DROP TABLE orders; ROLLBACK");
    counts(&db, 2, 2);
    db.connect_as(&db.app(), A).run("INSERT INTO orders (id) VALUES (10)");
    counts(&db, 3, 2);
}

/// Children by inheritance count, those that join or leave later included.
#[test]
fn children_count() {
    let db = Db::with_orders();
    let mut admin = db.admin();
    define(&mut admin, "rows", 100);
    admin.run("CREATE TABLE old_orders () INHERITS (orders); SELECT tenant_protect('orders')");
    admin.run(&format!(
        "INSERT INTO old_orders VALUES (10, '{A}'); SELECT tenant_quota_attach('orders', 'rows')"
    ));
    counts(&db, 3, 2);
    admin.run(&format!(
        "INSERT INTO old_orders VALUES (11, '{A}'), (12, '{B}'); DELETE FROM orders WHERE id IN (1, 10)"
    ));
    counts(&db, 2, 3);
    admin.run("ALTER TABLE old_orders NO INHERIT orders");
    counts(&db, 1, 2);
    admin.run("ALTER TABLE old_orders INHERIT orders");
    counts(&db, 2, 3);
    admin.run("TRUNCATE ONLY orders");
    counts(&db, 1, 1);
}

/// Several tables feed one gauge, and one table several gauges.
#[test]
fn tables_and_gauges_combine() {
    let db = attached();
    let mut admin = db.admin();
    define(&mut admin, "bills", 100);
    admin.run(&format!(
        "CREATE TABLE bills (id int, tenant_id uuid NOT NULL); INSERT INTO bills VALUES (1, '{A}');
         SELECT tenant_protect('bills'), tenant_quota_attach('bills', 'rows'), tenant_quota_attach('bills', 'bills')"
    ));
    counts(&db, 3, 2);
    admin.run(&format!("INSERT INTO bills VALUES (2, '{A}'), (3, '{B}'); DELETE FROM orders WHERE id = 1"));
    counts(&db, 3, 3);
    assert_eq!((recorded(&mut admin, A, "bills"), recorded(&mut admin, B, "bills")), (2, 1));
    admin.run("SELECT tenant_quota_detach('bills', 'rows')");
    counts(&db, 1, 2);
    admin.run(&format!("INSERT INTO bills VALUES (4, '{A}')"));
    counts(&db, 1, 2);
    assert_eq!(recorded(&mut admin, A, "bills"), 3);
}

/// Two tables that are attached to one gauge at the same time are both counted.
#[test]
fn attaching_two_tables_at_once_counts_both() {
    let db = Db::with_orders();
    let mut admin = db.admin();
    define(&mut admin, "rows", 100);
    for table in ["x", "y"] {
        admin.run(&format!(
            "CREATE TABLE {table} (tenant_id uuid NOT NULL); INSERT INTO {table} VALUES ('{A}'); SELECT tenant_protect('{table}')"
        ));
    }
    admin.run("BEGIN; SELECT tenant_quota_attach('x', 'rows')");
    thread::scope(|scope| {
        let second = scope.spawn(|| db.admin().run("SELECT tenant_quota_attach('y', 'rows')"));
        waiting(&mut db.admin(), 1);
        admin.run("COMMIT");
        second.join().expect("the second attach");
    });
    counts(&db, 2, 0);
}

/// Rows that a foreign key deletes count no more.
#[test]
fn cascades_of_foreign_keys_are_counted() {
    let db = attached();
    let mut admin = db.admin();
    admin.run(&format!(
        "CREATE TABLE items (order_id int REFERENCES orders ON DELETE CASCADE ON UPDATE CASCADE, tenant_id uuid NOT NULL);
         INSERT INTO items VALUES (1, '{A}'), (1, '{A}'), (2, '{A}');
         SELECT tenant_protect('items'), tenant_quota_attach('items', 'rows')"
    ));
    counts(&db, 5, 2);
    let mut app = db.connect_as(&db.app(), A);
    app.run("UPDATE orders SET id = 100 WHERE id = 2");
    counts(&db, 5, 2);
    app.run("DELETE FROM orders WHERE id = 1");
    counts(&db, 2, 2);
}

/// At the limit rows are refused, and not there.
#[test]
fn the_limit_refuses_rows() {
    let db = attached();
    db.admin().run("SELECT tenant_plan_limit_set('free', 'rows', 3)");
    let mut app = db.connect_as(&db.app(), A);
    assert_eq!(app.fails("INSERT INTO orders (id) VALUES (10), (11)"), "53400");
    app.run("INSERT INTO orders (id) VALUES (10)");
    refuses(
        &mut app,
        &[
            ("INSERT INTO orders (id) VALUES (11)", "53400"),
            ("INSERT INTO orders (id) SELECT 12", "53400"),
            (
                "MERGE INTO orders AS o USING (VALUES (13)) AS n (id) ON o.id = n.id WHEN NOT MATCHED THEN INSERT (id) VALUES (n.id)",
                "53400",
            ),
        ],
    );
    counts(&db, 3, 2);
    app.run("INSERT INTO orders (id) VALUES (10) ON CONFLICT DO NOTHING; DELETE FROM orders WHERE id = 10; INSERT INTO orders (id) VALUES (11)");
    counts(&db, 3, 2);
}

/// A statement that deletes and inserts at the limit is judged statement part by statement part; a transaction
/// that makes room first has it.
#[test]
fn room_that_the_transaction_made_can_be_used() {
    let db = attached();
    db.admin().run("SELECT tenant_plan_limit_set('free', 'rows', 2)");
    let mut app = db.connect_as(&db.app(), A);
    app.run("BEGIN; DELETE FROM orders WHERE id = 1; INSERT INTO orders (id) VALUES (10); COMMIT");
    counts(&db, 2, 2);
}

/// Above the limit, after a downgrade, rows can go and not come.
#[test]
fn rows_above_the_limit_can_go() {
    let db = attached();
    db.admin().run("SELECT tenant_plan_limit_set('free', 'rows', 1)");
    let mut app = db.connect_as(&db.app(), A);
    assert_eq!(app.fails("INSERT INTO orders (id) VALUES (10)"), "53400");
    app.run("UPDATE orders SET note = 'x'; DELETE FROM orders WHERE id = 1");
    counts(&db, 1, 2);
}

/// A plan without a limit for the gauge lets rows go, and lets none come.
#[test]
fn rows_without_a_limit_can_go() {
    let db = attached();
    db.admin().run(&format!("SELECT tenant_plan_define('bare'); SELECT tenant_plan_change('{A}', 'bare')"));
    let mut app = db.connect_as(&db.app(), A);
    assert_eq!(app.fails("INSERT INTO orders (id) VALUES (10)"), "42704");
    app.run("DELETE FROM orders WHERE id = 1");
    counts(&db, 1, 2);
}

/// The rows of a deleted tenant can be erased.
#[test]
fn rows_of_a_deleted_tenant_can_go() {
    let db = attached();
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_delete('{A}'); DELETE FROM orders WHERE tenant_id = '{A}'"));
    counts(&db, 0, 2);
}

/// What a savepoint takes back does not count.
#[test]
fn savepoints_take_rows_back() {
    let db = attached();
    let mut app = db.connect_as(&db.app(), A);
    app.run(
        "BEGIN; INSERT INTO orders (id) VALUES (10); SAVEPOINT s; INSERT INTO orders (id) VALUES (11);
         DELETE FROM orders WHERE id = 1; ROLLBACK TO s; INSERT INTO orders (id) VALUES (12); COMMIT",
    );
    counts(&db, 4, 2);
    app.run("BEGIN; DELETE FROM orders; ROLLBACK");
    counts(&db, 4, 2);
}

/// 8 sessions insert row by row, some in transactions that roll back: never above the limit, and exactly at it.
#[test]
fn concurrent_inserts_reach_exactly_the_limit() {
    let db = attached();
    db.admin().run("SELECT tenant_plan_limit_set('free', 'rows', 60)");
    thread::scope(|scope| {
        for session in 0..8 {
            let db = &db;
            scope.spawn(move || {
                let mut app = db.connect_as(&db.app(), A);
                for row in 0.. {
                    let end = if row % 3 == 2 { "ROLLBACK" } else { "COMMIT" };
                    let id = 100 + session * 1000 + row;
                    let state = app.attempt(&format!("BEGIN; INSERT INTO orders (id) VALUES ({id})"));
                    app.run(if state.is_some() { "ROLLBACK" } else { end });
                    match state.as_deref() {
                        None => {}
                        Some("53400") => break,
                        Some(other) => panic!("{other}"),
                    }
                }
            });
        }
    });
    counts(&db, 60, 2);
}

/// Sessions that write rows of both tenants in opposite orders do not wait in a ring within one statement.
#[test]
fn statements_over_tenants_take_gauges_in_one_order() {
    let db = attached();
    db.admin().run("SELECT tenant_plan_limit_set('free', 'rows', 100000)");
    thread::scope(|scope| {
        for session in 0..4 {
            let db = &db;
            scope.spawn(move || {
                let mut admin = db.admin();
                let (x, y) = if session % 2 == 0 { (A, B) } else { (B, A) };
                for row in 0..25 {
                    let id = 100 + session * 1000 + row * 2;
                    admin.run(&format!("INSERT INTO orders VALUES ({id}, '{x}'), ({id} + 1, '{y}')"));
                }
            });
        }
    });
    counts(&db, 102, 102);
}

/// A gauge that follows rows is not moved by hand.
#[test]
fn an_attached_gauge_is_not_moved_by_hand() {
    let db = attached();
    let mut app = db.connect_as(&db.app(), A);
    refuses(
        &mut app,
        &[
            ("SELECT * FROM tenant_quota_consume('rows')", "55000"),
            ("SELECT * FROM tenant_quota_try_consume('rows')", "55000"),
            ("SELECT * FROM tenant_quota_release('rows')", "55000"),
            ("SELECT * FROM tenant_quota_consume_many('{\"rows\": 1}')", "55000"),
        ],
    );
    assert_eq!(answer(&mut app, "tenant_quota_check('rows')")["used"], 2);
    db.admin().run("SELECT tenant_quota_detach('orders', 'rows')");
    app.run("SELECT * FROM tenant_quota_consume('rows'); SELECT * FROM tenant_quota_release('rows')");
}

/// Detached, rows count no more and the table has no trigger of ours.
#[test]
fn detach_takes_everything_back() {
    let db = attached();
    let mut admin = db.admin();
    admin.run("SELECT tenant_quota_detach('orders', 'rows')");
    counts(&db, 0, 0);
    db.connect_as(&db.app(), A).run("INSERT INTO orders (id) VALUES (10); DELETE FROM orders WHERE id = 1");
    counts(&db, 0, 0);
    let triggers = "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'orders'::regclass AND NOT tgisinternal";
    assert_eq!(admin.one::<i64>(triggers), 0);
    admin.run("SELECT tenant_quota_attach('orders', 'rows')");
    counts(&db, 2, 2);
}

/// Reconcile repairs what direct SQL has made wrong, and says how many values were.
#[test]
fn reconcile_repairs_drift() {
    let db = attached();
    let mut admin = db.admin();
    let reconcile = "SELECT tenant_quota_reconcile('orders')";
    assert_eq!(admin.one::<i64>(reconcile), 0);
    admin.run(&format!(
        "INSERT INTO tenant_rls.ledger VALUES ('{A}', 'rows', '-infinity', 'infinity', 5);
         DELETE FROM tenant_rls.ledger WHERE tenant_id = '{B}'; DELETE FROM tenant_rls.usage WHERE tenant_id = '{B}'"
    ));
    assert_ne!(drift(&mut admin), "");
    assert_eq!(admin.one::<i64>(reconcile), 2);
    counts(&db, 2, 2);
    assert_eq!(admin.one::<i64>(reconcile), 0);
}

/// Rows that came while the triggers were off are found by the invariants and by reconcile.
#[test]
fn reconcile_finds_rows_that_no_trigger_saw() {
    let db = attached();
    let mut admin = db.admin();
    admin.run(&format!("SET session_replication_role = replica; INSERT INTO orders VALUES (10, '{A}'); RESET session_replication_role"));
    assert_eq!(drift(&mut admin), format!("{A} rows the gauge differs from the rows it follows 3 2"));
    assert_eq!(admin.one::<i64>("SELECT tenant_quota_reconcile('orders')"), 1);
    counts(&db, 3, 2);
}

/// Reconcile waits for writers, so it counts what they commit.
#[test]
fn reconcile_waits_for_writers() {
    let db = attached();
    let mut app = db.connect_as(&db.app(), A);
    app.run("BEGIN; INSERT INTO orders (id) VALUES (10)");
    thread::scope(|scope| {
        let reconcile = scope.spawn(|| db.admin().one::<i64>("SELECT tenant_quota_reconcile('orders')"));
        waiting(&mut db.admin(), 1);
        app.run("COMMIT");
        assert_eq!(reconcile.join().expect("a count"), 0);
    });
    counts(&db, 3, 2);
}

/// What attach, detach and reconcile refuse.
#[test]
fn attach_detach_and_reconcile_refuse() {
    let db = partitioned();
    let mut admin = db.admin();
    define(&mut admin, "free_gauge", 5);
    admin.run("CREATE TABLE plain (tenant_id uuid); CREATE VIEW v AS SELECT 1");
    refuses(
        &mut admin,
        &[
            ("SELECT tenant_quota_attach('plain', 'free_gauge')", "55000"),
            ("SELECT tenant_quota_attach('v', 'free_gauge')", "55000"),
            ("SELECT tenant_quota_attach('orders', 'api_requests')", "22023"),
            ("SELECT tenant_quota_attach('orders', 'cows')", "42704"),
            ("SELECT tenant_quota_attach('events_0', 'free_gauge')", "42809"),
            ("SELECT tenant_quota_attach('events', 'rows')", "42710"),
            ("SELECT tenant_quota_attach(NULL, 'free_gauge')", "22004"),
            ("SELECT tenant_quota_attach('orders', NULL)", "22004"),
            ("SELECT tenant_quota_detach('orders', 'free_gauge')", "42704"),
            ("SELECT tenant_quota_detach('events_0', 'rows')", "42809"),
            ("SELECT tenant_quota_detach('plain', 'rows')", "55000"),
            ("SELECT tenant_quota_detach(NULL, 'rows')", "22004"),
            ("SELECT tenant_quota_detach('orders', NULL)", "22004"),
            ("SELECT tenant_quota_reconcile('plain')", "55000"),
            ("SELECT tenant_quota_reconcile('events_0')", "42809"),
            ("SELECT tenant_quota_reconcile(NULL)", "22004"),
            ("SELECT tenant_unprotect('events')", "55000"),
        ],
    );
    admin.run("SELECT tenant_quota_attach('orders', 'free_gauge'); SELECT tenant_quota_detach('orders', 'free_gauge')");
    admin.run("SELECT tenant_quota_reconcile('events'), tenant_quota_detach('events', 'rows'); SELECT tenant_unprotect('events')");
}

/// Who attaches and detaches owns the table and is an operator: the gauge is everybody's, the rows are the owner's.
#[test]
fn an_owner_who_is_an_operator_attaches() {
    let db = attached();
    let (owner, operator, both) = (db.role_name("owner"), db.role_name("operator"), db.role_name("both"));
    db.role(&owner, "LOGIN");
    db.role(&operator, "LOGIN");
    db.role(&both, &format!("LOGIN IN ROLE {owner}, {operator}"));
    define(&mut db.admin(), "more", 100);
    db.admin().run(&format!(
        "ALTER TABLE orders OWNER TO {owner}; GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO {operator}; SELECT tenant_grant_operator('{operator}')"
    ));
    let (mut owner, mut operator, mut both) = (db.connect(&owner), db.connect(&operator), db.connect(&both));
    for call in
        ["SELECT tenant_quota_attach('orders', 'more')", "SELECT tenant_quota_detach('orders', 'more')"]
    {
        assert_eq!(owner.fails(call), "42501", "{call}");
        assert_eq!(operator.fails(call), "42501", "{call}");
        both.run(call);
    }
    counts(&db, 2, 2);
}

/// The owner reconciles.
#[test]
fn the_owner_reconciles() {
    let db = attached();
    let (owner, operator) = (db.role_name("owner"), db.role_name("operator"));
    for role in [&owner, &operator] {
        db.role(role, "LOGIN");
    }
    db.admin()
        .run(&format!("ALTER TABLE orders OWNER TO {owner}; SELECT tenant_grant_operator('{operator}')"));
    let reconcile = "SELECT tenant_quota_reconcile('orders')";
    assert_eq!(db.connect(&operator).fails(reconcile), "42501");
    db.connect(&owner).run(reconcile);
}

/// Tables whose tenant column is bigint or integer.
#[test]
fn tables_with_keys_are_followed() {
    for key in ["bigint", "integer"] {
        let db = attached();
        let mut admin = db.admin();
        admin.run(&format!(
            "UPDATE tenant_rls.tenants SET tenant_key = 7 WHERE tenant_id = '{A}';
             CREATE TABLE bills (id int, account {key} NOT NULL); INSERT INTO bills VALUES (1, 7);
             SELECT tenant_protect('bills', 'account'), tenant_quota_attach('bills', 'rows');
             GRANT SELECT, INSERT, UPDATE, DELETE ON bills TO {}",
            db.app()
        ));
        counts(&db, 3, 2);
        let mut app = db.connect_as(&db.app(), A);
        app.run("INSERT INTO bills (id) VALUES (2), (3); DELETE FROM bills WHERE id = 1");
        counts(&db, 4, 2);
        admin.run("TRUNCATE bills");
        counts(&db, 2, 2);
    }
}

/// Rows of a tenant that nobody has registered are refused.
#[test]
fn rows_of_unknown_tenants_are_refused() {
    let db = attached();
    let mut admin = db.admin();
    let stranger = "cccccccc-0000-4000-8000-00000000000c";
    let insert = format!("INSERT INTO orders VALUES (10, '{stranger}')");
    assert_eq!(admin.fails(&insert), "42704");
    counts(&db, 2, 2);
    admin.run(&format!("SELECT tenant_create('{stranger}'); {insert}"));
    assert_eq!(recorded(&mut admin, stranger, "rows"), 1);
}

/// A table with rows of a tenant that nobody has registered is not attached.
#[test]
fn a_table_with_rows_of_unknown_tenants_is_not_attached() {
    let db = attached();
    let mut admin = db.admin();
    let stranger = "cccccccc-0000-4000-8000-00000000000c";
    admin.run(&format!(
        "CREATE TABLE t (tenant_id uuid); INSERT INTO t VALUES ('{stranger}'); SELECT tenant_protect('t')"
    ));
    admin.run("CREATE TABLE k (tenant_id int); INSERT INTO k VALUES (77); SELECT tenant_protect('k')");
    refuses(
        &mut admin,
        &[
            ("SELECT tenant_quota_attach('t', 'rows')", "42704"),
            ("SELECT tenant_quota_attach('k', 'rows')", "42704"),
        ],
    );
    counts(&db, 2, 2);
    admin.run(&format!("SELECT tenant_create('{stranger}', tenant_key => 77)"));
    admin.run("SELECT tenant_quota_attach('t', 'rows'), tenant_quota_attach('k', 'rows')");
    assert_eq!(recorded(&mut admin, stranger, "rows"), 2);
}

/// Rows whose tenant lost its registration are a finding; they keep nobody from a DROP, and may go themselves.
#[test]
fn rows_of_lost_tenants_are_findings() {
    let db = attached();
    let mut admin = db.admin();
    admin.run(&format!(
        "UPDATE tenant_rls.tenants SET tenant_key = 7 WHERE tenant_id = '{A}';
         CREATE TABLE bills (day int, account int NOT NULL) PARTITION BY LIST (day);
         CREATE TABLE bills_1 PARTITION OF bills FOR VALUES IN (1);
         CREATE TABLE bills_2 PARTITION OF bills FOR VALUES IN (2);
         SELECT tenant_protect('bills', 'account'), tenant_quota_attach('bills', 'rows');
         INSERT INTO bills VALUES (1, 7), (2, 7);
         UPDATE tenant_rls.tenants SET tenant_key = 8 WHERE tenant_id = '{A}'"
    ));
    assert_ne!(drift(&mut admin), "");
    admin.run("DROP TABLE bills_1");
    assert_eq!(admin.fails("INSERT INTO bills VALUES (2, 7)"), "42704");
    admin.run("DELETE FROM bills");
    counts(&db, 2, 2);
}

/// A fenced tenant's rows do not change, whoever writes.
#[test]
fn rows_of_a_fenced_tenant_stay() {
    let db = attached();
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_fence('{A}')"));
    for sql in [
        format!("INSERT INTO orders VALUES (10, '{A}')"),
        "DELETE FROM orders WHERE id = 1".into(),
        "TRUNCATE orders".into(),
    ] {
        assert_eq!(admin.fails(&sql), "25006", "{sql}");
    }
    counts(&db, 2, 2);
    admin.run("DELETE FROM orders WHERE id = 3");
    counts(&db, 2, 1);
}

/// A table that changes its shape or its name is followed on, by sessions that knew the old one too.
#[test]
fn altered_tables_are_followed() {
    let db = attached();
    let mut app = db.connect_as(&db.app(), A);
    app.run("INSERT INTO orders (id) VALUES (10); DELETE FROM orders WHERE id = 10");
    db.admin().run("ALTER TABLE orders ADD COLUMN extra text DEFAULT 'x'; ALTER TABLE orders DROP COLUMN note; ALTER TABLE orders RENAME TO sales");
    app.run("INSERT INTO sales (id) VALUES (10), (11); DELETE FROM sales WHERE id = 11");
    counts(&db, 3, 2);
}

/// Names that need quotes.
#[test]
fn odd_names_are_followed() {
    let db = attached();
    let mut admin = db.admin();
    admin.run(&format!(
        "CREATE SCHEMA \"S 1\"; CREATE TABLE \"S 1\".\"O'rders\" (id int, \"Tenant Id\" uuid NOT NULL);
         INSERT INTO \"S 1\".\"O'rders\" VALUES (1, '{A}');
         SELECT tenant_resource_define('it''s', 'gauge', 'row', 'none'), tenant_plan_limit_set('free', 'it''s', 5);
         SELECT tenant_protect('\"S 1\".\"O''rders\"', 'Tenant Id'), tenant_quota_attach('\"S 1\".\"O''rders\"', 'it''s');
         INSERT INTO \"S 1\".\"O'rders\" VALUES (2, '{A}')"
    ));
    assert_eq!(
        admin.one::<i64>("SELECT sum(used)::bigint FROM tenant_rls.units WHERE resource = 'it''s'"),
        2
    );
    assert_eq!(drift(&mut admin), "");
}
