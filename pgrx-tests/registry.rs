//! Tenants, plans, resources and limits, and the record of who changed them.

use std::thread;

use crate::harness::{A, B, Db, Session, answer, recorded, refuses, report, waiting};

/// A tenant that is registered by the test that needs it.
const C: &str = "cccccccc-0000-4000-8000-00000000000c";

fn status(client: &mut postgres::Client, tenant: &str) -> String {
    client.one(&format!("SELECT status FROM tenant_rls.tenants WHERE tenant_id = '{tenant}'"))
}

/// The rows of a query as text, one string a row.
fn lines(client: &mut postgres::Client, sql: &str) -> Vec<String> {
    client.rows(sql).iter().map(|row| row.get(0)).collect()
}

/// A session of a role that runs the registry and may do no more.
fn operator(db: &Db) -> postgres::Client {
    let name = db.role_name("operator");
    db.role(&name, "LOGIN");
    db.admin().run(&format!("SELECT tenant_grant_operator('{name}')"));
    db.connect(&name)
}

/// The limits of DESIGN.md, section 3.
#[test]
fn installed_plans_have_the_documented_limits() {
    let mut admin = Db::new().admin();
    let limits = lines(
        &mut admin,
        "SELECT format('%s: %s', r.resource || ' ' || r.kind || ' ' || r.unit || ' ' || r.period,
             string_agg(p.plan || ' ' || coalesce(l.quota_limit::text, 'unlimited'), ', ' ORDER BY p.plan COLLATE \"C\"))
         FROM tenant_rls.plan_limits l JOIN tenant_rls.resources r USING (resource) JOIN tenant_rls.plans p USING (plan)
         WHERE l.enforcement = 'hard' AND l.mode IS NULL
         GROUP BY r.resource ORDER BY r.resource COLLATE \"C\"",
    );
    assert_eq!(
        limits,
        [
            "api_requests counter request month: enterprise unlimited, free 10000, professional 1000000, starter 100000",
            "cache_bytes gauge byte none: enterprise 1073741824, free 16777216, professional 268435456, starter 67108864",
            "compute_seconds counter second month: enterprise unlimited, free 36000, professional 3600000, starter 360000",
            "projects gauge project none: enterprise unlimited, free 1, professional 25, starter 5",
            "storage_bytes gauge byte none: enterprise 1073741824000, free 1073741824, professional 107374182400, \
             starter 10737418240",
            "users gauge user none: enterprise unlimited, free 3, professional 50, starter 10",
        ]
    );
}

/// A fresh installation is no change.
#[test]
fn installation_records_no_change() {
    let mut admin = Db::new().admin();
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_rls.changes"), 0);
}

/// Every argument of tenant_create arrives.
#[test]
fn create_registers_what_it_is_told() {
    let mut admin = Db::new().admin();
    let id: String = admin.one(&format!("SELECT tenant_create('{A}', 'starter', 'Acme', 'eu', 7)::text"));
    assert_eq!(id, A);
    let row: String = admin.one(
        "SELECT concat_ws(' ', tenant_id, tenant_key, name, plan, region, status, settings) FROM tenant_rls.tenants",
    );
    assert_eq!(row, format!("{A} 7 Acme starter eu active {{}}"));
}

/// Without arguments: a new id, plan free.
#[test]
fn create_has_defaults() {
    let mut admin = Db::new().admin();
    let ids: (String, String) =
        (admin.one("SELECT tenant_create()::text"), admin.one("SELECT tenant_create()::text"));
    assert_ne!(ids.0, ids.1);
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_rls.tenants WHERE plan = 'free'"), 2);
}

/// Create, set_tenant and the first INSERT are one transaction.
#[test]
fn a_new_tenant_is_usable_in_its_transaction() {
    let db = Db::with_orders();
    let app = db.app();
    db.admin().run(&format!("SELECT tenant_grant_operator('{app}')"));
    let mut app = db.connect(&app);
    app.run(&format!(
        "BEGIN; SELECT tenant_create('{C}'); SELECT set_tenant('{C}'); INSERT INTO orders (id) VALUES (9); COMMIT"
    ));
    assert_eq!(db.admin().one::<String>("SELECT tenant_id::text FROM orders WHERE id = 9"), C);
}

/// What tenant_create refuses, and that none of it registers anything.
#[test]
fn create_refuses() {
    let mut admin = Db::new().admin();
    admin.run(&format!("SELECT tenant_create('{A}', tenant_key => 7); SELECT tenant_create('{B}'); SELECT tenant_delete('{B}')"));
    refuses(
        &mut admin,
        &[
            (&format!("SELECT tenant_create('{A}')"), "42710"),
            (&format!("SELECT tenant_create('{C}', tenant_key => 7)"), "42710"),
            (&format!("SELECT tenant_create('{B}')"), "55000"),
            (&format!("SELECT tenant_create('{C}', 'gold')"), "42704"),
            (&format!("SELECT tenant_create('{C}', NULL)"), "22004"),
            ("SELECT tenant_create(NULL)", "22004"),
        ],
    );
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_rls.tenants"), 2);
    admin.run(&format!("SELECT tenant_create('{C}', 'starter', tenant_key => 8)"));
}

/// Two sessions that create the same tenant: one does, the other learns that it exists.
#[test]
fn create_waits_for_the_same_id() {
    let db = Db::new();
    let mut first = db.admin();
    first.run(&format!("BEGIN; SELECT tenant_create('{A}')"));
    thread::scope(|scope| {
        let second = scope.spawn(|| db.admin().fails(&format!("SELECT tenant_create('{A}')")));
        waiting(&mut db.admin(), 1);
        first.run("COMMIT");
        assert_eq!(second.join().expect("a SQLSTATE"), "42710");
    });
}

/// Usage stays, the limit is the new one at the next call of an open session.
#[test]
fn plan_change_keeps_usage_and_brings_the_new_limits() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    app.run("SELECT * FROM tenant_quota_consume('users', 3)");
    assert_eq!(app.fails("SELECT * FROM tenant_quota_consume('users')"), "53400");
    db.admin().run(&format!("SELECT tenant_plan_change('{A}', 'starter')"));
    let after = answer(&mut app, "tenant_quota_consume('users')");
    assert_eq!((&after["used"], &after["quota_limit"]), (&4.into(), &10.into()));
}

