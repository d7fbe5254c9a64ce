//! What a restored database must do.

use crate::harness::{A, B, Session};

use super::fixture::{BILLED, DELETED, FENCED, PARTS, Roles, SUSPENDED, ident, regrole};
use super::place::Place;

/// Asserts all of it. Changes the database.
pub fn assert_behaves(place: &Place, roles: &Roles) {
    isolates(place, roles);
    admits(place, roles);
    counts_on(place, roles);
    follows_rows(place, roles);
    resolves(place, roles);
    records_changes(place, roles);
    unprotects(place, roles);
}

fn isolates(place: &Place, roles: &Roles) {
    let mut app = place.connect(&roles.app);
    assert_eq!(app.fails("SELECT count(*) FROM orders"), "55000");
    for (tenant, orders, parts, docs, notes) in [(A, 3, 2, 2, 2), (B, 2, 1, 1, 1), (BILLED, 1, 0, 0, 0)] {
        app.run(&format!("SET app.current_tenant = '{tenant}'"));
        assert_eq!(app.one::<i64>("SELECT count(*) FROM orders"), orders, "{tenant}");
        assert_eq!(app.one::<i64>(&format!("SELECT count(*) FROM {PARTS}")), parts, "{tenant}");
        assert_eq!(app.one::<i64>("SELECT count(*) FROM docs"), docs, "{tenant}");
        assert_eq!(app.one::<i64>("SELECT count(*) FROM notes"), notes, "{tenant}");
    }
    assert_eq!(app.fails(&format!("INSERT INTO orders VALUES (90, '{A}')")), "42501");
    assert_eq!(app.fails("TRUNCATE orders"), "42501");
    assert_eq!(place.connect(&roles.owner).fails("SELECT count(*) FROM orders"), "55000");
}

fn admits(place: &Place, roles: &Roles) {
    let act = |role: &str, tenant: &str| {
        place.connect(role).attempt(&format!("SET app.current_tenant = '{tenant}'"))
    };
    assert_eq!(act(&roles.one, A), None);
    assert_eq!(act(&roles.one, B).as_deref(), Some("42501"));
    assert_eq!(act(&roles.ticket, B).as_deref(), Some("42501"));
    assert_eq!(act(&roles.operator, A).as_deref(), Some("42501"));
    assert_eq!(act(&roles.app, SUSPENDED).as_deref(), Some("55000"));
    assert_eq!(act(&roles.app, DELETED).as_deref(), Some("55000"));
    let mut fenced = place.connect_as(&roles.app, FENCED);
    assert_eq!(fenced.one::<i64>("SELECT count(*) FROM orders"), 1);
    assert_eq!(fenced.fails("INSERT INTO orders (id) VALUES (91)"), "25006");
}

fn counts_on(place: &Place, roles: &Roles) {
    let mut a = place.connect_as(&roles.app, A);
    assert_eq!(a.one::<i64>("SELECT used FROM tenant_quota_consume('api_requests')"), 43);
    assert_eq!(a.fails("SELECT FROM tenant_quota_consume('api_requests', 658)"), "53400");
    assert_eq!(a.one::<i64>("SELECT used FROM tenant_quota_consume('api_requests', 657)"), 700);
    assert_eq!(a.fails("SELECT FROM tenant_quota_check('storage_bytes')"), "42704");
    let mut b = place.connect_as(&roles.app, B);
    assert_eq!(b.one::<i64>("SELECT quota_limit FROM tenant_quota_check('api_requests')"), 500);
    assert_eq!(b.fails("SELECT FROM tenant_quota_consume('projects')"), "53400");
    let mut billed = place.connect_as(&roles.app, BILLED);
    assert_eq!(
        billed.one::<String>("SELECT reason FROM tenant_quota_consume('api_requests', 5, 'restored')"),
        "replay"
    );
    assert_eq!(billed.one::<i64>("SELECT used FROM tenant_quota_consume('api_requests')"), 56);
    let settled = "SELECT s.used FROM tenant_quota_reserve('api_requests', 50, '1 day', 'held') AS r,
        LATERAL tenant_quota_settle(r.reservation_id, 20) AS s";
    assert_eq!(billed.one::<i64>(settled), 26);
}

