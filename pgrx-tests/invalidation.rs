//! A committed change holds for every open session from its next statement on.

use std::thread;
use std::time::Duration;

use postgres::{Client, Statement};

use crate::harness::{A, B, Db, Session, state};

/// What an open session does when the change comes.
#[derive(Clone, Copy, Debug)]
enum Situation {
    /// Nothing.
    Idle,
    /// It is inside a transaction that has locked the table and holds a snapshot, if it keeps one.
    InTransaction(&'static str),
}

const SITUATIONS: [Situation; 4] = [
    Situation::Idle,
    Situation::InTransaction("READ COMMITTED"),
    Situation::InTransaction("REPEATABLE READ"),
    Situation::InTransaction("SERIALIZABLE"),
];

const LEVELS: [&str; 3] = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];

const READ: &str = "SELECT count(*)::text FROM orders";
const CALL: &str = "SELECT quota_limit::text FROM tenant_quota_check('api_requests')";
const CONSUME: &str = "SELECT quota_limit::text FROM tenant_quota_consume('api_requests')";
const ASK: &str = "SELECT required_tenant()::text";

/// An open session that has run one statement under a generic plan, and can run it again.
struct Watcher {
    client: Client,
    statement: Statement,
    what: String,
}

impl Watcher {
    fn new(db: &Db, role: &str, situation: Situation, sql: &str) -> Watcher {
        let mut client = db.connect_as(role, A);
        client.run("SET plan_cache_mode = force_generic_plan");
        if let Situation::InTransaction(level) = situation {
            client.run(&format!("BEGIN ISOLATION LEVEL {level}"));
        }
        let statement = client.prepare(sql).expect(sql);
        let what = format!("{sql} {situation:?}");
        let mut watcher = Watcher { client, statement, what };
        for _ in 0..2 {
            assert!(watcher.run().is_ok(), "{} before", watcher.what);
        }
        watcher
    }

    /// The answer of the prepared statement, or its SQLSTATE.
    fn run(&mut self) -> Result<Option<String>, String> {
        match self.client.query(&self.statement, &[]) {
            Ok(rows) => Ok(rows.first().and_then(|row| row.get(0))),
            Err(error) => Err(state(&error)),
        }
    }
}

/// Sessions of the role in every situation, one for each statement.
fn watchers(db: &Db, role: &str, statements: &[&str]) -> Vec<Watcher> {
    statements
        .iter()
        .flat_map(|sql| SITUATIONS.map(|situation| Watcher::new(db, role, situation, sql)))
        .collect()
}

/// Every watcher answers that.
#[track_caller]
fn all_answer(watchers: &mut [Watcher], expected: Result<&str, &str>) {
    for watcher in watchers {
        let answer = watcher.run();
        let answer = answer.as_ref().map(|value| value.as_deref().unwrap_or("NULL")).map_err(String::as_str);
        assert_eq!(answer, expected, "{}", watcher.what);
    }
}

/// Sessions that read, call and ask get the SQLSTATE once the change has been committed.
#[track_caller]
fn change_raises(db: &Db, role: &str, change: &str, code: &str) {
    let mut sessions = watchers(db, role, &[READ, CALL, ASK]);
    db.admin().run(change);
    all_answer(&mut sessions, Err(code));
}

/// A suspended tenant is locked out at once.
#[test]
fn suspend_is_seen() {
    let db = Db::with_orders();
    change_raises(&db, &db.app(), &format!("SELECT tenant_suspend('{A}')"), "55000");
}

/// A deleted tenant is locked out at once.
#[test]
fn delete_is_seen() {
    let db = Db::with_orders();
    change_raises(&db, &db.app(), &format!("SELECT tenant_delete('{A}')"), "55000");
}

/// Direct SQL on our tables counts as well.
#[test]
fn direct_sql_is_seen() {
    let db = Db::with_orders();
    let update = format!("UPDATE tenant_rls.tenants SET status = 'suspended' WHERE tenant_id = '{A}'");
    change_raises(&db, &db.app(), &update, "55000");
}

/// TRUNCATE of the registry leaves nobody a tenant.
#[test]
fn truncate_is_seen() {
    let db = Db::with_orders();
    change_raises(&db, &db.app(), "TRUNCATE tenant_rls.grants", "42501");
}

