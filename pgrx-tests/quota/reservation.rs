//! Reservations: units that are held, settled, given back, and free again when their time is over.

use std::ops::Deref;
use std::sync::Mutex;
use std::thread;

use postgres::Client;
use serde_json::{Value, json};

use super::concurrent::{CONNECTIONS, in_parallel};
use super::{VERDICT, fields, limited, without_worker};
use crate::harness::{A, B, Db, Session, answer, recorded, refuses, report, waiting};

/// A database in which no worker ends what has expired: who counts on what is still held must not race with it.
struct Undisturbed {
    db: Db,
    _blocker: Mutex<Client>,
}

impl Deref for Undisturbed {
    type Target = Db;

    fn deref(&self) -> &Db {
        &self.db
    }
}

fn undisturbed() -> Undisturbed {
    let db = limited();
    let blocker = without_worker(&db).into();
    Undisturbed { db, _blocker: blocker }
}

/// Such a database, and a session of its application for tenant A.
fn app() -> (Undisturbed, Client) {
    let db = undisturbed();
    let client = db.connect_as(&db.app(), A);
    (db, client)
}

/// Holds units for an hour. The id of the reservation.
#[track_caller]
fn reserve(client: &mut Client, resource: &str, amount: i64) -> String {
    client.one(&format!(
        "SELECT reservation_id::text FROM tenant_quota_reserve('{resource}', {amount}, '1 hour')"
    ))
}

/// Lets the time of all reservations be over.
fn pass(db: &Db) {
    db.admin().run("UPDATE tenant_rls.reservations SET expires_at = clock_timestamp() WHERE state = 'held'");
}

/// The state of a reservation; for superusers.
fn state(db: &Db, id: &str) -> String {
    db.admin().one(&format!("SELECT state FROM tenant_rls.reservations WHERE reservation_id = '{id}'"))
}

fn settle(id: &str, actual: i64) -> String {
    format!("tenant_quota_settle('{id}', {actual})")
}

fn cancel(id: &str) -> String {
    format!("tenant_quota_cancel('{id}')")
}

/// What counts, of which what is held, and what is left.
const COUNTS: &[&str] = &["granted", "used", "held", "remaining", "reason"];