/// What tenant_plan_change refuses.
#[test]
fn plan_change_refuses() {
    let mut admin = Db::new().admin();
    admin.run(&format!("SELECT tenant_create('{A}'), tenant_create('{B}'); SELECT tenant_delete('{B}')"));
    refuses(
        &mut admin,
        &[
            (&format!("SELECT tenant_plan_change('{A}', 'gold')"), "42704"),
            (&format!("SELECT tenant_plan_change('{C}', 'starter')"), "42704"),
            (&format!("SELECT tenant_plan_change('{B}', 'starter')"), "55000"),
            (&format!("SELECT tenant_plan_change('{A}', NULL)"), "22004"),
            ("SELECT tenant_plan_change(NULL, 'starter')", "22004"),
        ],
    );
    admin.run(&format!("SELECT tenant_plan_change('{A}', 'starter')"));
}

/// An open session is locked out at its next statement, and let in again.
#[test]
fn suspend_locks_out_until_resume() {
    let db = Db::with_orders();
    let (mut admin, mut app) = (db.admin(), db.connect_as(&db.app(), A));
    app.run("SELECT * FROM orders");
    admin.run(&format!("SELECT tenant_suspend('{A}', 'unpaid')"));
    assert_eq!(app.fails("SELECT * FROM orders"), "55000");
    admin.run(&format!("SELECT tenant_resume('{A}')"));
    app.run("SELECT * FROM orders");
}

/// The reason is kept while the tenant is suspended.
#[test]
fn suspend_keeps_the_reason() {
    let mut admin = Db::new().admin();
    let reason = "SELECT coalesce(status_reason, '-') FROM tenant_rls.tenants";
    admin.run(&format!("SELECT tenant_create('{A}'); SELECT tenant_suspend('{A}', 'unpaid')"));
    assert_eq!(admin.one::<String>(reason), "unpaid");
    admin.run(&format!("SELECT tenant_resume('{A}')"));
    assert_eq!(admin.one::<String>(reason), "-");
}

/// What suspend and resume refuse.
#[test]
fn suspend_and_resume_refuse() {
    let mut admin = Db::new().admin();
    admin.run(&format!("SELECT tenant_create('{A}'), tenant_create('{B}'); SELECT tenant_delete('{B}')"));
    admin.run(&format!("SELECT tenant_fence('{A}')"));
    refuses(
        &mut admin,
        &[
            (&format!("SELECT tenant_suspend('{C}')"), "42704"),
            (&format!("SELECT tenant_suspend('{B}')"), "55000"),
            ("SELECT tenant_suspend(NULL)", "22004"),
            (&format!("SELECT tenant_resume('{C}')"), "42704"),
            (&format!("SELECT tenant_resume('{B}')"), "55000"),
            (&format!("SELECT tenant_resume('{A}')"), "55000"),
            ("SELECT tenant_resume(NULL)", "22004"),
        ],
    );
    admin.run(&format!(
        "SELECT tenant_unfence('{A}'); SELECT tenant_suspend('{A}'); SELECT tenant_resume('{A}')"
    ));
}

