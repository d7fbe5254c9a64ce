-- Protected tables without one of the two policies.

CREATE FUNCTION tenant_rls.audit_policy_missing()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'error', 'policy_missing', t.name,
    format('policy "%s" is missing', p.name),
    t.protect
FROM tenant_rls.audit_tables() AS t
CROSS JOIN (VALUES ('tenant_isolation'), ('tenant_boundary')) AS p (name)
WHERE NOT EXISTS (SELECT FROM pg_policy AS l WHERE l.polrelid = t.relation AND l.polname = p.name);
$$;
COMMENT ON FUNCTION tenant_rls.audit_policy_missing() IS 'lint of tenant_audit: protected tables without one of the two policies';
