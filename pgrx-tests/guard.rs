//! The DDL guard: what would open a protected table is refused, new partitions are protected, and what an
//! administrator lets through is written down.

mod readers;
mod trees;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use postgres::Client;

use crate::harness::{A, B, Db, Session, refuses, report};

/// Tables of an owner without superuser, protected: plain, in partitions of depth 2, inherited; a table that is not;
/// an application with privileges on all.
fn shop() -> Db {
    let db = Db::new();
    let (app, owner) = (db.app(), db.role_name("owner"));
    db.role(&app, "LOGIN");
    db.role(&owner, "LOGIN");
    db.admin().run(&format!(
        "SELECT tenant_create('{A}', tenant_key => 1), tenant_create('{B}', tenant_key => 2);
         SELECT tenant_grant('{app}'), tenant_grant('{owner}', '{A}');
         CREATE SCHEMA shop AUTHORIZATION {owner}; GRANT USAGE ON SCHEMA shop TO {app}; GRANT CREATE ON DATABASE {0} TO {owner};
         ALTER DATABASE {0} SET search_path = shop, public; SET search_path = shop, public;
         CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw; GRANT USAGE ON FOREIGN SERVER files TO {owner};
         SET ROLE {owner}; SET client_min_messages = error;
         CREATE TABLE orders (tenant_id uuid, id int, note text, PRIMARY KEY (tenant_id, id));
         CREATE TABLE items (tenant_id uuid, id int, order_id int);
         CREATE TABLE events (tenant_id uuid, day int, note text) PARTITION BY LIST (day);
         CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1);
         CREATE TABLE events_2 PARTITION OF events FOR VALUES IN (2) PARTITION BY LIST (note);
         CREATE TABLE events_2_a PARTITION OF events_2 FOR VALUES IN ('a', 'b');
         CREATE TABLE base (tenant_id uuid, note text); CREATE TABLE child () INHERITS (base);
         CREATE TABLE open (tenant_id uuid, note text);
         SELECT tenant_protect(t::regclass) FROM unnest(ARRAY['orders', 'items', 'events', 'base']) AS t;
         CREATE VIEW seen WITH (security_invoker) AS SELECT * FROM orders;
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA shop TO {app};
         RESET ROLE;
         INSERT INTO orders VALUES ('{A}', 1, 'a'), ('{B}', 2, 'b');
         INSERT INTO events VALUES ('{A}', 1, 'a'), ('{B}', 1, 'b'), ('{A}', 2, 'a'), ('{B}', 2, 'b')",
        db.name()
    ));
    db
}

/// A session of the owner of the tables, which acts for [`A`].
fn owner(db: &Db) -> Client {
    let mut owner = db.connect_as(&db.role_name("owner"), A);
    owner.run("SET client_min_messages = error");
    owner
}

/// Commands of the owner by which tables would open.
const OPENING: &[&str] = &[
    "ALTER TABLE orders DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE orders ADD COLUMN x int, DISABLE ROW LEVEL SECURITY, ALTER note SET NOT NULL",
    "ALTER TABLE orders NO FORCE ROW LEVEL SECURITY",
    "ALTER TABLE events DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE events_2 DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE events_2_a NO FORCE ROW LEVEL SECURITY",
    "ALTER TABLE child DISABLE ROW LEVEL SECURITY",
    "DROP POLICY tenant_boundary ON orders",
    "DROP POLICY tenant_isolation ON events_2_a",
    "ALTER POLICY tenant_boundary ON orders USING (true)",
    "ALTER POLICY tenant_boundary ON orders WITH CHECK (true)",
    "ALTER POLICY tenant_isolation ON orders TO @app",
    "ALTER POLICY tenant_boundary ON orders RENAME TO other",
    "ALTER TABLE items ALTER tenant_id DROP NOT NULL",
    "ALTER TABLE events ALTER tenant_id DROP NOT NULL",
    "ALTER TABLE orders ALTER tenant_id DROP DEFAULT",
    "ALTER TABLE orders ALTER tenant_id SET DEFAULT gen_random_uuid()",
    "ALTER TABLE orders RENAME tenant_id TO t",
    "ALTER TABLE base RENAME tenant_id TO t",
    "ALTER TABLE items DROP COLUMN tenant_id CASCADE",
    "ALTER TABLE items ADD COLUMN x uuid DEFAULT required_tenant()",
    "ALTER TABLE open ADD COLUMN x bigint NOT NULL DEFAULT coalesce(current_tenant_key(), 1)",
    "GRANT TRUNCATE ON orders TO @app",
    "GRANT ALL ON orders TO @app",
    "GRANT SELECT, REFERENCES (id) ON orders TO PUBLIC",
    "GRANT TRIGGER ON ALL TABLES IN SCHEMA shop TO @app",
    "GRANT ALL ON open, events_2_a TO @app",
    "CREATE MATERIALIZED VIEW m AS SELECT * FROM orders WITH NO DATA",
    "CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM seen WITH NO DATA",
    "ALTER TABLE orders INHERIT open",
    "CREATE FOREIGN TABLE f PARTITION OF events FOR VALUES IN (3) SERVER files OPTIONS (filename '/dev/null')",
    "CREATE TEMPORARY TABLE t () INHERITS (base)",
    "CREATE TABLE t () INHERITS (base, open)",
];

