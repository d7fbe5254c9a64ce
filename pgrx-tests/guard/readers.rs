//! Views, rules and functions over protected tables.

use super::{is_let_through, owner, recorded, shop, state};
use crate::harness::{A, Db, Session, refuses};

/// Views that a superuser would read all tenants through: made, replaced, altered, given away, over other views.
#[test]
fn a_definer_view_of_a_bypassing_role_is_refused() {
    let db = shop();
    let mut admin = db.admin();
    admin.run(
        "CREATE VIEW invoker WITH (security_invoker) AS SELECT * FROM orders;
         CREATE VIEW twice WITH (security_invoker) AS SELECT * FROM invoker",
    );
    let role = db.role_name("owner");
    admin.run(&format!(
        "SET client_min_messages = error; SET ROLE {role}; CREATE VIEW of_owner AS SELECT * FROM orders; RESET ROLE"
    ));
    let me: String = admin.one("SELECT quote_ident(current_user)");
    let before = state(&mut admin);
    for sql in [
        "CREATE VIEW v AS SELECT * FROM orders",
        "CREATE VIEW v AS SELECT count(*) FROM open WHERE note IN (SELECT note FROM events_2_a)",
        "CREATE VIEW v WITH (security_invoker = off) AS SELECT * FROM orders",
        "CREATE VIEW v AS SELECT * FROM invoker",
        "CREATE VIEW v AS SELECT id FROM twice JOIN open USING (tenant_id)",
        "CREATE RECURSIVE VIEW v (id) AS SELECT id FROM orders",
        "CREATE OR REPLACE VIEW invoker AS SELECT * FROM orders",
        "ALTER VIEW invoker SET (security_invoker = false)",
        "ALTER VIEW twice RESET (security_invoker)",
        "ALTER TABLE twice RESET (security_invoker)",
        &format!("ALTER VIEW of_owner OWNER TO {me}"),
        &format!("ALTER TABLE of_owner OWNER TO {me}"),
        &format!("REASSIGN OWNED BY {role} TO {me}"),
        "CREATE SCHEMA s CREATE TABLE t (id int) CREATE VIEW v AS SELECT * FROM orders",
        "CREATE RULE r AS ON INSERT TO open DO ALSO INSERT INTO items (tenant_id) VALUES (NEW.tenant_id)",
        "CREATE RULE r AS ON UPDATE TO invoker DO INSTEAD DELETE FROM orders",
        "CREATE MATERIALIZED VIEW v AS SELECT * FROM orders",
        "CREATE MATERIALIZED VIEW v AS SELECT * FROM of_owner WITH NO DATA",
    ] {
        // A rule runs as the owner of its table.
        admin.run(&format!("ALTER TABLE open OWNER TO {me}"));
        assert_eq!(admin.fails(sql), "42501", "{sql}");
        is_let_through(&db, sql);
        admin.run(&format!("ALTER TABLE open OWNER TO {role}"));
    }
    assert_eq!(state(&mut admin), before);
    assert_eq!(recorded(&mut admin), 0);
    let keeper = db.role_name("keeper");
    db.role(&keeper, "");
    admin.run(&format!("BEGIN; REASSIGN OWNED BY {role} TO {keeper}; ROLLBACK"));
    // A copy that is there may go to another, not to an application.
    db.breaker()
        .run(&format!("CREATE MATERIALIZED VIEW m AS SELECT * FROM orders; ALTER TABLE m OWNER TO {role}"));
    admin.run(&format!("ALTER MATERIALIZED VIEW m OWNER TO {me}; ALTER TABLE m OWNER TO {me}"));
    assert_eq!(admin.fails(&format!("ALTER MATERIALIZED VIEW m OWNER TO {}", db.app())), "42501");
}

/// A view that is read as an owner for whom the policies hold shows the rows of the tenant: a WARNING. One of the
/// session alone concerns nobody else.
#[test]
fn a_definer_view_of_a_subject_owner_is_warned_about() {
    let db = shop();
    let (app, role) = (db.app(), db.role_name("owner"));
    let (mut session, notices) = db.connect_listening(&role, "");
    session.run("CREATE VIEW v AS SELECT * FROM orders");
    assert_eq!(notices.warnings(), 1);
    session.run("ALTER VIEW v SET (security_invoker)");
    assert_eq!(notices.warnings(), 0);
    session.run("ALTER VIEW v RESET (security_invoker)");
    assert_eq!(notices.warnings(), 1);
    session.run("CREATE TEMPORARY VIEW t AS SELECT * FROM orders");
    assert_eq!(notices.warnings(), 0);
    session.run(&format!("GRANT SELECT ON v TO {app}"));
    assert_eq!(db.connect_as(&app, A).one::<i64>("SELECT count(*) FROM v"), 1);
    let off = "-c client_min_messages=warning";
    db.admin().run(&format!("ALTER ROLE {role} SET tenant_rls.ddl_guard = off"));
    let (mut session, notices) = db.connect_listening(&role, off);
    session.run("CREATE VIEW w AS SELECT * FROM orders");
    assert_eq!(notices.warnings(), 0);
}