/// Behind a fence a tenant reads and does not write.
#[test]
fn fence_makes_a_tenant_read_only() {
    let db = Db::with_orders();
    let (mut admin, mut app) = (db.admin(), db.connect_as(&db.app(), A));
    admin.run(&format!("SELECT tenant_fence('{A}')"));
    refuses(
        &mut app,
        &[
            ("INSERT INTO orders (id) VALUES (9)", "25006"),
            ("UPDATE orders SET note = 'x'", "25006"),
            ("DELETE FROM orders", "25006"),
            ("SELECT * FROM orders FOR SHARE", "25006"),
            ("SELECT * FROM tenant_quota_consume('users')", "25006"),
        ],
    );
    assert_eq!(app.one::<i64>("SELECT count(*) FROM orders"), 2);
    admin.run(&format!("SELECT tenant_unfence('{A}')"));
    app.run("INSERT INTO orders (id) VALUES (9); SELECT * FROM tenant_quota_consume('users')");
}

/// tenant_fence returns when the writers that were at work have ended.
#[test]
fn fence_waits_for_older_writers() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    app.run("BEGIN; INSERT INTO orders (id) VALUES (9)");
    thread::scope(|scope| {
        let fence = scope.spawn(|| db.admin().run(&format!("SELECT tenant_fence('{A}')")));
        waiting(&mut db.admin(), 1);
        assert_eq!(status(&mut db.admin(), A), "active");
        app.run("COMMIT");
        fence.join().expect("the fence closes");
    });
    assert_eq!(status(&mut db.admin(), A), "fenced");
}

/// At the timeout nothing has changed.
#[test]
fn fence_gives_up_at_the_timeout() {
    let db = Db::with_orders();
    let (mut admin, mut app) = (db.admin(), db.connect_as(&db.app(), A));
    app.run("BEGIN; SELECT * FROM tenant_quota_consume('users')");
    assert_eq!(admin.fails(&format!("SELECT tenant_fence('{A}', '50 ms')")), "55006");
    assert_eq!(status(&mut admin, A), "active");
    app.run("COMMIT");
    admin.run(&format!("SELECT tenant_fence('{A}', '50 ms')"));
}

/// The fence of one tenant does not wait for the writers of another, nor keep them out.
#[test]
fn fence_concerns_one_tenant() {
    let db = Db::with_orders();
    let mut other = db.connect_as(&db.app(), B);
    other.run("BEGIN; INSERT INTO orders (id) VALUES (8)");
    db.admin().run(&format!("SELECT tenant_fence('{A}', '100 ms')"));
    other.run("INSERT INTO orders (id) VALUES (9); COMMIT");
}

/// What fence and unfence refuse.
#[test]
fn fence_and_unfence_refuse() {
    let mut admin = Db::new().admin();
    admin.run(&format!("SELECT tenant_create('{A}'), tenant_create('{B}'); SELECT tenant_delete('{B}')"));
    admin.run(&format!("SELECT tenant_suspend('{A}')"));
    refuses(
        &mut admin,
        &[
            (&format!("SELECT tenant_fence('{C}')"), "42704"),
            (&format!("SELECT tenant_fence('{B}')"), "55000"),
            (&format!("SELECT tenant_fence('{A}')"), "55000"),
            (&format!("SELECT tenant_fence('{A}', NULL)"), "22004"),
            (&format!("SELECT tenant_fence('{A}', '0')"), "22023"),
            (&format!("SELECT tenant_fence('{A}', '-1 s')"), "22023"),
            (&format!("SELECT tenant_fence('{A}', '1 year')"), "22023"),
            ("SELECT tenant_fence(NULL)", "22004"),
            (&format!("SELECT tenant_unfence('{C}')"), "42704"),
            (&format!("SELECT tenant_unfence('{B}')"), "55000"),
            (&format!("SELECT tenant_unfence('{A}')"), "55000"),
            ("SELECT tenant_unfence(NULL)", "22004"),
        ],
    );
    admin.run(&format!(
        "SELECT tenant_resume('{A}'); SELECT tenant_fence('{A}'); SELECT tenant_unfence('{A}')"
    ));
}

/// Suspend, resume, fence, unfence and delete can be said twice.
#[test]
fn the_status_is_set_idempotently() {
    let mut admin = Db::new().admin();
    admin.run(&format!("SELECT tenant_create('{A}')"));
    for (function, expected) in [
        ("tenant_suspend", "suspended"),
        ("tenant_resume", "active"),
        ("tenant_fence", "fenced"),
        ("tenant_unfence", "active"),
        ("tenant_delete", "deleted"),
    ] {
        admin.run(&format!("SELECT {function}('{A}'); SELECT {function}('{A}')"));
        assert_eq!(status(&mut admin, A), expected, "{function}");
    }
}

