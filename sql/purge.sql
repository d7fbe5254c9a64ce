-- Erasing a deleted tenant. What has to be looked up for it; the work itself is in src/purge.rs.

CREATE PROCEDURE @extschema@.tenant_purge(tenant uuid, batch_size integer DEFAULT 10000)
LANGUAGE c AS 'MODULE_PATHNAME', 'tenant_purge';
COMMENT ON PROCEDURE @extschema@.tenant_purge(uuid, integer) IS
'erases a deleted tenant and all its rows, batch_size rows a transaction; call it again after an interruption. 25001 in a transaction block, 55000 not deleted or not everything can be erased, 55006 writers were still open at lock_timeout';

-- Roots in the order in which they can be emptied: what refers to a table comes before it. A table reaches those that
-- it refers to, so it reaches more than each of them; tables that reach the same refer to each other in a ring.
CREATE FUNCTION tenant_rls.purge_order() RETURNS TABLE (step bigint, root oid, together boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE reference AS (
        SELECT coalesce(c.root::oid, k.conrelid) AS child, coalesce(p.root::oid, k.confrelid) AS parent, k.confdeltype
        FROM pg_constraint AS k
        LEFT JOIN tenant_rls.protected_tables AS c ON c.relation = k.conrelid
        LEFT JOIN tenant_rls.protected_tables AS p ON p.relation = k.confrelid
        WHERE k.contype = 'f' AND k.conparentid = 0
    ),
    reached AS (
        SELECT t.root::oid AS source, t.root::oid AS target FROM tenant_rls.protected_tables AS t
        UNION
        SELECT r.source, e.parent FROM reached AS r JOIN reference AS e ON e.child = r.target
    ),
    reach AS (
        SELECT r.source, array_agg(r.target ORDER BY r.target) AS targets FROM reached AS r GROUP BY r.source
    )
    SELECT
        dense_rank() OVER (ORDER BY cardinality(t.targets) DESC, t.targets),
        t.source,
        -- Rows that go by CASCADE may go in any order.
        EXISTS (
            SELECT
            FROM reference AS e
            JOIN reach AS c ON c.source = e.child
            JOIN reach AS p ON p.source = e.parent
            WHERE c.targets = t.targets AND p.targets = t.targets AND e.confdeltype <> 'c')
    FROM reach AS t
    ORDER BY 1, 2
$$;
COMMENT ON FUNCTION tenant_rls.purge_order() IS
'roots of protected tables, referring ones first; the roots of a step with together can be emptied in one statement only';

-- Materialized views can be refreshed only when the rows are gone.
CREATE FUNCTION tenant_rls.purge_uncovered() RETURNS TABLE (relation oid, tenant_column text, key_type text, stored boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE covered AS (
        SELECT t.relation::oid AS relation FROM tenant_rls.protected_tables AS t
        UNION
        SELECT i.inhrelid FROM pg_inherits AS i JOIN covered AS c ON c.relation = i.inhparent
    )
    SELECT c.oid, a.attname, format_type(a.atttypid, NULL), c.relkind = 'm'
    FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f', 'm')
    AND c.relpersistence <> 't'
    AND NOT c.relispartition
    AND n.nspname NOT IN ('tenant_rls', 'pg_catalog', 'pg_toast', 'information_schema')
    AND (a.attname = 'tenant_id' OR a.attname IN (SELECT t.tenant_column FROM tenant_rls.protected_tables AS t))
    AND c.oid NOT IN (SELECT t.relation FROM covered AS t)
    ORDER BY c.oid, a.attnum
$$;
COMMENT ON FUNCTION tenant_rls.purge_uncovered() IS
'tables and materialized views that have a tenant column and are not protected';

-- The deleted rows of the tenant must take no row of another one along, and none may hold them. Here are the foreign
-- keys by which they could, with a query that says whether they do, and one that says whether the tenant has rows to
-- refer to at all. The planner evaluates expressions of the tables' owner for them, so they are run as that one.
CREATE FUNCTION tenant_rls.purge_crossing(tenant uuid)
RETURNS TABLE (constraint_name text, child text, parent text, parent_owner oid, one_owner boolean, crosses text, has_rows text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT
        f.conname::text, k.child, k.parent, pc.relowner, pc.relowner = cc.relowner,
        format('SELECT FROM %s AS p JOIN %s AS c ON %s WHERE p.%I OPERATOR(pg_catalog.=) %s%s LIMIT 1',
            k.parent, k.child, k.joined, p.tenant_column, k.parent_value,
            CASE WHEN c.relation IS NOT NULL THEN format(' AND c.%I OPERATOR(pg_catalog.<>) %s', c.tenant_column, k.child_value) END),
        format('SELECT FROM %s AS p WHERE p.%I OPERATOR(pg_catalog.=) %s LIMIT 1', k.parent, p.tenant_column, k.parent_value)
    FROM pg_constraint AS f
    JOIN tenant_rls.protected_tables AS p ON p.relation = f.confrelid
    JOIN pg_class AS pc ON pc.oid = f.confrelid
    JOIN pg_class AS cc ON cc.oid = f.conrelid
    LEFT JOIN tenant_rls.protected_tables AS c ON c.relation = f.conrelid
    LEFT JOIN tenant_rls.tenants AS t ON t.tenant_id = purge_crossing.tenant
    CROSS JOIN LATERAL (
        SELECT
            f.conrelid::regclass::text AS child, f.confrelid::regclass::text AS parent,
            string_agg(format('p.%I OPERATOR(%I.%s) c.%I', pa.attname, n.nspname, o.oprname, ca.attname), ' AND ') AS joined,
            bool_or(ca.attname = c.tenant_column AND pa.attname = p.tenant_column) AS carries_tenant,
            CASE p.key_type WHEN 'uuid' THEN format('%L::pg_catalog.uuid', purge_crossing.tenant)
                ELSE format('%L::pg_catalog.int8', t.tenant_key) END AS parent_value,
            CASE coalesce(c.key_type, p.key_type) WHEN 'uuid' THEN format('%L::pg_catalog.uuid', purge_crossing.tenant)
                ELSE format('%L::pg_catalog.int8', t.tenant_key) END AS child_value
        FROM unnest(f.conkey, f.confkey, f.conpfeqop) AS u (child, parent, operator)
        JOIN pg_attribute AS ca ON ca.attrelid = f.conrelid AND ca.attnum = u.child
        JOIN pg_attribute AS pa ON pa.attrelid = f.confrelid AND pa.attnum = u.parent
        JOIN pg_operator AS o ON o.oid = u.operator
        JOIN pg_namespace AS n ON n.oid = o.oprnamespace
    ) AS k
    WHERE f.contype = 'f' AND f.conparentid = 0
    -- A table without a tenant column says by CASCADE, SET NULL or SET DEFAULT what becomes of its rows. With another
    -- owner the deletion itself finds rows that stand in its way.
    AND (c.relation IS NOT NULL OR (f.confdeltype IN ('a', 'r') AND pc.relowner = cc.relowner))
    -- A key that carries the tenant cannot cross.
    AND k.carries_tenant IS NOT TRUE
    ORDER BY f.conrelid, f.conname
$$;
COMMENT ON FUNCTION tenant_rls.purge_crossing(uuid) IS
'the foreign keys by which rows of others could refer to rows of the tenant, and queries that say whether they do';

-- Of the tables of the extension itself those that name the tenant, whichever version has made them.
CREATE FUNCTION tenant_rls.purge_registry(tenant uuid) RETURNS TABLE (relation text, deleted bigint)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    FOR relation IN
        SELECT c.relname
        FROM pg_class AS c
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND a.atttypid = 'uuid'::regtype
        WHERE c.relnamespace = 'tenant_rls'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        ORDER BY c.relname = 'tenants', c.relname
    LOOP
        EXECUTE format('DELETE FROM tenant_rls.%I AS t WHERE t.tenant_id = $1', relation) USING tenant;
        GET DIAGNOSTICS deleted = ROW_COUNT;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tenant_rls.purge_registry(uuid) IS
'deletes what the registry and usage hold of a tenant, the tenant last';
