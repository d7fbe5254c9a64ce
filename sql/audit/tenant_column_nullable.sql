-- Tenant columns that take NULL.

CREATE FUNCTION tenant_rls.audit_tenant_column_nullable()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'error', 'tenant_column_nullable', format('%s.%I', t.name, t.tenant_column),
    'the tenant column takes NULL: such a row belongs to nobody, and a composite foreign key does not check it',
    format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', t.name, t.tenant_column)
FROM tenant_rls.audit_tables() AS t
JOIN pg_attribute AS a ON a.attrelid = t.relation AND a.attnum = t.attnum
WHERE NOT a.attnotnull;
$$;
COMMENT ON FUNCTION tenant_rls.audit_tenant_column_nullable() IS 'lint of tenant_audit: tenant columns that take NULL';