/// Held units count as used, in answers and in the view, and the answer names the reservation.
#[test]
fn reserved_units_count() {
    let (db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('calls', 2)");
    for function in ["tenant_quota_reserve", "tenant_quota_try_reserve"] {
        let held = answer(&mut app, &format!("{function}('calls', 3, '1 minute')"));
        assert!(held["reservation_id"].is_string());
    }
    let check = answer(&mut app, "tenant_quota_check('calls')");
    assert_eq!(fields(&check, COUNTS), json!([0, 8, 6, 2, "ok"]));
    let usage: String =
        app.one("SELECT concat_ws(' ', used, held, remaining) FROM tenant_usage WHERE resource = 'calls'");
    assert_eq!(usage, "8 6 2");
    assert_eq!(recorded(&mut db.admin(), A, "calls"), 8);
}

/// What does not fit is not held: one function raises, the other says so.
#[test]
fn a_reservation_must_fit() {
    let (db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('calls', 8)");
    let denied = answer(&mut app, "tenant_quota_try_reserve('calls', 3, '1 minute')");
    assert_eq!(fields(&denied, VERDICT), json!([false, 0, 8, 2, "limit"]));
    assert_eq!(denied["reservation_id"], Value::Null);
    assert_eq!(app.fails("SELECT * FROM tenant_quota_reserve('calls', 3, '1 minute')"), "53400");
    assert_eq!(db.admin().one::<i64>("SELECT count(*) FROM tenant_rls.reservations"), 0);
    app.run("SELECT * FROM tenant_quota_reserve('calls', 2, '1 minute')");
}

/// Amounts and times that cannot be reserved.
#[test]
fn bad_reservations_are_refused() {
    let (_db, mut app) = app();
    for function in ["tenant_quota_reserve", "tenant_quota_try_reserve"] {
        for (arguments, state) in [
            ("'calls', -1, '1 minute'", "22023"),
            ("'calls', NULL, '1 minute'", "22004"),
            ("NULL, 1, '1 minute'", "22004"),
            ("'calls', 1, NULL", "22004"),
            ("'calls', 1, '0'", "22023"),
            ("'calls', 1, '-1 second'", "22023"),
            ("'calls', 1, '1 month -31 days'", "22023"),
            ("'calls', 1, '30 days 1 second'", "22023"),
            ("'calls', 1, '170000000 years'", "22023"),
            ("'cows', 1, '1 minute'", "42704"),
        ] {
            assert_eq!(app.fails(&format!("SELECT * FROM {function}({arguments})")), state, "{arguments}");
        }
        app.run(&format!("SELECT * FROM {function}('calls', 1, '30 days')"));
    }
    let peek = answer(&mut app, "tenant_quota_reserve('calls', 0, '1 minute')");
    assert_eq!(fields(&peek, &["granted", "used", "reservation_id"]), json!([0, 2, null]));
}

/// Settled at less, the rest is free; at as much, nothing moves; at nothing, all is.
#[test]
fn a_reservation_settles_at_what_it_took() {
    let (db, mut app) = app();
    for (actual, used) in [(2, 2), (5, 7), (0, 7)] {
        let held = reserve(&mut app, "calls", if actual == 0 { 3 } else { 5 });
        let settled = answer(&mut app, &settle(&held, actual));
        assert_eq!(fields(&settled, COUNTS), json!([actual, used, 0, 10 - used, "ok"]));
        assert_eq!(settled["reservation_id"], json!(held));
    }
    assert_eq!(recorded(&mut db.admin(), A, "calls"), 7);
}

/// More than was held is a new admission: what fits is taken, what does not leaves the reservation as it was.
#[test]
fn settling_at_more_must_fit() {
    let (db, mut app) = app();
    let held = reserve(&mut app, "calls", 4);
    app.run("SELECT * FROM tenant_quota_consume('calls', 4)");
    let error = report(&mut app, &format!("SELECT * FROM {}", settle(&held, 7)));
    assert_eq!(error.code().code(), "53400");
    let detail: Value = serde_json::from_str(error.detail().expect("a detail")).expect("JSON");
    assert_eq!((&detail["used"], &detail["requested"]), (&json!(8), &json!(3)));
    assert_eq!((state(&db, &held), recorded(&mut db.admin(), A, "calls")), ("held".into(), 8));
    let settled = answer(&mut app, &settle(&held, 6));
    assert_eq!(fields(&settled, COUNTS), json!([6, 10, 0, 0, "ok"]));
}

/// Cancelled units are free.
#[test]
fn cancelling_gives_back() {
    let (db, mut app) = app();
    let held = reserve(&mut app, "seats", 10);
    let cancelled = answer(&mut app, &cancel(&held));
    assert_eq!(fields(&cancelled, COUNTS), json!([10, 0, 0, 10, "ok"]));
    assert_eq!(recorded(&mut db.admin(), A, "seats"), 0);
}

/// A reservation ends once: the same call again is answered, another one is refused, and nothing moves.
#[test]
fn a_reservation_ends_once() {
    let (db, mut app) = app();
    let (settled, cancelled) = (reserve(&mut app, "calls", 4), reserve(&mut app, "calls", 4));
    app.run(&format!("SELECT * FROM {}; SELECT * FROM {}", settle(&settled, 3), cancel(&cancelled)));
    let again = answer(&mut app, &settle(&settled, 3));
    assert_eq!(fields(&again, COUNTS), json!([3, 3, 0, 7, "replay"]));
    let again = answer(&mut app, &cancel(&cancelled));
    assert_eq!(fields(&again, COUNTS), json!([4, 3, 0, 7, "replay"]));
    refuses(
        &mut app,
        &[
            (&format!("SELECT * FROM {}", settle(&settled, 4)), "22023"),
            (&format!("SELECT * FROM {}", cancel(&settled)), "55000"),
            (&format!("SELECT * FROM {}", settle(&cancelled, 3)), "55000"),
        ],
    );
    assert_eq!(recorded(&mut db.admin(), A, "calls"), 3);
}

/// The reservation of another tenant is as unknown as one that does not exist, in use or not.
#[test]
fn the_reservation_of_another_is_unknown() {
    let (db, mut app) = app();
    let held = reserve(&mut app, "calls", 4);
    app.run(&format!("BEGIN; SELECT * FROM {}", settle(&held, 3)));
    let mut other = db.connect_as(&db.app(), B);
    other.run("SET lock_timeout = '5s'");
    let absent = "00000000-0000-4000-8000-000000000000";
    let ask = |other: &mut Client, id: &str, call: &str| {
        let error = report(other, &format!("SELECT * FROM {}", call.replace("{}", id)));
        (
            error.code().code().to_string(),
            error.message().replace(id, "…"),
            error.detail().map(str::to_string),
        )
    };
    for call in ["tenant_quota_settle('{}', 3)", "tenant_quota_cancel('{}')"] {
        let answer = ask(&mut other, &held, call);
        assert_eq!(answer.0, "42704");
        assert_eq!(answer, ask(&mut other, absent, call));
    }
    app.run("COMMIT");
    refuses(
        &mut app,
        &[
            ("SELECT * FROM tenant_quota_settle(NULL, 1)", "22004"),
            ("SELECT * FROM tenant_quota_cancel(NULL)", "22004"),
            (&format!("SELECT * FROM tenant_quota_settle('{held}', NULL)"), "22004"),
            (&format!("SELECT * FROM tenant_quota_settle('{held}', -1)"), "22023"),
        ],
    );
    assert_eq!(answer(&mut app, &settle(&held, 3))["reason"], "replay");
}

/// Whose time is over is free for everybody who looks, before anything is written.
#[test]
fn an_expired_reservation_is_free_to_see() {
    let (db, mut app) = app();
    let held = reserve(&mut app, "calls", 6);
    app.run("SELECT * FROM tenant_quota_reserve('calls', 4, '1 hour')");
    db.admin().run(&format!(
        "UPDATE tenant_rls.reservations SET expires_at = clock_timestamp() WHERE reservation_id = '{held}'"
    ));
    app.run("BEGIN READ ONLY");
    let check = answer(&mut app, "tenant_quota_check('calls', 6)");
    assert_eq!(fields(&check, COUNTS), json!([0, 4, 4, 6, "ok"]));
    assert_eq!(answer(&mut app, "tenant_quota_check('calls', 7)")["reason"], "limit");
    let usage: String =
        app.one("SELECT concat_ws(' ', used, held, remaining) FROM tenant_usage WHERE resource = 'calls'");
    assert_eq!(usage, "4 4 6");
    app.run("COMMIT");
    assert_eq!((state(&db, &held), recorded(&mut db.admin(), A, "calls")), ("held".into(), 10));
}

/// A call that would be denied takes the units of those whose time is over; one that is denied all the same writes
/// nothing.
#[test]
fn expired_units_are_taken_at_the_limit() {
    let (db, mut app) = app();
    let held = reserve(&mut app, "calls", 4);
    app.run("SELECT * FROM tenant_quota_reserve('calls', 2, '1 hour'); SELECT * FROM tenant_quota_consume('calls', 4)");
    db.admin().run(&format!(
        "UPDATE tenant_rls.reservations SET expires_at = clock_timestamp() WHERE reservation_id = '{held}'"
    ));
    app.run("BEGIN");
    let denied = answer(&mut app, "tenant_quota_try_consume('calls', 5)");
    assert_eq!(fields(&denied, VERDICT), json!([false, 0, 6, 4, "limit"]));
    assert!(!app.one::<bool>("SELECT pg_current_xact_id_if_assigned() IS NOT NULL"));
    app.run("COMMIT");
    assert_eq!(state(&db, &held), "held");
    let taken = answer(&mut app, "tenant_quota_consume('calls', 4)");
    assert_eq!(fields(&taken, COUNTS), json!([4, 10, 2, 0, "ok"]));
    assert_eq!((state(&db, &held), recorded(&mut db.admin(), A, "calls")), ("expired".into(), 10));
    assert_eq!(app.fails("SELECT * FROM tenant_quota_consume('calls')"), "53400");
}

/// The time is the server's: it passes within a transaction.
#[test]
fn a_reservation_expires_by_itself() {
    let (_db, mut app) = app();
    app.run(
        "BEGIN; SELECT * FROM tenant_quota_reserve('calls', 10, '100 milliseconds'); SELECT pg_sleep(0.2)",
    );
    assert_eq!(answer(&mut app, "tenant_quota_consume('calls', 10)")["allowed"], true);
    app.run("COMMIT");
}

/// After its time a reservation cannot be settled, whether its units were given back or not; to cancel it is no error
/// and does nothing.
#[test]
fn an_expired_reservation_is_not_settled() {
    let (db, mut app) = app();
    let held = reserve(&mut app, "calls", 4);
    pass(&db);
    for swept in [false, true] {
        if swept {
            assert_eq!(db.admin().one::<i64>("SELECT tenant_rls.quota_sweep()"), 1);
            assert_eq!(state(&db, &held), "expired");
        }
        assert_eq!(app.fails(&format!("SELECT * FROM {}", settle(&held, 4))), "55000");
        assert_eq!(fields(&answer(&mut app, &cancel(&held)), COUNTS), json!([0, 0, 0, 10, "ok"]));
    }
    assert_eq!(recorded(&mut db.admin(), A, "calls"), 0);
}

/// Soft and shadow limits see no overage where the units are due.
#[test]
fn expired_units_are_no_overage() {
    for enforcement in ["soft", "shadow"] {
        let (db, mut app) = app();
        db.admin().run(&format!(
            "SELECT tenant_plan_limit_set('free', 'calls', 10, enforcement => '{enforcement}')"
        ));
        app.run("SELECT * FROM tenant_quota_reserve('calls', 10, '1 hour')");
        assert_eq!(answer(&mut app, "tenant_quota_consume('calls', 1)")["reason"], enforcement);
        pass(&db);
        let taken = answer(&mut app, "tenant_quota_consume('calls', 9)");
        assert_eq!(fields(&taken, &["used", "reason"]), json!([10, "ok"]));
    }
}

/// A rollback, to a savepoint too, undoes a reservation, its end and its expiry.
#[test]
fn a_rollback_undoes_every_step() {
    let (db, mut app) = app();
    app.run("BEGIN; SELECT * FROM tenant_quota_reserve('calls', 4, '1 hour'); ROLLBACK");
    assert_eq!(answer(&mut app, "tenant_quota_check('calls')")["used"], 0);
    let held = reserve(&mut app, "calls", 4);
    app.run("BEGIN");
    for (call, used) in [(settle(&held, 1), 1), (settle(&held, 9), 9), (cancel(&held), 0)] {
        app.run("SAVEPOINT s");
        assert_eq!(answer(&mut app, &call)["used"], used);
        app.run("ROLLBACK TO s");
        let check = answer(&mut app, "tenant_quota_check('calls')");
        assert_eq!(fields(&check, &["used", "held"]), json!([4, 4]), "{call}");
    }
    app.run("COMMIT");
    pass(&db);
    app.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 10); ROLLBACK");
    assert_eq!((state(&db, &held), recorded(&mut db.admin(), A, "calls")), ("held".into(), 4));
}

/// Units belong to the period in which they were reserved, also when it is over.
#[test]
fn a_reservation_ends_in_its_period() {
    let (db, mut app) = app();
    let mut admin = db.admin();
    let (settled, cancelled) = (reserve(&mut app, "api_requests", 40), reserve(&mut app, "api_requests", 5));
    for table in ["ledger", "usage", "reservations"] {
        admin.run(&format!(
            "UPDATE tenant_rls.{table} SET resets_at = period_start, period_start = period_start - interval '28 days'
             WHERE resource = 'api_requests'"
        ));
    }
    let answered = answer(&mut app, &settle(&settled, 10));
    assert_eq!(fields(&answered, &["granted", "used", "held"]), json!([10, 15, 5]));
    let right: bool = app.one(&format!(
        "SELECT a.resets_at = b.period_start FROM {} AS a, tenant_quota_check('api_requests') AS b",
        settle(&settled, 10)
    ));
    assert!(right);
    app.run(&format!("SELECT * FROM {}", cancel(&cancelled)));
    assert_eq!(answer(&mut app, "tenant_quota_check('api_requests')")["used"], 0);
    assert_eq!(recorded(&mut admin, A, "api_requests"), 10);
}

/// A plan that no longer names the resource keeps nobody from settling at what was held.
#[test]
fn settling_needs_no_limit() {
    let (db, mut app) = app();
    let (first, second) = (reserve(&mut app, "calls", 4), reserve(&mut app, "calls", 4));
    db.admin().run(&format!("SELECT tenant_plan_define('bare'); SELECT tenant_plan_change('{A}', 'bare')"));
    assert_eq!(answer(&mut app, &settle(&first, 3))["used"], 7);
    assert_eq!(app.fails(&format!("SELECT * FROM {}", settle(&second, 5))), "53400");
    assert_eq!(answer(&mut app, &cancel(&second))["used"], 3);
}

/// A gauge that follows rows has no reservations, and what was held of it when it was attached has ended.
#[test]
fn an_attached_gauge_has_none() {
    let (db, mut app) = app();
    let held = reserve(&mut app, "seats", 4);
    db.admin().run(&format!(
        "CREATE TABLE rows (tenant_id uuid); INSERT INTO rows VALUES ('{A}'); SELECT tenant_protect('rows');
         SELECT tenant_quota_attach('rows', 'seats')"
    ));
    let check = answer(&mut app, "tenant_quota_check('seats')");
    assert_eq!(fields(&check, &["used", "held"]), json!([1, 0]));
    refuses(
        &mut app,
        &[
            ("SELECT * FROM tenant_quota_reserve('seats', 1, '1 minute')", "55000"),
            (&format!("SELECT * FROM {}", settle(&held, 4)), "55000"),
        ],
    );
    assert_eq!(state(&db, &held), "expired");
    assert_eq!(recorded(&mut db.admin(), A, "seats"), 1);
}

/// A release gives back nothing that is held.
#[test]
fn a_release_leaves_what_is_held() {
    let (db, mut app) = app();
    let held = reserve(&mut app, "seats", 4);
    app.run("SELECT * FROM tenant_quota_consume('seats', 3)");
    assert_eq!(app.fails("SELECT * FROM tenant_quota_release('seats', 4)"), "22023");
    app.run("SELECT * FROM tenant_quota_release('seats', 3)");
    assert_eq!(answer(&mut app, &settle(&held, 4))["used"], 4);
    assert_eq!(recorded(&mut db.admin(), A, "seats"), 4);
}

/// Reserving has idempotency keys too: one reservation, whose id is answered again.
#[test]
fn a_repeated_reservation_is_the_same() {
    let (db, mut app) = app();
    let call = "tenant_quota_reserve('calls', 3, '1 hour', 'k')";
    let first = answer(&mut app, call);
    for call in [call, "tenant_quota_try_reserve('calls', 3, '60 minutes', 'k')"] {
        let again = answer(&mut app, call);
        assert_eq!(again["reservation_id"], first["reservation_id"]);
        assert_eq!(fields(&again, COUNTS), json!([3, 3, 3, 7, "replay"]));
    }
    assert_eq!(app.fails("SELECT * FROM tenant_quota_reserve('calls', 3, '2 hours', 'k')"), "22023");
    assert_eq!(recorded(&mut db.admin(), A, "calls"), 3);
}

/// Who may not write neither reserves nor ends.
#[test]
fn only_writers_reserve_and_end() {
    let (db, mut app) = app();
    let held = reserve(&mut app, "calls", 4);
    let calls = [
        "SELECT * FROM tenant_quota_reserve('calls', 1, '1 minute')".to_string(),
        format!("SELECT * FROM {}", settle(&held, 1)),
        format!("SELECT * FROM {}", cancel(&held)),
    ];
    for call in &calls {
        app.run("BEGIN READ ONLY");
        assert_eq!(app.fails(call), "25006", "{call}");
        app.run("ROLLBACK");
    }
    for (block, state, unblock) in
        [("tenant_fence", "25006", "tenant_unfence"), ("tenant_suspend", "55000", "tenant_resume")]
    {
        db.admin().run(&format!("SELECT {block}('{A}')"));
        for call in &calls {
            assert_eq!(app.fails(call), state, "{call}");
        }
        db.admin().run(&format!("SELECT {unblock}('{A}')"));
    }
    assert_eq!(db.connect(&db.app()).fails(&calls[2]), "55000");
    app.run(&calls[1]);
}

/// Sixteen sessions end one reservation: it ends once, at every isolation level, and all who asked for that are
/// answered.
#[test]
fn sixteen_sessions_end_one_reservation() {
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let db = undisturbed();
        let held = reserve(&mut db.connect_as(&db.app(), A), "calls", 4);
        let ended = in_parallel(&db, CONNECTIONS, |client, random| {
            // The first statement takes the snapshot, so that others can be in between.
            client.run(&format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_class"));
            let call = if random.below(2) == 0 { settle(&held, 1) } else { cancel(&held) };
            let answered = client.query_one(&format!("SELECT reason FROM {call}"), &[]);
            match answered {
                Ok(row) => {
                    client.run("COMMIT");
                    i64::from(row.get::<_, String>(0) == "ok")
                }
                Err(error) => {
                    assert_eq!(crate::harness::state(&error), "55000", "{level}");
                    client.run("ROLLBACK");
                    0
                }
            }
        });
        let used = if state(&db, &held) == "settled" { 1 } else { 0 };
        assert_eq!((ended, recorded(&mut db.admin(), A, "calls")), (1, used), "{level}");
    }
}

/// A call that waits for the end of its reservation sees what became of it.
#[test]
fn an_undecided_end_is_waited_for() {
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        for (end, outcome) in [("COMMIT", None), ("ROLLBACK", Some("ok"))] {
            let db = undisturbed();
            let mut first = db.connect_as(&db.app(), A);
            let held = reserve(&mut first, "calls", 4);
            first.run(&format!("BEGIN; SELECT * FROM {}", cancel(&held)));
            thread::scope(|scope| {
                let second = scope.spawn(|| {
                    let mut second = db.connect_as(&db.app(), A);
                    second.run(&format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_class"));
                    let call = format!("SELECT reason FROM {}", settle(&held, 2));
                    let answered = second.query_one(&call, &[]).map(|row| row.get::<_, String>(0));
                    second.run("COMMIT");
                    answered.map_err(|error| crate::harness::state(&error))
                });
                waiting(&mut db.admin(), 1);
                first.run(end);
                let answered = second.join().expect("an answer");
                assert_eq!(answered, outcome.map(str::to_string).ok_or("55000".into()), "{level} {end}");
            });
        }
    }
}

/// Sixteen sessions reserve, settle, cancel and let go, at random: never above the limit, and what is left adds up.
#[test]
fn random_reservations_add_up() {
    let db = undisturbed();
    db.admin().run("SELECT tenant_plan_limit_set('free', 'calls', 1000)");
    let settled = in_parallel(&db, CONNECTIONS, |client, random| {
        let mut settled = 0;
        for _ in 0..30 {
            let amount = random.below(30) as i64 + 1;
            let ttl = if random.below(3) == 0 { "1 millisecond" } else { "1 hour" };
            let held = answer(client, &format!("tenant_quota_try_reserve('calls', {amount}, '{ttl}')"));
            let Some(id) = held["reservation_id"].as_str() else { continue };
            assert!(held["used"].as_i64() <= Some(1000), "{held}");
            if ttl == "1 millisecond" {
                continue;
            }
            let actual = random.below(amount as u64 + 2) as i64;
            let end = if random.below(4) == 0 { cancel(id) } else { settle(id, actual) };
            match client.query_one(&format!("SELECT granted FROM {end}"), &[]) {
                Ok(row) if end == settle(id, actual) => settled += row.get::<_, i64>(0),
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(crate::harness::state(&error), "53400");
                    client.run(&format!("SELECT * FROM {}", cancel(id)));
                }
            }
        }
        settled
    });
    let check = answer(&mut db.connect_as(&db.app(), A), "tenant_quota_check('calls')");
    assert_eq!(fields(&check, &["used", "held"]), json!([settled, 0]));
    let mut admin = db.admin();
    admin.run("SELECT tenant_rls.quota_sweep(10000)");
    assert_eq!(recorded(&mut admin, A, "calls"), settled);
    assert_eq!(admin.rows("SELECT * FROM tenant_quota_invariants").len(), 0);
}

