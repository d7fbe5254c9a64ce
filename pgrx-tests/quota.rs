//! Quotas: what one session is answered. See [`concurrent`] for several, [`escrow`] and [`leased`] for the modes in shared
//! memory, [`time`] for periods, [`idempotency`] for requests that come twice, [`reservation`] for units that are held,
//! [`events`] for thresholds, [`impact`] for dry runs, [`invariants`] for what must never disagree.

pub mod concurrent;
mod escrow;
mod events;
mod idempotency;
mod impact;
mod invariants;
mod leased;
mod reservation;
mod time;

use postgres::Client;
use serde_json::{Value, json};

use crate::harness::{A, B, Db, Session, answer, recorded, refuses, report};

/// Tenants A and B on plan free, which has 10 of the counter `calls` and of the gauge `seats`, neither with a
/// period, 20 of each on plan starter, and a role that may act for both.
fn limited() -> Db {
    let db = Db::new();
    let app = db.app();
    db.role(&app, "LOGIN");
    db.admin().run(&format!(
        "SELECT tenant_resource_define('calls', 'counter', 'call', 'none'),
             tenant_resource_define('seats', 'gauge', 'seat', 'none');
         SELECT tenant_plan_limit_set('free', r, 10, mode => 'strict'), tenant_plan_limit_set('starter', r, 20, mode => 'strict')
         FROM unnest(ARRAY['calls', 'seats']) AS r;
         SELECT tenant_create('{A}'), tenant_create('{B}');
         SELECT tenant_grant('{app}')"
    ));
    db
}

/// A database as [`limited`] makes it, and a session of its application for tenant A.
fn app() -> (Db, Client) {
    let db = limited();
    let client = db.connect_as(&db.app(), A);
    (db, client)
}

/// Keeps the worker of a database away, until the session that this answers with ends.
fn without_worker(db: &Db) -> Client {
    let mut blocker = db.admin();
    blocker.run("BEGIN; LOCK TABLE tenant_rls.leases IN SHARE MODE");
    blocker
}

/// Fields of an answer, in the order asked for.
fn fields(answer: &Value, names: &[&str]) -> Value {
    names.iter().map(|name| answer[name].clone()).collect()
}

/// What decides, and what is left.
const VERDICT: &[&str] = &["allowed", "granted", "used", "remaining", "reason"];

/// Every field of the answer to an allowed call.
#[test]
fn consume_answers_every_field() {
    let (_db, mut app) = app();
    assert_eq!(
        answer(&mut app, "tenant_quota_consume('calls', 3)"),
        json!({
            "allowed": true, "granted": 3, "resource": "calls", "used": 3, "held": 0, "quota_limit": 10, "remaining": 7,
            "period_start": null, "resets_at": null, "retry_after": null, "reason": "ok", "source": "plan",
            "enforcement": "hard", "mode": "strict", "reservation_id": null,
        })
    );
}

