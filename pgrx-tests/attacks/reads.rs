//! Reading rows of another tenant.

use super::{Attack, any, attack, no, ok};

/// A statement that must work, and show nothing of B.
fn read(name: &'static str, sql: &'static str) -> Attack {
    attack(name, "policy", "", vec![ok(sql)])
}

pub fn attacks() -> Vec<Attack> {
    vec![
        read("select everything", "SELECT * FROM orders ORDER BY id"),
        read("select by the tenant column", "SELECT * FROM orders WHERE tenant_id = '{B}'"),
        read("select with or true", "SELECT * FROM orders WHERE tenant_id = '{B}' OR true ORDER BY id"),
        read("table sampling", "SELECT count(*) FROM orders TABLESAMPLE SYSTEM (100)"),
        read("union with itself", "SELECT note FROM orders UNION SELECT note FROM orders ORDER BY 1"),
        read("a whole row", "SELECT o::text FROM orders AS o ORDER BY id"),
        read("as json", "SELECT jsonb_agg(o ORDER BY id) FROM orders AS o"),
        // A server may be built without libxml.
        attack(
            "as xml of a table",
            "policy",
            "",
            vec![any("SELECT query_to_xml('SELECT note FROM orders ORDER BY id', true, true, '')")],
        ),
        read(
            "a lateral join",
            "SELECT p.note FROM orders AS o, LATERAL (SELECT * FROM orders AS i WHERE i.id = o.id) AS p ORDER BY 1",
        ),
        read(
            "a recursive query",
            "WITH RECURSIVE r AS (SELECT 1 AS id UNION ALL SELECT r.id + 1 FROM r WHERE r.id < 60) SELECT o.note FROM r JOIN orders AS o USING (id) ORDER BY id",
        ),
        read(
            "not exists",
            "SELECT i FROM generate_series(1, 50) AS i WHERE NOT EXISTS (SELECT FROM orders AS o WHERE o.id = i) ORDER BY i",
        ),
        read(
            "an aggregate with a filter",
            "SELECT count(*) FILTER (WHERE tenant_id = '{B}'), sum(amount), max(note) FROM orders",
        ),
        read("a window", "SELECT note, count(*) OVER () FROM orders ORDER BY id"),
        read(
            "grouping sets",
            "SELECT tenant_id, count(*) FROM orders GROUP BY ROLLUP (tenant_id) ORDER BY 1",
        ),
        read(
            "a row by its place",
            "SELECT note FROM orders WHERE ctid = ANY (ARRAY(SELECT format('(0,%s)', i)::tid FROM generate_series(1, 80) AS i)) ORDER BY id",
        ),
        read("through copy of a query", "COPY (SELECT * FROM orders ORDER BY id) TO STDOUT"),
        read("through copy of the table", "COPY orders TO STDOUT"),
        read("through copy of a partition", "COPY events_2026 TO STDOUT"),
        read("through copy of a child", "COPY papers_old TO STDOUT"),
        attack(
            "through copy to a program",
            "catalog rights",
            "",
            vec![no("42501", "COPY orders TO PROGRAM 'cat'")],
        ),
        attack(
            "through copy to a file",
            "catalog rights",
            "",
            vec![no("42501", "COPY orders TO '/tmp/orders'")],
        ),
        read("by the bigint key", "SELECT * FROM invoices WHERE account_id = 2 OR true ORDER BY id"),
        read("by the integer key", "SELECT * FROM parcels WHERE account > 1 OR true ORDER BY id"),
        read(
            "by the integer key, in another type",
            "SELECT * FROM parcels WHERE account::numeric <> 1::float8 OR true",
        ),
        read("a table with keys of its own", "SELECT * FROM people ORDER BY id"),
        read("jobs with a sequence", "SELECT note FROM jobs"),
        read("only the parent", "SELECT * FROM ONLY papers ORDER BY id"),
        read("returning of an update", "UPDATE orders SET note = note WHERE tenant_id = '{B}' RETURNING *"),
        read("returning of a delete", "DELETE FROM orders WHERE tenant_id = '{B}' RETURNING *"),
        read("for update", "SELECT note FROM orders ORDER BY id FOR UPDATE"),
        read("for key share, skip locked", "SELECT note FROM orders ORDER BY id FOR KEY SHARE SKIP LOCKED"),
        read(
            "a scrollable cursor, backwards",
            "BEGIN; DECLARE c SCROLL CURSOR FOR SELECT note FROM orders ORDER BY id; MOVE ALL FROM c; FETCH BACKWARD ALL FROM c; COMMIT",
        ),
        read(
            "a table made of it",
            "CREATE TEMPORARY TABLE kept AS TABLE orders; SELECT * FROM kept ORDER BY id",
        ),
        read(
            "a prepared statement with parameters",
            "PREPARE p (uuid) AS SELECT * FROM orders WHERE tenant_id = $1; EXECUTE p ('{B}')",
        ),
        read(
            "the largest values by the index",
            "SET enable_seqscan = off; SELECT max(tenant_id::text), min(id), max(id) FROM orders",
        ),
    ]
}
