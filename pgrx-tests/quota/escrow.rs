//! Mode escrow: exact, and nobody waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use serde_json::json;

use super::concurrent::{CONNECTIONS, in_parallel, transaction, usage};
use super::{VERDICT, fields, without_worker};
use crate::cluster::Cluster;
use crate::harness::{A, B, Db, Session, Stops, answer, eventually, recorded, waiting};

const INVARIANTS: &str = "SELECT count(*) FROM tenant_quota_invariants";

/// A database whose plan free has 10 of counter `calls` and gauge `seats`, in the mode that is the default.
fn limited() -> Db {
    let db = super::limited();
    db.admin().run("SELECT tenant_plan_limit_set('free', r, 10) FROM unnest(ARRAY['calls', 'seats']) AS r");
    db
}

/// Such a database, and a session of its application for tenant A that waits for nobody.
fn app() -> (Db, Client) {
    let db = limited();
    let client = session(&db);
    (db, client)
}

fn session(db: &Db) -> Client {
    let mut client = db.connect_as(&db.app(), A);
    client.run("SET lock_timeout = '1ms'");
    client
}

/// It is the default, and answers say so.
#[test]
fn is_the_default_when_preloaded() {
    let (_db, mut app) = app();
    for call in
        ["tenant_quota_check('calls')", "tenant_quota_consume('calls')", "tenant_quota_consume('calls', 0)"]
    {
        assert_eq!(answer(&mut app, call)["mode"], "escrow", "{call}");
    }
    assert_eq!(app.one::<String>("SELECT mode FROM tenant_usage WHERE resource = 'calls'"), "escrow");
}

/// Random amounts, both functions, savepoints, aborts: what was committed is what is recorded, below the limit.
#[test]
fn random_transactions_add_up() {
    let db = limited();
    db.admin().run("SELECT tenant_plan_limit_set('free', 'calls', 8000)");
    let committed =
        in_parallel(&db, CONNECTIONS, |client, random| (0..40).map(|_| transaction(client, random)).sum());
    assert!(committed > 7800 && committed <= 8000, "{committed}: enough asks to come near the limit");
    assert_eq!(usage(&db), committed);
    assert_eq!(recorded(&mut db.admin(), A, "calls"), committed);
    assert_eq!(db.admin().one::<i64>(INVARIANTS), 0);
}

/// Asked for one by one, with aborts between and denials that are tried again, exactly the limit is granted.
#[test]
fn single_units_reach_exactly_the_limit() {
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let db = limited();
        db.admin().run("SELECT tenant_plan_limit_set('free', 'calls', 300)");
        let committed = in_parallel(&db, CONNECTIONS, |client, random| {
            let mut taken = 0;
            loop {
                client.run(&format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_class"));
                let row = &client.rows("SELECT granted, reason FROM tenant_quota_try_consume('calls')")[0];
                let (granted, reason): (i64, &str) = (row.get(0), row.get(1));
                let abort = granted > 0 && random.below(5) == 0;
                // Nobody else touches the rows of a transaction: 40001 would fail here.
                client.run(if abort { "ROLLBACK" } else { "COMMIT" });
                match reason {
                    "limit" => return taken,
                    "in_flight" => {}
                    _ if !abort => taken += 1,
                    _ => {}
                }
            }
        });
        assert_eq!((committed, usage(&db)), (300, 300), "{level}");
    }
}

/// Calls on one key do not wait for open transactions, and what those may still take is not handed out.
#[test]
fn nobody_waits_for_an_open_transaction() {
    let (db, mut first) = app();
    first.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 9)");
    let mut second = session(&db);
    let granted = answer(&mut second, "tenant_quota_try_consume('calls')");
    assert_eq!(fields(&granted, VERDICT), json!([true, 1, 10, 0, "ok"]));
    let denied = answer(&mut second, "tenant_quota_try_consume('calls')");
    assert_eq!(fields(&denied, VERDICT), json!([false, 0, 10, 0, "in_flight"]));
    assert_eq!(denied["retry_after"], "00:00:00.1");
    assert_eq!(second.fails("SELECT * FROM tenant_quota_consume('calls')"), "53400");
    first.run("ROLLBACK");
    let granted = answer(&mut second, "tenant_quota_try_consume('calls', 9)");
    assert_eq!(fields(&granted, VERDICT), json!([true, 9, 10, 0, "ok"]));
    let denied = answer(&mut second, "tenant_quota_try_consume('calls')");
    assert_eq!(fields(&denied, VERDICT), json!([false, 0, 10, 0, "limit"]));
}

