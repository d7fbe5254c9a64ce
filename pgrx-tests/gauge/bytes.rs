//! Gauges of bytes: the same row counts the same when it is written, changed, counted again and taken away.

use postgres::Client;

use super::drift;
use crate::harness::{A, B, Db, Session, recorded, refuses};

const GAUGE: &str = "storage_bytes";

/// A protected table `files` that the gauge `storage_bytes` follows, with columns of all lengths, compressed and not,
/// in the row and elsewhere, and columns that are gone, computed, and added to rows that were there.
fn files() -> Db {
    let db = Db::with_orders();
    db.admin().run(&format!(
        "CREATE TABLE files (gone int, id int PRIMARY KEY, body text, raw bytea, tags text[], n numeric, tenant_id uuid NOT NULL,
             twice text GENERATED ALWAYS AS (body || body) STORED, kind \"char\", name name);
         ALTER TABLE files DROP COLUMN gone, ALTER COLUMN raw SET STORAGE EXTERNAL;
         INSERT INTO files (id, body, tenant_id) VALUES (-1, repeat('old', 3000), '{A}'), (-2, NULL, '{B}');
         ALTER TABLE files ADD COLUMN note text DEFAULT 'none', ADD COLUMN count bigint DEFAULT 7;
         SELECT tenant_protect('files'); SELECT tenant_quota_attach('files', '{GAUGE}');
         GRANT SELECT, INSERT, UPDATE, DELETE ON files TO {}",
        db.app()
    ));
    db
}

/// Bytes of both tenants, as the gauge says; it is right.
#[track_caller]
fn bytes(db: &Db) -> (i64, i64) {
    let mut admin = db.admin();
    assert_eq!(drift(&mut admin), "");
    (recorded(&mut admin, A, GAUGE), recorded(&mut admin, B, GAUGE))
}

/// How many bytes tenant A has more after the statements.
#[track_caller]
fn grows(db: &Db, client: &mut Client, sql: &str) -> i64 {
    let before = bytes(db).0;
    client.run(sql);
    bytes(db).0 - before
}

/// What values count: fixed lengths as they are, others with the header of four bytes, uncompressed, NULL nothing.
#[test]
fn values_count_what_they_are_long() {
    let db = Db::with_orders();
    db.admin().run(&format!(
        "CREATE TABLE files (id int, tenant_id uuid NOT NULL, body text); SELECT tenant_protect('files');
         SELECT tenant_quota_attach('files', '{GAUGE}'); GRANT SELECT, INSERT, UPDATE, DELETE ON files TO {}",
        db.app()
    ));
    let mut app = db.connect_as(&db.app(), A);
    let fixed = 4 + 16;
    for (sql, more) in [
        ("INSERT INTO files (id) VALUES (1)", fixed),
        ("INSERT INTO files (id, body) VALUES (2, '')", fixed + 4),
        ("INSERT INTO files (id, body) VALUES (3, repeat('x', 100000))", fixed + 100_004),
        ("UPDATE files SET body = 'abc' WHERE id = 2", 3),
        ("UPDATE files SET id = id + 1", 0),
        ("UPDATE files SET body = NULL WHERE id = 4", -100_004),
        ("DELETE FROM files", -fixed * 3 - 7),
    ] {
        assert_eq!(grows(&db, &mut app, sql), more, "{sql}");
    }
    assert_eq!(bytes(&db), (0, 0));
}

/// Statements of every kind on values of every kind, at random, some rolled back: the invariants have nothing to say
/// after each, and counting again finds nothing.
#[test]
fn random_statements_never_drift() {
    let db = files();
    let mut admin = db.admin();
    let mut session = db.connect_as(&db.app(), A);
    let seed: i32 = admin.one("SELECT (random() * 1000000)::int");
    let mut state = seed as u32;
    let mut pick = |most: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % most
    };
    let value = |n: u32| match n % 7 {
        0 => "NULL".into(),
        1 => "repeat('x', 200000)".into(),
        2 => "repeat('y', 2500)".into(),
        // Does not compress.
        3 => format!("(SELECT string_agg(md5(({n} + i)::text), '') FROM generate_series(1, 200) AS i)"),
        4 => "''".into(),
        5 => format!("repeat('z', {})", 100 + n % 60),
        _ => format!("'v{n}'"),
    };
    for step in 0..120 {
        let (id, other) = (pick(30), pick(30));
        let (text, more) = (value(pick(700)), value(pick(700)));
        let row =
            format!("{id}, {text}, ({more})::bytea, ARRAY[{text}, {more}], {other} * 1e30, 'k', 'n{id}'");
        let columns = "(id, body, raw, tags, n, kind, name)";
        let sql = match pick(9) {
            0 | 1 => format!("INSERT INTO files {columns} VALUES ({row}) ON CONFLICT DO NOTHING"),
            2 => format!("INSERT INTO files {columns} VALUES ({row}) ON CONFLICT (id) DO UPDATE SET body = EXCLUDED.body, tags = EXCLUDED.tags"),
            3 => format!("UPDATE files SET body = {text}, raw = {more}::bytea WHERE id = {id}"),
            4 => format!("UPDATE files SET note = {text}, n = n + 1 WHERE id <= {other}"),
            5 => format!("UPDATE files SET body = files.body || coalesce(o.body, '') FROM files AS o WHERE files.id = {id} AND o.id = {other}"),
            6 => format!("DELETE FROM files WHERE id = {id}"),
            7 => format!(
                "MERGE INTO files AS f USING (VALUES ({id}), ({other} + 100)) AS v (id) ON f.id = v.id
                 WHEN MATCHED AND f.id % 2 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET tags = array_append(tags, ({text})::text)
                 WHEN NOT MATCHED THEN INSERT (id, body) VALUES (v.id, {more})"
            ),
            _ => format!("INSERT INTO files (id, body, raw, tags) SELECT {id} + 30, body, raw, tags FROM files WHERE id = {other} ON CONFLICT DO NOTHING"),
        };
        let end = if pick(5) == 0 { "ROLLBACK" } else { "COMMIT" };
        session.run(&format!("BEGIN; {sql}; {end}"));
        assert_eq!(drift(&mut admin), "", "seed {seed}, step {step}: {sql}");
    }
    admin.run("VACUUM FULL files");
    assert_eq!(admin.one::<i64>("SELECT tenant_quota_reconcile('files')"), 0, "seed {seed}");
}

