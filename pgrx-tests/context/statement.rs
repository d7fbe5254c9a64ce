//! One statement sees one tenant.

use postgres::Client;

use super::{UNKNOWN, current, notes};
use crate::harness::{A, B, Db, Session, state};

/// The database of these tests, with functions that switch to the tenant that they are given.
fn database() -> Db {
    let db = Db::with_orders();
    db.admin().run(&format!(
        "CREATE FUNCTION switch(t text) RETURNS text LANGUAGE plpgsql AS
         $$ BEGIN PERFORM set_tenant(t::uuid); RETURN t; END $$;
         CREATE FUNCTION visit_b() RETURNS text LANGUAGE sql VOLATILE SET app.current_tenant = '{B}'
         AS 'SELECT min(note) FROM orders';
         CREATE FUNCTION reset_all() RETURNS int LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'RESET ALL'; RETURN 1; END $$"
    ));
    db
}

/// A session in a transaction, acting for [`A`].
fn begin(db: &Db) -> Client {
    let mut app = db.connect_as(&db.app(), A);
    app.run("BEGIN");
    app
}

/// A statement that has read a row cannot change the tenant, by any means.
#[test]
fn a_statement_cannot_change_its_tenant() {
    let db = database();
    for change in [
        format!("set_tenant('{B}')"),
        format!("set_tenant('{B}', false)"),
        format!("switch('{B}')"),
        format!("set_config('app.current_tenant', '{B}', true)"),
        "set_config('app.current_tenant', '', true)".into(),
        "reset_tenant()".into(),
        "visit_b()".into(),
        "reset_all()".into(),
    ] {
        let mut app = begin(&db);
        // RESET ALL cannot be refused: the next row makes it an error.
        app.run("SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off");
        assert_eq!(app.fails(&format!("SELECT id, {change} FROM orders")), "55000", "{change}");
        let mut alone = begin(&db);
        alone.run(&format!("SELECT {change}"));
    }
}

/// A plan that asks for the tenant only once, for an index, goes on with the tenant that it has asked for.
#[test]
fn an_index_scan_keeps_its_tenant() {
    let db = database();
    let mut app = begin(&db);
    app.run("SET LOCAL enable_seqscan = off");
    let rows = app.rows("SELECT note, reset_all() FROM orders ORDER BY id");
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<String>>(), ["a1", "a2"]);
    assert_eq!(app.fails("SELECT FROM orders"), "55000");
}

/// The same tenant again is no change.
#[test]
fn the_same_tenant_again_is_fine() {
    let db = database();
    let mut app = begin(&db);
    for same in [format!("set_tenant('{A}')"), format!("switch('{A}')")] {
        assert_eq!(app.rows(&format!("SELECT id, {same}::text FROM orders")).len(), 2, "{same}");
    }
    assert_eq!(current(&mut app).as_deref(), Some(A));
}

/// A trigger on the rows of a statement cannot change the tenant.
#[test]
fn a_row_trigger_cannot_change_the_tenant() {
    let db = database();
    db.admin().run(
        "CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN PERFORM set_tenant(NEW.note::uuid); RETURN NEW; END $$;
         CREATE TRIGGER change AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION change()",
    );
    let insert = |id: i32, note: &str| format!("INSERT INTO orders (id, note) VALUES ({id}, '{note}')");
    assert_eq!(begin(&db).fails(&insert(5, B)), "55000");
    begin(&db).run(&insert(6, A));
}

/// A function that catches the refusal goes on with the rows of the first tenant, and no other.
#[test]
fn a_caught_change_shows_no_other_rows() {
    let db = database();
    db.admin().run(
        "CREATE FUNCTION try(t text) RETURNS text LANGUAGE plpgsql AS
         $$ BEGIN PERFORM set_tenant(t::uuid); RETURN 'set'; EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE; END $$",
    );
    let mut app = begin(&db);
    let rows = app.rows(&format!("SELECT note, try('{B}') FROM orders ORDER BY id"));
    let seen: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(seen, [("a1".into(), "55000".into()), ("a2".into(), "55000".into())]);
}

/// A loop that finishes each statement before it changes the tenant is what jobs do.
#[test]
fn a_loop_over_tenants_works() {
    let db = database();
    let mut app = begin(&db);
    app.run(&format!(
        "DO $$
         DECLARE t uuid; x uuid; seen text := '';
         BEGIN
             FOR t IN VALUES ('{A}'::uuid), ('{B}'), ('{A}') LOOP
                 PERFORM set_tenant(t);
                 seen := seen || (SELECT min(note) FROM orders);
                 UPDATE orders SET note = note || '!' WHERE id IN (2, 4);
                 ASSERT FOUND;
                 x := required_tenant();
                 ASSERT x = t;
             END LOOP;
             ASSERT seen = 'a1b3a1', seen;
         END $$"
    ));
    assert_eq!(notes(&mut app), ["a1", "a2!!"]);
}