/// Units that a transaction gives back are taken again by itself, and by others only once it has committed.
#[test]
fn what_is_given_back_is_free_after_the_commit() {
    let (db, mut first) = app();
    first.run("SELECT * FROM tenant_quota_consume('seats', 10)");
    first.run("BEGIN; SELECT * FROM tenant_quota_release('seats', 2)");
    let mut second = session(&db);
    let denied = answer(&mut second, "tenant_quota_try_consume('seats')");
    assert_eq!(fields(&denied, VERDICT), json!([false, 0, 10, 0, "in_flight"]));
    let own = answer(&mut first, "tenant_quota_try_consume('seats')");
    assert_eq!(fields(&own, VERDICT), json!([true, 1, 9, 1, "ok"]));
    first.run("COMMIT");
    let granted = answer(&mut second, "tenant_quota_try_consume('seats')");
    assert_eq!(fields(&granted, VERDICT), json!([true, 1, 10, 0, "ok"]));
}

/// Nobody gives back what another transaction may still not have taken.
#[test]
fn an_undecided_unit_cannot_be_given_back_by_another() {
    let (db, mut first) = app();
    first.run("BEGIN; SELECT * FROM tenant_quota_consume('seats', 3)");
    let mut second = session(&db);
    assert_eq!(
        second.fails("SET statement_timeout = '200ms'; SELECT * FROM tenant_quota_release('seats', 1)"),
        "57014"
    );
    first.run("ROLLBACK");
    assert_eq!(second.fails("SELECT * FROM tenant_quota_release('seats', 1)"), "22023");
    assert_eq!(db.admin().one::<i64>(INVARIANTS), 0);
}

/// Savepoints and exception blocks give back what was taken in them, and keep what was taken before.
#[test]
fn savepoints_give_back() {
    let (db, mut app) = app();
    app.run(
        "BEGIN; SELECT * FROM tenant_quota_consume('seats', 4);
         SAVEPOINT a; SELECT * FROM tenant_quota_consume('seats', 5);
         SAVEPOINT b; SELECT * FROM tenant_quota_release('seats', 8); RELEASE b; ROLLBACK TO a;
         DO $$ BEGIN PERFORM tenant_quota_consume('seats', 6); RAISE 'no'; EXCEPTION WHEN OTHERS THEN END $$;
         SAVEPOINT c; SELECT * FROM tenant_quota_consume('seats', 1); RELEASE c",
    );
    let check = answer(&mut app, "tenant_quota_check('seats')");
    assert_eq!(fields(&check, VERDICT), json!([true, 0, 5, 5, "ok"]));
    app.run("COMMIT");
    assert_eq!(recorded(&mut db.admin(), A, "seats"), 5);
    assert_eq!(db.admin().one::<i64>(INVARIANTS), 0);
}

/// A denied call writes nothing; a granted one writes one row, when the transaction commits.
#[test]
fn writes_one_row_for_a_transaction_and_key() {
    let (db, mut app) = app();
    let assigned = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL";
    app.run("BEGIN; SELECT * FROM tenant_quota_try_consume('calls', 11); SELECT * FROM tenant_quota_consume('calls', 3)");
    assert!(!app.one::<bool>(assigned));
    app.run("SELECT * FROM tenant_quota_consume('calls', 4); SELECT * FROM tenant_quota_consume('seats'); SELECT * FROM tenant_quota_release('seats')");
    let mut admin = db.admin();
    // A worker leaves a database alone while somebody has one of its tables for himself.
    let mut alone = db.admin();
    alone.run("BEGIN; LOCK TABLE tenant_rls.leases");
    app.run("COMMIT");
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_rls.ledger"), 1);
    alone.run("ROLLBACK");
    assert_eq!(recorded(&mut admin, A, "calls"), 7);
    assert_eq!(recorded(&mut admin, A, "seats"), 0);
}