/// A deleted tenant is locked out; its rows stay.
#[test]
fn delete_locks_out_and_erases_nothing() {
    let db = Db::with_orders();
    let (mut admin, mut app) = (db.admin(), db.connect_as(&db.app(), A));
    app.run("SELECT * FROM orders");
    admin.run(&format!("SELECT tenant_delete('{A}')"));
    assert_eq!(app.fails("SELECT * FROM orders"), "55000");
    assert_eq!(admin.one::<i64>(&format!("SELECT count(*) FROM orders WHERE tenant_id = '{A}'")), 2);
    app.run(&format!("SET app.current_tenant = '{B}'; SELECT * FROM orders"));
}

/// What tenant_delete refuses, and what is refused for a deleted tenant.
#[test]
fn delete_refuses_and_is_final() {
    let mut admin = Db::new().admin();
    admin.run(&format!("SELECT tenant_create('{A}')"));
    refuses(
        &mut admin,
        &[(&format!("SELECT tenant_delete('{C}')"), "42704"), ("SELECT tenant_delete(NULL)", "22004")],
    );
    admin.run(&format!(
        "SELECT tenant_quota_set('{A}', 'users', 1); SELECT tenant_billing_set('{A}', now(), 'UTC')"
    ));
    admin.run(&format!("SELECT tenant_delete('{A}')"));
    refuses(
        &mut admin,
        &[
            (&format!("SELECT tenant_quota_set('{A}', 'users', 1)"), "55000"),
            (&format!("SELECT tenant_quota_unset('{A}', 'users')"), "55000"),
            (&format!("SELECT tenant_billing_set('{A}', now(), 'UTC')"), "55000"),
        ],
    );
}

/// The tenants of one status, in the order of their ids.
#[test]
fn list_walks_the_tenants_of_a_status() {
    let mut admin = Db::new().admin();
    admin.run(&format!("SELECT tenant_create('{C}'), tenant_create('{A}'), tenant_create('{B}')"));
    assert_eq!(lines(&mut admin, "SELECT tenant_list()::text"), [A, B, C]);
    admin.run(&format!("SELECT tenant_suspend('{B}')"));
    assert_eq!(lines(&mut admin, "SELECT tenant_list()::text"), [A, C]);
    assert_eq!(lines(&mut admin, "SELECT tenant_list('suspended')::text"), [B]);
    refuses(&mut admin, &[("SELECT tenant_list('gone')", "22023"), ("SELECT tenant_list(NULL)", "22004")]);
}

/// Counters of every period and gauges can be defined.
#[test]
fn resource_define_takes_counters_and_gauges() {
    let mut admin = Db::new().admin();
    for period in ["second", "minute", "hour", "day", "week", "month", "year", "none"] {
        admin.run(&format!("SELECT tenant_resource_define('by_{period}', 'counter', 'call', '{period}')"));
    }
    admin.run(
        "SELECT tenant_resource_define('seats', 'gauge', 'seat', 'none');
         SELECT tenant_resource_define('desks', 'gauge', 'desk', NULL)",
    );
    let defined =
        "SELECT string_agg(resource || ' ' || kind || ' ' || unit || ' ' || period, ', ' ORDER BY resource)
                   FROM tenant_rls.resources WHERE NOT installed AND (kind = 'gauge' OR period = 'week')";
    assert_eq!(
        admin.one::<String>(defined),
        "by_week counter call week, desks gauge desk none, seats gauge seat none"
    );
}

/// What tenant_resource_define refuses.
#[test]
fn resource_define_refuses() {
    let mut admin = Db::new().admin();
    refuses(
        &mut admin,
        &[
            ("SELECT tenant_resource_define('users', 'gauge', 'user', 'none')", "42710"),
            ("SELECT tenant_resource_define('x', 'meter', 'call', 'day')", "22023"),
            ("SELECT tenant_resource_define('x', 'counter', 'call', 'fortnight')", "22023"),
            ("SELECT tenant_resource_define('x', 'gauge', 'call', 'day')", "22023"),
            ("SELECT tenant_resource_define('', 'counter', 'call', 'day')", "22023"),
            ("SELECT tenant_resource_define('x', 'counter', '', 'day')", "22023"),
            ("SELECT tenant_resource_define(NULL, 'counter', 'call', 'day')", "22004"),
            ("SELECT tenant_resource_define('x', NULL, 'call', 'day')", "22004"),
            ("SELECT tenant_resource_define('x', 'counter', NULL, 'day')", "22004"),
            ("SELECT tenant_resource_define('x', 'counter', 'call', NULL)", "22004"),
        ],
    );
    admin.run("SELECT tenant_resource_define('x', 'counter', 'call', 'day')");
}

