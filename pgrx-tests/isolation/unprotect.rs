//! tenant_unprotect takes back exactly what tenant_protect did.

use crate::harness::{A, B, Db, Session};

/// All that protecting could touch of a tree of tables, as text. Privileges in order: taking one back and
/// giving it again moves it.
pub fn catalogs(db: &Db, root: &str) -> String {
    db.admin().one(&format!(
        "WITH RECURSIVE tree AS (
             SELECT '{root}'::regclass::oid AS oid
             UNION SELECT i.inhrelid FROM pg_inherits AS i JOIN tree AS t ON i.inhparent = t.oid
         ), facts AS (
             SELECT format('%s rls %s force %s', c.oid::regclass, c.relrowsecurity, c.relforcerowsecurity) AS fact
             FROM tree JOIN pg_class AS c USING (oid)
             UNION ALL
             SELECT format('%s.%s null %s default %s', a.attrelid::regclass, a.attname, NOT a.attnotnull,
                 pg_get_expr(d.adbin, d.adrelid))
             FROM tree JOIN pg_attribute AS a ON a.attrelid = tree.oid AND a.attnum > 0 AND NOT a.attisdropped
             LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
             UNION ALL
             SELECT format('%s %s', p.tablename, p) FROM tree JOIN pg_class AS c USING (oid)
             JOIN pg_policies AS p ON p.tablename = c.relname
             UNION ALL
             SELECT pg_get_indexdef(i.indexrelid) FROM tree JOIN pg_index AS i ON i.indrelid = tree.oid
             UNION ALL
             SELECT format('%s %s', c.oid::regclass, g)
             FROM tree JOIN pg_class AS c USING (oid), aclexplode(c.relacl) AS g
             UNION ALL
             SELECT format('%s.%s %s', a.attrelid::regclass, a.attname, g)
             FROM tree JOIN pg_attribute AS a ON a.attrelid = tree.oid, aclexplode(a.attacl) AS g
             UNION ALL
             SELECT format('%s %s', n.conrelid::regclass, pg_get_constraintdef(n.oid))
             FROM tree JOIN pg_constraint AS n ON n.conrelid = tree.oid
             UNION ALL
             SELECT format('%s trigger %s', t.tgrelid::regclass, t.tgname)
             FROM tree JOIN pg_trigger AS t ON t.tgrelid = tree.oid
         )
         SELECT string_agg(fact, E'\\n' ORDER BY fact) FROM facts"
    ))
}

/// Protects the table and takes it back.
#[track_caller]
fn comes_back(setup: &str, table: &str) {
    let db = Db::new();
    let [one, two] = [db.role_name("one"), db.role_name("two")];
    db.role(&one, "LOGIN");
    db.role(&two, "LOGIN");
    let mut admin = db.admin();
    admin.run(&setup.replace("{one}", &one).replace("{two}", &two));
    let before = catalogs(&db, table);
    admin.run(&format!("SELECT tenant_protect('{table}')"));
    assert_ne!(catalogs(&db, table), before);
    admin.run(&format!("SELECT tenant_protect('{table}'), tenant_unprotect('{table}')"));
    assert_eq!(catalogs(&db, table), before);
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_rls.protected_tables"), 0);
}

/// A plain table without anything.
#[test]
fn a_plain_table_comes_back() {
    comes_back("CREATE TABLE t (id int PRIMARY KEY, tenant_id uuid, note text)", "t");
}

/// A table that had part of it already.
#[test]
fn what_was_there_stays() {
    comes_back(
        "CREATE TABLE t (id int, tenant_id uuid NOT NULL DEFAULT gen_random_uuid());
         CREATE INDEX ON t (tenant_id, id);
         ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "t",
    );
}

/// A table that was under force, with policies of its own.
#[test]
fn other_policies_stay() {
    comes_back(
        "CREATE TABLE t (id int, tenant_id uuid, owner text);
         ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t FORCE ROW LEVEL SECURITY;
         CREATE POLICY mine ON t FOR UPDATE TO {one} USING (owner = current_user) WITH CHECK (owner <> '')",
        "t",
    );
}

/// A policy by hand that had the name of ours comes back as it was.
#[test]
fn a_replaced_policy_comes_back() {
    comes_back(
        "CREATE TABLE t (id int, tenant_id uuid, note text);
         ALTER TABLE t ENABLE ROW LEVEL SECURITY;
         CREATE POLICY tenant_isolation ON t AS RESTRICTIVE FOR SELECT TO {one}, {two}
             USING (tenant_id = current_setting('app.other')::uuid);
         CREATE POLICY tenant_boundary ON t FOR INSERT WITH CHECK (note IS NOT NULL)",
        "t",
    );
}

