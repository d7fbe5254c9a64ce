//! Mode leased: no write for a call, never above the limit, a crash strands a chunk at most.

use std::time::Duration;

use postgres::Client;
use serde_json::json;

use super::concurrent::{CONNECTIONS, in_parallel, usage};
use super::{VERDICT, fields};
use crate::cluster::Cluster;
use crate::harness::{A, Db, Session, answer, eventually, recorded, waiting};

/// A database whose plan free has that many of counter `calls`, leased.
fn leased(limit: i64) -> Db {
    let db = super::limited();
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_plan_limit_set('free', 'calls', {limit}, mode => 'leased')"));
    // Tests run side by side, and the worker has to come first.
    admin.run(&format!("ALTER DATABASE {} SET tenant_rls.lease_timeout = '2min'", db.name()));
    db
}

/// Sixteen sessions get exactly the limit, and nothing is written for most calls.
#[test]
fn single_units_reach_exactly_the_limit() {
    let db = leased(20_000);
    let taken = in_parallel(&db, CONNECTIONS, |client, _| {
        let mut taken = 0;
        loop {
            let granted: i64 = client.one("SELECT sum(granted)::bigint FROM generate_series(1, 50), tenant_quota_try_consume('calls', generate_series * 0 + 1)");
            taken += granted;
            if granted < 50
                && client.one::<String>("SELECT reason FROM tenant_quota_try_consume('calls', 100000)")
                    == "amount_exceeds_limit"
                && !client.one::<bool>("SELECT allowed FROM tenant_quota_check('calls')")
            {
                return taken;
            }
        }
    });
    assert_eq!((taken, usage(&db)), (20_000, 20_000));
    let mut admin = db.admin();
    assert_eq!(recorded(&mut admin, A, "calls"), 20_000);
    let moved: i64 = admin.one("SELECT leases_moved FROM tenant_worker_status()");
    assert!(moved < 2_000, "{moved} extensions for 20 000 calls");
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_quota_invariants"), 0);
}

/// Answers say the mode; a rollback keeps the units; no transaction id is taken.
#[test]
fn a_rollback_keeps_the_units() {
    let db = leased(100);
    let mut app = db.connect_as(&db.app(), A);
    app.run("BEGIN");
    let granted = answer(&mut app, "tenant_quota_consume('calls', 30)");
    assert_eq!(fields(&granted, VERDICT), json!([true, 30, 30, 70, "ok"]));
    assert_eq!(granted["mode"], "leased");
    assert!(!app.one::<bool>("SELECT pg_current_xact_id_if_assigned() IS NOT NULL"));
    app.run("ROLLBACK");
    assert_eq!(usage(&db), 30);
    assert_eq!(app.fails("SELECT * FROM tenant_quota_consume('calls', 71)"), "53400");
    app.run("SELECT * FROM tenant_quota_consume('calls', 70)");
}

/// A limit that is lowered holds at once, also for units that are accounted for already.
#[test]
fn a_lowered_limit_holds_at_once() {
    let db = leased(1_000_000);
    let mut app = db.connect_as(&db.app(), A);
    app.run("SELECT count(*) FROM generate_series(1, 2000) AS i, tenant_quota_consume('calls', 1 + i * 0)");
    let mut admin = db.admin();
    admin.run("SELECT tenant_plan_limit_set('free', 'calls', 2001, mode => 'leased')");
    app.run("SELECT * FROM tenant_quota_consume('calls')");
    assert_eq!(answer(&mut app, "tenant_quota_try_consume('calls')")["reason"], "limit");
}

