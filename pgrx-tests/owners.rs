//! Whoever owns a table can put code where others meet it: conditions of indexes and constraints, triggers. What the
//! extension does with such a table, in the session of a superuser, an operator or another tenant, runs that code
//! with the rights of the table's owner, for no tenant, and without a trace in the session.

use postgres::Client;

use crate::harness::{A, B, Db, Session};

const C: &str = "cccccccc-0000-4000-8000-00000000000c";

/// A database of two tenants in which a role without any grant, `mallory`, owns a protected table, `own.bait`, with
/// rows of A and B, and may read and write the orders of all. What its code does is written into `own.seen`.
///
/// `trap` is called by the condition of an index and by that of a constraint, which the planner and ALTER TABLE
/// evaluate. It writes down whose rights it has and what it sees of orders and usage, and tries to leave a search_path,
/// another tenant, and a gauge that follows a table of its own.
fn bait() -> Db {
    let db = Db::with_orders();
    let owner = mallory(&db);
    db.role(&owner, "LOGIN");
    db.admin().run(&format!(
        "CREATE SCHEMA own AUTHORIZATION {owner}; GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO {owner};
         GRANT SELECT ON tenant_usage TO {owner};
         GRANT USAGE ON SCHEMA own TO PUBLIC;
         SELECT tenant_create('{C}'), tenant_resource_define('things', 'gauge', 'thing', 'none'), tenant_plan_limit_set('free', 'things', 1000)"
    ));
    db.connect(&owner).run(&format!(
        "CREATE TABLE own.bait (id int PRIMARY KEY, tenant_id uuid, note text);
         CREATE TABLE own.child (id int, tenant_id uuid, bait int REFERENCES own.bait ON DELETE CASCADE);
         INSERT INTO own.bait VALUES (1, '{A}', 'a'), (2, '{B}', 'b'), (3, '{C}', 'c');
         INSERT INTO own.child VALUES (1, '{A}', 1), (2, '{B}', 2);
         CREATE TABLE own.empty (tenant_id uuid);
         CREATE TABLE own.seen (what text, who text, rights text, orders bigint);
         CREATE FUNCTION own.look(what text) RETURNS void LANGUAGE plpgsql AS $$
         DECLARE n bigint;
         BEGIN
             BEGIN
                 SELECT count(*) INTO n FROM public.orders;
             EXCEPTION WHEN OTHERS THEN
                 SELECT nullif(count(*), 0) INTO n FROM public.tenant_usage;
             END;
             INSERT INTO own.seen SELECT what, current_user,
                 (SELECT r.rolsuper::text FROM pg_roles AS r WHERE r.rolname = current_user), n;
             PERFORM set_config('search_path', 'own', false);
             BEGIN
                 PERFORM set_config('app.current_tenant', '', false);
             EXCEPTION WHEN OTHERS THEN NULL;
             END;
             BEGIN
                 PERFORM set_config('app.current_tenant', 'none', false);
             EXCEPTION WHEN OTHERS THEN NULL;
             END;
             BEGIN
                 PERFORM public.tenant_quota_attach('own.empty', 'users');
             EXCEPTION WHEN OTHERS THEN NULL;
             END;
         END $$;
         CREATE FUNCTION own.trap(what text) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT true';
         CREATE INDEX ON own.bait (note) WHERE own.trap('index of bait');
         CREATE INDEX ON own.child (bait) WHERE own.trap('index of child');
         ALTER TABLE own.bait ADD CONSTRAINT trap CHECK (own.trap('constraint of bait'));
         SET client_min_messages = warning; SELECT tenant_protect('own.bait'), tenant_protect('own.child'), tenant_protect('own.empty')"
    ));
    let mut admin = db.admin();
    admin.run("SELECT tenant_quota_attach('own.bait', 'things')");
    db.connect(&owner).run(
        "CREATE OR REPLACE FUNCTION own.trap(what text) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS
         $$ BEGIN PERFORM own.look(what); RETURN true; END $$",
    );
    db
}

fn mallory(db: &Db) -> String {
    db.role_name("mallory")
}

