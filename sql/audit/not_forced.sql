-- Protected tables whose owner sees all rows.

CREATE FUNCTION tenant_rls.audit_not_forced()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    CASE WHEN t.force THEN 'error' ELSE 'info' END, 'not_forced', t.name,
    CASE
        WHEN t.force THEN 'row level security is not forced any more: the policies do not hold for the owner'
        ELSE 'protected with force => false: the policies do not hold for the owner'
    END,
    format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', t.name)
FROM tenant_rls.audit_tables() AS t
WHERE NOT t.forced;
$$;
COMMENT ON FUNCTION tenant_rls.audit_not_forced() IS 'lint of tenant_audit: protected tables whose owner sees all rows';