/// Privileges that were revoked come back, to tables and columns, with their grant option.
#[test]
fn revoked_privileges_come_back() {
    comes_back(
        "CREATE TABLE t (id int PRIMARY KEY, tenant_id uuid, note text);
         GRANT SELECT, TRUNCATE, TRIGGER ON t TO {one};
         GRANT REFERENCES ON t TO {one} WITH GRANT OPTION;
         GRANT REFERENCES (id), UPDATE (note) ON t TO {two};
         GRANT TRUNCATE ON t TO PUBLIC",
        "t",
    );
}

/// What a grantee had passed on comes back from the same hand.
#[test]
fn privileges_passed_on_come_back() {
    comes_back(
        "CREATE TABLE t (id int PRIMARY KEY, tenant_id uuid);
         GRANT TRUNCATE ON t TO {one} WITH GRANT OPTION;
         SET ROLE {one}; GRANT TRUNCATE ON t TO {two}; RESET ROLE",
        "t",
    );
}

/// A partitioned table with all its partitions.
#[test]
fn partitions_come_back() {
    comes_back(
        "CREATE TABLE t (day int, tenant_id uuid) PARTITION BY LIST (day);
         CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1);
         CREATE TABLE t_2 PARTITION OF t FOR VALUES IN (2) PARTITION BY HASH (tenant_id);
         CREATE TABLE t_2_0 PARTITION OF t_2 FOR VALUES WITH (MODULUS 1, REMAINDER 0);
         GRANT TRUNCATE ON t_1 TO {one};
         CREATE INDEX ON t_1 (tenant_id)",
        "t",
    );
}

/// A partition that was stricter than its parent.
#[test]
fn a_stricter_partition_comes_back() {
    comes_back(
        "CREATE TABLE t (day int, tenant_id uuid) PARTITION BY LIST (day);
         CREATE TABLE t_1 (day int, tenant_id uuid NOT NULL DEFAULT gen_random_uuid());
         ALTER TABLE t ATTACH PARTITION t_1 FOR VALUES IN (1);
         CREATE TABLE t_2 PARTITION OF t FOR VALUES IN (2)",
        "t",
    );
}

/// A table with children.
#[test]
fn children_come_back() {
    comes_back(
        "CREATE TABLE t (id int, tenant_id uuid);
         CREATE TABLE child (extra int) INHERITS (t);
         CREATE TABLE grandchild () INHERITS (child);
         ALTER TABLE child ALTER tenant_id SET NOT NULL",
        "t",
    );
}

/// After it, the table is open as it was before.
#[test]
fn an_unprotected_table_is_open() {
    let db = Db::with_orders();
    db.admin().run("SELECT tenant_unprotect('orders')");
    assert_eq!(db.connect(&db.app()).one::<i64>("SELECT count(*) FROM orders"), 4);
}

/// A table that is not protected cannot be unprotected.
#[test]
fn an_open_table_is_refused() {
    let db = Db::with_orders();
    let mut admin = db.admin();
    admin.run("CREATE TABLE open (tenant_id uuid)");
    assert_eq!(admin.fails("SELECT tenant_unprotect('open')"), "55000");
    admin.run("SELECT tenant_unprotect('orders')");
}

/// A partition cannot be unprotected without its root.
#[test]
fn a_partition_alone_is_refused() {
    let db = Db::new();
    let mut admin = db.admin();
    admin.run(
        "CREATE TABLE t (day int, tenant_id uuid) PARTITION BY LIST (day);
         CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1);
         SELECT tenant_protect('t')",
    );
    assert_eq!(admin.fails("SELECT tenant_unprotect('t_1')"), "42809");
    admin.run("SELECT tenant_unprotect('t')");
}

/// A repaired table goes back to what it was before the first protection, not to the damage.
#[test]
fn damage_does_not_come_back() {
    let db = Db::new();
    let mut admin = db.admin();
    admin.run(&format!("CREATE TABLE t (tenant_id uuid); INSERT INTO t VALUES ('{A}'), ('{B}')"));
    let before = catalogs(&db, "t");
    admin.run("SELECT tenant_protect('t')");
    db.breaker()
        .run("ALTER POLICY tenant_isolation ON t USING (true); ALTER TABLE t NO FORCE ROW LEVEL SECURITY");
    admin.run("SELECT tenant_protect('t'), tenant_unprotect('t')");
    assert_eq!(catalogs(&db, "t"), before);
}