/// A change by a replication role fires our triggers too.
#[test]
fn a_replica_session_is_heard() {
    let db = Db::with_orders();
    let update = format!(
        "SET session_replication_role = replica;
         UPDATE tenant_rls.tenants SET status = 'suspended' WHERE tenant_id = '{A}'"
    );
    change_raises(&db, &db.app(), &update, "55000");
}

/// The change of another tenant is none of ours.
#[test]
fn another_tenant_is_not_touched() {
    let db = Db::with_orders();
    let mut sessions = watchers(&db, &db.app(), &[READ]);
    db.admin().run(&format!("SELECT tenant_suspend('{B}')"));
    all_answer(&mut sessions, Ok("2"));
}

/// A resumed tenant is back at once, in the session that it was taken from.
#[test]
fn resume_is_seen() {
    let db = Db::with_orders();
    let mut session = Watcher::new(&db, &db.app(), Situation::Idle, READ);
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_suspend('{A}')"));
    assert_eq!(session.run(), Err("55000".into()));
    admin.run(&format!("SELECT tenant_resume('{A}')"));
    assert_eq!(session.run(), Ok(Some("2".into())));
}

/// A resumed tenant is back in a transaction that never noticed its absence.
#[test]
fn suspend_and_resume_may_pass_unnoticed() {
    let db = Db::with_orders();
    let mut sessions = watchers(&db, &db.app(), &[READ]);
    db.admin().run(&format!("SELECT tenant_suspend('{A}')"));
    db.admin().run(&format!("SELECT tenant_resume('{A}')"));
    all_answer(&mut sessions, Ok("2"));
}

/// A change that has not been committed, or never is, is not seen.
#[test]
fn a_rolled_back_change_is_not_seen() {
    let db = Db::with_orders();
    let mut sessions = watchers(&db, &db.app(), &[READ, CALL]);
    let (readers, callers) = sessions.split_at_mut(4);
    let mut admin = db.admin();
    admin.run(&format!("BEGIN; SELECT tenant_suspend('{A}'), tenant_plan_change('{A}', 'starter')"));
    all_answer(readers, Ok("2"));
    all_answer(callers, Ok("10000"));
    admin.run("ROLLBACK");
    all_answer(readers, Ok("2"));
    all_answer(callers, Ok("10000"));
}

/// The transaction that makes a change sees it at once, and its rollback as well.
#[test]
fn the_own_change_is_seen() {
    let db = Db::with_orders();
    let app = db.app();
    db.admin().run(&format!("SELECT tenant_grant_operator('{app}')"));
    let mut app = db.connect_as(&app, A);
    app.run(&format!("BEGIN; SAVEPOINT s; SELECT tenant_suspend('{A}')"));
    assert_eq!(app.fails(READ), "55000");
    app.run("ROLLBACK TO s");
    assert_eq!(app.one::<String>(READ), "2");
}

/// A revoked role acts for the tenant no longer.
#[test]
fn revoke_is_seen() {
    let db = Db::with_orders();
    // The functions of applications go with the last grant: another tenant keeps them.
    db.admin().run(&format!("SELECT tenant_grant('{}', '{B}')", db.app()));
    change_raises(&db, &db.app(), &format!("SELECT tenant_revoke('{}')", db.app()), "42501");
}

/// A role whose grant of one tenant is revoked acts for that one no longer.
#[test]
fn revoke_of_one_tenant_is_seen() {
    let db = Db::with_orders();
    let one = db.role_name("one");
    db.role(&one, "LOGIN");
    db.admin().run(&format!(
        "SELECT tenant_grant('{one}', '{A}'), tenant_grant('{one}', '{B}'); GRANT SELECT ON orders TO {one}"
    ));
    change_raises(&db, &one, &format!("SELECT tenant_revoke('{one}', '{A}')"), "42501");
    assert_eq!(db.connect_as(&one, B).one::<String>(READ), "2");
}

