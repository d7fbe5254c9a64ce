//! Taking more than the plan gives, and units of others.

use super::{Attack, attack, no, ok};

pub fn attacks() -> Vec<Attack> {
    let bad = |name, sql| {
        attack(name, "amount", "", vec![no("22023", sql), ok("SELECT used FROM tenant_quota_check('calls')")])
    };
    let denied = |name, guard, sql| {
        attack(name, guard, "", vec![no("53400", sql), ok("SELECT used FROM tenant_quota_check('calls')")])
    };
    vec![
        bad("a negative amount", "SELECT * FROM tenant_quota_consume('calls', -5)"),
        bad("a negative amount to try", "SELECT * FROM tenant_quota_try_consume('calls', -5)"),
        bad("a negative amount to check", "SELECT * FROM tenant_quota_check('calls', -1)"),
        bad("the smallest amount", "SELECT * FROM tenant_quota_consume('calls', -9223372036854775808)"),
        bad("a negative release", "SELECT * FROM tenant_quota_release('seats', -2)"),
        bad("a negative reservation", "SELECT * FROM tenant_quota_reserve('calls', -5, '1 minute')"),
        bad(
            "a reservation for a negative time",
            "SELECT * FROM tenant_quota_reserve('calls', 1, '-1 minute')",
        ),
        bad("a reservation for ever", "SELECT * FROM tenant_quota_reserve('calls', 1, '1000 years')"),
        bad(
            "a reservation settled at less than nothing",
            "SELECT s.* FROM tenant_quota_reserve('calls', 5, '1 minute') AS r, LATERAL tenant_quota_settle(r.reservation_id, -5) AS s",
        ),
        bad(
            "a negative amount among many",
            "SELECT * FROM tenant_quota_consume_many('{\"calls\": 1, \"seats\": -1}')",
        ),
        bad("a fraction among many", "SELECT * FROM tenant_quota_consume_many('{\"calls\": 0.5}')"),
        bad(
            "a huge number among many",
            "SELECT * FROM tenant_quota_consume_many('{\"calls\": 9223372036854775808}')",
        ),
        bad("an exponent among many", "SELECT * FROM tenant_quota_consume_many('{\"calls\": 1e400}')"),
        bad("a text among many", "SELECT * FROM tenant_quota_consume_many('{\"calls\": \"1\"}')"),
        bad("an array for many", "SELECT * FROM tenant_quota_consume_many('[1]')"),
        denied(
            "the largest amount",
            "limit",
            "SELECT * FROM tenant_quota_consume('calls', 9223372036854775807)",
        ),
        attack(
            "the largest amount after some",
            "limit",
            "",
            vec![
                ok("SELECT used FROM tenant_quota_consume('calls', 1)"),
                no("53400", "SELECT * FROM tenant_quota_consume('calls', 9223372036854775807)"),
                ok("SELECT used FROM tenant_quota_check('calls')"),
            ],
        ),
        denied("one too many", "limit", "SELECT * FROM tenant_quota_consume('calls', 11)"),
        attack(
            "one too many in two steps",
            "limit",
            "",
            vec![
                ok("SELECT used FROM tenant_quota_consume('calls', 10)"),
                no("53400", "SELECT * FROM tenant_quota_consume('calls')"),
            ],
        ),
        attack(
            "one too many in one statement",
            "limit",
            "",
            vec![
                no("53400", "SELECT tenant_quota_consume('calls') FROM generate_series(1, 11)"),
                ok("SELECT used FROM tenant_quota_check('calls')"),
            ],
        ),
        attack(
            "one too many among many",
            "limit",
            "",
            vec![
                no("53400", "SELECT * FROM tenant_quota_consume_many('{\"calls\": 10, \"seats\": 4}')"),
                ok("SELECT used FROM tenant_quota_check('calls')"),
            ],
        ),
        attack(
            "a reservation settled above the limit",
            "limit",
            "",
            vec![
                no(
                    "53400",
                    "SELECT s.* FROM tenant_quota_reserve('calls', 5, '1 minute') AS r, LATERAL tenant_quota_settle(r.reservation_id, 11) AS s",
                ),
                ok("SELECT used FROM tenant_quota_check('calls')"),
            ],
        ),
        attack(
            "units of a reservation that is settled and cancelled",
            "limit",
            "",
            vec![
                no(
                    "55000",
                    "SELECT c.* FROM tenant_quota_reserve('calls', 5, '1 minute') AS r, LATERAL tenant_quota_settle(r.reservation_id, 5) AS s, LATERAL tenant_quota_cancel(s.reservation_id) AS c",
                ),
                ok("SELECT used FROM tenant_quota_check('calls')"),
            ],
        ),
        attack(
            "a release of units that are held",
            "below zero",
            "",
            vec![
                ok("SELECT used FROM tenant_quota_reserve('seats', 1, '1 minute')"),
                no("22023", "SELECT * FROM tenant_quota_release('seats', 1)"),
            ],
        ),
        attack(
            "a resource named twice among many",
            "limit",
            "",
            vec![
                ok("SELECT used FROM tenant_quota_consume_many('{\"calls\": 1, \"calls\": 9}')"),
                no("53400", "SELECT * FROM tenant_quota_consume('calls', 2)"),
            ],
        ),
        attack(
            "more that is rolled back to a savepoint",
            "limit",
            "",
            vec![
                ok(
                    "BEGIN; SELECT tenant_quota_consume('calls', 9) IS NULL; SAVEPOINT s; SELECT tenant_quota_consume('calls') IS NULL; ROLLBACK TO s",
                ),
                ok("SELECT used FROM tenant_quota_consume('calls', 1)"),
                no("53400", "SELECT * FROM tenant_quota_consume('calls')"),
            ],
        ),
        attack(
            "a savepoint that is released",
            "limit",
            "",
            vec![
                ok("BEGIN; SAVEPOINT s; SELECT tenant_quota_consume('calls', 10) IS NULL; RELEASE s"),
                no("53400", "SELECT * FROM tenant_quota_consume('calls')"),
            ],
        ),
        attack(
            "a denial that is swallowed",
            "limit",
            "",
            vec![
                ok(
                    "DO $$ BEGIN FOR i IN 1..30 LOOP BEGIN PERFORM tenant_quota_consume('calls'); EXCEPTION WHEN configuration_limit_exceeded THEN NULL; END; END LOOP; END $$",
                ),
                ok("SELECT used FROM tenant_quota_check('calls')"),
                no("53400", "SELECT * FROM tenant_quota_consume('calls')"),
            ],
        ),
        attack(
            "an old snapshot",
            "limit",
            "",
            vec![
                ok("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM orders"),
                ok("SELECT used FROM tenant_quota_consume('calls', 10)").by("app#2"),
                no("53400", "SELECT * FROM tenant_quota_consume('calls')"),
            ],
        ),
        attack(
            "an old snapshot of serializable",
            "limit",
            "",
            vec![
                ok("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM orders"),
                ok("SELECT used FROM tenant_quota_consume('calls', 10)").by("app#2"),
                no("53400", "SELECT * FROM tenant_quota_consume('calls')"),
            ],
        ),
        attack(
            "a read-only transaction",
            "limit",
            "",
            vec![ok("BEGIN READ ONLY"), no("25006", "SELECT * FROM tenant_quota_consume('calls')")],
        ),
        attack(
            "a prepared transaction with units",
            "quota lock",
            "SELECT tenant_plan_limit_set('free', 'calls', 10, mode => 'strict')",
            vec![
                ok("BEGIN; SELECT tenant_quota_consume('calls', 10) IS NULL; PREPARE TRANSACTION '{db}'"),
                ok("SET lock_timeout = '300ms'"),
                no("55P03", "SELECT * FROM tenant_quota_consume('calls')"),
            ],
        ),
        attack(
            "units of an open transaction",
            "quota lock",
            "SELECT tenant_plan_limit_set('free', 'calls', 10, mode => 'strict')",
            vec![
                ok("BEGIN; SELECT tenant_quota_consume('calls', 10) IS NULL"),
                ok("SET lock_timeout = '300ms'").by("app#2"),
                no("55P03", "SELECT * FROM tenant_quota_consume('calls')").by("app#2"),
            ],
        ),
        attack(
            "a prepared transaction with units in escrow",
            "quota prepare",
            "",
            vec![no(
                "0A000",
                "BEGIN; SELECT tenant_quota_consume('calls', 10) IS NULL; PREPARE TRANSACTION '{db}'",
            )],
        ),
        attack(
            "units of an open transaction in escrow",
            "quota interval",
            "",
            vec![
                ok("BEGIN; SELECT tenant_quota_consume('calls', 10) IS NULL"),
                no("53400", "SELECT * FROM tenant_quota_consume('calls')").by("app#2"),
            ],
        ),
        attack(
            "a release of more than is used",
            "below zero",
            "",
            vec![
                ok("SELECT used FROM tenant_quota_consume('seats', 1)"),
                no("22023", "SELECT * FROM tenant_quota_release('seats', 2)"),
            ],
        ),
        attack(
            "a release of units of B",
            "below zero",
            "",
            vec![no("22023", "SELECT * FROM tenant_quota_release('seats', 7)")],
        ),
        attack(
            "a release of a counter",
            "gauge only",
            "",
            vec![
                ok("SELECT used FROM tenant_quota_consume('calls', 5)"),
                no("22023", "SELECT * FROM tenant_quota_release('calls', 5)"),
            ],
        ),
        attack(
            "a release of rows by hand",
            "attached",
            "",
            vec![no("55000", "SELECT * FROM tenant_quota_release('papers', 1)")],
        ),
        attack(
            "rows of a gauge by hand",
            "attached",
            "",
            vec![no("55000", "SELECT * FROM tenant_quota_consume('papers', 1)")],
        ),
        attack(
            "rows above the limit",
            "gauge trigger",
            "",
            vec![no("53400", "INSERT INTO papers (id) SELECT generate_series(10, 14)")],
        ),
        attack(
            "rows above the limit in a child",
            "gauge trigger",
            "",
            vec![no("53400", "INSERT INTO papers_old (id) SELECT generate_series(10, 14)")],
        ),
        attack(
            "rows above the limit by merge",
            "gauge trigger",
            "",
            vec![no(
                "53400",
                "MERGE INTO papers AS p USING generate_series(10, 14) AS v (id) ON p.id = v.id WHEN NOT MATCHED THEN INSERT (id) VALUES (v.id)",
            )],
        ),
        attack(
            "rows above the limit by upsert",
            "gauge trigger",
            "",
            vec![no(
                "53400",
                "INSERT INTO papers (id) SELECT generate_series(1, 14) ON CONFLICT (tenant_id, id) DO UPDATE SET note = 'x'",
            )],
        ),
        attack(
            "rows above the limit in several queries of one",
            "gauge trigger",
            "",
            vec![no(
                "53400",
                "WITH a AS (INSERT INTO papers (id) SELECT generate_series(10, 12) RETURNING id), b AS (INSERT INTO papers_old (id) SELECT generate_series(20, 22) RETURNING id) SELECT count(*) FROM a, b",
            )],
        ),
        attack("no tenant", "required", "", vec![no("55000", "SELECT * FROM tenant_quota_consume('calls')")])
            .by("app", ""),
        attack(
            "a resource that does not exist",
            "unknown resource",
            "",
            vec![no("42704", "SELECT * FROM tenant_quota_consume('nothing')")],
        ),
        attack(
            "a resource that its plan does not name",
            "no limit",
            "DELETE FROM tenant_rls.plan_limits WHERE plan = 'free' AND resource = 'calls'",
            vec![no("42704", "SELECT * FROM tenant_quota_consume('calls')")],
        ),
        attack(
            "a resource with another case",
            "unknown resource",
            "",
            vec![no("42704", "SELECT * FROM tenant_quota_consume('Calls')")],
        ),
        attack(
            "a resource with a space",
            "unknown resource",
            "",
            vec![no("42704", "SELECT * FROM tenant_quota_consume('calls ')")],
        ),
        attack(
            "null for an amount",
            "null",
            "",
            vec![no("22004", "SELECT * FROM tenant_quota_consume('calls', NULL)")],
        ),
        attack(
            "null for a resource",
            "null",
            "",
            vec![no("22004", "SELECT * FROM tenant_quota_consume(NULL)")],
        ),
        attack(
            "a resource of a megabyte",
            "unknown resource",
            "",
            vec![no("42704", "SELECT * FROM tenant_quota_consume('{MB}')")],
        ),
        attack(
            "the clock of the transaction",
            "limit",
            "",
            vec![
                ok("SELECT used FROM tenant_quota_consume('calls', 10)"),
                ok("SET TimeZone = 'Pacific/Kiritimati'; SET DateStyle = 'SQL, DMY'"),
                no("53400", "SELECT * FROM tenant_quota_consume('calls')"),
            ],
        ),
        attack(
            "an idempotency key of B",
            "idempotency scope",
            "",
            vec![
                ok("SELECT used FROM tenant_quota_consume('calls', 5, 'key of b')").by("b"),
                ok("SELECT used, granted, reason FROM tenant_quota_consume('calls', 5, 'key of b')"),
                ok(
                    "SELECT used, granted, reason FROM tenant_quota_try_reserve('seats', 1, '1 hour', 'hold of b')",
                ),
                ok(
                    "SELECT used, granted, reason FROM tenant_quota_consume_many('{\"calls\": 1}', 'many of b')",
                ),
            ],
        ),
        attack(
            "an idempotency key that B is using",
            "idempotency scope",
            "",
            vec![
                ok("BEGIN; SELECT used FROM tenant_quota_consume('calls', 5, 'new key')").by("b"),
                ok("SELECT used, granted, reason FROM tenant_quota_consume('calls', 5, 'new key')"),
                ok("COMMIT").by("b"),
            ],
        ),
        attack(
            "an idempotency key that B wants",
            "idempotency scope",
            "",
            vec![
                ok("BEGIN; SELECT used FROM tenant_quota_consume('calls', 5, 'new key')"),
                ok("SELECT used FROM tenant_quota_consume('calls', 1, 'new key')").by("b"),
                ok("COMMIT"),
            ],
        ),
        attack(
            "a reservation of B settled",
            "reservation scope",
            "",
            vec![
                ok("SELECT reservation_id FROM tenant_quota_reserve('seats', 2, '1 hour')").by("b"),
                no("42704", "SELECT * FROM tenant_quota_settle('{said}', 0)"),
                no("42704", "SELECT * FROM tenant_quota_settle('{said}', 1000)"),
            ],
        ),
        attack(
            "a reservation of B cancelled",
            "reservation scope",
            "",
            vec![
                ok("SELECT reservation_id FROM tenant_quota_reserve('seats', 2, '1 hour')").by("b"),
                no("42704", "SELECT * FROM tenant_quota_cancel('{said}')"),
            ],
        ),
        attack(
            "a reservation that B is ending",
            "reservation scope",
            "",
            vec![
                ok("SELECT reservation_id FROM tenant_quota_reserve('seats', 2, '1 hour')").by("b"),
                ok("BEGIN").by("b"),
                ok("SELECT reservation_id FROM tenant_quota_settle('{said}', 1)").by("b"),
                no("42704", "SELECT * FROM tenant_quota_cancel('{said}')"),
                ok("COMMIT").by("b"),
            ],
        ),
        attack(
            "a reservation of B and one that does not exist",
            "same error",
            "",
            vec![
                ok("SELECT reservation_id FROM tenant_quota_reserve('seats', 2, '1 hour')").by("b"),
                ok("DO $$ DECLARE e text[]; r uuid; BEGIN
                    FOREACH r IN ARRAY ARRAY['{said}', '{D}']::uuid[] LOOP
                        BEGIN PERFORM tenant_quota_settle(r, 1); EXCEPTION WHEN OTHERS THEN
                            e := e || (SQLSTATE || replace(SQLERRM, r::text, '')); END;
                    END LOOP;
                    ASSERT cardinality(e) = 2 AND e[1] = e[2], e::text; END $$"),
            ],
        ),
        attack(
            "a release of units that B holds",
            "below zero",
            "",
            vec![
                ok("SELECT used FROM tenant_quota_reserve('seats', 2, '1 hour')").by("b"),
                no("22023", "SELECT * FROM tenant_quota_release('seats', 2)"),
            ],
        ),
        attack(
            "the leases of all",
            "usage rights",
            "INSERT INTO tenant_rls.leases VALUES ('{B}', 'calls', '2020-01-01', '2100-01-01', 8675309042, 8675309042)",
            vec![ok("SELECT * FROM tenant_leases")],
        ),
        attack(
            "the leases of all by a leaky function",
            "usage barrier",
            "INSERT INTO tenant_rls.leases VALUES ('{B}', 'calls', '2020-01-01', '2100-01-01', 8675309042, 8675309042)",
            vec![
                ok(
                    "CREATE FUNCTION pg_temp.leak(bigint) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$",
                ),
                ok("SELECT * FROM tenant_leases WHERE pg_temp.leak(at_stake)"),
            ],
        ),
        attack(
            "units in parallel workers",
            "quota parallel",
            "",
            vec![
                ok(
                    "CREATE FUNCTION pg_temp.take() RETURNS bigint LANGUAGE plpgsql PARALLEL SAFE AS $$ BEGIN RETURN (SELECT used FROM tenant_quota_consume('calls')); END $$",
                ),
                ok(
                    "CREATE FUNCTION pg_temp.give() RETURNS bigint LANGUAGE plpgsql PARALLEL SAFE AS $$ BEGIN RETURN (SELECT used FROM tenant_quota_release('seats')); END $$",
                ),
                ok(
                    "SELECT set_config(name, 'on', false) IS NULL FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query')",
                ),
                no("25000", "SELECT pg_temp.take()"),
                no("25000", "SELECT pg_temp.give()"),
                ok("SELECT used FROM tenant_quota_check('calls')"),
            ],
        ),
    ]
}