/// What the traps have seen since the last time: each by whom, with whose rights, and how many orders.
fn seen(db: &Db) -> Vec<(String, String, String, Option<i64>)> {
    let mut admin = db.admin();
    let rows = admin.rows("SELECT DISTINCT what, who, rights, orders FROM own.seen");
    admin.run("TRUNCATE own.seen");
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
}

/// The settings that the traps have tried to change, and whether the session still acts for its tenant.
fn settings(session: &mut Client) -> (String, String, bool) {
    let path = session.one("SHOW search_path");
    let tenant = session.one("SHOW app.current_tenant");
    (path, tenant, session.attempt("SELECT FROM public.orders").is_none())
}

/// Runs a call in the session; some of the traps must have been met, all with the rights of their owner alone.
#[track_caller]
fn harmless(db: &Db, session: &mut Client, call: &str) {
    seen(db);
    let before = settings(session);
    session.run(call);
    assert_eq!(settings(session), before, "{call}");
    let met = seen(db);
    assert!(!met.is_empty(), "{call}: no trap was met");
    for (what, who, rights, orders) in met {
        assert_eq!((who, rights.as_str(), orders), (mallory(db), "false", None), "{call}: {what}");
    }
    let attached = "SELECT count(*) FROM tenant_rls.attachments WHERE resource = 'users'";
    assert_eq!(db.admin().one::<i64>(attached), 0, "{call}");
}

/// A tenant that reads how much it stores meets the traps of others.
#[test]
fn a_tenant_counts_its_rows() {
    let db = bait();
    let mut app = db.connect_as(&db.app(), B);
    harmless(&db, &mut app, "SELECT * FROM tenant_storage");
}

/// So do superusers, for all tenants.
#[test]
fn a_superuser_counts_rows() {
    let db = bait();
    for call in [
        "SELECT * FROM tenant_storage",
        "SELECT * FROM tenant_quota_invariants",
        "SELECT tenant_quota_reconcile('own.bait')",
        "SELECT * FROM tenant_audit()",
    ] {
        let mut admin = db.admin();
        admin.run(&format!("SET app.current_tenant = '{A}'"));
        harmless(&db, &mut admin, call);
    }
}

/// And operators, who run the audit with the rights of the extension.
#[test]
fn an_operator_audits() {
    let db = bait();
    let operator = db.role_name("operator");
    db.role(&operator, "LOGIN");
    db.admin().run(&format!("SELECT tenant_grant_operator('{operator}')"));
    let mut operator = db.connect(&operator);
    harmless(&db, &mut operator, "SELECT * FROM tenant_audit()");
}