/// A role that leaves the group that was granted the tenant acts for it no longer.
#[test]
fn revoke_of_a_membership_is_seen() {
    let db = Db::with_orders();
    let member = db.role_name("member");
    db.role(&member, "LOGIN");
    db.admin().run(&format!(
        "GRANT {} TO {member}; SELECT tenant_grant('{member}', '{B}'); GRANT SELECT ON orders TO {member}",
        db.app()
    ));
    change_raises(&db, &member, &format!("REVOKE {} FROM {member}", db.app()), "42501");
}

/// Cursors of which one row has been read: one that reads on, one that has sorted all its rows by then, one that locks
/// them.
const CURSORS: [&str; 3] = [
    "SELECT note FROM orders",
    "SELECT note FROM orders ORDER BY note DESC",
    "SELECT note FROM orders FOR UPDATE",
];

/// What fetching the rest answers once the change has been committed: by a cursor, by a portal of the extended protocol.
fn fetch_after(db: &Db, role: &str, change: &str) -> Vec<(&'static str, Option<String>)> {
    let mut cursors = CURSORS.map(|query| {
        let mut session = db.connect_as(role, A);
        session.run(&format!("BEGIN; DECLARE c CURSOR FOR {query}; FETCH 1 FROM c"));
        session
    });
    let mut session = db.connect_as(role, A);
    let mut transaction = session.transaction().expect("a transaction");
    let portal = transaction.bind(CURSORS[0], &[]).expect("a portal");
    assert_eq!(transaction.query_portal(&portal, 1).expect("a row").len(), 1);
    db.admin().run(change);
    let mut answers: Vec<_> = CURSORS
        .into_iter()
        .zip(&mut cursors)
        .map(|(query, session)| (query, session.attempt("FETCH ALL FROM c")))
        .collect();
    answers.push(("a portal", transaction.query_portal(&portal, 0).err().map(|error| state(&error))));
    answers
}

/// An open cursor gives no more rows once the change has been committed, and gives them without it.
#[track_caller]
fn change_ends_cursors(db: &Db, role: &str, change: &str, code: &str) {
    for (cursor, answer) in fetch_after(db, role, "SELECT 1") {
        assert_eq!(answer, None, "{cursor} before");
    }
    for (cursor, answer) in fetch_after(db, role, change) {
        assert_eq!(answer.as_deref(), Some(code), "{cursor}");
    }
}

/// A suspension, a deletion.
#[test]
fn an_open_cursor_ends_with_the_tenant() {
    for change in ["tenant_suspend", "tenant_delete"] {
        let db = Db::with_orders();
        change_ends_cursors(&db, &db.app(), &format!("SELECT {change}('{A}')"), "55000");
    }
}

/// A grant that is revoked, a membership in the role that was granted the tenant.
#[test]
fn an_open_cursor_ends_with_the_right() {
    let db = Db::with_orders();
    change_ends_cursors(&db, &db.app(), &format!("SELECT tenant_revoke('{}')", db.app()), "42501");
    let db = Db::with_orders();
    let member = db.role_name("member");
    db.role(&member, "LOGIN");
    db.admin().run(&format!("GRANT {} TO {member}; GRANT SELECT, UPDATE ON orders TO {member}", db.app()));
    change_ends_cursors(&db, &member, &format!("REVOKE {} FROM {member}", db.app()), "42501");
}

/// The cursor of a tenant that has nothing to do with the change reads on.
#[test]
fn an_open_cursor_outlives_the_changes_of_others() {
    let db = Db::with_orders();
    for (cursor, answer) in fetch_after(&db, &db.app(), &format!("SELECT tenant_suspend('{B}')")) {
        assert_eq!(answer, None, "{cursor}");
    }
}

/// A cursor whose partitions were chosen when it was opened, by the tenant of then, is not read at all afterwards.
#[test]
fn an_unread_cursor_over_chosen_partitions_ends_too() {
    let db = Db::with_orders();
    let app = db.app();
    db.admin().run(&format!(
        "CREATE TABLE events (tenant_id uuid NOT NULL, note text) PARTITION BY LIST (tenant_id);
         CREATE TABLE events_a PARTITION OF events FOR VALUES IN ('{A}');
         CREATE TABLE events_b PARTITION OF events FOR VALUES IN ('{B}');
         SELECT tenant_protect('events'); GRANT SELECT ON events TO {app};
         INSERT INTO events VALUES ('{A}', 'a'), ('{B}', 'b')"
    ));
    let fetch = |change: &str| {
        let mut session = db.connect_as(&app, A);
        session.run("BEGIN; DECLARE c CURSOR FOR SELECT note FROM events");
        db.admin().run(change);
        session.attempt("FETCH ALL FROM c")
    };
    assert_eq!(fetch("SELECT 1"), None);
    assert_eq!(fetch(&format!("SELECT tenant_suspend('{A}')")).as_deref(), Some("55000"));
}

