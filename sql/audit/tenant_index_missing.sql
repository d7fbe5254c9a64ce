-- Protected tables without an index that starts with the tenant column.

CREATE FUNCTION tenant_rls.audit_tenant_index_missing()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'warning', 'tenant_index_missing', t.name,
    format('no index starts with "%s": every statement of one tenant reads the rows of all', t.tenant_column),
    format('CREATE INDEX ON %s (%I)', t.name, t.tenant_column)
FROM tenant_rls.audit_tables() AS t
WHERE NOT t.is_partition
AND NOT EXISTS (
    SELECT FROM pg_index AS i
    WHERE i.indrelid = t.relation AND i.indkey[0] = t.attnum AND i.indpred IS NULL AND i.indisvalid
);
$$;
COMMENT ON FUNCTION tenant_rls.audit_tenant_index_missing() IS 'lint of tenant_audit: protected tables without an index that starts with the tenant column';