/// All that could be opened, and what is known of it, as text.
fn state(admin: &mut Client) -> String {
    admin.one(
        "SELECT concat_ws(E'\n',
             (SELECT string_agg(concat_ws(' ', c.oid::regclass, relrowsecurity, relforcerowsecurity, relowner, relacl, reloptions), E'\n' ORDER BY c.oid)
                 FROM pg_class AS c WHERE relnamespace = 'shop'::regnamespace),
             (SELECT string_agg(concat_ws(' ', attrelid::regclass, attname, atttypid, attnotnull, attacl, pg_get_expr(adbin, adrelid)), E'\n' ORDER BY attrelid, attnum)
                 FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
                 WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'shop'::regnamespace)),
             (SELECT string_agg(p::text, E'\n' ORDER BY tablename, policyname) FROM pg_policies AS p),
             (SELECT string_agg(i::text, E'\n' ORDER BY inhrelid) FROM pg_inherits AS i),
             (SELECT string_agg(concat_ws(' ', conrelid::regclass, conname, convalidated), E'\n' ORDER BY oid) FROM pg_constraint),
             (SELECT string_agg(concat_ws(' ', evtname, evtenabled), E'\n' ORDER BY evtname) FROM pg_event_trigger),
             (SELECT string_agg(p::text, E'\n' ORDER BY relation) FROM tenant_rls.protected_tables AS p))",
    )
}

/// How many times the guard has written down that it let something through.
fn recorded(admin: &mut Client) -> i64 {
    admin.one("SELECT count(*) FROM tenant_rls.changes WHERE relation = 'ddl_guard'")
}

/// Runs statements in a transaction that is rolled back, with the guard on `off` and on `warn`: they pass, and that is
/// recorded; with `warn` a WARNING says so.
#[track_caller]
fn is_let_through(db: &Db, sql: &str) {
    for setting in ["off", "warn"] {
        let heard = Arc::new(AtomicUsize::new(0));
        let counter = heard.clone();
        let mut admin = db.open(None, move |notice| {
            counter.fetch_add(usize::from(notice.severity() == "WARNING"), Ordering::Relaxed);
        });
        admin.run(&format!("SET app.current_tenant = '{A}'; SET tenant_rls.auto_protect = off"));
        admin.run(&format!("BEGIN; SET LOCAL tenant_rls.ddl_guard = {setting}"));
        let before = recorded(&mut admin);
        let said = heard.load(Ordering::Relaxed);
        admin.run(sql);
        assert!(recorded(&mut admin) > before, "{setting} is not recorded: {sql}");
        assert_eq!(heard.load(Ordering::Relaxed) > said, setting == "warn", "{setting}: {sql}");
        admin.run("ROLLBACK");
    }
}

