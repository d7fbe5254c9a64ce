//! The live proof says isolated where it is, names the statement where it is not, and leaves no trace.

use postgres::Client;

use crate::harness::{A, B, Db, Session};

/// Tables of every kind that are protected as they should be, with rows of two tenants, and what stands on them.
fn shop() -> Db {
    let db = Db::new();
    let app = db.app();
    db.role(&app, "LOGIN");
    let owner = db.role_name("owner");
    db.role(&owner, "LOGIN");
    db.admin().run(&format!(
        "SELECT tenant_create('{A}', tenant_key => 1), tenant_create('{B}', tenant_key => 2), tenant_grant('{app}');
         GRANT CREATE ON SCHEMA public TO {owner}; SET ROLE {owner};
         CREATE TABLE orders (tenant_id uuid, id int, note text, total int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (tenant_id, id));
         CREATE TABLE items (tenant_id uuid, id int, o int, PRIMARY KEY (tenant_id, id), FOREIGN KEY (tenant_id, o) REFERENCES orders);
         CREATE TABLE keys (tenant_id bigint, id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text);
         CREATE TABLE parted (tenant_id int, id int) PARTITION BY LIST (id);
         CREATE TABLE parted1 PARTITION OF parted FOR VALUES IN (1);
         CREATE TABLE base (tenant_id uuid, id int); CREATE TABLE child () INHERITS (base);
         SELECT tenant_protect('orders'), tenant_protect('items'), tenant_protect('keys'), tenant_protect('parted'), tenant_protect('base');
         CREATE VIEW safe WITH (security_invoker) AS SELECT * FROM orders;
         CREATE VIEW counted WITH (security_invoker) AS SELECT count(*) FROM orders;
         CREATE FUNCTION counted() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM public.orders';
         GRANT SELECT, INSERT, UPDATE, DELETE ON orders, items, keys, parted, parted1, base, child, safe, counted TO {app};
         RESET ROLE;
         INSERT INTO orders SELECT t, n, 'note' FROM unnest('{{{A}, {B}}}'::uuid[]) AS t, generate_series(1, 3) AS n;
         INSERT INTO items SELECT tenant_id, id, id FROM orders;
         INSERT INTO keys (tenant_id, note) VALUES (1, 'a'), (2, 'b'); INSERT INTO parted VALUES (1, 1), (2, 1);
         INSERT INTO base VALUES ('{A}', 1), ('{B}', 1); INSERT INTO child VALUES ('{A}', 2), ('{B}', 2)"
    ));
    db
}

