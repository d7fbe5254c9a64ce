//! The rows that a tenant reads and writes are its own, by every statement.

mod kinds;
mod protect;
mod unprotect;

use std::io::Read;

use postgres::Client;

use crate::harness::{A, B, Db, Session};

/// The notes of the orders that the session sees.
#[track_caller]
fn notes(client: &mut Client) -> Vec<String> {
    texts(client, "SELECT note FROM orders ORDER BY id")
}

/// The first column of every row.
#[track_caller]
fn texts(client: &mut Client, sql: &str) -> Vec<String> {
    client.rows(sql).iter().map(|row| row.get(0)).collect()
}

/// The number of rows that a statement has changed.
#[track_caller]
fn changed(client: &mut Client, sql: &str) -> u64 {
    client.execute(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// The orders of all tenants, as a superuser sees them.
fn everything(db: &Db) -> Vec<String> {
    notes(&mut db.admin())
}

/// SELECT sees the tenant's rows, whatever it asks for.
#[test]
fn select_sees_its_rows() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    assert_eq!(notes(&mut app), ["a1", "a2"]);
    assert_eq!(texts(&mut app, "SELECT note FROM orders WHERE id IN (2, 3)"), ["a2"]);
    assert_eq!(texts(&mut app, &format!("SELECT note FROM orders WHERE tenant_id = '{B}'")), [""; 0]);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM orders WHERE note = 'b3' OR true"), 2);
}

/// INSERT gives a row to the tenant that it names, if that is the session's, or by default to the session's.
#[test]
fn insert_writes_its_rows() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    app.run("INSERT INTO orders (id, note) VALUES (5, 'a5')");
    app.run(&format!("INSERT INTO orders VALUES (6, '{A}', 'a6')"));
    assert_eq!(app.fails(&format!("INSERT INTO orders VALUES (7, '{B}', 'b7')")), "42501");
    assert_eq!(notes(&mut app), ["a1", "a2", "a5", "a6"]);
}

/// UPDATE changes the tenant's rows and no others.
#[test]
fn update_changes_its_rows() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    assert_eq!(changed(&mut app, "UPDATE orders SET note = note || '!'"), 2);
    assert_eq!(changed(&mut app, "UPDATE orders SET note = 'mine' WHERE id = 3"), 0);
    assert_eq!(everything(&db), ["a1!", "a2!", "b3", "b4"]);
}

/// UPDATE cannot give a row away.
#[test]
fn update_cannot_move_a_row() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    let give = |tenant: &str| format!("UPDATE orders SET tenant_id = '{tenant}' WHERE id = 1");
    assert_eq!(app.fails(&give(B)), "42501");
    app.run(&give(A));
}

/// DELETE deletes the tenant's rows and no others.
#[test]
fn delete_deletes_its_rows() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    assert_eq!(changed(&mut app, "DELETE FROM orders WHERE id = 3"), 0);
    assert_eq!(changed(&mut app, "DELETE FROM orders WHERE id = 1"), 1);
    assert_eq!(changed(&mut app, "DELETE FROM orders"), 1);
    assert_eq!(everything(&db), ["b3", "b4"]);
}

/// MERGE matches, changes and deletes the tenant's rows only.
#[test]
fn merge_matches_its_rows() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    let merged = changed(
        &mut app,
        "MERGE INTO orders AS o USING (VALUES (1), (2), (3)) AS v (id) ON o.id = v.id
         WHEN MATCHED AND v.id = 1 THEN UPDATE SET note = 'merged'
         WHEN MATCHED THEN DELETE",
    );
    assert_eq!(merged, 2);
    assert_eq!(everything(&db), ["merged", "b3", "b4"]);
}

/// MERGE cannot insert a row of another tenant, or give one away.
#[test]
fn merge_cannot_write_other_rows() {
    let db = Db::with_orders();
    let insert = |tenant: &str| {
        format!(
            "MERGE INTO orders AS o USING (VALUES (9)) AS v (id) ON o.id = v.id
             WHEN NOT MATCHED THEN INSERT (id, tenant_id, note) VALUES (v.id, '{tenant}', 'new')"
        )
    };
    let give = |tenant: &str| {
        format!(
            "MERGE INTO orders AS o USING (VALUES (1)) AS v (id) ON o.id = v.id
             WHEN MATCHED THEN UPDATE SET tenant_id = '{tenant}'"
        )
    };
    let mut app = db.connect_as(&db.app(), A);
    for merge in [insert(B), give(B)] {
        assert_eq!(app.fails(&merge), "42501");
    }
    for merge in [insert(A), give(A)] {
        app.run(&merge);
    }
}

