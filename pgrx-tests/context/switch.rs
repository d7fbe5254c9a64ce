//! Rows of one tenant do not come along when the session changes to another.

use postgres::Client;

use super::{current, notes};
use crate::harness::{A, B, Db, Session, state};

/// The database of these tests, with a function that hands rows on.
fn database() -> Db {
    let db = Db::with_orders();
    db.admin().run(
        "CREATE FUNCTION handed() RETURNS SETOF text LANGUAGE plpgsql AS
         $$ BEGIN RETURN QUERY SELECT note FROM orders; END $$",
    );
    db
}

fn set(tenant: &str) -> String {
    format!("SET app.current_tenant = '{tenant}'")
}

/// A session that acted for [`A`], in a transaction, when it did this.
fn after(db: &Db, statement: &str) -> Client {
    let mut app = db.connect(&db.app());
    app.run(&format!("BEGIN; SELECT set_tenant('{A}'); {statement}; COMMIT"));
    app
}

/// Another tenant is refused, also after none; the same one is not; and another one is not after the clearing.
#[track_caller]
fn refuses_until(db: &Db, carry: &str, clear: &str) {
    let mut app = after(db, carry);
    for other in [
        set(B),
        format!("SELECT set_tenant('{B}')"),
        format!("SELECT set_config('app.current_tenant', '{B}', false)"),
    ] {
        assert_eq!(app.fails(&other), "55000", "{carry}: {other}");
        assert_eq!(current(&mut app), None);
    }
    app.run(&set(A));
    assert_eq!(notes(&mut app), ["a1", "a2"], "{carry}");
    app.run("RESET app.current_tenant");
    assert_eq!(app.fails(&set(B)), "55000", "{carry}, after none");
    app.run(clear);
    app.run(&set(B));
    assert_eq!(notes(&mut app), ["b3", "b4"], "{carry}: {clear}");
}

/// Another tenant is accepted at once.
#[track_caller]
fn accepts(db: &Db, carry: &str) {
    let mut app = after(db, carry);
    app.run(&set(B));
    assert_eq!(notes(&mut app), ["b3", "b4"], "{carry}");
}

/// A cursor WITH HOLD over protected rows refuses another tenant until it is closed.
#[test]
fn a_held_cursor_refuses() {
    let db = database();
    let hold = |query: &str| format!("DECLARE c CURSOR WITH HOLD FOR {query}");
    for clear in ["CLOSE c", "CLOSE ALL", "DISCARD ALL"] {
        refuses_until(&db, &hold("SELECT note FROM orders"), clear);
    }
    refuses_until(&db, &hold("SELECT o.note FROM pg_class AS c, orders AS o"), "CLOSE c");
    refuses_until(&db, &hold("SELECT * FROM handed()"), "CLOSE c");
    refuses_until(&db, &format!("{}; FETCH 1 FROM c", hold("SELECT * FROM handed()")), "CLOSE c");
    accepts(&db, &hold("SELECT 1"));
    accepts(&db, &format!("{}; CLOSE c", hold("SELECT note FROM orders")));
    accepts(&db, "DECLARE c CURSOR FOR SELECT note FROM orders; FETCH 1 FROM c");
}

/// A cursor that has collected rows through a function refuses within its transaction too.
#[test]
fn a_cursor_over_a_function_refuses() {
    let db = database();
    let mut app = db.connect_as(&db.app(), A);
    app.run("BEGIN; DECLARE c CURSOR FOR SELECT * FROM handed(); FETCH 1 FROM c; SAVEPOINT s");
    assert_eq!(app.fails(&set(B)), "55000");
    app.run("ROLLBACK TO s; CLOSE c");
    app.run(&set(B));
    assert_eq!(notes(&mut app), ["b3", "b4"]);
}

/// A loop that a procedure keeps over a commit has its rows already.
#[test]
fn a_loop_over_commits_refuses() {
    let db = database();
    let mut app = db.connect_as(&db.app(), A);
    let walk = |tenant: &str| {
        format!(
            "DO $$ DECLARE r record; BEGIN
                 FOR r IN SELECT note FROM orders LOOP COMMIT; PERFORM set_tenant('{tenant}'); END LOOP;
             END $$"
        )
    };
    app.run(&walk(A));
    assert_eq!(app.fails(&walk(B)), "55000");
}

/// A portal of a statement with RETURNING has all its rows before the client has read them.
#[test]
fn a_returning_portal_refuses() {
    let db = database();
    let mut app = db.connect_as(&db.app(), A);
    let mut transaction = app.transaction().expect("a transaction");
    let portal = transaction.bind("UPDATE orders SET note = note RETURNING note", &[]).expect("a portal");
    assert_eq!(transaction.query_portal(&portal, 1).expect("a row").len(), 1);
    let refused = transaction.batch_execute(&set(B)).expect_err("an open portal");
    assert_eq!(state(&refused), "55000");
}

