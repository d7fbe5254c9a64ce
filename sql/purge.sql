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

-- The deleted rows of the tenant must take no row of another one along, and none may hold them. Comparisons of the
-- catalog and of index operator classes alone run here, no code of a user.
CREATE FUNCTION tenant_rls.purge_crossing(tenant uuid) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k record;
    crosses boolean;
BEGIN
    FOR k IN
        SELECT
            f.conname, f.conrelid::regclass AS child, f.confrelid::regclass AS parent,
            c.tenant_column AS child_column, p.tenant_column AS parent_column,
            coalesce(c.key_type, p.key_type) AS child_type, p.key_type AS parent_type,
            string_agg(
                format('p.%I OPERATOR(%I.%s) c.%I', pa.attname, n.nspname, o.oprname, ca.attname), ' AND ') AS joined
        FROM pg_constraint AS f
        JOIN tenant_rls.protected_tables AS p ON p.relation = f.confrelid
        LEFT JOIN tenant_rls.protected_tables AS c ON c.relation = f.conrelid
        CROSS JOIN LATERAL unnest(f.conkey, f.confkey, f.conpfeqop) AS u (child, parent, operator)
        JOIN pg_attribute AS ca ON ca.attrelid = f.conrelid AND ca.attnum = u.child
        JOIN pg_attribute AS pa ON pa.attrelid = f.confrelid AND pa.attnum = u.parent
        JOIN pg_operator AS o ON o.oid = u.operator
        JOIN pg_namespace AS n ON n.oid = o.oprnamespace
        WHERE f.contype = 'f' AND f.conparentid = 0
        -- A table without a tenant column says by CASCADE, SET NULL or SET DEFAULT what becomes of its rows.
        AND (c.relation IS NOT NULL OR f.confdeltype IN ('a', 'r'))
        GROUP BY f.oid, f.conname, f.conrelid, f.confrelid, c.tenant_column, p.tenant_column, c.key_type, p.key_type
        -- A key that carries the tenant cannot cross.
        HAVING NOT coalesce(bool_or(ca.attname = c.tenant_column AND pa.attname = p.tenant_column), false)
        ORDER BY f.conrelid, f.conname
    LOOP
        EXECUTE format(
            'SELECT EXISTS (SELECT FROM %s AS p JOIN %s AS c ON %s WHERE p.%I = %s%s)',
            k.parent, k.child, k.joined, k.parent_column,
            CASE k.parent_type WHEN 'uuid' THEN '$1' ELSE '(SELECT t.tenant_key FROM tenant_rls.tenants AS t WHERE t.tenant_id = $1)' END,
            CASE WHEN k.child_column IS NOT NULL THEN format(' AND c.%I <> %s', k.child_column,
                CASE k.child_type WHEN 'uuid' THEN '$1' ELSE '(SELECT t.tenant_key FROM tenant_rls.tenants AS t WHERE t.tenant_id = $1)' END)
            END)
        INTO crosses USING tenant;
        IF crosses THEN
            RETURN format(
                'Rows of table %s that do not belong to the tenant refer to its rows in table %s by foreign key "%s".',
                k.child, k.parent, k.conname);
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tenant_rls.purge_crossing(uuid) IS
'the first foreign key by which rows of others refer to rows of the tenant, as a sentence; or NULL';

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