/// COPY TO writes the tenant's rows out.
#[test]
fn copy_to_writes_its_rows() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    for sql in ["COPY orders (note) TO STDOUT", "COPY (SELECT note FROM orders) TO STDOUT"] {
        let mut text = String::new();
        app.copy_out(sql).expect(sql).read_to_string(&mut text).expect("rows");
        assert_eq!(text, "a1\na2\n", "{sql}");
    }
}

/// COPY FROM is refused by the server for those who are subject to policies.
#[test]
fn copy_from_is_refused() {
    let db = Db::with_orders();
    assert_eq!(db.connect_as(&db.app(), A).fails("COPY orders FROM STDIN"), "0A000");
    let mut admin = db.admin();
    admin.copy_in("COPY orders FROM STDIN").expect("a superuser may").finish().expect("no rows");
}

/// RETURNING shows the tenant's rows, and only those that were changed.
#[test]
fn returning_shows_its_rows() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    let update =
        "WITH u AS (UPDATE orders SET note = note || '!' RETURNING *) SELECT note FROM u ORDER BY id";
    assert_eq!(texts(&mut app, update), ["a1!", "a2!"]);
    let insert = "INSERT INTO orders (id, note) VALUES (5, 'a5') RETURNING tenant_id::text";
    assert_eq!(texts(&mut app, insert), [A]);
    assert_eq!(texts(&mut app, "DELETE FROM orders WHERE id IN (2, 3) RETURNING note"), ["a2!"]);
}

/// ON CONFLICT DO UPDATE changes a row of the tenant, and raises for one of another.
#[test]
fn upsert_changes_its_rows() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    let upsert = |id: i32| {
        format!(
            "INSERT INTO orders (id, note) VALUES ({id}, 'new')
             ON CONFLICT (id) DO UPDATE SET note = EXCLUDED.note"
        )
    };
    app.run(&upsert(1));
    assert_eq!(app.fails(&upsert(3)), "42501");
    assert_eq!(everything(&db), ["new", "a2", "b3", "b4"]);
}

/// ON CONFLICT DO UPDATE cannot give a row away.
#[test]
fn upsert_cannot_move_a_row() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    let upsert = |tenant: &str| {
        format!("INSERT INTO orders (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET tenant_id = '{tenant}'")
    };
    assert_eq!(app.fails(&upsert(B)), "42501");
    app.run(&upsert(A));
}

/// ON CONFLICT DO NOTHING does nothing, to whomever the row in the way belongs.
#[test]
fn insert_or_nothing_changes_nothing() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    for (id, count) in [(1, 0), (3, 0), (5, 1)] {
        let sql = format!("INSERT INTO orders (id, note) VALUES ({id}, 'a5') ON CONFLICT DO NOTHING");
        assert_eq!(changed(&mut app, &sql), count, "{id}");
    }
    assert_eq!(everything(&db), ["a1", "a2", "b3", "b4", "a5"]);
}

/// Makes a protected table of lines, one for each order.
fn with_lines() -> Db {
    let db = Db::with_orders();
    db.admin().run(&format!(
        "CREATE TABLE lines (order_id int, tenant_id uuid NOT NULL, product text);
         SELECT tenant_protect('lines');
         GRANT SELECT, INSERT, UPDATE, DELETE ON lines TO {};
         INSERT INTO lines SELECT id, tenant_id, 'product of ' || note FROM orders",
        db.app()
    ));
    db
}

/// Joins of protected tables, in every order, meet in the tenant's rows.
#[test]
fn joins_see_its_rows() {
    let db = with_lines();
    let mut app = db.connect_as(&db.app(), A);
    for method in ["nestloop", "hashjoin", "mergejoin"] {
        app.run("SET enable_nestloop = off; SET enable_hashjoin = off; SET enable_mergejoin = off");
        app.run(&format!("SET enable_{method} = on"));
        let join = "SELECT l.product FROM orders AS o JOIN lines AS l ON l.order_id = o.id ORDER BY 1";
        assert_eq!(texts(&mut app, join), ["product of a1", "product of a2"], "{method}");
        let outer = "SELECT count(*) FROM generate_series(1, 4) AS g LEFT JOIN lines AS l ON l.order_id = g
                     WHERE l.order_id IS NULL";
        assert_eq!(app.one::<i64>(outer), 2, "{method}");
    }
}

