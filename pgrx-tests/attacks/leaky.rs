//! Leaky functions, operators and casts: conditions that tell about the rows they are evaluated on.

use super::{Attack, attack, no, ok};

const LEAK: &str = "CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$";

pub fn attacks() -> Vec<Attack> {
    let leak = |name, sql| attack(name, "policy", "", vec![ok(LEAK), ok(sql)]);
    vec![
        leak("a cheap function in the where clause", "SELECT count(*) FROM orders WHERE pg_temp.leak(note)"),
        leak("a cheap function in a join", "SELECT count(*) FROM orders AS o JOIN orders AS p ON pg_temp.leak(o.note) AND o.id = p.id"),
        leak("a cheap function in an update", "UPDATE orders SET note = note WHERE pg_temp.leak(note)"),
        leak("a cheap function in a delete", "DELETE FROM items WHERE pg_temp.leak(note)"),
        leak("a cheap function below a partitioned table", "SELECT count(*) FROM events WHERE pg_temp.leak(note)"),
        leak("a cheap function on a leaf", "SELECT count(*) FROM events_2027_0 WHERE pg_temp.leak(note)"),
        leak("a cheap function through a view of the owner", "SELECT count(*) FROM orders_owner WHERE pg_temp.leak(note)"),
        leak("a cheap function in merge", "MERGE INTO items AS i USING (VALUES (1)) AS v (id) ON pg_temp.leak(i.note) WHEN MATCHED THEN DELETE"),
        leak("a cheap function in an aggregate's filter", "SELECT count(*) FILTER (WHERE pg_temp.leak(note)) FROM orders"),
        leak("a cheap function in order by of a limit", "SELECT id FROM orders ORDER BY pg_temp.leak(note), id LIMIT 1"),
        attack("a leaky operator", "policy", "", vec![
            ok(LEAK),
            ok("CREATE FUNCTION pg_temp.lt(text, text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE '% %', $1, $2; RETURN true; END $$;
                CREATE OPERATOR pg_temp.<<< (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.lt, RESTRICT = scalarltsel)"),
            ok("SELECT count(*) FROM orders WHERE note OPERATOR(pg_temp.<<<) 'z'")]),
        // CVE-2017-7484, CVE-2019-10130: the planner asks the operator about values from the statistics.
        attack("a leaky operator while planning", "statistics", "", vec![
            ok("CREATE FUNCTION pg_temp.lt(text, text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE '% %', $1, $2; RETURN true; END $$;
                CREATE OPERATOR pg_temp.<<< (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.lt, RESTRICT = scalarltsel)"),
            ok("EXPLAIN (COSTS off) SELECT * FROM orders WHERE note OPERATOR(pg_temp.<<<) 'z'")]),
        // CVE-2025-8713: the same below views, partitions and children.
        attack("a leaky operator while planning a child", "statistics", "", vec![
            ok("CREATE FUNCTION pg_temp.lt(text, text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE '% %', $1, $2; RETURN true; END $$;
                CREATE OPERATOR pg_temp.<<< (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.lt, RESTRICT = scalarltsel)"),
            ok("EXPLAIN (COSTS off) SELECT * FROM papers_old WHERE note OPERATOR(pg_temp.<<<) 'z'"),
            ok("EXPLAIN (COSTS off) SELECT * FROM events_2027_0 WHERE note OPERATOR(pg_temp.<<<) 'z'"),
            ok("EXPLAIN (COSTS off) SELECT * FROM orders_owner WHERE note OPERATOR(pg_temp.<<<) 'z'")]),
        leak("a leaky function while planning", "EXPLAIN (COSTS off) SELECT * FROM orders WHERE pg_temp.leak(note) AND note > 'a'"),
        attack("a leakproof function of its own", "catalog rights", "", vec![
            no("42501", "CREATE FUNCTION pg_temp.f(text) RETURNS boolean LANGUAGE sql LEAKPROOF AS 'SELECT true'")]),
        attack("division by zero tells", "policy", "", vec![ok("SELECT id FROM orders WHERE 1 / (CASE WHEN amount > 1000 THEN 0 ELSE 1 END) = 1 ORDER BY id")]),
        attack("a cast that fails tells", "policy", "", vec![ok("SELECT count(*) FROM orders WHERE (CASE WHEN note LIKE 'canary%' THEN note ELSE '1' END)::int = 1")]),
        attack("a cast of a jsonb value that fails tells", "policy", "", vec![ok("SELECT count(*) FROM orders WHERE (CASE WHEN doc ->> 'k' = 'va' THEN '1' ELSE doc ->> 'k' END)::int = 1")]),
        attack("a regular expression that fails tells", "policy", "", vec![ok("SELECT count(*) FROM people WHERE 'a' ~ CASE WHEN note = 'a' THEN 'a' ELSE '(' END")]),
        attack("an overflow tells", "policy", "", vec![ok("SELECT sum((amount + 2147483600)::bigint::int) IS NULL FROM orders WHERE amount > 21")]),
        attack("a duplicate in a subquery tells", "policy", "", vec![ok("SELECT (SELECT note FROM invoices)")]),
        leak("a condition of a security barrier view", "SELECT note FROM (SELECT * FROM orders OFFSET 0) AS o WHERE pg_temp.leak(note) ORDER BY id"),
        attack("a leaky function in the usage view", "usage barrier", "", vec![
            ok("CREATE FUNCTION pg_temp.leak(uuid, bigint) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE '% %', $1, $2; RETURN true; END $$"),
            ok("SELECT resource FROM tenant_usage WHERE pg_temp.leak(tenant, used) ORDER BY resource")]),
        attack("a leaky function in the usage history", "usage barrier",
            "INSERT INTO tenant_rls.usage VALUES ('{B}', 'calls', '2020-01-01', '2021-01-01', 8675309042)",
            vec![
                ok("CREATE FUNCTION pg_temp.leak(uuid, bigint) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE '% %', $1, $2; RETURN true; END $$"),
                ok("SELECT resource FROM tenant_usage_history WHERE pg_temp.leak(tenant, used)")]),
        attack("a leaky function in the view of events", "usage barrier",
            "INSERT INTO tenant_rls.quota_events VALUES ('{B}', 'calls', '2020-01-01', 80, 8675309042, 9)",
            vec![
                ok("CREATE FUNCTION pg_temp.leak(uuid, bigint) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE '% %', $1, $2; RETURN true; END $$"),
                ok("SELECT resource FROM tenant_quota_events WHERE pg_temp.leak(tenant, used)")]),
        attack("a leaky function in the storage view", "usage barrier", super::inference::OWNER_OF_NOBODY, vec![
            ok("CREATE FUNCTION pg_temp.leak(uuid, bigint) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE '% %', $1, $2; RETURN true; END $$"),
            ok("SELECT target FROM tenant_storage WHERE pg_temp.leak(tenant, row_count) ORDER BY target::text")]),
    ]
}