/// Two sessions at the limit ask for the units of one expired reservation: one gets them.
#[test]
fn expired_units_are_taken_once() {
    let db = undisturbed();
    let mut first = db.connect_as(&db.app(), A);
    reserve(&mut first, "calls", 10);
    pass(&db);
    let granted = in_parallel(&db, CONNECTIONS, |client, _| {
        client.one("SELECT granted FROM tenant_quota_try_consume('calls', 10)")
    });
    assert_eq!((granted, recorded(&mut db.admin(), A, "calls")), (10, 10));
}

/// The sweep gives units back for tenants that nobody works for, waits for nobody, and takes a batch at a time.
#[test]
fn expired_units_are_swept_up() {
    let (db, mut app) = app();
    let mut admin = db.admin();
    admin.run("SET lock_timeout = '5s'");
    for _ in 0..3 {
        reserve(&mut app, "calls", 2);
        reserve(&mut app, "seats", 2);
    }
    assert_eq!(admin.one::<i64>("SELECT tenant_rls.quota_sweep()"), 0);
    pass(&db);
    // Somebody else works with one of the two keys.
    app.run("BEGIN; SELECT * FROM tenant_quota_consume('seats')");
    assert_eq!(admin.one::<i64>("SELECT tenant_rls.quota_sweep(2)"), 2);
    assert_eq!(admin.one::<i64>("SELECT tenant_rls.quota_sweep(2)"), 1);
    assert_eq!(admin.one::<i64>("SELECT tenant_rls.quota_sweep(2)"), 0);
    assert_eq!((recorded(&mut admin, A, "calls"), recorded(&mut admin, A, "seats")), (0, 6));
    app.run("COMMIT");
    admin.run(&format!("SELECT tenant_suspend('{A}')"));
    assert_eq!(admin.one::<i64>("SELECT tenant_rls.quota_sweep()"), 3);
    assert_eq!(recorded(&mut admin, A, "seats"), 1);
}

