//! tenant_protect: what it does, and what it refuses.

use super::texts;
use crate::harness::{A, B, Db, Session};

/// A database with a role that owns a table `things` of the columns; the extension's tables are empty.
fn with_things(columns: &str) -> (Db, String) {
    let db = Db::new();
    let owner = db.role_name("owner");
    db.role(&owner, "LOGIN");
    db.admin().run(&format!("CREATE TABLE things ({columns}); ALTER TABLE things OWNER TO {owner}"));
    db.admin().run(&format!("GRANT CREATE ON SCHEMA public TO {owner}"));
    (db, owner)
}

/// An owner protects a table, and gets all that belongs to it.
#[test]
fn protect_does_all_of_it() {
    let (db, owner) = with_things("tenant_id uuid, note text");
    db.connect(&owner).run("SELECT tenant_protect('things')");
    let row = db
        .admin()
        .rows(
            "SELECT c.relrowsecurity, c.relforcerowsecurity, a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
               (SELECT count(*) FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indkey[0] = a.attnum)
             FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
             JOIN pg_attrdef AS d ON d.adrelid = c.oid WHERE c.oid = 'things'::regclass",
        )
        .remove(0);
    let flags: [bool; 3] = [row.get(0), row.get(1), row.get(2)];
    assert_eq!(flags, [true; 3]);
    assert_eq!(row.get::<_, String>(3), "required_tenant()");
    assert_eq!(row.get::<_, i64>(4), 1);
    let policies = "SELECT format('%s %s %s %s %s %s', policyname, permissive, cmd, roles, qual, with_check)
                    FROM pg_policies WHERE tablename = 'things' ORDER BY 1";
    assert_eq!(
        texts(&mut db.admin(), policies),
        [
            "tenant_boundary RESTRICTIVE ALL {public} (tenant_id = required_tenant()) (tenant_id = required_tenant())",
            "tenant_isolation PERMISSIVE ALL {public} (tenant_id = required_tenant()) (tenant_id = required_tenant())",
        ]
    );
}

/// What is there already is left as it is: an index, a default, NOT NULL.
#[test]
fn protect_leaves_what_is_right() {
    let (db, owner) =
        with_things(&format!("tenant_id uuid NOT NULL DEFAULT '{A}', id int, UNIQUE (tenant_id, id)"));
    db.connect(&owner).run("SELECT tenant_protect('things')");
    let mut admin = db.admin();
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM pg_index WHERE indrelid = 'things'::regclass"), 1);
    let default = "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'things'::regclass";
    assert!(admin.one::<String>(default).contains(A));
}

/// Protecting again changes nothing.
#[test]
fn protect_is_idempotent() {
    let (db, owner) = with_things("tenant_id uuid, note text");
    let mut session = db.connect(&owner);
    session.run("SELECT tenant_protect('things')");
    let before = super::unprotect::catalogs(&db, "things");
    let undo = "SELECT undo::text FROM tenant_rls.protected_tables";
    let undone: String = db.admin().one(undo);
    session.run("SELECT tenant_protect('things')");
    assert_eq!(super::unprotect::catalogs(&db, "things"), before);
    assert_eq!(db.admin().one::<String>(undo), undone);
}

/// Protecting again repairs what was changed.
#[test]
fn protect_repairs() {
    let db = Db::with_orders();
    let mut admin = db.admin();
    for damage in [
        "DROP POLICY tenant_boundary ON orders",
        "ALTER POLICY tenant_isolation ON orders USING (true)",
        "ALTER TABLE orders DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE orders NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE orders ALTER tenant_id DROP NOT NULL",
    ] {
        let before = super::unprotect::catalogs(&db, "orders");
        db.breaker().run(damage);
        assert_ne!(super::unprotect::catalogs(&db, "orders"), before, "{damage}");
        admin.run("SELECT tenant_protect('orders')");
        assert_eq!(super::unprotect::catalogs(&db, "orders"), before, "{damage}");
    }
}

/// A failed protect leaves the table as it was.
#[test]
fn protect_is_all_or_nothing() {
    let (db, owner) = with_things("tenant_id uuid, note text");
    let before = super::unprotect::catalogs(&db, "things");
    let mut session = db.connect(&owner);
    session.run("BEGIN; SELECT tenant_protect('things'); ROLLBACK");
    assert_eq!(super::unprotect::catalogs(&db, "things"), before);
    session.run("SELECT FROM things");
}