/// UPDATE and DELETE that join another protected table stay inside the tenant.
#[test]
fn writes_with_joins_stay_inside() {
    let db = with_lines();
    let mut app = db.connect_as(&db.app(), A);
    let update = "UPDATE orders AS o SET note = l.product FROM lines AS l WHERE l.order_id = o.id";
    assert_eq!(changed(&mut app, update), 2);
    assert_eq!(changed(&mut app, "DELETE FROM lines AS l USING orders AS o WHERE o.id = l.order_id"), 2);
    assert_eq!(everything(&db), ["product of a1", "product of a2", "b3", "b4"]);
}

/// Subqueries of every kind see the tenant's rows.
#[test]
fn subqueries_see_its_rows() {
    let db = with_lines();
    let mut app = db.connect_as(&db.app(), A);
    for sql in [
        "SELECT (SELECT string_agg(note, ' ' ORDER BY id) FROM orders)",
        "SELECT array_to_string(ARRAY(SELECT note FROM orders ORDER BY id), ' ')",
        "WITH o AS (SELECT * FROM orders) SELECT string_agg(note, ' ' ORDER BY id) FROM o",
        "WITH o AS MATERIALIZED (SELECT * FROM orders) SELECT string_agg(note, ' ' ORDER BY id) FROM o",
        "SELECT string_agg(note, ' ' ORDER BY id) FROM orders WHERE id IN (SELECT order_id FROM lines)",
        "SELECT string_agg(o.note, ' ' ORDER BY o.id) FROM generate_series(1, 4) AS g,
         LATERAL (SELECT * FROM orders WHERE id = g) AS o",
        "SELECT string_agg('a' || g, ' ' ORDER BY g) FROM generate_series(1, 4) AS g
         WHERE EXISTS (SELECT FROM orders WHERE id = g)",
        "SELECT string_agg(note, ' ' ORDER BY note) FROM (SELECT note FROM orders UNION SELECT note FROM orders) AS u",
    ] {
        assert_eq!(app.one::<String>(sql), "a1 a2", "{sql}");
    }
}

/// A security_invoker view shows the rows of the tenant that asks.
#[test]
fn an_invoker_view_shows_its_rows() {
    let db = Db::with_orders();
    db.admin().run(&format!(
        "CREATE VIEW v WITH (security_invoker) AS SELECT * FROM orders; GRANT SELECT, UPDATE ON v TO {}",
        db.app()
    ));
    let mut app = db.connect_as(&db.app(), A);
    assert_eq!(texts(&mut app, "SELECT note FROM v ORDER BY id"), ["a1", "a2"]);
    assert_eq!(changed(&mut app, "UPDATE v SET note = 'x' WHERE id = 3"), 0);
    assert_eq!(db.connect(&db.app()).fails("SELECT FROM v"), "55000");
}

/// A view of the table's owner, who is subject to the policies by force, shows the tenant's rows as well.
#[test]
fn a_view_of_a_forced_owner_shows_its_rows() {
    let db = Db::with_orders();
    let owner = db.role_name("owner");
    db.role(&owner, "NOLOGIN");
    db.breaker().run(&format!(
        "CREATE VIEW v AS SELECT * FROM orders; GRANT SELECT ON v TO {};
         ALTER TABLE orders OWNER TO {owner}; ALTER VIEW v OWNER TO {owner}",
        db.app()
    ));
    let mut app = db.connect_as(&db.app(), A);
    assert_eq!(texts(&mut app, "SELECT note FROM v ORDER BY id"), ["a1", "a2"]);
    assert_eq!(db.connect(&db.app()).fails("SELECT FROM v"), "55000");
}

/// The owner of a table is subject to its policies, unless force was declined.
#[test]
fn an_owner_is_subject_by_force() {
    let db = Db::with_orders();
    let app = db.app();
    let mut admin = db.admin();
    db.breaker().run(&format!("ALTER TABLE orders OWNER TO {app}"));
    assert_eq!(notes(&mut db.connect_as(&app, A)), ["a1", "a2"]);
    admin.run("SELECT tenant_protect('orders', force => false)");
    assert_eq!(notes(&mut db.connect_as(&app, A)), ["a1", "a2", "b3", "b4"]);
    assert_eq!(notes(&mut db.connect(&app)), ["a1", "a2", "b3", "b4"]);
}