/// What cannot be done in this mode is refused, and changes nothing.
#[test]
fn refuses_what_it_cannot_do() {
    let (db, mut app) = app();
    let prepare =
        "BEGIN; SELECT * FROM tenant_quota_consume('calls', 4); PREPARE TRANSACTION 'tenant_rls_escrow'";
    assert_eq!(app.fails(prepare), "0A000");
    app.run("ROLLBACK");
    assert_eq!(app.fails("BEGIN READ ONLY; SELECT * FROM tenant_quota_consume('calls')"), "25006");
    app.run("ROLLBACK");
    assert_eq!(recorded(&mut db.admin(), A, "calls"), 0);
    app.run("SELECT * FROM tenant_quota_consume('calls', 10)");
    let by_hand =
        "BEGIN; UPDATE tenant_rls.usage SET used = 0 WHERE false; PREPARE TRANSACTION 'tenant_rls_by_hand'";
    assert_eq!(db.admin().fails(by_hand), "0A000");
}

/// A session that ends in the middle of a transaction gives back what it has taken.
#[test]
fn a_session_that_goes_gives_back() {
    let (db, mut app) = app();
    app.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 10)");
    drop(app);
    let mut next = session(&db);
    eventually(&mut next, "SELECT allowed FROM tenant_quota_check('calls', 10)");
    next.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 10)");
    let pid: i32 = next.one("SELECT pg_backend_pid()");
    db.admin().run(&format!("SELECT pg_terminate_backend({pid})"));
    eventually(&mut session(&db), "SELECT allowed FROM tenant_quota_check('calls', 10)");
}

/// Units that are changed by SQL on our tables hold from the next call on.
#[test]
fn units_changed_by_hand_are_looked_up_again() {
    let (db, mut app) = app();
    let mut admin = db.admin();
    app.run("SELECT * FROM tenant_quota_consume('calls', 10)");
    admin.run("DELETE FROM tenant_rls.usage; DELETE FROM tenant_rls.ledger");
    let granted = answer(&mut app, "tenant_quota_try_consume('calls', 4)");
    assert_eq!(fields(&granted, VERDICT), json!([true, 4, 4, 6, "ok"]));
    admin.run(&format!(
        "BEGIN; INSERT INTO tenant_rls.ledger VALUES ('{A}', 'calls', '-infinity', 'infinity', 5)"
    ));
    assert_eq!(app.one::<i64>("SELECT used FROM tenant_quota_check('calls')"), 4);
    admin.run("COMMIT");
    assert_eq!(app.one::<i64>("SELECT used FROM tenant_quota_consume('calls')"), 10);
    assert_eq!(admin.one::<i64>(INVARIANTS), 0);
}

/// What was committed while a session was looking everything up again is not lost.
#[test]
fn what_commits_during_a_look_counts() {
    let (db, mut app) = app();
    let (mut admin, mut blocker) = (db.admin(), without_worker(&db));
    let (mut writer, mut looking) = (session(&db), db.connect_as(&db.app(), A));
    // It has looked once before: then it locks after it has taken its snapshot.
    looking.run("SELECT * FROM tenant_quota_consume('seats')");
    app.run("SELECT * FROM tenant_quota_consume('calls')");
    writer.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 5)");
    admin.run("UPDATE tenant_rls.usage SET used = used WHERE false");
    blocker.run("LOCK TABLE tenant_rls.reservations IN ACCESS EXCLUSIVE MODE");
    thread::scope(|scope| {
        let look = scope.spawn(|| looking.run("SELECT * FROM tenant_quota_consume('api_requests')"));
        waiting(&mut admin, 1);
        writer.run("COMMIT");
        blocker.run("COMMIT");
        look.join().expect("a look that ends well");
    });
    assert_eq!(app.one::<i64>("SELECT used FROM tenant_quota_check('calls')"), 6);
    assert!(!app.one::<bool>("SELECT allowed FROM tenant_quota_try_consume('calls', 5)"));
    assert_eq!(usage(&db), 6);
}