/// Each is refused to the owner, however it comes, and to a superuser; a superuser lets it through by `warn` and
/// `off`, and each time that is recorded. Of what was refused nothing is left, and no record.
#[test]
fn what_opens_a_table_is_refused() {
    let db = shop();
    let (mut owner, mut admin) = (owner(&db), db.admin());
    admin.run(&format!(
        "SET app.current_tenant = '{A}';
         CREATE FUNCTION run(text) RETURNS void LANGUAGE plpgsql AS 'BEGIN EXECUTE $1; END'"
    ));
    let before = state(&mut admin);
    for sql in OPENING {
        let sql = sql.replace("@app", &db.app());
        for way in [
            sql.clone(),
            format!("DO $do$ BEGIN EXECUTE $sql${sql}$sql$; END $do$"),
            format!("SELECT run($sql${sql}$sql$)"),
        ] {
            assert_eq!(owner.fails(&way), "42501", "{way}");
            assert_eq!(admin.fails(&way), "42501", "{way}");
        }
        owner.run(&format!(
            "DO $do$ BEGIN EXECUTE $sql${sql}$sql$; EXCEPTION WHEN insufficient_privilege THEN END $do$"
        ));
        assert_eq!(state(&mut admin), before, "{sql}");
        is_let_through(&db, &sql);
    }
    assert_eq!(recorded(&mut admin), 0);
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    assert_eq!(owner.fails(&format!("GRANT MAINTAIN ON orders TO {}", db.app())), "42501");
    #[cfg(feature = "pg18")]
    assert_eq!(owner.fails("ALTER TABLE items DROP CONSTRAINT items_tenant_id_not_null"), "42501");
}

/// What does not open a table passes, and nothing is said of it or recorded.
#[test]
fn what_opens_nothing_passes() {
    let db = shop();
    let (app, role) = (db.app(), db.role_name("owner"));
    let (mut owner, notices) = db.connect_listening(&role, "");
    let before = recorded(&mut db.admin());
    for sql in [
        "ALTER TABLE orders ADD COLUMN x int DEFAULT 1, ALTER note SET NOT NULL",
        "ALTER TABLE orders ALTER note DROP NOT NULL, ALTER x TYPE bigint, ALTER x SET DEFAULT 2; ALTER TABLE orders DROP COLUMN x",
        "ALTER TABLE orders RENAME note TO text; ALTER TABLE orders RENAME text TO note",
        "ALTER TABLE orders ADD CHECK (id > 0), ADD UNIQUE (tenant_id, note)",
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        "ALTER TABLE open ENABLE ROW LEVEL SECURITY; ALTER TABLE open DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE open ALTER tenant_id SET NOT NULL; ALTER TABLE open ALTER tenant_id DROP NOT NULL",
        "ALTER TABLE open ADD COLUMN y uuid, ALTER y SET DEFAULT required_tenant()",
        "CREATE POLICY narrow ON orders AS RESTRICTIVE USING (id > 0)",
        "ALTER POLICY narrow ON orders USING (id > 1); ALTER POLICY narrow ON orders RENAME TO narrower; DROP POLICY narrower ON orders",
        "CREATE POLICY tenant_boundary ON open USING (true); DROP POLICY tenant_boundary ON open",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO @app WITH GRANT OPTION; GRANT SELECT (id), UPDATE (order_id) ON items TO PUBLIC",
        "GRANT ALL ON open TO @app; GRANT ALL ON orders TO @owner; REVOKE ALL ON orders FROM @app",
        "CREATE VIEW v WITH (security_invoker) AS SELECT * FROM orders; CREATE OR REPLACE VIEW v WITH (security_invoker) AS SELECT * FROM orders",
        "CREATE VIEW w AS SELECT * FROM open; CREATE MATERIALIZED VIEW m AS SELECT * FROM open; ALTER VIEW v SET (security_barrier)",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
        "CREATE TABLE plain (id int PRIMARY KEY, tenant text); CREATE TABLE plain_child () INHERITS (plain)",
        "CREATE TABLE refers (id int, order_tenant uuid, order_id int, FOREIGN KEY (order_tenant, order_id) REFERENCES orders)",
        "ALTER TABLE orders RENAME TO sales; ALTER TABLE sales RENAME TO orders",
        "DROP TABLE items; DROP TABLE events_1; DROP TABLE base CASCADE",
    ] {
        let sql = sql.replace("@app", &app).replace("@owner", &role);
        owner.run(&sql);
        assert_eq!(notices.warnings(), 0, "{sql}");
    }
    assert_eq!(recorded(&mut db.admin()), before);
    let mut session = db.connect_as(&role, A);
    assert_eq!(session.one::<i64>("SELECT count(*) FROM orders"), 1);
    session.run("DROP TABLE orders CASCADE; DROP SCHEMA IF EXISTS none CASCADE");
}