/// The proof as "relation command verdict", the relation without a schema.
fn proof(admin: &mut Client, role: &str) -> Vec<(String, String)> {
    admin
        .rows(&format!(
            "SELECT coalesce(relation::text || ' ', '') || command, verdict FROM tenant_prove('{role}')"
        ))
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

/// What the proof says of one try: verdict and detail.
fn verdict(admin: &mut Client, role: &str, relation: &str, command: &str) -> (String, String) {
    let row = admin
        .query_one(
            &format!(
                "SELECT verdict, detail FROM tenant_prove('{role}')
                 WHERE relation::text IS NOT DISTINCT FROM nullif('{relation}', '') AND command = '{command}'"
            ),
            &[],
        )
        .unwrap_or_else(|error| panic!("{relation} {command}: {error:?}"));
    (row.get(0), row.get(1))
}

/// A database that is as it should be has no leak, and nothing that could be tried is left unproven.
#[test]
fn a_protected_database_is_proven() {
    let db = shop();
    let proof = proof(&mut db.admin(), &db.app());
    let tries = ["read", "insert", "move", "update", "delete", "truncate", "upsert", "lock"];
    for table in ["orders", "items", "keys", "parted", "parted1", "base", "child"] {
        for command in tries {
            let wanted = (format!("{table} {command}"), "isolated".to_string());
            assert!(proof.contains(&wanted), "{wanted:?} is not in {proof:#?}");
        }
    }
    for wanted in [
        "items reference items_tenant_id_o_fkey",
        "safe read",
        "safe update",
        "safe delete",
        "counted read",
        "execute public.counted()",
    ] {
        assert!(proof.contains(&(wanted.into(), "isolated".into())), "{wanted} is not in {proof:#?}");
    }
    let other: Vec<_> = proof
        .iter()
        .filter(|(what, verdict)| {
            verdict != "isolated" && !what.ends_with(" copy") && !what.ends_with(" lock table")
        })
        .collect();
    assert!(other.is_empty(), "{other:#?}");
}

/// Each way to break isolation is found, by the statement that gets through, and by none before it was broken.
#[test]
fn what_is_broken_is_found() {
    let open = "DROP POLICY tenant_boundary ON orders; DROP POLICY tenant_isolation ON orders; CREATE POLICY open ON orders USING (true)";
    let cases: &[(&str, &str, &[&str])] = &[
        (open, "orders", &["read", "insert", "move", "update", "delete", "lock"]),
        (
            "ALTER TABLE orders DISABLE ROW LEVEL SECURITY",
            "orders",
            &["read", "insert", "move", "update", "delete", "lock"],
        ),
        (
            "ALTER TABLE parted1 DISABLE ROW LEVEL SECURITY",
            "parted1",
            &["read", "insert", "update", "delete"],
        ),
        ("GRANT TRUNCATE ON base TO app", "base", &["truncate"]),
        (
            "DROP POLICY tenant_boundary ON orders; CREATE POLICY u ON orders FOR UPDATE USING (true); REVOKE SELECT ON orders FROM app",
            "orders",
            &["update"],
        ),
        (
            "DROP POLICY tenant_boundary ON orders; CREATE POLICY w ON orders FOR INSERT WITH CHECK (true)",
            "orders",
            &["insert"],
        ),
        (
            "DROP POLICY tenant_boundary ON keys; CREATE POLICY w ON keys USING (true)",
            "keys",
            &["upsert", "update"],
        ),
        ("CREATE VIEW v AS SELECT * FROM orders; GRANT SELECT, DELETE ON v TO app", "v", &["read", "delete"]),
        ("CREATE VIEW v AS SELECT count(*) FROM orders; GRANT SELECT ON v TO app", "v", &["read"]),
        ("CREATE MATERIALIZED VIEW v AS SELECT * FROM orders; GRANT SELECT ON v TO app", "v", &["read"]),
        ("CREATE MATERIALIZED VIEW v AS SELECT note FROM orders; GRANT SELECT ON v TO app", "v", &["read"]),
        (
            "CREATE FUNCTION f() RETURNS SETOF text LANGUAGE sql SECURITY DEFINER AS 'SELECT note FROM public.orders'",
            "",
            &["execute public.f()"],
        ),
        (
            "CREATE TABLE late (tenant_id int NOT NULL, id int); ALTER TABLE parted ATTACH PARTITION late FOR VALUES IN (7); GRANT SELECT ON late TO app; INSERT INTO late VALUES (2, 7)",
            "late",
            &["read"],
        ),
        (
            "ALTER TABLE keys ADD UNIQUE (note); CREATE TABLE r (tenant_id uuid, note text REFERENCES keys (note)); SELECT tenant_protect('r'); GRANT INSERT ON r TO app; INSERT INTO r SELECT tenant_id, 'a' FROM orders LIMIT 1",
            "r",
            &["reference r_note_fkey"],
        ),
    ];
    for (damage, relation, commands) in cases {
        let db = shop();
        let mut admin = db.admin();
        db.breaker().run(&damage.replace(" app", &format!(" {}", db.app())));
        for command in *commands {
            let (verdict, detail) = verdict(&mut admin, &db.app(), relation, command);
            assert_eq!(verdict, "LEAK", "{damage}: {relation} {command}: {detail}");
            let named = if relation.is_empty() { "f()" } else { relation };
            assert!(detail.contains(named), "{damage}: {detail}");
        }
    }
}

/// The owner of a table that is not forced reaches everything, a role with BYPASSRLS too.
#[test]
fn owners_and_bypassing_roles_leak() {
    let db = shop();
    let owner = db.role_name("owner");
    let mut admin = db.admin();
    assert_eq!(verdict(&mut admin, &owner, "orders", "read").0, "isolated");
    db.breaker().run("ALTER TABLE orders NO FORCE ROW LEVEL SECURITY");
    for command in ["read", "insert", "move", "update", "delete"] {
        assert_eq!(verdict(&mut admin, &owner, "orders", command).0, "LEAK", "{command}");
    }
    admin.run(&format!("ALTER ROLE {} BYPASSRLS", db.app()));
    assert_eq!(verdict(&mut admin, &db.app(), "base", "delete").0, "LEAK");
}

/// Where nobody has a row, or a lock is in the way, nothing is proven.
#[test]
fn nothing_is_proven_without_rows_or_behind_a_lock() {
    let db = shop();
    let mut admin = db.admin();
    admin.run(
        "CREATE TABLE empty (tenant_id uuid, must text NOT NULL); SELECT tenant_protect('empty');
               CREATE TABLE fillable (tenant_id uuid, may text); SELECT tenant_protect('fillable')",
    );
    assert_eq!(verdict(&mut admin, &db.app(), "empty", "read").0, "not proven");
    assert_eq!(verdict(&mut admin, &db.app(), "fillable", "read").0, "isolated");
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM fillable"), 0);
    let mut other = db.admin();
    other.run("BEGIN; LOCK TABLE orders");
    let (state, detail) = verdict(&mut admin, &db.app(), "orders", "read");
    assert_eq!((state.as_str(), detail.contains("55P03")), ("not proven", true), "{detail}");
    other.run("ROLLBACK");
    assert_eq!(verdict(&mut admin, &db.app(), "orders", "read").0, "isolated");
}

/// Everything that can be looked at is as it was: rows, catalogs, registry, settings, the role, the tenant.
#[test]
fn no_trace_is_left() {
    let db = shop();
    let mut admin = db.admin();
    admin.run(&format!("SET app.current_tenant = '{B}'"));
    let digest = |admin: &mut Client| -> String {
        let tables: Vec<String> = admin
            .rows(
                "SELECT c.oid::regclass::text FROM pg_class AS c WHERE c.relkind = 'r' AND c.relname <> 'pg_statistic' AND NOT c.relisshared
                 AND c.relnamespace IN ('public'::regnamespace, 'tenant_rls'::regnamespace, 'pg_catalog'::regnamespace) ORDER BY 1",
            )
            .iter()
            .map(|row| row.get(0))
            .collect();
        let mut all = admin.one::<String>(
            "SELECT current_setting('app.current_tenant') || current_user || session_user || current_setting('role')
                 || current_setting('search_path') || current_setting('lock_timeout')",
        );
        for table in tables {
            // Statistics of relations are not part of what anybody has written.
            let row = if table == "pg_class" {
                "(oid, relname, relacl, relrowsecurity, relforcerowsecurity, relfilenode, relowner)"
            } else {
                "t"
            };
            all += &admin.one::<String>(&format!(
                "SELECT '{table} ' || coalesce(sum(hashtextextended(({row})::text, 0)), 0) FROM {table} AS t"
            ));
        }
        all
    };
    let before = digest(&mut admin);
    assert!(!proof(&mut admin, &db.app()).is_empty());
    assert_eq!(digest(&mut admin), before);
    assert_eq!(
        admin.one::<i64>(
            "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND mode = 'AccessExclusiveLock'"
        ),
        0
    );
    // In a transaction as well, which goes on.
    admin.run("BEGIN; SET LOCAL lock_timeout = '7s'");
    assert!(!proof(&mut admin, &db.app()).is_empty());
    assert_eq!(admin.one::<String>("SHOW lock_timeout"), "7s");
    assert_eq!(
        admin.one::<i64>(
            "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND mode = 'AccessExclusiveLock'"
        ),
        0
    );
    admin.run("COMMIT");
    assert_eq!(digest(&mut admin), before);
}

/// What the proof fires, a trigger or a function of a user, has the rights of the role, and no way back to more.
#[test]
fn code_of_users_gets_no_more_rights() {
    let db = shop();
    let owner = db.role_name("owner");
    let mut admin = db.admin();
    admin.run("CREATE SEQUENCE witness; GRANT ALL ON SEQUENCE witness TO PUBLIC");
    // A sequence remembers beyond the rollback: 1 for each try of a superuser to be, 1000 for each that succeeded.
    db.connect(&owner).run(
        "CREATE FUNCTION escape() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             PERFORM nextval('public.witness');
             BEGIN
                 RESET ROLE;
             EXCEPTION WHEN OTHERS THEN NULL;
             END;
             BEGIN
                 SET SESSION AUTHORIZATION DEFAULT;
             EXCEPTION WHEN OTHERS THEN NULL;
             END;
             IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
                 PERFORM setval('public.witness', 1000);
             END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER escape BEFORE INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION escape()",
    );
    proof(&mut admin, &db.app());
    let count: i64 = admin.one("SELECT last_value FROM witness");
    assert!((1..1000).contains(&count), "{count}");
    assert!(admin.one::<bool>("SELECT is_called FROM witness"));
}

/// Only a superuser may ask, and for a role that exists.
#[test]
fn who_may_ask() {
    let db = shop();
    let mut admin = db.admin();
    assert_eq!(admin.fails("SELECT * FROM tenant_prove(NULL)"), "22004");
    assert_eq!(admin.fails("SELECT * FROM tenant_prove(1::oid::regrole)"), "42704");
    let name = db.role_name("office");
    db.role(&name, "LOGIN");
    admin.run(&format!("SELECT tenant_grant_operator('{name}')"));
    assert_eq!(db.connect(&name).fails(&format!("SELECT * FROM tenant_prove('{}')", db.app())), "42501");
    admin.run(&format!("GRANT EXECUTE ON FUNCTION tenant_prove(regrole) TO {name}"));
    assert_eq!(db.connect(&name).fails(&format!("SELECT * FROM tenant_prove('{}')", db.app())), "42501");
    assert_eq!(admin.fails("SELECT tenant_rls.prove_enter(10, gen_random_uuid(), '')"), "42501");
}
