//! The invariants of what shared memory counts: each is broken by hand and seen, and none is seen where nothing is broken.

use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;

use super::concurrent::in_parallel;
use crate::harness::{A, B, Db, Session, eventually, recorded};

/// Tenants with `calls` and `seats` as [`super::limited`] makes them, in the mode that is the default, 3 of `calls` used by A,
/// and a function that moves a counter of shared memory.
fn counted() -> (Db, Client, Client) {
    let db = super::limited();
    let mut admin = db.admin();
    admin.run(
        "SELECT tenant_plan_limit_set('free', r, 1000000) FROM unnest(ARRAY['calls', 'seats']) AS r;
         CREATE FUNCTION disturb(uuid, text, text, bigint) RETURNS void
         LANGUAGE c AS 'tenant_rls', 'tenant_rls_disturb'",
    );
    let mut app = db.connect_as(&db.app(), A);
    app.run("SELECT * FROM tenant_quota_consume('calls', 3)");
    (db, admin, app)
}

fn disturb(admin: &mut Client, counter: &str, by: i64) {
    admin.run(&format!("SELECT disturb('{A}', 'calls', '{counter}', {by})"));
}

/// What is found, in one line.
const FOUND: &str = "SELECT string_agg(concat_ws(' ', left(tenant::text, 1), resource, expected, actual), ', ' ORDER BY tenant, resource)
     FROM tenant_quota_invariants";

fn found(admin: &mut Client) -> Option<String> {
    admin.one(FOUND)
}

fn finds(admin: &mut Client, what: &str) {
    eventually(admin, &format!("SELECT coalesce(({FOUND}) = '{what}', false)"));
}

/// Waits until no worker has anything left to do.
fn rest(admin: &mut Client) {
    eventually(
        admin,
        "SELECT pid IS NULL AND started_at IS NOT NULL AND NOT EXISTS (SELECT FROM tenant_rls.ledger) FROM tenant_worker_status()",
    );
}

/// Units that are held for a transaction that has ended.
#[test]
fn an_interval_that_stays_open_is_found() {
    let (_db, mut admin, _app) = counted();
    disturb(&mut admin, "inf", -1);
    assert_eq!(found(&mut admin).as_deref(), Some("a calls 2 3"));
    disturb(&mut admin, "inf", 1);
    assert_eq!(found(&mut admin), None);
}

/// A pin that no transaction takes away.
#[test]
fn a_pin_that_is_left_is_found() {
    let (_db, mut admin, mut app) = counted();
    app.run("BEGIN; SELECT * FROM tenant_quota_consume('calls')");
    assert_eq!(found(&mut admin), None);
    app.run("COMMIT");
    rest(&mut admin);
    assert_eq!(found(&mut admin), None);
    disturb(&mut admin, "pins", 1);
    assert_eq!(found(&mut admin).as_deref(), Some("a calls 0 1"));
    disturb(&mut admin, "pins", -1);
}

/// Rows of the ledger that were folded and still count, and rows of a key that has no entry.
#[test]
fn miscounted_rows_of_the_ledger_are_found() {
    let (_db, mut admin, _app) = counted();
    rest(&mut admin);
    assert_eq!(found(&mut admin), None);
    disturb(&mut admin, "unfolded", 1);
    finds(&mut admin, "a calls 0 1");
    disturb(&mut admin, "unfolded", -1);
    finds_nothing(&mut admin);
    admin.run(&format!(
        "BEGIN; ALTER TABLE tenant_rls.ledger DISABLE TRIGGER units_changed;
         INSERT INTO tenant_rls.ledger VALUES ('{B}', 'calls', '-infinity', 'infinity', 0);
         ALTER TABLE tenant_rls.ledger ENABLE ALWAYS TRIGGER units_changed; COMMIT"
    ));
    finds(&mut admin, "b calls 1 0");
}

fn finds_nothing(admin: &mut Client) {
    eventually(admin, "SELECT NOT EXISTS (SELECT FROM tenant_quota_invariants)");
}

/// A database with a lease that has units at hand, of which 1 + 2000 are used, and a session that keeps the worker from
/// doing anything about it.
fn leased() -> (Db, Client, Client) {
    let (db, mut admin, mut app) = counted();
    admin.run(&format!("ALTER DATABASE {} SET tenant_rls.lease_timeout = '2min'", db.name()));
    admin.run("SELECT tenant_plan_limit_set('free', 'calls', 1000000, mode => 'leased')");
    app = {
        drop(app);
        db.connect_as(&db.app(), A)
    };
    app.run("SELECT count(*) FROM generate_series(1, 2000) AS i, tenant_quota_consume('calls', 1 + i * 0)");
    let mut blocker = db.admin();
    // Readers are let through.
    blocker.run("BEGIN; LOCK TABLE tenant_rls.ledger IN SHARE MODE");
    assert_eq!(app.one::<String>("SELECT mode FROM tenant_quota_consume('calls')"), "leased");
    (db, admin, blocker)
}

