//! Periods: which one a call belongs to, when it ends, what it is counted from.

use postgres::Client;
use serde_json::json;

use super::{VERDICT, fields, limited};
use crate::harness::{A, Db, Session, answer, eventually};

/// A database whose plan free has 5 of a counter for each period.
fn periodic() -> Db {
    let db = limited();
    db.admin().run(
        "SELECT tenant_resource_define('by_' || p, 'counter', 'call', p), tenant_plan_limit_set('free', 'by_' || p, 5)
         FROM unnest(ARRAY['second', 'minute', 'hour', 'day', 'week', 'month', 'year']) AS p",
    );
    db
}

/// Calendar periods in UTC, as date_trunc cuts them, whatever the time zone of the session.
#[test]
fn periods_are_those_of_the_calendar_in_utc() {
    let db = periodic();
    let mut app = db.connect_as(&db.app(), A);
    app.run("SET timezone = 'Asia/Kathmandu'");
    for period in ["second", "minute", "hour", "day", "week", "month", "year"] {
        let before: String = app.one("SELECT clock_timestamp()::text");
        let right: bool = app.one(&format!(
            "SELECT period_start IN (date_trunc('{period}', '{before}'::timestamptz, 'UTC'),
                 date_trunc('{period}', clock_timestamp(), 'UTC'))
             AND resets_at = (period_start AT TIME ZONE 'UTC' + interval '1 {period}') AT TIME ZONE 'UTC'
             FROM tenant_quota_consume('by_{period}')"
        ));
        assert!(right, "{period}");
    }
}

/// A new period starts at 0, in an open transaction too: the clock is not that of its start.
#[test]
fn a_new_period_starts_at_zero() {
    let db = periodic();
    let mut app = db.connect_as(&db.app(), A);
    app.run("BEGIN");
    // Up to the limit of one second: the first answer may be of the second before.
    let full = (0..100).find_map(|_| {
        let denied = answer(&mut app, "tenant_quota_try_consume('by_second', 5)");
        (denied["allowed"] == false).then_some(denied)
    });
    let full = full.expect("two calls within one second");
    assert_eq!(fields(&full, VERDICT), json!([false, 0, 5, 0, "limit"]));
    let resets_at = full["resets_at"].as_str().expect("an instant");
    eventually(&mut app, &format!("SELECT clock_timestamp() >= '{resets_at}'"));
    let next = answer(&mut app, "tenant_quota_consume('by_second', 3)");
    assert_eq!(fields(&next, VERDICT), json!([true, 3, 3, 2, "ok"]));
    app.run("COMMIT");
}

/// An own limit holds until it expires, in an open session.
#[test]
fn an_override_expires() {
    let db = limited();
    let mut app = db.connect_as(&db.app(), A);
    let set = |seconds: i32| {
        format!(
            "SELECT tenant_quota_set('{A}', 'calls', 50, expires_at => clock_timestamp() + interval '{seconds} s')"
        )
    };
    db.admin().run(&set(3600));
    assert_eq!(answer(&mut app, "tenant_quota_check('calls')")["source"], "override");
    db.admin().run(&set(1));
    eventually(
        &mut db.admin(),
        &format!("SELECT expires_at < clock_timestamp() FROM tenant_rls.overrides WHERE tenant_id = '{A}'"),
    );
    let after = answer(&mut app, "tenant_quota_check('calls')");
    assert_eq!(fields(&after, &["quota_limit", "source"]), json!([10, "plan"]));
}

/// The start and end of the month of a call, as text in UTC.
fn month(app: &mut Client) -> (String, String) {
    app.run("SET timezone = 'UTC'");
    let row = app
        .query_one("SELECT period_start::text, resets_at::text FROM tenant_quota_check('by_month')", &[])
        .expect("an answer");
    (row.get(0), row.get(1))
}

/// A billing anchor leaves the period that is running as it is.
#[test]
fn a_billing_anchor_does_not_change_the_running_period() {
    let db = periodic();
    let mut app = db.connect_as(&db.app(), A);
    let before = month(&mut app);
    db.admin().run(&format!("SELECT tenant_billing_set('{A}', '2025-01-15 09:00+01', 'Europe/Berlin')"));
    assert_eq!(month(&mut app), before);
}

/// From the next period on, periods are counted from the anchor in its time zone.
#[test]
fn a_billing_anchor_counts_from_the_next_period_on() {
    let db = periodic();
    let mut app = db.connect_as(&db.app(), A);
    db.admin().run(&format!(
        "SELECT tenant_billing_set('{A}', '2025-01-15 09:00+01', 'Europe/Berlin');
         UPDATE tenant_rls.billing_changes SET changed_at = changed_at - interval '3 months'"
    ));
    let right: bool = app.one(
        "SELECT q.period_start = max(s.start) FILTER (WHERE s.start <= clock_timestamp())
             AND q.resets_at = min(s.start) FILTER (WHERE s.start > clock_timestamp())
         FROM tenant_quota_consume('by_month') AS q,
         LATERAL (SELECT g AT TIME ZONE 'Europe/Berlin' AS start
             FROM generate_series(timestamp '2025-01-15 09:00', now()::timestamp + interval '2 months', '1 month') AS g) AS s
         GROUP BY q.period_start, q.resets_at",
    );
    assert!(right);
}

/// A second that is counted from an anchor begins at its fraction, after the one that was running.
#[test]
fn an_anchored_second_follows_the_running_one() {
    let db = periodic();
    let mut app = db.connect_as(&db.app(), A);
    db.admin().run(&format!("SELECT tenant_billing_set('{A}', '2025-01-01 00:00:00.25Z', 'UTC')"));
    eventually(
        &mut app,
        "SELECT extract(microseconds FROM period_start)::int % 1000000 = 250000
             AND resets_at = period_start + interval '1 s' FROM tenant_quota_check('by_second')",
    );
}

/// Taking the anchor back returns to the calendar.
#[test]
fn billing_can_return_to_the_calendar() {
    let db = periodic();
    let mut app = db.connect_as(&db.app(), A);
    let before = month(&mut app);
    db.admin().run(&format!(
        "SELECT tenant_billing_set('{A}', '2025-01-15 09:00+01', 'Europe/Berlin');
         SELECT tenant_billing_set('{A}', NULL, NULL);
         UPDATE tenant_rls.billing_changes SET changed_at = changed_at - interval '3 months'"
    ));
    assert_eq!(month(&mut app), before);
}