/// A loop over protected rows is one statement until its end.
#[test]
fn a_loop_over_rows_cannot_change_the_tenant() {
    let db = database();
    let run = |tenant: &str| {
        begin(&db).attempt(&format!(
            "DO $$ DECLARE r record; BEGIN
                 FOR r IN SELECT * FROM orders LOOP PERFORM set_tenant('{tenant}'); END LOOP;
             END $$"
        ))
    };
    assert_eq!(run(B).as_deref(), Some("55000"));
    assert_eq!(run(A), None);
}

/// While a cursor that has been read is open the tenant stays; once it is closed it may go.
#[test]
fn a_read_cursor_holds_the_tenant() {
    let db = database();
    let mut app = begin(&db);
    app.run("DECLARE c CURSOR FOR SELECT note FROM orders; FETCH 1 FROM c; SAVEPOINT s");
    assert_eq!(app.fails(&format!("SELECT set_tenant('{B}')")), "55000");
    app.run("ROLLBACK TO s; CLOSE c");
    app.run(&format!("SELECT set_tenant('{B}')"));
    assert_eq!(notes(&mut app), ["b3", "b4"]);
}

/// A cursor that has not been read yet reads the new tenant, and only that.
#[test]
fn an_unread_cursor_reads_the_new_tenant() {
    let db = database();
    let mut app = begin(&db);
    app.run("DECLARE c CURSOR FOR SELECT note FROM orders ORDER BY id");
    app.run(&format!("SELECT set_tenant('{B}')"));
    let seen: Vec<String> = app.rows("FETCH ALL FROM c").iter().map(|row| row.get(0)).collect();
    assert_eq!(seen, ["b3", "b4"]);
}

/// A portal of the extended protocol that waits for its next rows is open.
#[test]
fn a_suspended_portal_holds_the_tenant() {
    let db = database();
    let mut app = db.connect_as(&db.app(), A);
    let mut transaction = app.transaction().expect("a transaction");
    let portal = transaction.bind("SELECT note FROM orders", &[]).expect("a portal");
    assert_eq!(transaction.query_portal(&portal, 1).expect("a row").len(), 1);
    let refused =
        transaction.batch_execute(&format!("SELECT set_tenant('{B}')")).expect_err("an open portal");
    assert_eq!(state(&refused), "55000");
}

/// A portal that has given all its rows is closed, and so is its statement.
#[test]
fn a_finished_portal_holds_nothing() {
    let db = database();
    let mut app = db.connect_as(&db.app(), A);
    let mut transaction = app.transaction().expect("a transaction");
    let portal = transaction.bind("SELECT note FROM orders", &[]).expect("a portal");
    assert_eq!(transaction.query_portal(&portal, 0).expect("rows").len(), 2);
    drop(portal);
    transaction.batch_execute(&format!("SELECT set_tenant('{B}')")).expect("no open portal");
}

/// Between finished statements the tenant may change, by both protocols.
#[test]
fn finished_statements_hold_nothing() {
    let db = database();
    let mut app = begin(&db);
    app.run("SELECT note FROM orders");
    app.run(&format!("SET app.current_tenant = '{B}'"));
    assert_eq!(notes(&mut app), ["b3", "b4"]);
    app.rows(&format!("SELECT set_tenant('{A}')"));
    assert_eq!(notes(&mut app), ["a1", "a2"]);
}

/// A statement that failed half-way is over, also inside a function that goes on.
#[test]
fn a_failed_statement_holds_nothing() {
    let db = database();
    let mut app = begin(&db);
    app.run(&format!(
        "DO $$ BEGIN
             BEGIN PERFORM 1 / (id - 2) FROM orders ORDER BY id;
             EXCEPTION WHEN division_by_zero THEN NULL;
             END;
             PERFORM set_tenant('{B}');
             ASSERT (SELECT min(note) FROM orders) = 'b3';
         END $$"
    ));
    app.run("SAVEPOINT s");
    app.fails("SELECT 1 / (id - 4) FROM orders");
    app.run(&format!("ROLLBACK TO s; SELECT set_tenant('{A}')"));
    assert_eq!(notes(&mut app), ["a1", "a2"]);
}

/// A change before the first row is read is in time: the statement sees the new tenant alone.
#[test]
fn a_change_before_the_first_row_is_in_time() {
    let db = database();
    let mut app = begin(&db);
    let sql = format!(
        "WITH s AS MATERIALIZED (SELECT set_tenant('{B}') AS tenant)
         SELECT o.note FROM s LEFT JOIN LATERAL (SELECT * FROM orders WHERE s.tenant IS NOT NULL) AS o ON true
         ORDER BY o.id"
    );
    let seen: Vec<String> = app.rows(&sql).iter().map(|row| row.get(0)).collect();
    assert_eq!(seen, ["b3", "b4"]);
}

