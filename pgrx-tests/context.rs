//! The tenant of a session: what it is, how long it lasts, and what brings it back.

mod grants;
mod log;
mod missing;
mod pooler;
mod standby;
mod statement;
mod switch;
mod tickets;
mod values;
mod ways;

use postgres::Client;

use crate::harness::{A, B, Db, Session};

/// A uuid that no tenant has.
const UNKNOWN: &str = "cccccccc-0000-4000-8000-00000000000c";

/// What `current_tenant()` answers.
#[track_caller]
fn current(client: &mut Client) -> Option<String> {
    client.one("SELECT current_tenant()::text")
}

/// The notes of the orders that the session sees.
#[track_caller]
fn notes(client: &mut Client) -> Vec<String> {
    client.rows("SELECT note FROM orders ORDER BY id").iter().map(|row| row.get(0)).collect()
}

/// Every way back to no tenant leads there.
#[test]
fn a_reset_leaves_no_tenant() {
    let db = Db::with_orders();
    for reset in [
        "RESET app.current_tenant",
        "SET app.current_tenant TO DEFAULT",
        "SET app.current_tenant = ''",
        "SELECT set_config('app.current_tenant', NULL, false)",
        "SELECT reset_tenant()",
        "RESET ALL",
        "DISCARD ALL",
    ] {
        let mut app = db.connect_as(&db.app(), A);
        assert_eq!(current(&mut app).as_deref(), Some(A), "before {reset}");
        app.run(reset);
        assert_eq!(current(&mut app), None, "{reset}");
        assert_eq!(app.fails("SELECT FROM orders"), "55000", "{reset}");
    }
}

/// A reset is an attempt that succeeds: after it the session is without a tenant as if none had been tried.
#[test]
fn a_reset_after_a_failed_attempt_clears_it() {
    let db = Db::with_orders();
    silence(&db);
    for reset in ["RESET app.current_tenant", "SET app.current_tenant = ''", "SELECT reset_tenant()"] {
        let mut app = db.connect(&db.app());
        app.fails("SET app.current_tenant = 'nonsense'");
        assert_eq!(app.fails("SELECT FROM orders"), "55000", "before {reset}");
        app.run(reset);
        assert_eq!(notes(&mut app), [""; 0], "{reset}");
    }
}

/// Sessions that start from now on get no rows, rather than an error, without a tenant.
fn silence(db: &Db) {
    db.admin().run(&format!("ALTER DATABASE {} SET tenant_rls.missing_tenant = 'empty'", db.name()));
}

/// What set_tenant sets ends with the transaction, however that ends.
#[test]
fn set_tenant_holds_until_the_end_of_the_transaction() {
    let db = Db::with_orders();
    let mut app = db.connect(&db.app());
    for end in ["COMMIT", "ROLLBACK"] {
        app.run("BEGIN");
        app.run(&format!("SELECT set_tenant('{A}')"));
        assert_eq!(notes(&mut app), ["a1", "a2"]);
        app.run(end);
        assert_eq!(app.fails("SELECT FROM orders"), "55000", "after {end}");
    }
}

/// set_tenant gives way to the tenant of the session, which was there before.
#[test]
fn set_tenant_lends_the_session_another_tenant() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    app.run(&format!("BEGIN; SELECT set_tenant('{B}')"));
    assert_eq!(notes(&mut app), ["b3", "b4"]);
    app.run("COMMIT");
    assert_eq!(notes(&mut app), ["a1", "a2"]);
}

/// is_local => false sets the tenant of the session, as SET does.
#[test]
fn set_tenant_for_the_session_survives_the_transaction() {
    let db = Db::with_orders();
    let mut app = db.connect(&db.app());
    app.run(&format!("BEGIN; SELECT set_tenant('{A}', is_local => false); COMMIT"));
    assert_eq!(notes(&mut app), ["a1", "a2"]);
}

/// set_tenant warns where it ends at once, and nowhere else.
#[test]
fn set_tenant_alone_warns() {
    let db = Db::with_orders();
    let (mut app, notices) = db.connect_listening(&db.app(), "");
    app.run(&format!(
        "CREATE FUNCTION pg_temp.inside() RETURNS text LANGUAGE plpgsql AS
         $$ BEGIN PERFORM set_tenant('{A}'); RETURN current_tenant(); END $$"
    ));
    for (sql, warnings) in [
        (format!("SELECT set_tenant('{A}')"), 1),
        (format!("SELECT set_tenant('{A}', true)"), 1),
        (format!("SELECT set_tenant('{A}', false)"), 0),
        (format!("DO $$ BEGIN PERFORM set_tenant('{A}'); END $$"), 0),
        ("SELECT pg_temp.inside()".into(), 0),
        (format!("BEGIN; SELECT set_tenant('{A}'); COMMIT"), 0),
        (format!("SELECT set_tenant('{A}'); SELECT 1"), 0),
    ] {
        app.run(&sql);
        assert_eq!(notices.warnings(), warnings, "{sql}");
    }
}

/// set_tenant answers with the tenant, set_tenant_key with the tenant of the key.
#[test]
fn setting_answers_with_the_tenant() {
    let db = Db::with_orders();
    db.admin().run(&format!("UPDATE tenant_rls.tenants SET tenant_key = 7 WHERE tenant_id = '{B}'"));
    let mut app = db.connect(&db.app());
    assert_eq!(app.one::<String>(&format!("SELECT set_tenant('{A}', false)::text")), A);
    assert_eq!(app.one::<String>("SELECT set_tenant_key(7, false)::text"), B);
}