/// An application that may create objects makes views that show what it sees anyway, and no copy of rows.
#[test]
fn an_application_makes_no_copy() {
    let db = shop();
    let app = db.app();
    db.admin().run(&format!("CREATE SCHEMA mine AUTHORIZATION {app}"));
    let mut session = db.connect_as(&app, A);
    session.run("CREATE VIEW mine.v AS SELECT * FROM orders");
    assert_eq!(session.one::<i64>("SELECT count(*) FROM mine.v"), 1);
    refuses(
        &mut session,
        &[
            // To fill it, a tenant would have to hold where code of its owner runs.
            ("CREATE MATERIALIZED VIEW mine.m AS SELECT * FROM orders", "55000"),
            ("CREATE MATERIALIZED VIEW mine.m AS SELECT * FROM orders WITH NO DATA", "42501"),
            ("CREATE MATERIALIZED VIEW mine.m AS SELECT * FROM mine.v WITH NO DATA", "42501"),
        ],
    );
    session.run("CREATE TABLE mine.copied AS SELECT note FROM orders");
}

/// A function of a bypassing owner that names a protected table is refused where its body tells; where it does not, a
/// WARNING says so to whoever lets applications call it.
#[test]
fn definer_functions_are_judged_by_what_is_known() {
    let db = shop();
    let (app, role) = (db.app(), db.role_name("owner"));
    let mut admin = db.admin();
    let atomic = "RETURNS bigint LANGUAGE sql SECURITY DEFINER BEGIN ATOMIC SELECT count(*) FROM {}; END";
    for table in ["orders", "events_2", "seen"] {
        let create = format!("CREATE FUNCTION f() {}", atomic.replace("{}", table));
        assert_eq!(admin.fails(&create), "42501", "{table}");
        is_let_through(&db, &create);
    }
    admin.run(&format!(
        "CREATE FUNCTION g() {}; CREATE FUNCTION h() {}",
        atomic.replace("{}", "open"),
        atomic.replace("{}", "orders").replace("DEFINER", "INVOKER")
    ));
    refuses(
        &mut admin,
        &[
            ("ALTER FUNCTION h() SECURITY DEFINER", "42501"),
            ("ALTER ROUTINE h() SECURITY DEFINER", "42501"),
            (
                "CREATE OR REPLACE FUNCTION g() RETURNS bigint LANGUAGE sql SECURITY DEFINER BEGIN ATOMIC SELECT count(*) FROM items; END",
                "42501",
            ),
            (
                "CREATE PROCEDURE p() LANGUAGE sql SECURITY DEFINER BEGIN ATOMIC DELETE FROM orders; END",
                "42501",
            ),
        ],
    );
    owner(&db).run(&format!("CREATE FUNCTION of_owner() {}", atomic.replace("{}", "orders")));
    let me: String = admin.one("SELECT quote_ident(current_user)");
    for give in
        [format!("ALTER FUNCTION of_owner() OWNER TO {me}"), format!("REASSIGN OWNED BY {role} TO {me}")]
    {
        assert_eq!(admin.fails(&give), "42501");
        is_let_through(&db, &give);
    }

    let opaque = "RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM shop.orders'";
    let (sender, heard) = std::sync::mpsc::channel();
    let mut admin = db.open(None, move |notice| sender.send(notice.severity().to_string()).unwrap());
    let mut warns = |sql: &str| {
        admin.run(sql);
        heard.try_iter().filter(|severity| severity == "WARNING").count() > 0
    };
    assert!(warns(&format!("CREATE FUNCTION a() {opaque}")));
    assert!(!warns("REVOKE EXECUTE ON FUNCTION a() FROM PUBLIC"));
    assert!(!warns(&format!("GRANT EXECUTE ON FUNCTION a() TO {me}")));
    assert!(warns(&format!("GRANT EXECUTE ON FUNCTION a() TO {app}")));
    assert!(!warns(&format!("ALTER FUNCTION a() OWNER TO {role}")));
    assert!(!warns(
        "CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN RETURN NEW; END'"
    ));
    let mut empty = Db::new().admin();
    empty.run(&format!("CREATE FUNCTION a() {}", opaque.replace("shop.orders", "pg_class")));
}