/// A permissive policy beside ours lets nothing more through: a WARNING says that it has no effect.
#[test]
fn a_permissive_policy_is_warned_about() {
    let db = shop();
    let (mut owner, notices) = db.connect_listening(&db.role_name("owner"), "");
    owner.run("CREATE POLICY wide ON orders USING (true)");
    assert_eq!(notices.warnings(), 1);
    owner.run(
        "CREATE POLICY narrow ON orders AS RESTRICTIVE USING (true); CREATE POLICY wide ON open USING (true)",
    );
    assert_eq!(notices.warnings(), 0);
    let mut app = db.connect_as(&db.app(), A);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM orders"), 1);
}

/// A foreign key that is checked under the policies would be valid for the rows of one tenant. A role without them
/// adds it, and anybody adds it NOT VALID.
#[test]
fn foreign_keys_are_not_validated_under_policies() {
    let db = shop();
    let (mut owner, mut admin) = (owner(&db), db.admin());
    // Refers to nothing, and is not the tenant's.
    admin.run(&format!("INSERT INTO items VALUES ('{B}', 1, 99)"));
    let add = "ALTER TABLE items ADD CONSTRAINT f FOREIGN KEY (tenant_id, order_id) REFERENCES orders";
    refuses(
        &mut owner,
        &[
            (add, "42501"),
            ("ALTER TABLE items ADD COLUMN x int CONSTRAINT f REFERENCES orders (x)", "42703"),
            (&format!("{add}, ADD COLUMN x int"), "42501"),
            (
                "ALTER TABLE events ADD COLUMN x int, ADD FOREIGN KEY (tenant_id, x) REFERENCES orders",
                "42501",
            ),
            ("ALTER TABLE events_1 ADD FOREIGN KEY (tenant_id, day) REFERENCES orders", "42501"),
        ],
    );
    owner.run(&format!("{add} NOT VALID"));
    assert_eq!(owner.fails("ALTER TABLE items VALIDATE CONSTRAINT f"), "42501");
    assert_eq!(admin.fails("ALTER TABLE items VALIDATE CONSTRAINT f"), "23503");
    admin.run("DELETE FROM items");
    admin.run("ALTER TABLE items VALIDATE CONSTRAINT f");
    assert!(admin.one::<bool>("SELECT convalidated FROM pg_constraint WHERE conname = 'f'"));
    admin.run(&format!("ALTER TABLE items DROP CONSTRAINT f; {add}"));
    // Another type makes it anew.
    let alter = "ALTER TABLE items ALTER order_id TYPE bigint";
    assert_eq!(owner.fails(alter), "42501");
    admin.run(alter);
    // A table that is not protected has no rows that are hidden.
    owner.run("ALTER TABLE open ADD COLUMN id int, ADD FOREIGN KEY (tenant_id, id) REFERENCES orders");
    // Whether it is deferred is not validated.
    owner.run("ALTER TABLE items ALTER CONSTRAINT f DEFERRABLE INITIALLY DEFERRED");
    // Nor has a new one, as a partition neither.
    owner.run("CREATE TABLE events_9 PARTITION OF events (FOREIGN KEY (tenant_id, day) REFERENCES orders) FOR VALUES IN (9)");
}

/// A protected table that becomes a partition gets the foreign keys of its parent, and they are checked under the same
/// policies. One that it had already is not checked again.
#[test]
fn foreign_keys_are_not_inherited_under_policies() {
    let db = shop();
    let (mut owner, mut admin) = (owner(&db), db.admin());
    owner.run(
        "CREATE TABLE parts (tenant_id uuid, id int, order_id int, FOREIGN KEY (tenant_id, order_id) REFERENCES orders) PARTITION BY LIST (id);
         CREATE TABLE part (tenant_id uuid, id int, order_id int); SELECT tenant_protect('parts'), tenant_protect('part')",
    );
    admin.run(&format!("INSERT INTO part VALUES ('{B}', 1, 99)"));
    let attach = "ALTER TABLE parts ATTACH PARTITION part FOR VALUES IN (1)";
    assert_eq!(owner.fails(attach), "42501");
    let mut exempt = db.breaker();
    exempt.run(&format!(
        "SET app.current_tenant = '{A}'; BEGIN; SET LOCAL ROLE {}; {attach}; RESET ROLE",
        db.role_name("owner")
    ));
    assert_eq!(recorded(&mut exempt), 1);
    exempt.run("ROLLBACK");
    assert_eq!(admin.fails(attach), "23503");
    admin.run("DELETE FROM part");
    assert_eq!(owner.fails(attach), "42501");
    admin.run(attach);
    owner.run(&format!("ALTER TABLE parts DETACH PARTITION part; {attach}"));
    // Of a table that nobody has protected yet all rows are checked.
    let create = "CREATE TABLE bare (tenant_id uuid NOT NULL, id int, order_id int)";
    let attach = "ALTER TABLE parts ATTACH PARTITION bare FOR VALUES IN (2)";
    owner.run(&format!("{create}; INSERT INTO bare VALUES ('{B}', 2, 99)"));
    assert_eq!(owner.fails(attach), "23503");
    owner.run(&format!("DELETE FROM bare; {attach}"));
}

