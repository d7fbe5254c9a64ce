//! Who may act for whom.

use super::{UNKNOWN, current, notes};
use crate::harness::{A, B, Db, Session};

/// Makes a login role that may read the orders, and may act for nobody yet.
fn reader(db: &Db, name: &str, options: &str) -> String {
    let role = db.role_name(name);
    db.role(&role, &format!("LOGIN {options}"));
    db.admin().run(&format!("GRANT SELECT ON orders TO {role}"));
    role
}

fn set(tenant: &str) -> String {
    format!("SET app.current_tenant = '{tenant}'")
}

/// A role without a grant acts for no tenant; with one, for every.
#[test]
fn a_grant_is_needed() {
    let db = Db::with_orders();
    let role = reader(&db, "role", "");
    let mut session = db.connect(&role);
    assert_eq!(session.fails(&set(A)), "42501");
    db.admin().run(&format!("SELECT tenant_grant('{role}')"));
    session.run(&set(A));
    assert_eq!(notes(&mut session), ["a1", "a2"]);
    session.run(&set(B));
    assert_eq!(notes(&mut session), ["b3", "b4"]);
}

/// A grant for one tenant holds for that one, and can be taken back.
#[test]
fn a_grant_for_one_tenant_holds_for_it() {
    let db = Db::with_orders();
    let role = reader(&db, "role", "");
    let mut admin = db.admin();
    let mut session = db.connect(&role);
    admin.run(&format!("SELECT tenant_grant('{role}', '{A}')"));
    session.run(&set(A));
    assert_eq!(session.fails(&set(B)), "42501");
    admin.run(&format!("SELECT tenant_revoke('{role}', '{A}')"));
    assert_eq!(session.fails(&set(A)), "42501");
}

/// A revoke takes back what it names, and leaves the other grants.
#[test]
fn a_revoke_takes_back_what_it_names() {
    let db = Db::with_orders();
    let role = reader(&db, "role", "");
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_grant('{role}'), tenant_grant('{role}', '{A}')"));
    admin.run(&format!("SELECT tenant_revoke('{role}')"));
    let mut session = db.connect(&role);
    session.run(&format!("SELECT set_tenant('{A}', false)"));
    assert_eq!(session.fails(&set(B)), "42501");
}

/// The members of a role may do what the role may.
#[test]
fn members_inherit_a_grant() {
    let db = Db::with_orders();
    let group = db.role_name("team");
    db.role(&group, "NOLOGIN");
    let member = reader(&db, "member", "");
    let mut session = db.connect(&member);
    db.admin().run(&format!("SELECT tenant_grant('{group}')"));
    assert_eq!(session.fails(&set(A)), "42501");
    db.admin().run(&format!("GRANT {group} TO {member}"));
    session.run(&set(A));
    assert_eq!(notes(&mut session), ["a1", "a2"]);
}

/// A member that does not inherit has the grant only as the role itself.
#[test]
fn noinherit_members_need_set_role() {
    let db = Db::with_orders();
    let group = db.role_name("team");
    db.role(&group, "NOLOGIN");
    let member = reader(&db, "member", "NOINHERIT");
    db.admin().run(&format!(
        "SELECT tenant_grant('{group}'); GRANT SELECT ON orders TO {group}; GRANT {group} TO {member}"
    ));
    let mut session = db.connect(&member);
    assert_eq!(session.fails(&set(A)), "42501");
    session.run(&format!("SET ROLE {group}; {}", set(A)));
    assert_eq!(notes(&mut session), ["a1", "a2"]);
}

/// A tenant set as one role does not serve another that may not have it.
#[test]
fn set_role_is_followed() {
    let db = Db::with_orders();
    let other = reader(&db, "other", "");
    let app = db.app();
    db.admin().run(&format!("GRANT {other} TO {app}"));
    let mut session = db.connect_as(&app, A);
    assert_eq!(notes(&mut session), ["a1", "a2"]);
    session.run(&format!("SET ROLE {other}"));
    assert_eq!(session.fails("SELECT FROM orders"), "42501");
    assert_eq!(current(&mut session), None);
    session.run("RESET ROLE");
    assert_eq!(notes(&mut session), ["a1", "a2"]);
}

/// A SECURITY DEFINER function lends no tenants: the role that calls it counts.
#[test]
fn security_definer_is_not_followed() {
    let db = Db::with_orders();
    let stranger = reader(&db, "stranger", "");
    let app = db.app();
    db.admin().run(&format!(
        "CREATE FUNCTION lend() RETURNS uuid LANGUAGE sql SECURITY DEFINER AS $$ SELECT set_tenant('{A}', false) $$;
         CREATE FUNCTION peek() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT min(note) FROM orders';
         ALTER FUNCTION lend() OWNER TO {app}; ALTER FUNCTION peek() OWNER TO {stranger}"
    ));
    assert_eq!(db.connect(&stranger).fails("SELECT lend()"), "42501");
    let mut session = db.connect(&app);
    session.run("SELECT lend()");
    assert_eq!(session.one::<String>("SELECT peek()"), "a1");
}

/// A refusal inside a SECURITY DEFINER function leaves no tenant either.
#[test]
fn a_refusal_in_a_definer_function_leaves_no_tenant() {
    let db = Db::with_orders();
    let role = reader(&db, "role", "");
    db.admin().run(&format!(
        "SELECT tenant_grant('{role}', '{A}');
         CREATE FUNCTION try() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS
         $$ BEGIN PERFORM set_tenant('{B}', false); EXCEPTION WHEN insufficient_privilege THEN NULL; END $$"
    ));
    let mut session = db.connect_as(&role, A);
    session.run("SELECT try()");
    assert_eq!(session.fails("SELECT FROM orders"), "55000");
}