/// A permissive policy that somebody adds cannot widen what a tenant sees or writes.
#[test]
fn another_policy_cannot_widen() {
    let db = Db::with_orders();
    db.admin().run("CREATE POLICY open ON orders FOR ALL TO PUBLIC USING (true) WITH CHECK (true)");
    let mut app = db.connect_as(&db.app(), A);
    assert_eq!(notes(&mut app), ["a1", "a2"]);
    assert_eq!(changed(&mut app, "UPDATE orders SET note = note"), 2);
    assert_eq!(app.fails(&format!("INSERT INTO orders VALUES (9, '{B}')")), "42501");
    assert_eq!(db.connect(&db.app()).fails("SELECT FROM orders"), "55000");
}

/// A restrictive policy that somebody adds narrows as ever.
#[test]
fn another_policy_can_narrow() {
    let db = Db::with_orders();
    db.admin().run("CREATE POLICY odd ON orders AS RESTRICTIVE FOR SELECT TO PUBLIC USING (id % 2 = 1)");
    assert_eq!(notes(&mut db.connect_as(&db.app(), A)), ["a1"]);
}

/// Equal conditions for a new row are evaluated once, unless they may answer differently; different ones each.
#[test]
fn equal_checks_of_a_row_are_made_once() {
    for (volatility, evaluations) in [("STABLE", 1), ("VOLATILE", 2)] {
        let db = Db::with_orders();
        db.admin().run(&format!(
            "CREATE FUNCTION noisy(note text) RETURNS boolean LANGUAGE plpgsql {volatility} AS
             $$ BEGIN RAISE WARNING '%', note; RETURN true; END $$;
             CREATE POLICY one ON orders AS RESTRICTIVE FOR INSERT WITH CHECK (noisy(note));
             CREATE POLICY two ON orders AS RESTRICTIVE FOR INSERT WITH CHECK (noisy(note));
             CREATE POLICY three ON orders AS RESTRICTIVE FOR INSERT WITH CHECK (id % 2 = 1)"
        ));
        let (mut app, notices) = db.connect_listening(&db.app(), &format!("-c app.current_tenant={A}"));
        app.run("INSERT INTO orders (id, note) VALUES (101, 'new')");
        assert_eq!(notices.warnings(), evaluations);
        app.run("WITH n AS (INSERT INTO orders (id, note) VALUES (103, 'new') RETURNING id) SELECT FROM n");
        assert_eq!(notices.warnings(), evaluations);
        assert_eq!(app.fails("INSERT INTO orders (id, note) VALUES (102, 'new')"), "42501");
        assert_eq!(app.fails(&format!("INSERT INTO orders VALUES (105, '{B}', 'new')")), "42501");
    }
}

/// A row is judged as it is written: by a trigger, of another tenant or of nobody.
#[test]
fn a_trigger_cannot_give_a_row_away() {
    let db = Db::with_orders();
    db.admin().run(&format!(
        "CREATE FUNCTION give() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN NEW.tenant_id := CASE NEW.note WHEN 'give' THEN '{B}' WHEN 'drop' THEN NULL ELSE '{A}' END::uuid;
                  RETURN NEW; END $$;
         CREATE TRIGGER give BEFORE INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION give()"
    ));
    let mut app = db.connect_as(&db.app(), A);
    for note in ["give", "drop"] {
        assert_eq!(app.fails(&format!("INSERT INTO orders VALUES (5, '{A}', '{note}')")), "42501", "{note}");
        assert_eq!(app.fails(&format!("UPDATE orders SET note = '{note}' WHERE id = 1")), "42501", "{note}");
    }
    app.run(&format!(
        "INSERT INTO orders VALUES (5, '{B}', 'a5'); UPDATE orders SET note = 'a1!' WHERE id = 1"
    ));
    assert_eq!(notes(&mut app), ["a1!", "a2", "a5"]);
}