/// A loop of a function fetches its rows in portions: the next one after the change is refused.
#[test]
fn a_loop_ends_with_the_tenant() {
    let db = Db::with_orders();
    let app = db.app();
    db.admin().run(&format!(
        "INSERT INTO orders SELECT i, '{A}', 'many' FROM generate_series(100, 300) AS i;
         CREATE FUNCTION walk(OUT rows int) LANGUAGE plpgsql AS $$
         DECLARE r record;
         BEGIN
             rows := 0;
             FOR r IN SELECT note FROM orders LOOP
                 IF rows = 0 THEN PERFORM pg_advisory_xact_lock(1); END IF;
                 rows := rows + 1;
             END LOOP;
         END $$"
    ));
    let walk = |change: &str| {
        let (mut admin, mut session) = (db.admin(), db.connect_as(&app, A));
        admin.run("SELECT pg_advisory_lock(1)");
        thread::scope(|scope| {
            let walk = scope.spawn(move || session.attempt("SELECT walk()"));
            wait_for_waiters(&db, 1);
            admin.run(change);
            admin.run("SELECT pg_advisory_unlock(1)");
            walk.join().expect("the walk")
        })
    };
    assert_eq!(walk("SELECT 1"), None);
    assert_eq!(walk(&format!("SELECT tenant_suspend('{A}')")).as_deref(), Some("55000"));
}

/// A role that is no superuser, or bypasses no longer, and has no grant acts for nobody.
#[test]
fn lost_attributes_are_seen() {
    for attribute in ["SUPERUSER", "BYPASSRLS"] {
        let db = Db::with_orders();
        let role = db.role_name("strong");
        db.role(&role, &format!("LOGIN {attribute}"));
        db.admin().run(&format!("SELECT tenant_grant('{role}', '{B}'); GRANT SELECT ON orders TO {role}"));
        change_raises(&db, &role, &format!("ALTER ROLE {role} NO{attribute}"), "42501");
    }
}

/// A plan that was made without policies, for a role that bypassed them, shows no other tenant's rows once the
/// role is subject to them.
#[test]
fn a_plan_without_policies_does_not_outlive_the_right_to_it() {
    for attribute in ["SUPERUSER", "BYPASSRLS"] {
        let db = Db::with_orders();
        let role = db.role_name("strong");
        db.role(&role, &format!("LOGIN {attribute}"));
        db.admin().run(&format!("SELECT tenant_grant('{role}'); GRANT SELECT ON orders TO {role}"));
        let mut sessions = watchers(&db, &role, &[READ]);
        all_answer(&mut sessions, Ok("4"));
        db.admin().run(&format!("ALTER ROLE {role} NO{attribute}"));
        for session in &mut sessions {
            assert_ne!(session.run(), Ok(Some("4".into())), "{attribute} {}", session.what);
        }
        assert_eq!(sessions[0].run(), Ok(Some("2".into())), "{attribute}");
    }
}

/// A changed plan, limit or override counts from the next call on, also where units were taken before.
#[test]
fn limits_are_seen() {
    let db = Db::with_orders();
    let mut sessions = watchers(&db, &db.app(), &[CALL, CONSUME]);
    let mut admin = db.admin();
    for (change, limit) in [
        (format!("SELECT tenant_plan_change('{A}', 'starter')"), "100000"),
        ("SELECT tenant_plan_limit_set('starter', 'api_requests', 77)".into(), "77"),
        (format!("SELECT tenant_quota_set('{A}', 'api_requests', 60)"), "60"),
        (format!("SELECT tenant_quota_unset('{A}', 'api_requests')"), "77"),
        (format!("SELECT tenant_plan_change('{A}', 'free')"), "10000"),
    ] {
        admin.run(&change);
        all_answer(&mut sessions, Ok(limit));
    }
}

