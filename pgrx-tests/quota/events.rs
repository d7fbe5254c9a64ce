//! Events: who has crossed 80 and 100 per cent of a limit.

use std::thread;
use std::time::Duration;

use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;

use super::{app, limited};
use crate::harness::{A, B, Db, Session, eventually, refuses, waiting};

/// The events of a resource, as tenant, threshold, used and limit.
#[track_caller]
fn events(db: &Db, resource: &str) -> String {
    db.admin().one(&format!(
        "SELECT coalesce(string_agg(concat_ws(' ', left(tenant::text, 1), threshold, used, quota_limit), ', '
             ORDER BY tenant, period_start, threshold), '')
         FROM tenant_quota_events WHERE resource = '{resource}'"
    ))
}

fn consume(app: &mut Client, resource: &str, amount: i64) {
    app.run(&format!("SELECT * FROM tenant_quota_consume('{resource}', {amount})"));
}

/// One row when a threshold is crossed, none below it, none again.
#[test]
fn a_threshold_is_told_once() {
    let (db, mut app) = app();
    consume(&mut app, "calls", 7);
    assert_eq!(events(&db, "calls"), "");
    consume(&mut app, "calls", 1);
    consume(&mut app, "calls", 1);
    assert_eq!(events(&db, "calls"), "a 80 8 10");
    consume(&mut app, "calls", 1);
    assert_eq!(app.fails("SELECT * FROM tenant_quota_consume('calls')"), "53400");
    assert_eq!(events(&db, "calls"), "a 80 8 10, a 100 10 10");
    db.connect_as(&db.app(), B).run("SELECT * FROM tenant_quota_consume_many('{\"calls\": 10}')");
    assert_eq!(events(&db, "calls"), "a 80 8 10, a 100 10 10, b 80 10 10, b 100 10 10");
}

/// A gauge that falls and rises again is told once.
#[test]
fn a_gauge_that_rises_again_is_told_once() {
    let (db, mut app) = app();
    for _ in 0..3 {
        consume(&mut app, "seats", 9);
        app.run("SELECT * FROM tenant_quota_release('seats', 9)");
    }
    assert_eq!(events(&db, "seats"), "a 80 9 10");
}

/// What a rollback takes back was not crossed, and may be crossed later.
#[test]
fn a_rollback_takes_the_event_back() {
    let (db, mut app) = app();
    app.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 8); ROLLBACK");
    app.run("BEGIN; SAVEPOINT s; SELECT * FROM tenant_quota_consume('calls', 10); ROLLBACK TO s; COMMIT");
    assert_eq!(events(&db, "calls"), "");
    consume(&mut app, "calls", 9);
    assert_eq!(events(&db, "calls"), "a 80 9 10");
}

/// Unlimited has no thresholds; soft and shadow limits, and one of 0, are crossed by what they let through.
#[test]
fn soft_shadow_and_no_limits() {
    let (db, mut app) = app();
    db.admin().run(
        "SELECT tenant_plan_limit_set('free', 'calls', NULL, unlimited => true, mode => 'strict'),
             tenant_plan_limit_set('free', 'seats', 0, enforcement => 'soft', mode => 'strict')",
    );
    consume(&mut app, "calls", 1_000_000);
    consume(&mut app, "seats", 1);
    consume(&mut app, "seats", 1);
    assert_eq!((events(&db, "calls"), events(&db, "seats")), (String::new(), "a 80 1 0, a 100 1 0".into()));
    db.admin()
        .run("SELECT tenant_plan_limit_set('free', 'users', 10, enforcement => 'shadow', mode => 'strict')");
    consume(&mut app, "users", 15);
    assert_eq!(events(&db, "users"), "a 80 15 10, a 100 15 10");
}

/// The limit is the one in force: the tenant's own, if it has one.
#[test]
fn the_limit_in_force_counts() {
    let (db, mut app) = app();
    db.admin().run(&format!("SELECT tenant_quota_set('{A}', 'calls', 100)"));
    consume(&mut app, "calls", 50);
    assert_eq!(events(&db, "calls"), "");
    consume(&mut app, "calls", 40);
    assert_eq!(events(&db, "calls"), "a 80 90 100");
}

/// Each period has its own events.
#[test]
fn each_period_is_told() {
    let (db, mut app) = app();
    db.admin().run(
        "SELECT tenant_resource_define('by_second', 'counter', 'call', 'second'), tenant_plan_limit_set('free', 'by_second', 10, mode => 'strict')",
    );
    let mut periods = 0;
    while periods < 2 {
        app.run("SELECT * FROM tenant_quota_try_consume('by_second', 9)");
        periods = app.one::<i64>("SELECT count(DISTINCT period_start) FROM tenant_quota_events");
        thread::sleep(Duration::from_millis(100));
    }
    assert!(app.one::<bool>("SELECT count(*) = count(DISTINCT period_start) FROM tenant_quota_events"));
}

/// Rows that a gauge follows are told too.
#[test]
fn gauges_that_follow_rows_are_told() {
    let db = Db::with_orders();
    db.admin().run(
        "SELECT tenant_resource_define('rows', 'gauge', 'row', 'none'), tenant_plan_limit_set('free', 'rows', 5, mode => 'strict');
         SELECT tenant_quota_attach('orders', 'rows')",
    );
    db.connect_as(&db.app(), A)
        .run("INSERT INTO orders (id) VALUES (10); INSERT INTO orders (id) VALUES (11)");
    assert_eq!(events(&db, "rows"), "a 80 4 5");
    db.admin().run(&format!("INSERT INTO orders VALUES (12, '{A}'), (20, '{B}'), (21, '{B}'), (22, '{B}')"));
    assert_eq!(events(&db, "rows"), "a 80 4 5, a 100 5 5, b 80 5 5, b 100 5 5");
}