/// Soft and shadow limits deny nothing here either.
#[test]
fn soft_and_shadow_limits_never_deny() {
    let db = leased(10);
    let (mut admin, mut app) = (db.admin(), db.connect_as(&db.app(), A));
    for (enforcement, used) in [("soft", 0), ("shadow", 3020)] {
        admin.run(&format!(
            "SELECT tenant_plan_limit_set('free', 'calls', {}, enforcement => '{enforcement}', mode => 'leased')",
            used + 10
        ));
        app.run("SELECT * FROM tenant_quota_consume('calls', 10)");
        let above = answer(&mut app, "tenant_quota_consume('calls', 10)");
        assert_eq!(fields(&above, VERDICT), json!([true, 10, used + 20, 0, enforcement]));
        assert_eq!(above["mode"], "leased");
        let many = "SELECT count(*) FROM generate_series(1, 3000) AS i, tenant_quota_consume('calls', 1 + i * 0) AS c WHERE c.allowed";
        assert_eq!(app.one::<i64>(many), 3000);
    }
    assert_eq!(usage(&db), 6040);
}

/// The last unit of a limit is told, whether or not the worker ever writes anything of the key again.
#[test]
fn a_used_up_lease_is_told() {
    let db = leased(10);
    let mut app = db.connect_as(&db.app(), A);
    let mut admin = db.admin();
    let told = "SELECT coalesce(string_agg(threshold || ' ' || used, ', ' ORDER BY threshold), '') FROM tenant_quota_events";
    app.run("SELECT * FROM tenant_quota_consume('calls', 1)");
    // Two units are at hand once the extension is folded, and the lease goes on.
    app.run("SELECT count(*) FROM generate_series(1, 7) AS i, tenant_quota_consume('calls', 1 + i * 0)");
    eventually(&mut admin, &format!("SELECT ({told}) = '80 8'"));
    eventually(&mut admin, "SELECT count(*) = 0 FROM tenant_rls.ledger");
    app.run("SELECT * FROM tenant_quota_consume('calls', 2)");
    let denied =
        format!("SELECT NOT allowed AND ({told}) = '80 8, 100 10' FROM tenant_quota_try_consume('calls')");
    admin.run(&format!("SET client_min_messages = error; SET app.current_tenant = '{A}'"));
    eventually(&mut admin, &denied);
}

