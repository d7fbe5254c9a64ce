//! Statistics, plans, sizes, sequences and messages: what can be concluded.

use super::{Attack, Oracle, any, attack, no, ok};

const SIZES: &str = "**Sizes and times** tell something: `EXPLAIN ANALYZE`, statistics views and the size of a relation are of all tenants.";

/// The tables of a role that acts for a single tenant are not counted for others.
pub(super) const OWNER_OF_NOBODY: &str = "SELECT tenant_revoke('{owner}', '{A}')";

pub fn attacks() -> Vec<Attack> {
    vec![
        attack("statistics of the columns", "statistics", "", vec![ok("SELECT tablename, attname, most_common_vals, histogram_bounds FROM pg_stats WHERE tablename IN ('orders', 'people', 'events_2026', 'papers_old') ORDER BY 1, 2")]),
        attack("statistics of several columns", "statistics",
            "CREATE STATISTICS pairs (mcv) ON tenant_id, note FROM orders; ANALYZE orders",
            vec![ok("SELECT most_common_vals FROM pg_stats_ext WHERE tablename = 'orders'")]),
        attack("statistics of expressions", "statistics",
            "CREATE STATISTICS lowered ON lower(note) FROM orders; ANALYZE orders",
            vec![ok("SELECT expr, most_common_vals, histogram_bounds FROM pg_stats_ext_exprs WHERE tablename = 'orders'")]),
        attack("the catalog of statistics", "catalog rights", "", vec![no("42501", "SELECT stavalues1 FROM pg_statistic")]),
        attack("a plan", "documented", "", vec![ok("EXPLAIN SELECT * FROM orders")]).leaks(Oracle::Worlds, SIZES),
        attack("an analyzed plan", "documented", "", vec![
            ok("SET enable_indexscan = off; SET enable_bitmapscan = off"),
            ok("EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) SELECT * FROM orders")]).leaks(Oracle::Worlds, SIZES),
        attack("the estimated size of a table", "documented", "", vec![ok("SELECT relname, reltuples FROM pg_class WHERE relname IN ('orders', 'people') ORDER BY 1")])
            .leaks(Oracle::Worlds, SIZES),
        attack("the place of an own row", "documented", "", vec![ok("INSERT INTO people (id, note) VALUES (60, 'mine') RETURNING ctid")]).leaks(Oracle::Worlds, SIZES),
        attack("the next number of a sequence", "documented", "", vec![ok("INSERT INTO jobs (note) VALUES ('mine') RETURNING id")]).leaks(Oracle::Worlds, SIZES),
        attack("the last number of a sequence", "catalog rights", "", vec![no("42501", "SELECT setval('jobs_id_seq', 1)")]),
        attack("rows of a sequence", "catalog rights", "REVOKE USAGE ON SEQUENCE jobs_id_seq FROM {app}", vec![no("42501", "SELECT last_value FROM jobs_id_seq")]),
        attack("the usage of all", "usage rights", "", vec![ok("SELECT tenant, resource, used, quota_limit FROM tenant_usage ORDER BY resource")]),
        attack("the storage of all", "usage rights", OWNER_OF_NOBODY, vec![ok("SELECT tenant, target, row_count, total_bytes FROM tenant_storage ORDER BY target::text")]),
        attack("the usage history of all", "usage rights",
            "INSERT INTO tenant_rls.usage VALUES ('{B}', 'calls', '2020-01-01', '2021-01-01', 8675309042)",
            vec![ok("SELECT * FROM tenant_usage_history")]),
        attack("the closed usage history of all", "usage rights",
            "INSERT INTO tenant_rls.usage_history VALUES ('{B}', 'calls', '2020-01-01', '2021-01-01', 8675309042)",
            vec![ok("SELECT * FROM tenant_usage_history")]),
        attack("the events of all", "usage rights",
            "INSERT INTO tenant_rls.quota_events VALUES ('{B}', 'calls', '2020-01-01', 80, 8675309042, 9)",
            vec![ok("SELECT * FROM tenant_quota_events")]),
        attack("the usage of B without a tenant", "usage rights", "", vec![ok("SELECT tenant, used FROM tenant_usage"), ok("SELECT * FROM tenant_storage")]).by("app", ""),
        attack("the usage of a stranger", "catalog rights", "", vec![no("42501", "SELECT * FROM tenant_usage")]).by("stranger", ""),
        attack("the message of a unique violation", "message", "", vec![any("INSERT INTO people (id, email) VALUES (50, 'canary-b@example.com')")])
            .leaks(Oracle::Worlds, "**Unique constraints** without the tenant column tell that a value is taken by somebody."),
        attack("the message of a check violation", "message",
            "ALTER TABLE orders ADD CHECK (amount <> 77)", vec![no("42501", "UPDATE orders SET tenant_id = '{B}', amount = 78")]),
        attack("the message of a policy violation", "check", "", vec![no("42501", "INSERT INTO orders VALUES ('{B}', 1, 'mine')")]),
        attack("the message of a partition violation", "check", "", vec![no("42501", "INSERT INTO events_2026 VALUES ('{B}', '2029-01-01', 1, 'mine')")]),
        attack("the message of an exclusion violation", "message",
            "CREATE TABLE rooms (tenant_id uuid NOT NULL, taken int8range, EXCLUDE USING gist (taken WITH &&));
             ALTER TABLE rooms OWNER TO {owner}; SET ROLE {owner}; SELECT tenant_protect('rooms'); RESET ROLE; GRANT SELECT, INSERT ON rooms TO {app};
             INSERT INTO rooms SELECT tenant_id, int8range(amount, amount + 1) FROM orders WHERE tenant_id = '{B}' LIMIT 1",
            vec![any("INSERT INTO rooms (taken) VALUES ('[1, 9000000000)')"), no("42501", "INSERT INTO rooms VALUES ('{B}', '[1, 2)')")])
            .leaks(Oracle::Worlds, "**Unique constraints** without the tenant column tell that a value is taken by somebody."),
        attack("analyze with messages", "catalog rights", "", vec![ok("ANALYZE VERBOSE orders")]),
        attack("vacuum with messages", "catalog rights", "", vec![ok("VACUUM VERBOSE orders")]),
        attack("the bytes of a page", "catalog rights", "CREATE EXTENSION pageinspect", vec![no("42501", "SELECT get_raw_page('orders', 0)")]),
        attack("the toast table", "catalog rights", "", vec![
            no("42501", "DO $$ DECLARE t regclass; BEGIN SELECT reltoastrelid INTO t FROM pg_class WHERE relname = 'orders'; EXECUTE 'SELECT * FROM ' || t; END $$")]),
        attack("an index as a table", "catalog rights", "", vec![no("42809", "SELECT * FROM orders_pkey")]),
        attack("logical decoding", "catalog rights", "", vec![no("42501", "SELECT pg_create_logical_replication_slot('s', 'test_decoding')")]),
        attack("a publication", "catalog rights", "", vec![no("42501", "CREATE PUBLICATION p FOR TABLE orders")]),
        attack("changes of a slot", "catalog rights", "", vec![no("42501", "SELECT pg_logical_slot_get_changes('s', NULL, NULL)")]),
        attack("log files", "catalog rights", "", vec![no("42501", "SELECT pg_read_file('postgresql.conf')")]),
    ]
}
