//! A streaming standby, before and after its promotion.

use super::ways::shop;
use super::{current, notes};
use crate::cluster::Cluster;
use crate::harness::{A, B, Session, eventually};

const SETTINGS: &[&str] = &["shared_preload_libraries = 'tenant_rls'", "hot_standby_feedback = on"];

/// Waits until the standby has replayed what the primary has done.
pub fn catch_up(primary: &Cluster, standby: &Cluster) {
    let now: String = primary.connect("shop", "postgres").one("SELECT pg_current_wal_flush_lsn()::text");
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{now}'");
    eventually(&mut standby.connect("shop", "postgres"), &replayed);
}

/// A standby keeps tenants apart, hears of a suspension in open sessions, and goes on after its promotion.
#[test]
fn a_standby_isolates_and_takes_over() {
    let primary = Cluster::start(SETTINGS);
    shop(&primary);
    let standby = primary.standby();
    let mut app = standby.connect("shop", "app");

    assert_eq!(app.fails("SELECT FROM orders"), "55000");
    assert_eq!(app.fails("SET app.current_tenant = 'cccccccc-0000-4000-8000-00000000000c'"), "42704");
    app.run(&format!("BEGIN; SELECT set_tenant('{B}')"));
    assert_eq!(notes(&mut app), ["b3", "b4"]);
    app.run("COMMIT");
    app.run(&format!("SET app.current_tenant = '{A}'"));
    assert_eq!(notes(&mut app), ["a1", "a2"]);

    assert_eq!(app.fails("SELECT FROM tenant_quota_consume('api_requests')"), "25006");
    assert_eq!(app.fails("SELECT FROM tenant_quota_try_consume('api_requests')"), "25006");
    assert_eq!(app.fails("UPDATE orders SET note = 'x'"), "25006");
    assert_eq!(app.one::<i64>("SELECT used FROM tenant_quota_check('api_requests')"), 0);

    let mut operator = primary.connect("shop", "postgres");
    // In mid-transaction too, at any isolation level.
    app.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    assert_eq!(notes(&mut app), ["a1", "a2"]);
    operator.run(&format!("SELECT tenant_suspend('{A}')"));
    catch_up(&primary, &standby);
    assert_eq!(app.fails("SELECT FROM orders"), "55000");
    app.run("ROLLBACK");
    assert_eq!(app.fails("SELECT FROM orders"), "55000");
    assert_eq!(app.fails(&format!("SELECT set_tenant('{A}')")), "55000");
    operator.run(&format!("SELECT tenant_resume('{A}')"));
    catch_up(&primary, &standby);
    app.run(&format!("SET app.current_tenant = '{A}'"));
    assert_eq!(notes(&mut app), ["a1", "a2"]);

    primary.down();
    standby.promote();
    // The session from before goes on, and so does a new one.
    assert_eq!(current(&mut app).as_deref(), Some(A));
    app.run("SELECT FROM tenant_quota_consume('api_requests', 3); UPDATE orders SET note = note || '!'");
    let mut other = standby.connect("shop", "app");
    other.run(&format!("SET app.current_tenant = '{A}'"));
    assert_eq!(notes(&mut other), ["a1!", "a2!"]);
    assert_eq!(other.one::<i64>("SELECT used FROM tenant_quota_check('api_requests')"), 3);
    standby.connect("shop", "postgres").run(&format!("SELECT tenant_suspend('{A}')"));
    assert_eq!(app.fails("SELECT FROM orders"), "55000");
    app.run(&format!("SET app.current_tenant = '{B}'"));
    assert_eq!(notes(&mut app), ["b3", "b4"]);
}
