//! Idempotency keys: a request that comes twice takes its units once.

use std::thread;

use postgres::Client;
use serde_json::{Value, json};

use super::concurrent::{CONNECTIONS, in_parallel};
use super::{app, fields, limited, without_worker};
use crate::harness::{A, B, Db, Session, answer, recorded, refuses, waiting};

/// The keys that are stored for a tenant; for superusers.
fn stored(db: &Db, tenant: &str) -> i64 {
    db.admin().one(&format!("SELECT count(*) FROM tenant_rls.idempotency_keys WHERE tenant_id = '{tenant}'"))
}

/// The same request is answered as before, with another reason, and takes nothing.
#[test]
fn a_repeated_call_is_answered_as_before() {
    let (db, mut app) = app();
    let mut first = answer(&mut app, "tenant_quota_consume('calls', 3, 'k')");
    assert_eq!(first["reason"], "ok");
    app.run("SELECT * FROM tenant_quota_consume('calls', 2)");
    first["reason"] = json!("replay");
    for function in ["tenant_quota_consume", "tenant_quota_try_consume"] {
        assert_eq!(answer(&mut app, &format!("{function}('calls', 3, 'k')")), first, "{function}");
    }
    assert_eq!(recorded(&mut db.admin(), A, "calls"), 5);
}

/// The answer of a resource with a period comes back with it.
#[test]
fn a_repeated_call_answers_its_period() {
    let (_db, mut app) = app();
    let mut first = answer(&mut app, "tenant_quota_try_consume('api_requests', 3, 'k')");
    first["reason"] = json!("replay");
    assert!(first["resets_at"].is_string());
    assert_eq!(answer(&mut app, "tenant_quota_try_consume('api_requests', 3, 'k')"), first);
}

/// A repeated call is answered at the limit too: its units are there.
#[test]
fn a_repeated_call_needs_no_room() {
    let (_db, mut app) = app();
    app.run(
        "SELECT * FROM tenant_quota_consume('calls', 4, 'k'); SELECT * FROM tenant_quota_consume('calls', 6)",
    );
    let again = answer(&mut app, "tenant_quota_consume('calls', 4, 'k')");
    assert_eq!(fields(&again, &["allowed", "granted", "reason"]), json!([true, 4, "replay"]));
    assert_eq!(app.fails("SELECT * FROM tenant_quota_consume('calls', 4, 'another')"), "53400");
}