fn follows_rows(place: &Place, roles: &Roles) {
    let mut a = place.connect_as(&roles.app, A);
    let used = |a: &mut postgres::Client, resource: &str| {
        a.one::<i64>(&format!("SELECT used FROM tenant_usage WHERE resource = '{resource}'"))
    };
    assert_eq!((used(&mut a, "orders"), used(&mut a, "parts")), (3, 4));
    a.run("INSERT INTO orders (id) VALUES (20), (21)");
    a.run(&format!("INSERT INTO {PARTS} (id) VALUES (20), (120)"));
    a.run("INSERT INTO docs_scanned VALUES (20, 101, 1)");
    assert_eq!((used(&mut a, "orders"), used(&mut a, "parts")), (5, 7));
    a.run("DELETE FROM orders WHERE id = 20");
    assert_eq!(used(&mut a, "orders"), 4);
    assert_eq!(a.fails("SELECT FROM tenant_quota_consume('orders')"), "55000");
    assert_eq!(a.fails("INSERT INTO orders (id) SELECT generate_series(1000, 1100)"), "53400");
    let mut admin = place.admin();
    admin.run("DROP TABLE \"App Data\".parts_high");
    assert_eq!(used(&mut a, "parts"), 5);
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_quota_invariants"), 0);
}

fn resolves(place: &Place, roles: &Roles) {
    let facts =
        "SELECT concat_ws(' ', value, reason, tenant_feature_enabled('gone', true), tenant_setting('size'),
        tenant_setting('theme'), deployment, image, source) FROM tenant_feature('checkout'), tenant_route()";
    for (tenant, answer) in [
        (A, "\"own\" TARGETING_MATCH t 1 \"dark\" api api:3 tenant"),
        (B, "false DEFAULT t 1 api-gold api:1-gold stable"),
        (BILLED, "\"gold\" TARGETING_MATCH t 2 api api:2 stable"),
    ] {
        assert_eq!(place.connect_as(&roles.app, tenant).one::<String>(facts), answer, "{tenant}");
    }
    let mut operator = place.connect(&roles.operator);
    assert_eq!(operator.one::<i64>("SELECT tenant_release('api', 'api:5', 0)"), 5);
    operator.run("SELECT tenant_release_rollback(5), tenant_release_rollback(1)");
    let mut billed = place.connect_as(&roles.app, BILLED);
    assert_eq!(billed.one::<String>("SELECT image FROM tenant_route()"), "api:1");
}

fn records_changes(place: &Place, roles: &Roles) {
    let mut admin = place.admin();
    let last: i64 = admin.one("SELECT max(change_id) FROM tenant_rls.changes");
    place.connect(&roles.operator).run(&format!("SELECT tenant_plan_change('{B}', 'gold')"));
    let (id, by) = {
        let row =
            &admin.rows("SELECT change_id, changed_by FROM tenant_rls.changes ORDER BY 1 DESC LIMIT 1")[0];
        (row.get::<_, i64>(0), row.get::<_, String>(1))
    };
    assert_eq!((id, by), (last + 1, roles.operator.clone()));
}

/// What tenant_protect changed is known: the table becomes what it was before.
fn unprotects(place: &Place, roles: &Roles) {
    let mut admin = place.admin();
    admin.run("SELECT tenant_quota_detach('orders', 'orders')");
    place.connect(&roles.owner).run("SELECT tenant_unprotect('orders'), tenant_unprotect('notes')");
    let facts: String = admin.one(
        "SELECT concat_ws(' ', c.relrowsecurity, c.relforcerowsecurity, a.attnotnull, a.atthasdef,
             (SELECT count(*) FROM pg_policy WHERE polrelid = c.oid),
             (SELECT count(*) FROM pg_index WHERE indrelid = c.oid),
             (SELECT count(*) FROM pg_trigger WHERE tgrelid = c.oid))
         FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
         WHERE c.oid = 'orders'::regclass",
    );
    assert_eq!(facts, "f f f f 0 1 0");
    let mut app = place.connect(&roles.app);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM notes"), 2, "the policy of the table's owner is left");
    app.run("BEGIN; TRUNCATE orders; ROLLBACK");
}

/// A role that was missing when the dump was restored has no rights, then or when it is made later.
pub fn assert_absent_role_has_nothing(place: &Place, roles: &Roles) {
    let mut admin = place.admin();
    admin.run(&format!("CREATE ROLE {} LOGIN", ident(&roles.absent)));
    let mut absent = place.connect(&roles.absent);
    assert_eq!(absent.fails(&format!("SET app.current_tenant = '{A}'")), "42501");
    assert_eq!(absent.fails(&format!("SELECT tenant_suspend('{A}')")), "42501");
    admin.run(&format!("SELECT tenant_grant({})", regrole(&roles.absent)));
    absent.run(&format!("SET app.current_tenant = '{A}'"));
}
