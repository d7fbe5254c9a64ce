//! The server log names the tenant, and no row of another one.

use postgres::Client;

use super::ways::shop;
use crate::cluster::Cluster;
use crate::harness::{A, B, Session, report};

/// A server whose log holds each message whole, and a session of the application in it.
fn start() -> (Cluster, Client) {
    let cluster = Cluster::start(&[
        "shared_preload_libraries = 'tenant_rls'",
        "log_line_prefix = '@'",
        "log_min_error_statement = panic",
    ]);
    shop(&cluster);
    let app = cluster.connect("shop", "app");
    (cluster, app)
}

/// The messages of the log, each with its DETAIL, that contain the text.
fn messages(cluster: &Cluster, text: &str) -> Vec<String> {
    // A DETAIL is a line of its own, with a prefix of its own.
    let log = cluster.log().replace("\n@DETAIL:  ", " DETAIL: ").replace("\n\t", " / ");
    log.lines().filter(|line| line.contains(text)).map(String::from).collect()
}

/// Every message of a session that acts for a tenant names it; its client is not told.
#[test]
fn every_line_names_the_tenant() {
    let (cluster, mut app) = start();
    let warn = |name: &str, detail: &str| format!("DO $$ BEGIN RAISE EXCEPTION '{name}'{detail}; END $$");
    assert_eq!(report(&mut app, &warn("nobody", "")).detail(), None);
    app.run(&format!("SET app.current_tenant = '{A}'"));
    assert_eq!(report(&mut app, &warn("plain", "")).detail(), None);
    assert_eq!(report(&mut app, &warn("with", " USING DETAIL = 'more'")).detail(), Some("more"));
    let told = report(&mut app, &warn("context", ""));
    assert!(!told.where_().unwrap_or_default().contains(A));
    app.run("RESET app.current_tenant");
    report(&mut app, &warn("after", ""));
    assert_eq!(messages(&cluster, "nobody"), ["@ERROR:  nobody"]);
    assert_eq!(messages(&cluster, "plain"), [format!("@ERROR:  plain DETAIL: Tenant: {A}.")]);
    assert_eq!(messages(&cluster, "with"), [format!("@ERROR:  with DETAIL: more / Tenant: {A}.")]);
    assert_eq!(messages(&cluster, "after"), ["@ERROR:  after"]);
}

/// Statements that the server logs name the tenant, and so tell those that go without one.
#[test]
fn a_logged_statement_names_its_tenant() {
    let (cluster, _) = start();
    cluster.connect("shop", "postgres").run("ALTER ROLE app SET log_statement = 'all'");
    let mut app = cluster.connect("shop", "app");
    app.run("SELECT 'without'");
    app.run(&format!("BEGIN; SELECT set_tenant('{A}')"));
    app.run("SELECT 'with'");
    app.query("SELECT 'prepared ' || $1", &[&"x"]).expect("a row");
    app.run("COMMIT");
    app.run("SELECT 'after'");
    let detail = |text: &str| {
        let found = messages(&cluster, text);
        assert_eq!(found.len(), 1, "{}", cluster.log());
        found[0].contains(&format!("Tenant: {A}."))
    };
    let told = ["'without'", "'with'", "'prepared '", "'after'"].map(detail);
    assert_eq!(told, [false, true, true, false]);
}

/// log_switch writes a line for each change, also for those that the end of a transaction makes.
#[test]
fn each_change_is_a_line() {
    let (cluster, mut app) = start();
    app.run(&format!("SET app.current_tenant = '{A}'; RESET app.current_tenant"));
    assert_eq!(messages(&cluster, "tenant changed").len(), 0);
    assert_eq!(app.fails("SET tenant_rls.log_switch = on"), "42501");
    cluster.connect("shop", "postgres").run("ALTER DATABASE shop SET tenant_rls.log_switch = on");
    let mut app = cluster.connect("shop", "app");
    let pid: i32 = app.one("SELECT pg_backend_pid()");
    app.run(&format!("SET app.current_tenant = '{A}'"));
    app.run(&format!("SET app.current_tenant = '{A}'"));
    app.run(&format!("BEGIN; SELECT set_tenant('{B}'); COMMIT"));
    app.run(&format!("BEGIN; SELECT set_tenant('{B}'); ROLLBACK"));
    app.run("RESET ALL");
    let line = |from: &str, to: &str| {
        format!("@LOG:  tenant changed from {from} to {to} by role \"app\", pid {pid}")
    };
    let found: Vec<String> = messages(&cluster, "tenant changed")
        .iter()
        .map(|line| line.split(" DETAIL").next().unwrap_or_default().to_string())
        .collect();
    let none = "none";
    assert_eq!(
        found,
        [line(none, A), line(A, B), line(B, A), line(A, B), line(B, A), line(A, none)],
        "{}",
        cluster.log()
    );
}

/// Violations of constraints show no values where policies hold, neither to the client nor in the log.
#[test]
fn violations_name_no_values() {
    let (cluster, mut app) = start();
    let mut admin = cluster.connect("shop", "postgres");
    admin.run(
        "ALTER TABLE orders ADD UNIQUE (note), ADD CHECK (note <> 'bad');
         CREATE TABLE lines (id int PRIMARY KEY, tenant_id uuid NOT NULL, order_id int REFERENCES orders);
         SELECT tenant_protect('lines');
         CREATE TABLE rooms (tenant_id uuid NOT NULL, room int, EXCLUDE USING hash (room WITH =));
         SELECT tenant_protect('rooms');
         GRANT SELECT, INSERT, UPDATE, DELETE ON lines, rooms TO app;",
    );
    admin.run(&format!("INSERT INTO lines VALUES (1, '{A}', 1); INSERT INTO rooms VALUES ('{B}', 55)"));
    app.run(&format!("SET app.current_tenant = '{A}'"));
    for (session, shown) in [(&mut app, false), (&mut admin, true)] {
        for (sql, code, value) in [
            (format!("INSERT INTO orders VALUES (9, '{A}', 'b3')"), "23505", "(b3)"),
            (format!("INSERT INTO orders VALUES (3, '{A}', 'x')"), "23505", "(3)"),
            (format!("INSERT INTO orders VALUES (10, '{A}', 'bad')"), "23514", "bad"),
            (format!("INSERT INTO lines VALUES (2, '{A}', 77)"), "23503", "(77)"),
            (format!("DELETE FROM orders WHERE id = 1 AND tenant_id = '{A}'"), "23503", "(1)"),
            (format!("INSERT INTO rooms VALUES ('{A}', 55)"), "23P01", "(55)"),
        ] {
            let error = report(session, &sql);
            assert_eq!(error.code().code(), code, "{sql}");
            assert_eq!(
                error.detail().unwrap_or_default().contains(value),
                shown,
                "{sql}: {:?}",
                error.detail()
            );
        }
    }
    for value in ["(b3)", "(3)", "(77)", "(1)", "(55)"] {
        assert_eq!(
            messages(&cluster, &format!("={value} ")).len(),
            1,
            "{value} in the log, as the superuser"
        );
    }
}