/// A plan based on another starts with its limits, and goes its own way.
#[test]
fn plan_define_copies_the_limits_of_its_base() {
    let mut admin = Db::new().admin();
    admin.run(
        "SELECT tenant_plan_limit_set('starter', 'users', 11, enforcement => 'soft', mode => 'strict');
         SELECT tenant_plan_define('team', 'starter');
         SELECT tenant_plan_limit_set('starter', 'users', 12)",
    );
    let limits =
        "SELECT string_agg(concat_ws(' ', resource, quota_limit, enforcement, mode), ', ' ORDER BY resource)
                  FROM tenant_rls.plan_limits WHERE plan = 'team'";
    assert_eq!(
        admin.one::<String>(limits),
        "api_requests 100000 hard, cache_bytes 67108864 hard, compute_seconds 360000 hard, projects 5 hard, \
         storage_bytes 10737418240 hard, users 11 soft strict"
    );
}

/// What tenant_plan_define refuses.
#[test]
fn plan_define_refuses() {
    let mut admin = Db::new().admin();
    refuses(
        &mut admin,
        &[
            ("SELECT tenant_plan_define('free')", "42710"),
            ("SELECT tenant_plan_define('team', 'gold')", "42704"),
            ("SELECT tenant_plan_define('')", "22023"),
            ("SELECT tenant_plan_define(NULL)", "22004"),
        ],
    );
    admin.run("SELECT tenant_plan_define('team')");
}

/// A missing limit is an error, never unlimited.
#[test]
fn a_plan_without_a_limit_for_a_resource_refuses_it() {
    let db = Db::with_orders();
    let (mut admin, mut app) = (db.admin(), db.connect_as(&db.app(), A));
    admin.run(&format!("SELECT tenant_plan_define('bare'); SELECT tenant_plan_change('{A}', 'bare')"));
    refuses(
        &mut app,
        &[
            ("SELECT * FROM tenant_quota_consume('users')", "42704"),
            ("SELECT * FROM tenant_quota_try_consume('users')", "42704"),
            ("SELECT * FROM tenant_quota_check('users')", "42704"),
        ],
    );
    admin.run("SELECT tenant_plan_limit_set('bare', 'users', 1)");
    app.run("SELECT * FROM tenant_quota_consume('users')");
}

/// A limit is set, replaced, and made unlimited only in words.
#[test]
fn plan_limit_set_sets_and_replaces() {
    let mut admin = Db::new().admin();
    let limit = "SELECT concat_ws(' ', coalesce(quota_limit::text, 'NULL'), enforcement, mode)
                 FROM tenant_rls.plan_limits WHERE plan = 'free' AND resource = 'api_requests'";
    for (call, expected) in [
        (
            "tenant_plan_limit_set('free', 'api_requests', 5, enforcement => 'shadow', mode => 'leased')",
            "5 shadow leased",
        ),
        ("tenant_plan_limit_set('free', 'api_requests', 0)", "0 hard"),
        ("tenant_plan_limit_set('free', 'api_requests', NULL, unlimited => true)", "NULL hard"),
    ] {
        admin.run(&format!("SELECT {call}"));
        assert_eq!(admin.one::<String>(limit), expected, "{call}");
    }
}

/// What tenant_plan_limit_set refuses, and that the limit stays as it was.
#[test]
fn plan_limit_set_refuses() {
    let mut admin = Db::new().admin();
    refuses(
        &mut admin,
        &[
            ("SELECT tenant_plan_limit_set('free', 'users', NULL)", "22004"),
            ("SELECT tenant_plan_limit_set('free', 'users', NULL, unlimited => NULL)", "22004"),
            ("SELECT tenant_plan_limit_set('free', 'users', 5, unlimited => true)", "22023"),
            ("SELECT tenant_plan_limit_set('free', 'users', -1)", "22023"),
            ("SELECT tenant_plan_limit_set('gold', 'users', 5)", "42704"),
            ("SELECT tenant_plan_limit_set('free', 'cows', 5)", "42704"),
            ("SELECT tenant_plan_limit_set(NULL, 'users', 5)", "22004"),
            ("SELECT tenant_plan_limit_set('free', NULL, 5)", "22004"),
            ("SELECT tenant_plan_limit_set('free', 'users', 5, enforcement => 'firm')", "22023"),
            ("SELECT tenant_plan_limit_set('free', 'users', 5, enforcement => NULL)", "22004"),
            ("SELECT tenant_plan_limit_set('free', 'users', 5, mode => 'lax')", "22023"),
            ("SELECT tenant_plan_limit_set('free', 'users', 5, mode => 'leased')", "0A000"),
        ],
    );
    let limit = "SELECT quota_limit FROM tenant_rls.plan_limits WHERE plan = 'free' AND resource = 'users'";
    assert_eq!(admin.one::<i64>(limit), 3);
    admin.run("SELECT tenant_plan_limit_set('free', 'users', 5, mode => 'strict')");
}

