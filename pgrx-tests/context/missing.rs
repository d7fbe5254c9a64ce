//! What a statement on a protected table gets without a tenant.

use std::thread;
use std::time::Duration;

use postgres::{Client, SimpleQueryMessage};

use super::{notes, silence};
use crate::harness::{A, B, Db, Session, state};

/// Every statement that names the table raises, whether it reads, writes or would touch no row.
#[test]
fn every_statement_raises() {
    let db = Db::with_orders();
    for sql in [
        "SELECT FROM orders",
        "SELECT FROM orders WHERE id = 99",
        "SELECT count(*) FROM orders",
        "SELECT EXISTS (SELECT FROM orders)",
        "EXPLAIN SELECT FROM orders",
        "INSERT INTO orders (id) VALUES (9)",
        "INSERT INTO orders (id, tenant_id) VALUES (10, 'aaaaaaaa-0000-4000-8000-00000000000a')",
        "INSERT INTO orders SELECT id + 100, tenant_id, note FROM orders",
        "UPDATE orders SET note = 'x' WHERE id = 99",
        "DELETE FROM orders WHERE id = 99",
        "MERGE INTO orders AS o USING (VALUES (99)) AS v (id) ON o.id = v.id WHEN MATCHED THEN DELETE",
        "DECLARE c CURSOR WITH HOLD FOR SELECT FROM orders",
    ] {
        assert_eq!(db.connect(&db.app()).fails(sql), "55000", "{sql}");
        assert_eq!(db.connect_as(&db.app(), A).attempt(sql), None, "{sql}");
    }
    let copy = |mut client: Client| client.copy_out("COPY orders TO STDOUT").err().map(|error| state(&error));
    assert_eq!(copy(db.connect(&db.app())).as_deref(), Some("55000"));
    assert_eq!(copy(db.connect_as(&db.app(), A)), None);
}

/// An empty table raises as a full one does.
#[test]
fn an_empty_table_raises() {
    let db = Db::with_orders();
    db.admin().run("TRUNCATE orders");
    let mut app = db.connect(&db.app());
    assert_eq!(app.fails("SELECT FROM orders"), "55000");
    app.run(&format!("SET app.current_tenant = '{A}'"));
    assert_eq!(notes(&mut app), [""; 0]);
}

/// A plan from the time when there was a tenant raises too.
#[test]
fn a_cached_plan_raises() {
    let db = Db::with_orders();
    db.admin().run("TRUNCATE orders");
    let mut app = db.connect_as(&db.app(), A);
    // A plan that asks for the tenant row by row, not for an index.
    app.run("SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off");
    app.run("SET plan_cache_mode = force_generic_plan; PREPARE q AS SELECT note FROM orders; EXECUTE q");
    app.run("RESET app.current_tenant");
    assert_eq!(app.fails("EXECUTE q"), "55000");
}

/// What only names the table, to be run later, needs no tenant.
#[test]
fn preparing_needs_no_tenant() {
    let db = Db::with_orders();
    let mut app = db.connect(&db.app());
    app.run(
        "PREPARE q AS SELECT FROM orders;
         CREATE TEMP VIEW v AS SELECT * FROM orders;
         CREATE TEMP TABLE t AS SELECT * FROM orders WITH NO DATA;
         CREATE FUNCTION pg_temp.f() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM orders; END",
    );
    for sql in ["EXECUTE q", "SELECT FROM v", "SELECT pg_temp.f()"] {
        assert_eq!(app.fails(sql), "55000", "{sql}");
    }
}

/// With missing_tenant = empty there are no rows to read, and none can be written.
#[test]
fn silence_is_a_choice() {
    let db = Db::with_orders();
    silence(&db);
    let mut app = db.connect(&db.app());
    assert_eq!(notes(&mut app), [""; 0]);
    for sql in ["UPDATE orders SET note = 'x'", "DELETE FROM orders"] {
        assert_eq!(app.execute(sql, &[]).expect(sql), 0);
    }
    assert_eq!(app.fails(&format!("INSERT INTO orders VALUES (9, '{A}')")), "42501");
    app.run(&format!("SET app.current_tenant = '{A}'; INSERT INTO orders VALUES (9, '{A}')"));
}

/// Tables that are not protected ask for nobody.
#[test]
fn other_tables_need_no_tenant() {
    let db = Db::with_orders();
    db.admin().run(&format!("CREATE TABLE countries (code text); GRANT SELECT ON countries TO {}", db.app()));
    db.connect(&db.app()).run("SELECT FROM countries");
}

/// A generic plan follows the tenant.
#[test]
fn a_generic_plan_follows_the_tenant() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    app.run("SET plan_cache_mode = force_generic_plan");
    let query = app.prepare("SELECT min(note) FROM orders WHERE id > $1").expect("a statement");
    for (tenant, note) in [(A, "a1"), (B, "b3"), (A, "a1")] {
        app.run(&format!("SET app.current_tenant = '{tenant}'"));
        let row = app.query_one(&query, &[&0]).expect("a row");
        assert_eq!(row.get::<_, String>(0), note);
    }
    assert!(app.one::<i64>("SELECT max(generic_plans) FROM pg_prepared_statements") >= 3);
}

/// A generic plan that was first asked for without a tenant is as good as any.
#[test]
fn a_plan_first_asked_for_without_a_tenant_works() {
    let db = Db::with_orders();
    let mut app = db.connect(&db.app());
    app.run("SET plan_cache_mode = force_generic_plan; PREPARE q AS SELECT note FROM orders");
    assert_eq!(app.fails("EXECUTE q"), "55000");
    app.run(&format!("SET app.current_tenant = '{B}'"));
    assert_eq!(app.rows("EXECUTE q").len(), 2);
}