/// A function that wrongly says that it is PARALLEL SAFE takes nothing in a parallel query.
#[test]
fn a_parallel_query_takes_nothing() {
    let (db, mut app) = app();
    let setting = if cfg!(feature = "pg15") { "force_parallel_mode" } else { "debug_parallel_query" };
    app.run("SELECT * FROM tenant_quota_consume('calls')");
    app.run(&format!(
        "CREATE FUNCTION pg_temp.take() RETURNS bigint LANGUAGE plpgsql PARALLEL SAFE AS
         $$ BEGIN RETURN (SELECT used FROM tenant_quota_consume('calls')); END $$; SET {setting} = on"
    ));
    assert_eq!(app.fails("SELECT pg_temp.take()"), "25000");
    app.run(&format!("SET {setting} = off"));
    assert_eq!(app.one::<i64>("SELECT used FROM tenant_quota_consume('calls', 9)"), 10);
    assert_eq!(usage(&db), 10);
}

/// A cursor that has taken units, and then fails in a savepoint, takes no lock with it.
#[test]
fn a_cursor_that_fails_keeps_its_locks() {
    for mode in ["strict", "escrow"] {
        let db = limited();
        let mut admin = db.admin();
        admin.run(&format!("SELECT tenant_plan_limit_set('free', 'calls', 10, mode => '{mode}')"));
        let (mut app, mut other) = (session(&db), session(&db));
        app.run(
            "BEGIN; DECLARE c CURSOR FOR
             SELECT 1 / (2 - i), (SELECT used FROM tenant_quota_consume('calls', CASE WHEN i > 0 THEN 5 ELSE 5 END))
             FROM generate_series(1, 2) AS i;
             FETCH 1 FROM c; SAVEPOINT s",
        );
        assert_eq!(app.fails("FETCH 1 FROM c"), "22012");
        app.run("ROLLBACK TO s");
        assert_eq!(admin.fails(&format!("SELECT tenant_fence('{A}', '100 ms')")), "55006", "{mode}");
        if mode == "strict" {
            assert_eq!(other.fails("SELECT * FROM tenant_quota_consume('calls')"), "55P03");
        }
        app.run("COMMIT");
        assert_eq!(other.one::<i64>("SELECT used FROM tenant_quota_consume('calls', 5)"), 10, "{mode}");
    }
}

/// Units that a reservation holds are not given back by hand, whatever other transactions are about to do.
#[test]
fn a_hold_is_not_released() {
    let (db, mut app) = app();
    let mut other = session(&db);
    other.run("BEGIN; SELECT * FROM tenant_quota_consume('seats', 5)");
    app.run("SELECT * FROM tenant_quota_reserve('seats', 5, '10 min')");
    assert_eq!(app.fails("SELECT * FROM tenant_quota_release('seats', 5)"), "22023");
    other.run("ROLLBACK");
    assert_eq!(app.one::<i64>("SELECT used FROM tenant_quota_consume('seats', 5)"), 10);
    app.run("BEGIN; SELECT * FROM tenant_quota_release('seats', 5)");
    assert_eq!(other.fails("SELECT * FROM tenant_quota_release('seats', 5)"), "22023");
}

/// What expires while others have units of the key in flight is left for later: a worker waits for nobody.
#[test]
fn a_sweep_waits_for_nobody() {
    let (db, mut app) = app();
    let (mut admin, mut other) = (db.admin(), session(&db));
    let _blocker = without_worker(&db);
    app.run("SELECT * FROM tenant_quota_reserve('seats', 5, '1 ms')");
    other.run("BEGIN; SELECT * FROM tenant_quota_consume('seats')");
    assert_eq!(admin.one::<i64>("SELECT tenant_rls.quota_sweep(100)"), 0);
    other.run("COMMIT");
    assert_eq!(admin.one::<i64>("SELECT tenant_rls.quota_sweep(100)"), 1);
    assert_eq!(recorded(&mut admin, A, "seats"), 1);
}

/// The invariants find a key that shared memory counts in another way than the tables.
#[test]
fn invariants_see_a_difference() {
    let (db, mut app) = app();
    let mut admin = db.admin();
    app.run("SELECT * FROM tenant_quota_consume('calls', 3)");
    eventually(&mut admin, "SELECT EXISTS (SELECT FROM tenant_rls.usage)");
    admin.run(
        "BEGIN; ALTER TABLE tenant_rls.usage DISABLE TRIGGER units_changed; UPDATE tenant_rls.usage SET used = 2;
         ALTER TABLE tenant_rls.usage ENABLE ALWAYS TRIGGER units_changed; COMMIT",
    );
    let found =
        &admin.rows("SELECT tenant::text, resource, expected, actual FROM tenant_quota_invariants")[0];
    let found: (String, String, i64, i64) = (found.get(0), found.get(1), found.get(2), found.get(3));
    assert_eq!(found, (A.to_string(), "calls".to_string(), 2, 3));
}