/// What tenant_billing_set refuses.
#[test]
fn billing_set_refuses() {
    let mut admin = Db::new().admin();
    admin.run(&format!("SELECT tenant_create('{A}')"));
    refuses(
        &mut admin,
        &[
            (&format!("SELECT tenant_billing_set('{A}', now(), 'Mars/Olympus')"), "22023"),
            (&format!("SELECT tenant_billing_set('{A}', now(), '+02:00')"), "22023"),
            (&format!("SELECT tenant_billing_set('{A}', 'infinity', 'UTC')"), "22023"),
            (&format!("SELECT tenant_billing_set('{A}', NULL, 'UTC')"), "22004"),
            (&format!("SELECT tenant_billing_set('{C}', now(), 'UTC')"), "42704"),
            ("SELECT tenant_billing_set(NULL, now(), 'UTC')", "22004"),
        ],
    );
    admin.run(&format!("SELECT tenant_billing_set('{A}', now(), 'Europe/Zurich')"));
    admin.run(&format!("SELECT tenant_billing_set('{A}', NULL, NULL)"));
}

/// What tenant_quota_set and tenant_quota_unset refuse.
#[test]
fn quota_set_and_unset_refuse() {
    let mut admin = Db::new().admin();
    admin.run(&format!("SELECT tenant_create('{A}')"));
    refuses(
        &mut admin,
        &[
            (&format!("SELECT tenant_quota_set('{A}', 'users', NULL)"), "22004"),
            (&format!("SELECT tenant_quota_set('{A}', 'users', 5, unlimited => true)"), "22023"),
            (&format!("SELECT tenant_quota_set('{A}', 'users', -1)"), "22023"),
            (&format!("SELECT tenant_quota_set('{A}', 'cows', 5)"), "42704"),
            (&format!("SELECT tenant_quota_set('{A}', NULL, 5)"), "22004"),
            (&format!("SELECT tenant_quota_set('{C}', 'users', 5)"), "42704"),
            ("SELECT tenant_quota_set(NULL, 'users', 5)", "22004"),
            (&format!("SELECT tenant_quota_unset('{A}', 'cows')"), "42704"),
            (&format!("SELECT tenant_quota_unset('{A}', NULL)"), "22004"),
            (&format!("SELECT tenant_quota_unset('{C}', 'users')"), "42704"),
            ("SELECT tenant_quota_unset(NULL, 'users')", "22004"),
        ],
    );
    admin.run(&format!(
        "SELECT tenant_quota_set('{A}', 'users', 5); SELECT tenant_quota_unset('{A}', 'users')"
    ));
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_rls.overrides"), 0);
}

/// An unknown name is answered with the known ones.
#[test]
fn unknown_names_come_with_the_known_ones() {
    let mut admin = Db::new().admin();
    for (sql, known) in [
        (
            "SELECT tenant_plan_limit_set('free', 'cows', 1)",
            "api_requests, cache_bytes, compute_seconds, projects, storage_bytes, users",
        ),
        ("SELECT tenant_create(plan => 'gold')", "enterprise, free, professional, starter"),
    ] {
        let detail = report(&mut admin, sql).detail().map(String::from);
        assert!(detail.as_ref().is_some_and(|detail| detail.contains(known)), "{sql}: {detail:?}");
    }
}

/// Every function of the registry leaves its record.
#[test]
fn functions_record_what_they_change() {
    let db = Db::with_orders();
    let mut admin = db.admin();
    let app = db.app();
    admin.run("SELECT tenant_resource_define('rows', 'gauge', 'row', 'none')");
    for (call, expected) in [
        (format!("tenant_create('{C}')"), "tenants INSERT"),
        (format!("tenant_plan_change('{C}', 'starter')"), "tenants UPDATE"),
        (format!("tenant_suspend('{C}')"), "tenants UPDATE"),
        (format!("tenant_resume('{C}')"), "tenants UPDATE"),
        (format!("tenant_fence('{C}')"), "tenants UPDATE"),
        (format!("tenant_unfence('{C}')"), "tenants UPDATE"),
        (format!("tenant_billing_set('{C}', now(), 'UTC')"), "billing_changes INSERT, tenants UPDATE"),
        (format!("tenant_quota_set('{C}', 'users', 5)"), "overrides INSERT"),
        (format!("tenant_quota_set('{C}', 'users', 6)"), "overrides UPDATE"),
        (format!("tenant_quota_unset('{C}', 'users')"), "overrides DELETE"),
        (format!("tenant_delete('{C}')"), "tenants UPDATE"),
        ("tenant_resource_define('seats', 'gauge', 'seat', 'none')".into(), "resources INSERT"),
        ("tenant_plan_define('team')".into(), "plans INSERT"),
        ("tenant_plan_limit_set('team', 'users', 5)".into(), "plan_limits INSERT"),
        ("tenant_plan_limit_set('team', 'users', 6)".into(), "plan_limits UPDATE"),
        (format!("tenant_grant('{app}', '{A}')"), "grants INSERT"),
        (format!("tenant_revoke('{app}', '{A}')"), "grants DELETE"),
        (format!("tenant_grant_operator('{app}')"), "operators INSERT"),
        (format!("tenant_revoke_operator('{app}')"), "operators DELETE"),
        ("tenant_quota_attach('orders', 'rows')".into(), "attachments INSERT"),
        ("tenant_quota_detach('orders', 'rows')".into(), "attachments DELETE"),
        ("tenant_unprotect('orders')".into(), "protected_tables DELETE"),
        ("tenant_protect('orders')".into(), "protected_tables INSERT"),
    ] {
        let before: i64 = admin.one("SELECT coalesce(max(change_id), 0) FROM tenant_rls.changes");
        admin.run(&format!("SELECT {call}"));
        let recorded: String = admin.one(&format!(
            "SELECT string_agg(relation || ' ' || command, ', ' ORDER BY relation)
             FROM tenant_rls.changes WHERE change_id > {before}"
        ));
        assert_eq!(recorded, expected, "{call}");
    }
}