/// Parallel workers see the tenant of their leader, who reads no row itself.
#[test]
fn parallel_workers_see_the_tenant() {
    let db = Db::with_orders();
    let mut admin = db.admin();
    admin.run(&format!(
        "INSERT INTO orders SELECT g, CASE WHEN g % 4 = 0 THEN '{A}' ELSE '{B}' END::uuid, 'x'
         FROM generate_series(5, 20000) AS g;
         ANALYZE orders"
    ));
    for tenant in [A, B] {
        let mut app = db.connect_as(&db.app(), tenant);
        app.run(
            "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
             SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off;
             SET parallel_leader_participation = off",
        );
        let all = format!("SELECT count(*) FROM orders WHERE tenant_id = '{tenant}'");
        assert_eq!(
            rows_of_workers(&mut app, "SELECT note FROM orders WHERE note IS NOT NULL"),
            admin.one::<i64>(&all)
        );
    }
}

/// How many rows a query has when workers have found them. There are few, and other tests may have them.
#[track_caller]
fn rows_of_workers(client: &mut Client, query: &str) -> i64 {
    for _ in 0..500 {
        let answer = client.simple_query(&format!("EXPLAIN (ANALYZE, FORMAT JSON) {query}")).expect(query);
        let text = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        let plan: serde_json::Value = serde_json::from_str(text.expect("a plan")).expect("JSON");
        let gather = &plan[0]["Plan"];
        assert_eq!(gather["Node Type"], "Gather", "{plan}");
        if gather["Workers Launched"].as_i64() > Some(0) {
            return gather["Actual Rows"].as_f64().expect("a number") as i64;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("no worker was ever free");
}

/// A worker that runs the whole plan sees the tenant, too.
#[test]
fn a_forced_worker_sees_the_tenant() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    let name = if app.one::<i32>("SELECT current_setting('server_version_num')::int") < 160_000 {
        "force_parallel_mode"
    } else {
        "debug_parallel_query"
    };
    app.run(&format!("SET {name} = on"));
    assert_eq!(app.one::<String>("SELECT string_agg(note, ' ' ORDER BY id) FROM orders"), "a1 a2");
    assert_eq!(app.one::<String>("SELECT current_tenant()::text"), A);
}

/// A worker that has no tenant raises, as its leader would.
#[test]
fn a_worker_without_a_tenant_raises() {
    let db = Db::with_orders();
    let mut app = db.connect(&db.app());
    let name = if app.one::<i32>("SELECT current_setting('server_version_num')::int") < 160_000 {
        "force_parallel_mode"
    } else {
        "debug_parallel_query"
    };
    app.run(&format!("SET {name} = on"));
    assert_eq!(app.fails("SELECT required_tenant()"), "55000");
    app.run(&format!("SET app.current_tenant = '{A}'; SELECT required_tenant()"));
}

/// An attempt that fails before the function is called leaves no tenant either.
#[test]
fn an_attempt_that_never_arrives_is_one() {
    let db = Db::with_orders();
    let mut app = db.connect(&db.app());
    for (attempt, state) in [
        ("SELECT set_tenant('garbage')".to_string(), "22P02"),
        ("SELECT Set_Tenant('garbage', false)".into(), "22P02"),
        ("SELECT set_tenant_key('one')".into(), "22P02"),
        ("SELECT set_tenant_key('99999999999999999999')".into(), "22003"),
        ("SELECT set_tenant('garbage'::text)".into(), "42883"),
        ("SELECT set_tenant(NULL::uuid[])".into(), "42883"),
        ("INSERT INTO orders SELECT * FROM orders; SELECT set_tenant('garbage')".into(), "23505"),
        ("DO $$ BEGIN PERFORM set_tenant('garbage'); END $$".into(), "22P02"),
    ] {
        app.run(&format!("SET app.current_tenant = '{A}'"));
        assert_eq!(notes(&mut app), ["a1", "a2"]);
        assert_eq!(app.fails(&attempt), state, "{attempt}");
        assert_eq!(app.fails("SELECT FROM orders"), "55000", "{attempt}");
    }
    // As a parameter of the protocol.
    app.run(&format!("SET app.current_tenant = '{A}'"));
    let typed = app.prepare_typed("SELECT set_tenant($1::text::uuid, false)", &[postgres::types::Type::TEXT]);
    let refused = app.query(&typed.expect("a statement"), &[&"garbage"]).expect_err("no uuid");
    assert_eq!(state(&refused), "22P02");
    assert_eq!(app.fails("SELECT FROM orders"), "55000");
    // In a transaction that was aborted before.
    app.run(&format!("SET app.current_tenant = '{A}'; BEGIN"));
    app.fails("SELECT 1 / 0");
    assert_eq!(app.fails(&format!("SELECT set_tenant('{B}', false)")), "25P02");
    app.run("ROLLBACK");
    assert_eq!(app.fails("SELECT FROM orders"), "55000");
    // Other errors are no attempts.
    app.run(&format!("SET app.current_tenant = '{A}'"));
    for sql in ["SELECT 'garbage'::uuid", "SELECT current_tenant() = 'garbage'", "SELECT FROM nothing"] {
        app.fails(sql);
        assert_eq!(notes(&mut app), ["a1", "a2"], "{sql}");
    }
    // What the documents say of code that catches it.
    app.run("DO $$ BEGIN PERFORM set_tenant('garbage'); EXCEPTION WHEN OTHERS THEN NULL; END $$");
    assert_eq!(notes(&mut app), ["a1", "a2"]);
}