/// The invariants find nothing while traffic runs.
#[test]
fn invariants_are_empty_under_traffic() {
    let db = limited();
    db.admin()
        .run("SELECT tenant_plan_limit_set('free', r, 1000000) FROM unnest(ARRAY['calls', 'seats']) AS r");
    let until = Instant::now() + Duration::from_secs(4);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            in_parallel(&db, 6, |client, random| {
                while Instant::now() < until {
                    transaction(client, random);
                    client.run("SELECT * FROM tenant_quota_consume('seats', 2); SELECT * FROM tenant_quota_release('seats', 2)");
                }
                0
            })
        });
        let mut admin = db.admin();
        while Instant::now() < until {
            let found: Option<String> =
                admin.one("SELECT string_agg(finding || ' ' || expected || ' ' || actual, ', ') FROM tenant_quota_invariants");
            assert_eq!(found, None);
        }
        writer.join().expect("a writer that ends well");
    });
    assert_eq!(recorded(&mut db.admin(), A, "seats"), 0);
}

/// A worker that folds the rows of many tenants holds few locks: their table is everybody's.
#[test]
fn a_fold_of_many_tenants_holds_few_locks() {
    const TENANTS: i64 = 2000;
    let db = limited();
    let mut admin = db.admin();
    admin.run(&format!("SELECT count(tenant_create()) FROM generate_series(1, {TENANTS})"));
    let mut watcher = db.admin();
    let stop = AtomicBool::new(false);
    let most = thread::scope(|scope| {
        let stops = Stops(&stop);
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !stop.load(Ordering::Relaxed) {
                let held = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                            WHERE backend_type = 'tenant_rls worker' AND datname = current_database() AND locktype = 'advisory'";
                most = most.max(watcher.one::<i64>(held));
            }
            most
        });
        admin.run("DO $$ DECLARE t uuid; BEGIN
            FOR t IN SELECT tenant_list() LOOP PERFORM set_tenant(t); PERFORM tenant_quota_consume('calls', 9); COMMIT; END LOOP;
        END $$");
        eventually(&mut admin, "SELECT count(*) = 0 FROM tenant_rls.ledger");
        eventually(
            &mut admin,
            &format!("SELECT count(DISTINCT tenant_id) >= {TENANTS} FROM tenant_rls.quota_events"),
        );
        drop(stops);
        watch.join().expect("the watcher ends")
    });
    // A fence for each tenant of a batch with an event to tell, and the lock of the ledger.
    assert!((1..=70).contains(&most), "{most} locks");
}

/// A limit that is changed to another mode and back, while traffic runs: exactly the limit, nothing lost.
#[test]
fn modes_change_under_traffic() {
    let db = limited();
    db.admin().run("SELECT tenant_plan_limit_set('free', 'calls', 3000)");
    let until = Instant::now() + Duration::from_secs(60);
    let committed = thread::scope(|scope| {
        let switch = scope.spawn(|| {
            let mut admin = db.admin();
            let mut modes = ["strict", "escrow", "leased", "strict", "leased", "escrow"].into_iter().cycle();
            while admin.one::<i64>("SELECT coalesce(sum(used), 0)::bigint FROM tenant_rls.units") < 3000
                && Instant::now() < until
            {
                let mode = modes.next().unwrap_or_default();
                admin.run(&format!("SELECT tenant_plan_limit_set('free', 'calls', 3000, mode => '{mode}')"));
                thread::sleep(Duration::from_millis(150));
            }
        });
        let committed = in_parallel(&db, 8, |client, _| {
            let mut taken = 0;
            while Instant::now() < until {
                let row = &client.rows("SELECT granted, reason FROM tenant_quota_try_consume('calls')")[0];
                taken += row.get::<_, i64>(0);
                if row.get::<_, &str>(1) == "limit" {
                    break;
                }
            }
            taken
        });
        switch.join().expect("a switch that ends well");
        committed
    });
    assert_eq!(committed, 3000);
    let mut admin = db.admin();
    eventually(&mut admin, "SELECT coalesce(sum(used), 0) = 3000 FROM tenant_rls.units");
    assert_eq!(admin.one::<i64>(INVARIANTS), 0);
}