/// A trigger before the statement may choose its tenant.
#[test]
fn a_statement_trigger_may_change_the_tenant() {
    let db = database();
    switch_before_insert(&db);
    let mut app = begin(&db);
    app.run("INSERT INTO orders (id, note) VALUES (5, 'b5')");
    assert_eq!(notes(&mut app), ["b3", "b4", "b5"]);
}

/// A row is not written for a tenant that the session has lost since the statement wrote its first one.
#[test]
fn a_tenant_lost_on_the_way_writes_no_more() {
    let db = database();
    let insert = |last| {
        format!(
            "INSERT INTO orders SELECT n, '{A}', CASE n WHEN 6 THEN reset_all() END::text
             FROM generate_series(5, {last}) AS n"
        )
    };
    assert_eq!(begin(&db).fails(&insert(6)), "55000");
    begin(&db).run(&insert(5));
}

/// Makes the orders belong to [`B`], by a trigger before INSERT.
fn switch_before_insert(db: &Db) {
    db.admin().run(&format!(
        "CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN PERFORM set_tenant('{B}'); RETURN NULL; END $$;
         CREATE TRIGGER change BEFORE INSERT ON orders FOR EACH STATEMENT EXECUTE FUNCTION change()"
    ));
}

/// A statement that changes the tenant before its first row does not get behind the fence of the new one.
#[test]
fn a_change_before_the_first_row_stops_at_the_fence() {
    let db = database();
    switch_before_insert(&db);
    db.admin().run(&format!("SELECT tenant_fence('{B}')"));
    let insert = "INSERT INTO orders (id, note) VALUES (5, 'b5')";
    assert_eq!(begin(&db).fails(insert), "25006");
    db.admin().run(&format!("SELECT tenant_unfence('{B}')"));
    begin(&db).run(insert);
}

/// A cursor that was read under a function's SET clause cannot be read on outside it.
#[test]
fn a_cursor_does_not_leave_its_tenant() {
    let db = database();
    db.admin().run(&format!(
        "CREATE FUNCTION open_b() RETURNS refcursor LANGUAGE plpgsql SET app.current_tenant = '{B}' AS
         $$ DECLARE c refcursor := 'c'; r record; BEGIN OPEN c FOR SELECT * FROM orders; FETCH c INTO r; RETURN c; END $$;
         CREATE FUNCTION open_a() RETURNS refcursor LANGUAGE plpgsql SET app.current_tenant = '{A}' AS
         $$ DECLARE c refcursor := 'c'; r record; BEGIN OPEN c FOR SELECT * FROM orders; FETCH c INTO r; RETURN c; END $$"
    ));
    let mut app = begin(&db);
    app.run("SELECT open_b()");
    assert_eq!(app.fails("FETCH ALL FROM c"), "55000");
    let mut app = begin(&db);
    app.run("SELECT open_a()");
    assert_eq!(app.rows("FETCH ALL FROM c").len(), 1);
}

/// A cursor that outlives a rollback of its tenant cannot be read on.
#[test]
fn a_cursor_does_not_survive_the_rollback_of_its_tenant() {
    let db = database();
    let fetch = |tenant: &str| {
        let mut app = begin(&db);
        app.run("DECLARE c CURSOR FOR SELECT note FROM orders; SAVEPOINT s");
        app.run(&format!("SELECT set_tenant('{tenant}'); FETCH 1 FROM c; ROLLBACK TO s"));
        app.attempt("FETCH 1 FROM c")
    };
    assert_eq!(fetch(B).as_deref(), Some("55000"));
    assert_eq!(fetch(A), None);
}

/// A function with a SET clause, called alone, shows the rows of its tenant.
#[test]
fn a_function_with_its_own_tenant_works() {
    let db = database();
    let mut app = begin(&db);
    assert_eq!(app.one::<String>("SELECT visit_b()"), "b3");
    assert_eq!(notes(&mut app), ["a1", "a2"]);
}

/// Whatever ended the statements before, nothing stays behind that would hold the tenant.
#[test]
fn nothing_stays_behind() {
    let db = database();
    let mut app = db.connect_as(&db.app(), A);
    for end in ["COMMIT", "ROLLBACK"] {
        app.run("BEGIN; DECLARE c CURSOR FOR SELECT note FROM orders; FETCH 1 FROM c");
        app.run("SAVEPOINT s; DECLARE d CURSOR FOR SELECT note FROM orders; FETCH 1 FROM d");
        app.fails("SELECT 1 / (id - 2) FROM orders");
        app.run("ROLLBACK TO s");
        app.run(end);
        for tenant in [B, A] {
            app.run(&format!("SET app.current_tenant = '{tenant}'"));
        }
    }
    assert_eq!(app.fails(&format!("SET app.current_tenant = '{UNKNOWN}'")), "42704");
}
