-- Permissive policies beside tenant_isolation.

CREATE FUNCTION tenant_rls.audit_permissive_policy()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'warning', 'permissive_policy', t.name,
    format('permissive policy "%s" is added to tenant_isolation: only the boundary keeps it from showing other tenants', l.polname),
    format('DROP POLICY %I ON %s', l.polname, t.name)
FROM tenant_rls.audit_tables() AS t
JOIN pg_policy AS l ON l.polrelid = t.relation
WHERE l.polpermissive AND l.polname <> 'tenant_isolation';
$$;
COMMENT ON FUNCTION tenant_rls.audit_permissive_policy() IS 'lint of tenant_audit: permissive policies beside tenant_isolation';