/// A plan that is used again judges by the tenant of now, also after the table has changed.
#[test]
fn a_prepared_insert_follows_the_tenant() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    app.run("SET plan_cache_mode = force_generic_plan; PREPARE add (int, uuid) AS INSERT INTO orders VALUES ($1, $2)");
    let add = |id: i32, tenant: &str| format!("EXECUTE add ({id}, '{tenant}')");
    for id in [5, 7] {
        app.run(&add(id, A));
        assert_eq!(app.fails(&add(id + 1, B)), "42501");
        app.run(&format!("SET app.current_tenant = '{B}'; {}", add(id + 1, B)));
        assert_eq!(app.fails(&add(id + 10, A)), "42501");
        app.run(&format!("SET app.current_tenant = '{A}'"));
        db.admin().run("ALTER TABLE orders DROP COLUMN IF EXISTS note, ADD COLUMN IF NOT EXISTS more int");
    }
}

/// A role that must not call the function of the policies writes nothing, also by a plan that it has.
#[test]
fn a_write_needs_the_function() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    app.run(&format!(
        "SET plan_cache_mode = force_generic_plan; PREPARE add (int) AS INSERT INTO orders VALUES ($1, '{A}')"
    ));
    app.run("EXECUTE add (5)");
    db.admin().run("REVOKE EXECUTE ON FUNCTION required_tenant() FROM PUBLIC");
    assert_eq!(app.fails("EXECUTE add (6)"), "42501");
    db.admin().run("GRANT EXECUTE ON FUNCTION required_tenant() TO PUBLIC");
    app.run("EXECUTE add (6)");
}

/// Policies cannot be switched off by those who are subject to them.
#[test]
fn row_security_cannot_be_switched_off() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    app.run("SET row_security = off");
    assert_eq!(app.fails("SELECT FROM orders"), "42501");
    app.run("SET row_security = on; SELECT FROM orders");
}

/// A function of the user that leaks its argument sees no other tenant's rows.
#[test]
fn a_leaking_function_sees_its_rows() {
    let db = Db::with_orders();
    let (mut app, notices) = db.connect_listening(&db.app(), "");
    app.run(&format!("SET app.current_tenant = '{A}'"));
    app.run(
        "CREATE FUNCTION pg_temp.leak(t text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
         $$ BEGIN RAISE WARNING '%', t; RETURN true; END $$",
    );
    app.run("SELECT FROM orders WHERE pg_temp.leak(note)");
    assert_eq!(notices.warnings(), 2);
}

/// An error inside a transaction, and a savepoint behind it, change nothing about whose rows are seen.
#[test]
fn errors_and_savepoints_keep_the_rows() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    app.run("BEGIN; UPDATE orders SET note = note || '!'; SAVEPOINT s; DELETE FROM orders");
    assert_eq!(notes(&mut app), [""; 0]);
    app.fails(&format!("INSERT INTO orders VALUES (5, '{B}')"));
    app.run("ROLLBACK TO s");
    assert_eq!(notes(&mut app), ["a1!", "a2!"]);
    app.run("COMMIT");
    assert_eq!(everything(&db), ["a1!", "a2!", "b3", "b4"]);
}

/// Two sessions of two tenants do not see each other, whatever each has open.
#[test]
fn two_sessions_see_their_own_rows() {
    let db = Db::with_orders();
    let mut a = db.connect_as(&db.app(), A);
    let mut b = db.connect_as(&db.app(), B);
    a.run("BEGIN; INSERT INTO orders (id, note) VALUES (5, 'a5')");
    b.run("BEGIN; INSERT INTO orders (id, note) VALUES (6, 'b6')");
    assert_eq!(notes(&mut a), ["a1", "a2", "a5"]);
    assert_eq!(notes(&mut b), ["b3", "b4", "b6"]);
    a.run("COMMIT");
    assert_eq!(notes(&mut b), ["b3", "b4", "b6"]);
    b.run("UPDATE orders SET note = 'b'; COMMIT");
    assert_eq!(notes(&mut a), ["a1", "a2", "a5"]);
}

/// SELECT FOR UPDATE locks the tenant's rows and nobody else's.
#[test]
fn row_locks_reach_its_rows() {
    let db = Db::with_orders();
    let mut a = db.connect_as(&db.app(), A);
    a.run("BEGIN");
    assert_eq!(texts(&mut a, "SELECT note FROM orders FOR UPDATE"), ["a1", "a2"]);
    let mut b = db.connect_as(&db.app(), B);
    b.run("SET lock_timeout = '2s'; UPDATE orders SET note = 'b'");
}