/// More was handed out than the tables account for.
#[test]
fn a_lease_that_hands_out_too_much_is_found() {
    let (_db, mut admin, _blocker) = leased();
    assert_eq!(found(&mut admin), None);
    disturb(&mut admin, "granted", -1_000_000);
    let more: bool =
        admin.one("SELECT actual > expected FROM tenant_quota_invariants WHERE finding LIKE 'a lease has%'");
    assert!(more);
    disturb(&mut admin, "granted", 1_000_000);
}

/// A crash would strand more than the tables say.
#[test]
fn a_chunk_that_is_not_written_down_is_found() {
    let (_db, mut admin, _blocker) = leased();
    // There is no worker that could be about to write it.
    admin.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND backend_type = 'tenant_rls worker'",
    );
    let chunk: i64 = admin.one("SELECT chunk FROM tenant_rls.leases");
    assert!(chunk > 0);
    admin.run("UPDATE tenant_rls.leases SET chunk = 0");
    let is_found = "SELECT EXISTS (SELECT FROM tenant_quota_invariants WHERE expected > 0 AND actual = 0)";
    eventually(&mut admin, is_found);
    admin.run(&format!("UPDATE tenant_rls.leases SET chunk = {chunk}"));
    finds_nothing(&mut admin);
}

/// The tables say that a lease is at stake that nobody has.
#[test]
fn a_lease_that_nobody_has_is_found() {
    let (_db, mut admin, _app) = counted();
    rest(&mut admin);
    assert_eq!(found(&mut admin), None);
    admin.run(&format!("INSERT INTO tenant_rls.leases VALUES ('{A}', 'calls', '-infinity', 'infinity', 7)"));
    finds(&mut admin, "a calls 0 7");
}

/// A reservation that shared memory does not know is not given back when its time is over.
#[test]
fn a_reservation_that_is_not_known_is_found() {
    let (_db, mut admin, mut app) = counted();
    let by_hand = format!(
        "INSERT INTO tenant_rls.reservations (tenant_id, resource, period_start, resets_at, units, expires_at)
         VALUES ('{A}', 'calls', '-infinity', 'infinity', 2, clock_timestamp() + interval '1 hour')"
    );
    // Of no key is any known.
    admin.run(&by_hand);
    finds(&mut admin, "a calls 2 0");
    admin.run("DELETE FROM tenant_rls.reservations");
    app.run("SELECT * FROM tenant_quota_reserve('seats', 4, '1 hour')");
    assert_eq!(found(&mut admin), None);
    // Of this key none is.
    admin.run(&by_hand);
    finds(&mut admin, "a calls 2 0");
    disturb(&mut admin, "holds", 1);
    assert_eq!(found(&mut admin), None);
}

/// Nothing is found while leases are extended, given back and ended, reservations come and go, and modes change.
#[test]
fn nothing_is_found_while_leases_and_reservations_come_and_go() {
    let (db, mut admin, _app) = counted();
    let until = Instant::now() + Duration::from_secs(5);
    thread::scope(|scope| {
        let writers = scope.spawn(|| {
            in_parallel(&db, 6, |client, random| {
                while Instant::now() < until {
                    let amount = 1 + random.below(30);
                    let sql = match random.below(6) {
                        0 => format!("SELECT * FROM tenant_quota_consume('seats', {amount})"),
                        1 => "SELECT * FROM tenant_quota_reserve('seats', 5, '20 ms')".into(),
                        2 => format!(
                            "BEGIN; SELECT * FROM tenant_quota_consume('seats', {amount}); SAVEPOINT s;
                             SELECT * FROM tenant_quota_consume('calls', {amount});
                             SELECT * FROM tenant_quota_reserve('seats', 3, '1 hour'); ROLLBACK TO s; COMMIT"
                        ),
                        3 => "SELECT * FROM tenant_quota_consume_many('{\"calls\": 7, \"seats\": 1000001}')"
                            .into(),
                        _ => format!("SELECT * FROM tenant_quota_try_consume('calls', {amount})"),
                    };
                    // The limit, and whatever else says no.
                    if client.attempt(&sql).is_some() {
                        client.run("ROLLBACK");
                    }
                }
                0
            })
        });
        scope.spawn(|| {
            let mut operator = db.admin();
            for mode in ["leased", "escrow", "leased", "strict"].iter().cycle() {
                if Instant::now() > until {
                    break;
                }
                operator.run(&format!(
                    "SELECT tenant_plan_limit_set('free', 'calls', 1000000, mode => '{mode}')"
                ));
                thread::sleep(Duration::from_millis(300));
            }
        });
        while Instant::now() < until {
            let found: Option<String> =
                admin.one("SELECT string_agg(i::text, ', ') FROM tenant_quota_invariants AS i");
            assert_eq!(found, None);
        }
        writers.join().expect("writers that end well");
    });
    rest(&mut admin);
    assert_eq!(found(&mut admin), None);
    assert!(recorded(&mut admin, A, "calls") > 0);
}