/// From PostgreSQL 18 on a foreign key may be there and not be enforced; enforcing it validates it.
#[cfg(feature = "pg18")]
#[test]
fn foreign_keys_are_not_enforced_under_policies() {
    let db = shop();
    let (mut owner, mut admin) = (owner(&db), db.admin());
    admin.run(&format!("INSERT INTO items VALUES ('{B}', 1, 99)"));
    owner.run(
        "ALTER TABLE items ADD CONSTRAINT f FOREIGN KEY (tenant_id, order_id) REFERENCES orders NOT ENFORCED",
    );
    assert_eq!(owner.fails("ALTER TABLE items ALTER CONSTRAINT f ENFORCED"), "42501");
    admin.run("DELETE FROM items");
    admin.run("ALTER TABLE items ALTER CONSTRAINT f ENFORCED");
    owner.run("ALTER TABLE items ALTER CONSTRAINT f NOT ENFORCED");
}

/// A table goes to no role that acts for tenants, itself or by membership: it could take the protection back.
#[test]
fn a_table_is_given_to_no_application() {
    let db = shop();
    let [member, other, keeper] = ["member", "other", "keeper"].map(|name| db.role_name(name));
    db.role(&member, &format!("IN ROLE {}", db.app()));
    db.role(&other, "");
    db.role(&keeper, "");
    let mut admin = db.admin();
    admin.run(&format!("ALTER TABLE items OWNER TO {other}"));
    for role in [db.app(), member] {
        refuses(
            &mut admin,
            &[
                (&format!("ALTER TABLE orders OWNER TO {role}"), "42501"),
                (&format!("ALTER TABLE events_2_a ALTER note SET NOT NULL, OWNER TO {role}"), "42501"),
                (&format!("REASSIGN OWNED BY {other} TO {role}"), "42501"),
            ],
        );
        is_let_through(&db, &format!("ALTER TABLE orders OWNER TO {role}"));
        is_let_through(&db, &format!("REASSIGN OWNED BY {other} TO {role}"));
        admin.run(&format!("ALTER TABLE open OWNER TO {role}"));
    }
    admin.run(&format!("REASSIGN OWNED BY {other} TO {keeper}; ALTER TABLE orders OWNER TO {keeper}"));
}

/// The event triggers of the extension are not switched off by the way, nor taken out of it.
#[test]
fn the_guard_guards_itself() {
    let db = shop();
    let mut admin = db.admin();
    for sql in [
        "ALTER EVENT TRIGGER tenant_rls_ddl_guard DISABLE",
        "ALTER EVENT TRIGGER tenant_rls_drop_guard ENABLE REPLICA",
        "ALTER EVENT TRIGGER tenant_rls_close_before_drop DISABLE",
        "ALTER EXTENSION tenant_rls DROP EVENT TRIGGER tenant_rls_ddl_guard",
        "ALTER EXTENSION tenant_rls DROP FUNCTION required_tenant()",
    ] {
        assert_eq!(admin.fails(sql), "42501", "{sql}");
        is_let_through(&db, sql);
    }
    assert_eq!(admin.fails("DROP EVENT TRIGGER tenant_rls_ddl_guard"), "2BP01");
    admin.run(
        "ALTER EVENT TRIGGER tenant_rls_ddl_guard ENABLE ALWAYS; ALTER EVENT TRIGGER tenant_rls_ddl_guard ENABLE;
         CREATE FUNCTION nothing() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
         CREATE EVENT TRIGGER own ON ddl_command_end EXECUTE FUNCTION nothing(); ALTER EVENT TRIGGER own DISABLE",
    );
}