/// TRUNCATE, REFERENCES and TRIGGER are taken from those who are not the owner.
#[test]
fn protect_revokes_what_policies_do_not_reach() {
    let (db, owner) = with_things("tenant_id uuid NOT NULL, id int PRIMARY KEY");
    let other = db.role_name("other");
    db.role(&other, "LOGIN");
    let mut session = db.connect(&owner);
    session
        .run(&format!("GRANT ALL ON things TO {other}; GRANT REFERENCES (id), TRUNCATE ON things TO PUBLIC"));
    db.connect(&other).run("TRUNCATE things");
    session.run("SELECT tenant_protect('things')");
    assert_eq!(db.connect(&other).fails("TRUNCATE things"), "42501");
    let held = format!(
        "SELECT string_agg(p, ' ') FROM unnest(ARRAY['SELECT', 'INSERT', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p
         WHERE has_table_privilege('{other}', 'things', p)"
    );
    assert_eq!(db.admin().one::<String>(&held), "SELECT INSERT");
    assert!(
        !db.admin()
            .one::<bool>(&format!("SELECT has_column_privilege('{other}', 'things', 'id', 'REFERENCES')"))
    );
    session.run("TRUNCATE things");
}

/// Only the owner, a member of the owner, or a superuser protects and unprotects.
#[test]
fn protect_is_for_owners() {
    let (db, owner) = with_things("tenant_id uuid");
    let other = db.role_name("other");
    db.role(&other, "LOGIN");
    db.admin().run(&format!("GRANT ALL ON things TO {other}"));
    let mut session = db.connect(&other);
    assert_eq!(session.fails("SELECT tenant_protect('things')"), "42501");
    db.admin().run("SELECT tenant_protect('things')");
    assert_eq!(session.fails("SELECT tenant_unprotect('things')"), "42501");
    db.admin().run(&format!("GRANT {owner} TO {other}"));
    session.run("SELECT tenant_unprotect('things'), tenant_protect('things')");
}

/// A column that is missing, or of a type that holds no tenant, is refused.
#[test]
fn protect_refuses_other_columns() {
    let (db, owner) = with_things("tenant_id text, account text, deleted_id uuid, t uuid");
    let mut session = db.connect(&owner);
    session.run("ALTER TABLE things DROP COLUMN deleted_id");
    for (column, code) in [
        ("tenant_id", "42804"),
        ("account", "42804"),
        ("nothing", "42703"),
        ("deleted_id", "42703"),
        ("xmin", "42703"),
    ] {
        assert_eq!(session.fails(&format!("SELECT tenant_protect('things', '{column}')")), code, "{column}");
    }
    session.run("SELECT tenant_protect('things', 't')");
}

/// Rows without a tenant are counted and refused, in the whole tree, also behind other policies.
#[test]
fn protect_refuses_nulls() {
    let (db, owner) = with_things("id int, tenant_id uuid");
    let mut session = db.connect(&owner);
    session.run(&format!(
        "CREATE TABLE child () INHERITS (things);
         INSERT INTO child VALUES (1, NULL), (2, NULL), (3, '{A}');
         ALTER TABLE child ENABLE ROW LEVEL SECURITY; ALTER TABLE child FORCE ROW LEVEL SECURITY"
    ));
    let error = session.batch_execute("SELECT tenant_protect('things')").expect_err("there are NULLs");
    let error = error.as_db_error().expect("an error of the server");
    assert_eq!(error.code().code(), "23502");
    assert!(error.detail().unwrap_or_default().contains('2'), "{error:?}");
    db.admin().run("DELETE FROM child WHERE tenant_id IS NULL");
    session.run("SELECT tenant_protect('things')");
}

/// What is not a table of the user's own is refused.
#[test]
fn protect_refuses_other_relations() {
    let (db, _) = with_things("tenant_id uuid NOT NULL");
    let mut admin = db.admin();
    admin.run(
        "CREATE VIEW a_view AS SELECT * FROM things;
         CREATE MATERIALIZED VIEW a_matview AS SELECT * FROM things;
         CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere;
         CREATE FOREIGN TABLE a_foreign_table (tenant_id uuid NOT NULL) SERVER nowhere;
         CREATE TEMP TABLE a_temporary_table (tenant_id uuid NOT NULL);
         CREATE SEQUENCE a_sequence;
         CREATE TYPE a_type AS (tenant_id uuid);
         CREATE INDEX an_index ON things (tenant_id)",
    );
    for relation in [
        "a_view",
        "a_matview",
        "a_foreign_table",
        "a_temporary_table",
        "a_sequence",
        "a_type",
        "an_index",
        "pg_class",
        "information_schema.sql_features",
        "tenant_rls.tenants",
    ] {
        assert_eq!(admin.fails(&format!("SELECT tenant_protect('{relation}')")), "42809", "{relation}");
    }
    admin.run("SELECT tenant_protect('things')");
}

/// A tree with a foreign partition cannot be protected as a whole, so not at all.
#[test]
fn protect_refuses_a_tree_with_a_foreign_table() {
    let (db, _) = with_things("tenant_id uuid NOT NULL");
    let mut admin = db.admin();
    admin.run(
        "CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere;
         CREATE FOREIGN TABLE far () INHERITS (things) SERVER nowhere",
    );
    assert_eq!(admin.fails("SELECT tenant_protect('things')"), "42809");
    admin.run("DROP FOREIGN TABLE far; SELECT tenant_protect('things')");
}