/// A changed limit on rows counts from the next INSERT on, in a transaction that has inserted under the old one.
#[test]
fn limits_on_rows_are_seen() {
    let db = Db::with_orders();
    let mut admin = db.admin();
    admin.run(
        "SELECT tenant_resource_define('orders', 'gauge', 'order', 'none');
         SELECT tenant_plan_limit_set(plan, 'orders', 10) FROM tenant_rls.plans;
         SELECT tenant_quota_attach('orders', 'orders')",
    );
    for level in LEVELS {
        let mut app = db.connect_as(&db.app(), A);
        app.run(&format!("SET plan_cache_mode = force_generic_plan; BEGIN ISOLATION LEVEL {level}"));
        let insert = app.prepare("INSERT INTO orders (id) VALUES ($1)").expect("an INSERT");
        app.execute(&insert, &[&10]).expect("room for the third");
        for (id, change, room) in [
            (11, "SELECT tenant_plan_limit_set('free', 'orders', 3)".to_string(), false),
            (12, "SELECT tenant_plan_limit_set('free', 'orders', 4)".into(), true),
            (13, format!("SELECT tenant_plan_change('{A}', 'starter')"), true),
            (14, format!("SELECT tenant_quota_set('{A}', 'orders', 5)"), false),
            (15, format!("SELECT tenant_quota_unset('{A}', 'orders')"), true),
            (16, format!("SELECT tenant_plan_change('{A}', 'free')"), false),
        ] {
            admin.run(&change);
            app.run("SAVEPOINT s");
            let denied = app.execute(&insert, &[&id]).err().map(|error| state(&error));
            assert_eq!(denied.as_deref(), if room { None } else { Some("53400") }, "{level}: {change}");
            app.run(if room { "RELEASE s" } else { "ROLLBACK TO s" });
        }
        app.run("ROLLBACK");
        admin.run("SELECT tenant_plan_limit_set('free', 'orders', 10)");
    }
}

const FEATURE: &str = "SELECT value::text FROM tenant_feature('checkout')";
const SETTING: &str = "SELECT tenant_setting('color')::text";
const ROUTE: &str = "SELECT image FROM tenant_route()";

/// Sessions that ask for a feature, a setting and a route, and what they must answer after each change.
#[track_caller]
fn changes_show(db: &Db, sql: &str, changes: &[(&str, &str)]) {
    let mut sessions = watchers(db, &db.app(), &[sql]);
    let mut admin = db.admin();
    for (change, answer) in changes {
        admin.run(&change.replace("{A}", A));
        all_answer(&mut sessions, Ok(answer));
    }
}

/// A feature that is set, switched, dropped, and the plan that it is set for.
#[test]
fn features_are_seen() {
    let db = Db::with_orders();
    db.admin().run("SELECT tenant_feature_define('checkout', '0')");
    changes_show(
        &db,
        FEATURE,
        &[
            ("SELECT tenant_feature_set('checkout', '1')", "1"),
            ("SELECT tenant_feature_set('checkout', '2', 'plan', plan => 'starter')", "1"),
            ("SELECT tenant_plan_change('{A}', 'starter')", "2"),
            ("SELECT tenant_feature_set('checkout', '3', 'tenant', '{A}')", "3"),
            ("UPDATE tenant_rls.feature_values SET value = '4' WHERE tenant_id = '{A}'", "4"),
            ("SELECT tenant_feature_switch('checkout', false)", "0"),
            ("SELECT tenant_feature_switch('checkout', true)", "4"),
            ("TRUNCATE tenant_rls.feature_values", "0"),
            ("SELECT tenant_feature_drop('checkout')", "NULL"),
            ("SELECT tenant_feature_define('checkout', '5')", "5"),
        ],
    );
}