/// A rollback brings back exactly the tenant from before, whatever set the other.
#[test]
fn a_rollback_restores_the_tenant() {
    let db = Db::with_orders();
    for before in [None, Some(A)] {
        let mut app = db.connect(&db.app());
        if let Some(tenant) = before {
            app.run(&format!("SET app.current_tenant = '{tenant}'"));
        }
        for change in [
            format!("SET app.current_tenant = '{B}'"),
            format!("SELECT set_tenant('{B}')"),
            format!("SELECT set_tenant('{B}', false)"),
        ] {
            app.run(&format!("BEGIN; {change}"));
            assert_eq!(current(&mut app).as_deref(), Some(B));
            app.run("ROLLBACK");
            assert_eq!(current(&mut app).as_deref(), before, "{change}");
        }
    }
}

/// A rollback to a savepoint brings back the tenant of the savepoint, at each level.
#[test]
fn a_savepoint_restores_the_tenant() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    app.run(&format!("BEGIN; SELECT set_tenant('{B}'); SAVEPOINT one; SET LOCAL app.current_tenant = '{A}'"));
    app.run("SAVEPOINT two; RESET app.current_tenant");
    assert_eq!(current(&mut app), None);
    app.run("ROLLBACK TO two");
    assert_eq!(current(&mut app).as_deref(), Some(A));
    app.run("ROLLBACK TO one");
    assert_eq!(notes(&mut app), ["b3", "b4"]);
    app.run("RELEASE one");
    assert_eq!(current(&mut app).as_deref(), Some(B));
    app.run("COMMIT");
    assert_eq!(current(&mut app).as_deref(), Some(A));
}

/// An exception block that fails restores the tenant of its beginning.
#[test]
fn an_exception_restores_the_tenant() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    app.run(&format!(
        "DO $$ BEGIN
             BEGIN
                 PERFORM set_tenant('{B}', false);
                 ASSERT current_tenant() = '{B}';
                 RAISE division_by_zero;
             EXCEPTION WHEN division_by_zero THEN NULL;
             END;
             ASSERT current_tenant() = '{A}';
         END $$"
    ));
    assert_eq!(notes(&mut app), ["a1", "a2"]);
}

/// A failed statement of another kind leaves the tenant as it was.
#[test]
fn an_error_restores_the_tenant() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    app.fails("SELECT 1 / 0");
    app.fails(&format!("DO $$ BEGIN PERFORM set_tenant('{B}', false); PERFORM 1 / 0; END $$"));
    assert_eq!(notes(&mut app), ["a1", "a2"]);
}

/// Code that catches the error of a refused tenant gets none, not the one from before.
#[test]
fn a_caught_refusal_leaves_no_tenant() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    app.run(&format!(
        "DO $$ BEGIN
             BEGIN PERFORM set_tenant('{UNKNOWN}', false);
             EXCEPTION WHEN undefined_object THEN NULL;
             END;
             ASSERT current_tenant() IS NULL;
         END $$"
    ));
    assert_eq!(app.fails("SELECT FROM orders"), "55000");
    app.run(&format!("SET app.current_tenant = '{A}'"));
    assert_eq!(notes(&mut app), ["a1", "a2"]);
}

/// The rollback of a transaction with a refused tenant does not bring the session's tenant back either.
#[test]
fn a_refusal_outlives_the_rollback() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    for attempt in [
        format!("SET app.current_tenant = '{UNKNOWN}'"),
        format!("SELECT set_tenant('{UNKNOWN}')"),
        format!("SELECT set_tenant('{B}'); SELECT set_tenant('{UNKNOWN}')"),
    ] {
        app.run(&format!("SET app.current_tenant = '{A}'; BEGIN"));
        assert_eq!(app.fails(&attempt), "42704");
        app.run("ROLLBACK");
        assert_eq!(current(&mut app), None, "{attempt}");
        assert_eq!(app.fails("SELECT FROM orders"), "55000", "{attempt}");
    }
}

/// Where no tenant means no rows, a refused one still means an error.
#[test]
fn a_refusal_is_never_silent() {
    let db = Db::with_orders();
    silence(&db);
    let mut app = db.connect(&db.app());
    assert_eq!(notes(&mut app), [""; 0]);
    app.fails(&format!("SET app.current_tenant = '{UNKNOWN}'"));
    assert_eq!(app.fails("SELECT FROM orders"), "55000");
}

/// A tenant that is removed and created again is another one to a session of the first.
#[test]
fn a_reborn_tenant_is_another_one() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    let mut admin = db.admin();
    admin.run(&format!("DELETE FROM tenant_rls.tenants WHERE tenant_id = '{A}'"));
    assert_eq!(app.fails("SELECT FROM orders"), "42704");
    admin.run(&format!("SELECT tenant_create('{A}')"));
    assert_eq!(app.fails("SELECT FROM orders"), "55000");
    assert_eq!(current(&mut app), None);
    app.run(&format!("SET app.current_tenant = '{A}'"));
    assert_eq!(notes(&mut app), ["a1", "a2"]);
}

/// Create, set_tenant and the first row work in one transaction.
#[test]
fn a_new_tenant_works_at_once() {
    let db = Db::with_orders();
    let app = db.app();
    db.admin().run(&format!("SELECT tenant_grant_operator('{app}')"));
    let mut app = db.connect(&app);
    app.run(&format!(
        "BEGIN; SELECT tenant_create('{UNKNOWN}'); SELECT set_tenant('{UNKNOWN}');
         INSERT INTO orders (id, note) VALUES (5, 'c5')"
    ));
    assert_eq!(notes(&mut app), ["c5"]);
    app.run("COMMIT");
    app.run(&format!("SET app.current_tenant = '{UNKNOWN}'"));
    assert_eq!(notes(&mut app), ["c5"]);
}
