-- Foreign tables with rows of tenants.

CREATE FUNCTION tenant_rls.audit_foreign_table()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT DISTINCT
    'error', 'foreign_table', c.oid::regclass::text,
    CASE
        WHEN t.relation IS NOT NULL THEN format('is a partition or child of %s: its rows are read without policies when it is named', t.name)
        ELSE format('has the tenant column "%s", no policies hold for it, and %s can use it', a.attname, tenant_rls.audit_role(e.grantee))
    END,
    CASE
        WHEN t.relation IS NULL THEN format('REVOKE ALL ON %s FROM %s CASCADE', c.oid::regclass, tenant_rls.audit_role(e.grantee))
        WHEN c.relispartition THEN format('ALTER TABLE %s DETACH PARTITION %s', t.name, c.oid::regclass)
        ELSE format('ALTER FOREIGN TABLE %s NO INHERIT %s', c.oid::regclass, t.name)
    END
FROM pg_class AS c
LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid
LEFT JOIN tenant_rls.audit_tables() AS t ON t.relation = i.inhparent
LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND NOT a.attisdropped
    AND a.attname IN (SELECT 'tenant_id' UNION SELECT p.tenant_column FROM tenant_rls.protected_tables AS p)
LEFT JOIN LATERAL aclexplode(c.relacl) AS e ON e.grantee <> c.relowner
WHERE c.relkind = 'f'
AND (t.relation IS NOT NULL OR (a.attnum IS NOT NULL AND e.grantee IS NOT NULL));
$$;
COMMENT ON FUNCTION tenant_rls.audit_foreign_table() IS 'lint of tenant_audit: foreign tables with rows of tenants';