/// The modes that a transaction has met go on in it: it ends in the one that it has begun in.
#[test]
fn a_transaction_keeps_its_mode() {
    let (db, mut app) = app();
    let mut admin = db.admin();
    app.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 4)");
    admin.run("SELECT tenant_plan_limit_set('free', 'calls', 10, mode => 'strict')");
    assert_eq!(answer(&mut app, "tenant_quota_consume('calls', 4)")["mode"], "escrow");
    app.run("COMMIT");
    eventually(&mut admin, "SELECT NOT EXISTS (SELECT FROM tenant_rls.ledger)");
    app.run("BEGIN");
    eventually(&mut app, "SELECT mode = 'strict' FROM tenant_quota_check('calls')");
    let granted = answer(&mut app, "tenant_quota_consume('calls', 1)");
    assert_eq!((&granted["used"], &granted["mode"]), (&json!(9), &json!("strict")));
    admin.run("SELECT tenant_plan_limit_set('free', 'calls', 10, mode => 'escrow')");
    app.run("SELECT * FROM tenant_quota_consume('calls', 1)");
    assert_eq!(app.fails("SELECT * FROM tenant_quota_consume('calls', 1)"), "53400");
    app.run("ROLLBACK");
    let granted = answer(&mut app, "tenant_quota_consume('calls', 2)");
    assert_eq!((&granted["used"], &granted["mode"]), (&json!(10), &json!("escrow")));
}

/// A plan, a limit, a suspension: what is committed holds for the next call, in a transaction that has used the key.
#[test]
fn changes_hold_from_the_next_call() {
    let (db, mut app) = app();
    let mut admin = db.admin();
    app.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 5)");
    admin.run("SELECT tenant_plan_limit_set('free', 'calls', 5)");
    assert_eq!(answer(&mut app, "tenant_quota_try_consume('calls')")["reason"], "limit");
    admin.run("SELECT tenant_plan_limit_set('free', 'calls', 6)");
    assert_eq!(answer(&mut app, "tenant_quota_try_consume('calls')")["allowed"], true);
    admin.run(&format!("SELECT tenant_suspend('{A}')"));
    assert_eq!(app.fails("SELECT * FROM tenant_quota_consume('calls')"), "55000");
}