/// Direct SQL on our tables leaves its record too.
#[test]
fn direct_sql_is_recorded() {
    let db = Db::new();
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_create('{A}'), tenant_plan_define('bare'); CREATE TABLE t ()"));
    for (table, insert, update) in [
        ("plans", "VALUES ('p')", "based_on = 'q'"),
        ("resources", "VALUES ('r', 'gauge', 'u', 'none')", "unit = 'v'"),
        ("plan_limits", "VALUES ('bare', 'users', 1)", "quota_limit = 2"),
        ("tenants", &format!("(tenant_id, plan) VALUES ('{B}', 'free')"), "plan = 'starter'"),
        ("overrides", &format!("VALUES ('{A}', 'users', 1)"), "quota_limit = 2"),
        ("billing_changes", &format!("VALUES ('{A}', '2020-01-01')"), "time_zone = 'UTC'"),
        ("grants", "VALUES ('postgres')", "ticket_required = true"),
        ("operators", "VALUES ('postgres')", "role_oid = 1"),
        ("protected_tables", "VALUES ('t', 't', 'c', 'uuid', true, '{}')", "forced = false"),
        ("attachments", "VALUES ('t', 't', 'users')", "root = 'tenant_rls.plans'"),
        ("lockdowns", "VALUES ('DATABASE')", "acl = '{}'"),
    ] {
        admin
            .run(&format!("CREATE TEMP TABLE kept AS TABLE tenant_rls.{table}; TRUNCATE tenant_rls.changes"));
        admin.run(&format!("INSERT INTO tenant_rls.{table} {insert}"));
        let added = "NOT EXISTS (SELECT FROM kept AS k WHERE to_jsonb(k) = to_jsonb(t))";
        admin.run(&format!("UPDATE tenant_rls.{table} AS t SET {update} WHERE {added}"));
        admin.run(&format!("DELETE FROM tenant_rls.{table} AS t WHERE {added}"));
        let commands: String = admin.one(&format!(
            "SELECT string_agg(command || CASE WHEN old_row IS NULL THEN '' ELSE ' old' END
                 || CASE WHEN new_row IS NULL THEN '' ELSE ' new' END, ', ' ORDER BY change_id)
             FROM tenant_rls.changes WHERE relation = '{table}'"
        ));
        assert_eq!(commands, "INSERT new, UPDATE old new, DELETE old", "{table}");
        admin.run("DROP TABLE kept");
    }
}

/// TRUNCATE of each of our tables is recorded, those that CASCADE empties included.
#[test]
fn truncate_is_recorded() {
    let mut admin = Db::new().admin();
    for table in [
        "plan_limits",
        "overrides",
        "billing_changes",
        "grants",
        "operators",
        "protected_tables",
        "attachments",
        "lockdowns",
        "features CASCADE",
        "settings",
        "deployments CASCADE",
    ] {
        admin.run(&format!("TRUNCATE tenant_rls.{table}"));
    }
    admin.run("TRUNCATE tenant_rls.plans, tenant_rls.resources, tenant_rls.tenants CASCADE");
    let recorded: String = admin.one(
        "SELECT string_agg(DISTINCT relation, ', ' ORDER BY relation) FROM tenant_rls.changes WHERE command = 'TRUNCATE'",
    );
    assert_eq!(
        recorded,
        "attachments, billing_changes, deployment_routes, deployments, feature_values, features, grants, lockdowns, operators, \
         overrides, plan_limits, plans, protected_tables, release_targets, releases, resources, settings, tenants"
    );
}