/// A setting of everybody, a plan, a tenant.
#[test]
fn settings_are_seen() {
    let db = Db::with_orders();
    changes_show(
        &db,
        SETTING,
        &[
            ("SELECT tenant_setting_set('color', '1', 'global')", "1"),
            ("SELECT tenant_setting_set('color', '2', 'plan', plan => 'free')", "2"),
            ("SELECT tenant_setting_set('color', '3', 'tenant', '{A}')", "3"),
            ("UPDATE tenant_rls.tenants SET settings = '{}'", "2"),
            ("SELECT tenant_plan_change('{A}', 'starter')", "1"),
            ("TRUNCATE tenant_rls.settings", "NULL"),
        ],
    );
}

/// A release, its share, its promotion; a deployment that was chosen; the region.
#[test]
fn routes_are_seen() {
    let db = Db::with_orders();
    db.admin().run("SELECT tenant_deployment_define('api', '{\"image\": \"api:1\"}')");
    changes_show(
        &db,
        ROUTE,
        &[
            ("SELECT tenant_release('api', 'api:2', 0, tenants => '{{A}}')", "api:2"),
            ("SELECT tenant_release_rollback(1)", "api:1"),
            ("SELECT tenant_release('api', 'api:3', 100)", "api:3"),
            ("SELECT tenant_release('api', 'api:3', 0)", "api:1"),
            ("SELECT tenant_release_promote(max(release_id)) FROM tenant_releases", "api:3"),
            ("SELECT tenant_deployment_define('eu', '{\"image\": \"eu:1\", \"region\": \"eu\"}')", "api:3"),
            ("UPDATE tenant_rls.tenants SET region = 'eu' WHERE tenant_id = '{A}'", "eu:1"),
            ("SELECT tenant_route_set('{A}', 'api')", "api:3"),
            ("SELECT tenant_route_unset('{A}')", "eu:1"),
            ("SELECT tenant_deployment_drop('eu')", "api:3"),
        ],
    );
}

/// A suspended tenant has neither features nor settings nor a route.
#[test]
fn a_suspended_tenant_has_no_features() {
    let db = Db::with_orders();
    db.admin().run(
        "SELECT tenant_feature_define('checkout', '0'), tenant_deployment_define('api', '{\"image\": \"api:1\"}')",
    );
    let mut sessions = watchers(&db, &db.app(), &[FEATURE, SETTING, ROUTE, "SELECT tenant_context()::text"]);
    db.admin().run(&format!("SELECT tenant_suspend('{A}')"));
    all_answer(&mut sessions, Err("55000"));
}

/// A table that is protected while a session has a plan for it is closed at once.
#[test]
fn protection_is_seen() {
    let db = Db::with_orders();
    let app = db.app();
    db.admin().run(&format!(
        "CREATE TABLE notes (id int, tenant_id uuid NOT NULL); GRANT SELECT ON notes TO {app};
         INSERT INTO notes VALUES (1, '{A}'), (2, '{B}')"
    ));
    let mut session = Watcher::new(&db, &app, Situation::Idle, "SELECT count(*)::text FROM notes");
    assert_eq!(session.run(), Ok(Some("2".into())));
    db.admin().run("SELECT tenant_protect('notes')");
    assert_eq!(session.run(), Ok(Some("1".into())));
    db.admin().run("SELECT tenant_unprotect('notes')");
    assert_eq!(session.run(), Ok(Some("2".into())));
}

/// What writes, or locks as a writer does.
const WRITES: [&str; 6] = [
    "INSERT INTO orders (id) SELECT max(id) + 10 FROM orders RETURNING note",
    "UPDATE orders SET note = note WHERE id = 1 RETURNING note",
    "DELETE FROM orders WHERE id = 2 RETURNING note",
    "SELECT note FROM orders FOR UPDATE",
    "SELECT note FROM orders FOR KEY SHARE",
    "SELECT used::text FROM tenant_quota_consume('api_requests')",
];

/// Every kind of write stops behind the fence, and works before it.
#[test]
fn a_fence_stops_writers() {
    let db = Db::with_orders();
    for sql in WRITES {
        let mut session = Watcher::new(&db, &db.app(), Situation::Idle, sql);
        db.admin().run(&format!("SELECT tenant_fence('{A}')"));
        assert_eq!(session.run(), Err("25006".into()), "{sql}");
        db.admin().run(&format!("SELECT tenant_unfence('{A}')"));
        assert!(session.run().is_ok(), "{sql}");
    }
}

