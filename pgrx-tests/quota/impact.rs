//! tenant_plan_impact: who would be over.

use postgres::Client;

use super::limited;
use crate::harness::{A, B, Db, Session, refuses};

/// [`limited`], with 8 calls and 3 seats used by A and 5 calls by B, and a session of an operator.
fn used() -> (Db, Client) {
    let db = limited();
    let operator = db.role_name("operator");
    db.role(&operator, "LOGIN");
    db.admin().run(&format!("SELECT tenant_grant_operator('{operator}')"));
    db.connect_as(&db.app(), A)
        .run("SELECT * FROM tenant_quota_consume_many('{\"calls\": 8, \"seats\": 3}')");
    db.connect_as(&db.app(), B).run("SELECT * FROM tenant_quota_consume('calls', 5)");
    let client = db.connect(&operator);
    (db, client)
}

/// Who would be over with these limits of plan free: tenant, resource, used, limit, over by.
#[track_caller]
fn over(client: &mut Client, limits: &str) -> String {
    client.one(&format!(
        "SELECT coalesce(string_agg(concat_ws(' ', left(tenant::text, 1), resource, used, quota_limit, over_by), ', '
             ORDER BY tenant, resource), '')
         FROM tenant_plan_impact('free', '{limits}')"
    ))
}

/// Above the limit is over, at it is not; unlimited nobody is.
#[test]
fn who_uses_more_than_the_limit_is_over() {
    let (_db, mut operator) = used();
    assert_eq!(over(&mut operator, r#"{"calls": 8}"#), "");
    assert_eq!(over(&mut operator, r#"{"calls": 5}"#), "a calls 8 5 3");
    assert_eq!(
        over(&mut operator, r#"{"calls": 0, "seats": 2}"#),
        "a calls 8 0 8, a seats 3 2 1, b calls 5 0 5"
    );
    assert_eq!(over(&mut operator, r#"{"calls": null, "seats": 0}"#), "a seats 3 0 3");
    assert_eq!(over(&mut operator, "{}"), "");
}

/// Nothing changes.
#[test]
fn a_dry_run_changes_nothing() {
    let (db, mut operator) = used();
    over(&mut operator, r#"{"calls": 0}"#);
    db.connect_as(&db.app(), A).run("SELECT * FROM tenant_quota_consume('calls', 2)");
}

/// A tenant's own limit that wins counts; one that has expired does not.
#[test]
fn overrides_are_respected() {
    let (db, mut operator) = used();
    db.admin()
        .run(&format!("SELECT tenant_quota_set('{A}', 'calls', 100), tenant_quota_set('{B}', 'calls', 2)"));
    assert_eq!(over(&mut operator, r#"{"calls": 4}"#), "b calls 5 2 3");
    db.admin().run("UPDATE tenant_rls.overrides SET expires_at = '2020-01-01'");
    assert_eq!(over(&mut operator, r#"{"calls": 4}"#), "a calls 8 4 4, b calls 5 4 1");
    db.admin().run(&format!("SELECT tenant_quota_set('{A}', 'calls', NULL, unlimited => true)"));
    assert_eq!(over(&mut operator, r#"{"calls": 4}"#), "b calls 5 4 1");
}

/// Tenants of other plans, and deleted ones, are not asked about; a resource that the plan does not name yet is.
#[test]
fn who_is_asked_about() {
    let (db, mut operator) = used();
    db.admin().run("DELETE FROM tenant_rls.plan_limits WHERE plan = 'free' AND resource = 'seats'");
    assert_eq!(
        over(&mut operator, r#"{"calls": 1, "seats": 1}"#),
        "a calls 8 1 7, a seats 3 1 2, b calls 5 1 4"
    );
    db.admin().run(&format!("SELECT tenant_plan_change('{A}', 'starter'), tenant_delete('{B}')"));
    assert_eq!(over(&mut operator, r#"{"calls": 1}"#), "");
}

/// What is refused, and to whom.
#[test]
fn impact_refuses() {
    let (db, mut operator) = used();
    let mut app = db.connect_as(&db.app(), A);
    assert_eq!(app.fails("SELECT * FROM tenant_plan_impact('free', '{}')"), "42501");
    for (arguments, state) in [
        ("'none', '{}'", "42704"),
        ("'free', '{\"cows\": 1}'", "42704"),
        ("NULL, '{}'", "22004"),
        ("'free', NULL", "22004"),
        ("'free', '[]'", "22023"),
        ("'free', 'null'", "22023"),
        ("'free', '{\"calls\": -1}'", "22023"),
        ("'free', '{\"calls\": 1.5}'", "22023"),
        ("'free', '{\"calls\": \"1\"}'", "22023"),
        ("'free', '{\"calls\": 1e400}'", "22023"),
    ] {
        refuses(&mut operator, &[(&format!("SELECT * FROM tenant_plan_impact({arguments})"), state)]);
    }
    operator.run("SELECT * FROM tenant_plan_impact('free', '{\"calls\": 1}')");
}
