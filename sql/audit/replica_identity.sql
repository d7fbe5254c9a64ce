-- Published tables whose old rows do not tell the tenant.

CREATE FUNCTION tenant_rls.audit_replica_identity()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT DISTINCT
    'info', 'replica_identity', t.name,
    format('is published, and its replica identity lacks "%s": no row filter can use it for updates and deletes', t.tenant_column),
    coalesce((
        SELECT format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I', t.name, x.relname)
        FROM pg_index AS i
        JOIN pg_class AS x ON x.oid = i.indexrelid
        WHERE i.indrelid = t.relation AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL
        AND t.attnum = ANY (i.indkey)
        AND NOT EXISTS (
            SELECT FROM generate_series(0, i.indnkeyatts - 1) AS s
            LEFT JOIN pg_attribute AS a ON a.attrelid = t.relation AND a.attnum = i.indkey[s]
            WHERE a.attnotnull IS NOT TRUE)
        ORDER BY x.relname
        LIMIT 1
    ), format('ALTER TABLE %s REPLICA IDENTITY FULL', t.name))
FROM tenant_rls.audit_tables() AS t
JOIN pg_class AS c ON c.oid = t.relation AND c.relkind = 'r'
JOIN pg_publication_tables AS p ON p.schemaname = c.relnamespace::regnamespace::name AND p.tablename = c.relname
WHERE c.relreplident <> 'f'
AND NOT EXISTS (
    SELECT FROM pg_index AS i
    WHERE i.indrelid = t.relation
    AND ((c.relreplident = 'd' AND i.indisprimary) OR (c.relreplident = 'i' AND i.indisreplident))
    AND t.attnum = ANY (i.indkey)
);
$$;
COMMENT ON FUNCTION tenant_rls.audit_replica_identity() IS 'lint of tenant_audit: published tables whose old rows do not tell the tenant';