/// Only a superuser changes the settings; for one role, if it wants to.
#[test]
fn a_superuser_lets_through() {
    let db = shop();
    let role = db.role_name("owner");
    let mut session = owner(&db);
    let disable = "ALTER TABLE orders DISABLE ROW LEVEL SECURITY";
    refuses(
        &mut session,
        &[
            ("SET tenant_rls.ddl_guard = off", "42501"),
            ("SET LOCAL tenant_rls.ddl_guard = warn", "42501"),
            ("SET tenant_rls.auto_protect = off", "42501"),
            ("CREATE FUNCTION f() RETURNS void LANGUAGE sql SET tenant_rls.ddl_guard = off AS ''", "42501"),
            (&format!("ALTER ROLE {role} SET tenant_rls.ddl_guard = off"), "42501"),
            ("ALTER EVENT TRIGGER tenant_rls_ddl_guard DISABLE", "42501"),
            (disable, "42501"),
        ],
    );
    // What marks a restore marks none of somebody who could not do one.
    session.run("SET row_security = off; SET check_function_bodies = off");
    assert_eq!(session.fails(disable), "42501");
    db.admin().run(&format!("ALTER ROLE {role} SET tenant_rls.ddl_guard = off"));
    let mut exempt = db.connect(&role);
    exempt.run(&format!("BEGIN; {disable}; ROLLBACK; {disable}"));
    let row = db.admin().query_one(
        "SELECT changed_by, acting_as, command, new_row ->> 'object', new_row ->> 'ddl_guard', changed_at > now() - interval '1 hour'
         FROM tenant_rls.changes WHERE relation = 'ddl_guard'",
        &[],
    );
    let row = row.expect("one row");
    let text = |at: usize| row.get::<_, String>(at);
    assert_eq!([text(0), text(1)], [role.clone(), role]);
    assert_eq!([text(2), text(3), text(4)], ["ALTER TABLE", "shop.orders", "off"]);
    assert!(row.get::<_, bool>(5));
}

/// A refusal says what would come of it, and how to do it right; the hint works.
#[test]
fn a_refusal_tells_the_way() {
    let db = shop();
    let mut owner = owner(&db);
    let error = report(&mut owner, "ALTER TABLE orders DISABLE ROW LEVEL SECURITY");
    assert_eq!(error.code().code(), "42501");
    assert!(error.detail().is_some());
    assert!(error.hint().is_some_and(|hint| hint.contains("tenant_unprotect('shop.orders')")));
    owner.run("SELECT tenant_unprotect('shop.orders'); ALTER TABLE orders DISABLE ROW LEVEL SECURITY");
    assert_eq!(recorded(&mut db.admin()), 0);
}

/// A superuser who restores is not held up: the same commands pass, and nothing is recorded.
#[test]
fn a_restore_is_let_alone() {
    let db = shop();
    let mut admin = db.admin();
    admin.run(&format!(
        "SET row_security = off; SET check_function_bodies = off; SET app.current_tenant = '{A}'"
    ));
    for sql in OPENING {
        admin.run(&format!("BEGIN; {}; ROLLBACK", sql.replace("@app", &db.app())));
    }
    admin.run("CREATE TABLE events_3 PARTITION OF events FOR VALUES IN (3)");
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM pg_policy WHERE polrelid = 'events_3'::regclass"), 0);
    assert_eq!(recorded(&mut admin), 0);
}

/// Scripts of extensions are let alone too, as are the functions of ours, whatever they have to repair.
#[test]
fn our_functions_are_let_alone() {
    let db = shop();
    let mut owner = owner(&db);
    db.breaker().run(
        "DROP POLICY tenant_boundary ON orders; ALTER POLICY tenant_isolation ON orders USING (true);
         ALTER TABLE events_2_a DISABLE ROW LEVEL SECURITY; ALTER TABLE items ALTER tenant_id DROP NOT NULL",
    );
    for sql in [
        "SELECT tenant_protect('orders'); SELECT tenant_protect('items')",
        "SELECT tenant_protect('orders', force => false)",
        "SELECT tenant_protect('orders')",
        "SELECT * FROM tenant_repair('events', true)",
        "SELECT tenant_unprotect('orders'), tenant_unprotect('events'), tenant_unprotect('base')",
        "SELECT * FROM tenant_protect_schema('shop')",
    ] {
        owner.run(sql);
    }
    let errors = "SELECT count(*) FROM tenant_audit() WHERE severity = 'error' AND code <> 'app_role_owner'";
    assert_eq!(db.admin().one::<i64>(errors), 0);
}