/// Every field of the answer to a denied call; it takes nothing.
#[test]
fn try_consume_answers_every_field() {
    let (_db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_try_consume('calls', 8)");
    let denied = json!({
        "allowed": false, "granted": 0, "resource": "calls", "used": 8, "held": 0, "quota_limit": 10, "remaining": 2,
        "period_start": null, "resets_at": null, "retry_after": null, "reason": "limit", "source": "plan",
        "enforcement": "hard", "mode": "strict", "reservation_id": null,
    });
    assert_eq!(answer(&mut app, "tenant_quota_try_consume('calls', 3)"), denied);
    assert_eq!(answer(&mut app, "tenant_quota_try_consume('calls', 3)"), denied);
    assert_eq!(answer(&mut app, "tenant_quota_try_consume('calls', 2)")["allowed"], true);
}

/// A denied call of a resource with a period says when to come back.
#[test]
fn a_denial_says_when_the_period_ends() {
    let (_db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('api_requests', 10000)");
    let sound: bool = app.one(
        "SELECT NOT allowed AND retry_after > '0' AND abs(extract(epoch FROM clock_timestamp() + retry_after - resets_at)) < 60
         FROM tenant_quota_try_consume('api_requests')",
    );
    assert!(sound);
}

/// The amount is 1 unless said.
#[test]
fn the_amount_defaults_to_one() {
    let (_db, mut app) = app();
    app.run(
        "SELECT * FROM tenant_quota_consume('calls'); SELECT * FROM tenant_quota_try_consume('calls');
         SELECT * FROM tenant_quota_consume('seats', 2); SELECT * FROM tenant_quota_release('seats')",
    );
    assert_eq!(answer(&mut app, "tenant_quota_check('calls')")["used"], 2);
    assert_eq!(answer(&mut app, "tenant_quota_check('seats')")["used"], 1);
}

/// A check answers what try_consume would, and takes nothing.
#[test]
fn check_is_a_peek() {
    let (db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('calls', 8)");
    for (amount, expected) in [
        (2, json!([true, 0, 8, 2, "ok"])),
        (3, json!([false, 0, 8, 2, "limit"])),
        (11, json!([false, 0, 8, 2, "amount_exceeds_limit"])),
    ] {
        let checked = answer(&mut app, &format!("tenant_quota_check('calls', {amount})"));
        assert_eq!(fields(&checked, VERDICT), expected);
    }
    assert_eq!(recorded(&mut db.admin(), A, "calls"), 8);
}

/// A check works where nothing can be written.
#[test]
fn check_works_in_a_read_only_transaction() {
    let (_db, mut app) = app();
    app.run("BEGIN READ ONLY; SELECT * FROM tenant_quota_check('calls'); COMMIT");
}

/// Released units of a gauge can be taken again.
#[test]
fn release_gives_back() {
    let (_db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('seats', 10)");
    let released = answer(&mut app, "tenant_quota_release('seats', 4)");
    assert_eq!(fields(&released, VERDICT), json!([true, 4, 6, 4, "ok"]));
    let taken = answer(&mut app, "tenant_quota_consume('seats', 4)");
    assert_eq!(fields(&taken, VERDICT), json!([true, 4, 10, 0, "ok"]));
}

/// A counter gives nothing back, a gauge not more than is used.
#[test]
fn release_refuses() {
    let (_db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('calls', 5); SELECT * FROM tenant_quota_consume('seats', 5)");
    refuses(
        &mut app,
        &[
            ("SELECT * FROM tenant_quota_release('calls')", "22023"),
            ("SELECT * FROM tenant_quota_release('seats', 6)", "22023"),
            ("SELECT * FROM tenant_quota_release('seats', -1)", "22023"),
            ("SELECT * FROM tenant_quota_release('seats', NULL)", "22004"),
            ("SELECT * FROM tenant_quota_release('projects')", "22023"),
        ],
    );
    assert_eq!(answer(&mut app, "tenant_quota_release('seats', 5)")["used"], 0);
}

/// A denied consume is 53400, with the facts as JSON in DETAIL and advice in HINT.
#[test]
fn a_denied_consume_tells_the_facts() {
    let (_db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('calls', 9)");
    let error = report(&mut app, "SELECT * FROM tenant_quota_consume('calls', 2)");
    assert_eq!(error.code().code(), "53400");
    assert!(error.hint().is_some());
    let detail: Value = serde_json::from_str(error.detail().expect("a detail")).expect("JSON");
    assert_eq!(
        detail,
        json!({
            "tenant": A, "resource": "calls", "quota_limit": 10, "used": 9, "requested": 2, "resets_at": null,
            "retry_after": null,
        })
    );
}

/// The facts of a resource with a period: an instant that SQL reads, and whole seconds.
#[test]
fn a_denied_consume_tells_when_to_come_back() {
    let (_db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('api_requests', 10000)");
    let error = report(&mut app, "SELECT * FROM tenant_quota_consume('api_requests')");
    let detail: Value = serde_json::from_str(error.detail().expect("a detail")).expect("JSON");
    assert!(detail["retry_after"].as_i64().is_some_and(|seconds| seconds > 0), "{detail}");
    let resets_at = detail["resets_at"].as_str().expect("an instant");
    let right: bool =
        app.one(&format!("SELECT resets_at = '{resets_at}' FROM tenant_quota_check('api_requests')"));
    assert!(right);
}

/// Amounts that no call takes.
#[test]
fn bad_amounts_are_refused() {
    let (db, mut app) = app();
    for function in ["tenant_quota_consume", "tenant_quota_try_consume", "tenant_quota_check"] {
        refuses(
            &mut app,
            &[
                (&format!("SELECT * FROM {function}('calls', -1)"), "22023"),
                (&format!("SELECT * FROM {function}('calls', -9223372036854775808)"), "22023"),
                (&format!("SELECT * FROM {function}('calls', NULL)"), "22004"),
                (&format!("SELECT * FROM {function}(NULL)"), "22004"),
                (&format!("SELECT * FROM {function}('cows')"), "42704"),
            ],
        );
        app.run(&format!("SELECT * FROM {function}('calls', 1)"));
    }
    assert_eq!(recorded(&mut db.admin(), A, "calls"), 2);
}

/// An amount of 0 looks and takes nothing, at the limit and above it too.
#[test]
fn an_amount_of_zero_is_a_peek() {
    let (db, mut app) = app();
    for call in ["tenant_quota_consume('seats', 0)", "tenant_quota_release('seats', 0)"] {
        assert_eq!(fields(&answer(&mut app, call), VERDICT), json!([true, 0, 0, 10, "ok"]));
    }
    assert_eq!(db.admin().one::<i64>("SELECT count(*) FROM tenant_rls.usage"), 0);
    app.run("SELECT * FROM tenant_quota_consume('seats', 10)");
    for call in ["tenant_quota_consume('seats', 0)", "tenant_quota_try_consume('seats', 0)"] {
        assert_eq!(fields(&answer(&mut app, call), VERDICT), json!([true, 0, 10, 0, "ok"]));
    }
}

/// The largest amounts neither overflow nor pass a limit.
#[test]
fn the_largest_amounts_do_not_overflow() {
    let (db, mut app) = app();
    const MAX: i64 = i64::MAX;
    let denied = answer(&mut app, &format!("tenant_quota_try_consume('calls', {MAX})"));
    assert_eq!(fields(&denied, VERDICT), json!([false, 0, 0, 10, "amount_exceeds_limit"]));
    db.admin().run(&format!(
        "SELECT tenant_quota_set('{A}', 'calls', {MAX}), tenant_quota_set('{A}', 'seats', NULL, true)"
    ));
    for resource in ["calls", "seats"] {
        app.run(&format!("SELECT * FROM tenant_quota_consume('{resource}', {MAX} - 1)"));
        assert_eq!(app.fails(&format!("SELECT * FROM tenant_quota_consume('{resource}', 2)")), "53400");
        assert_eq!(answer(&mut app, &format!("tenant_quota_consume('{resource}', 1)"))["used"], MAX);
        assert_eq!(app.fails(&format!("SELECT * FROM tenant_quota_consume('{resource}', {MAX})")), "53400");
    }
}

/// Unlimited units are granted and counted.
#[test]
fn unlimited_is_metered() {
    let (db, mut app) = app();
    db.admin()
        .run("SELECT tenant_plan_limit_set('free', 'calls', NULL, unlimited => true, mode => 'strict')");
    let granted = answer(&mut app, "tenant_quota_consume('calls', 1000000)");
    assert_eq!(fields(&granted, VERDICT), json!([true, 1000000, 1000000, null, "unlimited"]));
    assert_eq!(granted["quota_limit"], Value::Null);
    assert_eq!(recorded(&mut db.admin(), A, "calls"), 1000000);
}

/// A limit of 0 means none.
#[test]
fn a_limit_of_zero_means_none() {
    let (db, mut app) = app();
    db.admin().run("SELECT tenant_plan_limit_set('free', 'calls', 0, mode => 'strict')");
    let denied = answer(&mut app, "tenant_quota_try_consume('calls', 1)");
    assert_eq!(fields(&denied, VERDICT), json!([false, 0, 0, 0, "amount_exceeds_limit"]));
    assert_eq!(app.fails("SELECT * FROM tenant_quota_consume('calls')"), "53400");
}

/// More than the whole limit has its own reason: waiting does not help.
#[test]
fn an_amount_above_the_whole_limit_says_so() {
    let (_db, mut app) = app();
    let reason = |app: &mut Client, amount| {
        answer(app, &format!("tenant_quota_try_consume('calls', {amount})"))["reason"].clone()
    };
    assert_eq!(reason(&mut app, 11), "amount_exceeds_limit");
    assert_eq!(reason(&mut app, 10), "ok");
    assert_eq!(reason(&mut app, 10), "limit");
}

/// Without a tenant there is nobody to count for.
#[test]
fn no_tenant_is_an_error() {
    let db = limited();
    let mut app = db.connect(&db.app());
    let calls = [
        "SELECT * FROM tenant_quota_consume('calls')",
        "SELECT * FROM tenant_quota_try_consume('calls')",
        "SELECT * FROM tenant_quota_check('calls')",
        "SELECT * FROM tenant_quota_release('seats', 0)",
        "SELECT * FROM tenant_quota_consume_many('{\"calls\": 1}')",
    ];
    for call in calls {
        assert_eq!(app.fails(call), "55000", "{call}");
    }
    app.run(&format!("SET app.current_tenant = '{A}'"));
    for call in calls {
        app.run(call);
    }
}

/// A suspended tenant uses nothing.
#[test]
fn a_suspended_tenant_is_refused() {
    let (db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('calls')");
    db.admin().run(&format!("SELECT tenant_suspend('{A}')"));
    assert_eq!(app.fails("SELECT * FROM tenant_quota_consume('calls')"), "55000");
    assert_eq!(app.fails("SELECT * FROM tenant_quota_check('calls')"), "55000");
}

/// A fenced tenant looks, and changes nothing.
#[test]
fn a_fenced_tenant_is_read_only() {
    let (db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('seats', 5)");
    db.admin().run(&format!("SELECT tenant_fence('{A}')"));
    let calls = [
        "SELECT * FROM tenant_quota_consume('seats')",
        "SELECT * FROM tenant_quota_try_consume('seats')",
        "SELECT * FROM tenant_quota_release('seats')",
        "SELECT * FROM tenant_quota_consume_many('{\"seats\": 1}')",
    ];
    for call in calls {
        assert_eq!(app.fails(call), "25006", "{call}");
    }
    assert_eq!(answer(&mut app, "tenant_quota_check('seats')")["used"], 5);
    db.admin().run(&format!("SELECT tenant_unfence('{A}')"));
    for call in calls {
        app.run(call);
    }
}

/// A read-only transaction takes and gives nothing; a peek works.
#[test]
fn a_read_only_transaction_is_refused() {
    let (_db, mut app) = app();
    for call in [
        "SELECT * FROM tenant_quota_consume('seats')",
        "SELECT * FROM tenant_quota_try_consume('seats')",
        "SELECT * FROM tenant_quota_release('seats')",
        "SELECT * FROM tenant_quota_consume_many('{\"seats\": 1}')",
    ] {
        assert_eq!(app.fails(&format!("BEGIN READ ONLY; {call}")), "25006", "{call}");
        app.run("ROLLBACK; BEGIN READ ONLY; SELECT * FROM tenant_quota_consume('seats', 0); COMMIT");
        app.run("SELECT * FROM tenant_quota_consume('seats')");
    }
}

/// Soft counts above the limit, and says so.
#[test]
fn a_soft_limit_never_denies() {
    let (db, mut app) = app();
    db.admin()
        .run("SELECT tenant_plan_limit_set('free', 'calls', 10, enforcement => 'soft', mode => 'strict')");
    let within = answer(&mut app, "tenant_quota_consume('calls', 9)");
    assert_eq!(fields(&within, VERDICT), json!([true, 9, 9, 1, "ok"]));
    let above = answer(&mut app, "tenant_quota_consume('calls', 20)");
    assert_eq!(fields(&above, VERDICT), json!([true, 20, 29, 0, "soft"]));
    assert_eq!(above["enforcement"], "soft");
}

/// Shadow says what a hard limit would have denied, and denies nothing.
#[test]
fn a_shadow_limit_never_denies() {
    let (db, mut app) = app();
    db.admin()
        .run("SELECT tenant_plan_limit_set('free', 'calls', 10, enforcement => 'shadow', mode => 'strict')");
    app.run("SELECT * FROM tenant_quota_consume('calls', 10)");
    let above = answer(&mut app, "tenant_quota_try_consume('calls')");
    assert_eq!(fields(&above, VERDICT), json!([true, 1, 11, 0, "shadow"]));
    assert_eq!(above["enforcement"], "shadow");
}

/// A rollback gives back.
#[test]
fn rollback_gives_back() {
    let (db, mut app) = app();
    app.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 7); ROLLBACK");
    assert_eq!(recorded(&mut db.admin(), A, "calls"), 0);
    app.run("SELECT * FROM tenant_quota_consume('calls', 10)");
}

/// ROLLBACK TO a savepoint gives back what was taken since, and no more.
#[test]
fn rollback_to_a_savepoint_gives_back() {
    let (db, mut app) = app();
    app.run(
        "BEGIN; SELECT * FROM tenant_quota_consume('calls', 1);
         SAVEPOINT s; SELECT * FROM tenant_quota_consume('calls', 2);
         SAVEPOINT t; SELECT * FROM tenant_quota_consume('calls', 4); RELEASE t;
         ROLLBACK TO s; SELECT * FROM tenant_quota_consume('calls', 1); COMMIT",
    );
    assert_eq!(recorded(&mut db.admin(), A, "calls"), 2);
}

/// An exception block gives back what was taken inside, a denied call in it included.
#[test]
fn an_exception_block_gives_back() {
    let (db, mut app) = app();
    app.run(
        "DO $$ BEGIN
             PERFORM tenant_quota_consume('calls', 1);
             BEGIN
                 PERFORM tenant_quota_consume('calls', 5);
                 PERFORM tenant_quota_consume('calls', 5);
             EXCEPTION WHEN configuration_limit_exceeded THEN NULL;
             END;
             PERFORM tenant_quota_consume('calls', 9);
         END $$",
    );
    assert_eq!(recorded(&mut db.admin(), A, "calls"), 10);
}

/// The caller's own uncommitted units count for the caller.
#[test]
fn uncommitted_units_count_for_their_session() {
    let (_db, mut app) = app();
    app.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 6)");
    assert_eq!(answer(&mut app, "tenant_quota_check('calls', 5)")["allowed"], false);
    let taken = answer(&mut app, "tenant_quota_try_consume('calls', 4)");
    assert_eq!(fields(&taken, VERDICT), json!([true, 4, 10, 0, "ok"]));
}

/// Consumption survives PREPARE TRANSACTION, and counts with COMMIT PREPARED.
#[test]
fn a_prepared_transaction_carries_its_units() {
    let (db, mut app) = app();
    let gid = db.name();
    app.run(&format!("BEGIN; SELECT * FROM tenant_quota_consume('calls', 4); PREPARE TRANSACTION '{gid}'"));
    let mut admin = db.admin();
    assert_eq!(recorded(&mut admin, A, "calls"), 0);
    admin.run(&format!("COMMIT PREPARED '{gid}'"));
    assert_eq!(recorded(&mut admin, A, "calls"), 4);
    app.run(&format!("BEGIN; SELECT * FROM tenant_quota_consume('calls', 6); PREPARE TRANSACTION '{gid}'"));
    admin.run(&format!("ROLLBACK PREPARED '{gid}'"));
    assert_eq!(answer(&mut app, "tenant_quota_consume('calls', 6)")["used"], 10);
}

/// An own limit wins over the plan's, above and below it, and shows itself.
#[test]
fn an_override_wins_over_the_plan() {
    let (db, mut app) = app();
    let mut admin = db.admin();
    for limit in [12, 5] {
        admin.run(&format!("SELECT tenant_quota_set('{A}', 'calls', {limit})"));
        let checked = answer(&mut app, "tenant_quota_check('calls')");
        assert_eq!(fields(&checked, &["quota_limit", "source"]), json!([limit, "override"]));
    }
    assert_eq!(app.fails("SELECT * FROM tenant_quota_consume('calls', 6)"), "53400");
    app.run(&format!("SELECT * FROM tenant_quota_consume('calls', 5); SET app.current_tenant = '{B}'"));
    let other = answer(&mut app, "tenant_quota_check('calls')");
    assert_eq!(fields(&other, &["quota_limit", "source"]), json!([10, "plan"]));
}

/// Without its own limit a tenant has that of its plan again.
#[test]
fn an_override_can_be_unset() {
    let (db, mut app) = app();
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_quota_set('{A}', 'calls', NULL, unlimited => true)"));
    let checked = answer(&mut app, "tenant_quota_check('calls')");
    assert_eq!(
        fields(&checked, &["quota_limit", "source", "reason"]),
        json!([null, "override", "unlimited"])
    );
    admin.run(&format!("SELECT tenant_quota_unset('{A}', 'calls')"));
    let checked = answer(&mut app, "tenant_quota_check('calls')");
    assert_eq!(fields(&checked, &["quota_limit", "source", "reason"]), json!([10, "plan", "ok"]));
}

/// An own limit of a resource that the plan does not know holds, and ends in none, not in unlimited.
#[test]
fn an_override_without_a_plan_limit_expires_into_none() {
    let (db, mut app) = app();
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_plan_define('bare'); SELECT tenant_plan_change('{A}', 'bare')"));
    admin.run(&format!("SELECT tenant_quota_set('{A}', 'calls', 3)"));
    assert_eq!(answer(&mut app, "tenant_quota_consume('calls')")["quota_limit"], 3);
    admin.run(&format!("SELECT tenant_quota_set('{A}', 'calls', 3, expires_at => '2020-01-01')"));
    assert_eq!(app.fails("SELECT * FROM tenant_quota_consume('calls')"), "53400");
}

/// An upgrade gives room at the next call.
#[test]
fn an_upgrade_gives_room() {
    let (db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('calls', 10)");
    assert_eq!(app.fails("SELECT * FROM tenant_quota_consume('calls')"), "53400");
    db.admin().run(&format!("SELECT tenant_plan_change('{A}', 'starter')"));
    let taken = answer(&mut app, "tenant_quota_consume('calls')");
    assert_eq!(fields(&taken, VERDICT), json!([true, 1, 11, 9, "ok"]));
}

/// Below its usage a tenant has nothing left, gets nothing, and can give back.
#[test]
fn a_downgrade_below_usage_denies_and_releases() {
    let (db, mut app) = app();
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_plan_change('{A}', 'starter')"));
    app.run("SELECT * FROM tenant_quota_consume('seats', 15)");
    admin.run(&format!("SELECT tenant_plan_change('{A}', 'free')"));
    let denied = answer(&mut app, "tenant_quota_try_consume('seats')");
    assert_eq!(fields(&denied, VERDICT), json!([false, 0, 15, 0, "limit"]));
    let released = answer(&mut app, "tenant_quota_release('seats', 6)");
    assert_eq!(fields(&released, VERDICT), json!([true, 6, 9, 1, "ok"]));
    app.run("SELECT * FROM tenant_quota_consume('seats')");
}

/// A plan that no longer names a resource does not keep what was taken of it from being given back.
#[test]
fn release_needs_no_limit() {
    let (db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('seats', 5)");
    db.admin().run(&format!("SELECT tenant_plan_define('bare'); SELECT tenant_plan_change('{A}', 'bare')"));
    assert_eq!(app.fails("SELECT * FROM tenant_quota_consume('seats')"), "42704");
    app.run("SELECT * FROM tenant_quota_release('seats', 5)");
    assert_eq!(recorded(&mut db.admin(), A, "seats"), 0);
}

/// One row a resource, in the order of the names.
#[test]
fn consume_many_takes_all() {
    let (_db, mut app) = app();
    let rows: String = app.one(
        "SELECT string_agg(concat_ws(' ', resource, granted, used, remaining), ', ')
         FROM tenant_quota_consume_many('{\"seats\": 2, \"calls\": 3, \"users\": 0}')",
    );
    assert_eq!(rows, "calls 3 3 7, seats 2 2 8, users 0 0 3");
}

/// One denial, and nothing is taken.
#[test]
fn consume_many_takes_all_or_nothing() {
    let (db, mut app) = app();
    for denied in ["{\"calls\": 3, \"seats\": 11}", "{\"calls\": 11, \"seats\": 3}"] {
        app.run("BEGIN; SAVEPOINT s");
        assert_eq!(app.fails(&format!("SELECT * FROM tenant_quota_consume_many('{denied}')")), "53400");
        app.run("ROLLBACK TO s; COMMIT");
    }
    let mut admin = db.admin();
    assert_eq!((recorded(&mut admin, A, "calls"), recorded(&mut admin, A, "seats")), (0, 0));
    app.run("SELECT * FROM tenant_quota_consume_many('{\"calls\": 10, \"seats\": 10}')");
}

/// What is not an object of whole numbers of known resources.
#[test]
fn consume_many_refuses() {
    let (db, mut app) = app();
    for (amounts, state) in [
        ("'[1]'", "22023"),
        ("'\"calls\"'", "22023"),
        ("'null'", "22023"),
        ("'{\"calls\": \"1\"}'", "22023"),
        ("'{\"calls\": null}'", "22023"),
        ("'{\"calls\": 1.5}'", "22023"),
        ("'{\"calls\": -1}'", "22023"),
        ("'{\"calls\": 9223372036854775808}'", "22023"),
        ("'{\"calls\": {}}'", "22023"),
        ("'{\"calls\": 1, \"cows\": 1}'", "42704"),
        ("NULL", "22004"),
    ] {
        assert_eq!(
            app.fails(&format!("SELECT * FROM tenant_quota_consume_many({amounts})")),
            state,
            "{amounts}"
        );
    }
    assert_eq!(recorded(&mut db.admin(), A, "calls"), 0);
    app.run("SELECT * FROM tenant_quota_consume_many('{\"calls\": 1}')");
    assert_eq!(app.rows("SELECT * FROM tenant_quota_consume_many('{}')").len(), 0);
}

/// Calls in one statement see each other, and stop at the limit.
#[test]
fn calls_of_one_statement_add_up() {
    let (db, mut app) = app();
    let sums: String = app.one(
        "SELECT concat_ws(' ', sum(q.granted), max(q.used), count(*) FILTER (WHERE NOT q.allowed))
         FROM generate_series(1, 12) AS i, LATERAL tenant_quota_try_consume('calls', (i > 0)::int) AS q",
    );
    assert_eq!(sums, "10 10 2");
    assert_eq!(recorded(&mut db.admin(), A, "calls"), 10);
}

/// An uncontended denied call, whether it raises or answers, a check and a peek write no WAL and take no transaction id; a
/// granted call does.
#[test]
fn a_denied_call_writes_no_wal() {
    for mode in ["strict", "escrow"] {
        let (db, mut app) = app();
        db.admin().run(&format!("SELECT tenant_plan_limit_set('free', 'calls', 10, mode => '{mode}')"));
        app.run("SELECT * FROM tenant_quota_consume('calls', 9)");
        for (call, quiet) in [
            ("PERFORM tenant_quota_try_consume('calls', 2)", true),
            ("PERFORM tenant_quota_try_consume('calls', 11)", true),
            (
                "BEGIN
                     PERFORM tenant_quota_consume('calls', 2);
                     RAISE 'granted';
                 EXCEPTION WHEN configuration_limit_exceeded THEN
                     NULL;
                 END",
                true,
            ),
            ("PERFORM tenant_quota_check('calls')", true),
            ("PERFORM tenant_quota_consume('calls', 0)", true),
            ("PERFORM tenant_quota_consume('seats', 1)", false),
        ] {
            // Other tests write too, so one quiet call proves it; a call that writes is never quiet.
            let seen: Option<String> = app.attempt(&format!(
                "DO $$ DECLARE
                     start pg_lsn;
                 BEGIN
                     FOR i IN 1 .. CASE WHEN {quiet} THEN 100000 ELSE 10 END LOOP
                         start := pg_current_wal_insert_lsn();
                         {call};
                         IF start = pg_current_wal_insert_lsn() AND pg_current_xact_id_if_assigned() IS NULL THEN
                             RETURN;
                         END IF;
                     END LOOP;
                     RAISE 'never quiet' USING ERRCODE = 'XX999';
                 END $$"
            ));
            assert_eq!(seen.as_deref(), if quiet { None } else { Some("XX999") }, "{mode}: {call}");
        }
    }
}

/// An uncontended denied call takes no transaction id, a granted call does.
#[test]
fn a_denied_call_takes_no_transaction_id() {
    let (_db, mut app) = app();
    app.run("SELECT * FROM tenant_quota_consume('calls', 9)");
    let assigned = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL";
    app.run(
        "BEGIN; SELECT * FROM tenant_quota_try_consume('calls', 2); SELECT * FROM tenant_quota_try_consume('calls', 11);
         SELECT * FROM tenant_quota_check('calls'); SELECT * FROM tenant_quota_consume('calls', 0)",
    );
    assert!(!app.one::<bool>(assigned));
    app.run("SELECT * FROM tenant_quota_try_consume('calls', 1)");
    assert!(app.one::<bool>(assigned));
    app.run("COMMIT");
}