/// An index expression, which runs with its owner's rights for whoever builds the index, sets no tenant.
#[test]
fn a_restricted_operation_cannot_set() {
    let db = Db::with_orders();
    let mut admin = db.admin();
    admin.run(&format!(
        "CREATE FUNCTION sneak(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
         $$ BEGIN PERFORM public.set_tenant('{A}', false); RETURN 1; END $$;
         CREATE TABLE t AS SELECT 1 AS i"
    ));
    assert_eq!(admin.fails("CREATE INDEX ON t (sneak(i))"), "42501");
    admin.run("SELECT sneak(i) FROM t");
}

/// NULL means no role and no tenant, not all of them.
#[test]
fn null_grants_nothing() {
    let db = Db::with_orders();
    let role = reader(&db, "role", "");
    let mut admin = db.admin();
    for call in [
        "tenant_grant(NULL)".to_string(),
        format!("tenant_grant('{role}', NULL)"),
        format!("tenant_grant(NULL, '{A}')"),
        format!("tenant_grant('{role}', '{A}', NULL)"),
        "tenant_revoke(NULL)".to_string(),
        format!("tenant_revoke('{role}', NULL)"),
        "tenant_grant_operator(NULL)".to_string(),
        "tenant_revoke_operator(NULL)".to_string(),
    ] {
        assert_eq!(admin.fails(&format!("SELECT {call}")), "22004", "{call}");
    }
    assert_eq!(db.connect(&role).fails(&set(A)), "42501");
}

/// Neither SET nor set_tenant works for a role that needs a ticket.
#[test]
fn a_role_that_needs_a_ticket_cannot_set() {
    let db = Db::with_orders();
    let role = reader(&db, "role", "");
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_grant('{role}', '{A}', ticket_required => true)"));
    let mut session = db.connect(&role);
    for sql in [set(A), format!("SELECT set_tenant('{A}', false)")] {
        assert_eq!(session.fails(&sql), "42501", "{sql}");
    }
    admin.run(&format!("SELECT tenant_grant('{role}', '{A}')"));
    for sql in [set(A), format!("SELECT set_tenant('{A}', false)")] {
        session.run(&sql);
    }
}

/// Superusers and BYPASSRLS roles act for every tenant, and are told that policies do not hold for them.
#[test]
fn a_bypassing_role_is_warned() {
    let db = Db::with_orders();
    let bypass = reader(&db, "bypass", "BYPASSRLS");
    let superuser = reader(&db, "root", "SUPERUSER");
    for (role, warnings) in [(&bypass, 1), (&superuser, 1), (&db.app(), 0)] {
        let (mut session, notices) = db.connect_listening(role, "");
        session.run(&set(A));
        assert_eq!(notices.warnings(), warnings, "{role}");
        assert_eq!(current(&mut session).as_deref(), Some(A), "{role}");
    }
}

/// A role that is dropped and made again under the same name inherits nothing.
#[test]
fn a_role_made_again_inherits_nothing() {
    let db = Db::with_orders();
    let role = db.role_name("role");
    db.role(&role, "LOGIN");
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_grant('{role}')"));
    db.connect(&role).run(&set(A));
    admin.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
    db.role(&role, "LOGIN");
    assert_eq!(db.connect(&role).fails(&set(A)), "42501");
}

/// An application cannot run the registry, an operator can.
#[test]
fn only_an_operator_runs_the_registry() {
    let db = Db::with_orders();
    let create = format!("SELECT tenant_create('{UNKNOWN}')");
    let mut app = db.connect(&db.app());
    assert_eq!(app.fails(&create), "42501");
    db.admin().run(&format!("SELECT tenant_grant_operator('{}')", db.app()));
    app.run(&create);
    db.admin().run(&format!("SELECT tenant_revoke_operator('{}')", db.app()));
    assert_eq!(app.fails(&format!("SELECT tenant_suspend('{A}')")), "42501");
    app.run(&set(A));
}

/// A role that was renamed keeps its grant, and loses it by its new name.
#[test]
fn a_renamed_role_can_be_revoked() {
    let db = Db::with_orders();
    let renamed = db.role_name("renamed");
    db.admin().run(&format!("ALTER ROLE {} RENAME TO {renamed}", db.app()));
    let mut app = db.connect_as(&renamed, A);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM orders"), 2);
    db.admin().run(&format!("SELECT tenant_revoke('{renamed}')"));
    assert_eq!(app.fails("SELECT count(*) FROM orders"), "42501");
}

/// Whoever owns the database is a member of a role of the server: no longer when it has another owner.
#[test]
fn the_owner_of_the_database_is_a_member_too() {
    let db = Db::with_orders();
    let (one, other) = (reader(&db, "one", ""), reader(&db, "other", ""));
    let mut admin = db.admin();
    admin.run(&format!(
        "ALTER DATABASE {} OWNER TO {one}; SELECT tenant_grant('pg_database_owner')",
        db.name()
    ));
    let mut session = db.connect(&one);
    session.run(&format!("{}; BEGIN", set(A)));
    assert_eq!(notes(&mut session), ["a1", "a2"]);
    admin.run(&format!("ALTER DATABASE {} OWNER TO {other}", db.name()));
    assert_eq!(session.fails("SELECT FROM orders"), "42501");
    db.connect(&other).run(&set(A));
}