/// A change says who made it, as which role, when, from what to what.
#[test]
fn a_change_says_who_and_what() {
    let db = Db::new();
    let (login, group) = (db.role_name("login"), db.role_name("group"));
    db.role(&group, "NOLOGIN");
    db.role(&login, &format!("LOGIN IN ROLE {group}"));
    db.admin().run(&format!("SELECT tenant_grant_operator('{group}'); SELECT tenant_create('{A}')"));
    let mut session = db.connect(&login);
    session.run(&format!("SET ROLE {group}; SELECT tenant_plan_change('{A}', 'starter')"));
    let change: String = db.admin().one(
        "SELECT concat_ws(' ', changed_by, acting_as, relation, command, old_row ->> 'plan', new_row ->> 'plan',
             changed_at BETWEEN now() - interval '1 minute' AND now())
         FROM tenant_rls.changes ORDER BY change_id DESC LIMIT 1",
    );
    assert_eq!(change, format!("{login} {group} tenants UPDATE free starter t"));
}

/// A change that is rolled back leaves no record.
#[test]
fn a_rolled_back_change_is_not_recorded() {
    let mut admin = Db::new().admin();
    let count = "SELECT count(*) FROM tenant_rls.changes";
    admin.run(&format!("BEGIN; SELECT tenant_create('{A}')"));
    assert_eq!(admin.one::<i64>(count), 1);
    admin.run("ROLLBACK");
    assert_eq!(admin.one::<i64>(count), 0);
}

/// An operator runs the whole registry.
#[test]
fn an_operator_runs_the_registry() {
    let db = Db::with_orders();
    let mut operator = operator(&db);
    for call in [
        format!("tenant_create('{C}')"),
        format!("tenant_plan_change('{C}', 'starter')"),
        format!("tenant_suspend('{C}')"),
        format!("tenant_resume('{C}')"),
        format!("tenant_fence('{C}')"),
        format!("tenant_unfence('{C}')"),
        format!("tenant_billing_set('{C}', now(), 'UTC')"),
        format!("tenant_quota_set('{C}', 'users', 5)"),
        format!("tenant_quota_unset('{C}', 'users')"),
        format!("tenant_delete('{C}')"),
        "tenant_list()".into(),
        "tenant_resource_define('seats', 'gauge', 'seat', 'none')".into(),
        "tenant_plan_define('team', 'free')".into(),
        "tenant_plan_limit_set('team', 'seats', 5)".into(),
        "FROM tenant_plan_impact('team', '{\"seats\": 1}')".into(),
    ] {
        operator.run(&format!("SELECT {call}"));
    }
    for view in [
        "tenant_usage",
        "tenant_usage_history",
        "tenant_quota_events",
        "tenant_storage",
        "tenant_tables",
        "tenant_quota_invariants",
    ] {
        operator.run(&format!("SELECT * FROM {view}"));
    }
}

/// An operator acts for no tenant, hands out no rights and reaches no table.
#[test]
fn an_operator_does_nothing_more() {
    let db = Db::with_orders();
    let name = db.role_name("operator");
    let mut operator = operator(&db);
    db.admin().run(&format!("GRANT SELECT ON orders TO {name}"));
    refuses(
        &mut operator,
        &[
            ("SELECT * FROM orders", "55000"),
            (&format!("SET app.current_tenant = '{A}'"), "42501"),
            (&format!("SELECT set_tenant('{A}')"), "42501"),
            ("SELECT * FROM tenant_quota_consume('users')", "42501"),
            (&format!("SELECT tenant_grant('{name}')"), "42501"),
            (&format!("SELECT tenant_grant('{name}', '{A}')"), "42501"),
            (&format!("SELECT tenant_revoke('{}')", db.app()), "42501"),
            (&format!("SELECT tenant_grant_operator('{name}')"), "42501"),
            (&format!("SELECT tenant_revoke_operator('{name}')"), "42501"),
            ("SELECT tenant_unprotect('orders')", "42501"),
            ("SELECT * FROM tenant_rls.tenants", "42501"),
            ("UPDATE tenant_rls.tenants SET plan = 'enterprise'", "42501"),
        ],
    );
}

/// What an application role may not do, an operator may.
#[test]
fn an_application_does_not_run_the_registry() {
    let db = Db::with_orders();
    let (mut app, mut operator) = (db.connect_as(&db.app(), A), operator(&db));
    for call in [
        format!("SELECT tenant_plan_change('{A}', 'enterprise')"),
        format!("SELECT tenant_quota_set('{A}', 'users', 1000)"),
        "SELECT tenant_plan_limit_set('free', 'users', 1000)".into(),
    ] {
        assert_eq!(app.fails(&call), "42501", "{call}");
        operator.run(&call);
    }
}

/// Usage of one tenant is not that of the next one with its plan.
#[test]
fn tenants_of_one_plan_are_counted_apart() {
    let db = Db::with_orders();
    db.connect_as(&db.app(), A).run("SELECT * FROM tenant_quota_consume('users', 2)");
    db.connect_as(&db.app(), B).run("SELECT * FROM tenant_quota_consume('users', 3)");
    let mut admin = db.admin();
    assert_eq!((recorded(&mut admin, A, "users"), recorded(&mut admin, B, "users")), (2, 3));
}