/// Installed again in the same database, the extension starts at zero.
#[test]
fn a_new_installation_starts_at_zero() {
    let (db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('calls', 10)");
    drop(app);
    let mut admin = db.admin();
    admin.run("DROP EXTENSION tenant_rls; CREATE EXTENSION tenant_rls");
    admin.run(&format!(
        "SELECT tenant_resource_define('calls', 'counter', 'call', 'none'); SELECT tenant_plan_limit_set('free', 'calls', 10);
         SELECT tenant_create('{A}'); SELECT tenant_grant('{}')",
        db.app()
    ));
    session(&db).run("SELECT * FROM tenant_quota_consume('calls', 10)");
}

/// A crash loses nothing that was committed, and keeps nothing that was not.
#[test]
fn a_crash_loses_nothing() {
    let cluster = Cluster::start(&[
        "shared_preload_libraries = 'tenant_rls'",
        "fsync = on",
        "max_worker_processes = 16",
    ]);
    let mut admin = cluster.connect("postgres", "postgres");
    admin.run(&format!(
        "CREATE EXTENSION tenant_rls; SELECT tenant_create('{A}'), tenant_create('{B}');
         SET client_min_messages = error; SET app.current_tenant = '{A}'; SELECT * FROM tenant_quota_consume('api_requests', 5)"
    ));
    for round in 1..4i64 {
        let mut open = cluster.connect("postgres", "postgres");
        open.run(&format!(
            "SET client_min_messages = error; SET app.current_tenant = '{A}';
             BEGIN; SELECT * FROM tenant_quota_consume('api_requests', 1000)"
        ));
        admin.run("SELECT * FROM tenant_quota_consume('api_requests', 2)");
        cluster.crash();
        cluster.up();
        admin = cluster.connect("postgres", "postgres");
        admin.run(&format!("SET client_min_messages = error; SET app.current_tenant = '{A}'"));
        assert_eq!(recorded(&mut admin, A, "api_requests"), 5 + 2 * round);
        let used: i64 = admin.one(
            "SELECT used FROM tenant_usage WHERE resource = 'api_requests' AND tenant = current_tenant()",
        );
        assert_eq!(used, 5 + 2 * round);
        let left = 9995 - 2 * round;
        assert_eq!(
            admin.fails(&format!("SELECT * FROM tenant_quota_consume('api_requests', {left} + 1)")),
            "53400"
        );
        admin.run(&format!("BEGIN; SELECT * FROM tenant_quota_consume('api_requests', {left}); ROLLBACK"));
    }
}

/// What a preloaded server has left in the ledger counts in one that is not, and the other way round.
#[test]
fn without_preload_the_ledger_counts() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'tenant_rls'"]);
    let act = |client: &mut Client, amount: i64| -> (i64, String) {
        client.run(&format!("SET client_min_messages = error; SET app.current_tenant = '{A}'"));
        let row = &client
            .rows(&format!("SELECT used, mode FROM tenant_quota_consume('api_requests', {amount})"))[0];
        (row.get(0), row.get(1))
    };
    let mut client = cluster.connect("postgres", "postgres");
    client.run(&format!("CREATE EXTENSION tenant_rls; SELECT tenant_create('{A}')"));
    // No worker folds this row.
    let mut alone = cluster.connect("postgres", "postgres");
    alone.run("BEGIN; LOCK TABLE tenant_rls.leases");
    assert_eq!(act(&mut client, 7), (7, "escrow".into()));
    cluster.crash();
    cluster.set("shared_preload_libraries = ''");
    cluster.up();
    assert_eq!(act(&mut cluster.connect("postgres", "postgres"), 2), (9, "strict".into()));
    cluster.down();
    cluster.set("shared_preload_libraries = 'tenant_rls'");
    cluster.up();
    assert_eq!(act(&mut cluster.connect("postgres", "postgres"), 1), (10, "escrow".into()));
}

/// More keys than there is room for: those that nobody uses make room, and with none to go the key is strict.
#[test]
fn a_full_table_is_no_limit() {
    let cluster =
        Cluster::start(&["shared_preload_libraries = 'tenant_rls'", "tenant_rls.quota_keys = 1024"]);
    let mut admin = cluster.connect("postgres", "postgres");
    admin.run(
        "CREATE EXTENSION tenant_rls; SET client_min_messages = error;
         SELECT tenant_create(gen_random_uuid(), tenant_key => k) FROM generate_series(1, 3000) AS k",
    );
    let sweep = "DO $$ BEGIN FOR k IN 1 .. 3000 LOOP PERFORM set_tenant_key(k); PERFORM tenant_quota_consume('api_requests', k); END LOOP; END $$";
    admin.run(sweep);
    admin.run("BEGIN; LOCK TABLE tenant_rls.leases");
    let mut app = cluster.connect("postgres", "postgres");
    app.run(&format!("SET client_min_messages = error; {sweep}; BEGIN; SELECT set_tenant_key(3000)"));
    assert_eq!(app.one::<String>("SELECT mode FROM tenant_quota_consume('api_requests')"), "strict");
    app.run("ROLLBACK");
    admin.run("ROLLBACK");
    // A worker has folded, so entries can go.
    eventually(&mut admin, "SELECT NOT EXISTS (SELECT FROM tenant_rls.ledger)");
    for _ in 0..2 {
        for chunk in 0..6 {
            let (from, to) = (chunk * 500 + 1, (chunk + 1) * 500);
            admin.run(&sweep.replace("1 .. 3000", &format!("{from} .. {to}")));
            eventually(&mut admin, "SELECT NOT EXISTS (SELECT FROM tenant_rls.ledger)");
        }
    }
    assert_eq!(admin.one::<i64>("SELECT sum(used)::bigint FROM tenant_rls.units"), 3 * 3000 * 3001 / 2);
    assert_eq!(admin.one::<i64>(INVARIANTS), 0);
}