/// A temporary table with rows refuses another tenant until it is gone or empty.
#[test]
fn a_temporary_table_refuses() {
    let db = database();
    let fill = "CREATE TEMPORARY TABLE t AS SELECT note FROM orders";
    for clear in ["DROP TABLE t", "TRUNCATE t", "DISCARD TEMP", "DISCARD ALL"] {
        refuses_until(&db, fill, clear);
    }
    refuses_until(&db, "SELECT note INTO TEMPORARY t FROM orders", "DROP TABLE t");
    refuses_until(&db, "CREATE TEMPORARY TABLE t (note text); INSERT INTO t VALUES ('x')", "DROP TABLE t");
}

/// A temporary table without rows, or of one transaction, refuses nothing.
#[test]
fn an_empty_temporary_table_does_not_refuse() {
    let db = database();
    accepts(&db, "CREATE TEMPORARY TABLE t (note text)");
    for end in ["DELETE ROWS", "DROP"] {
        accepts(
            &db,
            &format!(
                "CREATE TEMPORARY TABLE t (note text) ON COMMIT {end}; INSERT INTO t SELECT note FROM orders"
            ),
        );
    }
    accepts(&db, "CREATE TEMPORARY VIEW v AS SELECT note FROM orders; CREATE TEMPORARY SEQUENCE s");
}

/// What was in a temporary table before the first tenant is nobody's; what comes later is somebody's.
#[test]
fn a_temporary_table_from_before_does_not_refuse() {
    let db = database();
    let mut app = db.connect(&db.app());
    app.run("CREATE TEMPORARY TABLE t AS SELECT repeat('x', 100) AS x FROM generate_series(1, 10)");
    app.run("CREATE TEMPORARY TABLE empty (x text)");
    for tenant in [A, B, A] {
        app.run(&set(tenant));
        assert_eq!(notes(&mut app).len(), 2);
    }
    for (table, clear) in [("empty", "TRUNCATE empty"), ("t", "DROP TABLE t")] {
        app.run(&format!("INSERT INTO {table} SELECT repeat('x', 100) FROM orders, generate_series(1, 100)"));
        assert_eq!(app.fails(&set(B)), "55000", "{table}");
        app.run(&set(A));
        app.run(clear);
        app.run(&set(B));
        app.run(&set(A));
    }
}

/// A few rows that find room on a page from before are rows of somebody as well, however they were hidden.
#[test]
fn a_row_added_to_a_table_from_before_refuses() {
    let db = database();
    for add in [
        "INSERT INTO t SELECT note FROM orders",
        "UPDATE t SET x = (SELECT min(note) FROM orders)",
        "DELETE FROM t; VACUUM t; INSERT INTO t SELECT note FROM orders",
        "INSERT INTO t SELECT note FROM orders; VACUUM (FREEZE) t",
        "INSERT INTO t SELECT note FROM orders; VACUUM (FULL, FREEZE) t",
        "ALTER TABLE t ALTER x TYPE text USING 'of a'",
        "BEGIN; SAVEPOINT s; INSERT INTO t SELECT note FROM orders; RELEASE s; COMMIT",
        "DELETE FROM t WHERE x = 'from before'; INSERT INTO t SELECT note FROM orders",
    ] {
        let mut app = db.connect(&db.app());
        app.run("CREATE TEMPORARY TABLE t AS SELECT 'from before'::text AS x FROM generate_series(1, 10)");
        app.run(&set(A));
        // VACUUM wants to be alone.
        add.split("; ").for_each(|statement| app.run(statement));
        assert_eq!(app.fails(&set(B)), "55000", "{add}");
        app.run(&set(A));
        app.run("TRUNCATE t");
        app.run(&set(B));
    }
    // In the transaction of the first tenant nobody knows what was before.
    let mut app = db.connect(&db.app());
    app.run(&format!("BEGIN; CREATE TEMPORARY TABLE t AS SELECT 'x' AS x; SELECT set_tenant('{A}'); COMMIT"));
    assert_eq!(app.fails(&set(B)), "55000");
    // Rows that are gone again are nobody's.
    let mut app = db.connect(&db.app());
    app.run("CREATE TEMPORARY TABLE t AS SELECT 'x'::text AS x");
    app.run(&format!("{}; BEGIN; INSERT INTO t SELECT note FROM orders; ROLLBACK; {}", set(A), set(B)));
    assert_eq!(notes(&mut app), ["b3", "b4"]);
}

/// The end of a transaction cannot refuse: the next use does.
#[test]
fn the_end_of_a_transaction_makes_the_next_use_raise() {
    let db = database();
    for (carry, clear) in [
        ("CREATE TEMPORARY TABLE t AS SELECT note FROM orders", "DROP TABLE t"),
        ("DECLARE t CURSOR WITH HOLD FOR SELECT note FROM orders", "CLOSE t"),
    ] {
        let mut app = db.connect_as(&db.app(), A);
        app.run(&format!("BEGIN; SELECT set_tenant('{B}'); {carry}; COMMIT"));
        assert_eq!(app.fails("SELECT FROM orders"), "55000", "{carry}");
        assert_eq!(current(&mut app), None);
        app.run(clear);
        assert_eq!(notes(&mut app), ["a1", "a2"], "{carry}");
    }
}

