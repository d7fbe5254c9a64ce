-- Policies of tenant_protect that are no longer what it made.

CREATE FUNCTION tenant_rls.audit_policy_changed()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'error', 'policy_changed', t.name,
    format('policy "%s" is not what tenant_protect made: command, roles, kind or condition differ', l.polname),
    t.protect
FROM tenant_rls.audit_tables() AS t
JOIN pg_policy AS l ON l.polrelid = t.relation AND l.polname IN ('tenant_isolation', 'tenant_boundary')
WHERE (
    l.polcmd = '*'
    AND l.polroles = '{0}'::oid[]
    AND l.polpermissive = (l.polname = 'tenant_isolation')
    AND pg_get_expr(l.polqual, l.polrelid) = t.condition
    AND pg_get_expr(l.polwithcheck, l.polrelid) = t.condition
) IS NOT TRUE;
$$;
COMMENT ON FUNCTION tenant_rls.audit_policy_changed() IS 'lint of tenant_audit: policies of tenant_protect that are no longer what it made';