/// Code of a user that runs inside a statement of ours is not ours.
#[test]
fn user_code_inside_our_statements_is_watched() {
    let db = shop();
    let mut owner = owner(&db);
    owner.run(
        "CREATE FUNCTION disable() RETURNS void LANGUAGE plpgsql AS
         $$ BEGIN ALTER TABLE shop.orders DISABLE ROW LEVEL SECURITY; END $$;
         CREATE FUNCTION own(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
         $$ BEGIN PERFORM shop.disable(); RETURN $1; END $$;
         CREATE TABLE trap (tenant_id uuid, id int NOT NULL);
         CREATE TABLE trapped (tenant_id uuid, id int NOT NULL, UNIQUE (id));
         SELECT tenant_protect('trap'), tenant_protect('trapped')",
    );
    // Building an index calls it for every row.
    db.admin().run(&format!("INSERT INTO trap VALUES ('{A}', 1)"));
    assert_eq!(owner.fails("CREATE UNIQUE INDEX ON trap (own(id))"), "42501");
    db.breaker().run(
        "BEGIN; CREATE UNIQUE INDEX ON trap (own(id)); ALTER TABLE orders ENABLE ROW LEVEL SECURITY; COMMIT",
    );
    // The repair builds one with the tenant in the place of it.
    assert_eq!(owner.fails("SELECT * FROM tenant_repair('trap', true)"), "42501");
    assert!(db.admin().one::<bool>("SELECT relrowsecurity FROM pg_class WHERE relname = 'orders'"));
}

/// DROP OWNED BY takes privileges and policies of the role's own away. Ours are for everybody and stay, also beside a
/// policy that named the role, and when it owns what reads a table. A role's own tables go as by DROP TABLE.
#[test]
fn drop_owned_leaves_the_policies() {
    let db = shop();
    let (mut admin, app) = (db.admin(), db.app());
    let owner = db.role_name("owner");
    admin.run(&format!(
        "SET search_path = shop, public; GRANT CREATE ON SCHEMA shop TO {app};
         CREATE POLICY wide ON orders USING (true); CREATE POLICY own ON orders AS RESTRICTIVE TO {app} USING (id > 0);
         ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA shop GRANT SELECT ON TABLES TO {app}"
    ));
    db.connect(&app).run("CREATE VIEW shop.mine WITH (security_invoker) AS SELECT * FROM shop.orders");
    let policies = "SELECT string_agg(format('%s %s %s %s', polrelid::regclass, polname, polroles, pg_get_expr(polqual, polrelid)), ',' ORDER BY polrelid, polname)
         FROM pg_policy WHERE polname ~ '^tenant_'";
    let before: String = admin.one(policies);
    db.connect(&app).run("DROP OWNED BY CURRENT_USER");
    assert_eq!(admin.one::<String>(policies), before);
    admin.run(&format!("DROP OWNED BY {app}"));
    assert_eq!(admin.one::<String>(policies), before);
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM pg_policy WHERE polname = 'own'"), 0);
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM pg_class WHERE relname = 'mine'"), 0);
    // Privileges that come back reach the rows of the tenant alone, whatever other policy there is.
    admin.run(&format!("GRANT USAGE ON SCHEMA shop TO {app}; GRANT SELECT ON orders TO {app}"));
    assert_eq!(db.connect_as(&app, A).one::<String>("SELECT string_agg(note, ',') FROM shop.orders"), "a");
    let tables = format!(
        "SELECT count(*) FROM tenant_rls.protected_tables AS p JOIN pg_class AS c ON c.oid = p.relation WHERE c.relowner = '{owner}'::regrole"
    );
    assert!(admin.one::<i64>(&tables) > 0);
    db.connect(&owner).run("DROP OWNED BY CURRENT_USER CASCADE");
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_rls.protected_tables"), 0);
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM pg_class WHERE relname = 'orders'"), 0);
}