/// MERGE stops behind the fence, too.
#[test]
fn a_fence_stops_merge() {
    let db = Db::with_orders();
    let merge = "MERGE INTO orders AS o USING (VALUES (1)) AS v (id) ON o.id = v.id
                 WHEN MATCHED THEN UPDATE SET note = 'merged'";
    let mut app = db.connect_as(&db.app(), A);
    app.run(merge);
    db.admin().run(&format!("SELECT tenant_fence('{A}')"));
    assert_eq!(app.fails(merge), "25006");
}

/// A fence stops the generic plans of a transaction that has locked the table for writing before, and has written nothing.
#[test]
fn a_fence_stops_plans_that_take_no_lock() {
    let db = Db::with_orders();
    for level in LEVELS {
        for sql in WRITES {
            let mut session = Watcher::new(&db, &db.app(), Situation::Idle, sql);
            let lock = "LOCK TABLE orders IN ROW EXCLUSIVE MODE";
            session.client.run(&format!("BEGIN ISOLATION LEVEL {level}; {lock}; {READ}"));
            db.admin().run(&format!("SELECT tenant_fence('{A}', '5 s')"));
            assert_eq!(session.run(), Err("25006".into()), "{level}: {sql}");
            session.client.run("ROLLBACK");
            db.admin().run(&format!("SELECT tenant_unfence('{A}')"));
            assert!(session.run().is_ok(), "{level}: {sql}");
        }
    }
}

/// A fence stops a session that has done nothing but call functions.
#[test]
fn a_fence_stops_callers() {
    let db = Db::with_orders();
    for level in LEVELS {
        let mut session = Watcher::new(&db, &db.app(), Situation::InTransaction(level), CALL);
        db.admin().run(&format!("SELECT tenant_fence('{A}', '5 s')"));
        assert_eq!(session.run(), Ok(Some("10000".into())), "{level}");
        assert_eq!(session.client.fails(CONSUME), "25006", "{level}");
        session.client.run("ROLLBACK");
        db.admin().run(&format!("SELECT tenant_unfence('{A}')"));
        session.client.run(CONSUME);
    }
}

/// A fence is seen by a transaction that began before it, and has only read.
#[test]
fn a_fence_stops_open_transactions() {
    let db = Db::with_orders();
    for level in LEVELS {
        let mut session = Watcher::new(&db, &db.app(), Situation::InTransaction(level), READ);
        db.admin().run(&format!("SELECT tenant_fence('{A}')"));
        assert_eq!(session.run(), Ok(Some("2".into())), "{level}");
        assert_eq!(session.client.fails("UPDATE orders SET note = 'x'"), "25006", "{level}");
        db.admin().run(&format!("SELECT tenant_unfence('{A}')"));
    }
}

/// Behind the fence everything can be read, and quotas be looked at.
#[test]
fn a_fence_lets_readers_through() {
    let db = Db::with_orders();
    let mut sessions = watchers(&db, &db.app(), &[READ, CALL, ASK]);
    db.admin().run(&format!("SELECT tenant_fence('{A}')"));
    for session in &mut sessions {
        assert!(session.run().is_ok(), "{}", session.what);
    }
    assert_eq!(db.connect_as(&db.app(), A).one::<String>(READ), "2");
}

/// The fence of one tenant is no fence for another.
#[test]
fn a_fence_stops_one_tenant() {
    let db = Db::with_orders();
    db.admin().run(&format!("SELECT tenant_fence('{A}')"));
    db.connect_as(&db.app(), B).run("UPDATE orders SET note = 'x'");
}

/// A thread that asks for the fence; it ends when the fence is closed.
fn fence(db: &Db, timeout: &str) -> thread::JoinHandle<Option<String>> {
    let mut admin = db.admin();
    let sql = format!("SELECT tenant_fence('{A}', '{timeout}')");
    thread::spawn(move || admin.attempt(&sql))
}

