-- tenant_protect of a live table as steps. Runs with the search_path of tenant_protect_plan, pg_catalog.
-- $1 root, $2 tenant column, $3 tenant_protect(…) of it, $4 whether the whole tree is protected already.
WITH RECURSIVE tree AS (
    SELECT $1 AS oid, NULL::oid AS parent
    UNION
    SELECT i.inhrelid, CASE WHEN c.relispartition THEN i.inhparent END
    FROM pg_inherits AS i JOIN tree AS t ON i.inhparent = t.oid JOIN pg_class AS c ON c.oid = i.inhrelid
), member AS (
    SELECT c.oid, t.parent, c.relname, c.relkind, n.nspname, format('%I.%I', n.nspname, c.relname) AS name, a.attname, a.attnum, a.attnotnull,
        (SELECT jsonb_object_agg(o.conname, o.convalidated) FROM pg_constraint AS o
            WHERE o.conrelid = c.oid AND o.contype = 'c'
            AND pg_get_expr(o.conbin, o.conrelid) = format('(%I IS NOT NULL)', a.attname)) AS checks,
        EXISTS (SELECT FROM pg_index AS i
            WHERE i.indrelid = c.oid AND i.indkey[0] = a.attnum AND i.indpred IS NULL AND i.indisvalid) AS is_led,
        x.index_name, x.indisvalid, x.is_attached
    FROM tree AS t
    JOIN pg_class AS c USING (oid)
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = $2::name AND NOT a.attisdropped
    LEFT JOIN LATERAL (
        -- An index on the column alone: what a partition brings along, or what a broken CONCURRENTLY has left.
        SELECT x.relname AS index_name, i.indisvalid, x.relispartition AS is_attached
        FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid JOIN pg_am AS m ON m.oid = x.relam
        WHERE i.indrelid = c.oid AND i.indkey = a.attnum::text::int2vector AND i.indpred IS NULL AND NOT i.indisunique
        AND m.amname = 'btree'
        ORDER BY i.indisvalid DESC, i.indexrelid LIMIT 1) AS x ON true
), root AS (
    SELECT m.*, EXISTS (SELECT FROM member AS o
        WHERE NOT o.attnotnull AND NOT EXISTS (SELECT FROM jsonb_each(o.checks) AS c WHERE c.value = 'true')) AS needs_check
    FROM member AS m WHERE m.oid = $1
), named AS (
    -- Where the root has no index on the column, every partition below gets one of its own that becomes part of it.
    SELECT m.*, COALESCE(m.index_name, CASE WHEN octet_length(l.name) > 63
            OR EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                WHERE c.relname = l.name::name AND n.nspname = m.nspname)
            THEN substr(m.relname, 1, 24) || '_' || substr(md5(l.name), 1, 8) || '_tenant_idx' ELSE l.name END) AS index_to_be
    FROM member AS m, LATERAL (SELECT format('%s_%s_idx', m.relname, m.attname) AS name) AS l
    WHERE CASE WHEN m.parent IS NULL THEN NOT m.is_led
        ELSE NOT COALESCE(m.is_attached, false) AND NOT (SELECT r.is_led FROM root AS r) END
), steps AS (
    -- Half of deadlock_timeout, as Postgres installs it: a step that locks partitions before their root, and so can meet a
    -- writer, gives up before the writer looks for a deadlock.
    SELECT 10 AS place, '' AS sorted, 'SET lock_timeout = ''500ms''' AS statement, 'none' AS lock, true AS in_transaction,
        'what waits for a lock stops those behind it: rather fail with 55P03, and run the step again' AS why
    UNION ALL
    SELECT 20, '', format('ALTER TABLE %s ADD CONSTRAINT tenant_present CHECK (%I IS NOT NULL) NOT VALID', r.name, r.attname),
        'ACCESS EXCLUSIVE', true, 'new rows have a tenant; the rows that are there are not read'
    FROM root AS r WHERE r.needs_check AND r.checks IS NULL
    UNION ALL
    SELECT 30, '', 'SET lock_timeout = 0', 'none', true, 'what follows takes long and lets others write'
    FROM root AS r WHERE r.needs_check OR EXISTS (SELECT FROM named)
    UNION ALL
    SELECT 40, '', format('ALTER TABLE %s VALIDATE CONSTRAINT %I', r.name, COALESCE(c.key, 'tenant_present')),
        'SHARE UPDATE EXCLUSIVE', true, 'reads every row; fails with 23514 if one has no tenant: give it one, and run the step again'
    FROM root AS r LEFT JOIN LATERAL (SELECT k.key FROM jsonb_each(r.checks) AS k ORDER BY k.key LIMIT 1) AS c ON true
    WHERE r.needs_check
    UNION ALL
    SELECT 50, n.name, format('DROP INDEX CONCURRENTLY %I.%I', n.nspname, n.index_name), 'SHARE UPDATE EXCLUSIVE', false,
        'CREATE INDEX CONCURRENTLY did not end, and has left an invalid index'
    FROM named AS n WHERE n.relkind = 'r' AND NOT n.indisvalid
    UNION ALL
    SELECT 60, n.name, format('CREATE INDEX CONCURRENTLY %I ON %s (%I)', n.index_to_be, n.name, n.attname),
        'SHARE UPDATE EXCLUSIVE', false, 'the tenant is in every query; tenant_protect would build the index and keep writers out meanwhile'
    FROM named AS n WHERE n.relkind = 'r' AND n.indisvalid IS NOT TRUE
    UNION ALL
    SELECT 70, '', 'SET lock_timeout = ''500ms''', 'none', true, 'what follows is short'
    FROM root AS r WHERE r.needs_check OR EXISTS (SELECT FROM named)
    UNION ALL
    SELECT 80, n.name, format('CREATE INDEX %I ON ONLY %s (%I)', n.index_to_be, n.name, n.attname), 'SHARE', true,
        'the index of the whole table, empty until those of its partitions are part of it'
    FROM named AS n WHERE n.relkind = 'p' AND n.index_name IS NULL
    UNION ALL
    SELECT 90, n.name, format('ALTER INDEX %I.%I ATTACH PARTITION %I.%I', p.nspname, p.index_to_be, n.nspname, n.index_to_be),
        -- The last one below a partition makes the index of the partition complete, under a lock on its parent.
        CASE WHEN p.parent IS NULL THEN 'ACCESS SHARE' ELSE 'ACCESS EXCLUSIVE' END, true, 'nothing is read'
    FROM named AS n JOIN named AS p ON p.oid = n.parent
    UNION ALL
    SELECT 100, '', 'SELECT ' || $3, 'ACCESS EXCLUSIVE', true, 'changes catalogs, and reads no row any more'
    WHERE NOT $4
    UNION ALL
    SELECT 110, '', format('ALTER TABLE %s DROP CONSTRAINT tenant_present', r.name), 'ACCESS EXCLUSIVE', true, 'NOT NULL says the same'
    FROM root AS r WHERE r.checks ? 'tenant_present' OR (r.needs_check AND r.checks IS NULL)
    UNION ALL
    SELECT 120, '', 'RESET lock_timeout', 'none', true, ''
)
SELECT s.statement, s.lock, s.in_transaction, s.why FROM steps AS s
WHERE EXISTS (SELECT FROM steps AS o WHERE o.lock <> 'none')
ORDER BY s.place, s.sorted
