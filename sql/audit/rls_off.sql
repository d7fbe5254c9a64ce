-- Protected tables without row level security.

CREATE FUNCTION tenant_rls.audit_rls_off()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'error', 'rls_off', t.name,
    'row level security is disabled: who has privileges on the table has them on the rows of all tenants',
    format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', t.name)
FROM tenant_rls.audit_tables() AS t
WHERE NOT t.enabled;
$$;
COMMENT ON FUNCTION tenant_rls.audit_rls_off() IS 'lint of tenant_audit: protected tables without row level security';