/// Waits until somebody waits for a lock of this database that is like an advisory one.
fn wait_for_waiters(db: &Db, count: i64) {
    let mut admin = db.admin();
    let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    for _ in 0..500 {
        if admin.one::<i64>(sql) >= count {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("nobody waits");
}

/// The fence returns when the writers that came before it have ended, and their rows are there.
#[test]
fn a_fence_waits_for_older_writers() {
    let db = Db::with_orders();
    let mut writer = db.connect_as(&db.app(), A);
    writer.run("BEGIN; UPDATE orders SET note = 'late' WHERE id = 1");
    let fence = fence(&db, "20 s");
    wait_for_waiters(&db, 1);
    assert!(!fence.is_finished());
    writer.run("UPDATE orders SET note = 'later' WHERE id = 1; COMMIT");
    assert_eq!(fence.join().expect("the fence"), None);
    assert_eq!(writer.fails("UPDATE orders SET note = 'too late'"), "25006");
    assert_eq!(writer.one::<String>("SELECT note FROM orders WHERE id = 1"), "later");
}

/// A consumer is a writer that the fence waits for.
#[test]
fn a_fence_waits_for_older_consumers() {
    let db = Db::with_orders();
    let mut writer = db.connect_as(&db.app(), A);
    writer.run("BEGIN; SELECT FROM tenant_quota_consume('api_requests')");
    let fence = fence(&db, "20 s");
    wait_for_waiters(&db, 1);
    writer.run("COMMIT");
    assert_eq!(fence.join().expect("the fence"), None);
}

/// A writer whose first write was rolled back to a savepoint is a writer again with its next.
#[test]
fn a_fence_waits_for_writers_after_a_savepoint() {
    let db = Db::with_orders();
    let mut writer = db.connect_as(&db.app(), A);
    writer.run("BEGIN; SAVEPOINT s; UPDATE orders SET note = 'early' WHERE id = 1; ROLLBACK TO s");
    writer.run("UPDATE orders SET note = 'late' WHERE id = 1");
    let fence = fence(&db, "20 s");
    wait_for_waiters(&db, 1);
    writer.run("COMMIT");
    assert_eq!(fence.join().expect("the fence"), None);
}

/// A reader is nobody that the fence waits for.
#[test]
fn a_fence_does_not_wait_for_readers() {
    let db = Db::with_orders();
    let mut reader = db.connect_as(&db.app(), A);
    reader.run("BEGIN; SELECT FROM orders");
    assert_eq!(fence(&db, "2 s").join().expect("the fence"), None);
}

/// A fence that runs out of time changes nothing.
#[test]
fn a_fence_times_out() {
    let db = Db::with_orders();
    let mut writer = db.connect_as(&db.app(), A);
    writer.run("BEGIN; UPDATE orders SET note = 'slow' WHERE id = 1");
    assert_eq!(fence(&db, "300 ms").join().expect("the fence").as_deref(), Some("55006"));
    writer.run("UPDATE orders SET note = 'slower' WHERE id = 1; COMMIT");
    let status = format!("SELECT status FROM tenant_rls.tenants WHERE tenant_id = '{A}'");
    assert_eq!(db.admin().one::<String>(&status), "active");
    assert_eq!(fence(&db, "300 ms").join().expect("the fence"), None);
}

/// A writer that came while the fence was closing waits for it, then stops.
#[test]
fn a_writer_that_waited_is_stopped() {
    let db = Db::with_orders();
    let mut older = db.connect_as(&db.app(), A);
    older.run("BEGIN; UPDATE orders SET note = 'late' WHERE id = 1");
    let fence = fence(&db, "20 s");
    wait_for_waiters(&db, 1);
    let mut newer = db.connect_as(&db.app(), A);
    let newer = thread::spawn(move || newer.attempt("UPDATE orders SET note = 'new' WHERE id = 2"));
    wait_for_waiters(&db, 2);
    older.run("COMMIT");
    assert_eq!(fence.join().expect("the fence"), None);
    assert_eq!(newer.join().expect("the writer").as_deref(), Some("25006"));
}

/// Writers do not wait for one another.
#[test]
fn writers_do_not_block_writers() {
    let db = Db::with_orders();
    let mut first = db.connect_as(&db.app(), A);
    first.run("BEGIN; UPDATE orders SET note = 'first' WHERE id = 1");
    let mut second = db.connect_as(&db.app(), A);
    second.run("SET lock_timeout = '2s'; UPDATE orders SET note = 'second' WHERE id = 2");
}