/// All or nothing: what consume_many has leased before it is denied goes back.
#[test]
fn consume_many_is_all_or_nothing() {
    let db = leased(100);
    let mut app = db.connect_as(&db.app(), A);
    app.run("SELECT * FROM tenant_quota_consume('calls', 1)");
    assert_eq!(app.fails(r#"SELECT * FROM tenant_quota_consume_many('{"calls": 5, "seats": 11}')"#), "53400");
    assert_eq!(usage(&db), 1);
    app.run(r#"SELECT * FROM tenant_quota_consume_many('{"calls": 5, "seats": 10}')"#);
    assert_eq!(usage(&db), 6);
}

/// Units of a call that is denied after the lease they came from is over go back.
#[test]
fn a_call_that_fails_late_gives_back() {
    let db = leased(100);
    let mut app = db.connect_as(&db.app(), A);
    let mut admin = db.admin();
    // The row of `seats` is somebody else's until the lease of `calls` is over.
    let mut holder = db.connect_as(&db.app(), A);
    holder.run("BEGIN; SELECT * FROM tenant_quota_consume('seats', 10)");
    std::thread::scope(|scope| {
        let many = scope
            .spawn(|| app.fails(r#"SELECT * FROM tenant_quota_consume_many('{"calls": 5, "seats": 1}')"#));
        waiting(&mut admin, 1);
        eventually(&mut admin, "SELECT count(*) = 0 FROM tenant_leases");
        holder.run("COMMIT");
        assert_eq!(many.join().expect("an answer"), "53400");
    });
    eventually(
        &mut admin,
        &format!(
            "SELECT coalesce(sum(used), 0) = 0 FROM tenant_rls.units WHERE tenant_id = '{A}' AND resource = 'calls'"
        ),
    );
    assert_eq!(usage(&db), 0);
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_quota_invariants"), 0);
}

/// What is stored with a transaction cannot be kept here.
#[test]
fn keys_and_reservations_are_refused() {
    let db = leased(100);
    let mut app = db.connect_as(&db.app(), A);
    for call in [
        "tenant_quota_consume('calls', 1, 'k')",
        "tenant_quota_consume_many('{\"calls\": 1}', 'k')",
        "tenant_quota_reserve('calls', 1, '1 minute')",
        "tenant_quota_try_reserve('calls', 1, '1 minute')",
    ] {
        assert_eq!(app.fails(&format!("SELECT * FROM {call}")), "0A000", "{call}");
    }
    assert_eq!(usage(&db), 0);
    app.run("SELECT * FROM tenant_quota_consume('calls', 1)");
}

/// Units that were reserved before the limit was leased are settled; only then does the lease begin.
#[test]
fn reservations_end_before_a_lease_begins() {
    let db = leased(100);
    let mut admin = db.admin();
    let mut app = db.connect_as(&db.app(), A);
    admin.run("SELECT tenant_plan_limit_set('free', 'calls', 100, mode => 'escrow')");
    let held: String =
        app.one("SELECT reservation_id::text FROM tenant_quota_reserve('calls', 50, '1 hour')");
    admin.run("SELECT tenant_plan_limit_set('free', 'calls', 100, mode => 'leased')");
    assert_eq!(answer(&mut app, "tenant_quota_consume('calls', 10)")["mode"], "escrow");
    assert_eq!(answer(&mut app, &format!("tenant_quota_settle('{held}', 20)"))["used"], 30);
    let granted = answer(&mut app, "tenant_quota_consume('calls', 70)");
    assert_eq!((&granted["mode"], &granted["used"]), (&json!("leased"), &json!(100)));
}

/// Without a worker a call waits for the timeout and is denied.
#[test]
fn without_a_worker_calls_are_denied() {
    let db = leased(100);
    let mut app = db.connect_as(&db.app(), A);
    let mut admin = db.admin();
    let mut other = Db::without_extension().admin();
    eventually(
        &mut admin,
        "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE 'tenant_rls%'",
    );
    other.run(&format!("ALTER DATABASE {0} ALLOW_CONNECTIONS false", db.name()));
    admin.run("SET tenant_rls.lease_timeout = '300ms'; SET client_min_messages = error");
    admin.run(&format!("SET app.current_tenant = '{A}'"));
    let denied = answer(&mut admin, "tenant_quota_try_consume('calls')");
    assert_eq!(fields(&denied, VERDICT), json!([false, 0, 0, 100, "in_flight"]));
    other.run(&format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", db.name()));
    app.run("SELECT * FROM tenant_quota_consume('calls')");
}

/// A limit that is to be counted in another way gives back what is not used.
#[test]
fn another_mode_gives_back_what_is_unused() {
    let db = leased(1_000_000);
    let mut app = db.connect_as(&db.app(), A);
    app.run("SELECT count(*) FROM generate_series(1, 3000) AS i, tenant_quota_consume('calls', 1 + i * 0)");
    let mut admin = db.admin();
    admin.run("SELECT tenant_plan_limit_set('free', 'calls', 1000000, mode => 'escrow')");
    eventually(&mut app, "SELECT mode = 'escrow' FROM tenant_quota_check('calls')");
    assert_eq!(recorded(&mut admin, A, "calls"), 3000);
    assert_eq!(usage(&db), 3000);
}

/// A mode that changes while a call waits: what is stored with the transaction is not stored.
#[test]
fn a_reservation_that_waits_does_not_become_leased() {
    let db = leased(1000);
    let mut admin = db.admin();
    admin.run("SELECT tenant_plan_limit_set('free', 'calls', 1000, mode => 'escrow')");
    let connect = || db.connect_as(&db.app(), A);
    let (mut pins, mut reserves, mut fences) = (connect(), connect(), db.admin());
    pins.run("BEGIN; SELECT * FROM tenant_quota_consume('calls')");
    admin.run("SELECT tenant_plan_limit_set('free', 'calls', 1000, mode => 'leased')");
    std::thread::scope(|scope| {
        let fence =
            scope.spawn(|| fences.run(&format!("BEGIN; SELECT tenant_fence('{A}', '20 s'); ROLLBACK")));
        waiting(&mut admin, 1);
        let reserve = scope.spawn(|| reserves.fails("SELECT * FROM tenant_quota_reserve('calls', 5, '2 s')"));
        waiting(&mut admin, 2);
        pins.run("COMMIT");
        assert_eq!(reserve.join().expect("an answer"), "0A000");
        fence.join().expect("a fence that ends well");
    });
    assert_eq!(reserves.one::<i64>("SELECT used FROM tenant_quota_consume('calls')"), 2);
}

/// A fence keeps a lease from going back, and not the worker from going.
#[test]
fn a_fenced_lease_keeps_no_worker() {
    let (_cluster, mut client) = cluster();
    client.run(USE);
    client.run(&format!("SELECT tenant_fence('{A}')"));
    let workers = "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'tenant_rls worker'";
    eventually(&mut client, workers);
    client.run(&format!("SELECT tenant_unfence('{A}')"));
    eventually(&mut client, "SELECT count(*) = 0 FROM tenant_leases");
    assert_eq!(recorded(&mut client, A, "api_requests"), 5000);
}

/// A leased counter, acted for by a superuser.
fn cluster() -> (Cluster, Client) {
    let cluster = Cluster::start(&["shared_preload_libraries = 'tenant_rls'"]);
    let mut client = cluster.connect("postgres", "postgres");
    client.run(&format!(
        "CREATE EXTENSION tenant_rls; SELECT tenant_create('{A}');
         SELECT tenant_plan_limit_set('free', 'api_requests', 1000000, mode => 'leased')"
    ));
    let client = act(&cluster);
    (cluster, client)
}

fn act(cluster: &Cluster) -> Client {
    let mut client = cluster.connect("postgres", "postgres");
    client.run(&format!(
        "SET client_min_messages = error; SET tenant_rls.lease_timeout = '2min'; SET app.current_tenant = '{A}'"
    ));
    client
}

const USE: &str =
    "SELECT count(*) FROM generate_series(1, 5000) AS i, tenant_quota_consume('api_requests', 1 + i * 0)";

/// A clean stop gives back what was not used.
#[test]
fn a_clean_stop_strands_nothing() {
    let (cluster, mut client) = cluster();
    client.run(USE);
    drop(client);
    cluster.down();
    cluster.up();
    let mut client = act(&cluster);
    assert_eq!(recorded(&mut client, A, "api_requests"), 5000);
    assert_eq!(client.one::<i64>("SELECT used FROM tenant_quota_consume('api_requests')"), 5001);
}

/// A crash keeps every unit that was acknowledged, and strands the last chunk at most, which a view shows.
#[test]
fn a_crash_strands_a_chunk_at_most() {
    let (cluster, mut client) = cluster();
    client.run(USE);
    let at_stake: i64 = client.one("SELECT at_stake FROM tenant_leases");
    cluster.crash();
    cluster.up();
    let mut client = act(&cluster);
    let recorded = recorded(&mut client, A, "api_requests");
    assert!((5000..=5000 + at_stake).contains(&recorded), "{recorded} of 5000 with {at_stake} at stake");
    eventually(&mut client, "SELECT at_stake = 0 FROM tenant_leases");
    assert_eq!(client.one::<i64>("SELECT stranded FROM tenant_leases"), at_stake);
    assert_eq!(client.one::<i64>("SELECT used FROM tenant_quota_check('api_requests')"), recorded);
}

/// Callers that begin a new lease before any worker is back do not hide what the old one has stranded.
#[test]
fn a_new_lease_hides_nothing() {
    let (cluster, mut client) = cluster();
    client.run(USE);
    let at_stake: i64 = client.one("SELECT at_stake FROM tenant_leases");
    cluster.crash();
    cluster.up();
    let mut client = act(&cluster);
    client.run("SELECT * FROM tenant_quota_consume('api_requests')");
    eventually(&mut client, &format!("SELECT stranded = {at_stake} FROM tenant_leases"));
}

/// A lease that was used up strands nothing when it is over.
#[test]
fn a_used_up_lease_strands_nothing() {
    let (_cluster, mut client) = cluster();
    client.run("SELECT tenant_plan_limit_set('free', 'api_requests', 5000, mode => 'leased')");
    client.run(USE);
    eventually(&mut client, "SELECT count(*) = 0 FROM tenant_leases");
}

/// What a worker that somebody ends has given back is folded by another one, without anybody calling.
#[test]
fn an_ended_worker_leaves_nothing_undone() {
    let (_cluster, mut client) = cluster();
    client.run(USE);
    let end = "SELECT bool_or(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE backend_type = 'tenant_rls worker'";
    assert!(client.one::<bool>(end));
    eventually(&mut client, "SELECT count(*) = 0 FROM tenant_rls.ledger");
    assert_eq!(client.one::<i64>("SELECT used FROM tenant_rls.usage"), 5000);
}

/// A worker whose transaction fails hands out nothing that is not written, loses nothing, and says what was wrong.
#[test]
fn a_failed_worker_loses_nothing() {
    let (_cluster, mut client) = cluster();
    client.run(USE);
    client.run("ALTER TABLE tenant_rls.leases ADD CONSTRAINT never_over CHECK (chunk > 0) NOT VALID");
    eventually(
        &mut client,
        "SELECT failed_at IS NOT NULL AND failure LIKE '%never_over%' FROM tenant_worker_status()",
    );
    client.run("ALTER TABLE tenant_rls.leases DROP CONSTRAINT never_over");
    eventually(&mut client, "SELECT count(*) = 0 FROM tenant_leases");
    assert_eq!(recorded(&mut client, A, "api_requests"), 5000);
    assert_eq!(client.one::<i64>("SELECT used FROM tenant_quota_consume('api_requests')"), 5001);
    assert_eq!(client.one::<i64>("SELECT count(*) FROM tenant_quota_invariants"), 0);
}

/// Who cancels a worker that waits for its standby changes nothing: what only this server knows is not handed out.
#[test]
fn a_worker_cannot_be_cancelled() {
    let (_cluster, mut client) = cluster();
    client.run("SET synchronous_commit = local");
    client.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    client.run("SELECT pg_reload_conf()");
    eventually(&mut client, "SELECT current_setting('synchronous_standby_names') = 'nobody'");
    client.run("SET tenant_rls.lease_timeout = '300ms'");
    let denied = "SELECT reason = 'in_flight' FROM tenant_quota_try_consume('api_requests')";
    eventually(&mut client, denied);
    let waiting = "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'tenant_rls worker' AND wait_event = 'SyncRep'";
    eventually(&mut client, waiting);
    client
        .run("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'tenant_rls worker'");
    assert!(client.one::<bool>(denied));
    assert!(client.one::<bool>(waiting));
    client.run("ALTER SYSTEM RESET synchronous_standby_names");
    client.run("SELECT pg_reload_conf()");
    eventually(&mut client, "SELECT allowed FROM tenant_quota_try_consume('api_requests')");
}

/// A launcher that somebody ends is started again.
#[test]
fn an_ended_launcher_comes_back() {
    let (_cluster, mut client) = cluster();
    let end = "SELECT bool_or(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
               WHERE backend_type IN ('tenant_rls launcher', 'tenant_rls worker')";
    assert!(client.one::<bool>(end));
    client.run("SELECT * FROM tenant_quota_consume('api_requests')");
}

/// Nobody drops a database in vain for a worker of ours, and a dropped extension ends its work.
#[test]
fn workers_stand_in_nobodys_way() {
    let db = leased(1000);
    let mut app = db.connect_as(&db.app(), A);
    app.run("SELECT * FROM tenant_quota_consume('calls')");
    let mut admin = db.admin();
    admin.run("DROP EXTENSION tenant_rls CASCADE");
    std::thread::sleep(Duration::from_millis(1500));
    admin.run("CREATE EXTENSION tenant_rls");
    drop((app, admin));
    Db::new().admin().run(&format!("DROP DATABASE {}", db.name()));
}