/// Compression, storage and rewriting change nothing.
#[test]
fn how_values_are_kept_does_not_count() {
    let db = files();
    let mut admin = db.admin();
    let insert = |id| {
        format!(
            "INSERT INTO files (id, body, raw, tenant_id) VALUES ({id}, repeat('x', 50000), repeat('y', 50000)::bytea, '{A}')"
        )
    };
    let plain = grows(&db, &mut admin, &insert(1));
    for (id, storage) in [(2, "EXTERNAL"), (3, "MAIN"), (4, "EXTENDED")] {
        admin.run(&format!("ALTER TABLE files ALTER COLUMN body SET STORAGE {storage}"));
        assert_eq!(grows(&db, &mut admin, &insert(id)), plain, "{storage}");
    }
    assert_eq!(grows(&db, &mut admin, "VACUUM FULL files"), 0);
    assert_eq!(grows(&db, &mut admin, "CLUSTER files USING files_pkey"), 0);
    assert_eq!(grows(&db, &mut admin, "DELETE FROM files WHERE id > 0"), -4 * plain);
}

/// A column that comes with a value, goes, or has another type changes the bytes of all rows.
#[test]
fn columns_that_come_and_go_are_counted() {
    let db = files();
    let mut admin = db.admin();
    let columns = "ALTER TABLE files ADD COLUMN extra text DEFAULT 'twelve bytes'";
    assert_eq!(grows(&db, &mut admin, columns), 16);
    assert_eq!(grows(&db, &mut admin, "ALTER TABLE files ALTER COLUMN count TYPE int"), -4);
    assert_eq!(grows(&db, &mut admin, "ALTER TABLE files ALTER COLUMN extra TYPE text USING 'four'"), -8);
    assert_eq!(
        grows(&db, &mut admin, "ALTER TABLE files DROP COLUMN extra, ADD COLUMN more int DEFAULT 1"),
        -4
    );
    admin.run("CREATE DOMAIN short AS int DEFAULT 5");
    assert_eq!(grows(&db, &mut admin, "ALTER TABLE files ADD COLUMN d short"), 4);
    assert_eq!(grows(&db, &mut admin, "DROP DOMAIN short CASCADE"), -4);
    assert_eq!(grows(&db, &mut admin, "ALTER TABLE files RENAME COLUMN body TO text"), 0);
    assert_eq!(grows(&db, &mut admin, "BEGIN; ALTER TABLE files DROP COLUMN text CASCADE; ROLLBACK"), 0);
    assert_eq!(admin.one::<i64>("SELECT tenant_quota_reconcile('files')"), 0);
}