/// A key belongs to one request: other amounts, resources and functions are refused, and change nothing.
#[test]
fn another_request_with_the_key_is_refused() {
    let (db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('calls', 3, 'k')");
    refuses(
        &mut app,
        &[
            ("SELECT * FROM tenant_quota_consume('calls', 2, 'k')", "22023"),
            ("SELECT * FROM tenant_quota_consume('calls', 0, 'k')", "22023"),
            ("SELECT * FROM tenant_quota_try_consume('seats', 3, 'k')", "22023"),
            ("SELECT * FROM tenant_quota_consume_many('{\"calls\": 3}', 'k')", "22023"),
            ("SELECT * FROM tenant_quota_reserve('calls', 3, '1 minute', 'k')", "22023"),
        ],
    );
    assert_eq!((recorded(&mut db.admin(), A, "calls"), stored(&db, A)), (3, 1));
    assert_eq!(answer(&mut app, "tenant_quota_consume('calls', 3, 'k')")["reason"], "replay");
}

/// Several resources are one request, whose answers come back in the same order.
#[test]
fn a_repeated_consume_many_is_answered_as_before() {
    let (db, mut app) = app();
    let mut call = |amounts: &str| -> Vec<(String, i64, String)> {
        let sql = format!("SELECT resource, used, reason FROM tenant_quota_consume_many('{amounts}', 'k')");
        app.rows(&sql).iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    };
    let expected =
        |reason: &str| vec![("calls".into(), 2, reason.into()), ("seats".into(), 1, reason.into())];
    assert_eq!(call("{\"seats\": 1, \"calls\": 2}"), expected("ok"));
    assert_eq!(call("{\"calls\": 2, \"seats\": 1}"), expected("replay"));
    assert_eq!(app.fails("SELECT * FROM tenant_quota_consume_many('{\"calls\": 2}', 'k')"), "22023");
    assert_eq!((recorded(&mut db.admin(), A, "calls"), recorded(&mut db.admin(), A, "seats")), (2, 1));
}

/// A denied call is stored by neither function: the same request is decided anew.
#[test]
fn a_denied_call_can_be_tried_again() {
    let (db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('seats', 10)");
    assert_eq!(answer(&mut app, "tenant_quota_try_consume('seats', 1, 'k')")["allowed"], false);
    assert_eq!(app.fails("SELECT * FROM tenant_quota_consume('seats', 1, 'k')"), "53400");
    assert_eq!(stored(&db, A), 0);
    app.run("SELECT * FROM tenant_quota_release('seats', 1)");
    let taken = answer(&mut app, "tenant_quota_consume('seats', 1, 'k')");
    assert_eq!(fields(&taken, &["granted", "reason"]), json!([1, "ok"]));
}

/// Keys of one tenant say nothing about those of another.
#[test]
fn keys_belong_to_a_tenant() {
    let (db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('calls', 3, 'k')");
    let mut other = db.connect_as(&db.app(), B);
    assert_eq!(answer(&mut other, "tenant_quota_consume('calls', 5, 'k')")["reason"], "ok");
    assert_eq!((stored(&db, A), stored(&db, B)), (1, 1));
}

/// Texts that are no keys.
#[test]
fn bad_keys_are_refused() {
    let (_db, mut app) = app();
    for (key, state) in [("''", "22023"), ("repeat('k', 256)", "22023"), ("repeat('ü', 128)", "22023")] {
        for call in ["tenant_quota_consume('calls', 1, {})", "tenant_quota_reserve('calls', 1, '1 s', {})"] {
            let call = call.replace("{}", key);
            assert_eq!(app.fails(&format!("SELECT * FROM {call}")), state, "{call}");
        }
    }
    for key in ["NULL", "' '", "repeat('k', 255)"] {
        app.run(&format!("SELECT * FROM tenant_quota_consume('calls', 1, {key})"));
    }
}

/// A rollback, to a savepoint too, takes the answer back with the units.
#[test]
fn a_rollback_forgets_the_answer() {
    let (db, mut app) = app();
    app.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 3, 'k'); ROLLBACK");
    assert_eq!(stored(&db, A), 0);
    app.run("BEGIN; SAVEPOINT s; SELECT * FROM tenant_quota_consume('calls', 3, 'k'); ROLLBACK TO s");
    assert_eq!(answer(&mut app, "tenant_quota_consume('calls', 3, 'k')")["reason"], "ok");
    assert_eq!(answer(&mut app, "tenant_quota_consume('calls', 3, 'k')")["reason"], "replay");
    app.run("COMMIT");
    assert_eq!((recorded(&mut db.admin(), A, "calls"), stored(&db, A)), (3, 1));
}

/// A key lives until the period ends, and at least a day; then it is as new.
#[test]
fn a_key_expires() {
    let (db, mut app) = app();
    db.admin().run(
        "SELECT tenant_resource_define('hourly', 'counter', 'call', 'hour'), tenant_plan_limit_set('free', 'hourly', 10)",
    );
    for (resource, until) in [
        ("hourly", "clock_timestamp() + interval '24 hours'"),
        (
            "api_requests",
            "greatest(date_trunc('month', now(), 'UTC') + interval '1 month', clock_timestamp() + interval '24 hours')",
        ),
    ] {
        app.run(&format!("SELECT * FROM tenant_quota_consume('{resource}', 3, '{resource}')"));
        let right: bool = db.admin().one(&format!(
            "SELECT abs(extract(epoch FROM expires_at - ({until}))) < 60 FROM tenant_rls.idempotency_keys WHERE key = '{resource}'"
        ));
        assert!(right, "{resource}");
    }
    db.admin().run("UPDATE tenant_rls.idempotency_keys SET expires_at = clock_timestamp()");
    assert_eq!(answer(&mut app, "tenant_quota_consume('hourly', 2, 'hourly')")["reason"], "ok");
    assert_eq!(answer(&mut app, "tenant_quota_consume('hourly', 2, 'hourly')")["reason"], "replay");
    assert_eq!(recorded(&mut db.admin(), A, "hourly"), 5);
}

/// Sixteen sessions with one key: one takes the units, all are answered the same.
#[test]
fn sixteen_sessions_with_one_key_take_once() {
    for level in ["READ COMMITTED", "REPEATABLE READ"] {
        let db = limited();
        let taken = in_parallel(&db, CONNECTIONS, |client, random| {
            // The first statement takes the snapshot, so that others can be in between.
            client.run(&format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_class"));
            if random.below(4) == 0 {
                client.run("SAVEPOINT s; SELECT * FROM tenant_quota_consume('calls', 3, 'k'); ROLLBACK TO s");
            }
            let answer = answer(client, "tenant_quota_try_consume('calls', 3, 'k')");
            assert_eq!(fields(&answer, &["allowed", "granted", "used"]), json!([true, 3, 3]));
            client.run("COMMIT");
            i64::from(answer["reason"] == "ok")
        });
        assert_eq!((taken, recorded(&mut db.admin(), A, "calls"), stored(&db, A)), (1, 3, 1), "{level}");
    }
}

/// A call waits for an undecided one with its key: committed it is replayed, rolled back it is made.
#[test]
fn a_call_waits_for_an_undecided_one_with_its_key() {
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        for (end, reason) in [("COMMIT", "replay"), ("ROLLBACK", "ok")] {
            let db = limited();
            let mut first = db.connect_as(&db.app(), A);
            first.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 3, 'k')");
            thread::scope(|scope| {
                let second = scope.spawn(|| -> Value {
                    let mut second: Client = db.connect_as(&db.app(), A);
                    second.run(&format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_class"));
                    let answer = answer(&mut second, "tenant_quota_consume('calls', 3, 'k')");
                    second.run("COMMIT");
                    answer
                });
                waiting(&mut db.admin(), 1);
                first.run(end);
                assert_eq!(second.join().expect("an answer")["reason"], reason, "{level} {end}");
            });
            assert_eq!(recorded(&mut db.admin(), A, "calls"), 3, "{level} {end}");
        }
    }
}

/// A denied call and a replay leave the key to others while their transactions go on.
#[test]
fn only_a_call_that_took_units_holds_the_key() {
    let db = limited();
    let mut first = db.connect_as(&db.app(), A);
    first.run("SELECT * FROM tenant_quota_consume('calls', 8, 'k')");
    first.run("BEGIN");
    assert_eq!(answer(&mut first, "tenant_quota_try_consume('calls', 3, 'denied')")["allowed"], false);
    assert_eq!(answer(&mut first, "tenant_quota_consume('calls', 8, 'k')")["reason"], "replay");
    let mut second = db.connect_as(&db.app(), A);
    second.run("SET lock_timeout = '5s'");
    assert_eq!(answer(&mut second, "tenant_quota_consume('calls', 8, 'k')")["reason"], "replay");
    assert_eq!(answer(&mut second, "tenant_quota_try_consume('calls', 3, 'denied')")["allowed"], false);
}

/// Who may not write, or not act at all, is answered nothing, although the answer is there.
#[test]
fn a_replay_is_for_those_who_may_write() {
    let (db, mut app) = app();
    let call = "SELECT * FROM tenant_quota_consume('calls', 3, 'k')";
    app.run(call);
    app.run("BEGIN READ ONLY");
    assert_eq!(app.fails(call), "25006");
    app.run("ROLLBACK");
    for (block, state, unblock) in
        [("tenant_fence", "25006", "tenant_unfence"), ("tenant_suspend", "55000", "tenant_resume")]
    {
        db.admin().run(&format!("SELECT {block}('{A}')"));
        assert_eq!(app.fails(call), state);
        db.admin().run(&format!("SELECT {unblock}('{A}')"));
        app.run(call);
    }
}

/// Answers that are kept no longer are swept up; those of a fenced tenant, and what others have locked, stay.
#[test]
fn old_answers_are_swept_up() {
    let (db, mut app) = app();
    let _blocker = without_worker(&db);
    app.run("SELECT tenant_quota_consume('calls', 1, k) FROM unnest(ARRAY['a', 'b', 'c']) AS k");
    db.connect_as(&db.app(), B).run("SELECT * FROM tenant_quota_consume('calls', 1, 'b')");
    let mut admin = db.admin();
    assert_eq!(admin.one::<i64>("SELECT tenant_rls.quota_sweep()"), 0);
    admin.run(&format!("UPDATE tenant_rls.idempotency_keys SET expires_at = clock_timestamp() WHERE key <> 'c'; SELECT tenant_fence('{B}')"));
    let mut other = db.admin();
    other.run(
        "BEGIN; SELECT FROM tenant_rls.idempotency_keys WHERE key = 'a' FOR UPDATE; SET lock_timeout = '5s'",
    );
    admin.run("SET lock_timeout = '5s'");
    assert_eq!(admin.one::<i64>("SELECT tenant_rls.quota_sweep(10)"), 1);
    assert_eq!((stored(&db, A), stored(&db, B)), (2, 1));
    other.run("COMMIT");
    admin.run(&format!("SELECT tenant_unfence('{B}')"));
    assert_eq!(admin.one::<i64>("SELECT tenant_rls.quota_sweep(1)"), 1);
    assert_eq!(admin.one::<i64>("SELECT tenant_rls.quota_sweep(1)"), 1);
    assert_eq!(admin.one::<String>("SELECT string_agg(key, '') FROM tenant_rls.idempotency_keys"), "c");
    refuses(
        &mut admin,
        &[("SELECT tenant_rls.quota_sweep(0)", "22023"), ("SELECT tenant_rls.quota_sweep(NULL)", "22004")],
    );
    assert_eq!(app.fails("SELECT tenant_rls.quota_sweep()"), "42501");
}