/// A partition of a parent that is not protected would be open through the parent.
#[test]
fn protect_refuses_a_partition_alone() {
    let db = Db::new();
    let mut admin = db.admin();
    admin.run(
        "CREATE TABLE events (day int, tenant_id uuid) PARTITION BY LIST (day);
         CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1);
         CREATE TABLE base (tenant_id uuid); CREATE TABLE child () INHERITS (base)",
    );
    for table in ["events_1", "child"] {
        assert_eq!(admin.fails(&format!("SELECT tenant_protect('{table}')")), "42809", "{table}");
    }
    admin.run("SELECT tenant_protect('events'), tenant_protect('base')");
    for table in ["events_1", "child"] {
        admin.run(&format!("SELECT tenant_protect('{table}')"));
    }
}

/// NULL names no table and no column.
#[test]
fn protect_refuses_null() {
    let (db, owner) = with_things("tenant_id uuid");
    let mut session = db.connect(&owner);
    for call in [
        "tenant_protect(NULL)",
        "tenant_protect('things', NULL)",
        "tenant_protect('things', 'tenant_id', NULL)",
        "tenant_unprotect(NULL)",
    ] {
        assert_eq!(session.fails(&format!("SELECT {call}")), "22004", "{call}");
    }
}

/// A whole schema is protected, and each table that could not be says why.
#[test]
fn a_schema_is_protected() {
    let db = Db::new();
    let mut admin = db.admin();
    admin.run(&format!(
        "CREATE SCHEMA shop;
         CREATE TABLE shop.good (tenant_id uuid);
         CREATE TABLE shop.parts (tenant_id uuid) PARTITION BY HASH (tenant_id);
         CREATE TABLE shop.parts_0 PARTITION OF shop.parts FOR VALUES WITH (MODULUS 1, REMAINDER 0);
         CREATE TABLE shop.nulls (tenant_id uuid); INSERT INTO shop.nulls VALUES (NULL), ('{B}');
         CREATE TABLE shop.countries (code text);
         CREATE VIEW shop.a_view AS SELECT * FROM shop.good;
         CREATE TABLE elsewhere (tenant_id uuid)"
    ));
    let rows = admin.rows("SELECT target::text, result FROM tenant_protect_schema('shop')");
    let results: Vec<(String, String)> =
        rows.iter().map(|row| (row.get(0), row.get::<_, String>(1).chars().take(9).collect())).collect();
    let expected = [("shop.good", "protected"), ("shop.nulls", "23502: co"), ("shop.parts", "protected")];
    assert_eq!(results, expected.map(|(target, result)| (target.to_string(), result.to_string())));
    let protected = "SELECT target::text FROM tenant_tables ORDER BY 1";
    assert_eq!(texts(&mut admin, protected), ["shop.good", "shop.parts", "shop.parts_0"]);
}

/// A partition or child of a table of another schema is not passed over in silence.
#[test]
fn a_schema_names_parts_of_other_trees() {
    let db = Db::new();
    let mut admin = db.admin();
    admin.run(
        "CREATE SCHEMA shop;
         CREATE TABLE events (tenant_id uuid) PARTITION BY HASH (tenant_id);
         CREATE TABLE shop.events_0 PARTITION OF events FOR VALUES WITH (MODULUS 1, REMAINDER 0) PARTITION BY HASH (tenant_id);
         CREATE TABLE shop.events_00 PARTITION OF shop.events_0 FOR VALUES WITH (MODULUS 1, REMAINDER 0);
         CREATE TABLE base (id int); CREATE TABLE shop.child (tenant_id uuid) INHERITS (base)",
    );
    let protect =
        "SELECT format('%s %s', target, split_part(result, ':', 1)) FROM tenant_protect_schema('shop')";
    assert_eq!(texts(&mut admin, protect), ["shop.child 42809", "shop.events_0 42809"]);
    admin.run("SELECT tenant_protect('events')");
    assert_eq!(texts(&mut admin, protect), ["shop.child 42809", "shop.events_0 protected"]);
    assert_eq!(admin.fails("SELECT tenant_protect_schema(NULL)"), "22004");
}

/// tenant_tables shows what is protected, and how.
#[test]
fn tenant_tables_shows_what_is_protected() {
    let (db, _) = with_things("account_id bigint");
    let mut admin = db.admin();
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_tables"), 0);
    admin.run("SELECT tenant_protect('things', 'account_id', force => false)");
    let row = "SELECT format('%s %s %s %s %s %s %s', target, root, tenant_column, key_type, forced, policies, tenant_index)
               FROM tenant_tables";
    assert_eq!(
        admin.one::<String>(row),
        "things things account_id bigint f {tenant_boundary,tenant_isolation} things_account_id_idx"
    );
}