/// A rollback takes the rows back together with the tenant.
#[test]
fn a_rollback_carries_nothing() {
    let db = database();
    let mut app = db.connect_as(&db.app(), A);
    for carry in [
        "CREATE TEMPORARY TABLE t AS SELECT note FROM orders",
        "DECLARE t CURSOR WITH HOLD FOR SELECT note FROM orders; FETCH 1 FROM t",
    ] {
        app.run(&format!("BEGIN; SELECT set_tenant('{B}'); {carry}; ROLLBACK"));
        assert_eq!(notes(&mut app), ["a1", "a2"], "{carry}");
    }
}

/// Rows that were hidden from the guard and come back by a rollback are those of the tenant from before it.
#[test]
fn a_rollback_brings_the_tenant_of_its_rows_back() {
    let db = database();
    for hide in ["DROP TABLE t", "TRUNCATE t", "DELETE FROM old"] {
        for (begin, end) in [
            ("BEGIN", "ROLLBACK"),
            ("BEGIN; SAVEPOINT s", "ROLLBACK TO s; COMMIT"),
            ("BEGIN; SAVEPOINT s; SAVEPOINT i", "RELEASE i; ROLLBACK TO s; COMMIT"),
            ("BEGIN; SAVEPOINT s; SAVEPOINT i", "RELEASE i; RELEASE s; ROLLBACK"),
        ] {
            let mut app = db.connect(&db.app());
            app.run("CREATE TEMPORARY TABLE old AS SELECT 'from before'::text AS note");
            app.run(&set(A));
            let fill = if hide.contains("old") {
                "INSERT INTO old SELECT note FROM orders"
            } else {
                "CREATE TEMPORARY TABLE t AS SELECT note FROM orders"
            };
            app.run(fill);
            app.run(&format!("{begin}; {hide}; {}; {end}", set(B)));
            assert_eq!(app.fails(&set(B)), "55000", "{begin}; {hide}; {end}");
            // It is still the session of A, and what is committed as hidden is gone.
            app.run(&set(A));
            app.run(&format!("{hide}; {}", set(B)));
            assert_eq!(notes(&mut app), ["b3", "b4"]);
        }
    }
    // Before the first tenant there is nothing to bring back.
    let mut app = db.connect(&db.app());
    app.run(&format!(
        "BEGIN; {}; ROLLBACK; CREATE TEMPORARY TABLE t AS SELECT 'x' AS note; {}",
        set(A),
        set(B)
    ));
    assert_eq!(notes(&mut app), ["b3", "b4"]);
}

/// A function with a tenant of its own leaves none of its rows behind.
#[test]
fn a_function_that_fills_a_table_makes_the_next_use_raise() {
    let db = database();
    db.admin().run(&format!(
        "CREATE FUNCTION fill() RETURNS void LANGUAGE sql SET app.current_tenant = '{B}' AS
         'CREATE TEMPORARY TABLE t AS SELECT note FROM orders'"
    ));
    let mut app = db.connect_as(&db.app(), A);
    app.run("SELECT fill()");
    assert_eq!(app.fails("SELECT FROM orders"), "55000");
    app.run("DISCARD TEMP");
    assert_eq!(notes(&mut app), ["a1", "a2"]);
}

/// Looking at temporary tables does not make the transaction one that has used them.
#[test]
fn a_prepared_transaction_stays_possible() {
    let db = database();
    let mut app = db.connect(&db.app());
    app.run("CREATE TEMPORARY TABLE t AS SELECT 1 AS x");
    for (id, tenant) in [(5, A), (6, B)] {
        app.run(&format!(
            "BEGIN; SELECT set_tenant('{tenant}'); INSERT INTO orders (id, note) VALUES ({id}, 'x');
             PREPARE TRANSACTION '{}_{id}'",
            db.name()
        ));
        app.run(&format!("COMMIT PREPARED '{}_{id}'", db.name()));
    }
}

/// guard_switch = off lets both pass, and no role of the application can set it.
#[test]
fn the_guard_can_be_turned_off() {
    let db = database();
    let mut app = db.connect(&db.app());
    assert_eq!(app.fails("SET tenant_rls.guard_switch = off"), "42501");
    db.admin().run(&format!("ALTER DATABASE {} SET tenant_rls.guard_switch = off", db.name()));
    accepts(&db, "CREATE TEMPORARY TABLE t AS SELECT note FROM orders");
    accepts(&db, "DECLARE c CURSOR WITH HOLD FOR SELECT note FROM orders");
}

/// A role that sees all rows anyway changes tenants as it likes.
#[test]
fn a_bypassing_role_is_not_guarded() {
    let db = database();
    let mut admin = db.admin();
    admin.run(&set(A));
    admin.run("CREATE TEMPORARY TABLE t AS SELECT note FROM orders");
    admin.run(&set(B));
    assert_eq!(current(&mut admin).as_deref(), Some(B));
}