/// Nothing of a fenced or deleted tenant is swept up, nor what a fence is just closing for.
#[test]
fn the_sweep_writes_nothing_behind_a_fence() {
    let (db, mut app) = app();
    reserve(&mut app, "calls", 4);
    pass(&db);
    let mut admin = db.admin();
    admin.run("SET lock_timeout = '5s'");
    for (block, unblock) in [("tenant_fence", "tenant_unfence"), ("tenant_delete", "tenant_list")] {
        let mut closing = db.admin();
        closing.run(&format!("BEGIN; SELECT {block}('{A}')"));
        if block == "tenant_fence" {
            assert_eq!(admin.one::<i64>("SELECT tenant_rls.quota_sweep()"), 0);
        }
        closing.run("COMMIT");
        assert_eq!(admin.one::<i64>("SELECT tenant_rls.quota_sweep()"), 0, "{block}");
        if unblock == "tenant_unfence" {
            admin.run(&format!("SELECT {unblock}('{A}')"));
        }
    }
    assert_eq!(recorded(&mut admin, A, "calls"), 4);
}

/// An end is answered for a day after the time of the reservation, then it is forgotten.
#[test]
fn ended_reservations_are_forgotten() {
    let (db, mut app) = app();
    let held = reserve(&mut app, "calls", 4);
    app.run(&format!("SELECT * FROM {}", settle(&held, 4)));
    let mut admin = db.admin();
    let mut age = |time: &str| {
        admin.run(&format!(
            "UPDATE tenant_rls.reservations SET expires_at = clock_timestamp() - interval '{time}'"
        ));
        admin.one::<i64>("SELECT tenant_rls.quota_sweep()")
    };
    assert_eq!(age("23 hours"), 0);
    assert_eq!(answer(&mut app, &settle(&held, 4))["reason"], "replay");
    assert_eq!(age("25 hours"), 1);
    assert_eq!(app.fails(&format!("SELECT * FROM {}", settle(&held, 4))), "42704");
    assert_eq!(recorded(&mut db.admin(), A, "calls"), 4);
}

/// Units that somebody has set by hand below what is held are shown, and keep nobody from going on.
#[test]
fn more_held_than_used_is_shown() {
    let (db, mut app) = app();
    reserve(&mut app, "calls", 4);
    let mut admin = db.admin();
    assert_eq!(admin.rows("SELECT * FROM tenant_quota_invariants").len(), 0);
    admin.run("UPDATE tenant_rls.usage SET used = 3");
    let shown: String =
        admin.one("SELECT concat_ws(' ', resource, expected, actual) FROM tenant_quota_invariants");
    assert_eq!(shown, "calls 4 3");
    pass(&db);
    assert_eq!(admin.one::<i64>("SELECT tenant_rls.quota_sweep()"), 1);
    assert_eq!(admin.rows("SELECT * FROM tenant_quota_invariants").len(), 0);
    assert_eq!(recorded(&mut admin, A, "calls"), 0);
}
