-- Foreign keys to protected tables that do not compare the tenant.

CREATE FUNCTION tenant_rls.audit_fk_without_tenant()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- What a row refers to is looked up without policies. Counting runs only for those who see all tenants.
SELECT
    CASE WHEN n.crossing > 0 THEN 'error' ELSE 'warning' END, 'fk_without_tenant',
    format('%I on %s', o.conname, o.conrelid::regclass),
    CASE
        WHEN f.relation IS NULL THEN format('refers to %s from a table that is not protected: it tells which keys exist', p.name)
        ELSE format('refers to %s without the tenant column: a row can refer to a row of another tenant', p.name)
    END
    || CASE o.confdeltype WHEN 'c' THEN ', and goes with it' ELSE '' END
    || coalesce(format('; rows that do: %s', n.crossing), ''),
    CASE
        WHEN f.relation IS NULL THEN format('ALTER TABLE %s DROP CONSTRAINT %I', o.conrelid::regclass, o.conname)
        ELSE coalesce((
            SELECT format('ALTER TABLE %s ADD UNIQUE (%I, %s); ', p.name, p.tenant_column, k.referred)
            WHERE NOT EXISTS (
                SELECT FROM pg_index AS i
                WHERE i.indrelid = p.relation AND i.indisunique AND i.indimmediate AND i.indpred IS NULL
                AND i.indnkeyatts = cardinality(o.confkey) + 1
                AND ARRAY(SELECT i.indkey[s] FROM generate_series(0, i.indnkeyatts - 1) AS s) @> (o.confkey || p.attnum)
                AND ARRAY(SELECT i.indkey[s] FROM generate_series(0, i.indnkeyatts - 1) AS s) <@ (o.confkey || p.attnum)
            )
        ), '') || format(
            'ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %I FOREIGN KEY (%I, %s) REFERENCES %s (%I, %s)%s',
            f.name, o.conname, o.conname, f.tenant_column, k.referring, p.name, p.tenant_column, k.referred, a.actions)
    END
-- OFFSET 0: rows are counted for the findings alone.
FROM (
    SELECT c.*
    FROM pg_constraint AS c
    JOIN tenant_rls.audit_tables() AS p ON p.relation = c.confrelid
    LEFT JOIN tenant_rls.audit_tables() AS f ON f.relation = c.conrelid
    WHERE c.contype = 'f'
    AND c.conparentid = 0
    AND NOT EXISTS (SELECT FROM unnest(c.conkey, c.confkey) AS u (x, y) WHERE u.x = f.attnum AND u.y = p.attnum)
    OFFSET 0
) AS o
JOIN tenant_rls.audit_tables() AS p ON p.relation = o.confrelid
LEFT JOIN tenant_rls.audit_tables() AS f ON f.relation = o.conrelid
CROSS JOIN LATERAL (
    SELECT
        string_agg(quote_ident(x.attname), ', ' ORDER BY u.n) AS referring,
        string_agg(quote_ident(y.attname), ', ' ORDER BY u.n) AS referred
    FROM unnest(o.conkey, o.confkey) WITH ORDINALITY AS u (x, y, n)
    JOIN pg_attribute AS x ON x.attrelid = o.conrelid AND x.attnum = u.x
    JOIN pg_attribute AS y ON y.attrelid = o.confrelid AND y.attnum = u.y
) AS k
CROSS JOIN LATERAL (
    -- SET NULL must not touch the tenant column, which is NOT NULL; updates of a tenant are no reason to set anything.
    SELECT
        CASE o.confupdtype WHEN 'c' THEN ' ON UPDATE CASCADE' WHEN 'r' THEN ' ON UPDATE RESTRICT' ELSE '' END
        || CASE o.confdeltype
            WHEN 'c' THEN ' ON DELETE CASCADE' WHEN 'r' THEN ' ON DELETE RESTRICT'
            WHEN 'n' THEN format(' ON DELETE SET NULL (%s)', k.referring)
            WHEN 'd' THEN format(' ON DELETE SET DEFAULT (%s)', k.referring)
            ELSE '' END
        || CASE WHEN o.condeferrable THEN ' DEFERRABLE' ELSE '' END
        || CASE WHEN o.condeferred THEN ' INITIALLY DEFERRED' ELSE '' END AS actions
) AS a
CROSS JOIN LATERAL (
    SELECT CASE WHEN f.relation IS NOT NULL AND tenant_rls.sees_all() THEN tenant_rls.audit_crossing(o.oid) END AS crossing
) AS n;
$$;
COMMENT ON FUNCTION tenant_rls.audit_fk_without_tenant() IS 'lint of tenant_audit: foreign keys to protected tables that do not compare the tenant';