/// The proof reads, inserts and deletes as the owner, and tries everything as the role.
#[test]
fn a_superuser_proves() {
    let db = bait();
    db.breaker().run(&format!("ALTER TABLE own.bait OWNER TO {0}; CREATE VIEW own.view AS SELECT note FROM own.bait; ALTER VIEW own.view OWNER TO {0}", mallory(&db)));
    // What the traps write down is rolled back with the proof; a sequence remembers.
    db.connect(&mallory(&db)).run(
        "CREATE SEQUENCE own.met; CREATE SEQUENCE own.more;
         CREATE OR REPLACE FUNCTION own.trap(what text) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
             PERFORM nextval('own.met');
             IF (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user) THEN
                 PERFORM nextval('own.more');
             END IF;
             PERFORM set_config('search_path', 'own', false);
             RETURN true;
         END $$;
         GRANT ALL ON own.met, own.more TO PUBLIC;
         CREATE FUNCTION own.format(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM own.trap('x'); RETURN $2; END $$;
         CREATE FUNCTION own.count(text) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN PERFORM own.trap('x'); RETURN 1; END $$;
         CREATE FUNCTION own.strpos(text, text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM own.trap('x'); RETURN 1; END $$",
    );
    let mut admin = db.admin();
    let before = settings(&mut admin);
    admin.run(&format!("SELECT * FROM tenant_prove('{}')", db.app()));
    assert_eq!(settings(&mut admin), before);
    assert!(admin.one::<bool>("SELECT is_called FROM own.met"), "no trap was met");
    assert!(!admin.one::<bool>("SELECT is_called FROM own.more"), "a trap had the rights of a superuser");
}

/// Protecting, repairing and unprotecting tables of others.
#[test]
fn a_superuser_repairs() {
    let db = bait();
    let mut admin = db.admin();
    harmless(&db, &mut admin, "SELECT * FROM tenant_repair('own.child', true)");
    admin.run("SELECT tenant_quota_detach('own.bait', 'things')");
    admin.run("ALTER TABLE own.bait DROP CONSTRAINT trap");
    db.connect(&mallory(&db)).run(
        "CREATE TABLE own.fresh (tenant_id uuid, note text); CREATE TABLE own.part (tenant_id uuid NOT NULL, at date) PARTITION BY RANGE (at);
         CREATE TABLE own.part1 PARTITION OF own.part FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
         ALTER TABLE own.fresh ADD CONSTRAINT trap CHECK (own.trap('constraint of fresh'));
         ALTER TABLE own.part1 ADD CONSTRAINT trap CHECK (own.trap('constraint of part'))",
    );
    harmless(&db, &mut admin, "SELECT tenant_protect('own.fresh')");
    admin.run("SELECT tenant_protect('own.part')");
    db.breaker().run("ALTER TABLE own.part ALTER tenant_id DROP NOT NULL");
    harmless(&db, &mut admin, "SELECT tenant_protect('own.part')");
}

/// Erasing a tenant: the look at foreign keys, rows and triggers, at once or deferred. What is deferred once more would
/// run at the end, with the rights of the caller: it keeps the tenant from being erased.
#[test]
fn an_operator_purges() {
    let db = bait();
    let operator = db.role_name("operator");
    db.role(&operator, "LOGIN");
    db.admin().run(&format!(
        "SELECT tenant_grant_operator('{operator}'); SELECT tenant_delete('{A}'), tenant_delete('{B}')"
    ));
    let mut owner = db.connect(&mallory(&db));
    owner.run(
        "CREATE FUNCTION own.look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM own.look(TG_ARGV[0]); RETURN OLD; END $$;
         CREATE TRIGGER look BEFORE DELETE ON own.bait FOR EACH ROW EXECUTE FUNCTION own.look('trigger');
         CREATE CONSTRAINT TRIGGER later AFTER DELETE ON own.bait DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION own.look('deferred')",
    );
    let mut operator = db.connect(&operator);
    for (session, tenant) in [(&mut operator, A), (&mut db.admin(), B)] {
        harmless(&db, session, &format!("CALL tenant_purge('{tenant}')"));
    }
    db.admin().run(&format!("SELECT tenant_delete('{C}')"));
    owner.run(
        "CREATE FUNCTION own.defer() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN SET CONSTRAINTS ALL DEFERRED; RETURN OLD; END $$;
         CREATE TRIGGER defer BEFORE DELETE ON own.bait FOR EACH ROW EXECUTE FUNCTION own.defer()",
    );
    let purge = format!("CALL tenant_purge('{C}')");
    assert_eq!(operator.fails(&purge), "42501");
    owner.run("DROP TRIGGER defer ON own.bait");
    harmless(&db, &mut operator, &purge);
}

/// What the server itself runs for a table's owner, for whoever has set a tenant: no tenant holds there either.
#[test]
fn maintenance_acts_for_no_tenant() {
    let db = bait();
    db.connect(&mallory(&db)).run(
        "CREATE TABLE own.expressions (note text); INSERT INTO own.expressions VALUES ('x');
         CREATE FUNCTION own.spy(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1';
         CREATE INDEX ON own.expressions (own.spy(note));
         CREATE OR REPLACE FUNCTION own.spy(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
         $$ BEGIN PERFORM own.look('expression'); RETURN $1; END $$",
    );
    let mut admin = db.admin();
    admin.run(&format!("SET app.current_tenant = '{A}'"));
    harmless(&db, &mut admin, "ANALYZE own.expressions");
    harmless(&db, &mut admin, "REINDEX TABLE own.expressions");
}