/// Partitions with their columns in another order, children with columns of their own: what the root has is counted,
/// through the root and directly.
#[test]
fn partitions_and_children_count_the_columns_of_the_root() {
    let db = Db::with_orders();
    let mut admin = db.admin();
    admin.run(&format!(
        "CREATE TABLE parted (day int, body text, tenant_id uuid NOT NULL) PARTITION BY RANGE (day);
         CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
         CREATE TABLE parted_2 (gone text, tenant_id uuid NOT NULL, body text, day int); ALTER TABLE parted_2 DROP COLUMN gone;
         ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES FROM (10) TO (20);
         CREATE TABLE base (id int, tenant_id uuid NOT NULL, body text);
         CREATE TABLE child (own text DEFAULT repeat('o', 5000)) INHERITS (base);
         SELECT tenant_protect('parted'), tenant_protect('base');
         SELECT tenant_quota_attach('parted', '{GAUGE}'), tenant_quota_attach('base', '{GAUGE}')"
    ));
    let one = 4 + 16 + 4 + 3000;
    let insert = |into: &str, column: &str, n: i32| {
        format!("INSERT INTO {into} ({column}, body, tenant_id) VALUES ({n}, repeat('b', 3000), '{A}')")
    };
    assert_eq!(grows(&db, &mut admin, &insert("parted", "day", 1)), one);
    assert_eq!(grows(&db, &mut admin, &insert("parted", "day", 11)), one);
    assert_eq!(grows(&db, &mut admin, &insert("parted_2", "day", 12)), one);
    assert_eq!(grows(&db, &mut admin, &insert("child", "id", 1)), one);
    assert_eq!(grows(&db, &mut admin, "UPDATE base SET body = body || 'x'"), 1);
    assert_eq!(grows(&db, &mut admin, "UPDATE child SET body = body || 'x', own = repeat('p', 7000)"), 1);
    assert_eq!(grows(&db, &mut admin, "ALTER TABLE child ADD COLUMN more text DEFAULT 'x'"), 0);
    assert_eq!(grows(&db, &mut admin, "UPDATE parted SET day = day + 10 WHERE day = 1"), 0);
    assert_eq!(grows(&db, &mut admin, "TRUNCATE child"), -one - 2);
    assert_eq!(grows(&db, &mut admin, "ALTER TABLE parted DETACH PARTITION parted_2"), -3 * one);
    assert_eq!(
        grows(&db, &mut admin, "ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES FROM (10) TO (20)"),
        3 * one
    );
    assert_eq!(grows(&db, &mut admin, "DROP TABLE parted_2"), -3 * one);
    assert_eq!(grows(&db, &mut admin, "ALTER TABLE parted ADD COLUMN more text DEFAULT 'x'"), 0);
    assert_eq!(bytes(&db), (0, 0));
}

/// TRUNCATE, COPY by a superuser, rows that move to another tenant, DROP.
#[test]
fn bulk_commands_are_counted() {
    let db = files();
    let mut admin = db.admin();
    let mut copy = admin.copy_in("COPY files (id, tenant_id, body) FROM STDIN").expect("a COPY");
    let rows = format!("1\t{A}\t{}\n2\t{B}\tb\n", "x".repeat(100_000));
    std::io::Write::write_all(&mut copy, rows.as_bytes()).expect("rows");
    copy.finish().expect("the end of a COPY");
    let (a, b) = bytes(&db);
    assert!(a > 100_000);
    admin.run(&format!("UPDATE files SET tenant_id = '{B}'"));
    assert_eq!(bytes(&db), (0, a + b));
    admin.run("BEGIN; TRUNCATE files; ROLLBACK");
    assert_eq!(bytes(&db), (0, a + b));
    admin.run(&format!("TRUNCATE files; INSERT INTO files (id, tenant_id) VALUES (1, '{A}')"));
    assert!(bytes(&db).0 > 0);
    admin.run("DROP TABLE files");
    assert_eq!(bytes(&db), (0, 0));
}

/// A table feeds a gauge of rows and one of bytes; each counts its own. Detached, nothing counts.
#[test]
fn gauges_of_rows_and_bytes_combine() {
    let db = files();
    let mut admin = db.admin();
    super::define(&mut admin, "rows", 100);
    admin.run(&format!(
        "SELECT tenant_quota_attach('files', 'rows'); INSERT INTO files (id, tenant_id) VALUES (1, '{A}')"
    ));
    assert_eq!(recorded(&mut admin, A, "rows"), 2);
    let (a, _) = bytes(&db);
    admin.run("UPDATE files SET body = 'changed' WHERE id = 1");
    assert_eq!(recorded(&mut admin, A, "rows"), 2);
    assert!(bytes(&db).0 > a);
    admin.run(&format!("SELECT tenant_quota_detach('files', '{GAUGE}')"));
    assert_eq!((bytes(&db), recorded(&mut admin, A, "rows")), ((0, 0), 2));
}

/// What would pass the limit is denied whole, also by an UPDATE; what makes room is not.
#[test]
fn bytes_above_the_limit_are_denied() {
    let db = files();
    let mut admin = db.admin();
    let (a, _) = bytes(&db);
    admin.run(&format!("SELECT tenant_plan_limit_set('free', '{GAUGE}', {a})"));
    let mut app = db.connect_as(&db.app(), A);
    refuses(
        &mut app,
        &[
            ("INSERT INTO files (id) VALUES (1)", "53400"),
            ("UPDATE files SET note = note || 'x' WHERE id = -1", "53400"),
        ],
    );
    assert_eq!(bytes(&db).0, a);
    app.run("UPDATE files SET body = 'less' WHERE id = -1; INSERT INTO files (id) VALUES (1)");
    assert!(bytes(&db).0 < a);
}

/// Reconcile repairs what direct SQL has made wrong.
#[test]
fn reconcile_repairs_bytes() {
    let db = files();
    let mut admin = db.admin();
    let right = bytes(&db);
    admin
        .run(&format!("INSERT INTO tenant_rls.ledger VALUES ('{A}', '{GAUGE}', '-infinity', 'infinity', 1)"));
    assert_ne!(drift(&mut admin), "");
    assert_eq!(admin.one::<i64>("SELECT tenant_quota_reconcile('files')"), 1);
    assert_eq!(bytes(&db), right);
}
