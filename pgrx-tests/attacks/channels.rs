//! What lies beside rows: TRUNCATE, LOCK, NOTIFY, advisory locks, large objects.

use super::{Attack, Oracle, attack, no, ok};

const BESIDE: &str = "**What is not a row** has no tenant: LOCK TABLE, NOTIFY, advisory locks and large objects are shared by all who may use them.";

pub fn attacks() -> Vec<Attack> {
    vec![
        attack("truncate", "truncate privilege", "", vec![no("42501", "TRUNCATE jobs")]),
        attack(
            "truncate with cascade",
            "truncate privilege",
            "",
            vec![no("42501", "TRUNCATE orders CASCADE")],
        ),
        attack("truncate a partition", "truncate privilege", "", vec![no("42501", "TRUNCATE events_2026")]),
        attack("truncate a child", "truncate privilege", "", vec![no("42501", "TRUNCATE papers_old")]),
        attack(
            "lock a table",
            "documented",
            "",
            vec![ok("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")],
        )
        .leaks(Oracle::Blocked, BESIDE),
        attack(
            "lock a table in share mode",
            "documented",
            "",
            vec![ok("BEGIN; LOCK TABLE orders IN SHARE MODE")],
        )
        .leaks(Oracle::Blocked, BESIDE),
        attack(
            "lock a table of ours",
            "our privileges",
            "",
            vec![no("42501", "BEGIN; LOCK TABLE tenant_rls.tenants IN ACCESS EXCLUSIVE MODE")],
        ),
        attack("lock the catalog", "catalog rights", "", vec![no("42501", "BEGIN; LOCK TABLE pg_policy")]),
        attack(
            "listen to B",
            "documented",
            "",
            vec![ok("LISTEN orders"), ok("NOTIFY orders, 'canary-b'").by("b"), ok("SELECT 1")],
        )
        .leaks(Oracle::Canary, BESIDE),
        attack(
            "an advisory lock that B wants",
            "documented",
            "",
            vec![
                ok("SELECT pg_advisory_lock(42)"),
                ok("SET lock_timeout = '300ms'").by("b"),
                no("55P03", "SELECT pg_advisory_lock(42)").by("b"),
                ok("SELECT pg_advisory_unlock(42)"),
            ],
        )
        .leaks(Oracle::Blocked, BESIDE),
        attack(
            "an advisory lock in the place of ours",
            "lock class",
            "",
            vec![
                ok("SELECT pg_advisory_lock(i) FROM generate_series(7200, 7230) AS i"),
                ok(
                    "SELECT pg_advisory_lock(7215, i), pg_advisory_lock(7216, i), pg_advisory_lock(7217, i) FROM generate_series(0, 20) AS i",
                ),
            ],
        ),
        attack(
            "a large object of B",
            "catalog rights",
            "SET ROLE {b}; SELECT lo_from_bytea(4711, 'canary-b'); RESET ROLE",
            vec![no("42501", "SELECT convert_from(lo_get(4711), 'UTF8')")],
        ),
        attack(
            "large objects of B without privileges",
            "documented",
            "SELECT lo_from_bytea(4711, 'canary-b'); ALTER DATABASE {db} SET lo_compat_privileges = on",
            vec![ok("SELECT convert_from(lo_get(4711), 'UTF8')")],
        )
        .leaks(Oracle::Canary, BESIDE),
        attack(
            "a temporary table of another session",
            "catalog rights",
            "",
            vec![
                ok("CREATE TEMPORARY TABLE hidden AS SELECT 'canary-b' AS note").by("b"),
                no(
                    "42501",
                    "DO $$ DECLARE n text; BEGIN SELECT relnamespace::regnamespace INTO n FROM pg_class WHERE relname = 'hidden'; EXECUTE format('SELECT * FROM %s.hidden', n); END $$",
                ),
            ],
        ),
        attack(
            "commit a prepared transaction of B",
            "catalog rights",
            "",
            vec![
                ok("BEGIN; UPDATE orders SET note = note || '.' WHERE id = 10; PREPARE TRANSACTION '{db}'")
                    .by("b"),
                no("42501", "ROLLBACK PREPARED '{db}'"),
                ok("ROLLBACK PREPARED '{db}'").by("b"),
            ],
        ),
        attack(
            "a snapshot of B",
            "policy",
            "",
            vec![
                ok("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) > -1 FROM orders").by("b"),
                ok("SELECT pg_export_snapshot()").by("b"),
                ok("BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{said}'"),
                ok("SELECT note FROM orders ORDER BY id"),
                ok("COMMIT"),
                ok("COMMIT").by("b"),
            ],
        ),
        attack(
            "an import of a foreign schema",
            "catalog rights",
            "CREATE EXTENSION postgres_fdw",
            vec![no("42501", "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw")],
        ),
        attack(
            "another connection by dblink",
            "catalog rights",
            "CREATE EXTENSION dblink",
            vec![no(
                "2F003",
                "SELECT * FROM dblink('dbname={db}', 'SELECT note FROM orders') AS t (note text)",
            )],
        ),
    ]
}