/// A transaction whose snapshot is older than the event crosses again without an error.
#[test]
fn an_old_snapshot_crosses_again() {
    let (db, mut old) = app();
    old.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class");
    let mut other = db.connect_as(&db.app(), A);
    other.run(
        "SELECT * FROM tenant_quota_consume('seats', 9); SELECT * FROM tenant_quota_release('seats', 9)",
    );
    old.run("SELECT * FROM tenant_quota_consume('seats', 9); COMMIT");
    assert_eq!(events(&db, "seats"), "a 80 9 10");
}

/// Nobody waits for an event who does not wait for the units: 8 sessions cross together, and it is told once; a session
/// of another resource goes on while the event is not committed.
#[test]
fn concurrent_sessions_tell_once() {
    let db = limited();
    thread::scope(|scope| {
        for _ in 0..8 {
            let db = &db;
            scope.spawn(move || {
                let mut app = db.connect_as(&db.app(), A);
                while app.one::<bool>("SELECT allowed FROM tenant_quota_try_consume('calls')") {}
            });
        }
    });
    assert_eq!(events(&db, "calls"), "a 80 8 10, a 100 10 10");
    let mut first = db.connect_as(&db.app(), A);
    first.run("BEGIN; SELECT * FROM tenant_quota_consume('seats', 9)");
    let mut second = db.connect_as(&db.app(), A);
    db.admin().run("SELECT tenant_plan_limit_set('free', 'users', 3, mode => 'strict')");
    second.run("SET lock_timeout = '2s'; SELECT * FROM tenant_quota_consume('users', 3)");
    assert_eq!(events(&db, "users"), "a 80 3 3, a 100 3 3");
    waiting(&mut db.admin(), 0);
    first.run("COMMIT");
    assert_eq!(events(&db, "seats"), "a 80 9 10");
}

/// In the modes of shared memory a worker tells, once, also of what was crossed and given back before it came.
#[test]
fn a_worker_tells_of_escrow_and_leases() {
    let (db, mut app) = app();
    db.admin().run(
        "SELECT tenant_plan_limit_set('free', 'calls', 10, mode => 'leased'), tenant_plan_limit_set('free', 'seats', 10, mode => 'escrow')",
    );
    consume(&mut app, "seats", 9);
    app.run("SELECT * FROM tenant_quota_release('seats', 9)");
    app.run("BEGIN; SELECT * FROM tenant_quota_consume('seats', 10); ROLLBACK");
    let mut admin = db.admin();
    let told = |resource: &str, count: u32| {
        format!("SELECT count(*) = {count} FROM tenant_quota_events WHERE resource = '{resource}'")
    };
    eventually(&mut admin, &told("seats", 1));
    eventually(&mut admin, "SELECT NOT EXISTS (SELECT FROM tenant_rls.ledger)");
    assert_eq!(events(&db, "seats"), "a 80 9 10");
    consume(&mut app, "calls", 10);
    eventually(&mut admin, &told("calls", 2));
    assert_eq!(events(&db, "calls"), "a 80 10 10, a 100 10 10");
}

/// With the setting, a worker sends a NOTIFY for each event.
#[test]
fn a_worker_notifies() {
    let (db, mut app) = app();
    let mut listener = db.admin();
    listener.run(&format!("ALTER DATABASE {} SET tenant_rls.notify = on; LISTEN tenant_rls", db.name()));
    consume(&mut app, "calls", 8);
    db.admin().run("SELECT tenant_plan_limit_set('free', 'seats', 10, mode => 'escrow')");
    consume(&mut app, "seats", 1);
    let payload = listener
        .notifications()
        .timeout_iter(Duration::from_secs(120))
        .next()
        .expect("a notification in time");
    let payload: serde_json::Value =
        serde_json::from_str(payload.expect("a connection").payload()).expect("an object");
    assert_eq!((&payload["resource"], &payload["threshold"]), (&"calls".into(), &80.into()));
}

/// A tenant sees its own, an operator all; nobody writes.
#[test]
fn who_sees_events() {
    let db = limited();
    let operator = db.role_name("operator");
    db.role(&operator, "LOGIN");
    db.admin().run(&format!("SELECT tenant_grant_operator('{operator}')"));
    for tenant in [A, B] {
        consume(&mut db.connect_as(&db.app(), tenant), "calls", 9);
    }
    let tenants = "SELECT string_agg(left(tenant::text, 1), ' ' ORDER BY tenant) FROM tenant_quota_events";
    let mut app = db.connect_as(&db.app(), A);
    assert_eq!(app.one::<String>(tenants), "a");
    assert_eq!(db.connect(&operator).one::<String>(tenants), "a b");
    assert!(db.connect(&db.app()).one::<Option<String>>(tenants).is_none());
    refuses(
        &mut app,
        &[("SELECT * FROM tenant_rls.quota_events", "42501"), ("DELETE FROM tenant_quota_events", "55000")],
    );
}
